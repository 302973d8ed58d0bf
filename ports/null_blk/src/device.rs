//! A disk.

use crate::config::{Config, IrqMode, QueueMode};
use crate::delay::DelayQueue;
use crate::store::Store;
use crate::throttle::Throttle;
use crate::tree;
use kshim::block::{
    BadBlocks, BioOp, BlkMode, BlockOps, BlockWorkers, Openers, QueueLimits, SECTOR_SIZE,
    SubmittedBio,
};
use kshim::cpu;
use kshim::fault_inject::FaultAttr;
use kshim::kobject::Kobject;
use kshim::page::LentRange;
use kshim::prelude::*;
use kshim::sync::{OnceLock, SpinLock};
use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

/// What one discard or write of zeros may cover.
const MAX_RANGE: u64 = 1 << 30;

/// A bio on its way through the disk.
#[doc(alias = "nullb_cmd")]
pub(crate) struct Cmd {
    pub(crate) bio: SubmittedBio,
    /// The queue in which it has a place.
    queue: usize,
}

/// A queue of `queue_mode=mq`.
#[doc(alias = "nullb_queue")]
#[derive(Default)]
struct Queue {
    busy: usize,
    waiting: VecDeque<Cmd>,
}

/// The disk's working part, which bios in flight keep.
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) store: Option<Store>,
    pub(crate) badblocks: SpinLock<BadBlocks>,
    /// Whether the list has anything: looked at without its lock.
    any_bad: AtomicBool,
    pub(crate) timeout: FaultAttr,
    pub(crate) requeue: FaultAttr,
    queues: Vec<SpinLock<Queue>>,
    workers: BlockWorkers,
    delay: Arc<DelayQueue>,
    throttle: Option<Arc<Throttle>>,
    me: Weak<Core>,
}

/// A disk as kshim sees it.
#[doc(alias = "nullb")]
pub(crate) struct NullBlk {
    core: Arc<Core>,
    /// Its directory, where it is one of `mgmt`.
    kept: OnceLock<Arc<Kobject>>,
    /// With the directory of others, which are there while they are open.
    openers: Openers<Option<Arc<Kobject>>>,
    me: Weak<NullBlk>,
}

impl NullBlk {
    /// A disk that nobody knows of yet.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the name, a fault. `ENOMEM`.
    #[doc(alias = "null_add_dev")]
    pub(crate) fn new(name: &str, config: Config) -> Result<Arc<NullBlk>> {
        let bad = |c: char| c == '/' || c.is_control();
        if name.is_empty() || name.len() > 63 || name.contains(bad) || name == "mgmt" {
            return Err(EINVAL);
        }
        let store = match config.memory_backed {
            true => Some(Store::new(
                config.size,
                config.blocksize,
                config.cache_size,
            )?),
            false => None,
        };
        let faults = (FaultAttr::new(), FaultAttr::new());
        for (attr, text) in [(&faults.0, &config.timeout), (&faults.1, &config.requeue)] {
            text.as_ref().map_or(Ok(()), |text| attr.setup(text))?;
        }
        let core = Arc::new_cyclic(|me: &Weak<Core>| Core {
            name: name.to_owned(),
            store,
            any_bad: AtomicBool::new(!config.badblocks.is_empty()),
            badblocks: SpinLock::new(config.badblocks.clone()),
            timeout: faults.0,
            requeue: faults.1,
            queues: (0..config.submit_queues)
                .map(|_| SpinLock::default())
                .collect(),
            workers: BlockWorkers::new(),
            delay: {
                let me = Weak::clone(me);
                DelayQueue::new(move |cmd, status| match me.upgrade() {
                    Some(core) => core.finish(cmd, status),
                    None => cmd.bio.complete(status),
                })
            },
            throttle: (config.mbps != 0).then(|| {
                let me = Weak::clone(me);
                Throttle::new(config.mbps, move |cmd: Cmd| match me.upgrade() {
                    Some(core) => core.run(cmd, Admitted::Yes),
                    None => cmd.bio.complete(Err(ENODEV)),
                })
            }),
            me: Weak::clone(me),
            config,
        });
        Ok(Arc::new_cyclic(|me| NullBlk {
            core,
            kept: OnceLock::new(),
            openers: Openers::new(),
            me: Weak::clone(me),
        }))
    }

    /// Makes the directory of a disk that is there before it is opened, and until it is dropped. Once.
    ///
    /// Context: may sleep. Errors: `EEXIST`: another disk has the name.
    pub(crate) fn keep(&self) -> Result {
        let dir = self.publish()?;
        self.kept.set(dir).map_err(|_| EEXIST)
    }

    fn publish(&self) -> Result<Arc<Kobject>> {
        let ops: Weak<dyn BlockOps> = Weak::<NullBlk>::clone(&self.me);
        tree::publish(&self.core, &ops)
    }
}

impl Drop for NullBlk {
    fn drop(&mut self) {
        if let Some(dir) = self.kept.take() {
            dir.del();
        }
    }
}

/// Whether a bio was charged to the rate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admitted {
    No,
    Yes,
}

impl Core {
    fn mq(&self) -> bool {
        self.config.queue_mode == QueueMode::Mq
    }

    /// A bio comes in: to the queue of this CPU.
    #[doc(alias = "nullb_to_queue")]
    fn queue(&self, bio: SubmittedBio) {
        let queue = cpu::raw_smp_processor_id() % self.queues.len().max(1);
        let cmd = Cmd { bio, queue };
        if self.mq()
            && let Some(q) = self.queues.get(queue)
        {
            let mut q = q.lock();
            if q.busy >= self.config.hw_queue_depth {
                q.waiting.push_back(cmd);
                return;
            }
            q.busy += 1;
        }
        self.start(cmd);
    }

    /// A bio has its place in its queue.
    fn start(&self, cmd: Cmd) {
        match self.me.upgrade().filter(|_| self.config.blocking) {
            Some(core) => self.workers.defer(move || core.run(cmd, Admitted::No)),
            None => self.run(cmd, Admitted::No),
        }
    }

    /// Works on a bio, and on those that get its place when it ends here.
    fn run(&self, cmd: Cmd, mut admitted: Admitted) {
        let mut next = Some(cmd);
        while let Some(cmd) = next {
            let cmd = match &self.throttle {
                Some(throttle) if admitted == Admitted::No => throttle.admit(cmd),
                _ => Some(cmd),
            };
            admitted = Admitted::No;
            next = cmd.and_then(|cmd| self.work(cmd));
        }
    }

    /// Does what a bio asks for, or what the knobs say instead. Returns the next bio of the queue.
    #[doc(alias = "null_queue_rq")]
    #[doc(alias = "null_handle_cmd")]
    fn work(&self, mut cmd: Cmd) -> Option<Cmd> {
        let len = cmd.bio.len as u64;
        if self.mq() && self.requeue.should_fail(len) {
            let core = self.me.upgrade()?;
            self.workers.defer(move || core.run(cmd, Admitted::Yes));
            return None;
        }
        if self.mq() && self.timeout.should_fail(len) {
            self.delay.add(cmd, Err(ETIMEDOUT), self.config.io_timeout);
            return None;
        }
        let status = self.transfer(&mut cmd.bio);
        self.complete(cmd, status)
    }

    fn transfer(&self, bio: &mut SubmittedBio) -> Result {
        if self.any_bad.load(Ordering::Acquire)
            && bio.op != BioOp::Flush
            && let Some(good) = self.check_bad(bio)?
        {
            if good > 0 {
                let whole = std::mem::replace(&mut bio.len, good);
                let done = self.transfer_good(bio);
                bio.len = whole;
                done?;
            }
            return Err(EIO);
        }
        self.transfer_good(bio)
    }

    /// What is not bad.
    fn transfer_good(&self, bio: &mut SubmittedBio) -> Result {
        match &self.store {
            Some(store) => store.transfer(bio),
            // Not what was in the memory before: that may be somebody's secret.
            None if bio.op == BioOp::Read => {
                let (at, len) = (bio.sg_at, bio.len);
                bio.sg.fill(at, len, 0)
            }
            None => Ok(()),
        }
    }

    /// The bytes that are to be done before it fails, if it meets a bad sector.
    #[doc(alias = "null_handle_badblocks")]
    fn check_bad(&self, bio: &SubmittedBio) -> Result<Option<usize>> {
        let mut list = self.badblocks.lock();
        let Some((first, n)) = list.check(bio.sector, bio.len as u64 / SECTOR_SIZE) else {
            return Ok(None);
        };
        if self.config.badblocks_once {
            list.clear(first, n)?;
            self.any_bad.store(!list.is_empty(), Ordering::Release);
        }
        if !self.config.badblocks_partial_io {
            return Ok(Some(0));
        }
        let block = u64::from(self.config.blocksize);
        let good = first.saturating_sub(bio.sector) * SECTOR_SIZE;
        Ok(Some(usize::try_from(good - good % block)?))
    }

    /// Changes the list of bad sectors. Errors: those of `f`.
    pub(crate) fn change_badblocks(&self, f: impl FnOnce(&mut BadBlocks) -> Result) -> Result {
        let mut list = self.badblocks.lock();
        f(&mut list)?;
        self.any_bad.store(!list.is_empty(), Ordering::Release);
        Ok(())
    }

    /// The work is done: completes the bio now or later. Returns the next one of the queue.
    #[doc(alias = "nullb_complete_cmd")]
    fn complete(&self, cmd: Cmd, status: Result) -> Option<Cmd> {
        match self.config.irqmode {
            IrqMode::None => return self.end(cmd, status),
            IrqMode::Timer => self.delay.add(cmd, status, self.config.completion),
            IrqMode::Softirq => {
                let core = self.me.upgrade()?;
                self.workers.defer(move || core.finish(cmd, status));
            }
        }
        None
    }

    /// Ends a bio. Returns the one that gets its place in the queue.
    fn end(&self, cmd: Cmd, status: Result) -> Option<Cmd> {
        let next = self
            .queues
            .get(cmd.queue)
            .filter(|_| self.mq())
            .and_then(|q| {
                let mut q = q.lock();
                let next = q.waiting.pop_front();
                if next.is_none() {
                    q.busy -= 1;
                }
                next
            });
        cmd.bio.complete(status);
        next
    }

    /// Ends a bio that was kept back, and works on the next.
    fn finish(&self, cmd: Cmd, status: Result) {
        if let Some(next) = self.end(cmd, status) {
            self.start(next);
        }
    }
}

impl BlockOps for NullBlk {
    #[doc(alias = "null_submit_bio")]
    fn submit_bio(&self, bio: SubmittedBio) {
        self.core.queue(bio);
    }

    fn limits(&self) -> QueueLimits {
        let c = &self.core.config;
        let zeroes = c.memory_backed;
        QueueLimits {
            logical_block_size: c.blocksize,
            physical_block_size: c.blocksize,
            max_discard_bytes: if c.discard { MAX_RANGE } else { 0 },
            discard_granularity: if c.discard { c.blocksize } else { 0 },
            discard_zeroes_data: c.discard && zeroes,
            max_write_zeroes_bytes: if zeroes { MAX_RANGE } else { 0 },
            write_cache: c.cache_size != 0,
            fua: c.cache_size == 0 || c.fua,
            rotational: c.rotational,
            read_only: c.read_only,
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.core.config.size
    }

    fn direct_access(&self, pos: u64, len: usize) -> Option<LentRange> {
        let core = &self.core;
        let store = core.store.as_ref()?;
        let lends = core.config.is_inline()
            && core.config.cache_size == 0
            && !core.any_bad.load(Ordering::Acquire);
        if !lends {
            return None;
        }
        store.mem.range(usize::try_from(pos).ok()?, len).ok()
    }

    fn is_inline(&self) -> bool {
        self.core.config.is_inline()
    }

    fn open(&self, mode: BlkMode) -> Result {
        self.openers.open(mode, || match self.kept.get() {
            Some(_) => Ok(None),
            None => self.publish().map(Some),
        })
    }

    /// The directory goes with the last opener, not with the last bio: the next disk of this name may come before that.
    fn release(&self, _mode: BlkMode) {
        self.openers.release(|dir| {
            if let Some(dir) = dir {
                dir.del();
            }
        });
    }
}
