//! The order of writes that touch the same bytes.
//!
//! Each leg may carry out what it has been given in an order of its own. Of two writes to a block that are at the legs together
//! one leg could so keep the first and another the second, with nobody the wiser when both have ended: legs that are said to be
//! alike and are not. So a write waits for those before it that it overlaps with, and those that come after wait for it.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that were entered and have not left, each with what waits for those before it.
///
/// For each byte `last` knows the newest range that covers it. Who comes waits for those whose pieces it overlaps with: all
/// older ones there have one of these behind them. So entering and leaving cost the logarithm of the number of ranges, however
/// many there are on one byte; slots are used again.
#[doc(alias = "serialize_rb")]
#[doc(alias = "wait_for_serialization")]
pub(crate) struct Order<T> {
    /// By their first byte: the byte after the last, and the slot. Disjoint.
    last: BTreeMap<u64, (u64, usize)>,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

struct Slot<T> {
    range: Range<u64>,
    /// How many it waits for.
    before: usize,
    /// Those that wait for it.
    after: Vec<usize>,
    held: Option<T>,
}

/// A place in an [`Order`], to be given back to [`Order::leave`].
#[derive(Debug)]
pub(crate) struct Place(usize);

impl<T> Order<T> {
    pub(crate) fn new() -> Order<T> {
        Order {
            last: BTreeMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Takes a place behind all that overlap with `range`, for what `make` makes of it. `None`: there are some, and
    /// [`Order::leave`] gives it back when the last of them leaves.
    pub(crate) fn enter(&mut self, range: Range<u64>, make: impl FnOnce(Place) -> T) -> Option<T> {
        let n = self.free.pop().unwrap_or(self.slots.len());
        let before = self.cover(&range, n);
        for b in &before {
            if let Some(slot) = self.slots.get_mut(*b) {
                slot.after.push(n);
            }
        }
        if n == self.slots.len() {
            self.slots.push(Slot {
                range: 0..0,
                before: 0,
                after: Vec::new(),
                held: None,
            });
        }
        let slot = self.slots.get_mut(n)?;
        slot.range = range;
        slot.before = before.len();
        let what = make(Place(n));
        if before.is_empty() {
            return Some(what);
        }
        slot.held = Some(what);
        None
    }

    /// Makes `n` the newest on a range. Returns those that were so until now.
    fn cover(&mut self, range: &Range<u64>, n: usize) -> Vec<usize> {
        let mut before = Vec::new();
        if range.is_empty() {
            return before;
        }
        let left = self.last.range(..range.start).next_back();
        if let Some((&start, &(end, owner))) = left.filter(|(_, piece)| piece.0 > range.start) {
            before.push(owner);
            self.last.insert(start, (range.start, owner));
            if end > range.end {
                self.last.insert(range.end, (end, owner));
            }
        }
        while let Some((&start, &(end, owner))) = self.last.range(range.clone()).next() {
            before.push(owner);
            self.last.remove(&start);
            if end > range.end {
                self.last.insert(range.end, (end, owner));
            }
        }
        self.last.insert(range.start, (range.end, n));
        before.sort_unstable();
        before.dedup();
        before
    }

    /// Gives a place back. `next` gets each that waited for nobody else.
    pub(crate) fn leave(&mut self, Place(n): Place, mut next: impl FnMut(T)) {
        let Some(slot) = self.slots.get_mut(n) else {
            return;
        };
        let mut after = std::mem::take(&mut slot.after);
        let range = std::mem::take(&mut slot.range);
        let own = |last: &BTreeMap<u64, (u64, usize)>, from| {
            let mut pieces = last.range(from..range.end.max(from));
            let piece = pieces.find(|(_, piece)| piece.1 == n);
            piece.map(|(start, _)| *start)
        };
        let mut from = range.start;
        while let Some(start) = own(&self.last, from) {
            self.last.remove(&start);
            from = start;
        }
        for a in after.drain(..) {
            let Some(slot) = self.slots.get_mut(a) else {
                continue;
            };
            slot.before = slot.before.saturating_sub(1);
            if slot.before == 0
                && let Some(what) = slot.held.take()
            {
                next(what);
            }
        }
        if let Some(slot) = self.slots.get_mut(n) {
            // Its memory serves the next.
            slot.after = after;
        }
        self.free.push(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A range that was entered, by its place when it may go.
    struct Entered {
        range: Range<u64>,
        place: Option<Place>,
    }

    fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
        a.start.max(b.start) < a.end.min(b.end)
    }

    /// Which may go: those that no older one overlaps with.
    fn expected(entered: &BTreeMap<usize, Entered>) -> Vec<usize> {
        let clear = |n: usize, e: &Entered| {
            let mut older = entered.range(..n);
            !older.any(|(_, o)| overlap(&o.range, &e.range))
        };
        let all = entered.iter();
        all.filter(|(n, e)| clear(**n, e))
            .map(|(n, _)| *n)
            .collect()
    }

    fn clear(entered: &BTreeMap<usize, Entered>) -> Vec<usize> {
        let all = entered.iter();
        all.filter(|(_, e)| e.place.is_some())
            .map(|(n, _)| *n)
            .collect()
    }

    #[test]
    fn a_chain_goes_one_by_one() {
        let mut order = Order::new();
        let first = order.enter(0..8, |p| (0, p)).unwrap();
        assert!(order.enter(4..12, |p| (1, p)).is_none());
        assert!(order.enter(8..16, |p| (2, p)).is_none());
        let aside = order.enter(16..20, |p| (3, p)).unwrap();
        let leave = |order: &mut Order<(u32, Place)>, place| {
            let mut next = Vec::new();
            order.leave(place, |n| next.push(n));
            next
        };
        let mut second = leave(&mut order, first.1);
        assert_eq!((second.len(), second[0].0), (1, 1));
        assert!(leave(&mut order, aside.1).is_empty());
        let third = leave(&mut order, second.remove(0).1);
        assert_eq!((third.len(), third[0].0), (1, 2));
    }

    proptest! {
        /// Against a list of ranges that is looked through.
        #[test]
        fn like_a_list(steps in proptest::collection::vec((0..40u64, 0..16u64, any::<usize>()), 1..200)) {
            let mut order = Order::new();
            let mut entered = BTreeMap::new();
            for (number, (start, len, pick)) in steps.into_iter().enumerate() {
                if pick % 5 < 3 {
                    let range = start..start + len;
                    let place = order.enter(range.clone(), |p| (number, p)).map(|(_, p)| p);
                    entered.insert(number, Entered { range, place });
                } else {
                    leave_one(&mut order, &mut entered, pick / 5);
                }
                prop_assert_eq!(clear(&entered), expected(&entered));
            }
            while !entered.is_empty() {
                prop_assert!(leave_one(&mut order, &mut entered, 0), "some wait for nobody");
                prop_assert_eq!(clear(&entered), expected(&entered));
            }
            prop_assert!(order.last.is_empty());
            prop_assert_eq!(order.free.len(), order.slots.len());
        }
    }

    fn leave_one(
        order: &mut Order<(usize, Place)>,
        entered: &mut BTreeMap<usize, Entered>,
        pick: usize,
    ) -> bool {
        let can = clear(entered);
        let Some(n) = can.get(pick % can.len().max(1)) else {
            return false;
        };
        let place = entered.remove(n).and_then(|e| e.place).unwrap();
        order.leave(place, |(n, place)| {
            entered.get_mut(&n).unwrap().place = Some(place);
        });
        true
    }
}
