//! Pages and what is made of them.
//!
//! Three kinds of memory carry the data of commands:
//!
//! - [`PageBuf`]: owned by one holder, readable and writable as a slice, recycled through per-thread caches
//!   ([`PagePool`]).
//! - [`RxChunk`] / [`RxSlice`]: memory that a socket fills from the front; filled parts are immutable and shared.
//! - [`LentMem`] / [`LentRange`]: memory of a disk that several commands read and write at the same time, and that is
//!   therefore never a slice, only copied in and out or handed to the kernel.
//!
//! [`crate::scatterlist::SGTable`] strings pieces of any kind together.
//!
//! # Old data
//!
//! [`PageBuf::alloc`] may return memory that still has bytes of an earlier use *by this process*, possibly another
//! user's data. Who sends a buffer before having written every byte of it takes [`PageBuf::alloc_zeroed`], or leaks
//! data between users.
//!
//! C header: `include/linux/gfp.h`, `include/linux/mm.h`

mod buf;
mod lent;
mod pool;
mod rx;
mod span;

pub use buf::PageBuf;
pub use lent::{LentMem, LentOwner, LentRange};
pub use pool::{PagePool, PagePoolStats};
pub use rx::{RxChunk, RxSlice};
pub use span::SpanSource;

/// The page size that ported arithmetic uses, whatever the host's MMU has.
pub const PAGE_SIZE: usize = 4096;

/// Rounds up to a multiple of [`PAGE_SIZE`]; `None` on overflow.
#[doc(alias = "PAGE_ALIGN")]
pub const fn page_align(len: usize) -> Option<usize> {
    len.checked_next_multiple_of(PAGE_SIZE)
}

/// Pages that `len` bytes take.
#[doc(alias = "PFN_UP")]
pub const fn nr_pages(len: usize) -> usize {
    len.div_ceil(PAGE_SIZE)
}

/// Checks that `off..off + len` is inside `total`.
pub(crate) fn check_range(off: usize, len: usize, total: usize) -> crate::error::Result {
    match off.checked_add(len) {
        Some(end) if end <= total => Ok(()),
        _ => Err(crate::error::code::EINVAL),
    }
}
