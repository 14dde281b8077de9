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

/// How often and how long to measure, and what.
pub(crate) struct Plan {
    /// Samples of every figure.
    pub(crate) rounds: usize,
    /// The length of a sample of the section `cpu`; the others take half of it.
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
}

/// The two figures of a sample.
#[derive(Clone, Default)]
struct Figures {
    /// CPU time of the server for each message, in nanoseconds.
    cpu: Pairs,
    /// Messages answered in a second.
    rate: Pairs,
}

impl Figures {
    fn push(&mut self, side: Side, cpu_nanoseconds: u64, answered: Answered) {
        let messages = answered.messages as f64;
        self.cpu.push(side, cpu_nanoseconds as f64 / messages);
        self.rate.push(side, messages / answered.time.as_secs_f64());
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

    /// One sample of one server. Leaves it at rest.
    fn sample(&self, server: &mut Server, case: Case, length: Duration) -> Result<(u64, Answered)> {
        let mut load = Load::connect(server.address(), case)?;
        load.round()?;
        load.run(self.warm_up())?;
        let before = server.cpu_nanoseconds()?;
        let answered = load.run(length)?;
        let spent = server.cpu_nanoseconds()? - before;
        load.finish()?;
        drop(load);
        server.settle()?;
        Ok((spent, answered))
    }
}

/// CPU time per message and messages per second, case by case.
pub(crate) fn cpu(plan: &Plan) -> Result<Table> {
    let mut tcp = Both::start(&plan.programs, Transport::Tcp)?;
    let mut unix = Both::start(&plan.programs, Transport::Unix)?;
    let mut figures = vec![Figures::default(); plan.cases.len()];
    for round in 0..plan.rounds {
        for (&(transport, case), figures) in plan.cases.iter().zip(&mut figures) {
            progress(format_args!(
                "cpu, round {} of {}: {} {case}",
                round + 1,
                plan.rounds,
                transport.name()
            ));
            for side in Side::in_round(round) {
                let both = if transport == Transport::Tcp { &mut tcp } else { &mut unix };
                let sample = plan.sample(both.of(side), case, plan.sample);
                let (spent, answered) =
                    sample.doing(format_args!("{} at {case}", plan.programs.name(side)))?;
                figures.push(side, spent, answered);
            }
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
        let mut both = Both::start(&plan.programs, transport)?;
        let mut figures = Figures::default();
        progress(format_args!("connect: {}", transport.name()));
        for round in 0..plan.rounds {
            for side in Side::in_round(round) {
                let server = both.of(side);
                let mut visits = Visits::begin(server.address(), 16, AT_ONCE)?;
                visits.run(plan.warm_up())?;
                let before = server.cpu_nanoseconds()?;
                let answered = visits.run(plan.sample / 2)?;
                let spent = server.cpu_nanoseconds()? - before;
                drop(visits);
                server.settle()?;
                figures.push(side, spent, answered);
            }
        }
        table.row(figures.row(transport.name().to_owned()));
    }
    Ok(table)
}

/// CPU time per message as the number of connections grows.
pub(crate) fn scaling(plan: &Plan) -> Result<Table> {
    let counts = [64, 1000.min(plan.many), plan.many];
    let mut both = Both::start(&plan.programs, Transport::Tcp)?;
    let mut samples = vec![Pairs::default(); counts.len()];
    for round in 0..plan.rounds {
        progress(format_args!("scaling, round {} of {}", round + 1, plan.rounds));
        for (&connections, samples) in counts.iter().zip(&mut samples) {
            for side in Side::in_round(round) {
                let case = Case::new(16, 1, connections);
                let (spent, answered) = plan.sample(both.of(side), case, plan.sample / 2)?;
                samples.push(side, spent as f64 / answered.messages as f64);
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
        &[
            "server",
            "resident at rest, KiB",
            "B per connection",
            "B after 16 B and 4 KiB messages",
            "B after closing",
        ],
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
            samples[usize::from(side == Side::Subject)].push(first_reply(&server)?.as_secs_f64() * 1e3);
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
                times[usize::from(side == Side::Subject)].extend(flood.run(plan.sample / 4)?);
                drop(flood);
                server.settle()?;
            }
        }
        for (side, times) in SIDES.into_iter().zip(&times) {
            let mut row = vec![format!("{} {size} B", transport.name()), plan.programs.name(side).to_owned()];
            row.extend(
                [500, 990, 1000].map(|per_mille| format!("{:.0}", percentile(times, per_mille) * 1e6)),
            );
            table.row(row);
        }
    }
    Ok(table)
}
