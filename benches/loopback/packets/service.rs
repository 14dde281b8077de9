//! One of the candidates: datagrams as one serves them with tokio, each received and answered by itself.

use std::os::unix::net::UnixDatagram as StdUnixDatagram;

use tokio::io::Interest;
use tokio::net::{UdpSocket, UnixDatagram};

use crate::socket_io::PREFIX;
use crate::{Context as _, Failure, Result};

const MAX_MESSAGE: usize = 64 * 1024;

/// Returns a buffer that begins with the prefix, behind which messages are received.
fn buffer() -> Vec<u8> {
    let mut buffer = vec![0; PREFIX.len() + MAX_MESSAGE];
    buffer[..PREFIX.len()].copy_from_slice(PREFIX);
    buffer
}

async fn serve_udp(address: &str) -> Result<()> {
    let socket = UdpSocket::bind(address).await.context(address)?;
    eprintln!("listening on udp:{}", socket.local_addr().context("the socket")?);
    let mut buffer = buffer();
    loop {
        let (size, sender) = socket.recv_from(&mut buffer[PREFIX.len()..]).await.context("receiving")?;
        // A reply that cannot be sent is dropped.
        drop(socket.send_to(&buffer[..PREFIX.len() + size], sender).await);
    }
}

async fn serve_unix(path: &str) -> Result<()> {
    let socket = StdUnixDatagram::bind(path).context(path)?;
    socket.set_nonblocking(true).context("the socket")?;
    // tokio sends to paths only, so it waits for readiness, and the standard library receives and sends.
    let readiness = UnixDatagram::from_std(socket.try_clone().context("the socket")?).context("the socket")?;
    eprintln!("listening on unixgram:{path}");
    let mut buffer = buffer();
    loop {
        let received = readiness.async_io(Interest::READABLE, || socket.recv_from(&mut buffer[PREFIX.len()..])).await;
        let (size, sender) = received.context("receiving")?;
        drop(socket.send_to_addr(&buffer[..PREFIX.len() + size], &sender));
    }
}

/// Serves until it is killed.
pub(crate) fn run(address: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("making a runtime")?;
    runtime.block_on(async {
        match address.split_once(':') {
            Some(("udp", address)) => serve_udp(address).await,
            Some(("unixgram", path)) => serve_unix(path).await,
            _ => Err(Failure::new(format_args!("{address} is not an address of datagrams"))),
        }
    })
}
