//! Logout Request and Logout Response (RFC 7143 11.14, 11.15).

use crate::pdu::{Cid, LogoutReason, LogoutResponse, flags, opcode};
use zerocopy::big_endian::{U16, U32};

header! {
    /// Logout Request.
    #[doc(alias = "iscsi_logout_req_hdr")]
    pub struct LogoutReqHdr(opcode::LOGOUT) {
        /// F, and the reason in the low seven bits.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length.
        pub total_ahs_len: u8,
        /// Data segment length, zero.
        pub data_segment_len: [u8; 3],
        /// Reserved.
        pub rsvd2: [u8; 8],
        /// Initiator task tag.
        pub itt: U32,
        /// Connection to close, unless the whole session is.
        pub cid: U16,
        /// Reserved.
        pub rsvd3: U16,
        /// CmdSN.
        pub cmd_sn: U32,
        /// ExpStatSN.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub rsvd4: [u8; 16],
    }
    new {
        flags: flags::FINAL,
    }
}

impl LogoutReqHdr {
    /// The reason, if it is one that exists.
    #[must_use]
    pub const fn reason(&self) -> Option<LogoutReason> {
        LogoutReason::from_code(self.flags & 0x7f)
    }

    /// The connection to close.
    #[must_use]
    pub fn cid(&self) -> Cid {
        self.cid.into()
    }
}

header! {
    /// Logout Response.
    #[doc(alias = "iscsi_logout_rsp_hdr")]
    pub struct LogoutRspHdr(opcode::LOGOUT_RSP) {
        /// F, always set.
        pub flags: u8,
        /// A [`LogoutResponse`].
        pub response: u8,
        /// Reserved.
        pub rsvd1: u8,
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Data segment length, zero.
        pub data_segment_len: [u8; 3],
        /// Reserved.
        pub rsvd2: [u8; 8],
        /// Initiator task tag of the request.
        pub itt: U32,
        /// Reserved.
        pub rsvd3: U32,
        /// StatSN.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// Reserved.
        pub rsvd4: U32,
        /// Least seconds before recovery is tried.
        pub time2wait: U16,
        /// Most seconds, after those, that tasks are kept.
        pub time2retain: U16,
        /// Reserved.
        pub rsvd5: U32,
    }
    new {
        flags: flags::FINAL,
    }
}
response_sns!(LogoutRspHdr);

impl LogoutRspHdr {
    /// Sets the response code.
    pub fn set_response(&mut self, response: LogoutResponse) {
        self.response = response.code();
    }
}
