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
    /// As with echoctl send. The name is looked up once, and all connections go to the address that took the first; those of
    /// UDP to the first one at which a socket listens.
    pub address: Address,

    /// Connections at once; with udp: and unixgram: sources, each a socket of its own
    #[arg(short = 'C', long, value_name = "NUMBER", default_value_t = 1, value_parser = at_least_one)]
    pub connections: usize,

    /// Messages of each connection that are on their way at once [default: 1; no limit for packets at a rate]
    #[arg(short = 'd', long, value_name = "NUMBER", value_parser = at_least_one)]
    pub depth: Option<usize>,

    /// The size of each message, the delimiter not counted: 0B, 16B, 1KiB
    ///
    /// Packets have at least 12B, for the numbers of their source and message. A datagram of UDP has at most 65507B (over
    /// IPv6 65527B), and so has the reply.
    #[arg(short, long, value_name = "SIZE", default_value = "16B", value_parser = size)]
    pub size: usize,

    /// How long to send messages, after the warm-up [default: 10s, unless --count is given]
    #[arg(short = 't', long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,

    /// How many messages to send, those of the warm-up among them
    ///
    /// It also ends when nothing but failures has happened for as long as --connect-timeout and --timeout together,
    /// unless there is a --duration.
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Keep what happens in this time out of the numbers
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    pub warm_up: Option<Duration>,

    /// Send so many messages a second, and count latencies from when each was due: 500/s
    ///
    /// The connections take turns. What is due when --depth messages of its connection are already on their way is sent
    /// as soon as there is room, and its latency includes the wait: so a server that stands still for a second shows it
    /// in the percentiles (no "coordinated omission"). What is due and never sent is told. Packets wait for no room unless
    /// --depth is given: so a lost one delays none of those after it.
    #[arg(short, long, value_name = "RATE", value_parser = rate)]
    pub rate: Option<f64>,

    /// Threads to send from, at most one for each connection
    #[arg(short = 'T', long, value_name = "NUMBER", default_value_t = 1, value_parser = threads)]
    pub threads: usize,

    /// Do not compare the replies, only count their bytes; of packets, compare no more than prefix, numbers and length
    #[arg(long)]
    pub no_verify: bool,

    /// What all commands have.
    #[command(flatten)]
    pub common: Common,

    /// How long each reply may take [default: 5s; packets: 1s]
    ///
    /// Counted from when it is the next one awaited and its message was sent. What a connection owes when one is late is
    /// lost, and another connection takes its place. For a packet it counts from when the packet was sent, and only the
    /// message without a reply is lost.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,

    /// Print one JSON object instead
    ///
    /// Its keys are in echoctl-json.md.
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
            format!("\"{}\" is no rate; write for example 500/s", text.escape_debug())
        };
        return Err(unit);
    };
    match number.trim().parse::<f64>() {
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        Ok(_) => Err("a rate is at least 0.001/s and at most 1000000000/s".to_owned()),
        Err(_) => Err(format!("\"{}\" is no rate; write for example 500/s", text.escape_debug())),
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
            ("x/s", "is no rate"),
            ("", "is no rate"),
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
