//! Kernel threads: named threads that are told to stop and joined.
//!
//! C header: `include/linux/kthread.h`

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Result;
use crate::sync::{SpinLock, StopToken};
use crate::sys::sync::{Arc, Parker, current_parker};
use crate::sys::thread::{self, JoinHandle, ThreadOptions};
use crate::time::{Delta, Instant};

/// Longest thread name, in bytes; longer names are cut.
pub const MAX_NAME_LEN: usize = thread::MAX_NAME_LEN;

/// What a kthread learns of the wish to stop it. Stays on its thread.
///
/// A stop wakes the thread out of every sleep that knows the token: the methods here, the `_interruptible` waits of
/// [`WaitQueue`](crate::sync::WaitQueue) and [`Completion`](crate::sync::Completion), and
/// [`WorkerQueue::wait_next`]. Nothing polls.
#[derive(Debug)]
pub struct Stop {
    token: Arc<StopToken>,
    _own_thread: PhantomData<*mut ()>,
}

impl Stop {
    /// Whether the thread shall end. Mirrors `kthread_should_stop`.
    ///
    /// Context: the kthread itself.
    #[doc(alias = "kthread_should_stop")]
    #[inline]
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.token.is_raised()
    }

    /// Sleeps until the thread shall end.
    ///
    /// Context: may sleep.
    pub fn wait(&self) {
        crate::might_sleep!();
        let parker = current_parker();
        while !self.should_stop() {
            parker.park();
        }
    }

    /// Sleeps for that time, or until the thread shall end. Returns whether it shall end. Mirrors
    /// `schedule_timeout_interruptible`.
    ///
    /// Context: may sleep.
    #[doc(alias = "schedule_timeout_interruptible")]
    pub fn sleep(&self, time: Delta) -> bool {
        crate::might_sleep!();
        let parker = current_parker();
        let end = Instant::now() + time;
        loop {
            if self.should_stop() {
                return true;
            }
            let left = end - Instant::now();
            if left <= Delta::ZERO {
                return false;
            }
            parker.park_timeout(left.to_duration());
        }
    }
}

/// How to start a kthread.
///
/// ```
/// use kshim::kthread;
///
/// let t = kthread::Builder::new("mgmtd").nice(5).spawn(|stop| stop.wait())?;
/// t.stop();
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "kthread_create")]
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Builder {
    opts: ThreadOptions,
}

impl Builder {
    /// A thread of that name, cut to [`MAX_NAME_LEN`] bytes.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            opts: ThreadOptions {
                name: name.into(),
                ..ThreadOptions::default()
            },
        }
    }

    /// Runs on this CPU only, if the host allows it. Mirrors `kthread_bind`.
    #[doc(alias = "kthread_bind")]
    pub fn cpu(mut self, cpu: usize) -> Self {
        self.opts.cpu = Some(cpu);
        self
    }

    /// Niceness, -20 to 19; a raised priority is used only where the process may. Mirrors `set_user_nice`.
    #[doc(alias = "set_user_nice")]
    pub fn nice(mut self, nice: i32) -> Self {
        self.opts.nice = nice;
        self
    }

    /// Starts the thread.
    ///
    /// Context: may sleep. Errors: `EAGAIN` when the host has no room for a thread, `EINVAL` for a name with NUL.
    pub fn spawn(self, f: impl FnOnce(&Stop) + Send + 'static) -> Result<Kthread> {
        let token = Arc::new(StopToken::default());
        let theirs = Arc::clone(&token);
        let name: Arc<str> = thread::cut_name(&self.opts.name).into();
        let label = Arc::clone(&name);
        let handle = thread::spawn(&self.opts, move || body(theirs, &label, f))?;
        Ok(Kthread {
            name,
            token,
            handle: Some(handle),
        })
    }
}

fn body(token: Arc<StopToken>, name: &str, f: impl FnOnce(&Stop)) {
    token.started();
    let stop = Stop {
        token,
        _own_thread: PhantomData,
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(&stop))) {
        crate::pr_err!("kthread {name} panicked: {}", panic_text(&*panic));
    }
}

/// The message of a caught panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// The host's number of the calling thread, as `/proc/PID/task` has it. Context: any.
#[doc(alias = "task_pid_vnr")]
pub fn current_id() -> i32 {
    crate::sys::thread::current_tid()
}

/// Starts a kthread. A panic of `f` is logged and ends the thread.
///
/// Context: may sleep. Errors: `EAGAIN` when the host has no room for a thread, `EINVAL` for a name with NUL.
///
/// ```
/// use kshim::kthread;
/// use kshim::time::Delta;
///
/// let t = kthread::run("ticker", |stop| {
///     while !stop.sleep(Delta::from_secs(60)) {
///         // once a minute
///     }
/// })?;
/// t.stop(); // at once, not after a minute
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "kthread_run")]
pub fn run(name: &str, f: impl FnOnce(&Stop) + Send + 'static) -> Result<Kthread> {
    Builder::new(name).spawn(f)
}

/// A running kthread. Dropping it stops and joins the thread.
pub struct Kthread {
    name: Arc<str>,
    token: Arc<StopToken>,
    handle: Option<JoinHandle>,
}

impl Kthread {
    /// The thread's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the thread to stop, without waiting for its end.
    ///
    /// Context: any thread, reactor-safe.
    pub fn request_stop(&self) {
        self.token.raise();
    }

    /// Tells the thread to stop and waits for its end. Called by the thread itself it does not wait. Mirrors
    /// `kthread_stop`.
    ///
    /// Context: may sleep.
    #[doc(alias = "kthread_stop")]
    pub fn stop(mut self) {
        self.stop_and_join();
    }

    /// Waits for the thread's end without telling it to stop.
    ///
    /// Context: may sleep.
    pub fn join(mut self) {
        if let Some(handle) = self.handle.take().filter(|h| !h.is_current()) {
            crate::might_sleep!();
            handle.join();
        }
    }

    /// Lets the thread run on its own; it is not told to stop.
    ///
    /// Context: any thread, reactor-safe.
    pub fn detach(mut self) {
        self.handle = None;
    }

    fn stop_and_join(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        self.token.raise();
        if !handle.is_current() {
            crate::might_sleep!();
            handle.join();
        }
    }
}

impl Drop for Kthread {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

impl fmt::Debug for Kthread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kthread").field(&self.name).finish()
    }
}

/// The queue of a pool of kthreads: items in order, and a stack of parked workers. The worker that parked last is
/// woken first; its caches are warmest, and surplus workers stay asleep.
///
/// ```
/// use kshim::kthread::{self, WorkerQueue};
/// use kshim::sync::Arc;
///
/// let queue = Arc::new(WorkerQueue::new());
/// let own = Arc::clone(&queue);
/// let worker = kthread::run("worker", move |stop| {
///     while let Some(job) = own.wait_next(stop) {
///         let _: u32 = job;
///     }
/// })?;
/// queue.push(1);
/// queue.push(2);
/// worker.stop(); // after the queue is empty
/// assert_eq!(queue.len(), 0);
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Debug)]
pub struct WorkerQueue<T> {
    inner: SpinLock<Workers<T>>,
}

#[derive(Debug)]
struct Workers<T> {
    items: VecDeque<T>,
    parked: Vec<Arc<Parker>>,
}

impl<T> Default for WorkerQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> WorkerQueue<T> {
    /// Empty, without workers.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inner: SpinLock::new(Workers {
                items: VecDeque::new(),
                parked: Vec::new(),
            }),
        }
    }

    /// Adds an item at the end and wakes a worker. Returns whether one slept and was woken.
    ///
    /// Context: any thread, reactor-safe.
    pub fn push(&self, item: T) -> bool {
        self.add(|items| items.push_back(item))
    }

    /// Adds an item at the front and wakes a worker. Returns whether one slept and was woken.
    ///
    /// Context: any thread, reactor-safe.
    pub fn push_head(&self, item: T) -> bool {
        self.add(|items| items.push_front(item))
    }

    fn add(&self, f: impl FnOnce(&mut VecDeque<T>)) -> bool {
        let worker = {
            let mut inner = self.inner.lock();
            f(&mut inner.items);
            inner.parked.pop()
        };
        let Some(worker) = worker else { return false };
        worker.unpark();
        true
    }

    /// Adds many items at the end and wakes as many workers.
    ///
    /// Context: any thread, reactor-safe.
    pub fn push_all(&self, items: impl IntoIterator<Item = T>) {
        let workers = {
            let mut inner = self.inner.lock();
            let before = inner.items.len();
            inner.items.extend(items);
            let added = inner.items.len() - before;
            let keep = inner.parked.len().saturating_sub(added);
            inner.parked.split_off(keep)
        };
        for worker in workers.iter().rev() {
            worker.unpark();
        }
    }

    /// The next item, after sleeping for it if need be; `None` when the queue is empty and the thread shall stop.
    ///
    /// Context: may sleep.
    pub fn wait_next(&self, stop: &Stop) -> Option<T> {
        self.wait_until(stop, None)
    }

    /// Like [`wait_next`](Self::wait_next), but `None` also when nothing came for that time.
    ///
    /// Context: may sleep.
    pub fn wait_next_timeout(&self, stop: &Stop, timeout: Delta) -> Option<T> {
        self.wait_until(stop, Some(Instant::now() + timeout))
    }

    fn wait_until(&self, stop: &Stop, end: Option<Instant>) -> Option<T> {
        crate::might_sleep!();
        let mut parker = None;
        loop {
            let left = end.map(|end| end - Instant::now());
            let over = left.is_some_and(|left| left <= Delta::ZERO);
            {
                let mut inner = self.inner.lock();
                let item = inner.items.pop_front();
                if item.is_some() || over || stop.should_stop() {
                    return item;
                }
                inner
                    .parked
                    .push(Arc::clone(parker.get_or_insert_with(current_parker)));
            }
            let Some(parker) = &parker else { continue };
            match left {
                Some(left) => parker.park_timeout(left.to_duration()),
                None => parker.park(),
            };
            // Woken by a stop or for no reason, the entry is still there and would waste somebody's wake-up.
            let mut inner = self.inner.lock();
            if let Some(at) = inner.parked.iter().rposition(|p| Arc::ptr_eq(p, parker)) {
                inner.parked.remove(at);
            }
        }
    }

    /// The next item, if there is one.
    ///
    /// Context: any thread, reactor-safe.
    pub fn try_next(&self) -> Option<T> {
        self.inner.lock().items.pop_front()
    }

    /// Takes out all items that `pick` wants, in order.
    ///
    /// Context: any thread, reactor-safe; `pick` runs under the queue's lock.
    pub fn extract(&self, mut pick: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut inner = self.inner.lock();
        let (out, keep) = std::mem::take(&mut inner.items)
            .into_iter()
            .partition::<VecDeque<T>, _>(|item| pick(item));
        inner.items = keep;
        out.into()
    }

    /// Number of queued items.
    ///
    /// Context: any thread, reactor-safe.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().items.len()
    }

    /// Whether no item is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of workers that sleep.
    ///
    /// Context: any thread, reactor-safe.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.inner.lock().parked.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::sync::Completion;
    use crate::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn stop_wakes_a_sleeper_and_joins() {
        let ended = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&ended);
        let t = run("sleeper", move |stop| {
            assert!(stop.sleep(Delta::from_secs(3600)));
            stop.wait();
            theirs.store(true, Ordering::SeqCst);
        })
        .expect("kthread starts");
        assert_eq!(t.name(), "sleeper");
        let start = Instant::now();
        t.stop();
        assert!(ended.load(Ordering::SeqCst));
        assert!(start.elapsed() < Delta::from_secs(60));
    }

    #[test]
    fn a_stop_before_the_first_sleep_is_not_lost() {
        for _ in 0..200 {
            drop(run("short", |stop| stop.wait()).expect("kthread starts"));
        }
    }

    #[test]
    fn a_panic_ends_only_its_thread() {
        let t = run("panicky", |_| panic!("expected by the test")).expect("kthread starts");
        t.join();
    }

    #[test]
    fn a_thread_may_drop_its_own_handle() {
        let slot: Arc<SpinLock<Option<Kthread>>> = Arc::default();
        let own = Arc::clone(&slot);
        let done = Arc::new(Completion::new());
        let ended = Arc::clone(&done);
        let go = Arc::new(Completion::new());
        let begin = Arc::clone(&go);
        *slot.lock() = Some(
            run("own", move |stop| {
                begin.wait_for_completion();
                let me = own.lock().take();
                drop(me);
                assert!(stop.should_stop());
                ended.complete();
            })
            .expect("kthread starts"),
        );
        go.complete();
        done.wait_for_completion();
    }

    #[test]
    fn bad_names_are_errors() {
        let r = run("a\0b", |_| ());
        assert_eq!(r.err(), Some(crate::error::code::EINVAL));
    }

    #[test]
    fn items_come_in_order_and_can_be_taken_out() {
        let q = WorkerQueue::new();
        q.push(2);
        q.push_head(1);
        q.push_all([3, 4, 5]);
        assert_eq!(q.extract(|i| i % 2 == 0), [2, 4]);
        assert_eq!(q.len(), 3);
        assert_eq!(
            std::iter::from_fn(|| q.try_next()).collect::<Vec<_>>(),
            [1, 3, 5]
        );
        assert!(q.is_empty());
    }

    #[test]
    fn a_worker_waits_no_longer_than_it_is_told() {
        let queue = Arc::new(WorkerQueue::new());
        assert!(!queue.push(1), "nobody sleeps");
        let own = Arc::clone(&queue);
        let woken = Arc::new(Completion::new());
        let told = Arc::clone(&woken);
        let waits = Arc::new(Completion::new());
        let tells = Arc::clone(&waits);
        let t = run("timeouts", move |stop| {
            let short = Delta::from_millis(5);
            assert_eq!(own.wait_next_timeout(stop, short), Some(1));
            assert_eq!(own.wait_next_timeout(stop, short), None);
            assert_eq!(own.parked(), 0, "no entry stays behind");
            tells.complete();
            assert_eq!(own.wait_next_timeout(stop, Delta::from_secs(60)), Some(2));
            told.complete();
        })
        .unwrap();
        waits.wait_for_completion();
        queue.push(2);
        woken.wait_for_completion();
        t.stop();
    }

    #[test]
    fn the_worker_that_parked_last_runs_first() {
        let q = Arc::new(WorkerQueue::<u32>::new());
        let seen = Arc::new(SpinLock::new(Vec::new()));
        let done = Arc::new(Completion::new());
        let mut workers = Vec::new();
        for i in 0..3 {
            let (q2, seen, done) = (Arc::clone(&q), Arc::clone(&seen), Arc::clone(&done));
            workers.push(
                run("worker", move |stop| {
                    while let Some(item) = q2.wait_next(stop) {
                        seen.lock().push((i, item));
                        done.complete();
                    }
                })
                .expect("kthread starts"),
            );
            while q.parked() != i + 1 {
                thread::yield_now();
            }
        }
        for item in 0..4 {
            q.push(item);
            done.wait_for_completion();
            while q.parked() != 3 {
                thread::yield_now();
            }
        }
        assert_eq!(*seen.lock(), [(2, 0), (2, 1), (2, 2), (2, 3)]);
    }

    #[test]
    fn stopped_workers_finish_the_queue() {
        const N: usize = 20_000;
        let q = Arc::new(WorkerQueue::new());
        let n = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (q, n) = (Arc::clone(&q), Arc::clone(&n));
                run("worker", move |stop| {
                    while q.wait_next(stop).is_some() {
                        n.fetch_add(1, Ordering::Relaxed);
                    }
                })
                .expect("kthread starts")
            })
            .collect();
        for i in 0..N {
            q.push(i);
        }
        drop(workers);
        assert_eq!(n.load(Ordering::Relaxed), N);
        assert_eq!(q.parked(), 0);
    }
}
