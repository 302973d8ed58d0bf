//! Threads for what may block.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::error::Result;
use crate::sys::linux::proc::spawn_detached;

/// A piece of work.
type Job = Box<dyn FnOnce() + Send>;

/// Threads of one pool at most. Enough to keep a disk's queue busy, few enough not to swamp the host.
const MAX_WORKERS: usize = 16;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// A pool of threads, started when needed. They end when the pool is dropped and the queue is empty; nobody waits for
/// them, as the last owner of the pool may be one of them.
pub(super) struct Pool(Arc<Shared>);

impl Pool {
    pub(super) fn new() -> Pool {
        Pool(Arc::default())
    }

    /// Queues a job. When not even one thread can be started it comes back.
    ///
    /// Context: any; starting a thread takes tens of microseconds.
    pub(super) fn queue(&self, job: Job) -> Result<(), Job> {
        let mut st = self.0.state.lock();
        st.jobs.push_back(job);
        if st.idle >= st.jobs.len() {
            drop(st);
            self.0.wake.notify_one();
            return Ok(());
        }
        if st.workers < MAX_WORKERS {
            st.workers += 1;
            let shared = Arc::clone(&self.0);
            if let Err(e) = spawn_detached("kblockd", move || shared.work()) {
                crate::pr_err_ratelimited!("no thread for block I/O: {e}");
                st.workers -= 1;
                if st.workers == 0 {
                    return match st.jobs.pop_back() {
                        Some(job) => Err(job),
                        None => Ok(()),
                    };
                }
            }
        }
        drop(st);
        self.0.wake.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
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
                self.wake.wait(&mut st);
                st.idle -= 1;
            };
            drop(st);
            job();
        }
    }
}
