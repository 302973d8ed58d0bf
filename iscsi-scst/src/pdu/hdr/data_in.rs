//! SCSI Data-In (RFC 7143 11.7).

use crate::pdu::{Ttt, flags, opcode};
use crate::sn::{CmdSn, StatSn};
use zerocopy::big_endian::U32;

header! {
    /// SCSI Data-In: read data, and with the S bit the status of a command that ended well.
    #[doc(alias = "iscsi_data_in_hdr")]
    pub struct DataInHdr(opcode::DATA_IN) {
        /// F, A, O, U, S.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: u8,
        /// SCSI status, when S is set.
        pub status: u8,
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of the data.
        pub data_segment_len: [u8; 3],
        /// LUN, when A is set.
        pub lun: [u8; 8],
        /// Initiator task tag of the command.
        pub itt: U32,
        /// Target transfer tag, reserved unless A is set.
        pub ttt: U32,
        /// StatSN, when S is set.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// DataSN.
        pub data_sn: U32,
        /// Where the data belong in the command's buffer.
        pub buffer_offset: U32,
        /// Residual count, when S and O or U are set.
        pub residual_count: U32,
    }
    new {
        ttt: Ttt::RESERVED,
    }
}

impl DataInHdr {
    /// A: the target asks for an acknowledgement (ERL > 0).
    pub const FLAG_ACK: u8 = 0x40;

    /// Sets ExpCmdSN and MaxCmdSN, and, with a status, S, StatSN and the status. Without one StatSN is reserved
    /// (RFC 7143 11.7.3).
    pub fn set_sns(&mut self, status: Option<(u8, StatSn)>, exp_cmd_sn: CmdSn, max_cmd_sn: CmdSn) {
        if let Some((status, stat_sn)) = status {
            self.flags |= flags::STATUS;
            self.status = status;
            self.stat_sn = stat_sn.into();
        }
        self.exp_cmd_sn = exp_cmd_sn.into();
        self.max_cmd_sn = max_cmd_sn.into();
    }
}
