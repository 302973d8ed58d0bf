//! An io_uring that watches descriptors by multishot polls, and reads and writes files.
//!
//! [`PollRing`] offers what [`Epoll`](super::poll::Epoll) offers, by other means: each watched descriptor has one
//! multishot `POLL_ADD` in the ring, which reports every readiness edge as a completion. A completion without
//! `IORING_CQE_F_MORE` means that the kernel gave the poll up (the completion queue was full, or an error); the caller
//! is told and arms it again, which looks at the descriptor afresh, so no edge is lost.
//!
//! Polls own no buffers, and the timeout of a wait is read before the call returns. Data operations ([`PollRing::start`]) do
//! give memory to the kernel: the table of what is in flight is their starter's ([`crate::fs`]), which names each by a
//! number and keeps its memory until that number comes back.
//!
//! The ring belongs to the thread that made it (`IORING_SETUP_SINGLE_ISSUER`, and deferred task work where the kernel
//! has it), hence `!Send`.
//!
//! Kernel counterpart: `io_uring/poll.c`, `include/uapi/linux/io_uring.h`.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};

use super::dataop::{DataOp, OpKind};
use super::poll::{EventFd, PollFd, Timeout, bits};
use crate::error::{Error, Result, code};

/// Submission slots: adding and removing polls is rare, and a full queue is submitted at once.
const SQ_ENTRIES: u32 = 256;
/// Completion slots: one burst of events per round. More are kept by the kernel (`IORING_FEAT_NODROP`).
const CQ_ENTRIES: u32 = 4096;
/// `user_data` of requests whose completion nobody waits for.
const KEY_IGNORED: u64 = u64::MAX - 1;

// From include/uapi/linux/io_uring.h.
const IORING_ENTER_GETEVENTS: u32 = 1 << 0;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;
const IORING_ENTER_NO_IOWAIT: u32 = 1 << 7;

/// From include/uapi/linux/blkdev.h (6.12): `_IO(0x12, 0)`.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_sz: u32,
    min_wait_usec: u32,
    ts: u64,
}

/// Keys of data operations have the upper of these two bits, and not the lower; polls (whose lower half is an index far below
/// both, or all ones) and [`KEY_IGNORED`] never do.
const KEY_DATA: u64 = 1 << 31;
const KEY_NOT_DATA: u64 = 1 << 30;

/// Numbers of data operations are below this.
pub(crate) const MAX_DATA_OPS: u32 = 1 << 16;

/// What a completion says about a watched descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollCqe {
    /// The descriptor is ready for these [`bits`]; the poll stays armed.
    Ready(u32),
    /// Ready for these bits, and the poll has ended: arm it again.
    Ended(u32),
    /// The poll was cancelled (ECANCELED) or failed with this positive errno; it is gone.
    Failed(i32),
}

/// A ring of multishot polls. See the module's documentation.
pub(crate) struct PollRing {
    ring: IoUring,
    enter_flags: u32,
    // SINGLE_ISSUER: only the creating thread may enter.
    _not_send: PhantomData<*const ()>,
}

impl core::fmt::Debug for PollRing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PollRing").finish_non_exhaustive()
    }
}

impl PollRing {
    /// Makes a ring for the calling thread and checks that the kernel does what we need.
    ///
    /// Errors: ENOSYS or EPERM (io_uring is switched off or filtered), EOPNOTSUPP (a kernel before 5.13, without
    /// multishot poll, or without timeouts as arguments), EMFILE, ENOMEM.
    pub(crate) fn new() -> Result<PollRing> {
        let ring = Self::build()?;
        let p = ring.params();
        if !p.is_feature_nodrop() || !p.is_feature_ext_arg() || !p.is_feature_poll_32bits() {
            return Err(Error::from_errno(libc::EOPNOTSUPP));
        }
        let mut enter_flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
        if p.is_feature_no_iowait() {
            // A sleeping server is idle, not waiting for a disk.
            enter_flags |= IORING_ENTER_NO_IOWAIT;
        }
        let mut ring = PollRing {
            ring,
            enter_flags,
            _not_send: PhantomData,
        };
        ring.probe_multishot()?;
        Ok(ring)
    }

    /// The best set-up flags first; each older kernel refuses with EINVAL what it does not know.
    fn build() -> Result<IoUring> {
        let mut last = code::EINVAL;
        for level in 0..3 {
            let mut b = IoUring::builder();
            b.dontfork().setup_cqsize(CQ_ENTRIES).setup_clamp();
            match level {
                0 => {
                    b.setup_coop_taskrun()
                        .setup_single_issuer()
                        .setup_defer_taskrun();
                    b.setup_taskrun_flag().setup_submit_all();
                }
                1 => {
                    b.setup_coop_taskrun().setup_taskrun_flag();
                }
                _ => {}
            }
            match b.build(SQ_ENTRIES) {
                Ok(ring) => return Ok(ring),
                Err(e) => last = Error::from(e),
            }
            if last != code::EINVAL {
                break;
            }
        }
        Err(last)
    }

    /// Multishot poll came without a feature bit of its own: try it on an eventfd that is ready.
    fn probe_multishot(&mut self) -> Result {
        const KEY_PROBE: u64 = 1;
        let ev = EventFd::new()?;
        ev.signal();
        self.add(&ev.poll_fd(), KEY_PROBE)?;
        self.enter(Timeout::Nanos(1_000_000_000))?;
        let mut works = false;
        self.drain(
            |key, cqe| works |= key == KEY_PROBE && matches!(cqe, PollCqe::Ready(_)),
            |_, _| (),
        );
        if !works {
            return Err(Error::from_errno(libc::EOPNOTSUPP));
        }
        self.remove(KEY_PROBE)?;
        self.flush()?;
        self.drain(|_, _| (), |_, _| ());
        Ok(())
    }

    /// Queues a multishot poll for all readiness edges of `fd`, reported with `key` (below `u64::MAX - 1`).
    ///
    /// The request takes its own reference of the open file when it is submitted, at the latest by the next
    /// [`enter`](Self::enter); the caller keeps `fd` open until then.
    ///
    /// Errors: those of submitting a full queue (EBUSY, ENOMEM).
    pub(crate) fn add(&mut self, fd: &PollFd, key: u64) -> Result {
        let raw = fd.as_fd().as_raw_fd();
        self.push(
            &opcode::PollAdd::new(types::Fd(raw), bits::ALL)
                .multi(true)
                .build()
                .user_data(key),
        )
    }

    /// Queues the end of the poll with this key; its completion, if any, comes as [`PollCqe::Failed`] with ECANCELED.
    pub(crate) fn remove(&mut self, key: u64) -> Result {
        // Not POLL_REMOVE: that one fails with EALREADY and leaves the poll armed when an edge is just being handled.
        let e = opcode::AsyncCancel::new(key).build().user_data(KEY_IGNORED);
        let skip = self.ring.params().is_feature_skip_cqe_on_success();
        self.push(&if skip {
            e.flags(Flags::SKIP_SUCCESS)
        } else {
            e
        })
    }

    /// Queues a data operation, which is submitted by the next [`enter`](Self::enter) or [`flush`](Self::flush). Its end is told
    /// by [`drain`](Self::drain) with `number`, which is below [`MAX_DATA_OPS`] and no other's in flight.
    ///
    /// Errors: those of submitting a full queue (EBUSY, ENOMEM); nothing was queued.
    ///
    /// # Safety
    ///
    /// File, pieces and memory stay until the end has been told, and beyond the life of the ring if it was not; and the
    /// memory may be read (written, for a read) without anyone holding a reference to it.
    pub(crate) unsafe fn start(&mut self, op: &DataOp<'_>, number: u32) -> Result {
        let fd = types::Fd(op.fd.as_raw_fd());
        let iov = op.iov.pieces();
        let n = u32::try_from(iov.len()).unwrap_or(0);
        let one = match iov {
            [one] => u32::try_from(one.iov_len)
                .ok()
                .map(|len| (one.iov_base.cast::<u8>(), len)),
            _ => None,
        };
        let dsync = if op.kind == OpKind::WriteDsync {
            libc::RWF_DSYNC
        } else {
            0
        };
        let entry = match (op.kind, one) {
            (OpKind::Read, Some((p, len))) => opcode::Read::new(fd, p, len).offset(op.pos).build(),
            (OpKind::Read, None) => opcode::Readv::new(fd, iov.as_ptr(), n)
                .offset(op.pos)
                .build(),
            (OpKind::Write | OpKind::WriteDsync, Some((p, len))) => opcode::Write::new(fd, p, len)
                .offset(op.pos)
                .rw_flags(dsync)
                .build(),
            (OpKind::Write | OpKind::WriteDsync, None) => opcode::Writev::new(fd, iov.as_ptr(), n)
                .offset(op.pos)
                .rw_flags(dsync)
                .build(),
            (OpKind::Sync, _) => {
                let whole = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC);
                match u32::try_from(op.len) {
                    Ok(len @ 1..) => whole.offset(op.pos).len(len),
                    _ => whole,
                }
                .build()
            }
            (OpKind::Fallocate(what), _) => opcode::Fallocate::new(fd, op.len as u64)
                .offset(op.pos)
                .mode(what.mode())
                .build(),
            (OpKind::BlkDiscard, _) => {
                // Its length stands in `addr3`, where other commands have their own bytes.
                let mut cmd = [0; 16];
                cmd[..8].copy_from_slice(&(op.len as u64).to_ne_bytes());
                opcode::UringCmd16::new(fd, BLOCK_URING_CMD_DISCARD)
                    .addr(Some(op.pos))
                    .cmd(cmd)
                    .build()
            }
        };
        self.push(&entry.user_data(KEY_DATA | u64::from(number)))
    }

    /// An eventfd that is rung when the ring has something to collect: for a poller of another kind.
    ///
    /// Errors: EMFILE, ENOMEM; EBUSY (there is one).
    pub(crate) fn bell(&self) -> Result<PollFd> {
        let bell = EventFd::new()?;
        self.ring.submitter().register_eventfd(bell.raw_fd())?;
        Ok(bell.poll_fd())
    }

    fn push(&mut self, entry: &Entry) -> Result {
        // SAFETY: polls and their removal carry no pointers: only a descriptor number and a key. The pointers of data
        // operations are good as promised to `start`.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // Full: hand what is there to the kernel, which empties the queue.
            match self.ring.submit() {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(Error::from(e)),
            }
        }
        Ok(())
    }

    /// Submits what is queued, without waiting, and lets finished work post its completions.
    pub(crate) fn flush(&mut self) -> Result {
        self.enter_raw(0, Timeout::Now)
    }

    /// Submits what is queued and waits for a completion. With [`Timeout::Now`] the kernel is only entered when there
    /// is something to submit or to collect.
    ///
    /// Context: may sleep, unless the timeout is [`Timeout::Now`].
    pub(crate) fn enter(&mut self, timeout: Timeout) -> Result {
        if timeout == Timeout::Now || !self.ring.completion().is_empty() {
            let sq = self.ring.submission();
            let needed = !sq.is_empty() || sq.taskrun() || sq.cq_overflow();
            drop(sq);
            return if needed || !self.has_taskrun_flag() {
                self.flush()
            } else {
                Ok(())
            };
        }
        self.enter_raw(1, timeout)
    }

    /// Without the flag, finished work shows only by entering.
    fn has_taskrun_flag(&self) -> bool {
        self.ring.params().is_setup_single_issuer()
    }

    fn enter_raw(&mut self, want: u32, timeout: Timeout) -> Result {
        let ts = if want == 0 { None } else { timeout.timespec() };
        let ts = ts.map(|t| [t.tv_sec, t.tv_nsec]);
        let arg = GetEventsArg {
            sigmask: 0,
            sigmask_sz: 0,
            min_wait_usec: 0,
            ts: ts
                .as_ref()
                .map_or(0, |t| t.as_ptr().expose_provenance() as u64),
        };
        let queued = u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX);
        // SAFETY: the entries queued are good (see `push`); `arg` is a valid `struct io_uring_getevents_arg`
        // whose `ts` is zero or the address of two 64-bit integers (`struct __kernel_timespec`) alive across the call.
        let res = unsafe {
            self.ring
                .submitter()
                .enter(queued, want, self.enter_flags, Some(&arg))
        };
        match res {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // Timed out; interrupted; or the completion queue is full, which draining it mends.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(Error::from(e)),
            },
        }
    }

    /// Hands over the completions that are there: of polls, by key, and of data operations, by number, with the count
    /// of bytes or the negative errno.
    pub(crate) fn drain(
        &mut self,
        mut f: impl FnMut(u64, PollCqe),
        mut data: impl FnMut(u32, i32),
    ) {
        for cqe in self.ring.completion() {
            let key = cqe.user_data();
            if key == KEY_IGNORED {
                continue;
            }
            if key & (KEY_DATA | KEY_NOT_DATA) == KEY_DATA {
                data(key as u32 & (MAX_DATA_OPS - 1), cqe.result());
                continue;
            }
            let more = cqueue::more(cqe.flags());
            f(
                key,
                match u32::try_from(cqe.result()) {
                    Ok(ready) if more => PollCqe::Ready(ready),
                    Ok(ready) => PollCqe::Ended(ready),
                    Err(_) => PollCqe::Failed(-cqe.result()),
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Option<PollRing> {
        match PollRing::new() {
            Ok(r) => Some(r),
            Err(e) => {
                eprintln!("no io_uring here ({e}): nothing to test");
                None
            }
        }
    }

    fn collect(r: &mut PollRing, t: Timeout) -> Vec<(u64, PollCqe)> {
        r.enter(t).unwrap();
        let mut v = Vec::new();
        r.drain(|k, c| v.push((k, c)), |_, _| ());
        v
    }

    #[test]
    fn each_signal_is_a_completion_and_the_poll_stays() {
        let Some(mut r) = ring() else { return };
        let ev = EventFd::new().unwrap();
        r.add(&ev.poll_fd(), 42).unwrap();
        // The first look finds the fresh counter writable.
        assert!(matches!(
            collect(&mut r, Timeout::Forever)[..],
            [(42, PollCqe::Ready(_))]
        ));
        for _ in 0..3 {
            ev.signal();
            let v = collect(&mut r, Timeout::Nanos(1_000_000_000));
            assert!(
                matches!(v[..], [(42, PollCqe::Ready(b))] if b & bits::IN != 0),
                "{v:?}"
            );
        }
        assert!(collect(&mut r, Timeout::Now).is_empty());
    }

    #[test]
    fn a_removed_poll_ends_and_is_silent_after() {
        let Some(mut r) = ring() else { return };
        let ev = EventFd::new().unwrap();
        r.add(&ev.poll_fd(), 5).unwrap();
        collect(&mut r, Timeout::Forever);
        r.remove(5).unwrap();
        let v = collect(&mut r, Timeout::Nanos(1_000_000_000));
        assert_eq!(v, [(5, PollCqe::Failed(libc::ECANCELED))]);
        ev.signal();
        assert!(collect(&mut r, Timeout::Nanos(1_000_000)).is_empty());
    }

    #[test]
    fn overflow_keeps_every_descriptor_alive() {
        let Some(mut r) = ring() else { return };
        // Fewer descriptors than edges: ring each often enough to overflow the queue without draining.
        let evs: Vec<EventFd> = (0..64).map(|_| EventFd::new().unwrap()).collect();
        for (i, e) in evs.iter().enumerate() {
            r.add(&e.poll_fd(), i as u64).unwrap();
        }
        r.flush().unwrap();
        for _ in 0..(CQ_ENTRIES / 64 + 40) {
            evs.iter().for_each(EventFd::signal);
            r.flush().unwrap();
        }
        let mut last = vec![None; evs.len()];
        loop {
            let v = collect(&mut r, Timeout::Now);
            if v.is_empty() {
                break;
            }
            for (k, c) in v {
                last[usize::try_from(k).unwrap()] = Some(c);
            }
        }
        for (i, e) in evs.iter().enumerate() {
            if matches!(last[i], Some(PollCqe::Ended(_))) {
                r.add(&e.poll_fd(), i as u64).unwrap();
            }
        }
        // All of them must report again, whichever were given up by the kernel.
        evs.iter().for_each(EventFd::signal);
        let mut seen = vec![false; evs.len()];
        for _ in 0..10 {
            for (k, _) in collect(&mut r, Timeout::Nanos(10_000_000)) {
                seen[usize::try_from(k).unwrap()] = true;
            }
        }
        assert!(seen.iter().all(|&s| s), "{seen:?}");
    }
}
