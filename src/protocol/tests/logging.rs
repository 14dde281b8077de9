//! Stories of a log that is slow: messages wait for it, and with them their peers, for as long as it takes.

use super::conversation::{Conversation, millis, secs};
use crate::protocol::reply::{Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, LogMessages, Span, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

/// All messages are logged whole.
fn logging() -> Rules {
    Rules { log_messages: LogMessages::Full, ..Rules::default() }
}

/// A log that takes nothing yet.
fn with_slow_log(rules: Rules) -> Conversation {
    let mut talk = Conversation::new(rules);
    talk.log_stops();
    talk
}

fn with_lifetime(span: Span) -> Rules {
    Rules { deadlines: Deadlines { lifetime: Some(span), ..Deadlines::default() }, ..logging() }
}

#[track_caller]
fn logged(talk: &Conversation, messages: &[&str]) {
    let expected: Vec<_> = messages.iter().map(|message| message.as_bytes()).collect();
    assert_eq!(talk.logged(), expected, "{talk}");
}

// --- Messages, the log, replies --------------------------------------------------------------------------------------

#[test]
fn a_message_is_answered_when_it_is_logged_and_not_before() {
    let mut talk = with_slow_log(logging());
    talk.peer_sends("a\tbb\t\tdddd");
    talk.peer_hears("");
    assert_eq!(talk.session().wants(), Want::Log, "{talk}");
    talk.log_takes(1);
    talk.peer_hears("server got:a\t");
    assert_eq!(talk.session().wants(), Want::Log, "{talk}");
    talk.log_takes(1);
    talk.peer_hears("server got:bb\t");
    talk.log_takes(2);
    talk.peer_hears("server got:\t");
    talk.peer_sends("d\te\t");
    talk.peer_hears("server got:ddddd\t");
    talk.log_takes_all();
    talk.peer_hears("server got:e\t");
    logged(&talk, &["a", "bb", "", "ddddd", "e"]);
    talk.goes_on();
    assert_eq!(talk.session().memory(), 0, "{talk}");
}

#[test]
fn nothing_is_read_while_a_message_waits_for_the_log() {
    let mut talk = with_slow_log(logging());
    talk.peer_sends("a\t");
    talk.peer_sends("b\t".repeat(1_000_000));
    assert_eq!(talk.session().totals().bytes_in, 2, "{talk}");
    talk.log_takes(1);
    talk.peer_hears("server got:a\t");
    assert_eq!(talk.session().totals().bytes_in, 2 + READ_SIZE as u64, "{talk}");
    talk.log_takes(999_999);
    talk.log_takes(1);
    talk.peer_hears("server got:b\t".repeat(1_000_000));
    assert_eq!(talk.logged().len(), 1_000_001, "{talk}");
}

#[test]
fn however_a_stream_is_cut_and_however_slow_the_log_is_each_message_is_logged_once_and_in_order() {
    let streams: [(&str, &[&str]); 4] = [
        ("\t", &["a", "", "bb", "", "", "\n", "ccc"]),
        ("\r\n", &["", "\r", "a\rb\n", "", "cc"]),
        ("aab", &["aa", "", "ab", "baa"]),
        ("abababababababac", &["ababab", "", "abababababababa", "x"]),
    ];
    for (delimiter, messages) in streams {
        let wire: Vec<u8> = messages.iter().flat_map(|message| [message, delimiter].concat().into_bytes()).collect();
        // At every pair of places.
        for (first, second) in (0..wire.len()).flat_map(|first| (first..wire.len()).map(move |second| (first, second)))
        {
            let delimiter = Delimiter::new(delimiter.as_bytes()).unwrap();
            let mut talk = with_slow_log(Rules { delimiter, ..logging() });
            for piece in [&wire[..first], &wire[first..second], &wire[second..]] {
                talk.peer_sends(piece);
            }
            talk.peer_hears("");
            for count in 1..=messages.len() {
                talk.log_takes(1);
                logged(&talk, &messages[..count]);
                let reply = ["server got:", messages[count - 1]].concat().into_bytes();
                talk.peer_hears([&reply[..], talk.session().rules().delimiter.as_bytes()].concat());
            }
            assert_eq!(talk.session().memory(), 0, "{talk}");
            assert_eq!(talk.session().totals().messages, messages.len() as u64, "{talk}");
        }
    }
}

#[test]
fn long_messages_in_one_piece_and_in_many_wait_for_the_log_too() {
    for length in [4_000, 5_000, 65_000, 3 * READ_SIZE] {
        let message = |letter: &str| letter.repeat(length);
        let mut talk = with_slow_log(Rules { max_message: length, ..logging() });
        talk.peer_stops_reading();
        let wire = [message("a"), message("b"), message("c"), String::new()].join("\t");
        let (begins, ends) = wire.split_at(length / 2);
        talk.peer_sends(begins);
        talk.peer_sends(ends);
        for letter in ["a", "b", "c"] {
            talk.peer_takes_all();
            talk.peer_hears("");
            talk.log_takes(1);
            talk.peer_hears(format!("server got:{}\t", message(letter)));
        }
        logged(&talk, &[&message("a"), &message("b"), &message("c")]);
        assert_eq!(talk.session().memory(), 0, "{talk}");
    }
}

#[test]
fn what_waits_for_the_log_takes_memory_and_gives_it_back() {
    let mut talk = with_slow_log(logging());
    talk.peer_sends("x".repeat(100) + "\t" + &"y".repeat(10_000) + "\t");
    let waiting = talk.session().memory();
    assert!((10_000..10_300).contains(&waiting), "{waiting} bytes\n{talk}");
    talk.log_takes_all();
    assert_eq!(talk.session().memory(), 0, "{talk}");
}

#[test]
fn a_message_that_is_too_long_is_cut_off_after_those_before_it_were_logged() {
    let mut talk = with_slow_log(Rules { max_message: 4, ..logging() });
    talk.peer_sends("a\tb\tccccc\td\t");
    talk.goes_on();
    talk.log_takes(1);
    talk.peer_hears("server got:a\t");
    talk.goes_on();
    talk.log_takes_all();
    talk.peer_hears("server got:b\tserver error:message exceeds 4 bytes\t");
    logged(&talk, &["a", "b"]);
    talk.lingers(Verdict::TooLong);
}

// --- The end of the stream -------------------------------------------------------------------------------------------

#[test]
fn an_accepted_rest_is_logged_before_it_is_answered() {
    // Of which a delimiter would begin too early.
    let delimiter = Delimiter::new(b"aa").unwrap();
    for (rest, prefix) in [("ba", ""), ("ba", "server got:"), ("x", "server got:")] {
        let mut talk = with_slow_log(Rules {
            unterminated: Unterminated::Accept,
            delimiter: delimiter.clone(),
            prefix: Prefix::new(prefix.as_bytes()),
            ..logging()
        });
        talk.peer_sends(["caa", rest].concat());
        talk.peer_ends();
        talk.passes(secs(1_000));
        talk.peer_hears("");
        talk.log_takes(1);
        talk.peer_hears([prefix, "caa"].concat());
        talk.passes(secs(1_000));
        talk.goes_on();
        talk.log_takes(1);
        talk.peer_hears([prefix, rest, "aa"].concat());
        logged(&talk, &["c", rest]);
        talk.is_over(Verdict::PeerClosed);
        assert_eq!(talk.session().totals().messages, 2, "{talk}");
    }
}

#[test]
fn a_rest_that_is_no_message_is_not_logged() {
    let mut talk = with_slow_log(logging());
    talk.peer_sends("a\tbb");
    talk.peer_ends();
    talk.log_takes_all();
    talk.peer_hears("server got:a\t");
    logged(&talk, &["a"]);
    talk.is_over(Verdict::Unterminated { bytes: 2 });
}

// --- Deadlines -------------------------------------------------------------------------------------------------------

#[test]
fn no_deadline_runs_while_it_is_we_who_wait() {
    for pieces in [&["aa\tb\tcc"][..], &["a", "a\tb\tcc"]] {
        let mut talk = with_slow_log(logging());
        for piece in pieces {
            talk.peer_sends(piece);
        }
        assert_eq!(talk.session().deadline(), None, "{talk}");
        talk.passes(secs(1_000));
        talk.log_takes(1);
        talk.peer_hears("server got:aa\t");
        talk.passes(secs(1_000));
        talk.goes_on();
        // The deadlines of what comes next begin when we go on.
        talk.log_takes_all();
        talk.peer_hears("server got:b\t");
        talk.passes(millis(1_999));
        talk.goes_on();
        talk.peer_sends("c\t");
        talk.peer_hears("server got:ccc\t");
        talk.passes(millis(299_999));
        talk.goes_on();
        talk.passes(millis(1));
        talk.peer_hears("server error:no message within 5min\t");
        talk.lingers(Verdict::IdleDeadline);
    }
}

#[test]
fn a_reply_has_its_ten_seconds_from_when_its_message_was_logged() {
    for length in [1, 10_000] {
        let message = "a".repeat(length);
        let mut talk = with_slow_log(logging());
        talk.peer_stops_reading();
        talk.peer_sends(format!("{message}\t"));
        talk.passes(secs(1_000));
        talk.log_takes_all();
        talk.passes(millis(9_999));
        talk.goes_on();
        talk.passes(millis(1));
        talk.is_over(Verdict::WriteDeadline);
    }
}

#[test]
fn a_peer_that_does_not_take_its_replies_is_cut_though_another_message_waits_for_the_log() {
    let mut talk = with_slow_log(logging());
    talk.peer_stops_reading();
    talk.log_takes(1);
    talk.peer_sends("a\tb\tc\td");
    talk.passes(millis(9_999));
    talk.goes_on();
    talk.passes(millis(1));
    assert_eq!(talk.session().verdict(), Some(Verdict::WriteDeadline), "{talk}");
    // But its messages are not lost.
    talk.log_takes(1);
    logged(&talk, &["a", "b"]);
    talk.log_takes(1);
    logged(&talk, &["a", "b", "c"]);
    talk.is_over(Verdict::WriteDeadline);
}

#[test]
fn beyond_the_lifetime_messages_are_still_logged_and_answered() {
    let mut talk = with_slow_log(with_lifetime(Span::new(secs(5), "5s")));
    talk.peer_sends("a\tb\tcc");
    talk.passes(secs(1_000));
    talk.log_takes(1);
    talk.peer_hears("server got:a\t");
    talk.passes(secs(1_000));
    talk.log_takes(1);
    talk.peer_hears("server got:b\tserver error:connection older than 5s\t");
    logged(&talk, &["a", "b"]);
    talk.lingers(Verdict::Lifetime);
}

#[test]
fn beyond_the_lifetime_the_time_for_the_last_replies_stands_still_while_it_is_we_who_wait() {
    let mut talk = with_slow_log(with_lifetime(Span::new(secs(5), "5s")));
    talk.log_takes(1);
    talk.peer_stops_reading();
    talk.peer_sends("a\tb\t");
    // Four seconds of its ten.
    talk.passes(secs(9));
    talk.peer_takes("server got:a\t".len());
    talk.passes(secs(1_000));
    talk.log_takes(1);
    talk.passes(millis(5_999));
    assert_eq!(talk.session().wants(), Want::Write, "{talk}");
    talk.passes(millis(1));
    talk.peer_hears("server got:a\t");
    talk.is_over(Verdict::Lifetime);
}

// --- Other ends ------------------------------------------------------------------------------------------------------

#[test]
fn a_peer_whose_messages_wait_for_the_log_is_drained_when_they_are_logged_and_answered() {
    for pieces in [&["aa\tb\tc"][..], &["a", "a\tb\tc"]] {
        let mut talk = with_slow_log(logging());
        for piece in pieces {
            talk.peer_sends(piece);
        }
        talk.is_drained();
        talk.peer_sends("d\t");
        talk.passes(secs(1_000));
        assert_eq!(talk.session().verdict(), None, "{talk}");
        talk.log_takes(1);
        talk.passes(secs(1_000));
        talk.log_takes(1);
        talk.peer_hears("server got:aa\tserver got:b\t");
        logged(&talk, &["aa", "b"]);
        talk.lingers(Verdict::Shutdown);
    }
}

#[test]
fn messages_of_a_peer_that_is_gone_are_logged_all_the_same() {
    let unterminated = Unterminated::Accept;
    // That have come in one piece and in several, with a rest that is a message since the stream has ended, or is none;
    // and so many that not all are looked at, though the log takes them all.
    let many = "x\t".repeat(10_000);
    for (pieces, ends, count) in
        [(&["a\tb\t"][..], false, 2), (&["a", "\tb\t", "c"], false, 2), (&["a"], true, 1), (&[&many], false, 10_000)]
    {
        let mut talk = with_slow_log(Rules { unterminated, ..logging() });
        talk.peer_stops_reading();
        for piece in pieces {
            talk.peer_sends(piece);
        }
        if ends {
            talk.peer_ends();
        }
        if count > 10 {
            talk.log_takes(count / 2);
        }
        talk.breaks();
        assert_eq!(talk.session().verdict(), Some(Verdict::PeerReset), "{talk}");
        assert_eq!(talk.session().wants(), Want::Log, "{talk}");
        talk.passes(secs(1_000));
        talk.is_drained();
        talk.breaks();
        while talk.session().wants() == Want::Log {
            talk.log_takes(1);
        }
        assert_eq!(talk.logged().len(), count, "{talk}");
        talk.is_over(Verdict::PeerReset);
        assert_eq!(talk.session().totals().bytes_out, 0, "{talk}");
    }
}

#[test]
fn where_nothing_is_logged_whole_nothing_is_kept_of_a_peer_that_is_gone() {
    let mut talk = with_slow_log(Rules { log_messages: LogMessages::Off, ..Rules::default() });
    talk.peer_sends("a\tb\t");
    talk.breaks();
    logged(&talk, &[]);
    talk.is_over(Verdict::PeerReset);
}

#[test]
fn a_peer_for_whose_waiting_messages_there_is_no_memory_is_told_so() {
    let mut talk = with_slow_log(logging());
    talk.peer_sends("a\tb\t");
    talk.is_out_of_memory();
    assert_eq!(talk.session().memory(), 0, "{talk}");
    talk.log_takes_all();
    talk.peer_hears("server error:out of buffer memory\t");
    logged(&talk, &[]);
    talk.lingers(Verdict::Busy);

    let mut talk = with_slow_log(logging());
    talk.peer_sends("a\tb\t");
    talk.breaks();
    talk.is_out_of_memory();
    talk.is_over(Verdict::PeerReset);
}
