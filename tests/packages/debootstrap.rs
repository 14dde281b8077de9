//! The script that packages are built by, on Debians whose debootstrap puts less and less into a root for builds.

use std::fs;
use std::path::Path;
use std::process::Command;

use common::machines::in_debian::{GET_DEBOOTSTRAP, run_in_debian};
use common::machines::rootfs::Debian;

/// `packaging/build` makes its Debian with the debootstrap of this one, and works in it as a user without rights.
pub fn the_build_script_makes_its_debian_with_the_debootstrap_of(debian: &Debian) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debootstrap").join(debian.name);
    let remove = || {
        if directory.exists() {
            fs::remove_dir_all(&directory).expect("what the test made can be removed");
        }
    };
    remove();
    let kept = directory.join("kept");
    fs::create_dir_all(&kept).expect("the tests' directory can be written to");
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let copied = Command::new("cp").arg("-r").args([&packaging, &kept]).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} cannot be copied", packaging.display());
    let script = format!(
        "{GET_DEBOOTSTRAP}\nget_debootstrap iproute2\nmkdir /srv/kept/dist\n\
         ECHOED_TEST_ROOTS=/srv/kept /srv/kept/packaging/build nothing /srv/kept/dist"
    );
    let ended = run_in_debian(&debian.installed().root, &directory, &script);
    remove();
    let output = ended.unwrap_or_else(|output| panic!("{}: {output}", debian.name));
    assert!(output.contains("\nbuilder\ncargo 1."), "{}: {output}", debian.name);
}
