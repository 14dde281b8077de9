//! The listeners that workers do not serve: what the monitor shows, and that it answers whatever clients do.

mod agent;
mod handover;
mod hostile;
pub(crate) mod http;
mod story;

use common::Daemon;
use http::get;

/// A daemon with a listener `echo`, and one with each of these roles, under its name: on TCP.
fn start(configuration: &str, roles: &[&str]) -> Daemon {
    let sections: String = roles.iter().map(|role| format!("[listener.{role}]\nrole = \"{role}\"\n")).collect();
    let listen: Vec<_> = roles.iter().map(|role| format!("{role}=127.0.0.1:0")).collect();
    let mut arguments = vec!["--listen", "127.0.0.1:0"];
    arguments.extend(listen.iter().flat_map(|listen| ["--listen", listen]));
    Daemon::start_with(&format!("{sections}{configuration}"), &arguments)
}

/// The address of a listener of this daemon.
fn address_of(daemon: &Daemon, name: &str) -> String {
    let line = daemon.wait_for_log(&format!("({name})"));
    let (_, rest) = line.split_once("listening on ").expect("it says so");
    rest.split(' ').next().expect("there is one").to_owned()
}

/// The value of a metric, by its name with its labels.
fn metric(text: &str, name: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(value.parse().expect("a value is a number"))
}

/// The metrics of a daemon.
fn metrics(daemon: &Daemon) -> String {
    let response = get(&address_of(daemon, "monitor"), "/metrics");
    assert_eq!(response.status, 200, "{response:?}");
    response.body
}

/// Waits until a metric has this value.
fn wait_for_metric(daemon: &Daemon, name: &str, value: f64) {
    let mut last = String::new();
    let until = common::now() + common::TEST_TIMEOUT;
    loop {
        let text = metrics(daemon);
        if metric(&text, name) == Some(value) {
            return;
        }
        assert!(common::now() < until, "{name} is not {value}:\n{last}");
        last = text;
    }
}

#[test]
fn roles_are_checked_at_the_start() {
    for (configuration, arguments, said) in [
        ("[listener.x]\nrole = \"monitor\"\nprefix = \"a\"\n", &["--listen", "x=127.0.0.1:0"][..], "has no prefix"),
        ("[listener.x]\nrole = \"monitor\"\ndeadlines.read = \"1s\"\n", &[], "has no deadlines"),
        ("[listener.x]\nrole = \"monitor\"\nweight = \"free\"\n", &[], "has no weight"),
        ("[listener.x]\nweight = \"free\"\n", &[], "a listener with role = \"messages\" has no weight"),
        ("[listener.x]\nrole = \"monitors\"\n", &[], "is monitor meant?"),
        ("[listener.x]\nrole = \"agent\"\nlisten = [\"udp:127.0.0.1:0\"]\n", &[], "takes tcp: and unix: addresses"),
        ("[defaults]\nrole = \"agent\"\n", &[], "role belongs in [listener.NAME]"),
        ("[listener.x]\nrole = \"monitor\"\n", &["--listen", "x=udp:127.0.0.1:0"], "it is not a stream"),
        ("[listener.x]\nrole = \"monitor\"\n", &["--listen", "x=seqpacket:DIR/socket"], "it is not a stream"),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_echoed"));
        let mut daemon = Daemon::spawn_with(&mut command, configuration, arguments);
        let status = daemon.wait();
        let log = daemon.log().join("\n");
        assert_eq!(status.code(), Some(78), "{configuration}: {log}");
        assert!(log.contains(said), "{configuration}: {log}");
    }
}

#[test]
fn listeners_of_messages_and_of_other_roles_are_served_side_by_side() {
    let daemon = start("", &["monitor", "agent"]);
    let mut peer = daemon.connect();
    peer.send(b"aaaa\t");
    peer.expect("server got:aaaa\t");
    assert_eq!(get(&address_of(&daemon, "monitor"), "/livez").status, 200);
    assert_eq!(agent::ask(&address_of(&daemon, "agent")), "up 100%\n");
    drop(peer);
    daemon.stop();
}

#[test]
fn a_process_without_such_listeners_has_no_thread_for_them() {
    let names = |daemon: &Daemon| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.expect("it is listed").path().join("comm")).unwrap_or_default()
        };
        tasks.map(name).collect::<Vec<_>>()
    };
    let without = start("", &[]);
    without.connect().exchange("aaaa");
    assert!(!names(&without).contains(&"services\n".to_owned()), "{:?}", names(&without));
    let with = start("", &["monitor"]);
    address_of(&with, "monitor");
    assert!(names(&with).contains(&"services\n".to_owned()), "{:?}", names(&with));
    for daemon in [without, with] {
        daemon.stop();
    }
}
