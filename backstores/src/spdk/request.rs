//! A bio on its way through SPDK.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use kshim::block::{BioOp, ReqFlags, SubmittedBio};
use kshim::prelude::*;

use super::device::Dev;
use super::ffi::bdev::{IoVec, iovec};
use super::ffi::dma::{DmaBuf, reachable};
use super::local::Chan;

/// Bios whose data was copied.
static BOUNCED: AtomicU64 = AtomicU64::new(0);

/// How many bios were copied to or from memory that devices can reach.
pub(super) fn bounced() -> u64 {
    BOUNCED.load(Ordering::Relaxed)
}

/// What SPDK is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Read,
    Write,
    Flush,
    Unmap,
    Zeroes,
}

/// Which part of a bio is at SPDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FlushBefore,
    Itself,
    FlushAfter,
}

/// A bio, the way it goes, and its memory as SPDK wants it. It stays on one thread.
pub(super) struct Request {
    bio: SubmittedBio,
    dev: Arc<Dev>,
    chan: Rc<Chan>,
    op: Op,
    step: Step,
    block: u64,
    blocks: u64,
    pieces: Vec<IoVec>,
    /// Where the data is if devices cannot reach the bio's own memory.
    bounce: Option<DmaBuf>,
}

impl Request {
    /// Prepares a bio; `pieces` is an empty list, for its capacity. `None`: it has ended
    /// here, as there is nothing to do, or it cannot be done.
    pub(super) fn new(
        mut bio: SubmittedBio,
        dev: Arc<Dev>,
        chan: Rc<Chan>,
        mut pieces: Vec<IoVec>,
    ) -> Option<Request> {
        let info = &dev.info;
        let op = match bio.op {
            BioOp::Read => Op::Read,
            BioOp::Write => Op::Write,
            BioOp::Flush if info.flush => Op::Flush,
            BioOp::Flush => return ended(bio, Ok(())),
            BioOp::Discard if info.unmap => Op::Unmap,
            BioOp::WriteZeroes if info.zeroes => Op::Zeroes,
            BioOp::Discard | BioOp::WriteZeroes => return ended(bio, Err(EOPNOTSUPP)),
        };
        if bio.op != BioOp::Flush && bio.len == 0 {
            return ended(bio, Ok(()));
        }
        pieces.clear();
        let bounce = match op {
            Op::Read | Op::Write => match gather(&mut bio, op, dev.needs_dma, &mut pieces) {
                Ok(bounce) => bounce,
                Err(e) => return ended(bio, Err(e)),
            },
            _ => None,
        };
        let size = u64::from(info.block_size);
        let step = if bio.flags.contains(ReqFlags::PREFLUSH) && info.flush {
            Step::FlushBefore
        } else {
            Step::Itself
        };
        Some(Request {
            op,
            step,
            block: bio.pos() / size,
            blocks: bio.len as u64 / size,
            pieces,
            bounce,
            bio,
            dev,
            chan,
        })
    }

    pub(super) fn chan(&self) -> &Rc<Chan> {
        &self.chan
    }

    pub(super) fn op(&self) -> Op {
        match self.step {
            Step::Itself => self.op,
            _ => Op::Flush,
        }
    }

    fn is_whole(&self) -> bool {
        self.op() == Op::Flush
    }

    /// The first block.
    pub(super) fn block(&self) -> u64 {
        if self.is_whole() { 0 } else { self.block }
    }

    /// How many.
    pub(super) fn blocks(&self) -> u64 {
        if self.is_whole() {
            self.dev.blocks()
        } else {
            self.blocks
        }
    }

    pub(super) fn iovecs(&mut self) -> &mut [IoVec] {
        &mut self.pieces
    }

    /// Goes on after a step has ended well. `false`: that was the last.
    pub(super) fn next_step(&mut self) -> bool {
        let fua = self.bio.flags.contains(ReqFlags::FUA) && self.bio.op.is_write();
        self.step = match self.step {
            Step::FlushBefore if self.op != Op::Flush => Step::Itself,
            Step::Itself if fua && self.dev.info.flush => Step::FlushAfter,
            _ => return false,
        };
        true
    }

    /// Ends the bio. Returns the list of pieces, for the next.
    pub(super) fn finish(mut self, status: Result) -> Vec<IoVec> {
        let status = status.and_then(|()| self.copy_back());
        if let Err(e) = status {
            pr_debug!("{}: {:?}: {e}", self.dev.name, self.bio);
        }
        let Request {
            bio,
            dev,
            chan,
            mut pieces,
            ..
        } = self;
        // Before the bio's owner can close the device.
        drop((dev, chan));
        bio.complete(status);
        pieces.clear();
        pieces
    }

    fn copy_back(&mut self) -> Result {
        match &mut self.bounce {
            Some(buf) if self.op == Op::Read => {
                let at = self.bio.sg_at;
                self.bio.sg.copy_from_slice(at, buf.bytes())
            }
            _ => Ok(()),
        }
    }
}

fn ended(bio: SubmittedBio, status: Result) -> Option<Request> {
    bio.complete(status);
    None
}

/// Makes the list of a bio's pieces, or of one that stands for them.
fn gather(
    bio: &mut SubmittedBio,
    op: Op,
    needs_dma: bool,
    pieces: &mut Vec<IoVec>,
) -> Result<Option<DmaBuf>> {
    let (at, len) = (bio.sg_at, bio.len);
    let mut good = true;
    let mut piece = |p: *mut u8, n: usize| {
        good = !needs_dma || reachable(p, n);
        pieces.push(iovec(p, n));
        good
    };
    if op == Op::Read {
        bio.sg.for_each_raw_mut(at, len, &mut piece)?;
    } else {
        bio.sg
            .for_each_raw(at, len, |p, n| piece(p.cast_mut(), n))?;
    }
    if good {
        return Ok(None);
    }
    BOUNCED.fetch_add(1, Ordering::Relaxed);
    let mut buf = DmaBuf::new(len)?;
    if op == Op::Write {
        bio.sg.copy_to_slice(at, buf.bytes())?;
    }
    pieces.clear();
    pieces.push(iovec(buf.ptr(), len));
    Ok(Some(buf))
}
