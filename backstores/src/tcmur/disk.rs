//! The disk behind `/dev/tcmur/SUBTYPE/CFGSTRING`.

use kshim::block::{
    BlkMode, BlockOps, BlockProber, MAX_LOGICAL_BLOCK_SIZE, Openers, QueueLimits, SubmittedBio,
    SubmittedScsi,
};
use kshim::prelude::*;
use std::sync::atomic::Ordering;

use super::device::Device;
use super::ffi::handler::Calls;
use super::request::{End, What};
use super::spec::Spec;
use super::{handler, size};

/// What one write of zeros may cover.
const MAX_ZEROES: u64 = 256 << 20;

/// Makes a disk for each path below `/dev/tcmur/`.
pub(super) struct Prober;

impl BlockProber for Prober {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        Ok(Arc::new(Disk {
            spec: Spec::parse(path)?,
            openers: Openers::new(),
        }))
    }
}

struct Disk {
    spec: Spec,
    openers: Openers<Arc<Device>>,
}

impl Disk {
    fn dev(&self) -> Option<Arc<Device>> {
        self.openers.kept()
    }

    /// Submits to the device, or fails.
    fn submit(&self, what: What) {
        match self.dev() {
            Some(dev) => dev.submit(what),
            None => what.finish(End::Failed(ENODEV)),
        }
    }

    fn open_device(&self) -> Result<Arc<Device>> {
        let handler = handler(&self.spec.subtype)?;
        let found = size::find(&self.spec)?;
        Device::open(&self.spec, &found, handler)
    }
}

/// Whether a device can be used as asked.
fn suits(dev: &Device, mode: BlkMode) -> Result {
    let (needed, what) = if mode.contains(BlkMode::PASSTHROUGH) {
        (
            Calls::HANDLE_CMD,
            "takes no SCSI commands: use vdisk_blockio",
        )
    } else {
        (
            Calls::READ,
            "takes SCSI commands only: use the handler tcmur",
        )
    };
    if dev.handler.calls.contains(needed) {
        return Ok(());
    }
    pr_err!("{}: its handler {what}", dev.path);
    Err(EOPNOTSUPP)
}

impl BlockOps for Disk {
    fn submit_bio(&self, bio: SubmittedBio) {
        self.submit(What::Bio(bio));
    }

    fn submit_scsi(&self, cmd: SubmittedScsi) {
        self.submit(What::Scsi(cmd));
    }

    fn limits(&self) -> QueueLimits {
        let Some(dev) = self.dev() else {
            return QueueLimits::default();
        };
        let (p, calls) = (&dev.props, dev.handler.calls);
        let block = p.block_size().clamp(512, MAX_LOGICAL_BLOCK_SIZE);
        let gran = p.opt_unmap_gran.load(Ordering::Relaxed);
        let unmap = calls.contains(Calls::UNMAP) && p.unmap.load(Ordering::Relaxed);
        let most = match gran {
            1.. if p.split_unmaps.load(Ordering::Relaxed) => gran,
            _ => p.max_unmap_len.load(Ordering::Relaxed),
        };
        let bytes = |blocks: u32| u64::from(blocks) * u64::from(block);
        QueueLimits {
            logical_block_size: block,
            physical_block_size: block.max(4096),
            max_discard_bytes: if unmap { bytes(most) } else { 0 },
            discard_granularity: if unmap {
                u32::try_from(bytes(gran)).unwrap_or(0)
            } else {
                0
            },
            max_write_zeroes_bytes: if calls.contains(Calls::WRITESAME) {
                MAX_ZEROES
            } else {
                0
            },
            write_cache: dev.has_write_cache(),
            rotational: !p.solid_state.load(Ordering::Relaxed),
            // A disk for SCSI commands judges for itself.
            read_only: calls.contains(Calls::READ) && !calls.contains(Calls::WRITE),
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.dev().map_or(0, |dev| dev.capacity())
    }

    fn is_lost(&self) -> bool {
        self.dev().is_some_and(|dev| dev.is_lost())
    }

    /// Only RADOS block devices change while they are open; a handler may tell of a change by itself, too.
    fn revalidate(&self) -> Result<u64> {
        let dev = self.dev().ok_or(ENODEV)?;
        if self.spec.subtype == "rbd"
            && self.spec.size.is_none()
            && let Some(bytes) = size::find(&self.spec)?.size
        {
            dev.resize(bytes)?;
        }
        Ok(dev.capacity())
    }

    fn open(&self, mode: BlkMode) -> Result {
        self.openers.open_any(|| {
            let dev = self.open_device()?;
            suits(&dev, mode).inspect_err(|_| dev.close())?;
            Ok(dev)
        })?;
        // The first one may have opened it for the other kind of commands.
        let fits = self.dev().map_or(Err(ENODEV), |dev| suits(&dev, mode));
        if fits.is_err() {
            self.release(mode);
        }
        fits
    }

    fn release(&self, _mode: BlkMode) {
        self.openers.release(|dev| dev.close());
    }
}
