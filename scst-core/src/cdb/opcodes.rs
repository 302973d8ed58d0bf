//! Operation codes and service actions that the core and its handlers name.
//!
//! Values are those of SPC-4, SBC-3 and SSC-3; names follow `scsi/scsi_proto.h`.
#![allow(missing_docs)] // each constant is named after the command it encodes

pub const TEST_UNIT_READY: u8 = 0x00;
pub const REQUEST_SENSE: u8 = 0x03;
pub const FORMAT_UNIT: u8 = 0x04;
pub const READ_6: u8 = 0x08;
pub const WRITE_6: u8 = 0x0A;
pub const INQUIRY: u8 = 0x12;
pub const MODE_SELECT: u8 = 0x15;
pub const RESERVE_6: u8 = 0x16;
pub const RELEASE_6: u8 = 0x17;
pub const MODE_SENSE: u8 = 0x1A;
pub const START_STOP: u8 = 0x1B;
pub const RECEIVE_DIAGNOSTIC: u8 = 0x1C;
pub const SEND_DIAGNOSTIC: u8 = 0x1D;
pub const PREVENT_ALLOW_MEDIUM: u8 = 0x1E;
pub const READ_CAPACITY: u8 = 0x25;
pub const READ_10: u8 = 0x28;
pub const WRITE_10: u8 = 0x2A;
pub const WRITE_VERIFY_10: u8 = 0x2E;
pub const VERIFY_10: u8 = 0x2F;
pub const PRE_FETCH_10: u8 = 0x34;
pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
pub const READ_DEFECT_DATA_10: u8 = 0x37;
pub const WRITE_BUFFER: u8 = 0x3B;
pub const READ_BUFFER: u8 = 0x3C;
pub const WRITE_SAME_10: u8 = 0x41;
pub const UNMAP: u8 = 0x42;
pub const READ_TOC: u8 = 0x43;
pub const LOG_SELECT: u8 = 0x4C;
pub const LOG_SENSE: u8 = 0x4D;
pub const MODE_SELECT_10: u8 = 0x55;
pub const RESERVE_10: u8 = 0x56;
pub const RELEASE_10: u8 = 0x57;
pub const MODE_SENSE_10: u8 = 0x5A;
pub const PERSISTENT_RESERVE_IN: u8 = 0x5E;
pub const PERSISTENT_RESERVE_OUT: u8 = 0x5F;
pub const VARIABLE_LENGTH_CMD: u8 = 0x7F;
pub const EXTENDED_COPY: u8 = 0x83;
pub const RECEIVE_COPY_RESULTS: u8 = 0x84;
pub const ATA_16: u8 = 0x85;
pub const READ_16: u8 = 0x88;
pub const COMPARE_AND_WRITE: u8 = 0x89;
pub const WRITE_16: u8 = 0x8A;
pub const ORWRITE_16: u8 = 0x8B;
pub const WRITE_VERIFY_16: u8 = 0x8E;
pub const VERIFY_16: u8 = 0x8F;
pub const PRE_FETCH_16: u8 = 0x90;
pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
pub const WRITE_SAME_16: u8 = 0x93;
pub const SERVICE_ACTION_IN_16: u8 = 0x9E;
pub const REPORT_LUNS: u8 = 0xA0;
pub const ATA_12: u8 = 0xA1;
pub const MAINTENANCE_IN: u8 = 0xA3;
pub const MAINTENANCE_OUT: u8 = 0xA4;
pub const READ_12: u8 = 0xA8;
pub const WRITE_12: u8 = 0xAA;
pub const WRITE_VERIFY_12: u8 = 0xAE;
pub const VERIFY_12: u8 = 0xAF;
pub const READ_DEFECT_DATA_12: u8 = 0xB7;

// Service actions of SERVICE ACTION IN(16).
pub const SAI_READ_CAPACITY_16: u8 = 0x10;
pub const SAI_GET_LBA_STATUS: u8 = 0x12;

// Service actions of MAINTENANCE IN and OUT.
pub const MI_REPORT_IDENTIFYING_INFORMATION: u8 = 0x05;
pub const MI_REPORT_TARGET_PGS: u8 = 0x0A;
pub const MI_REPORT_SUPPORTED_OPERATION_CODES: u8 = 0x0C;
pub const MI_REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS: u8 = 0x0D;
pub const MI_REPORT_TIMESTAMP: u8 = 0x0F;
pub const MO_SET_TARGET_PGS: u8 = 0x0A;
pub const MO_SET_TIMESTAMP: u8 = 0x0F;

// Service actions of the variable-length CDB.
pub const SUBCODE_READ_32: u16 = 0x09;
pub const SUBCODE_VERIFY_32: u16 = 0x0A;
pub const SUBCODE_WRITE_32: u16 = 0x0B;
pub const SUBCODE_WRITE_VERIFY_32: u16 = 0x0C;
pub const SUBCODE_WRITE_SAME_32: u16 = 0x0D;

// Peripheral device types (SPC-4 table 140).
pub const TYPE_DISK: u8 = 0x00;
pub const TYPE_TAPE: u8 = 0x01;
pub const TYPE_PROCESSOR: u8 = 0x03;
pub const TYPE_ROM: u8 = 0x05;
pub const TYPE_MOD: u8 = 0x07;
pub const TYPE_MEDIUM_CHANGER: u8 = 0x08;
pub const TYPE_RAID: u8 = 0x0C;
