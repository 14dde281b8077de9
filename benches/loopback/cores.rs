//! Two workers on two CPUs, against the reference with two threads.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::address::{Address, Transport};
use crate::cpus::pin;
use crate::load::{Answered, Load};
use crate::plan::{Figures, Plan, SLICES, Sample};
use crate::socket_io::Case;
use crate::table::Table;
use crate::{Context as _, Failure, Result, progress};

const CASES: [Case; 3] = [Case::new(16, 1, 64), Case::new(16, 16, 64), Case::new(1024, 16, 64)];

/// The reference and the daemon; the others have one thread only.
const CANDIDATES: usize = 2;

/// CPU time per message and messages per second, case by case.
pub(crate) fn cores(plan: &Plan) -> Result<Vec<Table>> {
    let (servers, loads) = plan.programs.cpus.split_two();
    if servers.len() < 2 {
        return Ok(Vec::new());
    }
    let shared = if servers == loads { ", which the load shares" } else { "" };
    let mut rows = Vec::new();
    for transport in Transport::ALL {
        for case in CASES {
            rows.push((format!("{} {case}", transport.name()), Figures::of(CANDIDATES)));
        }
    }
    for round in 0..plan.rounds {
        let cases = Transport::ALL.into_iter().flat_map(|transport| CASES.map(|case| (transport, case)));
        for ((transport, case), (name, figures)) in cases.zip(&mut rows) {
            progress(format_args!("cores, round {} of {}: {name}", round + 1, plan.rounds));
            figures.push(&sample(plan, transport, case, round).context(name)?);
        }
    }
    let title = format!("message, two workers on two CPUs{shared}");
    Ok(Figures::tables(&title, "size-depth-connections", &rows, &plan.programs, CANDIDATES).into())
}

fn sample(plan: &Plan, transport: Transport, case: Case, round: usize) -> Result<Vec<Sample>> {
    let (server_cpus, load_cpus) = plan.programs.cpus.split_two();
    let case_of_thread = Case { connections: case.connections / load_cpus.len(), ..case };
    let mut servers = Vec::new();
    for candidate in 0..CANDIDATES {
        let server = plan.programs.start_on(candidate, transport, &server_cpus)?;
        let load_thread = |&cpu: &usize| LoadThread::start(server.address().clone(), case_of_thread, cpu);
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

/// A load in a thread of its own, on a CPU of its own: it cannot move to another.
struct LoadThread {
    commands: Sender<Duration>,
    results: Receiver<Result<Answered>>,
}

impl LoadThread {
    fn start(address: Address, case: Case, cpu: usize) -> Self {
        let (commands, received_commands) = channel::<Duration>();
        let (result_sender, results) = channel();
        thread::spawn(move || {
            let mut load = pin(&[cpu]).and_then(|()| Load::connect(&address, case));
            for time in received_commands {
                let result = match &mut load {
                    Ok(load) => load.run(time),
                    Err(failure) => Err(Failure::new(failure)),
                };
                if result_sender.send(result).is_err() {
                    break;
                }
            }
        });
        Self { commands, results }
    }
}

/// Runs all loads for a time, and adds up their answers.
fn run_all(load_threads: &[LoadThread], time: Duration) -> Result<Answered> {
    for load_thread in load_threads {
        load_thread.commands.send(time).context("starting a load")?;
    }
    let mut sum = Answered { messages: 0, time: Duration::ZERO };
    for load_thread in load_threads {
        let answered = load_thread.results.recv().context("waiting for a load")??;
        sum.messages += answered.messages;
        sum.time = sum.time.max(answered.time);
    }
    Ok(sum)
}
