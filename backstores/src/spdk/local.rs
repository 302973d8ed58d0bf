//! What each thread that does I/O has: an `spdk_thread`, and a channel to each bdev that it uses.
//!
//! A reactor gets one with the first bio that is submitted on it. The bio is submitted to SPDK at once, and SPDK is polled once: what
//! is in memory has ended then, and the command with it, without another round. While something is in flight the
//! reactor's rounds poll SPDK and do not sleep; otherwise a slow timer does, for what SPDK's modules have to do by themselves.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use kshim::block::SubmittedBio;
use kshim::prelude::*;
use kshim::reactor::{Cx, ReactorHandle, Ready, Source, Token, current_reactor};
use kshim::time::{Delta, Instant};

use super::device::{Desc, Dev};
use super::engine::Engine;
use super::ffi::bdev::{self, Channel};
use super::ffi::lend::Lends;
use super::ffi::thread::Thread;
use super::request::Request;

/// How often SPDK is polled on a reactor with nothing to do.
const IDLE_POLL: Delta = Delta::from_millis(250);
/// Rounds that go on after something was closed: SPDK ends channels by messages to itself.
const LINGER: u32 = 32;
/// How long the end of a thread may take.
const END_LIMIT: Delta = Delta::from_secs(10);
/// After so many polls in a row that a submit did in vain, only one submit in [`RETRY_EAGER`] polls.
const MAX_MISSES: u32 = 16;
const RETRY_EAGER: u32 = 256;
/// Unused requests that are kept.
const SPARES: usize = 256;
/// How often the end of a reactor's sources is awaited, of which some may have memory that is lent.
const MAX_LAST: u32 = 8;

/// A thread's way to a bdev. Closed with the last request that uses it.
pub(super) struct Chan {
    // Before the descriptor.
    pub(super) channel: Channel,
    pub(super) desc: Arc<Desc>,
    pub(super) dev: Arc<Dev>,
}

/// What a thread has of SPDK.
pub(super) struct Local {
    chans: RefCell<Vec<Rc<Chan>>>,
    /// Requests that SPDK had no room for.
    waiting: RefCell<VecDeque<Box<Request>>>,
    /// Boxes, as SPDK has their addresses.
    spare: RefCell<Vec<Box<Request>>>,
    /// Before the channels, which it keeps.
    lends: Lends<Rc<Chan>>,
    scratch: Cell<Vec<(Box<Request>, Result)>>,
    inflight: Cell<usize>,
    turning: Cell<bool>,
    linger: Cell<u32>,
    misses: Cell<u32>,
    swept: Cell<u64>,
    /// The source that polls; none on the engine's own thread.
    poller: RefCell<Option<(ReactorHandle, Token)>>,
    /// Whether it will be called in the next round anyway.
    scheduled: Cell<bool>,
    engine: Arc<Engine>,
    thread: Thread,
}

thread_local! {
    static LOCAL: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

/// The calling reactor's part. `None`: this is no reactor, or SPDK gives it none.
pub(super) fn of_reactor(engine: &Arc<Engine>) -> Option<Rc<Local>> {
    if let Some(local) = LOCAL.with_borrow(Clone::clone) {
        return Some(local);
    }
    if !kshim::cpu::in_reactor() || engine.is_stopping() {
        return None;
    }
    let reactor = current_reactor()?;
    let thread = Thread::new(reactor.name())
        .inspect_err(|e| pr_err_ratelimited!("SPDK: no thread for {}: {e}", reactor.name()))
        .ok()?;
    let local = Rc::new(Local::new(thread, Arc::clone(engine)));
    LOCAL.set(Some(Rc::clone(&local)));
    // The round that runs this comes next, also when the reactor is about to stop.
    reactor.post(attach);
    Some(local)
}

fn attach(cx: &mut Cx<'_>) {
    let Some(local) = LOCAL.with_borrow(Clone::clone) else {
        return;
    };
    let theirs = Rc::clone(&local);
    match cx.add(None, |_| Box::new(Poll(Some(theirs), 0))) {
        Ok(token) => {
            local.engine.add_poller(cx.handle().clone(), token);
            *local.poller.borrow_mut() = Some((cx.handle().clone(), token));
            local.scheduled.set(true);
            cx.reschedule(token);
        }
        Err(e) => pr_err!("SPDK is not polled on {}: {e}", cx.handle().name()),
    }
}

/// Polls in a reactor's rounds. The number counts the times that it was removed while memory was lent.
struct Poll(Option<Rc<Local>>, u32);

impl Poll {
    fn turn(&self, cx: &mut Cx<'_>) {
        let Some(local) = &self.0 else { return };
        local.turn();
        let me = cx.token();
        let busy = local.is_busy();
        local.scheduled.set(busy);
        if busy {
            cx.reschedule(me);
        } else {
            cx.set_timer(me, 0, cx.now() + IDLE_POLL);
        }
    }
}

impl Source for Poll {
    fn ready(&mut self, cx: &mut Cx<'_>, _: Ready) {
        self.turn(cx);
    }

    fn woken(&mut self, cx: &mut Cx<'_>) {
        self.turn(cx);
    }

    fn timer(&mut self, cx: &mut Cx<'_>, _: u32) {
        self.turn(cx);
    }

    fn removed(&mut self, cx: &mut Cx<'_>) {
        let Some(local) = self.0.take() else { return };
        local.engine.remove_poller(cx.token());
        local.collect();
        // Those who have lent memory may be the next to be removed: this source comes again after them.
        if local.lends.len() > 0 && self.1 < MAX_LAST {
            let (again, times) = (Rc::clone(&local), self.1 + 1);
            if cx.add(None, |_| Box::new(Poll(Some(again), times))).is_ok() {
                return;
            }
        }
        LOCAL.set(None);
        end(local);
    }
}

/// Ends a thread's part: requests end, channels are closed, the `spdk_thread` exits. `false`: that took too long, and it stays.
pub(super) fn end(local: Rc<Local>) -> bool {
    let limit = Instant::now() + END_LIMIT;
    while local.inflight.get() > 0 || local.lends.len() > 0 {
        if Instant::now() >= limit {
            break;
        }
        local.turn();
    }
    let waiting = std::mem::take(&mut *local.waiting.borrow_mut());
    for request in waiting {
        local.finish(request, Err(EIO));
    }
    local.chans.borrow_mut().clear();
    local.thread.exit();
    while !local.thread.is_exited() && Instant::now() < limit {
        local.turn();
    }
    let ended = Rc::into_inner(local).is_some_and(|local| local.thread.destroy());
    if !ended {
        pr_err!("SPDK: a thread did not end");
    }
    ended
}

/// Clears a flag at the end of a scope.
struct Clear<'a>(&'a Cell<bool>);

impl Drop for Clear<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Local {
    pub(super) fn new(thread: Thread, engine: Arc<Engine>) -> Local {
        Local {
            chans: RefCell::default(),
            waiting: RefCell::default(),
            spare: RefCell::default(),
            lends: Lends::default(),
            scratch: Cell::default(),
            inflight: Cell::new(0),
            turning: Cell::new(false),
            linger: Cell::new(0),
            misses: Cell::new(0),
            swept: Cell::new(0),
            poller: RefCell::default(),
            scheduled: Cell::new(false),
            engine,
            thread,
        }
    }

    /// Requests at SPDK, or waiting for it.
    pub(super) fn is_busy(&self) -> bool {
        if self.inflight.get() > 0 {
            return true;
        }
        let left = self.linger.get();
        self.linger.set(left.saturating_sub(1));
        left > 0
    }

    fn chan(&self, dev: &Arc<Dev>) -> Result<Rc<Chan>> {
        let chans = self.chans.borrow();
        if let Some(chan) = chans.iter().find(|c| Arc::ptr_eq(&c.dev, dev)) {
            return Ok(Rc::clone(chan));
        }
        drop(chans);
        let desc = dev.desc().ok_or(ENODEV)?;
        let channel = Channel::get(desc.raw()?)?;
        let dev = Arc::clone(dev);
        let chan = Rc::new(Chan { channel, desc, dev });
        self.chans.borrow_mut().push(Rc::clone(&chan));
        Ok(chan)
    }

    /// Starts a bio, which may have ended when this returns.
    pub(super) fn submit(&self, dev: &Arc<Dev>, bio: SubmittedBio) {
        let chan = match self.chan(dev) {
            Ok(chan) if !chan.desc.leaving.load(Ordering::Acquire) => chan,
            Ok(_) => return bio.complete(Err(ENODEV)),
            Err(e) => return bio.complete(Err(e)),
        };
        let mut request = self.spare.borrow_mut().pop().unwrap_or_default();
        if !request.prepare(bio, chan, self.poller.borrow().is_some()) {
            return self.keep(request);
        }
        self.inflight.update(|n| n + 1);
        self.start(request);
        if self.eager() {
            let before = self.inflight.get();
            self.turn();
            let hit = self.inflight.get() < before;
            self.misses
                .update(|n| if hit { 0 } else { n.wrapping_add(1) });
        }
        self.schedule();
    }

    /// Whether a submit shall poll: it does as long as that ends requests.
    fn eager(&self) -> bool {
        let n = self.misses.get();
        if self.turning.get() {
            return false;
        }
        if n < MAX_MISSES || n.is_multiple_of(RETRY_EAGER) {
            return true;
        }
        self.misses.set(n.wrapping_add(1));
        false
    }

    /// Has the reactor poll in its next round.
    fn schedule(&self) {
        if self.inflight.get() == 0 || self.scheduled.get() {
            return;
        }
        if let Some((reactor, token)) = &*self.poller.borrow() {
            self.scheduled.set(true);
            reactor.wake(*token);
        }
    }

    fn start(&self, request: Box<Request>) {
        let chan = request.chan().map(Rc::clone);
        let started = match chan.as_ref().map(|c| (c, c.desc.raw())) {
            Ok((chan, Ok(raw))) => bdev::submit(raw, &chan.channel, request),
            Ok((_, Err(e))) => Err((request, e)),
            Err(&e) => Err((request, e)),
        };
        match started {
            Ok(()) => {}
            Err((request, ENOMEM)) => self.waiting.borrow_mut().push_back(request),
            Err((request, e)) => self.finish(request, Err(e)),
        }
    }

    fn finish(&self, mut request: Box<Request>, status: Result) {
        self.inflight.update(|n| n - 1);
        let leaving = |c: &Rc<Chan>| c.desc.leaving.load(Ordering::Relaxed);
        if request.chan().is_ok_and(leaving) {
            self.linger.set(LINGER);
        }
        request.finish(status, &self.lends);
        self.keep(request);
    }

    fn keep(&self, request: Box<Request>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARES {
            spare.push(request);
        }
    }

    /// Polls SPDK and goes on with what has ended. Whether SPDK had something to do.
    pub(super) fn turn(&self) -> bool {
        if self.turning.replace(true) {
            return false;
        }
        let _clear = Clear(&self.turning);
        self.collect();
        let busy = self.thread.poll();
        self.go_on();
        // As many as there are: one that fails again waits for the next turn.
        let n = self.waiting.borrow().len();
        for _ in 0..n {
            let request = self.waiting.borrow_mut().pop_front();
            if let Some(request) = request {
                self.start(request);
            }
        }
        self.sweep();
        busy
    }

    /// Ends what was lent and is not needed any more.
    fn collect(&self) {
        self.lends.collect(|chan| {
            if chan.desc.leaving.load(Ordering::Relaxed) {
                self.linger.set(LINGER);
            }
        });
    }

    fn go_on(&self) {
        let mut ended = bdev::take_ended(self.scratch.take());
        for (mut request, status) in ended.drain(..) {
            if status.is_ok() && request.next_step() {
                self.start(request);
            } else {
                self.finish(request, status);
            }
        }
        self.scratch.set(ended);
    }

    /// Lets go of bdevs that are being closed.
    fn sweep(&self) {
        let now = self.engine.sweeps();
        if self.swept.replace(now) == now {
            return;
        }
        let mut gone = Vec::new();
        self.chans.borrow_mut().retain(|c| {
            let stays = !c.desc.leaving.load(Ordering::Acquire);
            if !stays {
                gone.push(Rc::clone(c));
            }
            stays
        });
        self.linger.set(LINGER);
    }
}
