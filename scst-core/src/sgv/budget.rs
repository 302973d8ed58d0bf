//! Limits on memory, drawn on in batches.

use kshim::cpu;
use kshim::error::{Result, code};
use kshim::percpu::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// Logarithm of the page size in which memory is counted.
pub const PAGE_SHIFT: u32 = 12;

/// Places for credit: threads with the same index modulo this share one.
const SHARDS: usize = 8;

/// Credit is taken from the common account in pieces of at most so many pages.
const MAX_BATCH: i64 = 64;

/// Attempts near the limit, where credit of others has to be called in that they draw on at the same time.
const ATTEMPTS: u32 = 4;

/// Pages for `len` bytes.
///
/// # Errors
///
/// `ENOMEM` if that is more than anybody may have (8 TiB).
pub fn pages_of(len: usize) -> Result<u32> {
    match u32::try_from(len.div_ceil(1 << PAGE_SHIFT)) {
        Ok(pages) if pages <= i32::MAX as u32 => Ok(pages),
        _ => Err(code::ENOMEM),
    }
}

/// Which limit a charge ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitHit {
    /// The one that was to be charged.
    Own,
    /// The one that it is a part of.
    Parent,
}

/// A limit on memory in use: never exceeded, and the whole of it can be used.
///
/// `charged` is what was taken from the limit: memory in use, and credit that threads keep for their next charges. A charge is
/// taken from the thread's own credit; if that is not enough, `charged` grows by the missing pages and a batch. Near the limit all credit
/// is called in first.
///
/// A device's limit is part of the limit on all: what it takes for itself, in batches, it takes from that one too, so that a charge of
/// both is one operation.
///
/// Context: any thread; nothing sleeps.
#[doc(alias = "scst_mem_lim")]
#[derive(Debug)]
pub struct MemLim {
    limit: AtomicI64,
    charged: AtomicI64,
    batch: AtomicU32,
    parent: Option<Arc<MemLim>>,
    credits: [CachePadded<AtomicI64>; SHARDS],
}

impl MemLim {
    /// A limit of so many bytes (rounded down to pages), on its own or as a part of another one.
    pub(super) fn new(bytes: u64, parent: Option<Arc<Self>>) -> Self {
        let lim = Self {
            limit: AtomicI64::new(0),
            charged: AtomicI64::new(0),
            batch: AtomicU32::new(0),
            parent,
            credits: std::array::from_fn(|_| CachePadded::new(AtomicI64::new(0))),
        };
        lim.set_limit(bytes);
        lim
    }

    /// Changes the limit. If more is in use now, charges fail until enough is given back.
    pub fn set_limit(&self, bytes: u64) {
        let pages = i64::try_from(bytes >> PAGE_SHIFT).unwrap_or(i64::MAX >> 1);
        // All credit together is at most a quarter of the limit.
        let batch = (pages / (SHARDS as i64 * 8)).min(MAX_BATCH);
        self.limit.store(pages, Ordering::Relaxed);
        self.batch.store(batch as u32, Ordering::Relaxed);
        self.reclaim();
    }

    /// The limit in pages.
    #[doc(alias = "max_allowed_pages")]
    pub fn limit_pages(&self) -> i64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Pages in use. A snapshot: charges that happen meanwhile may be seen or not.
    #[doc(alias = "alloced_pages")]
    pub fn used_pages(&self) -> i64 {
        (self.charged_pages() - self.credit_pages()).max(0)
    }

    /// Pages taken from the limit: in use, or credit.
    pub(super) fn charged_pages(&self) -> i64 {
        self.charged.load(Ordering::Relaxed)
    }

    pub(super) fn credit_pages(&self) -> i64 {
        self.credits.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }

    #[inline]
    fn credit(&self) -> &AtomicI64 {
        let [first, ..] = &self.credits;
        self.credits
            .get(cpu::thread_index() % SHARDS)
            .unwrap_or(first)
    }

    /// Takes `pages`.
    ///
    /// # Errors
    ///
    /// Who has not so many left.
    #[doc(alias = "sgv_check_allowed_mem")]
    #[inline]
    pub fn charge(&self, pages: u32) -> Result<(), LimitHit> {
        let n = i64::from(pages);
        let credit = self.credit();
        let mut have = credit.load(Ordering::Relaxed);
        while have >= n {
            match credit.compare_exchange_weak(have, have - n, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(now) => have = now,
            }
        }
        self.charge_slow(n)
    }

    #[cold]
    fn charge_slow(&self, n: i64) -> Result<(), LimitHit> {
        let batch = i64::from(self.batch.load(Ordering::Relaxed));
        let credit = self.credit();
        let have = credit.swap(0, Ordering::Relaxed);
        if have >= n {
            // Somebody who shares the place gave back meanwhile.
            credit.fetch_add(have - n, Ordering::Relaxed);
            return Ok(());
        }
        if self.take(n - have + batch).is_ok() {
            credit.fetch_add(batch, Ordering::Relaxed);
            return Ok(());
        }
        self.give_back(have);
        for _ in 0..ATTEMPTS {
            if self.take(n).is_ok() {
                return Ok(());
            }
            if self.reclaim() == 0 {
                break;
            }
        }
        self.take(n)
    }

    fn take(&self, n: i64) -> Result<(), LimitHit> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |charged: i64| charged.checked_add(n).filter(|c| *c <= limit);
        let relaxed = Ordering::Relaxed;
        self.charged
            .fetch_update(relaxed, relaxed, more)
            .map_err(|_| LimitHit::Own)?;
        if let Some(parent) = &self.parent
            && parent.take(n).is_err()
        {
            self.charged.fetch_sub(n, Ordering::Relaxed);
            return Err(LimitHit::Parent);
        }
        Ok(())
    }

    fn give_back(&self, n: i64) {
        self.charged.fetch_sub(n, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.give_back(n);
        }
    }

    /// Gives `pages` back.
    #[doc(alias = "sgv_uncheck_allowed_mem")]
    #[inline]
    pub fn uncharge(&self, pages: u32) {
        let n = i64::from(pages);
        let credit = self.credit();
        let now = credit.fetch_add(n, Ordering::Relaxed) + n;
        let batch = i64::from(self.batch.load(Ordering::Relaxed));
        if now > 2 * batch {
            self.uncharge_slow(credit, batch);
        }
    }

    /// Leaves a batch of credit, and gives the rest back.
    #[cold]
    fn uncharge_slow(&self, credit: &AtomicI64, batch: i64) {
        let keep = |c: i64| (c > batch).then_some(batch);
        if let Ok(had) = credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, keep) {
            self.give_back(had - batch);
        }
    }

    /// Calls in all credit; answers how much it was.
    pub fn reclaim(&self) -> i64 {
        let mut back = 0;
        for c in &self.credits {
            if c.load(Ordering::Relaxed) > 0 {
                back += c.swap(0, Ordering::Relaxed);
            }
        }
        self.give_back(back);
        back
    }
}
