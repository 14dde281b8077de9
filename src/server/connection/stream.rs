//! The steps of a connection of bytes: part of the hot path, see `connection.rs`.

use std::time::Instant;

use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::net::{RecvFlags, Shutdown};

use super::{BULK, Connection, ConnectionWakers, Progress, Readiness, account_memory};
use crate::protocol::rules::LogMessages;
use crate::protocol::{Scratch, Want};
use crate::server::input_kind::InputKind;
use crate::server::outlet::{LoggingOutlet, SocketOutlet};
use crate::server::peer_descriptors::PeerDescriptors;
use crate::server::socket_error;
use crate::server::worker_state::WorkerState;

/// The most steps in one drive: one that replies, and one that finds the end of the stream or no more input. Then other
/// connections run.
const MAX_STEPS: u32 = 2;

impl Connection {
    /// Reads once and replies. Returns the readiness for a drive, if one has to follow.
    #[inline]
    pub(crate) fn exchange(&mut self, now: Instant, scratch: &mut Scratch, state: &WorkerState) -> Option<Readiness> {
        let Self { socket, session, info, is_bulk, .. } = self;
        let mut outlet = SocketOutlet { socket, blocked: false, broken: None };
        let buffer = scratch.input_room();
        let size = buffer.len();
        let next = match outlet.read(buffer) {
            Some(0) => {
                session.handle_end_of_input(now);
                Some(Readiness::None)
            }
            Some(count) => {
                *is_bulk = count >= BULK;
                let before = session.totals();
                session.receive(now, scratch, count, &mut outlet);
                info.listener.counters(state).count_totals(before, session.totals());
                if count == size {
                    Some(Readiness::ReadUntilBlocked)
                } else {
                    // The session is quiet again, so epoll reports what comes next.
                    (!session.is_quiet()).then_some(Readiness::None)
                }
            }
            None => None,
        };
        let Some(error) = outlet.broken else { return next };
        session.handle_reset();
        socket_error::report(error.into(), info, &state.sink);
        Some(Readiness::None)
    }

    /// Does what the session wants, until the socket or the log has no room, or [`MAX_STEPS`] steps are done.
    #[inline]
    pub(super) fn run_steps(
        &mut self,
        key: usize,
        readiness: Readiness,
        now: Instant,
        scratch: &mut Scratch,
        state: &WorkerState,
        wakers: &impl ConnectionWakers,
    ) -> Progress {
        let Self { socket, session, permit, info, waker, input: kind, awaits_log, is_bulk, .. } = self;
        let mut outlet = SocketOutlet { socket, blocked: false, broken: None };
        let log = session.rules().log_messages;
        // Whether another read would return nothing, or epoll will report any further input.
        let mut input_exhausted = readiness == Readiness::None;
        let mut steps = 0;
        // An earlier exchange may have left something unfinished.
        account_memory(session, permit, waker.as_deref(), info, &state.sink, now);
        loop {
            match session.wants() {
                Want::Close => return Progress::Closed,
                Want::Delay => return Progress::Pending,
                Want::Read if input_exhausted || kind.is_parked() => return Progress::Pending,
                Want::Read if steps == MAX_STEPS => return Progress::Yield,
                // One drive sends at most 64 KiB and one reply.
                Want::Write | Want::Log if steps > 0 => return Progress::Yield,
                Want::Read => {
                    let buffer = scratch.input_room();
                    let size = buffer.len();
                    let until_blocked = readiness.is_until_blocked() || kind.descriptors() == PeerDescriptors::Queued;
                    let input = match kind {
                        InputKind::Packets { .. } => unreachable!("they have steps of their own"),
                        InputKind::Bytes(receive_buffer) => {
                            receive_buffer.limit(outlet.socket);
                            outlet.read(buffer)
                        }
                        InputKind::WithDescriptors { descriptors: PeerDescriptors::None, .. } => outlet.read(buffer),
                        InputKind::WithDescriptors { descriptors, parked } => {
                            let wake = || wakers.unpark_waker(key, info.id);
                            outlet.read_with_descriptors(buffer, descriptors, parked, &state.disposal, wake)
                        }
                    };
                    match input {
                        Some(0) => session.handle_end_of_input(now),
                        Some(count) => {
                            *is_bulk = count >= BULK;
                            input_exhausted = count < size && !until_blocked;
                            if count == size {
                                steps = MAX_STEPS - 1;
                            }
                            if log == LogMessages::Off {
                                session.receive(now, scratch, count, &mut outlet);
                            } else {
                                let outlet = LoggingOutlet {
                                    inner: &mut outlet,
                                    sink: &state.sink,
                                    make_waker: || wakers.drive_waker(key),
                                    info,
                                    waker,
                                    awaits_log,
                                    log,
                                };
                                outlet.receive(session, now, scratch, count);
                            }
                        }
                        None => input_exhausted = true,
                    }
                }
                Want::Write | Want::Log => {
                    // While output is pending, only EPOLLOUT is registered, so there may be input that epoll has not
                    // reported.
                    input_exhausted = false;
                    if log == LogMessages::Off {
                        session.process_buffers(now, scratch, &mut outlet);
                    } else {
                        let outlet = LoggingOutlet {
                            inner: &mut outlet,
                            sink: &state.sink,
                            make_waker: || wakers.drive_waker(key),
                            info,
                            waker,
                            awaits_log,
                            log,
                        };
                        outlet.process_buffers(session, now, scratch);
                    }
                }
                Want::Shutdown => {
                    // Closing a connection with unread input would reset it.
                    if ioctl_fionread(outlet.socket).is_ok_and(|unread| unread > 0) {
                        session.note_activity(now);
                    }
                    // If the peer has gone, the next read reports it.
                    let _ = rustix::net::shutdown(outlet.socket, Shutdown::Write);
                    session.handle_shutdown_sent(now);
                }
            }
            steps += 1;
            if let Some(error) = outlet.broken.take() {
                session.handle_reset();
                socket_error::report(error.into(), info, &state.sink);
            }
            if !account_memory(session, permit, waker.as_deref(), info, &state.sink, now) {
                // The session no longer wants to do what was blocked.
                outlet.blocked = false;
            }
            if outlet.blocked {
                return Progress::Pending;
            }
        }
    }

    /// Reads input while replies are owed: the kernel has closed the receive window and accepts no acknowledgment from
    /// the peer until something is read. Reads nothing if there is no memory for it.
    #[cold]
    pub(super) fn read_ahead(&mut self, now: Instant, scratch: &mut Scratch, state: &WorkerState) {
        let buffer = scratch.input_room();
        let (memory, size) = (self.session.memory(), self.session.read_ahead_room().min(buffer.len()));
        if size == 0 || !self.permit.set_memory(memory + size) {
            self.permit.set_memory(memory);
            return;
        }
        match retry_on_intr(|| rustix::net::recv(&self.socket, &mut buffer[..size], RecvFlags::empty())) {
            // The next read returns the end of the stream again.
            Ok((count, _)) => self.session.read_ahead(now, &buffer[..count]),
            Err(Errno::AGAIN) => {}
            Err(error) => {
                self.session.handle_reset();
                socket_error::report(error.into(), &self.info, &state.sink);
            }
        }
        self.permit.set_memory(self.session.memory());
    }
}
