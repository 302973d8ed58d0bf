//! [`Completion`]: wait until something is done.
//!
//! C header: `include/linux/completion.h`

use crate::sys::sync::atomic::{AtomicU32, Ordering};

use super::WaitQueue;

#[cfg(not(loom))]
use crate::error::Result;
#[cfg(not(loom))]
use crate::kthread::Stop;
#[cfg(not(loom))]
use crate::time::Delta;

/// `done` after [`Completion::complete_all`]: waits do not use it up.
const ALL: u32 = u32::MAX;

/// Something that gets done once (or several times), and threads that wait for it.
///
/// Each [`complete`](Self::complete) lets one wait end; [`complete_all`](Self::complete_all) lets all of them end,
/// also later ones. What the completing thread did before is visible to the thread whose wait ends.
///
/// ```
/// use kshim::kthread;
/// use kshim::sync::{Arc, Completion};
///
/// let done = Arc::new(Completion::new());
/// let other = Arc::clone(&done);
/// let t = kthread::run("worker", move |_| other.complete_all())?;
/// done.wait_for_completion();
/// # drop(t);
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "completion")]
#[derive(Debug)]
pub struct Completion {
    done: AtomicU32,
    wait: WaitQueue,
}

impl Default for Completion {
    fn default() -> Self {
        Self::new()
    }
}

impl Completion {
    /// Nothing is done yet. Mirrors `init_completion`.
    #[doc(alias = "init_completion")]
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            done: AtomicU32::new(0),
            wait: WaitQueue::new(),
        }
    }

    /// Nothing is done yet.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            done: AtomicU32::new(0),
            wait: WaitQueue::new(),
        }
    }

    /// Lets one wait end, now or later.
    ///
    /// Context: any thread, reactor-safe.
    pub fn complete(&self) {
        // Saturates below ALL: two thousand million unawaited completions are as good as that many plus one.
        let _ = self
            .done
            .fetch_update(Ordering::Release, Ordering::Relaxed, |n| {
                (n < ALL - 1).then(|| n + 1)
            });
        self.wait.wake_up();
    }

    /// Lets all waits end, now and later.
    ///
    /// Context: any thread, reactor-safe.
    pub fn complete_all(&self) {
        self.done.store(ALL, Ordering::Release);
        self.wait.wake_up_all();
    }

    /// Sleeps until done.
    ///
    /// Context: may sleep.
    pub fn wait_for_completion(&self) {
        self.wait
            .wait_event_exclusive(|| self.try_wait_for_completion());
    }

    /// Uses up one completion if there is one.
    ///
    /// Context: any thread, reactor-safe.
    #[must_use]
    pub fn try_wait_for_completion(&self) -> bool {
        self.done
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |n| match n {
                0 => None,
                ALL => Some(ALL),
                n => Some(n - 1),
            })
            .is_ok()
    }

    /// Whether a wait would end at once. Mirrors `completion_done`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "completion_done")]
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) != 0
    }

    /// Nothing is done again; nobody may be waiting. Mirrors `reinit_completion`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "reinit_completion")]
    pub fn reinit(&self) {
        self.done.store(0, Ordering::Relaxed);
    }
}

#[cfg(not(loom))]
impl Completion {
    /// Sleeps until done, no longer than `timeout`. Returns whether it is done.
    ///
    /// Context: may sleep.
    #[must_use]
    pub fn wait_for_completion_timeout(&self, timeout: Delta) -> bool {
        self.wait
            .wait_event_exclusive_timeout(|| self.try_wait_for_completion(), timeout)
    }

    /// Sleeps until done or the calling kthread is told to stop.
    ///
    /// Context: may sleep. Errors: `EINTR` when the thread shall stop.
    pub fn wait_for_completion_interruptible(&self, stop: &Stop) -> Result {
        self.wait
            .wait_event_interruptible(stop, || self.try_wait_for_completion())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn each_completion_ends_one_wait() {
        let c = Completion::new();
        assert!(!c.try_wait_for_completion() && !c.is_done());
        c.complete();
        c.complete();
        c.wait_for_completion();
        assert!(c.is_done());
        c.wait_for_completion();
        assert!(!c.wait_for_completion_timeout(Delta::from_millis(2)));
    }

    #[test]
    fn complete_all_is_for_ever_until_reinit() {
        let c = Completion::new();
        c.complete_all();
        c.complete();
        for _ in 0..3 {
            c.wait_for_completion();
        }
        c.reinit();
        assert!(!c.is_done());
    }

    #[test]
    fn as_many_waits_end_as_there_are_completions() {
        const N: usize = 2000;
        let c = Arc::new(Completion::new());
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let c = Arc::clone(&c);
                std::thread::spawn(move || {
                    for _ in 0..N {
                        c.wait_for_completion();
                    }
                })
            })
            .collect();
        for _ in 0..4 * N {
            c.complete();
        }
        for w in waiters {
            w.join().expect("thread ends");
        }
        assert!(!c.is_done());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;
    use crate::sys::sync::explore;

    #[test]
    fn loom_two_completions_end_two_waits() {
        loom::model(|| {
            let c = Arc::new(Completion::new());
            let other = Arc::clone(&c);
            let t = loom::thread::spawn(move || other.wait_for_completion());
            c.complete();
            c.complete();
            c.wait_for_completion();
            t.join().expect("thread ends");
        });
    }

    #[test]
    fn loom_two_waiters_two_completers() {
        explore(2, || {
            let c = Arc::new(Completion::new());
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let c = Arc::clone(&c);
                    loom::thread::spawn(move || c.wait_for_completion())
                })
                .collect();
            c.complete();
            c.complete();
            for w in waiters {
                w.join().expect("thread ends");
            }
        });
    }
}
