//! Sleeping for a time.
//!
//! C header: `include/linux/delay.h`

use super::Delta;
use crate::sys;

/// Sleeps at least that long. Mirrors `fsleep()`.
///
/// Context: may sleep.
pub fn fsleep(delta: Delta) {
    crate::might_sleep!();
    sys::time::sleep(delta.to_duration());
}

/// Sleeps at least that many milliseconds. Mirrors `msleep()`.
///
/// Context: may sleep.
///
/// ```
/// kshim::time::delay::msleep(1);
/// ```
pub fn msleep(ms: u32) {
    fsleep(Delta::from_millis(i64::from(ms)));
}
