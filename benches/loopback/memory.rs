//! The memory of a server, at rest and for each connection.

use crate::address::Transport;
use crate::load::Load;
use crate::plan::Plan;
use crate::plot::Plot;
use crate::report::ReportSection;
use crate::server::{Memory, Server};
use crate::socket_io::Case;
use crate::table::Table;
use crate::{Result, progress};

/// Measures the memory at rest, and what an idle connection adds to it.
pub(crate) fn memory(plan: &Plan) -> Result<ReportSection> {
    let mut table = Table::new(
        format!("Memory: the server's own (user) memory; {} idle TCP connections", plan.many_connections),
        ["server", "resident at rest, KiB", "B per connection", "B after 16 B and 4 KiB messages", "B after closing"],
    );
    let mut groups = Vec::new();
    for candidate in 0..plan.programs.count_at_start() {
        let name = plan.programs.name(candidate);
        progress(format_args!("memory: {name}"));
        let mut server = plan.programs.start(candidate, Transport::Tcp)?;
        server.wait_until_idle()?;
        let Memory { resident, .. } = server.memory()?;

        // The first connection also allocates shared memory, such as scratch buffers.
        let mut first = Load::connect(server.address(), Case::new(16, 1, 1))?;
        exchange_messages(&mut first)?;
        drop(first);
        server.wait_until_idle()?;

        let files = server.open_files()?;
        let base = server.memory()?.anonymous as f64;
        let added = |server: &mut Server| -> Result<f64> {
            server.wait_until_idle()?;
            Ok((server.memory()?.anonymous as f64 - base) / plan.many_connections as f64)
        };
        let mut load = Load::connect(server.address(), Case::new(16, 1, plan.many_connections))?;
        server.wait_for_open_files(files + plan.many_connections)?;
        let idle = added(&mut server)?;
        exchange_messages(&mut load)?;
        let after = added(&mut server)?;
        drop(load);
        let closed = added(&mut server)?;
        groups.push((name.to_owned(), vec![idle, after]));
        let mut row = vec![name.to_owned(), (resident / 1024).to_string()];
        row.extend([idle, after, closed].map(|bytes| format!("{bytes:.0}")));
        table.row(row);
    }
    let plot = Plot {
        name: "memory",
        title: "The server's memory for each idle connection, in bytes".to_owned(),
        series: vec!["idle".to_owned(), "after messages".to_owned()],
        groups,
        first_colour: 4,
        mark: None,
    };
    Ok(ReportSection { tables: vec![table], plots: vec![plot] })
}

/// Exchanges one message of 16 bytes and one of 4 KiB on every connection.
fn exchange_messages(load: &mut Load) -> Result<()> {
    for size in [16, 4096] {
        load.set_message_size(size);
        load.exchange_batch()?;
    }
    Ok(())
}
