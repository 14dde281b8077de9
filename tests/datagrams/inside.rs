//! A server in this process, whose log does what the test says.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use echoed::config::Settings;
use echoed::protocol::packet::{DROP_CAUSES, DropCause};
use echoed::server::Server;
use echoed::server::event::{Message, MessageLog};

use crate::common::packets::Sender;
use crate::common::wait_until;

/// Takes messages as long as it is open.
#[derive(Default)]
struct Log {
    open: AtomicBool,
    asked: AtomicU64,
    taken: Mutex<Vec<Vec<u8>>>,
    waiting: Mutex<Option<Waker>>,
}

impl Log {
    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waiting.lock().expect("nobody panicked").take() {
            waker.wake();
        }
    }
}

impl MessageLog for Log {
    fn try_append(&self, message: Message<'_>, waker: &Waker) -> bool {
        assert_eq!(message.connection_id, None);
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.open.load(Ordering::SeqCst) {
            self.taken.lock().expect("nobody panicked").push(message.bytes.to_vec());
            return true;
        }
        *self.waiting.lock().expect("nobody panicked") = Some(waker.clone());
        false
    }
}

fn serve(configuration: &str) -> (Server, Arc<Log>, Sender) {
    let settings = Settings::from_toml("test", configuration).expect("they are good");
    let log = Arc::new(Log::default());
    let server =
        Server::start(&settings, Arc::new(|_| {}), Arc::clone(&log) as Arc<dyn MessageLog>).expect("it can be started");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("there is a free port");
    let address = format!("udp:{}", socket.local_addr().expect("it is bound"));
    server.listen(socket.into(), "echo", settings.listener_settings("echo")).expect("it can be served");
    (server, log, Sender::to(&address))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there are descriptors").block_on(future)
}

#[test]
fn a_message_that_the_log_does_not_take_waits_and_those_after_it_wait_in_the_kernel() {
    let (server, log, peer) = serve("[defaults]\nlog_messages = 'full'\n");
    for number in 0..10 {
        peer.send(format!("{number}"));
    }
    wait_until("the log was asked", || log.asked.load(Ordering::SeqCst) > 0);
    assert_eq!(peer.count_for(Duration::from_millis(100)), 0, "nothing is answered that is not logged");
    assert_eq!(log.asked.load(Ordering::SeqCst), 1);
    log.open();
    for number in 0..10 {
        peer.expect(format!("server got:{number}"));
    }
    let taken: Vec<_> = (0..10).map(|number| number.to_string().into_bytes()).collect();
    assert_eq!(*log.taken.lock().unwrap(), taken);
    drop(server);
}

#[test]
fn a_message_that_waits_for_the_log_is_logged_and_answered_when_the_server_ends() {
    let (server, log, peer) = serve("[defaults]\nlog_messages = 'full'\n");
    peer.send("a");
    peer.send("b");
    wait_until("the log was asked", || log.asked.load(Ordering::SeqCst) > 0);
    let opener = Arc::clone(&log);
    block_on(async move {
        let drained = server.drain();
        let opened = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(opener.taken.lock().unwrap().is_empty());
            opener.open();
        };
        tokio::join!(drained, opened);
    });
    peer.expect("server got:a");
    assert_eq!(log.taken.lock().unwrap().first().map(Vec::as_slice), Some(&b"a"[..]));
}

#[test]
fn who_was_answered_just_before_the_last_look_was_here() {
    let (server, _, peer) = serve("");
    peer.exchange("a");
    assert!(!block_on(server.stop_if_idle(Duration::from_secs(3600))), "there was a datagram in the last hour");
    peer.exchange("b");
    assert!(block_on(server.stop_if_idle(Duration::ZERO)));
}

#[test]
fn everything_is_counted() {
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
