//! The same as a user sees it: the options that check and print, their exit codes and what they leave alone.

use std::process::{Command, Output, Stdio};

use echoed::config::Settings;

use crate::{Root, sets};

/// Runs the daemon with these arguments, and no variables of ours but these.
fn echoed(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    command.args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("it can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it is text")
}

#[test]
fn a_good_configuration_is_checked_without_opening_a_socket() {
    let root = Root::new();
    let socket = root.path("run/socket");
    root.write("run/x", &format!("[listener.a]\nlisten = [\"unix:{}\", \"192.0.2.1:1\"]\n", socket.display()));
    let output = echoed(&["--check-config", "--config", &root.shown("run/x")], &[]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let said = format!("The configuration is good; these files were read:\n  {}\n", root.shown("run/x"));
    assert_eq!(text(&output.stdout), said);
    assert!(!socket.exists());
    let output = echoed(&["--check-config", "--config", "/dev/null"], &[]);
    assert_eq!(text(&output.stdout), "The configuration is good; these files were read:\n  /dev/null\n");
}

#[test]
fn a_bad_configuration_ends_with_78_and_its_problems_whatever_was_to_be_done_with_it() {
    let root = Root::new();
    root.write("run/x", "[log]\nlevel = \"loud\"\n");
    for option in ["--check-config", "--print-config", "--log-level=info"] {
        let output = echoed(&[option, "--config", &root.shown("run/x")], &[("ECHOED_LOG__COLOUR", "1")]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(78), String::new()), "{option}");
        let said = text(&output.stderr);
        assert!(said.starts_with(&format!("{}:2:9: level: ", root.shown("run/x"))), "{said}");
        assert!(said.contains("\nECHOED_LOG__COLOUR: there is no key colour in [log]"), "{said}");
        assert_eq!(said.lines().count(), 8, "{said}");
    }
    let output = echoed(&["--check-config", "--config", "missing"], &[]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(78), String::new()));
    assert!(text(&output.stderr).starts_with("missing: cannot be read: No such file"), "{}", text(&output.stderr));
}

#[test]
fn of_the_options_that_do_something_instead_only_one_can_be_given() {
    for options in [["--check-config", "--print-config"], ["--print-config", "--print-default-config"]] {
        let output = echoed(&options, &[]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
        assert!(text(&output.stderr).contains("cannot be used with"), "{}", text(&output.stderr));
    }
}

#[test]
fn the_settings_that_hold_are_printed_with_their_origins() {
    let root = Root::new();
    root.write("run/x", &sets("x"));
    let file = root.shown("run/x");
    let arguments = ["--print-config", "--config", &file, "--log-level", "debug", "--listen", "lines=@x"];
    let output = echoed(&arguments, &[("ECHOED_DEFAULTS__DEADLINES__IDLE", "off")]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let printed = text(&output.stdout);
    for line in [
        "level = \"debug\"                 # --log-level".to_owned(),
        "workers = 0                     # default".to_owned(),
        format!("prefix = \"x\"                    # {file}:2"),
        "idle = \"off\"                    # ECHOED_DEFAULTS__DEADLINES__IDLE".to_owned(),
        "[listener.lines]".to_owned(),
        "listen = [\"unix:@x\"]            # --listen".to_owned(),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
    }
    // What was printed is a configuration.
    root.write("run/y", &printed);
    let again = echoed(&["--print-config", "--config", &root.shown("run/y")], &[]);
    let values =
        |text: &str| text.lines().map(|line| line.split(" # ").next().unwrap_or("").to_owned()).collect::<Vec<_>>();
    assert_eq!(values(&text(&again.stdout)), values(&printed));
}

#[test]
fn the_defaults_are_printed_even_where_the_configuration_is_bad() {
    let output = echoed(&["--print-default-config", "--config", "missing"], &[("ECHOED_LOG__LEVEL", "loud")]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert_eq!(text(&output.stdout), Settings::print_default());
    assert_eq!(Settings::from_toml("printed", &text(&output.stdout)).unwrap(), Settings::default());
}

#[test]
fn that_nobody_reads_what_is_printed_is_no_failure() {
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    let output =
        command.arg("--print-default-config").stdout(Stdio::from(std::os::fd::OwnedFd::from(writer))).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    let output = command.arg("--print-default-config").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert!(
        text(&output.stderr).starts_with("echoed: cannot write to stdout: No space left"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_variable_holds_where_the_daemon_serves() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    command.env("ECHOED_DEFAULTS__PREFIX", "variable:");
    let daemon = crate::common::Daemon::spawn_with(&mut command, &sets("file:"), &["--listen", "DIR/socket"]);
    daemon.wait_for_log("listening on");
    let mut peer = daemon.connect();
    peer.send("a\t");
    peer.expect("variable:a\t");
    daemon.stop();
}
