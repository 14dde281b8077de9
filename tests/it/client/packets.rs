//! Packets: one is one message, one is its reply. The tests play the server at all three kinds of sockets.

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixDatagram};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendFlags, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect, listen, recvmsg, send, sendto, socket_with,
};

use common::{TEST_TIMEOUT, now, skip_test};

use super::{command, echoctl, echoctl_with, finish};

/// A server that receives a number of packets, and answers each with the packets that `answer` returns.
struct Server {
    address: String,
    thread: JoinHandle<Vec<Vec<u8>>>,
    _directory: Option<tempfile::TempDir>,
}

impl Server {
    /// Of any of the kinds: `udp`, `unixgram`, `seqpacket`.
    fn start(kind: &str, packets: usize, answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        if kind == "udp" {
            return Self::udp(UdpSocket::bind("127.0.0.1:0").expect("there is a free port"), packets, answer);
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("echo.sock");
        let socket = if kind == "unixgram" {
            UnixDatagram::bind(&path).expect("the path is free").into()
        } else {
            let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("there are sockets");
            bind(&listener, &SocketAddrUnix::new(&path).expect("it is short enough")).expect("the path is free");
            listen(&listener, 1).expect("it is bound");
            listener
        };
        let address = format!("{kind}:{}", path.display());
        Self { _directory: Some(directory), ..Self::spawn(socket, address, packets, answer) }
    }

    fn udp(socket: UdpSocket, packets: usize, answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let address = format!("udp:{}", socket.local_addr().expect("it is bound"));
        Self::spawn(socket.into(), address, packets, answer)
    }

    fn spawn(
        socket: OwnedFd,
        address: String,
        packets: usize,
        mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Self {
        let is_connection = address.starts_with("seqpacket");
        let thread = thread::spawn(move || {
            let socket = if is_connection {
                accept_with(&socket, SocketFlags::CLOEXEC).expect("a client connects")
            } else {
                socket
            };
            let timeout = rustix::net::sockopt::Timeout::Recv;
            rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(TEST_TIMEOUT)).expect("it can be set");
            let mut received = Vec::new();
            while received.len() < packets {
                let (packet, from) = receive(&socket);
                for reply in answer(&packet) {
                    reply_to(&socket, &reply, from.as_ref());
                }
                received.push(packet);
            }
            received
        });
        Self { address, thread, _directory: None }
    }

    /// Waits for its end, and checks what it received.
    #[track_caller]
    fn expect_received(self, expected: &[&str]) {
        let received = self.thread.join().expect("the server is content");
        let received: Vec<_> = received.iter().map(|packet| packet.escape_ascii().to_string()).collect();
        assert_eq!(received, expected, "{}", self.address);
    }
}

fn receive(socket: &OwnedFd) -> (Vec<u8>, Option<SocketAddrAny>) {
    let mut buffer = vec![0; 300_000];
    let mut nothing = RecvAncillaryBuffer::default();
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut nothing, RecvFlags::empty());
    let received = received.expect("a packet comes");
    (buffer[..received.bytes].to_vec(), received.address)
}

fn reply_to(socket: impl AsFd, reply: &[u8], to: Option<&SocketAddrAny>) {
    // A client that has seen enough may close its socket.
    let _ = match to {
        Some(to) => sendto(socket, reply, SendFlags::NOSIGNAL, to),
        None => send(socket, reply, SendFlags::NOSIGNAL),
    };
}

/// The right answer.
fn echo(packet: &[u8]) -> Vec<Vec<u8>> {
    vec![[b"server got:", packet].concat()]
}

const KINDS: [&str; 3] = ["udp", "unixgram", "seqpacket"];

#[test]
fn every_message_and_every_reply_is_one_packet() {
    for kind in KINDS {
        let server = Server::start(kind, 4, echo);
        // Neither a tab nor a line feed means anything in a packet.
        let output = echoctl(&["send", &server.address, "aaaa", "", "a\tb\n", "it's"]);
        output.check(0, "server got:aaaa\nserver got:\nserver got:a\tb\n\nserver got:it's\n", "");
        server.expect_received(&["aaaa", "", "a\\tb\\n", "it\\'s"]);
    }
}

#[test]
fn client_connects_to_packet_sockets_by_abstract_name() {
    let name = format!("echoctl-packets-{}", std::process::id());
    let address = unix::SocketAddr::from_abstract_name(&name).unwrap();
    let datagrams = UnixDatagram::bind_addr(&address).unwrap();
    let server = Server::spawn(datagrams.into(), format!("unixgram:@{name}"), 1, echo);
    echoctl(&["send", &server.address, "aaaa"]).check(0, "server got:aaaa\n", "");
    server.expect_received(&["aaaa"]);
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
    listen(&listener, 1).unwrap();
    let server = Server::spawn(listener, format!("seqpacket:@{name}"), 1, echo);
    echoctl(&["send", &server.address, "aaaa"]).check(0, "server got:aaaa\n", "");
    server.expect_received(&["aaaa"]);
}

#[test]
fn datagram_client_binds_a_name_so_that_it_can_be_answered() {
    let (name, client_name) = mpsc::channel();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    let thread = thread::spawn(move || {
        let mut buffer = [0; 100];
        let (count, from) = socket.recv_from(&mut buffer).unwrap();
        name.send(from.as_abstract_name().map(<[u8]>::to_vec)).unwrap();
        socket.send_to_addr(&[b"server got:", &buffer[..count]].concat(), &from).unwrap();
    });
    echoctl(&["send", &format!("unixgram:{}", path.display()), "a"]).check(0, "server got:a\n", "");
    assert!(client_name.recv().unwrap().is_some_and(|name| !name.is_empty()));
    thread.join().unwrap();
}

#[test]
fn client_sends_datagrams_over_ipv6_if_the_machine_has_it() {
    let Ok(socket) = UdpSocket::bind("[::1]:0") else { return skip_test("this machine has no ::1") };
    let server = Server::udp(socket, 1, echo);
    echoctl(&["send", &server.address, "aaaa"]).check(0, "server got:aaaa\n", "");
    server.expect_received(&["aaaa"]);
}

#[test]
fn datagrams_go_to_the_address_of_the_host_where_a_server_answers() {
    // If localhost has two addresses, the one without a listener may come first.
    let server = Server::start("udp", 2, echo);
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    echoctl(&["send", &format!("udp:localhost:{port}"), "a", "b"]).check(0, "server got:a\nserver got:b\n", "");
    server.expect_received(&["a", "b"]);
}

#[test]
fn each_message_is_sent_after_the_reply_to_the_previous_one() {
    for kind in KINDS {
        let server = Server::start(kind, 1000, echo);
        let lines: String = (0..1000).map(|number| format!("{number}\n")).collect();
        let replies: String = (0..1000).map(|number| format!("server got:{number}\n")).collect();
        echoctl_with(&["send", &server.address], lines.as_bytes()).check(0, &replies, "");
        // What comes a second time answers nothing.
        let server = Server::start(kind, 1, |packet| [echo(packet), echo(packet)].concat());
        let mut child = command(&["send", &server.address]).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, b"a\n").unwrap();
        server.expect_received(&["a"]);
        finish(child, Vec::new()).check(1, "server got:a\n", "got \"server got:a\", which no message had asked for\n");
    }
}

#[test]
fn wrong_packet_is_shown_with_the_expected_one_and_a_server_error_as_text() {
    for kind in KINDS {
        let server = Server::start(kind, 1, |_| vec![b"server got:b".to_vec()]);
        let error = r#"reply 1 is wrong: expected "server got:a", got "server got:b""#;
        echoctl(&["send", &server.address, "a"]).check(1, "", error);
        let server = Server::start(kind, 1, |_| vec![b"server error:message exceeds 1 bytes".to_vec()]);
        let error = format!("echoctl: {}: the server says: message exceeds 1 bytes\n", server.address);
        echoctl(&["send", &server.address, "aa"]).check(1, "", &error);
        // Cut off, it is wrong, too.
        let server = Server::start(kind, 1, |packet| vec![echo(packet)[0][..13].to_vec()]);
        echoctl(&["send", &server.address, "aaaa"]).check(1, "", "reply 1 is wrong: ");
    }
}

#[test]
fn a_packet_that_is_not_answered_is_late() {
    for kind in KINDS {
        // It waits for a third one.
        let server = Server::start(kind, 3, |packet| if packet == b"a" { echo(packet) } else { Vec::new() });
        let start = now();
        let output = echoctl(&["send", "--timeout", "200ms", &server.address, "a", "b"]);
        output.check(1, "server got:a\n", "no reply to message 2, \"b\", within 200ms (--timeout)\n");
        assert!(start.elapsed() >= Duration::from_millis(200));
    }
}

#[test]
fn the_end_of_a_connection_is_not_an_empty_packet() {
    let server = Server::start("seqpacket", 2, |_| vec![Vec::new()]);
    echoctl(&["send", "--prefix", "", &server.address, "", ""]).check(0, "\n\n", "");
    server.expect_received(&["", ""]);
    let server = Server::start("seqpacket", 1, |_| Vec::new());
    let error = "the server ended the connection, 1 message is unanswered\n";
    echoctl(&["send", "--prefix", "", &server.address, ""]).check(1, "", error);
    for kind in ["udp", "unixgram"] {
        let server = Server::start(kind, 1, |_| vec![Vec::new()]);
        echoctl(&["send", "--prefix", "", &server.address, ""]).check(0, "\n", "");
        server.expect_received(&[""]);
    }
}

#[test]
fn connecting_fails_if_no_server_listens() {
    let hint = "does a server listen there?";
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = format!("echoctl: cannot connect to udp:{address}: Connection refused; {hint}\n");
    for options in [&["--count=1"][..], &["--raw"], &["--no-reply", "--count=2", "--interval=100ms"]] {
        echoctl(&[&["send"], options, &[&*format!("udp:{address}"), "a"]].concat()).check(2, "", &error);
    }
    let output = echoctl(&["send", &format!("udp:localhost:{}", address.port()), "a"]);
    output.check(2, "", &format!("echoctl: cannot connect to udp:localhost:{}: Connection refused; ", address.port()));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let bound = UnixDatagram::bind(&path).unwrap();
    for kind in ["unix", "seqpacket"] {
        let address = format!("{kind}:{}", path.display());
        let error = "Protocol wrong type for socket; it is of another kind: unix:, seqpacket: or unixgram:\n";
        echoctl(&["send", &address, "a"]).check(2, "", &format!("echoctl: cannot connect to {address}: {error}"));
    }
    drop(bound);
    for kind in ["unixgram", "seqpacket"] {
        let address = format!("{kind}:{}", path.display());
        let error = format!("echoctl: cannot connect to {address}: Connection refused; {hint}\n");
        echoctl(&["send", &address, "a"]).check(2, "", &error);
        let address = format!("{kind}:{}/nothing", directory.path().display());
        echoctl(&["send", &address, "a"]).check(2, "", &format!("{address}: No such file or directory; {hint}\n"));
    }
}

#[test]
fn connecting_to_a_packet_socket_ends_after_the_connect_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let address = SocketAddrUnix::new(&path).unwrap();
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let waiting = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&waiting, &address).unwrap();
    let address = format!("seqpacket:{}", path.display());
    let output = echoctl(&["send", "--connect-timeout", "300ms", &address, "a"]);
    output.check(2, "", &format!("cannot connect to {address}: timed out after 300ms (--connect-timeout); "));

    let child = command(&["send", "--connect-timeout", "30s", &address, "a"]).spawn().unwrap();
    drop(accept_with(&listener, SocketFlags::CLOEXEC).unwrap());
    let server = Server::spawn(listener, address, 1, echo);
    finish(child, Vec::new()).check(0, "server got:a\n", "");
    server.expect_received(&["a"]);
}

#[test]
fn a_message_that_does_not_fit_into_a_packet_is_refused() {
    let server = Server::start("udp", 1, echo);
    let most = "x".repeat(65_507 - "server got:".len());
    echoctl_with(&["send", &server.address], most.as_bytes()).check(0, &format!("server got:{most}\n"), "");
    server.expect_received(&[&most]);
    for (kind, size) in [("udp", 65_508), ("unixgram", 10_000_000), ("seqpacket", 10_000_000)] {
        let server = Server::start(kind, 1, echo);
        let error = format!("{}: message 1 has {size} bytes, more than fit into one packet\n", server.address);
        echoctl_with(&["send", &server.address], "x".repeat(size).as_bytes()).check(2, "", &error);
        let server = Server::start(kind, 2, echo);
        let error = format!("{}: message 2 has {size} bytes, more than fit into one packet\n", server.address);
        let lines = format!("a\n{}", "x".repeat(size));
        echoctl_with(&["send", &server.address], lines.as_bytes()).check(1, "server got:a\n", &error);
    }
}

#[test]
fn packets_are_sent_to_servers_that_do_not_reply() {
    for kind in KINDS {
        let server = Server::start(kind, 3, |_| Vec::new());
        echoctl(&["send", "--no-reply", &server.address, "a", "", "b"]).check(0, "", "");
        server.expect_received(&["a", "", "b"]);
    }
    let server = Server::start("seqpacket", 2, |_| vec![b"server error:out of buffer memory".to_vec()]);
    echoctl(&["send", "--no-reply", &server.address, "a"]).check(1, "", "the server says: out of buffer memory\n");
    // It neither ends nor takes anything.
    let server = Server::start("seqpacket", 5, |packet| if packet.is_empty() { park_forever() } else { Vec::new() });
    let output = echoctl(&["send", "--no-reply", "--timeout", "200ms", &server.address, "a", ""]);
    output.check(1, "", "the server has not ended its stream within 200ms after the last message");
}

fn park_forever() -> ! {
    loop {
        thread::park();
    }
}

#[test]
fn client_waits_for_a_full_datagram_socket_until_the_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    let address = format!("unixgram:{}", path.display());
    let lines = "x\n".repeat(10_000);
    let output = echoctl_with(&["send", "--no-reply", "--timeout", "300ms", &address], lines.as_bytes());
    output.check(1, "", "the server has taken nothing of what we send for 300ms (--timeout)\n");

    let server = Server::spawn(socket.into(), address, usize::MAX, |_| Vec::new());
    echoctl_with(&["send", "--no-reply", &server.address], lines.as_bytes()).check(0, "", "");
}

#[test]
fn raw_packets_are_printed_as_they_come() {
    for kind in KINDS {
        let server = Server::start(kind, 2, |_| vec![b"Hello, client!\n".to_vec()]);
        let output = echoctl(&["send", "--raw", &server.address, "a", "b"]);
        output.check(0, "Hello, client!\nHello, client!\n", "");
        server.expect_received(&["a", "b"]);
        let server = Server::start(kind, 2, |packet| vec![[b"Hello, ", packet].concat()]);
        let output = echoctl(&["send", "--expect", "Hello, a", &server.address, "a", "b"]);
        output.check(1, "Hello, a\n", r#"reply 2 is wrong: expected "Hello, a", got "Hello, b""#);
    }
}

#[test]
fn json_is_one_object_per_packet() {
    let server = Server::start("udp", 2, |packet| if packet == b"a" { echo(packet) } else { vec![b"x".to_vec()] });
    let output = echoctl(&["send", "--json", &server.address, "a", "b"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<_> = text.lines().map(|line| line.split(",\"rtt_us\":").next().unwrap()).collect();
    let right = r#"{"reply":"server got:a","message":"a","ok":true"#;
    let wrong = r#"{"reply":"x","message":"b","ok":false"#;
    assert_eq!((lines, output.code), (vec![right, wrong], Some(1)), "{output:?}");
}

// --- ping --------------------------------------------------------------------------------------------------------------

#[test]
fn ping_works_over_packet_sockets() {
    for kind in KINDS {
        let server = Server::start(kind, 3, echo);
        let output = echoctl(&["ping", "-c", "3", "-i", "10ms", "-s", "1000B", &server.address]);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(output.code == Some(0) && text.contains("seq=3 bytes=1011 time="), "{output:?}");
        assert!(text.contains("3 sent, 3 received, 0% loss"), "{output:?}");
        let number = |number| format!("{number:01000}");
        server.expect_received(&[&number(1), &number(2), &number(3)]);
    }
}

#[test]
fn ping_distinguishes_lost_and_late_replies() {
    // The first is answered after the second.
    let mut first = Vec::new();
    let server = Server::start("udp", 3, move |packet| match std::mem::replace(&mut first, echo(packet)) {
        before if before.is_empty() => Vec::new(),
        before if before[0].ends_with(b"1") => [echo(packet), before].concat(),
        _ => vec![b"x".to_vec()],
    });
    let output = echoctl(&["ping", "-c", "3", "-i", "300ms", "-W", "200ms", &server.address]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for line in [
        "lost: seq=1: no reply within 200ms (--timeout)",
        "seq=2 bytes=27",
        "late reply from",
        "lost: seq=3: wrong reply: expected \"server got:0000000000000003\", got \"x\"",
        "3 sent, 1 received, 1 late, 1 wrong, 66.7% loss",
    ] {
        assert!(text.contains(line), "no \"{line}\" in {output:?}");
    }
    assert_eq!(output.code, Some(1));
}

#[test]
fn pings_are_lost_if_no_server_listens() {
    let address = format!("udp:{}", UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let output = echoctl(&["ping", "-c", "2", "-i", "10ms", &address]);
    let text = String::from_utf8_lossy(&output.stdout);
    for seq in 1..=2 {
        let lost = format!("lost: seq={seq}: no socket listens there (Connection refused)\n");
        assert!(text.contains(&lost), "{output:?}");
    }
    assert_eq!(output.code, Some(1));
    echoctl(&["ping", "seqpacket:/nowhere/at.all"]).check(2, "", "cannot connect to seqpacket:/nowhere/at.all: ");
}
