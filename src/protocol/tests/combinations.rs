//! Stories of other framings and replies: what comes is passed on or dropped, greeted, or kept in the log.

use super::conversation::{Conversation, millis, secs};
use crate::protocol::reply::{Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, Framing, LogMessages, Reply, Span, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

/// RFC 862.
fn raw_echo() -> Rules {
    Rules { framing: Framing::Raw, prefix: Framing::Raw.default_prefix(), ..Rules::default() }
}

/// RFC 863.
fn discard() -> Rules {
    Rules { reply: Reply::None, ..raw_echo() }
}

fn greeter() -> Rules {
    let reply_delay = Span::new(secs(2), "2s");
    Rules { reply: Reply::Fixed, text: b"Hello, client!\n"[..].into(), reply_delay, ..raw_echo() }
}

const GREETING: &str = "Hello, client!\n";

/// Every line is one entry of the log.
fn line_sink() -> Rules {
    Rules {
        delimiter: Delimiter::new(b"\n").unwrap(),
        reply: Reply::None,
        unterminated: Unterminated::Accept,
        log_messages: LogMessages::Full,
        ..Rules::default()
    }
}

fn echo_with_pause() -> Rules {
    Rules { reply_delay: Span::new(secs(2), "2s"), ..Rules::default() }
}

// --- Raw echo --------------------------------------------------------------------------------------------------------

#[test]
fn in_raw_framing_bytes_come_back_as_they_are() {
    for bytes in [&b"a"[..], b"aa\tbb", b"\0\xff\r\n\t", &[b'x'; 100_000]] {
        let mut talk = Conversation::new(raw_echo());
        talk.peer_sends(bytes);
        talk.peer_hears(bytes);
        assert_eq!(talk.session().memory(), 0, "{talk}");
        talk.peer_ends();
        talk.peer_hears("");
        talk.is_over(Verdict::PeerClosed);
    }
}

#[test]
fn in_raw_framing_there_are_no_messages_of_more_than_512_bytes() {
    for (max_message, length) in [(64 * 1024, 512), (512, 512), (511, 511), (1, 1)] {
        let mut talk = Conversation::new(Rules { max_message, ..raw_echo() });
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(1_300).collect();
        talk.peer_sends(&bytes);
        talk.peer_hears(&bytes);
        assert_eq!(talk.logged(), bytes.chunks(length).collect::<Vec<_>>(), "{talk}");
        assert_eq!(talk.session().totals().messages, 1_300_u64.div_ceil(length as u64), "{talk}");
    }
}

#[test]
fn in_raw_framing_a_prefix_that_is_set_stands_before_each_message() {
    let mut talk = Conversation::new(Rules { prefix: Prefix::new(b"> "), ..raw_echo() });
    talk.peer_sends("a");
    talk.peer_hears("> a");
    talk.peer_sends("b".repeat(513));
    talk.peer_hears(format!("> {}> b", "b".repeat(512)));
}

#[test]
fn a_raw_echo_whose_peer_does_not_read_is_not_read_from() {
    let mut talk = Conversation::new(raw_echo());
    talk.peer_stops_reading();
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(3 * READ_SIZE).collect();
    talk.peer_sends(&bytes);
    assert_eq!(talk.session().totals().bytes_in, READ_SIZE as u64, "{talk}");
    assert_eq!(talk.session().memory(), READ_SIZE, "{talk}");
    talk.peer_takes(1_000);
    talk.peer_takes_all();
    talk.peer_hears(&bytes);
    talk.peer_stops_reading();
    talk.peer_sends("a");
    talk.passes(secs(10));
    talk.is_over(Verdict::WriteDeadline);
}

#[test]
fn a_raw_echo_waits_for_the_log() {
    let mut talk = Conversation::new(Rules { log_messages: LogMessages::Full, ..raw_echo() });
    talk.log_stops();
    talk.log_takes(1);
    let message = |letter: &str| letter.repeat(512);
    talk.peer_sends(message("a") + &message("b") + "c");
    talk.peer_hears(message("a"));
    talk.log_takes(1);
    talk.peer_hears(message("b"));
    talk.breaks();
    talk.log_takes(1);
    assert_eq!(talk.logged(), [message("a").as_bytes(), message("b").as_bytes(), b"c"], "{talk}");
    talk.is_over(Verdict::PeerReset);
}

#[test]
fn in_raw_framing_who_is_cut_off_hears_no_words() {
    let lifetime = Some(Span::new(secs(400), "400s"));
    let mut talk = Conversation::new(Rules { deadlines: Deadlines { lifetime, ..Deadlines::default() }, ..raw_echo() });
    talk.peer_sends("a");
    talk.passes(secs(200));
    talk.peer_sends("b");
    talk.passes(secs(200));
    talk.peer_hears("ab");
    talk.is_over(Verdict::Lifetime);

    let mut talk = Conversation::new(raw_echo());
    talk.peer_sends("a");
    // However long nothing comes after it, it is a whole message.
    talk.passes(millis(299_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("a");
    talk.is_over(Verdict::IdleDeadline);

    let mut talk = Conversation::new(raw_echo());
    talk.is_refused(Verdict::TooMany { limit: 1 });
    talk.peer_hears("");
    talk.lingers(Verdict::TooMany { limit: 1 });
}

// --- Nothing is answered ---------------------------------------------------------------------------------------------

#[test]
fn what_is_discarded_is_counted_and_no_more() {
    let mut talk = Conversation::new(discard());
    talk.peer_stops_reading();
    talk.peer_sends("x".repeat(1_000_000));
    assert_eq!(talk.session().memory(), 0, "{talk}");
    assert_eq!(talk.session().totals().bytes_in, 1_000_000, "{talk}");
    talk.peer_ends();
    talk.peer_hears("");
    talk.is_over(Verdict::PeerClosed);
    assert_eq!(talk.session().totals().bytes_out, 0, "{talk}");
}

#[test]
fn a_sink_keeps_every_line_and_the_last_without_its_end_too() {
    let mut talk = Conversation::new(line_sink());
    for piece in ["one\ntw", "o\n\nth", "r", "ee"] {
        talk.peer_sends(piece);
    }
    talk.peer_ends();
    talk.peer_hears("");
    assert_eq!(talk.logged(), [&b"one"[..], b"two", b"", b"three"], "{talk}");
    talk.is_over(Verdict::PeerClosed);
    assert_eq!(talk.session().totals().messages, 4, "{talk}");
}

#[test]
fn a_peer_of_a_sink_waits_while_the_log_is_slow() {
    let mut talk = Conversation::new(line_sink());
    talk.log_stops();
    talk.peer_sends("one\n");
    talk.peer_sends("two\n".repeat(100_000));
    assert_eq!(talk.session().totals().bytes_in, 4, "{talk}");
    assert_eq!(talk.session().deadline(), None, "{talk}");
    talk.passes(secs(1_000));
    talk.log_takes_all();
    talk.peer_hears("");
    assert_eq!(talk.logged().len(), 100_001, "{talk}");
    talk.goes_on();
}

#[test]
fn a_peer_of_a_sink_has_all_its_time_when_the_log_has_taken_its_lines() {
    for pieces in [&["one\ntwo\n"][..], &["o", "ne\ntwo\n"]] {
        let mut talk = Conversation::new(line_sink());
        talk.log_stops();
        for piece in pieces {
            talk.peer_sends(piece);
        }
        talk.passes(secs(1_000));
        talk.log_takes(1);
        talk.passes(secs(1_000));
        talk.log_takes_all();
        assert_eq!(talk.logged(), [b"one", b"two"], "{talk}");
        talk.passes(millis(299_999));
        talk.goes_on();
        talk.passes(millis(1));
        talk.peer_hears("server error:no message within 5min\n");
        talk.lingers(Verdict::IdleDeadline);
    }
}

#[test]
fn who_sends_to_a_sink_is_told_why_it_is_cut_off() {
    let mut talk = Conversation::new(Rules { max_message: 4, ..line_sink() });
    talk.peer_sends("one\ntwo and more");
    talk.peer_hears("server error:message exceeds 4 bytes\n");
    assert_eq!(talk.logged(), [b"one"], "{talk}");
    talk.lingers(Verdict::TooLong);
}

// --- The same answer to all ------------------------------------------------------------------------------------------

#[test]
fn a_fixed_reply_ends_with_the_delimiter_where_there_is_one() {
    let text = b"pong"[..].into();
    let mut talk = Conversation::new(Rules { reply: Reply::Fixed, text, ..Rules::default() });
    talk.peer_sends("a\tbb\t\tccc");
    talk.peer_hears("pong\tpong\tpong\t");
    talk.peer_sends("\t");
    talk.peer_hears("pong\t");
    talk.peer_sends("d");
    talk.passes(secs(2));
    talk.peer_hears("server error:message not finished within 2s\t");

    let text = b"pong"[..].into();
    let mut talk = Conversation::new(Rules { reply: Reply::Fixed, text, ..raw_echo() });
    talk.peer_sends("a\tbb\t");
    talk.peer_hears("pong");
    talk.peer_sends("a".repeat(1_025));
    talk.peer_hears("pongpongpong");
}

#[test]
fn an_empty_text_is_no_reply_in_raw_framing() {
    let mut talk = Conversation::new(Rules { reply: Reply::Fixed, ..raw_echo() });
    talk.peer_sends("a");
    talk.peer_hears("");
    talk.goes_on();
}

#[test]
fn a_message_of_any_length_is_answered_with_the_text() {
    let rules = Rules {
        reply: Reply::Fixed,
        text: b"got it"[..].into(),
        max_message: 3 * READ_SIZE,
        log_messages: LogMessages::Full,
        ..Rules::default()
    };
    let mut talk = Conversation::new(rules);
    talk.log_stops();
    talk.peer_sends("x".repeat(3 * READ_SIZE) + "\ty\t");
    talk.peer_hears("");
    talk.log_takes_all();
    talk.peer_hears("got it\tgot it\t");
    assert_eq!(talk.logged()[0].len(), 3 * READ_SIZE, "{talk}");
}

// --- The pause after a reply -----------------------------------------------------------------------------------------

#[test]
fn a_greeter_greets_and_takes_nothing_for_two_seconds() {
    let mut talk = Conversation::new(greeter());
    talk.peer_sends("a");
    talk.peer_hears(GREETING);
    assert_eq!(talk.session().wants(), Want::Pause, "{talk}");
    talk.peer_sends("b");
    talk.passes(secs(1));
    // What comes meanwhile comes together, and is one message then.
    talk.peer_sends("c");
    assert_eq!(talk.session().totals().bytes_in, 1, "{talk}");
    talk.passes(millis(999));
    talk.peer_hears("");
    talk.passes(millis(1));
    talk.peer_hears(GREETING);
    assert_eq!(talk.logged(), [&b"a"[..], b"bc"], "{talk}");
    talk.passes(secs(2));
    talk.peer_hears("");
    talk.peer_sends("d");
    talk.peer_hears(GREETING);
    talk.goes_on();
}

#[test]
fn of_a_long_message_each_512_bytes_are_greeted_after_a_pause() {
    let mut talk = Conversation::new(greeter());
    talk.peer_sends("a".repeat(1_025));
    for _ in 0..3 {
        talk.peer_hears(GREETING);
        talk.passes(millis(1_999));
        talk.peer_hears("");
        talk.passes(millis(1));
    }
    talk.peer_hears("");
    assert_eq!(talk.logged().iter().map(Vec::len).collect::<Vec<_>>(), [512, 512, 1], "{talk}");
    assert_eq!(talk.session().memory(), 0, "{talk}");
}

#[test]
fn a_pause_holds_in_delimited_framing_too() {
    let mut talk = Conversation::new(echo_with_pause());
    talk.peer_sends("a\tbb\tc");
    talk.peer_hears("server got:a\t");
    talk.passes(secs(2));
    talk.peer_hears("server got:bb\t");
    talk.peer_sends("cc\t");
    // The clock of the message in progress, which was not looked at, has not begun.
    talk.passes(millis(1_999));
    talk.peer_hears("");
    talk.passes(millis(1));
    talk.peer_hears("server got:ccc\t");
    talk.passes(secs(2));
    talk.peer_sends("dd");
    talk.passes(secs(2));
    talk.peer_hears("server error:message not finished within 2s\t");
    talk.lingers(Verdict::ReadDeadline);
}

#[test]
fn nobody_is_idle_while_we_pause() {
    let mut talk = Conversation::new(Rules { reply_delay: Span::new(secs(1_000), "1000s"), ..greeter() });
    talk.peer_sends("a");
    talk.passes(secs(999));
    talk.goes_on();
    talk.passes(secs(1));
    talk.goes_on();
    talk.passes(millis(299_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.is_over(Verdict::IdleDeadline);
}

#[test]
fn who_does_not_take_the_greeting_is_cut_in_its_time() {
    let mut talk = Conversation::new(Rules { reply_delay: Span::new(secs(1_000), "1000s"), ..greeter() });
    talk.peer_stops_reading();
    talk.peer_sends("a");
    assert_eq!(talk.session().wants(), Want::Write, "{talk}");
    talk.passes(secs(9));
    talk.peer_takes(1);
    talk.passes(millis(9_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.is_over(Verdict::WriteDeadline);
}

#[test]
fn a_pause_counts_from_the_message_however_late_its_reply_is_taken() {
    let mut talk = Conversation::new(greeter());
    talk.peer_stops_reading();
    talk.peer_sends("a");
    talk.passes(secs(3));
    talk.peer_sends("b");
    talk.peer_takes_all();
    talk.peer_hears([GREETING, GREETING].concat());
}

#[test]
fn who_ends_its_stream_in_a_pause_gets_all_its_replies_in_their_time() {
    let mut talk = Conversation::new(greeter());
    talk.peer_sends("a".repeat(513));
    talk.peer_ends();
    talk.passes(millis(1_999));
    talk.peer_hears(GREETING);
    talk.passes(millis(1));
    talk.peer_hears(GREETING);
    talk.goes_on();
    talk.passes(secs(2));
    talk.is_over(Verdict::PeerClosed);
}

#[test]
fn who_is_drained_in_a_pause_gets_its_replies_at_once() {
    let mut talk = Conversation::new(greeter());
    talk.peer_sends("a".repeat(1_025));
    talk.is_drained();
    talk.peer_hears(GREETING.repeat(3));
    talk.lingers(Verdict::Shutdown);

    let mut talk = Conversation::new(greeter());
    talk.peer_sends("a");
    talk.is_drained();
    talk.peer_hears(GREETING);
    talk.lingers(Verdict::Shutdown);
}

#[test]
fn a_lifetime_ends_in_a_pause() {
    let lifetime = Some(Span::new(secs(1), "1s"));
    let mut talk =
        Conversation::new(Rules { deadlines: Deadlines { lifetime, ..Deadlines::default() }, ..echo_with_pause() });
    talk.peer_sends("a\tb\tc");
    talk.passes(millis(999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server got:a\tserver got:b\tserver error:connection older than 1s\t");
    talk.lingers(Verdict::Lifetime);
}

#[test]
fn a_lifetime_that_ends_with_a_pause_ends_it_all() {
    let lifetime = Some(Span::new(secs(2), "2s"));
    let rules = Rules { deadlines: Deadlines { lifetime, ..Deadlines::default() }, ..echo_with_pause() };
    let mut talk = Conversation::new(rules);
    talk.peer_sends("a\tb\tc");
    talk.passes(secs(2));
    talk.peer_hears("server got:a\tserver got:b\tserver error:connection older than 2s\t");
    talk.lingers(Verdict::Lifetime);
}

#[test]
fn who_breaks_off_in_a_pause_is_gone_and_its_messages_are_logged() {
    let mut talk = Conversation::new(Rules { log_messages: LogMessages::Full, ..greeter() });
    talk.peer_sends("a".repeat(1_025));
    talk.log_stops();
    talk.breaks();
    assert_eq!(talk.session().wants(), Want::Log, "{talk}");
    talk.log_takes_all();
    assert_eq!(talk.logged().iter().map(Vec::len).collect::<Vec<_>>(), [512, 512, 1], "{talk}");
    talk.is_over(Verdict::PeerReset);
    assert_eq!(talk.session().memory(), 0, "{talk}");
}

#[test]
fn a_pause_begins_when_the_log_has_taken_the_message() {
    let mut talk = Conversation::new(Rules { log_messages: LogMessages::Full, ..greeter() });
    talk.log_stops();
    talk.peer_sends("a".repeat(513));
    talk.passes(secs(100));
    talk.peer_hears("");
    talk.log_takes_all();
    talk.peer_hears(GREETING);
    talk.passes(millis(1_999));
    talk.peer_hears("");
    talk.passes(millis(1));
    talk.peer_hears(GREETING);
}

// --- Restarts --------------------------------------------------------------------------------------------------------

#[test]
fn a_pause_goes_on_during_a_restart() {
    for (before, away) in [(0, 1_999), (500, 1_499), (500, 1_500), (500, 60_000)] {
        let mut talk = Conversation::new(greeter());
        talk.peer_sends("a");
        talk.peer_hears(GREETING);
        talk.passes(millis(before));
        talk.restarts_for(millis(away));
        talk.peer_sends("b");
        if before + away < 2_000 {
            talk.peer_hears("");
            talk.passes(millis(2_000 - before - away));
        }
        talk.peer_hears(GREETING);
    }
}

#[test]
fn a_pause_is_never_longer_than_the_new_rules_would_have_it() {
    for (delay, left) in [(0, 0), (500, 500), (60_000, 1_500)] {
        let mut talk = Conversation::new(greeter());
        talk.peer_sends("a".repeat(513));
        talk.passes(millis(500));
        talk.peer_hears(GREETING);
        talk.restarts_with(Rules { reply_delay: Span::new(millis(delay), "new"), ..greeter() });
        if left > 0 {
            talk.passes(millis(left - 1));
            talk.peer_hears("");
            talk.passes(millis(1));
        }
        talk.peer_hears(GREETING);
    }
    // Nor is there one under rules that have none.
    let mut talk = Conversation::new(echo_with_pause());
    talk.peer_sends("a\tb\tc");
    talk.restarts_with(Rules::default());
    talk.peer_hears("server got:a\tserver got:b\t");
    assert_eq!(talk.session().wants(), Want::Read, "{talk}");
}

#[test]
fn a_message_in_progress_is_what_has_come_under_rules_that_know_no_delimiter() {
    let mut talk = Conversation::new(Rules::default());
    talk.peer_sends("a".repeat(600));
    talk.restarts_with(raw_echo());
    talk.peer_hears("a".repeat(600));
    assert_eq!(talk.session().totals().messages, 2, "{talk}");
    talk.restarts_with(Rules::default());
    talk.peer_sends("b\t");
    talk.peer_hears("server got:b\t");
}
