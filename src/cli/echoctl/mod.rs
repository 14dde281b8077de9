//! The command line of the client.

mod bench;
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
pub use ping::Ping;

/// Talks to servers of the delimited echo protocol, such as echoed.
#[derive(Debug, Parser)]
#[command(
    name = "echoctl",
    version,
    // An error of one line instead.
    arg_required_else_help = false,
    after_help = "Exit codes: 0 all answered as expected; 1 answered wrongly, late or not at all; 2 could not connect,\n\
                  bad command line, or nothing that could be sent."
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
    /// Sends messages, or without any the lines of stdin, over one connection. Prints each reply on a line of its own: as
    /// it came, with its prefix, without the delimiter.
    ///
    /// Messages are sent without waiting for the replies to those before. A reply must be prefix + message exactly, or
    /// what --expect says. The first one that is not, or is late, or does not come, ends the command; so does an error that
    /// the server reports. Of a reply, no more is read than the right one has, and 4 KiB.
    ///
    /// If stdout is a terminal, what a terminal would obey or not show is printed as an escape (\u{1b}, \xff), except line
    /// feeds and tabs. Pipes and files get the bytes as they came.
    ///
    /// With udp:, seqpacket: and unixgram:, each message is one packet, each reply is one, and --delimiter means nothing. A
    /// message is sent when the one before is answered; a packet that is lost is late.
    ///
    /// A line of stdin ends with a line feed, which is not sent; a carriage return before it is. The last line need not
    /// end with one. A message that contains the delimiter is refused: one on the command line before anything is sent,
    /// a line of stdin when it is its turn, after the lines before it were answered.
    #[command(
        after_help = "Exit codes: 0 all answered as expected; 1 answered wrongly, late or not at all;\n\
                            2 could not connect, bad command line, or the first line of stdin cannot be sent.",
        after_long_help = "Examples:\n  \
                  echoctl send 127.0.0.1:8085 aaaa bbbb\n  \
                  seq 100000 | echoctl send unix:/run/echoed.sock | tail -1\n  \
                  journalctl -f -o cat | echoctl send --no-reply --delimiter '\\n' tcp:logs.example:5140\n  \
                  echoctl send --raw --interval 2s tcp:greeter.example:8080 '%d Hello, server!'\n  \
                  echoctl send --raw --expect 'Hello, client!\\n' tcp:greeter.example:8080 hello\n  \
                  echoctl send --count 3 seqpacket:/run/echoed.seqpacket 'number %d'\n\n\
                  Exit codes:\n  \
                  0  all answered as expected; also when nobody reads stdout any more\n  \
                  1  answered wrongly, late or not at all\n  \
                  2  could not connect, bad command line, or the first line of stdin cannot be sent"
    )]
    Send(Send),
    /// Measure round trip times, one message after the other
    ///
    /// Sends a numbered message every --interval, whether the one before was answered or not, over one connection. Prints a
    /// line for each reply and a summary at the end, which -c or Ctrl-C brings about.
    ///
    /// Every reply is compared with its message. One that comes later than --timeout is lost; should it still come, that is
    /// told, and it is not taken for the next one. When the connection ends, what was on its way is lost, and the next
    /// message is sent over a new one; the time that connecting takes is not part of the round trip.
    ///
    /// Of a reply, no more is read than the right one has, and 4 KiB. A connection ends when it has brought 1024 more
    /// replies without a message than there were messages.
    ///
    /// With Ctrl-C, replies on their way are waited for no longer than twice the longest round trip (0.1s at least); if none
    /// has ever come, not at all. A second Ctrl-C does not wait.
    #[command(
        after_help = "Exit codes: 0 all answered as expected; 1 answered wrongly, late or not at all;\n\
                      2 could not connect for the first message, or bad command line.",
        after_long_help = "Examples:\n  \
                  echoctl ping 127.0.0.1:8085\n  \
                  echoctl ping -c 10 -i 200ms unix:/run/echoed.sock\n  \
                  echoctl ping -q -c 5 -W 1s tcp:echo.example:8085 || echo 'it is in trouble'\n\n\
                  Exit codes:\n  \
                  0  all answered as expected\n  \
                  1  answered wrongly, late or not at all\n  \
                  2  could not connect for the first message, or bad command line"
    )]
    Ping(Ping),
    /// Put load on a server, and tell its throughput and latencies
    ///
    /// Opens connections and keeps each of them busy: it sends --depth messages at once, and when all are answered the next.
    /// With --rate, messages are sent when they are due, whatever was answered. Every byte of the replies is compared.
    ///
    /// It ends after --duration, after --count messages or with Ctrl-C, whichever is first, and prints throughput, errors by
    /// cause, latencies and their histogram. Ctrl-C waits for replies on their way for a second, a second one does not.
    ///
    /// A connection that ends, or cannot be made, is counted by its cause and made anew, after a pause of 10 ms to 1 s if it
    /// had brought no reply. Only when already the first one cannot be made, nothing is begun.
    ///
    /// With udp:, seqpacket: and unixgram:, each message is one packet, each reply is one, and --delimiter means nothing.
    /// Each message has the number of its source and its own in it, and the next is sent when one is answered or lost. One
    /// without a reply within --timeout is lost; a reply after that is late, another one to the same message is a duplicate.
    /// A reply is wrong if no message had asked for it; if the number in it can be read, its message is lost. Replies that
    /// overtake others are counted as reordered, which is no error. At the end, 50 ms are left for replies that no message
    /// awaits. A server may limit the datagrams of an address or a user, as echoed does (limits.datagrams_per_source): all
    /// sources of this command are one for it.
    #[command(
        after_help = "Exit codes: 0 all answered as expected; 1 answered wrongly, late or not at all, or not connected later on;\n\
                      2 could not connect or bad command line.",
        after_long_help = "Examples:\n  \
                  echoctl bench 127.0.0.1:8085\n  \
                  echoctl bench --connections 64 --depth 16 --duration 30s unix:/run/echoed.sock\n  \
                  echoctl bench --rate 5000/s --connections 100 --size 1KiB --json 127.0.0.1:8085 >now.json\n  \
                  echoctl bench --rate 80/s --connections 8 --prefix '' udp:echo.example:7\n\n\
                  Exit codes:\n  \
                  0  all answered as expected\n  \
                  1  answered wrongly, late or not at all, or a connection could not be made later on\n  \
                  2  could not connect, or bad command line"
    )]
    Bench(Bench),
}

/// The options that all commands have.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// What ends messages and replies, 1 to 16 bytes
    ///
    /// Takes the escapes of TOML strings (\t \n \r \" \\ \b \f \e \uNNNN \UNNNNNNNN), \0, and \xNN for any byte.
    #[arg(long, value_name = "BYTES", default_value = "\\t", value_parser = Delimiter::from_escaped)]
    pub delimiter: Delimiter,

    /// What replies begin with, 0 to 4096 bytes
    ///
    /// Takes the same escapes as --delimiter, which it must not contain.
    #[arg(long, value_name = "BYTES", default_value = "server got:", value_parser = prefix)]
    pub prefix: Prefix,

    /// How long connecting may take, the lookup of the name included
    ///
    /// A time is numbers with units, added up: 500ms, 2s, 1min 30s.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub connect_timeout: Duration,
}

/// The options of `echoctl send`.
#[derive(Debug, clap::Args)]
pub struct Send {
    /// Where to connect: tcp:HOST:PORT, unix:/PATH, udp:HOST:PORT, seqpacket:/PATH or unixgram:/PATH
    ///
    /// tcp4: and tcp6: take addresses of one family only; an IPv6 address stands in brackets. @NAME in place of /PATH is a
    /// name in the abstract namespace. Without a scheme, HOST:PORT is TCP, and /PATH and @NAME are Unix streams. All
    /// addresses of a host are tried; those of UDP until somebody answers.
    pub address: Address,

    /// What to send; without any, each line of stdin is a message
    ///
    /// Any bytes but the delimiter. "" is a message, too. What begins with - goes after --.
    #[arg(value_name = "MESSAGE")]
    pub messages: Vec<OsString>,

    /// What all commands have.
    #[command(flatten)]
    pub common: Common,

    /// How long each reply may take
    ///
    /// Counted from when it is the next one awaited and its message was sent. Nor may the server, for longer than this,
    /// take nothing of what is sent.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub timeout: Duration,

    /// Expect no replies: for sinks
    ///
    /// What comes is dropped, except an error that the server reports. At the end the server has the time of --timeout to
    /// end its stream, which tells that it has taken everything.
    #[arg(long)]
    pub no_reply: bool,

    /// Take exactly these bytes as the reply to each message
    ///
    /// In place of prefix + message. Takes the escapes of --delimiter, which is not part of it.
    #[arg(long, value_name = "BYTES", value_parser = ExpectedBytes::parse, conflicts_with_all = ["no_reply", "prefix"])]
    pub expect: Option<ExpectedBytes>,

    /// Send no delimiter, and print what comes back as it comes
    ///
    /// What comes is not checked, unless there is --expect. Nobody knows where a reply ends: so the next message is sent
    /// when something has come after the one before. After the last the stream is ended, and the server has the time of
    /// --timeout to end its own, whatever comes meanwhile; the time that printing takes does not count for the first 16
    /// MiB. With --expect, as many bytes are a reply.
    ///
    /// Without MESSAGE, stdin is sent as it is, line feeds included. Of packets, each is a reply, and a line of stdin is a
    /// message as ever.
    #[arg(long, conflicts_with_all = ["delimiter", "prefix"])]
    pub raw: bool,

    /// Send so many messages: the MESSAGEs in turn, again and again
    ///
    /// In each, %d becomes its number, from 1 on.
    #[arg(short, long, value_name = "NUMBER", requires = "messages", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Send a message every so often: the MESSAGEs in turn, until --count or Ctrl-C
    ///
    /// By the clock, however long a reply takes. Where messages take turns (packets, --raw), at most one waits for the reply
    /// to the one before; others that are due meanwhile are left out. In each, %d becomes its number, from 1 on. With Ctrl-C no more are sent, and those sent
    /// may still be answered; a second Ctrl-C does not wait.
    #[arg(short, long, value_name = "TIME", requires = "messages", value_parser = interval)]
    pub interval: Option<Duration>,

    /// Print a JSON object for each reply
    ///
    /// One per line, the wrong one included: {"reply":"server got:a","message":"a","ok":true,"rtt_us":57}, with the round
    /// trip in microseconds. Bytes that are not UTF-8 become U+FFFD; what a terminal would obey or not show is escaped. A
    /// reply that is too long is cut. A reply that no message had asked for has null for message and rtt_us. With
    /// --raw, what came at once is a reply, to the message that was sent last.
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

/// From one message to the next.
fn interval(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time < Duration::from_millis(1) {
        return Err("at least 1ms is needed; echoctl bench can do more".to_owned());
    }
    Ok(time)
}

fn time(text: &str) -> Result<Duration, String> {
    match parse_time(text) {
        Ok(Duration::ZERO) => Err("that is no time at all; write for example 5s".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// A prefix with the escapes of a delimiter.
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
