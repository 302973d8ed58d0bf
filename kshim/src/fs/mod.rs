//! Files of the host.
//!
//! [`File`] is an open regular file or block device, read and written at explicit positions, with the data in an
//! [`SGTable`](crate::scatterlist::SGTable) or a slice. [`KiocbFlags`] says how one call is to be done. [`IoFile`] is a file whose
//! I/O can be submitted, to one of several [engines](Engine). The free functions
//! work on names.
//!
//! C header: `include/linux/fs.h`

mod file;
pub(crate) mod io;
mod kiocb;
mod stat;
mod windows;

use std::path::{Path, PathBuf};

pub use file::{File, OpenOptions};
pub use io::{Engine, IoEnd, IoFile, IoOp, IoReq};
pub use kiocb::KiocbFlags;
pub use stat::{FileKind, Stat, stat};

use crate::error::{Result, code};
use crate::sys::linux::file as sys;

/// Renames a file, replacing what has the new name.
///
/// Context: may sleep. Errors: those of `rename(2)`.
#[doc(alias = "vfs_rename")]
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result {
    sys::rename(from.as_ref(), to.as_ref())
}

/// Removes a file's name.
///
/// Context: may sleep. Errors: those of `unlink(2)`.
#[doc(alias = "vfs_unlink")]
pub fn unlink(path: impl AsRef<Path>) -> Result {
    sys::unlink(path.as_ref())
}

/// Makes a directory and those above it; one that is there is no error.
///
/// Context: may sleep. Errors: those of `mkdir(2)`.
pub fn create_dir_all(path: impl AsRef<Path>) -> Result {
    sys::create_dir_all(path.as_ref())
}

/// The names in a directory, in no order, without `.` and `..` and what is not UTF-8.
///
/// Context: may sleep. Errors: those of `open(2)` and `getdents(2)`.
#[doc(alias = "iterate_dir")]
pub fn list_dir(path: impl AsRef<Path>) -> Result<Vec<String>> {
    sys::list_dir(path.as_ref())
}

/// Makes the names in a directory durable (after creating, renaming or removing one).
///
/// Context: may sleep. Errors: those of `open(2)` and `fsync(2)`.
pub fn sync_dir(path: impl AsRef<Path>) -> Result {
    sys::sync_dir(path.as_ref())
}

/// The absolute path of an existing file with all links resolved.
///
/// Context: may sleep. Errors: those of `realpath(3)`.
#[doc(alias = "kern_path")]
pub fn canonicalize(path: impl AsRef<Path>) -> Result<PathBuf> {
    sys::canonicalize(path.as_ref())
}

/// Reads a small file whole.
///
/// Context: may sleep.
///
/// # Errors
///
/// `EFBIG`: longer than `limit` bytes. Others: those of [`File::open`] and reading.
#[doc(alias = "kernel_read_file_from_path")]
pub fn read(path: impl AsRef<Path>, limit: usize) -> Result<Vec<u8>> {
    let f = File::open(path, &OpenOptions::new().read_only(true))?;
    let len = usize::try_from(f.size()?)?;
    if len > limit {
        return Err(code::EFBIG);
    }
    let mut data = Vec::new();
    data.try_reserve_exact(len)?;
    data.resize(len, 0);
    let n = f.read_at(&mut data, 0)?;
    data.truncate(n);
    Ok(data)
}

/// Reads at most the first `max` bytes of whatever can be read: a file, a pipe (`/dev/fd/N`), a device, a file of `/proc`.
///
/// Context: may sleep, with a pipe until its writer is done.
///
/// # Errors
///
/// Those of opening and reading.
pub fn read_head(path: impl AsRef<Path>, max: usize) -> Result<Vec<u8>> {
    sys::read_head(path.as_ref(), max)
}

/// Writes a file anew, whatever it is. An ordinary file is replaced by rename, so that a crash leaves the old or the new one;
/// it keeps its mode and owner. A new one can be read by its owner only.
///
/// Context: may sleep. Errors: those of `open(2)`, `write(2)`, `fsync(2)` and `rename(2)`.
///
/// ```
/// use kshim::fs;
///
/// let path = std::env::temp_dir().join(format!("kshim-save-{}", std::process::id()));
/// fs::save(&path, b"state 1")?;
/// fs::save(&path, b"state 2")?; // a crash leaves one of them
/// assert_eq!(fs::read(&path, 4096)?, b"state 2");
/// assert_eq!(fs::stat(&path)?.len, 7);
/// fs::unlink(&path)?;
/// # Ok::<(), kshim::error::Error>(())
/// ```
pub fn save(path: impl AsRef<Path>, data: &[u8]) -> Result {
    crate::sys::linux::tree::save(path.as_ref(), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_file_keeps_its_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mode = |p: &Path| rustix::fs::stat(p).unwrap().st_mode & 0o777;
        save(&path, b"one").unwrap();
        assert_eq!(mode(&path), 0o600);
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
        rustix::fs::symlink("f", dir.path().join("link")).unwrap();
        save(dir.path().join("link"), b"two").unwrap();
        assert_eq!((read(&path, 9), mode(&path)), (Ok(b"two".to_vec()), 0o640));
        assert_eq!(list_dir(dir.path()).unwrap().len(), 2);
        assert_eq!(save("/dev/null", b"three"), Ok(()));
        assert_eq!(save("/no/such/dir/f", b"x"), Err(code::ENOENT));
    }

    #[test]
    fn the_head_of_any_kind_of_file_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), b"first\nsecond").unwrap();
        assert_eq!(read_head(file.path(), 100), Ok(b"first\nsecond".to_vec()));
        assert_eq!(read_head(file.path(), 5), Ok(b"first".to_vec()));
        assert_eq!(read_head("/dev/null", 5), Ok(Vec::new()));
        assert_eq!(read_head("/dev/zero", 3), Ok(vec![0; 3]));
        assert_eq!(read_head("/proc/self/stat", 1).map(|b| b.len()), Ok(1));
        assert_eq!(read_head("/no/such/file", 1), Err(code::ENOENT));
        assert_eq!(read_head("/", 1), Err(code::EISDIR));
    }
}
