//! A device: a handler that has opened something, the threads that call it, and what is on its way.
//!
//! A request ([`Job`]) waits in the queue, then a thread of the device gives it to the plug-in step by step (a flush before,
//! the request itself, a flush after), until it is [finished](Device::finish). A request that takes longer than the
//! device's timeout is failed; what the plug-in may still write to then stays its own until it completes the command.
//!
//! C source: `tcmur_device.c`, `tcmur_aio.c`, `tcmur_cmd_handler.c` of tcmu-runner.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU16, AtomicU32, AtomicU64, Ordering};

use kshim::block::BioOp;
use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::prelude::*;
use kshim::sync::{Completion, CondVar, CondVarTimeoutResult, Mutex, SpinLock};
use kshim::time::{Delta, Instant, Timer};

use super::abi;
use super::cdb;
use super::ffi::handler::{Calls, Handler, LockOwner};
use super::ffi::mem::{DevMem, Event, LockState};
use super::ffi::table::Table;
use super::qcow;
use super::registry;
use super::request::{End, Job, Need, Owner, Step, What};
use super::size::Found;
use super::spec::{Locking, Spec};
use super::status::{self, SenseBuf};
use super::whole::Whole;

/// How often deadlines are looked at while requests are on their way.
const TICK: Delta = Delta::from_millis(500);
/// How long a close waits for requests.
const CLOSE_LIMIT: Delta = Delta::from_secs(60);
/// Between two attempts to open a device again.
const REOPEN_PAUSE: Delta = Delta::from_secs(1);
/// Events that come in a burst are reported together.
const EVENT_PAUSE: Delta = Delta::from_secs(1);
/// What kernel and tcmu-runner tell handlers about the size of requests, unless they know better: blocks.
const MAX_XFER_BLOCKS: u32 = 8192;
const MAX_UNMAP_BLOCKS: u32 = 32 << 20;
/// Block size of a device whose handler does not set another.
const BLOCK_SIZE: u32 = 512;

/// What handlers set and ask for.
#[derive(Debug)]
pub(super) struct Props {
    pub(super) num_lbas: AtomicU64,
    pub(super) block_size: AtomicU32,
    pub(super) max_xfer_len: AtomicU32,
    pub(super) opt_xcopy_rw_len: AtomicU32,
    pub(super) max_unmap_len: AtomicU32,
    pub(super) opt_unmap_gran: AtomicU32,
    pub(super) split_unmaps: AtomicBool,
    pub(super) unmap_gran_align: AtomicU32,
    pub(super) write_cache: AtomicBool,
    pub(super) solid_state: AtomicBool,
    pub(super) unmap: AtomicBool,
}

impl Props {
    fn new(size: Option<u64>, calls: Calls) -> Props {
        Props {
            num_lbas: AtomicU64::new(size.unwrap_or(0) / u64::from(BLOCK_SIZE)),
            block_size: AtomicU32::new(BLOCK_SIZE),
            max_xfer_len: AtomicU32::new(MAX_XFER_BLOCKS),
            opt_xcopy_rw_len: AtomicU32::new(MAX_XFER_BLOCKS),
            max_unmap_len: AtomicU32::new(MAX_UNMAP_BLOCKS),
            opt_unmap_gran: AtomicU32::new(MAX_XFER_BLOCKS),
            split_unmaps: AtomicBool::new(true),
            unmap_gran_align: AtomicU32::new(0),
            write_cache: AtomicBool::new(calls.contains(Calls::FLUSH)),
            solid_state: AtomicBool::new(false),
            unmap: AtomicBool::new(calls.contains(Calls::UNMAP)),
        }
    }

    /// Block size, never 0.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size.load(Ordering::Relaxed).max(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Takes requests.
    Open,
    /// The storage was lost, and is closed and opened again; or the lock is being taken. Requests are told to come back.
    Recovering,
    /// Waits for the last requests.
    Closing,
    /// Closed.
    Closed,
    /// Could not be closed, as the plug-in keeps requests.
    Stuck,
}

struct Life {
    state: State,
    /// Somebody closed it while it was recovering.
    close_wanted: bool,
    /// Who may write.
    lock: LockState,
    /// Another server took the lock, so that what this one still sends is refused until it opens the device again.
    lock_lost: bool,
    /// The same, until a flush has said so: what was written before may not be there. Another connection changes nothing about that.
    lock_lost_untold: bool,
    /// The storage was lost once more.
    lost_again: bool,
    /// Requests that are in the queue or with the plug-in.
    outstanding: usize,
}

/// A device that a handler has opened.
pub(super) struct Device {
    pub(super) mem: DevMem,
    pub(super) handler: Arc<Handler>,
    pub(super) props: Props,
    /// For messages.
    pub(super) path: String,
    pub(super) cfgstring: String,
    /// As far as it is known without the handler.
    pub(super) size: Option<u64>,
    timeout: Option<Delta>,
    /// Whether other servers have the device, too, and who may write.
    locking: Locking,
    /// The status of the first flush that failed since somebody opened it, or of one that would have to: data may be lost, also if
    /// it was opened again since for a lost connection.
    lost: AtomicI32,
    /// How many writes have ended well, and how many of them the handler has made durable since.
    written: AtomicU64,
    durable: AtomicU64,
    /// The handler wants the first write to a cluster to cover it.
    whole: Option<Whole>,
    pub(super) queue: WorkerQueue<Job>,
    pub(super) table: Table<Owner>,
    next_id: AtomicU16,
    life: SpinLock<Life>,
    changed: CondVar,
    threads: Mutex<Vec<Kthread>>,
    timer: Timer,
    timer_armed: AtomicBool,
    event_pending: AtomicBool,
    me: Weak<Device>,
}

impl Device {
    /// Has a handler open a device.
    ///
    /// Context: may sleep, as long as the handler takes.
    ///
    /// # Errors
    ///
    /// `EBUSY`: the same device is being closed, and that takes too long. `EINVAL`: the handler says that the
    /// configuration is wrong. Others: the handler's.
    pub(super) fn open(spec: &Spec, found: &Found, handler: Arc<Handler>) -> Result<Arc<Device>> {
        let (path, cfgstring) = (spec.path.as_str(), found.cfgstring.as_str());
        let (size, timeout) = (found.size, spec.timeout);
        // Asynchronous handlers, and those with many threads, know what they do.
        let whole = found.unit.filter(|_| handler.nr_threads == 1);
        if spec.lock != Locking::Off && !handler.calls.contains(Calls::LOCK) {
            pr_err!("{path}: the handler has no locks, as lock= wants");
            return Err(EOPNOTSUPP);
        }
        registry::wait_until_free(cfgstring)?;
        if spec.subtype == "qcow" {
            qcow::mend(&spec.cfg).inspect_err(|e| pr_err!("{path}: {e}"))?;
        }
        if let Some(reason) = handler.check_config(cfgstring) {
            pr_err!("{path}: {reason}");
            return Err(EINVAL);
        }
        let mem = DevMem::new(cfgstring)?;
        let props = Props::new(size, handler.calls);
        let dev = Arc::new_cyclic(|me: &Weak<Device>| {
            let ticking = me.clone();
            Device {
                mem,
                handler,
                props,
                path: path.to_owned(),
                cfgstring: cfgstring.to_owned(),
                size,
                timeout,
                locking: spec.lock,
                lost: AtomicI32::new(abi::TCMU_STS_OK),
                written: AtomicU64::new(0),
                durable: AtomicU64::new(0),
                whole: whole.and_then(Whole::new),
                queue: WorkerQueue::new(),
                table: Table::new(),
                next_id: AtomicU16::new(0),
                life: SpinLock::new(Life {
                    state: State::Closed,
                    close_wanted: false,
                    lock: LockState::Unlocked,
                    lock_lost: false,
                    lock_lost_untold: false,
                    lost_again: false,
                    outstanding: 0,
                }),
                changed: CondVar::new(),
                threads: Mutex::new(Vec::new()),
                timer: Timer::new(move || {
                    if let Some(dev) = ticking.upgrade() {
                        dev.tick();
                    }
                }),
                timer_armed: AtomicBool::new(false),
                event_pending: AtomicBool::new(false),
                me: me.clone(),
            }
        });
        registry::add(&dev);
        if let Err(e) = dev.handler.open(&dev.mem, false) {
            let hint = match size {
                Some(_) => "",
                None => "; nothing says its size, and ?size=BYTES is missing",
            };
            pr_err!("{path}: the handler cannot open it: {e}{hint}");
            registry::closed(&dev);
            return Err(open_error(e));
        }
        // Nobody else closes it, or opens it again, until it has its lock.
        dev.life.lock().state = State::Recovering;
        dev.mem.set_lock_state(LockState::Unlocked);
        dev.make_ready()?;
        if dev.renewed() {
            dev.recover();
        }
        Ok(dev)
    }

    /// For a device that the handler has just opened: all that it needs before it takes requests. After an error it is closed, or
    /// will be.
    fn make_ready(&self) -> Result {
        let ready = self.start_threads().and_then(|()| self.check());
        let locked = ready.map(|()| self.lock_at_open());
        let e = match locked {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => EBUSY,
            Ok(Err(said)) => {
                self.life.lock().state = State::Closing;
                self.down();
                return Err(open_error(said));
            }
            Err(e) => e,
        };
        self.life.lock().state = State::Closing;
        self.start_close();
        Err(e)
    }

    /// What a handler has set must make sense.
    fn check(&self) -> Result {
        let block = self.props.block_size();
        if !block.is_power_of_two() || !(512..=4096).contains(&block) || self.capacity() == 0 {
            pr_err!(
                "{}: {} blocks of {block} bytes; ?size=BYTES may be missing",
                self.path,
                self.props.num_lbas.load(Ordering::Relaxed),
            );
            return Err(EINVAL);
        }
        Ok(())
    }

    fn start_threads(&self) -> Result {
        let mut threads = self.threads.lock();
        for _ in 0..self.handler.nr_threads.max(1) {
            let me = self.me.clone();
            let name = format!("tcmur-{}", self.handler.subtype);
            threads.push(kthread::run(&name, move |stop| {
                let Some(dev) = me.upgrade() else { return };
                while let Some(job) = dev.queue.wait_next(stop) {
                    dev.start(job);
                }
            })?);
        }
        Ok(())
    }

    /// Bytes.
    pub(super) fn capacity(&self) -> u64 {
        let lbas = self.props.num_lbas.load(Ordering::Relaxed);
        lbas.saturating_mul(u64::from(self.props.block_size()))
    }

    /// Whether flushes mean anything.
    pub(super) fn has_write_cache(&self) -> bool {
        self.handler.calls.contains(Calls::FLUSH) && self.props.write_cache.load(Ordering::Relaxed)
    }

    /// Takes a request. It ends exactly once.
    ///
    /// Context: any; never sleeps.
    pub(super) fn submit(&self, what: What) {
        let refused = {
            let mut life = self.life.lock();
            match life.state {
                State::Open => self.admit(&mut life, &what),
                State::Recovering => Some((EAGAIN, None)),
                _ => Some((ENODEV, None)),
            }
        };
        if let Some((e, wanted)) = refused {
            if let Some(lock) = wanted {
                self.renew(Some(lock));
            }
            return what.finish(End::Failed(e));
        }
        let deadline = self.timeout.map_or(Instant::MAX, |t| Instant::now() + t);
        let job = Job::new(what, self.has_write_cache(), deadline);
        self.queue.push(job);
        if self.timeout.is_some() && !self.timer_armed.swap(true, Ordering::SeqCst) {
            self.timer.mod_timer_after(TICK);
        }
    }

    /// Counts a request, or says why not, and which lock is to be taken first: the caller does that.
    ///
    /// Writes need the lock. After it was lost, reads need another connection to the storage, and a flush cannot say any
    /// more that what was written before is there: the first one says so, on whichever connection, and others while there is none.
    #[doc(alias = "alua_implicit_transition")]
    fn admit(&self, life: &mut Life, what: &What) -> Option<(Error, Option<LockState>)> {
        let untold = what.flushes() && std::mem::take(&mut life.lock_lost_untold);
        let wanted = match what.needs() {
            _ if self.locking == Locking::Off => None,
            _ if untold => return Some((ENOLINK, None)),
            // Only who opens the device takes the lock.
            _ if self.locking != Locking::Implicit => match life.lock {
                LockState::Write => None,
                _ => return Some((ENOLINK, None)),
            },
            Need::Write if life.lock != LockState::Write => Some(LockState::Write),
            Need::Read if life.lock_lost => Some(LockState::Read),
            Need::Flush if life.lock_lost => return Some((ENOLINK, None)),
            _ => None,
        };
        match wanted {
            None => life.outstanding += 1,
            Some(_) => life.state = State::Recovering,
        }
        wanted.map(|lock| (EAGAIN, Some(lock)))
    }

    /// Gives a request's next step to the plug-in, or ends it.
    fn start(&self, mut job: Job) {
        if let (Some(whole), Some((off, len)), None) = (&self.whole, job.will_write(), &job.patch) {
            match whole.plan(off, len, self.capacity()) {
                Ok(patch) => job.patch = patch,
                Err(e) => return self.finish(job.what, End::Failed(e)),
            }
        }
        let Some(step) = job.next_step(self.handler.calls) else {
            return self.finish(job.what, End::Good { resid: 0 });
        };
        if job.flushes_all(step) {
            job.covers = self.written.load(Ordering::SeqCst);
        }
        let mut mem = self.table.take();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let block = self.props.block_size();
        let (call, orig) = match job.prepare(step, &mut mem, id, block) {
            Ok(prepared) => prepared,
            Err(end) => {
                self.table.give_back(mem);
                return self.finish(job.what, end);
            }
        };
        let is_cmd = matches!(job.what, What::Scsi(_));
        let owner = Owner {
            job,
            step,
            orig,
            failed: false,
        };
        let (addr, said) = self.table.call(&self.handler, &self.mem, mem, owner, call);
        let pending = match said {
            abi::TCMU_STS_ASYNC_HANDLED => is_cmd,
            abi::TCMU_STS_OK => self.handler.nr_threads == 0 && !is_cmd,
            _ => false,
        };
        if !pending {
            self.complete(addr, said);
        }
    }

    /// The plug-in says that the command at an address is done.
    ///
    /// Context: any thread, also a plug-in's.
    #[doc(alias = "tcmur_cmd_complete")]
    pub(super) fn complete(&self, addr: usize, said: c_int) {
        let Some((mut mem, owner)) = self.table.remove(addr) else {
            return pr_err_ratelimited!(
                "{}: the handler completes a command that it does not have (status {said})",
                self.path
            );
        };
        if !status::is_known(said) || said == abi::TCMU_STS_ASYNC_HANDLED {
            pr_err_ratelimited!("{}: the handler ends a command with {said}", self.path);
        }
        let (sense, left) = (mem.sense(), mem.left());
        let data = mem.take();
        self.table.give_back(mem);
        if owner.failed {
            pr_warn!("{}: a command that timed out has ended ({said})", self.path);
            return self.ended();
        }
        let Owner {
            mut job,
            step,
            orig,
            ..
        } = owner;
        let said = match (step, &job.what) {
            (Step::Flush, _) => self.flushed(said),
            (Step::Main, What::Scsi(cmd)) if cdb::is_flush(&cmd.cdb) => {
                self.command_flushed(said, &sense)
            }
            _ => said,
        };
        let good = said == abi::TCMU_STS_OK;
        if good && job.flushes_all(step) {
            self.durable.fetch_max(job.covers, Ordering::SeqCst);
        } else if good && step == Step::Main && job.what.needs() == Need::Write {
            self.written.fetch_add(1, Ordering::SeqCst);
        }
        let resid = match (step, &mut job.patch) {
            (Step::Main, _) => {
                let n = data.len() as u64;
                let resid = job.what.restore(data, orig, left, good);
                if good {
                    self.wrote(&job, n);
                }
                resid
            }
            (Step::Fill(at), Some(patch)) if good => {
                if let Err(e) = patch.filled(at, &data) {
                    return self.finish(job.what, End::Failed(e));
                }
                0
            }
            // The data of the request is where it was.
            _ => 0,
        };
        if good && job.steps.is_left() {
            self.queue.push_head(job);
            return;
        }
        let end = if good {
            End::Good { resid }
        } else {
            End::Status(said, sense)
        };
        self.finish(job.what, end);
    }

    /// How a flush really ended. Who flushes a file is told of a lost write-back once, and the next flush would succeed.
    fn flushed(&self, said: c_int) -> c_int {
        match status::to_result(said) {
            Ok(()) => self.lost.load(Ordering::Relaxed),
            Err(EIO | EREMOTEIO) => {
                let first = self.lost.swap(said, Ordering::Relaxed) == abi::TCMU_STS_OK;
                if first {
                    pr_err!("{}: flush failed, data may be lost ({said})", self.path);
                }
                said
            }
            Err(_) => said,
        }
    }

    /// The handler has closed the device, to open it again: what it kept in its cache may not be there any more, and the
    /// next flush would succeed. (What goes with a lost lock is told by `lock_lost_untold`.)
    fn closed_unflushed(&self) {
        let written = self.written.load(Ordering::SeqCst);
        let unflushed = self.durable.swap(written, Ordering::SeqCst) < written;
        if !unflushed || !self.has_write_cache() || self.life.lock().lock_lost {
            return;
        }
        let (ok, failed) = (abi::TCMU_STS_OK, abi::TCMU_STS_WR_ERR);
        let first = (self.lost).compare_exchange(ok, failed, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            pr_err!(
                "{}: closed with writes that nobody has flushed, data may be lost",
                self.path
            );
        }
    }

    /// [`Device::flushed`] for a flush that was passed through: its handler may have its own words for a failure.
    fn command_flushed(&self, said: c_int, sense: &SenseBuf) -> c_int {
        match said {
            abi::TCMU_STS_PASSTHROUGH_ERR if status::tells_failure(sense) => {
                self.flushed(abi::TCMU_STS_WR_ERR);
                said
            }
            abi::TCMU_STS_OK | abi::TCMU_STS_WR_ERR | abi::TCMU_STS_RD_ERR => self.flushed(said),
            abi::TCMU_STS_HW_ERR => self.flushed(said),
            _ => said,
        }
    }

    /// A request has written, with a larger write `patched` bytes.
    fn wrote(&self, job: &Job, patched: u64) {
        let (Some(whole), What::Bio(bio)) = (&self.whole, &job.what) else {
            return;
        };
        let (off, len) = match &job.patch {
            Some(patch) => (patch.start, patched),
            None => (bio.pos(), bio.len as u64),
        };
        if bio.op == BioOp::Write {
            whole.wrote(off, len, self.capacity());
        }
    }

    fn finish(&self, what: What, end: End) {
        what.finish(end);
        self.ended();
    }

    /// A request has left queue and plug-in.
    fn ended(&self) {
        let mut life = self.life.lock();
        life.outstanding -= 1;
        if life.outstanding == 0 {
            drop(life);
            self.changed.notify_all();
        }
    }

    /// Fails what is over its time.
    ///
    /// Context: the timer's; never sleeps.
    fn tick(&self) {
        let now = Instant::now();
        let late = self.queue.extract(|job| job.deadline <= now);
        let mut lost = VecDeque::new();
        self.table.for_each(|owner| {
            if owner.job.deadline <= now && !owner.failed {
                owner.failed = true;
                lost.push_back(owner.job.what.take());
            }
        });
        let n = late.len() + lost.len();
        for job in late {
            self.finish(job.what, End::Failed(ETIMEDOUT));
        }
        // Still the plug-in's: not ended.
        for what in lost {
            what.lose_data().finish(End::Failed(ETIMEDOUT));
        }
        if n > 0 {
            pr_err_ratelimited!("{}: {n} commands timed out", self.path);
            self.mem.count(Event::CmdTimedOut);
            self.report_events();
        }
        if self.life.lock().outstanding > 0 {
            self.timer.mod_timer_after(TICK);
            return;
        }
        self.timer_armed.store(false, Ordering::SeqCst);
        if self.life.lock().outstanding > 0 && !self.timer_armed.swap(true, Ordering::SeqCst) {
            self.timer.mod_timer_after(TICK);
        }
    }

    /// Waits until no request is on its way. `false`: that took too long.
    fn drain(&self, limit: Delta) -> bool {
        let end = Instant::now() + limit;
        let mut life = self.life.lock();
        while life.outstanding > 0 {
            let left = end - Instant::now();
            if left <= Delta::ZERO
                || self.changed.wait_timeout(&mut life, left) == CondVarTimeoutResult::Timeout
            {
                return life.outstanding == 0;
            }
        }
        true
    }

    /// Closes the device as soon as nothing is on its way. New requests are refused.
    ///
    /// Context: any; the work is done by a thread. [`registry::wait_until_free`] waits for it.
    pub(super) fn close(&self) {
        {
            let mut life = self.life.lock();
            match life.state {
                State::Open => life.state = State::Closing,
                State::Recovering => {
                    life.close_wanted = true;
                    return;
                }
                _ => return,
            }
        }
        self.start_close();
    }

    /// Has a thread close a device that is `Closing`.
    fn start_close(&self) {
        let started = self.on_thread("tcmur-close", |dev| {
            if !dev.drain(CLOSE_LIMIT) {
                dev.stick();
                while !dev.drain(CLOSE_LIMIT) {}
                pr_notice!("{}: its commands have ended after all", dev.path);
            }
            dev.unlock();
            dev.handler.close(&dev.mem);
            dev.down();
        });
        if !started {
            self.stick();
        }
    }

    /// Gives up waiting for a close.
    fn stick(&self) {
        self.life.lock().state = State::Stuck;
        pr_crit!("{}: cannot be closed, commands do not end", self.path);
        registry::stuck();
    }

    /// The handler has closed it.
    fn down(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for t in threads {
            t.stop();
        }
        self.timer.timer_delete();
        self.life.lock().state = State::Closed;
        if let Some(me) = self.me.upgrade() {
            registry::closed(&me);
        }
    }

    /// Has a thread of its own do something. `false`: there is none to be had.
    fn on_thread(&self, name: &str, f: impl FnOnce(&Device) + Send + 'static) -> bool {
        let Some(me) = self.me.upgrade() else {
            return false;
        };
        match kthread::run(name, move |_| f(&me)) {
            Ok(t) => t.detach(),
            Err(e) => {
                pr_crit!("{}: no thread {name}: {e}", self.path);
                return false;
            }
        }
        true
    }

    /// Calls the handler for something that is no request. It is not closed meanwhile, nor opened again. `None`: it is not
    /// open.
    fn while_open<R>(&self, f: impl FnOnce(&Handler) -> R) -> Option<R> {
        {
            let mut life = self.life.lock();
            if life.state != State::Open {
                return None;
            }
            life.outstanding += 1;
        }
        let r = f(&self.handler);
        self.ended();
        Some(r)
    }

    /// Whether it will not change any more. Context: any.
    pub(super) fn is_closed(&self) -> bool {
        self.life.lock().state == State::Closed
    }

    /// Whether somebody closed it and the handler is not done with that. Context: any.
    pub(super) fn is_closing(&self) -> bool {
        let life = self.life.lock();
        life.state == State::Closing || life.close_wanted && life.state != State::Closed
    }

    /// Whether another server has the lock that only opening it again gets back. Context: any.
    pub(super) fn is_lost(&self) -> bool {
        let life = self.life.lock();
        let explicit = matches!(self.locking, Locking::Explicit(_));
        explicit && life.state == State::Open && life.lock != LockState::Write
    }

    /// Whether it was given up. Context: any.
    pub(super) fn is_stuck(&self) -> bool {
        self.life.lock().state == State::Stuck
    }

    /// The handler tells of an event. Context: any.
    #[doc(alias = "tcmu_notify_conn_lost")]
    #[doc(alias = "tcmu_notify_lock_lost")]
    #[doc(alias = "tcmu_notify_cmd_timed_out")]
    pub(super) fn notify(&self, event: Event) {
        if event == Event::LockLost && !self.lock_lost() {
            return;
        }
        let n = self.mem.count(event);
        pr_err_ratelimited!("{}: {event:?} ({n})", self.path);
        self.report_events();
        if event != Event::LockLost {
            self.recover();
        }
    }

    /// Who lost the lock is fenced by the cluster: his commands fail until he opens the device again. `false`: that is old
    /// news, as the lock is just being taken.
    fn lock_lost(&self) -> bool {
        let mut life = self.life.lock();
        if life.lock == LockState::Locking {
            return false;
        }
        life.lock_lost = true;
        life.lock_lost_untold = true;
        self.set_lock(&mut life, LockState::Unlocked);
        true
    }

    fn set_lock(&self, life: &mut Life, to: LockState) {
        life.lock = to;
        self.mem.set_lock_state(to);
    }

    /// Lets the handler tell the cluster what was counted, after a moment.
    fn report_events(&self) {
        if !self.handler.calls.contains(Calls::REPORT_EVENT)
            || self.event_pending.swap(true, Ordering::SeqCst)
        {
            return;
        }
        let started = self.on_thread("tcmur-event", |dev| {
            kshim::time::delay::fsleep(EVENT_PAUSE);
            dev.event_pending.store(false, Ordering::SeqCst);
            if let Some(Err(e)) = dev.while_open(|h| h.report_event(&dev.mem)) {
                pr_err!("{}: cannot report events: {e}", dev.path);
            }
        });
        if !started {
            self.event_pending.store(false, Ordering::SeqCst);
        }
    }

    /// Closes the device and opens it again until that works.
    fn recover(&self) {
        {
            let mut life = self.life.lock();
            life.lost_again = true;
            if life.state != State::Open {
                return;
            }
            life.state = State::Recovering;
        }
        self.renew(None);
    }

    /// For a device that is `Recovering`: closes it and opens it again where that is needed, and takes a lock.
    fn renew(&self, lock: Option<LockState>) {
        let started = self.on_thread("tcmur-reopen", move |dev| {
            while !dev.drain(CLOSE_LIMIT) {
                pr_err!("{}: waiting for commands before it is opened", dev.path);
            }
            if (lock.is_none() || dev.life.lock().lock_lost) && !dev.reopen() {
                return dev.down();
            }
            if lock.is_none() {
                dev.lock_again();
            }
            if lock == Some(LockState::Write) && !dev.take_lock() {
                return dev.down();
            }
            if dev.renewed() {
                dev.recover();
            }
        });
        if !started {
            // As it was: the next command, or the handler, tries again.
            self.renewed();
        }
    }

    /// The device takes requests again, or is closed if somebody wants that. Answers whether the storage was lost once more.
    fn renewed(&self) -> bool {
        let (lost, close) = {
            let mut life = self.life.lock();
            life.state = State::Open;
            (life.lost_again, life.close_wanted)
        };
        if close {
            self.close();
        }
        lost && !close
    }

    /// Closes the device and opens it again, until that works. `false`: somebody wants it closed; it is.
    #[doc(alias = "tcmu_reopen_dev")]
    fn reopen(&self) -> bool {
        self.handler.close(&self.mem);
        self.closed_unflushed();
        loop {
            {
                let mut life = self.life.lock();
                if life.close_wanted {
                    return false;
                }
                life.lost_again = false;
                life.lock_lost = false;
                self.set_lock(&mut life, LockState::Unlocked);
            }
            if self.handler.open(&self.mem, true).is_ok() {
                pr_notice!("{}: opened again", self.path);
                return true;
            }
            kshim::time::delay::fsleep(REOPEN_PAUSE);
        }
    }

    /// Takes the lock from whoever has it. `false`: somebody wants the device closed; it is.
    #[doc(alias = "tcmu_acquire_dev_lock")]
    fn take_lock(&self) -> bool {
        let mut said = self.call_lock(None);
        if is_fenced(said) {
            if !self.reopen() {
                return false;
            }
            said = self.call_lock(None);
        }
        self.locked(said);
        true
    }

    fn call_lock(&self, group: Option<u16>) -> c_int {
        self.set_lock(&mut self.life.lock(), LockState::Locking);
        self.handler.lock(&self.mem, group)
    }

    /// What became of an attempt to take the lock. Answers whether it is there.
    fn locked(&self, said: c_int) -> bool {
        let got = said == abi::TCMU_STS_OK && self.handler.has_lock(&self.mem);
        let state = if got {
            pr_notice!("{}: has the lock", self.path);
            LockState::Write
        } else {
            let owner = self.handler.lock_owner(&self.mem);
            pr_warn_ratelimited!("{}: cannot have the lock ({said}): {owner:?}", self.path);
            LockState::Unlocked
        };
        self.set_lock(&mut self.life.lock(), state);
        got
    }

    /// With explicit failover the lock is taken before the first request. `false`: it cannot be had. Errors: what the handler said;
    /// it has not opened the device again then.
    fn lock_at_open(&self) -> Result<bool, c_int> {
        let Locking::Explicit(group) = self.locking else {
            return Ok(true);
        };
        let mut said = self.call_lock(Some(group));
        if is_fenced(said) {
            self.handler.close(&self.mem);
            self.life.lock().lost_again = false;
            self.handler.open(&self.mem, true)?;
            said = self.call_lock(Some(group));
        }
        Ok(self.locked(said))
    }

    /// The device was opened again, with explicit failover: takes its lock back if nobody else has it. Where that cannot
    /// be told, an initiator has to ask for it.
    fn lock_again(&self) {
        let Locking::Explicit(group) = self.locking else {
            return;
        };
        match self.handler.lock_owner(&self.mem) {
            LockOwner::Nobody => {}
            LockOwner::Group(owner) if owner == group => {}
            owner => {
                return pr_warn!("{}: has lost the lock: {owner:?}", self.path);
            }
        }
        let said = self.call_lock(Some(group));
        self.locked(said);
    }

    /// Before the handler closes it.
    #[doc(alias = "tcmu_release_dev_lock")]
    fn unlock(&self) {
        if self.life.lock().lock == LockState::Write {
            let said = self.handler.unlock(&self.mem);
            if said != abi::TCMU_STS_OK {
                pr_warn!("{}: the lock was not given back ({said})", self.path);
            }
        }
    }

    /// What is behind the device has another size now: asks the handler, and takes it.
    ///
    /// Context: may sleep. Errors: `EINVAL`: the handler does not agree, or it is no number of blocks. `EAGAIN`: it is just being opened
    /// again.
    pub(super) fn resize(&self, bytes: u64) -> Result {
        if bytes == self.capacity() {
            return Ok(());
        }
        let said = self.while_open(|h| h.resize(&self.mem, bytes));
        if let Err(e) = said.ok_or(EAGAIN)? {
            pr_err!(
                "{}: the handler does not take {bytes} bytes: {e}",
                self.path
            );
            return Err(EINVAL);
        }
        // librbd knows the new end of an image only after a request before the old one.
        let looked = Arc::new(Completion::new());
        self.submit(What::Look(Arc::clone(&looked)));
        looked.wait_for_completion();
        self.update_size(bytes)
    }

    /// The device has another size now. Context: any. Errors: `EINVAL`: not a number of blocks.
    #[doc(alias = "tcmur_dev_update_size")]
    pub(super) fn update_size(&self, bytes: u64) -> Result {
        let block = u64::from(self.props.block_size());
        if bytes == 0 || !bytes.is_multiple_of(block) {
            return Err(EINVAL);
        }
        self.props.num_lbas.store(bytes / block, Ordering::Relaxed);
        pr_notice!("{}: {bytes} bytes now", self.path);
        Ok(())
    }
}

/// Whether the device has to be opened again before it can have the lock.
fn is_fenced(said: c_int) -> bool {
    matches!(said, abi::TCMU_STS_FENCED | abi::TCMU_STS_TIMEOUT)
}

/// What a handler's `open` returned; some return -1 for anything.
fn open_error(ret: c_int) -> Error {
    match ret {
        -1 => ENXIO,
        e if (-4095..0).contains(&e) => Error::from_errno(e),
        _ => EIO,
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("path", &self.path)
            .field("in_flight", &self.table.len())
            .finish_non_exhaustive()
    }
}
