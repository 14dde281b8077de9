//! The daemon against a bare C epoll loop, side by side on the loopback.
//!
//! ```text
//! cargo bench --bench loopback -- [--only SECTION]... [--case [tcp:|unix:]CASE]...
//!                                 [--rounds N] [--seconds S] [--server PATH | --server reference]
//! ```
//!
//! The yardstick is `benches/reference/epoll.c`, compiled on the spot. Both servers run with one worker on
//! one CPU, the load runs on another, one thread that checks every byte of every reply. They are started anew
//! for every round and loaded in short turns, so that what disturbs the machine disturbs both; a figure is the
//! median over the rounds, and the range beside a ratio is that of the rounds. As the load costs about as much
//! as the server, CPU time per message says more than messages per second. Whether a difference means anything
//! can be seen with `--server reference`, which compares the reference with itself.
//!
//! Two workers against a two-threaded reference are not measured: on a small machine they and the load would
//! share CPUs.
//!
//! The tables on stdout are Markdown; progress is on stderr. A failure ends the program with status 1, and
//! the servers end with it.

mod load;
mod sections;
mod server;
mod stats;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::sections::{CASES, Plan};
use crate::server::{Cpus, Programs, Subject, Transport, pin};
use crate::stats::Table;
use crate::wire::Case;

const USAGE: &str = "\
usage: loopback [--only cpu|connect|scaling|memory|start|fairness]...
                [--case [tcp:|unix:]SIZE-DEPTH-CONNECTIONS]...
                [--rounds N] [--seconds S] [--server PATH | --server reference]

  --only      measure this section only; may be repeated (--case alone means --only cpu)
  --case      measure this case only in the section cpu, such as 16-1-64; may be repeated
  --rounds    samples of every figure (5)
  --seconds   length of a sample in the section cpu (1.0); other sections take less
  --server    measure this program, which takes the daemon's options, instead of the daemon;
              `reference`: the reference itself, to see how much is noise";

/// The daemon that was built together with this program.
const DAEMON: &str = env!("CARGO_BIN_EXE_echoed");

/// Very many connections, where the limit on open files allows so many.
const MANY: usize = 9000;

/// Open files that are no connections.
const OTHER_FILES: usize = 200;

/// Why the measurement could not go on, in a sentence for the one who started it.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// A failure of its own.
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
pub(crate) trait Doing<T> {
    /// Puts `what` in front of the error.
    fn doing(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

/// The time.
#[expect(clippy::disallowed_methods, reason = "here it is the real time that counts")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Says on stderr what is being done.
pub(crate) fn progress(what: fmt::Arguments<'_>) {
    eprintln!("{what}");
}

/// The parts of the results, in their order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Cpu,
    Connect,
    Scaling,
    Memory,
    Start,
    Fairness,
}

impl Section {
    const ALL: [(&'static str, Self); 6] = [
        ("cpu", Self::Cpu),
        ("connect", Self::Connect),
        ("scaling", Self::Scaling),
        ("memory", Self::Memory),
        ("start", Self::Start),
        ("fairness", Self::Fairness),
    ];
}

/// The command line.
struct Options {
    only: Vec<Section>,
    cases: Vec<(Transport, Case)>,
    rounds: usize,
    sample: Duration,
    subject: Subject,
}

impl Options {
    /// `None`: help was asked for.
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            only: Vec::new(),
            cases: Vec::new(),
            rounds: 5,
            sample: Duration::from_secs(1),
            subject: Subject::Daemon(DAEMON.into()),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| Failure::new(format_args!("{word} needs a value")));
            match word.as_str() {
                // Cargo says this to every bench.
                "--bench" => {}
                "--help" | "-h" => return Ok(None),
                "--only" => options.only.push(Self::section(&value()?)?),
                "--case" => options.cases.extend(Self::case(&value()?)?),
                "--rounds" => options.rounds = value()?.parse().doing("--rounds")?,
                "--seconds" => {
                    options.sample =
                        Duration::try_from_secs_f64(value()?.parse().doing("--seconds")?).doing("--seconds")?;
                }
                "--server" => {
                    let path = value()?;
                    options.subject =
                        if path == "reference" { Subject::Reference } else { Subject::Daemon(PathBuf::from(path)) };
                }
                _ => return Err(Failure::new(format_args!("unknown option {word:?}"))),
            }
        }
        if options.rounds == 0 || options.sample < Duration::from_millis(10) {
            return Err(Failure::new("it takes one round at least, and a hundredth of a second"));
        }
        if options.only.is_empty() && !options.cases.is_empty() {
            options.only.push(Section::Cpu);
        }
        if options.cases.is_empty() {
            options.cases = Transport::ALL.iter().flat_map(|&transport| CASES.map(|case| (transport, case))).collect();
        }
        Ok(Some(options))
    }

    fn section(word: &str) -> Result<Section> {
        let found = Section::ALL.iter().find(|(name, _)| *name == word);
        found.map(|&(_, section)| section).ok_or_else(|| {
            let names = Section::ALL.map(|(name, _)| name).join(", ");
            Failure::new(format_args!("there is no section {word:?}, only {names}"))
        })
    }

    fn case(word: &str) -> Result<Vec<(Transport, Case)>> {
        let named = Transport::ALL.into_iter().find_map(|transport| {
            let case = word.strip_prefix(transport.name())?.strip_prefix(':')?;
            Some((vec![transport], case))
        });
        let (transports, case) = named.unwrap_or((Transport::ALL.to_vec(), word));
        let case = case.parse()?;
        Ok(transports.into_iter().map(|transport| (transport, case)).collect())
    }
}

/// Raises the limit on open files as far as it goes, for the servers too, and returns it.
fn raise_file_limit() -> Result<usize> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).doing("raising the limit on open files")?;
    Ok(limit.maximum.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX))
}

/// What the kernel says of itself, without the end of the line.
fn kernel_setting(name: &str) -> Result<String> {
    let path = format!("/proc/sys/{name}");
    let text = std::fs::read_to_string(&path).doing(format_args!("reading {path}"))?;
    Ok(text.trim().to_owned())
}

fn measure(options: Options) -> Result<()> {
    let room = raise_file_limit()?.saturating_sub(OTHER_FILES);
    // Both servers are loaded in turn and stay connected; all the connections begin here.
    let room = room / 2;
    let many = MANY.min(room);
    if many < MANY {
        progress(format_args!(
            "at most {many} instead of {MANY} connections: the hard limit on open files allows no more"
        ));
    }
    let cpus = Cpus::available()?;
    if cpus.server == cpus.load {
        progress(format_args!("servers and load share the only CPU: the figures will say little"));
    }
    pin(cpus.load)?;
    let Options { only, mut cases, rounds, sample, subject } = options;
    for (_, case) in &mut cases {
        case.connections = case.connections.min(room);
    }
    let plan = Plan { rounds, sample, cases, many, programs: Programs::prepare(subject, cpus)? };

    println!("# Loopback: {rounds} rounds, samples of {} s", sample.as_secs_f64());
    let kernel = kernel_setting("kernel/osrelease")?;
    let congestion = kernel_setting("net/ipv4/tcp_congestion_control")?;
    let Cpus { server, load } = cpus;
    println!("\nLinux {kernel}, TCP {congestion}, servers on CPU {server}, load on CPU {load}");
    for (name, section) in Section::ALL {
        if !only.is_empty() && !only.contains(&section) {
            continue;
        }
        let table: Option<Table> = match section {
            Section::Cpu => sections::cpu(&plan).map(Some),
            Section::Connect => sections::connect(&plan).map(Some),
            Section::Scaling => sections::scaling(&plan).map(Some),
            Section::Memory => sections::memory(&plan).map(Some),
            Section::Start => sections::start(&plan),
            Section::Fairness => sections::fairness(&plan).map(Some),
        }
        .doing(name)?;
        match table {
            Some(table) => print!("\n{}", table.render()),
            None => progress(format_args!("{name}: skipped, there is no systemd-socket-activate")),
        }
    }
    Ok(())
}

fn main() -> ExitCode {
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
