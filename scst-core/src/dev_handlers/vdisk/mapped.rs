//! When a write to a file is a copy into a mapping of it.
//!
//! Such a copy is several times cheaper than a call, but dirties all of the folio that its page belongs to, up to some MiB where the
//! page cache is made of large ones: a call marks the blocks that it writes, a fault cannot. With 8 random writes of 4 KiB between two
//! flushes the host was seen to write 250 times as much as it was given, and flushes took twice as long. So it is for files
//! that are written so much that all of that becomes dirty anyway, and that nobody flushes.

use kshim::time::{Delta, Instant};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Bytes a second from which on it is worth it.
const MIN_RATE: u64 = 32 << 20;
/// The rate is looked at so often.
const PERIOD_NS: i64 = 1_000_000_000;
/// After a flush it is not done for so long.
const QUIET: Delta = Delta::from_secs(60);

/// One per file. All methods: any context.
#[derive(Debug, Default)]
pub(super) struct MapGate {
    /// Monotonic time in nanoseconds from which on `bytes` are counted.
    since: AtomicI64,
    bytes: AtomicU64,
    /// The rate was high enough.
    dense: AtomicBool,
    /// When the last flush was; 0: there was none.
    flushed: AtomicI64,
}

impl MapGate {
    /// Counts a write; whether it shall be a copy into a mapping.
    #[inline]
    pub(super) fn wants(&self, now: Instant, len: usize) -> bool {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        let bytes = self
            .bytes
            .fetch_add(len, Ordering::Relaxed)
            .saturating_add(len);
        let now = now.as_nanos();
        let took = now.saturating_sub(self.since.load(Ordering::Relaxed));
        if took >= PERIOD_NS {
            self.look(now, took, bytes);
        }
        self.dense.load(Ordering::Relaxed) && !self.flushed_lately(now)
    }

    #[cold]
    fn look(&self, now: i64, took: i64, bytes: u64) {
        self.since.store(now, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        let needed = i128::from(MIN_RATE).saturating_mul(i128::from(took));
        let had = i128::from(bytes).saturating_mul(i128::from(PERIOD_NS));
        self.dense.store(had >= needed, Ordering::Relaxed);
    }

    #[inline]
    fn flushed_lately(&self, now: i64) -> bool {
        let at = self.flushed.load(Ordering::Relaxed);
        at != 0 && now.saturating_sub(at) < QUIET.as_nanos()
    }

    /// Somebody flushes the file, or a part of it.
    pub(super) fn flush(&self) {
        let now = Instant::now().as_nanos().max(1);
        self.flushed.store(now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes of 64 KiB, so many a second, for so long. How many of them shall be copies in the last second.
    fn writes(g: &MapGate, start: Instant, secs: i64, rate: i64) -> i64 {
        let mut wanted = 0;
        for s in 0..secs {
            wanted = 0;
            for i in 0..rate {
                let at = Delta::from_nanos(s * PERIOD_NS + i * PERIOD_NS / rate);
                wanted += i64::from(g.wants(start + at, 64 << 10));
            }
        }
        wanted
    }

    #[test]
    fn only_what_is_written_much() {
        let g = MapGate::default();
        let mut start = Instant::now();
        assert_eq!(writes(&g, start, 3, 400), 0, "25 MiB/s");
        start += Delta::from_secs(3);
        assert!(writes(&g, start, 3, 600) >= 599, "37 MiB/s");
        // After a pause the rate is that of the pause.
        start += Delta::from_secs(13);
        assert_eq!(writes(&g, start, 1, 10), 0);
    }

    #[test]
    fn nothing_that_is_flushed() {
        let g = MapGate::default();
        let start = Instant::now();
        assert!(writes(&g, start, 3, 1000) > 0);
        g.flush();
        assert_eq!(writes(&g, start + Delta::from_secs(3), 3, 1000), 0);
        assert!(writes(&g, start + Delta::from_secs(70), 3, 1000) > 0);
    }
}
