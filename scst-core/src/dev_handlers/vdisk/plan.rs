//! What VERIFY, WRITE SAME and UNMAP do to the medium, step by step: by a thread of the device ([`Medium::run`]) or by the engine
//! ([`walk`](super::walk)).
//!
//! [`Medium::run`]: super::medium::Medium::run

use super::store::{Outcome, read_outcome, write_outcome};
use crate::sense;
use kshim::error::{Result, code};
use kshim::scatterlist::SGTable;
use std::collections::VecDeque;

/// Bytes read at a time by VERIFY.
pub(super) const VERIFY_STEP: u64 = 256 * 1024;
/// Bytes written at a time by WRITE SAME.
#[doc(alias = "SCST_MAX_EACH_INTERNAL_IO_SIZE")]
pub(super) const WRITE_SAME_STEP: usize = 128 * 1024;
/// Bytes unmapped or zeroed at a time, so that an abort need not wait for a whole device.
const RANGE_STEP: u64 = 64 * 1024 * 1024;

/// What is done to the medium. Reads and writes use the plan's buffer from its beginning on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write { durable: bool },
    Discard,
    Zero,
    Flush,
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) access: Access,
    pub(super) pos: u64,
    pub(super) len: u64,
}

/// What the ranges are to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// Unmapped; where the host cannot, they stay as they are (SBC-3 4.7.3.4.3).
    Unmap,
    /// Unmapped; where the host cannot, the pattern is written.
    UnmapOrWrite,
    /// Zeros; where the host has no way of its own, they are written.
    Zero,
    /// The pattern.
    Write,
    /// Read, and perhaps compared.
    Verify,
}

/// The part of a range that is left: first byte, number of bytes. `None`: it is not on the medium.
type Part = Option<(u64, u64)>;

/// What is left to do.
#[derive(Debug)]
pub(super) struct Plan {
    goal: Goal,
    parts: VecDeque<Part>,
    flush_first: bool,
    /// What was done without data is made durable at the end.
    settle: bool,
    /// What is written is to be durable.
    durable: bool,
    /// One block, or why there is none.
    pattern: std::result::Result<Vec<u8>, Outcome>,
    /// The whole of the first part, for what begins anew.
    whole: Part,
    /// How much of the data to compare with was compared.
    compared: usize,
    compares: bool,
    /// What is read into, or written.
    pub(super) buf: SGTable,
    /// The command's own data.
    pub(super) data: SGTable,
}

impl Plan {
    fn new(goal: Goal, parts: VecDeque<Part>, durable: bool) -> Self {
        Self {
            goal,
            whole: parts.front().copied().flatten(),
            settle: durable && goal != Goal::Verify && !parts.is_empty(),
            parts,
            flush_first: false,
            durable,
            pattern: Ok(Vec::new()),
            compared: 0,
            compares: false,
            buf: SGTable::new(),
            data: SGTable::new(),
        }
    }

    /// Unmaps parts of the medium.
    pub(super) fn unmap(parts: VecDeque<Part>, durable: bool) -> Self {
        Self::new(Goal::Unmap, parts, durable)
    }

    /// Unmaps `len` bytes at `pos`, or writes a block over and over.
    pub(super) fn unmap_or_write(
        pos: u64,
        len: u64,
        durable: bool,
        pattern: std::result::Result<Vec<u8>, Outcome>,
    ) -> Self {
        Self {
            pattern,
            ..Self::new(Goal::UnmapOrWrite, [Some((pos, len))].into(), durable)
        }
    }

    /// Writes a block over and over.
    pub(super) fn write(
        pos: u64,
        len: u64,
        durable: bool,
        pattern: Vec<u8>,
    ) -> std::result::Result<Self, Outcome> {
        let mut plan = Self::unmap_or_write(pos, len, durable, Ok(pattern));
        plan.write_pattern()?;
        Ok(plan)
    }

    /// Reads; with `compares`, the data has to be that of the command.
    pub(super) fn verify(
        pos: u64,
        len: u64,
        compares: bool,
        flush_first: bool,
    ) -> std::result::Result<Self, Outcome> {
        let step = usize::try_from(len.min(VERIFY_STEP)).map_err(|_| sense::INTERNAL_FAILURE)?;
        Ok(Self {
            flush_first,
            compares,
            buf: SGTable::alloc(step).map_err(read_outcome)?,
            ..Self::new(Goal::Verify, [Some((pos, len))].into(), false)
        })
    }

    /// The next access. `None`: all is done.
    pub(super) fn next(&mut self) -> std::result::Result<Option<Step>, Outcome> {
        let flush = Step {
            access: Access::Flush,
            pos: 0,
            len: 0,
        };
        if std::mem::take(&mut self.flush_first) {
            return Ok(Some(flush));
        }
        while let Some(part) = self.parts.front() {
            let Some((pos, left)) = *part else {
                return Err(sense::BLOCK_OUT_RANGE.into());
            };
            if left > 0 {
                let (access, most) = self.access();
                let len = left.min(most);
                return Ok(Some(Step { access, pos, len }));
            }
            self.parts.pop_front();
        }
        Ok(std::mem::take(&mut self.settle).then_some(flush))
    }

    /// How a step is made, and how large it is at most.
    fn access(&self) -> (Access, u64) {
        let buf = u64::try_from(self.buf.len()).unwrap_or(u64::MAX);
        match self.goal {
            Goal::Unmap | Goal::UnmapOrWrite => (Access::Discard, RANGE_STEP),
            Goal::Zero => (Access::Zero, RANGE_STEP),
            Goal::Verify => (Access::Read, buf),
            Goal::Write => {
                let durable = self.durable;
                (Access::Write { durable }, buf)
            }
        }
    }

    /// A step has ended so.
    ///
    /// # Errors
    /// How the command ends.
    pub(super) fn ended(&mut self, step: Step, res: Result) -> std::result::Result<(), Outcome> {
        match (step.access, res) {
            (Access::Read, Err(e)) => return Err(read_outcome(e)),
            (Access::Discard, Err(code::EOPNOTSUPP)) if self.goal == Goal::Unmap => {
                self.parts.pop_front();
                return Ok(());
            }
            (Access::Discard | Access::Zero, Err(code::EOPNOTSUPP)) => return self.write_pattern(),
            (_, Err(e)) => return Err(write_outcome(e)),
            (Access::Flush, Ok(())) => return Ok(()),
            (Access::Read, Ok(())) if self.compares => self.compare(step.len)?,
            (_, Ok(())) => {}
        }
        if let Some(Some((pos, left))) = self.parts.front_mut() {
            *pos = pos.saturating_add(step.len);
            *left = left.saturating_sub(step.len);
        }
        Ok(())
    }

    fn compare(&mut self, len: u64) -> std::result::Result<(), Outcome> {
        let n = usize::try_from(len).map_err(|_| sense::INTERNAL_FAILURE)?;
        match self.data.compare_sg(self.compared, &self.buf, 0, n) {
            Ok(None) => self.compared = self.compared.saturating_add(n),
            Ok(Some(_)) => return Err(sense::MISCOMPARE.into()),
            Err(_) => return Err(sense::INTERNAL_FAILURE.into()),
        }
        Ok(())
    }

    /// The next way to write the pattern, from the beginning: a pattern of zeros by the host, which was not asked for that yet,
    /// else as data.
    fn write_pattern(&mut self) -> std::result::Result<(), Outcome> {
        let pattern = self.pattern.as_ref().map_err(|o| *o)?;
        self.parts = [self.whole].into();
        if self.goal == Goal::UnmapOrWrite && pattern.iter().all(|b| *b == 0) {
            self.goal = Goal::Zero;
            return Ok(());
        }
        let len = self.whole.map_or(0, |(_, len)| len);
        let most = WRITE_SAME_STEP.max(pattern.len());
        let step = usize::try_from(len).unwrap_or(most).min(most);
        let mut buf = SGTable::alloc(step).map_err(write_outcome)?;
        let mut at = 0usize;
        while at < step {
            buf.copy_from_slice(at, pattern)
                .map_err(|_| sense::INTERNAL_FAILURE)?;
            at = at.saturating_add(pattern.len().max(1));
        }
        self.buf = buf;
        (self.goal, self.settle) = (Goal::Write, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a plan on a medium that says this to each access; answers what was done, and how it ended.
    fn run(
        mut plan: Plan,
        mut says: impl FnMut(Step) -> Result,
    ) -> (Vec<Step>, std::result::Result<(), Outcome>) {
        let mut done = Vec::new();
        loop {
            match plan.next() {
                Ok(Some(step)) => {
                    done.push(step);
                    if let Err(o) = plan.ended(step, says(step)) {
                        return (done, Err(o));
                    }
                }
                Ok(None) => return (done, Ok(())),
                Err(o) => return (done, Err(o)),
            }
        }
    }

    fn step(access: Access, pos: u64, len: u64) -> Step {
        Step { access, pos, len }
    }

    const FLUSH: Step = Step {
        access: Access::Flush,
        pos: 0,
        len: 0,
    };

    #[test]
    fn ranges_are_unmapped_in_steps_and_settled() {
        let parts = || [Some((0, RANGE_STEP + 512)), Some((1 << 40, 512))].into();
        let (done, res) = run(Plan::unmap(parts(), true), |_| Ok(()));
        let wanted = [
            step(Access::Discard, 0, RANGE_STEP),
            step(Access::Discard, RANGE_STEP, 512),
            step(Access::Discard, 1 << 40, 512),
            FLUSH,
        ];
        assert_eq!((done.as_slice(), res), (&wanted[..], Ok(())));
        let (done, _) = run(Plan::unmap(parts(), false), |_| Ok(()));
        assert_eq!(done, wanted[..3]);
        // A host that cannot is no error; one that fails is.
        let (done, res) = run(Plan::unmap(parts(), false), |_| Err(code::EOPNOTSUPP));
        assert_eq!((done.len(), res), (2, Ok(())));
        let (done, res) = run(Plan::unmap(parts(), false), |_| Err(code::EIO));
        assert_eq!((done.len(), res), (1, Err(sense::WRITE_ERROR.into())));
        // What was in range is unmapped before the rest is refused.
        let mixed = [Some((0, 512)), None].into();
        let (done, res) = run(Plan::unmap(mixed, true), |_| Ok(()));
        assert_eq!((done.len(), res), (1, Err(sense::BLOCK_OUT_RANGE.into())));
        let (done, res) = run(Plan::unmap(VecDeque::new(), true), |_| Ok(()));
        assert_eq!((done.len(), res), (0, Ok(())));
    }

    #[test]
    fn what_the_host_cannot_do_is_written_from_the_beginning() {
        let unsupported = |first_of: Access| {
            let mut said = 0;
            move |s: Step| {
                said += u64::from(s.access == first_of);
                match s.access {
                    // The second of them, so that there is something to begin anew.
                    a if a == first_of && said > 1 => Err(code::EOPNOTSUPP),
                    Access::Zero => Err(code::EOPNOTSUPP),
                    _ => Ok(()),
                }
            }
        };
        let len = RANGE_STEP + 4096;
        let write = Access::Write { durable: true };
        let plan = Plan::unmap_or_write(4096, len, true, Ok(vec![0; 512]));
        let (done, res) = run(plan, unsupported(Access::Discard));
        assert_eq!(res, Ok(()));
        assert_eq!(done[2], step(Access::Zero, 4096, RANGE_STEP));
        assert_eq!(done[3], step(write, 4096, 128 << 10));
        let written: u64 = done[3..].iter().map(|s| s.len).sum();
        assert_eq!(written, len);
        // Durable as they are: no flush.
        assert!(done[3..].iter().all(|s| s.access == write));
        // Without one block of data there is nothing to write, which matters only now.
        let none = || Err(sense::PARAMETER_VALUE_INVALID.into());
        let plan = Plan::unmap_or_write(0, 512, false, none());
        assert_eq!(run(plan, |_| Ok(())).1, Ok(()));
        let plan = Plan::unmap_or_write(0, 512, false, none());
        let res = run(plan, |_| Err(code::EOPNOTSUPP)).1;
        assert_eq!(res, Err(sense::PARAMETER_VALUE_INVALID.into()));
    }

    #[test]
    fn patterns_are_repeated_and_zeros_left_to_the_host() {
        let plan = Plan::write(0, 4096, false, vec![0; 512]).unwrap();
        assert_eq!(run(plan, |_| Ok(())).0, [step(Access::Zero, 0, 4096)]);
        let plan = Plan::write(0, 4096, true, vec![0; 512]).unwrap();
        let wanted = [step(Access::Zero, 0, 4096), FLUSH];
        assert_eq!(run(plan, |_| Ok(())).0, wanted);
        let plan = Plan::write(0, 1536, false, vec![7; 512]).unwrap();
        assert_eq!(plan.buf.compare(0, &[7; 1536]), Ok(None));
        let wanted = [step(Access::Write { durable: false }, 0, 1536)];
        assert_eq!(run(plan, |_| Ok(())).0, wanted);
        let plan = Plan::write(0, 512, false, vec![7; 512]).unwrap();
        let full = run(plan, |_| Err(code::ENOSPC)).1;
        assert_eq!(full, Err(sense::SPACE_ALLOC_FAILED.into()));
    }

    #[test]
    fn verify_flushes_reads_and_compares() {
        let plan = Plan::verify(512, VERIFY_STEP + 512, false, true).unwrap();
        let wanted = [
            FLUSH,
            step(Access::Read, 512, VERIFY_STEP),
            step(Access::Read, 512 + VERIFY_STEP, 512),
        ];
        assert_eq!(run(plan, |_| Ok(())).0, wanted);
        for (byte, res) in [(0, Ok(())), (1, Err(sense::MISCOMPARE.into()))] {
            let mut plan = Plan::verify(0, 1024, true, false).unwrap();
            plan.buf.fill(0, 1024, 0).unwrap();
            plan.data = SGTable::alloc_zeroed(1024).unwrap();
            plan.data.fill(1023, 1, byte).unwrap();
            assert_eq!(run(plan, |_| Ok(())).1, res);
        }
        let plan = Plan::verify(0, 512, false, true).unwrap();
        let lost = |s: Step| match s.access {
            Access::Flush => Err(code::EIO),
            _ => Ok(()),
        };
        assert_eq!(run(plan, lost).1, Err(sense::WRITE_ERROR.into()));
        let plan = Plan::verify(0, 512, false, false).unwrap();
        let res = run(plan, |_| Err(code::EIO)).1;
        assert_eq!(res, Err(sense::READ_ERROR.into()));
    }
}
