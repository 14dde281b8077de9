//! docs/messages.md: every message of the log, with its severity, its cause and its cure, from the catalog of the journal.

use common::catalog::{CatalogEntry, catalog_entries};

const HEAD: &str = "\
<!-- Generated from systemd/catalog/echoed.catalog: do not edit this page (make pages). -->

# Log messages

This page is for administrators. It lists every message of echoed's log, with its cause and its cure. Search for the words of a
message; `…` stands for the parts that vary. A name in capitals, such as `LISTENER`, stands for the field of the entry with this name.

`journalctl -x` prints the same below each entry, with the values of the entry. To see errors and warnings only:
`journalctl -u echoed.service -p warning`. To see all entries of one kind: `journalctl -u echoed.service MESSAGE_ID=…`.
[operations.md](operations.md#read-the-journal) describes the fields of an entry and the log level.
";

/// The severities in the comments of the catalog, and the heading of each.
const SEVERITIES: [(&str, &str); 5] = [
    ("error", "Errors"),
    ("warning", "Warnings"),
    ("info", "Information"),
    ("debug", "Debug"),
    ("any", "Of any severity"),
];

/// How wide the lines of the catalog are.
const WIDTH: usize = 80;

/// The page as it belongs into its file.
pub(crate) fn generate_page() -> String {
    let entries = catalog_entries();
    let mut page = HEAD.to_owned();
    for (severity, heading) in SEVERITIES {
        page.push_str(&format!("\n## {heading}\n"));
        for entry in entries.iter().filter(|entry| entry.messages.iter().any(|(found, _)| *found == severity)) {
            page.push_str(&format_entry(entry));
        }
    }
    page
}

fn format_entry(entry: &CatalogEntry) -> String {
    let words: Vec<_> = entry.messages.iter().map(|(_, words)| *words).collect();
    let (cause, cure) = entry.cause_and_cure();
    format!(
        "\n### {}\n\n```text\n{}\n```\n\n**Cause.** {}\n\n**Cure.** {}\n\n`MESSAGE_ID={}`\n",
        capitalize(&entry.header("Subject").replace("@PEER@", "the client").replace('@', "")),
        words.join("\n"),
        format_paragraphs(cause),
        format_paragraphs(cure),
        entry.id,
    )
}

/// Lists stay as they are; names of fields are code.
fn format_paragraphs(paragraphs: &[&str]) -> String {
    let formatted = paragraphs.iter().map(|paragraph| {
        if paragraph.starts_with(' ') {
            return format!("```text\n{paragraph}\n```");
        }
        let lines: Vec<_> = paragraph.lines().collect();
        let mut text = String::new();
        for (at, line) in lines.iter().enumerate() {
            text.push_str(&name_fields(line));
            if let Some(next) = lines.get(at + 1) {
                let next_word = next.split(' ').next().unwrap_or_default();
                // A line that is short on purpose.
                let is_broken = line.len() + 1 + next_word.len() <= WIDTH;
                text.push_str(if is_broken { "\\\n" } else { "\n" });
            }
        }
        text
    });
    formatted.collect::<Vec<_>>().join("\n\n")
}

/// `@LISTENER@` becomes code, or a part of the word that it is in.
fn name_fields(line: &str) -> String {
    let parts: Vec<_> = line.split('@').collect();
    let mut text = String::new();
    for (at, part) in parts.iter().enumerate() {
        let stands_alone = at % 2 == 1
            && (parts[at - 1].is_empty() || parts[at - 1].ends_with(' '))
            && parts.get(at + 1).is_none_or(|after| after.is_empty() || after.starts_with([' ', ',', '.']));
        if stands_alone {
            text.push_str(&format!("`{part}`"));
        } else {
            text.push_str(part);
        }
    }
    text
}

fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}
