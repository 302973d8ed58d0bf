use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::sync::rcu::Domain;
use crate::sys::sync::explore;

/// What [`PercpuRef`](super::super::PercpuRef) adds to the core: read sections, and the switch after a grace period.
struct Model {
    core: Core,
    slots: [AtomicI64; 2],
    domain: Domain<2>,
    /// What the references protect; the release function writes it.
    data: UnsafeCell<u32>,
    released: AtomicUsize,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            core: Core::new(),
            slots: [AtomicI64::new(0), AtomicI64::new(0)],
            domain: Domain::new(),
            data: UnsafeCell::new(1),
            released: AtomicUsize::new(0),
        })
    }

    fn section<R>(&self, me: usize, f: impl FnOnce() -> R) -> R {
        self.domain.enter(me);
        let r = f();
        self.domain.leave(me);
        r
    }

    fn tryget_live(&self, me: usize) -> bool {
        self.section(me, || self.core.tryget_live(|| Some(&self.slots[me])))
    }

    fn put(&self, me: usize) {
        let last = self.section(me, || self.core.put(|| Some(&self.slots[me]), 1));
        if last {
            self.release();
        }
    }

    fn use_data(&self) {
        // SAFETY: for the model only; loom checks the accesses.
        self.data.with(|p| assert_eq!(unsafe { *p }, 1));
    }

    fn release(&self) {
        // SAFETY: for the model only; loom checks the accesses.
        self.data.with_mut(|p| unsafe { *p = 0 });
        self.released.fetch_add(1, Ordering::Relaxed);
    }

    fn grace_period(&self) {
        let n = self.domain.advance();
        while !(0..2).all(|slot| self.domain.is_past(slot, n)) || !self.domain.is_shared_past(n) {
            thread::yield_now();
        }
    }

    /// The two halves of a kill, with the grace period in between. The initial reference is put in the first.
    fn kill_and_switch(&self) {
        self.core.set_dead();
        if self.core.put_atomic(1) {
            self.release();
        }
        self.grace_period();
        assert!(self.core.fold(self.slots.iter()) > 0);
        if self.core.put_atomic(1) {
            self.release();
        }
    }
}

#[test]
fn loom_percpu_ref_releases_once_after_the_last_user() {
    loom::model(|| {
        let m = Model::new();
        let user = Arc::clone(&m);
        let t = thread::spawn(move || {
            if user.tryget_live(0) {
                user.use_data();
                user.put(0);
            }
        });
        m.kill_and_switch();
        t.join().expect("thread ends");
        assert!(m.core.is_zero());
        assert_eq!(m.released.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_percpu_ref_get_here_put_there() {
    explore(3, || {
        let m = Model::new();
        assert!(m.tryget_live(0));
        let user = Arc::clone(&m);
        let t = thread::spawn(move || {
            user.use_data();
            user.put(1);
        });
        m.kill_and_switch();
        t.join().expect("thread ends");
        assert!(m.core.is_zero());
        assert_eq!(m.released.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_percpu_ref_dead_for_all_after_the_grace_period() {
    explore(3, || {
        let m = Model::new();
        let confirmed = Arc::new(AtomicUsize::new(0));
        let (user, seen) = (Arc::clone(&m), Arc::clone(&confirmed));
        let t = thread::spawn(move || {
            let after = seen.load(Ordering::Relaxed) != 0;
            let got = user.tryget_live(0);
            assert!(!(after && got), "a live reference after the confirmation");
            if got {
                user.put(0);
            }
        });
        m.core.set_dead();
        m.grace_period();
        m.core.fold(m.slots.iter());
        confirmed.store(1, Ordering::Relaxed);
        t.join().expect("thread ends");
    });
}

#[test]
fn loom_percpu_ref_resurrected_counts_again() {
    explore(2, || {
        let m = Model::new();
        assert!(m.tryget_live(0));
        let user = Arc::clone(&m);
        let t = thread::spawn(move || {
            // Holds a reference across kill and resurrection, and takes another one meanwhile.
            let second = user.section(1, || user.core.tryget(|| Some(&user.slots[1])));
            assert!(second);
            user.put(1);
            user.put(1);
        });
        m.core.set_dead();
        let initial = m.core.put_atomic(1);
        assert!(!initial, "the switch still has a reference");
        m.grace_period();
        m.core.fold(m.slots.iter());
        m.core.set_live(m.slots.iter());
        // The reference of the switch is put in the live mode here, the hardest order.
        assert!(!m.core.put_atomic(1));
        t.join().expect("thread ends");
        assert_eq!(m.core.read(m.slots.iter()), 1);
        m.kill_and_switch();
        assert!(m.core.is_zero());
        assert_eq!(m.released.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_percpu_ref_thread_without_a_slot() {
    explore(3, || {
        let m = Model::new();
        let user = Arc::clone(&m);
        let t = thread::spawn(move || {
            let e = user.domain.enter_shared();
            let got = user.core.tryget_live(|| None);
            if got {
                user.use_data();
            }
            let last = got && user.core.put(|| None, 1);
            user.domain.leave_shared(e);
            if last {
                user.release();
            }
        });
        m.kill_and_switch();
        t.join().expect("thread ends");
        assert!(m.core.is_zero());
        assert_eq!(m.released.load(Ordering::Relaxed), 1);
    });
}
