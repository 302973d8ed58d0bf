//! COMPARE AND WRITE (SBC-4 5.2): compares blocks with the first half of the data-out and, if they are equal, writes the
//! second half.
//!
//! That nothing else happens on the blocks meanwhile is the business of device blocking: the command is of class
//! [`crate::blocking::Class::Atomic`] and claims its blocks ([`crate::overlap`]), so when it comes here it is alone on
//! them. Whether the device reads and writes at once or on a thread does not matter: an execution that was given up
//! because it would have to sleep is begun anew on a thread.
//!
//! C source: `scst_cmp_wr_local`, `scst_cwr_read_cmd_finished` of `scst/src/scst_lib.c`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use crate::cmd::{Cmd, ExecRes};
use crate::dev_type::{DevHandler, ExecContext, IoFault};
use crate::sense::{self, SenseExtra};
use kshim::scatterlist::SGTable;

/// Offset of NUMBER OF LOGICAL BLOCKS in the CDB.
const NLB: u16 = 13;
/// FUA in byte 1 of the CDB.
const FUA: u8 = 0x08;

/// Executes the command on `dev`, whose blocks begin at byte `pos`. Context: as `cx` says.
#[doc(alias = "scst_cmp_wr_local")]
pub(crate) fn exec(dev: &dyn DevHandler, mut cmd: Box<Cmd>, pos: u64, cx: ExecContext) -> ExecRes {
    if cmd.bufflen() == 0 {
        return ExecRes::Completed(cmd);
    }
    let whole = usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX);
    let offered_other = cmd.expected_set && cmd.expected_transfer_len != cmd.bufflen();
    if offered_other || cmd.sg().len() < whole {
        cmd.set_invalid_field_in_cdb(NLB, None);
        return ExecRes::Completed(cmd);
    }
    match compare_and_write(dev, &mut cmd, pos, cx) {
        Ok(None) => {}
        Ok(Some(offset)) => {
            let at = u64::try_from(offset).unwrap_or(u64::MAX);
            cmd.set_sense_extra(sense::MISCOMPARE, SenseExtra::Information(at));
        }
        Err(IoFault::WouldBlock) => return ExecRes::NeedThread(cmd),
        Err(IoFault::Busy) => cmd.set_busy(),
        Err(IoFault::Sense(s)) => cmd.set_sense(s),
    }
    ExecRes::Completed(cmd)
}

/// Answers the first byte that differs, if one does.
fn compare_and_write(
    dev: &dyn DevHandler,
    cmd: &mut Cmd,
    pos: u64,
    cx: ExecContext,
) -> Result<Option<usize>, IoFault> {
    let half = usize::try_from(cmd.data_len()).map_err(|_| sense::INTERNAL_FAILURE)?;
    cmd.charge_scratch(half).map_err(|_| IoFault::Busy)?;
    let mut blocks = SGTable::alloc(half).map_err(|_| IoFault::Busy)?;
    dev.read_blocks(pos, &mut blocks, half, cx)?;
    // Aborted while it was read: SCST stops here too, and the result is not looked at.
    if cmd.is_aborted() {
        return Ok(None);
    }
    let differs = cmd.sg().compare_sg(0, &blocks, 0, half);
    if let Some(at) = differs.map_err(|_| sense::INTERNAL_FAILURE)? {
        return Ok(Some(at));
    }
    blocks
        .copy_from_sg(0, cmd.sg(), half, half)
        .map_err(|_| sense::INTERNAL_FAILURE)?;
    let fua = cmd.cdb_byte(1) & FUA != 0;
    dev.write_blocks(pos, &mut blocks, half, fua, cx)?;
    Ok(None)
}
