//! Where to listen or to connect: `tcp:HOST:PORT`, `unix:/PATH`, their kin of packets, and what people write instead.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path or abstract name of a Unix socket, in bytes (`sun_path` of unix(7) less one NUL).
const MAX_PATH: usize = 107;

/// An address as it was written. Names are looked up when it is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `tcp:HOST:PORT`, `tcp4:HOST:PORT`, `tcp6:HOST:PORT`.
    Tcp {
        /// Which of the host's addresses are meant.
        family: Family,
        /// A name, or an address; an IPv6 address without its brackets.
        host: String,
        /// 0 picks a free one where that makes sense.
        port: u16,
    },
    /// `udp:HOST:PORT`: datagrams.
    Udp {
        /// As with TCP.
        host: String,
        /// As with TCP.
        port: u16,
    },
    /// `unix:/PATH`, `unix:@NAME`: a stream.
    Unix(UnixName),
    /// `seqpacket:/PATH`, `seqpacket:@NAME`: connections of packets.
    Seqpacket(UnixName),
    /// `unixgram:/PATH`, `unixgram:@NAME`: datagrams.
    Unixgram(UnixName),
}

/// The name that a Unix socket is bound to (unix(7)).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UnixName {
    /// An absolute path.
    Path(PathBuf),
    /// A name in the abstract namespace, without the `@` that stands for its first NUL.
    Abstract(String),
}

impl Address {
    /// Returns whether its sockets carry packets, each of which is a message, instead of a stream.
    #[must_use]
    pub fn is_packets(&self) -> bool {
        matches!(self, Self::Udp { .. } | Self::Seqpacket(_) | Self::Unixgram(_))
    }
}

/// The schemes of addresses, for messages.
const SCHEMES: &str = "tcp:, tcp4:, tcp6:, udp:, unix:, seqpacket: and unixgram:";

/// Returns what to do about an address that is given twice.
#[must_use]
pub fn repeated_address_hint(address: &Address) -> &'static str {
    if matches!(address, Address::Udp { .. }) {
        "remove one of them; only a socket unit with ReusePort=yes can have several sockets for one port"
    } else {
        "remove one of them"
    }
}

/// Returns the positions of the first address that is there twice, both. Port 0, which picks one, may be there again.
#[must_use]
pub fn first_repeated(addresses: &[&Address]) -> Option<(usize, usize)> {
    let mut seen = HashMap::new();
    let picks_port = |address: &Address| matches!(address, Address::Tcp { port: 0, .. } | Address::Udp { port: 0, .. });
    let fixed = addresses.iter().enumerate().filter(|(_, address)| !picks_port(address));
    fixed.fold(None, |found, (at, address)| found.or_else(|| seen.insert(*address, at).map(|first| (first, at))))
}

/// Which addresses of a host are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// The error of an invalid address, which says what to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    text: String,
    problem: String,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid address \"{}\": {}", self.text.escape_debug(), self.problem)
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse_address(text).map_err(|problem| AddressError { text: text.to_owned(), problem })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { family, host, port } => {
                let scheme = match family {
                    Family::Any => "tcp",
                    Family::V4 => "tcp4",
                    Family::V6 => "tcp6",
                };
                write_host(f, scheme, host, *port)
            }
            Self::Udp { host, port } => write_host(f, "udp", host, *port),
            Self::Unix(name) => write!(f, "unix:{name}"),
            Self::Seqpacket(name) => write!(f, "seqpacket:{name}"),
            Self::Unixgram(name) => write!(f, "unixgram:{name}"),
        }
    }
}

fn write_host(f: &mut fmt::Formatter<'_>, scheme: &str, host: &str, port: u16) -> fmt::Result {
    if host.contains(':') { write!(f, "{scheme}:[{host}]:{port}") } else { write!(f, "{scheme}:{host}:{port}") }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

fn parse_address(text: &str) -> Result<Address, String> {
    let tcp = |family, (host, port)| Address::Tcp { family, host, port };
    if text.starts_with('/') || text.starts_with('@') {
        return parse_unix_name("unix", text).map(Address::Unix);
    }
    if text.starts_with('[') {
        return parse_host_and_port("", text).map(|found| tcp(Family::Any, found));
    }
    let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
    match scheme {
        "tcp" => parse_host_and_port("", rest).map(|found| tcp(Family::Any, found)),
        "tcp4" => parse_host_and_port("", rest).map(|found| tcp(Family::V4, found)),
        "tcp6" => parse_host_and_port("", rest).map(|found| tcp(Family::V6, found)),
        "udp" => parse_host_and_port("udp:", rest).map(|(host, port)| Address::Udp { host, port }),
        "unix" => parse_unix_name(scheme, rest).map(Address::Unix),
        "seqpacket" => parse_unix_name(scheme, rest).map(Address::Seqpacket),
        "unixgram" => parse_unix_name(scheme, rest).map(Address::Unixgram),
        _ if is_unknown_scheme(scheme, rest) => Err(format!("unknown scheme \"{scheme}\"; write one of {SCHEMES}")),
        _ => parse_host_and_port("", text).map(|found| tcp(Family::Any, found)),
    }
}

/// Returns whether a text, split at its first colon, begins with a scheme: with letters before a host and a port, a path or a name.
/// Digits of an IPv6 address are letters, too.
fn is_unknown_scheme(scheme: &str, rest: &str) -> bool {
    scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && scheme.bytes().any(|byte| byte.is_ascii_alphabetic() && !byte.is_ascii_hexdigit())
        && rest.contains([':', '/', '@'])
}

/// Parses `HOST:PORT` or `[IPv6]:PORT`. Suggestions in errors begin with `scheme`.
fn parse_host_and_port(scheme: &str, text: &str) -> Result<(String, u16), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the bracket is not closed; write [IPv6]:PORT")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() && !host.contains('%') {
            return Err(format!("invalid IPv6 address [{host}]; only IPv6 addresses are written in brackets"));
        }
        let port = rest.strip_prefix(':').ok_or("the port is missing; write [IPv6]:PORT")?;
        (host, port)
    } else {
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
                format!("a port needs a host; write {scheme}127.0.0.1:{text} or {scheme}[::1]:{text}")
            } else if text == "*" || text.parse::<Ipv4Addr>().is_ok() {
                missing_port(scheme, text)
            } else if scheme == "udp:" {
                "write udp:HOST:PORT".to_owned()
            } else {
                "write tcp:HOST:PORT, unix:/PATH or unix:@NAME".to_owned()
            });
        };
        if host.contains(':') {
            return Err(format!("an IPv6 address needs brackets; write {scheme}[IPv6]:PORT"));
        }
        (host, port)
    };
    if host.is_empty() {
        return Err(format!(
            "a port needs a host; write {scheme}127.0.0.1:{port}, or {scheme}0.0.0.0:{port} for every interface"
        ));
    }
    if port.is_empty() {
        return Err(missing_port(scheme, host));
    }
    if host == "*" {
        return Err(format!(
            "* is not a host; write {scheme}0.0.0.0:{port} for every address of IPv4, {scheme}[::]:{port} for those of IPv6"
        ));
    }
    if host.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control() || byte == b'/') {
        return Err(format!("a host name must not contain spaces or slashes; write {scheme}HOST:PORT, or unix:/PATH"));
    }
    let is_numeric = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.parse().ok().filter(|_| is_numeric);
    let port = number.ok_or_else(|| format!("invalid port \"{port}\"; write a number from 0 to 65535"))?;
    Ok((host.to_owned(), port))
}

/// Returns what is said about a host without a port.
fn missing_port(scheme: &str, host: &str) -> String {
    let host = match host {
        "*" => "0.0.0.0".to_owned(),
        _ if host.contains(':') => format!("[{host}]"),
        _ => host.to_owned(),
    };
    format!("the port is missing; write {scheme}{host}:PORT")
}

/// Parses `/PATH` or `@NAME`, the part after the scheme.
fn parse_unix_name(scheme: &str, text: &str) -> Result<UnixName, String> {
    let name = text.strip_prefix('@').unwrap_or(text);
    if name.is_empty() {
        return Err(format!("the path is missing; write {scheme}:/PATH or {scheme}:@NAME"));
    }
    if name.len() > MAX_PATH {
        return Err(format!("a Unix socket's path has at most {MAX_PATH} bytes, this one has {}", name.len()));
    }
    if name.contains('\0') {
        return Err("a path must not contain a NUL byte".to_owned());
    }
    if text.starts_with('@') {
        Ok(UnixName::Abstract(name.to_owned()))
    } else if Path::new(text).is_absolute() {
        Ok(UnixName::Path(text.into()))
    } else {
        Err(format!("the path must be absolute; write {scheme}:/PATH, not {scheme}:{text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, written) in [
            ("tcp:127.0.0.1:8085", "tcp:127.0.0.1:8085"),
            ("127.0.0.1:8085", "tcp:127.0.0.1:8085"),
            ("localhost:0", "tcp:localhost:0"),
            ("tcp4:localhost:1", "tcp4:localhost:1"),
            ("tcp6:[::1]:65535", "tcp6:[::1]:65535"),
            ("[::1]:7", "tcp:[::1]:7"),
            ("[fe80::1%eth0]:7", "tcp:[fe80::1%eth0]:7"),
            ("unix:/run/echoed.sock", "unix:/run/echoed.sock"),
            ("/run/echoed.sock", "unix:/run/echoed.sock"),
            ("@echoed", "unix:@echoed"),
            ("unix:@echoed", "unix:@echoed"),
            ("udp:127.0.0.1:7", "udp:127.0.0.1:7"),
            ("udp:[::1]:7", "udp:[::1]:7"),
            ("udp:localhost:0", "udp:localhost:0"),
            ("seqpacket:/run/echoed.seq", "seqpacket:/run/echoed.seq"),
            ("seqpacket:@echoed", "seqpacket:@echoed"),
            ("unixgram:/run/echoed.gram", "unixgram:/run/echoed.gram"),
            ("unixgram:@echoed", "unixgram:@echoed"),
        ] {
            let address: Address = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(address.to_string(), written, "{text}");
            assert_eq!(
                address.is_packets(),
                ["udp", "seqpacket", "unixgram"].contains(&text.split(':').next().unwrap())
            );
            assert_eq!(written.parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn invalid_address_error_says_what_to_write() {
        for (text, hint) in [
            ("", "write tcp:HOST:PORT"),
            ("8085", "write 127.0.0.1:8085"),
            (":8085", "write 127.0.0.1:8085"),
            ("tcp::8085", "write 127.0.0.1:8085"),
            ("tcp:8085", "write 127.0.0.1:8085"),
            ("localhost", "write tcp:HOST:PORT"),
            ("::1:8085", "write [IPv6]:PORT"),
            ("udp:::1:8085", "write udp:[IPv6]:PORT"),
            ("[::1]", "write [IPv6]:PORT"),
            ("[::1:8085", "write [IPv6]:PORT"),
            ("[localhost]:1", "invalid IPv6 address"),
            ("127.0.0.1:65536", "from 0 to 65535"),
            ("127.0.0.1:+1", "from 0 to 65535"),
            ("127.0.0.1:http", "from 0 to 65535"),
            ("unix:", "the path is missing"),
            ("@", "the path is missing"),
            ("unix:run/echoed.sock", "must be absolute"),
            ("udp:7", "write udp:127.0.0.1:7"),
            ("udp::7", "write udp:127.0.0.1:7"),
            ("udp:localhost", "write udp:HOST:PORT"),
            ("udp:", "write udp:HOST:PORT"),
            ("udp:/run/echoed.sock:7", "write udp:HOST:PORT"),
            ("seqpacket:", "write seqpacket:/PATH or seqpacket:@NAME"),
            ("seqpacket:localhost:7", "write seqpacket:/PATH, not seqpacket:localhost:7"),
            ("unixgram:@", "write unixgram:/PATH or unixgram:@NAME"),
            ("unixgram:run/x", "write unixgram:/PATH"),
            ("tcp:a b:7", "must not contain spaces"),
            ("0.0.0.0", "the port is missing; write 0.0.0.0:PORT"),
            ("tcp:127.0.0.1", "the port is missing; write 127.0.0.1:PORT"),
            ("udp:0.0.0.0", "the port is missing; write udp:0.0.0.0:PORT"),
            ("127.0.0.1:", "the port is missing; write 127.0.0.1:PORT"),
            ("[::1]:", "the port is missing; write [::1]:PORT"),
            ("localhost:", "the port is missing; write localhost:PORT"),
            ("*", "the port is missing; write 0.0.0.0:PORT"),
            ("*:8085", "write 0.0.0.0:8085 for every address of IPv4, [::]:8085 for those of IPv6"),
            ("udp:*:7", "write udp:0.0.0.0:7 for"),
            (
                "upd:127.0.0.1:7",
                "unknown scheme \"upd\"; write one of tcp:, tcp4:, tcp6:, udp:, unix:, seqpacket: and unixgram:",
            ),
            ("dgram:/run/x", "unknown scheme \"dgram\""),
            ("http://localhost:80", "unknown scheme \"http\""),
            ("TCP:127.0.0.1:7", "unknown scheme \"TCP\""),
            ("fe80::1:7", "write [IPv6]:PORT"),
            ("dead:beef::1:7", "write [IPv6]:PORT"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        let long = format!("/{}", "x".repeat(107));
        assert!(long.parse::<Address>().unwrap_err().to_string().contains("at most 107 bytes"));
        assert!(long[..107].parse::<Address>().is_ok());
    }
}
