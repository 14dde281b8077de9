//! Conflicts between settings: values that are valid by themselves, but not together.

use super::diagnose::Problem;
use super::tree::{Node, Span, Value};
use super::{ListenerSettings, Role, Settings};
use crate::address::{Address, first_repeated, repeated_address_hint};
use crate::protocol::Rules;
use crate::protocol::reply::Prefix;
use crate::protocol::rules::Framing;
use crate::units::format_size;

/// Finds every conflict in `tree`, which became `settings`. Invalid values are in none.
pub(super) fn find(settings: &Settings, tree: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_section(tree, &["defaults"], &settings.defaults.rules, settings.limits.buffer_memory, &mut problems);
    for (name, listener) in &settings.listeners {
        problems.extend(find_unused_keys(name, listener, tree));
        let rules = &listener.rules;
        check_section(tree, &["listener", name], rules, settings.limits.buffer_memory, &mut problems);
    }
    problems.extend(find_repeated_address(settings, tree));
    problems
}

/// Finds the keys of a section that its role does not use, and addresses that cannot be listened on in that role.
fn find_unused_keys(name: &str, listener: &ListenerSettings, tree: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Some(section) = tree.find(&["listener", name]).and_then(Node::table) else { return problems };
    let role = section.get("role").map(|node| node.span);
    let mut report = |span, message| problems.push(Problem { span, message, related: vec![("role", role)] });
    for (key, node) in section.iter().filter(|(key, _)| !listener.role.uses(key)) {
        report(span_of(node), format!("a listener with role = \"{}\" has no {key}; remove it", listener.role.as_str()));
    }
    if let (true, Some(node)) = (listener.role != Role::Messages, section.get("listen")) {
        let is_taken = |address: &Address| match (listener.role, address) {
            (Role::Control, Address::Unix(_)) => true,
            (Role::Control, _) => false,
            (_, Address::Tcp { .. } | Address::Unix(_)) => true,
            _ => false,
        };
        let takes = if listener.role == Role::Control { "unix: addresses only" } else { "tcp: and unix: addresses" };
        for address in listener.listen.iter().filter(|address| !is_taken(address)) {
            let role = listener.role.as_str();
            report(node.span, format!("{address}: a listener with role = \"{role}\" takes {takes}"));
        }
    }
    problems
}

/// Returns a place for a key: a table that was merged from several has none of its own.
fn span_of(node: &Node) -> Span {
    match &node.value {
        Value::Table(table) => table.values().next().map_or(node.span, span_of),
        _ => node.span,
    }
}

/// Finds an address of the `listen` keys that is there before: it can be bound once only.
fn find_repeated_address(settings: &Settings, tree: &Node) -> Option<Problem> {
    let (mut addresses, mut places) = (Vec::new(), Vec::new());
    for (name, listener) in &settings.listeners {
        let key = tree.find(&["listener", name, "listen"]);
        let nodes = match key.map(|node| &node.value) {
            Some(Value::Array(nodes)) if nodes.len() == listener.listen.len() => nodes.as_slice(),
            _ => &[],
        };
        for (at, address) in listener.listen.iter().enumerate() {
            addresses.push(address);
            places.push(nodes.get(at).or(key).map(|node| node.span));
        }
    }
    let (first, at) = first_repeated(&addresses)?;
    let message = format!("{} is listed twice; {}", addresses[at], repeated_address_hint(addresses[at]));
    Some(Problem { span: places[at]?, message, related: vec![("listen", places[first])] })
}

fn check_section(tree: &Node, section: &[&str], rules: &Rules, buffer_memory: usize, problems: &mut Vec<Problem>) {
    let is_defaults = section.len() == 1;
    let own = |key| tree.find(&[section, &[key]].concat());
    let setting = |key| own(key).or_else(|| tree.find(&["defaults", key]));
    let budget = tree.find(&["limits", "buffer_memory"]);

    // A problem of the defaults is reported there only.
    for (key, bytes) in [("prefix", rules.prefix.as_bytes()), ("fixed_reply", &rules.fixed_reply)] {
        let is_own = is_defaults || [key, "delimiter", "framing"].iter().any(|key| own(key).is_some());
        if is_own && rules.framing == Framing::Delimited && rules.delimiter.is_in(bytes) {
            let (shown, delimiter) = (Prefix::new(bytes), &rules.delimiter);
            let message = format!("the {key} {shown:?} contains the delimiter {delimiter:?}; change one of them");
            // Of two in one section or file, the delimiter is not shown.
            let sides = [(key, setting(key), own(key)), ("delimiter", setting("delimiter"), own("delimiter"))];
            problems.extend(conflict(sides, message));
        }
    }
    if (is_defaults || own("max_message").is_some()) && rules.max_message > buffer_memory {
        let (size, budget_size) = (format_size(rules.max_message as u64), format_size(buffer_memory as u64));
        let message = format!(
            "a message of {size} (max_message) never fits into limits.buffer_memory ({budget_size}); change one of them"
        );
        let sides =
            [("max_message", setting("max_message"), own("max_message")), ("limits.buffer_memory", budget, budget)];
        problems.extend(conflict(sides, message));
    }
}

/// One side of a conflict: its key, what it is set to, and the same if that is in the section in question.
type Side<'a> = (&'static str, Option<&'a Node>, Option<&'a Node>);

/// Returns the problem, at the place where the last layer set one of the two, with the place of the other.
fn conflict(sides: [Side<'_>; 2], message: String) -> Option<Problem> {
    if sides.iter().any(|(_, node, _)| node.is_some_and(|node| node.value == Value::Invalid)) {
        return None;
    }
    let span = |side: &Side<'_>| side.1.map(|node| node.span);
    let rank = |side: &Side<'_>| (side.2.is_some(), span(side).map(|span| span.layer));
    let [first, second] = sides;
    let (shown, other) = if rank(&second) > rank(&first) { (second, first) } else { (first, second) };
    Some(Problem { span: span(&shown)?, message, related: vec![(other.0, span(&other))] })
}
