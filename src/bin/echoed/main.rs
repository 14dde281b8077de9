//! The daemon. Joins what the modules of the library know nothing of each other: sockets from its starter go to the
//! server, its events to the log, signals end it. Reads from top to bottom.

mod handover;
mod log;
mod process_state;
mod roles;
mod signals;
mod start_error;
mod stop;
mod supervisor;

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, abort};
use std::sync::Arc;
use std::time::SystemTime;

use clap::Parser;
use echoed::address::{Address, Family, UnixName, repeated_address_hint};
use echoed::bind::{self, SocketFile};
use echoed::cli::echoed::Echoed;
use echoed::config::{Loaded, Role, Settings};
use echoed::monitor::{LogCounts, ProcessCounters, Source};
use echoed::rlimit::{FdBudget, ServingThreads};
use echoed::server::Server;
use echoed::server::socket::SocketKind;
use echoed::systemd::activation::{self, ActivationFds, Fallback, NamedSocket, Sockets, StdinSocket};
use echoed::systemd::journal::{JOURNAL_PATH, LogWriter};
use echoed::systemd::notify;
use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime;

use log::{LeveledLog, Note};
use signals::{BlockedSignals, Signals};
use start_error::{EX_IOERR, EX_USAGE, StartError};
use stop::{Ended, Served};
use supervisor::{RunMode, Supervisor};

/// The sockets of datagrams that are with journald's own: its two, and that of a syslog daemon.
const JOURNAL_SOCKETS: [&str; 3] = ["socket", "dev-log", "syslog"];

/// The name of listeners that were given none.
const DEFAULT_NAME: &str = "echo";

/// How many descriptors a runtime of tokio takes with its signals: an epoll set, an eventfd, the ends of a pair of sockets,
/// and copies of those, with some to spare.
const RUNTIME_FDS: usize = 8;

fn main() -> ExitCode {
    let blocked = signals::block();
    abort_on_panic();
    // Before anything can be written to stderr, which may be a client's connection. So the option is looked for by
    // hand: clap writes there what is wrong with it.
    let has_listener = |argument: OsString| {
        let argument = argument.as_encoded_bytes();
        argument == b"--listener" || argument.starts_with(b"--listener=")
    };
    let mut stdin = match StdinSocket::find(env::args_os().any(has_listener)) {
        Ok(stdin) => stdin,
        Err(error) => {
            let error = StartError::system("cannot keep the log from the client on stdin", error);
            log::report_start_failure(&error, true);
            return error.exit_code();
        }
    };
    let result = match Echoed::try_parse() {
        Ok(arguments) => run(&arguments, &mut stdin, blocked),
        Err(error) if error.use_stderr() && withholds_stderr(stdin.as_ref()) => {
            Err(StartError::Usage(error.to_string().trim_end().to_owned()))
        }
        Err(error) if error.use_stderr() => {
            // If this fails, there is no other place to report it.
            let _ = error.print();
            Ok(ExitCode::from(EX_USAGE))
        }
        Err(help) => check_stdout(help.print()).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            log::report_start_failure(&error, withholds_stderr(stdin.as_ref()));
            error.exit_code()
        }
    }
}

/// Returns whether nothing may be written to stderr, because it is the socket on stdin.
fn withholds_stderr(stdin: Option<&StdinSocket>) -> bool {
    stdin.is_some_and(StdinSocket::withholds_stderr)
}

fn run(arguments: &Echoed, stdin: &mut Option<StdinSocket>, blocked: BlockedSignals) -> Result<ExitCode, StartError> {
    let mut offered = stdin.as_mut();
    if !arguments.serves() {
        blocked.unblock();
    }
    if let Some(twice) = arguments.repeated_address() {
        return Err(StartError::Usage(format!("--listen: {twice} is given twice; {}", repeated_address_hint(twice))));
    }
    // Then stdin is not served, and stderr is a log like any other, also for mistakes in the settings.
    if !arguments.serves() || !arguments.listen.is_empty() {
        offered.take().into_iter().for_each(StdinSocket::give_back);
    }
    let Some(settings) = load_settings(arguments)? else { return Ok(ExitCode::SUCCESS) };
    // Before there is a second thread: it changes the environment.
    let fds = take_sockets(arguments, &settings, offered)?;
    // So is this: with more threads it would take 10 ms.
    let mode = RunMode::of(&fds.sockets);
    let threads = serving_threads(arguments, &settings, &fds.sockets);
    let budget = mode.preallocate_fd_table(&settings, threads);
    let (log, mut writer) = LeveledLog::open(settings.log_level, withholds_stderr(stdin.as_ref()));
    supervisor::warn_low_nofile(budget, &settings, &log);
    if let Some(address) = notify::unsupported_address() {
        log.note(
            Note::NotifyFailed,
            &format!(
                "ignoring NOTIFY_SOCKET={}: only a path and @NAME are supported; the service manager is not notified",
                address.to_string_lossy()
            ),
        );
    }
    log.warn_about(&settings);
    let runtime = check_descriptors().and_then(|()| runtime::Builder::new_current_thread().enable_all().build());
    let result = match runtime {
        Ok(runtime) => {
            let start = Start { arguments, settings: &settings, mode, threads, budget, log: &log };
            runtime.block_on(serve(start, fds, blocked, &mut writer))
        }
        Err(error) => Err(StartError::system("cannot start the runtime", error)),
    };
    drop(log);
    // Also after an error, which is reported next: what was logged before comes first.
    let lost_entries = writer.close();
    result.map(|Ended { code, lost_messages, waiting_messages }| {
        stop::report_unlogged(lost_messages, waiting_messages, lost_entries);
        if lost_messages > 0 { ExitCode::from(EX_IOERR) } else { code }
    })
}

/// Checks that there are descriptors for a runtime with its signals: for want of them, tokio panics.
fn check_descriptors() -> io::Result<()> {
    // Cheaper to open and to close than what the runtime opens.
    let eventfds: Result<Vec<_>, _> = (0..RUNTIME_FDS).map(|_| eventfd(0, EventfdFlags::CLOEXEC)).collect();
    Ok(eventfds.map(drop)?)
}

/// The parameters of a start.
struct Start<'a> {
    arguments: &'a Echoed,
    settings: &'a Settings,
    mode: RunMode,
    threads: ServingThreads,
    budget: FdBudget,
    log: &'a LeveledLog,
}

/// Serves until a signal, or the end of all there was to serve. The threads of the log and of the workers come last: the client
/// that has this process started does not wait for them.
async fn serve(
    Start { arguments, settings, mode, threads, budget, log }: Start<'_>,
    ActivationFds { sockets, bundles, problems }: ActivationFds,
    blocked: BlockedSignals,
    writer: &mut LogWriter,
) -> Result<Ended, StartError> {
    // Before READY=1, after which a reload may be asked for.
    let mut signals = Signals::catch(blocked).map_err(|error| StartError::system("cannot catch signals", error))?;
    let (started_at, process) = (SystemTime::now(), Arc::<ProcessCounters>::default());
    let log_failed = |error| StartError::system("cannot start the log", error);
    let workers_failed = |error| StartError::system("cannot start the workers", error);
    let server = Server::new(settings, log.event_handler(), log.message_log());
    let mut server = server.map_err(workers_failed)?;
    server.limit_peer_descriptors(budget.peer_fds());
    server.reserve_sockets(trusting_sockets());
    if has_listen_addresses(arguments, settings) && mode != RunMode::Standalone {
        log.note(Note::ListenIgnored, "systemd passed the sockets, ignoring --listen and the listen keys");
    }
    let (mut named, mut files, mut accepted) = (Named::new(), Vec::new(), None);
    match sockets {
        Sockets::Listeners(listeners) => {
            named.extend(listeners.into_iter().map(|listener| (listener.name, listener.socket)));
        }
        Sockets::StdinListener(NamedSocket { name, socket }) => named.push((name, socket)),
        Sockets::Nothing => (named, files) = bind_listeners(arguments, settings)?,
        Sockets::Connection(connection) => accepted = Some(connection),
    }
    if !bundles.is_empty() || !problems.is_empty() {
        // Before new connections are accepted. The workers report when all have been driven once. A start that fails here leaves
        // the connections in the fd store.
        writer.start().map_err(log_failed)?;
        server.start_workers().map_err(workers_failed)?;
        let names: Vec<_> = named.iter().map(|(name, _)| &**name).collect();
        handover::restore_connections(&server, bundles, problems, settings, &names, &process, log).await;
    }
    let is_service = |(name, _): &(String, OwnedFd)| settings.listener_settings(name).role != Role::Messages;
    let (services, named): (Named, Named) = named.into_iter().partition(is_service);
    note_missing_sections(settings, named.iter().map(|(name, _)| &**name), log);
    let keeps_state = !services.is_empty();
    let (log_of_monitor, unlogged) = (log.clone(), server.unlogged_messages());
    let log_counts = Box::new(move || LogCounts {
        suppressed: log_of_monitor.suppressed_total(),
        waiting: log_of_monitor.backlog(unlogged.waiting()).unwrap_or(0) as u64,
    });
    let served = serve_listeners(&server, settings, named, log).and_then(|()| match accepted {
        Some(connection) => serve_connection(&server, settings, arguments, connection, log),
        None => Ok(()),
    });
    let started = served.and_then(|()| {
        server.serve_waiting_clients();
        writer.start().map_err(log_failed)?;
        server.start_workers().map_err(workers_failed)?;
        // Not earlier: the client that has this process started does not wait for their thread.
        let source =
            Source { server: server.handle(), process: Arc::clone(&process), log: log_counts, started: started_at };
        roles::serve(&server, settings, services, source, log)
    });
    if let Err(error) = started {
        stop::end_failed_start(server, log);
        return Err(error);
    }
    let sources = arguments.sources();
    let supervisor = Supervisor::new(&server, mode, threads, settings, log, &process, move || sources.load());
    let reason = supervisor.run(&mut signals).await;
    let service = supervisor.service();
    let served = Served { server, process: &process, mode, files, keeps_state };
    Ok(stop::stop(served, reason, &service, &mut signals, log).await)
}

/// Returns the sockets whose readers take what this process sends there for its own messages.
fn trusting_sockets() -> Vec<UnixName> {
    let manager =
        notify::manager_address().map(|address| match address.to_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => UnixName::Abstract(name.to_owned()),
            None => UnixName::Path(address.into()),
        });
    let journal = JOURNAL_SOCKETS.map(|name| UnixName::Path(Path::new(JOURNAL_PATH).with_file_name(name)));
    manager.into_iter().chain(journal).collect()
}

// --- Settings and sockets --------------------------------------------------------------------------------------------

/// Loads the settings; `None` if the command line asked only to check or print them.
fn load_settings(arguments: &Echoed) -> Result<Option<Settings>, StartError> {
    if arguments.print_default_config {
        print(&Settings::print_default())?;
        return Ok(None);
    }
    let loaded = arguments.sources().load()?;
    if arguments.print_config {
        print(&loaded.print())?;
    } else if arguments.check_config {
        print(&describe_check(&loaded))?;
    } else {
        return Ok(Some(loaded.settings));
    }
    Ok(None)
}

/// Returns what `--check-config` says about good settings.
fn describe_check(loaded: &Loaded) -> String {
    let list = |files: &[PathBuf]| files.iter().map(|file| format!("  {}\n", file.display())).collect::<String>();
    let read = if loaded.files.is_empty() { "no file was read" } else { "these files were read:" };
    let mut text = format!("The configuration is valid; {read}\n{}", list(&loaded.files));
    if !loaded.masks.is_empty() {
        text += &format!("these files are masks (empty, or links to /dev/null):\n{}", list(&loaded.masks));
    }
    for warning in loaded.warnings.iter().chain(&loaded.settings.warnings()) {
        text += &format!("warning: {warning}\n");
    }
    text
}

/// Writes to stdout.
fn print(text: &str) -> Result<(), StartError> {
    check_stdout(io::stdout().write_all(text.as_bytes()))
}

/// Checks that everything was written to stdout. A reader that is gone is not an error.
fn check_stdout(written: io::Result<()>) -> Result<(), StartError> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(StartError::Output(error)),
        _ => Ok(()),
    }
}

/// Returns whether the process has addresses of its own to listen on.
fn has_listen_addresses(arguments: &Echoed, settings: &Settings) -> bool {
    !arguments.listen.is_empty() || settings.listeners.values().any(|one| !one.listen.is_empty())
}

/// Takes the sockets that the starter of this process passed.
fn take_sockets(
    arguments: &Echoed,
    settings: &Settings,
    stdin: Option<&mut StdinSocket>,
) -> Result<ActivationFds, StartError> {
    let stdin_name = arguments.listener.as_deref();
    let has_addresses = has_listen_addresses(arguments, settings);
    let fds = activation::take(Fallback { stdin, stdin_name, has_addresses })?;
    let problem = match fds.sockets {
        Sockets::Connection(_) | Sockets::StdinListener(_) => return Ok(fds),
        Sockets::Listeners(_) => "the listening sockets from systemd have names of their own (FileDescriptorName=)",
        Sockets::Nothing if has_addresses => {
            "with --listen or listen keys it has no effect: they name their listeners themselves"
        }
        Sockets::Nothing => {
            "no connection was handed over, and stdin is not a socket (systemd starts echoed@.service for each connection \
             of echoed.socket with Accept=yes, not by hand; a second instance is echoed-instance@NAME.socket)"
        }
    };
    match stdin_name {
        Some(name) => Err(StartError::Usage(format!("--listener {name}: {problem}; leave the option out"))),
        None => Ok(fds),
    }
}

/// Listening sockets, each with the name of its listener.
type Named = Vec<(String, OwnedFd)>;

/// Returns where to listen by hand, each address with the name of its listener: where the command line says, else where the
/// settings say, else on the usual port.
fn listen_addresses<'a>(arguments: &'a Echoed, settings: &'a Settings) -> Vec<(&'a str, Address)> {
    let mut addresses: Vec<(&str, Address)> =
        arguments.listen.iter().map(|listen| (&*listen.name, listen.address.clone())).collect();
    if addresses.is_empty() {
        for (name, listener) in &settings.listeners {
            addresses.extend(listener.listen.iter().map(|address| (&**name, address.clone())));
        }
    }
    if addresses.is_empty() {
        let default = Address::Tcp { family: Family::Any, host: "127.0.0.1".to_owned(), port: 8085 };
        addresses.push((DEFAULT_NAME, default));
    }
    addresses
}

/// Returns the threads that will serve. Names of hosts are not looked up: each counts as one address.
fn serving_threads(arguments: &Echoed, settings: &Settings, sockets: &Sockets) -> ServingThreads {
    let is_unix: Vec<bool> = match sockets {
        Sockets::Listeners(listeners) => listeners.iter().filter_map(is_unix_datagrams).collect(),
        Sockets::StdinListener(listener) => is_unix_datagrams(listener).into_iter().collect(),
        Sockets::Connection(_) => Vec::new(),
        Sockets::Nothing => {
            let addresses = listen_addresses(arguments, settings).into_iter();
            let is_unix = |(_, address)| match address {
                Address::Udp { .. } => Some(false),
                Address::Unixgram(_) => Some(true),
                Address::Tcp { .. } | Address::Unix(_) | Address::Seqpacket(_) => None,
            };
            addresses.filter_map(is_unix).collect()
        }
    };
    let unixgram = is_unix.iter().filter(|is_unix| **is_unix).count();
    let names: Vec<&str> = match sockets {
        Sockets::Listeners(listeners) => listeners.iter().map(|listener| &*listener.name).collect(),
        Sockets::StdinListener(listener) => vec![&listener.name],
        Sockets::Connection(_) => Vec::new(),
        Sockets::Nothing => listen_addresses(arguments, settings).into_iter().map(|(name, _)| name).collect(),
    };
    let roles: BTreeSet<_> = names.into_iter().map(|name| settings.listener_settings(name).role).collect();
    ServingThreads {
        workers: settings.service.worker_threads(),
        udp: is_unix.len() - unixgram,
        unixgram,
        service_connections: roles.into_iter().map(Role::permits).sum(),
    }
}

/// Returns whether a socket of datagrams is a Unix socket; `None` if it is not one of datagrams.
fn is_unix_datagrams(listener: &NamedSocket) -> Option<bool> {
    let is_datagrams = SocketKind::of(&listener.socket).is_ok_and(|kind| kind == SocketKind::Datagram);
    is_datagrams.then(|| roles::is_unix(&listener.socket))
}

/// Listens by hand.
fn bind_listeners(arguments: &Echoed, settings: &Settings) -> Result<(Named, Vec<SocketFile>), StartError> {
    let addresses = listen_addresses(arguments, settings);
    let (mut named, mut files) = (Vec::new(), Vec::new());
    for (name, address) in addresses {
        let bound = bind::listen(&address);
        for bound in bound.map_err(|error| StartError::system(&format!("cannot listen on {address}"), error))? {
            named.push((name.to_owned(), bound.socket));
            files.extend(bound.file);
        }
    }
    Ok((named, files))
}

fn serve_listeners(server: &Server, settings: &Settings, named: Named, log: &LeveledLog) -> Result<(), StartError> {
    for (name, socket) in named {
        let address = bind::bound_to(&socket);
        let served = server.listen(socket, &name, settings.listener_settings(&name));
        served.map_err(|error| StartError::system(&format!("cannot serve {address} ({name})"), error))?;
        log.note_on(Note::Listening, &name, &format!("listening on {address} ({name})"));
    }
    Ok(())
}

/// Serves a connection that the starter of this process accepted.
fn serve_connection(
    server: &Server,
    settings: &Settings,
    arguments: &Echoed,
    connection: NamedSocket,
    log: &LeveledLog,
) -> Result<(), StartError> {
    let name = arguments.listener.as_deref().unwrap_or(&connection.name);
    note_missing_sections(settings, [name], log);
    let role = settings.listener_settings(name).role;
    if role != Role::Messages {
        let role = role.as_str();
        let problem =
            format!("cannot serve one connection of {name} with role = \"{role}\": it takes a listening socket");
        return Err(StartError::Role(problem));
    }
    let served = server.adopt(connection.socket, name, settings.listener_settings(name));
    served.map_err(|error| StartError::system("cannot serve the connection that was handed over", error))
}

/// Logs which names have no section of their own; `echo` needs none.
fn note_missing_sections<'a>(settings: &Settings, names: impl IntoIterator<Item = &'a str>, log: &LeveledLog) {
    let missing = |name: &&str| *name != DEFAULT_NAME && !settings.listeners.contains_key(*name);
    for name in names.into_iter().filter(missing).collect::<BTreeSet<_>>() {
        log.note_on(
            Note::NoSection,
            name,
            &format!("there is no section [listener.{name}], so {name} uses [defaults]"),
        );
    }
}

/// Makes a panic, which is a bug, end the process with SIGABRT. systemd starts it again.
fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        abort();
    }));
}
