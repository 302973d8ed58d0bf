//! [`RwSem`]: many readers or one writer.
//!
//! C header: `include/linux/rwsem.h`, `include/linux/rwlock.h`

use std::fmt;
use std::ops::{Deref, DerefMut};

/// A lock that many may read or one may write. Writers are not starved; so a reader must not read-lock again what
/// it already holds, for a writer may wait in between.
///
/// It is also what there is in the place of `rwlock_t`, with two differences: that one lets a reader in again past a waiting writer,
/// and may be taken in interrupt context. What reactors read is under [`rcu`](super::rcu) or a [`SpinLock`](super::SpinLock).
///
/// Context: may sleep; the `try_` forms are reactor-safe.
///
/// ```
/// use kshim::sync::RwSem;
///
/// let names = RwSem::new(vec!["disk0"]);
/// names.write().push("disk1");
/// assert_eq!(names.read().len(), 2);
/// ```
#[derive(Default)]
#[doc(alias = "rw_semaphore")]
#[doc(alias = "rwlock_t")]
pub struct RwSem<T: ?Sized>(parking_lot::RwLock<T>);

impl<T> RwSem<T> {
    /// A free lock that owns `value`.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(parking_lot::RwLock::new(value))
    }

    /// Gives the value back; nobody can hold the lock.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized> RwSem<T> {
    /// `down_read`. Context: may sleep.
    #[doc(alias = "down_read")]
    #[inline]
    pub fn read(&self) -> RwSemReadGuard<'_, T> {
        crate::might_sleep!();
        RwSemReadGuard(self.0.read())
    }

    /// `down_write`. Context: may sleep.
    #[doc(alias = "down_write")]
    #[inline]
    pub fn write(&self) -> RwSemWriteGuard<'_, T> {
        crate::might_sleep!();
        RwSemWriteGuard(self.0.write())
    }

    /// `down_read_trylock`. Context: any thread, reactor-safe.
    #[doc(alias = "down_read_trylock")]
    #[inline]
    pub fn try_read(&self) -> Option<RwSemReadGuard<'_, T>> {
        self.0.try_read().map(RwSemReadGuard)
    }

    /// `down_write_trylock`. Context: any thread, reactor-safe.
    #[doc(alias = "down_write_trylock")]
    #[inline]
    pub fn try_write(&self) -> Option<RwSemWriteGuard<'_, T>> {
        self.0.try_write().map(RwSemWriteGuard)
    }

    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<T: fmt::Debug + ?Sized> fmt::Debug for RwSem<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Shared access to what a [`RwSem`] protects.
#[must_use = "the lock is released at once when the guard is dropped"]
#[derive(Debug)]
pub struct RwSemReadGuard<'a, T: ?Sized>(parking_lot::RwLockReadGuard<'a, T>);

impl<T: ?Sized> Deref for RwSemReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Exclusive access to what a [`RwSem`] protects.
#[must_use = "the lock is released at once when the guard is dropped"]
#[derive(Debug)]
pub struct RwSemWriteGuard<'a, T: ?Sized>(parking_lot::RwLockWriteGuard<'a, T>);

impl<'a, T: ?Sized> RwSemWriteGuard<'a, T> {
    /// `downgrade_write`: readers come in, other writers do not get in between. Context: any thread.
    pub fn downgrade(self) -> RwSemReadGuard<'a, T> {
        RwSemReadGuard(parking_lot::RwLockWriteGuard::downgrade(self.0))
    }
}

impl<T: ?Sized> Deref for RwSemWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for RwSemWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let lock = RwSem::new(1);
        {
            let a = lock.read();
            let b = lock.try_read().expect("readers share");
            assert_eq!(*a + *b, 2);
            assert!(lock.try_write().is_none());
        }
        let mut w = lock.write();
        *w = 7;
        assert!(lock.try_read().is_none());
        let r = w.downgrade();
        assert_eq!(*r, 7);
        assert!(lock.try_read().is_some());
    }
}
