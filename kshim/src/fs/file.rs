//! Open files.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::KiocbFlags;
use super::windows::CacheWindows;
use crate::block::QueueLimits;
use crate::error::{Result, code};
use crate::page::PageBuf;
use crate::scatterlist::SGTable;
use crate::sys::linux::file::{self as sys, DioAlign, IoVecs, Kind, Opened, RwFlags};

/// Permissions of a file that [`OpenOptions::create`] makes.
const DEFAULT_MODE: u32 = 0o644;
/// Where to read when asking what a file can do, in units that O_DIRECT accepts.
const PROBE_ALIGN: u64 = 4096;

/// How to open a [`File`]; read-write, buffered, existing unless said otherwise.
///
/// C header: `include/uapi/asm-generic/fcntl.h` (`O_*`)
#[derive(Debug, Clone, Default)]
pub struct OpenOptions(sys::Flags);

impl OpenOptions {
    /// Read-write, buffered, must exist.
    pub fn new() -> OpenOptions {
        OpenOptions(sys::Flags {
            mode: DEFAULT_MODE,
            ..sys::Flags::default()
        })
    }

    /// Open for reading only.
    #[doc(alias = "O_RDONLY")]
    #[must_use]
    pub fn read_only(mut self, on: bool) -> Self {
        self.0.read_only = on;
        self
    }

    /// Bypass the page cache. Positions, lengths and memory must be aligned: see [`File::dio_align`] and
    /// [`File::dio_mem_align`].
    #[doc(alias = "O_DIRECT")]
    #[must_use]
    pub fn direct(mut self, on: bool) -> Self {
        self.0.direct = on;
        self
    }

    /// Every write is durable when it returns.
    #[doc(alias = "O_DSYNC")]
    #[must_use]
    pub fn dsync(mut self, on: bool) -> Self {
        self.0.dsync = on;
        self
    }

    /// Create it when it is not there.
    #[doc(alias = "O_CREAT")]
    #[must_use]
    pub fn create(mut self, on: bool) -> Self {
        self.0.create = on;
        self
    }

    /// Create it; `EEXIST` when it is there.
    #[doc(alias = "O_EXCL")]
    #[must_use]
    pub fn create_new(mut self, on: bool) -> Self {
        self.0.create_new = on;
        self
    }

    /// Cut it to zero length.
    #[doc(alias = "O_TRUNC")]
    #[must_use]
    pub fn truncate(mut self, on: bool) -> Self {
        self.0.truncate = on;
        self
    }

    /// Claim it: a block device against mounts and other claims, a file against other claims (`flock`).
    #[must_use]
    pub fn exclusive(mut self, on: bool) -> Self {
        self.0.exclusive = on;
        self
    }

    /// Permissions of a new file, before the umask. Default: `0o644`.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.0.mode = mode;
        self
    }
}

/// An open regular file or block device of the host, closed on drop.
///
/// Short transfers are continued: a read ends short only at the end of the file, a write never without an error. Interrupted
/// calls are repeated.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("kshim-doc-{}", std::process::id()));
/// # kshim::fs::create_dir_all(&dir)?;
/// # let path = dir.join("disk.img");
/// use kshim::fs::{File, KiocbFlags, OpenOptions};
/// use kshim::scatterlist::SGTable;
///
/// let file = File::open(&path, &OpenOptions::new().create(true))?;
/// file.set_size(1 << 20)?;
/// file.write_at(b"data", 512)?;
/// let mut sg = SGTable::alloc(4096)?;
/// assert_eq!(file.read_sg(&mut sg, 0, 4096, 0, KiocbFlags::empty())?, 4096);
/// assert_eq!(sg.compare(512, b"data")?, None);
/// # kshim::fs::unlink(&path)?;
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/fs.h`
#[doc(alias = "filp_open")]
pub struct File {
    fd: OwnedFd,
    /// Has the claim; of a block device, the kernel empties the cache for it alone. Closed after `fd`.
    claim: Option<OwnedFd>,
    kind: Kind,
    path: PathBuf,
    flags: sys::Flags,
    nowait_read: bool,
    dio_align: DioAlign,
    /// Made when the first write asks for it.
    windows: OnceLock<Option<CacheWindows>>,
}

impl File {
    /// Opens a regular file or a block device.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EISDIR`: a directory. `EINVAL`: another kind of file, or O_DIRECT where the file system lacks it. `EBUSY`: claimed by
    /// another ([`OpenOptions::exclusive`]). Others: those of `open(2)`.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<File> {
        let path = path.as_ref();
        let flags = options.0;
        let Opened { fd, kind, claim } = sys::open(path, flags)?;
        let mut file = File {
            fd,
            claim,
            kind,
            path: path.to_owned(),
            flags,
            nowait_read: false,
            dio_align: DioAlign::NONE,
            windows: OnceLock::new(),
        };
        if flags.direct {
            file.dio_align = match kind {
                Kind::Block => {
                    let block = sys::blk_limits(file.as_fd())?.logical_block_size as usize;
                    DioAlign {
                        offset: block,
                        mem: block,
                    }
                }
                Kind::Regular => sys::dio_align(file.as_fd()),
            };
        }
        file.nowait_read = file.probe_nowait();
        Ok(file)
    }

    /// Reads past the end with NOWAIT: 0 bytes where it is supported.
    fn probe_nowait(&self) -> bool {
        let probe = || {
            let pos = self.size()?.next_multiple_of(PROBE_ALIGN);
            let buf = PageBuf::alloc(PROBE_ALIGN as usize)?;
            let mut v = IoVecs::new();
            v.push(buf.ptr(), buf.len());
            // SAFETY: the piece is `buf`, owned here, with no reference to it.
            unsafe { sys::preadv2(self.as_fd(), &v, pos, RwFlags::NOWAIT) }
        };
        matches!(probe(), Ok(_) | Err(code::EAGAIN))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// For calls that change a range without data: the kernel refuses them on a device that another open file has claimed, while
    /// something of the range is in its cache.
    fn range_fd(&self) -> BorrowedFd<'_> {
        self.claim.as_ref().unwrap_or(&self.fd).as_fd()
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    #[doc(alias = "S_ISBLK")]
    pub fn is_block_device(&self) -> bool {
        self.kind == Kind::Block
    }

    /// Whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.flags.read_only
    }

    /// Whether it was opened with O_DIRECT.
    pub fn is_direct(&self) -> bool {
        self.flags.direct
    }

    /// What positions and lengths must be multiples of; 1 unless opened with O_DIRECT.
    pub fn dio_align(&self) -> usize {
        self.dio_align.offset
    }

    /// What addresses of memory must be multiples of; 1 unless opened with O_DIRECT.
    pub fn dio_mem_align(&self) -> usize {
        self.dio_align.mem
    }

    /// Whether reads with [`KiocbFlags::NOWAIT`] work here, as probed at open.
    pub fn supports_nowait_read(&self) -> bool {
        self.nowait_read
    }

    /// Its size now.
    ///
    /// Context: any. Errors: those of `fstat(2)`.
    #[doc(alias = "i_size_read")]
    pub fn size(&self) -> Result<u64> {
        sys::size(self.as_fd(), self.kind)
    }

    /// Cuts or extends (by a hole) a regular file.
    ///
    /// Context: may sleep. Errors: those of `ftruncate(2)`.
    #[doc(alias = "vfs_truncate")]
    pub fn set_size(&self, len: u64) -> Result {
        sys::set_size(self.as_fd(), len)
    }

    /// Bytes that a regular file takes on its file system.
    ///
    /// Context: any. Errors: those of `fstat(2)`.
    pub fn allocated(&self) -> Result<u64> {
        sys::allocated(self.as_fd())
    }

    fn check_dio(&self, v: &IoVecs, pos: u64) -> Result {
        let DioAlign { offset, mem } = self.dio_align;
        if offset > 1 && (!pos.is_multiple_of(offset as u64) || !v.is_aligned(mem, offset)) {
            return Err(code::EINVAL);
        }
        Ok(())
    }

    /// Runs `step` until `len` bytes are moved or it moves none.
    fn transfer(
        len: usize,
        pos: u64,
        mut step: impl FnMut(usize, usize, u64) -> Result<usize>,
    ) -> Result<usize> {
        pos.checked_add(len as u64).ok_or(code::EINVAL)?;
        let mut done = 0;
        while done < len {
            match step(done, len - done, pos + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(code::EAGAIN) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Reads `len` bytes at `pos` into `sg` from its byte `at` on. Returns how many were read: fewer at the end of
    /// the file, or when with [`KiocbFlags::NOWAIT`] the rest would wait.
    ///
    /// Context: may sleep, unless NOWAIT.
    ///
    /// # Errors
    ///
    /// `EINVAL`: out of the table's range; not aligned for O_DIRECT. `EFAULT`: the table is not writable there. `EAGAIN`:
    /// NOWAIT, and nothing could be read. `EOPNOTSUPP`: no NOWAIT here. Others: those of `preadv2(2)`.
    #[doc(alias = "vfs_iter_read")]
    #[doc(alias = "call_read_iter")]
    pub fn read_sg(
        &self,
        sg: &mut SGTable,
        at: usize,
        len: usize,
        pos: u64,
        flags: KiocbFlags,
    ) -> Result<usize> {
        File::transfer(len, pos, |done, left, pos| {
            // A part of a block was read: that is the end of the file.
            if done > 0 && !pos.is_multiple_of(self.dio_align.offset as u64) {
                return Ok(0);
            }
            let mut v = IoVecs::new();
            sg.for_each_raw_mut(at + done, left, |p, n| v.push(p, n))?;
            self.check_dio(&v, pos)?;
            // SAFETY: the pieces belong to `sg`, borrowed exclusively; lent ones are never references.
            unsafe { sys::preadv2(self.as_fd(), &v, pos, flags.to_sys()) }
        })
    }

    /// Writes `len` bytes of `sg` from its byte `at` on to `pos`. Returns how many were written: all, unless with
    /// [`KiocbFlags::NOWAIT`] the rest would wait.
    ///
    /// Context: may sleep, unless NOWAIT.
    ///
    /// # Errors
    ///
    /// As [`File::read_sg`], and `ENOSPC`, `EDQUOT`, `EFBIG`, `EIO`... as `pwritev2(2)` has them; a part may have been written.
    #[doc(alias = "vfs_iter_write")]
    #[doc(alias = "call_write_iter")]
    pub fn write_sg(
        &self,
        sg: &SGTable,
        at: usize,
        len: usize,
        pos: u64,
        flags: KiocbFlags,
    ) -> Result<usize> {
        File::transfer(len, pos, |done, left, pos| {
            let mut v = IoVecs::new();
            sg.for_each_raw(at + done, left, |p, n| v.push(p.cast_mut(), n))?;
            self.check_dio(&v, pos)?;
            // SAFETY: the pieces belong to `sg`, which is borrowed; the kernel only reads them.
            match unsafe { sys::pwritev2(self.as_fd(), &v, pos, flags.to_sys()) } {
                Ok(0) => Err(code::EIO),
                r => r,
            }
        })
    }

    /// Writes `len` bytes of `sg` from its byte `at` on to `pos` if that is a mere copy: the pages are in the page cache, and
    /// the file is one for which this is known to be right (regular, buffered, on ext4, XFS or tmpfs, in a part that was written
    /// several times). Several times cheaper than [`File::write_sg`] then, and the same to all who read or sync the file; but the next
    /// sync may have MiBs to write for each page.
    ///
    /// `false`: it is not, or the copy failed midway; nothing counts as written, and [`File::write_sg`] tells what is wrong.
    ///
    /// Context: as a buffered [`File::write_sg`]: in a file system that is throttled or frozen it waits.
    pub fn write_cached(&self, sg: &SGTable, at: usize, len: usize, pos: u64) -> bool {
        let windows = self.windows.get_or_init(|| {
            let flags = &self.flags;
            let plain = !flags.read_only && !flags.direct && !flags.dsync;
            (self.kind == Kind::Regular && plain)
                .then(|| CacheWindows::new(self.as_fd()))
                .flatten()
        });
        windows
            .as_ref()
            .is_some_and(|w| w.write(self.as_fd(), sg, at, len, pos))
    }

    /// Reads into a slice. Returns how many bytes were read: fewer only at the end of the file.
    ///
    /// Context: may sleep. Errors: as [`File::read_sg`].
    #[doc(alias = "kernel_read")]
    pub fn read_at(&self, buf: &mut [u8], pos: u64) -> Result<usize> {
        let (base, len) = (buf.as_mut_ptr(), buf.len());
        File::transfer(len, pos, |done, left, pos| {
            let mut v = IoVecs::new();
            // SAFETY: `done < len`: inside `buf`.
            v.push(unsafe { base.add(done) }, left);
            self.check_dio(&v, pos)?;
            // SAFETY: the piece is a part of `buf`, borrowed exclusively.
            unsafe { sys::preadv2(self.as_fd(), &v, pos, RwFlags::default()) }
        })
    }

    /// Writes a slice whole.
    ///
    /// Context: may sleep. Errors: as [`File::write_sg`].
    #[doc(alias = "kernel_write")]
    pub fn write_at(&self, buf: &[u8], pos: u64) -> Result<usize> {
        File::transfer(buf.len(), pos, |done, _, pos| {
            let mut v = IoVecs::new();
            let rest = &buf[done..];
            v.push(rest.as_ptr().cast_mut(), rest.len());
            self.check_dio(&v, pos)?;
            // SAFETY: the piece is a part of `buf`, which is borrowed; the kernel only reads it.
            match unsafe { sys::pwritev2(self.as_fd(), &v, pos, RwFlags::default()) } {
                Ok(0) => Err(code::EIO),
                r => r,
            }
        })
    }

    /// Makes the data written so far durable.
    ///
    /// A failure is reported once by the host and the data may be lost then, whatever later calls say: the caller
    /// must remember it.
    ///
    /// Context: may sleep. Errors: `EIO`, `ENOSPC`, `EDQUOT`: a write-back failed since the last call.
    #[doc(alias = "vfs_fsync")]
    pub fn fdatasync(&self) -> Result {
        crate::might_sleep!();
        sys::fdatasync(self.as_fd())
    }

    /// Makes data and metadata durable.
    ///
    /// Context: may sleep. Errors: as [`File::fdatasync`].
    pub fn fsync(&self) -> Result {
        crate::might_sleep!();
        sys::fsync(self.as_fd())
    }

    /// Makes a range durable. The host can only sync a file whole, so this does: more than was asked, never less.
    ///
    /// Context: may sleep. Errors: as [`File::fdatasync`].
    #[doc(alias = "vfs_fsync_range")]
    pub fn sync_range_dsync(&self, _pos: u64, _len: u64) -> Result {
        self.fdatasync()
    }

    /// Gives the blocks of a range back to the file system (or discards it on a device); it reads as zeros after.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: not here. Others: those of `fallocate(2)`.
    pub fn punch_hole(&self, pos: u64, len: u64) -> Result {
        if len == 0 {
            return Ok(());
        }
        sys::fallocate(self.range_fd(), sys::Range::PunchHole, pos, len)
    }

    /// Zeroes a range without writing data, where the host can. The blocks stay allocated where possible.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: not here. Others: those of `fallocate(2)`.
    pub fn zero_range(&self, pos: u64, len: u64) -> Result {
        if len == 0 {
            return Ok(());
        }
        sys::fallocate(self.range_fd(), sys::Range::Zero, pos, len)
    }

    /// Copies a range of another file to `pos` of this one in the file system, which shares the blocks where it can.
    /// Answers how many bytes were copied: fewer than `len` at the end of `src`, or as the host likes.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EXDEV`, `EOPNOTSUPP`: not between these files. `EINVAL`: the ranges overlap in one file. Others: those of
    /// `copy_file_range(2)`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kshim::fs::{File, OpenOptions};
    /// let dir = tempfile::tempdir().unwrap();
    /// let open = |name| File::open(dir.path().join(name), &OpenOptions::new().create(true));
    /// let (a, b) = (open("a").unwrap(), open("b").unwrap());
    /// a.write_at(b"0123456789", 0).unwrap();
    /// assert_eq!(b.copy_range(&a, 2, 4, 3).unwrap(), 3);
    /// let mut buf = [0; 7];
    /// b.read_at(&mut buf, 0).unwrap();
    /// assert_eq!(&buf, b"\0\0\0\0234");
    /// ```
    #[doc(alias = "vfs_copy_file_range")]
    pub fn copy_range(&self, src: &File, src_pos: u64, pos: u64, len: u64) -> Result<u64> {
        sys::copy_range(src.as_fd(), src_pos, self.as_fd(), pos, len)
    }

    /// Allocates the blocks of a range, and extends the file to its end.
    ///
    /// Context: may sleep. Errors: those of `fallocate(2)`.
    #[doc(alias = "vfs_fallocate")]
    pub fn allocate(&self, pos: u64, len: u64) -> Result {
        sys::fallocate(self.range_fd(), sys::Range::Allocate, pos, len)
    }

    /// Discards a range of a block device.
    ///
    /// Context: may sleep. Errors: `ENOTTY`: no block device. `EOPNOTSUPP`: it has no discard.
    #[doc(alias = "blkdev_issue_discard")]
    pub fn blk_discard(&self, pos: u64, len: u64) -> Result {
        sys::blk_discard(self.range_fd(), pos, len)
    }

    /// Zeroes a range of a block device.
    ///
    /// Context: may sleep. Errors: `ENOTTY`: no block device.
    #[doc(alias = "blkdev_issue_zeroout")]
    pub fn blk_zeroout(&self, pos: u64, len: u64) -> Result {
        sys::blk_zeroout(self.range_fd(), pos, len)
    }

    /// What the host says about a block device.
    pub(crate) fn blk_limits(&self) -> Result<QueueLimits> {
        let mut limits = sys::blk_limits(self.as_fd())?;
        limits.read_only |= self.is_read_only();
        // Through the page cache there is one, and single writes can be synced, whatever the device has.
        limits.write_cache |= !self.is_direct();
        limits.fua |= !self.is_direct();
        limits.logical_block_size = limits
            .logical_block_size
            .max(u32::try_from(self.dio_align()).unwrap_or(0));
        Ok(limits)
    }

    /// Where the next data at or after `pos` begins; `None`: only holes are left.
    ///
    /// Context: may sleep. Errors: those of `lseek(2)`.
    #[doc(alias = "SEEK_DATA")]
    pub fn seek_data(&self, pos: u64) -> Result<Option<u64>> {
        match sys::seek(self.as_fd(), sys::Seek::Data, pos) {
            Ok(p) => Ok(Some(p)),
            Err(code::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where the next hole at or after `pos` begins (the end of the file counts as one); `None`: `pos` is past the end.
    ///
    /// Context: may sleep. Errors: those of `lseek(2)`.
    #[doc(alias = "SEEK_HOLE")]
    pub fn seek_hole(&self, pos: u64) -> Result<Option<u64>> {
        match sys::seek(self.as_fd(), sys::Seek::Hole, pos) {
            Ok(p) => Ok(Some(p)),
            Err(code::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for File {
    /// Gives the claim of a regular file back, also where a process that is just being started has a copy of the descriptor.
    fn drop(&mut self) {
        if let (Some(claim), Kind::Regular) = (&self.claim, self.kind) {
            sys::unlock(claim.as_fd());
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path)
            .field("kind", &self.kind)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp() -> (tempfile::NamedTempFile, File) {
        let t = tempfile::NamedTempFile::new().unwrap();
        let f = File::open(t.path(), &OpenOptions::new()).unwrap();
        (t, f)
    }

    #[test]
    fn tables_of_many_pieces_take_several_calls() {
        let (_t, f) = temp();
        let mut sg = SGTable::new();
        for i in 0..200u8 {
            let mut buf = PageBuf::alloc(700).unwrap();
            buf.fill(i);
            sg.push_pages(buf, 100, 600).unwrap();
        }
        let n = sg.len();
        let flags = KiocbFlags::DSYNC;
        assert_eq!(f.write_sg(&sg, 0, n, 5, flags), Ok(n));
        assert_eq!(f.size(), Ok(n as u64 + 5));
        let mut back = SGTable::alloc(n).unwrap();
        let none = KiocbFlags::empty();
        assert_eq!(f.read_sg(&mut back, 0, n, 5, none), Ok(n));
        assert_eq!(back.compare_sg(0, &sg, 0, n), Ok(None));
        // Short at the end of the file, nothing beyond.
        assert_eq!(f.read_sg(&mut back, 0, n, 6, none), Ok(n - 1));
        assert_eq!(f.read_sg(&mut back, 0, n, 1 << 40, none), Ok(0));
        assert_eq!(f.read_sg(&mut back, 1, n, 0, none), Err(code::EINVAL));
        assert_eq!(
            f.read_sg(&mut back, 0, n, u64::MAX, none),
            Err(code::EINVAL)
        );
    }

    #[test]
    fn nowait_reads_what_is_cached_where_it_is_supported() {
        let (_t, f) = temp();
        f.write_at(&[3; 10_000], 0).unwrap();
        let mut sg = SGTable::alloc(10_000).unwrap();
        let r = f.read_sg(&mut sg, 0, 10_000, 0, KiocbFlags::NOWAIT);
        if f.supports_nowait_read() {
            assert!(matches!(r, Ok(1..=10_000) | Err(code::EAGAIN)), "{r:?}");
        } else {
            assert_eq!(r, Err(code::EOPNOTSUPP));
        }
    }

    #[test]
    fn holes() {
        let (_t, f) = temp();
        f.write_at(&[1; 3 << 16], 0).unwrap();
        if f.punch_hole(1 << 16, 1 << 16) == Err(code::EOPNOTSUPP) {
            return;
        }
        assert_eq!(f.size(), Ok(3 << 16));
        assert_eq!(f.seek_hole(0), Ok(Some(1 << 16)));
        assert_eq!(f.seek_data(1 << 16), Ok(Some(2 << 16)));
        assert_eq!(f.seek_data(3 << 16), Ok(None));
        assert_eq!(f.seek_hole(4 << 16), Ok(None));
        let mut b = [9; 2];
        f.read_at(&mut b, (2 << 16) - 1).unwrap();
        assert_eq!(b, [0, 1]);
        f.punch_hole(0, 0).unwrap();
        f.set_size(100).unwrap();
        assert_eq!(f.read_at(&mut b, 99), Ok(1));
        f.allocate(0, 1 << 16).unwrap();
        assert_eq!(f.size(), Ok(1 << 16));
        assert!(f.allocated().unwrap() >= 1 << 16);
        f.fsync().unwrap();
        f.sync_range_dsync(0, 10).unwrap();
    }

    #[test]
    fn direct_io_checks_alignment_before_the_host_does() {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(1 << 16).unwrap();
        let Ok(f) = File::open(t.path(), &OpenOptions::new().direct(true)) else {
            return;
        };
        assert!(f.is_direct());
        let align = f.dio_align();
        assert!(align >= 512 && align.is_power_of_two());
        let mut sg = SGTable::alloc(8192).unwrap();
        let mut read = |at, len, pos| f.read_sg(&mut sg, at, len, pos, KiocbFlags::empty());
        assert_eq!(read(0, 4096, 4096), Ok(4096));
        assert_eq!(read(0, 4096, 1), Err(code::EINVAL));
        assert_eq!(read(0, 100, 0), Err(code::EINVAL));
        assert!(f.dio_mem_align() == 1 || read(1, 4096, 0) == Err(code::EINVAL));
    }

    #[test]
    fn options() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let new = OpenOptions::new();
        assert_eq!(File::open(&path, &new).err(), Some(code::ENOENT));
        let create = new.clone().create_new(true).mode(0o600).dsync(true);
        File::open(&path, &create)
            .unwrap()
            .write_at(b"abc", 0)
            .unwrap();
        assert_eq!(File::open(&path, &create).err(), Some(code::EEXIST));
        let ro = File::open(&path, &new.clone().read_only(true)).unwrap();
        assert!(ro.is_read_only() && !ro.is_block_device());
        assert_eq!(ro.write_at(b"x", 0), Err(code::EBADF));
        assert_eq!(ro.path(), path);
        assert_eq!(crate::fs::read(&path, 3), Ok(b"abc".to_vec()));
        assert_eq!(crate::fs::read(&path, 2), Err(code::EFBIG));
        let claim = new.clone().exclusive(true);
        let held = File::open(&path, &claim).unwrap();
        assert_eq!(File::open(&path, &claim).err(), Some(code::EBUSY));
        drop(held);
        File::open(&path, &claim).unwrap();
        let cut = File::open(&path, &new.truncate(true)).unwrap();
        assert_eq!(cut.size(), Ok(0));
        let moved = dir.path().join("g");
        crate::fs::rename(&path, &moved).unwrap();
        crate::fs::sync_dir(dir.path()).unwrap();
        assert_eq!(
            crate::fs::canonicalize(&moved).unwrap().file_name(),
            moved.file_name()
        );
        crate::fs::unlink(&moved).unwrap();
        assert_eq!(crate::fs::unlink(&moved), Err(code::ENOENT));
    }
}
