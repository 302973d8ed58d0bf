//! Carrying a copy out, and the sense data of one that fails.
//!
//! C source: `scst_cm_ext_copy_exec`, `scst_cm_try_to_remap`, `scst_cm_err_check_retry`, `scst_cm_prepare_final_sense` of
//! `scst/src/scst_copy_mgr.c`

use super::params::Segment;
use super::{Copy, in_secs};
use crate::cdb::CdbFlags;
use crate::cmd::Cmd;
use crate::consts::SamStatus;
use crate::dev_type::{ExecContext, IoFault};
use crate::device::Device;
use crate::sense::{self, Sense, SenseExtra, key};
use kshim::scatterlist::SGTable;
use kshim::time::Instant;
use kshim::time::delay::msleep;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Most bytes in one piece.
#[doc(alias = "SCST_CM_MAX_EACH_IO_SIZE")]
const PIECE: u64 = 512 * 1024;
/// Most bytes that a device may be asked to remap at a time, so that an abort need not wait for all.
const REMAP_PIECE: u64 = 64 * 1024 * 1024;
/// How often what is busy is tried again, and for how long after the copy began.
#[doc(alias = "SCST_CM_RETRIES_WAIT")]
const RETRY_MS: u32 = 1000;
#[doc(alias = "SCST_CM_MAX_RETRIES_TIME")]
const RETRIES_S: i64 = 30;
/// How often a copy that waits looks whether it was aborted.
const ABORT_POLL_MS: u32 = 50;

/// Which side of a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Read,
    Write,
}

/// How a step of a copy failed.
enum Failure {
    /// The command that SCST would have sent ended with this status.
    Status(Side, SamStatus),
    /// ... or with this sense.
    Sense(Side, Sense),
    /// The copy itself could not go on.
    Own(SamStatus),
    /// Nobody wants to know.
    Aborted,
}

/// A copy under way.
struct Run<'a> {
    cmd: &'a Cmd,
    copy: &'a Copy,
    give_up: Instant,
    buf: SGTable,
    written: u64,
}

/// Executes an EXTENDED COPY that has been let onto its devices. Context: may sleep.
#[doc(alias = "scst_cm_ext_copy_exec")]
pub(crate) fn exec(cmd: &mut Cmd) {
    let Some(copy) = cmd.copy.take() else { return };
    let mut failed = None;
    let longest = copy.segments.iter().map(|s| s.len.min(PIECE)).max();
    let scratch = usize::try_from(longest.unwrap_or(0)).unwrap_or(usize::MAX);
    if cmd.charge_scratch(scratch).is_err() {
        failed = Some((Failure::Own(SamStatus::Busy), 0, 0));
    } else {
        let mut run = Run {
            cmd,
            copy: &copy,
            give_up: in_secs(RETRIES_S),
            buf: SGTable::new(),
            written: 0,
        };
        for (s, n) in copy.segments.iter().zip(0u16..).filter(|(s, _)| s.len > 0) {
            if let Err(f) = run.segment(s, n) {
                failed = Some((f, n, s.dst.offset));
                break;
            }
        }
    }
    if let Some((failure, segment, cscd)) = failed {
        set_failure(cmd, &failure, segment, cscd);
    }
    if let Some(id) = &copy.list_id {
        id.set_result(cmd.status(), cmd.sense());
    }
    cmd.copy = Some(copy);
}

/// Byte position of a block.
fn position(lba: u64, shift: u8, side: Side) -> Result<u64, Failure> {
    let shift = u32::from(shift);
    lba.checked_shl(shift)
        .filter(|p| p.checked_shr(shift) == Some(lba))
        .ok_or(Failure::Sense(side, sense::BLOCK_OUT_RANGE))
}

impl Run<'_> {
    fn check_aborted(&self) -> Result<(), Failure> {
        if self.cmd.is_aborted() {
            Err(Failure::Aborted)
        } else {
            Ok(())
        }
    }

    fn progress(&self, n: u16) {
        if let Some(id) = &self.copy.list_id {
            id.progress(n.saturating_add(1), self.written);
        }
    }

    /// Waits a second before something is tried again; fails with `status` when it was tried for long enough.
    #[doc(alias = "scst_cm_err_check_retry")]
    fn wait_retry(&self, side: Side, status: SamStatus) -> Result<(), Failure> {
        if Instant::now() >= self.give_up {
            return Err(Failure::Status(side, status));
        }
        let mut left = RETRY_MS;
        while left > 0 {
            self.check_aborted()?;
            msleep(ABORT_POLL_MS);
            left = left.saturating_sub(ABORT_POLL_MS);
        }
        self.check_aborted()
    }

    /// What an internal READ or WRITE would be checked for.
    #[doc(alias = "internal_check_local_events")]
    fn check_access(&self, dev: &Device, side: Side) -> Result<(), Failure> {
        let flags = match side {
            Side::Read => CdbFlags::WRITE_EXCL_ALLOWED,
            Side::Write => CdbFlags::empty(),
        };
        while !flags.contains(dev.reservations.needed_by_stranger()) {
            self.wait_retry(side, SamStatus::ReservationConflict)?;
        }
        if side == Side::Write {
            if dev.is_swp() {
                return Err(Failure::Sense(side, sense::WRITE_PROTECTED));
            }
            if dev.handler().is_read_only() {
                return Err(Failure::Sense(side, sense::DATA_PROTECT));
            }
        }
        Ok(())
    }

    fn segment(&mut self, s: &Segment<Arc<Device>>, n: u16) -> Result<(), Failure> {
        self.progress(n);
        self.check_aborted()?;
        self.check_access(&s.src.dev, Side::Read)?;
        self.check_access(&s.dst.dev, Side::Write)?;
        let from = position(s.src_lba, s.src.block_shift, Side::Read)?;
        let to = position(s.dst_lba, s.dst.block_shift, Side::Write)?;
        let same = Arc::ptr_eq(&s.src.dev, &s.dst.dev);
        let backwards = same && to > from && to.saturating_sub(from) < s.len;
        let mut done = if same && to.abs_diff(from) < s.len {
            0
        } else {
            self.remap(s, n, from, to)?
        };
        while done < s.len {
            let step = PIECE.min(s.len.saturating_sub(done));
            // Behind those that are done, or before them.
            let at = if backwards {
                s.len.saturating_sub(done).saturating_sub(step)
            } else {
                done
            };
            self.piece(s, from.saturating_add(at), to.saturating_add(at), step)?;
            done = done.saturating_add(step);
            self.written = self.written.saturating_add(step);
            self.progress(n);
        }
        Ok(())
    }

    /// Has the devices take over what they can without moving data. Answers how much of the segment is done.
    #[doc(alias = "scst_cm_try_to_remap")]
    fn remap(
        &mut self,
        s: &Segment<Arc<Device>>,
        n: u16,
        from: u64,
        to: u64,
    ) -> Result<u64, Failure> {
        let (src, dst) = (s.src.dev.handler(), s.dst.dev.handler());
        // Whole blocks of both.
        let unit = 1u64
            .checked_shl(u32::from(s.src.block_shift.max(s.dst.block_shift)))
            .unwrap_or(1);
        let mut done = 0u64;
        while done < s.len {
            self.check_aborted()?;
            let want = REMAP_PIECE.min(s.len.saturating_sub(done));
            let (src_pos, dst_pos) = (from.saturating_add(done), to.saturating_add(done));
            let got = dst.ext_copy_remap(&**src, src_pos, dst_pos, want).min(want);
            let got = got.saturating_sub(got & unit.saturating_sub(1));
            if got == 0 {
                break;
            }
            done = done.saturating_add(got);
            self.written = self.written.saturating_add(got);
            self.progress(n);
        }
        Ok(done)
    }

    /// Copies one piece.
    fn piece(
        &mut self,
        s: &Segment<Arc<Device>>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<(), Failure> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let busy = |_| Failure::Own(SamStatus::Busy);
        loop {
            self.check_aborted()?;
            if self.buf.len() < len {
                self.buf = SGTable::alloc(len).map_err(busy)?;
            }
            let src = s.src.dev.handler();
            let r = src.read_blocks(from, &mut self.buf, len, ExecContext::Thread);
            if self.ended(r, Side::Read)? {
                break;
            }
        }
        loop {
            self.check_aborted()?;
            let dst = s.dst.dev.handler();
            let r = dst.write_blocks(to, &mut self.buf, len, false, ExecContext::Thread);
            if self.ended(r, Side::Write)? {
                return Ok(());
            }
            if self.buf.len() < len {
                // Lost with the attempt, so that there is nothing to try again.
                return Err(Failure::Status(Side::Write, SamStatus::Busy));
            }
        }
    }

    /// Whether it is done; else it is to be tried again.
    fn ended(&self, r: Result<(), IoFault>, side: Side) -> Result<bool, Failure> {
        match r {
            Ok(()) => Ok(true),
            Err(IoFault::Sense(s)) => Err(Failure::Sense(side, s)),
            Err(IoFault::Busy | IoFault::WouldBlock) => {
                self.wait_retry(side, SamStatus::Busy)?;
                Ok(false)
            }
        }
    }
}

/// Gives a copy that failed its status and sense.
#[doc(alias = "scst_cm_prepare_final_sense")]
fn set_failure(cmd: &mut Cmd, failure: &Failure, segment: u16, cscd: u16) {
    let (side, status, sense) = match failure {
        Failure::Aborted => return,
        Failure::Own(status) => return cmd.set_status(*status),
        // THIRD PARTY DEVICE FAILURE
        Failure::Status(Side::Write, _) => {
            return set_segment_sense(cmd, (0x0D, 0x01), segment, 0x80, cscd);
        }
        Failure::Status(side, status) => (*side, *status, Vec::new()),
        Failure::Sense(side, s) => {
            let mut data = Vec::new();
            sense::build(&mut data, false, *s, SenseExtra::None);
            (*side, SamStatus::CheckCondition, data)
        }
    };
    let [hi, lo] = segment.to_be_bytes();
    let data = if has_d_sense(cmd) {
        let mut data = vec![0x72, key::COPY_ABORTED, 0, 0, 0, 0, 0, 12, 0x01, 0x0A];
        data.resize(20, 0);
        put(&mut data, 14, &[hi, lo]);
        data
    } else {
        let mut data = vec![0; 18];
        put(&mut data, 0, &[0x70, 0, key::COPY_ABORTED]);
        put(&mut data, 7, &[0x0A]);
        // Where the sense data of the side that failed begins.
        put(&mut data, if side == Side::Read { 8 } else { 9 }, &[18]);
        put(&mut data, 10, &[hi, lo]);
        if !sense.is_empty() {
            put(&mut data, 17, &[status as u8]);
            data.extend_from_slice(&sense);
            let additional = u8::try_from(data.len().saturating_sub(7)).unwrap_or(u8::MAX);
            put(&mut data, 7, &[additional]);
            data.push(0);
        }
        data
    };
    cmd.set_status(SamStatus::CheckCondition);
    cmd.sense = data;
}

/// COPY ABORTED because of a segment, with a pointer (of these flags) to a byte.
#[doc(alias = "scst_cm_set_seg_err_sense")]
pub(super) fn set_segment_sense(
    cmd: &mut Cmd,
    (asc, ascq): (u8, u8),
    segment: u16,
    flags: u8,
    byte: u16,
) {
    let (seg, [hi, lo]) = (segment.to_be_bytes(), byte.to_be_bytes());
    let data = if has_d_sense(cmd) {
        let mut data = vec![0x72, key::COPY_ABORTED, asc, ascq, 0, 0, 0, 20, 0x01, 0x0A];
        data.resize(28, 0);
        put(&mut data, 14, &seg);
        put(&mut data, 20, &[0x02, 0x06, 0, 0, flags, hi, lo]);
        data
    } else {
        let mut data = vec![0; 18];
        put(&mut data, 0, &[0x70, 0, key::COPY_ABORTED]);
        put(&mut data, 7, &[0x0A]);
        put(&mut data, 10, &seg);
        put(&mut data, 12, &[asc, ascq]);
        put(&mut data, 15, &[flags, hi, lo]);
        data
    };
    cmd.set_status(SamStatus::CheckCondition);
    cmd.sense = data;
}

fn has_d_sense(cmd: &Cmd) -> bool {
    cmd.device()
        .is_some_and(|d| d.control.d_sense.load(Ordering::Relaxed))
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    for (d, s) in data.iter_mut().skip(at).zip(bytes) {
        *d = *s;
    }
}
