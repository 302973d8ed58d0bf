//! Ready To Transfer (RFC 7143 11.8).

use crate::pdu::{flags, opcode};
use zerocopy::big_endian::U32;

header! {
    /// Ready To Transfer: the target asks for write data.
    #[doc(alias = "iscsi_r2t_hdr")]
    pub struct R2tHdr(opcode::R2T) {
        /// F, always set.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Data segment length, zero.
        pub data_segment_len: [u8; 3],
        /// LUN of the command.
        pub lun: [u8; 8],
        /// Initiator task tag of the command.
        pub itt: U32,
        /// Target transfer tag that the data must carry.
        pub ttt: U32,
        /// The next StatSN, not used up.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// R2TSN.
        pub r2t_sn: U32,
        /// Offset of the wanted data in the command's buffer.
        pub buffer_offset: U32,
        /// How many bytes are wanted; not zero.
        pub desired_len: U32,
    }
    new {
        flags: flags::FINAL,
    }
}
response_sns!(R2tHdr);
