//! The package for Arch, by pacman on a Debian: there is no database of packages that knows the C library, so dependencies are
//! not checked, and these tests run the hooks that pacman has for systemd.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::lifecycle::{Installer, OLDER, OLDER_SETTINGS, PACKAGE};
use crate::staging::STAGING_DIR;
use common::machines::machine::{Machine, TCP};

tests![
    nothing_is_enabled_and_the_enable_command_is_printed,
    an_upgrade_does_not_start_a_stopped_service,
    the_package_can_be_installed_without_a_running_systemd,
];

/// What systemd's hooks of pacman do there, after a transaction that has put something into its directories, or taken it away.
const HOOKS: &str = "systemctl daemon-reload; systemctl reload-or-restart --marked; journalctl --update-catalog;
    ! test -e /usr/lib/tmpfiles.d/echoed.conf || systemd-tmpfiles --create echoed.conf";

/// Makes the older package from the files of the other one.
const MAKE_OLDER: &str = r#"
    mkdir -p /tmp/older
    cd /tmp/older
    bsdtar -xpf "$staging/echoed.pkg.tar.zst"
    sed -i 's/^pkgver = .*/pkgver = 0.0.1-1/' .PKGINFO
    echo "$settings" >>etc/echoed/echoed.toml
    bsdtar -czf .MTREE --format=mtree --options='!all,use-set,type,uid,gid,mode,time,size,sha256,link' .PKGINFO .INSTALL etc usr
    bsdtar --zstd -cf "$staging/older.pkg.tar.zst" .MTREE .PKGINFO .INSTALL etc usr
"#;

pub struct Pacman;

impl Pacman {
    fn transaction(machine: &Machine, words: &str) -> String {
        let output = machine.sh(&format!("pacman --noconfirm --noprogressbar {words}"));
        machine.sh(HOOKS);
        output
    }
}

impl Installer for Pacman {
    const START_COMMAND: &'static str = "systemctl enable --now echoed.socket";
    const NEW_SETTINGS_FILE: &'static str = "/etc/echoed/echoed.toml.pacnew";
    const SAVED_SETTINGS_FILE: &'static str = "/etc/echoed/echoed.toml.pacsave";
    const MAY_REMAIN: &'static [&'static str] = &["/var/lib/pacman", "/run/echoed"];

    fn prepare(machine: &Machine) {
        machine.write("/etc/pacman.conf", "[options]\nArchitecture = auto\nSigLevel = Never\n");
        machine.sh("pacman -Qq || true");
        machine.sh(&format!("set -eu; staging={STAGING_DIR}; settings='{OLDER_SETTINGS}'; {MAKE_OLDER}"));
    }

    fn install(machine: &Machine, package: &str) -> String {
        Self::transaction(machine, &format!("-Udd {STAGING_DIR}/{package}.pkg.tar.zst"))
    }

    fn version(machine: &Machine) -> String {
        let output = machine.sh("pacman -Q echoed");
        output.trim_end().strip_prefix("echoed ").expect("the name of the package").to_owned()
    }

    fn altered_files(machine: &Machine) -> String {
        let output = machine.run("LC_ALL=C pacman -Qkk echoed").output;
        if output.contains(" 0 altered files") { String::new() } else { output }
    }

    fn remove(machine: &Machine) {
        Self::transaction(machine, "-Rdd echoed");
    }

    /// What it did not remove is up to the administrator.
    fn purge(machine: &Machine) {
        machine.sh("rm -rf /etc/echoed");
    }
}

fn nothing_is_enabled_and_the_enable_command_is_printed(machine: &Machine) {
    Pacman::prepare(machine);
    let output = Pacman::install(machine, PACKAGE);
    assert!(output.contains(Pacman::START_COMMAND), "{output}");
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "disabled");
    for unit in ["echoed.socket", "echoed.service"] {
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
    // Once.
    let output = Pacman::install(machine, OLDER);
    assert!(!output.contains(Pacman::START_COMMAND), "{output}");
}

fn an_upgrade_does_not_start_a_stopped_service(machine: &Machine) {
    Pacman::prepare(machine);
    Pacman::install(machine, OLDER);
    machine.sh(Pacman::START_COMMAND);
    Pacman::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    machine.connect(TCP).exchange("aaaa");
}

/// As in an image build: everything is there, but nothing runs.
fn the_package_can_be_installed_without_a_running_systemd(machine: &Machine) {
    const WANTED: &str = "/etc/systemd/system/sockets.target.wants/echoed.socket";
    Pacman::prepare(machine);
    // Without what is mounted below: /run is empty.
    machine.sh("mkdir /root/image; mount --bind / /root/image");
    let pacman = |words: &str| {
        let output = machine.sh(&format!("pacman --noconfirm --noprogressbar --root /root/image {words}"));
        assert!(!output.contains("error"), "{output}");
    };
    pacman(&format!("-Udd {STAGING_DIR}/{OLDER}.pkg.tar.zst"));
    machine.sh("chroot /root/image systemctl enable echoed.socket");
    pacman(&format!("-Udd {STAGING_DIR}/{PACKAGE}.pkg.tar.zst"));
    assert!(machine.path(WANTED).is_symlink());
    assert!(machine.path("/usr/bin/echoed").is_file());
    pacman("-Rdd echoed");
    assert!(!machine.path(WANTED).is_symlink());
    assert!(!machine.path("/usr/bin/echoed").exists());
}

/// What is published beside the package, for the AUR.
pub fn the_pkgbuild_to_publish_has_the_sums_of_the_tarballs() {
    let built = env::var_os("ECHOED_PACKAGES").map(PathBuf::from).expect("ECHOED_PACKAGES says where the packages are");
    let read = |file: &str| {
        fs::read_to_string(built.join("arch").join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let (build, info) = (read("PKGBUILD"), read(".SRCINFO"));
    for name in [
        concat!("echoed-", env!("CARGO_PKG_VERSION"), ".tar.gz"),
        concat!("echoed-", env!("CARGO_PKG_VERSION"), "-vendor.tar.xz"),
    ] {
        let output = Command::new("sha256sum").arg(built.join(name)).output().expect("sha256sum can be started");
        let output = String::from_utf8_lossy(&output.stdout);
        let sum = output.split(' ').next().expect("a sum");
        assert!(sum.len() == 64 && build.contains(&format!("'{sum}'")), "{name}: {sum}: {build}");
        assert!(info.contains(&format!("\tsha256sums = {sum}\n")), "{name}: {sum}: {info}");
        let is_source = |line: &str| line.starts_with("\tsource = ") && line.ends_with(name);
        assert!(info.lines().any(is_source), "{name}: {info}");
    }
    assert!(info.contains("pkgbase = echoed\n") && info.contains("\tinstall = echoed.install\n"), "{info}");
    let install = read("echoed.install");
    assert!(!install.contains("restart echoed"), "{install}");
}
