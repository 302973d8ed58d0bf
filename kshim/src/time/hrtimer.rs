//! High-resolution timers: timers whose callback says whether, and when, it runs again.
//!
//! C header: `include/linux/hrtimer.h`

use std::fmt;

use super::timer::Timer;
use super::{Delta, Instant};
use crate::sys::sync::{Arc, Weak};

/// What the callback of an [`HrTimer`] wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(alias = "hrtimer_restart")]
pub enum HrTimerRestart {
    /// Nothing: somebody starts it again, or nobody.
    #[doc(alias = "HRTIMER_NORESTART")]
    NoRestart,
    /// Run again at that time, unless it was started anew meanwhile: then that counts.
    /// [`hrtimer_forward`](super::hrtimer_forward) computes the time for a periodic timer.
    #[doc(alias = "HRTIMER_RESTART")]
    Restart(Instant),
}

/// A timer for short times, as delays of a device that is simulated, and for periods.
///
/// The callback runs on the thread of all timers, under the rules of [`Timer`], and never early; how late it is depends on
/// the host (its timer slack is 50 us unless somebody asked for less). Dropping the timer cancels it and waits for a
/// running callback, unless the callback itself drops it.
///
/// Rust-for-Linux embeds the timer in the structure that it serves and hands that to the callback; here the closure
/// owns or borrows what it needs.
///
/// ```
/// use kshim::sync::{Arc, Completion};
/// use kshim::sync::atomic::{AtomicU32, Ordering};
/// use kshim::time::{Delta, HrTimer, HrTimerRestart, Instant, hrtimer_forward};
///
/// let (ticks, third) = (Arc::new(AtomicU32::new(0)), Arc::new(Completion::new()));
/// let (n, done) = (Arc::clone(&ticks), Arc::clone(&third));
/// let period = Delta::from_micros(200);
/// let timer = HrTimer::new(move |expired| {
///     if n.fetch_add(1, Ordering::SeqCst) == 2 {
///         done.complete_all();
///         return HrTimerRestart::NoRestart;
///     }
///     HrTimerRestart::Restart(hrtimer_forward(expired, Instant::now(), period).0)
/// });
/// timer.start_after(period);
/// third.wait_for_completion();
/// timer.cancel();
/// assert_eq!(ticks.load(Ordering::SeqCst), 3);
/// ```
#[doc(alias = "hrtimer")]
pub struct HrTimer {
    timer: Arc<Timer>,
}

impl HrTimer {
    /// A timer that is not started. The callback is told when it was due.
    ///
    /// Context: any.
    #[doc(alias = "hrtimer_setup")]
    #[doc(alias = "hrtimer_init")]
    pub fn new(f: impl Fn(Instant) -> HrTimerRestart + Send + Sync + 'static) -> HrTimer {
        let timer = Arc::new_cyclic(|weak: &Weak<Timer>| {
            let weak = Weak::clone(weak);
            Timer::with_due(move |expired| {
                if let HrTimerRestart::Restart(at) = f(expired)
                    && let Some(timer) = weak.upgrade()
                {
                    timer.arm_if_idle(at);
                }
            })
        });
        HrTimer { timer }
    }

    /// Starts it, or moves it when it is started. Whether it was.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "hrtimer_start")]
    pub fn start(&self, at: Instant) -> bool {
        self.timer.mod_timer(at)
    }

    /// [`start`](Self::start) relative to now.
    #[doc(alias = "HRTIMER_MODE_REL")]
    pub fn start_after(&self, delta: Delta) -> bool {
        self.start(Instant::now() + delta)
    }

    /// Stops it and waits for a running callback. Whether it was started. Hold no lock that the callback takes.
    ///
    /// Context: may sleep.
    ///
    /// # Panics
    ///
    /// When called by the timer's own callback, which returns [`HrTimerRestart::NoRestart`] instead.
    #[doc(alias = "hrtimer_cancel")]
    pub fn cancel(&self) -> bool {
        self.timer.timer_delete_sync()
    }

    /// Stops it unless its callback runs: then `None`. Otherwise whether it was started.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "hrtimer_try_to_cancel")]
    pub fn try_to_cancel(&self) -> Option<bool> {
        self.timer.try_to_delete()
    }

    /// Whether it is started.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "hrtimer_is_queued")]
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.timer.timer_pending()
    }
}

impl Drop for HrTimer {
    fn drop(&mut self) {
        // Also for a callback that holds a reference of its own for a moment.
        self.timer.delete_for_drop();
    }
}

impl fmt::Debug for HrTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HrTimer")
            .field("queued", &self.is_queued())
            .finish_non_exhaustive()
    }
}

/// The first time after `now` that is a whole number of `interval`s after `expired`, and how many that is. An interval
/// below a nanosecond counts as one.
///
/// ```
/// use kshim::time::{Delta, Instant, hrtimer_forward};
///
/// let due = Instant::from_nanos(1000);
/// let (next, periods) = hrtimer_forward(due, Instant::from_nanos(1250), Delta::from_nanos(100));
/// assert_eq!((next, periods), (Instant::from_nanos(1300), 3));
/// ```
///
/// Context: any.
#[doc(alias = "hrtimer_forward")]
#[doc(alias = "hrtimer_forward_now")]
#[must_use]
pub fn forward(expired: Instant, now: Instant, interval: Delta) -> (Instant, u64) {
    let late = (now - expired).as_nanos();
    if late < 0 {
        return (expired, 0);
    }
    let step = interval.as_nanos().max(1);
    let periods = late / step + 1;
    let ahead = Delta::from_nanos(periods.saturating_mul(step));
    (expired + ahead, periods.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Completion;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn forward_goes_past_now_by_whole_periods() {
        let at = Instant::from_nanos;
        let step = Delta::from_nanos(10);
        assert_eq!(forward(at(100), at(99), step), (at(100), 0));
        assert_eq!(forward(at(100), at(100), step), (at(110), 1));
        assert_eq!(forward(at(100), at(125), step), (at(130), 3));
        assert_eq!(forward(at(0), at(5), Delta::ZERO), (at(6), 6));
        let far = forward(at(0), at(i64::MAX), Delta::from_nanos(2));
        assert!(far.0 <= Instant::MAX && far.1 > 0);
    }

    #[test]
    fn a_cancelled_timer_runs_no_more_though_its_callback_restarts_it() {
        let runs = Arc::new(AtomicU32::new(0));
        let first = Arc::new(Completion::new());
        let (n, done) = (Arc::clone(&runs), Arc::clone(&first));
        let timer = HrTimer::new(move |_| {
            n.fetch_add(1, Ordering::SeqCst);
            done.complete_all();
            HrTimerRestart::Restart(Instant::now())
        });
        assert!(!timer.start(Instant::now()));
        first.wait_for_completion();
        timer.cancel();
        let seen = runs.load(Ordering::SeqCst);
        assert!(!timer.is_queued() && seen > 0);
        assert_eq!(timer.try_to_cancel(), Some(false));
        crate::time::delay::msleep(2);
        assert_eq!(runs.load(Ordering::SeqCst), seen);
    }

    #[test]
    fn a_start_during_the_callback_counts_more_than_what_it_returns() {
        let (started, twice) = (Arc::new(Completion::new()), Arc::new(Completion::new()));
        let (go, done) = (Arc::clone(&started), Arc::clone(&twice));
        let (n, inside) = (AtomicU32::new(0), Arc::new(Completion::new()));
        let running = Arc::clone(&inside);
        let timer = HrTimer::new(move |_| {
            if n.fetch_add(1, Ordering::SeqCst) == 1 {
                done.complete_all();
                return HrTimerRestart::NoRestart;
            }
            running.complete_all();
            go.wait_for_completion();
            HrTimerRestart::Restart(Instant::now() + Delta::from_secs(3600))
        });
        timer.start(Instant::now());
        inside.wait_for_completion();
        assert_eq!(timer.try_to_cancel(), None);
        timer.start(Instant::now());
        started.complete_all();
        assert!(twice.wait_for_completion_timeout(Delta::from_secs(60)));
    }

    #[test]
    fn a_timer_does_not_run_before_its_time() {
        let fired = Arc::new(Completion::new());
        let done = Arc::clone(&fired);
        let due = Instant::now() + Delta::from_millis(2);
        let timer = HrTimer::new(move |expired| {
            assert!(Instant::now() >= expired);
            done.complete_all();
            HrTimerRestart::NoRestart
        });
        timer.start(due);
        fired.wait_for_completion();
        assert!(Instant::now() >= due);
        timer.start(due + Delta::from_secs(3600));
        assert!(timer.is_queued() && timer.cancel());
    }
}
