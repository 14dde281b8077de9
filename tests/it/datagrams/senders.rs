//! The daemon sends to the sender of a datagram only: a sender on a Unix socket names its own address.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, sendmsg_addr};
use rustix::process::{Gid, Signal, Uid, getpid, getuid};

use super::{datagram_peer, start};
use common::packets::{count_dropped, unix_address};
use common::{Daemon, TEST_TIMEOUT, program_or_skip, skip_test, wait_until};

/// Binds a socket to its second argument, and sends its third to the first from there.
const SENDER: &str = r"
import socket, sys
listener, own, message = sys.argv[1:]
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.bind(own.replace('@', '\0'))
sender.sendto(message.encode(), listener)
";

/// What has systemd end a service.
const FORGED: &str = "x\nWATCHDOG=trigger";

const LISTENER: &str = "unixgram:DIR/socket";

/// A command that sends [`FORGED`] to the daemon, from a socket with that name.
fn sender(daemon: &Daemon, own: &str) -> Option<Command> {
    let mut command = Command::new(program_or_skip("python3")?);
    command.args(["-c", SENDER]).arg(daemon.directory().join("socket")).args([own, FORGED]);
    Some(command)
}

/// The same in namespaces of its own, after a command there.
fn sender_in(namespaces: &[&str], first: &str, daemon: &Daemon, own: &str) -> Option<Command> {
    let sender = sender(daemon, own)?;
    let mut command = Command::new(program_or_skip("unshare")?);
    command.args(namespaces).args(["sh", "-euc"]).arg(format!("{first}\nexec \"$0\" \"$@\""));
    command.arg(sender.get_program()).args(sender.get_args());
    Some(command)
}

/// Returns the options of unshare(1) for a namespace, if it can be had here.
fn namespace(option: &'static str) -> Option<Vec<&'static str>> {
    let options = if getuid().is_root() { vec![option] } else { vec!["--map-current-user", option] };
    let works = Command::new("unshare").args(&options).arg("true").output().is_ok_and(|tried| tried.status.success());
    if !works {
        skip_test(&format!("unshare {} does not work here", options.join(" ")));
    }
    works.then_some(options)
}

/// Suspends the daemon: all of its threads, when this returns.
fn suspend(daemon: &Daemon) {
    daemon.signal(Signal::STOP);
    wait_until("it is suspended", || {
        let mut tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
        tasks.all(|task| {
            let stat = fs::read_to_string(task.expect("it can be listed").path().join("stat"));
            stat.is_ok_and(|stat| stat.contains(") T "))
        })
    });
}

fn run(command: &mut Command) {
    let output = command.output().expect("it can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A socket that must get nothing, although all users may send to it.
fn victim(path: &Path) -> UnixDatagram {
    fs::create_dir_all(path.parent().expect("it is in a directory")).expect("it can be made");
    let victim = UnixDatagram::bind(path).expect("it can be bound");
    fs::set_permissions(path, Permissions::from_mode(0o777)).expect("it is ours");
    victim.set_nonblocking(true).expect("it can be set");
    victim
}

/// Checks that one datagram was dropped, as unsafe, and that the victim got none.
fn expect_unsafe(daemon: Daemon, victim: &UnixDatagram) {
    let expect_nothing = || {
        let received = victim.recv(&mut [0; 100]).map_err(|error| error.kind());
        assert_eq!(received, Err(ErrorKind::WouldBlock), "the victim got a reply");
    };
    datagram_peer(&daemon).exchange("harmless");
    expect_nothing();
    // A path that the kernel has not cached may take longer.
    let line = daemon.wait_for_log("1 datagram dropped on echo: unsafe-address; from ");
    assert!(line.contains(" at \""), "{line}");
    let log = daemon.stop();
    assert_eq!(count_dropped(&log, "unsafe-address"), 1, "{log:#?}");
    expect_nothing();
}

/// A client at a path, which sends and is answered.
pub(crate) fn expect_answered(daemon: &Daemon, own: &Path) {
    let client = UnixDatagram::bind(own).expect("it can be bound");
    client.set_read_timeout(Some(TEST_TIMEOUT)).expect("it can be set");
    client.send_to(b"a", daemon.directory().join("socket")).expect("the daemon listens there");
    let mut reply = [0; 100];
    let count = client.recv(&mut reply).expect("a reply comes");
    assert_eq!(&reply[..count], b"server got:a", "{own:?}");
}

#[test]
fn a_sender_at_an_absolute_path_of_its_own_is_answered() {
    let daemon = start("", LISTENER);
    let directory = daemon.directory();
    expect_answered(&daemon, &directory.join("client"));
    // Where the path leads over a link, or the kernel does not keep it in its cache (sysfs never does).
    symlink(directory, directory.join("link")).unwrap();
    expect_answered(&daemon, &directory.join("link/linked"));
    let uncached = format!("/sys/kernel/../..{}/uncached", directory.display());
    if Path::new("/sys/kernel").is_dir() {
        for number in 0..20 {
            expect_answered(&daemon, Path::new(&format!("{uncached}{number}")));
        }
    }
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("dropped")), "{log:#?}");
}

#[test]
fn a_sender_at_a_relative_path_gets_no_reply_and_neither_does_another_socket_at_that_path() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let victim = victim(&ours.path().join("run/systemd/notify"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    let daemon = Daemon::spawn_with(command.current_dir(ours.path()), "", &["--listen", LISTENER]);
    daemon.wait_for_log("listening on");
    fs::create_dir_all(theirs.path().join("run/systemd")).unwrap();
    let Some(mut sender) = sender(&daemon, "run/systemd/notify") else { return };
    run(sender.current_dir(theirs.path()));
    expect_unsafe(daemon, &victim);
}

#[test]
fn a_path_replaced_by_a_link_leads_to_no_other_socket() {
    let daemon = start("", LISTENER);
    let directory = daemon.directory().to_owned();
    let (victim, own) = (victim(&directory.join("victim")), directory.join("own"));
    let sender = UnixDatagram::bind(&own).unwrap();
    // It finds the link when it goes on.
    suspend(&daemon);
    sender.send_to(FORGED.as_bytes(), directory.join("socket")).unwrap();
    fs::remove_file(&own).unwrap();
    symlink(directory.join("victim"), &own).unwrap();
    daemon.signal(Signal::CONT);
    expect_unsafe(daemon, &victim);
}

#[test]
fn a_path_that_leads_to_no_socket_or_nowhere_gets_no_reply() {
    for replacement in [None, Some("file")] {
        let daemon = start("", LISTENER);
        let directory = daemon.directory().to_owned();
        let (victim, own) = (victim(&directory.join("victim")), directory.join("own"));
        let sender = UnixDatagram::bind(&own).unwrap();
        suspend(&daemon);
        sender.send_to(FORGED.as_bytes(), directory.join("socket")).unwrap();
        fs::remove_file(&own).unwrap();
        if let Some(content) = replacement {
            fs::write(&own, content).unwrap();
        }
        daemon.signal(Signal::CONT);
        expect_unsafe(daemon, &victim);
    }
}

/// Sends in the name of a user from the socket, which only root can do.
pub(crate) fn send_as(sender: &UnixDatagram, uid: u32, daemon: &Daemon, message: &[u8]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let credentials = UCred { pid: getpid(), uid: Uid::from_raw(uid), gid: Gid::ROOT };
    assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
    let (to, message) = (unix_address(&daemon.addresses()[0]), [IoSlice::new(message)]);
    sendmsg_addr(sender, &to, &message, &mut control, SendFlags::empty()).expect("it can be sent");
}

#[test]
fn a_reply_goes_only_to_a_socket_of_the_user_who_sent_the_datagram() {
    if !getuid().is_root() {
        return skip_test("only root can make sockets of other users");
    }
    for (sent_by, owner, answered) in [
        (1000, 1000, true),
        (1000, 1001, false),
        (1000, 0, false),
        (0, 1000, false),
        // The UID that the kernel shows for users without a UID in this user namespace.
        (65534, 65534, false),
    ] {
        let daemon = start("", LISTENER);
        // All users may enter the directory, and its owner does not matter.
        let own = daemon.directory().join("own");
        let socket = victim(&own);
        chown(&own, Some(owner), None).unwrap();
        send_as(&socket, sent_by, &daemon, FORGED.as_bytes());
        if answered {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
            assert_eq!(socket.recv(&mut [0; 100]).unwrap(), "server got:".len() + FORGED.len());
            daemon.stop();
        } else {
            expect_unsafe(daemon, &socket);
        }
    }
}

#[test]
fn a_path_whose_directory_is_replaced_by_a_link_leads_to_no_socket_of_another_user() {
    if !getuid().is_root() {
        return skip_test("only root can make sockets of other users");
    }
    let daemon = start("", LISTENER);
    let directory = daemon.directory().to_owned();
    let victim = victim(&directory.join("theirs/notify"));
    fs::create_dir(directory.join("own")).unwrap();
    let sender = UnixDatagram::bind(directory.join("own/notify")).unwrap();
    chown(directory.join("own/notify"), Some(1000), None).unwrap();
    suspend(&daemon);
    send_as(&sender, 1000, &daemon, FORGED.as_bytes());
    fs::rename(directory.join("own"), directory.join("moved")).unwrap();
    symlink("theirs", directory.join("own")).unwrap();
    daemon.signal(Signal::CONT);
    expect_unsafe(daemon, &victim);
}

#[test]
fn a_path_in_another_mount_namespace_leads_to_no_socket_here() {
    let Some(mount) = namespace("--mount") else { return };
    // Nothing is there here; or a socket of another user is.
    for taken in [false, true] {
        if taken && !getuid().is_root() {
            return skip_test("only root can make sockets of other users");
        }
        let daemon = start("", LISTENER);
        let hidden = daemon.directory().join("hidden");
        let victim = victim(&hidden.join(if taken { "notify" } else { "other" }));
        if taken {
            chown(hidden.join("notify"), Some(1000), None).unwrap();
        }
        let own = hidden.join("notify").display().to_string();
        let first = format!("mount -t tmpfs tmpfs {}", hidden.display());
        let Some(mut sender) = sender_in(&mount, &first, &daemon, &own) else { return };
        run(&mut sender);
        expect_unsafe(daemon, &victim);
    }
}

#[test]
fn users_that_the_daemon_cannot_tell_apart_own_no_socket() {
    if !getuid().is_root() {
        return skip_test("only root can make sockets of other users");
    }
    let Some(unshare) = program_or_skip("unshare") else { return };
    let mut command = Command::new(unshare);
    command.args(["--user", "--map-root-user", env!("CARGO_BIN_EXE_echoed")]);
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", LISTENER]);
    daemon.wait_for_log("listening on");
    // Root has a number there, and is answered.
    expect_answered(&daemon, &daemon.directory().join("client"));
    // Others have the same one, all together.
    let own = daemon.directory().join("own");
    let socket = victim(&own);
    chown(&own, Some(1000), None).unwrap();
    send_as(&socket, 1001, &daemon, FORGED.as_bytes());
    expect_unsafe(daemon, &socket);
}

#[test]
fn the_socket_of_the_service_manager_gets_no_reply_whoever_seems_to_be_bound_there() {
    let name = format!("echoed-test-manager-{}", std::process::id());
    let manager = tempfile::tempdir().unwrap();
    let path = manager.path().join("notify");
    for (notify_socket, option) in [(path.display().to_string(), "--mount"), (format!("@{name}"), "--net")] {
        let Some(options) = namespace(option) else { return };
        let (victim, first) = if option == "--mount" {
            (victim(&path), format!("mount -t tmpfs tmpfs {}", manager.path().display()))
        } else {
            let victim = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
            victim.set_nonblocking(true).unwrap();
            (victim, String::new())
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
        command.env("NOTIFY_SOCKET", &notify_socket);
        let daemon = Daemon::spawn_with(&mut command, "", &["--listen", LISTENER]);
        daemon.wait_for_log("listening on");
        let Some(mut sender) = sender_in(&options, &first, &daemon, &notify_socket) else { return };
        run(&mut sender);
        datagram_peer(&daemon).exchange("harmless");
        let log = daemon.stop();
        // What it says itself does arrive.
        let mut buffer = [0; 1000];
        let mut received = Vec::new();
        while let Ok(count) = victim.recv(&mut buffer) {
            received.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        assert!(received.iter().any(|one| one.contains("READY=1")), "{received:?}");
        assert!(!received.iter().any(|one| one.contains("trigger")), "{received:?}");
        assert_eq!(count_dropped(&log, "unsafe-address"), 1, "{log:#?}");
    }
}

#[test]
fn a_reply_of_bytes_that_the_sender_chose_goes_to_no_abstract_name_of_another_network_namespace() {
    let Some(options) = namespace("--net") else { return };
    let name = format!("echoed-test-victim-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    for (configuration, prefix) in
        [("prefix = ''\n", ""), ("framing = 'raw'\n", ""), ("reply = 'fixed'\nfixed_reply = 'hello'\n", "hello")]
    {
        let victim = UnixDatagram::bind_addr(&address).unwrap();
        victim.set_nonblocking(true).unwrap();
        let daemon = start(&format!("[defaults]\n{configuration}"), LISTENER);
        let Some(mut sender) = sender_in(&options, "", &daemon, &format!("@{name}")) else { return };
        run(&mut sender);
        // It is served after that one.
        let client = UnixDatagram::bind(daemon.directory().join("client")).unwrap();
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        client.send_to(b"a", daemon.directory().join("socket")).unwrap();
        client.recv(&mut [0; 100]).expect("a path is answered");
        let log = daemon.stop();
        let mut reply = [0; 100];
        let received = victim.recv(&mut reply).map(|count| String::from_utf8_lossy(&reply[..count]).into_owned());
        if prefix.is_empty() {
            assert_eq!(received.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock), "{configuration}");
            assert_eq!(count_dropped(&log, "unsafe-address"), 1, "{log:#?}");
        } else {
            // It cannot be told from a reply to a client here, and it says nothing but what the daemon says.
            assert_eq!(received.unwrap(), prefix);
        }
    }
}

#[test]
fn a_listener_with_an_abstract_name_echoes_to_abstract_names() {
    let name = format!("echoed-test-echo-{}", std::process::id());
    let daemon = start("[defaults]\nframing = 'raw'\n", &format!("unixgram:@{name}"));
    let peer = datagram_peer(&daemon);
    peer.send("a");
    peer.expect("a");
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("dropped")), "{log:#?}");
}
