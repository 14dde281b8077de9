//! The package for Fedora and its kin, by rpm on a Debian: there is no database of packages that knows the C library, so
//! dependencies are not checked, and these tests do what systemd's package does there ([`UPDATE_HELPER`],
//! [`TRIGGERS`]).

use crate::lifecycle::{Installer, OLDER, OLDER_SETTINGS, PACKAGE};
use crate::staging::STAGING_DIR;
use common::machines::machine::{Machine, TCP};

tests![
    the_socket_is_enabled_only_by_a_preset,
    the_installation_starts_nothing,
    an_upgrade_does_not_start_a_stopped_service,
    erasing_the_package_removes_its_directory_in_run,
    the_package_lists_its_bundled_crates_and_licences,
    the_spec_calls_the_macros_of_cargo_where_a_distribution_has_them,
];

/// The macros of cargo-rpm-macros that the spec calls, each as a word that says that it was called.
const CARGO_MACROS: &str = "%cargo_prep(V:v:) called prep %{-v*}\n%cargo_build(naf:) called build\n\
    %cargo_license_summary(naf:) called summary\n%cargo_license(naf:) called license\n\
    %cargo_vendor_manifest() called manifest\n%cargo_test(naf:) called test %{**}\n";

/// What the scriptlets of packages call there, as far as ours do: %post, %preun and %postun.
const UPDATE_HELPER: &str = r#"#!/bin/sh
set -eu
command=$1
shift
case $command in
install-system-units) systemctl --no-reload preset "$@" ;;
remove-system-units) systemctl --no-reload --no-warn disable --now "$@" ;;
mark-restart-system-units) for unit; do systemctl set-property "$unit" Markers=+needs-restart; done ;;
*) exit 2 ;;
esac
"#;

/// What systemd does there after packages have put something into its directories, or taken it away.
const TRIGGERS: &str = "systemctl daemon-reload; systemctl reload-or-restart --marked; journalctl --update-catalog;
    ! test -e /usr/lib/tmpfiles.d/echoed.conf || systemd-tmpfiles --create echoed.conf";

/// Makes the older package from the files of the other one, with what is said of them by the same spec.
const MAKE_OLDER: &str = r#"
    mkdir -p /tmp/older/tree /tmp/older/licences
    bsdtar -xpf "$staging/echoed.rpm" -C /tmp/older/tree
    echo "$settings" >>/tmp/older/tree/etc/echoed/echoed.toml
    # rpm puts these there by itself.
    mv /tmp/older/tree/usr/share/licenses/echoed*/* /tmp/older/licences
    rm -rf /tmp/older/tree/usr/share/licenses /tmp/older/tree/usr/lib/.build-id
    sed -e 's/^Version:.*/Version: 0.0.1/' -e '/^Source/d' -e 's|packaging/third-party|third-party|' \
        -e '/^%prep/,/^# The socket is enabled/c %prep\ncp /tmp/older/licences/* .\n%install\ncp -a /tmp/older/tree/. %{buildroot}\nmkdir -p %{buildroot}/run/echoed' \
        "$staging/packaging/rpm/echoed.spec" >/tmp/older/echoed.spec
    rpmbuild -bb --nodeps --load="$staging/packaging/rpm/macros.systemd" --define "_topdir /tmp/older" \
        --define "_tmppath /tmp" --define "debug_package %{nil}" --define "__os_install_post %{nil}" /tmp/older/echoed.spec
    mv /tmp/older/RPMS/*/*.rpm "$staging/older.rpm"
"#;

pub struct Rpm;

impl Rpm {
    /// Calls rpm, and then what the end of a transaction calls there.
    fn transaction(machine: &Machine, words: &str) -> String {
        machine.sh(&format!("rpm --nodeps {words} && {{ {TRIGGERS}; }}"))
    }
}

impl Installer for Rpm {
    const START_COMMAND: &'static str = "systemctl enable --now echoed.socket";
    const NEW_SETTINGS_FILE: &'static str = "/etc/echoed/echoed.toml.rpmnew";
    const SAVED_SETTINGS_FILE: &'static str = "/etc/echoed/echoed.toml.rpmsave";
    const MAY_REMAIN: &'static [&'static str] = &["/var/lib/rpm", "/run/echoed"];

    fn prepare(machine: &Machine) {
        // Of the package "filesystem" there.
        machine.sh("mkdir -p /usr/share/licenses /usr/share/zsh/site-functions /usr/share/fish/vendor_completions.d");
        machine.write("/usr/lib/systemd/systemd-update-helper", UPDATE_HELPER);
        machine.sh("chmod 755 /usr/lib/systemd/systemd-update-helper; rpm --query --all");
        machine.sh(&format!("set -eu; staging={STAGING_DIR}; settings='{OLDER_SETTINGS}'; {MAKE_OLDER}"));
    }

    fn install(machine: &Machine, package: &str) -> String {
        Self::transaction(machine, &format!("--upgrade --oldpackage {STAGING_DIR}/{package}.rpm"))
    }

    fn version(machine: &Machine) -> String {
        machine.sh("rpm --query --queryformat '%{VERSION}-%{RELEASE}' echoed")
    }

    fn altered_files(machine: &Machine) -> String {
        machine.run("rpm --verify --nodeps echoed").output
    }

    fn remove(machine: &Machine) {
        Self::transaction(machine, "--erase echoed");
    }

    /// What it did not remove is up to the administrator.
    fn purge(machine: &Machine) {
        machine.sh("rm -rf /etc/echoed");
    }
}

fn the_socket_is_enabled_only_by_a_preset(machine: &Machine) {
    Rpm::prepare(machine);
    machine.write("/etc/systemd/system-preset/10-test.preset", "disable *\n");
    Rpm::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "disabled");
    assert_eq!(machine.property("echoed.service", "UnitFileState"), "static");
    Rpm::remove(machine);
    machine.write("/etc/systemd/system-preset/10-test.preset", "enable echoed.socket\ndisable *\n");
    Rpm::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "enabled");
    // Presets are for what is new.
    machine.sh("systemctl disable echoed.socket");
    Rpm::install(machine, OLDER);
    Rpm::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "disabled");
}

fn the_installation_starts_nothing(machine: &Machine) {
    Rpm::prepare(machine);
    machine.write("/etc/systemd/system-preset/10-test.preset", "enable echoed.socket\n");
    Rpm::install(machine, PACKAGE);
    for unit in ["echoed.socket", "echoed.service"] {
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
}

fn an_upgrade_does_not_start_a_stopped_service(machine: &Machine) {
    Rpm::prepare(machine);
    Rpm::install(machine, OLDER);
    machine.sh(Rpm::START_COMMAND);
    Rpm::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    machine.connect(TCP).exchange("aaaa");
}

fn erasing_the_package_removes_its_directory_in_run(machine: &Machine) {
    Rpm::prepare(machine);
    Rpm::install(machine, PACKAGE);
    assert!(machine.path("/run/echoed").is_dir());
    Rpm::remove(machine);
    assert!(!machine.path("/run/echoed").exists());
    assert!(!machine.path("/etc/echoed").exists());
}

/// For searches for a vulnerable crate, or for a licence.
fn the_package_lists_its_bundled_crates_and_licences(machine: &Machine) {
    let query = |what: &str| machine.sh(&format!("rpm --query --package {what} {STAGING_DIR}/{PACKAGE}.rpm"));
    assert_eq!(query("--configfiles"), "/etc/echoed/echoed.toml\n");
    let provided = query("--provides");
    let list = machine.sh(&format!("cat {STAGING_DIR}/packaging/third-party.md"));
    let rows: Vec<_> = list.lines().filter_map(|line| line.strip_prefix("| ")).skip(1).collect();
    assert!(rows.len() > 20, "{list}");
    for row in rows {
        let mut columns = row.split(" | ");
        let (name, version) = (columns.next().expect("a name"), columns.next().expect("a version"));
        let (version, _) = version.split_once('+').unwrap_or((version, ""));
        let line = format!("bundled(crate({name})) = {version}");
        assert!(provided.lines().any(|provided| provided == line), "{line}: {provided}");
    }
    let licences = query("--licensefiles");
    for file in ["LICENSE-MIT", "LICENSE-APACHE", "LICENSE.dependencies", "third-party.md"] {
        assert!(licences.contains(file), "{file}: {licences}");
    }
}

/// On Fedora and RHEL they build, test and list the licences; elsewhere the spec does so itself.
fn the_spec_calls_the_macros_of_cargo_where_a_distribution_has_them(machine: &Machine) {
    machine.write("/root/macros.cargo", CARGO_MACROS);
    let parse = |words: &str| {
        let directory = format!("{STAGING_DIR}/packaging/rpm");
        machine.sh(&format!("rpmspec --load={directory}/macros.systemd {words} --parse {directory}/echoed.spec"))
    };
    for system in ["fedora 43", "rhel 10"] {
        let spec = parse(&format!("--load=/root/macros.cargo --define '{system}'"));
        let lines =
            ["prep vendor", "build", "summary", "license > LICENSE.dependencies", "manifest", "test -- --locked"];
        for line in lines {
            assert!(spec.contains(&format!("\ncalled {line}\n")), "{system}: {line}: {spec}");
        }
        for line in ["BuildRequires:  cargo-rpm-macros >= 26", "%license cargo-vendor.txt"] {
            assert!(spec.contains(&format!("\n{line}\n")), "{system}: {line}: {spec}");
        }
        assert!(spec.contains("make install BUILDDIR=target/rpm ") && !spec.contains("make all"), "{system}: {spec}");
    }
    let spec = parse("");
    assert!(!spec.contains("cargo-rpm-macros") && !spec.contains("cargo-vendor.txt"), "{spec}");
    assert!(spec.contains("\nmake all\n") && spec.contains("\ncargo test --locked --no-fail-fast\n"), "{spec}");
}
