//! Tests on a fake clock of other framings and replies: raw echo, no reply, the fixed reply, messages that are only
//! logged.

use super::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::reply::{Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, Framing, LogMessages, ReplyMode, TimeSpan, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict};

/// Returns the rules of RFC 862.
pub(super) fn raw_echo() -> Rules {
    Rules { framing: Framing::Raw, prefix: Framing::Raw.default_prefix(), ..Rules::default() }
}

/// Returns the rules of RFC 863.
fn discard() -> Rules {
    Rules { reply: ReplyMode::None, ..raw_echo() }
}

pub(super) fn greeter() -> Rules {
    let reply_delay = TimeSpan::new(secs(2), "2s");
    Rules { reply: ReplyMode::Fixed, fixed_reply: b"Hello, client!\n"[..].into(), reply_delay, ..raw_echo() }
}

pub(super) const GREETING: &str = "Hello, client!\n";

/// Returns rules under which every line is one entry of the log.
fn line_sink() -> Rules {
    Rules {
        delimiter: Delimiter::new(b"\n").unwrap(),
        reply: ReplyMode::None,
        unterminated: Unterminated::Accept,
        log_messages: LogMessages::Full,
        ..Rules::default()
    }
}

// --- Raw echo --------------------------------------------------------------------------------------------------------

#[test]
fn raw_framing_echoes_bytes_unchanged() {
    for bytes in [&b"a"[..], b"aa\tbb", b"\0\xff\r\n\t", &[b'x'; 100_000]] {
        let mut conn = SimulatedConnection::new(raw_echo());
        conn.peer_sends(bytes);
        conn.assert_peer_received(bytes);
        assert_eq!(conn.session().memory(), 0, "{conn}");
        conn.peer_ends();
        conn.assert_peer_received("");
        conn.assert_closed(Verdict::PeerClosed);
    }
}

#[test]
fn raw_framing_splits_input_into_messages_of_at_most_512_bytes() {
    for (max_message, length) in [(64 * 1024, 512), (512, 512), (511, 511), (1, 1)] {
        let mut conn = SimulatedConnection::new(Rules { max_message, ..raw_echo() });
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(1_300).collect();
        conn.peer_sends(&bytes);
        conn.assert_peer_received(&bytes);
        assert_eq!(conn.logged(), bytes.chunks(length).collect::<Vec<_>>(), "{conn}");
        assert_eq!(conn.session().totals().messages, 1_300_u64.div_ceil(length as u64), "{conn}");
    }
}

#[test]
fn raw_framing_puts_a_configured_prefix_before_each_message() {
    let mut conn = SimulatedConnection::new(Rules { prefix: Prefix::new(b"> "), ..raw_echo() });
    conn.peer_sends("a");
    conn.assert_peer_received("> a");
    conn.peer_sends("b".repeat(513));
    conn.assert_peer_received(format!("> {}> b", "b".repeat(512)));
}

#[test]
fn a_raw_echo_does_not_read_from_a_peer_that_does_not_read() {
    let mut conn = SimulatedConnection::new(raw_echo());
    conn.peer_stops_reading();
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(3 * READ_SIZE).collect();
    conn.peer_sends(&bytes);
    assert_eq!(conn.session().totals().bytes_in, READ_SIZE as u64, "{conn}");
    assert_eq!(conn.session().memory(), READ_SIZE, "{conn}");
    conn.peer_reads(1_000);
    conn.peer_reads_all();
    conn.assert_peer_received(&bytes);
    conn.peer_stops_reading();
    conn.peer_sends("a");
    conn.advance_time(secs(10));
    conn.assert_closed(Verdict::WriteDeadline);
}

#[test]
fn a_raw_echo_waits_for_the_log() {
    let mut conn = SimulatedConnection::new(Rules { log_messages: LogMessages::Full, ..raw_echo() });
    conn.log_stops();
    conn.log_accepts(1);
    let message = |letter: &str| letter.repeat(512);
    conn.peer_sends(message("a") + &message("b") + "c");
    conn.assert_peer_received(message("a"));
    conn.log_accepts(1);
    conn.assert_peer_received(message("b"));
    conn.reset();
    conn.log_accepts(1);
    assert_eq!(conn.logged(), [message("a").as_bytes(), message("b").as_bytes(), b"c"], "{conn}");
    conn.assert_closed(Verdict::PeerReset);
}

#[test]
fn raw_framing_sends_no_final_reply() {
    let lifetime = Some(TimeSpan::new(secs(400), "400s"));
    let mut conn =
        SimulatedConnection::new(Rules { deadlines: Deadlines { lifetime, ..Deadlines::default() }, ..raw_echo() });
    conn.peer_sends("a");
    conn.advance_time(secs(200));
    conn.peer_sends("b");
    conn.advance_time(secs(200));
    conn.assert_peer_received("ab");
    conn.assert_closed(Verdict::Lifetime);

    let mut conn = SimulatedConnection::new(raw_echo());
    conn.peer_sends("a");
    // It is a complete message, without a deadline for more bytes.
    conn.advance_time(millis(299_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("a");
    conn.assert_closed(Verdict::IdleDeadline);

    let mut conn = SimulatedConnection::new(raw_echo());
    conn.refuse(Verdict::TooMany { limit: 1 });
    conn.assert_peer_received("");
    conn.assert_lingering(Verdict::TooMany { limit: 1 });
}

// --- Nothing is answered ---------------------------------------------------------------------------------------------

#[test]
fn discarded_messages_are_only_counted() {
    let mut conn = SimulatedConnection::new(discard());
    conn.peer_stops_reading();
    conn.peer_sends("x".repeat(1_000_000));
    assert_eq!(conn.session().memory(), 0, "{conn}");
    assert_eq!(conn.session().totals().bytes_in, 1_000_000, "{conn}");
    conn.peer_ends();
    conn.assert_peer_received("");
    conn.assert_closed(Verdict::PeerClosed);
    assert_eq!(conn.session().totals().bytes_out, 0, "{conn}");
}

#[test]
fn a_line_sink_logs_every_line_including_an_unterminated_last_one() {
    let mut conn = SimulatedConnection::new(line_sink());
    for piece in ["one\ntw", "o\n\nth", "r", "ee"] {
        conn.peer_sends(piece);
    }
    conn.peer_ends();
    conn.assert_peer_received("");
    assert_eq!(conn.logged(), [&b"one"[..], b"two", b"", b"three"], "{conn}");
    conn.assert_closed(Verdict::PeerClosed);
    assert_eq!(conn.session().totals().messages, 4, "{conn}");
}

#[test]
fn a_peer_of_a_line_sink_waits_while_the_log_is_slow() {
    let mut conn = SimulatedConnection::new(line_sink());
    conn.log_stops();
    conn.peer_sends("one\n");
    conn.peer_sends("two\n".repeat(100_000));
    assert_eq!(conn.session().totals().bytes_in, 4, "{conn}");
    assert_eq!(conn.session().deadline(), None, "{conn}");
    conn.advance_time(secs(1_000));
    conn.log_accepts_all();
    conn.assert_peer_received("");
    assert_eq!(conn.logged().len(), 100_001, "{conn}");
    conn.assert_open();
}

#[test]
fn the_idle_deadline_of_a_line_sink_starts_when_the_log_has_accepted_the_lines() {
    for pieces in [&["one\ntwo\n"][..], &["o", "ne\ntwo\n"]] {
        let mut conn = SimulatedConnection::new(line_sink());
        conn.log_stops();
        for piece in pieces {
            conn.peer_sends(piece);
        }
        conn.advance_time(secs(1_000));
        conn.log_accepts(1);
        conn.advance_time(secs(1_000));
        conn.log_accepts_all();
        assert_eq!(conn.logged(), [b"one", b"two"], "{conn}");
        conn.advance_time(millis(299_999));
        conn.assert_open();
        conn.advance_time(millis(1));
        conn.assert_peer_received("server error:no message within 5min\n");
        conn.assert_lingering(Verdict::IdleDeadline);
    }
}

#[test]
fn a_peer_of_a_line_sink_gets_a_final_reply() {
    let mut conn = SimulatedConnection::new(Rules { max_message: 4, ..line_sink() });
    conn.peer_sends("one\ntwo and more");
    conn.assert_peer_received("server error:message exceeds 4 bytes\n");
    assert_eq!(conn.logged(), [b"one"], "{conn}");
    conn.assert_lingering(Verdict::TooLong);
}

// --- The fixed reply -------------------------------------------------------------------------------------------------

#[test]
fn a_fixed_reply_ends_with_the_delimiter_in_delimited_framing() {
    let fixed_reply = b"pong"[..].into();
    let mut conn = SimulatedConnection::new(Rules { reply: ReplyMode::Fixed, fixed_reply, ..Rules::default() });
    conn.peer_sends("a\tbb\t\tccc");
    conn.assert_peer_received("pong\tpong\tpong\t");
    conn.peer_sends("\t");
    conn.assert_peer_received("pong\t");
    conn.peer_sends("d");
    conn.advance_time(secs(2));
    conn.assert_peer_received("server error:message not finished within 2s\t");

    let fixed_reply = b"pong"[..].into();
    let mut conn = SimulatedConnection::new(Rules { reply: ReplyMode::Fixed, fixed_reply, ..raw_echo() });
    conn.peer_sends("a\tbb\t");
    conn.assert_peer_received("pong");
    conn.peer_sends("a".repeat(1_025));
    conn.assert_peer_received("pongpongpong");
}

#[test]
fn an_empty_fixed_reply_sends_nothing_in_raw_framing() {
    let mut conn = SimulatedConnection::new(Rules { reply: ReplyMode::Fixed, ..raw_echo() });
    conn.peer_sends("a");
    conn.assert_peer_received("");
    conn.assert_open();
}

#[test]
fn a_message_of_any_length_gets_the_fixed_reply() {
    let rules = Rules {
        reply: ReplyMode::Fixed,
        fixed_reply: b"got it"[..].into(),
        max_message: 3 * READ_SIZE,
        log_messages: LogMessages::Full,
        ..Rules::default()
    };
    let mut conn = SimulatedConnection::new(rules);
    conn.log_stops();
    conn.peer_sends("x".repeat(3 * READ_SIZE) + "\ty\t");
    conn.assert_peer_received("");
    conn.log_accepts_all();
    conn.assert_peer_received("got it\tgot it\t");
    assert_eq!(conn.logged()[0].len(), 3 * READ_SIZE, "{conn}");
}

// --- Restarts --------------------------------------------------------------------------------------------------------

#[test]
fn a_message_in_progress_is_complete_when_the_rules_change_to_raw_framing() {
    let mut conn = SimulatedConnection::new(Rules::default());
    conn.peer_sends("a".repeat(600));
    conn.restart_with(raw_echo());
    conn.assert_peer_received("a".repeat(600));
    assert_eq!(conn.session().totals().messages, 2, "{conn}");
    conn.restart_with(Rules::default());
    conn.peer_sends("b\t");
    conn.assert_peer_received("server got:b\t");
}
