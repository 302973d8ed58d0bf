//! Queues and their workers.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::state::{Begin, Ticket, Where};
use super::work::{OnceWork, Place, Work, WorkItem};
use crate::error::{Result, code::ESHUTDOWN};
use crate::kthread::{self, Kthread};
use crate::sys::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::time::{self, Delta, Instant};

/// A worker that found nothing to do for this long ends, if it is not the last one. The kernel's
/// `IDLE_WORKER_TIMEOUT` is 5 minutes; threads are dearer here.
const IDLE_WORKER_TIMEOUT: Delta = Delta::from_secs(10);

/// Upper limit of `max_active`. The kernel's `WQ_MAX_ACTIVE` is higher, but there a worker is not a thread of the
/// process.
pub const MAX_ACTIVE: usize = 512;

/// An item on a queue.
pub(super) struct Entry {
    pub(super) seq: u64,
    ticket: Ticket,
    item: Arc<dyn WorkItem>,
}

/// What a queue and its workers share.
pub(super) struct Shared {
    name: String,
    max_active: usize,
    nice: i32,
    lanes: Mutex<Lanes>,
    /// There is an entry, or the queue is dying.
    ready: Condvar,
    /// Something was finished.
    done: Condvar,
}

#[derive(Default)]
struct Lanes {
    /// In the order of their numbers.
    list: VecDeque<Entry>,
    next_seq: u64,
    /// Numbers of the entries that are deferred or running.
    taken: Vec<u64>,
    /// All workers, by a number that is not used again.
    workers: BTreeMap<u64, Kthread>,
    next_worker: u64,
    /// Workers that wait for an entry.
    idle: usize,
    /// Threads that wait in `done`.
    waiters: usize,
    dying: bool,
}

impl Lanes {
    /// Entries that are on the list, deferred or running.
    fn outstanding(&self) -> usize {
        self.list.len() + self.taken.len()
    }

    /// Whether all entries before `end` are over.
    fn are_over(&self, end: u64) -> bool {
        self.list.front().is_none_or(|e| e.seq >= end) && self.taken.iter().all(|seq| *seq >= end)
    }
}

thread_local! {
    /// Address of the queue that the calling thread works for, and of the work that it runs; 0 = none.
    static CURRENT: (Cell<usize>, Cell<usize>) = const { (Cell::new(0), Cell::new(0)) };
}

/// Address of the [`Work`] that the calling thread runs now; 0 = none.
pub(super) fn current_work() -> usize {
    CURRENT.with(|c| c.1.get())
}

impl Shared {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn is_own_worker(&self) -> bool {
        CURRENT.with(|c| c.0.get()) == self.address()
    }

    /// Adds an entry at the end; `None` when the queue is being destroyed.
    fn push(self: &Arc<Self>, ticket: Ticket, item: Arc<dyn WorkItem>) -> Option<Place> {
        let mut lanes = self.lanes.lock();
        if lanes.dying {
            return None;
        }
        let seq = lanes.next_seq;
        lanes.next_seq += 1;
        lanes.list.push_back(Entry { seq, ticket, item });
        self.kick(lanes);
        Some(Place::Queue(Arc::clone(self), seq))
    }

    /// Puts a deferred entry back where it was.
    fn push_back_deferred(self: &Arc<Self>, entry: Entry) -> Place {
        let seq = entry.seq;
        let mut lanes = self.lanes.lock();
        lanes.taken.retain(|taken| *taken != seq);
        let at = lanes.list.partition_point(|e| e.seq < seq);
        lanes.list.insert(at, entry);
        self.kick(lanes);
        Place::Queue(Arc::clone(self), seq)
    }

    /// Takes an entry off the list, if no worker has it yet.
    pub(super) fn remove(&self, seq: u64) -> Option<Entry> {
        let mut lanes = self.lanes.lock();
        let at = lanes.list.binary_search_by_key(&seq, |e| e.seq).ok()?;
        let entry = lanes.list.remove(at);
        self.tell(&lanes);
        entry
    }

    /// An entry that was taken off the list is over: it ran, or it never will.
    pub(super) fn finished(&self, seq: u64) {
        self.finish(&mut self.lanes.lock(), seq);
    }

    fn finish(&self, lanes: &mut Lanes, seq: u64) {
        if let Some(at) = lanes.taken.iter().position(|taken| *taken == seq) {
            lanes.taken.swap_remove(at);
        }
        self.tell(lanes);
    }

    /// An entry is over.
    fn tell(&self, lanes: &Lanes) {
        if lanes.waiters != 0 {
            self.done.notify_all();
        }
    }

    /// Gets a worker for an entry that was added: an idle one, or a new one if all idle ones are spoken for.
    fn kick(self: &Arc<Self>, mut lanes: MutexGuard<'_, Lanes>) {
        if lanes.list.len() > lanes.idle
            && lanes.workers.len() < self.max_active
            && let Err(e) = self.add_worker(&mut lanes)
        {
            // There is at least one worker, from the start on: the entry is only later.
            crate::pr_warn_ratelimited!("workqueue {}: no further worker: {e}", self.name);
        }
        let wake = lanes.idle != 0;
        // The one that wakes up needs the lock.
        drop(lanes);
        if wake {
            self.ready.notify_one();
        }
    }

    fn add_worker(self: &Arc<Self>, lanes: &mut Lanes) -> Result {
        let id = lanes.next_worker;
        let shared = Arc::clone(self);
        // The new thread waits for the lock, which is held here.
        let worker = kthread::Builder::new(self.name.as_str())
            .nice(self.nice)
            .spawn(move |_| shared.serve(id))?;
        lanes.next_worker += 1;
        lanes.workers.insert(id, worker);
        Ok(())
    }

    /// The life of a worker.
    fn serve(self: &Arc<Self>, id: u64) {
        CURRENT.with(|c| c.0.set(self.address()));
        let mut over = None;
        while let Some(entry) = self.next(id, over) {
            over = self.process(entry);
        }
    }

    /// The next entry, when `over` is over; `None` when the worker shall end.
    fn next(&self, id: u64, over: Option<u64>) -> Option<Entry> {
        let mut lanes = self.lanes.lock();
        if let Some(seq) = over {
            self.finish(&mut lanes, seq);
        }
        let mut bored = false;
        loop {
            if let Some(entry) = lanes.list.pop_front() {
                lanes.taken.push(entry.seq);
                return Some(entry);
            }
            if lanes.dying {
                // `destroy` joins the thread.
                return None;
            }
            if bored && lanes.workers.len() > 1 {
                if let Some(me) = lanes.workers.remove(&id) {
                    me.detach();
                }
                return None;
            }
            lanes.idle += 1;
            if bored {
                // The last worker: sleeps until there is something.
                self.ready.wait(&mut lanes);
                bored = false;
            } else {
                let timeout = IDLE_WORKER_TIMEOUT.to_duration();
                bored = self.ready.wait_for(&mut lanes, timeout).timed_out();
            }
            lanes.idle -= 1;
        }
    }

    /// Does what there is to do with an entry. Its number, if it is over then.
    fn process(self: &Arc<Self>, entry: Entry) -> Option<u64> {
        let (seq, ticket, item) = (entry.seq, entry.ticket, Arc::clone(&entry.item));
        let begin = item
            .work()
            .core
            .begin(ticket, || Place::Deferred(Arc::clone(self), entry));
        match begin {
            Begin::Run => {
                self.run(item);
                Some(seq)
            }
            Begin::Defer => None,
            Begin::Stale => {
                drop(item);
                Some(seq)
            }
        }
    }

    fn run(self: &Arc<Self>, item: Arc<dyn WorkItem>) {
        CURRENT.with(|c| c.1.set(item.work().address()));
        let own = Arc::clone(&item);
        let result = catch_unwind(AssertUnwindSafe(|| own.run()));
        CURRENT.with(|c| c.1.set(0));
        item.work().core.end(|place| match place {
            Place::Deferred(queue, entry) => queue.push_back_deferred(entry),
            other => other,
        });
        // Perhaps the last reference: the object's destructor runs before the queue counts the item as done.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(item)));
        for panic in [result, dropped].into_iter().filter_map(|r| r.err()) {
            crate::pr_err!(
                "workqueue {}: an item panicked: {}",
                self.name,
                kthread::panic_text(&*panic)
            );
        }
    }

    /// Waits until `is_over` holds.
    fn wait_until(&self, is_over: impl Fn(&Lanes) -> bool) {
        let mut lanes = self.lanes.lock();
        while !is_over(&lanes) {
            lanes.waiters += 1;
            self.done.wait(&mut lanes);
            lanes.waiters -= 1;
        }
    }
}

/// A work queue with worker threads of its own, which come when needed and go when bored; the first one is there from
/// the start, so that progress needs no memory. An idle queue sleeps.
///
/// Dropping a queue [destroys](Self::destroy) it. Mirrors `struct workqueue_struct`.
///
/// ```
/// use kshim::workqueue::{FnWork, Queue};
///
/// let queue = Queue::alloc("event_wq", 4)?;
/// queue.enqueue(FnWork::new(|| println!("event"))).ok();
/// queue.flush();
/// queue.destroy();
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "workqueue_struct")]
pub struct Queue {
    shared: Arc<Shared>,
}

impl Queue {
    /// A queue that runs up to `max_active` (1 to [`MAX_ACTIVE`]) items at the same time. Mirrors `alloc_workqueue`.
    ///
    /// Context: may sleep. Errors: `EAGAIN` when the host has no room for the first worker.
    #[doc(alias = "alloc_workqueue")]
    pub fn alloc(name: &str, max_active: usize) -> Result<Self> {
        Self::alloc_nice(name, max_active, 0)
    }

    /// A queue that runs its items one after the other, in the order of queueing. Mirrors `alloc_ordered_workqueue`.
    ///
    /// Context: may sleep. Errors: as [`alloc`](Self::alloc).
    #[doc(alias = "alloc_ordered_workqueue")]
    pub fn alloc_ordered(name: &str) -> Result<Self> {
        Self::alloc(name, 1)
    }

    /// Like [`alloc`](Self::alloc), with workers of another niceness. Mirrors `WQ_HIGHPRI`.
    ///
    /// Context: may sleep. Errors: as [`alloc`](Self::alloc).
    #[doc(alias = "WQ_HIGHPRI")]
    pub fn alloc_nice(name: &str, max_active: usize, nice: i32) -> Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            max_active: max_active.clamp(1, MAX_ACTIVE),
            nice,
            lanes: Mutex::default(),
            ready: Condvar::new(),
            done: Condvar::new(),
        });
        shared.add_worker(&mut shared.lanes.lock())?;
        Ok(Self { shared })
    }

    /// Queues an item. The item comes back when it is pending already (on any queue or timer), is being cancelled,
    /// or the queue is being destroyed. Mirrors `queue_work`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "queue_work")]
    pub fn enqueue<T: WorkItem>(&self, item: Arc<T>) -> Result<(), Arc<T>> {
        let dyn_item: Arc<dyn WorkItem> = Arc::clone(&item) as _;
        let put = |t| self.shared.push(t, dyn_item);
        if item.work().core.enqueue(Where::Queue, put) {
            Ok(())
        } else {
            Err(item)
        }
    }

    /// Queues an item after a delay. The item comes back as from [`enqueue`](Self::enqueue). Cancel what is delayed
    /// before the queue is destroyed; what is not, is dropped when its time comes. Mirrors `queue_delayed_work`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "queue_delayed_work")]
    pub fn enqueue_delayed<T: WorkItem>(&self, item: Arc<T>, delay: Delta) -> Result<(), Arc<T>> {
        if delay <= Delta::ZERO {
            return self.enqueue(item);
        }
        let put = self.arm(Arc::clone(&item) as _, delay);
        if item.work().core.enqueue(Where::Timer, put) {
            Ok(())
        } else {
            Err(item)
        }
    }

    /// Queues an item after a delay, whether it is pending or not: a pending one moves here. Gives whether it was
    /// pending; the item comes back when it is being cancelled or the queue destroyed. Mirrors `mod_delayed_work`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "mod_delayed_work")]
    pub fn mod_delayed<T: WorkItem>(&self, item: Arc<T>, delay: Delta) -> Result<bool, Arc<T>> {
        let dyn_item: Arc<dyn WorkItem> = Arc::clone(&item) as _;
        let core = &item.work().core;
        let moved = if delay <= Delta::ZERO {
            core.modify(Where::Queue, Work::take, |t| self.shared.push(t, dyn_item))
        } else {
            core.modify(Where::Timer, Work::take, self.arm(dyn_item, delay))
        };
        moved.ok_or(item)
    }

    /// Arms the timer of an item that goes to this queue.
    fn arm(
        &self,
        item: Arc<dyn WorkItem>,
        delay: Delta,
    ) -> impl FnOnce(Ticket) -> Option<Place> + use<> {
        let shared = Arc::clone(&self.shared);
        move |ticket| {
            let fire = move || {
                let entry = Arc::clone(&item);
                let put = |t| shared.push(t, entry);
                if !item.work().core.timer_fired(ticket, put) {
                    crate::pr_warn!("workqueue {}: gone before a delayed item", shared.name);
                }
            };
            let at = Instant::now() + delay;
            Some(Place::Timer(time::arm(at, Box::new(fire))))
        }
    }

    /// Queues a closure.
    ///
    /// Context: any thread, reactor-safe. Errors: `ESHUTDOWN` when the queue is being destroyed.
    pub fn try_spawn(&self, f: impl FnOnce() + Send + 'static) -> Result {
        self.enqueue(Arc::new(OnceWork::new(f)))
            .map_err(|_| ESHUTDOWN)
    }

    /// Waits until everything that was queued before is done. Mirrors `flush_workqueue`.
    ///
    /// Context: may sleep.
    ///
    /// # Panics
    ///
    /// When called by an item of this queue, which would wait for itself.
    #[doc(alias = "flush_workqueue")]
    pub fn flush(&self) {
        self.assert_not_own_worker("flush");
        let end = self.shared.lanes.lock().next_seq;
        self.shared.wait_until(|lanes| lanes.are_over(end));
    }

    /// Waits until the queue is empty, also of what its items queue again. Others must have stopped queueing. Mirrors
    /// `drain_workqueue`.
    ///
    /// Context: may sleep.
    ///
    /// # Panics
    ///
    /// When called by an item of this queue, which would wait for itself.
    #[doc(alias = "drain_workqueue")]
    pub fn drain(&self) {
        self.assert_not_own_worker("drain");
        self.shared.wait_until(|lanes| lanes.outstanding() == 0);
    }

    /// Drains the queue and ends its workers. Mirrors `destroy_workqueue`.
    ///
    /// Context: may sleep.
    #[doc(alias = "destroy_workqueue")]
    pub fn destroy(self) {
        // The destructor does it.
    }

    /// Number of items that are on the queue or run. Context: any thread, reactor-safe.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lanes.lock().outstanding()
    }

    /// Whether nothing is on the queue or runs. Context: any thread, reactor-safe.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of worker threads. Context: any thread, reactor-safe.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.shared.lanes.lock().workers.len()
    }

    #[track_caller]
    fn assert_not_own_worker(&self, what: &str) {
        crate::might_sleep!();
        assert!(
            !self.shared.is_own_worker(),
            "Queue::{what} called by an item of the queue"
        );
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // An item that drops the last handle of its own queue cannot wait for itself: the workers finish the list
        // and end by themselves.
        let own = self.shared.is_own_worker();
        if !own {
            crate::might_sleep!();
            self.drain();
        }
        let workers = {
            let mut lanes = self.shared.lanes.lock();
            lanes.dying = true;
            self.shared.ready.notify_all();
            std::mem::take(&mut lanes.workers)
        };
        for worker in workers.into_values() {
            if own { worker.detach() } else { worker.join() }
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.shared.name)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
