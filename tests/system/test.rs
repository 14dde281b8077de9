//! How the files of tests list what is in them.

use crate::machine::Machine;

/// A test, for each Debian that can do it.
pub struct Test {
    pub name: &'static str,
    /// The oldest systemd that can do it.
    pub since: u32,
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
}

/// Tests that are called as their functions are.
macro_rules! tests {
    ($($name:ident $(since $version:literal)?),+ $(,)?) => {
        /// The tests of this file.
        pub const TESTS: &[$crate::test::Test] = &[$($crate::test::Test::new(stringify!($name), $name)$(.since($version))?),+];
    };
}
