use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;
use crate::sync::Completion;
use crate::time::delay::msleep;

fn counted() -> (Arc<PercpuRef>, Arc<AtomicUsize>) {
    let n = Arc::new(AtomicUsize::new(0));
    let released = Arc::clone(&n);
    let r = PercpuRef::new(move || {
        released.fetch_add(1, Ordering::SeqCst);
    });
    (Arc::new(r), n)
}

#[test]
fn kill_drops_the_initial_reference_and_releases() {
    let (r, released) = counted();
    assert!(!r.is_dying() && !r.is_zero());
    assert_eq!(r.read(), 1);
    r.get();
    r.get_many(2);
    assert_eq!(r.read(), 4);
    r.kill();
    assert!(r.is_dying() && !r.tryget_live());
    assert!(r.tryget());
    r.put_many(3);
    r.wait_confirmed();
    assert_eq!(released.load(Ordering::SeqCst), 0);
    r.put();
    r.wait_zero();
    assert!(r.is_zero() && !r.tryget());
    assert_eq!(released.load(Ordering::SeqCst), 1);
}

#[test]
fn the_confirmation_waits_for_a_grace_period() {
    let (r, _) = counted();
    let section = rcu::read_lock();
    let confirmed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&confirmed);
    r.kill_and_confirm(move || seen.store(true, Ordering::SeqCst));
    msleep(5);
    assert!(!confirmed.load(Ordering::SeqCst) && !r.is_zero());
    drop(section);
    r.wait_zero();
    assert!(confirmed.load(Ordering::SeqCst));
}

#[test]
fn a_second_kill_changes_nothing() {
    let (r, released) = counted();
    r.kill();
    r.kill();
    r.wait_zero();
    assert_eq!(released.load(Ordering::SeqCst), 1);
    r.reinit();
    assert_eq!(r.read(), 1);
    r.resurrect();
    assert_eq!(r.read(), 1);
}

#[test]
fn a_panicking_confirmation_still_ends_the_switch() {
    let (r, _) = counted();
    r.kill_and_confirm(|| panic!("expected by the test"));
    r.wait_zero();
    r.reinit();
    assert!(r.tryget_live());
}

#[test]
fn resurrected_before_zero_it_keeps_its_references() {
    let (r, released) = counted();
    for round in 0..50 {
        assert!(r.tryget_live());
        r.kill();
        r.resurrect();
        assert!(r.tryget_live());
        assert_eq!(r.read(), 3);
        r.put_many(2);
        assert_eq!(r.read(), 1, "round {round}");
    }
    r.kill();
    r.wait_zero();
    assert_eq!(released.load(Ordering::SeqCst), 1);
}

#[test]
fn a_dropped_count_survives_its_own_switch() {
    for _ in 0..100 {
        let (r, released) = counted();
        r.kill();
        drop(r);
        rcu::barrier();
        assert_eq!(released.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn wait_zero_can_time_out() {
    let (r, _) = counted();
    r.get();
    r.kill();
    assert!(!r.wait_zero_timeout(crate::time::Delta::from_millis(3)));
    r.put();
    assert!(r.wait_zero_timeout(crate::time::Delta::from_secs(60)));
}

/// Suspend and resume under load: when suspended and drained, nobody is inside; no reference is lost. Some of the
/// references are put by other threads, and more threads take part than have slots.
#[test]
fn suspend_under_load() {
    const WORKERS: usize = 4;
    const SURPLUS: usize = cpu::MAX_THREADS;
    let (r, released) = counted();
    let inside = Arc::new(AtomicUsize::new(0));
    let end = Arc::new(AtomicBool::new(false));
    let go = Arc::new(Completion::new());
    let (tx, rx) = crossbeam_channel::bounded::<()>(64);
    let worker = |busy: bool| {
        let (r, inside, end) = (Arc::clone(&r), Arc::clone(&inside), Arc::clone(&end));
        let (tx, go) = (tx.clone(), Arc::clone(&go));
        thread::spawn(move || {
            go.wait_for_completion();
            let mut n = 0u32;
            while !end.load(Ordering::Relaxed) {
                if r.tryget_live() {
                    inside.fetch_add(1, Ordering::Relaxed);
                    n = n.wrapping_add(1);
                    if !(n.is_multiple_of(3) && tx.try_send(()).is_ok()) {
                        inside.fetch_sub(1, Ordering::Relaxed);
                        r.put();
                    }
                } else {
                    thread::yield_now();
                }
                if !busy {
                    msleep(5);
                }
            }
        })
    };
    let mut threads: Vec<_> = (0..WORKERS).map(|_| worker(true)).collect();
    threads.extend((0..SURPLUS).map(|_| worker(false)));
    drop(tx);
    let (other, inside2) = (Arc::clone(&r), Arc::clone(&inside));
    let putter = thread::spawn(move || {
        for () in rx {
            inside2.fetch_sub(1, Ordering::Relaxed);
            other.put();
        }
    });
    go.complete_all();
    let rounds = 100;
    for _ in 0..rounds {
        let confirmed = Arc::new(Completion::new());
        let seen = Arc::clone(&confirmed);
        r.kill_and_confirm(move || seen.complete_all());
        confirmed.wait_for_completion();
        r.wait_zero();
        assert_eq!(inside.load(Ordering::Relaxed), 0);
        thread::yield_now();
        assert_eq!(inside.load(Ordering::Relaxed), 0);
        r.resurrect();
    }
    end.store(true, Ordering::Relaxed);
    for t in threads {
        t.join().expect("thread ends");
    }
    putter.join().expect("thread ends");
    assert_eq!(r.read(), 1);
    assert_eq!(released.load(Ordering::SeqCst), rounds);
}
