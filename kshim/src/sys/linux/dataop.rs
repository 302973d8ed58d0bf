//! What a ring or an AIO context is asked to do with a file.

use std::os::fd::BorrowedFd;

use super::file::{IoVecs, Range};

/// Most pieces of memory in one operation; a command has one, nearly always.
pub(crate) const OP_SEGS: usize = 8;

/// The pieces of one operation.
pub(crate) type OpVecs = IoVecs<OP_SEGS>;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpKind {
    Read,
    Write,
    /// Write, and make what was written durable.
    WriteDsync,
    /// `fdatasync` of the range, or of all if its length is 0.
    Sync,
    /// `fallocate` of the range.
    Fallocate(Range),
    /// Discard of the range, on a block device.
    BlkDiscard,
}

/// One operation. It borrows what it needs to be started; who starts it keeps file, pieces and memory until its end.
pub(crate) struct DataOp<'a> {
    pub(crate) kind: OpKind,
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) iov: &'a OpVecs,
    pub(crate) pos: u64,
    /// Bytes of the range, for what has no data.
    pub(crate) len: usize,
}
