//! Per-thread identity: dense thread indices, and the mark of reactor context.
//!
//! C header: `include/linux/smp.h`, `include/linux/preempt.h`

use std::cell::Cell;
use std::marker::PhantomData;

use crate::sync::SpinLock;
use crate::sys::thread::LOCAL;

/// Number of different thread indices. With the handful of reactors and pools of a server this is plenty; a
/// process with more live threads than this stays right, its surplus threads share [`SHARED_INDEX`] and get slower.
pub const MAX_THREADS: usize = 256;

/// The index of all threads that found no index of their own.
pub const SHARED_INDEX: usize = MAX_THREADS - 1;

const WORD_BITS: usize = u64::BITS as usize;

/// Which indices below [`SHARED_INDEX`] are taken. The lock also hands everything that the old owner of an index
/// wrote to its slots over to the new owner.
static TAKEN: SpinLock<[u64; MAX_THREADS / WORD_BITS]> =
    SpinLock::new([0; MAX_THREADS / WORD_BITS]);

/// Gives the index back when the thread ends.
struct Lease(Cell<Option<usize>>);

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(index) = self.0.take() else { return };
        LOCAL.with(|l| {
            if l.rcu_depth.get() != 0 {
                // A leaked RCU guard: its section never ends, so nobody else may have the slot.
                return;
            }
            l.index.set(SHARED_INDEX + 1);
            TAKEN.lock()[index / WORD_BITS] &= !(1 << (index % WORD_BITS));
        });
    }
}

thread_local! {
    static LEASE: Lease = const { Lease(Cell::new(None)) };
}

/// Small dense id of the calling thread, below [`MAX_THREADS`]; assigned at the first call, reused after the
/// thread's end. Several threads may have [`SHARED_INDEX`].
///
/// Context: any thread, reactor-safe. Mirrors `smp_processor_id()`, but for threads.
///
/// ```
/// let mine = kshim::cpu::thread_index();
/// assert_eq!(mine, kshim::cpu::thread_index());
/// ```
#[doc(alias = "smp_processor_id")]
#[inline]
#[must_use]
pub fn thread_index() -> usize {
    LOCAL.with(|l| match l.index.get() {
        0 => assign(),
        n => n - 1,
    })
}

#[cold]
fn assign() -> usize {
    let index = LEASE
        .try_with(|lease| {
            let index = claim();
            if index != SHARED_INDEX {
                lease.0.set(Some(index));
            }
            index
        })
        // The thread is ending: it must not take what it could not give back.
        .unwrap_or(SHARED_INDEX);
    LOCAL.with(|l| l.index.set(index + 1));
    index
}

/// The lowest free index, so that a server with few threads touches few slots.
fn claim() -> usize {
    let mut taken = TAKEN.lock();
    for index in 0..SHARED_INDEX {
        let (word, bit) = (index / WORD_BITS, 1 << (index % WORD_BITS));
        if taken[word] & bit == 0 {
            taken[word] |= bit;
            return index;
        }
    }
    SHARED_INDEX
}

/// Whether the calling thread is inside a reactor's round, where it must not block.
///
/// Context: any thread.
#[inline]
#[must_use]
pub fn in_reactor() -> bool {
    LOCAL.with(|l| l.in_reactor.get())
}

/// Whether the calling thread must not sleep: inside a reactor's round, or (in debug builds) while it holds a
/// guard of [`SpinLock::lock_irqsave`].
///
/// Context: any thread. Mirrors `in_atomic()`.
#[inline]
#[must_use]
pub fn in_atomic() -> bool {
    LOCAL.with(|l| l.in_reactor.get() || l.atomic_depth.get() != 0)
}

/// The calling thread is inside a reactor's round while this lives.
#[derive(Debug)]
#[must_use]
pub struct ReactorScope {
    outer: bool,
    _not_send: PhantomData<*mut ()>,
}

/// Marks the calling thread as a reactor inside a round, until the scope is dropped. Scopes nest.
///
/// Context: reactors only.
///
/// ```
/// {
///     let _round = kshim::cpu::enter_reactor();
///     assert!(kshim::cpu::in_reactor());
/// }
/// assert!(!kshim::cpu::in_reactor());
/// ```
#[inline]
pub fn enter_reactor() -> ReactorScope {
    ReactorScope {
        outer: LOCAL.with(|l| l.in_reactor.replace(true)),
        _not_send: PhantomData,
    }
}

impl Drop for ReactorScope {
    #[inline]
    fn drop(&mut self) {
        LOCAL.with(|l| l.in_reactor.set(self.outer));
    }
}

/// CPUs that this process may use, in ascending order.
///
/// Context: any thread.
#[must_use]
pub fn online_cpus() -> Vec<usize> {
    crate::sys::thread::allowed_cpus()
}

/// The CPU that runs the calling thread now; a hint. Mirrors `raw_smp_processor_id()`.
///
/// Context: any thread, reactor-safe.
#[must_use]
pub fn raw_smp_processor_id() -> usize {
    crate::sys::thread::current_cpu()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Barrier};

    use super::*;

    #[test]
    fn live_threads_differ_and_surplus_threads_share() {
        let n = MAX_THREADS + 20;
        let meet = Arc::new(Barrier::new(n));
        let threads: Vec<_> = (0..n)
            .map(|_| {
                let meet = Arc::clone(&meet);
                std::thread::spawn(move || {
                    let index = thread_index();
                    meet.wait();
                    index
                })
            })
            .collect();
        let mut own = BTreeSet::new();
        let mut shared = 0;
        for t in threads {
            let index = t.join().expect("thread ends");
            if index == SHARED_INDEX {
                shared += 1;
            } else {
                assert!(own.insert(index), "index {index} given twice");
            }
        }
        assert!(shared >= 21);
    }

    #[test]
    fn an_index_is_free_again_after_the_thread() {
        for _ in 0..2 * MAX_THREADS {
            std::thread::spawn(thread_index)
                .join()
                .expect("thread ends");
        }
        let last = std::thread::spawn(thread_index)
            .join()
            .expect("thread ends");
        // Other tests run beside this one, but far from all indices are in use by them for ever.
        assert!(last <= SHARED_INDEX);
    }

    #[test]
    fn reactor_scopes_nest() {
        assert!(!in_reactor());
        let a = enter_reactor();
        {
            let _b = enter_reactor();
            assert!(in_atomic());
        }
        assert!(in_reactor());
        drop(a);
        assert!(!in_atomic());
    }
}
