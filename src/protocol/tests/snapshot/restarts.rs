//! Restarts: time that passes meanwhile, and rules that change.

use crate::protocol::reply::{Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, LogMessages, TimeSpan, Unterminated};
use crate::protocol::tests::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

fn connection() -> SimulatedConnection {
    SimulatedConnection::new(Rules::default())
}

fn with_prefix(prefix: &str) -> Rules {
    Rules { prefix: Prefix::new(prefix.as_bytes()), ..Rules::default() }
}

fn with_delimiter(delimiter: &str) -> Rules {
    Rules { delimiter: Delimiter::new(delimiter.as_bytes()).unwrap(), ..Rules::default() }
}

fn with_read_deadline(read: Option<TimeSpan>) -> Rules {
    Rules { deadlines: Deadlines { read, ..Deadlines::default() }, ..Rules::default() }
}

// --- Time passes -----------------------------------------------------------------------------------------------------

#[test]
fn a_half_sent_message_continues_after_a_restart() {
    let mut conn = connection();
    conn.peer_sends("aaaa\tbb");
    conn.restart_for(millis(80));
    conn.peer_sends("bb\t");
    conn.assert_peer_received("server got:aaaa\tserver got:bbbb\t");
    conn.assert_open();
}

#[test]
fn the_read_deadline_continues_during_a_restart() {
    // The deadline passes before, at or after the end of the restart, at the same time as without a restart.
    for (before, away) in [(0, 1_999), (500, 1_499), (1_999, 0), (500, 1_500), (500, 60_000)] {
        let mut conn = connection();
        conn.peer_sends("aa");
        conn.advance_time(millis(before));
        conn.restart_for(millis(away));
        if before + away < 2_000 {
            conn.assert_peer_received("");
            conn.assert_open();
            conn.advance_time(millis(2_000 - before - away));
        }
        conn.assert_peer_received("server error:message not finished within 2s\t");
        conn.assert_lingering(Verdict::ReadDeadline);
    }
}

#[test]
fn a_suspended_read_timer_stays_suspended_during_a_restart() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\tbb");
    conn.restart_for(secs(9));
    conn.assert_open();
    conn.peer_reads_all();
    conn.assert_peer_received("server got:a\t");
    conn.advance_time(millis(1_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server error:message not finished within 2s\t");
}

#[test]
fn all_other_deadlines_continue_during_a_restart() {
    let mut conn = connection();
    conn.peer_sends("\n");
    conn.restart_for(secs(299));
    conn.assert_open();
    conn.advance_time(secs(1));
    conn.assert_peer_received("server error:no message within 5min\t");

    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.restart_for(millis(9_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_closed(Verdict::WriteDeadline);

    let lifetime = Some(TimeSpan::new(secs(5), "5s"));
    let mut conn = SimulatedConnection::new(Rules {
        deadlines: Deadlines { lifetime, ..Deadlines::default() },
        ..Rules::default()
    });
    conn.advance_time(secs(2));
    conn.restart_for(secs(2));
    conn.assert_open();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.advance_time(secs(1));
    // Another restart takes some of the ten seconds for the last replies.
    conn.restart_for(millis(9_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_closed(Verdict::Lifetime);

    let mut conn = connection();
    conn.peer_sends("a");
    conn.advance_time(secs(2));
    conn.assert_lingering(Verdict::ReadDeadline);
    conn.restart_for(millis(999));
    conn.assert_lingering(Verdict::ReadDeadline);
    conn.restart_for(millis(1));
    conn.assert_closed(Verdict::ReadDeadline);
}

#[test]
fn unsent_replies_are_sent_after_a_restart() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t".repeat(5_000));
    conn.restart_for(secs(5));
    conn.peer_reads(100);
    conn.restart_for(secs(5));
    conn.peer_reads_all();
    conn.assert_peer_received("server got:a\t".repeat(5_000));
    conn.assert_open();
}

#[test]
fn a_refused_session_and_no_other_is_refused_after_a_restart() {
    let mut conn = connection();
    conn.restart();
    assert!(!conn.session().is_outside_limit(), "{conn}");
    conn.peer_stops_reading();
    conn.refuse(Verdict::TooMany { limit: 3 });
    conn.restart();
    assert!(conn.session().is_outside_limit(), "{conn}");
    conn.peer_reads_all();
    conn.assert_peer_received("server error:too many connections from this source (limit 3)\t");
    conn.assert_lingering(Verdict::TooMany { limit: 3 });
    assert!(conn.session().is_outside_limit(), "{conn}");

    let mut conn = connection();
    conn.drain();
    assert!(!conn.session().is_outside_limit(), "{conn}");
}

// --- Rules change ----------------------------------------------------------------------------------------------------

#[test]
fn a_new_prefix_applies_to_the_message_in_progress_and_not_to_unsent_replies() {
    for prefix in ["", "now:", &"p".repeat(4096)] {
        let mut conn = connection();
        conn.peer_stops_reading();
        conn.peer_sends("aaaa\tbb");
        conn.restart_with(with_prefix(prefix));
        conn.peer_reads_all();
        conn.peer_sends("bb\t");
        conn.assert_peer_received(format!("server got:aaaa\t{prefix}bbbb\t"));
    }
}

#[test]
fn a_new_delimiter_is_searched_in_the_message_in_progress() {
    let mut conn = connection();
    conn.peer_sends("a\nbb\n\ncc");
    conn.restart_with(with_delimiter("\n"));
    conn.assert_peer_received("server got:a\nserver got:bb\nserver got:\n");
    conn.advance_time(millis(1_999));
    conn.peer_sends("c\td\n");
    conn.assert_peer_received("server got:ccc\td\n");
    conn.assert_open();

    // The first bytes of the delimiter have already come.
    let mut conn = connection();
    conn.peer_sends("aab-b-");
    conn.restart_with(with_delimiter("-b--"));
    conn.assert_peer_received("");
    conn.peer_sends("-");
    conn.assert_peer_received("server got:aab-b--");

    // A partial old delimiter has no meaning under the new rules.
    let mut conn = SimulatedConnection::new(with_delimiter("--"));
    conn.peer_sends("aa-");
    conn.restart_with(with_delimiter("+"));
    conn.peer_sends("-+");
    conn.assert_peer_received("server got:aa--+");
}

#[test]
fn a_new_delimiter_can_split_the_message_in_progress_into_several() {
    let long = |letter: &str| letter.repeat(2 * READ_SIZE + 5);
    let parts = [long("a"), "b".to_owned(), long("c"), long("d"), String::new(), long("e")];
    for log_messages in [LogMessages::Off, LogMessages::Full] {
        let rules = |delimiter| Rules { log_messages, max_message: 10 * READ_SIZE, ..with_delimiter(delimiter) };
        let mut conn = SimulatedConnection::new(rules("\t"));
        conn.peer_sends(parts.join("\n"));
        conn.assert_open();
        conn.peer_stops_reading();
        conn.log_stops();
        conn.restart_with(rules("\n"));
        conn.restart();
        for count in [0, 1, 7, READ_SIZE, 5, 3 * READ_SIZE] {
            conn.peer_reads(count);
            conn.log_accepts(1);
            conn.restart();
        }
        conn.log_accepts_all();
        conn.peer_reads_all();
        conn.peer_sends("\n");
        let replies: String = parts.iter().map(|part| format!("server got:{part}\n")).collect();
        conn.assert_peer_received(replies);
        conn.assert_open();
        let messages: Vec<_> = parts.iter().map(String::as_bytes).collect();
        assert_eq!(conn.logged(), messages);
        assert_eq!(conn.session().totals().messages, 6, "{conn}");
    }
}

#[test]
fn a_message_in_progress_that_exceeds_the_new_limit_ends_the_session() {
    let mut conn = connection();
    conn.peer_sends("aaaaa");
    conn.restart_with(Rules { max_message: 5, ..Rules::default() });
    conn.assert_open();
    conn.restart_with(Rules { max_message: 4, ..Rules::default() });
    conn.assert_peer_received("server error:message exceeds 4 bytes\t");
    conn.assert_lingering(Verdict::TooLong);
}

#[test]
fn a_message_that_waits_for_the_log_is_answered_under_the_new_rules() {
    let log_messages = LogMessages::Full;
    let mut conn = SimulatedConnection::new(Rules { log_messages, ..Rules::default() });
    conn.log_stops();
    conn.peer_sends("aaaa\tbb\tc");
    conn.restart_with(Rules { log_messages, prefix: Prefix::new(b"now:"), ..with_delimiter("\r\n") });
    assert_eq!(conn.session().wants(), Want::Log, "{conn}");
    conn.log_accepts_all();
    conn.assert_peer_received("now:aaaa\r\n");
    // Unprocessed input is processed under the new rules.
    conn.peer_sends("\r\n");
    conn.assert_peer_received("now:bb\tc\r\n");
    assert_eq!(conn.logged(), [&b"aaaa"[..], b"bb\tc"], "{conn}");
}

#[test]
fn an_accepted_unterminated_message_is_answered_even_if_the_new_rules_discard_it() {
    let log_messages = LogMessages::Full;
    let mut conn =
        SimulatedConnection::new(Rules { log_messages, unterminated: Unterminated::Accept, ..Rules::default() });
    conn.log_stops();
    conn.peer_sends("aa");
    conn.peer_ends();
    conn.restart_with(Rules { log_messages, ..Rules::default() });
    conn.log_accepts_all();
    conn.assert_peer_received("server got:aa\t");
    conn.assert_closed(Verdict::PeerClosed);
}

#[test]
fn the_read_deadline_is_capped_by_the_new_rules() {
    let time_span = |secs_: u64| Some(TimeSpan::new(secs(secs_), "new"));
    // One of the two seconds is left.
    for (new, left) in [
        (time_span(60), millis(1_000)),
        (time_span(1), millis(1_000)),
        (Some(TimeSpan::new(millis(300), "new")), millis(300)),
    ] {
        let mut conn = connection();
        conn.peer_sends("a");
        conn.advance_time(secs(1));
        conn.restart_with(with_read_deadline(new));
        conn.advance_time(left - millis(1));
        conn.assert_open();
        conn.advance_time(millis(1));
        conn.assert_peer_received("server error:message not finished within new\t");
    }
    // A deadline that the new rules add begins with the restart; one that they remove ends.
    let mut conn = SimulatedConnection::new(with_read_deadline(None));
    conn.peer_sends("a");
    conn.advance_time(secs(100));
    conn.restart_with(Rules::default());
    conn.advance_time(millis(1_999));
    conn.assert_open();
    conn.restart_with(with_read_deadline(None));
    conn.advance_time(secs(100));
    conn.peer_sends("\t");
    conn.assert_peer_received("server got:a\t");
}

#[test]
fn the_deadline_for_the_last_replies_is_capped_by_the_new_rules() {
    let write = Some(TimeSpan::new(secs(3), "3s"));
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.refuse(Verdict::TooMany { limit: 1 });
    conn.restart_with(Rules { deadlines: Deadlines { write, ..Deadlines::default() }, ..Rules::default() });
    conn.advance_time(millis(2_999));
    assert_eq!(conn.session().wants(), Want::Write, "{conn}");
    conn.advance_time(millis(1));
    conn.assert_closed(Verdict::TooMany { limit: 1 });
}
