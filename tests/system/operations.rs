//! What the pages for administrators tell to do is done, command by command, and does what they say.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::{CEILING, now, wait_until};
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

/// What is not run here, and why: a section, or what a block or a command begins with.
const NOT_OPERATIONS: &[(&str, &str)] = &[
    ("make ", "it was built already"),
    ("journalctl -u echoed.service -f", "it does not end"),
];
const NOT_SETTINGS: &[(&str, &str)] = &[
    ("[defaults.deadlines]", "tests/etc/page.rs does it"),
    ("[listener.local.deadlines]", "tests/etc/page.rs does it"),
    ("When something is wrong", "tests/etc/page.rs does it"),
];
const NOT_README: &[(&str, &str)] = &[
    ("", "an example of the protocol"),
    ("Try it", "for a machine on which it is built; tests/programs.rs has these programs talk to it"),
    ("make", "it was built already"),
    ("/etc/echoed/echoed.toml.d/50-local.toml:2:8:", "tests/etc/page.rs does it"),
];

fn every_command_of_the_page_on_operations_does_what_it_says(machine: &Machine) {
    Tour::new(machine, "docs/operations.md", NOT_OPERATIONS).follow(OPERATIONS);
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
const LOOKING: [&str; 5] = ["journalctl ", "systemctl status ", "systemctl show ", "systemctl is-active ", "ss "];

/// Somebody who does on a machine what a page says.
struct Tour<'a> {
    machine: &'a Machine,
    page: &'static str,
    not_run: &'static [(&'static str, &'static str)],
    /// Those of them that are on the page.
    left_out: BTreeSet<&'static str>,
}

impl<'a> Tour<'a> {
    /// Comes to a machine without echoed.
    fn new(machine: &'a Machine, page: &'static str, not_run: &'static [(&'static str, &'static str)]) -> Self {
        make("uninstall PREFIX=/usr", &machine.path("/"), machine.version());
        machine.write("/usr/local/bin/sudo", "#!/bin/sh\nexec \"$@\"\n");
        machine.sh("chmod 755 /usr/local/bin/sudo; systemctl daemon-reload");
        // What the pages call the machine's address in its network.
        machine.sh("ip address add 192.0.2.1/24 dev lo");
        Self { machine, page, not_run, left_out: BTreeSet::new() }
    }

    fn begin_anew(&self) {
        self.machine.sh(AS_INSTALLED);
    }

    /// Does it all, from top to bottom.
    fn follow(&mut self, page: &str) {
        for Section { heading, blocks } in sections(page) {
            if blocks.is_empty() || self.is_left_out(&heading, |entry| entry == heading) {
                continue;
            }
            if self.machine.path("/usr/local/sbin/echoed").exists() {
                self.begin_anew();
            }
            for block in blocks {
                self.deal_with(&block);
            }
        }
        for (entry, _) in self.not_run {
            assert!(self.left_out.contains(entry), "{}: \"{entry}\" is not there to be left out", self.page);
        }
    }

    fn deal_with(&mut self, block: &Block) {
        let (page, line) = (self.page, block.line);
        match &block.kind {
            Kind::Commands { since, .. } if *since > self.machine.version() => {}
            Kind::Commands { shown, .. } => {
                println!("{page}:{line}");
                let Some(shown) = shown else {
                    self.do_all(block).unwrap_or_else(|failed| panic!("{failed}"));
                    return;
                };
                let looking = block.commands().all(|(_, command)| LOOKING.iter().any(|look| command.starts_with(look)));
                let until = now() + if looking { CEILING / 3 } else { std::time::Duration::ZERO };
                loop {
                    let said = self.do_all(block);
                    if said.as_ref().is_ok_and(|said| is_shown(shown, said)) {
                        break;
                    }
                    let said = said.unwrap_or_else(|failed| failed);
                    assert!(now() < until, "{page}:{line} shows\n{shown}\n--- but this was said:\n{said}");
                }
            }
            Kind::File(path) => self.machine.write(path, &format!("{}\n", block.text)),
            Kind::Other => {
                let first = block.text.lines().next().unwrap_or_default();
                let left_out = self.is_left_out(first, |entry| !entry.is_empty() && first.starts_with(entry));
                assert!(left_out, "{page}:{line}: nobody does anything with this block:\n{}", block.text);
            }
        }
    }

    /// What the commands of a block say, one after the other; or the first that failed.
    fn do_all(&mut self, block: &Block) -> Result<String, String> {
        let mut all = String::new();
        for (line, command) in block.commands() {
            if self.is_left_out(command, |entry| !entry.is_empty() && command.starts_with(entry)) {
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
        let plain = command.split(" #").next().unwrap_or_default();
        if let Some(words) = plain.strip_prefix("sudo make ") {
            // From here: the sources are not there.
            make(words, &self.machine.path("/"), self.machine.version());
            return Ended { code: Some(0), said: String::new() };
        }
        self.machine.write("/run/command", command);
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
        self.machine.run(&format!("{path} timeout 60 bash -o pipefail /run/command"))
    }

    fn is_left_out(&mut self, _: &str, is_it: impl Fn(&str) -> bool) -> bool {
        let entry = self.not_run.iter().find(|(entry, _)| is_it(entry));
        self.left_out.extend(entry.map(|(entry, _)| *entry));
        entry.is_some()
    }
}
