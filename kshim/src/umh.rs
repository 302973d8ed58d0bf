//! Helper programs: started, waited for with a limit, ended.
//!
//! The server itself starts none; its tools may (one that runs scripts on events).
//!
//! C header: `include/linux/umh.h`

use std::ffi::OsString;
use std::path::Path;

use crate::error::Result;
use crate::kthread::{self, Kthread};
use crate::sync::{Arc, Completion};
use crate::sys::linux::umh as sys;
use crate::time::Delta;

/// A program that was started, in a process group of its own. It is killed when this is dropped before its end.
///
/// ```
/// use kshim::time::Delta;
/// use kshim::umh::Helper;
///
/// let argv = ["/bin/sh", "-c", "exit 3"].map(Into::into);
/// let mut helper = Helper::start(&argv, &[("LANG", "C".into())])?;
/// assert_eq!(helper.wait(Delta::from_secs(60)), Ok(3));
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/umh.h` (`struct subprocess_info`)
#[doc(alias = "subprocess_info")]
#[derive(Debug)]
pub struct Helper {
    child: sys::Child,
    ended: Arc<Completion>,
    waiter: Option<Kthread>,
}

/// How a program is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It may clean up: SIGTERM.
    Ask,
    /// SIGKILL.
    Kill,
}

/// Whether this process may run a file as a program.
///
/// Context: may sleep. Errors: `ENOENT`, `EACCES` (it may not, or it is no file).
pub fn may_run(path: &Path) -> Result {
    sys::may_run(path)
}

impl Helper {
    /// Starts a program, found by its path, with these variables and no others. Its output goes where this process's goes; it
    /// has no input.
    ///
    /// Context: may sleep. Errors: `ENOENT`, `EACCES`, `ENOEXEC`, `EAGAIN`, those of `execve(2)`; `EINVAL`: no program.
    #[doc(alias = "call_usermodehelper")]
    pub fn start(argv: &[OsString], env: &[(&str, OsString)]) -> Result<Helper> {
        let child = sys::spawn(argv, env)?;
        let (ended, pid) = (Arc::new(Completion::new()), child.id());
        let tell = Arc::clone(&ended);
        let waiter = kthread::run("umh_wait", move |_| {
            // Not reaped yet: until it is, the number is the program's and of nobody else.
            sys::wait_for_end(pid);
            tell.complete_all();
        });
        // Without a waiter the child is killed by its own drop.
        Ok(Helper {
            waiter: Some(waiter?),
            child,
            ended,
        })
    }

    /// Waits for its end, for that time at most. How it ended: its exit status, or 128 plus the number of the signal.
    ///
    /// Context: may sleep. Errors: `ETIMEDOUT`: it still runs.
    pub fn wait(&mut self, limit: Delta) -> Result<i32> {
        if !self.ended.wait_for_completion_timeout(limit) {
            return Err(crate::error::code::ETIMEDOUT);
        }
        self.child.reap()
    }

    /// Sends a signal to the program and what it started.
    ///
    /// Context: any.
    pub fn end(&self, how: End) {
        self.child.signal_group(how == End::Kill);
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.child.signal_group(true);
        if let Some(waiter) = self.waiter.take() {
            waiter.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;

    const LONG: Delta = Delta::from_secs(60);

    fn sh(script: &str) -> Helper {
        let argv = ["/bin/sh", "-c", script].map(OsString::from);
        Helper::start(
            &argv,
            &[("PATH", "/bin:/usr/bin".into()), ("A", "1".into())],
        )
        .unwrap()
    }

    #[test]
    fn a_program_ends() {
        assert_eq!(sh("exit 0").wait(LONG), Ok(0));
        assert_eq!(sh("test $A = 1 && exit 7").wait(LONG), Ok(7));
        assert_eq!(sh("test -z \"$HOME\"").wait(LONG), Ok(0));
        assert_eq!(sh("read x").wait(LONG), Ok(1), "no input");
        assert_eq!(sh("kill -11 $$").wait(LONG), Ok(139));
        let mut twice = sh("exit 3");
        assert_eq!(twice.wait(LONG), Ok(3));
        twice.end(End::Kill);
        assert_eq!(twice.wait(LONG), Ok(3));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let mut long = sh("exec sleep 1000");
        assert_eq!(long.wait(Delta::from_millis(1)), Err(code::ETIMEDOUT));
        long.end(End::Ask);
        assert_eq!(long.wait(LONG), Ok(128 + 15));
        let mut other = sh("sleep 1000; exit 0");
        other.end(End::Kill);
        assert_eq!(other.wait(LONG), Ok(128 + 9));
    }

    #[test]
    fn dropping_it_kills_what_it_started() {
        let (mut reads, writes) = std::io::pipe().unwrap();
        // The descriptor is open in the child of the child as long as that lives.
        let fd = writes.as_raw_fd();
        rustix::io::fcntl_setfd(&writes, rustix::io::FdFlags::empty()).unwrap();
        let helper = sh(&format!("sleep 1000 & echo x >&{fd}; wait"));
        drop(writes);
        let mut first = [0];
        reads.read_exact(&mut first).unwrap();
        drop(helper);
        let mut rest = Vec::new();
        reads.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"\n");
    }

    #[test]
    fn what_is_no_program_does_not_start() {
        let start = |path: &str| Helper::start(&[path.into()], &[]).unwrap_err();
        assert_eq!(start("/nothing/there"), code::ENOENT);
        assert_eq!(start("/etc/passwd"), code::EACCES);
        assert_eq!(may_run(Path::new("/bin/sh")), Ok(()));
        assert_eq!(may_run(Path::new("/bin")), Err(code::EACCES));
        assert_eq!(may_run(Path::new("/etc/passwd")), Err(code::EACCES));
        assert_eq!(Helper::start(&[], &[]).unwrap_err(), code::EINVAL);
    }
}
