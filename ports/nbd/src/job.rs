//! A bio and the requests that it becomes.

use crate::proto::Cmd;
use kshim::block::{BioOp, ReqFlags, SubmittedBio};
use kshim::prelude::*;
use kshim::sync::{Mutex, SpinLock};
use kshim::time::Instant;
use std::collections::BTreeMap;

/// Pieces that do not touch which one reply may be in at a time.
const MAX_PIECES: usize = 4096;
/// Chunks with errors in one reply.
const MAX_ERRORS: u32 = 64;

/// What of a bio is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The flush before the data.
    PreFlush,
    /// What it asks for.
    Work,
    /// A flush for a server without FUA.
    PostFlush,
}

/// A bio.
pub(crate) struct Job {
    pub(crate) op: BioOp,
    pub(crate) flags: ReqFlags,
    pub(crate) pos: u64,
    pub(crate) len: u64,
    pub(crate) sg_at: usize,
    /// A flush that nobody has asked for: there is no bio.
    pub(crate) own: bool,
    /// The bio, until it is completed. Locked for single calls that do not wait.
    pub(crate) bio: Mutex<Option<SubmittedBio>>,
    pub(crate) progress: SpinLock<Progress>,
}

/// How far a bio is.
pub(crate) struct Progress {
    pub(crate) stage: Stage,
    /// Requests of this stage that have not ended.
    pub(crate) left: usize,
    /// The first error of the stage.
    pub(crate) status: Result,
    /// Connections that were lost when the first request of [`Stage::Work`] ended.
    pub(crate) epoch: Option<u64>,
    /// How often all was written again, as a connection was lost between data and flush.
    pub(crate) repeats: u32,
    /// Writes that had ended when the flush was asked for.
    pub(crate) mark: u64,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            stage: Stage::Work,
            left: 0,
            status: Ok(()),
            epoch: None,
            repeats: 0,
            mark: 0,
        }
    }
}

impl Job {
    pub(crate) fn new(bio: SubmittedBio) -> Arc<Job> {
        Arc::new(Job {
            op: bio.op,
            flags: bio.flags,
            pos: bio.pos(),
            // No host has more memory than that.
            len: u64::try_from(bio.len).unwrap_or(u64::MAX),
            sg_at: bio.sg_at,
            own: false,
            bio: Mutex::new(Some(bio)),
            progress: SpinLock::new(Progress::new()),
        })
    }

    pub(crate) fn own_flush() -> Arc<Job> {
        Arc::new(Job {
            op: BioOp::Flush,
            flags: ReqFlags::empty(),
            pos: 0,
            len: 0,
            sg_at: 0,
            own: true,
            bio: Mutex::new(None),
            progress: SpinLock::new(Progress::new()),
        })
    }

    /// Ends the bio.
    pub(crate) fn complete(&self, status: Result) {
        let bio = self.bio.lock().take();
        if let Some(bio) = bio {
            bio.complete(status);
        }
    }
}

/// A request: a part of a bio.
pub(crate) struct Part {
    pub(crate) job: Arc<Job>,
    pub(crate) cmd: Cmd,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// Where its data is in the bio's table.
    pub(crate) at: usize,
    /// When the server has to have answered. Set when it is sent.
    pub(crate) deadline: Instant,
    /// How often it was not answered in time.
    pub(crate) timeouts: u32,
    pub(crate) answer: Answer,
}

/// What came of a structured reply.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Parts that came, offset in the request to end: they neither touch nor overlap.
    pieces: BTreeMap<u32, u32>,
    pub(crate) error: Option<Error>,
    errors: u32,
}

impl Answer {
    /// Notes a piece of data. Errors: `EPROTO`: it came before, has no bytes, or there are too many pieces.
    pub(crate) fn add(&mut self, at: u32, len: u32) -> Result {
        let mut end = at.checked_add(len).filter(|_| len > 0).ok_or(EPROTO)?;
        let mut from = at;
        if let Some((&f, &e)) = self.pieces.range(..=at).next_back() {
            if e > at {
                return Err(EPROTO);
            }
            if e == at {
                from = f;
            }
        }
        if let Some((&f, &e)) = self.pieces.range(at..).next() {
            if f < end {
                return Err(EPROTO);
            }
            if f == end {
                self.pieces.remove(&f);
                end = e;
            }
        }
        self.pieces.insert(from, end);
        if self.pieces.len() > MAX_PIECES {
            return Err(EPROTO);
        }
        Ok(())
    }

    /// Notes an error. Errors: `EPROTO`: too many.
    pub(crate) fn fail(&mut self, e: Error) -> Result {
        self.errors += 1;
        self.error.get_or_insert(e);
        if self.errors > MAX_ERRORS {
            return Err(EPROTO);
        }
        Ok(())
    }

    /// Whether all of `len` bytes came.
    pub(crate) fn is_whole(&self, len: u32) -> bool {
        len == 0 || self.pieces.len() == 1 && self.pieces.get(&0) == Some(&len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_are_what_a_bitmap_says(pieces in proptest::collection::vec((0u32..60, 0u32..12), 1..30)) {
            let mut answer = Answer::default();
            let mut model = [false; 72];
            for (at, len) in pieces {
                let range = at as usize..(at + len) as usize;
                let fits = len > 0 && range.clone().all(|i| !model[i]);
                prop_assert_eq!(answer.add(at, len).is_ok(), fits);
                if !fits { return Ok(()); }
                model[range].fill(true);
                for len in 1..72u32 {
                    let whole = model[..len as usize].iter().all(|b| *b) && !model[len as usize..].contains(&true);
                    prop_assert_eq!(answer.is_whole(len), whole);
                }
            }
        }
    }

    #[test]
    fn answers_are_bounded() {
        let mut a = Answer::default();
        let failed = (0..=MAX_PIECES as u32).find(|i| a.add(2 * i, 1).is_err());
        assert_eq!(failed, Some(MAX_PIECES as u32));
        let mut a = Answer::default();
        assert!((0..MAX_ERRORS).all(|_| a.fail(ENOSPC).is_ok()) && a.fail(EIO).is_err());
        assert_eq!(a.error, Some(ENOSPC));
        assert_eq!(a.add(u32::MAX, 2), Err(EPROTO));
    }
}
