//! What goes from one process to the next besides connections: what was counted, and whether it is in lame duck.

use std::collections::BTreeMap;
use std::sync::Arc;

use echoed::monitor::{ProcessCounters, ProcessCounts};
use echoed::server::{ListenerCounts, Phase, ServerHandle};
use serde::{Deserialize, Serialize};

use crate::log::LeveledLog;

/// The state of a process, as it is stored for the next one. Keys that are missing, in that of another version, have their defaults.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessState {
    listeners: BTreeMap<String, ListenerCounts>,
    process: ProcessCounts,
    /// Whether it is in lame duck.
    draining: bool,
    /// Whether all connections were handed over, if they were to be.
    pub(crate) handover: Option<bool>,
}

impl ProcessState {
    /// Returns the state of this process. In `phase` it was before it began to stop.
    pub(crate) fn of(server: &ServerHandle, process: &ProcessCounters, log: &LeveledLog, phase: Phase) -> Self {
        Self {
            listeners: server.counts_by_listener(),
            process: process.counts(log.suppressed_total()),
            draining: phase == Phase::LameDuck,
            handover: None,
        }
    }

    /// Goes on with the state of the previous process.
    pub(crate) fn inherit(self, server: &ServerHandle, process: &Arc<ProcessCounters>) {
        server.inherit_counts(self.listeners);
        process.inherit(self.process);
        if self.draining {
            server.inherit_lame_duck();
        }
    }

    /// Returns whether the next process must have it, even if there is no connection.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Encodes it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // There is nothing in it that JSON could not have.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Decodes a state that a process of this or another version has encoded.
    ///
    /// # Errors
    /// Returns an error if it is not a state.
    pub(crate) fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_decoded_as_it_was_encoded() {
        let counts = ListenerCounts {
            accepted: u64::MAX,
            ended: [("peer-closed".to_owned(), 7)].into(),
            has_connections: true,
            ..ListenerCounts::default()
        };
        let state = ProcessState {
            listeners: [("a \"name\"\n".to_owned(), counts)].into(),
            draining: true,
            handover: Some(true),
            ..ProcessState::default()
        };
        assert_eq!(ProcessState::from_bytes(&state.to_bytes()).unwrap(), state);
    }

    #[test]
    fn states_of_other_versions_are_decoded_as_far_as_possible() {
        let other = br#"{"listeners": {"echo": {"messages": 7, "faults": {"reset": 1}}}, "new": [1]}"#;
        let state = ProcessState::from_bytes(other).unwrap();
        assert_eq!((state.listeners["echo"].messages, state.draining, state.handover), (7, false, None));
        for bytes in [&b""[..], b"{", b"[]x", b"{\"listeners\": {\"echo\": {\"messages\": -1}}}", &[b'['; 100_000]] {
            assert!(ProcessState::from_bytes(bytes).is_err());
        }
    }
}
