//! The state of a work item under its lock, and waiting for it. Generic over the place where an item waits, so that
//! loom can explore it with a queue of its own.
//!
//! Locks: the item's lock is taken before a queue's and before the timer queue's. Workers and timers hold neither
//! when they come here.

use super::state::{Begin, Modified, State, Ticket, Where};
use crate::sys::sync::{Condvar, Mutex, MutexGuard};

/// The shared part of a work item. `P` says where the item waits: what is needed to take it out of there.
#[derive(Debug)]
pub(super) struct Core<P> {
    inner: Mutex<Inner<P>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner<P> {
    state: State,
    /// Set exactly when the state waits, but for moments under the lock.
    place: Option<P>,
    /// Threads in `changed`.
    waiters: usize,
}

impl<P> Core<P> {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                state: State::new(),
                place: None,
                waiters: 0,
            }),
            changed: Condvar::new(),
        }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                state: State::new(),
                place: None,
                waiters: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn notify(&self, inner: &Inner<P>) {
        if inner.waiters != 0 {
            self.changed.notify_all();
        }
    }

    fn wait(&self, held: &mut MutexGuard<'_, Inner<P>>) {
        held.waiters += 1;
        self.changed.wait(held);
        held.waiters -= 1;
    }

    /// Fills in the place of an item that just got a ticket; false when `put` did not take it.
    fn put(&self, inner: &mut Inner<P>, t: Ticket, put: impl FnOnce(Ticket) -> Option<P>) -> bool {
        inner.place = put(t);
        let ok = inner.place.is_some();
        if !ok {
            inner.state.cancel();
            self.notify(inner);
        }
        ok
    }

    /// Queues the item or arms its timer by `put`, which may refuse. False when the item waits already, is being
    /// cancelled or was refused.
    pub(super) fn enqueue(&self, to: Where, put: impl FnOnce(Ticket) -> Option<P>) -> bool {
        let mut held = self.inner.lock();
        match held.state.enqueue(to) {
            Some(t) => self.put(&mut held, t, put),
            None => false,
        }
    }

    /// Moves the item: `take` takes it out of where it waits, `put` puts it elsewhere. Whether it waited before;
    /// `None` when it is being cancelled or `put` refused.
    pub(super) fn modify<G>(
        &self,
        to: Where,
        take: impl FnOnce(P) -> G,
        put: impl FnOnce(Ticket) -> Option<P>,
    ) -> Option<bool> {
        let mut held = self.inner.lock();
        let (t, waited) = match held.state.modify(to) {
            Modified::Fresh(t) => (t, false),
            Modified::Moved(t) => (t, true),
            Modified::Refused => return None,
        };
        let garbage = held.place.take().map(take);
        let ok = self.put(&mut held, t, put);
        // Whoever waits for the end of the old ticket has it.
        self.notify(&held);
        drop(held);
        drop(garbage);
        ok.then_some(waited)
    }

    /// Takes the item out of where it waits. Whether it waited.
    pub(super) fn cancel<G>(&self, take: impl FnOnce(P) -> G) -> bool {
        let mut held = self.inner.lock();
        let garbage = self.cancel_locked(&mut held, take);
        drop(held);
        garbage.is_some()
    }

    fn cancel_locked<G>(
        &self,
        held: &mut MutexGuard<'_, Inner<P>>,
        take: impl FnOnce(P) -> G,
    ) -> Option<G> {
        if !held.state.cancel() {
            return None;
        }
        let garbage = held.place.take().map(take);
        self.notify(held);
        garbage
    }

    /// Like `cancel`, then waits for the end of a run. Nobody can queue the item until this returns.
    pub(super) fn cancel_sync<G>(&self, take: impl FnOnce(P) -> G) -> bool {
        let mut held = self.inner.lock();
        let garbage = self.cancel_locked(&mut held, take);
        if held.state.cancel_running() {
            while held.state.is_running() {
                self.wait(&mut held);
            }
            held.state.cancel_done();
        }
        drop(held);
        garbage.is_some()
    }

    /// Waits for the end of what is on a queue or runs. Whether there was something.
    pub(super) fn flush(&self) -> bool {
        let held = self.inner.lock();
        let Some(t) = held.state.flush() else {
            return false;
        };
        self.wait_for(held, t);
        true
    }

    /// Like `flush`; a timer fires first: `disarm` takes it out of the timer queue, and what it gives is called.
    pub(super) fn flush_delayed<F: FnOnce()>(&self, disarm: impl FnOnce(&P) -> Option<F>) -> bool {
        let held = self.inner.lock();
        let Some(t) = held.state.delayed() else {
            drop(held);
            return self.flush();
        };
        let fire = held.place.as_ref().and_then(disarm);
        drop(held);
        // Without it the timer is firing by itself just now.
        if let Some(fire) = fire {
            fire();
        }
        self.wait_for(self.inner.lock(), t);
        true
    }

    fn wait_for(&self, mut held: MutexGuard<'_, Inner<P>>, t: Ticket) {
        while held.state.concerns(t) {
            self.wait(&mut held);
        }
    }

    /// The timer fired: `put` puts the item on its queue, unless the ticket is stale. False when `put` refused.
    pub(super) fn timer_fired(&self, t: Ticket, put: impl FnOnce(Ticket) -> Option<P>) -> bool {
        let mut held = self.inner.lock();
        !held.state.timer_fired(t) || self.put(&mut held, t, put)
    }

    /// A worker took the item off its queue. `defer` says where it waits when it must be deferred.
    pub(super) fn begin(&self, t: Ticket, defer: impl FnOnce() -> P) -> Begin {
        let mut held = self.inner.lock();
        let begin = held.state.begin(t);
        match begin {
            Begin::Run => held.place = None,
            Begin::Defer => held.place = Some(defer()),
            Begin::Stale => {}
        }
        begin
    }

    /// The run ended. `again` sees where the item waits now, and puts a deferred one back on its queue.
    pub(super) fn end(&self, again: impl FnOnce(P) -> P) {
        let mut held = self.inner.lock();
        held.state.end();
        held.place = held.place.take().map(again);
        self.notify(&held);
    }

    /// Whether the item waits under a timer or on a queue.
    pub(super) fn is_pending(&self) -> bool {
        self.inner.lock().state.is_pending()
    }

    /// Whether the item runs.
    pub(super) fn is_running(&self) -> bool {
        self.inner.lock().state.is_running()
    }
}

#[cfg(all(test, loom))]
#[path = "loom_tests.rs"]
mod loom_tests;
