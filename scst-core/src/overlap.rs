//! Blocks that commands claim, and who has to wait for whom because of them.
//!
//! COMPARE AND WRITE is atomic with regard to every other command on its blocks (SBC-4 4.27: uninterrupted sequences on LBA
//! ranges), and, as VMware wants it, with regard to RESERVE of the whole unit. [`Claim`] says what a command touches,
//! and [`Claim::conflicts`] whether two commands may be on the device at the same time.
//!
//! `Overlap` is the list of those on the device and those that wait. Who comes waits for every *earlier* command that it
//! conflicts with, whether that one is on the device or waits itself; so none can be overtaken by what it conflicts
//! with, and nothing waits in a circle. Finding the earlier ones costs one comparison each, when a command
//! comes; when one goes, only those are looked at that wait for it.
//!
//! DIFFERS: an EXTENDED COPY also claims the blocks that it reads, in SCST only those that it writes.
//!
//! C source: `scst_cmd_overlap` and neighbours, `scst_check_scsi_atomicity`, `scst_check_unblock_scsi_atomic_cmds` of
//! `scst/src/scst_targ.c`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

/// Consecutive logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// The first one.
    pub lba: u64,
    /// How many; none overlap with nothing.
    pub blocks: u64,
}

impl BlockRange {
    /// Whether both have a block in common.
    #[doc(alias = "scst_lba1_inside_lba2")]
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let starts_before_end_of =
            |a: Self, b: Self| a.lba.checked_sub(b.lba).is_none_or(|d| d < b.blocks);
        self.blocks != 0
            && other.blocks != 0
            && starts_before_end_of(self, other)
            && starts_before_end_of(other, self)
    }
}

/// What a command touches of its device.
///
/// # Examples
///
/// ```
/// use scst_core::overlap::{BlockRange, Claim};
///
/// let caw = Claim::Atomic(BlockRange { lba: 8, blocks: 1 });
/// let write = Claim::Range(BlockRange { lba: 0, blocks: 16 });
/// assert!(caw.conflicts(&write) && write.conflicts(&caw));
/// assert!(!write.conflicts(&write));
/// assert!(caw.conflicts(&Claim::Reserve));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    /// No blocks.
    #[default]
    Nothing,
    /// These blocks.
    Range(BlockRange),
    /// All of these.
    Ranges(Box<[BlockRange]>),
    /// Whether the unit is reserved.
    Reserve,
    /// These blocks, for itself alone.
    #[doc(alias = "SCST_SCSI_ATOMIC")]
    Atomic(BlockRange),
}

impl Claim {
    /// Whether the command is to be atomic on its blocks.
    #[must_use]
    pub fn is_atomic(&self) -> bool {
        matches!(self, Self::Atomic(_))
    }

    /// Whether commands with these claims may not be on the device at the same time: one is atomic, and the other
    /// touches its blocks or reserves the unit.
    #[doc(alias = "scst_cmd_overlap")]
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Atomic(r), c) | (c, Self::Atomic(r)) => c.touches(*r),
            _ => false,
        }
    }

    fn touches(&self, r: BlockRange) -> bool {
        match self {
            Self::Nothing => false,
            Self::Reserve => true,
            Self::Range(x) | Self::Atomic(x) => x.overlaps(r),
            Self::Ranges(all) => all.iter().any(|x| x.overlaps(r)),
        }
    }
}

/// Names an entry.
pub(crate) type EntryId = u64;

#[derive(Debug)]
struct Entry<T> {
    claim: Claim,
    /// Earlier commands that this one still waits for.
    #[doc(alias = "scsi_atomic_blockers")]
    blockers: usize,
    /// Later commands that wait for this one. Some may have gone.
    #[doc(alias = "scsi_atomic_blocked_cmds")]
    blocks: Vec<EntryId>,
    /// The command while it waits; one on the device belongs to somebody else.
    waiting: Option<T>,
}

/// Commands of one device with what they claim.
#[derive(Debug)]
pub(crate) struct Overlap<T> {
    /// In the order of arrival.
    entries: BTreeMap<EntryId, Entry<T>>,
    last_id: EntryId,
    /// Who waits for nobody (any more) and has not been let in.
    ready: BTreeSet<EntryId>,
    #[doc(alias = "dev_scsi_atomic_cmd_active")]
    atomics: usize,
    inside: usize,
}

impl<T> Overlap<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            last_id: 0,
            ready: BTreeSet::new(),
            atomics: 0,
            inside: 0,
        }
    }

    /// Whether an atomic command is on the device or waits.
    pub(crate) fn has_atomics(&self) -> bool {
        self.atomics > 0
    }

    /// Commands on the device.
    pub(crate) fn inside(&self) -> usize {
        self.inside
    }

    /// Commands that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.entries.len().saturating_sub(self.inside)
    }

    /// A command that comes. It is let in by [`Self::next_ready`].
    pub(crate) fn add(&mut self, claim: Claim, item: T) {
        self.last_id = self.last_id.saturating_add(1);
        let id = self.last_id;
        let mut blockers: usize = 0;
        for e in self.entries.values_mut() {
            if e.claim.conflicts(&claim) {
                e.blocks.push(id);
                blockers = blockers.saturating_add(1);
            }
        }
        if claim.is_atomic() {
            self.atomics = self.atomics.saturating_add(1);
        }
        if blockers == 0 {
            self.ready.insert(id);
        }
        let entry = Entry {
            claim,
            blockers,
            blocks: Vec::new(),
            waiting: Some(item),
        };
        self.entries.insert(id, entry);
    }

    /// Lets in the oldest command that waits for nobody. `atomic_may` is asked whether an atomic one may enter.
    pub(crate) fn next_ready(
        &mut self,
        mut atomic_may: impl FnMut() -> bool,
    ) -> Option<(EntryId, T)> {
        let mut may = None;
        let id = self.ready.iter().copied().find(|id| {
            let atomic = self.entries.get(id).is_some_and(|e| e.claim.is_atomic());
            !atomic || *may.get_or_insert_with(&mut atomic_may)
        })?;
        self.ready.remove(&id);
        let item = self.entries.get_mut(&id)?.waiting.take()?;
        self.inside = self.inside.saturating_add(1);
        Some((id, item))
    }

    /// A command that was let in has left the device.
    pub(crate) fn remove(&mut self, id: EntryId) {
        if self.forget(id) {
            self.inside = self.inside.saturating_sub(1);
        }
    }

    /// Takes out waiting commands.
    pub(crate) fn take(&mut self, mut pred: impl FnMut(&T) -> bool, out: &mut Vec<T>) {
        let mut taken = Vec::new();
        for (id, e) in &mut self.entries {
            if e.waiting.as_ref().is_some_and(&mut pred) {
                out.extend(e.waiting.take());
                taken.push(*id);
            }
        }
        for id in taken {
            self.ready.remove(&id);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: EntryId) -> bool {
        let Some(gone) = self.entries.remove(&id) else {
            return false;
        };
        if gone.claim.is_atomic() {
            self.atomics = self.atomics.saturating_sub(1);
        }
        for id in gone.blocks {
            let Some(e) = self.entries.get_mut(&id) else {
                continue;
            };
            e.blockers = e.blockers.saturating_sub(1);
            if e.blockers == 0 {
                self.ready.insert(id);
            }
        }
        true
    }
}
