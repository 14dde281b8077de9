//! What packages are made from: the tarballs, the lists of crates, the project's addresses, one version everywhere.
//!
//! The packages themselves are built and tried out by `make test-packages` (tests/packages).

mod project;
mod tarballs;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{program_or_skip, skip_test};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read_file(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn run(command: &mut Command) -> Output {
    command.current_dir(ROOT).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Returns the Python that the packaging scripts run on: the program itself, not a script that finds it. If there is none,
/// reports that the calling test is skipped.
fn python_or_skip() -> Option<PathBuf> {
    let python = program_or_skip("python3")?;
    let found = run(Command::new(&python).args(["-c", "import sys, tomllib; print(sys.executable)"]));
    if !found.status.success() {
        skip_test("python3 is older than 3.11");
        return None;
    }
    Some(String::from_utf8_lossy(&found.stdout).trim().into())
}

/// What stands after `start`, in the first line that begins with it.
fn value_after(text: &str, start: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(start));
    line.unwrap_or_else(|| panic!("there is no {start:?}")).trim().to_owned()
}

/// Sees to it that all files in a directory are of one version.
fn expect_version(directory: &Path, version: &str) {
    let read = |path: &str| fs::read_to_string(directory.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(value_after(&read("Cargo.toml"), "version = "), format!("\"{version}\""));
    assert!(read("Cargo.lock").contains(&format!("name = \"echoed\"\nversion = \"{version}\"\n")), "Cargo.lock");
    let changelog = read("packaging/debian/changelog");
    assert!(changelog.starts_with(&format!("echoed ({version}-")), "{changelog}");
    assert_eq!(value_after(&read("packaging/rpm/echoed.spec"), "Version:"), version);
    assert_eq!(value_after(&read("packaging/arch/PKGBUILD"), "pkgver="), version);
    let changelog = read("CHANGELOG.md");
    let mut headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(headings.next(), Some("[Unreleased]"), "the first heading of CHANGELOG.md");
    if let Some(heading) = headings.next() {
        assert!(heading.starts_with(&format!("[{version}] - ")), "the second heading of CHANGELOG.md: {heading}");
    }
}

#[test]
fn every_package_has_the_same_version() {
    expect_version(Path::new(ROOT), env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_release_updates_the_version_and_the_date_in_every_file() {
    let directory = tempfile::tempdir().unwrap();
    let target_dir = directory.path().join("echoed");
    fs::create_dir(&target_dir).unwrap();
    for file in ["Cargo.toml", "Cargo.lock", "CHANGELOG.md", "packaging"] {
        assert!(run(Command::new("cp").args(["-r", file]).arg(&target_dir)).status.success(), "{file}");
    }
    let release = |arguments: &[&str]| {
        let mut command = Command::new(target_dir.join("packaging/release"));
        let output = run(command.args(arguments).env("RELEASE_BY", "Somebody & Sons <some/body@example.org>"));
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let version = env!("CARGO_PKG_VERSION");
    let changelog = target_dir.join("CHANGELOG.md");
    let unreleased = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- One thing.\n";
    fs::write(&changelog, unreleased).unwrap();
    for (arguments, complaint) in [(&["1.2"][..], "invalid version"), (&[version, "soon"], "invalid day")] {
        let (succeeded, said) = release(arguments);
        assert!(!succeeded && said.contains(complaint), "{arguments:?}: {said}");
    }
    for (text, complaint) in [
        (
            format!("# Changelog\n\n## [Unreleased]\n\n## [{version}] - 2029-01-02\n\n- One thing.\n"),
            "already; a release has a later version",
        ),
        ("# Changelog\n\n## [Unreleased]\n\n## [0.0.9] - 2029-01-02\n\n- One thing.\n".to_owned(), "has nothing under"),
        (format!("{unreleased}\n## [99.0.0] - 2029-01-02\n"), "has 99.0.0 already"),
    ] {
        fs::write(&changelog, &text).unwrap();
        let (succeeded, said) = release(&[version, "2030-01-02"]);
        assert!(!succeeded && said.contains(complaint), "{text}: {said}");
        assert_eq!(fs::read_to_string(&changelog).unwrap(), text, "a refused release has changed something");
    }

    // This one, if it is not released yet, and the next.
    let mut entries = read_file("packaging/debian/changelog").matches("\nechoed (").count() + 1;
    fs::write(&changelog, unreleased).unwrap();
    for (version, day, written) in [
        (version, "2030-01-02", "Wed, 02 Jan 2030 12:00:00 +0000"),
        ("98.7.6", "2030-02-03", "Sun, 03 Feb 2030 12:00:00 +0000"),
    ] {
        entries += usize::from(version == "98.7.6");
        let (succeeded, said) = release(&[version, day]);
        assert!(succeeded, "{said}");
        expect_version(&target_dir, version);
        let read = |path: &str| fs::read_to_string(target_dir.join(path)).unwrap();
        let news = read("CHANGELOG.md");
        let heading =
            format!("# Changelog\n\n## [Unreleased]\n\n## [{version}] - {day}\n\n### Added\n\n- One thing.\n");
        assert!(news.starts_with(&heading), "{news}");
        fs::write(&changelog, news.replacen("[Unreleased]\n", "[Unreleased]\n\n### Added\n\n- One thing.\n", 1))
            .unwrap();
        let changelog = read("packaging/debian/changelog");
        assert_eq!(value_after(&changelog, " -- "), format!("Somebody & Sons <some/body@example.org>  {written}"));
        assert!(changelog.lines().next().unwrap().contains(" unstable; "), "{changelog}");
        assert_eq!(changelog.matches("\nechoed (").count() + 1, entries, "{changelog}");
        let spec = read("packaging/rpm/echoed.spec");
        assert!(spec.contains(&format!(" - {version}-1\n")), "{spec}");
    }
}

/// The crates that the programs are linked with on this machine, as cargo says it: name and version of each.
fn linked_crates() -> Vec<(String, String)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["tree", "--locked", "--offline", "--edges=normal,no-proc-macro", "--prefix=none"];
    let output = run(Command::new(cargo).args(arguments));
    let tree = String::from_utf8(output.stdout).expect("it is text");
    let mut found: Vec<_> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
        })
        .filter(|(name, _)| name != "echoed")
        .collect();
    found.sort();
    found.dedup();
    assert!(found.len() > 20, "{} {}", String::from_utf8_lossy(&output.stderr), tree);
    found
}

#[test]
fn every_crate_in_the_programs_is_listed_with_its_licence_and_its_checksum() {
    let (third_party, bill) = (read_file("packaging/third-party.md"), read_file("packaging/echoed.cdx.json"));
    let lock = read_file("Cargo.lock");
    for (name, version) in linked_crates() {
        let row = format!("| {name} | {version} | ");
        let licence = third_party.lines().find_map(|line| line.strip_prefix(&row)).map(|rest| rest.len() > 5);
        assert_eq!(licence, Some(true), "{name} {version} is not in packaging/third-party.md: make crates");
        let has_licence_text = third_party
            .lines()
            .any(|line| line.strip_prefix("## ").is_some_and(|names| names.split(", ").any(|listed| listed == name)));
        assert!(has_licence_text, "there is no text of the licence of {name}");
        let purl = format!("\"purl\": \"pkg:cargo/{name}@{version}\"");
        assert!(bill.contains(&purl), "{name} {version} is not in packaging/echoed.cdx.json: make crates");
        let (_, entry) =
            lock.split_once(&format!("name = \"{name}\"\nversion = \"{version}\"\n")).expect("it is locked");
        let checksum = value_after(entry, "checksum = ").trim_matches('"').to_owned();
        assert!(bill.contains(&checksum), "{name}: {checksum}");
    }
}

/// The choices that an SPDX expression gives: it has to have the form `(A OR B) AND C`.
fn licence_choices(expression: &str) -> BTreeSet<BTreeSet<&str>> {
    let all = expression.split(" AND ").map(|part| part.trim_matches(['(', ')']));
    all.map(|part| part.split(" OR ").collect()).collect()
}

#[test]
fn the_packages_declare_our_licences_and_those_of_the_crates() {
    let (third_party, spec, build) = (
        read_file("packaging/third-party.md"),
        read_file("packaging/rpm/echoed.spec"),
        read_file("packaging/arch/PKGBUILD"),
    );
    let rows = third_party.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut theirs: BTreeSet<_> =
        rows.flat_map(|row| licence_choices(row.split(" | ").nth(2).expect("a column for licences"))).collect();
    assert!(theirs.len() > 3, "{theirs:?}");
    theirs.extend(licence_choices(env!("CARGO_PKG_LICENSE")));
    assert_eq!(licence_choices(&value_after(&spec, "License:")), theirs);
    assert_eq!(licence_choices(value_after(&build, "license=('").trim_end_matches("')")), theirs);
}

#[test]
fn the_bill_of_materials_names_its_number_its_tool_and_the_supplier_of_each_part() {
    let bill = read_file("packaging/echoed.cdx.json");
    let number = value_after(&bill, " \"serialNumber\": \"urn:uuid:");
    assert_eq!(number.trim_end_matches(['"', ',']).len(), 36, "{number}");
    assert!(bill.contains("\"name\": \"packaging/crates.py\""), "the tool");
    assert!(bill.contains("\"timestamp\": \"20"), "the time");
    let components = bill.matches("\"type\": \"library\"").count();
    assert!(components > 20, "{components}");
    assert_eq!(bill.matches("\"name\": \"crates.io\"").count(), components, "suppliers");
    assert_eq!(bill.matches("\"author\": \"").count(), components, "authors");
}

#[test]
fn the_licences_of_the_crates_are_listed_as_fedora_does_it() {
    let list = read_file("packaging/LICENSE.dependencies");
    for (name, version) in linked_crates() {
        let end = format!(": {name} v{version}");
        assert!(list.lines().any(|line| line.ends_with(&end) && line.len() > end.len()), "{name} {version}: {list}");
    }
}

#[test]
fn every_licence_in_the_copyright_of_debian_is_that_of_some_files() {
    let copyright = read_file("packaging/debian/copyright");
    let (texts, others): (Vec<&str>, Vec<&str>) =
        copyright.split("\n\n").partition(|paragraph| paragraph.starts_with("License: "));
    let files: Vec<_> = others.iter().filter_map(|text| Some(text.split_once("\nLicense: ")?.1)).collect();
    let used: BTreeSet<_> =
        files.iter().flat_map(|text| text.lines().next().expect("a line").split([' ', ','])).collect();
    let explained: Vec<_> = texts.iter().map(|text| value_after(text, "License: ")).collect();
    assert!(explained.len() > 3, "{explained:?}");
    for licence in explained {
        assert!(used.contains(licence.as_str()), "{licence} is not used");
    }
}

#[test]
fn the_lists_of_crates_are_up_to_date() {
    let Some(python) = python_or_skip() else { return };
    let checked = run(Command::new(python).args(["packaging/crates.py", "check"]));
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&said));
}
