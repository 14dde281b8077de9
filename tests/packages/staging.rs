//! The packages, as they come to a machine: in /root/packages.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where they are on a machine, with all that is needed to try them out.
pub const STAGING_DIR: &str = "/root/packages";

/// Copies the packages to [`STAGING_DIR`] of a machine, with an older version of the one for Debian: it has the same
/// programs, and other settings in /etc.
pub fn stage(layer: &Path) {
    if layer.exists() {
        fs::remove_dir_all(layer).expect("an old staging directory can be removed");
    }
    let staging = layer.join(STAGING_DIR.trim_start_matches('/'));
    fs::create_dir_all(&staging).expect("the tests' directory can be written to");
    // The packages that were built: a run of one suite needs no other.
    let copy_package = |kind: &str, to: &str| {
        let found = find_package(kind);
        if let Some(from) = &found {
            fs::copy(from, staging.join(to)).expect("it can be copied");
        }
        found
    };
    let deb = copy_package("deb", "echoed.deb");
    copy_package("rpm", "echoed.rpm");
    copy_package("arch", "echoed.pkg.tar.zst");
    sh(&format!("cp -r '{}/packaging' '{}'", env!("CARGO_MANIFEST_DIR"), staging.display()));
    sh(&format!("cp -r '{}/systemd' '{}'", env!("CARGO_MANIFEST_DIR"), staging.display()));
    let Some(deb) = deb else { return };
    let older = staging.join("older");
    sh(&format!(
        "umask 022
         dpkg-deb --raw-extract '{deb}' '{older}'
         sed -i 's/^Version: .*/Version: 0.0.1-1/' '{older}/DEBIAN/control'
         echo '# As it was then.' >>'{older}/etc/echoed/echoed.toml'
         dpkg-deb --root-owner-group --build -Zgzip '{older}' '{older}.deb'
         rm -r '{older}'",
        deb = deb.display(),
        older = older.display(),
    ));
}

/// The package of a kind (deb, rpm, arch), if it is built.
pub fn find_package(kind: &str) -> Option<PathBuf> {
    let built = env::var_os("ECHOED_PACKAGES").map(PathBuf::from);
    let built = built.expect("ECHOED_PACKAGES says where the packages are: run make test-packages");
    find_only(&built.join(kind), |name| {
        let is_other =
            ["dbgsym", "debuginfo", "debugsource", "debug-", ".src."].iter().any(|other| name.contains(other));
        name.starts_with("echoed")
            && [".deb", ".rpm", ".pkg.tar.zst"].iter().any(|end| name.ends_with(end))
            && !is_other
    })
}

/// The only file of a directory that is called so, if there is the directory.
fn find_only(directory: &Path, matches: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let paths = fs::read_dir(directory).ok()?.map(|entry| entry.expect("it can be listed").path());
    let mut found: Vec<_> =
        paths.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&matches)).collect();
    assert_eq!(found.len(), 1, "{}: {found:?}", directory.display());
    found.pop()
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh can be started");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
