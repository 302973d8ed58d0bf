//! SCSI Response (RFC 7143 11.4).

use crate::pdu::{ScsiResponse, flags, opcode};
use zerocopy::big_endian::U32;

header! {
    /// SCSI Response.
    #[doc(alias = "iscsi_scsi_rsp_hdr")]
    pub struct ScsiRspHdr(opcode::SCSI_RSP) {
        /// F (always set), o, u, O, U.
        pub flags: u8,
        /// A [`ScsiResponse`].
        pub response: u8,
        /// SCSI status.
        pub status: u8,
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of sense data with their two-byte length, and response data.
        pub data_segment_len: [u8; 3],
        /// Reserved.
        pub rsvd1: [u8; 8],
        /// Initiator task tag.
        pub itt: U32,
        /// SNACK tag, or zero.
        pub snack_tag: U32,
        /// StatSN.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// How many Data-In and R2T PDUs the command had.
        pub exp_data_sn: U32,
        /// Residual count of the bidirectional read part.
        pub bidi_residual_count: U32,
        /// Residual count.
        pub residual_count: U32,
    }
    new {
        flags: flags::FINAL,
    }
}
response_sns!(ScsiRspHdr);

impl ScsiRspHdr {
    /// Sets the service response.
    pub fn set_response(&mut self, response: ScsiResponse) {
        self.response = response.code();
    }
}
