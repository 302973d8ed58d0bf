//! Latencies in 16 buckets per power of two: at most 6 % wrong, no allocation per entry.

const SUB: usize = 16;

/// A histogram of nanoseconds.
#[derive(Debug)]
pub struct Hist {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Hist {
    fn default() -> Self {
        Self {
            counts: vec![0; 64 * SUB],
            total: 0,
        }
    }
}

impl Hist {
    fn bucket(ns: u64) -> usize {
        if ns < SUB as u64 {
            return ns as usize;
        }
        let shift = 63 - ns.leading_zeros() as usize - 4;
        (shift + 1) * SUB + ((ns >> shift) as usize & (SUB - 1))
    }

    fn floor_of(bucket: usize) -> u64 {
        if bucket < SUB {
            return bucket as u64;
        }
        let shift = bucket / SUB - 1;
        ((SUB + bucket % SUB) as u64) << shift
    }

    /// Adds one.
    #[inline]
    pub fn add(&mut self, ns: u64) {
        self.counts[Self::bucket(ns)] += 1;
        self.total += 1;
    }

    /// The value that a share `p` (0 to 1) of all entries does not exceed, in microseconds.
    pub fn percentile_us(&self, p: f64) -> f64 {
        let want = p * self.total as f64;
        let mut seen = 0;
        for (n, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen as f64 >= want {
                return Self::floor_of(n) as f64 / 1000.0;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_near_and_in_order() {
        let mut last = 0;
        for ns in [0, 1, 15, 16, 17, 31, 32, 100, 999, 1_000_000, u64::MAX / 2] {
            let b = Hist::bucket(ns);
            assert!(b >= last, "{ns}");
            last = b;
            let floor = Hist::floor_of(b);
            assert!(floor <= ns && ns - floor <= ns / 16, "{ns} {floor}");
        }
    }

    #[test]
    fn percentiles() {
        let mut h = Hist::default();
        for n in 1..=100 {
            h.add(n * 1000);
        }
        assert!((47.0..51.0).contains(&h.percentile_us(0.5)));
        assert!((93.0..100.0).contains(&h.percentile_us(0.99)));
    }
}
