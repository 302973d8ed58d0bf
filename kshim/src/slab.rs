//! Object caches.
//!
//! A [`KmemCache`] recycles objects of one type, *constructed*: a freed object keeps its heap parts (vectors, tables) for
//! the next user, after its cache's `reset` made it like new. Free objects are kept in shards by thread, so that threads
//! don't contend; who frees on another thread than it allocates on only moves objects between shards.
//!
//! Allocation fails with `ENOMEM` at the cache's limit. (A host that is out of memory does not refuse, it kills; so the limit
//! is what makes the callers' BUSY paths real, and what tests use.)
//!
//! C header: `include/linux/slab.h`

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::thread_index;
use crate::error::{Result, code};
use crate::percpu::CachePadded;
use crate::sync::SpinLock;

/// Shards of a cache.
const NR_SHARDS: usize = 16;
/// A shard keeps at most so many free objects; what is freed beyond is dropped.
const SHARD_MAX: usize = 512;

/// How an allocation may behave.
///
/// C header: `include/linux/gfp_types.h`
#[doc(alias = "gfp_t")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gfp {
    /// It may sleep until there is something.
    #[doc(alias = "GFP_KERNEL")]
    Kernel,
    /// It fails rather than sleeps.
    #[doc(alias = "GFP_ATOMIC")]
    Atomic,
}

struct Shard<T> {
    // A box keeps the address while the object moves between users and shards.
    #[allow(clippy::vec_box, reason = "the boxes are what is recycled")]
    free: Vec<Box<T>>,
    allocs: u64,
    frees: u64,
}

/// What a cache did so far.
///
/// C header: `/proc/slabinfo`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlabStats {
    /// Objects in use.
    pub in_use: u64,
    /// Free objects kept.
    pub free: u64,
    /// Allocations so far.
    pub allocs: u64,
}

/// A cache of objects, in a `static`.
///
/// ```
/// use kshim::slab::KmemCache;
///
/// struct Cmd { tag: u64, sense: Vec<u8> }
///
/// static CMDS: KmemCache<Cmd> = KmemCache::new(
///     "cmd",
///     || Cmd { tag: 0, sense: Vec::new() },
///     |cmd| {
///         cmd.tag = 0;
///         cmd.sense.clear();
///     },
/// );
///
/// let mut cmd = CMDS.alloc()?;
/// cmd.tag = 7;
/// drop(cmd);
/// assert_eq!(CMDS.alloc()?.tag, 0);
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/slab.h` (`struct kmem_cache`)
#[doc(alias = "kmem_cache")]
#[doc(alias = "kmem_cache_create")]
pub struct KmemCache<T: 'static> {
    name: &'static str,
    ctor: fn() -> T,
    reset: fn(&mut T),
    /// Objects that exist, used or free.
    objects: AtomicUsize,
    limit: AtomicUsize,
    shards: [CachePadded<SpinLock<Shard<T>>>; NR_SHARDS],
}

impl<T: Send> KmemCache<T> {
    /// An empty cache. `ctor` makes an object, `reset` makes a freed one as good as new; both must not allocate from this
    /// cache.
    pub const fn new(name: &'static str, ctor: fn() -> T, reset: fn(&mut T)) -> KmemCache<T> {
        KmemCache {
            name,
            ctor,
            reset,
            objects: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
            shards: [const {
                CachePadded::new(SpinLock::new(Shard {
                    free: Vec::new(),
                    allocs: 0,
                    frees: 0,
                }))
            }; NR_SHARDS],
        }
    }

    /// Its name, for statistics.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn shard(&self) -> &SpinLock<Shard<T>> {
        &self.shards[thread_index() % NR_SHARDS]
    }

    /// Allocates an object: one of `ctor`, or a freed one after `reset`.
    ///
    /// Context: any.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: the limit is reached.
    #[doc(alias = "kmem_cache_alloc")]
    #[doc(alias = "kmem_cache_zalloc")]
    pub fn alloc(&'static self) -> Result<SlabBox<T>> {
        {
            let mut shard = self.shard().lock();
            if let Some(obj) = shard.free.pop() {
                shard.allocs += 1;
                return Ok(SlabBox {
                    obj: Some(obj),
                    cache: self,
                });
            }
        }
        self.alloc_slow()
    }

    #[cold]
    fn alloc_slow(&'static self) -> Result<SlabBox<T>> {
        let limit = self.limit.load(Ordering::Relaxed);
        let grown = self
            .objects
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < limit).then_some(n + 1)
            });
        let obj = match grown {
            Ok(_) => Box::new((self.ctor)()),
            // Other threads' shards may have some.
            Err(_) => self.steal().ok_or(code::ENOMEM)?,
        };
        self.shard().lock().allocs += 1;
        Ok(SlabBox {
            obj: Some(obj),
            cache: self,
        })
    }

    fn steal(&self) -> Option<Box<T>> {
        self.shards.iter().find_map(|s| s.lock().free.pop())
    }

    fn free(&self, mut obj: Box<T>) {
        (self.reset)(&mut obj);
        let mut shard = self.shard().lock();
        shard.frees += 1;
        if shard.free.len() < SHARD_MAX {
            shard.free.push(obj);
        } else {
            drop(shard);
            drop(obj);
            self.objects.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Limits the objects that exist; default: none. Objects in use beyond a lowered limit stay.
    ///
    /// Context: any.
    pub fn set_limit(&self, objects: usize) {
        self.limit.store(objects, Ordering::Relaxed);
    }

    /// Drops all free objects. Returns how many there were.
    ///
    /// Context: any thread that may run the objects' drops.
    #[doc(alias = "kmem_cache_shrink")]
    pub fn shrink(&self) -> usize {
        let mut n = 0;
        for shard in &self.shards {
            let free = std::mem::take(&mut shard.lock().free);
            n += free.len();
            self.objects.fetch_sub(free.len(), Ordering::Relaxed);
        }
        n
    }

    /// Counts. While others allocate and free, they are approximate.
    ///
    /// Context: any.
    pub fn stats(&self) -> SlabStats {
        let (mut s, mut frees) = (SlabStats::default(), 0);
        for shard in &self.shards {
            let shard = shard.lock();
            s.free += shard.free.len() as u64;
            s.allocs += shard.allocs;
            frees += shard.frees;
        }
        s.in_use = s.allocs.saturating_sub(frees);
        s
    }
}

impl<T: Send> fmt::Debug for KmemCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmemCache")
            .field("name", &self.name)
            .field("stats", &self.stats())
            .finish()
    }
}

/// An object of a [`KmemCache`]; dropping it gives it back.
#[doc(alias = "kmem_cache_free")]
pub struct SlabBox<T: Send + 'static> {
    /// # Invariants
    ///
    /// `Some` until the drop.
    obj: Option<Box<T>>,
    cache: &'static KmemCache<T>,
}

impl<T: Send> SlabBox<T> {
    /// Makes the object as good as new.
    pub(crate) fn reset(&mut self) {
        (self.cache.reset)(self);
    }
}

impl<T: Send> Deref for SlabBox<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        self.obj.as_ref().expect("present until the drop")
    }
}

impl<T: Send> DerefMut for SlabBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.obj.as_mut().expect("present until the drop")
    }
}

impl<T: Send> Drop for SlabBox<T> {
    fn drop(&mut self) {
        if let Some(obj) = self.obj.take() {
            self.cache.free(obj);
        }
    }
}

impl<T: Send + fmt::Debug> fmt::Debug for SlabBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kthread;

    #[derive(Debug)]
    struct Obj {
        n: u32,
        data: Vec<u8>,
    }

    fn ctor() -> Obj {
        Obj {
            n: 0,
            data: Vec::new(),
        }
    }

    fn reset(o: &mut Obj) {
        o.n = 0;
        o.data.clear();
    }

    #[test]
    fn freed_objects_come_back_reset_with_their_heap() {
        static CACHE: KmemCache<Obj> = KmemCache::new("t", ctor, reset);
        let mut o = CACHE.alloc().unwrap();
        o.n = 5;
        o.data.extend_from_slice(&[1; 1000]);
        drop(o);
        let o = CACHE.alloc().unwrap();
        assert_eq!((o.n, o.data.len()), (0, 0));
        assert!(o.data.capacity() >= 1000);
        assert_eq!(
            CACHE.stats(),
            SlabStats {
                in_use: 1,
                free: 0,
                allocs: 2
            }
        );
        drop(o);
        assert_eq!(CACHE.shrink(), 1);
        assert_eq!(
            CACHE.stats(),
            SlabStats {
                in_use: 0,
                free: 0,
                allocs: 2
            }
        );
    }

    #[test]
    fn the_limit_is_enomem_until_one_is_freed() {
        static CACHE: KmemCache<Obj> = KmemCache::new("t", ctor, reset);
        CACHE.set_limit(2);
        let a = CACHE.alloc().unwrap();
        let _b = CACHE.alloc().unwrap();
        assert_eq!(CACHE.alloc().err(), Some(code::ENOMEM));
        // Freed elsewhere it is found all the same.
        kthread::run("free", move |_| drop(a)).unwrap().join();
        let c = CACHE.alloc().unwrap();
        assert_eq!(CACHE.alloc().err(), Some(code::ENOMEM));
        drop(c);
    }

    #[test]
    fn many_threads() {
        static CACHE: KmemCache<Obj> = KmemCache::new("t", ctor, reset);
        let threads: Vec<_> = (0..4u32)
            .map(|i| {
                kthread::run("slab", move |_| {
                    for round in 0..2000u32 {
                        let mut held: Vec<_> =
                            (0..round % 7).map(|_| CACHE.alloc().unwrap()).collect();
                        for o in &mut held {
                            assert_eq!(o.n, 0);
                            o.n = i + 1;
                        }
                    }
                })
                .unwrap()
            })
            .collect();
        threads.into_iter().for_each(kthread::Kthread::join);
        assert_eq!(CACHE.stats().in_use, 0);
        let existed = CACHE.objects.load(Ordering::Relaxed);
        assert_eq!(CACHE.shrink(), existed);
        assert_eq!(CACHE.objects.load(Ordering::Relaxed), 0);
    }
}
