//! The variables of sd_listen_fds(3): for which process descriptors are, how many, and their names.

use std::env;

/// The first descriptor that is passed (SD_LISTEN_FDS_START), where `LISTEN_FDS_FIRST_FD` of listenfd does not say
/// otherwise.
const LISTEN_FDS_START: i32 = 3;

/// The name of a descriptor without a name, as in sd_listen_fds_with_names(3).
const UNNAMED: &str = "unknown";

/// The variables as they are; `None` where one is not set.
#[derive(Debug, Default)]
pub(super) struct Variables {
    pub(super) fds: Option<String>,
    pub(super) pid: Option<String>,
    pub(super) names: Option<String>,
    pub(super) first_fd: Option<String>,
}

/// The content of the variables.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// No descriptors were passed.
    Nothing,
    /// Descriptors were passed to another process, which started this one without passing them on.
    ToAnother {
        /// `LISTEN_PID`.
        pid: u32,
        /// `LISTEN_FDS`.
        count: String,
    },
    /// Descriptors were passed to this process: `count` from `first` on. Whether they are open is not known yet.
    ToUs {
        first: i32,
        count: u32,
        /// As many as there are descriptors; `None` if they have none.
        names: Option<Vec<String>>,
    },
}

impl Variables {
    pub(super) fn of_this_process() -> Self {
        let read = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            fds: read("LISTEN_FDS"),
            pid: read("LISTEN_PID"),
            names: read("LISTEN_FDNAMES"),
            first_fd: read("LISTEN_FDS_FIRST_FD"),
        }
    }

    /// Interprets the variables for the process with this PID. Without `LISTEN_PID`, descriptors are for any process,
    /// as in listenfd (`systemfd --no-pid`).
    ///
    /// # Errors
    /// Returns an error if a variable is invalid, or if they contradict each other. Those for another process are not
    /// looked at.
    pub(super) fn interpret(&self, own_pid: u32) -> Result<Passed, String> {
        let Some(fds) = self.fds.as_deref().filter(|fds| fds.parse() != Ok(0)) else { return Ok(Passed::Nothing) };
        if let Some(pid) = self.pid.as_deref().filter(|pid| !pid.is_empty()) {
            let invalid = |_| format!("invalid LISTEN_PID \"{}\" (example: {own_pid})", pid.escape_debug());
            let pid = pid.parse().map_err(invalid)?;
            if pid != own_pid {
                return Ok(Passed::ToAnother { pid, count: fds.to_owned() });
            }
        }
        let count = fds.parse().map_err(|_| format!("invalid LISTEN_FDS \"{}\" (example: 1)", fds.escape_debug()))?;
        let names = match self.names.as_deref() {
            None | Some("") => None,
            Some(names) => {
                let names: Vec<_> = names.split(':').map(|name| if name.is_empty() { UNNAMED } else { name }).collect();
                if u32::try_from(names.len()) != Ok(count) {
                    return Err(format!(
                        "LISTEN_FDS={count}, but the number of names in LISTEN_FDNAMES is {}",
                        names.len()
                    ));
                }
                Some(names.into_iter().map(str::to_owned).collect())
            }
        };
        // Descriptors are taken with listenfd, which reads this variable like this.
        let first: i32 = self.first_fd.as_deref().and_then(|first| first.parse().ok()).unwrap_or(LISTEN_FDS_START);
        if first.checked_add_unsigned(count).is_none() {
            return Err(format!("LISTEN_FDS={count} and LISTEN_FDS_FIRST_FD={first}: there are no such descriptors"));
        }
        Ok(Passed::ToUs { first, count, names })
    }
}

/// Returns the name of each descriptor.
pub(super) fn name_all(count: u32, names: Option<Vec<String>>) -> Vec<String> {
    names.unwrap_or_else(|| (0..count).map(|_| UNNAMED.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN_PID: u32 = 42;

    fn interpret(fds: &str, pid: &str, names: &str) -> Result<Passed, String> {
        let set = |value: &str| Some(value).filter(|value| *value != "unset").map(str::to_owned);
        Variables { fds: set(fds), pid: set(pid), names: set(names), first_fd: None }.interpret(OWN_PID)
    }

    fn to_us(count: u32, names: Option<&[&str]>) -> Result<Passed, String> {
        let names = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        Ok(Passed::ToUs { first: 3, count, names })
    }

    #[test]
    fn the_process_number_is_looked_at_first() {
        for (fds, names) in [("1", "echo"), ("1", "unset"), ("2", "echo"), ("nonsense", ""), ("", ":::")] {
            let expected = Ok(Passed::ToAnother { pid: 1, count: fds.to_owned() });
            assert_eq!(interpret(fds, "1", names), expected, "{fds} {names}");
        }
        for pid in ["me", "-1", " 42", "42x"] {
            assert!(interpret("1", pid, "echo").unwrap_err().contains("invalid LISTEN_PID"), "{pid}");
        }
    }

    #[test]
    fn descriptors_without_a_process_number_are_for_any_process() {
        assert_eq!(interpret("1", "unset", "unset"), to_us(1, None));
        assert_eq!(interpret("1", "", "echo"), to_us(1, Some(&["echo"])));
        assert_eq!(interpret("1", "42", "echo"), to_us(1, Some(&["echo"])));
    }

    #[test]
    fn no_descriptors_are_nothing_whatever_else_is_set() {
        for fds in ["unset", "0", "00"] {
            for pid in ["unset", "", "1", "42", "me"] {
                assert_eq!(interpret(fds, pid, "echo:echo"), Ok(Passed::Nothing), "{fds} {pid}");
            }
        }
    }

    #[test]
    fn each_descriptor_has_a_name() {
        assert_eq!(interpret("3", "42", "a::b"), to_us(3, Some(&["a", "unknown", "b"])));
        assert_eq!(interpret("2", "42", ""), to_us(2, None));
        assert_eq!(name_all(2, None), ["unknown"; 2]);
        for (fds, names) in [("2", "a"), ("1", "a:b"), ("4294967295", "a")] {
            assert!(interpret(fds, "42", names).unwrap_err().contains("LISTEN_FDNAMES"), "{fds} {names}");
        }
    }

    #[test]
    fn the_first_descriptor_is_that_of_listenfd() {
        for (first_fd, first) in [(Some("7"), 7), (Some("x"), 3), (None, 3)] {
            let first_fd = first_fd.map(str::to_owned);
            let variables = Variables { fds: Some("1".to_owned()), first_fd, ..Variables::default() };
            assert_eq!(variables.interpret(OWN_PID), Ok(Passed::ToUs { first, count: 1, names: None }));
        }
        for (count, first_fd) in [("1", "2147483647"), ("4294967295", "3")] {
            let (fds, first_fd) = (Some(count.to_owned()), Some(first_fd.to_owned()));
            let problem = Variables { fds, first_fd, ..Variables::default() }.interpret(OWN_PID).unwrap_err();
            assert!(problem.contains("there are no such descriptors"), "{problem}");
        }
    }
}
