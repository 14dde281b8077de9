//! `echoctl ping`: has Ctrl-C end it with a summary.

use std::io;

use echoed::cli::echoctl::{self as cli, Common};
use echoed::client::ping::report::{PrintOptions, Printer};
use echoed::client::ping::{PingError, PingSettings, ping as run};
use tokio::select;
use tokio::sync::Notify;

use super::interrupts::Interrupts;
use super::{Error, check_prefix, ignore_broken_pipe, runtime};

/// Returns whether all was answered.
pub(super) fn ping(arguments: cli::Ping) -> Result<bool, Error> {
    if !arguments.address.is_packets() {
        check_prefix(&arguments.common)?;
    }
    let Common { delimiter, prefix, connect_timeout } = arguments.common;
    let settings = PingSettings {
        address: arguments.address,
        delimiter,
        prefix,
        connect_timeout,
        timeout: arguments.timeout,
        interval: arguments.interval,
        count: arguments.count,
        size: arguments.size,
    };
    let print_options = PrintOptions { quiet: arguments.quiet, timestamps: arguments.timestamps, json: arguments.json };
    let mut printer = Printer::new(io::stdout(), &settings.address, print_options);
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut interrupts = Interrupts::catch().map_err(|error| Error::not_started(error.to_string()))?;
        let stop = Notify::new();
        let mut pings = std::pin::pin!(run(&settings, &mut printer, &stop));
        loop {
            select! {
                result = &mut pings => return Ok(result),
                () = interrupts.next() => stop.notify_one(),
            }
        }
    });
    // A lookup that has timed out may go on for long.
    runtime.shutdown_background();
    match result? {
        Ok(statistics) => Ok(statistics.is_ok()),
        Err(error @ PingError::Connect(_)) => Err(Error::not_started(error.to_string())),
        Err(PingError::Output(error)) => ignore_broken_pipe(Err(error)).map(|()| true),
        Err(error) => Err(Error::not_started(error.to_string())),
    }
}
