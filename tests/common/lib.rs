//! What the test programs share: the daemon as a child ([`Daemon`]), a client of it ([`Peer`]), a fake service manager
//! ([`service_manager`]), a fake journald ([`fake_journald`]) and booted machines ([`machines`]).
//!
//! A package of its own, which is not published: so it is compiled once for all test programs, and each uses its part of it.
//!
//! Nothing here waits for a fixed time: it waits for the event, under a generous ceiling. When a test fails, they print
//! what they know: command, log and status; the bytes of both sides.

pub mod catalog;
pub mod daemon;
pub mod descriptors;
pub mod echoctl;
pub mod fake_journald;
pub mod hang;
pub mod kernel;
pub mod machines;
pub mod network;
pub mod packets;
pub mod peer;
pub mod random;
pub mod service;
pub mod service_manager;
pub mod strace;

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use daemon::Daemon;
pub use peer::Peer;
pub use random::Random;
pub use service_manager::ServiceManager;

/// How long anything may take that should happen at once. Only reached when something is broken.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The root of the repository.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Returns the path of `echoed` or `echoctl`, as cargo built it for the tests.
///
/// # Panics
/// Panics if it is not built.
pub fn program(name: &str) -> String {
    // Cargo 1.94 and newer name it; with older ones it is always in the directory above that of the test programs.
    let named = env::var_os(format!("CARGO_BIN_EXE_{name}")).map(PathBuf::from);
    let path = named.unwrap_or_else(|| {
        let tests = env::current_exe().expect("/proc is mounted");
        tests.ancestors().nth(2).expect("tests are built below the programs").join(name)
    });
    assert!(path.exists(), "cargo has not built {}", path.display());
    path.into_os_string().into_string().expect("the path is UTF-8")
}

/// The path of a program, if it is installed.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// The programs that tests run, with their packages: `make test` says which packages are missing.
const PROGRAMS: &str = include_str!("../programs.txt");

/// Returns the path of a program. If it is not installed, reports that the calling test is skipped.
///
/// # Panics
/// Panics if tests/programs.txt does not have it.
pub fn program_or_skip(name: &str) -> Option<PathBuf> {
    let is_listed = PROGRAMS.lines().any(|line| line.split(' ').next() == Some(name));
    assert!(is_listed, "{name} is not in tests/programs.txt: add it there, with its package of Debian");
    let found = find_program(name);
    if found.is_none() {
        skip_test(&format!("{name} is not installed"));
    }
    found
}

/// Returns a Python that has this module: the first one in `PATH`, or else that of the distribution. If there is none, reports
/// that the calling test is skipped; `package` is Debian's package with the module.
///
/// # Panics
/// Panics if tests/programs.txt does not have the package.
pub fn python_with_or_skip(module: &str, package: &str) -> Option<PathBuf> {
    let is_listed = PROGRAMS.lines().any(|line| line == format!("{package} {package}"));
    assert!(is_listed, "{package} is not in tests/programs.txt: add it there");
    let python = program_or_skip("python3")?;
    let has_module = |python: &PathBuf| {
        let mut import = Command::new(python);
        import.args(["-c", &format!("import {module}")]).stderr(Stdio::null());
        import.status().is_ok_and(|status| status.success())
    };
    let found = [python, PathBuf::from("/usr/bin/python3")].into_iter().find(has_module);
    if found.is_none() {
        skip_test(&format!("{package} is not installed"));
    }
    found
}

/// Reports that the calling test is skipped, and why: on stderr, and in the file that `make test` shows at its end.
/// With `make test REQUIRE=all`, the test fails instead.
pub fn skip_test(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(env::var_os("ECHOED_TEST_REQUIRE").is_none_or(|all| all != "all"), "{test} is demanded, but {reason}");
    eprintln!("left out: {test}: {reason}");
    if let Some(list) = env::var_os("ECHOED_TEST_SKIPPED") {
        let mut list = OpenOptions::new().append(true).create(true).open(list).expect("the list can be opened");
        writeln!(list, "{test}: {reason}").expect("the list can be written");
    }
}

/// Now.
#[expect(clippy::disallowed_methods, reason = "these tests watch real time")]
pub fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Polls until `condition` holds.
pub fn wait_until(description: &str, mut condition: impl FnMut() -> bool) {
    let until = now() + TEST_TIMEOUT;
    while !condition() {
        assert!(now() < until, "not so after {TEST_TIMEOUT:?}: {description}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Raises the limit on descriptors of this process, and of those that it starts, to at least this number. If that is
/// not possible, reports that the calling test is skipped, and returns false.
pub fn ensure_nofile_limit(descriptors: u64) -> bool {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= descriptors) {
        return true;
    }
    if maximum.is_some_and(|maximum| maximum < descriptors) {
        skip_test(&format!("only {maximum:?} descriptors may be opened, not {descriptors}"));
        return false;
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors), maximum }).expect("the limit can be raised");
    true
}

/// Does something at the end of a scope, also when it ends with a panic.
pub struct OnDrop<F: Fn()>(pub F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
