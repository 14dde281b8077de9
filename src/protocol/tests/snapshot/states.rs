//! One session in each state in which it can be stored: its encoding, and what it does when it is restored.

use crate::protocol::rules::{Deadlines, Framing, LogMessages, ReplyMode, TimeSpan, Unterminated};
use crate::protocol::snapshot::Error;
use crate::protocol::tests::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::{Rules, Snapshot, Verdict};

/// A state: the calls that lead to it, and the expected results.
pub(super) struct StateCase {
    pub(super) name: &'static str,
    pub(super) setup: fn() -> SimulatedConnection,
    check_after: fn(&mut SimulatedConnection),
    /// Its encoding, in hexadecimal.
    encoded: &'static str,
}

impl StateCase {
    fn rules(&self) -> Rules {
        if self.name == "delayed" { rules_with_reply_delay() } else { rules() }
    }

    pub(super) fn snapshot(&self) -> Vec<u8> {
        (self.setup)().snapshot()
    }
}

/// Returns rules under which all messages are logged whole, and none is longer than 8 bytes. The last may be without a
/// delimiter; no connection lasts longer than an hour.
fn rules() -> Rules {
    let lifetime = Some(TimeSpan::new(secs(3_600), "1h"));
    let deadlines = Deadlines { lifetime, ..Deadlines::default() };
    let unterminated = Unterminated::Accept;
    Rules { log_messages: LogMessages::Full, max_message: 8, unterminated, deadlines, ..Rules::default() }
}

/// Returns rules under which every 4 bytes get a fixed reply, and then nothing for 2 s.
fn rules_with_reply_delay() -> Rules {
    let reply_delay = TimeSpan::new(secs(2), "2s");
    Rules {
        framing: Framing::Raw,
        reply: ReplyMode::Fixed,
        fixed_reply: b"hello\n"[..].into(),
        reply_delay,
        max_message: 4,
        ..Rules::default()
    }
}

/// Returns a connection that has existed for half a second and has had a reply.
fn connection_after_one_reply() -> SimulatedConnection {
    let mut conn = SimulatedConnection::new(rules());
    conn.advance_time(millis(500));
    conn.peer_sends("aaaa\t");
    conn.assert_peer_received("server got:aaaa\t");
    conn
}

pub(super) const STATES: &[StateCase] = &[
    StateCase {
        name: "in progress",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_sends("bb");
            conn.advance_time(millis(500));
            conn
        },
        check_after: |conn| {
            conn.advance_time(millis(1_499));
            conn.peer_sends("bb\t");
            conn.assert_peer_received("server got:bbbb\t");
            conn.assert_open();
        },
        encoded: "0001000000000000000700000000000000046563686f000000ffffffffc4653600ffffffffe2329b000000000000000007\
             00000000000000100000000000000001010000000059682f0000000000000000026262ffffffffe2329b000000000000\
             00000000000000000000007fffffffffffffff00",
    },
    StateCase {
        name: "idle",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_sends("\r\n");
            conn.advance_time(secs(200));
            conn
        },
        check_after: |conn| {
            conn.advance_time(millis(99_999));
            conn.assert_open();
            conn.advance_time(millis(1));
            conn.assert_peer_received("server error:no message within 5min\t");
            conn.assert_lingering(Verdict::IdleDeadline);
        },
        encoded: "0001000000000000000700000000000000046563686f000000ffffffd15144cb00ffffffd16f1230000000000000000007\
             00000000000000100000000000000001017fffffffffffffff00000000000000020d0affffffd16f1230000000000000\
             00000000000000000000007fffffffffffffff00",
    },
    StateCase {
        name: "with outbound replies, and a message in progress",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_stops_reading();
            conn.peer_sends("b\tc");
            conn.peer_reads(3);
            conn.assert_peer_received("ser");
            conn.advance_time(secs(9));
            conn
        },
        check_after: |conn| {
            conn.assert_peer_received("ver got:b\t");
            conn.advance_time(secs(2));
            conn.assert_peer_received("server error:message not finished within 2s\t");
            conn.assert_lingering(Verdict::ReadDeadline);
        },
        encoded: "0001000000000000000700000000000000046563686f000000fffffffdc9c18100fffffffde78ee6000000000000000008\
             00000000000000130000000000000002010000000077359400000000000000000163fffffffde78ee600000000000000\
             000a76657220676f743a620900000000000000007fffffffffffffff00",
    },
    StateCase {
        name: "waiting for the log",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.log_stops();
            conn.peer_sends("b\tcc\td");
            conn.advance_time(secs(20));
            conn
        },
        check_after: |conn| {
            conn.assert_peer_received("server got:b\tserver got:cc\t");
            assert!(conn.logged().ends_with(&[b"b".to_vec(), b"cc".to_vec()]), "{conn}");
            conn.peer_sends("d\t");
            conn.assert_peer_received("server got:dd\t");
            conn.assert_open();
        },
        encoded: "0001000000000000000700000000000000046563686f000000fffffffb3a1ad300fffffffb57e83800000000000000000b\
             0000000000000010000000000000000102000000000000000162fffffffb57e838000000000000000000000000000000\
             0004636309647fffffffffffffff00",
    },
    StateCase {
        name: "stopping",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_stops_reading();
            conn.peer_sends("b\tc");
            conn.refuse(Verdict::TooMany { limit: 3 });
            conn.advance_time(secs(4));
            conn
        },
        check_after: |conn| {
            conn.assert_peer_received("server got:b\tserver error:too many connections from this source (limit 3)\t");
            conn.assert_lingering(Verdict::TooMany { limit: 3 });
        },
        encoded: "0001000000000000000700000000000000046563686f000105000000030000000165a0bc0000fffffffef3c77300ffffff\
             ff1194d80000000000000000080000000000000010000000000000000200ffffffff1194d800000000000000000d7365\
             7276657220676f743a620900000000000000007fffffffffffffff00",
    },
    StateCase {
        name: "half-closed",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_stops_reading();
            conn.peer_sends("ccc");
            conn.peer_ends();
            conn
        },
        check_after: |conn| {
            conn.assert_peer_received("server got:ccc\t");
            conn.assert_closed(Verdict::PeerClosed);
        },
        encoded: "0001000000000000000700000000000000046563686f00020801ffffffffe2329b00000000000000000000000000000000\
             0800000000000000100000000000000002000000000000000000000000000000000f73657276657220676f743a636363\
             0900000000000000007fffffffffffffff00",
    },
    StateCase {
        name: "closing",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_stops_reading();
            conn.peer_sends("bbbbbbbbb");
            conn.advance_time(secs(9));
            conn
        },
        check_after: |conn| {
            conn.assert_peer_received("server error:message exceeds 8 bytes\t");
            conn.assert_lingering(Verdict::TooLong);
        },
        encoded: "0001000000000000000700000000000000046563686f000301000000003b9aca0000fffffffdc9c18100fffffffde78ee6\
             00000000000000000e0000000000000010000000000000000100fffffffde78ee6000000000000000025736572766572\
             206572726f723a6d657373616765206578636565647320382062797465730900000000000000007fffffffffffffff00",
    },
    StateCase {
        name: "lingering",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_sends("bbbbbbbbb");
            conn.assert_peer_received("server error:message exceeds 8 bytes\t");
            conn.peer_sends("b");
            conn.advance_time(millis(300));
            conn
        },
        check_after: |conn| {
            conn.peer_sends("bbbb\t");
            conn.advance_time(millis(699));
            conn.assert_lingering(Verdict::TooLong);
            conn.advance_time(millis(1));
            conn.assert_closed(Verdict::TooLong);
        },
        encoded: "0001000000000000000700000000000000046563686f0004010000000029b92700000fffff00ffffffffd050f800ffffff\
             ffee1e5d00000000000000000e0000000000000035000000000000000100000000000000000000000000000000000000\
             0000000000007fffffffffffffff00",
    },
    StateCase {
        name: "logging",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.log_stops();
            conn.peer_sends("b\tcc\t");
            conn.reset();
            conn
        },
        check_after: |conn| {
            conn.assert_peer_received("");
            assert!(conn.logged().ends_with(&[b"b".to_vec(), b"cc".to_vec()]), "{conn}");
            conn.assert_closed(Verdict::PeerReset);
        },
        encoded: "0001000000000000000700000000000000046563686f00050900ffffffffe2329b00000000000000000000000000000000\
             0a0000000000000010000000000000000102000000000000000162000000000000000000000000000000000000000000\
             0000036363097fffffffffffffff00",
    },
    StateCase {
        name: "delayed",
        setup: || {
            let mut conn = SimulatedConnection::new(rules_with_reply_delay());
            conn.peer_sends("aaaabbbbc");
            conn.assert_peer_received("hello\n");
            conn.advance_time(millis(500));
            conn
        },
        check_after: |conn| {
            conn.advance_time(millis(1_499));
            conn.assert_peer_received("");
            conn.advance_time(millis(1));
            conn.assert_peer_received("hello\n");
            conn.peer_ends();
            conn.advance_time(secs(2));
            conn.assert_peer_received("hello\n");
            conn.advance_time(secs(2));
            conn.assert_closed(Verdict::PeerClosed);
        },
        encoded: "0001000000000000000700000000000000046563686f000000ffffffffe2329b00ffffffffe2329b000000000000000009\
             0000000000000006000000000000000100ffffffffe2329b000000000000000000000000000000000562626262630000\
             000059682f0000",
    },
    StateCase {
        name: "done",
        setup: || {
            let mut conn = connection_after_one_reply();
            conn.peer_ends();
            conn
        },
        check_after: |conn| conn.assert_closed(Verdict::PeerClosed),
        encoded: "0001000000000000000700000000000000046563686f00060801ffffffffe2329b00000000000000000000000000000000\
             0500000000000000100000000000000001000000000000000000000000000000000000000000000000007fffffffffff\
             ffff00",
    },
];

fn parse_hex(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<_> = hexadecimal.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(16 * pair[0] + pair[1]).unwrap()).collect()
}

#[test]
fn the_encoding_of_every_state_is_stable() {
    for state in STATES {
        let encoded: String = state.snapshot().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(parse_hex(state.encoded) == state.snapshot(), "{}:\n{encoded}", state.name);
    }
}

#[test]
fn every_state_is_restored_from_its_recorded_encoding() {
    for state in STATES {
        let mut conn = SimulatedConnection::restored(&parse_hex(state.encoded), state.rules());
        (state.check_after)(&mut conn);
        // The same holds without a restart.
        let mut conn = (state.setup)();
        conn.log_accepts_all();
        conn.peer_reads_all();
        (state.check_after)(&mut conn);
    }
}

#[test]
fn every_verdict_is_encoded_as_its_code_and_its_number() {
    for verdict in Verdict::ALL {
        let (verdict, number): (_, &[u8]) = match verdict {
            Verdict::TooMany { .. } => (Verdict::TooMany { limit: 0x01020304 }, &[1, 2, 3, 4]),
            Verdict::Unterminated { .. } => (Verdict::Unterminated { bytes: 0x01020304 }, &[1, 2, 3, 4]),
            other => (other, &[]),
        };
        let mut conn = SimulatedConnection::new(rules());
        conn.refuse(verdict);
        let bytes = conn.snapshot();
        assert_eq!(bytes[23..25], [4, verdict.code()], "{conn}");
        assert!(bytes[25..].starts_with(number), "{conn}");
        // Decoding returns the same state.
        conn.restart();
        conn.assert_lingering(verdict);
    }
}

#[test]
fn the_proxied_client_is_encoded_at_the_end_and_decoded() {
    for state in STATES {
        let conn = (state.setup)();
        let without = conn.snapshot();
        assert_eq!(Snapshot::decode(&without).map(|snapshot| snapshot.client()), Ok(None));
        for (client, encoded) in
            [("192.0.2.1:40123", "04c00002019cbb"), ("[2001:db8::1]:7", "0620010db80000000000000000000000010007")]
        {
            let client = client.parse().ok();
            let bytes = conn.snapshot_with_client(client);
            assert_eq!(bytes, [&without[..without.len() - 1], &parse_hex(encoded)].concat());
            assert_eq!(Snapshot::decode(&bytes).map(|snapshot| snapshot.client()), Ok(client));
            for end in 0..bytes.len() {
                assert!(Snapshot::decode(&bytes[..end]).is_err(), "{end} bytes");
            }
            let mut wrong = bytes.clone();
            wrong[without.len() - 1] = 5;
            assert_eq!(
                Snapshot::decode(&wrong).map(drop),
                Err(Error::UnknownCode { field: "kind of address", code: 5 })
            );
            assert_eq!(Snapshot::decode(&[&bytes[..], b"x"].concat()).map(drop), Err(Error::TrailingBytes(1)));
        }
    }
}

#[test]
fn the_documented_example_equals_the_encoding() {
    let source = include_str!("../../snapshot.rs");
    let (_, example) = source.split_once("```text\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let pairs = example.lines().flat_map(|line| {
        line.trim_start_matches("//!")
            .split_whitespace()
            .take_while(|word| word.len() == 2 && parse_hex(word).len() == 1)
    });
    let pairs: Vec<_> = pairs.collect();
    assert_eq!(parse_hex(&pairs.concat()), STATES[0].snapshot());
}
