//! The wish that a thread shall end, and waking it for that.

use crate::sys::sync::atomic::{AtomicBool, Ordering};
use crate::sys::sync::{Arc, Mutex, Parker, current_parker};

/// Shared by a thread and who may stop it.
#[derive(Debug, Default)]
pub(crate) struct StopToken {
    stop: AtomicBool,
    /// The thread's own parker, from its start on. The lock orders start and stop: one of the two sees the other.
    parker: Mutex<Option<Arc<Parker>>>,
}

impl StopToken {
    /// The thread has started; it calls this itself.
    pub(crate) fn started(&self) {
        *self.parker.lock() = Some(current_parker());
    }

    /// Tells the thread to end, and wakes it.
    pub(crate) fn raise(&self) {
        self.stop.store(true, Ordering::Release);
        let parker = self.parker.lock().clone();
        if let Some(parker) = parker {
            parker.unpark();
        }
    }

    #[inline]
    pub(crate) fn is_raised(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sys::sync::explore;
    use loom::thread;

    /// A thread that overlooks the stop sleeps for ever, which loom reports.
    #[test]
    fn loom_stop_reaches_a_thread_that_starts() {
        explore(3, || {
            let token = Arc::new(StopToken::default());
            let theirs = Arc::clone(&token);
            let t = thread::spawn(move || {
                theirs.started();
                while !theirs.is_raised() {
                    current_parker().park();
                }
            });
            let other = Arc::clone(&token);
            let again = thread::spawn(move || other.raise());
            token.raise();
            t.join().expect("thread ends");
            again.join().expect("thread ends");
        });
    }
}
