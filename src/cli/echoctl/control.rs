//! The options of the commands that show and steer a running daemon.

use std::path::PathBuf;

/// The options that these commands have in common.
#[derive(Debug, clap::Args)]
pub struct ControlOptions {
    /// The control socket of the daemon
    #[arg(long, value_name = "PATH", default_value = "/run/echoed/io.echoed", value_hint = clap::ValueHint::FilePath)]
    pub socket: PathBuf,

    /// Print JSON: one object on each line
    ///
    /// The keys are those of the Varlink interface io.echoed.
    #[arg(long)]
    pub json: bool,
}

/// The options of `echoctl connections`.
#[derive(Debug, clap::Args)]
pub struct Connections {
    /// Only the connections of this listener
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,

    /// What these commands have in common.
    #[command(flatten)]
    pub control: ControlOptions,
}

/// The options of `echoctl close`.
#[derive(Debug, clap::Args)]
pub struct Close {
    /// The id of the connection, as echoctl connections prints it
    pub id: u64,

    /// What these commands have in common.
    #[command(flatten)]
    pub control: ControlOptions,
}
