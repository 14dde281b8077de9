//! One table of the configuration while it is read: what was not asked for when that is finished, is not known.

use super::diagnose::{Problem, nearest};
use super::keys;
use super::tree::{Data, Node, Place, Table};
use super::value::{self, Wrong};

/// A table while it is read.
pub(super) struct Section<'a, 'p> {
    table: &'a Table,
    /// As in a header: `defaults.deadlines`; empty for the whole.
    name: String,
    known: Vec<&'a str>,
    /// Keys of parts that do not exist yet: refused with that reason, not ignored.
    pub(super) not_built: &'static [&'static str],
    problems: &'p mut Vec<Problem>,
}

impl<'a, 'p> Section<'a, 'p> {
    /// Reads the whole of a tree.
    pub(super) fn read_all(table: &'a Table, problems: &'p mut Vec<Problem>, read: impl FnOnce(&mut Self)) {
        let mut root = Self { table, name: String::new(), known: Vec::new(), not_built: &[], problems };
        read(&mut root);
        root.finish();
    }

    pub(super) fn table(&self) -> &'a Table {
        self.table
    }

    pub(super) fn problem(&mut self, place: Place, message: String) {
        self.problems.push(Problem { place, message, related: Vec::new() });
    }

    /// What a key is set to, where it is set to something that was not refused before.
    pub(super) fn value(&mut self, key: &'a str) -> Option<&'a Node> {
        self.known.push(key);
        self.table.get(key).filter(|node| node.data != Data::Refused)
    }

    /// Sets `target` where the key is set. A value that `parse` refuses is a problem; `kind` is what it should be.
    pub(super) fn set<T>(
        &mut self,
        target: &mut T,
        key: &'a str,
        kind: &str,
        parse: impl FnOnce(&'a Data) -> Result<T, Wrong>,
    ) {
        let Some(node) = self.value(key) else { return };
        match parse(&node.data) {
            Ok(value) => *target = value,
            Err(Wrong::Type) => {
                let hint = value::instead(kind, &node.data).map(|hint| format!("; write {hint}")).unwrap_or_default();
                self.problem(node.place, format!("{key} is {kind}, not {}{hint}", node.data.kind()));
            }
            Err(Wrong::Said(wrong)) => self.problem(node.place, format!("{key}: {wrong}")),
        }
    }

    /// Reads the table of this name, where there is one.
    pub(super) fn section(&mut self, key: &'a str, read: impl FnOnce(&mut Section<'a, '_>)) {
        let Some(node) = self.value(key) else { return };
        let name =
            if self.name.is_empty() { keys::quoted(key) } else { format!("{}.{}", self.name, keys::quoted(key)) };
        let Data::Table(table) = &node.data else {
            return self.problem(node.place, format!("[{name}] is a section, not {}", node.data.kind()));
        };
        let mut section = Section { table, name, known: Vec::new(), not_built: &[], problems: &mut *self.problems };
        read(&mut section);
        section.finish();
    }

    /// Reports every key that was not asked for, with what may be meant.
    fn finish(self) {
        for (name, node) in self.table {
            if self.known.contains(&name.as_str()) {
                continue;
            }
            let message = if self.not_built.contains(&name.as_str()) {
                format!("{name} is not built yet in this version of echoed; remove it")
            } else {
                let place = if self.name.is_empty() { String::new() } else { format!(" in [{}]", self.name) };
                format!("there is no key {}{place}; {}", name.escape_debug(), self.hint(name))
            };
            self.problems.push(Problem { place: node.key, message, related: Vec::new() });
        }
    }

    fn hint(&self, name: &str) -> String {
        let elsewhere = keys::sections_of(name);
        if !elsewhere.is_empty() {
            return format!("it belongs in {}", elsewhere.join(" or "));
        }
        match nearest(name, &self.known) {
            Some(nearest) => format!("is {nearest} meant?"),
            None => format!("known are {}", self.known.join(", ")),
        }
    }
}
