//! The sockets of the monitor, the agent and control: started, added to a running service, and refused to other users, as their
//! units are shipped.

use std::fs;

use common::machines::machine::{Machine, TCP, UNIX};
use common::{Peer, wait_until};

tests![
    only_the_administrator_enables_the_monitor_and_the_agent,
    the_first_scrape_starts_the_service_and_a_connection_to_the_monitor_keeps_it_running,
    sockets_are_added_by_a_restart_that_connections_live_through,
    sockets_are_added_between_a_stop_and_a_start_that_connections_live_through since 254,
    a_socket_cannot_be_added_while_the_service_runs,
    a_socket_that_fails_keeps_no_client_out,
    the_settings_of_the_administrator_go_before_those_of_the_sockets,
    control_starts_with_echoed_socket_and_is_for_root_only,
    echoed_starts_without_control_if_that_fails_or_is_masked,
    all_sockets_take_little_memory,
];

/// The sockets that the administrator enables.
const ADDED: &str = "echoed-monitor.socket echoed-agent.socket";

/// Has all sockets from the next start on.
fn enable(machine: &Machine) {
    machine.sh(&format!("systemctl enable --quiet {ADDED}"));
}

/// A page of the monitor, over TCP and over the Unix socket.
fn fetch(machine: &Machine, page: &str) -> String {
    let over = |option: &str| {
        machine.sh(&format!("curl --silent --show-error --fail --max-time 20 {option} http://127.0.0.1:9085{page}"))
    };
    over("--output /dev/null");
    over("--unix-socket /run/echoed/monitor")
}

/// What the agent says.
fn ask_agent(machine: &Machine) -> String {
    machine.sh("timeout 20 nc -N 127.0.0.1 9086 </dev/null")
}

/// The value of a metric, by its name and its labels.
fn metric(machine: &Machine, name: &str) -> String {
    let metrics = fetch(machine, "/metrics");
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in {metrics}")).to_owned()
}

fn only_the_administrator_enables_the_monitor_and_the_agent(machine: &Machine) {
    machine.sh("systemctl enable --quiet --now echoed.socket");
    machine.connect(TCP).exchange("aaaa");
    for unit in ADDED.split(' ') {
        assert_eq!(machine.property(unit, "UnitFileState"), "disabled");
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
    assert_ne!(machine.run("curl --silent http://127.0.0.1:9085/livez").code, Some(0));
    machine.sh("systemctl stop echoed.socket");
    enable(machine);
    machine.sh("systemctl start echoed.socket");
    assert_eq!(fetch(machine, "/readyz"), "ok\n");
    assert_eq!(ask_agent(machine), "up 100%\n");
    assert_eq!(machine.sh("stat --format=%A /run/echoed/monitor"), "srw-rw-rw-\n");
    let log = machine.sh("journalctl --sync; journalctl --quiet --identifier=echoed --priority=warning");
    assert_eq!(log, "", "each has its section");

    // They go with echoed.socket, and their files with them.
    machine.sh("systemctl stop echoed.socket");
    for unit in ADDED.split(' ') {
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
    assert_eq!(machine.sh("ls /run/echoed"), "");
}

fn the_first_scrape_starts_the_service_and_a_connection_to_the_monitor_keeps_it_running(machine: &Machine) {
    machine.configure("[service]\nidle_exit = '200ms'\n");
    enable(machine);
    machine.sh("systemctl start echoed.socket");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    let mut scraper = machine.connect("tcp:127.0.0.1:9085");
    let mut scrape = || {
        scraper.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        scraper.expect("HTTP/1.1 200 OK\r\n");
        while scraper.next_line() != "\r\n" {}
        scraper.expect("ok\n");
    };
    scrape();
    machine.wait_for_property("echoed.service", "ActiveState", "active");
    let process = machine.daemon_pid();
    // Five times as long as it would take to exit.
    std::thread::sleep(std::time::Duration::from_secs(1));
    scrape();
    assert_eq!(machine.daemon_pid(), process);
    drop(scraper);
    machine.wait_for_property("echoed.service", "ActiveState", "inactive");
    assert_eq!(machine.property("echoed.service", "Result"), "success");
}

/// A hundred clients, on both sockets: each has got a reply and is in the middle of a message.
struct Clients(Vec<Peer>);

impl Clients {
    fn connect(machine: &Machine) -> Self {
        let mut peers: Vec<_> = [TCP, UNIX].iter().cycle().take(100).map(|address| machine.connect(address)).collect();
        for peer in &mut peers {
            // Read together.
            peer.send("before\taf");
        }
        peers.iter_mut().for_each(|peer| peer.expect("server got:before\t"));
        Self(peers)
    }

    /// Each ends its message, and gets its reply.
    fn expect_alive(mut self) {
        for peer in &mut self.0 {
            peer.send("ter\t");
        }
        self.0.iter_mut().for_each(|peer| peer.expect("server got:after\t"));
    }
}

const PATIENT: &str = "[defaults.deadlines]\nread = '5min'\n";

fn sockets_are_added_by_a_restart_that_connections_live_through(machine: &Machine) {
    machine.configure(PATIENT);
    machine.sh("systemctl enable --quiet --now echoed.socket");
    let clients = Clients::connect(machine);
    enable(machine);
    machine.sh("systemctl restart echoed.service");
    expect_added(machine);
    clients.expect_alive();
}

/// That monitor and agent are there, beside a hundred connections that were there before.
fn expect_added(machine: &Machine) {
    assert_eq!(metric(machine, "echoed_connections{listener=\"echo\"}"), "100");
    assert_eq!(metric(machine, "echoed_connections_resumed_total{listener=\"echo\"}"), "100");
    assert_eq!(ask_agent(machine), "up 100%\n");
}

fn sockets_are_added_between_a_stop_and_a_start_that_connections_live_through(machine: &Machine) {
    machine.configure(PATIENT);
    machine.sh("install -D -m 644 -t /etc/systemd/system/echoed.service.d /usr/share/doc/echoed/examples/preserve.conf
        systemctl daemon-reload
        systemctl enable --quiet --now echoed.socket");
    let clients = Clients::connect(machine);
    machine.sh(&format!("systemctl stop echoed.service; systemctl start {ADDED}; systemctl start echoed.service"));
    expect_added(machine);
    clients.expect_alive();
}

fn a_socket_cannot_be_added_while_the_service_runs(machine: &Machine) {
    machine.sh("systemctl enable --quiet --now echoed.socket");
    let mut client = machine.connect(TCP);
    client.exchange("aaaa");
    assert_ne!(machine.run("systemctl start echoed-monitor.socket").code, Some(0));
    machine.wait_for_journal("--unit=echoed-monitor.socket --grep='already active, refusing'");
    client.exchange("bbbb");
}

fn a_socket_that_fails_keeps_no_client_out(machine: &Machine) {
    machine.configure(PATIENT);
    machine.sh("systemctl enable --quiet --now echoed.socket");
    machine.sh("systemd-run --quiet --unit=busy socat TCP-LISTEN:9085,bind=127.0.0.1,fork EXEC:cat");
    wait_until("the port is taken", || machine.run("ss -ltn 'sport = :9085' | grep -q LISTEN").code == Some(0));
    let clients = Clients::connect(machine);
    enable(machine);
    machine.sh("systemctl restart echoed.service");
    assert_eq!(machine.property("echoed-monitor.socket", "ActiveState"), "failed");
    assert_eq!(ask_agent(machine), "up 100%\n");
    clients.expect_alive();
    machine.sh("systemctl stop echoed.socket; systemctl start echoed.socket");
    machine.connect(TCP).exchange("aaaa");
}

fn the_settings_of_the_administrator_go_before_those_of_the_sockets(machine: &Machine) {
    machine.configure("[limits]\nconnections = 4\n[listener.agent]\nweight = 'free'\n");
    enable(machine);
    machine.sh("systemctl start echoed.socket");
    let mut client = machine.connect(TCP);
    client.exchange("aaaa");
    assert_eq!(ask_agent(machine), "up 75%\n");
}

fn control_starts_with_echoed_socket_and_is_for_root_only(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    assert_eq!(machine.property("echoed-control.socket", "ActiveState"), "active");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    assert_eq!(machine.sh("stat --format='%A %U' /run/echoed/io.echoed"), "srw------- root\n");
    // A call starts the service.
    assert!(machine.sh("echoctl status").contains(": ready, "));
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    let refused = machine.run("runuser --user nobody -- echoctl status");
    assert_eq!(refused.code, Some(2), "{}", refused.output);
    assert!(refused.output.contains("Permission denied"), "{}", refused.output);
    machine.sh("systemctl stop echoed.socket");
    assert_eq!(machine.property("echoed-control.socket", "ActiveState"), "inactive");
    machine.sh("test ! -e /run/echoed/io.echoed");
}

fn echoed_starts_without_control_if_that_fails_or_is_masked(machine: &Machine) {
    machine.configure(PATIENT);
    // Nothing can be bound there.
    machine.sh("mkdir -p /run/echoed/io.echoed/x; systemctl start echoed.socket");
    assert_eq!(machine.property("echoed-control.socket", "ActiveState"), "failed");
    let clients = Clients::connect(machine);
    machine.sh("systemctl restart echoed.service");
    clients.expect_alive();
    // What was wrong is corrected: a restart adds it.
    machine.sh("rm -r /run/echoed/io.echoed");
    let clients = Clients::connect(machine);
    machine.sh("systemctl restart echoed.service");
    assert!(machine.sh("echoctl status").contains(": ready, "));
    clients.expect_alive();

    machine.sh("systemctl stop echoed-control.socket; systemctl mask --quiet echoed-control.socket");
    machine.sh("systemctl stop echoed.socket; systemctl start echoed.socket");
    machine.connect(TCP).exchange("aaaa");
    assert_eq!(machine.property("echoed-control.socket", "ActiveState"), "inactive");
    machine.sh("test ! -e /run/echoed/io.echoed");
}

fn all_sockets_take_little_memory(machine: &Machine) {
    // In KiB. Measured were 50 to 110.
    const MOST: usize = 4096;
    let resident = || {
        let process = machine.daemon_pid().expect("it runs");
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
        ["VmRSS:", "RssAnon:"].map(|name| {
            let size = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
            size.and_then(|size| size.parse::<usize>().ok()).expect("a number")
        })
    };
    let start = || {
        machine.sh("systemctl stop echoed.socket; systemctl start echoed.socket");
        machine.connect(TCP).exchange("aaaa");
        machine.wait_for_property("echoed.service", "ActiveState", "active");
        resident()
    };
    machine.sh("systemctl mask --quiet echoed-control.socket");
    let without = start();
    machine.sh("systemctl unmask --quiet echoed-control.socket");
    enable(machine);
    let with = start();
    println!(
        "systemd {}: KiB resident, and anonymous of that: {without:?}, with all sockets {with:?}",
        machine.version()
    );
    assert!(with[0] < without[0] + MOST, "{without:?} KiB, with all sockets {with:?} KiB");
}
