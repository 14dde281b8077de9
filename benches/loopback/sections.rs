//! The measurements, one function for each section of the results.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::load::{Answered, Flood, Load, Visits};
use crate::server::{Address, Memory, Programs, Server, Transport};
use crate::stats::{Pairs, Side, Table, median, percentile, short};
use crate::wire::{Case, check};
use crate::{Doing as _, Result, now, progress};

const SIDES: [Side; 2] = [Side::Reference, Side::Subject];

/// The cases of the section `cpu`: one message at a time on one, some and many connections, then pipelines,
/// then large messages.
pub(crate) const CASES: [Case; 6] = [
    Case::new(16, 1, 1),
    Case::new(16, 1, 64),
    Case::new(16, 1, 1000),
    Case::new(16, 16, 64),
    Case::new(1024, 16, 64),
    Case::new(65_536, 1, 8),
];

/// How often the servers take turns within a sample.
const SLICES: u32 = 10;

/// How often and how long to measure, and what.
pub(crate) struct Plan {
    /// Samples of every figure.
    pub(crate) rounds: usize,
    /// The length of a sample of the section `cpu`; the others take less.
    pub(crate) sample: Duration,
    /// The cases of the section `cpu`, on these transports.
    pub(crate) cases: Vec<(Transport, Case)>,
    /// The number of connections that are "very many".
    pub(crate) many: usize,
    /// What to start.
    pub(crate) programs: Programs,
}

/// Both servers, on one transport.
struct Both {
    reference: Server,
    subject: Server,
}

impl Both {
    fn start(programs: &Programs, transport: Transport) -> Result<Self> {
        Ok(Self {
            reference: programs.start(Side::Reference, transport)?,
            subject: programs.start(Side::Subject, transport)?,
        })
    }

    fn of(&mut self, side: Side) -> &mut Server {
        match side {
            Side::Reference => &mut self.reference,
            Side::Subject => &mut self.subject,
        }
    }

    fn connect(&mut self, side: Side, case: Case) -> Result<Load> {
        Load::connect(self.of(side).address(), case)
    }
}

/// What one server has done and spent.
#[derive(Clone, Copy, Default)]
struct Sample {
    cpu_nanoseconds: u64,
    messages: u64,
    time: Duration,
}

impl Sample {
    /// Adds what the server does and spends while `load` runs. It is at rest before and after.
    fn add(&mut self, server: &mut Server, load: impl FnOnce() -> Result<Answered>) -> Result<()> {
        let before = server.settle()?;
        let answered = load()?;
        self.cpu_nanoseconds += server.settle()? - before;
        self.messages += answered.messages;
        self.time += answered.time;
        Ok(())
    }

    fn cpu_per_message(&self) -> f64 {
        self.cpu_nanoseconds as f64 / self.messages as f64
    }
}

/// The two figures of a case.
#[derive(Clone, Default)]
struct Figures {
    /// CPU time of the server for each message, in nanoseconds.
    cpu: Pairs,
    /// Messages answered in a second.
    rate: Pairs,
}

impl Figures {
    fn push(&mut self, samples: [Sample; 2]) {
        for (side, sample) in SIDES.into_iter().zip(samples) {
            self.cpu.push(side, sample.cpu_per_message());
            self.rate.push(side, sample.messages as f64 / sample.time.as_secs_f64());
        }
    }

    fn headings(plan: &Plan, unit: &str) -> [String; 7] {
        let [reference, subject] = SIDES.map(|side| plan.programs.name(side));
        [
            "case".to_owned(),
            format!("{reference} {unit}"),
            format!("{subject} {unit}"),
            "ratio (range)".to_owned(),
            format!("{reference} /s"),
            format!("{subject} /s"),
            "ratio (range)".to_owned(),
        ]
    }

    fn row(&self, case: String) -> Vec<String> {
        let [reference, subject] = SIDES.map(|side| short(self.cpu.median(side)));
        let [reference_rate, subject_rate] = SIDES.map(|side| short(self.rate.median(side)));
        let (ratio, rate_ratio) = (self.cpu.ratio_and_range(), self.rate.ratio_and_range());
        vec![case, reference, subject, ratio, reference_rate, subject_rate, rate_ratio]
    }
}

impl Plan {
    fn warm_up(&self) -> Duration {
        self.sample / 5
    }

    /// One sample of both servers, taken in slices in turn, so that a disturbance meets both of them. The servers
    /// are new each time, because where a process happens to lie in memory makes a difference that lasts.
    fn sample(&self, transport: Transport, case: Case, length: Duration, round: usize) -> Result<[Sample; 2]> {
        let mut both = Both::start(&self.programs, transport)?;
        let mut loads = [both.connect(Side::Reference, case)?, both.connect(Side::Subject, case)?];
        for load in &mut loads {
            load.round()?;
            load.run(self.warm_up())?;
        }
        let most = length.as_micros() / loads[0].bout_length().as_micros();
        let slices = u32::try_from(most).unwrap_or(u32::MAX).clamp(1, SLICES);
        let mut samples = [Sample::default(); 2];
        for slice in 0..slices {
            for side in Side::in_round(round + slice as usize) {
                let load = &mut loads[side.index()];
                samples[side.index()].add(both.of(side), || load.run(length / slices))?;
            }
        }
        Ok(samples)
    }
}

/// CPU time per message and messages per second, case by case.
pub(crate) fn cpu(plan: &Plan) -> Result<Table> {
    let mut figures = vec![Figures::default(); plan.cases.len()];
    for round in 0..plan.rounds {
        for (&(transport, case), figures) in plan.cases.iter().zip(&mut figures) {
            progress(format_args!("cpu, round {} of {}: {} {case}", round + 1, plan.rounds, transport.name()));
            figures.push(plan.sample(transport, case, plan.sample, round).doing(format_args!("{case}"))?);
        }
    }
    let headings = Figures::headings(plan, "ns");
    let mut table = Table::new(
        "## cpu: server CPU time per message; message size - depth - connections",
        &headings.each_ref().map(String::as_str),
    );
    for ((transport, case), figures) in plan.cases.iter().zip(&figures) {
        table.row(figures.row(format!("{} {case}", transport.name())));
    }
    Ok(table)
}

/// CPU time for a connection that comes, sends one message, takes the reply and goes.
pub(crate) fn connect(plan: &Plan) -> Result<Table> {
    const AT_ONCE: usize = 64;
    let headings = Figures::headings(plan, "ns");
    let mut table = Table::new(
        format!("## connect: server CPU time per connect, one message of 16 bytes, close; {AT_ONCE} at once"),
        &headings.each_ref().map(String::as_str),
    );
    for transport in Transport::ALL {
        let mut figures = Figures::default();
        progress(format_args!("connect: {}", transport.name()));
        for round in 0..plan.rounds {
            let mut both = Both::start(&plan.programs, transport)?;
            let addresses = SIDES.map(|side| both.of(side).address().clone());
            let mut visits = [Visits::new(&addresses[0], 16, AT_ONCE)?, Visits::new(&addresses[1], 16, AT_ONCE)?];
            for visits in &mut visits {
                visits.run(plan.warm_up() / 2)?;
            }
            let mut samples = [Sample::default(); 2];
            for slice in 0..SLICES {
                for side in Side::in_round(round + slice as usize) {
                    let visits = &mut visits[side.index()];
                    samples[side.index()].add(both.of(side), || visits.run(plan.sample / 2 / SLICES))?;
                }
            }
            figures.push(samples);
        }
        table.row(figures.row(transport.name().to_owned()));
    }
    Ok(table)
}

/// CPU time per message as the number of connections grows.
pub(crate) fn scaling(plan: &Plan) -> Result<Table> {
    let counts = [64, 1000.min(plan.many), plan.many];
    let mut samples = vec![Pairs::default(); counts.len()];
    for round in 0..plan.rounds {
        progress(format_args!("scaling, round {} of {}", round + 1, plan.rounds));
        for (&connections, samples) in counts.iter().zip(&mut samples) {
            let case = Case::new(16, 1, connections);
            let both = plan.sample(Transport::Tcp, case, plan.sample / 2, round)?;
            for (side, sample) in SIDES.into_iter().zip(both) {
                samples.push(side, sample.cpu_per_message());
            }
        }
    }
    let mut headings = vec!["server".to_owned()];
    headings.extend(counts.map(|connections| format!("{connections}: ns")));
    headings.extend(counts.windows(2).map(|pair| format!("{} : {}", pair[1], pair[0])));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = Table::new(
        "## scaling: server CPU time per message by number of connections; TCP, 16 bytes, depth 1",
        &headings,
    );
    for side in SIDES {
        let medians: Vec<f64> = samples.iter().map(|pairs| pairs.median(side)).collect();
        let mut row = vec![plan.programs.name(side).to_owned()];
        row.extend(medians.iter().map(|&median| short(median)));
        row.extend(medians.windows(2).map(|pair| format!("{:.2}", pair[1] / pair[0])));
        table.row(row);
    }
    Ok(table)
}

/// Memory at rest, and what an idle connection adds to it.
pub(crate) fn memory(plan: &Plan) -> Result<Table> {
    let mut table = Table::new(
        format!("## memory: the server's own (user) memory; {} idle TCP connections", plan.many),
        &["server", "resident at rest, KiB", "B per connection", "B after 16 B and 4 KiB messages", "B after closing"],
    );
    for side in SIDES {
        let name = plan.programs.name(side);
        progress(format_args!("memory: {name}"));
        let mut server = plan.programs.start(side, Transport::Tcp)?;
        server.settle()?;
        let Memory { resident, .. } = server.memory()?;

        // What the first connection brings with it, such as scratch buffers, is not the price of one.
        let mut first = Load::connect(server.address(), Case::new(16, 1, 1))?;
        talk(&mut first)?;
        drop(first);
        server.settle()?;

        let files = server.open_files()?;
        let base = server.memory()?.anonymous as f64;
        let added = |server: &mut Server| -> Result<String> {
            server.settle()?;
            Ok(format!("{:.0}", (server.memory()?.anonymous as f64 - base) / plan.many as f64))
        };
        let mut load = Load::connect(server.address(), Case::new(16, 1, plan.many))?;
        server.wait_for_open_files(files + plan.many)?;
        let idle = added(&mut server)?;
        talk(&mut load)?;
        let after = added(&mut server)?;
        drop(load);
        let closed = added(&mut server)?;
        table.row(vec![name.to_owned(), (resident / 1024).to_string(), idle, after, closed]);
    }
    Ok(table)
}

/// One message of 16 bytes and one of 4 KiB on every connection.
fn talk(load: &mut Load) -> Result<()> {
    for size in [16, 4096] {
        load.switch_to(size);
        load.round()?;
    }
    Ok(())
}

/// From the connection that starts the server to its first reply. `None` where there is no
/// `systemd-socket-activate`.
pub(crate) fn start(plan: &Plan) -> Result<Option<Table>> {
    const TIMES: usize = 15;
    let mut samples = [Vec::new(), Vec::new()];
    progress(format_args!("start: {TIMES} times each"));
    for round in 0..TIMES {
        for side in Side::in_round(round) {
            let Some(server) = plan.programs.activate(side)? else { return Ok(None) };
            samples[side.index()].push(first_reply(&server)?.as_secs_f64() * 1e3);
        }
    }
    let mut table = Table::new(
        "## start: from connecting to the first reply, when systemd-socket-activate starts the server for it",
        &["server", "median ms", "fastest ms", "slowest ms"],
    );
    for (side, samples) in SIDES.into_iter().zip(&samples) {
        let mut row = vec![plan.programs.name(side).to_owned()];
        let figures = [median(samples), percentile(samples, 0), percentile(samples, 1000)];
        row.extend(figures.map(|milliseconds| format!("{milliseconds:.2}")));
        table.row(row);
    }
    Ok(Some(table))
}

fn first_reply(server: &Server) -> Result<Duration> {
    let Address::Unix(path) = server.address() else { unreachable!("it is activated through a Unix socket") };
    let script = Case::new(16, 1, 1).script();
    let mut reply = vec![0; script.reply_size()];
    let start = now();
    let exchange = UnixStream::connect(path).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(script.messages(0, 1))?;
        stream.read_exact(&mut reply)
    });
    let time = now() - start;
    exchange.doing("asking the activated server")?;
    check(&reply, script.replies(0, 1))?;
    Ok(time)
}

/// How long a well-behaved connection waits beside others that send without pause.
pub(crate) fn fairness(plan: &Plan) -> Result<Table> {
    const FLOODING: usize = 4;
    let mut table = Table::new(
        format!("## fairness: round trip of a message of 16 bytes beside {FLOODING} connections that flood"),
        &["flood of", "server", "p50 µs", "p99 µs", "slowest µs"],
    );
    for (transport, size) in
        [(Transport::Tcp, 16), (Transport::Tcp, 1024), (Transport::Unix, 16), (Transport::Unix, 1024)]
    {
        let mut both = Both::start(&plan.programs, transport)?;
        let mut times = [Vec::new(), Vec::new()];
        progress(format_args!("fairness: {} {size}", transport.name()));
        for round in 0..plan.rounds {
            for side in Side::in_round(round) {
                let server = both.of(side);
                let mut flood = Flood::connect(server.address(), size, FLOODING)?;
                flood.run(plan.warm_up())?;
                times[side.index()].extend(flood.run(plan.sample / 4)?);
                drop(flood);
                server.settle()?;
            }
        }
        for (side, times) in SIDES.into_iter().zip(&times) {
            let mut row = vec![format!("{} {size} B", transport.name()), plan.programs.name(side).to_owned()];
            row.extend([500, 990, 1000].map(|per_mille| format!("{:.0}", percentile(times, per_mille) * 1e6)));
            table.row(row);
        }
    }
    Ok(table)
}
