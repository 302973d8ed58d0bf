//! The parameter list of UNMAP.
//!
//! C source: `scst_parse_unmap_descriptors` of `scst/src/scst_lib.c`

use super::reply::Fault;
use crate::cdb::bytes::{be16_at, be32_at, be64_at};

/// Bytes before the first descriptor.
const HEADER_LEN: usize = 8;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: usize = 16;

/// One range to unmap.
#[doc(alias = "scst_data_descriptor")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) lba: u64,
    pub(super) blocks: u32,
}

/// Reads the descriptors of a parameter list of `list_len` bytes (as the CDB says), of which `data` has come.
///
/// # Errors
/// INVALID FIELD IN PARAMETER LIST: the descriptors' length does not fit the list, is no multiple of a descriptor's, or
/// they have not all been sent. DIFFERS: SCST takes what has not been sent from old memory.
pub(super) fn parse(data: &[u8], list_len: usize) -> Result<Vec<Range>, Fault> {
    let len = usize::from(be16_at(data, 2));
    if data.is_empty() || len == 0 {
        return Ok(Vec::new());
    }
    let room = list_len.min(data.len()).saturating_sub(HEADER_LEN);
    if len > room || len % DESCRIPTOR_LEN != 0 {
        return Err(Fault::parms(2, None));
    }
    let body = data.get(HEADER_LEN..).unwrap_or_default();
    let descriptors = body.chunks_exact(DESCRIPTOR_LEN).take(len / DESCRIPTOR_LEN);
    Ok(descriptors
        .map(|d| Range {
            lba: be64_at(d, 0),
            blocks: be32_at(d, 8),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_recorded_from_kernel_scst() {
        let one = [
            0, 0x16, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0,
        ];
        assert_eq!(
            parse(&one, 24),
            Ok(vec![Range {
                lba: 0x100,
                blocks: 8
            }])
        );
        assert_eq!(parse(&[0, 6, 0, 0, 0, 0, 0, 0], 8), Ok(vec![]));
        assert_eq!(parse(&[0, 6, 0, 0], 4), Ok(vec![]));
        assert_eq!(parse(&[], 0), Ok(vec![]));
    }

    #[test]
    fn bad_lengths_are_refused() {
        let mut one = [0u8; 24];
        one[3] = 0x10;
        assert_eq!(parse(&one, 23), Err(Fault::parms(2, None)));
        assert_eq!(parse(&one[..20], 24), Err(Fault::parms(2, None)));
        one[3] = 0x0F;
        assert_eq!(parse(&one, 24), Err(Fault::parms(2, None)));
        one[3] = 0x20;
        assert_eq!(parse(&one, 24), Err(Fault::parms(2, None)));
        one[2] = 0xFF;
        assert_eq!(parse(&one, 24), Err(Fault::parms(2, None)));
    }
}
