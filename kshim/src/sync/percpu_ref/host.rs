//! [`PercpuRef`]: the counter with its threads, grace periods and waiting.

use std::fmt;

use super::core::Core;
use crate::cpu::{self, SHARED_INDEX};
use crate::percpu::Slots;
use crate::sync::{WaitQueue, rcu};
use crate::sys::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use crate::sys::sync::{Arc, Mutex, MutexGuard};
use crate::time::Delta;

/// A reference count that is cheap while nobody asks for its sum; see the [module](super).
///
/// It starts live with one reference, the initial one, which [`kill`](Self::kill) drops. Each `get` needs a `put`;
/// the two may happen on different threads.
///
/// ```
/// use kshim::sync::{Arc, Completion, PercpuRef};
///
/// let idle = Arc::new(Completion::new());
/// let done = Arc::clone(&idle);
/// let commands = PercpuRef::new(move || done.complete_all());
///
/// assert!(commands.tryget_live());
/// commands.kill();
/// assert!(!commands.tryget_live());
/// commands.put();
/// commands.wait_zero();
/// idle.wait_for_completion();
///
/// commands.reinit();
/// assert!(commands.tryget_live());
/// # commands.put();
/// ```
#[doc(alias = "percpu_ref")]
pub struct PercpuRef {
    inner: Arc<Inner>,
}

struct Inner {
    core: Core,
    slots: Slots,
    release: Box<dyn Fn() + Send + Sync>,
    /// Whether a kill waits for its grace period.
    switching: Mutex<bool>,
    /// Whether the release function has run since the last kill.
    released: AtomicBool,
    /// Waits for the end of a switch, or for the release.
    wait: WaitQueue,
}

impl PercpuRef {
    /// A live count with one reference. `release` runs each time the count reaches zero, on the thread that put the
    /// last reference, inside that `put`; so it must not sleep. Mirrors `percpu_ref_init`.
    #[doc(alias = "percpu_ref_init")]
    pub fn new(release: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            inner: Arc::new(Inner {
                core: Core::new(),
                slots: Slots::new(),
                release: Box::new(release),
                switching: Mutex::new(false),
                released: AtomicBool::new(false),
                wait: WaitQueue::new(),
            }),
        }
    }

    /// Takes a reference; the caller knows that the count is not zero.
    ///
    /// Context: any thread, reactor-safe. Mirrors `percpu_ref_get`.
    #[doc(alias = "percpu_ref_get")]
    #[inline]
    pub fn get(&self) {
        self.get_many(1);
    }

    /// Takes `n` references; the caller knows that the count is not zero.
    ///
    /// Context: any thread, reactor-safe. Mirrors `percpu_ref_get_many`.
    #[doc(alias = "percpu_ref_get_many")]
    #[inline]
    pub fn get_many(&self, n: u32) {
        let _section = rcu::read_lock();
        let inner = &*self.inner;
        inner.core.get(|| inner.own_slot(), i64::from(n));
    }

    /// Takes a reference unless the count is zero.
    ///
    /// Context: any thread, reactor-safe. Mirrors `percpu_ref_tryget`.
    #[doc(alias = "percpu_ref_tryget")]
    #[inline]
    #[must_use]
    pub fn tryget(&self) -> bool {
        let _section = rcu::read_lock();
        let inner = &*self.inner;
        inner.core.tryget(|| inner.own_slot())
    }

    /// Takes a reference unless the count was killed. Once a kill is confirmed this fails on every thread.
    ///
    /// Context: any thread, reactor-safe. Mirrors `percpu_ref_tryget_live`.
    #[doc(alias = "percpu_ref_tryget_live")]
    #[inline]
    #[must_use]
    pub fn tryget_live(&self) -> bool {
        let _section = rcu::read_lock();
        let inner = &*self.inner;
        inner.core.tryget_live(|| inner.own_slot())
    }

    /// Drops a reference; the last one runs the release function.
    ///
    /// Context: any thread, reactor-safe. Mirrors `percpu_ref_put`.
    #[doc(alias = "percpu_ref_put")]
    #[inline]
    pub fn put(&self) {
        self.put_many(1);
    }

    /// Drops `n` references.
    ///
    /// Context: any thread, reactor-safe. Mirrors `percpu_ref_put_many`.
    #[doc(alias = "percpu_ref_put_many")]
    #[inline]
    pub fn put_many(&self, n: u32) {
        let inner = &*self.inner;
        let last = {
            let _section = rcu::read_lock();
            inner.core.put(|| inner.own_slot(), i64::from(n))
        };
        if last {
            inner.release();
        }
    }

    /// Makes `tryget_live` fail from now on and drops the initial reference. Mirrors `percpu_ref_kill`.
    ///
    /// Context: as [`kill_and_confirm`](Self::kill_and_confirm).
    #[doc(alias = "percpu_ref_kill")]
    pub fn kill(&self) {
        self.kill_and_confirm(|| ());
    }

    /// Like [`kill`](Self::kill); runs `confirm` when every thread has noticed, so that no `tryget_live` can succeed
    /// any more. `confirm` runs on the thread of `call_rcu`, must not sleep and must not switch this count.
    ///
    /// A second kill is a bug of the caller: it is logged and changes nothing, and `confirm` is not run.
    ///
    /// Context: any thread, reactor-safe; may sleep only when a kill before has not been confirmed yet. Mirrors
    /// `percpu_ref_kill_and_confirm`.
    #[doc(alias = "percpu_ref_kill_and_confirm")]
    pub fn kill_and_confirm(&self, confirm: impl FnOnce() + Send + 'static) {
        let mut switching = self.inner.switch_lock();
        if crate::warn_on!(!self.inner.core.is_live()) {
            return;
        }
        self.inner.core.set_dead();
        *switching = true;
        drop(switching);
        let inner = Arc::clone(&self.inner);
        rcu::call_rcu(Box::new(move || {
            // Also when `confirm` panics: the switch is over.
            let _switched = Switched(&inner);
            let n = inner.core.fold(inner.slots.iter());
            crate::warn_on!(n <= 0);
            confirm();
        }));
        if self.inner.core.put_atomic(1) {
            self.inner.release();
        }
    }

    /// Makes a killed count live again, with a new initial reference; it need not have reached zero.
    ///
    /// Context: may sleep, until the kill is confirmed and a release function that has begun is done. Mirrors
    /// `percpu_ref_resurrect`.
    #[doc(alias = "percpu_ref_resurrect")]
    pub fn resurrect(&self) {
        crate::might_sleep!();
        let switching = self.inner.switch_lock();
        if crate::warn_on!(self.inner.core.is_live()) {
            return;
        }
        if self.is_zero() {
            self.inner.wait.wait_event(|| self.inner.is_released());
        }
        self.inner.released.store(false, Ordering::Relaxed);
        self.inner.core.set_live(self.inner.slots.iter());
        drop(switching);
    }

    /// Makes a killed count that has reached zero live again. Mirrors `percpu_ref_reinit`.
    ///
    /// Context: may sleep, until the kill is confirmed.
    #[doc(alias = "percpu_ref_reinit")]
    pub fn reinit(&self) {
        crate::warn_on!(!self.is_zero());
        self.resurrect();
    }

    /// Whether it was killed and not resurrected. Mirrors `percpu_ref_is_dying`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "percpu_ref_is_dying")]
    #[must_use]
    pub fn is_dying(&self) -> bool {
        !self.inner.core.is_live()
    }

    /// Whether it was killed and no reference is left. Mirrors `percpu_ref_is_zero`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "percpu_ref_is_zero")]
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.inner.core.is_zero()
    }

    /// Sleeps until it was killed, no reference is left and the release function has run.
    ///
    /// Context: may sleep.
    pub fn wait_zero(&self) {
        self.inner.wait.wait_event(|| self.inner.is_released());
    }

    /// Like [`wait_zero`](Self::wait_zero), no longer than `timeout`. Returns whether that happened in time.
    ///
    /// Context: may sleep.
    #[must_use]
    pub fn wait_zero_timeout(&self, timeout: Delta) -> bool {
        self.inner
            .wait
            .wait_event_timeout(|| self.inner.is_released(), timeout)
    }

    /// Sleeps until every kill so far is confirmed.
    ///
    /// Context: may sleep.
    pub fn wait_confirmed(&self) {
        drop(self.inner.switch_lock());
    }

    /// The number of references, the initial one included; a guess while others change it. For showing only.
    ///
    /// Context: any thread, reactor-safe.
    #[must_use]
    pub fn read(&self) -> i64 {
        self.inner.core.read(self.inner.slots.iter())
    }
}

impl Inner {
    #[inline]
    fn own_slot(&self) -> Option<&AtomicI64> {
        let index = cpu::thread_index();
        (index != SHARED_INDEX).then(|| self.slots.get(index))
    }

    /// The count has reached zero; until the next resurrection it stays there, so this runs once.
    #[cold]
    fn release(&self) {
        // Also when the function panics: nobody shall wait for it for ever.
        let _released = Released(self);
        (self.release)();
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// The right to switch modes, once no switch is under way.
    fn switch_lock(&self) -> MutexGuard<'_, bool> {
        loop {
            let switching = self.switching.lock();
            if !*switching {
                return switching;
            }
            drop(switching);
            self.wait.wait_event(|| !*self.switching.lock());
        }
    }
}

/// Ends a switch when dropped, and puts the reference that it held.
struct Switched<'a>(&'a Inner);

impl Drop for Switched<'_> {
    fn drop(&mut self) {
        let last = self.0.core.put_atomic(1);
        *self.0.switching.lock() = false;
        self.0.wait.wake_up_all();
        if last {
            self.0.release();
        }
    }
}

/// Marks the release as done when dropped.
struct Released<'a>(&'a Inner);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.released.store(true, Ordering::Release);
        self.0.wait.wake_up_all();
    }
}

impl fmt::Debug for PercpuRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PercpuRef")
            .field("dying", &self.is_dying())
            .field("count", &self.read())
            .finish()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
