//! The table: which errors each call is to fail with. The errors are those of the manual pages (section 2, and section
//! 7 of the socket's family), and what a security module or a filter of the network adds (EPERM, EACCES).

use nix::errno::Errno;
use nix::errno::Errno::*;

use super::run::Kind;
use common::strace::Call;

const SETSOCKOPT: &[Errno] = &[EBADF, EFAULT, EINVAL, ENOPROTOOPT, ENOTSOCK, EOPNOTSUPP, ENOMEM, EPERM, EINTR];
const GETSOCKOPT: &[Errno] = &[EBADF, EFAULT, EINVAL, ENOPROTOOPT, ENOTSOCK, EACCES, EINTR];
const GETPEERNAME: &[Errno] = &[EBADF, EFAULT, EINVAL, ENOBUFS, ENOTCONN, ENOTSOCK, EINTR];
const EPOLL_ADD: &[Errno] = &[EINTR, EBADF, EEXIST, EINVAL, ELOOP, ENOENT, ENOMEM, ENOSPC, EPERM];
const EPOLL_OTHER: &[Errno] = &[EINTR, EBADF, EINVAL, ENOENT, ENOMEM, EPERM];
const RECEIVE: &[Errno] = &[
    EAGAIN,
    EBADF,
    ECONNREFUSED,
    EFAULT,
    EINTR,
    EINVAL,
    ENOMEM,
    ENOTCONN,
    ENOTSOCK,
    ECONNRESET,
    ETIMEDOUT,
    EHOSTUNREACH,
    ENETUNREACH,
    ENOBUFS,
    EPERM,
    EACCES,
    EIO,
];
const SEND: &[Errno] = &[
    EACCES,
    EAGAIN,
    EALREADY,
    EBADF,
    ECONNRESET,
    EDESTADDRREQ,
    EFAULT,
    EINTR,
    EINVAL,
    EISCONN,
    EMSGSIZE,
    ENOBUFS,
    ENOMEM,
    ENOTCONN,
    ENOTSOCK,
    EOPNOTSUPP,
    EPIPE,
    ECONNREFUSED,
    ENETUNREACH,
    EHOSTUNREACH,
    ETIMEDOUT,
    EPERM,
    ENOENT,
];
const SHUTDOWN: &[Errno] = &[EBADF, EINVAL, ENOTCONN, ENOTSOCK, EINTR];
const WRITE: &[Errno] = &[EAGAIN, EBADF, EDESTADDRREQ, EDQUOT, EFAULT, EFBIG, EINTR, EINVAL, EIO, ENOSPC, EPERM, EPIPE];
const OPENAT2: &[Errno] = &[
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EDQUOT,
    EFAULT,
    EINTR,
    EINVAL,
    ELOOP,
    EMFILE,
    ENAMETOOLONG,
    ENFILE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    ENXIO,
    EOVERFLOW,
    EPERM,
    E2BIG,
    EXDEV,
    ENOSYS,
    EIO,
];
const STATX: &[Errno] =
    &[EACCES, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, ENOSYS, EIO, EINTR];

/// Returns the errors that a call on the way of one client is to fail with; `None` for a call that is not known here.
pub(crate) fn errors(kind: Kind, call: &Call) -> Option<Vec<Errno>> {
    let has = |text: &str| call.text.contains(text);
    let errors = match &*call.name {
        // The next client is served: `listener_errors.rs`.
        "accept4" => &[],
        "recvmsg" | "recvmmsg" if kind.is_datagram() => &[],
        // strace would leave the descriptor open, which Linux closes in any case. The program ignores the result.
        "close" => &[],
        // A check of the standard library before each close, in test builds.
        "fcntl" if has("F_GETFD") => &[],
        // The same of tokio: whether a socket is non-blocking.
        "fcntl" if has("F_GETFL") => &[],
        "setsockopt" => SETSOCKOPT,
        "getsockopt" => GETSOCKOPT,
        "getpeername" => GETPEERNAME,
        // Of the reactor, which does not try again after EINTR. The manual page does not have it.
        "epoll_ctl" if has("EPOLLIN|EPOLLOUT") => &EPOLL_ADD[1..],
        "epoll_ctl" if has("EPOLL_CTL_DEL") => &EPOLL_OTHER[1..],
        "epoll_ctl" if has("EPOLL_CTL_ADD") => EPOLL_ADD,
        "epoll_ctl" => EPOLL_OTHER,
        // Of the reactor. What else the manual page has (EBADF, EFAULT, EINVAL) is a bug of the program: tokio panics.
        "epoll_wait" => &[EINTR],
        "epoll_pwait" => &[EBADF, EFAULT, EINTR, EINVAL],
        "poll" | "ppoll" => &[EFAULT, EINTR, EINVAL, ENOMEM],
        // It found nothing, or the end of the stream; after that, nothing more is reported.
        "recvfrom" | "recvmsg" | "recvmmsg" if has("= -1") => &[],
        "recvfrom" | "recvmsg" if call.text.ends_with("= 0") => &RECEIVE[1..],
        "recvfrom" | "recvmsg" | "recvmmsg" => RECEIVE,
        "sendto" | "sendmsg" | "sendmmsg" => SEND,
        "timerfd_settime" => &[EBADF, EFAULT, EINVAL, EINTR, EPERM],
        "shutdown" => SHUTDOWN,
        // Wakes a thread. mio panics after any other error than EAGAIN, and there is none.
        "write" if has("eventfd") => &[EAGAIN],
        "read" if has("eventfd") => &[EAGAIN, EBADF, EINTR, EINVAL],
        "write" => WRITE,
        "openat2" | "openat" => OPENAT2,
        "statx" => STATX,
        _ => return None,
    };
    Some(errors.to_vec())
}
