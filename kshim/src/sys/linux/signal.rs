//! Signals of the process.
//!
//! A server blocks the termination signals before it starts its first thread ([`block_termination`]), and one thread
//! waits for them ([`wait_termination`]); no handler ever runs. SIGPIPE is ignored, so that writing to a closed socket
//! or pipe is an error (EPIPE) and not the end of the process.

use std::mem::MaybeUninit;

use crate::error::{Error, Result, code};

/// A signal that asks the process to end or to reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// SIGTERM: stop.
    Term,
    /// SIGINT: stop (Ctrl-C).
    Int,
    /// SIGHUP: the terminal is gone, or reload.
    Hup,
}

const TERMINATION: [(libc::c_int, Termination); 3] = [
    (libc::SIGTERM, Termination::Term),
    (libc::SIGINT, Termination::Int),
    (libc::SIGHUP, Termination::Hup),
];

fn termination_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for (sig, _) in TERMINATION {
        // SAFETY: the set is initialised and the number is a valid signal.
        unsafe { libc::sigaddset(&mut set, sig) };
    }
    set
}

/// Blocks SIGTERM, SIGINT and SIGHUP in the calling thread and all threads it starts from now on.
///
/// Call it first in `main`, before any thread exists; a thread started earlier would still die of them.
///
/// Context: any.
pub fn block_termination() -> Result {
    let set = termination_set();
    // SAFETY: the set is initialised; no old mask is asked for.
    let err = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if err == 0 {
        Ok(())
    } else {
        Err(Error::from_errno(err))
    }
}

/// Sleeps until one of the blocked termination signals arrives, takes it and returns it.
///
/// Context: may sleep. Requires [`block_termination`] before; otherwise the default action ends the process first.
pub fn wait_termination() -> Result<Termination> {
    let set = termination_set();
    loop {
        // SAFETY: the set is initialised; no details of the signal are asked for.
        let sig = unsafe { libc::sigwaitinfo(&set, std::ptr::null_mut()) };
        if sig < 0 {
            let e = Error::from(std::io::Error::last_os_error());
            if e != code::EINTR {
                return Err(e);
            }
            continue;
        }
        if let Some((_, t)) = TERMINATION.iter().find(|(s, _)| *s == sig) {
            return Ok(*t);
        }
    }
}

/// Ignores SIGPIPE for the whole process.
///
/// Context: any. Rust programs start so; plug-ins and embedding programs may have changed it.
pub fn ignore_sigpipe() -> Result {
    // SAFETY: SIG_IGN is a valid disposition and installs no code of ours.
    let old = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    if old == libc::SIG_ERR {
        return Err(Error::from(std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Sends `signal` to the calling process itself, as an operator's `kill` would.
///
/// Context: any. For tests, and for a control interface that is asked to stop the server.
pub fn raise_termination(signal: Termination) -> Result {
    let sig = TERMINATION
        .iter()
        .find(|(_, t)| *t == signal)
        .map_or(libc::SIGTERM, |(s, _)| *s);
    let sig = rustix::process::Signal::from_named_raw(sig).ok_or(code::EINVAL)?;
    Ok(rustix::process::kill_process(
        rustix::process::getpid(),
        sig,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Waiting for a process-directed signal cannot be tested inside the harness: its other threads do not block the
    // signal and the default action would end the run. `kshim/tests/signals.rs` does it in a process of its own.

    #[test]
    fn the_set_holds_exactly_the_three() {
        let set = termination_set();
        for sig in 1..32 {
            // SAFETY: the set is initialised and the number is a valid signal.
            let has = unsafe { libc::sigismember(&set, sig) } == 1;
            assert_eq!(
                has,
                TERMINATION.iter().any(|(s, _)| *s == sig),
                "signal {sig}"
            );
        }
    }

    #[test]
    fn sigpipe_is_ignored() {
        ignore_sigpipe().unwrap();
        let (r, w) = rustix::pipe::pipe().unwrap();
        drop(r);
        assert_eq!(rustix::io::write(&w, b"x"), Err(rustix::io::Errno::PIPE));
    }
}
