//! Mounting the view in this process's own name space.

use std::path::{Path, PathBuf};

use super::{FuseView, MountName, Owner};
use crate::error::{Result, code};
use crate::kobject::Kobject;
use crate::sync::Arc;
use crate::sys::linux::mount as sys;

/// A tree that is mounted at a directory. Dropping it unmounts.
#[derive(Debug)]
pub struct FuseMount {
    dir: PathBuf,
    /// None only while it is dropped.
    view: Option<FuseView>,
}

impl FuseMount {
    /// Mounts the tree of `root` at a directory that is there; what a dead server left mounted there is unmounted first. As root
    /// the kernel is asked directly and everybody may look; as another user `fusermount3` does it, and only the user may
    /// look.
    ///
    /// Context: may sleep. Errors: `ENOENT`, `ENOTDIR`, `EBUSY` (something is mounted there), `ENODEV` (no FUSE here), `EPERM`,
    /// `EINVAL` (a name that a mount cannot have), as [`FuseView::serve`].
    pub fn mount(root: &Arc<Kobject>, dir: &Path, name: MountName<'_>) -> Result<FuseMount> {
        match sys::is_dir(dir) {
            Err(e) if e == code::ENOTCONN => sys::unmount(dir)?,
            Err(e) => return Err(e),
            Ok(false) => return Err(code::ENOTDIR),
            Ok(true) => {}
        }
        let dir = crate::fs::canonicalize(dir)?;
        let device = sys::mount_fuse(&dir, name)?;
        let mut this = FuseMount { dir, view: None };
        this.view = Some(FuseView::serve(root, device, Owner::me())?);
        Ok(this)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if !self.view.as_ref().is_some_and(FuseView::is_ended)
            && let Err(e) = sys::unmount(&self.dir)
        {
            crate::pr_warn!("{}: cannot be unmounted: {e}", self.dir.display());
        }
        self.view = None;
    }
}
