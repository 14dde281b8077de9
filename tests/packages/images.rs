//! The portable service.

use crate::staging::STAGING_DIR;
use common::machines::machine::Machine;

tests![a_portable_image_is_attached_serves_and_is_detached];

fn a_portable_image_is_attached_serves_and_is_detached(machine: &Machine) {
    machine.sh(&format!(
        "dpkg-deb --extract {STAGING_DIR}/echoed.deb /root/tree; sh {STAGING_DIR}/packaging/portable/image /root/tree /root/echoed"
    ));
    machine.sh("rm -r /root/tree; portablectl attach /root/echoed; systemctl enable --now echoed.socket");
    assert_eq!(machine.sh("systemctl is-enabled echoed.socket"), "enabled\n");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    assert_eq!(machine.sh(r"printf 'aaaa\t' | socat -t10 - TCP:127.0.0.1:8085"), "server got:aaaa\t");
    assert_eq!(machine.property("echoed.service", "RootDirectory"), "/root/echoed");
    assert_eq!(machine.sh("/root/echoed/usr/bin/echoctl status | grep -c ': ready, '"), "1\n");
    machine.configure("[defaults]\nprefix = \"mine:\"\n");
    machine.sh("systemctl restart echoed.service");
    assert_eq!(machine.sh(r"printf 'b\t' | socat -t10 - UNIX-CONNECT:/run/echoed.sock"), "mine:b\t");
    machine.sh("systemctl disable --now echoed.socket; portablectl detach /root/echoed");
    assert_eq!(machine.property("echoed.socket", "LoadState"), "not-found");
    assert_eq!(machine.daemon_pid(), None);
}
