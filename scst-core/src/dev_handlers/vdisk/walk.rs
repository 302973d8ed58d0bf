//! A [`Plan`] carried out without a thread: each step is a request of the file's engine or a bio, and the end of one starts the
//! next.

use super::handler::apply;
use super::plan::{Access, Plan, Step};
use super::store::{Outcome, Store};
use crate::cmd::{Cmd, ExecRes};
use crate::core::cmd_done;
use kshim::block::{Bio, BioEndIo, BioOp, BlockDevice, ReqFlags, SECTOR_SIZE};
use kshim::error::{Result, code};
use kshim::fs::{IoEnd, IoFile, IoOp, IoReq};
use kshim::scatterlist::SGTable;
use kshim::sync::SpinLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Who carries out the steps.
pub(super) enum Lane {
    /// A file's engine.
    File(Arc<IoFile>),
    /// A block device, and whether a flush that nobody waited for has failed.
    Block(Arc<BlockDevice>, Arc<AtomicBool>),
}

impl Lane {
    /// That of a backing store which does it without a thread of the device; `reads`: reading, too. Context: any.
    pub(super) fn of(store: &Store, reads: bool) -> Option<Self> {
        match store {
            Store::File(f) => f.lane(),
            Store::Block(b) => b.lane(reads),
            Store::Closed | Store::Null | Store::Cd(_) => None,
        }
    }
}

/// A command and what is left of it.
struct Walk {
    cmd: Box<Cmd>,
    plan: Plan,
    lane: Lane,
    step: Step,
}

/// Where a step is.
enum Phase {
    /// Inside the call that starts it.
    Starting,
    /// It ended inside that call.
    Ended(Box<Walk>, Result),
    /// It goes on by itself.
    Detached,
}

/// Hears of the end of one step.
struct StepEnd(SpinLock<Phase>);

impl IoEnd for StepEnd {
    fn io_done(&self, req: IoReq, res: Result) {
        self.ended(req.private, req.sg, res);
    }
}

impl BioEndIo for StepEnd {
    fn bio_done(&self, bio: Bio, status: Result) {
        self.ended(bio.private, bio.sg, status);
    }
}

impl StepEnd {
    fn ended(&self, private: Option<Box<dyn std::any::Any + Send>>, sg: SGTable, res: Result) {
        let Some(Ok(mut walk)) = private.map(|p| p.downcast::<Walk>()) else {
            kshim::warn_on!(true);
            return;
        };
        walk.plan.buf = sg;
        {
            let mut phase = self.0.lock();
            if matches!(*phase, Phase::Starting) {
                *phase = Phase::Ended(walk, res);
                return;
            }
        }
        let done = match walk.end_step(res) {
            Ok(walk) => walk.go_on(),
            Err(cmd) => Some(cmd),
        };
        if let Some(cmd) = done {
            cmd_done(cmd);
        }
    }
}

/// Carries out a plan for a command. Context: reactor; never sleeps.
pub(super) fn start(cmd: Box<Cmd>, plan: Plan, lane: Lane) -> ExecRes {
    let step = Step {
        access: Access::Flush,
        pos: 0,
        len: 0,
    };
    let walk = Walk {
        cmd,
        plan,
        lane,
        step,
    };
    Box::new(walk)
        .go_on()
        .map_or(ExecRes::Pending, ExecRes::Completed)
}

impl Walk {
    /// The step has ended. `Err`: so has the command.
    fn end_step(mut self: Box<Self>, res: Result) -> std::result::Result<Box<Self>, Box<Cmd>> {
        match self.plan.ended(self.step, res) {
            Ok(()) => Ok(self),
            Err(outcome) => Err(self.finish(Some(outcome))),
        }
    }

    fn finish(self: Box<Self>, outcome: Option<Outcome>) -> Box<Cmd> {
        let Self {
            mut cmd,
            plan,
            lane,
            ..
        } = *self;
        // Who closes the device waits for its commands: it is closed then, not later.
        drop(lane);
        *cmd.sg_mut() = plan.data;
        if let Some(outcome) = outcome {
            apply(&mut cmd, outcome);
        }
        cmd
    }

    /// Starts the next step. `Some`: the command has ended; one that is aborted does so early, and its result does not count.
    fn go_on(mut self: Box<Self>) -> Option<Box<Cmd>> {
        loop {
            if self.cmd.is_aborted() {
                return Some(self.finish(None));
            }
            match self.plan.next() {
                Err(outcome) => return Some(self.finish(Some(outcome))),
                Ok(None) => return Some(self.finish(None)),
                Ok(Some(step)) => self.step = step,
            }
            let (walk, res) = self.start_step()?;
            match walk.end_step(res) {
                Ok(walk) => self = walk,
                Err(cmd) => return Some(cmd),
            }
        }
    }

    /// Starts a step. `Some`: it has ended already.
    fn start_step(mut self: Box<Self>) -> Option<(Box<Self>, Result)> {
        let end = Arc::new(StepEnd(SpinLock::new(Phase::Starting)));
        match &self.lane {
            Lane::File(io) => {
                let io = Arc::clone(io);
                let Ok(len) = usize::try_from(self.step.len) else {
                    return Some((self, Err(code::EINVAL)));
                };
                let op = match self.step.access {
                    Access::Read => IoOp::Read,
                    Access::Write { durable: false } => IoOp::Write,
                    Access::Write { durable: true } => IoOp::WriteDurable,
                    Access::Discard => IoOp::Discard,
                    Access::Zero => IoOp::WriteZeroes,
                    Access::Flush => IoOp::Flush,
                };
                let mut req = IoReq::new(op, self.step.pos, len, Arc::clone(&end) as _)
                    .with_sg(std::mem::take(&mut self.plan.buf), 0);
                req.private = Some(self);
                io.submit(req);
            }
            Lane::Block(bdev, lost_flush) => {
                let bdev = Arc::clone(bdev);
                if self.step.access == Access::Flush && lost_flush.swap(false, Ordering::SeqCst) {
                    return Some((self, Err(code::EIO)));
                }
                match self.bio(&bdev, Arc::clone(&end)) {
                    Ok(bio) => bdev.submit_bio(bio),
                    Err((walk, e)) => return Some((walk, Err(e))),
                }
            }
        }
        match std::mem::replace(&mut *end.0.lock(), Phase::Detached) {
            Phase::Ended(walk, res) => Some((walk, res)),
            Phase::Starting | Phase::Detached => None,
        }
    }

    /// The bio of a step, which may become shorter. Errors: `EOPNOTSUPP`: the device cannot do that.
    fn bio(
        mut self: Box<Self>,
        bdev: &BlockDevice,
        end: Arc<StepEnd>,
    ) -> std::result::Result<Bio, (Box<Self>, kshim::error::Error)> {
        let (op, flags, most) = match self.step.access {
            Access::Read => (BioOp::Read, ReqFlags::empty(), u64::MAX),
            Access::Write { durable: false } => (BioOp::Write, ReqFlags::empty(), u64::MAX),
            Access::Write { durable: true } => (BioOp::Write, ReqFlags::FUA, u64::MAX),
            Access::Discard => {
                let most = bdev.limits().max_discard_bytes;
                (BioOp::Discard, ReqFlags::empty(), most)
            }
            Access::Zero => {
                let most = bdev.limits().max_write_zeroes_bytes;
                (BioOp::WriteZeroes, ReqFlags::NOUNMAP, most)
            }
            Access::Flush => (BioOp::Flush, ReqFlags::empty(), u64::MAX),
        };
        if most == 0 {
            return Err((self, code::EOPNOTSUPP));
        }
        let block = u64::from(bdev.limits().logical_block_size).max(1);
        let most = most.saturating_sub(most.checked_rem(block).unwrap_or(0));
        self.step.len = self.step.len.min(most.max(block));
        let Ok(len) = usize::try_from(self.step.len) else {
            return Err((self, code::EINVAL));
        };
        let sector = self.step.pos.checked_div(SECTOR_SIZE).unwrap_or(0);
        let mut bio = Bio::new(op, sector, len, end)
            .with_sg(std::mem::take(&mut self.plan.buf), 0)
            .with_flags(flags);
        bio.private = Some(self);
        Ok(bio)
    }
}
