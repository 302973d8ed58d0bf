//! Commands that wait because their port group is in transition.
//!
//! C source: `scst_alua_transitioning_work_fn` of `scst/src/scst_tg.c`

use crate::cmd::Cmd;
use kshim::sync::SpinLock;
use kshim::time::{Delta, Instant, Timer};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// How long such a command waits before it is tried once more.
const RETRY_MS: i64 = 500;

/// The commands, the oldest first, and the timer that resumes them.
pub(crate) struct Delayed {
    list: SpinLock<VecDeque<(Instant, Box<Cmd>)>>,
    timer: OnceLock<Timer>,
}

impl Delayed {
    pub(super) fn new() -> Arc<Self> {
        let me = Arc::new(Self {
            list: SpinLock::new(VecDeque::new()),
            timer: OnceLock::new(),
        });
        let weak = Arc::downgrade(&me);
        me.timer.get_or_init(|| {
            Timer::new(move || {
                if let Some(me) = weak.upgrade() {
                    me.release_due();
                }
            })
        });
        me
    }

    /// Takes a command for a while, unless it is aborted. Context: any.
    pub(crate) fn park(&self, cmd: Box<Cmd>) -> Option<Box<Cmd>> {
        let wait = Delta::from_millis(RETRY_MS).as_nanos();
        let due = Instant::from_nanos(Instant::now().as_nanos().saturating_add(wait));
        let first = {
            let mut list = self.list.lock();
            // Whoever aborts it looks into the list afterwards.
            if cmd.is_aborted() {
                return Some(cmd);
            }
            list.push_back((due, cmd));
            list.len() == 1
        };
        if first {
            self.arm(due);
        }
        None
    }

    fn arm(&self, at: Instant) {
        if let Some(timer) = self.timer.get() {
            timer.mod_timer(at);
        }
    }

    fn release_due(&self) {
        let now = Instant::now();
        let next = self.take(|due, _| due <= now);
        if let Some(at) = next {
            self.arm(at);
        }
    }

    /// The state has changed: they need not wait any longer. Context: any.
    pub(crate) fn release_all(&self) {
        self.take(|_, _| true);
    }

    pub(super) fn release_aborted(&self) {
        self.take(|_, cmd| cmd.is_aborted());
    }

    /// Resumes the commands that `pred` wants; answers when the first of the others is due.
    fn take(&self, pred: impl Fn(Instant, &Cmd) -> bool) -> Option<Instant> {
        let (taken, next) = {
            let mut list = self.list.lock();
            if list.is_empty() {
                return None;
            }
            let all = std::mem::take(&mut *list);
            let (taken, keep): (VecDeque<_>, VecDeque<_>) =
                all.into_iter().partition(|(due, cmd)| pred(*due, cmd));
            let next = keep.front().map(|(due, _)| *due);
            *list = keep;
            (taken, next)
        };
        for (_, cmd) in taken {
            let _ = cmd.go_home();
        }
        next
    }
}
