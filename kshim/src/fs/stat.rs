//! What a name stands for.

use std::path::Path;

use crate::error::Result;
use crate::sys::linux::host as sys;

/// Kinds of files that matter to a storage server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A socket, a FIFO, a character device.
    Other,
}

/// What [`stat`] says about a name.
///
/// C header: `include/linux/stat.h`
#[doc(alias = "kstat")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Kind, links followed.
    pub kind: FileKind,
    /// Length in bytes; 0 for a block device (open it to learn its size).
    pub len: u64,
    /// Equal for two names of the same thing: device and inode number of a file, device number of a block device.
    pub identity: (u64, u64),
}

/// What `path` stands for, links followed.
///
/// Context: may sleep. Errors: those of `stat(2)`.
#[doc(alias = "vfs_stat")]
pub fn stat(path: impl AsRef<Path>) -> Result<Stat> {
    sys::stat(path.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;

    #[test]
    fn kinds_and_identities() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        crate::fs::File::open(at("a"), &crate::fs::OpenOptions::new().create(true))
            .unwrap()
            .set_size(5)
            .unwrap();
        rustix::fs::symlink(at("a"), at("link")).unwrap();
        rustix::fs::link(at("a"), at("hard")).unwrap();
        let a = stat(at("a")).unwrap();
        assert_eq!((a.kind, a.len), (FileKind::Regular, 5));
        assert_eq!(stat(at("link")), Ok(a));
        assert_eq!(stat(at("hard")), Ok(a));
        let d = stat(dir.path()).unwrap();
        assert_eq!(d.kind, FileKind::Directory);
        assert_ne!(d.identity, a.identity);
        assert_eq!(stat("/dev/null").unwrap().kind, FileKind::Other);
        assert_eq!(stat(at("none")), Err(code::ENOENT));
    }
}
