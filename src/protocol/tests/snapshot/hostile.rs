//! Bytes that somebody else has written: refused with words, or a session like any other.

use std::sync::Arc;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;

use super::states::STATES;
use crate::protocol::rules::{Deadlines, LogMessages};
use crate::protocol::snapshot::{Error, VERSION};
use crate::protocol::tests::calls::{Room, comes_to_an_end};
use crate::protocol::tests::conversation::secs;
use crate::protocol::tests::oracle::config;
use crate::protocol::{Delimiter, Rules, Scratch, Session, Snapshot};

/// Rules by which it comes to an end whatever was written.
fn rules(log_messages: LogMessages) -> Arc<Rules> {
    Arc::new(Rules { log_messages, max_message: 16, delimiter: Delimiter::new(b"\t\t").unwrap(), ..Rules::default() })
}

struct Reader {
    now: Instant,
    scratch: Scratch,
}

impl Reader {
    #[expect(clippy::disallowed_methods, reason = "an instant to count from; the clock is moved by hand")]
    fn new() -> Self {
        Self { now: Instant::now(), scratch: Scratch::new() }
    }

    /// Everything that can be done with a snapshot. Returns whether it is one.
    fn tries(&mut self, bytes: &[u8]) -> bool {
        let mut accepted = false;
        for log in [LogMessages::Off, LogMessages::Full] {
            for act in [Self::ticks, Self::receives, Self::drains] {
                let Ok(snapshot) = Snapshot::read(bytes) else { return false };
                accepted = true;
                let mut session = snapshot.thaw(rules(log), self.now);
                assert!(session.memory() <= bytes.len() + 64, "keeps {} of {} bytes", session.memory(), bytes.len());
                act(self, &mut session);
                comes_to_an_end(session, self.now, &mut self.scratch);
            }
        }
        accepted
    }

    fn ticks(&mut self, session: &mut Session) {
        session.tick(self.now);
        session.tick(self.now + secs(1));
    }

    fn receives(&mut self, session: &mut Session) {
        session.resume(self.now, &mut self.scratch, &mut Room(3, 2));
        let bytes = b"aa\taaa\t\taaaa\t";
        self.scratch.input_room()[..bytes.len()].copy_from_slice(bytes);
        session.receive(self.now, &mut self.scratch, bytes.len(), &mut Room(5, 2));
        session.end_of_input(self.now);
    }

    fn drains(&mut self, session: &mut Session) {
        session.drain(self.now);
        session.reset();
        session.out_of_memory(self.now);
    }
}

#[test]
fn a_snapshot_that_is_cut_or_goes_on_is_refused() {
    for state in STATES {
        let bytes = (state.story)().frozen();
        for length in 0..bytes.len() {
            let error = Snapshot::read(&bytes[..length]).unwrap_err();
            assert!(matches!(error, Error::Short(_)), "{}, cut to {length}: {error}", state.name);
        }
        let longer = [&bytes[..], b"\0"].concat();
        assert_eq!(Snapshot::read(&longer).unwrap_err(), Error::Long(1), "{}", state.name);
    }
}

#[test]
fn whatever_byte_is_changed_nothing_breaks() {
    let mut reader = Reader::new();
    for state in STATES {
        let mut bytes = (state.story)().frozen();
        assert!(reader.tries(&bytes), "{}", state.name);
        let mut accepted = 0;
        for at in 0..bytes.len() {
            for other in [1, 2, 3, 4, 0x10, 0x80, 0xff] {
                bytes[at] ^= other;
                accepted += usize::from(reader.tries(&bytes));
                bytes[at] ^= other;
            }
        }
        // Most of it are numbers, of which any will do.
        assert!(accepted > bytes.len(), "{}: {accepted}", state.name);
    }
}

#[test]
fn what_a_session_cannot_be_in_is_refused() {
    let bytes = |name: &str| {
        let state = STATES.iter().find(|state| state.name == name).unwrap();
        (state.story)().frozen()
    };
    // Where the phase is, and a verdict of it.
    let phase = 2 + 8 + 8 + 4;
    let with = |name: &str, at: usize, code: u8| {
        let mut bytes = bytes(name);
        bytes[at] = code;
        Snapshot::read(&bytes).map(drop)
    };
    assert_eq!(with("in progress", phase, 7), Err(Error::Code { what: "phase", code: 7 }));
    assert_eq!(with("in progress", phase + 1, 2), Err(Error::Code { what: "end of input", code: 2 }));
    assert_eq!(with("stopping", phase + 1, 0), Err(Error::Code { what: "verdict", code: 0 }));
    assert_eq!(with("stopping", phase + 1, 14), Err(Error::Code { what: "verdict", code: 14 }));
    assert_eq!(with("finishing", phase, 5), Err(Error::Impossible), "logging, but owing");
    assert_eq!(with("logging", phase, 6), Err(Error::Impossible), "done, but keeping");
    assert_eq!(with("in progress", 18, 0xff), Err(Error::NotText));
    assert_eq!(with("in progress", 0, 0xff), Err(Error::Version(0xff01)));
    assert_eq!(with("in progress", 1, 0), Err(Error::Version(0)));
    // A client belongs to version 2.
    assert_eq!(with("in progress", 1, 2), Err(Error::Short("kind of address")));
    // Only one that is open pauses, and nothing else is in progress then.
    let pausing = bytes("pausing");
    let finishing = [&pausing[..phase], &[2, 8], &pausing[phase + 1..]].concat();
    assert_eq!(Snapshot::read(&finishing).map(drop), Err(Error::Impossible));
    let message = phase + 2 + 16 + 24;
    let unlogged = [&pausing[..message], &[2, 0, 0, 0, 0, 0, 0, 0, 1, b'a'], &pausing[message + 1..]].concat();
    assert_eq!(Snapshot::read(&unlogged).map(drop), Err(Error::Impossible));
    // Totals beyond what can be counted on.
    let totals = phase + 2 + 16;
    assert!(matches!(with("in progress", totals, 0x80), Err(Error::Count { what: "number of bytes received", .. })));
}

#[test]
fn errors_say_in_plain_words_what_is_wrong() {
    for (error, words) in [
        (Error::Version(9), format!("snapshot of unknown version 9 (known: up to {VERSION})")),
        (Error::Short("replies"), "damaged snapshot: it ends within its replies".to_owned()),
        (Error::Long(3), "damaged snapshot: 3 bytes follow its end".to_owned()),
        (Error::Code { what: "phase", code: 9 }, "damaged snapshot: 9 is no phase".to_owned()),
        (Error::NotText, "damaged snapshot: its listener's name is not UTF-8".to_owned()),
        (Error::Impossible, "damaged snapshot: what it keeps does not go with its phase".to_owned()),
    ] {
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn a_length_that_is_not_there_takes_no_memory() {
    let mut bytes = 1_u16.to_be_bytes().to_vec();
    bytes.extend(7_u64.to_be_bytes());
    for length in [1, 1 << 40, u64::MAX] {
        let bytes = [&bytes[..], &length.to_be_bytes()].concat();
        assert_eq!(Snapshot::read(&bytes).unwrap_err(), Error::Short("listener's name"));
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_is_written_into_a_snapshot_nothing_breaks(
        state in 0..STATES.len(),
        spoilt in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..12),
    ) {
        let mut bytes = (STATES[state].story)().frozen();
        for (at, byte) in spoilt {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        Reader::new().tries(&bytes);
    }

    #[test]
    fn times_beyond_all_clocks_do_no_harm(times in vec(prop_oneof![Just(i64::MIN), Just(i64::MAX), any::<i64>()], 3)) {
        let mut bytes = STATES[0].frozen();
        let opened = 2 + 8 + 8 + 4 + 2;
        for (at, time) in [opened, opened + 8, opened + 16 + 24 + 1].into_iter().zip(times) {
            bytes[at..at + 8].copy_from_slice(&time.to_be_bytes());
        }
        let deadlines = Deadlines { lifetime: None, idle: None, ..Deadlines::default() };
        let mut reader = Reader::new();
        prop_assert!(reader.tries(&bytes));
        let session = Snapshot::read(&bytes).unwrap().thaw(Arc::new(Rules { deadlines, ..Rules::default() }), reader.now);
        prop_assert!(session.opened() <= reader.now);
        prop_assert!(session.deadline().unwrap() <= reader.now + secs(2));
        comes_to_an_end(session, reader.now, &mut reader.scratch);
    }
}
