//! Asynchronous Message (RFC 7143 11.9).

use crate::pdu::{AsyncEvent, Itt, flags, opcode};
use zerocopy::big_endian::{U16, U32};

header! {
    /// Asynchronous Message: the target reports an event of its own.
    #[doc(alias = "iscsi_async_msg_hdr")]
    pub struct AsyncMsgHdr(opcode::ASYNC_MSG) {
        /// F, always set.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of sense and event data.
        pub data_segment_len: [u8; 3],
        /// The logical unit of a SCSI event.
        pub lun: [u8; 8],
        /// FFFFFFFFh.
        pub itt: U32,
        /// Reserved.
        pub rsvd2: U32,
        /// StatSN.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// Event, an [`AsyncEvent`].
        pub async_event: u8,
        /// Vendor code.
        pub async_vcode: u8,
        /// Parameter 1.
        pub param1: U16,
        /// Parameter 2.
        pub param2: U16,
        /// Parameter 3.
        pub param3: U16,
        /// Reserved.
        pub rsvd3: U32,
    }
    new {
        flags: flags::FINAL,
        itt: Itt::RESERVED,
    }
}
response_sns!(AsyncMsgHdr);

impl AsyncMsgHdr {
    /// The event, if it is one that exists.
    #[must_use]
    pub const fn event(&self) -> Option<AsyncEvent> {
        AsyncEvent::from_code(self.async_event)
    }
}
