//! Text Request and Text Response (RFC 7143 11.10, 11.11).

use crate::pdu::{Ttt, flags, opcode};
use zerocopy::big_endian::U32;

header! {
    /// Text Request.
    #[doc(alias = "iscsi_text_req_hdr")]
    pub struct TextReqHdr(opcode::TEXT) {
        /// F and C.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length.
        pub total_ahs_len: u8,
        /// Length of the text.
        pub data_segment_len: [u8; 3],
        /// LUN, copied from a Text Response with a target transfer tag.
        pub lun: [u8; 8],
        /// Initiator task tag.
        pub itt: U32,
        /// Target transfer tag of the exchange that goes on, or reserved for a new one.
        pub ttt: U32,
        /// CmdSN.
        pub cmd_sn: U32,
        /// ExpStatSN.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub rsvd2: [u8; 16],
    }
    new {
        flags: flags::FINAL,
        ttt: Ttt::RESERVED,
    }
}

impl TextReqHdr {
    /// Target transfer tag of the exchange that goes on, or `None` for a new one.
    #[must_use]
    pub fn resumes(&self) -> Option<Ttt> {
        Some(self.ttt.into()).filter(|ttt| *ttt != Ttt::RESERVED)
    }
}

header! {
    /// Text Response.
    #[doc(alias = "iscsi_text_rsp_hdr")]
    pub struct TextRspHdr(opcode::TEXT_RSP) {
        /// F and C.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of the text.
        pub data_segment_len: [u8; 3],
        /// LUN, with a target transfer tag.
        pub lun: [u8; 8],
        /// Initiator task tag of the request.
        pub itt: U32,
        /// Target transfer tag when more is to come, else reserved.
        pub ttt: U32,
        /// StatSN.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// Reserved.
        pub rsvd2: [u8; 12],
    }
    new {
        flags: flags::FINAL,
        ttt: Ttt::RESERVED,
    }
}
response_sns!(TextRspHdr);
