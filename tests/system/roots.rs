//! Root file systems of distributions, made once and kept, and what is installed on them.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::bed;
use crate::common::program;

/// What the tests use on the machines, besides what every Debian has.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,socat,netcat-openbsd,iproute2,procps";

/// A Debian that the tests boot.
pub struct Debian {
    /// What its tests are called by.
    pub name: &'static str,
    /// What debootstrap(8) calls it.
    suite: &'static str,
    installed: OnceLock<Installed>,
}

/// A Debian that can be booted.
pub struct Installed {
    /// The file system of the distribution.
    pub root: PathBuf,
    /// What `make install` puts on it.
    pub layer: PathBuf,
    /// The version of its systemd.
    pub systemd: u32,
}

/// All of them, the oldest first.
pub static DEBIANS: [Debian; 3] =
    [Debian::new("debian12", "bookworm"), Debian::new("debian13", "trixie"), Debian::new("sid", "sid")];

impl Debian {
    const fn new(name: &'static str, suite: &'static str) -> Self {
        Self { name, suite, installed: OnceLock::new() }
    }

    /// It with echoed installed. [`Debian::prepare`] must have been called.
    pub fn installed(&self) -> &Installed {
        self.installed.get().expect("it was prepared")
    }

    /// Makes the root file system, if there is none, and installs echoed.
    ///
    /// # Errors
    /// It cannot be made on this machine.
    pub fn prepare(&self) -> Result<(), String> {
        let cache = env::var_os("ECHOED_TEST_ROOTS").map_or_else(|| "/var/cache/echoed-tests".into(), PathBuf::from);
        let root = cache.join(self.suite);
        make_root(&cache, self.suite, &root)?;
        let systemd = systemd_version(&root)?;
        println!("{}: systemd {systemd}", self.name);
        let layer = Path::new(env!("CARGO_TARGET_TMPDIR")).join("system").join(self.name);
        if !bed::is_inner() {
            install(&layer, systemd);
        }
        self.installed.get_or_init(|| Installed { root, layer, systemd });
        Ok(())
    }
}

/// Makes the root file system of a suite, unless it is there. Who else wants it waits meanwhile.
fn make_root(cache: &Path, suite: &str, root: &Path) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Err(format!("{what}: {error}"));
    if let Err(error) = fs::create_dir_all(cache) {
        return failed(&format!("{} cannot be made", cache.display()), &error);
    }
    let lock = File::create(cache.join(format!("{suite}.lock"))).expect("the cache can be written to");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a file can be locked");
    // Whether it is whole and made in this way: it is written last.
    let recipe = cache.join(format!("{suite}.packages"));
    if fs::read_to_string(&recipe).is_ok_and(|packages| packages == PACKAGES) && root.is_dir() {
        return Ok(());
    }
    if program("debootstrap").is_none() {
        return Err("debootstrap is not installed".to_owned());
    }
    println!("making a root file system of {suite} in {} (once on this machine)", root.display());
    let _ = fs::remove_file(&recipe);
    if root.exists() {
        fs::remove_dir_all(root).expect("an old root can be removed");
    }
    let made = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), suite])
        .arg(root)
        .stdin(Stdio::null())
        .output()
        .expect("debootstrap can be started");
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stdout);
        let last: Vec<_> = said.lines().rev().take(3).collect();
        return failed(&format!("debootstrap {suite} failed"), &last.join("; "));
    }
    fs::write(&recipe, PACKAGES).expect("the cache can be written to");
    Ok(())
}

fn systemd_version(root: &Path) -> Result<u32, String> {
    let said = Command::new("chroot").arg(root).args(["systemctl", "--version"]).output();
    let said = said.map_err(|error| format!("chroot cannot be started: {error}"))?;
    let said = String::from_utf8_lossy(&said.stdout);
    let version = said.split_whitespace().nth(1).and_then(|version| version.split(['.', '~']).next()?.parse().ok());
    version.ok_or_else(|| format!("{} has no systemd: {said:?}", root.display()))
}

/// `make install`, as for a package, of the programs that the tests were built with.
fn install(layer: &Path, systemd: u32) {
    if layer.exists() {
        fs::remove_dir_all(layer).expect("an old installation can be removed");
    }
    fs::create_dir_all(layer).expect("the tests' directory can be written to");
    make("install PREFIX=/usr", layer, systemd);
}

/// `make` with these words, for another root than that of this machine and the systemd there.
pub fn make(words: &str, destination: &Path, systemd: u32) {
    let programs = Path::new(env!("CARGO_BIN_EXE_echoed")).parent().expect("programs are in a directory");
    let made = Command::new("make")
        .arg("--silent")
        .args(words.split_whitespace())
        .arg(format!("SYSTEMD_VERSION={systemd}"))
        .arg(format!("DESTDIR={}", destination.display()))
        .arg(format!("BUILDDIR={}", programs.display()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("make can be started");
    assert!(made.status.success(), "make {words}: {}", String::from_utf8_lossy(&made.stderr));
}
