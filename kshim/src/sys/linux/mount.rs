//! Mounts, name spaces, and the FUSE device.

use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd as Pfd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::poll::{EventFd, PollFd};
use crate::error::{Error, Result, code};
use crate::kobject::fuse::MountName;

/// Major and minor number of `/dev/fuse` (`FUSE_MINOR`, a misc device).
const FUSE_DEVICE: (u32, u32) = (10, 229);
const FUSERMOUNT: &str = "fusermount3";

pub(crate) fn effective_ids() -> (u32, u32) {
    let uid = rustix::process::geteuid().as_raw();
    (uid, rustix::process::getegid().as_raw())
}

pub(crate) fn is_fuse_device(fd: &OwnedFd) -> Result<bool> {
    let st = rustix::fs::fstat(fd)?;
    let number = (rustix::fs::major(st.st_rdev), rustix::fs::minor(st.st_rdev));
    let kind = FileType::from_raw_mode(st.st_mode);
    Ok(kind == FileType::CharacterDevice && number == FUSE_DEVICE)
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Sleeps for a request, or until `stop` is rung. None: another thread was faster, or it was rung. `ENODEV`: unmounted.
pub(crate) fn read_request(
    device: &PollFd,
    stop: &EventFd,
    buf: &mut [u8],
) -> Result<Option<usize>> {
    let bell = stop.poll_fd();
    let mut fds = [
        Pfd::new(device, PollFlags::IN),
        Pfd::new(&bell, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    if !fds[1].revents().is_empty() {
        return Ok(None);
    }
    match rustix::io::read(device, buf) {
        Ok(n) => Ok(Some(n)),
        // ENOENT: the request was interrupted before it was read.
        Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn write_reply(device: &PollFd, head: &[u8], body: &[u8]) -> Result {
    rustix::io::writev(device, &[IoSlice::new(head), IoSlice::new(body)])?;
    Ok(())
}

/// Errors: `ENOTCONN`: a mount whose server is dead.
pub(crate) fn is_dir(path: &Path) -> Result<bool> {
    let st = rustix::fs::stat(path)?;
    Ok(FileType::from_raw_mode(st.st_mode) == FileType::Directory)
}

fn open_fuse() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/fuse", flags, Mode::empty());
    fd.map_err(|e| match e {
        Errno::NOENT => code::ENODEV,
        e => e.into(),
    })
}

/// Mounts a FUSE device at a directory, as the root of this name space.
pub(super) fn mount_fuse_as_root(
    dir: &Path,
    name: MountName<'_>,
    options: &str,
) -> Result<OwnedFd> {
    if !name.is_valid() {
        return Err(code::EINVAL);
    }
    let device = open_fuse()?;
    let fd = device.as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0{options}");
    let data = CString::new(data).map_err(|_| code::EINVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let kind = format!("fuse.{}", name.subtype);
    rustix::mount::mount(name.source, dir, kind.as_str(), flags, data.as_c_str())?;
    Ok(device)
}

/// Mounts a FUSE device at a directory: directly as root, by `fusermount3` otherwise.
pub(crate) fn mount_fuse(dir: &Path, name: MountName<'_>) -> Result<OwnedFd> {
    if !name.is_valid() {
        return Err(code::EINVAL);
    }
    if effective_ids().0 == 0 {
        match mount_fuse_as_root(dir, name, ",default_permissions,allow_other") {
            // In a container root may not be allowed to, but the helper may.
            Err(e) if e == code::EPERM => {}
            other => return other,
        }
    }
    let (ours, theirs) = super::unix::pair()?;
    // The helper inherits it.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let MountName { source, subtype } = name;
    let options = format!("fsname={source},subtype={subtype},default_permissions,noexec");
    let status = Command::new(FUSERMOUNT)
        .args(["-o", &options])
        .arg("--")
        .arg(dir)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    drop(theirs);
    if !status?.success() {
        // It said why on stderr.
        return Err(code::EPERM);
    }
    let (_, device) = super::unix::recv(ours.as_fd(), &mut [0])?;
    device.ok_or(code::EPROTO)
}

/// Unmounts, or takes the mount out of sight until its last user is gone.
pub(crate) fn unmount(dir: &Path) -> Result {
    match rustix::mount::unmount(dir, UnmountFlags::DETACH) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let status = Command::new(FUSERMOUNT)
        .args(["-u", "-z", "-q", "--"])
        .arg(dir)
        .stdin(Stdio::null())
        .status();
    let status = status.map_err(Error::from)?;
    if status.success() {
        Ok(())
    } else {
        Err(code::EPERM)
    }
}
