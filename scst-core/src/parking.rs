//! What the engines that park commands have in common: [`Abortable`] and [`Released`].
//!
//! A *parked* command is owned by an engine (the SN engine of [`crate::order`], the device blocking of
//! [`crate::blocking`]) until something happens. Whoever makes it happen gets the commands that may go on, as
//! [`Released`], and must resume every one of them: hand it to its home reactor or pool, or run it in place.

use std::collections::VecDeque;

/// An item that task management can mark as aborted from any thread.
///
/// The mark is what closes the race between parking and task management: an engine looks at it *under its lock* before
/// it parks an item, and task management sets it *before* it asks the engine for parked items (`take_deferred`,
/// `take_blocked`). So an aborted item is either refused by the engine or found by task management.
pub trait Abortable {
    /// Whether the item is marked as aborted. Monotonic: never turns back to `false`.
    ///
    /// Context: any thread, called under the engine's lock; must not block or call back into the engine.
    #[doc(alias = "SCST_CMD_ABORTED")]
    fn is_aborted(&self) -> bool;
}

/// Parked items that may go on, oldest first.
///
/// Holds one item inline, so that the usual case (none, or one) does not allocate, and is returned in two registers.
///
/// # Examples
///
/// ```
/// use scst_core::parking::Released;
///
/// let mut r = Released::new();
/// r.push(1);
/// r.push(2);
/// assert_eq!(r.pop(), Some(1));
/// assert_eq!(r.into_iter().collect::<Vec<_>>(), [2]);
/// ```
// Invariant: `rest` is absent or empty while `first` is `None`.
#[derive(Debug)]
#[must_use = "released commands must be resumed, or they are lost"]
pub struct Released<T> {
    first: Option<T>,
    #[expect(
        clippy::box_collection,
        reason = "rarely there, and must not make the type larger"
    )]
    rest: Option<Box<VecDeque<T>>>,
}

impl<T> Released<T> {
    /// An empty list. Does not allocate.
    #[inline]
    pub const fn new() -> Self {
        Self {
            first: None,
            rest: None,
        }
    }

    /// Number of items.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.as_ref().map_or(0, |r| r.len())
    }

    /// Whether there is nothing to resume.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Adds an item behind the others.
    pub fn push(&mut self, item: T) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.rest.get_or_insert_default().push_back(item);
        }
    }

    /// Adds an item before the others.
    pub fn push_front(&mut self, item: T) {
        if let Some(old) = self.first.replace(item) {
            self.rest.get_or_insert_default().push_front(old);
        }
    }

    /// Takes the oldest item.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let item = self.first.take();
        if item.is_some() {
            self.first = self.rest.as_mut().and_then(|r| r.pop_front());
        }
        item
    }

    /// Moves all items of `other` behind the own ones.
    pub fn append(&mut self, mut other: Self) {
        while let Some(item) = other.pop() {
            self.push(item);
        }
    }

    /// The oldest item.
    pub fn front(&self) -> Option<&T> {
        self.first.as_ref()
    }

    /// The items, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.first
            .iter()
            .chain(self.rest.iter().flat_map(|r| r.iter()))
    }

    /// Moves the items for which `pred` holds to the end of `out`; the others keep their order.
    pub(crate) fn drain_if(&mut self, pred: &mut impl FnMut(&T) -> bool, out: &mut Vec<T>) {
        if !self.iter().any(&mut *pred) {
            return;
        }
        let mut keep = Self::new();
        while let Some(item) = self.pop() {
            if pred(&item) {
                out.push(item);
            } else {
                keep.push(item);
            }
        }
        *self = keep;
    }
}

impl<T> Default for Released<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Iterator of [`Released::into_iter`].
#[derive(Debug)]
pub struct IntoIter<T>(Released<T>);

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        self.0.pop()
    }
}

impl<T> IntoIterator for Released<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    #[inline]
    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

/// Stands between two steps that others may get in between: in tests the thread gives way here now and then, so that
/// they do, also on a machine with few CPUs.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn race_point() {}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "to race on purpose")]
pub(crate) fn race_point() {
    use std::cell::Cell;
    thread_local!(static SEED: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) });
    SEED.with(|seed| {
        let mut x = seed.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        seed.set(x);
        if x % 32 == 0 {
            std::thread::yield_now();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_over_all_ways_in_and_out() {
        let mut r = Released::new();
        assert!(r.is_empty());
        r.push(2);
        r.push(3);
        r.push_front(1);
        let mut tail = Released::new();
        tail.push(4);
        r.append(tail);
        assert_eq!(r.len(), 4);
        assert_eq!(r.front(), Some(&1));
        let mut out = Vec::new();
        r.drain_if(&mut |x| x % 2 == 0, &mut out);
        assert_eq!(out, [2, 4]);
        assert_eq!(r.iter().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(r.pop(), Some(1));
        assert_eq!(r.pop(), Some(3));
        assert_eq!(r.pop(), None);
        assert!(r.is_empty());
    }
}
