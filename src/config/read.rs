//! A tree to [`Settings`]. All of it is checked, and every problem reported. It reads each layer by itself, where all
//! that is wrong with one value is found, and then what they were merged to, where nothing is left to be found but what
//! [`conflicts`](super::conflicts) looks for.

use std::sync::Arc;

use super::diagnose::Problem;
use super::notation::toml_string;
use super::section::Section;
use super::tree::{Node, Table, Value};
use super::{ListenerSettings, RESERVED_NAMES, Settings, is_listener_name, keys};
use crate::address::Address;
use crate::protocol::Rules;

/// Returns the settings of a tree, with the defaults where it sets nothing, and all problems in it.
pub(super) fn read_settings(tree: &Node) -> (Settings, Vec<Problem>) {
    let (mut settings, mut problems, empty) = (Settings::default(), Vec::new(), Table::new());
    Section::read_all(tree.table().unwrap_or(&empty), &mut problems, |root| read(root, &mut settings));
    (settings, problems)
}

fn read(root: &mut Section<'_, '_>, settings: &mut Settings) {
    root.section("log", |section| keys::log(section, &mut settings.log_level));
    root.section("service", |section| keys::service(section, &mut settings.service));
    root.section("limits", |section| keys::limits(section, &mut settings.limits));
    let mut is_prefix_set = false;
    root.section("defaults", |section| {
        is_prefix_set = section.sets("prefix");
        read_listener(section, &mut settings.defaults, is_prefix_set);
        for key in keys::ONLY_LISTENERS {
            if let Some(node) = section.value(key) {
                section.report_problem(node.span, format!("{key} belongs in [listener.NAME], not in [defaults]"));
            }
        }
    });
    root.section("listener", |all| {
        for (name, node) in all.table() {
            if RESERVED_NAMES.contains(&name.as_str()) {
                all.report_problem(node.key_span, format!("{name} is reserved, and cannot be the name of a listener"));
            } else if !is_listener_name(name) {
                let message =
                    format!("invalid listener name \"{}\" (allowed: letters, digits and _ . @ -)", name.escape_debug());
                all.report_problem(node.key_span, message);
            }
            all.named_section(name, |section| {
                let mut listener = settings.defaults.clone();
                read_listener(section, &mut listener, is_prefix_set || section.sets("prefix"));
                read_addresses(section, &mut listener.listen);
                keys::only_listener(section, &mut listener);
                settings.listeners.insert(name.clone(), listener);
            });
        }
    });
}

/// Reads one listener's settings over those that it has. Its prefix follows from the framing, unless it is set.
fn read_listener(section: &mut Section<'_, '_>, listener: &mut ListenerSettings, is_prefix_set: bool) {
    let mut rules = Rules::clone(&listener.rules);
    keys::rules(section, &mut rules);
    if !is_prefix_set {
        rules.prefix = rules.framing.default_prefix();
    }
    section.section("deadlines", |section| keys::deadlines(section, &mut rules.deadlines));
    listener.rules = Arc::new(rules);
    keys::listener(section, listener);
}

/// Reads a list of addresses; each that is wrong is a problem of its own.
fn read_addresses(section: &mut Section<'_, '_>, addresses: &mut Vec<Address>) {
    let Some(node) = section.value("listen") else { return };
    let Value::Array(nodes) = &node.value else {
        let hint = match &node.value {
            Value::Text(text) if text.parse::<Address>().is_ok() => {
                format!("; write [{}]", toml_string(text))
            }
            _ => String::new(),
        };
        return section
            .report_problem(node.span, format!("listen is a list of addresses, not {}{hint}", node.value.kind()));
    };
    for node in nodes {
        match &node.value {
            Value::Text(text) => match text.parse() {
                Ok(address) => addresses.push(address),
                Err(error) => section.report_problem(node.span, format!("listen: {error}")),
            },
            other => section.report_problem(node.span, format!("listen: an address is a string, not {}", other.kind())),
        }
    }
}
