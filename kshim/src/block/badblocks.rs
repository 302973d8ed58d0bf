//! Lists of bad blocks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::error::{Result, code};

/// Ranges that one list may have.
pub const MAX_BADBLOCKS: usize = 512;

/// Which sectors of a disk are bad, as ranges that neither overlap nor touch.
///
/// The kernel's list also tells acknowledged from unacknowledged ranges, for drivers that store it; this one does not.
///
/// ```
/// use kshim::block::BadBlocks;
///
/// let mut bb = BadBlocks::new();
/// bb.set(10, 5)?;
/// bb.set(15, 5)?;
/// assert_eq!(bb.check(0, 100), Some((10, 10)));
/// bb.clear(12, 1)?;
/// assert_eq!(bb.show(), "10 2\n13 7\n");
/// assert_eq!(bb.check(12, 1), None);
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/badblocks.h` (`struct badblocks`)
#[doc(alias = "badblocks")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadBlocks {
    /// First sector to the sector after the last.
    ranges: BTreeMap<u64, u64>,
}

impl BadBlocks {
    /// An empty list.
    #[doc(alias = "badblocks_init")]
    pub const fn new() -> BadBlocks {
        BadBlocks {
            ranges: BTreeMap::new(),
        }
    }

    /// Whether nothing is bad.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The first bad range inside a range of sectors, cut to it: first sector and length.
    ///
    /// Context: any.
    #[doc(alias = "badblocks_check")]
    pub fn check(&self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        let end = sector.saturating_add(sectors);
        let before = self.ranges.range(..=sector).next_back();
        let inside = before.filter(|&(_, &e)| e > sector);
        let (&from, &to) = inside.or_else(|| self.ranges.range(sector..end).next())?;
        let (from, to) = (from.max(sector), to.min(end));
        (from < to).then(|| (from, to - from))
    }

    /// Makes sectors bad.
    ///
    /// Context: any. Errors: `EINVAL`: no sectors, or beyond the last that there can be. `ENOSPC`: more than
    /// [`MAX_BADBLOCKS`] ranges; the list is as before.
    #[doc(alias = "badblocks_set")]
    pub fn set(&mut self, sector: u64, sectors: u64) -> Result {
        let (mut from, mut to) = span(sector, sectors)?;
        // All that overlap or touch become one.
        let mut merged = Vec::new();
        for (&f, &t) in self.ranges.range(..=to).rev() {
            if t < from {
                break;
            }
            merged.push(f);
        }
        if self.ranges.len() - merged.len() >= MAX_BADBLOCKS {
            return Err(code::ENOSPC);
        }
        for f in merged {
            let t = self.ranges.remove(&f).unwrap_or(to);
            from = from.min(f);
            to = to.max(t);
        }
        self.ranges.insert(from, to);
        Ok(())
    }

    /// Makes sectors good.
    ///
    /// Context: any. Errors: as [`BadBlocks::set`]; the middle of a range may be one range too many.
    #[doc(alias = "badblocks_clear")]
    pub fn clear(&mut self, sector: u64, sectors: u64) -> Result {
        let (from, to) = span(sector, sectors)?;
        let touched: Vec<(u64, u64)> = self
            .ranges
            .range(..to)
            .rev()
            .take_while(|&(_, &t)| t > from)
            .map(|(&f, &t)| (f, t))
            .collect();
        let splits = matches!(*touched, [(f, t)] if f < from && t > to);
        if splits && self.ranges.len() >= MAX_BADBLOCKS {
            return Err(code::ENOSPC);
        }
        for (f, t) in touched {
            self.ranges.remove(&f);
            if f < from {
                self.ranges.insert(f, from);
            }
            if t > to {
                self.ranges.insert(to, t);
            }
        }
        Ok(())
    }

    /// The list as text, a line `SECTOR LENGTH` for each range.
    #[doc(alias = "badblocks_show")]
    pub fn show(&self) -> String {
        let mut text = String::new();
        for (from, to) in &self.ranges {
            // A String takes all that is written to it.
            let _ = writeln!(text, "{from} {}", to - from);
        }
        text
    }
}

fn span(sector: u64, sectors: u64) -> Result<(u64, u64)> {
    let end = sector.checked_add(sectors).ok_or(code::EINVAL)?;
    if sectors == 0 {
        return Err(code::EINVAL);
    }
    Ok((sector, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_list_is_what_a_bitmap_says(
            ops in proptest::collection::vec((any::<bool>(), 0u64..60, 1u64..20), 1..40),
        ) {
            let mut bb = BadBlocks::new();
            let mut model = [false; 80];
            for (set, at, n) in ops {
                if set { bb.set(at, n).unwrap() } else { bb.clear(at, n).unwrap() }
                for i in at..at + n { model[i as usize] = set; }
                for at in 0..79u64 {
                    for n in 1..80 - at {
                        let range = at as usize..(at + n) as usize;
                        let first = range.clone().find(|&i| model[i]);
                        let found = bb.check(at, n);
                        prop_assert_eq!(found.map(|f| f.0), first.map(|f| f as u64));
                        if let Some((from, len)) = found {
                            let bad = (from..from + len).all(|i| model[i as usize]);
                            prop_assert!(bad && from + len <= at + n);
                        }
                    }
                }
                let spans: Vec<_> = bb.ranges.iter().collect();
                prop_assert!(spans.windows(2).all(|w| w[0].1 < w[1].0));
            }
        }
    }

    #[test]
    fn the_list_is_bounded_and_checks_its_arguments() {
        let mut bb = BadBlocks::new();
        for i in 0..MAX_BADBLOCKS as u64 {
            bb.set(3 * i, 2).unwrap();
        }
        assert_eq!(bb.set(1 << 40, 1), Err(code::ENOSPC));
        assert_eq!(bb.set(2, 1), Ok(()));
        assert_eq!(bb.set(1 << 40, 1), Ok(()));
        assert_eq!(bb.set(5, 0), Err(code::EINVAL));
        assert_eq!(bb.clear(u64::MAX, 2), Err(code::EINVAL));
        bb.clear(0, u64::MAX).unwrap();
        assert!(bb.is_empty());
        assert_eq!(bb.check(0, u64::MAX), None);
    }
}
