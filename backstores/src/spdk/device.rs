//! An open bdev.

use std::sync::atomic::{AtomicBool, Ordering};

use kshim::block::{Bio, BioOp, QueueLimits, ReqFlags};
use kshim::prelude::*;
use kshim::sync::SpinLock;

use super::engine::Engine;
use super::ffi::bdev::{Events, Info, RawDesc};

/// Modules that copy data by the CPU, or have the host's kernel do it: any memory will do.
const ANY_MEMORY: [&str; 4] = ["malloc", "null", "aio", "uring"];
/// Modules that flush by a call that blocks: it is made on the engine's own thread.
const FLUSH_BLOCKS: [&str; 1] = ["aio"];

/// Modules that have a block in memory, and show it to a read that comes without memory of its own.
const SHOWS_MEMORY: [&str; 1] = ["malloc"];

/// A descriptor, shared by all threads with a channel. The last one has it closed.
pub(super) struct Desc {
    /// Channels of it shall be closed, and no request started.
    pub(super) leaving: AtomicBool,
    /// `Some` until the drop.
    raw: Option<RawDesc>,
    engine: Arc<Engine>,
}

impl Desc {
    pub(super) fn raw(&self) -> Result<&RawDesc> {
        self.raw.as_ref().ok_or(ENODEV)
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.engine.close(raw);
        }
    }
}

/// An open bdev.
pub(super) struct Dev {
    pub(super) name: String,
    pub(super) info: Info,
    events: Arc<Events>,
    /// It was closed, or removed.
    closed: AtomicBool,
    /// Its data must be in memory that devices can reach.
    pub(super) needs_dma: bool,
    pub(super) flush_blocks: bool,
    /// What is read can be sent from where it is.
    pub(super) shows_memory: bool,
    /// It is open for writing.
    pub(super) write: bool,
    /// `None` when it was closed, or removed.
    desc: SpinLock<Option<Arc<Desc>>>,
    pub(super) engine: Arc<Engine>,
}

impl Dev {
    /// Takes over a descriptor.
    ///
    /// Errors: `EOPNOTSUPP`: a kind of bdev that is no plain disk.
    pub(super) fn new(
        (name, write): (&str, bool),
        (raw, info): (RawDesc, Info),
        engine: &Arc<Engine>,
    ) -> Result<Arc<Dev>> {
        let events = Arc::clone(raw.events());
        let desc = Desc {
            leaving: AtomicBool::new(false),
            raw: Some(raw),
            engine: Arc::clone(engine),
        };
        let plain = if info.zoned {
            Err("is zoned")
        } else if info.metadata > 0 {
            Err("has metadata with its blocks")
        } else if info.write_unit > 1 {
            Err("takes writes of whole units only")
        } else {
            Ok(())
        };
        if let Err(why) = plain {
            pr_err!("SPDK: bdev {name} {why}, which is not supported");
            return Err(EOPNOTSUPP);
        }
        Ok(Arc::new(Dev {
            name: name.to_owned(),
            closed: AtomicBool::new(false),
            needs_dma: engine.has_devices && !ANY_MEMORY.contains(&info.module.as_str()),
            flush_blocks: FLUSH_BLOCKS.contains(&info.module.as_str()),
            shows_memory: info.zcopy && SHOWS_MEMORY.contains(&info.module.as_str()),
            write,
            events,
            info,
            desc: SpinLock::new(Some(Arc::new(desc))),
            engine: Arc::clone(engine),
        }))
    }

    /// Whether a bio would block the thread that submits it to SPDK.
    pub(super) fn may_block(&self, bio: &Bio) -> bool {
        self.flush_blocks
            && (bio.op == BioOp::Flush || bio.flags.intersects(ReqFlags::FUA | ReqFlags::PREFLUSH))
    }

    /// What it can do, with ranges of at most so many bytes.
    pub(super) fn limits(&self, max_range: u64) -> QueueLimits {
        let (i, block) = (&self.info, self.info.block_size);
        let bytes = |blocks: u32| blocks.checked_mul(block).unwrap_or(0);
        let physical = i.physical_block_size.max(block);
        QueueLimits {
            logical_block_size: block,
            physical_block_size: if physical.is_power_of_two() {
                physical
            } else {
                block
            },
            io_opt: bytes(i.optimal_blocks),
            max_discard_bytes: if i.unmap { max_range } else { 0 },
            discard_granularity: bytes(i.unmap_granularity),
            max_write_zeroes_bytes: if i.zeroes { max_range } else { 0 },
            // A bdev may say that it has no cache though one below has: who can flush is asked to.
            write_cache: i.flush,
            read_only: !i.writable,
            ..QueueLimits::default()
        }
    }

    pub(super) fn desc(&self) -> Option<Arc<Desc>> {
        self.desc.lock().clone()
    }

    /// Its size in blocks now; 0 when it is gone.
    pub(super) fn blocks(&self) -> u64 {
        if self.closed.load(Ordering::Relaxed) {
            return 0;
        }
        self.events.blocks.load(Ordering::Acquire)
    }

    /// Whether SPDK has removed it, and it is open still.
    pub(super) fn is_removed(&self) -> bool {
        self.events.removed.load(Ordering::Acquire) && self.desc.lock().is_some()
    }

    /// Has all threads close it; requests that are on their way end first.
    pub(super) fn close(&self) {
        let Some(desc) = self.desc.lock().take() else {
            return;
        };
        self.closed.store(true, Ordering::Relaxed);
        desc.leaving.store(true, Ordering::Release);
        drop(desc);
        self.engine.sweep();
    }
}
