//! What stands on each leg before the data: superblock and bitmap. `docs/ports.md` has the format.

use kshim::crypto::crc32c;
use kshim::prelude::*;

/// Most legs.
pub const MAX_LEGS: usize = 8;
/// Bytes of a superblock, and of a page of the bitmap.
pub(crate) const PAGE: usize = 4096;
/// Where the bitmap begins: behind two copies of the superblock.
pub(crate) const BITMAP_AT: u64 = 2 * PAGE as u64;
/// Alignment of the data.
const DATA_ALIGN: u64 = 1 << 20;
/// Longest name.
pub(crate) const MAX_NAME: usize = 63;
/// Most regions.
pub(crate) const MAX_REGIONS: u64 = 1 << 16;
/// Most `events`, and the end of the data: what follows from them can be computed.
const MAX_NUMBER: u64 = 1 << 62;
/// Smallest region.
pub(crate) const MIN_REGION: u64 = 64 << 10;

const MAGIC: [u8; 8] = *b"kshmrd1\0";
const BITMAP_MAGIC: u32 = 0x6d62_3172;
const VERSION: u32 = 1;
const CRC_AT: usize = 12;
const SLOTS_AT: usize = 96;
const SLOT_LEN: usize = 32;
const NAME_AT: usize = SLOTS_AT + MAX_LEGS * SLOT_LEN;
const BITMAP_HEAD: usize = 16;
/// Regions that a page of the bitmap has.
pub(crate) const PAGE_BITS: usize = (PAGE - BITMAP_HEAD) * 8;

/// What a leg is to the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum LegState {
    /// There is none in this place.
    #[default]
    Absent,
    /// Has all that was written.
    #[doc(alias = "In_sync")]
    InSync,
    /// Is written to, but lacks what was written before.
    Rebuilding,
    /// Is not written to.
    #[doc(alias = "Faulty")]
    Failed,
}

/// A leg's place in the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SlotMeta {
    pub(crate) state: LegState,
    /// When it failed: the number of the last change that it can know of.
    pub(crate) last_events: u64,
    /// Tells this leg from others that had its place.
    pub(crate) uuid: [u8; 16],
}

/// A superblock.
#[doc(alias = "mdp_superblock_1")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Super {
    pub(crate) array: [u8; 16],
    pub(crate) name: String,
    /// The place of the leg on which this one stands.
    pub(crate) index: usize,
    /// Counts changes of the superblock.
    pub(crate) events: u64,
    /// Bytes of data.
    pub(crate) size: u64,
    pub(crate) data_offset: u64,
    pub(crate) region: u64,
    pub(crate) slots: [SlotMeta; MAX_LEGS],
}

/// Bytes before the data of a disk with so many regions.
pub(crate) fn data_offset(regions: u64) -> u64 {
    let pages = regions.div_ceil(PAGE_BITS as u64);
    (BITMAP_AT + pages * PAGE as u64).next_multiple_of(DATA_ALIGN)
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = page.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn get<const N: usize>(page: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = page.get(at..).and_then(|p| p.first_chunk::<N>());
    bytes.copied().ok_or(EINVAL)
}

impl Super {
    /// Regions of the data.
    pub(crate) fn regions(&self) -> u64 {
        self.size.div_ceil(self.region)
    }

    /// Whether the leg of this superblock, which failed at `last_events`, was used since without those who know that. One
    /// that was being copied to was not: nothing was acknowledged for its sake.
    pub(crate) fn went_on(&self, last_events: u64) -> bool {
        let own = self.slots.get(self.index).map(|s| s.state);
        self.events > last_events && own == Some(LegState::InSync)
    }

    /// Where this change goes: the copies take turns, so that one is whole whatever happens.
    pub(crate) fn position(&self) -> u64 {
        self.events % 2 * PAGE as u64
    }

    /// As it stands on the disk.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut p = vec![0; PAGE];
        put(&mut p, 0, &MAGIC);
        put(&mut p, 8, &VERSION.to_le_bytes());
        put(&mut p, 16, &self.array);
        // Below MAX_LEGS.
        put(&mut p, 32, &(self.index as u32).to_le_bytes());
        put(&mut p, 40, &self.events.to_le_bytes());
        put(&mut p, 48, &self.size.to_le_bytes());
        put(&mut p, 56, &self.data_offset.to_le_bytes());
        put(&mut p, 64, &self.region.to_le_bytes());
        for (i, slot) in self.slots.iter().enumerate() {
            let at = SLOTS_AT + i * SLOT_LEN;
            put(&mut p, at, &[slot.state as u8]);
            put(&mut p, at + 8, &slot.last_events.to_le_bytes());
            put(&mut p, at + 16, &slot.uuid);
        }
        put(&mut p, NAME_AT, self.name.as_bytes());
        let crc = crc32c(&p);
        put(&mut p, CRC_AT, &crc.to_le_bytes());
        p
    }

    /// Takes a page apart. `None`: no superblock. Errors: `EUCLEAN`: one that was spoiled; `EOPNOTSUPP`: of another version.
    pub(crate) fn decode(page: &[u8]) -> Result<Option<Super>> {
        if get::<8>(page, 0)? != MAGIC {
            return Ok(None);
        }
        let mut plain = page.get(..PAGE).ok_or(EINVAL)?.to_vec();
        put(&mut plain, CRC_AT, &[0; 4]);
        if u32::from_le_bytes(get(page, CRC_AT)?) != crc32c(&plain) {
            return Err(EUCLEAN);
        }
        if u32::from_le_bytes(get(page, 8)?) != VERSION {
            return Err(EOPNOTSUPP);
        }
        let number = |at| get(page, at).map(u64::from_le_bytes);
        let mut slots = [SlotMeta::default(); MAX_LEGS];
        for (i, slot) in slots.iter_mut().enumerate() {
            let at = SLOTS_AT + i * SLOT_LEN;
            *slot = SlotMeta {
                state: match get::<1>(page, at)? {
                    [0] => LegState::Absent,
                    [1] => LegState::InSync,
                    [2] => LegState::Rebuilding,
                    [3] => LegState::Failed,
                    _ => return Err(EUCLEAN),
                },
                last_events: number(at + 8)?,
                uuid: get(page, at + 16)?,
            };
        }
        let name = page.get(NAME_AT..NAME_AT + MAX_NAME).ok_or(EINVAL)?;
        let name = name.split(|b| *b == 0).next().unwrap_or_default();
        let s = Super {
            array: get(page, 16)?,
            name: String::from_utf8(name.to_vec()).map_err(|_| EUCLEAN)?,
            index: usize::try_from(u32::from_le_bytes(get(page, 32)?))?,
            events: number(40)?,
            size: number(48)?,
            data_offset: number(56)?,
            region: number(64)?,
            slots,
        };
        let sane = s.region.is_power_of_two()
            && s.region >= MIN_REGION
            && s.size > 0
            && s.size <= MAX_NUMBER
            && s.events <= MAX_NUMBER
            && s.size.is_multiple_of(PAGE as u64)
            && s.regions() <= MAX_REGIONS
            && s.data_offset == data_offset(s.regions())
            && s.index < MAX_LEGS;
        if sane { Ok(Some(s)) } else { Err(EUCLEAN) }
    }
}

/// A page of the bitmap, for `dirty`, the regions from its first on.
pub(crate) fn encode_bitmap(page: usize, dirty: impl Iterator<Item = bool>) -> Vec<u8> {
    let mut p = vec![0; PAGE];
    put(&mut p, 4, &BITMAP_MAGIC.to_le_bytes());
    // At most MAX_REGIONS / PAGE_BITS.
    put(&mut p, 8, &(page as u32).to_le_bytes());
    for (i, _) in dirty.take(PAGE_BITS).enumerate().filter(|(_, d)| *d) {
        if let Some(b) = p.get_mut(BITMAP_HEAD + i / 8) {
            *b |= 1 << (i % 8);
        }
    }
    let crc = crc32c(&p);
    put(&mut p, 0, &crc.to_le_bytes());
    p
}

/// Whether a region is dirty, by its number in the page. A page that is not right has dirty regions only.
pub(crate) fn decode_bitmap(page: usize, p: &[u8]) -> impl Fn(usize) -> bool + use<'_> {
    let mut plain = p.to_vec();
    put(&mut plain, 0, &[0; 4]);
    let word = |at| get(p, at).map(u32::from_le_bytes);
    let good = p.len() == PAGE
        && word(0) == Ok(crc32c(&plain))
        && word(4) == Ok(BITMAP_MAGIC)
        && word(8).is_ok_and(|n| usize::try_from(n) == Ok(page));
    move |i| {
        !good
            || p.get(BITMAP_HEAD + i / 8)
                .is_none_or(|b| b >> (i % 8) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Super {
        let mut slots = [SlotMeta::default(); MAX_LEGS];
        slots[0] = SlotMeta {
            state: LegState::InSync,
            last_events: 0,
            uuid: [1; 16],
        };
        slots[1] = SlotMeta {
            state: LegState::Failed,
            last_events: 41,
            uuid: [2; 16],
        };
        Super {
            array: [9; 16],
            name: "m0".into(),
            index: 1,
            events: 43,
            size: 40 << 20,
            data_offset: data_offset(10),
            region: 4 << 20,
            slots,
        }
    }

    #[test]
    fn a_superblock_comes_back_and_a_spoiled_one_does_not() {
        let s = sample();
        let p = s.encode();
        assert_eq!(Super::decode(&p), Ok(Some(s.clone())));
        assert_eq!(
            (s.position(), s.regions(), s.data_offset),
            (4096, 10, 1 << 20)
        );
        assert_eq!(Super::decode(&[0; PAGE]), Ok(None));
        for at in 8..PAGE {
            let mut bad = p.clone();
            bad[at] ^= 4;
            assert_eq!(Super::decode(&bad), Err(EUCLEAN), "byte {at}");
        }
        let senseless = [
            Super {
                region: 3 << 20,
                ..s.clone()
            },
            Super {
                size: 0,
                ..s.clone()
            },
            Super {
                size: !4095,
                ..s.clone()
            },
            Super {
                size: !4095,
                region: 1 << 63,
                ..s.clone()
            },
            Super {
                events: u64::MAX,
                ..s.clone()
            },
            Super {
                data_offset: 0,
                ..s.clone()
            },
            Super {
                index: MAX_LEGS,
                ..s
            },
        ];
        for bad in senseless {
            assert_eq!(Super::decode(&bad.encode()), Err(EUCLEAN));
        }
    }

    proptest! {
        #[test]
        fn bitmaps_come_back(bits in proptest::collection::vec(any::<bool>(), 1..300), spoil in 0..PAGE, page in 0..3usize) {
            let mut p = encode_bitmap(page, bits.iter().copied());
            {
                let dirty = decode_bitmap(page, &p);
                prop_assert!(bits.iter().enumerate().all(|(i, b)| dirty(i) == *b));
                prop_assert!(!dirty(bits.len()));
                prop_assert!(decode_bitmap(page + 1, &p)(0));
            }
            p[spoil] ^= 1;
            let dirty = decode_bitmap(page, &p);
            prop_assert!((0..PAGE_BITS).all(dirty));
        }
    }
}
