//! SCSI Data-Out (RFC 7143 11.7).

use crate::pdu::{Itt, Ttt, flags, opcode};
use zerocopy::big_endian::U32;

header! {
    /// SCSI Data-Out: write data, unsolicited or for an R2T.
    #[doc(alias = "iscsi_data_out_hdr")]
    pub struct DataOutHdr(opcode::DATA_OUT) {
        /// F: last PDU of the burst.
        pub flags: u8,
        /// Reserved.
        pub rsvd1: [u8; 2],
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of the data.
        pub data_segment_len: [u8; 3],
        /// LUN of the R2T, or reserved.
        pub lun: [u8; 8],
        /// Initiator task tag of the command.
        pub itt: U32,
        /// Target transfer tag of the R2T; reserved for unsolicited data.
        pub ttt: U32,
        /// Reserved.
        pub rsvd2: U32,
        /// ExpStatSN.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub rsvd3: U32,
        /// DataSN within the burst.
        pub data_sn: U32,
        /// Where the data belong in the command's buffer.
        pub buffer_offset: U32,
        /// Reserved.
        pub rsvd4: U32,
    }
    new {
        ttt: Ttt::RESERVED,
    }
}

impl DataOutHdr {
    /// Initiator task tag.
    #[must_use]
    pub fn itt(&self) -> Itt {
        self.itt.into()
    }

    /// Target transfer tag, or `None` for unsolicited data.
    #[must_use]
    pub fn solicited_by(&self) -> Option<Ttt> {
        Some(self.ttt.into()).filter(|ttt| *ttt != Ttt::RESERVED)
    }

    /// Whether this is the last PDU of its burst.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.flags & flags::FINAL != 0
    }
}
