//! How the files of tests list what is in them, and how each of it is run.

use std::panic::{self, AssertUnwindSafe};
use std::thread;

use libtest_mimic::Failed;

use crate::machines::machine::Machine;
use crate::machines::rootfs::Debian;

/// A test, for each Debian that can do it.
pub struct Test {
    /// The name, after that of the Debian and of the file.
    pub name: &'static str,
    /// The oldest systemd that can do it.
    pub since: u32,
    /// What is run, and panics if the test fails.
    pub run: fn(&Machine),
}

impl Test {
    /// A test for every systemd.
    pub const fn new(name: &'static str, run: fn(&Machine)) -> Self {
        Self { name, since: 0, run }
    }

    /// It, for a systemd of at least this version.
    pub const fn since(self, version: u32) -> Self {
        Self { since: version, ..self }
    }

    /// Runs it on a machine of its own, in a thread of its own: that one moves into the machine's network.
    pub fn run_on(&'static self, debian: &'static Debian) -> Result<(), Failed> {
        let run_on_machine = move || {
            let machine = Machine::boot(debian);
            let result = panic::catch_unwind(AssertUnwindSafe(|| (self.run)(&machine)));
            result.map_err(|_| machine.report())
        };
        match thread::spawn(run_on_machine).join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(report)) => Err(report.into()),
            Err(_) => Err("the machine did not boot".into()),
        }
    }
}

/// Tests that are called as their functions are.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(since $version:literal)?),+ $(,)?) => {
        /// The tests of this file.
        pub const TESTS: &[$crate::machines::test::Test] = &[$($crate::machines::test::Test::new(stringify!($name), $name)$(.since($version))?),+];
    };
}
