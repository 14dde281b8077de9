//! Numbers that look random, the same from the same seed.

use std::env;
use std::time::UNIX_EPOCH;

/// xorshift64* (Vigna 2016).
pub struct Random(u64);

/// A seed that is another each time, or the one in `ECHOED_TEST_SEED`.
pub fn seed() -> u64 {
    let since = UNIX_EPOCH.elapsed().expect("it is later than 1970");
    let given = env::var("ECHOED_TEST_SEED").map(|seed| seed.parse().expect("ECHOED_TEST_SEED is a number"));
    given.unwrap_or_else(|_| since.as_secs() ^ u64::from(since.subsec_nanos()) << 32).max(1)
}

impl Random {
    /// Those of one of many connections, from the seed of all.
    pub fn seeded(seed: u64, connection: usize) -> Self {
        let mut random = Self(seed.wrapping_add(connection as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).max(1));
        random.number();
        random
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One that is less than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % limit as u64).expect("it is less than a usize")
    }

    /// One that is less than `limit`, and more often small than large.
    pub fn small_below(&mut self, limit: usize) -> usize {
        let limit = limit >> self.below(limit.ilog2() as usize + 1);
        self.below(limit)
    }

    /// A message of any bytes but TAB, more often short than long.
    pub fn message(&mut self, longest: usize) -> Vec<u8> {
        let size = self.small_below(longest + 1);
        let bytes = (0..size.div_ceil(8)).flat_map(|_| self.number().to_le_bytes()).take(size);
        bytes.map(|byte| if byte == b'\t' { b' ' } else { byte }).collect()
    }
}
