//! Receive memory: chunks filled from the front, shared in immutable slices.
//!
//! # Soundness
//!
//! A chunk's memory is split by its `filled` mark. Below the mark bytes never change while a slice may see them:
//! [`RxSlice`]s are only made of ranges below the mark, and the mark only moves down in [`RxChunk::reset`] and
//! [`RxChunk::compact`], which insist on being the only holder of the memory. Above the mark only [`RxChunk::spare_mut`]
//! reaches, with `&mut self` of the one `RxChunk` there is (not clonable). All slices are made from the raw pointer, so
//! that the mutable tail and the shared prefix never overlap, not even in provenance of a common slice.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::PageBuf;
use crate::error::{Result, code};

/// Memory of a chunk, kept alive by the chunk and its slices.
struct RxMem(PageBuf);

/// An append-only buffer with one writer, for a socket to receive into.
///
/// ```
/// use kshim::page::RxChunk;
///
/// let mut chunk = RxChunk::alloc(64 << 10)?;
/// chunk.spare_mut()[..5].copy_from_slice(b"hello");
/// chunk.advance(5)?;
/// let word = chunk.slice(1..5)?;
/// drop(chunk);
/// assert_eq!(&*word, b"ello");
/// # Ok::<(), kshim::error::Error>(())
/// ```
pub struct RxChunk {
    mem: Arc<RxMem>,
    /// # Invariants
    ///
    /// At most the memory's length; never decreases while an [`RxSlice`] of the memory exists.
    filled: usize,
}

impl RxChunk {
    /// Allocates a chunk of `capacity` bytes.
    ///
    /// Context: any. Errors: as [`PageBuf::alloc`].
    pub fn alloc(capacity: usize) -> Result<RxChunk> {
        Ok(RxChunk {
            mem: Arc::new(RxMem(PageBuf::alloc(capacity)?)),
            filled: 0,
        })
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.mem.0.len()
    }

    /// Bytes filled.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing was filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Bytes that still fit.
    pub fn spare_len(&self) -> usize {
        self.capacity() - self.filled
    }

    /// The filled part.
    pub fn filled(&self) -> &[u8] {
        // SAFETY: the range is inside the memory and below the mark, where nothing is written while `self` is
        // borrowed (module documentation).
        unsafe { std::slice::from_raw_parts(self.mem.0.ptr(), self.filled) }
    }

    /// The part to be filled next; it may carry old bytes. [`RxChunk::advance`] makes a prefix of it part of the
    /// filled range.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let spare = self.spare_len();
        // SAFETY: `filled` is at most the memory's length.
        let start = unsafe { self.mem.0.ptr().add(self.filled) };
        // SAFETY: the range is the tail above the mark, which only this method reaches, under `&mut self` of the
        // only writer (module documentation). Pool memory is initialised.
        unsafe { std::slice::from_raw_parts_mut(start, spare) }
    }

    /// Declares the first `n` spare bytes filled.
    ///
    /// # Errors
    ///
    /// `EINVAL`: more than is spare.
    pub fn advance(&mut self, n: usize) -> Result {
        if n > self.spare_len() {
            return Err(code::EINVAL);
        }
        self.filled += n;
        Ok(())
    }

    /// A shared view of filled bytes. One atomic increment.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the range is not filled.
    pub fn slice(&self, range: Range<usize>) -> Result<RxSlice> {
        if range.start > range.end || range.end > self.filled {
            return Err(code::EINVAL);
        }
        // INVARIANT: the range was checked to be filled.
        Ok(RxSlice {
            mem: Arc::clone(&self.mem),
            off: range.start as u32,
            len: (range.end - range.start) as u32,
        })
    }

    /// Whether slices of it are alive.
    pub fn is_shared(&mut self) -> bool {
        Arc::get_mut(&mut self.mem).is_none()
    }

    /// Forgets what was filled, when no slice is alive. Returns whether it did.
    pub fn reset(&mut self) -> bool {
        if self.is_shared() {
            return false;
        }
        self.filled = 0;
        true
    }

    /// Moves the filled bytes from `start` on to the front, when no slice is alive. Returns whether it did.
    pub fn compact(&mut self, start: usize) -> bool {
        let filled = self.filled;
        if start > filled {
            return false;
        }
        // `get_mut` synchronises with the drop of the last slice, so that nobody still reads.
        let Some(mem) = Arc::get_mut(&mut self.mem) else {
            return false;
        };
        mem.0.as_mut_slice().copy_within(start..filled, 0);
        self.filled = filled - start;
        true
    }
}

impl fmt::Debug for RxChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxChunk")
            .field("filled", &self.filled)
            .field("capacity", &self.capacity())
            .finish()
    }
}

/// An immutable, shared range of received bytes. Cloning is one atomic increment.
#[derive(Clone)]
pub struct RxSlice {
    mem: Arc<RxMem>,
    /// # Invariants
    ///
    /// `off..off + len` was filled when this was made.
    off: u32,
    len: u32,
}

// `RxMem` is read and written from several threads by disjoint ranges.
crate::build_bug_on!(PageBuf::MAX_LEN > u32::MAX as usize);

impl RxSlice {
    /// A part of it.
    ///
    /// # Errors
    ///
    /// `EINVAL`: out of range.
    pub fn slice(&self, range: Range<usize>) -> Result<RxSlice> {
        if range.start > range.end || range.end > self.len() {
            return Err(code::EINVAL);
        }
        // INVARIANT: a part of a filled range is filled.
        Ok(RxSlice {
            mem: Arc::clone(&self.mem),
            off: self.off + range.start as u32,
            len: (range.end - range.start) as u32,
        })
    }
}

impl Deref for RxSlice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `off` is inside the memory.
        let start = unsafe { self.mem.0.ptr().add(self.off as usize) };
        // SAFETY: the range was filled, so by the module's argument nobody writes it while this value lives.
        unsafe { std::slice::from_raw_parts(start, self.len as usize) }
    }
}

impl fmt::Debug for RxSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxSlice").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::kthread;

    #[test]
    fn slices_outlive_and_pin_the_chunk() {
        let mut c = RxChunk::alloc(8192).unwrap();
        c.spare_mut()[..10].copy_from_slice(b"0123456789");
        c.advance(10).unwrap();
        let s = c.slice(2..6).unwrap();
        assert!(c.is_shared());
        assert!(!c.reset());
        assert!(!c.compact(3));
        c.spare_mut().fill(0xff);
        c.advance(8182).unwrap();
        assert_eq!(c.advance(1), Err(code::EINVAL));
        assert_eq!(&*s, b"2345");
        assert_eq!(&*s.slice(1..3).unwrap(), b"34");
        assert_eq!(s.slice(1..5).err(), Some(code::EINVAL));
        drop(s);
        assert!(c.compact(8));
        assert_eq!(c.len(), 8184);
        assert_eq!(&c.filled()[..3], b"89\xff");
        assert!(c.reset());
        assert!(c.is_empty());
        assert_eq!(c.slice(0..1).err(), Some(code::EINVAL));
    }

    #[test]
    fn a_reader_elsewhere_sees_its_bytes_while_the_tail_fills() {
        let mut c = RxChunk::alloc(1 << 20).unwrap();
        let mut readers = Vec::new();
        let good = Arc::new(AtomicUsize::new(0));
        for i in 0..64u8 {
            let at = c.len();
            c.spare_mut()[..1000].fill(i);
            c.advance(1000).unwrap();
            let s = c.slice(at..at + 1000).unwrap();
            let good = Arc::clone(&good);
            readers.push(
                kthread::run("rx", move |_| {
                    assert!(s.iter().all(|&b| b == i));
                    good.fetch_add(1, Ordering::Relaxed);
                })
                .unwrap(),
            );
        }
        readers.into_iter().for_each(kthread::Kthread::join);
        assert_eq!(good.load(Ordering::Relaxed), 64);
    }
}
