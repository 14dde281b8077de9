//! A Debian 13 as its installer leaves it: made anew by Debian 13's own debootstrap, with nothing for the tests in it
//! but the account of an administrator. Its machines have no network, so what the documents have the administrator
//! install (`sudo apt install …`) is downloaded to where apt looks for it before it asks a mirror.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;

use crate::machines::doc_page::{BlockKind, sections};
use crate::machines::in_debian::{GET_DEBOOTSTRAP, run_in_debian};
use crate::machines::machine::Machine;
use crate::machines::page_runner::ADMIN;
use crate::machines::rootfs::Debian;
use crate::machines::test::Test;

static CLEAN_DEBIAN: Debian = Debian::new("debian13", "trixie");

/// Makes the Debian, and the account as the installer does: sudo, and the bus by which a user who is not root talks to
/// systemd. apt asks no question before it installs packages, since no terminal could answer.
const MAKE: &str = r#"
    get_debootstrap
    cd /srv/kept
    rm -rf root
    debootstrap --include=dbus,sudo trixie root
    echo "127.0.1.1 machine" >>root/etc/hosts
    echo "APT::Get::Assume-Yes \"true\";" >root/etc/apt/apt.conf.d/90test
    chroot root useradd --create-home --uid 1000 --groups sudo,systemd-journal --shell /bin/bash "$admin"
    echo "$admin ALL=(ALL) NOPASSWD: ALL" >root/etc/sudoers.d/admin
    cp /etc/resolv.conf root/etc/resolv.conf
    chroot root apt-get -qq install --download-only $packages
    rm root/etc/resolv.conf
"#;

/// A clean Debian. It is gone when it is dropped.
pub struct CleanDebian {
    directory: Directory,
}

impl CleanDebian {
    /// Makes it with the debootstrap of another Debian. `pages` are the documents that are followed on it. It lies
    /// below `directory`.
    ///
    /// # Errors
    /// Returns what failed: there may be no network.
    pub fn make(directory: &Path, debian: &Debian, pages: &[&str]) -> Result<Self, String> {
        let directory = Directory(directory.join("clean"));
        directory.remove();
        let packages: BTreeSet<_> = pages.iter().flat_map(|page| packages(page)).collect();
        assert!(!packages.is_empty(), "the documents do not say what to install");
        let packages = packages.into_iter().collect::<Vec<_>>().join(" ");
        let script = format!("{GET_DEBOOTSTRAP}\nadmin={ADMIN} packages='{packages}'\n{MAKE}");
        run_in_debian(&debian.installed().root, &directory.0, &script)?;
        Ok(Self { directory })
    }

    /// Runs a test on a machine with it. `fill` puts into a directory what the administrator has in theirs
    /// (/home/admin).
    pub fn run(&self, test: &'static Test, fill: impl FnOnce(&Path)) -> Result<(), Failed> {
        let layer = self.directory.0.join("layer");
        let home = layer.join("home").join(ADMIN);
        fs::create_dir_all(&home).expect("the tests' directory can be written to");
        fill(&home);
        let chown = Command::new("chown").args(["-R", "1000:1000"]).arg(&home).status();
        assert!(chown.is_ok_and(|status| status.success()), "{} cannot be given to the administrator", home.display());
        CLEAN_DEBIAN.take(self.directory.0.join("kept/root"), layer)?;
        test.run_on(&CLEAN_DEBIAN)
    }
}

/// What was made by echoed or for it, wherever it may be; nothing of the system itself is called so.
pub fn find_remains(machine: &Machine) -> String {
    machine.sh("find /usr /etc /run /var -xdev -name '*echo[ed]*' -not -path '/var/log/*'")
}

/// What a page has an administrator install from Debian.
fn packages(page: &str) -> BTreeSet<String> {
    let blocks = sections(page).into_iter().flat_map(|section| section.blocks);
    let commands = blocks.filter(|block| matches!(block.kind, BlockKind::Commands { .. }));
    let lines: Vec<_> =
        commands.flat_map(|block| block.commands().map(|(_, line)| line.to_owned()).collect::<Vec<_>>()).collect();
    let words = lines.iter().filter_map(|line| line.split('#').next()?.strip_prefix("sudo apt install "));
    words.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// Removed with everything in it.
struct Directory(PathBuf);

impl Directory {
    fn remove(&self) {
        if self.0.exists() {
            fs::remove_dir_all(&self.0).expect("what the test made can be removed");
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.remove();
    }
}
