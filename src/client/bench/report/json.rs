//! The report for programs: one object on one line. What each key is, is in docs/echoctl-json.md.

use std::fmt::Write;
use std::time::Duration;

use super::{MAX_BARS, PERCENTILES};
use crate::address::Address;
use crate::client::bench::{BenchSettings, Cause, LatencyHistogram, Outcome, Stats, per_second};
use crate::client::json::push_json_string;

/// The version of the schema. It grows when a key changes its meaning or goes; new keys may come without that.
pub const SCHEMA_VERSION: u32 = 1;

/// Formats the outcome of a load on `address`, as one line.
#[must_use]
pub fn format_report(address: &Address, settings: &BenchSettings, outcome: &Outcome) -> String {
    let mut json = String::with_capacity(2048);
    // Writing to a string cannot fail.
    let _ = write_report(&mut json, address, settings, outcome);
    json
}

fn write_report(json: &mut String, address: &Address, settings: &BenchSettings, outcome: &Outcome) -> std::fmt::Result {
    let measured = &outcome.measured;
    write!(json, "{{\"schema\":\"echoctl-bench\",\"version\":{SCHEMA_VERSION},\"address\":")?;
    push_json_string(json, address.to_string().as_bytes());
    write_settings(json, address, settings)?;
    write!(json, ",\"interrupted\":{},\"ok\":{}", outcome.interrupted, outcome.is_ok())?;
    write!(json, ",\"seconds\":{:.6}", outcome.time.as_secs_f64())?;
    write!(json, ",\"sent\":{},\"answered\":{}", measured.sent, measured.answered)?;
    write!(json, ",\"lost\":{},\"unsent\":{}", measured.lost(), outcome.unsent)?;
    write_surplus(json, address, measured)?;
    write!(json, ",\"messages_per_second\":{:.3}", per_second(measured.answered, outcome.time))?;
    write!(json, ",\"bytes_sent\":{},\"bytes_received\":{}", measured.bytes_sent, measured.bytes_received)?;
    write_latencies(json, &measured.latencies)?;
    write_errors(json, measured)?;
    let warm_up = &outcome.warm_up;
    write!(json, ",\"warm_up\":{{\"sent\":{},\"answered\":{}", warm_up.sent, warm_up.answered)?;
    write_errors(json, warm_up)?;
    json.write_str("}}\n")
}

fn write_settings(json: &mut String, address: &Address, settings: &BenchSettings) -> std::fmt::Result {
    write!(json, ",\"load\":{{\"connections\":{}", settings.connections)?;
    write!(json, ",\"depth\":{}", or_null(settings.max_owed(address.is_packets())))?;
    write!(json, ",\"size\":{},\"threads\":{}", settings.size, settings.threads)?;
    write!(json, ",\"duration_seconds\":{}", or_null(settings.duration.map(|time| time.as_secs_f64())))?;
    write!(json, ",\"count\":{}", or_null(settings.count))?;
    write!(json, ",\"warm_up_seconds\":{}", settings.warm_up.as_secs_f64())?;
    write!(json, ",\"rate_per_second\":{}", or_null(settings.rate))?;
    write!(json, ",\"verify\":{},\"delimiter\":", settings.verify)?;
    push_json_string(json, settings.delimiter.as_bytes());
    json.push_str(",\"prefix\":");
    push_json_string(json, settings.prefix.as_bytes());
    write!(json, ",\"connect_timeout_seconds\":{}", settings.connect_timeout.as_secs_f64())?;
    write!(json, ",\"timeout_seconds\":{}}}", settings.timeout.as_secs_f64())
}

/// Writes how many replies there were besides those that answered a message, where these are told apart.
fn write_surplus(json: &mut String, address: &Address, stats: &Stats) -> std::fmt::Result {
    let counts = [
        ("late", stats.times(Cause::Late)),
        ("duplicates", stats.times(Cause::Duplicate)),
        ("wrong", stats.times(Cause::WrongReply)),
        ("reordered", stats.reordered),
    ];
    for (key, count) in counts {
        write!(json, ",\"{key}\":{}", or_null(address.is_packets().then_some(count)))?;
    }
    Ok(())
}

fn write_latencies(json: &mut String, latencies: &LatencyHistogram) -> std::fmt::Result {
    if latencies.count() == 0 {
        return json.write_str(",\"latency_us\":null,\"histogram\":[]");
    }
    write!(json, ",\"latency_us\":{{\"min\":{}", format_micros(latencies.min()))?;
    for (name, percent) in PERCENTILES {
        write!(json, ",\"{}\":{}", name.replace('.', "_"), format_micros(latencies.percentile(percent)))?;
    }
    write!(json, ",\"max\":{},\"mean\":{}}}", format_micros(latencies.max()), format_micros(latencies.mean()))?;
    json.push_str(",\"histogram\":[");
    for (at, bar) in latencies.bars(MAX_BARS).iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        write!(json, "{comma}{{\"to_us\":{},\"count\":{}}}", format_micros(bar.upper_bound), bar.count)?;
    }
    json.write_char(']')
}

fn write_errors(json: &mut String, stats: &Stats) -> std::fmt::Result {
    json.push_str(",\"causes\":[");
    for (at, (cause, failures)) in stats.failures.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        write!(json, "{comma}{{\"cause\":\"{}\",\"error\":{}", cause.name(), cause.is_error())?;
        write!(json, ",\"times\":{},\"messages\":{},\"example\":", failures.times, failures.messages)?;
        push_json_string(json, failures.example.as_bytes());
        json.push('}');
    }
    json.write_char(']')
}

fn or_null(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| value.to_string())
}

/// Formats microseconds with three decimals, to the nanosecond.
fn format_micros(time: Duration) -> String {
    format!("{:.3}", time.as_nanos() as f64 / 1e3)
}
