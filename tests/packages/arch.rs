//! The package for Arch, by pacman on a Debian: there is no database of packages that knows the C library, so dependencies are
//! not looked at, and nobody but these tests does what pacman's hooks for systemd do there.

use crate::machine::{Machine, TCP, UNIX};
use crate::shipment::PLACE;
use crate::snapshot::Snapshot;

tests![
    installed_it_is_started_by_its_socket_once_that_is_enabled,
    an_upgrade_restarts_the_service_and_keeps_the_settings,
    removed_it_leaves_nothing,
];

/// What systemd's hooks of pacman do there.
const HOOKS: &str = "systemctl daemon-reload; journalctl --update-catalog; systemd-tmpfiles --create echoed.conf";

fn pacman(machine: &Machine, words: &str) -> String {
    machine.write("/etc/pacman.conf", "[options]\nArchitecture = auto\nSigLevel = Never\n");
    let said = machine.sh(&format!("pacman --noconfirm --noprogressbar {words}"));
    machine.sh(&format!("! test -e /usr/bin/echoed || {{ {HOOKS}; }}"));
    said
}

fn installed_it_is_started_by_its_socket_once_that_is_enabled(machine: &Machine) {
    let said = pacman(machine, &format!("-Udd {PLACE}/echoed.pkg.tar.zst"));
    assert!(said.contains("systemctl enable --now echoed.socket"), "{said}");
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "disabled");
    machine.sh("systemctl enable --now echoed.socket");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    assert_eq!(machine.sh(r"printf 'aaaa\t' | socat -t10 - TCP:127.0.0.1:8085"), "server got:aaaa\t");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    machine.sh(&format!("sh {PLACE}/packaging/smoke"));
    assert_eq!(machine.sh("systemd-analyze verify --man=no echoed.socket echoed.service echoed@x.service"), "");
    let said = machine.sh("pacman -Qkk echoed");
    assert!(said.contains(" 0 altered files"), "{said}");
}

fn an_upgrade_restarts_the_service_and_keeps_the_settings(machine: &Machine) {
    pacman(machine, &format!("-Udd {PLACE}/echoed.pkg.tar.zst"));
    machine.sh("systemctl enable --now echoed.socket");
    machine.write("/etc/echoed/echoed.toml", "[defaults]\nprefix = \"mine:\"\n");
    assert_eq!(machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:8085"), "mine:a\t");
    let (process, socket) = (machine.daemon(), machine.property("echoed.socket", "ActiveEnterTimestampMonotonic"));
    pacman(machine, &format!("-Udd {PLACE}/echoed.pkg.tar.zst"));
    assert_eq!(machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:8085"), "mine:a\t");
    assert_ne!(machine.daemon(), process, "the old program still runs");
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "enabled");
    // The sockets were there all the time.
    assert_eq!(machine.property("echoed.socket", "ActiveEnterTimestampMonotonic"), socket);
}

fn removed_it_leaves_nothing(machine: &Machine) {
    machine.sh("journalctl --update-catalog; systemctl daemon-reload; ldconfig");
    pacman(machine, "-Qq || true");
    let before = Snapshot::of(machine);
    pacman(machine, &format!("-Udd {PLACE}/echoed.pkg.tar.zst"));
    machine.sh("systemctl enable --now echoed.socket");
    machine.connect(TCP).exchange("aaaa");
    machine.connect(UNIX).exchange("aaaa");
    pacman(machine, "-Rdd --nosave echoed");
    assert_eq!(machine.daemon(), None);
    let left = Snapshot::of(machine).since(&before);
    // Its own records, and what tmpfiles.d makes until the next boot.
    let left: Vec<_> =
        left.iter().filter(|line| !line.contains("/pacman/") && !line.starts_with("new: /run/echoed ")).collect();
    assert!(left.is_empty(), "{left:#?}");
}
