//! Name spaces: starting a program that sees a file system of its own.
//!
//! For a program that is to see a tree where the kernel's is, step by step, while the process has one thread.
//!
//! C header: `include/linux/nsproxy.h`, `include/linux/mount.h`

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Error, Result};
use crate::kobject::fuse::MountName;
use crate::sys::linux::exec as sys;

/// Leaves the mounts of the caller behind: what is mounted from now on is seen by this process and its children only. Who
/// is not root becomes it, in a user name space of its own.
///
/// Context: a process with one thread.
///
/// Errors: `EPERM` and `ENOSPC` (the host does not permit it), `EINVAL` (there are more threads).
#[doc(alias = "unshare")]
pub fn own_mounts() -> Result {
    sys::own_mounts()
}

/// Puts an empty file system over a directory, and what was in the directory back into it, so that names can be added
/// where the file system has none, as in sysfs. What is there under a name of `except` is left out.
///
/// Context: after [`own_mounts`]. Errors: `ENOENT`, those of `mount(2)`.
pub fn make_room(dir: &Path, except: &[&str]) -> Result {
    sys::make_room(dir, except)
}

/// Makes a directory and mounts a FUSE device there, which somebody has to serve. `name` is what it is called in
/// `/proc/mounts`.
///
/// Context: after [`own_mounts`]. Errors: `ENODEV` (no FUSE here), `EACCES` (`/dev/fuse` may not be opened), `EPERM`,
/// `EINVAL` (a name that a mount cannot have).
pub fn mount_fuse(dir: &Path, name: MountName<'_>) -> Result<OwnedFd> {
    sys::mount_fuse(dir, name)
}

/// Writes a new file that can be executed.
///
/// Context: may sleep. Errors: `EEXIST`, those of `open(2)` and `write(2)`.
pub fn write_script(path: &Path, text: &str) -> Result {
    sys::write_script(path, text)
}

/// Replaces this process by a program, found by `PATH`, with these variables set; returns only when that fails.
///
/// Errors: `ENOENT`, `EACCES`, those of `execve(2)`.
#[doc(alias = "kernel_execve")]
pub fn replace(argv: &[OsString], env: &[(&str, OsString)]) -> Error {
    sys::replace(argv, env)
}
