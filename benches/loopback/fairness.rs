//! How long a well-behaved connection waits beside others that are not.

use crate::address::Transport;
use crate::load::Flood;
use crate::plan::Plan;
use crate::plot::Plot;
use crate::report::ReportSection;
use crate::stats::{Samples, format_short, percentile};
use crate::table::Table;
use crate::{Result, progress};

/// Measures how long a well-behaved connection waits beside others that send without waiting for replies.
pub(crate) fn fairness(plan: &Plan) -> Result<ReportSection> {
    const FLOODING: usize = 4;
    let candidates = plan.programs.count();
    let mut groups = Vec::new();
    let mut table = Table::new(
        format!("Fairness: round trip of a message of 16 bytes beside {FLOODING} connections that flood"),
        ["flood of", "server", "p50 µs", "p99 µs", "slowest µs", "flood, replies/s", "to C"],
    );
    for (transport, size) in
        [(Transport::Tcp, 16), (Transport::Tcp, 1024), (Transport::Unix, 16), (Transport::Unix, 1024)]
    {
        let mut servers =
            (0..candidates).map(|candidate| plan.programs.start(candidate, transport)).collect::<Result<Vec<_>>>()?;
        let mut times = vec![Vec::new(); candidates];
        let mut rates = Samples::of(candidates);
        progress(format_args!("fairness: {} {size}", transport.name()));
        for round in 0..plan.rounds {
            for candidate in Plan::rotated(0..candidates, round) {
                let server = &mut servers[candidate];
                let mut flood = Flood::connect(server.address(), size, FLOODING)?;
                flood.run(plan.warm_up())?;
                let run = flood.run(plan.sample / 4)?;
                times[candidate].extend(run.times);
                rates.push(candidate, run.rate);
                drop(flood);
                server.wait_until_idle()?;
            }
        }
        let slow = times.iter().map(|times| percentile(times, 990) * 1e6).collect();
        groups.push((format!("{} {size} B", transport.name()), slow));
        for (candidate, times) in times.iter().enumerate() {
            let mut row = vec![format!("{} {size} B", transport.name()), plan.programs.name(candidate).to_owned()];
            // Some servers do not answer a single message in time.
            let shown = |time: f64| if time.is_nan() { "none".to_owned() } else { format!("{time:.0}") };
            row.extend([500, 990, 1000].map(|per_mille| shown(percentile(times, per_mille) * 1e6)));
            row.extend([format_short(rates.median(candidate)), format!("{:.2}", rates.ratio(candidate))]);
            table.row(row);
        }
    }
    let plot = Plot {
        name: "fairness",
        title: format!("Round trip beside {FLOODING} flooding connections, 99th percentile, in µs"),
        series: (0..candidates).map(|candidate| plan.programs.name(candidate).to_owned()).collect(),
        groups,
        first_colour: 0,
        mark: None,
    };
    Ok(ReportSection { tables: vec![table], plots: vec![plot] })
}
