//! Kobjects: the tree of directories, attributes and links by which the system is managed.
//!
//! The tree is a model; views show it. [`tree::Tree`] is the view in memory, as tests use it. A [`Kobject`] is a
//! directory; it has attributes ([`Attr`], a file with `show` and `store`), links and further directories.
//!
//! ```
//! use kshim::kobject::tree::{Tree, TreeOps};
//! use kshim::kobject::{Attr, Inline, Kobject};
//! use kshim::sync::Arc;
//!
//! let root = Kobject::root("target", Arc::new(Inline));
//! let devices = root.add("devices")?;
//! let disk = devices.add("disk1")?;
//! disk.add_attr(Attr::ro("blocksize", || Ok("512\n".to_owned())))?;
//!
//! let tree = Tree::new(&root);
//! assert_eq!(tree.read("devices/disk1/blocksize")?, b"512\n");
//! disk.del();
//! assert!(tree.read("devices/disk1/blocksize").is_err());
//! # Ok::<(), kshim::error::Error>(())
//! ```
//!
//! # Stores
//!
//! A store runs on the tree's [`Executor`], one at a time and in order, so it may sleep and change the tree as it
//! likes. The writer waits for it, but no longer than [`STORE_TIMEOUT`]: then it gets `EAGAIN`, and the result can be
//! read later from the attribute of [`Kobject::last_result_attr`].
//!
//! # Removal
//!
//! A running `show` or `store` holds an *active reference* to its attribute. Removing an attribute or a directory
//! unpublishes first, so that no new reference is given out, and then waits until the last one is gone: after
//! [`Kobject::del`] no callback of the subtree runs or will run. The store that removes its own attribute does not
//! wait for itself. Who has a removed file still open gets `ENODEV`. A store takes its reference when it begins to
//! run, not while it waits for its turn.
//!
//! C header: `include/linux/kobject.h`, `include/linux/sysfs.h`, `fs/kernfs`

mod attr;
pub mod control;
mod executor;
pub mod fuse;
#[cfg(test)]
mod model_tests;
pub mod mounted;
#[cfg(test)]
mod tests;
pub mod tree;

use std::collections::BTreeMap;
use std::fmt;

pub use attr::{Attr, STORE_TIMEOUT, VALUE_MAX};
pub use executor::{Executor, Inline, Work};

use crate::error::{Result, code};
use crate::sync::{Arc, SpinLock, Weak};
use crate::time::Delta;
use attr::{AttrFile, Shared};

/// Longest name of a directory, attribute or link, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// A directory of the tree.
#[doc(alias = "struct kobject")]
pub struct Kobject {
    name: String,
    /// From the root, without the root's name: "" or "a/b".
    path: String,
    ino: u64,
    parent: Weak<Kobject>,
    shared: Arc<Shared>,
    dir: SpinLock<Dir>,
}

#[derive(Default)]
struct Dir {
    removed: bool,
    nodes: BTreeMap<String, Node>,
}

/// What stands in a directory.
#[derive(Clone)]
pub(crate) enum Node {
    Dir(Arc<Kobject>),
    File(Arc<AttrFile>),
    Link(Arc<Link>),
}

/// A symbolic link to a directory of the same tree.
pub(crate) struct Link {
    ino: u64,
    /// Relative to the directory that holds the link.
    text: String,
}

impl Link {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl Node {
    /// A number that no other node of the tree has or had.
    pub(crate) fn ino(&self) -> u64 {
        match self {
            Node::Dir(k) => k.ino,
            Node::File(f) => f.ino(),
            Node::Link(l) => l.ino,
        }
    }
}

fn check_name(name: &str) -> Result {
    let bad = name.is_empty() || name == "." || name == "..";
    if bad || name.contains(['/', '\0']) {
        return Err(code::EINVAL);
    }
    if name.len() > NAME_MAX {
        return Err(code::ENAMETOOLONG);
    }
    Ok(())
}

/// The text of a link in directory `from` to directory `to`: up to where both part, but not into `to` itself, and down.
fn relative(from: &str, to: &str) -> String {
    let from: Vec<&str> = from.split('/').filter(|s| !s.is_empty()).collect();
    let to: Vec<&str> = to.split('/').filter(|s| !s.is_empty()).collect();
    let above = to.len().saturating_sub(1);
    let pairs = from.iter().zip(to.iter().take(above));
    let common = pairs.take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", from.len() - common);
    let parts: Vec<&str> = up.chain(to.into_iter().skip(common)).collect();
    parts.join("/")
}

impl Kobject {
    /// The root of a new tree, whose stores run on `executor`.
    ///
    /// Context: any.
    #[doc(alias = "kobject_create_and_add")]
    pub fn root(name: &str, executor: Arc<dyn Executor>) -> Arc<Kobject> {
        let shared = Arc::new(Shared::new(executor));
        Kobject::make(name, String::new(), Weak::new(), shared)
    }

    fn make(name: &str, path: String, parent: Weak<Kobject>, shared: Arc<Shared>) -> Arc<Kobject> {
        Arc::new(Kobject {
            name: name.to_owned(),
            path,
            ino: shared.next_ino(),
            parent,
            shared,
            dir: SpinLock::new(Dir::default()),
        })
    }

    /// Makes a directory below this one.
    ///
    /// Context: any. Errors: `EEXIST`, `ENODEV` when this directory was removed, `EINVAL` and `ENAMETOOLONG` for the
    /// name.
    #[doc(alias = "kobject_init_and_add")]
    pub fn add(self: &Arc<Self>, name: &str) -> Result<Arc<Kobject>> {
        check_name(name)?;
        let path = self.path_of(name);
        let weak = Arc::downgrade(self);
        let child = Kobject::make(name, path, weak, Arc::clone(&self.shared));
        self.publish(name, Node::Dir(Arc::clone(&child)))?;
        Ok(child)
    }

    /// Adds an attribute.
    ///
    /// Context: any. Errors: as [`add`](Self::add).
    #[doc(alias = "sysfs_create_file")]
    pub fn add_attr(&self, attr: Attr) -> Result {
        check_name(attr.name())?;
        let name = attr.name().to_owned();
        let file = AttrFile::new(attr, &self.shared);
        self.publish(&name, Node::File(Arc::new(file)))
    }

    /// Adds attributes, all or none.
    ///
    /// Context: may sleep. Errors: as [`add`](Self::add).
    #[doc(alias = "sysfs_create_files")]
    pub fn add_attrs(&self, attrs: impl IntoIterator<Item = Attr>) -> Result {
        let mut added: Vec<String> = Vec::new();
        for attr in attrs {
            let name = attr.name().to_owned();
            if let Err(e) = self.add_attr(attr) {
                for name in added {
                    // Another thread may have removed it already.
                    let _: Result = self.remove_attr(&name);
                }
                return Err(e);
            }
            added.push(name);
        }
        Ok(())
    }

    /// Removes an attribute, and waits for its running callbacks as [`del`](Self::del) does.
    ///
    /// Context: may sleep. Errors: `ENOENT`.
    #[doc(alias = "sysfs_remove_file")]
    pub fn remove_attr(&self, name: &str) -> Result {
        let file = {
            let mut dir = self.dir.lock();
            match dir.nodes.get(name) {
                Some(Node::File(f)) if !dir.removed => {
                    let file = Arc::clone(f);
                    dir.nodes.remove(name);
                    file
                }
                _ => return Err(code::ENOENT),
            }
        };
        file.deactivate();
        file.drain();
        Ok(())
    }

    /// Adds a link to a directory of the same tree.
    ///
    /// Context: any. Errors: as [`add`](Self::add); `ENOENT` when the target was removed, `EXDEV` when it is in
    /// another tree.
    #[doc(alias = "sysfs_create_link")]
    pub fn add_link(&self, name: &str, target: &Arc<Kobject>) -> Result {
        check_name(name)?;
        if !Arc::ptr_eq(&self.shared, &target.shared) {
            return Err(code::EXDEV);
        }
        if target.is_removed() {
            return Err(code::ENOENT);
        }
        let link = Link {
            ino: self.shared.next_ino(),
            text: relative(&self.path, &target.path),
        };
        self.publish(name, Node::Link(Arc::new(link)))
    }

    /// Removes a link.
    ///
    /// Context: any. Errors: `ENOENT`.
    #[doc(alias = "sysfs_remove_link")]
    pub fn remove_link(&self, name: &str) -> Result {
        let mut dir = self.dir.lock();
        match dir.nodes.get(name) {
            Some(Node::Link(_)) if !dir.removed => {
                dir.nodes.remove(name);
                Ok(())
            }
            _ => Err(code::ENOENT),
        }
    }

    /// Removes this directory with all that is below it, and waits until no callback of the subtree runs, except the
    /// calling store's own. Once more is harmless.
    ///
    /// Context: may sleep.
    #[doc(alias = "kobject_del")]
    #[doc(alias = "kobject_put")]
    pub fn del(&self) {
        if let Some(parent) = self.parent.upgrade() {
            let mut dir = parent.dir.lock();
            if matches!(dir.nodes.get(&self.name), Some(Node::Dir(k)) if std::ptr::eq(&**k, self)) {
                dir.nodes.remove(&self.name);
            }
        }
        let mut files = Vec::new();
        self.unpublish(&mut files);
        for file in &files {
            file.drain();
        }
    }

    /// Marks the subtree as removed and gathers its attributes. Recursion is as deep as the tree.
    fn unpublish(&self, files: &mut Vec<Arc<AttrFile>>) {
        let nodes: Vec<Node> = {
            let mut dir = self.dir.lock();
            dir.removed = true;
            // They stay: a second remover has to wait for the same callbacks.
            dir.nodes.values().cloned().collect()
        };
        for node in nodes {
            match node {
                Node::Dir(k) => k.unpublish(files),
                Node::File(f) => {
                    f.deactivate();
                    files.push(f);
                }
                Node::Link(_) => {}
            }
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path from the root, "" for the root itself.
    #[doc(alias = "kobject_get_path")]
    pub fn path(&self) -> String {
        self.path.clone()
    }

    /// The directory that holds this one; none for the root.
    pub fn parent(&self) -> Option<Arc<Kobject>> {
        self.parent.upgrade()
    }

    /// The directory of that name in this one.
    pub fn child(&self, name: &str) -> Option<Arc<Kobject>> {
        match self.node(name) {
            Ok(Node::Dir(k)) => Some(k),
            _ => None,
        }
    }

    /// The directories in this one, by name.
    pub fn children(&self) -> Vec<Arc<Kobject>> {
        let nodes = self.nodes().into_iter();
        let dirs = nodes.filter_map(|(_, n)| match n {
            Node::Dir(k) => Some(k),
            _ => None,
        });
        dirs.collect()
    }

    /// Whether [`del`](Self::del) was called for this directory or one above it.
    pub fn is_removed(&self) -> bool {
        self.dir.lock().removed
    }

    /// An attribute that shows the result of the last store as a number, 0 or a negative errno, and fails with
    /// `EAGAIN` while a store waits or runs.
    pub fn last_result_attr(&self, name: &str) -> Attr {
        let shared = Arc::clone(&self.shared);
        Attr::ro(name, move || shared.last_result())
    }

    /// How long writers of this tree wait for their stores, in the place of [`STORE_TIMEOUT`].
    pub fn set_store_timeout(&self, timeout: Delta) {
        self.shared.set_store_timeout(timeout);
    }

    /// What stands under a name.
    pub(crate) fn node(&self, name: &str) -> Result<Node> {
        let dir = self.dir.lock();
        if dir.removed {
            return Err(code::ENOENT);
        }
        dir.nodes.get(name).cloned().ok_or(code::ENOENT)
    }

    /// All that stands here, by name; nothing once removed.
    pub(crate) fn nodes(&self) -> Vec<(String, Node)> {
        let dir = self.dir.lock();
        if dir.removed {
            return Vec::new();
        }
        let pairs = dir.nodes.iter();
        pairs.map(|(n, k)| (n.clone(), k.clone())).collect()
    }

    fn publish(&self, name: &str, node: Node) -> Result {
        let mut dir = self.dir.lock();
        if dir.removed {
            return Err(code::ENODEV);
        }
        if dir.nodes.contains_key(name) {
            return Err(code::EEXIST);
        }
        dir.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            return name.to_owned();
        }
        format!("{}/{name}", self.path)
    }
}

impl fmt::Debug for Kobject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kobject").field(&self.path).finish()
    }
}
