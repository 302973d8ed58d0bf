//! The thread of an array: the only one that writes superblocks and bitmaps.

use crate::array::{Array, Command, Degraded, State, Wish, Write, bit};
use crate::leg::{self, Candidate};
use crate::meta::{BITMAP_AT, LegState, MAX_LEGS, PAGE, PAGE_BITS, SlotMeta, encode_bitmap};
use kshim::block::BlockDevice;
use kshim::prelude::*;
use kshim::sys::rand;
use kshim::time::{Delta, Instant};
use std::collections::BTreeSet;
use std::ops::Range;

/// A leg with more read errors is failed.
#[doc(alias = "MD_DEFAULT_MAX_CORRECTED_READ_ERRORS")]
pub(crate) const MAX_READ_ERRORS: u32 = 20;

/// What there is to do.
struct Work {
    dirtying: Vec<Write>,
    degraded: Vec<Degraded>,
    failures: Vec<(usize, Error)>,
    repairs: Vec<(usize, Range<usize>)>,
    commands: Vec<Command>,
    last: bool,
}

impl Array {
    /// The life of the thread.
    #[doc(alias = "raid1d")]
    pub(crate) fn run_daemon(&self) {
        let mut next_clear = Instant::now() + self.spec.bitmap_delay;
        loop {
            let work = self.next_work(next_clear);
            let now = Instant::now();
            self.handle_failures(work.failures, work.degraded);
            self.handle_repairs(work.repairs);
            self.make_dirty(work.dirtying);
            for c in work.commands {
                *c.result.0.lock() = self.obey(c.wish, c.candidate);
                c.result.1.complete_all();
            }
            self.promote();
            if now >= next_clear || work.last {
                next_clear = now + self.spec.bitmap_delay;
                let age = if work.last {
                    Delta::ZERO
                } else {
                    self.spec.bitmap_delay
                };
                self.clear_dirty(age);
                self.retry_unreadable();
                if !work.last {
                    self.readd_failed(now);
                }
            }
            if work.last {
                return self.close_legs();
            }
        }
    }

    /// Waits for something to do.
    fn next_work(&self, next_clear: Instant) -> Work {
        let mut st = self.state.lock();
        loop {
            // The other thread may still have something to tell.
            let last = st.closing && st.bios == 0 && st.users == 0 && st.threads == 1;
            let work = Work {
                dirtying: std::mem::take(&mut st.dirtying),
                degraded: std::mem::take(&mut st.degraded),
                failures: std::mem::take(&mut st.failures),
                repairs: std::mem::take(&mut st.repairs),
                commands: std::mem::take(&mut st.commands),
                last,
            };
            let some = !work.dirtying.is_empty()
                || !work.degraded.is_empty()
                || !work.failures.is_empty()
                || !work.repairs.is_empty()
                || !work.commands.is_empty();
            let left = next_clear - Instant::now();
            if some || last || left <= Delta::ZERO || promotable(&st).is_some() {
                return work;
            }
            self.changed.wait(&mut st, Some(left));
        }
    }

    /// Takes legs out of the array, before writes that did not reach them are acknowledged.
    #[doc(alias = "handle_write_finished")]
    fn handle_failures(&self, mut failures: Vec<(usize, Error)>, degraded: Vec<Degraded>) {
        failures.extend(degraded.iter().flat_map(|d| d.failed.iter().copied()));
        let mut changed = false;
        for (n, e) in failures {
            changed |= self.fail(n, e);
        }
        let changed = changed || self.state.lock().super_pending;
        let written = if changed { self.write_super() } else { Ok(()) };
        let in_sync = self.state.lock().in_sync_mask();
        for d in degraded {
            let first = d.failed.first().map_or(EIO, |f| f.1);
            let status = match written {
                Ok(()) if d.reached & in_sync != 0 => Ok(()),
                Ok(()) => Err(first),
                Err(e) => Err(e),
            };
            if status.is_err() {
                self.diverged(&d.write.regions);
            }
            self.end_write(d.write, status);
        }
    }

    /// A write has failed that some leg may have: all but one leg are to be copied to.
    fn diverged(&self, regions: &Range<usize>) {
        let mut st = self.state.lock();
        let mut legs = 0..st.legs.len();
        let keep = legs.find(|&n| st.leg_state(n) == LegState::InSync && st.active(n).is_some());
        let others = st.active_mask() & !keep.map_or(0, bit);
        for r in st.regions.get_mut(regions.clone()).unwrap_or_default() {
            // One that has nothing to copy from stays as it is.
            if keep.is_some_and(|k| r.stale & bit(k) == 0) {
                r.stale |= others;
            }
        }
        self.changed.notify_all();
    }

    /// Takes a leg out, unless it is the last that has everything. Whether the superblocks have to be written.
    #[doc(alias = "raid1_error")]
    fn fail(&self, n: usize, why: Error) -> bool {
        let gone = {
            let mut st = self.state.lock();
            if st.active(n).is_none() {
                return false;
            }
            if st.in_sync_but(Some(n)) == 0 && st.leg_state(n) == LegState::InSync {
                pr_err_ratelimited!("raid1 {}: the last leg, {n}: {why}", self.spec.name);
                return false;
            }
            let events = st.meta.events;
            if let Some(slot) = st.meta.slots.get_mut(n) {
                slot.state = LegState::Failed;
                slot.last_events = events;
            }
            st.super_pending = true;
            let in_sync = st.in_sync_mask();
            for r in &mut st.regions {
                r.stale &= !bit(n);
                // A leg in sync has got all that was acknowledged: where nobody else has, what it has counts.
                if in_sync & !r.stale == 0 {
                    r.stale &= !(in_sync & in_sync.wrapping_neg());
                }
            }
            self.changed.notify_all();
            st.legs.get_mut(n).and_then(|l| {
                pr_err!(
                    "raid1 {}: leg {n}, {}, has failed: {why}",
                    self.spec.name,
                    l.path
                );
                l.last_try = Some(Instant::now());
                l.equal = false;
                l.closing = l.bdev.is_some();
                l.bdev.take()
            })
        };
        if let Some(leg) = gone {
            self.close_leg(n, leg);
        }
        true
    }

    /// Writes the superblocks, with a new number of events, to all legs; one that cannot be written to has failed.
    ///
    /// Errors: `EIO`: no leg that has everything could be written to; from now on all writes fail.
    #[doc(alias = "md_update_sb")]
    pub(crate) fn write_super(&self) -> Result {
        loop {
            let (legs, meta) = {
                let mut st = self.state.lock();
                if st.broken {
                    return Err(EIO);
                }
                st.meta.events += 1;
                (st.actives(), st.meta.clone())
            };
            let mut failed = Vec::new();
            // Each is let go of: else this thread closes it when it has failed.
            for (n, bdev) in legs {
                let mut own = meta.clone();
                own.index = n;
                if let Err(e) = leg::write(&bdev, own.position(), &own.encode()) {
                    failed.push((n, e));
                }
            }
            if self.all_written(failed)? {
                self.state.lock().super_pending = false;
                return Ok(());
            }
        }
    }

    /// Whether no leg has failed; those that have are taken out. Errors: `EIO`, as [`Array::write_super`].
    fn all_written(&self, failed: Vec<(usize, Error)>) -> Result<bool> {
        let none = failed.is_empty();
        for (n, e) in failed {
            if !self.fail(n, e) {
                let mut st = self.state.lock();
                if !st.broken {
                    pr_err!("raid1 {}: no leg can be written to", self.spec.name);
                }
                st.broken = true;
                return Err(EIO);
            }
        }
        Ok(none)
    }

    /// Writes bitmap and superblocks to all legs: those that took part until now may have each had a bitmap of its own.
    ///
    /// Errors: as [`Array::write_super`].
    pub(crate) fn write_all(&self) -> Result {
        let pages = self.state.lock().regions.len().div_ceil(PAGE_BITS);
        self.write_pages(&(0..pages).collect())?;
        self.write_super()
    }

    /// Writes pages of the bitmap to all legs. Errors: as [`Array::write_super`].
    #[doc(alias = "bitmap_unplug")]
    fn write_pages(&self, pages: &BTreeSet<usize>) -> Result {
        if pages.is_empty() {
            return Ok(());
        }
        let (legs, pages) = {
            let st = self.state.lock();
            let encode = |&page: &usize| {
                let regions = st.regions.iter().skip(page * PAGE_BITS);
                (
                    page,
                    encode_bitmap(page, regions.map(|r| r.dirty || r.want)),
                )
            };
            (st.actives(), pages.iter().map(encode).collect::<Vec<_>>())
        };
        let mut failed = Vec::new();
        for (n, bdev) in legs {
            let write = |(page, bytes): &(usize, Vec<u8>)| {
                leg::write(&bdev, BITMAP_AT + (*page * PAGE) as u64, bytes)
            };
            if let Err(e) = pages.iter().try_for_each(write) {
                failed.push((n, e));
            }
        }
        if self.all_written(failed)? {
            Ok(())
        } else {
            self.write_super()
        }
    }

    /// Makes regions dirty on the disks, then lets the writes go.
    #[doc(alias = "bitmap_startwrite")]
    fn make_dirty(&self, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        let written = self.dirty(writes.iter().map(|w| w.regions.clone()));
        for w in writes {
            match written {
                Ok(()) => self.admit(w, false),
                Err(e) => self.end_write(w, Err(e)),
            }
        }
    }

    /// Makes regions dirty on the disks. Errors: as [`Array::write_super`].
    fn dirty(&self, regions: impl Iterator<Item = Range<usize>> + Clone) -> Result {
        let mut pages = BTreeSet::new();
        {
            let mut st = self.state.lock();
            for range in regions.clone() {
                let first = range.start;
                let affected = st.regions.get_mut(range).unwrap_or_default();
                for (i, r) in affected.iter_mut().enumerate().filter(|(_, r)| !r.dirty) {
                    r.want = true;
                    pages.insert((first + i) / PAGE_BITS);
                }
            }
        }
        let written = self.write_pages(&pages);
        let mut st = self.state.lock();
        for range in regions {
            for r in st.regions.get_mut(range).unwrap_or_default() {
                r.want = false;
                r.dirty |= written.is_ok();
            }
        }
        written
    }

    /// Makes regions clean that nobody has written to for `age` and that all legs have alike.
    #[doc(alias = "bitmap_daemon_work")]
    fn clear_dirty(&self, age: Delta) {
        // A write that ends after this may not be covered by the flush.
        let now = Instant::now();
        let clean = |st: &State| {
            let missing = (0..st.legs.len()).any(|n| st.leg_state(n) == LegState::Failed);
            let idle = |r: &crate::array::Region| {
                r.dirty && r.inflight == 0 && r.stale == 0 && !r.locked && r.touched + age <= now
            };
            let regions = st.regions.iter().enumerate();
            let found = regions.filter(|(_, r)| idle(r) && !missing && !st.broken);
            found.map(|(i, _)| i).collect::<Vec<_>>()
        };
        let (candidates, legs) = {
            let st = self.state.lock();
            (clean(&st), st.actives())
        };
        if candidates.is_empty() {
            return;
        }
        // What was written is on all legs to stay, before nobody remembers that it was written.
        let failed = |(n, b): (usize, Arc<BlockDevice>)| leg::flush(&b).err().map(|e| (n, e));
        let failed: Vec<(usize, Error)> = legs.into_iter().filter_map(failed).collect();
        if !failed.is_empty() {
            return self.handle_failures(failed, Vec::new());
        }
        let mut pages = BTreeSet::new();
        {
            let mut st = self.state.lock();
            let still: BTreeSet<usize> = clean(&st).into_iter().collect();
            for i in candidates.into_iter().filter(|i| still.contains(i)) {
                if let Some(r) = st.regions.get_mut(i) {
                    r.dirty = false;
                    pages.insert(i / PAGE_BITS);
                }
            }
        }
        // Bits that stay on a disk only cause needless copying later.
        if let Err(e) = self.write_pages(&pages) {
            pr_warn!("raid1 {}: bitmap: {e}", self.spec.name);
        }
    }

    /// What could not be read may have been written to, or its leg may be well again.
    fn retry_unreadable(&self) {
        let mut st = self.state.lock();
        let mut some = false;
        for r in &mut st.regions {
            some |= std::mem::take(&mut r.skip);
        }
        if some {
            self.changed.notify_all();
        }
    }

    /// Regions that a leg could not read are copied to it from another.
    #[doc(alias = "fix_read_error")]
    fn handle_repairs(&self, repairs: Vec<(usize, Range<usize>)>) {
        for (n, regions) in repairs {
            let (possible, worn) = {
                let st = self.state.lock();
                let errors = st.legs.get(n).map_or(0, |l| l.read_errors);
                let possible = st.active(n).is_some() && st.in_sync_but(Some(n)) > 0;
                (possible, errors > MAX_READ_ERRORS)
            };
            if !possible {
                continue;
            }
            if worn {
                self.handle_failures(vec![(n, EIO)], Vec::new());
                continue;
            }
            if self.dirty(std::iter::once(regions.clone())).is_err() {
                continue;
            }
            let mut st = self.state.lock();
            let active = st.active_mask();
            for r in st.regions.get_mut(regions).unwrap_or_default() {
                // Unless it is the only one that has it.
                if active & !r.stale & !bit(n) != 0 {
                    r.stale |= bit(n);
                    r.skip = false;
                }
            }
            self.changed.notify_all();
        }
    }

    /// Legs that lack nothing any more are in sync.
    #[doc(alias = "raid1_spare_active")]
    fn promote(&self) {
        loop {
            let Some((n, bdev)) = promotable(&self.state.lock()) else {
                return;
            };
            let flushed = leg::flush(&bdev);
            drop(bdev);
            if let Err(e) = flushed {
                return self.handle_failures(vec![(n, e)], Vec::new());
            }
            {
                let mut st = self.state.lock();
                // A write may have failed meanwhile.
                if promotable(&st).is_none_or(|(m, _)| m != n) {
                    continue;
                }
                st.set_leg_state(n, LegState::InSync);
                pr_info!("raid1 {}: leg {n} is in sync", self.spec.name);
            }
            // An error has been noted in the state.
            let _ = self.write_super();
        }
    }

    /// Tries to get failed legs back.
    fn readd_failed(&self, now: Instant) {
        if self.spec.readd.is_zero() {
            return;
        }
        let due: Vec<usize> = {
            let mut st = self.state.lock();
            let failed: Vec<usize> = (0..st.legs.len())
                .filter(|&n| st.leg_state(n) == LegState::Failed)
                .collect();
            let due = |n: &usize| {
                let Some(l) = st.legs.get_mut(*n) else {
                    return false;
                };
                let due = l.last_try.is_none_or(|t| t + self.spec.readd <= now) && !l.trying;
                if due {
                    l.last_try = Some(now);
                    l.trying = true;
                }
                due
            };
            failed.into_iter().filter(due).collect()
        };
        for n in due {
            self.try_leg(n);
        }
    }

    /// What the administrator wants. Errors: `EINVAL`, `ENOENT`, `EBUSY`, those of the leg.
    fn obey(&self, wish: Wish, candidate: Option<Candidate>) -> Result {
        match wish {
            Wish::Add(path) => self.add(&path, candidate.ok_or(EINVAL)?),
            Wish::Readd(n) => self.readd(n, candidate.ok_or(EINVAL)?),
            Wish::Fail(n) => {
                if self.state.lock().active(n).is_none() {
                    return Err(ENOENT);
                }
                if self.fail(n, ECANCELED) {
                    self.write_super()
                } else {
                    Err(EBUSY)
                }
            }
            Wish::Remove(n) => {
                {
                    let mut st = self.state.lock();
                    if st.leg_state(n) != LegState::Failed {
                        return Err(if st.active(n).is_some() {
                            EBUSY
                        } else {
                            ENOENT
                        });
                    }
                    if let Some(slot) = st.meta.slots.get_mut(n) {
                        *slot = SlotMeta::default();
                    }
                    if let Some(l) = st.legs.get_mut(n) {
                        l.path.clear();
                    }
                }
                self.write_super()
            }
            #[cfg(test)]
            Wish::Clean => {
                self.clear_dirty(Delta::ZERO);
                Ok(())
            }
        }
    }

    /// Takes a leg back that has failed: only what was written since has to be copied.
    ///
    /// Errors: `ENOENT`: there is no such leg. `ESTALE`: the leg is not the one that has failed, or was used without us since.
    fn readd(&self, n: usize, candidate: Candidate) -> Result {
        let (path, meta) = {
            let st = self.state.lock();
            if st.leg_state(n) != LegState::Failed {
                return Err(ENOENT);
            }
            (st.legs.get(n).ok_or(ENOENT)?.path.clone(), st.meta.clone())
        };
        let found = candidate.found.ok_or(ESTALE)?;
        let slot = meta.slots.get(n).ok_or(ENOENT)?;
        let ours = found.array == meta.array
            && found.index == n
            && found.slots.get(n).is_some_and(|s| s.uuid == slot.uuid)
            && !found.went_on(slot.last_events);
        if !ours {
            return Err(ESTALE);
        }
        self.attach(n, &path, candidate.bdev, false)
    }

    /// Adds a leg that has to be copied to as a whole.
    ///
    /// Errors: `EEXIST`: it is a leg of an array. `ENOSPC`: there is no place for one more, or no room on it.
    #[doc(alias = "raid1_add_disk")]
    fn add(&self, path: &str, candidate: Candidate) -> Result {
        if let Some(found) = candidate.found {
            pr_err!(
                "raid1 {}: {path} is leg {} of array {:?}",
                self.spec.name,
                found.index,
                found.name
            );
            return Err(EEXIST);
        }
        let n = {
            let mut st = self.state.lock();
            let n = (0..MAX_LEGS)
                .find(|&n| st.leg_state(n) == LegState::Absent)
                .ok_or(ENOSPC)?;
            while st.legs.len() <= n {
                st.legs.push(Default::default());
            }
            n
        };
        self.attach(n, path, candidate.bdev, true)
    }

    fn attach(&self, n: usize, path: &str, bdev: Arc<BlockDevice>, whole: bool) -> Result {
        let uuid = new_uuid()?;
        let (pages, stale) = {
            let mut st = self.state.lock();
            let block = st.limits.logical_block_size;
            let (l, need) = (bdev.limits(), st.meta.data_offset + st.meta.size);
            if bdev.capacity_bytes() < need {
                return Err(ENOSPC);
            }
            let less = l.max_discard_bytes < st.limits.max_discard_bytes
                || l.max_write_zeroes_bytes < st.limits.max_write_zeroes_bytes
                || !l.discard_zeroes_data && st.limits.max_discard_bytes > 0;
            if l.logical_block_size > block || less {
                pr_err!(
                    "raid1 {}: {path} can do less than the array",
                    self.spec.name
                );
                return Err(EINVAL);
            }
            for r in &mut st.regions {
                r.want |= whole && !r.dirty;
                r.skip = false;
                if r.dirty || r.want {
                    r.stale |= bit(n);
                }
            }
            if let Some(leg) = st.legs.get_mut(n) {
                path.clone_into(&mut leg.path);
                leg.bdev = Some(bdev);
                leg.read_errors = 0;
                leg.equal = false;
            }
            st.set_leg_state(n, LegState::Rebuilding);
            if let Some(slot) = st.meta.slots.get_mut(n).filter(|_| whole) {
                slot.uuid = uuid;
            }
            // Copying may begin.
            self.changed.notify_all();
            let pages: BTreeSet<_> = (0..st.regions.len().div_ceil(PAGE_BITS)).collect();
            (pages, st.stale_regions())
        };
        let written = self.write_pages(&pages);
        {
            let mut st = self.state.lock();
            for r in &mut st.regions {
                r.dirty |= r.want && written.is_ok();
                r.want = false;
            }
        }
        written?;
        self.write_super()?;
        let st = self.state.lock();
        pr_info!(
            "raid1 {}: leg {n}, {path}: {} of {} regions to copy",
            self.spec.name,
            stale,
            st.regions.len()
        );
        self.changed.notify_all();
        // It may have failed in between.
        if st.active(n).is_some() {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    fn close_legs(&self) {
        let legs: Vec<_> = {
            let mut st = self.state.lock();
            st.legs.iter_mut().map(|l| l.bdev.take()).collect()
        };
        drop(legs);
        let mut st = self.state.lock();
        let commands = std::mem::take(&mut st.commands);
        st.threads = st.threads.saturating_sub(1);
        self.changed.notify_all();
        drop(st);
        for c in commands {
            *c.result.0.lock() = Err(ENODEV);
            c.result.1.complete_all();
        }
    }
}

/// A leg that is rebuilt and lacks nothing any more.
pub(crate) fn promotable(st: &State) -> Option<(usize, Arc<BlockDevice>)> {
    let whole = |n: &usize| st.regions.iter().all(|r| r.stale & bit(*n) == 0);
    let mut legs = (0..st.legs.len()).filter(|&n| st.leg_state(n) == LegState::Rebuilding);
    let n = legs.find(|n| st.active(*n).is_some() && !st.broken && whole(n))?;
    Some((n, Arc::clone(st.active(n)?)))
}

pub(crate) fn new_uuid() -> Result<[u8; 16]> {
    let mut uuid = [0; 16];
    rand::fill(&mut uuid)?;
    Ok(uuid)
}
