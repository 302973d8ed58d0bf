//! Per-thread data: padded slots, one for each thread index, and a counter made of them.
//!
//! C header: `include/linux/percpu.h`, `include/linux/percpu_counter.h`

use std::fmt;

use crate::cpu::{self, MAX_THREADS};
use crate::sync::OnceLock;
use crate::sys::sync::atomic::{AtomicI64, Ordering};

pub use crate::sys::sync::CachePadded;

/// Slots that come into being together. Threads get the lowest free index, so most objects need one or two groups.
const GROUP: usize = 8;

type Group = Box<[CachePadded<AtomicI64>; GROUP]>;

/// One padded counter for each thread index, allocated in groups when first used.
#[derive(Default)]
pub(crate) struct Slots {
    groups: [OnceLock<Group>; MAX_THREADS / GROUP],
}

impl Slots {
    pub(crate) const fn new() -> Self {
        Self {
            groups: [const { OnceLock::new() }; MAX_THREADS / GROUP],
        }
    }

    /// The slot of thread index `index`.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> &AtomicI64 {
        let cell = &self.groups[index / GROUP];
        let group = match cell.get() {
            Some(group) => group,
            None => Self::fill(cell),
        };
        &group[index % GROUP]
    }

    #[cold]
    fn fill(cell: &OnceLock<Group>) -> &Group {
        cell.get_or_init(Group::default)
    }

    /// All slots that have been used.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &AtomicI64> {
        self.groups
            .iter()
            .filter_map(OnceLock::get)
            .flat_map(|group| group.iter().map(|slot| &**slot))
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slots")
    }
}

/// A counter that many threads change without contention. Updates are sequentially consistent, so "count myself,
/// then look at a flag" works against "set the flag, then sum".
///
/// A sum that is taken while others both increment and decrement is no snapshot: it may miss an increment on one
/// thread and see the matching decrement on another. It is exact when nothing changes; while increments are kept
/// out it is never too low, so a zero is a true zero.
///
/// ```
/// use kshim::percpu::PercpuCounter;
///
/// static COMMANDS: PercpuCounter = PercpuCounter::new();
/// COMMANDS.inc();
/// assert_eq!(COMMANDS.sum(), 1);
/// COMMANDS.dec();
/// assert_eq!(COMMANDS.sum(), 0);
/// ```
#[derive(Debug, Default)]
pub struct PercpuCounter {
    slots: Slots,
}

impl PercpuCounter {
    /// Zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: Slots::new(),
        }
    }

    /// Adds one. Context: any thread, reactor-safe.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away. Context: any thread, reactor-safe.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative. Context: any thread, reactor-safe. Mirrors `percpu_counter_add`.
    #[doc(alias = "percpu_counter_add")]
    #[inline]
    pub fn add(&self, n: i64) {
        self.slots
            .get(cpu::thread_index())
            .fetch_add(n, Ordering::SeqCst);
    }

    /// The sum over all threads. Context: any thread, reactor-safe. Mirrors `percpu_counter_sum`.
    #[doc(alias = "percpu_counter_sum")]
    #[must_use]
    pub fn sum(&self) -> i64 {
        self.slots
            .iter()
            .fold(0, |sum, slot| sum.wrapping_add(slot.load(Ordering::SeqCst)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn sums_over_threads_that_come_and_go() {
        let c = Arc::new(PercpuCounter::new());
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let c = Arc::clone(&c);
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        c.inc();
                    }
                    c.add(-999);
                })
            })
            .collect();
        for t in threads {
            t.join().expect("thread ends");
        }
        assert_eq!(c.sum(), 8);
        for _ in 0..8 {
            c.dec();
        }
        assert_eq!(c.sum(), 0);
    }

    #[test]
    fn slots_are_padded() {
        assert_eq!(align_of::<CachePadded<AtomicI64>>(), 64);
        let slots = Slots::new();
        assert_eq!(slots.iter().count(), 0);
        slots.get(9);
        assert_eq!(slots.iter().count(), GROUP);
    }
}
