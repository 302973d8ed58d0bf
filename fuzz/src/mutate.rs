//! Seeded mutations, for runs without a fuzzer that sees coverage.

/// Splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose sequence is decided by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(self.next_u64().checked_rem(bound).unwrap_or(0)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next_u64().to_le_bytes()[0]
    }
}

/// Longest input that mutations make.
const MAX_LEN: usize = 64 << 10;
/// Bytes that are worth more than others.
const SPECIAL: [u8; 12] = [0, 1, 2, 3, 4, 0x20, 0x40, 0x7f, 0x80, 0x81, 0xfe, 0xff];

/// Changes `input` in a few random ways; `other` gives pieces.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..=rng.below(5) {
        step(&mut out, other, rng);
    }
    out.truncate(MAX_LEN);
    out
}

fn step(out: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.below(out.len());
    match rng.below(9) {
        0 | 1 => {
            if let Some(byte) = out.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
        2 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = rng.byte();
            }
        }
        3 | 4 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = SPECIAL[rng.below(SPECIAL.len())];
            }
        }
        5 => {
            let end = at.saturating_add(rng.below(64)).min(out.len());
            out.drain(at..end);
        }
        6 => {
            let piece: Vec<u8> = (0..rng.below(64)).map(|_| rng.byte()).collect();
            out.splice(at..at, piece);
        }
        7 => {
            // A PDU's header, or more, once again.
            let end = at.saturating_add(48 * (1 + rng.below(4))).min(out.len());
            let piece = out.get(at..end).unwrap_or_default().to_vec();
            out.splice(end..end, piece);
        }
        _ => {
            let from = rng.below(other.len());
            let end = from.saturating_add(rng.below(512)).min(other.len());
            let piece = other.get(from..end).unwrap_or_default().to_vec();
            out.splice(at..at, piece);
        }
    }
}
