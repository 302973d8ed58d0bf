//! Full feature phase of a connection: the state that the SCSI engine calls back into.
//!
//! [`Ffp`] is everything a connection knows but its socket and receive buffer. It is the home's half of its commands
//! ([`TgtHost`]): the state machine of `scst-core` runs in the stack of the receive loop and calls
//! [`TgtHost::xmit_response`] here, which queues the response; the connection flushes the queue when it has no more
//! requests in its buffer.
//!
//! C source: `iscsi-scst/kernel/iscsi.c`

use crate::conn::{CloseReason, ConnShared};
use crate::data_out::{DataWaits, Taken, WaitKey};
use crate::driver::IscsiDriver;
use crate::login::TextExchange;
use crate::param::SessParams;
use crate::pdu::hdr::{
    AsyncMsgHdr, DataInHdr, LogoutRspHdr, NopInHdr, R2tHdr, RejectHdr, ScsiRspHdr, TextRspHdr,
};
use crate::pdu::{
    AsyncEvent, BHS_LEN, Bhs, Itt, LogoutResponse, RejectReason, ScsiResponse, Ttt, flags,
};
use crate::pending::PendingRequests;
use crate::sn::{CmdSn, DataSn, StatSn};
use crate::target::IscsiTarget;
use crate::tm::TmRequests;
use crate::tx::seq::DataInSeq;
use crate::tx::{Cmds, TxData, TxPdu, TxQueue, TxResp};
use kshim::page::RxSlice;
use scst_core::cmd::{AllData, Cmd, ExecCx, RestartStatus, TgtHost};
use scst_core::consts::{DataDirection, SamStatus};
use scst_core::sense;
use scst_core::session::Session;
use std::sync::Arc;

/// Finished commands kept for reuse when the connection is quiet; above it they are dropped.
const CMD_CACHE_MIN: usize = 8;

/// Immediate requests (task management, commands) under way beyond which more are rejected. DIFFERS: SCST takes any
/// number.
pub(crate) const MAX_IMMEDIATE: u32 = 64;

/// Bit of a command's `tgt_priv`: it takes a place of the command window.
const PRIV_WINDOW: u64 = 1 << 32;
/// Bit of a command's `tgt_priv`: it takes one of the [`MAX_IMMEDIATE`] places.
const PRIV_IMMEDIATE: u64 = 1 << 33;
/// Bit of a command's `tgt_priv`: it is the one that the receive side just handed to the core.
const PRIV_CURRENT: u64 = 1 << 34;
/// Bit of a command's `tgt_priv`: its write data is counted against the connection's share.
pub(crate) const PRIV_ADMITTED: u64 = 1 << 35;

/// What became of the command that the receive loop just handed to the core.
#[derive(Debug)]
pub(crate) enum Handed {
    /// The core waits for its data, or for the word to go on.
    Preprocessed(Box<Cmd>),
    /// Its answer is there, but data of it is still to come.
    Held(Box<Cmd>),
    /// It is answered already, or ended without an answer.
    Answered,
    /// The core keeps it for now (activity is suspended).
    Parked,
}

#[derive(Debug, Default)]
enum Current {
    #[default]
    None,
    /// Between reception and `preprocessing_done`; `hold`: its answer must wait for data that is still to come.
    Rx {
        hold: bool,
    },
    Preprocessed(Box<Cmd>),
    Held(Box<Cmd>),
    Answered,
}

/// Whether the caller may sleep is never a question here: everything runs on the connection's reactor.
pub(crate) struct Ffp {
    pub(crate) shared: Arc<ConnShared>,
    pub(crate) driver: Arc<IscsiDriver>,
    pub(crate) sess: Arc<Session>,
    pub(crate) target: Arc<IscsiTarget>,
    pub(crate) params: SessParams,
    pub(crate) text: TextExchange,
    pub(crate) tx: TxQueue,
    pub(crate) waits: DataWaits<Box<Cmd>>,
    pub(crate) pending: PendingRequests,
    pub(crate) tm: TmRequests,
    pub(crate) exp_cmd_sn: CmdSn,
    stat_sn: StatSn,
    queued_commands: u32,
    /// What `queued_commands` becomes as commands end.
    wanted_commands: u32,
    /// Commands that take places of the window.
    active_cmds: u32,
    immediate_cmds: u32,
    /// Commands between reception and recycling.
    pub(crate) live_cmds: u32,
    /// A command has left the closed window without an answer, and nothing has told the initiator since.
    window_moved: bool,
    cache: Cmds,
    current: Current,
    /// Close the connection once everything queued is sent; nothing more is queued.
    pub(crate) close_after_flush: bool,
    /// Close the connection at once.
    pub(crate) fatal: Option<CloseReason>,
}

/// What a connection brings along from its login.
pub(crate) struct FromLogin {
    pub(crate) params: SessParams,
    pub(crate) tx: TxQueue,
    pub(crate) exp_cmd_sn: CmdSn,
    pub(crate) stat_sn: StatSn,
}

impl Ffp {
    pub(crate) fn new(
        shared: Arc<ConnShared>,
        driver: Arc<IscsiDriver>,
        sess: Arc<Session>,
        target: Arc<IscsiTarget>,
        login: FromLogin,
    ) -> Self {
        let FromLogin {
            params,
            mut tx,
            exp_cmd_sn,
            stat_sn,
        } = login;
        tx.set_digests(params.digests());
        let queued_commands = target.params().queued_commands;
        Self {
            shared,
            driver,
            sess,
            target,
            text: TextExchange::new(params.max_xmit_data_segment_length),
            tx,
            waits: DataWaits::new(params.data_pdu_in_order),
            params,
            pending: PendingRequests::default(),
            tm: TmRequests::default(),
            exp_cmd_sn,
            stat_sn,
            queued_commands,
            wanted_commands: queued_commands,
            active_cmds: 0,
            immediate_cmds: 0,
            live_cmds: 0,
            window_moved: false,
            cache: Vec::new(),
            current: Current::None,
            close_after_flush: false,
            fatal: None,
        }
    }

    /// The last CmdSN that may be sent now: `ExpCmdSN + max(-1, QueuedCommands - active - 1)`. It never goes back
    /// (RFC 7143 4.2.2.1): what moves ExpCmdSN on and takes a place of the window does both at once.
    #[inline]
    pub(crate) fn max_cmd_sn(&self) -> CmdSn {
        let taken = self.active_cmds.saturating_add(self.tm.in_window());
        let room = self.queued_commands.saturating_sub(taken);
        self.exp_cmd_sn.advance(room).back(1)
    }

    /// QueuedCommands has changed. A longer window is granted now; a shorter one comes into force as commands end, as what was
    /// granted cannot be taken back.
    pub(crate) fn set_queued_commands(&mut self, wanted: u32) {
        let was_closed = self.is_window_closed();
        self.wanted_commands = wanted;
        self.queued_commands = self.queued_commands.max(wanted);
        self.window_moved |= was_closed && !self.is_window_closed();
        self.announce_window();
    }

    /// Whether no request may come that is not immediate.
    #[inline]
    pub(crate) fn is_window_closed(&self) -> bool {
        self.active_cmds.saturating_add(self.tm.in_window()) >= self.queued_commands
    }

    /// The request whose turn it is has come.
    #[inline]
    pub(crate) fn take_turn(&mut self) {
        self.exp_cmd_sn = self.exp_cmd_sn.next();
    }

    /// The request whose turn it was has taken its place of the window, so that MaxCmdSN is settled: what waited for
    /// ExpCmdSN may go.
    #[inline]
    pub(crate) fn turn_taken(&mut self) {
        if self.tm.has_held() {
            self.release_tm_answers();
        }
    }

    /// Takes the next StatSN.
    #[inline]
    pub(crate) fn next_stat_sn(&mut self) -> StatSn {
        let sn = self.stat_sn;
        self.stat_sn = sn.next();
        // What takes a number tells how long the window is.
        self.window_moved = false;
        sn
    }

    /// Queues a response that is no command's.
    pub(crate) fn queue(&mut self, resp: TxResp) {
        if !self.close_after_flush && self.tx.push(resp).is_err() {
            self.fatal = Some(CloseReason::NoMemory);
        }
    }

    /// A recycled command, if there is one.
    #[inline]
    pub(crate) fn cached_cmd(&mut self) -> Option<Box<Cmd>> {
        self.cache.pop()
    }

    /// Hands a command to the core and says what became of it. `hold`: an answer that comes at once has to wait.
    #[inline]
    pub(crate) fn submit(
        &mut self,
        mut cmd: Box<Cmd>,
        itt: Itt,
        immediate: bool,
        hold: bool,
    ) -> Handed {
        debug_assert!(
            matches!(self.current, Current::None),
            "a command is being handed over"
        );
        self.live_cmds = self.live_cmds.saturating_add(1);
        if immediate {
            cmd.tgt_priv = u64::from(itt.0) | PRIV_CURRENT | PRIV_IMMEDIATE;
            self.immediate_cmds = self.immediate_cmds.saturating_add(1);
        } else {
            cmd.tgt_priv = u64::from(itt.0) | PRIV_CURRENT | PRIV_WINDOW;
            self.active_cmds = self.active_cmds.saturating_add(1);
        }
        self.current = Current::Rx { hold };
        let home = self.shared.home_id();
        cmd.init_done(&mut ExecCx::direct(home, self));
        self.take_handed()
    }

    /// What has become of the command that [`Ffp::submit`] handed over.
    #[inline]
    pub(crate) fn take_handed(&mut self) -> Handed {
        match std::mem::take(&mut self.current) {
            Current::Preprocessed(cmd) => Handed::Preprocessed(cmd),
            Current::Held(cmd) => Handed::Held(cmd),
            Current::Answered | Current::None => Handed::Answered,
            current @ Current::Rx { .. } => {
                self.current = current;
                Handed::Parked
            }
        }
    }

    /// Whether one more immediate request may be taken.
    pub(crate) fn has_room_for_immediate(&self) -> bool {
        self.immediate_cmds.saturating_add(self.tm.immediate()) < MAX_IMMEDIATE
    }

    /// Goes on with a command whose data is there, or will not come.
    #[inline]
    pub(crate) fn restart(&mut self, cmd: Box<Cmd>, status: RestartStatus) {
        let home = self.shared.home_id();
        cmd.restart(status, AllData::Received, &mut ExecCx::direct(home, self));
    }

    /// A command whose response will not be sent.
    pub(crate) fn end_unsent(&mut self, mut cmd: Box<Cmd>) {
        cmd.set_delivery_failed();
        let home = self.shared.home_id();
        cmd.tgt_cmd_done(&mut ExecCx::direct(home, self));
    }

    /// Ends a command that was taken from those that wait for data.
    pub(crate) fn end_taken(&mut self, taken: Taken<Box<Cmd>>, status: RestartStatus) {
        match taken {
            Taken::Cmd(cmd) => self.restart(cmd, status),
            Taken::Answer(cmd) => self.end_unsent(cmd),
        }
    }

    /// The connection is dead: ends everything that is parked here. What others have comes home and is ended then.
    pub(crate) fn end_all(&mut self) {
        self.finish_sent();
        self.pending.clear();
        match self.take_handed() {
            Handed::Preprocessed(cmd) => self.restart(cmd, RestartStatus::ErrorFatal),
            Handed::Held(cmd) => self.end_unsent(cmd),
            Handed::Answered | Handed::Parked => {}
        }
        for taken in self.waits.take_all() {
            self.end_taken(taken, RestartStatus::ErrorFatal);
        }
        // What runs now because another command has ended may answer.
        loop {
            let unsent = self.tx.take_unsent();
            if unsent.is_empty() {
                return;
            }
            for cmd in unsent {
                self.end_unsent(cmd);
            }
        }
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

    /// Echoes a NOP-Out. The data is copied: a small echo must not keep a receive buffer alive.
    pub(crate) fn nop_in(&mut self, itt: Itt, data: Option<&RxSlice>) {
        let limit = usize::try_from(self.params.max_xmit_data_segment_length).unwrap_or(usize::MAX);
        let data = data.map_or(Vec::new(), |d| {
            d.get(..d.len().min(limit)).unwrap_or_default().to_vec()
        });
        let mut hdr = NopInHdr::new();
        hdr.flags = flags::FINAL;
        hdr.itt = itt.into();
        hdr.ttt = Ttt::RESERVED.into();
        hdr.set_data_len(u32::try_from(data.len()).unwrap_or(0));
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        let pdu = TxPdu::new(&hdr, 0, data.len());
        self.queue(TxResp::new(
            pdu,
            if data.is_empty() {
                TxData::None
            } else {
                TxData::Bytes(data)
            },
        ));
    }

    /// Answers a text request.
    pub(crate) fn text_response(&mut self, mut hdr: TextRspHdr, data: Vec<u8>) {
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        let pdu = TxPdu::new(&hdr, 0, data.len());
        self.queue(TxResp::new(
            pdu,
            if data.is_empty() {
                TxData::None
            } else {
                TxData::Bytes(data)
            },
        ));
    }

    /// Tells the initiator that the window is open again, if nothing else has: commands that were aborted end without
    /// an answer. Those that are left may take their time. The answer of a request of its own tells it, too.
    pub(crate) fn announce_window(&mut self) {
        if !self.window_moved || self.tm.under_way() {
            return;
        }
        self.window_moved = false;
        self.nop_in_ping(Ttt::RESERVED);
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

    /// Tells of a SCSI event (RFC 7143 11.9).
    #[doc(alias = "iscsi_scsi_aen")]
    pub(crate) fn async_message(&mut self, lun: [u8; 8], sense: &[u8]) {
        let mut data = u16::try_from(sense.len())
            .unwrap_or(0)
            .to_be_bytes()
            .to_vec();
        data.extend_from_slice(sense);
        let mut hdr = AsyncMsgHdr::new();
        hdr.lun = lun;
        hdr.async_event = AsyncEvent::ScsiEvent.code();
        hdr.set_data_len(u32::try_from(data.len()).unwrap_or(0));
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        let pdu = TxPdu::new(&hdr, 0, data.len());
        self.queue(TxResp::new(pdu, TxData::Bytes(data)));
    }

    /// Asks the initiator to log out within a time (RFC 7143 11.9.1, event 1), so that its other paths take over before
    /// this one breaks. What it asks meanwhile is done. DIFFERS: SCST closes at once.
    pub(crate) fn request_logout(&mut self, grace_ms: i64) {
        let mut hdr = AsyncMsgHdr::new();
        hdr.async_event = AsyncEvent::RequestLogout.code();
        let secs = grace_ms.saturating_add(999) / 1000;
        hdr.param3 = u16::try_from(secs).unwrap_or(u16::MAX).into();
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
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
    fn build_response(&mut self, mut cmd: Box<Cmd>) -> TxResp {
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
            if self.params.data_digest && cmd.sg().has_lent() && own_data(&mut cmd, len).is_err() {
                cmd.set_sense(sense::READ_ERROR);
                return self.scsi_response(itt, cmd);
            }
            let hdr = self.data_in(itt, len, Some(&cmd));
            return TxResp::with_cmd(TxPdu::new(&hdr, 0, len), TxData::Cmd, cmd);
        }
        self.data_in_sequence(itt, cmd, len, seg)
    }

    /// Several Data-In PDUs, each at most `seg` bytes, F at the end of every MaxBurstLength bytes.
    fn data_in_sequence(&mut self, itt: Itt, cmd: Box<Cmd>, len: usize, seg: usize) -> TxResp {
        let burst_max = usize::try_from(self.params.max_burst_length).unwrap_or(usize::MAX);
        let hdr = self.data_in(itt, 0, None);
        let last = self.data_in(itt, 0, Some(&cmd));
        let seq = DataInSeq {
            hdr,
            last,
            len,
            seg,
            burst_max: burst_max.max(1),
            copy: cmd.sg().has_lent(),
            at: 0,
            burst: 0,
            data_sn: DataSn::default(),
        };
        TxResp::with_seq(seq, cmd)
    }

    /// Header of a Data-In PDU at the beginning of the buffer, with the status of `status_of`.
    #[inline]
    fn data_in(&mut self, itt: Itt, len: usize, status_of: Option<&Cmd>) -> DataInHdr {
        let mut hdr = DataInHdr::new();
        hdr.itt = itt.into();
        hdr.ttt = Ttt::RESERVED.into();
        hdr.set_data_len(u32::try_from(len).unwrap_or(0));
        let status = status_of.map(|cmd| {
            hdr.flags = flags::FINAL | flags::STATUS;
            let (flag, count) = residual(cmd.resid().unwrap_or(0));
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
        set_residuals(&mut hdr, &cmd);
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
        self.waits.shrink();
    }
}

/// Gives a command a copy of its data: what is lent may change between its digest and its way to the wire.
#[cold]
fn own_data(cmd: &mut Cmd, len: usize) -> kshim::error::Result {
    let lent = std::mem::take(cmd.sg_mut());
    cmd.alloc_space(u32::try_from(len).unwrap_or(u32::MAX))?;
    cmd.sg_mut().copy_from_sg(0, &lent, 0, len)
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

/// Flag and count of a residual (RFC 7143 11.4.5).
#[inline]
fn residual(resid: i64) -> (u8, u32) {
    let flag = match resid.signum() {
        1 => flags::UNDERFLOW,
        -1 => flags::OVERFLOW,
        _ => 0,
    };
    (
        flag,
        u32::try_from(resid.unsigned_abs()).unwrap_or(u32::MAX),
    )
}

/// The residuals of a response: of a bidirectional command those of both directions.
#[doc(alias = "iscsi_set_resid")]
#[inline]
fn set_residuals(hdr: &mut ScsiRspHdr, cmd: &Cmd) {
    let resid = cmd.resid().unwrap_or(0);
    let (flag, count) = residual(resid);
    hdr.flags = flags::FINAL | flag;
    hdr.residual_count = count.into();
    if cmd.expected_data_direction() == DataDirection::Bidi {
        let (flag, count) = residual(cmd.bidi_out_resid());
        let read_flag = match resid.signum() {
            1 => flags::BIDI_UNDERFLOW,
            -1 => flags::BIDI_OVERFLOW,
            _ => 0,
        };
        hdr.bidi_residual_count = hdr.residual_count;
        hdr.flags = flags::FINAL | flag | read_flag;
        hdr.residual_count = count.into();
    }
}

impl TgtHost for Ffp {
    #[inline]
    fn preprocessing_done(&mut self, mut cmd: Box<Cmd>) {
        debug_assert!(
            matches!(self.current, Current::Rx { .. }),
            "preprocessed unasked"
        );
        cmd.tgt_priv &= !PRIV_CURRENT;
        self.current = Current::Preprocessed(cmd);
    }

    fn rdy_to_xfer(&mut self, cmd: Box<Cmd>) {
        // This driver restarts a command only with all its data, so the core never has to ask.
        kshim::pr_err!("The core asks for data that is there: {cmd:?}");
        let home = self.shared.home_id();
        let cx = &mut ExecCx::direct(home, self);
        cmd.rx_data(RestartStatus::Error, cx);
    }

    #[inline]
    fn xmit_response(&mut self, mut cmd: Box<Cmd>) {
        if cmd.tgt_priv & PRIV_CURRENT != 0 {
            cmd.tgt_priv &= !PRIV_CURRENT;
            if matches!(self.current, Current::Rx { hold: true }) {
                self.current = Current::Held(cmd);
                return;
            }
            self.current = Current::Answered;
        }
        self.answer(cmd);
    }

    #[inline]
    fn on_free_cmd(&mut self, mut cmd: Box<Cmd>) {
        self.live_cmds = self.live_cmds.saturating_sub(1);
        let marks = std::mem::take(&mut cmd.tgt_priv);
        if marks & (PRIV_WINDOW | PRIV_IMMEDIATE | PRIV_CURRENT | PRIV_ADMITTED) != 0 {
            self.ended_specially(&cmd, marks);
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
            if self.queued_commands > self.wanted_commands {
                self.queued_commands = self.queued_commands.saturating_sub(1);
            }
        }
        if tgt_priv & PRIV_IMMEDIATE != 0 {
            self.immediate_cmds = self.immediate_cmds.saturating_sub(1);
        }
    }

    fn ended_specially(&mut self, cmd: &Cmd, marks: u64) {
        // A command that ends without an answer (aborted) still holds its place.
        let was_closed = self.is_window_closed();
        self.leave_window(marks);
        self.window_moved |= was_closed && marks & PRIV_WINDOW != 0;
        if marks & PRIV_ADMITTED != 0 {
            self.waits.leave(cmd.write_len());
        }
        if marks & PRIV_CURRENT != 0 {
            self.current = Current::Answered;
        }
    }

    /// Queues the response of a command. Its place in the window is free from this very response on.
    #[inline]
    pub(crate) fn answer(&mut self, mut cmd: Box<Cmd>) {
        self.leave_window(cmd.tgt_priv);
        cmd.tgt_priv &= !(PRIV_WINDOW | PRIV_IMMEDIATE);
        if self.close_after_flush {
            // What was queued last is the last PDU of the connection.
            return self.end_unsent(cmd);
        }
        let resp = self.build_response(cmd);
        if let Err(cmd) = self.tx.push(resp) {
            self.fatal = Some(CloseReason::NoMemory);
            if let Some(cmd) = cmd {
                self.end_unsent(cmd);
            }
        }
    }
}
