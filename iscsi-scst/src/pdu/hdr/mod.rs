//! Typed basic header segments, one per PDU.
//!
//! Each type is the 48 bytes of the wire: big-endian fields, no padding, any alignment. A received header is viewed
//! as its type ([`Bhs::request`](super::Bhs::request), [`Header::of`]); one to send starts from `new()`, which sets
//! the opcode and the values the protocol prescribes, and goes out through [`Header::encode`].
//!
//! ```
//! use iscsi_scst::pdu::{Header, Itt, hdr::NopInHdr};
//! use iscsi_scst::sn::{CmdSn, StatSn};
//!
//! let mut nop = NopInHdr::new();
//! nop.itt = Itt(7).into();
//! nop.set_sns(StatSn(1), CmdSn(2), CmdSn(33));
//! let mut wire = [0u8; 48];
//! nop.encode(&mut wire);
//! assert_eq!(wire[0], 0x20);
//! ```

use super::Bhs;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What all header types have in common. All of it is reactor-safe.
pub trait Header:
    Copy + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Sized
{
    /// The PDU's opcode.
    const OPCODE: u8;

    /// Views `bhs` as this PDU. The opcode is not looked at: the caller knows what it has.
    fn of(bhs: &Bhs) -> &Self;

    /// The header as an untyped one.
    fn as_bhs(&self) -> &Bhs;

    /// Writes the header to `out`.
    fn encode(&self, out: &mut [u8; super::BHS_LEN]) {
        *out = *self.as_bhs().as_array();
    }

    /// Length of the data segment.
    fn data_len(&self) -> u32 {
        self.as_bhs().data_len()
    }
}

/// Defines one header: the struct, `new()` with the opcode and the given starting values, and [`Header`].
macro_rules! header {
    (
        $(#[$doc:meta])*
        pub struct $name:ident($opcode:expr) {
            $($(#[$fdoc:meta])* pub $field:ident: $ty:ty,)+
        }
        $(new { $($init:ident: $value:expr,)+ })?
    ) => {
        $(#[$doc])*
        #[derive(
            Debug,
            Clone,
            Copy,
            PartialEq,
            Eq,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::Immutable,
            zerocopy::KnownLayout,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            /// Opcode, with the I bit in requests.
            pub opcode: u8,
            $($(#[$fdoc])* pub $field: $ty,)+
        }

        const _: () = assert!(size_of::<$name>() == $crate::pdu::BHS_LEN);

        impl $name {
            /// A header with the opcode and the values that the protocol prescribes set, all else zero.
            #[must_use]
            pub fn new() -> Self {
                Self {
                    opcode: $opcode,
                    $($($init: $value.into(),)+)?
                    ..zerocopy::FromZeros::new_zeroed()
                }
            }

            /// Sets the length of the data segment; at most
            /// [`MAX_DATA_SEGMENT_LEN`](crate::pdu::MAX_DATA_SEGMENT_LEN).
            pub fn set_data_len(&mut self, len: u32) {
                self.data_segment_len = $crate::pdu::data_len_to_wire(len);
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl $crate::pdu::Header for $name {
            const OPCODE: u8 = $opcode;

            fn of(bhs: &$crate::pdu::Bhs) -> &Self {
                zerocopy::transmute_ref!(bhs)
            }

            fn as_bhs(&self) -> &$crate::pdu::Bhs {
                zerocopy::transmute_ref!(self)
            }
        }
    };
}

/// Adds `set_sns` to a response header.
macro_rules! response_sns {
    ($name:ident) => {
        impl $name {
            /// Sets StatSN, ExpCmdSN and MaxCmdSN.
            #[doc(alias = "cmnd_set_sn")]
            pub fn set_sns(
                &mut self,
                stat_sn: $crate::sn::StatSn,
                exp_cmd_sn: $crate::sn::CmdSn,
                max_cmd_sn: $crate::sn::CmdSn,
            ) {
                self.stat_sn = stat_sn.into();
                self.exp_cmd_sn = exp_cmd_sn.into();
                self.max_cmd_sn = max_cmd_sn.into();
            }
        }
    };
}

mod async_msg;
mod data_in;
mod data_out;
mod login;
mod logout;
mod nop;
mod r2t;
mod reject;
mod scsi_cmd;
mod scsi_rsp;
mod snack;
mod task_mgmt;
mod text;

pub use async_msg::AsyncMsgHdr;
pub use data_in::DataInHdr;
pub use data_out::DataOutHdr;
pub use login::{LoginFlags, LoginReqHdr, LoginRspHdr, LoginStage};
pub use logout::{LogoutReqHdr, LogoutRspHdr};
pub use nop::{NopInHdr, NopOutHdr};
pub use r2t::R2tHdr;
pub use reject::RejectHdr;
pub use scsi_cmd::ScsiCmdHdr;
pub use scsi_rsp::ScsiRspHdr;
pub use snack::SnackHdr;
pub use task_mgmt::{TaskMgtHdr, TaskMgtRspHdr};
pub use text::{TextReqHdr, TextRspHdr};
