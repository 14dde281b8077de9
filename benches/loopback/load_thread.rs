//! Loads in threads, each on a CPU of its own.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::cpus::pin;
use crate::load::{Answered, Run};
use crate::{Context as _, Failure, Result};

/// A load in a thread of its own, on a CPU of its own: it cannot move to another.
pub(crate) struct LoadThread {
    commands: Sender<Duration>,
    results: Receiver<Result<Answered>>,
}

impl LoadThread {
    /// Starts a thread for the load that `open` returns there.
    pub(crate) fn start<L: Run>(cpu: usize, open: impl FnOnce() -> Result<L> + Send + 'static) -> Self {
        let (commands, received_commands) = channel::<Duration>();
        let (result_sender, results) = channel();
        thread::spawn(move || {
            let mut load = pin(&[cpu]).and_then(|()| open());
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
pub(crate) fn run_all(load_threads: &[LoadThread], time: Duration) -> Result<Answered> {
    for load_thread in load_threads {
        load_thread.commands.send(time).context("starting a load")?;
    }
    let mut sum = Answered::default();
    for load_thread in load_threads {
        let answered = load_thread.results.recv().context("waiting for a load")??;
        sum.messages += answered.messages;
        sum.lost += answered.lost;
        sum.time = sum.time.max(answered.time);
    }
    Ok(sum)
}
