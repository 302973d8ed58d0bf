//! The disk behind `/dev/spdk/BDEV`.

use kshim::block::{BlkMode, BlockOps, BlockProber, Openers, QueueLimits, SubmittedBio};
use kshim::prelude::*;
use kshim::sync::rcu::{self, Rcu};

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
            dev: Rcu::new(None),
        }))
    }
}

struct Disk {
    name: String,
    openers: Openers<Arc<Dev>>,
    /// What `openers` keeps, for bios.
    dev: Rcu<Option<Arc<Dev>>>,
}

impl Disk {
    /// What `f` says of the open bdev.
    fn with<R>(&self, f: impl FnOnce(&Arc<Dev>) -> R) -> Option<R> {
        let guard = rcu::read_lock();
        self.dev.read(&guard).as_ref().map(f)
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
        let guard = rcu::read_lock();
        let Some(dev) = self.dev.read(&guard) else {
            return bio.complete(Err(ENODEV));
        };
        if !dev.may_block(&bio)
            && let Some(local) = local::of_reactor(&dev.engine)
        {
            return local.submit(dev, bio);
        }
        dev.engine.submit(Arc::clone(dev), bio);
    }

    fn limits(&self) -> QueueLimits {
        self.with(|d| d.limits(MAX_RANGE)).unwrap_or_default()
    }

    fn capacity_bytes(&self) -> u64 {
        let bytes = |d: &Arc<Dev>| d.blocks().saturating_mul(u64::from(d.info.block_size));
        self.with(bytes).unwrap_or(0)
    }

    fn open(&self, mode: BlkMode) -> Result {
        self.openers.open(mode, || {
            let dev = self.open_dev(mode)?;
            self.dev.replace(Some(Arc::clone(&dev)));
            Ok(dev)
        })?;
        // The first one may have opened it for reading only.
        let fits = !mode.contains(BlkMode::WRITE) || self.openers.kept().is_some_and(|d| d.write);
        if !fits {
            self.release(mode);
            return Err(EBUSY);
        }
        Ok(())
    }

    fn release(&self, _mode: BlkMode) {
        self.openers.release(|dev| {
            self.dev.replace(None);
            dev.close();
        });
    }
}
