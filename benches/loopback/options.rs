//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::Transport;
use crate::candidates::{OTHERS, OtherServer};
use crate::messages::CASES;
use crate::plan::Plan;
use crate::programs::Subject;
use crate::socket_io::Case;
use crate::{Context as _, Failure, Result};

/// What `--help` says.
pub(crate) const USAGE: &str = "\
usage: loopback [--only cpu|connect|scaling|memory|start|fairness|cores|cat]...
                [--case [tcp:|unix:]SIZE-DEPTH-CONNECTIONS]...
                [--rounds N] [--seconds S] [--server PATH | --server reference]
                [--static PATH] [--peers NAME,... | --peers none] [--quick] [--report FILE]

  --only      measure this section only; may be repeated (--case alone means --only cpu)
  --case      measure this case only in the section cpu, such as 16-1-64; may be repeated
  --rounds    samples of every figure (5)
  --seconds   length of a sample in the section cpu (1.0); other sections take less
  --server    measure this program, which takes the daemon's options, instead of the daemon;
              `reference`: the reference itself, to see how much is noise
  --static    measure this daemon, too, at its start and at rest
  --peers     measure these others too: level, uring, codec, go (all that this machine can)
  --quick     two short rounds: three minutes at most
  --report    also write the results to this file, between its marks, and plots beside it";

/// The daemon that was built together with this program, with the features of its libraries that tests need.
const DAEMON: &str = env!("CARGO_BIN_EXE_echoed");

/// The parts of the results, in their order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// CPU time per message.
    Cpu,
    /// Short connections.
    Connect,
    /// More and more connections.
    Scaling,
    /// Memory.
    Memory,
    /// Activation.
    Start,
    /// Beside connections that flood.
    Fairness,
    /// Two workers.
    Cores,
    /// Compared with servers that start `cat` for every connection.
    Cat,
}

impl Section {
    /// All, with their names.
    pub(crate) const ALL: [(&'static str, Self); 8] = [
        ("cpu", Self::Cpu),
        ("connect", Self::Connect),
        ("scaling", Self::Scaling),
        ("memory", Self::Memory),
        ("start", Self::Start),
        ("fairness", Self::Fairness),
        ("cores", Self::Cores),
        ("cat", Self::Cat),
    ];

    /// About how long it takes.
    pub(crate) fn seconds(self, plan: &Plan) -> f64 {
        let (candidates, rounds) = (plan.programs.count() as f64, plan.rounds as f64);
        let (sample, each) = (plan.sample.as_secs_f64(), candidates * rounds);
        match self {
            Self::Cpu => each * plan.cases.len() as f64 * (1.2 * sample + 0.2),
            Self::Connect => each * 2.0 * (0.6 * sample + 0.2),
            Self::Scaling => each * 3.0 * (0.7 * sample + 0.5),
            Self::Memory => candidates * 3.0,
            Self::Start => candidates * 1.5,
            Self::Fairness => each * 4.0 * (0.45 * sample + 0.1),
            Self::Cores => rounds * 12.0 * (0.7 * sample + 0.2),
            Self::Cat => rounds * (candidates + 4.0) * (0.6 * sample + 0.1),
        }
    }
}

/// The command line.
pub(crate) struct Options {
    /// Sections to measure; empty: all.
    pub(crate) only: Vec<Section>,
    /// Cases of the section `cpu`.
    pub(crate) cases: Vec<(Transport, Case)>,
    /// Samples of every figure.
    pub(crate) rounds: usize,
    /// Length of a sample.
    pub(crate) sample: Duration,
    /// What is compared with the reference first of all.
    pub(crate) subject: Subject,
    /// The daemon that is linked statically.
    pub(crate) static_daemon: Option<PathBuf>,
    /// The other servers that are measured.
    pub(crate) others: Vec<&'static (&'static str, OtherServer)>,
    /// Where the results are written, beside stdout.
    pub(crate) file: Option<PathBuf>,
}

impl Options {
    /// `None`: help was asked for.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            only: Vec::new(),
            cases: Vec::new(),
            rounds: 5,
            sample: Duration::from_secs(1),
            subject: Subject::Daemon(DAEMON.into()),
            static_daemon: None,
            others: OTHERS.iter().collect(),
            file: None,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| Failure::new(format_args!("{word} needs a value")));
            match word.as_str() {
                // Cargo passes this to every bench.
                "--bench" => {}
                "--help" | "-h" => return Ok(None),
                "--only" => options.only.push(Self::section(&value()?)?),
                "--case" => options.cases.extend(Self::case(&value()?)?),
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--seconds" => {
                    options.sample =
                        Duration::try_from_secs_f64(value()?.parse().context("--seconds")?).context("--seconds")?;
                }
                "--server" => {
                    let path = value()?;
                    options.subject =
                        if path == "reference" { Subject::Reference } else { Subject::Daemon(PathBuf::from(path)) };
                }
                "--static" => options.static_daemon = Some(value()?.into()),
                "--quick" => (options.rounds, options.sample) = (2, Duration::from_millis(250)),
                "--report" => options.file = Some(value()?.into()),
                "--peers" => options.others = Self::others(&value()?)?,
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

    fn others(words: &str) -> Result<Vec<&'static (&'static str, OtherServer)>> {
        let words = words.split(',').filter(|&word| word != "none");
        words
            .map(|word| {
                let found = OTHERS.iter().find(|(name, _)| *name == word);
                found.ok_or_else(|| {
                    Failure::new(format_args!("there is no peer {word:?}, only level, uring, codec, go"))
                })
            })
            .collect()
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
