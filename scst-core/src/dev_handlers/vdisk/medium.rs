//! Commands that may sleep: durable writes, VERIFY, WRITE AND VERIFY, WRITE SAME, UNMAP, ORWRITE.
//!
//! They work in steps of bounded memory, and look between steps whether task management wants the command gone.
//!
//! C source: `vdev_verify`, `vdisk_exec_write_same`, `vdisk_exec_unmap` of `scst/src/dev_handlers/scst_vdisk.c`,
//! `scst_write_same` of `scst/src/scst_lib.c`

use super::reply::Fault;
use super::store::{Outcome, Store, read_outcome, write_outcome};
use super::unmap::{self, Range};
use crate::cdb::bytes::u8_at;
use crate::sense;
use kshim::error::code;
use kshim::scatterlist::SGTable;

/// Bytes read at a time by VERIFY.
const VERIFY_STEP: usize = 256 * 1024;
/// Bytes written at a time by WRITE SAME.
#[doc(alias = "SCST_MAX_EACH_INTERNAL_IO_SIZE")]
const WRITE_SAME_STEP: usize = 128 * 1024;
/// Bytes unmapped at a time, so that an abort need not wait for a whole device.
const UNMAP_STEP: u64 = 64 * 1024 * 1024;

/// Bytes read and written at a time by ORWRITE.
const OR_WRITE_STEP: usize = 256 * 1024;

const ANCHOR: u8 = 0x10;
const UNMAP_BIT: u8 = 0x08;
const PBDATA_LBDATA: u8 = 0x06;

/// What the medium commands need to know of the device and of the command that runs.
pub(super) struct Medium<'a> {
    pub(super) store: &'a Store,
    pub(super) block_shift: u8,
    pub(super) nblocks: u64,
    pub(super) thin_provisioned: bool,
    pub(super) max_write_same_len: u64,
    pub(super) unmap_max_lba_cnt: u32,
    /// What is written has to be durable when the command ends.
    pub(super) durable: bool,
    /// A flush has to come before data can be verified.
    pub(super) needs_flush: bool,
    /// Whether task management wants the command gone.
    pub(super) aborted: &'a dyn Fn() -> bool,
}

impl Medium<'_> {
    /// Reads a range and, if there is data to compare with, compares. An aborted command ends early; its result does
    /// not count.
    pub(super) fn verify(&self, pos: u64, len: u64, data: Option<&SGTable>) -> Result<(), Outcome> {
        if matches!(self.store, Store::Null) {
            return Ok(());
        }
        if self.needs_flush {
            self.store.flush().map_err(write_outcome)?;
        }
        let len = data.map_or(len, |d| len.min(to_u64(d.len())));
        let step = usize::try_from(len).unwrap_or(VERIFY_STEP).min(VERIFY_STEP);
        let mut buf = SGTable::alloc(step).map_err(read_outcome)?;
        let mut done = 0u64;
        while done < len && !(self.aborted)() {
            let n = step.min(usize::try_from(len.saturating_sub(done)).unwrap_or(step));
            self.store
                .read(pos.saturating_add(done), &mut buf, n)
                .map_err(read_outcome)?;
            if let Some(data) = data {
                let at = usize::try_from(done).map_err(|_| sense::INTERNAL_FAILURE)?;
                match data.compare_sg(at, &buf, 0, n) {
                    Ok(None) => {}
                    Ok(Some(_)) => return Err(sense::MISCOMPARE.into()),
                    Err(_) => return Err(sense::INTERNAL_FAILURE.into()),
                }
            }
            done = done.saturating_add(to_u64(n));
        }
        Ok(())
    }

    /// WRITE SAME(10) and (16). `data` is the block to write; `len_off` is where the CDB has the number of blocks.
    pub(super) fn write_same(
        &self,
        cdb: &[u8],
        len_off: u16,
        pos: u64,
        len: u64,
        data: &mut SGTable,
    ) -> Result<(), Outcome> {
        let ctrl = u8_at(cdb, 1);
        if ctrl & ANCHOR != 0 {
            return Err(Fault::cdb(1, Some(4)).into());
        }
        if len == 0 {
            return Err(Fault::cdb(len_off, None).into());
        }
        let unmap = ctrl & UNMAP_BIT != 0;
        if unmap && !self.thin_provisioned {
            return Err(sense::INVALID_OPCODE.into());
        }
        if !unmap && ctrl & PBDATA_LBDATA != 0 {
            return Err(Fault::cdb(1, Some(1)).into());
        }
        if len > self.max_write_same_len {
            return Err(Fault::cdb(len_off, None).into());
        }
        // Half a block is not the one block of data that the command has to come with, even where it is not looked at.
        if !data.is_empty() && data.len() < self.block_len() {
            return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
        }
        if unmap && self.discard(pos, len)? {
            return self.settle();
        }
        // The host cannot unmap, or was not asked to: the data is written.
        // DIFFERS: SCST answers GOOD and leaves the blocks as they are when the file system has no holes.
        self.write_pattern(pos, len, data)
    }

    /// Makes what was done without data durable, on a device that promises it.
    fn settle(&self) -> Result<(), Outcome> {
        if self.durable {
            self.store.flush().map_err(write_outcome)?;
        }
        Ok(())
    }

    /// ORWRITE(16): sets the bits of `data` on the medium. No other command runs meanwhile.
    pub(super) fn or_write(&self, pos: u64, data: &SGTable, fua: bool) -> Result<(), Outcome> {
        let len = data.len();
        let step = len.min(OR_WRITE_STEP);
        let mut buf = SGTable::alloc(step).map_err(write_outcome)?;
        let (mut medium, mut bits) = (vec![0u8; step], vec![0u8; step]);
        let mut done = 0usize;
        while done < len && !(self.aborted)() {
            let n = step.min(len.saturating_sub(done));
            let at = pos.saturating_add(to_u64(done));
            self.store.read(at, &mut buf, n).map_err(read_outcome)?;
            let copied = (|| {
                let (medium, bits) = (medium.get_mut(..n)?, bits.get_mut(..n)?);
                buf.copy_to_slice(0, medium).ok()?;
                data.copy_to_slice(done, bits).ok()?;
                for (m, b) in medium.iter_mut().zip(bits) {
                    *m |= *b;
                }
                buf.copy_from_slice(0, medium).ok()
            })();
            copied.ok_or(sense::INTERNAL_FAILURE)?;
            self.store
                .write(at, &mut buf, n, self.durable || fua)
                .map_err(write_outcome)?;
            done = done.saturating_add(n);
        }
        Ok(())
    }

    /// Bytes of a logical block.
    fn block_len(&self) -> usize {
        1usize
            .checked_shl(u32::from(self.block_shift))
            .unwrap_or(usize::MAX)
    }

    /// Writes one block over and over.
    fn write_pattern(&self, pos: u64, len: u64, data: &mut SGTable) -> Result<(), Outcome> {
        let block = self.block_len();
        let mut pattern = vec![0u8; block.min(1 << 16)];
        if !data.is_empty() || block != pattern.len() {
            // Exactly one block has to have come.
            if data.len() < block || block != pattern.len() {
                return Err(sense::PARAMETER_VALUE_INVALID.into());
            }
            data.copy_to_slice(0, &mut pattern)
                .map_err(|_| sense::INTERNAL_FAILURE)?;
        }
        if pattern.iter().all(|b| *b == 0) {
            match self.store.zero(pos, len) {
                Ok(()) => return self.settle(),
                Err(code::EOPNOTSUPP) => {}
                Err(e) => return Err(write_outcome(e)),
            }
        }
        let step = usize::try_from(len)
            .unwrap_or(WRITE_SAME_STEP)
            .min(WRITE_SAME_STEP.max(block));
        let mut buf = SGTable::alloc(step).map_err(write_outcome)?;
        let mut at = 0usize;
        while at < step {
            buf.copy_from_slice(at, &pattern)
                .map_err(|_| sense::INTERNAL_FAILURE)?;
            at = at.saturating_add(block);
        }
        let mut done = 0u64;
        while done < len && !(self.aborted)() {
            let n = step.min(usize::try_from(len.saturating_sub(done)).unwrap_or(step));
            let at = pos.saturating_add(done);
            self.store
                .write(at, &mut buf, n, self.durable)
                .map_err(write_outcome)?;
            done = done.saturating_add(to_u64(n));
        }
        Ok(())
    }

    /// UNMAP with a parameter list of `list_len` bytes by the CDB.
    pub(super) fn unmap(&self, cdb: &[u8], list_len: usize, data: &SGTable) -> Result<(), Outcome> {
        let mut list = vec![0u8; list_len.min(data.len())];
        data.copy_to_slice(0, &mut list)
            .map_err(|_| sense::INTERNAL_FAILURE)?;
        let ranges = unmap::parse(&list, list_len)?;
        if !self.thin_provisioned {
            return Err(sense::INVALID_OPCODE.into());
        }
        if u8_at(cdb, 1) & 1 != 0 {
            return Err(Fault::cdb(1, Some(0)).into());
        }
        // DIFFERS: the sum cannot wrap, as it can in SCST (32 bits).
        let total: u64 = ranges
            .iter()
            .fold(0, |n, r| n.saturating_add(u64::from(r.blocks)));
        if total > u64::from(self.unmap_max_lba_cnt) {
            return Err(Fault::parms(0, None).into());
        }
        for r in &ranges {
            self.unmap_range(r)?;
        }
        if ranges.is_empty() {
            return Ok(());
        }
        self.settle()
    }

    fn unmap_range(&self, r: &Range) -> Result<(), Outcome> {
        let blocks = u64::from(r.blocks);
        if blocks == 0 || (self.aborted)() {
            return Ok(());
        }
        if r.lba
            .checked_add(blocks)
            .is_none_or(|end| end > self.nblocks)
        {
            return Err(sense::BLOCK_OUT_RANGE.into());
        }
        // Cannot overflow: the range is inside the device.
        let bytes = |n: u64| {
            n.checked_shl(u32::from(self.block_shift))
                .unwrap_or(u64::MAX)
        };
        // A host that cannot unmap is no error: the blocks just stay (SBC-3 4.7.3.4.3).
        self.discard(bytes(r.lba), bytes(blocks)).map(|_| ())
    }

    /// Discards a range; answers whether the host could.
    fn discard(&self, pos: u64, len: u64) -> Result<bool, Outcome> {
        let mut done = 0u64;
        while done < len && !(self.aborted)() {
            let n = UNMAP_STEP.min(len.saturating_sub(done));
            match self.store.discard(pos.saturating_add(done), n) {
                Ok(()) => done = done.saturating_add(n),
                Err(code::EOPNOTSUPP) => return Ok(false),
                Err(e) => return Err(write_outcome(e)),
            }
        }
        Ok(true)
    }
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
