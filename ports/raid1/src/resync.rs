//! Copying to legs what they lack.

use crate::array::{Array, State, bit};
use crate::leg;
use crate::meta::LegState;
use kshim::block::{BioOp, BlockDevice, ReqFlags};
use kshim::prelude::*;
use kshim::scatterlist::SGTable;
use kshim::time::{Delta, Instant, NSEC_PER_SEC};

/// Bytes that are copied at a time.
#[doc(alias = "RESYNC_BLOCK_SIZE")]
const CHUNK: u64 = 256 << 10;
/// The disk is in use when somebody used it so short a time ago.
const BUSY: Delta = Delta::from_millis(200);

type Legs = Vec<(usize, Arc<BlockDevice>)>;

/// A region to be copied, which no write gets into.
struct Job {
    region: usize,
    pos: u64,
    len: u64,
    offset: u64,
    sources: Legs,
    targets: Legs,
}

/// What came of a region.
#[derive(Default)]
struct Copied {
    /// Legs (bits) that have it now.
    done: u8,
    failed: Vec<(usize, Error)>,
    /// No source could be read.
    unreadable: bool,
}

/// How much was copied since when.
struct Pace {
    since: Instant,
    bytes: u64,
    limit: u64,
}

impl Array {
    /// The life of the thread.
    #[doc(alias = "md_do_sync")]
    #[doc(alias = "raid1_sync_request")]
    pub(crate) fn run_resync(&self) {
        let mut cursor = 0;
        let mut pace = Pace {
            since: Instant::now(),
            bytes: 0,
            limit: 0,
        };
        while let Some(job) = self.next_job(&mut cursor) {
            let copied = copy(&job);
            pace.bytes += job.len;
            self.job_done(&job, copied);
            self.keep_pace(&mut pace);
        }
        let mut st = self.state.lock();
        st.threads = st.threads.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Waits for a region that some leg lacks, and until nobody writes to it. `None`: the disk is closed.
    fn next_job(&self, cursor: &mut usize) -> Option<Job> {
        let mut st = self.state.lock();
        loop {
            if st.closing {
                return None;
            }
            let Some(region) = next_region(&st, *cursor) else {
                self.changed.wait(&mut st, None);
                continue;
            };
            *cursor = region + 1;
            st.regions.get_mut(region)?.locked = true;
            while st.regions.get(region)?.inflight > 0 {
                self.changed.wait(&mut st, None);
            }
            let stale = st.regions.get(region)?.stale;
            let (targets, sources) = st
                .actives()
                .into_iter()
                .partition(|(n, _)| stale & bit(*n) != 0);
            let pos = region as u64 * st.meta.region;
            return Some(Job {
                region,
                pos,
                len: st.meta.region.min(st.meta.size - pos),
                offset: st.meta.data_offset,
                sources,
                targets,
            });
        }
    }

    fn job_done(&self, job: &Job, copied: Copied) {
        let waiting = {
            let mut st = self.state.lock();
            let equal = |st: &State, legs: &Legs| {
                let equal = |n: usize| st.legs.get(n).is_some_and(|l| l.equal);
                legs.iter()
                    .filter(|(n, _)| equal(*n))
                    .fold(0, |m, (n, _)| m | bit(*n))
            };
            let (from, to) = (equal(&st, &job.sources), equal(&st, &job.targets));
            // After a crash each of those that had all may be copied from.
            let swap = copied.unreadable && from != 0 && to != 0;
            st.resynced += u64::from(copied.done != 0);
            if let Some(r) = st.regions.get_mut(job.region) {
                r.locked = false;
                r.stale &= !copied.done;
                if swap {
                    r.stale = (r.stale | from) & !to;
                } else if copied.unreadable {
                    r.skip = true;
                    pr_err_ratelimited!(
                        "raid1 {}: region {} cannot be read",
                        self.spec.name,
                        job.region
                    );
                }
            }
            if swap {
                // Once: it is not to go to and fro.
                for (n, _) in &job.sources {
                    if let Some(l) = st.legs.get_mut(*n) {
                        l.equal = false;
                    }
                }
            }
            st.failures.extend(copied.failed);
            self.changed.notify_all();
            std::mem::take(&mut st.waiting)
        };
        for write in waiting {
            self.admit(write, true);
        }
    }

    /// Sleeps when it goes too fast.
    #[doc(alias = "is_mddev_idle")]
    fn keep_pace(&self, pace: &mut Pace) {
        let mut st = self.state.lock();
        loop {
            let now = Instant::now();
            let busy = st.last_io.is_some_and(|t| t + BUSY > now);
            let limit = match (busy, st.speed_min, st.speed_max) {
                (true, min, max) if min != 0 => {
                    if max != 0 {
                        min.min(max)
                    } else {
                        min
                    }
                }
                (_, _, max) => max,
            };
            if limit != pace.limit || limit == 0 {
                *pace = Pace {
                    since: now,
                    bytes: 0,
                    limit,
                };
            }
            if limit == 0 || st.closing {
                return;
            }
            let ns = u128::from(pace.bytes) * u128::from(NSEC_PER_SEC.unsigned_abs())
                / u128::from(limit);
            let due = pace.since + Delta::from_nanos(i64::try_from(ns).unwrap_or(i64::MAX));
            let left = due - now;
            if left <= Delta::ZERO {
                return;
            }
            self.changed.wait(&mut st, Some(left.min(BUSY)));
        }
    }
}

/// The next region, from `from` on and around, that a leg lacks and another has.
pub(crate) fn next_region(st: &State, from: usize) -> Option<usize> {
    if st.broken {
        return None;
    }
    let active = st.active_mask();
    let n = st.regions.len();
    let wanted = |i: &usize| {
        let r = st.regions.get(*i);
        r.is_some_and(|r| r.stale & active != 0 && active & !r.stale != 0 && !r.skip)
    };
    let from = from.min(n);
    (from..n).chain(0..from).find(wanted)
}

fn copy(job: &Job) -> Copied {
    let mut copied = Copied::default();
    let mut targets = job.targets.clone();
    let mut at = 0;
    while at < job.len && !targets.is_empty() {
        let n = (job.len - at).min(CHUNK);
        let pos = job.offset + job.pos + at;
        let Some(mut sg) = read(&job.sources, pos, n) else {
            copied.unreadable = true;
            return copied;
        };
        targets.retain(|(leg, bdev)| {
            let table = std::mem::take(&mut sg);
            let (back, status) = leg::run(
                bdev,
                BioOp::Write,
                pos,
                table.len(),
                table,
                ReqFlags::empty(),
            );
            sg = back;
            if let Err(e) = status {
                copied.failed.push((*leg, e));
            }
            status.is_ok()
        });
        at += n;
    }
    copied.done = targets.iter().fold(0, |m, (n, _)| m | bit(*n));
    copied
}

/// Reads from the first leg that can.
fn read(sources: &Legs, pos: u64, len: u64) -> Option<SGTable> {
    let len = usize::try_from(len).ok()?;
    sources.iter().find_map(|(_, bdev)| {
        let sg = SGTable::alloc(len).ok()?;
        let (sg, status) = leg::run(bdev, BioOp::Read, pos, len, sg, ReqFlags::empty());
        status.ok().map(|()| sg)
    })
}

/// What the threads are doing, as `md/sync_action` has it.
pub(crate) fn action(st: &State) -> &'static str {
    let rebuilding = (0..st.legs.len()).any(|n| st.leg_state(n) == LegState::Rebuilding);
    match (st.stale_regions(), rebuilding) {
        (0, false) => "idle",
        (_, true) => "recover",
        (_, false) => "resync",
    }
}
