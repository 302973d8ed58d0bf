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

use super::pool::BlockWorkers;
use crate::block::bdev::BlkMode;
use crate::block::bio::{Bio, BioOp, ReqFlags, SubmittedBio};
use crate::block::gendisk::BlockOps;
use crate::block::limits::{QueueLimits, SECTOR_SIZE};
use crate::error::{Result, code};
use crate::fs::{Engine, File, IoEnd, IoFile, IoOp, IoReq, KiocbFlags, OpenOptions};
use crate::scatterlist::SGTable;

/// What one discard or write of zeros to a plain file may cover; more gains nothing.
const FILE_MAX_RANGE: u64 = 1 << 40;
/// The block size that file systems have.
const FILE_BLOCK_SIZE: u32 = 4096;
/// Zeros are written as data in pieces of so many bytes.
const ZERO_CHUNK: usize = 1 << 20;

/// The part of a disk that bios in a pool's queue share.
struct Core {
    file: Arc<IoFile>,
    limits: QueueLimits,
    capacity: AtomicU64,
    /// NOWAIT writes were not refused yet.
    nowait_write: AtomicBool,
}

/// A host block device or plain file.
pub(crate) struct HostDisk {
    core: Arc<Core>,
    pool: BlockWorkers,
    end: Arc<BioEnd>,
}

/// Ends the bio whose data a request had.
struct BioEnd;

impl IoEnd for BioEnd {
    fn io_done(&self, req: IoReq, res: Result) {
        let bio = req.private.and_then(|p| p.downcast::<SubmittedBio>().ok());
        if let Some(mut bio) = bio {
            bio.sg = req.sg;
            bio.complete(res);
        }
    }
}

impl HostDisk {
    /// Opens it for an engine. Errors: those of [`IoFile::open`].
    pub(crate) fn open(path: &Path, mode: BlkMode, engine: Option<Engine>) -> Result<HostDisk> {
        let options = OpenOptions::new()
            .read_only(!mode.contains(BlkMode::WRITE))
            .direct(mode.contains(BlkMode::DIRECT))
            .exclusive(mode.contains(BlkMode::EXCL));
        let io = IoFile::open(path, &options, engine)?;
        let file = io.file();
        let limits = if file.is_block_device() {
            file.blk_limits()?
        } else {
            file_limits(file)?
        };
        let core = Core {
            limits,
            capacity: AtomicU64::new(usable(file)?),
            nowait_write: AtomicBool::new(file.supports_nowait_read()),
            file: io,
        };
        Ok(HostDisk {
            core: Arc::new(core),
            pool: BlockWorkers::new(),
            end: Arc::new(BioEnd),
        })
    }

    /// Hands the bio to the engine, or to a thread.
    fn defer(&self, mut bio: SubmittedBio) {
        if bio.flags.contains(ReqFlags::NOWAIT) {
            return bio.complete(Err(code::EAGAIN));
        }
        if let Some(op) = self.engine_op(&bio) {
            let (at, len, pos) = (bio.sg_at, bio.len, bio.pos());
            let sg = std::mem::take(&mut bio.sg);
            let end = Arc::clone(&self.end) as Arc<dyn IoEnd>;
            let mut req = IoReq::new(op, pos, len, end).with_sg(sg, at);
            req.private = Some(Box::new(bio));
            return self.core.file.submit(req);
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

    /// What the engine is to do for this bio, if it can.
    fn engine_op(&self, bio: &Bio) -> Option<IoOp> {
        if !self.core.file.is_async() || bio.flags.contains(ReqFlags::PREFLUSH) {
            return None;
        }
        match bio.op {
            BioOp::Read => Some(IoOp::Read),
            BioOp::Write if bio.flags.contains(ReqFlags::FUA) => Some(IoOp::WriteDurable),
            BioOp::Write => Some(IoOp::Write),
            BioOp::Flush => Some(IoOp::Flush),
            BioOp::Discard | BioOp::WriteZeroes => None,
        }
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
        let size = usable(self.core.file.file())?;
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
        let file = self.file.file();
        if file.is_direct() || bio.flags.intersects(ReqFlags::FUA | ReqFlags::PREFLUSH) {
            return None;
        }
        let (at, len, pos) = (bio.sg_at, bio.len, bio.pos());
        let moved = match bio.op {
            BioOp::Read if file.supports_nowait_read() => {
                file.read_sg(&mut bio.sg, at, len, pos, KiocbFlags::NOWAIT)
            }
            BioOp::Write if self.nowait_write.load(Ordering::Relaxed) => {
                let r = file.write_sg(&bio.sg, at, len, pos, KiocbFlags::NOWAIT);
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

    fn read(&self, bio: &mut Bio) -> Result {
        let (at, len, pos) = (bio.sg_at, bio.len, bio.pos());
        self.file.read(&mut bio.sg, at, len, pos)
    }

    fn write(&self, bio: &Bio, fua: bool) -> Result {
        self.file.write(&bio.sg, bio.sg_at, bio.len, bio.pos(), fua)
    }

    fn flush(&self) -> Result {
        self.file.flush()
    }

    fn discard(&self, pos: u64, len: u64) -> Result {
        let file = self.file.file();
        if len == 0 {
            Ok(())
        } else if file.is_block_device() {
            file.blk_discard(pos, len)
        } else {
            file.punch_hole(pos, len)
        }
    }

    fn write_zeroes(&self, bio: &Bio) -> Result {
        let (pos, len) = (bio.pos(), bio.len as u64);
        if len == 0 {
            return Ok(());
        }
        let unsupported = |r: &Result| matches!(r, Err(code::EOPNOTSUPP | code::ENOTTY));
        // The host falls back to writing by itself for devices.
        let file = self.file.file();
        let first = if file.is_block_device() {
            file.blk_zeroout(pos, len)
        } else if bio.flags.contains(ReqFlags::NOUNMAP) {
            file.zero_range(pos, len)
        } else {
            match file.punch_hole(pos, len) {
                r if unsupported(&r) => file.zero_range(pos, len),
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
            self.file.write(&zeroes, 0, n, pos + done as u64, false)?;
            done += n;
        }
        Ok(())
    }
}
