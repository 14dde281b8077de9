//! Parses PROXY headers: bytes in, the client out.
//!
//! ```text
//! 1   "PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n"
//! 2   0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a            its signature
//!     21                                             version 2, PROXY (20: LOCAL)
//!     11                                             IPv4, stream
//!     00 0c                                          how many bytes follow
//!     c0 00 02 01  c6 33 64 07  9c bb  1f 95         from, to; their ports; then anything else (TLVs), ignored
//! ```

use std::fmt;
use std::net::SocketAddr;

use proxy_header::ParseConfig;

use crate::escape::quote;

/// The maximum length of a header, in bytes.
pub const MAX_HEADER: usize = 4096;

/// The maximum length of a header of version 1, in bytes, including its line feed.
const MAX_V1_LEN: usize = 107;

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The length of the fixed part of a header of version 2, in bytes.
const V2_FIXED_LEN: usize = 16;

/// The result of parsing the first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderParse {
    /// The beginning of a header.
    Incomplete,
    /// A complete header.
    Complete {
        /// Its length in bytes; more may follow it.
        len: usize,
        /// The client of the load balancer; `None` if the header does not name one (UNKNOWN, LOCAL, and address families other
        /// than IPv4 and IPv6).
        client: Option<SocketAddr>,
    },
    /// Not a valid header, whatever follows.
    Invalid(HeaderFault),
}

/// The fault of an invalid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// The input does not begin like a header.
    Missing,
    /// The header breaks a rule of its version, or the stream ends inside it.
    Malformed,
    /// The header exceeds the maximum length of its version.
    TooLong,
    /// The header was not complete in time.
    Timeout,
}

impl HeaderFault {
    /// All faults.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Malformed, Self::TooLong, Self::Timeout];

    /// Returns its name in the log: lower case with hyphens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TooLong => "too-long",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no PROXY header",
            Self::Malformed => "malformed PROXY header",
            Self::TooLong => "PROXY header too long",
            Self::Timeout => "no complete PROXY header in time",
        })
    }
}

/// The bytes that came instead of a valid header, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadHeader {
    /// Its fault.
    pub fault: HeaderFault,
    /// Its first bytes, [`MAX_EXCERPT`] at most.
    pub excerpt: Vec<u8>,
    /// The total number of bytes that came.
    pub len: u64,
}

/// The maximum number of bytes of a bad header that are logged.
pub const MAX_EXCERPT: usize = 32;

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, ref excerpt, len } = *self;
        write!(f, "{fault}; ")?;
        match len {
            0 => return f.write_str("nothing came"),
            1 => f.write_str("1 byte came: ")?,
            _ => write!(f, "{len} bytes came: ")?,
        }
        let more = if len > excerpt.len() as u64 { "…" } else { "" };
        write!(f, "{}{more}", quote(excerpt))
    }
}

impl HeaderParse {
    /// Parses the first bytes of a connection.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        if bytes.starts_with(V1_PREFIX) {
            Self::parse_v1(bytes)
        } else if bytes.starts_with(V2_SIGNATURE) {
            Self::parse_v2(bytes)
        } else if V1_PREFIX.starts_with(bytes) || V2_SIGNATURE.starts_with(bytes) {
            Self::Incomplete
        } else {
            Self::Invalid(HeaderFault::Missing)
        }
    }

    fn parse_v1(bytes: &[u8]) -> Self {
        let within = &bytes[..bytes.len().min(MAX_V1_LEN)];
        match memchr::memchr(b'\n', within) {
            Some(at) => Self::parse_complete(&bytes[..=at]),
            None if bytes.len() < MAX_V1_LEN => Self::Incomplete,
            None => Self::Invalid(HeaderFault::TooLong),
        }
    }

    fn parse_v2(bytes: &[u8]) -> Self {
        let Some(&[command, _, high, low]) = bytes.get(V2_SIGNATURE.len()..V2_FIXED_LEN) else {
            return Self::Incomplete;
        };
        let len = V2_FIXED_LEN + usize::from(u16::from_be_bytes([high, low]));
        if !matches!(command, 0x20 | 0x21) {
            return Self::Invalid(HeaderFault::Malformed);
        }
        if len > MAX_HEADER {
            return Self::Invalid(HeaderFault::TooLong);
        }
        match bytes.get(..len) {
            None => Self::Incomplete,
            // LOCAL: a connection of the load balancer itself, such as a health check. The rest of its header is ignored.
            Some(_) if command == 0x20 => Self::Complete { len, client: None },
            Some(header) => Self::parse_complete(header),
        }
    }

    /// Parses a complete header.
    fn parse_complete(header: &[u8]) -> Self {
        let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
        match proxy_header::ProxyHeader::parse(header, config) {
            Ok((parsed, len)) if len == header.len() => {
                let client = parsed.proxied_address().map(|address| address.source);
                let client = client.map(|client| SocketAddr::new(client.ip().to_canonical(), client.port()));
                Self::Complete { len, client }
            }
            _ => Self::Invalid(HeaderFault::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(len: usize, client: &str) -> HeaderParse {
        HeaderParse::Complete { len, client: client.parse().ok() }
    }

    /// Returns a header of version 2.
    fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &len, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x9c, 0xbb, 0x1f, 0x95];

    fn v6() -> Vec<u8> {
        let (from, to) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let octets = |ip: std::net::Ipv6Addr| ip.octets();
        [&octets(from)[..], &octets(to), &[0x9c, 0xbb, 0x1f, 0x95]].concat()
    }

    /// Headers, and the clients that they name; `-` where there is none.
    fn valid_headers() -> Vec<(Vec<u8>, &'static str)> {
        let unix = [0; 216];
        let with_more = [&V4[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        let long = [&V4[..], &[0xe0, 0x0f, 0xe1], &[b'x'; 4065]].concat();
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n".to_vec(), "192.0.2.1:40123"),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 40123 8085\r\n".to_vec(), "[2001:db8::1]:40123"),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n".to_vec(), "192.0.2.1:1"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "-"),
            ([b"PROXY UNKNOWN ", &[b'f'; 91][..], b"\r\n"].concat(), "-"),
            (v2_header(0x21, 0x11, &V4), "192.0.2.1:40123"),
            (v2_header(0x21, 0x12, &V4), "192.0.2.1:40123"),
            (v2_header(0x21, 0x21, &v6()), "[2001:db8::1]:40123"),
            (v2_header(0x21, 0x11, &with_more), "192.0.2.1:40123"),
            (v2_header(0x21, 0x11, &long), "192.0.2.1:40123"),
            (v2_header(0x21, 0x00, &[]), "-"),
            (v2_header(0x21, 0x31, &unix), "-"),
            (v2_header(0x20, 0x00, &[]), "-"),
            (v2_header(0x20, 0x11, &V4), "-"),
            (v2_header(0x20, 0x99, &[1, 2, 3]), "-"),
        ]
    }

    #[test]
    fn headers_are_parsed_without_the_bytes_behind_them() {
        for (header, client) in valid_headers() {
            let expected = complete(header.len(), client);
            assert_eq!(HeaderParse::parse(&header), expected, "{}", header.escape_ascii());
            for more in [&b"aaaa\t"[..], b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n", &[0; 5000]] {
                let bytes = [&header, more].concat();
                assert_eq!(HeaderParse::parse(&bytes), expected, "{}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn every_prefix_of_a_header_is_incomplete() {
        for (header, _) in valid_headers() {
            for end in 0..header.len() {
                assert_eq!(
                    HeaderParse::parse(&header[..end]),
                    HeaderParse::Incomplete,
                    "{}",
                    header[..end].escape_ascii()
                );
            }
        }
    }

    #[test]
    fn invalid_headers_are_rejected_as_soon_as_possible() {
        let too_long = [&V4[..], &[b'x'; MAX_HEADER - V2_FIXED_LEN - 11]].concat();
        let (missing, malformed, long) = (HeaderFault::Missing, HeaderFault::Malformed, HeaderFault::TooLong);
        for (invalid, fault) in [
            (&b"aaaa\t"[..], missing),
            (b"\t", missing),
            (b"PROXx", missing),
            (b"proxy TCP4 ", missing),
            (b"PROXY\r\n", missing),
            (b"PROXY \n", malformed),
            (b"PROXY UNKNOWN\n", malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 40123\r\n", malformed),
            (b"PROXY TCP4 192.0.2.256 198.51.100.7 40123 8085\r\n", malformed),
            (b"PROXY TCP4 2001:db8::1 2001:db8::2 40123 8085\r\n", malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 8085\r\n", malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\r\n", malformed),
            (b"PROXY UDP4 192.0.2.1 198.51.100.7 40123 8085\r\n", malformed),
            (b"\r\n\r\nx", missing),
            (&[V1_PREFIX, &[b'x'; MAX_V1_LEN - V1_PREFIX.len()]].concat(), long),
            (&[b"PROXY UNKNOWN ", &[b'f'; 92][..], b"\r\n"].concat(), long),
            (&v2_header(0x11, 0x11, &V4), malformed),
            (&v2_header(0x22, 0x11, &V4), malformed),
            (&v2_header(0x21, 0x11, &V4[..11]), malformed),
            (&v2_header(0x21, 0x21, &V4), malformed),
            (&v2_header(0x21, 0x31, &[0; 215]), malformed),
            (&v2_header(0x21, 0x99, &[]), malformed),
            (&v2_header(0x21, 0x11, &too_long)[..V2_FIXED_LEN], long),
            (&v2_header(0x20, 0x00, &too_long)[..V2_FIXED_LEN], long),
        ] {
            assert_eq!(HeaderParse::parse(invalid), HeaderParse::Invalid(fault), "{}", invalid.escape_ascii());
        }
    }

    #[test]
    fn a_bad_header_is_described_with_its_length_and_its_first_bytes() {
        let describe = |fault, bytes: &[u8], len| {
            BadHeader { fault, excerpt: bytes[..bytes.len().min(MAX_EXCERPT)].to_vec(), len }.to_string()
        };
        assert_eq!(describe(HeaderFault::Missing, b"GET /\r\n", 7), r#"no PROXY header; 7 bytes came: "GET /\r\n""#);
        assert_eq!(describe(HeaderFault::Missing, b"\xff", 1), r#"no PROXY header; 1 byte came: "\xff""#);
        assert_eq!(describe(HeaderFault::Timeout, b"", 0), "no complete PROXY header in time; nothing came");
        let expected = format!("PROXY header too long; 4113 bytes came: \"{}\"…", "x".repeat(32));
        assert_eq!(describe(HeaderFault::TooLong, &[b'x'; 100], 4113), expected);
        assert_eq!(
            describe(HeaderFault::Malformed, "PROXY \u{202e}\x1b\u{9b}\n".as_bytes(), 13),
            r#"malformed PROXY header; 13 bytes came: "PROXY \u{202e}\u{1b}\u{9b}\n""#
        );
    }
}
