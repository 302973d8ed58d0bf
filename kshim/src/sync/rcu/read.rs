//! Read sections, and waiting for them.

use std::marker::PhantomData;

use super::Domain;
use crate::cpu::{self, SHARED_INDEX};
use crate::sync::WaitQueue;
use crate::sys::sync::spin_hint;
use crate::sys::thread::LOCAL;
use crate::time::Delta;

static DOMAIN: Domain<SHARED_INDEX> = Domain::new();
/// Threads that wait for a reader to leave.
static WRITERS: WaitQueue = WaitQueue::new();

/// How often a writer looks at a reader before it goes to sleep; most sections are shorter than a sleep.
const SPINS: usize = 64;
/// Readers wake a sleeping writer when they leave. A reader that has not noticed the writer yet does not, so a
/// writer also looks by itself, first after this time...
const FIRST_PAUSE: Delta = Delta::from_micros(100);
/// ...and then ever more rarely, up to this.
const MAX_PAUSE: Delta = Delta::from_millis(10);

/// A read section: while it lives, nothing that was published at its start or later goes away. Stays on its thread.
///
/// A guard that is leaked keeps its section open for ever: grace periods do not end any more.
#[must_use = "the section ends when the guard is dropped"]
#[derive(Debug)]
pub struct Guard {
    _not_send: PhantomData<*mut ()>,
}

/// Starts a read section. Sections nest; a nested start and end cost about a nanosecond each. Sleeping inside is
/// allowed but holds up all grace periods.
///
/// Context: any thread, reactor-safe. Mirrors `rcu_read_lock`.
#[doc(alias = "rcu_read_lock")]
#[inline]
pub fn read_lock() -> Guard {
    LOCAL.with(|l| {
        let depth = l.rcu_depth.get();
        if depth == 0 {
            enter();
        }
        l.rcu_depth.set(depth + 1);
    });
    Guard {
        _not_send: PhantomData,
    }
}

#[inline]
fn enter() {
    let index = cpu::thread_index();
    if index == SHARED_INDEX {
        enter_shared();
    } else {
        DOMAIN.enter(index);
    }
}

#[cold]
fn enter_shared() {
    let e = DOMAIN.enter_shared();
    LOCAL.with(|l| l.rcu_epoch.set(e));
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        LOCAL.with(|l| {
            let depth = l.rcu_depth.get() - 1;
            l.rcu_depth.set(depth);
            if depth == 0 {
                leave();
            }
        });
    }
}

#[inline]
fn leave() {
    // The index cannot have changed inside the section: a thread that ends with an open section keeps it.
    let index = cpu::thread_index();
    let awaited = if index == SHARED_INDEX {
        leave_shared()
    } else {
        DOMAIN.leave(index)
    };
    if awaited {
        wake_writers();
    }
}

#[cold]
fn leave_shared() -> bool {
    DOMAIN.leave_shared(LOCAL.with(|l| l.rcu_epoch.get()))
}

#[cold]
fn wake_writers() {
    WRITERS.wake_up_all();
}

/// Whether the calling thread is inside a read section; for assertions.
///
/// Context: any thread, reactor-safe. Mirrors `rcu_read_lock_held`.
#[doc(alias = "rcu_read_lock_held")]
#[must_use]
pub fn read_lock_held() -> bool {
    LOCAL.with(|l| l.rcu_depth.get() != 0)
}

/// Waits until every read section that was open at the call has ended. What the caller published before is what
/// all later sections find; what the ended ones did is visible to the caller.
///
/// Context: may sleep. Mirrors `synchronize_rcu`.
///
/// # Panics
///
/// When called inside a read section, which would wait for itself.
pub fn synchronize_rcu() {
    crate::might_sleep!();
    assert!(
        !read_lock_held(),
        "synchronize_rcu called inside a read section"
    );
    let n = DOMAIN.advance();
    for slot in 0..SHARED_INDEX {
        wait_for(|| DOMAIN.is_past(slot, n));
    }
    wait_for(|| DOMAIN.is_shared_past(n));
}

fn wait_for(is_past: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if is_past() {
            return;
        }
        spin_hint();
    }
    let mut pause = FIRST_PAUSE;
    while !WRITERS.wait_event_timeout(&is_past, pause) {
        pause = (pause + pause).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    use super::*;
    use crate::sync::Completion;
    use crate::time::Instant;
    use crate::time::delay::msleep;

    #[test]
    fn sections_nest() {
        assert!(!read_lock_held());
        let a = read_lock();
        let b = read_lock();
        drop(a);
        assert!(read_lock_held());
        drop(b);
        assert!(!read_lock_held());
        synchronize_rcu();
    }

    #[test]
    #[should_panic(expected = "inside a read section")]
    fn waiting_for_oneself_is_a_bug() {
        let _g = read_lock();
        synchronize_rcu();
    }

    #[test]
    fn a_writer_sleeps_until_the_reader_leaves() {
        let inside = Arc::new(Completion::new());
        let left = Arc::new(AtomicBool::new(false));
        let (c, l) = (Arc::clone(&inside), Arc::clone(&left));
        let t = std::thread::spawn(move || {
            let g = read_lock();
            c.complete_all();
            msleep(30);
            l.store(true, Ordering::Relaxed);
            drop(g);
        });
        inside.wait_for_completion();
        let start = Instant::now();
        synchronize_rcu();
        assert!(left.load(Ordering::Relaxed));
        assert!(start.elapsed() < Delta::from_secs(20));
        t.join().expect("thread ends");
    }

    #[test]
    fn readers_beyond_the_slots_are_waited_for() {
        let n = cpu::MAX_THREADS + 8;
        let inside = Arc::new(Barrier::new(n + 1));
        let readers_left = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..n)
            .map(|_| {
                let (inside, left) = (Arc::clone(&inside), Arc::clone(&readers_left));
                std::thread::spawn(move || {
                    let g = read_lock();
                    let nested = read_lock();
                    inside.wait();
                    drop(nested);
                    left.fetch_add(1, Ordering::Relaxed);
                    drop(g);
                })
            })
            .collect();
        inside.wait();
        synchronize_rcu();
        assert_eq!(readers_left.load(Ordering::Relaxed), n);
        for t in threads {
            t.join().expect("thread ends");
        }
    }
}
