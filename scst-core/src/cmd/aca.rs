//! Auto contingent allegiance and QErr: what a CHECK CONDITION does to the other commands.
//!
//! The rules are those of [`crate::order`]; here is what the commands have to do with them. All of it is rare.
//!
//! C source: `scst_handle_aca`, `scst_pre_xmit_response2` of `scst/src/scst_targ.c`, `scst_process_check_condition`,
//! `scst_process_qerr` of `scst/src/scst_lib.c`

use super::shared::Abort;
use super::{Cmd, CmdRef, CmdState, ExecCx, Next};
use crate::consts::{QueueType, SamStatus};
use crate::device::Device;
use crate::order::{AcaRequest, AcaVerdict, CheckCondition, CheckSn, ClearedAca, NexusId, QErr};
use crate::pres;
use crate::sense;
use crate::session::Session;
use crate::tgt_dev::TgtDev;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Cmd {
    fn aca_request(&self, tgt_dev: &TgtDev) -> AcaRequest {
        AcaRequest {
            nexus: tgt_dev.nexus,
            queue_type: self.queue_type,
            // Nobody could clear the ACA of a nexus whose LUN is gone.
            naca: self.naca() && !tgt_dev.is_retired(),
            preempt_and_abort: pres::exec::is_preempt_and_abort(self),
            cmd: self.tag,
        }
    }

    /// Whether the command may enter its task set; else it has its answer. One load when there is no ACA.
    #[doc(alias = "scst_handle_aca")]
    #[inline]
    pub(super) fn check_aca(&mut self) -> bool {
        let Some(tgt_dev) = &self.tgt_dev else {
            return false;
        };
        let tmf_only = tgt_dev.dev.control.tmf_only.load(Ordering::Relaxed);
        let req = self.aca_request(tgt_dev);
        match tgt_dev.order.aca_check(&mut self.ticket, &req, tmf_only) {
            AcaVerdict::Go => return true,
            AcaVerdict::InvalidMessage => self.set_sense(sense::INVALID_MESSAGE),
            AcaVerdict::AcaActive => self.set_status(SamStatus::AcaActive),
            AcaVerdict::Busy => self.set_status(SamStatus::Busy),
        }
        false
    }

    /// The command with the ACA attribute ends: the next may come.
    pub(super) fn aca_cmd_done(&self) {
        if self.queue_type == QueueType::Aca
            && let Some(tgt_dev) = &self.tgt_dev
        {
            tgt_dev.order.aca_cmd_done(&self.aca_request(tgt_dev));
        }
    }

    /// The response of a command in whose task set there may be an ACA, or that may establish one.
    #[cold]
    pub(super) fn respond_under_aca(
        self: Box<Self>,
        tgt_dev: &Arc<TgtDev>,
        cx: &mut ExecCx<'_>,
    ) -> Next {
        let order = &tgt_dev.order;
        if self.status != SamStatus::CheckCondition {
            return match order.check_response(self) {
                CheckSn::Proceed(cmd) => cmd.respond(),
                CheckSn::Deferred => Next::Stop,
                CheckSn::Aborted(cmd) | CheckSn::AbortForQErr { item: cmd, .. } => Next::Same(cmd),
            };
        }
        let req = self.aca_request(tgt_dev);
        let qerr = QErr::from_bits(tgt_dev.dev.control.qerr.load(Ordering::Relaxed));
        match order.check_condition(self, &req, qerr) {
            CheckCondition::Report { item, cleared } => {
                if let Some(ClearedAca { abort, released }) = cleared {
                    if let Some(aca_cmd) = abort {
                        abort_aca_cmd(tgt_dev, aca_cmd, Some(&item.sess));
                    }
                    cx.make_all_ready(released);
                }
                item.process_qerr(tgt_dev);
                item.respond()
            }
            CheckCondition::Deferred => Next::Stop,
            // The abort decides about the answer.
            CheckCondition::Aborted(item) => Next::Same(item),
        }
    }

    /// After a CHECK CONDITION the device may want the rest of the task set aborted.
    #[doc(alias = "scst_process_qerr")]
    pub(super) fn process_qerr(&self, tgt_dev: &Arc<TgtDev>) {
        let control = &tgt_dev.dev.control;
        match QErr::from_bits(control.qerr.load(Ordering::Relaxed)) {
            QErr::AllResume => {}
            QErr::AbortAll if control.tst.load(Ordering::Relaxed) == 0 => {
                let tas = control.tas.load(Ordering::Relaxed);
                for t in tgt_dev.dev.tgt_devs() {
                    self.abort_others(&t);
                    if !tas && !Arc::ptr_eq(&t, tgt_dev) {
                        t.check_set_ua(sense::CLEARED_BY_ANOTHER_INI_UA);
                    }
                }
                unblock_aborted(&tgt_dev.dev);
            }
            QErr::AbortAll | QErr::AbortThisNexus => {
                self.abort_others(tgt_dev);
                unblock_aborted(&tgt_dev.dev);
            }
        }
    }

    /// Aborts the commands of a nexus, but not this one.
    #[doc(alias = "scst_abort_cmds_tgt_dev")]
    #[cold]
    fn abort_others(&self, t: &TgtDev) {
        let Some(sess) = t.session() else { return };
        let abort = if Arc::ptr_eq(&sess, &self.sess) {
            Abort::ThisNexus
        } else {
            Abort::OtherNexus {
                tas: t.dev.control.tas.load(Ordering::Relaxed),
            }
        };
        let cmds = sess.cmds.lock().clone();
        for shared in cmds {
            let lun = || shared.lun.load(Ordering::Acquire);
            let live = shared.live().filter(|_| lun() == t.lun);
            if let Some((generation, _)) = live
                && !Arc::ptr_eq(&shared, &self.shared)
                && shared.abort(generation, abort, |_, _| {}).is_some()
            {
                sess.home.reap(CmdRef { shared, generation });
            }
        }
        sess.init_wait.release_aborted();
        sess.core.copy_mgr.release_aborted();
        sess.core.alua.release_aborted();
    }

    /// The answer goes out, with its residual.
    #[inline]
    pub(super) fn respond(mut self: Box<Self>) -> Next {
        self.aca_cmd_done();
        if self.resid_possible {
            self.set_residuals();
        }
        self.set_state(CmdState::XmitResp);
        Next::Same(self)
    }
}

/// Aborts the command that lived by an ACA: that of a nexus with this tag. `by` is the session that ends the ACA, if it is
/// not that nexus itself; nobody waits for the command. Context: any.
fn abort_aca_cmd(t: &Arc<TgtDev>, (nexus, tag): (NexusId, u64), by: Option<&Arc<Session>>) {
    let faulted = if t.nexus == nexus {
        Some(Arc::clone(t))
    } else {
        t.dev.tgt_devs().into_iter().find(|o| o.nexus == nexus)
    };
    let Some(sess) = faulted.and_then(|f| f.session()) else {
        return;
    };
    let abort = if by.is_none_or(|by| Arc::ptr_eq(&sess, by)) {
        Abort::ThisNexus
    } else {
        Abort::OtherNexus {
            tas: t.dev.control.tas.load(Ordering::Relaxed),
        }
    };
    let found = sess.cmds.lock().iter().find_map(|c| {
        let (generation, _) = c.live()?;
        let it = c.tag.load(Ordering::Acquire) == tag;
        it.then(|| (Arc::clone(c), generation))
    });
    if let Some((shared, generation)) = found
        && shared.abort(generation, abort, |_, _| {}).is_some()
    {
        sess.home.reap(CmdRef { shared, generation });
    }
}

/// Ends the ACA of a nexus, or that of whoever has it in the task set, on behalf of the session `by`, and sends home what
/// it held. The caller has aborted what is to be aborted. Answers `false` if another nexus has it. Context: any.
#[doc(alias = "scst_clear_aca")]
pub(crate) fn clear_aca(t: &Arc<TgtDev>, whosever: bool, by: Option<&Arc<Session>>) -> bool {
    let Ok(cleared) = t.order.clear_aca((!whosever).then_some(t.nexus)) else {
        return false;
    };
    if let Some(aca_cmd) = cleared.abort {
        abort_aca_cmd(t, aca_cmd, by);
    }
    for cmd in cleared.released {
        let _ = cmd.go_home();
    }
    true
}

/// Sends aborted commands that wait at the device (ordering lists, blocked list) home, where they end. Context: any.
#[doc(alias = "scst_unblock_aborted_cmds")]
pub(crate) fn unblock_aborted(dev: &Arc<Device>) {
    let blocked = dev.block.take_blocked(|c| c.is_aborted());
    let mut freed = blocked.taken;
    freed.extend(blocked.released);
    freed.extend(dev.order.take_deferred(|c| c.is_aborted()));
    for t in dev.tgt_devs() {
        freed.extend(t.order.take_deferred(|c| c.is_aborted()));
    }
    for cmd in freed {
        let _ = cmd.go_home();
    }
}
