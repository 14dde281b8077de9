//! One of the candidates: the protocol as one writes it with tokio-util's codecs.
//!
//! `forward` flushes only when no further message is there, so that a pipeline is answered with few writes.

use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;

use futures_util::{StreamExt as _, TryStreamExt as _};
use listenfd::ListenFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::bytes::{BufMut as _, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::{Context as _, Failure, Result};

const PREFIX: &[u8] = b"server got:";
const DELIMITER: u8 = b'\t';
const MAX_MESSAGE: usize = 64 * 1024;

/// The framing; it remembers what it has searched already.
#[derive(Default)]
struct Delimited {
    searched: usize,
}

impl Decoder for Delimited {
    type Item = Bytes;
    type Error = std::io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> std::io::Result<Option<Bytes>> {
        if let Some(position) = memchr::memchr(DELIMITER, &input[self.searched..]) {
            let message = input.split_to(self.searched + position + 1).freeze();
            self.searched = 0;
            return Ok(Some(message));
        }
        self.searched = input.len();
        if self.searched > MAX_MESSAGE { Err(std::io::ErrorKind::InvalidData.into()) } else { Ok(None) }
    }
}

impl Encoder<Bytes> for Delimited {
    type Error = std::io::Error;

    fn encode(&mut self, message: Bytes, output: &mut BytesMut) -> std::io::Result<()> {
        output.reserve(PREFIX.len() + message.len());
        output.put_slice(PREFIX);
        output.put_slice(&message);
        Ok(())
    }
}

fn serve(stream: impl AsyncRead + AsyncWrite + 'static) {
    let (replies, messages) = Delimited::default().framed(stream).split();
    tokio::task::spawn_local(async move {
        // However it ends, the connection is over.
        drop(messages.into_stream().forward(replies).await);
    });
}

async fn serve_tcp(listener: StdTcpListener) -> Result<()> {
    listener.set_nonblocking(true).context("the listener")?;
    let listener = TcpListener::from_std(listener).context("the listener")?;
    eprintln!("listening on tcp:{}", listener.local_addr().context("the listener")?);
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).context("a connection")?;
            serve(stream);
        }
    }
}

async fn serve_unix(listener: StdUnixListener, path: &str) -> Result<()> {
    listener.set_nonblocking(true).context("the listener")?;
    let listener = UnixListener::from_std(listener).context("the listener")?;
    eprintln!("listening on unix:{path}");
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            serve(stream);
        }
    }
}

/// Serves until it is killed. Without an address it takes the Unix listener of a service manager.
pub(crate) fn run(address: Option<&str>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("making a runtime")?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        match address.and_then(|address| address.split_once(':')) {
            Some(("tcp", address)) => serve_tcp(StdTcpListener::bind(address).context(address)?).await,
            Some(("unix", path)) => serve_unix(StdUnixListener::bind(path).context(path)?, path).await,
            _ => {
                let inherited = ListenFd::from_env().take_unix_listener(0).context("the inherited listener")?;
                serve_unix(inherited.ok_or_else(|| Failure::new("no listener"))?, "").await
            }
        }
    })
}
