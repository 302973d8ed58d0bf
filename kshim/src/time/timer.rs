//! Timers, run by one thread of the shim.
//!
//! C header: `include/linux/timer.h`

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Delta, Instant};
use crate::error::Result;
use crate::kthread;
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::sys::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::sys::thread;

/// Place of an armed one-shot in the timer queue: when, and a number that makes it unique.
pub(crate) type TimerId = (Instant, u64);

/// What an armed one-shot runs.
pub(crate) type OneShot = Box<dyn FnOnce() + Send>;

enum Entry {
    Timer(Arc<Callback>),
    Once(OneShot),
}

struct Callback {
    id: u64,
    f: Box<dyn Fn(Instant) + Send + Sync>,
}

struct State {
    /// What is armed, by time.
    queue: BTreeMap<TimerId, Entry>,
    /// When each armed [`Timer`] is due.
    armed: HashMap<u64, Instant>,
    /// The timer whose callback runs now.
    running: Option<u64>,
    /// Host id of the timer thread; 0 = not started.
    thread: i32,
    /// Threads that wait for a callback to end.
    waiters: usize,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
/// The first entry of the queue became an earlier one.
static EARLIER: Condvar = Condvar::new();
/// A callback that somebody waits for has ended.
static ENDED: Condvar = Condvar::new();
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    f(state(&mut STATE.lock()))
}

fn state<'a>(held: &'a mut MutexGuard<'_, Option<State>>) -> &'a mut State {
    held.get_or_insert_with(|| State {
        queue: BTreeMap::new(),
        armed: HashMap::new(),
        running: None,
        thread: 0,
        waiters: 0,
    })
}

/// Starts the timer thread, which otherwise starts when the first timer is armed. A server calls this early, to
/// learn of a failure while it can still say so.
///
/// Context: may sleep. Errors: `EAGAIN` when the host has no room for a thread.
pub fn start() -> Result {
    let mut held = STATE.lock();
    start_locked(state(&mut held))
}

fn start_locked(st: &mut State) -> Result {
    if st.thread == 0 {
        // The new thread waits for the lock, which is held here, and then corrects the id.
        kthread::Builder::new("ktimerd")
            .spawn(|_| serve())?
            .detach();
        st.thread = -1;
    }
    Ok(())
}

/// Adds an entry, and wakes the thread when it is the new first one.
fn insert(st: &mut State, id: TimerId, entry: Entry) {
    let first = st.queue.first_key_value().is_none_or(|(&f, _)| id < f);
    st.queue.insert(id, entry);
    if let Err(e) = start_locked(st) {
        // Tried again when the next timer is armed; until then this one is late.
        crate::pr_err!("cannot start the timer thread: {e}");
    } else if first {
        EARLIER.notify_one();
    }
}

/// Runs `f` on the timer thread at that time, once, unless disarmed before.
pub(crate) fn arm(at: Instant, f: OneShot) -> TimerId {
    let id = (at, NEXT_ID.fetch_add(1, Ordering::Relaxed));
    with(|st| insert(st, id, Entry::Once(f)));
    id
}

/// Takes a one-shot back; `None` when it runs or has run.
pub(crate) fn disarm(id: TimerId) -> Option<OneShot> {
    match with(|st| st.queue.remove(&id)) {
        Some(Entry::Once(f)) => Some(f),
        Some(Entry::Timer(_)) | None => None,
    }
}

/// The timer thread: sleeps until the first entry is due, or for ever while there is none.
fn serve() {
    let mut held = STATE.lock();
    state(&mut held).thread = thread::current_tid();
    loop {
        let st = state(&mut held);
        let Some((&id, _)) = st.queue.first_key_value() else {
            EARLIER.wait(&mut held);
            continue;
        };
        let left = id.0 - Instant::now();
        if left > Delta::ZERO {
            EARLIER.wait_for(&mut held, left.to_duration());
            continue;
        }
        let Some(entry) = st.queue.remove(&id) else {
            continue;
        };
        if let Entry::Timer(cb) = &entry {
            st.armed.remove(&cb.id);
            st.running = Some(cb.id);
        }
        MutexGuard::unlocked(&mut held, || fire(entry, id.0));
        let st = state(&mut held);
        st.running = None;
        if st.waiters != 0 {
            ENDED.notify_all();
        }
    }
}

fn fire(entry: Entry, due: Instant) {
    let run = AssertUnwindSafe(|| match entry {
        Entry::Timer(cb) => (cb.f)(due),
        Entry::Once(f) => f(),
    });
    if let Err(panic) = catch_unwind(run) {
        crate::pr_err!("timer callback panicked: {}", kthread::panic_text(&*panic));
    }
}

/// A timer: a callback and a time at which the timer thread runs it. Arm it again at will; it fires once per arming.
///
/// The callback runs on one thread that all timers share, so it must be short and must not sleep: hand longer work
/// to a [work queue](crate::workqueue). Dropping the timer disarms it and waits for a running callback, as
/// [`timer_delete_sync`](Self::timer_delete_sync) does; only a drop by the callback itself does not wait.
///
/// Mirrors `struct timer_list`.
///
/// ```
/// use kshim::sync::{Arc, Completion};
/// use kshim::time::{Delta, Timer};
///
/// let fired = Arc::new(Completion::new());
/// let done = Arc::clone(&fired);
/// let timer = Timer::new(move || done.complete_all());
/// timer.mod_timer_after(Delta::from_millis(1));
/// fired.wait_for_completion();
/// assert!(!timer.timer_pending());
/// ```
#[doc(alias = "timer_list")]
pub struct Timer {
    cb: Arc<Callback>,
}

impl Timer {
    /// A timer that is not armed. Mirrors `timer_setup`.
    #[doc(alias = "timer_setup")]
    pub fn new(f: impl Fn() + Send + Sync + 'static) -> Self {
        Self::with_due(move |_| f())
    }

    /// One whose callback is told when it was due.
    pub(super) fn with_due(f: impl Fn(Instant) + Send + Sync + 'static) -> Self {
        Self {
            cb: Arc::new(Callback {
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                f: Box::new(f),
            }),
        }
    }

    /// Arms the timer for `at`, or moves it there when it is armed. Returns whether it was armed before.
    ///
    /// Context: any thread, reactor-safe, also the callback itself.
    pub fn mod_timer(&self, at: Instant) -> bool {
        with(|st| {
            let before = st.armed.insert(self.cb.id, at);
            if let Some(old) = before {
                st.queue.remove(&(old, self.cb.id));
            }
            insert(st, (at, self.cb.id), Entry::Timer(Arc::clone(&self.cb)));
            before.is_some()
        })
    }

    /// Arms the timer unless it is armed.
    pub(super) fn arm_if_idle(&self, at: Instant) {
        with(|st| {
            if st.armed.contains_key(&self.cb.id) {
                return;
            }
            st.armed.insert(self.cb.id, at);
            insert(st, (at, self.cb.id), Entry::Timer(Arc::clone(&self.cb)));
        });
    }

    /// [`mod_timer`](Self::mod_timer) relative to now.
    pub fn mod_timer_after(&self, delta: Delta) -> bool {
        self.mod_timer(Instant::now() + delta)
    }

    /// Disarms the timer; the callback may still be running afterwards. Returns whether it was armed.
    ///
    /// Context: any thread, reactor-safe.
    pub fn timer_delete(&self) -> bool {
        with(|st| Self::remove(st, self.cb.id))
    }

    /// Disarms the timer and waits until its callback does not run, also when the callback arms it again. Returns
    /// whether it was armed. Hold no lock that the callback takes.
    ///
    /// Context: may sleep.
    ///
    /// # Panics
    ///
    /// When called by the timer's own callback, which would wait for itself.
    pub fn timer_delete_sync(&self) -> bool {
        crate::might_sleep!();
        assert!(
            !self.is_own_callback(),
            "timer_delete_sync called by the timer's own callback"
        );
        self.delete_and_wait()
    }

    fn delete_and_wait(&self) -> bool {
        let mut held = STATE.lock();
        let mut was_armed = Self::remove(state(&mut held), self.cb.id);
        while state(&mut held).running == Some(self.cb.id) {
            state(&mut held).waiters += 1;
            ENDED.wait(&mut held);
            let st = state(&mut held);
            st.waiters -= 1;
            was_armed |= Self::remove(st, self.cb.id);
        }
        was_armed
    }

    /// Whether the timer is armed.
    ///
    /// Context: any thread, reactor-safe.
    #[must_use]
    pub fn timer_pending(&self) -> bool {
        with(|st| st.armed.contains_key(&self.cb.id))
    }

    fn remove(st: &mut State, id: u64) -> bool {
        let Some(at) = st.armed.remove(&id) else {
            return false;
        };
        st.queue.remove(&(at, id));
        true
    }

    /// Disarms unless the callback runs; then `None`.
    pub(super) fn try_to_delete(&self) -> Option<bool> {
        with(|st| (st.running != Some(self.cb.id)).then(|| Self::remove(st, self.cb.id)))
    }

    /// Disarms, and waits for the callback unless it is the caller.
    pub(super) fn delete_for_drop(&self) {
        if self.is_own_callback() {
            self.timer_delete();
        } else {
            // No `might_sleep!`: callbacks are short, and an object may lose its timer anywhere.
            self.delete_and_wait();
        }
    }

    fn is_own_callback(&self) -> bool {
        with(|st| st.running == Some(self.cb.id) && st.thread == thread::current_tid())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.delete_for_drop();
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer")
            .field("pending", &self.timer_pending())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::sync::Completion;
    use crate::time::delay::msleep;

    fn counter() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let n = Arc::new(AtomicUsize::new(0));
        (Arc::clone(&n), n)
    }

    #[test]
    fn fires_once_per_arming_and_not_early() {
        let (n, seen) = counter();
        let fired = Arc::new(Completion::new());
        let done = Arc::clone(&fired);
        let t = Timer::new(move || {
            n.fetch_add(1, Ordering::SeqCst);
            done.complete();
        });
        for round in 1..=3 {
            let start = Instant::now();
            assert!(!t.mod_timer_after(Delta::from_millis(3)));
            fired.wait_for_completion();
            assert!(start.elapsed() >= Delta::from_millis(3));
            assert_eq!(seen.load(Ordering::SeqCst), round);
        }
        assert!(!t.timer_delete_sync());
    }

    #[test]
    fn a_moved_timer_fires_at_its_new_time_only() {
        let (n, seen) = counter();
        let t = Timer::new(move || {
            n.fetch_add(1, Ordering::SeqCst);
        });
        assert!(!t.mod_timer_after(Delta::from_secs(3600)));
        assert!(t.mod_timer_after(Delta::from_millis(1)));
        while t.timer_pending() {
            msleep(1);
        }
        t.timer_delete_sync();
        assert_eq!(seen.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_deleted_timer_does_not_fire() {
        let (n, seen) = counter();
        let t = Timer::new(move || {
            n.fetch_add(1, Ordering::SeqCst);
        });
        t.mod_timer_after(Delta::from_millis(20));
        assert!(t.timer_delete());
        assert!(!t.timer_delete());
        msleep(30);
        assert_eq!(seen.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn delete_sync_waits_for_the_callback_even_if_it_arms_again() {
        let (n, seen) = counter();
        let started = Arc::new(Completion::new());
        let begun = Arc::clone(&started);
        let slot: Arc<Mutex<Option<Arc<Timer>>>> = Arc::default();
        let own = Arc::clone(&slot);
        let t = Arc::new(Timer::new(move || {
            begun.complete_all();
            std::thread::sleep(std::time::Duration::from_millis(10));
            if let Some(t) = &*own.lock() {
                t.mod_timer_after(Delta::ZERO);
            }
            n.fetch_add(1, Ordering::SeqCst);
        }));
        *slot.lock() = Some(Arc::clone(&t));
        t.mod_timer_after(Delta::ZERO);
        started.wait_for_completion();
        assert!(t.timer_delete_sync());
        let runs = seen.load(Ordering::SeqCst);
        assert!(runs >= 1);
        msleep(15);
        assert_eq!(seen.load(Ordering::SeqCst), runs);
        *slot.lock() = None;
    }

    #[test]
    fn a_panicking_callback_does_not_end_the_thread() {
        let t = Timer::new(|| panic!("expected by the test"));
        t.mod_timer_after(Delta::ZERO);
        let fired = Arc::new(Completion::new());
        let done = Arc::clone(&fired);
        let u = Timer::new(move || done.complete_all());
        u.mod_timer_after(Delta::from_millis(1));
        fired.wait_for_completion();
    }

    #[test]
    fn one_shots_run_or_come_back() {
        let fired = Arc::new(Completion::new());
        let done = Arc::clone(&fired);
        let id = arm(Instant::now(), Box::new(move || done.complete_all()));
        fired.wait_for_completion();
        assert!(disarm(id).is_none());
        let far = arm(
            Instant::now() + Delta::from_secs(3600),
            Box::new(|| unreachable!("disarmed")),
        );
        assert!(disarm(far).is_some());
    }
}
