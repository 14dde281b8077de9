//! The units for user managers: a plain user, who is not logged in, has a service of their own (lingering).

use common::machines::machine::Machine;
use common::{Peer, wait_until};

tests![
    a_plain_user_has_a_service_with_settings_of_their_own,
    connections_survive_restarts_of_the_service_of_a_user,
    the_service_of_a_user_is_in_a_sandbox,
    systemd_analyze_verify_reports_nothing_about_the_units_for_users,
];

const USER: &str = "tester";
const UID: u32 = 4711;

/// The user's manager.
struct UserManager<'a>(&'a Machine);

impl<'a> UserManager<'a> {
    /// Makes the user, and starts their manager as logind does at boot for users that linger.
    fn start(machine: &'a Machine) -> Self {
        machine.sh(&format!("useradd --create-home --uid {UID} {USER}"));
        // What pam_systemd does otherwise, which is not on this machine.
        machine.write(
            "/etc/systemd/system/user@.service.d/50-test.conf",
            "[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n",
        );
        // As "loginctl enable-linger" does it.
        machine.write(&format!("/var/lib/systemd/linger/{USER}"), "");
        machine.sh("systemctl daemon-reload; systemctl restart systemd-logind.service");
        machine.wait_for_property(&format!("user@{UID}.service"), "ActiveState", "active");
        Self(machine)
    }

    /// Runs a shell script as the user. Returns what it said.
    fn sh(&self, script: &str) -> String {
        self.0.sh(&format!(
            "setpriv --reuid={UID} --regid={UID} --clear-groups env HOME=/home/{USER} XDG_RUNTIME_DIR=/run/user/{UID} \
             sh -c '{script}'"
        ))
    }

    /// Writes settings of the user.
    fn configure(&self, settings: &str) {
        self.0.write(&format!("/home/{USER}/.config/echoed/echoed.toml.d/50-test.toml"), settings);
        self.0.sh(&format!("chown -R {USER}: /home/{USER}/.config"));
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl --user show --value --property={name} {unit}")).trim_end().to_owned()
    }

    /// The process of the service, as the machine sees it.
    fn main_pid(&self) -> String {
        self.property("echoed.service", "MainPID")
    }

    /// What a client that the user starts gets for a message.
    fn reply(&self) -> String {
        self.sh(&format!(r#"printf "aaaa\t" | socat -t10 - UNIX-CONNECT:/run/user/{UID}/echoed.sock"#))
    }

    fn connect(&self) -> Peer {
        self.0.connect(&format!("unix:/run/user/{UID}/echoed.sock"))
    }
}

fn a_plain_user_has_a_service_with_settings_of_their_own(machine: &Machine) {
    let user = UserManager::start(machine);
    // Of the system, which are not theirs.
    machine.configure("[defaults]\nprefix = 'system:'\n");
    user.sh("systemctl --user enable --quiet --now echoed.socket");
    assert_eq!(user.property("echoed.service", "ActiveState"), "inactive");
    assert_eq!(user.reply(), "server got:aaaa\t");
    assert_eq!(user.property("echoed.service", "ActiveState"), "active");
    assert_eq!(machine.sh(&format!("stat --format=%U:%a /run/user/{UID}/echoed.sock")), format!("{USER}:600\n"));

    user.configure("[defaults]\nprefix = \"mine:\"\n");
    let process = user.main_pid();
    user.sh("systemctl --user reload echoed.service");
    wait_until("the new settings hold", || user.reply() == "mine:aaaa\t");
    assert_eq!(user.main_pid(), process);
    let said = machine.wait_for_journal(&format!("_UID={UID} --identifier=echoed --grep='^reloaded'"));
    let files = format!(
        "/usr/lib/echoed/echoed.toml.d/10-sockets.toml, /home/{USER}/.config/echoed/echoed.toml.d/50-test.toml"
    );
    assert!(said.contains(&format!("(read {files})")), "{said}");

    // The service of the system has nothing to do with it.
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    user.sh("systemctl --user disable --quiet --now echoed.socket");
    assert!(!machine.path(&format!("/run/user/{UID}/echoed.sock")).exists());
}

fn connections_survive_restarts_of_the_service_of_a_user(machine: &Machine) {
    let user = UserManager::start(machine);
    user.configure("[defaults.deadlines]\nread = \"5min\"\n");
    user.sh("systemctl --user start echoed.socket");
    let mut peer = user.connect();
    peer.exchange("aaaa");
    for _ in 0..2 {
        let process = user.main_pid();
        // Read together, the half with the whole one.
        peer.send("whole\thalf and ");
        peer.expect("server got:whole\t");
        user.sh("systemctl --user restart echoed.service");
        assert_ne!(user.main_pid(), process);
        peer.send("half\t");
        peer.expect("server got:half and half\t");
    }
    assert_eq!(user.property("echoed.service", "NFileDescriptorStore"), "0");
}

fn the_service_of_a_user_is_in_a_sandbox(machine: &Machine) {
    let user = UserManager::start(machine);
    user.sh("systemctl --user start echoed.socket");
    assert_eq!(user.reply(), "server got:aaaa\t");
    let process = user.main_pid();
    let status = machine.sh(&format!("cat /proc/{process}/status"));
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
    // What takes a user namespace.
    if machine.version() >= 257 {
        let namespace = |process: &str| machine.sh(&format!("readlink /proc/{process}/ns/net"));
        assert_ne!(namespace(&process), namespace("1"));
        let mounts = machine.sh(&format!("cat /proc/{process}/mountinfo"));
        assert!(mounts.lines().any(|line| line.contains(" / / ro,")), "{mounts}");
    }
    // Nothing of it was impossible.
    let said =
        machine.sh(&format!("journalctl --sync; journalctl --quiet _UID={UID} --grep='ignoring|not supported'; true"));
    assert_eq!(said, "");
}

fn systemd_analyze_verify_reports_nothing_about_the_units_for_users(machine: &Machine) {
    let user = UserManager::start(machine);
    let verify = |unit: &str| user.sh(&format!("systemd-analyze --user verify --man=no {unit} || true"));
    for unit in ["echoed.socket", "echoed.service"] {
        assert_eq!(verify(unit), "", "{unit}");
    }
    // It is looked at.
    machine.write("/etc/systemd/user/echoed.service.d/50-test.conf", "[Service]\nPrivateNetwrok=yes\n");
    assert!(verify("echoed.service").contains("PrivateNetwrok"));
}
