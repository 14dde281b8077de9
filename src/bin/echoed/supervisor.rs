//! The supervisor: what the main thread does while the workers serve. It handles signals, reloads the settings,
//! notifies the manager, and ends the process when the server is idle.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use echoed::config::{self, Loaded, Service, Settings};
use echoed::monitor::ProcessCounters;
use echoed::protocol::rules::TimeSpan;
use echoed::rlimit::{self, FdBudget, ServingThreads};
use echoed::server::event::LameDuckCause;
use echoed::server::{Counts, Phase, Server};
use echoed::systemd::activation::Sockets;
use echoed::systemd::notify;
use echoed::units::format_number;
use tokio::sync::{oneshot, watch};
use tokio::time;

use crate::log::{LeveledLog, Note, plural};
use crate::signals::{SignalRequest, Signals};

/// How often STATUS= is sent at most.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// How often an idle process checks whether the log can be written to before it ends.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why the daemon ends.
pub(crate) enum ExitReason {
    Signal(&'static str),
    /// The last listener failed.
    ListenersFailed,
    /// The one connection that it was started for has ended.
    ConnectionEnded,
    /// There was no connection for this time.
    Idle(TimeSpan),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => f.write_str(name),
            Self::ListenersFailed => f.write_str("all listeners failed"),
            Self::ConnectionEnded => f.write_str("the connection ended"),
            Self::Idle(time) => write!(f, "no connection for {time} (service.idle_exit)"),
        }
    }
}

/// How the daemon was started, and so when it ends without a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunMode {
    /// Never: it holds the sockets itself.
    Standalone,
    /// When it is idle; the manager starts it again for the next client.
    Activated,
    /// When it is idle, with a listening socket on stdin. Its starter (inetd) stores no connections for the next process.
    Stdin,
    /// With the one connection that it was started for.
    SingleConnection,
}

impl RunMode {
    pub(crate) fn of(sockets: &Sockets) -> Self {
        match sockets {
            Sockets::Nothing => Self::Standalone,
            Sockets::Listeners(_) => Self::Activated,
            Sockets::StdinListener(_) => Self::Stdin,
            Sockets::Connection(_) => Self::SingleConnection,
        }
    }

    /// Returns whether the process ends when it has been idle for long enough.
    fn ends_when_idle(self) -> bool {
        matches!(self, Self::Activated | Self::Stdin)
    }

    /// Preallocates the table of descriptors for all connections that there may be by these settings, and returns how many
    /// descriptors there can be. `threads` are those that serve.
    pub(crate) fn preallocate_fd_table(self, settings: &Settings, threads: ServingThreads) -> FdBudget {
        match self {
            Self::Standalone | Self::Activated | Self::Stdin => {
                rlimit::preallocate_fd_table(settings.limits.connections, threads)
            }
            Self::SingleConnection => FdBudget::of_single_connection(threads),
        }
    }
}

/// Supervises a server until there is a reason to end.
pub(crate) struct Supervisor<'a, Load> {
    server: &'a Server,
    mode: RunMode,
    /// Those that serve.
    threads: ServingThreads,
    log: &'a LeveledLog,
    process: &'a ProcessCounters,
    load_settings: Arc<Load>,
    /// The settings that the process was started with.
    initial_settings: &'a Settings,
    /// The current settings.
    settings: watch::Sender<Settings>,
    /// The problem with the settings when they were last read, in one line.
    reload_error: RefCell<Option<String>>,
    /// The status that was sent last.
    last_status: RefCell<String>,
}

impl<'a, Load: Fn() -> Result<Loaded, config::Error> + Send + Sync + 'static> Supervisor<'a, Load> {
    /// Creates the supervisor of `server`, which was started with these settings and threads. `load_settings` reads them anew, on a
    /// thread of its own.
    pub(crate) fn new(
        server: &'a Server,
        mode: RunMode,
        threads: ServingThreads,
        settings: &'a Settings,
        log: &'a LeveledLog,
        process: &'a ProcessCounters,
        load_settings: Load,
    ) -> Self {
        let (reload_error, last_status) = (RefCell::default(), RefCell::default());
        let initial_settings = settings;
        Self {
            server,
            mode,
            threads,
            log,
            process,
            load_settings: Arc::new(load_settings),
            initial_settings,
            settings: watch::Sender::new(settings.clone()),
            reload_error,
            last_status,
        }
    }

    /// Runs until there is a reason to end, and returns it.
    pub(crate) async fn run(&self, signals: &mut Signals) -> ExitReason {
        self.notify_ready();
        tokio::select! {
            name = self.handle_signals(signals) => ExitReason::Signal(name),
            () = self.server.all_listeners_failed() => ExitReason::ListenersFailed,
            () = self.server.wait_until_idle(), if self.mode == RunMode::SingleConnection => ExitReason::ConnectionEnded,
            time = self.wait_until_idle(), if self.mode.ends_when_idle() => ExitReason::Idle(time),
            never = self.ping_watchdog() => match never {},
            never = self.update_status() => match never {},
        }
    }

    /// Returns the current settings of the process.
    pub(crate) fn service(&self) -> Service {
        self.settings.borrow().service.clone()
    }

    /// Handles signals, until one asks to end. Returns its name.
    async fn handle_signals(&self, signals: &mut Signals) -> &'static str {
        let mut reload_requested = false;
        loop {
            let request = if reload_requested { SignalRequest::Reload } else { signals.next().await };
            match request {
                SignalRequest::Stop(name) => return name,
                SignalRequest::Drain | SignalRequest::Resume => {
                    self.set_lame_duck(request == SignalRequest::Drain);
                    continue;
                }
                SignalRequest::Reload => {}
            }
            reload_requested = false;
            let mut reload = std::pin::pin!(self.reload());
            // Signals are handled meanwhile: reading a file may take any time.
            loop {
                tokio::select! {
                    () = &mut reload => break,
                    request = signals.next() => match request {
                        SignalRequest::Stop(name) => return name,
                        SignalRequest::Reload => reload_requested = true,
                        SignalRequest::Drain => self.set_lame_duck(true),
                        SignalRequest::Resume => self.set_lame_duck(false),
                    }
                }
            }
            // The terminal may have hung up just after its SIGHUP.
            if let SignalRequest::Stop(name) = signals.hangup_request() {
                return name;
            }
        }
    }

    /// Begins or ends lame duck for a signal.
    fn set_lame_duck(&self, is_lame_duck: bool) {
        let server = self.server.handle();
        if is_lame_duck {
            server.begin_lame_duck(LameDuckCause::Signal("SIGUSR1"));
        } else {
            server.end_lame_duck(LameDuckCause::Signal("SIGUSR2"));
        }
    }

    /// Reloads the settings: all of them, or none.
    async fn reload(&self) {
        self.log.check_notified(notify::reloading());
        let reload_error = match self.load_settings().await {
            Ok(Loaded { settings: new, files, .. }) => {
                for key in self.initial_settings.keys_needing_restart(&new) {
                    let text = format!("{key} changed, but takes effect only after a restart; keeping the old value");
                    self.log.note(Note::NeedsRestart, &text);
                }
                self.log.set_level(new.log_level);
                self.server.reload(&new);
                let budget = self.mode.preallocate_fd_table(&new, self.threads);
                self.server.limit_peer_descriptors(budget.peer_fds());
                warn_low_nofile(budget, &new, self.log);
                self.log.warn_about(&new);
                self.settings.send_replace(new);
                let text = format!("reloaded: the new settings apply to new connections ({})", describe_files(&files));
                self.log.note(Note::Reloaded, &text);
                None
            }
            Err(error) => {
                self.log.note(Note::ReloadFailed, &format!("failed to reload, keeping the old settings:\n{error}"));
                Some(error.summary())
            }
        };
        self.process.count_reload(reload_error.is_none());
        self.reload_error.replace(reload_error);
        self.notify_ready();
    }

    /// Reads and checks the settings on a thread of their own: the watchdog, the status and signals do not wait for it.
    async fn load_settings(&self) -> Result<Loaded, ReloadError> {
        let (answer, answered) = oneshot::channel();
        let load_settings = Arc::clone(&self.load_settings);
        let thread = thread::Builder::new().name("settings".to_owned()).spawn(move || {
            // There is no receiver left if the daemon ends.
            let _ = answer.send(load_settings());
        });
        thread.map_err(ReloadError::Thread)?;
        // A panic ends the process.
        answered
            .await
            .map_err(|_| ReloadError::Thread(io::ErrorKind::BrokenPipe.into()))?
            .map_err(ReloadError::Settings)
    }

    /// Waits until there was no connection for `service.idle_exit`, and accepting has stopped. Not in lame duck: the process that
    /// is started for the next client would not be in it.
    async fn wait_until_idle(&self) -> TimeSpan {
        let (mut settings, server) = (self.settings.subscribe(), self.server.handle());
        loop {
            while server.phase() == Phase::LameDuck {
                server.phase_changed(Phase::LameDuck).await;
            }
            let idle_exit = settings.borrow_and_update().service.idle_exit.clone();
            let remaining = idle_exit.as_ref().map(|limit| {
                // While there is a connection, the time begins later than now.
                limit.duration().saturating_sub(self.server.idle_for().unwrap_or_default())
            });
            if remaining == Some(Duration::ZERO) && self.log_backlog().is_some() {
                // Entries that wait would be lost with the process.
                time::sleep(BACKLOG_INTERVAL).await;
            } else if let Some(limit) = idle_exit.filter(|_| remaining == Some(Duration::ZERO)) {
                if self.server.stop_if_idle(limit.duration()).await {
                    return limit;
                }
            } else {
                let idle_timeout = async {
                    match remaining {
                        Some(remaining) => time::sleep(remaining).await,
                        None => pending().await,
                    }
                };
                tokio::select! {
                    () = idle_timeout => {}
                    // The sender is here, so there is no error.
                    _ = settings.changed() => {}
                    () = server.phase_changed(Phase::Serving) => {}
                }
            }
        }
    }

    /// Returns how many entries wait because the log cannot be written to; `None` if it can.
    fn log_backlog(&self) -> Option<usize> {
        self.log.backlog(self.server.unlogged_messages().waiting())
    }

    /// Sends WATCHDOG=1, twice as often as the manager requires, and only when every worker has responded.
    async fn ping_watchdog(&self) -> Infallible {
        let Some(interval) = notify::watchdog_interval() else { return pending().await };
        loop {
            time::sleep(interval / 2).await;
            let mut pong = std::pin::pin!(self.server.ping_workers());
            if time::timeout(interval / 4, &mut pong).await.is_err() {
                self.log.note(Note::WorkerHung, "a worker thread is not responding, withholding WATCHDOG=1");
                pong.await;
                self.log.note(Note::WorkersResponding, "all worker threads are responding again");
            }
            self.log.check_notified(notify::watchdog());
        }
    }

    /// Sends STATUS= when the status has changed; at once when lame duck begins or ends.
    async fn update_status(&self) -> Infallible {
        if !notify::is_enabled() {
            return pending().await;
        }
        let server = self.server.handle();
        loop {
            let phase = server.phase();
            let _ = time::timeout(STATUS_INTERVAL, server.phase_changed(phase)).await;
            let status = self.status();
            if status != *self.last_status.borrow() {
                self.log.check_notified(notify::status(&status));
                self.last_status.replace(status);
            }
        }
    }

    /// Sends READY=1 and STATUS=. Later changes of the status are sent with the next one.
    fn notify_ready(&self) {
        let status = self.status();
        self.log.check_notified(notify::ready(&status));
        self.last_status.replace(status);
    }

    /// Returns the status, in one line.
    fn status(&self) -> String {
        let server = self.server.handle();
        let (open, limit) = (server.connection_count(), server.connection_limit());
        let Counts { totals, resumed, .. } = self.server.counts();
        let (listeners, messages) = (server.listener_count(), format_number(totals.messages));
        let s = plural(listeners);
        let resumed_text =
            if resumed == 0 { String::new() } else { format!(", {} resumed here", format_number(resumed)) };
        let reload_error =
            self.reload_error.borrow().as_ref().map(|what| format!("; failed to reload: {what}")).unwrap_or_default();
        let backlog = self.log_backlog().map(describe_backlog).unwrap_or_default();
        let draining = if server.phase() == Phase::LameDuck { "draining; " } else { "" };
        format!(
            "{draining}{open}/{limit} connections, {listeners} listener{s}, \
             {messages} messages{resumed_text}{backlog}{reload_error}"
        )
    }
}

/// Why settings were not reloaded.
enum ReloadError {
    Settings(config::Error),
    /// There is no thread to read them.
    Thread(io::Error),
}

impl ReloadError {
    /// Returns what is wrong in one line.
    fn summary(&self) -> String {
        let Self::Settings(error) = self else { return self.to_string() };
        let others = error.count().saturating_sub(1);
        let more = if others == 0 { String::new() } else { format!(" (and {others} more)") };
        format!("{}{more}", error.headlines().next().unwrap_or_default())
    }
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(error) => error.fmt(f),
            Self::Thread(error) => {
                write!(
                    f,
                    "cannot start a thread that reads them: {error}; raise TasksMax= of the service (ulimit -u of a shell)"
                )
            }
        }
    }
}

/// Warns if there cannot be as many descriptors as connections are allowed.
pub(crate) fn warn_low_nofile(budget: FdBudget, settings: &Settings, log: &LeveledLog) {
    if !budget.fits_connections() {
        let (allowed, connections) = (budget.allowed, settings.limits.connections);
        let text = format!(
            "{allowed} descriptors are too few for limits.connections={connections}, further clients will wait; \
             raise LimitNOFILE= of the service (ulimit -Hn of a shell)"
        );
        log.note(Note::LowNofile, &text);
    }
}

/// Describes, for the status, entries that wait because the log cannot be written to.
fn describe_backlog(waiting: usize) -> String {
    format!(
        "; log unavailable, {} {} waiting",
        format_number(waiting as u64),
        if waiting == 1 { "entry" } else { "entries" }
    )
}

/// Returns which files were read, on one line: the service may see other files than its administrator.
fn describe_files(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|file| file.display().to_string().escape_debug().to_string()).collect();
    if names.is_empty() { "no file was read".to_owned() } else { format!("read {}", names.join(", ")) }
}
