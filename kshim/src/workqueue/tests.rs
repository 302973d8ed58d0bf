use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::sync::{Arc, Completion, SpinLock};
use crate::time::delay::msleep;
use crate::time::{Delta, Instant};

const FAR: Delta = Delta::from_secs(3600);

/// An item that counts its runs, and can be held inside one.
struct Probe {
    work: Work,
    runs: AtomicUsize,
    inside: AtomicUsize,
    hold: AtomicBool,
    entered: Completion,
    go_on: Completion,
    again: SpinLock<Option<(Arc<Queue>, Option<Delta>)>>,
}

impl Probe {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            work: Work::new(),
            runs: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            hold: AtomicBool::new(false),
            entered: Completion::new(),
            go_on: Completion::new(),
            again: SpinLock::new(None),
        })
    }

    fn held() -> Arc<Self> {
        let p = Self::new();
        p.hold.store(true, Ordering::SeqCst);
        p
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

impl WorkItem for Probe {
    fn work(&self) -> &Work {
        &self.work
    }

    fn run(self: Arc<Self>) {
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "runs twice");
        if self.hold.load(Ordering::SeqCst) {
            self.entered.complete();
            self.go_on.wait_for_completion();
        }
        if let Some((queue, delay)) = self.again.lock().take() {
            let queued = match delay {
                Some(d) => queue.enqueue_delayed(Arc::clone(&self), d),
                None => queue.enqueue(Arc::clone(&self)),
            };
            assert!(queued.is_ok());
        }
        self.runs.fetch_add(1, Ordering::SeqCst);
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

fn queue(max: usize) -> Arc<Queue> {
    Arc::new(Queue::alloc("test", max).expect("queue"))
}

#[test]
fn a_pending_item_is_given_back() {
    let q = queue(1);
    let (blocker, item) = (Probe::held(), Probe::new());
    q.enqueue(Arc::clone(&blocker)).ok().expect("idle");
    blocker.entered.wait_for_completion();
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    assert!(item.work.pending());
    assert!(q.enqueue(Arc::clone(&item)).is_err());
    assert!(q.enqueue_delayed(Arc::clone(&item), FAR).is_err());
    assert_eq!(q.len(), 2);
    blocker.go_on.complete();
    q.flush();
    assert_eq!((item.runs(), blocker.runs()), (1, 1));
    assert!(!item.work.busy() && q.is_empty());
    assert_eq!(q.workers(), 1);
}

#[test]
fn queued_again_while_it_runs_it_runs_again_but_not_twice_at_once() {
    let q = queue(4);
    let item = Probe::held();
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    item.entered.wait_for_completion();
    q.enqueue(Arc::clone(&item)).ok().expect("running only");
    assert!(q.enqueue(Arc::clone(&item)).is_err());
    // Another worker meets the running item and leaves it.
    msleep(5);
    assert!(item.work.pending());
    item.hold.store(false, Ordering::SeqCst);
    item.go_on.complete();
    q.flush();
    assert_eq!(item.runs(), 2);
}

#[test]
fn running_on_one_queue_and_pending_on_another() {
    let (a, b) = (queue(1), queue(1));
    let item = Probe::held();
    a.enqueue(Arc::clone(&item)).ok().expect("idle");
    item.entered.wait_for_completion();
    b.enqueue(Arc::clone(&item)).ok().expect("running only");
    msleep(5);
    assert_eq!((a.len(), b.len(), item.runs()), (1, 1, 0));
    item.hold.store(false, Ordering::SeqCst);
    item.go_on.complete();
    b.flush();
    assert_eq!(item.runs(), 2);
    a.flush();
}

#[test]
fn a_deferred_item_can_be_cancelled() {
    let q = queue(4);
    let item = Probe::held();
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    item.entered.wait_for_completion();
    q.enqueue(Arc::clone(&item)).ok().expect("running only");
    msleep(5);
    assert!(item.work.cancel());
    assert_eq!(q.len(), 1);
    item.go_on.complete();
    q.flush();
    assert_eq!(item.runs(), 1);
}

#[test]
fn ordered_means_one_at_a_time_in_order() {
    let q = Queue::alloc_ordered("ordered").expect("queue");
    let seen = Arc::new(SpinLock::new(Vec::new()));
    for i in 0..500 {
        let seen = Arc::clone(&seen);
        q.try_spawn(move || seen.lock().push(i)).expect("alive");
    }
    q.flush();
    assert_eq!(*seen.lock(), (0..500).collect::<Vec<_>>());
    assert_eq!(q.workers(), 1);
}

#[test]
fn blocked_items_get_more_workers_up_to_the_limit() {
    let q = queue(3);
    let items: Vec<_> = (0..5).map(|_| Probe::held()).collect();
    for item in &items {
        q.enqueue(Arc::clone(item)).ok().expect("idle");
    }
    for item in &items[..3] {
        item.entered.wait_for_completion();
    }
    msleep(5);
    assert_eq!(q.workers(), 3);
    assert!(!items[3].entered.is_done() && !items[4].entered.is_done());
    for item in &items {
        item.go_on.complete();
    }
    q.drain();
    assert!(items.iter().all(|i| i.runs() == 1));
}

#[test]
fn flush_waits_for_what_came_before_only() {
    let q = queue(2);
    let (first, late) = (Probe::held(), Probe::held());
    q.enqueue(Arc::clone(&first)).ok().expect("idle");
    first.entered.wait_for_completion();
    let (q2, late2) = (Arc::clone(&q), Arc::clone(&late));
    let flushed = Arc::new(Completion::new());
    let done = Arc::clone(&flushed);
    let t = crate::kthread::run("flusher", move |_| {
        q2.flush();
        done.complete_all();
    })
    .expect("kthread");
    msleep(5);
    assert!(!flushed.is_done());
    q.enqueue(late2).ok().expect("idle");
    late.entered.wait_for_completion();
    first.go_on.complete();
    flushed.wait_for_completion();
    assert_eq!((first.runs(), late.runs()), (1, 0));
    late.go_on.complete();
    t.join();
}

#[test]
fn cancel_takes_an_item_off_its_queue() {
    let q = queue(1);
    let (blocker, item) = (Probe::held(), Probe::new());
    q.enqueue(Arc::clone(&blocker)).ok().expect("idle");
    blocker.entered.wait_for_completion();
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    assert!(item.work.cancel());
    assert!(!item.work.cancel());
    assert_eq!(Arc::strong_count(&item), 1);
    assert!(!blocker.work.cancel(), "it runs");
    blocker.go_on.complete();
    q.drain();
    assert_eq!(item.runs(), 0);
}

#[test]
fn cancel_sync_waits_and_keeps_others_out() {
    let q = queue(2);
    let item = Probe::held();
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    item.entered.wait_for_completion();
    let (item2, q2) = (Arc::clone(&item), Arc::clone(&q));
    let t = crate::kthread::run("canceller", move |_| {
        assert!(!item2.work.cancel_sync());
        assert_eq!(item2.runs(), 1);
        q2.enqueue(Arc::clone(&item2)).ok().expect("idle again");
    })
    .expect("kthread");
    // Accepted until the canceller has come, refused from then on.
    while q.enqueue(Arc::clone(&item)).is_ok() {
        item.work.cancel();
        msleep(1);
    }
    assert!(q.mod_delayed(Arc::clone(&item), FAR).is_err());
    item.hold.store(false, Ordering::SeqCst);
    item.go_on.complete();
    t.join();
    q.drain();
    assert_eq!(item.runs(), 2);
}

#[test]
fn waiting_for_oneself_is_a_bug_not_a_hang() {
    let q = queue(1);
    let caught = Arc::new(AtomicUsize::new(0));
    let slot: Arc<SpinLock<Option<Arc<FnWork>>>> = Arc::default();
    let (own, n, q2) = (Arc::clone(&slot), Arc::clone(&caught), Arc::clone(&q));
    let item = FnWork::new(move || {
        let me = own.lock().clone().expect("set");
        let me = std::panic::AssertUnwindSafe(&me);
        let q2 = std::panic::AssertUnwindSafe(&q2);
        for r in [
            std::panic::catch_unwind(|| me.work().cancel_sync()),
            std::panic::catch_unwind(|| me.work().flush()),
            std::panic::catch_unwind(|| me.work().flush_delayed()),
            std::panic::catch_unwind(|| {
                q2.flush();
                true
            }),
        ] {
            n.fetch_add(usize::from(r.is_err()), Ordering::SeqCst);
        }
    });
    *slot.lock() = Some(Arc::clone(&item));
    q.enqueue(Arc::clone(&item)).expect("idle");
    item.work().flush();
    assert_eq!(caught.load(Ordering::SeqCst), 4);
    *slot.lock() = None;
}

#[test]
fn a_delayed_item_runs_when_its_time_has_come() {
    let q = queue(1);
    let item = Probe::held();
    let start = Instant::now();
    q.enqueue_delayed(Arc::clone(&item), Delta::from_millis(5))
        .ok()
        .expect("idle");
    assert!(item.work.pending());
    assert!(q.enqueue(Arc::clone(&item)).is_err());
    assert!(!item.work.flush(), "only under a timer");
    item.entered.wait_for_completion();
    assert!(start.elapsed() >= Delta::from_millis(5));
    item.go_on.complete();
    q.drain();
    assert_eq!(item.runs(), 1);
}

#[test]
fn a_delayed_item_can_be_cancelled_moved_and_flushed() {
    let q = queue(1);
    let item = Probe::new();
    q.enqueue_delayed(Arc::clone(&item), FAR)
        .ok()
        .expect("idle");
    assert!(item.work.cancel_sync());
    assert_eq!(Arc::strong_count(&item), 1);

    assert_eq!(q.mod_delayed(Arc::clone(&item), FAR).ok(), Some(false));
    assert_eq!(
        q.mod_delayed(Arc::clone(&item), Delta::from_millis(1)).ok(),
        Some(true)
    );
    while item.runs() == 0 {
        msleep(1);
    }

    assert_eq!(q.mod_delayed(Arc::clone(&item), FAR).ok(), Some(false));
    assert!(item.work.flush_delayed());
    assert_eq!(item.runs(), 2);
    assert!(!item.work.flush_delayed());

    assert_eq!(q.mod_delayed(Arc::clone(&item), FAR).ok(), Some(false));
    assert_eq!(
        q.mod_delayed(Arc::clone(&item), Delta::ZERO).ok(),
        Some(true)
    );
    item.work.flush();
    assert_eq!(item.runs(), 3);
}

#[test]
fn a_pending_item_can_be_delayed_after_all() {
    let q = queue(1);
    let (blocker, item) = (Probe::held(), Probe::new());
    q.enqueue(Arc::clone(&blocker)).ok().expect("idle");
    blocker.entered.wait_for_completion();
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    assert_eq!(q.mod_delayed(Arc::clone(&item), FAR).ok(), Some(true));
    assert_eq!(q.len(), 1);
    blocker.go_on.complete();
    q.drain();
    assert_eq!(item.runs(), 0);
    assert!(item.work.cancel());
}

#[test]
fn an_item_may_queue_itself() {
    let q = queue(2);
    let item = Probe::new();
    *item.again.lock() = Some((Arc::clone(&q), None));
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    q.drain();
    assert_eq!(item.runs(), 2);
    *item.again.lock() = Some((Arc::clone(&q), Some(FAR)));
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    q.drain();
    assert_eq!(item.runs(), 3);
    assert!(item.work.cancel_sync());
}

#[test]
fn a_panic_ends_only_its_run() {
    let q = queue(1);
    q.try_spawn(|| panic!("expected by the test"))
        .expect("alive");
    let item = Probe::new();
    q.enqueue(Arc::clone(&item)).ok().expect("idle");
    q.drain();
    assert_eq!(item.runs(), 1);
}

#[test]
fn destroy_drains_and_refuses_the_rest() {
    let q = Queue::alloc("short", 2).expect("queue");
    let n = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let n = Arc::clone(&n);
        q.try_spawn(move || {
            n.fetch_add(1, Ordering::SeqCst);
        })
        .expect("alive");
    }
    let late = Probe::new();
    q.enqueue_delayed(Arc::clone(&late), Delta::from_millis(30))
        .ok()
        .expect("idle");
    q.destroy();
    assert_eq!(n.load(Ordering::SeqCst), 100);
    while late.work.pending() {
        msleep(1);
    }
    assert_eq!(late.runs(), 0);
}

#[test]
fn an_item_may_drop_its_own_queue() {
    let gone = Arc::new(Completion::new());
    let (done, slot) = (Arc::clone(&gone), Arc::new(SpinLock::new(None)));
    let own = Arc::clone(&slot);
    let mut held = slot.lock();
    let q = Queue::alloc("suicidal", 2).expect("queue");
    q.try_spawn(move || {
        let q: Option<Queue> = own.lock().take();
        drop(q);
        done.complete_all();
    })
    .expect("alive");
    *held = Some(q);
    drop(held);
    gone.wait_for_completion();
}

#[test]
fn the_object_is_dropped_before_the_queue_counts_it_as_done() {
    let q = queue(2);
    for _ in 0..200 {
        let item = Probe::new();
        let weak = Arc::downgrade(&item);
        q.enqueue(item).ok().expect("idle");
        q.flush();
        assert!(weak.upgrade().is_none());
    }
}

#[test]
fn system_queues_work() {
    for q in [system(), system_long(), system_highpri(), system_unbound()] {
        let item = Probe::new();
        q.enqueue(Arc::clone(&item)).ok().expect("idle");
        item.work.flush();
        assert_eq!(item.runs(), 1);
    }
}

/// All operations at once on a few items: no run is lost or doubled (the probe asserts), everything ends.
#[test]
fn all_operations_under_load() {
    const ROUNDS: usize = 3000;
    let queues = [queue(1), queue(3)];
    let items: Vec<_> = (0..3).map(|_| Probe::new()).collect();
    let balance = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..4usize)
        .map(|n| {
            let (queues, items) = (queues.clone(), items.clone());
            let balance = Arc::clone(&balance);
            crate::kthread::run("load", move |_| {
                let mut x = n.wrapping_mul(0x9E37_79B9) + 1;
                for _ in 0..ROUNDS {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let item = &items[(x >> 8) % items.len()];
                    let q = &queues[(x >> 16) % queues.len()];
                    let delay = Delta::from_micros(i64::try_from((x >> 24) % 200).unwrap_or(0));
                    match x % 8 {
                        0..=2 => {
                            let ok = q.enqueue(Arc::clone(item)).is_ok();
                            balance.fetch_add(usize::from(ok), Ordering::SeqCst);
                        }
                        3 => {
                            let ok = q.enqueue_delayed(Arc::clone(item), delay).is_ok();
                            balance.fetch_add(usize::from(ok), Ordering::SeqCst);
                        }
                        4 => {
                            let fresh = q.mod_delayed(Arc::clone(item), delay).ok() == Some(false);
                            balance.fetch_add(usize::from(fresh), Ordering::SeqCst);
                        }
                        5 => {
                            let took = item.work.cancel();
                            balance.fetch_sub(usize::from(took), Ordering::SeqCst);
                        }
                        6 => {
                            let took = item.work.cancel_sync();
                            balance.fetch_sub(usize::from(took), Ordering::SeqCst);
                        }
                        _ => {
                            item.work.flush_delayed();
                        }
                    }
                }
            })
            .expect("kthread")
        })
        .collect();
    for t in threads {
        t.join();
    }
    for item in &items {
        item.work.flush_delayed();
        item.work.flush();
        assert!(!item.work.busy());
    }
    for q in &queues {
        q.drain();
    }
    let runs: usize = items.iter().map(|i| i.runs()).sum();
    assert_eq!(runs, balance.load(Ordering::SeqCst));
}
