//! Who has a disk open: what the first one makes and the last one takes away.

use super::bdev::BlkMode;
use crate::error::{Result, code};
use crate::sync::{CondVar, SpinLock};

/// Counts those who have a disk open, for a driver whose disk works only then, and keeps what it has meanwhile.
///
/// ```
/// use kshim::block::{BlkMode, Openers};
///
/// let openers = Openers::new();
/// openers.open(BlkMode::READ, || Ok("a connection"))?;
/// openers.open(BlkMode::READ, || unreachable!("there is one"))?;
/// assert_eq!(openers.kept(), Some("a connection"));
/// openers.release(|_| unreachable!("one is left"));
/// let mut ended = None;
/// openers.release(|connection| ended = Some(connection));
/// assert_eq!((openers.kept(), ended), (None, Some("a connection")));
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/blkdev.h` (`bd_openers` of `struct block_device`)
#[doc(alias = "bd_openers")]
#[derive(Debug)]
pub struct Openers<T> {
    open: SpinLock<Open<T>>,
    /// `changing` has become false.
    changed: CondVar,
}

#[derive(Debug)]
struct Open<T> {
    count: usize,
    /// The first one opens, or the last one closes: there is nothing to count meanwhile.
    changing: bool,
    kept: Option<T>,
}

impl<T> Default for Openers<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Ends a change when dropped: nobody waits for ever for one that has panicked.
struct Changing<'a, T>(&'a Openers<T>);

impl<T> Drop for Changing<'_, T> {
    fn drop(&mut self) {
        self.0.open.lock().changing = false;
        self.0.changed.notify_all();
    }
}

impl<T> Openers<T> {
    /// Nobody has it open.
    pub const fn new() -> Self {
        Self {
            open: SpinLock::new(Open {
                count: 0,
                changing: false,
                kept: None,
            }),
            changed: CondVar::new(),
        }
    }

    /// For [`BlockOps::open`](super::BlockOps::open) of a disk that takes bios only: [`Openers::open_any`] of other modes.
    ///
    /// Context: may sleep. Errors: `EOPNOTSUPP`: for SCSI commands. Those of `first`; then nobody has opened it.
    pub fn open(&self, mode: BlkMode, first: impl FnOnce() -> Result<T>) -> Result {
        if mode.contains(BlkMode::PASSTHROUGH) {
            return Err(code::EOPNOTSUPP);
        }
        self.open_any(first)
    }

    /// For [`BlockOps::open`](super::BlockOps::open): one more; `first` makes what the disk needs, if this is the first one.
    /// Other openers wait meanwhile.
    ///
    /// Context: may sleep. Errors: those of `first`; then nobody has opened it.
    pub fn open_any(&self, first: impl FnOnce() -> Result<T>) -> Result {
        let mut open = self.open.lock();
        while open.changing {
            self.changed.wait(&mut open);
        }
        if open.count == 0 {
            open.changing = true;
            drop(open);
            let _changing = Changing(self);
            let made = first()?;
            let mut open = self.open.lock();
            (open.count, open.kept) = (1, Some(made));
            return Ok(());
        }
        open.count += 1;
        Ok(())
    }

    /// What there is, while somebody has it open.
    ///
    /// Context: any.
    pub fn kept(&self) -> Option<T>
    where
        T: Clone,
    {
        self.open.lock().kept.clone()
    }

    /// For [`BlockOps::release`](super::BlockOps::release): one less; `last` gets what there is, if nobody is left. Openers wait
    /// meanwhile.
    ///
    /// Context: any, if that goes for `last`.
    pub fn release(&self, last: impl FnOnce(T)) {
        let kept = {
            let mut open = self.open.lock();
            open.count = open.count.saturating_sub(1);
            let kept = if open.count == 0 {
                open.kept.take()
            } else {
                None
            };
            open.changing |= kept.is_some();
            kept
        };
        if let Some(kept) = kept {
            let _changing = Changing(self);
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

    /// As on a reactor, where the last reference to an open disk may be dropped.
    #[test]
    fn closing_waits_for_nobody_and_openers_wait_for_it() {
        let o = Openers::new();
        o.open_any(|| Ok(1)).unwrap();
        let closed = crate::sync::Completion::new();
        std::thread::scope(|s| {
            o.release(|one| {
                s.spawn(|| {
                    o.open_any(|| {
                        assert!(closed.try_wait_for_completion());
                        Ok(2)
                    })
                    .unwrap();
                });
                assert_eq!((one, o.kept()), (1, None));
                closed.complete();
            });
        });
        assert_eq!(o.kept(), Some(2));
        let atomic = SpinLock::new(());
        let _no_sleep = atomic.lock_irqsave();
        o.release(|two| assert_eq!(two, 2));
    }
}
