//! The catalog: journalctl takes it, and it can only quote what entries have.

mod common;

use std::fs;
use std::process::Command;

use common::program_or_skip;
use echoed::protocol::packet::DROP_NAMES;

const CATALOG: &str = include_str!("../systemd/catalog/echoed.catalog");

/// The fields that an explanation may quote.
const FIELDS: [&str; 8] = ["LISTENER", "PEER", "CONNECTION", "VERDICT", "REASON", "BYTES_IN", "BYTES_OUT", "MESSAGES"];

/// Each explanation: its MESSAGE_ID, its headers, its text.
fn catalog_entries() -> Vec<(&'static str, Vec<&'static str>, &'static str)> {
    let (_, all) = CATALOG.split_once("\n-- ").expect("there is one");
    let parts = all.split("\n-- ").map(|part| {
        let (head, text) = part.split_once("\n\n").expect("an empty line ends the headers");
        let mut head = head.lines();
        (head.next().expect("an ID"), head.collect(), text)
    });
    parts.collect()
}

#[test]
fn every_catalog_entry_has_all_headers_and_a_text_that_fits_80_columns() {
    let entries = catalog_entries();
    assert!(entries.len() > 30);
    for (id, head, text) in entries {
        let names: Vec<_> = head.iter().filter_map(|line| line.split_once(": ")).map(|(name, _)| name).collect();
        assert_eq!(names, ["Subject", "Defined-By", "Support"], "{id}");
        assert!(text.split_whitespace().count() >= 15, "{id}: {text}");
        for line in text.lines() {
            assert!(line.len() <= 80, "{id}: too wide for a terminal: {line}");
        }
    }
}

#[test]
fn catalog_entries_refer_only_to_existing_fields() {
    let mut quoted = 0;
    for (id, head, text) in catalog_entries() {
        for line in head.into_iter().chain(text.lines()) {
            let inside = line.split('@').skip(1).step_by(2);
            for name in inside {
                assert!(FIELDS.contains(&name), "{id}: @{name}@");
                quoted += 1;
            }
        }
    }
    assert!(quoted > 20, "{quoted}");
}

#[test]
fn every_cause_of_a_dropped_datagram_is_explained_in_the_catalog_and_in_the_protocol() {
    let protocol = include_str!("../docs/protocol.md");
    let (_, listed) = CATALOG.split_once("is the cause:\n\n").expect("there is a list");
    let (listed, _) = listed.split_once("\n\n").expect("it ends");
    let listed: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(listed, DROP_NAMES);
    let (_, table) = protocol.split_once("| cause | the datagram |\n").expect("there is a table");
    let rows = table.lines().skip(1).map_while(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.collect::<Vec<_>>(), DROP_NAMES);
}

#[test]
fn journalctl_accepts_the_catalog() {
    let Some(journalctl) = program_or_skip("journalctl") else { return };
    let root = tempfile::tempdir().unwrap();
    for directory in ["usr/lib/systemd/catalog", "var/lib/systemd/catalog"] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    fs::write(root.path().join("usr/lib/systemd/catalog/echoed.catalog"), CATALOG).unwrap();
    let run = |what: &str| {
        let mut root_option = std::ffi::OsString::from("--root=");
        root_option.push(root.path());
        let output = Command::new(&journalctl).arg(root_option).arg(what).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(output.status.success() && stderr.is_empty(), "{what}: {stderr}");
        stdout
    };
    run("--update-catalog");
    let listed = run("--list-catalog");
    for (id, head, _) in catalog_entries() {
        let subject = head[0].strip_prefix("Subject: ").unwrap();
        assert!(listed.contains(&format!("{id} echoed: {subject}\n")), "{id}: {listed}");
    }
    assert_eq!(listed.lines().count(), catalog_entries().len());
}
