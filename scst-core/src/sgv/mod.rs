//! SGV: the memory of commands' data, and how much of it there may be.
//!
//! kshim's page pool recycles the memory itself: one contiguous piece per command, from a cache of the calling thread. What is
//! here is SCST's view of it: pools by kind and CPU with their statistics, the limit on the memory of commands under way (all:
//! `scst_max_cmd_mem`, one device's: `scst_max_dev_cmd_mem`), and giving memory back that nobody needed for a minute.
//!
//! Both limits are [`MemLim`]s, which threads draw on in batches; a command's allocation touches only cache lines that its CPU has for
//! itself. A command that gets no memory is answered BUSY or TASK SET FULL by the caller.
//!
//! DIFFERS: SCST counts cached objects against the high watermark and shrinks its caches when they are in the way. Here the
//! watermark is on memory in use, and running into it gives all cached memory back to the host before the command is refused.
//! There is no clustering to do, as every piece is contiguous; the kinds remain for the management tree.
//!
//! C source: `scst/src/scst_mem.c`

mod budget;
#[cfg(test)]
mod tests;
mod text;

pub use budget::{MemLim, PAGE_SHIFT, pages_of};
pub use text::GlobalStats;

use kshim::cpu;
use kshim::error::{Result, code};
use kshim::page::PagePool;
use kshim::percpu::CachePadded;
use kshim::scatterlist::SGTable;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Size classes of a pool: 4 KiB, 8 KiB, ... 4 MiB.
pub const SGV_POOL_ELEMENTS: usize = 11;

/// Memory that nobody needed for so long goes back to the host.
#[doc(alias = "SGV_DEFAULT_PURGE_INTERVAL")]
pub const PURGE_INTERVAL_SECS: u64 = 60;

/// Which kind of memory a nexus wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SgvKind {
    /// Any.
    #[doc(alias = "scst_sgv_pool_use_norm")]
    #[default]
    Norm = 0,
    /// In as few pieces as possible, for transports that say so.
    #[doc(alias = "scst_sgv_pool_use_norm_clust")]
    Clust = 1,
    /// Reachable by old hardware; the same as [`SgvKind::Norm`] here.
    #[doc(alias = "scst_sgv_pool_use_dma")]
    Dma = 2,
}

impl SgvKind {
    const ALL: [Self; 3] = [Self::Norm, Self::Clust, Self::Dma];

    const fn pool_name(self) -> &'static str {
        match self {
            Self::Norm => "sgv",
            Self::Clust => "sgv-clust",
            Self::Dma => "sgv-dma",
        }
    }
}

/// What is in the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgvInit {
    /// Whatever it was used for last, also other initiators' data: the whole of it will be overwritten.
    Any,
    /// Zeros.
    Zeroed,
}

/// One size class of a pool. "Cached" is the memory that was in use at some time since the last purge and is not now: it is what
/// the next allocation gets (a *hit*), as the page pool reuses before it grows.
#[derive(Debug, Default)]
struct ClassAcc {
    allocated: AtomicU64,
    freed: AtomicU64,
    /// Most objects in use at a time since the last purge.
    peak: AtomicU64,
    missed: AtomicU64,
    /// What `allocated` and `missed` were when the statistics were reset.
    base_allocated: AtomicU64,
    base_missed: AtomicU64,
}

impl ClassAcc {
    #[inline]
    fn alloc(&self) {
        let allocated = self.allocated.fetch_add(1, Ordering::Relaxed) + 1;
        let in_use = allocated.saturating_sub(self.freed.load(Ordering::Relaxed));
        if in_use > self.peak.load(Ordering::Relaxed) {
            self.peak.store(in_use, Ordering::Relaxed);
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[inline]
    fn free(&self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
    }

    fn in_use(&self) -> u64 {
        let freed = self.freed.load(Ordering::Relaxed);
        self.allocated.load(Ordering::Relaxed).saturating_sub(freed)
    }

    fn cached(&self) -> u64 {
        self.peak
            .load(Ordering::Relaxed)
            .saturating_sub(self.in_use())
    }

    fn purge(&self) {
        self.peak.store(self.in_use(), Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed) - self.base_allocated.load(Ordering::Relaxed)
    }

    fn hits(&self) -> u64 {
        let missed = self.missed.load(Ordering::Relaxed) - self.base_missed.load(Ordering::Relaxed);
        self.total().saturating_sub(missed)
    }

    fn reset(&self) {
        let allocated = self.allocated.load(Ordering::Relaxed);
        self.base_allocated.store(allocated, Ordering::Relaxed);
        self.base_missed
            .store(self.missed.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Statistics of one kind of memory on one CPU.
#[doc(alias = "sgv_pool")]
#[derive(Debug)]
pub struct SgvPool {
    name: String,
    classes: [ClassAcc; SGV_POOL_ELEMENTS],
    /// Allocations larger than the largest class.
    big_alloc: AtomicU64,
    big_pages: AtomicU64,
}

impl SgvPool {
    fn new(name: String) -> CachePadded<Self> {
        CachePadded::new(Self {
            name,
            classes: Default::default(),
            big_alloc: AtomicU64::new(0),
            big_pages: AtomicU64::new(0),
        })
    }

    /// The name, a directory of the management tree.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets hits and totals to zero (a write to `stats`).
    pub fn reset_stats(&self) {
        self.classes.iter().for_each(ClassAcc::reset);
        self.big_alloc.store(0, Ordering::Relaxed);
        self.big_pages.store(0, Ordering::Relaxed);
    }

    fn class_pages(class: usize) -> u64 {
        1 << class
    }

    fn cached_pages(&self) -> u64 {
        let cached = |(n, c): (usize, &ClassAcc)| c.cached() * Self::class_pages(n);
        self.classes.iter().enumerate().map(cached).sum()
    }
}

/// Memory charged for a command. Give it to [`SgvPools::free`] with the limit it was charged to; dropping it would leave it
/// charged for ever, so that is a bug (and a panic in debug builds).
#[doc(alias = "sgv_pool_obj")]
#[derive(Debug)]
#[must_use = "has to be freed by SgvPools::free"]
pub struct SgvPoolObj {
    /// Pages charged; 0 when there is nothing to free.
    pages: u32,
    pool: u16,
    /// Size class; [`SGV_POOL_ELEMENTS`] for larger ones.
    class: u8,
}

impl SgvPoolObj {
    /// Pages charged.
    pub fn pages(&self) -> u32 {
        self.pages
    }
}

impl Drop for SgvPoolObj {
    fn drop(&mut self) {
        debug_assert!(self.pages == 0, "SGV memory not freed: {self:?}");
    }
}

/// How much memory commands may use.
#[derive(Clone, Copy, Debug)]
pub struct SgvConfig {
    /// All commands together, in bytes (`scst_max_cmd_mem`, which is in MiB).
    pub max_cmd_mem: u64,
    /// CPUs to have pools for.
    pub cpus: usize,
}

impl SgvConfig {
    /// SCST's default: a quarter of the host's memory.
    pub fn for_host(total_ram: u64, cpus: usize) -> Self {
        Self {
            max_cmd_mem: total_ram / 4,
            cpus,
        }
    }

    /// SCST's default for one device: two fifths of the whole.
    #[doc(alias = "scst_max_dev_cmd_mem")]
    pub fn max_dev_cmd_mem(&self) -> u64 {
        self.max_cmd_mem / 5 * 2
    }
}

/// All pools of the server.
///
/// # Examples
///
/// ```
/// use kshim::scatterlist::SGTable;
/// use scst_core::sgv::{MemLim, SgvConfig, SgvInit, SgvKind, SgvPools};
///
/// let config = SgvConfig { max_cmd_mem: 64 << 20, cpus: 2 };
/// let pools = SgvPools::new(&config);
/// let device = MemLim::new(config.max_dev_cmd_mem());
/// let mut sg = SGTable::new();
/// let obj = pools.alloc(SgvKind::Norm, &device, &mut sg, 128 << 10, SgvInit::Any)?;
/// assert_eq!((sg.len(), sg.nents()), (128 << 10, 1));
/// pools.free(obj, &device, &mut sg);
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Debug)]
pub struct SgvPools {
    /// The three main pools, then three for each CPU.
    pools: Vec<CachePadded<SgvPool>>,
    cpus: usize,
    #[doc(alias = "scst_force_global_sgv_pool")]
    force_global: AtomicBool,
    #[doc(alias = "sgv_hi_wmk")]
    total: MemLim,
    #[doc(alias = "sgv_releases_on_hiwmk")]
    hi_releases: AtomicU64,
    #[doc(alias = "sgv_releases_on_hiwmk_failed")]
    hi_failures: AtomicU64,
    /// A purge is on its way.
    purge_scheduled: AtomicBool,
}

impl SgvPools {
    /// Pools without memory.
    #[doc(alias = "scst_sgv_pools_init")]
    pub fn new(config: &SgvConfig) -> Self {
        let cpus = config.cpus.clamp(1, cpu::MAX_THREADS);
        let mains = SgvKind::ALL.map(|k| SgvPool::new(k.pool_name().to_owned()));
        let per_cpu = (0..cpus)
            .flat_map(|n| SgvKind::ALL.map(|k| SgvPool::new(format!("{}-{n}", k.pool_name()))));
        Self {
            pools: mains.into_iter().chain(per_cpu).collect(),
            cpus,
            force_global: AtomicBool::new(false),
            total: MemLim::new(config.max_cmd_mem),
            hi_releases: AtomicU64::new(0),
            hi_failures: AtomicU64::new(0),
            purge_scheduled: AtomicBool::new(false),
        }
    }

    /// Uses the main pools for everybody (`force_global_sgv_pool`): for looking at totals, at the price of sharing.
    pub fn set_force_global(&self, on: bool) {
        self.force_global.store(on, Ordering::Relaxed);
    }

    #[inline]
    fn pool_index(&self, kind: SgvKind) -> usize {
        if self.force_global.load(Ordering::Relaxed) {
            kind as usize
        } else {
            (1 + cpu::thread_index() % self.cpus) * SgvKind::ALL.len() + kind as usize
        }
    }

    /// Replaces what is in `sg` by memory for `len` bytes of a command's data, charged to `device` and to the whole.
    ///
    /// Context: any; reactor-safe.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: a limit is reached, or the host has no memory. `sg` is empty then, and nothing is charged.
    #[doc(alias = "sgv_pool_alloc")]
    #[inline]
    pub fn alloc(
        &self,
        kind: SgvKind,
        device: &MemLim,
        sg: &mut SGTable,
        len: usize,
        init: SgvInit,
    ) -> Result<SgvPoolObj> {
        sg.clear();
        let at = self.pool_index(kind);
        let pool = self.pools.get(at).ok_or(code::EINVAL)?;
        let pages = pages_of(len)?;
        if pages == 0 {
            return Ok(SgvPoolObj {
                pages: 0,
                pool: 0,
                class: 0,
            });
        }
        let order = pages.next_power_of_two().trailing_zeros() as usize;
        let (class, pages) = match pool.classes.get(order) {
            Some(_) => (order, 1 << order),
            None => (SGV_POOL_ELEMENTS, pages),
        };
        if !device.charge(pages) {
            return Err(code::ENOMEM);
        }
        if !self.total.charge(pages) && !self.charge_after_shrink(pages) {
            device.uncharge(pages);
            return Err(code::ENOMEM);
        }
        let filled = sg.push_alloc(len).and_then(|()| match init {
            SgvInit::Any => Ok(()),
            SgvInit::Zeroed => sg.fill(0, len, 0),
        });
        if let Err(e) = filled {
            sg.clear();
            self.total.uncharge(pages);
            device.uncharge(pages);
            return Err(e);
        }
        match pool.classes.get(class) {
            Some(acc) => acc.alloc(),
            None => {
                pool.big_alloc.fetch_add(1, Ordering::Relaxed);
                pool.big_pages
                    .fetch_add(u64::from(pages), Ordering::Relaxed);
            }
        }
        Ok(SgvPoolObj {
            pages,
            pool: at as u16,
            class: class as u8,
        })
    }

    /// The high watermark is reached: gives cached memory back to the host, and tries once more.
    #[doc(alias = "sgv_hiwmk_check")]
    #[cold]
    fn charge_after_shrink(&self, pages: u32) -> bool {
        self.hi_releases.fetch_add(1, Ordering::Relaxed);
        self.flush();
        let ok = self.total.charge(pages);
        if !ok {
            self.hi_failures.fetch_add(1, Ordering::Relaxed);
        }
        ok
    }

    /// Gives back what [`Self::alloc`] gave: empties `sg` and ends the charge to `device` and the whole.
    ///
    /// Context: any; reactor-safe.
    #[doc(alias = "sgv_pool_free")]
    #[inline]
    pub fn free(&self, mut obj: SgvPoolObj, device: &MemLim, sg: &mut SGTable) {
        sg.clear();
        let pages = std::mem::take(&mut obj.pages);
        if pages == 0 {
            return;
        }
        let pool = self.pools.get(usize::from(obj.pool));
        if let Some(acc) = pool.and_then(|p| p.classes.get(usize::from(obj.class))) {
            acc.free();
        }
        self.total.uncharge(pages);
        device.uncharge(pages);
    }

    /// Claims the purge: `true` tells the caller to call [`Self::purge`] in [`PURGE_INTERVAL_SECS`] seconds. For the place that frees;
    /// one load when a purge is on its way already.
    #[inline]
    pub fn need_purge(&self) -> bool {
        !self.purge_scheduled.load(Ordering::Relaxed)
            && !self.purge_scheduled.swap(true, Ordering::Relaxed)
    }

    /// Gives back to the host what nobody needed since the last call. Answers whether there is more, so that it is to be
    /// called again after another interval; if not, the next [`Self::need_purge`] is `true`.
    ///
    /// Context: a work item; takes milliseconds when there is much.
    #[doc(alias = "sgv_purge_work_fn")]
    pub fn purge(&self) -> bool {
        // First, so that memory freed from here on schedules the next purge if this call does not.
        self.purge_scheduled.store(false, Ordering::Relaxed);
        PagePool::age();
        self.total.reclaim();
        for pool in &self.pools {
            pool.classes.iter().for_each(ClassAcc::purge);
        }
        let left = PagePool::stats();
        let more = left.depot_bytes + left.cached_bytes > 0;
        more && self.need_purge()
    }

    /// Gives all cached memory back to the host.
    ///
    /// Context: any; takes milliseconds when there is much.
    #[doc(alias = "sgv_pool_flush")]
    pub fn flush(&self) {
        PagePool::shrink();
        self.total.reclaim();
        for pool in &self.pools {
            pool.classes.iter().for_each(ClassAcc::purge);
        }
    }

    /// The pools, as directories of the management tree: the main ones, then those of each CPU.
    pub fn pools(&self) -> impl Iterator<Item = &SgvPool> {
        self.pools.iter().map(|p| &**p)
    }
}
