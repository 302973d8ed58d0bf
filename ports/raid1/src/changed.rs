//! Tells the threads of an array that its state has changed.

use crate::array::State;
use kshim::sync::{CondVar, SpinLockGuard};
use kshim::time::Delta;

/// Something in the state has changed: for both threads and for those who wait.
#[derive(Default)]
pub(crate) struct Changed {
    condvar: CondVar,
    #[cfg(test)]
    pub(crate) turns: turns::Turns,
}

impl Changed {
    pub(crate) fn notify_all(&self) {
        #[cfg(test)]
        self.turns.tell();
        self.condvar.notify_all();
    }

    /// A thread that sleeps goes on.
    #[cfg(test)]
    pub(crate) fn give_turn(&self, name: &str) {
        self.turns.wake(name);
        self.condvar.notify_all();
    }

    /// Waits until something may have changed, no longer than `limit`. Context: may sleep.
    pub(crate) fn wait(&self, st: &mut SpinLockGuard<'_, State>, limit: Option<Delta>) {
        #[cfg(test)]
        if self.turns.sleep() {
            while self.turns.is_asleep() {
                self.condvar.wait(st);
            }
            return;
        }
        match limit {
            Some(limit) => {
                self.condvar.wait_timeout(st, limit);
            }
            None => self.condvar.wait(st),
        }
    }
}

/// Who may go on is up to a test.
#[cfg(test)]
mod turns {
    use super::*;
    use kshim::sync::{CondVarTimeoutResult, SpinLock};
    use std::collections::BTreeMap;
    use std::thread;

    #[derive(Default)]
    pub(crate) struct Turns {
        inner: SpinLock<Inner>,
        /// A thread waits, for a change or for something that the test holds.
        stopped: CondVar,
    }

    #[derive(Default)]
    struct Inner {
        controlled: bool,
        /// How often somebody told of a change.
        told: usize,
        /// Who sleeps, by name, since so many times.
        asleep: BTreeMap<String, usize>,
    }

    fn me() -> String {
        thread::current().name().unwrap_or_default().to_owned()
    }

    impl Turns {
        pub(super) fn tell(&self) {
            self.inner.lock().told += 1;
            self.stopped.notify_all();
        }

        /// Whether this thread is to sleep until [`Turns::give`] names it.
        pub(super) fn sleep(&self) -> bool {
            let mut inner = self.inner.lock();
            let told = inner.told;
            if inner.controlled {
                inner.asleep.insert(me(), told);
                self.stopped.notify_all();
            }
            inner.controlled
        }

        pub(super) fn wake(&self, name: &str) {
            self.inner.lock().asleep.remove(name);
        }

        pub(super) fn is_asleep(&self) -> bool {
            self.inner.lock().asleep.contains_key(&me())
        }

        /// From now on, or no more.
        pub(crate) fn control(&self, on: bool) {
            let mut inner = self.inner.lock();
            inner.controlled = on;
            inner.asleep.clear();
        }

        /// Those who sleep; `true`: somebody has told them of a change.
        pub(crate) fn asleep(&self) -> Vec<(String, bool)> {
            let inner = self.inner.lock();
            let asleep = inner.asleep.iter();
            asleep.map(|(n, t)| (n.clone(), *t != inner.told)).collect()
        }

        /// A thread waits for something that the test holds.
        pub(crate) fn stop(&self) {
            self.stopped.notify_all();
        }

        /// Waits until another thread waits. Whether one does.
        pub(crate) fn wait_stopped(&self, st: &mut SpinLockGuard<'_, State>, limit: Delta) -> bool {
            self.stopped.wait_timeout(st, limit) == CondVarTimeoutResult::Woken
        }
    }
}
