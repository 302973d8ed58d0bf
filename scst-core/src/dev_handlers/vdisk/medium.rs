//! Commands that may sleep: VERIFY, WRITE SAME, UNMAP, which a [`Plan`] carries out step by step, and ORWRITE.
//!
//! They work in steps of bounded memory, and look between steps whether task management wants the command gone.
//!
//! C source: `vdev_verify`, `vdisk_exec_write_same`, `vdisk_exec_unmap` of `scst/src/dev_handlers/scst_vdisk.c`,
//! `scst_write_same` of `scst/src/scst_lib.c`

use super::plan::{Plan, VERIFY_STEP, WRITE_SAME_STEP};
use super::reply::Fault;
use super::store::{Outcome, Store, read_outcome, write_outcome};
use super::unmap::{self, Range};
use crate::cdb::bytes::u8_at;
use crate::cdb::opcodes as op;
use crate::cmd::Cmd;
use crate::sense;
use kshim::scatterlist::SGTable;

/// Bytes read and written at a time by ORWRITE.
const OR_WRITE_STEP: usize = 256 * 1024;

/// Memory that a command works in besides its data, at most.
pub(super) fn scratch_len(cmd: &Cmd) -> usize {
    let medium = usize::try_from(cmd.data_len()).unwrap_or(usize::MAX);
    match cmd.cdb_byte(0) {
        op::VERIFY_10
        | op::VERIFY_12
        | op::VERIFY_16
        | op::WRITE_VERIFY_10
        | op::WRITE_VERIFY_12
        | op::WRITE_VERIFY_16 => medium.min(usize::try_from(VERIFY_STEP).unwrap_or(usize::MAX)),
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => medium.min(WRITE_SAME_STEP),
        // What is read, and both operands.
        op::ORWRITE_16 => medium.min(OR_WRITE_STEP).saturating_mul(3),
        _ => 0,
    }
}

const ANCHOR: u8 = 0x10;
const UNMAP_BIT: u8 = 0x08;
const PBDATA_LBDATA: u8 = 0x06;
/// NDOB of WRITE SAME(16): there is no data.
const NDOB: u8 = 0x01;

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
    /// Carries a plan out on the calling thread. An aborted command ends early; its result does not count. Context: may sleep.
    pub(super) fn run(&self, plan: &mut Plan) -> Result<(), Outcome> {
        while !(self.aborted)() {
            let Some(step) = plan.next()? else {
                return Ok(());
            };
            let res = self.store.access(step, &mut plan.buf);
            plan.ended(step, res)?;
        }
        Ok(())
    }

    /// Reads a range and, if there is data to compare with, compares.
    pub(super) fn verify(
        &self,
        pos: u64,
        len: u64,
        data: Option<&SGTable>,
    ) -> Result<Plan, Outcome> {
        let len = data.map_or(len, |d| len.min(to_u64(d.len())));
        let len = if matches!(self.store, Store::Null) {
            0
        } else {
            len
        };
        Plan::verify(pos, len, data.is_some(), self.needs_flush)
    }

    /// WRITE SAME(10) and (16). `data` is the block to write; `len_off` is where the CDB has the number of blocks.
    pub(super) fn write_same(
        &self,
        cdb: &[u8],
        len_off: u16,
        pos: u64,
        len: u64,
        data: &SGTable,
    ) -> Result<Plan, Outcome> {
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
        // Half a block, or nothing, is not the one block of data that the command has to come with, even where it is not
        // looked at.
        let no_data = u8_at(cdb, 0) == op::WRITE_SAME_16 && ctrl & NDOB != 0;
        if !no_data && data.len() < self.block_len() {
            return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
        }
        let pattern = self.pattern(data);
        if unmap {
            return Ok(Plan::unmap_or_write(pos, len, self.durable, pattern));
        }
        // The host cannot unmap, or was not asked to: the data is written.
        // DIFFERS: SCST answers GOOD and leaves the blocks as they are when the file system has no holes.
        Plan::write(pos, len, self.durable, pattern?)
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

    /// The block that is written over and over.
    fn pattern(&self, data: &SGTable) -> Result<Vec<u8>, Outcome> {
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
        Ok(pattern)
    }

    /// UNMAP with a parameter list of `list_len` bytes by the CDB.
    pub(super) fn unmap(
        &self,
        cdb: &[u8],
        list_len: usize,
        data: &SGTable,
    ) -> Result<Plan, Outcome> {
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
        let parts = ranges.iter().map(|r| self.bytes(r)).collect();
        Ok(Plan::unmap(parts, self.durable))
    }

    /// First byte and number of bytes of a range. `None`: it is not on the device.
    fn bytes(&self, r: &Range) -> Option<(u64, u64)> {
        let blocks = u64::from(r.blocks);
        let shift = |n: u64| n.checked_shl(u32::from(self.block_shift));
        if blocks == 0 {
            return Some((0, 0));
        }
        let end = r.lba.checked_add(blocks)?;
        (end <= self.nblocks).then_some((shift(r.lba)?, shift(blocks)?))
    }
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
