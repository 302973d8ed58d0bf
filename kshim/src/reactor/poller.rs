//! Where a reactor waits: one trait, two tenants.
//!
//! Both report every readiness edge of a registered descriptor with the key it was registered under. A tenant may
//! report too much (an edge twice, a key that was removed a moment ago); the reactor's generations sort that out. It
//! must never lose an edge.

use super::io::reap_ring;
use super::{PollerKind, Ready};
use crate::error::{Result, code};
use crate::fs::io::{Ended, Flight, Flights, Starter};
use crate::sys::poll::{Epoll, PollFd, Timeout, bits};
use crate::sys::ring::{PollCqe, PollRing};

/// One readiness edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) key: u64,
    pub(super) ready: Ready,
}

/// What a reactor needs of its poller. Context of all methods: the reactor's thread.
pub(super) trait Poller {
    fn kind(&self) -> PollerKind;
    /// Watches all edges of `fd`; an already ready descriptor reports at once.
    fn add(&mut self, fd: &PollFd, key: u64) -> Result;
    /// Stops watching. The descriptor may be closed afterwards.
    fn remove(&mut self, fd: &PollFd, key: u64);
    /// Waits and appends what happened, and the file requests that have ended.
    fn wait(&mut self, timeout: Timeout, out: &mut Vec<Event>, ended: &mut Vec<Ended>) -> Result;
    /// Whether it is a ring, and does file requests.
    fn has_ring(&self) -> bool {
        false
    }
    /// Starts a file request, with the next wait at the latest. One that cannot be started comes back.
    fn start_io(&mut self, flight: Box<Flight>) -> Option<Box<Flight>> {
        Some(flight)
    }
    /// File requests under way.
    fn io_len(&self) -> usize {
        0
    }
    /// Lets removals take effect in the kernel now: called before the poller goes away.
    fn quiesce(&mut self) {}
}

struct EpollPoller(Epoll);

impl Poller for EpollPoller {
    fn kind(&self) -> PollerKind {
        PollerKind::Epoll
    }

    fn add(&mut self, fd: &PollFd, key: u64) -> Result {
        self.0.add(fd, key)
    }

    fn remove(&mut self, fd: &PollFd, _key: u64) {
        if let Err(e) = self.0.remove(fd) {
            crate::pr_err!("epoll: removing a descriptor: {e}");
        }
    }

    fn wait(&mut self, timeout: Timeout, out: &mut Vec<Event>, _: &mut Vec<Ended>) -> Result {
        self.0.wait(timeout, |key, b| {
            out.push(Event {
                key,
                ready: Ready::from_poll_bits(b),
            });
        })
    }
}

/// The ring, and what must be armed again when the kernel ends a poll. Indexed by the key's lower half, the source's
/// slot; an entry whose key differs belongs to a later generation.
struct UringPoller {
    // Before the requests whose memory it has.
    ring: PollRing,
    flights: Flights,
    armed: Vec<Option<(u64, PollFd)>>,
    ended: Vec<u64>,
}

impl UringPoller {
    fn slot_of(key: u64) -> usize {
        // The bell's key, with all bits set, has the first place; sources follow.
        usize::try_from((key as u32).wrapping_add(1)).unwrap_or(0)
    }

    fn rearm(&mut self) -> Result {
        while let Some(key) = self.ended.pop() {
            if let Some(Some((k, fd))) = self.armed.get(Self::slot_of(key))
                && *k == key
            {
                self.ring.add(fd, key)?;
            }
        }
        Ok(())
    }
}

impl Poller for UringPoller {
    fn kind(&self) -> PollerKind {
        PollerKind::Uring
    }

    fn add(&mut self, fd: &PollFd, key: u64) -> Result {
        let slot = Self::slot_of(key);
        if self.armed.len() <= slot {
            self.armed.resize(slot + 1, None);
        }
        self.ring.add(fd, key)?;
        self.armed[slot] = Some((key, fd.clone()));
        Ok(())
    }

    fn remove(&mut self, _fd: &PollFd, key: u64) {
        if let Some(entry) = self.armed.get_mut(Self::slot_of(key))
            && entry.take_if(|(k, _)| *k == key).is_some()
            && let Err(e) = self.ring.remove(key)
        {
            crate::pr_err!("io_uring: removing a poll: {e}");
        }
    }

    fn has_ring(&self) -> bool {
        true
    }

    fn start_io(&mut self, flight: Box<Flight>) -> Option<Box<Flight>> {
        self.flights
            .start(&mut Starter::Ring(&mut self.ring), flight)
            .err()
    }

    fn io_len(&self) -> usize {
        self.flights.len()
    }

    fn wait(&mut self, timeout: Timeout, out: &mut Vec<Event>, io: &mut Vec<Ended>) -> Result {
        self.ring.enter(timeout)?;
        let ended = &mut self.ended;
        let poll = |key, cqe| {
            let b = match cqe {
                PollCqe::Ready(b) => b,
                PollCqe::Ended(b) => {
                    ended.push(key);
                    b
                }
                // Not armed again: what cannot be polled would fail for ever. A cancelled poll's key is stale by now.
                PollCqe::Failed(_) => bits::ERR,
            };
            out.push(Event {
                key,
                ready: Ready::from_poll_bits(b),
            });
        };
        reap_ring(&mut self.ring, &mut self.flights, poll, io);
        self.rearm()
    }

    fn quiesce(&mut self) {
        // Removals are submitted, and their polls let go of the files, before the ring itself is torn down (which the
        // kernel does in the background, at its leisure).
        for _ in 0..2 {
            if let Err(e) = self.ring.flush() {
                crate::pr_err!("io_uring: flushing: {e}");
            }
            reap_ring(
                &mut self.ring,
                &mut self.flights,
                |_, _| (),
                &mut Vec::new(),
            );
        }
    }
}

/// Opens the poller asked for, on the thread that will use it. [`PollerKind::Auto`] tries io_uring, then epoll.
///
/// Errors: those of the poller that was asked for, when one was.
pub(super) fn open(kind: PollerKind, name: &str) -> Result<Box<dyn Poller>> {
    let uring = || -> Result<Box<dyn Poller>> {
        let ring = PollRing::new()?;
        Ok(Box::new(UringPoller {
            ring,
            flights: Flights::default(),
            armed: Vec::new(),
            ended: Vec::new(),
        }))
    };
    let epoll = || -> Result<Box<dyn Poller>> { Ok(Box::new(EpollPoller(Epoll::new()?))) };
    match kind {
        PollerKind::Uring => uring(),
        PollerKind::Epoll => epoll(),
        PollerKind::Auto => uring().or_else(|e| {
            crate::pr_notice!("{name}: no io_uring here ({e}), using epoll");
            epoll()
        }),
    }
}

/// What to use: the configuration, or for [`PollerKind::Auto`] the environment.
///
/// Errors: EINVAL (`KSHIM_POLLER` is set to something else).
pub(super) fn choose(kind: PollerKind, env: Option<&str>) -> Result<PollerKind> {
    match (kind, env) {
        (PollerKind::Auto, Some("uring")) => Ok(PollerKind::Uring),
        (PollerKind::Auto, Some("epoll")) => Ok(PollerKind::Epoll),
        (PollerKind::Auto, None | Some("" | "auto")) => Ok(PollerKind::Auto),
        (PollerKind::Auto, Some(other)) => {
            crate::pr_err!("KSHIM_POLLER={other}: neither uring, epoll nor auto");
            Err(code::EINVAL)
        }
        (kind, _) => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll::EventFd;

    #[test]
    fn the_environment_decides_only_auto() {
        assert_eq!(
            choose(PollerKind::Auto, Some("epoll")),
            Ok(PollerKind::Epoll)
        );
        assert_eq!(choose(PollerKind::Auto, None), Ok(PollerKind::Auto));
        assert_eq!(
            choose(PollerKind::Uring, Some("epoll")),
            Ok(PollerKind::Uring)
        );
        assert_eq!(choose(PollerKind::Auto, Some("kqueue")), Err(code::EINVAL));
    }

    #[test]
    fn hang_up_counts_as_readable_and_writable() {
        let r = Ready::from_poll_bits(bits::HUP);
        assert!(r.contains(Ready::READ | Ready::WRITE | Ready::HUP));
        assert_eq!(Ready::from_poll_bits(bits::OUT), Ready::WRITE);
        assert_eq!(
            Ready::from_poll_bits(bits::IN | bits::RDHUP),
            Ready::READ | Ready::RDHUP
        );
    }

    #[test]
    fn a_reused_slot_gets_only_its_own_events() {
        for kind in [PollerKind::Uring, PollerKind::Epoll] {
            let Ok(mut p) = open(kind, "test") else {
                continue;
            };
            let (a, b) = (EventFd::new().unwrap(), EventFd::new().unwrap());
            let (ka, kb) = (1 << 32, 2 << 32); // slot 0, two generations
            p.add(&a.poll_fd(), ka).unwrap();
            let mut out = Vec::new();
            p.wait(Timeout::Now, &mut out, &mut Vec::new()).unwrap();
            a.signal();
            p.remove(&a.poll_fd(), ka);
            p.add(&b.poll_fd(), kb).unwrap();
            out.clear();
            for _ in 0..3 {
                p.wait(Timeout::Nanos(5_000_000), &mut out, &mut Vec::new())
                    .unwrap();
            }
            assert!(out.iter().any(|e| e.key == kb), "{kind:?}");
            a.signal();
            out.clear();
            p.wait(Timeout::Nanos(5_000_000), &mut out, &mut Vec::new())
                .unwrap();
            assert!(out.is_empty(), "{kind:?}: {out:?}");
        }
    }
}
