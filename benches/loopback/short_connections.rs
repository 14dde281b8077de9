//! The cost of a short connection: connect, one message, its reply, close.

use crate::address::Transport;
use crate::load::ShortConnections;
use crate::plan::{Figures, Plan, SLICES, Sample};
use crate::socket_io::Workload;
use crate::table::Table;
use crate::{Context as _, Result, progress};

/// How many connections there are at a time.
const CONCURRENCY: usize = 64;

/// Measures CPU time and rate of connect, one message, close.
pub(crate) fn connect(plan: &Plan) -> Result<Vec<Table>> {
    let candidates = plan.programs.count();
    let mut rows = Vec::new();
    for transport in Transport::STREAMS {
        let mut figures = Figures::of(candidates);
        progress(format_args!("connect: {}", transport.name()));
        for round in 0..plan.rounds {
            figures.push(&sample(plan, transport, round)?);
        }
        rows.push((transport.name().to_owned(), figures));
    }
    let what = format!("connect, one message of 16 bytes, close, {CONCURRENCY} at once");
    Ok(Figures::tables(&what, "over", &rows, &plan.programs.names()).into())
}

fn sample(plan: &Plan, transport: Transport, round: usize) -> Result<Vec<Sample>> {
    let candidates = plan.programs.count();
    let mut servers =
        (0..candidates).map(|candidate| plan.programs.start(candidate, transport)).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<_> = servers.iter().map(|server| server.address().clone()).collect();
    let workload = Workload::new(16, 16);
    let mut short_connections = addresses
        .iter()
        .map(|address| ShortConnections::new(address, &workload, CONCURRENCY))
        .collect::<Result<Vec<_>>>()?;
    for short_connections in &mut short_connections {
        short_connections.run(plan.warm_up() / 2)?;
    }
    let mut samples = vec![Sample::default(); candidates];
    for slice in 0..SLICES {
        for candidate in Plan::rotated(0..candidates, round + slice as usize) {
            let short_connections = &mut short_connections[candidate];
            samples[candidate]
                .add(&mut servers[candidate], || short_connections.run(plan.sample / 2 / SLICES))
                .context(plan.programs.name(candidate))?;
        }
    }
    Ok(samples)
}
