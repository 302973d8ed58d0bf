//! What the management tree shows of the pools.

use super::acc::{Accounts, ClassSum};
use super::{SGV_POOL_ELEMENTS, SgvKind, SgvPools};
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
        let credit: i64 = self.device_limits().iter().map(|d| d.credit_pages()).sum();
        GlobalStats {
            inactive_pages: self.pools().map(|p| p.cached_pages()).sum(),
            active_pages: u64::try_from(self.total.charged_pages() - credit).unwrap_or(0),
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

/// What one pool did: a directory of the management tree.
#[doc(alias = "sgv_pool")]
#[derive(Clone, Debug)]
pub struct SgvPool<'a> {
    accounts: &'a Accounts,
    kind: SgvKind,
    cpu: Option<usize>,
    name: String,
}

impl<'a> SgvPool<'a> {
    pub(super) fn new(accounts: &'a Accounts, kind: SgvKind, cpu: Option<usize>) -> Self {
        let name = match cpu {
            Some(n) => format!("{}-{n}", kind.pool_name()),
            None => kind.pool_name().to_owned(),
        };
        Self {
            accounts,
            kind,
            cpu,
            name,
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn set(&self) -> usize {
        self.kind as usize
            + if self.cpu.is_some() {
                SgvKind::ALL.len()
            } else {
                0
            }
    }

    fn sum(&self) -> ([ClassSum; SGV_POOL_ELEMENTS], u64) {
        self.accounts.sum(self.set(), self.cpu)
    }

    fn cached_pages(&self) -> u64 {
        pages(&self.sum().0, |c| c.cached)
    }

    /// Sets hits and totals to zero (a write to `stats`). Context: any.
    #[doc(alias = "sgv_sysfs_stat_reset")]
    pub fn reset_stats(&self) {
        self.accounts.reset(self.set(), self.cpu);
    }

    /// The text of `stats`. "% merged" is 0: pieces are contiguous from the start, nothing is merged. Context: any.
    #[doc(alias = "sgv_sysfs_stat_show")]
    pub fn stats_text(&self) -> String {
        let (classes, big) = self.sum();
        let hits: u64 = classes.iter().map(|c| c.hits).sum();
        let total: u64 = classes.iter().map(|c| c.total).sum();
        let cached = pages(&classes, |c| c.cached);
        let all = pages(&classes, |c| c.cached + c.in_use);
        let objects: u64 = classes.iter().map(|c| c.cached + c.in_use).sum();
        let mut text = format!(
            "{:<30} {:<11} {:<11} {:<11} {:<11}\n",
            "Name", "Hit", "Total", "% merged", "Cached (P/I/O)"
        );
        let _ = writeln!(
            text,
            "{:<30} {hits:<11} {total:<11} {:<11} {all}/{cached}/{objects}",
            self.name, 0
        );
        for (n, c) in classes.iter().enumerate() {
            let name = format!("{}-{}K", self.name, 4 << n);
            let _ = writeln!(text, "  {name:<28} {:<11} {:<11} 0", c.hits, c.total);
        }
        let _ = writeln!(text, "  {:<40} {big}/{:<9} 0/0", "big/other", 0);
        text
    }
}

/// Pages of the objects that `count` counts.
fn pages(classes: &[ClassSum], count: impl Fn(&ClassSum) -> u64) -> u64 {
    classes.iter().enumerate().map(|(n, c)| count(c) << n).sum()
}
