//! The configuration file that is shipped, the defaults that are printed, and the administrator's page: each key is in
//! all of them, with the same default, and what the page shows is what the daemon says.

mod page;

use echoed::config::Settings;

const FILE: &str = include_str!("../../etc/echoed.toml");

/// Every key of the printed defaults: its section, its name, its value.
pub(crate) fn printed_keys() -> Vec<(String, String, String)> {
    keys(&Settings::print_default())
}

/// The keys of a document as it is printed or shipped.
pub(crate) fn keys(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.split(']').next().unwrap_or_default().to_owned();
        } else if let Some((key, rest)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let value = rest.split(" # ").next().unwrap_or_default().trim_end();
            found.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    found
}

/// Checks that a file has the keys of the daemon with their defaults, in their order. Otherwise it says what to edit there.
#[track_caller]
pub(crate) fn expect_all_keys(file: &str, found: &[(String, String, String)]) {
    let printed = printed_keys();
    let list = |keys: &[(String, String, String)], others: &[(String, String, String)]| {
        let differing = keys.iter().filter(|key| !others.contains(key));
        differing.map(|(section, key, value)| format!("\n  [{section}] {key} = {value}")).collect::<String>()
    };
    let (missing, surplus) = (list(&printed, found), list(found, &printed));
    assert!(missing.is_empty(), "add to {file}, as src/config/keys.rs has it:{missing}");
    assert!(surplus.is_empty(), "remove from {file}, or add to src/config/keys.rs:{surplus}");
    let misplaced = printed.iter().zip(found).find(|(printed, found)| printed != found);
    assert!(
        misplaced.is_none() && printed.len() == found.len(),
        "not in the order of src/config/keys.rs: {file}, at {misplaced:?}"
    );
}

/// The shipped file with every key set: what has a `#` without a blank after it is a key or a header.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest.to_owned(),
        _ => line.to_owned(),
    };
    FILE.lines().map(|text| line(text) + "\n").collect()
}

fn load(text: &str) -> Settings {
    Settings::from_toml("echoed.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_shipped_file_sets_nothing() {
    assert_eq!(load(FILE), Settings::default());
    assert_eq!(keys(FILE), []);
    let set = FILE.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(set, None);
}

#[test]
fn the_shipped_file_with_every_key_set_has_exactly_the_defaults() {
    let text = uncommented();
    expect_all_keys("etc/echoed.toml", &keys(&text));
    assert_eq!(load(&text), Settings::default());
}

#[test]
fn every_key_of_the_shipped_file_is_explained_with_its_unit() {
    let mut explanation = String::new();
    for line in FILE.lines() {
        if line.is_empty() {
            explanation.clear();
        } else if let Some(text) = line.strip_prefix("# ") {
            explanation.push_str(text);
        } else if let Some((key, value)) = line.trim_start_matches('#').split_once(" = ") {
            let is_time = ["5min", "2s", "5s", "10s"].iter().any(|time| value == format!("\"{time}\""));
            let about_deadlines = ["idle", "read", "write", "lifetime"].contains(&key);
            assert!(!explanation.is_empty(), "{key}");
            assert!(!is_time || about_deadlines || explanation.contains("A time"), "{key}");
            assert!(!value.contains("iB") || explanation.contains("A size"), "{key}");
        }
    }
}

#[test]
fn the_printed_defaults_contain_and_explain_every_key() {
    let printed = Settings::print_default();
    assert_eq!(load(&printed), Settings::default());
    // What the daemon itself knows, it tells when it is asked for what it does not know.
    for section in ["log", "service", "limits", "defaults", "defaults.deadlines"] {
        let error =
            Settings::from_toml("x", &format!("[{section}]\n\"no such key at all\" = 1\n")).unwrap_err().to_string();
        let known = error.lines().next().and_then(|line| line.split_once("known are ")).expect("it tells").1;
        let known = known.split(", ").filter(|key| !["deadlines", "listen", "role", "weight"].contains(key));
        let mut known: Vec<_> = known.collect();
        let keys = printed_keys();
        let mut printed: Vec<_> = keys.iter().filter(|key| key.0 == section).map(|key| &*key.1).collect();
        known.sort_unstable();
        printed.sort_unstable();
        assert_eq!(printed, known, "[{section}]");
    }
    for line in printed.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')) {
        let about = line.split_once(" # ").map_or("", |(_, about)| about);
        assert!(about.len() > 10, "{line}");
        assert!(line.len() <= 120, "{line}");
    }
}
