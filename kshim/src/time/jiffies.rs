//! Jiffies: the coarse ticks in which kernel code counts its timeouts.
//!
//! C header: `include/linux/jiffies.h`

use std::ops::{Add, Sub};

use super::{Delta, Instant, NSEC_PER_SEC};

/// Ticks per second.
pub const HZ: u64 = 1000;

const NSEC_PER_TICK: i64 = NSEC_PER_SEC / 1000;
crate::build_bug_on!(HZ != 1000);

/// Milliseconds, in the arguments of [`msecs_to_jiffies`].
pub type Msecs = u32;

/// A tick count: a point in time (`jiffies`) or a span. Comparisons of points wrap as in the kernel, so there is
/// no `Ord`: use [`after`](Self::after) and friends.
///
/// ```
/// use kshim::time::{HZ, Jiffies};
///
/// let deadline = Jiffies::now() + Jiffies(2 * HZ);
/// assert!(deadline.after(Jiffies::now()));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Jiffies(pub u64);

impl Jiffies {
    /// The current tick. Context: any thread, reactor-safe. Mirrors `jiffies`.
    #[doc(alias = "jiffies")]
    #[must_use]
    pub fn now() -> Self {
        Self::at(Instant::now())
    }

    /// The tick that contains `at`.
    #[must_use]
    pub fn at(at: Instant) -> Self {
        Self((at.as_nanos().max(0) / NSEC_PER_TICK).unsigned_abs())
    }

    /// The start of this tick.
    #[must_use]
    pub fn to_instant(self) -> Instant {
        Instant::from_nanos(
            i64::try_from(self.0)
                .unwrap_or(i64::MAX)
                .saturating_mul(NSEC_PER_TICK),
        )
    }

    /// This many ticks as a span.
    #[must_use]
    pub fn to_delta(self) -> Delta {
        self.to_instant() - Instant::from_nanos(0)
    }

    /// `jiffies_to_msecs`.
    #[doc(alias = "jiffies_to_msecs")]
    #[must_use]
    pub const fn to_msecs(self) -> u64 {
        self.0.saturating_mul(1000) / HZ
    }

    /// `time_after(self, other)`.
    #[doc(alias = "time_after")]
    #[must_use]
    pub const fn after(self, other: Self) -> bool {
        // The upper half of the circle is the past.
        other.0.wrapping_sub(self.0) > u64::MAX / 2
    }

    /// `time_after_eq(self, other)`.
    #[doc(alias = "time_after_eq")]
    #[must_use]
    pub const fn after_eq(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) <= u64::MAX / 2
    }

    /// `time_before(self, other)`.
    #[doc(alias = "time_before")]
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        other.after(self)
    }

    /// `time_before_eq(self, other)`.
    #[doc(alias = "time_before_eq")]
    #[must_use]
    pub const fn before_eq(self, other: Self) -> bool {
        other.after_eq(self)
    }
}

impl Add for Jiffies {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl Sub for Jiffies {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

/// Ticks in `ms` milliseconds, rounded up.
///
/// ```
/// use kshim::time::{Jiffies, msecs_to_jiffies};
///
/// let end = Jiffies::now() + msecs_to_jiffies(60_000);
/// assert!(Jiffies::now().before(end));
/// ```
#[must_use]
pub fn msecs_to_jiffies(ms: Msecs) -> Jiffies {
    Jiffies((u64::from(ms) * HZ).div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_wrap() {
        let end = Jiffies(u64::MAX - 1);
        let wrapped = end + Jiffies(5);
        assert!(wrapped.after(end) && end.before(wrapped));
        assert!(end.after_eq(end) && end.before_eq(end) && !end.after(end));
        assert_eq!(wrapped - end, Jiffies(5));
    }

    #[test]
    fn units_convert() {
        assert_eq!(msecs_to_jiffies(1500).to_msecs(), 1500);
        assert_eq!(Jiffies(HZ).to_delta(), Delta::from_secs(1));
        let now = Instant::now();
        let tick = Jiffies::at(now).to_instant();
        assert!(tick <= now && now - tick < Delta::from_millis(1));
    }
}
