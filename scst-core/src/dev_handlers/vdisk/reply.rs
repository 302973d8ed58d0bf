//! The parameter data of an emulated command, and how such a command fails.

use crate::sense::{self, Sense, SenseExtra};

/// Most parameter data that an emulated command returns.
#[doc(alias = "INQ_BUF_SZ")]
#[doc(alias = "MSENSE_BUF_SZ")]
pub const REPLY_MAX: usize = 256;

/// Parameter data under construction: zeroed bytes of a fixed size on the stack. Writes beyond the end are dropped,
/// and the length is what was written up to or set.
pub struct Reply {
    buf: [u8; REPLY_MAX],
    len: usize,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            buf: [0; REPLY_MAX],
            len: 0,
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reply").field(&self.as_slice()).finish()
    }
}

impl Reply {
    /// No data yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts bytes at `at`.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(room) = self.buf.get_mut(at..) {
            for (d, s) in room.iter_mut().zip(bytes) {
                *d = *s;
            }
            self.len = self.len.max(at.saturating_add(bytes.len())).min(REPLY_MAX);
        }
    }

    /// Puts one byte.
    pub fn put8(&mut self, at: usize, v: u8) {
        self.put(at, &[v]);
    }

    /// Puts a big-endian 16-bit number.
    pub fn put16(&mut self, at: usize, v: u16) {
        self.put(at, &v.to_be_bytes());
    }

    /// Puts a big-endian 32-bit number.
    pub fn put32(&mut self, at: usize, v: u32) {
        self.put(at, &v.to_be_bytes());
    }

    /// Puts a big-endian 64-bit number.
    pub fn put64(&mut self, at: usize, v: u64) {
        self.put(at, &v.to_be_bytes());
    }

    /// Sets bits of a byte.
    pub fn or8(&mut self, at: usize, bits: u8) {
        if let Some(b) = self.buf.get_mut(at) {
            *b |= bits;
        }
        self.len = self.len.max(at.saturating_add(1)).min(REPLY_MAX);
    }

    /// Puts text, cut or padded with spaces to `width` bytes.
    #[doc(alias = "scst_copy_and_fill")]
    pub fn put_text(&mut self, at: usize, text: &str, width: usize) {
        for (i, b) in text
            .bytes()
            .chain(std::iter::repeat(b' '))
            .take(width)
            .enumerate()
        {
            self.put8(at.saturating_add(i), b);
        }
    }

    /// Appends bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.put(self.len, bytes);
    }

    /// Length so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no data.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the length; bytes not written are 0.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(REPLY_MAX);
    }

    /// The data.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or(&self.buf)
    }
}

/// Why an emulated command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The condition.
    pub sense: Sense,
    /// What goes with it.
    pub extra: SenseExtra,
}

impl Fault {
    /// INVALID FIELD IN CDB.
    #[must_use]
    pub const fn cdb(byte: u16, bit: Option<u8>) -> Self {
        Self {
            sense: sense::INVALID_FIELD_IN_CDB,
            extra: SenseExtra::FieldInCdb { byte, bit },
        }
    }

    /// INVALID FIELD IN PARAMETER LIST.
    #[must_use]
    pub const fn parms(byte: u16, bit: Option<u8>) -> Self {
        Self {
            sense: sense::INVALID_FIELD_IN_PARM_LIST,
            extra: SenseExtra::FieldInParms { byte, bit },
        }
    }
}

impl From<Sense> for Fault {
    fn from(sense: Sense) -> Self {
        Self {
            sense,
            extra: SenseExtra::None,
        }
    }
}
