//! Every command of the pages for administrators is run, and does what they say.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crate::common::{TEST_TIMEOUT, now};
use crate::doc_page::{Block, BlockKind, Section, matches_output, sections};
use crate::machine::{CommandResult, Machine};
use crate::rootfs::make;

tests![
    every_command_in_operations_md_works_as_documented,
    every_command_in_configuration_md_works_as_documented,
    every_command_in_the_readme_works_as_documented,
];

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const SETTINGS: &str = include_str!("../../docs/configuration.md");
const README: &str = include_str!("../../README.md");

/// What is not done here.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Skip {
    /// All below this heading.
    Section(&'static str),
    /// A command, or a block that is only shown, by its first line.
    Line(&'static str),
}
use Skip::{Line, Section as Below};

/// What is not done, and why. It has to be there.
type Skips = &'static [(Skip, &'static str)];

const OPERATIONS_SKIPS: Skips = &[
    (Line("make"), "it was built already"),
    (Below("Packages"), "tests/packages does it"),
    (Line("journalctl -u echoed.service -f"), "it does not end"),
    (Below("Started by inetd, stunnel and others"), "tests/inetd and lifecycle have them start it"),
];
const SETTINGS_SKIPS: Skips = &[
    (Line("[defaults.deadlines]"), "tests/etc/page.rs does it"),
    (Line("[listener.local.deadlines]"), "tests/etc/page.rs does it"),
    (Below("When something is wrong"), "tests/etc/page.rs does it"),
];
const README_SKIPS: Skips = &[
    (Line("C: aaaa<TAB>"), "shows the protocol"),
    (Below("Try it"), "for a machine on which it is built; tests/programs.rs has these programs talk to it"),
    (Line("make"), "it was built already"),
    (
        Line(r#"/etc/echoed/echoed.toml.d/50-local.toml:2:8: read: 10 has no unit; write "10s" if that is meant"#),
        "tests/etc/page.rs does it",
    ),
];

fn every_command_in_operations_md_works_as_documented(machine: &Machine) {
    PageRunner::new(machine, "docs/operations.md", OPERATIONS_SKIPS).run_page(OPERATIONS);
    // It ends with the uninstallation.
    let left = machine.sh("find /usr/local /etc /run /var -xdev -name '*echo[ed]*' -not -path '/var/log/*'");
    assert_eq!(left, "/run/echoed\n");
}

fn every_command_in_configuration_md_works_as_documented(machine: &Machine) {
    let mut runner = PageRunner::new(machine, "docs/configuration.md", SETTINGS_SKIPS);
    make("install", &machine.path("/"), machine.version());
    runner.reset();
    runner.run_page(SETTINGS);
}

fn every_command_in_the_readme_works_as_documented(machine: &Machine) {
    PageRunner::new(machine, "README.md", README_SKIPS).run_page(README);
}

/// Before each section: as after the installation and a first start, whatever the section before it did.
const RESET_SCRIPT: &str = "
    systemctl stop 'echoed*.socket' 'echoed*.service'
    rm -rf /etc/systemd/system/echoed* /etc/systemd/system/*.wants/echoed* /etc/echoed/echoed.toml.d
    test ! -L /etc/echoed/echoed.toml || rm /etc/echoed/echoed.toml
    systemctl daemon-reload
    systemctl reset-failed
    systemctl enable --quiet --now echoed.socket
    systemctl start echoed.service
";

/// Commands that only look, and may be asked again until they show what happened just before.
const READ_ONLY_COMMANDS: [&str; 6] =
    ["journalctl ", "systemctl status ", "systemctl show ", "systemctl is-active ", "systemctl list-units ", "ss "];

/// Runs the commands of a page on a machine.
struct PageRunner<'a> {
    machine: &'a Machine,
    page: &'static str,
    skips: Skips,
    /// Those of them that the page has.
    used_skips: BTreeSet<&'static Skip>,
}

impl<'a> PageRunner<'a> {
    /// Comes to a machine without echoed.
    fn new(machine: &'a Machine, page: &'static str, skips: Skips) -> Self {
        make("uninstall PREFIX=/usr", &machine.path("/"), machine.version());
        machine.write("/usr/local/bin/sudo", "#!/bin/sh\nexec \"$@\"\n");
        machine.sh("chmod 755 /usr/local/bin/sudo; systemctl daemon-reload");
        // What the pages call the machine's address in its network.
        machine.sh("ip address add 192.0.2.1/24 dev lo");
        Self { machine, page, skips, used_skips: BTreeSet::new() }
    }

    fn reset(&self) {
        self.machine.sh(RESET_SCRIPT);
    }

    /// Does it all, from top to bottom.
    fn run_page(&mut self, page: &str) {
        for Section { heading, blocks } in sections(page) {
            if blocks.is_empty() || self.skips(|one| matches!(one, Below(whole) if *whole == heading)) {
                continue;
            }
            if self.machine.path("/usr/local/sbin/echoed").exists() {
                self.reset();
            }
            for block in blocks {
                self.run_block(&block);
            }
        }
        for (skip, _) in self.skips {
            assert!(self.used_skips.contains(skip), "{} has no {skip:?} that could be skipped", self.page);
        }
    }

    fn run_block(&mut self, block: &Block) {
        let (page, line) = (self.page, block.line);
        match &block.kind {
            BlockKind::Commands { since, .. } if *since > self.machine.version() => {}
            BlockKind::Commands { expected_output: expected, .. } => {
                let Some(expected) = expected else {
                    self.run_commands(block).unwrap_or_else(|failed| panic!("{failed}"));
                    return;
                };
                let is_read_only = block
                    .commands()
                    .all(|(_, command)| READ_ONLY_COMMANDS.iter().any(|prefix| command.starts_with(prefix)));
                let until = now() + if is_read_only { TEST_TIMEOUT / 3 } else { Duration::ZERO };
                loop {
                    let output = self.run_commands(block);
                    if output.as_ref().is_ok_and(|output| matches_output(expected, output)) {
                        break;
                    }
                    let output = output.unwrap_or_else(|failed| failed);
                    thread::sleep(Duration::from_millis(20));
                    assert!(now() < until, "{page}:{line} shows\n{expected}\n--- but this was said:\n{output}");
                }
            }
            BlockKind::File(path) => self.machine.write(path, &format!("{}\n", block.text)),
            BlockKind::Other => {
                let is_skipped = self.skips_line(&block.text);
                assert!(is_skipped, "{page}:{line}: nobody does anything with this block:\n{}", block.text);
            }
        }
    }

    /// What the commands of a block say, one after the other; or the first that failed.
    fn run_commands(&mut self, block: &Block) -> Result<String, String> {
        let mut all = String::new();
        for (line, command) in block.commands() {
            if self.skips_line(command) {
                continue;
            }
            let CommandResult { code, output } = self.run(command);
            if code != Some(0) {
                return Err(format!("{}:{line}: {command}\nended with {code:?}:\n{output}", self.page));
            }
            all.push_str(&output);
            if !output.is_empty() && !output.ends_with('\n') {
                all.push('\n');
            }
        }
        Ok(all)
    }

    fn run(&self, command: &str) -> CommandResult {
        if let Some(words) = without_comment(command).strip_prefix("sudo make ") {
            // From here: the sources are not there.
            make(words, &self.machine.path("/"), self.machine.version());
            return CommandResult { code: Some(0), output: String::new() };
        }
        self.machine.write("/run/command", command);
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
        self.machine.run(&format!("{path} timeout 60 bash -o pipefail /run/command"))
    }

    fn skips_line(&mut self, text: &str) -> bool {
        let first = without_comment(text.lines().next().unwrap_or_default());
        self.skips(|one| matches!(one, Line(line) if *line == first))
    }

    fn skips(&mut self, matches: impl Fn(&Skip) -> bool) -> bool {
        let found = self.skips.iter().map(|(skip, _)| skip).find(|skip| matches(skip));
        self.used_skips.extend(found);
        found.is_some()
    }
}

fn without_comment(command: &str) -> &str {
    command.split(" #").next().unwrap_or_default().trim_end()
}
