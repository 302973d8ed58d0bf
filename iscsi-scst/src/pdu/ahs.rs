//! Additional header segments.
//!
//! Two kinds exist: the rest of a CDB longer than 16 bytes, and the expected read length of a bidirectional
//! command (RFC 7143 11.2.2). [`ScsiCmdAhs::parse`] walks the segments of one SCSI command.
//!
//! C source: `iscsi-scst/kernel/iscsi.c` (`scsi_cmnd_start`, `cmnd_read_size`).

use super::hdr::ScsiCmdHdr;

/// AHSType of an extended CDB (RFC 7143 11.2.2.3).
#[doc(alias = "ISCSI_AHSTYPE_CDB")]
pub const AHS_TYPE_EXTENDED_CDB: u8 = 1;

/// AHSType of a bidirectional read data length (RFC 7143 11.2.2.4).
#[doc(alias = "ISCSI_AHSTYPE_RLENGTH")]
pub const AHS_TYPE_BIDI_READ_LEN: u8 = 2;

/// The longest CDB SCST takes: 16 bytes of the header and 244 of the extension (SPC-4 4.2.3: a variable length CDB
/// has at most 260).
#[doc(alias = "SCST_MAX_LONG_CDB_SIZE")]
pub const MAX_CDB_LEN: usize = 260;

/// Why the additional header segments of a command make no sense. The answer is Reject with reason 9, "invalid PDU
/// field".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AhsError {
    /// A segment announces more bytes than the PDU has.
    #[error("additional header segment runs past its PDU")]
    Truncated,
    /// A segment's length contradicts its type.
    #[error("additional header segment of type {0} with a wrong length")]
    BadLength(u8),
    /// The same segment twice.
    #[error("additional header segment of type {0} repeated")]
    Repeated(u8),
    /// A CDB longer than [`MAX_CDB_LEN`].
    #[error("extended CDB too long")]
    CdbTooLong,
}

/// What the additional header segments of a SCSI command say; borrowed from the receive buffer.
///
/// ```
/// use iscsi_scst::pdu::ahs::ScsiCmdAhs;
///
/// // Bidirectional read length 4096.
/// let ahs = ScsiCmdAhs::parse(&[0, 5, 2, 0, 0, 0, 0x10, 0])?;
/// assert_eq!(ahs.bidi_read_len, Some(4096));
/// assert_eq!(ahs.cdb_rest, None);
/// # Ok::<(), iscsi_scst::pdu::ahs::AhsError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScsiCmdAhs<'a> {
    /// Bytes of the CDB after the 16 in the header.
    #[doc(alias = "iscsi_cdb_ahdr")]
    pub cdb_rest: Option<&'a [u8]>,
    /// Expected length of the read part of a bidirectional command.
    #[doc(alias = "iscsi_rlength_ahdr")]
    pub bidi_read_len: Option<u32>,
}

impl<'a> ScsiCmdAhs<'a> {
    /// Reads all segments in `ahs`, the [`Bhs::ahs_len`](super::Bhs::ahs_len) bytes after a command's header.
    /// Segments of unknown type are passed over.
    ///
    /// # Errors
    /// [`AhsError`] where the kernel's parser would run past the buffer or take nonsense.
    pub fn parse(ahs: &'a [u8]) -> Result<Self, AhsError> {
        let mut found = Self::default();
        let mut rest = ahs;
        while let Some((&[len_hi, len_lo, kind], tail)) = rest.split_first_chunk::<3>() {
            let len = usize::from(u16::from_be_bytes([len_hi, len_lo]));
            let (specific, tail) = tail.split_at_checked(len).ok_or(AhsError::Truncated)?;
            match kind {
                AHS_TYPE_EXTENDED_CDB => found.set_cdb(specific)?,
                AHS_TYPE_BIDI_READ_LEN => found.set_bidi(specific)?,
                _ => {}
            }
            // The three bytes read above count for the alignment of the next segment.
            let pad = super::pad_len(len.saturating_add(3));
            rest = tail.get(pad..).unwrap_or_default();
        }
        if rest.is_empty() {
            Ok(found)
        } else {
            Err(AhsError::Truncated)
        }
    }

    /// The whole CDB, header part first, copied into `buf`; the used part of `buf` is returned.
    #[must_use]
    pub fn whole_cdb<'b>(&self, hdr: &ScsiCmdHdr, buf: &'b mut [u8; MAX_CDB_LEN]) -> &'b [u8] {
        let rest = self.cdb_rest.unwrap_or_default();
        let cdb = hdr.cdb.iter().chain(rest);
        let len = buf
            .iter_mut()
            .zip(cdb)
            .map(|(to, from)| *to = *from)
            .count();
        buf.get(..len).unwrap_or_default()
    }

    fn set_cdb(&mut self, specific: &'a [u8]) -> Result<(), AhsError> {
        let Some((_reserved, cdb)) = specific.split_first() else {
            return Err(AhsError::BadLength(AHS_TYPE_EXTENDED_CDB));
        };
        if cdb.is_empty() {
            return Err(AhsError::BadLength(AHS_TYPE_EXTENDED_CDB));
        }
        if cdb.len() > MAX_CDB_LEN.saturating_sub(16) {
            return Err(AhsError::CdbTooLong);
        }
        match self.cdb_rest.replace(cdb) {
            None => Ok(()),
            Some(_) => Err(AhsError::Repeated(AHS_TYPE_EXTENDED_CDB)),
        }
    }

    fn set_bidi(&mut self, specific: &[u8]) -> Result<(), AhsError> {
        let &[_reserved, a, b, c, d] = specific else {
            return Err(AhsError::BadLength(AHS_TYPE_BIDI_READ_LEN));
        };
        match self.bidi_read_len.replace(u32::from_be_bytes([a, b, c, d])) {
            None => Ok(()),
            Some(_) => Err(AhsError::Repeated(AHS_TYPE_BIDI_READ_LEN)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_an_extended_cdb() {
        let mut ahs = vec![0, 17, AHS_TYPE_EXTENDED_CDB, 0];
        ahs.extend(16..32u8);
        let found = ScsiCmdAhs::parse(&ahs).unwrap();
        let mut hdr = ScsiCmdHdr::new();
        hdr.cdb = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let mut buf = [0; MAX_CDB_LEN];
        let cdb = found.whole_cdb(&hdr, &mut buf);
        assert_eq!(cdb, (0..32u8).collect::<Vec<_>>());
    }

    #[test]
    fn reads_two_segments_with_padding_between() {
        let ahs = [0, 3, 1, 0, 0xaa, 0xbb, 0, 0, 0, 5, 2, 0, 0, 1, 0, 0];
        let found = ScsiCmdAhs::parse(&ahs).unwrap();
        assert_eq!(found.cdb_rest, Some(&[0xaa, 0xbb][..]));
        assert_eq!(found.bidi_read_len, Some(65536));
    }

    #[test]
    fn refuses_nonsense() {
        let cases: &[(&[u8], AhsError)] = &[
            (&[0, 0, 1, 0], AhsError::BadLength(1)),
            (&[0, 1, 1, 0], AhsError::BadLength(1)),
            (&[0, 4, 2, 0, 0, 0, 0, 0], AhsError::BadLength(2)),
            (&[0, 9, 1, 0, 0, 0, 0, 0], AhsError::Truncated),
            (&[0xff, 0xff, 9, 0], AhsError::Truncated),
            (
                &[0, 2, 1, 0, 5, 0, 0, 0, 0, 2, 1, 0, 5, 0, 0, 0],
                AhsError::Repeated(1),
            ),
        ];
        for (bytes, error) in cases {
            assert_eq!(ScsiCmdAhs::parse(bytes), Err(*error), "{bytes:?}");
        }
        let mut long = vec![0, 246, 1, 0];
        long.resize(252, 0);
        assert_eq!(ScsiCmdAhs::parse(&long), Err(AhsError::CdbTooLong));
    }

    #[test]
    fn passes_over_unknown_types() {
        assert_eq!(ScsiCmdAhs::parse(&[0, 1, 77, 0]), Ok(ScsiCmdAhs::default()));
        assert_eq!(ScsiCmdAhs::parse(&[]), Ok(ScsiCmdAhs::default()));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1020)) {
            let _ = ScsiCmdAhs::parse(&bytes);
        }
    }
}
