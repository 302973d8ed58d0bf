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

mod acc;
mod budget;
#[cfg(test)]
mod tests;
mod text;

pub use budget::{LimitHit, MemLim, PAGE_SHIFT, pages_of};
pub use text::{GlobalStats, SgvPool};

use acc::Accounts;
use kshim::error::{Result, code};
use kshim::page::PagePool;
use kshim::scatterlist::SGTable;
use kshim::sync::SpinLock;
use kshim::time::Delta;
use kshim::workqueue::{self, Work, WorkItem};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Size classes of a pool: 4 KiB, 8 KiB, ... 4 MiB.
pub const SGV_POOL_ELEMENTS: usize = 11;

/// Pages of the largest class; larger allocations are counted as "big".
const MAX_CACHED_PAGES: u32 = 1 << (SGV_POOL_ELEMENTS - 1);

/// Memory that nobody needed for so long goes back to the host.
#[doc(alias = "SGV_DEFAULT_PURGE_INTERVAL")]
pub const PURGE_INTERVAL_SECS: i64 = 60;

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

/// Memory charged for a command. Give it to [`SgvPools::free`] with the limit it was charged to; dropping it would leave it
/// charged for ever, so that is a bug (and a panic in debug builds).
#[doc(alias = "sgv_pool_obj")]
#[derive(Debug)]
#[must_use = "has to be freed by SgvPools::free"]
pub struct SgvPoolObj {
    /// Pages charged; 0 when there is nothing to free.
    pages: u32,
    /// Which statistics it is in.
    set: u8,
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
/// use scst_core::sgv::{SgvConfig, SgvInit, SgvKind, SgvPools};
///
/// let config = SgvConfig { max_cmd_mem: 64 << 20, cpus: 2 };
/// let pools = SgvPools::new(&config);
/// let device = pools.device_limit(config.max_dev_cmd_mem());
/// let mut sg = SGTable::new();
/// let obj = pools.alloc(SgvKind::Norm, &device, &mut sg, 128 << 10, SgvInit::Any)?;
/// assert_eq!((sg.len(), sg.nents()), (128 << 10, 1));
/// pools.free(obj, &device, &mut sg);
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Debug)]
pub struct SgvPools {
    accounts: Accounts,
    #[doc(alias = "scst_force_global_sgv_pool")]
    force_global: AtomicBool,
    #[doc(alias = "sgv_hi_wmk")]
    total: Arc<MemLim>,
    /// The limits that are parts of `total`.
    devices: SpinLock<Vec<Weak<MemLim>>>,
    #[doc(alias = "sgv_releases_on_hiwmk")]
    hi_releases: AtomicU64,
    #[doc(alias = "sgv_releases_on_hiwmk_failed")]
    hi_failures: AtomicU64,
    purge_work: Work,
    #[doc(alias = "purge_work_scheduled")]
    purge_scheduled: AtomicBool,
}

impl SgvPools {
    /// Pools without memory.
    #[doc(alias = "scst_sgv_pools_init")]
    pub fn new(config: &SgvConfig) -> Arc<Self> {
        Arc::new(Self {
            accounts: Accounts::new(config.cpus),
            force_global: AtomicBool::new(false),
            total: Arc::new(MemLim::new(config.max_cmd_mem, None)),
            devices: SpinLock::new(Vec::new()),
            hi_releases: AtomicU64::new(0),
            hi_failures: AtomicU64::new(0),
            purge_work: Work::new(),
            purge_scheduled: AtomicBool::new(false),
        })
    }

    /// A limit for one device, in bytes, within the limit of all.
    ///
    /// Context: any; allocates.
    pub fn device_limit(&self, bytes: u64) -> Arc<MemLim> {
        let lim = Arc::new(MemLim::new(bytes, Some(Arc::clone(&self.total))));
        let mut devices = self.devices.lock();
        devices.retain(|d| d.strong_count() > 0);
        devices.push(Arc::downgrade(&lim));
        lim
    }

    /// Uses the statistics of the main pools for everybody (`force_global_sgv_pool`), instead of those of the CPUs.
    pub fn set_force_global(&self, on: bool) {
        self.force_global.store(on, Ordering::Relaxed);
    }

    /// Whether that is so.
    pub fn force_global(&self) -> bool {
        self.force_global.load(Ordering::Relaxed)
    }

    /// Replaces what is in `sg` by memory for `len` bytes of a command's data, charged to `device` (one of
    /// [`Self::device_limit`]) and to the whole.
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
        self.append(kind, device, sg, len, init)
    }

    /// Adds memory for `len` more bytes to `sg`, as [`Self::alloc`] otherwise. For data that is granted in pieces.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: a limit is reached, or the host has no memory. `sg` is as it was then, and nothing more is charged.
    #[inline]
    pub fn append(
        &self,
        kind: SgvKind,
        device: &MemLim,
        sg: &mut SGTable,
        len: usize,
        init: SgvInit,
    ) -> Result<SgvPoolObj> {
        let old_len = sg.len();
        let obj = self.charge(kind, device, len)?;
        if obj.pages == 0 {
            return Ok(obj);
        }
        let filled = sg.push_alloc(len).and_then(|()| match init {
            SgvInit::Any => Ok(()),
            SgvInit::Zeroed => sg.fill(old_len, len, 0),
        });
        if let Err(e) = filled {
            sg.truncate(old_len);
            self.uncharge(obj, device);
            return Err(e);
        }
        Ok(obj)
    }

    /// Charges `len` bytes that a command has from elsewhere, as [`Self::append`] otherwise.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: a limit is reached; nothing is charged then.
    #[inline]
    pub fn charge(&self, kind: SgvKind, device: &MemLim, len: usize) -> Result<SgvPoolObj> {
        let mut pages = pages_of(len)?;
        let mut class = SGV_POOL_ELEMENTS as u8;
        if pages <= MAX_CACHED_PAGES {
            if pages == 0 {
                return Ok(SgvPoolObj {
                    pages: 0,
                    set: 0,
                    class: 0,
                });
            }
            pages = pages.next_power_of_two();
            class = pages.trailing_zeros() as u8;
        }
        match device.charge(pages) {
            Ok(()) => {}
            Err(LimitHit::Own) => return Err(code::ENOMEM),
            Err(LimitHit::Parent) => self.charge_after_shrink(device, pages)?,
        }
        let global = self.force_global.load(Ordering::Relaxed);
        let set = kind as u8 + if global { 0 } else { SgvKind::ALL.len() as u8 };
        self.accounts.alloc(set, class);
        Ok(SgvPoolObj { pages, set, class })
    }

    /// The high watermark is reached: calls in all credit, gives cached memory back to the host, and tries once more.
    #[doc(alias = "sgv_hiwmk_check")]
    #[cold]
    fn charge_after_shrink(&self, device: &MemLim, pages: u32) -> Result {
        self.hi_releases.fetch_add(1, Ordering::Relaxed);
        self.flush();
        device.charge(pages).map_err(|_| {
            self.hi_failures.fetch_add(1, Ordering::Relaxed);
            code::ENOMEM
        })
    }

    /// Gives back what [`Self::alloc`] gave: empties `sg` and ends the charge to `device` and the whole. Sees to it that
    /// [`Self::purge`] runs in a while.
    ///
    /// Context: any; reactor-safe.
    #[doc(alias = "sgv_pool_free")]
    #[inline]
    pub fn free(self: &Arc<Self>, obj: SgvPoolObj, device: &MemLim, sg: &mut SGTable) {
        sg.clear();
        if obj.pages == 0 {
            return;
        }
        self.uncharge(obj, device);
        if !self.purge_scheduled.load(Ordering::Relaxed) {
            self.schedule_purge();
        }
    }

    /// Ends a charge.
    #[inline]
    fn uncharge(&self, mut obj: SgvPoolObj, device: &MemLim) {
        let pages = std::mem::take(&mut obj.pages);
        self.accounts.free(obj.set, obj.class);
        device.uncharge(pages);
    }

    #[cold]
    fn schedule_purge(self: &Arc<Self>) {
        if !self.purge_scheduled.swap(true, Ordering::Relaxed) {
            let delay = Delta::from_secs(PURGE_INTERVAL_SECS);
            // Already pending is as good.
            let _ = workqueue::system().enqueue_delayed(Arc::clone(self), delay);
        }
    }

    /// Gives back to the host what nobody needed since the last call. Answers whether there is more, so that it is to be
    /// called again after another interval. Runs by itself, a minute after memory was freed, until there is nothing left.
    ///
    /// Context: any; takes milliseconds when there is much.
    #[doc(alias = "sgv_purge_work_fn")]
    pub fn purge(&self) -> bool {
        PagePool::age();
        self.reclaim();
        self.accounts.purged();
        let left = PagePool::stats();
        left.depot_bytes + left.cached_bytes > 0
    }

    /// Gives all cached memory back to the host.
    ///
    /// Context: any; takes milliseconds when there is much.
    #[doc(alias = "sgv_pool_flush")]
    pub fn flush(&self) {
        PagePool::shrink();
        self.reclaim();
        self.accounts.purged();
    }

    /// Calls in the credit of all devices.
    fn reclaim(&self) {
        for d in self.device_limits() {
            d.reclaim();
        }
    }

    fn device_limits(&self) -> Vec<Arc<MemLim>> {
        self.devices
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Stops the purge work: before the pools are given up.
    ///
    /// Context: may sleep.
    #[doc(alias = "scst_sgv_pools_deinit")]
    pub fn stop(&self) {
        self.purge_scheduled.store(true, Ordering::Relaxed);
        self.purge_work.cancel_sync();
    }

    /// The pools, as directories of the management tree: the main ones, then those of each CPU.
    pub fn pools(&self) -> impl Iterator<Item = SgvPool<'_>> {
        (0..=self.accounts.cpus()).flat_map(move |n| {
            SgvKind::ALL.map(|kind| SgvPool::new(&self.accounts, kind, n.checked_sub(1)))
        })
    }
}

impl WorkItem for SgvPools {
    fn work(&self) -> &Work {
        &self.purge_work
    }

    fn run(self: Arc<Self>) {
        // Before the purge, so that memory freed meanwhile has its own.
        self.purge_scheduled.store(false, Ordering::Relaxed);
        if self.purge() {
            self.schedule_purge();
        }
    }
}
