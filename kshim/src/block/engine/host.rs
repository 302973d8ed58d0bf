//! Host block devices and plain files as disks.
//!
//! Buffered reads are tried inline with NOWAIT where the file system supports it, as are buffered writes; what
//! would block, and everything else, goes to a [`BlockWorkers`].
//!
//! # Failed write-back
//!
//! The host reports a failed write-back once, to one `fdatasync` (or to one durable write), and considers the pages clean
//! afterwards: a second flush would succeed although data is lost. So the disk remembers: after such a failure each
//! flush fails with the same error until the disk is opened anew.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use once_cell::sync::OnceCell;

use super::pool::BlockWorkers;
use crate::block::bdev::BlkMode;
use crate::block::bio::{Bio, BioOp, ReqFlags, SubmittedBio};
use crate::block::gendisk::BlockOps;
use crate::block::limits::{QueueLimits, SECTOR_SIZE};
use crate::error::{Error, Result, code};
use crate::fs::{File, KiocbFlags, OpenOptions};
use crate::scatterlist::SGTable;

/// What one discard or write of zeros to a plain file may cover; more gains nothing.
const FILE_MAX_RANGE: u64 = 1 << 40;
/// The block size that file systems have.
const FILE_BLOCK_SIZE: u32 = 4096;
/// Zeros are written as data in pieces of so many bytes.
const ZERO_CHUNK: usize = 1 << 20;

/// The part of a disk that bios in a pool's queue share.
struct Core {
    file: File,
    limits: QueueLimits,
    capacity: AtomicU64,
    /// NOWAIT writes were not refused yet.
    nowait_write: AtomicBool,
    /// The first failed write-back.
    lost: OnceCell<Error>,
}

/// A host block device or plain file.
pub(crate) struct HostDisk {
    core: Arc<Core>,
    pool: BlockWorkers,
}

impl HostDisk {
    /// Opens it. Errors: those of [`File::open`].
    pub(crate) fn open(path: &Path, mode: BlkMode) -> Result<HostDisk> {
        let options = OpenOptions::new()
            .read_only(!mode.contains(BlkMode::WRITE))
            .direct(mode.contains(BlkMode::DIRECT))
            .exclusive(mode.contains(BlkMode::EXCL));
        let file = File::open(path, &options)?;
        let limits = if file.is_block_device() {
            file.blk_limits()?
        } else {
            file_limits(&file)?
        };
        let capacity = AtomicU64::new(usable(&file)?);
        let nowait_write = AtomicBool::new(file.supports_nowait_read());
        let core = Core {
            file,
            limits,
            capacity,
            nowait_write,
            lost: OnceCell::new(),
        };
        Ok(HostDisk {
            core: Arc::new(core),
            pool: BlockWorkers::new(),
        })
    }

    /// Hands the bio to a thread.
    fn defer(&self, bio: SubmittedBio) {
        if bio.flags.contains(ReqFlags::NOWAIT) {
            return bio.complete(Err(code::EAGAIN));
        }
        let core = Arc::clone(&self.core);
        self.pool.defer(move || {
            let mut bio = bio;
            let status = core.execute(&mut bio);
            // The owner may close the device when it hears of the end: the file is closed then, not later.
            drop(core);
            bio.complete(status);
        });
    }
}

impl BlockOps for HostDisk {
    fn submit_bio(&self, mut bio: SubmittedBio) {
        match self.core.try_inline(&mut bio) {
            Some(status) => bio.complete(status),
            None => self.defer(bio),
        }
    }

    fn limits(&self) -> QueueLimits {
        self.core.limits.clone()
    }

    fn capacity_bytes(&self) -> u64 {
        self.core.capacity.load(Ordering::Relaxed)
    }

    fn revalidate(&self) -> Result<u64> {
        let size = usable(&self.core.file)?;
        self.core.capacity.store(size, Ordering::Relaxed);
        Ok(size)
    }
}

/// Whole sectors of a file.
fn usable(file: &File) -> Result<u64> {
    let size = file.size()?;
    Ok(size - size % SECTOR_SIZE)
}

fn file_limits(file: &File) -> Result<QueueLimits> {
    let direct = u32::try_from(file.dio_align())?.max(SECTOR_SIZE as u32);
    // Beyond the end nothing changes, but a file system that cannot do it says so.
    let probe = file.size()?.next_multiple_of(u64::from(FILE_BLOCK_SIZE));
    let punch = !file.is_read_only() && file.punch_hole(probe, u64::from(FILE_BLOCK_SIZE)).is_ok();
    let range = if punch { FILE_MAX_RANGE } else { 0 };
    Ok(QueueLimits {
        logical_block_size: direct,
        physical_block_size: FILE_BLOCK_SIZE.max(direct),
        max_discard_bytes: range,
        discard_granularity: if punch { FILE_BLOCK_SIZE } else { 0 },
        discard_zeroes_data: punch,
        max_write_zeroes_bytes: range,
        write_cache: true,
        fua: true,
        read_only: file.is_read_only(),
        ..QueueLimits::default()
    })
}

impl Core {
    /// Does what can be done without blocking. `None`: a thread has to do it, from the start.
    fn try_inline(&self, bio: &mut Bio) -> Option<Result> {
        if self.file.is_direct() || bio.flags.intersects(ReqFlags::FUA | ReqFlags::PREFLUSH) {
            return None;
        }
        let (at, len, pos) = (bio.sg_at, bio.len, bio.pos());
        let moved = match bio.op {
            BioOp::Read if self.file.supports_nowait_read() => {
                self.file
                    .read_sg(&mut bio.sg, at, len, pos, KiocbFlags::NOWAIT)
            }
            BioOp::Write if self.nowait_write.load(Ordering::Relaxed) => {
                let r = self
                    .file
                    .write_sg(&bio.sg, at, len, pos, KiocbFlags::NOWAIT);
                if r == Err(code::EOPNOTSUPP) {
                    self.nowait_write.store(false, Ordering::Relaxed);
                }
                r
            }
            _ => return None,
        };
        match moved {
            Ok(n) if n == len => Some(Ok(())),
            Ok(_) | Err(code::EAGAIN | code::EOPNOTSUPP) => None,
            Err(e) => Some(Err(e)),
        }
    }

    /// Does a bio.
    ///
    /// Context: may sleep.
    fn execute(&self, bio: &mut Bio) -> Result {
        if bio.flags.contains(ReqFlags::PREFLUSH) {
            self.flush()?;
        }
        let fua = bio.flags.contains(ReqFlags::FUA);
        match bio.op {
            BioOp::Read => self.read(bio),
            BioOp::Write => self.write(bio, fua),
            BioOp::Flush => self.flush(),
            BioOp::Discard => self.discard(bio.pos(), bio.len as u64),
            BioOp::WriteZeroes => self.write_zeroes(bio),
        }?;
        if fua && matches!(bio.op, BioOp::Discard | BioOp::WriteZeroes) {
            self.flush()?;
        }
        Ok(())
    }

    /// Whether the data can go to the file as it is.
    fn fits(&self, bio: &Bio) -> Result<bool> {
        let align = self.file.dio_align();
        if align == 1 {
            Ok(true)
        } else {
            bio.sg.is_aligned(bio.sg_at, bio.len, align)
        }
    }

    fn read(&self, bio: &mut Bio) -> Result {
        let (at, len, pos) = (bio.sg_at, bio.len, bio.pos());
        let n = if self.fits(bio)? {
            self.file
                .read_sg(&mut bio.sg, at, len, pos, KiocbFlags::empty())?
        } else {
            let mut bounce = SGTable::alloc(len)?;
            let n = self
                .file
                .read_sg(&mut bounce, 0, len, pos, KiocbFlags::empty())?;
            bio.sg.copy_from_sg(at, &bounce, 0, n)?;
            n
        };
        // The end of the file inside the capacity: somebody cut it.
        if n == len { Ok(()) } else { Err(code::EIO) }
    }

    fn write(&self, bio: &Bio, fua: bool) -> Result {
        let (at, len, pos) = (bio.sg_at, bio.len, bio.pos());
        if self.fits(bio)? {
            return self.write_sg(&bio.sg, at, len, pos, fua);
        }
        let mut bounce = SGTable::alloc(len)?;
        bounce.copy_from_sg(0, &bio.sg, at, len)?;
        self.write_sg(&bounce, 0, len, pos, fua)
    }

    fn write_sg(&self, sg: &SGTable, at: usize, len: usize, pos: u64, fua: bool) -> Result {
        let write = |flags| self.file.write_sg(sg, at, len, pos, flags).map(drop);
        if !fua {
            return write(KiocbFlags::empty());
        }
        match write(KiocbFlags::DSYNC) {
            Ok(()) => Ok(()),
            Err(code::EOPNOTSUPP) => {
                write(KiocbFlags::empty())?;
                self.flush()
            }
            Err(e @ (code::EIO | code::ENOSPC | code::EDQUOT)) => {
                // The write failed, or the sync after it, perhaps with the error of an earlier write: then
                // it was reported here and to nobody else. Without the sync only the former fails.
                if e == code::EIO || write(KiocbFlags::empty()).is_ok() {
                    self.remember(e);
                }
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    fn remember(&self, e: Error) {
        if self.lost.set(e).is_ok() {
            crate::pr_err!(
                "{}: write-back failed, data may be lost: {e}",
                self.file.path().display()
            );
        }
    }

    fn flush(&self) -> Result {
        if let Err(e) = self.file.fdatasync() {
            if e != code::EINVAL && e != code::EROFS {
                self.remember(e);
            }
            return Err(e);
        }
        match self.lost.get() {
            Some(e) => Err(*e),
            None => Ok(()),
        }
    }

    fn discard(&self, pos: u64, len: u64) -> Result {
        if len == 0 {
            Ok(())
        } else if self.file.is_block_device() {
            self.file.blk_discard(pos, len)
        } else {
            self.file.punch_hole(pos, len)
        }
    }

    fn write_zeroes(&self, bio: &Bio) -> Result {
        let (pos, len) = (bio.pos(), bio.len as u64);
        if len == 0 {
            return Ok(());
        }
        let unsupported = |r: &Result| matches!(r, Err(code::EOPNOTSUPP | code::ENOTTY));
        // The host falls back to writing by itself for devices.
        let first = if self.file.is_block_device() {
            self.file.blk_zeroout(pos, len)
        } else if bio.flags.contains(ReqFlags::NOUNMAP) {
            self.file.zero_range(pos, len)
        } else {
            match self.file.punch_hole(pos, len) {
                r if unsupported(&r) => self.file.zero_range(pos, len),
                r => r,
            }
        };
        if !unsupported(&first) {
            return first;
        }
        let mut zeroes = SGTable::alloc_zeroed(bio.len.min(ZERO_CHUNK))?;
        let mut done = 0;
        while done < bio.len {
            let n = (bio.len - done).min(ZERO_CHUNK);
            zeroes.truncate(n);
            self.write_sg(&zeroes, 0, n, pos + done as u64, false)?;
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockDevice;

    #[test]
    fn a_lost_write_back_is_told_until_reopened() {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(1 << 16).unwrap();
        let mode = BlkMode::READ | BlkMode::WRITE;
        let disk = HostDisk::open(t.path(), mode).unwrap();
        assert_eq!(disk.core.flush(), Ok(()));
        disk.core.remember(code::ENOSPC);
        disk.core.remember(code::EIO);
        for _ in 0..3 {
            assert_eq!(disk.core.flush(), Err(code::ENOSPC));
        }
        let sg = SGTable::alloc_zeroed(512).unwrap();
        assert_eq!(disk.core.write_sg(&sg, 0, 512, 0, true), Ok(()));
        let bdev = BlockDevice::open(t.path(), mode).unwrap();
        let end = Arc::new(|_: Bio, _: Result| {});
        assert_eq!(
            bdev.submit_bio_wait(Bio::new(BioOp::Flush, 0, 0, end)).1,
            Ok(())
        );
    }
}
