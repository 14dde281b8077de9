//! The pages of the monitor, and a client for them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::process::Signal;

use super::{address_of, metric, metrics, start, wait_for_metric};
use common::hang::hang_thread;
use common::{Daemon, Peer, TEST_TIMEOUT, now};

/// An answer of the monitor.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| &**value)
    }
}

/// A connection to the monitor, which may be used for several requests.
pub(crate) struct Client {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = Peer::connect(address).into_stream();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("it is not zero");
        Self { stream, unread: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("it can be sent");
    }

    /// Sends a request without a body.
    pub(crate) fn request(&mut self, method: &str, path: &str, headers: &str) {
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"));
    }

    fn read_more(&mut self) -> usize {
        let mut buffer = [0; 64 * 1024];
        // A reset ends it as well.
        let count = self.stream.read(&mut buffer).unwrap_or_else(|error| match error.kind() {
            std::io::ErrorKind::ConnectionReset => 0,
            _ => panic!("cannot read: {error}"),
        });
        self.unread.extend_from_slice(&buffer[..count]);
        count
    }

    /// The next answer; `None` if the connection ends before it. That to HEAD `has_body` not.
    pub(crate) fn response(&mut self, has_body: bool) -> Option<Response> {
        let end = loop {
            match self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.read_more() == 0 => {
                    assert!(self.unread.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&self.unread));
                    return None;
                }
                None => {}
            }
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        let head = String::from_utf8(head).expect("it is text");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).expect("it is HTTP/1.1");
        let status = status[..3].parse().expect("a status is a number");
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let mut response = Response { status, headers: lines.filter_map(header).collect(), body: String::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().expect("it is a number"));
        if has_body {
            while self.unread.len() < length {
                assert!(self.read_more() > 0, "the answer is cut: {response:?}");
            }
            response.body = String::from_utf8(self.unread.drain(..length).collect()).expect("it is text");
        }
        Some(response)
    }

    /// Gets a page.
    pub(crate) fn get(&mut self, path: &str, headers: &str) -> Response {
        self.request("GET", path, headers);
        self.response(true).expect("it is answered")
    }

    /// Waits for the end of the connection.
    pub(crate) fn expect_close(&mut self) {
        while self.read_more() > 0 {}
    }
}

/// Gets a page on a connection of its own.
pub(crate) fn get(address: &str, path: &str) -> Response {
    Client::connect(address).get(path, "Connection: close\r\n")
}

#[test]
fn each_page_has_its_status_and_media_type() {
    let daemon = start("", &["monitor"]);
    let mut client = Client::connect(&address_of(&daemon, "monitor"));
    for (path, status, media_type, begin) in [
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "# HELP echoed_connections "),
        ("/livez", 200, "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", 200, "text/plain; charset=utf-8", "ok\n"),
        ("/readyz?verbose", 200, "text/plain; charset=utf-8", "ok\n"),
        ("/status", 200, "application/json", "{\n"),
        ("/", 404, "text/plain; charset=utf-8", "there are "),
        ("/metrics/", 404, "text/plain; charset=utf-8", "there are "),
    ] {
        let response = client.get(path, "");
        assert_eq!((response.status, response.header("content-type")), (status, Some(media_type)), "{path}");
        assert!(response.body.starts_with(begin), "{path}: {}", response.body);
        assert_eq!(response.header("cache-control"), Some("no-store"));
        client.request("HEAD", path, "");
        let head = client.response(false).expect("it is answered");
        assert_eq!((head.status, head.header("content-type")), (status, Some(media_type)), "{path}");
        if path == "/livez" {
            assert_eq!(head.header("content-length"), Some("3"));
        }
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "get"] {
        client.request(method, "/metrics", "");
        let response = client.response(true).expect("it is answered");
        assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    daemon.stop();
}

#[test]
fn requests_with_bodies_are_refused_and_end_the_connection() {
    let daemon = start("", &["monitor"]);
    let address = address_of(&daemon, "monitor");
    for headers in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut client = Client::connect(&address);
        client.request("GET", "/metrics", headers);
        let response = client.response(true).expect("it is answered");
        assert_eq!((response.status, response.header("connection")), (413, Some("close")), "{headers}");
        client.expect_close();
    }
    daemon.stop();
}

#[test]
fn open_metrics_is_sent_where_it_is_asked_for() {
    let daemon = start("", &["monitor"]);
    let mut client = Client::connect(&address_of(&daemon, "monitor"));
    let response = client.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1\r\n");
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(response.header("content-type"), Some(media_type));
    assert!(response.body.ends_with("# EOF\n") && response.body.contains("# TYPE echoed_messages counter\n"));
    let response = client.get("/metrics", "Accept: text/html, */*\r\n");
    assert!(!response.body.contains("# EOF") && response.body.contains("# TYPE echoed_messages_total counter\n"));
    daemon.stop();
}

#[test]
fn the_monitor_is_served_on_a_unix_socket_as_well() {
    let daemon = Daemon::start_with(
        "[listener.monitor]\nrole = 'monitor'\n",
        &["--listen", "127.0.0.1:0", "--listen", "monitor=unix:DIR/monitor"],
    );
    assert_eq!(get(&address_of(&daemon, "monitor"), "/readyz").body, "ok\n");
    daemon.stop();
}

#[test]
fn the_status_is_json_and_names_no_peer() {
    let daemon = start("", &["monitor"]);
    let mut peer = daemon.connect();
    peer.exchange("aaaa");
    wait_for_metric(&daemon, "echoed_messages_total{listener=\"echo\"}", 1.0);
    let body = get(&address_of(&daemon, "monitor"), "/status").body;
    let status: serde_json::Value = serde_json::from_str(&body).expect("it is JSON");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["ready"], &status["state"]), (&true.into(), &"ready".into()));
    assert_eq!(status["connections"], 1);
    assert_eq!(status["listeners"]["echo"]["messages"], 1);
    assert_eq!(status["listeners"]["echo"]["received_bytes"], 5);
    assert!(status["listeners"].get("monitor").is_none(), "only listeners of messages are counted: {body}");
    for text in [body, metrics(&daemon)] {
        assert!(!text.contains("127.0.0.1"), "{text}");
    }
    daemon.stop();
}

#[test]
fn livez_asks_every_worker_and_says_within_a_second_that_one_hangs() {
    let daemon = start("[service]\nworkers = 2\n", &["monitor"]);
    let address = address_of(&daemon, "monitor");
    assert_eq!(get(&address, "/livez").status, 200);
    if !hang_thread(daemon.pid(), "worker-1") {
        return;
    }
    let begun = now();
    let askers: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn({
                let address = address.clone();
                move || get(&address, "/livez").status
            })
        })
        .collect();
    for asker in askers {
        assert_eq!(asker.join().expect("it is answered"), 503);
    }
    assert!(begun.elapsed().as_millis() < 2000, "{:?}", begun.elapsed());
    // All else is answered.
    assert_eq!(get(&address, "/readyz").status, 200);
    assert_eq!(get(&address, "/metrics").status, 200);
}

#[test]
fn pages_are_served_while_all_places_for_messages_are_taken() {
    let daemon = start("[limits]\nconnections = 2\nreclaim_idle = 'off'\n", &["monitor", "agent"]);
    let mut peers = [daemon.connect(), daemon.connect()];
    peers.iter_mut().for_each(|peer| peer.exchange("aaaa"));
    let text = metrics(&daemon);
    assert_eq!(metric(&text, "echoed_connections{listener=\"echo\"}"), Some(2.0), "{text}");
    assert_eq!(metric(&text, "echoed_limit_connections"), Some(2.0));
    assert_eq!(super::agent::ask(&address_of(&daemon, "agent")), "up 100%\n");
    daemon.stop();
}

/// A drain goes on for as long as replies are owed.
#[test]
fn a_daemon_that_drains_says_that_it_is_not_ready() {
    let mut daemon =
        start("[service]\ndrain_timeout = '30s'\n[defaults.deadlines]\nwrite = 'off'\n", &["monitor", "agent"]);
    let (address, agent) = (address_of(&daemon, "monitor"), address_of(&daemon, "agent"));
    assert_eq!(metric(&metrics(&daemon), "echoed_ready"), Some(1.0));
    let mut peer = daemon.connect();
    peer.send([b'\t'; 200_000]);
    peer.expect("server got:\t");
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping: SIGTERM");
    let response = get(&address, "/readyz");
    assert_eq!((response.status, &*response.body), (503, "stopping\n"));
    assert_eq!(get(&address, "/livez").status, 200);
    assert_eq!(super::agent::ask(&agent), "down #stopping\n");
    let text = metrics(&daemon);
    assert_eq!((metric(&text, "echoed_ready"), metric(&text, "echoed_draining")), (Some(0.0), Some(1.0)));
    drop(peer);
    assert!(daemon.wait().success());
}
