//! A disk in memory, as a block driver: completes inline and lends its memory, or (slow) completes from a thread.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use kshim::block::{BioOp, BlockOps, QueueLimits, ReqFlags, SubmittedBio};
use kshim::error::{Result, code};
use kshim::page::{LentMem, LentRange};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub struct Ram {
    mem: LentMem,
    /// Completes inside the submit and lends its memory.
    inline: bool,
    /// Lends its memory, if it completes inside the submit.
    lends: bool,
    /// Reads and writes fail.
    pub broken: AtomicBool,
    /// Writes find no room.
    pub full: AtomicBool,
    pub fua: AtomicUsize,
    pub bios: AtomicUsize,
    pub flushes: AtomicUsize,
}

impl Ram {
    pub fn new(len: usize, inline: bool) -> Arc<Self> {
        Arc::new(Self::make(len, inline))
    }

    /// Completes inside the submit, and what was read does not change afterwards.
    pub fn without_lending(len: usize) -> Arc<Self> {
        let mut ram = Self::make(len, true);
        ram.lends = false;
        Arc::new(ram)
    }

    fn make(len: usize, inline: bool) -> Self {
        Self {
            mem: LentMem::anonymous(len).expect("memory"),
            inline,
            lends: inline,
            broken: AtomicBool::new(false),
            full: AtomicBool::new(false),
            fua: AtomicUsize::new(0),
            bios: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
        }
    }

    fn run(mem: &LentMem, bio: &mut SubmittedBio) -> Result {
        let pos = usize::try_from(bio.pos())?;
        let (at, len) = (bio.sg_at, bio.len);
        match bio.op {
            BioOp::Read => bio.sg.copy_from_lent(at, mem, pos, len),
            BioOp::Write => bio.sg.copy_to_lent(at, mem, pos, len),
            BioOp::Flush => Ok(()),
            BioOp::Discard | BioOp::WriteZeroes => mem.fill(pos, len, 0),
        }
    }
}

impl BlockOps for Ram {
    fn submit_bio(&self, mut bio: SubmittedBio) {
        self.bios.fetch_add(1, Ordering::Relaxed);
        if bio.op == BioOp::Flush {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        if bio.flags.contains(ReqFlags::FUA) {
            self.fua.fetch_add(1, Ordering::Relaxed);
        }
        if bio.op.is_write() && self.full.load(Ordering::Relaxed) {
            return bio.complete(Err(code::ENOSPC));
        }
        if self.broken.load(Ordering::Relaxed) {
            return bio.complete(Err(code::EIO));
        }
        if self.inline {
            let status = Self::run(&self.mem, &mut bio);
            return bio.complete(status);
        }
        let mem = self.mem.clone();
        let run = move |_: &kshim::kthread::Stop| {
            let status = Self::run(&mem, &mut bio);
            bio.complete(status);
        };
        let mut run = Some(run);
        let thread = kshim::kthread::run("test_bio", move |stop| {
            if let Some(run) = run.take() {
                run(stop);
            }
        });
        // Joined by whoever drops it; here it may go on alone.
        std::mem::forget(thread);
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits {
            max_discard_bytes: 1 << 30,
            discard_granularity: 512,
            max_write_zeroes_bytes: 1 << 30,
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.mem.len() as u64
    }

    fn direct_access(&self, pos: u64, len: usize) -> Option<LentRange> {
        if !self.lends {
            return None;
        }
        self.mem.range(usize::try_from(pos).ok()?, len).ok()
    }

    fn is_inline(&self) -> bool {
        self.inline
    }
}
