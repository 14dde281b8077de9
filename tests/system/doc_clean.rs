//! README.md and docs/operations.md, followed from the sources on a clean Debian 13: what they say is built and
//! installed, and the documents that are there then work as they are. (tests/packages does it with the package.)

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use common::machines::clean_root::{CleanDebian, find_remains};
use common::machines::doc_skips;
use common::machines::machine::Machine;
use common::machines::page_runner::PageRunner;
use common::machines::rootfs::Debian;
use common::machines::test::Test;
use common::{find_program, skip_test};

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const README: &str = include_str!("../../README.md");
const SOURCES: &str = "/home/admin/echoed";

/// What "make vendor" makes.
const CRATES: &str = concat!("echoed-", env!("CARGO_PKG_VERSION"), "-vendor.tar.xz");

static TEST: Test = Test::new(
    "the_documents_work_from_the_sources_on_a_clean_debian",
    the_documents_work_from_the_sources_on_a_clean_debian,
);

/// The test, on the Debian 13 that the other tests have.
pub fn trial(debian: &'static Debian) -> Trial {
    Trial::test(format!("{}::doc_clean::{}", debian.name, TEST.name), || {
        for program in ["python3", "tar", "xz"] {
            if find_program(program).is_none() {
                skip_test(&format!("{program} is not installed"));
                return Ok(());
            }
        }
        match CleanDebian::make(Path::new(crate::DIRECTORY), debian, &[README, OPERATIONS]) {
            Ok(clean) => clean.run(&TEST, copy_sources),
            Err(reason) => {
                skip_test(&format!("a Debian cannot be made: {}", reason.lines().last().unwrap_or_default()));
                Ok(())
            }
        }
    })
}

fn the_documents_work_from_the_sources_on_a_clean_debian(machine: &Machine) {
    let new_runner = |page, skips| PageRunner::as_admin(machine, SOURCES, page, skips);
    new_runner("README.md", &[doc_skips::README]).run_section(README, "Install");
    for (page, skips) in [("README.md", &[doc_skips::README]), ("operations.md", &[doc_skips::OPERATIONS])] {
        let text = machine.sh(&format!("cat /usr/local/share/doc/echoed/{page}"));
        new_runner(page, skips).run_page(&text);
    }
    // It ends with the uninstallation.
    assert_eq!(find_remains(machine), "/run/echoed\n");
}

/// Copies the sources to the administrator, with the crates beside them: there is no network.
fn copy_sources(home: &Path) {
    let script = r#"
        mkdir "$home/echoed"
        tar --exclude=./.git --exclude=./target --exclude=./fuzz/target --create . | tar --directory="$home/echoed" --extract
        make --silent vendor DISTDIR="${crates%/*}"
        cd "$home/echoed"
        tar --extract --file="$crates"
        cat vendor/config.toml >>.cargo/config.toml
    "#;
    let copied = Command::new("sh")
        .args(["-euc", script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("home", home)
        // Where tests/run builds the packages, which take the same tarball.
        .env("crates", Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tried").join(CRATES))
        .output()
        .expect("sh can be started");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}
