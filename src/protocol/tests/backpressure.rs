//! Stories of peers that do not take what they are owed, or send more than they take.

use super::conversation::{Conversation, millis, secs};
use crate::protocol::reply::{ENOUGH, Prefix, READ_SIZE};
use crate::protocol::rules::Deadlines;
use crate::protocol::{Rules, Verdict, Want};

fn conversation() -> Conversation {
    Conversation::new(Rules::default())
}

#[test]
fn a_peer_that_takes_nothing_for_ten_seconds_is_cut_without_a_word() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("a\t");
    talk.passes(millis(9_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.peer_takes_all();
    talk.peer_hears("");
    talk.is_over(Verdict::WriteDeadline);
}

#[test]
fn a_peer_that_takes_a_byte_every_nine_seconds_is_not_cut() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    talk.peer_sends("aaaa\t");
    for byte in b"server got:aaaa\t" {
        talk.passes(secs(9));
        talk.goes_on();
        talk.peer_takes(1);
        talk.peer_hears([*byte]);
    }
    talk.peer_stops_reading();
    talk.passes(secs(20));
    talk.goes_on();
    // What is owed next has its own ten seconds.
    talk.peer_sends("b\t");
    talk.passes(millis(9_999));
    talk.goes_on();
    talk.passes(millis(1));
    talk.is_over(Verdict::WriteDeadline);
}

#[test]
fn what_is_owed_has_its_ten_seconds_however_long_its_message_took() {
    for length in [4, 40_000] {
        let mut talk = Conversation::new(Rules {
            deadlines: Deadlines { read: None, ..Deadlines::default() },
            ..Rules::default()
        });
        talk.peer_stops_reading();
        talk.peer_sends("a".repeat(length / 2));
        talk.passes(secs(60));
        talk.peer_sends("a".repeat(length / 2) + "\t");
        talk.passes(millis(9_999));
        talk.goes_on();
        talk.passes(millis(1));
        talk.is_over(Verdict::WriteDeadline);
    }
}

#[test]
fn a_peer_that_floods_and_does_not_read_is_not_read_from() {
    let mut talk = conversation();
    talk.peer_stops_reading();
    let flood = 1_000_000;
    talk.peer_sends("\t".repeat(flood));
    let read = talk.session().totals().bytes_in;
    assert!(read <= READ_SIZE as u64, "{talk}");
    talk.peer_sends("\t".repeat(flood));
    talk.passes(secs(9));
    assert_eq!(talk.session().totals().bytes_in, read, "{talk}");
    // It had its replies put together up to some size, and not more; the rest follows as it takes them.
    assert!(talk.session().totals().messages <= (ENOUGH / "server got:\t".len() + 1) as u64, "{talk}");
    while talk.session().wants() == Want::Write {
        talk.peer_takes(70_001);
    }
    talk.peer_hears("server got:\t".repeat(2 * flood));
    talk.goes_on();
    assert_eq!(talk.session().memory(), 0, "{talk}");
}

#[test]
fn a_flood_that_stops_just_where_enough_is_owed_is_answered_whole() {
    let enough = ENOUGH.div_ceil("server got:\t".len());
    for count in enough - 2..enough + 4 {
        for rest in ["", "\n", "aaaa"] {
            let mut talk = conversation();
            talk.peer_stops_reading();
            talk.peer_sends("\t".repeat(count) + rest);
            talk.peer_takes_all();
            talk.peer_hears("server got:\t".repeat(count));
            talk.peer_sends("\t");
            talk.peer_hears(format!("server got:{rest}\t"));
            talk.goes_on();
        }
    }
}

#[test]
fn a_peer_that_floods_with_long_messages_is_kept_within_bounds_too() {
    let message = "x".repeat(65_536);
    let mut talk = Conversation::new(Rules { prefix: Prefix::new(&[b'>'; 4_096]), ..Rules::default() });
    talk.peer_stops_reading();
    talk.peer_sends(format!("{message}\t").repeat(10));
    while talk.session().wants() == Want::Write {
        talk.passes(secs(1));
        talk.peer_takes(10_000);
    }
    talk.peer_hears(format!("{}{message}\t", ">".repeat(4_096)).repeat(10));
    talk.goes_on();
}

#[test]
fn a_peer_that_floods_and_reads_as_fast_does_not_keep_us_from_the_others() {
    let mut talk = Conversation::new(Rules { max_message: 4, prefix: Prefix::new(b">>>>"), ..Rules::default() });
    talk.peer_sends("\t".repeat(READ_SIZE));
    talk.peer_hears(">>>>\t".repeat(READ_SIZE));
    // In one call what was owed before, and as much again.
    assert!(talk.most_at_once() <= 2 * (ENOUGH + 9), "{} bytes were sent at once\n{talk}", talk.most_at_once());
}
