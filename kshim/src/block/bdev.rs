//! Open block devices.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bitflags::bitflags;

use super::bio::{Bio, BioOp, SubmittedBio};
use super::engine::HostDisk;
use super::gendisk::{BlockOps, Disk, find};
use super::limits::QueueLimits;
use super::passthrough::{ScsiOutcome, ScsiRequest, SubmittedScsi};
use crate::error::{Result, code};
use crate::fs::Engine;
use crate::page::LentRange;
use crate::sync::{Completion, SpinLock};

bitflags! {
    /// How a block device is opened.
    ///
    /// C header: `include/linux/blkdev.h` (`BLK_OPEN_*`)
    #[doc(alias = "blk_mode_t")]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct BlkMode: u32 {
        /// For reading.
        #[doc(alias = "BLK_OPEN_READ")]
        const READ = 1 << 0;
        /// For writing.
        #[doc(alias = "BLK_OPEN_WRITE")]
        const WRITE = 1 << 1;
        /// With a claim, of which there can be one. Opens without it are not kept out.
        #[doc(alias = "BLK_OPEN_EXCL")]
        const EXCL = 1 << 2;
        /// A host file or device: bypass the page cache.
        const DIRECT = 1 << 3;
        /// For SCSI commands ([`BlockDevice::submit_scsi`]) instead of bios.
        const PASSTHROUGH = 1 << 4;
    }
}

/// An open block device: a registered disk, or a device or plain file of the host.
///
/// ```
/// # let path = std::env::temp_dir().join(format!("kshim-bdev-{}", std::process::id()));
/// # let new = kshim::fs::OpenOptions::new().create(true);
/// # kshim::fs::File::open(&path, &new)?.set_size(1 << 20)?;
/// use std::sync::Arc;
/// use kshim::block::{Bio, BioOp, BlkMode, BlockDevice};
/// use kshim::scatterlist::SGTable;
///
/// let bdev = BlockDevice::open(&path, BlkMode::READ | BlkMode::WRITE)?;
/// assert_eq!(bdev.capacity_bytes(), 1 << 20);
/// let done = Arc::new(|bio: Bio, status| println!("{bio:?}: {status:?}"));
/// bdev.submit_bio(Bio::new(BioOp::Read, 0, 4096, done).with_sg(SGTable::alloc(4096)?, 0));
/// # kshim::fs::unlink(&path)?;
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/blkdev.h`, `include/linux/blk_types.h` (`struct block_device`)
#[doc(alias = "block_device")]
pub struct BlockDevice {
    disk: Arc<Disk>,
    ops: Arc<dyn BlockOps>,
    mode: BlkMode,
    limits: QueueLimits,
    inline: bool,
}

impl BlockDevice {
    /// Opens a registered disk by its path, otherwise a block device or plain file of the host. Closed when the
    /// last reference is dropped; bios in flight then still complete.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: neither for reading nor for writing; no block device or file. `EBUSY`: another has the claim. `EROFS`: for
    /// writing, but the disk is read-only. Others: those of the driver or `open(2)`.
    #[doc(alias = "bdev_file_open_by_path")]
    pub fn open(path: impl AsRef<Path>, mode: BlkMode) -> Result<Arc<BlockDevice>> {
        BlockDevice::open_with(path, mode, None)
    }

    /// As [`BlockDevice::open`], and says by which engine a device or plain file of the host is read and written; a
    /// registered disk has its own ways.
    ///
    /// Context: may sleep. Errors: as [`BlockDevice::open`], and those of [`Engine::choose`].
    pub fn open_with(
        path: impl AsRef<Path>,
        mode: BlkMode,
        engine: Option<Engine>,
    ) -> Result<Arc<BlockDevice>> {
        crate::might_sleep!();
        if !mode.intersects(BlkMode::READ | BlkMode::WRITE) {
            return Err(code::EINVAL);
        }
        let path = path.as_ref();
        let disk = match path.to_str().map(|p| find(p, mode)).transpose()?.flatten() {
            Some(disk) => disk,
            None => {
                let ops = Arc::new(HostDisk::open(path, mode, engine)?);
                let disk = Disk::new(path.to_string_lossy().into_owned(), ops);
                disk.claim(mode)?;
                disk
            }
        };
        disk.open(mode)?;
        let ops = Arc::clone(&disk.ops);
        let bdev = BlockDevice {
            disk,
            mode,
            limits: ops.limits(),
            inline: ops.is_inline(),
            ops,
        };
        if bdev.limits.read_only && mode.contains(BlkMode::WRITE) {
            return Err(code::EROFS);
        }
        if !bdev.limits.is_valid() {
            crate::pr_err!("{}: limits make no sense", bdev.path());
            return Err(code::EINVAL);
        }
        Ok(Arc::new(bdev))
    }

    /// Starts a SCSI command. Its end is told to [`ScsiRequest::end_io`], exactly once, perhaps before this returns.
    ///
    /// Context: reactor-safe; any thread.
    ///
    /// # Errors
    ///
    /// They come as [`ScsiOutcome::Failed`]: `EINVAL`: less data than `len`, or no CDB. `EOPNOTSUPP`: not opened with
    /// [`BlkMode::PASSTHROUGH`]. `ENODEV`: the disk was removed.
    #[doc(alias = "scsi_execute_cmd")]
    #[doc(alias = "blk_execute_rq_nowait")]
    pub fn submit_scsi(&self, cmd: ScsiRequest) {
        let checked = if !self.mode.contains(BlkMode::PASSTHROUGH) {
            Err(code::EOPNOTSUPP)
        } else {
            cmd.check()
        };
        let mut cmd = SubmittedScsi::new(cmd);
        if let Err(e) = checked.and_then(|()| self.disk.enter()) {
            return cmd.complete(ScsiOutcome::Failed(e));
        }
        cmd.set_disk(Arc::clone(&self.disk));
        self.ops.submit_scsi(cmd);
    }

    /// The path it was opened by.
    pub fn path(&self) -> &str {
        &self.disk.path
    }

    /// Its size now.
    ///
    /// Context: any.
    #[doc(alias = "bdev_nr_bytes")]
    pub fn capacity_bytes(&self) -> u64 {
        self.ops.capacity_bytes()
    }

    /// Looks at its size again, after somebody resized what is behind it.
    ///
    /// Context: may sleep. Errors: the driver's.
    #[doc(alias = "bdev_disk_changed")]
    pub fn revalidate(&self) -> Result<u64> {
        crate::might_sleep!();
        self.ops.revalidate()
    }

    /// Whether another host has taken what is behind it ([`BlockOps::is_lost`]).
    ///
    /// Context: any.
    pub fn is_lost(&self) -> bool {
        self.ops.is_lost()
    }

    /// Its limits.
    #[doc(alias = "bdev_limits")]
    #[doc(alias = "bdev_get_queue")]
    pub fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    /// Whether [`BlockDevice::submit_bio`] never blocks and completes inside the call.
    pub fn is_inline(&self) -> bool {
        self.inline
    }

    /// Lends the memory of a range for reading, if the device is memory that cannot vanish.
    ///
    /// Context: any.
    #[doc(alias = "dax_direct_access")]
    pub fn direct_access(&self, pos: u64, len: usize) -> Option<LentRange> {
        let end = pos.checked_add(u64::try_from(len).ok()?)?;
        if end > self.ops.capacity_bytes() {
            return None;
        }
        self.ops.direct_access(pos, len)
    }

    fn check(&self, bio: &Bio) -> Result {
        if self.mode.contains(BlkMode::PASSTHROUGH) {
            return Err(code::EOPNOTSUPP);
        }
        let writes = bio.op.is_write();
        if writes && (self.limits.read_only || !self.mode.contains(BlkMode::WRITE)) {
            return Err(code::EROFS);
        }
        if bio.op == BioOp::Flush {
            return if bio.len == 0 {
                Ok(())
            } else {
                Err(code::EINVAL)
            };
        }
        let block = u64::from(self.limits.logical_block_size);
        let len = u64::try_from(bio.len)?;
        let pos = bio
            .sector
            .checked_mul(super::SECTOR_SIZE)
            .ok_or(code::EIO)?;
        if pos % block != 0 || len % block != 0 {
            return Err(code::EINVAL);
        }
        if pos.checked_add(len).ok_or(code::EIO)? > self.ops.capacity_bytes() {
            return Err(code::EIO);
        }
        match bio.op {
            BioOp::Read | BioOp::Write => {
                crate::page::check_range(bio.sg_at, bio.len, bio.sg.len())
            }
            BioOp::Discard if self.limits.max_discard_bytes == 0 => Err(code::EOPNOTSUPP),
            _ => Ok(()),
        }
    }

    /// Starts a bio. Its end is told to [`Bio::end_io`], exactly once, perhaps before this returns.
    ///
    /// Context: reactor-safe; any thread.
    ///
    /// # Errors
    ///
    /// They come as the status: `EINVAL`: not aligned to the logical block size, or less data than `len`. `EIO`: beyond the
    /// capacity, or the medium failed. `EROFS`: a write to what is not open for writing. `EOPNOTSUPP`: the device cannot
    /// do this. `EAGAIN`: [`ReqFlags::NOWAIT`](super::ReqFlags::NOWAIT) and it would wait. `ENODEV`: the disk was removed.
    /// `ENOSPC`: no room behind it. A bio without `end_io` is dropped with a warning.
    pub fn submit_bio(&self, bio: Bio) {
        if crate::warn_on!(bio.end_io.is_none()) {
            return;
        }
        let checked = self.check(&bio);
        let mut bio = SubmittedBio::new(bio);
        if let Err(e) = checked.and_then(|()| self.disk.enter()) {
            return bio.complete(Err(e));
        }
        if self.inline {
            self.ops.submit_bio(bio);
            self.disk.exit();
        } else {
            bio.set_disk(Arc::clone(&self.disk));
            self.ops.submit_bio(bio);
        }
    }

    /// Submits a bio and waits for its end. The bio's own `end_io` is not called.
    ///
    /// Context: may sleep. Errors: as [`BlockDevice::submit_bio`].
    pub fn submit_bio_wait(&self, mut bio: Bio) -> (Bio, Result) {
        crate::might_sleep!();
        type Slot = (SpinLock<Option<(Bio, Result)>>, Completion);
        let slot: Arc<Slot> = Arc::new((SpinLock::new(None), Completion::new()));
        let theirs = Arc::clone(&slot);
        bio.end_io = Some(Arc::new(move |bio: Bio, status: Result| {
            *theirs.0.lock() = Some((bio, status));
            theirs.1.complete();
        }));
        self.submit_bio(bio);
        slot.1.wait_for_completion();
        let done = slot.0.lock().take();
        done.expect("stored before the completion")
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        self.disk.release(self.mode);
    }
}

impl fmt::Debug for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDevice")
            .field("path", &self.disk.path)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
