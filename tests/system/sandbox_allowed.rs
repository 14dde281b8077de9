//! What the service can do in its sandbox: serve every kind of client, log, talk to systemd, and read its settings where
//! an administrator puts them.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;

use echoed::systemd::journal::lossless::MESSAGE;
use rustix::net::sockopt::set_socket_reuseport;
use rustix::net::{AddressFamily, SocketType};

use common::machines::machine::Machine;
use common::packets::{DatagramPeer, PacketPeer};
use common::{TEST_TIMEOUT, wait_until};

tests![
    tcp_and_unix_clients_are_served,
    datagrams_and_seqpackets_are_answered,
    clients_on_a_unix_datagram_socket_are_answered_where_the_service_can_see_that_their_socket_is_their_own,
    clients_on_the_unix_socket_are_identified_by_their_uid,
    a_user_on_the_unix_socket_is_limited_to_connections_per_source since 257,
    entries_reach_the_journal_complete_and_with_their_fields,
    systemd_gets_all_notifications,
    new_settings_in_any_directory_apply_after_a_reload,
    a_settings_file_replaced_by_an_editor_applies_after_a_reload,
    settings_in_a_directory_that_was_missing_at_the_start_apply_after_a_reload,
    settings_that_the_service_cannot_see_are_reported_and_not_ignored,
];

fn tcp_and_unix_clients_are_served(machine: &Machine) {
    machine.sh("mkdir -p /etc/systemd/system/echoed.socket.d
        cp /usr/share/doc/echoed/examples/ipv6.conf /etc/systemd/system/echoed.socket.d
        systemctl daemon-reload
        systemctl start echoed.socket");
    for address in ["tcp:127.0.0.1:8085", "tcp:[::1]:8085", "unix:/run/echoed.sock"] {
        machine.connect(address).exchange("aaaa");
    }
}

fn datagrams_and_seqpackets_are_answered(machine: &Machine) {
    machine.edit(
        "echoed.socket",
        "[Socket]
        ListenDatagram=0.0.0.0:8085
        ListenDatagram=[::1]:8086
        ListenDatagram=/run/datagrams.sock
        ListenDatagram=@datagrams
        ListenSequentialPacket=/run/packets.sock
        ReusePort=yes",
    );
    machine.sh("systemctl start echoed.socket");
    // What came first has started the service.
    for address in ["udp:127.0.0.1:8085", "udp:[::1]:8086", "unixgram:/run/datagrams.sock"] {
        DatagramPeer::to(&machine.address(address)).exchange("aaaa");
    }
    let packets = PacketPeer::connect(&machine.address("seqpacket:/run/packets.sock"));
    packets.exchange("");
    packets.exchange("aaaa");

    // It has no network of its own, and yet knows of the one that its socket is in: the address that was asked, ...
    let client = UdpSocket::bind("127.0.0.1:0").expect("there is a free port");
    client.connect("127.0.0.5:8085").expect("UDP needs no peer");
    client.set_read_timeout(Some(TEST_TIMEOUT)).expect("it can be set");
    client.send(b"aaaa").expect("a socket listens there");
    let mut reply = [0; 100];
    let count = client.recv(&mut reply).expect("a reply comes, from there");
    assert_eq!(&reply[..count], b"server got:aaaa");
    // ... and which ones are its own. (Forged, as it were: from a socket that shares its port.)
    let own = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, rustix::net::SocketFlags::CLOEXEC, None)
        .expect("there are such sockets");
    set_socket_reuseport(&own, true).expect("it can be set");
    rustix::net::bind(&own, &SocketAddr::from(([127, 0, 0, 1], 8085))).expect("the port is shared");
    UdpSocket::from(own).send_to(b"aaaa", "127.0.0.5:8085").expect("a socket listens there");
    machine.wait_for_journal("--unit=echoed.service VERDICT=own-address");
    // Root is known, whatever systemd it is.
    machine.configure("[defaults]\nlog_messages = 'summary'");
    machine.sh("systemctl reload echoed.service");
    let unix = DatagramPeer::to(&machine.address("unixgram:/run/datagrams.sock"));
    wait_until("the new settings hold", || {
        unix.exchange("who");
        machine.run("journalctl --quiet --unit=echoed.service --grep='message on echo from uid 0.*who'").code == Some(0)
    });
}

/// Binds a socket to a path that every user may write to, sends what has systemd end a service if it comes from there,
/// and prints the reply, if there is to be one.
const DATAGRAM_CLIENT: &str = r#"
    use Socket;
    my ($own, $is_answered) = @ARGV;
    socket(my $socket, AF_UNIX, SOCK_DGRAM, 0) or die "$!";
    bind($socket, pack_sockaddr_un($own)) or die "$own: $!";
    chmod 0666, $own;
    send($socket, "x\nWATCHDOG=trigger", 0, pack_sockaddr_un("/run/datagrams.sock")) or die "$!";
    if ($is_answered) { alarm 30; recv($socket, my $reply, 100, 0); print $reply }
"#;

fn clients_on_a_unix_datagram_socket_are_answered_where_the_service_can_see_that_their_socket_is_their_own(
    machine: &Machine,
) {
    const REPLY: &str = "server got:x\nWATCHDOG=trigger";
    machine.edit("echoed.socket", "[Socket]\nListenDatagram=/run/datagrams.sock\nSocketMode=0666\nPassCredentials=yes");
    machine.write("/usr/lib/client", DATAGRAM_CLIENT);
    machine.sh("mkdir -p /run/echoed/clients/run/systemd /run/journal; chown 1000 /run/echoed/clients
        systemctl start echoed.socket");
    let send = |user: u32, own: &str, is_answered: bool| {
        let answered = if is_answered { "answered" } else { "" };
        let user = format!("setpriv --reuid={user} --regid={user} --clear-groups");
        machine.sh(&format!("cd /run/echoed/clients; {user} perl /usr/lib/client {own} {answered}"))
    };
    let mut unsafe_count = 0;
    // The first one starts the service.
    assert_eq!(send(0, "/run/echoed/clients/first", true), REPLY);
    let process = machine.property("echoed.service", "MainPID");
    let is_known = machine.version() >= 257;
    for (user, own, is_answered) in [
        (1000, "/run/echoed/clients/own", is_known),
        // It does not see those.
        (0, "/run/client", false),
        (1000, "/tmp/client", false),
        // In the directory of the service, this is the socket of systemd.
        (0, "run/systemd/notify", false),
        // What the service sees there are the journal's own.
        (0, "/run/journal/dev-log", false),
        (0, "/run/journal/socket", false),
    ] {
        let reply = send(user, own, is_answered);
        assert_eq!(reply, if is_answered { REPLY } else { "" }, "{user} {own}");
        unsafe_count += u32::from(!is_answered);
    }
    machine.wait_for_journal("--unit=echoed.service VERDICT=unsafe-address");
    assert_eq!(send(0, "/run/echoed/clients/last", true), REPLY);
    assert_eq!(machine.property("echoed.service", "MainPID"), process);
    // All of them, as it says in the end.
    machine.sh("systemctl stop echoed.service");
    if unsafe_count > 1 {
        let others = format!("{} datagrams? dropped on echo: unsafe-address", unsafe_count - 1);
        machine.wait_for_journal(&format!("--unit=echoed.service --grep='{others}'"));
    }
}

/// A client on the Unix socket, as a shell command: this user sends a message and reads the reply.
fn client_as(user: u32) -> String {
    format!("printf 'aaaa\\t' | {} -t10 - UNIX-CONNECT:/run/echoed.sock", socat_as(user))
}

fn socat_as(user: u32) -> String {
    format!("setpriv --reuid={user} --regid={user} --clear-groups socat")
}

fn clients_on_the_unix_socket_are_identified_by_their_uid(machine: &Machine) {
    machine.write("/etc/echoed/echoed.toml.d/log.toml", "[log]\nlevel = \"debug\"\n");
    machine.sh("systemctl start echoed.socket");
    for (user, known_since) in [(0, 0), (1000, 257), (100_000, 258)] {
        let known = if machine.version() >= known_since { format!("uid {user} pid ") } else { "unknown".to_owned() };
        let expected = format!("\"PEER\":\"{known}");
        let entries = "journalctl --quiet --unit=echoed.service --output=json VERDICT=peer-closed || true";
        let count = || machine.sh(entries).matches(&expected).count();
        machine.sh("systemctl stop echoed.service; journalctl --sync");
        let before = count();
        assert_eq!(machine.sh(&client_as(user)), "server got:aaaa\t");
        wait_until(&expected, || count() > before);
    }
}

fn a_user_on_the_unix_socket_is_limited_to_connections_per_source(machine: &Machine) {
    machine.write("/etc/echoed/echoed.toml.d/limits.toml", "[limits]\nconnections_per_source = 1\n");
    machine.sh("systemctl start echoed.socket");
    let mut first = machine.command(&format!("{} - UNIX-CONNECT:/run/echoed.sock", socat_as(1000)));
    let mut first = first.stdin(Stdio::piped()).spawn().expect("nsenter can be started");
    let (mut stdin, mut stdout) = (first.stdin.take().expect("a pipe"), first.stdout.take().expect("a pipe"));
    stdin.write_all(b"aaaa\t").expect("it reads");
    let mut reply = [0; b"server got:aaaa\t".len()];
    stdout.read_exact(&mut reply).expect("it is answered");
    let second = machine.sh(&client_as(1000));
    assert!(second.starts_with("server error:too many connections from this source (limit 1)\t"), "{second}");
    assert_eq!(machine.sh(&client_as(1001)), "server got:aaaa\t");
    drop(stdin);
    first.wait().expect("it is our child");
}

fn entries_reach_the_journal_complete_and_with_their_fields(machine: &Machine) {
    machine.write(
        "/etc/echoed/echoed.toml.d/log.toml",
        "[log]\nlevel = \"debug\"\n
        [defaults]\nlog_messages = \"full\"\nmax_message = \"1MiB\"\n
        [defaults.deadlines]\nread = \"5min\"\n",
    );
    machine.sh("systemctl start echoed.socket");
    // Too large for a datagram, so it goes as a descriptor.
    let message = "0123456789".repeat(60_000);
    machine.connect("tcp:127.0.0.1:8085").exchange(&message);
    let of_message = format!("LISTENER=echo MESSAGE_ID={}", MESSAGE.message_id);
    let logged = machine.wait_for_journal(&format!("--unit=echoed.service --all --output=cat {of_message}"));
    let length = logged.len();
    assert!(logged.strip_suffix('\n') == Some(&*message), "of {} bytes, {length} are in the journal", message.len());
    machine.wait_for_journal("--unit=echoed.service LISTENER=echo VERDICT=peer-closed BYTES_IN=600001");
}

fn systemd_gets_all_notifications(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    machine.connect("tcp:127.0.0.1:8085").exchange("aaaa");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    let status = machine.property("echoed.service", "StatusText");
    assert!(status.contains("2 listeners"), "{status}");
    machine.sh("systemctl reload echoed.service");
    machine.sh("systemctl stop echoed.service");
    assert_eq!(machine.property("echoed.service", "Result"), "success");
    let warnings = machine.sh("journalctl --sync; journalctl --quiet --identifier=echoed --priority=warning");
    assert_eq!(warnings, "");
}

/// Settings with a prefix by which replies are recognized.
fn prefix_document(prefix: &str) -> String {
    format!("[defaults]\nprefix = \"{prefix}\"\n")
}

/// Reloads, and waits until replies begin so. (Where reloading has no handshake, the new settings hold a moment later.)
fn reload_and_expect(machine: &Machine, prefix: &str) {
    // The first client is answered before the service is active, and systemd merges a reload into a start that has not ended.
    machine.sh("systemctl start echoed.service && systemctl reload echoed.service");
    let expected = format!("{prefix}aaaa\t");
    wait_until(&format!("replies begin with {prefix:?}"), || {
        let mut peer = machine.connect("unix:/run/echoed.sock");
        peer.send("aaaa\t");
        peer.next_reply() == expected.as_bytes()
    });
}

fn expect_prefix(machine: &Machine, prefix: &str) {
    let mut peer = machine.connect("unix:/run/echoed.sock");
    peer.send("aaaa\t");
    peer.expect(format!("{prefix}aaaa\t"));
}

fn new_settings_in_any_directory_apply_after_a_reload(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    machine.connect("unix:/run/echoed.sock").exchange("aaaa");
    for directory in ["/usr/lib", "/run", "/etc"] {
        machine.write(
            &format!("{directory}/echoed/echoed.toml.d/50-local.toml"),
            &prefix_document(&format!("{directory}:")),
        );
        reload_and_expect(machine, &format!("{directory}:"));
    }
    // The mask of an administrator.
    machine.sh("ln -sf /dev/null /etc/echoed/echoed.toml.d/50-local.toml");
    reload_and_expect(machine, "server got:");
}

fn a_settings_file_replaced_by_an_editor_applies_after_a_reload(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    machine.connect("unix:/run/echoed.sock").exchange("aaaa");
    for text in ["one:", "two:"] {
        machine.write("/etc/echoed/.echoed.toml.new", &prefix_document(text));
        machine.sh("mv /etc/echoed/.echoed.toml.new /etc/echoed/echoed.toml");
        reload_and_expect(machine, text);
    }
}

fn settings_in_a_directory_that_was_missing_at_the_start_apply_after_a_reload(machine: &Machine) {
    machine.sh("rm -r /etc/echoed; systemctl start echoed.socket");
    machine.connect("unix:/run/echoed.sock").exchange("aaaa");
    machine.write("/etc/echoed/echoed.toml.d/50-local.toml", &prefix_document("mine:"));
    reload_and_expect(machine, "mine:");
}

fn settings_that_the_service_cannot_see_are_reported_and_not_ignored(machine: &Machine) {
    machine.write("/etc/echoed/echoed.toml", &prefix_document("mine:"));
    machine.sh("systemctl start echoed.socket");
    let expect = |said: &str| {
        // What comes of a reload is in the status; below 254, systemctl does not wait for it.
        machine.sh("systemctl reload echoed.service");
        wait_until(said, || machine.property("echoed.service", "StatusText").contains(said));
        expect_prefix(machine, "mine:");
    };
    expect_prefix(machine, "mine:");
    machine.write("/srv/elsewhere.toml", "");
    machine.sh("mkdir /etc/echoed/echoed.toml.d; ln -s /srv/elsewhere.toml /etc/echoed/echoed.toml.d/50-local.toml");
    expect(
        "/etc/echoed/echoed.toml.d/50-local.toml: is a link to /srv/elsewhere.toml, which does not exist (the service sees",
    );
    machine.sh("rm -r /etc/echoed/echoed.toml.d /run/echoed");
    machine.write("/run/echoed/echoed.toml.d/50-local.toml", &prefix_document("new:"));
    expect("/run/echoed: was removed or replaced while echoed runs");
    machine.sh("systemctl restart echoed.service");
    expect_prefix(machine, "new:");
}
