//! The control socket under a real systemd: its own client of Varlink, echoctl without options, and what the journal has of it.

use common::machines::machine::{Machine, TCP};

tests![
    varlinkctl_describes_and_calls_every_method since 257,
    echoctl_finds_the_socket_and_the_journal_has_its_caller,
    lame_duck_is_in_the_status_and_goes_through_a_restart,
];

const SOCKET: &str = "/run/echoed/io.echoed";

fn varlinkctl_describes_and_calls_every_method(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    let mut peer = machine.connect(TCP);
    peer.exchange("aaaa");
    let info = machine.sh(&format!("varlinkctl info {SOCKET}"));
    assert!(info.contains("Product: echoed") && info.contains("io.echoed"), "{info}");
    // It parses the description, and prints what it has understood.
    for (interface, known) in [("io.echoed", "error Stopping"), ("org.varlink.service", "method GetInfo")] {
        let description = machine.sh(&format!("varlinkctl introspect {SOCKET} {interface}"));
        assert!(description.contains(known), "{description}");
    }
    let call = |options: &str, method: &str, parameters: &str| {
        machine.run(&format!("varlinkctl --json=short {options} call {SOCKET} io.echoed.{method} '{parameters}'"))
    };
    let status = call("", "Status", "{}");
    assert!(status.code == Some(0) && status.output.contains("\"state\":\"ready\""), "{status:?}");
    let connections = call("--more", "Connections", "{\"listener\":\"echo\"}");
    assert!(connections.code == Some(0) && connections.output.contains("\"messages\":1"), "{connections:?}");
    // Newer ones say it in words.
    let refused = call("", "Connections", "{}");
    assert!(refused.code != Some(0) && refused.output.to_lowercase().contains("more"), "{refused:?}");
    let refused = call("", "Close", "{\"id\":999}");
    assert!(refused.code != Some(0) && refused.output.contains("io.echoed.NoSuchConnection"), "{refused:?}");
    for (method, parameters) in [("Drain", "{}"), ("Resume", "{}"), ("Close", "{\"id\":1}")] {
        let done = call("", method, parameters);
        assert_eq!(done.code, Some(0), "{method}: {done:?}");
    }
    peer.expect("server error:connection closed by the administrator\t");
    peer.expect_close();
}

fn echoctl_finds_the_socket_and_the_journal_has_its_caller(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    let mut peer = machine.connect(TCP);
    peer.exchange("aaaa");
    assert!(machine.sh("echoctl connections").ends_with("\n1 connection\n"));
    assert!(machine.sh("echoctl status").contains(": ready, up "));
    // The shell becomes echoctl, so its number is that of the caller.
    let pid = machine.sh("sh -c 'echo $$; exec echoctl close 1 --json'");
    let pid = pid.lines().next().expect("it says so").to_owned();
    peer.expect("server error:connection closed by the administrator\t");
    let entry = machine.wait_for_journal(&format!("CALLER_UID=0 CALLER_PID={pid} --output=cat"));
    assert_eq!(entry.trim_end(), format!("closing connection 1: uid 0 pid {pid} called Close"));
    machine.wait_for_journal("VERDICT=closed-by-admin CONNECTION=1");
    // Others may not open it.
    let refused = machine.run("setpriv --reuid=65534 --regid=65534 --clear-groups echoctl drain");
    assert!(refused.code == Some(2) && refused.output.contains("only root may use it"), "{refused:?}");
    machine.sh("systemctl stop echoed-control.socket echoed.socket echoed.service");
    let missing = machine.run("echoctl drain");
    assert!(missing.code == Some(2) && missing.output.contains("systemctl start echoed-control.socket"), "{missing:?}");
}

fn lame_duck_is_in_the_status_and_goes_through_a_restart(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    let mut peer = machine.connect(TCP);
    peer.exchange("aaaa");
    let wait_for_status = |is_draining: bool| {
        common::wait_until(&format!("draining is {is_draining}"), || {
            machine.property("echoed.service", "StatusText").starts_with("draining") == is_draining
        });
    };
    machine.sh("systemctl kill --kill-whom=main --signal=USR1 echoed.service");
    wait_for_status(true);
    machine.sh("systemctl restart echoed.service");
    peer.exchange("as before");
    wait_for_status(true);
    machine.sh("echoctl resume");
    wait_for_status(false);
    machine.sh("systemctl restart echoed.service");
    peer.exchange("as before");
    wait_for_status(false);
}
