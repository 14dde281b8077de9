//! What a connection costs that comes, sends one message, takes the reply and goes.

use crate::address::Transport;
use crate::load::Visits;
use crate::plan::{Figures, Plan, SLICES, Sample};
use crate::table::Table;
use crate::wire::Script;
use crate::{Doing as _, Result, progress};

/// How many connections there are at a time.
const AT_ONCE: usize = 64;

/// CPU time and rate of connect, one message, close.
pub(crate) fn connect(plan: &Plan) -> Result<Vec<Table>> {
    let peers = plan.programs.count();
    let mut rows = Vec::new();
    for transport in Transport::ALL {
        let mut figures = Figures::of(peers);
        progress(format_args!("connect: {}", transport.name()));
        for round in 0..plan.rounds {
            figures.push(&sample(plan, transport, round)?);
        }
        rows.push((transport.name().to_owned(), figures));
    }
    let what = format!("connect, one message of 16 bytes, close, {AT_ONCE} at once");
    Ok(Figures::tables(&what, "over", &rows, &plan.programs, peers).into())
}

fn sample(plan: &Plan, transport: Transport, round: usize) -> Result<Vec<Sample>> {
    let peers = plan.programs.count();
    let mut servers = (0..peers).map(|peer| plan.programs.start(peer, transport)).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<_> = servers.iter().map(|server| server.address().clone()).collect();
    let script = Script::new(16, 16);
    let mut visits =
        addresses.iter().map(|address| Visits::new(address, &script, AT_ONCE)).collect::<Result<Vec<_>>>()?;
    for visits in &mut visits {
        visits.run(plan.warm_up() / 2)?;
    }
    let mut samples = vec![Sample::default(); peers];
    for slice in 0..SLICES {
        for peer in Plan::in_turn(0..peers, round + slice as usize) {
            let visits = &mut visits[peer];
            samples[peer]
                .add(&mut servers[peer], || visits.run(plan.sample / 2 / SLICES))
                .doing(plan.programs.name(peer))?;
        }
    }
    Ok(samples)
}
