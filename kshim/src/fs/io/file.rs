//! Files with an engine.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use once_cell::sync::OnceCell;

use super::flight::Flight;
use super::{Engine, IoOp, IoReq};
use crate::block::BlockWorkers;
use crate::error::{Error, Result, code};
use crate::fs::{File, KiocbFlags, OpenOptions};
use crate::scatterlist::SGTable;

/// A file, the engine that does its I/O, and what became of its flushes.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("disk.img");
/// use kshim::fs::{Engine, IoFile, IoOp, IoReq, OpenOptions};
/// use kshim::scatterlist::SGTable;
/// use std::sync::{Arc, mpsc};
///
/// let file = IoFile::open(&path, &OpenOptions::new().create(true), Some(Engine::Threads))?;
/// file.write(&SGTable::alloc_zeroed(4096)?, 0, 4096, 0, true)?;
/// let (tx, rx) = mpsc::channel();
/// let end = Arc::new(move |req: IoReq, res| tx.send((req, res)).unwrap());
/// file.submit(IoReq::new(IoOp::Read, 0, 4096, end).with_sg(SGTable::alloc(4096)?, 0));
/// let (req, res) = rx.recv().unwrap();
/// assert_eq!((res, req.sg.compare(0, &[0; 4096])?), (Ok(()), None));
/// # Ok::<(), kshim::error::Error>(())
/// ```
pub struct IoFile {
    file: File,
    engine: Engine,
    /// Outlives the file for a moment: what it runs may close the file.
    workers: Arc<BlockWorkers>,
    /// The first failed write-back.
    lost: OnceCell<Error>,
}

impl IoFile {
    /// Opens a file for an engine; `None`: that of the process ([`Engine::set_default`]).
    ///
    /// Context: may sleep. Errors: those of [`File::open`] and [`Engine::choose`].
    pub fn open(
        path: impl AsRef<Path>,
        options: &OpenOptions,
        engine: Option<Engine>,
    ) -> Result<Arc<IoFile>> {
        let engine = Engine::choose(engine)?;
        Ok(Arc::new(IoFile {
            file: File::open(path, options)?,
            engine,
            workers: Arc::new(BlockWorkers::new()),
            lost: OnceCell::new(),
        }))
    }

    /// The file itself. What is done to it directly waits, and its failures are not remembered.
    #[inline]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The engine.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Whether the host does [`IoFile::submit`] without a thread of this process (when it is called on a reactor).
    #[inline]
    pub fn is_async(&self) -> bool {
        match self.engine {
            Engine::Uring => true,
            Engine::Aio => self.file.is_direct(),
            Engine::Threads => false,
        }
    }

    /// Whether a part of a table can go to the file as it is.
    pub(super) fn fits(&self, sg: &SGTable, at: usize, len: usize) -> Result<bool> {
        let (mem, block) = (self.file.dio_mem_align(), self.file.dio_align());
        if block == 1 {
            return Ok(true);
        }
        let mut fits = true;
        sg.for_each_raw(at, len, |p, n| {
            fits = p.addr().is_multiple_of(mem) && n.is_multiple_of(block);
            fits
        })?;
        Ok(fits)
    }

    /// Reads `len` bytes at `pos` into `sg` from its byte `at` on.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EIO`: the file ends before. `EINVAL`: position or length are not aligned, and the file was opened with O_DIRECT. Others:
    /// those of [`File::read_sg`].
    pub fn read(&self, sg: &mut SGTable, at: usize, len: usize, pos: u64) -> Result {
        let none = KiocbFlags::empty();
        let n = if self.fits(sg, at, len)? {
            self.file.read_sg(sg, at, len, pos, none)?
        } else {
            let mut bounce = SGTable::alloc(len)?;
            let n = self.file.read_sg(&mut bounce, 0, len, pos, none)?;
            sg.copy_from_sg(at, &bounce, 0, n)?;
            n
        };
        if n == len { Ok(()) } else { Err(code::EIO) }
    }

    /// Writes `len` bytes of `sg` from its byte `at` on to `pos`; with `durable`, they survive a crash once this returns.
    ///
    /// Context: may sleep. Errors: as [`IoFile::read`], and those of [`File::write_sg`].
    pub fn write(&self, sg: &SGTable, at: usize, len: usize, pos: u64, durable: bool) -> Result {
        if self.fits(sg, at, len)? {
            return self.write_fitting(sg, at, len, pos, durable);
        }
        let mut bounce = SGTable::alloc(len)?;
        bounce.copy_from_sg(0, sg, at, len)?;
        self.write_fitting(&bounce, 0, len, pos, durable)
    }

    fn write_fitting(
        &self,
        sg: &SGTable,
        at: usize,
        len: usize,
        pos: u64,
        durable: bool,
    ) -> Result {
        let write = |flags| match self.file.write_sg(sg, at, len, pos, flags) {
            Ok(n) if n == len => Ok(()),
            Ok(_) => Err(code::EIO),
            Err(e) => Err(e),
        };
        if !durable {
            return write(KiocbFlags::empty());
        }
        match write(KiocbFlags::DSYNC) {
            Err(code::EOPNOTSUPP) => {
                write(KiocbFlags::empty())?;
                self.flush()
            }
            Err(e) => {
                // The write failed, or the sync after it, perhaps with the error of an earlier write: then
                // it was reported here and to nobody else. Without the sync only the former fails.
                self.judge(e, || write(KiocbFlags::empty()));
                Err(e)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Makes what was written before durable.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// What the host said the first time that it failed, since the file was opened: what was written before may be lost, and a
    /// later flush that succeeds says nothing about it.
    #[doc(alias = "vfs_fsync")]
    pub fn flush(&self) -> Result {
        let res = self.file.fdatasync();
        self.flushed(res)
    }

    /// What a flush says that the host answered so.
    pub(super) fn flushed(&self, res: Result) -> Result {
        self.range_flushed(res)?;
        self.lost.get().map_or(Ok(()), |lost| Err(*lost))
    }

    /// What a flush of a range says that the host answered so.
    pub(super) fn range_flushed(&self, res: Result) -> Result {
        if let Err(e) = res
            && e != code::EINVAL
            && e != code::EROFS
        {
            self.remember(e);
        }
        res
    }

    /// Gives the blocks of a range back: a file reads as zeros there after, a device as it likes.
    ///
    /// Context: may sleep. Errors: those of [`File::punch_hole`] and [`File::blk_discard`].
    #[doc(alias = "blkdev_issue_discard")]
    pub fn discard(&self, pos: u64, len: u64) -> Result {
        match (len, self.file.is_block_device()) {
            (0, _) => Ok(()),
            (_, true) => self.file.blk_discard(pos, len),
            (_, false) => self.file.punch_hole(pos, len),
        }
    }

    /// Has a range read as zeros, without data of ours. The blocks stay where possible.
    ///
    /// Context: may sleep. Errors: those of [`File::zero_range`] and [`File::blk_zeroout`].
    #[doc(alias = "blkdev_issue_zeroout")]
    pub fn zero(&self, pos: u64, len: u64) -> Result {
        match (len, self.file.is_block_device()) {
            (0, _) => Ok(()),
            // A device without a command for it gets zeros written by the host.
            (_, true) => self.file.blk_zeroout(pos, len),
            (_, false) => self.file.zero_range(pos, len),
        }
    }

    /// A write-back has failed: all flushes from now on say so.
    pub(super) fn remember(&self, e: Error) {
        if self.lost.set(e).is_ok() {
            crate::pr_err!(
                "{}: write-back failed, data may be lost: {e}",
                self.file.path().display()
            );
        }
    }

    /// Has a write-back failed?
    pub fn write_back_error(&self) -> Option<Error> {
        self.lost.get().copied()
    }

    /// Starts a request. Its end is told to [`IoEnd::io_done`](super::IoEnd::io_done), exactly once, never inside
    /// this call unless the host has no thread to give.
    ///
    /// Context: reactor-safe; any thread.
    pub fn submit(self: &Arc<Self>, req: IoReq) {
        let flight = match Flight::new(self, req) {
            Ok(flight) => flight,
            Err(refused) => {
                let (req, e) = *refused;
                let end = Arc::clone(&req.end);
                return self.workers.defer(move || end.io_done(req, Err(e)));
            }
        };
        let queued = if self.is_async() {
            crate::reactor::queue_io(flight)
        } else {
            Err(flight)
        };
        if let Err(flight) = queued {
            flight.defer();
        }
    }

    pub(super) fn workers(&self) -> &Arc<BlockWorkers> {
        &self.workers
    }

    /// Does a request.
    ///
    /// Context: may sleep.
    pub(super) fn execute(&self, req: &mut IoReq) -> Result {
        let (at, len, pos) = (req.sg_at, req.len, req.pos);
        match req.op {
            IoOp::Read => self.read(&mut req.sg, at, len, pos),
            IoOp::Write => self.write(&req.sg, at, len, pos, false),
            IoOp::WriteDurable => self.write(&req.sg, at, len, pos, true),
            IoOp::Flush => self.flush(),
            IoOp::FlushRange => self.range_flushed(self.file.sync_range_dsync(pos, len as u64)),
            IoOp::Discard => self.discard(pos, len as u64),
            IoOp::WriteZeroes => self.zero(pos, len as u64),
        }
    }

    /// A durable write failed in the host, with `e`, of which [`is_write_back`] says that it may be another's. Context: may sleep.
    pub(super) fn judge_failed_sync(&self, req: &IoReq, e: Error) {
        self.judge(e, || {
            self.write(&req.sg, req.sg_at, req.len, req.pos, false)
        });
    }

    /// Remembers why a durable write failed, unless it was the write itself: then `again`, without the sync, fails, too.
    fn judge(&self, e: Error, again: impl FnOnce() -> Result) {
        if is_write_back(e) && (e == code::EIO || again().is_ok()) {
            self.remember(e);
        }
    }
}

/// Whether a write that is to be durable may have failed for the write-back of others.
///
/// File systems keep what the disk said, whatever it was (ENODATA for a medium error, ENOLINK for a lost path, ETIMEDOUT, ...), and
/// tell it once. These are errors of the call.
pub(super) fn is_write_back(e: Error) -> bool {
    !matches!(
        e,
        code::EINVAL
            | code::EOPNOTSUPP
            | code::EFBIG
            | code::EFAULT
            | code::EBADF
            | code::EROFS
            | code::EAGAIN
            | code::ENOMEM
            | code::EPERM
            | code::EINTR
    )
}

impl fmt::Debug for IoFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoFile")
            .field("file", &self.file)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_write_back_is_told_until_reopened() {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(1 << 16).unwrap();
        let open = || IoFile::open(t.path(), &OpenOptions::new(), None).unwrap();
        let file = open();
        assert_eq!((file.flush(), file.write_back_error()), (Ok(()), None));
        file.remember(code::ENOSPC);
        file.remember(code::EIO);
        for _ in 0..3 {
            assert_eq!(file.flush(), Err(code::ENOSPC));
        }
        let sg = SGTable::alloc_zeroed(512).unwrap();
        assert_eq!(file.write(&sg, 0, 512, 0, true), Ok(()));
        assert_eq!(file.write_back_error(), Some(code::ENOSPC));
        assert_eq!(open().flush(), Ok(()));
        // What says that there is nothing to flush loses nothing.
        let file = open();
        assert_eq!(file.flushed(Err(code::EINVAL)), Err(code::EINVAL));
        assert_eq!(file.flush(), Ok(()));
    }

    #[test]
    fn only_a_write_that_works_without_its_sync_tells_of_another() {
        let t = tempfile::NamedTempFile::new().unwrap();
        let file = IoFile::open(t.path(), &OpenOptions::new(), None).unwrap();
        file.judge(code::ENODATA, || Err(code::ENODATA));
        file.judge(code::EFBIG, || unreachable!("its own"));
        assert_eq!(file.write_back_error(), None);
        file.judge(code::ENODATA, || Ok(()));
        assert_eq!(file.flush(), Err(code::ENODATA));
    }

    #[test]
    fn what_is_not_aligned_is_copied() {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(1 << 16).unwrap();
        let Ok(file) = IoFile::open(t.path(), &OpenOptions::new().direct(true), None) else {
            return;
        };
        let block = file.file().dio_align();
        let mut sg = SGTable::alloc(2 * block + 7).unwrap();
        sg.fill(0, 2 * block + 7, 0x5A).unwrap();
        assert_eq!(file.write(&sg, 7, 2 * block, 0, true), Ok(()));
        let mut back = SGTable::alloc_zeroed(2 * block + 3).unwrap();
        assert_eq!(file.read(&mut back, 3, 2 * block, 0), Ok(()));
        assert_eq!(back.compare_sg(3, &sg, 7, 2 * block), Ok(None));
        assert_eq!(file.read(&mut back, 3, block, 1), Err(code::EINVAL));
        assert_eq!(file.read(&mut back, 0, block, 1 << 16), Err(code::EIO));
    }

    #[test]
    fn engines_have_names_and_the_default_can_be_asked_for() {
        for e in Engine::ALL {
            assert_eq!(e.name().parse(), Ok(e));
            match e.probe() {
                Ok(()) => assert_eq!(Engine::choose(Some(e)), Ok(e)),
                Err(_) => assert_eq!(Engine::choose(Some(e)), Err(code::EOPNOTSUPP)),
            }
        }
        assert_eq!("io_uring".parse::<Engine>(), Err(code::EINVAL));
    }
}
