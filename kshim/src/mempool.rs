//! Memory pools: allocation with a guaranteed reserve.
//!
//! A [`Mempool`] allocates from a [`KmemCache`] as long as that gives objects, then from a reserve of its own that was filled
//! beforehand and is filled up again as objects come back. So whoever must make progress to free memory (handling
//! of errors, completion of writes) can, as long as no more than the reserve is needed at once; others wait.
//!
//! C header: `include/linux/mempool.h`

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::error::{Result, code};
use crate::slab::{Gfp, KmemCache, SlabBox};
use crate::sync::{CondVar, OnceLock, SpinLock};
use crate::time::Delta;

/// A sleeper looks at the cache itself so often: what its other users free wakes nobody here.
const RETRY: Delta = Delta::from_millis(100);

/// A pool over a cache, in a `static`.
///
/// ```
/// use kshim::mempool::Mempool;
/// use kshim::slab::{Gfp, KmemCache};
///
/// static SENSE: KmemCache<[u8; 252]> = KmemCache::new("sense", || [0; 252], |s| s.fill(0));
/// static SENSE_POOL: Mempool<[u8; 252]> = Mempool::new(&SENSE, 16);
///
/// SENSE_POOL.init()?; // at start, where failing is still possible
/// let mut sense = SENSE_POOL.alloc(Gfp::Atomic)?;
/// sense[0] = 0x72;
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/mempool.h` (`mempool_t`)
#[doc(alias = "mempool_t")]
#[doc(alias = "mempool_create")]
pub struct Mempool<T: Send + 'static> {
    cache: &'static KmemCache<T>,
    min_nr: usize,
    reserve: SpinLock<Vec<SlabBox<T>>>,
    freed: CondVar,
    filled: OnceLock<()>,
}

impl<T: Send> Mempool<T> {
    /// A pool with a reserve of `min_nr` objects, empty until [`Mempool::init`].
    pub const fn new(cache: &'static KmemCache<T>, min_nr: usize) -> Mempool<T> {
        Mempool {
            cache,
            min_nr,
            reserve: SpinLock::new(Vec::new()),
            freed: CondVar::new(),
            filled: OnceLock::new(),
        }
    }

    /// Fills the reserve. A second call does nothing.
    ///
    /// Context: may sleep. Errors: `ENOMEM`: the cache's limit is below the reserve.
    #[doc(alias = "mempool_init")]
    pub fn init(&self) -> Result {
        if self.filled.get().is_some() {
            return Ok(());
        }
        let mut objs = Vec::new();
        objs.try_reserve_exact(self.min_nr)?;
        for _ in 0..self.min_nr {
            objs.push(self.cache.alloc()?);
        }
        let mut reserve = self.reserve.lock();
        if self.filled.set(()).is_ok() {
            reserve.append(&mut objs);
        }
        Ok(())
    }

    /// Allocates an object, from the reserve when the cache has none.
    ///
    /// Context: with [`Gfp::Kernel`] may sleep, until an object of this pool comes back or the cache has one again; any
    /// otherwise.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: only with [`Gfp::Atomic`]: the reserve is used up.
    #[doc(alias = "mempool_alloc")]
    pub fn alloc(&'static self, gfp: Gfp) -> Result<PoolBox<T>> {
        if let Ok(obj) = self.cache.alloc() {
            return Ok(PoolBox {
                obj: Some(obj),
                pool: self,
            });
        }
        let mut reserve = self.reserve.lock();
        loop {
            // The cache once more, under the lock that `free` takes before it wakes: nothing freed is overlooked.
            if let Some(obj) = reserve.pop().or_else(|| self.cache.alloc().ok()) {
                return Ok(PoolBox {
                    obj: Some(obj),
                    pool: self,
                });
            }
            match gfp {
                Gfp::Atomic => return Err(code::ENOMEM),
                Gfp::Kernel => {
                    self.freed.wait_timeout(&mut reserve, RETRY);
                }
            }
        }
    }

    fn free(&self, mut obj: SlabBox<T>) {
        let short = |reserve: &Vec<_>| reserve.len() < self.min_nr && self.filled.get().is_some();
        if !short(&self.reserve.lock()) {
            drop(obj);
            drop(self.reserve.lock());
            return self.freed.notify_one();
        }
        obj.reset();
        let mut reserve = self.reserve.lock();
        if short(&reserve) {
            reserve.push(obj);
        } else {
            drop(reserve);
            drop(obj);
            drop(self.reserve.lock());
        }
        self.freed.notify_one();
    }

    /// Objects in the reserve now.
    pub fn reserve_len(&self) -> usize {
        self.reserve.lock().len()
    }
}

impl<T: Send> fmt::Debug for Mempool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mempool")
            .field("cache", &self.cache.name())
            .field("reserve", &self.reserve_len())
            .finish()
    }
}

/// An object of a [`Mempool`]; dropping it gives it back.
#[doc(alias = "mempool_free")]
pub struct PoolBox<T: Send + 'static> {
    /// # Invariants
    ///
    /// `Some` until the drop.
    obj: Option<SlabBox<T>>,
    pool: &'static Mempool<T>,
}

impl<T: Send> Deref for PoolBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.obj.as_ref().expect("present until the drop")
    }
}

impl<T: Send> DerefMut for PoolBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.obj.as_mut().expect("present until the drop")
    }
}

impl<T: Send> Drop for PoolBox<T> {
    fn drop(&mut self) {
        if let Some(obj) = self.obj.take() {
            self.pool.free(obj);
        }
    }
}

impl<T: Send + fmt::Debug> fmt::Debug for PoolBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kthread;

    #[test]
    fn the_reserve_carries_on_and_fills_up_again() {
        static CACHE: KmemCache<u32> = KmemCache::new("t", || 0, |n| *n = 0);
        static POOL: Mempool<u32> = Mempool::new(&CACHE, 3);
        POOL.init().unwrap();
        POOL.init().unwrap();
        CACHE.set_limit(4);
        let mut held: Vec<_> = (0..4).map(|_| POOL.alloc(Gfp::Atomic).unwrap()).collect();
        assert_eq!(POOL.reserve_len(), 0);
        assert_eq!(POOL.alloc(Gfp::Atomic).err(), Some(code::ENOMEM));
        for n in &mut held {
            assert_eq!(**n, 0);
            **n = 7;
        }
        held.truncate(1);
        assert_eq!(POOL.reserve_len(), 3);
        assert_eq!(*POOL.alloc(Gfp::Atomic).unwrap(), 0);
        drop(held);
        assert_eq!(POOL.reserve_len(), 3);
        assert_eq!(CACHE.stats().free, 1);
    }

    #[test]
    fn who_may_sleep_waits_for_the_next() {
        static CACHE: KmemCache<u32> = KmemCache::new("t", || 0, |n| *n = 0);
        static POOL: Mempool<u32> = Mempool::new(&CACHE, 1);
        POOL.init().unwrap();
        CACHE.set_limit(1);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                kthread::run("pool", |_| {
                    for _ in 0..500 {
                        *POOL.alloc(Gfp::Kernel).unwrap() += 1;
                    }
                })
                .unwrap()
            })
            .collect();
        threads.into_iter().for_each(kthread::Kthread::join);
        assert_eq!(POOL.reserve_len(), 1);
    }

    #[test]
    fn what_other_users_of_the_cache_free_is_found() {
        static CACHE: KmemCache<u32> = KmemCache::new("t", || 0, |n| *n = 0);
        static POOL: Mempool<u32> = Mempool::new(&CACHE, 0);
        CACHE.set_limit(1);
        let other = CACHE.alloc().unwrap();
        let sleeper = kthread::run("pool", |_| drop(POOL.alloc(Gfp::Kernel))).unwrap();
        crate::time::delay::msleep(5);
        drop(other);
        sleeper.join();
    }

    #[test]
    fn a_reserve_above_the_limit_is_enomem() {
        static CACHE: KmemCache<u32> = KmemCache::new("t", || 0, |n| *n = 0);
        static POOL: Mempool<u32> = Mempool::new(&CACHE, 2);
        CACHE.set_limit(1);
        assert_eq!(POOL.init(), Err(code::ENOMEM));
    }
}
