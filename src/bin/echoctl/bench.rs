//! `echoctl bench`: runs a load on a thread of its own, shows how far it is, and prints what it came to.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use echoed::address::Address;
use echoed::cli::echoctl::{self as cli, Common};
use echoed::client::bench::report::{Style, bar, json, text};
use echoed::client::bench::{Bench, Control, Load, Outcome, Progress};
use echoed::client::connect::connect;
use echoed::descriptors;
use rustix::termios::tcgetwinsize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio::{select, task};

use super::{Error, check, printed, runtime};

/// How often the bar is drawn.
const FRAME: Duration = Duration::from_millis(200);

/// How long to send where nothing is said.
const DURATION: Duration = Duration::from_secs(10);

/// Descriptors besides the connections, with some to spare.
const OTHERS: u64 = 32;

/// Returns whether all was answered.
pub(super) fn bench(arguments: cli::Bench) -> Result<bool, Error> {
    let (address, load, as_json) = load(arguments)?;
    allow_descriptors(load.connections, load.threads)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(run(&address, &load));
    // A lookup that has timed out may go on for long.
    runtime.shutdown_background();
    let outcome = outcome?;
    let report = if as_json {
        json::report(&address, &load, &outcome)
    } else {
        text::report(&address, &load, &outcome, style())
    };
    let mut stdout = io::stdout().lock();
    printed(stdout.write_all(report.as_bytes()).and_then(|()| stdout.flush()))?;
    Ok(outcome.is_ok())
}

fn load(arguments: cli::Bench) -> Result<(Address, Load, bool), Error> {
    check(&arguments.common)?;
    let Common { delimiter, prefix, connect_timeout } = arguments.common;
    if arguments.threads > arguments.connections {
        let (threads, connections) = (arguments.threads, arguments.connections);
        let text = format!("{threads} threads cannot share --connections {connections}; each needs one of its own");
        return Err(Error::not_started(text));
    }
    let duration = match (arguments.duration, arguments.count) {
        (None, None) => Some(DURATION),
        (duration, _) => duration,
    };
    let load = Load {
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
        timeout: arguments.timeout,
    };
    Ok((arguments.address, load, arguments.json))
}

fn allow_descriptors(connections: usize, threads: usize) -> Result<(), Error> {
    let needed = connections as u64 + 3 * threads as u64 + OTHERS;
    let allowed = descriptors::raise_nofile(needed);
    if allowed >= needed {
        return Ok(());
    }
    Err(Error::not_started(format!(
        "--connections {connections} needs {needed} descriptors, and this process may open {allowed} (ulimit -Hn)"
    )))
}

async fn run(address: &Address, load: &Load) -> Result<Outcome, Error> {
    let not_started = |error: &dyn std::fmt::Display| Error::not_started(error.to_string());
    let mut interrupts = signal(SignalKind::interrupt()).map_err(|error| not_started(&error))?;
    let first = select! {
        first = connect(address, load.connect_timeout) => first.map_err(|error| not_started(&error))?,
        _ = interrupts.recv() => return Err(Error::not_started(format!("interrupted while connecting to {address}"))),
    };
    let bench = Bench::new(load.clone(), address, first).map_err(|error| not_started(&error))?;
    let control = bench.control();
    let mut running = task::spawn_blocking(move || bench.run());
    let mut display = Display::new(load);
    let outcome = loop {
        select! {
            outcome = &mut running => break outcome,
            () = display.frame(&control) => {}
            _ = interrupts.recv() => control.stop(),
        }
    };
    display.clear();
    let outcome = outcome.map_err(|error| not_started(&error))?;
    outcome.map_err(|error| not_started(&error))
}

/// The bar on stderr, if that is a terminal.
struct Display {
    frames: Option<tokio::time::Interval>,
    colour: bool,
    began: Instant,
    last: (Instant, Progress),
    duration: Option<Duration>,
    count: Option<u64>,
}

impl Display {
    fn new(load: &Load) -> Self {
        let is_terminal = io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb");
        let frames = is_terminal.then(|| {
            let mut frames = interval(FRAME);
            frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
            frames
        });
        let now = Instant::now();
        Self {
            frames,
            colour: env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()),
            began: now,
            last: (now, Progress::default()),
            duration: load.duration.map(|duration| duration + load.warm_up),
            count: load.count,
        }
    }

    /// Draws the bar when it is time to.
    async fn frame(&mut self, control: &Control) {
        let Some(frames) = &mut self.frames else { return std::future::pending().await };
        frames.tick().await;
        let (now, progress) = (Instant::now(), control.progress());
        let (before, last) = self.last;
        let passed = (now - before).as_secs_f64();
        let rate = if passed > 0.0 { (progress.answered - last.answered) as f64 / passed } else { 0.0 };
        self.last = (now, progress);
        let elapsed = now - self.began;
        let by_time = self.duration.map(|duration| elapsed.as_secs_f64() / duration.as_secs_f64());
        let by_count = self.count.map(|count| progress.answered as f64 / count as f64);
        let part = match (by_time, by_count) {
            (Some(time), Some(count)) => Some(time.max(count).min(1.0)),
            (time, count) => time.or(count).map(|part| part.min(1.0)),
        };
        // The last column would begin a new line on some terminals.
        let width = columns(&io::stderr()).unwrap_or(80).saturating_sub(1);
        let line = bar::line(&bar::Bar { part, elapsed, rate, progress }, width, self.colour);
        draw(&format!("\r\x1b[K{line}"));
    }

    fn clear(&self) {
        if self.frames.is_some() {
            draw("\r\x1b[K");
        }
    }
}

/// A terminal that is gone shows nothing.
fn draw(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn columns(terminal: &impl AsFd) -> Option<usize> {
    let columns = tcgetwinsize(terminal).ok()?.ws_col;
    (columns > 0).then_some(usize::from(columns))
}

/// What stdout can show.
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
