//! Unit attention conditions of one I_T_L nexus.
//!
//! # Rules
//!
//! | event | how it is queued |
//! |---|---|
//! | new nexus and LUN | 29h/00h is the first; a transport that knows better (login after reinstatement: 29h/07h) replaces it ([`UaQueue::replace_initial`]) |
//! | nexus loss | 29h/07h at the head |
//! | reset, mode parameters, capacity, reservations, commands cleared, ... | at the tail, in the order of the events |
//! | delivery failed (command aborted, send failed) | back at the head ([`UaQueue::undelivered`]) |
//! | REPORTED LUNS DATA HAS CHANGED (3Fh/0Eh) | at the tail of every LUN of the session, *global*: delivered on one LUN, it is gone from the others |
//!
//! * The same code is never queued twice; the second one changes nothing, not even the place.
//! * A reset does not clear what is queued (SAM-5 allows it, but events would be lost).
//! * At most [`MAX_UA`] are queued. When there would be more, all of them give way to a single 29h/00h: to an initiator it means
//!   that anything may have changed, which is the truth. DIFFERS: SCST's list is bounded by a memory pool that all
//!   nexuses share, and drops the newest unit attention when that is empty.
//! * A command takes a pending unit attention when it is about to be executed, unless its opcode is flagged to skip them
//!   (INQUIRY, REPORT LUNS, REQUEST SENSE and some of SCST's own), or it is aborted: look at that just before.
//! * REQUEST SENSE without stored sense data takes the unit attention as its *data*, with GOOD status (SPC-4 6.39).
//! * REPORT LUNS clears 3Fh/0Eh on every LUN of the session ([`UaQueue::remove`]). INQUIRY clears nothing.
//!
//! The queue holds conditions; sense data is built when one is delivered, in the format that D_SENSE asks for *then*
//! ([`Sense::always_fixed`] knows the exceptions).
//!
//! # Locks
//!
//! [`UaScope`] (one per session) outside, `tgt_dev_lock` (inside [`UaQueue`]) inside, the latter of one LUN at a time.
//! DIFFERS: for a global unit attention SCST holds the locks of all LUNs of the session together.
//!
//! C source: `scst/src/scst_lib.c` (`scst_check_set_UA`, `scst_alloc_set_UA`, `scst_set_pending_UA`,
//! `scst_tgt_dev_del_free_UA`, `scst_requeue_ua`, `scst_set_initial_UA`, `scst_queue_report_luns_changed_UA`)

#[cfg(test)]
mod tests;

use crate::sense::{NEXUS_LOSS_UA, REPORTED_LUNS_DATA_CHANGED, RESET_UA, Sense};
use kshim::sync::SpinLock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// Unit attentions queued for one nexus and LUN. There are about a dozen different ones, so this is never reached unless a
/// pass-through device invents its own.
pub const MAX_UA: usize = 32;

/// Whether a unit attention concerns the session rather than the LUN: queued on all LUNs, delivered on one.
#[doc(alias = "scst_is_ua_global")]
#[must_use]
pub fn is_global(ua: Sense) -> bool {
    ua == REPORTED_LUNS_DATA_CHANGED
}

/// End of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UaPlace {
    /// To be reported next.
    #[doc(alias = "SCST_SET_UA_FLAG_AT_HEAD")]
    Head,
    /// To be reported after the others.
    Tail,
}

impl UaPlace {
    /// Where a unit attention is queued when its event happens: nexus loss first, everything else last.
    #[must_use]
    pub fn of(ua: Sense) -> Self {
        if ua == NEXUS_LOSS_UA {
            Self::Head
        } else {
            Self::Tail
        }
    }
}

/// What [`UaQueue::check_set`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UaSet {
    /// Queued.
    Queued,
    /// The same one waits already.
    Duplicate,
    /// The queue was full: only [`RESET_UA`] is queued now.
    Overflow,
}

/// Serialises the global unit attentions of one session, so that each is delivered once.
#[derive(Debug)]
pub struct UaScope(SpinLock<()>);

impl Default for UaScope {
    fn default() -> Self {
        Self::new()
    }
}

impl UaScope {
    /// A scope for one session.
    pub const fn new() -> Self {
        Self(SpinLock::new(()))
    }

    /// Queues a global unit attention on all LUNs of the session (those whose device type reports LUNs).
    ///
    /// Context: any.
    #[doc(alias = "scst_queue_report_luns_changed_UA")]
    pub fn set_all<'a>(
        &self,
        queues: impl IntoIterator<Item = &'a UaQueue>,
        ua: Sense,
        place: UaPlace,
    ) {
        let _guard = self.0.lock();
        for q in queues {
            q.check_set(ua, place);
        }
    }

    /// Removes a unit attention from all LUNs of the session: REPORT LUNS has told the news.
    ///
    /// Context: any.
    pub fn remove_all<'a>(&self, queues: impl IntoIterator<Item = &'a UaQueue>, ua: Sense) {
        let _guard = self.0.lock();
        for q in queues {
            q.remove(ua);
        }
    }
}

/// The unit attentions that wait for one nexus and LUN.
///
/// Context: any thread; nothing sleeps.
///
/// # Examples
///
/// ```
/// use scst_core::sense::REPORTED_LUNS_DATA_CHANGED;
/// use scst_core::ua::{UaPlace, UaQueue, UaScope};
///
/// let scope = UaScope::new();
/// let (lun0, lun1) = (UaQueue::new(), UaQueue::new());
/// scope.set_all([&lun0, &lun1], REPORTED_LUNS_DATA_CHANGED, UaPlace::Tail);
/// assert!(lun1.has_pending());
/// // A command on LUN 0 reports it ...
/// assert_eq!(lun0.take(&scope, || [&lun1]), Some(REPORTED_LUNS_DATA_CHANGED));
/// // ... so nobody hears it on LUN 1.
/// assert!(!lun1.has_pending());
/// ```
#[doc(alias = "UA_list")]
#[derive(Debug)]
pub struct UaQueue {
    /// Whether `list` is not empty; written under its lock.
    #[doc(alias = "SCST_TGT_DEV_UA_PENDING")]
    pending: AtomicBool,
    #[doc(alias = "tgt_dev_lock")]
    list: SpinLock<VecDeque<Sense>>,
}

impl Default for UaQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl UaQueue {
    /// An empty queue. Does not allocate.
    pub const fn new() -> Self {
        Self {
            pending: AtomicBool::new(false),
            list: SpinLock::new(VecDeque::new()),
        }
    }

    /// Whether there may be something to [`Self::take`]: one load, for the hot path.
    #[inline]
    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Queues a unit attention unless the same one waits already.
    #[doc(alias = "scst_check_set_UA")]
    pub fn check_set(&self, ua: Sense, place: UaPlace) -> UaSet {
        self.with(|list| {
            if list.contains(&ua) {
                return UaSet::Duplicate;
            }
            if list.len() >= MAX_UA {
                list.clear();
                list.push_back(RESET_UA);
                return UaSet::Overflow;
            }
            match place {
                UaPlace::Head => list.push_front(ua),
                UaPlace::Tail => list.push_back(ua),
            }
            UaSet::Queued
        })
    }

    /// The unit attention that would be reported next.
    pub fn peek(&self) -> Option<Sense> {
        self.list.lock().front().copied()
    }

    /// Takes the next unit attention for delivery. `peers` are the queues of the session's other LUNs (the own one may be among
    /// them); it is called only when the unit attention is a global one, which goes from all of them.
    ///
    /// Between [`Self::has_pending`] and this, another command may have taken it: then this is `None`.
    #[doc(alias = "scst_set_pending_UA")]
    pub fn take<'a, I>(&self, scope: &UaScope, peers: impl FnOnce() -> I) -> Option<Sense>
    where
        I: IntoIterator<Item = &'a UaQueue>,
    {
        let local = self.with(|list| match list.front() {
            Some(ua) if is_global(*ua) => Err(()),
            _ => Ok(list.pop_front()),
        });
        if let Ok(taken) = local {
            return taken;
        }
        let _guard = scope.0.lock();
        // Another LUN may have delivered it meanwhile; then the next one is taken, whatever it is.
        let taken = self.with(VecDeque::pop_front)?;
        if is_global(taken) {
            for q in peers() {
                q.remove(taken);
            }
        }
        Some(taken)
    }

    /// A unit attention that was taken did not reach the initiator: it is the next one again, on all LUNs (`peers` and this
    /// one) if it is a global one.
    #[doc(alias = "scst_requeue_ua")]
    pub fn undelivered<'a, I>(&self, ua: Sense, scope: &UaScope, peers: impl FnOnce() -> I)
    where
        I: IntoIterator<Item = &'a UaQueue>,
    {
        if is_global(ua) {
            let _guard = scope.0.lock();
            self.check_set(ua, UaPlace::Head);
            for q in peers() {
                q.check_set(ua, UaPlace::Head);
            }
        } else {
            self.check_set(ua, UaPlace::Head);
        }
    }

    /// Removes one unit attention; answers whether it was queued.
    #[doc(alias = "scst_tgt_dev_del_free_UA")]
    pub fn remove(&self, ua: Sense) -> bool {
        if !self.has_pending() {
            return false;
        }
        self.with(|list| match list.iter().position(|u| *u == ua) {
            Some(at) => list.remove(at).is_some(),
            None => false,
        })
    }

    /// Replaces the 29h/00h that a new nexus starts with by what the transport knows better. Answers `false` (and changes
    /// nothing) if that is not the next one any more.
    #[doc(alias = "scst_set_initial_UA")]
    pub fn replace_initial(&self, ua: Sense) -> bool {
        self.with(|list| {
            if list.front() != Some(&RESET_UA) {
                return false;
            }
            list.retain(|u| *u != ua && *u != RESET_UA);
            list.push_front(ua);
            true
        })
    }

    /// Forgets all: the nexus goes.
    #[doc(alias = "scst_free_all_UA")]
    pub fn clear(&self) {
        self.with(VecDeque::clear);
    }

    /// What waits, in the order of delivery; for the transfer to a new session of the same initiator.
    pub fn snapshot(&self) -> Vec<Sense> {
        self.list.lock().iter().copied().collect()
    }

    /// Number of unit attentions that wait.
    pub fn len(&self) -> usize {
        self.list.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        !self.has_pending()
    }

    fn with<R>(&self, f: impl FnOnce(&mut VecDeque<Sense>) -> R) -> R {
        let mut list = self.list.lock();
        let r = f(&mut list);
        self.pending.store(!list.is_empty(), Ordering::Release);
        r
    }
}
