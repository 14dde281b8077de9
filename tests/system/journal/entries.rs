//! Entries of the journal as journalctl(1) gives them to programs: `--output=json` and `--output=export`.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value;

use common::machines::machine::Machine;
use common::wait_until;

/// An entry: all values of each field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry(BTreeMap<String, Vec<Vec<u8>>>);

/// The fields that the daemon sends.
const OURS: [&str; 12] = [
    "MESSAGE",
    "MESSAGE_ID",
    "PRIORITY",
    "SYSLOG_IDENTIFIER",
    "LISTENER",
    "PEER",
    "CONNECTION",
    "VERDICT",
    "REASON",
    "BYTES_IN",
    "BYTES_OUT",
    "MESSAGES",
];

/// Where in its source it did so.
const SOURCE: [&str; 3] = ["CODE_FILE", "CODE_LINE", "TARGET"];

impl Entry {
    /// The only value of a field; `None` if it is not there.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let values = self.0.get(name)?;
        assert_eq!(values.len(), 1, "{name} is there several times: {self:?}");
        values.first().map(Vec::as_slice)
    }

    /// The same as text; empty if it is not there.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.bytes(name).unwrap_or_default()).into_owned()
    }

    /// The fields that the daemon sent, after a check that it sent no others and none twice.
    pub fn ours(&self) -> BTreeMap<&str, String> {
        for name in self.0.keys() {
            let known = name.starts_with('_') || OURS.contains(&&**name) || SOURCE.contains(&&**name);
            assert!(known, "{name} is none of ours: {self:?}");
        }
        OURS.into_iter().filter(|name| self.0.contains_key(*name)).map(|name| (name, self.text(name))).collect()
    }

    fn add(&mut self, name: &[u8], value: Vec<u8>) {
        let name = String::from_utf8(name.to_vec()).expect("names are text");
        self.0.entry(name).or_default().push(value);
    }
}

/// The entries of these arguments of journalctl(1), the oldest first.
pub fn entries(machine: &Machine, arguments: &str) -> Vec<Entry> {
    from_json(&journalctl(machine, &format!("--output=json {arguments}")))
}

/// The same, by way of `--output=export`.
pub fn exported(machine: &Machine, arguments: &str) -> Vec<Entry> {
    from_export(&journalctl(machine, &format!("--output=export {arguments}")))
}

/// Waits until there are so many entries, and returns them.
pub fn wait_for_entries(machine: &Machine, arguments: &str, count: usize) -> Vec<Entry> {
    let mut found = Vec::new();
    wait_until(&format!("the journal has {count} entries for {arguments}"), || {
        found = entries(machine, arguments);
        found.len() >= count
    });
    assert_eq!(found.len(), count, "too many for {arguments}: {found:#?}");
    found
}

/// What journalctl(1) prints, whatever bytes that are.
pub fn journalctl(machine: &Machine, arguments: &str) -> Vec<u8> {
    let script = format!("journalctl --quiet --no-pager --all {arguments}");
    let mut child = machine.command(&script).spawn().expect("nsenter can be started");
    let mut said = Vec::new();
    child.stdout.take().expect("it is piped").read_to_end(&mut said).expect("a pipe can be read");
    assert!(child.wait().expect("it is our child").success(), "{script}: {}", String::from_utf8_lossy(&said));
    said
}

/// An object in each line. A value is a string, an array of numbers (bytes that are not text), or an array of such values
/// (a field that is there several times).
fn from_json(lines: &[u8]) -> Vec<Entry> {
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let fields: BTreeMap<String, Value> = serde_json::from_slice(line)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(line)));
            Entry(fields.into_iter().map(|(name, value)| (name, values(&value))).collect())
        })
        .collect()
}

fn values(value: &Value) -> Vec<Vec<u8>> {
    match value {
        Value::Array(list) if list.iter().any(|item| !item.is_number()) => list.iter().flat_map(values).collect(),
        Value::Array(bytes) => {
            let byte = |number: &Value| number.as_u64().and_then(|number| u8::try_from(number).ok());
            vec![bytes.iter().map(|number| byte(number).expect("a byte")).collect()]
        }
        Value::String(text) => vec![text.clone().into_bytes()],
        other => panic!("{other} is neither text nor bytes"),
    }
}

/// The journal export format (<https://systemd.io/JOURNAL_EXPORT_FORMATS/>): an empty line ends an entry; a line is
/// NAME=VALUE, or NAME before the length of the value, the value and a line feed.
fn from_export(mut bytes: &[u8]) -> Vec<Entry> {
    let (mut all, mut entry) = (Vec::new(), Entry::default());
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a line ends");
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if line.is_empty() {
            all.push(std::mem::take(&mut entry));
            bytes = rest;
        } else if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
            entry.add(&line[..equals], line[equals + 1..].to_vec());
            bytes = rest;
        } else {
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
            let length = usize::try_from(length).expect("it fits");
            entry.add(line, rest[..length].to_vec());
            bytes = &rest[length + 1..];
        }
    }
    all
}
