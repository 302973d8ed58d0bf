//! [`WaitQueue`]: sleep until a condition holds.
//!
//! C header: `include/linux/wait.h`
//!
//! # Why no wake-up is lost
//!
//! A waker changes something that a condition reads, then calls [`wake_up`](WaitQueue::wake_up). The change need
//! not be made under a lock and its store may be relaxed. Sleeper and waker run
//!
//! ```text
//!   sleeper                                waker
//!   S1  put itself on the queue            W1  change the condition
//!   S2  fence(SeqCst)                      W2  fence(SeqCst)
//!   S3  read the condition; true: done     W3  read the number of sleepers; zero: done
//!   S4  park                               W4  take sleepers off the queue, unpark them
//! ```
//!
//! The two fences are totally ordered. If S2 comes first, W3 sees the number that S1 stored (or a later one, which
//! is lower only when the sleeper was taken off, and so unparked, by another waker or by itself), and W4 unparks
//! the sleeper; a parker remembers an unpark that comes before the park. If W2 comes first, S3 sees the change of
//! W1 and the sleeper does not park. So no sleeper parks on a condition that a finished `wake_up` made true.
//!
//! What the waker wrote before W1 is visible to the woken sleeper: through the fences when S3 saw the change,
//! through unpark (release) and park (acquire) otherwise.
//!
//! An *exclusive* wake-up that reaches a sleeper which did not need it, because it had seen its condition true
//! before it parked, or because its time was over, is passed on to the next exclusive sleeper. So `n` changes with
//! `n` wake-ups are seen by `n` sleepers.

use crate::sys::sync::atomic::{AtomicUsize, Ordering, fence};
use crate::sys::sync::{Arc, Mutex, Parker, current_parker};

#[cfg(not(loom))]
use super::lock::{Backend, Guard};
#[cfg(not(loom))]
use crate::error::{Result, code::EINTR};
#[cfg(not(loom))]
use crate::kthread::Stop;
#[cfg(not(loom))]
use crate::time::{Delta, Instant};

/// Which wake-ups a sleeper takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Every one.
    Shared,
    /// One wake-up wakes one exclusive sleeper: the one that came last.
    Exclusive,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    parker: Arc<Parker>,
}

#[derive(Debug, Default)]
struct Lists {
    next_id: u64,
    shared: Vec<Entry>,
    /// A stack: the sleeper that came last has the warmest caches and is woken first.
    exclusive: Vec<Entry>,
}

/// How one sleeper tests its condition and sleeps.
trait Sleeper {
    /// Whether the condition holds.
    fn ready(&mut self) -> bool;
    /// Parks; false when there is no time left to park again.
    fn sleep(&mut self, parker: &Parker) -> bool;
}

/// A queue of threads that sleep until a condition holds.
///
/// Conditions are closures. They may run several times, on the waiting thread only, and must not sleep. Mirrors
/// `wait_queue_head_t`; [`wait_event_interruptible_lock`](Self::wait_event_interruptible_lock) gives a lock of the
/// caller's back while it sleeps.
///
/// ```
/// use kshim::sync::{Arc, WaitQueue, atomic::{AtomicBool, Ordering}};
/// use kshim::kthread;
///
/// let shared = Arc::new((WaitQueue::new(), AtomicBool::new(false)));
/// let other = Arc::clone(&shared);
/// let t = kthread::run("waker", move |_| {
///     other.1.store(true, Ordering::Relaxed);
///     other.0.wake_up();
/// })?;
/// shared.0.wait_event(|| shared.1.load(Ordering::Relaxed));
/// t.stop();
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "wait_queue_head_t")]
#[derive(Debug)]
pub struct WaitQueue {
    /// Number of entries of both lists, written under the lock.
    sleepers: AtomicUsize,
    lists: Mutex<Lists>,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// Nobody sleeps. Mirrors `init_waitqueue_head`.
    #[doc(alias = "init_waitqueue_head")]
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            sleepers: AtomicUsize::new(0),
            lists: Mutex::new(Lists {
                next_id: 0,
                shared: Vec::new(),
                exclusive: Vec::new(),
            }),
        }
    }

    /// Nobody sleeps.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            sleepers: AtomicUsize::new(0),
            lists: Mutex::new(Lists::default()),
        }
    }

    /// Sleeps until the condition holds. Every `wake_up` makes this thread look at the condition.
    ///
    /// Context: may sleep.
    pub fn wait_event(&self, cond: impl FnMut() -> bool) {
        self.wait(Kind::Shared, &mut Plain(cond));
    }

    /// Sleeps until the condition holds, as an exclusive waiter: one `wake_up` wakes one such thread, the one that
    /// came last.
    ///
    /// Context: may sleep.
    pub fn wait_event_exclusive(&self, cond: impl FnMut() -> bool) {
        self.wait(Kind::Exclusive, &mut Plain(cond));
    }

    /// Sleeps until the closure gives a value.
    ///
    /// Context: may sleep.
    pub fn wait_until<R>(&self, mut cond: impl FnMut() -> Option<R>) -> R {
        let mut value = None;
        self.wait_event(|| {
            value = cond();
            value.is_some()
        });
        value.expect("the wait ends with a value")
    }

    /// Wakes all ordinary sleepers and one exclusive sleeper.
    ///
    /// Context: any thread, reactor-safe. Costs a fence and a load when nobody sleeps.
    #[inline]
    pub fn wake_up(&self) {
        self.wake_up_nr(1);
    }

    /// Wakes all ordinary sleepers and up to `n` exclusive ones.
    ///
    /// Context: any thread, reactor-safe.
    #[inline]
    pub fn wake_up_nr(&self, n: usize) {
        // W2 of the module's argument.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) != 0 {
            self.wake_slow(n);
        }
    }

    /// Wakes everybody.
    ///
    /// Context: any thread, reactor-safe.
    #[inline]
    pub fn wake_up_all(&self) {
        self.wake_up_nr(usize::MAX);
    }

    /// Whether somebody sleeps. Only a hint, unless a fence precedes it as in `wake_up`. Mirrors
    /// `waitqueue_active`.
    ///
    /// Context: any thread, reactor-safe.
    #[doc(alias = "waitqueue_active")]
    #[inline]
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.sleepers.load(Ordering::Relaxed) != 0
    }

    #[cold]
    fn wake_slow(&self, n: usize) {
        let (shared, exclusive) = {
            let mut lists = self.lists.lock();
            let keep = lists.exclusive.len().saturating_sub(n);
            let woken = (
                std::mem::take(&mut lists.shared),
                lists.exclusive.split_off(keep),
            );
            self.publish(&lists);
            woken
        };
        for entry in shared.iter().chain(exclusive.iter().rev()) {
            entry.parker.unpark();
        }
    }

    fn publish(&self, lists: &Lists) {
        let n = lists.shared.len() + lists.exclusive.len();
        self.sleepers.store(n, Ordering::Relaxed);
    }

    fn add(&self, kind: Kind, parker: &Arc<Parker>) -> u64 {
        let mut lists = self.lists.lock();
        lists.next_id += 1;
        let entry = Entry {
            id: lists.next_id,
            parker: Arc::clone(parker),
        };
        let id = entry.id;
        match kind {
            Kind::Shared => lists.shared.push(entry),
            Kind::Exclusive => lists.exclusive.push(entry),
        }
        self.publish(&lists);
        id
    }

    /// Takes an entry off; false when a waker has done so.
    fn remove(&self, kind: Kind, id: u64) -> bool {
        let mut lists = self.lists.lock();
        let list = match kind {
            Kind::Shared => &mut lists.shared,
            Kind::Exclusive => &mut lists.exclusive,
        };
        let Some(at) = list.iter().rposition(|e| e.id == id) else {
            return false;
        };
        list.remove(at);
        self.publish(&lists);
        true
    }

    /// The one wait loop. True when the condition holds.
    fn wait(&self, kind: Kind, sleeper: &mut dyn Sleeper) -> bool {
        super::might_sleep();
        if sleeper.ready() {
            return true;
        }
        let parker = current_parker();
        loop {
            let id = self.add(kind, &parker);
            // S2 of the module's argument.
            fence(Ordering::SeqCst);
            if sleeper.ready() {
                if !self.remove(kind, id) {
                    self.pass_on(kind);
                }
                return true;
            }
            let time_left = sleeper.sleep(&parker);
            let was_woken = !self.remove(kind, id);
            if sleeper.ready() {
                return true;
            }
            if !time_left {
                if was_woken {
                    self.pass_on(kind);
                }
                return false;
            }
        }
    }

    /// This thread took a wake-up that it did not need.
    fn pass_on(&self, kind: Kind) {
        if kind == Kind::Exclusive {
            self.wake_up();
        }
    }
}

#[cfg(not(loom))]
impl WaitQueue {
    /// Like [`wait_event`](Self::wait_event), no longer than `timeout`. Returns whether the condition holds.
    ///
    /// Context: may sleep.
    pub fn wait_event_timeout(&self, cond: impl FnMut() -> bool, timeout: Delta) -> bool {
        self.wait(Kind::Shared, &mut Timed::new(cond, timeout))
    }

    /// Like [`wait_event_exclusive`](Self::wait_event_exclusive), no longer than `timeout`. Returns whether the
    /// condition holds.
    ///
    /// Context: may sleep.
    pub fn wait_event_exclusive_timeout(&self, cond: impl FnMut() -> bool, timeout: Delta) -> bool {
        self.wait(Kind::Exclusive, &mut Timed::new(cond, timeout))
    }

    /// Sleeps until the condition holds or the calling kthread is told to stop.
    ///
    /// Context: may sleep. Errors: `EINTR` when the thread shall stop and the condition does not hold.
    pub fn wait_event_interruptible(&self, stop: &Stop, mut cond: impl FnMut() -> bool) -> Result {
        let mut holds = false;
        self.wait_event(|| {
            holds = cond();
            holds || stop.should_stop()
        });
        if holds { Ok(()) } else { Err(EINTR) }
    }

    /// Like [`wait_event_interruptible`](Self::wait_event_interruptible), no longer than `timeout`. `Ok(false)`:
    /// the time is over.
    ///
    /// Context: may sleep. Errors: `EINTR` when the thread shall stop and the condition does not hold.
    pub fn wait_event_interruptible_timeout(
        &self,
        stop: &Stop,
        mut cond: impl FnMut() -> bool,
        timeout: Delta,
    ) -> Result<bool> {
        let mut holds = false;
        let ended = self.wait_event_timeout(
            || {
                holds = cond();
                holds || stop.should_stop()
            },
            timeout,
        );
        match (holds, ended) {
            (true, _) => Ok(true),
            (false, true) => Err(EINTR),
            (false, false) => Ok(false),
        }
    }

    /// Sleeps until the condition on what the lock protects holds. The lock is released while sleeping and held
    /// again while the condition is tested and on return. The wait is exclusive, and the waiter that came last is
    /// woken first.
    ///
    /// Context: may sleep.
    pub fn wait_event_lock<T: ?Sized, B: Backend>(
        &self,
        guard: &mut Guard<'_, T, B>,
        cond: impl FnMut(&mut T) -> bool,
    ) {
        self.wait(Kind::Exclusive, &mut Locked { guard, cond });
    }

    /// Like [`wait_event_lock`](Self::wait_event_lock), until the calling kthread is told to stop.
    ///
    /// Context: may sleep. Errors: `EINTR` when the thread shall stop and the condition does not hold.
    pub fn wait_event_interruptible_lock<T: ?Sized, B: Backend>(
        &self,
        stop: &Stop,
        guard: &mut Guard<'_, T, B>,
        mut cond: impl FnMut(&mut T) -> bool,
    ) -> Result {
        let mut holds = false;
        self.wait_event_lock(guard, |value| {
            holds = cond(value);
            holds || stop.should_stop()
        });
        if holds { Ok(()) } else { Err(EINTR) }
    }
}

struct Plain<F>(F);

impl<F: FnMut() -> bool> Sleeper for Plain<F> {
    fn ready(&mut self) -> bool {
        (self.0)()
    }

    fn sleep(&mut self, parker: &Parker) -> bool {
        parker.park();
        true
    }
}

#[cfg(not(loom))]
struct Timed<F> {
    cond: F,
    deadline: Instant,
}

#[cfg(not(loom))]
impl<F> Timed<F> {
    fn new(cond: F, timeout: Delta) -> Self {
        Self {
            cond,
            deadline: Instant::now() + timeout,
        }
    }
}

#[cfg(not(loom))]
impl<F: FnMut() -> bool> Sleeper for Timed<F> {
    fn ready(&mut self) -> bool {
        (self.cond)()
    }

    fn sleep(&mut self, parker: &Parker) -> bool {
        let left = self.deadline - Instant::now();
        if left > Delta::ZERO {
            parker.park_timeout(left.to_duration());
        }
        Instant::now() < self.deadline
    }
}

#[cfg(not(loom))]
struct Locked<'g, 'a, T: ?Sized, B: Backend, F> {
    guard: &'g mut Guard<'a, T, B>,
    cond: F,
}

#[cfg(not(loom))]
impl<T: ?Sized, B: Backend, F: FnMut(&mut T) -> bool> Sleeper for Locked<'_, '_, T, B, F> {
    fn ready(&mut self) -> bool {
        (self.cond)(self.guard)
    }

    fn sleep(&mut self, parker: &Parker) -> bool {
        self.guard.do_unlocked(|| parker.park());
        true
    }
}

#[cfg(test)]
#[path = "wait_tests.rs"]
mod tests;
