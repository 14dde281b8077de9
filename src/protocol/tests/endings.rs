//! Stories of how conversations end, and of the last words.

use super::conversation::{Conversation, millis, secs};
use crate::protocol::rules::{Deadlines, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

const MIB: usize = 1024 * 1024;

fn conversation() -> Conversation {
    Conversation::new(Rules::default())
}

fn with_rest_accepted() -> Conversation {
    Conversation::new(Rules { unterminated: Unterminated::Accept, ..Rules::default() })
}

/// At most four bytes in a message: five are an error.
fn with_short_messages() -> Conversation {
    Conversation::new(Rules { max_message: 4, ..Rules::default() })
}

// --- The peer ends its stream ----------------------------------------------------------------------------------------

#[test]
fn a_rest_at_the_end_of_the_stream_is_no_message_unless_it_is_accepted() {
    let closed = Verdict::PeerClosed;
    for (rest, discarded) in [
        ("", closed),
        ("\n", closed),
        ("\r\n", closed),
        ("b", Verdict::Unterminated { bytes: 1 }),
        ("\nbb", Verdict::Unterminated { bytes: 3 }),
        ("\r", Verdict::Unterminated { bytes: 1 }),
    ] {
        let mut talk = conversation();
        talk.peer_sends(format!("aaaa\t{rest}"));
        talk.peer_ends();
        talk.peer_hears("server got:aaaa\t");
        talk.is_over(discarded);

        let mut talk = with_rest_accepted();
        talk.peer_sends(format!("aaaa\t{rest}"));
        talk.peer_ends();
        let reply = if rest.is_empty() { String::new() } else { format!("server got:{rest}\t") };
        talk.peer_hears(format!("server got:aaaa\t{reply}"));
        talk.is_over(closed);
    }
}

#[test]
fn an_accepted_rest_waits_for_its_reply_to_be_taken() {
    let mut talk = with_rest_accepted();
    talk.passes(secs(60));
    talk.peer_stops_reading();
    talk.peer_sends("aa");
    talk.peer_ends();
    talk.passes(millis(9_999));
    talk.peer_takes_all();
    talk.peer_hears("server got:aa\t");
    talk.is_over(Verdict::PeerClosed);
}

#[test]
fn a_peer_that_ends_its_stream_and_takes_no_reply_has_not_closed_but_is_cut() {
    let mut talk = with_rest_accepted();
    talk.peer_stops_reading();
    talk.peer_sends("aa");
    talk.peer_ends();
    talk.passes(millis(9_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.is_over(Verdict::WriteDeadline);
}

// --- We end: the last words, the end of our stream, and a while of listening -----------------------------------------

#[test]
fn replies_to_whole_messages_come_before_the_last_words() {
    let expected = "server got:a\tserver got:b\tserver error:message exceeds 4 bytes\t";
    let mut talk = with_short_messages();
    talk.peer_sends("a\tb\tccccc\td\t");
    talk.peer_hears(expected);
    talk.lingers(Verdict::TooLong);

    let mut talk = with_short_messages();
    talk.peer_stops_reading();
    talk.peer_sends("a\tb\tccccc\td\t");
    talk.passes(secs(9));
    for byte in expected.as_bytes() {
        talk.peer_takes(1);
        talk.peer_hears([*byte]);
    }
    talk.lingers(Verdict::TooLong);
}

#[test]
fn after_the_last_words_input_is_dropped_for_a_second() {
    let mut talk = with_short_messages();
    talk.peer_sends("aaaaa");
    talk.peer_hears("server error:message exceeds 4 bytes\t");
    talk.passes(millis(500));
    talk.peer_sends("aaaaa\taa\t");
    talk.passes(millis(499));
    talk.lingers(Verdict::TooLong);
    talk.passes(millis(1));
    talk.peer_hears("");
    talk.is_over(Verdict::TooLong);
}

#[test]
fn after_the_last_words_at_most_a_mebibyte_of_input_is_dropped() {
    let mut talk = with_short_messages();
    talk.peer_sends("aaaaa");
    talk.peer_sends("a".repeat(MIB - 1));
    talk.lingers(Verdict::TooLong);
    talk.peer_sends("a");
    talk.is_over(Verdict::TooLong);

    let mut talk = with_short_messages();
    talk.peer_sends("aaaaa");
    talk.peer_sends("a".repeat(10 * MIB));
    talk.is_over(Verdict::TooLong);
    assert_eq!(talk.session().totals().bytes_in, 5, "what is dropped does not count\n{talk}");
}

#[test]
fn after_the_last_words_the_end_of_the_peers_stream_is_the_end() {
    let mut talk = with_short_messages();
    talk.peer_sends("aaaaa");
    talk.lingers(Verdict::TooLong);
    talk.peer_ends();
    talk.is_over(Verdict::TooLong);
}

#[test]
fn a_peer_that_ended_its_stream_already_is_not_listened_to_any_more() {
    let mut talk =
        Conversation::new(Rules { delimiter: Delimiter::new(b"\r\n").unwrap(), max_message: 4, ..Rules::default() });
    talk.peer_stops_reading();
    talk.peer_sends("aaaa\r");
    talk.peer_ends();
    talk.passes(secs(9));
    talk.peer_takes_all();
    talk.peer_hears("server error:message exceeds 4 bytes\r\n");
    assert!(talk.our_end(), "{talk}");
    talk.is_over(Verdict::TooLong);
}

#[test]
fn our_stream_cannot_end_before_the_last_words() {
    let mut talk = with_short_messages();
    talk.peer_stops_reading();
    talk.peer_sends("aaaaa");
    talk.end_is_sent_too_early();
    talk.peer_takes_all();
    talk.peer_hears("server error:message exceeds 4 bytes\t");
    talk.lingers(Verdict::TooLong);
}

#[test]
fn the_last_words_are_bounded_in_time_however_slowly_they_are_taken() {
    for write in [Deadlines::default().write, None] {
        let deadlines = Deadlines { write, ..Deadlines::default() };
        let mut talk = Conversation::new(Rules { max_message: 4, deadlines, ..Rules::default() });
        talk.peer_stops_reading();
        talk.peer_sends("aaaaa");
        for _ in 0..9 {
            talk.passes(secs(1));
            talk.peer_takes(1);
        }
        talk.peer_hears("server er");
        talk.passes(millis(999));
        assert_eq!(talk.session().wants(), Want::Write, "{talk}");
        talk.passes(millis(1));
        talk.is_over(Verdict::TooLong);
    }
}

#[test]
fn without_error_replies_nothing_is_said() {
    let mut talk = Conversation::new(Rules { error_replies: false, ..Rules::default() });
    talk.peer_sends("a\tb");
    talk.passes(secs(2));
    talk.peer_hears("server got:a\t");
    talk.is_over(Verdict::ReadDeadline);
}

#[test]
fn where_nothing_has_passed_for_a_second_nothing_can_be_destroyed_and_nobody_lingers() {
    for (quiet, lingers) in [(millis(999), true), (millis(1000), false)] {
        let mut talk = conversation();
        talk.peer_sends("a\t");
        talk.peer_hears("server got:a\t");
        talk.passes(quiet);
        talk.is_drained();
        if lingers {
            talk.lingers(Verdict::Shutdown);
        } else {
            talk.is_over(Verdict::Shutdown);
        }
    }
}

#[test]
fn last_words_that_contain_the_delimiter_are_not_sent() {
    for delimiter in ["e", " ", "ss", "error:m", "message exceed"] {
        let delimiter = Delimiter::from_escaped(delimiter).unwrap();
        let mut talk = Conversation::new(Rules { delimiter, max_message: 1, ..Rules::default() });
        talk.peer_sends("aa");
        talk.peer_hears("");
        talk.lingers(Verdict::TooLong);
    }
}

#[test]
fn last_words_that_would_be_cut_in_the_wrong_place_are_not_sent() {
    // "… 1 bytes" + "ese": the first delimiter in it begins with the last two letters of the text.
    for (delimiter, whole) in [("ese", false), ("eses", false), ("testes", false), ("essen", true), ("s\t", true)] {
        let words = ["server error:message exceeds 1 bytes", delimiter].concat();
        let mut talk = Conversation::new(Rules {
            delimiter: Delimiter::new(delimiter.as_bytes()).unwrap(),
            max_message: 1,
            ..Rules::default()
        });
        talk.peer_sends("--");
        talk.peer_hears(if whole { &words } else { "" });
        talk.lingers(Verdict::TooLong);
    }
}

// --- We stop ---------------------------------------------------------------------------------------------------------

#[test]
fn a_peer_that_is_idle_or_in_the_middle_of_a_message_is_drained_at_once() {
    for sent in ["", "a\t", "a\tbb", "a\t\n"] {
        let mut talk = conversation();
        talk.peer_sends(sent);
        talk.is_drained();
        talk.peer_hears(if sent.is_empty() { "" } else { "server got:a\t" });
        talk.lingers(Verdict::Shutdown);
        talk.peer_sends("c\t");
        talk.peer_hears("");
        talk.passes(secs(1));
        talk.is_over(Verdict::Shutdown);
    }
}

#[test]
fn a_peer_that_is_owed_replies_gets_them_before_it_is_drained() {
    // A few, and so many that input is held back.
    for count in [1, 100_000] {
        let mut talk = conversation();
        talk.peer_stops_reading();
        talk.peer_sends([&b"\t".repeat(count)[..], b"bb"].concat());
        talk.is_drained();
        talk.peer_sends("c\t");
        talk.passes(secs(9));
        assert_eq!(talk.session().verdict(), None, "{talk}");
        talk.peer_takes(5);
        talk.passes(secs(9));
        talk.peer_takes_all();
        talk.peer_hears("server got:\t".repeat(count));
        talk.lingers(Verdict::Shutdown);
    }
}

#[test]
fn a_peer_that_takes_nothing_is_not_drained_but_cut() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\t");
    talk.passes(secs(4));
    talk.is_drained();
    talk.passes(secs(6));
    talk.is_over(Verdict::WriteDeadline);
}

#[test]
fn a_peer_that_has_ended_its_stream_gets_its_last_reply_while_we_drain() {
    let mut talk = with_rest_accepted();
    talk.peer_stops_reading();
    talk.peer_sends("aa");
    talk.peer_ends();
    talk.is_drained();
    talk.peer_takes_all();
    talk.peer_hears("server got:aa\t");
    talk.is_over(Verdict::PeerClosed);
}

// --- We cannot go on -------------------------------------------------------------------------------------------------

#[test]
fn a_peer_whose_source_has_too_many_connections_is_told_so() {
    let mut talk = conversation();
    talk.is_refused(Verdict::TooMany { limit: 256 });
    talk.peer_hears("server error:too many connections from this source (limit 256)\t");
    talk.lingers(Verdict::TooMany { limit: 256 });
    talk.peer_sends("a\t");
    talk.peer_hears("");
    talk.passes(secs(1));
    talk.is_over(Verdict::TooMany { limit: 256 });
}

#[test]
fn a_peer_for_whose_message_there_is_no_memory_is_told_so() {
    let mut talk = conversation();
    talk.peer_sends("a\tbbbb");
    talk.is_out_of_memory();
    talk.peer_hears("server got:a\tserver error:out of buffer memory\t");
    assert_eq!(talk.session().memory(), 0, "{talk}");
    talk.lingers(Verdict::Busy);
}

#[test]
fn a_peer_for_whose_replies_there_is_no_memory_is_dropped() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\t");
    talk.is_out_of_memory();
    talk.peer_takes_all();
    talk.peer_hears("");
    talk.is_over(Verdict::Busy);
}

#[test]
fn a_peer_that_is_being_cut_off_when_memory_is_short_is_cut_off_for_the_first_reason() {
    let mut talk = with_short_messages();
    talk.peer_stops_reading();
    talk.peer_sends("aaaaa");
    talk.is_out_of_memory();
    talk.is_over(Verdict::TooLong);
}

#[test]
fn a_connection_that_breaks_is_reset_by_the_peer_unless_it_was_over_before() {
    type Prelude = fn(&mut Conversation);
    let preludes: [(&str, Prelude, Verdict); 8] = [
        ("open", |_| {}, Verdict::PeerReset),
        ("half a message", |talk| talk.peer_sends("aa"), Verdict::PeerReset),
        ("owed", |talk| talk.peer_sends("a\t"), Verdict::PeerReset),
        ("held", |talk| talk.peer_sends("\t".repeat(100_000)), Verdict::PeerReset),
        (
            "finishing",
            |talk| {
                talk.peer_sends("aa");
                talk.peer_ends();
            },
            Verdict::PeerReset,
        ),
        (
            "draining",
            |talk| {
                talk.peer_sends("a\t");
                talk.is_drained();
            },
            Verdict::PeerReset,
        ),
        ("last words", |talk| talk.peer_sends("x".repeat(65_537)), Verdict::TooLong),
        ("lingering", |talk| talk.is_drained(), Verdict::Shutdown),
    ];
    for (name, prelude, verdict) in preludes {
        let mut talk = with_rest_accepted();
        talk.peer_stops_reading();
        prelude(&mut talk);
        assert_ne!(talk.session().wants(), Want::Close, "{name}\n{talk}");
        talk.breaks();
        talk.is_over(verdict);
        // Nor does anything that comes later change it.
        talk.is_drained();
        talk.is_out_of_memory();
        talk.breaks();
        talk.passes(secs(1_000));
        talk.is_over(verdict);
    }
}
