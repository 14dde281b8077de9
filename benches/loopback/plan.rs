//! How a figure is taken: all candidates in rotation, in short slices, so that what disturbs one disturbs all.

use std::ops::Range;
use std::time::Duration;

use crate::address::Transport;
use crate::candidates::PacketServer;
use crate::load::{Answered, Load, Run};
use crate::programs::Programs;
use crate::server::Server;
use crate::socket_io::Case;
use crate::stats::{Samples, format_short};
use crate::table::Table;
use crate::{Context as _, Result};

/// How many slices each candidate has within a sample.
pub(crate) const SLICES: u32 = 10;

/// How often and how long to measure, and what.
pub(crate) struct Plan {
    /// Samples of every figure.
    pub(crate) rounds: usize,
    /// The length of a sample of the section `cpu`; the others take less.
    pub(crate) sample: Duration,
    /// The cases of the section `cpu`, on these transports.
    pub(crate) cases: Vec<(Transport, Case)>,
    /// The cases of the section `packets`, on these transports.
    pub(crate) packet_cases: Vec<(Transport, Case)>,
    /// Whether the section `packets` has nothing but these cases.
    pub(crate) only_packet_cases: bool,
    /// The other servers of packets that are measured.
    pub(crate) packet_servers: Vec<&'static (&'static str, PacketServer)>,
    /// The number of connections that are "very many".
    pub(crate) many_connections: usize,
    /// How many connections may be open at the same time.
    pub(crate) max_connections: usize,
    /// The program to start.
    pub(crate) programs: Programs,
}

/// A server and its load.
pub(crate) struct Loaded<L> {
    /// Which candidate it is.
    pub(crate) candidate: usize,
    /// The name of the candidate.
    pub(crate) name: String,
    /// The server.
    pub(crate) server: Server,
    /// The load, which is connected to it.
    pub(crate) load: L,
}

/// The messages that one server has answered, and the time that it has spent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sample {
    cpu_nanoseconds: u64,
    messages: u64,
    /// Messages that had no reply in time.
    pub(crate) lost: u64,
    time: Duration,
}

impl Sample {
    /// Adds what the server answers and spends while `load` runs. The server is idle before and after.
    pub(crate) fn add(&mut self, server: &mut Server, load: impl FnOnce() -> Result<Answered>) -> Result<()> {
        let before = server.wait_until_idle()?;
        let answered = load()?;
        self.cpu_nanoseconds += server.wait_until_idle()? - before;
        self.messages += answered.messages;
        self.lost += answered.lost;
        self.time += answered.time;
        Ok(())
    }
}

/// The two figures of a case.
#[derive(Clone)]
pub(crate) struct Figures {
    /// CPU time of the server for each message, in nanoseconds.
    pub(crate) cpu: Samples,
    /// Messages answered in a second.
    pub(crate) rate: Samples,
}

impl Figures {
    /// Creates the empty figures of this many candidates.
    pub(crate) fn of(candidates: usize) -> Self {
        Self { cpu: Samples::of(candidates), rate: Samples::of(candidates) }
    }

    /// Adds a round: a sample of every candidate.
    pub(crate) fn push(&mut self, samples: &[Sample]) {
        for (candidate, &sample) in samples.iter().enumerate() {
            self.push_sample(candidate, sample);
        }
    }

    /// Adds a sample of one candidate, where not all have one.
    pub(crate) fn push_sample(&mut self, candidate: usize, sample: Sample) {
        self.cpu.push(candidate, sample.cpu_nanoseconds as f64 / sample.messages as f64);
        self.rate.push(candidate, sample.messages as f64 / sample.time.as_secs_f64());
    }

    /// Formats two tables of the same cases: the figures of the first candidate, and the ratios of the others; `names` are
    /// those of the candidates, of the first ones at least.
    pub(crate) fn tables(title: &str, first: &str, cases: &[(String, Self)], names: &[&str]) -> [Table; 2] {
        let table = |title: String, unit: &str, figure: fn(&Self) -> &Samples| {
            let mut headings = vec![first.to_owned(), format!("{} {unit}", names[0])];
            headings.extend(names[1..].iter().map(|&name| name.to_owned()));
            let mut table = Table::new(title, headings);
            for (case, figures) in cases {
                let samples = figure(figures);
                let mut row = vec![case.clone(), format_short(samples.median(0))];
                row.extend((1..names.len()).map(|candidate| match samples.count(candidate) {
                    0 => "-".to_owned(),
                    _ => samples.ratio_and_range(candidate),
                }));
                table.row(row);
            }
            table
        };
        [
            table(format!("CPU time of the server per {title}; less is better"), "ns", |figures| &figures.cpu),
            table(format!("Rate, per second: {title}; more is better"), "/s", |figures| &figures.rate),
        ]
    }
}

impl Plan {
    /// Returns how long a server is loaded before it is measured.
    pub(crate) fn warm_up(&self) -> Duration {
        self.sample / 5
    }

    /// Returns all candidates, beginning with another one at each offset, so that none always comes after the same
    /// other.
    pub(crate) fn rotated(candidates: Range<usize>, offset: usize) -> impl Iterator<Item = usize> {
        let (start, count) = (candidates.start, candidates.len());
        (0..count).map(move |index| start + (index + offset) % count)
    }

    /// Takes one sample of every candidate, in slices in rotation, so that a disturbance affects all of them. The
    /// servers are new each time, because where a process happens to lie in memory makes a difference that lasts.
    ///
    /// If the limit on open files does not allow all the loads to be open at once, as many as fit are measured in
    /// rotation, the first two at least, and the others after them.
    pub(crate) fn sample(
        &self,
        transport: Transport,
        case: Case,
        length: Duration,
        round: usize,
    ) -> Result<Vec<Sample>> {
        let count = self.programs.count();
        let mut samples = vec![Sample::default(); count];
        let group_size = self.group_size(case, count);
        for start in (0..count).step_by(group_size) {
            self.sample_some(start..count.min(start + group_size), transport, case, length, round, &mut samples)?;
        }
        Ok(samples)
    }

    fn sample_some(
        &self,
        candidates: Range<usize>,
        transport: Transport,
        case: Case,
        length: Duration,
        round: usize,
        samples: &mut [Sample],
    ) -> Result<()> {
        let mut loaded = Vec::new();
        for candidate in candidates {
            let name = self.programs.name(candidate).to_owned();
            let server = self.programs.start(candidate, transport)?;
            let mut load = Load::connect(server.address(), case).context(&name)?;
            load.exchange_batch().context(&name)?;
            loaded.push(Loaded { candidate, name, server, load });
        }
        self.sample_loaded(&mut loaded, length, round, samples)
    }

    /// Returns the loads of how many candidates, of so many, may be open at a time: two at least.
    pub(crate) fn group_size(&self, case: Case, candidates: usize) -> usize {
        (self.max_connections / case.connections).clamp(2, candidates.max(2))
    }

    /// Warms servers up and takes a sample of each, in slices in rotation.
    pub(crate) fn sample_loaded(
        &self,
        loaded: &mut [Loaded<impl Run>],
        length: Duration,
        round: usize,
        samples: &mut [Sample],
    ) -> Result<()> {
        for Loaded { name, load, .. } in &mut *loaded {
            load.run(self.warm_up()).context(name)?;
        }
        let max_slices = length.as_micros() / loaded[0].load.burst_length().as_micros();
        let slices = u32::try_from(max_slices).unwrap_or(u32::MAX).clamp(1, SLICES);
        for slice in 0..slices {
            for index in Self::rotated(0..loaded.len(), round + slice as usize) {
                let Loaded { candidate, name, server, load } = &mut loaded[index];
                samples[*candidate].add(server, || load.run(length / slices)).context(name)?;
            }
        }
        Ok(())
    }
}
