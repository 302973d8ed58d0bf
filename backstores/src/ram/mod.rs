//! RAM disks.
//!
//! [`RamDisk::create`] registers `/dev/ram/NAME`. The memory is either anonymous, gone with the process, or a mapping
//! of a file, which keeps the data across restarts:
//!
//! | | anonymous | file |
//! |---|---|---|
//! | memory taken | when written first | page cache |
//! | survives the process | no | yes; a crash of the host only what was flushed or written with FUA |
//! | flush | nothing to do | `fdatasync` |
//! | lent to readers ([`BlockDevice::direct_access`]) | yes | no: the file may be truncated |
//! | the file truncated or its file system full | - | `EIO` for what is gone |
//!
//! Blocks that were never written, or were discarded, read as zeros. Discarding gives memory (or the file's blocks) back.
//! Reads and writes run inside [`BlockDevice::submit_bio`]; those of a file may wait for the host's disk where pages are
//! not resident. Flushes and writes with FUA of a file go to a thread.
//!
//! [`BlockDevice::direct_access`]: kshim::block::BlockDevice::direct_access
//! [`BlockDevice::submit_bio`]: kshim::block::BlockDevice::submit_bio
//!
//! After [`init`], management can make such disks by opening `/dev/ram/NAME?size=BYTES` or `/dev/mmap/FILE`.
//!
//! C source: `drivers/block/brd.c` of Linux is the nearest relative.

mod probe;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use kshim::block::{
    Bio, BioOp, BlockOps, BlockWorkers, GenDisk, QueueLimits, ReqFlags, SubmittedBio, register_disk,
};
use kshim::fs::{self, File, OpenOptions};
use kshim::page::{LentMem, LentRange, PAGE_SIZE};
use kshim::prelude::*;

pub use probe::{MMAP_PREFIX, init};

/// Where RAM disks appear.
pub const RAM_PREFIX: &str = "/dev/ram/";
/// The longest name.
pub const MAX_NAME_LEN: usize = 63;
/// What one discard or write of zeros may cover.
const MAX_RANGE: u64 = 1 << 40;
/// Bytes that one discard takes: as much as SCST announces for files. Initiators expect a limit that is a number.
const MAX_DISCARD: u64 = 256 << 20;
/// Largest block size, as SCST's virtual disks have it.
pub const MAX_BLOCK_SIZE: u32 = 4096;
/// Smallest block size.
pub const MIN_BLOCK_SIZE: u32 = 512;

/// Where a RAM disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Memory of the process.
    Anonymous,
    /// A file, mapped and claimed (`flock`). It is created when missing and gets the disk's size when empty.
    File(PathBuf),
}

/// What a RAM disk is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamConfig {
    /// Bytes: a multiple of the block size, not 0.
    pub size: u64,
    /// Logical block size: a power of two, [`MIN_BLOCK_SIZE`] to [`MAX_BLOCK_SIZE`].
    pub block_size: u32,
    /// Where the bytes are.
    pub backing: Backing,
}

impl RamConfig {
    /// An anonymous disk of 512-byte blocks.
    pub fn new(size: u64) -> RamConfig {
        RamConfig {
            size,
            block_size: MIN_BLOCK_SIZE,
            backing: Backing::Anonymous,
        }
    }
}

/// A registered RAM disk. Dropping it removes the disk, even when it is open.
///
/// ```
/// use backstores::ram::{RamConfig, RamDisk};
/// use kshim::block::{Bio, BioOp, BlkMode, BlockDevice};
/// use kshim::scatterlist::SGTable;
/// use std::sync::Arc;
///
/// let disk = RamDisk::create("doc", &RamConfig::new(1 << 20))?;
/// let bdev = BlockDevice::open("/dev/ram/doc", BlkMode::READ | BlkMode::WRITE)?;
/// let done = Arc::new(|_bio: Bio, status: kshim::error::Result| assert_eq!(status, Ok(())));
/// bdev.submit_bio(Bio::new(BioOp::Read, 0, 4096, done).with_sg(SGTable::alloc(4096)?, 0));
/// drop(bdev);
/// disk.destroy().map_err(|(_disk, e)| e)?;
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Debug)]
pub struct RamDisk {
    gendisk: GenDisk,
}

impl RamDisk {
    /// Makes a disk and registers it as `/dev/ram/NAME`.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: a bad name (empty, too long, a slash, a control character, `.` or `..`), size or block size; the file has
    /// another size, not 0. `EEXIST`: the name is taken. `EBUSY`: the file is claimed by another. `ENOMEM`: no address space.
    /// Others: opening, extending or mapping the file.
    pub fn create(name: &str, config: &RamConfig) -> Result<RamDisk> {
        check_name(name)?;
        let path = format!("{RAM_PREFIX}{name}");
        let ram = Ram::new(&path, config)?;
        Ok(RamDisk {
            gendisk: register_disk(&path, Arc::new(ram))?,
        })
    }

    /// The path to open it by.
    pub fn path(&self) -> &str {
        self.gendisk.path()
    }

    /// Removes the disk when nobody has it open. The data of an anonymous disk is gone, a file stays.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// The disk comes back with `EBUSY`: it is open.
    pub fn destroy(self) -> Result<(), (RamDisk, Error)> {
        match self.gendisk.unregister() {
            Ok(()) => Ok(()),
            Err(e) => Err((self, e)),
        }
    }
}

fn check_name(name: &str) -> Result {
    let bad = |c: char| c == '/' || c.is_control();
    let fits = !name.is_empty() && name.len() <= MAX_NAME_LEN && !name.contains(bad);
    if fits && name != "." && name != ".." {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

fn map(path: &Path, size: u64, len: usize) -> Result<LentMem> {
    let options = OpenOptions::new().exclusive(true);
    let (file, created) = match File::open(path, &options) {
        Err(ENOENT) => (File::open(path, &options.create_new(true))?, true),
        r => (r?, false),
    };
    let mem = map_opened(file, size, len);
    if created && mem.is_err() {
        // What failed leaves nothing behind.
        if let Err(e) = fs::unlink(path) {
            pr_warn!("{}: {e}", path.display());
        }
    }
    mem
}

fn map_opened(file: File, size: u64, len: usize) -> Result<LentMem> {
    if file.is_block_device() {
        return Err(EINVAL);
    }
    match file.size()? {
        0 => file.set_size(size)?,
        n if n == size => {}
        n => {
            pr_err!("{}: has {n} bytes, not {size}", file.path().display());
            return Err(EINVAL);
        }
    }
    LentMem::map_file(file, len)
}

/// The memory, shared with bios that wait for a thread.
struct Core {
    mem: LentMem,
    /// The errno of the first failed write-back; 0: none.
    lost: AtomicI32,
    path: String,
}

/// The driver.
struct Ram {
    core: Arc<Core>,
    block_size: u32,
    /// `None`: nothing ever blocks.
    pool: Option<BlockWorkers>,
}

impl Ram {
    fn new(path: &str, config: &RamConfig) -> Result<Ram> {
        let block = config.block_size;
        let sizes = MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE;
        if !block.is_power_of_two() || !sizes.contains(&block) {
            return Err(EINVAL);
        }
        if config.size == 0 || !config.size.is_multiple_of(u64::from(block)) {
            return Err(EINVAL);
        }
        let len = usize::try_from(config.size)?;
        let mem = match &config.backing {
            Backing::Anonymous => LentMem::anonymous(len)?,
            Backing::File(file) => map(file, config.size, len)?,
        };
        let persistent = !mem.can_lend();
        let core = Core {
            mem,
            lost: AtomicI32::new(0),
            path: path.to_owned(),
        };
        Ok(Ram {
            core: Arc::new(core),
            block_size: block,
            pool: persistent.then(BlockWorkers::new),
        })
    }
}

impl BlockOps for Ram {
    fn submit_bio(&self, mut bio: SubmittedBio) {
        let syncs = bio.op == BioOp::Flush
            || bio.op != BioOp::Read && bio.flags.contains(ReqFlags::FUA)
            || bio.flags.contains(ReqFlags::PREFLUSH);
        let Some(pool) = self.pool.as_ref().filter(|_| syncs) else {
            let status = self.core.transfer(&mut bio);
            return bio.complete(status);
        };
        if bio.flags.contains(ReqFlags::NOWAIT) {
            return bio.complete(Err(EAGAIN));
        }
        let core = Arc::clone(&self.core);
        pool.defer(move || {
            let mut bio = bio;
            let status = core.durable(&mut bio);
            // The owner may destroy the disk when it hears of the end: the file is released then, not later.
            drop(core);
            bio.complete(status);
        });
    }

    fn limits(&self) -> QueueLimits {
        let persistent = self.pool.is_some();
        QueueLimits {
            logical_block_size: self.block_size,
            physical_block_size: PAGE_SIZE as u32,
            max_discard_bytes: MAX_DISCARD,
            discard_granularity: PAGE_SIZE as u32,
            discard_zeroes_data: true,
            max_write_zeroes_bytes: MAX_RANGE,
            write_cache: persistent,
            fua: true,
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.core.mem.len() as u64
    }

    fn direct_access(&self, pos: u64, len: usize) -> Option<LentRange> {
        self.core.mem.range(usize::try_from(pos).ok()?, len).ok()
    }

    fn is_inline(&self) -> bool {
        self.pool.is_none()
    }
}

impl Core {
    /// Moves the data of a bio, without making it durable.
    fn transfer(&self, bio: &mut Bio) -> Result {
        let off = usize::try_from(bio.pos())?;
        let (at, len) = (bio.sg_at, bio.len);
        match bio.op {
            BioOp::Read => bio.sg.copy_from_lent(at, &self.mem, off, len),
            BioOp::Write => bio.sg.copy_to_lent(at, &self.mem, off, len),
            BioOp::Flush => Ok(()),
            BioOp::WriteZeroes if bio.flags.contains(ReqFlags::NOUNMAP) => {
                self.mem.fill(off, len, 0)
            }
            BioOp::Discard | BioOp::WriteZeroes => self.mem.discard(off, len),
        }
    }

    /// Moves the data of a bio, with the flushes that it asks for.
    ///
    /// Context: may sleep.
    fn durable(&self, bio: &mut Bio) -> Result {
        if bio.op == BioOp::Flush || bio.flags.contains(ReqFlags::PREFLUSH) {
            self.sync(0, self.mem.len())?;
        }
        self.transfer(bio)?;
        match bio.op {
            BioOp::Read | BioOp::Flush => Ok(()),
            _ if !bio.flags.contains(ReqFlags::FUA) => Ok(()),
            BioOp::Write => self.sync(usize::try_from(bio.pos())?, bio.len),
            // Holes are metadata, which only a sync of the whole covers.
            BioOp::Discard | BioOp::WriteZeroes => self.sync(0, self.mem.len()),
        }
    }

    /// Makes a range durable. The host reports a failed write-back once, so it is remembered here: each later call
    /// fails as well.
    fn sync(&self, off: usize, len: usize) -> Result {
        if let Err(e) = self.mem.sync(off, len) {
            if self
                .lost
                .compare_exchange(0, e.errno(), Ordering::Relaxed, Ordering::Relaxed)
                == Ok(0)
            {
                pr_err!("{}: write-back failed, data may be lost: {e}", self.path);
            }
            return Err(e);
        }
        match self.lost.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }
}
