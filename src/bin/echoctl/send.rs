//! `echoctl send`: which messages, over what, and what answers them.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use echoed::cli::echoctl::{self as cli, Common, Expected};
use echoed::client::connection::Connection;
use echoed::client::exchange::exchange;
use echoed::client::input::Messages;
use echoed::client::repeat::Repetition;
use echoed::client::report::{Format, Printer};
use echoed::client::terms::{Answer, Terms};
use echoed::client::turns::take_turns;
use echoed::protocol::Delimiter;
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::{Error, UNANSWERED, check, runtime};

pub(super) fn send(arguments: cli::Send) -> Result<(), Error> {
    let delimiter = delimiter(&arguments);
    let terms = terms(&arguments, delimiter.as_ref())?;
    let stop = Arc::new(Notify::new());
    let given = given(&arguments, delimiter.as_ref(), &stop)?;
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
            Some(_) => Some(signal(SignalKind::interrupt()).map_err(|error| not_started(&error))?),
            None => None,
        };
        let connection = Connection::to(&address, arguments.common.connect_timeout);
        let connection = connection.await.map_err(|error| not_started(&error))?;
        let messages = match given {
            Some(messages) => Ok(messages),
            None if arguments.raw && !address.is_packets() => Messages::chunks(io::stdin()),
            None => Messages::lines(io::stdin(), delimiter.as_ref()),
        };
        let messages = messages.map_err(|error| Error::not_started(format!("cannot read stdin: {error}")))?;
        let mut printer = Printer::new(io::stdout().lock(), format);
        let exchanged = async {
            match (connection, &delimiter) {
                (Connection::Stream(stream), Some(delimiter)) => {
                    exchange(stream, messages, delimiter, &terms, &mut printer).await
                }
                (connection, _) => take_turns(connection, messages, &terms, &mut printer).await,
            }
        };
        select! {
            exchanged = exchanged => exchanged.or_else(|failure| Error::from_exchange(&address, failure)),
            () = interrupted_twice(interrupts, &stop) => {
                Err(Error { text: format!("{address}: interrupted before all was answered"), code: UNANSWERED })
            }
        }
    });
    // A lookup that has timed out may go on for long.
    runtime.shutdown_background();
    result
}

/// What ends messages and replies, if anything does.
fn delimiter(arguments: &cli::Send) -> Option<Delimiter> {
    let needed = !arguments.raw && !arguments.address.is_packets();
    needed.then(|| arguments.common.delimiter.clone())
}

fn terms(arguments: &cli::Send, delimiter: Option<&Delimiter>) -> Result<Terms, Error> {
    let cli::Send { raw, no_reply, expect, timeout, common: Common { prefix, .. }, .. } = arguments;
    let answer = match expect {
        Some(Expected(bytes)) => {
            if let Some(delimiter) = delimiter.filter(|delimiter| delimiter.is_in(bytes)) {
                let text =
                    format!("--expect contains the delimiter {delimiter:?}, so no reply can be that; leave it out");
                return Err(Error::not_started(text));
            }
            if bytes.is_empty() && *raw && !arguments.address.is_packets() {
                let text = "without a delimiter, no reply can be seen to be empty; use --no-reply for none".to_owned();
                return Err(Error::not_started(text));
            }
            Answer::Exactly(bytes.clone())
        }
        None if *no_reply => Answer::Nothing,
        None if *raw => Answer::Anything,
        None => {
            if delimiter.is_some() {
                check(&arguments.common)?;
            }
            Answer::Echo(prefix.clone())
        }
    };
    Ok(Terms { answer, timeout: *timeout })
}

/// The messages of the command line, if there are any.
fn given(arguments: &cli::Send, delimiter: Option<&Delimiter>, stop: &Arc<Notify>) -> Result<Option<Messages>, Error> {
    let cli::Send { address, messages, count, interval, raw, .. } = arguments;
    if messages.is_empty() {
        return Ok(None);
    }
    if let Some(at) = messages.iter().position(|message| message.is_empty() && *raw && !address.is_packets()) {
        let text = format!("message {} is empty: without a delimiter that is nothing to send", at + 1);
        return Err(Error::not_started(text));
    }
    let texts = messages.iter().cloned().map(OsStringExt::into_vec);
    let given = if count.is_some() || interval.is_some() {
        let repetition = Repetition { count: *count, interval: *interval, stop: Arc::clone(stop) };
        Messages::repeated(texts, delimiter, repetition)
    } else {
        Messages::given(texts, delimiter)
    };
    given.map(Some).map_err(|error| Error::not_started(error.to_string()))
}

/// The first Ctrl-C ends the messages, the second everything.
async fn interrupted_twice(interrupts: Option<Signal>, stop: &Notify) {
    let Some(mut interrupts) = interrupts else { return std::future::pending().await };
    interrupts.recv().await;
    stop.notify_one();
    interrupts.recv().await;
}
