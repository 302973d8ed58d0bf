//! Starting a program in name spaces of its own.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree,
};
use rustix::thread::UnshareFlags;

use super::mount::{effective_ids, mount_fuse_as_root};
use crate::error::{Error, Result, code};
use crate::kobject::fuse::MountName;

/// Leaves the mounts of the caller behind; what is mounted from now on is seen by this process and its children only. Who
/// is not root becomes it, in a user name space of its own.
///
/// Errors: `EPERM`: the host does not permit it. `EINVAL`: there are more threads.
pub(crate) fn own_mounts() -> Result {
    let (uid, gid) = effective_ids();
    let unshare = |flags| {
        // SAFETY: descriptors stay shared; only those must not be unshared behind other threads' backs.
        unsafe { rustix::thread::unshare_unsafe(flags) }
    };
    let plain = if uid == 0 {
        unshare(UnshareFlags::NEWNS)
    } else {
        Err(Errno::PERM)
    };
    match plain {
        Ok(()) => {}
        Err(Errno::PERM) => {
            unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
            write("/proc/self/setgroups", "deny")?;
            write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
            write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
        }
        Err(e) => return Err(e.into()),
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

fn write(path: &str, text: &str) -> Result {
    std::fs::write(path, text).map_err(Error::from)
}

/// Puts an empty file system over a directory and what was in it back into that, but for some names, so that they can be
/// added.
///
/// Errors: those of `mount(2)`; an entry that cannot be put back is left out.
pub(crate) fn make_room(dir: &Path, except: &[&str]) -> Result {
    let mut entries: Vec<(OsString, bool, OwnedFd)> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if except.iter().any(|e| entry.file_name() == *e) {
            continue;
        }
        let is_dir = entry.file_type()?.is_dir();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        // Mounts below it may not be left behind in a user name space, hence recursively.
        match open_tree(CWD, entry.path(), flags) {
            Ok(tree) => entries.push((entry.file_name(), is_dir, tree)),
            Err(e) => crate::pr_debug!("{}: {e}", entry.path().display()),
        }
    }
    let options = CString::new("mode=755").map_err(|_| code::EINVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", dir, "tmpfs", flags, options.as_c_str())?;
    for (name, is_dir, tree) in entries {
        let path = dir.join(name);
        if is_dir {
            std::fs::create_dir(&path)?;
        } else {
            std::fs::write(&path, "")?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        if let Err(e) = move_mount(tree.as_fd(), "", CWD, &path, flags) {
            crate::pr_debug!("{}: {e}", path.display());
        }
    }
    Ok(())
}

/// Mounts a FUSE device at a directory, which is made.
pub(crate) fn mount_fuse(dir: &Path, name: MountName<'_>) -> Result<OwnedFd> {
    rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755))?;
    mount_fuse_as_root(dir, name, "")
}

/// Writes a program.
pub(crate) fn write_script(path: &Path, text: &str) -> Result {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o755))?;
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(Error::from)
}

/// Replaces this process by a program; returns only when that fails.
pub(crate) fn replace(argv: &[OsString], env: &[(&str, OsString)]) -> Error {
    let Some((program, args)) = argv.split_first() else {
        return code::EINVAL;
    };
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().map(|(k, v)| (k, v)));
    Error::from(command.exec())
}
