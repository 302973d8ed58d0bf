//! Full feature phase: what each request of the initiator does.
//!
//! C source: `iscsi_push_cmnd`, `iscsi_cmnd_exec`, `scsi_cmnd_start`, `noop_out_exec`, `logout_exec` of
//! `iscsi-scst/kernel/iscsi.c`

use crate::conn::CloseReason;
use crate::ffp::{Ffp, Handed};
use crate::login::{LoginEnv, TextScope};
use crate::pdu::ahs::ScsiCmdAhs;
use crate::pdu::hdr::{LogoutReqHdr, NopOutHdr, ScsiCmdHdr, TextReqHdr};
use crate::pdu::{Bhs, Itt, LogoutReason, LogoutResponse, RejectReason, Request, TaskAttr, opcode};
use crate::pending::WholePdu;
use kshim::page::RxSlice;
use scst_core::consts::{DataDirection, QueueType};
use scst_core::sense;

/// A command that the core keeps for now (activity is suspended), and what came with it.
#[derive(Debug)]
pub(crate) struct ParkedPdu {
    pub(crate) bhs: Bhs,
    pub(crate) data: Option<RxSlice>,
    pub(crate) data_ok: bool,
    /// Unsolicited data that came before the command's turn.
    pub(crate) data_out: Vec<WholePdu>,
}

impl Ffp {
    /// Whether a request would be carried out at once, not dropped and not kept for its turn.
    pub(crate) fn may_run_now(&self, bhs: &Bhs) -> bool {
        match bhs.opcode() {
            opcode::DATA_OUT => !self.pending.awaits_data(bhs.itt()),
            _ if bhs.is_immediate() => true,
            _ => bhs.cmd_sn() == self.exp_cmd_sn && !self.is_window_closed(),
        }
    }

    /// Takes a whole PDU. Answers what is parked if the core keeps its command.
    #[inline]
    pub(crate) fn pdu(&mut self, pdu: WholePdu) -> Option<ParkedPdu> {
        let bhs = &pdu.bhs;
        match bhs.request() {
            Request::DataOut(hdr) => {
                if self.pending.awaits_data(bhs.itt()) {
                    let kept = self.pending.add_data(pdu);
                    self.close_on_error(kept);
                } else {
                    self.data_out(bhs, hdr, pdu.data.as_ref(), pdu.data_ok);
                }
                return None;
            }
            // As SCST: neither has a meaning here (ErrorRecoveryLevel is 0, the login is over).
            Request::Snack(_) | Request::Login(_) | Request::Unknown(_) => {
                self.reject(bhs, RejectReason::CommandNotSupported);
                return None;
            }
            _ => {}
        }
        if bhs.is_immediate() {
            if !self.has_room_for_immediate() {
                self.reject(bhs, RejectReason::TooManyImmediate);
                return None;
            }
            return self.execute(pdu);
        }
        let sn = bhs.cmd_sn();
        if sn != self.exp_cmd_sn || self.is_window_closed() {
            // Outside the window: dropped without a word (RFC 7143 4.2.2.1; DIFFERS: SCST takes the next one also when
            // the window is closed). Inside: kept for its turn.
            if sn.in_window(self.exp_cmd_sn, self.max_cmd_sn()) {
                let kept = self.pending.insert(sn, pdu);
                self.close_on_error(kept);
            }
            return None;
        }
        self.execute_in_turn(pdu)
    }

    fn close_on_error(&mut self, kept: Result<(), CloseReason>) {
        if let Err(reason) = kept {
            self.fatal = Some(reason);
        }
    }

    /// Carries out the next request that waited for its turn, if that has come. Answers whether there was one, and what
    /// is parked if the core keeps its command.
    pub(crate) fn run_pending(&mut self) -> (bool, Option<ParkedPdu>) {
        let Some(taken) = self.pending.take(self.exp_cmd_sn) else {
            return (false, None);
        };
        let Some(request) = taken else {
            self.take_turn();
            self.turn_taken();
            return (true, None);
        };
        let parked = self.execute_in_turn(request.pdu);
        if let Some(mut parked) = parked {
            parked.data_out = request.data_out;
            return (true, Some(parked));
        }
        self.late_data_out(request.data_out);
        (true, None)
    }

    /// Unsolicited data that came before its command's turn.
    pub(crate) fn late_data_out(&mut self, pdus: Vec<WholePdu>) {
        for pdu in pdus {
            if let Request::DataOut(hdr) = pdu.bhs.request() {
                self.data_out(&pdu.bhs, hdr, pdu.data.as_ref(), pdu.data_ok);
            }
        }
    }

    /// Carries out the request that is expected next.
    #[inline]
    fn execute_in_turn(&mut self, pdu: WholePdu) -> Option<ParkedPdu> {
        self.take_turn();
        let parked = self.execute(pdu);
        self.turn_taken();
        parked
    }

    #[inline]
    fn execute(&mut self, pdu: WholePdu) -> Option<ParkedPdu> {
        let WholePdu {
            bhs,
            ahs,
            data,
            data_ok,
        } = pdu;
        match bhs.request() {
            Request::ScsiCmd(hdr) => return self.scsi_cmd(&bhs, hdr, &ahs, data, data_ok),
            _ if !data_ok => self.reject(&bhs, RejectReason::DataDigestError),
            Request::NopOut(hdr) => self.nop_out(hdr, data.as_ref()),
            Request::TaskMgt(hdr) => self.task_mgmt(hdr, bhs.is_immediate()),
            Request::Logout(hdr) => self.logout_request(hdr),
            Request::Text(hdr) => self.text_request(&bhs, hdr, data.as_ref()),
            _ => self.reject(&bhs, RejectReason::CommandNotSupported),
        }
        None
    }

    fn nop_out(&mut self, hdr: &NopOutHdr, data: Option<&RxSlice>) {
        if let Some(itt) = hdr.wants_answer() {
            self.nop_in(itt, data);
        }
    }

    /// As SCST, any logout ends the connection, and with it its session: there is no other connection that a CID could
    /// name, and none to recover.
    fn logout_request(&mut self, hdr: &LogoutReqHdr) {
        let response = match hdr.reason() {
            Some(
                LogoutReason::CloseSession
                | LogoutReason::CloseConnection
                | LogoutReason::RemoveForRecovery,
            ) => LogoutResponse::Success,
            None => LogoutResponse::CleanupFailed,
        };
        self.logout(Itt(hdr.itt.get()), response);
        self.close_after_flush = true;
    }

    /// A text request of a normal session (RFC 7143 11.10): SendTargets of its own target, and what may be declared.
    fn text_request(&mut self, bhs: &Bhs, hdr: &TextReqHdr, data: Option<&RxSlice>) {
        let env = self.driver.env(self.shared.local);
        let scope = TextScope::Normal {
            target: self.target.name(),
        };
        let list = |name: Option<&str>| env.list_targets(name, self.sess.initiator_name());
        let data = data.map_or(&[][..], |d| d);
        match self.text.receive(hdr, data, scope, list) {
            Ok((response, data)) => {
                self.params.max_xmit_data_segment_length = self.text.max_xmit();
                self.text_response(response, data);
            }
            Err(reason) => self.reject(bhs, reason),
        }
    }

    /// Makes the core's command of a SCSI Command PDU and hands it to the core. `hold`: its answer, if it comes at once,
    /// has to wait for data that is still to come.
    pub(crate) fn start_cmd(
        &mut self,
        bhs: &Bhs,
        hdr: &ScsiCmdHdr,
        ahs: &[u8],
        hold: bool,
    ) -> Option<Handed> {
        let itt = hdr.itt();
        if itt == Itt::RESERVED {
            self.reject(bhs, RejectReason::ProtocolError);
            return None;
        }
        if self.waits.contains(itt) {
            self.reject(bhs, RejectReason::TaskInProgress);
            return None;
        }
        let ahs = match ScsiCmdAhs::parse(ahs) {
            Ok(ahs) => ahs,
            Err(_) => {
                self.reject(bhs, RejectReason::InvalidPduField);
                return None;
            }
        };
        let cached = self.cached_cmd();
        let rest = ahs.cdb_rest.unwrap_or_default();
        let mut cmd = self.sess.rx_cmd(cached, hdr.lun, &hdr.cdb, rest);
        cmd.set_tag(u64::from(itt.0));
        cmd.set_tgt_sn(hdr.cmd_sn().0);
        let len = hdr.expected_data_transfer_length.get();
        match (hdr.is_read(), hdr.is_write()) {
            (true, true) => match ahs.bidi_read_len {
                Some(read) => cmd.set_expected(DataDirection::Bidi, read, len),
                None => cmd.set_sense(sense::PARAMETER_VALUE_INVALID),
            },
            (true, false) => cmd.set_expected(DataDirection::Read, len, 0),
            (false, true) => cmd.set_expected(DataDirection::Write, len, 0),
            (false, false) => cmd.set_expected(DataDirection::None, 0, 0),
        }
        cmd.set_queue_type(match hdr.attr() {
            Some(TaskAttr::Untagged) => QueueType::Untagged,
            Some(TaskAttr::Simple) => QueueType::Simple,
            Some(TaskAttr::HeadOfQueue) => QueueType::HeadOfQueue,
            Some(TaskAttr::Aca) => QueueType::Aca,
            Some(TaskAttr::Ordered) | None => QueueType::Ordered,
        });
        Some(self.submit(cmd, itt, bhs.is_immediate(), hold))
    }

    /// Starts a command whose immediate data is received straight into its pages. `None`: it is refused.
    pub(crate) fn begin_streamed(
        &mut self,
        bhs: &Bhs,
        hdr: &ScsiCmdHdr,
        ahs: &[u8],
    ) -> Option<Handed> {
        if bhs.is_immediate() {
            if !self.has_room_for_immediate() {
                self.reject(bhs, RejectReason::TooManyImmediate);
                return None;
            }
            return self.start_cmd(bhs, hdr, ahs, true);
        }
        self.take_turn();
        let handed = self.start_cmd(bhs, hdr, ahs, true);
        self.turn_taken();
        handed
    }

    #[inline]
    fn scsi_cmd(
        &mut self,
        bhs: &Bhs,
        hdr: &ScsiCmdHdr,
        ahs: &[u8],
        data: Option<RxSlice>,
        data_ok: bool,
    ) -> Option<ParkedPdu> {
        match self.start_cmd(bhs, hdr, ahs, !hdr.is_final())? {
            Handed::Parked => {
                let data_out = Vec::new();
                Some(ParkedPdu {
                    bhs: *bhs,
                    data,
                    data_ok,
                    data_out,
                })
            }
            handed => {
                self.command_handed(hdr, handed, data, data_ok);
                None
            }
        }
    }
}
