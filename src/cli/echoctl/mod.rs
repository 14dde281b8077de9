//! The command line of the client.

mod bench;
mod control;
mod ping;

use std::ffi::OsString;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::address::Address;
use crate::protocol::Delimiter;
use crate::protocol::delimiter::unescape;
use crate::protocol::reply::{MAX_PREFIX, Prefix};
use crate::units::parse_time;

pub use bench::Bench;
pub use control::{Close, Connections, ControlOptions};
pub use ping::Ping;

/// Talks to servers of the delimited echo protocol, such as echoed.
#[derive(Debug, Parser)]
#[command(
    name = "echoctl",
    version,
    // An error of one line instead.
    arg_required_else_help = false,
    after_help = "Exit codes: 0 every reply was as expected; 1 a reply was wrong, late or missing; 2 no connection,\n\
                  an invalid command line, or no message that can be sent."
)]
pub struct Echoctl {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send messages and print the replies
    ///
    /// Sends messages over one connection: those of the command line, or otherwise the lines of stdin. Prints each reply on
    /// a line of its own, with its prefix and without the delimiter.
    ///
    /// It sends messages without waiting for the replies to earlier ones. A reply must be exactly prefix + message, or the
    /// bytes of --expect. A reply that is wrong, late or missing ends the command, and so does an error that the server
    /// reports. It reads at most 4 KiB more of a reply than the right one has.
    ///
    /// If stdout is a terminal, characters that it would interpret or not show are printed as escapes (\u{1b}, \xff), except
    /// line feeds and tabs. Pipes and files get the bytes unchanged.
    ///
    /// With udp:, seqpacket: and unixgram:, each message and each reply is one packet, and --delimiter has no effect. A
    /// message is sent after the reply to the previous one; a lost packet is late.
    ///
    /// A line of stdin ends with a line feed, which is not sent; a carriage return before it is sent. The last line need not
    /// end with a line feed. A message that contains the delimiter is refused: on the command line before anything is sent,
    /// on stdin after the lines before it were answered.
    #[command(
        after_help = "Exit codes: 0 every reply was as expected; 1 a reply was wrong, late or missing;\n\
                            2 no connection, an invalid command line, or a first line of stdin that cannot be sent.",
        after_long_help = "Examples:\n  \
                  echoctl send 127.0.0.1:8085 aaaa bbbb\n  \
                  seq 100000 | echoctl send unix:/run/echoed.sock | tail -1\n  \
                  journalctl -f -o cat | echoctl send --no-reply --delimiter '\\n' tcp:logs.example:5140\n  \
                  echoctl send --raw --interval 2s tcp:greeter.example:8080 '%d Hello, server!'\n  \
                  echoctl send --raw --expect 'Hello, client!\\n' tcp:greeter.example:8080 hello\n  \
                  echoctl send --count 3 seqpacket:/run/echoed.seqpacket 'number %d'\n\n\
                  Exit codes:\n  \
                  0  every reply was as expected; also after the reader of stdout has closed it\n  \
                  1  a reply was wrong, late or missing\n  \
                  2  no connection, an invalid command line, or a first line of stdin that cannot be sent"
    )]
    Send(Send),
    /// Measure round trip times, one message after the other
    ///
    /// Sends a numbered message every --interval over one connection, whether or not the previous one was answered. Prints
    /// a line for each reply, and a summary after -c messages or at Ctrl-C.
    ///
    /// It compares every reply with its message. A message without a reply within --timeout is lost; a later reply is
    /// reported as late and not taken for that of another message. When the connection ends, the messages on their way are
    /// lost, and the next one is sent over a new connection; the time to connect is not part of the round trip.
    ///
    /// It reads at most 4 KiB more of a reply than the right one has, and ends a connection after 1024 more replies that no
    /// message asked for than messages.
    ///
    /// At Ctrl-C it waits for replies on their way for at most twice the longest round trip (at least 0.1s), or not at all
    /// if it has got none. A second Ctrl-C ends the wait.
    #[command(
        after_help = "Exit codes: 0 every reply was as expected; 1 a reply was wrong, late or missing;\n\
                      2 no connection for the first message, or an invalid command line.",
        after_long_help = "Examples:\n  \
                  echoctl ping 127.0.0.1:8085\n  \
                  echoctl ping -c 10 -i 200ms unix:/run/echoed.sock\n  \
                  echoctl ping -q -c 5 -W 1s tcp:echo.example:8085 || echo 'the service is slow or down'\n\n\
                  Exit codes:\n  \
                  0  every reply was as expected\n  \
                  1  a reply was wrong, late or missing\n  \
                  2  no connection for the first message, or an invalid command line"
    )]
    Ping(Ping),
    /// Put load on a server and report its throughput and latencies
    ///
    /// Opens connections and keeps each of them busy: it sends --depth messages at once, and the next ones when all are
    /// answered. With --rate, it sends messages when they are due, regardless of replies. It compares every byte of the
    /// replies.
    ///
    /// It ends after --duration, after --count messages or at Ctrl-C, whichever is first, and prints throughput, errors by
    /// cause, latencies and their histogram. At Ctrl-C it waits a second for replies on their way; a second Ctrl-C ends the
    /// wait.
    ///
    /// A connection that ends or cannot be established is counted by its cause and replaced, after a pause of 10 ms to 1 s
    /// if it had no reply. If the very first connection fails, the command ends.
    ///
    /// With udp:, seqpacket: and unixgram:, each message and each reply is one packet, and --delimiter has no effect. Each
    /// message contains the number of its source and its own, and the next one is sent when one is answered or lost. A
    /// message without a reply within --timeout is lost; a reply after that is late, and a second reply to a message is a
    /// duplicate. A reply is wrong if no message asked for it; if it has a readable number, its message is lost. Replies
    /// that overtake others are counted as reordered, which is not an error. At the end, it waits 50 ms for unexpected
    /// replies. A server may limit the datagrams of an address or a user, as echoed does (limits.datagrams_per_source): all
    /// sources of this command are one for it.
    #[command(
        after_help = "Exit codes: 0 every reply was as expected; 1 a reply was wrong, late or missing, or a later connection\n\
                      failed; 2 no first connection, or an invalid command line.",
        after_long_help = "Examples:\n  \
                  echoctl bench 127.0.0.1:8085\n  \
                  echoctl bench --connections 64 --depth 16 --duration 30s unix:/run/echoed.sock\n  \
                  echoctl bench --rate 5000/s --connections 100 --size 1KiB --json 127.0.0.1:8085 >now.json\n  \
                  echoctl bench --rate 80/s --connections 8 --prefix '' udp:echo.example:7\n\n\
                  Exit codes:\n  \
                  0  every reply was as expected\n  \
                  1  a reply was wrong, late or missing, or a later connection failed\n  \
                  2  no first connection, or an invalid command line"
    )]
    Bench(Bench),
    /// Show the figures of a running echoed
    ///
    /// Asks the daemon over its control socket (echoed-control.socket): whether it is ready, how many connections it has, and
    /// what each listener has counted since the service was started.
    #[command(
        after_help = CONTROL_EXIT_CODES,
        after_long_help = "Examples:\n  \
                  echoctl status\n  \
                  echoctl status --json | python3 -m json.tool\n\n\
                  Exit codes:\n  \
                  0  it was done\n  \
                  1  the daemon did not answer\n  \
                  2  no connection to the control socket, or an invalid command line"
    )]
    Status(ControlOptions),
    /// List the open connections of a running echoed
    ///
    /// Prints for each its id, listener and peer, the time since it was accepted and since something was last received or
    /// sent, its messages and bytes, and what it is doing: idle, receiving (a message), sending (replies that the peer has not
    /// taken), logging, delaying (reply_delay), closing, or header (it awaits its PROXY header).
    #[command(
        after_help = CONTROL_EXIT_CODES,
        after_long_help = "Examples:\n  \
                  echoctl connections\n  \
                  echoctl connections --listener echo --json\n\n\
                  Exit codes:\n  \
                  0  it was done\n  \
                  1  there is no such listener, or the daemon did not answer\n  \
                  2  no connection to the control socket, or an invalid command line"
    )]
    Connections(Connections),
    /// Close a connection of a running echoed
    ///
    /// Messages that were read are answered, then the connection ends with a final reply that says why. The log has an entry
    /// with the user and the process that asked for it.
    #[command(
        after_help = CONTROL_EXIT_CODES,
        after_long_help = "Examples:\n  \
                  echoctl close 7\n\n\
                  Exit codes:\n  \
                  0  it was done\n  \
                  1  there is no such connection, or the daemon did not answer\n  \
                  2  no connection to the control socket, or an invalid command line"
    )]
    Close(Close),
    /// Have load balancers send new clients elsewhere (lame duck)
    ///
    /// Everything is served as before, new clients included, but the monitor's /readyz answers 503 and the agent "up 0%",
    /// until echoctl resume. A restart does not end it. The same as SIGUSR1.
    #[command(
        after_help = CONTROL_EXIT_CODES,
        after_long_help = "Examples:\n  \
                  echoctl drain && sleep 30 && systemctl restart echoed && echoctl resume\n\n\
                  Exit codes:\n  \
                  0  it was done\n  \
                  1  the daemon did not answer\n  \
                  2  no connection to the control socket, or an invalid command line"
    )]
    Drain(ControlOptions),
    /// Have load balancers send new clients again
    ///
    /// Ends what echoctl drain or SIGUSR1 has begun. The same as SIGUSR2.
    #[command(
        after_help = CONTROL_EXIT_CODES,
        after_long_help = "Examples:\n  \
                  echoctl resume\n\n\
                  Exit codes:\n  \
                  0  it was done\n  \
                  1  the daemon did not answer\n  \
                  2  no connection to the control socket, or an invalid command line"
    )]
    Resume(ControlOptions),
}

/// The exit codes of the commands that show and steer a running daemon.
const CONTROL_EXIT_CODES: &str = "Exit codes: 0 it was done; 1 the daemon refused it or did not answer; 2 no connection to the\n\
                                  control socket, or an invalid command line.";

/// The options that all commands have.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// The end of messages and replies, 1 to 16 bytes
    ///
    /// Takes the escapes of TOML strings (\t \n \r \" \\ \b \f \e \uNNNN \UNNNNNNNN), \0, and \xNN for any byte.
    #[arg(long, value_name = "BYTES", default_value = "\\t", value_parser = Delimiter::from_escaped)]
    pub delimiter: Delimiter,

    /// The beginning of replies, 0 to 4096 bytes
    ///
    /// Takes the same escapes as --delimiter. It must not contain the delimiter.
    #[arg(long, value_name = "BYTES", default_value = "server got:", value_parser = prefix)]
    pub prefix: Prefix,

    /// How long connecting may take, including the lookup of the name
    ///
    /// A time is a number with a unit, or the sum of several: 500ms, 2s, 1min 30s.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub connect_timeout: Duration,
}

/// The options of `echoctl send`.
#[derive(Debug, clap::Args)]
pub struct Send {
    /// Where to connect: tcp:HOST:PORT, unix:/PATH, udp:HOST:PORT, seqpacket:/PATH or unixgram:/PATH
    ///
    /// tcp4: and tcp6: use one address family only; an IPv6 address needs brackets. @NAME instead of /PATH is a name in the
    /// abstract namespace. Without a scheme, HOST:PORT is TCP, and /PATH and @NAME are Unix streams. All addresses of a host
    /// are tried, with UDP until one replies.
    pub address: Address,

    /// The messages; without any, each line of stdin is a message
    ///
    /// Any bytes without the delimiter. "" is a message, too. Write -- before messages that begin with -.
    #[arg(value_name = "MESSAGE")]
    pub messages: Vec<OsString>,

    /// What all commands have.
    #[command(flatten)]
    pub common: Common,

    /// How long each reply may take
    ///
    /// Counted from when it is the next reply and its message was sent. Also limits how long the server may go without
    /// reading.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub timeout: Duration,

    /// Expect no replies: for sinks
    ///
    /// Drops the server's output, except an error that it reports. At the end the server has the time of --timeout to end
    /// its stream, which shows that it has read everything.
    #[arg(long)]
    pub no_reply: bool,

    /// Expect exactly these bytes as the reply to each message
    ///
    /// Instead of prefix + message. Takes the escapes of --delimiter. The delimiter is not part of it.
    #[arg(long, value_name = "BYTES", value_parser = ExpectedBytes::parse, conflicts_with_all = ["no_reply", "prefix"])]
    pub expect: Option<ExpectedBytes>,

    /// Send no delimiter, and print the server's output as it arrives
    ///
    /// The output is checked only with --expect, which also gives the length of a reply. Otherwise the end of a reply is
    /// unknown, so the next message is sent after any output. After the last message the stream is ended, and the server has
    /// the time of --timeout to end its own, regardless of its output; the time to print the first 16 MiB does not count.
    ///
    /// Without MESSAGE, stdin is sent unchanged, including line feeds. With packets, each packet is a reply, and each line of
    /// stdin is a message.
    #[arg(long, conflicts_with_all = ["delimiter", "prefix"])]
    pub raw: bool,

    /// Send this number of messages: the MESSAGEs in turn, repeatedly
    ///
    /// In each, %d becomes its number, from 1 on, and %% a percent sign.
    #[arg(short, long, value_name = "NUMBER", requires = "messages", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Send a message at this interval: the MESSAGEs in turn, until --count or Ctrl-C
    ///
    /// Keeps to the clock, regardless of replies. With packets and --raw, a message waits for the reply to the previous one;
    /// messages that become due meanwhile are skipped. In each, %d becomes its number, from 1 on, and %% a percent sign. At
    /// Ctrl-C it sends no more and waits for owed replies; a second Ctrl-C ends the wait.
    #[arg(short, long, value_name = "TIME", requires = "messages", value_parser = interval)]
    pub interval: Option<Duration>,

    /// Print a JSON object for each reply
    ///
    /// One per line, also for a wrong reply: {"reply":"server got:a","message":"a","ok":true,"rtt_us":57}, with the round
    /// trip in microseconds. The manual page describes its keys.
    #[arg(long)]
    pub json: bool,
}

/// The bytes of `--expect`. (An option with a plain vector would be one that may be given again and again.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedBytes(pub Vec<u8>);

impl ExpectedBytes {
    fn parse(text: &str) -> Result<Self, String> {
        unescape(text).map(Self).map_err(|error| error.to_string())
    }
}

/// Parses the interval from one message to the next.
fn interval(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time < Duration::from_millis(1) {
        return Err("at least 1ms is needed; echoctl bench can do more".to_owned());
    }
    Ok(time)
}

fn time(text: &str) -> Result<Duration, String> {
    match parse_time(text) {
        Ok(Duration::ZERO) => Err("a time must be longer than 0 (example: 5s)".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses a prefix, which has the escapes of a delimiter.
fn prefix(text: &str) -> Result<Prefix, String> {
    let bytes = unescape(text).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_PREFIX {
        return Err(format!("a prefix has at most {MAX_PREFIX} bytes, this one has {}", bytes.len()));
    }
    Ok(Prefix::new(&bytes))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_definition_is_valid() {
        Echoctl::command().debug_assert();
    }

    #[test]
    fn prefix_takes_the_escapes_of_a_delimiter() {
        for (text, bytes) in [
            ("server got:", &b"server got:"[..]),
            ("", b""),
            (r"\x", b"!"),
            (r"a\x00\xffb", b"a\0\xffb"),
            (r"\t\\t\u00e9\U0001F600!", "\t\\té😀!".as_bytes()),
            (r"\q", b"!"),
            (r"\u00", b"!"),
            (r"x\", b"!"),
            (r"\xé0", b"!"),
        ] {
            match prefix(text) {
                Ok(prefix) => assert_eq!(prefix.as_bytes(), bytes, "{text}"),
                Err(error) => assert!(bytes == b"!" && error.contains("unknown escape"), "{text}: {error}"),
            }
        }
        assert!(prefix(&"x".repeat(4096)).is_ok());
        assert!(prefix(&"x".repeat(4097)).unwrap_err().contains("this one has 4097"));
    }
}
