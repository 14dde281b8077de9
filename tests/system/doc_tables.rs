//! The tables of docs/operations.md: each row is tried out.

use std::time::Duration;

use common::hang::hang_thread;
use common::machines::machine::Machine;
use common::{Peer, wait_until};

tests![
    each_signal_works_as_documented,
    a_second_signal_cuts_the_remaining_connections,
    what_survives_each_event_is_as_documented,
    each_limit_is_enforced_as_documented,
    with_accept_yes_the_socket_unit_limits_connections,
    each_exit_code_is_as_documented,
    each_systemd_version_has_the_documented_features,
];

const PAGE: &str = include_str!("../../docs/operations.md");

/// The rows of the table below a heading, without its head: the cells of each.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect("the page has this heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.skip(1).map(|row| row.split(" | ").collect()).collect()
}

/// What stands in backquotes.
fn quoted(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split('`').skip(1).step_by(2)
}

const ADDRESS: &str = "tcp:127.0.0.1:8085";

/// Settings, as a drop-in.
fn write_settings(machine: &Machine, name: &str, settings: &str) {
    machine.write(&format!("/etc/echoed/echoed.toml.d/{name}.toml"), settings);
}

// --- Signals -----------------------------------------------------------------------------------------------------------

fn each_signal_works_as_documented(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    let mut tried = 0;
    for row in rows("Signals") {
        let [signals, effect] = row[..] else { panic!("{row:?}") };
        if signals.contains("once more") {
            continue;
        }
        for signal in quoted(signals) {
            let mut peer = machine.connect(ADDRESS);
            peer.exchange("before");
            let process = machine.property("echoed.service", "MainPID");
            machine.sh(&format!("systemctl kill --signal={signal} echoed.service"));
            let runs_on = match effect {
                _ if effect.starts_with("reloads the settings") => {
                    machine.wait_for_journal(&format!("_PID={process} --grep=reloaded"));
                    true
                }
                "none" => true,
                _ if effect.starts_with("begins and ends lame duck") => {
                    machine.wait_for_journal(&format!("_PID={process} --grep='SIG{signal}'"));
                    true
                }
                _ if effect.starts_with("stops: ") => {
                    peer.expect_close();
                    machine.wait_for_property("echoed.service", "ActiveState", "inactive");
                    assert_eq!(machine.property("echoed.service", "Result"), "success", "{signal}");
                    false
                }
                _ if effect.ends_with("systemd restarts it") => {
                    peer.read_to_end();
                    let restarted = || !["0", &process].contains(&&*machine.property("echoed.service", "MainPID"));
                    wait_until(&format!("it is restarted after {signal}"), restarted);
                    false
                }
                other => panic!("what is meant by \"{other}\"?"),
            };
            if runs_on {
                peer.exchange("after");
            }
            machine.connect(ADDRESS).exchange("another");
            assert_eq!(machine.property("echoed.service", "MainPID") == process, runs_on, "{signal}");
            tried += 1;
        }
    }
    assert_eq!(tried, 8);
}

fn a_second_signal_cuts_the_remaining_connections(machine: &Machine) {
    write_settings(machine, "drain", "[service]\ndrain_timeout = '1h'\n[defaults]\nsend_buffer = '16KiB'\n");
    machine.sh("systemctl start echoed.socket");
    let mut peer = machine.connect(ADDRESS);
    peer.exchange("a");
    // Each is answered with twelve times as much: it owes more than the kernel takes.
    let suspended = machine.suspend("echoed");
    peer.send("\t".repeat(65_536));
    drop(suspended);
    peer.wait_until_read();
    for signal in ["INT", "TERM"] {
        machine.sh(&format!("systemctl kill --signal={signal} echoed.service"));
        machine.wait_for_journal(&format!("_COMM=echoed --grep='{signal}'"));
    }
    machine.wait_for_property("echoed.service", "ActiveState", "inactive");
    machine.wait_for_journal("_COMM=echoed --grep='0 connections finished, 1 cut'");
}

// --- What survives what ------------------------------------------------------------------------------------------------

/// What is done to the service, by the first cell of its row.
const ACTIONS: &[(&str, &str)] = &[
    ("`daemon-reload`", "systemctl daemon-reload"),
    ("reload of the service", "systemctl reload echoed.service"),
    ("restart of the service, upgrade", "systemctl restart echoed.service"),
    ("stop of the service", "systemctl stop echoed.service"),
    ("idle exit", ""),
    ("crash, `kill -9`", "systemctl kill --signal=KILL echoed.service"),
    ("hang", ""),
    ("stop of the socket (which stops the service)", "systemctl stop echoed.socket; systemctl start echoed.socket"),
    // Not tried: the machine is gone then.
    ("reboot", ""),
];

fn what_survives_each_event_is_as_documented(machine: &Machine) {
    // A hang need not take 30 s.
    machine.write("/run/systemd/system/echoed.service.d/test.conf", "[Service]\nWatchdogSec=2s\n");
    machine.sh("systemctl daemon-reload");
    let table = rows("What survives what");
    let listed: Vec<_> = table.iter().map(|row| row[0]).collect();
    assert_eq!(listed, ACTIONS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (row, (name, action)) in table.iter().zip(ACTIONS) {
        let [_, sockets, waiting, live, settings, counts] = row[..] else { panic!("{row:?}") };
        if *name == "reboot" {
            continue;
        }
        // One permit, so that the second client has to wait.
        write_settings(machine, "10", "[limits]\nconnections = 1\nreclaim_idle = 'off'\n");
        machine.sh("rm -f /etc/echoed/echoed.toml.d/20.toml");
        machine.sh("systemctl stop echoed.socket && systemctl start echoed.socket");
        let inode = listener_inode(machine);
        let mut first = machine.connect(ADDRESS);
        first.exchange("first");
        let process = machine.property("echoed.service", "MainPID");
        let mut second = machine.connect(ADDRESS);
        second.send("second\t");
        write_settings(machine, "20", "[defaults]\nprefix = \"new:\"\n");
        if *name == "idle exit" {
            write_settings(machine, "10", "[service]\nidle_exit = \"1ms\"\n");
            machine.sh("systemctl reload echoed.service");
            drop((first, second));
            machine.wait_for_property("echoed.service", "ActiveState", "inactive");
            assert_eq!(live, "do not exist");
            assert!(PAGE.contains("`stopping: no connection for 5min (service.idle_exit)`"));
            machine.wait_for_journal("_COMM=echoed --grep='stopping: no connection for 1ms .service.idle_exit.'");
            write_settings(machine, "10", "");
            second = machine.connect(ADDRESS);
            second.send("second\t");
        } else {
            if *name == "hang" {
                if !hang_thread(machine.daemon_pid().expect("it runs"), "worker-0") {
                    return;
                }
            } else {
                machine.sh(action);
            }
            if *name == "reload of the service" {
                // An old systemd returns before that.
                machine.wait_for_journal(&format!("_PID={process} --grep=reloaded"));
            }
            match live {
                "stay" | "stay, with their settings" => {
                    first.exchange("still");
                    drop(first);
                }
                "move to the new process, with the new settings" => {
                    first.send("still\t");
                    first.expect("new:still\t");
                    drop(first);
                }
                "are cut" | "are cut then" => assert_eq!(first.read_to_end(), b""),
                "are closed" => first.expect_close(),
                other => panic!("what is meant by \"{other}\"?"),
            }
        }
        if waiting == "are cut" {
            assert_eq!(second.read_to_end(), b"");
            second = machine.connect(ADDRESS);
            second.send("second\t");
        }
        let reply = if settings == "stay" { "server got:second\t" } else { "new:second\t" };
        second.expect(reply);
        assert_eq!(self::listener_inode(machine) == inode, sockets == "stay", "{name}: {sockets}");
        let is_same_process = machine.property("echoed.service", "MainPID") == process;
        assert_eq!(is_same_process, counts == "stay", "{name}: {counts}");
    }
}

/// The listening sockets: the number of each.
fn listener_inode(machine: &Machine) -> String {
    let listed = machine.sh("ss --listening --tcp --extended --no-header 'sport = :8085'");
    listed.split_whitespace().find(|word| word.starts_with("ino:")).expect("it is listening").to_owned()
}

// --- Limits ------------------------------------------------------------------------------------------------------------

fn each_limit_is_enforced_as_documented(machine: &Machine) {
    machine.sh("ip address add 192.0.2.1/24 dev lo");
    machine.write(
        "/etc/systemd/system/echoed.socket.d/address.conf",
        "[Socket]\nListenStream=\nListenStream=192.0.2.1:8085\n",
    );
    let table = rows("Limits");
    let row = |what: &str| table.iter().find(|row| row[0] == what).unwrap_or_else(|| panic!("{what} is not there"));
    let connect = || machine.connect("tcp:192.0.2.1:8085");
    let expect_final_reply = |what: &str, peer: &mut Peer| {
        let row = row(what);
        let text = quoted(row[2]).next().expect("it says what a client gets");
        peer.expect(format!("{text}\t"));
        peer.expect_close();
        machine.wait_for_journal(&format!("--unit=echoed.service {}", quoted(row[3]).next().expect("a field")));
    };
    let logged = |text: &str| {
        machine.wait_for_journal(&format!("--unit=echoed.service --grep='{}'", text.replace(['(', ')'], ".")))
    };
    machine.sh("systemctl daemon-reload; systemctl start echoed.socket");

    // What the unit says.
    for what in ["memory in all", "descriptors"] {
        let (key, value) = row(what)[1].split_once(" of the unit, ").expect("it says where, and how much");
        let line = format!("\n{}{value}\n", key.trim_matches('`'));
        assert!(machine.sh("systemctl cat echoed.service").contains(&line), "{line}");
    }

    let mut peer = connect();
    peer.send([b'x'; 65537]);
    expect_final_reply("length of a message", &mut peer);
    let mut peer = connect();
    peer.send("x");
    expect_final_reply("time for a message", &mut peer);
    let mut connections: Vec<_> = (0..256).map(|_| connect()).collect();
    connections.iter_mut().for_each(|peer| peer.exchange("a"));
    expect_final_reply("connections of one source", &mut connect());
    drop(connections);

    write_settings(machine, "few", "[limits]\nconnections_per_source = 0\nconnections = 2\nreclaim_idle = 'off'\n");
    machine.sh("systemctl restart echoed.service");
    let mut first = connect();
    let mut second = connect();
    first.exchange("a");
    second.exchange("a");
    let mut third = connect();
    let text = quoted(row("connections")[3]).next().expect("it says what the journal says").replace("4096", "2");
    logged(&text);
    third.send("a\t");
    third.expect_silence(Duration::from_millis(100));
    drop(first);
    third.expect("server got:a\t");

    write_settings(machine, "few", "[limits]\nbuffer_memory = \"4KiB\"\n[defaults]\nmax_message = \"4KiB\"\n");
    machine.sh("systemctl restart echoed.service");
    // Two of them begin a message that only one has room for.
    let mut peers = [connect(), connect()];
    peers[0].send([b'x'; 4000]);
    peers[0].wait_until_read();
    peers[1].send([b'x'; 4000]);
    expect_final_reply("memory for messages", &mut peers[1]);

    write_settings(machine, "few", "[limits]\nconnections_per_source = 0\n");
    machine.write("/etc/systemd/system/echoed.service.d/few.conf", "[Service]\nLimitNOFILE=32\n");
    machine.sh("systemctl daemon-reload; systemctl restart echoed.service");
    let _connections: Vec<_> = (0..32).map(|_| connect()).collect();
    logged(quoted(row("descriptors")[3]).next().expect("it says what the journal says"));
}

fn with_accept_yes_the_socket_unit_limits_connections(machine: &Machine) {
    let word = "Too many incoming connections";
    assert!(PAGE.contains(&format!("`{word}`")));
    machine.sh("install -D -t /etc/systemd/system/echoed.socket.d /usr/share/doc/echoed/examples/accept.conf");
    machine.sh("systemctl daemon-reload; systemctl start echoed.socket");
    let limit: usize = machine.property("echoed.socket", "MaxConnectionsPerSource").parse().expect("it is a number");
    let mut connections: Vec<_> = (0..limit).map(|_| machine.connect(ADDRESS)).collect();
    connections.iter_mut().for_each(|peer| peer.exchange("a"));
    assert_eq!(machine.connect(ADDRESS).read_to_end(), b"");
    machine.wait_for_journal(&format!("--unit=echoed.socket --grep='{word}'"));
}

// --- Exit codes, versions ----------------------------------------------------------------------------------------------

fn each_exit_code_is_as_documented(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    let table = rows("Exit codes");
    let listed: Vec<_> = table.iter().map(|row| row[0]).collect();
    assert_eq!(listed, ["0", "1", "2", "71", "74", "78", "`ABRT`"]);
    for (code, command) in [
        (0, "systemctl start echoed; systemctl stop echoed; exit $(systemctl show --value -p ExecMainStatus echoed)"),
        (1, "echoed --help >/dev/full"),
        (2, "echoed --no-such-option"),
        (71, "echoed --listen tcp:127.0.0.1:8085"),
        (78, "ECHOED_SERVICE__WORKERS=two echoed"),
    ] {
        let ended = machine.run(command);
        assert_eq!(ended.code, Some(code), "{command}: {}", ended.output);
    }

    // A socket of a type that is not served. It is tried again, ever more slowly, and clients wait.
    let row = table.iter().find(|row| row[0] == "78").expect("it is listed")[1];
    machine.sh("systemctl stop echoed.socket");
    machine.edit("echoed.socket", "[Socket]\nListenFIFO=/run/echoed.fifo\n");
    assert!(row.contains("`ListenFIFO=`"), "{row}");
    machine.sh("systemctl start echoed.socket");
    let mut peer = machine.connect(ADDRESS);
    peer.send("a\t");
    machine.wait_for_property("echoed.service", "ExecMainStatus", "78");
    let line = "failed to start: descriptor . .echo. from systemd: unsupported socket type; check the Listen";
    machine.wait_for_journal(&format!("--unit=echoed.service --grep='{line}'"));
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
    machine.sh("rm -r /etc/systemd/system/echoed.socket.d; systemctl daemon-reload");
    machine.sh("systemctl stop echoed.service echoed.socket; systemctl start echoed.socket");
    machine.connect(ADDRESS).exchange("a");

    // A wrapper that forks.
    machine.sh("systemctl stop echoed.service");
    machine.edit("echoed.service", "[Service]\nExecStart=\nExecStart=/usr/lib/wrapper\nRootDirectory=\nNoExecPaths=\n");
    machine.write("/usr/lib/wrapper", "#!/bin/sh\n/usr/sbin/echoed; exit $?\n");
    machine.sh("chmod 755 /usr/lib/wrapper");
    let mut peer = machine.connect(ADDRESS);
    peer.send("a\t");
    machine.wait_for_property("echoed.service", "ExecMainStatus", "78");
    machine
        .wait_for_journal("--unit=echoed.service --grep='are for process [0-9]* .LISTEN_PID., not for this process'");
    machine.write("/usr/lib/wrapper", "#!/bin/sh\nexec /usr/sbin/echoed\n");
    peer.expect("server got:a\t");
}

fn each_systemd_version_has_the_documented_features(machine: &Machine) {
    machine.sh("systemctl start echoed.socket echoed.service");
    let version = machine.version();
    let table = rows("What depends on the version of systemd");
    for row in table {
        let [since, what, _] = row[..] else { panic!("{row:?}") };
        let is_expected =
            since.split([',', ' ']).next().and_then(|since| since.parse().ok()).is_some_and(|since| version >= since);
        let is_present = match what {
            _ if what.contains("systemctl reload") => machine.property("echoed.service", "Type") == "notify-reload",
            _ if what.contains("FileDescriptorStorePreserve=yes") => {
                machine.sh("systemctl show echoed.service").contains("\nFileDescriptorStorePreserve=")
            }
            _ if what.contains("restarted after 0.1 s") => {
                machine.sh("systemctl show echoed.service").contains("\nRestartSteps=6\n")
            }
            _ if what.contains("activations") => {
                machine.sh("systemctl show echoed.socket").contains("\nPollLimitBurst=50\n")
            }
            _ if what.contains("edit --stdin") => {
                machine.sh("systemctl --help; systemctl edit --help").contains("--stdin")
            }
            _ if what.contains("users on") => {
                matches!(&*machine.property("echoed.service", "PrivateUsersEx"), "identity" | "full")
            }
            _ if what.contains("users from") => machine.property("echoed.service", "PrivateUsersEx") == "full",
            _ if what.contains("Unix socket") => {
                let said = machine.run("journalctl --quiet --unit=echoed.socket --grep='TCP_NODELAY failed'").output;
                said.is_empty()
            }
            other => panic!("how is \"{other}\" to be seen?"),
        };
        assert_eq!(is_present, is_expected, "{since}: {what}");
    }
}
