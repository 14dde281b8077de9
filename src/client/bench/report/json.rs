//! The report for programs: one object on one line. What each key is, is in docs/echoctl-json.md.

use std::io::{self, Write};
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{MAX_BARS, PERCENTILES};
use crate::address::Address;
use crate::client::bench::{BenchSettings, Cause, LatencyHistogram, Outcome, Stats, per_second};
use crate::client::json::{Number, Text, write_line};

/// The version of the schema. It grows when a key changes its meaning or goes; new keys may come without that.
pub const SCHEMA_VERSION: u32 = 1;

/// Writes the outcome of a load on `address`, as one line.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn write_report(
    output: &mut impl Write,
    address: &Address,
    settings: &BenchSettings,
    outcome: &Outcome,
) -> io::Result<()> {
    write_line(output, &Report::new(address, settings, outcome))
}

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    version: u32,
    address: String,
    load: Load<'a>,
    interrupted: bool,
    ok: bool,
    seconds: Number,
    sent: u64,
    answered: u64,
    lost: u64,
    unsent: u64,
    /// These four are known of packets only.
    late: Option<u64>,
    duplicates: Option<u64>,
    wrong: Option<u64>,
    reordered: Option<u64>,
    messages_per_second: Number,
    bytes_sent: u64,
    bytes_received: u64,
    latency_us: Option<Latencies<'a>>,
    histogram: Vec<Bar>,
    causes: Vec<CauseEntry<'a>>,
    warm_up: WarmUp<'a>,
}

#[derive(Serialize)]
struct Load<'a> {
    connections: usize,
    depth: Option<usize>,
    size: usize,
    threads: usize,
    duration_seconds: Option<Number>,
    count: Option<u64>,
    warm_up_seconds: Number,
    rate_per_second: Option<Number>,
    verify: bool,
    delimiter: Text<'a>,
    prefix: Text<'a>,
    connect_timeout_seconds: Number,
    timeout_seconds: Number,
}

#[derive(Serialize)]
struct Bar {
    to_us: Number,
    count: u64,
}

#[derive(Serialize)]
struct CauseEntry<'a> {
    cause: &'static str,
    error: bool,
    times: u64,
    messages: u64,
    example: &'a str,
}

#[derive(Serialize)]
struct WarmUp<'a> {
    sent: u64,
    answered: u64,
    causes: Vec<CauseEntry<'a>>,
}

impl<'a> Report<'a> {
    fn new(address: &Address, settings: &'a BenchSettings, outcome: &'a Outcome) -> Self {
        let (measured, warm_up) = (&outcome.measured, &outcome.warm_up);
        let of_packets = |count: u64| address.is_packets().then_some(count);
        Self {
            schema: "echoctl-bench",
            version: SCHEMA_VERSION,
            address: address.to_string(),
            load: Load::new(address, settings),
            interrupted: outcome.interrupted,
            ok: outcome.is_ok(),
            seconds: Number::with_decimals(outcome.time.as_secs_f64(), 6),
            sent: measured.sent,
            answered: measured.answered,
            lost: measured.lost(),
            unsent: outcome.unsent,
            late: of_packets(measured.times(Cause::Late)),
            duplicates: of_packets(measured.times(Cause::Duplicate)),
            wrong: of_packets(measured.times(Cause::WrongReply)),
            reordered: of_packets(measured.reordered),
            messages_per_second: Number::with_decimals(per_second(measured.answered, outcome.time), 3),
            bytes_sent: measured.bytes_sent,
            bytes_received: measured.bytes_received,
            latency_us: (measured.latencies.count() > 0).then_some(Latencies(&measured.latencies)),
            histogram: bars(&measured.latencies),
            causes: causes(measured),
            warm_up: WarmUp { sent: warm_up.sent, answered: warm_up.answered, causes: causes(warm_up) },
        }
    }
}

impl<'a> Load<'a> {
    fn new(address: &Address, settings: &'a BenchSettings) -> Self {
        let seconds = |time: Duration| Number::new(time.as_secs_f64());
        Self {
            connections: settings.connections,
            depth: settings.max_owed(address.is_packets()),
            size: settings.size,
            threads: settings.threads,
            duration_seconds: settings.duration.map(seconds),
            count: settings.count,
            warm_up_seconds: seconds(settings.warm_up),
            rate_per_second: settings.rate.map(Number::new),
            verify: settings.verify,
            delimiter: Text(settings.delimiter.as_bytes()),
            prefix: Text(settings.prefix.as_bytes()),
            connect_timeout_seconds: seconds(settings.connect_timeout),
            timeout_seconds: seconds(settings.timeout),
        }
    }
}

/// The shortest, the percentiles, the longest and the mean.
struct Latencies<'a>(&'a LatencyHistogram);

impl Serialize for Latencies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let percentiles = PERCENTILES.map(|(name, percent)| (name.replace('.', "_"), self.0.percentile(percent)));
        let first = [("min".to_owned(), self.0.min())];
        let last = [("max".to_owned(), self.0.max()), ("mean".to_owned(), self.0.mean())];
        let all = first.into_iter().chain(percentiles).chain(last);
        serializer.collect_map(all.map(|(name, time)| (name, micros(time))))
    }
}

fn bars(latencies: &LatencyHistogram) -> Vec<Bar> {
    let bars = latencies.bars(MAX_BARS);
    bars.into_iter().map(|bar| Bar { to_us: micros(bar.upper_bound), count: bar.count }).collect()
}

fn causes(stats: &Stats) -> Vec<CauseEntry<'_>> {
    stats
        .failures
        .iter()
        .map(|(cause, failures)| CauseEntry {
            cause: cause.name(),
            error: cause.is_error(),
            times: failures.times,
            messages: failures.messages,
            example: &failures.example,
        })
        .collect()
}

/// Returns microseconds with three decimals, to the nanosecond.
fn micros(time: Duration) -> Number {
    Number::with_decimals(time.as_nanos() as f64 / 1e3, 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Delimiter;
    use crate::protocol::reply::Prefix;

    fn report(address: &str, depth: Option<usize>, measured: Stats) -> String {
        let settings = BenchSettings {
            connections: 2,
            depth,
            size: 16,
            threads: 1,
            duration: Some(Duration::from_millis(1500)),
            count: None,
            warm_up: Duration::ZERO,
            rate: Some(500.0),
            verify: true,
            delimiter: Delimiter::default(),
            prefix: Prefix::new(b"a:"),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_millis(300),
        };
        let time = Duration::from_secs(2);
        let outcome = Outcome { measured, warm_up: Stats::default(), time, unsent: 4, interrupted: false };
        let mut output = Vec::new();
        write_report(&mut output, &address.parse().unwrap(), &settings, &outcome).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn keys_have_their_order_and_numbers_their_decimals() {
        let mut measured =
            Stats { sent: 3, answered: 2, reordered: 1, bytes_sent: 48, bytes_received: 36, ..Stats::default() };
        measured.latencies.record(57_001, 2);
        measured.record_failure(Cause::Late, 1, || "it said \"\u{9b}\"".to_owned());
        let expected = concat!(
            r#"{"schema":"echoctl-bench","version":1,"address":"udp:127.0.0.1:7","load":{"connections":2,"depth":null,"#,
            r#""size":16,"threads":1,"duration_seconds":1.5,"count":null,"warm_up_seconds":0,"rate_per_second":500,"#,
            r#""verify":true,"delimiter":"\t","prefix":"a:","connect_timeout_seconds":5,"timeout_seconds":0.3},"#,
            r#""interrupted":false,"ok":false,"seconds":2.000000,"sent":3,"answered":2,"lost":1,"unsent":4,"late":1,"#,
            r#""duplicates":0,"wrong":0,"reordered":1,"messages_per_second":1.000,"bytes_sent":48,"bytes_received":36,"#,
            r#""latency_us":{"min":57.001,"p50":57.001,"p90":57.001,"p99":57.001,"p99_9":57.001,"p99_99":57.001,"#,
            r#""max":57.001,"mean":57.001},"histogram":[{"to_us":57.001,"count":2}],"causes":[{"cause":"late","#,
            r#""error":true,"times":1,"messages":1,"example":"it said \"\u009b\""}],"#,
            r#""warm_up":{"sent":0,"answered":0,"causes":[]}}"#,
        );
        assert_eq!(report("udp:127.0.0.1:7", None, measured), format!("{expected}\n"));
    }

    #[test]
    fn what_is_unknown_or_not_limited_is_null() {
        let json = report("127.0.0.1:7", Some(3), Stats::default());
        for part in [
            r#""depth":3,"#,
            r#","late":null,"duplicates":null,"wrong":null,"reordered":null,"#,
            r#","latency_us":null,"histogram":[],"causes":[],"warm_up":{"sent":0,"answered":0,"causes":[]}}"#,
        ] {
            assert!(json.contains(part), "no {part} in {json}");
        }
    }
}
