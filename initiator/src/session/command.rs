//! What goes into a command and what comes out of it.

use crate::scsi::{lun_field, sense_code, status};

/// Task attributes of RFC 7143 11.3.1.
pub mod attr {
    /// Untagged.
    pub const UNTAGGED: u8 = 0;
    /// SIMPLE.
    pub const SIMPLE: u8 = 1;
    /// ORDERED.
    pub const ORDERED: u8 = 2;
    /// HEAD OF QUEUE.
    pub const HEAD_OF_QUEUE: u8 = 3;
    /// ACA.
    pub const ACA: u8 = 4;
}

/// One SCSI command, every field free to be wrong.
#[derive(Clone, Debug)]
pub struct Command {
    /// LUN field as sent.
    pub lun: [u8; 8],
    /// CDB; bytes past 16 travel in an extended-CDB AHS.
    pub cdb: Vec<u8>,
    /// Data-out.
    pub out: Vec<u8>,
    /// Expected data-in length.
    pub in_len: u32,
    /// Task attribute.
    pub attr: u8,
    /// Immediate delivery.
    pub immediate: bool,
    /// Most bytes to send as immediate data; the negotiated limits hold besides.
    pub immediate_max: usize,
    /// Send unsolicited Data-Out PDUs where negotiated (InitialR2T=No).
    pub unsolicited: bool,
    /// Do not answer R2Ts; [`crate::Session::answer_held`] does it later.
    pub hold: bool,
    /// ExpectedDataTransferLength, when it is not to follow from `out` and `in_len`.
    pub expected_len: Option<u32>,
    /// R and W bits, when they are not to follow from `out` and `in_len`.
    pub rw_bits: Option<u8>,
}

impl Command {
    /// A command without data.
    pub fn new(lun: u16, cdb: Vec<u8>) -> Self {
        Self {
            lun: lun_field(lun),
            cdb,
            out: Vec::new(),
            in_len: 0,
            attr: attr::SIMPLE,
            immediate: false,
            immediate_max: usize::MAX,
            unsolicited: true,
            hold: false,
            expected_len: None,
            rw_bits: None,
        }
    }

    /// A command that reads `len` bytes.
    pub fn read(lun: u16, cdb: Vec<u8>, len: u32) -> Self {
        Self {
            in_len: len,
            ..Self::new(lun, cdb)
        }
    }

    /// A command that writes `out`.
    pub fn write(lun: u16, cdb: Vec<u8>, out: Vec<u8>) -> Self {
        Self {
            out,
            ..Self::new(lun, cdb)
        }
    }

    /// All data on request only: neither immediate nor unsolicited.
    pub fn solicited(mut self) -> Self {
        self.immediate_max = 0;
        self.unsolicited = false;
        self
    }

    /// R2Ts stay unanswered until [`crate::Session::answer_held`].
    pub fn held(mut self) -> Self {
        self.hold = true;
        self
    }

    /// With this task attribute.
    pub fn attr(mut self, attr: u8) -> Self {
        self.attr = attr;
        self
    }
}

/// Residual count of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// As much as expected was transferred.
    None,
    /// So many bytes fewer than expected.
    Underflow(u32),
    /// So many bytes did not fit.
    Overflow(u32),
}

/// The end of a SCSI command.
#[derive(Clone, Debug)]
pub struct Reply {
    /// iSCSI response code (0 = completed at target).
    pub response: u8,
    /// SCSI status.
    pub status: u8,
    /// Sense data without its length field.
    pub sense: Vec<u8>,
    /// Data-in.
    pub data_in: Vec<u8>,
    /// Residual.
    pub residual: Residual,
    /// Number of Data-In PDUs.
    pub data_in_pdus: u32,
    /// Number of R2Ts.
    pub r2ts: u32,
}

impl Reply {
    /// True if the command ended with GOOD status.
    pub fn is_good(&self) -> bool {
        self.response == 0 && self.status == status::GOOD
    }

    /// The data of a command that must have succeeded.
    ///
    /// # Panics
    ///
    /// If it did not.
    #[track_caller]
    pub fn good(self) -> Vec<u8> {
        assert!(self.is_good(), "command failed: {self}");
        self.data_in
    }

    /// Sense key, ASC, ASCQ of a CHECK CONDITION; zeros otherwise.
    pub fn sense_code(&self) -> (u8, u8, u8) {
        sense_code(&self.sense)
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (key, asc, ascq) = self.sense_code();
        write!(
            f,
            "response {:02x} status {:02x} sense {key:02x}/{asc:02x}/{ascq:02x} {:?}, {} bytes in",
            self.response,
            self.status,
            self.residual,
            self.data_in.len()
        )
    }
}
