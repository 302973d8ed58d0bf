//! The data of a file device: cached reads and buffered writes inline, the rest on threads.
//!
//! DIFFERS: a flush is an fdatasync, and a FUA write an O_DSYNC write of its range; SCST writes back a range of pages
//! that it computes wrongly, and never flushes the disk's own cache. DIFFERS: after a failed flush, also of one with IMMED,
//! each flush fails until the file is opened anew, as the host reports a lost write-back once and takes the pages for clean
//! then; SCST forgets it. DIFFERS: `write_through` makes each write an O_DSYNC write; SCST opens the file with
//! O_DSYNC, and again when MODE SELECT switches the cache.
//!
//! C source: `fileio_exec_read`, `fileio_exec_write`, `__vdisk_fsync_fileio` of `scst/src/dev_handlers/scst_vdisk.c`

use super::VdiskParams;
use super::breaker::Breaker;
use kshim::error::{Error, Result, code};
use kshim::fs::{File, KiocbFlags, OpenOptions};
use kshim::scatterlist::SGTable;
use kshim::sync::OnceLock;
use std::path::Path;

/// Larger transfers are never done on a reactor, however fast the file is: others wait meanwhile.
const INLINE_MAX: usize = 1024 * 1024;

/// An open file.
#[derive(Debug)]
pub(super) struct FileStore {
    file: File,
    size_at_open: u64,
    breaker: Breaker,
    /// Why data may be lost: the first failure of a write-back.
    lost: OnceLock<Error>,
}

/// What became of an attempt to do I/O without sleeping.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inline {
    /// Done, one way or the other.
    Done(Result),
    /// It takes a thread.
    WouldBlock,
}

impl FileStore {
    /// Opens the file. Context: may sleep.
    pub(super) fn open(path: &Path, p: &VdiskParams) -> Result<Self> {
        let options = OpenOptions::new().read_only(p.read_only).direct(p.o_direct);
        let file = File::open(path, &options)?;
        let size_at_open = file.size()?;
        Ok(Self {
            file,
            size_at_open,
            breaker: Breaker::default(),
            lost: OnceLock::new(),
        })
    }

    pub(super) fn size_at_open(&self) -> u64 {
        self.size_at_open
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.file.size()
    }

    pub(super) fn dio_align(&self) -> u32 {
        u32::try_from(self.file.dio_align()).unwrap_or(u32::MAX)
    }

    /// O_DIRECT writes leave nothing in the page cache. The device's own cache is the user's business then, as in
    /// SCST.
    pub(super) fn is_direct(&self) -> bool {
        self.file.is_direct()
    }

    /// Whether a transfer may be tried on a reactor at all.
    #[inline]
    fn inline_wanted(&self, len: usize) -> bool {
        len <= INLINE_MAX && !self.file.is_direct()
    }

    /// Reads if that needs no waiting: from the page cache where the file system can tell, else (memory file systems)
    /// simply, as long as that is fast. Context: reactor.
    #[inline]
    pub(super) fn read_inline(&self, pos: u64, sg: &mut SGTable, len: usize) -> Inline {
        if !self.inline_wanted(len) {
            return Inline::WouldBlock;
        }
        let r = if self.file.supports_nowait_read() {
            self.file.read_sg(sg, 0, len, pos, KiocbFlags::NOWAIT)
        } else if self.breaker.is_open() {
            return Inline::WouldBlock;
        } else {
            self.breaker
                .watch(|| self.file.read_sg(sg, 0, len, pos, KiocbFlags::empty()))
        };
        match r {
            Ok(n) if n == len => Inline::Done(Ok(())),
            // Short: the rest is not cached, or the file has become shorter; a thread finds out.
            Ok(_) | Err(code::EAGAIN | code::EOPNOTSUPP) => Inline::WouldBlock,
            Err(e) => Inline::Done(Err(e)),
        }
    }

    /// Writes into the page cache, as long as that is fast. Context: reactor.
    #[inline]
    pub(super) fn write_inline(&self, pos: u64, sg: &SGTable, len: usize) -> Inline {
        if !self.inline_wanted(len) || self.breaker.is_open() {
            return Inline::WouldBlock;
        }
        let write = || self.file.write_sg(sg, 0, len, pos, KiocbFlags::empty());
        Inline::Done(self.breaker.watch(write).and_then(|n| whole(n, len)))
    }

    pub(super) fn read_sync(&self, pos: u64, sg: &mut SGTable, len: usize) -> Result {
        let n = self.file.read_sg(sg, 0, len, pos, KiocbFlags::empty())?;
        whole(n, len)
    }

    pub(super) fn write_sync(&self, pos: u64, sg: &SGTable, len: usize, durable: bool) -> Result {
        let flags = if durable {
            KiocbFlags::DSYNC
        } else {
            KiocbFlags::empty()
        };
        match self.file.write_sg(sg, 0, len, pos, flags) {
            Ok(n) => whole(n, len),
            Err(code::EOPNOTSUPP) if durable => {
                let n = self.file.write_sg(sg, 0, len, pos, KiocbFlags::empty())?;
                whole(n, len)?;
                self.flush()
            }
            Err(e @ (code::EIO | code::ENOSPC | code::EDQUOT)) if durable => {
                // The write, or the sync after it, perhaps for data of an earlier one, which nobody else is told then. Without the
                // sync only the former fails.
                let again = || self.file.write_sg(sg, 0, len, pos, KiocbFlags::empty());
                if e == code::EIO || again().is_ok() {
                    self.remember(e);
                }
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    /// Copies a range of another file by the file system; answers how much of it. Context: may sleep.
    pub(super) fn copy_from(&self, src: &Self, src_pos: u64, pos: u64, len: u64) -> Result<u64> {
        if self.file.is_direct() || src.file.is_direct() {
            return Err(code::EOPNOTSUPP);
        }
        self.file.copy_range(&src.file, src_pos, pos, len)
    }

    fn remember(&self, e: Error) {
        if self.lost.set(e).is_ok() {
            let path = self.file.path().display();
            kshim::pr_err!("{path}: write-back failed, data may be lost: {e}");
        }
    }

    /// Flushes; fails also if a flush has failed since the file was opened.
    pub(super) fn flush(&self) -> Result {
        if let Err(e) = self.file.fdatasync() {
            // Not a file that can be flushed.
            if e != code::EINVAL && e != code::EROFS {
                self.remember(e);
            }
            return Err(e);
        }
        self.lost.get().map_or(Ok(()), |e| Err(*e))
    }

    /// A flush for which nobody waits (IMMED): a failure is told at the next one.
    pub(super) fn flush_in_background(&self) {
        if let Err(e) = self.flush() {
            kshim::pr_err!("{}: flush failed: {e}", self.file.path().display());
        }
    }

    pub(super) fn punch_hole(&self, pos: u64, len: u64) -> Result {
        self.file.punch_hole(pos, len)
    }

    /// Whether there is data at `pos`, and up to where at most `end` that is so. A file system that does not know has data
    /// everywhere. Context: may sleep.
    pub(super) fn extent(&self, pos: u64, end: u64) -> Result<(bool, u64)> {
        let data = match self.file.seek_data(pos) {
            Ok(Some(data)) => data,
            Ok(None) => return Ok((false, end)),
            Err(code::EINVAL | code::EOPNOTSUPP) => return Ok((true, end)),
            Err(e) => return Err(e),
        };
        if data > pos {
            return Ok((false, data.min(end)));
        }
        let hole = self.file.seek_hole(pos)?.unwrap_or(end);
        Ok((
            true,
            hole.clamp(pos.saturating_add(1), end.max(pos.saturating_add(1))),
        ))
    }

    /// Bytes for which the file system has storage. Context: may sleep.
    pub(super) fn allocated(&self) -> Result<u64> {
        self.file.allocated()
    }

    pub(super) fn zero_range(&self, pos: u64, len: u64) -> Result {
        self.file.zero_range(pos, len)
    }
}

/// A short transfer that is not an error of the host: the file ends there.
fn whole(n: usize, len: usize) -> Result {
    if n == len { Ok(()) } else { Err(code::EIO) }
}
