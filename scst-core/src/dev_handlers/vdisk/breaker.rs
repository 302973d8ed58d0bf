//! The latency breaker: inline I/O of a device that turned out to be slow goes to threads for a while.

use kshim::time::{Delta, Instant};
use std::sync::atomic::{AtomicI64, Ordering};

/// An inline call that took longer than this opens the breaker.
pub(super) const BREAKER_MS: i64 = 4;
/// How long it stays open, in times of what the call took: a device that stalls now and then (a journal commit) is soon
/// back, and one that goes on stalling holds a reactor up for no more than this share of the time.
const OPEN_TIMES: i64 = 4;
/// The longest that one call keeps it open.
const OPEN_MAX_MS: i64 = 500;

/// One per device. All methods: any context.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Monotonic time in nanoseconds until which it is open; 0 when closed.
    until: AtomicI64,
}

impl Breaker {
    /// Whether inline calls are out of favour.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return false;
        }
        if Instant::now().as_nanos() < until {
            return true;
        }
        // Somebody may have opened it again meanwhile: that stays.
        let _ = self
            .until
            .compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        false
    }

    /// Runs an inline call, which gets the time, and opens the breaker when it was slow.
    #[inline]
    pub(super) fn watch<R>(&self, call: impl FnOnce(Instant) -> R) -> R {
        let start = Instant::now();
        let r = call(start);
        self.took(start, Instant::now());
        r
    }

    #[inline]
    fn took(&self, start: Instant, end: Instant) {
        let ns = end.as_nanos().saturating_sub(start.as_nanos());
        if ns > Delta::from_millis(BREAKER_MS).as_nanos() {
            let open = ns
                .saturating_mul(OPEN_TIMES)
                .min(Delta::from_millis(OPEN_MAX_MS).as_nanos());
            let until = end.as_nanos().saturating_add(open);
            self.until.store(until.max(1), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_call_opens_it() {
        let b = Breaker::default();
        assert!(!b.is_open());
        assert_eq!(b.watch(|_| 7), 7);
        let now = Instant::now();
        b.took(now, now);
        assert!(!b.is_open());
        let earlier = Instant::from_nanos(now.as_nanos() - (BREAKER_MS + 1) * 1_000_000);
        b.took(earlier, now);
        assert!(b.is_open());
    }

    #[test]
    fn it_stays_open_as_long_as_the_stall_deserves() {
        const MS: i64 = 1_000_000;
        let b = Breaker::default();
        let start = Instant::from_nanos(1000 * MS);
        b.took(start, Instant::from_nanos(1005 * MS));
        assert_eq!(b.until.load(Ordering::Relaxed), 1025 * MS);
        b.took(start, Instant::from_nanos(9000 * MS));
        assert_eq!(b.until.load(Ordering::Relaxed), (9000 + OPEN_MAX_MS) * MS);
    }

    #[test]
    fn it_closes_by_itself() {
        let b = Breaker::default();
        let long_ago = Instant::from_nanos(Instant::now().as_nanos() - 10_000_000_000);
        let slow = Instant::from_nanos(long_ago.as_nanos() - (BREAKER_MS + 1) * 1_000_000);
        b.took(slow, long_ago);
        assert!(!b.is_open());
        assert_eq!(b.until.load(Ordering::Relaxed), 0);
    }
}
