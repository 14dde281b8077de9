//! One table of input and expected messages, checked in one piece, byte by byte, and split at every position.

use std::collections::BTreeSet;

use super::simulation::{SimulatedConnection, shown};
use crate::protocol::reply::{MAX_PREFIX, Prefix};
use crate::protocol::rules::Unterminated;
use crate::protocol::verdict::{KINDS, NAMES};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

/// The bytes after the last whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remainder {
    Nothing,
    /// Only line ends.
    LineEnds,
    /// This many bytes, which are not a message.
    Unterminated(usize),
    /// A message that is too long. This is certain at this byte of the input (counted from 1), and later bytes are ignored.
    TooLong(usize),
    /// A message that is too long because a partial delimiter at its end is part of it.
    TooLongAtEnd,
}

use Remainder::{LineEnds, Nothing, TooLong, TooLongAtEnd, Unterminated as Left};

/// Delimiter, `max_message`, input, expected messages, expected rest.
type Case = (&'static [u8], usize, &'static [u8], &'static [&'static [u8]], Remainder);

const B63: &[u8; 63] = &[b'x'; 63];
const DEFAULT_MAX_MESSAGE: usize = 64 * 1024;

const CASES: &[Case] = &[
    // One byte, any byte.
    (b"\t", DEFAULT_MAX_MESSAGE, b"", &[], Nothing),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aaaa\t", &[b"aaaa"], Nothing),
    (b"\t", DEFAULT_MAX_MESSAGE, b"a\tbb\tccc\t", &[b"a", b"bb", b"ccc"], Nothing),
    (b"\t", DEFAULT_MAX_MESSAGE, b"\t", &[b""], Nothing),
    (b"\t", DEFAULT_MAX_MESSAGE, b"\t\t\ta\t\t", &[b"", b"", b"", b"a", b""], Nothing),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aa", &[], Left(2)),
    (b"\t", DEFAULT_MAX_MESSAGE, b"a\tbbb", &[b"a"], Left(3)),
    (b"\t", DEFAULT_MAX_MESSAGE, b"\0\t\xff\t\0\xff\0\t\0", &[b"\0", b"\xff", b"\0\xff\0"], Left(1)),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aaaa\t\n", &[b"aaaa"], LineEnds),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aaaa\t\r\n\n\r\n", &[b"aaaa"], LineEnds),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aaaa\t\r", &[b"aaaa"], Left(1)),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aaaa\t\r\r\n", &[b"aaaa"], Left(3)),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aaaa\t\nb\n", &[b"aaaa"], Left(3)),
    (b"\t", DEFAULT_MAX_MESSAGE, b"aaaa\t\nbbbb\t\n", &[b"aaaa", b"\nbbbb"], LineEnds),
    (b"\t", DEFAULT_MAX_MESSAGE, b"\r\n\t\n\t", &[b"\r\n", b"\n"], Nothing),
    (b"\0", DEFAULT_MAX_MESSAGE, b"a\0\xff\0\0", &[b"a", b"\xff", b""], Nothing),
    (b"\xff", DEFAULT_MAX_MESSAGE, b"a\xff\0\xff\t\xff", &[b"a", b"\0", b"\t"], Nothing),
    (b"\n", DEFAULT_MAX_MESSAGE, b"a\r\n\nb", &[b"a\r", b""], Left(1)),
    // Two bytes.
    (b"\r\n", DEFAULT_MAX_MESSAGE, b"a\r\nbb\r\n", &[b"a", b"bb"], Nothing),
    (b"\r\n", DEFAULT_MAX_MESSAGE, b"\r\n\r\n", &[b"", b""], Nothing),
    (b"\r\n", DEFAULT_MAX_MESSAGE, b"\r\r\n\n\r\n", &[b"\r", b"\n"], Nothing),
    (b"\r\n", DEFAULT_MAX_MESSAGE, b"a\rb\nc\r\n\r", &[b"a\rb\nc"], Left(1)),
    (b"\r\n", DEFAULT_MAX_MESSAGE, b"a\r\n\r\r\r", &[b"a"], Left(3)),
    (b"\r\n", DEFAULT_MAX_MESSAGE, b"a\r\n\n", &[b"a"], LineEnds),
    (b"\0\0", DEFAULT_MAX_MESSAGE, b"\0a\0\0\0", &[b"\0a"], Left(1)),
    (b"\xff\0", DEFAULT_MAX_MESSAGE, b"\xff\xff\0\0\xff\0", &[b"\xff", b"\0"], Nothing),
    // Delimiters with a border: the first occurrence wins.
    (b"aa", DEFAULT_MAX_MESSAGE, b"aaa", &[b""], Left(1)),
    (b"aa", DEFAULT_MAX_MESSAGE, b"aaaabaa", &[b"", b"", b"b"], Nothing),
    (b"aba", DEFAULT_MAX_MESSAGE, b"ababa", &[b""], Left(2)),
    (b"aba", DEFAULT_MAX_MESSAGE, b"abbabababa", &[b"abb", b"b"], Nothing),
    (b"aab", DEFAULT_MAX_MESSAGE, b"aaab", &[b"a"], Nothing),
    (b"aab", DEFAULT_MAX_MESSAGE, b"aaaaabaab", &[b"aaa", b""], Nothing),
    (b"aab", DEFAULT_MAX_MESSAGE, b"abaabaaba", &[b"ab", b""], Left(1)),
    (b"aabaa", DEFAULT_MAX_MESSAGE, b"aabaabaaa", &[b""], Left(4)),
    (b"aabaac", DEFAULT_MAX_MESSAGE, b"aabaabaac", &[b"aab"], Nothing),
    (b"aabaac", DEFAULT_MAX_MESSAGE, b"aabaaaabaac", &[b"aabaa"], Nothing),
    // Sixteen bytes.
    (b"0123456789abcdef", DEFAULT_MAX_MESSAGE, b"x0123456789abcdef", &[b"x"], Nothing),
    (b"0123456789abcdef", DEFAULT_MAX_MESSAGE, b"0123456789abcde0123456789abcdef", &[b"0123456789abcde"], Nothing),
    (b"aaaaaaaaaaaaaaab", DEFAULT_MAX_MESSAGE, b"aaaaaaaaaaaaaaabaaaaaaaaaaaaaaab", &[b"", b""], Nothing),
    (b"aaaaaaaaaaaaaaab", DEFAULT_MAX_MESSAGE, b"aaaaaaaaaaaaaaaaaaab", &[b"aaaa"], Nothing),
    (b"aaaaaaaaaaaaaaab", DEFAULT_MAX_MESSAGE, b"aaaaaaaaaaaaaabaaaaaaaaaaaaaaab", &[b"aaaaaaaaaaaaaab"], Nothing),
    (b"aaaaaaaaaaaaaaab", DEFAULT_MAX_MESSAGE, b"aaaaaaaaaaaaaaaaaaaa", &[], Left(20)),
    (b"abababababababac", DEFAULT_MAX_MESSAGE, b"abababababababababac", &[b"abab"], Nothing),
    (b"abababababababac", DEFAULT_MAX_MESSAGE, b"abababababababaabababababababac", &[b"abababababababa"], Nothing),
    (b"abababababababac", DEFAULT_MAX_MESSAGE, b"abababababababacabababababababab", &[b""], Left(16)),
    // Replies around the size of the block in which short messages are copied.
    (b"\t", DEFAULT_MAX_MESSAGE, B63, &[], Left(63)),
    (
        b"\t",
        DEFAULT_MAX_MESSAGE,
        b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\t\
          xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\t\
          xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\t\
          xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\t",
        &[B63, &[b'x'; 64], &[b'x'; 65], &[b'x'; 62]],
        Nothing,
    ),
    // A message of the maximum length, one with one byte more, and the byte at which that is certain.
    (b"\t", 4, b"aaaa\taaaa\t", &[b"aaaa", b"aaaa"], Nothing),
    (b"\t", 4, b"aaaa", &[], Left(4)),
    (b"\t", 4, b"aaaaa\t", &[], TooLong(5)),
    (b"\t", 4, b"a\taaaaa", &[b"a"], TooLong(7)),
    (b"\t", 4, b"a\taaaaaaaa\tb\tc\t", &[b"a"], TooLong(7)),
    (b"\t", 0, b"\t\t", &[b"", b""], Nothing),
    (b"\t", 0, b"a\t\t", &[], TooLong(1)),
    (b"\t", 2, b"\t\n\n\n\t", &[b""], TooLong(4)),
    (b"\r\n", 4, b"aaaa\r\naaa\r\r\n", &[b"aaaa", b"aaa\r"], Nothing),
    (b"\r\n", 4, b"aaa\r", &[], Left(4)),
    (b"\r\n", 4, b"aaaa\r", &[], TooLongAtEnd),
    (b"\r\n", 4, b"aaaa\rb\r\n", &[], TooLong(6)),
    (b"\r\n", 4, b"aaaa\r\r\n", &[], TooLong(6)),
    (b"\r\n", 4, b"aaaaa\r\n", &[], TooLong(5)),
    (b"\r\n", 0, b"\r\n\r", &[b""], TooLongAtEnd),
    (b"aab", 2, b"bbaabaaaab", &[b"bb", b"aa"], Nothing),
    (b"aab", 2, b"bbaaab", &[], TooLong(5)),
    (b"aab", 2, b"aab\0\xffaa", &[b""], TooLongAtEnd),
    (b"aaaaaaaaaaaaaaab", 1, b"xaaaaaaaaaaaaaaab", &[b"x"], Nothing),
    (b"aaaaaaaaaaaaaaab", 1, b"aaaaaaaaaaaaaaaab", &[b"a"], Nothing),
    (b"aaaaaaaaaaaaaaab", 1, b"xaaaaaaaaaaaaaaaaaab", &[], TooLong(17)),
    (b"abababababababac", 1, b"xabababababababac", &[b"x"], Nothing),
    (b"abababababababac", 1, b"xababababababababac", &[], TooLong(17)),
    (b"abababababababac", 3, b"xababababababababac", &[b"xab"], Nothing),
];

#[test]
fn replies_do_not_depend_on_how_the_stream_is_split() {
    for case in CASES {
        let wire = case.2;
        check_case(case, b"server got:", &[]);
        check_case(case, b"server got:", &(0..wire.len()).collect::<Vec<_>>());
        for first in 1..wire.len() {
            check_case(case, b"server got:", &[first]);
            // At every pair of positions, while there are not too many.
            for second in (first + 1..wire.len()).take_while(|_| wire.len() <= 32) {
                check_case(case, b"server got:", &[first, second]);
            }
        }
    }
}

#[test]
fn a_prefix_may_have_any_length() {
    for case in CASES {
        for length in [0, 1, 63, 64, 65, MAX_PREFIX] {
            let prefix = vec![b'>'; length];
            check_case(case, &prefix, &[]);
            check_case(case, &prefix, &(0..case.2.len()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn an_accepted_unterminated_message_is_answered() {
    for case in CASES {
        let (delimiter, max_message, wire, messages, rest) = case;
        let mut conn = SimulatedConnection::new(Rules {
            unterminated: Unterminated::Accept,
            ..rules(delimiter, *max_message, b"server got:")
        });
        conn.peer_sends(wire);
        conn.peer_ends();
        let mut expected = replies(b"server got:", messages, delimiter);
        if matches!(rest, LineEnds | Left(_)) {
            let whole: usize = messages.iter().map(|message| message.len() + delimiter.len()).sum();
            expected.extend(replies(b"server got:", &[&wire[whole..]], delimiter));
        }
        expected.extend(final_reply(case));
        conn.assert_peer_received(expected);
        let verdict = if final_reply(case).is_empty() { Verdict::PeerClosed } else { Verdict::TooLong };
        conn.assert_closed(verdict);
    }
}

#[test]
fn a_message_that_is_too_long_ends_the_session_at_the_first_byte_that_makes_it_certain() {
    for case in CASES {
        let (delimiter, max_message, wire, ..) = case;
        let mut conn = SimulatedConnection::new(rules(delimiter, *max_message, b""));
        let certain = (1..=wire.len()).find(|at| {
            conn.peer_sends(&wire[at - 1..*at]);
            conn.session().verdict().is_some()
        });
        let expected = if let TooLong(at) = case.4 { Some(at) } else { None };
        assert_eq!(certain, expected, "{}\n{conn}", describe(case));
    }
}

#[test]
fn each_verdict_has_a_unique_name_and_the_code_of_its_position() {
    for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
        assert_eq!((verdict.index(), verdict.name()), (index, NAMES[index]));
        assert_eq!(usize::from(verdict.code()), index + 1, "{verdict}: the next free code, at the end of the table");
    }
    let names: BTreeSet<_> = NAMES.into_iter().collect();
    assert_eq!(names.len(), KINDS, "two verdicts have the same name: {NAMES:?}");
    // Snapshots of other versions have these codes.
    let first = [
        "too-long",
        "read-deadline",
        "idle-deadline",
        "lifetime",
        "too-many",
        "busy",
        "write-deadline",
        "peer-closed",
        "peer-reset",
        "unterminated",
        "shutdown",
        "handed-over",
        "bad-proxy-header",
        "reclaimed",
    ];
    assert!(NAMES.starts_with(&first), "a code is never used again for another verdict: {NAMES:?}");
}

#[test]
fn final_replies_have_the_values_of_the_rules() {
    let rules = Rules { max_message: 7, ..Rules::default() };
    for (verdict, text) in [
        (Verdict::TooLong, Some("message exceeds 7 bytes")),
        (Verdict::ReadDeadline, Some("message not finished within 2s")),
        (Verdict::IdleDeadline, Some("no message within 5min")),
        // It is off.
        (Verdict::Lifetime, None),
        (Verdict::TooMany { limit: 3 }, Some("too many connections from this source (limit 3)")),
    ] {
        assert_eq!(verdict.text(&rules).as_deref(), text, "{verdict}");
    }
}

#[test]
fn the_debug_format_of_a_delimiter_can_be_parsed_again() {
    for byte in 0..=u8::MAX {
        let delimiter = Delimiter::new(&[byte, b'+']).unwrap();
        let written = format!("{delimiter:?}");
        let text = written.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap();
        assert_eq!(Delimiter::from_escaped(text), Ok(delimiter), "byte {byte}, written {written}");
    }
}

/// Runs a case with this prefix, split before each byte of `cuts`, and compares the results.
fn check_case(case: &Case, prefix: &[u8], cuts: &[usize]) {
    for logs in [true, false] {
        check_case_where(logs, case, prefix, cuts);
    }
}

/// Checks a case, with or without a log of messages.
fn check_case_where(logs: bool, case: &Case, prefix: &[u8], cuts: &[usize]) {
    let (delimiter, max_message, wire, messages, rest) = *case;
    let conn = SimulatedConnection::new(rules(delimiter, max_message, prefix));
    let mut conn = if logs { conn } else { conn.without_log() };
    let mut at = 0;
    for next in cuts.iter().copied().chain([wire.len()]).filter(|next| *next > 0) {
        conn.peer_sends(&wire[at..next]);
        at = next;
    }
    let context = || format!("{}\n  cut at {cuts:?}\n{conn}", describe(case));
    let keeps_bytes = matches!(rest, LineEnds | Left(_) | TooLongAtEnd);
    assert_eq!(conn.session().memory() > 0, keeps_bytes, "keeps {} bytes of {}", conn.session().memory(), context());
    let is_closed = matches!(rest, TooLong(_));
    assert_eq!(conn.session().wants(), Want::Read, "{}", context());
    assert_eq!(conn.session().verdict().is_some(), is_closed, "{}", context());

    conn.peer_ends();
    let mut expected = replies(prefix, messages, delimiter);
    expected.extend(final_reply(case));
    conn.assert_peer_received(expected);
    conn.assert_closed(match rest {
        Nothing | LineEnds => Verdict::PeerClosed,
        Left(bytes) => Verdict::Unterminated { bytes: u32::try_from(bytes).unwrap() },
        TooLong(_) | TooLongAtEnd => Verdict::TooLong,
    });
    let totals = conn.session().totals();
    assert_eq!(totals.messages, messages.len() as u64, "messages of {}\n{conn}", describe(case));
    if !is_closed {
        assert_eq!(totals.bytes_in, wire.len() as u64, "bytes of {}\n{conn}", describe(case));
    }
}

fn rules(delimiter: &[u8], max_message: usize, prefix: &[u8]) -> Rules {
    let delimiter = Delimiter::new(delimiter).unwrap();
    Rules { delimiter, max_message, prefix: Prefix::new(prefix), ..Rules::default() }
}

fn replies(prefix: &[u8], messages: &[&[u8]], delimiter: &[u8]) -> Vec<u8> {
    messages.iter().flat_map(|message| [prefix, *message, delimiter].concat()).collect()
}

fn final_reply((delimiter, max_message, _, _, rest): &Case) -> Vec<u8> {
    match rest {
        TooLong(_) | TooLongAtEnd => {
            let text = format!("server error:message exceeds {max_message} bytes");
            [text.as_bytes(), delimiter].concat()
        }
        Nothing | LineEnds | Left(_) => Vec::new(),
    }
}

fn describe((delimiter, max_message, wire, messages, rest): &Case) -> String {
    let messages: Vec<_> = messages.iter().map(|message| shown(message)).collect();
    let (delimiter, wire) = (shown(delimiter), shown(wire));
    format!("delimiter {delimiter}, at most {max_message}, wire {wire}, messages {messages:?}, {rest:?}")
}
