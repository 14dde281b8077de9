//! The command line of the daemon.

use std::path::PathBuf;

use clap::Parser;

use crate::address::{Address, first_repeated};
use crate::config::{Level, RESERVED_NAMES, Sources, is_listener_name};

/// Serves the delimited echo protocol, on sockets from systemd or on its own.
#[derive(Debug, Parser)]
#[command(
    name = "echoed",
    version,
    after_help = "Without a socket from systemd or inetd, --listen and addresses in the settings, it listens on\n\
                  tcp:127.0.0.1:8085. Try it: echoctl send 127.0.0.1:8085 aaaa\n\n\
                  The environment variable ECHOED_SECTION__KEY sets one key: ECHOED_DEFAULTS__DEADLINES__READ=10s.\n\n\
                  Exit codes: 0 done, 1 stdout failed, 2 invalid command line, 71 a system call failed at the start,\n\
                  74 messages were not logged, 78 invalid settings or unsuitable sockets."
)]
pub struct Echoed {
    /// Read the settings from this TOML file instead of all files in /usr/lib/echoed, /run/echoed and /etc/echoed
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Listen on this address: tcp:HOST:PORT, tcp4:HOST:PORT, tcp6:HOST:PORT, udp:HOST:PORT, unix:/PATH, seqpacket:/PATH or
    /// unixgram:/PATH, with @NAME instead of a path for an abstract name; HOST:PORT is TCP, /PATH and @NAME are Unix
    /// streams. May be repeated. NAME= selects the section [listener.NAME], by default echo. Ignored if systemd passes
    /// sockets
    #[arg(long, value_name = "[NAME=]ADDRESS", value_parser = listen)]
    pub listen: Vec<Listen>,

    /// Use this section for a connection that systemd has accepted (Accept=yes), or for a socket on stdin (inetd). An
    /// unnamed Unix socket on stdin is served only with this option
    #[arg(long, value_name = "NAME", value_parser = listener)]
    pub listener: Option<String>,

    /// Log up to this level: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<Level>,

    /// Check the settings, list the files that were read, and exit
    #[arg(long, group = "instead")]
    pub check_config: bool,

    /// Print the settings in effect as TOML, each with its source, and exit
    #[arg(long, group = "instead")]
    pub print_config: bool,

    /// Print every setting with its default and its description, as TOML, and exit
    #[arg(long, group = "instead")]
    pub print_default_config: bool,
}

impl Echoed {
    /// Returns whether the process is to serve, and not to print something instead.
    #[must_use]
    pub fn serves(&self) -> bool {
        !(self.check_config || self.print_config || self.print_default_config)
    }

    /// Returns an address that `--listen` has more than once, which can be bound once only.
    #[must_use]
    pub fn repeated_address(&self) -> Option<&Address> {
        let addresses: Vec<_> = self.listen.iter().map(|listen| &listen.address).collect();
        first_repeated(&addresses).map(|(_, at)| addresses[at])
    }

    /// Returns the sources of the settings, including the environment of this process.
    #[must_use]
    pub fn sources(&self) -> Sources {
        Sources {
            config: self.config.clone(),
            log_level: self.log_level,
            listen: self.listen.iter().map(|listen| (listen.name.clone(), listen.address.clone())).collect(),
            ..Sources::of_this_process()
        }
    }
}

/// What `--listen` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The name of the listener, which selects its section.
    pub name: String,
    /// Where to listen.
    pub address: Address,
}

/// Parses `[NAME=]ADDRESS`. A path may contain `=`, so the part before it counts as a name only if it is a valid one.
fn listen(text: &str) -> Result<Listen, String> {
    let (name, address) = match text.split_once('=') {
        Some((name, address)) if is_listener_name(name) => (name, address),
        Some((name, _)) if !name.contains(['/', ':']) => {
            return Err(invalid_name_error(name));
        }
        _ => ("echo", text),
    };
    check_not_reserved(name)?;
    let address = address.parse().map_err(|error| format!("{error}"))?;
    Ok(Listen { name: name.to_owned(), address })
}

fn listener(name: &str) -> Result<String, String> {
    check_not_reserved(name)?;
    if is_listener_name(name) { Ok(name.to_owned()) } else { Err(invalid_name_error(name)) }
}

fn check_not_reserved(name: &str) -> Result<(), String> {
    if RESERVED_NAMES.contains(&name) {
        return Err(format!("{name} is not the name of an echo listener"));
    }
    Ok(())
}

fn invalid_name_error(name: &str) -> String {
    format!("invalid listener name \"{}\" (allowed: letters, digits and _ . @ -)", name.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_option_takes_an_optional_name() {
        for (text, name, address) in [
            ("127.0.0.1:1", "echo", "tcp:127.0.0.1:1"),
            ("lines=tcp:localhost:1", "lines", "tcp:localhost:1"),
            ("a.b-c_d@1=/run/x", "a.b-c_d@1", "unix:/run/x"),
            ("/run/a=b", "echo", "unix:/run/a=b"),
            ("unix:/run/a=b", "echo", "unix:/run/a=b"),
            ("x=unix:@a=b", "x", "unix:@a=b"),
        ] {
            let listen = listen(text).unwrap();
            assert_eq!((&*listen.name, &*listen.address.to_string()), (name, address), "{text}");
        }
        assert!(listen("a b=127.0.0.1:1").unwrap_err().contains("invalid listener name"));
        assert!(listen("=127.0.0.1:1").unwrap_err().contains("invalid listener name"));
        assert!(listen("x=1").unwrap_err().contains("write 127.0.0.1:1"));
    }
}
