//! The agent-check of HAProxy.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{address_of, start};
use common::{Daemon, Peer, TEST_TIMEOUT, program_or_skip, wait_until};

/// The whole answer of an agent.
pub(crate) fn ask(address: &str) -> String {
    let mut stream = Peer::connect(address).into_stream();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("it is not zero");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is text, and ends");
    answer
}

#[test]
fn the_weight_is_how_many_places_are_free_if_that_is_wanted() {
    let daemon = start("weight = 'free'\n[limits]\nconnections = 4\nreclaim_idle = 'off'\n", &["agent"]);
    let address = address_of(&daemon, "agent");
    let mut peers = Vec::new();
    for expected in ["up 100%\n", "up 75%\n", "up 50%\n", "up 25%\n", "up 1%\n"] {
        assert_eq!(ask(&address), expected);
        if peers.len() < 4 {
            let mut peer = daemon.connect();
            peer.exchange("aaaa");
            peers.push(peer);
        }
    }
    daemon.stop();
}

#[test]
fn a_reload_changes_the_weight() {
    let daemon = start("[limits]\nconnections = 1\nreclaim_idle = 'off'\n", &["agent"]);
    let address = address_of(&daemon, "agent");
    let mut peer = daemon.connect();
    peer.exchange("aaaa");
    assert_eq!(ask(&address), "up 100%\n");
    let file = daemon.directory().join("echoed.toml");
    let text = "[listener.agent]\nrole = 'agent'\nweight = 'free'\n[limits]\nconnections = 1\n";
    fs::write(file, text).expect("it is ours");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("reloaded: ");
    assert_eq!(ask(&address), "up 1%\n");
    daemon.stop();
}

/// HAProxy sends a text first if it is told to (`agent-send`).
#[test]
fn a_line_that_is_sent_first_does_not_cost_the_answer() {
    let daemon = start("", &["agent"]);
    let address = address_of(&daemon, "agent");
    for _ in 0..20 {
        let mut stream = Peer::connect(&address).into_stream();
        stream.write_all(&[b'x'; 1000]).expect("it can be sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is not reset");
        assert_eq!(answer, "up 100%\n");
    }
    daemon.stop();
}

/// A running HAProxy that asks an agent, ended when it is dropped.
struct Haproxy {
    child: Child,
    directory: TempDir,
}

impl Haproxy {
    /// One with the server `echo`, if it is installed.
    fn start(daemon: &Daemon) -> Option<Self> {
        let program = program_or_skip("haproxy")?;
        let directory = tempfile::tempdir().expect("a directory can be made");
        let echo = daemon.addresses()[0].replace("tcp:", "");
        let agent = address_of(daemon, "agent").replace("tcp:127.0.0.1:", "");
        let configuration = format!(
            "global\n  stats socket {0}/stats level admin\n\
             defaults\n  mode tcp\n  timeout connect 20s\n  timeout client 30s\n  timeout server 30s\n\
             listen back\n  bind unix@{0}/front\n  \
             server echo {echo} weight 100 agent-check agent-port {agent} agent-inter 100ms\n",
            directory.path().display()
        );
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, configuration).expect("it can be written");
        let child = Command::new(program).arg("-db").arg("-f").arg(file).stdout(Stdio::null()).spawn();
        Some(Self { child: child.expect("it can be started"), directory })
    }

    /// Runs a command of its administrator.
    fn run(&self, command: &str) -> String {
        let path = self.directory.path().join("stats");
        wait_until("HAProxy runs", || path.exists());
        let mut stream = UnixStream::connect(path).expect("it listens");
        stream.write_all(format!("{command}\n").as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is text");
        answer
    }

    /// What it knows of the server: its status, its weight, and what it makes of the last answer.
    fn server(&self) -> [String; 3] {
        let text = self.run("show stat");
        let mut lines = text.lines();
        let columns: Vec<_> = lines.next().expect("there are columns").split(',').collect();
        let server = lines.find(|line| line.starts_with("back,echo,")).expect("there is the server");
        let cells: Vec<_> = server.split(',').collect();
        ["status", "weight", "agent_status"].map(|name| {
            let at = columns.iter().position(|column| *column == name).expect("there is the column");
            cells[at].to_owned()
        })
    }

    /// Waits until the last answer was good, and until the status begins like this and the weight is this.
    fn wait_for_server(&self, expected_status: &str, expected_weight: u32) {
        wait_until(&format!("{expected_status} {expected_weight}"), || {
            let [status, weight, agent_status] = self.server();
            status.starts_with(expected_status) && weight == expected_weight.to_string() && agent_status == "L7OK"
        });
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn haproxy_follows_the_agent_and_its_operator_is_left_alone() {
    let daemon = start("weight = 'free'\n[limits]\nconnections = 4\nreclaim_idle = 'off'\n", &["agent"]);
    let Some(haproxy) = Haproxy::start(&daemon) else { return };
    haproxy.wait_for_server("no check", 100);
    let mut peers = [daemon.connect(), daemon.connect(), daemon.connect()];
    peers.iter_mut().for_each(|peer| peer.exchange("aaaa"));
    haproxy.wait_for_server("no check", 25);
    haproxy.run("set server back/echo state drain");
    haproxy.wait_for_server("DRAIN", 25);
    drop(peers);
    // The agent goes on to be asked, and does not end what the operator has begun.
    haproxy.wait_for_server("DRAIN", 100);
    haproxy.run("set server back/echo state ready");
    haproxy.wait_for_server("no check", 100);
    daemon.stop();
}
