//! What was counted goes to the next process.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::http::{Client, get};
use super::metric;
use common::now;
use common::service::{FdStore, Service};

const CONFIGURATION: &str = "[service]\nhandover = HANDOVER\n[listener.monitor]\nrole = 'monitor'\n";

fn configuration(handover: bool) -> String {
    CONFIGURATION.replace("HANDOVER", &handover.to_string())
}

fn start(handover: bool) -> Service {
    Service::start_on(&["tcp:echo", "tcp:monitor"], FdStore::Enabled, &configuration(handover))
}

/// The metrics of a service.
fn metrics(service: &Service) -> String {
    get(service.address(1), "/metrics").body
}

fn value(text: &str, name: &str) -> f64 {
    metric(text, name).unwrap_or_else(|| panic!("{name} is missing:\n{text}"))
}

/// Connections that were accepted, resumed and ended, and those that are open.
fn connections(text: &str) -> [f64; 4] {
    let ended = text.lines().filter(|line| line.starts_with("echoed_connections_ended_total{listener=\"echo\""));
    let ended =
        ended.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number"));
    [
        value(text, "echoed_connections_accepted_total{listener=\"echo\"}"),
        value(text, "echoed_connections_resumed_total{listener=\"echo\"}"),
        ended.sum(),
        value(text, "echoed_connections{listener=\"echo\"}"),
    ]
}

#[test]
fn counters_go_on_over_restarts_with_connections() {
    let mut service = start(true);
    let mut peers = [service.connect(), service.connect()];
    for restarts in 1..=3 {
        peers.iter_mut().for_each(|peer| peer.exchange("aaaa"));
        service.restart(&configuration(true));
        let text = metrics(&service);
        assert_eq!(value(&text, "echoed_messages_total{listener=\"echo\"}"), 2.0 * f64::from(restarts), "{text}");
        assert_eq!(
            value(&text, "echoed_received_bytes_total{listener=\"echo\"}"),
            10.0 * f64::from(restarts),
            "{text}"
        );
        let times_two = 2.0 * f64::from(restarts);
        assert_eq!(connections(&text), [2.0, times_two, times_two, 2.0], "{text}");
        let handed_over = "echoed_connections_ended_total{listener=\"echo\",verdict=\"handed-over\"}";
        assert_eq!(value(&text, handed_over), times_two, "{text}");
        assert_eq!(value(&text, "echoed_handovers_total{result=\"ok\"}"), f64::from(restarts), "{text}");
        assert_eq!(value(&text, "echoed_handovers_total{result=\"failed\"}"), 0.0, "{text}");
        assert!(service.manager.stored_descriptors().is_empty(), "nothing stays in the store");
    }
    service.daemon.stop();
}

#[test]
fn counters_go_on_without_connections_and_without_handover() {
    for handover in [true, false] {
        let mut service = start(handover);
        service.connect().exchange("aaaa");
        service.daemon.signal(Signal::HUP);
        service.daemon.wait_for_log("reloaded: ");
        for restarts in 1..=3 {
            service.restart(&configuration(handover));
            let text = metrics(&service);
            assert_eq!(value(&text, "echoed_messages_total{listener=\"echo\"}"), 1.0, "{text}");
            assert_eq!(connections(&text), [1.0, 0.0, 1.0, 0.0], "{text}");
            assert_eq!(value(&text, "echoed_reloads_total{result=\"ok\"}"), 1.0, "{text}");
            let handovers = if handover { f64::from(restarts) } else { 0.0 };
            assert_eq!(value(&text, "echoed_handovers_total{result=\"ok\"}"), handovers, "{text}");
        }
        service.daemon.stop();
    }
}

/// A drain counts the ends of its connections before the counters are stored.
#[test]
fn ends_during_a_drain_are_counted() {
    let mut service = start(false);
    let mut peers = [service.connect(), service.connect()];
    peers.iter_mut().for_each(|peer| peer.exchange("aaaa"));
    service.restart(&configuration(false));
    assert_eq!(connections(&metrics(&service)), [2.0, 0.0, 2.0, 0.0]);
    service.daemon.stop();
}

#[test]
fn a_process_that_shows_nothing_stores_nothing_without_connections() {
    let mut service = Service::start("");
    service.connect().exchange("aaaa");
    service.stop(Signal::TERM);
    assert!(service.manager.stored_descriptors().is_empty());
}

#[test]
fn a_scrape_between_two_processes_is_answered_by_the_next_one() {
    let mut service = start(true);
    service.connect().exchange("aaaa");
    let mut open = Client::connect(service.address(1));
    assert_eq!(open.get("/readyz", "").status, 200);
    service.stop(Signal::TERM);
    // An idle connection ends with its process.
    open.expect_close();
    let mut scraper = Client::connect(service.address(1));
    scraper.request("GET", "/metrics", "");
    service.start_next(&configuration(true));
    let text = scraper.response(true).expect("it is answered").body;
    assert_eq!(value(&text, "echoed_messages_total{listener=\"echo\"}"), 1.0, "{text}");
    service.daemon.stop();
}

/// So a monitored service stays up between its clients.
#[test]
fn a_connection_to_the_monitor_keeps_the_process_from_being_idle() {
    let configuration = format!("{}[service]\nidle_exit = '200ms'\n", "[listener.monitor]\nrole = 'monitor'\n");
    let mut service = Service::start_on(&["tcp:echo", "tcp:monitor"], FdStore::Enabled, &configuration);
    let mut scraper = Client::connect(service.address(1));
    assert_eq!(scraper.get("/readyz", "").status, 200);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(scraper.get("/readyz", "").status, 200, "its connection has not ended");
    let last = now();
    drop(scraper);
    assert!(service.daemon.wait().success());
    assert!(last.elapsed() >= Duration::from_millis(200), "{:?}", last.elapsed());
    service.daemon.wait_for_log("stopping: no connection for 200ms (service.idle_exit)");
    // The first scrape starts the next process.
    let mut scraper = Client::connect(service.address(1));
    scraper.request("GET", "/readyz", "");
    service.start_next(&configuration);
    assert_eq!(scraper.response(true).expect("it is answered").status, 200);
    service.daemon.stop();
}
