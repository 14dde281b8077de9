//! Entries of the journal as journalctl(1) gives them to programs: `--output=json` and `--output=export`.

use std::collections::BTreeMap;
use std::io::Read;
use std::iter::Peekable;
use std::slice::Iter;

use crate::common::wait_until;
use crate::machine::Machine;

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

/// An object in each line. A value is a string, an array of numbers (bytes that are no text), or an array of such values
/// (a field that is there several times).
fn from_json(lines: &[u8]) -> Vec<Entry> {
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| Json { rest: line.iter().peekable() }.entry()).collect()
}

struct Json<'a> {
    rest: Peekable<Iter<'a, u8>>,
}

impl Json<'_> {
    fn entry(mut self) -> Entry {
        let mut entry = Entry::default();
        self.list(b'{', b'}', |json| {
            let name = json.string();
            json.expect(b':');
            for value in json.values() {
                entry.add(&name, value);
            }
        });
        entry
    }

    fn values(&mut self) -> Vec<Vec<u8>> {
        if self.peek() == b'"' {
            return vec![self.string()];
        }
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        self.list(b'[', b']', |json| match json.peek() {
            b'"' | b'[' => values.extend(json.values()),
            _ => bytes.push(json.number()),
        });
        if values.is_empty() { vec![bytes] } else { values }
    }

    fn list(&mut self, first: u8, last: u8, mut item: impl FnMut(&mut Self)) {
        self.expect(first);
        while self.peek() != last {
            item(self);
            if self.peek() == b',' {
                self.expect(b',');
            }
        }
        self.expect(last);
    }

    fn string(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        self.expect(b'"');
        loop {
            match self.rest.next().expect("a string ends") {
                b'"' => return text,
                b'\\' => match self.rest.next().expect("an escape ends") {
                    b'u' => {
                        let digits: String = self.rest.by_ref().take(4).map(|byte| char::from(*byte)).collect();
                        let code = u32::from_str_radix(&digits, 16).expect("hexadecimal digits");
                        let escaped = char::from_u32(code).expect("journalctl writes only control characters so");
                        text.extend(escaped.to_string().bytes());
                    }
                    escape => text.push(match escape {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'f' => 12,
                        other => *other,
                    }),
                },
                other => text.push(*other),
            }
        }
    }

    fn number(&mut self) -> u8 {
        let mut digits = String::new();
        while let Some(digit) = self.rest.next_if(|byte| byte.is_ascii_digit()) {
            digits.push(char::from(*digit));
        }
        digits.parse().expect("a byte")
    }

    /// What comes next, after blanks.
    fn peek(&mut self) -> u8 {
        while self.rest.next_if(|byte| byte.is_ascii_whitespace()).is_some() {}
        **self.rest.peek().expect("the line does not end here")
    }

    fn expect(&mut self, expected: u8) {
        assert_eq!(char::from(self.peek()), char::from(expected));
        self.rest.next();
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
