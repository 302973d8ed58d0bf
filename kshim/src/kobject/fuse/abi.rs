//! The FUSE protocol, as far as the view needs it: requests are parsed, replies built, field by field in the host's byte order.
//!
//! C header: `include/uapi/linux/fuse.h`

/// Version that we speak: 7.31 (Linux 5.4). An older kernel, from 7.23 (Linux 3.15) on, uses what it knows of it.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 31;
pub(super) const OLDEST_MINOR: u32 = 23;

pub(super) const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

/// Reads can be parallel, truncation comes with `open`, directory operations can be parallel.
pub(super) const INIT_FLAGS: u32 = 1 | 1 << 3 | 1 << 18;
/// No page cache between reader and `show`.
pub(super) const FOPEN_DIRECT_IO: u32 = 1;
/// `FATTR_SIZE`, `FATTR_ATIME`, `FATTR_MTIME`, the `_NOW` forms, `FATTR_FH`, `FATTR_LOCKOWNER`, `FATTR_CTIME`, `FATTR_KILL_SUIDGID`.
pub(super) const FATTR_HARMLESS: u32 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11;

/// Operation codes.
pub(super) mod op {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const READLINK: u32 = 5;
    pub(in super::super) const SYMLINK: u32 = 6;
    pub(in super::super) const MKNOD: u32 = 8;
    pub(in super::super) const MKDIR: u32 = 9;
    pub(in super::super) const UNLINK: u32 = 10;
    pub(in super::super) const RMDIR: u32 = 11;
    pub(in super::super) const RENAME: u32 = 12;
    pub(in super::super) const LINK: u32 = 13;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const OPENDIR: u32 = 27;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const RELEASEDIR: u32 = 29;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const INTERRUPT: u32 = 36;
    pub(in super::super) const DESTROY: u32 = 38;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const RENAME2: u32 = 45;
}

/// Takes fields off the front of a request.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    /// The next name, which ends with a zero byte.
    pub(super) fn name(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|b| *b == 0)?;
        let (name, _) = self.0.split_at_checked(end)?;
        std::str::from_utf8(name).ok()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A request.
pub(super) struct Request<'a> {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) body: Fields<'a>,
}

impl<'a> Request<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Request<'a>> {
        let (head, body) = bytes.split_at_checked(IN_HEADER)?;
        let mut f = Fields(head);
        let _len = f.u32()?;
        Some(Request {
            opcode: f.u32()?,
            unique: f.u64()?,
            nodeid: f.u64()?,
            body: Fields(body),
        })
    }
}

/// `struct fuse_read_in` and `fuse_write_in`, which begin alike.
pub(super) struct Transfer {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
}

impl Transfer {
    pub(super) fn parse(f: &mut Fields<'_>) -> Option<Transfer> {
        let t = Transfer {
            handle: f.u64()?,
            offset: f.u64()?,
            size: f.u32()?,
        };
        // Flags, the owner of locks, flags, padding.
        let (_, _, _, _) = (f.u32()?, f.u64()?, f.u32()?, f.u32()?);
        Some(t)
    }
}

/// A growing reply.
#[derive(Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn u16(mut self, v: u16) -> Out {
        self.0.extend(v.to_ne_bytes());
        self
    }

    pub(super) fn u32(mut self, v: u32) -> Out {
        self.0.extend(v.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, v: u64) -> Out {
        self.0.extend(v.to_ne_bytes());
        self
    }

    pub(super) fn zeros(mut self, n: usize) -> Out {
        self.0.resize(self.0.len() + n, 0);
        self
    }

    pub(super) fn attr(self, a: &FileAttr) -> Out {
        let blocks = a.size.div_ceil(512);
        let times = self.u64(a.ino).u64(a.size).u64(blocks);
        let times = times.u64(a.time).u64(a.time).u64(a.time).zeros(12);
        let modes = times.u32(a.mode).u32(a.nlink).u32(a.uid).u32(a.gid);
        // No device, block size, no flags.
        modes.u32(0).u32(4096).u32(0)
    }

    /// `struct fuse_entry_out`; the kernel may not keep name or attributes.
    pub(super) fn entry(self, a: &FileAttr) -> Out {
        let ids = self.u64(a.ino).u64(0);
        ids.u64(0).u64(0).u32(0).u32(0).attr(a)
    }

    /// `struct fuse_dirent`, unless it would go past `room`.
    pub(super) fn dirent(&mut self, room: usize, d: &DirEntry<'_>) -> bool {
        let len = 24 + d.name.len();
        let padded = len.next_multiple_of(8);
        if self.0.len() + padded > room {
            return false;
        }
        let Ok(name_len) = u32::try_from(d.name.len()) else {
            return false;
        };
        self.0.extend(d.ino.to_ne_bytes());
        self.0.extend(d.next.to_ne_bytes());
        self.0.extend(name_len.to_ne_bytes());
        self.0.extend(d.kind.to_ne_bytes());
        self.0.extend(d.name.as_bytes());
        self.0.resize(self.0.len() + padded - len, 0);
        true
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// An entry of a directory listing.
pub(super) struct DirEntry<'a> {
    pub(super) ino: u64,
    /// Where the next one begins.
    pub(super) next: u64,
    /// `DT_DIR` 4, `DT_REG` 8, `DT_LNK` 10.
    pub(super) kind: u32,
    pub(super) name: &'a str,
}

/// What `stat(2)` shows.
pub(super) struct FileAttr {
    pub(super) ino: u64,
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) time: u64,
    /// With the bits of the file's type.
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The head of a reply; `errno` is 0 or positive.
pub(super) fn reply_header(unique: u64, errno: i32, body: usize) -> Vec<u8> {
    let len = u32::try_from(OUT_HEADER + body).unwrap_or(u32::MAX);
    let errno = errno.saturating_neg().cast_unsigned();
    Out::default().u32(len).u32(errno).u64(unique).into_bytes()
}
