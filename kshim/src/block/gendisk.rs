//! Disks that drivers register, and the registry of their names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bdev::BlkMode;
use super::bio::SubmittedBio;
use super::limits::QueueLimits;
use super::passthrough::{ScsiOutcome, SubmittedScsi};
use crate::error::{Result, code};
use crate::page::LentRange;
use crate::percpu::PercpuCounter;
use crate::sync::{CondVar, SpinLock};

/// The driver's side of a disk.
///
/// C header: `include/linux/blkdev.h` (`struct block_device_operations`)
#[doc(alias = "block_device_operations")]
pub trait BlockOps: Send + Sync {
    /// Starts a bio. It is inside the capacity, aligned to the logical block size, has data of its length, and is no
    /// write to a read-only disk. Complete it now or later, exactly once.
    ///
    /// Context: reactor or any other thread; must not block unless the submitter expects it (see [`BlockOps::is_inline`]).
    fn submit_bio(&self, bio: SubmittedBio);

    /// The limits. Asked at each open; they don't change while the disk is open.
    fn limits(&self) -> QueueLimits;

    /// The size now. Asked for each bio.
    fn capacity_bytes(&self) -> u64;

    /// Looks at the size of what is behind the disk again; returns it.
    ///
    /// Context: may sleep. Errors: the driver's.
    #[doc(alias = "check_disk_change")]
    fn revalidate(&self) -> Result<u64> {
        Ok(self.capacity_bytes())
    }

    /// Whether another host has taken what is behind the disk, which serves nothing until it is closed and opened again.
    ///
    /// Context: any.
    fn is_lost(&self) -> bool {
        false
    }

    /// Lends the memory of a range for reading, if the disk is memory that cannot vanish.
    ///
    /// Context: any.
    #[doc(alias = "dax_direct_access")]
    fn direct_access(&self, pos: u64, len: usize) -> Option<LentRange> {
        let _ = (pos, len);
        None
    }

    /// Whether [`BlockOps::submit_bio`] never blocks and completes inside the call.
    fn is_inline(&self) -> bool {
        false
    }

    /// Somebody opens the disk. The limits and the capacity are asked for afterwards.
    ///
    /// Context: may sleep. Errors: the driver's; the open fails.
    fn open(&self, mode: BlkMode) -> Result {
        // SCSI commands are for drivers that know what they are.
        if mode.contains(BlkMode::PASSTHROUGH) {
            return Err(code::EOPNOTSUPP);
        }
        Ok(())
    }

    /// Starts a SCSI command of somebody who opened the disk with [`BlkMode::PASSTHROUGH`]. Complete it now or later,
    /// exactly once.
    ///
    /// Context: reactor or any other thread; must not block.
    #[doc(alias = "REQ_OP_DRV_IN")]
    #[doc(alias = "scsi_queue_rq")]
    fn submit_scsi(&self, cmd: SubmittedScsi) {
        cmd.complete(ScsiOutcome::Failed(code::EOPNOTSUPP));
    }

    /// Somebody closed the disk.
    ///
    /// Context: whoever drops the last reference to the [`BlockDevice`](super::BlockDevice).
    fn release(&self, mode: BlkMode) {
        let _ = mode;
    }
}

#[derive(Debug, Default)]
struct Openers {
    count: usize,
    exclusive: bool,
}

/// A disk, registered or not.
pub(super) struct Disk {
    pub(super) path: String,
    pub(super) ops: Arc<dyn BlockOps>,
    openers: SpinLock<Openers>,
    /// Made by a prober: forgotten when the last opener closes it.
    probed: bool,
    dead: AtomicBool,
    /// Bios between submit and end.
    inflight: PercpuCounter,
    drained: CondVar,
    drain_lock: SpinLock<()>,
}

impl Disk {
    pub(super) fn new(path: String, ops: Arc<dyn BlockOps>) -> Arc<Disk> {
        Arc::new(Disk::make(path, ops, false))
    }

    fn make(path: String, ops: Arc<dyn BlockOps>, probed: bool) -> Disk {
        Disk {
            path,
            ops,
            openers: SpinLock::new(Openers::default()),
            probed,
            dead: AtomicBool::new(false),
            inflight: PercpuCounter::new(),
            drained: CondVar::new(),
            drain_lock: SpinLock::new(()),
        }
    }

    /// Counts an opener, who goes on to [`Disk::open`].
    pub(super) fn claim(&self, mode: BlkMode) -> Result {
        let exclusive = mode.contains(BlkMode::EXCL);
        let mut o = self.openers.lock();
        if self.dead.load(Ordering::SeqCst) {
            return Err(code::ENODEV);
        }
        if exclusive && o.exclusive {
            return Err(code::EBUSY);
        }
        o.count += 1;
        o.exclusive |= exclusive;
        Ok(())
    }

    /// Opens a disk that was claimed; after an error the claim is gone.
    pub(super) fn open(&self, mode: BlkMode) -> Result {
        // Without the lock: a driver may take its time, or register another disk.
        self.ops.open(mode).inspect_err(|_| self.uncount(mode))
    }

    fn uncount(&self, mode: BlkMode) {
        let mut disks = self.probed.then(|| DISKS.lock());
        let mut o = self.openers.lock();
        o.count -= 1;
        if mode.contains(BlkMode::EXCL) {
            o.exclusive = false;
        }
        let forgotten = match &mut disks {
            Some(disks) if o.count == 0 => disks.remove(&self.path),
            _ => None,
        };
        drop(o);
        drop(disks);
        drop(forgotten);
    }

    pub(super) fn release(&self, mode: BlkMode) {
        self.ops.release(mode);
        self.uncount(mode);
    }

    /// Counts a bio in; `ENODEV`: the disk is going away.
    ///
    /// The counter and the flag are accessed in one total order: either the remover sees the count, or we see the flag. Once
    /// the flag is set the counter only falls (but for short attempts, undone on the same thread), so that a sum of 0 is true.
    pub(super) fn enter(&self) -> Result {
        self.inflight.inc();
        if self.dead.load(Ordering::SeqCst) {
            self.exit();
            return Err(code::ENODEV);
        }
        Ok(())
    }

    /// Counts a bio out.
    pub(super) fn exit(&self) {
        self.inflight.dec();
        if self.dead.load(Ordering::SeqCst) {
            drop(self.drain_lock.lock());
            self.drained.notify_all();
        }
    }

    /// Refuses new bios and waits for those in flight.
    fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let mut g = self.drain_lock.lock();
        while self.inflight.sum() != 0 {
            self.drained.wait(&mut g);
        }
    }
}

static DISKS: SpinLock<BTreeMap<String, Arc<Disk>>> = SpinLock::new(BTreeMap::new());

/// A driver that makes its disks when they are opened: all paths with a prefix are its own.
///
/// ```
/// use std::sync::Arc;
/// use kshim::block::{BlkMode, BlockDevice, BlockOps, BlockProber, register_prober};
/// use kshim::error::{Result, code};
///
/// struct None;
///
/// impl BlockProber for None {
///     fn probe(&self, _path: &str) -> Result<Arc<dyn BlockOps>> {
///         Err(code::ENXIO)
///     }
/// }
///
/// register_prober("/dev/none/", Arc::new(None))?;
/// assert_eq!(BlockDevice::open("/dev/none/1", BlkMode::READ).err(), Some(code::ENXIO));
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// A closure is one, too.
pub trait BlockProber: Send + Sync {
    /// A driver's part for the disk of this path, which nobody has open. [`BlockOps::open`] does what takes time:
    /// two that open a path at once both come here, and one disk remains.
    ///
    /// Context: may sleep. Errors: the driver's; the open fails.
    #[doc(alias = "blk_request_module")]
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>>;
}

impl<F: Fn(&str) -> Result<Arc<dyn BlockOps>> + Send + Sync> BlockProber for F {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        self(path)
    }
}

static PROBERS: SpinLock<Vec<(String, Arc<dyn BlockProber>)>> = SpinLock::new(Vec::new());

/// Registers a driver for all paths that begin with `prefix`, as `/dev/kind/`. It stays for the life of the process.
/// A disk is there while somebody has it open.
///
/// Context: any. Errors: `EINVAL`: the prefix is no absolute path with a slash at its end. `EEXIST`: it overlaps with
/// that of another.
#[doc(alias = "__register_blkdev")]
pub fn register_prober(prefix: &str, prober: Arc<dyn BlockProber>) -> Result {
    if prefix.len() < 2 || !prefix.starts_with('/') || !prefix.ends_with('/') {
        return Err(code::EINVAL);
    }
    let mut probers = PROBERS.lock();
    if probers
        .iter()
        .any(|(p, _)| p.starts_with(prefix) || prefix.starts_with(p.as_str()))
    {
        return Err(code::EEXIST);
    }
    probers.push((prefix.to_owned(), prober));
    Ok(())
}

/// Finds a registered disk, or has it made, and claims it. `None`: the path is nobody's.
pub(super) fn find(path: &str, mode: BlkMode) -> Result<Option<Arc<Disk>>> {
    if let Some(disk) = DISKS.lock().get(path) {
        disk.claim(mode)?;
        return Ok(Some(Arc::clone(disk)));
    }
    let prober = {
        let probers = PROBERS.lock();
        let found = probers.iter().find(|(p, _)| path.starts_with(p.as_str()));
        match found {
            Some((_, prober)) => Arc::clone(prober),
            None => return Ok(None),
        }
    };
    let new = Arc::new(Disk::make(path.to_owned(), prober.probe(path)?, true));
    let disk = {
        let mut disks = DISKS.lock();
        let place = disks.entry(path.to_owned());
        let disk = Arc::clone(place.or_insert_with(|| Arc::clone(&new)));
        disk.claim(mode)?;
        disk
    };
    // The loser of two that opened it at once goes here, without the lock: its driver may take others.
    drop(new);
    Ok(Some(disk))
}

/// Registers a disk under a path like `/dev/ram/NAME`; [`BlockDevice::open`](super::BlockDevice::open) finds it there
/// before it looks at the host's files.
///
/// Context: may sleep.
///
/// # Errors
///
/// `EINVAL`: the path is not absolute, or the limits make no sense. `EEXIST`: the path is taken.
///
/// ```
/// use std::sync::Arc;
/// use kshim::block::{register_disk, BioOp, BlockOps, QueueLimits, SubmittedBio};
/// use kshim::error::code;
///
/// /// Reads as zeros, takes no writes.
/// struct Zero;
///
/// impl BlockOps for Zero {
///     fn submit_bio(&self, mut bio: SubmittedBio) {
///         let (at, len) = (bio.sg_at, bio.len);
///         let status = match bio.op {
///             BioOp::Read => bio.sg.fill(at, len, 0),
///             _ => Err(code::EROFS),
///         };
///         bio.complete(status);
///     }
///     fn limits(&self) -> QueueLimits {
///         QueueLimits { read_only: true, ..QueueLimits::default() }
///     }
///     fn capacity_bytes(&self) -> u64 {
///         1 << 30
///     }
///     fn is_inline(&self) -> bool {
///         true
///     }
/// }
///
/// let disk = register_disk("/dev/example/zero", Arc::new(Zero))?;
/// assert_eq!(disk.openers(), 0);
/// disk.unregister()?;
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "add_disk")]
#[doc(alias = "device_add_disk")]
pub fn register_disk(path: &str, ops: Arc<dyn BlockOps>) -> Result<GenDisk> {
    if !path.starts_with('/') || path.ends_with('/') || !ops.limits().is_valid() {
        return Err(code::EINVAL);
    }
    let mut disks = DISKS.lock();
    if disks.contains_key(path) {
        return Err(code::EEXIST);
    }
    let disk = Disk::new(path.to_owned(), ops);
    disks.insert(path.to_owned(), Arc::clone(&disk));
    Ok(GenDisk { disk })
}

/// The paths of all registered disks, in order.
///
/// Context: any.
pub fn disks() -> Vec<String> {
    DISKS.lock().keys().cloned().collect()
}

/// A registered disk in its driver's hands.
///
/// Dropping it removes the disk even when it is open: the name goes, new bios fail with `ENODEV`, and the drop waits for
/// those in flight. Orderly removal is [`GenDisk::unregister`].
///
/// C header: `include/linux/blkdev.h` (`struct gendisk`)
#[doc(alias = "gendisk")]
pub struct GenDisk {
    disk: Arc<Disk>,
}

impl GenDisk {
    /// The path it is registered under.
    pub fn path(&self) -> &str {
        &self.disk.path
    }

    /// How often it is open.
    pub fn openers(&self) -> usize {
        self.disk.openers.lock().count
    }

    /// Removes the disk when nobody has it open.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY`: it is open. `ENODEV`: it was removed before.
    #[doc(alias = "del_gendisk")]
    pub fn unregister(&self) -> Result {
        crate::might_sleep!();
        {
            let mut disks = DISKS.lock();
            let openers = self.disk.openers.lock();
            if self.disk.dead.load(Ordering::SeqCst) {
                return Err(code::ENODEV);
            }
            if openers.count > 0 {
                return Err(code::EBUSY);
            }
            self.disk.dead.store(true, Ordering::SeqCst);
            disks.remove(&self.disk.path);
        }
        self.disk.kill();
        Ok(())
    }
}

impl Drop for GenDisk {
    fn drop(&mut self) {
        let was_dead = {
            let mut disks = DISKS.lock();
            let _openers = self.disk.openers.lock();
            let was = self.disk.dead.swap(true, Ordering::SeqCst);
            if !was {
                disks.remove(&self.disk.path);
            }
            was
        };
        if !was_dead {
            self.disk.kill();
        }
    }
}

impl fmt::Debug for GenDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenDisk")
            .field("path", &self.disk.path)
            .field("openers", &self.openers())
            .finish()
    }
}
