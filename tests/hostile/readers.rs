//! A peer that reads slowly is not cut off, and one that reads nothing is: what counts is what its kernel takes, not how much
//! room there is in ours.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::mptcp;
use common::network::two_machines;
use common::packets::PacketPeer;
use common::service_manager::activated_command;
use common::{self, Daemon, Peer, TEST_TIMEOUT};

/// The write deadline of these tests: the default.
const WRITE: Duration = Duration::from_secs(10);

/// How long each peer reads: long enough for a daemon that asks for room in its own buffer to cut it off.
const READING: Duration = Duration::from_secs(27);

/// The messages that peers send, one after the other. They differ, so that a lost one is noticed.
struct Messages {
    number: u32,
    /// How long a message is, without its delimiter.
    len: usize,
    delimiter: &'static str,
}

impl Messages {
    fn next(&mut self) -> Vec<u8> {
        self.number += 1;
        let number = self.number.to_string();
        format!("{}{number}{}", "x".repeat(self.len.saturating_sub(number.len())), self.delimiter).into_bytes()
    }
}

/// How a peer behaves.
#[derive(Clone, Copy)]
struct Behavior {
    /// Bytes that it reads in a second.
    rate: usize,
    /// The length of its messages, and how long it waits before the next one.
    message: usize,
    pause: Duration,
}

/// Sends as fast as it can, and reads at a rate. Returns when the daemon had cut it off, if it did.
fn read_slowly(socket: &OwnedFd, is_stream: bool, behavior: Behavior) -> Option<Duration> {
    let start = common::now();
    let delimiter = if is_stream { "\t" } else { "" };
    let (mut sent, mut expected) = (
        Messages { number: 0, len: behavior.message, delimiter },
        Messages { number: 0, len: behavior.message, delimiter },
    );
    let (mut unsent, mut unexpected) = (Vec::new(), Vec::new());
    let (mut may_send_at, mut received) = (start, 0_usize);
    loop {
        let elapsed = start.elapsed();
        if elapsed > READING {
            return None;
        }
        while common::now() >= may_send_at {
            if unsent.is_empty() {
                unsent = sent.next();
            }
            match send(socket, &unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => drop(unsent.drain(..count)),
                Err(Errno::AGAIN) => break,
                Err(_) => return Some(elapsed),
            }
            if unsent.is_empty() && !behavior.pause.is_zero() {
                may_send_at = common::now() + behavior.pause;
            }
        }
        // In steps of a tenth of a second.
        let due = behavior.rate * usize::try_from(elapsed.as_millis() / 100).expect("it is small") / 10;
        let mut buffer = vec![0; 64 * 1024];
        while received < due {
            let size = if is_stream { (due - received).min(buffer.len()) } else { buffer.len() };
            match recv(socket, &mut buffer[..size], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Some(elapsed),
                Ok((count, _)) => {
                    received += count;
                    while unexpected.len() < count {
                        unexpected.extend_from_slice(&[b"server got:", &expected.next()[..]].concat());
                    }
                    let shown = |bytes: &[u8]| bytes[..bytes.len().min(200)].escape_ascii().to_string();
                    let (got, wanted) = (&buffer[..count], &unexpected[..count]);
                    assert!(got == wanted, "received {}, expected {}", shown(got), shown(wanted));
                    unexpected.drain(..count);
                }
                Err(Errno::AGAIN) => break,
                Err(_) => return Some(elapsed),
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Fills the way to the daemon and back, and reads nothing. Returns how long it took until the connection broke.
fn read_nothing(socket: &OwnedFd) -> Duration {
    let message = [&[b'x'; 1000][..], b"\t"].concat();
    let mut last_taken = common::now();
    loop {
        match send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => last_taken = common::now(),
            Err(Errno::AGAIN) => {
                let mut broken = [PollFd::new(socket, PollFlags::HUP | PollFlags::ERR)];
                let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                poll(&mut broken, Some(&wait)).expect("it can be polled");
                if broken[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                    return last_taken.elapsed();
                }
            }
            Err(_) => return last_taken.elapsed(),
        }
        assert!(last_taken.elapsed() < 2 * TEST_TIMEOUT, "a peer that reads nothing is not cut off");
    }
}

/// A way to a daemon.
struct Route {
    name: &'static str,
    connect: Box<dyn Fn() -> OwnedFd + Sync>,
    is_stream: bool,
    slow: Vec<Behavior>,
}

const fn reads(rate_kb: usize) -> Behavior {
    Behavior { rate: rate_kb * 1000, message: 1000, pause: Duration::ZERO }
}

/// One whose replies are sent one at a time.
const READS_SMALL_ONES: Behavior = Behavior { rate: 5000, message: 100, pause: Duration::from_millis(1) };

/// The ways to two daemons with these settings, and the rates that are promised there.
fn routes(settings: &str) -> Option<([Daemon; 2], Vec<Route>)> {
    let [ours, theirs] = two_machines()?;
    let listener = ours.tcp_listener("192.0.2.1:0");
    let far = listener.local_addr().expect("it is bound");
    let mut command = activated_command("3<&0", vec![listener.into()], "echo");
    let remote = Daemon::spawn_with_stdio(&mut command, settings, &[]);
    remote.wait_for_log("listening on");
    let addresses = ["127.0.0.1:0", "DIR/stream", "seqpacket:DIR/packets"];
    let local = Daemon::start_with(settings, &addresses.map(|address| ["--listen", address]).concat());
    let [tcp, unix, packets] = local.addresses().try_into().expect("there are three");
    let connect_far = move || {
        // As long as there is a connection to make, there is the network.
        let _network = &ours;
        theirs.connect(far).into()
    };
    let connect_tcp = move || Peer::connect(&tcp).stream().into();
    let connect_unix = move || Peer::connect(&unix).stream().into();
    let connect_packets =
        move || PacketPeer::connect(&packets).fd().try_clone_to_owned().expect("it can be duplicated");
    let slow = || vec![reads(20), reads(200)];
    let routes = vec![
        Route {
            name: "veth",
            connect: Box::new(connect_far),
            is_stream: true,
            slow: [vec![reads(5)], slow()].concat(),
        },
        Route { name: "loopback", connect: Box::new(connect_tcp), is_stream: true, slow: slow() },
        Route {
            name: "unix",
            connect: Box::new(connect_unix),
            is_stream: true,
            slow: [slow(), vec![READS_SMALL_ONES]].concat(),
        },
        Route {
            name: "seqpacket",
            connect: Box::new(connect_packets),
            is_stream: false,
            slow: [slow(), vec![READS_SMALL_ONES]].concat(),
        },
    ];
    Some(([remote, local], routes))
}

fn check_readers(settings: &str) {
    // A lost packet may take longer than the read deadline to come again: that is not the subject here.
    let settings = format!("[defaults.deadlines]\nread = '1min'\n{settings}");
    let Some((daemons, routes)) = routes(&settings) else { return };
    thread::scope(|scope| {
        for Route { name, connect, is_stream, slow } in &routes {
            for &behavior in slow {
                scope.spawn(move || {
                    let socket = connect();
                    // As it is before an application has read much: the kernel would make it larger. (The one that reads
                    // nothing would not take acknowledgments either, once such a buffer is full.)
                    set_socket_recv_buffer_size(&socket, 64 * 1024).expect("it can be set");
                    let cut_off = read_slowly(&socket, *is_stream, behavior);
                    assert_eq!(cut_off, None, "{name}: {} B/s", behavior.rate);
                });
            }
            scope.spawn(move || {
                let cut_off = read_nothing(&connect());
                let most = WRITE + WRITE / 8 + Duration::from_secs(5);
                // The daemon reads ahead twice at most, in the first seconds, so that its kernel takes more.
                let least = WRITE - Duration::from_secs(3);
                assert!(cut_off > least && cut_off < most, "{name}: {cut_off:?}");
            });
        }
    });
    for (daemon, expected) in daemons.into_iter().zip([1, 3]) {
        let log = daemon.stop();
        assert_eq!(log.iter().filter(|line| line.contains("write-deadline")).count(), expected, "{log:#?}");
    }
}

#[test]
fn a_peer_that_reads_slowly_is_not_cut_off_and_one_that_reads_nothing_is() {
    check_readers("");
}

#[test]
fn the_same_holds_when_the_buffers_of_the_kernel_are_large() {
    check_readers("[defaults]\nsend_buffer = 'auto'\nreceive_buffer = 'auto'\n");
}

/// Sends small packets as fast as it can, and reads at this rate. Returns the longest time for which nothing came though it
/// was due.
fn exchange_small_packets(address: &str, rate: usize) -> Result<Duration, Errno> {
    let peer = Peer::connect(address);
    let start = common::now();
    let message = [&[b'x'; 99][..], b"\t"].concat();
    let (mut unsent, mut received, mut last, mut longest) = (&message[..], 0, start, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(15) {
        for _ in 0..20 {
            match send(peer.fd(), unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) if count < unsent.len() => unsent = &unsent[count..],
                Ok(_) => unsent = &message,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        let due = rate * usize::try_from(start.elapsed().as_millis()).expect("it is small") / 1000;
        while received < due {
            match recv(peer.fd(), &mut [0; 2000][..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(Errno::PIPE),
                Ok((count, _)) => received += count,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
            longest = longest.max(last.elapsed());
            last = common::now();
        }
        if received >= due {
            // Nothing is due.
            last = common::now();
        }
        thread::sleep(Duration::from_millis(3));
    }
    Ok(longest.max(last.elapsed()))
}

#[test]
fn a_client_that_reads_goes_on_though_its_packets_fill_the_receive_buffer() {
    // The kernel would make it larger.
    let daemon = Daemon::start_with("[defaults]\nreceive_buffer = '64KiB'\n", &["--listen", "127.0.0.1:0"]);
    let address = &daemon.addresses()[0];
    let waits: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..40).map(|_| scope.spawn(|| exchange_small_packets(address, 100_000))).collect();
        clients.into_iter().map(|client| client.join().expect("it did not panic")).collect()
    });
    assert!(waits.iter().all(|longest| longest.is_ok_and(|longest| longest < Duration::from_secs(5))), "{waits:?}");
    daemon.stop();
}

#[test]
fn a_peer_is_not_cut_off_if_it_takes_bytes_by_another_way_than_the_first() {
    let Some(machines) = two_machines() else { return };
    let Some((daemon, client)) = mptcp::connect_without_first_subflow(&machines) else { return };
    set_socket_recv_buffer_size(&client, 64 * 1024).expect("it can be set");
    assert_eq!(read_slowly(&client, true, reads(8)), None);
    daemon.stop();
}

#[test]
fn a_peer_of_multipath_tcp_that_reads_nothing_is_cut_off() {
    let Some((daemon, client)) = mptcp::connect("[defaults.deadlines]\nread = '1min'\n") else { return };
    let cut_off = read_nothing(&client);
    // The kernel's probes of a closed window are not progress.
    assert!(cut_off < WRITE + WRITE / 8 + Duration::from_secs(5), "{cut_off:?}");
    daemon.stop();
}
