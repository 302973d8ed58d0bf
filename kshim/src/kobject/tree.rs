//! The view of a tree in memory, and what every view offers.

use super::attr::AttrFile;
use super::{Kobject, Link, Node};
use crate::error::{Result, code};
use crate::sync::Arc;

/// How many links one path may lead through, as in the kernel (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// An attribute.
    File,
    /// A link to a directory.
    Link,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name; "" for the root.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Its permission bits, as 0o644.
    pub mode: u16,
}

/// A tree, live in this process or of a server elsewhere. Paths are from the root, without it: "devices/disk1"; links
/// on the way are followed. Context: may sleep.
///
/// Errors, of all calls: `ENOENT`, `ENOTDIR` when the path leads through an attribute, `ELOOP`; of a remote tree also
/// `ENOTCONN` and what the connection answers.
pub trait TreeOps {
    /// The entries of a directory, by name.
    fn list(&self, path: &str) -> Result<Vec<Entry>>;
    /// The content of an attribute. Errors: `EISDIR`, `EACCES` when it cannot be read, what its `show` answers.
    fn read(&self, path: &str) -> Result<Vec<u8>>;
    /// Writes an attribute. Errors: `EISDIR`, `EACCES` when it cannot be written, `EAGAIN` when the store runs on, what
    /// it answers otherwise.
    fn write(&self, path: &str, value: &[u8]) -> Result;
    /// Where a link leads, relative to its directory. Errors: `EINVAL` when it is none.
    fn readlink(&self, path: &str) -> Result<String>;
    /// What an entry is; a link at the end of the path is not followed.
    fn stat(&self, path: &str) -> Result<Entry>;
}

/// The view in memory.
#[derive(Debug, Clone)]
pub struct Tree {
    root: Arc<Kobject>,
}

impl Tree {
    /// A view of the tree with that root.
    pub fn new(root: &Arc<Kobject>) -> Tree {
        Tree {
            root: Arc::clone(root),
        }
    }

    /// The root.
    pub fn root(&self) -> &Arc<Kobject> {
        &self.root
    }

    /// Opens an attribute. Removing it meanwhile is allowed: what is read or written then answers `ENODEV`.
    ///
    /// Context: any. Errors: as [`TreeOps`]; `EISDIR`, `EACCES`.
    pub fn open(&self, path: &str, read: bool, write: bool) -> Result<OpenFile> {
        match self.resolve(path, true)? {
            Node::File(file) => {
                file.check_open(read, write)?;
                Ok(OpenFile::new(file))
            }
            Node::Dir(_) | Node::Link(_) => Err(code::EISDIR),
        }
    }

    fn resolve(&self, path: &str, follow_last: bool) -> Result<Node> {
        let mut links = 0;
        // What is still to walk, last part first.
        let mut todo: Vec<String> = parts(path).rev().collect();
        let mut at = vec![Arc::clone(&self.root)];
        while let Some(part) = todo.pop() {
            if part == ".." {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            let dir = at.last().ok_or(code::ENOENT)?;
            match dir.node(&part)? {
                Node::Dir(child) => at.push(child),
                Node::File(_) if !todo.is_empty() => return Err(code::ENOTDIR),
                Node::Link(link) if follow_last || !todo.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(code::ELOOP);
                    }
                    todo.extend(parts(link.text()).rev());
                }
                node => return Ok(node),
            }
        }
        at.pop().map(Node::Dir).ok_or(code::ENOENT)
    }
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = String> {
    let parts = path.split('/').filter(|p| !p.is_empty() && *p != ".");
    parts.map(str::to_owned)
}

pub(crate) fn entry(name: &str, node: &Node) -> Entry {
    let (kind, mode) = match node {
        Node::Dir(_) => (EntryKind::Dir, 0o755),
        Node::File(f) => (EntryKind::File, f.mode()),
        Node::Link(_) => (EntryKind::Link, 0o777),
    };
    Entry {
        name: name.to_owned(),
        kind,
        mode,
    }
}

impl TreeOps for Tree {
    fn list(&self, path: &str) -> Result<Vec<Entry>> {
        match self.resolve(path, true)? {
            Node::Dir(dir) => Ok(dir.nodes().iter().map(|(n, k)| entry(n, k)).collect()),
            Node::File(_) | Node::Link(_) => Err(code::ENOTDIR),
        }
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.open(path, true, false)?.read()
    }

    fn write(&self, path: &str, value: &[u8]) -> Result {
        self.open(path, false, true)?.write(value)
    }

    fn readlink(&self, path: &str) -> Result<String> {
        match self.resolve(path, false)? {
            Node::Link(link) => Ok(Link::text(&link).to_owned()),
            Node::Dir(_) | Node::File(_) => Err(code::EINVAL),
        }
    }

    fn stat(&self, path: &str) -> Result<Entry> {
        let node = self.resolve(path, false)?;
        let name = match &node {
            Node::Dir(dir) if dir.path().is_empty() => String::new(),
            Node::Dir(dir) => dir.name().to_owned(),
            _ => parts(path).next_back().unwrap_or_default(),
        };
        Ok(entry(&name, &node))
    }
}

/// An open attribute.
pub struct OpenFile {
    file: Arc<AttrFile>,
}

impl OpenFile {
    pub(crate) fn new(file: Arc<AttrFile>) -> OpenFile {
        OpenFile { file }
    }

    /// The content, shown anew. Errors: `ENODEV` when removed, what `show` answers. Context: as `show`.
    pub fn read(&self) -> Result<Vec<u8>> {
        self.file.show().map(String::into_bytes)
    }

    /// Writes a value. Errors: as [`TreeOps::write`], and `ENODEV` when removed. Context: may sleep.
    pub fn write(&self, value: &[u8]) -> Result {
        self.file.store(value)
    }
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFile").finish_non_exhaustive()
    }
}
