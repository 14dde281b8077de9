//! Random settings and random documents: what is printed can be loaded again, and nothing makes the reader panic.

use echoed::address::Address;
use echoed::config::{RESERVED_NAMES, Settings, Sources, is_listener_name};
use proptest::prelude::*;
use proptest::sample::select;

use crate::common::configuration::{DocumentedKey, Unit, documented_keys};

// --- Settings --------------------------------------------------------------------------------------------------------

/// Generates what a key takes, as TOML.
fn value(key: DocumentedKey) -> BoxedStrategy<String> {
    let range = match key.range() {
        None => return select(key.words()).boxed(),
        Some((Unit::Length, _)) if key.name == "delimiter" => {
            return prop_oneof!["[\\x00-\\x7f]{1,16}", "[a-c]{1,3}", "\\PC{1,4}"].prop_map(toml_string).boxed();
        }
        Some((Unit::Length, _)) => {
            return prop_oneof!["[\\x00-\\x7f]{0,90}", "[a-c]{0,9}", "\\PC{0,20}"].prop_map(toml_string).boxed();
        }
        Some((unit, range)) => {
            let (start, end) = range.into_inner();
            let number = prop_oneof![1 => start..=end.min(start + 10_000_000), 4 => start..=end];
            number.prop_map(move |number| unit.format(number)).boxed()
        }
    };
    if key.words().is_empty() { range } else { prop_oneof![1 => select(key.words()), 4 => range].boxed() }
}

fn toml_string(text: String) -> String {
    let characters: String = text.chars().map(|character| format!("\\U{:08X}", u32::from(character))).collect();
    format!("\"{characters}\"")
}

/// Generates lines that set some of the keys of a section.
fn lines(section: &'static str) -> impl Strategy<Value = String> {
    let line = |key: DocumentedKey| {
        let line = value(key).prop_map(move |value| format!("{} = {value}\n", key.name));
        prop::option::of(line).prop_map(Option::unwrap_or_default)
    };
    let keys = documented_keys().into_iter().filter(|key| key.section == section);
    keys.map(line).collect::<Vec<_>>().prop_map(|lines| lines.concat())
}

fn address() -> impl Strategy<Value = Address> {
    let text = prop_oneof![
        "(tcp|tcp4|tcp6):[a-z0-9.-]{1,20}:[0-9]{1,4}",
        "unix:/\\PC{1,20}",
        "unix:@[^\\x00]{1,20}",
        "udp:[a-z0-9.-]{1,20}:[0-9]{1,4}",
        "(seqpacket|unixgram):[/@][^\\x00]{1,20}",
        Just("tcp:[::1]:0".to_owned()),
    ];
    text.prop_filter_map("it is an address", |text| text.parse().ok())
}

/// Generates a document with some keys of every section. Some of their values contradict each other.
fn documents() -> impl Strategy<Value = String> {
    let name = prop_oneof!["[a-z]{1,5}", "[A-Za-z0-9_.@-]{1,12}"]
        .prop_filter("it is free", |name| is_listener_name(name) && !RESERVED_NAMES.contains(&name.as_str()));
    let addresses = prop::collection::vec(address().prop_map(|address| toml_string(address.to_string())), 0..3);
    let listener = (addresses, lines("defaults"), lines("defaults.deadlines"));
    let listeners = prop::collection::btree_map(name, listener, 0..4);
    let sections = ["log", "service", "limits", "defaults", "defaults.deadlines"];
    let sections = sections.map(|section| lines(section).prop_map(move |lines| format!("[{section}]\n{lines}")));
    (Vec::from(sections), listeners).prop_map(|(sections, listeners)| {
        let mut document = sections.concat();
        for (name, (addresses, own, deadlines)) in listeners {
            let listen = addresses.join(", ");
            document.push_str(&format!("[listener.\"{name}\"]\nlisten = [{listen}]\n{own}"));
            document.push_str(&format!("[listener.\"{name}\".deadlines]\n{deadlines}"));
        }
        document
    })
}

// --- Documents that may be invalid -----------------------------------------------------------------------------------

/// Good ones, to be spoilt.
const SEED_DOCUMENTS: [&str; 4] = [
    "log.level = \"warn\"\nservice = { workers = 2, idle_exit = \"off\", drain_timeout = \"1h 1us\" }\n[limits]\nconnections = 10\n",
    "# x\n[defaults]\ndelimiter = \"\\r\\n\"\nprefix = '''it's'''\nmax_message = \"1.5KiB\"\nnodelay = false\n",
    "[listener.a.deadlines]\nread = \"2s\"\nidle = \"off\"\n[listener.\"b.c\"]\nlisten = [\"@a\", \"127.0.0.1:0\"]\n",
    "[defaults]\r\nprefix = \"\"\r\nlog_messages = \"full\"\r\n[[x]]\r\n[x.y]\r\nz = [1, 2.5, 1979-05-27T07:32:00Z]\r\n",
];

/// What documents are made of.
const PIECES: [&str; 40] = [
    "\n",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    " = ",
    "\"",
    "'",
    "'''",
    "\"\"\"",
    "\\",
    "\\u",
    ".",
    ",",
    "#",
    "\t",
    "\r",
    "\0",
    "\u{feff}",
    "é",
    "😀",
    "0x",
    "-",
    "1",
    "9223372036854775808",
    "1e999",
    "nan",
    "true",
    "[log]\n",
    "[defaults]\n",
    "listen",
    "listener",
    "metrics",
    "level",
    "prefix = \"a\"\n",
    "\"off\"",
    "1979-05-27",
];

#[derive(Debug, Clone)]
enum Mutation {
    /// Puts a piece there.
    Insert(usize, &'static str),
    /// Takes so many characters away there.
    Cut(usize, usize),
    /// Copies so many characters from there to there.
    Copy(usize, usize, usize),
}

fn mutated_documents() -> impl Strategy<Value = String> {
    let mutation = prop_oneof![
        (0_usize..200, select(PIECES.to_vec())).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        (0_usize..200, 0_usize..9).prop_map(|(at, count)| Mutation::Cut(at, count)),
        (0_usize..200, 0_usize..20, 0_usize..200).prop_map(|(from, count, to)| Mutation::Copy(from, count, to)),
    ];
    let good = prop::collection::vec(select(SEED_DOCUMENTS.to_vec()), 1..3);
    (good, prop::collection::vec(mutation, 0..6)).prop_map(|(good, mutations)| {
        let mut text: Vec<char> = good.concat().chars().collect();
        for mutation in mutations {
            match mutation {
                Mutation::Insert(at, piece) => {
                    let at = at.min(text.len());
                    text.splice(at..at, piece.chars());
                }
                Mutation::Cut(at, count) => {
                    let at = at.min(text.len());
                    text.drain(at..(at + count).min(text.len()));
                }
                Mutation::Copy(from, count, to) => {
                    let from = from.min(text.len());
                    let piece: Vec<_> = text[from..(from + count).min(text.len())].to_vec();
                    let to = to.min(text.len());
                    text.splice(to..to, piece);
                }
            }
        }
        text.into_iter().collect()
    })
}

/// Loads a document. An error names positions in it; an accepted document can be printed and loaded again. Returns
/// whether it was accepted.
fn check(text: &str) -> Result<bool, TestCaseError> {
    match Settings::from_toml("file", text) {
        Ok(settings) => {
            let again = Settings::from_toml("printed", &settings.to_toml());
            prop_assert_eq!(again.map_err(|error| error.to_string()), Ok(settings));
            Ok(true)
        }
        Err(error) => {
            let said = error.to_string();
            let starts: Vec<_> = error.headlines().collect();
            prop_assert!(!starts.is_empty());
            prop_assert!(starts.iter().all(|line| line.starts_with("file:")), "{}", said);
            prop_assert_eq!(said.lines().count(), 4 * starts.len(), "{}", said);
            Ok(false)
        }
    }
}

#[test]
fn the_seed_documents_are_valid_except_the_last() {
    let good: Vec<_> = SEED_DOCUMENTS.iter().map(|text| check(text).unwrap()).collect();
    assert_eq!(good, [true, true, true, false]);
}

proptest! {
    #[test]
    fn whatever_settings_are_they_can_be_printed_and_loaded_again(document in documents()) {
        prop_assume!(check(&document)?);
    }

    #[test]
    fn no_document_makes_it_panic_and_what_is_accepted_can_be_printed_and_loaded_again(text in mutated_documents()) {
        check(&text)?;
    }

    #[test]
    fn no_text_at_all_makes_it_panic(text in "(?s).{0,60}", pieces in prop::collection::vec(select(PIECES.to_vec()), 0..9)) {
        check(&text)?;
        check(&pieces.concat())?;
    }

    #[test]
    fn no_variable_makes_it_panic(
        section in select(vec!["LOG", "SERVICE", "LIMITS", "DEFAULTS", "DEFAULTS__DEADLINES", "LISTENER__A", "X", ""]),
        key in select(vec!["LEVEL", "WORKERS", "DRAIN", "PREFIX", "DELIMITER", "READ", "NODELAY", "LISTEN", "A__B", "É", ""]),
        value in prop_oneof![
            Just("debug".to_owned()), "[0-9]{1,3}", "[0-9]s", "\\PC{0,8}", "(?s).{0,8}",
            prop::collection::vec(select(PIECES.to_vec()), 0..5).prop_map(|pieces| pieces.concat()),
        ],
    ) {
        let name = format!("ECHOED_{section}__{key}");
        let environment = vec![(name.clone().into(), value.into())];
        match (Sources { config: Some("/dev/null".into()), environment, ..Sources::default() }).load() {
            Ok(loaded) => {
                let again = Settings::from_toml("printed", &loaded.print()).map_err(|error| error.to_string());
                prop_assert_eq!(again, Ok(loaded.settings));
            }
            Err(error) => prop_assert!(error.headlines().all(|line| line.starts_with(&name)), "{}", error),
        }
    }
}
