//! Two workers on two CPUs, against the reference with two threads.

use crate::address::Transport;
use crate::load::Load;
use crate::load_thread::{LoadThread, run_all};
use crate::plan::{Figures, Plan, SLICES, Sample};
use crate::socket_io::Case;
use crate::table::Table;
use crate::{Context as _, Result, progress};

const CASES: [Case; 3] = [Case::new(16, 1, 64), Case::new(16, 16, 64), Case::new(1024, 16, 64)];

/// The reference and the daemon; the others have one thread only.
const CANDIDATES: usize = 2;

/// Measures CPU time per message and messages per second, case by case.
pub(crate) fn cores(plan: &Plan) -> Result<Vec<Table>> {
    let (servers, loads) = plan.programs.cpus.split_two();
    if servers.len() < 2 {
        return Ok(Vec::new());
    }
    let shared = if servers == loads { ", which the load shares" } else { "" };
    let mut rows = Vec::new();
    for transport in Transport::STREAMS {
        for case in CASES {
            rows.push((format!("{} {case}", transport.name()), Figures::of(CANDIDATES)));
        }
    }
    for round in 0..plan.rounds {
        let cases = Transport::STREAMS.into_iter().flat_map(|transport| CASES.map(|case| (transport, case)));
        for ((transport, case), (name, figures)) in cases.zip(&mut rows) {
            progress(format_args!("cores, round {} of {}: {name}", round + 1, plan.rounds));
            figures.push(&sample(plan, transport, case, round).context(name)?);
        }
    }
    let title = format!("message, two workers on two CPUs{shared}");
    Ok(Figures::tables(&title, "size-depth-connections", &rows, &plan.programs.names()[..CANDIDATES]).into())
}

fn sample(plan: &Plan, transport: Transport, case: Case, round: usize) -> Result<Vec<Sample>> {
    let (server_cpus, load_cpus) = plan.programs.cpus.split_two();
    let case_of_thread = Case { connections: case.connections / load_cpus.len(), ..case };
    let mut servers = Vec::new();
    for candidate in 0..CANDIDATES {
        let server = plan.programs.start_on(candidate, transport, &server_cpus)?;
        let load_thread = |&cpu: &usize| {
            let address = server.address().clone();
            LoadThread::start(cpu, move || Load::connect(&address, case_of_thread))
        };
        let loads: Vec<_> = load_cpus.iter().map(load_thread).collect();
        run_all(&loads, plan.warm_up())?;
        servers.push((server, loads));
    }
    let mut samples = vec![Sample::default(); CANDIDATES];
    for slice in 0..SLICES {
        for candidate in Plan::rotated(0..CANDIDATES, round + slice as usize) {
            let (server, loads) = &mut servers[candidate];
            let run = || run_all(loads, plan.sample / 2 / SLICES);
            samples[candidate].add(server, run).context(plan.programs.name(candidate))?;
        }
    }
    Ok(samples)
}
