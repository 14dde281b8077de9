//! The script that packages are built by, on Debians whose debootstrap puts less and less into a root for builds.

use std::path::Path;
use std::process::Command;

use crate::rootfs::Debian;

/// `packaging/build` makes its Debian with the debootstrap of this one, and works in it as a user without rights.
pub fn the_build_script_makes_its_debian_with_the_debootstrap_of(debian: &Debian) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ended = Command::new("sh")
        .arg(sources.join("tests/packages/debootstrap.sh"))
        .arg(&debian.installed().root)
        .arg(sources)
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("debootstrap").join(debian.name))
        .output()
        .expect("sh can be started");
    let output = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert!(ended.status.success(), "{}: {output}", debian.name);
    assert!(output.contains("\nbuilder\ncargo 1."), "{}: {output}", debian.name);
}
