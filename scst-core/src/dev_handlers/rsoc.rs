//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
//!
//! The tables say which CDB bits the device server looks at, as kernel SCST says it. Commands that nothing here
//! executes yet are listed in [`NOT_EXECUTED`] and left out of every answer.
//!
//! C source: `scst_report_supported_opcodes` of `scst/src/scst_local_cmd.c`, the `scst_op_descr_*` of
//! `scst/src/scst_lib.c` and `scst/src/dev_handlers/scst_vdisk.c`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use super::vdisk::Fault;
use crate::cdb::bytes::{be16_at, u8_at};
use crate::cdb::opcodes as op;

/// CONTROL byte: NACA.
const CTRL: u8 = 4;
/// RDPROTECT, WRPROTECT, VRPROTECT.
const PROT: u8 = 0xE0;
/// SUPPORT: as in a SCSI standard.
const SUPPORTED: u8 = 3;
/// Set in a command descriptor when a command timeouts descriptor follows.
const CTDP: u8 = 2;
/// Set in a command descriptor when the service action is valid.
const SERVACTV: u8 = 1;
/// Seconds until the device server may be asked what has become of a command.
const NOMINAL_TIMEOUT_SEC: u32 = 1;
/// Recommended timeouts in seconds.
const SMALL: u32 = 10;
const REG: u32 = 60;
const LONG: u32 = 3600;
/// Length of a command timeouts descriptor behind its length field.
const TIMEOUTS_LEN: u8 = 0x0A;

/// One supported command.
#[doc(alias = "scst_opcode_descriptor")]
#[derive(Debug)]
pub struct OpcodeDescriptor {
    /// Service action, for codes that have them.
    pub service_action: Option<u16>,
    /// Recommended timeout in seconds.
    pub recommended_timeout_sec: u32,
    /// CDB usage data: the operation code (and service action), then the bits that are looked at.
    pub usage: &'static [u8],
}

impl OpcodeDescriptor {
    /// Operation code.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        u8_at(self.usage, 0)
    }

    fn cdb_size(&self) -> u16 {
        u16::try_from(self.usage.len()).unwrap_or(u16::MAX)
    }
}

/// Rows: recommended timeout, operation code, service action if any, the CDB's other bytes.
macro_rules! rows {
    ($($timeout:ident $op:ident ($($sa:ident)?) [$($usage:expr),*];)*) => {
        &[$(OpcodeDescriptor {
            service_action: rows!(@sa $($sa)?),
            recommended_timeout_sec: $timeout,
            usage: &[op::$op, $($usage),*],
        }),*]
    };
    (@sa) => { None };
    (@sa $sa:ident) => { Some(op::$sa as u16) };
}

/// Commands in [`VDISK`] that neither the core nor a virtual disk executes yet. Whoever adds one takes it out here.
pub const NOT_EXECUTED: &[u8] = &[];

/// Commands of a virtual disk without protection information: SCST's in its order, then those that it does not have;
/// SET TARGET PORT GROUPS is the last one.
const ALL_VDISK: &[OpcodeDescriptor] = rows! {
    REG SYNCHRONIZE_CACHE_10 () [2, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, CTRL];
    REG SYNCHRONIZE_CACHE_16 () [2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL MODE_SENSE () [8, 0xFF, 0xFF, 0xFF, CTRL];
    SMALL MODE_SENSE_10 () [0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, CTRL];
    SMALL MODE_SELECT () [0x11, 0, 0, 0xFF, CTRL];
    SMALL MODE_SELECT_10 () [0x11, 0, 0, 0, 0, 0, 0xFF, 0xFF, CTRL];
    SMALL LOG_SELECT () [3, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, CTRL];
    SMALL LOG_SENSE () [1, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0xFF, CTRL];
    SMALL START_STOP () [1, 0, 0xF, 0xF7, CTRL];
    SMALL READ_CAPACITY () [0, 0, 0, 0, 0, 0, 0, 0, CTRL];
    SMALL SEND_DIAGNOSTIC () [0xF7, 0, 0xFF, 0xFF, CTRL];
    SMALL MAINTENANCE_IN (MI_REPORT_TARGET_PGS) [0xEA, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG READ_6 () [0x1F, 0xFF, 0xFF, 0xFF, CTRL];
    REG READ_10 () [PROT | 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, CTRL];
    REG READ_12 () [PROT | 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG READ_16 () [PROT | 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG WRITE_6 () [0x1F, 0xFF, 0xFF, 0xFF, CTRL];
    REG WRITE_10 () [PROT | 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, CTRL];
    REG WRITE_12 () [PROT | 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG WRITE_16 () [PROT | 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG WRITE_VERIFY_10 () [PROT | 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, CTRL];
    REG WRITE_VERIFY_12 () [PROT | 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG WRITE_VERIFY_16 () [PROT | 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG VERIFY_10 () [PROT | 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, CTRL];
    REG VERIFY_12 () [PROT | 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG VERIFY_16 () [PROT | 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL SERVICE_ACTION_IN_16 (SAI_READ_CAPACITY_16) [0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG WRITE_SAME_10 () [PROT | 8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, CTRL];
    REG WRITE_SAME_16 () [PROT | 8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG UNMAP () [0, 0, 0, 0, 0, 0, 0xFF, 0xFF, CTRL];
    LONG FORMAT_UNIT () [0xF0, 0, 0, 0, CTRL];
    REG EXTENDED_COPY () [0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG COMPARE_AND_WRITE () [PROT | 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0, CTRL];
    SMALL INQUIRY () [1, 0xFF, 0xFF, 0xFF, CTRL];
    SMALL TEST_UNIT_READY () [0, 0, 0, 0, CTRL];
    SMALL RESERVE_6 () [0, 0, 0, 0, CTRL];
    SMALL RELEASE_6 () [0, 0, 0, 0, CTRL];
    SMALL RESERVE_10 () [0, 0, 0, 0, 0, 0, 0, 0, CTRL];
    SMALL RELEASE_10 () [0, 0, 0, 0, 0, 0, 0, 0, CTRL];
    SMALL PERSISTENT_RESERVE_IN () [0x1F, 0, 0, 0, 0, 0, 0xFF, 0xFF, CTRL];
    SMALL PERSISTENT_RESERVE_OUT () [0x1F, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, CTRL];
    SMALL REPORT_LUNS () [0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL REQUEST_SENSE () [1, 0, 0, 0xFF, CTRL];
    SMALL MAINTENANCE_IN (MI_REPORT_SUPPORTED_OPERATION_CODES) [0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL MAINTENANCE_IN (MI_REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS) [0x0D, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL MAINTENANCE_IN (MI_REPORT_TIMESTAMP) [0x0F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL MAINTENANCE_OUT (MO_SET_TIMESTAMP) [0x0F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL SERVICE_ACTION_IN_16 (SAI_GET_LBA_STATUS) [0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG ORWRITE_16 () [PROT | 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    REG PRE_FETCH_10 () [2, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, CTRL];
    REG PRE_FETCH_16 () [2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL READ_DEFECT_DATA_10 () [0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, CTRL];
    SMALL READ_DEFECT_DATA_12 () [0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
    SMALL WRITE_BUFFER () [0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, CTRL];
    SMALL READ_BUFFER () [0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, CTRL];
    SMALL MAINTENANCE_OUT (MO_SET_TARGET_PGS) [0x0A, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, CTRL];
};

/// Commands of a virtual disk.
pub static VDISK: &[OpcodeDescriptor] = match ALL_VDISK.split_last() {
    Some((_, rest)) => rest,
    None => &[],
};

/// Commands of a virtual disk with explicit ALUA (`expl_alua`).
pub static VDISK_EXPL_ALUA: &[OpcodeDescriptor] = ALL_VDISK;

fn executed(table: &'static [OpcodeDescriptor]) -> impl Iterator<Item = &'static OpcodeDescriptor> {
    table.iter().filter(|d| !NOT_EXECUTED.contains(&d.opcode()))
}

fn push_timeouts(out: &mut Vec<u8>, d: &OpcodeDescriptor) {
    out.extend_from_slice(&[0, TIMEOUTS_LEN, 0, 0]);
    out.extend_from_slice(&NOMINAL_TIMEOUT_SEC.to_be_bytes());
    out.extend_from_slice(&d.recommended_timeout_sec.to_be_bytes());
}

/// Builds the parameter data of REPORT SUPPORTED OPERATION CODES (SPC-4 6.35) into `out`.
///
/// # Errors
/// INVALID FIELD IN CDB: reporting option 3 or more; option 1 for a code with service actions, option 2 for one
/// without.
pub fn report_supported_opcodes(
    table: &'static [OpcodeDescriptor],
    cdb: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let b2 = u8_at(cdb, 2);
    let rctd = b2 & 0x80 != 0;
    let (opcode, want_sa) = (u8_at(cdb, 3), be16_at(cdb, 4));
    let invalid = Fault::cdb(2, Some(0));
    out.clear();
    let found = match b2 & 7 {
        0 => {
            report_all(table, rctd, out);
            return Ok(());
        }
        1 => {
            let d = executed(table).find(|d| d.opcode() == opcode);
            if d.is_some_and(|d| d.service_action.is_some()) {
                return Err(invalid);
            }
            d
        }
        2 => {
            let mut of_code = executed(table).filter(|d| d.opcode() == opcode).peekable();
            if of_code.peek().is_some_and(|d| d.service_action.is_none()) {
                return Err(invalid);
            }
            of_code.find(|d| d.service_action == Some(want_sa))
        }
        _ => return Err(invalid),
    };
    out.extend_from_slice(&[0; 4]);
    if let Some(d) = found {
        let [hi, lo] = d.cdb_size().to_be_bytes();
        out.clear();
        out.extend_from_slice(&[0, SUPPORTED | if rctd { 0x80 } else { 0 }, hi, lo]);
        out.extend_from_slice(d.usage);
        if rctd {
            push_timeouts(out, d);
        }
    }
    Ok(())
}

fn report_all(table: &'static [OpcodeDescriptor], rctd: bool, out: &mut Vec<u8>) {
    let each: usize = if rctd { 20 } else { 8 };
    let len = executed(table).count().saturating_mul(each);
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    for d in executed(table) {
        let [sa_hi, sa_lo] = d.service_action.unwrap_or(0).to_be_bytes();
        let [size_hi, size_lo] = d.cdb_size().to_be_bytes();
        let flags = if d.service_action.is_some() {
            SERVACTV
        } else {
            0
        } | if rctd { CTDP } else { 0 };
        out.extend_from_slice(&[d.opcode(), 0, sa_hi, sa_lo, 0, flags, size_hi, size_lo]);
        if rctd {
            push_timeouts(out, d);
        }
    }
}

/// Parameter data of REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.36): ABORT TASK, ABORT TASK SET, CLEAR ACA,
/// CLEAR TASK SET and LOGICAL UNIT RESET, with 30 s and 15 s timeouts in the extended form.
pub fn report_supported_tmfs(cdb: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0xF8, 0, 0, 0]);
    if u8_at(cdb, 2) & 0x80 != 0 {
        out.clear();
        out.extend_from_slice(&[
            0xF8, 0, 0, 0x0C, 1, 0, 0xA0, 0, 0, 0, 1, 0x2C, 0, 0, 0, 0x96,
        ]);
    }
}
