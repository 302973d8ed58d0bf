//! The send side of a connection: responses queue here and leave together, in one system call for a batch.
//!
//! A response keeps what its PDUs refer to (the command with its data buffer, or bytes of its own) until the last byte
//! is in the socket; then its command comes back through [`TxQueue::take_sent`] to be finished.
//!
//! C source: `iscsi-scst/kernel/nthread.c` (`iscsi_do_send` and below)

use crate::pdu::{BHS_LEN, DIGEST_LEN, Digests, Header, pad_len};
use crate::tx::seq::DataInSeq;
use kshim::crypto;
use kshim::error::{Result, code};
use kshim::net::{IoPart, Socket};
use scst_core::cmd::Cmd;
use std::collections::VecDeque;

pub(crate) mod seq;

/// Bytes queued on one connection beyond which nothing more is read from it until the queue drains.
pub(crate) const TX_BACKLOG_MAX: usize = 8 << 20;
/// Responses queued on one connection beyond which nothing more is read from it: each costs more than its bytes.
pub(crate) const TX_QUEUE_MAX: usize = 8192;
/// Bytes queued in the login phase and in discovery beyond which nothing more is read.
pub(crate) const LOGIN_BACKLOG_MAX: usize = 64 << 10;

/// Data of a large read that is made ready in one go: PDUs and digests.
const READY_BYTES: usize = 1 << 20;
/// PDUs of a large read that are made ready in one go.
const READY_PDUS: usize = 256;
/// Bytes sent in one go; then others get their turn.
const FLUSH_MAX: usize = 4 << 20;

/// Copied data queued on one connection that leaves before more requests are carried out. The copy was made into the
/// CPU's cache and the socket copies it on from there: with more of it, the first is out of the cache when the last is
/// read. Less sends too often: each send wakes the peer.
const HOT_MAX: usize = 512 << 10;
/// Responses below this size do not count as hot: small ones leave together, however many there are.
const HOT_MIN: usize = 16 << 10;

static ZEROES: [u8; 4] = [0; 4];

/// Commands: each is a token that moves between lists, so that it stays in its box.
pub(crate) type Cmds = Vec<Box<Cmd>>;

/// One PDU of a response: its header and which part of the response's data it carries.
#[derive(Debug)]
pub(crate) struct TxPdu {
    hdr: [u8; BHS_LEN],
    header_digest: Option<[u8; DIGEST_LEN]>,
    at: usize,
    len: usize,
    data_digest: Option<[u8; DIGEST_LEN]>,
    /// Its data, if that may not come from the response.
    own: Option<Box<[u8]>>,
}

impl TxPdu {
    /// A PDU that carries `len` bytes of the response's data from `at` on.
    pub(crate) fn new<H: Header>(hdr: &H, at: usize, len: usize) -> Self {
        let mut bytes = [0; BHS_LEN];
        hdr.encode(&mut bytes);
        Self {
            hdr: bytes,
            header_digest: None,
            at,
            len,
            data_digest: None,
            own: None,
        }
    }

    pub(crate) fn from_bhs(hdr: [u8; BHS_LEN], len: usize) -> Self {
        Self {
            hdr,
            header_digest: None,
            at: 0,
            len,
            data_digest: None,
            own: None,
        }
    }

    fn wire_len(&self) -> usize {
        let digests = [&self.header_digest, &self.data_digest];
        let digests = digests
            .iter()
            .filter(|d| d.is_some())
            .count()
            .saturating_mul(DIGEST_LEN);
        BHS_LEN
            .saturating_add(self.len)
            .saturating_add(pad_len(self.len))
            .saturating_add(digests)
    }
}

impl TxPdu {
    /// Computes its digests. Errors: EINVAL, and those of reading the data.
    fn seal(&mut self, digests: Digests, data: &TxData, cmd: Option<&Cmd>) -> Result {
        if digests.header {
            self.header_digest = Some(crypto::crc32c(&self.hdr).to_le_bytes());
        }
        if !digests.data || self.len == 0 {
            return Ok(());
        }
        let crc = match (&self.own, data, cmd) {
            (Some(own), ..) => crypto::crc32c(own),
            (None, TxData::Bytes(b), _) => {
                let part = b.get(self.at..self.at.saturating_add(self.len));
                crypto::crc32c(part.ok_or(code::EINVAL)?)
            }
            (None, TxData::Cmd, Some(cmd)) => cmd.sg().crc32c(self.at, self.len, 0)?,
            _ => return Err(code::EINVAL),
        };
        let pad = ZEROES.get(..pad_len(self.len)).unwrap_or_default();
        self.data_digest = Some(crypto::crc32c_append(crc, pad).to_le_bytes());
        Ok(())
    }
}

/// What a response's PDUs take their data from.
#[derive(Debug, Default)]
pub(crate) enum TxData {
    /// None of them has data.
    #[default]
    None,
    /// The data buffer of the response's command.
    Cmd,
    /// These bytes (sense data, text, an echo).
    Bytes(Vec<u8>),
}

/// A response: one PDU, or several Data-In PDUs, or Data-In PDUs and a SCSI Response.
#[derive(Debug)]
pub(crate) struct TxResp {
    /// PDUs that are ready and not sent whole.
    first: Option<TxPdu>,
    rest: VecDeque<TxPdu>,
    /// PDUs that come after them and are not made yet.
    more: Option<Box<DataInSeq>>,
    data: TxData,
    cmd: Option<Box<Cmd>>,
    /// Bytes on the wire of all these.
    wire_len: usize,
}

impl TxResp {
    pub(crate) fn new(pdu: TxPdu, data: TxData) -> Self {
        Self {
            first: Some(pdu),
            rest: VecDeque::new(),
            more: None,
            data,
            cmd: None,
            wire_len: 0,
        }
    }

    pub(crate) fn with_cmd(pdu: TxPdu, data: TxData, cmd: Box<Cmd>) -> Self {
        Self {
            cmd: Some(cmd),
            ..Self::new(pdu, data)
        }
    }

    /// Data-In PDUs with the data of `cmd`.
    pub(crate) fn with_seq(seq: DataInSeq, cmd: Box<Cmd>) -> Self {
        Self {
            first: None,
            rest: VecDeque::new(),
            more: Some(Box::new(seq)),
            data: TxData::Cmd,
            cmd: Some(cmd),
            wire_len: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn push(&mut self, pdu: TxPdu) {
        self.rest.push_back(pdu);
    }

    fn pdus(&self) -> impl Iterator<Item = &TxPdu> {
        self.first.iter().chain(&self.rest)
    }

    /// Computes digests, while the data is hot, and the length on the wire.
    fn seal(&mut self, digests: Digests) -> Result {
        let Self {
            first,
            rest,
            data,
            cmd,
            ..
        } = self;
        if digests.header || digests.data {
            for pdu in first.iter_mut().chain(rest) {
                pdu.seal(digests, data, cmd.as_deref())?;
            }
        }
        self.wire_len = self
            .pdus()
            .map(TxPdu::wire_len)
            .fold(0, usize::saturating_add);
        if let Some(seq) = &self.more {
            self.wire_len = self.wire_len.saturating_add(seq.wire_len(digests));
        }
        Ok(())
    }

    /// Whether its data is sent from where it lies on the device.
    fn is_lent(&self) -> bool {
        self.cmd.as_ref().is_some_and(|c| c.sg().has_lent())
    }

    /// Makes the next PDUs, when none is ready.
    #[inline]
    fn make_ready(&mut self, digests: Digests) -> Result {
        if self.more.is_some() && self.first.is_none() && self.rest.is_empty() {
            return self.make_more(digests);
        }
        Ok(())
    }

    #[cold]
    fn make_more(&mut self, digests: Digests) -> Result {
        let Some(mut seq) = self.more.take() else {
            return Ok(());
        };
        let cmd = self.cmd.as_deref().ok_or(code::EINVAL)?;
        let mut bytes = 0usize;
        while bytes < READY_BYTES
            && self.rest.len() < READY_PDUS
            && let Some(mut pdu) = seq.next()
        {
            bytes = bytes.saturating_add(pdu.len);
            if seq.copy && digests.data {
                let mut own = vec![0; pdu.len].into_boxed_slice();
                cmd.sg().copy_to_slice(pdu.at, &mut own)?;
                pdu.own = Some(own);
            }
            pdu.seal(digests, &self.data, Some(cmd))?;
            self.rest.push_back(pdu);
        }
        if !seq.is_done() {
            self.more = Some(seq);
        }
        Ok(())
    }

    /// Takes off the ready PDUs that are within the first `sent` bytes. Answers how many bytes are left of these.
    fn take_sent_pdus(&mut self, mut sent: usize) -> usize {
        loop {
            let Some(len) = self.pdus().next().map(TxPdu::wire_len) else {
                break;
            };
            let Some(over) = sent.checked_sub(len) else {
                break;
            };
            sent = over;
            self.wire_len = self.wire_len.saturating_sub(len);
            if self.first.take().is_none() {
                self.rest.pop_front();
            }
        }
        sent
    }

    fn data_part<'a>(&'a self, pdu: &'a TxPdu) -> Option<IoPart<'a>> {
        if let Some(own) = &pdu.own {
            return Some(IoPart::Bytes(own));
        }
        match (&self.data, &self.cmd) {
            (TxData::Cmd, Some(cmd)) => Some(IoPart::Sg(cmd.sg(), pdu.at, pdu.len)),
            (TxData::Bytes(b), _) => b
                .get(pdu.at..pdu.at.saturating_add(pdu.len))
                .map(IoPart::Bytes),
            _ => None,
        }
    }

    fn parts(&self) -> impl Iterator<Item = IoPart<'_>> {
        self.pdus().flat_map(move |pdu| {
            let has_data = pdu.len != 0;
            let pad = ZEROES.get(..pad_len(pdu.len)).filter(|p| !p.is_empty());
            [
                Some(IoPart::Bytes(&pdu.hdr)),
                pdu.header_digest.as_ref().map(|d| IoPart::Bytes(d)),
                if has_data { self.data_part(pdu) } else { None },
                pad.map(IoPart::Bytes),
                pdu.data_digest.as_ref().map(|d| IoPart::Bytes(d)),
            ]
            .into_iter()
            .flatten()
        })
    }
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything is in the socket.
    All,
    /// The socket is full.
    Blocked,
    /// As much as one connection may send before others get their turn.
    Share,
}

/// Responses to send, in order.
#[doc(alias = "write_list")]
#[derive(Debug, Default)]
pub(crate) struct TxQueue {
    queue: VecDeque<TxResp>,
    /// Bytes of the first response that are sent.
    head_sent: usize,
    /// Bytes queued and not sent.
    backlog: usize,
    /// Bytes queued since the last flush in large responses whose data was just copied.
    hot: usize,
    digests: Digests,
    sent: Cmds,
    responses_sent: u32,
}

impl TxQueue {
    /// From the next response on, PDUs carry these digests.
    pub(crate) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Queues a response. On an error (the data cannot be read for its digest) its command comes back.
    pub(crate) fn push(&mut self, mut resp: TxResp) -> Result<(), Option<Box<Cmd>>> {
        if let Err(e) = resp.seal(self.digests) {
            kshim::pr_err!("Response cannot be built: {e}");
            return Err(resp.cmd);
        }
        self.backlog = self.backlog.saturating_add(resp.wire_len);
        if resp.wire_len >= HOT_MIN && !resp.is_lent() {
            self.hot = self.hot.saturating_add(resp.wire_len);
        }
        self.queue.push_back(resp);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the peer reads so slowly that nothing more should be read from it.
    pub(crate) fn is_clogged(&self) -> bool {
        self.backlog > TX_BACKLOG_MAX || self.queue.len() > TX_QUEUE_MAX
    }

    /// Whether what is queued should leave now, before more is read into other buffers: see [`HOT_MAX`].
    #[inline]
    pub(crate) fn is_hot(&self) -> bool {
        self.hot >= HOT_MAX
    }

    /// As [`TxQueue::is_clogged`], for a peer that is not logged in.
    pub(crate) fn is_clogged_for_login(&self) -> bool {
        self.backlog > LOGIN_BACKLOG_MAX
    }

    /// Sends as much as the socket takes, up to a round's share. Errors: those of the socket; the connection is dead then, but
    /// what was sent before still comes from [`TxQueue::take_sent`].
    pub(crate) fn flush(&mut self, sock: &Socket) -> Result<Flushed> {
        self.hot = 0;
        let mut share = FLUSH_MAX;
        while let Some(head) = self.queue.front_mut() {
            if share == 0 {
                return Ok(Flushed::Share);
            }
            head.make_ready(self.digests)?;
            let sent = {
                // Up to the first response of which more is to come, and that.
                let mut whole = true;
                let ready = self
                    .queue
                    .iter()
                    .take_while(|r| std::mem::replace(&mut whole, r.more.is_none()));
                let mut parts = ready.flat_map(TxResp::parts);
                sock.send_iter(&mut parts, self.head_sent, false)
            };
            match sent {
                Ok(0) => return Err(code::EPIPE),
                Ok(n) => {
                    self.advance(n);
                    share = share.saturating_sub(n);
                }
                Err(e) if e == code::EAGAIN => return Ok(Flushed::Blocked),
                Err(e) => return Err(e),
            }
        }
        Ok(Flushed::All)
    }

    fn advance(&mut self, n: usize) {
        self.backlog = self.backlog.saturating_sub(n);
        self.head_sent = self.head_sent.saturating_add(n);
        while let Some(head) = self.queue.front_mut() {
            let Some(over) = self.head_sent.checked_sub(head.wire_len) else {
                self.head_sent = head.take_sent_pdus(self.head_sent);
                break;
            };
            self.head_sent = over;
            self.responses_sent = self.responses_sent.wrapping_add(1);
            if let Some(resp) = self.queue.pop_front()
                && let Some(cmd) = resp.cmd
            {
                self.sent.push(cmd);
            }
        }
    }

    /// How many responses went out whole, modulo 2^32.
    pub(crate) fn responses_sent(&self) -> u32 {
        self.responses_sent
    }

    /// Commands whose responses are sent, to be finished. The vector goes back with [`TxQueue::reuse`].
    pub(crate) fn take_sent(&mut self) -> Cmds {
        std::mem::take(&mut self.sent)
    }

    /// Gives the emptied vector of [`TxQueue::take_sent`] back, so that steady state allocates nothing.
    pub(crate) fn reuse(&mut self, mut empty: Cmds) {
        empty.clear();
        if self.sent.is_empty() {
            self.sent = empty;
        }
    }

    /// The connection is dead: the commands of what was not sent.
    pub(crate) fn take_unsent(&mut self) -> Cmds {
        self.backlog = 0;
        self.head_sent = 0;
        self.queue.drain(..).filter_map(|r| r.cmd).collect()
    }

    /// Gives memory back that a burst made the queue keep.
    pub(crate) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue.shrink_to_fit();
            self.sent.shrink_to_fit();
        }
    }
}

#[cfg(test)]
#[path = "tx/tests.rs"]
mod tests;
