//! Suspending activity: no command is between LUN translation and the end of its effects.
//!
//! Commands hold the core's percpu reference in between. Suspension kills it, waits for the confirmation that every
//! thread sees it dead, then for the count to drop to zero; resumption resurrects it and sends the commands that came
//! meanwhile back to their homes.
//!
//! C source: `scst_suspend_activity`, `scst_resume_activity` of `scst/src/scst_main.c`

use super::Core;
use crate::cmd::{Cmd, ExecCx};
use crate::session::Session;
use kshim::error::{Result, code};
use kshim::sync::SpinLock;
use kshim::time::{Delta, Instant};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How long a management operation waits for commands to drain before it gives up.
#[doc(alias = "SCST_SUSPENDING_TIMEOUT")]
pub(super) const SUSPENDING_TIMEOUT_S: i64 = 90;

/// Activity is suspended as long as this lives; suspensions nest.
#[derive(Debug)]
pub struct Suspended<'a> {
    pub(super) core: &'a Core,
}

impl Core {
    /// Suspends activity. Errors: EBUSY if commands did not drain in 90 seconds (activity goes
    /// on then). Context: may sleep; never on a reactor.
    #[doc(alias = "scst_suspend_activity")]
    pub fn suspend_activity(&self) -> Result<Suspended<'_>> {
        self.suspend_activity_for(Delta::from_secs(SUSPENDING_TIMEOUT_S))
    }

    /// [`Self::suspend_activity`] with a limit of the caller's.
    pub fn suspend_activity_for(&self, limit: Delta) -> Result<Suspended<'_>> {
        let mut nested = self.suspend.lock();
        if *nested == 0 {
            self.cmd_ref_zero.reinit();
            let now = Instant::now().as_nanos();
            self.suspended_since.store(now, Ordering::Release);
            self.cmd_ref.kill();
            if !self.cmd_ref_zero.wait_for_completion_timeout(limit) {
                self.cmd_ref.resurrect();
                self.release_init_cmds();
                return Err(code::EBUSY);
            }
        }
        *nested = nested.saturating_add(1);
        self.suspend_count.store(*nested, Ordering::Relaxed);
        Ok(Suspended { core: self })
    }

    /// Since when new commands wait, if they do: activity is suspended, or about to be. Context: any.
    pub fn suspended_since(&self) -> Option<Instant> {
        let since = || Instant::from_nanos(self.suspended_since.load(Ordering::Acquire));
        self.cmd_ref.is_dying().then(since)
    }

    /// Parks a command that came while activity is suspended, behind those of its session that wait already; or gives it
    /// back to try again. `leads` as in [`InitWait`]. Context: the session's home.
    #[cold]
    pub(crate) fn park_init_cmd(&self, mut cmd: Box<Cmd>, leads: bool) -> Option<Box<Cmd>> {
        let sess = Arc::clone(cmd.session());
        // The lock pairs with `release_init_cmds`: either it finds the session, or the reference is alive here.
        let mut waiting = self.init_sessions.lock();
        let mut queue = sess.init_wait.queue.lock();
        let first = leads || !sess.init_wait.is_busy();
        // Whoever aborts the command looks for it in the queue afterwards.
        if cmd.is_aborted() || (first && !self.cmd_ref.is_dying()) {
            cmd.marks.leads_init_wait = leads;
            return Some(cmd);
        }
        if leads {
            queue.push_front(cmd);
        } else {
            queue.push_back(cmd);
        }
        if first {
            sess.init_wait.busy.store(true, Ordering::Relaxed);
            waiting.push(Arc::clone(&sess));
        }
        None
    }

    fn release_init_cmds(&self) {
        let sessions = std::mem::take(&mut *self.init_sessions.lock());
        for sess in sessions {
            let first = sess.init_wait.pop_leader();
            if let Some(cmd) = first {
                sess.home.post(cmd);
            }
        }
    }
}

/// Commands of a session that wait for the end of a suspension, in the order in which they came. No younger command of the
/// session may pass them, or the order of the task set would not be that of the initiator.
///
/// While `busy`, commands wait here or the first of them, their *leader*, is on its way home. When that one is
/// initialised (or aborted) there, it passes the lead to the next, until the queue is empty.
#[derive(Debug, Default)]
pub(crate) struct InitWait {
    /// Changed under the lock.
    busy: AtomicBool,
    #[doc(alias = "scst_init_cmd_list")]
    queue: SpinLock<VecDeque<Box<Cmd>>>,
}

impl InitWait {
    /// Whether commands have to queue behind others. Exact at the session's home: only there it begins.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// The next leader; without one, nobody waits any more.
    fn pop_leader(&self) -> Option<Box<Cmd>> {
        let mut queue = self.queue.lock();
        let next = queue.pop_front();
        match next {
            Some(mut cmd) => {
                cmd.marks.leads_init_wait = true;
                Some(cmd)
            }
            None => {
                self.busy.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    /// The leader has been dealt with: the next one is to go. Context: the session's home.
    #[cold]
    pub(crate) fn pass_lead(&self, cx: &mut ExecCx<'_>) {
        if let Some(cmd) = self.pop_leader() {
            cx.make_ready(cmd);
        }
    }

    /// Sends all of them home, where they end with BUSY.
    fn refuse_all(&self) {
        // Still busy: the session is on the core's list, or the leader is on its way.
        let all = std::mem::take(&mut *self.queue.lock());
        for mut cmd in all {
            cmd.marks.not_to_wait = true;
            let home = Arc::clone(&cmd.session().home);
            home.post(cmd);
        }
    }

    /// Sends aborted commands home, where they end. Context: any.
    pub(crate) fn release_aborted(&self) {
        // A command that is about to be parked sees that it is aborted: both take the lock.
        let mut queue = self.queue.lock();
        let all = std::mem::take(&mut *queue);
        let (aborted, keep): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|c| c.is_aborted());
        *queue = keep;
        drop(queue);
        for cmd in aborted {
            let home = Arc::clone(&cmd.session().home);
            home.post(cmd);
        }
    }
}

impl Session {
    /// Commands that wait for the end of a suspension end with BUSY instead: for a transport that can receive nothing as
    /// long as one waits. Context: any.
    pub fn refuse_waiting(&self) {
        self.init_wait.refuse_all();
    }

    /// As [`Core::suspended_since`]. Context: any.
    pub fn suspended_since(&self) -> Option<Instant> {
        self.core.suspended_since()
    }
}

impl Drop for Suspended<'_> {
    #[doc(alias = "scst_resume_activity")]
    fn drop(&mut self) {
        let mut nested = self.core.suspend.lock();
        *nested = nested.saturating_sub(1);
        self.core.suspend_count.store(*nested, Ordering::Relaxed);
        if *nested == 0 {
            self.core.cmd_ref.resurrect();
            self.core.release_init_cmds();
        }
    }
}
