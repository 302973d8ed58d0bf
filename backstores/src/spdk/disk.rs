//! The disk behind `/dev/spdk/BDEV`.

use kshim::block::{BlkMode, BlockOps, BlockProber, Openers, QueueLimits, SubmittedBio};
use kshim::prelude::*;

use super::SPDK_PREFIX;
use super::device::Dev;
use super::local;

/// What one discard or write of zeros may cover: SPDK splits it as the bdev wants it.
const MAX_RANGE: u64 = 1 << 30;

/// Makes a disk for each path below `/dev/spdk/`.
pub(super) struct Prober;

impl BlockProber for Prober {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        let name = path.strip_prefix(SPDK_PREFIX).ok_or(EINVAL)?;
        if name.is_empty() {
            return Err(ENOENT);
        }
        Ok(Arc::new(Disk {
            name: name.to_owned(),
            openers: Openers::new(),
        }))
    }
}

struct Disk {
    name: String,
    openers: Openers<Arc<Dev>>,
}

impl Disk {
    fn dev(&self) -> Option<Arc<Dev>> {
        self.openers.kept()
    }

    fn open_dev(&self, mode: BlkMode) -> Result<Arc<Dev>> {
        let engine = super::engine()?;
        match engine.open(&self.name, mode.contains(BlkMode::WRITE)) {
            Err(EPERM) if mode.contains(BlkMode::WRITE) => {
                pr_err!("SPDK: bdev {} belongs to another module of SPDK", self.name);
                Err(EBUSY)
            }
            opened => opened,
        }
    }
}

impl BlockOps for Disk {
    fn submit_bio(&self, bio: SubmittedBio) {
        let Some(dev) = self.dev() else {
            return bio.complete(Err(ENODEV));
        };
        if dev.may_block(&bio) {
            let engine = Arc::clone(&dev.engine);
            return engine.submit(dev, bio);
        }
        match local::of_reactor(&dev.engine) {
            Some(local) => local.submit(dev, bio),
            None => {
                let engine = Arc::clone(&dev.engine);
                engine.submit(dev, bio);
            }
        }
    }

    fn limits(&self) -> QueueLimits {
        self.dev()
            .map_or_else(QueueLimits::default, |d| d.limits(MAX_RANGE))
    }

    fn capacity_bytes(&self) -> u64 {
        self.dev().map_or(0, |d| {
            d.blocks().saturating_mul(u64::from(d.info.block_size))
        })
    }

    fn open(&self, mode: BlkMode) -> Result {
        self.openers.open(mode, || self.open_dev(mode))?;
        // The first one may have opened it for reading only.
        let fits = !mode.contains(BlkMode::WRITE) || self.dev().is_some_and(|d| d.write);
        if !fits {
            self.release(mode);
            return Err(EBUSY);
        }
        Ok(())
    }

    fn release(&self, _mode: BlkMode) {
        self.openers.release(|dev| dev.close());
    }
}
