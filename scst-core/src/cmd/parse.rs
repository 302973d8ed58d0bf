//! From the CDB to a filled data buffer.
//!
//! C source: `scst_parse_cmd`, `scst_prepare_space`, `scst_restart_cmd`, `scst_rdy_to_xfer`, `scst_rx_data`,
//! `scst_tgt_pre_exec` of `scst/src/scst_targ.c`

use super::shared::ABORTED;
use super::{Cmd, CmdState, ExecCx, Next, RestartStatus};
use crate::cdb::{CdbFlags, opcodes as op};
use crate::consts::DataDirection;
use crate::copy_mgr;
use crate::dev_type::BufAlloc;
use crate::sense;
use crate::session::Session;
use crate::sgv::{MemLim, SgvInit, SgvKind};
use crate::tgt_dev::TgtDev;
use std::sync::Arc;

/// Most data for a command whose CDB does not tell its length.
const UNKNOWN_LENGTH_MAX: u32 = 15 * 1024 * 1024;
/// Largest data buffer: more in one command is refused (VPD B0 advertises less).
pub const MAX_BUFFLEN: u32 = 64 * 1024 * 1024;
const TEST_UNIT_READY: u8 = 0x00;

/// Whose memory a command uses.
#[inline]
fn mem_lim<'a>(sess: &'a Session, tgt_dev: Option<&'a Arc<TgtDev>>) -> &'a Arc<MemLim> {
    tgt_dev.map_or(&sess.core.sgv_no_dev, |t| &t.dev.mem_lim)
}

impl Cmd {
    /// CmdState::Parse.
    #[inline]
    pub(super) fn parse(mut self: Box<Self>) -> Next {
        let flags = self.op_flags();
        if let Some(tgt_dev) = &self.tgt_dev
            && !flags.contains(CdbFlags::FULLY_LOCAL_CMD)
        {
            let dev = Arc::clone(&tgt_dev.dev);
            dev.handler().parse(&mut self);
        }
        if !self.completed {
            self.check_lengths(flags);
        }
        if self.completed {
            self.set_write_len();
            self.set_abnormal_done_state();
            return Next::Same(self);
        }
        if self.bufflen == 0 {
            // A transfer of no data is no error (SPC-4 4.3.5.6).
            self.data_direction = DataDirection::None;
        }
        if self.resp_data_len.is_none() {
            self.resp_data_len = Some(if self.data_direction.has_read() {
                self.bufflen
            } else {
                0
            });
        }
        self.set_state(CmdState::PrepareSpace);
        Next::Same(self)
    }

    fn check_lengths(&mut self, flags: CdbFlags) {
        let Some(info) = self.info else {
            self.set_sense(sense::INVALID_OPCODE);
            return;
        };
        if flags.contains(CdbFlags::UNKNOWN_LENGTH) {
            if self.expected_set {
                self.bufflen = self.expected_transfer_len.min(UNKNOWN_LENGTH_MAX);
                self.data_len = u64::from(self.bufflen);
            } else if self.bufflen == 0 {
                self.set_sense(sense::INVALID_MESSAGE);
                return;
            }
        }
        if info.linked {
            let at = u16::from(info.cdb_len).saturating_sub(1);
            self.set_invalid_field_in_cdb(at, Some(0));
            return;
        }
        if self.bufflen > MAX_BUFFLEN {
            self.set_sense(sense::INVALID_FIELD_IN_CDB);
            return;
        }
        if self.expected_set {
            self.check_expected(info.out_bufflen);
        }
    }

    /// Compares what the CDB says with what the initiator told the transport.
    fn check_expected(&mut self, out_bufflen: u32) {
        if self.data_direction != self.expected_data_direction {
            let data = self.expected_data_direction != DataDirection::None || self.bufflen != 0;
            if data && !self.may_mismatch() {
                self.set_sense(sense::INVALID_MESSAGE);
                return;
            }
        }
        if self.bufflen != self.expected_transfer_len
            && (self.expected_data_direction.has_read() || self.expected_data_direction.has_write())
        {
            self.resid_possible = true;
        }
        if out_bufflen != self.expected_out_transfer_len {
            self.resid_possible = true;
        }
    }

    /// VMware sends TEST UNIT READY with the read flag set.
    #[doc(alias = "scst_is_allowed_to_mismatch_cmd")]
    fn may_mismatch(&self) -> bool {
        self.cdb_byte(0) == TEST_UNIT_READY
            && matches!(
                self.expected_data_direction,
                DataDirection::Read | DataDirection::None
            )
    }

    /// CmdState::PrepareSpace.
    #[inline]
    pub(super) fn prepare_space(mut self: Box<Self>) -> Next {
        self.set_state(CmdState::PreprocessingDone);
        if self.data_direction == DataDirection::None {
            return Next::Same(self);
        }
        if self.data_direction.has_write() {
            self.write_len = self.bufflen;
            if self.resid_possible {
                let bidi = self.expected_data_direction == DataDirection::Bidi;
                let offered = if bidi {
                    self.expected_out_transfer_len
                } else {
                    self.expected_transfer_len
                };
                self.write_len = self.write_len.min(offered);
            }
            // The transport provides the memory of data-out: it has part of it already, or receives into pages
            // that it allocates for what it has granted.
            return Next::Same(self);
        }
        let fully_local = self.op_flags().contains(CdbFlags::FULLY_LOCAL_CMD);
        if let Some(tgt_dev) = &self.tgt_dev
            && !fully_local
        {
            let dev = Arc::clone(&tgt_dev.dev);
            if dev.handler().alloc_data_buf(&mut self) == BufAlloc::Done {
                return Next::Same(self);
            }
        }
        if self.alloc_space(self.bufflen).is_err() {
            self.set_busy();
            self.set_abnormal_done_state();
        }
        Next::Same(self)
    }

    /// Gives the command pages for `len` bytes, in one piece, which may hold old data of other commands. Errors: ENOMEM
    /// (the device's or the whole's limit, or the host's). Context: reactor.
    #[doc(alias = "scst_alloc_space")]
    pub fn alloc_space(&mut self, len: u32) -> kshim::error::Result {
        self.free_space();
        self.extend_space(len)
    }

    /// Gives the command pages for `len` bytes more. Errors: ENOMEM, and nothing has changed then. Context: reactor.
    pub fn extend_space(&mut self, len: u32) -> kshim::error::Result {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let pools = &self.sess.core.sgv;
        let lim = mem_lim(&self.sess, self.tgt_dev.as_ref());
        let obj = pools.append(SgvKind::Norm, lim, &mut self.sg, len, SgvInit::Any)?;
        if self.sgv.first.is_none() {
            self.sgv.first = Some(obj);
        } else {
            self.sgv.more.push(obj);
        }
        Ok(())
    }

    /// Gives the data buffer back, whoever it is from.
    #[inline]
    pub(crate) fn free_space(&mut self) {
        self.sg.clear();
        if self.sgv.first.is_none() && self.sgv.scratch.is_none() {
            return;
        }
        let pools = &self.sess.core.sgv;
        let lim = mem_lim(&self.sess, self.tgt_dev.as_ref());
        if let Some(first) = self.sgv.first.take() {
            pools.free(first, lim, &mut self.sg);
            for obj in self.sgv.more.drain(..) {
                pools.free(obj, lim, &mut self.sg);
            }
        }
        if let Some(scratch) = self.sgv.scratch.take() {
            pools.free(scratch, lim, &mut self.sg);
        }
    }

    /// Charges the command, until its end, with `len` bytes that it works in besides its data. Once: whoever begins it
    /// anew gets what it has. Errors: ENOMEM, and nothing has changed then. Context: any; reactor-safe.
    pub(crate) fn charge_scratch(&mut self, len: usize) -> kshim::error::Result {
        if self.sgv.scratch.is_some() || len == 0 {
            return Ok(());
        }
        let lim = mem_lim(&self.sess, self.tgt_dev.as_ref());
        let pools = &self.sess.core.sgv;
        self.sgv.scratch = Some(pools.charge(SgvKind::Norm, lim, len)?);
        Ok(())
    }

    /// CmdState::PreprocessingDone.
    #[inline]
    pub(super) fn preprocessing_done(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        let Some(host) = cx.host.as_deref_mut() else {
            return self.go_home();
        };
        self.set_state(CmdState::PreprocessingDoneCalled);
        host.preprocessing_done(self);
        Next::Stop
    }

    /// Sends the command home to go on from the state it is in.
    pub(crate) fn go_home(self: Box<Self>) -> Next {
        let home = Arc::clone(&self.sess.home);
        home.post(self);
        Next::Stop
    }

    /// The transport finished its part of preprocessing. Context: the session's home.
    #[doc(alias = "scst_restart_cmd")]
    #[inline]
    pub fn restart(
        mut self: Box<Self>,
        status: RestartStatus,
        all_data: AllData,
        cx: &mut ExecCx<'_>,
    ) {
        debug_assert_eq!(self.state, CmdState::PreprocessingDoneCalled);
        match status {
            RestartStatus::Success => {
                self.state = if self.data_direction.has_write() && all_data == AllData::ToFetch {
                    CmdState::RdyToXfer
                } else {
                    CmdState::TgtPreExec
                };
            }
            other => self.transport_failed(other),
        }
        self.process(cx);
    }

    fn transport_failed(&mut self, status: RestartStatus) {
        match status {
            RestartStatus::Success | RestartStatus::ErrorSenseSet => {}
            // What the abort makes of the answer is decided later.
            RestartStatus::Error if self.is_aborted() => {}
            RestartStatus::Error => self.set_sense(sense::ABORTED_COMMAND),
            RestartStatus::ErrorFatal => {
                self.shared.set(ABORTED | super::shared::NO_RESP);
            }
        }
        self.set_abnormal_done_state();
    }

    /// CmdState::RdyToXfer.
    pub(super) fn rdy_to_xfer(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        if self.is_aborted() {
            self.set_abnormal_done_state();
            return Next::Same(self);
        }
        let Some(host) = cx.host.as_deref_mut() else {
            return self.go_home();
        };
        self.set_state(CmdState::DataWait);
        host.rdy_to_xfer(self);
        Next::Stop
    }

    /// All data-out has come, or will not. Context: the session's home.
    #[doc(alias = "scst_rx_data")]
    pub fn rx_data(mut self: Box<Self>, status: RestartStatus, cx: &mut ExecCx<'_>) {
        debug_assert_eq!(self.state, CmdState::DataWait);
        match status {
            RestartStatus::Success => self.set_state(CmdState::TgtPreExec),
            other => self.transport_failed(other),
        }
        self.process(cx);
    }

    /// CmdState::TgtPreExec.
    #[inline]
    pub(super) fn tgt_pre_exec(mut self: Box<Self>) -> Next {
        if self.cdb_byte(0) == op::EXTENDED_COPY && !copy_mgr::parse(&mut self) {
            self.set_abnormal_done_state();
            return Next::Same(self);
        }
        self.set_state(CmdState::ExecCheckSn);
        Next::Same(self)
    }
}

/// Whether [`Cmd::restart`] finds all data-out in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllData {
    /// Nothing more to receive.
    Received,
    /// The rest has to be asked for.
    ToFetch,
}
