//! Who got how much: counters that only their own thread writes.

use super::{SGV_POOL_ELEMENTS, SgvKind};
use kshim::cpu;
use kshim::percpu::CachePadded;
use kshim::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sets of counters of a thread: those shown as the main pools', then those shown as its CPU's.
const SETS: usize = 2 * SgvKind::ALL.len();

/// One size class.
#[derive(Debug, Default)]
pub(super) struct ClassAcc {
    allocated: AtomicU64,
    freed: AtomicU64,
    /// Objects freed by this thread and not allocated again since the last purge: the thread's page cache has their memory,
    /// and the next allocation gets it. That is a *hit*.
    cached: AtomicU64,
    missed: AtomicU64,
    /// What `allocated` and `missed` were when the statistics were reset.
    base_allocated: AtomicU64,
    base_missed: AtomicU64,
}

/// The counters of one set: the classes, and what is larger.
#[derive(Debug, Default)]
struct Set {
    classes: [ClassAcc; SGV_POOL_ELEMENTS],
    big_alloc: AtomicU64,
}

/// The counters of one thread. The threads beyond [`cpu::MAX_THREADS`] share one, and may lose counts.
#[derive(Debug, Default)]
struct Shard {
    sets: [Set; SETS],
    /// The last purge that the thread knows of.
    purges: AtomicU64,
}

/// Adds to a counter that no other thread writes.
#[inline]
fn bump(c: &AtomicU64) {
    c.store(c.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl Shard {
    fn class(&self, set: u8, class: u8) -> Option<&ClassAcc> {
        self.sets
            .get(usize::from(set))?
            .classes
            .get(usize::from(class))
    }

    /// Forgets what a purge took.
    #[inline]
    fn catch_up(&self, purges: u64) {
        if self.purges.load(Ordering::Relaxed) != purges {
            self.forget_cached(purges);
        }
    }

    #[cold]
    fn forget_cached(&self, purges: u64) {
        self.purges.store(purges, Ordering::Relaxed);
        for c in self.sets.iter().flat_map(|s| &s.classes) {
            c.cached.store(0, Ordering::Relaxed);
        }
    }
}

/// Sums of one class over threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClassSum {
    pub(super) hits: u64,
    pub(super) total: u64,
    pub(super) cached: u64,
    pub(super) in_use: u64,
}

/// The counters of all threads.
#[derive(Debug)]
pub(super) struct Accounts {
    shards: Box<[OnceLock<Box<CachePadded<Shard>>>]>,
    purges: AtomicU64,
    cpus: usize,
}

impl Accounts {
    pub(super) fn new(cpus: usize) -> Self {
        Self {
            shards: (0..cpu::MAX_THREADS).map(|_| OnceLock::new()).collect(),
            purges: AtomicU64::new(0),
            cpus: cpus.clamp(1, cpu::MAX_THREADS),
        }
    }

    pub(super) fn cpus(&self) -> usize {
        self.cpus
    }

    #[inline]
    fn shard(&self) -> Option<&Shard> {
        let cell = self.shards.get(cpu::thread_index())?;
        Some(cell.get_or_init(Box::default))
    }

    #[inline]
    pub(super) fn alloc(&self, set: u8, class: u8) {
        let Some(shard) = self.shard() else { return };
        shard.catch_up(self.purges.load(Ordering::Relaxed));
        match shard.class(set, class) {
            Some(c) => {
                bump(&c.allocated);
                match c.cached.load(Ordering::Relaxed) {
                    0 => bump(&c.missed),
                    n => c.cached.store(n - 1, Ordering::Relaxed),
                }
            }
            None => {
                if let Some(s) = shard.sets.get(usize::from(set)) {
                    bump(&s.big_alloc);
                }
            }
        }
    }

    #[inline]
    pub(super) fn free(&self, set: u8, class: u8) {
        let Some(shard) = self.shard() else { return };
        shard.catch_up(self.purges.load(Ordering::Relaxed));
        if let Some(c) = shard.class(set, class) {
            bump(&c.freed);
            bump(&c.cached);
        }
    }

    /// The page caches are empty now.
    pub(super) fn purged(&self) {
        self.purges.fetch_add(1, Ordering::Relaxed);
    }

    /// The shards of a CPU's threads, or of all for `None`.
    fn of_cpu(&self, cpu: Option<usize>) -> impl Iterator<Item = &Shard> {
        let shards = self.shards.iter().enumerate();
        let here = move |n: usize| cpu.is_none_or(|cpu| n % self.cpus == cpu);
        shards
            .filter(move |(n, _)| here(*n))
            .filter_map(|(_, s)| s.get())
            .map(|s| &***s)
    }

    /// Sums of a set over the threads of a CPU, or all: by class, and the number of big allocations.
    pub(super) fn sum(
        &self,
        set: usize,
        cpu: Option<usize>,
    ) -> ([ClassSum; SGV_POOL_ELEMENTS], u64) {
        let mut sums = [ClassSum::default(); SGV_POOL_ELEMENTS];
        // A thread may free what another one allocated, so of some CPUs' pools this is less than nothing.
        let mut freed = [0u64; SGV_POOL_ELEMENTS];
        let mut big = 0;
        let purges = self.purges.load(Ordering::Relaxed);
        for shard in self.of_cpu(cpu) {
            let Some(set) = shard.sets.get(set) else {
                continue;
            };
            let stale = shard.purges.load(Ordering::Relaxed) != purges;
            big += set.big_alloc.load(Ordering::Relaxed);
            for ((sum, freed), c) in sums.iter_mut().zip(&mut freed).zip(&set.classes) {
                let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
                let total = get(&c.allocated).saturating_sub(get(&c.base_allocated));
                let missed = get(&c.missed).saturating_sub(get(&c.base_missed));
                sum.total += total;
                sum.hits += total.saturating_sub(missed);
                sum.cached += if stale { 0 } else { get(&c.cached) };
                sum.in_use += get(&c.allocated);
                *freed += get(&c.freed);
            }
        }
        for (sum, freed) in sums.iter_mut().zip(freed) {
            sum.in_use = sum.in_use.saturating_sub(freed);
        }
        (sums, big)
    }

    /// Makes hits and totals of a set start at zero.
    pub(super) fn reset(&self, set: usize, cpu: Option<usize>) {
        for set in self.of_cpu(cpu).filter_map(|s| s.sets.get(set)) {
            for c in &set.classes {
                c.base_allocated
                    .store(c.allocated.load(Ordering::Relaxed), Ordering::Relaxed);
                c.base_missed
                    .store(c.missed.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            set.big_alloc.store(0, Ordering::Relaxed);
        }
    }
}
