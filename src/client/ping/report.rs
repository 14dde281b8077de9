//! The output of ping.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::statistics::{RoundTrips, Statistics};
use crate::address::Address;
use crate::client::json::{self, Number};

/// The version of the schema. It grows when a key changes its meaning or goes; new keys may come without that.
pub const SCHEMA_VERSION: u32 = 1;

/// An event that is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A reply came in time.
    Reply {
        /// The number of its message, counted from 1.
        seq: u64,
        /// Its size, with its prefix, without the delimiter.
        bytes: usize,
        /// How long it took.
        round_trip: Duration,
    },
    /// A message will not be answered, or not in time.
    Lost {
        /// Its number.
        seq: u64,
        /// Why.
        reason: String,
    },
    /// A reply came too late: its message is lost already.
    Late {
        /// The number of its message.
        seq: u64,
        /// How long it took; `None` if that was too long ago.
        round_trip: Option<Duration>,
    },
    /// A reply came again.
    Duplicate {
        /// The number of its message.
        seq: u64,
    },
    /// Something that no message is lost for.
    Note {
        /// What it is.
        text: String,
    },
}

/// How events are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrintOptions {
    /// The summary only.
    pub quiet: bool,
    /// The time of day before each line.
    pub timestamps: bool,
    /// An object for each line.
    pub json: bool,
}

/// Prints what happens, each line at once.
#[derive(Debug)]
pub struct Printer<W: Write> {
    output: W,
    options: PrintOptions,
    address: String,
    line: String,
}

impl<W: Write> Printer<W> {
    /// Prints to `output`.
    pub fn new(output: W, address: &Address, options: PrintOptions) -> Self {
        Self { output, options, address: address.to_string(), line: String::new() }
    }

    /// Prints the header: the address and the size of the messages.
    ///
    /// # Errors
    /// Returns an error if it cannot be printed.
    pub fn print_header(&mut self, size: usize) -> io::Result<()> {
        if self.options.json {
            return Ok(());
        }
        self.line = format!("ping {}: messages of {size} B\n", self.address);
        self.flush()
    }

    /// Prints an event.
    ///
    /// # Errors
    /// Returns an error if it cannot be printed.
    pub fn print_event(&mut self, event: &Event) -> io::Result<()> {
        if self.options.quiet {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.options.json {
            let time = self.options.timestamps.then(|| Number::new(format_seconds(now)));
            json::write_line(&mut self.output, &EventObject { time, event: EventFields::from(event) })?;
        } else {
            self.append_text(event, now);
        }
        self.flush()
    }

    fn append_text(&mut self, event: &Event, now: Duration) {
        if self.options.timestamps {
            self.line = format!("[{}] ", format_seconds(now));
        }
        let text = match event {
            Event::Reply { seq, bytes, round_trip } => {
                format!("reply from {}: seq={seq} bytes={bytes} time={} ms", self.address, format_millis(*round_trip))
            }
            Event::Lost { seq, reason } => format!("lost: seq={seq}: {reason}"),
            Event::Late { seq, round_trip } => {
                let time = round_trip.map(|time| format!(" time={} ms", format_millis(time))).unwrap_or_default();
                format!("late reply from {}: seq={seq}{time} (lost already)", self.address)
            }
            Event::Duplicate { seq } => format!("duplicate reply from {}: seq={seq}", self.address),
            Event::Note { text } => text.clone(),
        };
        self.line.push_str(&text);
        self.line.push('\n');
    }

    /// Prints the summary of a run that took `time`.
    ///
    /// # Errors
    /// Returns an error if it cannot be printed.
    pub fn print_summary(&mut self, statistics: &Statistics, time: Duration) -> io::Result<()> {
        if self.options.json {
            json::write_line(&mut self.output, &SummaryObject::new(&self.address, statistics, time))?;
        } else {
            self.append_text_summary(statistics, time);
        }
        self.flush()
    }

    fn append_text_summary(&mut self, statistics: &Statistics, time: Duration) {
        let Statistics { sent, received, late, duplicates, wrong, .. } = statistics;
        self.line = format!("\n--- {} ping statistics ---\n{sent} sent, {received} received", self.address);
        for (count, name) in [(late, "late"), (duplicates, "duplicate"), (wrong, "wrong")] {
            if *count > 0 {
                self.line.push_str(&format!(", {count} {name}"));
            }
        }
        self.line.push_str(&format!(
            ", {}% loss, time {} ms\n",
            format_percent(statistics.loss_percent()),
            time.as_millis()
        ));
        if let Some(trips) = statistics.round_trips() {
            let [min, avg, max, mdev] = [trips.min, trips.avg, trips.max, trips.mdev].map(format_millis);
            self.line.push_str(&format!("rtt min/avg/max/mdev = {min}/{avg}/{max}/{mdev} ms\n"));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.output.write_all(self.line.as_bytes());
        self.line.clear();
        written.and_then(|()| self.output.flush())
    }
}

/// An event in JSON.
#[derive(Serialize)]
struct EventObject<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Number>,
    #[serde(flatten)]
    event: EventFields<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum EventFields<'a> {
    Reply { seq: u64, bytes: usize, rtt_us: Number },
    Lost { seq: u64, reason: &'a str },
    Late { seq: u64, rtt_us: Option<Number> },
    Duplicate { seq: u64 },
    Note { text: &'a str },
}

impl<'a> From<&'a Event> for EventFields<'a> {
    fn from(event: &'a Event) -> Self {
        match event {
            Event::Reply { seq, bytes, round_trip } => {
                Self::Reply { seq: *seq, bytes: *bytes, rtt_us: micros(*round_trip) }
            }
            Event::Lost { seq, reason } => Self::Lost { seq: *seq, reason },
            Event::Late { seq, round_trip } => Self::Late { seq: *seq, rtt_us: round_trip.map(micros) },
            Event::Duplicate { seq } => Self::Duplicate { seq: *seq },
            Event::Note { text } => Self::Note { text },
        }
    }
}

/// The summary in JSON.
#[derive(Serialize)]
struct SummaryObject<'a> {
    r#type: &'static str,
    schema: &'static str,
    version: u32,
    address: &'a str,
    ok: bool,
    sent: u64,
    received: u64,
    lost: u64,
    loss_percent: Number,
    late: u64,
    duplicates: u64,
    wrong: u64,
    seconds: Number,
    rtt_us: Option<RoundTripsObject>,
}

#[derive(Serialize)]
struct RoundTripsObject {
    min: Number,
    avg: Number,
    max: Number,
    mdev: Number,
}

impl<'a> SummaryObject<'a> {
    fn new(address: &'a str, statistics: &Statistics, time: Duration) -> Self {
        Self {
            r#type: "summary",
            schema: "echoctl-ping",
            version: SCHEMA_VERSION,
            address,
            ok: statistics.is_ok(),
            sent: statistics.sent,
            received: statistics.received,
            lost: statistics.lost(),
            loss_percent: Number::with_decimals(statistics.loss_percent(), 3),
            late: statistics.late,
            duplicates: statistics.duplicates,
            wrong: statistics.wrong,
            seconds: Number::with_decimals(time.as_secs_f64(), 6),
            rtt_us: statistics.round_trips().map(|RoundTrips { min, avg, max, mdev }| RoundTripsObject {
                min: micros(min),
                avg: micros(avg),
                max: micros(max),
                mdev: micros(mdev),
            }),
        }
    }
}

/// Returns microseconds with three decimals.
fn micros(time: Duration) -> Number {
    Number::with_decimals(time.as_secs_f64() * 1e6, 3)
}

fn format_seconds(time: Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}

/// Formats milliseconds with three decimals, as ping(8).
fn format_millis(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1e3)
}

/// Formats a percentage with at most one decimal. It is never rounded to 0 or to 100.
fn format_percent(percent: f64) -> String {
    let rounded = if percent > 0.0 && percent < 100.0 { percent.clamp(0.1, 99.9) } else { percent };
    let text = format!("{rounded:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(options: PrintOptions, print: impl FnOnce(&mut Printer<&mut Vec<u8>>) -> io::Result<()>) -> String {
        let mut output = Vec::new();
        let address = "127.0.0.1:1".parse().unwrap();
        print(&mut Printer::new(&mut output, &address, options)).unwrap();
        String::from_utf8(output).unwrap()
    }

    const TEXT: PrintOptions = PrintOptions { quiet: false, timestamps: false, json: false };
    const JSON: PrintOptions = PrintOptions { json: true, ..TEXT };

    #[test]
    fn every_event_is_a_line_of_text_and_of_json() {
        let took = Duration::from_nanos(123_456);
        for (event, text, json) in [
            (
                Event::Reply { seq: 1, bytes: 27, round_trip: took },
                "reply from tcp:127.0.0.1:1: seq=1 bytes=27 time=0.123 ms\n",
                r#"{"type":"reply","seq":1,"bytes":27,"rtt_us":123.456}"#,
            ),
            (
                Event::Lost { seq: 2, reason: "\"x\"".to_owned() },
                "lost: seq=2: \"x\"\n",
                r#"{"type":"lost","seq":2,"reason":"\"x\""}"#,
            ),
            (
                Event::Late { seq: 2, round_trip: Some(took) },
                "late reply from tcp:127.0.0.1:1: seq=2 time=0.123 ms (lost already)\n",
                r#"{"type":"late","seq":2,"rtt_us":123.456}"#,
            ),
            (
                Event::Late { seq: 2, round_trip: None },
                "late reply from tcp:127.0.0.1:1: seq=2 (lost already)\n",
                r#"{"type":"late","seq":2,"rtt_us":null}"#,
            ),
            (
                Event::Duplicate { seq: 3 },
                "duplicate reply from tcp:127.0.0.1:1: seq=3\n",
                r#"{"type":"duplicate","seq":3}"#,
            ),
            (Event::Note { text: "so".to_owned() }, "so\n", r#"{"type":"note","text":"so"}"#),
        ] {
            assert_eq!(print(TEXT, |printer| printer.print_event(&event)), text);
            assert_eq!(print(JSON, |printer| printer.print_event(&event)), format!("{json}\n"));
            assert_eq!(print(PrintOptions { quiet: true, ..TEXT }, |printer| printer.print_event(&event)), "");
            let stamped = print(PrintOptions { timestamps: true, ..TEXT }, |printer| printer.print_event(&event));
            let (time, rest) = stamped.strip_prefix('[').unwrap().split_once("] ").unwrap();
            assert!(time.parse::<f64>().unwrap() > 1.6e9 && rest == text, "{stamped}");
            let stamped = print(PrintOptions { timestamps: true, ..JSON }, |printer| printer.print_event(&event));
            assert!(stamped.starts_with("{\"time\":1") && stamped.ends_with(&format!("{}\n", &json[1..])), "{stamped}");
        }
    }

    #[test]
    fn summary_has_the_format_of_ping8() {
        let time = Duration::from_millis(2003);
        let mut statistics = Statistics::default();
        statistics.sent = 3;
        let none = "\n--- tcp:127.0.0.1:1 ping statistics ---\n3 sent, 0 received, 100% loss, time 2003 ms\n";
        assert_eq!(print(TEXT, |printer| printer.print_summary(&statistics, time)), none);
        let json = print(JSON, |printer| printer.print_summary(&statistics, time));
        assert!(
            json.contains(r#""ok":false,"sent":3,"received":0,"lost":3,"loss_percent":100.000,"late":0,"#),
            "{json}"
        );
        assert!(json.ends_with("\"seconds\":2.003000,\"rtt_us\":null}\n"), "{json}");
        statistics.record(Duration::from_micros(100));
        statistics.record(Duration::from_micros(300));
        statistics.late = 1;
        let some = "3 sent, 2 received, 1 late, 33.3% loss, time 2003 ms\n\
                    rtt min/avg/max/mdev = 0.100/0.200/0.300/0.100 ms\n";
        let text = print(TEXT, |printer| printer.print_summary(&statistics, time));
        assert_eq!(text.split_once("---\n").unwrap().1, some);
        let json = print(JSON, |printer| printer.print_summary(&statistics, time));
        assert!(
            json.ends_with(",\"rtt_us\":{\"min\":100.000,\"avg\":200.000,\"max\":300.000,\"mdev\":100.000}}\n"),
            "{json}"
        );
    }

    #[test]
    fn a_single_loss_is_never_rounded_away() {
        for (loss, text) in
            [(0.0, "0"), (0.001, "0.1"), (20.0, "20"), (33.333, "33.3"), (99.99, "99.9"), (100.0, "100")]
        {
            assert_eq!(format_percent(loss), text);
        }
    }
}
