//! Stories of conversations that go on, and of deadlines that end them.

use super::conversation::{Conversation, millis, secs};
use crate::protocol::reply::READ_SIZE;
use crate::protocol::rules::{Deadlines, Span, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

fn conversation() -> Conversation {
    Conversation::new(Rules::default())
}

fn with_deadlines(deadlines: Deadlines) -> Conversation {
    Conversation::new(Rules { deadlines, ..Rules::default() })
}

fn with_lifetime(span: Span) -> Conversation {
    with_deadlines(Deadlines { lifetime: Some(span), ..Deadlines::default() })
}

// --- Messages and replies --------------------------------------------------------------------------------------------

#[test]
fn a_message_gets_its_reply() {
    let mut talk = conversation();
    talk.peer_sends("aaaa\t");
    talk.peer_hears("server got:aaaa\t");
    talk.goes_on();
    talk.peer_sends("bb");
    talk.peer_hears("");
    talk.peer_sends("b\t");
    talk.peer_hears("server got:bbb\t");
    talk.peer_ends();
    talk.peer_hears("");
    talk.is_over(Verdict::PeerClosed);
}

#[test]
fn a_peer_that_says_nothing_and_ends_is_owed_nothing() {
    let mut talk = conversation();
    talk.peer_ends();
    talk.peer_hears("");
    talk.is_over(Verdict::PeerClosed);
}

#[test]
fn a_hundred_thousand_messages_at_once_and_the_end_get_all_their_replies() {
    for takes in [usize::MAX, 50_000, 1_000_000] {
        let mut talk = conversation();
        talk.peer_stops_reading();
        talk.peer_sends("x\t".repeat(100_000));
        talk.peer_ends();
        while talk.session().wants() == Want::Write {
            talk.peer_takes(takes);
        }
        talk.peer_hears("server got:x\t".repeat(100_000));
        talk.is_over(Verdict::PeerClosed);
        assert_eq!(talk.session().totals().messages, 100_000, "{talk}");
    }
}

#[test]
fn a_message_larger_than_a_read_is_answered_and_takes_no_more_memory_than_it_has_bytes() {
    // Lengths around those at which a buffer that doubles is full to the last byte.
    for length in [2 * READ_SIZE, 2 * READ_SIZE + 11, 4 * READ_SIZE - 1, 4 * READ_SIZE + 33] {
        let mut talk = Conversation::new(Rules { max_message: length, ..Rules::default() });
        talk.peer_stops_reading();
        talk.peer_sends("x".repeat(length));
        talk.peer_sends("\t");
        talk.peer_takes_all();
        talk.peer_hears(format!("server got:{}\t", "x".repeat(length)));
        talk.goes_on();
    }
}

#[test]
fn a_message_in_progress_takes_memory_for_what_has_come_of_it() {
    let mut talk = conversation();
    for sent in 1..=100 {
        talk.peer_sends([b'a'; 100]);
        let memory = talk.session().memory();
        assert!(memory <= 2 * (11 + 100 * sent), "{memory} bytes\n{talk}");
    }
}

#[test]
fn a_rest_that_is_accepted_takes_no_more_memory_than_it_has_bytes() {
    let max_message = 2 * READ_SIZE + 11;
    let unterminated = Unterminated::Accept;
    let mut talk = Conversation::new(Rules { max_message, unterminated, ..Rules::default() });
    talk.peer_stops_reading();
    talk.peer_sends("x".repeat(max_message));
    talk.peer_ends();
    talk.peer_takes_all();
    talk.peer_hears(format!("server got:{}\t", "x".repeat(max_message)));
    talk.is_over(Verdict::PeerClosed);
}

// --- The read deadline -----------------------------------------------------------------------------------------------

#[test]
fn half_a_message_is_cut_at_the_read_deadline() {
    let mut talk = conversation();
    talk.peer_sends("aa");
    talk.passes(millis(1_999));
    talk.peer_hears("");
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server error:message not finished within 2s\t");
    talk.lingers(Verdict::ReadDeadline);
}

#[test]
fn bytes_that_trickle_in_do_not_extend_the_read_deadline() {
    let mut talk = conversation();
    for _ in 0..4 {
        talk.peer_sends("a");
        talk.peer_hears("");
        talk.goes_on();
        talk.passes(millis(500));
    }
    talk.peer_hears("server error:message not finished within 2s\t");
    talk.lingers(Verdict::ReadDeadline);
}

#[test]
fn the_read_deadline_counts_from_the_first_byte_of_each_message() {
    let mut talk = conversation();
    talk.peer_sends("a");
    talk.passes(millis(1_500));
    talk.peer_sends("\tb");
    talk.peer_hears("server got:a\t");
    talk.passes(millis(1_999));
    talk.peer_sends("\t");
    talk.peer_hears("server got:b\t");
    talk.passes(secs(100));
    talk.goes_on();
    talk.peer_sends("c");
    talk.passes(secs(2));
    talk.peer_hears("server error:message not finished within 2s\t");
    talk.lingers(Verdict::ReadDeadline);
}

#[test]
fn a_deadline_is_told_in_the_notation_in_which_it_was_configured() {
    let read = Some(Span::new(millis(1_500), "1500ms"));
    let mut talk = with_deadlines(Deadlines { read, ..Deadlines::default() });
    talk.peer_sends("a");
    talk.passes(millis(1_500));
    talk.peer_hears("server error:message not finished within 1500ms\t");
}

#[test]
fn without_a_read_deadline_half_a_message_may_take_any_time() {
    let mut talk = with_deadlines(Deadlines { read: None, ..Deadlines::default() });
    talk.peer_sends("a");
    talk.passes(secs(100_000));
    talk.goes_on();
    talk.peer_sends("\t");
    talk.peer_hears("server got:a\t");
}

#[test]
fn the_read_clock_stands_still_while_we_do_not_read() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\tbb");
    talk.passes(secs(9));
    talk.goes_on();
    talk.peer_takes(3);
    talk.passes(secs(9));
    talk.goes_on();
    talk.peer_takes_all();
    talk.peer_hears("server got:a\t");
    talk.passes(millis(1_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server error:message not finished within 2s\t");
    talk.lingers(Verdict::ReadDeadline);
}

// --- The idle deadline -----------------------------------------------------------------------------------------------

#[test]
fn an_idle_peer_is_cut_after_five_minutes_and_not_before() {
    let mut talk = conversation();
    talk.passes(millis(299_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server error:no message within 5min\t");
    talk.lingers(Verdict::IdleDeadline);
}

#[test]
fn the_idle_deadline_counts_from_the_last_byte_in_either_direction() {
    let mut talk = conversation();
    talk.passes(secs(200));
    talk.peer_stops_reading();
    talk.peer_sends("a\t");
    talk.passes(secs(9));
    talk.peer_takes_all();
    talk.peer_hears("server got:a\t");
    talk.passes(millis(299_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server error:no message within 5min\t");
    talk.lingers(Verdict::IdleDeadline);
}

#[test]
fn without_an_idle_deadline_a_peer_may_stay_forever() {
    let mut talk = with_deadlines(Deadlines { idle: None, ..Deadlines::default() });
    assert_eq!(talk.session().deadline(), None, "{talk}");
    talk.passes(secs(1_000_000));
    talk.goes_on();
}

#[test]
fn who_presses_tab_and_enter_is_idle_and_not_in_the_middle_of_a_message() {
    for enter in ["\n", "\r\n", "\n\n\r\n"] {
        let mut talk = conversation();
        talk.peer_sends("aaaa\t");
        talk.peer_sends(enter);
        talk.peer_hears("server got:aaaa\t");
        talk.passes(millis(299_999));
        talk.goes_on();
        talk.passes(millis(1));
        talk.peer_hears("server error:no message within 5min\t");
        talk.lingers(Verdict::IdleDeadline);
    }
}

#[test]
fn who_types_on_after_a_long_pause_has_all_the_time_of_a_message() {
    for enter in ["\n", "\r\n"] {
        let mut talk = conversation();
        talk.peer_sends(format!("aaaa\t{enter}"));
        talk.peer_hears("server got:aaaa\t");
        talk.passes(secs(250));
        talk.peer_sends("bb");
        talk.passes(millis(1_999));
        talk.goes_on();
        talk.peer_sends("bb\t");
        talk.peer_hears(format!("server got:{enter}bbbb\t"));
        talk.peer_sends(format!("{enter}c"));
        talk.passes(secs(2));
        talk.peer_hears("server error:message not finished within 2s\t");
        talk.lingers(Verdict::ReadDeadline);
    }
}

#[test]
fn a_line_end_that_comes_in_two_packets_is_a_line_end() {
    let mut talk = conversation();
    talk.peer_sends("aaaa\t\r");
    talk.passes(millis(1));
    talk.peer_sends("\n");
    talk.peer_hears("server got:aaaa\t");
    talk.passes(millis(299_999));
    talk.goes_on();
    talk.peer_sends("b");
    talk.passes(millis(1_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server error:message not finished within 2s\t");
    talk.lingers(Verdict::ReadDeadline);
}

// --- The lifetime ----------------------------------------------------------------------------------------------------

#[test]
fn a_message_in_progress_does_not_extend_the_lifetime() {
    let mut talk = with_lifetime(Span::new(secs(3_600), "1h"));
    for _ in 0..3_599 {
        talk.passes(secs(1));
        talk.peer_sends("a\t");
    }
    talk.peer_hears("server got:a\t".repeat(3_599));
    talk.peer_sends("bbbb");
    talk.passes(millis(999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server error:connection older than 1h\t");
    talk.lingers(Verdict::Lifetime);
}

#[test]
fn the_lifetime_cuts_a_peer_that_is_owed_something_after_its_replies() {
    let mut talk = with_lifetime(Span::new(secs(5), "5s"));
    talk.peer_stops_reading();
    talk.peer_sends("a\tb\tc");
    talk.passes(secs(5));
    talk.peer_takes_all();
    talk.peer_hears("server got:a\tserver got:b\tserver error:connection older than 5s\t");
    talk.lingers(Verdict::Lifetime);
}

#[test]
fn the_lifetime_does_not_take_away_replies_to_messages_that_were_read_but_not_looked_at() {
    let mut talk = with_lifetime(Span::new(secs(5), "5s"));
    talk.peer_stops_reading();
    talk.peer_sends("\t".repeat(10_000));
    talk.passes(secs(5));
    talk.peer_takes_all();
    let replies = "server got:\t".repeat(10_000);
    talk.peer_hears(format!("{replies}server error:connection older than 5s\t"));
    talk.lingers(Verdict::Lifetime);
}

#[test]
fn beyond_the_lifetime_replies_and_last_words_have_one_time_together() {
    // A byte each second: the reply is not taken whole. All of it in the last second: the words are not taken.
    for takes in [[1; 9], [1, 1, 1, 1, 1, 1, 1, 1, 5]] {
        let mut talk = with_lifetime(Span::new(secs(5), "5s"));
        talk.peer_stops_reading();
        talk.peer_sends("a\t");
        talk.passes(secs(5));
        for count in takes {
            talk.passes(secs(1));
            talk.peer_takes(count);
        }
        talk.passes(millis(999));
        assert_eq!(talk.session().wants(), Want::Write, "{talk}");
        talk.passes(millis(1));
        talk.peer_hears(&"server got:a\t"[..takes.iter().sum()]);
        talk.is_over(Verdict::Lifetime);
    }
}

#[test]
fn a_deadline_beyond_the_end_of_time_is_as_good_as_none() {
    let forever = || Some(Span::new(std::time::Duration::MAX, "forever"));
    let deadlines = Deadlines { idle: forever(), read: forever(), write: forever(), lifetime: forever() };
    let mut talk = with_deadlines(deadlines);
    talk.peer_sends("a\tb");
    talk.passes(secs(1_000_000));
    talk.peer_hears("server got:a\t");
    talk.goes_on();
    talk.is_drained();
    talk.is_over(Verdict::Shutdown);
}

#[test]
fn deadlines_run_with_any_delimiter() {
    let delimiter = Delimiter::new(b"\r\n").unwrap();
    let mut talk = Conversation::new(Rules { delimiter, ..Rules::default() });
    talk.peer_sends("a\r\nb\r");
    talk.passes(secs(2));
    talk.peer_hears("server got:a\r\nserver error:message not finished within 2s\r\n");
    talk.lingers(Verdict::ReadDeadline);
}
