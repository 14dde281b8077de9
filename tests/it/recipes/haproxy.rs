//! HAProxy before two daemons, of which one leaves and comes back.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use super::{Program, file_block, unused_address};
use crate::control::{SECTION, list};
use common::echoctl::{command, echoctl};
use common::{Daemon, Peer, program_or_skip, wait_until};

const SECTIONS: &str = "[listener.agent]\nrole = 'agent'\n[defaults]\nproxy_protocol = 'required'\n";

/// One of the machines: addresses of 127.0.0.0/8 stand for them.
struct Machine {
    daemon: Daemon,
    control: String,
}

impl Machine {
    fn start(address: &str, port: &str, agent_port: &str) -> Self {
        let control = tempfile::tempdir().expect("a directory can be made").keep().join("io.echoed");
        let control = control.to_str().expect("it is UTF-8").to_owned();
        let listen =
            [format!("{address}:{port}"), format!("agent={address}:{agent_port}"), format!("control=unix:{control}")];
        let arguments: Vec<_> = listen.iter().flat_map(|listen| ["--listen", listen]).collect();
        let daemon = Daemon::start_with(&[SECTION, SECTIONS].concat(), &arguments);
        daemon.wait_for_log("(control)");
        Self { daemon, control }
    }

    fn control(&self, command: &str) {
        echoctl(&[command, "--socket", &self.control]).check(0);
    }

    /// How many connections of clients it has: those of health checks end at once.
    fn sessions(&self) -> usize {
        list(&self.control, Some("echo")).iter().filter(|one| one["messages"].as_u64() > Some(0)).count()
    }
}

/// Runs a command of HAProxy's administrator.
fn administrate(haproxy: &Program, command: &str) -> String {
    let path = haproxy.directory.path().join("stats");
    wait_until("HAProxy runs", || path.exists());
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream.write_all(format!("{command}\n").as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is text");
    answer
}

/// Returns the status of each server, its weight, and how many sessions it has had.
fn servers(haproxy: &Program) -> BTreeMap<String, (String, String, u64)> {
    let text = administrate(haproxy, "show stat");
    let mut lines = text.lines();
    let columns: Vec<_> = lines.next().expect("there are columns").split(',').collect();
    let column = |name: &str| columns.iter().position(|column| *column == name).expect("there is the column");
    let (status, weight, sessions) = (column("status"), column("weight"), column("stot"));
    let rows = lines.map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let servers = rows.filter(|cells| cells[0] == "echoed" && cells[1] != "BACKEND");
    let server = |cells: Vec<String>| {
        let sessions = cells[sessions].parse().expect("a number");
        (cells[1].clone(), (cells[status].clone(), cells[weight].clone(), sessions))
    };
    servers.map(server).collect()
}

fn wait_for(haproxy: &Program, name: &str, expected_status: &str, expected_weight: &str) {
    wait_until(&format!("{name} is {expected_status} with weight {expected_weight}"), || {
        let (status, weight, _) = &servers(haproxy)[name];
        status.starts_with(expected_status) && weight == expected_weight
    });
}

#[test]
fn a_machine_that_drains_gets_no_new_session_and_nothing_fails() {
    let Some(program) = program_or_skip("haproxy") else { return };
    let port = unused_address().replace("127.0.0.1:", "");
    let agent_port = unused_address().replace("127.0.0.1:", "");
    let [one, two] = ["127.0.0.1", "127.0.0.2"].map(|address| Machine::start(address, &port, &agent_port));
    let front = unused_address();
    let configuration = file_block("/etc/haproxy/haproxy.cfg")
        .replace("192.0.2.1:8085", &format!("127.0.0.1:{port}"))
        .replace("192.0.2.2:8085", &format!("127.0.0.2:{port}"))
        .replace("agent-port 9086", &format!("agent-port {agent_port}"))
        .replace("inter 1s", "inter 200ms");
    let configuration = format!(
        "global\n  stats socket DIRECTORY/stats level admin\n\
         defaults\n  mode tcp\n  timeout connect 20s\n  timeout client 60s\n  timeout server 60s\n\
         frontend front\n  bind {front}\n  default_backend echoed\n{configuration}"
    );
    let haproxy = Program::start(&program, &["-db", "-f", "DIRECTORY/haproxy.cfg"], &[("haproxy.cfg", &configuration)]);
    wait_for(&haproxy, "one", "UP", "100");
    wait_for(&haproxy, "two", "UP", "100");
    // Long connections, on both machines.
    let mut long: Vec<_> = (0..8).map(|_| Peer::connect(&front)).collect();
    long.iter_mut().for_each(|peer| peer.exchange("a"));
    assert_eq!((one.sessions(), two.sessions()), (4, 4));
    let load = {
        let front = front.clone();
        thread::spawn(move || {
            let arguments = ["bench", "--rate", "200/s", "--connections", "4", "--duration", "6s", "--json", &front];
            command(&arguments).output().expect("it runs")
        })
    };
    one.control("drain");
    wait_for(&haproxy, "one", "", "0");
    let before = servers(&haproxy)["one"].2;
    for _ in 0..6 {
        Peer::connect(&front).exchange("new");
    }
    assert_eq!(servers(&haproxy)["one"].2, before, "a new session went to the machine that drains");
    long.iter_mut().for_each(|peer| peer.exchange("as before"));
    one.control("resume");
    wait_for(&haproxy, "one", "UP", "100");
    for _ in 0..6 {
        Peer::connect(&front).exchange("new");
    }
    assert!(servers(&haproxy)["one"].2 > before, "the machine got no new session after it was back");
    // What the operator has set stays as it is.
    administrate(&haproxy, "set server echoed/one state maint");
    wait_for(&haproxy, "one", "MAINT", "100");
    one.control("drain");
    one.control("resume");
    thread::sleep(std::time::Duration::from_millis(600));
    wait_for(&haproxy, "one", "MAINT", "100");
    let output = load.join().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    long.iter_mut().for_each(|peer| peer.exchange("as before"));
    drop(long);
    one.daemon.stop();
    two.daemon.stop();
}

#[test]
fn a_server_that_does_not_answer_is_down() {
    let Some(program) = program_or_skip("haproxy") else { return };
    let port = unused_address().replace("127.0.0.1:", "");
    let agent_port = unused_address().replace("127.0.0.1:", "");
    let one = Machine::start("127.0.0.1", &port, &agent_port);
    let configuration = file_block("/etc/haproxy/haproxy.cfg")
        .replace("192.0.2.1:8085", &format!("127.0.0.1:{port}"))
        .replace("192.0.2.2:8085", &format!("127.0.0.2:{port}"))
        .replace("agent-port 9086", &format!("agent-port {agent_port}"))
        .replace("inter 1s", "inter 200ms");
    let configuration = format!(
        "global\n  stats socket DIRECTORY/stats level admin\ndefaults\n  mode tcp\n  timeout connect 20s\n  \
         timeout client 60s\n  timeout server 60s\n{configuration}"
    );
    let haproxy = Program::start(&program, &["-db", "-f", "DIRECTORY/haproxy.cfg"], &[("haproxy.cfg", &configuration)]);
    wait_for(&haproxy, "one", "UP", "100");
    wait_until("the other one is down", || servers(&haproxy)["two"].0.starts_with("DOWN"));
    one.daemon.stop();
    wait_until("both are down", || servers(&haproxy)["one"].0.starts_with("DOWN"));
}
