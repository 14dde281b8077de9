//! The catalog: journalctl takes it, and it can only quote what entries have.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::catalog::catalog_entries;
use common::program_or_skip;
use echoed::protocol::packet::DROP_NAMES;
use echoed::protocol::rules::{Deadlines, TimeSpan};
use echoed::protocol::{Rules, Verdict};

const CATALOG: &str = include_str!("../../systemd/catalog/echoed.catalog");

/// The fields that an explanation may quote.
const FIELDS: [&str; 8] = ["LISTENER", "PEER", "CONNECTION", "VERDICT", "REASON", "BYTES_IN", "BYTES_OUT", "MESSAGES"];

#[test]
fn every_catalog_entry_has_all_headers_a_cause_and_a_cure_that_fit_80_columns() {
    let entries = catalog_entries();
    assert!(entries.len() > 30);
    for entry in entries {
        let names: Vec<_> = entry.headers.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["Subject", "Defined-By", "Support"], "{}", entry.id);
        let (cause, cure) = entry.cause_and_cure();
        let words = cause.iter().flat_map(|paragraph| paragraph.split_whitespace()).count();
        assert!(words >= 8, "{}: the first paragraph is the cause: {cause:?}", entry.id);
        assert!(!cure.is_empty(), "{}: a paragraph after the cause is the cure", entry.id);
        for line in entry.paragraphs.iter().flat_map(|paragraph| paragraph.lines()) {
            assert!(line.len() <= 80, "{}: too wide for a terminal: {line}", entry.id);
        }
    }
}

#[test]
fn catalog_entries_refer_only_to_existing_fields() {
    let mut quoted = 0;
    for entry in catalog_entries() {
        let lines = entry.paragraphs.iter().flat_map(|paragraph| paragraph.lines());
        for line in lines.chain([entry.header("Subject")]) {
            let inside = line.split('@').skip(1).step_by(2);
            for name in inside {
                assert!(FIELDS.contains(&name), "{}: @{name}@", entry.id);
                quoted += 1;
            }
        }
    }
    assert!(quoted > 20, "{quoted}");
}

/// All sources without their comments and tests, with each part of a text that varies as `…`, and without the line breaks within
/// literals.
fn source_texts() -> String {
    let mut sources = String::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("there are sources") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.file_stem().is_some_and(|name| name != "tests") {
                let text = fs::read_to_string(&path).expect("sources are text");
                // Tests repeat the words, which may not be those of the program any longer.
                let program = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
                let code = program.lines().filter(|line| !line.trim_start().starts_with("//"));
                sources.extend(code.flat_map(|line| [line, "\n"]));
            }
        }
    }
    let joined: Vec<_> = sources.split("\\\n").map(str::trim_start).collect();
    let sources = joined.concat().replace("\\\"", "\"").replace("\\n", " ");
    let mut parts = sources.split('{');
    let mut texts = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        texts.push('…');
        texts.push_str(part.split_once('}').filter(|(name, _)| !name.contains('\n')).map_or(part, |(_, after)| after));
    }
    texts
}

/// What an administrator reads in the journal is found in docs/messages.md, which is made of these comments.
#[test]
fn the_words_of_each_catalog_entry_are_those_of_the_program() {
    let sources = source_texts();
    for entry in catalog_entries() {
        assert!(!entry.messages.is_empty(), "{}: a comment before it has its severity and its words", entry.id);
        for (severity, words) in entry.messages {
            let severities = ["error", "warning", "info", "debug", "any"];
            assert!(severities.contains(&severity), "{}: the severity \"{severity}\"", entry.id);
            for part in words.split('…').flat_map(|part| part.split(';')).map(str::trim) {
                // A verdict is in the source by its name alone.
                let verdict = part.strip_prefix("ended: ").and_then(|rest| rest.split(" (").next());
                let part = verdict.unwrap_or(part);
                assert!(
                    sources.contains(part),
                    "{}: no text in src has \"{part}\"; correct the comment \"# {severity}: {words}\" in \
                     systemd/catalog/echoed.catalog, and: make pages",
                    entry.id
                );
            }
        }
    }
}

#[test]
fn every_cause_of_a_dropped_datagram_is_explained_in_the_catalog_and_in_the_protocol() {
    let protocol = include_str!("../../docs/protocol.md");
    let (_, listed) =
        CATALOG.split_once("VERDICT is the cause:\n\n").expect("systemd/catalog/echoed.catalog lists the causes");
    let (listed, _) = listed.split_once("\n\n").expect("it ends");
    let listed: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(listed, DROP_NAMES, "left: systemd/catalog/echoed.catalog, right: src/protocol/packet.rs");
    let (_, table) =
        protocol.split_once("| cause | the datagram |\n").expect("docs/protocol.md has a table of the causes");
    let rows = table.lines().skip(1).map_while(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(
        rows.collect::<Vec<_>>(),
        DROP_NAMES,
        "left: the table of docs/protocol.md, right: src/protocol/packet.rs"
    );
}

#[test]
fn every_verdict_is_on_the_page_of_the_protocol_with_its_final_reply() {
    let page = include_str!("../../docs/protocol.md");
    let (_, rest) = page.split_once("| verdict | text | when |\n").expect("there is a table");
    let (table, rest) = rest.split_once("These verdicts have no final reply: ").expect("the others are below it");
    let (others, _) = rest.split_once("\n\n").expect("it ends");
    // The letters on the page stand for the values of the settings.
    let time = |letter| Some(TimeSpan::new(Duration::ZERO, letter));
    let deadlines = Deadlines { idle: time("D"), read: time("D"), lifetime: time("D"), ..Deadlines::default() };
    let rules = Rules { deadlines, max_message: 0, ..Rules::default() };
    for verdict in Verdict::ALL {
        let hint = format!("docs/protocol.md, \"Being cut off\": the verdict {verdict} and its final reply");
        match verdict.text(&rules) {
            Some(text) => assert!(table.contains(&format!("| `{verdict}` | `{}` |", text.replace('0', "N"))), "{hint}"),
            None => assert!(others.contains(&format!("`{verdict}`")), "{hint}"),
        }
    }
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
    for entry in catalog_entries() {
        let line = format!("{} echoed: {}\n", entry.id, entry.header("Subject"));
        assert!(listed.contains(&line), "{line} is not in {listed}");
    }
    assert_eq!(listed.lines().count(), catalog_entries().len());
    // What is for docs/messages.md is for readers of the file only.
    let explanations = run("--dump-catalog");
    assert!(!explanations.contains("# info") && !explanations.contains("# warning"), "{explanations}");
}
