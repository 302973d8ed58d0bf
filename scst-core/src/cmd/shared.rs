//! The part of a command that others may see: identity and flags, all atomic.
//!
//! One word holds the generation (upper half) and the flags (lower half). Task management changes flags by
//! compare-exchange on the whole word, so a request meant for a command that has finished meanwhile fails. The owner
//! sets its flags by read-modify-write on the same word: it either sees the abort, or the aborter sees the flag.
//! That is the pairing for which the C code has full barriers (`SCST_CMD_ABORTED` against `sent_for_exec`, `done`).
//!
//! C source: `scst_abort_cmd`, `scst_done_cmd_mgmt`, `scst_finish_cmd_mgmt` of `scst/src/scst_targ.c`

use crate::mgmt::Stub;
use kshim::sync::SpinLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// In use: between reception and recycling.
pub(crate) const LIVE: u64 = 1;
/// Task management wants it gone.
#[doc(alias = "SCST_CMD_ABORTED")]
pub(crate) const ABORTED: u64 = 1 << 1;
/// ... on behalf of another nexus, so TASK ABORTED status may be due (TAS).
#[doc(alias = "SCST_CMD_ABORTED_OTHER")]
pub(crate) const ABORTED_OTHER: u64 = 1 << 2;
/// ... and nothing may be sent, the nexus is gone.
#[doc(alias = "SCST_CMD_NO_RESP")]
pub(crate) const NO_RESP: u64 = 1 << 3;
/// The handler may have been called: it can no longer be taken back.
#[doc(alias = "sent_for_exec")]
pub(crate) const SENT_FOR_EXEC: u64 = 1 << 4;
/// Passed PRE_XMIT_RESP1: its effects are over.
pub(crate) const DONE: u64 = 1 << 5;
/// The device had TAS=1 when another nexus aborted the command.
#[doc(alias = "SCST_CMD_DEVICE_TAS")]
pub(crate) const DEVICE_TAS: u64 = 1 << 6;

const FLAG_BITS: u32 = 32;
const FLAG_MASK: u64 = (1 << FLAG_BITS) - 1;

/// What everybody may know of a command. One lives as long as the session that made it and is used by many commands
/// in turn; `generation` tells them apart.
#[derive(Debug, Default)]
pub struct CmdShared {
    word: AtomicU64,
    pub(crate) tag: AtomicU64,
    pub(crate) lun: AtomicU64,
    /// CmdSN-like number of the transport, for "older than the task management request".
    pub(crate) tgt_sn: AtomicU64,
    /// Task management commands that wait for this one.
    #[doc(alias = "mgmt_cmd_list")]
    pub(crate) waiters: SpinLock<Vec<Stub>>,
}

/// Names one use of a [`CmdShared`]: stays valid, and harmless, after the command has gone.
#[derive(Clone, Debug)]
pub struct CmdRef {
    pub(crate) shared: Arc<CmdShared>,
    pub(crate) generation: u32,
}

impl CmdRef {
    /// Whether `cmd` is the command named.
    pub fn is(&self, cmd: &super::Cmd) -> bool {
        self.generation == cmd.generation && Arc::ptr_eq(&self.shared, &cmd.shared)
    }

    /// The transport's tag of the command.
    pub fn tag(&self) -> u64 {
        self.shared.tag.load(Ordering::Relaxed)
    }
}

impl CmdShared {
    /// Begins a new use. Only the owner of the (free) command calls this.
    #[inline]
    pub(crate) fn begin(&self, generation: u32, lun: u64) {
        self.lun.store(lun, Ordering::Relaxed);
        self.word.store(
            (u64::from(generation) << FLAG_BITS) | LIVE,
            Ordering::Release,
        );
    }

    /// Sets flags and answers the flags before. Only the owner calls this.
    #[inline]
    pub(crate) fn set(&self, flags: u64) -> u64 {
        self.word.fetch_or(flags, Ordering::SeqCst) & FLAG_MASK
    }

    /// The flags now.
    #[inline]
    pub(crate) fn flags(&self) -> u64 {
        self.word.load(Ordering::Acquire) & FLAG_MASK
    }

    /// Generation and flags, if the command is live.
    #[inline]
    pub(crate) fn live(&self) -> Option<(u32, u64)> {
        let w = self.word.load(Ordering::Acquire);
        (w & LIVE != 0).then_some(((w >> FLAG_BITS) as u32, w & FLAG_MASK))
    }

    /// Ends this use and answers the flags before.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        let w = self.word.load(Ordering::Relaxed);
        self.word.swap(w & !FLAG_MASK, Ordering::SeqCst) & FLAG_MASK
    }

    /// Sets `flags` on the command of this generation and, if it was live, calls `wait` with the flags before while
    /// the waiter list is locked (so that the owner, who takes the lock when it sees ABORTED, cannot slip past).
    /// Answers `None` when that command is gone.
    pub(crate) fn abort(
        &self,
        generation: u32,
        flags: u64,
        wait: impl FnOnce(u64, &mut Vec<Stub>),
    ) -> Option<u64> {
        let mut waiters = self.waiters.lock();
        let mut w = self.word.load(Ordering::SeqCst);
        loop {
            if w & LIVE == 0 || (w >> FLAG_BITS) as u32 != generation {
                return None;
            }
            match self
                .word
                .compare_exchange_weak(w, w | flags, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => break,
                Err(now) => w = now,
            }
        }
        let before = w & FLAG_MASK;
        wait(before, &mut waiters);
        Some(before)
    }
}
