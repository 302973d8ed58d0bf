//! The epochs behind RCU: who reads, since when.
//!
//! # Why a grace period is one
//!
//! ```text
//!   reader                                   writer
//!   R1  e = epoch (relaxed)                  W1  publish the new version
//!   R2  slot = e (release)                   W2  epoch += 1, giving n (acquire, release)
//!   R3  fence(SeqCst)                        W3  fence(SeqCst)
//!   R4  read what is published, use it       W4  read the slot (acquire) until it is QUIET or >= n
//!   R5  slot = QUIET (release)               W5  free the old version
//! ```
//!
//! The fences R3 and W3 are totally ordered.
//! - R3 before W3: W4 sees what R2 stored, or something later from the same slot. While it is an epoch below `n` the
//!   writer waits. When it is QUIET or a later section's epoch, the acquire load reads from a release store that
//!   the reader made after its use R4, so R4 happens before W5. When it is `n` or more from R2 itself, R1 read a
//!   value that W2 or a later writer stored; with the fence R3 that synchronises with W2, so R4 finds the new
//!   version (W1 precedes W2) and does not use the old one.
//! - W3 before R3: R4 finds the new version, as W1 precedes W3.
//!
//! R1 may be late: a reader that stores an epoch which is already old is waited for needlessly, never missed.
//!
//! Threads without a slot of their own register under a lock, in [`Domain::enter_shared`]. The same argument holds,
//! with the lock's release and acquire in place of R2, R5 and W4.

use crate::sys::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sys::sync::{CachePadded, Mutex};

/// A slot whose thread reads nothing.
const QUIET: u64 = 0;
/// The first epoch; above [`QUIET`].
const FIRST: u64 = 1;

/// Readers and their epochs.
pub(crate) struct Domain<const N: usize> {
    epoch: CachePadded<AtomicU64>,
    slots: [CachePadded<AtomicU64>; N],
    /// Epochs of the readers without a slot, each with their number.
    shared: Mutex<Vec<(u64, usize)>>,
}

impl<const N: usize> Domain<N> {
    /// Nobody reads.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self {
            epoch: CachePadded::new(AtomicU64::new(FIRST)),
            slots: [const { CachePadded::new(AtomicU64::new(QUIET)) }; N],
            shared: Mutex::new(Vec::new()),
        }
    }

    /// Nobody reads.
    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self {
            epoch: CachePadded::new(AtomicU64::new(FIRST)),
            slots: std::array::from_fn(|_| CachePadded::new(AtomicU64::new(QUIET))),
            shared: Mutex::new(Vec::new()),
        }
    }

    /// R1 to R3 for the owner of a slot.
    #[inline]
    pub(crate) fn enter(&self, slot: usize) {
        let e = self.epoch.load(Ordering::Relaxed);
        self.slots[slot].store(e, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// R5 for the owner of a slot. True when a writer may be waiting for this section.
    #[inline]
    pub(crate) fn leave(&self, slot: usize) -> bool {
        let slot = &self.slots[slot];
        let e = slot.load(Ordering::Relaxed);
        slot.store(QUIET, Ordering::Release);
        e != self.epoch.load(Ordering::Relaxed)
    }

    /// R1 to R3 for a thread without a slot; the result goes to [`leave_shared`](Self::leave_shared).
    pub(crate) fn enter_shared(&self) -> u64 {
        let e = {
            let mut readers = self.shared.lock();
            let e = self.epoch.load(Ordering::Relaxed);
            match readers.iter_mut().find(|(epoch, _)| *epoch == e) {
                Some((_, n)) => *n += 1,
                None => readers.push((e, 1)),
            }
            e
        };
        fence(Ordering::SeqCst);
        e
    }

    /// R5 for a thread without a slot. True when a writer may be waiting for this section.
    pub(crate) fn leave_shared(&self, e: u64) -> bool {
        let mut readers = self.shared.lock();
        let at = readers.iter().position(|&(epoch, _)| epoch == e);
        let at = at.expect("a reader leaves the epoch that it entered");
        readers[at].1 -= 1;
        if readers[at].1 == 0 {
            readers.swap_remove(at);
        }
        e != self.epoch.load(Ordering::Relaxed)
    }

    /// W2 and W3: starts a grace period and gives its number.
    pub(crate) fn advance(&self) -> u64 {
        let n = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        n
    }

    /// W4: whether the slot's thread is past grace period `n`.
    pub(crate) fn is_past(&self, slot: usize, n: u64) -> bool {
        let e = self.slots[slot].load(Ordering::Acquire);
        e == QUIET || e >= n
    }

    /// W4: whether all threads without a slot are past grace period `n`.
    pub(crate) fn is_shared_past(&self, n: u64) -> bool {
        self.shared.lock().iter().all(|&(e, _)| e >= n)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_section_holds_up_the_periods_that_start_inside() {
        let d = Domain::<2>::new();
        let before = d.advance();
        d.enter(1);
        assert!(d.is_past(0, before) && d.is_past(1, before));
        let n = d.advance();
        assert!(d.is_past(0, n) && !d.is_past(1, n));
        assert!(d.leave(1));
        assert!(d.is_past(1, n));
        d.enter(1);
        assert!(d.is_past(1, n));
        assert!(!d.leave(1));
    }

    #[test]
    fn shared_readers_are_counted_by_epoch() {
        let d = Domain::<1>::new();
        let a = d.enter_shared();
        let b = d.enter_shared();
        let n = d.advance();
        let c = d.enter_shared();
        assert!(!d.is_shared_past(n));
        assert!(d.leave_shared(a));
        assert!(!d.is_shared_past(n));
        assert!(d.leave_shared(b));
        assert!(d.is_shared_past(n));
        assert!(!d.leave_shared(c));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    use super::*;
    use crate::sys::sync::explore;

    /// Two versions; the writer overwrites the old one after the grace period. loom reports a reader that is
    /// still in it.
    struct Published {
        domain: Domain<1>,
        current: AtomicUsize,
        versions: [UnsafeCell<u32>; 2],
    }

    impl Published {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                domain: Domain::new(),
                current: AtomicUsize::new(0),
                versions: [UnsafeCell::new(10), UnsafeCell::new(11)],
            })
        }

        fn read(&self) {
            let i = self.current.load(Ordering::Acquire);
            // SAFETY: for the model only; loom checks the accesses.
            let v = self.versions[i].with(|p| unsafe { *p });
            assert!(v == 10 || v == 11);
        }

        fn replace(&self) {
            self.current.store(1, Ordering::Release);
            let n = self.domain.advance();
            while !(self.domain.is_past(0, n) && self.domain.is_shared_past(n)) {
                thread::yield_now();
            }
            // SAFETY: for the model only; loom checks the accesses.
            self.versions[0].with_mut(|p| unsafe { *p = 99 });
        }
    }

    #[test]
    fn loom_rcu_waits_for_a_slot_reader() {
        loom::model(|| {
            let p = Published::new();
            let own = Arc::clone(&p);
            let t = thread::spawn(move || {
                for _ in 0..2 {
                    own.domain.enter(0);
                    own.read();
                    own.domain.leave(0);
                }
            });
            p.replace();
            t.join().expect("thread ends");
        });
    }

    #[test]
    fn loom_rcu_waits_for_shared_readers() {
        explore(2, || {
            let p = Published::new();
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let own = Arc::clone(&p);
                    thread::spawn(move || {
                        let e = own.domain.enter_shared();
                        own.read();
                        own.domain.leave_shared(e);
                    })
                })
                .collect();
            p.replace();
            for t in readers {
                t.join().expect("thread ends");
            }
        });
    }
}
