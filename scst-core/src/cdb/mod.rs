//! What a CDB means: operation codes, flags, and where LBA and lengths stand.
//!
//! [`get_cdb_info`] looks the operation code up for a device type (one table load) and reads the fields that the
//! core needs before a handler sees the command. Lengths come out in bytes; one that a buffer cannot have comes out as
//! `u32::MAX`, which [`sbc_generic_parse`], called by a handler's `parse`, refuses.
//!
//! ```
//! use scst_core::cdb::{self, CdbFlags};
//!
//! // READ(10), LBA 16, 8 blocks of 512 bytes
//! let cdb = [0x28, 0, 0, 0, 0, 16, 0, 0, 8, 0];
//! let info = cdb::get_cdb_info(0, 9, &cdb)?;
//! assert_eq!((info.lba, info.bufflen, info.data_len), (16, 4096, 4096));
//! assert_eq!(cdb::sbc_generic_parse(&info, 9), Ok(()));
//! assert!(!info.flags.contains(CdbFlags::WRITE_MEDIUM));
//! # Ok::<(), cdb::CdbError>(())
//! ```
//!
//! Context: everything here is pure and may be called from any thread.
//!
//! C source: `scst/src/scst_lib.c` (`scst_get_cdb_info` and the `get_cdb_info_*` family)
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

pub mod bytes;
pub mod opcodes;
mod parse;
mod table;
#[cfg(test)]
mod tests;

use crate::consts::DataDirection;
use crate::sense::{self, Sense};

pub use parse::{get_cdb_info, get_invalid_cdb_info};
pub use table::{NR_OPS, NR_OPS32, OPS, OPS32};

bitflags::bitflags! {
    /// How the core has to treat a command (`SCST_*` flags of `scst_const.h`).
    #[doc(alias = "scst_cmd_op_flags")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct CdbFlags: u32 {
        /// Belongs to the short timeout class.
        const SMALL_TIMEOUT = 1;
        /// Belongs to the long timeout class.
        const LONG_TIMEOUT = 1 << 1;
        /// Lengths count logical blocks (block devices) or follow the FIXED bit (tapes).
        const TRANSFER_LEN_TYPE_FIXED = 1 << 2;
        /// Treated as HEAD OF QUEUE whatever its task attribute.
        const IMPLICIT_HQ = 1 << 3;
        /// Neither reports nor clears a pending unit attention.
        const SKIP_UA = 1 << 4;
        /// Changes the medium: refused on a read-only LUN.
        const WRITE_MEDIUM = 1 << 5;
        /// The core may execute it itself.
        const LOCAL_CMD = 1 << 6;
        /// The core always executes it; the handler's `parse` is not called either.
        const FULLY_LOCAL_CMD = 1 << 7;
        /// Allowed by the *registrants only* reservation types.
        const REG_RESERVE_ALLOWED = 1 << 8;
        /// Allowed through a *write exclusive* reservation.
        const WRITE_EXCL_ALLOWED = 1 << 9;
        /// Allowed through an *exclusive access* reservation.
        const EXCL_ACCESS_ALLOWED = 1 << 10;
        /// Not executed at the same time as another serialised command.
        const SERIALIZED = 1 << 11;
        /// Drains and blocks the device. Implies [`SERIALIZED`](Self::SERIALIZED).
        const STRICTLY_SERIALIZED = 1 << 12 | 1 << 11;
        /// May cause commands to other logical units (EXTENDED COPY).
        const CAN_GEN_3PARTY_COMMANDS = 1 << 13;
        /// Its parameter list is an array of descriptors.
        #[doc(alias = "SCST_DESCRIPTORS_BASED")]
        const DESCRIPTORS_IN_DATA = 1 << 14;
        /// Must be atomic with regard to commands on the same blocks.
        const SCSI_ATOMIC = 1 << 15;
        /// The CDB does not say how long the data is; the transport's expectation counts.
        const UNKNOWN_LENGTH = 1 << 16;
        /// The handler has to find the LBA out.
        const UNKNOWN_LBA = 1 << 17;
        /// The command addresses no LBA.
        const LBA_NOT_VALID = 1 << 18;
        /// The other fields are valid (the CDB was recognised).
        const INFO_VALID = 1 << 19;
    }
}

/// How the fields of a CDB are read. Names say LBA width and length width in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Neither LBA nor data.
    None,
    /// As `None`, in a vendor-specific code of 10 bytes.
    VendorLen10,
    /// READ BLOCK LIMITS: 6 bytes.
    Fixed6,
    /// READ CAPACITY(10): 8 bytes.
    Fixed8,
    /// One block, no LBA.
    OneBlock,
    /// FORMAT UNIT: data when FMTDATA is set.
    Format,
    /// Length only.
    Len1,
    Len2,
    Len3,
    Len4,
    /// LBA only.
    Lba2,
    Lba4,
    Lba8,
    /// READ(6) and WRITE(6) of disks: 21-bit LBA, length 0 means 256.
    Rw6,
    Lba4Len2,
    BidiLba4Len2,
    /// With a protection field in bits 7 to 5 of byte 1.
    Lba4Len2Prot,
    Lba4Len4Prot,
    Lba8Len4Prot,
    /// With a protection field in byte 10: devices with protection type 2 only.
    Lba8Len4Prot32,
    Verify6,
    Verify10,
    Verify12,
    Verify16,
    Verify32,
    WriteSame10,
    WriteSame16,
    WriteSame32,
    CompareAndWrite,
    ExtCopy,
    AtaPassThrough,
    MaintIn,
    MaintOut,
    ServActIn,
    ReadPosition,
    StartStop,
    PreventAllow,
    ReadElemStat,
    /// Vendor-specific code of 12 bytes.
    DynRuntimeAttr,
    VarLen,
}

/// One row of the operation code table.
#[doc(alias = "scst_sdbops")]
#[derive(Debug)]
pub struct OpDesc {
    /// Operation code.
    pub code: u8,
    /// Bit *n* is set when the row applies to peripheral device type *n*.
    pub dev_types: u16,
    /// Name as in the T10 lists.
    #[doc(alias = "info_op_name")]
    pub name: &'static str,
    /// Direction before the CDB's own bits are looked at.
    pub direction: DataDirection,
    /// Flags before the CDB's own bits are looked at.
    pub flags: CdbFlags,
    /// Offset of the LBA in the CDB.
    pub lba_off: u8,
    /// Width of the LBA in bytes, 0 for none.
    pub lba_len: u8,
    /// Offset of the transfer, parameter list or allocation length.
    pub len_off: u8,
    /// Width of the length in bytes, 0 for none.
    pub len_len: u8,
    /// log2 of the greatest data buffer that is accepted; 0 for no limit.
    pub log2_max_buf_len: u8,
    pub(crate) form: Form,
}

/// What a CDB says, decoded. `Copy`: the core keeps one per command.
#[derive(Clone, Copy, Debug)]
pub struct CdbInfo {
    /// The table row.
    pub op: &'static OpDesc,
    /// The command's name, with the service action resolved.
    #[doc(alias = "op_name")]
    pub name: &'static str,
    /// The row's flags, with those that depend on the CDB.
    #[doc(alias = "op_flags")]
    pub flags: CdbFlags,
    /// Direction of the data.
    pub direction: DataDirection,
    /// Length of the data buffer in bytes.
    pub bufflen: u32,
    /// Length of the second buffer of a bidirectional command.
    pub out_bufflen: u32,
    /// How many bytes of the medium are concerned; differs from `bufflen` for VERIFY, WRITE SAME and COMPARE AND WRITE.
    pub data_len: u64,
    /// First logical block.
    pub lba: u64,
    /// Length of the CDB; 0 when the group code does not tell (the command cannot be executed then).
    pub cdb_len: u8,
    /// NACA bit of the CONTROL byte.
    #[doc(alias = "cmd_naca")]
    pub naca: bool,
    /// LINK bit of the CONTROL byte: obsolete, and refused.
    #[doc(alias = "cmd_linked")]
    pub linked: bool,
}

impl CdbInfo {
    fn new(op: &'static OpDesc) -> Self {
        Self {
            op,
            name: op.name,
            flags: op.flags.union(CdbFlags::INFO_VALID),
            direction: op.direction,
            bufflen: 0,
            out_bufflen: 0,
            data_len: 0,
            lba: 0,
            cdb_len: cdb_len(op.code),
            naca: false,
            linked: false,
        }
    }

    /// Of a command that no table row is about, whose handler knows it.
    pub(crate) fn passed_on(
        direction: DataDirection,
        bufflen: u32,
        flags: CdbFlags,
        cdb_len: usize,
    ) -> Self {
        static ROW: OpDesc = OpDesc {
            code: 0,
            dev_types: 0,
            name: "PASSED ON",
            direction: DataDirection::Unknown,
            flags: CdbFlags::empty(),
            lba_off: 0,
            lba_len: 0,
            len_off: 0,
            len_len: 0,
            log2_max_buf_len: 0,
            form: Form::None,
        };
        Self {
            flags: flags | CdbFlags::INFO_VALID | CdbFlags::LBA_NOT_VALID,
            direction,
            bufflen,
            data_len: u64::from(bufflen),
            cdb_len: u8::try_from(cdb_len).unwrap_or(u8::MAX),
            ..Self::new(&ROW)
        }
    }

    /// Offset of the CDB's length field, for sense data that points at it.
    #[inline]
    #[must_use]
    pub fn len_off(&self) -> u16 {
        u16::from(self.op.len_off)
    }

    /// Scales lengths that count blocks.
    #[inline]
    fn scale(&mut self, block_shift: u8) {
        if self.flags.contains(CdbFlags::TRANSFER_LEN_TYPE_FIXED) {
            let factor = 1u64.checked_shl(u32::from(block_shift)).unwrap_or(u64::MAX);
            let bytes =
                |n: u32| u32::try_from(u64::from(n).saturating_mul(factor)).unwrap_or(u32::MAX);
            self.bufflen = bytes(self.bufflen);
            self.out_bufflen = bytes(self.out_bufflen);
            self.data_len = self.data_len.saturating_mul(factor);
        }
    }
}

/// Why a CDB was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CdbError {
    /// No such operation code or service action for this device type: INVALID COMMAND OPERATION CODE.
    UnknownOpcode,
    /// INVALID FIELD IN CDB, with the field pointer that SCST sends.
    InvalidField {
        /// Byte of the CDB.
        byte: u16,
        /// Bit of that byte, when one bit is to blame.
        bit: Option<u8>,
    },
}

impl std::fmt::Display for CdbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownOpcode => f.write_str("invalid command operation code"),
            Self::InvalidField { byte, bit: None } => {
                write!(f, "invalid field in CDB, byte {byte}")
            }
            Self::InvalidField {
                byte,
                bit: Some(bit),
            } => {
                write!(f, "invalid field in CDB, byte {byte} bit {bit}")
            }
        }
    }
}

impl std::error::Error for CdbError {}

/// Length of a CDB by the group code in its first byte (SPC-4 4.2.5.1); 0 for the vendor-specific groups.
#[doc(alias = "SCST_GET_CDB_LEN")]
#[inline]
#[must_use]
pub const fn cdb_len(opcode: u8) -> u8 {
    match opcode >> 5 {
        0 => 6,
        1 | 2 => 10,
        3 => 32,
        4 => 16,
        5 => 12,
        _ => 0,
    }
}

/// The CONTROL byte: the last one, or the second of a variable-length CDB. 0 when the length is not known.
#[inline]
fn control_byte(cdb: &[u8], len: u8) -> u8 {
    if bytes::u8_at(cdb, 0) == opcodes::VARIABLE_LENGTH_CMD {
        return bytes::u8_at(cdb, 1);
    }
    match len.checked_sub(1) {
        Some(last) => bytes::u8_at(cdb, usize::from(last)),
        None => 0,
    }
}

/// Checks that the lengths and the LBA of a decoded block command can be represented: a buffer of at most
/// 2 GiB - 1 (a C `int`, as in kernel SCST), and a byte offset below 2^63.
///
/// # Errors
/// [`sense::BLOCK_OUT_RANGE`].
#[doc(alias = "scst_sbc_generic_parse")]
#[doc(alias = "scst_generic_parse")]
#[inline]
pub fn sbc_generic_parse(info: &CdbInfo, block_shift: u8) -> Result<(), Sense> {
    let int = |n: u32| i32::try_from(n).is_ok();
    let off = i64::MAX
        .unsigned_abs()
        .checked_shr(u32::from(block_shift))
        .unwrap_or(0);
    let lba_ok = info.flags.contains(CdbFlags::LBA_NOT_VALID) || info.lba <= off;
    if lba_ok && int(info.bufflen) && int(info.out_bufflen) && i64::try_from(info.data_len).is_ok()
    {
        Ok(())
    } else {
        Err(sense::BLOCK_OUT_RANGE)
    }
}
