//! Two workers on two CPUs, against the reference with two threads.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::address::{Address, Transport};
use crate::cpus::pin;
use crate::load::{Answered, Load};
use crate::plan::{Figures, Plan, SLICES, Sample};
use crate::table::Table;
use crate::wire::Case;
use crate::{Doing as _, Failure, Result, progress};

const CASES: [Case; 3] = [Case::new(16, 1, 64), Case::new(16, 16, 64), Case::new(1024, 16, 64)];

/// The reference and the daemon; the others have one thread only.
const PEERS: usize = 2;

/// CPU time per message and messages per second, case by case.
pub(crate) fn cores(plan: &Plan) -> Result<Vec<Table>> {
    let (servers, loads) = plan.programs.cpus.two();
    if servers.len() < 2 {
        return Ok(Vec::new());
    }
    let shared = if servers == loads { ", which the load shares" } else { "" };
    let mut rows = Vec::new();
    for transport in Transport::ALL {
        for case in CASES {
            rows.push((format!("{} {case}", transport.name()), Figures::of(PEERS)));
        }
    }
    for round in 0..plan.rounds {
        let cases = Transport::ALL.into_iter().flat_map(|transport| CASES.map(|case| (transport, case)));
        for ((transport, case), (name, figures)) in cases.zip(&mut rows) {
            progress(format_args!("cores, round {} of {}: {name}", round + 1, plan.rounds));
            figures.push(&sample(plan, transport, case, round).doing(name)?);
        }
    }
    let title = format!("message, two workers on two CPUs{shared}");
    Ok(Figures::tables(&title, "size-depth-connections", &rows, &plan.programs, PEERS).into())
}

fn sample(plan: &Plan, transport: Transport, case: Case, round: usize) -> Result<Vec<Sample>> {
    let (on, loads_on) = plan.programs.cpus.two();
    let part = Case { connections: case.connections / loads_on.len(), ..case };
    let mut servers = Vec::new();
    for peer in 0..PEERS {
        let server = plan.programs.start_on(peer, transport, &on)?;
        let worker = |&cpu: &usize| Worker::start(server.address().clone(), part, cpu);
        let loads: Vec<_> = loads_on.iter().map(worker).collect();
        together(&loads, plan.warm_up())?;
        servers.push((server, loads));
    }
    let mut samples = vec![Sample::default(); PEERS];
    for slice in 0..SLICES {
        for peer in Plan::in_turn(0..PEERS, round + slice as usize) {
            let (server, loads) = &mut servers[peer];
            let run = || together(loads, plan.sample / 2 / SLICES);
            samples[peer].add(server, run).doing(plan.programs.name(peer))?;
        }
    }
    Ok(samples)
}

/// A load in a thread of its own, on a CPU of its own: it cannot move to another.
struct Worker {
    orders: Sender<Duration>,
    results: Receiver<Result<Answered>>,
}

impl Worker {
    fn start(address: Address, case: Case, cpu: usize) -> Self {
        let (orders, inbox) = channel::<Duration>();
        let (outbox, results) = channel();
        thread::spawn(move || {
            let mut load = pin(&[cpu]).and_then(|()| Load::connect(&address, case));
            for time in inbox {
                let result = match &mut load {
                    Ok(load) => load.run(time),
                    Err(failure) => Err(Failure::new(failure)),
                };
                if outbox.send(result).is_err() {
                    break;
                }
            }
        });
        Self { orders, results }
    }
}

/// Runs all of them for a time, and adds up what was answered.
fn together(workers: &[Worker], time: Duration) -> Result<Answered> {
    for worker in workers {
        worker.orders.send(time).doing("starting a load")?;
    }
    let mut sum = Answered { messages: 0, time: Duration::ZERO };
    for worker in workers {
        let answered = worker.results.recv().doing("waiting for a load")??;
        sum.messages += answered.messages;
        sum.time = sum.time.max(answered.time);
    }
    Ok(sum)
}
