//! The disk behind `/dev/spdk/BDEV`.

use kshim::block::{BlkMode, BlockOps, BlockProber, QueueLimits, SubmittedBio};
use kshim::prelude::*;
use kshim::sync::{Mutex, SpinLock};

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
            gate: Mutex::new(()),
            state: SpinLock::new(Opened::default()),
        }))
    }
}

#[derive(Default)]
struct Opened {
    dev: Option<Arc<Dev>>,
    openers: usize,
}

struct Disk {
    name: String,
    /// One opens at a time.
    gate: Mutex<()>,
    state: SpinLock<Opened>,
}

impl Disk {
    fn dev(&self) -> Option<Arc<Dev>> {
        self.state.lock().dev.clone()
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
        if mode.contains(BlkMode::PASSTHROUGH) {
            return Err(EOPNOTSUPP);
        }
        let _gate = self.gate.lock();
        let dev = match self.dev() {
            Some(dev) => dev,
            None => self.open_dev(mode)?,
        };
        let mut st = self.state.lock();
        st.openers += 1;
        st.dev = Some(dev);
        Ok(())
    }

    fn release(&self, _mode: BlkMode) {
        let last = {
            let mut st = self.state.lock();
            st.openers = st.openers.saturating_sub(1);
            if st.openers == 0 { st.dev.take() } else { None }
        };
        if let Some(dev) = last {
            dev.close();
        }
    }
}
