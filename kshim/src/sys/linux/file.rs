//! Files and block devices of the host.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat};

use crate::block::QueueLimits;
use crate::error::{Error, Result, code};

/// Most pieces of one vectored call (`UIO_MAXIOV` is 1024; more gains nothing).
pub(crate) const MAX_SEGS: usize = 64;

/// A list of at most `N` raw pieces for one vectored call. It borrows nothing: who fills it keeps the memory alive.
pub(crate) struct IoVecs<const N: usize = MAX_SEGS> {
    iov: [libc::iovec; N],
    n: usize,
}

impl IoVecs {
    pub(crate) fn new() -> IoVecs {
        IoVecs::empty()
    }
}

impl<const N: usize> IoVecs<N> {
    pub(crate) fn empty() -> IoVecs<N> {
        const NONE: libc::iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        IoVecs {
            iov: [NONE; N],
            n: 0,
        }
    }

    /// The pieces, as the kernel wants them.
    pub(crate) fn pieces(&self) -> &[libc::iovec] {
        self.iov.get(..self.n).unwrap_or_default()
    }

    /// Adds a piece; `false`: it is full.
    pub(crate) fn push(&mut self, ptr: *mut u8, len: usize) -> bool {
        let Some(slot) = self.iov.get_mut(self.n) else {
            return false;
        };
        *slot = libc::iovec {
            iov_base: ptr.cast(),
            iov_len: len,
        };
        self.n += 1;
        true
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.n = 0;
    }

    /// Whether all pieces start at multiples of `mem`, and have lengths that are multiples of `len`.
    pub(crate) fn is_aligned(&self, mem: usize, len: usize) -> bool {
        self.pieces()
            .iter()
            .all(|v| v.iov_base.addr() % mem == 0 && v.iov_len % len == 0)
    }
}

/// Per-call flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RwFlags(libc::c_int);

impl RwFlags {
    pub(crate) const NOWAIT: RwFlags = RwFlags(libc::RWF_NOWAIT);
    pub(crate) const DSYNC: RwFlags = RwFlags(libc::RWF_DSYNC);

    pub(crate) fn with(self, other: RwFlags) -> RwFlags {
        RwFlags(self.0 | other.0)
    }
}

/// What kind of object was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    Block,
}

/// How to open.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flags {
    pub(crate) read_only: bool,
    pub(crate) direct: bool,
    pub(crate) dsync: bool,
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    pub(crate) truncate: bool,
    pub(crate) exclusive: bool,
    pub(crate) mode: u32,
}

/// A file that was opened.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) kind: Kind,
    /// Holds the claim.
    pub(crate) claim: Option<OwnedFd>,
}

/// Opens a regular file or block device; anything else is refused, and never waited for.
///
/// A claim ends with the last reference to the open file that made it. A ring may keep one for a moment after it has told the
/// end of its I/O, and beyond the end of a process that was killed. So an open file of its own has the claim, which no ring ever
/// sees. (When a process has ended, so has the I/O of its rings: the kernel waits for it.)
pub(crate) fn open(path: &Path, f: Flags) -> Result<Opened> {
    // O_NONBLOCK: opening a FIFO or an empty drive must not hang.
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    flags |= if f.read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    for (on, flag) in [
        (f.direct, OFlags::DIRECT),
        (f.dsync, OFlags::DSYNC),
        (f.create || f.create_new, OFlags::CREATE),
        (f.create_new, OFlags::EXCL),
        (f.truncate, OFlags::TRUNC),
    ] {
        if on {
            flags |= flag;
        }
    }
    let fd = retry(|| rustix::fs::open(path, flags, Mode::from_raw_mode(f.mode)))?;
    let stat = rustix::fs::fstat(&fd)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::Regular,
        FileType::BlockDevice => Kind::Block,
        FileType::Directory => return Err(code::EISDIR),
        _ => return Err(code::EINVAL),
    };
    let claim = match f.exclusive {
        true => Some(claim(path, flags, kind, &stat)?),
        false => None,
    };
    let now = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, now - OFlags::NONBLOCK)?;
    Ok(Opened { fd, kind, claim })
}

/// Claims a file that was opened with `flags`. Errors: `EBUSY`: another has it, or the path leads elsewhere by now.
fn claim(path: &Path, flags: OFlags, kind: Kind, opened: &Stat) -> Result<OwnedFd> {
    // With O_CREAT, O_EXCL means something else.
    let flags = flags.difference(OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC);
    let flags = match kind {
        Kind::Regular => flags,
        // Such a claim is made at open.
        Kind::Block => flags | OFlags::EXCL,
    };
    let fd = retry(|| rustix::fs::open(path, flags, Mode::empty()))?;
    let stat = rustix::fs::fstat(&fd)?;
    let id = |s: &Stat| (s.st_dev, s.st_ino, s.st_rdev);
    if id(&stat) != id(opened) {
        return Err(code::EBUSY);
    }
    if kind == Kind::Regular {
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            if e == rustix::io::Errno::WOULDBLOCK {
                code::EBUSY
            } else {
                e.into()
            }
        })?;
    }
    Ok(fd)
}

fn retry<T>(mut f: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
    loop {
        match f() {
            Err(rustix::io::Errno::INTR) => {}
            r => return r.map_err(Error::from),
        }
    }
}

fn last_error() -> Error {
    Error::from(std::io::Error::last_os_error())
}

fn offset(pos: u64) -> Result<libc::off_t> {
    libc::off_t::try_from(pos).map_err(|_| code::EINVAL)
}

/// One `preadv2`, repeated while interrupted.
///
/// # Safety
///
/// Every piece of `v` is live memory that may be written without anyone holding a reference to it.
pub(crate) unsafe fn preadv2(
    fd: BorrowedFd<'_>,
    v: &IoVecs,
    pos: u64,
    f: RwFlags,
) -> Result<usize> {
    let pos = offset(pos)?;
    loop {
        // SAFETY: the first `n` entries are initialised; their memory is as the caller promises.
        let r =
            unsafe { libc::preadv2(fd.as_raw_fd(), v.iov.as_ptr(), v.n as libc::c_int, pos, f.0) };
        match usize::try_from(r) {
            Ok(n) => return Ok(n),
            Err(_) => match last_error() {
                code::EINTR => {}
                e => return Err(e),
            },
        }
    }
}

/// One `pwritev2`, repeated while interrupted.
///
/// # Safety
///
/// Every piece of `v` is live memory.
pub(crate) unsafe fn pwritev2(
    fd: BorrowedFd<'_>,
    v: &IoVecs,
    pos: u64,
    f: RwFlags,
) -> Result<usize> {
    let pos = offset(pos)?;
    loop {
        // SAFETY: the first `n` entries are initialised; their memory is as the caller promises.
        let r =
            unsafe { libc::pwritev2(fd.as_raw_fd(), v.iov.as_ptr(), v.n as libc::c_int, pos, f.0) };
        match usize::try_from(r) {
            Ok(n) => return Ok(n),
            Err(_) => match last_error() {
                code::EINTR => {}
                e => return Err(e),
            },
        }
    }
}

/// Gives up the claim of a regular file.
pub(crate) fn unlock(fd: BorrowedFd<'_>) {
    if let Err(e) = rustix::fs::flock(fd, FlockOperation::Unlock) {
        crate::pr_debug!("unlocking a file that is closed: {e}");
    }
}

/// Size in bytes of a file or device.
pub(crate) fn size(fd: BorrowedFd<'_>, kind: Kind) -> Result<u64> {
    match kind {
        Kind::Regular => Ok(u64::try_from(rustix::fs::fstat(fd)?.st_size)?),
        Kind::Block => ioctl_read(fd, BLKGETSIZE64),
    }
}

pub(crate) fn set_size(fd: BorrowedFd<'_>, len: u64) -> Result {
    retry(|| rustix::fs::ftruncate(fd, len))
}

/// Bytes that a regular file takes on its file system.
pub(crate) fn allocated(fd: BorrowedFd<'_>) -> Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(fd)?.st_blocks)?.saturating_mul(512))
}

pub(crate) fn fdatasync(fd: BorrowedFd<'_>) -> Result {
    retry(|| rustix::fs::fdatasync(fd))
}

pub(crate) fn fsync(fd: BorrowedFd<'_>) -> Result {
    retry(|| rustix::fs::fsync(fd))
}

/// What to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    PunchHole,
    Zero,
    Allocate,
}

impl Range {
    fn flags(self) -> FallocateFlags {
        match self {
            Range::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Range::Zero => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            Range::Allocate => FallocateFlags::empty(),
        }
    }

    /// The mode of `fallocate(2)`.
    pub(crate) fn mode(self) -> i32 {
        self.flags().bits().cast_signed()
    }
}

/// `fallocate`, which never changes the size but for `Allocate`.
pub(crate) fn fallocate(fd: BorrowedFd<'_>, what: Range, pos: u64, len: u64) -> Result {
    retry(|| rustix::fs::fallocate(fd, what.flags(), pos, len))
}

/// `copy_file_range`, once.
pub(crate) fn copy_range(
    src: BorrowedFd<'_>,
    mut src_pos: u64,
    dst: BorrowedFd<'_>,
    mut dst_pos: u64,
    len: u64,
) -> Result<u64> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    loop {
        let (from, to) = (Some(&mut src_pos), Some(&mut dst_pos));
        match rustix::fs::copy_file_range(src, from, dst, to, len) {
            Ok(n) => return Ok(u64::try_from(n).unwrap_or(0)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seek {
    Data,
    Hole,
}

/// The next data or hole at or after `pos`; `ENXIO`: none.
pub(crate) fn seek(fd: BorrowedFd<'_>, what: Seek, pos: u64) -> Result<u64> {
    let to = match what {
        Seek::Data => SeekFrom::Data(pos),
        Seek::Hole => SeekFrom::Hole(pos),
    };
    Ok(rustix::fs::seek(fd, to)?)
}

/// Renames, replacing what is there.
pub(crate) fn rename(from: &Path, to: &Path) -> Result {
    Ok(rustix::fs::rename(from, to)?)
}

/// Removes a name.
pub(crate) fn unlink(path: &Path) -> Result {
    Ok(rustix::fs::unlink(path)?)
}

/// Makes a directory and those above it.
pub(crate) fn create_dir_all(path: &Path) -> Result {
    std::fs::create_dir_all(path).map_err(Error::from)
}

/// The names in a directory.
pub(crate) fn list_dir(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = retry(|| rustix::fs::open(path, flags, Mode::empty()))?;
    fsync(fd.as_fd())
}

/// The absolute path with all links resolved.
pub(crate) fn canonicalize(path: &Path) -> Result<std::path::PathBuf> {
    std::fs::canonicalize(path).map_err(Error::from)
}

/// At most the first `max` bytes of any kind of file.
pub(crate) fn read_head(path: &Path, max: usize) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut data = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    std::fs::File::open(path)?
        .take(limit)
        .read_to_end(&mut data)?;
    Ok(data)
}

/// Number of an ioctl that writes a `T`.
#[derive(Clone, Copy)]
struct Reads<T>(libc::c_ulong, std::marker::PhantomData<T>);

impl<T> Reads<T> {
    const fn new(number: libc::c_ulong) -> Self {
        Self(number, std::marker::PhantomData)
    }
}

// Request numbers of <linux/fs.h>, with what they write; libc names only some of them.
const BLKROGET: Reads<libc::c_int> = Reads::new(0x125e);
const BLKSSZGET: Reads<libc::c_int> = Reads::new(0x1268);
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKIOMIN: Reads<libc::c_uint> = Reads::new(0x1278);
const BLKIOOPT: Reads<libc::c_uint> = Reads::new(0x1279);
const BLKPBSZGET: Reads<libc::c_uint> = Reads::new(0x127b);
const BLKROTATIONAL: Reads<libc::c_ushort> = Reads::new(0x127e);
const BLKZEROOUT: libc::c_ulong = 0x127f;
const BLKGETSIZE64: Reads<u64> = Reads::new(libc::_IOR::<libc::size_t>(0x12, 114));

/// Reads the value that a block device ioctl returns through its argument.
fn ioctl_read<T: Copy + Default>(fd: BorrowedFd<'_>, request: Reads<T>) -> Result<T> {
    let mut value = T::default();
    // SAFETY: the number says what the kernel writes, a `T`.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), request.0 as _, &raw mut value) };
    if r < 0 { Err(last_error()) } else { Ok(value) }
}

fn ioctl_range(fd: BorrowedFd<'_>, request: libc::c_ulong, pos: u64, len: u64) -> Result {
    let range = [pos, len];
    // SAFETY: BLKDISCARD and BLKZEROOUT read two 64-bit numbers.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, range.as_ptr()) };
    if r < 0 { Err(last_error()) } else { Ok(()) }
}

/// Discards a range of a block device.
pub(crate) fn blk_discard(fd: BorrowedFd<'_>, pos: u64, len: u64) -> Result {
    ioctl_range(fd, BLKDISCARD, pos, len)
}

/// Zeroes a range of a block device.
pub(crate) fn blk_zeroout(fd: BorrowedFd<'_>, pos: u64, len: u64) -> Result {
    ioctl_range(fd, BLKZEROOUT, pos, len)
}

/// Whether a file's page cache may be written through a shared mapping, and that is fast: on file systems of this host's own
/// disks and memory, where a mapping and `pwrite` mean the same. Not where each write is to be durable (mounted `sync`, `chattr +S`),
/// and not where the guarded copy is a system call.
pub(crate) fn maps_well(fd: BorrowedFd<'_>) -> bool {
    /// Of ext4, ext3 and ext2.
    const EXT: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const TMPFS: i64 = 0x0102_1994;
    // The width of `f_type` differs between architectures.
    #[allow(clippy::useless_conversion, reason = "not useless on all hosts")]
    let kind = rustix::fs::fstatfs(fd).map(|s| i64::from(s.f_type));
    let mounted = rustix::fs::fstatvfs(fd).map(|s| s.f_flag);
    // A file system without such flags has no synchronous files.
    let synced = rustix::fs::ioctl_getflags(fd).is_ok_and(|f| f.contains(rustix::fs::IFlags::SYNC));
    let known = match kind {
        Ok(XFS | TMPFS) => true,
        Ok(EXT) => is_ext4(fd).unwrap_or(false),
        _ => false,
    };
    cfg!(target_arch = "x86_64")
        && known
        && mounted.is_ok_and(|f| !f.contains(rustix::fs::StatVfsMountFlags::SYNCHRONOUS))
        && !synced
}

/// Whether a file that is on ext2, 3 or 4 is on one that reserves a block when a page of a hole becomes dirty: ext2's own driver finds
/// out at write-back that there is none. The list of mounts tells.
fn is_ext4(fd: BorrowedFd<'_>) -> Result<bool> {
    let dev = rustix::fs::fstat(fd)?.st_dev;
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let dev = format!("{major}:{minor}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    // Third, the device; after a dash, the type.
    let of_dev = |line: &&str| line.split(' ').nth(2) == Some(dev.as_str());
    let kind = |line: &str| {
        let (_, rest) = line.split_once(" - ")?;
        Some(matches!(rest.split(' ').next(), Some("ext4" | "ext3")))
    };
    Ok(mounts.lines().find(of_dev).and_then(kind).unwrap_or(false))
}

/// Asks a host block device for its limits.
pub(crate) fn blk_limits(fd: BorrowedFd<'_>) -> Result<QueueLimits> {
    let dev = rustix::fs::fstat(fd)?.st_rdev;
    let queue = |name: &str| queue_attr(dev, name);
    let number = |name: &str| queue(name).and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
    let logical = ioctl_read(fd, BLKSSZGET)?;
    Ok(QueueLimits {
        logical_block_size: u32::try_from(logical)?,
        physical_block_size: ioctl_read(fd, BLKPBSZGET)?,
        io_min: ioctl_read(fd, BLKIOMIN)?,
        io_opt: ioctl_read(fd, BLKIOOPT)?,
        rotational: ioctl_read(fd, BLKROTATIONAL)? != 0,
        read_only: ioctl_read(fd, BLKROGET)? != 0,
        max_discard_bytes: number("discard_max_bytes"),
        discard_granularity: u32::try_from(number("discard_granularity")).unwrap_or(0),
        discard_zeroes_data: false,
        max_write_zeroes_bytes: number("write_zeroes_max_bytes"),
        fua: number("fua") != 0,
        // Without an answer assume a cache: flushes that are not needed cost less than lost data.
        write_cache: queue("write_cache").is_none_or(|s| s != "write through"),
    })
}

/// An attribute of the device's request queue in the host's sysfs; a partition's is its disk's.
fn queue_attr(dev: u64, name: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let base = format!("/sys/dev/block/{major}:{minor}");
    for dir in ["queue", "../queue"] {
        if let Ok(s) = std::fs::read_to_string(format!("{base}/{dir}/{name}")) {
            return Some(s.trim().to_owned());
        }
    }
    None
}

/// What O_DIRECT asks of positions and lengths, and of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DioAlign {
    pub(crate) offset: usize,
    pub(crate) mem: usize,
}

impl DioAlign {
    /// Nothing.
    pub(crate) const NONE: DioAlign = DioAlign { offset: 1, mem: 1 };
}

/// The alignment that O_DIRECT asks of a regular file, by `statx`; a page when the host does not say.
pub(crate) fn dio_align(fd: BorrowedFd<'_>) -> DioAlign {
    use rustix::fs::{AtFlags, StatxFlags};
    const DEFAULT: usize = 4096;
    let power = |n: u32| {
        let n = usize::try_from(n).ok().filter(|a| a.is_power_of_two());
        n.unwrap_or(DEFAULT)
    };
    match rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(s) if s.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => DioAlign {
            offset: power(s.stx_dio_offset_align),
            mem: power(s.stx_dio_mem_align),
        },
        _ => DioAlign {
            offset: DEFAULT,
            mem: DEFAULT,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        for read_only in [false, true] {
            let r = open(
                &path,
                Flags {
                    read_only,
                    ..Flags::default()
                },
            );
            assert_eq!(r.err(), Some(code::EINVAL));
        }
    }
}
