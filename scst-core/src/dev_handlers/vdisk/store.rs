//! What holds the data, seen alike by the code that may sleep.

use super::blockio::BlockStore;
use super::cdrom::CdStore;
use super::fileio::FileStore;
use super::plan::{Access, Step};
use super::reply::Fault;
use crate::sense;
use kshim::error::{Error, Result, code};
use kshim::scatterlist::SGTable;

/// The backing store of a device.
#[derive(Debug)]
pub(super) enum Store {
    /// Not open (`active=0`).
    Closed,
    /// None: writes are dropped, reads give zeros.
    Null,
    /// A file.
    File(FileStore),
    /// A block device.
    Block(BlockStore),
    /// A CD-ROM drive, which nobody writes to.
    Cd(CdStore),
}

impl Store {
    /// Size at open; `None` when the parameters say it.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Closed | Self::Null => None,
            Self::File(f) => Some(f.size_at_open()),
            Self::Block(b) => Some(b.capacity()),
            Self::Cd(c) => Some(c.medium().map_or(0, |f| f.size_at_open())),
        }
    }

    /// Size now; `None` when the parameters say it. Context: may sleep.
    pub(super) fn current_size(&self) -> Result<Option<u64>> {
        match self {
            // A medium changes as a whole.
            Self::Closed | Self::Null | Self::Cd(_) => Ok(None),
            Self::File(f) => f.size().map(Some),
            Self::Block(b) => b.revalidate().map(Some),
        }
    }

    /// What block sizes must be a multiple of.
    pub(super) fn block_align(&self) -> u32 {
        match self {
            Self::Closed | Self::Null | Self::Cd(_) => 1,
            Self::File(f) => f.dio_align(),
            Self::Block(b) => b.limits().logical_block_size,
        }
    }

    /// Whether another host has taken it, until it is opened again. Context: any.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Block(b) if b.is_lost())
    }

    pub(super) fn can_discard(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Null | Self::Cd(_) => false,
            Self::File(_) => true,
            Self::Block(b) => b.limits().max_discard_bytes != 0,
        }
    }

    pub(super) fn rotational(&self) -> bool {
        match self {
            Self::Block(b) => b.limits().rotational,
            _ => true,
        }
    }

    /// A device that cannot flush has to be taken as one with a non-volatile cache.
    pub(super) fn flush_unsupported(&self) -> bool {
        matches!(self, Self::Block(b) if b.flush_unsupported())
    }

    /// Whether a flush of this kind of store does anything.
    pub(super) fn needs_flush(&self) -> bool {
        match self {
            Self::Closed | Self::Null | Self::Cd(_) => false,
            // O_DIRECT leaves metadata to be written, and the disk has a cache.
            Self::File(_) | Self::Block(_) => true,
        }
    }

    /// Reads whole or fails. Context: may sleep.
    pub(super) fn read(&self, pos: u64, sg: &mut SGTable, len: usize) -> Result {
        match self {
            Self::Closed => Err(code::ENODEV),
            Self::Null => sg.fill(0, len, 0),
            Self::File(f) => f.read_sync(pos, sg, len),
            Self::Block(b) => b.read_sync(pos, sg, len),
            Self::Cd(c) => c.medium().ok_or(code::ENOMEDIUM)?.read_sync(pos, sg, len),
        }
    }

    /// Writes whole or fails; with `durable`, the data survives a crash once this returns. Context: may sleep.
    pub(super) fn write(&self, pos: u64, sg: &mut SGTable, len: usize, durable: bool) -> Result {
        match self {
            Self::Closed => Err(code::ENODEV),
            Self::Null => Ok(()),
            Self::File(f) => f.write_sync(pos, sg, len, durable),
            Self::Block(b) => b.write_sync(pos, sg, len, durable),
            Self::Cd(_) => Err(code::EROFS),
        }
    }

    /// Makes what was written durable. Context: may sleep.
    pub(super) fn flush(&self) -> Result {
        match self {
            Self::Closed | Self::Null | Self::Cd(_) => Ok(()),
            Self::File(f) => f.flush(),
            Self::Block(b) => b.flush_sync(),
        }
    }

    /// One access of a [`Plan`](super::plan::Plan), with its buffer. Context: may sleep.
    pub(super) fn access(&self, step: Step, buf: &mut SGTable) -> Result {
        let Step { access, pos, len } = step;
        match access {
            Access::Read => self.read(pos, buf, usize::try_from(len)?),
            Access::Write { durable } => self.write(pos, buf, usize::try_from(len)?, durable),
            Access::Discard => self.discard(pos, len),
            Access::Zero => self.zero(pos, len),
            Access::Flush => self.flush(),
        }
    }

    /// Gives blocks back. `EOPNOTSUPP` when the host cannot. Context: may sleep.
    pub(super) fn discard(&self, pos: u64, len: u64) -> Result {
        match self {
            Self::Closed => Err(code::ENODEV),
            Self::Null => Ok(()),
            Self::File(f) => f.punch_hole(pos, len),
            Self::Block(b) => b.discard_sync(pos, len),
            Self::Cd(_) => Err(code::EROFS),
        }
    }

    /// Whether there is storage at `pos`, and up to where at most `end` that is so. Context: may sleep.
    pub(super) fn extent(&self, pos: u64, end: u64) -> Result<(bool, u64)> {
        match self {
            Self::Closed => Err(code::ENODEV),
            Self::Null | Self::Block(_) | Self::Cd(_) => Ok((true, end)),
            Self::File(f) => f.extent(pos, end),
        }
    }

    /// Bytes for which there is storage, where that is known. Context: may sleep.
    pub(super) fn allocated(&self) -> Option<u64> {
        match self {
            Self::File(f) => f.allocated().ok(),
            _ => None,
        }
    }

    /// Whether blocks that were unmapped, or never written, read as zeros.
    pub(super) fn discard_zeroes_data(&self) -> bool {
        match self {
            Self::Closed | Self::Null | Self::Cd(_) => false,
            Self::File(_) => true,
            Self::Block(b) => b.limits().discard_zeroes_data,
        }
    }

    /// Makes a range read as zeros without data. `EOPNOTSUPP` when the host cannot. Context: may sleep.
    pub(super) fn zero(&self, pos: u64, len: u64) -> Result {
        match self {
            Self::Closed => Err(code::ENODEV),
            Self::Null => Ok(()),
            Self::File(f) => f.zero_range(pos, len),
            Self::Block(b) => b.zero_sync(pos, len),
            Self::Cd(_) => Err(code::EROFS),
        }
    }
}

/// How an I/O failure ends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// CHECK CONDITION.
    Fault(Fault),
    /// BUSY or TASK SET FULL: worth a retry.
    Busy,
}

impl From<Fault> for Outcome {
    fn from(f: Fault) -> Self {
        Self::Fault(f)
    }
}

impl From<sense::Sense> for Outcome {
    fn from(s: sense::Sense) -> Self {
        Self::Fault(s.into())
    }
}

/// What a failure of the device, not of its medium, is for the initiator: errnos of drivers that know the difference.
fn device_outcome(e: Error) -> Option<Outcome> {
    match e {
        code::EREMOTEIO => Some(sense::HARDW_ERROR.into()),
        code::ETIMEDOUT => Some(sense::LUN_TIMED_OUT.into()),
        // Fenced off: another server has it.
        code::ENOLINK => Some(sense::ALUA_STANDBY.into()),
        _ => None,
    }
}

/// What a failed read is for the initiator.
pub(super) fn read_outcome(e: Error) -> Outcome {
    if let Some(o) = device_outcome(e) {
        return o;
    }
    match e {
        code::EAGAIN | code::ENOMEM => Outcome::Busy,
        code::ENODEV => sense::NOT_READY.into(),
        code::ENOMEDIUM => sense::NO_MEDIUM.into(),
        _ => sense::READ_ERROR.into(),
    }
}

/// What a failed write, flush or unmap is for the initiator.
pub(super) fn write_outcome(e: Error) -> Outcome {
    if let Some(o) = device_outcome(e) {
        return o;
    }
    match e {
        code::EAGAIN | code::ENOMEM => Outcome::Busy,
        // DIFFERS: a quota is a lack of space too, and EROFS a write protection; SCST has a write error for both.
        code::ENOSPC | code::EDQUOT => sense::SPACE_ALLOC_FAILED.into(),
        code::EROFS => sense::WRITE_PROTECTED.into(),
        code::ENODEV => sense::NOT_READY.into(),
        _ => sense::WRITE_ERROR.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_become_the_sense_that_scst_sends() {
        assert_eq!(
            write_outcome(code::ENOSPC),
            sense::SPACE_ALLOC_FAILED.into()
        );
        assert_eq!(
            write_outcome(code::EDQUOT),
            sense::SPACE_ALLOC_FAILED.into()
        );
        assert_eq!(write_outcome(code::EIO), sense::WRITE_ERROR.into());
        assert_eq!(write_outcome(code::EROFS), sense::WRITE_PROTECTED.into());
        assert_eq!(write_outcome(code::EAGAIN), Outcome::Busy);
        assert_eq!(read_outcome(code::EIO), sense::READ_ERROR.into());
        assert_eq!(read_outcome(code::ENOMEM), Outcome::Busy);
        assert_eq!(read_outcome(code::ENODEV), sense::NOT_READY.into());
        assert_eq!(read_outcome(code::EREMOTEIO), sense::HARDW_ERROR.into());
        assert_eq!(write_outcome(code::ETIMEDOUT), sense::LUN_TIMED_OUT.into());
        assert_eq!(write_outcome(code::ENOLINK), sense::ALUA_STANDBY.into());
    }
}
