//! Many connections at once, much on each of them, cut at random: every byte of every reply is right, in order, and none
//! is lost. A failure says its seed; with `ECHOED_TEST_SEED` set to that, the same is sent again.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::random::seed;
use common::{Daemon, Peer, Random};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};
use tokio::time;

use crate::alone;

/// How many connections there are at once.
const CONNECTIONS: usize = 1000;

/// How many messages are sent on each.
const MESSAGES: usize = 20;

/// The longest message.
const LONGEST: usize = 65_536;

/// How long everything may take.
const LOAD_TIMEOUT: Duration = Duration::from_secs(180);

/// No deadline nor limit may make a slow machine fail. Small buffers make the daemon wait for its clients more often.
const CONFIG: &str = "
    [limits]
    connections_per_source = 0
    buffer_memory = '1GiB'
    [defaults.deadlines]
    read = '5min'
    write = '5min'
    [listener.small]
    send_buffer = '8KiB'
";

/// What one client sends, and the replies that it expects.
struct Workload {
    random: Random,
    sent: Vec<u8>,
    expected: Vec<u8>,
}

impl Workload {
    fn new(seed: u64, connection: usize) -> Self {
        let mut random = Random::seeded(seed, connection);
        let (mut sent, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..MESSAGES {
            let mut message = random.message(LONGEST);
            if random.below(100) == 0 {
                message.resize(LONGEST, b'x');
            }
            sent.extend([&message[..], b"\t"].concat());
            expected.extend([b"server got:", &message[..], b"\t"].concat());
        }
        Self { random, sent, expected }
    }
}

/// Sends the workload in random pieces, and reads the replies in others; both at once.
async fn run_client(mut stream: UnixStream, mut workload: Workload, barrier: Arc<Barrier>) -> Result<(), String> {
    barrier.wait().await;
    let (mut reader, mut writer) = stream.split();
    let (sent, expected) = (workload.sent, workload.expected);
    let mut split_sizes = Random::seeded(workload.random.number(), 0);
    let mut read_sizes = workload.random;
    // Half of them end their stream before they have their replies.
    let ends_early = read_sizes.below(2) == 0;
    let write = async {
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(1 + split_sizes.small_below(32 * 1024)));
            writer.write_all(piece).await.map_err(|error| format!("{} bytes were not sent: {error}", rest.len()))?;
            rest = after;
            if split_sizes.below(2) == 0 {
                yield_now().await;
            }
        }
        if ends_early {
            writer.shutdown().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    };
    let read = async {
        let (mut buffer, mut at) = (vec![0; 32 * 1024], 0);
        while at < expected.len() {
            let buffer = &mut buffer[..1 + read_sizes.small_below(32 * 1024)];
            let count = reader.read(buffer).await.map_err(|error| format!("after {at} bytes: {error}"))?;
            let due = &expected[at..expected.len().min(at + count)];
            if count == 0 || buffer[..count] != *due {
                let differs = buffer[..count].iter().zip(due).take_while(|(got, due)| got == due).count();
                let [got, due] = [&buffer[differs..count], &due[differs..]]
                    .map(|bytes| bytes[..bytes.len().min(40)].escape_ascii().to_string());
                return Err(format!("at {} of {}: \"{got}\", not \"{due}\"", at + differs, expected.len()));
            }
            at += count;
            if read_sizes.below(20) == 0 {
                time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    };
    tokio::try_join!(write, read)?;
    stream.shutdown().await.map_err(|error| error.to_string())?;
    match stream.read(&mut [0; 16]).await {
        Ok(0) => Ok(()),
        other => Err(format!("there is more after the last reply: {other:?}")),
    }
}

fn check_load(listen: [&str; 2]) {
    if !common::ensure_nofile_limit(4096) {
        return;
    }
    let seed = seed();
    let daemon = Daemon::start_with(CONFIG, &["--listen", listen[0], "--listen", listen[1]]);
    let addresses = daemon.addresses();
    let mut peers: Vec<_> = addresses.iter().cycle().take(CONNECTIONS).map(|address| Peer::connect(address)).collect();
    for peer in &mut peers {
        peer.exchange("here");
    }
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts");
    let result = runtime.block_on(async {
        let barrier = Arc::new(Barrier::new(CONNECTIONS));
        let mut clients = JoinSet::new();
        for (number, peer) in peers.into_iter().enumerate() {
            let stream = peer.into_stream();
            stream.set_nonblocking(true).expect("it can be set");
            let (stream, workload) =
                (UnixStream::from_std(stream).expect("it can be watched"), Workload::new(seed, number));
            let barrier = Arc::clone(&barrier);
            clients.spawn(async move {
                run_client(stream, workload, barrier).await.map_err(|problem| format!("connection {number}: {problem}"))
            });
        }
        let ended = time::timeout(LOAD_TIMEOUT, clients.join_all()).await;
        ended.map(|ended| ended.into_iter().filter_map(Result::err).collect::<Vec<_>>())
    });
    let problems = result.unwrap_or_else(|_| panic!("not done after {LOAD_TIMEOUT:?}; ECHOED_TEST_SEED={seed}"));
    let first: Vec<_> = problems.iter().take(5).collect();
    assert!(problems.is_empty(), "ECHOED_TEST_SEED={seed}: {} connections went wrong: {first:#?}", problems.len());
    let log = daemon.stop();
    let count = format!("; {} messages, {CONNECTIONS} connections in all", CONNECTIONS * (MESSAGES + 1));
    assert!(log.last().is_some_and(|line| line.ends_with(&count)), "not \"{count}\": {log:#?}");
}

#[test]
fn a_thousand_connections_at_once_each_get_their_replies_over_tcp() {
    let _alone = alone();
    check_load(["127.0.0.1:0", "small=127.0.0.1:0"]);
}

#[test]
fn a_thousand_connections_at_once_each_get_their_replies_over_a_unix_socket() {
    let _alone = alone();
    check_load(["DIR/echo.sock", "small=DIR/small.sock"]);
}

#[test]
fn a_client_that_sends_100000_messages_and_half_closes_gets_100000_replies() {
    let _alone = alone();
    let daemon = Daemon::start_with(CONFIG, &["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
    for address in daemon.addresses() {
        let stream = Peer::connect(&address).into_stream();
        thread::scope(|scope| {
            scope.spawn(|| {
                let messages: String = (0..100_000).map(|number| format!("message {number}\t")).collect();
                (&stream).write_all(messages.as_bytes()).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            let mut count = 0;
            for (number, reply) in BufReader::new(&stream).split(b'\t').enumerate() {
                assert_eq!(String::from_utf8(reply.unwrap()).unwrap(), format!("server got:message {number}"));
                count += 1;
            }
            assert_eq!(count, 100_000, "{address}");
        });
    }
    let log = daemon.stop();
    assert!(log.last().is_some_and(|line| line.ends_with("; 200000 messages, 2 connections in all")), "{log:#?}");
}
