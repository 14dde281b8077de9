//! `echoctl send`: which messages, over what, and what answers them.

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use echoed::cli::echoctl::{self as cli, Common, ExpectedBytes};
use echoed::client::connection::Connection;
use echoed::client::expectation::{Expectation, ExpectedReply};
use echoed::client::input::Messages;
use echoed::client::lockstep::exchange_lockstep;
use echoed::client::output::{Format, Printer, TerminalWriter};
use echoed::client::pipelined::exchange_pipelined;
use echoed::client::repeat::Repetition;
use echoed::protocol::Delimiter;
use tokio::select;
use tokio::sync::Notify;

use super::interrupts::Interrupts;
use super::{Error, UNANSWERED, check_prefix, runtime};

pub(super) fn send(arguments: cli::Send) -> Result<(), Error> {
    let delimiter = delimiter(&arguments);
    let expectation = expectation(&arguments, delimiter.as_ref())?;
    let stop = Arc::new(Notify::new());
    let from_arguments = messages_from_arguments(&arguments, delimiter.as_ref(), &stop)?;
    let format = match (arguments.json, arguments.raw) {
        (true, _) => Format::Json,
        (false, true) => Format::Raw,
        (false, false) => Format::Text,
    };
    let address = arguments.address;

    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let not_started = |error: &dyn std::fmt::Display| Error::not_started(error.to_string());
        let interrupts = match arguments.interval {
            Some(_) => Some(Interrupts::catch().map_err(|error| not_started(&error))?),
            None => None,
        };
        let connection = Connection::connect(&address, arguments.common.connect_timeout);
        let connection = connection.await.map_err(|error| not_started(&error))?;
        let messages = match from_arguments {
            Some(messages) => Ok(messages),
            None if arguments.raw && !address.is_packets() => Messages::chunks(io::stdin()),
            None => Messages::lines(io::stdin(), delimiter.as_ref()),
        };
        let messages = messages.map_err(|error| Error::not_started(format!("cannot read stdin: {error}")))?;
        let mut printer = Printer::new(output(format), format);
        let exchanged = async {
            match (connection, &delimiter) {
                (Connection::Stream(stream), Some(delimiter)) => {
                    exchange_pipelined(stream, messages, delimiter, &expectation, &mut printer).await
                }
                (connection, _) => exchange_lockstep(connection, messages, &expectation, &mut printer).await,
            }
        };
        select! {
            exchanged = exchanged => exchanged.or_else(|failure| Error::from_exchange(&address, failure)),
            () = wait_for_second_interrupt(interrupts, &stop) => {
                Err(Error { text: format!("{address}: interrupted before all was answered"), code: UNANSWERED })
            }
        }
    });
    // A lookup that has timed out may go on for long.
    runtime.shutdown_background();
    result
}

/// Returns stdout, escaped if it is a terminal: what a server sends must not control that. JSON is escaped already.
fn output(format: Format) -> Box<dyn Write> {
    let stdout = io::stdout().lock();
    if format != Format::Json && stdout.is_terminal() {
        Box::new(TerminalWriter::new(stdout))
    } else {
        Box::new(stdout)
    }
}

/// Returns the delimiter of messages and replies, if they have one.
fn delimiter(arguments: &cli::Send) -> Option<Delimiter> {
    let needed = !arguments.raw && !arguments.address.is_packets();
    needed.then(|| arguments.common.delimiter.clone())
}

fn expectation(arguments: &cli::Send, delimiter: Option<&Delimiter>) -> Result<Expectation, Error> {
    let cli::Send { raw, no_reply, expect, timeout, common: Common { prefix, .. }, .. } = arguments;
    let reply = match expect {
        Some(ExpectedBytes(bytes)) => {
            if let Some(delimiter) = delimiter.filter(|delimiter| delimiter.is_in(bytes)) {
                let text =
                    format!("--expect contains the delimiter {delimiter:?}, so no reply can be that; leave it out");
                return Err(Error::not_started(text));
            }
            if bytes.is_empty() && *raw && !arguments.address.is_packets() {
                let text = "without a delimiter, an empty reply cannot be recognized; use --no-reply to expect none"
                    .to_owned();
                return Err(Error::not_started(text));
            }
            ExpectedReply::Exact(bytes.clone())
        }
        None if *no_reply => ExpectedReply::None,
        None if *raw => ExpectedReply::Any,
        None => {
            if delimiter.is_some() {
                check_prefix(&arguments.common)?;
            }
            ExpectedReply::Echo(prefix.clone())
        }
    };
    Ok(Expectation { reply, timeout: *timeout })
}

/// Returns the messages of the command line, if there are any.
fn messages_from_arguments(
    arguments: &cli::Send,
    delimiter: Option<&Delimiter>,
    stop: &Arc<Notify>,
) -> Result<Option<Messages>, Error> {
    let cli::Send { address, messages, count, interval, raw, .. } = arguments;
    if messages.is_empty() {
        return Ok(None);
    }
    if let Some(at) = messages.iter().position(|message| message.is_empty() && *raw && !address.is_packets()) {
        let text = format!("message {} is empty: without a delimiter that is nothing to send", at + 1);
        return Err(Error::not_started(text));
    }
    let texts = messages.iter().cloned().map(OsStringExt::into_vec);
    let from_arguments = if count.is_some() || interval.is_some() {
        let repetition = Repetition { count: *count, interval: *interval, stop: Arc::clone(stop) };
        Messages::repeated(texts, delimiter, repetition)
    } else {
        Messages::from_arguments(texts, delimiter)
    };
    from_arguments.map(Some).map_err(|error| Error::not_started(error.to_string()))
}

/// Waits for the second Ctrl-C, which ends everything; the first one ends the messages.
async fn wait_for_second_interrupt(interrupts: Option<Interrupts>, stop: &Notify) {
    let Some(mut interrupts) = interrupts else { return std::future::pending().await };
    interrupts.next().await;
    stop.notify_one();
    interrupts.next().await;
}
