//! Messages that are logged whole, while the journal hangs over a restart: each is written once.

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use common::fake_journald::FakeJournald;
use rustix::process::Signal;

use super::{Peer, connection_outcomes};
use common::service::Service;
use common::service_manager::activated_command;
use common::{Daemon, ServiceManager};

/// How many messages there are: more than the journal's socket takes.
const MESSAGES: usize = 6000;

const CONFIGURATION: &str = "[defaults]\nlog_messages = 'full'\n[defaults.deadlines]\nwrite = 'off'\n";

/// The number that is a message.
fn number(text: &str) -> Option<usize> {
    text.trim_matches('"').parse().ok()
}

/// Those of the lines on stderr that are messages.
fn numbers_on_stderr(log: &[String]) -> impl Iterator<Item = usize> {
    log.iter()
        .filter(|line| line.contains("message on connection "))
        .filter_map(|line| number(line.rsplit(": ").next()?))
}

#[test]
fn each_full_message_is_logged_once_and_in_order_over_a_handover() {
    let Some(journal) = FakeJournald::start() else { return };
    let (manager, listener) = (ServiceManager::start(), TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    let address = listener.local_addr().expect("it has one").to_string();
    let listener_fd = OwnedFd::from(listener.try_clone().expect("it can be duplicated"));
    let mut command = journal.command();
    manager.set_fd_store(&mut command, 8).env("LISTEN_FDNAMES", "echo").stdin(OwnedFd::from(listener));
    let mut daemon = Daemon::spawn_with_stdio(&mut command, CONFIGURATION, &[]);
    manager.expect("READY=1");
    let mut peer = Peer::connect(&address);
    let mut idle = Peer::connect(&address);
    idle.exchange("idle");
    journal.expect("the first message", |entry| entry.text("MESSAGE") == "idle");

    journal.suspend();
    peer.send((0..MESSAGES).map(|number| format!("{number}\t")).collect::<String>());
    // Until the journal's socket is full, which only the missing replies tell.
    while peer.receive_for(Duration::from_millis(300)) > 0 {}
    daemon.signal(Signal::TERM);
    // It does not wait for the journal: what it could not log, the next process logs.
    assert!(daemon.wait().success());
    assert_eq!(manager.stored_descriptors().len(), 1);
    manager.expect_matching("STATUS=", |status| status.contains("wait for the log with their connections"));
    journal.resume();

    let (_, bundle) = manager.stored_descriptors().remove(0);
    let mut command = activated_command("3<&0 4<&1", vec![listener_fd, bundle], "echo:handover");
    manager.set_fd_store(&mut command, 8);
    let daemon = Daemon::spawn_with_stdio(&mut command, CONFIGURATION, &[]);
    peer.expect((0..MESSAGES).map(|number| format!("server got:{number}\t")).collect::<String>());
    idle.exchange("still there");
    let log = daemon.stop();
    assert_eq!(connection_outcomes(&log)[0], 2);

    let mut written: Vec<_> =
        journal.stop_and_collect().iter().filter_map(|entry| number(&entry.text("MESSAGE"))).collect();
    let before = written.len();
    written.extend(numbers_on_stderr(&log));
    assert!(before > 0 && before < MESSAGES, "{before} were taken by the first process");
    assert!(written == (0..MESSAGES).collect::<Vec<_>>(), "each once, in order: {} after {before}", written.len());
}

#[test]
fn each_message_is_one_line_on_stderr_though_its_client_does_not_read_before_the_handover() {
    // All of them have seven digits and a delimiter.
    const LENGTH: usize = 8;
    let configuration = CONFIGURATION.replacen("[defaults]\n", "[defaults]\nsend_buffer = '4KiB'\n", 1);
    let mut service = Service::start(&configuration);
    let mut peer = service.connect();
    let messages: String = (0..200_000).map(|number| format!("{number:07}\t")).collect();
    // Until the daemon is stuck: then a message has come to the log behind replies that the client does not take.
    let mut sent = 0;
    loop {
        let count = peer.send_what_fits(&messages.as_bytes()[sent..]);
        sent += count;
        if count == 0 && peer.queued_bytes().to_daemon > 0 {
            break;
        }
    }
    let mut log = service.restart(&configuration);
    assert_eq!(connection_outcomes(&log), [1, 0, 0]);
    let count = sent.div_ceil(LENGTH);
    let mut sender = peer.stream();
    thread::scope(|scope| {
        scope.spawn(|| {
            let rest = &messages.as_bytes()[sent..count * LENGTH];
            sender.write_all(rest).expect("it can be sent");
        });
        peer.expect((0..count).map(|number| format!("server got:{number:07}\t")).collect::<String>());
    });
    log.extend(service.daemon.stop());
    let written: Vec<_> = numbers_on_stderr(&log).collect();
    let repeated = written.windows(2).find(|pair| pair[0] >= pair[1]);
    assert_eq!((written.len(), repeated), (count, None));
}
