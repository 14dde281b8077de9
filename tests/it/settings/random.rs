//! Random settings and random documents: what is printed can be loaded again, and nothing makes the reader panic.

use std::sync::Arc;
use std::time::Duration;

use echoed::address::Address;
use echoed::config::{BufferSize, Level, Limits, ListenerSettings, Service, Settings, Sources};
use echoed::protocol::reply::Prefix;
use echoed::protocol::rules::{Deadlines, Framing, LogMessages, ReplyMode, Rules, TimeSpan, Unterminated};
use echoed::protocol::{Delimiter, delimiter};
use echoed::units::{MAX_TIME, format_time};
use proptest::prelude::*;
use proptest::sample::select;

// --- Settings --------------------------------------------------------------------------------------------------------

fn span(least: u64) -> impl Strategy<Value = TimeSpan> {
    let longest = u64::try_from(MAX_TIME.as_micros()).expect("it fits");
    let micros = prop_oneof![least..10_000_000, least..=longest];
    micros.prop_map(|micros| {
        let time = Duration::from_micros(micros);
        TimeSpan::new(time, &format_time(time))
    })
}

fn deadline() -> impl Strategy<Value = Option<TimeSpan>> {
    prop::option::of(span(1000))
}

fn deadlines() -> impl Strategy<Value = Deadlines> {
    let all = (deadline(), deadline(), deadline(), deadline());
    all.prop_map(|(idle, read, write, lifetime)| Deadlines { idle, read, write, lifetime })
}

/// A framing, a delimiter, and a prefix and a text in which it is not, where it counts.
fn strings() -> impl Strategy<Value = (Framing, Delimiter, Prefix, Arc<[u8]>)> {
    let framing = select(vec![Framing::Delimited, Framing::Raw]);
    let delimiter = prop_oneof!["[\\x00-\\x7f]{1,16}", "[a-c]{1,3}", "\\PC{1,4}"];
    let text = || prop_oneof!["[\\x00-\\x7f]{0,90}", "[a-c]{0,9}", "\\PC{0,20}"];
    (framing, delimiter, text(), text()).prop_filter_map("they conflict", |(framing, delimiter, prefix, text)| {
        let conflict = framing == Framing::Delimited && (prefix.contains(&delimiter) || text.contains(&delimiter));
        let fits = delimiter.len() <= delimiter::MAX_LEN && !conflict;
        let found = Delimiter::new(delimiter.as_bytes()).ok().filter(|_| fits)?;
        Some((framing, found, Prefix::new(prefix.as_bytes()), text.into_bytes().into()))
    })
}

fn rules(buffer_memory: usize) -> impl Strategy<Value = Rules> {
    let choices = (
        select(vec![ReplyMode::Echo, ReplyMode::Fixed, ReplyMode::None]),
        select(vec![Unterminated::Discard, Unterminated::Accept]),
        select(vec![LogMessages::Off, LogMessages::Summary, LogMessages::Full]),
    );
    let largest = buffer_memory.min(1 << 30);
    let all = (strings(), span(0), 1..=largest, choices, any::<bool>(), deadlines());
    all.prop_map(
        |(strings, reply_delay, max_message, (reply, unterminated, log_messages), error_replies, deadlines)| {
            let (framing, delimiter, prefix, fixed_reply) = strings;
            Rules {
                framing,
                packets: false,
                delimiter,
                reply,
                prefix,
                fixed_reply,
                reply_delay,
                max_message,
                unterminated,
                error_replies,
                log_messages,
                deadlines,
            }
        },
    )
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

fn listener(buffer_memory: usize) -> impl Strategy<Value = ListenerSettings> {
    let size = || {
        let bytes = (1024_usize..=1 << 29).prop_map(BufferSize::Bytes);
        prop_oneof![Just(BufferSize::Default), Just(BufferSize::Auto), bytes]
    };
    let addresses = prop::collection::vec(address(), 0..3);
    (addresses, rules(buffer_memory), any::<bool>(), any::<bool>(), size(), size()).prop_map(
        |(listen, rules, proxy_protocol, nodelay, receive_buffer, send_buffer)| ListenerSettings {
            listen,
            rules: Arc::new(rules),
            proxy_protocol,
            nodelay,
            receive_buffer,
            send_buffer,
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let buffer_memory = prop_oneof![4096_usize..1 << 20, 4096_usize..=1 << 40];
    buffer_memory.prop_flat_map(|buffer_memory| {
        let name = prop_oneof!["[a-z]{1,5}", "[A-Za-z0-9_.@-]{1,12}"].prop_filter("it is free", |name| {
            echoed::config::is_listener_name(name) && !echoed::config::RESERVED_NAMES.contains(&name.as_str())
        });
        let limits = (1_usize..=1_000_000, 0_u32..=1_000_000, deadline(), prop::option::of(1_u32..=1_000_000))
            .prop_map(move |(connections, connections_per_source, reclaim_idle, datagrams_per_source)| Limits {
                connections,
                connections_per_source,
                reclaim_idle,
                buffer_memory,
                datagrams_per_source,
            });
        let service = (0_usize..=64, deadline(), span(0), any::<bool>()).prop_map(
            |(workers, idle_exit, drain_timeout, handover)| Service { workers, idle_exit, drain_timeout, handover },
        );
        let defaults = listener(buffer_memory).prop_map(|defaults| ListenerSettings { listen: Vec::new(), ..defaults });
        let listeners = prop::collection::btree_map(name, listener(buffer_memory), 0..4);
        (select(Level::ALL.to_vec()), service, limits, defaults, listeners).prop_map(
            |(log_level, service, limits, defaults, listeners)| Settings {
                log_level,
                service,
                limits,
                defaults,
                listeners,
            },
        )
    })
}

// --- Documents -------------------------------------------------------------------------------------------------------

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
    fn whatever_settings_are_they_can_be_printed_and_loaded_again(settings in settings()) {
        let printed = settings.to_toml();
        let again = Settings::from_toml("printed", &printed).map_err(|error| error.to_string());
        prop_assert_eq!(again, Ok(settings), "{}", printed);
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
