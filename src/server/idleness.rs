//! Which connections are idle, so that one of them may be closed for a client that waits.

use std::collections::HashMap;
use std::time::Instant;

use super::peer::Source;

/// Which connections of a worker are idle.
#[derive(Debug, Default)]
pub(crate) struct IdleReport {
    /// How many connections each source has, idle or not.
    pub(crate) held: HashMap<Source, usize>,
    pub(crate) idle: Vec<IdleConnection>,
}

#[derive(Debug)]
pub(crate) struct IdleConnection {
    pub(crate) source: Source,
    pub(crate) since: Instant,
    /// Its key in the event loop, as long as it has its id.
    pub(crate) key: usize,
    /// Its id: of connections that have been idle equally long, the lowest is the oldest.
    pub(crate) id: u64,
}

impl IdleReport {
    /// Adds a connection of this source with its key and id, which has been idle since then if it is.
    pub(crate) fn add(&mut self, key: usize, id: u64, source: Source, idle_since: Option<Instant>) {
        *self.held.entry(source).or_default() += 1;
        if let Some(since) = idle_since {
            self.idle.push(IdleConnection { source, since, key, id });
        }
    }
}
