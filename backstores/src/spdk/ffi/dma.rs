//! Memory that devices can reach.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use kshim::error::{Result, code};
use kshim::page::SpanSource;

use super::sys;

/// Alignment of such memory: a page, as O_DIRECT and NVMe want it.
const ALIGN: usize = 4096;
/// `SPDK_VTOPHYS_ERROR`.
const NOWHERE: u64 = u64::MAX;

/// Memory of SPDK's, initialised.
///
/// # Invariants
///
/// `ptr` starts `len` bytes that are this value's own.
#[derive(Debug)]
pub(in crate::spdk) struct DmaBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory of the process.
unsafe impl Send for DmaBuf {}

impl DmaBuf {
    /// Context: any. Errors: `ENOMEM`.
    pub(in crate::spdk) fn new(len: usize) -> Result<DmaBuf> {
        // SAFETY: the environment is initialised: an engine exists.
        let p = unsafe { sys::spdk_dma_zmalloc(len as _, ALIGN as _, std::ptr::null_mut()) };
        let ptr = NonNull::new(p.cast()).ok_or(code::ENOMEM)?;
        Ok(DmaBuf { ptr, len })
    }

    pub(in crate::spdk) fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The bytes. SPDK must be done with them.
    pub(in crate::spdk) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: by the invariant; requests that use it own it until SPDK is done.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: it came from SPDK, and nobody has it any more.
        unsafe { sys::spdk_dma_free(self.ptr.as_ptr().cast()) };
    }
}

/// Whether devices can reach all of this memory.
///
/// Context: any.
pub(in crate::spdk) fn reachable(p: *const u8, len: usize) -> bool {
    let (mut p, mut left) = (p, len as u64);
    while left > 0 {
        let mut n = left;
        // SAFETY: the address is only looked up; `n` says how far the answer holds.
        let at = unsafe { sys::spdk_vtophys(p.cast(), &raw mut n) };
        if at == NOWHERE || n == 0 {
            return false;
        }
        let n = n.min(left);
        p = p.wrapping_add(n as usize);
        left -= n;
    }
    true
}

/// SPDK's memory for the page pool, up to a limit: command buffers are reachable for devices then.
#[derive(Debug)]
pub(in crate::spdk) struct PoolMemory {
    left: AtomicUsize,
    limit: usize,
}

impl PoolMemory {
    pub(in crate::spdk) fn new(limit: usize) -> PoolMemory {
        PoolMemory {
            left: AtomicUsize::new(limit),
            limit,
        }
    }

    /// Bytes that the pool has.
    pub(in crate::spdk) fn used(&self) -> usize {
        self.limit - self.left.load(Ordering::Acquire)
    }
}

// SAFETY: SPDK's allocator gives memory that is aligned, zeroed, and the caller's until it is freed.
unsafe impl SpanSource for PoolMemory {
    fn alloc(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
        let take = |left: usize| left.checked_sub(len);
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()?;
        // SAFETY: the environment is initialised: it ends when the pool has none of its memory any more.
        let p = unsafe { sys::spdk_dma_zmalloc(len as _, align as _, std::ptr::null_mut()) };
        let ptr = NonNull::new(p.cast());
        if ptr.is_none() {
            self.left.fetch_add(len, Ordering::AcqRel);
        }
        ptr
    }

    unsafe fn free(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: it came from `alloc`, says the contract.
        unsafe { sys::spdk_dma_free(ptr.as_ptr().cast()) };
        self.left.fetch_add(len, Ordering::AcqRel);
    }
}
