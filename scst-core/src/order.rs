//! The serial number engine: in which order the commands of a task set may go to execution.
//!
//! One [`OrderData`] is one task set: a logical unit's (TST=0), or one nexus' part of it (TST=1). Every command gets a
//! *serial number* when it is initialised ([`OrderData::set_sn`]) and asks before execution whether it is its turn
//! ([`OrderData::check_sn`]); if not, the engine keeps it. When a command has been handed over to execution
//! ([`OrderData::post_exec`]), or at its completion if it was marked so ([`OrderData::exec_done`]), or when it turns
//! out that it will never be executed ([`OrderData::skip`]), its number is *passed*, and who waited for that comes
//! back as [`Released`].
//!
//! # What is guaranteed
//!
//! Call a command *older* if its `set_sn` came first, and *passed* as above. Let `a` be older than `b`, both neither
//! HEAD OF QUEUE nor ACA.
//!
//! 1. If `a` or `b` is ORDERED, or an ORDERED command (executed or not) lies between them, then `b` is not let through
//!    before `a` is passed.
//! 2. Otherwise (both in one run of SIMPLE commands) nothing is promised, and neither ever waits for the other.
//! 3. HEAD OF QUEUE commands are let through at once. From `set_sn` of such a command to its end
//!    ([`OrderData::on_hq_done`]) no other command is let through that was not let through before.
//! 4. Nothing waits longer than that: when every older command is passed, no HEAD OF QUEUE command is under way and no
//!    ACA is established, then no command is parked. Commands that never reach execution do not hold the others.
//!
//! Passed at the hand-over means that an asynchronous handler may still be busy with an older SIMPLE command when an
//! ORDERED one is handed to it. That is SCST's meaning of the order, and the handler's to keep
//! (`has_own_order_mgmt`). A command marked `inc_expected_on_done` (ORDERED ones, all of a device with QAM=0, and
//! commands with NACA=1: see [`OrderPolicy`]) passes only at its completion.
//!
//! # How
//!
//! Consecutive SIMPLE commands share one number (a *run*), each ORDERED command has its own. A run counts its commands
//! that are not passed; the oldest run is the *expected* one, whose commands may go. It is left behind when its count
//! is zero and a younger run exists. DIFFERS: SCST keeps the counts of the runs in an array of 15 slots, treats SIMPLE commands as
//! ORDERED when the slots are used up, and keeps passed numbers that it meets too early on a list of skipped commands.
//! Here the runs stand in a queue indexed by serial number: a passed command only decrements its run's count,
//! wherever that run stands, and no command outlives its end for the sake of a list.
//!
//! While there is a single run, no HEAD OF QUEUE command, no ACA and nothing parked (the *fast mode*, and the usual
//! state for ever), number and count live in one atomic word: `set_sn` and `post_exec` are one compare-exchange each,
//! `check_sn` is one load, and nobody takes the lock. Whoever needs more sets the SLOW bit of the word under the
//! lock, and from then on everybody comes by the lock until the state is that simple again.
//!
//! # Locks
//!
//! `sn_lock` (inside) nests in nothing and calls nothing but [`Abortable::is_aborted`] and the caller's predicates.
//!
//! C source: `scst/src/scst_targ.c` (`scst_cmd_set_sn`, `scst_exec_check_sn`, `scst_inc_expected_sn`,
//! `scst_handle_aca`), `scst/src/scst_lib.c` (`__scst_check_deferred_commands_locked`, `scst_unblock_deferred`,
//! `scst_process_check_condition`)

mod aca;
mod runs;
#[cfg(test)]
mod tests;

pub use aca::{
    AcaRequest, AcaVerdict, CheckCondition, ClearedAca, NexusId, NotTheFaultedNexus, QErr,
};

use crate::consts::QueueType;
use crate::parking::{Abortable, Released, race_point};
use aca::Aca;
use kshim::sync::SpinLock;
use runs::Runs;
use std::sync::atomic::{AtomicU64, Ordering};

/// An item that the engine can order.
pub trait HasTicket: Abortable {
    /// The item's ticket.
    fn ticket(&mut self) -> &mut OrderTicket;
}

/// What the engine notes in a command. One command uses its ticket in one [`OrderData`] only, from `set_sn` to its end;
/// [`Default`] is a ticket not in use.
#[derive(Debug, Default)]
pub struct OrderTicket {
    sn: u32,
    stage: Stage,
    inc_on_done: bool,
    aca_allowed: bool,
    nexus: NexusId,
}

impl OrderTicket {
    /// The serial number, while the command has one and is not passed.
    pub fn sn(&self) -> Option<u32> {
        (self.stage == Stage::Numbered).then_some(self.sn)
    }

    /// Whether the command counts as HEAD OF QUEUE in its task set.
    #[doc(alias = "hq_cmd_inced")]
    pub fn is_hq(&self) -> bool {
        self.stage == Stage::HeadOfQueue
    }

    /// Whether the command's number advances at completion rather than at the hand-over.
    #[doc(alias = "inc_expected_sn_on_done")]
    #[inline]
    pub fn inc_expected_on_done(&self) -> bool {
        self.inc_on_done
    }

    /// Whether the command may proceed although an ACA is established ([`OrderData::aca_check`]).
    #[doc(alias = "cmd_aca_allowed")]
    #[inline]
    pub fn aca_allowed(&self) -> bool {
        self.aca_allowed
    }

    /// Lets the response of a command pass that is refused before it enters the task set.
    pub(crate) fn bypass_aca(&mut self) {
        self.aca_allowed = true;
    }

    /// Takes out what [`OrderData::post_exec`] needs, for the call of a handler that may keep the command: the handler may
    /// complete it on another thread before its call returns. What the command keeps says that it is passed (or still
    /// HEAD OF QUEUE, or to be passed when done: then the detached ticket does nothing).
    #[inline]
    pub fn detach(&mut self) -> Self {
        if self.stage != Stage::Numbered || self.inc_on_done {
            return Self::default();
        }
        self.stage = Stage::Passed;
        Self {
            sn: self.sn,
            stage: Stage::Numbered,
            ..Self::default()
        }
    }

    /// Undoes [`Self::detach`]: the handler gave the command back without executing it.
    #[inline]
    pub fn reattach(&mut self, mut detached: Self) {
        if std::mem::take(&mut detached.stage) == Stage::Numbered {
            debug_assert!(self.stage == Stage::Passed && self.sn == detached.sn);
            self.stage = Stage::Numbered;
        }
    }

    /// Whether nothing of the command is accounted (any more): it may be recycled.
    #[inline]
    pub fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Free | Stage::Passed)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// `set_sn` was not called.
    #[default]
    Free,
    /// Counts in the run of its `sn`.
    Numbered,
    /// Counts as HEAD OF QUEUE.
    HeadOfQueue,
    /// Counts nowhere: passed, or with an attribute that does not count.
    Passed,
}

/// Answer of [`OrderData::check_sn`].
#[derive(Debug)]
#[must_use = "the command has to go on, unless it was deferred"]
pub enum CheckSn<T> {
    /// It is the command's turn.
    Proceed(T),
    /// The engine keeps the command; it comes back as [`Released`], or through [`OrderData::take_deferred`].
    Deferred,
    /// It would have to wait, but it is aborted: finish it without execution (and [`OrderData::skip`] it).
    Aborted(T),
    /// It ran into an ACA whose QErr setting says to abort it: abort it and finish it without execution.
    AbortForQErr {
        /// The command.
        item: T,
        /// Another nexus is the cause, so TASK ABORTED status may be due (TAS).
        by_other_nexus: bool,
    },
}

/// What of a device decides how its commands are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrderPolicy {
    /// QUEUE ALGORITHM MODIFIER is 0: everything in the order of arrival (SPC-4 7.5.8).
    #[doc(alias = "SCST_QUEUE_ALG_0_RESTRICTED_REORDER")]
    pub restricted_reorder: bool,
    /// The handler keeps the order of what it is handed.
    pub has_own_order_mgmt: bool,
}

impl OrderPolicy {
    /// The attribute to order a command by: opcodes that are implicitly HEAD OF QUEUE become so when the initiator gave no other
    /// attribute than SIMPLE, UNTAGGED is SIMPLE, and restricted reordering makes everything else ORDERED.
    pub fn queue_type(self, q: QueueType, implicit_hq: bool) -> QueueType {
        let q = match q {
            QueueType::Simple if implicit_hq => QueueType::HeadOfQueue,
            QueueType::Untagged => QueueType::Simple,
            q => q,
        };
        match q {
            QueueType::HeadOfQueue | QueueType::Aca => q,
            _ if self.restricted_reorder => QueueType::Ordered,
            q => q,
        }
    }

    /// Whether the serial number of a command (with the attribute that the initiator gave) advances only when the
    /// command is complete. `naca` is the NACA bit of its CDB.
    pub fn inc_expected_on_done(self, q: QueueType, naca: bool) -> bool {
        naca || (!self.has_own_order_mgmt && (self.restricted_reorder || q == QueueType::Ordered))
    }
}

/// The word of the fast mode: SLOW bit, serial number of the only run, its count.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    const SLOW: u64 = 1 << 63;
    const SN_SHIFT: u32 = 31;
    /// More commands than fit into memory; what is beyond goes through the lock.
    const MAX_COUNT: u32 = (1 << Self::SN_SHIFT) - 1;

    const fn new(sn: u32, count: u32) -> Self {
        Self(((sn as u64) << Self::SN_SHIFT) | count as u64)
    }

    const fn is_slow(self) -> bool {
        self.0 & Self::SLOW != 0
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "32 bits of the word, by construction"
    )]
    const fn sn(self) -> u32 {
        (self.0 >> Self::SN_SHIFT) as u32
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to 31 bits")]
    const fn count(self) -> u32 {
        (self.0 & Self::MAX_COUNT as u64) as u32
    }
}

/// What the lock protects; meaningful while the word is SLOW.
#[derive(Debug)]
struct State<T> {
    /// The runs, from the expected one on, with the items that wait for their turn.
    runs: Runs<T>,
    /// Items without a serial number that an ACA holds, and complete ones whose response it holds.
    #[doc(alias = "deferred_cmd_list")]
    aca_held: Released<T>,
    hq_cmd_count: u32,
    aca: Option<Aca>,
}

/// A task set's serial numbers, parked commands and ACA.
///
/// Context: every method may be called on any thread, and none sleeps or allocates in the fast mode.
///
/// # Examples
///
/// ```
/// use scst_core::consts::QueueType;
/// use scst_core::order::{CheckSn, HasTicket, OrderData, OrderTicket};
/// use scst_core::parking::Abortable;
///
/// struct Cmd(&'static str, OrderTicket);
/// impl Abortable for Cmd {
///     fn is_aborted(&self) -> bool {
///         false
///     }
/// }
/// impl HasTicket for Cmd {
///     fn ticket(&mut self) -> &mut OrderTicket {
///         &mut self.1
///     }
/// }
///
/// let order = OrderData::new();
/// let mut a = Cmd("a", OrderTicket::default());
/// let mut b = Cmd("b", OrderTicket::default());
/// order.set_sn(&mut a.1, QueueType::Simple, false);
/// order.set_sn(&mut b.1, QueueType::Ordered, true);
/// // `b` has all its data first, but `a` is older.
/// assert!(matches!(order.check_sn(b), CheckSn::Deferred));
/// let CheckSn::Proceed(mut a) = order.check_sn(a) else { panic!("nothing is before a") };
/// // a goes to the handler, and then:
/// let mut b = order.post_exec(&mut a.1).pop().expect("b is the next");
/// assert_eq!(b.0, "b");
/// assert!(order.post_exec(&mut b.1).is_empty()); // counts at completion only
/// assert!(order.exec_done(&mut b.1).is_empty());
/// assert!(order.is_idle());
/// ```
#[doc(alias = "scst_order_data")]
#[derive(Debug)]
pub struct OrderData<T> {
    word: AtomicU64,
    #[doc(alias = "sn_lock")]
    state: SpinLock<State<T>>,
}

/// First serial number of a task set: near the wrap, so that wrapping is an everyday event (as in SCST).
const FIRST_SN: u32 = u32::MAX - 19;

impl<T> Default for OrderData<T> {
    fn default() -> Self {
        Self::new()
    }
}

// The fast paths. Memory order: a command's `post_exec` is a release, and the SLOW bit is set by an acquire, so whoever
// finds a run passed sees what its commands did before they were passed. The lock orders the rest.
impl<T> OrderData<T> {
    /// An empty task set. Does not allocate.
    #[doc(alias = "scst_init_order_data")]
    pub const fn new() -> Self {
        Self {
            word: AtomicU64::new(Word::new(FIRST_SN, 0).0),
            state: SpinLock::new(State {
                runs: Runs::new(),
                aca_held: Released::new(),
                hq_cmd_count: 0,
                aca: None,
            }),
        }
    }

    /// Gives the command its place in the order; commands get theirs in the order of these calls. `q` is the attribute of
    /// [`OrderPolicy::queue_type`], `inc_expected_on_done` as of [`OrderPolicy::inc_expected_on_done`]. ACA commands
    /// get no place, HEAD OF QUEUE commands only hold back the others.
    #[doc(alias = "scst_cmd_set_sn")]
    #[inline]
    pub fn set_sn(&self, ticket: &mut OrderTicket, q: QueueType, inc_expected_on_done: bool) {
        debug_assert!(
            ticket.is_settled(),
            "a command has one place in one task set"
        );
        ticket.inc_on_done = inc_expected_on_done;
        if matches!(q, QueueType::Simple | QueueType::Untagged) {
            let mut w = Word(self.word.load(Ordering::Relaxed));
            while !w.is_slow() && w.count() < Word::MAX_COUNT {
                race_point();
                match self.word.compare_exchange_weak(
                    w.0,
                    w.0 + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        ticket.sn = w.sn();
                        ticket.stage = Stage::Numbered;
                        return;
                    }
                    Err(now) => w = Word(now),
                }
            }
        }
        self.set_sn_slow(ticket, q);
    }

    #[cold]
    fn set_sn_slow(&self, ticket: &mut OrderTicket, q: QueueType) {
        let mut st = self.state.lock();
        self.enter_slow(&mut st);
        match q {
            QueueType::Simple | QueueType::Untagged => {
                ticket.sn = st.runs.add_simple();
                ticket.stage = Stage::Numbered;
            }
            QueueType::Ordered => {
                ticket.sn = st.runs.add_ordered();
                ticket.stage = Stage::Numbered;
            }
            QueueType::HeadOfQueue => {
                st.hq_cmd_count += 1;
                ticket.stage = Stage::HeadOfQueue;
            }
            QueueType::Aca => ticket.stage = Stage::Passed,
        }
        self.try_leave_slow(&mut st);
    }

    /// The command goes to execution: call it when the handler has been called (it may be complete already). For a
    /// command marked `inc_expected_on_done`, and for one that is passed already, this does nothing.
    #[doc(alias = "scst_post_exec_sn")]
    #[inline]
    pub fn post_exec(&self, ticket: &mut OrderTicket) -> Released<T> {
        if ticket.inc_on_done {
            Released::new()
        } else {
            self.pass(ticket)
        }
    }

    /// The command was executed and is complete: passes what waits for that. Does nothing for a command that is
    /// passed already.
    #[doc(alias = "scst_inc_expected_sn")]
    #[inline]
    pub fn exec_done(&self, ticket: &mut OrderTicket) -> Released<T> {
        self.pass(ticket)
    }

    /// The command ends without having been executed (aborted, failed, refused): it must not hold the others. Does
    /// nothing for a command that is passed already, or that has no number.
    #[doc(alias = "scst_unblock_deferred")]
    #[inline]
    pub fn skip(&self, ticket: &mut OrderTicket) -> Released<T> {
        self.pass(ticket)
    }

    #[inline]
    fn pass(&self, ticket: &mut OrderTicket) -> Released<T> {
        if ticket.stage != Stage::Numbered {
            return Released::new();
        }
        ticket.stage = Stage::Passed;
        let mut w = Word(self.word.load(Ordering::Relaxed));
        while !w.is_slow() {
            race_point();
            debug_assert!(
                w.sn() == ticket.sn && w.count() > 0,
                "a passed run has no commands"
            );
            match self.word.compare_exchange_weak(
                w.0,
                w.0 - 1,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Released::new(),
                Err(now) => w = Word(now),
            }
        }
        self.pass_slow(ticket.sn)
    }

    #[cold]
    fn pass_slow(&self, sn: u32) -> Released<T> {
        let mut st = self.state.lock();
        self.enter_slow(&mut st);
        st.runs.pass(sn);
        let released = st.collect();
        self.try_leave_slow(&mut st);
        released
    }

    /// The response of the command is about to go out (or will not): a HEAD OF QUEUE command stops holding the others.
    /// Does nothing for other commands, or the second time.
    #[doc(alias = "scst_on_hq_cmd_response")]
    #[inline]
    pub fn on_hq_done(&self, ticket: &mut OrderTicket) -> Released<T> {
        if ticket.stage == Stage::HeadOfQueue {
            self.hq_done_slow(ticket)
        } else {
            Released::new()
        }
    }

    #[cold]
    fn hq_done_slow(&self, ticket: &mut OrderTicket) -> Released<T> {
        ticket.stage = Stage::Passed;
        let mut st = self.state.lock();
        self.enter_slow(&mut st);
        debug_assert!(st.hq_cmd_count > 0, "counted at set_sn");
        st.hq_cmd_count = st.hq_cmd_count.saturating_sub(1);
        let released = st.collect();
        self.try_leave_slow(&mut st);
        released
    }

    /// Settles whatever is still accounted for the command: [`Self::on_hq_done`] or [`Self::skip`], or nothing when it
    /// went its ordinary way. For the place that every command passes on its way out (PRE_XMIT_RESP1).
    #[inline]
    pub fn finish(&self, ticket: &mut OrderTicket) -> Released<T> {
        match ticket.stage {
            Stage::Free | Stage::Passed => Released::new(),
            Stage::Numbered => self.pass(ticket),
            Stage::HeadOfQueue => self.hq_done_slow(ticket),
        }
    }

    /// Takes the state out of the word, unless that has been done already. Under the lock.
    fn enter_slow(&self, st: &mut State<T>) {
        let w = Word(self.word.fetch_or(Word::SLOW, Ordering::Acquire));
        if !w.is_slow() {
            st.runs.restore(w.sn(), w.count());
        }
    }

    /// Puts the state back into the word if it fits. Under the lock.
    fn try_leave_slow(&self, st: &mut State<T>) {
        if st.hq_cmd_count != 0 || st.aca.is_some() || !st.aca_held.is_empty() {
            return;
        }
        if let Some((sn, count)) = st.runs.as_single()
            && count < Word::MAX_COUNT
        {
            st.runs.clear();
            self.word.store(Word::new(sn, count).0, Ordering::Release);
        }
    }

    /// Whether no command has a place here, none is parked, and there is no ACA.
    pub fn is_idle(&self) -> bool {
        let w = Word(self.word.load(Ordering::Acquire));
        if !w.is_slow() {
            return w.count() == 0;
        }
        // SLOW with nothing to do is put back into the word at once, so what is here is not idle.
        false
    }

    /// Whether there may be an ACA: one load, for the hot path.
    #[inline]
    pub fn may_have_aca(&self) -> bool {
        Word(self.word.load(Ordering::Acquire)).is_slow()
    }

    /// HEAD OF QUEUE commands under way.
    pub fn hq_cmd_count(&self) -> u32 {
        if Word(self.word.load(Ordering::Acquire)).is_slow() {
            self.state.lock().hq_cmd_count
        } else {
            0
        }
    }

    /// Commands parked here.
    #[doc(alias = "def_cmd_count")]
    pub fn deferred_count(&self) -> usize {
        if !Word(self.word.load(Ordering::Acquire)).is_slow() {
            return 0;
        }
        let st = self.state.lock();
        st.runs.parked() + st.aca_held.len()
    }
}

impl<T: HasTicket> OrderData<T> {
    /// Asks for the command's turn, just before execution. The command must have been through [`Self::set_sn`].
    ///
    /// HEAD OF QUEUE and ACA commands may proceed; under an ACA only what [`Self::aca_check`] allowed may.
    #[doc(alias = "scst_exec_check_sn")]
    #[inline]
    pub fn check_sn(&self, mut item: T) -> CheckSn<T> {
        let w = Word(self.word.load(Ordering::Acquire));
        if !w.is_slow() {
            debug_assert!(item.ticket().stage != Stage::Free, "set_sn comes first");
            return CheckSn::Proceed(item);
        }
        self.check_sn_slow(item)
    }

    #[cold]
    fn check_sn_slow(&self, mut item: T) -> CheckSn<T> {
        let (stage, sn, aca_allowed) = {
            let t = item.ticket();
            (t.stage, t.sn, t.aca_allowed)
        };
        let mut st = self.state.lock();
        if !Word(self.word.load(Ordering::Relaxed)).is_slow() {
            return CheckSn::Proceed(item);
        }
        let held_by_aca = st.aca.is_some() && !aca_allowed;
        let its_turn = match stage {
            Stage::Numbered => st.hq_cmd_count == 0 && st.runs.is_expected(sn),
            Stage::Free | Stage::HeadOfQueue | Stage::Passed => true,
        };
        // Commands let through under an ACA precede the task set, which stands still (SAM-5 5.9.3).
        if (st.aca.is_some() && aca_allowed) || (its_turn && !held_by_aca) {
            return CheckSn::Proceed(item);
        }
        if item.is_aborted() {
            return CheckSn::Aborted(item);
        }
        if held_by_aca {
            let nexus = item.ticket().nexus;
            if let Some(by_other_nexus) = st.aca.as_ref().and_then(|a| a.aborts(nexus)) {
                return CheckSn::AbortForQErr {
                    item,
                    by_other_nexus,
                };
            }
        }
        if stage == Stage::Numbered {
            if let Err(item) = st.runs.park(sn, item) {
                debug_assert!(false, "a numbered command counts in its run");
                return CheckSn::Proceed(item);
            }
        } else {
            st.aca_held.push(item);
        }
        CheckSn::Deferred
    }

    /// Takes back the parked commands for which `pred` holds, for task management. The caller has marked them as
    /// aborted before, finishes them without execution and settles them ([`Self::finish`]).
    ///
    /// Context: any; `pred` runs under the lock.
    #[doc(alias = "__scst_unblock_aborted_cmds")]
    pub fn take_deferred(&self, mut pred: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        // The lock is taken in any case: it orders this with a `check_sn` that did not see the item aborted.
        let mut st = self.state.lock();
        st.aca_held.drain_if(&mut pred, &mut out);
        st.runs.take_parked(&mut pred, &mut out);
        if !out.is_empty() {
            self.try_leave_slow(&mut st);
        }
        out
    }
}

impl<T> State<T> {
    /// Everything whose turn it is now.
    fn collect(&mut self) -> Released<T> {
        if self.aca.is_some() {
            return Released::new();
        }
        let mut released = std::mem::take(&mut self.aca_held);
        if self.hq_cmd_count == 0 {
            released.append(self.runs.release_expected());
        }
        released
    }
}
