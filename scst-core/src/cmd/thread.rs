//! Pools of threads for execution that sleeps.
//!
//! C source: `scst_cmd_thread` of `scst/src/scst_targ.c`, `scst_add_threads` of `scst/src/scst_lib.c`

use super::{Cmd, ExecCx};
use crate::consts::QueueType;
use kshim::error::Result;
use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::sync::SpinLock;
use std::sync::Arc;

/// Who shares a pool (`threads_pool_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadsPoolType {
    /// One pool a device and initiator.
    #[default]
    PerInitiator,
    /// One pool a device.
    Shared,
}

/// A pool. A worker takes the command that was put there first, HEAD OF QUEUE commands before all others, and executes
/// it; everything after execution happens at the command's home.
#[doc(alias = "scst_cmd_threads")]
pub struct CmdThreads {
    queue: Arc<WorkerQueue<Box<Cmd>>>,
    threads: SpinLock<Vec<Kthread>>,
    name: String,
}

impl std::fmt::Debug for CmdThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CmdThreads")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl CmdThreads {
    /// Starts `n` threads named after `name`. Errors: what thread creation answers. Context: may sleep.
    pub fn new(name: &str, n: usize) -> Result<Arc<Self>> {
        let pool = Arc::new(Self {
            queue: Arc::new(WorkerQueue::new()),
            threads: SpinLock::new(Vec::with_capacity(n)),
            name: name.to_owned(),
        });
        pool.add_threads(n)?;
        Ok(pool)
    }

    /// Starts `n` more threads. Errors: what thread creation answers. Context: may sleep.
    #[doc(alias = "scst_add_threads")]
    pub fn add_threads(&self, n: usize) -> Result {
        for _ in 0..n {
            let at = self.threads.lock().len();
            let queue = Arc::clone(&self.queue);
            let thread = kthread::run(&format!("{}{at}", self.name), move |stop| {
                while let Some(cmd) = queue.wait_next(stop) {
                    cmd.process(&mut ExecCx::thread());
                }
            })?;
            self.threads.lock().push(thread);
        }
        Ok(())
    }

    /// Number of threads.
    pub fn len(&self) -> usize {
        self.threads.lock().len()
    }

    /// Whether the pool has no threads.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands a command to the pool. Context: any.
    pub(crate) fn queue_cmd(&self, cmd: Box<Cmd>) {
        if cmd.queue_type == QueueType::HeadOfQueue {
            self.queue.push_head(cmd);
        } else {
            self.queue.push(cmd);
        }
    }

    /// Stops and joins the threads; commands that still wait are executed first. Context: may sleep, not a pool thread.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for t in threads {
            t.stop();
        }
    }
}
