//! How tarballs are made: the same bytes each time, and never a half one under the name of a whole one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::{python_or_skip, run};
use common::{find_program, program_or_skip, skip_test};

const TARBALL: &str = concat!("echoed-", env!("CARGO_PKG_VERSION"), ".tar.gz");
const VENDOR_TARBALL: &str = concat!("echoed-", env!("CARGO_PKG_VERSION"), "-vendor.tar.xz");

/// Returns a command that is not part of a `make test` that this may run under.
fn make(make: &Path) -> Command {
    let mut command = Command::new(make);
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
        command.env_remove(variable);
    }
    command
}

/// Makes a directory for `PATH` that has these programs, as far as they are installed.
fn path_with(programs: &[&str]) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory can be made");
    for program in programs {
        if let Some(path) = find_program(program) {
            symlink(path, directory.path().join(program)).expect("a link can be made");
        }
    }
    directory
}

/// Puts a program there that writes something, and fails.
fn add_failing(directory: &Path, program: &str) {
    let path = directory.join(program);
    fs::write(&path, "#!/bin/sh\necho half\nexit 3\n").expect("a program can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Returns what is in a directory, hidden files too.
fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .map(|entries| entries.map(|entry| entry.expect("it can be listed").path()).collect())
        .unwrap_or_default()
}

#[test]
fn the_source_tarball_has_the_sources_and_is_the_same_each_time() {
    let (Some(program), Some(git), Some(tar)) =
        (program_or_skip("make"), program_or_skip("git"), program_or_skip("tar"))
    else {
        return;
    };
    if !is_in_git(&git) {
        return skip_test("these sources are not in git");
    }
    let directory = tempfile::tempdir().unwrap();
    let tarballs = ["a", "b"].map(|name| {
        let target_dir = directory.path().join(name);
        let umask = if name == "a" { "022" } else { "077" };
        let mut command = make(Path::new("sh"));
        command.args(["-c", &format!("umask {umask} && exec \"$@\""), "sh"]).arg(&program);
        command.args(["-s", "dist"]).arg(format!("DISTDIR={}", target_dir.display()));
        command.env("TZ", if name == "a" { "UTC" } else { "Pacific/Kiritimati" });
        let made = run(&mut command);
        assert!(made.status.success(), "{}", text(&made));
        assert_eq!(files(&target_dir), [target_dir.join(TARBALL)]);
        target_dir.join(TARBALL)
    });
    assert!(fs::read(&tarballs[0]).unwrap() == fs::read(&tarballs[1]).unwrap(), "two tarballs of one commit differ");
    let listed = run(Command::new(tar).arg("-tf").arg(&tarballs[0]));
    let listed = String::from_utf8(listed.stdout).unwrap();
    for file in ["Cargo.lock", "Makefile", "src/lib.rs", "systemd/echoed.socket", "tests/run"] {
        assert!(listed.contains(&format!("{}/{file}\n", concat!("echoed-", env!("CARGO_PKG_VERSION")))), "{file}");
    }
    assert!(!listed.contains("/target/") && !listed.contains("/.ci/"), "{listed}");
}

fn is_in_git(git: &Path) -> bool {
    run(Command::new(git).args(["rev-parse", "--verify", "--quiet", "HEAD"])).status.success()
}

#[test]
fn a_source_tarball_that_cannot_be_compressed_is_not_left_half() {
    let (Some(program), Some(git)) = (program_or_skip("make"), program_or_skip("git")) else { return };
    if !is_in_git(&git) {
        return skip_test("these sources are not in git");
    }
    let path = path_with(&["git", "sh", "sed", "mkdir", "mv", "rm", "head", "tr"]);
    add_failing(path.path(), "gzip");
    let dist = tempfile::tempdir().unwrap();
    let made = run(make(&program)
        .args(["-s", "dist"])
        .arg(format!("DISTDIR={}", dist.path().display()))
        .env("PATH", path.path()));
    assert!(!made.status.success(), "{}", text(&made));
    assert!(files(dist.path()).is_empty(), "{:?} {}", files(dist.path()), text(&made));
}

#[test]
fn make_vendor_names_a_missing_program_before_it_does_anything() {
    let (Some(program), Some(python)) = (program_or_skip("make"), python_or_skip()) else { return };
    for (missing, others) in [("xz", &["python3", "tar"][..]), ("tar", &["python3", "xz"]), ("python3", &["tar", "xz"])]
    {
        let path = path_with(&["sh", "sed", "mkdir", "head", "tr"]);
        for other in others {
            // Those are only there to be found.
            match *other {
                "python3" => symlink(&python, path.path().join(other)).unwrap(),
                _ => add_failing(path.path(), other),
            }
        }
        let dist = tempfile::tempdir().unwrap();
        let made = run(make(&program)
            .args(["-s", "vendor"])
            .arg(format!("DISTDIR={}", dist.path().display()))
            // It is not to be asked for anything.
            .env("CARGO", "/bin/false")
            .env("PATH", path.path()));
        let said = text(&made);
        assert!(!made.status.success(), "{missing}: {said}");
        assert!(said.contains(&format!("make vendor takes {missing}")), "{missing}: {said}");
        assert!(!said.contains("Traceback"), "{missing}: {said}");
        assert!(files(dist.path()).is_empty(), "{missing}: {:?}", files(dist.path()));
    }
}

#[test]
fn a_tarball_of_crates_that_cannot_be_compressed_is_not_left_half() {
    let (Some(python), Some(_)) = (python_or_skip(), program_or_skip("tar")) else { return };
    let path = path_with(&["tar", "sh"]);
    add_failing(path.path(), "xz");
    let directory = tempfile::tempdir().unwrap();
    // More than a pipe takes, so that tar is ended as well.
    fs::create_dir_all(directory.path().join("vendor")).unwrap();
    fs::write(directory.path().join("vendor/large"), vec![0; 1 << 20]).unwrap();
    let dist = directory.path().join("dist");
    let made = run(crates_py(&python, "crates.pack(sys.argv[1], 'vendor', Path(sys.argv[2]))")
        .arg(directory.path())
        .arg(dist.join(VENDOR_TARBALL))
        .env("PATH", path.path()));
    let said = text(&made);
    assert!(!made.status.success() && said.contains("xz failed (status 3)"), "{said}");
    assert!(files(&dist).is_empty(), "{:?}", files(&dist));
}

/// Returns a command that runs a statement of Python with the functions of crates.py.
fn crates_py(python: &Path, statement: &str) -> Command {
    let mut command = Command::new(python);
    let imports = "import sys; sys.path.insert(0, 'packaging'); sys.dont_write_bytecode = True; import crates; from pathlib import Path";
    command.args(["-c", &format!("{imports}; {statement}")]);
    command
}

/// Reviewers look for the sources of what tools have generated, and crates do not have them.
#[test]
fn vendored_crates_are_without_tests_and_generated_files() {
    let Some(python) = python_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let pruned = ["tests/a.rs", "benches/b.rs", "examples/c/d.rs", "Cargo.toml.orig", "tarpaulin-report.html"];
    let kept = ["src/lib.rs", "src/tests/mod.rs", "LICENSE-MIT", "README.md", "fuzz/included.rs"];
    for file in pruned.iter().chain(&kept) {
        fs::create_dir_all(root.join(file).parent().expect("it is in a directory")).unwrap();
        fs::write(root.join(file), "").unwrap();
    }
    fs::write(root.join("src/lib.rs"), "#![doc = include_str!(\"../fuzz/included.rs\")]").unwrap();
    let sums: Vec<_> = pruned.iter().chain(&kept).map(|file| format!("\"{file}\":\"00\"")).collect();
    let listing = root.join(".cargo-checksum.json");
    fs::write(&listing, format!("{{\"files\":{{{}}},\"package\":\"11\"}}", sums.join(","))).unwrap();
    let ended = run(crates_py(&python, "crates.prune(Path(sys.argv[1]))").arg(root));
    assert!(ended.status.success(), "{}", text(&ended));
    let listing = fs::read_to_string(listing).unwrap();
    for file in pruned {
        assert!(!root.join(file).exists() && !listing.contains(&format!("\"{file}\"")), "{file}: {listing}");
    }
    for file in kept {
        assert!(root.join(file).exists() && listing.contains(&format!("\"{file}\"")), "{file}: {listing}");
    }
    assert!(listing.contains("\"package\": \"11\""), "{listing}");
}
