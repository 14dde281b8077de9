//! The project's addresses: held in one place, and omitted everywhere while they are empty.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::{python_or_skip, run};
use common::program_or_skip;

/// The values that the tests fill in.
const VALUES: [(&str, &str); 6] = [
    ("homepage", "https://echoed.example.org"),
    ("repository", "https://git.example.org/echoed"),
    ("issues", "https://git.example.org/echoed/issues"),
    ("downloads", "https://dl.example.org/v@VERSION@"),
    ("security", "security@example.org"),
    ("maintainer", "Ann O. Body <ann@example.org>"),
];

/// What is in which file once they are filled in, and in none of them before.
const FIELDS: [(&str, &[&str]); 10] = [
    (
        "Cargo.toml",
        &["\nhomepage = \"https://echoed.example.org\"\nrepository = \"https://git.example.org/echoed\"\ncat"],
    ),
    (
        "packaging/debian/control",
        &[
            "\nMaintainer: Ann O. Body <ann@example.org>\n",
            "\nHomepage: https://echoed.example.org\n",
            "\nVcs-Browser: https://git.example.org/echoed\n",
            "\nVcs-Git: https://git.example.org/echoed [packaging]\n",
        ],
    ),
    (
        "packaging/debian/copyright",
        &["\nUpstream-Contact: Ann O. Body <ann@example.org>\n", "\nSource: https://git.example.org/echoed\n"],
    ),
    ("packaging/debian/watch", &["https://git.example.org/echoed refs/tags/v"]),
    (
        "packaging/debian/upstream/metadata",
        &[
            "\nBug-Database: https://git.example.org/echoed/issues\n",
            "\nRepository: https://git.example.org/echoed\n",
            "\nSecurity-Contact: security@example.org\n",
        ],
    ),
    ("SECURITY.md", &["\nReport it to <security@example.org>, and not"]),
    ("CODE_OF_CONDUCT.md", &["\nReport what breaks these rules to Ann O. Body <ann@example.org>.\n"]),
    (
        "packaging/rpm/echoed.spec",
        &[
            "\nURL:            https://echoed.example.org\n",
            "\nBugURL:         https://git.example.org/echoed/issues\n",
            "\nSource0:        https://dl.example.org/v%{version}/%{name}-%{version}.tar.gz\n",
            "\nSource1:        https://dl.example.org/v%{version}/%{name}-%{version}-vendor.tar.xz\n",
        ],
    ),
    (
        "packaging/arch/PKGBUILD",
        &[
            "# Maintainer: Ann O. Body <ann@example.org>\n",
            "\nurl='https://echoed.example.org'\n",
            "\"https://dl.example.org/v$pkgver/$pkgname-$pkgver.tar.gz\"",
            "\"https://dl.example.org/v$pkgver/$pkgname-$pkgver-vendor.tar.xz\"",
        ],
    ),
    (
        "packaging/echoed.cdx.json",
        &["\"email\": \"ann@example.org\"", "\"url\": \"mailto:security@example.org\"", "https://dl.example.org/v0"],
    ),
];

/// A copy of the sources, to change.
struct Copy {
    directory: TempDir,
    python: PathBuf,
}

impl Copy {
    fn make(python: PathBuf) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        for file in [
            "Cargo.toml",
            "Cargo.lock",
            "SECURITY.md",
            "CODE_OF_CONDUCT.md",
            "packaging",
            "src",
            "tests",
            "benches",
            "xtask",
        ] {
            assert!(run(Command::new("cp").args(["-r", file]).arg(directory.path())).status.success(), "{file}");
        }
        // Where a package is built, the crates are there.
        for name in [".cargo", "vendor"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            if path.is_dir() {
                symlink(path, directory.path().join(name)).expect("a link can be made");
            }
        }
        Self { directory, python }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Writes a value into Cargo.toml.
    fn fill(&self, key: &str, value: &str) {
        let text = fs::read_to_string(self.path("Cargo.toml")).expect("it can be read");
        let (package, rest) = text.split_once("[package.metadata.project]\n").expect("the table is there");
        let line = rest.lines().find(|line| line.starts_with(&format!("{key} = "))).expect("the key is there");
        let rest = rest.replacen(line, &format!("{key} = \"{value}\""), 1);
        fs::write(self.path("Cargo.toml"), format!("{package}[package.metadata.project]\n{rest}"))
            .expect("it can be written");
    }

    fn run(&self, script: &str, command: &str) -> Output {
        run(Command::new(&self.python).arg(self.path("packaging").join(script)).arg(command))
    }

    /// Writes everything anew.
    fn write(&self) {
        for script in ["project.py", "crates.py"] {
            let written = self.run(script, "write");
            assert!(written.status.success(), "{script}: {}", String::from_utf8_lossy(&written.stderr));
        }
    }
}

#[test]
fn every_file_says_what_the_one_place_says() {
    let Some(python) = python_or_skip() else { return };
    let checked = run(Command::new(python).args(["packaging/project.py", "check"]));
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn a_value_that_is_filled_in_appears_in_its_fields_and_files_and_goes_with_it() {
    let Some(python) = python_or_skip() else { return };
    let copy = Copy::make(python);
    for (key, _) in VALUES {
        copy.fill(key, "");
    }
    copy.write();
    let contents = |file: &str| fs::read_to_string(copy.path(file)).ok();
    let empty: Vec<_> = FIELDS.iter().map(|(file, _)| contents(file)).collect();
    for ((file, fields), text) in FIELDS.iter().zip(&empty) {
        for field in *fields {
            assert!(!text.as_ref().is_some_and(|text| text.contains(field)), "{file}: {field}");
        }
    }
    for file in ["packaging/debian/watch", "packaging/debian/upstream"] {
        assert!(!copy.path(file).exists(), "{file}");
    }
    let overrides = || contents("packaging/debian/source/lintian-overrides").expect("the overrides are there");
    assert!(overrides().contains("\nechoed source: no-homepage-field\n"), "{}", overrides());

    for (key, value) in VALUES {
        copy.fill(key, value);
    }
    assert!(!copy.run("project.py", "check").status.success(), "what is stale is not noticed");
    copy.write();
    for (file, fields) in FIELDS {
        let text = contents(file).unwrap_or_else(|| panic!("{file} is not there"));
        for field in fields {
            assert!(text.contains(field), "{file} has no {field:?}: {text}");
        }
    }
    assert!(!overrides().contains("no-homepage-field") && !overrides().contains("public"), "{}", overrides());
    let written: Vec<_> = FIELDS.iter().map(|(file, _)| contents(file)).collect();
    copy.write();
    assert!(written == FIELDS.iter().map(|(file, _)| contents(file)).collect::<Vec<_>>(), "the second time differs");

    for (key, _) in VALUES {
        copy.fill(key, "");
    }
    copy.write();
    for ((file, _), before) in FIELDS.iter().zip(empty) {
        assert!(contents(file) == before, "{file} is not what it was");
    }
}

#[test]
fn an_invalid_value_is_refused_with_an_example() {
    let Some(python) = python_or_skip() else { return };
    let copy = Copy::make(python);
    for (key, value, example) in [
        ("homepage", "echoed.example.org", "https://"),
        ("repository", "https://example.org/$(id)", "https://"),
        ("maintainer", "Ann", "A Name <address@example.org>"),
        ("security", "nobody", "security@example.org"),
    ] {
        let before = fs::read_to_string(copy.path("packaging/debian/control")).unwrap();
        copy.fill(key, value);
        let written = copy.run("project.py", "write");
        let said = String::from_utf8_lossy(&written.stderr).into_owned();
        assert!(!written.status.success() && said.contains(key) && said.contains(value), "{said}");
        assert!(said.contains(example) && !said.contains("Traceback"), "{said}");
        assert_eq!(fs::read_to_string(copy.path("packaging/debian/control")).unwrap(), before);
        copy.fill(key, "");
    }
}

#[test]
fn sums_and_signatures_of_a_release_verify_and_only_what_is_published_is_in_them() {
    let (Some(gpg), Some(sums)) = (program_or_skip("gpg"), program_or_skip("sha256sum")) else { return };
    // It makes keys and signs with them; gpg can be installed without it, to verify.
    if program_or_skip("gpg-agent").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("gpg");
    let dist = directory.path().join("dist");
    fs::create_dir_all(dist.join("deb")).unwrap();
    assert!(run(Command::new("mkdir").args(["-m", "700"]).arg(&home)).status.success());
    let gpg = |arguments: &[&str]| {
        run(Command::new(&gpg).args(["--batch", "--quiet"]).args(arguments).env("GNUPGHOME", &home))
    };
    let key = gpg(&["--passphrase", "", "--quick-generate-key", "Test <test@example.org>", "ed25519", "sign", "never"]);
    assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
    let version = env!("CARGO_PKG_VERSION");
    let sign = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/sign");
        run(Command::new("sh").arg(script).args([&dist]).env("GNUPGHOME", &home))
    };

    let source = format!("echoed-{version}.tar.gz");
    fs::write(dist.join(&source), "sources").unwrap();
    let refused = sign();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("make dist vendor"), "{said}");
    assert!(!dist.join("SHA256SUMS").exists());

    let crates = format!("echoed-{version}-vendor.tar.xz");
    let package = format!("deb/echoed_{version}-0upstream1_amd64.deb");
    let others = ["deb/echoed_0.0.1-0upstream1_amd64.deb", "deb/lintian.log", "skipped.txt"];
    for file in [&crates, &package].into_iter().map(String::as_str).chain(others) {
        fs::write(dist.join(file), file).unwrap();
    }
    let signed = sign();
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let list = fs::read_to_string(dist.join("SHA256SUMS")).unwrap();
    let names: Vec<_> = list.lines().filter_map(|line| line.split("  ").nth(1)).collect();
    assert_eq!(names, [package.as_str(), &crates, &source], "{list}");
    let checked = Command::new(sums).args(["--check", "SHA256SUMS"]).current_dir(&dist).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    for file in ["SHA256SUMS", &source, &crates] {
        let signature = dist.join(format!("{file}.asc"));
        let verified = gpg(&["--verify", signature.to_str().unwrap(), dist.join(file).to_str().unwrap()]);
        assert!(verified.status.success(), "{file}: {}", String::from_utf8_lossy(&verified.stderr));
    }
    fs::write(dist.join(&crates), "others").unwrap();
    let verified = gpg(&["--verify", dist.join(format!("{crates}.asc")).to_str().unwrap()]);
    assert!(!verified.status.success(), "a changed file verifies");
    let _ = run(Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", &home));
}
