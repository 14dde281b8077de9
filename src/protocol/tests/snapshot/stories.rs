//! Stories of restarts: time that passes meanwhile, and rules that change.

use crate::protocol::reply::{Prefix, READ_SIZE};
use crate::protocol::rules::{Deadlines, LogMessages, Span, Unterminated};
use crate::protocol::tests::conversation::{Conversation, millis, secs};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

fn conversation() -> Conversation {
    Conversation::new(Rules::default())
}

fn with_prefix(prefix: &str) -> Rules {
    Rules { prefix: Prefix::new(prefix.as_bytes()), ..Rules::default() }
}

fn with_delimiter(delimiter: &str) -> Rules {
    Rules { delimiter: Delimiter::new(delimiter.as_bytes()).unwrap(), ..Rules::default() }
}

fn with_read_deadline(read: Option<Span>) -> Rules {
    Rules { deadlines: Deadlines { read, ..Deadlines::default() }, ..Rules::default() }
}

// --- Time passes -----------------------------------------------------------------------------------------------------

#[test]
fn a_message_half_sent_goes_on_after_a_restart() {
    let mut talk = conversation();
    talk.peer_sends("aaaa\tbb");
    talk.restarts_for(millis(80));
    talk.peer_sends("bb\t");
    talk.peer_hears("server got:aaaa\tserver got:bbbb\t");
    talk.goes_on();
}

#[test]
fn a_read_deadline_goes_on_during_a_restart() {
    // It passes during the restart, with it, or after it: at the same time as without one.
    for (before, away) in [(0, 1_999), (500, 1_499), (1_999, 0), (500, 1_500), (500, 60_000)] {
        let mut talk = conversation();
        talk.peer_sends("aa");
        talk.passes(millis(before));
        talk.restarts_for(millis(away));
        if before + away < 2_000 {
            talk.peer_hears("");
            talk.goes_on();
            talk.passes(millis(2_000 - before - away));
        }
        talk.peer_hears("server error:message not finished within 2s\t");
        talk.lingers(Verdict::ReadDeadline);
    }
}

#[test]
fn a_read_clock_that_stands_still_stands_still_during_a_restart() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\tbb");
    talk.restarts_for(secs(9));
    talk.goes_on();
    talk.peer_takes_all();
    talk.peer_hears("server got:a\t");
    talk.passes(millis(1_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_hears("server error:message not finished within 2s\t");
}

#[test]
fn every_other_deadline_goes_on_during_a_restart_too() {
    let mut talk = conversation();
    talk.peer_sends("\n");
    talk.restarts_for(secs(299));
    talk.goes_on();
    talk.passes(secs(1));
    talk.peer_hears("server error:no message within 5min\t");

    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\t");
    talk.restarts_for(millis(9_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.is_over(Verdict::WriteDeadline);

    let lifetime = Some(Span::new(secs(5), "5s"));
    let mut talk =
        Conversation::new(Rules { deadlines: Deadlines { lifetime, ..Deadlines::default() }, ..Rules::default() });
    talk.passes(secs(2));
    talk.restarts_for(secs(2));
    talk.goes_on();
    talk.peer_stops_reading();
    talk.peer_sends("a\t");
    talk.passes(secs(1));
    // Of the ten seconds for the last replies, some pass during another restart.
    talk.restarts_for(millis(9_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.is_over(Verdict::Lifetime);

    let mut talk = conversation();
    talk.peer_sends("a");
    talk.passes(secs(2));
    talk.lingers(Verdict::ReadDeadline);
    talk.restarts_for(millis(999));
    talk.lingers(Verdict::ReadDeadline);
    talk.restarts_for(millis(1));
    talk.is_over(Verdict::ReadDeadline);
}

#[test]
fn sixty_kibibytes_of_replies_that_were_not_taken_are_taken_afterwards() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\t".repeat(5_000));
    talk.restarts_for(secs(5));
    talk.peer_takes(100);
    talk.restarts_for(secs(5));
    talk.peer_takes_all();
    talk.peer_hears("server got:a\t".repeat(5_000));
    talk.goes_on();
}

#[test]
fn who_was_refused_remains_refused_and_nobody_else_is() {
    let mut talk = conversation();
    talk.restarts();
    assert!(!talk.session().refused(), "{talk}");
    talk.peer_stops_reading();
    talk.is_refused(Verdict::TooMany { limit: 3 });
    talk.restarts();
    assert!(talk.session().refused(), "{talk}");
    talk.peer_takes_all();
    talk.peer_hears("server error:too many connections from this source (limit 3)\t");
    talk.lingers(Verdict::TooMany { limit: 3 });
    assert!(talk.session().refused(), "{talk}");

    let mut talk = conversation();
    talk.is_drained();
    assert!(!talk.session().refused(), "{talk}");
}

// --- Rules change ----------------------------------------------------------------------------------------------------

#[test]
fn a_new_prefix_stands_before_the_message_in_progress_and_not_before_replies_that_are_owed() {
    for prefix in ["", "now:", &"p".repeat(4096)] {
        let mut talk = conversation();
        talk.peer_stops_reading();
        talk.peer_sends("aaaa\tbb");
        talk.restarts_with(with_prefix(prefix));
        talk.peer_takes_all();
        talk.peer_sends("bb\t");
        talk.peer_hears(format!("server got:aaaa\t{prefix}bbbb\t"));
    }
}

#[test]
fn with_a_new_delimiter_the_message_in_progress_is_looked_at_again() {
    let mut talk = conversation();
    talk.peer_sends("a\nbb\n\ncc");
    talk.restarts_with(with_delimiter("\n"));
    talk.peer_hears("server got:a\nserver got:bb\nserver got:\n");
    talk.passes(millis(1_999));
    talk.peer_sends("c\td\n");
    talk.peer_hears("server got:ccc\td\n");
    talk.goes_on();

    // Its first bytes have come already.
    let mut talk = conversation();
    talk.peer_sends("aab-b-");
    talk.restarts_with(with_delimiter("-b--"));
    talk.peer_hears("");
    talk.peer_sends("-");
    talk.peer_hears("server got:aab-b--");

    // Those that might have begun the old one begin nothing.
    let mut talk = Conversation::new(with_delimiter("--"));
    talk.peer_sends("aa-");
    talk.restarts_with(with_delimiter("+"));
    talk.peer_sends("-+");
    talk.peer_hears("server got:aa--+");
}

#[test]
fn a_message_in_progress_of_any_length_may_turn_out_to_be_several() {
    let long = |letter: &str| letter.repeat(2 * READ_SIZE + 5);
    let parts = [long("a"), "b".to_owned(), long("c"), long("d"), String::new(), long("e")];
    for log_messages in [LogMessages::Off, LogMessages::Full] {
        let rules = |delimiter| Rules { log_messages, max_message: 10 * READ_SIZE, ..with_delimiter(delimiter) };
        let mut talk = Conversation::new(rules("\t"));
        talk.peer_sends(parts.join("\n"));
        talk.goes_on();
        talk.peer_stops_reading();
        talk.log_stops();
        talk.restarts_with(rules("\n"));
        talk.restarts();
        for count in [0, 1, 7, READ_SIZE, 5, 3 * READ_SIZE] {
            talk.peer_takes(count);
            talk.log_takes(1);
            talk.restarts();
        }
        talk.log_takes_all();
        talk.peer_takes_all();
        talk.peer_sends("\n");
        let replies: String = parts.iter().map(|part| format!("server got:{part}\n")).collect();
        talk.peer_hears(replies);
        talk.goes_on();
        let messages: Vec<_> = parts.iter().map(String::as_bytes).collect();
        assert_eq!(talk.logged(), messages);
        assert_eq!(talk.session().totals().messages, 6, "{talk}");
    }
}

#[test]
fn a_message_in_progress_that_is_now_too_long_is_cut_off() {
    let mut talk = conversation();
    talk.peer_sends("aaaaa");
    talk.restarts_with(Rules { max_message: 5, ..Rules::default() });
    talk.goes_on();
    talk.restarts_with(Rules { max_message: 4, ..Rules::default() });
    talk.peer_hears("server error:message exceeds 4 bytes\t");
    talk.lingers(Verdict::TooLong);
}

#[test]
fn a_message_that_waits_for_the_log_is_answered_under_the_new_rules() {
    let log_messages = LogMessages::Full;
    let mut talk = Conversation::new(Rules { log_messages, ..Rules::default() });
    talk.log_stops();
    talk.peer_sends("aaaa\tbb\tc");
    talk.restarts_with(Rules { log_messages, prefix: Prefix::new(b"now:"), ..with_delimiter("\r\n") });
    assert_eq!(talk.session().wants(), Want::Log, "{talk}");
    talk.log_takes_all();
    talk.peer_hears("now:aaaa\r\n");
    // What was not looked at is so under the new rules.
    talk.peer_sends("\r\n");
    talk.peer_hears("now:bb\tc\r\n");
    assert_eq!(talk.logged(), [&b"aaaa"[..], b"bb\tc"], "{talk}");
}

#[test]
fn a_rest_that_was_accepted_is_answered_though_the_new_rules_would_not_accept_it() {
    let log_messages = LogMessages::Full;
    let mut talk = Conversation::new(Rules { log_messages, unterminated: Unterminated::Accept, ..Rules::default() });
    talk.log_stops();
    talk.peer_sends("aa");
    talk.peer_ends();
    talk.restarts_with(Rules { log_messages, ..Rules::default() });
    talk.log_takes_all();
    talk.peer_hears("server got:aa\t");
    talk.is_over(Verdict::PeerClosed);
}

#[test]
fn a_read_deadline_is_never_later_than_the_new_rules_would_have_it() {
    let span = |secs_: u64| Some(Span::new(secs(secs_), "new"));
    // Of two seconds one is left, and then …
    for (new, left) in
        [(span(60), millis(1_000)), (span(1), millis(1_000)), (Some(Span::new(millis(300), "new")), millis(300))]
    {
        let mut talk = conversation();
        talk.peer_sends("a");
        talk.passes(secs(1));
        talk.restarts_with(with_read_deadline(new));
        talk.passes(left - millis(1));
        talk.goes_on();
        talk.passes(millis(1));
        talk.peer_hears("server error:message not finished within new\t");
    }
    // Where there was none, it begins with the restart; where there is none any more, it ends.
    let mut talk = Conversation::new(with_read_deadline(None));
    talk.peer_sends("a");
    talk.passes(secs(100));
    talk.restarts_with(Rules::default());
    talk.passes(millis(1_999));
    talk.goes_on();
    talk.restarts_with(with_read_deadline(None));
    talk.passes(secs(100));
    talk.peer_sends("\t");
    talk.peer_hears("server got:a\t");
}

#[test]
fn the_last_replies_have_no_more_time_than_the_new_rules_give() {
    let write = Some(Span::new(secs(3), "3s"));
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\t");
    talk.is_refused(Verdict::TooMany { limit: 1 });
    talk.restarts_with(Rules { deadlines: Deadlines { write, ..Deadlines::default() }, ..Rules::default() });
    talk.passes(millis(2_999));
    assert_eq!(talk.session().wants(), Want::Write, "{talk}");
    talk.passes(millis(1));
    talk.is_over(Verdict::TooMany { limit: 1 });
}
