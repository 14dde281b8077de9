//! Which CPU does what.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Context as _, Failure, Result};

/// The CPUs of the server and of the load. They are the same one on a machine that has no other.
#[derive(Clone, Debug)]
pub(crate) struct Cpus {
    /// The CPU of the servers.
    pub(crate) server: usize,
    /// The CPU of this program.
    pub(crate) load: usize,
    /// All that this process may use.
    all: Vec<usize>,
}

impl Cpus {
    /// Returns the first two CPUs that this process may use.
    pub(crate) fn available() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("asking for the CPUs of this process")?;
        let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let &server = all.first().ok_or_else(|| Failure::new("this process may use no CPU"))?;
        Ok(Self { server, load: all.get(1).copied().unwrap_or(server), all })
    }

    /// Returns the number of CPUs that this process may use.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Returns two CPUs for a server and two for its loads; the same two if there are fewer than four.
    pub(crate) fn split_two(&self) -> (Vec<usize>, Vec<usize>) {
        let first: Vec<usize> = self.all.iter().copied().take(2).collect();
        let second = self.all.get(2..4).map_or_else(|| first.clone(), <[usize]>::to_vec);
        (first, second)
    }
}

/// Pins the calling thread, and with it the children that it starts from now on.
pub(crate) fn pin(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).context(format_args!("pinning to the CPUs {cpus:?}"))
}
