//! Numbers for objects.
//!
//! C header: `include/linux/idr.h`

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Result, code};

/// A table of objects by number. Numbers are given out in turn, so that one that was freed is not used again soon: a
/// late answer finds nothing rather than another's object.
///
/// It has no lock of its own: put it under one.
///
/// ```
/// use kshim::idr::Idr;
///
/// let mut requests = Idr::new(2);
/// let (a, b) = (requests.alloc_cyclic("a")?, requests.alloc_cyclic("b")?);
/// assert_eq!(requests.alloc_cyclic("c"), Err(kshim::error::code::ENOSPC));
/// assert_eq!(requests.remove(a), Some("a"));
/// let c = requests.alloc_cyclic("c")?;
/// assert!(c != a && requests.find(a).is_none());
/// assert_eq!(requests.find(b), Some(&"b"));
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "idr")]
pub struct Idr<T> {
    objects: BTreeMap<u64, T>,
    next: u64,
    max: usize,
}

impl<T> Idr<T> {
    /// An empty table that takes `max` objects at a time.
    #[doc(alias = "idr_init")]
    #[doc(alias = "DEFINE_IDR")]
    pub const fn new(max: usize) -> Idr<T> {
        Idr {
            objects: BTreeMap::new(),
            next: 0,
            max,
        }
    }

    /// Adds an object under the next number that is free.
    ///
    /// Context: any. Errors: `ENOSPC`: full; the object is dropped.
    #[doc(alias = "idr_alloc_cyclic")]
    pub fn alloc_cyclic(&mut self, object: T) -> Result<u64> {
        if self.objects.len() >= self.max {
            return Err(code::ENOSPC);
        }
        // Not full, so one is free.
        while self.objects.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.objects.insert(id, object);
        Ok(id)
    }

    /// The object with that number.
    #[doc(alias = "idr_find")]
    pub fn find(&self, id: u64) -> Option<&T> {
        self.objects.get(&id)
    }

    /// The object with that number, to be changed.
    pub fn find_mut(&mut self, id: u64) -> Option<&mut T> {
        self.objects.get_mut(&id)
    }

    /// Takes an object out.
    #[doc(alias = "idr_remove")]
    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.objects.remove(&id)
    }

    /// Takes all objects out, by number.
    #[doc(alias = "idr_destroy")]
    pub fn drain(&mut self) -> impl Iterator<Item = (u64, T)> + use<T> {
        std::mem::take(&mut self.objects).into_iter()
    }

    /// All objects, by number.
    #[doc(alias = "idr_for_each_entry")]
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.objects.iter().map(|(&id, o)| (id, o))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    #[doc(alias = "idr_is_empty")]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether no more can be added.
    pub fn is_full(&self) -> bool {
        self.objects.len() >= self.max
    }
}

impl<T> fmt::Debug for Idr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idr")
            .field("len", &self.objects.len())
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_and_skip_those_in_use() {
        let mut idr = Idr::new(4);
        idr.next = u64::MAX;
        assert_eq!(idr.alloc_cyclic('a'), Ok(u64::MAX));
        assert_eq!(idr.alloc_cyclic('b'), Ok(0));
        idr.next = u64::MAX;
        assert_eq!(idr.alloc_cyclic('c'), Ok(1));
        *idr.find_mut(1).unwrap() = 'd';
        assert_eq!(idr.iter().map(|(_, c)| *c).collect::<String>(), "bda");
        assert!(!idr.is_full() && !idr.is_empty());
        assert_eq!(idr.drain().count(), 3);
        assert_eq!((idr.len(), idr.find(1)), (0, None));
    }
}
