//! Threads of a driver, for what may block.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::kthread;
use crate::sync::{CondVar, CondVarTimeoutResult, SpinLock};
use crate::time::Delta;

/// A piece of work.
type Job = Box<dyn FnOnce() + Send>;

/// Threads of one pool at most. Enough to keep a disk's queue busy, few enough not to swamp the host.
const MAX_WORKERS: usize = 16;
/// A thread that had nothing to do for so long ends.
const IDLE_EXIT: Delta = Delta::from_secs(10);

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: SpinLock<State>,
    wake: CondVar,
}

/// A pool of threads for a block driver's bios that may block, started when needed. They end after
/// some idle seconds, and when the pool is dropped and the queue is empty; nobody waits for them, as the last owner of the pool may be one of them.
///
/// ```
/// let pool = kshim::block::BlockWorkers::new();
/// pool.defer(|| println!("may sleep here"));
/// ```
#[doc(alias = "kblockd_schedule_work")]
#[derive(Default)]
pub struct BlockWorkers(Arc<Shared>);

impl BlockWorkers {
    /// A pool without threads yet.
    pub fn new() -> BlockWorkers {
        BlockWorkers::default()
    }

    /// Runs `job` on a thread of the pool. Jobs start in order. When not even one thread can be had, the job runs on
    /// the calling thread: slow is better than never.
    ///
    /// Context: any; starting a thread takes tens of microseconds.
    #[doc(alias = "kblockd_schedule_work")]
    pub fn defer(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(job) = self.queue(Box::new(job)) {
            job();
        }
    }

    /// Queues a job, unless there is no thread: then it comes back.
    fn queue(&self, job: Job) -> Option<Job> {
        let mut st = self.0.state.lock();
        st.jobs.push_back(job);
        if st.idle < st.jobs.len() && st.workers < MAX_WORKERS {
            let shared = Arc::clone(&self.0);
            match kthread::run("kblockd", move |_| shared.work()) {
                Ok(thread) => {
                    thread.detach();
                    st.workers += 1;
                }
                Err(e) => {
                    crate::pr_err_ratelimited!("no thread for block I/O: {e}");
                    if st.workers == 0 {
                        return st.jobs.pop_back();
                    }
                }
            }
        }
        drop(st);
        self.0.wake.notify_one();
        None
    }
}

impl fmt::Debug for BlockWorkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let st = self.0.state.lock();
        f.debug_struct("BlockWorkers")
            .field("queued", &st.jobs.len())
            .field("threads", &st.workers)
            .finish()
    }
}

impl Drop for BlockWorkers {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.wake.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let mut st = self.state.lock();
            let job = loop {
                if let Some(job) = st.jobs.pop_front() {
                    break job;
                }
                if st.closed {
                    st.workers -= 1;
                    return;
                }
                st.idle += 1;
                let woken = self.wake.wait_timeout(&mut st, IDLE_EXIT);
                st.idle -= 1;
                if woken == CondVarTimeoutResult::Timeout && st.jobs.is_empty() {
                    st.workers -= 1;
                    return;
                }
            };
            drop(st);
            // A driver that panics loses this bio (which is reported), not the thread.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                crate::pr_err!("BUG: a block driver panicked");
            }
        }
    }
}
