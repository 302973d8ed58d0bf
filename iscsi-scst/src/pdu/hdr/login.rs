//! Login Request and Login Response (RFC 7143 11.12, 11.13).

use crate::pdu::{ISCSI_VERSION, Isid, LoginStatus, opcode};
use zerocopy::big_endian::{U16, U32};

/// The stages of a login (RFC 7143 11.12.3). 2 is not assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginStage {
    /// Security negotiation.
    #[doc(alias = "ISCSI_FLG_CSG_SECURITY")]
    Security,
    /// Operational negotiation.
    #[doc(alias = "ISCSI_FLG_CSG_LOGIN")]
    Operational,
    /// Full feature phase.
    #[doc(alias = "ISCSI_FLG_CSG_FULL_FEATURE")]
    FullFeature,
}

impl LoginStage {
    /// The stage of a two-bit code.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::Security),
            1 => Some(Self::Operational),
            3 => Some(Self::FullFeature),
            _ => None,
        }
    }

    /// The stage's two-bit code.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Security => 0,
            Self::Operational => 1,
            Self::FullFeature => 3,
        }
    }
}

/// The flag byte of login PDUs: T, C, CSG and NSG (RFC 7143 11.12.1 to 11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoginFlags(pub u8);

impl LoginFlags {
    /// T: ready to leave the current stage.
    #[doc(alias = "ISCSI_FLG_TRANSIT")]
    pub const TRANSIT: u8 = 0x80;
    /// C: the text continues in the next PDU.
    pub const CONTINUE: u8 = 0x40;

    /// Whether T is set.
    #[must_use]
    pub const fn transit(self) -> bool {
        self.0 & Self::TRANSIT != 0
    }

    /// Whether C is set.
    #[must_use]
    pub const fn continues(self) -> bool {
        self.0 & Self::CONTINUE != 0
    }

    /// CSG: the current stage.
    #[must_use]
    pub const fn current(self) -> Option<LoginStage> {
        LoginStage::from_bits(self.0 >> 2)
    }

    /// NSG: the next stage, of meaning when T is set.
    #[must_use]
    pub const fn next(self) -> Option<LoginStage> {
        LoginStage::from_bits(self.0)
    }

    /// The byte for a current stage and, with T, the stage to change to.
    #[must_use]
    pub const fn stages(current: LoginStage, transit_to: Option<LoginStage>) -> Self {
        let csg = current.bits() << 2;
        match transit_to {
            Some(next) => Self(Self::TRANSIT | csg | next.bits()),
            None => Self(csg),
        }
    }
}

header! {
    /// Login Request.
    #[doc(alias = "iscsi_login_req_hdr")]
    pub struct LoginReqHdr(opcode::LOGIN | opcode::IMMEDIATE) {
        /// [`LoginFlags`].
        pub flags: u8,
        /// Highest version the initiator speaks.
        pub version_max: u8,
        /// Lowest version the initiator speaks.
        pub version_min: u8,
        /// Additional header length.
        pub total_ahs_len: u8,
        /// Length of the text.
        pub data_segment_len: [u8; 3],
        /// The initiator's part of the session identifier.
        pub isid: Isid,
        /// Session handle; 0 for a new session.
        pub tsih: U16,
        /// Initiator task tag.
        pub itt: U32,
        /// Connection identifier.
        pub cid: U16,
        /// Reserved.
        pub rsvd1: U16,
        /// CmdSN.
        pub cmd_sn: U32,
        /// ExpStatSN.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub rsvd2: [u8; 16],
    }
}

impl LoginReqHdr {
    /// The flag byte.
    #[must_use]
    pub const fn login_flags(&self) -> LoginFlags {
        LoginFlags(self.flags)
    }
}

header! {
    /// Login Response.
    #[doc(alias = "iscsi_login_rsp_hdr")]
    pub struct LoginRspHdr(opcode::LOGIN_RSP) {
        /// [`LoginFlags`].
        pub flags: u8,
        /// Highest version the target speaks.
        pub version_max: u8,
        /// Version in use.
        pub version_active: u8,
        /// Additional header length, zero.
        pub total_ahs_len: u8,
        /// Length of the text.
        pub data_segment_len: [u8; 3],
        /// ISID of the request.
        pub isid: Isid,
        /// Session handle: the new one in the last response of a login, else as in the request.
        pub tsih: U16,
        /// Initiator task tag of the request.
        pub itt: U32,
        /// Reserved.
        pub rsvd1: U32,
        /// StatSN, valid when the status class is 0.
        pub stat_sn: U32,
        /// ExpCmdSN.
        pub exp_cmd_sn: U32,
        /// MaxCmdSN.
        pub max_cmd_sn: U32,
        /// Status class.
        pub status_class: u8,
        /// Status detail.
        pub status_detail: u8,
        /// Reserved.
        pub rsvd2: [u8; 10],
    }
    new {
        version_max: ISCSI_VERSION,
        version_active: ISCSI_VERSION,
    }
}
response_sns!(LoginRspHdr);

impl LoginRspHdr {
    /// Sets status class and detail.
    pub fn set_status(&mut self, status: LoginStatus) {
        self.status_class = status.class();
        self.status_detail = status.detail();
    }
}
