//! How soon a server that is started by its first connection answers it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::address::Address;
use crate::plan::Plan;
use crate::server::Server;
use crate::socket_io::{Case, check_reply};
use crate::stats::{median, percentile};
use crate::table::Table;
use crate::{Context as _, Result, now, progress};

/// Measures the time from the connection that starts the server to its first reply. Returns no table if there is no
/// `systemd-socket-activate`.
pub(crate) fn start(plan: &Plan) -> Result<Vec<Table>> {
    const TIMES: usize = 15;
    let candidates = plan.programs.count_at_start();
    let mut samples = vec![Vec::new(); candidates];
    progress(format_args!("start: {TIMES} times each"));
    for round in 0..TIMES {
        for candidate in Plan::rotated(0..candidates, round) {
            let Some(server) = plan.programs.activate(candidate).context(plan.programs.name(candidate))? else {
                return Ok(Vec::new());
            };
            samples[candidate].push(first_reply(&server)?.as_secs_f64() * 1e3);
        }
    }
    let mut table = Table::new(
        "Start: from connecting to the first reply, when systemd-socket-activate starts the server for it",
        ["server", "median ms", "fastest ms", "slowest ms"],
    );
    for (candidate, samples) in samples.iter().enumerate() {
        let mut row = vec![plan.programs.name(candidate).to_owned()];
        let figures = [median(samples), percentile(samples, 0), percentile(samples, 1000)];
        row.extend(figures.map(|milliseconds| format!("{milliseconds:.2}")));
        table.row(row);
    }
    Ok(vec![table])
}

fn first_reply(server: &Server) -> Result<Duration> {
    let Address::Unix(path) = server.address() else { unreachable!("it is activated through a Unix socket") };
    let workload = Case::new(16, 1, 1).workload();
    let mut reply = vec![0; workload.reply_size()];
    let start = now();
    let exchange = UnixStream::connect(path).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(workload.messages(0, 1))?;
        stream.read_exact(&mut reply)
    });
    let time = now() - start;
    exchange.context("asking the activated server")?;
    check_reply(&reply, workload.replies(0, 1))?;
    Ok(time)
}
