//! A client whose socket lies on a file system that never answers hurts no other client.

use std::path::Path;

use rustix::process::Signal;

use super::datagram_peer;
use super::senders::{expect_answered, send_as};
use super::silent_fs::{SilentFs, bind};
use common::packets::count_dropped;
use common::{Daemon, Peer, skip_test};

const LISTENERS: [&str; 4] = ["--listen", "unixgram:DIR/socket", "--listen", "127.0.0.1:0"];

/// The path of a file that the kernel does not keep in its cache as a whole: sysfs is on the way, which is never kept.
fn uncached(path: &Path) -> std::path::PathBuf {
    Path::new("/sys/kernel/../..").join(path.strip_prefix("/").expect("it is absolute"))
}

#[test]
fn a_socket_on_a_file_system_that_never_answers_blocks_no_worker() {
    let daemon = Daemon::start_with("[service]\nworkers = 1\n", &LISTENERS);
    // It ends before the daemon does, so that nothing waits for it then.
    let Some(file_system) = SilentFs::mount(0) else { return };
    let (client, to) = (bind(&file_system.path("client")), daemon.directory().join("socket"));
    client.send_to(b"a", &to).unwrap();
    let mut reply = [0; 100];
    let count = client.recv(&mut reply).expect("a reply comes while the file system answers");
    assert_eq!(&reply[..count], b"server got:a");

    file_system.fall_silent();
    client.send_to(b"b", &to).unwrap();
    file_system.wait_until_asked(1);
    for _ in 0..10 {
        Peer::connect(&daemon.addresses()[1]).exchange("c");
        datagram_peer(&daemon).exchange("c");
    }
    drop(file_system);
    daemon.wait_for_log("1 datagram dropped on echo: ");
    daemon.stop();
}

#[test]
fn a_user_whose_file_system_never_answers_delays_no_other_user_and_a_stop_only_briefly() {
    if !Path::new("/sys/kernel").is_dir() {
        return skip_test("there is no sysfs");
    }
    let configuration = "[limits]\ndatagrams_per_source = 'off'\n[defaults]\nmax_message = '128KiB'\n";
    let mut daemon = Daemon::start_with(configuration, &LISTENERS);
    let Some(file_system) = SilentFs::mount(1000) else { return };
    let silent = bind(&uncached(&file_system.path("client")));
    file_system.fall_silent();
    send_as(&silent, 1000, &daemon, b"a");
    file_system.wait_until_asked(1);
    let expect_other_answered = |name: &str| {
        let directory = daemon.directory();
        expect_answered(&daemon, &directory.join(name));
        expect_answered(&daemon, &uncached(&directory.join(format!("uncached-{name}"))));
    };
    expect_other_answered("first");
    // More than may wait of one user.
    for _ in 0..40 {
        send_as(&silent, 1000, &daemon, &[b'x'; 60_000]);
    }
    daemon.wait_for_log("1 datagram dropped on echo: no-room; from uid 1000 ");
    expect_other_answered("second");

    // Those that wait are counted in the end, and the daemon does not wait for the file system.
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopped: ");
    drop(file_system);
    daemon.wait();
    let log = daemon.log();
    assert_eq!(count_dropped(&log, "no-room"), 41, "{log:#?}");
    assert_eq!(log.iter().filter(|line| line.contains(" dropped on echo: ") && !line.contains("no-room")).count(), 0);
    assert!(log.iter().any(|line| line.contains("; 45 messages, 0 connections in all")), "{log:#?}");
}

#[test]
fn replies_to_a_path_come_in_the_order_of_their_datagrams() {
    let daemon = Daemon::start_with("[limits]\ndatagrams_per_source = 'off'\n", &LISTENERS);
    let client = bind(&daemon.directory().join("client"));
    for round in 0..100 {
        let numbers = (0..5).map(|number| format!("{}", 5 * round + number));
        for number in numbers.clone() {
            client.send_to(number.as_bytes(), daemon.directory().join("socket")).unwrap();
        }
        for number in numbers {
            let mut reply = [0; 100];
            let count = client.recv(&mut reply).expect("a reply comes");
            assert_eq!(String::from_utf8_lossy(&reply[..count]), format!("server got:{number}"));
        }
    }
    daemon.stop();
}
