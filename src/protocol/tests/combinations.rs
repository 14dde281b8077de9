//! Stories of other framings and replies: what comes is passed on or dropped, greeted, or kept in the log.

use super::conversation::{Conversation, millis, secs};
use crate::protocol::reply::{Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, Framing, LogMessages, Reply, Span, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict};

/// RFC 862.
pub(super) fn raw_echo() -> Rules {
    Rules { framing: Framing::Raw, prefix: Framing::Raw.default_prefix(), ..Rules::default() }
}

/// RFC 863.
fn discard() -> Rules {
    Rules { reply: Reply::None, ..raw_echo() }
}

pub(super) fn greeter() -> Rules {
    let reply_delay = Span::new(secs(2), "2s");
    Rules { reply: Reply::Fixed, text: b"Hello, client!\n"[..].into(), reply_delay, ..raw_echo() }
}

pub(super) const GREETING: &str = "Hello, client!\n";

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

// --- Restarts --------------------------------------------------------------------------------------------------------

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
