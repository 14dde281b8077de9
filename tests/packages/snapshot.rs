//! What is on a machine, to see what is left of a package.

use std::collections::BTreeMap;

use common::machines::machine::Machine;

/// Every file, with its kind, mode, owner, size, and what is in it.
pub struct Snapshot(BTreeMap<String, String>);

/// What a package has no part in. The first four belong to the kernel and to those who run it; of the rest, the reason stands
/// beside it.
const IGNORED: [&str; 13] = [
    "/proc",
    "/sys",
    "/dev",
    "/tmp",
    "/var/log",
    "/root/packages",
    // The catalogs of all packages, written anew whenever one is installed: the times of the files are in it.
    "/var/lib/systemd/catalog/database",
    // What ldconfig knew the last time that a package manager called it.
    "/var/cache/ldconfig",
    // When dpkg did something last, and how everything was before that.
    "/var/lib/dpkg/status-old",
    "/var/lib/dpkg/diversions-old",
    "/var/lib/dpkg/statoverride-old",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/triggers",
];

/// What comes and goes while a machine runs, whatever is installed on it.
const IGNORED_IN_RUN: [&str; 4] = ["/run/systemd", "/run/log", "/run/user", "/run/host"];

impl Snapshot {
    /// As it is now.
    pub fn take(machine: &Machine) -> Self {
        let pruned: Vec<_> = IGNORED.iter().chain(&IGNORED_IN_RUN).map(|path| format!("-path {path}")).collect();
        let listed = machine.sh(&format!(
            "find / \\( {} \\) -prune -o -printf '%p\\t%y %m %u:%g %l\\n'
             echo
             find / \\( {} \\) -prune -o -type f -print0 | xargs -0 sha256sum",
            pruned.join(" -o "),
            pruned.join(" -o "),
        ));
        let (kinds, sums) = listed.split_once("\n\n").expect("two lists");
        let mut files: BTreeMap<_, _> = kinds
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(path, what)| (path.to_owned(), what.to_owned()))
            .collect();
        for (sum, path) in sums.lines().filter_map(|line| line.split_once("  ")) {
            files.entry(path.to_owned()).or_default().push_str(sum);
        }
        assert!(files.len() > 1000, "{listed}");
        Self(files)
    }

    /// What is not as it was before.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, what) in &self.0 {
            match before.0.get(path) {
                None => found.push(format!("new: {path} {what}")),
                Some(was) if was != what => found.push(format!("changed: {path} {was} -> {what}")),
                Some(_) => {}
            }
        }
        found.extend(before.0.keys().filter(|path| !self.0.contains_key(*path)).map(|path| format!("gone: {path}")));
        found
    }
}
