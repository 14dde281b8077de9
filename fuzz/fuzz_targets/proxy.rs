//! Any bytes as the beginning of a connection behind a load balancer: a header is decided at the first byte that
//! decides it, and the bytes that follow it change nothing.

#![no_main]

use echoed::server::proxy_header::{HeaderParse, MAX_HEADER};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let expected = HeaderParse::parse(data);
    let mut decided = None;
    for end in 0..=data.len().min(MAX_HEADER + 1) {
        let header = HeaderParse::parse(&data[..end]);
        match (decided, header) {
            (None, HeaderParse::Incomplete) => assert!(end < MAX_HEADER, "{end} bytes may still become a header"),
            (None, HeaderParse::Complete { len, client }) => {
                assert_eq!(len, end, "it was complete before");
                // Of the internet, and in one notation.
                assert!(client.is_none_or(|client| client.ip() == client.ip().to_canonical()));
                decided = Some(header);
            }
            (None, HeaderParse::Invalid(_)) => decided = Some(header),
            (Some(decided), header) => assert_eq!(header, decided, "{end} bytes"),
        }
    }
    assert_eq!(decided.unwrap_or(HeaderParse::Incomplete), expected);
});
