//! SCSI Command (RFC 7143 11.3).

use crate::pdu::{Itt, TaskAttr, flags, opcode};
use crate::sn::CmdSn;
use zerocopy::big_endian::U32;

header! {
    /// SCSI Command.
    #[doc(alias = "iscsi_scsi_cmd_hdr")]
    pub struct ScsiCmdHdr(opcode::SCSI_CMD) {
        /// F, R, W and the task attribute.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length.
        pub total_ahs_len: u8,
        /// Length of immediate data.
        pub data_segment_len: [u8; 3],
        /// Logical unit number.
        pub lun: [u8; 8],
        /// Initiator task tag.
        pub itt: U32,
        /// Expected data transfer length: of the write part when the command is bidirectional.
        pub expected_data_transfer_length: U32,
        /// CmdSN.
        pub cmd_sn: U32,
        /// ExpStatSN.
        pub exp_stat_sn: U32,
        /// First 16 bytes of the CDB.
        pub cdb: [u8; 16],
    }
    new {
        flags: flags::FINAL,
    }
}

impl ScsiCmdHdr {
    /// R: the command reads.
    #[doc(alias = "ISCSI_CMD_READ")]
    pub const FLAG_READ: u8 = 0x40;
    /// W: the command writes.
    #[doc(alias = "ISCSI_CMD_WRITE")]
    pub const FLAG_WRITE: u8 = 0x20;
    /// Bits of the task attribute.
    #[doc(alias = "ISCSI_CMD_ATTR_MASK")]
    pub const ATTR_MASK: u8 = 0x07;

    /// Initiator task tag.
    #[must_use]
    pub fn itt(&self) -> Itt {
        self.itt.into()
    }

    /// CmdSN.
    #[must_use]
    pub fn cmd_sn(&self) -> CmdSn {
        self.cmd_sn.into()
    }

    /// Whether F is set: no unsolicited Data-Out follows.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.flags & flags::FINAL != 0
    }

    /// Whether the command is marked for immediate delivery.
    #[must_use]
    pub const fn is_immediate(&self) -> bool {
        self.opcode & opcode::IMMEDIATE != 0
    }

    /// Whether data are expected from the target.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        self.flags & Self::FLAG_READ != 0
    }

    /// Whether data go to the target.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        self.flags & Self::FLAG_WRITE != 0
    }

    /// Task attribute; `None` for the reserved codes 5 to 7.
    #[must_use]
    pub const fn attr(&self) -> Option<TaskAttr> {
        TaskAttr::from_code(self.flags & Self::ATTR_MASK)
    }
}
