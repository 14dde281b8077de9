//! Options of served sockets. They are set on a listening socket, and its connections inherit them. Connections that were in
//! the backlog before, and connections that another process accepted, have not inherited them.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{ipproto, sockopt};

use crate::config::{BufferSize, ListenerSettings};

/// The idle time before the first keepalive probe (TCP_KEEPIDLE, tcp(7)).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// The time between keepalive probes (TCP_KEEPINTVL).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// The number of unanswered keepalive probes that breaks a connection (TCP_KEEPCNT).
const KEEPALIVE_PROBES: u32 = 6;

/// SO_BUF_LOCK of asm-generic/socket.h (Linux 5.14), which no library defines.
const SO_BUF_LOCK: libc::c_int = 72;

/// SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK of linux/socket.h: the buffer has a fixed size.
const SEND_BUFFER_LOCK: i32 = 1;
pub(crate) const RECEIVE_BUFFER_LOCK: i32 = 2;

sockopt_impl!(
    /// The buffers with a fixed size. The kernel adapts the size of the others.
    BufferLock,
    Both,
    libc::SOL_SOCKET,
    SO_BUF_LOCK,
    i32
);

/// The default size of the send buffer of a TCP socket, in bytes. It is small, so that unread replies occupy little memory. The
/// kernel doubles it (socket(7)).
const DEFAULT_SEND_BUFFER: usize = 64 * 1024;

/// Sets the options of the settings on a listening socket, a datagram socket, or a connection that has not inherited them.
///
/// # Errors
/// Returns an error if setsockopt(2) fails.
pub(crate) fn set(socket: impl AsFd, settings: &ListenerSettings) -> io::Result<()> {
    let is_tcp = is_tcp(&socket)?;
    // Linux before 5.14 does not tell whether another process has set the sizes.
    let locks = getsockopt(&socket, BufferLock).unwrap_or_default();
    let mut unlock = 0;
    match settings.receive_buffer {
        BufferSize::Bytes(size) => retry_on_intr(|| sockopt::set_socket_recv_buffer_size(&socket, size))?,
        BufferSize::Auto => unlock |= RECEIVE_BUFFER_LOCK,
        // Each connection limits its own while the daemon reads (`receive_buffer.rs`).
        BufferSize::Default => {}
    }
    match settings.send_buffer {
        BufferSize::Bytes(size) => retry_on_intr(|| sockopt::set_socket_send_buffer_size(&socket, size))?,
        BufferSize::Auto => unlock |= SEND_BUFFER_LOCK,
        // Unless the socket unit has set a size.
        BufferSize::Default if is_tcp && locks & SEND_BUFFER_LOCK == 0 => {
            retry_on_intr(|| sockopt::set_socket_send_buffer_size(&socket, DEFAULT_SEND_BUFFER))?;
        }
        BufferSize::Default => {}
    }
    if locks & unlock != 0 {
        let unlocked = setsockopt(&socket, BufferLock, &(locks & !unlock));
        optional(unlocked.map_err(|error| Errno::from_raw_os_error(error as i32)))?;
    }
    if is_tcp {
        // Urgent data stays in the stream, so no byte of a client is lost.
        optional(retry_on_intr(|| sockopt::set_socket_oobinline(&socket, true)))?;
        optional(retry_on_intr(|| sockopt::set_tcp_nodelay(&socket, settings.nodelay)))?;
        set_keepalive(&socket)?;
    }
    Ok(())
}

/// Ignores the error of an option that the kernel does not support. MPTCP supports different options in different versions.
fn optional(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::OPNOTSUPP | Errno::NOPROTOOPT) => Ok(()),
        result => result,
    }
}

/// Returns whether a socket is TCP or MPTCP.
fn is_tcp(socket: impl AsFd) -> io::Result<bool> {
    // Unix sockets have no protocol.
    let protocol = retry_on_intr(|| sockopt::socket_protocol(&socket))?;
    Ok(matches!(protocol, Some(ipproto::TCP | ipproto::MPTCP)))
}

/// Enables keepalive, so that the kernel detects peers that have vanished. A socket with SO_KEEPALIVE keeps its times.
fn set_keepalive(socket: impl AsFd) -> io::Result<()> {
    if retry_on_intr(|| sockopt::socket_keepalive(&socket))? {
        return Ok(());
    }
    optional(retry_on_intr(|| sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)))?;
    optional(retry_on_intr(|| sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)))?;
    optional(retry_on_intr(|| sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)))?;
    Ok(retry_on_intr(|| sockopt::set_socket_keepalive(&socket, true))?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    use super::*;
    use crate::config::Settings;

    fn settings() -> ListenerSettings {
        Settings::default().defaults
    }

    /// Returns the options of a TCP socket: the size of its send buffer, TCP_NODELAY, and its keepalive times.
    fn options(socket: impl AsFd) -> (usize, bool, Option<[u64; 3]>) {
        let keepalive = sockopt::socket_keepalive(&socket).unwrap().then(|| {
            let seconds = |time: Duration| time.as_secs();
            [
                seconds(sockopt::tcp_keepidle(&socket).unwrap()),
                seconds(sockopt::tcp_keepintvl(&socket).unwrap()),
                sockopt::tcp_keepcnt(&socket).unwrap().into(),
            ]
        });
        (sockopt::socket_send_buffer_size(&socket).unwrap(), sockopt::tcp_nodelay(&socket).unwrap(), keepalive)
    }

    const DEFAULTS: (usize, bool, Option<[u64; 3]>) = (128 * 1024, true, Some([60, 10, 6]));

    #[test]
    fn connections_inherit_the_options_of_their_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set(&listener, &settings()).unwrap();
        assert_eq!(options(&listener), DEFAULTS);
        let _later = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ((waited, _), (inherited, _)) = (listener.accept().unwrap(), listener.accept().unwrap());
        assert_eq!(options(&inherited), DEFAULTS);
        assert_ne!(options(&waited), DEFAULTS);
        set(&waited, &settings()).unwrap();
        assert_eq!(options(&waited), DEFAULTS);
    }

    #[test]
    fn what_the_socket_unit_has_chosen_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sockopt::set_socket_send_buffer_size(&listener, 20_000).unwrap();
        sockopt::set_socket_keepalive(&listener, true).unwrap();
        sockopt::set_tcp_keepidle(&listener, Duration::from_secs(7)).unwrap();
        let usual = options(&listener).2.unwrap();
        set(&listener, &settings()).unwrap();
        assert_eq!(options(&listener), (40_000, true, Some([7, usual[1], usual[2]])));
    }

    #[test]
    fn the_kernel_adapts_a_buffer_that_is_auto() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let with = |receive_buffer, send_buffer| ListenerSettings { receive_buffer, send_buffer, ..settings() };
        let locks = || getsockopt(&listener, BufferLock).unwrap();
        set(&listener, &with(BufferSize::Bytes(9000), BufferSize::Bytes(9000))).unwrap();
        assert_eq!(locks(), SEND_BUFFER_LOCK | RECEIVE_BUFFER_LOCK);
        set(&listener, &with(BufferSize::Bytes(9000), BufferSize::Auto)).unwrap();
        assert_eq!(locks(), RECEIVE_BUFFER_LOCK);
        set(&listener, &with(BufferSize::Auto, BufferSize::Auto)).unwrap();
        assert_eq!(locks(), 0);
    }

    #[test]
    fn an_option_that_mptcp_does_not_have_is_no_failure() {
        let Ok(mptcp) =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP))
        else {
            return;
        };
        let with = |size| ListenerSettings { receive_buffer: size, send_buffer: size, ..settings() };
        for size in [BufferSize::Bytes(9000), BufferSize::Auto, BufferSize::Default] {
            set(&mptcp, &with(size)).unwrap_or_else(|error| panic!("{size:?}: {error}"));
        }
    }

    #[test]
    fn unix_sockets_keep_the_buffers_that_the_kernel_gives_them() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let (one, _other) = UnixStream::pair().unwrap();
        let usual = sockopt::socket_send_buffer_size(&one).unwrap();
        for socket in [listener.as_fd(), one.as_fd()] {
            set(socket, &settings()).unwrap();
            assert_eq!(sockopt::socket_send_buffer_size(socket).unwrap(), usual);
        }
    }
}
