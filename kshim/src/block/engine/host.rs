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
use crate::sync::SpinLock;

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
    pool: Arc<BlockWorkers>,
    end: Arc<BioEnd>,
}

/// Ends the bio whose data a request had.
struct BioEnd;

/// The bio of a request, with its data.
fn bio_of(req: IoReq) -> Option<SubmittedBio> {
    let mut bio = *req.private?.downcast::<SubmittedBio>().ok()?;
    bio.sg = req.sg;
    Some(bio)
}

impl IoEnd for BioEnd {
    fn io_done(&self, req: IoReq, res: Result) {
        if let Some(bio) = bio_of(req) {
            bio.complete(res);
        }
    }
}

/// Ends a bio that is to zero a range, or writes zeros where the host knows no better.
struct ZeroEnd(SpinLock<Option<(Arc<Core>, Arc<BlockWorkers>)>>);

impl IoEnd for ZeroEnd {
    fn io_done(&self, req: IoReq, res: Result) {
        let disk = self.0.lock().take();
        match (bio_of(req), disk) {
            (Some(bio), Some((core, pool))) if is_unsupported(&res) => {
                execute_on(&pool, core, bio);
            }
            (Some(bio), disk) => {
                // The owner may close the device when it hears of the end.
                drop(disk);
                bio.complete(res);
            }
            (None, _) => {}
        }
    }
}

/// Has a thread do all of a bio.
fn execute_on(pool: &BlockWorkers, core: Arc<Core>, mut bio: SubmittedBio) {
    pool.defer(move || {
        let status = core.execute(&mut bio);
        // The owner may close the device when it hears of the end: the file is closed then, not later.
        drop(core);
        bio.complete(status);
    });
}

/// Whether the host has no way to do this.
fn is_unsupported(res: &Result) -> bool {
    matches!(res, Err(code::EOPNOTSUPP | code::ENOTTY))
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
            pool: Arc::new(BlockWorkers::new()),
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
            let end: Arc<dyn IoEnd> = if op == IoOp::WriteZeroes {
                let disk = (Arc::clone(&self.core), Arc::clone(&self.pool));
                Arc::new(ZeroEnd(SpinLock::new(Some(disk))))
            } else {
                Arc::clone(&self.end) as _
            };
            let mut req = IoReq::new(op, pos, len, end).with_sg(sg, at);
            req.private = Some(Box::new(bio));
            return self.core.file.submit(req);
        }
        execute_on(&self.pool, Arc::clone(&self.core), bio);
    }

    /// What the engine is to do for this bio, if it can.
    fn engine_op(&self, bio: &Bio) -> Option<IoOp> {
        if !self.core.file.is_async() || bio.flags.contains(ReqFlags::PREFLUSH) {
            return None;
        }
        let fua = bio.flags.contains(ReqFlags::FUA);
        match bio.op {
            BioOp::Read => Some(IoOp::Read),
            BioOp::Write if fua => Some(IoOp::WriteDurable),
            BioOp::Write => Some(IoOp::Write),
            BioOp::Flush => Some(IoOp::Flush),
            BioOp::Discard if !fua => Some(IoOp::Discard),
            BioOp::WriteZeroes if !fua && bio.flags.contains(ReqFlags::NOUNMAP) => {
                Some(IoOp::WriteZeroes)
            }
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
            BioOp::Discard => self.file.discard(bio.pos(), bio.len as u64),
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

    fn write_zeroes(&self, bio: &Bio) -> Result {
        let (pos, len) = (bio.pos(), bio.len as u64);
        if len == 0 {
            return Ok(());
        }
        let file = self.file.file();
        let keep = file.is_block_device() || bio.flags.contains(ReqFlags::NOUNMAP);
        let first = if keep {
            self.file.zero(pos, len)
        } else {
            match file.punch_hole(pos, len) {
                r if is_unsupported(&r) => self.file.zero(pos, len),
                r => r,
            }
        };
        if !is_unsupported(&first) {
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
