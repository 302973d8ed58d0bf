//! The view of a tree as a file system, by FUSE: what sysfs is in the kernel.
//!
//! [`FuseView`] serves a device that is mounted already, by whomever; [`FuseMount`] mounts it as well. Attributes have the size
//! of a page, as in sysfs, but are read whole, without the kernel's caches between: every read from offset 0 calls `show`. A
//! write is one store of at most a page.
//!
//! Two threads answer requests. A store gets a thread of its own, so that a slow one holds nobody up; its writer may be
//! interrupted, and the store goes on then.
//!
//! Why not one of the FUSE crates: they serve until the device is unmounted, which a server cannot do in the mount namespace
//! of another process; here the server closes the device and all is over.

mod abi;
mod mount;
mod serve;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

use crate::error::{Result, code};
use crate::kobject::Kobject;
use crate::kthread::{self, Kthread};
use crate::sync::Arc;
use serve::View;

pub use mount::FuseMount;

/// Threads that answer requests.
const THREADS: usize = 2;

/// To whom the files belong, as seen where the device is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// Root, as in sysfs.
    pub const ROOT: Owner = Owner { uid: 0, gid: 0 };

    /// The user of this process.
    pub fn me() -> Owner {
        let (uid, gid) = crate::sys::linux::mount::effective_ids();
        Owner { uid, gid }
    }
}

/// What a mounted tree is called in `/proc/mounts`: `SOURCE DIR fuse.SUBTYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountName<'a> {
    /// What is mounted.
    pub source: &'a str,
    /// The kind of file system, behind `fuse.`.
    pub subtype: &'a str,
}

impl MountName<'_> {
    /// Letters, digits, `_`, `-` and `.` only: the names go into lists of options.
    pub(crate) fn is_valid(&self) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        [self.source, self.subtype]
            .iter()
            .all(|s| !s.is_empty() && s.chars().all(plain))
    }
}

/// A tree that is served on a mounted FUSE device. Dropping it closes the device: what is open then answers `ENOTCONN`.
#[derive(Debug)]
pub struct FuseView {
    view: Arc<View>,
    threads: Vec<Kthread>,
}

impl FuseView {
    /// Serves the tree of `root`.
    ///
    /// Context: may sleep. Errors: `EINVAL` (no FUSE device), `EAGAIN` (no thread), `EMFILE`.
    pub fn serve(root: &Arc<Kobject>, device: OwnedFd, owner: Owner) -> Result<FuseView> {
        if !crate::sys::linux::mount::is_fuse_device(&device)? {
            return Err(code::EINVAL);
        }
        let mut this = FuseView {
            view: Arc::new(View::new(root, device, owner)?),
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let view = Arc::clone(&this.view);
            let thread = kthread::run("kobj_fuse", move |_| view.run())?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// Whether the device was unmounted.
    pub fn is_ended(&self) -> bool {
        self.view.is_ended()
    }
}

impl Drop for FuseView {
    fn drop(&mut self) {
        self.view.stop();
        self.threads.clear();
        // A store that runs still has a share of the view, but not of the device.
        self.view.close();
    }
}
