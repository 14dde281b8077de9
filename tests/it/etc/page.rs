//! docs/configuration.md: its tables have every key, and its examples are run.

use std::fs;

use echoed::config::{Settings, Sources};

use crate::configuration::{DocumentedKey, Unit, documented_keys};

use super::{expect_all_keys, keys};

const PAGE: &str = include_str!("../../../docs/configuration.md");

const README: &str = include_str!("../../../README.md");

/// Where the examples of the page are said to be.
const DROP_IN: &str = "etc/echoed/echoed.toml.d/50-local.toml";

/// The blocks of code below a heading: the language and the text of each.
fn code_blocks(heading: &str) -> Vec<(&'static str, &'static str)> {
    let (_, section) = PAGE
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("docs/configuration.md: no heading {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let fenced = section.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

/// Returns the first block of code below a heading that is in this language.
fn first_block(heading: &str, language: &str) -> &'static str {
    let found = code_blocks(heading).into_iter().find(|(found, _)| *found == language);
    found.unwrap_or_else(|| panic!("docs/configuration.md: no block of \"{language}\" below \"{heading}\"")).1
}

/// Checks that the page shows what is printed with a drop-in.
fn check_shown(drop_in: &str, shown: &str) {
    let printed = load_drop_in(drop_in).unwrap_or_else(|error| panic!("docs/configuration.md: {error}"));
    assert!(printed.contains(shown), "docs/configuration.md shows\n{shown}\nand this is printed:\n{printed}");
}

/// What is said about a drop-in, or what is printed with it.
fn load_drop_in(drop_in: &str) -> Result<String, String> {
    let root = tempfile::tempdir().expect("a directory can be made");
    let path = root.path().join(DROP_IN);
    fs::create_dir_all(path.parent().expect("it is below")).expect("the directory is ours");
    fs::write(path, drop_in).expect("the directory is ours");
    let sources = Sources { root: root.path().to_owned(), ..Sources::default() };
    let shown = |text: String| text.replace(&format!("{}/", root.path().display()), "/");
    sources.load().map(|loaded| shown(loaded.print())).map_err(|error| shown(error.to_string()))
}

#[test]
fn every_key_is_in_a_table_of_the_page_with_its_default() {
    let found = documented_keys()
        .into_iter()
        .map(|DocumentedKey { section, name, default, .. }| (section.to_owned(), name.to_owned(), default.to_owned()));
    expect_all_keys("the tables of docs/configuration.md", &found.collect::<Vec<_>>());
}

/// Returns what the daemon prints as the value of a key that is set to `value`.
fn printed_value(key: DocumentedKey, value: &str) -> Result<String, String> {
    // Any message fits into the memory.
    let mut document = format!("{} = {value}\n", key.path());
    for (path, value) in [("limits.buffer_memory", "\"1024GiB\""), ("defaults.max_message", "\"1B\"")] {
        if path != key.path() {
            document.push_str(&format!("{path} = {value}\n"));
        }
    }
    let settings = Settings::from_toml("x", &document).map_err(|error| error.to_string())?;
    let mut printed = keys(&settings.to_toml()).into_iter();
    let found = printed.find(|(section, name, _)| section == key.section && name == key.name);
    Ok(found.expect("every key is printed").2)
}

#[test]
fn every_key_takes_what_its_row_says_and_nothing_else() {
    for key in documented_keys() {
        let (mut accepted, mut refused) = (key.words(), vec!["[]".to_owned()]);
        if let Some((unit, range)) = key.range() {
            accepted.extend([range.start(), range.end()].map(|end| unit.format(*end)));
            refused.extend(range.start().checked_sub(1).map(|less| unit.format(less)));
            refused.push(unit.format(range.end() + 1));
        }
        if !matches!(key.range(), Some((Unit::Length, _))) {
            refused.push("\"no such word\"".to_owned());
        }
        for value in accepted {
            assert_eq!(printed_value(key, &value).as_deref(), Ok(&*value), "{}", key.path());
        }
        for value in refused {
            let printed = printed_value(key, &value);
            assert!(printed.is_err(), "docs/configuration.md: {} takes {}, but also {value}", key.path(), key.takes);
        }
    }
}

#[test]
fn the_errors_on_the_page_are_those_that_the_daemon_reports() {
    let blocks = code_blocks("When something is wrong");
    let (mistakes, variable) = blocks.split_at(6);
    for pair in mistakes.chunks(2) {
        let [("toml", mistake), ("", said)] = pair else {
            panic!("docs/configuration.md: no mistake and what is said about it: {pair:?}")
        };
        let real = load_drop_in(mistake).expect_err("docs/configuration.md: it is a mistake");
        assert_eq!(real.trim_end(), said.trim_end(), "left is real, right is in docs/configuration.md");
    }
    let [("", said)] = variable else { panic!("docs/configuration.md: no message about a variable: {variable:?}") };
    let environment = vec![("ECHOED_SERVICE__WORKERS".into(), "two".into())];
    let sources = Sources { config: Some("/dev/null".into()), environment, ..Sources::default() };
    assert_eq!(sources.load().unwrap_err().to_string(), said.trim_end());
}

#[test]
fn the_readme_shows_a_real_error_message_and_valid_settings() {
    let first = code_blocks("When something is wrong")[1].1;
    assert!(README.contains(first), "README.md does not have the first message of docs/configuration.md: {first}");
    let (_, settings) = README.split_once("```toml\n").expect("README.md shows settings, in a block of toml");
    let settings = settings.split("```").next().unwrap_or_default();
    load_drop_in(settings).unwrap_or_else(|error| panic!("the settings in README.md: {error}"));
}

#[test]
fn the_worked_example_on_the_page_prints_what_the_page_shows() {
    let (drop_in, shown) = (first_block("Examples", "toml"), first_block("Examples", ""));
    check_shown(drop_in, shown);
    let settings = Settings::from_toml("x", drop_in).unwrap_or_else(|error| panic!("docs/configuration.md: {error}"));
    let read = |name: &str| settings.listener_settings(name).rules.deadlines.read.as_ref().map(ToString::to_string);
    assert_eq!((read("local").as_deref(), read("echo").as_deref()), (Some("30s"), Some("2s")));
}

#[test]
fn the_first_example_on_the_page_prints_what_the_page_shows() {
    let (_, start) = PAGE.split_once("printf '").expect("docs/configuration.md shows a drop-in, written by printf '…'");
    let drop_in = start.split('\'').next().unwrap_or_default().replace("\\n", "\n");
    check_shown(&drop_in, first_block("Where settings come from", ""));
}

#[test]
fn the_environment_variables_on_the_page_are_valid() {
    let ini = first_block("Where settings come from", "ini");
    let mut environment = Vec::new();
    for line in ini.lines().filter_map(|line| line.strip_prefix("Environment=")) {
        // As systemd.exec(5) reads it: quotes around the whole, and C escapes.
        let (name, value) = line.trim_matches('\'').split_once('=').expect("docs/configuration.md: NAME=VALUE");
        environment.push((name.into(), value.replace("\\\\", "\\").into()));
    }
    assert_eq!(environment.len(), 3);
    let sources = Sources { config: Some("/dev/null".into()), environment, ..Sources::default() };
    let settings = sources.load().unwrap_or_else(|error| panic!("{error}")).settings;
    assert_eq!(settings.defaults.rules.delimiter.as_bytes(), b"\n");
    assert_eq!(settings.log_level, echoed::config::Level::Debug);
}
