//! Deadlines in real time, what is said when they pass, and how the daemon stops. Times are measured by the client: never
//! too early, and late by no more than what is demanded even of a slow machine.

use std::fs;
use std::io::{self, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::packets::PacketPeer;
use common::{Daemon, Peer, now, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_recv_buffer_size, socket_error};
use rustix::process::Signal;

use crate::alone;

const TCP: [&str; 2] = ["--listen", "127.0.0.1:0"];
const TCP_AND_UNIX: [&str; 4] = ["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"];

const HALF_A_SECOND: Duration = Duration::from_millis(500);
const TWO_SECONDS: Duration = Duration::from_secs(2);

/// Checks that the stream ends with this final reply, not before `after` has passed since `start`, and soon then.
fn check_final_reply(peer: &mut Peer, start: Instant, after: Duration, final_reply: &str) {
    let took = peer.time_until_close(start);
    peer.expect(final_reply);
    peer.expect_close();
    assert!(took >= after && took < after + HALF_A_SECOND, "\"{final_reply}\" came after {took:?}");
}

/// Sends these bytes once more after each interval, as long as `during` takes.
fn while_sending(peer: &mut Peer, bytes: &[u8], interval: Duration, during: impl FnOnce(&mut Peer)) {
    let mut stream = peer.stream();
    let (stop, stopped) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) && stream.write_all(bytes).is_ok() {}
        });
        during(peer);
        drop(stop);
    });
}

// --- Deadlines of clients that do not send -----------------------------------------------------------------------------

#[test]
fn an_unfinished_message_ends_the_connection_after_two_seconds() {
    let _alone = alone();
    let daemon = Daemon::start(&TCP_AND_UNIX);
    for address in daemon.addresses() {
        let mut peer = Peer::connect(&address);
        peer.exchange("a");
        let start = now();
        peer.send("b\thalf a mess");
        // What came before does not wait for it.
        peer.expect("server got:b\t");
        check_final_reply(&mut peer, start, TWO_SECONDS, "server error:message not finished within 2s\t");
    }
    daemon.wait_for_log_times("read-deadline", 2);
    daemon.stop();
}

#[test]
fn a_message_that_trickles_in_ends_the_connection_after_two_seconds() {
    let _alone = alone();
    let daemon = Daemon::start(&TCP_AND_UNIX);
    for address in daemon.addresses() {
        let mut peer = Peer::connect(&address);
        let start = now();
        peer.send("b");
        while_sending(&mut peer, b"b", HALF_A_SECOND, |peer| {
            check_final_reply(peer, start, TWO_SECONDS, "server error:message not finished within 2s\t");
        });
    }
    daemon.stop();
}

#[test]
fn a_client_that_is_silent_between_messages_or_sends_only_a_newline_is_not_closed() {
    let _alone = alone();
    let daemon = Daemon::start(&TCP);
    let [mut fresh, mut calm, mut person] = [daemon.connect(), daemon.connect(), daemon.connect()];
    calm.exchange("a");
    // A person types aaaa, TAB, Enter.
    person.send("aaaa\t\n");
    person.expect("server got:aaaa\t");
    fresh.expect_silence(Duration::from_millis(2500));
    fresh.exchange("b");
    calm.exchange("b");
    person.send("bbbb\t\r\n");
    person.expect("server got:\nbbbb\t");
    person.shutdown();
    person.expect_close();
    daemon.stop();
}

#[test]
fn a_client_that_sends_nothing_is_closed_at_the_idle_deadline() {
    let _alone = alone();
    let daemon = Daemon::start_with("[defaults.deadlines]\nidle = '300ms'\n", &TCP_AND_UNIX);
    let (idle, final_reply) = (Duration::from_millis(300), "server error:no message within 300ms\t");
    for address in daemon.addresses() {
        let start = now();
        let mut fresh = Peer::connect(&address);
        check_final_reply(&mut fresh, start, idle, final_reply);
        let mut calm = Peer::connect(&address);
        let start = now();
        calm.exchange("a");
        check_final_reply(&mut calm, start, idle, final_reply);
    }
    daemon.stop();
}

#[test]
fn every_message_resets_the_idle_deadline() {
    let _alone = alone();
    let daemon = Daemon::start_with("[defaults.deadlines]\nidle = '2s'\n", &TCP);
    let mut peer = daemon.connect();
    for _ in 0..3 {
        peer.exchange("a");
        peer.expect_silence(Duration::from_secs(1));
    }
    let start = now();
    peer.exchange("b");
    check_final_reply(&mut peer, start, TWO_SECONDS, "server error:no message within 2s\t");
    daemon.stop();
}

#[test]
fn nothing_extends_the_lifetime_of_a_connection() {
    let _alone = alone();
    let daemon = Daemon::start_with("[defaults.deadlines]\nlifetime = '1000ms'\n", &TCP);
    let (lifetime, final_reply) = (Duration::from_secs(1), "server error:connection older than 1000ms\t");
    let start = now();
    let mut silent = daemon.connect();
    check_final_reply(&mut silent, start, lifetime, final_reply);

    let start = now();
    let mut busy = daemon.connect();
    busy.send("half a mess");
    while_sending(&mut busy, b".", Duration::from_millis(100), |busy| {
        check_final_reply(busy, start, lifetime, final_reply)
    });

    let start = now();
    let mut calm = daemon.connect();
    while_sending(&mut calm, b"a\t", Duration::from_millis(100), |calm| {
        let took = calm.time_until_close(start);
        let replies = calm.read_to_end();
        let replies = replies.strip_suffix(final_reply.as_bytes()).expect("it ends with the reason");
        assert_eq!(replies, b"server got:a\t".repeat(replies.len() / 13));
        assert!(took >= lifetime && took < lifetime + HALF_A_SECOND, "{took:?}");
    });
    daemon.stop();
}

#[test]
fn what_came_in_time_is_answered_though_the_daemon_was_stopped_until_after_the_deadline() {
    let _alone = alone();
    const DEADLINE: Duration = Duration::from_secs(3);
    let config = "[defaults.deadlines]\nidle = '3s'\nread = '3s'\n";
    let daemon =
        Daemon::start_with(config, &["--listen", "127.0.0.1:0", "--listen", "DIR/s", "--listen", "seqpacket:DIR/p"]);
    let addresses = daemon.addresses();
    let streams = || [0, 1].map(|at| Peer::connect(&addresses[at]));
    let ([mut idle_streams, mut begun_streams, mut late_streams], packets) =
        ([streams(), streams(), streams()], PacketPeer::connect(&addresses[2]));
    for peer in idle_streams.iter_mut().chain(&mut begun_streams).chain(&mut late_streams) {
        peer.exchange("a");
    }
    packets.exchange("a");
    for peer in begun_streams.iter_mut().chain(&mut late_streams) {
        // It has read the half, since it came together with this.
        peer.send("b\tha");
        peer.expect("server got:b\t");
    }
    stop_process(&daemon);
    let stopped = now();
    idle_streams.iter_mut().for_each(|peer| peer.send("c\t"));
    begun_streams.iter_mut().for_each(|peer| peer.send("lf\t"));
    packets.send("c");
    thread::sleep((stopped + DEADLINE + HALF_A_SECOND).saturating_duration_since(now()));
    daemon.signal(Signal::CONT);
    idle_streams.iter_mut().for_each(|peer| peer.expect("server got:c\t"));
    begun_streams.iter_mut().for_each(|peer| peer.expect("server got:half\t"));
    packets.expect("server got:c");
    late_streams.iter_mut().for_each(|peer| peer.expect("server error:message not finished within 3s\t"));
    daemon.stop();
}

/// Stops all threads of the daemon (SIGSTOP).
fn stop_process(daemon: &Daemon) {
    daemon.signal(Signal::STOP);
    let tasks = || fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
    let is_stopped = |task: io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(task.expect("it can be read").path().join("stat"));
        stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
    };
    wait_until("the daemon is stopped", || tasks().all(is_stopped));
}

#[test]
fn input_that_came_during_a_delay_does_not_reset_a_connection_that_ends_meanwhile() {
    let _alone = alone();
    let config = "[log]\nlevel = 'debug'\n[service]\nworkers = 1\n[defaults]\nreply_delay = '1h'\nerror_replies = false\n\
                  [defaults.deadlines]\nlifetime = '1s'\n";
    let daemon = Daemon::start_with(config, &TCP_AND_UNIX);
    for (number, address) in daemon.addresses().iter().enumerate() {
        let mut peer = Peer::connect(address);
        peer.exchange("a");
        peer.send("b\t");
        daemon.wait_for_log_times("ended: lifetime", 2 * number + 1);
        // Its worker has closed it by now.
        daemon.connect().exchange("a");
        daemon.wait_for_log_times("ended: ", 2 * number + 2);
        // It has lingered, and so dropped what came.
        assert_eq!(socket_error(peer.fd()), Ok(Ok(())), "{address}");
        peer.expect_close();
    }
    daemon.stop();
}

// --- Clients that do not read ------------------------------------------------------------------------------------------

#[test]
fn a_client_that_never_reads_is_closed_at_the_write_deadline_and_uses_little_memory() {
    let _alone = alone();
    let daemon = Daemon::start_with("[defaults.deadlines]\nwrite = '500ms'\n", &TCP_AND_UNIX);
    let mut peers: Vec<_> = daemon.addresses().iter().cycle().take(8).map(|address| Peer::connect(address)).collect();
    for peer in &mut peers {
        peer.exchange("a");
    }
    let before = daemon.status_number("VmRSS");
    thread::scope(|scope| {
        for peer in &peers {
            scope.spawn(|| {
                // Each byte becomes twelve.
                let (chunk, mut stream) = ([b'\t'; 65536], peer.stream());
                let (start, mut last, mut sent) = (now(), now(), 0);
                while let Ok(count) = stream.write(&chunk) {
                    (sent, last) = (sent + count, now());
                    assert!(sent < 64 << 20, "{sent} bytes were taken in {:?}", start.elapsed());
                }
                assert!(start.elapsed() >= HALF_A_SECOND, "{:?}", start.elapsed());
                assert!(last.elapsed() < Duration::from_secs(5), "{:?}", last.elapsed());
            });
        }
    });
    daemon.wait_for_log_times("ended: write-deadline", 8);
    // A connection keeps no more than what one read leaves, and 64 KiB of replies.
    let grown = daemon.status_number("VmHWM").saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} kB more than the {before} kB before");
    daemon.connect().exchange("still there");
    daemon.stop();
}

#[test]
fn the_final_reply_arrives_although_the_client_is_still_sending() {
    let _alone = alone();
    let daemon = Daemon::start(&TCP_AND_UNIX);
    for address in daemon.addresses() {
        // Up to 1 MiB is taken and dropped, and the stream ends properly. Beyond that the connection breaks, but not
        // before the final reply has arrived.
        for (sent, ends_properly) in [(900 * 1024, true), (16 << 20, false)] {
            let mut peer = Peer::connect(&address);
            let mut stream = peer.stream();
            thread::scope(|scope| {
                let writer = scope.spawn(move || stream.write_all(&vec![b'x'; sent]));
                if ends_properly {
                    peer.time_until_close(now());
                }
                let final_reply = peer.read_to_end();
                assert_eq!(final_reply.escape_ascii().to_string(), "server error:message exceeds 65536 bytes\\t");
                let written = writer.join().expect("it does not panic");
                assert_eq!(written.is_ok(), ends_properly, "{written:?}");
            });
        }
    }
    daemon.stop();
}

// --- The end of the daemon ---------------------------------------------------------------------------------------------

/// Sends numbered messages until nothing more is taken for a while, and reads none of the replies.
fn send_until_blocked(peer: &mut Peer) {
    let messages: String = (0..1_000_000).map(|number| format!("{number}\t")).collect();
    let mut rest = messages.as_bytes();
    loop {
        let sent = peer.send_what_fits(rest);
        rest = &rest[sent..];
        let a_while = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
        if rest.is_empty()
            || poll(&mut [PollFd::new(&peer.fd(), PollFlags::OUT)], Some(&a_while)).expect("it is open") == 0
        {
            return;
        }
    }
}

/// Reads to the proper end, with a delay after each thousand replies, and checks that all are whole and in order.
/// Returns how many.
fn count_replies(peer: &mut Peer, delay: Duration) -> usize {
    for number in 0.. {
        let reply = peer.next_reply();
        if reply.is_empty() {
            return number;
        }
        assert_eq!(reply.escape_ascii().to_string(), format!("server got:{number}\\t"));
        if number % 1000 == 999 {
            thread::sleep(delay);
        }
    }
    unreachable!("streams are not endless");
}

/// Stops a daemon that owes its clients many replies. The clients then read with this delay.
fn check_drain(signal: Signal, name: &str, delay: Duration) {
    let config = "[service]\ndrain_timeout = '1min'\n[defaults.deadlines]\nwrite = '1min'\n";
    let mut daemon = Daemon::start_with(config, &TCP_AND_UNIX);
    let [mut tcp, mut unix] = [0, 1].map(|at| Peer::connect(&daemon.addresses()[at]));
    // So that much stays on the daemon's side until it is read.
    set_socket_recv_buffer_size(tcp.fd(), 32 * 1024).expect("it can be set");
    let mut calm = daemon.connect();
    calm.exchange("a");
    send_until_blocked(&mut tcp);
    send_until_blocked(&mut unix);
    daemon.signal(signal);
    daemon.wait_for_log(&format!("stopping: {name}"));
    // A connection that is owed nothing is closed at once, and no other is accepted.
    calm.expect_close();
    assert!(Peer::try_connect(&daemon.addresses()[0]).is_err());
    drop(calm);
    let (over_tcp, over_unix) = thread::scope(|scope| {
        let reading = scope.spawn(|| count_replies(&mut tcp, delay));
        let over_unix = count_replies(&mut unix, delay);
        (reading.join().expect("it reads well"), over_unix)
    });
    assert!(over_tcp > 10_000 && over_unix > 1000, "{over_tcp} and {over_unix} is not much");
    drop((tcp, unix));
    let status = daemon.wait();
    // All that was read was answered.
    let messages = over_tcp + over_unix + 1;
    let last = format!("info: stopped: 3 connections finished, 0 cut; {messages} messages, 3 connections in all");
    assert_eq!((status.code(), daemon.log().pop()), (Some(0), Some(last)));
}

#[test]
fn a_client_that_reads_gets_all_pending_replies_before_the_daemon_exits() {
    let _alone = alone();
    check_drain(Signal::TERM, "SIGTERM", Duration::ZERO);
    check_drain(Signal::INT, "SIGINT", Duration::ZERO);
}

#[test]
fn a_client_that_reads_slowly_gets_all_pending_replies_before_the_daemon_exits() {
    let _alone = alone();
    check_drain(Signal::TERM, "SIGTERM", Duration::from_millis(5));
}

#[test]
fn a_client_without_pending_replies_does_not_delay_the_exit() {
    let _alone = alone();
    let mut daemon = Daemon::start_with("[service]\ndrain_timeout = '1h'\n", &TCP);
    let mut calm = daemon.connect();
    calm.exchange("a");
    let start = now();
    daemon.signal(Signal::TERM);
    calm.expect_close();
    let status = daemon.wait();
    // What may still come is taken for a second.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let last = "info: stopped: 1 connections finished, 0 cut; 1 messages, 1 connections in all".to_owned();
    assert_eq!((status.code(), daemon.log().pop()), (Some(0), Some(last)));
    drop(calm);
}

#[test]
fn a_client_that_does_not_read_is_cut_at_the_drain_timeout() {
    let _alone = alone();
    let config = "[service]\ndrain_timeout = '500ms'\n[defaults.deadlines]\nwrite = '1min'\n";
    let mut daemon = Daemon::start_with(config, &TCP);
    let [mut calm, mut non_reading] = [daemon.connect(), daemon.connect()];
    calm.exchange("a");
    send_until_blocked(&mut non_reading);
    let start = now();
    daemon.signal(Signal::TERM);
    calm.expect_close();
    drop(calm);
    let status = daemon.wait();
    let took = start.elapsed();
    assert!(took >= HALF_A_SECOND && took < 3 * HALF_A_SECOND, "{took:?}");
    let last = daemon.log().pop().unwrap();
    assert!(last.starts_with("info: stopped: 1 connections finished, 1 cut; "), "{last}");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn without_a_drain_timeout_a_client_that_does_not_read_is_cut_at_once() {
    let _alone = alone();
    let mut daemon = Daemon::start_with("[service]\ndrain_timeout = '0s'\n", &TCP);
    let mut non_reading = daemon.connect();
    send_until_blocked(&mut non_reading);
    let start = now();
    daemon.signal(Signal::TERM);
    let status = daemon.wait();
    assert!(start.elapsed() < TWO_SECONDS, "{:?}", start.elapsed());
    let last = daemon.log().pop().unwrap();
    assert!(last.starts_with("info: stopped: 0 connections finished, 1 cut; "), "{last}");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_second_signal_cuts_all_connections_at_once() {
    let _alone = alone();
    let config = "[service]\ndrain_timeout = '1h'\n[defaults.deadlines]\nwrite = 'off'\n";
    for (first, second, name) in [
        (Signal::TERM, Signal::TERM, "SIGTERM"),
        (Signal::INT, Signal::TERM, "SIGTERM"),
        (Signal::TERM, Signal::INT, "SIGINT"),
    ] {
        let mut daemon = Daemon::start_with(config, &TCP);
        let mut non_reading = daemon.connect();
        send_until_blocked(&mut non_reading);
        daemon.signal(first);
        daemon.wait_for_log("stopping");
        daemon.signal(second);
        let start = now();
        let status = daemon.wait();
        assert!(start.elapsed() < TWO_SECONDS, "{:?}", start.elapsed());
        let log = daemon.log();
        assert_eq!(log[log.len() - 2], format!("info: drain aborted: {name}"));
        assert!(log[log.len() - 1].starts_with("info: stopped: 0 connections finished, 1 cut; "), "{log:#?}");
        assert_eq!(status.code(), Some(0));
    }
}
