//! Answering requests.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use super::Owner;
use super::abi::{self, DirEntry, FileAttr, Out, Request, Transfer, op};
use crate::error::{Result, code};
use crate::kobject::attr::VALUE_MAX;
use crate::kobject::tree::OpenFile;
use crate::kobject::{Kobject, Node};
use crate::kthread;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, SpinLock};
use crate::sys::linux::mount as sys;
use crate::sys::poll::{EventFd, PollFd};

/// Room for a request: the kernel asks for 8 KiB at least.
const BUFFER: usize = 64 << 10;
/// The size that attributes show.
const FILE_SIZE: u64 = 4096;
/// Number of the root.
const ROOT_ID: u64 = 1;
/// Stores that run at the same time on threads of their own; one more runs on a thread of the view.
const MAX_STORES: usize = 64;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

pub(super) struct View {
    /// None once closed.
    device: SpinLock<Option<PollFd>>,
    stop: EventFd,
    ended: AtomicBool,
    owner: Owner,
    time: u64,
    root: Arc<Kobject>,
    /// What the kernel knows by number, and how many references it has.
    nodes: SpinLock<HashMap<u64, (Node, u64)>>,
    files: SpinLock<Handles>,
    /// Writes that wait for their store.
    stores: SpinLock<HashSet<u64>>,
}

#[derive(Default)]
struct Handles {
    next: u64,
    open: HashMap<u64, Arc<Handle>>,
}

enum Handle {
    File {
        file: OpenFile,
        /// What the last read from the beginning gave.
        content: SpinLock<Option<Arc<Vec<u8>>>>,
    },
    Dir {
        dir: Arc<Kobject>,
        listing: SpinLock<Arc<Vec<(String, u64, u32)>>>,
    },
}

/// What becomes of a request.
enum Answer {
    Reply(Result<Vec<u8>>),
    /// It has no reply, or another thread gives it.
    Nothing,
}

impl From<Result<Vec<u8>>> for Answer {
    fn from(r: Result<Vec<u8>>) -> Answer {
        Answer::Reply(r)
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("ended", &self.is_ended())
            .finish_non_exhaustive()
    }
}

impl View {
    pub(super) fn new(root: &Arc<Kobject>, device: OwnedFd, owner: Owner) -> Result<View> {
        sys::set_nonblocking(&device)?;
        let seconds = crate::time::ktime_get_real_seconds();
        Ok(View {
            device: SpinLock::new(Some(PollFd::new(device))),
            stop: EventFd::new()?,
            ended: AtomicBool::new(false),
            owner,
            time: u64::try_from(seconds).unwrap_or(0),
            root: Arc::clone(root),
            nodes: SpinLock::default(),
            files: SpinLock::default(),
            stores: SpinLock::default(),
        })
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.ended.store(true, Ordering::Release);
        self.stop.signal();
    }

    pub(super) fn close(&self) {
        let device = self.device.lock().take();
        drop(device);
    }

    /// Serves until the device is unmounted or the view stopped.
    pub(super) fn run(self: &Arc<Self>) {
        let Some(device) = self.device.lock().clone() else {
            return;
        };
        let mut buf = vec![0; BUFFER];
        while !self.is_ended() {
            match sys::read_request(&device, &self.stop, &mut buf) {
                Ok(Some(n)) => {
                    if let Some(request) = buf.get(..n).and_then(Request::parse) {
                        self.answer(request);
                    }
                }
                Ok(None) => {}
                Err(e) => {
                    if e != code::ENODEV {
                        crate::pr_err!("FUSE device: {e}");
                    }
                    // Unmounted. The other threads learn it, too.
                    self.stop();
                }
            }
        }
    }

    fn answer(self: &Arc<Self>, request: Request<'_>) {
        let unique = request.unique;
        let answer = self.dispatch(request);
        if let Answer::Reply(result) = answer {
            self.reply(unique, result);
        }
    }

    fn reply(&self, unique: u64, result: Result<Vec<u8>>) {
        let (errno, body) = match result {
            Ok(body) => (0, body),
            Err(e) => (e.errno(), Vec::new()),
        };
        let device = self.device.lock().clone();
        if let Some(device) = device {
            let head = abi::reply_header(unique, errno, body.len());
            // The asker may have gone, or all of the mount.
            let _: Result = sys::write_reply(&device, &head, &body);
        }
    }

    fn dispatch(self: &Arc<Self>, mut r: Request<'_>) -> Answer {
        let node = r.nodeid;
        match r.opcode {
            op::INIT => init(&mut r).into(),
            op::DESTROY => Ok(Vec::new()).into(),
            op::LOOKUP => self.lookup(node, &mut r).into(),
            op::FORGET | op::BATCH_FORGET => {
                self.forget(&mut r);
                Answer::Nothing
            }
            op::GETATTR => self.getattr(node).into(),
            op::SETATTR => self.setattr(node, &mut r).into(),
            op::READLINK => self.readlink(node).into(),
            op::OPEN => self.open(node, &mut r).into(),
            op::OPENDIR => self.opendir(node).into(),
            op::READ => self.read(&mut r).into(),
            op::READDIR => self.readdir(&mut r).into(),
            op::WRITE => self.write(r),
            op::RELEASE | op::RELEASEDIR => self.release(&mut r).into(),
            op::INTERRUPT => {
                self.interrupt(&mut r);
                Answer::Nothing
            }
            op::STATFS => {
                let sizes = Out::default().zeros(40).u32(4096).u32(255).u32(4096);
                Ok(sizes.zeros(28).into_bytes()).into()
            }
            // As sysfs, which has no such operations.
            op::CREATE | op::MKNOD => Err(code::EACCES).into(),
            op::MKDIR | op::RMDIR | op::UNLINK | op::SYMLINK | op::LINK => Err(code::EPERM).into(),
            op::RENAME | op::RENAME2 => Err(code::EPERM).into(),
            // The kernel does not ask again.
            _ => Err(code::ENOSYS).into(),
        }
    }

    /// A node by its number. Errors: `ENOENT`.
    fn node(&self, id: u64) -> Result<Node> {
        if id == ROOT_ID {
            return Ok(Node::Dir(Arc::clone(&self.root)));
        }
        let nodes = self.nodes.lock();
        nodes.get(&id).map(|(n, _)| n.clone()).ok_or(code::ENOENT)
    }

    fn dir(&self, id: u64) -> Result<Arc<Kobject>> {
        match self.node(id)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) | Node::Link(_) => Err(code::ENOTDIR),
        }
    }

    fn attr(&self, node: &Node) -> FileAttr {
        let (mode, size, nlink) = match node {
            Node::Dir(dir) => {
                let subdirs = u32::try_from(dir.children().len()).unwrap_or(u32::MAX);
                (S_IFDIR | 0o755, 0, subdirs.saturating_add(2))
            }
            Node::File(file) => (S_IFREG | u32::from(file.mode()), FILE_SIZE, 1),
            Node::Link(link) => (S_IFLNK | 0o777, link.text().len() as u64, 1),
        };
        FileAttr {
            ino: node.ino(),
            size,
            time: self.time,
            mode,
            nlink,
            uid: self.owner.uid,
            gid: self.owner.gid,
        }
    }

    fn lookup(&self, parent: u64, r: &mut Request<'_>) -> Result<Vec<u8>> {
        let name = r.body.name().ok_or(code::ENOENT)?;
        let node = self.dir(parent)?.node(name)?;
        let attr = self.attr(&node);
        let mut nodes = self.nodes.lock();
        nodes.entry(attr.ino).or_insert((node, 0)).1 += 1;
        drop(nodes);
        Ok(Out::default().entry(&attr).into_bytes())
    }

    fn forget(&self, r: &mut Request<'_>) {
        let f = &mut r.body;
        if r.opcode == op::FORGET {
            let count = f.u64().unwrap_or(0);
            return self.forget_one(r.nodeid, count);
        }
        let n = f.u32().unwrap_or(0);
        let _ = f.u32();
        for _ in 0..n {
            let (Some(node), Some(count)) = (f.u64(), f.u64()) else {
                return;
            };
            self.forget_one(node, count);
        }
    }

    fn forget_one(&self, id: u64, count: u64) {
        let gone = {
            let mut nodes = self.nodes.lock();
            let Some((_, refs)) = nodes.get_mut(&id) else {
                return;
            };
            *refs = refs.saturating_sub(count);
            if *refs > 0 {
                return;
            }
            nodes.remove(&id)
        };
        // Not under the lock: it may be the last share of a directory.
        drop(gone);
    }

    fn getattr(&self, id: u64) -> Result<Vec<u8>> {
        let attr = self.attr(&self.node(id)?);
        Ok(Out::default().u64(0).u32(0).u32(0).attr(&attr).into_bytes())
    }

    /// Truncation and times are accepted and change nothing.
    fn setattr(&self, id: u64, r: &mut Request<'_>) -> Result<Vec<u8>> {
        let valid = r.body.u32().ok_or(code::EIO)?;
        if valid & !abi::FATTR_HARMLESS != 0 {
            return Err(code::EPERM);
        }
        self.getattr(id)
    }

    fn readlink(&self, id: u64) -> Result<Vec<u8>> {
        match self.node(id)? {
            Node::Link(link) => Ok(link.text().as_bytes().to_vec()),
            Node::Dir(_) | Node::File(_) => Err(code::EINVAL),
        }
    }

    fn add_handle(&self, handle: Handle, flags: u32) -> Vec<u8> {
        let id = {
            let mut files = self.files.lock();
            files.next += 1;
            let id = files.next;
            files.open.insert(id, Arc::new(handle));
            id
        };
        Out::default().u64(id).u32(flags).u32(0).into_bytes()
    }

    fn handle(&self, id: u64) -> Result<Arc<Handle>> {
        self.files.lock().open.get(&id).cloned().ok_or(code::EBADF)
    }

    fn open(&self, id: u64, r: &mut Request<'_>) -> Result<Vec<u8>> {
        let flags = r.body.u32().ok_or(code::EIO)?;
        let Node::File(file) = self.node(id)? else {
            return Err(code::EISDIR);
        };
        // O_RDONLY 0, O_WRONLY 1, O_RDWR 2.
        let mode = flags & 3;
        file.check_open(mode != 1, mode != 0)?;
        let handle = Handle::File {
            file: OpenFile::new(file),
            content: SpinLock::default(),
        };
        Ok(self.add_handle(handle, abi::FOPEN_DIRECT_IO))
    }

    fn opendir(&self, id: u64) -> Result<Vec<u8>> {
        let handle = Handle::Dir {
            dir: self.dir(id)?,
            listing: SpinLock::default(),
        };
        Ok(self.add_handle(handle, 0))
    }

    fn release(&self, r: &mut Request<'_>) -> Result<Vec<u8>> {
        let id = r.body.u64().ok_or(code::EIO)?;
        let gone = self.files.lock().open.remove(&id);
        drop(gone);
        Ok(Vec::new())
    }

    fn read(&self, r: &mut Request<'_>) -> Result<Vec<u8>> {
        let t = Transfer::parse(&mut r.body).ok_or(code::EIO)?;
        let handle = self.handle(t.handle)?;
        let Handle::File { file, content } = &*handle else {
            return Err(code::EISDIR);
        };
        let kept = content.lock().clone().filter(|_| t.offset > 0);
        let bytes = match kept {
            Some(bytes) => bytes,
            None => {
                let new = Arc::new(file.read()?);
                *content.lock() = Some(Arc::clone(&new));
                new
            }
        };
        let from = usize::try_from(t.offset).unwrap_or(usize::MAX);
        let rest = bytes.get(from..).unwrap_or_default();
        let size = usize::try_from(t.size).unwrap_or(usize::MAX);
        Ok(rest.get(..size).unwrap_or(rest).to_vec())
    }

    fn readdir(&self, r: &mut Request<'_>) -> Result<Vec<u8>> {
        let t = Transfer::parse(&mut r.body).ok_or(code::EIO)?;
        let handle = self.handle(t.handle)?;
        let Handle::Dir { dir, listing } = &*handle else {
            return Err(code::ENOTDIR);
        };
        if t.offset == 0 {
            *listing.lock() = Arc::new(list(dir));
        }
        let all = Arc::clone(&listing.lock());
        let from = usize::try_from(t.offset).unwrap_or(usize::MAX);
        let room = usize::try_from(t.size).unwrap_or(0);
        let mut out = Out::default();
        for (next, (name, ino, kind)) in (1..).zip(all.iter()).skip(from) {
            let entry = DirEntry {
                ino: *ino,
                next,
                kind: *kind,
                name,
            };
            if !out.dirent(room, &entry) {
                break;
            }
        }
        Ok(out.into_bytes())
    }

    fn write(self: &Arc<Self>, mut r: Request<'_>) -> Answer {
        let unique = r.unique;
        let parsed = Transfer::parse(&mut r.body).ok_or(code::EIO);
        let parsed = parsed.and_then(|t| Ok((self.handle(t.handle)?, t.size)));
        let (handle, size) = match parsed {
            Ok(p) => p,
            Err(e) => return Answer::Reply(Err(e)),
        };
        let value = r.body.rest().to_vec();
        let crowded = {
            let mut stores = self.stores.lock();
            stores.insert(unique);
            stores.len() > MAX_STORES
        };
        let view = Arc::clone(self);
        let store = move || {
            let result = match &*handle {
                Handle::File { file, .. } => file.write(&value),
                Handle::Dir { .. } => Err(code::EISDIR),
            };
            // Unless its writer was interrupted.
            if view.stores.lock().remove(&unique) {
                let body = Out::default().u32(size).u32(0).into_bytes();
                view.reply(unique, result.map(|()| body));
            }
        };
        if crowded {
            store();
            return Answer::Nothing;
        }
        match kthread::run("kobj_store", move |_| store()) {
            Ok(thread) => {
                thread.detach();
                Answer::Nothing
            }
            Err(e) => {
                self.stores.lock().remove(&unique);
                Answer::Reply(Err(e))
            }
        }
    }

    /// The store goes on, but its writer does not wait for it.
    fn interrupt(&self, r: &mut Request<'_>) {
        if let Some(unique) = r.body.u64()
            && self.stores.lock().remove(&unique)
        {
            self.reply(unique, Err(code::EINTR));
        }
    }
}

fn init(r: &mut Request<'_>) -> Result<Vec<u8>> {
    let f = &mut r.body;
    let parsed = (f.u32(), f.u32(), f.u32(), f.u32());
    let (Some(major), Some(minor), Some(readahead), Some(flags)) = parsed else {
        return Err(code::EPROTO);
    };
    if major > abi::MAJOR {
        // The kernel tries again with our version.
        let version = Out::default().u32(abi::MAJOR).u32(abi::MINOR).zeros(56);
        return Ok(version.into_bytes());
    }
    if major < abi::MAJOR || minor < abi::OLDEST_MINOR {
        return Err(code::EPROTO);
    }
    let out = Out::default().u32(abi::MAJOR).u32(abi::MINOR);
    let out = out.u32(readahead).u32(flags & abi::INIT_FLAGS);
    // Requests in the background, and when they are too many; both as libfuse has them.
    let out = out.u16(12).u16(9);
    let max_write = u32::try_from(VALUE_MAX)?;
    // Time granularity of a nanosecond, then what is not used.
    Ok(out.u32(max_write).u32(1).zeros(36).into_bytes())
}

/// Name, number and type of all that is in a directory.
fn list(dir: &Arc<Kobject>) -> Vec<(String, u64, u32)> {
    let me = Node::Dir(Arc::clone(dir)).ino();
    let above = dir.parent().map_or(me, |p| Node::Dir(p).ino());
    let mut all = vec![(".".to_owned(), me, 4), ("..".to_owned(), above, 4)];
    for (name, node) in dir.nodes() {
        let kind = match node {
            Node::Dir(_) => 4,
            Node::File(_) => 8,
            Node::Link(_) => 10,
        };
        all.push((name, node.ino(), kind));
    }
    all
}
