//! Suspending activity: no command is between LUN translation and the end of its effects.
//!
//! Commands hold the core's percpu reference in between. Suspension kills it, waits for the confirmation that every
//! thread sees it dead, then for the count to drop to zero; resumption resurrects it and sends the commands that came
//! meanwhile back to their homes.
//!
//! C source: `scst_suspend_activity`, `scst_resume_activity` of `scst/src/scst_main.c`

use super::Core;
use crate::cmd::Cmd;
use kshim::error::{Result, code};
use kshim::time::Delta;
use std::sync::Arc;

/// How long a management operation waits for commands to drain before it gives up.
#[doc(alias = "SCST_SUSPENDING_TIMEOUT")]
pub(super) const SUSPENDING_TIMEOUT_S: i64 = 90;

/// Activity is suspended as long as this lives; suspensions nest.
#[derive(Debug)]
pub struct Suspended<'a> {
    core: &'a Core,
}

impl Core {
    /// Suspends activity. Errors: EBUSY if commands did not drain in 90 seconds (activity goes
    /// on then). Context: may sleep; never on a reactor.
    #[doc(alias = "scst_suspend_activity")]
    pub fn suspend_activity(&self) -> Result<Suspended<'_>> {
        let mut nested = self.suspend.lock();
        if *nested == 0 {
            self.cmd_ref_zero.reinit();
            self.cmd_ref.kill();
            let limit = Delta::from_secs(SUSPENDING_TIMEOUT_S);
            if !self.cmd_ref_zero.wait_for_completion_timeout(limit) {
                self.cmd_ref.resurrect();
                self.release_init_cmds();
                return Err(code::EBUSY);
            }
        }
        *nested = nested.saturating_add(1);
        Ok(Suspended { core: self })
    }

    /// Parks a command that came while activity is suspended. The lock pairs with [`Core::release_init_cmds`]:
    /// a command is either seen by it, or sees the reference alive again and is answered back.
    pub(crate) fn park_init_cmd(&self, cmd: Box<Cmd>) -> Option<Box<Cmd>> {
        let mut list = self.init_cmds.lock();
        if !self.cmd_ref.is_dying() {
            return Some(cmd);
        }
        list.push(cmd);
        None
    }

    fn release_init_cmds(&self) {
        let cmds = std::mem::take(&mut *self.init_cmds.lock());
        for cmd in cmds {
            let home = Arc::clone(&cmd.session().home);
            home.post(cmd);
        }
    }

    /// Parked commands of a session whose nexus is lost: they go home to be dropped. Context: any.
    pub(crate) fn take_aborted_init_cmds(&self) {
        let mut list = self.init_cmds.lock();
        let all = std::mem::take(&mut *list);
        let (aborted, keep): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| c.is_aborted());
        *list = keep;
        drop(list);
        for cmd in aborted {
            let home = Arc::clone(&cmd.session().home);
            home.post(cmd);
        }
    }
}

impl Drop for Suspended<'_> {
    #[doc(alias = "scst_resume_activity")]
    fn drop(&mut self) {
        let mut nested = self.core.suspend.lock();
        *nested = nested.saturating_sub(1);
        if *nested == 0 {
            self.core.cmd_ref.resurrect();
            self.core.release_init_cmds();
        }
    }
}
