//! A bio on its way through SPDK.

use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use kshim::block::{Bio, BioOp, ReqFlags, SubmittedBio};
use kshim::prelude::*;

use super::ffi::bdev::{IoVec, ReadIo, iovec};
use super::ffi::dma::{DmaBuf, reachable};
use super::ffi::lend::Lends;
use super::local::Chan;

/// Bios whose data was copied.
static BOUNCED: AtomicU64 = AtomicU64::new(0);

/// How many bios were copied to or from memory that devices can reach.
pub(super) fn bounced() -> u64 {
    BOUNCED.load(Ordering::Relaxed)
}

/// What SPDK is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Op {
    #[default]
    Read,
    Write,
    Flush,
    Unmap,
    Zeroes,
}

/// Which part of a bio is at SPDK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    FlushBefore,
    #[default]
    Itself,
    FlushAfter,
}

/// A bio that is at SPDK, and the way to it.
struct Job {
    bio: SubmittedBio,
    chan: Rc<Chan>,
}

/// A bio, the way it goes, and its memory as SPDK wants it. It stays on one thread, and serves one bio after the other.
#[derive(Default)]
pub(super) struct Request {
    /// `Some` from [`Request::prepare`] to [`Request::finish`].
    job: Option<Job>,
    op: Op,
    step: Step,
    block: u64,
    blocks: u64,
    pieces: Vec<IoVec>,
    /// Where the data is if devices cannot reach the bio's own memory.
    bounce: Option<DmaBuf>,
    /// The bdev shows its own memory.
    borrows: bool,
    /// What it showed.
    found: Option<ReadIo>,
}

impl Request {
    /// Takes a bio. `lends`: the thread can lend memory of bdevs. `false`: the bio has ended here, as there is nothing to do, or it
    /// cannot be done.
    pub(super) fn prepare(&mut self, mut bio: SubmittedBio, chan: Rc<Chan>, lends: bool) -> bool {
        let dev = &chan.dev;
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
        self.pieces.clear();
        self.borrows = lends && op == Op::Read && dev.shows_memory && may_lend(&bio);
        self.bounce = match op {
            Op::Read if self.borrows => {
                self.pieces.push(iovec(null_mut(), bio.len));
                None
            }
            Op::Read | Op::Write => match gather(&mut bio, op, dev.needs_dma, &mut self.pieces) {
                Ok(bounce) => bounce,
                Err(e) => return ended(bio, Err(e)),
            },
            _ => None,
        };
        let size = u64::from(info.block_size);
        self.step = if bio.flags.contains(ReqFlags::PREFLUSH) && info.flush {
            Step::FlushBefore
        } else {
            Step::Itself
        };
        self.op = op;
        self.block = bio.pos().checked_div(size).unwrap_or(0);
        self.blocks = (bio.len as u64).checked_div(size).unwrap_or(0);
        self.job = Some(Job { bio, chan });
        true
    }

    /// The way to the bdev. Errors: `EINVAL`: it has no bio.
    pub(super) fn chan(&self) -> Result<&Rc<Chan>> {
        self.job.as_ref().map(|j| &j.chan).ok_or(EINVAL)
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
            self.job.as_ref().map_or(0, |j| j.chan.dev.blocks())
        } else {
            self.blocks
        }
    }

    pub(super) fn iovecs(&mut self) -> &mut [IoVec] {
        &mut self.pieces
    }

    /// Whether the bdev shows its own memory in this step.
    pub(super) fn borrows(&self) -> bool {
        self.borrows && self.op() == Op::Read
    }

    /// Takes the memory that a bdev has shown.
    pub(super) fn found(&mut self, io: Option<ReadIo>) {
        self.found = io;
    }

    /// Goes on after a step has ended well. `false`: that was the last.
    pub(super) fn next_step(&mut self) -> bool {
        let Some(Job { bio, chan }) = &self.job else {
            return false;
        };
        let fua = bio.flags.contains(ReqFlags::FUA) && bio.op.is_write();
        self.step = match self.step {
            Step::FlushBefore if self.op != Op::Flush => Step::Itself,
            Step::Itself if fua && chan.dev.info.flush => Step::FlushAfter,
            _ => return false,
        };
        true
    }

    /// Ends the bio.
    pub(super) fn finish(&mut self, status: Result, lends: &Lends<Rc<Chan>>) {
        let Some(Job { mut bio, chan }) = self.job.take() else {
            return;
        };
        let status = status.and_then(|()| self.hand_over(&mut bio, &chan, lends));
        // Nobody's any more.
        self.found = None;
        self.bounce = None;
        if let Err(e) = status {
            pr_debug!("{}: {bio:?}: {e}", chan.dev.name);
        }
        // Before the bio's owner can close the device.
        drop(chan);
        bio.complete(status);
    }

    /// Gives a bio what was read elsewhere for it.
    fn hand_over(&mut self, bio: &mut Bio, chan: &Rc<Chan>, lends: &Lends<Rc<Chan>>) -> Result {
        if self.borrows {
            let io = self.found.take().ok_or(EIO)?;
            let mem = lends.lend(io, Rc::clone(chan))?;
            bio.sg.clear();
            return bio.sg.push_lent(mem.range(0, bio.len)?);
        }
        match &mut self.bounce {
            Some(buf) if self.op == Op::Read => bio.sg.copy_from_slice(bio.sg_at, buf.bytes()),
            _ => Ok(()),
        }
    }
}

/// Whether a read takes whatever memory.
fn may_lend(bio: &Bio) -> bool {
    bio.flags.contains(ReqFlags::LEND) && bio.sg_at == 0 && bio.sg.len() == bio.len
}

fn ended(bio: SubmittedBio, status: Result) -> bool {
    bio.complete(status);
    false
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
