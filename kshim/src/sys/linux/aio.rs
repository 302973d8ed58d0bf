//! Linux AIO: `io_submit(2)` with completions told by an eventfd.
//!
//! It is asynchronous for O_DIRECT only. What would wait inside `io_submit` all the same (blocks to be allocated, a full
//! queue) is refused with EAGAIN as its result, by `RWF_NOWAIT`.
//!
//! Kernel counterpart: `fs/aio.c`, `include/uapi/linux/aio_abi.h`.

use std::os::fd::AsRawFd;

use super::dataop::{DataOp, OpKind};
use super::poll::{EventFd, PollFd, Timeout};
use crate::error::{Error, Result, code};

// From include/uapi/linux/aio_abi.h.
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_CMD_PREADV: u16 = 7;
const IOCB_CMD_PWRITEV: u16 = 8;
const IOCB_FLAG_RESFD: u32 = 1;

/// Events taken by one call.
const BATCH: usize = 64;

/// `struct io_event`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// An AIO context. Dropping it waits for what is under way.
pub(crate) struct AioContext {
    id: libc::c_ulong,
    bell: EventFd,
}

impl AioContext {
    /// Makes one for so many operations at a time.
    ///
    /// Errors: ENOSYS (the kernel has no AIO, or a filter forbids it), EAGAIN (`fs.aio-max-nr`), EMFILE, ENOMEM.
    pub(crate) fn new(depth: u32) -> Result<AioContext> {
        let bell = EventFd::new()?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: `io_setup` writes the context's number to the second argument.
        let r = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut id) };
        if r < 0 {
            return Err(Error::from(std::io::Error::last_os_error()));
        }
        Ok(AioContext { id, bell })
    }

    /// What becomes readable, by an edge, when an operation ends.
    pub(crate) fn poll_fd(&self) -> PollFd {
        self.bell.poll_fd()
    }

    /// Starts an operation, whose end is told with `data`.
    ///
    /// Errors: EAGAIN (the context is full), EOPNOTSUPP (the file system cannot say whether it would wait), EINVAL, EBADF; nothing was
    /// started.
    ///
    /// # Safety
    ///
    /// File, pieces and memory stay until the end has been told or the context is dropped, and the memory may be
    /// read (written, for a read) without anyone holding a reference to it.
    pub(crate) unsafe fn submit(&mut self, op: &DataOp<'_>, data: u64) -> Result {
        // SAFETY: all zeros is a valid `struct iocb`, of numbers only.
        let mut cb: libc::iocb = unsafe { std::mem::zeroed() };
        cb.aio_data = data;
        cb.aio_fildes = u32::try_from(op.fd.as_raw_fd()).map_err(|_| code::EBADF)?;
        cb.aio_flags = IOCB_FLAG_RESFD;
        cb.aio_resfd = u32::try_from(self.bell.raw_fd()).map_err(|_| code::EBADF)?;
        cb.aio_lio_opcode = match op.kind {
            OpKind::Read => IOCB_CMD_PREADV,
            OpKind::Write | OpKind::WriteDsync => IOCB_CMD_PWRITEV,
            OpKind::Sync => IOCB_CMD_FDSYNC,
            OpKind::Fallocate(_) | OpKind::BlkDiscard => return Err(code::EOPNOTSUPP),
        };
        if op.kind != OpKind::Sync {
            let pieces = op.iov.pieces();
            cb.aio_buf = pieces.as_ptr().expose_provenance() as u64;
            cb.aio_nbytes = pieces.len() as u64;
            cb.aio_offset = i64::try_from(op.pos).map_err(|_| code::EINVAL)?;
            cb.aio_rw_flags = libc::RWF_NOWAIT;
            if op.kind == OpKind::WriteDsync {
                cb.aio_rw_flags |= libc::RWF_DSYNC;
            }
        }
        let mut list = [&raw mut cb];
        // SAFETY: one pointer to a whole `struct iocb`, which the kernel copies before the call returns; the pieces
        // and their memory are as the caller promises.
        let r = unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, list.as_mut_ptr()) };
        match r {
            1 => Ok(()),
            0 => Err(code::EAGAIN),
            _ => Err(Error::from(std::io::Error::last_os_error())),
        }
    }

    /// Takes the ends that are there, at most a batch, or waits for the first: `end(data, result)`. Answers how many there
    /// were.
    ///
    /// Context: may sleep, unless the timeout is [`Timeout::Now`].
    pub(crate) fn reap(&mut self, timeout: Timeout, mut end: impl FnMut(u64, i32)) -> usize {
        let mut events = [IoEvent::default(); BATCH];
        let min = libc::c_long::from(timeout != Timeout::Now);
        let ts = timeout.timespec().map(|t| [t.tv_sec, t.tv_nsec]);
        let ts = ts.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        // SAFETY: room for `BATCH` events; the time is null or two 64-bit numbers, alive across the call.
        let r = unsafe {
            let at = events.as_mut_ptr();
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                min,
                BATCH as libc::c_long,
                at,
                ts,
            )
        };
        let n = usize::try_from(r).unwrap_or(0);
        for e in events.iter().take(n) {
            end(e.data, i32::try_from(e.res).unwrap_or(i32::MAX));
        }
        n
    }
}

impl Drop for AioContext {
    fn drop(&mut self) {
        // SAFETY: the context is this object's own.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

impl core::fmt::Debug for AioContext {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AioContext").finish_non_exhaustive()
    }
}
