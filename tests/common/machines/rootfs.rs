//! Root file systems of distributions, made once and kept, and what is installed on them.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::{ROOT, find_program, program};

/// What the tests use on the machines, besides what every Debian has.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,socat,netcat-openbsd,iproute2,procps,curl";

/// A Debian that the tests boot.
pub struct Debian {
    /// What its tests are called by.
    pub name: &'static str,
    /// What debootstrap(8) calls it.
    suite: &'static str,
    /// Packages that its tests use besides, if any.
    tools: &'static str,
    installed: OnceLock<Installed>,
}

/// A Debian that can be booted.
pub struct Installed {
    /// The file system of the distribution: directories as overlayfs lists them, one over the other.
    pub root: PathBuf,
    /// What is put on it for the tests.
    pub layer: PathBuf,
    /// The version of its systemd.
    pub systemd: u32,
}

/// All of them, the oldest first.
pub static DEBIANS: [Debian; 3] =
    [Debian::new("debian12", "bookworm"), Debian::new("debian13", "trixie"), Debian::new("sid", "sid")];

impl Debian {
    /// A Debian without packages besides.
    pub const fn new(name: &'static str, suite: &'static str) -> Self {
        Self::with_tools(name, suite, "")
    }

    /// A Debian with these packages besides.
    pub const fn with_tools(name: &'static str, suite: &'static str, tools: &'static str) -> Self {
        Self { name, suite, tools, installed: OnceLock::new() }
    }

    /// Has it be this root file system, which was made in another way, with what is put on it.
    ///
    /// # Errors
    /// Returns an error if there is no systemd in it.
    pub fn take(&self, root: PathBuf, layer: PathBuf) -> Result<(), String> {
        let systemd = systemd_version(&root)?;
        self.installed.get_or_init(|| Installed { root, layer, systemd });
        Ok(())
    }

    /// It with what is put on it. [`Debian::prepare`] must have been called.
    pub fn installed(&self) -> &Installed {
        self.installed.get().expect("it was prepared")
    }

    /// Makes the root file system, if there is none, and has `install` put into a directory below `directory` what the tests
    /// need on it; `install` gets the version of systemd, too.
    ///
    /// # Errors
    /// It cannot be made on this machine.
    pub fn prepare(&self, directory: &Path, install: impl FnOnce(&Path, u32)) -> Result<(), String> {
        let cache = env::var_os("ECHOED_TEST_ROOTS").map_or_else(|| "/var/cache/echoed-tests".into(), PathBuf::from);
        let mut root = cache.join(self.suite);
        make_root(&cache, self.suite, &root)?;
        let systemd = systemd_version(&root)?;
        println!("{}: systemd {systemd}", self.name);
        if !self.tools.is_empty() {
            root = add_tools(&cache, self.suite, &root, self.tools)?;
        }
        let layer = directory.join(self.name);
        install(&layer, systemd);
        self.installed.get_or_init(|| Installed { root, layer, systemd });
        Ok(())
    }
}

/// Makes the root file system of a suite, unless it is there. Other processes that need it wait meanwhile.
fn make_root(cache: &Path, suite: &str, root: &Path) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Err(format!("{what}: {error}"));
    if let Err(error) = fs::create_dir_all(cache) {
        return failed(&format!("{} cannot be made", cache.display()), &error);
    }
    let lock = File::create(cache.join(format!("{suite}.lock"))).expect("the cache can be written to");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a file can be locked");
    // Whether it is whole and made in this way: it is written last.
    let stamp = cache.join(format!("{suite}.packages"));
    if fs::read_to_string(&stamp).is_ok_and(|packages| packages == PACKAGES) && root.is_dir() {
        return Ok(());
    }
    if find_program("debootstrap").is_none() {
        return Err("debootstrap is not installed".to_owned());
    }
    println!("making a root file system of {suite} in {} (once on this machine)", root.display());
    let _ = fs::remove_file(&stamp);
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
        let output = String::from_utf8_lossy(&made.stdout);
        let last: Vec<_> = output.lines().rev().take(3).collect();
        return failed(&format!("debootstrap {suite} failed"), &last.join("; "));
    }
    fs::write(&stamp, PACKAGES).expect("the cache can be written to");
    Ok(())
}

/// Adds packages to the root file system of a suite, in a directory over it.
fn add_tools(cache: &Path, suite: &str, root: &Path, tools: &str) -> Result<PathBuf, String> {
    let upper = cache.join(format!("{suite}-tools"));
    let layers = PathBuf::from(format!("{}:{}", upper.display(), root.display()));
    let lock = File::create(cache.join(format!("{suite}-tools.lock"))).expect("the cache can be written to");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a file can be locked");
    let stamp = cache.join(format!("{suite}-tools.packages"));
    if fs::read_to_string(&stamp).is_ok_and(|packages| packages == tools) && upper.is_dir() {
        return Ok(layers);
    }
    println!("adding to the root file system of {suite} (once on this machine): {tools}");
    let _ = fs::remove_file(&stamp);
    let script = r#"
        rm -rf "$upper" "$upper.work"
        mkdir "$upper" "$upper.work"
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/root
        mount -t overlay overlay -o "lowerdir=$root,upperdir=$upper,workdir=$upper.work" /mnt/root
        mount -t proc proc /mnt/root/proc
        cp /etc/resolv.conf /mnt/root/etc/resolv.conf
        export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
        chroot /mnt/root sh -ec "apt-get -qq update; apt-get -qq install -y --no-install-recommends $tools; apt-get clean"
        rm -f /mnt/root/etc/resolv.conf
        umount /mnt/root/proc /mnt/root
        rm -rf "$upper.work"
    "#;
    let made = Command::new("unshare")
        .args(["--mount", "sh", "-euc", script])
        .env("upper", &upper)
        .env("root", root)
        .env("tools", tools)
        .stdin(Stdio::null())
        .output()
        .expect("unshare can be started");
    if !made.status.success() {
        let output = String::from_utf8_lossy(&made.stderr).into_owned();
        let last: Vec<_> = output.lines().rev().take(3).collect();
        return Err(format!("{tools} cannot be added: {}", last.join("; ")));
    }
    fs::write(&stamp, tools).expect("the cache can be written to");
    Ok(layers)
}

fn systemd_version(root: &Path) -> Result<u32, String> {
    let output = Command::new("chroot").arg(root).args(["systemctl", "--version"]).output();
    let output = output.map_err(|error| format!("chroot cannot be started: {error}"))?;
    let output = String::from_utf8_lossy(&output.stdout);
    let version = output.split_whitespace().nth(1).and_then(|version| version.split(['.', '~']).next()?.parse().ok());
    version.ok_or_else(|| format!("{} has no systemd: {output:?}", root.display()))
}

/// `make install`, as for a package, of the programs that the tests were built with.
pub fn install(layer: &Path, systemd: u32) {
    if layer.exists() {
        fs::remove_dir_all(layer).expect("an old installation can be removed");
    }
    fs::create_dir_all(layer).expect("the tests' directory can be written to");
    make("install PREFIX=/usr", layer, systemd);
}

/// `make` with these words, for another root than that of this machine and the systemd there.
pub fn make(words: &str, destination: &Path, systemd: u32) {
    let program = program("echoed");
    let programs = Path::new(&program).parent().expect("programs are in a directory");
    let made = Command::new("make")
        .arg("--silent")
        .args(words.split_whitespace())
        .arg(format!("SYSTEMD_VERSION={systemd}"))
        .arg(format!("DESTDIR={}", destination.display()))
        .arg(format!("BUILDDIR={}", programs.display()))
        .current_dir(ROOT)
        .output()
        .expect("make can be started");
    assert!(made.status.success(), "make {words}: {}", String::from_utf8_lossy(&made.stderr));
}
