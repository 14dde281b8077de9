//! The report for people.

use std::fmt::Write;

use super::chart::chart;
use super::{PERCENTILES, Style, bytes, number, rate, time};
use crate::address::Address;
use crate::client::bench::{Load, Outcome, Tally, per_second};

/// What a load on `address` has come to, in lines.
#[must_use]
pub fn report(address: &Address, load: &Load, outcome: &Outcome, style: Style) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut text, address, load, outcome, style);
    text
}

fn write_report(
    text: &mut String,
    address: &Address,
    load: &Load,
    outcome: &Outcome,
    style: Style,
) -> std::fmt::Result {
    let measured = &outcome.measured;
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    write!(text, "{address}: {} connection{}", number(load.connections as u64), plural(load.connections))?;
    write!(
        text,
        ", {} message{} of {} B at once",
        number(load.depth as u64),
        plural(load.depth),
        number(load.size as u64)
    )?;
    write!(text, ", {} thread{}", load.threads, plural(load.threads))?;
    if let Some(wanted) = load.rate {
        write!(text, ", {}/s wanted", rate(wanted))?;
    }
    writeln!(text, "{}", if load.verify { "" } else { ", replies not verified" })?;
    if outcome.interrupted {
        writeln!(text, "interrupted: this is what happened so far")?;
    }
    let seconds = outcome.time.as_secs_f64();
    writeln!(text)?;
    writeln!(text, "messages   {} answered in {seconds:.3} s: {}/s", number(measured.answered), rate(outcome.rate()))?;
    if outcome.unsent > 0 {
        let (count, why) = (number(outcome.unsent), if load.rate.is_some() { "due, but" } else { "more" });
        writeln!(text, "           {count} {why} not sent")?;
    }
    let throughput = |count| format!("{} ({}/s)", bytes(count as f64), bytes(per_second(count, outcome.time)));
    writeln!(text, "sent       {}", throughput(measured.bytes_sent))?;
    writeln!(text, "received   {}", throughput(measured.bytes_received))?;
    if !load.warm_up.is_zero() {
        writeln!(text, "warm-up    {} answered", number(outcome.warm_up.answered))?;
        if outcome.warm_up.errors() > 0 {
            errors(text, &outcome.warm_up)?;
        }
    }
    errors(text, measured)?;
    let latencies = &measured.latencies;
    if latencies.count() == 0 {
        return Ok(());
    }
    let named = PERCENTILES.map(|(name, percent)| (name, latencies.percentile(percent)));
    let times =
        [&[("min", latencies.min())], &named[..], &[("max", latencies.max()), ("mean", latencies.mean())]].concat();
    let shown: Vec<_> = times.iter().map(|(name, latency)| (name, time(*latency, style))).collect();
    let width = shown.iter().map(|(_, shown)| shown.chars().count()).max().unwrap_or(0);
    let from = if load.rate.is_some() { ", from when the message was due" } else { "" };
    writeln!(text, "\nlatency{from}")?;
    for (name, shown) in shown {
        writeln!(text, "  {name:<7}{shown:>width$}")?;
    }
    writeln!(text, "\nhistogram")?;
    for line in chart(latencies, style) {
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

fn errors(text: &mut String, tally: &Tally) -> std::fmt::Result {
    match tally.errors() {
        0 => writeln!(text, "errors     none")?,
        errors => writeln!(text, "errors     {}", number(errors))?,
    }
    for (cause, loss) in &tally.losses {
        let name = cause.name();
        let times = number(loss.times);
        let messages = match loss.messages {
            0 => String::new(),
            1 => ", 1 message".to_owned(),
            messages => format!(", {} messages", number(messages)),
        };
        writeln!(text, "  {name}: {times}{messages}: {}", loss.example)?;
    }
    Ok(())
}
