//! The package for Debian.

use crate::common::wait_until;
use crate::machine::{Machine, TCP, UNIX};
use crate::shipment::PLACE;
use crate::snapshot::Snapshot;
use crate::test::Test;
use crate::visitors;

tests![
    a_fresh_installation_is_started_by_its_socket,
    an_upgrade_keeps_what_the_administrator_wrote,
    what_is_disabled_or_masked_stays_so,
    a_busy_port_is_said_and_can_be_corrected,
    nobody_is_refused_during_upgrades,
    messages_that_were_half_sent_are_answered_after_upgrades,
    a_downgrade_serves_as_before,
    removed_it_leaves_the_settings_and_purged_it_leaves_nothing,
];

/// Those that need more than every Debian has.
pub const TESTS_WITH_TOOLS: &[Test] = &[Test::new("autopkgtest_passes", autopkgtest_passes)];

fn install(machine: &Machine, package: &str) -> String {
    machine.sh(&format!("DEBIAN_FRONTEND=noninteractive dpkg --force-confold --install {PLACE}/{package}.deb"))
}

fn a_fresh_installation_is_started_by_its_socket(machine: &Machine) {
    install(machine, "echoed");
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "enabled");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
    assert_eq!(machine.property("echoed.service", "UnitFileState"), "static");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    let reply = machine.sh(r"printf 'aaaa\t' | socat -t10 - TCP:127.0.0.1:8085");
    assert_eq!(reply, "server got:aaaa\t");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    machine.sh(&format!("sh {PLACE}/packaging/smoke"));
    // Everything that systemd has to know.
    let listed = machine.sh("journalctl --list-catalog");
    assert!(listed.contains(" echoed: "), "{listed}");
    assert!(machine.path("/run/echoed").is_dir());
    let said = machine.sh("systemd-analyze verify --man=no echoed.socket echoed.service echoed@x.service");
    assert_eq!(said, "");
    assert_eq!(machine.sh("dpkg --verify echoed"), "");
    let settings = machine.sh("dpkg-query --show --showformat='${Conffiles}' echoed");
    assert_eq!(settings.split_whitespace().next(), Some("/etc/echoed/echoed.toml"));
    let docs = machine.sh("ls /usr/share/doc/echoed");
    for file in ["copyright", "third-party.md", "echoed.cdx.json", "operations.md", "README.Debian"] {
        assert!(docs.contains(file), "{file}: {docs}");
    }
}

const OF_THE_ADMINISTRATOR: [(&str, &str); 4] = [
    ("/etc/echoed/echoed.toml", "# mine\n[defaults]\nprefix = \"mine:\"\n"),
    ("/etc/echoed/echoed.toml.d/50-local.toml", "[defaults.deadlines]\nread = \"10s\"\n"),
    ("/etc/systemd/system/echoed.service.d/mine.conf", "[Service]\nMemoryMax=2G\n"),
    (
        "/etc/systemd/system/echoed.socket.d/mine.conf",
        "[Socket]\nListenStream=\nListenStream=127.0.0.1:10007\nListenStream=/run/echoed.sock\n",
    ),
];

fn an_upgrade_keeps_what_the_administrator_wrote(machine: &Machine) {
    install(machine, "older");
    for (file, text) in OF_THE_ADMINISTRATOR {
        machine.write(file, text);
    }
    machine.sh("systemctl stop echoed.socket; systemctl daemon-reload; systemctl start echoed.socket");
    let ask = |machine: &Machine| machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:10007");
    assert_eq!(ask(machine), "mine:a\t");
    let process = machine.daemon();
    install(machine, "echoed");
    assert_eq!(ask(machine), "mine:a\t");
    assert_ne!(machine.daemon(), process, "the old program still runs");
    for (file, text) in OF_THE_ADMINISTRATOR {
        assert_eq!(std::fs::read_to_string(machine.path(file)).expect("it is there"), text, "{file}");
    }
    assert_eq!(machine.property("echoed.service", "MemoryMax"), (2_u64 << 30).to_string());
    // Settings that nobody touched are those of the new version.
    machine.sh("dpkg --purge echoed; rm -r /etc/systemd/system/echoed.*.d");
    install(machine, "older");
    assert!(machine.sh("cat /etc/echoed/echoed.toml").contains("# As it was then."));
    install(machine, "echoed");
    assert!(!machine.sh("cat /etc/echoed/echoed.toml").contains("# As it was then."));
}

fn what_is_disabled_or_masked_stays_so(machine: &Machine) {
    install(machine, "older");
    machine.sh("systemctl disable --now echoed.socket");
    install(machine, "echoed");
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "disabled");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "inactive");
    machine.sh("systemctl mask echoed.socket echoed.service");
    install(machine, "older");
    install(machine, "echoed");
    for unit in ["echoed.socket", "echoed.service"] {
        assert_eq!(machine.property(unit, "LoadState"), "masked");
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
    machine.sh("systemctl unmask echoed.socket echoed.service; systemctl enable --now echoed.socket");
    machine.connect(TCP).exchange("aaaa");
    // A policy against starting anything holds for us, too.
    machine.sh(
        "dpkg --purge echoed; printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d",
    );
    install(machine, "echoed");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "inactive");
}

fn a_busy_port_is_said_and_can_be_corrected(machine: &Machine) {
    machine.sh("systemd-run --quiet --unit=busy socat TCP-LISTEN:8085,bind=127.0.0.1,fork EXEC:cat");
    wait_until("the port is taken", || machine.run("ss -ltn 'sport = :8085' | grep -q LISTEN").code == Some(0));
    let said = install(machine, "echoed");
    assert!(said.contains("echoed.socket"), "the installation does not say that the socket failed: {said}");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "failed");
    let status = machine.run("systemctl status --no-pager echoed.socket").said;
    assert!(status.contains("Address already in use"), "{status}");
    // As README.Debian says.
    let readme = machine.sh("cat /usr/share/doc/echoed/README.Debian");
    let drop_in: Vec<_> =
        readme.lines().map(str::trim).filter(|line| *line == "[Socket]" || line.starts_with("ListenStream=")).collect();
    machine.edit("echoed.socket", &(drop_in.join("\n") + "\n"));
    machine.sh("systemctl start echoed.socket");
    assert_eq!(machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:10007"), "server got:a\t");
}

/// 200 clients come again and again while the package is upgraded and downgraded: nobody is refused, and everybody has the
/// reply.
fn nobody_is_refused_during_upgrades(machine: &Machine) {
    install(machine, "older");
    let packages = ["echoed", "older", "echoed"];
    visitors::come_during(machine, packages.len(), |number| {
        install(machine, packages[number]);
    });
}

/// 200 clients are in the middle of a message while the package is upgraded and downgraded, and end it afterwards: each has
/// its reply, on the connection that it had.
fn messages_that_were_half_sent_are_answered_after_upgrades(machine: &Machine) {
    const CLIENTS: usize = 200;
    install(machine, "older");
    // Longer than the upgrades take, however slow the machine is.
    machine.configure("[defaults.deadlines]\nread = \"10min\"\n");
    let mut peers: Vec<_> =
        (0..CLIENTS).map(|client| machine.connect(if client % 2 == 0 { TCP } else { UNIX })).collect();
    for package in ["echoed", "older", "echoed"] {
        for peer in &mut peers {
            peer.send("half and ");
        }
        let process = machine.daemon();
        wait_until("all halves were read", || {
            machine.property("echoed.service", "StatusText").starts_with(&format!("{CLIENTS}/"))
        });
        install(machine, package);
        assert_ne!(machine.daemon(), process);
        for peer in &mut peers {
            peer.send("half\t");
            peer.expect("server got:half and half\t");
        }
    }
}

fn a_downgrade_serves_as_before(machine: &Machine) {
    install(machine, "echoed");
    machine.connect(TCP).exchange("aaaa");
    let said = install(machine, "older");
    assert!(said.contains("downgrading"), "{said}");
    assert_eq!(machine.sh("dpkg-query --show --showformat='${Version}' echoed"), "0.0.1-1");
    machine.connect(TCP).exchange("aaaa");
    machine.sh(&format!("sh {PLACE}/packaging/smoke"));
}

fn removed_it_leaves_the_settings_and_purged_it_leaves_nothing(machine: &Machine) {
    // So that what is made at the first occasion is there before.
    machine.sh("journalctl --update-catalog; systemctl daemon-reload; ldconfig");
    let before = Snapshot::of(machine);
    install(machine, "older");
    install(machine, "echoed");
    machine.connect(UNIX).exchange("aaaa");
    machine.write("/etc/echoed/echoed.toml.d/50-local.toml", "[limits]\nconnections = 10\n");
    machine.write("/run/echoed/echoed.toml", "[limits]\nconnections = 11\n");
    machine.sh("systemctl reload echoed.service");

    machine.sh("dpkg --remove echoed");
    assert_eq!(machine.daemon(), None);
    assert_eq!(machine.property("echoed.socket", "LoadState"), "not-found");
    let left = machine.sh("find / -xdev -name '*echo[ed]*' -path '*echoed*' -not -path '/proc/*' -not -path '/root/*' -not -path '/var/*'");
    let mut left: Vec<_> = left.lines().filter(|path| !path.starts_with("/run/systemd/")).collect();
    left.sort_unstable();
    assert!(left.contains(&"/etc/echoed/echoed.toml"), "{left:?}");
    assert!(!left.iter().any(|path| path.starts_with("/usr")), "{left:?}");

    machine.sh("dpkg --purge echoed");
    let left = Snapshot::of(machine).since(&before);
    assert!(left.is_empty(), "{left:#?}");
}

fn autopkgtest_passes(machine: &Machine) {
    let tree = "/root/tree";
    machine.sh(&format!(
        "mkdir {tree}; cp -r {PLACE}/packaging {PLACE}/systemd {tree}; cp -r {PLACE}/packaging/debian {tree}/debian"
    ));
    let said = machine.sh(&format!(
        "cd /root && autopkgtest -B --ignore-restrictions=isolation-container {tree} {PLACE}/echoed.deb -- null"
    ));
    assert!(said.lines().any(|line| line.starts_with("smoke") && line.ends_with("PASS")), "{said}");
}
