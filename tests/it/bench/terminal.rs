//! What is seen on a terminal: the bar.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::thread;

use super::{bench, check_count, correct_server};
use common::echoctl::{ExpectJson, Output, Running, command};

/// Runs it with a terminal as its stderr, and returns what that has shown.
fn run_on_a_terminal(variable: &str, value: &str, arguments: &[&str]) -> (Output, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name").into_string().expect("it is text");
    let shown = std::fs::OpenOptions::new().read(true).write(true).open(name).expect("it can be opened");
    let mut command = command(arguments);
    command.stderr(OwnedFd::from(shown)).env("TERM", "xterm").env_remove("NO_COLOR").env(variable, value);
    let running = Running::start(&mut command);
    // Its other handle of the terminal goes with it.
    drop(command);
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let mut terminal = std::fs::File::from(terminal);
        let mut chunk = [0; 4096];
        // At the end it is an error.
        while let Ok(count @ 1..) = terminal.read(&mut chunk) {
            text.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8(text).expect("it is text")
    });
    let output = running.wait();
    (output, reader.join().expect("it is text"))
}

#[test]
fn progress_bar_is_shown_on_a_terminal_only_and_does_not_change_the_report() {
    let address = correct_server();
    let arguments = ["bench", "--json", "--count", "50", "--rate", "50/s", "--connections", "2", &address];
    let (output, bar) = run_on_a_terminal("UNUSED", "", &arguments);
    let with = output.check(0).json();
    let last = bar.rsplit("\r\x1b[K").find(|line| !line.is_empty()).unwrap_or_else(|| panic!("no bar: {bar:?}"));
    assert!(last.contains(" %") && last.contains(" answered") && last.contains("\x1b[32m="), "{bar:?}");
    assert!(bar.ends_with("\r\x1b[K"), "it is left behind: {bar:?}");

    let (output, bar) = run_on_a_terminal("NO_COLOR", "1", &arguments);
    output.check(0);
    assert!(bar.contains(" answered") && !bar.contains("\x1b[3"), "{bar:?}");
    let (output, bar) = run_on_a_terminal("TERM", "dumb", &arguments);
    output.check(0);
    assert_eq!(bar, "");

    let without = bench(0, &arguments[2..]);
    assert_eq!(with.keys(), without.keys());
    for json in [with, without] {
        check_count(&json, 50.0);
    }
}
