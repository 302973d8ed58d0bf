//! Reading and writing blocks for the core itself: COMPARE AND WRITE and EXTENDED COPY.

use super::Vdisk;
use super::fileio::Inline;
use super::store::{Outcome, Store, read_outcome, write_outcome};
use crate::dev_type::{ExecContext, IoFault};
use crate::sense;
use kshim::error::{Result as IoResult, code};
use kshim::scatterlist::SGTable;

impl From<Outcome> for IoFault {
    fn from(o: Outcome) -> Self {
        match o {
            Outcome::Busy => Self::Busy,
            Outcome::Fault(f) => Self::Sense(f.sense),
        }
    }
}

impl Vdisk {
    fn check_range(&self, pos: u64, len: usize) -> Result<(), IoFault> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        match pos.checked_add(len) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(sense::BLOCK_OUT_RANGE.into()),
        }
    }

    fn ended(
        &self,
        what: &str,
        pos: u64,
        r: IoResult,
        outcome: impl FnOnce(kshim::error::Error) -> Outcome,
    ) -> Result<(), IoFault> {
        r.map_err(|e| {
            if e != code::ENODEV {
                kshim::pr_err_ratelimited!("{}: {what} at {pos} failed: {e}", self.name());
            }
            outcome(e).into()
        })
    }

    /// [`crate::dev_type::DevHandler::read_blocks`].
    pub(super) fn direct_read(
        &self,
        pos: u64,
        sg: &mut SGTable,
        len: usize,
        cx: ExecContext,
    ) -> Result<(), IoFault> {
        self.check_range(pos, len)?;
        let store = self.store();
        let r = match (&*store, cx) {
            (Store::File(f), ExecContext::Atomic) => match f.read_inline(pos, sg, len) {
                Inline::Done(r) => r,
                Inline::WouldBlock => return Err(IoFault::WouldBlock),
            },
            (Store::Block(b), ExecContext::Atomic) => {
                b.read_inline(pos, sg, len).ok_or(IoFault::WouldBlock)?
            }
            (store, _) => store.read(pos, sg, len),
        };
        self.ended("read", pos, r, read_outcome)
    }

    /// [`crate::dev_type::DevHandler::ext_copy_remap`]: between files by the file system, which shares blocks where
    /// it can.
    pub(super) fn remap_from(&self, src: &Self, src_pos: u64, pos: u64, len: u64) -> u64 {
        let (src_store, store) = (src.store(), self.store());
        let (Store::File(from), Store::File(to)) = (&*src_store, &*store) else {
            return 0;
        };
        let fits = |d: &Self, pos: u64| pos.checked_add(len).is_some_and(|e| e <= d.size_bytes());
        if !fits(src, src_pos) || !fits(self, pos) {
            return 0;
        }
        let copied = to.copy_from(from, src_pos, pos, len).unwrap_or(0);
        if copied > 0 && self.is_write_through() && to.flush().is_err() {
            return 0;
        }
        copied
    }

    /// [`crate::dev_type::DevHandler::write_blocks`].
    pub(super) fn direct_write(
        &self,
        pos: u64,
        sg: &mut SGTable,
        len: usize,
        fua: bool,
        cx: ExecContext,
    ) -> Result<(), IoFault> {
        self.check_range(pos, len)?;
        let durable = self.is_write_through() || fua && self.needs_flush();
        let store = self.store();
        let r = match (&*store, cx) {
            (Store::File(_), ExecContext::Atomic) if durable => return Err(IoFault::WouldBlock),
            (Store::File(f), ExecContext::Atomic) => match f.write_inline(pos, sg, len) {
                Inline::Done(r) => r,
                Inline::WouldBlock => return Err(IoFault::WouldBlock),
            },
            (Store::Block(b), ExecContext::Atomic) => b
                .write_inline(pos, sg, len, durable)
                .ok_or(IoFault::WouldBlock)?,
            (store, _) => store.write(pos, sg, len, durable),
        };
        self.ended("write", pos, r, write_outcome)
    }
}
