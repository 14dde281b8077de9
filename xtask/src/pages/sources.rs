//! What each page is made of.

use std::fs;

use super::markdown::markdown;
use super::roff::{Roff, escape};
use super::{command, command_line, in_repository};

/// A man page.
pub(crate) struct Page {
    /// Its file, which ends in its section.
    pub(crate) name: &'static str,
    /// What it is about, in a few words, for whatis(1).
    about: &'static str,
    /// The text, below the project.
    text: &'static str,
}

/// All of them.
pub(crate) const PAGES: [Page; 4] = [
    Page { name: "echoed.8", about: "echo server that systemd starts on demand", text: "docs/man/echoed.8.md" },
    Page { name: "echoctl.1", about: "talk to servers of the delimited echo protocol", text: "docs/man/echoctl.1.md" },
    Page { name: "echoed.toml.5", about: "settings of echoed", text: "docs/configuration.md" },
    Page { name: "echoed-protocol.7", about: "the delimited echo protocol", text: "docs/protocol.md" },
];

/// A page as it belongs into its file.
///
/// A line `<!-- WORDS -->` of its text is replaced: `synopsis PROGRAM`, `options PROGRAM` and `command PROGRAM COMMAND` are
/// of the command line, `FILE.md: HEADING` is that section of a document, `FILE.md` a whole document below the last heading.
pub(crate) fn generate_page(page: &Page) -> String {
    let (name, section) = page.name.rsplit_once('.').expect("a page has a section");
    let source = format!("echoed {}", command_line("echoed").get_version().expect("the command line has a version"));
    let mut roff = Roff::page(name, section, &date(), &source);
    roff.section("Name");
    roff.text(&format!("{} \\- {}", escape(name), escape(page.about)));
    let text = read_file(page.text);
    // What stands before the first heading is the description.
    let (_, text) = text.split_once("\n\n").expect("a title and a text");
    let text = if text.starts_with("## ") || text.starts_with("<!--") {
        text.to_owned()
    } else {
        format!("## Description\n\n{text}")
    };
    let mut plain = String::new();
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
            markdown(&mut roff, &std::mem::take(&mut plain));
            expand(&mut roff, words);
        } else {
            plain.push_str(line);
            plain.push('\n');
        }
    }
    markdown(&mut roff, &plain);
    if !text.contains("\n## See also\n") {
        let others = PAGES.iter().filter(|other| other.name != page.name).map(|other| {
            let (name, section) = other.name.rsplit_once('.').expect("a page has a section");
            format!("**{name}**({section})")
        });
        markdown(&mut roff, &format!("## See also\n\n{}\n", others.collect::<Vec<_>>().join(", ")));
    }
    roff.finish()
}

fn expand(page: &mut Roff, words: &str) {
    if let Some((file, heading)) = words.split_once(": ") {
        let document = read_file(&format!("docs/{file}"));
        let (_, section) =
            document.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{file} has no {heading}"));
        markdown(page, section.split("\n## ").next().unwrap_or_default());
        return;
    }
    if words.ends_with(".md") {
        let document = read_file(&format!("docs/{words}"));
        let (_, text) = document.split_once("\n\n").expect("a title and a text");
        markdown(page, &text.replace("\n## ", "\n### "));
        return;
    }
    match words.split(' ').collect::<Vec<_>>()[..] {
        ["synopsis", program] => command::synopsis(page, &command_line(program)),
        ["options", program] => command::options(page, &command_line(program)),
        ["command", program, name] => command::subcommand(page, &command_line(program), name),
        _ => panic!("unknown comment {words:?}"),
    }
}

/// The day of the latest version: of the topmost entry of Debian's changelog.
fn date() -> String {
    let changelog = read_file("packaging/debian/changelog");
    let day = changelog.lines().find_map(|line| line.strip_prefix(" -- ")).expect("an entry is signed");
    let words: Vec<_> = day.split_whitespace().collect();
    let [.., day, month, year, _, _] = words[..] else { panic!("no day: {words:?}") };
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    format!("{year}-{:02}-{day:0>2}", months.find(month).expect("a month") / 3 + 1)
}

fn read_file(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
