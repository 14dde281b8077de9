//! Words that are in nothing that users read.
//!
//! An administrator looks for the program that acts: "nobody is refused" and "whoever connects" hide it, where "clients wait in
//! the backlog" names it. "is no X" is the grammar of another language, which a reader stumbles over: something is not an X,
//! or is invalid, or unknown. A list can only be small: what it rules out has to be wrong each time.

use std::fs;
use std::path::Path;

use super::{ROOT, command_line};

const PRONOUNS: [&str; 5] = ["nobody", "somebody", "whoever", "everybody", "anybody"];

#[test]
fn documents_help_and_catalog_name_the_actor_and_have_no_foreign_grammar() {
    let texts = user_texts();
    assert!(texts.len() > 30, "{}", texts.len());
    let found: Vec<_> = texts.iter().flat_map(|(name, text)| denied(name, text)).collect();
    assert!(found.is_empty(), "tests/it/pages/words.rs says why these words are not used:\n{}", found.join("\n"));
}

/// Log lines, errors and the status are literals of the program.
#[test]
fn literals_of_the_program_name_the_actor_and_have_no_foreign_grammar() {
    let (mut found, mut count) = (Vec::new(), 0);
    let mut directories = vec![Path::new(ROOT).join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("it is a directory") {
            let path = entry.expect("it can be listed").path();
            if path.file_stem().is_some_and(|name| name == "tests") {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(ROOT).expect("it is below").display().to_string();
            for literal in literals(&fs::read_to_string(&path).expect("it is text")) {
                count += 1;
                found.extend(denied(&name, &literal));
            }
        }
    }
    assert!(count > 1_000, "{count}");
    assert!(found.is_empty(), "tests/it/pages/words.rs says why these words are not used:\n{}", found.join("\n"));
}

/// Returns the string literals of a source, without those of comments and of its tests.
fn literals(source: &str) -> Vec<String> {
    let program = source.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    // Quotation marks that begin no literal would make literals of what is between literals.
    let code = program.replace("'\"'", "").replace("\\\"", "'");
    let lines: Vec<_> = code.lines().map(str::trim).filter(|line| !line.starts_with("//")).collect();
    // A literal over several lines is one text.
    let joined = lines.join("\n").replace("\\\n", "");
    joined.lines().flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn literals_are_found_over_line_breaks_and_without_comments() {
    let source =
        "// \"nobody\"\nlet a = f('\"', \"it is \\\n    no \\\"x\\\"\");\n#[cfg(test)]\nmod tests {\n\"nobody\"";
    assert_eq!(literals(source), ["it is no 'x'"]);
}

/// Directories, and how the names of their files end that users read.
const DIRECTORIES: [(&str, &str); 8] = [
    ("docs", ".md"),
    ("docs/man", ".md"),
    ("etc", ".toml"),
    ("systemd", ".socket"),
    ("systemd", ".service"),
    ("systemd/catalog", ".catalog"),
    ("systemd/examples", ""),
    ("systemd/user", ""),
];

/// Documents beside the sources. (A code of conduct is about people, not programs.)
const DOCUMENTS: [&str; 4] = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];

/// Everything that users read, by where it is.
fn user_texts() -> Vec<(String, String)> {
    let mut paths: Vec<_> =
        DOCUMENTS.iter().map(|name| Path::new(ROOT).join(name)).filter(|path| path.exists()).collect();
    for (directory, end) in DIRECTORIES {
        let entries = fs::read_dir(Path::new(ROOT).join(directory)).expect("it is a directory");
        let files = entries.map(|entry| entry.expect("it can be listed").path()).filter(|path| path.is_file());
        paths.extend(files.filter(|path| path.to_string_lossy().ends_with(end)));
    }
    let mut texts = vec![("echoed --print-default-config".to_owned(), echoed::config::Settings::print_default())];
    for path in paths {
        let name = path.strip_prefix(ROOT).expect("it is below").display().to_string();
        let text = fs::read_to_string(&path).expect("it is text");
        let text = if name.ends_with(".md") { without_code(&text) } else { text };
        texts.push((name, text));
    }
    for program in ["echoed", "echoctl"] {
        let mut command = command_line(program);
        command.build();
        texts.push((format!("{program} --help"), command.render_long_help().to_string()));
        for subcommand in command.get_subcommands_mut() {
            let name = format!("{program} {} --help", subcommand.get_name());
            texts.push((name, subcommand.render_long_help().to_string()));
        }
    }
    texts
}

/// A page without its blocks of code and its code within lines: there, `nobody` is a user.
fn without_code(page: &str) -> String {
    let mut text = String::new();
    let mut is_code = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.split('`').step_by(2).collect::<Vec<_>>().join("CODE")
}

/// What is denied in a text, each with what is around it.
fn denied(name: &str, text: &str) -> Vec<String> {
    // Comments go over several lines, and a phrase from one line to the next.
    let words: Vec<_> = text.split_whitespace().filter(|word| *word != "#").collect();
    let bare = |at: usize| {
        words.get(at).map_or(String::new(), |word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
    };
    let is_denied = |at: usize| {
        PRONOUNS.contains(&&*bare(at))
            // "there is no key X" and "is no longer" are English.
            || bare(at) == "is" && words.get(at + 1) == Some(&"no") && bare(at + 2) != "longer" && (at == 0 || bare(at - 1) != "there")
    };
    let excerpt = |at: usize| words[at.saturating_sub(4)..(at + 5).min(words.len())].join(" ");
    (0..words.len()).filter(|at| is_denied(*at)).map(|at| format!("{name}: … {} …", excerpt(at))).collect()
}

#[test]
fn denied_words_are_found_in_any_case_and_over_line_breaks() {
    for text in ["Whoever connects", "a message that is\nno message", "# nobody is\n# refused", "(somebody)"] {
        assert_eq!(denied("x", text).len(), 1, "{text}");
    }
    for text in ["there is no key x", "There is\nno key", "it is no longer there", "it is not"] {
        assert_eq!(denied("x", text), [""; 0], "{text}");
    }
    assert_eq!(denied("x", &without_code("as `nobody`\n```\nuser nobody\n```\n")), [""; 0]);
}
