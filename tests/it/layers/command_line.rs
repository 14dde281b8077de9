//! The command line: the options that check and print, their exit codes and what they do not change.

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use echoed::config::Settings;
use rustix::pipe::PipeFlags;

use super::{Root, prefix_document};

/// Runs the daemon with these arguments, and no variables of ours but these.
fn echoed(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    command.args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("it can be started")
}

fn to_text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it is text")
}

#[test]
fn a_valid_configuration_is_checked_without_opening_a_socket() {
    let root = Root::new();
    let socket = root.path("run/socket");
    root.write("run/x", &format!("[listener.a]\nlisten = [\"unix:{}\", \"192.0.2.1:1\"]\n", socket.display()));
    let output = echoed(&["--check-config", "--config", &root.shown("run/x")], &[]);
    assert_eq!((output.status.code(), to_text(&output.stderr)), (Some(0), String::new()));
    let said = format!("The configuration is valid; these files were read:\n  {}\n", root.shown("run/x"));
    assert_eq!(to_text(&output.stdout), said);
    assert!(!socket.exists());
    let output = echoed(&["--check-config", "--config", "/dev/null"], &[]);
    assert_eq!(to_text(&output.stdout), "The configuration is valid; these files were read:\n  /dev/null\n");
}

#[test]
fn a_check_warns_about_whole_messages_that_the_journal_may_drop() {
    let root = Root::new();
    root.write("run/x", "[listener.lines]\nlog_messages = \"full\"\nmax_message = \"9MiB\"\n");
    let output = echoed(&["--check-config", "--config", &root.shown("run/x")], &[]);
    assert_eq!((output.status.code(), to_text(&output.stderr)), (Some(0), String::new()));
    let said = to_text(&output.stdout);
    let warning = said.lines().last().expect("there is one");
    assert!(warning.starts_with("warning: [listener.lines] logs messages of up to 9MiB "), "{said}");
}

#[test]
fn a_check_warns_about_variables_with_one_underscore_for_two() {
    let variables = [("ECHOED_LOG_LEVEL", "debug"), ("ECHOED_DEFAULTS_DEADLINES_READ", "1s"), ("ECHOED_OTHER", "1")];
    let output = echoed(&["--check-config", "--config", "/dev/null"], &variables);
    let said = to_text(&output.stdout);
    let warnings: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
    assert_eq!(warnings.len(), 2, "{said}");
    assert!(said.contains("the variable ECHOED_LOG_LEVEL is not read; write ECHOED_LOG__LEVEL if that"), "{said}");
    assert!(said.contains("write ECHOED_DEFAULTS__DEADLINES__READ if"), "{said}");
}

#[test]
fn an_invalid_configuration_exits_with_78_and_lists_its_errors() {
    let root = Root::new();
    root.write("run/x", "[log]\nlevel = \"loud\"\n");
    for option in ["--check-config", "--print-config", "--log-level=info"] {
        let output = echoed(&[option, "--config", &root.shown("run/x")], &[("ECHOED_LOG__COLOUR", "1")]);
        assert_eq!((output.status.code(), to_text(&output.stdout)), (Some(78), String::new()), "{option}");
        let said = to_text(&output.stderr);
        assert!(said.starts_with(&format!("{}:2:9: level: ", root.shown("run/x"))), "{said}");
        assert!(said.contains("\nECHOED_LOG__COLOUR: there is no key colour in [log]"), "{said}");
        assert_eq!(said.lines().count(), 8, "{said}");
    }
    let output = echoed(&["--check-config", "--config", "missing"], &[]);
    assert_eq!((output.status.code(), to_text(&output.stdout)), (Some(78), String::new()));
    assert!(
        to_text(&output.stderr).starts_with("missing: cannot be read: No such file"),
        "{}",
        to_text(&output.stderr)
    );
}

#[test]
fn options_that_check_or_print_exclude_each_other() {
    for options in [["--check-config", "--print-config"], ["--print-config", "--print-default-config"]] {
        let output = echoed(&options, &[]);
        assert_eq!((output.status.code(), to_text(&output.stdout)), (Some(2), String::new()));
        assert!(to_text(&output.stderr).contains("cannot be used with"), "{}", to_text(&output.stderr));
    }
}

#[test]
fn the_effective_settings_are_printed_with_their_origins() {
    let root = Root::new();
    root.write("run/x", &prefix_document("x"));
    let file = root.shown("run/x");
    let arguments = ["--print-config", "--config", &file, "--log-level", "debug", "--listen", "lines=@x"];
    let output = echoed(&arguments, &[("ECHOED_DEFAULTS__DEADLINES__IDLE", "off")]);
    assert_eq!((output.status.code(), to_text(&output.stderr)), (Some(0), String::new()));
    let printed = to_text(&output.stdout);
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
    assert_eq!(values(&to_text(&again.stdout)), values(&printed));
}

#[test]
fn the_defaults_are_printed_even_if_the_configuration_is_invalid() {
    let output = echoed(&["--print-default-config", "--config", "missing"], &[("ECHOED_LOG__LEVEL", "loud")]);
    assert_eq!((output.status.code(), to_text(&output.stderr)), (Some(0), String::new()));
    assert_eq!(to_text(&output.stdout), Settings::print_default());
    assert_eq!(Settings::from_toml("printed", &to_text(&output.stdout)).unwrap(), Settings::default());
}

#[test]
fn a_variable_overrides_the_file_in_the_running_daemon() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    command.env("ECHOED_DEFAULTS__PREFIX", "variable:");
    let daemon = common::Daemon::spawn_with(&mut command, &prefix_document("file:"), &["--listen", "DIR/socket"]);
    daemon.wait_for_log("listening on");
    let mut peer = daemon.connect();
    peer.send("a\t");
    peer.expect("variable:a\t");
    daemon.stop();
}

/// Where nothing can be written: a full device, and a pipe without a reader.
fn unwritable() -> [Stdio; 2] {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("there are pipes");
    drop(reader);
    [OpenOptions::new().write(true).open("/dev/full").expect("there is one").into(), writer.into()]
}

#[test]
fn the_exit_code_is_the_same_if_stderr_cannot_be_written() {
    let root = Root::new();
    root.write("run/x", "[log]\nlevel = \"loud\"\n");
    let config = root.shown("run/x");
    let programs = [env!("CARGO_BIN_EXE_echoed"), env!("CARGO_BIN_EXE_echoctl")];
    for (program, arguments, code) in [
        (0, &["--config", &config][..], 78),
        (0, &["--check-config", "--config", &config], 78),
        (0, &["--config", "/dev/null", "--listen", "192.0.2.1:1"], 71),
        (0, &["--no-such-option"], 2),
        (1, &["--no-such-option"], 2),
        (1, &["send", "--no-such-option"], 2),
        (1, &["send", "--to", "unix:/no such directory/x", "a"], 2),
    ] {
        for stderr in unwritable() {
            let mut command = Command::new(programs[program]);
            command.args(arguments).env_clear().stdin(Stdio::null()).stderr(stderr);
            let status = command.status().expect("it can be started");
            assert_eq!(status.code(), Some(code), "{arguments:?}: {status}");
        }
    }
}

#[test]
fn failed_output_exits_with_1_unless_the_reader_is_gone() {
    for (program, options) in [
        (env!("CARGO_BIN_EXE_echoed"), &["--help", "--version", "--print-config", "--print-default-config"][..]),
        (env!("CARGO_BIN_EXE_echoed"), &["--check-config"]),
        (env!("CARGO_BIN_EXE_echoctl"), &["--help", "--version"]),
    ] {
        for option in options {
            for (stdout, code) in unwritable().into_iter().zip([1, 0]) {
                let mut command = Command::new(program);
                let output = command.arg(option).env_clear().stdout(stdout).output().expect("it can be started");
                assert_eq!(output.status.code(), Some(code), "{program} {option}");
                let said = to_text(&output.stderr);
                assert_eq!(said.contains("No space left on device"), code == 1, "{program} {option}: {said}");
            }
        }
    }
}
