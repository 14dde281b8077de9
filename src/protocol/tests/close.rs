//! Tests on a fake clock of how sessions end, and of the final reply.

use super::simulation::{SimulatedConnection, millis, secs};
use crate::protocol::rules::{Deadlines, Unterminated};
use crate::protocol::{Delimiter, Rules, Verdict, Want};

const MIB: usize = 1024 * 1024;

fn connection() -> SimulatedConnection {
    SimulatedConnection::new(Rules::default())
}

fn with_unterminated_accepted() -> SimulatedConnection {
    SimulatedConnection::new(Rules { unterminated: Unterminated::Accept, ..Rules::default() })
}

/// Returns a connection with at most four bytes in a message: five are an error.
fn with_short_messages() -> SimulatedConnection {
    SimulatedConnection::new(Rules { max_message: 4, ..Rules::default() })
}

// --- The peer ends its stream ----------------------------------------------------------------------------------------

#[test]
fn unterminated_bytes_at_the_end_of_the_stream_are_a_message_only_with_accept() {
    let closed = Verdict::PeerClosed;
    for (rest, discarded) in [
        ("", closed),
        ("\n", closed),
        ("\r\n", closed),
        ("b", Verdict::Unterminated { bytes: 1 }),
        ("\nbb", Verdict::Unterminated { bytes: 3 }),
        ("\r", Verdict::Unterminated { bytes: 1 }),
    ] {
        let mut conn = connection();
        conn.peer_sends(format!("aaaa\t{rest}"));
        conn.peer_ends();
        conn.assert_peer_received("server got:aaaa\t");
        conn.assert_closed(discarded);

        let mut conn = with_unterminated_accepted();
        conn.peer_sends(format!("aaaa\t{rest}"));
        conn.peer_ends();
        let reply = if rest.is_empty() { String::new() } else { format!("server got:{rest}\t") };
        conn.assert_peer_received(format!("server got:aaaa\t{reply}"));
        conn.assert_closed(closed);
    }
}

#[test]
fn the_reply_to_an_accepted_unterminated_message_waits_until_the_peer_reads() {
    let mut conn = with_unterminated_accepted();
    conn.advance_time(secs(60));
    conn.peer_stops_reading();
    conn.peer_sends("aa");
    conn.peer_ends();
    conn.advance_time(millis(9_999));
    conn.peer_reads_all();
    conn.assert_peer_received("server got:aa\t");
    conn.assert_closed(Verdict::PeerClosed);
}

#[test]
fn a_peer_that_ends_its_stream_and_reads_no_reply_reaches_the_write_deadline() {
    let mut conn = with_unterminated_accepted();
    conn.peer_stops_reading();
    conn.peer_sends("aa");
    conn.peer_ends();
    conn.advance_time(millis(9_999));
    conn.assert_open();
    conn.advance_time(millis(1));
    conn.assert_closed(Verdict::WriteDeadline);
}

// --- The daemon closes: the final reply, the end of its stream, and the linger time ----------------------------------

#[test]
fn replies_to_complete_messages_come_before_the_final_reply() {
    let expected = "server got:a\tserver got:b\tserver error:message exceeds 4 bytes\t";
    let mut conn = with_short_messages();
    conn.peer_sends("a\tb\tccccc\td\t");
    conn.assert_peer_received(expected);
    conn.assert_lingering(Verdict::TooLong);

    let mut conn = with_short_messages();
    conn.peer_stops_reading();
    conn.peer_sends("a\tb\tccccc\td\t");
    conn.advance_time(secs(9));
    for byte in expected.as_bytes() {
        conn.peer_reads(1);
        conn.assert_peer_received([*byte]);
    }
    conn.assert_lingering(Verdict::TooLong);
}

#[test]
fn after_the_final_reply_input_is_dropped_for_a_second() {
    let mut conn = with_short_messages();
    conn.peer_sends("aaaaa");
    conn.assert_peer_received("server error:message exceeds 4 bytes\t");
    conn.advance_time(millis(500));
    conn.peer_sends("aaaaa\taa\t");
    conn.advance_time(millis(499));
    conn.assert_lingering(Verdict::TooLong);
    conn.advance_time(millis(1));
    conn.assert_peer_received("");
    conn.assert_closed(Verdict::TooLong);
}

#[test]
fn after_the_final_reply_at_most_a_mebibyte_of_input_is_dropped() {
    let mut conn = with_short_messages();
    conn.peer_sends("aaaaa");
    conn.peer_sends("a".repeat(MIB - 1));
    conn.assert_lingering(Verdict::TooLong);
    conn.peer_sends("a");
    conn.assert_closed(Verdict::TooLong);

    let mut conn = with_short_messages();
    conn.peer_sends("aaaaa");
    conn.peer_sends("a".repeat(10 * MIB));
    conn.assert_closed(Verdict::TooLong);
    assert_eq!(conn.session().totals().bytes_in, 5, "what is dropped does not count\n{conn}");
}

#[test]
fn after_the_final_reply_the_end_of_the_peers_stream_closes_the_connection() {
    let mut conn = with_short_messages();
    conn.peer_sends("aaaaa");
    conn.assert_lingering(Verdict::TooLong);
    conn.peer_ends();
    conn.assert_closed(Verdict::TooLong);
}

#[test]
fn a_connection_whose_peer_already_ended_its_stream_does_not_linger() {
    let mut conn = SimulatedConnection::new(Rules {
        delimiter: Delimiter::new(b"\r\n").unwrap(),
        max_message: 4,
        ..Rules::default()
    });
    conn.peer_stops_reading();
    conn.peer_sends("aaaa\r");
    conn.peer_ends();
    conn.advance_time(secs(9));
    conn.peer_reads_all();
    conn.assert_peer_received("server error:message exceeds 4 bytes\r\n");
    assert!(conn.shutdown_sent(), "{conn}");
    conn.assert_closed(Verdict::TooLong);
}

#[test]
fn our_stream_does_not_end_before_the_final_reply_is_sent() {
    let mut conn = with_short_messages();
    conn.peer_stops_reading();
    conn.peer_sends("aaaaa");
    conn.report_shutdown_too_early();
    conn.peer_reads_all();
    conn.assert_peer_received("server error:message exceeds 4 bytes\t");
    conn.assert_lingering(Verdict::TooLong);
}

#[test]
fn the_final_reply_has_a_deadline_however_slowly_the_peer_reads() {
    for write in [Deadlines::default().write, None] {
        let deadlines = Deadlines { write, ..Deadlines::default() };
        let mut conn = SimulatedConnection::new(Rules { max_message: 4, deadlines, ..Rules::default() });
        conn.peer_stops_reading();
        conn.peer_sends("aaaaa");
        for _ in 0..9 {
            conn.advance_time(secs(1));
            conn.peer_reads(1);
        }
        conn.assert_peer_received("server er");
        conn.advance_time(millis(999));
        assert_eq!(conn.session().wants(), Want::Write, "{conn}");
        conn.advance_time(millis(1));
        conn.assert_closed(Verdict::TooLong);
    }
}

#[test]
fn without_error_replies_no_final_reply_is_sent() {
    let mut conn = SimulatedConnection::new(Rules { error_replies: false, ..Rules::default() });
    conn.peer_sends("a\tb");
    conn.advance_time(secs(2));
    conn.assert_peer_received("server got:a\t");
    conn.assert_closed(Verdict::ReadDeadline);
}

#[test]
fn a_connection_without_traffic_for_a_second_does_not_linger() {
    for (quiet, lingers) in [(millis(999), true), (millis(1000), false)] {
        let mut conn = connection();
        conn.peer_sends("a\t");
        conn.assert_peer_received("server got:a\t");
        conn.advance_time(quiet);
        conn.drain();
        if lingers {
            conn.assert_lingering(Verdict::Shutdown);
        } else {
            conn.assert_closed(Verdict::Shutdown);
        }
    }
}

#[test]
fn final_replies_that_contain_the_delimiter_are_not_sent() {
    for delimiter in ["e", " ", "ss", "error:m", "message exceed"] {
        let delimiter = Delimiter::from_escaped(delimiter).unwrap();
        let mut conn = SimulatedConnection::new(Rules { delimiter, max_message: 1, ..Rules::default() });
        conn.peer_sends("aa");
        conn.assert_peer_received("");
        conn.assert_lingering(Verdict::TooLong);
    }
}

#[test]
fn final_replies_in_which_the_delimiter_would_match_too_early_are_not_sent() {
    // "… 1 bytes" + "ese": the first delimiter in it begins with the last two letters of the text.
    for (delimiter, whole) in [("ese", false), ("eses", false), ("testes", false), ("essen", true), ("s\t", true)] {
        let reply = ["server error:message exceeds 1 bytes", delimiter].concat();
        let mut conn = SimulatedConnection::new(Rules {
            delimiter: Delimiter::new(delimiter.as_bytes()).unwrap(),
            max_message: 1,
            ..Rules::default()
        });
        conn.peer_sends("--");
        conn.assert_peer_received(if whole { &reply } else { "" });
        conn.assert_lingering(Verdict::TooLong);
    }
}

// --- The daemon stops ------------------------------------------------------------------------------------------------

#[test]
fn a_peer_that_is_idle_or_in_the_middle_of_a_message_is_drained_at_once() {
    for sent in ["", "a\t", "a\tbb", "a\t\n"] {
        let mut conn = connection();
        conn.peer_sends(sent);
        conn.drain();
        conn.assert_peer_received(if sent.is_empty() { "" } else { "server got:a\t" });
        conn.assert_lingering(Verdict::Shutdown);
        conn.peer_sends("c\t");
        conn.assert_peer_received("");
        conn.advance_time(secs(1));
        conn.assert_closed(Verdict::Shutdown);
    }
}

#[test]
fn a_peer_that_is_owed_replies_gets_them_before_it_is_drained() {
    // A few, and so many that input stays in the inbound buffer.
    for count in [1, 100_000] {
        let mut conn = connection();
        conn.peer_stops_reading();
        conn.peer_sends([&b"\t".repeat(count)[..], b"bb"].concat());
        conn.drain();
        conn.peer_sends("c\t");
        conn.advance_time(secs(9));
        assert_eq!(conn.session().verdict(), None, "{conn}");
        conn.peer_reads(5);
        conn.advance_time(secs(9));
        conn.peer_reads_all();
        conn.assert_peer_received("server got:\t".repeat(count));
        conn.assert_lingering(Verdict::Shutdown);
    }
}

#[test]
fn draining_a_peer_that_reads_nothing_ends_at_the_write_deadline() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.advance_time(secs(4));
    conn.drain();
    conn.advance_time(secs(6));
    conn.assert_closed(Verdict::WriteDeadline);
}

#[test]
fn a_peer_that_has_ended_its_stream_gets_its_last_reply_while_we_drain() {
    let mut conn = with_unterminated_accepted();
    conn.peer_stops_reading();
    conn.peer_sends("aa");
    conn.peer_ends();
    conn.drain();
    conn.peer_reads_all();
    conn.assert_peer_received("server got:aa\t");
    conn.assert_closed(Verdict::PeerClosed);
}

// --- The daemon cannot continue --------------------------------------------------------------------------------------

#[test]
fn a_peer_whose_source_has_too_many_connections_gets_a_final_reply() {
    let mut conn = connection();
    conn.refuse(Verdict::TooMany { limit: 256 });
    conn.assert_peer_received("server error:too many connections from this source (limit 256)\t");
    conn.assert_lingering(Verdict::TooMany { limit: 256 });
    conn.peer_sends("a\t");
    conn.assert_peer_received("");
    conn.advance_time(secs(1));
    conn.assert_closed(Verdict::TooMany { limit: 256 });
}

#[test]
fn a_peer_whose_message_exceeds_the_buffer_memory_gets_a_final_reply() {
    let mut conn = connection();
    conn.peer_sends("a\tbbbb");
    conn.run_out_of_memory();
    conn.assert_peer_received("server got:a\tserver error:out of buffer memory\t");
    assert_eq!(conn.session().memory(), 0, "{conn}");
    conn.assert_lingering(Verdict::Busy);
}

#[test]
fn a_peer_whose_replies_exceed_the_buffer_memory_is_closed_without_them() {
    let mut conn = connection();
    conn.peer_stops_reading();
    conn.peer_sends("a\t");
    conn.run_out_of_memory();
    conn.peer_reads_all();
    conn.assert_peer_received("");
    conn.assert_closed(Verdict::Busy);
}

#[test]
fn running_out_of_memory_does_not_change_an_earlier_verdict() {
    let mut conn = with_short_messages();
    conn.peer_stops_reading();
    conn.peer_sends("aaaaa");
    conn.run_out_of_memory();
    conn.assert_closed(Verdict::TooLong);
}

#[test]
fn a_reset_gives_the_verdict_peer_reset_unless_there_was_one_before() {
    type Prelude = fn(&mut SimulatedConnection);
    let preludes: [(&str, Prelude, Verdict); 8] = [
        ("open", |_| {}, Verdict::PeerReset),
        ("half a message", |conn| conn.peer_sends("aa"), Verdict::PeerReset),
        ("outbound", |conn| conn.peer_sends("a\t"), Verdict::PeerReset),
        ("inbound", |conn| conn.peer_sends("\t".repeat(100_000)), Verdict::PeerReset),
        (
            "half-closed",
            |conn| {
                conn.peer_sends("aa");
                conn.peer_ends();
            },
            Verdict::PeerReset,
        ),
        (
            "draining",
            |conn| {
                conn.peer_sends("a\t");
                conn.drain();
            },
            Verdict::PeerReset,
        ),
        ("final reply", |conn| conn.peer_sends("x".repeat(65_537)), Verdict::TooLong),
        ("lingering", |conn| conn.drain(), Verdict::Shutdown),
    ];
    for (name, prelude, verdict) in preludes {
        let mut conn = with_unterminated_accepted();
        conn.peer_stops_reading();
        prelude(&mut conn);
        assert_ne!(conn.session().wants(), Want::Close, "{name}\n{conn}");
        conn.reset();
        conn.assert_closed(verdict);
        // Later events do not change it.
        conn.drain();
        conn.run_out_of_memory();
        conn.reset();
        conn.advance_time(secs(1_000));
        conn.assert_closed(verdict);
    }
}
