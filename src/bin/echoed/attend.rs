//! What the daemon does while its workers serve: it hears signals, reads its settings anew, tells the manager how it is,
//! and notices when nobody needs it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::time::Duration;

use echoed::config::{self, Service, Settings};
use echoed::descriptors;
use echoed::protocol::rules::Span;
use echoed::server::{Counts, Server};
use echoed::systemd::inherited::Sockets;
use echoed::systemd::notify;
use tokio::sync::watch;
use tokio::time;

use crate::log::{LeveledLog, Note};
use crate::signals::{Request, Signals};

/// How often the manager is told how it is, at most.
const STATUS: Duration = Duration::from_secs(5);

/// Why the daemon ends.
pub(crate) enum End {
    Signal(&'static str),
    /// The last listener broke.
    Broken,
    /// The one connection that it was started for has ended.
    Served,
    /// There was no connection for so long.
    Unused(Span),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => f.write_str(name),
            Self::Broken => f.write_str("no listener is left"),
            Self::Served => f.write_str("the connection ended"),
            Self::Unused(time) => write!(f, "no connection for {time} (service.idle_exit)"),
        }
    }
}

/// When the daemon ends without being told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Never: it holds the sockets itself.
    Standing,
    /// When it is not used; the manager starts it again with the next client.
    OnDemand,
    /// With the one connection that it was started for.
    OneConnection,
}

impl Purpose {
    pub(crate) fn of(sockets: &Sockets) -> Self {
        match sockets {
            Sockets::Nothing => Self::Standing,
            Sockets::Listeners(_) => Self::OnDemand,
            Sockets::Connection(_) => Self::OneConnection,
        }
    }

    /// Makes room for the descriptors of all connections that there may be. The result is for [`note_room`].
    pub(crate) fn make_room(self, settings: &Settings) -> Result<(), u64> {
        match self {
            Self::Standing | Self::OnDemand => descriptors::make_room_for(settings.limits.connections),
            Self::OneConnection => Ok(()),
        }
    }
}

/// Who attends.
pub(crate) struct Attendant<'a, Load> {
    server: &'a Server,
    purpose: Purpose,
    log: &'a LeveledLog,
    load: Load,
    /// What the process was started with.
    started: &'a Settings,
    /// What holds now.
    settings: watch::Sender<Settings>,
    /// What was wrong with the settings when they were last read, in one line.
    refused: RefCell<Option<String>>,
    /// What the manager was last told of how it is.
    told: RefCell<String>,
}

impl<'a, Load: Fn() -> Result<Settings, config::Error>> Attendant<'a, Load> {
    /// Attends to `server`, which was started with these settings. `load` reads them anew.
    pub(crate) fn new(
        server: &'a Server,
        purpose: Purpose,
        settings: &'a Settings,
        log: &'a LeveledLog,
        load: Load,
    ) -> Self {
        let (refused, told) = (RefCell::default(), RefCell::default());
        let started = settings;
        Self { server, purpose, log, load, started, settings: watch::Sender::new(settings.clone()), refused, told }
    }

    /// Until there is a reason to end.
    pub(crate) async fn attend(&self, signals: &mut Signals) -> End {
        self.tell_ready();
        tokio::select! {
            name = self.obey(signals) => End::Signal(name),
            () = self.server.all_listeners_failed() => End::Broken,
            () = self.server.wait_until_idle(), if self.purpose == Purpose::OneConnection => End::Served,
            time = self.until_unused(), if self.purpose == Purpose::OnDemand => End::Unused(time),
            never = self.feed_watchdog() => match never {},
            never = self.tell_status() => match never {},
        }
    }

    /// What holds for the process now.
    pub(crate) fn service(&self) -> Service {
        self.settings.borrow().service.clone()
    }

    /// Does what signals ask for, until one asks to end.
    async fn obey(&self, signals: &mut Signals) -> &'static str {
        loop {
            match signals.next().await {
                Request::Stop(name) => return name,
                Request::Reload => self.reload(),
                Request::Hang => self.server.hang_worker(),
            }
        }
    }

    /// Reads the settings anew. They hold as a whole, or not at all.
    fn reload(&self) {
        self.log.told(notify::reloading());
        let refused = match (self.load)() {
            Ok(new) => {
                for key in self.started.needs_restart(&new) {
                    let text = format!("{key} changed, which holds after a restart; it stays as it was");
                    self.log.note(Note::NeedsRestart, &text);
                }
                self.log.set_level(new.log_level);
                self.server.reload(&new);
                note_room(self.purpose.make_room(&new), &new, self.log);
                self.settings.send_replace(new);
                self.log.note(Note::Reloaded, "reloaded: the new settings hold for new connections");
                None
            }
            Err(error) => {
                let text = error.to_string();
                self.log.note(Note::NotReloaded, &format!("not reloaded, the old settings stay:\n{text}"));
                let others = error.headlines().count().saturating_sub(1);
                let more = if others == 0 { String::new() } else { format!(" (and {others} more)") };
                error.headlines().next().map(|first| format!("{first}{more}"))
            }
        };
        self.refused.replace(refused);
        self.tell_ready();
    }

    /// Returns when there was no connection for `service.idle_exit`, and nobody is accepted any more.
    async fn until_unused(&self) -> Span {
        let mut settings = self.settings.subscribe();
        loop {
            let idle_exit = settings.borrow_and_update().service.idle_exit.clone();
            let left = idle_exit.as_ref().map(|limit| {
                // While there is a connection, the time begins later than now.
                limit.length().saturating_sub(self.server.idle_for().unwrap_or_default())
            });
            if let Some(limit) = idle_exit.filter(|_| left == Some(Duration::ZERO)) {
                if self.server.stop_if_idle(limit.length()).await {
                    return limit;
                }
            } else {
                let over = async {
                    match left {
                        Some(left) => time::sleep(left).await,
                        None => pending().await,
                    }
                };
                tokio::select! {
                    () = over => {}
                    // The sender is here, so there is no error.
                    _ = settings.changed() => {}
                }
            }
        }
    }

    /// Tells the manager that we are well, twice as often as it wants to hear it, and only when every worker has answered.
    async fn feed_watchdog(&self) -> Infallible {
        let Some(interval) = notify::watchdog_interval() else { return pending().await };
        loop {
            time::sleep(interval / 2).await;
            let mut answer = std::pin::pin!(self.server.ping_workers());
            if time::timeout(interval / 4, &mut answer).await.is_err() {
                self.log.note(Note::Hung, "a worker does not answer; the service manager is not told that we are well");
                answer.await;
                self.log.note(Note::Answered, "all workers answer again");
            }
            self.log.told(notify::watchdog());
        }
    }

    /// Tells the manager how it is, when that has changed.
    async fn tell_status(&self) -> Infallible {
        if !notify::is_wanted() {
            return pending().await;
        }
        loop {
            time::sleep(STATUS).await;
            let status = self.status();
            if status != *self.told.borrow() {
                self.log.told(notify::status(&status));
                self.told.replace(status);
            }
        }
    }

    /// Tells the manager that it is ready, and how it is. What clients do meanwhile is told later.
    fn tell_ready(&self) {
        let status = self.status();
        self.log.told(notify::ready(&status));
        self.told.replace(status);
    }

    /// How it is, in one line.
    fn status(&self) -> String {
        let (open, limit) = (self.server.connection_count(), self.server.connection_limit());
        let Counts { totals, resumed, .. } = self.server.counts();
        let (listeners, messages) = (self.server.listener_count(), grouped(totals.messages));
        let plural = if listeners == 1 { "" } else { "s" };
        let carried = if resumed == 0 { String::new() } else { format!(", {} carried here", grouped(resumed)) };
        let refused = self.refused.borrow().as_ref().map(|what| format!("; not reloaded: {what}")).unwrap_or_default();
        format!("{open}/{limit} connections, {listeners} listener{plural}, {messages} messages{carried}{refused}")
    }
}

/// Says where there cannot be as many descriptors as connections are allowed.
pub(crate) fn note_room(room: Result<(), u64>, settings: &Settings, log: &LeveledLog) {
    if let Err(descriptors) = room {
        let connections = settings.limits.connections;
        let text = format!(
            "{descriptors} descriptors are too few for limits.connections={connections}, clients beyond them will wait; \
             raise LimitNOFILE= of the service (ulimit -Hn of a shell)"
        );
        log.note(Note::FewDescriptors, &text);
    }
}

/// A number as people read it: 18,400.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (18_400, "18,400"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
