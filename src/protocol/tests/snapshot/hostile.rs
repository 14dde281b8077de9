//! Snapshots of any bytes: rejected with an error, or a valid session.

use std::sync::Arc;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;

use super::states::STATES;
use crate::protocol::rules::{Deadlines, LogMessages};
use crate::protocol::snapshot::{Error, VERSION};
use crate::protocol::tests::calls::{LimitedOutlet, run_to_close};
use crate::protocol::tests::oracle::config;
use crate::protocol::tests::simulation::secs;
use crate::protocol::verdict::KINDS;
use crate::protocol::{Delimiter, Rules, Scratch, Session, Snapshot};

/// Rules under which every session ends, whatever the snapshot contains.
fn rules(log_messages: LogMessages) -> Arc<Rules> {
    Arc::new(Rules { log_messages, max_message: 16, delimiter: Delimiter::new(b"\t\t").unwrap(), ..Rules::default() })
}

struct Tester {
    now: Instant,
    scratch: Scratch,
}

impl Tester {
    #[expect(clippy::disallowed_methods, reason = "an instant to count from; the clock is moved by hand")]
    fn new() -> Self {
        Self { now: Instant::now(), scratch: Scratch::new() }
    }

    /// Decodes bytes, and does everything that can be done with a snapshot. Returns whether they are a valid snapshot.
    fn exercise(&mut self, bytes: &[u8]) -> bool {
        let mut accepted = false;
        for log in [LogMessages::Off, LogMessages::Full] {
            for act in [Self::time_out, Self::receive, Self::drain_and_reset] {
                let Ok(snapshot) = Snapshot::decode(bytes) else { return false };
                accepted = true;
                let mut session = snapshot.restore(rules(log), self.now);
                assert!(session.memory() <= bytes.len() + 64, "keeps {} of {} bytes", session.memory(), bytes.len());
                act(self, &mut session);
                run_to_close(session, self.now, &mut self.scratch);
            }
        }
        accepted
    }

    fn time_out(&mut self, session: &mut Session) {
        session.handle_timeout(self.now);
        session.handle_timeout(self.now + secs(1));
    }

    fn receive(&mut self, session: &mut Session) {
        session.process_buffers(self.now, &mut self.scratch, &mut LimitedOutlet(3, 2));
        let bytes = b"aa\taaa\t\taaaa\t";
        self.scratch.input_room()[..bytes.len()].copy_from_slice(bytes);
        session.receive(self.now, &mut self.scratch, bytes.len(), &mut LimitedOutlet(5, 2));
        session.handle_end_of_input(self.now);
    }

    fn drain_and_reset(&mut self, session: &mut Session) {
        session.drain(self.now);
        session.handle_reset();
        session.handle_out_of_memory(self.now);
    }
}

#[test]
fn truncated_snapshots_and_trailing_bytes_are_rejected() {
    for state in STATES {
        let bytes = (state.setup)().snapshot();
        for length in 0..bytes.len() {
            let error = Snapshot::decode(&bytes[..length]).unwrap_err();
            assert!(matches!(error, Error::Truncated(_)), "{}, cut to {length}: {error}", state.name);
        }
        let longer = [&bytes[..], b"\0"].concat();
        assert_eq!(Snapshot::decode(&longer).unwrap_err(), Error::TrailingBytes(1), "{}", state.name);
    }
}

#[test]
fn changing_any_byte_of_a_snapshot_is_safe() {
    let mut tester = Tester::new();
    for state in STATES {
        let mut bytes = (state.setup)().snapshot();
        assert!(tester.exercise(&bytes), "{}", state.name);
        let mut accepted = 0;
        for at in 0..bytes.len() {
            for other in [1, 2, 3, 4, 0x10, 0x80, 0xff] {
                bytes[at] ^= other;
                accepted += usize::from(tester.exercise(&bytes));
                bytes[at] ^= other;
            }
        }
        // Most of the bytes are numbers, for which any value is valid.
        assert!(accepted > bytes.len(), "{}: {accepted}", state.name);
    }
}

#[test]
fn impossible_session_states_are_rejected() {
    let bytes = |name: &str| {
        let state = STATES.iter().find(|state| state.name == name).unwrap();
        (state.setup)().snapshot()
    };
    // The positions of the phase and its verdict.
    let phase = 2 + 8 + 8 + 4 + 1;
    let with = |name: &str, at: usize, code: u8| {
        let mut bytes = bytes(name);
        bytes[at] = code;
        Snapshot::decode(&bytes).map(drop)
    };
    for name in ["in progress", "with outbound replies, and a message in progress", "half-closed"] {
        assert_eq!(with(name, phase - 1, 1), Err(Error::Inconsistent), "{name}, of packets");
    }
    assert_eq!(with("in progress", phase, 7), Err(Error::UnknownCode { field: "phase", code: 7 }));
    assert_eq!(with("in progress", phase + 1, 2), Err(Error::UnknownCode { field: "end of input", code: 2 }));
    assert_eq!(with("stopping", phase + 1, 0), Err(Error::UnknownCode { field: "verdict", code: 0 }));
    let code = u8::try_from(KINDS + 1).unwrap();
    assert_eq!(with("stopping", phase + 1, code), Err(Error::UnknownCode { field: "verdict", code }));
    assert_eq!(with("half-closed", phase, 5), Err(Error::Inconsistent), "logging, but with outbound replies");
    assert_eq!(with("logging", phase, 6), Err(Error::Inconsistent), "done, but with inbound messages");
    assert_eq!(with("in progress", 18, 0xff), Err(Error::NotUtf8));
    assert_eq!(with("in progress", 0, 0xff), Err(Error::UnknownVersion(0xff01)));
    assert_eq!(with("in progress", 1, 0), Err(Error::UnknownVersion(0)));
    assert_eq!(with("in progress", 1, 2), Err(Error::UnknownVersion(2)));
    // A delay is possible only while the session is open and no message is in progress.
    let delayed = bytes("delayed");
    let half_closed = [&delayed[..phase], &[2, 8], &delayed[phase + 1..]].concat();
    assert_eq!(Snapshot::decode(&half_closed).map(drop), Err(Error::Inconsistent));
    let message = phase + 2 + 16 + 24;
    let unlogged = [&delayed[..message], &[2, 0, 0, 0, 0, 0, 0, 0, 1, b'a'], &delayed[message + 1..]].concat();
    assert_eq!(Snapshot::decode(&unlogged).map(drop), Err(Error::Inconsistent));
    // Totals beyond the maximum count.
    let totals = phase + 2 + 16;
    assert!(matches!(
        with("in progress", totals, 0x80),
        Err(Error::CountTooLarge { field: "number of bytes received", .. })
    ));
}

#[test]
fn errors_describe_the_problem() {
    for (error, words) in [
        (Error::UnknownVersion(9), format!("snapshot of unknown version 9 (known: up to {VERSION})")),
        (Error::Truncated("replies"), "damaged snapshot: it ends within its replies".to_owned()),
        (Error::TrailingBytes(3), "damaged snapshot: 3 bytes follow its end".to_owned()),
        (Error::UnknownCode { field: "phase", code: 9 }, "damaged snapshot: invalid phase 9".to_owned()),
        (Error::NotUtf8, "damaged snapshot: its listener's name is not UTF-8".to_owned()),
        (Error::Inconsistent, "damaged snapshot: its content contradicts its kind and phase".to_owned()),
    ] {
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn a_length_beyond_the_end_allocates_no_memory() {
    let mut bytes = 1_u16.to_be_bytes().to_vec();
    bytes.extend(7_u64.to_be_bytes());
    for length in [1, 1 << 40, u64::MAX] {
        let bytes = [&bytes[..], &length.to_be_bytes()].concat();
        assert_eq!(Snapshot::decode(&bytes).unwrap_err(), Error::Truncated("listener's name"));
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_changes_of_a_snapshot_are_safe(
        state in 0..STATES.len(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..12),
    ) {
        let mut bytes = (STATES[state].setup)().snapshot();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        Tester::new().exercise(&bytes);
    }

    #[test]
    fn times_beyond_the_range_of_the_clock_are_safe(times in vec(prop_oneof![Just(i64::MIN), Just(i64::MAX), any::<i64>()], 3)) {
        let mut bytes = STATES[0].snapshot();
        let opened = 2 + 8 + 8 + 4 + 1 + 2;
        for (at, time) in [opened, opened + 8, opened + 16 + 24 + 1].into_iter().zip(times) {
            bytes[at..at + 8].copy_from_slice(&time.to_be_bytes());
        }
        let deadlines = Deadlines { lifetime: None, idle: None, ..Deadlines::default() };
        let mut tester = Tester::new();
        prop_assert!(tester.exercise(&bytes));
        let session = Snapshot::decode(&bytes).unwrap().restore(Arc::new(Rules { deadlines, ..Rules::default() }), tester.now);
        prop_assert!(session.opened() <= tester.now);
        prop_assert!(session.deadline().unwrap() <= tester.now + secs(2));
        run_to_close(session, tester.now, &mut tester.scratch);
    }
}
