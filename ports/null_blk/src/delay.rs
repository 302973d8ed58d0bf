//! Completions that come later, by one timer.

use crate::device::Cmd;
use kshim::prelude::*;
use kshim::sync::SpinLock;
use kshim::time::{Delta, HrTimer, HrTimerRestart, Instant};
use std::collections::BTreeMap;
use std::sync::Weak;

type Waiting = BTreeMap<(Instant, u64), (Cmd, Result)>;

/// What is called with a bio whose time has come.
type Done = Box<dyn Fn(Cmd, Result) + Send + Sync>;

/// Bios in the order of the times at which they end. The kernel has a timer in each request; here one serves all, as the
/// timers of the shim are not free.
#[doc(alias = "null_cmd_timer_expired")]
pub(crate) struct DelayQueue {
    waiting: SpinLock<(Waiting, u64)>,
    timer: HrTimer,
    done: Done,
}

impl DelayQueue {
    pub(crate) fn new(done: impl Fn(Cmd, Result) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| {
            let weak = Weak::clone(weak);
            Self {
                waiting: SpinLock::default(),
                timer: HrTimer::new(move |_| {
                    if let Some(queue) = weak.upgrade() {
                        queue.expire();
                    }
                    // `expire` has started it again, under the lock.
                    HrTimerRestart::NoRestart
                }),
                done: Box::new(done),
            }
        })
    }

    /// Ends a bio after a while.
    pub(crate) fn add(&self, cmd: Cmd, status: Result, after: Delta) {
        let at = Instant::now() + after;
        let mut waiting = self.waiting.lock();
        let seq = waiting.1;
        waiting.1 = seq.wrapping_add(1);
        let first = waiting.0.keys().next().is_none_or(|&(t, _)| at < t);
        waiting.0.insert((at, seq), (cmd, status));
        if first {
            self.timer.start(at);
        }
    }

    fn expire(&self) {
        let due = {
            let mut waiting = self.waiting.lock();
            let later = waiting.0.split_off(&(Instant::now(), u64::MAX));
            let due = std::mem::replace(&mut waiting.0, later);
            if let Some(&(at, _)) = waiting.0.keys().next() {
                self.timer.start(at);
            }
            due
        };
        for (cmd, status) in due.into_values() {
            (self.done)(cmd, status);
        }
    }
}
