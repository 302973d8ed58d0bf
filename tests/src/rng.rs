//! Repeatable pseudo-random numbers and data patterns.

/// SplitMix64: small, repeatable, good enough to choose moments and offsets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose sequence is decided by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed for a test: `SCST_SEED` if set, else `default`. Printed, so that a failure can be repeated.
    pub fn from_env(default: u64) -> Self {
        let seed = crate::tools::env_number("SCST_SEED", default);
        println!("SCST_SEED={seed}");
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 when `bound` is 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            0
        } else {
            self.next_u64() % bound
        }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// `len` pseudo-random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut v = Vec::with_capacity(len + 8);
        while v.len() < len {
            v.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        v.truncate(len);
        v
    }
}

/// Data that says where it belongs: each 512-byte block carries its LBA, `generation` and a hash of both, so that a
/// block at the wrong place, a torn or an old one is seen.
pub fn stamped_blocks(lba: u64, count: u64, generation: u64) -> Vec<u8> {
    let mut v = Vec::new();
    for lba in lba..lba + count {
        let mut rng = Rng::new(lba ^ generation.rotate_left(32));
        v.extend_from_slice(&lba.to_be_bytes());
        v.extend_from_slice(&generation.to_be_bytes());
        v.extend_from_slice(&rng.bytes(512 - 16));
    }
    v
}
