//! [`SpinLock`]: a short critical section, allowed everywhere.
//!
//! C header: `include/linux/spinlock.h`

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::lock::{Guard, Lock, SpinLockBackend};
use crate::sys::thread::LOCAL;

/// A lock for short critical sections. Waiters spin for a moment and then park, so that a preempted holder does
/// not cost a CPU. There are no interrupts to keep out: `spin_lock_bh` and `spin_lock_irq` are all [`lock`](Lock::lock).
///
/// Context: any thread, reactor-safe. Hold it briefly; never sleep under it.
///
/// ```
/// use kshim::sync::SpinLock;
///
/// static COUNT: SpinLock<u32> = SpinLock::new(0);
/// *COUNT.lock() += 1;
/// assert_eq!(*COUNT.lock(), 1);
/// ```
#[doc(alias = "spinlock_t")]
pub type SpinLock<T> = Lock<T, SpinLockBackend>;

/// Guard of [`SpinLock::lock`].
pub type SpinLockGuard<'a, T> = Guard<'a, T, SpinLockBackend>;

impl<T: ?Sized> SpinLock<T> {
    /// Takes the lock and marks the section as one that must not sleep: in debug builds `might_sleep!` asserts
    /// inside it. Mirrors `spin_lock_irqsave`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "spin_lock_irqsave")]
    #[inline]
    pub fn lock_irqsave(&self) -> IrqGuard<'_, T> {
        let inner = self.lock();
        if cfg!(debug_assertions) {
            LOCAL.with(|l| l.atomic_depth.set(l.atomic_depth.get() + 1));
        }
        IrqGuard {
            inner,
            _not_send: PhantomData,
        }
    }
}

/// Guard of [`SpinLock::lock_irqsave`].
#[must_use = "the lock is released at once when the guard is dropped"]
#[derive(Debug)]
pub struct IrqGuard<'a, T: ?Sized> {
    inner: SpinLockGuard<'a, T>,
    _not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized> Deref for IrqGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for IrqGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized> Drop for IrqGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            LOCAL.with(|l| l.atomic_depth.set(l.atomic_depth.get() - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cpu;

    #[test]
    fn increments_are_not_lost() {
        let lock = Arc::new(SpinLock::new(0u32));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = Arc::clone(&lock);
                std::thread::spawn(move || {
                    for _ in 0..10_000 {
                        *lock.lock() += 1;
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().expect("thread ends");
        }
        assert_eq!(*lock.lock(), 40_000);
    }

    #[test]
    fn irqsave_marks_the_section() {
        let lock = SpinLock::new(1);
        {
            let mut held = lock.lock_irqsave();
            *held += 1;
            assert_eq!(cpu::in_atomic(), cfg!(debug_assertions));
            assert!(lock.is_locked());
            assert!(lock.try_lock().is_none());
        }
        assert!(!cpu::in_atomic());
        assert_eq!(lock.into_inner(), 2);
    }

    #[test]
    fn a_panic_inside_does_not_poison() {
        let lock = Arc::new(SpinLock::new(5));
        let inside = Arc::clone(&lock);
        let r = std::thread::spawn(move || {
            let _held = inside.lock();
            panic!("expected by the test");
        })
        .join();
        assert!(r.is_err());
        assert_eq!(*lock.lock(), 5);
    }
}
