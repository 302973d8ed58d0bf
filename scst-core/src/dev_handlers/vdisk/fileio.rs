//! The data of a file device: cached reads and buffered writes inline, the rest by the file's engine ([`kshim::fs::Engine`]),
//! or on the device's threads if that is `threads`.
//!
//! DIFFERS: a flush is an fdatasync, and a FUA write an O_DSYNC write of its range (or a write and an fdatasync of its range), with O_DIRECT too; SCST writes back a range of pages
//! that it computes wrongly, never flushes the disk's own cache, and with O_DIRECT does nothing. DIFFERS: the failure of a flush,
//! with IMMED too, is told at all flushes from then on, until the file is opened again; SCST tells it once or, with IMMED, never. DIFFERS: `write_through` makes each write an O_DSYNC write; SCST opens the file with
//! O_DSYNC, and again when MODE SELECT switches the cache.
//!
//! C source: `fileio_exec_read`, `fileio_exec_write`, `__vdisk_fsync_fileio` of `scst/src/dev_handlers/scst_vdisk.c`

use super::VdiskParams;
use super::breaker::Breaker;
use super::handler::apply;
use super::mapped::MapGate;
use super::store::{read_outcome, write_outcome};
use super::walk::Lane;
use crate::cmd::Cmd;
use crate::core::cmd_done;
use kshim::error::{Result, code};
use kshim::fs::{Engine, File, IoEnd, IoFile, IoOp, IoReq, KiocbFlags, OpenOptions};
use kshim::scatterlist::SGTable;
use std::path::Path;
use std::sync::Arc;

/// Larger transfers are never done on a reactor, however fast the file is: others wait meanwhile.
const INLINE_MAX: usize = 1024 * 1024;

/// An open file.
#[derive(Debug)]
pub(super) struct FileStore {
    io: Arc<IoFile>,
    size_at_open: u64,
    breaker: Breaker,
    mapped: MapGate,
    /// Shared by the requests of the engine.
    end: Arc<CmdEnd>,
}

/// What became of an attempt to do I/O without sleeping.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inline {
    /// Done, one way or the other.
    Done(Result),
    /// It takes a thread, or the engine.
    WouldBlock,
}

/// Ends commands whose requests the engine is done with.
#[derive(Debug)]
struct CmdEnd {
    /// The file's path, for the log.
    path: String,
}

impl IoEnd for CmdEnd {
    fn io_done(&self, req: IoReq, res: Result) {
        let (op, pos, path) = (req.op, req.pos, &self.path);
        if let Err(e) = res {
            kshim::pr_err_ratelimited!("{path}: {op:?} at {pos} failed: {e}");
        }
        // A flush that nobody waits for has none.
        let cmd = req.private.and_then(|p| p.downcast::<Cmd>().ok());
        let Some(mut cmd) = cmd else { return };
        if op.has_data() {
            *cmd.sg_mut() = req.sg;
        }
        if let Err(e) = res {
            let outcome = if op == IoOp::Read {
                read_outcome(e)
            } else {
                write_outcome(e)
            };
            apply(&mut cmd, outcome);
        }
        cmd_done(cmd);
    }
}

impl FileStore {
    /// Opens the file. Context: may sleep.
    pub(super) fn open(path: &Path, p: &VdiskParams) -> Result<Self> {
        let options = OpenOptions::new().read_only(p.read_only).direct(p.o_direct);
        let io = IoFile::open(path, &options, p.engine)?;
        let size_at_open = io.file().size()?;
        Ok(Self {
            io,
            size_at_open,
            breaker: Breaker::default(),
            mapped: MapGate::default(),
            end: Arc::new(CmdEnd {
                path: path.display().to_string(),
            }),
        })
    }

    #[inline]
    fn file(&self) -> &File {
        self.io.file()
    }

    pub(super) fn size_at_open(&self) -> u64 {
        self.size_at_open
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.file().size()
    }

    pub(super) fn dio_align(&self) -> u32 {
        u32::try_from(self.file().dio_align()).unwrap_or(u32::MAX)
    }

    /// Whether what would block goes to the engine, not to a thread of the device.
    #[inline]
    pub(super) fn has_engine(&self) -> bool {
        self.io.is_async()
    }

    /// Whether the engine makes single ranges durable: then a durable write is one into the page cache, and a flush of its range.
    #[inline]
    pub(super) fn flushes_ranges(&self) -> bool {
        self.io.engine() == Engine::Uring && !self.file().is_direct()
    }

    /// For plans that the engine carries out. Context: any.
    pub(super) fn lane(&self) -> Option<Lane> {
        self.has_engine().then(|| Lane::File(Arc::clone(&self.io)))
    }

    /// Gives a command's read, write or flush to the engine, which completes it. Context: reactor; never sleeps.
    pub(super) fn submit(&self, mut cmd: Box<Cmd>, op: IoOp, pos: u64, len: usize) {
        if matches!(op, IoOp::Flush | IoOp::FlushRange | IoOp::WriteDurable) {
            self.mapped.flush();
        }
        let end = Arc::clone(&self.end) as Arc<dyn IoEnd>;
        let mut req = IoReq::new(op, pos, len, end);
        if op.has_data() {
            req.sg = std::mem::take(cmd.sg_mut());
        }
        req.private = Some(cmd);
        self.io.submit(req);
    }

    /// Whether a transfer may be tried on a reactor at all.
    #[inline]
    fn inline_wanted(&self, len: usize) -> bool {
        len <= INLINE_MAX && !self.file().is_direct()
    }

    /// Reads if that needs no waiting: from the page cache where the file system can tell, else (memory file systems)
    /// simply, as long as that is fast. Context: reactor.
    #[inline]
    pub(super) fn read_inline(&self, pos: u64, sg: &mut SGTable, len: usize) -> Inline {
        if !self.inline_wanted(len) {
            return Inline::WouldBlock;
        }
        let r = if self.file().supports_nowait_read() {
            self.file().read_sg(sg, 0, len, pos, KiocbFlags::NOWAIT)
        } else if self.breaker.is_open() {
            return Inline::WouldBlock;
        } else {
            self.breaker
                .watch(|_| self.file().read_sg(sg, 0, len, pos, KiocbFlags::empty()))
        };
        match r {
            Ok(n) if n == len => Inline::Done(Ok(())),
            // Short: the rest is not cached, or the file has become shorter; a thread finds out.
            Ok(_) | Err(code::EAGAIN | code::EOPNOTSUPP) => Inline::WouldBlock,
            Err(e) => Inline::Done(Err(e)),
        }
    }

    /// Writes into the page cache, as long as that is fast. Context: reactor.
    #[inline]
    pub(super) fn write_inline(&self, pos: u64, sg: &SGTable, len: usize) -> Inline {
        if !self.inline_wanted(len) || self.breaker.is_open() {
            return Inline::WouldBlock;
        }
        let write = |now| {
            if self.mapped.wants(now, len) && self.file().write_cached(sg, 0, len, pos) {
                return Ok(len);
            }
            self.file().write_sg(sg, 0, len, pos, KiocbFlags::empty())
        };
        Inline::Done(self.breaker.watch(write).and_then(|n| whole(n, len)))
    }

    pub(super) fn read_sync(&self, pos: u64, sg: &mut SGTable, len: usize) -> Result {
        self.io.read(sg, 0, len, pos)
    }

    pub(super) fn write_sync(&self, pos: u64, sg: &SGTable, len: usize, durable: bool) -> Result {
        if durable {
            self.mapped.flush();
        }
        self.io.write(sg, 0, len, pos, durable)
    }

    /// Copies a range of another file by the file system; answers how much of it. Context: may sleep.
    pub(super) fn copy_from(&self, src: &Self, src_pos: u64, pos: u64, len: u64) -> Result<u64> {
        if self.file().is_direct() || src.file().is_direct() {
            return Err(code::EOPNOTSUPP);
        }
        self.file().copy_range(src.file(), src_pos, pos, len)
    }

    /// Makes what was written durable; fails if that ever failed. Context: may sleep.
    pub(super) fn flush(&self) -> Result {
        self.mapped.flush();
        self.io.flush()
    }

    /// A flush for which nobody waits (IMMED): a failure is told by the next one. Context: any; sleeps without an engine.
    pub(super) fn flush_in_background(&self) {
        if self.has_engine() {
            self.mapped.flush();
            let end = Arc::clone(&self.end) as Arc<dyn IoEnd>;
            self.io.submit(IoReq::new(IoOp::Flush, 0, 0, end));
        } else if let Err(e) = self.flush() {
            kshim::pr_err_ratelimited!("{}: flush failed: {e}", self.file().path().display());
        }
    }

    pub(super) fn punch_hole(&self, pos: u64, len: u64) -> Result {
        self.file().punch_hole(pos, len)
    }

    /// Whether there is data at `pos`, and up to where at most `end` that is so. A file system that does not know has data
    /// everywhere. Context: may sleep.
    pub(super) fn extent(&self, pos: u64, end: u64) -> Result<(bool, u64)> {
        let data = match self.file().seek_data(pos) {
            Ok(Some(data)) => data,
            Ok(None) => return Ok((false, end)),
            Err(code::EINVAL | code::EOPNOTSUPP) => return Ok((true, end)),
            Err(e) => return Err(e),
        };
        if data > pos {
            return Ok((false, data.min(end)));
        }
        let hole = self.file().seek_hole(pos)?.unwrap_or(end);
        Ok((
            true,
            hole.clamp(pos.saturating_add(1), end.max(pos.saturating_add(1))),
        ))
    }

    /// Bytes for which the file system has storage. Context: may sleep.
    pub(super) fn allocated(&self) -> Result<u64> {
        self.file().allocated()
    }

    pub(super) fn zero_range(&self, pos: u64, len: u64) -> Result {
        self.file().zero_range(pos, len)
    }
}

/// A short transfer that is not an error of the host: the file ends there.
fn whole(n: usize, len: usize) -> Result {
    if n == len { Ok(()) } else { Err(code::EIO) }
}
