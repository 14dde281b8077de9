//! Health checks: check_tcp and check_udp, the blackbox exporter, monit.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use super::{Program, addresses, block, file_block, unused_address};
use common::{Daemon, program_or_skip, wait_until};

/// A listener with lines, as the blackbox exporter likes them, besides the usual one.
const LINES: &str = "[listener.health]\ndelimiter = \"\\n\"\n";

#[test]
fn check_tcp_and_check_udp_follow_the_service() {
    let Some(bash) = program_or_skip("bash") else { return };
    if program_or_skip("/usr/lib/nagios/plugins/check_tcp").is_none() {
        return;
    }
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "udp:127.0.0.1:0"]);
    let ports: Vec<_> = addresses(&daemon).iter().map(|address| address.replace("127.0.0.1:", "")).collect();
    let commands = block("/usr/lib/nagios/plugins/check_tcp -H");
    let run = |command: &str, port: &str, reply: &str| -> Output {
        let command = command.replace("-p 8085", &format!("-p {port}")).replace("server got:aaaa", reply);
        // Longer than the page says, for machines with much to do.
        let command = command.replace("-w 0.5 -c 2", "-t 3");
        Command::new(&bash).args(["-c", &command]).output().expect("it runs")
    };
    let lines: Vec<_> = commands.trim_end().lines().zip(&ports).collect();
    assert_eq!(lines.len(), 2, "{commands}");
    for (command, port) in &lines {
        let output = run(command, port, "server got:aaaa");
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
        let output = run(command, port, "server got:something else");
        assert_ne!(output.status.code(), Some(0), "{command}: {output:?}");
    }
    daemon.stop();
    for (command, port) in &lines {
        let output = run(command, port, "server got:aaaa");
        assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
    }
}

#[test]
fn the_blackbox_exporter_probes_listeners_with_tabs_and_with_lines() {
    let (Some(exporter), Some(curl)) = (program_or_skip("prometheus-blackbox-exporter"), program_or_skip("curl"))
    else {
        return;
    };
    let daemon = Daemon::start_with(LINES, &["--listen", "127.0.0.1:0", "--listen", "health=127.0.0.1:0"]);
    let configuration = file_block("/etc/prometheus/blackbox.yml");
    let naive =
        configuration.replace("aaaa\\n\\t", "aaaa").replace("timeout: 5s", "timeout: 1s").replace("echoed:", "naive:");
    let configuration = configuration.clone() + naive.split_once("modules:\n").expect("it has modules").1;
    let address = unused_address();
    let program = Program::start(
        &exporter,
        &["--config.file=DIRECTORY/blackbox.yml", &format!("--web.listen-address={address}")],
        &[("blackbox.yml", &configuration)],
    );
    let probe = |module: &str, target: &str| {
        let url = format!("http://{address}/probe?module={module}&target={target}");
        let output = Command::new(&curl).args(["-sS", "--max-time", "20", &url]).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let targets = addresses(&daemon);
    wait_until("the exporter answers", || probe("echoed", &targets[0]).contains("probe_success"));
    for target in &targets {
        let text = probe("echoed", target);
        assert!(text.contains("\nprobe_success 1\n"), "{target}: {text}{}", program.output());
    }
    // As the page says.
    assert!(probe("naive", &targets[0]).contains("\nprobe_success 0\n"));
    daemon.stop();
    assert!(probe("echoed", &targets[0]).contains("\nprobe_success 0\n"));
}

#[test]
fn monit_follows_the_service() {
    let Some(monit) = program_or_skip("monit") else { return };
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let port = addresses(&daemon)[0].replace("127.0.0.1:", "");
    let check = file_block("/etc/monit/conf.d/echoed").replace("port 8085", &format!("port {port}"));
    let settings = "set daemon 1\nset log DIRECTORY/log\nset idfile DIRECTORY/id\nset statefile DIRECTORY/state\n\
                    set pidfile DIRECTORY/pid\n";
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().to_str().expect("it is UTF-8");
    fs::write(file.path(), (settings.to_owned() + &check).replace("DIRECTORY", path)).expect("it can be written");
    // monit demands it.
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).expect("it is ours");
    let program = Program::start(&monit, &["-I", "-v", "-c", file.path().to_str().expect("it is UTF-8")], &[]);
    wait_until("the check succeeds", || program.output().contains("'echoed' succeeded testing protocol [generic]"));
    daemon.stop();
    wait_until("the check fails", || program.output().contains("'echoed' failed protocol test [generic]"));
}
