//! Every command of the pages for administrators is run, and does what they say.

use common::machines::doc_skips;
use common::machines::machine::Machine;
use common::machines::page_runner::{PageRunner, run_installed_pages};
use common::machines::rootfs::make;

tests![
    every_command_in_operations_md_works_as_documented,
    every_command_in_configuration_md_works_as_documented,
    every_command_in_the_readme_works_as_documented,
    the_installed_documents_work_where_they_are_installed_below_usr since 257,
];

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const SETTINGS: &str = include_str!("../../docs/configuration.md");
const README: &str = include_str!("../../README.md");

fn every_command_in_operations_md_works_as_documented(machine: &Machine) {
    PageRunner::on_new_machine(
        machine,
        "docs/operations.md",
        &[doc_skips::OPERATIONS, doc_skips::BUILT, doc_skips::PREPARED],
    )
    .run_page(OPERATIONS);
    // It ends with the uninstallation.
    let left = machine.sh("find /usr/local /etc /run /var -xdev -name '*echo[ed]*' -not -path '/var/log/*'");
    assert_eq!(left, "/run/echoed\n");
}

fn every_command_in_configuration_md_works_as_documented(machine: &Machine) {
    let mut runner = PageRunner::on_new_machine(machine, "docs/configuration.md", &[doc_skips::SETTINGS]);
    make("install", &machine.path("/"), machine.version());
    runner.reset();
    runner.run_page(SETTINGS);
}

fn every_command_in_the_readme_works_as_documented(machine: &Machine) {
    PageRunner::on_new_machine(machine, "README.md", &[doc_skips::README, doc_skips::BUILT, doc_skips::PREPARED])
        .run_page(README);
}

/// As packages install them. (tests/packages does it with packages.)
fn the_installed_documents_work_where_they_are_installed_below_usr(machine: &Machine) {
    run_installed_pages(machine);
}
