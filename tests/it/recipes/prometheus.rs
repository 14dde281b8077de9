//! Prometheus, over restarts.

use std::process::Command;

use super::{Program, file_block, unused_address};
use common::service::{FdStore, Service};
use common::{program_or_skip, wait_until};
use serde_json::Value;

const CONFIGURATION: &str = "[listener.monitor]\nrole = 'monitor'\n";

#[test]
fn a_rolling_restart_leaves_no_gap_and_no_counter_steps_back() {
    let programs = (program_or_skip("prometheus"), program_or_skip("promtool"), program_or_skip("curl"));
    let (Some(prometheus), Some(promtool), Some(curl)) = programs else { return };
    let mut service = Service::start_on(&["tcp:echo", "tcp:monitor"], FdStore::Enabled, CONFIGURATION);
    let target = service.address(1).replace("tcp:", "");
    let settings = file_block("/etc/prometheus/prometheus.yml")
        .replace("127.0.0.1:9085", &target)
        .replace("scrape_interval: 15s", "scrape_interval: 500ms")
        .replace("/etc/prometheus/echoed.rules.yml", "DIRECTORY/echoed.rules.yml");
    let rules = file_block("/etc/prometheus/echoed.rules.yml");
    let address = unused_address();
    let arguments = [
        "--config.file=DIRECTORY/prometheus.yml",
        "--storage.tsdb.path=DIRECTORY/data",
        &format!("--web.listen-address={address}"),
    ];
    let program =
        Program::start(&prometheus, &arguments, &[("prometheus.yml", &settings), ("echoed.rules.yml", &rules)]);
    let rules = program.directory.path().join("echoed.rules.yml");
    let output = Command::new(promtool).args(["check", "rules"]).arg(rules).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    // The value of a query with one result.
    let query = |query: &str| -> Option<f64> {
        let url = format!("http://{address}/api/v1/query");
        let mut curl = Command::new(&curl);
        curl.args(["-sS", "--max-time", "20", "-G", &url, "--data-urlencode", &format!("query={query}")]);
        let answer: Value = serde_json::from_slice(&curl.output().expect("it runs").stdout).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    let scrapes = || query("count_over_time(up{job=\"echoed\"}[5m])").unwrap_or_default();
    let mut peer = service.connect();
    for _ in 0..3 {
        let (before, begun) = (scrapes(), query("sum(echoed_messages_total)").unwrap_or_default());
        peer.exchange("aaaa");
        wait_until("Prometheus has scraped it", || scrapes() > before + 2.0);
        wait_until("the message is counted", || query("sum(echoed_messages_total)") == Some(begun + 1.0));
        service.restart(CONFIGURATION);
    }
    let before = scrapes();
    wait_until("Prometheus has scraped the last process", || scrapes() > before + 2.0);
    assert_eq!(query("min_over_time(up{job=\"echoed\"}[5m])"), Some(1.0), "{}", program.output());
    assert_eq!(query("sum(resets(echoed_messages_total[5m]))"), Some(0.0));
    assert_eq!(query("sum(resets(echoed_connections_accepted_total[5m]))"), Some(0.0));
    assert_eq!(query("echoed_handovers_total{result=\"ok\"}"), Some(3.0));
    // All rules can be evaluated, and none of them fires.
    let url = format!("http://{address}/api/v1/rules");
    let rules = Command::new(&curl).args(["-sS", "--max-time", "20", &url]).output().expect("it runs").stdout;
    let rules: Value = serde_json::from_slice(&rules).expect("it is JSON");
    for rule in rules["data"]["groups"][0]["rules"].as_array().expect("there are rules") {
        assert_eq!((&rule["state"], &rule["lastError"]), (&"inactive".into(), &Value::Null), "{rule}");
    }
    service.daemon.stop();
}
