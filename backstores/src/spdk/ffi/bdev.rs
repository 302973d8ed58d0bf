//! Descriptors, channels and requests.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kshim::error::{Error, Result, code};

use super::{check, errno, sys};
use crate::spdk::request::{Op, Request};
use crate::spdk::status;

/// What an open bdev tells by itself.
#[derive(Debug, Default)]
pub(in crate::spdk) struct Events {
    /// It is being removed: its descriptor shall be closed.
    pub(in crate::spdk) removed: AtomicBool,
    /// Its size in blocks.
    pub(in crate::spdk) blocks: AtomicU64,
}

/// What a bdev is.
#[derive(Debug, Clone)]
pub(in crate::spdk) struct Info {
    pub(in crate::spdk) module: String,
    pub(in crate::spdk) block_size: u32,
    pub(in crate::spdk) physical_block_size: u32,
    pub(in crate::spdk) optimal_blocks: u32,
    pub(in crate::spdk) unmap_granularity: u32,
    pub(in crate::spdk) write_unit: u32,
    pub(in crate::spdk) metadata: u32,
    pub(in crate::spdk) zoned: bool,
    pub(in crate::spdk) writable: bool,
    pub(in crate::spdk) flush: bool,
    pub(in crate::spdk) unmap: bool,
    pub(in crate::spdk) zeroes: bool,
    /// It can show its own memory.
    pub(in crate::spdk) zcopy: bool,
}

/// An open bdev. It is closed by [`RawDesc::close`], on the app thread.
///
/// # Invariants
///
/// `desc` is open, and SPDK has one reference to `events`.
#[derive(Debug)]
pub(in crate::spdk) struct RawDesc {
    desc: NonNull<sys::spdk_bdev_desc>,
    events: Arc<Events>,
}

// SAFETY: SPDK's descriptors are used by all threads; only opening and closing are for one, which `close` asks for.
unsafe impl Send for RawDesc {}
// SAFETY: as above.
unsafe impl Sync for RawDesc {}

extern "C" fn happened(
    kind: sys::spdk_bdev_event_type,
    bdev: *mut sys::spdk_bdev,
    ctx: *mut c_void,
) {
    // SAFETY: SPDK calls this for an open descriptor only, whose reference is `ctx`.
    let events = unsafe { &*ctx.cast::<Events>() };
    if kind == sys::SPDK_BDEV_EVENT_REMOVE {
        events.removed.store(true, Ordering::Release);
    } else if kind == sys::SPDK_BDEV_EVENT_RESIZE {
        // SAFETY: the bdev that changed.
        let blocks = unsafe { sys::spdk_bdev_get_num_blocks(bdev) };
        events.blocks.store(blocks, Ordering::Release);
    }
}

impl RawDesc {
    /// Opens a bdev.
    ///
    /// Context: the app thread. Errors: `ENODEV`: there is none of this name. `EPERM`: for writing, and another module has claimed it.
    pub(in crate::spdk) fn open(name: &str, write: bool) -> Result<(RawDesc, Info)> {
        let name = CString::new(name).map_err(|_| code::EINVAL)?;
        let events = Arc::new(Events::default());
        let ctx = Arc::into_raw(Arc::clone(&events))
            .cast_mut()
            .cast::<c_void>();
        let mut desc = null_mut();
        // SAFETY: the name is copied; `ctx` is a reference of SPDK's own until the close.
        let rc = unsafe {
            sys::spdk_bdev_open_ext(name.as_ptr(), write, Some(happened), ctx, &raw mut desc)
        };
        let opened = match rc {
            // EPERM; elsewhere this is SPDK's "something went wrong".
            -1 => Err(code::EPERM),
            rc => check(rc),
        };
        match (opened, NonNull::new(desc)) {
            (Ok(()), Some(desc)) => {
                let raw = RawDesc { desc, events };
                let info = raw.info();
                Ok((raw, info))
            }
            (failed, _) => {
                // SAFETY: the open failed, so SPDK does not have it.
                drop(unsafe { Arc::from_raw(ctx.cast::<Events>()) });
                Err(failed.err().unwrap_or(code::EIO))
            }
        }
    }

    fn info(&self) -> Info {
        // SAFETY: the descriptor is open, so its bdev is there; all of these only look. Names are C strings of its own.
        unsafe {
            let b = sys::spdk_bdev_desc_get_bdev(self.desc.as_ptr());
            let blocks = sys::spdk_bdev_get_num_blocks(b);
            self.events.blocks.store(blocks, Ordering::Release);
            let does = |kind| sys::spdk_bdev_io_type_supported(b, kind);
            let module = CStr::from_ptr(sys::spdk_bdev_get_module_name(b));
            Info {
                module: module.to_string_lossy().into_owned(),
                block_size: sys::spdk_bdev_get_block_size(b),
                physical_block_size: sys::spdk_bdev_get_physical_block_size(b),
                optimal_blocks: sys::spdk_bdev_get_optimal_io_boundary(b),
                unmap_granularity: sys::spdk_bdev_get_preferred_unmap_granularity(b),
                write_unit: sys::spdk_bdev_get_write_unit_size(b),
                metadata: sys::spdk_bdev_get_md_size(b),
                zoned: sys::spdk_bdev_is_zoned(b),
                writable: does(sys::SPDK_BDEV_IO_TYPE_WRITE),
                flush: does(sys::SPDK_BDEV_IO_TYPE_FLUSH),
                unmap: does(sys::SPDK_BDEV_IO_TYPE_UNMAP),
                zeroes: does(sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES),
                zcopy: does(sys::SPDK_BDEV_IO_TYPE_ZCOPY),
            }
        }
    }

    pub(in crate::spdk) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Closes it. Context: the app thread, when no channel of it is left.
    pub(in crate::spdk) fn close(self) {
        // SAFETY: open by the invariant, and consumed.
        unsafe { sys::spdk_bdev_close(self.desc.as_ptr()) };
        // SAFETY: SPDK's reference, made at the open; no event comes after the close.
        unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.events)) };
    }
}

/// A thread's way to a bdev.
///
/// # Invariants
///
/// `ch` is a channel of the current `spdk_thread`.
pub(in crate::spdk) struct Channel {
    ch: NonNull<sys::spdk_io_channel>,
    _not_send: PhantomData<*mut ()>,
}

impl Channel {
    /// Context: an OS thread with an `spdk_thread`. Errors: `ENOMEM`: SPDK gave none.
    pub(in crate::spdk) fn get(desc: &RawDesc) -> Result<Channel> {
        // SAFETY: the descriptor is open.
        let ch = unsafe { sys::spdk_bdev_get_io_channel(desc.desc.as_ptr()) };
        Ok(Channel {
            ch: NonNull::new(ch).ok_or(code::ENOMEM)?,
            _not_send: PhantomData,
        })
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: by the invariant, and on its thread, as it is not `Send`.
        unsafe { sys::spdk_put_io_channel(self.ch.as_ptr()) };
    }
}

/// A piece of memory.
pub(in crate::spdk) type IoVec = sys::iovec;

/// Makes a piece.
pub(in crate::spdk) fn iovec(p: *mut u8, len: usize) -> IoVec {
    IoVec {
        iov_base: p.cast(),
        iov_len: len as _,
    }
}

/// A read that has ended well, with the memory that SPDK has the data in.
///
/// # Invariants
///
/// `io` has ended and is not freed; it is of the thread that this value stays on. `len` bytes from `ptr` on belong to it until then.
pub(in crate::spdk) struct ReadIo {
    io: NonNull<sys::spdk_bdev_io>,
    ptr: NonNull<u8>,
    len: usize,
}

impl ReadIo {
    /// Takes over an ended request whose data is in one piece; otherwise it stays the caller's.
    ///
    /// # Safety
    ///
    /// `io` is a read that has ended well on this thread; nobody else frees it.
    unsafe fn new(io: *mut sys::spdk_bdev_io) -> Option<ReadIo> {
        let (mut iov, mut n) = (null_mut(), 0);
        // SAFETY: the request is there, by contract; this only looks.
        unsafe { sys::spdk_bdev_io_get_iovec(io, &raw mut iov, &raw mut n) };
        if n != 1 || iov.is_null() {
            return None;
        }
        // SAFETY: one entry, as SPDK says.
        let iov = unsafe { &*iov };
        Some(ReadIo {
            io: NonNull::new(io)?,
            ptr: NonNull::new(iov.iov_base.cast())?,
            len: usize::try_from(iov.iov_len).ok()?,
        })
    }

    /// Where the data is. It is there as long as this value.
    pub(in crate::spdk) fn memory(&self) -> (NonNull<u8>, usize) {
        (self.ptr, self.len)
    }
}

impl Drop for ReadIo {
    fn drop(&mut self) {
        // SAFETY: by the invariant.
        unsafe { sys::spdk_bdev_free_io(self.io.as_ptr()) };
    }
}

thread_local! {
    /// Requests that SPDK has ended and nobody has looked at.
    static ENDED: RefCell<Vec<(Box<Request>, Result)>> = const { RefCell::new(Vec::new()) };
}

/// Takes the requests that have ended on this thread, and leaves `empty` (an empty list, for its capacity) in their place.
pub(in crate::spdk) fn take_ended(
    empty: Vec<(Box<Request>, Result)>,
) -> Vec<(Box<Request>, Result)> {
    ENDED.replace(empty)
}

extern "C" fn io_ended(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
    // SAFETY: `ctx` is the request that `submit` leaked; SPDK ends each once.
    let mut request = unsafe { Box::from_raw(ctx.cast::<Request>()) };
    let result = if success { Ok(()) } else { Err(failure(io)) };
    let kept = if success && request.borrows() {
        // SAFETY: it has ended well, and is freed below only if it is not taken over.
        unsafe { ReadIo::new(io) }
    } else {
        None
    };
    if kept.is_none() {
        // SAFETY: the request has ended, and is not used afterwards.
        unsafe { sys::spdk_bdev_free_io(io) };
    }
    request.found(kept);
    // Only borrowed here and in `take_ended`, neither of which calls anything.
    ENDED.with_borrow_mut(|e| e.push((request, result)));
}

/// Why a request failed.
fn failure(io: *mut sys::spdk_bdev_io) -> Error {
    let (mut aio, mut cdw0, mut sct, mut sc) = (0, 0, 0, 0);
    // SAFETY: `io` has ended and is not freed yet; both only look.
    unsafe {
        sys::spdk_bdev_io_get_aio_status(io, &raw mut aio);
        sys::spdk_bdev_io_get_nvme_status(io, &raw mut cdw0, &raw mut sct, &raw mut sc);
    }
    status::error(aio, sct, sc)
}

/// Starts a request. It comes back by [`take_ended`], on this thread, after the thread was polled; or at once with
/// an error: `ENOMEM`: SPDK has no room now.
///
/// Context: the channel's thread.
pub(in crate::spdk) fn submit(
    desc: &RawDesc,
    channel: &Channel,
    request: Box<Request>,
) -> Result<(), (Box<Request>, Error)> {
    let (op, at, blocks) = (request.op(), request.block(), request.blocks());
    let (d, ch) = (desc.desc.as_ptr(), channel.ch.as_ptr());
    let raw = Box::into_raw(request);
    let (cb, ctx) = (Some(io_ended as _), raw.cast::<c_void>());
    // SAFETY: descriptor and channel are open, the channel is this thread's. The request, with the list of pieces and the memory
    // that they are of, is SPDK's until `io_ended`, or again ours after an error.
    let rc: c_int = unsafe {
        let iov = (*raw).iovecs();
        let n = c_int::try_from(iov.len()).unwrap_or(c_int::MAX);
        let iov = iov.as_mut_ptr();
        match op {
            Op::Read => sys::spdk_bdev_readv_blocks(d, ch, iov, n, at, blocks, cb, ctx),
            Op::Write => sys::spdk_bdev_writev_blocks(d, ch, iov, n, at, blocks, cb, ctx),
            Op::Flush => sys::spdk_bdev_flush_blocks(d, ch, at, blocks, cb, ctx),
            Op::Unmap => sys::spdk_bdev_unmap_blocks(d, ch, at, blocks, cb, ctx),
            Op::Zeroes => sys::spdk_bdev_write_zeroes_blocks(d, ch, at, blocks, cb, ctx),
        }
    };
    if rc == 0 {
        return Ok(());
    }
    // SAFETY: SPDK did not take it.
    Err((unsafe { Box::from_raw(raw) }, errno(rc)))
}
