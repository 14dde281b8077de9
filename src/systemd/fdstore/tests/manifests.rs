//! The manifest as bytes, valid and invalid.

use std::time::Duration;

use proptest::prelude::*;

use crate::systemd::fdstore::manifest::{self, Entry, Manifest, ManifestError};

#[test]
fn the_documented_manifest_equals_the_encoding() {
    let mut bytes = Vec::new();
    let entries = [Entry { cookie: 42, snapshot: &b"abc"[..] }, Entry { cookie: 43, snapshot: &[] }];
    manifest::write(&mut bytes, Duration::from_nanos(123_456_789), entries.into_iter()).unwrap();
    let expected = [
        b"echoed bundle\n\x1a\0",
        &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0x5b, 0xcd, 0x15][..],
        &[0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 3, b'a', b'b', b'c'],
        &[0, 0, 0, 0, 0, 0, 0, 43, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(bytes, expected.concat());
}

fn entries() -> impl Strategy<Value = Vec<Entry<Vec<u8>>>> {
    let entry = (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..50));
    proptest::collection::vec(entry.prop_map(|(cookie, snapshot)| Entry { cookie, snapshot }), 0..20)
}

fn written(entries: &[Entry<Vec<u8>>], time: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let entries = entries.iter().map(|Entry { cookie, snapshot }| Entry { cookie: *cookie, snapshot: &**snapshot });
    manifest::write(&mut bytes, Duration::from_nanos(time), entries).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    manifest::read(&mut &*bytes, bytes.len() as u64)
}

proptest! {
    #[test]
    fn a_manifest_is_read_as_it_was_written(entries in entries(), time: u64) {
        let bytes = written(&entries, time);
        let (time, count) = (Duration::from_nanos(time), u32::try_from(entries.len()).unwrap());
        prop_assert_eq!(read(&bytes), Ok(Manifest { stored_at: time, count, entries, problem: None }));
    }

    /// And nothing else happens.
    #[test]
    fn any_bytes_are_read_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(read(&bytes).is_err());
        let after_the_head = [&written(&[], 0)[..20], &bytes].concat();
        if let Ok(Manifest { entries, .. }) = read(&after_the_head) {
            let size: usize = entries.iter().map(|entry| 16 + entry.snapshot.len()).sum();
            prop_assert!(size <= bytes.len());
        }
    }

    #[test]
    fn a_damaged_manifest_allocates_no_more_than_its_size(entries in entries(), at: prop::sample::Index, byte: u8) {
        let mut bytes = written(&entries, 1);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(manifest) = read(&bytes) {
            let size: usize = manifest.entries.iter().map(|entry| 16 + entry.snapshot.len()).sum();
            prop_assert!(size + 32 <= bytes.len());
        }
    }

    /// Also where it is shorter than it was said to be.
    #[test]
    fn a_truncated_manifest_is_reported(entries in entries(), cut: prop::sample::Index) {
        let bytes = written(&entries, 1);
        let end = cut.index(bytes.len());
        match manifest::read(&mut &bytes[..end], bytes.len() as u64) {
            Err(problem) => prop_assert_eq!(problem, ManifestError::Truncated),
            Ok(manifest) => prop_assert_eq!(manifest.problem, Some(ManifestError::Truncated)),
        }
    }
}
