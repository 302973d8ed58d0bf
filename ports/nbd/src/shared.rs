//! What connections and submitters share: the queue of requests, and what becomes of bios.

use crate::handshake::Export;
use crate::job::{Answer, Job, Part, Stage};
use crate::proto::{self, Cmd, export};
use crate::spec::Spec;
use kshim::block::{BioOp, ReqFlags, SubmittedBio};
use kshim::idr::Idr;
use kshim::prelude::*;
use kshim::sync::{CondVar, SpinLock};
use kshim::time::{Delta, Instant};
use std::collections::VecDeque;

/// Requests that a connection may have at the server.
pub(crate) const MAX_INFLIGHT: usize = 128;
/// A request that was not answered in time so often is failed.
const MAX_TIMEOUTS: u32 = 3;
/// How often a write is made again that is to be durable, when connections are lost between its data and its flush.
const MAX_REPEATS: u32 = 16;
/// What one request may trim or zero.
const MAX_RANGE: u32 = 1 << 30;

/// A disk's working part.
pub(crate) struct Shared {
    pub(crate) spec: Spec,
    pub(crate) state: SpinLock<State>,
    /// The queue, a connection or [`State::closing`] has changed.
    pub(crate) changed: CondVar,
}

#[derive(Default)]
pub(crate) struct State {
    /// The export as it was when the disk was opened; its size may have grown.
    pub(crate) export: Option<Export>,
    /// Requests that no connection has.
    pub(crate) queue: VecDeque<Part>,
    pub(crate) conns: Vec<Conn>,
    /// Bios that have not ended.
    pub(crate) jobs: usize,
    /// The last user has closed it: connections end when there are no bios left.
    pub(crate) closing: bool,
    /// Connections' threads.
    pub(crate) threads: usize,
    /// Since when there is no connection.
    pub(crate) down_since: Option<Instant>,
    /// Since when connections were lost that had requests and answered none: such a server is as good as none.
    pub(crate) fruitless_since: Option<Instant>,
    /// There was none for so long that bios fail until there is one again.
    pub(crate) given_up: bool,
    /// Writes that ended and were not durable by themselves.
    pub(crate) writes: u64,
    /// So many of them a flush has covered.
    pub(crate) flushed: u64,
    /// Writes may have gone with a server, and nobody was told.
    pub(crate) lost: bool,
    /// Connections that have ended.
    pub(crate) epoch: u64,
    /// So many of them were made anew, as they did not know of the size that the export has grown to.
    pub(crate) renewals: u64,
    /// A flush of our own is under way.
    pub(crate) own_flush: bool,
    /// Requests that were sent again.
    pub(crate) requeued: u64,
}

/// A connection's part.
pub(crate) struct Conn {
    pub(crate) up: bool,
    /// The server has answered a request.
    pub(crate) answered: bool,
    /// The size of the export that the server has told on it, and goes by.
    pub(crate) size: u64,
    /// It takes flushes only, and ends when so many writes are flushed.
    pub(crate) leaves_at: Option<u64>,
    /// It ends to be made anew.
    pub(crate) renewed: bool,
    pub(crate) inflight: Idr<Part>,
}

impl Default for Conn {
    fn default() -> Conn {
        Conn {
            up: false,
            answered: false,
            size: 0,
            leaves_at: None,
            renewed: false,
            inflight: Idr::new(MAX_INFLIGHT),
        }
    }
}

/// What ended, to be told without the lock.
pub(crate) type Ended = Vec<(Arc<Job>, Result)>;

/// Completes bios.
pub(crate) fn tell(ended: Ended) {
    for (job, status) in ended {
        job.complete(status);
    }
}

impl State {
    /// Whether connections may end.
    pub(crate) fn is_drained(&self) -> bool {
        self.closing && self.jobs == 0
    }

    fn can(&self, flag: u16) -> bool {
        self.export.is_some_and(|e| e.can(flag))
    }
}

impl Shared {
    pub(crate) fn new(spec: Spec) -> Arc<Shared> {
        Arc::new(Shared {
            spec,
            state: SpinLock::default(),
            changed: CondVar::new(),
        })
    }

    /// A bio comes in.
    pub(crate) fn submit(&self, bio: SubmittedBio) {
        let mut st = self.state.lock();
        let before = bio.flags.contains(ReqFlags::PREFLUSH);
        let refused = match bio.op {
            _ if st.given_up => Some(Err(ETIMEDOUT)),
            // The server has no cache that it knows of.
            BioOp::Flush if !st.can(export::SEND_FLUSH) => Some(Ok(())),
            BioOp::Flush => None,
            BioOp::WriteZeroes if !st.can(export::SEND_WRITE_ZEROES) => Some(Err(EOPNOTSUPP)),
            BioOp::Discard if !st.can(export::SEND_TRIM) => Some(Err(EOPNOTSUPP)),
            // One without data is a flush, if it asks for one before.
            _ if bio.len == 0 && !(before && st.can(export::SEND_FLUSH)) => Some(Ok(())),
            _ => None,
        };
        if let Some(status) = refused {
            drop(st);
            return bio.complete(status);
        }
        let job = Job::new(bio);
        st.jobs += 1;
        let stage = if before && st.can(export::SEND_FLUSH) && job.op != BioOp::Flush {
            Stage::PreFlush
        } else {
            Stage::Work
        };
        self.start(&mut st, &job, stage);
    }

    /// Whether a write is to be durable when it ends.
    fn wants_fua(&self, job: &Job) -> bool {
        job.op.is_write() && (job.flags.contains(ReqFlags::FUA) || self.spec.writethrough)
    }

    /// Queues the requests of a stage.
    fn start(&self, st: &mut State, job: &Arc<Job>, stage: Stage) {
        let (cmd, max) = match (stage, job.op) {
            (Stage::PreFlush | Stage::PostFlush, _) | (_, BioOp::Flush) => (Cmd::Flush, 0),
            (_, BioOp::Read) => (Cmd::Read, st.export.map_or(0, |e| e.max_block)),
            (_, BioOp::Write) => (Cmd::Write, st.export.map_or(0, |e| e.max_block)),
            (_, BioOp::Discard) => (Cmd::Trim, MAX_RANGE),
            (_, BioOp::WriteZeroes) => (Cmd::WriteZeroes, MAX_RANGE),
        };
        let mut flags = 0;
        if cmd != Cmd::Flush && self.wants_fua(job) && st.can(export::SEND_FUA) {
            flags |= proto::CMD_FLAG_FUA;
        }
        if cmd == Cmd::WriteZeroes && job.flags.contains(ReqFlags::NOUNMAP) {
            flags |= proto::CMD_FLAG_NO_HOLE;
        }
        let part = |offset, at, len| Part {
            job: Arc::clone(job),
            cmd,
            flags,
            offset,
            len,
            at,
            deadline: Instant::MAX,
            timeouts: 0,
            answer: Answer::default(),
        };
        let mut parts = Vec::new();
        if cmd == Cmd::Flush {
            parts.push(part(0, 0, 0));
        } else {
            let (mut done, max) = (0u64, u64::from(max.max(1)));
            while done < job.len {
                let n = (job.len - done).min(max);
                // Both fit: `n` is at most `max`, and all of it is inside the table, or there is none.
                let (len, at) = (u32::try_from(n), usize::try_from(done));
                let at = job.sg_at.saturating_add(at.unwrap_or(usize::MAX));
                parts.push(part(job.pos.saturating_add(done), at, len.unwrap_or(0)));
                done += n;
            }
        }
        {
            let mut p = job.progress.lock();
            p.stage = stage;
            p.left = parts.len();
            p.status = Ok(());
            p.mark = st.writes;
            if stage == Stage::Work {
                p.epoch = None;
            }
        }
        st.queue.extend(parts);
        self.changed.notify_all();
    }

    /// A request has ended. What then ended as a whole is added to `ended`.
    pub(crate) fn part_done(&self, st: &mut State, part: &Part, status: Result, ended: &mut Ended) {
        let job = &part.job;
        let (stage, status, epoch, mark) = {
            let mut p = job.progress.lock();
            p.status = p.status.and(status);
            p.left = p.left.saturating_sub(1);
            if p.stage == Stage::Work {
                p.epoch.get_or_insert(st.epoch);
            }
            if p.left > 0 {
                return;
            }
            (p.stage, p.status, p.epoch, p.mark)
        };
        // The server that had some of the data is not the one that is there now.
        let torn = epoch != Some(st.epoch);
        let mut end = |st: &mut State, status: Result| {
            if job.own {
                st.own_flush = false;
                if status.is_err() {
                    // Nobody else was told.
                    self.writes_lost(st);
                }
                self.changed.notify_all();
            }
            st.jobs = st.jobs.saturating_sub(1);
            ended.push((Arc::clone(job), status));
            if st.is_drained() {
                self.changed.notify_all();
            }
        };
        if status.is_err() {
            return end(st, status);
        }
        let durable = self.wants_fua(job);
        match (stage, job.op) {
            (Stage::PreFlush, _) => {
                st.flushed = st.flushed.max(mark);
                if std::mem::take(&mut st.lost) {
                    end(st, Err(EIO));
                } else if job.len == 0 {
                    end(st, Ok(()));
                } else {
                    self.start(st, job, Stage::Work);
                }
            }
            (Stage::Work, BioOp::Flush) if job.own => {
                st.flushed = st.flushed.max(mark);
                end(st, Ok(()));
            }
            (Stage::Work, BioOp::Flush) => {
                st.flushed = st.flushed.max(mark);
                let lost = std::mem::take(&mut st.lost);
                end(st, if lost { Err(EIO) } else { Ok(()) });
            }
            (Stage::Work, op) if !op.is_write() => end(st, Ok(())),
            (Stage::Work, _) if !st.can(export::SEND_FLUSH) => end(st, Ok(())),
            (Stage::Work, _) if durable && st.can(export::SEND_FUA) => end(st, Ok(())),
            (Stage::Work, _) if !durable => {
                st.writes += 1;
                if torn {
                    self.writes_lost(st);
                }
                end(st, Ok(()));
            }
            (Stage::Work, _) => self.start(st, job, Stage::PostFlush),
            (Stage::PostFlush, _) if torn => {
                let again = {
                    let mut p = job.progress.lock();
                    p.repeats += 1;
                    p.repeats <= MAX_REPEATS
                };
                if again {
                    self.start(st, job, Stage::Work);
                } else {
                    end(st, Err(EIO));
                }
            }
            (Stage::PostFlush, _) => {
                st.flushed = st.flushed.max(mark);
                end(st, Ok(()));
            }
        }
    }

    /// Whether the export is larger than this connection knows. It is made anew then, and there is a flush before it ends.
    pub(crate) fn is_outgrown(&self, st: &mut State, index: usize) -> bool {
        let size = st.export.map_or(0, |e| e.size);
        let writes = st.writes;
        let Some(conn) = st.conns.get_mut(index).filter(|c| c.size < size) else {
            return false;
        };
        let at = *conn.leaves_at.get_or_insert(writes);
        if st.flushed < at && !st.own_flush {
            st.own_flush = true;
            st.jobs += 1;
            self.start(st, &Job::own_flush(), Stage::Work);
        }
        true
    }

    /// Whether such a connection can end now: nothing is lost with it. `None`: there is no such connection.
    pub(crate) fn may_be_renewed(&self, st: &mut State, index: usize) -> Option<bool> {
        let (flushed, own_flush) = (st.flushed, st.own_flush);
        let conn = st.conns.get_mut(index)?;
        let at = conn.leaves_at.unwrap_or(0);
        conn.renewed = conn.inflight.is_empty() && !own_flush && flushed >= at;
        Some(conn.renewed)
    }

    /// Has the next flush fail, which covers all writes up to now.
    fn writes_lost(&self, st: &mut State) {
        pr_warn!(
            "nbd {}: writes that were not flushed may have gone with the connection; the next flush fails",
            self.spec.server()
        );
        st.lost = true;
        st.flushed = st.writes;
    }

    /// A connection is lost: what it had at the server goes back to the queue. Returns whether anything was answered on it.
    pub(crate) fn connection_lost(&self, index: usize, why: Error) -> bool {
        let mut ended = Ended::new();
        let mut st = self.state.lock();
        let now = Instant::now();
        let Some(conn) = st.conns.get_mut(index) else {
            return false;
        };
        conn.up = false;
        let (answered, renewed) = (conn.answered || conn.renewed, conn.renewed);
        let back: Vec<Part> = conn.inflight.drain().map(|(_, part)| part).collect();
        st.epoch += 1;
        st.renewals += u64::from(renewed);
        if st.writes > st.flushed && !renewed {
            self.writes_lost(&mut st);
        }
        st.requeued += back.len() as u64;
        // Silence has a bound of its own.
        if !answered && !back.is_empty() && why != ETIMEDOUT {
            st.fruitless_since.get_or_insert(now);
        }
        for mut part in back.into_iter().rev() {
            part.answer = Answer::default();
            part.timeouts += u32::from(why == ETIMEDOUT && part.deadline <= now);
            if part.timeouts >= MAX_TIMEOUTS {
                self.part_done(&mut st, &part, Err(ETIMEDOUT), &mut ended);
            } else {
                st.queue.push_front(part);
            }
        }
        if !st.conns.iter().any(|c| c.up) {
            st.down_since = Some(st.fruitless_since.unwrap_or(now));
        }
        self.changed.notify_all();
        drop(st);
        tell(ended);
        answered
    }

    /// Fails all that waits when there was no connection for too long.
    pub(crate) fn give_up_if_due(&self) {
        let mut ended = Ended::new();
        let mut st = self.state.lock();
        let Some(since) = st.down_since else {
            return;
        };
        if since.elapsed() < self.spec.reconnect {
            return;
        }
        if !st.given_up {
            pr_err!(
                "nbd {}: no connection for {}, requests fail from now on",
                self.spec.server(),
                self.spec.reconnect
            );
        }
        st.given_up = true;
        for part in std::mem::take(&mut st.queue) {
            self.part_done(&mut st, &part, Err(ETIMEDOUT), &mut ended);
        }
        drop(st);
        tell(ended);
    }

    /// Sleeps before the next attempt to connect; less when the disk is closed or has to give up earlier.
    pub(crate) fn pause(&self, time: Delta) {
        let mut st = self.state.lock();
        let end = Instant::now() + time;
        loop {
            let due = st.down_since.filter(|_| !st.given_up);
            let until = due.map_or(end, |since| end.min(since + self.spec.reconnect));
            let left = until - Instant::now();
            if st.is_drained() || left <= Delta::ZERO {
                return;
            }
            self.changed.wait_timeout(&mut st, left);
        }
    }
}
