//! The Data-In PDUs of a large read, made as they are sent.
//!
//! A read of 64 MiB for an initiator that takes segments of 512 bytes has 131072 PDUs, each with its digest: made in one go they
//! would keep the reactor from its other connections for long, and take megabytes.

use super::TxPdu;
use crate::pdu::hdr::DataInHdr;
use crate::pdu::{BHS_LEN, DIGEST_LEN, Digests, flags, pad_len};
use crate::sn::DataSn;

/// The PDUs of one command that are still to be made.
#[derive(Debug)]
pub(crate) struct DataInSeq {
    /// Header of all but the last.
    pub(crate) hdr: DataInHdr,
    /// Header of the last, with the status.
    pub(crate) last: DataInHdr,
    /// Bytes of data.
    pub(crate) len: usize,
    /// Largest segment, and largest burst: the last PDU of each burst has F.
    pub(crate) seg: usize,
    pub(crate) burst_max: usize,
    /// The data may change before it is sent: a PDU with a digest takes a copy along.
    pub(crate) copy: bool,
    /// How far they are made.
    pub(crate) at: usize,
    pub(crate) burst: usize,
    pub(crate) data_sn: DataSn,
}

impl DataInSeq {
    /// Bytes on the wire of all that is to be made.
    pub(crate) fn wire_len(&self, digests: Digests) -> usize {
        let left = self.len.saturating_sub(self.at);
        let first = left.min(self.burst_max.saturating_sub(self.burst));
        let rest = left.saturating_sub(first);
        let bursts = rest.checked_div(self.burst_max).unwrap_or(0);
        let tail = rest.checked_rem(self.burst_max).unwrap_or(0);
        self.stretch(first, digests)
            .saturating_add(self.stretch(self.burst_max, digests).saturating_mul(bursts))
            .saturating_add(self.stretch(tail, digests))
    }

    /// Bytes on the wire of a stretch of data that begins with a PDU and ends with one.
    fn stretch(&self, len: usize, digests: Digests) -> usize {
        let seg = self.seg.max(1);
        let whole = len.checked_div(seg).unwrap_or(0);
        let tail = len.checked_rem(seg).unwrap_or(0);
        let pdus = whole.saturating_add(usize::from(tail != 0));
        let digest = |on| if on { DIGEST_LEN } else { 0 };
        let each = BHS_LEN
            .saturating_add(digest(digests.header))
            .saturating_add(digest(digests.data));
        let pads = pad_len(seg)
            .saturating_mul(whole)
            .saturating_add(pad_len(tail));
        pdus.saturating_mul(each)
            .saturating_add(len)
            .saturating_add(pads)
    }

    /// Whether all are made.
    pub(crate) fn is_done(&self) -> bool {
        self.at >= self.len
    }
}

impl Iterator for DataInSeq {
    type Item = TxPdu;

    fn next(&mut self) -> Option<TxPdu> {
        let left = self.len.checked_sub(self.at).filter(|left| *left != 0)?;
        let room = self.burst_max.saturating_sub(self.burst);
        let n = self.seg.min(left).min(room).max(1);
        let mut hdr = if n == left { self.last } else { self.hdr };
        hdr.data_sn = self.data_sn.into();
        hdr.buffer_offset = u32::try_from(self.at).unwrap_or(u32::MAX).into();
        hdr.set_data_len(u32::try_from(n).unwrap_or(0));
        self.burst = self.burst.saturating_add(n);
        if self.burst >= self.burst_max {
            hdr.flags |= flags::FINAL;
            self.burst = 0;
        }
        let pdu = TxPdu::new(&hdr, self.at, n);
        self.at = self.at.saturating_add(n);
        self.data_sn = self.data_sn.next();
        Some(pdu)
    }
}
