//! Reactors: the shim's interrupt context.
//!
//! A reactor is one thread that sleeps in the kernel until a descriptor is ready, a timer is due or another thread has
//! something for it, and then calls the [`Source`]s concerned. What the kernel does in softirqs, tasklets and socket
//! callbacks, ported code does in sources: their callbacks never block ([`might_sleep!`](crate::might_sleep) asserts
//! it in debug builds), and each source lives on one reactor and needs no lock for its own state.
//!
//! # Rounds
//!
//! A reactor works in rounds. Each round runs, in this order: the closures posted and the sources woken by others,
//! the sources that are ready, the timers that are due. During a round the thread holds
//! [`rcu::read_lock`](crate::sync::rcu::read_lock) and is marked [`in_reactor`](crate::cpu::in_reactor); both end
//! before it waits, so that the gap between two rounds is RCU's quiescent point. A round makes one system call of its
//! own: the wait that ends it. A reactor with nothing to do has no timeout, and makes no system call at all.
//!
//! A round longer than [`ROUND_WARN_MS`] is counted and logged: something on the reactor blocks.
//!
//! # Readiness
//!
//! Readiness is edge-triggered: [`Source::ready`] says that something has *become* readable or writable since the last
//! call. The source reads until EAGAIN or a short count; when it wants to stop earlier, to be fair to others, it calls
//! [`Cx::reschedule`] and is called again next round. A newly added descriptor that is ready already reports at once;
//! sockets nearly always start writable, so the first call is usually [`Ready::WRITE`].
//!
//! # Removal and stale tokens
//!
//! A [`Token`] names a source for its lifetime and never another one: slots are reused, but with another generation.
//! Everything done to a token whose source is gone has no effect.
//!
//! [`Cx::remove`] takes effect at once (no further callbacks), but the source is not dropped before the current
//! callback has returned; so a source can remove itself. Last, [`Source::removed`] is called. A source that panics is
//! logged and removed, the reactor lives.
//!
//! # Not supported
//!
//! Level-triggered readiness; moving a source to another reactor (remove it and add it there).
//!
//! # Example
//!
//! ```
//! use std::sync::mpsc;
//! use kshim::reactor::{Cx, Reactor, ReactorConfig, Ready, Source};
//!
//! struct Counter { woken: u32, tell: mpsc::Sender<u32> }
//! impl Source for Counter {
//!     fn ready(&mut self, _: &mut Cx<'_>, _: Ready) {}
//!     fn woken(&mut self, cx: &mut Cx<'_>) {
//!         self.woken += 1;
//!         let me = cx.token();
//!         cx.remove(me);
//!     }
//!     fn timer(&mut self, _: &mut Cx<'_>, _: u32) {}
//!     fn removed(&mut self, _: &mut Cx<'_>) { let _ = self.tell.send(self.woken); }
//! }
//!
//! # fn main() -> kshim::error::Result {
//! let reactor = Reactor::spawn(ReactorConfig::new("example"))?;
//! let (tell, told) = mpsc::channel();
//! let (tx, rx) = mpsc::channel();
//! reactor.handle().post(move |cx| {
//!     let t = cx.add(None, |_| Box::new(Counter { woken: 0, tell }));
//!     let _ = tx.send(t);
//! });
//! let token = rx.recv().expect("the reactor runs")?;
//! reactor.handle().wake(token);
//! assert_eq!(told.recv(), Ok(1));
//! reactor.stop();
//! # Ok(()) }
//! ```
//!
//! C headers: `include/linux/interrupt.h`, `include/linux/wait.h` (what this stands in for).

mod core_loop;
mod cx;
mod io;
mod mailbox;
mod poller;
mod timers;
mod wake;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

pub use cx::{Cx, Source, current_reactor};
pub(crate) use io::queue as queue_io;

pub use crate::sys::poll::PollFd;

use crate::error::Result;
use crate::sys::poll::bits;
use crate::sys::thread::{self, ThreadOptions};
use mailbox::Mailbox;

/// A round that takes longer, in milliseconds, is counted and logged.
pub const ROUND_WARN_MS: u64 = 4;

/// Sources on one reactor, at most.
pub const MAX_SOURCES: usize = 1 << 20;

bitflags::bitflags! {
    /// What a descriptor has become ready for.
    ///
    /// [`HUP`](Ready::HUP) and [`ERR`](Ready::ERR) come with [`READ`](Ready::READ) and [`WRITE`](Ready::WRITE), and
    /// [`RDHUP`](Ready::RDHUP) with [`READ`](Ready::READ): a source that just tries to receive and send finds the end of file or the
    /// error there.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Ready: u8 {
        /// Data, a connection or the end of file can be read.
        const READ = 1;
        /// There is room to write.
        const WRITE = 1 << 1;
        /// Both directions are closed.
        const HUP = 1 << 2;
        /// An error is pending.
        const ERR = 1 << 3;
        /// The peer will send no more; unread data may still be there.
        const RDHUP = 1 << 4;
    }
}

impl Ready {
    /// Kernel bits to readiness. HUP and ERR also count as readable and writable.
    pub(crate) fn from_poll_bits(b: u32) -> Ready {
        let mut r = Ready::empty();
        r.set(
            Ready::READ,
            b & (bits::IN | bits::RDHUP | bits::HUP | bits::ERR) != 0,
        );
        r.set(Ready::WRITE, b & (bits::OUT | bits::HUP | bits::ERR) != 0);
        r.set(Ready::RDHUP, b & (bits::RDHUP | bits::HUP) != 0);
        r.set(Ready::HUP, b & bits::HUP != 0);
        r.set(Ready::ERR, b & bits::ERR != 0);
        r
    }
}

/// How a reactor waits for descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PollerKind {
    /// What the environment variable `KSHIM_POLLER` (`uring` or `epoll`) says, else io_uring where the kernel allows
    /// it, else epoll.
    #[default]
    Auto,
    /// io_uring with multishot polls (Linux 5.13).
    Uring,
    /// epoll, edge-triggered.
    Epoll,
}

/// What [`Reactor::spawn`] needs to know.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// The thread's name; at most 15 bytes are visible in `ps`.
    pub name: String,
    /// Run on this CPU only.
    pub cpu: Option<usize>,
    /// How to wait. A poller that is asked for by name and not available is an error, as is one forced by environment.
    pub poller: PollerKind,
}

impl ReactorConfig {
    /// A reactor of this name on any CPU with the best poller.
    pub fn new(name: impl Into<String>) -> ReactorConfig {
        ReactorConfig {
            name: name.into(),
            cpu: None,
            poller: PollerKind::Auto,
        }
    }
}

/// Names a reactor within the process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReactorId(u32);

/// Names a source on its reactor. Plain data: copy it, send it, keep it after the source is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// A token that names no source: everything done to it has no effect.
    pub const NONE: Token = Token {
        index: u32::MAX,
        generation: 0,
    };

    /// The key under which a poller reports the source's descriptor.
    fn key(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_key(key: u64) -> Token {
        let index = u32::try_from(key & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Token {
            index,
            generation: u32::try_from(key >> 32).unwrap_or(0),
        }
    }
}

/// Counters of a reactor since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorStats {
    /// Rounds run. Constant while the reactor is idle.
    pub rounds: u64,
    /// Readiness edges received from the kernel.
    pub events: u64,
    /// Calls of [`Source::woken`].
    pub wakes: u64,
    /// Posted closures run.
    pub posts: u64,
    /// Timers fired.
    pub timers: u64,
    /// Rounds that took longer than [`ROUND_WARN_MS`].
    pub slow_rounds: u64,
    /// Sources and closures that panicked.
    pub panics: u64,
    /// Times another thread had to ring a sleeping reactor (one system call each).
    pub rings: u64,
    /// Sources alive now.
    pub sources: usize,
}

/// Counters with one writer, the reactor.
#[derive(Default)]
#[repr(align(64))]
struct Counters {
    rounds: AtomicU64,
    events: AtomicU64,
    wakes: AtomicU64,
    posts: AtomicU64,
    timers: AtomicU64,
    slow_rounds: AtomicU64,
    panics: AtomicU64,
    sources: AtomicUsize,
}

/// What the reactor shares with its handles.
struct Shared {
    id: ReactorId,
    name: String,
    mailbox: Mailbox,
    counters: Counters,
}

/// A way to reach a reactor, from any thread.
#[derive(Clone)]
pub struct ReactorHandle {
    shared: Arc<Shared>,
}

impl core::fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ReactorHandle")
            .field("id", &self.shared.id)
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl ReactorHandle {
    /// Which reactor this is. Context: any.
    pub fn id(&self) -> ReactorId {
        self.shared.id
    }

    /// The name it was given. Context: any.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether the caller runs on this reactor. Context: any.
    pub fn is_current(&self) -> bool {
        cx::current() == Some(self.shared.id)
    }

    /// How many sources live there: where to put the next connection. Context: any.
    pub fn load(&self) -> usize {
        self.shared.counters.sources.load(Ordering::Relaxed)
    }

    /// Has `f` run on the reactor in its next round. Allocates: for rare things; data paths use [`wake`](Self::wake).
    ///
    /// True: it will run, exactly once, even when the reactor is being stopped. False: the reactor has stopped and `f` was dropped.
    /// Closures of one thread run in the order posted.
    ///
    /// Context: any; never sleeps.
    pub fn post(&self, f: impl FnOnce(&mut Cx<'_>) + Send + 'static) -> bool {
        self.shared.mailbox.post(Box::new(f))
    }

    /// Has [`Source::woken`] called on the source in the reactor's next round.
    ///
    /// Many wakes of one source before it runs are one call. What the caller wrote before the wake is visible to the
    /// call. A token whose source is gone is ignored. At most one system call for any number of wakes, and none while
    /// the reactor is awake.
    ///
    /// Context: any; never sleeps, never allocates.
    pub fn wake(&self, t: Token) {
        self.shared.mailbox.wake(t);
    }

    /// The reactor's counters. Context: any.
    pub fn stats(&self) -> ReactorStats {
        let c = &self.shared.counters;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        ReactorStats {
            rounds: get(&c.rounds),
            events: get(&c.events),
            wakes: get(&c.wakes),
            posts: get(&c.posts),
            timers: get(&c.timers),
            slow_rounds: get(&c.slow_rounds),
            panics: get(&c.panics),
            rings: self.shared.mailbox.rings(),
            sources: c.sources.load(Ordering::Relaxed),
        }
    }
}

/// A running reactor: its owner's end. Dropping it stops it.
#[derive(Debug)]
pub struct Reactor {
    handle: ReactorHandle,
    poller: PollerKind,
    thread: Option<thread::JoinHandle>,
}

static NEXT_ID: AtomicU32 = AtomicU32::new(0);

impl Reactor {
    /// Starts a reactor thread and returns when it runs.
    ///
    /// Context: may sleep.
    ///
    /// Errors: EINVAL (`KSHIM_POLLER` holds nonsense; no such CPU), those of the poller if one was asked for by name
    /// (ENOSYS, EPERM, EOPNOTSUPP), EAGAIN (no more threads), EMFILE, ENOMEM.
    pub fn spawn(cfg: ReactorConfig) -> Result<Reactor> {
        crate::might_sleep!();
        let env = crate::sys::linux::proc::env("KSHIM_POLLER");
        let kind = poller::choose(cfg.poller, env.as_deref())?;
        let shared = Arc::new(Shared {
            id: ReactorId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            name: cfg.name,
            mailbox: Mailbox::new()?,
            counters: Counters::default(),
        });
        let handle = ReactorHandle { shared };
        let (started, wait) = crossbeam_channel::bounded(1);
        let h = handle.clone();
        let cpu = cfg.cpu;
        let opts = ThreadOptions {
            name: handle.name().to_owned(),
            ..ThreadOptions::default()
        };
        let thread = thread::spawn(&opts, move || {
            let core = match core_loop::Core::new(h, kind, cpu) {
                Ok(core) => core,
                Err(e) => {
                    let _ = started.send(Err(e));
                    return;
                }
            };
            let _ = started.send(Ok(core.poller_kind()));
            drop(started);
            core.run();
        })?;
        let poller = wait.recv().unwrap_or(Err(crate::error::code::EAGAIN))?;
        crate::pr_info!("{}: waiting by {poller:?}", handle.name());
        Ok(Reactor {
            handle,
            poller,
            thread: Some(thread),
        })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ReactorHandle {
        self.handle.clone()
    }

    /// The poller in use: never [`PollerKind::Auto`].
    pub fn poller(&self) -> PollerKind {
        self.poller
    }

    /// Ends the reactor: closures accepted so far run, every source is removed (with its
    /// [`removed`](Source::removed)), the thread is joined.
    ///
    /// Context: may sleep. Called on the reactor itself, it only asks: the thread ends after the current round.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.handle.shared.mailbox.request_stop();
        if self.handle.is_current() {
            return;
        }
        if let Some(t) = self.thread.take() {
            crate::might_sleep!();
            t.join();
        }
    }
}
