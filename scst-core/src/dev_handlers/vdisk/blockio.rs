//! The data of a block device: one bio per command.
//!
//! A bio that ends inside the submit (memory, cached data) completes its command inline, on the reactor and without
//! allocation; one that ends later completes it from wherever it ends.
//!
//! C source: `blockio_exec_rw`, `blockio_endio`, `vdisk_blockio_flush` of `scst/src/dev_handlers/scst_vdisk.c`

use super::VdiskParams;
use super::handler::apply;
use super::store::{read_outcome, write_outcome};
use super::walk::Lane;
use crate::cmd::{Cmd, ExecRes};
use crate::core::cmd_done;
use crate::sense;
use kshim::block::{
    Bio, BioEndIo, BioOp, BlkMode, BlockDevice, QueueLimits, ReqFlags, SECTOR_SIZE,
};
use kshim::error::{Error, Result, code};
use kshim::fs::{Engine, FileKind};
use kshim::page::LentRange;
use kshim::scatterlist::SGTable;
use kshim::sync::SpinLock;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An open block device.
#[derive(Debug)]
pub(super) struct BlockStore {
    bdev: Arc<BlockDevice>,
    flush_unsupported: bool,
    /// Past the page cache: reads and writes don't end inside their submit.
    direct: bool,
    /// A flush for which no command waited has failed: the next one that somebody waits for says so.
    unreported_failure: Arc<AtomicBool>,
}

impl BlockStore {
    /// Opens the device for this handler alone. Context: may sleep.
    pub(super) fn open(path: &Path, p: &VdiskParams) -> Result<Self> {
        let mut mode = BlkMode::READ | BlkMode::EXCL;
        if !p.read_only {
            mode |= BlkMode::WRITE;
        }
        // As SCST does. Through threads the page cache is faster.
        let engine = Engine::choose(p.engine)?;
        if is_host_device(path) && (p.o_direct || engine != Engine::Threads) {
            mode |= BlkMode::DIRECT;
        }
        let bdev = BlockDevice::open_with(path, mode, Some(engine))?;
        let mut store = Self {
            bdev,
            flush_unsupported: false,
            direct: mode.contains(BlkMode::DIRECT),
            unreported_failure: Arc::new(AtomicBool::new(false)),
        };
        if !p.read_only && !p.nv_cache && !p.write_through && store.flush_sync().is_err() {
            kshim::pr_warn!(
                "Device {} doesn't support flushes, switching to NV_CACHE mode.",
                path.display()
            );
            store.flush_unsupported = true;
        }
        Ok(store)
    }

    pub(super) fn limits(&self) -> &QueueLimits {
        self.bdev.limits()
    }

    pub(super) fn capacity(&self) -> u64 {
        self.bdev.capacity_bytes()
    }

    /// Whether another host has taken what is behind it. Context: any.
    pub(super) fn is_lost(&self) -> bool {
        self.bdev.is_lost()
    }

    pub(super) fn revalidate(&self) -> Result<u64> {
        self.bdev.revalidate()
    }

    pub(super) fn flush_unsupported(&self) -> bool {
        self.flush_unsupported
    }

    /// Memory of the device to answer a read from. Context: reactor.
    #[inline]
    pub(super) fn lend(&self, pos: u64, len: usize) -> Option<LentRange> {
        self.bdev.direct_access(pos, len)
    }

    /// Starts a command's read, write or flush. Context: reactor; never sleeps.
    pub(super) fn submit(
        &self,
        mut cmd: Box<Cmd>,
        op: BioOp,
        pos: u64,
        len: usize,
        flags: ReqFlags,
    ) -> ExecRes {
        if op == BioOp::Flush && self.take_unreported_failure() {
            apply(&mut cmd, sense::WRITE_ERROR.into());
            return ExecRes::Completed(cmd);
        }
        let done = CmdEndIo::take();
        let sg = if op == BioOp::Flush {
            SGTable::new()
        } else {
            std::mem::take(cmd.sg_mut())
        };
        let end_io = Arc::clone(&done) as Arc<dyn BioEndIo>;
        let mut bio = Bio::new(op, sector(pos), len, end_io)
            .with_sg(sg, 0)
            .with_flags(flags);
        bio.private = Some(cmd);
        self.bdev.submit_bio(bio);
        let ended = {
            let mut phase = done.phase.lock();
            match std::mem::replace(&mut *phase, Phase::Detached) {
                Phase::Ended(bio, status) => {
                    *phase = Phase::Submitting;
                    Some((bio, status))
                }
                _ => None,
            }
        };
        match ended {
            None => ExecRes::Pending,
            Some((bio, status)) => {
                CmdEndIo::give_back(done);
                finish(bio, status).map_or(ExecRes::Pending, ExecRes::Completed)
            }
        }
    }

    /// For plans that are carried out by bios without a thread: not on memory, where all of it would be done on the reactor.
    pub(super) fn lane(&self, reads: bool) -> Option<Lane> {
        let apart = !self.bdev.is_inline() && (self.direct || !reads);
        apart.then(|| Lane::Block(Arc::clone(&self.bdev), Arc::clone(&self.unreported_failure)))
    }

    /// Whether a flush for which nobody waited has failed; told once.
    fn take_unreported_failure(&self) -> bool {
        self.unreported_failure.swap(false, Ordering::SeqCst)
    }

    /// Starts a flush for which nobody waits (IMMED). Context: reactor; never sleeps.
    pub(super) fn flush_in_background(&self) {
        let unreported = Arc::clone(&self.unreported_failure);
        let path = self.bdev.path().to_owned();
        let end = move |_: Bio, status: Result| {
            if let Err(e) = status {
                kshim::pr_err_ratelimited!("{path}: flush failed: {e}");
                unreported.store(true, Ordering::SeqCst);
            }
        };
        self.bdev
            .submit_bio(Bio::new(BioOp::Flush, 0, 0, Arc::new(end)));
    }

    /// Submits a bio and waits; the scatterlist comes back. Context: may sleep.
    fn wait(&self, op: BioOp, pos: u64, len: usize, sg: &mut SGTable, flags: ReqFlags) -> Result {
        let ignored = Arc::new(|_: Bio, _: Result| {});
        let bio = Bio::new(op, sector(pos), len, ignored)
            .with_sg(std::mem::take(sg), 0)
            .with_flags(flags);
        let (bio, status) = self.bdev.submit_bio_wait(bio);
        *sg = bio.sg;
        status
    }

    /// Submits a bio to a device that ends it inside the call; `None` when this is no such device. Context: any.
    fn inline(
        &self,
        op: BioOp,
        pos: u64,
        len: usize,
        sg: &mut SGTable,
        flags: ReqFlags,
    ) -> Option<Result> {
        if !self.bdev.is_inline() {
            return None;
        }
        let slot = Arc::new(SpinLock::new(None));
        let theirs = Arc::clone(&slot);
        let end = move |bio: Bio, status: Result| *theirs.lock() = Some((bio, status));
        let bio = Bio::new(op, sector(pos), len, Arc::new(end))
            .with_sg(std::mem::take(sg), 0)
            .with_flags(flags);
        self.bdev.submit_bio(bio);
        let (bio, status) = slot.lock().take()?;
        *sg = bio.sg;
        Some(status)
    }

    /// Reads if that needs no waiting. Context: reactor.
    pub(super) fn read_inline(&self, pos: u64, sg: &mut SGTable, len: usize) -> Option<Result> {
        self.inline(BioOp::Read, pos, len, sg, ReqFlags::empty())
    }

    /// Writes if that needs no waiting. Context: reactor.
    pub(super) fn write_inline(
        &self,
        pos: u64,
        sg: &mut SGTable,
        len: usize,
        durable: bool,
    ) -> Option<Result> {
        let fua = if durable {
            ReqFlags::FUA
        } else {
            ReqFlags::empty()
        };
        self.inline(BioOp::Write, pos, len, sg, fua)
    }

    pub(super) fn read_sync(&self, pos: u64, sg: &mut SGTable, len: usize) -> Result {
        self.wait(BioOp::Read, pos, len, sg, ReqFlags::SYNC)
    }

    pub(super) fn write_sync(
        &self,
        pos: u64,
        sg: &mut SGTable,
        len: usize,
        durable: bool,
    ) -> Result {
        let fua = if durable {
            ReqFlags::FUA
        } else {
            ReqFlags::empty()
        };
        self.wait(BioOp::Write, pos, len, sg, ReqFlags::SYNC | fua)
    }

    pub(super) fn flush_sync(&self) -> Result {
        let unreported = self.take_unreported_failure();
        self.wait(BioOp::Flush, 0, 0, &mut SGTable::new(), ReqFlags::SYNC)?;
        if unreported { Err(code::EIO) } else { Ok(()) }
    }

    /// Runs a data-less operation over a range, in steps of at most `step` bytes.
    fn in_steps(&self, op: BioOp, pos: u64, len: u64, step: u64, flags: ReqFlags) -> Result {
        if step == 0 {
            return Err(code::EOPNOTSUPP);
        }
        // Whole blocks, and a length that a bio can have.
        let block = u64::from(self.limits().logical_block_size).max(1);
        let step = step.min(1 << 30).max(block);
        let step = step.saturating_sub(step.checked_rem(block).unwrap_or(0));
        let end = pos.checked_add(len).ok_or(code::EINVAL)?;
        let mut at = pos;
        while at < end {
            let n = step.min(end.saturating_sub(at));
            self.wait(op, at, usize::try_from(n)?, &mut SGTable::new(), flags)?;
            at = at.checked_add(n).ok_or(code::EINVAL)?;
        }
        Ok(())
    }

    pub(super) fn discard_sync(&self, pos: u64, len: u64) -> Result {
        let step = self.limits().max_discard_bytes;
        self.in_steps(BioOp::Discard, pos, len, step, ReqFlags::empty())
    }

    pub(super) fn zero_sync(&self, pos: u64, len: u64) -> Result {
        let step = self.limits().max_write_zeroes_bytes;
        self.in_steps(BioOp::WriteZeroes, pos, len, step, ReqFlags::NOUNMAP)
    }
}

fn is_host_device(path: &Path) -> bool {
    kshim::fs::stat(path).is_ok_and(|s| s.kind == FileKind::BlockDevice)
}

fn sector(pos: u64) -> u64 {
    pos.checked_div(SECTOR_SIZE).unwrap_or(0)
}

/// Where the bio of a command is.
#[derive(Debug)]
enum Phase {
    /// Inside the submit (or not in use).
    Submitting,
    /// It ended inside the submit.
    Ended(Bio, Result),
    /// The submit has returned: the end completes the command.
    Detached,
}

/// Hears of the end of a command's bio. Bounded in number by the bios that are in flight.
struct CmdEndIo {
    phase: SpinLock<Phase>,
}

/// Idle ones kept per thread: inline bios come one at a time.
const SPARES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Arc<CmdEndIo>>> = const { RefCell::new(Vec::new()) };
}

impl CmdEndIo {
    fn take() -> Arc<Self> {
        SPARE.with(|s| s.borrow_mut().pop()).unwrap_or_else(|| {
            Arc::new(Self {
                phase: SpinLock::new(Phase::Submitting),
            })
        })
    }

    /// Keeps one whose bio has ended.
    fn give_back(done: Arc<Self>) {
        SPARE.with(|s| {
            let mut spare = s.borrow_mut();
            if spare.len() < SPARES {
                spare.push(done);
            }
        });
    }
}

impl BioEndIo for CmdEndIo {
    fn bio_done(&self, bio: Bio, status: Result) {
        {
            let mut phase = self.phase.lock();
            if matches!(*phase, Phase::Submitting) {
                *phase = Phase::Ended(bio, status);
                return;
            }
        }
        if let Some(cmd) = finish(bio, status) {
            cmd_done(cmd);
        }
    }
}

/// Takes the command out of its bio and gives it its result.
fn finish(mut bio: Bio, status: Result) -> Option<Box<Cmd>> {
    let Some(Ok(mut cmd)) = bio.private.take().map(|p| p.downcast::<Cmd>()) else {
        kshim::warn_on!(true);
        return None;
    };
    if bio.op != BioOp::Flush {
        *cmd.sg_mut() = std::mem::take(&mut bio.sg);
    }
    if let Err(e) = status {
        apply(&mut cmd, bio_outcome(bio.op, e));
    }
    Some(cmd)
}

fn bio_outcome(op: BioOp, e: Error) -> super::store::Outcome {
    match op {
        BioOp::Read => read_outcome(e),
        _ if e == code::EOPNOTSUPP => sense::HARDW_ERROR.into(),
        _ => write_outcome(e),
    }
}
