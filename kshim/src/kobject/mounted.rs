//! A tree at a directory of this host: the kernel's own below `/sys`, or one that a server mounted.

use std::path::{Path, PathBuf};

use super::tree::{Entry, TreeOps};
use crate::error::{Result, code};
use crate::sys::linux::tree as sys;

/// A tree at a directory of this host.
///
/// ```no_run
/// use kshim::kobject::mounted::Mounted;
/// use kshim::kobject::tree::TreeOps;
///
/// let tree = Mounted::at("/sys/module".as_ref())?;
/// print!("{}", String::from_utf8_lossy(&tree.read("kernel/version")?));
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mounted {
    root: PathBuf,
}

impl Mounted {
    /// The tree at a directory.
    ///
    /// Context: may sleep. Errors: `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn at(root: &Path) -> Result<Mounted> {
        sys::list(root)?;
        Ok(Mounted {
            root: root.to_owned(),
        })
    }

    /// Nothing above the root can be named.
    fn path(&self, path: &str) -> Result<PathBuf> {
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(code::EINVAL);
        }
        Ok(if path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(path)
        })
    }
}

impl TreeOps for Mounted {
    fn list(&self, path: &str) -> Result<Vec<Entry>> {
        sys::list(&self.path(path)?)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        sys::read(&self.path(path)?)
    }

    fn write(&self, path: &str, value: &[u8]) -> Result {
        sys::write(&self.path(path)?, value)
    }

    fn readlink(&self, path: &str) -> Result<String> {
        sys::readlink(&self.path(path)?)
    }

    fn stat(&self, path: &str) -> Result<Entry> {
        let mut entry = sys::stat(&self.path(path)?)?;
        entry.name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::EntryKind;
    use super::*;
    use crate::fs::{File, OpenOptions, create_dir_all};

    #[test]
    fn a_directory_is_a_tree() {
        let dir = tempfile::tempdir().unwrap();
        create_dir_all(dir.path().join("devices/disk1")).unwrap();
        let attr = dir.path().join("devices/disk1/size");
        let created = File::open(&attr, &OpenOptions::new().create(true).mode(0o644)).unwrap();
        created.write_at(b"12\n", 0).unwrap();
        rustix::fs::symlink("../devices/disk1", dir.path().join("link")).unwrap();
        let tree = Mounted::at(dir.path()).unwrap();
        let names: Vec<_> = tree
            .list("")
            .unwrap()
            .into_iter()
            .map(|e| (e.name, e.kind))
            .collect();
        let want = [("devices", EntryKind::Dir), ("link", EntryKind::Link)];
        assert_eq!(names, want.map(|(n, k)| (n.to_owned(), k)));
        assert_eq!(tree.read("devices/disk1/size").unwrap(), b"12\n");
        tree.write("devices/disk1/size", b"345").unwrap();
        assert_eq!(tree.read("devices/disk1/size").unwrap(), b"345");
        assert_eq!(tree.readlink("link").unwrap(), "../devices/disk1");
        let entry = tree.stat("devices/disk1/size").unwrap();
        assert_eq!((entry.name.as_str(), entry.kind), ("size", EntryKind::File));
        assert_eq!(entry.mode, 0o644);
        assert_eq!(tree.write("devices/none", b"1"), Err(code::ENOENT));
        assert_eq!(tree.read("../x"), Err(code::EINVAL));
        assert_eq!(tree.readlink("devices"), Err(code::EINVAL));
        assert!(Mounted::at("/no/such".as_ref()).is_err());
    }
}
