//! The daemon. Joins what the modules of the library know nothing of each other: sockets from systemd go to the server,
//! its events to the log, signals end it. Reads from top to bottom.

mod attend;
mod carry;
mod failure;
mod log;
mod signals;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::panic;
use std::process::{ExitCode, abort};
use std::time::Duration;

use clap::Parser;
use echoed::address::{Address, Family};
use echoed::cli::echoed::Echoed;
use echoed::config::{Service, Settings};
use echoed::server::socket::{self, SocketFile};
use echoed::server::{Counts, Server};
use echoed::systemd::inherited::{self, Inherited, Listener, Sockets};
use echoed::systemd::{notify, parcel};
use tokio::{runtime, time};

use attend::{Attendant, End, Purpose};
use failure::{EX_OSERR, Failure};
use log::{LeveledLog, Note};
use signals::{Signals, TERMINATE};

/// How long whole messages may take to be written at the end. With `service.drain` less than systemd waits.
const CLOSING: Duration = Duration::from_secs(10);

/// The name of listeners that were given none.
const DEFAULT_NAME: &str = "echo";

/// How often the manager is told that we still drain.
const STILL_THERE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments = Echoed::parse();
    abort_on_panic();
    match run(&arguments) {
        Ok(code) => code,
        Err(failure) => {
            log::not_started(&failure);
            failure.exit_code()
        }
    }
}

fn run(arguments: &Echoed) -> Result<ExitCode, Failure> {
    let Some(settings) = settings(arguments)? else { return Ok(ExitCode::SUCCESS) };
    // Before there is a second thread: it changes the environment.
    let inherited = inherited::take()?;
    // So is this: with more threads it would take 10 ms.
    let purpose = Purpose::of(&inherited.sockets);
    let room = purpose.make_room(&settings);
    let started = LeveledLog::start(settings.log_level);
    let (log, writer) = started.map_err(|error| Failure::system("cannot start the log", error))?;
    attend::note_room(room, &settings, &log);
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::system("cannot start the runtime", error))?;
    let result = runtime.block_on(serve(arguments, &settings, purpose, inherited, &log));
    drop(log);
    writer.close(Some(CLOSING));
    result
}

/// Serves until a signal, or the end of all there was to serve.
async fn serve(
    arguments: &Echoed,
    settings: &Settings,
    purpose: Purpose,
    Inherited { sockets, parcels, problems }: Inherited,
    log: &LeveledLog,
) -> Result<ExitCode, Failure> {
    // Before READY=1, after which a reload may be asked for.
    let mut signals = Signals::catch().map_err(|error| Failure::system("cannot catch signals", error))?;
    let server = Server::start(settings, log.events(), log.messages());
    let server = server.map_err(|error| Failure::system("cannot start the workers", error))?;
    let told_where = !arguments.listen.is_empty() || settings.listeners.values().any(|one| !one.listen.is_empty());
    if told_where && purpose != Purpose::Standing {
        log.note(Note::ListenIgnored, "systemd holds the sockets, so --listen and the listen keys are ignored");
    }
    let (mut named, mut files, mut accepted) = (Named::new(), Vec::new(), None);
    match sockets {
        Sockets::Listeners(listeners) => {
            named.extend(listeners.into_iter().map(|listener| (listener.name, listener.socket)));
        }
        Sockets::Nothing => (named, files) = bind(arguments, settings)?,
        Sockets::Connection(connection) => accepted = Some(connection),
    }
    // Before anybody new gets in.
    let names: Vec<_> = named.iter().map(|(name, _)| &**name).collect();
    carry::take_over(&server, parcels, problems, settings, &names, log).await;
    listen(&server, settings, named, log)?;
    if let Some(connection) = accepted {
        adopt(&server, settings, arguments, connection, log)?;
    }
    let attendant =
        Attendant::new(&server, purpose, settings, log, || arguments.sources().load().map(|loaded| loaded.settings));
    let end = attendant.attend(&mut signals).await;
    let Service { drain, carry_connections, .. } = attendant.service();
    if let End::Served = end {
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = carry_connections && purpose == Purpose::OnDemand && matches!(end, End::Signal(TERMINATE));
    let carries = wanted && parcel::is_possible();
    let rest = if carries { "; connections go on in the next process" } else { "" };
    log.told(notify::stopping(&format!("stopping: {end}{rest}")));
    log.note(Note::Stopping, &format!("stopping: {end}{rest}"));
    if carries {
        carry::hand_over(server, log).await;
    } else {
        stop(server, drain.length(), &mut signals, log).await;
        drop(files);
        log.told(notify::barrier());
    }
    Ok(match end {
        End::Broken => ExitCode::from(EX_OSERR),
        End::Signal(_) | End::Served | End::Unused(_) => ExitCode::SUCCESS,
    })
}

/// Drains: replies that are owed may take as long as `service.drain` says, or until a second signal. The rest is cut.
async fn stop(server: Server, drain: Duration, signals: &mut Signals, log: &LeveledLog) {
    let open = server.connection_count();
    let done = async {
        server.drain().await;
        server.wait_until_idle().await;
    };
    tokio::select! {
        _ = time::timeout(drain, done) => {}
        never = ask_for_time(log) => match never {},
        signal = signals.stop() => log.note(Note::NotWaiting, &format!("not waiting any longer: {signal}")),
    }
    let cut = server.connection_count();
    let Counts { accepted, totals, .. } = server.counts();
    // Ends the workers, and with them the connections that are left.
    drop(server);
    let (finished, messages) = (open.saturating_sub(cut), totals.messages);
    log.note(
        Note::Stopped,
        &format!(
            "stopped: {finished} connections finished, {cut} cut; {messages} messages on {accepted} connections in all"
        ),
    );
}

/// Has the manager wait for us as long as we say that we are still there.
async fn ask_for_time(log: &LeveledLog) -> Infallible {
    loop {
        log.told(notify::extend_timeout(2 * STILL_THERE));
        time::sleep(STILL_THERE).await;
    }
}

// --- Settings and sockets ----------------------------------------------------------------------------------------------

/// The settings; none where they, or the defaults, were only to be checked or printed.
fn settings(arguments: &Echoed) -> Result<Option<Settings>, Failure> {
    if arguments.print_default_config {
        print(&Settings::print_default())?;
        return Ok(None);
    }
    let loaded = arguments.sources().load()?;
    if arguments.print_config {
        print(&loaded.print())?;
    } else if arguments.check_config {
        let files: Vec<_> = loaded.files.iter().map(|file| format!("  {}\n", file.display())).collect();
        let read = if files.is_empty() { "no file was read".to_owned() } else { "these files were read:".to_owned() };
        print(&format!("The configuration is good; {read}\n{}", files.concat()))?;
    } else {
        return Ok(Some(loaded.settings));
    }
    Ok(None)
}

/// Writes to stdout. That nobody reads it any more is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("cannot write to stdout", error))
        }
        _ => Ok(()),
    }
}

/// Listening sockets, each with the name of its listener.
type Named = Vec<(String, OwnedFd)>;

/// Listens by hand: where the command line says, else where the settings say, else on the usual port.
fn bind(arguments: &Echoed, settings: &Settings) -> Result<(Named, Vec<SocketFile>), Failure> {
    let mut wanted: Vec<(&str, Address)> =
        arguments.listen.iter().map(|listen| (&*listen.name, listen.address.clone())).collect();
    if wanted.is_empty() {
        for (name, listener) in &settings.listeners {
            wanted.extend(listener.listen.iter().map(|address| (&**name, address.clone())));
        }
    }
    if wanted.is_empty() {
        let usual = Address::Tcp { family: Family::Any, host: "127.0.0.1".to_owned(), port: 8085 };
        wanted.push((DEFAULT_NAME, usual));
    }
    let (mut named, mut files) = (Vec::new(), Vec::new());
    for (name, address) in wanted {
        let bound = socket::listen(&address);
        for bound in bound.map_err(|error| Failure::system(&format!("cannot listen on {address}"), error))? {
            named.push((name.to_owned(), bound.socket));
            files.extend(bound.file);
        }
    }
    Ok((named, files))
}

fn listen(server: &Server, settings: &Settings, named: Named, log: &LeveledLog) -> Result<(), Failure> {
    note_missing_sections(settings, named.iter().map(|(name, _)| &**name), log);
    for (name, socket) in named {
        let address = socket::bound_to(&socket);
        let served = server.listen(socket, &name, settings.listener(&name));
        served.map_err(|error| Failure::system(&format!("cannot serve {address} ({name})"), error))?;
        log.note_on(Note::Listening, &name, &format!("listening on {address} ({name})"));
    }
    Ok(())
}

/// Serves a connection that systemd accepted.
fn adopt(
    server: &Server,
    settings: &Settings,
    arguments: &Echoed,
    connection: Listener,
    log: &LeveledLog,
) -> Result<(), Failure> {
    let name = arguments.listener.as_deref().unwrap_or(&connection.name);
    note_missing_sections(settings, [name], log);
    let served = server.adopt(connection.socket, name, settings.listener(name));
    served.map_err(|error| Failure::system("cannot serve the connection from systemd", error))
}

/// Says which names have no section of their own; `echo` needs none.
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

/// A panic is a bug of ours. The process ends with SIGABRT, and systemd starts it anew.
fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        abort();
    }));
}
