//! The reactor's own half: source slots, dispatch and the loop.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use super::cx::{self, Cx, Source};
use super::io::SidePorts;
use super::mailbox::Post;
use super::poller::{self, Event, Poller};
use super::timers::{TimerId, Timers};
use super::{MAX_SOURCES, PollFd, PollerKind, ROUND_WARN_MS, ReactorHandle, Ready, Shared, Token};
use crate::cpu;
use crate::error::{Result, code};
use crate::fs::io::Ended;
use crate::sync::rcu;
use crate::sys::poll::Timeout;
use crate::sys::thread;
use crate::time::{Delta, Instant};

/// The bell's key: no token has it, as [`MAX_SOURCES`] is smaller than its index.
const KEY_BELL: u64 = u32::MAX as u64;

/// Room for posted closures that is kept between rounds.
const POSTS_KEPT: usize = 256;

/// One place for a source. A vacant slot keeps its generation, which grows with each use.
struct Slot {
    generation: u32,
    state: SlotState,
    /// Taken out while one of its callbacks runs.
    source: Option<Box<dyn Source>>,
    fd: Option<PollFd>,
    /// Readiness to report; not empty exactly while the token is on the run queue.
    pending: Ready,
    /// The timers used so far, by their number.
    timers: Vec<(u32, TimerId)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Vacant,
    Live,
    /// On the list of removals: no callback but `removed`.
    Leaving,
}

/// Which callback to run.
#[derive(Clone, Copy)]
enum Call {
    Ready(Ready),
    Woken,
    Timer(u32),
    Removed,
}

/// Everything that belongs to the reactor's thread.
pub(super) struct Core {
    handle: ReactorHandle,
    pub(super) poller: Box<dyn Poller>,
    pub(super) side_ports: SidePorts,
    /// File requests that the host is done with.
    pub(super) io_ended: Vec<Ended>,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    timers: Timers,
    now: Instant,
    /// Tokens with something `pending`.
    run_queue: Vec<Token>,
    leaving: Vec<Token>,
    busy_poll_us: u32,
    // Scratch of the loop, kept for its capacity.
    running: Vec<Token>,
    pub(super) events: Vec<Event>,
    posts: Vec<Post>,
    wakes: Vec<Token>,
}

fn idx(i: u32) -> usize {
    usize::try_from(i).expect("usize has at least 32 bits here")
}

/// What a panic said.
fn panic_text(cause: &(dyn core::any::Any + Send)) -> &str {
    cause
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| cause.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Adds to a counter that only this thread writes.
fn count(c: &AtomicU64, n: usize) {
    let n = u64::try_from(n).unwrap_or(u64::MAX);
    c.store(c.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Core {
    /// Makes the calling thread a reactor.
    pub(super) fn new(handle: ReactorHandle, kind: PollerKind, cpu: Option<usize>) -> Result<Core> {
        if let Some(cpu) = cpu {
            thread::set_affinity(cpu)?;
        }
        let mut poller = poller::open(kind, handle.name())?;
        poller.add(&handle.shared.mailbox.bell().poll_fd(), KEY_BELL)?;
        cx::set_current(&handle);
        Ok(Core {
            handle,
            poller,
            side_ports: SidePorts::new(),
            io_ended: Vec::new(),
            slots: Vec::new(),
            vacant: Vec::new(),
            timers: Timers::default(),
            now: Instant::now(),
            run_queue: Vec::new(),
            leaving: Vec::new(),
            busy_poll_us: 0,
            running: Vec::new(),
            events: Vec::new(),
            posts: Vec::new(),
            wakes: Vec::new(),
        })
    }

    pub(super) fn poller_kind(&self) -> PollerKind {
        self.poller.kind()
    }

    pub(super) fn handle(&self) -> &ReactorHandle {
        &self.handle
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn set_busy_poll(&mut self, us: u32) {
        self.busy_poll_us = us;
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn live(&mut self, t: Token) -> Option<&mut Slot> {
        self.slots
            .get_mut(idx(t.index))
            .filter(|s| s.generation == t.generation && s.state == SlotState::Live)
    }

    pub(super) fn contains(&self, t: Token) -> bool {
        self.slots
            .get(idx(t.index))
            .is_some_and(|s| s.generation == t.generation && s.state == SlotState::Live)
    }

    /// A vacant slot's token. The slot stays vacant until [`Core::add`] fills it.
    fn vacant_slot(&mut self) -> Result<Token> {
        let index = match self.vacant.last() {
            Some(&i) => i,
            None => {
                if self.slots.len() >= MAX_SOURCES {
                    return Err(code::ENOSPC);
                }
                let i = u32::try_from(self.slots.len()).map_err(|_| code::ENOSPC)?;
                self.slots.push(Slot {
                    generation: 1,
                    state: SlotState::Vacant,
                    source: None,
                    fd: None,
                    pending: Ready::empty(),
                    timers: Vec::new(),
                });
                self.shared().mailbox.open_entry(i, 1);
                self.vacant.push(i);
                i
            }
        };
        Ok(Token {
            index,
            generation: self.slots[idx(index)].generation,
        })
    }

    pub(super) fn add(
        &mut self,
        fd: Option<PollFd>,
        make: impl FnOnce(Token) -> Box<dyn Source>,
    ) -> Result<Token> {
        let t = self.vacant_slot()?;
        let source = make(t);
        if let Some(fd) = &fd {
            self.poller.add(fd, t.key())?;
        }
        self.vacant.pop();
        let slot = &mut self.slots[idx(t.index)];
        slot.state = SlotState::Live;
        slot.source = Some(source);
        slot.fd = fd;
        self.shared()
            .counters
            .sources
            .fetch_add(1, Ordering::Relaxed);
        Ok(t)
    }

    pub(super) fn remove(&mut self, t: Token) {
        let Some(slot) = self.live(t) else { return };
        slot.state = SlotState::Leaving;
        slot.pending = Ready::empty();
        let fd = slot.fd.take();
        let timers = core::mem::take(&mut slot.timers);
        for (_, id) in timers {
            self.timers.destroy(id);
        }
        if let Some(fd) = fd {
            self.poller.remove(&fd, t.key());
        }
        self.leaving.push(t);
    }

    pub(super) fn make_ready(&mut self, t: Token, ready: Ready) {
        let Some(slot) = self.live(t) else { return };
        let queued = !slot.pending.is_empty();
        slot.pending |= ready;
        if !queued && !ready.is_empty() {
            self.run_queue.push(t);
        }
    }

    pub(super) fn set_timer(&mut self, t: Token, number: u32, at: Instant) {
        let Some(slot) = self.live(t) else { return };
        let known = slot
            .timers
            .iter()
            .find(|(n, _)| *n == number)
            .map(|(_, id)| *id);
        let id = known.unwrap_or_else(|| {
            let id = self.timers.create(t.index, number);
            self.slots[idx(t.index)].timers.push((number, id));
            id
        });
        self.timers.arm(id, at);
    }

    pub(super) fn cancel_timer(&mut self, t: Token, number: u32) {
        let Some(slot) = self.live(t) else { return };
        if let Some((_, id)) = slot.timers.iter().find(|(n, _)| *n == number) {
            let id = *id;
            self.timers.cancel(id);
        }
    }

    /// Runs a callback of a live source (or `removed` of a leaving one), with the source taken out of its slot.
    fn call(&mut self, t: Token, what: Call) {
        let wanted = if matches!(what, Call::Removed) {
            SlotState::Leaving
        } else {
            SlotState::Live
        };
        let Some(slot) = self.slots.get_mut(idx(t.index)) else {
            return;
        };
        if slot.generation != t.generation || slot.state != wanted {
            return;
        }
        let Some(mut source) = slot.source.take() else {
            return;
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let cx = &mut Cx {
                core: self,
                token: t,
            };
            match what {
                Call::Ready(r) => source.ready(cx, r),
                Call::Woken => source.woken(cx),
                Call::Timer(n) => source.timer(cx, n),
                Call::Removed => source.removed(cx),
            }
        }));
        // The slot cannot have been reused: it is vacated below in `reap` only, never during a callback.
        self.slots[idx(t.index)].source = Some(source);
        if let Err(cause) = outcome {
            self.panicked("a source", &*cause);
            self.remove(t);
        }
    }

    fn call_and_reap(&mut self, t: Token, what: Call) {
        self.call(t, what);
        if !self.leaving.is_empty() {
            self.reap();
        }
    }

    fn panicked(&self, who: &str, cause: &(dyn core::any::Any + Send)) {
        let text = panic_text(cause);
        count(&self.shared().counters.panics, 1);
        crate::pr_err!(
            "{}: {who} panicked and was removed: {text}",
            self.handle.name()
        );
    }

    /// Says goodbye to the sources that are leaving and vacates their slots.
    fn reap(&mut self) {
        while let Some(t) = self.leaving.pop() {
            self.call(t, Call::Removed);
            let slot = &mut self.slots[idx(t.index)];
            let source = slot.source.take();
            slot.state = SlotState::Vacant;
            slot.generation = slot.generation.wrapping_add(1).max(1);
            let generation = slot.generation;
            self.shared().mailbox.set_generation(t.index, generation);
            self.vacant.push(t.index);
            self.shared()
                .counters
                .sources
                .fetch_sub(1, Ordering::Relaxed);
            if let Err(cause) = catch_unwind(AssertUnwindSafe(|| drop(source))) {
                self.panicked("dropping a source", &*cause);
            }
        }
    }

    fn run_posts(&mut self) {
        let mut posts = core::mem::take(&mut self.posts);
        self.shared().mailbox.take_posts(&mut posts);
        count(&self.shared().counters.posts, posts.len());
        for f in posts.drain(..) {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                f(&mut Cx {
                    core: self,
                    token: Token::NONE,
                });
            }));
            if let Err(cause) = outcome {
                self.panicked("a posted closure", &*cause);
            }
            if !self.leaving.is_empty() {
                self.reap();
            }
        }
        // A burst must not leave its peak behind.
        posts.shrink_to(POSTS_KEPT);
        self.posts = posts;
    }

    fn run_wakes(&mut self) {
        let mut wakes = core::mem::take(&mut self.wakes);
        self.shared().mailbox.take_wakes(&mut wakes);
        count(&self.shared().counters.wakes, wakes.len());
        for t in wakes.drain(..) {
            self.call_and_reap(t, Call::Woken);
        }
        self.wakes = wakes;
    }

    fn run_ready(&mut self) {
        let mut events = core::mem::take(&mut self.events);
        count(&self.shared().counters.events, events.len());
        for ev in events.drain(..) {
            if ev.key != KEY_BELL {
                self.make_ready(Token::from_key(ev.key), ev.ready);
            }
        }
        self.events = events;
        // What is rescheduled from now on belongs to the next round.
        core::mem::swap(&mut self.running, &mut self.run_queue);
        let mut running = core::mem::take(&mut self.running);
        for t in running.drain(..) {
            if let Some(slot) = self.live(t) {
                let ready = core::mem::replace(&mut slot.pending, Ready::empty());
                self.call_and_reap(t, Call::Ready(ready));
            }
        }
        self.running = running;
    }

    fn run_timers(&mut self) {
        // A timer that re-arms itself in the past must not keep the round going.
        for _ in 0..self.timers.len() {
            let Some((index, number)) = self.timers.pop_due(self.now) else {
                break;
            };
            count(&self.shared().counters.timers, 1);
            let generation = self.slots[idx(index)].generation;
            self.call_and_reap(Token { index, generation }, Call::Timer(number));
        }
    }

    fn round(&mut self) {
        let mark = cpu::enter_reactor();
        let guard = rcu::read_lock();
        self.now = Instant::now();
        self.finish_io();
        self.run_posts();
        self.run_wakes();
        self.run_ready();
        self.run_timers();
        drop(guard);
        drop(mark);
        count(&self.shared().counters.rounds, 1);
    }

    /// Runs until [`super::Reactor::stop`].
    pub(super) fn run(self) {
        let handle = self.handle.clone();
        // Sources cannot get here; this is for bugs of the reactor itself.
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| self.run_rounds())) {
            handle.shared.mailbox.close();
            let text = panic_text(&*cause);
            crate::pr_emerg!(
                "{}: the reactor itself panicked and is gone: {text}",
                handle.name()
            );
        }
    }

    fn run_rounds(mut self) {
        while !self.shared().mailbox.stop_requested() {
            self.round();
            let end = self.check_duration();
            if let Err(e) = self.wait(end) {
                crate::pr_emerg!("{}: waiting failed: {e}", self.handle.name());
                break;
            }
        }
        self.shut_down();
    }

    fn check_duration(&mut self) -> Instant {
        let end = Instant::now();
        let took = end - self.now;
        if took > Delta::from_millis(ROUND_WARN_MS as i64) {
            count(&self.shared().counters.slow_rounds, 1);
            crate::pr_warn_ratelimited!(
                "{}: a round took {} us: something blocks the reactor",
                self.handle.name(),
                took.as_nanos() / 1000
            );
        }
        end
    }

    fn timeout(&mut self, now: Instant) -> Timeout {
        if !self.run_queue.is_empty() || !self.io_ended.is_empty() {
            return Timeout::Now;
        }
        match self.timers.next() {
            None => Timeout::Forever,
            Some(at) if at <= now => Timeout::Now,
            Some(at) => Timeout::Nanos(u64::try_from((at - now).as_nanos()).unwrap_or(0)),
        }
    }

    fn poll(&mut self, timeout: Timeout) -> Result {
        self.poller
            .wait(timeout, &mut self.events, &mut self.io_ended)
    }

    fn wait(&mut self, now: Instant) -> Result {
        self.start_io();
        let mut timeout = self.timeout(now);
        if timeout != Timeout::Now && self.busy_poll_us != 0 {
            if self.spin(now)? {
                return Ok(());
            }
            timeout = self.timeout(Instant::now());
        }
        if timeout == Timeout::Now {
            return self.poll(timeout);
        }
        if !self.shared().mailbox.prepare_sleep() {
            timeout = Timeout::Now;
        }
        let res = self.poll(timeout);
        self.shared().mailbox.awake();
        res
    }

    /// Looks for work without sleeping for a while. True: there is some.
    fn spin(&mut self, start: Instant) -> Result<bool> {
        let end = start + Delta::from_micros(i64::from(self.busy_poll_us));
        loop {
            self.poll(Timeout::Now)?;
            let some = !self.events.is_empty() || !self.io_ended.is_empty();
            if some || self.shared().mailbox.has_work() {
                return Ok(true);
            }
            let now = Instant::now();
            if self.timers.next().is_some_and(|at| at <= now) {
                return Ok(true);
            }
            if now >= end {
                return Ok(false);
            }
            core::hint::spin_loop();
        }
    }

    fn shut_down(mut self) {
        self.drain_io();
        let mark = cpu::enter_reactor();
        let guard = rcu::read_lock();
        self.now = Instant::now();
        self.shared().mailbox.close();
        self.run_posts();
        // A source that adds another one in `removed` gets that one removed, too.
        while let Some(i) = self.slots.iter().position(|s| s.state == SlotState::Live) {
            for i in i..self.slots.len() {
                let index = u32::try_from(i).expect("at most MAX_SOURCES");
                let generation = self.slots[i].generation;
                self.remove(Token { index, generation });
                self.reap();
            }
        }
        drop(guard);
        drop(mark);
        self.drain_io();
        self.poller.quiesce();
    }
}
