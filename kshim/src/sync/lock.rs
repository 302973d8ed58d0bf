//! The generic lock that [`SpinLock`](super::SpinLock) and [`Mutex`](super::Mutex) are made of.
//!
//! As in Rust-for-Linux, a lock owns what it protects and a [`Backend`] says which kind of lock it is. Both kinds
//! spin briefly and then park: in user space the holder of a "spin" lock can be preempted, and spinning against it
//! would stall everyone. What differs is the rule about context that the kinds stand for and check.
//!
//! C header: `include/linux/spinlock.h`, `include/linux/mutex.h`

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

mod private {
    pub trait Sealed {}
}

/// A kind of lock. Implemented by [`SpinLockBackend`] and
/// [`MutexBackend`] only.
pub trait Backend: private::Sealed + 'static {
    /// Whether taking the lock counts as sleeping.
    const MAY_SLEEP: bool;
}

/// Back end of [`SpinLock`](super::SpinLock): may be taken anywhere, is held for a short time only.
#[derive(Debug)]
pub enum SpinLockBackend {}
impl private::Sealed for SpinLockBackend {}
impl Backend for SpinLockBackend {
    const MAY_SLEEP: bool = false;
}

/// Back end of [`Mutex`](super::Mutex): may be held across anything that sleeps, so it is not for reactors.
#[derive(Debug)]
pub enum MutexBackend {}
impl private::Sealed for MutexBackend {}
impl Backend for MutexBackend {
    const MAY_SLEEP: bool = true;
}

/// A lock around a `T`. There is no poisoning: a panic inside a critical section releases the lock.
pub struct Lock<T: ?Sized, B: Backend> {
    backend: PhantomData<fn() -> B>,
    inner: parking_lot::Mutex<T>,
}

impl<T, B: Backend> Lock<T, B> {
    /// A free lock that owns `value`.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self {
            backend: PhantomData,
            inner: parking_lot::Mutex::new(value),
        }
    }

    /// Gives the value back; nobody can hold the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized, B: Backend> Lock<T, B> {
    /// Takes the lock; released when the guard is dropped.
    ///
    /// Context: a spin lock any thread, reactor-safe; a mutex may sleep.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T, B> {
        if B::MAY_SLEEP {
            crate::might_sleep!();
        }
        Guard {
            backend: PhantomData,
            inner: self.inner.lock(),
        }
    }

    /// Takes the lock if nobody holds it.
    ///
    /// Context: any thread, reactor-safe.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T, B>> {
        self.inner.try_lock().map(|inner| Guard {
            backend: PhantomData,
            inner,
        })
    }

    /// The value, without locking: the borrow shows that nobody else can see it.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    /// Whether somebody holds the lock now; for assertions (`lockdep_assert_held`, `mutex_is_locked`).
    ///
    /// Context: any thread, reactor-safe.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }
}

impl<T: Default, B: Backend> Default for Lock<T, B> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug + ?Sized, B: Backend> fmt::Debug for Lock<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inner.try_lock() {
            Some(value) => f.debug_tuple("Lock").field(&&*value).finish(),
            None => f.write_str("Lock(<held>)"),
        }
    }
}

/// Access to what a [`Lock`] protects; releases the lock when dropped. Stays on its thread.
#[must_use = "the lock is released at once when the guard is dropped"]
pub struct Guard<'a, T: ?Sized, B: Backend> {
    backend: PhantomData<fn() -> B>,
    inner: parking_lot::MutexGuard<'a, T>,
}

impl<'a, T: ?Sized, B: Backend> Guard<'a, T, B> {
    /// Releases the lock, runs `f`, takes the lock again.
    ///
    /// Context: that of `f` and of taking the lock.
    pub fn do_unlocked<R>(&mut self, f: impl FnOnce() -> R) -> R {
        parking_lot::MutexGuard::unlocked(&mut self.inner, f)
    }

    pub(super) fn raw(&mut self) -> &mut parking_lot::MutexGuard<'a, T> {
        &mut self.inner
    }
}

impl<T: ?Sized, B: Backend> Deref for Guard<'_, T, B> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized, B: Backend> DerefMut for Guard<'_, T, B> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: fmt::Debug + ?Sized, B: Backend> fmt::Debug for Guard<'_, T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
