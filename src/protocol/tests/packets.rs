//! Tests of sessions of packets. They have the phases and deadlines of streams, which other tests cover.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::simulation::{millis, secs};
use crate::protocol::packet::Reply;
use crate::protocol::reply::Prefix;
use crate::protocol::rules::{Framing, LogMessages, ReplyMode, TimeSpan};
use crate::protocol::session::{HEADROOM, MAX_PACKETS, ReceivedPacket, Totals};
use crate::protocol::snapshot::Error;
use crate::protocol::{Outlet, Rules, Session, Snapshot, Verdict, Want, snapshot};

/// A peer that takes this many further packets, and a log that accepts this many further messages.
struct Peer {
    room: usize,
    log_room: usize,
    received: Vec<Vec<u8>>,
    logged: Vec<Vec<u8>>,
}

impl Outlet for Peer {
    fn send(&mut self, _: &[u8]) -> usize {
        unreachable!("packets are sent")
    }

    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize {
        assert!(!replies.is_empty());
        let taken = replies.len().min(self.room);
        self.room -= taken;
        self.received.extend(replies[..taken].iter().map(|reply| reply.concat()));
        taken
    }

    fn log(&mut self, message: &[u8]) -> bool {
        let is_logged = self.log_room > 0;
        self.log_room = self.log_room.saturating_sub(1);
        if is_logged {
            self.logged.push(message.to_vec());
        }
        is_logged
    }

    fn is_logging(&self) -> bool {
        true
    }
}

/// A session with its peer, on a clock that is moved by hand.
struct Connection {
    session: Session,
    peer: Peer,
    now: Instant,
}

fn packet_rules() -> Rules {
    Rules { packets: true, max_message: 10, ..Rules::default() }
}

impl Connection {
    #[expect(clippy::disallowed_methods, reason = "an instant to count from; the clock is moved by hand")]
    fn new(rules: Rules) -> Self {
        let now = Instant::now();
        let peer = Peer { room: usize::MAX, log_room: usize::MAX, received: Vec::new(), logged: Vec::new() };
        Self { session: Session::new(Arc::new(rules), now), peer, now }
    }

    /// Receives these packets with one call. Packets that are too long are truncated.
    fn receive(&mut self, packets: &[&str]) {
        let most = self.session.rules().max_message;
        let mut rooms: Vec<_> = packets
            .iter()
            .map(|packet| {
                let mut room = vec![b'?'; HEADROOM];
                room.extend_from_slice(packet.as_bytes());
                room.resize(HEADROOM + most, b'?');
                room
            })
            .collect();
        let packets = rooms.iter_mut().zip(packets).map(|(room, packet)| ReceivedPacket { room, len: packet.len() });
        self.session.receive_packets(self.now, packets, &mut self.peer);
    }

    fn process(&mut self) {
        self.session.process_packets(self.now, &mut self.peer);
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.session.handle_timeout(self.now);
    }

    #[track_caller]
    fn assert_received(&mut self, expected: &[&str]) {
        let received: Vec<_> = self.peer.received.drain(..).map(|packet| String::from_utf8(packet).unwrap()).collect();
        assert_eq!(received, expected);
    }

    /// Stores the session, and restores it under these rules.
    fn restart_with(&mut self, rules: Rules) {
        let bytes = snapshot::encode(&self.session, "echo", 7, None, self.now);
        let snapshot = Snapshot::decode(&bytes).unwrap();
        assert!(snapshot.has_packets());
        self.session = snapshot.restore(Arc::new(rules), self.now);
        assert_eq!(snapshot::encode(&self.session, "echo", 7, None, self.now), bytes);
    }
}

#[test]
fn each_packet_is_a_message_and_its_reply_is_a_packet() {
    let mut conn = Connection::new(packet_rules());
    conn.receive(&["aaaa"]);
    conn.assert_received(&["server got:aaaa"]);
    conn.receive(&["", "a\tb\t", "0123456789"]);
    conn.assert_received(&["server got:", "server got:a\tb\t", "server got:0123456789"]);
    assert_eq!(conn.session.totals().messages, 4);
    assert_eq!((conn.session.wants(), conn.session.memory()), (Want::Read, 0));
}

#[test]
fn replies_are_those_of_the_rules() {
    let fixed_reply: Arc<[u8]> = b"hello"[..].into();
    for (rules, expected) in [
        (Rules { prefix: Prefix::new(b""), ..packet_rules() }, &["a", ""][..]),
        (Rules { reply: ReplyMode::Fixed, fixed_reply, ..packet_rules() }, &["hello", "hello"]),
        (Rules { reply: ReplyMode::None, ..packet_rules() }, &[]),
    ] {
        let mut conn = Connection::new(rules);
        conn.receive(&["a", ""]);
        conn.assert_received(expected);
        assert_eq!(conn.session.totals().messages, 2);
    }
    // Prefixes that are as long as the room before a packet, and longer.
    for length in [HEADROOM, HEADROOM + 1] {
        let prefix = "p".repeat(length);
        let mut conn = Connection::new(Rules { prefix: Prefix::new(prefix.as_bytes()), ..packet_rules() });
        conn.receive(&["a", "bb"]);
        conn.assert_received(&[&format!("{prefix}a"), &format!("{prefix}bb")]);
    }
}

#[test]
fn replies_that_are_not_taken_are_kept_as_packets() {
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 1;
    conn.receive(&["a", "", "ccc"]);
    conn.assert_received(&["server got:a"]);
    assert_eq!(conn.session.wants(), Want::Write);
    conn.peer.room = 1;
    conn.process();
    conn.assert_received(&["server got:"]);
    assert_eq!(conn.session.wants(), Want::Write);
    conn.restart_with(packet_rules());
    assert_eq!(conn.session.wants(), Want::Write);
    conn.peer.room = usize::MAX;
    conn.process();
    conn.assert_received(&["server got:ccc"]);
    assert_eq!((conn.session.wants(), conn.session.memory()), (Want::Read, 0));
    assert_eq!(conn.session.totals(), Totals { bytes_in: 4, bytes_out: 37, messages: 3 });
}

#[test]
fn more_replies_than_one_call_takes_are_sent() {
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 0;
    conn.receive(&["x"; MAX_PACKETS]);
    conn.session.drain(conn.now);
    conn.peer.room = usize::MAX;
    conn.process();
    assert_eq!(conn.peer.received.len(), MAX_PACKETS);
    assert_eq!(conn.session.wants(), Want::Shutdown);
}

#[test]
fn a_peer_that_takes_nothing_is_cut_off_at_the_write_deadline() {
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 0;
    conn.receive(&["a", "b"]);
    conn.advance(millis(9_999));
    conn.peer.room = 1;
    conn.process();
    for _ in 0..20 {
        conn.advance(millis(499));
        assert_eq!(conn.session.wants(), Want::Write);
    }
    conn.advance(millis(20));
    assert_eq!((conn.session.wants(), conn.session.verdict()), (Want::Close, Some(Verdict::WriteDeadline)));
}

#[test]
fn a_packet_that_is_too_long_ends_the_session_after_the_replies_to_those_before() {
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 1;
    conn.receive(&["a", "0123456789", "0123456789x", "dropped"]);
    conn.assert_received(&["server got:a"]);
    conn.restart_with(packet_rules());
    conn.peer.room = usize::MAX;
    conn.process();
    conn.assert_received(&["server got:0123456789", "server error:message exceeds 10 bytes"]);
    assert_eq!((conn.session.wants(), conn.session.verdict()), (Want::Shutdown, Some(Verdict::TooLong)));
    assert_eq!(conn.session.totals().messages, 2);
    conn.session.handle_shutdown_sent(conn.now);
    conn.receive(&["dropped"]);
    conn.session.handle_end_of_input(conn.now);
    assert_eq!(conn.session.wants(), Want::Close);
}

#[test]
fn a_packet_that_is_longer_than_its_room_is_too_long() {
    let mut conn = Connection::new(packet_rules());
    let mut room = [b'x'; HEADROOM + 5];
    conn.session.receive_packet(conn.now, ReceivedPacket { room: &mut room, len: 6 }, &mut conn.peer);
    conn.process();
    conn.assert_received(&["server error:message exceeds 10 bytes"]);
}

#[test]
fn a_peer_that_lingers_is_dropped_after_so_many_bytes_of_packets() {
    let mut conn = Connection::new(Rules { error_replies: false, max_message: 1 << 20, ..packet_rules() });
    conn.session.refuse(Verdict::Busy, conn.now);
    assert_eq!(conn.session.wants(), Want::Shutdown);
    conn.session.handle_shutdown_sent(conn.now);
    let half = "x".repeat(1 << 19);
    conn.receive(&[&half]);
    assert_eq!(conn.session.wants(), Want::Read);
    conn.receive(&["", &half]);
    assert_eq!(conn.session.wants(), Want::Close);
}

#[test]
fn with_raw_framing_there_is_no_final_reply() {
    let mut conn = Connection::new(Rules { framing: Framing::Raw, prefix: Prefix::new(b""), ..packet_rules() });
    conn.receive(&["a", "0123456789x"]);
    conn.assert_received(&["a"]);
    assert_eq!(conn.session.wants(), Want::Shutdown);
}

#[test]
fn a_reply_that_no_packet_can_hold_ends_the_session_with_a_final_reply() {
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 1;
    conn.receive(&["a", "b", "c"]);
    conn.session.handle_unsendable_reply(conn.now);
    conn.peer.room = usize::MAX;
    conn.process();
    conn.assert_received(&["server got:a", "server error:message exceeds 10 bytes"]);
    assert_eq!(conn.session.verdict(), Some(Verdict::TooLong));
    // Also if a message of the same call was too long.
    for packets in [&["a", "b", "c", "0123456789x"][..], &["a", "b", "0123456789x"]] {
        let mut conn = Connection::new(packet_rules());
        conn.peer.room = 1;
        conn.receive(packets);
        conn.session.handle_unsendable_reply(conn.now);
        conn.peer.room = usize::MAX;
        conn.process();
        conn.assert_received(&["server got:a", "server error:message exceeds 10 bytes"]);
        assert_eq!((conn.session.wants(), conn.session.verdict()), (Want::Shutdown, Some(Verdict::TooLong)));
    }
    // If the final reply cannot be sent, either, the connection ends.
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 0;
    conn.receive(&["a"]);
    conn.session.handle_unsendable_reply(conn.now);
    conn.session.handle_unsendable_reply(conn.now);
    assert_eq!((conn.session.wants(), conn.session.verdict()), (Want::Close, Some(Verdict::TooLong)));
}

#[test]
fn a_message_waits_for_the_log_before_it_is_answered_also_over_a_restart() {
    let rules = || Rules { log_messages: LogMessages::Full, ..packet_rules() };
    let mut conn = Connection::new(rules());
    assert_eq!(conn.session.max_packets(), 1);
    conn.peer.log_room = 0;
    conn.receive(&["a\tb"]);
    assert_eq!((conn.session.wants(), conn.session.unlogged_messages()), (Want::Log, 1));
    conn.process();
    conn.restart_with(rules());
    assert_eq!((conn.session.wants(), conn.session.unlogged_messages()), (Want::Log, 1));
    conn.assert_received(&[]);
    conn.peer.log_room = 1;
    conn.process();
    assert_eq!(conn.peer.logged, [b"a\tb"]);
    conn.assert_received(&["server got:a\tb"]);
    assert_eq!((conn.session.wants(), conn.session.memory()), (Want::Read, 0));
    // Also where the peer is gone.
    conn.peer.log_room = 0;
    conn.receive(&["lost"]);
    conn.session.handle_reset();
    assert_eq!(conn.session.wants(), Want::Log);
    conn.peer.log_room = 1;
    conn.process();
    assert_eq!((conn.peer.logged.len(), conn.session.wants()), (2, Want::Close));
    conn.assert_received(&[]);
}

#[test]
fn after_a_reply_there_is_a_delay_also_over_a_restart() {
    let rules = || Rules { reply_delay: TimeSpan::new(secs(2), "2s"), ..packet_rules() };
    let mut conn = Connection::new(rules());
    assert_eq!(conn.session.max_packets(), 1);
    conn.receive(&["a"]);
    conn.assert_received(&["server got:a"]);
    assert_eq!(conn.session.wants(), Want::Delay);
    conn.advance(secs(1));
    conn.restart_with(rules());
    conn.advance(millis(999));
    assert_eq!(conn.session.wants(), Want::Delay);
    conn.advance(millis(1));
    conn.process();
    assert_eq!(conn.session.wants(), Want::Read);
    // The peer was not idle meanwhile.
    assert_eq!(conn.session.idle_since(), Some(conn.now));
}

#[test]
fn a_session_goes_on_as_what_it_was_whatever_the_rules_say() {
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 0;
    conn.receive(&["a", "b"]);
    conn.restart_with(Rules { packets: false, ..packet_rules() });
    conn.peer.room = usize::MAX;
    conn.process();
    conn.assert_received(&["server got:a", "server got:b"]);
    let stream = Session::new(Arc::default(), conn.now);
    let bytes = snapshot::encode(&stream, "echo", 7, None, conn.now);
    let snapshot = Snapshot::decode(&bytes).unwrap();
    assert!(!snapshot.has_packets());
    assert!(!snapshot.restore(Arc::new(packet_rules()), conn.now).rules().packets);
}

#[test]
fn snapshots_that_no_session_of_packets_has_are_rejected() {
    let mut conn = Connection::new(packet_rules());
    conn.peer.room = 0;
    conn.receive(&["a", ""]);
    let bytes = snapshot::encode(&conn.session, "echo", 7, None, conn.now);
    // The length of the first packet, which is the last 8 bytes before it.
    let at = bytes.windows(12).position(|bytes| bytes == b"server got:a").unwrap() - 1;
    for length in [0, 11, 13, 255] {
        let mut wrong = bytes.clone();
        wrong[at] = length;
        // None of these lengths is consistent with the packets.
        assert_eq!(Snapshot::decode(&wrong).map(drop), Err(Error::Inconsistent), "{length}");
    }
    let mut unknown = bytes;
    unknown[22] = 2;
    assert_eq!(Snapshot::decode(&unknown).map(drop), Err(Error::UnknownCode { field: "kind", code: 2 }));
}
