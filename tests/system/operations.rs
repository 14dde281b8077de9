//! What the pages for administrators tell to do is done, command by command, and does what they say.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crate::common::{CEILING, now};
use crate::machine::{Ended, Machine};
use crate::page::{Block, Kind, Section, is_shown, sections};
use crate::roots::make;

tests![
    every_command_of_the_page_on_operations_does_what_it_says,
    every_command_of_the_page_on_settings_does_what_it_says,
    every_command_of_the_readme_does_what_it_says,
];

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const SETTINGS: &str = include_str!("../../docs/configuration.md");
const README: &str = include_str!("../../README.md");

/// What is not done here.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Omission {
    /// All below this heading.
    Section(&'static str),
    /// A command, or a block that is only shown, by its first line.
    Line(&'static str),
}
use Omission::{Line, Section as Below};

/// What is not done, and why. It has to be there.
type Omissions = &'static [(Omission, &'static str)];

const NOT_OPERATIONS: Omissions = &[
    (Line("make"), "it was built already"),
    (Below("Packages"), "tests/packages does it"),
    (Line("journalctl -u echoed.service -f"), "it does not end"),
];
const NOT_SETTINGS: Omissions = &[
    (Line("[defaults.deadlines]"), "tests/etc/page.rs does it"),
    (Line("[listener.local.deadlines]"), "tests/etc/page.rs does it"),
    (Below("When something is wrong"), "tests/etc/page.rs does it"),
];
const NOT_README: Omissions = &[
    (Line("C: aaaa<TAB>"), "shows the protocol"),
    (Below("Try it"), "for a machine on which it is built; tests/programs.rs has these programs talk to it"),
    (Line("make"), "it was built already"),
    (
        Line(r#"/etc/echoed/echoed.toml.d/50-local.toml:2:8: read: 10 has no unit; write "10s" if that is meant"#),
        "tests/etc/page.rs does it",
    ),
];

fn every_command_of_the_page_on_operations_does_what_it_says(machine: &Machine) {
    Tour::new(machine, "docs/operations.md", NOT_OPERATIONS).follow(OPERATIONS);
    // It ends with the uninstallation.
    let left = machine.sh("find /usr/local /etc /run /var -xdev -name '*echo[ed]*' -not -path '/var/log/*'");
    assert_eq!(left, "/run/echoed\n");
}

fn every_command_of_the_page_on_settings_does_what_it_says(machine: &Machine) {
    let mut tour = Tour::new(machine, "docs/configuration.md", NOT_SETTINGS);
    make("install", &machine.path("/"), machine.version());
    tour.begin_anew();
    tour.follow(SETTINGS);
}

fn every_command_of_the_readme_does_what_it_says(machine: &Machine) {
    Tour::new(machine, "README.md", NOT_README).follow(README);
}

/// Before each section: as after the installation and a first start, whatever the section before it did.
const AS_INSTALLED: &str = "
    systemctl stop 'echoed*.socket' 'echoed*.service'
    rm -rf /etc/systemd/system/echoed* /etc/systemd/system/*.wants/echoed* /etc/echoed/echoed.toml.d
    test ! -L /etc/echoed/echoed.toml || rm /etc/echoed/echoed.toml
    systemctl daemon-reload
    systemctl reset-failed
    systemctl enable --quiet --now echoed.socket
    systemctl start echoed.service
";

/// Commands that only look, and may be asked again until they show what happened just before.
const LOOKING: [&str; 6] =
    ["journalctl ", "systemctl status ", "systemctl show ", "systemctl is-active ", "systemctl list-units ", "ss "];

/// Somebody who does on a machine what a page says.
struct Tour<'a> {
    machine: &'a Machine,
    page: &'static str,
    omissions: Omissions,
    /// Those of them that the page has.
    left_out: BTreeSet<&'static Omission>,
}

impl<'a> Tour<'a> {
    /// Comes to a machine without echoed.
    fn new(machine: &'a Machine, page: &'static str, omissions: Omissions) -> Self {
        make("uninstall PREFIX=/usr", &machine.path("/"), machine.version());
        machine.write("/usr/local/bin/sudo", "#!/bin/sh\nexec \"$@\"\n");
        machine.sh("chmod 755 /usr/local/bin/sudo; systemctl daemon-reload");
        // What the pages call the machine's address in its network.
        machine.sh("ip address add 192.0.2.1/24 dev lo");
        Self { machine, page, omissions, left_out: BTreeSet::new() }
    }

    fn begin_anew(&self) {
        self.machine.sh(AS_INSTALLED);
    }

    /// Does it all, from top to bottom.
    fn follow(&mut self, page: &str) {
        for Section { heading, blocks } in sections(page) {
            if blocks.is_empty() || self.leaves_out(|one| matches!(one, Below(whole) if *whole == heading)) {
                continue;
            }
            if self.machine.path("/usr/local/sbin/echoed").exists() {
                self.begin_anew();
            }
            for block in blocks {
                self.deal_with(&block);
            }
        }
        for (omission, _) in self.omissions {
            assert!(self.left_out.contains(omission), "{} has no {omission:?} that could be left out", self.page);
        }
    }

    fn deal_with(&mut self, block: &Block) {
        let (page, line) = (self.page, block.line);
        match &block.kind {
            Kind::Commands { since, .. } if *since > self.machine.version() => {}
            Kind::Commands { shown, .. } => {
                let Some(shown) = shown else {
                    self.do_all(block).unwrap_or_else(|failed| panic!("{failed}"));
                    return;
                };
                let looking = block.commands().all(|(_, command)| LOOKING.iter().any(|look| command.starts_with(look)));
                let until = now() + if looking { CEILING / 3 } else { Duration::ZERO };
                loop {
                    let said = self.do_all(block);
                    if said.as_ref().is_ok_and(|said| is_shown(shown, said)) {
                        break;
                    }
                    let said = said.unwrap_or_else(|failed| failed);
                    thread::sleep(Duration::from_millis(20));
                    assert!(now() < until, "{page}:{line} shows\n{shown}\n--- but this was said:\n{said}");
                }
            }
            Kind::File(path) => self.machine.write(path, &format!("{}\n", block.text)),
            Kind::Other => {
                let left_out = self.leaves_out_line(&block.text);
                assert!(left_out, "{page}:{line}: nobody does anything with this block:\n{}", block.text);
            }
        }
    }

    /// What the commands of a block say, one after the other; or the first that failed.
    fn do_all(&mut self, block: &Block) -> Result<String, String> {
        let mut all = String::new();
        for (line, command) in block.commands() {
            if self.leaves_out_line(command) {
                continue;
            }
            let Ended { code, said } = self.run(command);
            if code != Some(0) {
                return Err(format!("{}:{line}: {command}\nended with {code:?}:\n{said}", self.page));
            }
            all.push_str(&said);
            if !said.is_empty() && !said.ends_with('\n') {
                all.push('\n');
            }
        }
        Ok(all)
    }

    fn run(&self, command: &str) -> Ended {
        if let Some(words) = without_comment(command).strip_prefix("sudo make ") {
            // From here: the sources are not there.
            make(words, &self.machine.path("/"), self.machine.version());
            return Ended { code: Some(0), said: String::new() };
        }
        self.machine.write("/run/command", command);
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
        self.machine.run(&format!("{path} timeout 60 bash -o pipefail /run/command"))
    }

    fn leaves_out_line(&mut self, text: &str) -> bool {
        let first = without_comment(text.lines().next().unwrap_or_default());
        self.leaves_out(|one| matches!(one, Line(line) if *line == first))
    }

    fn leaves_out(&mut self, is_it: impl Fn(&Omission) -> bool) -> bool {
        let found = self.omissions.iter().map(|(omission, _)| omission).find(|omission| is_it(omission));
        self.left_out.extend(found);
        found.is_some()
    }
}

fn without_comment(command: &str) -> &str {
    command.split(" #").next().unwrap_or_default().trim_end()
}
