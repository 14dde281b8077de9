//! The packing list as bytes, right and wrong.

use std::time::Duration;

use proptest::prelude::*;

use super::super::list::{self, Line, List, Problem};

#[test]
fn a_list_is_written_as_its_head_says() {
    let mut bytes = Vec::new();
    let lines = [Line { cookie: 42, state: &b"abc"[..] }, Line { cookie: 43, state: &[] }];
    list::write(&mut bytes, Duration::from_nanos(123_456_789), lines.into_iter()).unwrap();
    let expected = [
        b"echoed parcel\n\x1a\0",
        &[1, 0, 0, 0, 2, 0, 0, 0, 0x15, 0xcd, 0x5b, 7, 0, 0, 0, 0][..],
        &[42, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c'],
        &[43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(bytes, expected.concat());
}

fn lines() -> impl Strategy<Value = Vec<Line<Vec<u8>>>> {
    let line = (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..50));
    proptest::collection::vec(line.prop_map(|(cookie, state)| Line { cookie, state }), 0..20)
}

fn written(lines: &[Line<Vec<u8>>], time: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let lines = lines.iter().map(|Line { cookie, state }| Line { cookie: *cookie, state: &**state });
    list::write(&mut bytes, Duration::from_nanos(time), lines).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<List, Problem> {
    list::read(&mut &*bytes, bytes.len() as u64)
}

proptest! {
    #[test]
    fn what_was_written_is_read(lines in lines(), time: u64) {
        let bytes = written(&lines, time);
        let (time, count) = (Duration::from_nanos(time), u32::try_from(lines.len()).unwrap());
        prop_assert_eq!(read(&bytes), Ok(List { time, count, lines, problem: None }));
    }

    /// And nothing else happens.
    #[test]
    fn any_bytes_are_read_or_told(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(read(&bytes).is_err());
        let after_the_head = [&written(&[], 0)[..20], &bytes].concat();
        if let Ok(List { lines, .. }) = read(&after_the_head) {
            let size: usize = lines.iter().map(|line| 16 + line.state.len()).sum();
            prop_assert!(size <= bytes.len());
        }
    }

    #[test]
    fn a_list_that_was_damaged_somewhere_does_no_harm(lines in lines(), at: prop::sample::Index, byte: u8) {
        let mut bytes = written(&lines, 1);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(list) = read(&bytes) {
            let size: usize = list.lines.iter().map(|line| 16 + line.state.len()).sum();
            prop_assert!(size + 32 <= bytes.len());
        }
    }

    /// Also where it is shorter than it was said to be.
    #[test]
    fn a_list_that_ends_too_soon_is_told(lines in lines(), cut: prop::sample::Index) {
        let bytes = written(&lines, 1);
        let end = cut.index(bytes.len());
        match list::read(&mut &bytes[..end], bytes.len() as u64) {
            Err(problem) => prop_assert_eq!(problem, Problem::Cut),
            Ok(list) => prop_assert_eq!(list.problem, Some(Problem::Cut)),
        }
    }
}
