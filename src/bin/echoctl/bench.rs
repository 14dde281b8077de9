//! `echoctl bench`: runs a load on a thread of its own, shows its progress, and prints its outcome.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use echoed::address::Address;
use echoed::cli::echoctl::{self as cli, Common};
use echoed::client::bench::report::{Style, json, progress_bar, text};
use echoed::client::bench::{Bench, BenchProgress, BenchSettings, Control, Destination, Outcome};
use echoed::rlimit;
use rustix::termios::tcgetwinsize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio::{select, task};

use super::interrupts::Interrupts;
use super::{Error, check_prefix, ignore_broken_pipe, runtime};

/// How often the progress bar is drawn.
const FRAME_INTERVAL: Duration = Duration::from_millis(200);

/// How long to send by default.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// How long a reply may take by default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The same of a packet, which is not sent again if it is lost.
const DEFAULT_PACKET_TIMEOUT: Duration = Duration::from_secs(1);

/// Descriptors besides the connections, with some to spare.
const OTHER_DESCRIPTORS: u64 = 32;

/// Returns whether all was answered.
pub(super) fn bench(arguments: cli::Bench) -> Result<bool, Error> {
    let (address, settings, as_json) = settings_from(arguments)?;
    raise_descriptor_limit(settings.connections, settings.threads)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(run(&address, &settings));
    // A lookup that has timed out may go on for long.
    runtime.shutdown_background();
    let outcome = outcome?;
    let mut stdout = io::stdout().lock();
    let written = if as_json {
        json::write_report(&mut stdout, &address, &settings, &outcome)
    } else {
        stdout.write_all(text::format_report(&address, &settings, &outcome, style()).as_bytes())
    };
    ignore_broken_pipe(written.and_then(|()| stdout.flush()))?;
    Ok(outcome.is_ok())
}

fn settings_from(arguments: cli::Bench) -> Result<(Address, BenchSettings, bool), Error> {
    let is_packets = arguments.address.is_packets();
    if !is_packets {
        check_prefix(&arguments.common)?;
    }
    let Common { delimiter, prefix, connect_timeout } = arguments.common;
    if arguments.threads > arguments.connections {
        let (threads, connections) = (arguments.threads, arguments.connections);
        let text = format!("{threads} threads cannot share --connections {connections}; each needs one of its own");
        return Err(Error::not_started(text));
    }
    let duration = match (arguments.duration, arguments.count) {
        (None, None) => Some(DEFAULT_DURATION),
        (duration, _) => duration,
    };
    let settings = BenchSettings {
        connections: arguments.connections,
        depth: arguments.depth,
        size: arguments.size,
        threads: arguments.threads,
        duration,
        count: arguments.count,
        warm_up: arguments.warm_up.unwrap_or_default(),
        rate: arguments.rate,
        verify: !arguments.no_verify,
        delimiter,
        prefix,
        connect_timeout,
        timeout: arguments.timeout.unwrap_or(if is_packets { DEFAULT_PACKET_TIMEOUT } else { DEFAULT_TIMEOUT }),
    };
    Ok((arguments.address, settings, arguments.json))
}

fn raise_descriptor_limit(connections: usize, threads: usize) -> Result<(), Error> {
    let needed = connections as u64 + 3 * threads as u64 + OTHER_DESCRIPTORS;
    let allowed = rlimit::raise_nofile(needed);
    if allowed >= needed {
        return Ok(());
    }
    Err(Error::not_started(format!(
        "--connections {connections} needs {needed} descriptors, and this process may open {allowed} (ulimit -Hn)"
    )))
}

async fn run(address: &Address, settings: &BenchSettings) -> Result<Outcome, Error> {
    let not_started = |error: &dyn std::fmt::Display| Error::not_started(error.to_string());
    let mut interrupts = Interrupts::catch().map_err(|error| not_started(&error))?;
    let destination = select! {
        found = Destination::connect(address, settings.connect_timeout) => found.map_err(|error| not_started(&error))?,
        () = interrupts.next() => return Err(Error::not_started(format!("interrupted while connecting to {address}"))),
    };
    let bench = Bench::new(settings.clone(), destination).map_err(|error| not_started(&error))?;
    let control = bench.control();
    let mut running = task::spawn_blocking(move || bench.run());
    let mut display = ProgressDisplay::new(settings);
    let outcome = loop {
        select! {
            outcome = &mut running => break outcome,
            () = display.draw_frame(&control) => {}
            () = interrupts.next() => control.stop(),
        }
    };
    display.clear();
    let outcome = outcome.map_err(|error| not_started(&error))?;
    outcome.map_err(|error| not_started(&error))
}

/// The progress bar on stderr, if that is a terminal.
struct ProgressDisplay {
    frames: Option<tokio::time::Interval>,
    colour: bool,
    started: Instant,
    last: (Instant, BenchProgress),
    duration: Option<Duration>,
    count: Option<u64>,
}

impl ProgressDisplay {
    fn new(settings: &BenchSettings) -> Self {
        let is_terminal = io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb");
        let frames = is_terminal.then(|| {
            let mut frames = interval(FRAME_INTERVAL);
            frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
            frames
        });
        let now = Instant::now();
        Self {
            frames,
            colour: env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()),
            started: now,
            last: (now, BenchProgress::default()),
            duration: settings.duration.map(|duration| duration + settings.warm_up),
            count: settings.count,
        }
    }

    /// Draws the progress bar at each interval.
    async fn draw_frame(&mut self, control: &Control) {
        let Some(frames) = &mut self.frames else { return std::future::pending().await };
        frames.tick().await;
        let (now, progress) = (Instant::now(), control.progress());
        let (before, last) = self.last;
        let since_last = (now - before).as_secs_f64();
        let rate = if since_last > 0.0 { (progress.answered - last.answered) as f64 / since_last } else { 0.0 };
        self.last = (now, progress);
        let elapsed = now - self.started;
        let by_time = self.duration.map(|duration| elapsed.as_secs_f64() / duration.as_secs_f64());
        let by_count = self.count.map(|count| progress.answered as f64 / count as f64);
        let fraction = match (by_time, by_count) {
            (Some(time), Some(count)) => Some(time.max(count).min(1.0)),
            (time, count) => time.or(count).map(|fraction| fraction.min(1.0)),
        };
        // The last column would begin a new line on some terminals.
        let width = columns(&io::stderr()).unwrap_or(80).saturating_sub(1);
        let line = progress_bar::render_line(
            &progress_bar::ProgressBar { fraction, elapsed, rate, progress },
            width,
            self.colour,
        );
        write_to_terminal(&format!("\r\x1b[K{line}"));
    }

    fn clear(&self) {
        if self.frames.is_some() {
            write_to_terminal("\r\x1b[K");
        }
    }
}

/// Writes to stderr, and ignores errors: a terminal that is gone shows nothing.
fn write_to_terminal(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn columns(terminal: &impl AsFd) -> Option<usize> {
    let columns = tcgetwinsize(terminal).ok()?.ws_col;
    (columns > 0).then_some(usize::from(columns))
}

/// Returns what stdout can show.
fn style() -> Style {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return Style::PLAIN;
    }
    // The first of these that is set decides (locale(7)).
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(env::var_os).find(|value| !value.is_empty());
    let locale = locale.unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    Style { width: columns(&stdout).unwrap_or(80), unicode: locale.contains("utf-8") || locale.contains("utf8") }
}
