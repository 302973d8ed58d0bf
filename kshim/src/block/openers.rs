//! Who has a disk open: what the first one makes and the last one takes away.

use super::bdev::BlkMode;
use crate::error::{Result, code};
use crate::sync::Mutex;

/// Counts those who have a disk open, for a driver whose disk works only then, and keeps what it has meanwhile.
///
/// ```
/// use kshim::block::{BlkMode, Openers};
///
/// let openers = Openers::new();
/// openers.open(BlkMode::READ, || Ok("a connection"))?;
/// openers.open(BlkMode::READ, || unreachable!("there is one"))?;
/// openers.release(|_| unreachable!("one is left"));
/// let mut ended = None;
/// openers.release(|connection| ended = Some(connection));
/// assert_eq!(ended, Some("a connection"));
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/blkdev.h` (`bd_openers` of `struct block_device`)
#[doc(alias = "bd_openers")]
#[derive(Debug)]
pub struct Openers<T>(Mutex<Open<T>>);

#[derive(Debug)]
struct Open<T> {
    count: usize,
    kept: Option<T>,
}

impl<T> Default for Openers<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Openers<T> {
    /// Nobody has it open.
    pub const fn new() -> Self {
        Self(Mutex::new(Open {
            count: 0,
            kept: None,
        }))
    }

    /// For [`BlockOps::open`](super::BlockOps::open) of a disk that takes bios only: one more; `first` makes what the disk
    /// needs, if this is the first one. Others wait meanwhile.
    ///
    /// Context: may sleep. Errors: `EOPNOTSUPP`: for SCSI commands. Those of `first`; then nobody has opened it.
    pub fn open(&self, mode: BlkMode, first: impl FnOnce() -> Result<T>) -> Result {
        if mode.contains(BlkMode::PASSTHROUGH) {
            return Err(code::EOPNOTSUPP);
        }
        let mut open = self.0.lock();
        if open.count == 0 {
            open.kept = Some(first()?);
        }
        open.count += 1;
        Ok(())
    }

    /// For [`BlockOps::release`](super::BlockOps::release): one less; `last` gets what there is, if nobody is left. Others wait
    /// meanwhile.
    ///
    /// Context: may sleep.
    pub fn release(&self, last: impl FnOnce(T)) {
        let mut open = self.0.lock();
        open.count = open.count.saturating_sub(1);
        if open.count == 0
            && let Some(kept) = open.kept.take()
        {
            last(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_makes_and_the_last_takes_away() {
        let o = Openers::new();
        assert_eq!(o.open(BlkMode::READ, || Err(code::EIO)), Err(code::EIO));
        // That was none.
        assert_eq!(o.open(BlkMode::READ, || Ok(1)), Ok(()));
        assert_eq!(o.open(BlkMode::WRITE, || Ok(2)), Ok(()));
        assert_eq!(
            o.open(BlkMode::PASSTHROUGH, || Ok(3)),
            Err(code::EOPNOTSUPP)
        );
        let mut gone = Vec::new();
        for _ in 0..3 {
            o.release(|n| gone.push(n));
        }
        assert_eq!(gone, [1]);
        assert_eq!(o.open(BlkMode::READ, || Ok(4)), Ok(()));
        o.release(|n| gone.push(n));
        assert_eq!(gone, [1, 4]);
    }
}
