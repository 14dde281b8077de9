//! What only a real systemd can show: each test has a machine of its own, booted for it in a container, on each
//! of several Debians. `machine.sh` tells how, `Machine` what a test can do with it.
//!
//! It takes root, systemd-nspawn and, for the first time, debootstrap and a Debian mirror; the root file systems are kept in
//! /var/cache/echoed-tests (or in `$ECHOED_TEST_ROOTS`). (`doc_clean` makes one anew each time.) One test on one Debian:
//! `cargo test --test system debian13::lifecycle::a_reload_applies`.

#![allow(unreachable_pub, reason = "what is for other files is pub")]

#[macro_use(tests)]
extern crate common;

mod cleanup;
mod control;
mod doc_clean;
mod doc_commands;
mod doc_recording;
mod doc_tables;
mod examples;
mod failure;
mod handover;
mod idle_exit;
mod instances;
mod journal;
mod lifecycle;
mod restart;
mod sandbox;
mod sandbox_allowed;
mod sockets;
mod user_manager;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use common::machines::rootfs::DEBIANS;
use common::machines::test::Test;

/// Where what is put on machines is made.
const DIRECTORY: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/system");

/// The files of tests, by their names.
const FILES: &[(&str, &[Test])] = &[
    ("cleanup", cleanup::TESTS),
    ("control", control::TESTS),
    ("handover", handover::TESTS),
    ("handover::shutdown", handover::shutdown::TESTS),
    ("handover::load", handover::load::TESTS),
    ("handover::store_contents", handover::store_contents::TESTS),
    ("examples", examples::TESTS),
    ("failure", failure::TESTS),
    ("idle_exit", idle_exit::TESTS),
    ("instances", instances::TESTS),
    ("user_manager", user_manager::TESTS),
    ("sandbox_allowed", sandbox_allowed::TESTS),
    ("journal", journal::TESTS),
    ("journal::catalog", journal::catalog::TESTS),
    ("journal::rate_limit", journal::rate_limit::TESTS),
    ("journal::hostile", journal::hostile::TESTS),
    ("journal::journald", journal::journald::TESTS),
    ("lifecycle", lifecycle::TESTS),
    ("doc_commands", doc_commands::TESTS),
    ("doc_recording", doc_recording::TESTS),
    ("restart", restart::TESTS),
    ("sandbox", sandbox::TESTS),
    ("sockets", sockets::TESTS),
    ("doc_tables", doc_tables::TESTS),
];

fn main() -> ExitCode {
    if handover::forger::is_requested() {
        handover::forger::run();
    }
    let arguments = Arguments::from_args();
    if !arguments.list {
        for debian in &DEBIANS {
            if let Err(reason) = can_run().and_then(|()| debian.prepare(Path::new(DIRECTORY), install)) {
                common::skip_test(&format!("the tests on booted machines: {reason}"));
                return ExitCode::SUCCESS;
            }
        }
    }
    let mut trials = Vec::new();
    for debian in &DEBIANS {
        for (file, tests) in FILES.iter().filter(|(file, _)| is_in_part(file)) {
            for test in *tests {
                let is_supported = arguments.list || debian.installed().systemd >= test.since;
                if is_supported {
                    let name = format!("{}::{file}::{}", debian.name, test.name);
                    trials.push(Trial::test(name, || test.run_on(debian)));
                }
            }
        }
    }
    if is_in_part("doc_clean") {
        trials.push(doc_clean::trial(&DEBIANS[1]));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Returns whether a file of tests is in the part that `ECHOED_TEST_SYSTEM` names; without it, each is.
fn is_in_part(file: &str) -> bool {
    let part = match file {
        _ if file.starts_with("journal") => "journal",
        _ if file.starts_with("doc_") => "documents",
        _ => "rest",
    };
    match env::var("ECHOED_TEST_SYSTEM").as_deref() {
        Ok(wanted) => wanted == part,
        _ => true,
    }
}

/// Puts echoed on a machine, unless there are machines on it already.
fn install(layer: &Path, systemd: u32) {
    if !cleanup::is_inner() {
        common::machines::rootfs::install(layer, systemd);
    }
}

/// Whether machines can be booted here, or else why not.
fn can_run() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("they need root".to_owned());
    }
    for name in ["systemd-nspawn", "unshare", "setpriv", "nsenter", "make"] {
        if common::find_program(name).is_none() {
            return Err(format!("{name} is not installed"));
        }
    }
    Ok(())
}
