//! Stories of the pause after a reply (`reply_delay`).

use super::combinations::{GREETING, greeter};
use super::conversation::{Conversation, millis, secs};
use crate::protocol::rules::{Deadlines, LogMessages, Span};
use crate::protocol::{Rules, Verdict, Want};

fn echo_with_pause() -> Rules {
    Rules { reply_delay: Span::new(secs(2), "2s"), ..Rules::default() }
}

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
