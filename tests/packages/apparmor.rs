//! The AppArmor profile of the package for Debian, enforced by Debian's kernel in a guest.

use crate::guest::Guest;
use crate::staging::STAGING_DIR;
use common::machines::rootfs::Debian;

/// All that the service does: by its own sockets and by those of the examples, with connections handed over at a
/// restart, one process for each connection, and settings that are read anew.
const SERVICE_WORKLOAD: &str = r#"
wait_for() { for i in $(seq 600); do if sh -c "$1"; then return; fi; sleep 0.5; done; echo "not so: $1"; exit 1; }

sh $staging/packaging/smoke
examples=/usr/share/doc/echoed/examples
install -m 644 $examples/echoed-*.socket /etc/systemd/system
install -D -m 644 -t /etc/echoed/echoed.toml.d $examples/echoed-*.toml
# The half of a message waits for longer than the slowest emulation takes.
printf '[defaults.deadlines]\nread = "1h"\n' >/run/echoed/echoed.toml
systemctl stop echoed.socket
systemctl daemon-reload
for unit in lines greeter rfc862 discard seqpacket; do systemctl enable echoed-$unit.socket; done
systemctl start echoed.socket

mkfifo /run/in
socat - TCP:127.0.0.1:8085 </run/in >/run/out &
exec 3>/run/in
printf 'half and ' >&3
wait_for 'systemctl show --property=StatusText echoed.service | grep -q =1/'
# So that there is something to be read of how many processors it may use.
systemctl set-property --runtime echoed.service CPUQuota=400%
systemctl restart echoed.service
printf 'half\t' >&3
wait_for 'grep -q . /run/out'
exec 3>&-
wait
test "$(cat /run/out)" = "$(printf 'server got:half and half\t')"
wait_for 'journalctl -t echoed -o cat | grep -q "stopped: 1 connections handed over"'

echoctl send unix:/run/echoed.sock aaaa
echoctl send --raw 127.0.0.1:7 aaaa
echoctl send --expect aaaa udp:127.0.0.1:7 aaaa
echoctl send seqpacket:/run/echoed-seqpacket.sock aaaa
echoctl send --raw --expect 'Hello, client!\n' 127.0.0.1:8080 'Hello, server!'
printf 'a line\n' | socat -t10 - TCP:127.0.0.1:3000
systemctl reload echoed.service
wait_for 'journalctl -t echoed -o cat | grep -q "a line"'
wait_for 'journalctl -t echoed -o cat | grep -q "reloaded: "'

systemctl stop echoed.socket
install -D -m 644 -t /etc/systemd/system/echoed.socket.d $examples/accept.conf
systemctl daemon-reload
systemctl start echoed.socket
printf 'aaaa\t' | socat -t10 - TCP:127.0.0.1:8085
systemctl stop echoed.socket
rm -r /etc/systemd/system/echoed.socket.d /etc/systemd/system/echoed-*.socket /etc/echoed/echoed.toml.d/echoed-*.toml
systemctl daemon-reload
systemctl start echoed.socket
"#;

/// Without its root directory, and with settings where none of its own are.
const OUTSIDE_ROOT_DIRECTORY: &str = "[Service]
RootDirectory=
BindReadOnlyPaths=
TemporaryFileSystem=
ExecStart=
ExecStart=/usr/sbin/echoed --config /srv/echoed.toml
";

/// What the kernel forbade the service.
fn denials(guest: &mut Guest) -> String {
    guest.run(r#"dmesg | grep 'apparmor="DENIED".* profile="echoed"'"#).output
}

pub fn the_profile_allows_what_the_service_needs_and_nothing_else(debian: &Debian) {
    let mut guest = Guest::boot(debian);
    guest.sh("sysctl --quiet --write kernel.printk_ratelimit=0");
    guest.sh(&format!("dpkg --install {STAGING_DIR}/echoed.deb"));
    let profiles = guest.sh("cat /sys/kernel/security/apparmor/profiles");
    assert!(profiles.lines().any(|line| line == "echoed (enforce)"), "{profiles}");
    let show_profile = "cat /proc/$(systemctl show --value --property=MainPID echoed.service)/attr/current";

    guest.sh(&format!("set -e; staging={STAGING_DIR}\n{SERVICE_WORKLOAD}"));
    assert_eq!(
        guest.sh(&format!("set -e; echoctl send 127.0.0.1:8085 aaaa; {show_profile}")),
        "server got:aaaa\nechoed (enforce)\n"
    );
    assert_eq!(denials(&mut guest), "");

    // The root directory is gone. The profile still applies.
    guest.sh("set -e; mkdir -p /srv; printf '[defaults]\\nprefix = \"mine:\"\\n' >/srv/echoed.toml; systemctl stop echoed.service");
    guest.sh(&format!(
        "set -e
        mkdir /etc/systemd/system/echoed.service.d
        cat >/etc/systemd/system/echoed.service.d/elsewhere.conf <<'END'\n{OUTSIDE_ROOT_DIRECTORY}END
        systemctl daemon-reload"
    ));
    assert_ne!(guest.run("systemctl restart echoed.service").code, Some(0));
    let denied = denials(&mut guest);
    assert!(denied.contains("name=\"/srv/echoed.toml\""), "{denied}");
    // Until the administrator allows it, as README.Debian says.
    guest.sh("set -e
        echo '/srv/echoed.toml r,' >>/etc/apparmor.d/local/echoed
        apparmor_parser --replace /etc/apparmor.d/echoed
        systemctl restart echoed.service");
    assert_eq!(
        guest.sh(&format!("set -e; echoctl send --expect mine:aaaa 127.0.0.1:8085 aaaa; {show_profile}")),
        "mine:aaaa\nechoed (enforce)\n"
    );

    // A user who starts it by hand has settings anywhere.
    guest.sh(
        "set -e; mkdir -p /home/me; cp /srv/echoed.toml /home/me; echoed --config /home/me/echoed.toml --check-config",
    );

    guest.sh("set -e; rm -r /etc/systemd/system/echoed.service.d; dpkg --purge echoed");
    assert_eq!(guest.sh("find /etc/apparmor.d -name '*echoed*'"), "");
}
