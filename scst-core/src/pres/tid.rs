//! TransportIDs: names of initiator ports.
//!
//! C source: `scst_tid_size`, `tid_equal`, `tid_secure` of `scst/src/scst_pres.c`

use crate::cdb::bytes::{be16_at, u8_at};
use std::sync::Arc;

/// Protocol identifier of iSCSI (SPC-4 7.6.1).
#[doc(alias = "SCSI_TRANSPORTID_PROTOCOLID_ISCSI")]
pub const PROTOCOL_ISCSI: u8 = 5;
/// Length of a TransportID of any other protocol.
#[doc(alias = "TID_COMMON_SIZE")]
pub const COMMON_LEN: usize = 24;
/// Bytes before the name of an iSCSI TransportID.
const ISCSI_HEADER_LEN: usize = 4;
/// Longest TransportID that a command may register. An iSCSI port's needs at most 248 bytes.
pub const MAX_TRANSPORT_ID_LEN: usize = 512;

const PROTOCOL_MASK: u8 = 0x0F;
const FORMAT_MASK: u8 = 0xC0;
/// iSCSI format 00b: the name of a device, that is all its ports.
const FORMAT_DEVICE: u8 = 0x00;
/// iSCSI format 01b: name, `,i,0x`, ISID.
const FORMAT_PORT: u8 = 0x40;

/// The name of an initiator port (SPC-4 7.6.4), as its transport wrote it. Cheap to clone.
///
/// ```
/// use scst_core::pres::TransportId;
///
/// let tid = |format: u8, name: &str| {
///     let mut b = vec![format << 6 | 5, 0, 0, 32];
///     b.extend_from_slice(name.as_bytes());
///     b.resize(36, 0);
///     TransportId::parse(&b).ok_or("too short")
/// };
/// let port = tid(1, "iqn.2026-01.org:a,i,0x10")?;
/// assert!(port.is_same(&tid(1, "IQN.2026-01.org:A,i,0x10")?));
/// assert!(!port.is_same(&tid(1, "iqn.2026-01.org:a,i,0x11")?));
/// // The name of a device stands for all its ports.
/// assert!(port.is_same(&tid(0, "iqn.2026-01.org:a")?));
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TransportId(Arc<[u8]>);

impl std::fmt::Debug for TransportId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TransportId({self})")
    }
}

impl std::fmt::Display for TransportId {
    /// The name of an iSCSI port; hexadecimal digits for any other.
    #[doc(alias = "debug_transport_id_to_initiator_name")]
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.protocol() == PROTOCOL_ISCSI {
            return write!(f, "{}", self.name().escape_ascii());
        }
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl TransportId {
    /// Length of the TransportID at the beginning of `b`, which may be longer than `b`. Context: any.
    #[doc(alias = "scst_tid_size")]
    #[must_use]
    pub fn len_at(b: &[u8]) -> usize {
        if u8_at(b, 0) & PROTOCOL_MASK == PROTOCOL_ISCSI {
            usize::from(be16_at(b, 2)).saturating_add(ISCSI_HEADER_LEN)
        } else {
            COMMON_LEN
        }
    }

    /// The TransportID at the beginning of `b`; `None` if `b` is too short for it. Context: any.
    #[must_use]
    pub fn parse(b: &[u8]) -> Option<Self> {
        b.get(..Self::len_at(b)).map(|b| Self(Arc::from(b)))
    }

    /// The same from a parameter list: a name is made to end with a zero.
    #[doc(alias = "tid_secure")]
    pub(crate) fn parse_untrusted(b: &[u8]) -> Option<Self> {
        let mut b = b.get(..Self::len_at(b))?.to_vec();
        if u8_at(&b, 0) & PROTOCOL_MASK == PROTOCOL_ISCSI
            && let Some(last) = b.last_mut()
        {
            *last = 0;
        }
        Some(Self(Arc::from(b)))
    }

    /// All its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Protocol identifier.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        u8_at(&self.0, 0) & PROTOCOL_MASK
    }

    /// Whether it names an iSCSI device rather than one of its ports.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.protocol() == PROTOCOL_ISCSI && self.format() == FORMAT_DEVICE
    }

    fn format(&self) -> u8 {
        u8_at(&self.0, 0) & FORMAT_MASK
    }

    /// An iSCSI name, up to the first zero.
    fn name(&self) -> &[u8] {
        let name = self.0.get(ISCSI_HEADER_LEN..).unwrap_or_default();
        name.split(|b| *b == 0).next().unwrap_or_default()
    }

    /// Whether both name the same port, or one of them the device that has the other. iSCSI names do not depend on
    /// case. Context: any.
    #[doc(alias = "tid_equal")]
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        if self.protocol() != other.protocol() {
            return false;
        }
        if self.protocol() != PROTOCOL_ISCSI {
            return self.0 == other.0;
        }
        let (a, b) = (self.format(), other.format());
        let known = |format| format == FORMAT_DEVICE || format == FORMAT_PORT;
        if !known(a) || !known(b) {
            return false;
        }
        if a == b {
            return self.name().eq_ignore_ascii_case(other.name());
        }
        let device = |t: &Self| {
            let name = t.name();
            match t.format() {
                FORMAT_DEVICE => Some(name.to_vec()),
                _ => {
                    let end = name.iter().position(|b| *b == b',')?;
                    name.get(..end).map(<[u8]>::to_vec)
                }
            }
        };
        match (device(self), device(other)) {
            (Some(a), Some(b)) => a.eq_ignore_ascii_case(&b),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iscsi(format: u8, name: &str) -> TransportId {
        let mut b = vec![format << 6 | PROTOCOL_ISCSI, 0];
        b.extend_from_slice(&(name.len() as u16 + 1).to_be_bytes());
        b.extend_from_slice(name.as_bytes());
        b.push(0);
        TransportId::parse(&b).unwrap()
    }

    #[test]
    fn names_compare_as_in_scst() {
        let rows = [
            (1, "a,i,0x1", 1, "A,I,0X1", true),
            (1, "a,i,0x1", 1, "a,i,0x2", false),
            (1, "a,i,0x1", 0, "a", true),
            (0, "A", 1, "a,i,0x1", true),
            (0, "a", 0, "a", true),
            (0, "a", 0, "ab", false),
            (0, "a,i,0x1", 1, "a,i,0x1", false),
            (1, "a", 0, "a", false),
            (2, "a", 2, "a", false),
        ];
        for (fa, a, fb, b, same) in rows {
            assert_eq!(
                iscsi(fa, a).is_same(&iscsi(fb, b)),
                same,
                "{fa} {a} {fb} {b}"
            );
        }
        let fc = TransportId::parse(&[0; 24]).unwrap();
        assert!(fc.is_same(&fc) && !fc.is_same(&iscsi(1, "a,i,0x1")));
    }

    #[test]
    fn short_ones_are_refused() {
        let whole = iscsi(1, "iqn.a,i,0x123");
        for n in 0..whole.as_bytes().len() {
            assert_eq!(TransportId::parse(&whole.as_bytes()[..n]), None, "{n}");
        }
        assert_eq!(TransportId::parse(&[0; 23]), None);
        assert!(TransportId::parse_untrusted(&[5, 0, 0, 0]).is_some());
    }
}
