//! [`Settings`] as a document that can be loaded again, with every key.

use super::Settings;
use super::keys::{Key, Section, sections};
use super::notation::toml_key;

/// The column where comments begin, if there is room.
const COMMENT_COLUMN: usize = 31;

/// Prints all settings. `comment` is given the path of a section and a key in it.
pub(super) fn document(settings: Settings, comment: impl Fn(&[&str], &Key) -> String) -> String {
    let mut text = String::new();
    for Section { path, keys } in sections(settings) {
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        if !text.is_empty() {
            text.push('\n');
        }
        let header: Vec<_> = path.iter().map(|key| toml_key(key)).collect();
        text.push_str(&format!("[{}]\n", header.join(".")));
        for key in keys {
            let (line, comment) = (format!("{} = {}", key.name, key.value), comment(&path, &key));
            if comment.is_empty() {
                text.push_str(&format!("{line}\n"));
            } else {
                text.push_str(&format!("{line:COMMENT_COLUMN$} # {comment}\n"));
            }
        }
    }
    text
}

/// Prints the defaults, each key with its explanation.
pub(super) fn defaults() -> String {
    let text = document(Settings::default(), |_, key| key.description.to_owned());
    format!(
        "{text}\n\
         # [listener.NAME] is the section of the sockets of this name. It takes every key of [defaults], and\n\
         # [listener.NAME.deadlines] those of [defaults.deadlines]; what it does not set is as in the defaults. Only there:\n\
         # listen = [\"tcp:127.0.0.1:8085\", \"unix:/run/echoed.sock\"] says where to listen without systemd;\n\
         # role = \"messages\", \"monitor\", \"agent\" or \"control\" says what its connections are for. Sections of the last three\n\
         # take no other keys, but weight = \"constant\" or \"free\" of the agent.\n"
    )
}
