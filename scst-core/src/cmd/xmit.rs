//! The end of a command: aborts, residuals, the response, recycling.
//!
//! C source: `scst_pre_xmit_response1`, `scst_pre_xmit_response2`, `scst_xmit_response`, `scst_tgt_cmd_done`,
//! `scst_finish_cmd` of `scst/src/scst_targ.c`, `__scst_get_resid` of `scst/src/scst_lib.c`

use super::shared::{ABORTED, ABORTED_OTHER, DEVICE_TAS, DONE, LIVE, NO_RESP};
use super::{Cmd, CmdState, ExecCx, Next};
use crate::consts::SamStatus;
use crate::copy_mgr;
use std::sync::Arc;

impl Cmd {
    /// CmdState::PreXmitResp1: the command's effects are over.
    #[inline]
    pub(super) fn pre_xmit_response1(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        if cx.home != Some(self.sess.home_id) {
            return self.go_home();
        }
        if let Some(tgt_dev) = self.tgt_dev.clone() {
            if self.copy.is_some() {
                cx.make_all_ready(copy_mgr::leave_all(&mut self));
            }
            cx.make_all_ready(tgt_dev.dev.block.leave(&mut self.block_ticket));
            cx.make_all_ready(tgt_dev.order.finish(&mut self.ticket));
        }
        if std::mem::take(&mut self.marks.counted) {
            self.sess.core.cmd_ref.put();
        }
        if std::mem::take(&mut self.marks.in_stpg_gate) {
            self.sess.core.alua.gate.leave();
        }
        let flags = self.shared.set(DONE);
        if flags & ABORTED != 0 {
            self.shared.done_mgmt();
        }
        self.set_state(CmdState::PreXmitResp2);
        Next::Same(self)
    }

    /// CmdState::PreXmitResp2: what an abort or an ACA makes of the answer, and residuals.
    #[inline]
    pub(super) fn pre_xmit_response2(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        let flags = self.shared.flags();
        if flags & ABORTED != 0 {
            if !self.process_aborted(flags) {
                self.aca_cmd_done();
                self.set_state(CmdState::Finished);
                return Next::Same(self);
            }
        } else if let Some(tgt_dev) = &self.tgt_dev {
            let check_condition = self.status == SamStatus::CheckCondition;
            if (check_condition && self.naca()) || tgt_dev.order.may_have_aca() {
                let tgt_dev = Arc::clone(tgt_dev);
                return self.respond_under_aca(&tgt_dev, cx);
            }
            if check_condition {
                self.process_qerr(tgt_dev);
            }
        }
        self.respond()
    }

    /// An aborted command is answered only to another nexus' abort: with its own result if it has one, else with
    /// TASK ABORTED if the device says so (TAS). Answers whether it is.
    #[doc(alias = "scst_xmit_process_aborted_cmd")]
    #[cold]
    fn process_aborted(&mut self, flags: u64) -> bool {
        let respond = flags & ABORTED_OTHER != 0 && flags & NO_RESP == 0;
        if respond && self.completed {
            return true;
        }
        if respond && flags & DEVICE_TAS != 0 {
            self.set_status(SamStatus::TaskAborted);
            return true;
        }
        self.marks.delivery_failed = true;
        false
    }

    pub(super) fn set_residuals(&mut self) {
        if !self.expected_set {
            return;
        }
        let expected = i64::from(self.expected_transfer_len);
        if self.expected_data_direction.has_read() {
            let resp = self.resp_data_len.unwrap_or(0);
            self.resid = expected.saturating_sub(i64::from(resp));
            self.resp_data_len = Some(resp.min(self.expected_transfer_len));
            if self.expected_data_direction.has_write() {
                let expected = i64::from(self.expected_out_transfer_len);
                self.bidi_out_resid = expected.saturating_sub(i64::from(self.write_len));
            }
            return;
        }
        // Nobody waits for data.
        let unwanted = if self.data_direction.has_read() {
            self.resp_data_len.replace(0).unwrap_or(0)
        } else {
            0
        };
        if self.expected_data_direction.has_write() {
            let write_len = i64::from(self.write_len);
            self.resid = if write_len < expected {
                expected.saturating_sub(write_len)
            } else {
                write_len.saturating_sub(i64::from(self.bufflen))
            };
        } else {
            self.resid = i64::from(unwanted).saturating_neg();
        }
    }

    /// CmdState::XmitResp.
    #[inline]
    pub(super) fn xmit_response(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        let Some(host) = cx.host.as_deref_mut() else {
            return self.go_home();
        };
        self.set_state(CmdState::XmitWait);
        host.xmit_response(self);
        Next::Stop
    }

    /// The transport has sent the response, or cannot ([`Cmd::set_delivery_failed`]). Context: the session's home.
    #[doc(alias = "scst_tgt_cmd_done")]
    #[inline]
    pub fn tgt_cmd_done(mut self: Box<Self>, cx: &mut ExecCx<'_>) {
        debug_assert_eq!(self.state, CmdState::XmitWait);
        self.set_state(CmdState::Finished);
        self.process(cx);
    }

    /// CmdState::Finished.
    #[inline]
    pub(super) fn finish(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        if kshim::print::traces() {
            self.trace();
        }
        self.free_space();
        if let Some(tgt_dev) = self.tgt_dev.take() {
            if let Some(ua) = self.marks.ua
                && self.marks.delivery_failed
            {
                self.sess.requeue_ua(&tgt_dev, ua);
            }
            if self.dh_priv.is_some() {
                tgt_dev.dev.handler().on_free_cmd(&mut self);
                self.dh_priv = None;
            }
            self.account(&tgt_dev);
            if tgt_dev.uncount_cmd() {
                self.sess.core.nexus_drained();
            }
        }
        self.sense.clear();
        let flags = self.shared.end();
        debug_assert!(flags & LIVE != 0);
        if flags & ABORTED != 0 {
            self.shared.finish_mgmt();
        }
        self.set_state(CmdState::Free);
        if let Some(host) = cx.host.as_deref_mut() {
            host.on_free_cmd(self);
        }
        Next::Stop
    }

    #[cold]
    fn trace(&self) {
        kshim::pr_trace!(
            "Command finished: initiator {}, LUN {}, tag {:#x}, CDB {:02x?}, {} bytes, status {:?}",
            self.sess.initiator_name(),
            self.lun,
            self.tag,
            self.cdb(),
            self.bufflen,
            self.status
        );
    }

    #[inline]
    fn account(&self, tgt_dev: &crate::tgt_dev::TgtDev) {
        let shift = tgt_dev.dev.handler().block_shift();
        let bytes = u64::from(self.bufflen);
        self.sess
            .stats
            .account(self.data_direction, self.lba, shift, bytes);
    }
}

impl Drop for Cmd {
    /// A command that is dropped before its end is a bug, or a panic unwinds. Whatever it was accounted for is settled
    /// all the same, or it would hold up its device, its session, task management and suspension for ever.
    fn drop(&mut self) {
        if self.state == CmdState::Free {
            return;
        }
        kshim::pr_err!("Command dropped without completion: {self:?}");
        self.free_space();
        if let Some(tgt_dev) = self.tgt_dev.take() {
            let mut released = copy_mgr::leave_all(self);
            released.append(tgt_dev.dev.block.leave(&mut self.block_ticket));
            released.append(tgt_dev.order.finish(&mut self.ticket));
            for cmd in released {
                let _ = cmd.go_home();
            }
            if tgt_dev.uncount_cmd() {
                self.sess.core.nexus_drained();
            }
        }
        if self.marks.counted {
            self.sess.core.cmd_ref.put();
        }
        if self.marks.in_stpg_gate {
            self.sess.core.alua.gate.leave();
        }
        let flags = self.shared.set(DONE);
        if flags & LIVE != 0 && self.shared.end() & ABORTED != 0 {
            self.shared.finish_mgmt();
        }
        debug_assert!(
            std::thread::panicking(),
            "command dropped without completion"
        );
    }
}
