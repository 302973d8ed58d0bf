//! Sense data: named conditions, and building and reading both formats.
//!
//! A condition is a [`Sense`] (key, code, qualifier); [`build`] turns it into the 18 bytes of the fixed format or
//! the descriptor format, with the additions that SCST sends ([`SenseExtra`]).
//!
//! ```
//! use scst_core::sense::{self, SenseExtra};
//!
//! let mut buf = Vec::new();
//! sense::build(&mut buf, false, sense::INVALID_FIELD_IN_CDB, SenseExtra::FieldInCdb { byte: 2, bit: None });
//! assert_eq!(buf.len(), 18);
//! assert_eq!(sense::parse(&buf), Some(sense::INVALID_FIELD_IN_CDB));
//! ```
//!
//! Context: everything here is pure and may be called from any thread.
//!
//! C source: `scst/include/scst_const.h`, `scst/src/scst_lib.c` (`scst_set_sense` and neighbours)
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use crate::cdb::bytes::u8_at;

/// Length of fixed-format sense data as the core builds it.
#[doc(alias = "SCST_STANDARD_SENSE_LEN")]
pub const STANDARD_SENSE_LEN: usize = 18;

/// Sense keys (SPC-4 table 44).
pub mod key {
    #![allow(missing_docs)] // named as in SPC-4
    pub const NO_SENSE: u8 = 0x0;
    pub const RECOVERED_ERROR: u8 = 0x1;
    pub const NOT_READY: u8 = 0x2;
    pub const MEDIUM_ERROR: u8 = 0x3;
    pub const HARDWARE_ERROR: u8 = 0x4;
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const BLANK_CHECK: u8 = 0x8;
    pub const COPY_ABORTED: u8 = 0xA;
    pub const ABORTED_COMMAND: u8 = 0xB;
    pub const MISCOMPARE: u8 = 0xE;
}

/// A condition: sense key, additional sense code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

impl Sense {
    /// A condition that has no name below.
    #[must_use]
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    /// Whether SPC-4 4.5.1 demands the fixed format whatever D_SENSE says: unit attentions 29/xx and 2A/01, which
    /// tell of changes to D_SENSE itself.
    #[must_use]
    pub const fn always_fixed(self) -> bool {
        self.key == key::UNIT_ATTENTION
            && (self.asc == 0x29 || (self.asc == 0x2A && self.ascq == 0x01))
    }

    /// Whether this is a unit attention.
    #[must_use]
    pub const fn is_ua(self) -> bool {
        self.key == key::UNIT_ATTENTION
    }
}

impl std::fmt::Display for Sense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}/{:02x}/{:02x}", self.key, self.asc, self.ascq)
    }
}

macro_rules! conditions {
    ($($(#[$attr:meta])* $name:ident = $key:ident, $asc:literal, $ascq:literal;)*) => {
        $($(#[$attr])* pub const $name: Sense = Sense::new(key::$key, $asc, $ascq);)*
        /// All named conditions, for tests and for listings.
        pub const ALL: &[(&str, Sense)] = &[$((stringify!($name), $name)),*];
    };
}

conditions! {
    /// Nothing to report.
    #[doc(alias = "scst_sense_no_sense")]
    NO_SENSE_DATA = NO_SENSE, 0x00, 0x00;
    /// The device's backing store is closed, or it is otherwise not ready and no host action helps.
    NOT_READY = NOT_READY, 0x04, 0x00;
    /// FORMAT UNIT runs.
    #[doc(alias = "scst_sense_format_in_progress")]
    FORMAT_IN_PROGRESS = NOT_READY, 0x04, 0x04;
    /// The target port group changes its state.
    #[doc(alias = "scst_sense_alua_transitioning")]
    ALUA_TRANSITIONING = NOT_READY, 0x04, 0x0A;
    /// The target port group is in standby.
    #[doc(alias = "scst_sense_alua_standby")]
    ALUA_STANDBY = NOT_READY, 0x04, 0x0B;
    /// The target port group is unavailable.
    #[doc(alias = "scst_sense_alua_unav")]
    ALUA_UNAV = NOT_READY, 0x04, 0x0C;
    /// No medium (removable device, empty CD-ROM).
    #[doc(alias = "scst_sense_no_medium")]
    NO_MEDIUM = NOT_READY, 0x3A, 0x00;
    /// Data could not be written.
    #[doc(alias = "scst_sense_write_error")]
    WRITE_ERROR = MEDIUM_ERROR, 0x03, 0x00;
    /// Data could not be read.
    #[doc(alias = "scst_sense_read_error")]
    READ_ERROR = MEDIUM_ERROR, 0x11, 0x00;
    /// An internal failure that a retry does not cure.
    #[doc(alias = "scst_sense_hardw_error")]
    HARDW_ERROR = HARDWARE_ERROR, 0x44, 0x00;
    /// The device did not answer in time.
    LUN_TIMED_OUT = HARDWARE_ERROR, 0x3E, 0x02;
    /// SET TARGET PORT GROUPS failed.
    #[doc(alias = "scst_sense_set_target_pgs_failed")]
    SET_TARGET_PGS_FAILED = HARDWARE_ERROR, 0x67, 0x0A;
    /// The copy operation still runs.
    #[doc(alias = "scst_sense_operation_in_progress")]
    OPERATION_IN_PROGRESS = ILLEGAL_REQUEST, 0x00, 0x16;
    /// An information unit of the transport is malformed.
    #[doc(alias = "scst_sense_invalid_field_in_command_information_unit")]
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = ILLEGAL_REQUEST, 0x0E, 0x03;
    /// The parameter list is cut off.
    #[doc(alias = "scst_sense_parameter_list_length_invalid")]
    PARAMETER_LIST_LENGTH_INVALID = ILLEGAL_REQUEST, 0x1A, 0x00;
    /// Unknown operation code or service action.
    #[doc(alias = "scst_sense_invalid_opcode")]
    INVALID_OPCODE = ILLEGAL_REQUEST, 0x20, 0x00;
    /// Beyond the last logical block.
    #[doc(alias = "scst_sense_block_out_range_error")]
    BLOCK_OUT_RANGE = ILLEGAL_REQUEST, 0x21, 0x00;
    /// Send it with [`SenseExtra::FieldInCdb`].
    #[doc(alias = "scst_sense_invalid_field_in_cdb")]
    INVALID_FIELD_IN_CDB = ILLEGAL_REQUEST, 0x24, 0x00;
    /// A command came before one that it needs.
    COMMAND_SEQUENCE_ERROR = ILLEGAL_REQUEST, 0x2C, 0x00;
    /// No logical unit at this LUN.
    #[doc(alias = "scst_sense_lun_not_supported")]
    LUN_NOT_SUPPORTED = ILLEGAL_REQUEST, 0x25, 0x00;
    /// Send it with [`SenseExtra::FieldInParms`].
    #[doc(alias = "scst_sense_invalid_field_in_parm_list")]
    INVALID_FIELD_IN_PARM_LIST = ILLEGAL_REQUEST, 0x26, 0x00;
    /// A value in the parameter list is not acceptable.
    #[doc(alias = "scst_sense_parameter_value_invalid")]
    PARAMETER_VALUE_INVALID = ILLEGAL_REQUEST, 0x26, 0x02;
    /// Release of a persistent reservation with another scope or type.
    #[doc(alias = "scst_sense_invalid_release")]
    INVALID_RELEASE = ILLEGAL_REQUEST, 0x26, 0x04;
    /// No room for another registration.
    INSUFFICIENT_REGISTRATION_RESOURCES = ILLEGAL_REQUEST, 0x55, 0x04;
    /// EXTENDED COPY: too many CSCD descriptors.
    #[doc(alias = "scst_sense_too_many_target_descriptors")]
    TOO_MANY_TARGET_DESCRIPTORS = ILLEGAL_REQUEST, 0x26, 0x06;
    /// EXTENDED COPY: unknown CSCD descriptor.
    #[doc(alias = "scst_sense_unsupported_tgt_descr_type")]
    UNSUPPORTED_TGT_DESCR_TYPE = ILLEGAL_REQUEST, 0x26, 0x07;
    /// EXTENDED COPY: too many segment descriptors.
    #[doc(alias = "scst_sense_too_many_segment_descriptors")]
    TOO_MANY_SEGMENT_DESCRIPTORS = ILLEGAL_REQUEST, 0x26, 0x08;
    /// EXTENDED COPY: unknown segment descriptor.
    #[doc(alias = "scst_sense_unsupported_seg_descr_type")]
    UNSUPPORTED_SEG_DESCR_TYPE = ILLEGAL_REQUEST, 0x26, 0x09;
    /// EXTENDED COPY: inline data is not supported.
    #[doc(alias = "scst_sense_inline_data_length_exceeded")]
    INLINE_DATA_LENGTH_EXCEEDED = ILLEGAL_REQUEST, 0x26, 0x0B;
    /// No saved mode pages.
    #[doc(alias = "scst_sense_saving_params_unsup")]
    SAVING_PARAMS_UNSUP = ILLEGAL_REQUEST, 0x39, 0x00;
    /// The transport's and the CDB's idea of the data differ beyond repair.
    #[doc(alias = "scst_sense_invalid_message")]
    INVALID_MESSAGE = ILLEGAL_REQUEST, 0x49, 0x00;
    /// The medium may have changed.
    #[doc(alias = "scst_sense_medium_changed_UA")]
    MEDIUM_CHANGED_UA = UNIT_ATTENTION, 0x28, 0x00;
    /// Power on or reset: the first thing that a new nexus hears, and after LUN RESET.
    #[doc(alias = "scst_sense_reset_UA")]
    RESET_UA = UNIT_ATTENTION, 0x29, 0x00;
    /// Power on occurred. SCST itself sends 29/00.
    POWERON_UA = UNIT_ATTENTION, 0x29, 0x01;
    /// The I_T nexus was lost.
    #[doc(alias = "scst_sense_nexus_loss_UA")]
    NEXUS_LOSS_UA = UNIT_ATTENTION, 0x29, 0x07;
    /// Another nexus changed mode parameters.
    MODE_PARAMETER_CHANGED = UNIT_ATTENTION, 0x2A, 0x01;
    /// Another nexus changed log parameters.
    LOG_PARAMETER_CHANGED = UNIT_ATTENTION, 0x2A, 0x02;
    /// The nexus' reservation was preempted.
    #[doc(alias = "scst_sense_reservation_preempted")]
    RESERVATION_PREEMPTED = UNIT_ATTENTION, 0x2A, 0x03;
    /// A reservation was released.
    #[doc(alias = "scst_sense_reservation_released")]
    RESERVATION_RELEASED = UNIT_ATTENTION, 0x2A, 0x04;
    /// The nexus' registration was preempted.
    #[doc(alias = "scst_sense_registrations_preempted")]
    REGISTRATIONS_PREEMPTED = UNIT_ATTENTION, 0x2A, 0x05;
    /// An ALUA state changed.
    #[doc(alias = "scst_sense_asym_access_state_changed")]
    ASYM_ACCESS_STATE_CHANGED = UNIT_ATTENTION, 0x2A, 0x06;
    /// Another nexus set the time stamp.
    TIMESTAMP_CHANGED = UNIT_ATTENTION, 0x2A, 0x10;
    /// The capacity changed.
    #[doc(alias = "scst_sense_capacity_data_changed")]
    CAPACITY_DATA_CHANGED = UNIT_ATTENTION, 0x2A, 0x09;
    /// Commands were cleared by another initiator.
    #[doc(alias = "scst_sense_cleared_by_another_ini_UA")]
    CLEARED_BY_ANOTHER_INI_UA = UNIT_ATTENTION, 0x2F, 0x00;
    /// The thin-provisioning soft threshold was reached.
    #[doc(alias = "scst_sense_tp_soft_threshold_reached")]
    TP_SOFT_THRESHOLD_REACHED = UNIT_ATTENTION, 0x38, 0x07;
    /// INQUIRY data changed.
    #[doc(alias = "scst_sense_inquiry_data_changed")]
    INQUIRY_DATA_CHANGED = UNIT_ATTENTION, 0x3F, 0x03;
    /// The list of LUNs changed.
    #[doc(alias = "scst_sense_reported_luns_data_changed")]
    REPORTED_LUNS_DATA_CHANGED = UNIT_ATTENTION, 0x3F, 0x0E;
    /// The medium may not be written by this nexus (read-only LUN).
    #[doc(alias = "scst_sense_data_protect")]
    DATA_PROTECT = DATA_PROTECT, 0x00, 0x00;
    /// Write protected (SPC-4: SWP, and devices that are read-only).
    WRITE_PROTECTED = DATA_PROTECT, 0x27, 0x00;
    /// Out of space below a thin device.
    #[doc(alias = "scst_space_allocation_failed_write_protect")]
    SPACE_ALLOC_FAILED = DATA_PROTECT, 0x27, 0x07;
    /// Aborted, no further information.
    #[doc(alias = "scst_sense_aborted_command")]
    ABORTED_COMMAND = ABORTED_COMMAND, 0x00, 0x00;
    /// Protection information: guard.
    #[doc(alias = "scst_logical_block_guard_check_failed")]
    LOGICAL_BLOCK_GUARD_CHECK_FAILED = ABORTED_COMMAND, 0x10, 0x01;
    /// Protection information: application tag.
    #[doc(alias = "scst_logical_block_app_tag_check_failed")]
    LOGICAL_BLOCK_APP_TAG_CHECK_FAILED = ABORTED_COMMAND, 0x10, 0x02;
    /// Protection information: reference tag.
    #[doc(alias = "scst_logical_block_ref_tag_check_failed")]
    LOGICAL_BLOCK_REF_TAG_CHECK_FAILED = ABORTED_COMMAND, 0x10, 0x03;
    /// An internal failure; a retry may help.
    #[doc(alias = "scst_sense_internal_failure")]
    INTERNAL_FAILURE = ABORTED_COMMAND, 0x44, 0x00;
    /// Data differs from the medium.
    #[doc(alias = "scst_sense_miscompare_error")]
    MISCOMPARE = MISCOMPARE, 0x1D, 0x00;
}

/// What goes with a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SenseExtra {
    /// Nothing.
    #[default]
    None,
    /// A field pointer into the CDB (SPC-4 4.5.2.4.2, C/D=1).
    #[doc(alias = "scst_set_invalid_field_in_cdb")]
    FieldInCdb {
        /// Offset of the byte.
        byte: u16,
        /// The bit, when one is to blame.
        bit: Option<u8>,
    },
    /// A field pointer into the parameter list (C/D=0).
    #[doc(alias = "scst_set_invalid_field_in_parm_list")]
    FieldInParms {
        /// Offset of the byte.
        byte: u16,
        /// The bit, when one is to blame.
        bit: Option<u8>,
    },
    /// The INFORMATION field: a miscompare's offset, or an LBA.
    #[doc(alias = "scst_set_cmd_error_and_inf")]
    Information(u64),
    /// PROGRESS INDICATION, in 65536ths.
    Progress(u16),
}

impl SenseExtra {
    /// The three sense-key specific bytes, if there are any.
    const fn sense_key_specific(self) -> Option<[u8; 3]> {
        match self {
            Self::FieldInCdb { byte, bit } => Some(field_pointer(0xC0, byte, bit)),
            Self::FieldInParms { byte, bit } => Some(field_pointer(0x80, byte, bit)),
            Self::Progress(p) => {
                let [hi, lo] = p.to_be_bytes();
                Some([0x80, hi, lo])
            }
            Self::None | Self::Information(_) => None,
        }
    }
}

/// SKSV and C/D in `flags`, then BPV with the bit, then the byte.
const fn field_pointer(flags: u8, byte: u16, bit: Option<u8>) -> [u8; 3] {
    let [hi, lo] = byte.to_be_bytes();
    match bit {
        Some(b) => [flags | 8 | (b & 7), hi, lo],
        None => [flags, hi, lo],
    }
}

/// Replaces the contents of `buf` by sense data: fixed format (18 bytes), or descriptor format when `d_sense` is set
/// and [`Sense::always_fixed`] does not forbid it.
///
/// DIFFERS: SCST keeps the length at 8 bytes when it adds an information descriptor, so that the initiator never sees
/// it; here the descriptor is sent.
#[doc(alias = "scst_set_sense")]
pub fn build(buf: &mut Vec<u8>, d_sense: bool, s: Sense, extra: SenseExtra) {
    buf.clear();
    if d_sense && !s.always_fixed() {
        let additional = match extra {
            SenseExtra::None => 0,
            SenseExtra::Information(_) => 12,
            _ => 8,
        };
        buf.extend_from_slice(&[0x72, s.key, s.asc, s.ascq, 0, 0, 0, additional]);
        if let SenseExtra::Information(v) = extra {
            buf.extend_from_slice(&[0x00, 0x0A, 0x80, 0x00]);
            buf.extend_from_slice(&v.to_be_bytes());
        } else if let Some([a, b, c]) = extra.sense_key_specific() {
            buf.extend_from_slice(&[0x02, 0x06, 0, 0, a, b, c, 0]);
        }
        return;
    }
    let mut valid = 0;
    let mut info = [0; 4];
    if let SenseExtra::Information(v) = extra {
        // DIFFERS: a value that the fixed format cannot hold is not valid there (SPC-4 4.5.3); SCST cuts it off.
        if let Ok(v) = u32::try_from(v) {
            valid = 0x80;
            info = v.to_be_bytes();
        }
    }
    let [i0, i1, i2, i3] = info;
    let [k0, k1, k2] = extra.sense_key_specific().unwrap_or([0; 3]);
    buf.extend_from_slice(&[
        0x70 | valid,
        0,
        s.key,
        i0,
        i1,
        i2,
        i3,
        0x0A,
        0,
        0,
        0,
        0,
        s.asc,
        s.ascq,
        0,
        k0,
        k1,
        k2,
    ]);
}

/// Response code without the VALID bit: 70h, 71h (fixed), 72h, 73h (descriptor), or something else.
#[doc(alias = "scst_sense_response_code")]
#[inline]
#[must_use]
pub fn response_code(buf: &[u8]) -> u8 {
    u8_at(buf, 0) & 0x7F
}

/// Whether this is sense data at all.
#[doc(alias = "scst_sense_valid")]
#[inline]
#[must_use]
pub fn is_valid(buf: &[u8]) -> bool {
    matches!(response_code(buf), 0x70..=0x73)
}

/// Whether it is in the descriptor format.
#[inline]
#[must_use]
pub fn is_descriptor(buf: &[u8]) -> bool {
    matches!(response_code(buf), 0x72 | 0x73)
}

/// The condition that sense data of either format tells; `None` when it is not sense data or cut off before the key.
/// Codes beyond the end are 0.
#[must_use]
pub fn parse(buf: &[u8]) -> Option<Sense> {
    match response_code(buf) {
        0x70 | 0x71 if buf.len() > 2 => Some(Sense::new(
            u8_at(buf, 2) & 0xF,
            u8_at(buf, 12),
            u8_at(buf, 13),
        )),
        0x72 | 0x73 if buf.len() > 1 => Some(Sense::new(
            u8_at(buf, 1) & 0xF,
            u8_at(buf, 2),
            u8_at(buf, 3),
        )),
        _ => None,
    }
}

/// Sense key of sense data.
#[must_use]
pub fn sense_key(buf: &[u8]) -> Option<u8> {
    parse(buf).map(|s| s.key)
}

/// Whether sense data is a unit attention.
#[doc(alias = "scst_is_ua_sense")]
#[must_use]
pub fn is_ua(buf: &[u8]) -> bool {
    parse(buf).is_some_and(Sense::is_ua)
}

/// Whether sense data tells exactly this condition.
#[doc(alias = "scst_analyze_sense")]
#[must_use]
pub fn matches(buf: &[u8], s: Sense) -> bool {
    parse(buf) == Some(s)
}

/// Converts sense data into the other format when `d_sense` asks for it; keeps the condition, drops additions.
/// Used by REQUEST SENSE, whose DESC bit names the format.
pub fn convert(buf: &mut Vec<u8>, d_sense: bool) {
    if is_descriptor(buf) != d_sense
        && let Some(s) = parse(buf)
    {
        build(buf, d_sense, s, SenseExtra::None);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::arithmetic_side_effects
    )]
    use super::*;

    fn built(d: bool, s: Sense, e: SenseExtra) -> String {
        let mut v = vec![0xFF; 3];
        build(&mut v, d, s, e);
        v.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn cdb(byte: u16, bit: Option<u8>) -> SenseExtra {
        SenseExtra::FieldInCdb { byte, bit }
    }

    fn parms(byte: u16, bit: Option<u8>) -> SenseExtra {
        SenseExtra::FieldInParms { byte, bit }
    }

    /// Every distinct sense data of the recorded conversations with kernel SCST.
    #[test]
    fn sense_bytes_are_those_of_kernel_scst() {
        use SenseExtra::{Information, None as No};
        let rows: &[(&str, bool, Sense, SenseExtra)] = &[
            (
                "700005000000000a00000000200000000000",
                false,
                INVALID_OPCODE,
                No,
            ),
            (
                "700004000000000a00000000440000000000",
                false,
                HARDW_ERROR,
                No,
            ),
            (
                "700005000000000a00000000240000c80001",
                false,
                INVALID_FIELD_IN_CDB,
                cdb(1, Some(0)),
            ),
            (
                "700005000000000a00000000240000c00002",
                false,
                INVALID_FIELD_IN_CDB,
                cdb(2, None),
            ),
            (
                "700005000000000a00000000240000ca0001",
                false,
                INVALID_FIELD_IN_CDB,
                cdb(1, Some(2)),
            ),
            (
                "700005000000000a00000000240000cd0001",
                false,
                INVALID_FIELD_IN_CDB,
                cdb(1, Some(5)),
            ),
            (
                "700005000000000a00000000240000c0000a",
                false,
                INVALID_FIELD_IN_CDB,
                cdb(10, None),
            ),
            (
                "700005000000000a00000000260000880004",
                false,
                INVALID_FIELD_IN_PARM_LIST,
                parms(4, Some(0)),
            ),
            (
                "700005000000000a000000002600008c0007",
                false,
                INVALID_FIELD_IN_PARM_LIST,
                parms(7, Some(4)),
            ),
            (
                "700005000000000a00000000260000800005",
                false,
                INVALID_FIELD_IN_PARM_LIST,
                parms(5, None),
            ),
            (
                "700005000000000a00000000210000000000",
                false,
                BLOCK_OUT_RANGE,
                No,
            ),
            (
                "700007000000000a00000000000000000000",
                false,
                DATA_PROTECT,
                No,
            ),
            ("700006000000000a00000000290000000000", false, RESET_UA, No),
            (
                "700006000000000a00000000290700000000",
                true,
                NEXUS_LOSS_UA,
                No,
            ),
            (
                "700006000000000a000000002a0100000000",
                true,
                MODE_PARAMETER_CHANGED,
                No,
            ),
            (
                "700006000000000a000000002a0300000000",
                false,
                RESERVATION_PREEMPTED,
                No,
            ),
            (
                "700006000000000a000000002a0400000000",
                false,
                RESERVATION_RELEASED,
                No,
            ),
            (
                "700006000000000a000000002a0500000000",
                false,
                REGISTRATIONS_PREEMPTED,
                No,
            ),
            (
                "700006000000000a000000002f0000000000",
                false,
                CLEARED_BY_ANOTHER_INI_UA,
                No,
            ),
            (
                "700005000000000a00000000490000000000",
                false,
                INVALID_MESSAGE,
                No,
            ),
            (
                "700005000000000a00000000250000000000",
                false,
                LUN_NOT_SUPPORTED,
                No,
            ),
            (
                "700005000000000a000000001a0000000000",
                false,
                PARAMETER_LIST_LENGTH_INVALID,
                No,
            ),
            (
                "700005000000000a00000000260400000000",
                false,
                INVALID_RELEASE,
                No,
            ),
            (
                "70000e000000000a000000001d0000000000",
                false,
                MISCOMPARE,
                No,
            ),
            (
                "f0000e000000000a000000001d0000000000",
                false,
                MISCOMPARE,
                Information(0),
            ),
            (
                "f0000e000001000a000000001d0000000000",
                false,
                MISCOMPARE,
                Information(0x100),
            ),
            ("7205210000000000", true, BLOCK_OUT_RANGE, No),
            ("7205200000000000", true, INVALID_OPCODE, No),
            (
                "720524000000000802060000c0000200",
                true,
                INVALID_FIELD_IN_CDB,
                cdb(2, None),
            ),
        ];
        for &(want, d, s, e) in rows {
            assert_eq!(built(d, s, e), want, "{s} {e:?}");
        }
    }

    #[test]
    fn both_formats_read_back_the_condition() {
        let mut v = Vec::new();
        for &(name, s) in ALL {
            for d in [false, true] {
                for e in [
                    SenseExtra::None,
                    cdb(300, Some(9)),
                    SenseExtra::Information(u64::MAX),
                    SenseExtra::Progress(7),
                ] {
                    build(&mut v, d, s, e);
                    assert_eq!(parse(&v), Some(s), "{name}");
                    assert_eq!(is_descriptor(&v), d && !s.always_fixed(), "{name}");
                    assert!(is_valid(&v) && matches(&v, s));
                    assert!(v.len() <= crate::consts::SENSE_BUFFERSIZE);
                }
            }
        }
    }

    #[test]
    fn information_beyond_32_bits_is_not_valid_in_fixed_format() {
        let big = SenseExtra::Information(1 << 32);
        assert_eq!(
            built(false, MISCOMPARE, big),
            "70000e000000000a000000001d0000000000"
        );
        assert_eq!(
            built(true, MISCOMPARE, big),
            "720e1d000000000c000a80000000000100000000"
        );
    }

    #[test]
    fn conversion_keeps_the_condition() {
        let mut v = Vec::new();
        build(&mut v, false, INQUIRY_DATA_CHANGED, SenseExtra::None);
        convert(&mut v, true);
        assert_eq!(v, [0x72, 6, 0x3F, 3, 0, 0, 0, 0]);
        convert(&mut v, true);
        assert_eq!(v.len(), 8);
        convert(&mut v, false);
        assert_eq!((v.len(), parse(&v)), (18, Some(INQUIRY_DATA_CHANGED)));
        let mut none = Vec::new();
        convert(&mut none, true);
        assert!(none.is_empty());
    }

    #[test]
    fn truncated_sense_is_not_misread() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0x70, 0]), None);
        assert_eq!(parse(&[0x72]), None);
        assert_eq!(parse(&[0x70, 0, 6]), Some(Sense::new(6, 0, 0)));
        assert_eq!(parse(&[0x00; 18]), None);
        assert_eq!(sense_key(&[0xF0, 0, 0x2E]), Some(0xE));
        assert!(is_ua(&[0x73, 6, 0x29, 0]));
    }
}
