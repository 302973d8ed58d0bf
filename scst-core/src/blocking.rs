//! Device blocking: which commands may be on a device at the same time.
//!
//! Most commands may run beside each other. A *serialized* one lets no other onto the device while it runs, a *strictly
//! serialized* one besides waits until it is alone, and management can block the device from outside ([`DevBlock::block`]:
//! resize, suspend, the `block` attribute) and learn when it is drained. Who may not enter is parked, and comes back as
//! [`Released`] from the call that made way, in the order of arrival (HEAD OF QUEUE commands first), *already entered*:
//! there is no second check, so none can be overtaken.
//!
//! DIFFERS: SCST puts released commands through the check again, where they may queue behind newer ones.
//!
//! # The hot path, and why it is right
//!
//! An ordinary command takes no lock. It counts itself in its thread's slot of a [`PercpuCounter`] and then looks at one
//! flag, `blocked`; on its way out it takes itself off the count and looks at the flag again. Whoever wants more works
//! under the lock, sets the flag first and looks at the counters second. All four (count, look; set flag, sum) are
//! sequentially consistent, so there is one order of them all (S), and:
//!
//! * *Nobody slips in.* A command that did not see the flag loaded it before it was set (in S), so it had counted itself
//!   before that, and every sum taken after the flag was set includes it.
//! * *The sum cannot be too small.* Commands may leave on another thread than they entered on, and the slots are read one
//!   after the other. What a sum could miss is an increment that comes after its slot was read while the
//!   matching decrement, in a slot read later, is seen. But increments after the flag was set come from commands that see the
//!   flag: they take the increment back themselves, on the same thread and thus in the same slot, or are let in under the
//!   lock, which who sums holds. So a sum of 0 means drained.
//! * *Nobody waits for ever.* A sum may be too large: by a command that has counted itself and is about to see the flag, or
//!   one that has not left yet. The former then takes the lock and looks again whether the device is drained. The
//!   latter, when it leaves, either sees the flag, takes the lock and looks; or has loaded the flag
//!   before it was set, thus had decremented before that, and is not in the sum.
//!
//! The flag is set exactly while somebody is parked, serialized, atomic, or blocking from outside.
//!
//! # SCSI atomic commands
//!
//! A COMPARE AND WRITE ([`Class::Atomic`]) may not be on the device together with commands that conflict with its
//! [`Claim`]; with all others it may. While one is on the device or waits, the flag is set, everybody comes by the
//! lock, and who enters is *listed* with its claim in [`crate::overlap`] instead of being counted. Who conflicts
//! with an earlier one waits there, after it has had its turn in the queue.
//!
//! Of commands that were let in before by the fast path nobody knows the blocks: an atomic command waits until none of those is
//! left, that is, until the count is 0 (by the argument above; it then stays 0 as long as the flag is set, but for commands that are
//! aborted). That is a matter of those that happen to be on the device when the first atomic command comes. Commands
//! that may stay for long ([`Class::Listed`]) are always listed, so that nobody has to wait for them without need.
//!
//! # Locks
//!
//! `dev_lock`'s part for blocking (inside) nests in nothing and calls nothing but [`Abortable::is_aborted`] and the
//! caller's predicate. Drain callbacks run after it is dropped.
//!
//! C source: `scst/src/scst_targ.c` (`scst_do_check_blocked_dev`, `__scst_check_unblock_dev`),
//! `scst/src/scst_lib.c` (`__scst_check_blocked_dev`, `scst_unblock_dev`, `scst_ext_block_dev`)

#[cfg(test)]
mod tests;

use crate::overlap::{Claim, EntryId, Overlap};
use crate::parking::{Abortable, Released, race_point};
use kshim::might_sleep;
use kshim::percpu::PercpuCounter;
use kshim::sync::Completion;
use kshim::sync::SpinLock;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// How a command wants the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Beside others.
    #[default]
    Normal,
    /// Nobody enters while it runs; who is inside goes on.
    #[doc(alias = "SCST_SERIALIZED")]
    Serialized,
    /// Alone: waits until the device is drained, and nobody enters meanwhile.
    #[doc(alias = "SCST_STRICTLY_SERIALIZED")]
    StrictlySerialized,
    /// Beside others, and may be there for long: [`HasBlockTicket::claim`] says what it touches.
    Listed,
    /// Beside others that touch other blocks: [`HasBlockTicket::claim`] is [`Claim::Atomic`].
    #[doc(alias = "SCST_SCSI_ATOMIC")]
    Atomic,
    /// Past all this, and not counted: internal commands of one that is on the device already.
    #[doc(alias = "bypass_blocking")]
    Bypass,
}

/// Where a command queues that may not enter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Behind the others.
    #[default]
    Tail,
    /// Before the others: HEAD OF QUEUE commands.
    Head,
}

/// What the engine notes in a command; [`Default`] is a command that is not on the device.
#[derive(Debug, Default)]
pub struct BlockTicket {
    class: Class,
    stage: Stage,
    /// Its entry among the listed commands; 0 for one that is counted.
    entry: EntryId,
    /// What it touches, from when it had to go by the lock until it is listed.
    claim: Option<Box<Claim>>,
}

impl BlockTicket {
    /// Whether the command is on the device, so that [`DevBlock::leave`] is due.
    #[doc(alias = "dec_on_dev_needed")]
    #[inline]
    pub fn is_on_device(&self) -> bool {
        matches!(self.stage, Stage::Counted | Stage::Holding)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Outside,
    Counted,
    /// Counted, and keeps others from entering.
    #[doc(alias = "unblock_dev")]
    Holding,
}

/// An item that can be parked here.
pub trait HasBlockTicket: Abortable {
    /// The item's ticket.
    fn block_ticket(&mut self) -> &mut BlockTicket;

    /// What the item touches of the device that it asks for. Called before the item may be parked, not under the lock.
    fn claim(&self) -> Claim {
        Claim::Nothing
    }
}

/// Answer of [`DevBlock::enter`].
#[derive(Debug)]
#[must_use = "the command has to go on, unless it was queued"]
pub enum Enter<T> {
    /// The command is on the device.
    Go(T),
    /// The engine keeps the command. `released` are others that may go now: an earlier command may have found the
    /// device not drained only because of this one's attempt.
    Queued {
        /// To be resumed.
        released: Released<T>,
    },
}

/// What [`DevBlock::take_blocked`] found.
#[derive(Debug)]
#[must_use]
pub struct TakenBlocked<T> {
    /// The commands asked for; they are outside.
    pub taken: Vec<T>,
    /// Commands that were parked behind them and have entered.
    pub released: Released<T>,
}

/// Called once when the device is drained, after [`DevBlock::block`].
///
/// Context: the thread whose command was the last to leave (it may be a reactor): must not sleep.
pub type DrainedFn = Box<dyn FnOnce() + Send>;

/// Blocking of one device.
///
/// Context: every method but [`DevBlock::block_and_drain`] may be called on any thread and does not sleep.
///
/// # Examples
///
/// ```
/// use scst_core::blocking::{BlockTicket, Class, DevBlock, Enter, HasBlockTicket, Place};
/// use scst_core::parking::Abortable;
///
/// struct Cmd(u32, BlockTicket);
/// impl Abortable for Cmd {
///     fn is_aborted(&self) -> bool {
///         false
///     }
/// }
/// impl HasBlockTicket for Cmd {
///     fn block_ticket(&mut self) -> &mut BlockTicket {
///         &mut self.1
///     }
/// }
///
/// let dev = DevBlock::new();
/// let reserve = Cmd(1, BlockTicket::default());
/// let Enter::Go(mut reserve) = dev.enter(reserve, Class::Serialized, Place::Tail) else {
///     panic!("the device is free")
/// };
/// let read = Cmd(2, BlockTicket::default());
/// assert!(matches!(dev.enter(read, Class::Normal, Place::Tail), Enter::Queued { .. }));
/// let mut read = dev.leave(&mut reserve.1).pop().expect("its turn now");
/// assert_eq!(read.0, 2);
/// assert!(dev.leave(&mut read.1).is_empty());
/// assert!(dev.is_idle());
/// ```
pub struct DevBlock<T> {
    /// Commands on the device that are not listed.
    #[doc(alias = "on_dev_cmd_count")]
    on_dev: PercpuCounter,
    /// Whether anything below is in the way: then the lock decides.
    blocked: AtomicBool,
    #[doc(alias = "dev_lock")]
    state: SpinLock<State<T>>,
}

struct State<T> {
    /// Who waits to enter.
    #[doc(alias = "blocked_cmd_list")]
    queue: VecDeque<T>,
    /// A strictly serialized command that is the next and waits for the device to be drained.
    #[doc(alias = "strictly_serialized_cmd_waiting")]
    strict: Option<T>,
    /// Listed commands: on the device, or waiting for earlier ones on the same blocks.
    #[doc(alias = "dev_exec_cmd_list")]
    listed: Overlap<T>,
    /// A serialized command is on the device.
    holding: bool,
    /// Blocks from outside.
    #[doc(alias = "ext_blocks_cnt")]
    ext_blocks: u32,
    /// Those of them that task management has set: not the operator's to end.
    #[doc(alias = "block_count")]
    own_blocks: u32,
    /// Unblocks that came before the device was drained; they count when it is.
    early_unblocks: u32,
    /// Who waits to hear that the device is drained.
    #[doc(alias = "ext_blockers_list")]
    on_drained: Vec<DrainedFn>,
}

impl<T> State<T> {
    /// Blocks from outside that are in effect.
    fn operator_blocks(&self) -> u32 {
        let others = self.early_unblocks.saturating_add(self.own_blocks);
        self.ext_blocks.saturating_sub(others)
    }
}

impl<T: HasBlockTicket> State<T> {
    /// From now on what the item touches counts.
    fn list(&mut self, mut item: T) {
        let claim = item.block_ticket().claim.take();
        self.listed.add(claim.map_or(Claim::Nothing, |c| *c), item);
    }
}

impl<T> std::fmt::Debug for DevBlock<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let st = self.state.lock();
        f.debug_struct("DevBlock")
            .field("on_dev", &self.on_dev.sum())
            .field("listed", &st.listed.inside())
            .field("overlapping", &st.listed.waiting())
            .field("queued", &st.queue.len())
            .field("strict_waiting", &st.strict.is_some())
            .field("holding", &st.holding)
            .field("ext_blocks", &st.ext_blocks)
            .finish_non_exhaustive()
    }
}

impl<T: HasBlockTicket> Default for DevBlock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: HasBlockTicket> DevBlock<T> {
    /// A device without commands.
    pub fn new() -> Self {
        Self {
            on_dev: PercpuCounter::new(),
            blocked: AtomicBool::new(false),
            state: SpinLock::new(State {
                queue: VecDeque::new(),
                strict: None,
                listed: Overlap::new(),
                holding: false,
                ext_blocks: 0,
                own_blocks: 0,
                early_unblocks: 0,
                on_drained: Vec::new(),
            }),
        }
    }

    /// Asks for the device. A command that is aborted is let in whatever is in the way (it will not be executed).
    #[doc(alias = "scst_check_blocked_dev")]
    #[inline]
    pub fn enter(&self, mut item: T, class: Class, place: Place) -> Enter<T> {
        let t = item.block_ticket();
        debug_assert!(!t.is_on_device(), "a command enters once");
        t.class = class;
        match class {
            Class::Bypass => return Enter::Go(item),
            Class::Normal => {
                self.on_dev.inc();
                race_point();
                if !self.blocked.load(Ordering::SeqCst) {
                    t.stage = Stage::Counted;
                    return Enter::Go(item);
                }
                self.on_dev.dec();
            }
            Class::Serialized | Class::StrictlySerialized | Class::Listed | Class::Atomic => {}
        }
        self.enter_slow(item, place)
    }

    #[cold]
    fn enter_slow(&self, mut item: T, place: Place) -> Enter<T> {
        let claim = Box::new(item.claim());
        let mut st = self.state.lock();
        if item.is_aborted() {
            self.count_in(item.block_ticket(), Stage::Counted);
            return Enter::Go(item);
        }
        item.block_ticket().claim = Some(claim);
        match place {
            Place::Tail => st.queue.push_back(item),
            Place::Head => st.queue.push_front(item),
        }
        let alone = st.queue.len() == 1 && st.strict.is_none() && st.listed.waiting() == 0;
        let (mut released, drained) = self.grant(&mut st);
        drop(st);
        for f in drained {
            f();
        }
        // Only the item itself can have been let in when nobody waited before it.
        match (alone, released.len()) {
            (true, 1) => released.pop().map_or(Enter::Queued { released }, Enter::Go),
            _ => Enter::Queued { released },
        }
    }

    /// The command leaves the device. Does nothing for one that is not on it (bypassed, taken from the queue, or left
    /// already).
    #[doc(alias = "scst_check_unblock_dev")]
    #[inline]
    pub fn leave(&self, ticket: &mut BlockTicket) -> Released<T> {
        match std::mem::take(&mut ticket.stage) {
            Stage::Outside => Released::new(),
            Stage::Counted if ticket.entry != 0 => self.leave_listed(ticket, false),
            Stage::Counted => {
                self.on_dev.dec();
                race_point();
                if self.blocked.load(Ordering::SeqCst) {
                    self.leave_slow(false)
                } else {
                    Released::new()
                }
            }
            Stage::Holding if ticket.entry != 0 => self.leave_listed(ticket, true),
            Stage::Holding => {
                self.on_dev.dec();
                self.leave_slow(true)
            }
        }
    }

    #[cold]
    fn leave_listed(&self, ticket: &mut BlockTicket, was_holding: bool) -> Released<T> {
        let mut st = self.state.lock();
        if was_holding {
            st.holding = false;
        }
        st.listed.remove(std::mem::take(&mut ticket.entry));
        self.grant_and_unlock(st)
    }

    #[cold]
    fn leave_slow(&self, was_holding: bool) -> Released<T> {
        let mut st = self.state.lock();
        if was_holding {
            st.holding = false;
        }
        self.grant_and_unlock(st)
    }

    /// Keeps commands from entering until the matching [`Self::unblock`]; nests. `on_drained` is called when no command is
    /// on the device: within this call if that is so already, else by the last one's `leave`.
    #[doc(alias = "scst_ext_block_dev")]
    pub fn block(&self, on_drained: Option<DrainedFn>) {
        let mut st = self.state.lock();
        st.ext_blocks += 1;
        self.blocked.store(true, Ordering::SeqCst);
        if let Some(f) = on_drained {
            if self.is_drained(&st) {
                drop(st);
                f();
            } else {
                st.on_drained.push(f);
            }
        }
    }

    /// [`Self::block`], and waits until no command is on the device.
    ///
    /// Context: may sleep; not from a command that is on the device itself.
    #[doc(alias = "scst_sync_ext_block_dev")]
    pub fn block_and_drain(&self) {
        might_sleep!();
        let drained = Arc::new(Completion::new());
        let tell = Arc::clone(&drained);
        self.block(Some(Box::new(move || tell.complete())));
        drained.wait_for_completion();
    }

    /// [`Self::block`] for task management, until the matching [`Self::unblock_own`].
    #[doc(alias = "scst_block_dev")]
    pub fn block_own(&self) {
        let mut st = self.state.lock();
        st.ext_blocks += 1;
        st.own_blocks += 1;
        self.blocked.store(true, Ordering::SeqCst);
    }

    /// Ends one [`Self::block_own`].
    #[doc(alias = "scst_unblock_dev")]
    pub fn unblock_own(&self) -> Released<T> {
        let mut st = self.state.lock();
        debug_assert!(st.own_blocks > 0, "unblock without block");
        st.own_blocks = st.own_blocks.saturating_sub(1);
        self.unblock_locked(st)
    }

    /// Ends one [`Self::block`]. If that is the last one and somebody still waits for the device to be drained, it takes
    /// effect when it is.
    #[doc(alias = "scst_ext_unblock_dev")]
    pub fn unblock(&self) -> Released<T> {
        self.unblock_locked(self.state.lock())
    }

    /// [`Self::unblock`], if there is a [`Self::block`] to be ended.
    pub fn try_unblock(&self) -> Option<Released<T>> {
        let st = self.state.lock();
        (st.operator_blocks() > 0).then(|| self.unblock_locked(st))
    }

    fn unblock_locked(&self, mut st: impl std::ops::DerefMut<Target = State<T>>) -> Released<T> {
        if st.ext_blocks <= st.early_unblocks {
            debug_assert!(false, "unblock without block");
            return Released::new();
        }
        if st.ext_blocks == st.early_unblocks + 1 && !st.on_drained.is_empty() {
            st.early_unblocks += 1;
        } else {
            st.ext_blocks -= 1;
        }
        self.grant_and_unlock(st)
    }

    /// Blocks from outside, and whether somebody still waits for the device to be drained. Context: any.
    #[doc(alias = "scst_dev_block_show")]
    pub fn ext_blocks(&self) -> (u32, bool) {
        let st = self.state.lock();
        (st.operator_blocks(), !st.on_drained.is_empty())
    }

    /// Takes parked commands out of the queue, for task management. The caller has marked them as aborted before and
    /// finishes them without execution.
    ///
    /// Context: any; `pred` runs under the lock.
    #[doc(alias = "__scst_unblock_aborted_cmds")]
    pub fn take_blocked(&self, mut pred: impl FnMut(&T) -> bool) -> TakenBlocked<T> {
        let mut st = self.state.lock();
        let mut taken = Vec::new();
        if let Some(item) = st.strict.take() {
            if pred(&item) {
                taken.push(item);
            } else {
                st.strict = Some(item);
            }
        }
        st.listed.take(&mut pred, &mut taken);
        for item in std::mem::take(&mut st.queue) {
            if pred(&item) {
                taken.push(item);
            } else {
                st.queue.push_back(item);
            }
        }
        TakenBlocked {
            taken,
            released: self.grant_and_unlock(st),
        }
    }

    /// Commands on the device: exact only while nothing moves.
    pub fn on_dev_count(&self) -> u64 {
        let listed = self.state.lock().listed.inside();
        let counted = usize::try_from(self.on_dev.sum()).unwrap_or(0);
        u64::try_from(counted.saturating_add(listed)).unwrap_or(u64::MAX)
    }

    /// Commands parked.
    pub fn blocked_count(&self) -> usize {
        let st = self.state.lock();
        st.queue.len() + usize::from(st.strict.is_some()) + st.listed.waiting()
    }

    /// Whether the device is blocked from outside.
    pub fn is_ext_blocked(&self) -> bool {
        self.state.lock().ext_blocks > 0
    }

    /// Whether no command is on the device or parked, and nobody blocks it.
    pub fn is_idle(&self) -> bool {
        let listed = self.state.lock().listed.inside();
        !self.blocked.load(Ordering::SeqCst) && self.on_dev.sum() == 0 && listed == 0
    }

    /// Whether no command is on the device. The flag must be set.
    fn is_drained(&self, st: &State<T>) -> bool {
        st.listed.inside() == 0 && self.no_counted()
    }

    /// Whether no command is on the device that is not listed. The flag must be set, and the lock held.
    fn no_counted(&self) -> bool {
        // The counter's slots come into being when threads first use them: this makes slots visible whose commands
        // did not see the flag.
        fence(Ordering::SeqCst);
        race_point();
        self.on_dev.sum() == 0
    }

    fn count_in(&self, ticket: &mut BlockTicket, stage: Stage) {
        self.on_dev.inc();
        ticket.stage = stage;
        ticket.claim = None;
    }

    fn grant_and_unlock(&self, mut st: impl std::ops::DerefMut<Target = State<T>>) -> Released<T> {
        let (released, drained) = self.grant(&mut st);
        drop(st);
        for f in drained {
            f();
        }
        released
    }

    /// Lets in whoever may enter now, and answers whom to tell that the device was drained. Under the lock.
    fn grant(&self, st: &mut State<T>) -> (Released<T>, Vec<DrainedFn>) {
        let mut released = Released::new();
        // Before any counter is looked at: see the module's docs.
        self.blocked.store(true, Ordering::SeqCst);
        let mut drained = Vec::new();
        if !st.on_drained.is_empty() && self.is_drained(st) {
            drained = std::mem::take(&mut st.on_drained);
            st.ext_blocks -= std::mem::take(&mut st.early_unblocks);
        }
        while !st.holding && st.ext_blocks == 0 {
            // Who waited for others on the same blocks is older than who is still in the queue.
            if let Some((entry, mut item)) = st.listed.next_ready(|| self.no_counted()) {
                let ticket = item.block_ticket();
                ticket.entry = entry;
                ticket.stage = Stage::Counted;
                if ticket.class == Class::Serialized {
                    ticket.stage = Stage::Holding;
                    st.holding = true;
                }
                released.push(item);
                continue;
            }
            let Some(mut item) = st.strict.take().or_else(|| st.queue.pop_front()) else {
                break;
            };
            let ticket = item.block_ticket();
            match ticket.class {
                Class::StrictlySerialized if st.listed.waiting() > 0 || !self.is_drained(st) => {
                    st.strict = Some(item);
                    break;
                }
                Class::StrictlySerialized => {
                    self.count_in(ticket, Stage::Holding);
                    st.holding = true;
                }
                Class::Listed | Class::Atomic => {
                    st.list(item);
                    continue;
                }
                Class::Serialized | Class::Normal | Class::Bypass if st.listed.has_atomics() => {
                    st.list(item);
                    continue;
                }
                Class::Serialized => {
                    self.count_in(ticket, Stage::Holding);
                    st.holding = true;
                }
                Class::Normal | Class::Bypass => self.count_in(ticket, Stage::Counted),
            }
            released.push(item);
        }
        let blocked = st.holding
            || st.ext_blocks > 0
            || st.strict.is_some()
            || !st.queue.is_empty()
            || st.listed.has_atomics()
            || st.listed.waiting() > 0;
        self.blocked.store(blocked, Ordering::SeqCst);
        (released, drained)
    }
}
