//! The receive side of full feature phase: PDUs are cut from the receive buffer and handed to [`Ffp`].
//!
//! One receive call brings many PDUs; all of them are processed before the answers leave together. Data of a large
//! write is received straight into the command's pages: its command is started when the header is there, and
//! [`RxState::Data`] takes the rest of the PDU.
//!
//! Readiness is edge-triggered: what an event said is kept in [`SockReady`] until a receive call has seen the end of what
//! was there, so that nothing is forgotten while receiving has to wait (for a parked command, for the peer to read).
//!
//! C source: `iscsi-scst/kernel/nthread.c` (`process_read_io`), `iscsi.c` (`cmnd_rx_start`, `cmnd_rx_end`)

use crate::conn::{CloseReason, Conn, ConnShared, Phase};
use crate::data_out::{Accepted, WaitKey};
use crate::ffp::{Ffp, Handed};
use crate::pdu::{BHS_LEN, Bhs, DIGEST_LEN, PduLayout, RejectReason, Request, opcode};
use crate::pending::WholePdu;
use crate::requests::ParkedPdu;
use kshim::crypto;
use kshim::error::code;
use kshim::net::RxBuf;
use kshim::reactor::{Cx, Ready};
use scst_core::cmd::Cmd;

/// PDUs of one connection carried out in one round; then others get their turn.
const MAX_PDUS_PER_ROUND: u32 = 512;
/// What sending in the middle of a round counts there, in PDUs: half a MiB or more has gone out, which takes as long.
const PDUS_PER_SEND: u32 = 64;
/// Bytes of one connection received in one round.
const MAX_BYTES_PER_ROUND: usize = 4 << 20;
/// A data segment from this length on is received straight into the command's pages unless it is there already.
const STREAM_MIN: usize = 16 << 10;

type Closing<T = ()> = Result<T, CloseReason>;

/// What is known of the socket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SockReady {
    /// There may be something to receive.
    readable: bool,
    /// The peer has closed its side: receiving goes on until the end of file is seen.
    ended: bool,
}

impl SockReady {
    /// Notes an event.
    pub(crate) fn note(&mut self, ev: Ready) {
        self.readable |= ev.contains(Ready::READ);
        self.ended |= ev.contains(Ready::RDHUP);
    }
}

/// Where the rest of a data segment goes that is received into a command's pages.
#[derive(Debug)]
pub(crate) struct DataState {
    bhs: Bhs,
    segment: Segment,
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
    crc: Crc,
}

/// The data digest of a segment, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crc {
    /// The command's part is not there yet.
    Pending,
    /// CRC so far.
    Known(u32),
    /// Nothing is to be checked: no digest, or the data is swallowed and its command fails already or is gone.
    Unchecked,
}

/// Which PDU a data segment belongs to. `None`: its data is dropped.
#[derive(Clone, Copy, Debug)]
enum Segment {
    Immediate(Option<WaitKey>),
    DataOut(Option<Accepted>),
}

impl DataState {
    fn new(bhs: &Bhs, layout: &PduLayout, segment: Segment, begin: usize, take: usize) -> Self {
        let take = take.min(layout.data_len);
        Self {
            bhs: *bhs,
            segment,
            begin,
            take,
            done: 0,
            excess: layout.data_len.saturating_sub(take),
            trailer: trailer_len(layout),
            pad: layout.pad_len,
            crc: Crc::Pending,
        }
    }

    /// The command's part of the segment is there.
    fn begin_crc(&mut self, ffp: &mut Ffp) {
        if self.crc != Crc::Pending {
            return;
        }
        let cmd = self.key().and_then(|k| ffp.waits.cmd_mut(k));
        self.crc = match cmd {
            Some(cmd) if ffp.params.data_digest => {
                let crc = cmd.sg().crc32c(self.begin, self.take, 0);
                crc.map_or(Crc::Unchecked, Crc::Known)
            }
            _ => Crc::Unchecked,
        };
    }

    /// Drops what is beyond the command's part.
    fn drop_excess(&mut self, rx: &mut RxBuf) {
        let n = rx.len().min(self.excess);
        if let (Crc::Known(crc), Some(part)) = (self.crc, rx.data().get(..n)) {
            self.crc = Crc::Known(crypto::crc32c_append(crc, part));
        }
        rx.consume(n);
        self.excess = self.excess.saturating_sub(n);
    }

    /// `tail`: padding and digest.
    fn digest_ok(&self, tail: &[u8]) -> bool {
        let Crc::Known(crc) = self.crc else {
            return true;
        };
        let end = self.pad.saturating_add(DIGEST_LEN);
        let (Some(padding), Some(digest)) = (tail.get(..self.pad), tail.get(self.pad..end)) else {
            return false;
        };
        crypto::crc32c_append(crc, padding).to_le_bytes() == digest
    }

    fn key(&self) -> Option<WaitKey> {
        match self.segment {
            Segment::Immediate(key) => key,
            Segment::DataOut(pdu) => pdu.map(|p| p.key),
        }
    }
}

/// Padding and data digest of a PDU.
fn trailer_len(layout: &PduLayout) -> usize {
    layout
        .total
        .saturating_sub(layout.data_at)
        .saturating_sub(layout.data_len)
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
    /// The layout: its data segment is still to be received.
    Parked(Box<(ParkedPdu, Option<PduLayout>)>),
}

impl RxState {
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self, Self::Parked(_))
    }
}

impl Conn {
    /// Processes, answers and receives until nothing is left to do or the round's share is used up.
    pub(crate) fn receive(&mut self, cx: &mut Cx<'_>) -> Closing {
        let mut pdus = MAX_PDUS_PER_ROUND;
        let mut bytes = MAX_BYTES_PER_ROUND;
        if let Phase::Full(ffp) = &mut self.phase {
            ffp.waits.set_now(cx.now());
        }
        loop {
            self.process_buffered(cx, &mut pdus)?;
            self.flush(cx)?;
            if self.rx_must_wait() {
                self.note_parked(cx);
                return Ok(());
            }
            if pdus == 0 || bytes == 0 {
                cx.reschedule(cx.token());
                return Ok(());
            }
            if !self.sock_ready.readable {
                self.quiesce();
                return Ok(());
            }
            match self.recv_some() {
                Ok((0, _)) => return Err(CloseReason::Eof),
                Ok((n, all)) => {
                    bytes = bytes.saturating_sub(n);
                    self.note_rx(cx.now());
                    // After the peer's end of file the zero has to be seen.
                    self.sock_ready.readable = !all || self.sock_ready.ended;
                }
                Err(e) if e == code::EAGAIN => self.sock_ready.readable = false,
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
            && data.done < data.take
            && let Some(cmd) = data.key().and_then(|k| ffp.waits.cmd_mut(k))
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
        self.unpark();
        while *pdus != 0 && !self.rx_must_wait() {
            let more = match &self.phase {
                Phase::Login(_) => self.process_login_pdu(cx)?,
                Phase::Full(_) => self.process_ffp_pdu()?,
                Phase::Creating(_) | Phase::Draining(_) | Phase::Leaving => false,
            };
            if !more {
                break;
            }
            *pdus = pdus.saturating_sub(1);
            if let Phase::Full(ffp) = &self.phase
                && ffp.tx.is_hot()
            {
                self.flush(cx)?;
                *pdus = pdus.saturating_sub(PDUS_PER_SEND);
            }
        }
        Ok(())
    }

    /// A parked command that has come back goes on here.
    fn unpark(&mut self) {
        let Phase::Full(ffp) = &mut self.phase else {
            return;
        };
        if !self.rx_state.is_parked() {
            return;
        }
        let handed = ffp.take_handed();
        if matches!(handed, Handed::Parked) {
            return;
        }
        let RxState::Parked(parked) = std::mem::take(&mut self.rx_state) else {
            return;
        };
        let (pdu, stream) = *parked;
        let Request::ScsiCmd(hdr) = pdu.bhs.request() else {
            return;
        };
        match stream {
            Some(layout) => {
                let key = ffp.begin_immediate(hdr, handed, layout.data_len);
                self.rx_state = RxState::Data(immediate_segment(ffp, &pdu.bhs, &layout, key));
            }
            None => {
                ffp.command_handed(hdr, handed, pdu.data, pdu.data_ok);
                ffp.late_data_out(pdu.data_out);
            }
        }
    }

    /// Processes the next PDU, or the next part of a data segment. Answers whether there was one.
    fn process_ffp_pdu(&mut self) -> Closing<bool> {
        if let RxState::Data(_) = &self.rx_state {
            return Ok(self.process_segment());
        }
        let Phase::Full(ffp) = &mut self.phase else {
            return Ok(false);
        };
        if !ffp.pending.is_empty() {
            let (ran, parked) = ffp.run_pending();
            if ran {
                self.park(parked);
                return Ok(true);
            }
        }
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
        if digests.header && !header_digest_ok(buf, &layout) {
            return Err(CloseReason::Protocol("header digest error"));
        }
        if have < layout.total {
            let streams = matches!(bhs.opcode(), opcode::SCSI_CMD | opcode::DATA_OUT);
            if layout.data_len < STREAM_MIN || !streams || !ffp.may_run_now(&bhs) {
                let missing = layout.total.saturating_sub(have);
                self.rx
                    .reserve(missing)
                    .map_err(|_| CloseReason::NoMemory)?;
                return Ok(false);
            }
            trace_pdu(&self.shared, &bhs);
            self.begin_segment(&bhs, &layout);
            return Ok(true);
        }
        trace_pdu(&self.shared, &bhs);
        self.whole_pdu(&bhs, &layout)?;
        Ok(true)
    }

    /// Takes a PDU that is whole in the buffer.
    #[inline]
    fn whole_pdu(&mut self, bhs: &Bhs, layout: &PduLayout) -> Closing {
        let Phase::Full(ffp) = &mut self.phase else {
            return Ok(());
        };
        let ahs = ahs_of(self.rx.data(), layout).to_vec();
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
        let data_ok = match &data {
            Some(d) if ffp.params.data_digest => data_digest_ok(d, self.rx.data(), layout.pad_len),
            _ => true,
        };
        self.rx.consume(trailer_len(layout));
        let parked = ffp.pdu(WholePdu {
            bhs: *bhs,
            ahs,
            data,
            data_ok,
        });
        self.park(parked);
        if let Request::NopOut(hdr) = bhs.request()
            && let Some(ttt) = hdr.answers()
        {
            self.ping_answered(ttt);
        }
        Ok(())
    }

    fn park(&mut self, parked: Option<ParkedPdu>) {
        if let Some(pdu) = parked {
            self.rx_state = RxState::Parked(Box::new((pdu, None)));
        }
    }

    /// Starts a command whose data segment is only partly there, or finds the one that a Data-Out belongs to, and lets
    /// the segment be received into its pages.
    fn begin_segment(&mut self, bhs: &Bhs, layout: &PduLayout) {
        let Phase::Full(ffp) = &mut self.phase else {
            return;
        };
        self.rx_state = match bhs.request() {
            Request::DataOut(hdr) => {
                let pdu = ffp.begin_data_out(hdr, layout.data_len);
                let (begin, take) = pdu.map_or((0, 0), |p| (p.at, p.len));
                RxState::Data(DataState::new(
                    bhs,
                    layout,
                    Segment::DataOut(pdu),
                    begin,
                    take,
                ))
            }
            Request::ScsiCmd(hdr) => {
                let ahs = ahs_of(self.rx.data(), layout);
                match ffp.begin_streamed(bhs, hdr, ahs) {
                    Some(Handed::Parked) => {
                        let (data, data_out) = (None, Vec::new());
                        let pdu = ParkedPdu {
                            bhs: *bhs,
                            data,
                            data_ok: true,
                            data_out,
                        };
                        RxState::Parked(Box::new((pdu, Some(*layout))))
                    }
                    handed => {
                        let key = handed.and_then(|h| ffp.begin_immediate(hdr, h, layout.data_len));
                        RxState::Data(immediate_segment(ffp, bhs, layout, key))
                    }
                }
            }
            _ => RxState::Data(DataState::new(bhs, layout, Segment::Immediate(None), 0, 0)),
        };
        self.rx.consume(layout.data_at);
    }

    /// Takes what has arrived of a data segment. Answers whether the segment is complete.
    fn process_segment(&mut self) -> bool {
        let (RxState::Data(data), Phase::Full(ffp)) = (&mut self.rx_state, &mut self.phase) else {
            return false;
        };
        if data.done < data.take {
            let part = self.rx.data();
            let n = part.len().min(data.take.saturating_sub(data.done));
            if let (Some(key), Some(part)) = (data.key(), part.get(..n)) {
                ffp.copy_in(key, data.begin.saturating_add(data.done), part);
            }
            self.rx.consume(n);
            data.done = data.done.saturating_add(n);
            if data.done < data.take {
                return false;
            }
        }
        data.begin_crc(ffp);
        data.drop_excess(&mut self.rx);
        if data.excess != 0 || self.rx.len() < data.trailer {
            return false;
        }
        let RxState::Data(data) = std::mem::take(&mut self.rx_state) else {
            return false;
        };
        let ok = data.digest_ok(self.rx.data());
        self.rx.consume(data.trailer);
        match data.segment {
            Segment::Immediate(Some(key)) => ffp.end_immediate(key, ok),
            Segment::DataOut(Some(pdu)) => ffp.end_data_out(&data.bhs, &pdu, ok),
            Segment::Immediate(None) | Segment::DataOut(None) => {}
        }
        true
    }
}

/// The receive state for the data segment of a command.
fn immediate_segment(
    ffp: &mut Ffp,
    bhs: &Bhs,
    layout: &PduLayout,
    key: Option<WaitKey>,
) -> DataState {
    let cmd = key.and_then(|k| ffp.waits.cmd_mut(k));
    let take = cmd.map_or(0, |c| {
        usize::try_from(Cmd::write_len(c)).unwrap_or(usize::MAX)
    });
    DataState::new(bhs, layout, Segment::Immediate(key), 0, take)
}

fn ahs_of<'a>(buf: &'a [u8], layout: &PduLayout) -> &'a [u8] {
    buf.get(BHS_LEN..BHS_LEN.saturating_add(layout.ahs_len))
        .unwrap_or_default()
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

/// For `trace_level`.
#[inline]
fn trace_pdu(conn: &ConnShared, bhs: &Bhs) {
    if kshim::print::traces() {
        trace_pdu_slow(conn, bhs);
    }
}

#[cold]
fn trace_pdu_slow(conn: &ConnShared, bhs: &Bhs) {
    let (peer, opcode, len) = (conn.peer, bhs.opcode(), bhs.data_len());
    kshim::pr_trace!("{peer}: PDU {opcode:#04x}, {len} bytes of data");
}
