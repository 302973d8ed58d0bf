use std::collections::VecDeque;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::*;

/// A queue of one item's tickets, and the item. The place is the queue (`false`) or deferred (`true`).
struct Model {
    core: Core<bool>,
    list: Mutex<VecDeque<Ticket>>,
    deferred: Mutex<Option<Ticket>>,
    runs: AtomicUsize,
    /// Written by each run: loom reports two at the same time, or one beside what follows a `cancel_sync`.
    data: UnsafeCell<usize>,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            core: Core::new(),
            list: Mutex::new(VecDeque::new()),
            deferred: Mutex::new(None),
            runs: AtomicUsize::new(0),
            data: UnsafeCell::new(0),
        })
    }

    fn enqueue(&self) -> bool {
        self.core.enqueue(Where::Queue, |t| {
            self.list.lock().push_back(t);
            Some(false)
        })
    }

    /// Takes the item out of its place; a worker that has its entry already will find it stale.
    fn take(&self, deferred: bool) {
        if deferred {
            self.deferred.lock().take();
        } else {
            self.list.lock().clear();
        }
    }

    fn touch(&self) {
        // SAFETY: for the model only; loom checks the accesses.
        self.data.with_mut(|p| unsafe { *p += 1 });
    }

    /// What a worker does when it looks at the queue once.
    fn work_once(&self) {
        let Some(t) = self.list.lock().pop_front() else {
            return;
        };
        let defer = || {
            *self.deferred.lock() = Some(t);
            true
        };
        if self.core.begin(t, defer) == Begin::Run {
            self.touch();
            self.runs.fetch_add(1, Ordering::Relaxed);
            self.core.end(|deferred| {
                let again = self.deferred.lock().take();
                assert_eq!(deferred, again.is_some());
                self.list.lock().extend(again);
                false
            });
        }
    }

    fn finish(&self) {
        while !self.list.lock().is_empty() {
            self.work_once();
        }
        assert!(!self.core.is_pending() && !self.core.is_running());
        assert!(self.deferred.lock().is_none());
    }
}

fn check(f: impl Fn() + Sync + Send + 'static) {
    crate::sys::sync::explore(3, f);
}

#[test]
fn loom_work_cancel_sync_against_a_run() {
    check(|| {
        let m = Model::new();
        assert!(m.enqueue());
        let worker = Arc::clone(&m);
        let t = thread::spawn(move || worker.work_once());
        let cancelled = m.core.cancel_sync(|p| m.take(p));
        // Nothing runs any more: this is alone with the data.
        m.touch();
        assert_eq!(m.runs.load(Ordering::Relaxed), usize::from(!cancelled));
        t.join().expect("thread ends");
        m.finish();
        assert_eq!(m.runs.load(Ordering::Relaxed), usize::from(!cancelled));
    });
}

#[test]
fn loom_work_runs_once_per_queueing_and_never_twice_at_once() {
    check(|| {
        let m = Model::new();
        assert!(m.enqueue());
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let worker = Arc::clone(&m);
                thread::spawn(move || worker.work_once())
            })
            .collect();
        let again = m.enqueue();
        for t in workers {
            t.join().expect("thread ends");
        }
        m.finish();
        assert_eq!(m.runs.load(Ordering::Relaxed), 1 + usize::from(again));
    });
}

#[test]
fn loom_work_flush_waits_for_the_run() {
    check(|| {
        let m = Model::new();
        assert!(m.enqueue());
        let worker = Arc::clone(&m);
        let t = thread::spawn(move || worker.work_once());
        m.core.flush();
        // The run is over, and nothing else touches the data.
        m.touch();
        assert_eq!(m.runs.load(Ordering::Relaxed), 1);
        t.join().expect("thread ends");
        m.finish();
    });
}

#[test]
fn loom_work_queueing_against_cancel_sync() {
    check(|| {
        let m = Model::new();
        let first = m.enqueue();
        assert!(first);
        let worker = Arc::clone(&m);
        let w = thread::spawn(move || worker.work_once());
        let other = Arc::clone(&m);
        let e = thread::spawn(move || other.enqueue());
        let cancelled = m.core.cancel_sync(|p| m.take(p));
        w.join().expect("thread ends");
        let second = e.join().expect("thread ends");
        m.finish();
        let queued = 1 + usize::from(second);
        let ran = m.runs.load(Ordering::Relaxed);
        assert_eq!(ran + usize::from(cancelled), queued);
    });
}

#[test]
fn loom_work_timer_against_cancel() {
    check(|| {
        let m = Model::new();
        let mut ticket = 0;
        assert!(m.core.enqueue(Where::Timer, |t| {
            ticket = t;
            Some(false)
        }));
        let timer = Arc::clone(&m);
        let t = thread::spawn(move || {
            timer.core.timer_fired(ticket, |t| {
                timer.list.lock().push_back(t);
                Some(false)
            });
            timer.work_once();
        });
        let cancelled = m.core.cancel_sync(|p| m.take(p));
        m.touch();
        t.join().expect("thread ends");
        m.finish();
        assert_eq!(m.runs.load(Ordering::Relaxed), usize::from(!cancelled));
    });
}
