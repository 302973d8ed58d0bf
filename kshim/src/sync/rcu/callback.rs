//! Callbacks that run after a grace period, on one thread of the shim.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{read_lock_held, synchronize_rcu};
use crate::error::Result;
use crate::kthread;
use crate::sync::Completion;
use crate::sys::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::sys::thread;

type Callback = Box<dyn FnOnce() + Send>;

struct State {
    queue: Vec<Callback>,
    started: bool,
    /// Host id of the thread, once it runs.
    tid: i32,
}

static STATE: Mutex<State> = Mutex::new(State {
    queue: Vec::new(),
    started: false,
    tid: 0,
});
static QUEUED: Condvar = Condvar::new();

/// Starts the callback thread, which otherwise starts with the first callback. A server calls this early, to learn
/// of a failure while it can still say so.
///
/// Context: may sleep. Errors: `EAGAIN` when the host has no room for a thread.
pub fn start() -> Result {
    start_locked(&mut STATE.lock())
}

fn start_locked(st: &mut State) -> Result {
    if !st.started {
        kthread::Builder::new("rcud").spawn(|_| serve())?.detach();
        st.started = true;
    }
    Ok(())
}

/// Runs `f` after a grace period, on a thread of the shim. Callbacks run in the order of the calls, one at a time;
/// they may sleep, but hold up those behind them.
///
/// Context: any thread, reactor-safe, also inside a read section. Mirrors `call_rcu`.
///
/// ```
/// use kshim::sync::Arc;
/// use kshim::sync::atomic::{AtomicBool, Ordering};
/// use kshim::sync::rcu;
///
/// let freed = Arc::new(AtomicBool::new(false));
/// let old = Arc::clone(&freed);
/// {
///     let _section = rcu::read_lock();
///     rcu::call_rcu(Box::new(move || old.store(true, Ordering::Relaxed)));
///     assert!(!freed.load(Ordering::Relaxed), "somebody still reads");
/// }
/// rcu::barrier();
/// assert!(freed.load(Ordering::Relaxed));
/// ```
pub fn call_rcu(f: Box<dyn FnOnce() + Send>) {
    let mut st = STATE.lock();
    st.queue.push(f);
    match start_locked(&mut st) {
        Ok(()) => {
            QUEUED.notify_one();
        }
        // Tried again with the next callback; until then these wait.
        Err(e) => crate::pr_err!("cannot start the RCU callback thread: {e}"),
    }
}

/// Waits until all callbacks queued before have run.
///
/// Context: may sleep. Mirrors `rcu_barrier`.
///
/// # Panics
///
/// When called inside a read section or by a callback, which would wait for itself.
#[doc(alias = "rcu_barrier")]
pub fn barrier() {
    crate::might_sleep!();
    assert!(
        !read_lock_held(),
        "rcu::barrier called inside a read section"
    );
    assert!(
        STATE.lock().tid != thread::current_tid(),
        "rcu::barrier called by an RCU callback"
    );
    let reached = Arc::new(Completion::new());
    let theirs = Arc::clone(&reached);
    call_rcu(Box::new(move || theirs.complete_all()));
    reached.wait_for_completion();
}

/// Sleeps while the queue is empty; takes what is there, waits for one grace period for all of it, runs it.
fn serve() {
    let mut st = STATE.lock();
    st.tid = thread::current_tid();
    loop {
        if st.queue.is_empty() {
            QUEUED.wait(&mut st);
            continue;
        }
        let batch = std::mem::take(&mut st.queue);
        MutexGuard::unlocked(&mut st, || {
            synchronize_rcu();
            for f in batch {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
                    crate::pr_err!("RCU callback panicked: {}", kthread::panic_text(&*panic));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::sync::SpinLock;
    use crate::sync::rcu::read_lock;

    #[test]
    fn callbacks_run_in_order_and_the_barrier_waits_for_them() {
        let seen = Arc::new(SpinLock::new(Vec::new()));
        for i in 0..100 {
            let seen = Arc::clone(&seen);
            call_rcu(Box::new(move || seen.lock().push(i)));
        }
        call_rcu(Box::new(|| panic!("expected by the test")));
        barrier();
        assert_eq!(*seen.lock(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_callback_waits_for_open_sections_and_may_queue_another() {
        let n = Arc::new(AtomicUsize::new(0));
        let g = read_lock();
        let (first, second) = (Arc::clone(&n), Arc::clone(&n));
        call_rcu(Box::new(move || {
            first.fetch_add(1, Ordering::SeqCst);
            call_rcu(Box::new(move || {
                second.fetch_add(1, Ordering::SeqCst);
            }));
        }));
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(n.load(Ordering::SeqCst), 0);
        drop(g);
        barrier();
        barrier();
        assert_eq!(n.load(Ordering::SeqCst), 2);
    }
}
