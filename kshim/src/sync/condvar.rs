//! [`CondVar`]: wait for a change of what a lock protects.
//!
//! C header: `include/linux/wait.h`

use super::lock::{Backend, Guard};
use crate::sys;
use crate::time::{Delta, Instant};

/// Whether a timed wait ended by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CondVarTimeoutResult {
    /// Somebody notified, or the wait ended for no reason: look at the condition.
    Woken,
    /// The time was over first.
    Timeout,
}

/// A condition variable for [`Mutex`](super::Mutex) and [`SpinLock`](super::SpinLock). All its waiters must use the
/// same lock. Waits may end for no reason: wait in a loop that tests the condition.
///
/// ```
/// use kshim::sync::{CondVar, Mutex};
/// use kshim::time::Delta;
///
/// let ready = Mutex::new(false);
/// let changed = CondVar::new();
/// let mut held = ready.lock();
/// while !*held {
///     changed.wait_timeout(&mut held, Delta::from_millis(1));
///     *held = true; // another thread's job, usually
/// }
/// ```
#[derive(Debug, Default)]
pub struct CondVar(sys::sync::Condvar);

impl CondVar {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self(sys::sync::Condvar::new())
    }

    /// Releases the lock, sleeps until notified, takes the lock again.
    ///
    /// Context: may sleep.
    pub fn wait<T: ?Sized, B: Backend>(&self, guard: &mut Guard<'_, T, B>) {
        crate::might_sleep!();
        self.0.wait(guard.raw());
    }

    /// Like [`wait`](Self::wait), no longer than `timeout`.
    ///
    /// Context: may sleep.
    pub fn wait_timeout<T: ?Sized, B: Backend>(
        &self,
        guard: &mut Guard<'_, T, B>,
        timeout: Delta,
    ) -> CondVarTimeoutResult {
        crate::might_sleep!();
        if self
            .0
            .wait_for(guard.raw(), timeout.to_duration())
            .timed_out()
        {
            CondVarTimeoutResult::Timeout
        } else {
            CondVarTimeoutResult::Woken
        }
    }

    /// Like [`wait`](Self::wait), until `deadline` at the latest.
    ///
    /// Context: may sleep.
    pub fn wait_until<T: ?Sized, B: Backend>(
        &self,
        guard: &mut Guard<'_, T, B>,
        deadline: Instant,
    ) -> CondVarTimeoutResult {
        self.wait_timeout(guard, deadline - Instant::now())
    }

    /// Wakes one waiter. Context: any thread, reactor-safe.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiters. Context: any thread, reactor-safe.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sync::SpinLock;

    #[test]
    fn waits_for_a_change_under_a_spin_lock() {
        let pair = Arc::new((SpinLock::new(0), CondVar::new()));
        let other = Arc::clone(&pair);
        let t = std::thread::spawn(move || {
            let mut n = other.0.lock();
            while *n != 3 {
                other.1.wait(&mut n);
            }
        });
        for _ in 0..3 {
            *pair.0.lock() += 1;
            pair.1.notify_all();
        }
        t.join().expect("thread ends");
    }

    #[test]
    fn a_timed_wait_ends() {
        let lock = SpinLock::new(());
        let cv = CondVar::new();
        let before = Instant::now();
        let mut held = lock.lock();
        let end = before + Delta::from_millis(3);
        while cv.wait_until(&mut held, end) == CondVarTimeoutResult::Woken {}
        assert!(before.elapsed() >= Delta::from_millis(3));
    }
}
