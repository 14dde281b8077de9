//! Live connections go on over a restart of the service, in its sandbox, however many they are.

pub mod forger;
pub mod load;
pub mod shutdown;
pub mod store_contents;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size;

use common::machines::machine::{Machine, TCP, UNIX};
use common::{Peer, TEST_TIMEOUT, ensure_nofile_limit, now, wait_until};

tests![
    messages_split_by_a_restart_are_answered,
    nine_thousand_connections_survive_restarts,
    replies_that_a_client_has_not_read_survive_a_restart,
    a_read_deadline_that_passes_during_a_restart_is_reported_after_it,
    a_read_deadline_keeps_running_over_a_restart,
];

/// No deadline nor limit makes a slow machine fail; clients on the Unix socket are all of one user.
const PATIENT: &str = "
[limits]
connections = 9500
connections_per_source = 0
[defaults.deadlines]
read = '5min'
write = '5min'
";

/// Starts the socket. The service can have as many connections as [`PATIENT`] says.
fn start(machine: &Machine, settings: &str) {
    machine.configure(settings);
    machine.edit("echoed.service", "[Service]\nLimitNOFILE=20000\nMemoryMax=infinity\n");
    machine.sh("systemctl start echoed.socket");
}

/// Restarts the service. It is another process then.
fn restart(machine: &Machine) {
    let before = machine.daemon_pid();
    machine.sh("systemctl restart echoed.service");
    assert!(machine.daemon_pid().is_some() && machine.daemon_pid() != before, "it was started anew");
}

/// That nothing is left in the store, and that the service had nothing to warn of.
fn expect_no_warnings(machine: &Machine) {
    expect_empty_store(machine);
    let warnings = machine.sh("journalctl --sync; journalctl --quiet --identifier=echoed --priority=warning");
    assert_eq!(warnings, "");
    assert_eq!(machine.property("echoed.service", "NRestarts"), "0");
}

fn expect_empty_store(machine: &Machine) {
    assert_eq!(machine.property("echoed.service", "NFileDescriptorStore"), "0");
    if machine.version() >= 254 {
        let listed = machine.sh("systemd-analyze fdstore echoed.service");
        assert!(!listed.contains("handover"), "{listed}");
    }
}

/// Clients, half of them on TCP and half on the Unix socket.
struct Clients(Vec<Peer>);

impl Clients {
    fn connect(machine: &Machine, count: usize) -> Self {
        let addresses = [TCP, UNIX].map(|address| machine.address(address));
        Self(addresses.iter().cycle().take(count).map(|address| Peer::connect(address)).collect())
    }

    /// Each sends half a message, and waits until that was read.
    fn send_first_halves(&mut self) {
        for (number, peer) in self.0.iter_mut().enumerate() {
            // Read together with the half of the second.
            peer.send(format!("first of {number}\tsecond "));
        }
        for (number, peer) in self.0.iter_mut().enumerate() {
            peer.expect(format!("server got:first of {number}\t"));
        }
    }

    /// Each sends the other half, and gets its reply.
    fn send_second_halves(&mut self) {
        for (number, peer) in self.0.iter_mut().enumerate() {
            peer.send(format!("of {number}\t"));
        }
        for (number, peer) in self.0.iter_mut().enumerate() {
            peer.expect(format!("server got:second of {number}\t"));
        }
    }
}

/// A client that sends one message after the other, and watches how long it has to wait for a reply.
struct BusyClient {
    answered: Arc<AtomicUsize>,
    /// Gives the longest wait.
    client: JoinHandle<Duration>,
}

/// How many messages a busy client sends before it is enough.
const STOP: usize = usize::MAX / 2;

impl BusyClient {
    fn start(machine: &Machine) -> Self {
        let answered = Arc::new(AtomicUsize::new(0));
        let (mut stream, count) = (machine.connect(TCP).into_stream(), Arc::clone(&answered));
        let client = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut reply = [0; b"server got:ping\t".len()];
            while count.fetch_add(1, Ordering::Relaxed) < STOP {
                let sent = now();
                stream.write_all(b"ping\t").expect("the connection goes on");
                stream.read_exact(&mut reply).expect("the connection goes on");
                assert_eq!(reply.escape_ascii().to_string(), "server got:ping\\t");
                longest = longest.max(sent.elapsed());
            }
            longest
        });
        let busy = Self { answered, client };
        busy.wait_for_more();
        busy
    }

    fn wait_for_more(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        let continues = || self.client.is_finished() || self.answered.load(Ordering::Relaxed) > before + 100;
        wait_until("the busy client is busy", continues);
    }

    fn longest_wait(self) -> Duration {
        self.wait_for_more();
        self.answered.fetch_add(STOP, Ordering::Relaxed);
        self.client.join().expect("it got all its replies")
    }
}

/// Three restarts with a number of connections and a client that is busy all the while. The longest that this one had to
/// wait is printed, for each.
fn restart_with_connections(machine: &Machine, count: usize) {
    let mut clients = Clients::connect(machine, count);
    let mut waits = Vec::new();
    for _ in 0..3 {
        clients.send_first_halves();
        let busy = BusyClient::start(machine);
        restart(machine);
        waits.push(busy.longest_wait());
        clients.send_second_halves();
    }
    let shown: Vec<_> = waits.iter().map(|wait| wait.as_millis().to_string()).collect();
    println!("systemd {}: restart with {count} connections: a client waits {} ms", machine.version(), shown.join(", "));
    assert!(waits.iter().all(|wait| *wait < TEST_TIMEOUT / 3), "{waits:?}");
    // Clients that are gone are noticed.
    drop(clients);
    let no_connections = || machine.property("echoed.service", "StatusText").starts_with("0/");
    wait_until("all are gone", no_connections);
}

fn messages_split_by_a_restart_are_answered(machine: &Machine) {
    start(machine, PATIENT);
    for count in [1, 100, 1000] {
        restart_with_connections(machine, count);
    }
    machine.wait_for_journal("--identifier=echoed --grep='restored 1001 connections from the previous process'");
    expect_no_warnings(machine);
}

/// Of all machines one at a time: they count together for what one user may have in flight, and for what one process, which
/// has all the clients, may have open.
static LARGE_TEST: Mutex<()> = Mutex::new(());

fn nine_thousand_connections_survive_restarts(machine: &Machine) {
    let _alone = LARGE_TEST.lock().unwrap_or_else(PoisonError::into_inner);
    if !ensure_nofile_limit(12_000) {
        return;
    }
    start(machine, PATIENT);
    restart_with_connections(machine, 9000);
    machine.wait_for_journal("--identifier=echoed --grep='restored 9001 connections from the previous process'");
    expect_no_warnings(machine);
}

// --- Replies and deadlines ---------------------------------------------------------------------------------------------

/// A client that reads no reply, and so is owed much.
struct NonReadingClient(Peer);

impl NonReadingClient {
    const MESSAGE: &str = "what is sent again and again";
    const REPLY: &str = "server got:what is sent again and again\t";
    /// More than the daemon answers in one drive. The kernel takes that much from a client that the daemon does not
    /// read from.
    const COUNT: usize = 3000;

    fn connect(machine: &Machine, address: &str) -> Self {
        let mut peer = machine.connect(address);
        peer.exchange("aaaa");
        set_socket_recv_buffer_size(peer.fd(), 8192).expect("SO_RCVBUF can be set");
        Self(peer)
    }

    /// Sends all messages, and the first half of one more.
    fn send(&mut self) {
        self.0.send(format!("{}\t", Self::MESSAGE).repeat(Self::COUNT) + "half a ");
    }

    /// How much of the replies is with the daemon at least, since it is neither in the kernel nor here. (TCP only.)
    fn buffered_reply_bytes(&self) -> usize {
        let waiting = self.0.queued_bytes();
        let sent = Self::COUNT * (Self::MESSAGE.len() + 1);
        let answered = sent.saturating_sub(waiting.to_daemon + waiting.unread) / (Self::MESSAGE.len() + 1);
        (answered * Self::REPLY.len()).saturating_sub(waiting.from_daemon + self.0.readable_bytes())
    }

    /// Reads all replies, and ends the message that was begun.
    fn read_all(mut self) {
        for _ in 0..Self::COUNT {
            self.0.expect(Self::REPLY);
        }
        self.0.send("message\t");
        self.0.expect("server got:half a message\t");
    }
}

fn replies_that_a_client_has_not_read_survive_a_restart(machine: &Machine) {
    start(machine, &format!("{PATIENT}\n[listener.echo]\nsend_buffer = '8KiB'\n"));
    let mut clients = [TCP, UNIX].map(|address| NonReadingClient::connect(machine, address));
    // What it reads first is much, since it comes late to it: more than fits into the sockets when it is answered.
    let suspended = machine.suspend("echoed");
    clients.iter_mut().for_each(NonReadingClient::send);
    drop(suspended);
    wait_until("each has been answered", || clients.iter().all(|client| client.0.readable_bytes() > 0));
    let buffered = clients[0].buffered_reply_bytes();
    // Of 120,000 bytes; the sockets take no more than 64 KiB.
    assert!(buffered >= 48 * 1024, "only {buffered} bytes were not sent");
    restart(machine);
    clients.into_iter().for_each(NonReadingClient::read_all);
    expect_no_warnings(machine);
}

/// Has a restart take some seconds, and more.
fn slow_down_restarts(machine: &Machine, seconds: u32) {
    let slow = format!("[Service]\nExecStartPre=+/bin/sleep {seconds}\n");
    machine.write("/etc/systemd/system/echoed.service.d/60-slow.conf", &slow);
    machine.sh("systemctl daemon-reload");
}

fn a_read_deadline_that_passes_during_a_restart_is_reported_after_it(machine: &Machine) {
    start(machine, "[defaults.deadlines]\nread = '2s'\n");
    let mut peers = [TCP, UNIX].map(|address| machine.connect(address));
    peers.iter_mut().for_each(|peer| peer.exchange("aaaa"));
    slow_down_restarts(machine, 3);
    let begun = now();
    for peer in &mut peers {
        peer.send("first\thalf of the sec");
        peer.expect("server got:first\t");
    }
    restart(machine);
    let back = now();
    for peer in &mut peers {
        peer.expect("server error:message not finished within 2s\t");
        peer.expect_close();
    }
    // Not 2 s after the restart.
    assert!(
        begun.elapsed() >= Duration::from_secs(3) && back.elapsed() < Duration::from_secs(2),
        "{:?}",
        back.elapsed()
    );
    machine.wait_for_journal("--identifier=echoed VERDICT=read-deadline");
    expect_empty_store(machine);
}

fn a_read_deadline_keeps_running_over_a_restart(machine: &Machine) {
    start(machine, "[defaults.deadlines]\nread = '5s'\n");
    let mut peer = machine.connect(TCP);
    peer.exchange("aaaa");
    slow_down_restarts(machine, 3);
    let begun = now();
    peer.send("half of a mess");
    peer.wait_until_read();
    let read = now();
    restart(machine);
    peer.expect("server error:message not finished within 5s\t");
    let (since_sent, since_read) = (begun.elapsed(), read.elapsed());
    // Neither is it counted from the restart, nor does the time for it not count.
    let right = since_sent >= Duration::from_secs(5) && since_read < Duration::from_secs(8);
    assert!(right, "{since_sent:?}, {since_read:?}");
    peer.expect_close();
}
