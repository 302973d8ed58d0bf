//! Owned page buffers.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::pool::{Block, PagePool};
use crate::error::{Result, code};

/// Owned, page-aligned memory: one contiguous piece of a few KiB to [`PageBuf::MAX_LEN`].
///
/// Allocation and release take tens of nanoseconds: the memory comes from a cache of the calling thread.
///
/// ```
/// use kshim::page::PageBuf;
///
/// let mut buf = PageBuf::alloc_zeroed(6000)?;
/// assert_eq!(buf.len(), 6000);
/// buf.as_mut_slice()[..4].copy_from_slice(b"disk");
/// assert_eq!(&buf.as_slice()[..6], b"disk\0\0");
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "alloc_pages")]
#[doc(alias = "__get_free_pages")]
pub struct PageBuf {
    /// # Invariants
    ///
    /// `Some` until the drop; at least `len` bytes.
    block: Option<Block>,
    len: usize,
}

impl PageBuf {
    /// The largest buffer.
    pub const MAX_LEN: usize = PagePool::MAX_BLOCK;

    /// Allocates `len` bytes. **They may carry old bytes of this process**: see [the module](super).
    ///
    /// Context: any.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `len` is 0 or over [`PageBuf::MAX_LEN`]. `ENOMEM`: the host has none, or the pool's limit is reached.
    pub fn alloc(len: usize) -> Result<PageBuf> {
        if len == 0 || len > PageBuf::MAX_LEN {
            return Err(code::EINVAL);
        }
        let block = PagePool::get(len)?;
        debug_assert!(block.size() >= len);
        // INVARIANT: the pool gave a block of at least `len` bytes.
        Ok(PageBuf {
            block: Some(block),
            len,
        })
    }

    /// Allocates `len` zeroed bytes.
    ///
    /// Context: any. Errors as [`PageBuf::alloc`].
    #[doc(alias = "get_zeroed_page")]
    pub fn alloc_zeroed(len: usize) -> Result<PageBuf> {
        let mut buf = PageBuf::alloc(len)?;
        buf.as_mut_slice().fill(0);
        Ok(buf)
    }

    /// Bytes asked for.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that [`PageBuf::set_len`] may grow to without another allocation.
    pub fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, Block::size)
    }

    /// Changes the length within the capacity. Bytes that come into view may be old ones.
    ///
    /// # Errors
    ///
    /// `EINVAL`: 0 or over the capacity.
    pub fn set_len(&mut self, len: usize) -> Result {
        if len == 0 || len > self.capacity() {
            return Err(code::EINVAL);
        }
        self.len = len;
        Ok(())
    }

    /// The first byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.block
            .as_ref()
            .map_or(std::ptr::null_mut(), |b| b.ptr().as_ptr())
    }

    /// The content.
    #[doc(alias = "page_address")]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: (1) by the invariant the block has `len` bytes, initialised as all pool memory; (2) it is owned by
        // this value, and whoever took `ptr()` writes only with `&mut self` (kernel crate modules), so that shared
        // references see no writes.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len) }
    }

    /// The content, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
    }
}

impl Drop for PageBuf {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            PagePool::put(block);
        }
    }
}

impl Deref for PageBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl fmt::Debug for PageBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_limits() {
        for len in [
            1,
            511,
            4096,
            4097,
            65536,
            1 << 20,
            (1 << 20) + 1,
            PageBuf::MAX_LEN,
        ] {
            let mut b = PageBuf::alloc_zeroed(len).unwrap();
            assert_eq!(b.len(), len);
            assert!(b.capacity() >= len);
            assert_eq!(b.ptr().align_offset(super::super::PAGE_SIZE), 0);
            assert!(b.iter().all(|&x| x == 0));
            b.fill(0xee);
        }
        assert_eq!(PageBuf::alloc(0).err(), Some(code::EINVAL));
        assert_eq!(
            PageBuf::alloc(PageBuf::MAX_LEN + 1).err(),
            Some(code::EINVAL)
        );
    }

    #[test]
    fn zeroed_hides_what_was_there() {
        for _ in 0..100 {
            let mut b = PageBuf::alloc(8192).unwrap();
            b.fill(0xaa);
            drop(b);
            assert!(PageBuf::alloc_zeroed(8192).unwrap().iter().all(|&x| x == 0));
        }
    }

    #[test]
    fn set_len_stays_in_the_block() {
        let mut b = PageBuf::alloc(5000).unwrap();
        assert_eq!(b.capacity(), 8192);
        b.set_len(8192).unwrap();
        b.as_mut_slice()[8191] = 1;
        assert_eq!(b.set_len(8193), Err(code::EINVAL));
        assert_eq!(b.set_len(0), Err(code::EINVAL));
    }
}
