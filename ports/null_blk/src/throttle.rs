//! A bound on bytes per second.

use crate::device::Cmd;
use kshim::prelude::*;
use kshim::sync::SpinLock;
use kshim::time::{Delta, HrTimer, HrTimerRestart, Instant, hrtimer_forward};
use std::collections::VecDeque;
use std::sync::Weak;

/// Budgets in a second.
const TICKS_PER_SEC: i64 = 50;
const TICK: Delta = Delta::from_millis(1000 / TICKS_PER_SEC);

type Go = Box<dyn Fn(Cmd) + Send + Sync>;

struct State {
    /// Bytes that may still go in this tick; one bio may make it negative, which the next ticks pay.
    budget: i64,
    waiting: VecDeque<Cmd>,
    ticking: bool,
}

/// Lets bios go as the rate permits, in order.
#[doc(alias = "nullb_setup_bwtimer")]
pub(crate) struct Throttle {
    per_tick: i64,
    state: SpinLock<State>,
    timer: HrTimer,
    go: Go,
}

impl Throttle {
    pub(crate) fn new(mbps: u64, go: impl Fn(Cmd) + Send + Sync + 'static) -> Arc<Self> {
        let bytes = i64::try_from(mbps.saturating_mul(1 << 20)).unwrap_or(i64::MAX);
        let per_tick = (bytes / TICKS_PER_SEC).max(1);
        Arc::new_cyclic(|weak: &Weak<Self>| {
            let weak = Weak::clone(weak);
            let tick = move |expired| match weak.upgrade() {
                Some(throttle) => throttle.tick(expired),
                None => HrTimerRestart::NoRestart,
            };
            Self {
                per_tick,
                state: SpinLock::new(State {
                    budget: per_tick,
                    waiting: VecDeque::new(),
                    ticking: false,
                }),
                timer: HrTimer::new(tick),
                go: Box::new(go),
            }
        })
    }

    /// Gives the bio back when it may go now; else it goes later.
    pub(crate) fn admit(&self, cmd: Cmd) -> Option<Cmd> {
        let mut st = self.state.lock();
        if !st.ticking {
            st.ticking = true;
            self.timer.start_after(TICK);
        }
        if st.budget <= 0 || !st.waiting.is_empty() {
            st.waiting.push_back(cmd);
            return None;
        }
        st.budget -= cost(&cmd);
        Some(cmd)
    }

    fn tick(&self, expired: Instant) -> HrTimerRestart {
        let (next, ticks) = hrtimer_forward(expired, Instant::now(), TICK);
        let mut going = Vec::new();
        let restart = {
            let mut st = self.state.lock();
            let ticks = i64::try_from(ticks).unwrap_or(i64::MAX);
            let more = self.per_tick.saturating_mul(ticks);
            // No more than one tick's worth is saved.
            st.budget = st.budget.saturating_add(more).min(self.per_tick);
            while st.budget > 0 {
                let Some(cmd) = st.waiting.pop_front() else {
                    break;
                };
                st.budget -= cost(&cmd);
                going.push(cmd);
            }
            let idle = st.waiting.is_empty() && going.is_empty() && st.budget == self.per_tick;
            st.ticking = !idle;
            !idle
        };
        for cmd in going {
            (self.go)(cmd);
        }
        if restart {
            HrTimerRestart::Restart(next)
        } else {
            HrTimerRestart::NoRestart
        }
    }
}

fn cost(cmd: &Cmd) -> i64 {
    i64::try_from(cmd.bio.len).unwrap_or(i64::MAX / 2)
}
