//! The package for Debian.

use crate::lifecycle::{Installer, PACKAGE};
use crate::machine::Machine;
use crate::shipment::PLACE;
use crate::test::Test;

tests![what_debian_demands_of_files_is_so, a_policy_against_starting_anything_holds];

/// Those that need more than every Debian has.
pub const TESTS_WITH_TOOLS: &[Test] = &[Test::new("autopkgtest_passes", autopkgtest_passes)];

/// dpkg, as apt calls it when nobody is there to be asked.
pub struct Dpkg;

impl Installer for Dpkg {
    const START: &'static str = ":";
    const SETTINGS_BESIDE: &'static str = "/etc/echoed/echoed.toml.dpkg-dist";
    const SETTINGS_LEFT: &'static str = "/etc/echoed/echoed.toml";
    const MAY_STAY: &'static [&'static str] = &[];

    fn install(machine: &Machine, package: &str) -> String {
        machine.sh(&format!("DEBIAN_FRONTEND=noninteractive dpkg --force-confold --install {PLACE}/{package}.deb"))
    }

    fn version(machine: &Machine) -> String {
        machine.sh("dpkg-query --show --showformat='${Version}' echoed")
    }

    fn altered(machine: &Machine) -> String {
        machine.sh("dpkg --verify echoed")
    }

    fn remove(machine: &Machine) {
        machine.sh("dpkg --remove echoed");
    }

    fn purge(machine: &Machine) {
        machine.sh("dpkg --purge echoed");
    }

    /// As README.Debian says.
    fn another_port(machine: &Machine) -> String {
        let readme = machine.sh("cat /usr/share/doc/echoed/README.Debian");
        let lines = readme.lines().map(str::trim);
        let drop_in: Vec<_> = lines.filter(|line| *line == "[Socket]" || line.starts_with("ListenStream=")).collect();
        drop_in.join("\n") + "\n"
    }
}

fn what_debian_demands_of_files_is_so(machine: &Machine) {
    Dpkg::install(machine, PACKAGE);
    let settings = machine.sh("dpkg-query --show --showformat='${Conffiles}' echoed");
    // Each with its checksum.
    let settings: Vec<_> = settings.split_whitespace().step_by(2).collect();
    assert_eq!(settings, ["/etc/apparmor.d/echoed", "/etc/echoed/echoed.toml"]);
    let docs = machine.sh("ls /usr/share/doc/echoed");
    for file in ["copyright", "README.Debian"] {
        assert!(docs.contains(file), "{file}: {docs}");
    }
}

fn a_policy_against_starting_anything_holds(machine: &Machine) {
    machine.sh("printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d");
    Dpkg::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "inactive");
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
