//! The word that a thread parks on, and what parking and waking do to it; the futex is the caller's, so that loom can bring
//! its own.
//!
//! `EMPTY` becomes `PARKED` before the sleep and `NOTIFIED` by a wake-up; a wake-up that comes first is remembered, once.

use super::sync::atomic::{AtomicU32, Ordering};

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
/// As a sleeper leaves it, one below `EMPTY`.
pub(super) const PARKED: u32 = u32::MAX;

/// Only its owner parks; anyone may wake it.
#[derive(Debug)]
pub(super) struct ParkWord(AtomicU32);

impl ParkWord {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self(AtomicU32::new(EMPTY))
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(EMPTY))
    }

    /// Sleeps until woken: `sleep` waits while the word is [`PARKED`], and may return early.
    pub(super) fn park(&self, mut sleep: impl FnMut(&AtomicU32)) {
        // EMPTY becomes PARKED, NOTIFIED becomes EMPTY.
        if self.0.fetch_sub(1, Ordering::Acquire) == NOTIFIED {
            return;
        }
        loop {
            sleep(&self.0);
            let woken =
                self.0
                    .compare_exchange(NOTIFIED, EMPTY, Ordering::Acquire, Ordering::Relaxed);
            if woken.is_ok() {
                return;
            }
        }
    }

    /// Sleeps once at most.
    pub(super) fn park_once(&self, sleep: impl FnOnce(&AtomicU32)) {
        if self.0.fetch_sub(1, Ordering::Acquire) == NOTIFIED {
            return;
        }
        sleep(&self.0);
        // Woken, timed out or neither: leave no sign of sleep behind.
        self.0.swap(EMPTY, Ordering::Acquire);
    }

    /// Has the owner woken by `wake` if it sleeps, or lets its next sleep return at once.
    pub(super) fn unpark(&self, wake: impl FnOnce(&AtomicU32)) {
        if self.0.swap(NOTIFIED, Ordering::Release) == PARKED {
            wake(&self.0);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sys::sync::{Arc, Condvar, Mutex, explore};
    use loom::thread;

    /// A futex of one word, and what the wakers have said.
    struct World {
        word: ParkWord,
        bed: Mutex<()>,
        woken: Condvar,
        said: AtomicU32,
    }

    impl World {
        fn new() -> Arc<World> {
            Arc::new(World {
                word: ParkWord::new(),
                bed: Mutex::new(()),
                woken: Condvar::new(),
                said: AtomicU32::new(0),
            })
        }

        /// `FUTEX_WAIT`: looks at the word under the lock that the waker takes.
        fn sleep(&self, word: &AtomicU32) {
            let mut bed = self.bed.lock();
            if word.load(Ordering::Relaxed) == PARKED {
                self.woken.wait(&mut bed);
            }
        }

        fn say(&self) {
            self.said.fetch_add(1, Ordering::Relaxed);
            self.word.unpark(|_| {
                drop(self.bed.lock());
                self.woken.notify_one();
            });
        }

        fn said(&self) -> u32 {
            self.said.load(Ordering::Relaxed)
        }
    }

    /// A lost wake-up would be a deadlock, which loom reports.
    #[test]
    fn loom_parker_hears_two_wakers() {
        explore(3, || {
            let w = World::new();
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let w = w.clone();
                    thread::spawn(move || w.say())
                })
                .collect();
            while w.said() < 2 {
                w.word.park(|word| w.sleep(word));
            }
            wakers.into_iter().for_each(|t| t.join().unwrap());
        });
    }

    /// A sleep that ends by time leaves the word as the next sleep needs it, whatever the waker is about to do.
    #[test]
    fn loom_parker_sleeps_again_after_a_timeout() {
        explore(3, || {
            let w = World::new();
            let waker = {
                let w = w.clone();
                thread::spawn(move || w.say())
            };
            // The time is over at once.
            w.word.park_once(|_| ());
            while w.said() < 1 {
                w.word.park(|word| w.sleep(word));
            }
            waker.join().unwrap();
        });
    }
}
