//! The client: its command line, its exit codes, and nothing else.

mod bench;
mod control;
mod interrupts;
mod ping;
mod send;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use echoed::cli::echoctl::{Command, Common, Echoctl};
use echoed::client::exchange_error::ExchangeError;
use tokio::runtime;

/// Answered wrongly, late or not at all; refused by the daemon.
const UNANSWERED: u8 = 1;

/// Could not connect, bad command line, or nothing that could be sent.
const NOT_STARTED: u8 = 2;

fn main() -> ExitCode {
    let arguments = match Echoctl::try_parse() {
        Ok(arguments) => arguments,
        Err(help) if help.exit_code() == 0 => {
            return match ignore_broken_pipe(help.print().and_then(|()| io::stdout().flush())) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => error.report(),
            };
        }
        Err(error) => return Error::from_clap(&error).report(),
    };
    let done = match arguments.command {
        Command::Send(arguments) => send::send(arguments).map(|()| true),
        Command::Ping(arguments) => ping::ping(arguments),
        Command::Bench(arguments) => bench::bench(arguments),
        Command::Status(options) => control::status(&options).map(|()| true),
        Command::Connections(arguments) => control::connections(&arguments).map(|()| true),
        Command::Close(arguments) => control::close(&arguments).map(|()| true),
        Command::Drain(options) => control::drain(&options).map(|()| true),
        Command::Resume(options) => control::resume(&options).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(UNANSWERED),
        Err(error) => error.report(),
    }
}

/// Checks that the prefix does not contain the delimiter.
fn check_prefix(common: &Common) -> Result<(), Error> {
    let Common { delimiter, prefix, .. } = common;
    if delimiter.is_in(prefix.as_bytes()) {
        return Err(Error::not_started(format!(
            "the prefix {prefix:?} contains the delimiter {delimiter:?}, so no reply can have it; give another --prefix"
        )));
    }
    Ok(())
}

fn runtime() -> Result<runtime::Runtime, Error> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::not_started(format!("cannot start: {error}")))
}

/// Ignores that the reader of stdout is gone, as with head(1): that is not an error.
fn ignore_broken_pipe(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error { text: ExchangeError::Output(error).to_string(), code: UNANSWERED })
        }
        _ => Ok(()),
    }
}

/// One line for stderr, and the exit code.
struct Error {
    text: String,
    code: u8,
}

impl Error {
    fn not_started(text: String) -> Self {
        Self { text, code: NOT_STARTED }
    }

    /// Returns the first paragraph of an error of clap, without usage and help.
    fn from_clap(error: &clap::Error) -> Self {
        let paragraph = error.to_string();
        let mut text = String::new();
        for line in paragraph.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")) {
            if line.is_empty() || line.starts_with("For more information") {
                continue;
            }
            if !text.is_empty() {
                text.push_str(if line.starts_with("tip:") { "; " } else { " " });
            }
            text.push_str(line);
        }
        Self::not_started(format!("{} (see --help)", text.strip_prefix("error: ").unwrap_or(&text)))
    }

    /// Returns the error for an exchange with `address` that ended early.
    fn from_exchange(address: &impl ToString, failure: ExchangeError) -> Result<(), Self> {
        match failure {
            // The reader of stdout is gone, as with head(1): that is not an error.
            ExchangeError::Output(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            ExchangeError::Connect(error) => Err(Self::not_started(error.to_string())),
            ExchangeError::MessageTooLarge { number: 1, .. } => {
                Err(Self::not_started(format!("{}: {failure}", address.to_string())))
            }
            ExchangeError::Output(_) => Err(Self { text: failure.to_string(), code: UNANSWERED }),
            ExchangeError::Input { sent, .. } => {
                let code = if sent == 0 { NOT_STARTED } else { UNANSWERED };
                Err(Self { text: failure.to_string(), code })
            }
            _ => Err(Self { text: format!("{}: {failure}", address.to_string()), code: UNANSWERED }),
        }
    }

    fn report(self) -> ExitCode {
        // If this fails, there is no other place to report it.
        let _ = writeln!(io::stderr(), "echoctl: {}", self.text);
        ExitCode::from(self.code)
    }
}
