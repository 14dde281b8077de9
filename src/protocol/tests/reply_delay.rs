//! Tests on a fake clock of the delay after a reply (`reply_delay`).

use super::general_path::{GREETING, greeter};
use super::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::rules::{Deadlines, LogMessages, TimeSpan};
use crate::protocol::{Rules, Verdict, Want};

fn echo_with_reply_delay() -> Rules {
    Rules { reply_delay: TimeSpan::new(secs(2), "2s"), ..Rules::default() }
}

#[test]
fn a_greeter_reads_nothing_during_the_reply_delay() {
    let mut conn = SimulatedConnection::new(greeter());
    conn.peer_sends("a");
    conn.assert_peer_received(GREETING);
    assert_eq!(conn.session().wants(), Want::Delay, "{conn}");
    conn.peer_sends("b");
    conn.advance_time(secs(1));
    // Input that arrives during the delay is read together, and is one message.
    conn.peer_sends("c");
    assert_eq!(conn.session().totals().bytes_in, 1, "{conn}");
    conn.advance_time(millis(999));
    conn.assert_peer_received("");
    conn.advance_time(millis(1));
    conn.assert_peer_received(GREETING);
    assert_eq!(conn.logged(), [&b"a"[..], b"bc"], "{conn}");
    conn.advance_time(secs(2));
    conn.assert_peer_received("");
    conn.peer_sends("d");
    conn.assert_peer_received(GREETING);
    conn.assert_open();
}

#[test]
fn each_512_bytes_of_a_long_raw_message_are_answered_after_a_delay() {
    let mut conn = SimulatedConnection::new(greeter());
    conn.peer_sends("a".repeat(1_025));
    for _ in 0..3 {
        conn.assert_peer_received(GREETING);
        conn.advance_time(millis(1_999));
        conn.assert_peer_received("");
        conn.advance_time(millis(1));
    }
    conn.assert_peer_received("");
    assert_eq!(conn.logged().iter().map(Vec::len).collect::<Vec<_>>(), [512, 512, 1], "{conn}");
    assert_eq!(conn.session().memory(), 0, "{conn}");
}

#[test]
fn the_reply_delay_applies_in_delimited_framing_too() {
    let mut conn = SimulatedConnection::new(echo_with_reply_delay());
    conn.peer_sends("a\tbb\tc");
    conn.assert_peer_received("server got:a\t");
    conn.advance_time(secs(2));
    conn.assert_peer_received("server got:bb\t");
    conn.peer_sends("cc\t");
    // The message in progress was not processed, so its read timer has not started.
    conn.advance_time(millis(1_999));
    conn.assert_peer_received("");
    conn.advance_time(millis(1));
    conn.assert_peer_received("server got:ccc\t");
    conn.advance_time(secs(2));
    conn.peer_sends("dd");
    conn.advance_time(secs(2));
    conn.assert_peer_received("server error:message not finished within 2s\t");
    conn.assert_lingering(Verdict::ReadDeadline);
}

#[test]
fn the_idle_deadline_does_not_run_during_the_reply_delay() {
    let mut conn = SimulatedConnection::new(Rules { reply_delay: TimeSpan::new(secs(1_000), "1000s"), ..greeter() });
    conn.peer_sends("a");
    conn.advance_time(secs(999));
    conn.assert_open();
    conn.advance_time(secs(1));
    conn.assert_open();
    conn.advance_time(millis(299_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_closed(Verdict::IdleDeadline);
}

#[test]
fn the_write_deadline_runs_during_the_reply_delay() {
    let mut conn = SimulatedConnection::new(Rules { reply_delay: TimeSpan::new(secs(1_000), "1000s"), ..greeter() });
    conn.peer_stops_reading();
    conn.peer_sends("a");
    assert_eq!(conn.session().wants(), Want::Write, "{conn}");
    conn.advance_time(secs(9));
    conn.peer_reads(1);
    conn.advance_time(millis(9_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_closed(Verdict::WriteDeadline);
}

#[test]
fn the_reply_delay_starts_at_the_message_however_late_the_peer_reads_the_reply() {
    let mut conn = SimulatedConnection::new(greeter());
    conn.peer_stops_reading();
    conn.peer_sends("a");
    conn.advance_time(secs(3));
    conn.peer_sends("b");
    conn.peer_reads_all();
    conn.assert_peer_received([GREETING, GREETING].concat());
}

#[test]
fn a_peer_that_ends_its_stream_during_the_delay_gets_all_delayed_replies() {
    let mut conn = SimulatedConnection::new(greeter());
    conn.peer_sends("a".repeat(513));
    conn.peer_ends();
    conn.advance_time(millis(1_999));
    conn.assert_peer_received(GREETING);
    conn.advance_time(millis(1));
    conn.assert_peer_received(GREETING);
    conn.assert_open();
    conn.advance_time(secs(2));
    conn.assert_closed(Verdict::PeerClosed);
}

#[test]
fn a_peer_that_is_drained_during_the_delay_gets_its_replies_at_once() {
    let mut conn = SimulatedConnection::new(greeter());
    conn.peer_sends("a".repeat(1_025));
    conn.drain();
    conn.assert_peer_received(GREETING.repeat(3));
    conn.assert_lingering(Verdict::Shutdown);

    let mut conn = SimulatedConnection::new(greeter());
    conn.peer_sends("a");
    conn.drain();
    conn.assert_peer_received(GREETING);
    conn.assert_lingering(Verdict::Shutdown);
}

#[test]
fn the_lifetime_can_end_during_the_reply_delay() {
    let lifetime = Some(TimeSpan::new(secs(1), "1s"));
    let mut conn = SimulatedConnection::new(Rules {
        deadlines: Deadlines { lifetime, ..Deadlines::default() },
        ..echo_with_reply_delay()
    });
    conn.peer_sends("a\tb\tc");
    conn.advance_time(millis(999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_peer_received("server got:a\tserver got:b\tserver error:connection older than 1s\t");
    conn.assert_lingering(Verdict::Lifetime);
}

#[test]
fn a_lifetime_that_ends_together_with_the_delay_closes_the_connection() {
    let lifetime = Some(TimeSpan::new(secs(2), "2s"));
    let rules = Rules { deadlines: Deadlines { lifetime, ..Deadlines::default() }, ..echo_with_reply_delay() };
    let mut conn = SimulatedConnection::new(rules);
    conn.peer_sends("a\tb\tc");
    conn.advance_time(secs(2));
    conn.assert_peer_received("server got:a\tserver got:b\tserver error:connection older than 2s\t");
    conn.assert_lingering(Verdict::Lifetime);
}

#[test]
fn messages_of_a_peer_that_resets_during_the_delay_are_logged() {
    let mut conn = SimulatedConnection::new(Rules { log_messages: LogMessages::Full, ..greeter() });
    conn.peer_sends("a".repeat(1_025));
    conn.log_stops();
    conn.reset();
    assert_eq!(conn.session().wants(), Want::Log, "{conn}");
    conn.log_accepts_all();
    assert_eq!(conn.logged().iter().map(Vec::len).collect::<Vec<_>>(), [512, 512, 1], "{conn}");
    conn.assert_closed(Verdict::PeerReset);
    assert_eq!(conn.session().memory(), 0, "{conn}");
}

#[test]
fn the_reply_delay_starts_when_the_log_has_accepted_the_message() {
    let mut conn = SimulatedConnection::new(Rules { log_messages: LogMessages::Full, ..greeter() });
    conn.log_stops();
    conn.peer_sends("a".repeat(513));
    conn.advance_time(secs(100));
    conn.assert_peer_received("");
    conn.log_accepts_all();
    conn.assert_peer_received(GREETING);
    conn.advance_time(millis(1_999));
    conn.assert_peer_received("");
    conn.advance_time(millis(1));
    conn.assert_peer_received(GREETING);
}

// --- Restarts --------------------------------------------------------------------------------------------------------

#[test]
fn the_reply_delay_continues_during_a_restart() {
    for (before, away) in [(0, 1_999), (500, 1_499), (500, 1_500), (500, 60_000)] {
        let mut conn = SimulatedConnection::new(greeter());
        conn.peer_sends("a");
        conn.assert_peer_received(GREETING);
        conn.advance_time(millis(before));
        conn.restart_for(millis(away));
        conn.peer_sends("b");
        if before + away < 2_000 {
            conn.assert_peer_received("");
            conn.advance_time(millis(2_000 - before - away));
        }
        conn.assert_peer_received(GREETING);
    }
}

#[test]
fn the_reply_delay_is_capped_by_the_new_rules_after_a_restart() {
    for (delay, left) in [(0, 0), (500, 500), (60_000, 1_500)] {
        let mut conn = SimulatedConnection::new(greeter());
        conn.peer_sends("a".repeat(513));
        conn.advance_time(millis(500));
        conn.assert_peer_received(GREETING);
        conn.restart_with(Rules { reply_delay: TimeSpan::new(millis(delay), "new"), ..greeter() });
        if left > 0 {
            conn.advance_time(millis(left - 1));
            conn.assert_peer_received("");
            conn.advance_time(millis(1));
        }
        conn.assert_peer_received(GREETING);
    }
    // Rules without a delay end it.
    let mut conn = SimulatedConnection::new(echo_with_reply_delay());
    conn.peer_sends("a\tb\tc");
    conn.restart_with(Rules::default());
    conn.assert_peer_received("server got:a\tserver got:b\t");
    assert_eq!(conn.session().wants(), Want::Read, "{conn}");
}
