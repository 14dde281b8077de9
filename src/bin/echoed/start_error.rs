//! Why the daemon does not start, in words, and its exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

use echoed::config;
use echoed::systemd::activation;

/// Bad configuration (EX_CONFIG of sysexits.h).
const EX_CONFIG: u8 = 78;

/// Bad command line, as clap has it.
pub(crate) const EX_USAGE: u8 = 2;

/// A system call failed (EX_OSERR of sysexits.h).
pub(crate) const EX_OSERR: u8 = 71;

/// The output could not be printed.
const EX_OUTPUT: u8 = 1;

/// Something could not be written (EX_IOERR of sysexits.h): messages that should have been logged whole.
pub(crate) const EX_IOERR: u8 = 74;

/// Why the daemon does not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// An option does not fit how the daemon was started.
    Usage(String),
    Configuration(config::Error),
    Activation(activation::Error),
    /// A socket cannot be served in the role of its listener.
    Role(String),
    System {
        what: String,
        error: io::Error,
    },
    /// The output could not be written to stdout.
    Output(io::Error),
}

impl StartError {
    pub(crate) fn system(what: &str, error: io::Error) -> Self {
        Self::System { what: what.to_owned(), error }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => EX_USAGE,
            Self::Configuration(_) | Self::Role(_) => EX_CONFIG,
            Self::Activation(error) if error.is_configuration() => EX_CONFIG,
            Self::Activation(_) | Self::System { .. } => EX_OSERR,
            Self::Output(_) => EX_OUTPUT,
        })
    }
}

impl From<config::Error> for StartError {
    fn from(error: config::Error) -> Self {
        Self::Configuration(error)
    }
}

impl From<activation::Error> for StartError {
    fn from(error: activation::Error) -> Self {
        Self::Activation(error)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(problem) | Self::Role(problem) => f.write_str(problem),
            // Begins with the file and the position in it.
            Self::Configuration(error) => error.fmt(f),
            Self::Activation(error) => error.fmt(f),
            Self::System { what, error } => write!(f, "{what}: {error}"),
            Self::Output(error) => write!(f, "cannot write to stdout: {error}"),
        }
    }
}
