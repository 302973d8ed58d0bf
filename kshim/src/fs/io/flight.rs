//! Requests in the hands of the host, and the table that keeps their memory.

use std::sync::Arc;

use super::file::is_write_back;
use super::{Engine, IoFile, IoOp, IoReq};
use crate::error::{Error, Result, code};
use crate::page::check_range;
use crate::scatterlist::SGTable;
use crate::sys::aio::AioContext;
use crate::sys::dataop::{DataOp, OpKind, OpVecs};
use crate::sys::linux::file::Range;
use crate::sys::ring::{MAX_DATA_OPS, PollRing};

/// A request, from its submission to its end.
pub(crate) struct Flight {
    /// The file, until the end.
    file: Arc<IoFile>,
    req: IoReq,
    /// Aligned memory in place of the request's.
    bounce: Option<SGTable>,
    /// How much is done.
    done: usize,
    /// The data is written first, and then made durable.
    in_two: bool,
    /// It is written.
    written: bool,
    /// What is being done. Stays as it is while the host has it.
    iov: OpVecs,
}

/// What follows from an operation's end.
enum Step {
    /// There is more to do.
    Again,
    /// All is done, or it failed.
    End(Result),
    /// The engine cannot do it: a thread does it all.
    Thread,
}

/// A request that the host is done with.
pub(crate) struct Ended {
    flight: Box<Flight>,
    step: Step,
}

impl Flight {
    /// Prepares a request.
    ///
    /// Errors: `EINVAL`: less data than it says. `EFAULT`: memory that cannot be read into. `ENOMEM`.
    pub(super) fn new(
        file: &Arc<IoFile>,
        req: IoReq,
    ) -> core::result::Result<Box<Flight>, Box<(IoReq, Error)>> {
        match prepare(file, &req) {
            Ok(bounce) => Ok(Box::new(Flight {
                in_two: writes_in_two(file, req.op),
                written: false,
                file: Arc::clone(file),
                req,
                bounce,
                done: 0,
                iov: OpVecs::empty(),
            })),
            Err(e) => Err(Box::new((req, e))),
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.file.engine()
    }

    /// Has a thread of the file do it, from the start.
    pub(crate) fn defer(self: Box<Flight>) {
        let Flight { file, mut req, .. } = *self;
        let workers = Arc::clone(file.workers());
        workers.defer(move || {
            let res = file.execute(&mut req);
            tell(file, req, res);
        });
    }

    /// Gathers the pieces of what is left to do.
    fn next(&mut self) -> Result {
        if !self.moves_data() {
            self.iov.clear();
            return Ok(());
        }
        let (at, left) = (self.req.sg_at + self.done, self.req.len - self.done);
        let iov = &mut self.iov;
        iov.clear();
        let read = self.req.op == IoOp::Read;
        match &mut self.bounce {
            Some(b) if read => b.for_each_raw_mut(self.done, left, |p, n| iov.push(p, n)),
            Some(b) => b.for_each_raw(self.done, left, |p, n| iov.push(p.cast_mut(), n)),
            None if read => self
                .req
                .sg
                .for_each_raw_mut(at, left, |p, n| iov.push(p, n)),
            None => self
                .req
                .sg
                .for_each_raw(at, left, |p, n| iov.push(p.cast_mut(), n)),
        }
    }

    /// Whether what is to be done next moves data.
    fn moves_data(&self) -> bool {
        self.req.op.has_data() && !self.written
    }

    fn op(&self) -> DataOp<'_> {
        let on_device = self.file.file().is_block_device();
        let kind = match self.req.op {
            IoOp::Read => OpKind::Read,
            IoOp::WriteDurable if self.written => OpKind::Sync,
            IoOp::WriteDurable if !self.in_two => OpKind::WriteDsync,
            IoOp::Write | IoOp::WriteDurable => OpKind::Write,
            IoOp::Flush | IoOp::FlushRange => OpKind::Sync,
            IoOp::Discard if on_device => OpKind::BlkDiscard,
            IoOp::Discard => OpKind::Fallocate(Range::PunchHole),
            IoOp::WriteZeroes => OpKind::Fallocate(Range::Zero),
        };
        let done = if self.moves_data() { self.done } else { 0 };
        DataOp {
            kind,
            fd: self.file.file().as_fd(),
            iov: &self.iov,
            pos: self.req.pos.saturating_add(done as u64),
            len: self.req.len,
        }
    }

    /// Takes the host's answer: a count of bytes, or a negative errno.
    fn advance(&mut self, res: i32) -> Step {
        let Ok(n) = usize::try_from(res) else {
            let e = Error::from_errno(res.saturating_neg());
            return match e {
                // It would wait, or this cannot be done so here: the plain call tells what the matter is.
                code::EAGAIN | code::EOPNOTSUPP | code::EINVAL | code::EINTR | code::ENOSYS => {
                    Step::Thread
                }
                code::ECANCELED => Step::Thread,
                // Another open file has the device's claim: ours, which the plain call uses.
                code::EBUSY if !self.req.op.has_data() && self.file.file().is_block_device() => {
                    Step::Thread
                }
                e => Step::End(Err(e)),
            };
        };
        if !self.moves_data() {
            return Step::End(Ok(()));
        }
        self.done = self.done.saturating_add(n).min(self.req.len);
        if self.done == self.req.len && self.in_two {
            self.written = true;
            return Step::Again;
        }
        if self.done == self.req.len {
            return Step::End(Ok(()));
        }
        // The end of the file; for O_DIRECT also when the rest is no whole block.
        let align = self.file.file().dio_align();
        if n == 0 || !self.done.is_multiple_of(align) {
            return Step::End(Err(code::EIO));
        }
        Step::Again
    }
}

/// Tells the owner. The file is let go of before, so that an owner who closes it has it closed.
fn tell(file: Arc<IoFile>, req: IoReq, res: Result) {
    drop(file);
    let end = Arc::clone(&req.end);
    end.io_done(req, res);
}

/// Whether a durable write is a write and a flush of its range. The ring does the buffered writes of a file one after the
/// other, each with its wait for the disk if it is to be durable; flushes run side by side, and share what they wait for.
fn writes_in_two(file: &IoFile, op: IoOp) -> bool {
    op == IoOp::WriteDurable && file.engine() == Engine::Uring && !file.file().is_direct()
}

/// Checks a request, and answers aligned memory if it needs some.
fn prepare(file: &IoFile, req: &IoReq) -> Result<Option<SGTable>> {
    if !req.op.has_data() {
        req.pos.checked_add(req.len as u64).ok_or(code::EINVAL)?;
        return Ok(None);
    }
    check_range(req.sg_at, req.len, req.sg.len())?;
    req.pos.checked_add(req.len as u64).ok_or(code::EINVAL)?;
    // Some file systems go through the page cache then.
    let block = file.file().dio_align();
    if !req.len.is_multiple_of(block) || !req.pos.is_multiple_of(block as u64) {
        return Err(code::EINVAL);
    }
    if file.fits(&req.sg, req.sg_at, req.len)? {
        return Ok(None);
    }
    let mut bounce = SGTable::alloc(req.len)?;
    if req.op != IoOp::Read {
        bounce.copy_from_sg(0, &req.sg, req.sg_at, req.len)?;
    }
    Ok(Some(bounce))
}

impl Ended {
    /// Whether only a part is done.
    pub(crate) fn has_more(&self) -> bool {
        matches!(self.step, Step::Again)
    }

    /// Tells the owner, or has a thread go on. Context: reactor; never sleeps.
    pub(crate) fn finish(self) {
        let Ended { mut flight, step } = self;
        let res = match step {
            Step::End(res) => res,
            Step::Again | Step::Thread => return flight.defer(),
        };
        let res = match flight.req.op {
            IoOp::Flush => flight.file.flushed(res),
            IoOp::FlushRange => flight.file.range_flushed(res),
            IoOp::WriteDurable if flight.written => flight.file.range_flushed(res),
            IoOp::WriteDurable if flight.in_two => res,
            IoOp::WriteDurable => match res {
                Err(e) if e == code::EIO => {
                    flight.file.remember(e);
                    Err(e)
                }
                Err(e) if is_write_back(e) => return flight.judge(e),
                res => res,
            },
            IoOp::Read => match (res, flight.bounce.take()) {
                (Ok(()), Some(bounce)) => {
                    let (at, len) = (flight.req.sg_at, flight.req.len);
                    flight.req.sg.copy_from_sg(at, &bounce, 0, len)
                }
                (res, _) => res,
            },
            IoOp::Write | IoOp::Discard | IoOp::WriteZeroes => res,
        };
        let Flight { file, req, .. } = *flight;
        tell(file, req, res);
    }
}

impl Flight {
    /// A durable write failed: itself, or the write-back of an earlier one?
    #[cold]
    fn judge(self: Box<Flight>, e: Error) {
        let Flight { file, req, .. } = *self;
        let workers = Arc::clone(file.workers());
        workers.defer(move || {
            file.judge_failed_sync(&req, e);
            tell(file, req, Err(e));
        });
    }
}

/// What starts operations.
pub(crate) enum Starter<'a> {
    Ring(&'a mut PollRing),
    Aio(&'a mut AioContext),
}

/// The requests that one ring or context has, by number. Their memory is here until the host is done with it, and
/// for ever if it never is.
#[derive(Default)]
pub(crate) struct Flights {
    slots: Vec<Option<Box<Flight>>>,
    vacant: Vec<u32>,
}

impl Flights {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    fn vacant(&mut self) -> Option<u32> {
        if let Some(n) = self.vacant.pop() {
            return Some(n);
        }
        let n = u32::try_from(self.slots.len()).ok()?;
        if n >= MAX_DATA_OPS {
            return None;
        }
        self.slots.push(None);
        Some(n)
    }

    /// Starts a request. One that cannot be started comes back.
    pub(crate) fn start(
        &mut self,
        with: &mut Starter<'_>,
        mut flight: Box<Flight>,
    ) -> core::result::Result<(), Box<Flight>> {
        if flight.next().is_err() {
            return Err(flight);
        }
        let Some(number) = self.vacant() else {
            return Err(flight);
        };
        let op = flight.op();
        // SAFETY: file, pieces and memory belong to `flight`, which stays unchanged in `slots` until its end was told
        // (`ended`) or for ever (`drop`). Reads go to memory of a table that it owns; lent memory is never a reference.
        let started = unsafe {
            match with {
                Starter::Ring(ring) => ring.start(&op, number),
                Starter::Aio(aio) => aio.submit(&op, u64::from(number)),
            }
        };
        if started.is_err() {
            self.vacant.push(number);
            return Err(flight);
        }
        if let Some(slot) = self.slots.get_mut(number as usize) {
            *slot = Some(flight);
        }
        Ok(())
    }

    /// The host is done with a request, or a part of it: takes it out. Numbers that are nobody's give nothing.
    pub(crate) fn ended(&mut self, number: u32, res: i32) -> Option<Ended> {
        let mut flight = self.slots.get_mut(number as usize)?.take()?;
        self.vacant.push(number);
        let step = flight.advance(res);
        Some(Ended { flight, step })
    }

    /// Goes on with a request of which a part is done; others come back.
    pub(crate) fn go_on(&mut self, with: &mut Starter<'_>, ended: Ended) -> Option<Ended> {
        match ended.step {
            Step::Again => match self.start(with, ended.flight) {
                Ok(()) => None,
                Err(flight) => Some(Ended {
                    flight,
                    step: Step::Thread,
                }),
            },
            _ => Some(ended),
        }
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        if self.len() > 0 {
            crate::pr_err!("BUG: {} requests never ended in the host", self.len());
        }
        for flight in self.slots.drain(..).flatten() {
            std::mem::forget(flight);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::fs::OpenOptions;

    /// What a flush says after the host has answered a durable write so.
    fn flush_after(said: Error) -> Result {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(1 << 16).unwrap();
        let file = IoFile::open(t.path(), &OpenOptions::new(), Some(Engine::Threads)).unwrap();
        let (tx, rx) = channel();
        let end = Arc::new(move |_: IoReq, res: Result| tx.send(res).unwrap());
        let sg = SGTable::alloc_zeroed(512).unwrap();
        let req = IoReq::new(IoOp::WriteDurable, 0, 512, end).with_sg(sg, 0);
        let mut flight = Flight::new(&file, req).map_err(|_| ()).unwrap();
        let step = flight.advance(-said.errno());
        Ended { flight, step }.finish();
        assert_eq!(rx.recv().unwrap(), Err(said));
        file.flush()
    }

    #[test]
    fn a_durable_write_that_consumes_the_error_of_another_has_flushes_fail() {
        for said in [
            code::EIO,
            code::ENOSPC,
            code::ENODATA,
            code::ETIMEDOUT,
            code::ENOLINK,
            code::EREMOTEIO,
            code::ENXIO,
        ] {
            assert_eq!(flush_after(said), Err(said));
        }
        for said in [code::EFBIG, code::EROFS, code::EPERM, code::ENOMEM] {
            assert_eq!(flush_after(said), Ok(()));
        }
    }
}
