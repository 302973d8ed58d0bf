#[cfg(not(loom))]
mod host {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    use crate::kthread;
    use crate::sync::{Completion, SpinLock, WaitQueue};
    use crate::time::delay::msleep;
    use crate::time::{Delta, Instant};

    fn until_asleep(wq: &WaitQueue, n: usize) {
        while wq.sleepers.load(Ordering::SeqCst) != n {
            thread::yield_now();
        }
    }

    #[test]
    fn a_true_condition_does_not_sleep() {
        let wq = WaitQueue::new();
        wq.wait_event(|| true);
        assert!(wq.wait_event_timeout(|| true, Delta::ZERO));
        assert_eq!(wq.wait_until(|| Some(3)), 3);
        assert!(!wq.is_active());
    }

    #[test]
    fn a_timed_wait_ends_by_time_and_leaves_the_queue() {
        let wq = WaitQueue::new();
        let start = Instant::now();
        assert!(!wq.wait_event_timeout(|| false, Delta::from_millis(5)));
        assert!(start.elapsed() >= Delta::from_millis(5));
        assert!(!wq.is_active());
    }

    #[test]
    fn wake_up_wakes_all_shared_and_the_last_exclusive_sleeper() {
        let wq = Arc::new(WaitQueue::new());
        let go = Arc::new(AtomicBool::new(false));
        let order = Arc::new(SpinLock::new(Vec::new()));
        let mut threads = Vec::new();
        for i in 0..5 {
            let (wq2, go, order) = (Arc::clone(&wq), Arc::clone(&go), Arc::clone(&order));
            threads.push(thread::spawn(move || {
                let cond = || go.load(Ordering::Relaxed);
                if i < 2 {
                    wq2.wait_event(cond);
                } else {
                    wq2.wait_event_exclusive(cond);
                }
                order.lock().push(i);
            }));
            until_asleep(&wq, i + 1);
        }
        go.store(true, Ordering::Relaxed);
        for (left, n) in [(2, 3), (1, 4), (0, 5)] {
            wq.wake_up();
            while order.lock().len() < n {
                thread::yield_now();
            }
            assert_eq!(wq.sleepers.load(Ordering::SeqCst), left);
        }
        for t in threads {
            t.join().expect("thread ends");
        }
        let order = order.lock();
        let exclusive: Vec<_> = order.iter().copied().filter(|&i| i >= 2).collect();
        assert_eq!(exclusive, [4, 3, 2]);
    }

    #[test]
    fn every_item_is_taken_with_exclusive_waits_under_a_lock() {
        const N: usize = 20_000;
        let shared = Arc::new((SpinLock::new((0usize, false)), WaitQueue::new()));
        let taken = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (shared, taken) = (Arc::clone(&shared), Arc::clone(&taken));
                thread::spawn(move || {
                    loop {
                        let mut held = shared.0.lock();
                        shared
                            .1
                            .wait_event_lock(&mut held, |(items, end)| *items != 0 || *end);
                        if held.0 == 0 {
                            return;
                        }
                        held.0 -= 1;
                        drop(held);
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..N {
            shared.0.lock().0 += 1;
            shared.1.wake_up();
        }
        shared.0.lock().1 = true;
        shared.1.wake_up_all();
        for w in workers {
            w.join().expect("thread ends");
        }
        assert_eq!(taken.load(Ordering::Relaxed), N);
    }

    #[test]
    fn a_stopped_kthread_is_interrupted() {
        let wq = Arc::new(WaitQueue::new());
        let (ready, seen) = (Arc::new(Completion::new()), Arc::new(AtomicUsize::new(0)));
        let (wq2, ready2, seen2) = (Arc::clone(&wq), Arc::clone(&ready), Arc::clone(&seen));
        let t = kthread::run("interrupted", move |stop| {
            ready2.complete_all();
            let r = wq2.wait_event_interruptible(stop, || false);
            assert_eq!(r, Err(crate::error::code::EINTR));
            let lock = SpinLock::new(0);
            let r = wq2.wait_event_interruptible_lock(stop, &mut lock.lock(), |_| false);
            assert_eq!(r, Err(crate::error::code::EINTR));
            let second = Delta::from_secs(60);
            let r = wq2.wait_event_interruptible_timeout(stop, || false, second);
            assert_eq!(r, Err(crate::error::code::EINTR));
            let r = wq2.wait_event_interruptible_timeout(stop, || true, second);
            assert_eq!(r, Ok(true));
            seen2.fetch_add(1, Ordering::SeqCst);
        })
        .expect("kthread starts");
        ready.wait_for_completion();
        msleep(2);
        t.stop();
        assert_eq!(seen.load(Ordering::SeqCst), 1);
        assert!(!wq.is_active());
    }

    #[test]
    fn ping_pong_loses_no_wake_up() {
        const N: usize = 20_000;
        let ball = Arc::new((AtomicUsize::new(0), WaitQueue::new()));
        let other = Arc::clone(&ball);
        let play = |ball: &(AtomicUsize, WaitQueue), odd: usize| {
            for i in 0..N {
                let mine = 2 * i + odd;
                ball.1.wait_event(|| ball.0.load(Ordering::Relaxed) == mine);
                ball.0.store(mine + 1, Ordering::Relaxed);
                ball.1.wake_up();
            }
        };
        let t = thread::spawn(move || play(&other, 1));
        play(&ball, 0);
        t.join().expect("thread ends");
    }
}

#[cfg(loom)]
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use crate::sync::WaitQueue;
    use crate::sys::sync::explore;

    #[test]
    fn loom_wait_queue_loses_no_wake_up() {
        loom::model(|| {
            let shared = Arc::new((AtomicBool::new(false), WaitQueue::new()));
            let other = Arc::clone(&shared);
            let t = loom::thread::spawn(move || {
                other.1.wait_event(|| other.0.load(Ordering::Relaxed));
            });
            shared.0.store(true, Ordering::Relaxed);
            shared.1.wake_up();
            t.join().expect("thread ends");
        });
    }

    #[test]
    fn loom_wait_queue_exclusive_wake_ups_reach_all() {
        explore(2, || {
            let shared = Arc::new((AtomicUsize::new(0), WaitQueue::new()));
            let take = |n: &AtomicUsize| {
                n.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
            };
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    loom::thread::spawn(move || shared.1.wait_event_exclusive(|| take(&shared.0)))
                })
                .collect();
            for _ in 0..2 {
                shared.0.fetch_add(1, Ordering::Relaxed);
                shared.1.wake_up();
            }
            for w in waiters {
                w.join().expect("thread ends");
            }
        });
    }

    /// One item is there, but both waiters have just missed it. The one that finds it while it is on the queue may
    /// use up the wake-up for the second item, and must pass it on.
    #[test]
    fn loom_wait_queue_passes_on_what_it_does_not_need() {
        explore(3, || {
            let shared = Arc::new((AtomicUsize::new(1), WaitQueue::new()));
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    let mut missed = false;
                    loom::thread::spawn(move || {
                        shared.1.wait_event_exclusive(|| {
                            std::mem::replace(&mut missed, true)
                                && shared
                                    .0
                                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                                        n.checked_sub(1)
                                    })
                                    .is_ok()
                        });
                    })
                })
                .collect();
            shared.0.fetch_add(1, Ordering::Relaxed);
            shared.1.wake_up();
            for w in waiters {
                w.join().expect("thread ends");
            }
        });
    }
}
