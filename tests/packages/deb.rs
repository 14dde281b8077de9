//! The package for Debian.

use crate::lifecycle::{Installer, PACKAGE};
use crate::staging::STAGING_DIR;
use common::machines::machine::Machine;
use common::machines::test::Test;

tests![the_package_has_the_files_that_debian_requires, policy_rc_d_prevents_the_start];

/// Those that need more than every Debian has.
pub const TESTS_WITH_TOOLS: &[Test] = &[Test::new("autopkgtest_passes", autopkgtest_passes)];

/// dpkg, as apt calls it without a terminal.
pub struct Dpkg;

impl Installer for Dpkg {
    const START_COMMAND: &'static str = ":";
    const NEW_SETTINGS_FILE: &'static str = "/etc/echoed/echoed.toml.dpkg-dist";
    const SAVED_SETTINGS_FILE: &'static str = "/etc/echoed/echoed.toml";
    const MAY_REMAIN: &'static [&'static str] = &[];

    fn install(machine: &Machine, package: &str) -> String {
        machine
            .sh(&format!("DEBIAN_FRONTEND=noninteractive dpkg --force-confold --install {STAGING_DIR}/{package}.deb"))
    }

    fn version(machine: &Machine) -> String {
        machine.sh("dpkg-query --show --showformat='${Version}' echoed")
    }

    fn altered_files(machine: &Machine) -> String {
        machine.sh("dpkg --verify echoed")
    }

    fn remove(machine: &Machine) {
        machine.sh("dpkg --remove echoed");
    }

    fn purge(machine: &Machine) {
        machine.sh("dpkg --purge echoed");
    }

    /// As README.Debian says.
    fn port_drop_in(machine: &Machine) -> String {
        let readme = machine.sh("cat /usr/share/doc/echoed/README.Debian");
        let lines = readme.lines().map(str::trim);
        let drop_in: Vec<_> = lines.filter(|line| *line == "[Socket]" || line.starts_with("ListenStream=")).collect();
        drop_in.join("\n") + "\n"
    }
}

fn the_package_has_the_files_that_debian_requires(machine: &Machine) {
    Dpkg::install(machine, PACKAGE);
    let settings = machine.sh("dpkg-query --show --showformat='${Conffiles}' echoed");
    // Each with its checksum.
    let settings: Vec<_> = settings.split_whitespace().step_by(2).collect();
    assert_eq!(settings, ["/etc/apparmor.d/echoed", "/etc/echoed/echoed.toml"]);
    let docs = machine.sh("ls /usr/share/doc/echoed");
    for file in ["copyright", "README.Debian"] {
        assert!(docs.contains(file), "{file}: {docs}");
    }
    let changelog = machine.sh("zcat /usr/share/doc/echoed/changelog.gz");
    assert!(changelog.starts_with("# Changelog\n") && changelog.contains("\n## ["), "{changelog}");
    assert_eq!(machine.sh("zcat /usr/share/doc/echoed/CHANGELOG.md.gz"), changelog);
}

fn policy_rc_d_prevents_the_start(machine: &Machine) {
    machine.sh("printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d");
    Dpkg::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "inactive");
}

fn autopkgtest_passes(machine: &Machine) {
    let tree = "/root/tree";
    machine.sh(&format!(
        "mkdir {tree}; cp -r {STAGING_DIR}/packaging {STAGING_DIR}/systemd {tree}; cp -r {STAGING_DIR}/packaging/debian {tree}/debian"
    ));
    let output = machine.sh(&format!(
        "cd /root && autopkgtest -B --ignore-restrictions=isolation-container {tree} {STAGING_DIR}/echoed.deb -- null"
    ));
    assert!(output.lines().any(|line| line.starts_with("smoke") && line.ends_with("PASS")), "{output}");
}
