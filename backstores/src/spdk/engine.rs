//! The thread that SPDK's "app thread" lives on: it starts and ends SPDK, opens and closes bdevs, serves the RPC socket, and does I/O for
//! threads that are no reactors.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use kshim::block::SubmittedBio;
use kshim::kthread::{Builder, Kthread, Stop, WorkerQueue};
use kshim::page::{PagePool, SpanSource};
use kshim::prelude::*;
use kshim::reactor::{ReactorHandle, Token};
use kshim::sync::{Completion, Mutex, SpinLock};
use kshim::time::{Delta, Instant};

use super::device::Dev;
use super::ffi::bdev::RawDesc;
use super::ffi::dma::PoolMemory;
use super::ffi::env::{self, EnvConfig, Pending, Rpc};
use super::ffi::thread::Thread;
use super::local::{self, Local};

/// How long a configuration, or the end of all subsystems, may take.
const STEP_LIMIT: Delta = Delta::from_secs(60);
/// How long closing bdevs may take at the end.
const CLOSE_LIMIT: Delta = Delta::from_secs(10);
/// Polls in vain before the thread sleeps.
const SPIN: u32 = 100;
/// How long it sleeps, with and without an RPC socket to look at.
const RPC_NAP: Delta = Delta::from_millis(20);
const NAP: Delta = Delta::from_millis(250);

/// Command buffers take at most so much of SPDK's memory.
const POOL_LIMIT: usize = 512 << 20;

/// What the thread starts with.
pub(super) struct Start {
    pub(super) env: EnvConfig,
    /// SPDK's JSON configuration.
    pub(super) json: Option<Vec<u8>>,
    pub(super) rpc: Option<PathBuf>,
}

enum Job {
    Open(Box<Opening>),
    Close(RawDesc),
    Bio(Arc<Dev>, SubmittedBio),
    Stop,
}

struct Opening {
    name: String,
    write: bool,
    answer: Arc<Answer<Arc<Dev>>>,
}

/// A result that somebody waits for.
struct Answer<T> {
    slot: SpinLock<Option<Result<T>>>,
    done: Completion,
}

impl<T> Answer<T> {
    fn new() -> Arc<Answer<T>> {
        Arc::new(Answer {
            slot: SpinLock::new(None),
            done: Completion::new(),
        })
    }

    fn tell(&self, result: Result<T>) {
        *self.slot.lock() = Some(result);
        self.done.complete();
    }

    fn wait(&self) -> Result<T> {
        self.done.wait_for_completion();
        self.slot.lock().take().unwrap_or(Err(EIO))
    }
}

/// A running SPDK.
pub(super) struct Engine {
    queue: WorkerQueue<Job>,
    thread: Mutex<Option<Kthread>>,
    /// Its end, and whether it was a clean one.
    ended: Arc<Answer<()>>,
    stopping: AtomicBool,
    /// Hugepages and PCI devices: what they read and write is in memory that they can reach.
    pub(super) has_devices: bool,
    /// The sources that poll on reactors.
    pollers: SpinLock<Vec<(ReactorHandle, Token)>>,
    devs: SpinLock<Vec<Weak<Dev>>>,
    /// Descriptors that are open.
    descs: AtomicUsize,
    /// Grows when threads shall look for channels to close.
    sweeps: AtomicU64,
}

impl Engine {
    /// Starts SPDK: once in a process.
    ///
    /// Context: may sleep. Errors: SPDK's; it says on stderr what is wrong.
    pub(super) fn start(start: Start) -> Result<Arc<Engine>> {
        let engine = Arc::new(Engine {
            queue: WorkerQueue::new(),
            thread: Mutex::new(None),
            ended: Answer::new(),
            stopping: AtomicBool::new(false),
            has_devices: start.env.mem_mib.is_none(),
            pollers: SpinLock::new(Vec::new()),
            devs: SpinLock::new(Vec::new()),
            descs: AtomicUsize::new(0),
            sweeps: AtomicU64::new(0),
        });
        let started = Answer::new();
        let (theirs, told) = (Arc::clone(&engine), Arc::clone(&started));
        let thread = Builder::new("spdk").spawn(move |stop| {
            let result = theirs.run(&start, stop, &told);
            // Nobody listens to the one that is late.
            if let Err(e) = result {
                told.tell(Err(e));
            }
            theirs.ended.tell(result);
        })?;
        *engine.thread.lock() = Some(thread);
        started.wait()?;
        Ok(engine)
    }

    /// Ends SPDK; all bdevs are closed already, or soon. `false`: something did not end in time.
    ///
    /// Context: may sleep; the reactors have stopped.
    pub(super) fn stop(&self) -> bool {
        let Some(thread) = self.thread.lock().take() else {
            return true;
        };
        self.stopping.store(true, Ordering::SeqCst);
        self.queue.push(Job::Stop);
        let clean = self.ended.wait().is_ok();
        thread.join();
        clean
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Opens a bdev. Context: may sleep. Errors: `ENODEV`: there is none; others of SPDK.
    pub(super) fn open(&self, name: &str, write: bool) -> Result<Arc<Dev>> {
        if self.is_stopping() {
            return Err(ENODEV);
        }
        let answer = Answer::new();
        self.queue.push(Job::Open(Box::new(Opening {
            name: name.to_owned(),
            write,
            answer: Arc::clone(&answer),
        })));
        answer.wait()
    }

    /// Closes a descriptor that nobody uses any more. Context: any.
    pub(super) fn close(&self, raw: RawDesc) {
        self.queue.push(Job::Close(raw));
    }

    /// Has a bio done on the engine's thread. Context: any.
    pub(super) fn submit(&self, dev: Arc<Dev>, bio: SubmittedBio) {
        if self.is_stopping() {
            return bio.complete(Err(ENODEV));
        }
        self.queue.push(Job::Bio(dev, bio));
    }

    pub(super) fn sweeps(&self) -> u64 {
        self.sweeps.load(Ordering::Acquire)
    }

    /// Has all threads close channels of what is leaving. Context: any.
    pub(super) fn sweep(&self) {
        self.sweeps.fetch_add(1, Ordering::AcqRel);
        self.kick();
    }

    /// Has all reactors poll once.
    fn kick(&self) {
        for (reactor, token) in &*self.pollers.lock() {
            reactor.wake(*token);
        }
    }

    pub(super) fn add_poller(&self, reactor: ReactorHandle, token: Token) {
        self.pollers.lock().push((reactor, token));
    }

    /// Context: the reactor that added it.
    pub(super) fn remove_poller(&self, token: Token) {
        self.pollers
            .lock()
            .retain(|(r, t)| *t != token || !r.is_current());
    }

    fn run(self: &Arc<Self>, start: &Start, stop: &Stop, started: &Answer<()>) -> Result {
        env::init(&start.env)?;
        let pool = Arc::new(PoolMemory::new(POOL_LIMIT));
        if self.has_devices {
            PagePool::set_source(Some(Arc::clone(&pool) as Arc<dyn SpanSource>));
            // What is idle of the host's memory shall not be used again.
            PagePool::shrink();
        }
        let local = Rc::new(Local::new(Thread::new("scst_spdk")?, Arc::clone(self)));
        let begun = begin(&local, start);
        let (rpc, result) = match begun {
            Ok(rpc) => {
                pr_info!("SPDK {}.{:02} runs", env::VERSION / 100, env::VERSION % 100);
                started.tell(Ok(()));
                self.serve(&local, rpc.as_ref(), stop);
                (rpc, Ok(()))
            }
            Err(e) => (None, Err(e)),
        };
        drop(rpc);
        result.and(self.end(local, &pool))
    }

    /// Works until it is told to stop.
    fn serve(self: &Arc<Self>, local: &Local, rpc: Option<&Rpc>, stop: &Stop) {
        let nap = if rpc.is_some() { RPC_NAP } else { NAP };
        let mut idle = 0;
        loop {
            let job = if idle < SPIN {
                self.queue.try_next()
            } else {
                self.queue.wait_next_timeout(stop, nap)
            };
            let mut busy = match job {
                Some(Job::Stop) => return,
                Some(job) => {
                    self.work(local, job);
                    true
                }
                None => false,
            };
            if let Some(rpc) = rpc {
                rpc.poll();
            }
            if local.turn() {
                busy = true;
                // It may have told other threads something.
                self.kick();
            }
            busy |= local.is_busy();
            // What was removed is seen here at the latest when the thread wakes up.
            self.look_for_removed();
            idle = if busy { 0 } else { idle.saturating_add(1) };
            if idle > SPIN {
                idle = SPIN.saturating_sub(1);
            }
        }
    }

    fn work(self: &Arc<Self>, local: &Local, job: Job) {
        match job {
            Job::Open(o) => o.answer.tell(self.open_here(&o.name, o.write)),
            Job::Close(raw) => {
                raw.close();
                self.descs.fetch_sub(1, Ordering::Relaxed);
            }
            Job::Bio(dev, bio) => local.submit(&dev, bio),
            Job::Stop => {}
        }
    }

    fn open_here(self: &Arc<Self>, name: &str, write: bool) -> Result<Arc<Dev>> {
        let opened = RawDesc::open(name, write).inspect_err(|e| match *e {
            ENODEV => pr_err!("SPDK has no bdev {name:?}"),
            e => pr_err!("SPDK: bdev {name} cannot be opened: {e}"),
        })?;
        self.descs.fetch_add(1, Ordering::Relaxed);
        let dev = Dev::new((name, write), opened, self)?;
        let mut devs = self.devs.lock();
        devs.retain(|d| d.strong_count() > 0);
        devs.push(Arc::downgrade(&dev));
        Ok(dev)
    }

    fn look_for_removed(&self) {
        let removed: Vec<Arc<Dev>> = {
            let devs = self.devs.lock();
            let all = devs.iter().filter_map(Weak::upgrade);
            all.filter(|d| d.is_removed()).collect()
        };
        for dev in removed {
            pr_warn!(
                "SPDK: bdev {} was removed; its commands fail from now on",
                dev.name
            );
            dev.close();
        }
    }

    /// Closes what is left and ends SPDK.
    fn end(self: &Arc<Self>, local: Rc<Local>, pool: &PoolMemory) -> Result {
        let limit = Instant::now() + CLOSE_LIMIT;
        while self.descs.load(Ordering::Relaxed) > 0 && Instant::now() < limit {
            if let Some(job) = self.queue.try_next() {
                match job {
                    Job::Open(o) => o.answer.tell(Err(ENODEV)),
                    Job::Bio(_, bio) => bio.complete(Err(ENODEV)),
                    job => self.work(&local, job),
                }
            }
            local.turn();
        }
        let left = self.descs.load(Ordering::Relaxed);
        if left > 0 {
            pr_err!("SPDK: {left} bdevs are still open");
            return Err(EBUSY);
        }
        finish(&local, &Pending::end_subsystems())?;
        if !local::end(local) {
            return Err(ETIMEDOUT);
        }
        PagePool::set_source(None);
        PagePool::shrink();
        // Buffers that somebody holds keep the environment: the process is about to end.
        if pool.used() == 0 {
            env::fini();
        }
        Ok(())
    }
}

/// Configures SPDK and starts its subsystems.
fn begin(local: &Local, start: &Start) -> Result<Option<Rpc>> {
    if let Some(json) = &start.json {
        finish(local, &Pending::config(json))?;
    }
    finish(local, &Pending::subsystems())?;
    env::running();
    if let Some(json) = &start.json {
        finish(local, &Pending::config(json))?;
    }
    start.rpc.as_deref().map(Rpc::listen).transpose()
}

/// Polls until SPDK is done.
fn finish(local: &Local, pending: &Pending) -> Result {
    let limit = Instant::now() + STEP_LIMIT;
    loop {
        if let Some(result) = pending.result() {
            return result;
        }
        if Instant::now() > limit {
            return Err(ETIMEDOUT);
        }
        local.turn();
    }
}
