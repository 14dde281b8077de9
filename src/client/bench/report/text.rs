//! The report for people.

use std::fmt::Write;

use super::histogram::render_histogram;
use super::{PERCENTILES, Style, format_bytes, format_number, format_rate, format_time};
use crate::address::Address;
use crate::client::bench::{BenchSettings, Outcome, Stats, per_second};

/// Formats the outcome of a load on `address`, in lines.
#[must_use]
pub fn format_report(address: &Address, settings: &BenchSettings, outcome: &Outcome, style: Style) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut text, address, settings, outcome, style);
    text
}

fn write_report(
    text: &mut String,
    address: &Address,
    settings: &BenchSettings,
    outcome: &Outcome,
    style: Style,
) -> std::fmt::Result {
    let measured = &outcome.measured;
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    write!(
        text,
        "{address}: {} connection{}",
        format_number(settings.connections as u64),
        plural(settings.connections)
    )?;
    write!(
        text,
        ", {} message{} of {} B at once",
        format_number(settings.depth as u64),
        plural(settings.depth),
        format_number(settings.size as u64)
    )?;
    write!(text, ", {} thread{}", settings.threads, plural(settings.threads))?;
    if let Some(wanted) = settings.rate {
        write!(text, ", {}/s wanted", format_rate(wanted))?;
    }
    writeln!(text, "{}", if settings.verify { "" } else { ", replies not verified" })?;
    if outcome.interrupted {
        writeln!(text, "interrupted: this is what happened so far")?;
    }
    let seconds = outcome.time.as_secs_f64();
    writeln!(text)?;
    writeln!(
        text,
        "messages   {} answered in {seconds:.3} s: {}/s",
        format_number(measured.answered),
        format_rate(outcome.rate())
    )?;
    if outcome.unsent > 0 {
        let (count, why) = (format_number(outcome.unsent), if settings.rate.is_some() { "due, but" } else { "more" });
        writeln!(text, "           {count} {why} not sent")?;
    }
    let throughput =
        |count| format!("{} ({}/s)", format_bytes(count as f64), format_bytes(per_second(count, outcome.time)));
    writeln!(text, "sent       {}", throughput(measured.bytes_sent))?;
    writeln!(text, "received   {}", throughput(measured.bytes_received))?;
    if !settings.warm_up.is_zero() {
        writeln!(text, "warm-up    {} answered", format_number(outcome.warm_up.answered))?;
        if outcome.warm_up.errors() > 0 {
            write_errors(text, &outcome.warm_up)?;
        }
    }
    write_errors(text, measured)?;
    let latencies = &measured.latencies;
    if latencies.count() == 0 {
        return Ok(());
    }
    let named = PERCENTILES.map(|(name, percent)| (name, latencies.percentile(percent)));
    let times =
        [&[("min", latencies.min())], &named[..], &[("max", latencies.max()), ("mean", latencies.mean())]].concat();
    let shown: Vec<_> = times.iter().map(|(name, latency)| (name, format_time(*latency, style))).collect();
    let width = shown.iter().map(|(_, shown)| shown.chars().count()).max().unwrap_or(0);
    let from = if settings.rate.is_some() { ", from when the message was due" } else { "" };
    writeln!(text, "\nlatency{from}")?;
    for (name, shown) in shown {
        writeln!(text, "  {name:<7}{shown:>width$}")?;
    }
    writeln!(text, "\nhistogram")?;
    for line in render_histogram(latencies, style) {
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

fn write_errors(text: &mut String, stats: &Stats) -> std::fmt::Result {
    match stats.errors() {
        0 => writeln!(text, "errors     none")?,
        errors => writeln!(text, "errors     {}", format_number(errors))?,
    }
    for (cause, failures) in &stats.failures {
        let name = cause.name();
        let times = format_number(failures.times);
        let messages = match failures.messages {
            0 => String::new(),
            1 => ", 1 message".to_owned(),
            messages => format!(", {} messages", format_number(messages)),
        };
        writeln!(text, "  {name}: {times}{messages}: {}", failures.example)?;
    }
    Ok(())
}
