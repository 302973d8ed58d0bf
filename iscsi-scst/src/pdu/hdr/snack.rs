//! SNACK Request (RFC 7143 11.16).

use crate::pdu::{flags, opcode};
use zerocopy::big_endian::U32;

header! {
    /// SNACK Request: asks for PDUs again. Of no use at error recovery level 0; SCST rejects it.
    #[doc(alias = "iscsi_snack_req_hdr")]
    pub struct SnackHdr(opcode::SNACK) {
        /// F, and the type in the low four bits.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length.
        pub total_ahs_len: u8,
        /// Data segment length, zero.
        pub data_segment_len: [u8; 3],
        /// LUN, or reserved.
        pub lun: [u8; 8],
        /// Initiator task tag, or reserved.
        pub itt: U32,
        /// Target transfer tag or SNACK tag, or reserved.
        pub ttt: U32,
        /// Reserved.
        pub rsvd2: U32,
        /// ExpStatSN.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub rsvd3: [u8; 8],
        /// First number wanted.
        pub beg_run: U32,
        /// How many are wanted; 0 means all.
        pub run_length: U32,
    }
    new {
        flags: flags::FINAL,
    }
}
