//! Sockets for another process: `LISTEN_PID` is in the environment of everything that an activated service starts. And
//! sockets for whichever process it is, without `LISTEN_PID`.

use std::process::Command;

use super::refused::startup_error;
use super::{address_of, copy, spawn, tcp_listener};
use common::service_manager::activated_command;
use common::{Daemon, Peer, program_or_skip};

/// Checks that a daemon does not start, since the sockets are for `other_pid` (if that is known), and that it says so.
fn check_refused(daemon: Daemon, other_pid: Option<u32>) {
    let error = startup_error(daemon, 78);
    let other =
        other_pid.map_or("are for process ".to_owned(), |pid| format!("are for process {pid} (LISTEN_PID), not"));
    assert!(error.starts_with("echoed: the sockets (LISTEN_FDS=1) ") && error.contains(&other), "{error}");
    assert!(error.contains("put `exec` before echoed"), "{error}");
}

#[test]
fn sockets_for_another_process_are_refused_where_there_is_nothing_else_to_listen_on() {
    // systemd sets all of these. Names that do not fit are the other process's business.
    for names in [None, Some("echo"), Some(""), Some("echo:echo"), Some("handover")] {
        let mut command = activated_command("3<&0", vec![tcp_listener().into()], "echo");
        command.env("LISTEN_PID", "1").env_remove("LISTEN_FDNAMES").envs(names.map(|names| ("LISTEN_FDNAMES", names)));
        check_refused(spawn(command, "", &[]), Some(1));
    }
}

#[test]
fn the_error_names_both_processes() {
    let mut command = activated_command("3<&0", vec![tcp_listener().into()], "echo");
    command.env("LISTEN_PID", "1");
    let daemon = spawn(command, "", &[]);
    let own = format!("not for this process, {}: ", daemon.pid());
    let error = startup_error(daemon, 78);
    assert!(error.contains("process 1 ") && error.contains(&own), "{error}");
}

#[test]
fn sockets_for_another_process_are_left_alone_where_there_is_an_address_to_listen_on() {
    let listener = tcp_listener();
    let configuration = "[listener.echo]\nlisten = ['127.0.0.1:0']\n";
    for (variable, value) in [("LISTEN_PID", "1"), ("LISTEN_FDS", "0")] {
        for (configuration, arguments) in [(configuration, &[][..]), ("", &["--listen", "127.0.0.1:0"])] {
            let mut command = activated_command("3<&0", vec![copy(&listener)], "echo:one-more");
            command.env("LISTEN_FDS", "1").env(variable, value);
            let daemon = spawn(command, configuration, arguments);
            daemon.wait_for_log("listening on");
            daemon.connect().exchange("a");
            assert!(!daemon.addresses().contains(&format!("tcp:{}", address_of(&listener))));
            let log = daemon.stop();
            assert!(!log.iter().any(|line| line.contains("ignored")), "{log:#?}");
        }
    }
}

/// A wrapper that is between systemd and the daemon, as a command with spaces; the sockets are for the wrapper.
fn spawn_wrapped(wrapper: &str, arguments: &[&str]) -> Option<(Daemon, String)> {
    let (program, options) = wrapper.split_once(' ').unwrap_or((wrapper, ""));
    let program = program_or_skip(program)?;
    let listener = tcp_listener();
    let address = address_of(&listener);
    let mut command: Command = activated_command("3<&0", vec![listener.into()], "echo");
    command.env("TEST_WRAPPER", format!("{} {options}", program.display()));
    Some((spawn(command, "", arguments), address))
}

#[test]
fn the_daemon_under_a_wrapper_that_forks_is_refused_and_never_listens_elsewhere() {
    for wrapper in ["timeout 60", "tini -s --", "dumb-init --", "setsid --fork --wait"] {
        let Some((daemon, _)) = spawn_wrapped(wrapper, &[]) else { continue };
        let pid = daemon.pid();
        check_refused(daemon, Some(pid));
    }
    // A shell that has more to do afterwards.
    let script = "export LISTEN_PID=$$; \"$@\"; exit $?";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_echoed")]).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "echo");
    check_refused(Daemon::spawn_with(&mut shell, "", &[]), None);
}

#[test]
fn the_daemon_under_a_wrapper_that_only_executes_is_served() {
    for wrapper in ["env X=Y", "nice", "setpriv --no-new-privs"] {
        let Some((daemon, address)) = spawn_wrapped(wrapper, &[]) else { continue };
        Peer::connect(&address).exchange("a");
        daemon.wait_for_log("listening on");
        assert_eq!(daemon.addresses(), [format!("tcp:{address}")], "{wrapper}");
        daemon.stop();
    }
}

/// `systemfd --no-pid`, which knows no process number before it starts one.
#[test]
fn sockets_without_a_process_number_are_served() {
    for (pid, names, section) in [
        (None, None, "unknown"),
        (None, Some("echo"), "echo"),
        (Some(""), None, "unknown"),
        (None, Some(""), "unknown"),
    ] {
        let listener = tcp_listener();
        let address = address_of(&listener);
        let mut command = Command::new("sh");
        // LISTEN_PID is not set, unlike in activated_command.
        command.args(["-c", "exec 3<&0 </dev/null; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_echoed")]);
        command.stdin(std::os::fd::OwnedFd::from(listener)).env("LISTEN_FDS", "1");
        command.env_remove("LISTEN_PID").envs(pid.map(|pid| ("LISTEN_PID", pid)));
        command.env_remove("LISTEN_FDNAMES").envs(names.map(|names| ("LISTEN_FDNAMES", names)));
        let daemon = spawn(command, "", &[]);
        Peer::connect(&address).exchange("a");
        daemon.wait_for_log(&format!("listening on tcp:{address} ({section})"));
        daemon.stop();
    }
}
