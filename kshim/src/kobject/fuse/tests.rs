//! The protocol, with a packet socket in the place of the device. Real mounts: `tests/tests/management.rs`.

use super::abi::{self, Out, op};
use super::serve::View;
use super::*;
use crate::kobject::tree::Tree;
use crate::kobject::{Attr, Inline, Work};
use crate::sync::{Completion, SpinLock};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The kernel's end.
struct Kernel {
    fd: OwnedFd,
    unique: u64,
    view: Arc<View>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Kernel {
    fn new(root: &Arc<Kobject>) -> Kernel {
        let pair = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (fd, device) = pair.unwrap();
        let view = Arc::new(View::new(root, device, Owner { uid: 7, gid: 8 }).unwrap());
        let own = Arc::clone(&view);
        let thread = Some(std::thread::spawn(move || own.run()));
        Kernel {
            fd,
            unique: 0,
            view,
            thread,
        }
    }

    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.unique += 2;
        let len = u32::try_from(abi::IN_HEADER + body.len()).unwrap();
        let head = Out::default().u32(len).u32(opcode).u64(self.unique);
        let head = head.u64(node).zeros(16);
        let mut bytes = head.into_bytes();
        bytes.extend(body);
        rustix::io::write(&self.fd, &bytes).unwrap();
        self.unique
    }

    fn reply(&self) -> (u64, Result<Vec<u8>>) {
        let mut buf = vec![0; 1 << 17];
        let n = rustix::io::read(&self.fd, &mut buf).unwrap();
        let (len, errno) = (u32_at(&buf, 0), u32_at(&buf, 4).cast_signed());
        assert_eq!(usize::try_from(len).unwrap(), n);
        assert!(errno <= 0);
        let body = buf[16..n].to_vec();
        let result = if errno == 0 {
            Ok(body)
        } else {
            Err(crate::error::Error::from_errno(errno))
        };
        (u64_at(&buf, 8), result)
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>> {
        let unique = self.send(opcode, node, body);
        let (of, result) = self.reply();
        assert_eq!(of, unique);
        result
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64> {
        let entry = self.call(op::LOOKUP, parent, format!("{name}\0").as_bytes())?;
        assert_eq!(entry.len(), 128);
        Ok(u64_at(&entry, 0))
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<u64> {
        let body = Out::default().u32(flags).u32(0).into_bytes();
        let out = self.call(op::OPEN, node, &body)?;
        assert_eq!(u32_at(&out, 8), abi::FOPEN_DIRECT_IO);
        Ok(u64_at(&out, 0))
    }

    fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let body = transfer(handle, offset, size);
        self.call(op::READ, 0, &body)
    }

    fn readdir(&mut self, handle: u64, offset: u64, size: u32) -> Vec<(String, u64)> {
        let body = transfer(handle, offset, size);
        let out = self.call(op::READDIR, 0, &body).unwrap();
        let (mut at, mut names) = (0, Vec::new());
        while at < out.len() {
            let len = usize::try_from(u32_at(&out, at + 16)).unwrap();
            let name = std::str::from_utf8(&out[at + 24..at + 24 + len]).unwrap();
            names.push((name.to_owned(), u64_at(&out, at + 8)));
            at += (24 + len).next_multiple_of(8);
        }
        names
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.view.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(b[at..at + 4].try_into().unwrap())
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(b[at..at + 8].try_into().unwrap())
}

fn transfer(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let out = Out::default().u64(handle).u64(offset).u32(size);
    out.zeros(20).into_bytes()
}

fn write_body(handle: u64, value: &[u8]) -> Vec<u8> {
    let mut body = transfer(handle, 0, u32::try_from(value.len()).unwrap());
    body.extend(value);
    body
}

fn sample() -> Arc<Kobject> {
    let root = Kobject::root("root", Arc::new(Inline));
    let value = Arc::new(SpinLock::new("1\n".to_owned()));
    let (v, w) = (Arc::clone(&value), value);
    let store = move |t: &str| {
        *w.lock() = t.to_owned();
        Ok(())
    };
    let dir = root.add("d").unwrap();
    dir.add_attr(Attr::rw("n", move || Ok(v.lock().clone()), store))
        .unwrap();
    dir.add_attr(Attr::ro("ro", || Ok(String::new()))).unwrap();
    root.add_link("l", &dir).unwrap();
    root
}

#[test]
fn the_greeting_keeps_to_what_the_kernel_knows() {
    let root = sample();
    let mut k = Kernel::new(&root);
    let init = |major, minor, flags| {
        let out = Out::default().u32(major).u32(minor);
        out.u32(65536).u32(flags).into_bytes()
    };
    let out = k.call(op::INIT, 0, &init(7, 44, u32::MAX)).unwrap();
    assert_eq!(out.len(), 64);
    assert_eq!((u32_at(&out, 0), u32_at(&out, 4)), (7, 31));
    assert_eq!(u32_at(&out, 12), abi::INIT_FLAGS);
    assert_eq!(u32_at(&out, 20), 4096, "one store is a page");
    let out = k.call(op::INIT, 0, &init(7, 23, 1)).unwrap();
    assert_eq!(u32_at(&out, 12), 1);
    assert_eq!(k.call(op::INIT, 0, &init(7, 8, 0)), Err(code::EPROTO));
    assert_eq!(k.call(op::INIT, 0, b"short"), Err(code::EPROTO));
}

#[test]
fn names_attributes_and_links() {
    let root = sample();
    let mut k = Kernel::new(&root);
    let d = k.lookup(1, "d").unwrap();
    let n = k.lookup(d, "n").unwrap();
    let l = k.lookup(1, "l").unwrap();
    assert_eq!(k.lookup(1, "x"), Err(code::ENOENT));
    assert_eq!(k.lookup(n, "x"), Err(code::ENOTDIR));
    assert_eq!(k.lookup(99, "x"), Err(code::ENOENT));
    assert_eq!(k.call(op::LOOKUP, 1, b"\xff\0"), Err(code::ENOENT));
    assert_eq!(k.call(op::READLINK, l, &[]).unwrap(), b"d");
    assert_eq!(k.call(op::READLINK, d, &[]), Err(code::EINVAL));
    let attr = k.call(op::GETATTR, n, &[0; 16]).unwrap();
    assert_eq!(attr.len(), 104);
    assert_eq!(u64_at(&attr, 16 + 8), 4096);
    assert_eq!(u32_at(&attr, 16 + 60), 0o100_644);
    assert_eq!((u32_at(&attr, 16 + 68), u32_at(&attr, 16 + 72)), (7, 8));
    let truncate = Out::default().u32(1 << 3).zeros(84).into_bytes();
    assert!(k.call(op::SETATTR, n, &truncate).is_ok());
    let chmod = Out::default().u32(1).zeros(84).into_bytes();
    assert_eq!(k.call(op::SETATTR, n, &chmod), Err(code::EPERM));
    assert_eq!(k.call(op::CREATE, 1, &[0; 24]), Err(code::EACCES));
    assert_eq!(k.call(op::MKDIR, 1, &[0; 24]), Err(code::EPERM));
    assert_eq!(k.call(op::STATFS, 1, &[]).unwrap().len(), 80);
    assert_eq!(k.call(4711, 1, &[]), Err(code::ENOSYS));
}

#[test]
fn contents_are_shown_anew_from_the_beginning_only() {
    let root = sample();
    let mut k = Kernel::new(&root);
    let d = k.lookup(1, "d").unwrap();
    let n = k.lookup(d, "n").unwrap();
    let ro = k.lookup(d, "ro").unwrap();
    assert_eq!(k.open(ro, 1), Err(code::EACCES));
    assert_eq!(k.open(d, 0), Err(code::EISDIR));
    let h = k.open(n, 2 | 0o1000).unwrap();
    assert_eq!(
        k.call(op::WRITE, n, &write_body(h, b"abcdef"))
            .unwrap()
            .len(),
        8
    );
    assert_eq!(k.read(h, 0, 4).unwrap(), b"abcd");
    k.call(op::WRITE, n, &write_body(h, b"xyz")).unwrap();
    assert_eq!(k.read(h, 4, 100).unwrap(), b"ef");
    assert_eq!(k.read(h, 6, 100).unwrap(), b"");
    assert_eq!(k.read(h, u64::MAX, 100).unwrap(), b"");
    assert_eq!(k.read(h, 0, 100).unwrap(), b"xyz");
    assert_eq!(k.read(4711, 0, 100), Err(code::EBADF));
    assert_eq!(k.call(op::READ, 0, b"short"), Err(code::EIO));
    root.child("d").unwrap().del();
    assert_eq!(k.read(h, 0, 100), Err(code::ENODEV));
    assert_eq!(
        k.call(op::WRITE, n, &write_body(h, b"1")),
        Err(code::ENODEV)
    );
    assert_eq!(k.open(n, 0), Err(code::ENODEV));
    assert!(
        k.call(
            op::RELEASE,
            n,
            &Out::default().u64(h).zeros(16).into_bytes()
        )
        .is_ok()
    );
    assert_eq!(k.read(h, 0, 100), Err(code::EBADF));
}

#[test]
fn directories_are_listed_in_pieces() {
    let root = sample();
    let mut k = Kernel::new(&root);
    let out = k.call(op::OPENDIR, 1, &[0; 8]).unwrap();
    let h = u64_at(&out, 0);
    let names = |v: &[(String, u64)]| v.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    let all = k.readdir(h, 0, 4096);
    assert_eq!(names(&all), [".", "..", "d", "l"]);
    let mut got = Vec::new();
    let mut offset = 0;
    loop {
        let some = k.readdir(h, offset, 40);
        let Some((_, next)) = some.last() else { break };
        offset = *next;
        got.extend(some);
    }
    assert_eq!(got, all);
    root.add("new").unwrap();
    assert!(k.readdir(h, offset, 4096).is_empty());
    assert_eq!(k.readdir(h, 0, 4096).len(), 5);
}

#[test]
fn what_the_kernel_forgets_is_freed() {
    let root = sample();
    let mut k = Kernel::new(&root);
    let d = k.lookup(1, "d").unwrap();
    assert_eq!(k.lookup(1, "d"), Ok(d));
    let weak = Arc::downgrade(&root.child("d").unwrap());
    root.child("d").unwrap().del();
    let forget = |n: u64| Out::default().u64(n).into_bytes();
    k.send(op::FORGET, d, &forget(1));
    assert!(k.call(op::GETATTR, d, &[0; 16]).is_ok());
    let batch = Out::default().u32(1).u32(0).u64(d).u64(1).into_bytes();
    k.send(op::BATCH_FORGET, 0, &batch);
    assert_eq!(k.call(op::GETATTR, d, &[0; 16]), Err(code::ENOENT));
    assert!(weak.upgrade().is_none());
    k.send(op::FORGET, 1, &forget(5));
    assert!(k.call(op::GETATTR, 1, &[0; 16]).is_ok(), "the root stays");
}

#[test]
fn a_slow_store_holds_up_nobody_and_its_writer_can_be_interrupted() {
    let leave = Arc::new(Completion::new());
    let l = Arc::clone(&leave);
    let on_thread = |work: Work| drop(std::thread::spawn(work));
    let root = Kobject::root("root", Arc::new(on_thread));
    let slow = move |_: &str| {
        l.wait_for_completion();
        Ok(())
    };
    root.add_attr(Attr::wo("slow", slow)).unwrap();
    root.add_attr(root.last_result_attr("last")).unwrap();
    let mut k = Kernel::new(&root);
    let node = k.lookup(1, "slow").unwrap();
    let h = k.open(node, 1).unwrap();
    let first = k.send(op::WRITE, node, &write_body(h, b"1"));
    assert_eq!(k.lookup(1, "slow"), Ok(node));
    k.send(op::INTERRUPT, 0, &first.to_ne_bytes());
    assert_eq!(k.reply(), (first, Err(code::EINTR)));
    let second = k.send(op::WRITE, node, &write_body(h, b"2"));
    leave.complete_all();
    assert!(matches!(k.reply(), (of, Ok(_)) if of == second));
    let tree = Tree::new(&root);
    use crate::kobject::tree::TreeOps as _;
    while tree.read("last") == Err(code::EAGAIN) {
        std::thread::yield_now();
    }
    assert_eq!(tree.read("last").unwrap(), b"0\n");
}

#[test]
fn other_files_are_no_device() {
    let root = sample();
    let file = tempfile::tempfile().unwrap();
    let e = FuseView::serve(&root, file.into(), Owner::ROOT).unwrap_err();
    assert_eq!(e, code::EINVAL);
}
