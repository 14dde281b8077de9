//! What a server keeps in memory, at rest and for each connection.

use crate::address::Transport;
use crate::load::Load;
use crate::plan::Plan;
use crate::plot::Plot;
use crate::report::Part;
use crate::server::{Memory, Server};
use crate::table::Table;
use crate::wire::Case;
use crate::{Result, progress};

/// Memory at rest, and what an idle connection adds to it.
pub(crate) fn memory(plan: &Plan) -> Result<Part> {
    let mut table = Table::new(
        format!("Memory: the server's own (user) memory; {} idle TCP connections", plan.many),
        ["server", "resident at rest, KiB", "B per connection", "B after 16 B and 4 KiB messages", "B after closing"],
    );
    let mut groups = Vec::new();
    for peer in 0..plan.programs.count() {
        let name = plan.programs.name(peer);
        progress(format_args!("memory: {name}"));
        let mut server = plan.programs.start(peer, Transport::Tcp)?;
        server.settle()?;
        let Memory { resident, .. } = server.memory()?;

        // What the first connection brings with it, such as scratch buffers, is not the price of one.
        let mut first = Load::connect(server.address(), Case::new(16, 1, 1))?;
        talk(&mut first)?;
        drop(first);
        server.settle()?;

        let files = server.open_files()?;
        let base = server.memory()?.anonymous as f64;
        let added = |server: &mut Server| -> Result<f64> {
            server.settle()?;
            Ok((server.memory()?.anonymous as f64 - base) / plan.many as f64)
        };
        let mut load = Load::connect(server.address(), Case::new(16, 1, plan.many))?;
        server.wait_for_open_files(files + plan.many)?;
        let idle = added(&mut server)?;
        talk(&mut load)?;
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
    Ok(Part { tables: vec![table], plots: vec![plot] })
}

/// One message of 16 bytes and one of 4 KiB on every connection.
fn talk(load: &mut Load) -> Result<()> {
    for size in [16, 4096] {
        load.switch_to(size);
        load.round()?;
    }
    Ok(())
}
