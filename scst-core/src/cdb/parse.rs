//! Reading the fields of a CDB, one function per shape.

use super::bytes::{be16_at, be24_at, be32_at, be64_at, u8_at};
use super::opcodes as op;
use super::table::{INDEX, NO_OP, OPS, OPS32};
use super::{CdbError, CdbFlags, CdbInfo, Form, OpDesc, control_byte};
use crate::consts::DataDirection;

/// Protection fields (RDPROTECT, WRPROTECT, VRPROTECT) stand in bits 7 to 5.
const PROTECT_MASK: u8 = 0xE0;
/// ADDITIONAL CDB LENGTH of the 32-byte CDBs.
const ADDITIONAL_CDB_LEN_32: u8 = 0x18;
/// Parameter list length assumed for FORMAT UNIT when the transport does not tell.
const FORMAT_DATA_GUESS: u32 = 4096;
/// Reservation flags of commands that any nexus may send.
const ALLOWED_ALWAYS: CdbFlags = CdbFlags::REG_RESERVE_ALLOWED
    .union(CdbFlags::WRITE_EXCL_ALLOWED)
    .union(CdbFlags::EXCL_ACCESS_ALLOWED);

/// Decodes `cdb` for a device of peripheral device type `dev_type` with blocks of `1 << block_shift` bytes.
///
/// Bytes missing at the end read as zero. Devices have no protection information here, so a protection field must
/// be 0 and the 32-byte commands are unknown, as in SCST.
///
/// # Errors
/// [`CdbError::UnknownOpcode`] for a code (or a 7Fh service action) that the device type does not have,
/// [`CdbError::InvalidField`] for one that has but contains what SCST refuses while it decodes.
#[doc(alias = "scst_get_cdb_info")]
pub fn get_cdb_info(dev_type: u8, block_shift: u8, cdb: &[u8]) -> Result<CdbInfo, CdbError> {
    let mut i = CdbInfo::new(find(dev_type, cdb)?);
    decode(&mut i, block_shift, cdb)?;
    i.scale(block_shift);
    Ok(i)
}

/// What SCST knows of a CDB that [`get_cdb_info`] refuses although its operation code (and service action) is known:
/// name, flags and NACA, and the direction and lengths as far as they had been read, *in blocks*. The residual of the
/// failed command is computed from these.
#[cold]
pub fn get_invalid_cdb_info(dev_type: u8, block_shift: u8, cdb: &[u8]) -> Option<CdbInfo> {
    let op = match find(dev_type, cdb) {
        Ok(op) => op,
        Err(CdbError::UnknownOpcode) => return None,
        // The length of a variable-length CDB is wrong: its row is not looked at.
        Err(CdbError::InvalidField { .. }) => OPS
            .iter()
            .find(|op| op.code == u8_at(cdb, 0) && op.form == Form::VarLen)?,
    };
    let mut i = CdbInfo::new(op);
    let decoded = decode(&mut i, block_shift, cdb);
    if op.form != Form::VarLen && decoded.is_ok() {
        return None;
    }
    Some(i)
}

/// The row for a CDB, the service action of a variable-length one resolved.
#[inline]
fn find(dev_type: u8, cdb: &[u8]) -> Result<&'static OpDesc, CdbError> {
    let code = u8_at(cdb, 0);
    let row = INDEX
        .get(usize::from(dev_type))
        .and_then(|t| t.get(usize::from(code)))
        .copied();
    let op = match row {
        Some(r) if r != NO_OP => OPS.get(usize::from(r)),
        _ => None,
    };
    match op {
        Some(op) if op.form == Form::VarLen => var_len_op(cdb),
        Some(op) => Ok(op),
        None => Err(CdbError::UnknownOpcode),
    }
}

/// The row of a variable-length CDB's service action.
fn var_len_op(cdb: &[u8]) -> Result<&'static OpDesc, CdbError> {
    let first = usize::from(op::SUBCODE_READ_32);
    let row = usize::from(be16_at(cdb, 8))
        .checked_sub(first)
        .and_then(|i| OPS32.get(i));
    let op = row.ok_or(CdbError::UnknownOpcode)?;
    if u8_at(cdb, 7) != ADDITIONAL_CDB_LEN_32 {
        return Err(byte(7));
    }
    Ok(op)
}

#[inline]
fn decode(i: &mut CdbInfo, block_shift: u8, cdb: &[u8]) -> Result<(), CdbError> {
    let fields = read_fields(i, block_shift, cdb);
    let control = control_byte(cdb, i.cdb_len);
    i.naca = control & 4 != 0;
    i.linked = control & 1 != 0;
    let max_log2 = fields?.max(i.op.log2_max_buf_len);
    if max_log2 != 0 {
        let max = 1u32.checked_shl(u32::from(max_log2)).unwrap_or(u32::MAX);
        if i.bufflen > max {
            return Err(byte(i.len_off()));
        }
    }
    Ok(())
}

/// Fills LBA, lengths, direction and the flags that depend on the CDB. Answers log2 of a buffer limit, or 0.
#[inline]
fn read_fields(i: &mut CdbInfo, block_shift: u8, cdb: &[u8]) -> Result<u8, CdbError> {
    match i.op.form {
        Form::Lba4Len2Prot => {
            lba4(i, cdb);
            len(i, len2(i, cdb));
            no_protect(cdb)?;
        }
        Form::Lba8Len4Prot => {
            lba8(i, cdb);
            len(i, len4(i, cdb));
            no_protect(cdb)?;
        }
        Form::Lba4Len4Prot => {
            lba4(i, cdb);
            len(i, len4(i, cdb));
            no_protect(cdb)?;
        }
        Form::Rw6 => {
            i.lba = u64::from(be24_at(cdb, usize::from(i.op.lba_off)) & 0x1F_FFFF);
            let n = u8_at(cdb, usize::from(i.op.len_off));
            len(i, if n == 0 { 256 } else { u32::from(n) });
        }
        Form::None | Form::VarLen => no_lba(i),
        Form::Len1 => len_only(i, u32::from(u8_at(cdb, usize::from(i.op.len_off)))),
        Form::Len2 => len_only(i, len2(i, cdb)),
        Form::Len3 => len_only(i, be24_at(cdb, usize::from(i.op.len_off))),
        Form::Len4 => len_only(i, len4(i, cdb)),
        Form::Lba2 => i.lba = u64::from(be16_at(cdb, usize::from(i.op.lba_off))),
        Form::Lba4 => lba4(i, cdb),
        Form::Lba8 => lba8(i, cdb),
        Form::Lba4Len2 | Form::BidiLba4Len2 => {
            lba4(i, cdb);
            len(i, len2(i, cdb));
            if i.op.form == Form::BidiLba4Len2 {
                i.out_bufflen = i.bufflen;
            }
        }
        Form::ServActIn => return Ok(serv_act_in(i, cdb)),
        Form::MaintIn => maint_in(i, cdb),
        Form::MaintOut => maint_out(i, cdb),
        Form::Verify6 | Form::Verify10 | Form::Verify12 | Form::Verify16 | Form::Verify32 => {
            verify(i, cdb)?;
        }
        Form::WriteSame10 | Form::WriteSame16 | Form::WriteSame32 => write_same(i, cdb)?,
        Form::Lba8Len4Prot32 => {
            lba8(i, cdb);
            len(i, len4(i, cdb));
            return Err(CdbError::UnknownOpcode);
        }
        Form::CompareAndWrite => {
            lba8(i, cdb);
            let n = u32::from(u8_at(cdb, usize::from(i.op.len_off)));
            i.data_len = u64::from(n);
            i.bufflen = n.saturating_mul(2);
            no_protect(cdb)?;
        }
        Form::ExtCopy => {
            if u8_at(cdb, 1) != 0 {
                return Err(bit(1, 0));
            }
            len_only(i, len4(i, cdb));
        }
        Form::AtaPassThrough => ata_pass_through(i, block_shift, cdb),
        _ => read_rare_fields(i, cdb)?,
    }
    Ok(0)
}

/// Commands that no virtual disk executes; kept for classification and for pass-through.
#[cold]
fn read_rare_fields(i: &mut CdbInfo, cdb: &[u8]) -> Result<(), CdbError> {
    match i.op.form {
        Form::VendorLen10 => {
            i.cdb_len = 10;
            no_lba(i);
        }
        Form::Fixed6 => len_only(i, 6),
        Form::Fixed8 => len_only(i, 8),
        Form::OneBlock => len_only(i, 1),
        Form::Format => {
            no_lba(i);
            if u8_at(cdb, 1) & 0x10 != 0 {
                i.direction = DataDirection::Write;
                i.flags |= CdbFlags::UNKNOWN_LENGTH;
                len(i, FORMAT_DATA_GUESS);
            }
        }
        Form::ReadPosition => {
            let n = match u8_at(cdb, 1) & 0x1F {
                0 | 1 => 20,
                6 => 32,
                8 => len2(i, cdb).max(32),
                _ => return Err(byte(1)),
            };
            len_only(i, n);
        }
        Form::StartStop => {
            no_lba(i);
            if u8_at(cdb, 4) & 0xF1 == 1 {
                i.flags |= ALLOWED_ALWAYS;
            }
        }
        Form::PreventAllow => {
            no_lba(i);
            if u8_at(cdb, 4) & 3 == 0 {
                i.flags |= ALLOWED_ALWAYS;
            }
        }
        Form::ReadElemStat => {
            len_only(i, be24_at(cdb, usize::from(i.op.len_off)));
            if u8_at(cdb, 6) & 2 != 0 {
                i.flags |= ALLOWED_ALWAYS;
            }
        }
        Form::DynRuntimeAttr => {
            i.cdb_len = 12;
            len_only(i, len4(i, cdb));
        }
        // The other shapes are read by the caller.
        _ => no_lba(i),
    }
    Ok(())
}

#[inline]
fn byte(b: u16) -> CdbError {
    CdbError::InvalidField { byte: b, bit: None }
}

#[inline]
fn bit(b: u16, bit: u8) -> CdbError {
    CdbError::InvalidField {
        byte: b,
        bit: Some(bit),
    }
}

#[inline]
fn no_lba(i: &mut CdbInfo) {
    i.flags |= CdbFlags::LBA_NOT_VALID;
}

#[inline]
fn len(i: &mut CdbInfo, n: u32) {
    i.bufflen = n;
    i.data_len = u64::from(n);
}

#[inline]
fn len_only(i: &mut CdbInfo, n: u32) {
    no_lba(i);
    len(i, n);
}

#[inline]
fn len2(i: &CdbInfo, cdb: &[u8]) -> u32 {
    u32::from(be16_at(cdb, usize::from(i.op.len_off)))
}

#[inline]
fn len4(i: &CdbInfo, cdb: &[u8]) -> u32 {
    be32_at(cdb, usize::from(i.op.len_off))
}

#[inline]
fn lba4(i: &mut CdbInfo, cdb: &[u8]) {
    i.lba = u64::from(be32_at(cdb, usize::from(i.op.lba_off)));
}

#[inline]
fn lba8(i: &mut CdbInfo, cdb: &[u8]) {
    i.lba = be64_at(cdb, usize::from(i.op.lba_off));
}

/// A protection field on a device without protection information must be 0.
#[inline]
fn no_protect(cdb: &[u8]) -> Result<(), CdbError> {
    if u8_at(cdb, 1) & PROTECT_MASK == 0 {
        Ok(())
    } else {
        Err(bit(1, 5))
    }
}

fn serv_act_in(i: &mut CdbInfo, cdb: &[u8]) -> u8 {
    match u8_at(cdb, 1) & 0x1F {
        op::SAI_READ_CAPACITY_16 => {
            i.name = "READ CAPACITY(16)";
            i.flags |= CdbFlags::IMPLICIT_HQ | ALLOWED_ALWAYS;
            len_only(i, be32_at(cdb, 10));
            7
        }
        op::SAI_GET_LBA_STATUS => {
            i.name = "GET LBA STATUS";
            i.flags |= CdbFlags::WRITE_EXCL_ALLOWED;
            i.lba = be64_at(cdb, 2);
            len(i, be32_at(cdb, 10));
            0
        }
        _ => {
            i.flags |= CdbFlags::UNKNOWN_LENGTH;
            no_lba(i);
            0
        }
    }
}

fn maint_in(i: &mut CdbInfo, cdb: &[u8]) {
    match u8_at(cdb, 1) & 0x1F {
        op::MI_REPORT_IDENTIFYING_INFORMATION => {
            i.name = "REPORT IDENTIFYING INFORMATION";
            i.flags |= ALLOWED_ALWAYS;
        }
        op::MI_REPORT_TARGET_PGS => {
            i.name = "REPORT TARGET PORT GROUPS";
            i.flags |= CdbFlags::LOCAL_CMD | ALLOWED_ALWAYS;
        }
        op::MI_REPORT_TIMESTAMP => {
            i.name = "REPORT TIMESTAMP";
            i.flags |= ALLOWED_ALWAYS;
        }
        op::MI_REPORT_SUPPORTED_OPERATION_CODES => {
            i.name = "REPORT SUPPORTED OPERATION CODES";
            i.flags |=
                CdbFlags::WRITE_EXCL_ALLOWED | CdbFlags::LOCAL_CMD | CdbFlags::FULLY_LOCAL_CMD;
        }
        op::MI_REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS => {
            i.name = "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS";
            i.flags |=
                CdbFlags::WRITE_EXCL_ALLOWED | CdbFlags::LOCAL_CMD | CdbFlags::FULLY_LOCAL_CMD;
        }
        _ => {}
    }
    len_only(i, len4(i, cdb));
}

fn maint_out(i: &mut CdbInfo, cdb: &[u8]) {
    if u8_at(cdb, 1) & 0x1F == op::MO_SET_TARGET_PGS {
        i.name = "SET TARGET PORT GROUPS";
        i.flags |= CdbFlags::LOCAL_CMD | CdbFlags::STRICTLY_SERIALIZED;
    }
    if u8_at(cdb, 1) & 0x1F == op::MO_SET_TIMESTAMP {
        i.name = "SET TIMESTAMP";
    }
    len_only(i, len4(i, cdb));
}

/// VERIFY: BYTCHK=01b sends data to compare with, 00b sends none, 1xb is refused.
fn verify(i: &mut CdbInfo, cdb: &[u8]) -> Result<(), CdbError> {
    let ctrl = u8_at(cdb, if i.op.form == Form::Verify32 { 10 } else { 1 });
    if ctrl & 4 != 0 {
        return Err(bit(1, 2));
    }
    let n = match i.op.form {
        Form::Verify6 => {
            no_lba(i);
            be24_at(cdb, usize::from(i.op.len_off))
        }
        Form::Verify10 => {
            lba4(i, cdb);
            len2(i, cdb)
        }
        Form::Verify12 => {
            lba4(i, cdb);
            len4(i, cdb)
        }
        _ => {
            lba8(i, cdb);
            len4(i, cdb)
        }
    };
    len(i, n);
    if ctrl & 2 != 0 {
        i.direction = DataDirection::Write;
    } else {
        i.direction = DataDirection::None;
        i.bufflen = 0;
    }
    match i.op.form {
        Form::Verify6 => Ok(()),
        Form::Verify32 => Err(CdbError::UnknownOpcode),
        _ => no_protect(cdb),
    }
}

/// WRITE SAME: one block of data, or none (NDOB) when it only unmaps.
fn write_same(i: &mut CdbInfo, cdb: &[u8]) -> Result<(), CdbError> {
    let ctrl_off: u16 = if i.op.form == Form::WriteSame32 {
        10
    } else {
        1
    };
    let ctrl = u8_at(cdb, usize::from(ctrl_off));
    let (anchor, unmap) = (ctrl & 0x10 != 0, ctrl & 8 != 0);
    let ndob = i.op.form != Form::WriteSame10 && ctrl & 1 != 0;
    if i.op.form == Form::WriteSame10 {
        lba4(i, cdb);
        i.data_len = u64::from(len2(i, cdb));
    } else {
        lba8(i, cdb);
        i.data_len = u64::from(len4(i, cdb));
    }
    if !unmap && (anchor || ndob) {
        return Err(bit(ctrl_off, if ndob { 0 } else { 4 }));
    }
    if ndob {
        i.bufflen = 0;
        i.direction = DataDirection::None;
    } else {
        i.bufflen = 1;
        i.direction = DataDirection::Write;
    }
    if i.op.form == Form::WriteSame32 {
        Err(CdbError::UnknownOpcode)
    } else {
        no_protect(cdb)
    }
}

/// ATA PASS-THROUGH(12) and (16), SAT-3 12.2.2.
fn ata_pass_through(i: &mut CdbInfo, block_shift: u8, cdb: &[u8]) {
    i.flags = CdbFlags::INFO_VALID;
    let (b1, b2) = (u8_at(cdb, 1), u8_at(cdb, 2));
    // PROTOCOL Fh, "return response information": the other fields do not count.
    if (b1 >> 1) & 0xF == 0xF {
        return;
    }
    let t_length = b2 & 3;
    let extended = b1 & 1 != 0;
    let count = match (i.op.code, t_length) {
        (op::ATA_12, 1) => u32::from(u8_at(cdb, 3)),
        (op::ATA_12, 2) => u32::from(u8_at(cdb, 4)),
        (op::ATA_16, 1) if extended => u32::from(be16_at(cdb, 3)),
        (op::ATA_16, 1) => u32::from(u8_at(cdb, 4)),
        (op::ATA_16, 2) if extended => u32::from(be16_at(cdb, 5)),
        (op::ATA_16, 2) => u32::from(u8_at(cdb, 6)),
        _ => 0,
    };
    let mut n = u64::from(count);
    if t_length != 0 && b2 & 4 != 0 {
        let shift = if b2 & 0x10 != 0 { block_shift } else { 9 };
        n = n.checked_shl(u32::from(shift)).unwrap_or(u64::MAX);
    }
    n = n.saturating_mul(1u64.checked_shl(u32::from(b1 >> 5)).unwrap_or(1));
    i.direction = match (t_length, b2 & 8 != 0) {
        (0, _) => DataDirection::None,
        (_, true) => DataDirection::Read,
        (_, false) => DataDirection::Write,
    };
    len(i, u32::try_from(n).unwrap_or(u32::MAX));
}
