//! The man pages, the page of log messages and the completions.
//!
//! They are generated in advance, because packages do not run the programs that they have just built. The source of a man page is
//! `docs/man/NAME.md` or a document: Markdown, with comments that are replaced ([`sources`]). The source of docs/messages.md is the
//! catalog of the journal. tests/it/pages.rs reads the pages and uses the completions.

mod command;
mod markdown;
mod messages;
mod roff;
mod sources;

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use echoed::cli::echoctl::Echoctl;
use echoed::cli::echoed::Echoed;

use sources::PAGES;

/// Where completions are, and what they are called there.
const COMPLETIONS: [(Shell, &str, &str); 6] = [
    (Shell::Bash, "echoed", "echoed.bash"),
    (Shell::Bash, "echoctl", "echoctl.bash"),
    (Shell::Zsh, "echoed", "_echoed"),
    (Shell::Zsh, "echoctl", "_echoctl"),
    (Shell::Fish, "echoed", "echoed.fish"),
    (Shell::Fish, "echoctl", "echoctl.fish"),
];

/// Returns the path of a file of the repository.
pub(crate) fn in_repository(path: &str) -> PathBuf {
    Path::new(common::ROOT).join(path)
}

/// The command line of a program.
fn command_line(program: &str) -> clap::Command {
    match program {
        "echoed" => Echoed::command(),
        "echoctl" => Echoctl::command(),
        _ => panic!("there is no program {program}"),
    }
}

/// Returns everything that is generated: each path below the repository, and what belongs there.
pub(crate) fn generated_files() -> Vec<(String, String)> {
    let mut files: Vec<_> =
        PAGES.iter().map(|page| (format!("docs/man/{}", page.name), sources::generate_page(page))).collect();
    files.push(("docs/messages.md".to_owned(), messages::generate_page()));
    for (shell, program, file) in COMPLETIONS {
        let mut script = Vec::new();
        generate(shell, &mut command_line(program), program, &mut script);
        let script = String::from_utf8(script).expect("it is text");
        files.push((format!("packaging/completions/{file}"), script));
    }
    files
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{generated_files, in_repository};

    #[test]
    fn generated_files_are_up_to_date() {
        for (path, text) in generated_files() {
            let found =
                fs::read_to_string(in_repository(&path)).unwrap_or_else(|error| panic!("{path}: {error}: make pages"));
            assert!(found == text, "{path} is not what it is made from: make pages, and commit what changed");
        }
    }
}
