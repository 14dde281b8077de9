//! Calls of a listener that fail: accept(2), recvmmsg(2). Nothing spins, connections are served meanwhile, and only an
//! error that no later call is spared from ends a listener. strace makes the calls fail.

use std::time::Duration;

use common::packets::{DatagramPeer, PacketPeer};
use common::service_manager::activated_command;
use common::strace::Strace;
use common::{Daemon, Peer};

/// Errors that end a listener.
const FATAL: [&str; 6] = ["EBADF", "ENOTSOCK", "EINVAL", "EFAULT", "ENOSYS", "EOPNOTSUPP"];

/// Errors that end no listener: those of accept(2) and recvmmsg(2), and what a security module may choose.
const TRANSIENT: [&str; 20] = [
    "EPERM",
    "EACCES",
    "EIO",
    "ETIMEDOUT",
    "ECONNABORTED",
    "ECONNREFUSED",
    "ECONNRESET",
    "EINTR",
    "EPROTO",
    "ENOPROTOOPT",
    "ENETDOWN",
    "ENETUNREACH",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "ENONET",
    "ENOTCONN",
    "EMFILE",
    "ENFILE",
    "ENOBUFS",
    "ENOMEM",
];

/// Runs a program whose calls fail as `inject` says, and traces those calls; `None` if nothing can be traced here.
fn trace_failing(inject: &str) -> Option<Strace> {
    let (call, _) = inject.split_once(':').expect("a call and its error");
    Strace::new(call, &[inject.to_owned()])
}

/// Starts a daemon with one worker whose calls fail as `inject` says, and waits until it listens.
fn start_failing(inject: &str, addresses: &[&str]) -> Option<(Daemon, Strace)> {
    let strace = trace_failing(inject)?;
    let mut command = strace.command(env!("CARGO_BIN_EXE_echoed"));
    let arguments: Vec<_> = addresses.iter().flat_map(|address| ["--listen", address]).collect();
    let daemon = Daemon::spawn_with(&mut command, "[service]\nworkers = 1\n", &arguments);
    daemon.wait_for_log_times("listening on", addresses.len());
    Some((daemon, strace))
}

#[test]
fn a_listener_survives_every_error_of_accept_that_may_pass() {
    for error in TRANSIENT {
        let Some((daemon, _strace)) = start_failing(&format!("accept4:error={error}:when=2"), &["127.0.0.1:0"]) else {
            return;
        };
        let mut first = daemon.connect();
        first.exchange("first");
        daemon.connect().exchange(error);
        first.exchange("still served");
        drop(first);
        daemon.stop();
    }
}

#[test]
fn a_listener_of_datagrams_survives_every_error_that_may_pass() {
    for error in TRANSIENT {
        let inject = format!("recvmmsg:error={error}:when=2");
        let Some((daemon, _strace)) = start_failing(&inject, &["udp:127.0.0.1:0"]) else { return };
        let peer = DatagramPeer::to(&daemon.addresses()[0]);
        peer.exchange("first");
        peer.exchange(error);
        daemon.stop();
    }
}

#[test]
fn an_error_that_cannot_pass_ends_the_listener_and_with_the_last_one_the_daemon() {
    for error in FATAL {
        for (call, address) in [("accept4", "DIR/stream"), ("recvmmsg", "unixgram:DIR/datagrams")] {
            let Some((mut daemon, _strace)) = start_failing(&format!("{call}:error={error}"), &[address]) else {
                return;
            };
            let address = &daemon.addresses()[0];
            let _peer = match call {
                "accept4" => Some(Peer::connect(address)),
                _ => {
                    DatagramPeer::to(address).send("a");
                    None
                }
            };
            let line = daemon.wait_for_log("failed to serve echo: ");
            assert!(line.starts_with("error: ") && line.ends_with("; this listener is no longer served"), "{line}");
            assert_eq!(daemon.wait().code(), Some(71), "{call}: {error}");
        }
    }
}

/// Checks that a daemon whose listener fails all the time serves its connections, does not spin, and says it once.
fn check_pauses(daemon: &Daemon, strace: &Strace, served: &mut impl FnMut(&str)) {
    for number in 0..100 {
        served(&format!("meanwhile {number}"));
    }
    check_call_rate(strace, 1);
    served("afterwards");
    assert_eq!(daemon.log().iter().filter(|line| line.contains("; retrying ")).count(), 1, "{:#?}", daemon.log());
}

/// Checks that a call which fails all the time is made again, with pauses: in the end so often in a second.
fn check_call_rate(strace: &Strace, per_second: usize) {
    let calls = || strace.injected_count();
    let (before, start) = (calls(), common::now());
    common::wait_until("it is tried again", || calls() >= before + 3 && start.elapsed() > Duration::from_secs(2));
    // The first ten of them come within half a second.
    let most = 15 + per_second * usize::try_from(start.elapsed().as_secs()).expect("it is small");
    let made = calls() - before;
    assert!(made <= most, "{made} calls in {:?}", start.elapsed());
}

#[test]
fn connections_are_served_without_busy_looping_while_every_accept_fails() {
    for error in ["EPERM", "EACCES", "EIO", "ECONNABORTED", "EINTR"] {
        let inject = format!("accept4:error={error}:when=2+");
        let Some((daemon, strace)) = start_failing(&inject, &["127.0.0.1:0"]) else { return };
        let mut first = daemon.connect();
        first.exchange("first");
        let mut waiting = daemon.connect();
        let line = daemon.wait_for_log("warn: failed to accept on echo: ");
        assert!(line.ends_with("; retrying after pauses of up to 1s"), "{line}");
        check_pauses(&daemon, &strace, &mut |message| first.exchange(message));
        waiting.expect_silence(Duration::from_millis(1));
        drop((first, waiting));
        daemon.stop();
    }
}

#[test]
fn packet_connections_are_served_without_busy_looping_while_every_accept_fails() {
    let inject = "accept4:error=EPERM:when=2+";
    let Some((daemon, strace)) = start_failing(inject, &["seqpacket:DIR/packets"]) else { return };
    let address = &daemon.addresses()[0];
    let first = PacketPeer::connect(address);
    first.exchange("first");
    let _waiting = PacketPeer::connect(address);
    daemon.wait_for_log("warn: failed to accept on echo: Operation not permitted");
    check_pauses(&daemon, &strace, &mut |message| first.exchange(message));
    daemon.stop();
}

#[test]
fn connections_are_served_without_busy_looping_while_no_datagram_can_be_received() {
    let addresses = ["127.0.0.1:0", "udp:127.0.0.1:0"];
    let Some((daemon, strace)) = start_failing("recvmmsg:error=EPERM", &addresses) else { return };
    let mut connected = daemon.connect();
    DatagramPeer::to(&daemon.addresses()[1]).send("a");
    let line = daemon.wait_for_log("warn: failed to receive on echo: Operation not permitted");
    assert!(line.ends_with("; retrying after pauses of up to 1s"), "{line}");
    check_pauses(&daemon, &strace, &mut |message| connected.exchange(message));
    drop(connected);
    daemon.stop();
}

#[test]
fn an_idle_daemon_does_not_busy_loop_while_accept_fails() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let _waiting = Peer::connect(&listener.local_addr().unwrap().to_string());
    let Some(strace) = trace_failing("accept4:error=EPERM") else { return };
    let mut command = activated_command("3<&0", vec![listener.into()], "echo");
    command.env("TEST_WRAPPER", strace.wrapper());
    let daemon = Daemon::spawn_with_stdio(&mut command, "[service]\nidle_exit = \"500ms\"\n", &[]);
    daemon.wait_for_log("warn: failed to accept on echo: Operation not permitted");
    // Twice a second, it looks whether a client waits, and then tries to accept it.
    check_call_rate(&strace, 4);
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.contains("; retrying ")).count(), 1, "{log:#?}");
}

#[test]
fn waiting_clients_are_served_when_accept_works_again() {
    let Some((daemon, _strace)) = start_failing("accept4:error=EPERM:when=2..10", &["127.0.0.1:0"]) else { return };
    daemon.connect().exchange("first");
    daemon.connect().exchange("waiting");
    daemon.wait_for_log("info: accepting on echo again");
    let log = daemon.stop();
    let said = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((said("failed to accept on echo"), said("accepting on echo again")), (1, 1), "{log:#?}");
}

#[test]
fn datagrams_are_answered_when_receiving_works_again() {
    for address in ["udp:127.0.0.1:0", "unixgram:DIR/datagrams"] {
        let Some((daemon, _strace)) = start_failing("recvmmsg:error=EPERM:when=2..10", &[address]) else { return };
        let peer = DatagramPeer::to(&daemon.addresses()[0]);
        peer.exchange("first");
        peer.exchange("waiting");
        daemon.wait_for_log("info: receiving on echo again");
        let log = daemon.stop();
        let said = |text: &str| log.iter().filter(|line| line.contains(text)).count();
        assert_eq!((said("failed to receive on echo"), said("receiving on echo again")), (1, 1), "{log:#?}");
    }
}

#[test]
fn clients_that_wait_for_a_place_are_served_without_busy_looping_while_it_is_unknown_that_they_wait() {
    // The look whether a client waits in the backlog.
    let Some(strace) = trace_failing("ppoll:error=ENOMEM") else { return };
    let mut command = strace.command(env!("CARGO_BIN_EXE_echoed"));
    let limit = "[service]\nworkers = 1\n[limits]\nconnections = 1\n[defaults.deadlines]\nread = '1h'\n";
    let daemon = Daemon::spawn_with(&mut command, limit, &["--listen", "127.0.0.1:0"]);
    daemon.wait_for_log("listening on");
    let mut idle = daemon.connect();
    idle.exchange("first");
    let mut busy = daemon.connect();
    busy.exchange("instead of the first");
    assert_eq!(idle.read_to_end(), b"server error:connection reclaimed, the server is full\t");
    busy.send("in the middle of a mess");
    busy.wait_until_read();
    let (mut waiting, before, start) = (daemon.connect(), strace.injected_count(), common::now());
    waiting.send("later\t");
    waiting.expect_silence(Duration::from_secs(3));
    let (made, elapsed) = (strace.injected_count() - before, start.elapsed());
    let most = 5 + 2 * usize::try_from(elapsed.as_secs()).expect("it is small");
    assert!(before > 0 && made <= most, "{made} looks in {elapsed:?}");
    busy.send("age\t");
    busy.expect("server got:in the middle of a message\t");
    waiting.expect("server got:later\t");
    drop((idle, busy, waiting));
    daemon.stop();
}
