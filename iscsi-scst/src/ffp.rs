//! Full feature phase of a connection: the state that the SCSI engine calls back into.
//!
//! [`Ffp`] is everything a connection knows but its socket and receive buffer. It is the home's half of its commands
//! ([`TgtHost`]): the state machine of `scst-core` runs in the stack of the receive loop and calls
//! [`TgtHost::xmit_response`] here, which queues the response; the connection flushes the queue when it has no more
//! requests in its buffer.
//!
//! C source: `iscsi-scst/kernel/iscsi.c`

use crate::conn::ConnShared;
use crate::data_out::{DataWaits, WaitKey};
use crate::param::SessParams;
use crate::pdu::hdr::{
    DataInHdr, LogoutRspHdr, NopInHdr, R2tHdr, RejectHdr, ScsiRspHdr, TaskMgtRspHdr,
};
use crate::pdu::{
    BHS_LEN, Bhs, Itt, LogoutResponse, RejectReason, ScsiResponse, TmfResponse, Ttt, flags,
};
use crate::sn::{CmdSn, DataSn, StatSn};
use crate::target::IscsiTarget;
use crate::tx::{TxData, TxPdu, TxQueue, TxResp};
use kshim::page::RxSlice;
use kshim::scatterlist::SGTable;
use scst_core::cmd::{Cmd, ExecCx, TgtHost};
use scst_core::consts::SamStatus;
use scst_core::mgmt::MgmtCmd;
use scst_core::session::Session;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Finished commands kept for reuse when the connection is quiet; above it they are dropped.
const CMD_CACHE_MIN: usize = 8;

/// Immediate requests (NOP-Out, task management, commands) under way beyond which more are rejected.
pub(crate) const MAX_IMMEDIATE: u32 = 64;

/// Bit of a command's `tgt_priv`: it takes a place of the command window.
const PRIV_WINDOW: u64 = 1 << 32;
/// Bit of a command's `tgt_priv`: it takes one of the [`MAX_IMMEDIATE`] places.
const PRIV_IMMEDIATE: u64 = 1 << 33;

/// A request that is ahead of its turn.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) bhs: Bhs,
    pub(crate) ahs: Vec<u8>,
    pub(crate) data: Option<RxSlice>,
}

/// What became of the command that the receive loop just handed to the core.
#[derive(Debug)]
pub(crate) enum Handed {
    /// The core waits for its data, or for the word to go on.
    Preprocessed(Box<Cmd>),
    /// It is answered already.
    Answered,
    /// The core keeps it for now (activity is suspended).
    Parked,
}

#[derive(Debug, Default)]
enum Current {
    #[default]
    None,
    /// Between reception and `preprocessing_done`; `hold`: its answer must wait for unsolicited data.
    Rx {
        itt: Itt,
        hold: bool,
    },
    Preprocessed(Box<Cmd>),
    Held(Box<Cmd>),
    Answered,
}

/// Whether the caller may sleep is never a question here: everything runs on the connection's reactor.
#[derive(Debug)]
pub(crate) struct Ffp {
    pub(crate) shared: Arc<ConnShared>,
    pub(crate) sess: Arc<Session>,
    pub(crate) target: Arc<IscsiTarget>,
    pub(crate) params: SessParams,
    pub(crate) tx: TxQueue,
    pub(crate) waits: DataWaits,
    pub(crate) pending: BTreeMap<u32, Pending>,
    pub(crate) exp_cmd_sn: CmdSn,
    stat_sn: StatSn,
    queued_commands: u32,
    /// Commands that take places of the window.
    active_cmds: u32,
    immediate_cmds: u32,
    /// Commands between reception and recycling.
    pub(crate) live_cmds: u32,
    /// Task management requests under way.
    pub(crate) live_tmfs: u32,
    /// Answers that wait until ExpCmdSN has caught up with their request.
    tm_held: Vec<(CmdSn, Itt, TmfResponse)>,
    cache: Vec<Box<Cmd>>,
    current: Current,
    /// Close the connection once everything queued is sent.
    pub(crate) close_after_flush: bool,
    pub(crate) fatal: bool,
}

impl Ffp {
    pub(crate) fn new(
        shared: Arc<ConnShared>,
        sess: Arc<Session>,
        target: Arc<IscsiTarget>,
        params: SessParams,
        mut tx: TxQueue,
        exp_cmd_sn: CmdSn,
        stat_sn: StatSn,
    ) -> Self {
        tx.set_digests(params.digests());
        let queued_commands = target.params().queued_commands;
        Self {
            shared,
            sess,
            target,
            params,
            tx,
            waits: DataWaits::new(),
            pending: BTreeMap::new(),
            exp_cmd_sn,
            stat_sn,
            queued_commands,
            active_cmds: 0,
            immediate_cmds: 0,
            live_cmds: 0,
            live_tmfs: 0,
            tm_held: Vec::new(),
            cache: Vec::new(),
            current: Current::None,
            close_after_flush: false,
            fatal: false,
        }
    }

    /// The last CmdSN that may be sent now. `MaxCmdSN = ExpCmdSN + max(-1, QueuedCommands - active - 1)`.
    #[inline]
    pub(crate) fn max_cmd_sn(&self) -> CmdSn {
        let room = self.queued_commands.saturating_sub(self.active_cmds);
        self.exp_cmd_sn.advance(room).back(1)
    }

    /// Takes the next StatSN.
    #[inline]
    fn next_stat_sn(&mut self) -> StatSn {
        let sn = self.stat_sn;
        self.stat_sn = sn.next();
        sn
    }

    pub(crate) fn queue(&mut self, resp: TxResp) {
        if self.tx.push(resp).is_err() {
            self.fatal = true;
        }
    }

    /// A recycled command, if there is one.
    #[inline]
    pub(crate) fn cached_cmd(&mut self) -> Option<Box<Cmd>> {
        self.cache.pop()
    }

    /// Hands a command to the core and says what became of it.
    #[inline]
    pub(crate) fn submit(
        &mut self,
        mut cmd: Box<Cmd>,
        itt: Itt,
        immediate: bool,
        hold: bool,
    ) -> Handed {
        cmd.tgt_priv = u64::from(itt.0);
        self.live_cmds = self.live_cmds.saturating_add(1);
        if immediate {
            cmd.tgt_priv |= PRIV_IMMEDIATE;
            self.immediate_cmds = self.immediate_cmds.saturating_add(1);
        } else {
            cmd.tgt_priv |= PRIV_WINDOW;
            self.active_cmds = self.active_cmds.saturating_add(1);
        }
        self.current = Current::Rx { itt, hold };
        let home = self.shared.home_id();
        cmd.init_done(&mut ExecCx::direct(home, self));
        match std::mem::take(&mut self.current) {
            Current::Preprocessed(cmd) => Handed::Preprocessed(cmd),
            Current::Held(cmd) => {
                self.waits.hold_answer(itt, cmd);
                Handed::Answered
            }
            Current::Answered => Handed::Answered,
            current @ (Current::Rx { .. } | Current::None) => {
                self.current = current;
                Handed::Parked
            }
        }
    }

    /// The command that was parked by [`Ffp::submit`] has come back, if it has.
    pub(crate) fn take_handed(&mut self) -> Option<Handed> {
        match std::mem::take(&mut self.current) {
            Current::Preprocessed(cmd) => Some(Handed::Preprocessed(cmd)),
            Current::Answered | Current::None => Some(Handed::Answered),
            Current::Held(cmd) => {
                let itt = itt_of(&cmd);
                self.waits.hold_answer(itt, cmd);
                Some(Handed::Answered)
            }
            current @ Current::Rx { .. } => {
                self.current = current;
                None
            }
        }
    }

    /// Whether one more immediate request may be taken.
    pub(crate) fn has_room_for_immediate(&self) -> bool {
        self.immediate_cmds.saturating_add(self.live_tmfs) < MAX_IMMEDIATE
    }

    /// Runs what the core or another thread sent home.
    #[inline]
    pub(crate) fn process(&mut self, cmd: Box<Cmd>) {
        let home = self.shared.home_id();
        cmd.process(&mut ExecCx::direct(home, self));
    }

    /// Finishes the commands whose responses are sent.
    #[inline]
    pub(crate) fn finish_sent(&mut self) {
        let mut sent = self.tx.take_sent();
        let home = self.shared.home_id();
        for cmd in sent.drain(..) {
            cmd.tgt_cmd_done(&mut ExecCx::direct(home, self));
        }
        self.tx.reuse(sent);
    }

    /// ExpCmdSN has moved: answers to task management that waited for it may go.
    pub(crate) fn release_tm_answers(&mut self) {
        let exp = self.exp_cmd_sn;
        let (ready, keep): (Vec<_>, Vec<_>) = std::mem::take(&mut self.tm_held)
            .into_iter()
            .partition(|(sn, ..)| !exp.precedes(*sn));
        self.tm_held = keep;
        for (_, itt, response) in ready {
            self.queue_tm_response(itt, response);
        }
    }

    pub(crate) fn has_held_tm_answers(&self) -> bool {
        !self.tm_held.is_empty()
    }

    /// Answers a task management request, now or when all commands before it have arrived (RFC 7143 4.2.3.4).
    pub(crate) fn tm_response(&mut self, cmd_sn: CmdSn, itt: Itt, response: TmfResponse) {
        if self.exp_cmd_sn.precedes(cmd_sn) {
            self.tm_held.push((cmd_sn, itt, response));
        } else {
            self.queue_tm_response(itt, response);
        }
    }

    fn queue_tm_response(&mut self, itt: Itt, response: TmfResponse) {
        let mut hdr = TaskMgtRspHdr::new();
        hdr.flags = flags::FINAL;
        hdr.itt = itt.into();
        hdr.set_response(response);
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        self.queue(TxResp::new(TxPdu::new(&hdr, 0, 0), TxData::None));
    }

    /// The core has carried out a task management request.
    #[doc(alias = "iscsi_task_mgmt_fn_done")]
    pub(crate) fn task_mgmt_fn_done(&mut self, mcmd: &MgmtCmd) {
        use scst_core::mgmt::TmStatus;
        self.live_tmfs = self.live_tmfs.saturating_sub(1);
        let response = match mcmd.status() {
            TmStatus::Success => TmfResponse::FunctionComplete,
            TmStatus::TaskNotExist => TmfResponse::TaskDoesNotExist,
            TmStatus::LunNotExist => TmfResponse::LunDoesNotExist,
            TmStatus::FnNotSupported => TmfResponse::FunctionNotSupported,
            TmStatus::Rejected | TmStatus::Failed => TmfResponse::FunctionRejected,
        };
        let itt = Itt(low_u32(mcmd.params().tgt_priv));
        let cmd_sn = CmdSn(mcmd.params().cmd_sn.unwrap_or_default());
        self.tm_response(cmd_sn, itt, response);
    }

    /// Rejects a PDU; the Reject returns its header (RFC 7143 11.17).
    #[doc(alias = "create_reject_rsp")]
    pub(crate) fn reject(&mut self, bhs: &Bhs, reason: RejectReason) {
        kshim::pr_warn_ratelimited!(
            "Rejecting a PDU with opcode {:#x} of {}: {reason:?}",
            bhs.opcode(),
            self.sess.initiator_name()
        );
        let mut hdr = RejectHdr::for_reason(reason);
        hdr.set_data_len(48);
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        let data = TxData::Bytes(bhs.as_array().to_vec());
        self.queue(TxResp::new(TxPdu::new(&hdr, 0, BHS_LEN), data));
    }

    /// Echoes a NOP-Out.
    pub(crate) fn nop_in(&mut self, itt: Itt, data: Option<RxSlice>) {
        let limit = usize::try_from(self.params.max_xmit_data_segment_length).unwrap_or(usize::MAX);
        let mut sg = SGTable::new();
        let len = data.map_or(0, |d| {
            let len = d.len().min(limit);
            if sg.push_shared(d).is_ok() { len } else { 0 }
        });
        let mut hdr = NopInHdr::new();
        hdr.flags = flags::FINAL;
        hdr.itt = itt.into();
        hdr.ttt = Ttt::RESERVED.into();
        hdr.set_data_len(u32::try_from(len).unwrap_or(0));
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        let data = if len == 0 {
            TxData::None
        } else {
            TxData::Shared(sg)
        };
        self.queue(TxResp::new(TxPdu::new(&hdr, 0, len), data));
    }

    /// Asks whether the initiator is still there: a NOP-In that it must answer. Takes no StatSN (RFC 7143 11.19.1).
    #[doc(alias = "iscsi_send_nop_in")]
    pub(crate) fn nop_in_ping(&mut self, ttt: Ttt) {
        let mut hdr = NopInHdr::new();
        hdr.flags = flags::FINAL;
        hdr.itt = Itt::RESERVED.into();
        hdr.ttt = ttt.into();
        hdr.set_sns(self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        self.queue(TxResp::new(TxPdu::new(&hdr, 0, 0), TxData::None));
    }

    /// Answers a logout; the connection closes when the answer is out.
    pub(crate) fn logout(&mut self, itt: Itt, response: LogoutResponse) {
        let mut hdr = LogoutRspHdr::new();
        hdr.flags = flags::FINAL;
        hdr.itt = itt.into();
        hdr.set_response(response);
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        self.queue(TxResp::new(TxPdu::new(&hdr, 0, 0), TxData::None));
    }

    /// Asks for data of a command (RFC 7143 11.8). Takes no StatSN.
    #[doc(alias = "send_r2t")]
    pub(crate) fn send_r2ts(&mut self, key: WaitKey) {
        let burst = self.params.max_burst_length;
        let max = self.params.max_outstanding_r2t;
        while let Some(r2t) = self.waits.next_r2t(key, burst, max) {
            let mut hdr = R2tHdr::new();
            hdr.flags = flags::FINAL;
            hdr.lun = r2t.lun;
            hdr.itt = r2t.itt.into();
            hdr.ttt = r2t.ttt.into();
            hdr.r2t_sn = r2t.r2t_sn.into();
            hdr.buffer_offset = r2t.offset.into();
            hdr.desired_len = r2t.len.into();
            hdr.set_sns(self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
            self.queue(TxResp::new(TxPdu::new(&hdr, 0, 0), TxData::None));
        }
    }

    /// The response of a command: Data-In PDUs with the status in the last one, or a SCSI Response (RFC 7143 11.4, 11.7).
    #[inline]
    fn build_response(&mut self, cmd: Box<Cmd>) -> TxResp {
        let itt = itt_of(&cmd);
        let len = usize::try_from(cmd.resp_data_len())
            .unwrap_or(0)
            .min(cmd.sg().len());
        let good = cmd.status() == SamStatus::Good;
        if len == 0 || !good {
            return self.scsi_response(itt, cmd);
        }
        let seg = usize::try_from(self.params.max_xmit_data_segment_length).unwrap_or(usize::MAX);
        if len <= seg {
            let hdr = self.data_in(itt, 0, len, DataSn::default(), Some(&cmd));
            return TxResp::with_cmd(TxPdu::new(&hdr, 0, len), TxData::Cmd, cmd);
        }
        self.data_in_sequence(itt, cmd, len, seg)
    }

    /// Several Data-In PDUs, each at most `seg` bytes, F at the end of every MaxBurstLength bytes.
    fn data_in_sequence(&mut self, itt: Itt, cmd: Box<Cmd>, len: usize, seg: usize) -> TxResp {
        let burst_max = usize::try_from(self.params.max_burst_length).unwrap_or(usize::MAX);
        let mut data_sn = DataSn::default();
        let mut pdus = Vec::new();
        let (mut at, mut burst) = (0usize, 0usize);
        while at < len {
            let left = len.saturating_sub(at);
            let n = seg.min(left).min(burst_max.saturating_sub(burst)).max(1);
            burst = burst.saturating_add(n);
            let last = n == left;
            let status_of = if last { Some(&*cmd) } else { None };
            let mut hdr = self.data_in(itt, at, n, data_sn, status_of);
            if burst >= burst_max {
                hdr.flags |= flags::FINAL;
                burst = 0;
            }
            pdus.push(TxPdu::new(&hdr, at, n));
            data_sn = data_sn.next();
            at = at.saturating_add(n);
        }
        let mut pdus = pdus.into_iter();
        let Some(first) = pdus.next() else {
            return self.scsi_response(itt, cmd);
        };
        let mut resp = TxResp::with_cmd(first, TxData::Cmd, cmd);
        pdus.for_each(|p| resp.push(p));
        resp
    }

    #[inline]
    fn data_in(
        &mut self,
        itt: Itt,
        at: usize,
        len: usize,
        data_sn: DataSn,
        status_of: Option<&Cmd>,
    ) -> DataInHdr {
        let mut hdr = DataInHdr::new();
        hdr.itt = itt.into();
        hdr.ttt = Ttt::RESERVED.into();
        hdr.data_sn = data_sn.into();
        hdr.buffer_offset = u32::try_from(at).unwrap_or(u32::MAX).into();
        hdr.set_data_len(u32::try_from(len).unwrap_or(0));
        let status = status_of.map(|cmd| {
            hdr.flags = flags::FINAL | flags::STATUS;
            let (flag, count) = residual(cmd);
            hdr.flags |= flag;
            hdr.residual_count = count.into();
            cmd.status() as u8
        });
        let status = status.map(|s| (s, self.next_stat_sn()));
        hdr.set_sns(status, self.exp_cmd_sn, self.max_cmd_sn());
        hdr
    }

    fn scsi_response(&mut self, itt: Itt, cmd: Box<Cmd>) -> TxResp {
        let mut hdr = ScsiRspHdr::new();
        let (flag, count) = residual(&cmd);
        hdr.flags = flags::FINAL | flag;
        hdr.residual_count = count.into();
        hdr.itt = itt.into();
        hdr.set_response(ScsiResponse::CommandCompleted);
        hdr.status = cmd.status() as u8;
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        let sense = cmd.sense();
        if cmd.status() != SamStatus::CheckCondition || sense.is_empty() {
            return TxResp::with_cmd(TxPdu::new(&hdr, 0, 0), TxData::None, cmd);
        }
        // The segment is SenseLength and the sense data (RFC 7143 11.4.7.2).
        let mut data = Vec::with_capacity(sense.len().saturating_add(2));
        let sense_len = u16::try_from(sense.len()).unwrap_or(0);
        data.extend_from_slice(&sense_len.to_be_bytes());
        data.extend_from_slice(sense);
        hdr.set_data_len(u32::try_from(data.len()).unwrap_or(0));
        let pdu = TxPdu::new(&hdr, 0, data.len());
        TxResp::with_cmd(pdu, TxData::Bytes(data), cmd)
    }

    /// Gives memory back that a quiet connection does not need.
    pub(crate) fn shrink(&mut self) {
        self.cache.truncate(CMD_CACHE_MIN);
        self.cache.shrink_to(CMD_CACHE_MIN);
        self.tx.shrink();
    }
}

#[inline]
fn low_u32(v: u64) -> u32 {
    u32::try_from(v & u64::from(u32::MAX)).unwrap_or(0)
}

/// The initiator task tag of a command of this driver.
#[inline]
pub(crate) fn itt_of(cmd: &Cmd) -> Itt {
    Itt(low_u32(cmd.tgt_priv))
}

/// Residual flag and count of a command (RFC 7143 11.4.5).
#[inline]
fn residual(cmd: &Cmd) -> (u8, u32) {
    match cmd.resid() {
        None => (0, 0),
        Some(r) => {
            let flag = if r > 0 {
                flags::UNDERFLOW
            } else {
                flags::OVERFLOW
            };
            (flag, u32::try_from(r.unsigned_abs()).unwrap_or(u32::MAX))
        }
    }
}

impl TgtHost for Ffp {
    #[inline]
    fn preprocessing_done(&mut self, cmd: Box<Cmd>) {
        self.current = Current::Preprocessed(cmd);
    }

    fn rdy_to_xfer(&mut self, cmd: Box<Cmd>) {
        // This driver restarts a command only with all its data, so the core never has to ask.
        kshim::pr_err!("The core asks for data that is there: {cmd:?}");
        let home = self.shared.home_id();
        let cx = &mut ExecCx::direct(home, self);
        cmd.rx_data(scst_core::cmd::RestartStatus::Error, cx);
    }

    #[inline]
    fn xmit_response(&mut self, cmd: Box<Cmd>) {
        let itt = itt_of(&cmd);
        match self.current {
            Current::Rx { itt: current, hold } if current == itt => {
                if hold {
                    self.current = Current::Held(cmd);
                    return;
                }
                self.current = Current::Answered;
            }
            _ => {}
        }
        self.answer(cmd);
    }

    #[inline]
    fn on_free_cmd(&mut self, cmd: Box<Cmd>) {
        self.live_cmds = self.live_cmds.saturating_sub(1);
        // A command that ends without an answer (aborted) still holds its place.
        self.leave_window(cmd.tgt_priv);
        if let Current::Rx { itt, .. } = self.current
            && itt == itt_of(&cmd)
        {
            self.current = Current::Answered;
        }
        let keep = usize::try_from(self.queued_commands).unwrap_or(CMD_CACHE_MIN);
        if self.cache.len() < keep.max(CMD_CACHE_MIN) {
            self.cache.push(cmd);
        }
    }
}

impl Ffp {
    #[inline]
    fn leave_window(&mut self, tgt_priv: u64) {
        if tgt_priv & PRIV_WINDOW != 0 {
            self.active_cmds = self.active_cmds.saturating_sub(1);
        }
        if tgt_priv & PRIV_IMMEDIATE != 0 {
            self.immediate_cmds = self.immediate_cmds.saturating_sub(1);
        }
    }

    /// Queues the response of a command. Its place in the window is free from this very response on.
    #[inline]
    pub(crate) fn answer(&mut self, mut cmd: Box<Cmd>) {
        self.leave_window(cmd.tgt_priv);
        cmd.tgt_priv &= !(PRIV_WINDOW | PRIV_IMMEDIATE);
        let resp = self.build_response(cmd);
        if let Err(mut resp) = self.tx.push(resp) {
            self.fatal = true;
            if let Some(mut cmd) = resp.take_cmd() {
                cmd.set_delivery_failed();
                let home = self.shared.home_id();
                cmd.tgt_cmd_done(&mut ExecCx::direct(home, self));
            }
        }
    }
}
