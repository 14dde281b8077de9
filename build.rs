//! How the programs are linked, so that a start is short and little is resident.
//!
//! libgcc's unwinder is linked statically, so that the dynamic linker has one library less to load at each start.
//! Rust links its standard library with libgcc_s.so. In a directory that is searched first, there is a linker script of that name
//! that takes the static library instead, as `cc -static-libgcc` does.
//!
//! Relocations are packed (`-z pack-relative-relocs`, ld(1)), where glibc can read them: they would take 57 KiB.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

const SCRIPT: &str = "GROUP ( -lgcc_eh -lgcc -lc )\n";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|found| found.split(',').any(|one| one == value));
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    if glibc_reads_packed_relocations() {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let Some(directory) = env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    // A static program has no library to load. Without the script, the programs are linked as usual.
    let is_static = is("CARGO_CFG_TARGET_FEATURE", "crt-static");
    if !is_static && find("libgcc_eh.a").is_some() && fs::write(directory.join("libgcc_s.so"), SCRIPT).is_ok() {
        println!("cargo:rustc-link-search=native={}", directory.display());
    }
}

/// Returns whether glibc is 2.36 or later: it says so with a version of its own, which programs then demand.
fn glibc_reads_packed_relocations() -> bool {
    const VERSION: &[u8] = b"GLIBC_ABI_DT_RELR";
    let glibc = find("libc.so.6").and_then(|path| fs::read(path).ok()).unwrap_or_default();
    glibc.windows(VERSION.len()).any(|bytes| bytes == VERSION)
}

/// Returns where the linker finds a library. GCC has static ones of its own, other compilers may not.
fn find(library: &str) -> Option<PathBuf> {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let found = Command::new(linker).arg(format!("-print-file-name={library}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    // A name without a directory is the answer of a compiler that does not find it.
    path.is_absolute().then_some(path)
}
