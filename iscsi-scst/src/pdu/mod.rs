//! iSCSI protocol data units.
//!
//! A PDU is a 48-byte basic header segment ([`Bhs`]), additional header segments ([`ahs`]), an optional header
//! digest, a data segment padded to four bytes and an optional data digest (RFC 7143 11.1, 11.2). This module
//! looks at headers where they lie: [`Bhs::request`] is one byte compared and a reference returned, no copy and no
//! allocation. Responses are headers from [`hdr`], filled in and written with [`Header::encode`].
//!
//! ```
//! use iscsi_scst::pdu::{Bhs, Digests, Request};
//!
//! let mut bytes = [0u8; 48];
//! bytes[0] = 0x41; // SCSI command, immediate
//! bytes[7] = 10; // ten bytes of immediate data
//! let (bhs, _rest) = Bhs::split(&bytes).ok_or("short")?;
//! assert!(matches!(bhs.request(), Request::ScsiCmd(cmd) if cmd.cdb[0] == 0));
//! assert_eq!(bhs.layout(Digests::default()).ok_or("too long")?.total, 48 + 12);
//! # Ok::<(), &str>(())
//! ```
//!
//! What arrives here was written by a peer that nobody vouches for: nothing in this module panics, indexes, wraps
//! or truncates.
//!
//! C source: `iscsi-scst/kernel/iscsi_hdr.h`, `iscsi-scst/usr/iscsi_hdr.h`.

pub mod ahs;
pub mod hdr;
mod status;

pub use hdr::Header;
pub use status::{
    AsyncEvent, LoginStatus, LogoutReason, LogoutResponse, RejectReason, ScsiResponse, TaskAttr,
    TmfFunction, TmfResponse,
};

use crate::sn::{CmdSn, StatSn};
use hdr::{
    DataOutHdr, LoginReqHdr, LogoutReqHdr, NopOutHdr, ScsiCmdHdr, SnackHdr, TaskMgtHdr, TextReqHdr,
};
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_ref};

/// Length of a basic header segment (RFC 7143 11.2.1).
#[doc(alias = "BHS_SIZE")]
pub const BHS_LEN: usize = 48;

/// Length of a CRC32C digest on the wire (RFC 7143 11.3.4).
pub const DIGEST_LEN: usize = 4;

/// Most bytes that the additional header segments of one PDU can have: TotalAHSLength is eight bits of four-byte
/// words (RFC 7143 11.2.1.5).
pub const MAX_AHS_LEN: usize = 255 * 4;

/// Largest data segment that DataSegmentLength, 24 bits, can announce (RFC 7143 11.2.1.6).
pub const MAX_DATA_SEGMENT_LEN: u32 = 0x00ff_ffff;

/// The data segment limit of the login phase, and of any direction whose receiver declared nothing
/// (MaxRecvDataSegmentLength's default, RFC 7143 13.12).
#[doc(alias = "INCOMING_BUFSIZE")]
pub const DEFAULT_MAX_DATA_SEGMENT_LEN: u32 = 8192;

/// The one protocol version there is (RFC 7143 11.12.4).
pub const ISCSI_VERSION: u8 = 0;

/// The TCP port of iSCSI targets (RFC 7143 4.2.7.1).
#[doc(alias = "ISCSI_LISTEN_PORT")]
pub const ISCSI_PORT: u16 = 3260;

/// Opcode values, the low six bits of a PDU's first byte (RFC 7143 11.2.1.2).
pub mod opcode {
    /// NOP-Out.
    #[doc(alias = "ISCSI_OP_NOP_OUT")]
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    #[doc(alias = "ISCSI_OP_SCSI_CMD")]
    pub const SCSI_CMD: u8 = 0x01;
    /// SCSI Task Management Function Request.
    #[doc(alias = "ISCSI_OP_SCSI_TASK_MGT_MSG")]
    pub const TASK_MGT: u8 = 0x02;
    /// Login Request.
    #[doc(alias = "ISCSI_OP_LOGIN_CMD")]
    pub const LOGIN: u8 = 0x03;
    /// Text Request.
    #[doc(alias = "ISCSI_OP_TEXT_CMD")]
    pub const TEXT: u8 = 0x04;
    /// SCSI Data-Out.
    #[doc(alias = "ISCSI_OP_SCSI_DATA_OUT")]
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    #[doc(alias = "ISCSI_OP_LOGOUT_CMD")]
    pub const LOGOUT: u8 = 0x06;
    /// SNACK Request.
    #[doc(alias = "ISCSI_OP_SNACK_CMD")]
    pub const SNACK: u8 = 0x10;
    /// NOP-In.
    #[doc(alias = "ISCSI_OP_NOP_IN")]
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    #[doc(alias = "ISCSI_OP_SCSI_RSP")]
    pub const SCSI_RSP: u8 = 0x21;
    /// SCSI Task Management Function Response.
    #[doc(alias = "ISCSI_OP_SCSI_TASK_MGT_RSP")]
    pub const TASK_MGT_RSP: u8 = 0x22;
    /// Login Response.
    #[doc(alias = "ISCSI_OP_LOGIN_RSP")]
    pub const LOGIN_RSP: u8 = 0x23;
    /// Text Response.
    #[doc(alias = "ISCSI_OP_TEXT_RSP")]
    pub const TEXT_RSP: u8 = 0x24;
    /// SCSI Data-In.
    #[doc(alias = "ISCSI_OP_SCSI_DATA_IN")]
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    #[doc(alias = "ISCSI_OP_LOGOUT_RSP")]
    pub const LOGOUT_RSP: u8 = 0x26;
    /// Ready To Transfer.
    #[doc(alias = "ISCSI_OP_R2T")]
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    #[doc(alias = "ISCSI_OP_ASYNC_MSG")]
    pub const ASYNC_MSG: u8 = 0x32;
    /// Reject.
    #[doc(alias = "ISCSI_OP_REJECT")]
    pub const REJECT: u8 = 0x3f;

    /// The bits of the first byte that hold the opcode.
    #[doc(alias = "ISCSI_OPCODE_MASK")]
    pub const MASK: u8 = 0x3f;
    /// The I bit of the first byte: immediate delivery (RFC 7143 11.2.1.1).
    #[doc(alias = "ISCSI_OP_IMMEDIATE")]
    pub const IMMEDIATE: u8 = 0x40;
}

/// Bits of a PDU's second byte that several PDUs share; bits of one PDU only are constants of its header type.
pub mod flags {
    /// F: final or only PDU of a sequence (RFC 7143 11.2.1.3).
    #[doc(alias = "ISCSI_FLG_FINAL")]
    pub const FINAL: u8 = 0x80;
    /// C: the text continues in the next PDU (RFC 7143 11.10.2, 11.12.2).
    #[doc(alias = "ISCSI_FLG_CONTINUE")]
    pub const CONTINUE: u8 = 0x40;
    /// o: residual overflow of the bidirectional read part (RFC 7143 11.4.1).
    #[doc(alias = "ISCSI_FLG_BIRESIDUAL_OVERFLOW")]
    pub const BIDI_OVERFLOW: u8 = 0x10;
    /// u: residual underflow of the bidirectional read part (RFC 7143 11.4.1).
    #[doc(alias = "ISCSI_FLG_BIRESIDUAL_UNDERFLOW")]
    pub const BIDI_UNDERFLOW: u8 = 0x08;
    /// O: residual overflow (RFC 7143 11.4.1, 11.7.3).
    #[doc(alias = "ISCSI_FLG_RESIDUAL_OVERFLOW")]
    pub const OVERFLOW: u8 = 0x04;
    /// U: residual underflow (RFC 7143 11.4.1, 11.7.3).
    #[doc(alias = "ISCSI_FLG_RESIDUAL_UNDERFLOW")]
    pub const UNDERFLOW: u8 = 0x02;
    /// S: a Data-In PDU that carries the command's status (RFC 7143 11.7.3).
    #[doc(alias = "ISCSI_FLG_STATUS")]
    pub const STATUS: u8 = 0x01;
}

macro_rules! tag {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $wire:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $inner);

        impl From<$wire> for $name {
            fn from(wire: $wire) -> Self {
                Self(wire.get())
            }
        }

        impl From<$name> for $wire {
            fn from(tag: $name) -> Self {
                Self::new(tag.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

tag! {
    /// Initiator task tag: the initiator's name for a task (RFC 7143 11.2.1.8).
    Itt, u32, U32
}
tag! {
    /// Target transfer tag: the target's name for a transfer (RFC 7143 11.7.4, 11.8.3).
    Ttt, u32, U32
}
tag! {
    /// Connection identifier within a session, chosen by the initiator (RFC 7143 11.12.7).
    Cid, u16, U16
}
tag! {
    /// Target session identifying handle; 0 asks for a new session (RFC 7143 11.12.6).
    Tsih, u16, U16
}

impl Itt {
    /// The value that names no task.
    #[doc(alias = "ISCSI_RESERVED_TAG")]
    pub const RESERVED: Self = Self(u32::MAX);
}

impl Ttt {
    /// The value that names no transfer.
    pub const RESERVED: Self = Self(u32::MAX);
}

/// The initiator's part of a session identifier (RFC 7143 11.12.5).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Isid(pub [u8; 6]);

impl std::fmt::Display for Isid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The basic header segment of any PDU, as it lies on the wire.
///
/// A view: [`Bhs::split`] finds it in a receive buffer without copying, [`Bhs::request`] names what it is.
#[doc(alias = "iscsi_hdr")]
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Bhs {
    /// Opcode with the I bit.
    pub opcode: u8,
    /// Second byte: F and opcode-specific flags.
    pub flags: u8,
    /// Opcode-specific bytes 2 and 3.
    pub spec1: [u8; 2],
    /// TotalAHSLength in four-byte words.
    pub total_ahs_len: u8,
    /// DataSegmentLength, big-endian.
    pub data_segment_len: [u8; 3],
    /// LUN, or opcode-specific.
    pub lun: [u8; 8],
    /// Initiator task tag.
    pub itt: U32,
    /// Opcode-specific bytes 20 to 47.
    pub spec2: [u8; 28],
}

const _: () = assert!(size_of::<Bhs>() == BHS_LEN);

impl Bhs {
    /// The first 48 bytes of `buf` as a header and what follows them, or `None` while fewer have arrived.
    #[must_use]
    pub fn split(buf: &[u8]) -> Option<(&Self, &[u8])> {
        Self::ref_from_prefix(buf).ok()
    }

    /// A header over exactly 48 bytes.
    #[must_use]
    pub fn of(bytes: &[u8; BHS_LEN]) -> &Self {
        transmute_ref!(bytes)
    }

    /// The header's 48 bytes, as a Reject returns them.
    #[must_use]
    pub fn as_array(&self) -> &[u8; BHS_LEN] {
        transmute_ref!(self)
    }

    /// The opcode without the I bit, one of [`opcode`] or unknown.
    #[doc(alias = "cmnd_opcode")]
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.opcode & opcode::MASK
    }

    /// Whether the PDU is marked for immediate delivery. Data-Out and SNACK have no such bit.
    #[must_use]
    pub const fn is_immediate(&self) -> bool {
        self.opcode & opcode::IMMEDIATE != 0
    }

    /// Whether the F bit (T in login PDUs) is set.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.flags & flags::FINAL != 0
    }

    /// Length of the additional header segments in bytes; at most [`MAX_AHS_LEN`].
    #[must_use]
    pub fn ahs_len(&self) -> usize {
        usize::from(self.total_ahs_len).saturating_mul(4)
    }

    /// Length of the data segment without padding; at most [`MAX_DATA_SEGMENT_LEN`].
    #[must_use]
    pub fn data_len(&self) -> u32 {
        data_len_from_wire(self.data_segment_len)
    }

    /// The initiator task tag.
    #[must_use]
    pub fn itt(&self) -> Itt {
        self.itt.into()
    }

    /// CmdSN of a request that has one (all but Data-Out and SNACK, where these bytes are reserved).
    #[must_use]
    pub fn cmd_sn(&self) -> CmdSn {
        let as_cmd: &ScsiCmdHdr = transmute_ref!(self);
        as_cmd.cmd_sn.into()
    }

    /// ExpStatSN of a request; every request has one.
    #[must_use]
    pub fn exp_stat_sn(&self) -> StatSn {
        let as_cmd: &ScsiCmdHdr = transmute_ref!(self);
        as_cmd.exp_stat_sn.into()
    }

    /// Which request of an initiator this is, with its typed header.
    ///
    /// Reactor-safe; a compare and a reference.
    #[must_use]
    pub fn request(&self) -> Request<'_> {
        match self.opcode() {
            opcode::SCSI_CMD => Request::ScsiCmd(transmute_ref!(self)),
            opcode::DATA_OUT => Request::DataOut(transmute_ref!(self)),
            opcode::NOP_OUT => Request::NopOut(transmute_ref!(self)),
            opcode::TASK_MGT => Request::TaskMgt(transmute_ref!(self)),
            opcode::LOGIN => Request::Login(transmute_ref!(self)),
            opcode::TEXT => Request::Text(transmute_ref!(self)),
            opcode::LOGOUT => Request::Logout(transmute_ref!(self)),
            opcode::SNACK => Request::Snack(transmute_ref!(self)),
            other => Request::Unknown(other),
        }
    }

    /// Where the PDU's parts lie, given the digests of the connection's full feature phase (none during login).
    /// `None` only where `usize` has fewer than 32 bits.
    #[must_use]
    pub fn layout(&self, digests: Digests) -> Option<PduLayout> {
        let ahs_len = self.ahs_len();
        let data_len = usize::try_from(self.data_len()).ok()?;
        let pad_len = pad_len(data_len);
        let header_digest_len = if digests.header { DIGEST_LEN } else { 0 };
        // RFC 7143 11.2.3: without a data segment there is no data digest either.
        let data_digest_len = if digests.data && data_len != 0 {
            DIGEST_LEN
        } else {
            0
        };
        let data_at = BHS_LEN
            .checked_add(ahs_len)?
            .checked_add(header_digest_len)?;
        let data_digest_at = data_at.checked_add(data_len)?.checked_add(pad_len)?;
        let total = data_digest_at.checked_add(data_digest_len)?;
        Some(PduLayout {
            ahs_len,
            data_at,
            data_len,
            pad_len,
            data_digest_at,
            total,
        })
    }
}

impl std::fmt::Debug for Bhs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bhs")
            .field("opcode", &format_args!("{:#04x}", self.opcode))
            .field("flags", &format_args!("{:#04x}", self.flags))
            .field("ahs_len", &self.ahs_len())
            .field("data_len", &self.data_len())
            .field("itt", &self.itt())
            .finish_non_exhaustive()
    }
}

/// A request PDU of an initiator, by opcode. See [`Bhs::request`].
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// NOP-Out.
    NopOut(&'a NopOutHdr),
    /// SCSI Command.
    ScsiCmd(&'a ScsiCmdHdr),
    /// Task management function request.
    TaskMgt(&'a TaskMgtHdr),
    /// Login.
    Login(&'a LoginReqHdr),
    /// Text.
    Text(&'a TextReqHdr),
    /// SCSI Data-Out.
    DataOut(&'a DataOutHdr),
    /// Logout.
    Logout(&'a LogoutReqHdr),
    /// SNACK.
    Snack(&'a SnackHdr),
    /// An opcode that no initiator may send, or that does not exist.
    Unknown(u8),
}

/// Which digests protect a connection's PDUs (RFC 7143 13.1); off in the login phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digests {
    /// CRC32C over BHS and AHS.
    pub header: bool,
    /// CRC32C over the data segment and its padding.
    pub data: bool,
}

/// Offsets and lengths of one PDU's parts, counted from its first byte. The header digest, when there is one, lies
/// directly before `data_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PduLayout {
    /// Length of the additional header segments, which start at [`BHS_LEN`].
    pub ahs_len: usize,
    /// Offset of the data segment.
    pub data_at: usize,
    /// Length of the data segment without padding.
    pub data_len: usize,
    /// Bytes of padding after the data segment, 0 to 3.
    pub pad_len: usize,
    /// Offset of the data digest (or of the PDU's end).
    pub data_digest_at: usize,
    /// Length of the whole PDU.
    pub total: usize,
}

/// Bytes that pad `len` to a multiple of four (RFC 7143 11.1).
#[must_use]
pub const fn pad_len(len: usize) -> usize {
    len.wrapping_neg() & 3
}

pub(crate) fn data_len_from_wire([a, b, c]: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, a, b, c])
}

/// `len` as the 24 bits of DataSegmentLength. Longer than [`MAX_DATA_SEGMENT_LEN`] is a bug of the caller: checked
/// in debug builds, cut to the largest in release.
pub(crate) fn data_len_to_wire(len: u32) -> [u8; 3] {
    debug_assert!(len <= MAX_DATA_SEGMENT_LEN, "data segment of {len} bytes");
    let [_, a, b, c] = len.min(MAX_DATA_SEGMENT_LEN).to_be_bytes();
    [a, b, c]
}

#[cfg(test)]
mod tests;
