//! What users, administrators and contributors can rely on: each file has the promises about one thing, as sentences.
//! This page says where a new test belongs.
//!
//! One program, because each program of tests takes seconds to link. Not here are tests that measure time (tests/timing), what
//! hostile peers may do (tests/hostile), and what takes a booted machine (tests/system, tests/packages). A test here leaves its
//! process as it is: environment, working directory and signals belong to all of them.

// What clients see.

/// The same on datagrams: UDP and Unix. What keeps them from being abused is here, too.
mod datagrams;
/// Messages and replies on streams, and the addresses that the daemon can listen on.
mod echo;
/// The same on sockets that keep packets apart: SOCK_SEQPACKET.
mod packets;
/// Clients that others wrote: nc, socat, curl and others, as their users start them.
mod programs;
/// Behind load balancers: the PROXY header.
mod proxy;
/// Settings that make other services of it: discard, a greeter, a sink of lines.
mod services;
/// Behind programs that speak TLS.
mod tls;

// What keeps the daemon serving.

/// System calls on connections that fail: with each error of each call.
mod call_errors;
/// No descriptors left.
mod emfile;
/// Nothing stays of connections that have ended.
mod leaks;
/// How many connections there may be, and how much memory: what happens at each limit.
mod limits;
/// System calls on listeners that fail.
mod listener_errors;

// What administrators and load balancers ask it.

/// The control socket: connections are listed and closed, and load balancers told to send new clients elsewhere.
mod control;
/// The listeners of the roles monitor and agent: metrics, health and readiness.
mod monitor;
/// The recipes of docs/monitoring.md, with the programs that they are for.
mod recipes;

// How it is started, told something, and ended.

/// Sockets from systemd.
mod activation;
/// A restart that clients do not notice.
mod handover;
/// The end of a process that has nothing to do.
mod idle_exit;
/// Sockets from inetd and its like: stdin is one.
mod inetd;
/// What it tells the service manager, and when.
mod notify;
/// New settings while it runs.
mod reload;

// Settings.

/// No tests: the tables of that page, which tell `settings` and `etc` what each key takes.
mod configuration;
/// The settings file that is shipped, and the page about it.
mod etc;
/// Where settings come from, and which of them wins.
mod layers;
/// Each setting by itself: what is accepted, refused and printed.
mod settings;

// The log.

/// What `journalctl -x` explains.
mod catalog;
/// What the journal gets.
mod journal;
/// Messages that are logged: none is lost, none is answered before.
mod log_messages;

// echoctl.

/// `echoctl bench`.
mod bench;
/// Commands that send: what is printed, and the exit code, also for servers that misbehave.
mod client;
/// `echoctl ping`.
mod ping;

// The repository, and what is made from it.

/// CI, the hook, templates, the changelog.
mod contributing;
/// Modules of `src` that import each other in a circle.
mod imports;
/// Tarballs, lists of crates, addresses of the project.
mod packaging;
/// Man pages, docs/messages.md and completions, and the words in them.
mod pages;
/// Units and other files that are installed.
mod shipped;
