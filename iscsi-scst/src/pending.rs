//! Requests that are ahead of their turn (RFC 7143 4.2.2.1).
//!
//! On one connection, requests come out of CmdSN order only from initiators that number them in one place and send them
//! in another. They are few and small; still, a hostile one must not make us keep much, so that their data is copied
//! out of the receive buffers and its sum is limited.
//!
//! C source: `iscsi_push_cmnd`, `pending_list` of `iscsi-scst/kernel/iscsi.c`

use crate::conn::CloseReason;
use crate::pdu::hdr::ScsiCmdHdr;
use crate::pdu::{Bhs, Itt, Request};
use crate::sn::CmdSn;
use kshim::error::Result;
use kshim::page::{RxChunk, RxSlice};
use std::collections::BTreeMap;

/// Bytes of requests ahead of their turn that one connection may have. DIFFERS: SCST has no such limit.
pub(crate) const PENDING_MAX: usize = 4 << 20;

/// A whole PDU.
#[derive(Debug)]
pub(crate) struct WholePdu {
    pub(crate) bhs: Bhs,
    pub(crate) ahs: Vec<u8>,
    pub(crate) data: Option<RxSlice>,
    /// The data digest is right, or there is none.
    pub(crate) data_ok: bool,
}

/// A request that waits for its turn.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    pub(crate) pdu: WholePdu,
    /// Unsolicited data that came for it.
    pub(crate) data_out: Vec<WholePdu>,
}

impl PendingRequest {
    fn size(&self) -> usize {
        std::iter::once(&self.pdu)
            .chain(&self.data_out)
            .map(size)
            .fold(0, usize::saturating_add)
    }

    fn command(&self) -> Option<&ScsiCmdHdr> {
        match self.pdu.bhs.request() {
            Request::ScsiCmd(hdr) => Some(hdr),
            _ => None,
        }
    }
}

/// Requests by CmdSN; `None`: one that was aborted, or counts as received.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests {
    by_sn: BTreeMap<u32, Option<PendingRequest>>,
    bytes: usize,
}

fn size(pdu: &WholePdu) -> usize {
    let data = pdu.data.as_ref().map_or(0, |d| d.len());
    data.saturating_add(pdu.ahs.len())
        .saturating_add(size_of::<PendingRequest>())
}

/// A copy that does not keep the receive buffer alive.
fn detach(data: &RxSlice) -> Result<RxSlice> {
    let mut chunk = RxChunk::alloc(data.len())?;
    if let Some(room) = chunk.spare_mut().get_mut(..data.len()) {
        room.copy_from_slice(data);
    }
    chunk.advance(data.len())?;
    chunk.slice(0..data.len())
}

impl PendingRequests {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_sn.is_empty()
    }

    fn keep(&mut self, mut pdu: WholePdu) -> std::result::Result<WholePdu, CloseReason> {
        self.bytes = self.bytes.saturating_add(size(&pdu));
        if self.bytes > PENDING_MAX {
            return Err(CloseReason::Protocol(
                "too many requests ahead of their turn",
            ));
        }
        if let Some(data) = &pdu.data {
            pdu.data = Some(detach(data).map_err(|_| CloseReason::NoMemory)?);
        }
        Ok(pdu)
    }

    /// Keeps a request; a second one with its number is dropped.
    pub(crate) fn insert(
        &mut self,
        sn: CmdSn,
        pdu: WholePdu,
    ) -> std::result::Result<(), CloseReason> {
        if self.by_sn.contains_key(&sn.0) {
            return Ok(());
        }
        let pdu = self.keep(pdu)?;
        self.by_sn.insert(
            sn.0,
            Some(PendingRequest {
                pdu,
                data_out: Vec::new(),
            }),
        );
        Ok(())
    }

    fn sn_of(&self, itt: Itt) -> Option<u32> {
        self.by_sn.iter().find_map(|(sn, r)| {
            let cmd = r.as_ref()?.command()?;
            (cmd.itt() == itt && !cmd.is_final()).then_some(*sn)
        })
    }

    /// Whether unsolicited data of this tag is for a request here.
    pub(crate) fn awaits_data(&self, itt: Itt) -> bool {
        !self.by_sn.is_empty() && self.sn_of(itt).is_some()
    }

    /// Keeps unsolicited data of a request here.
    pub(crate) fn add_data(&mut self, pdu: WholePdu) -> std::result::Result<(), CloseReason> {
        let Some(sn) = self.sn_of(pdu.bhs.itt()) else {
            return Ok(());
        };
        let pdu = self.keep(pdu)?;
        if let Some(Some(request)) = self.by_sn.get_mut(&sn) {
            request.data_out.push(pdu);
        }
        Ok(())
    }

    /// Takes the request with this number, if its turn has come. `Some(None)`: it needs no carrying out.
    pub(crate) fn take(&mut self, sn: CmdSn) -> Option<Option<PendingRequest>> {
        let taken = self.by_sn.remove(&sn.0)?;
        let freed = taken.as_ref().map_or(0, PendingRequest::size);
        self.bytes = self.bytes.saturating_sub(freed);
        Some(taken)
    }

    /// Aborts commands that come before `cmd_sn`. Answers whether there were any.
    pub(crate) fn abort(&mut self, cmd_sn: CmdSn, wanted: impl Fn(&ScsiCmdHdr) -> bool) -> bool {
        let mut found = false;
        for (sn, slot) in &mut self.by_sn {
            let before = CmdSn(*sn).precedes(cmd_sn);
            let hit = slot
                .as_ref()
                .and_then(PendingRequest::command)
                .is_some_and(&wanted);
            if before && hit {
                let freed = slot.take().map_or(0, |r| r.size());
                self.bytes = self.bytes.saturating_sub(freed);
                found = true;
            }
        }
        found
    }

    /// Whether there are commands that come before `cmd_sn`.
    pub(crate) fn has(&self, cmd_sn: CmdSn, wanted: impl Fn(&ScsiCmdHdr) -> bool) -> bool {
        self.by_sn.iter().any(|(sn, slot)| {
            let command = slot.as_ref().and_then(PendingRequest::command);
            CmdSn(*sn).precedes(cmd_sn) && command.is_some_and(&wanted)
        })
    }

    /// The request with this number will not come.
    pub(crate) fn consider_received(&mut self, sn: CmdSn) {
        self.by_sn.entry(sn.0).or_insert(None);
    }

    pub(crate) fn clear(&mut self) {
        self.by_sn.clear();
        self.bytes = 0;
    }
}
