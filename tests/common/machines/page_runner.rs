//! Runs what is in a page of the documentation on a machine, and sees to it that it does what the page says.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::machines::doc_page::{Block, BlockKind, Section, matches_output, sections};
use crate::machines::doc_skips;
use crate::machines::machine::{CommandResult, Machine};
use crate::machines::rootfs::make;
use crate::{TEST_TIMEOUT, now};

/// What is not done here.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// All below this heading.
    Section(&'static str),
    /// A command, or a block that is only shown, by its first line.
    Line(&'static str),
}

/// What is not done, and why. It has to be there.
pub type Skips = &'static [(Skip, &'static str)];

/// Before each section: as after the installation and a first start, whatever the section before it did.
const RESET_SCRIPT: &str = "
    systemctl stop 'echoed*.socket' 'echoed*.service'
    rm -rf /etc/systemd/system/echoed* /etc/systemd/system/*.wants/echoed* /etc/echoed/echoed.toml.d/* /etc/echoed/instances
    test ! -L /etc/echoed/echoed.toml || rm /etc/echoed/echoed.toml
    systemctl daemon-reload
    systemctl reset-failed
    systemctl enable --quiet --now echoed.socket
    systemctl start echoed.service
";

/// Commands that only look, and may be asked again until they show what happened just before.
const READ_ONLY_COMMANDS: [&str; 6] =
    ["journalctl ", "systemctl status ", "systemctl show ", "systemctl is-active ", "systemctl list-units ", "ss "];

/// Builds in a third of the time; what is built is slower.
const QUICK_BUILD: &str =
    "CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16";

/// Where the daemon may be installed.
const PROGRAMS: [&str; 3] = ["/usr/local/sbin/echoed", "/usr/sbin/echoed", "/usr/bin/echoed"];

/// Runs the pages for administrators as they are installed on a machine, by a package or below /usr.
pub fn run_installed_pages(machine: &Machine) {
    const PAGES: [(&str, &[Skips]); 3] = [
        (
            "operations.md",
            &[
                doc_skips::OPERATIONS,
                doc_skips::BUILT,
                doc_skips::PREPARED,
                doc_skips::PACKAGED,
                doc_skips::PACKAGED_OPERATIONS,
            ],
        ),
        ("README.md", &[doc_skips::README, doc_skips::BUILT, doc_skips::PREPARED, doc_skips::PACKAGED]),
        // Last: it replaces /etc/echoed/echoed.toml.
        ("configuration.md", &[doc_skips::SETTINGS]),
    ];
    for (page, skips) in PAGES {
        let text = machine.sh(&format!("cat /usr/share/doc/echoed/{page}"));
        PageRunner::new(machine, page, skips).run_page(&text);
    }
}

/// The user of a machine who administers it: their directory is /home/admin, and they may use sudo(8).
pub const ADMIN: &str = "admin";

/// Runs the commands of a page on a machine.
pub struct PageRunner<'a> {
    machine: &'a Machine,
    page: &'static str,
    skips: &'static [Skips],
    /// Those of them that the page has.
    used_skips: BTreeSet<&'static Skip>,
    /// The directory in which the administrator runs them; without one, root does, in /.
    admin_directory: Option<&'static str>,
}

impl<'a> PageRunner<'a> {
    /// Comes to a machine without echoed.
    pub fn on_new_machine(machine: &'a Machine, page: &'static str, skips: &'static [Skips]) -> Self {
        make("uninstall PREFIX=/usr", &machine.path("/"), machine.version());
        Self::new(machine, page, skips)
    }

    /// Comes to a machine as it is.
    fn new(machine: &'a Machine, page: &'static str, skips: &'static [Skips]) -> Self {
        machine.write("/usr/local/bin/sudo", "#!/bin/sh\nexec \"$@\"\n");
        machine.sh("chmod 755 /usr/local/bin/sudo; systemctl daemon-reload");
        Self { admin_directory: None, ..Self::as_admin(machine, "/", page, skips) }
    }

    /// Comes to a machine as its administrator, into a directory.
    pub fn as_admin(
        machine: &'a Machine,
        directory: &'static str,
        page: &'static str,
        skips: &'static [Skips],
    ) -> Self {
        // What the pages call the machine's address in its network.
        machine.sh("ip address replace 192.0.2.1/24 dev lo");
        Self { machine, page, skips, used_skips: BTreeSet::new(), admin_directory: Some(directory) }
    }

    /// Makes the machine as it is after the installation and a first start.
    pub fn reset(&self) {
        self.machine.sh(RESET_SCRIPT);
    }

    /// Does it all, from top to bottom.
    pub fn run_page(&mut self, page: &str) {
        for Section { heading, blocks } in sections(page) {
            if blocks.is_empty() || self.skips(|one| matches!(one, Skip::Section(whole) if *whole == heading)) {
                continue;
            }
            if PROGRAMS.iter().any(|program| self.machine.path(program).exists()) {
                self.reset();
            }
            self.run_blocks(&blocks);
        }
        for (skip, _) in self.skips.iter().copied().flatten() {
            assert!(self.used_skips.contains(skip), "{} has no {skip:?} that could be skipped", self.page);
        }
    }

    /// Does what one section says, and nothing of what is above or below it.
    pub fn run_section(&mut self, page: &str, heading: &str) {
        let section = sections(page).into_iter().find(|section| section.heading == heading);
        self.run_blocks(&section.unwrap_or_else(|| panic!("{} has no section {heading}", self.page)).blocks);
    }

    fn run_blocks(&mut self, blocks: &[Block]) {
        for block in blocks {
            self.run_block(block);
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
            BlockKind::File(path) => {
                // "systemctl edit" makes it.
                let directory = Path::new(path).parent().expect("a file is in a directory");
                let exists =
                    path.ends_with("/override.conf") || self.machine.path(&directory.to_string_lossy()).is_dir();
                assert!(exists, "{page}:{line}: nothing has made the directory of {path}");
                self.machine.write(path, &format!("{}\n", block.text));
            }
            BlockKind::Other => {
                let is_skipped = self.skips_line(&block.text);
                assert!(is_skipped, "{page}:{line}: no test uses this block:\n{}", block.text);
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

    /// Runs a command as the user who follows the page.
    pub fn run(&self, command: &str) -> CommandResult {
        self.machine.write("/run/command", command);
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
        if let Some(directory) = self.admin_directory {
            return self.machine.run(&format!(
                "cd {directory} && runuser --user {ADMIN} -- env {path} HOME=/home/{ADMIN} {QUICK_BUILD} timeout 600 \
                 bash -o pipefail /run/command"
            ));
        }
        if let Some(words) = without_comment(command).strip_prefix("sudo make ") {
            // From here: the sources are not there.
            make(words, &self.machine.path("/"), self.machine.version());
            return CommandResult { code: Some(0), output: String::new() };
        }
        self.machine.run(&format!("{path} timeout 60 bash -o pipefail /run/command"))
    }

    fn skips_line(&mut self, text: &str) -> bool {
        let first = without_comment(text.lines().next().unwrap_or_default());
        self.skips(|one| matches!(one, Skip::Line(line) if *line == first))
    }

    fn skips(&mut self, matches: impl Fn(&Skip) -> bool) -> bool {
        let found = self.skips.iter().copied().flatten().map(|(skip, _)| skip).find(|skip| matches(skip));
        self.used_skips.extend(found);
        found.is_some()
    }
}

fn without_comment(command: &str) -> &str {
    command.split(" #").next().unwrap_or_default().trim_end()
}
