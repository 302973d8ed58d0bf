//! Reject (RFC 7143 11.17).

use crate::pdu::{Itt, RejectReason, flags, opcode};
use zerocopy::big_endian::U32;

header! {
    /// Reject: a PDU was refused; its header is the data segment.
    ///
    /// RFC 7143 11.17 shows the F bit set. SCST's kernel half leaves it clear and its daemon sets it, so `new()`
    /// leaves it clear and [`RejectHdr::for_login`] sets it.
    #[doc(alias = "iscsi_reject_hdr")]
    pub struct RejectHdr(opcode::REJECT) {
        /// F.
        pub flags: u8,
        /// A [`RejectReason`].
        pub reason: u8,
        /// Reserved.
        pub rsvd1: u8,
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of the returned header.
        pub data_segment_len: [u8; 3],
        /// Reserved.
        pub rsvd2: [u8; 8],
        /// FFFFFFFFh.
        pub itt: U32,
        /// Reserved.
        pub rsvd3: U32,
        /// StatSN.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// DataSN or R2TSN of the next PDU, for a rejected SNACK.
        pub data_sn: U32,
        /// Reserved.
        pub rsvd4: [u8; 8],
    }
    new {
        itt: Itt::RESERVED,
        // The header of the refused PDU, which every Reject returns.
        data_segment_len: [0, 0, 48],
    }
}
response_sns!(RejectHdr);

impl RejectHdr {
    /// A Reject in full feature phase.
    #[doc(alias = "create_reject_rsp")]
    #[must_use]
    pub fn for_reason(reason: RejectReason) -> Self {
        Self {
            reason: reason.code(),
            ..Self::new()
        }
    }

    /// A Reject in the login phase or a discovery session.
    #[doc(alias = "cmnd_reject")]
    #[must_use]
    pub fn for_login(reason: RejectReason) -> Self {
        Self {
            flags: flags::FINAL,
            ..Self::for_reason(reason)
        }
    }
}
