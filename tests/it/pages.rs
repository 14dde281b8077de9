//! The man pages and the completions can be read and used, and are complete. `make pages` generates them; that they are up to
//! date is tested in xtask, which has the generator.

mod words;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use common::{find_program, program_or_skip};
use echoed::cli::echoctl::Echoctl;
use echoed::cli::echoed::Echoed;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const PAGES: [&str; 4] = ["echoed.8", "echoctl.1", "echoed.toml.5", "echoed-protocol.7"];

/// The command line of a program.
fn command_line(program: &str) -> clap::Command {
    match program {
        "echoed" => Echoed::command(),
        "echoctl" => Echoctl::command(),
        _ => panic!("there is no program {program}"),
    }
}

fn read_file(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What a program says when it is asked.
fn output_of(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{program:?} {arguments:?}: {} {stderr}", output.status);
    String::from_utf8(output.stdout).expect("it is text")
}

/// The long options that a help text begins lines with.
fn options(help: &str) -> BTreeSet<String> {
    let tags = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let words = tags.flat_map(|line| line.split([' ', ',', '=', '[']).take(3));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

/// What a page says when it is read: its lines, not indented, and not broken anywhere.
fn render_page(page: &str) -> Option<String> {
    let mandoc = program_or_skip("mandoc")?;
    let path = Path::new(ROOT).join("docs/man").join(page);
    let text = output_of(&mandoc, &["-T", "utf8", "-O", "width=1000", path.to_str().expect("the path is text")]);
    // Bold is struck over.
    let mut plain = String::new();
    for character in text.chars() {
        if character == '\u{8}' {
            plain.pop();
        } else {
            plain.push(character);
        }
    }
    Some(plain.lines().map(|line| line.trim().to_owned() + "\n").collect())
}

/// A word by itself, not as a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '-' || character == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

#[test]
fn every_option_is_in_the_man_page_of_its_program() {
    let echoed = Path::new(env!("CARGO_BIN_EXE_echoed"));
    let echoctl = Path::new(env!("CARGO_BIN_EXE_echoctl"));
    let Some(page) = render_page("echoed.8") else { return };
    let known = options(&output_of(echoed, &["--help"]));
    assert!(known.contains("--check-config") && known.contains("--help") && known.len() >= 7, "{known:?}");
    for option in known {
        assert!(has_word(&page, &option), "{option} is not in\n{page}");
    }
    let page = render_page("echoctl.1").unwrap();
    for subcommand in ["status", "connections", "close", "drain", "resume"] {
        let (_, part) = page.split_once(&format!("\nECHOCTL {}\n", subcommand.to_uppercase())).expect("it has one");
        let part = part.split("\nECHOCTL ").next().unwrap();
        for option in options(&output_of(echoctl, &[subcommand, "--help"])) {
            assert!(has_word(part, &option), "{option} is not in\n{part}");
        }
    }
    for subcommand in ["send", "ping", "bench"] {
        let (_, part) = page.split_once(&format!("\nECHOCTL {}\n", subcommand.to_uppercase())).expect("it has one");
        let part = part.split("\nECHOCTL ").next().unwrap();
        let known = options(&output_of(echoctl, &[subcommand, "--help"]));
        assert!(known.contains("--delimiter") && known.len() >= 7, "{known:?}");
        for option in known {
            assert!(has_word(part, &option), "{option} is not in\n{part}");
        }
    }
}

#[test]
fn every_key_is_in_the_man_page_below_its_section() {
    let Some(page) = render_page("echoed.toml.5") else { return };
    let (_, page) = page.split_once("\nEVERY KEY\n").expect("it is where they are");
    let defaults = echoed::config::Settings::print_default();
    let (mut part, mut keys) = ("", 0);
    for line in defaults.lines().filter(|line| !line.starts_with('#')) {
        if let Some(section) = line.strip_prefix('[') {
            let header = format!("\n[{}]", section.split(']').next().unwrap());
            let (_, below) = page.split_once(&header).unwrap_or_else(|| panic!("{header} is not in\n{page}"));
            part = below.split("\n\n[").next().unwrap();
        } else if let Some((key, rest)) = line.split_once(" = ") {
            let default = rest.split(" # ").next().unwrap().trim_end();
            let tag = format!("\n{key} = {default}\n");
            assert!(part.contains(&tag), "{tag} is not in\n{part}");
            keys += 1;
        }
    }
    assert!(keys >= 20, "{keys}");
}

#[test]
fn man_and_mandoc_report_no_problems_in_the_pages() {
    for page in PAGES {
        let path = Path::new(ROOT).join("docs/man").join(page);
        let check = |mut command: Command| {
            let output = command.env("LC_ALL", "C.UTF-8").env("MANROFFSEQ", "").env("MANWIDTH", "80").output().unwrap();
            let warnings = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && warnings.is_empty(), "{command:?}: {} {warnings}", output.status);
            output.stdout
        };
        // What man does with a page, and would not tell by itself.
        if let Some(groff) = program_or_skip("groff") {
            let mut command = Command::new(groff);
            command.args(["-man", "-t", "-k", "-Tutf8", "-ww", "-z"]).arg(&path);
            assert_eq!(check(command), b"");
        }
        if let Some(man) = program_or_skip("man") {
            let mut command = Command::new(man);
            command.args(["--warnings=w", "-E", "UTF-8", "-l"]).arg(&path);
            let text = String::from_utf8(check(command)).unwrap();
            assert!(text.contains("SEE ALSO"), "{}: {text}", page);
        }
        if let Some(mandoc) = program_or_skip("mandoc") {
            let lint = Command::new(mandoc).args(["-T", "lint", "-W", "warning"]).arg(&path).output().unwrap();
            let warnings = String::from_utf8_lossy(&lint.stdout);
            assert!(lint.status.success() && warnings.is_empty(), "{warnings}");
        }
    }
}

/// A man page is read where there are no documents of the project, perhaps.
#[test]
fn every_man_page_has_examples_and_refers_to_no_markdown_file() {
    for page in PAGES {
        let Some(text) = render_page(page) else { return };
        assert!(text.contains("\nEXAMPLES\n"), "{} has no examples", page);
        let pointer = text.lines().find(|line| line.split_whitespace().any(|word| word.contains(".md")));
        assert_eq!(pointer, None, "{}: name a man page instead, or describe it here", page);
    }
}

#[test]
fn every_man_page_that_is_referred_to_exists() {
    let pages: BTreeSet<_> = PAGES.into_iter().collect();
    let Some(page) = render_page("echoed.8") else { return };
    let (_, see) = page.split_once("SEE ALSO\n").unwrap();
    for name in &pages {
        let (name, section) = name.rsplit_once('.').unwrap();
        let reference = format!("{name}({section})");
        assert!(name == "echoed" || see.contains(&reference), "{reference}: {see}");
    }
    // And what the units and the catalog name.
    for file in ["echoed.service", "echoed@.service", "echoed.socket", "catalog/echoed.catalog"] {
        let text = read_file(&format!("systemd/{file}"));
        let named: Vec<_> = text.split("man:echo").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        assert!(!named.is_empty(), "{file}");
        for reference in named {
            let (name, section) = reference.split_once('(').unwrap();
            assert!(pages.contains(&*format!("echo{name}.{section}")), "{file}: man:echo{reference})");
        }
    }
}

/// What a shell offers after these words, the last of which is not finished; nothing without that shell.
fn completions(shell: &str, words: &[&str]) -> Option<BTreeSet<String>> {
    let file = |name: &str| Path::new(ROOT).join("packaging/completions").join(name).display().to_string();
    let (name, script) = match shell {
        "bash" => (
            "bash",
            format!(
                "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _{} {} '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                file(&format!("{}.bash", words[0])),
                words.join(" "),
                words.len() - 1,
                words[0],
                words[0],
                words[words.len() - 1],
                words[words.len() - 2],
            ),
        ),
        "fish" => {
            ("fish", format!("source '{}'; complete -C '{}'", file(&format!("{}.fish", words[0])), words.join(" ")))
        }
        _ => panic!("{shell} cannot be asked"),
    };
    let text = output_of(&program_or_skip(name)?, &["-c", &script]);
    Some(text.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned).collect())
}

#[test]
fn shells_complete_every_option_and_every_command() {
    let echoed = options(&output_of(Path::new(env!("CARGO_BIN_EXE_echoed")), &["--help"]));
    for shell in ["bash", "fish"] {
        let Some(found) = completions(shell, &["echoed", "--"]) else { continue };
        assert!(found.is_superset(&echoed), "{shell}: {found:?} has not all of {echoed:?}");
        let found = completions(shell, &["echoctl", "p"]).unwrap();
        assert!(found.contains("ping") && !found.contains("--prefix"), "{shell}: {found:?}");
        for subcommand in ["send", "ping", "bench", "status", "connections", "close", "drain", "resume"] {
            let known = options(&output_of(Path::new(env!("CARGO_BIN_EXE_echoctl")), &[subcommand, "--help"]));
            let found = completions(shell, &["echoctl", subcommand, "--"]).unwrap();
            assert!(found.is_superset(&known), "{shell}, {subcommand}: {found:?} has not all of {known:?}");
        }
    }
}

#[test]
fn each_shell_can_read_its_completions() {
    for (shell, option, files) in [
        ("bash", "-n", ["echoed.bash", "echoctl.bash"]),
        ("zsh", "-n", ["_echoed", "_echoctl"]),
        ("fish", "--no-execute", ["echoed.fish", "echoctl.fish"]),
    ] {
        let Some(shell) = program_or_skip(shell) else { continue };
        for file in files {
            let path = Path::new(ROOT).join("packaging/completions").join(file);
            assert_eq!(output_of(&shell, &[option, path.to_str().unwrap()]), "", "packaging/completions/{file}");
        }
    }
    // zsh cannot be asked without a terminal: its functions are there, and know what they are for.
    if find_program("zsh").is_some() {
        for name in ["echoed", "echoctl"] {
            let path = Path::new(ROOT).join("packaging/completions");
            let script = format!(
                "fpath=('{}' $fpath); autoload -Uz compinit; compinit -u -D; print $_comps[{name}]",
                path.display()
            );
            assert_eq!(output_of(Path::new("zsh"), &["-f", "-c", &script]).trim(), format!("_{name}"));
        }
    }
}
