//! What echoctl prints, and what it does if the daemon is not there, or is none.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use super::{start, wait_for_states};
use common::echoctl::{Running, command, echoctl};
use common::program_or_skip;
use serde_json::json;
use tempfile::TempDir;

/// A server that sends these bytes to whatever is asked, for one connection. Returns its path, in a directory.
fn serve(bytes: impl Into<Vec<u8>>) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().join("io.echoed");
    let (listener, bytes) = (UnixListener::bind(&path).expect("the path is free"), bytes.into());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        let _ = stream.read(&mut [0; 1000]);
        // It may not want all of it.
        let _ = stream.write_all(&bytes);
    });
    let path = path.to_str().expect("it is UTF-8").to_owned();
    (directory, path)
}

#[test]
fn connections_are_a_table_with_a_line_for_each() {
    let (daemon, path) = start("");
    let mut peers = [daemon.connect(), daemon.connect()];
    peers[0].exchange("aaaa");
    peers[1].send("half");
    wait_for_states(&path, &["idle", "receiving"]);
    let output = echoctl(&["connections", "--listener", "echo", "--socket", &path]);
    let lines: Vec<_> = output.check(0).stdout.lines().collect();
    let [head, first, second, "", "2 connections"] = lines[..] else { panic!("{lines:#?}") };
    let head: Vec<_> = head.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    let names = ["ID", "LISTENER", "PEER", "AGE", "IDLE", "MESSAGES", "BYTES IN", "BYTES OUT", "STATE"];
    assert_eq!(head, names);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (first, second) = (words(first), words(second));
    assert_eq!((&*first[0], &*first[1], first.last().map(|word| &**word)), ("1", "echo", Some("idle")), "{first:?}");
    assert_eq!(first[first.len() - 4..first.len() - 1], ["1", "5", "16"], "{first:?}");
    assert_eq!((&*second[0], second.last().map(|word| &**word)), ("2", Some("receiving")), "{second:?}");
    drop(peers);
    wait_for_states(&path, &[]);
    assert_eq!(echoctl(&["connections", "--json", "--socket", &path]).check(0).stdout, "");
    daemon.stop();
}

#[test]
fn what_was_done_is_said_and_json_is_an_object() {
    let (daemon, path) = start("");
    for (command, said) in [
        ("drain", "draining: load balancers are told to send new clients elsewhere\n"),
        ("resume", "resumed: load balancers may send new clients again\n"),
    ] {
        assert_eq!(echoctl(&[command, "--socket", &path]).check(0).stdout, said);
        assert_eq!(echoctl(&[command, "--json", "--socket", &path]).check(0).json(), json!({}));
    }
    daemon.stop();
}

#[test]
fn who_may_not_open_the_socket_is_told_who_may() {
    let Some(setpriv) = program_or_skip("setpriv") else { return };
    if !rustix::process::geteuid().is_root() {
        return common::skip_test("another user takes root");
    }
    let (directory, path) = serve("");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    // Where the program is, another user may have no access.
    let program = directory.path().join("echoctl");
    fs::copy(common::program("echoctl"), &program).expect("it can be copied");
    let mut command = Command::new(setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(["status", "--socket", &path]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let error = format!(
        "echoctl: cannot connect to {path}: Permission denied (os error 13); only root may use it, unless SocketMode= of its \
         unit says otherwise"
    );
    Running::start(&mut command).wait().check_failure(2, &error);
}

#[test]
fn a_socket_without_a_listener_is_one_that_has_to_be_started() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().join("io.echoed");
    drop(UnixListener::bind(&path).expect("the path is free"));
    let path = path.to_str().expect("it is UTF-8");
    let hint = "is echoed-control.socket started (systemctl start echoed-control.socket)?";
    echoctl(&["drain", "--socket", path]).check_failure(2, hint);
}

#[test]
fn a_server_that_is_not_echoed_is_an_error_whatever_it_sends() {
    for (bytes, error) in [
        (Vec::new(), "the daemon ended the connection"),
        (b"server error:message not finished within 2s\t".to_vec(), "the daemon ended the connection"),
        (b"garbage\0".to_vec(), "what came is not a reply of Varlink: expected value"),
        (b"[1]\0".to_vec(), "what came is not a reply of Varlink: invalid"),
        (b"{\"error\":\"x.\\u001b[2J\xe2\x80\xae\"}\0".to_vec(), "refused the call: x."),
        (b"{\"error\":\"org.varlink.service.PermissionDenied\"}\0".to_vec(), "PermissionDenied"),
        (vec![b'x'; 20 * 1024 * 1024], "the reply is too long"),
    ] {
        let (_directory, path) = serve(bytes);
        let output = echoctl(&["status", "--socket", &path]);
        output.check_failure(1, error);
        assert!(!output.stderr.contains(['\x1b', '\u{202e}']), "{output:?}");
    }
}

/// Text of a daemon may be that of others.
#[test]
fn nothing_is_printed_that_a_terminal_obeys() {
    let hostile = "\u{1b}[2J\u{9b}2J\u{202e}";
    let connection = json!({"id": 1, "listener": hostile, "peer": hostile, "state": hostile});
    for options in [&["connections"][..], &["connections", "--json"]] {
        let reply = json!({"parameters": {"connections": [connection]}});
        let (_directory, path) = serve(format!("{reply}\0"));
        let output = echoctl(&[options, &["--socket", &path]].concat());
        output.check(0);
        assert!(!output.stdout.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{output:?}");
        assert!(output.stdout.contains("202e"), "{output:?}");
    }
    for options in [&["status"][..], &["status", "--json"]] {
        let reply = json!({"parameters": {"state": hostile, "listeners": {hostile: {"connections": 1}}}});
        let (_directory, path) = serve(format!("{reply}\0"));
        let output = echoctl(&[options, &["--socket", &path]].concat());
        output.check(0);
        assert!(!output.stdout.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{output:?}");
    }
}

/// A daemon of a later version may say more, one of an earlier version less.
#[test]
fn replies_of_other_versions_are_printed_as_far_as_they_are_known() {
    let reply = json!({"parameters": {"connections": [{"id": 7, "new": [1]}], "more": true}, "extra": 1});
    let (_directory, path) = serve(format!("{reply}\0"));
    let output = echoctl(&["connections", "--socket", &path]);
    assert!(output.check(0).stdout.contains("1 connection\n"), "{output:?}");
    let error = json!({"error": "org.varlink.service.MethodNotFound", "parameters": {"method": "io.echoed.Drain"}});
    let (_directory, path) = serve(format!("{error}\0"));
    let text = "the daemon does not know \"io.echoed.Drain\": it is of another version";
    echoctl(&["drain", "--socket", &path]).check_failure(1, text);
}

#[test]
fn a_reader_that_takes_only_the_head_is_no_error() {
    let (daemon, path) = start("");
    let _peers: Vec<_> = (0..300).map(|_| daemon.connect()).collect();
    common::wait_until("all are accepted", || super::list(&path, None).len() == 300);
    for options in [&[][..], &["--json"]] {
        let mut command = command(&[&["connections", "--socket", &path], options].concat());
        let mut child = command.spawn().expect("it starts");
        drop(child.stdout.take());
        assert!(child.wait().expect("it ends").success());
    }
    daemon.stop();
}

#[test]
fn an_invalid_id_is_a_mistake_on_the_command_line() {
    for id in ["x", "-1", "18446744073709551616", ""] {
        echoctl(&["close", "--", id]).check_failure(2, "invalid value");
    }
}
