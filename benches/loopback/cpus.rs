//! Which CPU does what.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Doing as _, Failure, Result};

/// The CPUs of the server and of the load. They are the same one on a machine that has no other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    /// Where the servers run.
    pub(crate) server: usize,
    /// Where this program runs.
    pub(crate) load: usize,
}

impl Cpus {
    /// The first two that this process may use.
    pub(crate) fn available() -> Result<Self> {
        let allowed = sched_getaffinity(None).doing("asking for the CPUs of this process")?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        let server = cpus.next().ok_or_else(|| Failure::new("this process may use no CPU"))?;
        Ok(Self { server, load: cpus.next().unwrap_or(server) })
    }
}

/// Pins the calling thread, and with it the children that it starts from now on.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).doing(format_args!("pinning to CPU {cpu}"))
}
