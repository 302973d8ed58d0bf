//! [`Rcu`]: one published value.

use std::fmt;
use std::marker::PhantomData;

use super::{Guard, call_rcu, read_lock, synchronize_rcu};
use crate::sys::sync::Arc;
use crate::sys::sync::atomic::{AtomicPtr, Ordering};

/// A value that readers see without a lock and writers replace as a whole. Mirrors a pointer with `__rcu`.
///
/// # Invariants
///
/// `ptr` comes from `Box::into_raw` and is owned by this object. A pointer that was swapped out is owned by the one
/// who swapped it, who turns it into a `Box` again only after a grace period, and only once.
///
/// ```
/// use kshim::sync::rcu::{self, Rcu};
///
/// let table = Rcu::new(vec![1, 2]);
/// {
///     let g = rcu::read_lock();
///     let seen = table.read(&g);
///     table.replace(vec![3]);
///     assert_eq!(*seen, [1, 2]); // lives as long as the guard
///     assert_eq!(*table.read(&g), [3]);
/// }
/// assert_eq!(table.replace_sync(vec![]), [3]);
/// ```
pub struct Rcu<T: Send + Sync + 'static> {
    ptr: AtomicPtr<T>,
    /// Values are read and dropped on other threads: `Send` and `Sync` need what `Arc` needs.
    _shared: PhantomData<Arc<T>>,
}

impl<T: Send + Sync + 'static> Rcu<T> {
    /// Publishes the first value.
    pub fn new(value: T) -> Self {
        Self {
            ptr: AtomicPtr::new(Box::into_raw(Box::new(value))),
            _shared: PhantomData,
        }
    }

    /// The current value. It stays as it is while the guard lives, whatever happens to this object.
    ///
    /// Context: any thread, reactor-safe. Mirrors `rcu_dereference`.
    #[doc(alias = "rcu_dereference")]
    #[inline]
    pub fn read<'g>(&self, _guard: &'g Guard) -> &'g T {
        let ptr = self.ptr.load(Ordering::Acquire);
        // SAFETY: 1. By the invariant `ptr` was valid when loaded. 2. It is freed only a grace period after it was
        // swapped out (or this object dropped); the guard's section was open when it was loaded and stays open for
        // `'g`, so that period does not end in `'g`. 3. Nobody makes a `&mut T` of it before. 4. `T: Sync`.
        unsafe { &*ptr }
    }

    /// Publishes a new value. The old one is dropped after a grace period, on the thread of `call_rcu`.
    ///
    /// Context: any thread, reactor-safe, also inside a read section. Mirrors `rcu_replace_pointer` with `kfree_rcu`.
    #[doc(alias = "rcu_replace_pointer")]
    #[doc(alias = "kfree_rcu")]
    pub fn replace(&self, value: T) {
        self.swap(value).drop_later();
    }

    /// Publishes a new value, waits for a grace period and gives the old value back.
    ///
    /// Context: may sleep; not inside a read section.
    pub fn replace_sync(&self, value: T) -> T {
        let old = self.swap(value);
        synchronize_rcu();
        old.into_inner()
    }

    /// Publishes what `f` makes of the current value; the old one is dropped after a grace period. Callers serialise
    /// updates by a lock of their own: of two at the same time, one is lost.
    ///
    /// Context: any thread, reactor-safe; `f` runs inside a read section.
    pub fn update(&self, f: impl FnOnce(&T) -> T) {
        let guard = read_lock();
        let new = f(self.read(&guard));
        self.replace(new);
    }

    fn swap(&self, value: T) -> Retired<T> {
        let new = Box::into_raw(Box::new(value));
        Retired(self.ptr.swap(new, Ordering::AcqRel))
    }
}

/// A value that was swapped out, and that readers may still see. When a panic drops it, the value leaks.
struct Retired<T>(*mut T);

// SAFETY: it owns the value as a `Box<T>` would, while readers may hold `&T` on other threads.
unsafe impl<T: Send + Sync> Send for Retired<T> {}

impl<T: Send + Sync + 'static> Retired<T> {
    fn drop_later(self) {
        call_rcu(Box::new(move || drop(self.into_inner())));
    }

    /// The value; only after a grace period.
    fn into_inner(self) -> T {
        // SAFETY: 1. The pointer comes from `Box::into_raw` and was taken out of the `Rcu` by the maker of `self`,
        // which this call uses up, so nobody else turns it into a box. 2. Both callers let a grace period pass in
        // between, so no reader uses it any more.
        *unsafe { Box::from_raw(self.0) }
    }
}

impl<T: Send + Sync + 'static> Drop for Rcu<T> {
    fn drop(&mut self) {
        // Readers may still use the value: what `read` returns does not borrow this object.
        Retired(*self.ptr.get_mut()).drop_later();
    }
}

impl<T: Default + Send + Sync + 'static> Default for Rcu<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug + Send + Sync + 'static> fmt::Debug for Rcu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guard = read_lock();
        f.debug_tuple("Rcu").field(self.read(&guard)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;
    use crate::sync::rcu::barrier;

    /// Counts drops, and notices a use after drop with some luck.
    struct Probe {
        alive: AtomicBool,
        n: usize,
        dropped: Arc<AtomicUsize>,
    }

    impl Probe {
        fn new(n: usize, dropped: &Arc<AtomicUsize>) -> Self {
            Self {
                alive: AtomicBool::new(true),
                n,
                dropped: Arc::clone(dropped),
            }
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            self.alive.store(false, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn old_values_are_dropped_after_their_readers() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = Rcu::new(Probe::new(1, &dropped));
        let guard = read_lock();
        let seen = cell.read(&guard);
        cell.replace(Probe::new(2, &dropped));
        cell.update(|old| Probe::new(old.n + 1, &dropped));
        drop(cell);
        assert_eq!((seen.n, dropped.load(Ordering::Relaxed)), (1, 0));
        drop(guard);
        barrier();
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn readers_never_see_a_dropped_value() {
        const WRITES: usize = 2000;
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = Arc::new(Rcu::new(Probe::new(0, &dropped)));
        let end = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (cell, end) = (Arc::clone(&cell), Arc::clone(&end));
                std::thread::spawn(move || {
                    let mut last = 0;
                    while !end.load(Ordering::Relaxed) {
                        let outer = read_lock();
                        let first = cell.read(&outer);
                        let inner = read_lock();
                        let second = cell.read(&inner);
                        assert!(first.n >= last && second.n >= first.n);
                        assert!(first.alive.load(Ordering::Relaxed));
                        assert!(second.alive.load(Ordering::Relaxed));
                        last = second.n;
                    }
                })
            })
            .collect();
        for n in 1..=WRITES {
            if n % 2 == 0 {
                cell.replace(Probe::new(n, &dropped));
            } else {
                assert_eq!(cell.replace_sync(Probe::new(n, &dropped)).n, n - 1);
            }
        }
        end.store(true, Ordering::Relaxed);
        for r in readers {
            r.join().expect("reader saw live values only");
        }
        drop(cell);
        barrier();
        assert_eq!(dropped.load(Ordering::Relaxed), WRITES + 1);
    }
}
