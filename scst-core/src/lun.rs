//! Logical unit numbers: the 8-byte structures on the wire, and REPORT LUNS lists.
//!
//! SCST knows single-level LUNs of 14 bits. It accepts them in the peripheral, flat and logical unit addressing methods
//! (SAM-5 4.7) alike, and reports them in the one that the target (or group) is configured for.
//!
//! C source: `scst/src/scst_lib.c` (`scst_unpack_lun`, `scst_pack_lun`), `scst/src/scst_local_cmd.c`
//! (`scst_report_luns_local`)
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

/// Length of a LUN structure.
pub const LUN_LEN: usize = 8;

/// Length of the header of a REPORT LUNS list (SPC-4 6.33).
const REPORT_HEADER_LEN: usize = 8;

/// A logical unit number that SCST can have: 0 to [`Lun::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lun(u16);

/// Addressing method in which LUNs are reported (`addr_method`).
#[doc(alias = "scst_lun_addr_method")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum AddrMethod {
    /// Peripheral device addressing; what is over 255 goes into the bus field.
    #[default]
    Peripheral = 0,
    /// Flat space addressing.
    Flat = 1,
    /// Logical unit addressing; target and bus fields carry the upper bits.
    Lun = 2,
}

impl AddrMethod {
    /// The name in the management tree.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peripheral => "PERIPHERAL",
            Self::Flat => "FLAT",
            Self::Lun => "LUN",
        }
    }

    /// From the name in the management tree.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Peripheral, Self::Flat, Self::Lun]
            .into_iter()
            .find(|m| m.name() == name)
    }
}

impl Lun {
    /// LUN 0.
    pub const ZERO: Self = Self(0);
    /// The largest LUN.
    #[doc(alias = "SCST_MAX_LUN")]
    pub const MAX: Self = Self(0x3fff);

    /// `None` if the number is too large.
    pub fn new(lun: u64) -> Option<Self> {
        u16::try_from(lun)
            .ok()
            .filter(|l| *l <= Self::MAX.0)
            .map(Self)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0 as u64
    }

    /// Reads a LUN structure of 2, 4, 6 or 8 bytes (the first level, and more levels that must be zero). `None` is SCST's
    /// `NO_SUCH_LUN`: another length, more levels, or extended addressing (which includes the well-known logical
    /// units and the 0xD2 long flat form).
    ///
    /// Context: any; bytes from the wire are welcome.
    ///
    /// # Examples
    ///
    /// ```
    /// use scst_core::lun::Lun;
    ///
    /// assert_eq!(Lun::unpack(&[0x40, 5, 0, 0, 0, 0, 0, 0]), Lun::new(5));
    /// assert_eq!(Lun::unpack(&[0xd2, 0, 0, 5, 0, 0, 0, 0]), None);
    /// ```
    #[doc(alias = "scst_unpack_lun")]
    #[inline]
    pub fn unpack(bytes: &[u8]) -> Option<Self> {
        let ([high, low], rest) = bytes.split_first_chunk::<2>()?;
        if !matches!(rest.len(), 0 | 2 | 4 | 6) || rest.iter().any(|b| *b != 0) {
            return None;
        }
        match high >> 6 {
            0..=2 => Some(Self(u16::from_be_bytes([high & 0x3f, *low]))),
            _ => None,
        }
    }

    /// [`Self::unpack`] of the big-endian structure held as a number.
    #[inline]
    pub fn unpack_u64(raw: u64) -> Option<Self> {
        Self::unpack(&raw.to_be_bytes())
    }

    /// The LUN structure. LUN 0 is all zeros in every method.
    #[doc(alias = "scst_pack_lun")]
    #[inline]
    pub fn pack(self, method: AddrMethod) -> [u8; LUN_LEN] {
        let mut out = [0; LUN_LEN];
        if self.0 != 0 {
            let word = (u16::from(method as u8) << 14) | self.0;
            if let Some(level) = out.first_chunk_mut::<2>() {
                *level = word.to_be_bytes();
            }
        }
        out
    }
}

impl From<Lun> for u64 {
    fn from(lun: Lun) -> Self {
        lun.get()
    }
}

impl std::fmt::Display for Lun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Parameter data of REPORT LUNS: header and the LUNs in the order given. The LUN LIST LENGTH counts all of them; the caller
/// truncates the data to the allocation length (SPC-4 4.2.5.6), so at most `alloc_len` bytes are built.
///
/// # Examples
///
/// ```
/// use scst_core::lun::{AddrMethod, Lun, report_luns};
///
/// let luns = [Lun::ZERO, Lun::new(7).unwrap_or_default()];
/// let data = report_luns(luns, AddrMethod::Peripheral, 16);
/// assert_eq!(data, [0, 0, 0, 16, 0, 0, 0, 0, /* LUN 0 */ 0, 0, 0, 0, 0, 0, 0, 0]);
/// ```
#[doc(alias = "scst_report_luns_local")]
pub fn report_luns(
    luns: impl IntoIterator<Item = Lun>,
    method: AddrMethod,
    alloc_len: usize,
) -> Vec<u8> {
    let mut data = vec![0; REPORT_HEADER_LEN];
    let mut list_len = 0u32;
    for lun in luns {
        list_len = list_len.saturating_add(8);
        if data.len() < alloc_len {
            data.extend_from_slice(&lun.pack(method));
        }
    }
    if let Some(len) = data.first_chunk_mut::<4>() {
        *len = list_len.to_be_bytes();
    }
    data.truncate(alloc_len);
    data
}

#[cfg(test)]
#[expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts_the_three_methods_and_refuses_the_rest() {
        for (bytes, want) in [
            (&[0, 0, 0, 0, 0, 0, 0, 0][..], Some(0)),
            (&[0, 9], Some(9)),
            (&[0x01, 0x02, 0, 0], Some(0x102)),
            (&[0x40, 9, 0, 0, 0, 0], Some(9)),
            (&[0x7f, 0xff, 0, 0, 0, 0, 0, 0], Some(0x3fff)),
            (&[0x80, 9, 0, 0, 0, 0, 0, 0], Some(9)),
            (&[0xc1, 1, 0, 0, 0, 0, 0, 0], None), // REPORT LUNS well-known logical unit
            (&[0xd2, 0, 0, 9, 0, 0, 0, 0], None), // extended flat
            (&[0, 9, 0, 1, 0, 0, 0, 0], None),    // two levels
            (&[0, 9, 0, 0, 0, 0, 0, 1], None),
            (&[], None),
            (&[9], None),
            (&[0, 9, 0], None),
            (&[0, 9, 0, 0, 0, 0, 0, 0, 0, 0], None),
        ] {
            assert_eq!(Lun::unpack(bytes).map(Lun::get), want, "{bytes:02x?}");
        }
        assert_eq!(Lun::new(0x4000), None);
        assert_eq!(Lun::new(u64::MAX), None);
    }

    #[test]
    fn method_names_round_trip() {
        for m in [AddrMethod::Peripheral, AddrMethod::Flat, AddrMethod::Lun] {
            assert_eq!(AddrMethod::from_name(m.name()), Some(m));
        }
        assert_eq!(AddrMethod::from_name("peripheral"), None);
    }

    fn method() -> impl Strategy<Value = AddrMethod> {
        prop_oneof![
            Just(AddrMethod::Peripheral),
            Just(AddrMethod::Flat),
            Just(AddrMethod::Lun)
        ]
    }

    proptest! {
        #[test]
        fn packed_luns_unpack_to_themselves(n in 0u64..=0x3fff, m in method()) {
            let lun = Lun::new(n).expect("in range");
            let packed = lun.pack(m);
            prop_assert_eq!(Lun::unpack(&packed), Some(lun));
            prop_assert_eq!(Lun::unpack_u64(u64::from_be_bytes(packed)), Some(lun));
            if n != 0 {
                prop_assert_eq!(packed[0] >> 6, m as u8);
            }
        }

        #[test]
        fn any_bytes_give_a_lun_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            if let Some(l) = Lun::unpack(&bytes) {
                prop_assert!(l <= Lun::MAX);
                prop_assert!(bytes[0] >> 6 != 3);
            }
        }

        #[test]
        fn lists_are_a_prefix_of_the_whole_list(
            luns in proptest::collection::vec(0u64..=0x3fff, 0..40),
            m in method(),
            alloc in 0usize..400,
        ) {
            let luns: Vec<Lun> = luns.into_iter().filter_map(Lun::new).collect();
            let whole = report_luns(luns.iter().copied(), m, usize::MAX);
            let part = report_luns(luns.iter().copied(), m, alloc);
            prop_assert_eq!(&part[..], &whole[..alloc.min(whole.len())]);
            let list_len = u32::from_be_bytes([whole[0], whole[1], whole[2], whole[3]]);
            prop_assert_eq!(list_len as usize, luns.len() * 8);
            let back: Vec<Lun> = whole[8..].chunks(8).filter_map(Lun::unpack).collect();
            prop_assert_eq!(back, luns);
        }
    }
}
