//! Task Management Function Request and Response (RFC 7143 11.5, 11.6).

use crate::pdu::{Itt, TmfFunction, TmfResponse, flags, opcode};
use crate::sn::CmdSn;
use zerocopy::big_endian::U32;

header! {
    /// Task Management Function Request.
    #[doc(alias = "iscsi_task_mgt_hdr")]
    pub struct TaskMgtHdr(opcode::TASK_MGT) {
        /// F, and the function in the low seven bits.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length.
        pub total_ahs_len: u8,
        /// Data segment length, zero.
        pub data_segment_len: [u8; 3],
        /// Logical unit number, for functions that have one.
        pub lun: [u8; 8],
        /// Initiator task tag of the function itself.
        pub itt: U32,
        /// Initiator task tag of the task to abort, reassign or query, else reserved.
        pub referenced_task_tag: U32,
        /// CmdSN.
        pub cmd_sn: U32,
        /// ExpStatSN.
        pub exp_stat_sn: U32,
        /// CmdSN of the task to abort.
        pub ref_cmd_sn: U32,
        /// ExpDataSN, for TASK REASSIGN.
        pub exp_data_sn: U32,
        /// Reserved.
        pub rsvd2: [u8; 8],
    }
    new {
        flags: flags::FINAL,
        referenced_task_tag: Itt::RESERVED,
    }
}

impl TaskMgtHdr {
    /// Bits of the function code.
    #[doc(alias = "ISCSI_FUNCTION_MASK")]
    pub const FUNCTION_MASK: u8 = 0x7f;

    /// The function, if it is one that exists.
    #[must_use]
    pub const fn function(&self) -> Option<TmfFunction> {
        TmfFunction::from_code(self.flags & Self::FUNCTION_MASK)
    }

    /// The referenced task tag.
    #[must_use]
    pub fn referenced_task_tag(&self) -> Itt {
        self.referenced_task_tag.into()
    }

    /// CmdSN of the task to abort.
    #[must_use]
    pub fn ref_cmd_sn(&self) -> CmdSn {
        self.ref_cmd_sn.into()
    }
}

header! {
    /// Task Management Function Response.
    #[doc(alias = "iscsi_task_rsp_hdr")]
    pub struct TaskMgtRspHdr(opcode::TASK_MGT_RSP) {
        /// F, always set.
        pub flags: u8,
        /// A [`TmfResponse`].
        pub response: u8,
        /// Reserved.
        pub rsvd1: u8,
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Data segment length, zero.
        pub data_segment_len: [u8; 3],
        /// Reserved.
        pub rsvd2: [u8; 8],
        /// Initiator task tag of the function.
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
        pub rsvd4: [u8; 12],
    }
    new {
        flags: flags::FINAL,
    }
}
response_sns!(TaskMgtRspHdr);

impl TaskMgtRspHdr {
    /// Sets the response code.
    pub fn set_response(&mut self, response: TmfResponse) {
        self.response = response.code();
    }
}
