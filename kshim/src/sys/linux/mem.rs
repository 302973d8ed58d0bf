//! Memory of the host: anonymous and file mappings.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, MsyncFlags, ProtFlags};

use super::proc::host_page_size;
use crate::error::{Result, code};

/// Pages that [`Mapping::is_resident`] looks at: 1 MiB, and what begins and ends within a page.
const RESIDENT_MAX: usize = 257;

/// Whether a mapping of a file may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// An owned mapping, unmapped on drop.
///
/// It hands out a raw pointer only; who turns it into references argues for their exclusiveness.
///
/// # Invariants
///
/// `ptr..ptr + len` is mapped readable (and, but for read-only file mappings, writable) until the drop, by this value
/// alone. Anonymous memory reads as zeros until written, so it always counts as initialised.
#[derive(Debug)]
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and this type gives no access to its content.
unsafe impl Send for Mapping {}
// SAFETY: as above; the safe methods on `&self` only read the two fields or ask the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps private, zeroed memory. Swap is not reserved: pages count when they are touched.
    pub(crate) fn anonymous(len: usize) -> Result<Mapping> {
        if len == 0 {
            return Err(code::EINVAL);
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks an unused range, so no memory of anyone
        // else changes.
        let p = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }?;
        Mapping::from_mmap(p, len)
    }

    /// As [`Mapping::anonymous`], starting at a multiple of `align` (a power of two).
    pub(crate) fn anonymous_aligned(len: usize, align: usize) -> Result<Mapping> {
        if !align.is_power_of_two() || !len.is_multiple_of(host_page_size()) {
            return Err(code::EINVAL);
        }
        if align <= host_page_size() {
            return Mapping::anonymous(len);
        }
        let padded = len.checked_add(align).ok_or(code::ENOMEM)?;
        let whole = std::mem::ManuallyDrop::new(Mapping::anonymous(padded)?);
        let head = whole.ptr.as_ptr().align_offset(align);
        let tail = padded - head - len;
        // SAFETY: `head <= align <= padded`, so the result is inside the mapping.
        let start = unsafe { whole.ptr.add(head) };
        // From here on three mappings: the margins are dropped, which unmaps them.
        if head > 0 {
            drop(Mapping {
                ptr: whole.ptr,
                len: head,
            });
        }
        if tail > 0 {
            // SAFETY: `head + len < padded`: inside the mapping.
            let end = unsafe { start.add(len) };
            drop(Mapping {
                ptr: end,
                len: tail,
            });
        }
        // INVARIANT: the range is what remains of `whole`, which is never dropped.
        Ok(Mapping { ptr: start, len })
    }

    /// Maps `len` bytes of a file from `begin` (a multiple of the page size) on, shared. The caller holds the fault guard when
    /// it touches them.
    pub(crate) fn shared_file(
        fd: BorrowedFd<'_>,
        begin: u64,
        len: usize,
        access: Access,
    ) -> Result<Mapping> {
        if len == 0 {
            return Err(code::EINVAL);
        }
        let prot = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: null hint and no MAP_FIXED, as in `anonymous`.
        let p = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, begin)
        }?;
        Mapping::from_mmap(p, len)
    }

    fn from_mmap(p: *mut core::ffi::c_void, len: usize) -> Result<Mapping> {
        // INVARIANT: the caller just mapped the range.
        Ok(Mapping {
            ptr: NonNull::new(p.cast()).ok_or(code::ENOMEM)?,
            len,
        })
    }

    /// The first byte.
    pub(crate) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    fn check(&self, off: usize, len: usize) -> Result {
        let end = off.checked_add(len).ok_or(code::EINVAL)?;
        let page = host_page_size();
        if end > self.len || !off.is_multiple_of(page) || !len.is_multiple_of(page) {
            return Err(code::EINVAL);
        }
        Ok(())
    }

    /// Asks for huge pages. A hint: a host without them refuses, which changes nothing.
    pub(crate) fn advise_huge(&self) {
        // SAFETY: the range is ours by the invariant, and the advice does not change its content.
        let r = unsafe {
            rustix::mm::madvise(self.ptr.as_ptr().cast(), self.len, Advice::LinuxHugepage)
        };
        if let Err(e) = r {
            crate::pr_debug!("no huge pages: {e}");
        }
    }

    /// Gives pages of an anonymous mapping back to the host; they read as zeros afterwards.
    ///
    /// # Safety
    ///
    /// The mapping is anonymous, and no reference to the range exists.
    pub(crate) unsafe fn dont_need(&self, off: usize, len: usize) -> Result {
        self.check(off, len)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: checked to be inside the mapping.
        let p = unsafe { self.ptr.add(off) };
        // SAFETY: the range is ours, and by contract nobody holds a reference to what changes.
        unsafe { rustix::mm::madvise(p.as_ptr().cast(), len, Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// Whether all pages of a range are in memory now: of a file mapping, in the page cache. `false` as well for a range that is
    /// out of the mapping or longer than [`RESIDENT_MAX`] pages.
    #[doc(alias = "mincore")]
    pub(crate) fn is_resident(&self, off: usize, len: usize) -> bool {
        let page = host_page_size();
        let Some(end) = off.checked_add(len) else {
            return false;
        };
        let start = off - off % page;
        let pages = (end - start).div_ceil(page);
        if end > self.len || pages > RESIDENT_MAX {
            return false;
        }
        let mut vec = [0u8; RESIDENT_MAX];
        // SAFETY: `start <= self.len`: inside the mapping, or its end.
        let p = unsafe { self.ptr.add(start) };
        // SAFETY: the range is mapped, and `vec` has a byte for each of its pages.
        let r = unsafe { libc::mincore(p.as_ptr().cast(), end - start, vec.as_mut_ptr()) };
        r == 0 && vec[..pages].iter().all(|v| v & 1 != 0)
    }

    /// Writes back dirty pages of a file mapping and waits for it.
    ///
    /// Context: may sleep.
    pub(crate) fn sync(&self, off: usize, len: usize) -> Result {
        let page = host_page_size();
        let end = off.checked_add(len).ok_or(code::EINVAL)?;
        if end > self.len {
            return Err(code::EINVAL);
        }
        let start = off - off % page;
        if end == start {
            return Ok(());
        }
        // SAFETY: `start < self.len`: inside the mapping.
        let p = unsafe { self.ptr.add(start) };
        // SAFETY: the range is ours; writing back does not change it.
        unsafe { rustix::mm::msync(p.as_ptr().cast(), end - start, MsyncFlags::SYNC) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is mapped by this value alone, which is going away.
        if let Err(e) = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len) } {
            // Only possible when the host runs out of mapping entries: the memory leaks, nothing breaks.
            crate::pr_err_ratelimited!("munmap of {} bytes: {e}", self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_and_bounds() {
        let page = host_page_size();
        for align in [page, 1 << 21] {
            let m = Mapping::anonymous_aligned(4 * page, align).unwrap();
            assert_eq!(m.ptr().as_ptr().align_offset(align), 0);
            assert_eq!(m.len, 4 * page);
            // SAFETY: nobody has a reference into `m`.
            let r = unsafe { m.dont_need(3 * page, 2 * page) };
            assert_eq!(r, Err(code::EINVAL));
            // SAFETY: nobody has a reference into `m`.
            let r = unsafe { m.dont_need(page, page) };
            assert_eq!(r, Ok(()));
        }
        assert_eq!(Mapping::anonymous(0).err(), Some(code::EINVAL));
        assert_eq!(Mapping::anonymous(usize::MAX / 2).err(), Some(code::ENOMEM));
    }
}
