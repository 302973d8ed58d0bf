//! The counting of a [`PercpuRef`](super::PercpuRef), without threads, so that loom can explore it.
//!
//! # Modes
//!
//! *Live*: references are counted in the slots, plus whatever threads without a slot of their own did to the
//! atomic counter. That counter also holds [`BIAS`], so that it cannot become zero by such puts. *Dead*: all new
//! changes go to the atomic counter; after a grace period the slots are folded in and the bias is taken off.
//!
//! # Why the sum is right
//!
//! All slot changes are made inside read sections that saw the live mode. `set_dead` precedes the grace period, so
//! after it every such section has ended (its slot stores happen before the fold), and every later section sees
//! the dead mode. Going back to live, the slots are zeroed before the live mode is published by a release store,
//! while nobody writes them; a thread that sees the mode by an acquire load sees its slot zeroed.
//!
//! An atomic change that was decided on in the dead mode and is made in the live mode is right, too: the
//! bias is added before the mode is published, and while it is there no put sees a zero.

use crate::sys::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

const LIVE: usize = 0;
const DEAD: usize = 1;

/// Keeps the atomic counter far from zero while the slots count. The kernel's `PERCPU_COUNT_BIAS`.
const BIAS: i64 = i64::MIN;

#[derive(Debug)]
pub(super) struct Core {
    mode: AtomicUsize,
    count: AtomicI64,
}

impl Core {
    /// Live, with the initial reference.
    pub(super) fn new() -> Self {
        Self {
            mode: AtomicUsize::new(LIVE),
            count: AtomicI64::new(BIAS + 1),
        }
    }

    #[inline]
    pub(super) fn is_live(&self) -> bool {
        self.mode.load(Ordering::Acquire) == LIVE
    }

    /// Adds to the calling thread's slot, when the slots count. Only inside a read section. `slot` is `None` for a
    /// thread without a slot of its own.
    #[inline]
    fn add_to_slot<'a>(&self, slot: impl FnOnce() -> Option<&'a AtomicI64>, n: i64) -> bool {
        if !self.is_live() {
            return false;
        }
        let Some(slot) = slot() else { return false };
        // Nobody else writes the slot.
        slot.store(
            slot.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
        true
    }

    /// Only inside a read section, as the next three.
    #[inline]
    pub(super) fn get<'a>(&self, slot: impl FnOnce() -> Option<&'a AtomicI64>, n: i64) {
        if !self.add_to_slot(slot, n) {
            self.count.fetch_add(n, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn tryget<'a>(&self, slot: impl FnOnce() -> Option<&'a AtomicI64>) -> bool {
        self.add_to_slot(slot, 1) || self.get_not_zero()
    }

    #[inline]
    pub(super) fn tryget_live<'a>(&self, slot: impl FnOnce() -> Option<&'a AtomicI64>) -> bool {
        if !self.is_live() {
            return false;
        }
        // The mode may change in between; the read section still makes this a reference from before the kill.
        self.tryget(slot)
    }

    /// True when this was the last reference.
    #[inline]
    pub(super) fn put<'a>(&self, slot: impl FnOnce() -> Option<&'a AtomicI64>, n: i64) -> bool {
        !self.add_to_slot(slot, -n) && self.put_atomic(n)
    }

    fn get_not_zero(&self) -> bool {
        self.count
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
                (n != 0).then_some(n.wrapping_add(1))
            })
            .is_ok()
    }

    /// Puts on the atomic counter; true when this was the last reference.
    pub(super) fn put_atomic(&self, n: i64) -> bool {
        self.count.fetch_sub(n, Ordering::AcqRel) == n
    }

    /// Starts the way to the atomic counter, with one more reference that lasts until [`fold`](Self::fold) is done.
    pub(super) fn set_dead(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.mode.store(DEAD, Ordering::Release);
    }

    /// After a grace period: takes the slots in and the bias off. Returns the count, the extra reference of
    /// `set_dead` included.
    pub(super) fn fold<'a>(&self, slots: impl Iterator<Item = &'a AtomicI64>) -> i64 {
        let sum = slots.fold(0i64, |sum, s| sum.wrapping_add(s.load(Ordering::Relaxed)));
        let n = sum.wrapping_sub(BIAS);
        self.count.fetch_add(n, Ordering::AcqRel).wrapping_add(n)
    }

    /// Makes it live again, with a new initial reference. Only in the dead mode after `fold`.
    pub(super) fn set_live<'a>(&self, slots: impl Iterator<Item = &'a AtomicI64>) {
        self.count.fetch_add(BIAS + 1, Ordering::Relaxed);
        for slot in slots {
            slot.store(0, Ordering::Relaxed);
        }
        self.mode.store(LIVE, Ordering::Release);
    }

    /// Whether no reference is left. Never while the slots count.
    pub(super) fn is_zero(&self) -> bool {
        !self.is_live() && self.count.load(Ordering::Acquire) == 0
    }

    /// The number of references; a guess while others change it.
    pub(super) fn read<'a>(&self, slots: impl Iterator<Item = &'a AtomicI64>) -> i64 {
        let count = self.count.load(Ordering::Acquire);
        if count > i64::MIN / 2 {
            return count;
        }
        slots.fold(count.wrapping_sub(BIAS), |sum, s| {
            sum.wrapping_add(s.load(Ordering::Relaxed))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn slots_and_counter_add_up() {
        let slots = [AtomicI64::new(0), AtomicI64::new(0)];
        let c = Core::new();
        // Got on one thread, put on others: single slots may be negative.
        c.get(|| Some(&slots[0]), 3);
        assert!(!c.put(|| Some(&slots[1]), 1));
        c.get(|| None, 1);
        assert!(!c.put(|| None, 1));
        assert!(c.tryget_live(|| Some(&slots[1])));
        assert_eq!(c.read(slots.iter()), 4);
        assert!(!c.is_zero());

        c.set_dead();
        assert!(!c.tryget_live(|| Some(&slots[0])));
        assert!(c.tryget(|| Some(&slots[0])));
        assert!(!c.put(|| Some(&slots[0]), 1));
        assert!(!c.put_atomic(1), "the initial reference");
        assert_eq!(c.fold(slots.iter()), 4);
        assert!(!c.put_atomic(1), "the reference of the switch");
        assert_eq!(c.read(slots.iter()), 3);
        assert!(!c.put(|| Some(&slots[0]), 2));
        assert!(c.put(|| Some(&slots[1]), 1));
        assert!(c.is_zero() && !c.tryget(|| Some(&slots[0])));

        c.set_live(slots.iter());
        assert!(!c.is_zero());
        assert_eq!(c.read(slots.iter()), 1);
        assert!(c.tryget_live(|| Some(&slots[0])));
    }
}

#[cfg(all(test, loom))]
#[path = "loom_tests.rs"]
mod loom_tests;
