//! `make STATIC=1`: programs that need no library.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use common::{Daemon, program_or_skip, skip_test};

use crate::alone;

/// Where the programs are built: cargo keeps them, so only the first time takes a minute.
fn target_directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("static")
}

/// Builds static programs as `make STATIC=1` does, but in less time.
fn build() -> Option<PathBuf> {
    if env::var_os("ECHOED_TEST_REQUIRE").is_none_or(|all| all != "all") {
        skip_test("only REQUIRE=all builds static programs");
        return None;
    }
    program_or_skip("make")?;
    let mut make = Command::new("make");
    make.args(["STATIC=1", "all"]).arg(format!("TARGETDIR={}", target_directory().display()));
    make.current_dir(env!("CARGO_MANIFEST_DIR"));
    for (key, value) in [("LTO", "off"), ("OPT_LEVEL", "0"), ("CODEGEN_UNITS", "16")] {
        make.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    // It is a make of its own, also if make runs the tests.
    for inherited in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        make.env_remove(inherited);
    }
    let built = make.stdin(Stdio::null()).status().expect("make can be run");
    assert!(built.success(), "make STATIC=1: {built}");
    let hosts = fs::read_dir(target_directory().join("static")).expect("it was made");
    let programs = hosts.filter_map(|host| Some(host.ok()?.path().join("release/echoed")));
    programs.into_iter().find(|program| program.exists())
}

#[test]
fn a_static_program_needs_no_library_and_serves() {
    let _alone = alone();
    let Some(program) = build() else { return };
    // What the kernel looks at: a program header of the type PT_INTERP (3) names the dynamic linker (elf(5)).
    let elf = fs::read(&program).expect("it can be read");
    let number =
        |at: usize, size: usize| elf[at..at + size].iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte));
    let (headers, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let types: Vec<_> = (0..count).map(|header| number(headers + header * size, 4)).collect();
    assert!(types.contains(&1), "it has something to be loaded: {types:?}");
    assert!(!types.contains(&3), "it names a dynamic linker: {types:?}");

    let mut command = Command::new(&program);
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
    daemon.wait_for_log("listening on");
    daemon.connect().exchange("without a library");
    daemon.stop();
}
