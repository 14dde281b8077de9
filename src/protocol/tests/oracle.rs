//! Random streams and events, compared with a naive split.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::simulated_outlet::expected_reply;
use super::simulation::{SimulatedConnection, millis, secs, shown};
use crate::protocol::reply::{MAX_PREFIX, Prefix};
use crate::protocol::rules::{Deadlines, Framing, LogMessages, ReplyMode, TimeSpan, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

// --- The oracle ------------------------------------------------------------------------------------------------------

/// The expected result of a stream.
struct Split<'a> {
    messages: Vec<&'a [u8]>,
    /// The bytes after the last message.
    rest: &'a [u8],
    /// Whether `rest` begins with a message that is certain to be too long.
    too_long: bool,
}

/// Splits a stream naively: searches every position for the first delimiter, again for every message.
fn split<'a>(delimiter: &[u8], max_message: usize, mut rest: &'a [u8]) -> Split<'a> {
    let mut messages = Vec::new();
    while let Some(length) = (0..rest.len()).find(|at| rest[*at..].starts_with(delimiter)) {
        if length > max_message {
            return Split { messages, rest, too_long: true };
        }
        messages.push(&rest[..length]);
        rest = &rest[length + delimiter.len()..];
    }
    let matched = (0..delimiter.len()).rev().find(|matched| rest.ends_with(&delimiter[..*matched])).unwrap();
    Split { messages, rest, too_long: rest.len() - matched > max_message }
}

fn replies(rules: &Rules, messages: &[&[u8]]) -> Vec<u8> {
    messages.iter().flat_map(|message| expected_reply(rules, message)).collect()
}

fn final_reply(rules: &Rules, verdict: Verdict) -> Vec<u8> {
    let text = match verdict {
        Verdict::TooLong => format!("message exceeds {} bytes", rules.max_message),
        Verdict::ReadDeadline => "message not finished within 2s".to_owned(),
        Verdict::IdleDeadline => "no message within 5min".to_owned(),
        Verdict::Lifetime => "connection older than 7s".to_owned(),
        Verdict::Busy => "out of buffer memory".to_owned(),
        _ => return Vec::new(),
    };
    if rules.framing == Framing::Raw {
        return Vec::new();
    }
    [b"server error:", text.as_bytes(), rules.delimiter.as_bytes()].concat()
}

fn is_line_ends(rest: &[u8]) -> bool {
    String::from_utf8_lossy(rest).replace("\r\n", "").replace('\n', "").is_empty()
}

/// Returns the messages that are answered, of a stream that was read in pieces of these sizes and has `ended` or goes
/// on, and its verdict, if it ends there.
fn messages<'a>(rules: &Rules, wire: &'a [u8], reads: &[usize], ended: bool) -> (Vec<&'a [u8]>, Verdict) {
    if rules.framing == Framing::Raw {
        let mut rest = wire;
        let pieces = reads.iter().flat_map(|count| {
            let read;
            (read, rest) = rest.split_at(*count);
            read.chunks(rules.max_message.min(512))
        });
        return (pieces.collect(), Verdict::PeerClosed);
    }
    let Split { mut messages, rest, too_long } = split(rules.delimiter.as_bytes(), rules.max_message, wire);
    if too_long || rest.len() > rules.max_message {
        return (messages, Verdict::TooLong);
    }
    match rules.unterminated {
        Unterminated::Accept => {
            messages.extend((ended && !rest.is_empty()).then_some(rest));
            (messages, Verdict::PeerClosed)
        }
        Unterminated::Discard if is_line_ends(rest) => (messages, Verdict::PeerClosed),
        Unterminated::Discard => (messages, Verdict::Unterminated { bytes: u32::try_from(rest.len()).unwrap() }),
    }
}

/// Returns all bytes that the peer receives.
fn expected_output(rules: &Rules, messages: &[&[u8]], verdict: Verdict) -> Vec<u8> {
    [replies(rules, messages), final_reply(rules, verdict)].concat()
}

// --- Random streams --------------------------------------------------------------------------------------------------

/// Delimiters consist of few different bytes, which do not occur in error texts.
const ALPHABETS: [&[u8]; 5] = [b"\t", b"\t\0", b"\0\xff\n", b"\r\n", b"\xfe\xff"];

fn delimiter_of(alphabet: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(select(alphabet), 1..=3), vec(select(alphabet), 1..=16)]
}

/// Generates a stream of delimiters, partial ones, and other bytes of the same alphabet.
fn wire_of(alphabet: &'static [u8], delimiter: Vec<u8>, pieces: usize) -> impl Strategy<Value = Vec<u8>> {
    let length = delimiter.len();
    let piece = prop_oneof![
        3 => Just(delimiter.clone()),
        2 => (0..length).prop_map(move |matched| delimiter[..matched].to_vec()),
        2 => vec(select(alphabet), 0..20),
        1 => vec(select(&b"abc"[..]), 0..100),
    ];
    vec(piece, 0..pieces).prop_map(|pieces| pieces.concat())
}

/// Generates a prefix that may contain parts of the delimiter, but never the whole delimiter.
fn prefix_of(alphabet: &'static [u8], delimiter: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![Just(0), 1..20_usize, 60..70_usize, 65..=MAX_PREFIX];
    (length, vec(select(alphabet), 64)).prop_map(move |(length, pattern)| {
        let mut prefix: Vec<u8> = pattern.iter().copied().cycle().take(length).collect();
        while let Some(at) = (0..prefix.len()).find(|at| prefix[*at..].starts_with(&delimiter)) {
            prefix[at + delimiter.len() - 1] = b'>';
        }
        prefix
    })
}

fn max_message() -> impl Strategy<Value = usize> {
    prop_oneof![2 => 0..8_usize, 2 => 8..40_usize, 3 => Just(64 * 1024)]
}

/// Generates the delimited echo as often as any other combination of a framing, a reply and a delay.
fn combination() -> impl Strategy<Value = (Framing, ReplyMode, TimeSpan)> {
    let framing = select(&[Framing::Delimited, Framing::Raw][..]);
    let reply = select(&[ReplyMode::Echo, ReplyMode::Fixed, ReplyMode::None][..]);
    let delay = prop_oneof![3 => Just(0), 1 => 1..3_000_u64].prop_map(|delay| TimeSpan::new(millis(delay), "a while"));
    let plain = Rules::default();
    prop_oneof![Just((plain.framing, plain.reply, plain.reply_delay)), (framing, reply, delay)]
}

fn rules_and_wire(pieces: usize) -> impl Strategy<Value = (Rules, Vec<u8>)> {
    let delimiter = select(&ALPHABETS[..]).prop_flat_map(|alphabet| (Just(alphabet), delimiter_of(alphabet)));
    let parts = delimiter.prop_flat_map(move |(alphabet, delimiter)| {
        let wire = wire_of(alphabet, delimiter.clone(), pieces);
        let prefix = prefix_of(alphabet, delimiter.clone());
        (Just(delimiter), prefix, wire, max_message(), any::<bool>(), combination())
    });
    parts.prop_map(|(delimiter, prefix, wire, max_message, accept, (framing, reply, reply_delay))| {
        let unterminated = if accept { Unterminated::Accept } else { Unterminated::Discard };
        let delimiter = Delimiter::new(&delimiter).unwrap();
        let (fixed_reply, max_message) = (prefix.clone().into(), max_message.max(usize::from(framing == Framing::Raw)));
        let rules = Rules {
            framing,
            delimiter,
            reply,
            fixed_reply,
            reply_delay,
            max_message,
            unterminated,
            ..Rules::default()
        };
        (Rules { prefix: Prefix::new(&prefix), ..rules }, wire)
    })
}

/// Generates a cycle of sizes in which a peer reads. The last one is not 0, so that the peer makes progress.
fn peer_read_sizes() -> impl Strategy<Value = Vec<usize>> {
    let count = prop_oneof![2 => Just(0), 3 => 1..20_usize, 2 => 1..5_000_usize, 1 => 1..200_000_usize];
    vec(count, 0..10).prop_map(|mut takes| {
        takes.push(5_000);
        takes
    })
}

/// Generates how many messages the log accepts at a time: all, or a few at intervals.
fn log_accept_counts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![usize::MAX]), vec(0..3_usize, 0..10), vec(0..300_usize, 0..10)].prop_map(|mut takes| {
        takes.push(2);
        takes
    })
}

pub(super) fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn replies_equal_those_of_a_naive_split(
        (rules, wire) in rules_and_wire(100),
        chunks in vec(prop_oneof![1..4_usize, 1..40_usize, 1..1_000_usize], 1..10),
        peer_reads in peer_read_sizes(),
        reads_at_once in any::<bool>(),
        log_accepts in log_accept_counts(),
        logs in any::<bool>(),
        restarts_after_each_call in any::<bool>(),
    ) {
        let (mut rest, mut too_long) = (&wire[..0], false);
        if rules.framing == Framing::Delimited {
            Split { rest, too_long, .. } = split(rules.delimiter.as_bytes(), rules.max_message, &wire);
        }
        let mut conn = SimulatedConnection::new(rules.clone());
        if !logs {
            conn = conn.without_log();
        }
        if !reads_at_once {
            conn.peer_stops_reading();
        }
        if restarts_after_each_call {
            conn.restart_after_each_call();
        }
        conn.log_stops();
        let mut peer_reads = peer_reads.iter().copied().cycle();
        let mut log_accepts = log_accepts.iter().copied().cycle();
        let mut make_progress = |conn: &mut SimulatedConnection| {
            conn.log_accepts(log_accepts.next().unwrap());
            conn.peer_reads(peer_reads.next().unwrap());
            if conn.session().wants() == Want::Delay {
                conn.advance_time(conn.session().rules().reply_delay.duration());
            }
        };
        let (mut left, mut chunks) = (&wire[..], chunks.iter().copied().cycle());
        while !left.is_empty() {
            let chunk;
            (chunk, left) = left.split_at(chunks.next().unwrap().min(left.len()));
            conn.peer_sends(chunk);
            make_progress(&mut conn);
        }
        while matches!(conn.session().wants(), Want::Write | Want::Log | Want::Delay) {
            make_progress(&mut conn);
        }
        let nothing_left = rest.is_empty() || too_long;
        prop_assert_eq!(conn.session().memory() == 0, nothing_left, "keeps {}\n{}", conn.session().memory(), conn);
        prop_assert_eq!(conn.session().verdict().is_some(), too_long, "{}", conn);
        conn.peer_ends();
        while conn.session().wants() != Want::Close {
            make_progress(&mut conn);
        }
        let (messages, verdict) = messages(&rules, &wire, conn.read_sizes(), true);
        let expected = expected_output(&rules, &messages, verdict);
        conn.assert_peer_received(&expected);
        conn.assert_closed(verdict);
        if logs {
            prop_assert_eq!(conn.logged(), &messages[..], "{}", conn);
        }
        prop_assert_eq!(conn.session().totals().messages, messages.len() as u64, "{}", conn);
        prop_assert_eq!(conn.session().totals().bytes_out, expected.len() as u64, "{}", conn);
        if !too_long {
            prop_assert_eq!(conn.session().totals().bytes_in, wire.len() as u64, "{}", conn);
        }
    }
}

// --- Random events ---------------------------------------------------------------------------------------------------

/// An event on a connection.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A pattern, and the number of its repetitions.
    Sends(&'static str, usize),
    /// The same, but read ahead if replies are owed. In raw framing it is only sent, because each read is a message there.
    ReadsAhead(&'static str, usize),
    Ends,
    StopsReading,
    Reads(usize),
    LogStops,
    LogAccepts(usize),
    TimePasses(Duration),
    Drain,
    OutOfMemory,
    Resets,
    RestartsFor(Duration),
}

impl Event {
    pub(super) fn apply_to(self, conn: &mut SimulatedConnection) {
        match self {
            Self::Sends(pattern, count) => conn.peer_sends(pattern.repeat(count)),
            Self::ReadsAhead(pattern, count) if conn.session().rules().framing == Framing::Delimited => {
                conn.reads_ahead(pattern.repeat(count));
            }
            Self::ReadsAhead(pattern, count) => conn.peer_sends(pattern.repeat(count)),
            Self::Ends => conn.peer_ends(),
            Self::StopsReading => conn.peer_stops_reading(),
            Self::Reads(count) => conn.peer_reads(count),
            Self::LogStops => conn.log_stops(),
            Self::LogAccepts(count) => conn.log_accepts(count),
            Self::TimePasses(time) => conn.advance_time(time),
            Self::Drain => conn.drain(),
            Self::OutOfMemory => conn.run_out_of_memory(),
            Self::Resets => conn.reset(),
            Self::RestartsFor(time) => conn.restart_for(time),
        }
    }
}

/// Input of peers: one message, several messages, the end of a message, its beginning.
pub(super) const PATTERNS: &[&str] = &["aa\t", "\t", "\n", "a", "b\taaab\t", "aaaaaa", "\ta"];

const DELIMITERS: &[&[u8]] = &[b"\t", b"\t\t", b"aab"];

pub(super) fn event() -> impl Strategy<Value = Event> {
    let count = prop_oneof![3 => Just(1), 1 => 1..400_usize];
    let time = || prop_oneof![0..1_000_u64, 900..1_100_u64, 1_900..2_100_u64, 9_000..11_000_u64, 300_000..301_000_u64];
    prop_oneof![
        10 => (select(PATTERNS), count).prop_map(|(pattern, count)| Event::Sends(pattern, count)),
        4 => (select(PATTERNS), prop_oneof![3 => Just(1), 1 => 1..100_000_usize])
            .prop_map(|(pattern, count)| Event::ReadsAhead(pattern, count)),
        6 => prop_oneof![Just(0), 1..20_usize, 1..200_000_usize].prop_map(Event::Reads),
        4 => time().prop_map(|time| Event::TimePasses(millis(time))),
        3 => time().prop_map(|time| Event::RestartsFor(millis(time))),
        2 => Just(Event::StopsReading),
        2 => Just(Event::LogStops),
        4 => prop_oneof![1..3_usize, 1..3_000_usize].prop_map(Event::LogAccepts),
        1 => Just(Event::Ends),
        1 => Just(Event::Drain),
        1 => Just(Event::OutOfMemory),
        1 => Just(Event::Resets),
    ]
}

pub(super) fn some_rules() -> impl Strategy<Value = Rules> {
    let prefix = prop_oneof![Just(0), Just(11), Just(MAX_PREFIX)];
    let delimiter = select(DELIMITERS);
    let lifetime = prop_oneof![Just(None), Just(Some(TimeSpan::new(secs(7), "7s")))];
    let log = select(&[LogMessages::Off, LogMessages::Full][..]);
    let max_message = prop_oneof![Just(5), Just(64 * 1024)];
    (prefix, delimiter, lifetime, max_message, any::<bool>(), log, combination()).prop_map(
        |(prefix, delimiter, lifetime, max_message, accept, log_messages, (framing, reply, reply_delay))| Rules {
            framing,
            reply,
            fixed_reply: vec![b'>'; prefix].into(),
            reply_delay,
            log_messages,
            delimiter: Delimiter::new(delimiter).unwrap(),
            prefix: Prefix::new(&vec![b'>'; prefix]),
            max_message,
            unterminated: if accept { Unterminated::Accept } else { Unterminated::Discard },
            deadlines: Deadlines { lifetime, ..Deadlines::default() },
            ..Rules::default()
        },
    )
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn after_any_events_a_peer_receives_the_beginning_of_the_expected_output(
        rules in some_rules(),
        events in vec(event(), 0..30),
    ) {
        let mut conn = SimulatedConnection::new(rules);
        let no_memory = events.iter().any(|event| matches!(event, Event::OutOfMemory));
        for event in events {
            event.apply_to(&mut conn);
        }
        conn.log_accepts_all();
        conn.peer_reads_all();
        conn.advance_time(secs(400));
        while conn.session().wants() == Want::Delay {
            conn.advance_time(secs(400));
        }
        conn.advance_time(secs(400));
        prop_assert_eq!(conn.session().wants(), Want::Close, "{}", conn);

        let rules = conn.session().rules();
        let verdict = conn.session().verdict().unwrap();
        let (mut messages, closed) = messages(rules, conn.bytes_read(), conn.read_sizes(), conn.end_read());
        let logged = conn.logged().len();
        prop_assert!(logged <= messages.len() && conn.logged() == &messages[..logged], "{}", conn);
        if verdict == Verdict::Busy {
            // Messages that had not been processed are lost.
            messages.truncate(logged);
        } else if rules.log_messages == LogMessages::Full && !no_memory {
            prop_assert_eq!(logged, messages.len(), "{}", conn);
        }
        let expected = expected_output(rules, &messages, verdict);
        let received = conn.received();
        let peer_ended = matches!(verdict, Verdict::PeerClosed | Verdict::Unterminated { .. });
        if peer_ended {
            prop_assert_eq!(verdict, closed, "{}", conn);
        }
        if peer_ended || conn.shutdown_sent() {
            prop_assert!(received == expected, "received {} instead of {}\n{conn}", shown(received), shown(&expected));
        } else {
            // The connection was reset.
            let (received_text, whole) = (shown(received), shown(&expected));
            prop_assert!(expected.starts_with(received), "received {received_text} instead of some of {whole}\n{conn}");
        }
    }
}
