//! Tests on a fake clock of peers that do not take their replies, or send more than they take.

use super::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::reply::{FLUSH_THRESHOLD, Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, TimeSpan};
use crate::protocol::{Rules, Verdict, Want};

fn connection() -> SimulatedConnection {
    SimulatedConnection::new(Rules::default())
}

#[test]
fn a_peer_that_reads_nothing_for_ten_seconds_is_closed_without_a_final_reply() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.advance_time(millis(9_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.peer_reads_all();
    conn.assert_peer_received("");
    conn.assert_closed(Verdict::WriteDeadline);
}

#[test]
fn a_peer_that_reads_one_byte_every_nine_seconds_is_not_closed() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("aaaa\t");
    for byte in b"server got:aaaa\t" {
        conn.advance_time(secs(9));
        conn.assert_open();
        conn.peer_reads(1);
        conn.assert_peer_received([*byte]);
    }
    conn.peer_stops_reading();
    conn.advance_time(secs(20));
    conn.assert_open();
    // The next reply has its own ten seconds.
    conn.peer_sends("b\t");
    conn.advance_time(millis(9_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_closed(Verdict::WriteDeadline);
}

#[test]
fn a_reply_has_the_full_write_deadline_however_long_its_message_took() {
    for length in [4, 40_000] {
        let mut conn = SimulatedConnection::new(Rules {
            deadlines: Deadlines { read: None, ..Deadlines::default() },
            ..Rules::default()
        });
        conn.peer_stops_reading();
        conn.peer_sends("a".repeat(length / 2));
        conn.advance_time(secs(60));
        conn.peer_sends("a".repeat(length / 2) + "\t");
        conn.advance_time(millis(9_999));
        conn.assert_open();
        conn.advance_time(millis(1));
        conn.assert_closed(Verdict::WriteDeadline);
    }
}

#[test]
fn where_nothing_is_logged_a_flood_gets_little_more_than_one_block_of_replies_at_once() {
    let mut conn = connection().without_log();
    conn.peer_stops_reading();
    let flood = 100_000;
    conn.peer_sends("\t".repeat(flood));
    let most = FLUSH_THRESHOLD / "server got:\t".len() + 1 + 64;
    assert!(conn.session().totals().messages <= most as u64, "{conn}");
    while conn.session().wants() == Want::Write {
        conn.peer_reads(70_001);
    }
    conn.assert_peer_received("server got:\t".repeat(flood));
}

#[test]
fn a_peer_that_floods_and_does_not_read_is_not_read_from() {
    let mut conn = connection();
    conn.peer_stops_reading();
    let flood = 1_000_000;
    conn.peer_sends("\t".repeat(flood));
    let read = conn.session().totals().bytes_in;
    assert!(read <= READ_SIZE as u64, "{conn}");
    conn.peer_sends("\t".repeat(flood));
    conn.advance_time(secs(9));
    assert_eq!(conn.session().totals().bytes_in, read, "{conn}");
    // The session builds replies up to a limit. The rest follows while the peer takes them.
    assert!(conn.session().totals().messages <= (FLUSH_THRESHOLD / "server got:\t".len() + 1) as u64, "{conn}");
    while conn.session().wants() == Want::Write {
        conn.peer_reads(70_001);
    }
    conn.assert_peer_received("server got:\t".repeat(2 * flood));
    conn.assert_open();
    assert_eq!(conn.session().memory(), 0, "{conn}");
}

#[test]
fn a_flood_that_ends_near_the_flush_threshold_is_answered_completely() {
    let threshold = FLUSH_THRESHOLD.div_ceil("server got:\t".len());
    for count in threshold - 2..threshold + 4 {
        for rest in ["", "\n", "aaaa"] {
            let mut conn = connection();
            conn.peer_stops_reading();
            conn.peer_sends("\t".repeat(count) + rest);
            conn.peer_reads_all();
            conn.assert_peer_received("server got:\t".repeat(count));
            conn.peer_sends("\t");
            conn.assert_peer_received(format!("server got:{rest}\t"));
            conn.assert_open();
        }
    }
}

#[test]
fn memory_stays_bounded_when_a_peer_floods_with_long_messages() {
    let message = "x".repeat(65_536);
    let mut conn = SimulatedConnection::new(Rules { prefix: Prefix::new(&[b'>'; 4_096]), ..Rules::default() });
    conn.peer_stops_reading();
    conn.peer_sends(format!("{message}\t").repeat(10));
    while conn.session().wants() == Want::Write {
        conn.advance_time(secs(1));
        conn.peer_reads(10_000);
    }
    conn.assert_peer_received(format!("{}{message}\t", ">".repeat(4_096)).repeat(10));
    conn.assert_open();
}

#[test]
fn a_flooding_peer_that_reads_fast_does_not_starve_other_connections() {
    let mut conn = SimulatedConnection::new(Rules { max_message: 4, prefix: Prefix::new(b">>>>"), ..Rules::default() });
    conn.peer_sends("\t".repeat(READ_SIZE));
    conn.assert_peer_received(">>>>\t".repeat(READ_SIZE));
    // One call sends the owed replies, and as much again.
    assert!(
        conn.max_sent_at_once() <= 2 * (FLUSH_THRESHOLD + 9),
        "{} bytes were sent at once\n{conn}",
        conn.max_sent_at_once()
    );
}

/// Returns a connection that owes a reply at time 0 to a peer that reads nothing. Its kernel's acknowledgments are known.
fn with_reply_owed() -> SimulatedConnection {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("aaaa\t");
    conn.peer_acknowledges();
    conn
}

#[test]
fn a_peer_is_not_closed_while_its_kernel_acknowledges_something_within_the_write_deadline() {
    let mut conn = with_reply_owed();
    for _ in 0..20 {
        conn.advance_time(millis(9_900));
        conn.assert_open();
        conn.peer_acknowledges();
    }
    conn.peer_reads_all();
    conn.assert_peer_received("server got:aaaa\t");
    conn.assert_open();
}

#[test]
fn a_peer_whose_kernel_acknowledges_nothing_more_is_closed_an_eighth_later_at_most() {
    for acknowledged_at in [0, 100, 2_000, 9_000] {
        let mut conn = with_reply_owed();
        conn.advance_time(millis(acknowledged_at));
        conn.peer_acknowledges();
        conn.advance_time(secs(10));
        conn.assert_open();
        conn.advance_time(millis(1_250));
        conn.assert_closed(Verdict::WriteDeadline);
    }
}

#[test]
fn a_handover_gives_a_peer_that_takes_nothing_no_more_time() {
    let mut conn = with_reply_owed();
    for _ in 0..9 {
        conn.advance_time(secs(1));
        conn.restart();
    }
    conn.assert_open();
    conn.advance_time(millis(1_250));
    conn.assert_closed(Verdict::WriteDeadline);
}

#[test]
fn a_lifetime_that_ends_at_the_time_of_a_check_leaves_no_check_at_that_time() {
    // The checks are at 100 ms and then every second. The simulation asserts the rest.
    for lifetime in [millis(100), millis(1_100)] {
        let lifetime = Some(TimeSpan::new(lifetime, "a while"));
        let deadlines = Deadlines { lifetime, ..Deadlines::default() };
        let mut conn = SimulatedConnection::new(Rules { deadlines, ..Rules::default() });
        conn.peer_stops_reading();
        conn.peer_sends("a\t");
        conn.advance_time(secs(2));
        conn.peer_reads_all();
        assert_eq!(conn.session().verdict(), Some(Verdict::Lifetime));
    }
}

#[test]
fn the_final_reply_gets_no_more_time_for_what_is_acknowledged() {
    let mut conn = with_reply_owed();
    conn.refuse(Verdict::TooMany { limit: 1 });
    for _ in 0..10 {
        conn.advance_time(secs(1));
        conn.peer_acknowledges();
    }
    conn.assert_closed(Verdict::TooMany { limit: 1 });
}

#[test]
fn input_that_is_read_ahead_is_answered_in_its_order_after_what_is_owed() {
    // The message in progress continues in the input that was read ahead, with and without other unprocessed input.
    for first in ["a\tbb", &("a\t".repeat(READ_SIZE) + "bb")] {
        let mut conn = connection();
        assert_eq!(conn.session().read_ahead_room(), 0);
        conn.peer_stops_reading();
        conn.peer_sends(first);
        conn.reads_ahead("b\tc\td");
        conn.reads_ahead("d\t");
        conn.peer_ends();
        conn.peer_reads_all();
        let replies = "server got:a\t".repeat(first.matches('a').count());
        conn.assert_peer_received(replies + "server got:bbb\tserver got:c\tserver got:dd\t");
        conn.assert_closed(Verdict::PeerClosed);
    }
}

#[test]
fn a_message_whose_end_was_read_ahead_is_answered_whole_when_we_stop() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\tbb");
    conn.reads_ahead("b\tc\td");
    conn.drain();
    conn.peer_reads_all();
    conn.assert_peer_received("server got:a\tserver got:bbb\tserver got:c\t");
    conn.assert_lingering(Verdict::Shutdown);
}

#[test]
fn no_more_is_read_ahead_than_two_reads() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    for room in [2 * READ_SIZE, READ_SIZE, 0] {
        assert_eq!(conn.session().read_ahead_room(), room);
        conn.reads_ahead("b".repeat(READ_SIZE));
    }
}

#[test]
fn input_that_is_read_ahead_while_the_session_ends_is_dropped() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.refuse(Verdict::Reclaimed);
    conn.reads_ahead("b\t");
    conn.peer_ends();
    conn.peer_reads_all();
    conn.assert_peer_received("server got:a\tserver error:connection reclaimed, the server is full\t");
    assert_eq!(conn.session().totals().bytes_in, 2);
}
