//! The packages, on booted machines that have never seen echoed: installed, upgraded, downgraded, removed and purged as an
//! administrator does it. `make test-packages` builds them and runs this; `$ECHOED_PACKAGES` says where they are.
//!
//! The machines are those of tests/system, and take what those take. One test: `make test-packages ONLY=debian13::deb::a_downgrade`.

#![allow(unreachable_pub, reason = "what is for other files is pub")]

#[macro_use(tests)]
extern crate common;

mod apparmor;
mod arch;
mod clean;
mod deb;
mod debootstrap;
mod guest;
mod images;
mod lifecycle;
mod piuparts;
mod rpm;
mod snapshot;
mod staging;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use common::machines::rootfs::{DEBIANS, Debian};
use common::machines::test::Test;

/// Where what is put on machines is made.
const DIRECTORY: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/packages");

/// The package managers that are not Debian's, and what tries its packages out.
static TOOLS: Debian = Debian::with_tools(
    "debian13",
    "trixie",
    "rpm pacman-package-manager libarchive-tools zstd autopkgtest dpkg-dev systemd-container squashfs-tools piuparts apparmor \
     linux-image-cloud-amd64",
);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    // Made for Debian 13: older ones have another C library.
    for debian in &DEBIANS[1..] {
        add(&mut trials, debian, "deb", lifecycle::tests::<deb::Dpkg>());
        add(&mut trials, debian, "deb", deb::TESTS);
        let name = "build::the_build_script_makes_its_debian_with_its_own_debootstrap";
        trials.push(Trial::test(format!("{}::{name}", debian.name), move || {
            debootstrap::the_build_script_makes_its_debian_with_the_debootstrap_of(debian);
            Ok(())
        }));
    }
    trials.push(Trial::test(format!("debian13::clean::{}", clean::TEST.name), || clean::run(&DEBIANS[1])));
    add(&mut trials, &TOOLS, "deb", deb::TESTS_WITH_TOOLS);
    add(&mut trials, &TOOLS, "rpm", lifecycle::tests::<rpm::Rpm>());
    add(&mut trials, &TOOLS, "rpm", rpm::TESTS);
    add(&mut trials, &TOOLS, "arch", lifecycle::tests::<arch::Pacman>());
    add(&mut trials, &TOOLS, "arch", arch::TESTS);
    add(&mut trials, &TOOLS, "images", images::TESTS);
    trials.push(Trial::test("debian13::piuparts::piuparts_passes", || {
        piuparts::piuparts_passes(&TOOLS, &DEBIANS[1]);
        Ok(())
    }));
    trials.push(Trial::test("debian13::apparmor::the_profile_allows_what_the_service_needs_and_nothing_else", || {
        apparmor::the_profile_allows_what_the_service_needs_and_nothing_else(&TOOLS);
        Ok(())
    }));
    trials.push(Trial::test("arch::the_pkgbuild_to_publish_has_the_sums_of_the_tarballs", || {
        arch::the_pkgbuild_to_publish_has_the_sums_of_the_tarballs();
        Ok(())
    }));
    if !arguments.list {
        for debian in DEBIANS[1..].iter().chain([&TOOLS]) {
            debian
                .prepare(Path::new(DIRECTORY), |layer, _| staging::stage(layer))
                .unwrap_or_else(|reason| panic!("{reason}"));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn add(trials: &mut Vec<Trial>, debian: &'static Debian, file: &str, tests: &'static [Test]) {
    for test in tests {
        trials.push(Trial::test(format!("{}::{file}::{}", debian.name, test.name), move || test.run_on(debian)));
    }
}
