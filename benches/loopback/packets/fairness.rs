//! How long a well-behaved source waits beside others that are not.

use crate::address::Transport;
use crate::packets::candidates::PacketCandidates;
use crate::packets::flood::PacketFlood;
use crate::packets::tally::Tally;
use crate::plan::Plan;
use crate::plot::Plot;
use crate::report::ReportSection;
use crate::stats::percentile;
use crate::table::Table;
use crate::{Context as _, Result, progress};

/// How many sources flood.
const FLOODING: usize = 4;

const CASES: [(Transport, usize); 6] = [
    (Transport::Udp, 16),
    (Transport::Udp, 1024),
    (Transport::Unixgram, 16),
    (Transport::Unixgram, 1024),
    (Transport::Seqpacket, 16),
    (Transport::Seqpacket, 1024),
];

/// Measures how long a source with one message on the way waits beside others that have as many as they may.
pub(crate) fn fairness(plan: &Plan, candidates: &PacketCandidates<'_>) -> Result<ReportSection> {
    let mut groups = Vec::new();
    let mut table = Table::new(
        format!("Fairness of packets: round trip of a message of 16 bytes beside {FLOODING} sources that flood"),
        ["flood of", "server", "p50 µs", "p99 µs", "slowest µs", "flood /s", "lost"],
    );
    for (transport, size) in CASES {
        let name = format!("{} {size} B", transport.name());
        progress(format_args!("packets, fairness: {name}"));
        let serving = candidates.serving(transport);
        let mut servers = Vec::new();
        for &candidate in &serving {
            servers.push((candidate, candidates.start(candidate, transport)?, Vec::new(), Tally::default()));
        }
        let length = plan.sample / 4;
        for round in 0..plan.rounds {
            for index in Plan::rotated(0..servers.len(), round) {
                let (candidate, server, times, tally) = &mut servers[index];
                let context = candidates.name(*candidate);
                let mut flood = PacketFlood::open(server.address(), transport, size, FLOODING).context(context)?;
                flood.run(plan.warm_up()).context(context)?;
                let before = flood.tally().answered;
                times.extend(flood.run(length).context(context)?);
                *tally += flood.tally();
                tally.answered -= before;
                drop(flood);
                server.wait_until_idle()?;
            }
        }
        let mut slow = vec![f64::NAN; candidates.count()];
        for (candidate, _, times, tally) in &servers {
            slow[*candidate] = percentile(times, 990) * 1e6;
            let mut row = vec![name.clone(), candidates.name(*candidate).to_owned()];
            // Some servers do not answer a single message in time.
            let shown = |time: f64| if time.is_nan() { "none".to_owned() } else { format!("{time:.0}") };
            row.extend([500, 990, 1000].map(|per_mille| shown(percentile(times, per_mille) * 1e6)));
            let rate = tally.answered as f64 / (length.as_secs_f64() * plan.rounds as f64);
            row.extend([crate::stats::format_short(rate), tally.lost.to_string()]);
            table.row(row);
        }
        groups.push((name, slow));
    }
    let plot = Plot {
        name: "packets-fairness",
        title: format!("Round trip of a packet beside {FLOODING} flooding sources, 99th percentile, in µs"),
        series: candidates.names().into_iter().map(str::to_owned).collect(),
        groups,
        first_colour: 0,
        mark: None,
    };
    Ok(ReportSection { tables: vec![table], plots: vec![plot] })
}
