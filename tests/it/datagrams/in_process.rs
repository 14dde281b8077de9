//! A server in this process, whose log does what the test says.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use echoed::config::Settings;
use echoed::protocol::packet::{DROP_CAUSES, DropCause};
use echoed::server::Server;
use echoed::server::event::{MessageLog, ReceivedMessage};

use common::packets::DatagramPeer;
use common::{TEST_TIMEOUT, wait_until};

/// Takes messages as long as it is open.
#[derive(Default)]
struct GatedLog {
    is_accepting: AtomicBool,
    attempts: AtomicU64,
    messages: Mutex<Vec<Vec<u8>>>,
    waker: Mutex<Option<Waker>>,
}

impl GatedLog {
    fn start_accepting(&self) {
        self.is_accepting.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waker.lock().expect("the lock is not poisoned").take() {
            waker.wake();
        }
    }
}

impl MessageLog for GatedLog {
    fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        assert_eq!(message.connection_id, None);
        self.attempts.fetch_add(1, Ordering::SeqCst);
        if self.is_accepting.load(Ordering::SeqCst) {
            self.messages.lock().expect("the lock is not poisoned").push(message.bytes.to_vec());
            return true;
        }
        *self.waker.lock().expect("the lock is not poisoned") = Some(waker.clone());
        false
    }
}

fn serve(configuration: &str) -> (Server, Arc<GatedLog>, DatagramPeer) {
    let settings = Settings::from_toml("test", configuration).expect("they are good");
    let log = Arc::new(GatedLog::default());
    let server =
        Server::start(&settings, Arc::new(|_| {}), Arc::clone(&log) as Arc<dyn MessageLog>).expect("it can be started");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("there is a free port");
    let address = format!("udp:{}", socket.local_addr().expect("it is bound"));
    server.listen(socket.into(), "echo", settings.listener_settings("echo")).expect("it can be served");
    (server, log, DatagramPeer::to(&address))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there are descriptors").block_on(future)
}

#[test]
fn datagrams_wait_in_the_kernel_while_the_log_does_not_accept_a_message() {
    let (server, log, peer) = serve("[defaults]\nlog_messages = 'full'\n");
    for number in 0..10 {
        peer.send(format!("{number}"));
    }
    wait_until("the log was asked", || log.attempts.load(Ordering::SeqCst) > 0);
    assert_eq!(peer.count_until_silent(Duration::from_millis(100)), 0, "nothing is answered that is not logged");
    assert_eq!(log.attempts.load(Ordering::SeqCst), 1);
    log.start_accepting();
    for number in 0..10 {
        peer.expect(format!("server got:{number}"));
    }
    let expected: Vec<_> = (0..10).map(|number| number.to_string().into_bytes()).collect();
    assert_eq!(*log.messages.lock().unwrap(), expected);
    drop(server);
}

#[test]
fn a_message_that_waits_for_the_log_is_logged_and_answered_when_the_server_drains() {
    let (server, log, peer) = serve("[defaults]\nlog_messages = 'full'\n");
    peer.send("a");
    peer.send("b");
    wait_until("the log was asked", || log.attempts.load(Ordering::SeqCst) > 0);
    let opener = Arc::clone(&log);
    block_on(async move {
        let drained = server.drain();
        let opened = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(opener.messages.lock().unwrap().is_empty());
            opener.start_accepting();
        };
        tokio::join!(drained, opened);
    });
    peer.expect("server got:a");
    assert_eq!(log.messages.lock().unwrap().first().map(Vec::as_slice), Some(&b"a"[..]));
}

#[test]
fn a_datagram_answered_just_before_the_idle_check_counts_as_activity() {
    let (server, _, peer) = serve("");
    peer.exchange("a");
    assert!(!block_on(server.stop_if_idle(Duration::from_secs(3600))), "there was a datagram in the last hour");
    peer.exchange("b");
    assert!(block_on(server.stop_if_idle(Duration::ZERO)));
}

#[test]
fn messages_bytes_and_drops_are_counted() {
    let (server, _, peer) = serve("[limits]\ndatagrams_per_source = '10/s'\n[defaults]\nmax_message = '10B'\n");
    peer.exchange("12345");
    peer.exchange("");
    peer.send("12345678901");
    peer.send("server error:x");
    peer.send("server got");
    peer.expect("server got:server got");
    // What was answered is counted a moment after its reply was sent.
    wait_until("all messages are counted", || server.counts().totals.messages == 3);
    let counts = server.counts();
    assert_eq!((counts.totals.bytes_in, counts.totals.bytes_out), (15, 48));
    let mut dropped = [0; DROP_CAUSES];
    dropped[DropCause::TooLong.index()] = 2;
    assert_eq!(counts.dropped, dropped);
}

#[test]
fn a_server_that_is_idle_at_once_stops_at_once() {
    for attempt in 0..200 {
        let (server, _log, _peer) = serve("");
        // Its thread may not run yet.
        let stopped = block_on(async { tokio::time::timeout(TEST_TIMEOUT, server.stop_if_idle(Duration::ZERO)).await });
        assert_eq!(stopped, Ok(true), "attempt {attempt}");
    }
}
