//! Tests on a fake clock of sessions that continue, and of deadlines that end them.

use super::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::reply::READ_SIZE;
use crate::protocol::rules::{Deadlines, TimeSpan, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

fn connection() -> SimulatedConnection {
    SimulatedConnection::new(Rules::default())
}

fn with_deadlines(deadlines: Deadlines) -> SimulatedConnection {
    SimulatedConnection::new(Rules { deadlines, ..Rules::default() })
}

fn with_lifetime(lifetime: TimeSpan) -> SimulatedConnection {
    with_deadlines(Deadlines { lifetime: Some(lifetime), ..Deadlines::default() })
}

// --- Messages and replies --------------------------------------------------------------------------------------------

#[test]
fn a_message_gets_its_reply() {
    let mut conn = connection();
    conn.peer_sends("aaaa\t");
    conn.assert_peer_received("server got:aaaa\t");
    conn.assert_open();
    conn.peer_sends("bb");
    conn.assert_peer_received("");
    conn.peer_sends("b\t");
    conn.assert_peer_received("server got:bbb\t");
    conn.peer_ends();
    conn.assert_peer_received("");
    conn.assert_closed(Verdict::PeerClosed);
}

#[test]
fn a_peer_that_sends_nothing_gets_nothing() {
    let mut conn = connection();
    conn.peer_ends();
    conn.assert_peer_received("");
    conn.assert_closed(Verdict::PeerClosed);
}

#[test]
fn a_hundred_thousand_messages_followed_by_the_end_of_the_stream_are_all_answered() {
    for takes in [usize::MAX, 50_000, 1_000_000] {
        let mut conn = connection();
        conn.peer_stops_reading();
        conn.peer_sends("x\t".repeat(100_000));
        conn.peer_ends();
        while conn.session().wants() == Want::Write {
            conn.peer_reads(takes);
        }
        conn.assert_peer_received("server got:x\t".repeat(100_000));
        conn.assert_closed(Verdict::PeerClosed);
        assert_eq!(conn.session().totals().messages, 100_000, "{conn}");
    }
}

#[test]
fn a_message_larger_than_one_read_uses_no_more_memory_than_its_length() {
    // Lengths around those at which a doubling buffer is full.
    for length in [2 * READ_SIZE, 2 * READ_SIZE + 11, 4 * READ_SIZE - 1, 4 * READ_SIZE + 33] {
        let mut conn = SimulatedConnection::new(Rules { max_message: length, ..Rules::default() });
        conn.peer_stops_reading();
        conn.peer_sends("x".repeat(length));
        conn.peer_sends("\t");
        conn.peer_reads_all();
        conn.assert_peer_received(format!("server got:{}\t", "x".repeat(length)));
        conn.assert_open();
    }
}

#[test]
fn a_message_in_progress_uses_memory_in_proportion_to_the_bytes_received() {
    let mut conn = connection();
    for sent in 1..=100 {
        conn.peer_sends([b'a'; 100]);
        let memory = conn.session().memory();
        assert!(memory <= 2 * (11 + 100 * sent), "{memory} bytes\n{conn}");
    }
}

#[test]
fn an_accepted_unterminated_message_uses_no_more_memory_than_its_length() {
    let max_message = 2 * READ_SIZE + 11;
    let unterminated = Unterminated::Accept;
    let mut conn = SimulatedConnection::new(Rules { max_message, unterminated, ..Rules::default() });
    conn.peer_stops_reading();
    conn.peer_sends("x".repeat(max_message));
    conn.peer_ends();
    conn.peer_reads_all();
    conn.assert_peer_received(format!("server got:{}\t", "x".repeat(max_message)));
    conn.assert_closed(Verdict::PeerClosed);
}

// --- The read deadline -----------------------------------------------------------------------------------------------

#[test]
fn an_unfinished_message_ends_the_session_at_the_read_deadline() {
    let mut conn = connection();
    conn.peer_sends("aa");
    conn.advance_time(millis(1_999));
    conn.assert_peer_received("");
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server error:message not finished within 2s\t");
    conn.assert_lingering(Verdict::ReadDeadline);
}

#[test]
fn bytes_that_trickle_in_do_not_extend_the_read_deadline() {
    let mut conn = connection();
    for _ in 0..4 {
        conn.peer_sends("a");
        conn.assert_peer_received("");
        conn.assert_open();
        conn.advance_time(millis(500));
    }
    conn.assert_peer_received("server error:message not finished within 2s\t");
    conn.assert_lingering(Verdict::ReadDeadline);
}

#[test]
fn the_read_deadline_counts_from_the_first_byte_of_each_message() {
    let mut conn = connection();
    conn.peer_sends("a");
    conn.advance_time(millis(1_500));
    conn.peer_sends("\tb");
    conn.assert_peer_received("server got:a\t");
    conn.advance_time(millis(1_999));
    conn.peer_sends("\t");
    conn.assert_peer_received("server got:b\t");
    conn.advance_time(secs(100));
    conn.assert_open();
    conn.peer_sends("c");
    conn.advance_time(secs(2));
    conn.assert_peer_received("server error:message not finished within 2s\t");
    conn.assert_lingering(Verdict::ReadDeadline);
}

#[test]
fn the_final_reply_names_the_deadline_in_the_configured_notation() {
    let read = Some(TimeSpan::new(millis(1_500), "1500ms"));
    let mut conn = with_deadlines(Deadlines { read, ..Deadlines::default() });
    conn.peer_sends("a");
    conn.advance_time(millis(1_500));
    conn.assert_peer_received("server error:message not finished within 1500ms\t");
}

#[test]
fn without_a_read_deadline_a_message_may_take_any_time() {
    let mut conn = with_deadlines(Deadlines { read: None, ..Deadlines::default() });
    conn.peer_sends("a");
    conn.advance_time(secs(100_000));
    conn.assert_open();
    conn.peer_sends("\t");
    conn.assert_peer_received("server got:a\t");
}

#[test]
fn the_read_timer_is_suspended_while_the_session_does_not_read() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\tbb");
    conn.advance_time(secs(9));
    conn.assert_open();
    conn.peer_reads(3);
    conn.advance_time(secs(9));
    conn.assert_open();
    conn.peer_reads_all();
    conn.assert_peer_received("server got:a\t");
    conn.advance_time(millis(1_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server error:message not finished within 2s\t");
    conn.assert_lingering(Verdict::ReadDeadline);
}

// --- The idle deadline -----------------------------------------------------------------------------------------------

#[test]
fn an_idle_peer_is_closed_after_five_minutes_and_not_before() {
    let mut conn = connection();
    conn.advance_time(millis(299_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server error:no message within 5min\t");
    conn.assert_lingering(Verdict::IdleDeadline);
}

#[test]
fn the_idle_deadline_counts_from_the_last_byte_in_either_direction() {
    let mut conn = connection();
    conn.advance_time(secs(200));
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.advance_time(secs(9));
    conn.peer_reads_all();
    conn.assert_peer_received("server got:a\t");
    conn.advance_time(millis(299_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server error:no message within 5min\t");
    conn.assert_lingering(Verdict::IdleDeadline);
}

#[test]
fn without_an_idle_deadline_a_peer_may_stay_forever() {
    let mut conn = with_deadlines(Deadlines { idle: None, ..Deadlines::default() });
    assert_eq!(conn.session().deadline(), None, "{conn}");
    conn.advance_time(secs(1_000_000));
    conn.assert_open();
}

#[test]
fn a_line_end_after_the_delimiter_does_not_begin_a_message() {
    for enter in ["\n", "\r\n", "\n\n\r\n"] {
        let mut conn = connection();
        conn.peer_sends("aaaa\t");
        conn.peer_sends(enter);
        conn.assert_peer_received("server got:aaaa\t");
        conn.advance_time(millis(299_999));
        conn.assert_open();
        conn.advance_time(millis(1));
        conn.assert_peer_received("server error:no message within 5min\t");
        conn.assert_lingering(Verdict::IdleDeadline);
    }
}

#[test]
fn a_message_after_a_line_end_gets_the_full_read_deadline() {
    for enter in ["\n", "\r\n"] {
        let mut conn = connection();
        conn.peer_sends(format!("aaaa\t{enter}"));
        conn.assert_peer_received("server got:aaaa\t");
        conn.advance_time(secs(250));
        conn.peer_sends("bb");
        conn.advance_time(millis(1_999));
        conn.assert_open();
        conn.peer_sends("bb\t");
        conn.assert_peer_received(format!("server got:{enter}bbbb\t"));
        conn.peer_sends(format!("{enter}c"));
        conn.advance_time(secs(2));
        conn.assert_peer_received("server error:message not finished within 2s\t");
        conn.assert_lingering(Verdict::ReadDeadline);
    }
}

#[test]
fn a_line_end_split_over_two_packets_is_recognized() {
    let mut conn = connection();
    conn.peer_sends("aaaa\t\r");
    conn.advance_time(millis(1));
    conn.peer_sends("\n");
    conn.assert_peer_received("server got:aaaa\t");
    conn.advance_time(millis(299_999));
    conn.assert_open();
    conn.peer_sends("b");
    conn.advance_time(millis(1_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server error:message not finished within 2s\t");
    conn.assert_lingering(Verdict::ReadDeadline);
}

// --- The lifetime ----------------------------------------------------------------------------------------------------

#[test]
fn a_message_in_progress_does_not_extend_the_lifetime() {
    let mut conn = with_lifetime(TimeSpan::new(secs(3_600), "1h"));
    for _ in 0..3_599 {
        conn.advance_time(secs(1));
        conn.peer_sends("a\t");
    }
    conn.assert_peer_received("server got:a\t".repeat(3_599));
    conn.peer_sends("bbbb");
    conn.advance_time(millis(999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server error:connection older than 1h\t");
    conn.assert_lingering(Verdict::Lifetime);
}

#[test]
fn at_the_lifetime_pending_replies_come_before_the_final_reply() {
    let mut conn = with_lifetime(TimeSpan::new(secs(5), "5s"));
    conn.peer_stops_reading();
    conn.peer_sends("a\tb\tc");
    conn.advance_time(secs(5));
    conn.peer_reads_all();
    conn.assert_peer_received("server got:a\tserver got:b\tserver error:connection older than 5s\t");
    conn.assert_lingering(Verdict::Lifetime);
}

#[test]
fn at_the_lifetime_messages_that_were_read_but_not_processed_are_answered() {
    let mut conn = with_lifetime(TimeSpan::new(secs(5), "5s"));
    conn.peer_stops_reading();
    conn.peer_sends("\t".repeat(10_000));
    conn.advance_time(secs(5));
    conn.peer_reads_all();
    let replies = "server got:\t".repeat(10_000);
    conn.assert_peer_received(format!("{replies}server error:connection older than 5s\t"));
    conn.assert_lingering(Verdict::Lifetime);
}

#[test]
fn after_the_lifetime_replies_and_the_final_reply_share_one_deadline() {
    // A peer that takes a byte each second does not get the whole reply. One that takes it in the last second does not get the
    // final reply.
    for takes in [[1; 9], [1, 1, 1, 1, 1, 1, 1, 1, 5]] {
        let mut conn = with_lifetime(TimeSpan::new(secs(5), "5s"));
        conn.peer_stops_reading();
        conn.peer_sends("a\t");
        conn.advance_time(secs(5));
        for count in takes {
            conn.advance_time(secs(1));
            conn.peer_reads(count);
        }
        conn.advance_time(millis(999));
        assert_eq!(conn.session().wants(), Want::Write, "{conn}");
        conn.advance_time(millis(1));
        conn.assert_peer_received(&"server got:a\t"[..takes.iter().sum()]);
        conn.assert_closed(Verdict::Lifetime);
    }
}

#[test]
fn a_deadline_beyond_the_range_of_the_clock_never_expires() {
    let forever = || Some(TimeSpan::new(std::time::Duration::MAX, "forever"));
    let of_messages = Deadlines { idle: forever(), read: forever(), ..Deadlines::default() };
    let mut conn = with_deadlines(Deadlines { write: forever(), lifetime: forever(), ..of_messages });
    conn.peer_sends("a\tb");
    conn.advance_time(secs(1_000_000));
    conn.assert_peer_received("server got:a\t");
    conn.assert_open();
    conn.drain();
    conn.assert_closed(Verdict::Shutdown);
}

#[test]
fn deadlines_run_with_any_delimiter() {
    let delimiter = Delimiter::new(b"\r\n").unwrap();
    let mut conn = SimulatedConnection::new(Rules { delimiter, ..Rules::default() });
    conn.peer_sends("a\r\nb\r");
    conn.advance_time(secs(2));
    conn.assert_peer_received("server got:a\r\nserver error:message not finished within 2s\r\n");
    conn.assert_lingering(Verdict::ReadDeadline);
}
