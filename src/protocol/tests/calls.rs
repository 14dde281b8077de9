//! Random calls of a session, in any order, whether they are wanted or not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::oracle::{PATTERNS, config, some_rules};
use super::simulation::millis;
use crate::protocol::packet::Reply;
use crate::protocol::reply::READ_SIZE;
use crate::protocol::rules::{LogMessages, Rules, TimeSpan};
use crate::protocol::{Outlet, Scratch, Session, Snapshot, Verdict, Want, snapshot};

/// All calls of a session, whether it wants them or not.
#[derive(Debug, Clone)]
enum Call {
    /// A pattern, and the number of its repetitions.
    Receive(&'static str, usize),
    EndOfInput,
    ProcessBuffers,
    Timeout(Duration),
    Drain,
    Refuse,
    OutOfMemory,
    Reset,
    ShutdownSent,
    Restart,
}

fn call() -> impl Strategy<Value = Call> {
    let count = prop_oneof![3 => 1..20_usize, 1 => 1..=READ_SIZE / 7];
    prop_oneof![
        8 => (select(PATTERNS), count).prop_map(|(pattern, count)| Call::Receive(pattern, count)),
        6 => Just(Call::ProcessBuffers),
        4 => (0..400_000_u64).prop_map(|time| Call::Timeout(millis(time))),
        1 => Just(Call::EndOfInput),
        1 => Just(Call::Drain),
        1 => Just(Call::Refuse),
        1 => Just(Call::OutOfMemory),
        1 => Just(Call::Reset),
        1 => Just(Call::ShutdownSent),
        4 => Just(Call::Restart),
    ]
}

/// An outlet that takes at most this many bytes at a time, and accepts a limited number of messages.
pub(super) struct LimitedOutlet(pub(super) usize, pub(super) usize);

impl Outlet for LimitedOutlet {
    fn send(&mut self, bytes: &[u8]) -> usize {
        bytes.len().min(self.0)
    }

    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize {
        replies.iter().take_while(|reply| reply.concat().len() <= self.0).count()
    }

    fn log(&mut self, _: &[u8]) -> bool {
        self.1 = self.1.saturating_sub(1);
        self.1 > 0
    }

    fn is_logging(&self) -> bool {
        true
    }
}

fn outlet_limits() -> impl Strategy<Value = (usize, usize)> {
    let bytes = prop_oneof![Just(0), 0..100_usize, 0..500_000_usize];
    (bytes, prop_oneof![Just(0), 0..10_usize, Just(usize::MAX)])
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_session_always_closes_after_calls_in_any_order(
        rules in some_rules(),
        calls in vec((call(), outlet_limits()), 0..30),
    ) {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from; the clock is moved by hand")]
        let mut now = Instant::now();
        let (mut session, mut scratch) = (Session::new(Arc::new(rules), now), Scratch::new());
        let mut verdict = None;
        for (call, (bytes, messages)) in calls {
            let mut outlet = LimitedOutlet(bytes, messages);
            match call {
                Call::Receive(pattern, count) => {
                    let bytes = pattern.repeat(count).into_bytes();
                    scratch.input_room()[..bytes.len()].copy_from_slice(&bytes);
                    session.receive(now, &mut scratch, bytes.len(), &mut outlet);
                }
                Call::ProcessBuffers => session.process_buffers(now, &mut scratch, &mut outlet),
                Call::Timeout(time) => {
                    now += time;
                    session.handle_timeout(now);
                }
                Call::EndOfInput => session.handle_end_of_input(now),
                Call::Drain => session.drain(now),
                Call::Refuse => session.refuse(Verdict::TooMany { limit: 1 }, now),
                Call::OutOfMemory => session.handle_out_of_memory(now),
                Call::Reset => session.handle_reset(),
                Call::ShutdownSent => session.handle_shutdown_sent(now),
                Call::Restart => {
                    let bytes = snapshot::encode(&session, "", 0, None, now);
                    session = Snapshot::decode(&bytes).unwrap().restore(Arc::clone(session.shared_rules()), now);
                    prop_assert_eq!(snapshot::encode(&session, "", 0, None, now), bytes);
                }
            }
            if verdict.is_some() {
                prop_assert_eq!(session.verdict(), verdict, "a verdict, once said, changed");
            }
            verdict = session.verdict();
        }
        run_to_close(session, now, &mut scratch);
    }
}

/// Runs the session until it closes, with a peer that only takes what it is sent, and a log that accepts everything.
pub(super) fn run_to_close(mut session: Session, mut now: Instant, scratch: &mut Scratch) {
    // With a reply delay, three steps for each message.
    for _ in 0..1_000_000 {
        match session.wants() {
            Want::Read | Want::Delay => {
                now = now.max(session.deadline().expect("a deadline to wait for"));
                session.handle_timeout(now);
            }
            Want::Write | Want::Log => {
                session.process_buffers(now, scratch, &mut LimitedOutlet(usize::MAX, usize::MAX))
            }
            Want::Shutdown => session.handle_shutdown_sent(now),
            Want::Close => break,
        }
    }
    assert_eq!(session.wants(), Want::Close, "{:?}", session.verdict());
    assert!(session.verdict().is_some());
    assert_eq!(session.memory(), 0);
}

/// Tests a message that comes during a delay and must wait for the log. Unwanted input ends the delay: if the message also
/// waited for the delay, nothing would wake the session.
#[test]
fn a_message_that_waits_for_the_log_does_not_wait_for_a_delay_too() {
    #[expect(clippy::disallowed_methods, reason = "an instant to count from")]
    let now = Instant::now();
    let reply_delay = TimeSpan::new(Duration::from_secs(2), "2s");
    let rules = Rules { reply_delay, log_messages: LogMessages::Full, ..Rules::default() };
    let (mut session, mut scratch) = (Session::new(Arc::new(rules), now), Scratch::new());
    for (message, log_accepts, wants) in [(b"a\t", usize::MAX, Want::Delay), (b"b\t", 0, Want::Log)] {
        scratch.input_room()[..2].copy_from_slice(message);
        session.receive(now, &mut scratch, 2, &mut LimitedOutlet(usize::MAX, log_accepts));
        assert_eq!(session.wants(), wants);
    }
    session.process_buffers(now, &mut scratch, &mut LimitedOutlet(usize::MAX, usize::MAX));
    assert_eq!((session.wants(), session.totals().messages), (Want::Delay, 2));
}
