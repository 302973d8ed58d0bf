//! File I/O of a reactor: what its callbacks submit goes to the host before the reactor waits, all at once, and what
//! the host is done with is told at the beginning of the next round.
//!
//! A reactor that waits by io_uring uses that ring. One that waits by epoll has a ring beside it, made when it is first needed, and
//! watches an eventfd of it; so it does with an AIO context.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::core_loop::Core;
use super::cx::{self, Cx, Source};
use super::{PollFd, Ready};
use crate::error::Result;
use crate::fs::Engine;
use crate::fs::io::{Ended, Flight, Flights, Starter};
use crate::sys::aio::AioContext;
use crate::sys::poll::Timeout;
use crate::sys::ring::PollRing;
use crate::time::{Delta, Instant};

/// Operations that one AIO context takes at a time. More go to threads.
const AIO_DEPTH: u32 = 1024;
/// How long a reactor that ends waits for the host to end one more of the requests that it has.
const DRAIN_NS: u64 = 10_000_000_000;
const DRAIN: Delta = Delta::from_secs(10);

thread_local! {
    /// What was submitted in this round.
    static QUEUE: RefCell<Vec<Box<Flight>>> = const { RefCell::new(Vec::new()) };
}

/// Queues a request on the calling reactor; off reactors it comes back.
#[inline]
pub(crate) fn queue(flight: Box<Flight>) -> core::result::Result<(), Box<Flight>> {
    if cx::current().is_none() {
        return Err(flight);
    }
    QUEUE.with(|q| q.borrow_mut().push(flight));
    Ok(())
}

/// A host engine with the requests that it has.
trait Port {
    fn start(&mut self, flight: Box<Flight>) -> core::result::Result<(), Box<Flight>>;
    /// Hands to the host what was started.
    fn submit(&mut self);
    /// Takes what the host is done with; waits for the first if the timeout says so.
    fn reap(&mut self, timeout: Timeout, out: &mut Vec<Ended>);
    fn len(&self) -> usize;
}

/// A ring beside a reactor that waits by epoll.
struct SideRing {
    flights: Flights,
    ring: PollRing,
}

impl Port for SideRing {
    fn start(&mut self, flight: Box<Flight>) -> core::result::Result<(), Box<Flight>> {
        self.flights
            .start(&mut Starter::Ring(&mut self.ring), flight)
    }

    fn submit(&mut self) {
        if let Err(e) = self.ring.flush() {
            crate::pr_err_ratelimited!("io_uring: submitting: {e}");
        }
    }

    fn reap(&mut self, timeout: Timeout, out: &mut Vec<Ended>) {
        if let Err(e) = self.ring.enter(timeout) {
            crate::pr_err_ratelimited!("io_uring: waiting: {e}");
        }
        if reap_ring(&mut self.ring, &mut self.flights, |_, _| (), out) {
            // Nobody else may enter this ring until something ends.
            self.submit();
        }
    }

    fn len(&self) -> usize {
        self.flights.len()
    }
}

/// Takes the completions of a ring: polls to `poll`, requests to `out`. Answers whether some requests go on, and wait for the
/// next entry into the kernel.
pub(super) fn reap_ring(
    ring: &mut PollRing,
    flights: &mut Flights,
    poll: impl FnMut(u64, crate::sys::ring::PollCqe),
    out: &mut Vec<Ended>,
) -> bool {
    let first = out.len();
    ring.drain(poll, |number, res| out.extend(flights.ended(number, res)));
    let goes_on = out[first..].iter().any(Ended::has_more);
    if goes_on {
        let all: Vec<Ended> = out.drain(first..).collect();
        for e in all {
            out.extend(flights.go_on(&mut Starter::Ring(ring), e));
        }
    }
    goes_on
}

/// Linux AIO.
struct AioPort {
    flights: Flights,
    aio: AioContext,
}

impl Port for AioPort {
    fn start(&mut self, flight: Box<Flight>) -> core::result::Result<(), Box<Flight>> {
        self.flights.start(&mut Starter::Aio(&mut self.aio), flight)
    }

    fn submit(&mut self) {}

    fn reap(&mut self, timeout: Timeout, out: &mut Vec<Ended>) {
        let mut timeout = timeout;
        loop {
            let mut batch = Vec::new();
            let flights = &mut self.flights;
            let n = self.aio.reap(timeout, |data, res| {
                let number = u32::try_from(data).unwrap_or(u32::MAX);
                batch.extend(flights.ended(number, res));
            });
            for e in batch {
                out.extend(self.flights.go_on(&mut Starter::Aio(&mut self.aio), e));
            }
            if n == 0 {
                return;
            }
            timeout = Timeout::Now;
        }
    }

    fn len(&self) -> usize {
        self.flights.len()
    }
}

/// A port that the reactor watches like any other source.
struct PortSource<P>(Rc<RefCell<P>>);

impl<P: Port> Source for PortSource<P> {
    fn ready(&mut self, _cx: &mut Cx<'_>, _ev: Ready) {
        let mut out = Vec::new();
        self.0.borrow_mut().reap(Timeout::Now, &mut out);
        finish_all(&mut out);
    }

    fn woken(&mut self, _cx: &mut Cx<'_>) {}

    fn timer(&mut self, _cx: &mut Cx<'_>, _slot: u32) {}
}

/// Tells the owners. One that panics costs only its own request.
pub(super) fn finish_all(ended: &mut Vec<Ended>) {
    for e in ended.drain(..) {
        if catch_unwind(AssertUnwindSafe(|| e.finish())).is_err() {
            crate::pr_err!("BUG: the owner of a file request panicked");
        }
    }
}

/// A port that is made when it is needed.
enum Lazy<P> {
    Unused,
    Ready(Rc<RefCell<P>>),
    Failed,
}

/// The engines that are not the reactor's own ring.
pub(super) struct SidePorts {
    ring: Lazy<SideRing>,
    aio: Lazy<AioPort>,
}

impl SidePorts {
    pub(super) fn new() -> SidePorts {
        SidePorts {
            ring: Lazy::Unused,
            aio: Lazy::Unused,
        }
    }

    fn in_use(&self) -> impl Iterator<Item = &RefCell<dyn Port>> {
        let ring = self.ring.get().map(|p| p as &RefCell<dyn Port>);
        let aio = self.aio.get().map(|p| p as &RefCell<dyn Port>);
        ring.into_iter().chain(aio)
    }
}

impl<P> Lazy<P> {
    fn get(&self) -> Option<&RefCell<P>> {
        match self {
            Lazy::Ready(p) => Some(p),
            Lazy::Unused | Lazy::Failed => None,
        }
    }
}

fn make_ring() -> Result<(SideRing, PollFd)> {
    let ring = PollRing::new()?;
    let fd = ring.bell()?;
    let flights = Flights::default();
    Ok((SideRing { flights, ring }, fd))
}

fn make_aio() -> Result<(AioPort, PollFd)> {
    let aio = AioContext::new(AIO_DEPTH)?;
    let fd = aio.poll_fd();
    let flights = Flights::default();
    Ok((AioPort { flights, aio }, fd))
}

/// The port, made now if need be.
fn port<P: Port + 'static>(
    core: &mut Core,
    of: fn(&mut SidePorts) -> &mut Lazy<P>,
    make: fn() -> Result<(P, PollFd)>,
) -> Option<Rc<RefCell<P>>> {
    match of(&mut core.side_ports) {
        Lazy::Ready(p) => return Some(Rc::clone(p)),
        Lazy::Failed => return None,
        Lazy::Unused => {}
    }
    let made = make().and_then(|(p, fd)| {
        let p = Rc::new(RefCell::new(p));
        let source = PortSource(Rc::clone(&p));
        core.add(Some(fd), |_| Box::new(source))?;
        Ok(p)
    });
    match made {
        Ok(p) => {
            *of(&mut core.side_ports) = Lazy::Ready(Rc::clone(&p));
            Some(p)
        }
        Err(e) => {
            crate::pr_err!("No engine for file I/O on this reactor, using threads: {e}");
            *of(&mut core.side_ports) = Lazy::Failed;
            None
        }
    }
}

impl Core {
    /// Gives what was submitted in this round to the host.
    #[inline]
    pub(super) fn start_io(&mut self) {
        if QUEUE.with(|q| !q.borrow().is_empty()) {
            self.start_queued();
        }
    }

    fn start_queued(&mut self) {
        let mut queue = QUEUE.take();
        let mut side_ring = None;
        for flight in queue.drain(..) {
            let refused = match flight.engine() {
                Engine::Uring => match self.poller.start_io(flight) {
                    None => None,
                    Some(flight) if self.poller.has_ring() => Some(flight),
                    Some(flight) => {
                        if side_ring.is_none() {
                            side_ring = port(self, |s| &mut s.ring, make_ring);
                        }
                        start_on(side_ring.as_ref(), flight)
                    }
                },
                Engine::Aio => {
                    let aio = port(self, |s| &mut s.aio, make_aio);
                    start_on(aio.as_ref(), flight)
                }
                Engine::Threads => Some(flight),
            };
            if let Some(flight) = refused {
                flight.defer();
            }
        }
        QUEUE.with(|q| {
            let mut q = q.borrow_mut();
            // Its room is used again, unless a thread that could not be had left something.
            if q.is_empty() {
                *q = queue;
            }
        });
        if let Some(ring) = side_ring {
            let mut ring = ring.borrow_mut();
            ring.submit();
            ring.reap(Timeout::Now, &mut self.io_ended);
        }
    }

    /// Tells the owners of requests that have ended.
    pub(super) fn finish_io(&mut self) {
        if !self.io_ended.is_empty() {
            let mut ended = core::mem::take(&mut self.io_ended);
            finish_all(&mut ended);
            self.io_ended = ended;
        }
    }

    /// Waits for the host to end all it has; not for ever. Between rounds.
    pub(super) fn drain_io(&mut self) {
        let mut last_end = Instant::now();
        loop {
            self.start_io();
            if !self.io_ended.is_empty() {
                last_end = Instant::now();
            }
            let mark = crate::cpu::enter_reactor();
            self.finish_io();
            drop(mark);
            if QUEUE.with(|q| !q.borrow().is_empty()) {
                continue;
            }
            // What has ended a part, or an event of a socket, ends a wait too.
            if Instant::now() - last_end >= DRAIN || !self.drain_step(Timeout::Nanos(DRAIN_NS)) {
                return;
            }
        }
    }

    /// Waits for something to happen. False: there is nothing to wait for, or it cannot be waited for.
    fn drain_step(&mut self, wait: Timeout) -> bool {
        let ended = &mut self.io_ended;
        if self.poller.io_len() > 0 {
            let waited = self.poller.wait(wait, &mut self.events, ended);
            self.events.clear();
            return waited.is_ok();
        }
        for p in self.side_ports.in_use() {
            if p.borrow().len() > 0 {
                p.borrow_mut().reap(wait, ended);
                return true;
            }
        }
        false
    }
}

fn start_on<P: Port>(port: Option<&Rc<RefCell<P>>>, flight: Box<Flight>) -> Option<Box<Flight>> {
    match port {
        Some(p) => p.borrow_mut().start(flight).err(),
        None => Some(flight),
    }
}
