//! One table of the configuration while it is read. Keys that were not asked for by then are reported as unknown.

use super::diagnose::{Problem, closest};
use super::keys::{self, KeyVisitor};
use super::notation::toml_key;
use super::tree::{Node, Span, Table, Value};
use super::value::{self, Kind, ValueError};

/// A table while it is read.
pub(super) struct Section<'a, 'p> {
    table: &'a Table,
    /// As in a header: `defaults.deadlines`; empty for the whole.
    name: String,
    known_keys: Vec<&'a str>,
    /// Whether its keys are names, which may be any.
    takes_names: bool,
    problems: &'p mut Vec<Problem>,
}

impl<'a, 'p> Section<'a, 'p> {
    /// Reads the whole of a tree.
    pub(super) fn read_all(table: &'a Table, problems: &'p mut Vec<Problem>, read: impl FnOnce(&mut Self)) {
        let mut root = Self { table, name: String::new(), known_keys: Vec::new(), takes_names: false, problems };
        read(&mut root);
        root.report_unknown_keys();
    }

    pub(super) fn table(&self) -> &'a Table {
        self.table
    }

    pub(super) fn report_problem(&mut self, span: Span, message: String) {
        self.problems.push(Problem { span, message, related: Vec::new() });
    }

    /// Returns the value of a key, if it is set and was not found invalid before.
    pub(super) fn value(&mut self, key: &'a str) -> Option<&'a Node> {
        self.known_keys.push(key);
        self.valid_value(key)
    }

    /// Returns whether a key is set to a value that was not found invalid before.
    pub(super) fn sets(&self, key: &str) -> bool {
        self.valid_value(key).is_some()
    }

    fn valid_value(&self, key: &str) -> Option<&'a Node> {
        self.table.get(key).filter(|node| node.value != Value::Invalid)
    }

    /// Reads the table of this name, where there is one.
    pub(super) fn section(&mut self, key: &'a str, read: impl FnOnce(&mut Section<'a, '_>)) {
        if let Some(node) = self.value(key) {
            self.read_section(key, node, read);
        }
    }

    /// Reads the table of this name, of which there may be many: no key here is unknown.
    pub(super) fn named_section(&mut self, name: &'a str, read: impl FnOnce(&mut Section<'a, '_>)) {
        self.takes_names = true;
        if let Some(node) = self.valid_value(name) {
            self.read_section(name, node, read);
        }
    }

    fn read_section(&mut self, key: &'a str, node: &'a Node, read: impl FnOnce(&mut Section<'a, '_>)) {
        let name = if self.name.is_empty() { toml_key(key) } else { format!("{}.{}", self.name, toml_key(key)) };
        let Value::Table(table) = &node.value else {
            return self.report_problem(node.span, format!("[{name}] is a section, not {}", node.value.kind()));
        };
        let mut section =
            Section { table, name, known_keys: Vec::new(), takes_names: false, problems: &mut *self.problems };
        read(&mut section);
        section.report_unknown_keys();
    }

    /// Reports every key that was not asked for, with what may be meant.
    fn report_unknown_keys(self) {
        if self.takes_names {
            return;
        }
        for (name, node) in self.table {
            if self.known_keys.contains(&name.as_str()) {
                continue;
            }
            let location = if self.name.is_empty() { String::new() } else { format!(" in [{}]", self.name) };
            let message =
                format!("there is no key {}{location}; {}", name.escape_debug(), self.hint(name, &node.value));
            self.problems.push(Problem { span: node.key_span, message, related: Vec::new() });
        }
    }

    fn hint(&self, name: &str, value: &Value) -> String {
        // Names of systemd's sockets have points: [listener.echoed.socket].
        if let (Some(listener), Value::Table(_), None) =
            (self.name.strip_prefix("listener."), value, closest(name, &self.known_keys))
        {
            return format!("a name with a dot needs quotes: [listener.\"{listener}.{name}\"]");
        }
        let elsewhere = keys::sections_of(name);
        if !elsewhere.is_empty() {
            return format!("it belongs in {}", elsewhere.join(" or "));
        }
        match closest(name, &self.known_keys) {
            Some(nearest) => format!("is {nearest} meant?"),
            None => format!("known are {}", self.known_keys.join(", ")),
        }
    }
}

/// Sets each setting whose key is set. An invalid value is a problem.
impl KeyVisitor for Section<'_, '_> {
    fn visit<T>(&mut self, name: &'static str, setting: &mut T, kind: &Kind<T>, _: &'static str) {
        let Some(node) = self.value(name) else { return };
        match (kind.read)(&node.value) {
            Ok(value) => *setting = value,
            Err(ValueError::WrongType) => {
                let hint =
                    value::suggest(kind.name, &node.value).map(|hint| format!("; write {hint}")).unwrap_or_default();
                let message = format!("{name} is {}, not {}{hint}", kind.name, node.value.kind());
                self.report_problem(node.span, message);
            }
            Err(ValueError::Invalid(reason)) => self.report_problem(node.span, format!("{name}: {reason}")),
        }
    }
}
