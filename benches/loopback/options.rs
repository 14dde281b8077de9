//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::Transport;
use crate::candidates::{OTHERS, OtherServer, PACKET_SERVERS, PacketServer};
use crate::messages::CASES;
use crate::packets;
use crate::plan::Plan;
use crate::programs::Subject;
use crate::socket_io::Case;
use crate::{Context as _, Failure, Result};

/// What `--help` says.
pub(crate) const USAGE: &str = "\
usage: loopback [--only cpu|connect|scaling|memory|start|fairness|cores|cat|packets|packet-cores]...
                [--case [tcp:|unix:]SIZE-DEPTH-CONNECTIONS]...
                [--case udp:|unixgram:|unixgram-path:|seqpacket:SIZE-DEPTH-SOURCES]...
                [--rounds N] [--seconds S] [--server PATH | --server reference]
                [--static PATH] [--peers NAME,... | --peers none] [--quick] [--report FILE]

  --only      measure this section only; may be repeated (--case alone means --only cpu, or packets)
  --case      measure this case only in the section cpu, such as 16-1-64, or packets, such as
              udp:16-1-64, and there nothing else; may be repeated
  --rounds    samples of every figure (5)
  --seconds   length of a sample in the section cpu (1.0); other sections take less
  --server    measure this program, which takes the daemon's options, instead of the daemon;
              `reference`: the reference itself, to see how much is noise
  --static    measure this daemon, too, at its start and at rest
  --peers     measure these others too: level, uring, codec, go, and of packets: single, datagrams
              (all that this machine can)
  --quick     two short rounds, and few cases of packets: four minutes at most
  --report    also write the results to this file, between its marks, and plots beside it";

/// The daemon that was built together with this program, with the features of its libraries that tests need.
const DAEMON: &str = env!("CARGO_BIN_EXE_echoed");

/// Other servers, of streams and of packets.
type Others = (Vec<&'static (&'static str, OtherServer)>, Vec<&'static (&'static str, PacketServer)>);

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
    /// All about packets but their cores.
    Packets,
    /// Packets on two cores.
    PacketCores,
}

impl Section {
    /// All, with their names.
    pub(crate) const ALL: [(&'static str, Self); 10] = [
        ("cpu", Self::Cpu),
        ("connect", Self::Connect),
        ("scaling", Self::Scaling),
        ("memory", Self::Memory),
        ("start", Self::Start),
        ("fairness", Self::Fairness),
        ("cores", Self::Cores),
        ("cat", Self::Cat),
        ("packets", Self::Packets),
        ("packet-cores", Self::PacketCores),
    ];

    /// Estimates how long it takes, in seconds.
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
            Self::Packets => packets::seconds(plan),
            Self::PacketCores => rounds * 16.0 * (0.7 * sample + 0.2),
        }
    }
}

/// The command line.
pub(crate) struct Options {
    /// Sections to measure; empty: all.
    pub(crate) only: Vec<Section>,
    /// Cases of the section `cpu`.
    pub(crate) cases: Vec<(Transport, Case)>,
    /// Cases of the section `packets`.
    pub(crate) packet_cases: Vec<(Transport, Case)>,
    /// Whether these were chosen, so that the section has nothing else.
    pub(crate) only_packet_cases: bool,
    /// Samples of every figure.
    pub(crate) rounds: usize,
    /// Length of a sample.
    pub(crate) sample: Duration,
    /// The program that is compared with the reference first.
    pub(crate) subject: Subject,
    /// The daemon that is linked statically.
    pub(crate) static_daemon: Option<PathBuf>,
    /// The other servers that are measured.
    pub(crate) others: Vec<&'static (&'static str, OtherServer)>,
    /// The other servers of packets that are measured.
    pub(crate) packet_servers: Vec<&'static (&'static str, PacketServer)>,
    /// The file for the results, besides stdout.
    pub(crate) file: Option<PathBuf>,
}

impl Options {
    /// Parses the arguments; `None` if help was requested.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            only: Vec::new(),
            cases: Vec::new(),
            packet_cases: Vec::new(),
            only_packet_cases: false,
            rounds: 5,
            sample: Duration::from_secs(1),
            subject: Subject::Daemon(DAEMON.into()),
            static_daemon: None,
            others: OTHERS.iter().collect(),
            packet_servers: PACKET_SERVERS.iter().collect(),
            file: None,
        };
        let mut is_quick = false;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| Failure::new(format_args!("{word} needs a value")));
            match word.as_str() {
                // Cargo passes this to every bench.
                "--bench" => {}
                "--help" | "-h" => return Ok(None),
                "--only" => options.only.push(Self::section(&value()?)?),
                "--case" => {
                    let cases = Self::case(&value()?)?;
                    let (packets, streams): (Vec<_>, Vec<_>) =
                        cases.into_iter().partition(|(transport, _)| transport.is_packets());
                    options.cases.extend(streams);
                    options.packet_cases.extend(packets);
                }
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
                "--quick" => {
                    is_quick = true;
                    (options.rounds, options.sample) = (2, Duration::from_millis(250));
                }
                "--report" => options.file = Some(value()?.into()),
                "--peers" => (options.others, options.packet_servers) = Self::others(&value()?)?,
                _ => return Err(Failure::new(format_args!("unknown option {word:?}"))),
            }
        }
        if options.rounds == 0 || options.sample < Duration::from_millis(10) {
            return Err(Failure::new("it takes one round at least, and a hundredth of a second"));
        }
        options.only_packet_cases = !options.packet_cases.is_empty();
        if options.only.is_empty() {
            options.only.extend((!options.cases.is_empty()).then_some(Section::Cpu));
            options.only.extend(options.only_packet_cases.then_some(Section::Packets));
        }
        if options.cases.is_empty() {
            let cases = |&transport| CASES.map(|case| (transport, case));
            options.cases = Transport::STREAMS.iter().flat_map(cases).collect();
        }
        if options.packet_cases.is_empty() {
            options.packet_cases = packets::cases(is_quick);
        }
        Ok(Some(options))
    }

    fn others(words: &str) -> Result<Others> {
        let (mut streams, mut packets) = (Vec::new(), Vec::new());
        for word in words.split(',').filter(|&word| word != "none") {
            let known = (streams.len(), packets.len());
            streams.extend(OTHERS.iter().find(|(name, _)| *name == word));
            packets.extend(PACKET_SERVERS.iter().find(|(name, _)| *name == word));
            if (streams.len(), packets.len()) == known {
                let names: Vec<_> =
                    OTHERS.iter().map(|(name, _)| *name).chain(PACKET_SERVERS.iter().map(|(name, _)| *name)).collect();
                return Err(Failure::new(format_args!("there is no peer {word:?}, only {}", names.join(", "))));
            }
        }
        Ok((streams, packets))
    }

    fn section(word: &str) -> Result<Section> {
        let found = Section::ALL.iter().find(|(name, _)| *name == word);
        found.map(|&(_, section)| section).ok_or_else(|| {
            let names = Section::ALL.map(|(name, _)| name).join(", ");
            Failure::new(format_args!("there is no section {word:?}, only {names}"))
        })
    }

    fn case(word: &str) -> Result<Vec<(Transport, Case)>> {
        let mut all = Transport::STREAMS.into_iter().chain(Transport::PACKETS);
        let named = word.split_once(':').and_then(|(name, case)| {
            let transport = all.find(|transport| transport.name() == name)?;
            Some((vec![transport], case))
        });
        let (transports, case) = named.unwrap_or((Transport::STREAMS.to_vec(), word));
        let case: Case = case.parse()?;
        let is_packets = transports.iter().any(|transport| transport.is_packets());
        if is_packets && (case.size < packets::HEAD || case.depth > packets::MAX_WINDOW) {
            return Err(Failure::new(format_args!(
                "{word:?}: packets have {} bytes at least, and at most {} of a source are on the way",
                packets::HEAD,
                packets::MAX_WINDOW
            )));
        }
        Ok(transports.into_iter().map(|transport| (transport, case)).collect())
    }
}
