//! Engines: how the data of a file moves without anyone waiting for it.
//!
//! An [`IoFile`] is a file with an [`Engine`]. An [`IoReq`] that is submitted on a reactor is queued there, goes to the host with all
//! others of the same round (by the same system call that waits, where the reactor's ring does it), and ends in
//! [`IoEnd::io_done`] on that reactor. Submitted elsewhere, or where the engine cannot do it, it runs on a thread of the file.
//!
//! What an `IoFile` adds to a [`File`](super::File), whichever way its I/O goes: O_DIRECT with memory that is not aligned (by
//! a copy), writes that are durable when they end, and flushes whose failure is not forgotten.
//!
//! C header: `include/linux/fs.h` (`kiocb`), `include/linux/aio_abi.h`, `include/uapi/linux/io_uring.h`

mod file;
mod flight;
mod request;

pub use file::IoFile;
pub(crate) use flight::{Ended, Flight, Flights, Starter};
pub use request::{IoEnd, IoOp, IoReq};

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result, code};
use crate::sys::aio::AioContext;
use crate::sys::ring::PollRing;

/// Who does what would wait.
///
/// ```
/// use kshim::fs::Engine;
///
/// assert_eq!("aio".parse(), Ok(Engine::Aio));
/// assert_eq!(Engine::Threads.to_string(), "threads");
/// assert!(Engine::Threads.probe().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// The reactor's io_uring; one beside it where the reactor waits by epoll.
    Uring,
    /// Linux AIO, for files opened with O_DIRECT; for others, threads, as AIO is synchronous there.
    Aio,
    /// Threads that call preadv2 and pwritev2.
    Threads,
}

impl Engine {
    /// All, the best first.
    pub const ALL: [Engine; 3] = [Engine::Uring, Engine::Aio, Engine::Threads];

    /// Its name on command lines and in the management tree.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Uring => "uring",
            Engine::Aio => "aio",
            Engine::Threads => "threads",
        }
    }

    /// Whether this host has it. Looked at once.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// What the host said: `ENOSYS`, `EPERM` (switched off, or filtered), `EOPNOTSUPP` (too old), `EAGAIN`, `ENOMEM`.
    pub fn probe(self) -> Result {
        static URING: OnceLock<Result> = OnceLock::new();
        static AIO: OnceLock<Result> = OnceLock::new();
        match self {
            Engine::Uring => *URING.get_or_init(|| PollRing::new().map(drop)),
            Engine::Aio => *AIO.get_or_init(|| AioContext::new(1).map(drop)),
            Engine::Threads => Ok(()),
        }
    }

    /// The one that was asked for; for `None` that of [`Engine::set_default`].
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: this host does not have it, which is logged with the cause. `EINVAL`: the environment variable `KSHIM_ENGINE`
    /// holds nonsense.
    pub fn choose(wanted: Option<Engine>) -> Result<Engine> {
        if let Some(e) = wanted {
            return e.checked();
        }
        let set = DEFAULT.load(Ordering::Relaxed);
        if let Some(e) = Engine::ALL.get(usize::from(set)) {
            return e.checked();
        }
        match crate::sys::linux::proc::env("KSHIM_ENGINE").as_deref() {
            None | Some("" | "auto") => Ok(Engine::best()),
            Some(text) => text
                .parse::<Engine>()
                .inspect_err(|_| {
                    crate::pr_err!("KSHIM_ENGINE={text}: none of uring, aio, threads, auto");
                })?
                .checked(),
        }
    }

    /// The first of [`Engine::ALL`] that this host has.
    fn best() -> Engine {
        let found = Engine::ALL.into_iter().find(|e| e.probe().is_ok());
        found.unwrap_or(Engine::Threads)
    }

    fn checked(self) -> Result<Engine> {
        match self.probe() {
            Ok(()) => Ok(self),
            Err(e) => {
                crate::pr_err!("The I/O engine {self} is not available on this host: {e}");
                Err(code::EOPNOTSUPP)
            }
        }
    }

    /// Makes an engine that of all files opened from now on for which none is named; `None`: what the environment
    /// variable `KSHIM_ENGINE` says, else the first of [`Engine::ALL`] that the host has.
    ///
    /// Context: may sleep. Errors: as [`Engine::choose`]; nothing is changed then.
    pub fn set_default(engine: Option<Engine>) -> Result {
        if let Some(e) = engine {
            e.checked()?;
        }
        let at = engine.and_then(|e| Engine::ALL.iter().position(|x| *x == e));
        let n = at.and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX);
        DEFAULT.store(n, Ordering::Relaxed);
        Ok(())
    }
}

/// The number in [`Engine::ALL`] of the engine for all files.
static DEFAULT: AtomicU8 = AtomicU8::new(u8::MAX);

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = Error;

    /// Errors: `EINVAL`.
    fn from_str(s: &str) -> Result<Engine> {
        let found = Engine::ALL.into_iter().find(|e| e.name() == s);
        found.ok_or(code::EINVAL)
    }
}
