//! What every package has to do under each package manager: installed, upgraded while it is in use, downgraded, removed
//! and purged, as an administrator does it.

use std::cell::RefCell;
use std::fs;

use crate::snapshot::Snapshot;
use crate::staging::STAGING_DIR;
use common::machines::machine::{Machine, TCP, UNIX};
use common::machines::page_runner::run_installed_pages;
use common::machines::reconnecting_clients;
use common::machines::test::Test;
use common::wait_until;

/// The package, and an older version of it with the same programs and other settings: these stand at the end of
/// /etc/echoed/echoed.toml.
pub const PACKAGE: &str = "echoed";
pub const OLDER: &str = "older";
pub const OLDER_SETTINGS: &str = "# As it was then.";

/// The sockets that the administrator enables.
const MONITORING: &str = "echoed-monitor.socket echoed-agent.socket";

/// A package manager: dpkg, rpm, pacman.
pub trait Installer {
    /// What is left to be done after the first installation, so that it listens.
    const START_COMMAND: &'static str;
    /// Where the settings of a new version are put if the old ones were changed.
    const NEW_SETTINGS_FILE: &'static str;
    /// Where changed settings are after the package was removed.
    const SAVED_SETTINGS_FILE: &'static str;
    /// What stays when the package was purged, and the reason why it may: what the installer knows, and what is gone with the
    /// next boot.
    const MAY_REMAIN: &'static [&'static str];

    /// Puts on a machine what there is where this installer is at home, and makes the older package.
    fn prepare(_machine: &Machine) {}

    /// Installs one of the two packages, whichever was there before. Returns what was said.
    fn install(machine: &Machine, package: &str) -> String;

    /// What is installed: the version and the release.
    fn version(machine: &Machine) -> String;

    /// The files of the package that are not as it has put them there, in some way; nothing, if all are.
    fn altered_files(machine: &Machine) -> String;

    /// Removes it, but not changed files.
    fn remove(machine: &Machine);

    /// Removes what is left of it.
    fn purge(machine: &Machine);

    /// What the documents say for the case that the port is taken: a drop-in for the socket.
    fn port_drop_in(_machine: &Machine) -> String {
        "[Socket]\nListenStream=\nListenStream=127.0.0.1:10007\nListenStream=/run/echoed.sock\n".to_owned()
    }
}

/// All of it.
pub fn tests<I: Installer>() -> &'static [Test] {
    macro_rules! named {
        ($($name:ident),+ $(,)?) => { const { &[$(Test::new(stringify!($name), $name::<I>)),+] } };
    }
    named![
        a_fresh_installation_is_started_by_its_socket,
        clients_do_not_notice_upgrades,
        an_upgrade_keeps_the_files_of_the_administrator,
        upgrades_keep_units_disabled_or_masked,
        a_port_in_use_is_reported_and_can_be_changed,
        a_downgrade_serves_as_before,
        a_removal_keeps_changed_settings_and_a_purge_leaves_nothing,
        an_upgrade_restarts_instances_and_a_removal_stops_them,
        the_installed_documents_work_as_installed,
    ]
}

/// They have units of their own, which package managers do not know by name.
fn an_upgrade_restarts_instances_and_a_removal_stops_them<I: Installer>(machine: &Machine) {
    const SERVICE: &str = "echoed-instance@blue.service";
    I::prepare(machine);
    I::install(machine, OLDER);
    machine.sh("systemctl start echoed-instance@blue.socket");
    let mut peer = machine.connect("unix:/run/echoed-blue.sock");
    peer.exchange("aaaa");
    let process = machine.property(SERVICE, "MainPID");
    I::install(machine, PACKAGE);
    assert_ne!(machine.property(SERVICE, "MainPID"), process);
    peer.exchange("bbbb");
    I::remove(machine);
    let left = machine.sh("systemctl list-units --plain --no-legend --state=active 'echoed-instance@*'");
    assert_eq!(left, "");
}

fn the_installed_documents_work_as_installed<I: Installer>(machine: &Machine) {
    I::prepare(machine);
    I::install(machine, PACKAGE);
    machine.sh(I::START_COMMAND);
    run_installed_pages(machine);
}

fn a_fresh_installation_is_started_by_its_socket<I: Installer>(machine: &Machine) {
    I::prepare(machine);
    I::install(machine, PACKAGE);
    machine.sh(I::START_COMMAND);
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "enabled");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
    for unit in ["echoed.service", "echoed-control.socket"] {
        assert_eq!(machine.property(unit, "UnitFileState"), "static");
    }
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    assert_eq!(machine.property("echoed-control.socket", "ActiveState"), "active");
    for unit in MONITORING.split(' ') {
        assert_eq!(machine.property(unit, "UnitFileState"), "disabled");
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
    let reply = machine.sh(r"printf 'aaaa\t' | socat -t10 - TCP:127.0.0.1:8085");
    assert_eq!(reply, "server got:aaaa\t");
    machine.wait_for_property("echoed.service", "ActiveState", "active");
    machine.sh(&format!("sh {STAGING_DIR}/packaging/smoke"));
    // Everything that systemd has to know.
    let listed = machine.sh("journalctl --list-catalog");
    assert!(listed.contains(" echoed: "), "{listed}");
    assert!(machine.path("/run/echoed").is_dir());
    let units = format!(
        "echoed.socket echoed-control.socket {MONITORING} echoed.service echoed@x.service echoed-instance@x.socket \
         echoed-instance@x.service"
    );
    assert_eq!(machine.sh(&format!("systemd-analyze verify --man=no {units}")), "");
    assert_eq!(machine.sh("echoed --check-config | grep -c /usr/lib/echoed/echoed.toml.d/10-sockets.toml"), "1\n");
    for unit in ["echoed.socket", "echoed.service"] {
        assert!(machine.path(&format!("/usr/lib/systemd/user/{unit}")).is_file(), "{unit}");
    }
    // For users to enable.
    assert!(!machine.path("/etc/systemd/user/sockets.target.wants/echoed.socket").is_symlink());
    assert!(machine.path("/etc/echoed/echoed.toml.d").is_dir());
    assert_eq!(I::altered_files(machine), "");
    let docs = machine.sh("find /usr/share/doc/echoed /usr/share/licenses/echoed* || true");
    for file in ["third-party.md", "echoed.cdx.json", "operations.md"] {
        assert!(docs.contains(file), "{file}: {docs}");
    }
}

/// 200 clients are in the middle of a message while the package is upgraded and downgraded, and 200 others come again and
/// again. No client is refused, no connection ends, and every message gets its reply.
fn clients_do_not_notice_upgrades<I: Installer>(machine: &Machine) {
    const CLIENTS: usize = 200;
    I::prepare(machine);
    I::install(machine, OLDER);
    // Longer than the upgrades take, however slow the machine is. All clients are one source, and a child that the test has
    // forked keeps the sockets that clients close meanwhile open until it executes its program.
    machine.configure("[defaults.deadlines]\nread = \"10min\"\n[limits]\nconnections_per_source = 0\n");
    machine.sh(I::START_COMMAND);
    machine.sh(&format!("systemctl enable --quiet {MONITORING}; systemctl restart echoed.service"));
    let peers: Vec<_> = (0..CLIENTS).map(|client| machine.connect(if client % 2 == 0 { TCP } else { UNIX })).collect();
    let peers = RefCell::new(peers);
    let packages = [PACKAGE, OLDER, PACKAGE];
    reconnecting_clients::connect_during(machine, packages.len(), |number| {
        let mut peers = peers.borrow_mut();
        for peer in peers.iter_mut() {
            peer.send("whole\thalf and ");
        }
        // What came with the whole message was read with it.
        for peer in peers.iter_mut() {
            peer.expect("server got:whole\t");
        }
        I::install(machine, packages[number]);
        for peer in peers.iter_mut() {
            peer.send("half\t");
            peer.expect("server got:half and half\t");
        }
        // What was enabled is so, what was counted is counted, and no scraper is refused.
        let metrics = machine.sh("curl --silent --show-error --fail http://127.0.0.1:9085/metrics");
        let connections = "echoed_connections_ended_total{listener=\"echo\",verdict=\"handed-over\"} ";
        let handed_over = metrics.lines().find_map(|line| line.strip_prefix(connections)?.parse::<usize>().ok());
        assert!(handed_over.is_some_and(|count| count >= CLIENTS * (number + 1)), "{metrics}");
        assert_eq!(machine.sh("nc -N 127.0.0.1 9086 </dev/null"), "up 100%\n");
    });
}

const ADMIN_FILES: [(&str, &str); 4] = [
    ("/etc/echoed/echoed.toml", "# mine\n[defaults]\nprefix = \"mine:\"\n"),
    ("/etc/echoed/echoed.toml.d/50-local.toml", "[defaults.deadlines]\nread = \"10s\"\n"),
    ("/etc/systemd/system/echoed.service.d/mine.conf", "[Service]\nMemoryMax=2G\n"),
    (
        "/etc/systemd/system/echoed.socket.d/mine.conf",
        "[Socket]\nListenStream=\nListenStream=127.0.0.1:10007\nListenStream=/run/echoed.sock\n",
    ),
];

fn an_upgrade_keeps_the_files_of_the_administrator<I: Installer>(machine: &Machine) {
    I::prepare(machine);
    I::install(machine, OLDER);
    machine.sh(I::START_COMMAND);
    for (file, text) in ADMIN_FILES {
        machine.write(file, text);
    }
    machine.sh("systemctl stop echoed.socket; systemctl daemon-reload; systemctl start echoed.socket");
    let request = |machine: &Machine| machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:10007");
    assert_eq!(request(machine), "mine:a\t");
    let (process, socket) = (machine.daemon_pid(), machine.property("echoed.socket", "ActiveEnterTimestampMonotonic"));
    I::install(machine, PACKAGE);
    assert_eq!(request(machine), "mine:a\t");
    assert_ne!(machine.daemon_pid(), process, "the old program still runs");
    for (file, text) in ADMIN_FILES {
        assert_eq!(fs::read_to_string(machine.path(file)).expect("it is there"), text, "{file}");
    }
    assert_eq!(machine.property("echoed.service", "MemoryMax"), (2_u64 << 30).to_string());
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "enabled");
    // The sockets were there all the time.
    assert_eq!(machine.property("echoed.socket", "ActiveEnterTimestampMonotonic"), socket);
    let new_settings =
        fs::read_to_string(machine.path(I::NEW_SETTINGS_FILE)).expect("the new settings are put beside mine");
    assert!(
        new_settings.starts_with("# Settings of echoed.") && !new_settings.contains(OLDER_SETTINGS),
        "{new_settings}"
    );

    // Unchanged settings are replaced by those of the new version.
    I::remove(machine);
    I::purge(machine);
    machine.sh("rm -r /etc/systemd/system/echoed.*.d");
    I::install(machine, OLDER);
    assert!(machine.sh("cat /etc/echoed/echoed.toml").contains(OLDER_SETTINGS));
    I::install(machine, PACKAGE);
    assert!(!machine.sh("cat /etc/echoed/echoed.toml").contains(OLDER_SETTINGS));
    assert_eq!(I::altered_files(machine), "");
}

fn upgrades_keep_units_disabled_or_masked<I: Installer>(machine: &Machine) {
    I::prepare(machine);
    I::install(machine, OLDER);
    machine.sh(I::START_COMMAND);
    machine.sh("systemctl disable --now echoed.socket");
    I::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed.socket", "UnitFileState"), "disabled");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "inactive");
    for unit in MONITORING.split(' ') {
        assert_eq!(machine.property(unit, "UnitFileState"), "disabled");
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
    machine.sh("systemctl mask echoed-control.socket; systemctl enable --now echoed.socket");
    I::install(machine, OLDER);
    machine.connect(TCP).exchange("aaaa");
    I::install(machine, PACKAGE);
    assert_eq!(machine.property("echoed-control.socket", "LoadState"), "masked");
    assert_eq!(machine.property("echoed-control.socket", "ActiveState"), "inactive");
    machine.sh("systemctl unmask echoed-control.socket; systemctl disable --now echoed.socket");
    machine.sh("systemctl mask echoed.socket echoed.service");
    for package in [OLDER, PACKAGE] {
        let output = I::install(machine, package);
        assert!(!output.contains("error"), "{output}");
        for unit in ["echoed.socket", "echoed.service"] {
            assert_eq!(machine.property(unit, "LoadState"), "masked");
            assert_eq!(machine.property(unit, "ActiveState"), "inactive");
        }
    }
    machine.sh("systemctl unmask echoed.socket echoed.service; systemctl enable --now echoed.socket");
    machine.connect(TCP).exchange("aaaa");
}

fn a_port_in_use_is_reported_and_can_be_changed<I: Installer>(machine: &Machine) {
    I::prepare(machine);
    machine.sh("systemd-run --quiet --unit=busy socat TCP-LISTEN:8085,bind=127.0.0.1,fork EXEC:cat");
    wait_until("the port is taken", || machine.run("ss -ltn 'sport = :8085' | grep -q LISTEN").code == Some(0));
    let output = I::install(machine, PACKAGE) + &machine.run(I::START_COMMAND).output;
    assert!(output.contains("echoed.socket"), "nothing says that the socket failed: {output}");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "failed");
    let status = machine.run("systemctl status --no-pager echoed.socket").output;
    assert!(status.contains("Address already in use"), "{status}");
    machine.edit("echoed.socket", &I::port_drop_in(machine));
    machine.sh("systemctl start echoed.socket");
    assert_eq!(machine.sh(r"printf 'a\t' | socat -t10 - TCP:127.0.0.1:10007"), "server got:a\t");
}

fn a_downgrade_serves_as_before<I: Installer>(machine: &Machine) {
    I::prepare(machine);
    I::install(machine, PACKAGE);
    machine.sh(I::START_COMMAND);
    let version = I::version(machine);
    assert!(version.starts_with(concat!(env!("CARGO_PKG_VERSION"), "-")), "{version}");
    machine.connect(TCP).exchange("aaaa");
    I::install(machine, OLDER);
    assert_eq!(I::version(machine), "0.0.1-1");
    assert!(machine.sh("cat /etc/echoed/echoed.toml").contains(OLDER_SETTINGS));
    machine.connect(TCP).exchange("aaaa");
    machine.sh(&format!("sh {STAGING_DIR}/packaging/smoke"));
}

fn a_removal_keeps_changed_settings_and_a_purge_leaves_nothing<I: Installer>(machine: &Machine) {
    I::prepare(machine);
    // So that what is made at the first occasion is there before.
    machine.sh("journalctl --update-catalog; systemctl daemon-reload; ldconfig");
    let before = Snapshot::take(machine);
    I::install(machine, OLDER);
    I::install(machine, PACKAGE);
    machine.sh(I::START_COMMAND);
    machine.sh(&format!("systemctl enable --quiet {MONITORING}; systemctl restart echoed.service"));
    machine.connect(UNIX).exchange("aaaa");
    machine.write("/etc/echoed/echoed.toml", "# mine\n");
    machine.write("/etc/echoed/echoed.toml.d/50-local.toml", "[limits]\nconnections = 10\n");
    machine.write("/run/echoed/echoed.toml", "[limits]\nconnections = 11\n");
    machine.sh("systemctl reload echoed.service");

    I::remove(machine);
    assert_eq!(machine.daemon_pid(), None);
    for unit in ["echoed.socket", "echoed-control.socket", "echoed-monitor.socket", "echoed-agent.socket"] {
        assert_eq!(machine.property(unit, "LoadState"), "not-found", "{unit}");
        assert_eq!(machine.property(unit, "ActiveState"), "inactive", "{unit}");
    }
    let left = machine.sh("find / -xdev -path '*echoed*' -not -path '/root/*' -not -path '/var/*'");
    let left: Vec<_> = left.lines().collect();
    for file in [I::SAVED_SETTINGS_FILE, "/etc/echoed/echoed.toml.d/50-local.toml"] {
        assert!(left.contains(&file), "{file}: {left:?}");
    }
    assert!(!left.iter().any(|path| path.starts_with("/usr")), "{left:?}");

    I::purge(machine);
    let mut left = Snapshot::take(machine).changes_since(&before);
    left.retain(|line| !I::MAY_REMAIN.iter().any(|path| line.contains(path)));
    assert!(left.is_empty(), "{left:#?}");
}
