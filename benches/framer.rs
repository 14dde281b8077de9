//! What a byte costs in the framer.
//!
//! ```text
//! cargo bench --bench framer [-- --quick] [FILTER]
//! ```
//!
//! ```text
//! silence   input without a delimiter, in one chunk: the bare search
//! hostile   the same of bytes that match the beginning of the delimiter again and again, and never all of it
//! short     messages of 16 bytes, one behind the other: what finding an end costs
//! pieces    one message in pieces of 16 bytes
//! ```
//!
//! No byte is searched again when the next piece comes, however slowly that is. So in `pieces` a long message must go
//! as fast, in bytes per second, as one that is 64 times shorter. If each piece were searched together with those
//! before it, it would go many times slower.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};

use echoed::protocol::Delimiter;
use echoed::protocol::framer::{Frame, Framer};

/// The limit on messages, as by default.
const MAX: usize = 64 * 1024;

/// Length of a short message, in bytes without the delimiter; also of a piece.
const SHORT: usize = 16;

/// One byte has a search of its own; two end a line on the Internet; sixteen are the most there may be, and these are
/// hard to find among dashes.
const DELIMITERS: [&[u8]; 3] = [b"\t", b"\r\n", b"---------------|"];

fn delimiter(bytes: &[u8]) -> Delimiter {
    Delimiter::new(bytes).expect("1 to 16 bytes")
}

/// Returns `len` bytes like those of a text, none of them in a delimiter.
fn text(len: usize) -> Vec<u8> {
    b"the quick brown fox jumps over the lazy dog, ".iter().copied().cycle().take(len).collect()
}

/// Searches `chunk` to its end, without a match.
fn search_without_match(delimiter: &Delimiter, chunk: &[u8]) {
    let frame = Framer::default().next(delimiter, MAX, black_box(chunk));
    assert_eq!(frame, Frame::Incomplete);
}

fn silence(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framer/silence");
    let chunk = text(MAX);
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    for bytes in DELIMITERS {
        let delimiter = delimiter(bytes);
        group.bench_function(BenchmarkId::from_parameter(bytes.len()), |bencher| {
            bencher.iter(|| search_without_match(&delimiter, &chunk));
        });
    }
    group.finish();
}

fn hostile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framer/hostile");
    // A delimiter of one byte is never matched in part.
    for bytes in DELIMITERS.into_iter().filter(|bytes| bytes.len() > 1) {
        let delimiter = delimiter(bytes);
        let chunk = vec![bytes[0]; MAX];
        group.throughput(Throughput::Bytes(chunk.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes.len()), |bencher| {
            bencher.iter(|| search_without_match(&delimiter, &chunk));
        });
    }
    group.finish();
}

fn short(criterion: &mut Criterion) {
    const MESSAGES: usize = 1000;
    let mut group = criterion.benchmark_group("framer/short");
    for bytes in DELIMITERS {
        let delimiter = delimiter(bytes);
        let input = [&text(SHORT), bytes].concat().repeat(MESSAGES);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes.len()), |bencher| {
            bencher.iter(|| {
                let mut framer = Framer::default();
                let mut rest = black_box(input.as_slice());
                let mut messages = 0;
                while let Frame::Complete(end) = framer.next(&delimiter, MAX, rest) {
                    rest = &rest[end..];
                    messages += 1;
                }
                assert_eq!(messages, MESSAGES);
            });
        });
    }
    group.finish();
}

fn pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framer/pieces");
    for bytes in DELIMITERS {
        let delimiter = delimiter(bytes);
        for len in [1024, 65536] {
            let message = [&text(len), bytes].concat();
            group.throughput(Throughput::Bytes(message.len() as u64));
            group.bench_function(BenchmarkId::new(bytes.len().to_string(), len), |bencher| {
                bencher.iter(|| {
                    let mut framer = Framer::default();
                    let mut ends = 0;
                    for piece in black_box(message.as_slice()).chunks(SHORT) {
                        ends += usize::from(framer.next(&delimiter, MAX, piece) != Frame::Incomplete);
                    }
                    assert!(ends == 1 && !framer.in_progress());
                });
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    silence(&mut criterion);
    hostile(&mut criterion);
    short(&mut criterion);
    pieces(&mut criterion);
    criterion.final_summary();
}
