//! Waiting for file descriptors: shared descriptors, event counters and epoll.
//!
//! [`PollFd`] is the currency between sockets and reactors: a shared, owned descriptor. A reactor that watches a
//! descriptor holds a share of it, so its number cannot be closed and reused while it is registered; this is why
//! nothing in the poller can act on a stranger's descriptor.
//!
//! Kernel counterpart: `fs/eventpoll.c`, `fs/eventfd.c`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::epoll;
use rustix::event::{EventfdFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Events a single [`Epoll::wait`] may return; what does not fit is returned by the next call.
pub const EPOLL_BATCH: usize = 512;

/// A shared, owned file descriptor that can be watched.
///
/// The descriptor is closed when the last share is dropped.
///
/// Context: any.
#[derive(Clone, Debug)]
pub struct PollFd(Arc<OwnedFd>);

impl PollFd {
    /// Takes ownership of `fd`.
    pub fn new(fd: OwnedFd) -> PollFd {
        PollFd(Arc::new(fd))
    }
}

impl AsFd for PollFd {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Readiness bits as `poll(2)` and epoll number them.
pub mod bits {
    /// Data (or end of file, or a connection) can be read.
    pub const IN: u32 = 0x001;
    /// There is room to write.
    pub const OUT: u32 = 0x004;
    /// An error is pending on the descriptor.
    pub const ERR: u32 = 0x008;
    /// Both directions are shut down.
    pub const HUP: u32 = 0x010;
    /// The peer shut down its writing half.
    pub const RDHUP: u32 = 0x2000;
    /// What reactors register for.
    pub const ALL: u32 = IN | OUT | RDHUP;
}

/// How long to wait for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Look, do not sleep.
    Now,
    /// Sleep at most this many nanoseconds.
    Nanos(u64),
    /// Sleep until something happens.
    Forever,
}

impl Timeout {
    /// The relative time as the kernel wants it; `None` for [`Timeout::Forever`].
    pub(crate) fn timespec(self) -> Option<Timespec> {
        let ns = match self {
            Timeout::Now => 0,
            Timeout::Nanos(ns) => ns,
            Timeout::Forever => return None,
        };
        Some(Timespec {
            tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (ns % 1_000_000_000) as _,
        })
    }
}

/// An event counter (`eventfd(2)`), used as a door bell.
///
/// Reactors watch it edge-triggered and never read it: each write is an edge of its own. The counter would have to be
/// rung 2^64 times before a write could fail with EAGAIN; [`EventFd::signal`] then empties it and rings again.
#[derive(Debug)]
pub struct EventFd {
    fd: PollFd,
}

impl EventFd {
    /// Creates a non-blocking event counter of zero.
    ///
    /// Errors: EMFILE, ENFILE, ENOMEM.
    pub fn new() -> Result<EventFd> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(EventFd {
            fd: PollFd::new(fd),
        })
    }

    /// The descriptor to register with a poller.
    pub fn poll_fd(&self) -> PollFd {
        self.fd.clone()
    }

    /// The descriptor's number, for calls that take no other.
    pub(crate) fn raw_fd(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.fd.as_fd().as_raw_fd()
    }

    /// Rings. Context: any; never sleeps.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        loop {
            match rustix::io::write(&self.fd, &one) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.drain();
                }
                // Nothing else can go wrong with a valid descriptor and eight valid bytes.
                _ => return,
            }
        }
    }

    /// Empties the counter and returns what it held. Context: any; never sleeps.
    pub fn drain(&self) -> u64 {
        let mut count = [0u8; 8];
        loop {
            match rustix::io::read(&self.fd, &mut count[..]) {
                Err(Errno::INTR) => {}
                Ok(8) => return u64::from_ne_bytes(count),
                _ => return 0,
            }
        }
    }
}

/// An edge-triggered epoll instance.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl core::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Epoll")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

/// Cleared when the kernel turned out to lack `epoll_pwait2` (before 5.11, or a seccomp filter).
static HAVE_PWAIT2: AtomicBool = AtomicBool::new(true);

impl Epoll {
    /// Creates an epoll instance.
    ///
    /// Errors: EMFILE, ENFILE, ENOMEM.
    pub fn new() -> Result<Epoll> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Epoll {
            fd,
            events: Vec::with_capacity(EPOLL_BATCH),
        })
    }

    /// Watches `fd` for all readiness changes, reporting them with `key`.
    ///
    /// Errors: EEXIST, EPERM (a regular file), ENOSPC (`max_user_watches`), ENOMEM.
    pub fn add(&self, fd: &PollFd, key: u64) -> Result {
        let flags = epoll::EventFlags::from_bits_retain(bits::ALL) | epoll::EventFlags::ET;
        epoll::add(&self.fd, fd, epoll::EventData::new_u64(key), flags)?;
        Ok(())
    }

    /// Stops watching `fd`.
    ///
    /// Errors: ENOENT (was not watched).
    pub fn remove(&self, fd: &PollFd) -> Result {
        epoll::delete(&self.fd, fd)?;
        Ok(())
    }

    /// Waits and hands each event's key and [`bits`] to `event`. An interrupted wait reports nothing.
    ///
    /// Context: may sleep, unless the timeout is [`Timeout::Now`].
    pub fn wait(&mut self, timeout: Timeout, mut event: impl FnMut(u64, u32)) -> Result {
        self.events.clear();
        match self.wait_raw(timeout) {
            Ok(()) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::from(e)),
        }
        for ev in &self.events {
            // `Event` is packed: copy the fields out.
            let (data, flags) = (ev.data, ev.flags);
            event(data.u64(), flags.bits());
        }
        Ok(())
    }

    fn wait_raw(&mut self, timeout: Timeout) -> core::result::Result<(), Errno> {
        if let Timeout::Nanos(ns) = timeout
            && ns % 1_000_000 != 0
            && HAVE_PWAIT2.load(Ordering::Relaxed)
        {
            match self.pwait2(ns) {
                Err(Errno::NOSYS | Errno::PERM) => HAVE_PWAIT2.store(false, Ordering::Relaxed),
                other => return other,
            }
        }
        // Plain epoll_pwait counts milliseconds; rustix rounds up, so a timer never fires early.
        let ts = timeout.timespec();
        epoll::wait(
            &self.fd,
            rustix::buffer::spare_capacity(&mut self.events),
            ts.as_ref(),
        )?;
        Ok(())
    }

    /// `epoll_pwait2(2)`: nanosecond timeouts. rustix only issues it when built for 5.11 and newer.
    fn pwait2(&mut self, ns: u64) -> core::result::Result<(), Errno> {
        use std::os::fd::AsRawFd;
        let ts = Timeout::Nanos(ns).timespec().map(|t| [t.tv_sec, t.tv_nsec]);
        let ts_ptr = ts.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        let room = self.events.spare_capacity_mut();
        // SAFETY: the descriptor is open for as long as `self`; `room` is writable memory for `room.len()` events and
        // `rustix::event::epoll::Event` has the kernel's layout of `struct epoll_event`; `ts_ptr` points to two 64-bit
        // integers, which is `struct __kernel_timespec`, alive across the call; no signal mask is passed.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                room.as_mut_ptr(),
                room.len(),
                ts_ptr,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        let Ok(n) = usize::try_from(n) else {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        };
        let n = n.min(room.len());
        // SAFETY: the kernel filled the first `n` events, `n` is at most the spare capacity, and the vector was empty.
        unsafe { self.events.set_len(n) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_an_edge_without_reading() {
        let mut ep = Epoll::new().unwrap();
        let ev = EventFd::new().unwrap();
        ep.add(&ev.poll_fd(), 7).unwrap();
        let mut seen = 0;
        // A fresh eventfd is writable, which is the first edge.
        ep.wait(Timeout::Now, |_, _| ()).unwrap();
        for _ in 0..3 {
            ev.signal();
            ep.wait(Timeout::Nanos(1_000_000_000), |k, b| {
                assert_eq!(k, 7);
                assert_ne!(b & bits::IN, 0);
                seen += 1;
            })
            .unwrap();
        }
        assert_eq!(seen, 3);
        ep.wait(Timeout::Now, |_, _| panic!("no edge left"))
            .unwrap();
        assert_eq!(ev.drain(), 3);
        assert_eq!(ev.drain(), 0);
    }

    #[test]
    fn sub_millisecond_timeout_is_not_early() {
        let mut ep = Epoll::new().unwrap();
        let before = crate::time::Instant::now();
        ep.wait(Timeout::Nanos(300_500), |_, _| ()).unwrap();
        assert!(before.elapsed().as_nanos() >= 300_500);
    }

    #[test]
    fn removing_twice_says_so() {
        let ep = Epoll::new().unwrap();
        let ev = EventFd::new().unwrap();
        ep.add(&ev.poll_fd(), 1).unwrap();
        ep.remove(&ev.poll_fd()).unwrap();
        assert_eq!(ep.remove(&ev.poll_fd()).unwrap_err().errno(), libc::ENOENT);
    }
}
