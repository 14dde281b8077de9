//! The figures of the process that all clients of Prometheus have.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The figures of this process. What cannot be read is `None`.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct ProcessStats {
    pub(super) cpu_seconds: f64,
    pub(super) open_fds: Option<u64>,
    /// `None` if there is no limit.
    pub(super) max_fds: Option<u64>,
    pub(super) virtual_memory_bytes: Option<u64>,
    pub(super) resident_memory_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
}

impl ProcessStats {
    /// Reads the figures, as they are now.
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kibibytes = |field| number(&status, field).map(|number| number * 1024);
        let cpu_time = clock_gettime(ClockId::ProcessCPUTime);
        #[expect(clippy::cast_precision_loss, reason = "there is a fraction besides")]
        let cpu_seconds = cpu_time.tv_sec as f64 + cpu_time.tv_nsec as f64 / 1e9;
        Self {
            cpu_seconds,
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::Nofile).current,
            virtual_memory_bytes: kibibytes("VmSize:"),
            resident_memory_bytes: kibibytes("VmRSS:"),
            threads: number(&status, "Threads:"),
        }
    }
}

/// Returns the number of a field of /proc/PID/status (proc_pid_status(5)).
fn number(status: &str, field: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Returns how many descriptors are open. Linux 6.2 and newer know without listing them, which takes milliseconds for thousands.
fn open_fds() -> Option<u64> {
    let directory = "/proc/self/fd";
    match fs::metadata(directory).map(|metadata| metadata.len()) {
        Ok(count @ 1..) => Some(count),
        // The one that lists them is not counted.
        _ => Some(fs::read_dir(directory).ok()?.count().saturating_sub(1) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_status_are_found_by_their_names() {
        let status = "Name:\tVmRSS: 7\nVmRSS:\t    1234 kB\nThreads:\t3\n";
        assert_eq!((number(status, "VmRSS:"), number(status, "Threads:")), (Some(1234), Some(3)));
        assert_eq!((number(status, "VmSize:"), number("", "VmRSS:")), (None, None));
    }

    #[test]
    fn this_process_has_figures() {
        let before = ProcessStats::read();
        let more: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        let stats = ProcessStats::read();
        assert!(stats.cpu_seconds >= before.cpu_seconds && stats.cpu_seconds > 0.0, "{stats:?}");
        assert!(stats.open_fds > Some(more.len() as u64), "{stats:?}");
        assert!(stats.resident_memory_bytes > Some(100_000), "{stats:?}");
        assert!(stats.virtual_memory_bytes >= stats.resident_memory_bytes && stats.threads >= Some(1), "{stats:?}");
    }
}
