//! Any bytes as a snapshot: they are refused with an error, or restored as a session, to which anything may happen, and
//! which can be encoded and restored as the same session at any time.
//!
//! The first 16 bytes say which rules hold and what happens; the rest is the snapshot.

#![no_main]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echoed::protocol::packet::Reply;
use echoed::protocol::rules::{Framing, LogMessages, ReplyMode, TimeSpan, Unterminated};
use echoed::protocol::{Delimiter, Outlet, Rules, Scratch, Session, Snapshot, Verdict, Want, snapshot};
use libfuzzer_sys::fuzz_target;

/// An outlet that takes this many bytes and logs this many messages.
struct LimitedOutlet(usize, usize);

impl Outlet for LimitedOutlet {
    fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        taken
    }

    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize {
        replies.iter().take_while(|reply| reply.concat().len() <= self.0).count()
    }

    fn log(&mut self, _: &[u8]) -> bool {
        let taken = self.1 > 0;
        self.1 = self.1.saturating_sub(1);
        taken
    }

    fn is_logging(&self) -> bool {
        true
    }
}

/// The input from peers.
const INPUT: [&[u8]; 8] =
    [b"\t", b"aaaa\t", b"a", b"\r\n", b"-\t-", b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b"--", b"\t\t\t\t\t"];

fuzz_target!(|data: &[u8]| {
    let Some((script, bytes)) = data.split_first_chunk::<16>() else { return };
    let snapshot = match Snapshot::decode(bytes) {
        Ok(snapshot) => snapshot,
        Err(error) => return assert!(error.to_string().contains("snapshot")),
    };
    let rules = Arc::new(Rules {
        delimiter: Delimiter::new([&b"\t"[..], b"--", b"\t-\t", b"a"][usize::from(script[0] & 3)]).unwrap_or_default(),
        max_message: if script[0] & 4 == 0 { 16 } else { 65_536 },
        unterminated: if script[0] & 8 == 0 { Unterminated::Discard } else { Unterminated::Accept },
        error_replies: script[0] & 16 == 0,
        log_messages: if script[0] & 32 == 0 { LogMessages::Off } else { LogMessages::Full },
        framing: if script[0] & 64 == 0 { Framing::Delimited } else { Framing::Raw },
        reply: [ReplyMode::Echo, ReplyMode::Echo, ReplyMode::Fixed, ReplyMode::None][usize::from(script[1] & 3)],
        fixed_reply: b"hello"[..].into(),
        reply_delay: TimeSpan::new(Duration::from_millis(if script[0] & 128 == 0 { 0 } else { 1500 }), "a while"),
        ..Rules::default()
    });
    let mut now = Instant::now();
    let mut scratch = Scratch::new();
    let client = snapshot.client();
    let mut session = snapshot.restore(Arc::clone(&rules), now);
    for step in &script[2..] {
        let size = usize::from(step >> 4);
        let mut outlet = LimitedOutlet(size * size * size, size & 3);
        match step & 15 {
            0..=3 => session.process_buffers(now, &mut scratch, &mut outlet),
            4..=6 => {
                let input = INPUT[size & 7];
                scratch.input_room()[..input.len()].copy_from_slice(input);
                session.receive(now, &mut scratch, input.len(), &mut outlet);
            }
            7 => session.handle_end_of_input(now),
            8 => session.handle_shutdown_sent(now),
            9 | 10 => {
                now += Duration::from_millis(1 << size);
                session.handle_timeout(now);
            }
            11 => session.drain(now),
            12 => session.refuse(Verdict::TooMany { limit: 3 }, now),
            13 => session.handle_out_of_memory(now),
            14 => session.handle_reset(),
            _ => session = round_trip(session, client, &rules, now),
        }
    }
    let session = round_trip(session, client, &rules, now);
    run_to_close(session, now, &mut scratch);
});

/// Encodes a session and restores it, and asserts that it is encoded as before.
fn round_trip(session: Session, client: Option<SocketAddr>, rules: &Arc<Rules>, now: Instant) -> Session {
    let bytes = snapshot::encode(&session, "echo", 7, client, now);
    match Snapshot::decode(&bytes) {
        Ok(snapshot) => {
            let restored = snapshot.restore(Arc::clone(rules), now);
            assert_eq!(snapshot::encode(&restored, "echo", 7, client, now), bytes, "{session:?}\n{restored:?}");
            // Beyond 292 years, times are capped. The looks at what a peer takes, of which the next one may be the deadline while
            // replies are owed, begin anew.
            let deadline = |session: &Session| {
                let until = session.deadline().filter(|_| session.wants() != Want::Write);
                until.filter(|deadline| *deadline + Duration::from_secs(1 << 32) > now)
            };
            assert_eq!((restored.wants(), deadline(&restored)), (session.wants(), deadline(&session)));
            restored
        }
        Err(error) => panic!("{error}\n{session:?}"),
    }
}

/// Runs the session until it closes, with a peer that only takes what it is sent, and a log that accepts everything.
fn run_to_close(mut session: Session, mut now: Instant, scratch: &mut Scratch) {
    for _ in 0..1_000_000 {
        match session.wants() {
            Want::Read | Want::Delay => {
                let Some(deadline) = session.deadline() else { panic!("nothing will happen to {session:?}") };
                now = now.max(deadline);
                session.handle_timeout(now);
            }
            Want::Write | Want::Log => {
                session.process_buffers(now, scratch, &mut LimitedOutlet(usize::MAX, usize::MAX))
            }
            Want::Shutdown => session.handle_shutdown_sent(now),
            Want::Close => break,
        }
    }
    assert_eq!((session.wants(), session.memory()), (Want::Close, 0), "{session:?}");
}
