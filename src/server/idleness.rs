//! The report of a worker on its idle connections, of which one may be closed for a waiting client.

use std::collections::HashMap;
use std::time::Instant;

use super::peer::Source;

/// The idle connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct IdleReport {
    /// The number of connections of each source, idle or not.
    pub(crate) held: HashMap<Source, usize>,
    pub(crate) idle: Vec<IdleConnection>,
}

#[derive(Debug)]
pub(crate) struct IdleConnection {
    pub(crate) source: Source,
    pub(crate) since: Instant,
    /// The key in the event loop. It is valid while the connection with this `id` exists.
    pub(crate) key: usize,
    /// The id. It orders connections that have been idle equally long.
    pub(crate) id: u64,
}

impl IdleReport {
    /// Adds a connection. `idle_since` is `None` if the connection is not idle.
    pub(crate) fn add(&mut self, key: usize, id: u64, source: Source, idle_since: Option<Instant>) {
        *self.held.entry(source).or_default() += 1;
        if let Some(since) = idle_since {
            self.idle.push(IdleConnection { source, since, key, id });
        }
    }
}
