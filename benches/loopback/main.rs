//! The daemon, a bare C epoll loop and other servers, side by side on the loopback.
//!
//! ```text
//! cargo bench --bench loopback -- [--only SECTION]... [--case [tcp:|unix:]CASE]...
//!                                 [--case udp:|unixgram:|unixgram-path:|seqpacket:CASE]...
//!                                 [--rounds N] [--seconds S] [--server PATH | --server reference]
//!                                 [--static PATH] [--peers NAME,... | --peers none] [--quick] [--report FILE]
//! ```
//!
//! The reference is `benches/reference/epoll.c`, compiled on the spot. The other candidates are the same level-triggered and on io_uring,
//! tokio with tokio-util's codec, and Go's standard library, as far as this machine has what they need. All of them run
//! with one worker on one CPU, the load runs on another, one thread that checks every byte of every reply. They are
//! started anew for every round and loaded in short slices, one after the other, so that what disturbs the machine
//! disturbs all; a figure is the median over the rounds, and the range beside a ratio is that of the rounds. As the
//! load costs about as much as the server, CPU time per message says more than messages per second. Whether a
//! difference means anything can be seen with `--server reference`, which compares the reference with itself.
//!
//! Packets (`packets.rs`) are measured beside `benches/reference/packets.c`.
//!
//! The tables on stdout are Markdown; progress is on stderr. A failure ends the program with status 1, and
//! the servers end with it.

mod activation;
mod address;
mod candidates;
mod cleanup;
mod codec;
mod cores;
mod cpus;
mod fairness;
mod frameless;
mod load;
mod load_thread;
mod memory;
mod messages;
mod options;
mod packets;
mod plan;
mod plot;
mod programs;
mod report;
mod server;
mod short_connections;
mod socket_io;
mod stats;
mod table;

use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::cpus::{Cpus, pin};
use crate::options::{Options, Section, USAGE};
use crate::plan::Plan;
use crate::programs::Programs;
use crate::report::{Report, ReportSection, machine};

/// Very many connections, and how many to use instead if the limit on open files does not allow so many.
const MANY_CONNECTIONS: usize = 10_000;
const FEWER_CONNECTIONS: usize = 9000;

/// Open files that are not connections.
const OTHER_FILES: usize = 200;

/// Why the measurement could not go on, in a sentence for the user.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// Makes a failure from a text.
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The outcome of whatever can fail here.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Says what was being done when an error occurred.
pub(crate) trait Context<T> {
    /// Puts `what` in front of the error.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

/// Returns the time.
#[expect(clippy::disallowed_methods, reason = "here it is the real time that counts")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Says on stderr what is being done.
pub(crate) fn progress(what: fmt::Arguments<'_>) {
    eprintln!("{what}");
}

/// Raises the limit on open files as far as it goes, for the servers too, and returns it.
fn raise_file_limit() -> Result<usize> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit on open files")?;
    Ok(limit.maximum.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX))
}

fn measure(options: Options) -> Result<()> {
    let max_connections = raise_file_limit()?.saturating_sub(OTHER_FILES);
    // The reference and another candidate are loaded in slices and stay connected; all the connections begin here.
    let many_connections = if 2 * MANY_CONNECTIONS <= max_connections {
        MANY_CONNECTIONS
    } else {
        FEWER_CONNECTIONS.min(max_connections / 2)
    };
    if many_connections < MANY_CONNECTIONS {
        progress(format_args!(
            "{many_connections} instead of {MANY_CONNECTIONS} connections: the hard limit on open files allows no more"
        ));
    }
    let cpus = Cpus::available()?;
    if cpus.server == cpus.load {
        progress(format_args!("servers and load share the only CPU: the figures will say little"));
    }
    pin(&[cpus.load])?;
    let Options {
        only,
        mut cases,
        mut packet_cases,
        only_packet_cases,
        rounds,
        sample,
        subject,
        static_daemon,
        others,
        packet_servers,
        file,
    } = options;
    for (_, case) in cases.iter_mut().chain(&mut packet_cases) {
        case.connections = case.connections.min(max_connections / 2);
    }
    let plan = Plan {
        rounds,
        sample,
        cases,
        packet_cases,
        only_packet_cases,
        packet_servers,
        many_connections,
        max_connections,
        programs: Programs::prepare(subject, static_daemon, &others, cpus)?,
    };

    let wanted = |section: Section| only.is_empty() || only.contains(&section);
    let seconds: f64 =
        Section::ALL.iter().filter(|&&(_, section)| wanted(section)).map(|&(_, s)| s.seconds(&plan)).sum();
    progress(format_args!("this takes about {:.0} minutes", (seconds / 60.0).ceil()));

    let mut report = Report::new(file);
    let Cpus { server, load, .. } = plan.programs.cpus;
    report.paragraph(&format!(
        "{}; servers on CPU {server}, load on CPU {load}; {rounds} rounds, samples of {} s.\nThe figures are medians; \
         a ratio is that to {} (of packets: C mmsg), with its range over the rounds.",
        machine(plan.programs.cpus.count())?,
        sample.as_secs_f64(),
        plan.programs.name(0)
    ));
    for why in &plan.programs.missing {
        report.paragraph(&format!("Not measured: {why}"));
    }
    for (name, section) in Section::ALL.into_iter().filter(|&(_, section)| wanted(section)) {
        let part = match section {
            Section::Cpu => messages::cpu(&plan),
            Section::Connect => short_connections::connect(&plan).map(ReportSection::from),
            Section::Scaling => messages::scaling(&plan).map(ReportSection::from),
            Section::Memory => memory::memory(&plan),
            Section::Start => activation::start(&plan).map(ReportSection::from),
            Section::Fairness => fairness::fairness(&plan),
            Section::Cores => cores::cores(&plan).map(ReportSection::from),
            Section::Cat => frameless::cat(&plan).map(ReportSection::from),
            Section::Packets => packets::packets(&plan),
            Section::PacketCores => packets::cores(&plan).map(ReportSection::from),
        }
        .context(name)?;
        if part.tables.is_empty() {
            report.paragraph(&format!("Not measured: {name}, which this machine cannot do"));
        }
        report.section(&part)?;
    }
    report.finish()
}

/// Runs `--serve codec [ADDRESS]` or `--serve datagrams ADDRESS`: this program as one of the candidates.
fn serve() -> Option<Result<()>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", "codec"] => Some(codec::run(None)),
        ["--serve", "codec", address] => Some(codec::run(Some(address))),
        ["--serve", "datagrams", address] => Some(packets::serve_datagrams(address)),
        _ => None,
    }
}

fn main() -> ExitCode {
    if let Some(Err(failure)) = serve() {
        eprintln!("loopback: {failure}");
        return ExitCode::FAILURE;
    }
    match Options::parse(std::env::args().skip(1)) {
        Ok(None) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Some(options)) => match measure(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                eprintln!("loopback: {failure}");
                ExitCode::FAILURE
            }
        },
        Err(failure) => {
            eprintln!("loopback: {failure}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
