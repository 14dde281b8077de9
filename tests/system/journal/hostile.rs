//! A peer's bytes cannot forge a field, an entry or a line.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};

use super::entries::{Entry, entries, exported, journalctl, wait_for_entries};
use super::{TCP, listen};
use common::machines::machine::Machine;

tests![
    message_summaries_cannot_forge_fields_or_entries,
    full_messages_cannot_forge_fields_or_entries,
    the_name_of_a_clients_socket_is_not_in_the_journal,
];

const MESSAGES: [&[u8]; 12] = [
    b"two\nlines",
    b"a\nMESSAGE_ID=a5b78d5defc24e4788ea54eeed27f183\n",
    b"a\nPRIORITY=0",
    // As a field with any bytes begins in the native protocol.
    b"a\nPRIORITY\n\x01\0\0\0\0\0\0\x000\n",
    b"a\n\n__CURSOR=x\nMESSAGE=another entry\n\n",
    b"<0>a\r\n<0>b",
    b"nul\0byte",
    b"\xff\xfe\xc3 is not UTF-8 \xed\xa0\x80",
    b"\x1b[2J\x1b]0;title\x07\x9b31m",
    "\u{202e}backwards\u{2028}\u{85}".as_bytes(),
    b"\rNov 21 16:35:12 vm echoed[63]: stopped: SIGKILL",
    b"",
];

/// All that an entry of a message has.
const FIELDS: [&str; 7] = ["MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "LISTENER", "PEER", "CONNECTION"];

/// Sends all messages, and returns their entries. They have the right fields, with the right values.
fn log_hostile_messages(machine: &Machine, log_messages: &str, id: &str) -> Vec<Entry> {
    listen(machine, &format!("[defaults]\nlog_messages = '{log_messages}'"));
    let mut peer = machine.connect(TCP);
    for message in MESSAGES {
        peer.send([message, b"\t"].concat());
        peer.expect([b"server got:", message, b"\t"].concat());
    }
    let found = wait_for_entries(machine, &format!("-u echoed MESSAGE_ID={id}"), MESSAGES.len());
    for entry in &found {
        let ours = entry.ours();
        assert_eq!(ours.keys().copied().collect::<BTreeSet<_>>(), FIELDS.into());
        let values = ["PRIORITY", "SYSLOG_IDENTIFIER", "LISTENER", "CONNECTION"].map(|name| &*ours[name]);
        assert_eq!(values, ["6", "echoed", "echo", "1"], "{entry:?}");
    }
    // In every form, and no entry of ours that is another.
    for (json, export) in found.iter().zip(exported(machine, &format!("-u echoed MESSAGE_ID={id}"))) {
        assert!(FIELDS.iter().all(|name| json.bytes(name) == export.bytes(name)), "{json:?}\n{export:?}");
    }
    let all = entries(machine, "_COMM=echoed");
    let others = all.iter().filter(|entry| entry.text("MESSAGE_ID") != id);
    assert!(others.map(|entry| entry.text("MESSAGE")).all(|text| text.starts_with("listening on ")), "{all:?}");
    found
}

/// The lines that a person sees.
fn displayed_lines(machine: &Machine, id: &str) -> Vec<String> {
    // Without --all, as people call it.
    let printed = machine.sh(&format!("journalctl --quiet --no-pager --output=short -u echoed MESSAGE_ID={id}"));
    assert!(!printed.contains(['\x1b', '\x07', '\0', '\r']), "{printed:?}");
    printed.lines().map(str::to_owned).collect()
}

fn message_summaries_cannot_forge_fields_or_entries(machine: &Machine) {
    let id = "51a1cd7c305043978fb018e4cab91a97";
    for entry in log_hostile_messages(machine, "summary", id) {
        let text = entry.text("MESSAGE");
        assert!(text.starts_with("message on connection 1 on echo from 127.0.0.1:"), "{text:?}");
        assert!(!text.contains(char::is_control) && !text.contains(['\u{202e}', '\u{2028}']), "{text:?}");
    }
    // One entry, one line, also where everything is shown.
    assert_eq!(displayed_lines(machine, id).len(), MESSAGES.len());
    let all = journalctl(machine, &format!("--output=short -u echoed MESSAGE_ID={id}"));
    let all = String::from_utf8(all).expect("it is text");
    assert_eq!(all.lines().count(), MESSAGES.len());
    assert!(!all.contains(|c: char| c.is_control() && c != '\n'), "{all:?}");
}

fn full_messages_cannot_forge_fields_or_entries(machine: &Machine) {
    let id = "d460f42094ba4f3184a826c2496d3caf";
    let found = log_hostile_messages(machine, "full", id);
    for (entry, message) in found.iter().zip(MESSAGES) {
        assert_eq!(entry.bytes("MESSAGE"), Some(message), "{entry:?}");
    }
    // The lines of a message are indented, so that none can be mistaken for an entry.
    let lines = displayed_lines(machine, id);
    let entries = lines.iter().filter(|line| !line.starts_with(' '));
    assert!(entries.clone().all(|line| line.contains("echoed[")), "{lines:#?}");
    assert_eq!(entries.count(), MESSAGES.len(), "{lines:#?}");
}

fn the_name_of_a_clients_socket_is_not_in_the_journal(machine: &Machine) {
    listen(machine, "[log]\nlevel = 'debug'");
    let client =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("sockets can be made");
    let name = b"evil\nPRIORITY=0\n\x1b[2J";
    bind(&client, &SocketAddrUnix::new_abstract_name(name).expect("it is short")).expect("it can be bound");
    let path = machine.path("/run/echoed.sock");
    connect(&client, &SocketAddrUnix::new(path).expect("it is short")).expect("the daemon listens");
    drop(UnixStream::from(client));
    for entry in wait_for_entries(machine, "-u echoed CONNECTION=1", 2) {
        assert_eq!(entry.ours()["PRIORITY"], "7");
        assert!(entry.ours().values().all(|value| !value.contains("evil")), "{entry:?}");
    }
}
