//! What a message costs in the session, from the bytes that were read to the reply that is handed out.
//!
//! ```text
//! cargo bench --bench session [-- --quick] [FILTER]
//! ```
//!
//! ```text
//! lone       one message in one read: answered where it lies
//! pipeline   16 or 100 messages of 16 bytes in one read: their replies are put together
//! halves     one message in two reads: the first half is buffered, which allocates and copies it
//! ```
//!
//! No system call and no clock: the outlet takes everything at once, and time stands still. The bench `loopback`
//! measures the cost of the kernel.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};

use echoed::protocol::packet::Reply;
use echoed::protocol::{Outlet, Rules, Scratch, Session, Want};

/// Lengths of messages, in bytes without the delimiter. The last is the longest that is allowed by default.
const SIZES: [usize; 3] = [16, 1024, 65536];

/// An outlet that takes everything, and only counts it.
#[derive(Default)]
struct CountingOutlet {
    byte_count: u64,
}

impl Outlet for CountingOutlet {
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.byte_count += black_box(bytes).len() as u64;
        bytes.len()
    }

    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize {
        replies.len()
    }

    fn log(&mut self, _: &[u8]) -> bool {
        true
    }

    fn is_logging(&self) -> bool {
        false
    }
}

/// A connection that lasts as long as its measurement.
struct Connection {
    now: Instant,
    session: Session,
    outlet: CountingOutlet,
}

impl Connection {
    #[expect(clippy::disallowed_methods, reason = "any time will do, and there is no other way to get one")]
    fn new() -> Self {
        let now = Instant::now();
        Self { now, session: Session::new(Arc::new(Rules::default()), now), outlet: CountingOutlet::default() }
    }

    /// Does with one read what the server does when it drives a connection.
    fn receive(&mut self, read: &mut PreparedInput) {
        self.session.receive(self.now, &mut read.scratch, black_box(read.count), &mut self.outlet);
        assert_eq!(self.session.wants(), Want::Read);
    }

    /// Checks that every message was answered, and that every reply had the right length.
    fn check(&self, len: usize) {
        let rules = self.session.rules();
        let reply = rules.prefix.as_bytes().len() + len + rules.delimiter.len();
        let messages = self.session.totals().messages;
        assert_eq!(self.outlet.byte_count, messages * reply as u64);
    }
}

/// Input where a read puts it. The session leaves it as it is, so it is put there once, which is not measured.
struct PreparedInput {
    scratch: Scratch,
    count: usize,
}

impl PreparedInput {
    fn new(bytes: &[u8]) -> Self {
        let mut scratch = Scratch::new();
        scratch.input_room()[..bytes.len()].copy_from_slice(bytes);
        Self { scratch, count: bytes.len() }
    }
}

/// Returns a message of `len` bytes with the default delimiter.
fn message(len: usize) -> Vec<u8> {
    let mut message = vec![b'a'; len];
    message.push(b'\t');
    message
}

fn lone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session/lone");
    group.throughput(Throughput::Elements(1));
    for len in SIZES {
        let mut connection = Connection::new();
        let mut read = PreparedInput::new(&message(len));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter(|| connection.receive(&mut read));
        });
        connection.check(len);
    }
    group.finish();
}

fn pipeline(criterion: &mut Criterion) {
    let len = SIZES[0];
    let mut group = criterion.benchmark_group("session/pipeline");
    for depth in [16, 100] {
        let mut connection = Connection::new();
        let mut read = PreparedInput::new(&message(len).repeat(depth));
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
            bencher.iter(|| connection.receive(&mut read));
        });
        connection.check(len);
    }
    group.finish();
}

fn halves(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session/halves");
    group.throughput(Throughput::Elements(1));
    for len in SIZES {
        let mut connection = Connection::new();
        // Each half has a scratch of its own, so that neither is in the way of the other.
        let message = message(len);
        let (first, second) = message.split_at(len / 2);
        let (mut first, mut second) = (PreparedInput::new(first), PreparedInput::new(second));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter(|| {
                connection.receive(&mut first);
                connection.receive(&mut second);
            });
        });
        connection.check(len);
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    lone(&mut criterion);
    pipeline(&mut criterion);
    halves(&mut criterion);
    criterion.final_summary();
}
