//! Programs in process groups of their own.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::{Access, FileType};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::error::{Error, Result, code};

/// A program. Its number stays its own until it is reaped, at the latest when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    child: std::process::Child,
    status: Option<ExitStatus>,
}

pub(crate) fn spawn(argv: &[OsString], env: &[(&str, OsString)]) -> Result<Child> {
    let (program, args) = argv.split_first().ok_or(code::EINVAL)?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .process_group(0);
    let child = command.spawn().map_err(Error::from)?;
    Ok(Child {
        child,
        status: None,
    })
}

pub(crate) fn may_run(path: &Path) -> Result {
    rustix::fs::access(path, Access::EXEC_OK)?;
    if FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode) == FileType::RegularFile {
        return Ok(());
    }
    Err(code::EACCES)
}

/// Sleeps until the child has ended, and leaves it to be reaped.
pub(crate) fn wait_for_end(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else {
        return;
    };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let interrupted = rustix::io::Errno::INTR;
    while rustix::process::waitid(WaitId::Pid(pid), options).is_err_and(|e| e == interrupted) {}
}

impl Child {
    pub(crate) fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Exit status, or 128 and the signal. May sleep.
    pub(crate) fn reap(&mut self) -> Result<i32> {
        let status = match self.status {
            Some(status) => status,
            None => *self.status.insert(self.child.wait().map_err(Error::from)?),
        };
        let signal = status.signal().map_or(255, |s| s.saturating_add(128));
        Ok(status.code().unwrap_or(signal))
    }

    /// SIGTERM or SIGKILL for all of the group, unless the program was reaped.
    pub(crate) fn signal_group(&self, kill: bool) {
        if self.status.is_some() {
            return;
        }
        let signal = if kill { Signal::KILL } else { Signal::TERM };
        if let Some(pid) = Pid::from_raw(self.id()) {
            // They may all have ended.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal_group(true);
        // Killed, so this does not take long.
        let _: Result<i32> = self.reap();
    }
}
