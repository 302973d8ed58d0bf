//! Time: instants and spans of the monotonic clock, jiffies, delays and timers.
//!
//! All time of the workspace comes from here, and from the host through [`crate::sys`] only.
//!
//! C header: `include/linux/ktime.h`, `include/linux/jiffies.h`, `include/linux/delay.h`, `include/linux/timer.h`

use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub};
use std::time::Duration;

use crate::sys;

pub mod delay;
mod hrtimer;
mod jiffies;
mod timer;

pub use hrtimer::{HrTimer, HrTimerRestart, forward as hrtimer_forward};
pub use jiffies::{HZ, Jiffies, Msecs, msecs_to_jiffies};
pub(crate) use timer::{OneShot, TimerId, arm, disarm};
pub use timer::{Timer, start};

/// Nanoseconds in a microsecond.
pub const NSEC_PER_USEC: i64 = 1_000;
/// Nanoseconds in a millisecond.
pub const NSEC_PER_MSEC: i64 = 1_000_000;
/// Nanoseconds in a second.
pub const NSEC_PER_SEC: i64 = 1_000_000_000;

/// A point of the monotonic clock.
///
/// ```
/// use kshim::time::{Delta, Instant};
///
/// let start = Instant::now();
/// let end = start + Delta::from_millis(5);
/// assert!(end > start);
/// assert_eq!((end - start).as_millis(), 5);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    ns: i64,
}

impl Instant {
    /// Later than any moment that comes.
    pub const MAX: Self = Self { ns: i64::MAX };

    /// The time now. Costs some 20 ns. Context: any thread, reactor-safe. Mirrors `ktime_get()`.
    #[doc(alias = "ktime_get")]
    #[inline]
    #[must_use]
    pub fn now() -> Self {
        Self {
            ns: sys::time::monotonic_ns(),
        }
    }

    /// How long ago this was; negative for the future.
    #[inline]
    #[must_use]
    pub fn elapsed(&self) -> Delta {
        Self::now() - *self
    }

    /// Nanoseconds since the clock's start. Mirrors `ktime_to_ns()`.
    #[doc(alias = "ktime_to_ns")]
    #[must_use]
    pub const fn as_nanos(self) -> i64 {
        self.ns
    }

    /// The point that many nanoseconds after the clock's start.
    #[must_use]
    pub const fn from_nanos(ns: i64) -> Self {
        Self { ns }
    }
}

impl Add<Delta> for Instant {
    type Output = Self;

    #[inline]
    fn add(self, d: Delta) -> Self {
        Self {
            ns: self.ns.saturating_add(d.ns),
        }
    }
}

impl AddAssign<Delta> for Instant {
    fn add_assign(&mut self, d: Delta) {
        *self = *self + d;
    }
}

impl Sub<Delta> for Instant {
    type Output = Self;

    #[inline]
    fn sub(self, d: Delta) -> Self {
        Self {
            ns: self.ns.saturating_sub(d.ns),
        }
    }
}

impl Sub for Instant {
    type Output = Delta;

    #[inline]
    fn sub(self, earlier: Self) -> Delta {
        Delta {
            ns: self.ns.saturating_sub(earlier.ns),
        }
    }
}

/// A span of time in nanoseconds, possibly negative. Conversions saturate.
///
/// ```
/// use kshim::time::Delta;
///
/// assert_eq!(Delta::from_millis(2) + Delta::from_micros(500), Delta::from_micros(2500));
/// assert_eq!(Delta::from_micros(1500).as_millis(), 1);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delta {
    ns: i64,
}

impl Delta {
    /// No time.
    pub const ZERO: Self = Self { ns: 0 };
    /// Longer than anybody waits.
    pub const MAX: Self = Self { ns: i64::MAX };

    /// That many nanoseconds.
    #[must_use]
    pub const fn from_nanos(ns: i64) -> Self {
        Self { ns }
    }

    /// That many microseconds.
    #[must_use]
    pub const fn from_micros(us: i64) -> Self {
        Self {
            ns: us.saturating_mul(NSEC_PER_USEC),
        }
    }

    /// That many milliseconds.
    #[must_use]
    pub const fn from_millis(ms: i64) -> Self {
        Self {
            ns: ms.saturating_mul(NSEC_PER_MSEC),
        }
    }

    /// That many seconds.
    #[must_use]
    pub const fn from_secs(s: i64) -> Self {
        Self {
            ns: s.saturating_mul(NSEC_PER_SEC),
        }
    }

    /// Nanoseconds.
    #[must_use]
    pub const fn as_nanos(self) -> i64 {
        self.ns
    }

    /// Whole microseconds, cut towards zero.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.ns / NSEC_PER_USEC
    }

    /// Microseconds, rounded up.
    #[must_use]
    pub const fn as_micros_ceil(self) -> i64 {
        self.ns.saturating_add(NSEC_PER_USEC - 1) / NSEC_PER_USEC
    }

    /// Whole milliseconds, cut towards zero.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.ns / NSEC_PER_MSEC
    }

    /// Whole seconds, cut towards zero.
    #[must_use]
    pub const fn as_secs(self) -> i64 {
        self.ns / NSEC_PER_SEC
    }

    /// Whether the span is zero.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.ns == 0
    }

    /// Whether the span is below zero.
    #[must_use]
    pub const fn is_negative(self) -> bool {
        self.ns < 0
    }

    /// As the standard library's type; negative spans become zero.
    #[must_use]
    pub const fn to_duration(self) -> Duration {
        Duration::from_nanos(if self.ns < 0 {
            0
        } else {
            self.ns.unsigned_abs()
        })
    }
}

impl From<Duration> for Delta {
    fn from(d: Duration) -> Self {
        Self {
            ns: i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        }
    }
}

impl Add for Delta {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ns: self.ns.saturating_add(other.ns),
        }
    }
}

impl AddAssign for Delta {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Delta {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            ns: self.ns.saturating_sub(other.ns),
        }
    }
}

impl Neg for Delta {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            ns: self.ns.saturating_neg(),
        }
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ns.unsigned_abs() < NSEC_PER_MSEC.unsigned_abs() {
            write!(f, "{} us", self.as_micros())
        } else {
            write!(f, "{} ms", self.as_millis())
        }
    }
}

/// Seconds since 1970-01-01 00:00:00 UTC. Mirrors `ktime_get_real_seconds()`.
///
/// Context: any thread, reactor-safe.
#[must_use]
pub fn ktime_get_real_seconds() -> i64 {
    sys::time::realtime_ns() / NSEC_PER_SEC
}

/// Nanoseconds since 1970-01-01 00:00:00 UTC. Mirrors `ktime_get_real_ns()`.
///
/// Context: any thread, reactor-safe.
#[must_use]
pub fn ktime_get_real_ns() -> i64 {
    sys::time::realtime_ns()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_saturate_and_round() {
        assert_eq!(Delta::from_secs(i64::MAX), Delta::MAX);
        assert_eq!(Delta::from_nanos(1).as_micros_ceil(), 1);
        assert_eq!(Delta::from_nanos(-5).to_duration(), Duration::ZERO);
        assert_eq!(Delta::from(Duration::MAX), Delta::MAX);
        assert_eq!(-Delta::from_millis(1), Delta::from_micros(-1000));
        assert_eq!(Instant::now() + Delta::MAX, Instant::MAX);
        assert!((Delta::from_millis(1) - Delta::from_millis(2)).is_negative());
        assert_eq!(Delta::from_millis(12).to_string(), "12 ms");
    }

    #[test]
    fn instants_are_ordered() {
        let a = Instant::now();
        let b = Instant::now();
        assert!(b >= a);
        assert!(a.elapsed() >= Delta::ZERO);
        assert_eq!(Instant::from_nanos(7).as_nanos(), 7);
    }
}
