//! Memory that a disk lends.
//!
//! The memory of a RAM disk is read and written by any number of commands at once, as a disk's medium is: a
//! user that reads a block while another writes it gets old bytes, new bytes, or a mixture, and that is its own affair.
//!
//! # Soundness
//!
//! A `&[u8]` promises that its bytes do not change, a `&mut [u8]` that nobody else sees them. Neither holds here, so
//! **no reference to this memory is ever made**, not even a short-lived one. There are two accesses only: raw copies
//! between it and memory that *is* exclusively ours (`ptr::copy` on raw pointers), and system calls that are given
//! the address. Two such copies in different threads may overlap. By the letter of the memory model a racing non-atomic copy is
//! undefined; the accepted practice for memory shared with a device, another process or a guest (the kernel's user copies,
//! rust-vmm's `VolatileSlice`) is a raw copy whose result is treated as arbitrary bytes: no decision is taken from the medium,
//! each byte is read once, into a private buffer, and only the private copy is looked at. The copy is kept in a function of its
//! own that is not inlined, so that the compiler knows nothing about the shared bytes. The remaining price is that torn
//! reads may be seen, and those are within what a disk may do.
//!
//! Memory of a *file* may also vanish under us (truncation, full disk). It is copied under the fault guard of `sys::linux::guard` and
//! never lent: see [`LentMem::can_lend`].
//!
//! Memory of a *driver* ([`LentMem::of_driver`]) is what a library has read a block into, or where it has the block itself. It is only looked
//! at, and the driver hears when nobody does any more.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{PAGE_SIZE, check_range};
use crate::error::{Result, code};
use crate::fs::File;
use crate::sys::linux::guard::{guarded_copy, install};
use crate::sys::linux::mem::{Access, Mapping};
use crate::sys::linux::proc::host_page_size;

/// From here on huge pages pay.
const HUGE_PAGE_SIZE: usize = 2 << 20;

/// Pieces in which patterns are written.
const FILL_CHUNK: usize = 4096;

/// Who has memory that [`LentMem::of_driver`] lends.
pub trait LentOwner: Send + Sync {
    /// Nobody looks at the memory any more that was lent under `key`.
    ///
    /// Context: any thread; must not block.
    fn give_back(&self, key: u64);
}

enum Kind {
    Anonymous(Mapping),
    File(Mapping, File, Access),
    /// Only read.
    Driver(NonNull<u8>, Arc<dyn LentOwner>, u64),
}

struct Inner {
    /// Usable bytes; the mapping may be longer by a part of a page.
    len: usize,
    kind: Kind,
}

// SAFETY: the pointer of a driver is good for all threads, by the contract of `of_driver`; all else is `Send`.
unsafe impl Send for Inner {}
// SAFETY: as above; copies out of it may happen side by side.
unsafe impl Sync for Inner {}

impl Inner {
    /// The first byte.
    fn ptr(&self) -> *mut u8 {
        match &self.kind {
            Kind::Anonymous(map) | Kind::File(map, ..) => map.ptr().as_ptr(),
            Kind::Driver(ptr, ..) => ptr.as_ptr(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Kind::Driver(_, owner, key) = &self.kind {
            owner.give_back(*key);
        }
    }
}

/// Large memory that several commands may read and write at the same time. Cheap to clone.
///
/// ```
/// use kshim::page::LentMem;
///
/// let disk = LentMem::anonymous(1 << 20)?;
/// disk.copy_in(4096, b"data")?;
/// let mut buf = [0xff; 6];
/// disk.copy_out(4096, &mut buf)?;
/// assert_eq!(&buf, b"data\0\0");
/// assert_eq!(disk.range(4096, 4)?.len(), 4);
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Clone)]
pub struct LentMem(Arc<Inner>);

impl LentMem {
    /// Maps `len` bytes of zeros. Host memory is taken when it is written for the first time; huge pages are asked
    /// for.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: 0 bytes. `ENOMEM`: no address space.
    pub fn anonymous(len: usize) -> Result<LentMem> {
        let page = host_page_size();
        let mapped = len.checked_next_multiple_of(page).ok_or(code::ENOMEM)?;
        let map = if mapped >= HUGE_PAGE_SIZE {
            Mapping::anonymous_aligned(mapped, HUGE_PAGE_SIZE)?
        } else {
            Mapping::anonymous(mapped)?
        };
        if mapped >= HUGE_PAGE_SIZE {
            map.advise_huge();
        }
        Ok(LentMem(Arc::new(Inner {
            len,
            kind: Kind::Anonymous(map),
        })))
    }

    /// Maps the first `len` bytes of a file, shared with everyone else who has it open. Writes reach the file;
    /// [`LentMem::sync`] makes them durable.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: 0 bytes, or the file is shorter. Others: what `mmap` says (`ENODEV`: the file system cannot).
    pub fn map_file(file: File, len: usize) -> Result<LentMem> {
        install()?;
        let access = if file.is_read_only() {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        if file.size()? < u64::try_from(len)? {
            return Err(code::EINVAL);
        }
        let map = Mapping::shared_file(file.as_fd(), 0, len, access)?;
        Ok(LentMem(Arc::new(Inner {
            len,
            kind: Kind::File(map, file, access),
        })))
    }

    /// Memory of a driver's, for reading: what would write to it fails with `EROFS`.
    ///
    /// Context: any. Errors: `EINVAL`: 0 bytes.
    ///
    /// # Safety
    ///
    /// `len` bytes from `ptr` on can be read, by any thread, until [`LentOwner::give_back`] was called with this key; it is called
    /// once, after an error too. They may change meanwhile.
    pub unsafe fn of_driver(
        ptr: NonNull<u8>,
        len: usize,
        owner: Arc<dyn LentOwner>,
        key: u64,
    ) -> Result<LentMem> {
        let mem = LentMem(Arc::new(Inner {
            len,
            kind: Kind::Driver(ptr, owner, key),
        }));
        if len == 0 {
            return Err(code::EINVAL);
        }
        Ok(mem)
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether [`LentMem::range`] works: only for memory that cannot vanish.
    pub fn can_lend(&self) -> bool {
        !matches!(self.0.kind, Kind::File(..))
    }

    fn is_read_only(&self) -> bool {
        matches!(
            self.0.kind,
            Kind::Driver(..) | Kind::File(_, _, Access::ReadOnly)
        )
    }

    /// Lends a range.
    ///
    /// Context: any.
    ///
    /// # Errors
    ///
    /// `EINVAL`: out of range. `EOPNOTSUPP`: memory of a file.
    pub fn range(&self, off: usize, len: usize) -> Result<LentRange> {
        check_range(off, len, self.0.len)?;
        if !self.can_lend() {
            return Err(code::EOPNOTSUPP);
        }
        // INVARIANT: checked.
        Ok(LentRange {
            mem: self.clone(),
            off,
            len,
        })
    }

    /// Copies into the memory.
    ///
    /// Context: any; file memory may wait for the host's disk.
    ///
    /// # Errors
    ///
    /// `EINVAL`: out of range. `EROFS`: a read-only file. `EIO`: the file was truncated, or the host's disk failed.
    /// `ENOSPC`, `EDQUOT`: no room for a hole of the file. A part may have been written.
    pub fn copy_in(&self, off: usize, src: &[u8]) -> Result {
        check_range(off, src.len(), self.0.len)?;
        // SAFETY: the slice is `src.len()` bytes of other memory, no part of a `LentMem` ever being a slice.
        unsafe { self.copy_in_raw(off, src.as_ptr(), src.len()) }
    }

    /// Copies out of the memory.
    ///
    /// Context and errors: as [`LentMem::copy_in`].
    pub fn copy_out(&self, off: usize, dst: &mut [u8]) -> Result {
        check_range(off, dst.len(), self.0.len)?;
        // SAFETY: as in `copy_in`.
        unsafe { self.copy_out_raw(off, dst.as_mut_ptr(), dst.len()) }
    }

    /// # Safety
    ///
    /// `src` is `len` readable bytes, `off..off + len` is in range. Overlap is allowed for anonymous memory only.
    unsafe fn copy_in_raw(&self, off: usize, src: *const u8, len: usize) -> Result {
        // SAFETY: in range by contract.
        let dst = unsafe { self.0.ptr().add(off) };
        match &self.0.kind {
            Kind::Anonymous(_) => {
                // SAFETY: both ranges are valid by contract and invariant.
                unsafe { raw_copy(dst, src, len) };
                Ok(())
            }
            Kind::Driver(..) | Kind::File(_, _, Access::ReadOnly) => Err(code::EROFS),
            Kind::File(_, file, _) => {
                // SAFETY: both ranges are mapped, and `map_file` installed the guard.
                if unsafe { guarded_copy(dst, src, len) }.is_ok() {
                    return Ok(());
                }
                explain(file, off, len)?;
                // SAFETY: as above.
                unsafe { guarded_copy(dst, src, len) }.map_err(|_| code::EIO)
            }
        }
    }

    /// # Safety
    ///
    /// `dst` is `len` writable bytes, `off..off + len` is in range. Overlap is allowed for anonymous memory only.
    unsafe fn copy_out_raw(&self, off: usize, dst: *mut u8, len: usize) -> Result {
        // SAFETY: in range by contract.
        let src = unsafe { self.0.ptr().add(off) };
        match &self.0.kind {
            Kind::Anonymous(_) | Kind::Driver(..) => {
                // SAFETY: both ranges are valid by contract and invariant.
                unsafe { raw_copy(dst, src, len) };
                Ok(())
            }
            // SAFETY: both ranges are mapped, and `map_file` installed the guard.
            Kind::File(..) => unsafe { guarded_copy(dst, src, len) }.map_err(|_| code::EIO),
        }
    }

    /// Copies from here to a lent range of (possibly the same) other memory.
    pub(crate) fn copy_to_lent(
        &self,
        off: usize,
        dst: &LentRange,
        at: usize,
        len: usize,
    ) -> Result {
        check_range(off, len, self.0.len)?;
        check_range(at, len, dst.len)?;
        if dst.is_read_only() {
            return Err(code::EROFS);
        }
        // SAFETY: `dst` is anonymous memory, in range; overlap is possible only when both are the same anonymous memory.
        unsafe { self.copy_out_raw(off, dst.ptr().add(at), len) }
    }

    /// Copies a lent range of (possibly the same) other memory into here.
    pub(crate) fn copy_from_lent(
        &self,
        off: usize,
        src: &LentRange,
        at: usize,
        len: usize,
    ) -> Result {
        check_range(off, len, self.0.len)?;
        check_range(at, len, src.len)?;
        // SAFETY: as in `copy_to_lent`.
        unsafe { self.copy_in_raw(off, src.ptr().add(at), len) }
    }

    /// Sets every byte of a range.
    ///
    /// Context and errors: as [`LentMem::copy_in`].
    pub fn fill(&self, off: usize, len: usize, byte: u8) -> Result {
        check_range(off, len, self.0.len)?;
        let pattern = [byte; FILL_CHUNK];
        let mut done = 0;
        while done < len {
            let n = FILL_CHUNK.min(len - done);
            self.copy_in(off + done, &pattern[..n])?;
            done += n;
        }
        Ok(())
    }

    /// Makes a range read as zeros and gives its memory (or the file's blocks) back to the host, page by page.
    ///
    /// Context: may sleep. Errors: as [`LentMem::copy_in`].
    pub fn discard(&self, off: usize, len: usize) -> Result {
        check_range(off, len, self.0.len)?;
        let map = match &self.0.kind {
            Kind::Anonymous(map) => map,
            Kind::Driver(..) | Kind::File(_, _, Access::ReadOnly) => return Err(code::EROFS),
            Kind::File(_, file, _) => match file.punch_hole(off as u64, len as u64) {
                Err(code::EOPNOTSUPP) => return self.fill(off, len, 0),
                // A hole below the mapped length of a truncated file would go unnoticed.
                Ok(()) if file.size()? < (off + len) as u64 => return Err(code::EIO),
                Ok(()) => return Ok(()),
                Err(e) => return Err(e),
            },
        };
        let page = host_page_size();
        let first = off.next_multiple_of(page);
        let last = (off + len) - (off + len) % page;
        if first >= last {
            return self.fill(off, len, 0);
        }
        self.fill(off, first - off, 0)?;
        self.fill(last, off + len - last, 0)?;
        // SAFETY: the mapping is anonymous (checked above), and no reference into it is ever made.
        unsafe { map.dont_need(first, last - first) }
    }

    /// Makes what was written to a range durable. Anonymous memory has nothing to do.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: out of range. `EIO`, `ENOSPC`...: the write-back failed.
    pub fn sync(&self, off: usize, len: usize) -> Result {
        check_range(off, len, self.0.len)?;
        match &self.0.kind {
            Kind::Anonymous(_) | Kind::Driver(..) | Kind::File(_, _, Access::ReadOnly) => Ok(()),
            Kind::File(_, file, _) if len == self.0.len => file.fdatasync(),
            Kind::File(map, ..) => map.sync(off, len),
        }
    }

    /// The file behind it, if there is one.
    pub fn file(&self) -> Option<&File> {
        match &self.0.kind {
            Kind::Anonymous(_) | Kind::Driver(..) => None,
            Kind::File(_, f, _) => Some(f),
        }
    }
}

/// Finds out why a write to a mapped file faulted: `EIO` when the file ends before the range, otherwise what the file
/// system says when it is asked for the blocks (`ENOSPC`...). `Ok`: it has them now.
#[cold]
fn explain(file: &File, off: usize, len: usize) -> Result {
    let end = off as u64 + len as u64;
    if file.size()? < end {
        return Err(code::EIO);
    }
    file.allocate(off as u64, len as u64)
}

/// The one place where shared bytes are touched; not inlined, so that nothing is concluded from them.
///
/// # Safety
///
/// Both ranges are `len` mapped bytes; they may overlap.
#[inline(never)]
unsafe fn raw_copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: by contract.
    unsafe { std::ptr::copy(src, dst, len) };
}

impl fmt::Debug for LentMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentMem")
            .field("len", &self.len())
            .field("file", &self.file())
            .finish()
    }
}

/// A range of a [`LentMem`] that cannot vanish while this value lives. Its bytes may change at any time.
#[derive(Clone)]
pub struct LentRange {
    /// # Invariants
    ///
    /// No memory of a file, and `off..off + len` is inside.
    mem: LentMem,
    off: usize,
    len: usize,
}

impl LentRange {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether writing to it fails.
    pub(crate) fn is_read_only(&self) -> bool {
        self.mem.is_read_only()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies into the range.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn copy_in(&self, at: usize, src: &[u8]) -> Result {
        check_range(at, src.len(), self.len)?;
        self.mem.copy_in(self.off + at, src)
    }

    /// Copies out of the range.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn copy_out(&self, at: usize, dst: &mut [u8]) -> Result {
        check_range(at, dst.len(), self.len)?;
        self.mem.copy_out(self.off + at, dst)
    }

    /// Sets every byte of a part of the range.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn fill(&self, at: usize, len: usize, byte: u8) -> Result {
        check_range(at, len, self.len)?;
        self.mem.fill(self.off + at, len, byte)
    }

    /// A part of it.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn slice(&self, at: usize, len: usize) -> Result<LentRange> {
        check_range(at, len, self.len)?;
        // INVARIANT: a part of what is inside is inside.
        Ok(LentRange {
            mem: self.mem.clone(),
            off: self.off + at,
            len,
        })
    }

    /// The first byte, for system calls. Never to be made a reference.
    pub(crate) fn ptr(&self) -> *mut u8 {
        // SAFETY: inside the mapping by the invariant.
        unsafe { self.mem.0.ptr().add(self.off) }
    }
}

impl fmt::Debug for LentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentRange")
            .field("off", &self.off)
            .field("len", &self.len)
            .finish()
    }
}

// A page is the unit in which memory goes back.
crate::build_bug_on!(FILL_CHUNK > PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::OpenOptions;
    use crate::kthread;

    fn temp_file(len: u64) -> (tempfile::NamedTempFile, File) {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(len).unwrap();
        let f = File::open(t.path(), &OpenOptions::new()).unwrap();
        (t, f)
    }

    fn exercise(m: &LentMem) {
        let len = m.len();
        m.copy_in(10, b"0123456789").unwrap();
        m.fill(14, 2, b'x').unwrap();
        let mut b = [0u8; 12];
        m.copy_out(9, &mut b).unwrap();
        assert_eq!(&b, b"\x000123xx6789\0");
        for (off, n) in [(len, 1), (len - 1, 2), (usize::MAX, 1), (1, usize::MAX)] {
            assert_eq!(m.fill(off, n, 0), Err(code::EINVAL));
            assert_eq!(m.discard(off, n), Err(code::EINVAL));
            assert_eq!(m.sync(off, n), Err(code::EINVAL));
        }
        m.fill(0, len, 7).unwrap();
        m.discard(100, 20000).unwrap();
        let mut all = vec![0u8; len];
        m.copy_out(0, &mut all).unwrap();
        for (i, &x) in all.iter().enumerate() {
            assert_eq!(x, if (100..20100).contains(&i) { 0 } else { 7 }, "byte {i}");
        }
        m.sync(5000, 10).unwrap();
        m.sync(0, len).unwrap();
    }

    #[test]
    fn anonymous_memory() {
        exercise(&LentMem::anonymous(1 << 16).unwrap());
        exercise(&LentMem::anonymous((4 << 20) + 512).unwrap());
        assert_eq!(LentMem::anonymous(0).err(), Some(code::EINVAL));
    }

    #[test]
    fn file_memory_is_the_file() {
        let (t, f) = temp_file(1 << 16);
        let m = LentMem::map_file(f, 1 << 16).unwrap();
        exercise(&m);
        m.copy_in(3, b"abc").unwrap();
        assert_eq!(
            &crate::fs::read(t.path(), 1 << 20).unwrap()[..8],
            b"\x07\x07\x07abc\x07\x07"
        );
        assert!(!m.can_lend());
        assert_eq!(m.range(0, 1).err(), Some(code::EOPNOTSUPP));
    }

    #[test]
    fn truncation_is_eio_not_death() {
        let (t, f) = temp_file(1 << 16);
        let m = LentMem::map_file(f, 1 << 16).unwrap();
        m.fill(0, 1 << 16, 1).unwrap();
        t.as_file().set_len(8192).unwrap();
        let mut b = vec![0; 1 << 16];
        assert_eq!(m.copy_out(0, &mut b), Err(code::EIO));
        assert_eq!(m.copy_in(8192, &b[..1]), Err(code::EIO));
        assert_eq!(m.fill(8000, 1000, 0), Err(code::EIO));
        assert_eq!(m.discard(16384, 4096), Err(code::EIO));
        assert_eq!(t.as_file().metadata().unwrap().len(), 8192);
        m.copy_out(0, &mut b[..8192]).unwrap();
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let (_t, f) = temp_file(4096);
        assert_eq!(LentMem::map_file(f, 8192).err(), Some(code::EINVAL));
    }

    #[test]
    fn read_only_files_are_not_written() {
        let (t, _) = temp_file(8192);
        let f = File::open(t.path(), &OpenOptions::new().read_only(true)).unwrap();
        let m = LentMem::map_file(f, 8192).unwrap();
        assert_eq!(m.copy_in(0, b"x"), Err(code::EROFS));
        assert_eq!(m.discard(0, 4096), Err(code::EROFS));
        m.copy_out(0, &mut [0; 8]).unwrap();
    }

    #[test]
    fn ranges_keep_the_memory() {
        let m = LentMem::anonymous(1 << 16).unwrap();
        let r = m.range(4096, 8192).unwrap();
        m.copy_in(5000, b"hello").unwrap();
        drop(m);
        let s = r.slice(904, 5).unwrap();
        drop(r);
        let mut b = [0; 5];
        s.copy_out(0, &mut b).unwrap();
        assert_eq!(&b, b"hello");
        assert_eq!(s.copy_out(1, &mut b), Err(code::EINVAL));
        assert_eq!(s.slice(5, 1).err(), Some(code::EINVAL));
        assert!(s.slice(5, 0).unwrap().is_empty());
    }

    #[test]
    fn memory_of_a_driver_is_read_and_given_back() {
        struct Owner(crate::sync::SpinLock<Vec<u64>>, Box<[u8]>);
        impl LentOwner for Owner {
            fn give_back(&self, key: u64) {
                self.0.lock().push(key);
            }
        }
        let own = Arc::new(Owner(Default::default(), vec![7; 8192].into()));
        let lend = |len, key| {
            let ptr = NonNull::from(&own.1[0]);
            let owner = Arc::clone(&own) as Arc<dyn LentOwner>;
            // SAFETY: the box lives as long as its owner, and nobody writes to it.
            unsafe { LentMem::of_driver(ptr, len, owner, key) }
        };
        assert_eq!(lend(0, 1).err(), Some(code::EINVAL));
        let m = lend(8192, 2).unwrap();
        let r = m.range(4096, 4096).unwrap();
        let mut b = [0; 4];
        r.copy_out(4092, &mut b).unwrap();
        assert_eq!(b, [7; 4]);
        assert_eq!(m.copy_in(0, &b), Err(code::EROFS));
        assert_eq!(m.discard(0, 4096), Err(code::EROFS));
        assert_eq!(r.fill(0, 1, 0), Err(code::EROFS));
        let other = LentMem::anonymous(4096).unwrap();
        assert_eq!(other.copy_to_lent(0, &r, 0, 1), Err(code::EROFS));
        other.copy_from_lent(0, &r, 0, 4096).unwrap();
        let mut sg = crate::scatterlist::SGTable::new();
        sg.push_lent(r).unwrap();
        assert_eq!(sg.for_each_raw_mut(0, 1, |_, _| true), Err(code::EFAULT));
        drop(m);
        assert_eq!(*own.0.lock(), [1]);
        drop(sg);
        assert_eq!(*own.0.lock(), [1, 2]);
    }

    #[test]
    fn readers_and_writers_at_once() {
        let m = LentMem::anonymous(1 << 16).unwrap();
        let threads: Vec<_> = (0..4u8)
            .map(|i| {
                let m = m.clone();
                kthread::run("lent", move |_| {
                    let mut b = vec![0; 4096];
                    for _ in 0..2000 {
                        m.fill(4096, 4096, i).unwrap();
                        m.copy_out(4096, &mut b).unwrap();
                        assert!(b.iter().all(|&x| x < 4));
                    }
                })
                .unwrap()
            })
            .collect();
        threads.into_iter().for_each(kthread::Kthread::join);
    }
}
