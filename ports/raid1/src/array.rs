//! A mirror: its state, and the way of bios through it.

use crate::changed::Changed;
use crate::leg::Candidate;
use crate::meta::{LegState, MAX_LEGS, Super};
use crate::order::{Order, Place};
use crate::spec::Spec;
use kshim::block::{Bio, BioOp, BlockDevice, QueueLimits, ReqFlags, SECTOR_SIZE, SubmittedBio};
use kshim::kthread;
use kshim::prelude::*;
use kshim::scatterlist::{SGTable, SharedTable};
use kshim::sync::{Completion, SpinLock};
use kshim::time::Instant;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A working array.
#[doc(alias = "r1conf")]
pub(crate) struct Array {
    pub(crate) spec: Spec,
    pub(crate) state: SpinLock<State>,
    pub(crate) changed: Changed,
    me: Weak<Array>,
}

/// A part of the disk, the unit of the bitmap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    /// Writes between their admission and their end.
    pub(crate) inflight: u32,
    /// Legs (bits) that lack data here.
    pub(crate) stale: u8,
    /// The bit is on the disks.
    pub(crate) dirty: bool,
    /// The bit is to be on the disks.
    pub(crate) want: bool,
    /// Is being copied: no write gets in.
    pub(crate) locked: bool,
    /// Cannot be copied.
    pub(crate) skip: bool,
    /// When a write ended.
    pub(crate) touched: Instant,
}

impl Region {
    pub(crate) fn new(dirty: bool, now: Instant) -> Region {
        Region {
            inflight: 0,
            stale: 0,
            dirty,
            want: false,
            locked: false,
            skip: false,
            touched: now,
        }
    }
}

/// A leg at run time.
#[derive(Default)]
#[doc(alias = "md_rdev")]
pub(crate) struct Leg {
    pub(crate) path: String,
    pub(crate) bdev: Option<Arc<BlockDevice>>,
    /// Reads that it works on.
    pub(crate) pending: u32,
    /// Where its last read ended.
    pub(crate) head: u64,
    pub(crate) read_errors: u32,
    /// Had all that was acknowledged when the array was put together.
    pub(crate) equal: bool,
    pub(crate) last_try: Option<Instant>,
    /// A thread tries to get it back.
    pub(crate) trying: bool,
    /// A thread closes it.
    pub(crate) closing: bool,
}

/// A bio that changes something, or a flush.
pub(crate) struct Write {
    bio: SubmittedBio,
    pub(crate) regions: Range<usize>,
    place: Place,
}

/// A write that did not reach all legs.
pub(crate) struct Degraded {
    pub(crate) write: Write,
    pub(crate) failed: Vec<(usize, Error)>,
    /// Legs (bits) that it has reached.
    pub(crate) reached: u8,
}

/// What the administrator wants.
pub(crate) enum Wish {
    Add(String),
    Fail(usize),
    Remove(usize),
    Readd(usize),
    /// What is idle shall be clean at once.
    #[cfg(test)]
    Clean,
}

/// A wish, and who waits for its result.
pub(crate) struct Command {
    pub(crate) wish: Wish,
    /// The leg to add or to get back.
    pub(crate) candidate: Option<Candidate>,
    pub(crate) result: Arc<(SpinLock<Result>, Completion)>,
}

pub(crate) struct State {
    /// As it was written last; `index` has no meaning.
    pub(crate) meta: Super,
    pub(crate) legs: Vec<Leg>,
    pub(crate) regions: Vec<Region>,
    pub(crate) limits: QueueLimits,
    /// All writes, and those that wait for others that they overlap with.
    pub(crate) order: Order<Write>,
    /// Those that do so no more.
    pub(crate) ready: VecDeque<Write>,
    /// Somebody lets these in.
    pub(crate) releasing: bool,
    /// Writes whose regions are not dirty yet.
    pub(crate) dirtying: Vec<Write>,
    /// Writes to regions that are being copied.
    pub(crate) waiting: Vec<Write>,
    pub(crate) degraded: Vec<Degraded>,
    /// Legs that failed otherwise.
    pub(crate) failures: Vec<(usize, Error)>,
    /// Regions that a leg could not read.
    pub(crate) repairs: Vec<(usize, Range<usize>)>,
    pub(crate) commands: Vec<Command>,
    /// Bios that have not ended.
    pub(crate) bios: usize,
    /// Threads that are giving something to legs.
    pub(crate) users: usize,
    /// The last user has closed it.
    pub(crate) closing: bool,
    /// Threads that run.
    pub(crate) threads: usize,
    /// A leg has failed, which the superblocks don't say yet: nothing may be acknowledged that it lacks.
    pub(crate) super_pending: bool,
    /// The superblock cannot be written: nothing is acknowledged any more.
    pub(crate) broken: bool,
    pub(crate) speed_min: u64,
    pub(crate) speed_max: u64,
    pub(crate) last_io: Option<Instant>,
    /// Regions that were copied.
    pub(crate) resynced: u64,
}

impl State {
    pub(crate) fn leg_state(&self, n: usize) -> LegState {
        self.meta.slots.get(n).map_or(LegState::Absent, |s| s.state)
    }

    pub(crate) fn set_leg_state(&mut self, n: usize, state: LegState) {
        if let Some(slot) = self.meta.slots.get_mut(n) {
            slot.state = state;
        }
    }

    /// The device of a leg that is written to.
    pub(crate) fn active(&self, n: usize) -> Option<&Arc<BlockDevice>> {
        match self.leg_state(n) {
            LegState::InSync | LegState::Rebuilding => self.legs.get(n)?.bdev.as_ref(),
            LegState::Absent | LegState::Failed => None,
        }
    }

    /// All of them.
    pub(crate) fn actives(&self) -> Vec<(usize, Arc<BlockDevice>)> {
        let legs = (0..self.legs.len()).filter_map(|n| self.active(n).map(|b| (n, Arc::clone(b))));
        legs.collect()
    }

    pub(crate) fn active_mask(&self) -> u8 {
        (0..self.legs.len())
            .filter(|&n| self.active(n).is_some())
            .fold(0, |m, n| m | bit(n))
    }

    /// The legs (bits) that are in sync.
    pub(crate) fn in_sync_mask(&self) -> u8 {
        let legs = (0..self.legs.len()).filter(|&n| self.leg_state(n) == LegState::InSync);
        legs.filter(|&n| self.active(n).is_some())
            .fold(0, |m, n| m | bit(n))
    }

    /// Legs in sync, but for `but`.
    pub(crate) fn in_sync_but(&self, but: Option<usize>) -> usize {
        let mask = self.in_sync_mask() & !but.map_or(0, bit);
        // At most MAX_LEGS.
        mask.count_ones() as usize
    }

    /// Whether a leg has the data of these regions.
    fn is_fresh(&self, n: usize, regions: &Range<usize>) -> bool {
        let regions = self.regions.get(regions.clone()).unwrap_or_default();
        self.active(n).is_some() && regions.iter().all(|r| r.stale & bit(n) == 0)
    }

    /// The leg to read from: in the order of how many reads it works on, then of how near its last one was. When those that
    /// surely have the data have failed, one in sync: it has all that was acknowledged, though perhaps not the version of an
    /// unacknowledged write that others have, or a sector that it could not read before.
    #[doc(alias = "read_balance")]
    fn choose(&self, tried: u8, regions: &Range<usize>, pos: u64) -> Option<usize> {
        let legs = || (0..self.legs.len()).filter(|&n| tried & bit(n) == 0);
        let load = |n: &usize| {
            let leg = self.legs.get(*n);
            leg.map(|l| (l.pending, l.head.abs_diff(pos)))
        };
        let fresh = legs()
            .filter(|&n| self.is_fresh(n, regions))
            .min_by_key(load);
        let in_sync = self.in_sync_mask();
        fresh.or_else(|| legs().filter(|&n| in_sync & bit(n) != 0).min_by_key(load))
    }

    /// Regions that some leg lacks.
    pub(crate) fn stale_regions(&self) -> usize {
        let active = self.active_mask();
        self.regions
            .iter()
            .filter(|r| r.stale & active != 0)
            .count()
    }
}

/// The bit of a leg in a mask.
pub(crate) fn bit(n: usize) -> u8 {
    // A leg has a number below MAX_LEGS.
    1 << (n % MAX_LEGS)
}

/// Somebody has legs in his hands: they are not closed meanwhile.
struct Using<'a>(&'a Array);

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let mut st = self.0.state.lock();
        st.users = st.users.saturating_sub(1);
        if st.closing {
            self.0.changed.notify_all();
        }
    }
}

/// A write at its legs.
struct Fan {
    array: Arc<Array>,
    write: SpinLock<Option<Write>>,
    shared: SpinLock<Option<SharedTable>>,
    left: AtomicUsize,
    results: SpinLock<Vec<(usize, Result)>>,
}

impl Array {
    pub(crate) fn new(spec: Spec, state: State) -> Arc<Array> {
        Arc::new_cyclic(|me| Array {
            spec,
            state: SpinLock::new(state),
            changed: Changed::default(),
            me: Weak::clone(me),
        })
    }

    /// A bio comes in.
    #[doc(alias = "raid1_make_request")]
    pub(crate) fn submit(&self, bio: SubmittedBio) {
        let mut st = self.state.lock();
        if bio.op == BioOp::WriteZeroes && st.limits.max_write_zeroes_bytes == 0 {
            drop(st);
            return bio.complete(Err(EOPNOTSUPP));
        }
        let (from, len) = (bio.pos() / st.meta.region, bio.len as u64);
        let end = (bio.pos().saturating_add(len)).div_ceil(st.meta.region);
        // The bio is inside the disk, whose regions are at most MAX_REGIONS.
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let regions = if bio.op == BioOp::Flush || len == 0 {
            0..0
        } else {
            index(from)..index(end)
        };
        st.bios += 1;
        st.last_io = Some(Instant::now());
        if bio.op == BioOp::Read {
            drop(st);
            return self.read(bio, regions, 0, None);
        }
        let bytes = bio.pos()..bio.pos().saturating_add(len);
        let make = |place| Write {
            bio,
            regions,
            place,
        };
        let write = st.order.enter(bytes, make);
        drop(st);
        if let Some(write) = write {
            self.admit(write, true);
        }
    }

    /// A bio has ended.
    fn end(&self, bio: SubmittedBio, status: Result) {
        {
            let mut st = self.state.lock();
            st.bios = st.bios.saturating_sub(1);
            if st.closing {
                self.changed.notify_all();
            }
        }
        bio.complete(status);
    }

    /// Reads from a leg that was not tried.
    #[doc(alias = "raid1_read_request")]
    fn read(&self, mut bio: SubmittedBio, regions: Range<usize>, tried: u8, first: Option<Error>) {
        let (Some(array), chosen) = (self.me.upgrade(), self.start_read(&bio, &regions, tried))
        else {
            return self.end(bio, Err(EIO));
        };
        let Some((n, leg, offset)) = chosen else {
            return self.end(bio, Err(first.unwrap_or(EIO)));
        };
        let _using = Using(self);
        let sg = std::mem::take(&mut bio.sg);
        let sector = bio.sector.saturating_add(offset / SECTOR_SIZE);
        let (len, at) = (bio.len, bio.sg_at);
        let slot = SpinLock::new(Some((bio, regions)));
        let done = move |part: Bio, status: Result| {
            let owned = slot.lock().take();
            if let Some((mut bio, regions)) = owned {
                bio.sg = part.sg;
                array.read_done(n, bio, regions, tried, first, status);
            }
        };
        let part = Bio::new(BioOp::Read, sector, len, Arc::new(done));
        leg.submit_bio(part.with_sg(sg, at));
        drop(leg);
    }

    /// Chooses a leg and counts the read there.
    fn start_read(
        &self,
        bio: &SubmittedBio,
        regions: &Range<usize>,
        tried: u8,
    ) -> Option<(usize, Arc<BlockDevice>, u64)> {
        let mut st = self.state.lock();
        let n = st.choose(tried, regions, bio.pos())?;
        let offset = st.meta.data_offset;
        let leg = Arc::clone(st.active(n)?);
        st.users += 1;
        if let Some(l) = st.legs.get_mut(n) {
            l.pending += 1;
            l.head = bio.pos().saturating_add(bio.len as u64);
        }
        Some((n, leg, offset))
    }

    #[doc(alias = "raid1_end_read_request")]
    fn read_done(
        &self,
        n: usize,
        bio: SubmittedBio,
        regions: Range<usize>,
        tried: u8,
        first: Option<Error>,
        status: Result,
    ) {
        {
            let mut st = self.state.lock();
            if let Some(l) = st.legs.get_mut(n) {
                l.pending = l.pending.saturating_sub(1);
                l.read_errors += u32::from(status.is_err());
            }
            if status.is_err() {
                st.repairs.push((n, regions.clone()));
                self.changed.notify_all();
            }
        }
        match status {
            Ok(()) => self.end(bio, Ok(())),
            Err(e) => self.read(bio, regions, tried | bit(n), first.or(Some(e))),
        }
    }

    /// Lets a write in when its regions are dirty and none is being copied. `count`: it was not counted before.
    #[doc(alias = "wait_barrier")]
    pub(crate) fn admit(&self, write: Write, count: bool) {
        let mut st = self.state.lock();
        let Some(regions) = st.regions.get_mut(write.regions.clone()) else {
            drop(st);
            return self.end_write(write, Err(EIO));
        };
        if count && regions.iter().any(|r| r.locked) {
            st.waiting.push(write);
            return;
        }
        if count {
            regions.iter_mut().for_each(|r| r.inflight += 1);
        }
        if !regions.iter().all(|r| r.dirty) {
            st.dirtying.push(write);
            self.changed.notify_all();
            return;
        }
        drop(st);
        self.issue(write);
    }

    /// Sends a write to all legs.
    #[doc(alias = "raid1_write_request")]
    fn issue(&self, mut write: Write) {
        let (legs, offset, broken) = {
            let mut st = self.state.lock();
            st.users += 1;
            (st.actives(), st.meta.data_offset, st.broken)
        };
        let _using = Using(self);
        let Some(array) = self.me.upgrade().filter(|_| !legs.is_empty() && !broken) else {
            return self.end_write(write, Err(EIO));
        };
        let bio = &mut write.bio;
        let (op, len, at) = (bio.op, bio.len, bio.sg_at);
        let sector = match op {
            BioOp::Flush => 0,
            _ => bio.sector.saturating_add(offset / SECTOR_SIZE),
        };
        let flags = bio.flags - ReqFlags::NOWAIT;
        let shared = SharedTable::new(std::mem::take(&mut bio.sg));
        let tables: Result<Vec<SGTable>> = legs.iter().map(|_| shared.table()).collect();
        let fan = Arc::new(Fan {
            array,
            write: SpinLock::new(Some(write)),
            shared: SpinLock::new(Some(shared)),
            left: AtomicUsize::new(legs.len()),
            results: SpinLock::default(),
        });
        let Ok(tables) = tables else {
            // None of them was used.
            return fan.finish_with(|array, write, _| array.end_write(write, Err(ENOMEM)));
        };
        for ((n, leg), sg) in legs.into_iter().zip(tables) {
            let fan = Arc::clone(&fan);
            let done = move |part: Bio, status: Result| {
                // Its table, before the last one takes the bio's back.
                drop(part);
                fan.leg_done(n, status);
            };
            let part = Bio::new(op, sector, len, Arc::new(done));
            leg.submit_bio(part.with_sg(sg, at).with_flags(flags));
        }
    }

    /// A write is over: gives its regions back and completes it; those that waited for it go on.
    #[doc(alias = "close_write")]
    pub(crate) fn end_write(&self, write: Write, status: Result) {
        let Write {
            bio,
            regions,
            place,
        } = write;
        let release = {
            let mut st = self.state.lock();
            let now = Instant::now();
            for r in st.regions.get_mut(regions).unwrap_or_default() {
                r.inflight = r.inflight.saturating_sub(1);
                r.touched = now;
                if r.inflight == 0 && r.locked {
                    self.changed.notify_all();
                }
            }
            let State { order, ready, .. } = &mut *st;
            order.leave(place, |next| ready.push_back(next));
            !st.ready.is_empty() && !std::mem::replace(&mut st.releasing, true)
        };
        self.end(bio, status);
        if release {
            self.release();
        }
    }

    /// Lets in those that waited for others. One thread at a time: a leg may end a write at once, and so another one may be
    /// ready, but not as deep in the stack as there are such.
    fn release(&self) {
        loop {
            let next = {
                let mut st = self.state.lock();
                let next = st.ready.pop_front();
                st.releasing = next.is_some();
                next
            };
            match next {
                Some(write) => self.admit(write, true),
                None => return,
            }
        }
    }

    /// Has the daemon do something, and waits for it. Context: may sleep. A leg is opened here, which may take long: the
    /// daemon has writes to serve.
    pub(crate) fn command(&self, wish: Wish) -> Result {
        if matches!(wish, Wish::Add(_) | Wish::Readd(_)) {
            self.wait_closed();
        }
        let candidate = match &wish {
            Wish::Add(path) => Some(Candidate::open(path)?),
            Wish::Readd(n) => Some(Candidate::open(&self.failed_path(*n)?)?),
            Wish::Fail(_) | Wish::Remove(_) => None,
            #[cfg(test)]
            Wish::Clean => None,
        };
        let result = Arc::new((SpinLock::new(Ok(())), Completion::new()));
        let command = Command {
            wish,
            candidate,
            result: Arc::clone(&result),
        };
        {
            let mut st = self.state.lock();
            if st.closing {
                return Err(ENODEV);
            }
            st.commands.push(command);
        }
        self.changed.notify_all();
        result.1.wait_for_completion();
        let status = result.0.lock();
        *status
    }

    /// Waits until no leg is being closed, which could not be opened yet. Context: may sleep.
    fn wait_closed(&self) {
        let mut st = self.state.lock();
        while st.legs.iter().any(|l| l.closing) {
            self.changed.wait(&mut st, None);
        }
    }

    /// The path of a leg that has failed. Errors: `ENOENT`.
    fn failed_path(&self, n: usize) -> Result<String> {
        let st = self.state.lock();
        let failed = st.leg_state(n) == LegState::Failed;
        let leg = st.legs.get(n).filter(|_| failed).ok_or(ENOENT)?;
        Ok(leg.path.clone())
    }

    /// Tries to get a failed leg back, on a thread of its own.
    pub(crate) fn try_leg(&self, n: usize) {
        let Some(array) = self.me.upgrade() else {
            return;
        };
        // Closing waits for it.
        self.state.lock().threads += 1;
        let body = move |_: &kthread::Stop| {
            if let Err(e) = array.command(Wish::Readd(n)) {
                pr_debug!("raid1 {}: leg {n} is not back: {e}", array.spec.name);
            }
            array.tried(n);
        };
        match kthread::run("raid1_readd", body) {
            Ok(thread) => thread.detach(),
            Err(_) => self.tried(n),
        }
    }

    /// Closes a leg that has failed, on a thread of its own: with a server that is gone it may take long. `closing` is set.
    pub(crate) fn close_leg(&self, n: usize, leg: Arc<BlockDevice>) {
        let Some(array) = self.me.upgrade() else {
            return;
        };
        self.state.lock().threads += 1;
        let body = move |_: &kthread::Stop| {
            drop(leg);
            array.closed(n);
        };
        match kthread::run("raid1_close", body) {
            Ok(thread) => thread.detach(),
            // It was closed with the closure.
            Err(_) => self.closed(n),
        }
    }

    fn closed(&self, n: usize) {
        let mut st = self.state.lock();
        st.threads = st.threads.saturating_sub(1);
        if let Some(l) = st.legs.get_mut(n) {
            l.closing = false;
        }
        self.changed.notify_all();
    }

    fn tried(&self, n: usize) {
        let mut st = self.state.lock();
        st.threads = st.threads.saturating_sub(1);
        if let Some(l) = st.legs.get_mut(n) {
            l.trying = false;
        }
        self.changed.notify_all();
    }
}

impl Fan {
    fn leg_done(self: &Arc<Self>, n: usize, status: Result) {
        self.results.lock().push((n, status));
        // What each leg has put there is seen by the last.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish_with(|array, write, results| {
                let failed = |&(n, r): &(usize, Result)| r.err().map(|e| (n, e));
                let failed: Vec<(usize, Error)> = results.iter().filter_map(failed).collect();
                // A leg that failed before this was issued lacks it, too.
                if failed.is_empty() && !array.state.lock().super_pending {
                    return array.end_write(write, Ok(()));
                }
                let reached = results.iter().filter(|(_, r)| r.is_ok());
                let reached = reached.fold(0, |m, (n, _)| m | bit(*n));
                array.state.lock().degraded.push(Degraded {
                    write,
                    failed,
                    reached,
                });
                array.changed.notify_all();
            });
        }
    }

    /// Gives the bio its table back and goes on with it.
    fn finish_with(&self, go_on: impl FnOnce(&Array, Write, Vec<(usize, Result)>)) {
        let (write, shared) = (self.write.lock().take(), self.shared.lock().take());
        let (Some(mut write), Some(shared)) = (write, shared) else {
            return;
        };
        match shared.into_inner() {
            Ok(sg) => write.bio.sg = sg,
            Err(_) => pr_err!("BUG: a leg has kept the data of a write"),
        }
        go_on(
            &self.array,
            write,
            std::mem::take(&mut *self.results.lock()),
        );
    }
}
