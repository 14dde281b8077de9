//! The memory of a server for connections of packets.

use crate::address::Transport;
use crate::packets::candidates::PacketCandidates;
use crate::packets::load::PacketLoad;
use crate::plan::Plan;
use crate::server::{Memory, Server};
use crate::socket_io::Case;
use crate::table::Table;
use crate::{Result, progress};

/// How many connections there are.
const CONNECTIONS: usize = 1000;

/// Measures what an idle connection of packets adds to the memory at rest.
pub(crate) fn memory(plan: &Plan, candidates: &PacketCandidates<'_>) -> Result<Table> {
    let connections = CONNECTIONS.min(plan.max_connections);
    let mut table = Table::new(
        format!("Memory: the server's own (user) memory; {connections} idle connections of packets (seqpacket)"),
        ["server", "resident at rest, KiB", "B per connection", "B after 16 B and 4 KiB messages", "B after closing"],
    );
    for candidate in candidates.serving(Transport::Seqpacket) {
        let name = candidates.name(candidate);
        progress(format_args!("packets, memory: {name}"));
        let mut server = candidates.start(candidate, Transport::Seqpacket)?;
        let open =
            |server: &Server, count| PacketLoad::open(server.address(), Transport::Seqpacket, Case::new(16, 1, count));
        server.wait_until_idle()?;
        let Memory { resident, .. } = server.memory()?;

        // The first connection also allocates shared memory, such as scratch buffers.
        let mut first = open(&server, 1)?;
        exchange_messages(&mut first)?;
        drop(first);
        server.wait_until_idle()?;

        let files = server.open_files()?;
        let base = server.memory()?.anonymous as f64;
        let added = |server: &mut Server| -> Result<f64> {
            server.wait_until_idle()?;
            Ok((server.memory()?.anonymous as f64 - base) / connections as f64)
        };
        let mut load = open(&server, connections)?;
        server.wait_for_open_files(files + connections)?;
        let idle = added(&mut server)?;
        exchange_messages(&mut load)?;
        let after = added(&mut server)?;
        drop(load);
        let closed = added(&mut server)?;
        let mut row = vec![name.to_owned(), (resident / 1024).to_string()];
        row.extend([idle, after, closed].map(|bytes| format!("{bytes:.0}")));
        table.row(row);
    }
    Ok(table)
}

/// Exchanges one message of 16 bytes and one of 4 KiB on every connection.
fn exchange_messages(load: &mut PacketLoad) -> Result<()> {
    for size in [16, 4096] {
        load.set_message_size(size);
        load.exchange_batch()?;
    }
    Ok(())
}
