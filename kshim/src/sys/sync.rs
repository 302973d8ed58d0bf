//! Atomics, locks and parking for the primitives, through one facade.
//!
//! Normally this is the standard library's atomics and `Arc`, parking_lot's locks and a futex. Under `--cfg loom`
//! the same names are loom's, with the same signatures, so that one source is both what runs and what the model
//! checker explores. Constructors are not `const` under loom.

#[cfg(not(loom))]
pub use host::*;
#[cfg(loom)]
pub use model::*;

/// A value alone on its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct CachePadded<T>(T);

impl<T> CachePadded<T> {
    /// Puts the value on a line of its own.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> std::ops::Deref for CachePadded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Asks the CPU for a short pause inside a bounded spin.
#[inline]
pub fn spin_hint() {
    #[cfg(not(loom))]
    std::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

#[cfg(not(loom))]
mod host {
    use std::time::Duration;

    use crate::sys::linux::thread;

    pub use parking_lot::{Condvar, Mutex, MutexGuard};
    pub use std::sync::{Arc, Weak, atomic};

    use crate::sys::parker::{PARKED, ParkWord};

    /// Where one thread sleeps until another wakes it. A wake-up that comes first is remembered, but only one.
    ///
    /// Only the thread that owns the parker may park on it; anyone may wake it.
    #[derive(Debug)]
    pub struct Parker {
        word: ParkWord,
    }

    impl Default for Parker {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Parker {
        /// A parker without a remembered wake-up.
        #[must_use]
        pub const fn new() -> Self {
            Self {
                word: ParkWord::new(),
            }
        }

        /// Sleeps until [`unpark`](Self::unpark), or returns at once when a wake-up is remembered.
        ///
        /// Context: may sleep.
        pub fn park(&self) {
            self.word
                .park(|word| thread::futex_wait(word, PARKED, None));
        }

        /// Like [`park`](Self::park), but no longer than `timeout`. May return early.
        ///
        /// Context: may sleep.
        pub fn park_timeout(&self, timeout: Duration) {
            self.word
                .park_once(|word| thread::futex_wait(word, PARKED, Some(timeout)));
        }

        /// Wakes the owner, or lets its next sleep return at once. What was written before is visible to the
        /// owner when it returns.
        ///
        /// Context: any thread, reactor-safe.
        pub fn unpark(&self) {
            self.word.unpark(thread::futex_wake);
        }
    }

    thread_local! {
        static PARKER: Arc<Parker> = Arc::new(Parker::new());
    }

    /// The calling thread's own parker. A thread whose thread-local data is being destroyed gets a fresh one.
    #[must_use]
    pub fn current_parker() -> Arc<Parker> {
        PARKER
            .try_with(Arc::clone)
            .unwrap_or_else(|_| Arc::new(Parker::new()))
    }
}

#[cfg(loom)]
mod model {
    use std::ops::{Deref, DerefMut};

    pub use loom::sync::{Arc, atomic};

    /// loom's mutex in the shape of parking_lot's.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    /// Guard of [`Mutex`].
    #[derive(Debug)]
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        /// A free lock.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Takes the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect("loom locks are not poisoned")))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("held outside of wait")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held outside of wait")
        }
    }

    /// loom's condition variable in the shape of parking_lot's.
    #[derive(Debug, Default)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        /// Nobody waits.
        pub fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        /// Releases the lock, sleeps, takes it again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("held outside of wait");
            guard.0 = Some(self.0.wait(held).expect("loom locks are not poisoned"));
        }

        /// Wakes one.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Parker for the model: a flag under a lock.
    #[derive(Debug, Default)]
    pub struct Parker {
        notified: Mutex<bool>,
        changed: Condvar,
    }

    impl Parker {
        /// A parker without a remembered wake-up.
        pub fn new() -> Self {
            Self::default()
        }

        /// Sleeps until woken.
        pub fn park(&self) {
            let mut notified = self.notified.lock();
            while !*notified {
                self.changed.wait(&mut notified);
            }
            *notified = false;
        }

        /// Wakes the owner.
        pub fn unpark(&self) {
            *self.notified.lock() = true;
            self.changed.notify_one();
        }
    }

    loom::thread_local! {
        static PARKER: Arc<Parker> = Arc::new(Parker::new());
    }

    /// The calling thread's own parker.
    pub fn current_parker() -> Arc<Parker> {
        PARKER.with(Arc::clone)
    }
}

/// Explores `f`, with at most `preemptions` forced switches per execution unless `LOOM_MAX_PREEMPTIONS` says another
/// number.
#[cfg(all(test, loom))]
pub(crate) fn explore(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(preemptions);
    model.check(f);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::linux::time::monotonic_ns;

    #[test]
    fn a_wake_up_that_comes_first_is_remembered_once() {
        let p = Parker::new();
        p.unpark();
        p.unpark();
        p.park();
        let before = monotonic_ns();
        p.park_timeout(Duration::from_millis(5));
        assert!(monotonic_ns() - before >= 4_000_000);
    }

    #[test]
    fn parked_threads_are_woken() {
        let there = Arc::new(Parker::new());
        let back = Arc::new(Parker::new());
        let (t, b) = (Arc::clone(&there), Arc::clone(&back));
        let other = std::thread::spawn(move || {
            for _ in 0..1000 {
                t.park();
                b.unpark();
            }
        });
        for _ in 0..1000 {
            there.unpark();
            back.park();
        }
        other.join().expect("the other thread ends");
    }
}
