//! Exchanges with a simulated server, over a pipe of a few bytes and on a fake clock.

use std::io;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, advance, sleep, timeout};

use super::exchange_error::ExchangeError;
use super::expectation::{Expectation, ExpectedReply};
use super::input::Messages;
use super::output::{Reply, ReplySink};
use super::pipelined::exchange_pipelined;
use crate::protocol::Delimiter;
use crate::protocol::reply::Prefix;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Records replies. Each flush takes `flush_time`.
#[derive(Default)]
struct RecordingSink {
    replies: Vec<(String, bool)>,
    flush_time: Duration,
}

impl ReplySink for RecordingSink {
    fn write_reply(&mut self, reply: Reply<'_>) -> io::Result<()> {
        self.replies.push((String::from_utf8_lossy(reply.bytes).into_owned(), reply.ok));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        advance_clock(self.flush_time);
        Ok(())
    }
}

/// Advances the clock while nothing else runs, as in a write that blocks or in a stopped process.
fn advance_clock(time: Duration) {
    if time > Duration::ZERO {
        let mut context = Context::from_waker(Waker::noop());
        let _ = pin!(advance(time)).poll(&mut context);
    }
}

fn expectation(replies: bool) -> Expectation {
    let reply = if replies { ExpectedReply::Echo(Prefix::new(b"server got:")) } else { ExpectedReply::None };
    Expectation { reply, timeout: TIMEOUT }
}

fn messages(messages: &[&str]) -> Messages {
    Messages::from_arguments(messages.iter().map(|message| message.as_bytes().to_vec()), Some(&Delimiter::default()))
        .unwrap()
}

/// The result of an exchange.
struct Outcome<T> {
    result: Result<(), ExchangeError>,
    sink: RecordingSink,
    /// How long it took.
    elapsed: Duration,
    /// The result of the simulated server.
    server: T,
}

impl<T> Outcome<T> {
    fn error(&self) -> Option<String> {
        self.result.as_ref().err().map(ToString::to_string)
    }
}

/// Sends messages to a server over a pipe that holds `capacity` bytes each way.
async fn run_exchange<F: Future>(
    sent: &[&str],
    replies: bool,
    capacity: usize,
    server: impl FnOnce(DuplexStream) -> F,
) -> Outcome<F::Output> {
    run_exchange_with(RecordingSink::default(), sent, replies, capacity, server).await
}

async fn run_exchange_with<F: Future>(
    mut sink: RecordingSink,
    sent: &[&str],
    replies: bool,
    capacity: usize,
    server: impl FnOnce(DuplexStream) -> F,
) -> Outcome<F::Output> {
    let (ours, theirs) = duplex(capacity);
    let (expectation, start) = (expectation(replies), Instant::now());
    let exchange = async {
        let result = exchange_pipelined(ours, messages(sent), &Delimiter::default(), &expectation, &mut sink).await;
        (result, start.elapsed())
    };
    let ((result, elapsed), server) = tokio::join!(exchange, server(theirs));
    Outcome { result, sink, elapsed, server }
}

/// Waits for exactly these bytes.
async fn expect_bytes(stream: &mut DuplexStream, expected: &str) {
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received).await.expect("they come");
    assert_eq!(String::from_utf8_lossy(&received), expected);
}

async fn send_text(stream: &mut DuplexStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("it is heard");
}

/// Answers each byte as it should be, one after the other.
async fn echo(mut stream: DuplexStream) {
    let mut is_begun = false;
    while let Ok(byte) = stream.read_u8().await {
        if !is_begun {
            send_text(&mut stream, "server got:").await;
        }
        is_begun = byte != b'\t';
        stream.write_u8(byte).await.expect("it is heard");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_are_answered_whatever_the_capacity_of_the_pipe() {
    for capacity in [1, 2, 7, 100_000] {
        let outcome = run_exchange(&["aaaa", "", "b", &"c".repeat(1000)], true, capacity, echo).await;
        assert_eq!(outcome.error(), None);
        let replies: Vec<_> = outcome.sink.replies.iter().map(|(reply, ok)| (reply.len(), *ok)).collect();
        assert_eq!(replies, [(15, true), (11, true), (12, true), (1011, true)], "room for {capacity}");
    }
}

#[tokio::test(start_paused = true)]
async fn number_of_unanswered_messages_is_bounded() {
    for (message, most) in [("", 4096), (&*"x".repeat(99_999), 11)] {
        let outcome = run_exchange(&vec![message; 5000], true, 1 << 30, async |mut server: DuplexStream| {
            expect_bytes(&mut server, &format!("{message}\t").repeat(most)).await;
            let more = timeout(Duration::from_secs(4), server.read_u8()).await;
            assert!(more.is_err(), "no more than {most} come at once");
            send_text(&mut server, &format!("server got:{message}\t")).await;
            expect_bytes(&mut server, &format!("{message}\t")).await;
        })
        .await;
        let error = outcome.error().expect("the server went away");
        assert!(error.ends_with("messages are unanswered"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn reply_timeout_starts_when_the_reply_is_the_next_one() {
    let outcome = run_exchange(&["a", "b"], true, 100, async |mut server: DuplexStream| {
        expect_bytes(&mut server, "a\tb\t").await;
        sleep(Duration::from_secs(4)).await;
        send_text(&mut server, "server got:a\t").await;
        sleep(Duration::from_secs(4)).await;
        // Bytes of a reply do not extend its time.
        send_text(&mut server, "server got:").await;
        let _ = server.read_u8().await;
    })
    .await;
    let late = "no reply to message 2, \"b\", within 5s (--timeout); \
                so far \"server got:\" has come, without the delimiter \"\\t\"";
    assert_eq!(outcome.error().as_deref(), Some(late));
    assert_eq!(outcome.sink.replies, [("server got:a".to_owned(), true)]);
    assert_eq!(outcome.elapsed.as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn time_for_printing_does_not_count_for_the_next_reply() {
    let slow = RecordingSink { flush_time: Duration::from_secs(10), ..RecordingSink::default() };
    let outcome = run_exchange_with(slow, &["a", "b"], true, 100, async |mut server: DuplexStream| {
        expect_bytes(&mut server, "a\tb\t").await;
        send_text(&mut server, "server got:a\t").await;
        sleep(Duration::from_secs(13)).await;
        send_text(&mut server, "server got:b\t").await;
        server
    })
    .await;
    assert_eq!(outcome.error(), None);
    assert_eq!(outcome.sink.replies.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn reply_that_came_while_the_client_was_stopped_is_not_late() {
    // Whether the timeout or the reply is noticed first, is left to chance.
    for _ in 0..20 {
        let outcome = run_exchange(&["a"], true, 100, async |mut server: DuplexStream| {
            expect_bytes(&mut server, "a\t").await;
            send_text(&mut server, "server got:a\t").await;
            advance_clock(Duration::from_secs(10));
            server
        })
        .await;
        assert_eq!(outcome.error(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn server_error_is_read_after_writing_has_failed() {
    // Whether the final reply or the broken pipe is noticed first, is left to chance.
    for replies in [true, false].repeat(10) {
        let outcome = run_exchange(&["aaaa", "b"], replies, 40, async |mut server: DuplexStream| {
            expect_bytes(&mut server, "a").await;
            send_text(&mut server, "server error:out of buffer memory\t").await;
        })
        .await;
        assert_eq!(outcome.error().as_deref(), Some("the server says: out of buffer memory"));
    }
    for replies in [true, false].repeat(10) {
        let outcome = run_exchange(&[&"a".repeat(100)], replies, 40, async |mut server: DuplexStream| {
            expect_bytes(&mut server, "a").await;
        })
        .await;
        let error = outcome.error().expect("it is not answered");
        assert!(error.starts_with("the server ended the connection"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn server_that_stops_reading_is_a_write_timeout() {
    for replies in [true, false] {
        let outcome = run_exchange(&["aaaa"], replies, 3, async |mut server: DuplexStream| {
            sleep(Duration::from_secs(4)).await;
            expect_bytes(&mut server, "a").await;
            // The time runs anew from the last byte that it took.
            sleep(Duration::from_secs(60)).await;
        })
        .await;
        let stuck = "the server has taken nothing of what we send for 5s (--timeout)";
        assert_eq!(outcome.error().as_deref(), Some(stuck));
        assert_eq!(outcome.elapsed.as_secs(), 9);
    }
}

#[tokio::test(start_paused = true)]
async fn unrequested_reply_is_an_error() {
    for surplus in ["server got:a\t", "x"] {
        let outcome = run_exchange(&["a"], true, 100, async |mut server: DuplexStream| {
            expect_bytes(&mut server, "a\t").await;
            send_text(&mut server, &format!("server got:a\t{surplus}")).await;
        })
        .await;
        let unexpected = format!("got \"{}\", which no message had asked for", surplus.trim_end());
        assert_eq!(outcome.error(), Some(unexpected));
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_read_of_a_reply_than_a_wrong_one_may_have() {
    let long = "x".repeat(100_000);
    for (message, beginning) in [("a", ""), ("a", "server got:"), ("a", "server error:"), (&*long, "")] {
        let outcome = run_exchange(&[message], true, 1000, async |mut server: DuplexStream| {
            send_text(&mut server, beginning).await;
            let (mut reader, mut writer) = tokio::io::split(server);
            let flood = async {
                let mut written = 0;
                while let Ok(count) = writer.write(&[b'y'; 100]).await {
                    written += count;
                }
                written
            };
            let read = async { while matches!(reader.read(&mut [0; 1000]).await, Ok(1..)) {} };
            tokio::join!(flood, read).0
        })
        .await;
        let error = outcome.error().expect("it is not a reply");
        let limit = "server got:".len() + message.len() + 4096;
        assert!(error.contains(&format!("({} bytes)", limit + 1)), "{error}");
        assert!(error.len() < 1000, "{error}");
        // The pipe holds 1,000 bytes.
        assert!(outcome.server <= limit + 2000, "{} bytes were taken", outcome.server);
        assert_eq!(
            outcome.sink.replies.iter().map(|(reply, ok)| (reply.len(), *ok)).collect::<Vec<_>>(),
            [(limit + 1, false)]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_not_asked_for_is_not_read_to_its_end() {
    // The second message is never sent, since the server reads nothing more.
    let outcome = run_exchange(&["a", &"b".repeat(20_000)], true, 1000, async |mut server: DuplexStream| {
        expect_bytes(&mut server, "a\t").await;
        send_text(&mut server, "server got:a\t").await;
        while server.write_all(&[b'x'; 100]).await.is_ok() {}
    })
    .await;
    let error = outcome.error().expect("it is not a reply");
    assert!(error.ends_with("…\" (24108 bytes), which no message had asked for"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_reply_before_its_message_was_sent_is_an_error() {
    // The second message does not fit on the way.
    let long = "b".repeat(20);
    let outcome = run_exchange(&["aaaa", &long], true, 20, async |mut server: DuplexStream| {
        send_text(&mut server, "server got:aaaa\t").await;
        send_text(&mut server, &format!("server got:{long}\t")).await;
        sleep(TIMEOUT).await;
    })
    .await;
    assert_eq!(outcome.error(), Some(format!("got \"server got:{long}\", which no message had asked for")));
    assert_eq!(outcome.sink.replies.iter().map(|(_, ok)| *ok).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test(start_paused = true)]
async fn without_replies_the_client_waits_until_the_server_ends_its_stream() {
    let outcome = run_exchange(&["a", "b"], false, 2, async |mut server: DuplexStream| {
        let mut received = String::new();
        server.read_to_string(&mut received).await.unwrap();
        sleep(Duration::from_secs(4)).await;
        received
    })
    .await;
    assert_eq!(outcome.error(), None);
    assert_eq!((outcome.server.as_str(), outcome.sink.replies.len()), ("a\tb\t", 0));
    assert_eq!(outcome.elapsed.as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn without_replies_input_is_dropped_unless_it_is_a_server_error() {
    let other = "the server says: no (and then not \"\\t\"; does it use that delimiter, see --delimiter?)";
    for (sent, error) in [
        ("anything\tat all", None),
        ("server error:no\t", Some("the server says: no")),
        ("server error:no", Some(other)),
    ] {
        let outcome = run_exchange(&["a"], false, 100, async |mut server: DuplexStream| {
            expect_bytes(&mut server, "a\t").await;
            send_text(&mut server, sent).await;
        })
        .await;
        assert_eq!(outcome.error().as_deref(), error);
        assert_eq!(outcome.sink.replies, []);
    }
}

#[tokio::test(start_paused = true)]
async fn without_replies_continuous_input_does_not_extend_the_timeout() {
    let outcome = run_exchange(&["a"], false, 1_000_000, async |mut server: DuplexStream| {
        expect_bytes(&mut server, "a\t").await;
        for _ in 0..10_000 {
            if server.write_all(&[b'x'; 500_000]).await.is_err() {
                break;
            }
            // There is always more to read, and time passes all the same.
            advance_clock(Duration::from_millis(1));
        }
    })
    .await;
    let error = outcome.error().expect("it is not waited for");
    assert!(error.starts_with("the server has not ended its stream within 5s after the last message"), "{error}");
    assert_eq!(outcome.elapsed.as_secs(), 5);
}
