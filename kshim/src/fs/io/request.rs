//! Requests.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::scatterlist::SGTable;

/// What an [`IoReq`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoOp {
    /// Read into the table.
    #[doc(alias = "IOCB_CMD_PREADV")]
    Read,
    /// Write what is in the table.
    #[doc(alias = "IOCB_CMD_PWRITEV")]
    Write,
    /// Write what is in the table, and make it durable.
    #[doc(alias = "RWF_DSYNC")]
    WriteDurable,
    /// Make durable what was written before.
    #[doc(alias = "IOCB_CMD_FDSYNC")]
    Flush,
    /// Make durable what was written to a range before, at least; says nothing of what an earlier flush has lost.
    #[doc(alias = "vfs_fsync_range")]
    FlushRange,
    /// Give the blocks of a range back.
    #[doc(alias = "FALLOC_FL_PUNCH_HOLE")]
    #[doc(alias = "BLKDISCARD")]
    Discard,
    /// Have a range read as zeros, and keep its blocks.
    #[doc(alias = "FALLOC_FL_ZERO_RANGE")]
    #[doc(alias = "BLKZEROOUT")]
    WriteZeroes,
}

impl IoOp {
    /// Whether the request has data.
    pub fn has_data(self) -> bool {
        matches!(self, IoOp::Read | IoOp::Write | IoOp::WriteDurable)
    }
}

/// Who hears of the end of a request.
pub trait IoEnd: Send + Sync {
    /// The request has ended: all of it is done, or it failed. It comes back with its table and private part.
    ///
    /// Called exactly once for each submitted request, after the submit has returned, on the reactor that submitted it or on a
    /// thread; it must not block. The request holds the file no longer.
    ///
    /// The errors are those of [`IoFile::read`](super::IoFile::read), [`write`](super::IoFile::write),
    /// [`flush`](super::IoFile::flush), [`discard`](super::IoFile::discard) and [`zero`](super::IoFile::zero).
    #[doc(alias = "ki_complete")]
    fn io_done(&self, req: IoReq, res: Result);
}

impl<F: Fn(IoReq, Result) + Send + Sync> IoEnd for F {
    fn io_done(&self, req: IoReq, res: Result) {
        self(req, res);
    }
}

/// One read, write, flush or change without data of an [`IoFile`](super::IoFile).
///
/// C header: `include/linux/fs.h` (`struct kiocb`)
#[doc(alias = "kiocb")]
pub struct IoReq {
    /// What to do.
    pub op: IoOp,
    /// Where in the file, in bytes.
    #[doc(alias = "ki_pos")]
    pub pos: u64,
    /// How many bytes; 0 for a flush of the whole file.
    pub len: usize,
    /// The data.
    pub sg: SGTable,
    /// Where in `sg` it begins.
    pub sg_at: usize,
    /// For the owner.
    pub private: Option<Box<dyn Any + Send>>,
    /// Who hears of the end.
    pub end: Arc<dyn IoEnd>,
}

impl IoReq {
    /// A request without data or private part.
    ///
    /// Context: any.
    pub fn new(op: IoOp, pos: u64, len: usize, end: Arc<dyn IoEnd>) -> IoReq {
        IoReq {
            op,
            pos,
            len,
            sg: SGTable::new(),
            sg_at: 0,
            private: None,
            end,
        }
    }

    /// Sets the data: `len` bytes of `sg` from `at` on.
    #[must_use]
    pub fn with_sg(mut self, sg: SGTable, at: usize) -> IoReq {
        self.sg = sg;
        self.sg_at = at;
        self
    }
}

impl fmt::Debug for IoReq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoReq")
            .field("op", &self.op)
            .field("pos", &self.pos)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
