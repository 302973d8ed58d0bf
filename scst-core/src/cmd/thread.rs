//! Pools of threads for execution that sleeps.
//!
//! A pool has no thread until it is used. A command that finds no idle worker has one more started, up to the pool's
//! size (`threads_num`), and a worker that had nothing to do for a while ends. So what a session costs
//! does not depend on the size of its pools.
//!
//! C source: `scst_cmd_thread` of `scst/src/scst_targ.c`, `scst_add_threads` of `scst/src/scst_lib.c`

use super::{Cmd, ExecCx};
use crate::consts::QueueType;
use kshim::error::Result;
use kshim::kthread::{self, Kthread, Stop, WorkerQueue};
use kshim::sync::{Mutex, SpinLock};
use kshim::time::Delta;
use kshim::workqueue;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Who shares a pool (`threads_pool_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadsPoolType {
    /// One pool a device and initiator.
    #[default]
    PerInitiator,
    /// One pool a device.
    Shared,
}

impl ThreadsPoolType {
    /// The name in the management tree.
    #[doc(alias = "SCST_THREADS_POOL_PER_INITIATOR_STR")]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerInitiator => "per_initiator",
            Self::Shared => "shared",
        }
    }

    /// From the name in the management tree.
    #[doc(alias = "scst_parse_threads_pool_type")]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::PerInitiator, Self::Shared]
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(name))
    }
}

/// A pool. A worker takes the command that was put there first, HEAD OF QUEUE commands before all others, and executes
/// it; everything after execution happens at the command's home.
#[doc(alias = "scst_cmd_threads")]
pub struct CmdThreads {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    queue: WorkerQueue<Box<Cmd>>,
    /// Workers that do not end when idle.
    min: usize,
    max: AtomicUsize,
    /// How long a worker waits for the next command before it ends.
    idle: Delta,
    /// Workers there are, and those being started.
    running: AtomicUsize,
    started: AtomicUsize,
    stopped: AtomicBool,
    /// The workers by number. Held while one is started or ends.
    threads: Mutex<Vec<(usize, Kthread)>>,
    /// The host's numbers of those that have begun.
    ids: SpinLock<Vec<i32>>,
    /// Who takes the commands if the host has no thread for us.
    fallback: Option<Arc<CmdThreads>>,
}

impl std::fmt::Debug for CmdThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CmdThreads")
            .field("name", &self.inner.name)
            .field("threads", &self.len())
            .finish_non_exhaustive()
    }
}

impl CmdThreads {
    /// A pool of at most `max` threads named after `name`, none of them started. `fallback` executes the commands,
    /// should the host have no room for threads. Context: any.
    pub fn new(name: &str, max: usize, fallback: &Arc<Self>) -> Arc<Self> {
        let idle = fallback.inner.idle;
        Self::make(name, 0, max, idle, Some(Arc::clone(fallback)))
    }

    /// The global pool: of at most `max` threads, one of which is started now and stays. Others, and those of the pools
    /// that have this one to fall back on, end when they were `idle` for that time. Errors: what thread creation
    /// answers. Context: may sleep.
    pub fn new_main(name: &str, max: usize, idle: Delta) -> Result<Arc<Self>> {
        let pool = Self::make(name, 1, max.max(1), idle, None);
        pool.inner.running.store(1, Ordering::SeqCst);
        pool.inner.start_worker()?;
        Ok(pool)
    }

    fn make(
        name: &str,
        min: usize,
        max: usize,
        idle: Delta,
        fallback: Option<Arc<Self>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                queue: WorkerQueue::new(),
                min,
                max: AtomicUsize::new(max),
                idle,
                running: AtomicUsize::new(0),
                started: AtomicUsize::new(0),
                stopped: AtomicBool::new(false),
                threads: Mutex::new(Vec::new()),
                ids: SpinLock::new(Vec::new()),
                fallback,
            }),
        })
    }

    /// Changes the size. Threads beyond it end when they are idle. Context: any.
    #[doc(alias = "scst_add_threads")]
    pub fn set_max(&self, max: usize) {
        self.inner.max.store(max.max(1), Ordering::Relaxed);
    }

    /// The size.
    pub fn max(&self) -> usize {
        self.inner.max.load(Ordering::Relaxed)
    }

    /// Number of threads there are now.
    pub fn len(&self) -> usize {
        self.inner.running.load(Ordering::Relaxed)
    }

    /// The host's numbers of the threads there are now. Context: any.
    pub fn thread_ids(&self) -> Vec<i32> {
        self.inner.ids.lock().clone()
    }

    /// Whether there is no thread now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands a command to the pool; gives it back if the pool is stopped. Context: any.
    pub(crate) fn queue_cmd(&self, cmd: Box<Cmd>) -> Result<(), Box<Cmd>> {
        if self.inner.stopped.load(Ordering::SeqCst) {
            return Err(cmd);
        }
        let woken = if cmd.queue_type == QueueType::HeadOfQueue {
            self.inner.queue.push_head(cmd)
        } else {
            self.inner.queue.push(cmd)
        };
        if !woken {
            self.inner.grow();
        }
        Ok(())
    }

    /// Stops and joins the threads; commands that still wait are executed first. No command may come any more.
    /// Context: may sleep, not a pool thread.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
        let threads = std::mem::take(&mut *self.inner.threads.lock());
        for (_, t) in threads {
            t.stop();
        }
        while let Some(cmd) = self.inner.queue.try_next() {
            run(cmd);
        }
    }
}

impl Drop for CmdThreads {
    /// The threads end on their own.
    fn drop(&mut self) {
        if self.inner.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        for (_, t) in std::mem::take(&mut *self.inner.threads.lock()) {
            t.request_stop();
            t.detach();
        }
    }
}

/// Executes a command. A panic of a handler costs that command, not the thread.
fn run(cmd: Box<Cmd>) {
    if catch_unwind(AssertUnwindSafe(|| cmd.process(&mut ExecCx::thread()))).is_err() {
        kshim::pr_err!("A handler panicked, its command is lost");
    }
}

impl Inner {
    /// Has one more worker started, unless there are enough.
    fn grow(self: &Arc<Self>) {
        let max = self.max.load(Ordering::Relaxed);
        let more = self
            .running
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n < max).then_some(n.saturating_add(1))
            });
        if more.is_err() {
            return;
        }
        // Starting a thread is nothing for a reactor.
        let me = Arc::clone(self);
        let spawned = workqueue::system().try_spawn(move || me.start_worker_or_fall_back());
        if spawned.is_err() {
            self.start_worker_or_fall_back();
        }
    }

    fn start_worker_or_fall_back(self: &Arc<Self>) {
        let Err(e) = self.start_worker() else { return };
        if self.running.load(Ordering::SeqCst) > 0 {
            return;
        }
        kshim::pr_err_ratelimited!("Cannot start a thread of pool {}: {e}", self.name);
        let Some(fallback) = &self.fallback else {
            return;
        };
        while let Some(cmd) = self.queue.try_next() {
            if let Err(cmd) = fallback.queue_cmd(cmd) {
                run(cmd);
            }
        }
    }

    /// Starts a worker that `running` counts already.
    fn start_worker(self: &Arc<Self>) -> Result {
        let mut threads = self.threads.lock();
        if self.stopped.load(Ordering::SeqCst) {
            self.running.fetch_sub(1, Ordering::SeqCst);
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let me = Arc::clone(self);
        let body = move |stop: &Stop| {
            let id = kthread::current_id();
            me.ids.lock().push(id);
            me.work(stop, number);
            me.ids.lock().retain(|i| *i != id);
        };
        match kthread::run(&format!("{}{number}", self.name), body) {
            Ok(thread) => {
                threads.push((number, thread));
                Ok(())
            }
            Err(e) => {
                self.running.fetch_sub(1, Ordering::SeqCst);
                Err(e)
            }
        }
    }

    fn work(&self, stop: &Stop, number: usize) {
        loop {
            let next = if self.running.load(Ordering::Relaxed) > self.min {
                self.queue.wait_next_timeout(stop, self.idle)
            } else {
                self.queue.wait_next(stop)
            };
            match next {
                Some(cmd) => run(cmd),
                None if stop.should_stop() => {
                    self.running.fetch_sub(1, Ordering::SeqCst);
                    return;
                }
                None => {
                    if self.retire(number) {
                        return;
                    }
                }
            }
        }
    }

    /// Leaves the pool, unless it is needed. Who queues a command looks at `running` after that, and this looks at the
    /// queue after `running`: one of both sees the other.
    fn retire(&self, number: usize) -> bool {
        let fewer = self
            .running
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n > self.min).then_some(n.saturating_sub(1))
            });
        if fewer.is_err() {
            return false;
        }
        if !self.queue.is_empty() {
            self.running.fetch_add(1, Ordering::SeqCst);
            return false;
        }
        let mut threads = self.threads.lock();
        if let Some(at) = threads.iter().position(|(n, _)| *n == number) {
            threads.swap_remove(at).1.detach();
        }
        true
    }
}
