//! After execution: status and sense, side effects of MODE SELECT, unblocking.
//!
//! C source: `scst_pre_dev_done`, `scst_mode_select_checks`, `scst_dev_done` of `scst/src/scst_targ.c`

use super::{Cmd, CmdState, ExecCx, Next};
use crate::consts::{SamStatus, TYPE_DISK};
use crate::copy_mgr;
use crate::sense;
use std::sync::Arc;

const MODE_SELECT_6: u8 = 0x15;
const MODE_SENSE_6: u8 = 0x1a;
const LOG_SELECT: u8 = 0x4c;
const MODE_SELECT_10: u8 = 0x55;
const MODE_SENSE_10: u8 = 0x5a;
/// WP bit of the device-specific parameter (SBC-3 6.5.1).
const WP: u8 = 0x80;

impl Cmd {
    /// CmdState::PreDevDone.
    #[inline]
    pub(super) fn pre_dev_done(mut self: Box<Self>) -> Next {
        self.set_state(CmdState::DevDone);
        if self.status == SamStatus::Good {
            match self.cdb_byte(0) {
                MODE_SENSE_6 => self.patch_write_protect(2),
                MODE_SENSE_10 => self.patch_write_protect(3),
                MODE_SELECT_6 | MODE_SELECT_10 | LOG_SELECT => {
                    self.set_state(CmdState::ModeSelectChecks);
                }
                _ => {}
            }
        } else if self.status == SamStatus::CheckCondition && self.sense.is_empty() {
            // A handler that fails a command must say why.
            self.set_sense(sense::INTERNAL_FAILURE);
        }
        Next::Same(self)
    }

    /// Sets the WP bit in byte `at` of MODE SENSE data of a disk that this nexus may only read.
    fn patch_write_protect(&mut self, at: usize) {
        let Some(tgt_dev) = &self.tgt_dev else { return };
        let protected = tgt_dev.is_read_only() || tgt_dev.dev.is_swp();
        if !protected || tgt_dev.dev.handler().type_code() != TYPE_DISK {
            return;
        }
        let mut byte = [0u8];
        if usize::try_from(self.resp_data_len()).is_ok_and(|len| len > at)
            && self.sg.copy_to_slice(at, &mut byte).is_ok()
        {
            let [b] = byte;
            if self.sg.copy_from_slice(at, &[b | WP]).is_err() {
                self.set_sense(sense::INTERNAL_FAILURE);
            }
        }
    }

    /// CmdState::ModeSelectChecks: other nexuses learn that parameters changed.
    pub(super) fn mode_select_checks(mut self: Box<Self>) -> Next {
        self.set_state(CmdState::DevDone);
        if let Some(tgt_dev) = &self.tgt_dev {
            let ua = if self.cdb_byte(0) == LOG_SELECT {
                sense::LOG_PARAMETER_CHANGED
            } else {
                sense::MODE_PARAMETER_CHANGED
            };
            tgt_dev.dev.check_set_ua(ua, Some(tgt_dev));
        }
        Next::Same(self)
    }

    /// CmdState::DevDone.
    #[inline]
    pub(super) fn dev_done(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        self.set_state(CmdState::PreXmitResp1);
        let Some(tgt_dev) = self.tgt_dev.clone() else {
            return Next::Same(self);
        };
        tgt_dev.dev.handler().dev_done(&mut self);
        if self.copy.is_some() {
            cx.make_all_ready(copy_mgr::leave_all(&mut self));
        }
        cx.make_all_ready(tgt_dev.dev.block.leave(&mut self.block_ticket));
        if self.ticket.inc_expected_on_done() {
            cx.make_all_ready(tgt_dev.order.exec_done(&mut self.ticket));
        }
        Next::Same(self)
    }
}

/// A handler's answer to a command it kept ([`super::ExecRes::Pending`]): status, sense and data are in the command.
/// The command goes on at its home. Context: any.
#[doc(alias = "scst_cmd_done")]
pub fn cmd_done(mut cmd: Box<Cmd>) {
    cmd.completed = true;
    cmd.set_state(CmdState::PreDevDone);
    let home = Arc::clone(&cmd.sess.home);
    home.post(cmd);
}
