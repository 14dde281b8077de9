//! docs/operations.md followed with the package on a clean Debian 13: it is installed and purged as the table of
//! package managers says, and the documents that are there then work as they are. (tests/system does it from the
//! sources.)

use std::fs;
use std::path::Path;

use libtest_mimic::Failed;

use crate::staging::find_package;
use common::machines::clean_root::{CleanDebian, find_remains};
use common::machines::doc_skips;
use common::machines::machine::Machine;
use common::machines::page_runner::{PageRunner, Skips};
use common::machines::rootfs::Debian;
use common::machines::test::Test;

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const README: &str = include_str!("../../README.md");
/// Where the administrator has the package.
const HOME: &str = "/home/admin";

/// What is tested.
pub static TEST: Test = Test::new(
    "the_documents_work_with_the_package_on_a_clean_debian",
    the_documents_work_with_the_package_on_a_clean_debian,
);

/// Runs the test on a clean Debian, which the debootstrap of this one makes.
pub fn run(debian: &Debian) -> Result<(), Failed> {
    CleanDebian::make(Path::new(crate::DIRECTORY), debian, &[README, OPERATIONS])?.run(&TEST, |home| {
        let package = find_package("deb").expect("ECHOED_PACKAGES has the package for Debian");
        let name = package.file_name().expect("it is a file");
        fs::copy(&package, Path::new(home).join(name)).expect("it can be copied");
    })
}

fn the_documents_work_with_the_package_on_a_clean_debian(machine: &Machine) {
    let new_runner = |page, skips| PageRunner::as_admin(machine, HOME, page, skips);
    let run_cell = |row: &str| {
        let cell = table_cell(OPERATIONS, "Packages", row, "Debian 13, sid");
        let command = cell.split('`').nth(1).unwrap_or_else(|| panic!("there is no command for \"{row}\": {cell}"));
        let ended = new_runner("operations.md", &[]).run(command);
        assert_eq!(ended.code, Some(0), "{command}: {}", ended.output);
    };
    run_cell("install");
    const PAGES: [(&str, &[Skips]); 2] = [
        ("README.md", &[doc_skips::README, doc_skips::BUILT, doc_skips::PACKAGED]),
        (
            "operations.md",
            &[doc_skips::OPERATIONS, doc_skips::BUILT, doc_skips::PACKAGED, doc_skips::PACKAGED_OPERATIONS],
        ),
    ];
    for (page, skips) in PAGES {
        let text = machine.sh(&format!("cat /usr/share/doc/echoed/{page}"));
        new_runner(page, skips).run_page(&text);
    }
    run_cell("remove");
    run_cell("remove, with the settings");
    assert_eq!(find_remains(machine), "");
}

/// What a table says below a heading, in the row that begins with `row` and in the column of this name.
fn table_cell<'a>(page: &'a str, heading: &str, row: &str, column: &str) -> &'a str {
    let cells = |line: &'a str| line.trim_matches('|').split(" | ").map(str::trim);
    let mut lines = page.lines().skip_while(|line| line.strip_prefix("## ") != Some(heading));
    let head = lines.find(|line| line.starts_with('|')).unwrap_or_else(|| panic!("{heading} has no table"));
    let at = cells(head).position(|cell| cell == column).unwrap_or_else(|| panic!("{column} is not in {head}"));
    let mut rows = lines.take_while(|line| line.starts_with('|'));
    let found = rows.find_map(|line| (cells(line).next() == Some(row)).then(|| cells(line).nth(at))).flatten();
    found.unwrap_or_else(|| panic!("{heading} has no row {row} with {column}"))
}
