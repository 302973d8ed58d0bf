//! Work items.

use std::fmt;

use super::core::Core;
use super::queue::{Entry, Shared, current_work};
use crate::sys::sync::{Arc, Mutex};
use crate::time::{self, OneShot, TimerId};

/// Where a work item waits to run.
pub(super) enum Place {
    /// In the timer queue.
    Timer(TimerId),
    /// On a queue, under this number.
    Queue(Arc<Shared>, u64),
    /// Nowhere but here, until the run of another worker ends.
    Deferred(Arc<Shared>, Entry),
}

/// References to an item that is not where it waited any more.
pub(super) type Remains = (Option<OneShot>, Option<Entry>);

impl Place {
    /// Takes the item out. What is left is to be dropped without a lock.
    fn take(self) -> Remains {
        match self {
            // A timer that fires just now finds its ticket stale.
            Self::Timer(id) => (time::disarm(id), None),
            Self::Queue(queue, seq) => (None, queue.remove(seq)),
            Self::Deferred(queue, entry) => {
                queue.finished(entry.seq);
                (None, Some(entry))
            }
        }
    }
}

/// An object that a work queue can run.
///
/// ```
/// use kshim::sync::Arc;
/// use kshim::workqueue::{self, Work, WorkItem};
///
/// struct Resync { work: Work }
///
/// impl WorkItem for Resync {
///     fn work(&self) -> &Work { &self.work }
///     fn run(self: Arc<Self>) { /* may sleep */ }
/// }
///
/// let item = Arc::new(Resync { work: Work::new() });
/// workqueue::system().enqueue(Arc::clone(&item)).ok();
/// item.work.flush();
/// ```
pub trait WorkItem: Send + Sync + 'static {
    /// The item's own work structure; always the same one.
    fn work(&self) -> &Work;

    /// Does the work, on a worker thread of the queue. A panic is logged and ends the run.
    ///
    /// Context: may sleep.
    fn run(self: Arc<Self>);
}

/// The part of a [`WorkItem`] that work queues need. Mirrors `struct work_struct` and `struct delayed_work`.
#[doc(alias = "work_struct")]
#[doc(alias = "delayed_work")]
pub struct Work {
    pub(super) core: Core<Place>,
}

/// A [`Work`] that is queued with a delay. The kernel has two types because a timer costs memory there; here it is
/// the same one.
pub type DelayedWork = Work;

impl Work {
    /// An idle work. Mirrors `INIT_WORK`.
    #[doc(alias = "INIT_WORK")]
    #[must_use]
    pub const fn new() -> Self {
        Self { core: Core::new() }
    }

    /// Whether the item waits under a timer or on a queue. Mirrors `work_pending`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "work_pending")]
    #[must_use]
    pub fn pending(&self) -> bool {
        self.core.is_pending()
    }

    /// Whether the item is pending or runs. Mirrors `work_busy`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "work_busy")]
    #[must_use]
    pub fn busy(&self) -> bool {
        self.core.is_pending() || self.core.is_running()
    }

    /// Takes the item off its queue or disarms its timer; a run goes on. Whether it was pending. Takes time
    /// in proportion to the length of the queue. Mirrors `cancel_work`, `cancel_delayed_work`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "cancel_work")]
    #[doc(alias = "cancel_delayed_work")]
    pub fn cancel(&self) -> bool {
        self.core.cancel(Place::take)
    }

    /// Like [`cancel`](Self::cancel), and waits for the end of a run. Until this returns nobody can queue the item,
    /// itself included. Mirrors `cancel_work_sync`, `cancel_delayed_work_sync`.
    ///
    /// Context: may sleep.
    ///
    /// # Panics
    ///
    /// When called by the item's own run, which would wait for itself.
    #[doc(alias = "cancel_work_sync")]
    #[doc(alias = "cancel_delayed_work_sync")]
    pub fn cancel_sync(&self) -> bool {
        crate::might_sleep!();
        self.assert_not_own_run("cancel_sync");
        self.core.cancel_sync(Place::take)
    }

    /// Waits until what is on a queue now, or else what runs now, is over. An armed timer stays. Whether there was
    /// something to wait for. Mirrors `flush_work`.
    ///
    /// Context: may sleep.
    ///
    /// # Panics
    ///
    /// When called by the item's own run, which would wait for itself.
    #[doc(alias = "flush_work")]
    pub fn flush(&self) -> bool {
        crate::might_sleep!();
        self.assert_not_own_run("flush");
        self.core.flush()
    }

    /// Like [`flush`](Self::flush), but an armed timer fires at once. Mirrors `flush_delayed_work`.
    ///
    /// Context: may sleep.
    ///
    /// # Panics
    ///
    /// When called by the item's own run, which would wait for itself.
    #[doc(alias = "flush_delayed_work")]
    pub fn flush_delayed(&self) -> bool {
        crate::might_sleep!();
        self.assert_not_own_run("flush_delayed");
        self.core.flush_delayed(|place| match place {
            Place::Timer(id) => time::disarm(*id),
            Place::Queue(..) | Place::Deferred(..) => None,
        })
    }

    #[track_caller]
    fn assert_not_own_run(&self, what: &str) {
        assert!(
            current_work() != self.address(),
            "Work::{what} called by the item's own run"
        );
    }

    /// Tells this work from others that live at the same time.
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    pub(super) fn take(place: Place) -> Remains {
        place.take()
    }
}

impl Default for Work {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("pending", &self.pending())
            .field("running", &self.core.is_running())
            .finish()
    }
}

/// A work item made of a closure, for objects that need several, or no type of their own.
///
/// ```
/// use kshim::sync::Arc;
/// use kshim::workqueue::{self, FnWork};
///
/// let hello = FnWork::new(|| println!("runs on a worker"));
/// workqueue::system().enqueue(Arc::clone(&hello)).ok();
/// hello.work().flush();
/// ```
pub struct FnWork {
    work: Work,
    f: Box<dyn Fn() + Send + Sync>,
}

impl FnWork {
    /// An idle item whose runs call `f`.
    pub fn new(f: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            work: Work::new(),
            f: Box::new(f),
        })
    }

    /// The item's work, to cancel or flush it.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }
}

impl WorkItem for FnWork {
    fn work(&self) -> &Work {
        &self.work
    }

    fn run(self: Arc<Self>) {
        (self.f)();
    }
}

impl fmt::Debug for FnWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.work.fmt(f)
    }
}

/// What [`Queue::try_spawn`](super::Queue::try_spawn) queues.
pub(super) struct OnceWork<F> {
    work: Work,
    f: Mutex<Option<F>>,
}

impl<F: FnOnce() + Send + 'static> OnceWork<F> {
    pub(super) fn new(f: F) -> Self {
        Self {
            work: Work::new(),
            f: Mutex::new(Some(f)),
        }
    }
}

impl<F: FnOnce() + Send + 'static> WorkItem for OnceWork<F> {
    fn work(&self) -> &Work {
        &self.work
    }

    fn run(self: Arc<Self>) {
        let f = self.f.lock().take();
        if let Some(f) = f {
            f();
        }
    }
}
