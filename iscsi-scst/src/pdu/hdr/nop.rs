//! NOP-Out and NOP-In (RFC 7143 11.18, 11.19).

use crate::pdu::{Itt, Ttt, flags, opcode};
use zerocopy::big_endian::U32;

header! {
    /// NOP-Out: an initiator's ping, or its answer to the target's.
    #[doc(alias = "iscsi_nop_out_hdr")]
    pub struct NopOutHdr(opcode::NOP_OUT) {
        /// F, always set.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length.
        pub total_ahs_len: u8,
        /// Length of the ping data.
        pub data_segment_len: [u8; 3],
        /// LUN of the NOP-In that is answered.
        pub lun: [u8; 8],
        /// Initiator task tag; reserved when no answer is wanted.
        pub itt: U32,
        /// Target transfer tag of the NOP-In that is answered, else reserved.
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

impl NopOutHdr {
    /// Initiator task tag, or `None` when no NOP-In is asked for.
    #[must_use]
    pub fn wants_answer(&self) -> Option<Itt> {
        Some(self.itt.into()).filter(|itt| *itt != Itt::RESERVED)
    }

    /// The target's ping that this answers, if any.
    #[must_use]
    pub fn answers(&self) -> Option<Ttt> {
        Some(self.ttt.into()).filter(|ttt| *ttt != Ttt::RESERVED)
    }
}

header! {
    /// NOP-In: the target's answer to a ping, or its own.
    #[doc(alias = "iscsi_nop_in_hdr")]
    pub struct NopInHdr(opcode::NOP_IN) {
        /// F, always set.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of the ping data.
        pub data_segment_len: [u8; 3],
        /// LUN, with a target transfer tag.
        pub lun: [u8; 8],
        /// Initiator task tag of the ping answered, else reserved.
        pub itt: U32,
        /// Target transfer tag when an answer is wanted, else reserved.
        pub ttt: U32,
        /// StatSN; of a ping of the target's own the next one, not used up.
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
        itt: Itt::RESERVED,
        ttt: Ttt::RESERVED,
    }
}
response_sns!(NopInHdr);
