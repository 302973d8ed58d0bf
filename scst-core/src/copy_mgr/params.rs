//! The parameter list of EXTENDED COPY (LID1) (SPC-4 6.4).
//!
//! DIFFERS: segment descriptors that are cut off are a parameter list length error; SCST reads what is behind the list.
//!
//! C source: `scst_cm_parse_descriptors`, `scst_cm_parse_id_tgt_descr`, `scst_cm_parse_b2b_seg_descr` of
//! `scst/src/scst_copy_mgr.c`

use crate::cdb::bytes::{be16_at, be24_at, be32_at, be64_at, u8_at};
use crate::sense::{self, Sense};

/// Most CSCD descriptors.
#[doc(alias = "SCST_CM_MAX_TGT_DESCR_CNT")]
pub(super) const MAX_CSCDS: usize = 5;
/// Most segment descriptors.
#[doc(alias = "SCST_CM_MAX_SEG_DESCR_CNT")]
pub(super) const MAX_SEGMENTS: usize = 143;
/// Length of the header.
pub(super) const HEADER_LEN: usize = 16;
const CSCD_LEN: usize = 32;
const SEGMENT_LEN: usize = 28;
/// MAXIMUM DESCRIPTOR LIST LENGTH: what both kinds of descriptors may have together.
pub(super) const DESCRIPTORS_MAX: u16 = 0xFFFF;
/// What a list can have at most that is looked at.
pub(super) const LIST_MAX: usize =
    HEADER_LEN + MAX_CSCDS * CSCD_LEN + (MAX_SEGMENTS + 1) * SEGMENT_LEN;
/// CSCD descriptor: identification descriptor.
pub(super) const CSCD_IDENTIFICATION: u8 = 0xE4;
/// Segment descriptor: block device to block device.
pub(super) const SEGMENT_BLOCK_TO_BLOCK: u8 = 0x02;
/// DESCRIPTOR LENGTH of that segment descriptor.
const SEGMENT_BODY_LEN: u16 = 0x18;
/// Longest designator of a CSCD descriptor.
const DESIGNATOR_MAX: u8 = 20;

/// Why a list is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// INVALID FIELD IN CDB.
    Cdb { byte: u16 },
    /// INVALID FIELD IN PARAMETER LIST.
    Parms { byte: u16, bit: Option<u8> },
    /// As it is.
    Sense(Sense),
    /// COPY ABORTED, because of a segment.
    Segment {
        asc: u8,
        ascq: u8,
        segment: u16,
        /// Offset of the field in the segment descriptor.
        byte: u16,
    },
}

impl From<Sense> for Refusal {
    fn from(s: Sense) -> Self {
        Self::Sense(s)
    }
}

/// What LIST ID USAGE says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListIdUsage {
    /// Results are kept under this list identifier.
    Kept(u8),
    /// They are not.
    None,
}

/// Reads LIST ID and LIST ID USAGE from a list of `len` bytes.
pub(super) fn list_id(list: &[u8], len: usize) -> Result<ListIdUsage, Refusal> {
    if len < HEADER_LEN {
        return Err(Refusal::Cdb { byte: 10 });
    }
    let id = u8_at(list, 0);
    match u8_at(list, 1) >> 3 & 3 {
        0 | 2 => Ok(ListIdUsage::Kept(id)),
        3 if id == 0 => Ok(ListIdUsage::None),
        3 => Err(Refusal::Parms { byte: 0, bit: None }),
        _ => Err(Refusal::Parms {
            byte: 1,
            bit: Some(3),
        }),
    }
}

/// A device, as a CSCD descriptor names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cscd<D> {
    pub(super) dev: D,
    pub(super) block_shift: u8,
    pub(super) read_only: bool,
    /// Where its descriptor is in the list.
    pub(super) offset: u16,
}

/// Finds devices.
pub(super) trait Devices {
    type Device: Clone;
    /// The device with a designator, given by the header's first two bytes and its value; with log2 of its block size.
    fn find(&self, code_set: u8, kind: u8, designator: &[u8]) -> Option<(Self::Device, u8)>;
    /// Whether the initiator may use the device at all, and then whether the device is read-only.
    fn access(&self, dev: &Self::Device) -> Option<bool>;
}

/// One segment: what to copy from where to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment<D> {
    pub(super) src: Cscd<D>,
    pub(super) dst: Cscd<D>,
    pub(super) src_lba: u64,
    pub(super) dst_lba: u64,
    /// In bytes; a multiple of both block sizes.
    pub(super) len: u64,
}

/// Reads the descriptors of a list of `len` bytes, of which `list` has at least [`LIST_MAX`] if there are that many.
/// Answers nothing for a list without descriptors.
pub(super) fn parse<T: Devices>(
    list: &[u8],
    len: usize,
    devices: &T,
) -> Result<Option<Vec<Segment<T::Device>>>, Refusal> {
    if be32_at(list, 12) != 0 {
        return Err(sense::INLINE_DATA_LENGTH_EXCEEDED.into());
    }
    let cscd_len = usize::from(be16_at(list, 2));
    let segments_len = usize::try_from(be32_at(list, 8)).unwrap_or(usize::MAX);
    if cscd_len == 0 && segments_len == 0 {
        return Ok(None);
    }
    if cscd_len == 0 {
        return Err(Refusal::Parms { byte: 2, bit: None });
    }
    let whole = cscd_len
        .saturating_add(segments_len)
        .saturating_add(HEADER_LEN);
    // DIFFERS: SCST does not look at the sum of both, though it tells a MAXIMUM DESCRIPTOR LIST LENGTH (SPC-4 6.4.3.1).
    if cscd_len.saturating_add(segments_len) > usize::from(DESCRIPTORS_MAX) {
        return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
    }
    if whole > len {
        return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
    }
    if whole != len {
        return Err(sense::INLINE_DATA_LENGTH_EXCEEDED.into());
    }
    if !cscd_len.is_multiple_of(CSCD_LEN) {
        return Err(Refusal::Parms { byte: 2, bit: None });
    }
    if cscd_len > MAX_CSCDS * CSCD_LEN {
        return Err(sense::TOO_MANY_TARGET_DESCRIPTORS.into());
    }
    let body = list.get(HEADER_LEN..).unwrap_or_default();
    let (cscds, segments) = body.split_at_checked(cscd_len).unwrap_or((body, &[]));
    let cscds = cscds
        .chunks(CSCD_LEN)
        .zip((16u16..).step_by(CSCD_LEN))
        .map(|(d, offset)| cscd(d, offset, devices))
        .collect::<Result<Vec<_>, _>>()?;
    check_segments(segments, segments_len)?;
    segments
        .chunks(SEGMENT_LEN)
        .zip(0u16..)
        .map(|(d, n)| segment(d, n, &cscds))
        .collect::<Result<Vec<_>, _>>()
        .map(Some)
}

/// One CSCD descriptor; `None` for a null device.
fn cscd<T: Devices>(
    d: &[u8],
    offset: u16,
    devices: &T,
) -> Result<Option<Cscd<T::Device>>, Refusal> {
    let invalid = |at: u16, bit| Refusal::Parms {
        byte: offset.saturating_add(at),
        bit,
    };
    if u8_at(d, 0) != CSCD_IDENTIFICATION {
        return Err(sense::UNSUPPORTED_TGT_DESCR_TYPE.into());
    }
    // DIFFERS: SCST refuses what is not zero in bits 6 and 7, LU ID TYPE, which initiators of SPC-4 targets need not set.
    let flags = u8_at(d, 1);
    if flags & 0x20 != 0 {
        return Ok(None);
    }
    if flags & 0x0F != 0 {
        return Err(invalid(1, Some(0)));
    }
    let len = u8_at(d, 7);
    let designator = d.get(8..8_usize.saturating_add(usize::from(len)));
    let found = designator
        .filter(|_| len <= DESIGNATOR_MAX)
        .and_then(|v| devices.find(u8_at(d, 4), u8_at(d, 5), v));
    let (dev, block_shift) = found.ok_or_else(|| invalid(0, None))?;
    if 1u32.checked_shl(u32::from(block_shift)) != Some(be24_at(d, 29)) {
        return Err(invalid(29, None));
    }
    let read_only = devices.access(&dev).ok_or_else(|| invalid(0, None))?;
    Ok(Some(Cscd {
        dev,
        block_shift,
        read_only,
        offset,
    }))
}

/// Whether there are not too many segment descriptors, and all of a kind that is known.
fn check_segments(segments: &[u8], len: usize) -> Result<(), Refusal> {
    for (n, d) in segments.chunks(SEGMENT_LEN).enumerate() {
        if n == MAX_SEGMENTS {
            return Err(sense::TOO_MANY_SEGMENT_DESCRIPTORS.into());
        }
        if u8_at(d, 0) != SEGMENT_BLOCK_TO_BLOCK {
            return Err(sense::UNSUPPORTED_SEG_DESCR_TYPE.into());
        }
    }
    if !len.is_multiple_of(SEGMENT_LEN) {
        return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
    }
    Ok(())
}

/// The device that a segment descriptor names at byte `at`.
fn named<D: Clone>(
    d: &[u8],
    at: u16,
    n: u16,
    cscds: &[Option<Cscd<D>>],
) -> Result<Cscd<D>, Refusal> {
    let refused = |asc, ascq| Refusal::Segment {
        asc,
        ascq,
        segment: n,
        byte: at,
    };
    let index = usize::from(be16_at(d, usize::from(at)));
    match cscds.get(index) {
        None => Err(refused(0, 0)),
        // COPY TARGET DEVICE NOT REACHABLE
        Some(None) => Err(refused(0x0D, 0x02)),
        Some(Some(cscd)) => Ok(cscd.clone()),
    }
}

/// One block device to block device segment descriptor, the `n`th.
fn segment<D: Clone>(d: &[u8], n: u16, cscds: &[Option<Cscd<D>>]) -> Result<Segment<D>, Refusal> {
    let refused = |byte| Refusal::Segment {
        asc: 0,
        ascq: 0,
        segment: n,
        byte,
    };
    if be16_at(d, 2) != SEGMENT_BODY_LEN {
        return Err(refused(2));
    }
    let src = named(d, 4, n, cscds)?;
    let dst = named(d, 6, n, cscds)?;
    if dst.read_only {
        return Err(refused(6));
    }
    let counts_in_dst = u8_at(d, 1) & 2 != 0;
    let shift = if counts_in_dst { &dst } else { &src }.block_shift;
    let len = u64::from(be16_at(d, 10)).checked_shl(u32::from(shift));
    let is_whole = |len: &u64| {
        let whole = |c: &Cscd<D>| len.trailing_zeros() >= u32::from(c.block_shift);
        *len == 0 || whole(&src) && whole(&dst)
    };
    let len = len.filter(is_whole).ok_or_else(|| refused(10))?;
    Ok(Segment {
        src,
        dst,
        src_lba: be64_at(d, 12),
        dst_lba: be64_at(d, 20),
        len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Devices `a` (512-byte blocks), `b` (4096) and the read-only `r`, with their names as designators, and `x`,
    /// which the initiator must not use.
    struct Known;

    impl Devices for Known {
        type Device = u8;
        fn find(&self, code_set: u8, kind: u8, designator: &[u8]) -> Option<(u8, u8)> {
            match (code_set, kind, designator) {
                (1, 3, [d @ (b'a' | b'r' | b'x')]) => Some((*d, 9)),
                (1, 3, b"b") => Some((b'b', 12)),
                _ => None,
            }
        }
        fn access(&self, dev: &u8) -> Option<bool> {
            (*dev != b'x').then_some(*dev == b'r')
        }
    }

    fn cscd_of(dev: u8) -> Vec<u8> {
        let mut d = vec![0xE4, 0, 0, 0, 1, 3, 0, 1, dev];
        d.resize(28, 0);
        d.extend_from_slice(if dev == b'b' {
            &[0, 0, 0x10, 0]
        } else {
            &[0, 0, 2, 0]
        });
        d
    }

    fn segment_of(src: u16, dst: u16, flags: u8, blocks: u16) -> Vec<u8> {
        let mut d = vec![2, flags, 0, 0x18];
        d.extend_from_slice(&src.to_be_bytes());
        d.extend_from_slice(&dst.to_be_bytes());
        d.extend_from_slice(&[0, 0]);
        d.extend_from_slice(&blocks.to_be_bytes());
        d.extend_from_slice(&0x10u64.to_be_bytes());
        d.extend_from_slice(&0x20u64.to_be_bytes());
        d
    }

    fn list(cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
        let (c, s) = (cscds.concat(), segments.concat());
        let mut l = vec![0, 0];
        l.extend_from_slice(&(c.len() as u16).to_be_bytes());
        l.extend_from_slice(&[0; 4]);
        l.extend_from_slice(&(s.len() as u32).to_be_bytes());
        l.extend_from_slice(&[0; 4]);
        l.extend(c);
        l.extend(s);
        l
    }

    fn refusal(l: &[u8]) -> Refusal {
        parse(l, l.len(), &Known).expect_err("refused")
    }

    #[test]
    fn a_good_list() {
        let l = list(
            &[cscd_of(b'a'), cscd_of(b'b')],
            &[
                segment_of(0, 1, 2, 3),
                segment_of(1, 0, 2, 16),
                segment_of(0, 1, 0, 0),
            ],
        );
        let got = parse(&l, l.len(), &Known).expect("good").expect("segments");
        let brief = |s: &Segment<u8>| (s.src.dev, s.dst.dev, s.src_lba, s.dst_lba, s.len);
        assert_eq!(
            got.iter().map(brief).collect::<Vec<_>>(),
            [
                (b'a', b'b', 0x10, 0x20, 3 * 4096),
                (b'b', b'a', 0x10, 0x20, 16 * 512),
                (b'a', b'b', 0x10, 0x20, 0)
            ]
        );
        assert_eq!(got[0].dst.offset, 48);
    }

    #[test]
    fn lists_without_effect() {
        let l = list(&[], &[]);
        assert_eq!(parse(&l, l.len(), &Known), Ok(None));
        let l = list(&[cscd_of(b'a')], &[]);
        assert_eq!(parse(&l, l.len(), &Known), Ok(Some(Vec::new())));
    }

    #[test]
    fn refusals() {
        let segment = |asc, ascq, byte| Refusal::Segment {
            asc,
            ascq,
            segment: 0,
            byte,
        };
        let parms = |byte, bit| Refusal::Parms { byte, bit };
        let a = || cscd_of(b'a');
        let with = |mut d: Vec<u8>, at: usize, v: u8| {
            d[at] = v;
            d
        };
        let one = |s: Vec<u8>| refusal(&list(&[a(), cscd_of(b'b'), cscd_of(b'r')], &[s]));
        let dev = |d: Vec<u8>| refusal(&list(&[d], &[]));
        assert_eq!(dev(cscd_of(b'z')), parms(16, None));
        assert_eq!(dev(cscd_of(b'x')), parms(16, None));
        assert_eq!(dev(with(a(), 1, 0x05)), parms(17, Some(0)));
        assert_eq!(dev(with(a(), 30, 4)), parms(45, None));
        assert_eq!(dev(with(a(), 7, 21)), parms(16, None));
        assert_eq!(dev(with(a(), 7, 255)), parms(16, None));
        assert_eq!(
            dev(with(a(), 0, 0xE3)),
            sense::UNSUPPORTED_TGT_DESCR_TYPE.into()
        );
        assert_eq!(one(segment_of(3, 0, 0, 1)), segment(0, 0, 4));
        assert_eq!(one(segment_of(0, 9, 0, 1)), segment(0, 0, 6));
        assert_eq!(one(segment_of(0, 2, 0, 1)), segment(0, 0, 6));
        assert_eq!(one(segment_of(0, 1, 0, 1)), segment(0, 0, 10));
        assert_eq!(one(with(segment_of(0, 1, 0, 8), 3, 0x17)), segment(0, 0, 2));
        assert_eq!(
            one(with(segment_of(0, 1, 0, 8), 0, 1)),
            sense::UNSUPPORTED_SEG_DESCR_TYPE.into()
        );
        // LU ID TYPE is looked over.
        assert!(parse(&list(&[with(a(), 1, 0xC0)], &[]), 48, &Known).is_ok());
        let null = with(a(), 1, 0x20);
        let l = list(&[null], &[segment_of(0, 0, 0, 1)]);
        assert_eq!(refusal(&l), segment(0x0D, 2, 4));
        let l = list(&vec![a(); 6], &[]);
        assert_eq!(refusal(&l), sense::TOO_MANY_TARGET_DESCRIPTORS.into());
        let l = list(&[a()], &vec![segment_of(0, 0, 0, 0); MAX_SEGMENTS + 1]);
        assert_eq!(refusal(&l), sense::TOO_MANY_SEGMENT_DESCRIPTORS.into());
        let l = list(&vec![a(); 6], &vec![segment_of(0, 0, 0, 0); 2334]);
        assert_eq!(refusal(&l), sense::PARAMETER_LIST_LENGTH_INVALID.into());
        let mut l = list(&[a()], &[segment_of(0, 0, 0, 1)]);
        assert_eq!(
            parse(&l, l.len() - 1, &Known),
            Err(sense::PARAMETER_LIST_LENGTH_INVALID.into())
        );
        l.push(2);
        assert_eq!(refusal(&l), sense::INLINE_DATA_LENGTH_EXCEEDED.into());
        l[11] += 1;
        assert_eq!(refusal(&l), sense::PARAMETER_LIST_LENGTH_INVALID.into());
        l[15] = 1;
        assert_eq!(refusal(&l), sense::INLINE_DATA_LENGTH_EXCEEDED.into());
    }

    #[test]
    fn list_identifiers() {
        let usage = |id, flags| list_id(&[id, flags], HEADER_LEN);
        assert_eq!(list_id(&[0; 16], 15), Err(Refusal::Cdb { byte: 10 }));
        assert_eq!(usage(7, 0), Ok(ListIdUsage::Kept(7)));
        assert_eq!(usage(7, 0x10), Ok(ListIdUsage::Kept(7)));
        assert_eq!(usage(0, 0x18), Ok(ListIdUsage::None));
        assert_eq!(usage(7, 0x18), Err(Refusal::Parms { byte: 0, bit: None }));
        assert_eq!(
            usage(7, 0x08),
            Err(Refusal::Parms {
                byte: 1,
                bit: Some(3)
            })
        );
    }

    proptest! {
        #[test]
        fn never_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            len in 0usize..400,
            at in 0usize..160,
            v in any::<u8>(),
        ) {
            let _ = parse(&noise, len, &Known);
            let mut l = list(&[cscd_of(b'a'), cscd_of(b'b')], &[segment_of(0, 1, 0, 8), segment_of(1, 1, 0, 1)]);
            if let Some(b) = l.get_mut(at) {
                *b = v;
            }
            for s in parse(&l, l.len(), &Known).ok().flatten().unwrap_or_default() {
                prop_assert_eq!(s.len % (1 << s.src.block_shift), 0);
                prop_assert_eq!(s.len % (1 << s.dst.block_shift), 0);
                prop_assert!(!s.dst.read_only);
            }
        }
    }
}
