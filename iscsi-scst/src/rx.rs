//! The receive side of full feature phase: PDUs are cut from the receive buffer, ordered by CmdSN and carried out.
//!
//! One receive call brings many PDUs; all of them are processed before the answers leave together. Data of a large
//! write is received straight into the command's pages: its command is started when the header is there, and
//! [`RxState::Data`] takes the rest of the PDU.
//!
//! C source: `iscsi-scst/kernel/nthread.c` (`process_read_io`), `iscsi.c` (`cmnd_rx_start`, `cmnd_rx_end`,
//! `iscsi_push_cmnd`)

use crate::conn::{CloseReason, Conn, Phase};
use crate::data_out::{DataError, DataWaits, Step, WaitKey, ensure_buffer};
use crate::ffp::{Ffp, Handed, Pending};
use crate::pdu::ahs::ScsiCmdAhs;
use crate::pdu::hdr::{DataOutHdr, LogoutReqHdr, NopOutHdr, ScsiCmdHdr, TaskMgtHdr};
use crate::pdu::{
    BHS_LEN, Bhs, DIGEST_LEN, Itt, LogoutReason, LogoutResponse, PduLayout, RejectReason, Request,
    TaskAttr, TmfFunction, TmfResponse, Ttt, opcode,
};
use crate::sn::CmdSn;
use crate::tx::Flushed;
use kshim::crypto;
use kshim::error::code;
use kshim::page::RxSlice;
use kshim::reactor::{Cx, Ready};
use scst_core::cmd::{AllData, Cmd, CmdRef, ExecCx, RestartStatus};
use scst_core::consts::{DataDirection, QueueType};
use scst_core::lun::Lun;
use scst_core::mgmt::{TmFunction, TmParams};
use scst_core::sense::{self, Sense};

/// PDUs of one connection carried out in one round; then others get their turn.
const MAX_PDUS_PER_ROUND: u32 = 512;
/// Bytes of one connection received in one round.
const MAX_BYTES_PER_ROUND: usize = 4 << 20;
/// A data segment from this length on is received straight into the command's pages unless it is there already.
const STREAM_MIN: usize = 16 << 10;

/// ABORTED COMMAND, unexpected unsolicited data (RFC 7143 11.4.7.2).
const UNEXPECTED_UNSOLICITED_DATA: Sense = Sense::new(sense::key::ABORTED_COMMAND, 0x0c, 0x0c);
/// ABORTED COMMAND, incorrect amount of data.
const INCORRECT_AMOUNT_OF_DATA: Sense = Sense::new(sense::key::ABORTED_COMMAND, 0x0c, 0x0d);
/// ABORTED COMMAND, protocol service CRC error.
const DATA_DIGEST_ERROR: Sense = Sense::new(sense::key::ABORTED_COMMAND, 0x47, 0x05);

type Closing<T = ()> = Result<T, CloseReason>;

/// Where the rest of a data segment goes that is received into a command's pages.
#[derive(Debug)]
pub(crate) struct DataState {
    /// The command; `None`: the data is dropped.
    key: Option<WaitKey>,
    /// Where in the command's buffer the segment begins, and how much of it belongs there.
    begin: usize,
    take: usize,
    /// How much of that is there.
    done: usize,
    /// Bytes of the segment beyond what the command takes, to be dropped.
    excess: usize,
    /// Padding and data digest.
    trailer: usize,
    pad: usize,
    what: Segment,
    crc_ok_without_check: bool,
}

impl DataState {
    /// Whether the data is for this command.
    pub(crate) fn is_for(&self, waits: &mut DataWaits, cmd: &CmdRef) -> bool {
        self.key
            .and_then(|k| waits.cmd_mut(k))
            .is_some_and(|c| cmd.is(c))
    }
}

/// Which PDU a data segment belongs to.
#[derive(Clone, Copy, Debug)]
enum Segment {
    Immediate,
    DataOut {
        solicited_at: Option<u32>,
        is_final: bool,
    },
}

/// What the receive side is in the middle of.
#[derive(Debug, Default)]
pub(crate) enum RxState {
    /// Between PDUs.
    #[default]
    Idle,
    /// In a data segment.
    Data(DataState),
    /// A command was handed to the core, which keeps it (activity is suspended): nothing is processed before it is back.
    /// `stream`: its data segment is still to be received.
    Parked {
        bhs: Bhs,
        data: Option<RxSlice>,
        stream: Option<PduLayout>,
    },
}

impl RxState {
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self, Self::Parked { .. })
    }
}

impl Conn {
    /// Processes, answers and receives until nothing is left to do or the round's share is used up.
    pub(crate) fn receive(&mut self, cx: &mut Cx<'_>, ev: Ready) -> Closing {
        let mut pdus = MAX_PDUS_PER_ROUND;
        let mut bytes = MAX_BYTES_PER_ROUND;
        let mut drained = ev.is_empty();
        loop {
            self.process_buffered(cx, &mut pdus)?;
            let flushed = self.flush(cx)?;
            if self.rx_must_wait() || (flushed == Flushed::Blocked && self.is_clogged()) {
                return Ok(());
            }
            if pdus == 0 || bytes == 0 {
                cx.reschedule(cx.token());
                return Ok(());
            }
            if drained {
                self.quiesce();
                return Ok(());
            }
            match self.recv_some() {
                Ok((0, _)) => return Err(CloseReason::Eof),
                Ok((n, all)) => {
                    bytes = bytes.saturating_sub(n);
                    self.note_rx(cx.now());
                    // After the peer's end of file the zero has to be seen.
                    drained = all && !ev.contains(Ready::RDHUP);
                }
                Err(e) if e == code::EAGAIN => {
                    self.quiesce();
                    return Ok(());
                }
                Err(e) => return Err(Self::error_of_recv(e)),
            }
        }
    }

    /// Nothing is left to receive: a connection without commands gives its buffer back.
    fn quiesce(&mut self) {
        if let Phase::Full(ffp) = &self.phase
            && ffp.live_cmds != 0
        {
            return;
        }
        self.rx.release_if_empty();
    }

    /// One receive call, into the buffer or straight into a command's pages. Answers how much came, and whether that
    /// was all there is.
    fn recv_some(&mut self) -> kshim::error::Result<(usize, bool)> {
        if let (RxState::Data(data), Phase::Full(ffp)) = (&mut self.rx_state, &mut self.phase)
            && let Some(cmd) = data.key.and_then(|k| ffp.waits.cmd_mut(k))
            && data.done < data.take
        {
            let left = data.take.saturating_sub(data.done);
            let at = data.begin.saturating_add(data.done);
            let n = self
                .sock
                .recv_into(cmd.sg_mut(), at, left, Some(&mut self.rx))?;
            data.done = data.done.saturating_add(n.min(left));
            return Ok((n, n < left || self.rx.spare() > 0));
        }
        let n = self.sock.recv(&mut self.rx)?;
        Ok((n, self.rx.spare() > 0))
    }

    /// Carries out the PDUs that are in the buffer.
    fn process_buffered(&mut self, cx: &mut Cx<'_>, pdus: &mut u32) -> Closing {
        loop {
            if *pdus == 0 || self.rx_must_wait_for_buffered()? {
                return Ok(());
            }
            let more = match &self.phase {
                Phase::Login(_) => self.process_login_pdu(cx)?,
                Phase::Full(_) => self.process_ffp_pdu()?,
                Phase::Creating(_) | Phase::Draining(_) | Phase::Leaving => false,
            };
            if !more {
                return Ok(());
            }
            *pdus = pdus.saturating_sub(1);
        }
    }

    /// A parked command that has come back goes on here; answers whether nothing may be processed.
    fn rx_must_wait_for_buffered(&mut self) -> Closing<bool> {
        if self.rx_state.is_parked()
            && let Phase::Full(ffp) = &mut self.phase
            && let Some(handed) = ffp.take_handed()
            && let RxState::Parked { bhs, data, stream } = std::mem::take(&mut self.rx_state)
        {
            match (stream, bhs.request()) {
                (Some(layout), Request::ScsiCmd(hdr)) => {
                    let key = ffp.write_handed(hdr, handed, layout.data_len);
                    self.rx_state = RxState::Data(ffp.immediate_segment(key, &layout));
                }
                _ => ffp.command_handed(&bhs, handed, data),
            }
        }
        Ok(self.rx_must_wait())
    }

    /// Processes the next PDU, or the next part of a data segment. Answers whether there was one.
    fn process_ffp_pdu(&mut self) -> Closing<bool> {
        if let RxState::Data(_) = &self.rx_state {
            return self.process_segment();
        }
        let Phase::Full(ffp) = &mut self.phase else {
            return Ok(false);
        };
        let buf = self.rx.data();
        let Some((bhs, _)) = Bhs::split(buf) else {
            return Ok(false);
        };
        let bhs = *bhs;
        let digests = ffp.params.digests();
        let layout = bhs
            .layout(digests)
            .ok_or(CloseReason::Protocol("PDU too long"))?;
        if bhs.data_len() > ffp.params.max_recv_data_segment_length {
            ffp.reject(&bhs, RejectReason::ProtocolError);
            ffp.close_after_flush = true;
            return Ok(false);
        }
        let have = buf.len();
        if have < layout.data_at {
            return Ok(false);
        }
        let ahs = buf
            .get(BHS_LEN..BHS_LEN.saturating_add(layout.ahs_len))
            .unwrap_or_default();
        if digests.header && !header_digest_ok(buf, &layout) {
            return Err(CloseReason::Protocol("header digest error"));
        }
        let ahs = if ahs.is_empty() {
            Vec::new()
        } else {
            ahs.to_vec()
        };
        if have < layout.total {
            let streams = matches!(bhs.opcode(), opcode::SCSI_CMD | opcode::DATA_OUT);
            if layout.data_len < STREAM_MIN || !streams || !ffp.may_run_now(&bhs) {
                let missing = layout.total.saturating_sub(have);
                self.rx
                    .reserve(missing)
                    .map_err(|_| CloseReason::NoMemory)?;
                return Ok(false);
            }
            self.rx.consume(layout.data_at);
            return self.begin_segment(&bhs, &ahs, &layout);
        }
        self.rx.consume(layout.data_at);
        let data = if layout.data_len == 0 {
            None
        } else {
            Some(
                self.rx
                    .take_slice(layout.data_len)
                    .ok_or(CloseReason::NoMemory)?,
            )
        };
        let tail = layout
            .total
            .saturating_sub(layout.data_at)
            .saturating_sub(layout.data_len);
        let data_ok = match &data {
            Some(d) if digests.data => data_digest_ok(d, self.rx.data(), layout.pad_len),
            _ => true,
        };
        self.rx.consume(tail);
        if let Some(parked) = ffp.pdu(&bhs, ahs, data, data_ok) {
            self.rx_state = parked;
        } else {
            self.answer_pings(&bhs);
        }
        Ok(true)
    }

    fn answer_pings(&mut self, bhs: &Bhs) {
        if let Request::NopOut(hdr) = bhs.request()
            && let Some(ttt) = hdr.answers()
        {
            self.ping_answered(ttt);
        }
    }

    /// Starts a command whose data segment is only partly there, or finds the one that a Data-Out belongs to, and lets
    /// the segment be received into its pages.
    fn begin_segment(&mut self, bhs: &Bhs, ahs: &[u8], layout: &PduLayout) -> Closing<bool> {
        let Phase::Full(ffp) = &mut self.phase else {
            return Ok(false);
        };
        self.rx_state = match bhs.request() {
            Request::DataOut(hdr) => {
                let mut state = ffp.immediate_segment(None, layout);
                state.what = segment_of(hdr);
                if let Some(a) = ffp.data_out_accept(hdr, layout.data_len) {
                    state.key = Some(a.key);
                    state.begin = a.at;
                    state.take = a.len;
                    state.excess = layout.data_len.saturating_sub(a.len);
                }
                RxState::Data(state)
            }
            Request::ScsiCmd(hdr) => match ffp.begin_write(bhs, hdr, ahs) {
                Some(Handed::Parked) => RxState::Parked {
                    bhs: *bhs,
                    data: None,
                    stream: Some(*layout),
                },
                Some(handed) => {
                    let key = ffp.write_handed(hdr, handed, layout.data_len);
                    RxState::Data(ffp.immediate_segment(key, layout))
                }
                None => RxState::Data(ffp.immediate_segment(None, layout)),
            },
            _ => RxState::Data(ffp.immediate_segment(None, layout)),
        };
        Ok(true)
    }

    /// Takes what has arrived of a data segment. Answers whether the segment is complete.
    fn process_segment(&mut self) -> Closing<bool> {
        let (RxState::Data(data), Phase::Full(ffp)) = (&mut self.rx_state, &mut self.phase) else {
            return Ok(false);
        };
        if data.done < data.take {
            let left = data.take.saturating_sub(data.done);
            let part = self.rx.data();
            let n = part.len().min(left);
            if n != 0 {
                let at = data.begin.saturating_add(data.done);
                if let Some(cmd) = data.key.and_then(|k| ffp.waits.cmd_mut(k)) {
                    let part = part.get(..n).unwrap_or_default();
                    cmd.sg_mut()
                        .copy_from_slice(at, part)
                        .map_err(|_| CloseReason::NoMemory)?;
                }
                self.rx.consume(n);
                data.done = data.done.saturating_add(n);
            }
            if data.done < data.take {
                return Ok(false);
            }
        }
        let n = self.rx.len().min(data.excess);
        self.rx.consume(n);
        data.excess = data.excess.saturating_sub(n);
        if data.excess != 0 || self.rx.len() < data.trailer {
            return Ok(false);
        }
        let RxState::Data(data) = std::mem::take(&mut self.rx_state) else {
            return Ok(false);
        };
        let ok = data.crc_ok_without_check || segment_digest_ok(ffp, &data, self.rx.data());
        self.rx.consume(data.trailer);
        if let Some(key) = data.key {
            ffp.segment_done(key, &data, ok);
        }
        Ok(true)
    }
}

fn header_digest_ok(buf: &[u8], layout: &PduLayout) -> bool {
    let at = BHS_LEN.saturating_add(layout.ahs_len);
    let (Some(covered), Some(digest)) = (buf.get(..at), buf.get(at..layout.data_at)) else {
        return false;
    };
    crypto::crc32c(covered).to_le_bytes() == digest
}

/// `tail`: what follows the data: padding, which the digest covers, and the digest.
fn data_digest_ok(data: &[u8], tail: &[u8], pad: usize) -> bool {
    let end = pad.saturating_add(DIGEST_LEN);
    let (Some(padding), Some(digest)) = (tail.get(..pad), tail.get(pad..end)) else {
        return false;
    };
    crypto::crc32c_append(crypto::crc32c(data), padding).to_le_bytes() == digest
}

fn segment_digest_ok(ffp: &mut Ffp, data: &DataState, tail: &[u8]) -> bool {
    // A segment that was cut cannot be checked any more; its command fails for the amount of data already.
    let Some(cmd) = data.key.and_then(|k| ffp.waits.cmd_mut(k)) else {
        return true;
    };
    let end = data.pad.saturating_add(DIGEST_LEN);
    let (Some(padding), Some(digest)) = (tail.get(..data.pad), tail.get(data.pad..end)) else {
        return false;
    };
    let crc = cmd.sg().crc32c(data.begin, data.take, 0);
    crc.is_ok_and(|crc| crypto::crc32c_append(crc, padding).to_le_bytes() == digest)
}

fn segment_of(hdr: &DataOutHdr) -> Segment {
    let solicited_at = hdr.solicited_by().map(|_| hdr.buffer_offset.get());
    Segment::DataOut {
        solicited_at,
        is_final: hdr.is_final(),
    }
}

/// The part of full feature phase that carries out requests.
impl Ffp {
    /// Whether a request would be carried out at once, not dropped and not kept for its turn.
    fn may_run_now(&self, bhs: &Bhs) -> bool {
        bhs.opcode() == opcode::DATA_OUT || bhs.is_immediate() || bhs.cmd_sn() == self.exp_cmd_sn
    }

    /// Takes a whole PDU. Answers the receive state if its command was parked.
    fn pdu(
        &mut self,
        bhs: &Bhs,
        ahs: Vec<u8>,
        data: Option<RxSlice>,
        data_ok: bool,
    ) -> Option<RxState> {
        match bhs.request() {
            Request::DataOut(hdr) => {
                self.data_out(hdr, data.as_ref(), data_ok);
                return None;
            }
            Request::Snack(_) => {
                self.reject(bhs, RejectReason::SnackReject);
                return None;
            }
            Request::Login(_) => {
                self.reject(bhs, RejectReason::ProtocolError);
                return None;
            }
            Request::Unknown(_) => {
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
            return self.execute(bhs, &ahs, data, data_ok);
        }
        let sn = bhs.cmd_sn();
        if sn != self.exp_cmd_sn {
            // Outside the window: dropped without a word (RFC 7143 4.2.2.1). Inside: kept for its turn.
            if sn.in_window(self.exp_cmd_sn, self.max_cmd_sn()) && data_ok {
                let bhs = *bhs;
                self.pending
                    .entry(sn.0)
                    .or_insert(Pending { bhs, ahs, data });
            }
            return None;
        }
        self.exp_cmd_sn = sn.next();
        let parked = self.execute(bhs, &ahs, data, data_ok);
        if parked.is_none() && !self.pending.is_empty() {
            return self.run_pending();
        }
        if self.has_held_tm_answers() {
            self.release_tm_answers();
        }
        parked
    }

    /// Carries out requests whose turn has come.
    fn run_pending(&mut self) -> Option<RxState> {
        while let Some(p) = self.pending.remove(&self.exp_cmd_sn.0) {
            self.exp_cmd_sn = self.exp_cmd_sn.next();
            if let Some(parked) = self.execute(&p.bhs, &p.ahs, p.data, true) {
                return Some(parked);
            }
        }
        self.release_tm_answers();
        None
    }

    fn execute(
        &mut self,
        bhs: &Bhs,
        ahs: &[u8],
        data: Option<RxSlice>,
        data_ok: bool,
    ) -> Option<RxState> {
        match bhs.request() {
            Request::ScsiCmd(hdr) => return self.scsi_cmd(bhs, hdr, ahs, data, data_ok),
            _ if !data_ok => self.reject(bhs, RejectReason::DataDigestError),
            Request::NopOut(hdr) => self.nop_out(hdr, data),
            Request::TaskMgt(hdr) => self.task_mgmt(hdr),
            Request::Logout(hdr) => self.logout_request(hdr),
            // Text in full feature phase of a normal session has no key that this target would negotiate.
            _ => self.reject(bhs, RejectReason::CommandNotSupported),
        }
        None
    }

    fn nop_out(&mut self, hdr: &NopOutHdr, data: Option<RxSlice>) {
        if let Some(itt) = hdr.wants_answer() {
            self.nop_in(itt, data);
        }
    }

    fn logout_request(&mut self, hdr: &LogoutReqHdr) {
        let response = match hdr.reason() {
            Some(LogoutReason::CloseSession | LogoutReason::CloseConnection) => {
                LogoutResponse::Success
            }
            Some(LogoutReason::RemoveForRecovery) => LogoutResponse::RecoveryNotSupported,
            None => LogoutResponse::CleanupFailed,
        };
        self.logout(Itt(hdr.itt.get()), response);
        self.close_after_flush = true;
    }

    /// A task management request (RFC 7143 11.5).
    #[doc(alias = "execute_task_management")]
    fn task_mgmt(&mut self, hdr: &TaskMgtHdr) {
        let itt = Itt(hdr.itt.get());
        let cmd_sn = CmdSn::from(hdr.cmd_sn);
        let rtt = hdr.referenced_task_tag();
        let function = match hdr.function() {
            Some(TmfFunction::AbortTask) => TmFunction::AbortTask,
            Some(_) if rtt != Itt::RESERVED => {
                return self.tm_response(cmd_sn, itt, TmfResponse::FunctionRejected);
            }
            Some(TmfFunction::AbortTaskSet) => TmFunction::AbortTaskSet,
            Some(TmfFunction::ClearTaskSet) => TmFunction::ClearTaskSet,
            Some(TmfFunction::ClearAca) => TmFunction::ClearAca,
            Some(TmfFunction::LogicalUnitReset) => TmFunction::LunReset,
            Some(TmfFunction::TargetWarmReset | TmfFunction::TargetColdReset) => {
                TmFunction::TargetReset
            }
            Some(TmfFunction::TaskReassign) => {
                return self.tm_response(cmd_sn, itt, TmfResponse::ReassignmentNotSupported);
            }
            Some(_) | None => {
                return self.tm_response(cmd_sn, itt, TmfResponse::FunctionRejected);
            }
        };
        let lun = Lun::unpack(&hdr.lun).map(Lun::get);
        let Some(lun) = lun.or((function == TmFunction::TargetReset).then_some(0)) else {
            return self.tm_response(cmd_sn, itt, TmfResponse::LunDoesNotExist);
        };
        self.live_tmfs = self.live_tmfs.saturating_add(1);
        self.sess.rx_mgmt_fn(TmParams {
            function,
            lun,
            tag: u64::from(rtt.0),
            cmd_sn: Some(cmd_sn.0),
            tgt_priv: u64::from(itt.0),
        });
    }

    /// Makes the core's command of a SCSI Command PDU and hands it to the core. `hold`: its answer, if it comes at once,
    /// has to wait for the unsolicited data that follows.
    fn start_cmd(&mut self, bhs: &Bhs, hdr: &ScsiCmdHdr, ahs: &[u8]) -> Option<Handed> {
        let ahs = match ScsiCmdAhs::parse(ahs) {
            Ok(ahs) => ahs,
            Err(_) => {
                self.reject(bhs, RejectReason::InvalidPduField);
                return None;
            }
        };
        let cached = self.cached_cmd();
        let rest = ahs.cdb_rest.unwrap_or_default();
        let sess = std::sync::Arc::clone(&self.sess);
        let mut cmd = sess.rx_cmd(cached, hdr.lun, &hdr.cdb, rest);
        let itt = hdr.itt();
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
        let hold = hdr.is_write() && !hdr.is_final();
        Some(self.submit(cmd, itt, bhs.is_immediate(), hold))
    }

    #[inline]
    fn scsi_cmd(
        &mut self,
        bhs: &Bhs,
        hdr: &ScsiCmdHdr,
        ahs: &[u8],
        data: Option<RxSlice>,
        data_ok: bool,
    ) -> Option<RxState> {
        let handed = self.start_cmd(bhs, hdr, ahs)?;
        match handed {
            Handed::Parked => Some(RxState::Parked {
                bhs: *bhs,
                data,
                stream: None,
            }),
            Handed::Preprocessed(mut cmd) if !data_ok => {
                cmd.set_sense(DATA_DIGEST_ERROR);
                self.restart(cmd, RestartStatus::ErrorSenseSet);
                None
            }
            handed => {
                self.command_handed(bhs, handed, data);
                None
            }
        }
    }

    #[inline]
    fn restart(&mut self, cmd: Box<Cmd>, status: RestartStatus) {
        let home = self.shared.home_id();
        cmd.restart(status, AllData::Received, &mut ExecCx::direct(home, self));
    }

    /// The core has a command's buffer ready: give it the data that came with the command and see what else it needs.
    #[doc(alias = "cmnd_rx_continue")]
    pub(crate) fn command_handed(&mut self, bhs: &Bhs, handed: Handed, data: Option<RxSlice>) {
        let Handed::Preprocessed(mut cmd) = handed else {
            return;
        };
        let Request::ScsiCmd(hdr) = bhs.request() else {
            return;
        };
        if data.is_none() && !hdr.is_write() {
            return self.restart(cmd, RestartStatus::Success);
        }
        let immediate = data.as_ref().map_or(0, |d| d.len());
        if let Err(s) = self.check_unsolicited(&cmd, hdr, immediate) {
            cmd.set_sense(s);
            if hdr.is_write() && !hdr.is_final() {
                self.waits.hold_failed(hdr.itt());
            }
            return self.restart(cmd, RestartStatus::ErrorSenseSet);
        }
        let write_len = usize::try_from(cmd.write_len()).unwrap_or(usize::MAX);
        let take = immediate.min(write_len);
        if take == write_len && hdr.is_final() {
            if let Some(d) = data
                && take != 0
                && let Err(e) = push_part(&mut cmd, d, take)
            {
                kshim::pr_err_ratelimited!("Write data cannot be kept: {e}");
                cmd.set_busy();
                return self.restart(cmd, RestartStatus::ErrorSenseSet);
            }
            return self.restart(cmd, RestartStatus::Success);
        }
        if let Some(key) = self.let_wait(cmd, hdr, immediate) {
            if let (Some(d), Some(cmd)) = (&data, self.waits.cmd_mut(key)) {
                let part = d.get(..take).unwrap_or_default();
                if cmd.sg_mut().copy_from_slice(0, part).is_err() {
                    return self.fail_wait(key, INCORRECT_AMOUNT_OF_DATA);
                }
            }
            let step = self.waits.step(key);
            self.after_step(step);
        }
    }

    /// Checks the data that the initiator sends without being asked (RFC 7143 4.2.5.2, 13.10, 13.14).
    fn check_unsolicited(
        &self,
        cmd: &Cmd,
        hdr: &ScsiCmdHdr,
        immediate: usize,
    ) -> Result<(), Sense> {
        let p = &self.params;
        let unexpected = (immediate != 0 && (!p.immediate_data || !hdr.is_write()))
            || (immediate != 0 && !cmd.data_direction().has_write())
            || (!hdr.is_final() && p.initial_r2t);
        if unexpected {
            return Err(UNEXPECTED_UNSOLICITED_DATA);
        }
        let expected = hdr.expected_data_transfer_length.get();
        let limit = usize::try_from(p.first_burst_length.min(expected)).unwrap_or(usize::MAX);
        if immediate > limit {
            Err(INCORRECT_AMOUNT_OF_DATA)
        } else {
            Ok(())
        }
    }

    /// Gives the command memory for what may come unasked and lets it wait for its data.
    fn let_wait(
        &mut self,
        mut cmd: Box<Cmd>,
        hdr: &ScsiCmdHdr,
        immediate: usize,
    ) -> Option<WaitKey> {
        let immediate = u32::try_from(immediate).unwrap_or(u32::MAX);
        let expected = hdr.expected_data_transfer_length.get();
        let unsolicited_end =
            (!hdr.is_final()).then(|| self.params.first_burst_length.min(expected).max(immediate));
        let upto = unsolicited_end.unwrap_or(immediate).min(cmd.write_len());
        if ensure_buffer(&mut cmd, upto).is_err() {
            cmd.set_busy();
            self.restart(cmd, RestartStatus::ErrorSenseSet);
            return None;
        }
        match self
            .waits
            .insert(cmd, hdr.itt(), hdr.lun, immediate, unsolicited_end)
        {
            Ok(key) => Some(key),
            Err(mut cmd) => {
                // A second command with the tag of one that waits for data.
                cmd.set_sense(sense::ABORTED_COMMAND);
                self.restart(cmd, RestartStatus::ErrorSenseSet);
                None
            }
        }
    }

    /// Starts a write whose immediate data is received straight into its pages. `None`: it is refused.
    fn begin_write(&mut self, bhs: &Bhs, hdr: &ScsiCmdHdr, ahs: &[u8]) -> Option<Handed> {
        if !bhs.is_immediate() {
            self.exp_cmd_sn = self.exp_cmd_sn.next();
        } else if !self.has_room_for_immediate() {
            self.reject(bhs, RejectReason::TooManyImmediate);
            return None;
        }
        self.start_cmd(bhs, hdr, ahs)
    }

    /// The core has the command of [`Ffp::begin_write`] ready: give it pages and let it wait. `None`: its data is to be
    /// dropped.
    fn write_handed(
        &mut self,
        hdr: &ScsiCmdHdr,
        handed: Handed,
        immediate: usize,
    ) -> Option<WaitKey> {
        let Handed::Preprocessed(mut cmd) = handed else {
            return None;
        };
        if let Err(s) = self.check_unsolicited(&cmd, hdr, immediate) {
            cmd.set_sense(s);
            if !hdr.is_final() {
                self.waits.hold_failed(hdr.itt());
            }
            self.restart(cmd, RestartStatus::ErrorSenseSet);
            return None;
        }
        self.let_wait(cmd, hdr, immediate)
    }

    /// The receive state for the data segment of a command.
    fn immediate_segment(&mut self, key: Option<WaitKey>, layout: &PduLayout) -> DataState {
        let room = key
            .and_then(|k| self.waits.cmd_mut(k))
            .map_or(0, |c| c.sg().len());
        let take = room.min(layout.data_len);
        DataState {
            key,
            begin: 0,
            take,
            done: 0,
            excess: layout.data_len.saturating_sub(take),
            trailer: layout
                .total
                .saturating_sub(layout.data_at)
                .saturating_sub(layout.data_len),
            pad: layout.pad_len,
            what: Segment::Immediate,
            crc_ok_without_check: !self.params.data_digest,
        }
    }

    /// The data of a segment is in the pages of its command.
    fn segment_done(&mut self, key: WaitKey, data: &DataState, digest_ok: bool) {
        if !digest_ok {
            return self.fail_wait(key, DATA_DIGEST_ERROR);
        }
        let step = match data.what {
            Segment::Immediate => Ok(self.waits.step(key)),
            Segment::DataOut {
                solicited_at,
                is_final,
            } => self.waits.received(key, data.take, solicited_at, is_final),
        };
        match step {
            Ok(step) => self.after_step(step),
            Err(e) => self.fail_wait(key, sense_of(e)),
        }
    }

    /// Finds the command of a Data-Out PDU. `None`: the data is to be dropped.
    fn data_out_accept(
        &mut self,
        hdr: &DataOutHdr,
        len: usize,
    ) -> Option<crate::data_out::Accepted> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let ttt: Option<Ttt> = hdr.solicited_by();
        match self
            .waits
            .accept(hdr.itt(), ttt, hdr.buffer_offset.get(), len)?
        {
            Ok(accepted) => Some(accepted),
            Err((key, e)) => {
                self.fail_wait(key, sense_of(e));
                None
            }
        }
    }

    /// A Data-Out PDU that is whole in the buffer.
    #[doc(alias = "data_out_start")]
    fn data_out(&mut self, hdr: &DataOutHdr, data: Option<&RxSlice>, data_ok: bool) {
        let len = data.map_or(0, |d| d.len());
        let Some(accepted) = self.data_out_accept(hdr, len) else {
            return;
        };
        if !data_ok {
            return self.fail_wait(accepted.key, DATA_DIGEST_ERROR);
        }
        if let (Some(d), Some(cmd)) = (data, self.waits.cmd_mut(accepted.key)) {
            let part = d.get(..accepted.len).unwrap_or_default();
            if cmd.sg_mut().copy_from_slice(accepted.at, part).is_err() {
                return self.fail_wait(accepted.key, INCORRECT_AMOUNT_OF_DATA);
            }
        }
        let Segment::DataOut {
            solicited_at,
            is_final,
        } = segment_of(hdr)
        else {
            return;
        };
        match self
            .waits
            .received(accepted.key, accepted.len, solicited_at, is_final)
        {
            Ok(step) => self.after_step(step),
            Err(e) => self.fail_wait(accepted.key, sense_of(e)),
        }
    }

    fn after_step(&mut self, step: Step) {
        match step {
            Step::Wait => {}
            Step::AskMore(key) => {
                self.send_r2ts(key);
                if self.waits.is_starved(key)
                    && let Some(mut cmd) = self.waits.take_cmd(key)
                {
                    cmd.set_busy();
                    self.restart(cmd, RestartStatus::ErrorSenseSet);
                }
            }
            Step::Complete(cmd) => self.restart(cmd, RestartStatus::Success),
            Step::Answer(cmd) => self.answer(cmd),
        }
    }

    /// Fails a command that waits for data.
    fn fail_wait(&mut self, key: WaitKey, s: Sense) {
        if let Some(mut cmd) = self.waits.take_cmd(key) {
            cmd.set_sense(s);
            self.restart(cmd, RestartStatus::ErrorSenseSet);
        }
    }
}

fn sense_of(e: DataError) -> Sense {
    match e {
        DataError::Unexpected => UNEXPECTED_UNSOLICITED_DATA,
        DataError::WrongAmount => INCORRECT_AMOUNT_OF_DATA,
    }
}

/// Makes the first `len` bytes of a received piece the command's data, without copying them.
fn push_part(cmd: &mut Cmd, data: RxSlice, len: usize) -> kshim::error::Result {
    let part = if len == data.len() {
        data
    } else {
        data.slice(0..len)?
    };
    cmd.sg_mut().clear();
    cmd.sg_mut().push_shared(part)
}
