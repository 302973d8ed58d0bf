//! Which blocks of its device a command touches.
//!
//! C source: `scst_cmd_overlap_cwr`, `scst_unmap_overlap` of `scst/src/scst_targ.c`

use super::Cmd;
use crate::cdb::bytes::{be16_at, be32_at, be64_at};
use crate::cdb::{CdbFlags, opcodes as op};
use crate::overlap::{BlockRange, Claim};

/// Bytes of an UNMAP parameter list before its first descriptor, and of a descriptor.
const UNMAP_HEADER_LEN: usize = 8;
const UNMAP_DESCRIPTOR_LEN: usize = 16;

impl Cmd {
    /// What the command touches of its device. Context: any, once the data-out has come.
    pub(super) fn claim(&self) -> Claim {
        let Some(info) = self.info() else {
            return Claim::Nothing;
        };
        let code = self.cdb_byte(0);
        if info.flags.contains(CdbFlags::LBA_NOT_VALID) {
            return match code {
                op::RESERVE_6 | op::RESERVE_10 => Claim::Reserve,
                op::UNMAP => self.unmap_claim(),
                op::EXTENDED_COPY => self.copy.as_ref().map_or(Claim::Nothing, |c| c.claim()),
                _ => Claim::Nothing,
            };
        }
        let shift = self
            .device()
            .map_or(0, |d| u32::from(d.handler().block_shift()));
        let range = BlockRange {
            lba: self.lba(),
            blocks: self.data_len().checked_shr(shift).unwrap_or(0),
        };
        if code == op::COMPARE_AND_WRITE {
            Claim::Atomic(range)
        } else {
            Claim::Range(range)
        }
    }

    /// The blocks of a parameter list; of one that is malformed, those that can be read.
    fn unmap_claim(&self) -> Claim {
        let mut list = vec![0u8; self.sg().len().min(usize::from(u16::MAX))];
        if self.sg().copy_to_slice(0, &mut list).is_err() {
            return Claim::Nothing;
        }
        let len = usize::from(be16_at(&list, 2));
        let body = list.get(UNMAP_HEADER_LEN..).unwrap_or_default();
        let body = body.get(..len).unwrap_or(body);
        let ranges = body
            .chunks_exact(UNMAP_DESCRIPTOR_LEN)
            .map(|d| BlockRange {
                lba: be64_at(d, 0),
                blocks: u64::from(be32_at(d, 8)),
            })
            .collect();
        Claim::Ranges(ranges)
    }
}
