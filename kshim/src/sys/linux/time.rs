//! Clocks and sleeping of the host.

use std::time::Duration;

use rustix::thread::Timespec;
use rustix::time::{ClockId, clock_gettime};

fn nanos(ts: Timespec) -> i64 {
    ts.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(ts.tv_nsec)
}

/// Nanoseconds of the monotonic clock.
#[inline]
#[must_use]
pub fn monotonic_ns() -> i64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds since 1970-01-01 00:00:00 UTC.
#[inline]
#[must_use]
pub fn realtime_ns() -> i64 {
    nanos(clock_gettime(ClockId::Realtime))
}

/// Sleeps at least this long.
///
/// Context: may sleep.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_move_forward() {
        let before = monotonic_ns();
        sleep(Duration::from_millis(2));
        assert!(monotonic_ns() - before >= 2_000_000);
        // 2020-01-01: a host whose clock is older has worse problems.
        assert!(realtime_ns() > 1_577_836_800_000_000_000);
    }
}
