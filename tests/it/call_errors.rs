//! Calls that fail on the way of one connection or packet: each error of the call's manual page, and EINTR. Other
//! clients are served meanwhile and afterwards, nothing spins, no reply is wrong, and the log says what failed. After
//! EINTR and EAGAIN nothing is lost.
//!
//! Which calls there are is found out each time: strace traces a run without errors, and each call in it must have its
//! errors in the table. Then strace makes one of them fail in each further run. (Calls of listeners, which every client
//! needs, are in `listener_errors.rs`.)

mod handover;
mod run;
mod table;

use std::sync::Mutex;
use std::thread;

use common::strace::Call;
use nix::errno::Errno;
use run::{Kind, Run};

/// How many daemons of a test run at once.
const PARALLEL: usize = 4;

/// How often a row is tried: the call that fails is found by counting, and timing may change the count.
const ATTEMPTS: usize = 10;

/// How many calls more than without errors show that something spins.
const MAX_EXTRA_CALLS: usize = 500;

/// Runs `check` on each row, several at a time.
fn for_each_row<T: Send>(rows: Vec<T>, check: impl Fn(&T) + Sync) {
    let rows = Mutex::new(rows);
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let Some(row) = rows.lock().expect("no thread panics here").pop() else { break };
                    check(&row);
                }
            });
        }
    });
}

/// Returns the calls on the way of the client under test that are to fail, each with its errors.
fn rows(kind: Kind, baseline: &Run) -> Vec<(Call, Errno)> {
    let mut rows = Vec::new();
    for call in baseline.chosen_calls() {
        let errors =
            table::errors(kind, call).unwrap_or_else(|| panic!("{kind:?}: no row for {}({}", call.name, call.text));
        rows.extend(errors.into_iter().map(|errno| (call.clone(), errno)));
    }
    rows
}

/// Whether an error of a connected socket says what its peer or the network did.
fn is_from_peer(errno: Errno) -> bool {
    use Errno::*;
    matches!(errno, ECONNRESET | EPIPE | ETIMEDOUT | ECONNREFUSED | ENOTCONN | EHOSTUNREACH | ENETUNREACH)
}

/// Checks what became of the client under test, and what the log says about it.
fn check_subject(kind: Kind, errno: Errno, run: &Run) -> Result<(), String> {
    if !kind.is_possible(&run.received) {
        return Err("wrong reply".to_owned());
    }
    if kind.is_complete(&run.received) {
        return Ok(());
    }
    // A datagram does not wait for room.
    if errno == Errno::EINTR || errno == Errno::EAGAIN && !kind.is_datagram() {
        return Err("a reply is lost".to_owned());
    }
    let said = |text: &str| run.log.iter().any(|line| line.contains(text));
    let says_error = said(&format!("(os error {})", errno as i32));
    if kind == Kind::Seqpacket && errno == Errno::EMSGSIZE && said("ended: too-long") {
        return Ok(());
    }
    let is_said = if kind.is_datagram() {
        let cause = match errno {
            Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => "no-room",
            Errno::EMSGSIZE => "reply-too-long",
            _ => "",
        };
        said(&format!("1 datagram dropped on echo: {cause}"))
    } else {
        says_error || is_from_peer(errno) && said("ended: peer-reset")
    };
    if is_said { Ok(()) } else { Err("the log does not say what failed".to_owned()) }
}

/// Checks that each connection was reported when it was accepted and when it ended, and counted.
fn check_counts(log: &[String]) -> Result<(), String> {
    let connections = log.iter().filter(|line| line.starts_with("debug: connection "));
    let ended = log.iter().filter(|line| line.contains(" ended: ")).count();
    let opened = connections.filter(|line| !line.contains(" ended: ")).count();
    let counted = format!(", {opened} connections in all");
    let is_counted = log.iter().any(|line| line.contains(&counted));
    if opened == ended && is_counted {
        Ok(())
    } else {
        Err(format!("{opened} connections were reported when they were accepted, and {ended} when they ended"))
    }
}

/// Makes each call on the way of one client of this kind fail with each of its errors.
fn check_kind(kind: Kind) {
    check_calls(kind, &[], |_| true);
}

/// Makes each of those calls fail that `is_wanted` selects, while others fail as `always` says.
fn check_calls(kind: Kind, always: &[String], is_wanted: impl Fn(&Call) -> bool) {
    let Some(baseline) = run::run(kind, always) else { return };
    assert!(kind.is_complete(&baseline.received), "{:?}", baseline.received);
    let mut rows = rows(kind, &baseline);
    rows.retain(|(call, _)| is_wanted(call));
    assert!(!rows.is_empty(), "no such call");
    let failures = Mutex::new(Vec::new());
    for_each_row(rows, |(call, errno)| {
        if let Err(failure) = check_row(kind, always, call, *errno, &baseline) {
            let text = format!("{kind:?}: {errno:?} of {}({}: {failure}", call.name, call.text);
            failures.lock().expect("no thread panics here").push(text);
        }
    });
    let failures = failures.into_inner().expect("no thread panicked");
    assert!(failures.is_empty(), "{failures:#?}");
}

fn check_row(kind: Kind, always: &[String], call: &Call, errno: Errno, baseline: &Run) -> Result<(), String> {
    let inject = format!("{}:error={}:when={}", call.name, errno as i32, call.number);
    let inject = [always, &[inject]].concat();
    for _ in 0..ATTEMPTS {
        let inject = inject.clone();
        // Its panic is shown, and is a failure.
        let run = thread::spawn(move || run::run(kind, &inject).expect("strace works")).join();
        let run = run.map_err(|_| "panicked")?;
        if !run.hit(call) {
            continue;
        }
        let shown = |failure| format!("{failure}; received {:?}; log {:#?}", run.received, run.log);
        check_subject(kind, errno, &run).map_err(shown)?;
        // Without the log's own calls, its lines are complete.
        if call.name != "write" {
            check_counts(&run.log).map_err(shown)?;
        }
        if run.calls.len() > baseline.calls.len() + MAX_EXTRA_CALLS {
            return Err(format!("it spins: {} calls instead of {}", run.calls.len(), baseline.calls.len()));
        }
        return Ok(());
    }
    Err("not reached".to_owned())
}

#[test]
fn a_connection_that_cannot_wait_for_room_ends_and_harms_no_other() {
    let Some(baseline) = run::run(Kind::PatientTcp, &[]) else { return };
    let sent = baseline.chosen_calls().into_iter().find(|call| call.name == "sendto").expect("a reply was sent");
    let has_no_room = format!("sendto:error=EAGAIN:when={}", sent.number);
    check_calls(Kind::PatientTcp, &[has_no_room], |call| call.text.contains("EPOLL_CTL_MOD"));
}

#[test]
fn errors_of_calls_for_one_tcp_connection_harm_no_other() {
    check_kind(Kind::Tcp);
}

#[test]
fn errors_of_calls_for_one_unix_connection_harm_no_other() {
    check_kind(Kind::Unix);
}

#[test]
fn errors_of_calls_for_one_packet_connection_harm_no_other() {
    check_kind(Kind::Seqpacket);
}

#[test]
fn errors_of_calls_for_one_connection_with_a_proxy_header_harm_no_other() {
    check_kind(Kind::Proxy);
}

#[test]
fn errors_of_calls_for_one_udp_client_harm_no_other() {
    check_kind(Kind::Udp);
}

#[test]
fn errors_of_calls_for_one_client_of_unix_datagrams_harm_no_other() {
    check_kind(Kind::UnixDatagram);
}
