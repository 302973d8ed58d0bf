//! Where the pool's memory comes from: the host, or whoever has memory that devices can reach.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::Result;
use crate::sync::SpinLock;
use crate::sys::linux::mem::Mapping;

/// Memory of a driver's for the page pool, so that what is read and written through it needs no copy: a library that has
/// pinned memory or huge pages of its own, for instance.
///
/// # Safety
///
/// What [`alloc`](SpanSource::alloc) returns is `len` bytes at a multiple of `align`, readable, writable and initialised, that belong
/// to the caller alone until [`free`](SpanSource::free).
#[doc(alias = "dma_pool_create")]
pub unsafe trait SpanSource: Send + Sync {
    /// Memory for the pool; `None`: there is no more, and the host's is taken.
    ///
    /// Context: any thread, under a spin lock; must not block.
    #[doc(alias = "dma_alloc_coherent")]
    fn alloc(&self, len: usize, align: usize) -> Option<NonNull<u8>>;

    /// Takes it back.
    ///
    /// Context: any thread.
    ///
    /// # Safety
    ///
    /// It came from `alloc` with this `len`, and nobody uses it any more.
    #[doc(alias = "dma_free_coherent")]
    unsafe fn free(&self, ptr: NonNull<u8>, len: usize);
}

static SOURCE: SpinLock<Option<Arc<dyn SpanSource>>> = SpinLock::new(None);

pub(super) fn set_source(source: Option<Arc<dyn SpanSource>>) {
    let old = std::mem::replace(&mut *SOURCE.lock(), source);
    // Perhaps the last reference: not under the lock.
    drop(old);
}

/// A large piece of memory.
pub(super) enum Span {
    Host(Mapping),
    /// # Invariants
    ///
    /// It came from this source with this length.
    Lent(NonNull<u8>, usize, Arc<dyn SpanSource>),
}

// SAFETY: plain memory of the process; sources are usable by any thread.
unsafe impl Send for Span {}
// SAFETY: `&Span` gives the address, and strips blocks that their owner vouches for.
unsafe impl Sync for Span {}

impl Span {
    /// Memory from the source, if there is one that has some, else the host's.
    pub(super) fn new(len: usize, align: usize) -> Result<Span> {
        let source = SOURCE.lock().clone();
        if let Some(source) = source
            && let Some(ptr) = source.alloc(len, align)
        {
            debug_assert!(ptr.addr().get().is_multiple_of(align));
            return Ok(Span::Lent(ptr, len, source));
        }
        Mapping::anonymous_aligned(len, align).map(Span::Host)
    }

    /// The first byte.
    pub(super) fn ptr(&self) -> NonNull<u8> {
        match self {
            Span::Host(m) => m.ptr(),
            Span::Lent(ptr, ..) => *ptr,
        }
    }

    /// Gives memory of a part back to the host. `false`: this is not possible.
    ///
    /// # Safety
    ///
    /// No reference to the part exists.
    pub(super) unsafe fn strip(&self, off: usize, len: usize) -> bool {
        match self {
            // SAFETY: spans are anonymous; the caller vouches for the rest.
            Span::Host(m) => unsafe { m.dont_need(off, len) }.is_ok(),
            // Its owner, or a device, may have pinned it.
            Span::Lent(..) => false,
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Span::Lent(ptr, len, source) = self {
            // SAFETY: by the invariant; the pool drops a span when all of its blocks are back.
            unsafe { source.free(*ptr, *len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct One(SpinLock<Option<Mapping>>, AtomicUsize);

    // SAFETY: gives one mapping, once.
    unsafe impl SpanSource for One {
        fn alloc(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
            let mut slot = self.0.lock();
            if slot.is_some() {
                return None;
            }
            let m = Mapping::anonymous_aligned(len, align).ok()?;
            Some(slot.insert(m).ptr())
        }

        unsafe fn free(&self, ptr: NonNull<u8>, len: usize) {
            assert_eq!(self.0.lock().take().map(|m| m.ptr()), Some(ptr));
            self.1.fetch_add(len, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_source_comes_first_and_gets_its_memory_back() {
        const LEN: usize = 2 << 20;
        let one = Arc::new(One::default());
        set_source(Some(Arc::clone(&one) as Arc<dyn SpanSource>));
        let a = Span::new(LEN, LEN).unwrap();
        let b = Span::new(LEN, LEN).unwrap();
        set_source(None);
        // Another test's allocation may have been faster.
        let lent = |s: &Span| matches!(s, Span::Lent(..));
        assert!(!(lent(&a) && lent(&b)));
        // SAFETY: nobody uses them.
        assert_eq!(unsafe { a.strip(0, LEN) }, !lent(&a));
        let freed = usize::from(lent(&a) || lent(&b)) * LEN;
        drop((a, b));
        assert!(one.1.load(Ordering::Relaxed) >= freed);
        assert!(!lent(&Span::new(LEN, LEN).unwrap()));
    }
}
