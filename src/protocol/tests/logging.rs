//! Tests on a fake clock of a slow log, for which messages and their peers wait.

use super::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::reply::{Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, LogMessages, ReplyMode, TimeSpan, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

/// Returns rules under which all messages are logged whole.
fn rules_with_full_logging() -> Rules {
    Rules { log_messages: LogMessages::Full, ..Rules::default() }
}

/// Returns a connection with a log that accepts nothing yet.
fn with_stopped_log(rules: Rules) -> SimulatedConnection {
    let mut conn = SimulatedConnection::new(rules);
    conn.log_stops();
    conn
}

fn with_lifetime(lifetime: TimeSpan) -> Rules {
    Rules { deadlines: Deadlines { lifetime: Some(lifetime), ..Deadlines::default() }, ..rules_with_full_logging() }
}

#[track_caller]
fn assert_logged(conn: &SimulatedConnection, messages: &[&str]) {
    let expected: Vec<_> = messages.iter().map(|message| message.as_bytes()).collect();
    assert_eq!(conn.logged(), expected, "{conn}");
}

// --- Messages, the log, replies --------------------------------------------------------------------------------------

#[test]
fn a_message_is_answered_only_after_it_is_logged() {
    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_sends("a\tbb\t\tdddd");
    conn.assert_peer_received("");
    assert_eq!(conn.session().wants(), Want::Log, "{conn}");
    conn.log_accepts(1);
    conn.assert_peer_received("server got:a\t");
    assert_eq!(conn.session().wants(), Want::Log, "{conn}");
    conn.log_accepts(1);
    conn.assert_peer_received("server got:bb\t");
    conn.log_accepts(2);
    conn.assert_peer_received("server got:\t");
    conn.peer_sends("d\te\t");
    conn.assert_peer_received("server got:ddddd\t");
    conn.log_accepts_all();
    conn.assert_peer_received("server got:e\t");
    assert_logged(&conn, &["a", "bb", "", "ddddd", "e"]);
    conn.assert_open();
    assert_eq!(conn.session().memory(), 0, "{conn}");
}

#[test]
fn nothing_is_read_while_a_message_waits_for_the_log() {
    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_sends("a\t");
    conn.peer_sends("b\t".repeat(1_000_000));
    assert_eq!(conn.session().totals().bytes_in, 2, "{conn}");
    conn.log_accepts(1);
    conn.assert_peer_received("server got:a\t");
    assert_eq!(conn.session().totals().bytes_in, 2 + READ_SIZE as u64, "{conn}");
    conn.log_accepts(999_999);
    conn.log_accepts(1);
    conn.assert_peer_received("server got:b\t".repeat(1_000_000));
    assert_eq!(conn.logged().len(), 1_000_001, "{conn}");
}

#[test]
fn each_message_is_logged_once_and_in_order_however_the_stream_is_split_and_however_slow_the_log_is() {
    let streams: [(&str, &[&str]); 4] = [
        ("\t", &["a", "", "bb", "", "", "\n", "ccc"]),
        ("\r\n", &["", "\r", "a\rb\n", "", "cc"]),
        ("aab", &["aa", "", "ab", "baa"]),
        ("abababababababac", &["ababab", "", "abababababababa", "x"]),
    ];
    for (delimiter, messages) in streams {
        let wire: Vec<u8> = messages.iter().flat_map(|message| [message, delimiter].concat().into_bytes()).collect();
        // At every pair of positions.
        for (first, second) in (0..wire.len()).flat_map(|first| (first..wire.len()).map(move |second| (first, second)))
        {
            let delimiter = Delimiter::new(delimiter.as_bytes()).unwrap();
            let mut conn = with_stopped_log(Rules { delimiter, ..rules_with_full_logging() });
            for piece in [&wire[..first], &wire[first..second], &wire[second..]] {
                conn.peer_sends(piece);
            }
            conn.assert_peer_received("");
            for count in 1..=messages.len() {
                conn.log_accepts(1);
                assert_logged(&conn, &messages[..count]);
                let reply = ["server got:", messages[count - 1]].concat().into_bytes();
                conn.assert_peer_received([&reply[..], conn.session().rules().delimiter.as_bytes()].concat());
            }
            assert_eq!(conn.session().memory(), 0, "{conn}");
            assert_eq!(conn.session().totals().messages, messages.len() as u64, "{conn}");
        }
    }
}

#[test]
fn long_messages_wait_for_the_log_too() {
    for length in [4_000, 5_000, 65_000, 3 * READ_SIZE] {
        let message = |letter: &str| letter.repeat(length);
        let mut conn = with_stopped_log(Rules { max_message: length, ..rules_with_full_logging() });
        conn.peer_stops_reading();
        let wire = [message("a"), message("b"), message("c"), String::new()].join("\t");
        let (begins, ends) = wire.split_at(length / 2);
        conn.peer_sends(begins);
        conn.peer_sends(ends);
        for letter in ["a", "b", "c"] {
            conn.peer_reads_all();
            conn.assert_peer_received("");
            conn.log_accepts(1);
            conn.assert_peer_received(format!("server got:{}\t", message(letter)));
        }
        assert_logged(&conn, &[&message("a"), &message("b"), &message("c")]);
        assert_eq!(conn.session().memory(), 0, "{conn}");
    }
}

#[test]
fn messages_waiting_for_the_log_use_memory_and_release_it() {
    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_sends("x".repeat(100) + "\t" + &"y".repeat(10_000) + "\t");
    let waiting = conn.session().memory();
    assert!((10_000..10_300).contains(&waiting), "{waiting} bytes\n{conn}");
    conn.log_accepts_all();
    assert_eq!(conn.session().memory(), 0, "{conn}");
}

#[test]
fn a_message_that_is_too_long_ends_the_session_after_earlier_messages_are_logged() {
    let mut conn = with_stopped_log(Rules { max_message: 4, ..rules_with_full_logging() });
    conn.peer_sends("a\tb\tccccc\td\t");
    conn.assert_open();
    conn.log_accepts(1);
    conn.assert_peer_received("server got:a\t");
    conn.assert_open();
    conn.log_accepts_all();
    conn.assert_peer_received("server got:b\tserver error:message exceeds 4 bytes\t");
    assert_logged(&conn, &["a", "b"]);
    conn.assert_lingering(Verdict::TooLong);
}

// --- The end of the stream -------------------------------------------------------------------------------------------

#[test]
fn an_accepted_unterminated_message_is_logged_before_it_is_answered() {
    // The delimiter also matches one byte earlier.
    let delimiter = Delimiter::new(b"aa").unwrap();
    for (rest, prefix) in [("ba", ""), ("ba", "server got:"), ("x", "server got:")] {
        let mut conn = with_stopped_log(Rules {
            unterminated: Unterminated::Accept,
            delimiter: delimiter.clone(),
            prefix: Prefix::new(prefix.as_bytes()),
            ..rules_with_full_logging()
        });
        conn.peer_sends(["caa", rest].concat());
        conn.peer_ends();
        conn.advance_time(secs(1_000));
        conn.assert_peer_received("");
        conn.log_accepts(1);
        conn.assert_peer_received([prefix, "caa"].concat());
        conn.advance_time(secs(1_000));
        conn.assert_open();
        conn.log_accepts(1);
        conn.assert_peer_received([prefix, rest, "aa"].concat());
        assert_logged(&conn, &["c", rest]);
        conn.assert_closed(Verdict::PeerClosed);
        assert_eq!(conn.session().totals().messages, 2, "{conn}");
    }
}

#[test]
fn discarded_unterminated_bytes_are_not_logged() {
    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_sends("a\tbb");
    conn.peer_ends();
    conn.log_accepts_all();
    conn.assert_peer_received("server got:a\t");
    assert_logged(&conn, &["a"]);
    conn.assert_closed(Verdict::Unterminated { bytes: 2 });
}

// --- Deadlines -------------------------------------------------------------------------------------------------------

#[test]
fn no_deadline_runs_while_a_message_waits_for_the_log() {
    for pieces in [&["aa\tb\tcc"][..], &["a", "a\tb\tcc"]] {
        let mut conn = with_stopped_log(rules_with_full_logging());
        for piece in pieces {
            conn.peer_sends(piece);
        }
        assert_eq!(conn.session().deadline(), None, "{conn}");
        conn.advance_time(secs(1_000));
        conn.log_accepts(1);
        conn.assert_peer_received("server got:aa\t");
        conn.advance_time(secs(1_000));
        conn.assert_open();
        // Later deadlines count from the time when the log accepts the message.
        conn.log_accepts_all();
        conn.assert_peer_received("server got:b\t");
        conn.advance_time(millis(1_999));
        conn.assert_open();
        conn.peer_sends("c\t");
        conn.assert_peer_received("server got:ccc\t");
        conn.advance_time(millis(299_999));
        conn.assert_open();
        conn.advance_time(millis(1));
        conn.assert_peer_received("server error:no message within 5min\t");
        conn.assert_lingering(Verdict::IdleDeadline);
    }
}

#[test]
fn the_write_deadline_of_a_reply_starts_when_its_message_is_logged() {
    for length in [1, 10_000] {
        let message = "a".repeat(length);
        let mut conn = with_stopped_log(rules_with_full_logging());
        conn.peer_stops_reading();
        conn.peer_sends(format!("{message}\t"));
        conn.advance_time(secs(1_000));
        conn.log_accepts_all();
        conn.advance_time(millis(9_999));
        conn.assert_open();
        conn.advance_time(millis(1));
        conn.assert_closed(Verdict::WriteDeadline);
    }
}

#[test]
fn the_write_deadline_applies_while_another_message_waits_for_the_log() {
    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_stops_reading();
    conn.log_accepts(1);
    conn.peer_sends("a\tb\tc\td");
    conn.advance_time(millis(9_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    assert_eq!(conn.session().verdict(), Some(Verdict::WriteDeadline), "{conn}");
    // But its messages are not lost.
    conn.log_accepts(1);
    assert_logged(&conn, &["a", "b"]);
    conn.log_accepts(1);
    assert_logged(&conn, &["a", "b", "c"]);
    conn.assert_closed(Verdict::WriteDeadline);
}

#[test]
fn after_the_lifetime_received_messages_are_still_logged_and_answered() {
    let mut conn = with_stopped_log(with_lifetime(TimeSpan::new(secs(5), "5s")));
    conn.peer_sends("a\tb\tcc");
    conn.advance_time(secs(1_000));
    conn.log_accepts(1);
    conn.assert_peer_received("server got:a\t");
    conn.advance_time(secs(1_000));
    conn.log_accepts(1);
    conn.assert_peer_received("server got:b\tserver error:connection older than 5s\t");
    assert_logged(&conn, &["a", "b"]);
    conn.assert_lingering(Verdict::Lifetime);
}

#[test]
fn after_the_lifetime_the_deadline_for_the_last_replies_is_extended_while_a_message_waits_for_the_log() {
    let mut conn = with_stopped_log(with_lifetime(TimeSpan::new(secs(5), "5s")));
    conn.log_accepts(1);
    conn.peer_stops_reading();
    conn.peer_sends("a\tb\t");
    // Four seconds of its ten.
    conn.advance_time(secs(9));
    conn.peer_reads("server got:a\t".len());
    conn.advance_time(secs(1_000));
    conn.log_accepts(1);
    conn.advance_time(millis(5_999));
    assert_eq!(conn.session().wants(), Want::Write, "{conn}");
    conn.advance_time(millis(1));
    conn.assert_peer_received("server got:a\t");
    conn.assert_closed(Verdict::Lifetime);
}

#[test]
fn a_message_is_logged_while_earlier_replies_are_owed_and_answered_after_them() {
    let echo = rules_with_full_logging();
    let fixed = Rules { reply: ReplyMode::Fixed, fixed_reply: b"text"[..].into(), ..echo.clone() };
    for (rules, [first, second, third]) in
        [(echo, ["server got:a\t", "server got:b\t", "server got:c\t"]), (fixed, ["text\t"; 3])]
    {
        let mut conn = with_stopped_log(rules);
        conn.log_accepts(1);
        conn.peer_stops_reading();
        conn.peer_sends("a\tb\tc\t");
        conn.log_accepts(1);
        assert_logged(&conn, &["a", "b"]);
        assert_eq!(conn.session().totals().messages, 2, "{conn}");
        // The next one waits for the peer.
        conn.log_accepts(1);
        assert_logged(&conn, &["a", "b"]);
        conn.peer_reads(3);
        conn.peer_reads_all();
        conn.assert_peer_received([first, second, third].concat());
        assert_logged(&conn, &["a", "b", "c"]);
        conn.assert_open();
        assert_eq!(conn.session().memory(), 0, "{conn}");
    }
}

// --- Other ends ------------------------------------------------------------------------------------------------------

#[test]
fn a_peer_whose_messages_wait_for_the_log_is_drained_when_they_are_logged_and_answered() {
    for pieces in [&["aa\tb\tc"][..], &["a", "a\tb\tc"]] {
        let mut conn = with_stopped_log(rules_with_full_logging());
        for piece in pieces {
            conn.peer_sends(piece);
        }
        conn.drain();
        conn.peer_sends("d\t");
        conn.advance_time(secs(1_000));
        assert_eq!(conn.session().verdict(), None, "{conn}");
        conn.log_accepts(1);
        conn.advance_time(secs(1_000));
        conn.log_accepts(1);
        conn.assert_peer_received("server got:aa\tserver got:b\t");
        assert_logged(&conn, &["aa", "b"]);
        conn.assert_lingering(Verdict::Shutdown);
    }
}

#[test]
fn messages_of_a_disconnected_peer_are_still_logged() {
    let unterminated = Unterminated::Accept;
    // Messages in one piece and in several, with a rest that is or is not a message at the end of the stream. And so many
    // messages that not all are processed, although the log accepts all.
    let many = "x\t".repeat(10_000);
    for (pieces, ends, count) in
        [(&["a\tb\t"][..], false, 2), (&["a", "\tb\t", "c"], false, 2), (&["a"], true, 1), (&[&many], false, 10_000)]
    {
        let mut conn = with_stopped_log(Rules { unterminated, ..rules_with_full_logging() });
        conn.peer_stops_reading();
        for piece in pieces {
            conn.peer_sends(piece);
        }
        if ends {
            conn.peer_ends();
        }
        if count > 10 {
            conn.log_accepts(count / 2);
        }
        conn.reset();
        assert_eq!(conn.session().verdict(), Some(Verdict::PeerReset), "{conn}");
        assert_eq!(conn.session().wants(), Want::Log, "{conn}");
        conn.advance_time(secs(1_000));
        conn.drain();
        conn.reset();
        while conn.session().wants() == Want::Log {
            conn.log_accepts(1);
        }
        assert_eq!(conn.logged().len(), count, "{conn}");
        conn.assert_closed(Verdict::PeerReset);
        assert_eq!(conn.session().totals().bytes_out, 0, "{conn}");
    }
}

#[test]
fn of_a_lost_peer_a_message_whose_end_was_read_ahead_is_logged_whole_and_its_rest_is_not() {
    for (ahead, logged) in [("b\tc\td", &["a", "bbb", "c"][..]), ("b", &["a"])] {
        let mut conn = SimulatedConnection::new(rules_with_full_logging());
        conn.peer_stops_reading();
        conn.peer_sends("a\tbb");
        conn.reads_ahead(ahead);
        conn.reset();
        assert_logged(&conn, logged);
        conn.assert_closed(Verdict::PeerReset);
    }
}

#[test]
fn messages_that_were_read_and_not_logged_are_counted_until_they_are() {
    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_sends("half");
    assert_eq!(conn.session().unlogged_messages(), 0);
    conn.peer_sends("a\tb\tc\tpart");
    for count in [3, 2, 1] {
        assert_eq!(conn.session().unlogged_messages(), count, "{conn}");
        conn.log_accepts(1);
    }
    assert_eq!(conn.session().unlogged_messages(), 0);
    // Also messages behind replies that the peer does not take.
    conn.peer_stops_reading();
    conn.log_accepts(1);
    conn.peer_sends("\t");
    conn.reads_ahead("d\te\t");
    assert_eq!(conn.session().unlogged_messages(), 2, "{conn}");
    let off = Rules { log_messages: LogMessages::Off, ..Rules::default() };
    let mut conn = SimulatedConnection::new(off);
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.reads_ahead("b\t");
    assert_eq!(conn.session().unlogged_messages(), 0);
}

#[test]
fn without_full_logging_nothing_is_kept_of_a_disconnected_peer() {
    let mut conn = with_stopped_log(Rules { log_messages: LogMessages::Off, ..Rules::default() });
    conn.peer_sends("a\tb\t");
    conn.reset();
    assert_logged(&conn, &[]);
    conn.assert_closed(Verdict::PeerReset);
}

#[test]
fn a_peer_whose_messages_waiting_for_the_log_exceed_the_buffer_memory_gets_a_final_reply() {
    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_sends("a\tb\t");
    conn.run_out_of_memory();
    assert_eq!(conn.session().memory(), 0, "{conn}");
    conn.log_accepts_all();
    conn.assert_peer_received("server error:out of buffer memory\t");
    assert_logged(&conn, &[]);
    conn.assert_lingering(Verdict::Busy);

    let mut conn = with_stopped_log(rules_with_full_logging());
    conn.peer_sends("a\tb\t");
    conn.reset();
    conn.run_out_of_memory();
    conn.assert_closed(Verdict::PeerReset);
}
