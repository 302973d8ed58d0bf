//! Work queues: deferred work in thread context.
//!
//! A work item is an object that embeds a [`Work`] and implements [`WorkItem`]. [`Queue::enqueue`] takes an
//! `Arc` of it and has a worker thread call [`WorkItem::run`] once. As in the kernel an item is queued at most
//! once at a time and never runs twice at the same time, whichever queues it is put on; it may be queued again while it
//! runs. What each operation does in each state is the table in `state.rs`.
//!
//! ```
//! use kshim::sync::{Arc, Completion};
//! use kshim::time::Delta;
//! use kshim::workqueue::{self, Queue, Work, WorkItem};
//!
//! struct Purge {
//!     work: Work,
//!     done: Completion,
//! }
//!
//! impl WorkItem for Purge {
//!     fn work(&self) -> &Work {
//!         &self.work
//!     }
//!     fn run(self: Arc<Self>) {
//!         self.done.complete();
//!     }
//! }
//!
//! let purge = Arc::new(Purge { work: Work::new(), done: Completion::new() });
//! assert!(workqueue::system().enqueue(Arc::clone(&purge)).is_ok());
//! purge.done.wait_for_completion();
//!
//! // Later, unless cancelled:
//! assert!(workqueue::system().enqueue_delayed(Arc::clone(&purge), Delta::from_secs(60)).is_ok());
//! assert!(purge.work.cancel_sync());
//!
//! // A queue of one's own, one item at a time:
//! let queue = Queue::alloc_ordered("release_group")?;
//! queue.try_spawn(|| println!("runs on the queue"))?;
//! queue.destroy();
//! # Ok::<(), kshim::error::Error>(())
//! ```
//!
//! C header: `include/linux/workqueue.h`

mod core;
mod state;

#[cfg(not(loom))]
mod queue;
#[cfg(not(loom))]
mod work;

#[cfg(not(loom))]
pub use queue::{MAX_ACTIVE, Queue};
#[cfg(not(loom))]
pub use work::{DelayedWork, FnWork, Work, WorkItem};

#[cfg(not(loom))]
mod system {
    use super::Queue;
    use crate::sync::OnceLock;

    /// Workers of the system queues that are meant for short items.
    const SYSTEM_MAX_ACTIVE: usize = 32;
    /// Workers of the unbound system queue, whose items may block for long.
    const UNBOUND_MAX_ACTIVE: usize = 64;
    /// Niceness of the high priority queue's workers, as in the kernel; without the privilege they run at 0.
    const HIGHPRI_NICE: i32 = -20;

    fn get(cell: &'static OnceLock<Queue>, name: &str, max: usize, nice: i32) -> &'static Queue {
        cell.get_or_init(|| {
            Queue::alloc_nice(name, max, nice)
                .expect("the first worker of a system work queue starts")
        })
    }

    /// The queue for short items. Created with its first worker at the first call. Mirrors `system_wq`.
    ///
    /// Context: any thread, reactor-safe but for the first call.
    ///
    /// # Panics
    ///
    /// When the host has no room for the first worker thread.
    #[doc(alias = "system_wq")]
    pub fn system() -> &'static Queue {
        static QUEUE: OnceLock<Queue> = OnceLock::new();
        get(&QUEUE, "events", SYSTEM_MAX_ACTIVE, 0)
    }

    /// The queue for items that take long. Mirrors `system_long_wq`. Otherwise as [`system`].
    #[doc(alias = "system_long_wq")]
    pub fn system_long() -> &'static Queue {
        static QUEUE: OnceLock<Queue> = OnceLock::new();
        get(&QUEUE, "events_long", SYSTEM_MAX_ACTIVE, 0)
    }

    /// The queue for urgent short items. Mirrors `system_highpri_wq`. Otherwise as [`system`].
    #[doc(alias = "system_highpri_wq")]
    pub fn system_highpri() -> &'static Queue {
        static QUEUE: OnceLock<Queue> = OnceLock::new();
        get(&QUEUE, "events_highpri", SYSTEM_MAX_ACTIVE, HIGHPRI_NICE)
    }

    /// The queue for items that may block for as long as they like. Mirrors `system_unbound_wq`. Otherwise as
    /// [`system`].
    #[doc(alias = "system_unbound_wq")]
    pub fn system_unbound() -> &'static Queue {
        static QUEUE: OnceLock<Queue> = OnceLock::new();
        get(&QUEUE, "events_unbound", UNBOUND_MAX_ACTIVE, 0)
    }
}

#[cfg(not(loom))]
pub use system::{system, system_highpri, system_long, system_unbound};

#[cfg(all(test, not(loom)))]
mod tests;
