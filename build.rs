//! Links libgcc's unwinder statically, so that the dynamic linker has one library less to load at each start.
//!
//! Rust links its standard library with libgcc_s.so. In a directory that is searched first, there is a linker script of that name
//! that takes the static library instead, as `cc -static-libgcc` does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SCRIPT: &str = "GROUP ( -lgcc_eh -lgcc -lc )\n";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|found| found.split(',').any(|one| one == value));
    let is_static = is("CARGO_CFG_TARGET_FEATURE", "crt-static");
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") || is_static || !has_static_libgcc() {
        return;
    }
    let Some(directory) = env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    // Without the script, the programs are linked as usual.
    if fs::write(directory.join("libgcc_s.so"), SCRIPT).is_ok() {
        println!("cargo:rustc-link-search=native={}", directory.display());
    }
}

/// Returns whether the linker finds the static library: GCC has it, other compilers may not.
fn has_static_libgcc() -> bool {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let found = Command::new(linker).arg("-print-file-name=libgcc_eh.a").output();
    // A name without a directory is the answer of a compiler that does not find it.
    found.is_ok_and(|found| Path::new(String::from_utf8_lossy(&found.stdout).trim()).is_absolute())
}
