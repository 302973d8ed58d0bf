//! The pool that page buffers come from: size classes, per-thread caches, a depot, give-back when idle.
//!
//! Blocks have power-of-two sizes from [`PAGE_SIZE`] to [`PagePool::MAX_BLOCK`]. A thread allocates from and frees to
//! its own magazine of the class (a stack, under a lock that only the purge ever contends for). Empty and full
//! magazines exchange half of their capacity with the class's depot; an empty depot maps another span of host memory.
//!
//! Every call of [`PagePool::age`] gives back what was not needed since the call before: a magazine's or depot's *low
//! mark* is how many blocks at the bottom of its stack were never popped in between. Idle blocks go from magazines to
//! depots, and from depots to the host: a span that is entirely idle is unmapped, other idle blocks lose their memory and
//! stay as address space. So an idle process holds no buffer memory after a few periods, whichever thread allocated
//! last.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use super::PAGE_SIZE;
use super::span::{self, Span, SpanSource};
use crate::error::{Result, code};
use crate::sync::SpinLock;
use crate::sys::linux::proc::host_page_size;

/// Number of size classes: 4 KiB, 8 KiB, ... 16 MiB.
const NR_CLASSES: usize = 13;
/// Host memory is mapped in pieces of at least so many bytes, and aligned to it.
const SPAN_SIZE: usize = 2 << 20;
/// A thread keeps at most so many bytes of one class...
const MAGAZINE_BYTES: usize = 1 << 20;
/// ...and at most so many blocks.
const MAGAZINE_BLOCKS: usize = 64;

const fn class_size(class: usize) -> usize {
    PAGE_SIZE << class
}

const fn span_size(class: usize) -> usize {
    if class_size(class) > SPAN_SIZE {
        class_size(class)
    } else {
        SPAN_SIZE
    }
}

/// Blocks a magazine holds at most; 0: the class is not cached per thread.
const fn magazine_cap(class: usize) -> usize {
    let n = MAGAZINE_BYTES / class_size(class);
    if n > MAGAZINE_BLOCKS {
        MAGAZINE_BLOCKS
    } else {
        n
    }
}

const fn class_of(len: usize) -> usize {
    let pages = len.div_ceil(PAGE_SIZE);
    pages.next_power_of_two().trailing_zeros() as usize
}

/// Memory of one size class, owned by who holds the value.
///
/// # Invariants
///
/// `ptr` starts `class_size(class)` readable and writable, initialised bytes inside a span of the class's depot; no
/// other block overlaps them; the span stays mapped while the block is outside its depot.
pub(super) struct Block {
    ptr: NonNull<u8>,
    class: u8,
}

// SAFETY: a block owns plain memory of the process; nothing about it belongs to a thread.
unsafe impl Send for Block {}
// SAFETY: `&Block` gives the address and size only.
unsafe impl Sync for Block {}

impl Block {
    pub(super) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    pub(super) fn size(&self) -> usize {
        class_size(usize::from(self.class))
    }

    fn span_base(&self) -> usize {
        self.ptr.addr().get() & !(span_size(usize::from(self.class)) - 1)
    }
}

/// A stack of free blocks that remembers how deep it was used.
#[derive(Default)]
struct Stack {
    free: Vec<Block>,
    /// The smallest length since the last aging.
    low: usize,
}

impl Stack {
    fn pop(&mut self) -> Option<Block> {
        let b = self.free.pop();
        self.low = self.low.min(self.free.len());
        b
    }
}

/// Free blocks of one class that no thread caches, and the memory of all of them.
#[derive(Default)]
struct Depot {
    stack: Stack,
    /// So many blocks at the bottom of the stack have no memory behind them.
    bare: usize,
    spans: BTreeMap<usize, Arc<Span>>,
}

impl Depot {
    fn pop(&mut self) -> Option<Block> {
        let b = self.stack.pop();
        self.bare = self.bare.min(self.stack.free.len());
        b
    }

    /// Maps one more span.
    fn grow(&mut self, class: usize, pool: &Global) -> Result {
        let size = span_size(class);
        pool.charge(size)?;
        let n = size / class_size(class);
        let span = (self.stack.free.try_reserve(n).map_err(Into::into))
            .and_then(|()| Span::new(size, size.max(SPAN_SIZE)))
            .inspect_err(|_| pool.uncharge(size))?;
        debug_assert!(self.stack.free.is_empty());
        for i in (0..n).rev() {
            // SAFETY: `i * class_size < span_size`: inside the mapping.
            let ptr = unsafe { span.ptr().add(i * class_size(class)) };
            // INVARIANT: the blocks partition a new span, which is kept in `spans` until all are back.
            self.stack.free.push(Block {
                ptr,
                class: class as u8,
            });
        }
        self.bare = n;
        self.spans.insert(span.ptr().addr().get(), Arc::new(span));
        Ok(())
    }

    /// Takes the lowest `idle` blocks out, to be given back. Spans that are idle altogether go with them.
    fn take_idle(&mut self, class: usize, idle: usize) -> Idle {
        let idle = idle.min(self.stack.free.len());
        let mut blocks: Vec<Block> = self.stack.free.drain(..idle).collect();
        let mut bare = self.bare.min(idle);
        self.bare -= bare;
        self.stack.low = self.stack.low.min(self.stack.free.len());

        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for b in &blocks {
            *counts.entry(b.span_base()).or_default() += 1;
        }
        let per_span = span_size(class) / class_size(class);
        counts.retain(|_, n| *n == per_span);
        let gone: Vec<_> = counts
            .keys()
            .filter_map(|base| self.spans.remove(base))
            .collect();
        let mut i = 0;
        let bare_before = bare;
        blocks.retain(|b| {
            let keep = !counts.contains_key(&b.span_base());
            if !keep && i < bare_before {
                bare -= 1;
            }
            i += 1;
            keep
        });
        let spans = blocks[bare..]
            .iter()
            .filter_map(|b| self.spans.get_key_value(&b.span_base()))
            .map(|(base, span)| (*base, Arc::clone(span)))
            .collect();
        Idle {
            blocks,
            bare,
            spans,
            gone,
        }
    }

    /// Puts blocks without memory back, below all others.
    fn put_bare(&mut self, blocks: Vec<Block>) {
        self.bare += blocks.len();
        self.stack.free.splice(0..0, blocks);
    }
}

/// Blocks on their way back to the host.
struct Idle {
    blocks: Vec<Block>,
    /// So many at the front have no memory already.
    bare: usize,
    /// The spans of the others.
    spans: BTreeMap<usize, Arc<Span>>,
    /// Spans without users.
    gone: Vec<Arc<Span>>,
}

impl Idle {
    /// Gives the memory back, without any lock. Returns how many bytes it was.
    fn give_back(&mut self, class: usize, pool: &Global) -> usize {
        let mut given = self.gone.len() * span_size(class);
        pool.uncharge(given);
        self.gone.clear();
        for b in &self.blocks[self.bare..] {
            if strip(&self.spans, b) {
                given += b.size();
            }
        }
        given
    }
}

/// Takes the memory from behind a free block. `false`: the host's pages are larger than the block, or it is a driver's.
fn strip(spans: &BTreeMap<usize, Arc<Span>>, b: &Block) -> bool {
    if !b.size().is_multiple_of(host_page_size()) {
        return false;
    }
    let Some(span) = spans.get(&b.span_base()) else {
        return false;
    };
    let off = b.ptr.addr().get() - b.span_base();
    // SAFETY: `b` owns the range and is free, so that no reference to it exists.
    unsafe { span.strip(off, b.size()) }
}

/// The magazines of one thread.
struct ThreadCache {
    magazines: SpinLock<[Stack; NR_CLASSES]>,
}

impl ThreadCache {
    fn get(&self, class: usize, pool: &Global) -> Result<Block> {
        // Contended only while the purge looks at this thread: don't wait for it.
        let Some(mut mags) = self.magazines.try_lock() else {
            return pool.depot_get(class);
        };
        let mag = &mut mags[class];
        if let Some(b) = mag.pop() {
            return Ok(b);
        }
        refill(mag, class, pool)
    }

    fn put(&self, b: Block, pool: &Global) {
        let class = usize::from(b.class);
        let Some(mut mags) = self.magazines.try_lock() else {
            return pool.depot_put(b);
        };
        let mag = &mut mags[class];
        let cap = magazine_cap(class);
        if mag.free.len() >= cap {
            spill(mag, cap, class, pool);
        }
        mag.free.push(b);
    }

    /// Moves blocks to the depots: all, or those that were idle since the last call.
    fn drain(&self, what: Purge, pool: &Global) {
        let mut mags = self.magazines.lock();
        for (class, mag) in mags.iter_mut().enumerate() {
            let n = match what {
                Purge::All => mag.free.len(),
                Purge::Idle => mag.low.min(mag.free.len()),
            };
            if n > 0 {
                let mut depot = pool.depots[class].lock();
                depot.stack.free.extend(mag.free.drain(..n));
            }
            mag.low = mag.free.len();
        }
    }
}

#[cold]
#[inline(never)]
fn refill(mag: &mut Stack, class: usize, pool: &Global) -> Result<Block> {
    let mut depot = pool.depots[class].lock();
    if depot.stack.free.is_empty() {
        depot.grow(class, pool)?;
    }
    let first = depot.pop().ok_or(code::ENOMEM)?;
    let want = magazine_cap(class) / 2;
    if mag.free.try_reserve_exact(magazine_cap(class)).is_ok() {
        for _ in 1..want {
            let Some(b) = depot.pop() else { break };
            mag.free.push(b);
        }
        // The block on top of the stack is the one the depot would have given next.
        mag.free.reverse();
    }
    drop(depot);
    aging::arm();
    Ok(first)
}

#[cold]
#[inline(never)]
fn spill(mag: &mut Stack, cap: usize, class: usize, pool: &Global) {
    let n = cap.div_ceil(2).min(mag.free.len());
    let mut depot = pool.depots[class].lock();
    depot.stack.free.extend(mag.free.drain(..n));
    mag.low = 0;
}

/// What a purge takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purge {
    All,
    Idle,
}

struct Global {
    depots: [SpinLock<Depot>; NR_CLASSES],
    threads: SpinLock<Vec<Weak<ThreadCache>>>,
    mapped: AtomicUsize,
    limit: AtomicUsize,
}

impl Global {
    fn charge(&self, bytes: usize) -> Result {
        let limit = self.limit.load(Ordering::Relaxed);
        self.mapped
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |m| {
                m.checked_add(bytes).filter(|&n| n <= limit)
            })
            .map_err(|_| code::ENOMEM)?;
        Ok(())
    }

    fn uncharge(&self, bytes: usize) {
        self.mapped.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn depot_get(&self, class: usize) -> Result<Block> {
        let mut depot = self.depots[class].lock();
        if depot.stack.free.is_empty() {
            depot.grow(class, self)?;
        }
        let b = depot.pop().ok_or(code::ENOMEM);
        drop(depot);
        aging::arm();
        b
    }

    fn depot_put(&self, b: Block) {
        self.depots[usize::from(b.class)].lock().stack.free.push(b);
    }

    fn purge(&self, what: Purge) -> usize {
        let threads: Vec<Arc<ThreadCache>> = {
            let mut list = self.threads.lock();
            list.retain(|t| t.strong_count() > 0);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        for t in &threads {
            t.drain(what, self);
        }
        let mut given = 0;
        for (class, depot) in self.depots.iter().enumerate() {
            let mut idle = {
                let mut depot = depot.lock();
                let n = match what {
                    Purge::All => depot.stack.free.len(),
                    Purge::Idle => depot.stack.low,
                };
                depot.take_idle(class, n)
            };
            given += idle.give_back(class, self);
            let mut depot = depot.lock();
            depot.put_bare(idle.blocks);
            depot.stack.low = depot.stack.free.len();
        }
        given
    }
}

fn global() -> &'static Global {
    static GLOBAL: OnceLock<Global> = OnceLock::new();
    GLOBAL.get_or_init(|| Global {
        depots: std::array::from_fn(|_| SpinLock::new(Depot::default())),
        threads: SpinLock::new(Vec::new()),
        mapped: AtomicUsize::new(0),
        limit: AtomicUsize::new(usize::MAX),
    })
}

/// A thread's hold on its cache; drains it when the thread ends.
struct CacheHandle(Arc<ThreadCache>);

impl CacheHandle {
    fn new() -> CacheHandle {
        let magazines = SpinLock::new(std::array::from_fn(|_| Stack::default()));
        let cache = Arc::new(ThreadCache { magazines });
        global().threads.lock().push(Arc::downgrade(&cache));
        CacheHandle(cache)
    }
}

impl Drop for CacheHandle {
    fn drop(&mut self) {
        self.0.drain(Purge::All, global());
    }
}

thread_local! {
    static CACHE: CacheHandle = CacheHandle::new();
}

/// The regular purge.
mod aging {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, OnceLock};

    use super::PagePool;
    use crate::time::Delta;
    use crate::workqueue::{self, FnWork};

    /// Idle memory goes back after two or three such periods.
    const PERIOD: Delta = Delta::from_secs(5);

    static WORK: OnceLock<Arc<FnWork>> = OnceLock::new();
    static ARMED: AtomicBool = AtomicBool::new(false);

    pub(super) fn start() {
        WORK.get_or_init(|| FnWork::new(run));
        // The queue's first use may start a thread: here rather than on a reactor.
        workqueue::system_long();
        arm();
    }

    /// Sees to it that the purge runs. Called whenever a thread goes to a depot.
    pub(super) fn arm() {
        let Some(work) = WORK.get() else { return };
        if ARMED.load(Ordering::Relaxed) || ARMED.swap(true, Ordering::Relaxed) {
            return;
        }
        // Refused only when it is pending already.
        let _ = workqueue::system_long().enqueue_delayed(Arc::clone(work), PERIOD);
    }

    fn run() {
        PagePool::age();
        // Disarmed first: a thread that goes to a depot after the look at the statistics arms it again.
        ARMED.store(false, Ordering::Relaxed);
        let s = PagePool::stats();
        if s.depot_bytes + s.cached_bytes > 0 {
            arm();
        }
    }
}

/// What the pool holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PagePoolStats {
    /// Bytes mapped from the host, used or not.
    pub mapped_bytes: usize,
    /// Bytes free in the depots that may have memory behind them.
    pub depot_bytes: usize,
    /// Bytes free in the threads' magazines.
    pub cached_bytes: usize,
}

/// The pool of page memory that [`PageBuf`](super::PageBuf) and [`RxChunk`](super::RxChunk) draw from. One per process.
///
/// ```
/// use kshim::page::{PageBuf, PagePool};
///
/// drop(PageBuf::alloc(64 << 10)?);
/// PagePool::shrink(); // back to the host
/// # Ok::<(), kshim::error::Error>(())
/// ```
pub struct PagePool;

impl PagePool {
    /// The largest block.
    pub const MAX_BLOCK: usize = class_size(NR_CLASSES - 1);

    /// A block of at least `len` bytes (1 to [`PagePool::MAX_BLOCK`]).
    pub(super) fn get(len: usize) -> Result<Block> {
        let class = class_of(len);
        debug_assert!(class < NR_CLASSES);
        let pool = global();
        if magazine_cap(class) == 0 {
            return pool.depot_get(class);
        }
        // No cache any more while the thread's locals are being dropped.
        CACHE
            .try_with(|c| c.0.get(class, pool))
            .unwrap_or_else(|_| pool.depot_get(class))
    }

    pub(super) fn put(b: Block) {
        let pool = global();
        if magazine_cap(usize::from(b.class)) == 0 {
            return pool.depot_put(b);
        }
        let mut b = Some(b);
        let _ = CACHE.try_with(|c| {
            if let Some(b) = b.take() {
                c.0.put(b, pool);
            }
        });
        if let Some(b) = b {
            pool.depot_put(b);
        }
    }

    /// Gives everything that is free back to the host. Returns the bytes given back.
    ///
    /// Context: any thread; takes milliseconds when there is much.
    #[doc(alias = "shrinker")]
    pub fn shrink() -> usize {
        global().purge(Purge::All)
    }

    /// Gives back what nobody needed since the last call. [`PagePool::start_aging`] calls it regularly. Returns the bytes
    /// given back.
    ///
    /// Context: any thread; takes milliseconds when there is much.
    pub fn age() -> usize {
        global().purge(Purge::Idle)
    }

    /// From now on gives back what was idle for some seconds, on a work queue. While the pool holds no free memory
    /// nothing runs, so that an idle process sleeps.
    ///
    /// Context: may sleep.
    pub fn start_aging() {
        aging::start();
    }

    /// From now on takes memory from a driver, as long as that has some; `None`: from the host again. What was taken before
    /// stays in use until it is idle.
    ///
    /// Context: any.
    pub fn set_source(source: Option<Arc<dyn SpanSource>>) {
        span::set_source(source);
    }

    /// Limits the bytes mapped from the host; allocations beyond fail with `ENOMEM`. Default: none.
    ///
    /// Context: any.
    pub fn set_limit(bytes: usize) {
        global().limit.store(bytes, Ordering::Relaxed);
    }

    /// Counts what the pool holds.
    ///
    /// Context: any thread; walks all magazines.
    pub fn stats() -> PagePoolStats {
        let pool = global();
        let mut s = PagePoolStats {
            mapped_bytes: pool.mapped.load(Ordering::Relaxed),
            ..PagePoolStats::default()
        };
        for (class, depot) in pool.depots.iter().enumerate() {
            let depot = depot.lock();
            s.depot_bytes += (depot.stack.free.len() - depot.bare) * class_size(class);
        }
        let threads: Vec<_> = pool
            .threads
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for t in threads {
            for (class, mag) in t.magazines.lock().iter().enumerate() {
                s.cached_bytes += mag.free.len() * class_size(class);
            }
        }
        s
    }
}

impl fmt::Debug for PagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PagePool::stats().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kthread;

    fn private_pool() -> Global {
        Global {
            depots: std::array::from_fn(|_| SpinLock::new(Depot::default())),
            threads: SpinLock::new(Vec::new()),
            mapped: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
        }
    }

    fn private_cache(pool: &Global) -> Arc<ThreadCache> {
        let c = Arc::new(ThreadCache {
            magazines: SpinLock::new(std::array::from_fn(|_| Stack::default())),
        });
        pool.threads.lock().push(Arc::downgrade(&c));
        c
    }

    #[test]
    fn classes() {
        assert_eq!(class_of(1), 0);
        assert_eq!(class_of(4096), 0);
        assert_eq!(class_of(4097), 1);
        assert_eq!(class_of(PagePool::MAX_BLOCK), NR_CLASSES - 1);
        for class in 0..NR_CLASSES {
            assert_eq!(class_of(class_size(class)), class);
            assert_eq!(span_size(class) % class_size(class), 0);
        }
    }

    #[test]
    fn idle_memory_goes_back_and_used_memory_stays() {
        let pool = private_pool();
        let cache = private_cache(&pool);
        let mut held: Vec<Block> = (0..1000).map(|_| cache.get(0, &pool).unwrap()).collect();
        assert_eq!(pool.mapped.load(Ordering::Relaxed), 2 * SPAN_SIZE);
        let keep = held.pop().unwrap();
        for b in held {
            // SAFETY: `b` is an owned block of 4096 bytes.
            unsafe { b.ptr().write_bytes(0x5a, 4096) };
            cache.put(b, &pool);
        }
        for _ in 0..3 {
            pool.purge(Purge::Idle);
        }
        assert!(cache.magazines.lock()[0].free.is_empty());
        // The span of the block in use stays, the other is gone.
        assert_eq!(pool.mapped.load(Ordering::Relaxed), SPAN_SIZE);
        {
            let depot = pool.depots[0].lock();
            assert_eq!(depot.stack.free.len(), 511);
            assert_eq!(depot.bare, 511);
        }
        cache.put(keep, &pool);
        for _ in 0..3 {
            pool.purge(Purge::Idle);
        }
        assert_eq!(pool.mapped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn blocks_are_distinct_and_survive_purges() {
        let pool = private_pool();
        let cache = private_cache(&pool);
        let mut rng = 12345u32;
        let mut held: Vec<(Block, u8)> = Vec::new();
        for round in 0..20_000u32 {
            rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if rng >> 31 == 0 || held.is_empty() {
                let b = cache.get((rng >> 8) as usize % 8, &pool).unwrap();
                let tag = round as u8;
                // SAFETY: both ends are inside an owned block.
                unsafe {
                    b.ptr().write(tag);
                    b.ptr().add(b.size() - 1).write(tag);
                }
                held.push((b, tag));
            } else {
                let i = (rng >> 4) as usize % held.len();
                let (b, tag) = held.swap_remove(i);
                // SAFETY: both ends are inside an owned block.
                let ends = unsafe { (b.ptr().read(), b.ptr().add(b.size() - 1).read()) };
                assert_eq!(ends, (tag, tag));
                cache.put(b, &pool);
            }
            if round % 1000 == 0 {
                pool.purge(if round % 2000 == 0 {
                    Purge::Idle
                } else {
                    Purge::All
                });
            }
        }
        for (b, _) in held {
            cache.put(b, &pool);
        }
        pool.purge(Purge::All);
        assert_eq!(pool.mapped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_limit_is_enomem() {
        let pool = private_pool();
        let cache = private_cache(&pool);
        pool.limit.store(SPAN_SIZE, Ordering::Relaxed);
        let a = cache.get(0, &pool).unwrap();
        assert_eq!(cache.get(1, &pool).err(), Some(code::ENOMEM));
        cache.put(a, &pool);
        pool.purge(Purge::All);
        let b = cache.get(1, &pool).unwrap();
        cache.put(b, &pool);
    }

    #[test]
    fn a_thread_that_ends_leaves_its_blocks_to_the_depot() {
        kthread::run("pages", |_| {
            let b = PagePool::get(PAGE_SIZE).unwrap();
            assert_ne!(b.ptr().addr().get(), 0);
            PagePool::put(b);
        })
        .unwrap()
        .join();
        PagePool::shrink();
        let s = PagePool::stats();
        assert!(s.depot_bytes + s.cached_bytes <= s.mapped_bytes);
    }
}
