//! Memory that a bdev has read a block into, or has the block in: lent until it was sent.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kshim::error::Result;
use kshim::page::{LentMem, LentOwner};
use kshim::sync::SpinLock;

use super::bdev::ReadIo;

/// What comes back, from any thread.
#[derive(Default)]
struct Back {
    keys: SpinLock<Vec<u64>>,
    /// There are some.
    some: AtomicBool,
}

impl LentOwner for Back {
    fn give_back(&self, key: u64) {
        let mut keys = self.keys.lock();
        keys.push(key);
        self.some.store(true, Ordering::Release);
    }
}

/// What a thread has lent, each with something that has to live as long.
///
/// # Invariants
///
/// An entry leaves `lent` when its key came back, and not before; in the end it leaks rather.
pub(in crate::spdk) struct Lends<K> {
    lent: RefCell<Vec<Option<(ReadIo, K)>>>,
    /// Unused places of it.
    free: RefCell<Vec<usize>>,
    back: Arc<Back>,
}

impl<K> Default for Lends<K> {
    fn default() -> Self {
        Lends {
            lent: RefCell::default(),
            free: RefCell::default(),
            back: Arc::default(),
        }
    }
}

impl<K> Lends<K> {
    /// Lends what was read. Errors: `EINVAL`: nothing was.
    pub(in crate::spdk) fn lend(&self, io: ReadIo, keep: K) -> Result<LentMem> {
        let (ptr, len) = io.memory();
        let mut lent = self.lent.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            lent.push(None);
            lent.len() - 1
        });
        lent[place] = Some((io, keep));
        let owner = Arc::clone(&self.back) as Arc<dyn LentOwner>;
        // SAFETY: the memory is there as long as the request is not freed, which the entry has; it stays until the key comes back, by
        // the invariant. Places are given out once at a time.
        unsafe { LentMem::of_driver(ptr, len, owner, place as u64) }
    }

    /// Ends what came back, after a look at each.
    pub(in crate::spdk) fn collect(&self, mut look: impl FnMut(&K)) {
        if !self.back.some.load(Ordering::Acquire) {
            return;
        }
        let keys = {
            let mut keys = self.back.keys.lock();
            self.back.some.store(false, Ordering::Relaxed);
            std::mem::take(&mut *keys)
        };
        for &key in &keys {
            let place = usize::try_from(key).unwrap_or(usize::MAX);
            let entry = self.lent.borrow_mut().get_mut(place).and_then(Option::take);
            if let Some((_, keep)) = &entry {
                look(keep);
                self.free.borrow_mut().push(place);
            }
        }
        let mut empty = keys;
        empty.clear();
        let mut keys = self.back.keys.lock();
        // For its capacity.
        if keys.is_empty() {
            *keys = empty;
        }
    }

    /// How many are lent.
    pub(in crate::spdk) fn len(&self) -> usize {
        self.lent.borrow().len() - self.free.borrow().len()
    }
}

impl<K> Drop for Lends<K> {
    fn drop(&mut self) {
        self.collect(|_| {});
        for entry in self.lent.get_mut().drain(..).flatten() {
            // Somebody may look at it still.
            std::mem::forget(entry);
        }
    }
}
