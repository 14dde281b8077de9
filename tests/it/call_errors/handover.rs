//! Calls that fail on the way of a handover: in the process that stores its connections, and in the one that restores
//! them. Both end or start as always, the log says truthfully what became of the connections, and after EINTR none is
//! lost.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::errno::Errno::*;
use rustix::process::Signal;

use super::for_each_row;
use common::service::{FdStore, Service};
use common::strace::{Call, Strace};
use common::{Peer, now};

/// What is traced: enough for both processes.
const TRACE: &str = "%network,memfd_create,write,read,lseek,fstat,statx,fcntl,ioctl,pipe2,poll,epoll_ctl";

/// How many connections are handed over.
const CONNECTIONS: usize = 24;

/// One worker, so that its calls can be counted.
const CONFIGURATION: &str = "[service]\nworkers = 1\n";

/// Which process of the two makes the call that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Storing,
    Restoring,
}

/// What became of a handover.
struct Handover {
    storing: (Vec<Call>, Vec<String>),
    restoring: (Vec<Call>, Vec<String>),
    /// The calls that failed as they were to, wherever in either process.
    failed: Vec<Call>,
    /// How many connections go on.
    survivors: usize,
}

/// Returns the errors that a call of this process is to fail with; `None` for a call that is not known here.
fn errors(process: Process, call: &Call) -> Option<&'static [Errno]> {
    let has = |text: &str| call.text.contains(text);
    Some(match &*call.name {
        "sendmsg" => &[
            EINTR,
            EACCES,
            EAGAIN,
            EBADF,
            ECONNREFUSED,
            EINVAL,
            EMSGSIZE,
            ENOBUFS,
            ENOMEM,
            ENOTCONN,
            EPERM,
            EPIPE,
            ETOOMANYREFS,
        ],
        "recvmsg" => &[EINTR, EBADF, ECONNREFUSED, EINVAL, ENOMEM, ENOTCONN, EMFILE, EPERM],
        "socketpair" | "pipe2" => &[EINTR, EMFILE, ENFILE, EINVAL, EFAULT],
        "memfd_create" => &[EINTR, EFAULT, EINVAL, EMFILE, ENFILE, ENOMEM, EPERM, EACCES],
        "write" if has("memfd") => &[EINTR, EAGAIN, EBADF, EDQUOT, EFBIG, EINVAL, EIO, ENOSPC, EPERM],
        "read" if has("memfd") => &[EINTR, EAGAIN, EBADF, EFAULT, EINVAL, EIO, EISDIR],
        "lseek" if has("memfd") => &[EINTR, EBADF, EINVAL, EOVERFLOW, ESPIPE],
        "fstat" | "statx" if has("memfd") => &[EINTR, EBADF, EFAULT, ENOMEM, EOVERFLOW],
        "fcntl" if has("_SEALS") => &[EINTR, EBADF, EBUSY, EINVAL, EPERM],
        "getsockopt" => &[EINTR, EBADF, EINVAL, ENOPROTOOPT],
        "setsockopt" => &[EINTR, EBADF, EINVAL, ENOPROTOOPT, ENOMEM, EPERM],
        "getpeername" => &[EINTR, EBADF, EINVAL, ENOBUFS, ENOTSOCK],
        "ioctl" if has("FIONBIO") => &[EINTR, EBADF, EFAULT, EINVAL, ENOTTY],
        "poll" if has("POLL") || has("events=0") => &[EINTR, EFAULT, EINVAL, ENOMEM],
        "epoll_ctl" if has("EPOLLPRI") => &[EINTR, EBADF, EEXIST, EINVAL, ENOMEM, ENOSPC, EPERM],
        "epoll_ctl" if process == Process::Storing => &[EBADF, ENOENT, EINVAL, ENOMEM],
        // A check of the standard library before each close, in test builds.
        "fcntl" if has("F_GETFD") => &[],
        // The log, what wakes a thread, and a signal.
        "write" | "read" | "sendto" => &[],
        // A signal, or a connection that is driven: `table.rs`.
        "recvfrom" => &[],
        _ => return None,
    })
}

/// Runs a handover, in which a call of one process fails. `None` if nothing can be traced here.
fn run(process: Process, inject: &[String]) -> Option<Handover> {
    let injected = |wanted| if wanted == process { inject } else { &[] };
    let (first, second) =
        (Strace::new(TRACE, injected(Process::Storing))?, Strace::new(TRACE, injected(Process::Restoring))?);
    let mut service = Service::start_on(&["tcp:echo"], FdStore::Enabled, CONFIGURATION);
    service.stop(Signal::INT);
    service.start_next_with(CONFIGURATION, |command| {
        command.env("TEST_WRAPPER", first.wrapper());
    });
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        // One after the other, so that they inherit their options: then the workers make few calls of the same name.
        let mut peer = service.connect();
        peer.send("one\tha");
        peer.expect("server got:one\t");
        peers.push(peer);
    }
    let begin = first.calls().len();
    let storing_log = service.stop(Signal::TERM);
    let storing = first.calls().split_off(begin);
    let start = now();
    service.start_next_with(CONFIGURATION, |command| {
        command.env("TEST_WRAPPER", second.wrapper());
    });
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    for peer in &mut peers {
        peer.send_what_fits(b"lf\t");
    }
    service.connect().exchange("new");
    let restoring_log = service.daemon.stop();
    // Not earlier: strace has a copy of each descriptor that the process was passed.
    let survives = |peer: &mut Peer| {
        let (mut stream, mut received) = (peer.stream(), Vec::new());
        let mut byte = [0];
        // Or to a reset: input that no process has read.
        while !received.ends_with(b"\t") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
            received.push(byte[0]);
        }
        assert!(received == b"server got:half\t" || received.is_empty(), "{}", received.escape_ascii());
        !received.is_empty()
    };
    let survivors = peers.iter_mut().map(survives).filter(|survives| *survives).count();
    let restoring: Vec<_> = second.calls();
    let is_failed = |call: &&Call| call.text.contains("(INJECTED)");
    let failed = storing.iter().chain(&restoring).filter(is_failed).cloned().collect();
    let begin = restoring.iter().position(|call| call.name == "recvmsg").unwrap_or_default();
    // Up to what belongs to the listener, which has to work.
    let is_listeners = |call: &Call| call.text.starts_with("3<");
    let end = begin + restoring[begin..].iter().position(is_listeners).unwrap_or(restoring.len() - begin);
    let restoring = restoring[begin..end].to_vec();
    Some(Handover { storing: (storing, storing_log), restoring: (restoring, restoring_log), failed, survivors })
}

fn calls_of(process: Process, handover: &Handover) -> &(Vec<Call>, Vec<String>) {
    if process == Process::Storing { &handover.storing } else { &handover.restoring }
}

/// How many connections the process that ended says it handed over, and cut.
fn said_outcomes(log: &[String]) -> Option<(usize, usize)> {
    let line = log.iter().find(|line| line.contains("stopped: "))?;
    let number = |after: &str| line.split(after).next()?.rsplit(' ').next()?.parse().ok();
    Some((number(" connections handed over")?, number(" cut")?))
}

fn check(process: Process, call: &Call, errno: Errno) -> Result<(), String> {
    let inject = [format!("{}:error={}:when={}", call.name, errno as i32, call.number)];
    let mut outcome = Err("not reached".to_owned());
    for _ in 0..5 {
        let inject = inject.clone();
        let handover = thread::spawn(move || run(process, &inject).expect("strace works")).join();
        let Ok(handover) = handover else {
            // Unless it is always so, another call failed: one that wakes a thread, which must not fail.
            outcome = Err("panicked".to_owned());
            continue;
        };
        let (_, log) = calls_of(process, &handover);
        if !handover.failed.iter().any(|one| one.name == call.name) {
            continue;
        }
        let survivors = handover.survivors;
        let fail = |text: &str| Err(format!("{text}; {survivors} go on; log {log:#?}"));
        if errno == EINTR && survivors < CONNECTIONS {
            return fail("connections are lost");
        }
        let outcomes = said_outcomes(&handover.storing.1);
        let Some((handed_over, cut)) = outcomes else { return fail("not said what became of them") };
        if handed_over + cut != CONNECTIONS {
            return fail("they are not all counted");
        }
        let is_named = || log.iter().any(|line| line.contains("this kernel has no SO_COOKIE"));
        if call.text.contains("SO_COOKIE") && errno == ENOPROTOOPT && !is_named() {
            return fail("the kernel is not named");
        }
        let says_error = log.iter().any(|line| line.contains(&format!("(os error {})", errno as i32)));
        let says_it =
            says_error || log.iter().any(|line| line.contains("cutting them: ") || line.contains("failed to restore"));
        if process == Process::Storing && handed_over != survivors {
            return fail("other ones are said to go on");
        }
        if survivors < CONNECTIONS && !says_it {
            return fail("the log does not say what failed");
        }
        return Ok(());
    }
    outcome
}

fn check_process(process: Process) {
    let Some(baseline) = run(process, &[]) else { return };
    assert_eq!(baseline.survivors, CONNECTIONS);
    let mut seen = HashSet::new();
    let (calls, _) = calls_of(process, &baseline);
    // Each kind of call once or twice: numbers in it do not matter.
    let shape = |call: &Call| -> String {
        let text: String = call.text.chars().filter(|one| !one.is_ascii_digit()).take(60).collect();
        format!("{}({text}", call.name)
    };
    // The last ones: strace counts in each thread, and only one makes so many.
    let rows: Vec<_> = calls
        .iter()
        .rev()
        .filter(|call| seen.insert(shape(call)))
        .flat_map(|call| {
            let errors = errors(process, call);
            let errors = errors.unwrap_or_else(|| panic!("{process:?}: no row for {}({}", call.name, call.text));
            errors.iter().map(|errno| (call.clone(), *errno))
        })
        .collect();
    let failures = Mutex::new(Vec::new());
    for_each_row(rows, |(call, errno)| {
        if let Err(failure) = check(process, call, *errno) {
            let text = format!("{process:?}: {errno:?} of {}({}: {failure}", call.name, call.text);
            failures.lock().expect("no thread panics here").push(text);
        }
    });
    let failures = failures.into_inner().expect("no thread panicked");
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn errors_of_calls_that_store_connections_cut_none_that_is_said_to_go_on() {
    check_process(Process::Storing);
}

#[test]
fn errors_of_calls_that_restore_connections_prevent_no_start() {
    check_process(Process::Restoring);
}
