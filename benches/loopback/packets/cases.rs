//! The cost of a packet, case by case.

use std::time::Duration;

use crate::address::Transport;
use crate::packets::candidates::PacketCandidates;
use crate::packets::load::PacketLoad;
use crate::packets::tally::Tally;
use crate::plan::{Figures, Loaded, Plan, Sample};
use crate::plot::Plot;
use crate::report::ReportSection;
use crate::socket_io::Case;
use crate::table::Table;
use crate::{Context as _, Result, progress};

/// Packets go in both sizes, from one, some and many sources with a message each on the way, and from some with several.
const CASES: [Case; 8] = [
    Case::new(16, 1, 1),
    Case::new(16, 1, 64),
    Case::new(16, 1, 1000),
    Case::new(16, 16, 64),
    Case::new(1024, 1, 1),
    Case::new(1024, 1, 64),
    Case::new(1024, 1, 1000),
    Case::new(1024, 16, 64),
];

/// The cases of a short run.
const QUICK_CASES: [Case; 2] = [Case::new(16, 1, 64), Case::new(1024, 16, 64)];

/// Returns the cases of a whole run, or of a short one. A Unix socket of datagrams has room for ten only
/// (net.unix.max_dgram_qlen), so several from each source say nothing new there.
pub(crate) fn cases(quick: bool) -> Vec<(Transport, Case)> {
    let transports = [Transport::Udp, Transport::Unixgram, Transport::Seqpacket];
    let all: &[Case] = if quick { &QUICK_CASES } else { &CASES };
    let mut cases = Vec::new();
    for transport in transports {
        let is_measured = |case: &&Case| case.depth == 1 || transport != Transport::Unixgram;
        cases.extend(all.iter().filter(is_measured).map(|&case| (transport, case)));
    }
    cases.push((Transport::UnixgramPath, Case::new(16, 1, 64)));
    cases
}

/// Returns the length of a sample of a case.
pub(crate) fn sample_length(plan: &Plan) -> Duration {
    plan.sample / 2
}

/// Measures CPU time per packet and packets per second, case by case, and counts lost packets.
pub(crate) fn costs(plan: &Plan, candidates: &PacketCandidates<'_>) -> Result<ReportSection> {
    let count = candidates.count();
    let named = plan.packet_cases.iter().map(|(transport, case)| format!("{} {case}", transport.name()));
    let mut rows: Vec<_> = named.map(|name| (name, Figures::of(count))).collect();
    let mut tallies = vec![vec![Tally::default(); count]; rows.len()];
    for round in 0..plan.rounds {
        for (((transport, case), (name, figures)), tallies) in plan.packet_cases.iter().zip(&mut rows).zip(&mut tallies)
        {
            progress(format_args!("packets, round {} of {}: {name}", round + 1, plan.rounds));
            let samples = sample(plan, candidates, *transport, *case, round, tallies).context(&*name)?;
            for candidate in candidates.serving(*transport) {
                figures.push_sample(candidate, samples[candidate]);
            }
        }
    }
    let ratios = |figures: &Figures| (1..count).map(|candidate| figures.cpu.ratio(candidate)).collect();
    let names = candidates.names();
    let plot = Plot {
        name: "packets",
        title: format!("CPU time per packet, ratio to {}", names[0]),
        series: names[1..].iter().map(|&name| name.to_owned()).collect(),
        groups: rows.iter().map(|(name, figures)| (name.clone(), ratios(figures))).collect(),
        first_colour: 1,
        mark: Some(1.0),
    };
    let mut tables: Vec<_> = Figures::tables("packet", "size-depth-sources", &rows, &names).into();
    tables.push(outcome(&names, rows.iter().map(|(name, _)| &**name).zip(&tallies)));
    Ok(ReportSection { tables, plots: vec![plot] })
}

/// Takes one sample of every candidate that serves `transport`, as [`Plan::sample`] does.
fn sample(
    plan: &Plan,
    candidates: &PacketCandidates<'_>,
    transport: Transport,
    case: Case,
    round: usize,
    tallies: &mut [Tally],
) -> Result<Vec<Sample>> {
    let serving = candidates.serving(transport);
    let mut samples = vec![Sample::default(); candidates.count()];
    for group in serving.chunks(plan.group_size(case, serving.len())) {
        let mut loaded = Vec::new();
        for &candidate in group {
            let name = candidates.name(candidate).to_owned();
            let server = candidates.start(candidate, transport)?;
            let mut load = PacketLoad::open(server.address(), transport, case).context(&name)?;
            load.exchange_batch().context(&name)?;
            loaded.push(Loaded { candidate, name, server, load });
        }
        plan.sample_loaded(&mut loaded, sample_length(plan), round, &mut samples)?;
        for Loaded { candidate, load, .. } in &loaded {
            tallies[*candidate] += load.tally();
        }
    }
    Ok(samples)
}

/// Returns a table of outcomes: of all cases, and of the cases in which packets were lost.
fn outcome<'a>(names: &[&str], cases: impl Iterator<Item = (&'a str, &'a Vec<Tally>)> + Clone) -> Table {
    let mut table = Table::new(
        "Packets of all these cases; lost: without a reply for a second",
        ["server", "answered", "lost", "of these late", "answered twice", "wrong replies"],
    );
    for (candidate, name) in names.iter().enumerate() {
        let mut sum = Tally::default();
        cases.clone().for_each(|(_, tallies)| sum += tallies[candidate]);
        table.row([(*name).to_owned()].into_iter().chain(sum.cells()).collect());
        for (case, tallies) in cases.clone().filter(|(_, tallies)| !tallies[candidate].is_clean()) {
            let what = format!("{name}, {case}");
            table.row([what].into_iter().chain(tallies[candidate].cells()).collect());
        }
    }
    table
}
