//! The options of `echoctl ping`.

use std::time::Duration;

use super::{Common, interval, time};
use crate::address::Address;
use crate::client::ping::{MAX_SIZE, MIN_SIZE};
use crate::units::parse_size;

/// The options of `echoctl ping`.
#[derive(Debug, clap::Args)]
pub struct Ping {
    /// Where to connect: tcp:HOST:PORT, unix:/PATH, udp:HOST:PORT, seqpacket:/PATH or unixgram:/PATH
    ///
    /// As with echoctl send.
    pub address: Address,

    /// How many messages to send [default: until Ctrl-C]
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// The time from one message to the next, at least 1ms
    ///
    /// Keeps to the clock, so messages do not drift. A message that could not be sent before the next one is due is
    /// skipped.
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,

    /// How long each reply may take
    #[arg(short = 'W', long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub timeout: Duration,

    /// The size of each message, without the delimiter
    #[arg(short, long, value_name = "SIZE", default_value = "16B", value_parser = size)]
    pub size: usize,

    /// Print the summary only
    #[arg(short, long)]
    pub quiet: bool,

    /// Print the time of day before each line, in seconds since 1970
    #[arg(short = 'D', long)]
    pub timestamps: bool,

    /// What all commands have.
    #[command(flatten)]
    pub common: Common,

    /// Print a JSON object for each line
    ///
    /// The manual page describes its keys.
    #[arg(long)]
    pub json: bool,
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let size = usize::try_from(bytes).ok().filter(|size| (MIN_SIZE..=MAX_SIZE).contains(size));
    size.ok_or_else(|| format!("a size from {MIN_SIZE}B, for the number in it, to {}MiB is possible", MAX_SIZE >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_and_sizes_have_bounds() {
        assert_eq!(interval("1ms"), Ok(Duration::from_millis(1)));
        assert!(interval("999us").unwrap_err().contains("at least 1ms"));
        assert!(interval("1").unwrap_err().contains("write 1s"));
        assert_eq!((size("12B"), size("16MiB")), (Ok(12), Ok(16 << 20)));
        assert!(size("11B").is_err() && size("17MiB").is_err());
    }
}
