//! The options of `echoctl bench`.

use std::time::Duration;

use super::{Common, time};
use crate::address::Address;
use crate::client::message::MAX_MESSAGE;
use crate::units::parse_size;

/// The options of `echoctl bench`.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Where to connect: tcp:HOST:PORT, unix:/PATH, udp:HOST:PORT, seqpacket:/PATH or unixgram:/PATH
    ///
    /// As with echoctl send. The name is looked up once, and all connections use the address of the first one; with UDP, the
    /// first address at which a socket listens.
    pub address: Address,

    /// The number of connections; with udp: and unixgram: of sources, each with its own socket
    #[arg(short = 'C', long, value_name = "NUMBER", default_value_t = 1, value_parser = at_least_one)]
    pub connections: usize,

    /// How many messages of each connection may be on their way [default: 1; unlimited for packets at a rate]
    #[arg(short = 'd', long, value_name = "NUMBER", value_parser = at_least_one)]
    pub depth: Option<usize>,

    /// The size of each message, without the delimiter: 0B, 16B, 1KiB
    ///
    /// Packets need at least 12B, for the numbers of their source and message. A UDP datagram has at most 65507B (65527B over
    /// IPv6), and so has its reply.
    #[arg(short, long, value_name = "SIZE", default_value = "16B", value_parser = size)]
    pub size: usize,

    /// How long to send messages, after the warm-up [default: 10s, unless --count is given]
    #[arg(short = 't', long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,

    /// How many messages to send, including those of the warm-up
    ///
    /// Without --duration, it also ends when it has had nothing but failures for --connect-timeout and --timeout together.
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Run for this time before measuring
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    pub warm_up: Option<Duration>,

    /// Send messages at this rate, and measure latencies from when each was due: 500/s
    ///
    /// The connections take turns. A message that is due while --depth messages of its connection are on their way waits,
    /// and its latency includes the wait, so the percentiles show a server that stalls for a second (no "coordinated
    /// omission"). Messages that were due and never sent are reported. Packets wait only with --depth, so a lost packet does
    /// not delay later ones.
    #[arg(short, long, value_name = "RATE", value_parser = rate)]
    pub rate: Option<f64>,

    /// The number of sending threads, at most one for each connection
    #[arg(short = 'T', long, value_name = "NUMBER", default_value_t = 1, value_parser = threads)]
    pub threads: usize,

    /// Do not compare the replies, only count their bytes; of packets, compare only prefix, numbers and length
    #[arg(long)]
    pub no_verify: bool,

    /// What all commands have.
    #[command(flatten)]
    pub common: Common,

    /// How long each reply may take [default: 5s; packets: 1s]
    ///
    /// Counted from when it is the next reply and its message was sent. If one is late, all replies that the connection owes
    /// are lost, and another connection replaces it. For a packet it counts from when the packet was sent, and only the
    /// message without a reply is lost.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,

    /// Print one JSON object instead
    ///
    /// The manual page describes its keys.
    #[arg(long)]
    pub json: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1 is needed".to_owned()),
        Ok(number @ 1..=1_000_000) => Ok(number),
        Ok(_) => Err("at most 1000000 are possible".to_owned()),
        Err(_) => Err("a number is needed, such as 64".to_owned()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    at_least_one(text)
        .and_then(|number| if number <= 1024 { Ok(number) } else { Err("at most 1024 are possible".to_owned()) })
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let size = usize::try_from(bytes).ok().filter(|size| *size <= MAX_MESSAGE);
    size.ok_or_else(|| format!("a message has at most {MAX_MESSAGE} bytes"))
}

fn rate(text: &str) -> Result<f64, String> {
    let Some(number) = text.trim().strip_suffix("/s") else {
        let unit = if text.parse::<f64>().is_ok() {
            format!("{text} has no unit; write {text}/s")
        } else {
            format!("invalid rate \"{}\" (example: 500/s)", text.escape_debug())
        };
        return Err(unit);
    };
    match number.trim().parse::<f64>() {
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        Ok(_) => Err("a rate is at least 0.001/s and at most 1000000000/s".to_owned()),
        Err(_) => Err(format!("invalid rate \"{}\" (example: 500/s)", text.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_needs_a_unit() {
        assert_eq!(rate("500/s"), Ok(500.0));
        assert_eq!(rate(" 0.5 /s"), Ok(0.5));
        for (text, error) in [
            ("500", "500 has no unit; write 500/s"),
            ("0/s", "at least 0.001/s"),
            ("-1/s", "at least 0.001/s"),
            ("NaN/s", "at least 0.001/s"),
            ("inf/s", "at most 1000000000/s"),
            ("x/s", "invalid rate"),
            ("", "invalid rate"),
        ] {
            assert!(rate(text).unwrap_err().contains(error), "{text}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(at_least_one("1"), Ok(1));
        assert!(at_least_one("0").is_err() && at_least_one("-1").is_err() && at_least_one("1000001").is_err());
        assert!(threads("1025").is_err());
        assert_eq!(size("0B"), Ok(0));
        assert!(size("16").unwrap_err().contains("write 16B"));
        assert!(size("2GiB").unwrap_err().contains("at most"));
    }
}
