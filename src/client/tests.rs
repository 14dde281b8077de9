//! Exchanges with a server that the test plays, over a pipe of a few bytes and under a clock that does not wait.

use std::io;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, advance, sleep, timeout};

use super::exchange::exchange;
use super::failure::Failure;
use super::input::Messages;
use super::report::{Reply, Report};
use super::terms::{Answer, Terms};
use crate::protocol::Delimiter;
use crate::protocol::reply::Prefix;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps what was printed, and takes its time for it.
#[derive(Default)]
struct Printed {
    replies: Vec<(String, bool)>,
    pause: Duration,
}

impl Report for Printed {
    fn reply(&mut self, reply: Reply<'_>) -> io::Result<()> {
        self.replies.push((String::from_utf8_lossy(reply.bytes).into_owned(), reply.ok));
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        stand_still(self.pause);
        Ok(())
    }
}

/// The clock goes on while nothing else does, as in a write that blocks or in a stopped process.
fn stand_still(time: Duration) {
    if time > Duration::ZERO {
        let mut context = Context::from_waker(Waker::noop());
        let _ = pin!(advance(time)).poll(&mut context);
    }
}

fn terms(replies: bool) -> Terms {
    let answer = if replies { Answer::Echo(Prefix::new(b"server got:")) } else { Answer::Nothing };
    Terms { answer, timeout: TIMEOUT }
}

fn messages(messages: &[&str]) -> Messages {
    Messages::given(messages.iter().map(|message| message.as_bytes().to_vec()), Some(&Delimiter::default())).unwrap()
}

/// What an exchange came to.
struct Outcome<T> {
    result: Result<(), Failure>,
    printed: Printed,
    /// How long it took.
    elapsed: Duration,
    /// What the server has to say.
    server: T,
}

impl<T> Outcome<T> {
    fn error(&self) -> Option<String> {
        self.result.as_ref().err().map(ToString::to_string)
    }
}

/// Sends messages to a server over a pipe that holds `room` bytes each way.
async fn talk<F: Future>(
    sent: &[&str],
    replies: bool,
    room: usize,
    server: impl FnOnce(DuplexStream) -> F,
) -> Outcome<F::Output> {
    talk_to(Printed::default(), sent, replies, room, server).await
}

async fn talk_to<F: Future>(
    mut printed: Printed,
    sent: &[&str],
    replies: bool,
    room: usize,
    server: impl FnOnce(DuplexStream) -> F,
) -> Outcome<F::Output> {
    let (ours, theirs) = duplex(room);
    let (terms, start) = (terms(replies), Instant::now());
    let exchange = async {
        let result = exchange(ours, messages(sent), &Delimiter::default(), &terms, &mut printed).await;
        (result, start.elapsed())
    };
    let ((result, elapsed), server) = tokio::join!(exchange, server(theirs));
    Outcome { result, printed, elapsed, server }
}

/// Waits for exactly these bytes.
async fn hear(stream: &mut DuplexStream, expected: &str) {
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard).await.expect("they come");
    assert_eq!(String::from_utf8_lossy(&heard), expected);
}

async fn say(stream: &mut DuplexStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("it is heard");
}

/// Answers each byte as it should be, one after the other.
async fn echo(mut stream: DuplexStream) {
    let mut begun = false;
    while let Ok(byte) = stream.read_u8().await {
        if !begun {
            say(&mut stream, "server got:").await;
        }
        begun = byte != b'\t';
        stream.write_u8(byte).await.expect("it is heard");
    }
}

#[tokio::test(start_paused = true)]
async fn all_is_answered_however_little_fits_on_the_way() {
    for room in [1, 2, 7, 100_000] {
        let outcome = talk(&["aaaa", "", "b", &"c".repeat(1000)], true, room, echo).await;
        assert_eq!(outcome.error(), None);
        let replies: Vec<_> = outcome.printed.replies.iter().map(|(reply, ok)| (reply.len(), *ok)).collect();
        assert_eq!(replies, [(15, true), (11, true), (12, true), (1011, true)], "room for {room}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bounded_number_of_messages_is_on_the_way() {
    for (message, most) in [("", 4096), (&*"x".repeat(99_999), 11)] {
        let outcome = talk(&vec![message; 5000], true, 1 << 30, async |mut server: DuplexStream| {
            hear(&mut server, &format!("{message}\t").repeat(most)).await;
            let more = timeout(Duration::from_secs(4), server.read_u8()).await;
            assert!(more.is_err(), "no more than {most} come at once");
            say(&mut server, &format!("server got:{message}\t")).await;
            hear(&mut server, &format!("{message}\t")).await;
        })
        .await;
        let error = outcome.error().expect("the server went away");
        assert!(error.ends_with("messages are unanswered"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_reply_has_the_whole_time_from_when_it_is_the_next() {
    let outcome = talk(&["a", "b"], true, 100, async |mut server: DuplexStream| {
        hear(&mut server, "a\tb\t").await;
        sleep(Duration::from_secs(4)).await;
        say(&mut server, "server got:a\t").await;
        sleep(Duration::from_secs(4)).await;
        // Bytes of a reply do not extend its time.
        say(&mut server, "server got:").await;
        let _ = server.read_u8().await;
    })
    .await;
    let late = "no reply to message 2, \"b\", within 5s (--timeout); \
                so far \"server got:\" has come, without the delimiter \"\\t\"";
    assert_eq!(outcome.error().as_deref(), Some(late));
    assert_eq!(outcome.printed.replies, [("server got:a".to_owned(), true)]);
    assert_eq!(outcome.elapsed.as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn printing_takes_no_time_from_the_next_reply() {
    let slow = Printed { pause: Duration::from_secs(10), ..Printed::default() };
    let outcome = talk_to(slow, &["a", "b"], true, 100, async |mut server: DuplexStream| {
        hear(&mut server, "a\tb\t").await;
        say(&mut server, "server got:a\t").await;
        sleep(Duration::from_secs(13)).await;
        say(&mut server, "server got:b\t").await;
        server
    })
    .await;
    assert_eq!(outcome.error(), None);
    assert_eq!(outcome.printed.replies.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_came_while_we_stood_still_is_not_late() {
    // Whether time or reply is looked at first, is left to chance.
    for _ in 0..20 {
        let outcome = talk(&["a"], true, 100, async |mut server: DuplexStream| {
            hear(&mut server, "a\t").await;
            say(&mut server, "server got:a\t").await;
            stand_still(Duration::from_secs(10));
            server
        })
        .await;
        assert_eq!(outcome.error(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn last_words_are_heard_though_nothing_can_be_sent_any_more() {
    // Whether the words or the broken pipe is noticed first, is left to chance.
    for replies in [true, false].repeat(10) {
        let outcome = talk(&["aaaa", "b"], replies, 40, async |mut server: DuplexStream| {
            hear(&mut server, "a").await;
            say(&mut server, "server error:out of buffer memory\t").await;
        })
        .await;
        assert_eq!(outcome.error().as_deref(), Some("the server says: out of buffer memory"));
    }
    for replies in [true, false].repeat(10) {
        let outcome = talk(&[&"a".repeat(100)], replies, 40, async |mut server: DuplexStream| {
            hear(&mut server, "a").await;
        })
        .await;
        let error = outcome.error().expect("it is not answered");
        assert!(error.starts_with("the server ended the connection"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_nothing_is_not_waited_for_any_longer() {
    for replies in [true, false] {
        let outcome = talk(&["aaaa"], replies, 3, async |mut server: DuplexStream| {
            sleep(Duration::from_secs(4)).await;
            hear(&mut server, "a").await;
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
async fn what_nobody_asked_for_is_an_error() {
    for surplus in ["server got:a\t", "x"] {
        let outcome = talk(&["a"], true, 100, async |mut server: DuplexStream| {
            hear(&mut server, "a\t").await;
            say(&mut server, &format!("server got:a\t{surplus}")).await;
        })
        .await;
        let unexpected = format!("got \"{}\", which no message had asked for", surplus.trim_end());
        assert_eq!(outcome.error(), Some(unexpected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_before_its_message_was_sent_is_an_error() {
    // The second message does not fit on the way.
    let long = "b".repeat(20);
    let outcome = talk(&["aaaa", &long], true, 20, async |mut server: DuplexStream| {
        say(&mut server, "server got:aaaa\t").await;
        say(&mut server, &format!("server got:{long}\t")).await;
        sleep(TIMEOUT).await;
    })
    .await;
    assert_eq!(outcome.error(), Some(format!("got \"server got:{long}\", which no message had asked for")));
    assert_eq!(outcome.printed.replies.iter().map(|(_, ok)| *ok).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test(start_paused = true)]
async fn without_replies_all_is_taken_when_the_server_has_ended_its_stream() {
    let outcome = talk(&["a", "b"], false, 2, async |mut server: DuplexStream| {
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        sleep(Duration::from_secs(4)).await;
        heard
    })
    .await;
    assert_eq!(outcome.error(), None);
    assert_eq!((outcome.server.as_str(), outcome.printed.replies.len()), ("a\tb\t", 0));
    assert_eq!(outcome.elapsed.as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn without_replies_what_comes_is_dropped_unless_it_is_a_server_error() {
    let other = "the server says: no (and then not \"\\t\"; does it use that delimiter, see --delimiter?)";
    for (said, error) in [
        ("anything\tat all", None),
        ("server error:no\t", Some("the server says: no")),
        ("server error:no", Some(other)),
    ] {
        let outcome = talk(&["a"], false, 100, async |mut server: DuplexStream| {
            hear(&mut server, "a\t").await;
            say(&mut server, said).await;
        })
        .await;
        assert_eq!(outcome.error().as_deref(), error);
        assert_eq!(outcome.printed.replies, []);
    }
}

#[tokio::test(start_paused = true)]
async fn without_replies_a_flood_does_not_extend_the_wait_for_the_end() {
    let outcome = talk(&["a"], false, 1_000_000, async |mut server: DuplexStream| {
        hear(&mut server, "a\t").await;
        for _ in 0..10_000 {
            if server.write_all(&[b'x'; 500_000]).await.is_err() {
                break;
            }
            // There is always more to read, and time passes all the same.
            stand_still(Duration::from_millis(1));
        }
    })
    .await;
    let error = outcome.error().expect("it is not waited for");
    assert!(error.starts_with("the server has not ended its stream within 5s after the last message"), "{error}");
    assert_eq!(outcome.elapsed.as_secs(), 5);
}
