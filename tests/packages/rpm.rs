//! The package for Fedora and its kin, by rpm on a Debian: there is no database of packages that knows the C library, so
//! dependencies are not looked at, and nobody but these tests does what systemd's triggers do there ([`TRIGGERS`]).

use crate::machine::{Machine, TCP, UNIX};
use crate::shipment::PLACE;
use crate::snapshot::Snapshot;

tests![
    installed_and_enabled_it_is_started_by_its_socket,
    what_is_not_in_a_preset_is_not_enabled,
    an_upgrade_restarts_the_service_and_keeps_the_settings,
    erased_it_leaves_nothing,
];

/// What systemd does there after packages have put something into its directories.
const TRIGGERS: &str = "systemctl daemon-reload; journalctl --update-catalog; systemd-tmpfiles --create echoed.conf";

fn rpm(machine: &Machine, words: &str) -> String {
    let said = machine.sh(&format!("rpm --nodeps {words}"));
    machine.sh(&format!("systemctl daemon-reload; ! test -e /usr/sbin/echoed || {{ {TRIGGERS}; }}"));
    said
}

fn installed_and_enabled_it_is_started_by_its_socket(machine: &Machine) {
    rpm(machine, &format!("--install {PLACE}/echoed.rpm"));
    machine.sh("systemctl enable --now echoed.socket");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    assert_eq!(machine.sh(r"printf 'aaaa\t' | socat -t10 - TCP:127.0.0.1:8085"), "server got:aaaa\t");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    machine.sh(&format!("sh {PLACE}/packaging/smoke"));
    assert_eq!(machine.sh("systemd-analyze verify --man=no echoed.socket echoed.service echoed@x.service"), "");
    let said = machine.run("rpm --verify --nodeps echoed").said;
    assert_eq!(said, "");
    assert_eq!(machine.sh("rpm --query --configfiles echoed"), "/etc/echoed/echoed.toml\n");
}

fn what_is_not_in_a_preset_is_not_enabled(machine: &Machine) {
    machine.write("/etc/systemd/system-preset/10-test.preset", "disable *\n");
    rpm(machine, &format!("--install {PLACE}/echoed.rpm"));
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "disabled");
    assert_eq!(machine.property("echoed.service", "UnitFileState"), "static");
    rpm(machine, "--erase echoed");
    machine.write("/etc/systemd/system-preset/10-test.preset", "enable echoed.socket\ndisable *\n");
    rpm(machine, &format!("--install {PLACE}/echoed.rpm"));
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "enabled");
}

fn an_upgrade_restarts_the_service_and_keeps_the_settings(machine: &Machine) {
    rpm(machine, &format!("--install {PLACE}/echoed.rpm"));
    machine.sh("systemctl enable --now echoed.socket");
    machine.write("/etc/echoed/echoed.toml", "[defaults]\nprefix = \"mine:\"\n");
    machine.write("/etc/echoed/echoed.toml.d/50-local.toml", "[limits]\nconnections = 10\n");
    assert_eq!(machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:8085"), "mine:a\t");
    let (process, socket) = (machine.daemon(), machine.property("echoed.socket", "ActiveEnterTimestampMonotonic"));
    rpm(machine, &format!("--upgrade --replacepkgs {PLACE}/echoed.rpm"));
    assert_eq!(machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:8085"), "mine:a\t");
    assert_ne!(machine.daemon(), process, "the old program still runs");
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "enabled");
    // The sockets were there all the time.
    assert_eq!(machine.property("echoed.socket", "ActiveEnterTimestampMonotonic"), socket);
}

fn erased_it_leaves_nothing(machine: &Machine) {
    machine.sh("journalctl --update-catalog; systemctl daemon-reload; ldconfig; rpm --query --all");
    // Of the package "filesystem" there.
    machine.sh("mkdir -p /usr/share/licenses /usr/share/zsh/site-functions /usr/share/fish/vendor_completions.d");
    let before = Snapshot::of(machine);
    rpm(machine, &format!("--install {PLACE}/echoed.rpm"));
    machine.sh("systemctl enable --now echoed.socket");
    machine.connect(UNIX).exchange("aaaa");
    machine.connect(TCP).exchange("aaaa");
    rpm(machine, "--erase echoed");
    assert_eq!(machine.daemon(), None);
    assert_eq!(machine.property("echoed.socket", "LoadState"), "not-found");
    // Its own records, and what tmpfiles.d makes until the next boot.
    let left = Snapshot::of(machine).since(&before);
    let left: Vec<_> =
        left.iter().filter(|line| !line.contains("/rpm/") && !line.starts_with("new: /run/echoed ")).collect();
    assert!(left.is_empty(), "{left:#?}");
}
