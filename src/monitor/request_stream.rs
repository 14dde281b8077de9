//! A stream on which requests may take only so long.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{self, Instant, Sleep};

/// How long a request may take, from its first byte.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long nothing may be sent between two requests, and how long a client may take no byte of an answer.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream that breaks when a client takes too long.
pub(crate) struct RequestStream<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    /// Whether a part of a request has come since the last answer.
    has_request: bool,
}

impl<S> RequestStream<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, deadline: Box::pin(time::sleep(IDLE_TIMEOUT)), has_request: false }
    }

    fn set_deadline(&mut self, time: Duration) {
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    /// Returns an error if the deadline has passed, or else waits for it.
    fn poll_deadline<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.deadline.as_mut().poll(context).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            return self.poll_deadline(context);
        }
        if buffer.filled().len() > before && !self.has_request {
            self.has_request = true;
            self.set_deadline(REQUEST_TIMEOUT);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RequestStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_pending() {
            return self.poll_deadline(context);
        }
        self.has_request = false;
        self.set_deadline(IDLE_TIMEOUT);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Reads until that is an error, and returns when that was and what was read before.
    async fn read_to_error(stream: &mut RequestStream<tokio::io::DuplexStream>) -> (Duration, usize) {
        let (begun, mut count) = (Instant::now(), 0);
        loop {
            match stream.read(&mut [0; 100]).await {
                Ok(0) => panic!("the stream has ended"),
                Ok(more) => count += more,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::TimedOut);
                    return (begun.elapsed(), count);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_5_s_from_its_first_byte_and_silence_30_s() {
        let (mut client, server) = duplex(1000);
        let mut stream = RequestStream::new(server);
        let slow_client = async {
            time::sleep(Duration::from_secs(20)).await;
            loop {
                client.write_all(b"x").await.unwrap();
                time::sleep(Duration::from_millis(1500)).await;
            }
        };
        let result = tokio::select! {
            result = read_to_error(&mut stream) => result,
            () = slow_client => unreachable!("it goes on"),
        };
        assert_eq!((result.0.as_secs(), result.1), (25, 4));

        let (mut client, server) = duplex(1000);
        let mut stream = RequestStream::new(server);
        client.write_all(b"GET /").await.unwrap();
        assert_eq!(stream.read(&mut [0; 100]).await.unwrap(), 5);
        time::sleep(Duration::from_secs(3)).await;
        stream.write_all(b"answer").await.unwrap();
        assert_eq!(read_to_error(&mut stream).await.0.as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_breaks_the_stream_30_s_after_its_last_byte_was_taken() {
        let (_client, server) = duplex(10);
        let mut stream = RequestStream::new(server);
        let begun = Instant::now();
        let error = stream.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::TimedOut, 30));
    }
}
