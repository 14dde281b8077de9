//! One session in each state that it can be put away in: what it is written as, and what comes of it.

use crate::protocol::rules::{Deadlines, Framing, LogMessages, Reply, Span, Unterminated};
use crate::protocol::snapshot::Error;
use crate::protocol::tests::conversation::{Conversation, millis, secs};
use crate::protocol::verdict::KINDS;
use crate::protocol::{Rules, Snapshot, Verdict};

/// A state: how it comes about, and what it must come to.
pub(super) struct State {
    pub(super) name: &'static str,
    pub(super) story: fn() -> Conversation,
    after: fn(&mut Conversation),
    /// What is written, in hexadecimal: version 1, where it can say it.
    written: &'static str,
}

impl State {
    fn rules(&self) -> Rules {
        if self.name == "pausing" { greeting() } else { rules() }
    }

    pub(super) fn frozen(&self) -> Vec<u8> {
        (self.story)().frozen()
    }
}

/// All messages are logged whole, and none is longer than 8 bytes; the last may be without a delimiter; nothing lasts
/// longer than an hour.
fn rules() -> Rules {
    let lifetime = Some(Span::new(secs(3_600), "1h"));
    let deadlines = Deadlines { lifetime, ..Deadlines::default() };
    let unterminated = Unterminated::Accept;
    Rules { log_messages: LogMessages::Full, max_message: 8, unterminated, deadlines, ..Rules::default() }
}

/// Every 4 bytes are answered with the same text, and then nothing for 2 s.
fn greeting() -> Rules {
    let reply_delay = Span::new(secs(2), "2s");
    Rules {
        framing: Framing::Raw,
        reply: Reply::Fixed,
        text: b"hello\n"[..].into(),
        reply_delay,
        max_message: 4,
        ..Rules::default()
    }
}

/// One that has existed for half a second, and was answered before that.
fn begun() -> Conversation {
    let mut talk = Conversation::new(rules());
    talk.passes(millis(500));
    talk.peer_sends("aaaa\t");
    talk.peer_hears("server got:aaaa\t");
    talk
}

pub(super) const STATES: &[State] = &[
    State {
        name: "in progress",
        story: || {
            let mut talk = begun();
            talk.peer_sends("bb");
            talk.passes(millis(500));
            talk
        },
        after: |talk| {
            talk.passes(millis(1_499));
            talk.peer_sends("bb\t");
            talk.peer_hears("server got:bbbb\t");
            talk.goes_on();
        },
        written: "0001000000000000000700000000000000046563686f0000ffffffffc4653600ffffffffe2329b000000000000000007\
             00000000000000100000000000000001010000000059682f0000000000000000026262ffffffffe2329b000000000000\
             0000000000000000000000",
    },
    State {
        name: "idle",
        story: || {
            let mut talk = begun();
            talk.peer_sends("\r\n");
            talk.passes(secs(200));
            talk
        },
        after: |talk| {
            talk.passes(millis(99_999));
            talk.goes_on();
            talk.passes(millis(1));
            talk.peer_hears("server error:no message within 5min\t");
            talk.lingers(Verdict::IdleDeadline);
        },
        written: "0001000000000000000700000000000000046563686f0000ffffffd15144cb00ffffffd16f1230000000000000000007\
             00000000000000100000000000000001017fffffffffffffff00000000000000020d0affffffd16f1230000000000000\
             0000000000000000000000",
    },
    State {
        name: "owing, with a message in progress",
        story: || {
            let mut talk = begun();
            talk.peer_stops_reading();
            talk.peer_sends("b\tc");
            talk.peer_takes(3);
            talk.peer_hears("ser");
            talk.passes(secs(9));
            talk
        },
        after: |talk| {
            talk.peer_hears("ver got:b\t");
            talk.passes(secs(2));
            talk.peer_hears("server error:message not finished within 2s\t");
            talk.lingers(Verdict::ReadDeadline);
        },
        written: "0001000000000000000700000000000000046563686f0000fffffffdc9c18100fffffffde78ee6000000000000000008\
             00000000000000130000000000000002010000000077359400000000000000000163fffffffde78ee600000000000000\
             000a76657220676f743a62090000000000000000",
    },
    State {
        name: "waiting for the log",
        story: || {
            let mut talk = begun();
            talk.log_stops();
            talk.peer_sends("b\tcc\td");
            talk.passes(secs(20));
            talk
        },
        after: |talk| {
            talk.peer_hears("server got:b\tserver got:cc\t");
            assert!(talk.logged().ends_with(&[b"b".to_vec(), b"cc".to_vec()]), "{talk}");
            talk.peer_sends("d\t");
            talk.peer_hears("server got:dd\t");
            talk.goes_on();
        },
        written: "0001000000000000000700000000000000046563686f0000fffffffb3a1ad300fffffffb57e83800000000000000000b\
             0000000000000010000000000000000102000000000000000162fffffffb57e838000000000000000000000000000000\
             000463630964",
    },
    State {
        name: "stopping",
        story: || {
            let mut talk = begun();
            talk.peer_stops_reading();
            talk.peer_sends("b\tc");
            talk.is_refused(Verdict::TooMany { limit: 3 });
            talk.passes(secs(4));
            talk
        },
        after: |talk| {
            talk.peer_hears("server got:b\tserver error:too many connections from this source (limit 3)\t");
            talk.lingers(Verdict::TooMany { limit: 3 });
        },
        written: "0001000000000000000700000000000000046563686f0105000000030000000165a0bc0000fffffffef3c77300ffffff\
             ff1194d80000000000000000080000000000000010000000000000000200ffffffff1194d800000000000000000d7365\
             7276657220676f743a62090000000000000000",
    },
    State {
        name: "finishing",
        story: || {
            let mut talk = begun();
            talk.peer_stops_reading();
            talk.peer_sends("ccc");
            talk.peer_ends();
            talk
        },
        after: |talk| {
            talk.peer_hears("server got:ccc\t");
            talk.is_over(Verdict::PeerClosed);
        },
        written: "0001000000000000000700000000000000046563686f020801ffffffffe2329b00000000000000000000000000000000\
             0800000000000000100000000000000002000000000000000000000000000000000f73657276657220676f743a636363\
             090000000000000000",
    },
    State {
        name: "ending",
        story: || {
            let mut talk = begun();
            talk.peer_stops_reading();
            talk.peer_sends("bbbbbbbbb");
            talk.passes(secs(9));
            talk
        },
        after: |talk| {
            talk.peer_hears("server error:message exceeds 8 bytes\t");
            talk.lingers(Verdict::TooLong);
        },
        written: "0001000000000000000700000000000000046563686f0301000000003b9aca0000fffffffdc9c18100fffffffde78ee6\
             00000000000000000e0000000000000010000000000000000100fffffffde78ee6000000000000000025736572766572\
             206572726f723a6d65737361676520657863656564732038206279746573090000000000000000",
    },
    State {
        name: "lingering",
        story: || {
            let mut talk = begun();
            talk.peer_sends("bbbbbbbbb");
            talk.peer_hears("server error:message exceeds 8 bytes\t");
            talk.peer_sends("b");
            talk.passes(millis(300));
            talk
        },
        after: |talk| {
            talk.peer_sends("bbbb\t");
            talk.passes(millis(699));
            talk.lingers(Verdict::TooLong);
            talk.passes(millis(1));
            talk.is_over(Verdict::TooLong);
        },
        written: "0001000000000000000700000000000000046563686f04010000000029b92700000fffff00ffffffffd050f800ffffff\
             ffee1e5d00000000000000000e0000000000000035000000000000000100000000000000000000000000000000000000\
             000000000000",
    },
    State {
        name: "logging",
        story: || {
            let mut talk = begun();
            talk.log_stops();
            talk.peer_sends("b\tcc\t");
            talk.breaks();
            talk
        },
        after: |talk| {
            talk.peer_hears("");
            assert!(talk.logged().ends_with(&[b"b".to_vec(), b"cc".to_vec()]), "{talk}");
            talk.is_over(Verdict::PeerReset);
        },
        written: "0001000000000000000700000000000000046563686f050900ffffffffe2329b00000000000000000000000000000000\
             0a0000000000000010000000000000000102000000000000000162000000000000000000000000000000000000000000\
             000003636309",
    },
    State {
        name: "pausing",
        story: || {
            let mut talk = Conversation::new(greeting());
            talk.peer_sends("aaaabbbbc");
            talk.peer_hears("hello\n");
            talk.passes(millis(500));
            talk
        },
        after: |talk| {
            talk.passes(millis(1_499));
            talk.peer_hears("");
            talk.passes(millis(1));
            talk.peer_hears("hello\n");
            talk.peer_ends();
            talk.passes(secs(2));
            talk.peer_hears("hello\n");
            talk.passes(secs(2));
            talk.is_over(Verdict::PeerClosed);
        },
        written: "0003000000000000000700000000000000046563686f0000ffffffffe2329b00ffffffffe2329b00000000000000\
             00090000000000000006000000000000000100ffffffffe2329b0000000000000000000000000000000005626262\
             62630000000059682f0000",
    },
    State {
        name: "done",
        story: || {
            let mut talk = begun();
            talk.peer_ends();
            talk
        },
        after: |talk| talk.is_over(Verdict::PeerClosed),
        written: "0001000000000000000700000000000000046563686f060801ffffffffe2329b00000000000000000000000000000000\
             050000000000000010000000000000000100000000000000000000000000000000000000000000000000",
    },
];

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<_> = hexadecimal.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(16 * pair[0] + pair[1]).unwrap()).collect()
}

#[test]
fn every_state_is_written_as_it_always_was() {
    for state in STATES {
        let written: String = state.frozen().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(bytes_of(state.written) == state.frozen(), "{}:\n{written}", state.name);
    }
}

#[test]
fn every_state_goes_on_from_what_was_once_written() {
    for state in STATES {
        let mut talk = Conversation::thawed(&bytes_of(state.written), state.rules());
        (state.after)(&mut talk);
        // And does so without a restart.
        let mut talk = (state.story)();
        talk.log_takes_all();
        talk.peer_takes_all();
        (state.after)(&mut talk);
    }
}

#[test]
fn every_verdict_is_written_as_it_always_was() {
    let codes: [(_, &[u8]); KINDS] = [
        (Verdict::TooLong, &[1]),
        (Verdict::ReadDeadline, &[2]),
        (Verdict::IdleDeadline, &[3]),
        (Verdict::Lifetime, &[4]),
        (Verdict::TooMany { limit: 0x01020304 }, &[5, 1, 2, 3, 4]),
        (Verdict::Busy, &[6]),
        (Verdict::WriteDeadline, &[7]),
        (Verdict::PeerClosed, &[8]),
        (Verdict::PeerReset, &[9]),
        (Verdict::Unterminated { bytes: 0x01020304 }, &[10, 1, 2, 3, 4]),
        (Verdict::Shutdown, &[11]),
        (Verdict::Carried, &[12]),
        (Verdict::BadProxyHeader, &[13]),
    ];
    for (verdict, code) in codes {
        let mut talk = Conversation::new(rules());
        talk.is_refused(verdict);
        let bytes = talk.frozen();
        assert_eq!(bytes[22], 4, "{talk}");
        assert!(bytes[23..].starts_with(code), "{talk}");
        // And is read as what it was.
        talk.restarts();
        talk.lingers(verdict);
    }
}

#[test]
fn a_client_is_written_behind_the_rest_and_read_again() {
    let talk = (STATES[0].story)();
    for (client, written) in
        [("192.0.2.1:40123", "04c00002019cbb"), ("[2001:db8::1]:7", "0620010db80000000000000000000000010007")]
    {
        let client = client.parse().ok();
        let bytes = talk.frozen_for(client);
        let mut expected = [talk.frozen(), bytes_of(written)].concat();
        expected[1] = 2;
        assert_eq!(bytes, expected);
        assert_eq!(Snapshot::read(&bytes).map(|snapshot| snapshot.client()), Ok(client));
        for end in 0..bytes.len() {
            assert!(Snapshot::read(&bytes[..end]).is_err(), "{end} bytes");
        }
        let mut wrong = bytes.clone();
        wrong[expected.len() - written.len() / 2] = 5;
        assert_eq!(Snapshot::read(&wrong).map(drop), Err(Error::Code { what: "kind of address", code: 5 }));
        assert_eq!(Snapshot::read(&[&bytes[..], b"x"].concat()).map(drop), Err(Error::Long(1)));
    }
    assert_eq!(Snapshot::read(&talk.frozen()).map(|snapshot| snapshot.client()), Ok(None));
}

#[test]
fn a_client_is_written_behind_a_pause_too() {
    let talk = STATES.iter().find(|state| state.name == "pausing").map(|state| (state.story)()).unwrap();
    let client = "192.0.2.1:40123".parse().ok();
    let bytes = talk.frozen_for(client);
    let without = talk.frozen();
    assert_eq!(bytes, [&without[..without.len() - 1], &bytes_of("04c00002019cbb")].concat());
    let snapshot = Snapshot::read(&bytes).unwrap();
    assert_eq!(snapshot.client(), client);
    assert_eq!(Snapshot::read(&without).map(|snapshot| snapshot.client()), Ok(None));
}

#[test]
fn the_example_is_what_is_written() {
    let source = include_str!("../../snapshot.rs");
    let (_, example) = source.split_once("```text\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let pairs = example.lines().flat_map(|line| {
        line.trim_start_matches("//!")
            .split_whitespace()
            .take_while(|word| word.len() == 2 && bytes_of(word).len() == 1)
    });
    let pairs: Vec<_> = pairs.collect();
    assert_eq!(bytes_of(&pairs.concat()), STATES[0].frozen());
}
