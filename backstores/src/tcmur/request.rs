//! Requests: bios and SCSI commands on their way through a device.

use std::ffi::c_int;

use kshim::block::{Bio, BioOp, ReqFlags, ScsiDirection, ScsiOutcome, SubmittedBio, SubmittedScsi};
use kshim::prelude::*;
use kshim::scatterlist::SGTable;
use kshim::sync::Completion;
use kshim::time::Instant;

use super::cdb::{self, Media};
use super::ffi::handler::{Call, Calls};
use super::ffi::mem::{Access, CmdMem};
use super::status::{self, SenseBuf};
use super::whole::Patch;

/// Pieces of data are multiples of this, or copied: handlers count blocks per piece.
const UNIT: usize = 512;
/// TIMEOUT ON LOGICAL UNIT (SPC-4 annex D).
const TIMED_OUT: (u8, u16) = (0x4, 0x3E02);
/// INTERNAL TARGET FAILURE
const TARGET_FAILURE: (u8, u16) = (0x4, 0x4400);
/// INVALID FIELD IN CDB
const INVALID_FIELD: (u8, u16) = (0x5, 0x2400);
/// LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE
const STANDBY: (u8, u16) = (0x2, 0x040B);
/// BUSY
const BUSY: u8 = 0x08;

/// What somebody waits for.
#[derive(Debug)]
pub(super) enum What {
    /// Blocks.
    Bio(SubmittedBio),
    /// A whole command.
    Scsi(SubmittedScsi),
    /// That the handler looks at its storage: the first block is read, whatever comes of it.
    Look(Arc<Completion>),
    /// Nobody waits any more.
    Nobody,
}

/// What a request does with the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing that others could notice.
    Read,
    /// Changes it.
    Write,
    /// Asks whether changes are durable.
    Flush,
}

/// How a request ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// Done; so many bytes at the end were not transferred.
    Good { resid: usize },
    /// The handler said this, and left this in its sense buffer.
    Status(c_int, SenseBuf),
    /// It did not get to the handler, or not back.
    Failed(Error),
    /// CHECK CONDITION: key, additional codes.
    Sense(u8, u16),
}

/// One call of the handler that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A flush beside the request.
    Flush,
    /// A read of the cluster that begins here, for a write that is made larger.
    Fill(u64),
    /// The request itself.
    Main,
}

/// The calls that are still to be made.
#[derive(Debug)]
pub(super) struct Steps {
    before: bool,
    main: bool,
    after: bool,
}

impl Steps {
    fn of_bio(bio: &Bio, write_cache: bool) -> Steps {
        let fua = bio.op.is_write() && bio.flags.contains(ReqFlags::FUA);
        Steps {
            before: write_cache
                && (bio.op == BioOp::Flush || bio.flags.contains(ReqFlags::PREFLUSH)),
            main: bio.op != BioOp::Flush && bio.len > 0,
            after: write_cache && fua,
        }
    }

    /// Whether there are any.
    pub(super) fn is_left(&self) -> bool {
        self.before || self.main || self.after
    }
}

/// A request in the queue.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) what: What,
    pub(super) steps: Steps,
    /// For a write that is made larger.
    pub(super) patch: Option<Patch>,
    /// For a flush: how many writes had ended when the handler was given it.
    pub(super) covers: u64,
    pub(super) deadline: Instant,
}

/// What a command in flight is about.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) job: Job,
    /// Which part of the request it is.
    pub(super) step: Step,
    /// The request's own data, where the plug-in got a copy.
    pub(super) orig: Option<SGTable>,
    /// It was failed because of its time.
    pub(super) failed: bool,
}

impl Job {
    pub(super) fn new(what: What, write_cache: bool, deadline: Instant) -> Job {
        let steps = match &what {
            What::Bio(bio) => Steps::of_bio(bio, write_cache),
            _ => Steps {
                before: false,
                main: true,
                after: false,
            },
        };
        Job {
            what,
            steps,
            patch: None,
            covers: 0,
            deadline,
        }
    }

    /// Where the request writes, if that is still to come: bytes, length.
    pub(super) fn will_write(&self) -> Option<(u64, u64)> {
        match &self.what {
            What::Bio(bio) if bio.op == BioOp::Write && self.steps.main => {
                Some((bio.pos(), bio.len as u64))
            }
            _ => None,
        }
    }

    /// Whether a call that is part of it makes all durable that was written before.
    pub(super) fn flushes_all(&self, step: Step) -> bool {
        match (step, &self.what) {
            (Step::Flush, _) => true,
            (Step::Main, What::Scsi(cmd)) => cdb::flushes_all(&cmd.cdb),
            _ => false,
        }
    }

    /// The next call, leaving out those that the handler does not have and that mean nothing then.
    pub(super) fn next_step(&mut self, calls: Calls) -> Option<Step> {
        let flush = calls.contains(Calls::FLUSH);
        if std::mem::take(&mut self.steps.before) && flush {
            return Some(Step::Flush);
        }
        if self.steps.main {
            if let Some(at) = self.patch.as_mut().and_then(|p| p.fills.pop()) {
                return Some(Step::Fill(at));
            }
            self.steps.main = false;
            return Some(Step::Main);
        }
        (std::mem::take(&mut self.steps.after) && flush).then_some(Step::Flush)
    }

    /// Sets up a command for a step. The data moves into it, or into a copy whose original comes back.
    pub(super) fn prepare(
        &mut self,
        step: Step,
        mem: &mut CmdMem,
        id: u16,
        block: u32,
    ) -> Result<Prepared, End> {
        match (step, &mut self.what, &mut self.patch) {
            (Step::Flush, ..) => {
                mem.prepare(id, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                Ok((Call::Flush, None))
            }
            (Step::Fill(off), _, Some(patch)) => {
                let len = patch.fill_len(off);
                let cdb = medium_cdb(0x88, off, len, block);
                mem.prepare(id, &cdb);
                let sg = SGTable::alloc_zeroed(len).map_err(End::Failed)?;
                mem.load(sg, 0, len, Access::Write, UNIT)
                    .map_err(|(_, e)| End::Failed(e))?;
                Ok((Call::Read { off, len }, None))
            }
            (Step::Main, What::Bio(bio), Some(patch)) => {
                prepare_patched(bio, patch, mem, id, block).map_err(End::Failed)
            }
            (Step::Main, What::Bio(bio), None) => {
                prepare_bio(bio, mem, id, block).map_err(End::Failed)
            }
            (Step::Main, What::Scsi(cmd), _) => prepare_scsi(cmd, mem, id, block),
            (Step::Main, What::Look(_), _) => prepare_look(mem, id, block).map_err(End::Failed),
            (Step::Main, What::Nobody, _) | (Step::Fill(_), _, None) => Err(End::Failed(ECANCELED)),
        }
    }
}

type Prepared = (Call, Option<SGTable>);

impl What {
    /// What it does with the storage.
    pub(super) fn needs(&self) -> Need {
        match self {
            What::Bio(bio) if bio.op == BioOp::Flush => Need::Flush,
            What::Bio(bio) if bio.op.is_write() => Need::Write,
            What::Scsi(cmd) if matches!(cdb::media(&cmd.cdb), Some(Media::Write(_))) => Need::Write,
            What::Scsi(cmd) if cdb::is_flush(&cmd.cdb) => Need::Flush,
            _ => Need::Read,
        }
    }

    /// Whether its success says that what was written before is durable.
    pub(super) fn flushes(&self) -> bool {
        match self {
            What::Bio(bio) => bio.op == BioOp::Flush || bio.flags.contains(ReqFlags::PREFLUSH),
            What::Scsi(cmd) => cdb::is_flush(&cmd.cdb),
            What::Look(_) | What::Nobody => false,
        }
    }

    /// Takes it, so that nobody waits.
    pub(super) fn take(&mut self) -> What {
        std::mem::replace(self, What::Nobody)
    }

    /// Takes the data back from a command. `left`: how much of it the plug-in did not use up. Returns the residual.
    pub(super) fn restore(
        &mut self,
        data: SGTable,
        orig: Option<SGTable>,
        left: usize,
        good: bool,
    ) -> usize {
        match self {
            What::Bio(bio) => {
                if bio.op == BioOp::Read || bio.op == BioOp::Write {
                    let (at, len, copy) = (bio.sg_at, bio.len, good && bio.op == BioOp::Read);
                    put_back(&mut bio.sg, data, orig, at, len, copy);
                }
                0
            }
            What::Scsi(cmd) => {
                let reads = cmd.direction == ScsiDirection::FromDevice;
                // Noted when it was prepared.
                let need = std::mem::take(&mut cmd.resid);
                let moved = need.min(cmd.len);
                let resid = match cdb::media(&cmd.cdb) {
                    Some(_) => cmd.len - moved,
                    // Who does not use the pieces up has filled them.
                    None if left >= need => 0,
                    None => left,
                };
                put_back(&mut cmd.sg, data, orig, 0, moved, good && reads);
                if reads { resid } else { 0 }
            }
            What::Look(_) | What::Nobody => 0,
        }
    }

    /// For a request whose data the plug-in keeps: puts new memory in its place.
    pub(super) fn lose_data(mut self) -> What {
        let fresh = |len: usize| SGTable::alloc_zeroed(len).unwrap_or_default();
        match &mut self {
            What::Bio(bio) if bio.sg.is_empty() && bio.len > 0 => {
                bio.sg = fresh(bio.sg_at + bio.len);
            }
            What::Scsi(cmd) if cmd.sg.is_empty() && cmd.len > 0 => cmd.sg = fresh(cmd.len),
            _ => {}
        }
        self
    }

    /// Ends it. Context: any.
    pub(super) fn finish(self, end: End) {
        match self {
            What::Bio(bio) => bio.complete(match end {
                End::Good { .. } => Ok(()),
                End::Status(sts, _) => status::to_result(sts),
                End::Failed(e) => Err(e),
                End::Sense(..) => Err(EINVAL),
            }),
            What::Scsi(mut cmd) => {
                cmd.resid = match end {
                    End::Good { resid } => resid,
                    _ => 0,
                };
                cmd.complete(match end {
                    End::Good { .. } => ScsiOutcome::Good,
                    End::Status(sts, sense) => status::to_outcome(sts, &sense),
                    End::Failed(EAGAIN | ENOMEM) => ScsiOutcome::Status(BUSY),
                    End::Failed(ETIMEDOUT) => status::sense(TIMED_OUT.0, TIMED_OUT.1),
                    End::Failed(ENODEV) => ScsiOutcome::Failed(ENODEV),
                    End::Failed(ENOLINK) => status::sense(STANDBY.0, STANDBY.1),
                    End::Failed(_) => status::sense(TARGET_FAILURE.0, TARGET_FAILURE.1),
                    End::Sense(key, asc_ascq) => status::sense(key, asc_ascq),
                });
            }
            What::Look(done) => done.complete_all(),
            What::Nobody => {}
        }
    }
}

/// Gives a request its data back, from a copy if there was one.
fn put_back(
    sg: &mut SGTable,
    data: SGTable,
    orig: Option<SGTable>,
    at: usize,
    len: usize,
    copy: bool,
) {
    *sg = match orig {
        None => data,
        Some(mut orig) => {
            if copy && orig.copy_from_sg(at, &data, 0, len).is_err() {
                pr_err!("BUG: a copy of {len} bytes at {at} does not fit");
            }
            orig
        }
    };
}

/// The CDB that a bio would have come from, for handlers that look there.
fn bio_cdb(code: u8, bio: &Bio, block: u32) -> [u8; 16] {
    medium_cdb(code, bio.pos(), bio.len, block)
}

/// A CDB of 16 bytes for `len` bytes at `off`.
fn medium_cdb(code: u8, off: u64, len: usize, block: u32) -> [u8; 16] {
    let block = u64::from(block);
    let blocks = u32::try_from(len as u64 / block).unwrap_or(u32::MAX);
    let mut cdb = [0; 16];
    cdb[0] = code;
    cdb[2..10].copy_from_slice(&(off / block).to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// A write that is made larger: its data into the buffer, which is written.
fn prepare_patched(
    bio: &mut Bio,
    patch: &mut Patch,
    mem: &mut CmdMem,
    id: u16,
    block: u32,
) -> Result<Prepared> {
    let at = usize::try_from(bio.pos() - patch.start)?;
    let mut buf = std::mem::take(&mut patch.buf);
    buf.copy_from_sg(at, &bio.sg, bio.sg_at, bio.len)?;
    let (off, len) = (patch.start, buf.len());
    mem.prepare(id, &medium_cdb(0x8A, off, len, block));
    mem.load(buf, 0, len, Access::Read, UNIT)
        .map_err(|(_, e)| e)?;
    Ok((Call::Write { off, len }, Some(std::mem::take(&mut bio.sg))))
}

fn prepare_look(mem: &mut CmdMem, id: u16, block: u32) -> Result<Prepared> {
    let len = block as usize;
    mem.prepare(id, &medium_cdb(0x88, 0, len, block));
    let sg = SGTable::alloc_zeroed(len)?;
    mem.load(sg, 0, len, Access::Write, UNIT)
        .map_err(|(_, e)| e)?;
    Ok((Call::Read { off: 0, len }, None))
}

fn prepare_bio(bio: &mut Bio, mem: &mut CmdMem, id: u16, block: u32) -> Result<Prepared> {
    let (off, len, at) = (bio.pos(), bio.len, bio.sg_at);
    let (code, call, access) = match bio.op {
        BioOp::Read => (0x88, Call::Read { off, len }, Access::Write),
        BioOp::Write => (0x8A, Call::Write { off, len }, Access::Read),
        BioOp::Flush => return Err(EINVAL),
        BioOp::Discard => {
            mem.prepare(id, &bio_cdb(0x42, bio, block));
            let len = len as u64;
            return Ok((Call::Unmap { off, len }, None));
        }
        BioOp::WriteZeroes => {
            mem.prepare(id, &bio_cdb(0x93, bio, block));
            let one = block as usize;
            let zeroes = SGTable::alloc_zeroed(one)?;
            mem.load(zeroes, 0, one, Access::Read, UNIT)
                .map_err(|(_, e)| e)?;
            let len = len as u64;
            return Ok((Call::WriteSame { off, len }, None));
        }
    };
    mem.prepare(id, &bio_cdb(code, bio, block));
    let sg = std::mem::take(&mut bio.sg);
    let Err((sg, _)) = mem.load(sg, at, len, access, UNIT) else {
        return Ok((call, None));
    };
    match copy_in(mem, &sg, at, len, len, access) {
        Ok(()) => Ok((call, Some(sg))),
        Err(e) => {
            bio.sg = sg;
            Err(e)
        }
    }
}

/// Loads a copy of `len` bytes, followed by zeros up to `room`.
fn copy_in(
    mem: &mut CmdMem,
    sg: &SGTable,
    at: usize,
    len: usize,
    room: usize,
    access: Access,
) -> Result {
    let mut copy = SGTable::alloc_zeroed(room)?;
    if access == Access::Read {
        copy.copy_from_sg(0, sg, at, len)?;
    }
    mem.load(copy, 0, room, access, 1).map_err(|(_, e)| e)
}

/// A handler takes the length of commands on the medium from the CDB, and walks through the pieces without looking where
/// they end. So they get exactly that much.
fn prepare_scsi(
    cmd: &mut SubmittedScsi,
    mem: &mut CmdMem,
    id: u16,
    block: u32,
) -> Result<Prepared, End> {
    mem.prepare(id, &cmd.cdb);
    let media = cdb::media(&cmd.cdb);
    let bytes = |blocks: u64| usize::try_from(blocks.saturating_mul(u64::from(block))).ok();
    let invalid = || End::Sense(INVALID_FIELD.0, INVALID_FIELD.1);
    let (need, access) = match (media, cmd.direction) {
        (Some(Media::Write(n)), dir) => {
            let need = bytes(n).ok_or_else(invalid)?;
            // What did not come cannot be written.
            if need > 0 && (dir != ScsiDirection::ToDevice || cmd.len < need) {
                return Err(invalid());
            }
            (need, Access::Read)
        }
        (Some(Media::Read(n)), dir) => {
            if dir == ScsiDirection::ToDevice {
                return Err(invalid());
            }
            (bytes(n).ok_or_else(invalid)?, Access::Write)
        }
        (None, ScsiDirection::ToDevice) => (cmd.len, Access::Read),
        (None, _) => (cmd.len, Access::Write),
    };
    if need > MAX_SCSI_DATA {
        return Err(invalid());
    }
    cmd.resid = need;
    let call = Call::HandleCmd;
    if need == 0 {
        return Ok((call, Some(std::mem::take(&mut cmd.sg))));
    }
    let mut sg = std::mem::take(&mut cmd.sg);
    let unit = if media.is_some() { block as usize } else { 1 };
    if need <= cmd.len {
        let zeroed = if access == Access::Write && media.is_none() {
            // What the handler leaves out must not be what was in this memory before.
            sg.fill(0, need, 0)
        } else {
            Ok(())
        };
        if zeroed.is_ok() {
            match mem.load(sg, 0, need, access, unit) {
                Ok(()) => return Ok((call, None)),
                Err((back, _)) => sg = back,
            }
        }
    }
    match copy_in(mem, &sg, 0, need.min(cmd.len), need, access) {
        Ok(()) => Ok((call, Some(sg))),
        Err(e) => {
            cmd.sg = sg;
            Err(End::Failed(e))
        }
    }
}

/// Most data of one command.
const MAX_SCSI_DATA: usize = 64 << 20;
