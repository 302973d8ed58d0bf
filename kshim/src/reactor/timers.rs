//! The timers of a reactor: an indexed heap with lazy postponement.
//!
//! A session's timers are re-armed all the time (each PDU postpones the NOP-In timer) and hardly ever fire. So a
//! postponed or cancelled timer leaves its heap entry where it is, at O(1), and the entry is corrected when it comes
//! to the top; only arming earlier than before moves it at once. Each timer has at most one heap entry, so that the
//! heap never exceeds the number of timers, and the top is corrected *before* the reactor sleeps, so that nobody is
//! woken for a deadline that was postponed.

use crate::time::Instant;

/// No entry in the heap.
const OUT: u32 = u32::MAX;

struct Rec {
    /// The source's slot and its timer number.
    owner: u32,
    slot: u32,
    /// When it fires; `None` when it is not armed.
    at: Option<Instant>,
    /// Where its entry is in the heap, or [`OUT`].
    pos: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    key: Instant,
    rec: u32,
}

/// A handle of one timer of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimerId(u32);

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Timers {
    recs: Vec<Rec>,
    free: Vec<u32>,
    heap: Vec<Entry>,
}

fn idx(i: u32) -> usize {
    usize::try_from(i).expect("usize has at least 32 bits here")
}

impl Timers {
    /// A timer for timer number `slot` of the source in slot `owner`, not armed.
    pub(super) fn create(&mut self, owner: u32, slot: u32) -> TimerId {
        let rec = Rec {
            owner,
            slot,
            at: None,
            pos: OUT,
        };
        if let Some(i) = self.free.pop() {
            self.recs[idx(i)] = rec;
            return TimerId(i);
        }
        let i = u32::try_from(self.recs.len()).expect("sources and their timers are bounded");
        self.recs.push(rec);
        TimerId(i)
    }

    /// Gives the timer back, armed or not.
    pub(super) fn destroy(&mut self, t: TimerId) {
        let pos = self.recs[idx(t.0)].pos;
        if pos != OUT {
            self.remove_at(idx(pos));
        }
        self.recs[idx(t.0)].at = None;
        self.free.push(t.0);
    }

    pub(super) fn arm(&mut self, t: TimerId, at: Instant) {
        let rec = &mut self.recs[idx(t.0)];
        rec.at = Some(at);
        if rec.pos == OUT {
            let pos = self.heap.len();
            self.heap.push(Entry { key: at, rec: t.0 });
            self.sift_up(pos);
            return;
        }
        let pos = idx(rec.pos);
        if at < self.heap[pos].key {
            self.heap[pos].key = at;
            self.sift_up(pos);
        }
    }

    pub(super) fn cancel(&mut self, t: TimerId) {
        self.recs[idx(t.0)].at = None;
    }

    /// When the next timer fires.
    pub(super) fn next(&mut self) -> Option<Instant> {
        self.settle();
        self.heap.first().map(|e| e.key)
    }

    /// Takes the next timer that is due at `now`: the source's slot and the timer number.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(u32, u32)> {
        if self.next()? > now {
            return None;
        }
        let rec = self.heap[0].rec;
        self.remove_at(0);
        let rec = &mut self.recs[idx(rec)];
        rec.at = None;
        Some((rec.owner, rec.slot))
    }

    /// Entries in the heap: an upper bound of the armed timers.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Corrects the top until it is an armed timer at its true time.
    fn settle(&mut self) {
        while let Some(&Entry { key, rec }) = self.heap.first() {
            match self.recs[idx(rec)].at {
                None => self.remove_at(0),
                Some(at) if at > key => {
                    self.heap[0].key = at;
                    self.sift_down(0);
                }
                Some(_) => return,
            }
        }
    }

    fn remove_at(&mut self, pos: usize) {
        let gone = self.heap.swap_remove(pos);
        self.recs[idx(gone.rec)].pos = OUT;
        if pos < self.heap.len() {
            self.sift_down(pos);
            self.sift_up(pos);
        }
    }

    fn place(&mut self, pos: usize, e: Entry) {
        self.heap[pos] = e;
        self.recs[idx(e.rec)].pos = u32::try_from(pos).expect("bounded by the number of timers");
    }

    fn sift_up(&mut self, mut pos: usize) {
        let e = self.heap[pos];
        while pos > 0 {
            let parent = (pos - 1) / 2;
            if self.heap[parent].key <= e.key {
                break;
            }
            self.place(pos, self.heap[parent]);
            pos = parent;
        }
        self.place(pos, e);
    }

    fn sift_down(&mut self, mut pos: usize) {
        let e = self.heap[pos];
        loop {
            let mut child = 2 * pos + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1].key < self.heap[child].key {
                child += 1;
            }
            if e.key <= self.heap[child].key {
                break;
            }
            self.place(pos, self.heap[child]);
            pos = child;
        }
        self.place(pos, e);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Delta;
    use proptest::prelude::*;

    fn base() -> Instant {
        Instant::now()
    }

    fn at(b: Instant, ms: u64) -> Instant {
        b + Delta::from_millis(ms.try_into().unwrap())
    }

    #[test]
    fn fires_in_order_of_deadlines() {
        let b = base();
        let mut t = Timers::default();
        for (i, ms) in [50u64, 10, 40, 20, 30].into_iter().enumerate() {
            let id = t.create(u32::try_from(i).unwrap(), 0);
            t.arm(id, at(b, ms));
        }
        assert_eq!(t.next(), Some(at(b, 10)));
        assert_eq!(t.pop_due(at(b, 5)), None);
        let order: Vec<u32> =
            std::iter::from_fn(|| t.pop_due(at(b, 100)).map(|(o, _)| o)).collect();
        assert_eq!(order, [1, 3, 4, 2, 0]);
        assert_eq!(t.next(), None);
    }

    #[test]
    fn postponing_is_lazy_and_exact() {
        let b = base();
        let mut t = Timers::default();
        let x = t.create(1, 0);
        for ms in 0..10_000 {
            t.arm(x, at(b, ms));
        }
        assert_eq!(t.len(), 1, "one entry however often it is armed");
        assert_eq!(t.next(), Some(at(b, 9_999)));
        t.cancel(x);
        assert_eq!(t.next(), None);
        assert_eq!(t.len(), 0);
        t.arm(x, at(b, 3));
        t.destroy(x);
        assert_eq!(t.next(), None);
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_list(ops in proptest::collection::vec((0u8..4, 0usize..16, 0u64..200), 1..300)) {
            let b = base();
            let mut t = Timers::default();
            let ids: Vec<TimerId> = (0..16).map(|i| t.create(i, i + 100)).collect();
            let mut model: Vec<Option<u64>> = vec![None; 16];
            for (op, i, ms) in ops {
                match op {
                    0 | 1 => { t.arm(ids[i], at(b, ms)); model[i] = Some(ms); }
                    2 => { t.cancel(ids[i]); model[i] = None; }
                    _ => {
                        // Fire everything due at `ms`.
                        let mut fired = Vec::new();
                        while let Some((o, s)) = t.pop_due(at(b, ms)) {
                            prop_assert_eq!(s, o + 100);
                            fired.push(model[usize::try_from(o).unwrap()].take().unwrap());
                        }
                        prop_assert!(fired.is_sorted());
                        prop_assert!(fired.iter().all(|&m| m <= ms));
                        prop_assert!(model.iter().flatten().all(|&m| m > ms));
                    }
                }
                prop_assert_eq!(t.next(), model.iter().flatten().min().map(|&m| at(b, m)));
                prop_assert!(t.len() <= 16);
            }
        }
    }
}
