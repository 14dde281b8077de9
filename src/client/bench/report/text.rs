//! The report for people.

use std::fmt::Write;

use super::histogram::render_histogram;
use super::{PERCENTILES, Style, format_bytes, format_rate, format_time};
use crate::address::Address;
use crate::client::bench::{BenchSettings, Cause, Outcome, Stats, per_second};
use crate::units::format_number;

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
        "{address}: {} {}{}",
        format_number(settings.connections as u64),
        if matches!(address, Address::Udp { .. } | Address::Unixgram(_)) { "source" } else { "connection" },
        plural(settings.connections)
    )?;
    let size = format_number(settings.size as u64);
    match settings.max_owed(address.is_packets()) {
        Some(depth) => {
            write!(text, ", {} message{} of {size} B at once", format_number(depth as u64), plural(depth))?;
        }
        None => write!(text, ", messages of {size} B")?,
    }
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
    if address.is_packets() {
        writeln!(text, "           {} sent, {} lost", format_number(measured.sent), format_number(measured.lost()))?;
    }
    if outcome.unsent > 0 {
        let (count, why) = (format_number(outcome.unsent), if settings.rate.is_some() { "due, but" } else { "more" });
        writeln!(text, "           {count} {why} not sent")?;
    }
    if address.is_packets() {
        write_surplus(text, measured)?;
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

/// Writes how many replies there were that did not simply answer a message.
fn write_surplus(text: &mut String, stats: &Stats) -> std::fmt::Result {
    let [late, duplicate, wrong] =
        [Cause::Late, Cause::Duplicate, Cause::WrongReply].map(|cause| format_number(stats.times(cause)));
    let reordered = format_number(stats.reordered);
    writeln!(text, "replies    {late} late, {duplicate} duplicate, {wrong} wrong, {reordered} reordered")
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
