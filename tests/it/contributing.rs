//! What contributors meet first: CI, the hook, the templates, the changelog and the rules of editors.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{find_program, program_or_skip, python_with_or_skip, skip_test};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const GITHUB: &str = ".github/workflows/ci.yml";
const GITLAB: &str = ".gitlab-ci.yml";
const JOBS: [&str; 7] = ["clippy", "deny", "fmt", "fuzz", "machines", "msrv", "test"];

fn read_file(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Returns a file of YAML as JSON. If no program can read it, reports that the calling test is skipped.
fn yaml_or_skip(path: &str) -> Option<Value> {
    let python = python_with_or_skip("yaml", "python3-yaml")?;
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let output = run(Command::new(python).args(["-c", script]).arg(Path::new(ROOT).join(path)));
    assert!(output.status.success(), "{path}: {}", text(&output));
    Some(serde_json::from_slice(&output.stdout).expect("Python writes JSON"))
}

/// Returns the commands of each job, by its name.
fn jobs(path: &str, yaml: &Value) -> Vec<(String, String)> {
    let all = if path == GITHUB { &yaml["jobs"] } else { yaml };
    let mut jobs = Vec::new();
    for (name, job) in all.as_object().unwrap_or_else(|| panic!("{path} has no jobs")) {
        let list = |key: &str| job[key].as_array().cloned().unwrap_or_default();
        let commands = list("script").into_iter().chain(list("steps").into_iter().map(|step| step["run"].clone()));
        let commands: Vec<_> = commands.filter_map(|command| command.as_str().map(str::to_owned)).collect();
        if !commands.is_empty() {
            jobs.push((name.clone(), commands.join("\n")));
        }
    }
    jobs
}

#[test]
fn both_ci_files_run_every_job_by_commands_that_exist() {
    let makefile = read_file("Makefile");
    let targets: BTreeSet<_> = makefile
        .lines()
        .filter_map(|line| line.split_once(':').map(|(targets, _)| targets))
        .filter(|targets| !targets.starts_with(['#', '\t', '.']))
        .flat_map(str::split_whitespace)
        .collect();
    for path in [GITHUB, GITLAB] {
        let Some(yaml) = yaml_or_skip(path) else { return };
        let jobs = jobs(path, &yaml);
        let mut names: Vec<_> = jobs.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        assert_eq!(names, JOBS, "{path}");
        for (name, commands) in &jobs {
            let essential = match &**name {
                "fmt" => "fmt --all --check",
                "clippy" => "clippy --locked --workspace --all-targets -- -D warnings",
                "test" => "make test",
                "msrv" => "rust-version",
                "deny" => "cargo deny --locked check",
                "fuzz" => "make fuzz",
                _ => "make test REQUIRE=all",
            };
            assert!(commands.contains(essential), "{path}: {name} does not run \"{essential}\": {commands}");
            for target in commands.split("make ").skip(1).filter_map(|rest| rest.split([' ', '\n']).next()) {
                assert!(targets.contains(target), "{path}: {name} makes {target}, which the Makefile does not have");
            }
            for word in commands.split([' ', '(', ')', '\n']).filter(|word| word.starts_with("tests/")) {
                assert!(Path::new(ROOT).join(word).exists(), "{path}: {name} uses {word}, which is not there");
            }
            let timeout = if path == GITHUB { &yaml["jobs"][name]["timeout-minutes"] } else { &yaml[name]["timeout"] };
            assert!(!timeout.is_null(), "{path}: {name} has no timeout");
        }
    }
}

#[test]
fn the_command_for_the_oldest_rust_finds_the_version_in_cargo_toml() {
    for path in [GITHUB, GITLAB] {
        let Some(yaml) = yaml_or_skip(path) else { return };
        let (_, commands) = jobs(path, &yaml).into_iter().find(|(name, _)| name == "msrv").expect("there is a job");
        let line = commands.lines().find(|line| line.starts_with("version=")).expect("it asks for the version");
        let output = run(Command::new("sh").arg("-c").arg(format!("{line}; echo \"$version\"")).current_dir(ROOT));
        assert_eq!(text(&output), concat!(env!("CARGO_PKG_RUST_VERSION"), "\n"), "{path}");
    }
}

#[test]
fn actionlint_reports_nothing_about_the_workflow() {
    // Not a program that is demanded: no distribution has it.
    let Some(actionlint) = find_program("actionlint") else {
        eprintln!("left out: actionlint is not installed");
        return;
    };
    let output = run(Command::new(actionlint).arg(GITHUB).current_dir(ROOT));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_bug_report_asks_for_what_is_needed_to_reproduce_it() {
    let template = ".github/ISSUE_TEMPLATE/bug.yml";
    let Some(yaml) = yaml_or_skip(template) else { return };
    let fields = yaml["body"].as_array().expect("it has fields");
    let ids: BTreeSet<_> = fields.iter().filter_map(|field| field["id"].as_str()).collect();
    assert_eq!(
        ids.len(),
        fields.iter().filter(|field| field["type"] != "markdown").count(),
        "{template}: each has an id"
    );
    for file in [template, ".gitlab/issue_templates/Bug.md"] {
        let text = read_file(file);
        for command in ["systemctl --version", "systemctl cat echoed.socket echoed.service", "journalctl -x "] {
            assert!(text.contains(command), "{file} does not ask for {command}");
        }
    }
    yaml_or_skip(".github/ISSUE_TEMPLATE/feature.yml");
    assert!(read_file(".gitlab/merge_request_templates/Default.md").contains("CHANGELOG.md"));
}

#[test]
fn the_hook_refuses_a_commit_that_is_not_formatted() {
    let Some(git) = program_or_skip("git") else { return };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if !run(Command::new(&cargo).args(["fmt", "--version"])).status.success() {
        return skip_test("rustfmt is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str]| {
        let mut command = Command::new(&git);
        for (name, value) in [("NAME", "Test"), ("EMAIL", "test@example.org")] {
            command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
        }
        let hooks = format!("core.hooksPath={ROOT}/.githooks");
        run(command.args(["-c", &hooks]).args(arguments).current_dir(directory.path()))
    };
    let write = |file: &str, text: &str| {
        let path = directory.path().join(file);
        fs::create_dir_all(path.parent().expect("it is below")).and_then(|()| fs::write(path, text)).unwrap();
    };
    assert!(git(&["init", "--quiet"]).status.success());
    write("Cargo.toml", "[package]\nname = \"x\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n");
    for (file, content, is_accepted) in [
        ("src/lib.rs", "//! A crate.\nfn  f() {}\n", false),
        ("src/lib.rs", "//! A crate.\nfn f() {}\n", true),
        ("page.md", "A line that ends with a blank \n", false),
        ("page.md", "A line.\n", true),
    ] {
        write(file, content);
        assert!(git(&["add", file]).status.success());
        let output = git(&["commit", "--quiet", "-m", "x"]);
        assert_eq!(output.status.success(), is_accepted, "{content:?}: {}", text(&output));
    }
}

#[test]
fn the_changelog_has_the_form_of_keep_a_changelog() {
    let changelog = read_file("CHANGELOG.md");
    assert!(changelog.starts_with("# Changelog\n"));
    let mut sections = changelog.split("\n## ").skip(1);
    assert!(sections.clone().next().is_some_and(|first| first.starts_with("[Unreleased]\n")));
    for section in sections.by_ref() {
        let heading = section.lines().next().unwrap_or_default();
        let is_release = heading.split_once("] - ").is_some_and(|(version, day)| {
            version.starts_with('[') && day.len() == 10 && day.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit())
        });
        assert!(heading == "[Unreleased]" || is_release, "CHANGELOG.md: invalid heading \"## {heading}\"");
        for kind in section.lines().filter_map(|line| line.strip_prefix("### ")) {
            let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
            assert!(kinds.contains(&kind), "CHANGELOG.md: \"### {kind}\" is not one of {kinds:?}");
        }
    }
}

/// Returns the files that git knows. If there is no git, reports that the calling test is skipped.
fn tracked_files_or_skip() -> Option<Vec<PathBuf>> {
    let output = run(Command::new(program_or_skip("git")?).args(["ls-files", "-z"]).current_dir(ROOT));
    if !output.status.success() || output.stdout.is_empty() {
        skip_test("these sources are not in git");
        return None;
    }
    let names = String::from_utf8(output.stdout).expect("names are text");
    Some(names.split_terminator('\0').map(PathBuf::from).collect())
}

#[test]
fn all_files_follow_the_rules_of_editorconfig() {
    let Some(files) = tracked_files_or_skip() else { return };
    assert!(
        read_file(".editorconfig").contains("[{Makefile,packaging/debian/rules,*.go,tests/it/services/client.c}]\n")
    );
    let with_tabs = ["Makefile", "packaging/debian/rules", "tests/it/services/client.c"].map(Path::new);
    let mut checked = 0;
    for file in files {
        let path = Path::new(ROOT).join(&file);
        if !path.is_file() {
            continue;
        }
        let name = file.display();
        let bytes = fs::read(&path).expect("it can be read");
        let text = String::from_utf8(bytes).unwrap_or_else(|_| panic!("{name} is not UTF-8"));
        assert!(text.is_empty() || text.ends_with('\n'), "{name} does not end with a line feed");
        let may_have_tabs = with_tabs.contains(&&*file) || file.extension().is_some_and(|extension| extension == "go");
        for (number, line) in (1..).zip(text.lines()) {
            assert!(!line.ends_with([' ', '\t', '\r']), "{name}:{number} ends with white space");
            assert!(may_have_tabs || !line.starts_with('\t'), "{name}:{number} is indented with a tab");
        }
        checked += 1;
    }
    assert!(checked > 300, "only {checked} files were checked");
}

#[test]
fn every_path_that_the_pages_for_contributors_name_exists() {
    for page in ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"] {
        let text = read_file(page);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let links = links.filter(|link| !link.contains("://"));
        let first = |word: &str| word.split([':', ' ']).next().unwrap_or_default().to_owned();
        let prose = text.split("```").step_by(2).flat_map(|prose| prose.split('`').step_by(2)).collect::<String>();
        let words =
            prose.split([' ', '\n', '|', '(', ')', ',', '"']).map(|word| word.trim_end_matches(['.', ';', ':']));
        let is_path = |word: &&str| {
            ["src/", "tests/", "docs/", "etc/", "systemd/", "packaging/", "fuzz/"]
                .iter()
                .any(|start| word.starts_with(start))
        };
        for path in links.map(str::to_owned).chain(words.filter(is_path).map(first)) {
            assert!(
                path.contains('*') || Path::new(ROOT).join(&path).exists(),
                "{page} names {path}, which is not there"
            );
        }
    }
}

#[test]
fn every_attribute_is_of_a_file_that_exists() {
    let Some(files) = tracked_files_or_skip() else { return };
    for line in read_file(".gitattributes").lines().filter(|line| line.ends_with(" linguist-generated")) {
        let pattern = line.split(' ').next().unwrap_or_default();
        let (start, end) = pattern.split_once('*').unwrap_or((pattern, ""));
        let matches = |file: &PathBuf| file.to_str().is_some_and(|name| name.starts_with(start) && name.ends_with(end));
        assert!(files.iter().any(matches), ".gitattributes: no file is {pattern}");
    }
}

#[test]
fn what_was_left_out_is_grouped_by_cause_with_the_packages_to_install() {
    let list = tempfile::NamedTempFile::new().unwrap();
    let report = |text: &str| {
        fs::write(list.path(), text).unwrap();
        let output = run(Command::new("sh").arg(Path::new(ROOT).join("tests/left-out")).arg(list.path()));
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let report_of_some = report(
        "one::a: strace is not installed\none::b: strace is not installed\none::b: strace is not installed\n\
         two: for old kernels: cc is not installed\nmain: the tests on booted machines: they need root\n\
         formatting: rustfmt is not installed\n",
    );
    let expected = format!(
        "Left out on this machine:\n  cc is not installed: two\n  rustfmt is not installed: formatting\n  \
         strace is not installed: 2 tests\n  they need root: the tests on booted machines\n\
         (Each test is named in {}.)\nTo run more of them, on Debian: apt install gcc libc6-dev strace\n",
        list.path().display()
    );
    assert_eq!(report_of_some, expected);
    assert_eq!(report(""), "Nothing was left out.\n");
    assert!(!report("one: they need root\n").contains("apt install"));
}
