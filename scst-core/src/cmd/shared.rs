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
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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

/// The transport gave the command no number.
pub(crate) const NO_TGT_SN: u64 = u64::MAX;

/// How a command is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// By its own nexus: no response.
    ThisNexus,
    /// Its nexus is gone: no response, and nothing may be sent.
    NexusLoss,
    /// By another nexus: TASK ABORTED status if the device has TAS=1.
    OtherNexus {
        /// The device's TAS bit.
        tas: bool,
    },
}

impl Abort {
    /// The flags after it. A command may be aborted several times, and its own nexus always wins: who aborts a command
    /// expects no response.
    fn apply(self, w: u64) -> u64 {
        match self {
            Self::ThisNexus => (w & !ABORTED_OTHER) | ABORTED,
            Self::NexusLoss => (w & !ABORTED_OTHER) | ABORTED | NO_RESP,
            Self::OtherNexus { tas } => {
                let other = if w & ABORTED == 0 { ABORTED_OTHER } else { 0 };
                w | ABORTED | other | if tas { DEVICE_TAS } else { 0 }
            }
        }
    }

    pub(crate) fn is_other(self) -> bool {
        matches!(self, Self::OtherNexus { .. })
    }
}

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
    /// Operation code, for those who look.
    pub(crate) opcode: AtomicU8,
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
    /// Begins a new use, of which nobody else knows before [`Self::publish`]. Only the owner of the (free) command calls
    /// this.
    #[inline]
    pub(crate) fn begin(&self, lun: u64, opcode: u8) {
        // Stores of a later use are releases and the loads acquires, so whoever sees one of them also sees that the
        // former use has ended, and its compare-exchange fails.
        self.lun.store(lun, Ordering::Release);
        self.opcode.store(opcode, Ordering::Relaxed);
        self.tgt_sn.store(NO_TGT_SN, Ordering::Release);
    }

    /// Makes the command visible to task management. Only the owner calls this, once the tag is set.
    #[inline]
    pub(crate) fn publish(&self, generation: u32) {
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

    /// What stage the command is in, if it is live: for people.
    pub(crate) fn stage(&self) -> Option<&'static str> {
        let (_, flags) = self.live()?;
        Some(match (flags & DONE != 0, flags & SENT_FOR_EXEC != 0) {
            (true, _) => "XMIT_WAIT",
            (false, true) => "EXEC_WAIT",
            (false, false) => "INIT",
        })
    }

    /// Ends this use and answers the flags before.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        let w = self.word.load(Ordering::Relaxed);
        self.word.swap(w & !FLAG_MASK, Ordering::SeqCst) & FLAG_MASK
    }

    /// Marks the command of this generation aborted and, if it was live, calls `wait` with the flags before while
    /// the waiter list is locked (so that the owner, who takes the lock when it sees ABORTED, cannot slip past).
    /// Answers `None` when that command is gone.
    pub(crate) fn abort(
        &self,
        generation: u32,
        abort: Abort,
        wait: impl FnOnce(u64, &mut Vec<Stub>),
    ) -> Option<u64> {
        let mut waiters = self.waiters.lock();
        let mut w = self.word.load(Ordering::SeqCst);
        loop {
            if w & LIVE == 0 || (w >> FLAG_BITS) as u32 != generation {
                return None;
            }
            match self.word.compare_exchange_weak(
                w,
                abort.apply(w),
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => break,
                Err(now) => w = now,
            }
        }
        let before = w & FLAG_MASK;
        wait(before, &mut waiters);
        Some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_generation_that_is_meant_is_aborted() {
        let s = CmdShared::default();
        s.begin(3, 0);
        assert_eq!(s.live(), None, "not yet published");
        assert_eq!(s.abort(0, Abort::ThisNexus, |_, _| unreachable!()), None);
        s.publish(1);
        assert_eq!(s.live(), Some((1, LIVE)));
        assert_eq!(s.abort(2, Abort::ThisNexus, |_, _| unreachable!()), None);
        assert_eq!(s.set(SENT_FOR_EXEC), LIVE);
        let mut called = false;
        let before = s.abort(1, Abort::ThisNexus, |_, _| called = true);
        assert_eq!((before, called), (Some(LIVE | SENT_FOR_EXEC), true));
        assert_eq!(s.end(), LIVE | SENT_FOR_EXEC | ABORTED);
        assert_eq!(s.abort(1, Abort::ThisNexus, |_, _| unreachable!()), None);
        s.begin(3, 0);
        s.publish(2);
        assert_eq!(s.abort(1, Abort::ThisNexus, |_, _| unreachable!()), None);
        assert_eq!(s.flags(), LIVE);
    }

    #[test]
    fn the_own_nexus_wins() {
        let other = |tas| Abort::OtherNexus { tas };
        for (first, second, want) in [
            (other(true), Abort::ThisNexus, ABORTED | DEVICE_TAS),
            (Abort::ThisNexus, other(true), ABORTED | DEVICE_TAS),
            (
                other(false),
                other(true),
                ABORTED | ABORTED_OTHER | DEVICE_TAS,
            ),
            (other(false), Abort::NexusLoss, ABORTED | NO_RESP),
            (Abort::NexusLoss, other(false), ABORTED | NO_RESP),
        ] {
            assert_eq!(second.apply(first.apply(0)), want, "{first:?} {second:?}");
        }
    }
}
