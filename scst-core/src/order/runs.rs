//! The queue of runs: who is older than whom, and who waits for whom.

use crate::parking::Released;
use std::collections::VecDeque;

/// Commands that share a serial number.
#[derive(Debug)]
struct Run<T> {
    /// Commands of the run that are not passed.
    count: u32,
    /// A single ORDERED command; no other joins.
    ordered: bool,
    /// Commands of the run (so counted) that wait for their turn.
    parked: Released<T>,
}

/// The runs that matter, oldest first.
// Invariants: the run at index i has serial number `expected + i`; no run but the last has a count of 0 when it is
// the first; an ORDERED run with a count of 0 is never the first; parked items count in their run.
#[derive(Debug)]
pub(super) struct Runs<T> {
    /// Serial number of the first run, or of the next one if there is none.
    expected: u32,
    queue: VecDeque<Run<T>>,
}

impl<T> Runs<T> {
    pub(super) const fn new() -> Self {
        Self {
            expected: 0,
            queue: VecDeque::new(),
        }
    }

    /// Starts again with one run of `count` SIMPLE commands.
    pub(super) fn restore(&mut self, sn: u32, count: u32) {
        debug_assert!(
            self.queue.is_empty(),
            "cleared when the state went into the word"
        );
        self.expected = sn;
        if count > 0 {
            self.queue.push_back(Run {
                count,
                ordered: false,
                parked: Released::new(),
            });
        }
    }

    /// Forgets what [`Self::as_single`] told.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    /// Serial number and count, if there is nothing but one run of SIMPLE commands, with nobody waiting.
    pub(super) fn as_single(&self) -> Option<(u32, u32)> {
        match (self.queue.len(), self.queue.front()) {
            (0, _) => Some((self.expected, 0)),
            (1, Some(r)) if !r.ordered && r.parked.is_empty() => Some((self.expected, r.count)),
            _ => None,
        }
    }

    /// Adds a SIMPLE command to the youngest run, or to a new one, and answers its serial number.
    pub(super) fn add_simple(&mut self) -> u32 {
        match self.queue.back_mut() {
            Some(r) if !r.ordered => r.count += 1,
            _ => self.push(false),
        }
        self.youngest()
    }

    /// Adds an ORDERED command and answers its serial number.
    pub(super) fn add_ordered(&mut self) -> u32 {
        self.push(true);
        self.advance();
        self.youngest()
    }

    fn push(&mut self, ordered: bool) {
        self.queue.push_back(Run {
            count: 1,
            ordered,
            parked: Released::new(),
        });
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "serial numbers wrap; fewer than 2^32 runs"
    )]
    fn youngest(&self) -> u32 {
        self.expected
            .wrapping_add(self.queue.len() as u32)
            .wrapping_sub(1)
    }

    fn get_mut(&mut self, sn: u32) -> Option<&mut Run<T>> {
        self.queue.get_mut(sn.wrapping_sub(self.expected) as usize)
    }

    /// Whether it is the turn of the commands with this number.
    pub(super) fn is_expected(&self, sn: u32) -> bool {
        sn == self.expected
    }

    /// One command of the run `sn` is passed.
    pub(super) fn pass(&mut self, sn: u32) {
        match self.get_mut(sn) {
            Some(r) if r.count > 0 => r.count -= 1,
            _ => debug_assert!(false, "passed twice, or never counted: {sn}"),
        }
        self.advance();
    }

    /// Leaves behind what is passed.
    fn advance(&mut self) {
        while let Some(r) = self.queue.front() {
            if r.count > 0 || (!r.ordered && self.queue.len() == 1) {
                break;
            }
            debug_assert!(r.parked.is_empty(), "parked commands count");
            self.queue.pop_front();
            self.expected = self.expected.wrapping_add(1);
        }
    }

    /// Keeps a command of the run `sn` until its turn; gives it back if there is no such run.
    pub(super) fn park(&mut self, sn: u32, item: T) -> Result<(), T> {
        match self.get_mut(sn) {
            Some(r) => {
                r.parked.push(item);
                Ok(())
            }
            None => Err(item),
        }
    }

    /// The parked commands whose turn it is.
    pub(super) fn release_expected(&mut self) -> Released<T> {
        self.queue
            .front_mut()
            .map_or_else(Released::new, |r| std::mem::take(&mut r.parked))
    }

    /// Number of parked commands.
    pub(super) fn parked(&self) -> usize {
        self.queue.iter().map(|r| r.parked.len()).sum()
    }

    /// Takes the parked commands for which `pred` holds, oldest first.
    pub(super) fn take_parked(&mut self, pred: &mut impl FnMut(&T) -> bool, out: &mut Vec<T>) {
        for r in &mut self.queue {
            r.parked.drain_if(pred, out);
        }
    }
}
