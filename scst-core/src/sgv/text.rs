//! What the management tree shows of the pools.

use super::{ClassAcc, SgvPool, SgvPools};
use std::fmt::{self, Write};
use std::sync::atomic::Ordering;

/// Numbers of `sgv/global_stats`; [`fmt::Display`] is SCST's text for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalStats {
    /// Pages that are cached.
    pub inactive_pages: u64,
    /// Pages in use.
    pub active_pages: u64,
    /// Pages that may be in use.
    pub hi_watermark_pages: u64,
    /// How often the high watermark made the caches give memory back...
    pub hi_releases: u64,
    /// ... and that was not enough.
    pub hi_failures: u64,
}

impl fmt::Display for GlobalStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            inactive_pages,
            active_pages,
            hi_watermark_pages,
            hi_releases,
            hi_failures,
        } = self;
        writeln!(
            f,
            "{:<42} {inactive_pages}/{active_pages}",
            "Inactive/active pages"
        )?;
        // There is no low watermark in SCST either: always 0.
        writeln!(
            f,
            "{:<42} {hi_watermark_pages}/0",
            "Hi/lo watermarks [pages]"
        )?;
        writeln!(
            f,
            "{:<42} {hi_releases}/{hi_failures}",
            "Hi watermark releases/failures"
        )?;
        // Memory outside the pools is not counted: always 0.
        writeln!(f, "{:<42} {:<11}", "Other allocs", 0)
    }
}

impl SgvPools {
    /// Numbers of all pools together. Context: any.
    pub fn global_stats(&self) -> GlobalStats {
        GlobalStats {
            inactive_pages: self.pools().map(SgvPool::cached_pages).sum(),
            active_pages: self.total.used_pages().unsigned_abs(),
            hi_watermark_pages: self.total.limit_pages().unsigned_abs(),
            hi_releases: self.hi_releases.load(Ordering::Relaxed),
            hi_failures: self.hi_failures.load(Ordering::Relaxed),
        }
    }

    /// Sets releases and failures to zero (a write to `global_stats`).
    pub fn reset_global_stats(&self) {
        self.hi_releases.store(0, Ordering::Relaxed);
        self.hi_failures.store(0, Ordering::Relaxed);
    }
}

impl SgvPool {
    /// The text of `stats`. "% merged" is 0: pieces are contiguous from the start, nothing is merged. Context: any.
    #[doc(alias = "sgv_sysfs_stat_show")]
    pub fn stats_text(&self) -> String {
        let hits = self.classes.iter().map(ClassAcc::hits).sum::<u64>();
        let total = self.classes.iter().map(ClassAcc::total).sum::<u64>();
        let cached_pages = self.cached_pages();
        let in_use_pages: u64 = self
            .classes
            .iter()
            .enumerate()
            .map(|(n, c)| c.in_use() * Self::class_pages(n))
            .sum();
        let objects: u64 = self.classes.iter().map(|c| c.cached() + c.in_use()).sum();
        let mut text = String::new();
        let _ = write!(
            text,
            "{:<30} {:<11} {:<11} {:<11} {:<11}\n{:<30} {hits:<11} {total:<11} {:<11} {}/{}/{}\n",
            "Name",
            "Hit",
            "Total",
            "% merged",
            "Cached (P/I/O)",
            self.name,
            0,
            cached_pages + in_use_pages,
            cached_pages,
            objects,
        );
        for (n, c) in self.classes.iter().enumerate() {
            let name = format!("{}-{}K", self.name, Self::class_pages(n) * 4);
            let _ = writeln!(text, "  {name:<28} {:<11} {:<11} 0", c.hits(), c.total());
        }
        let big = self.big_alloc.load(Ordering::Relaxed);
        let _ = writeln!(text, "  {:<40} {big}/{:<9} 0/0", "big/other", 0);
        text
    }
}
