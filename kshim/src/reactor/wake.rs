//! The lock-free core of a reactor's mailbox: queued wakes and the decision to ring.
//!
//! # Wakes
//!
//! Each source slot owns a [`WakeEntry`] in a table that only grows. `wake` marks the entry, and when the entry was
//! not queued yet, pushes it onto a stack of indices: nothing is allocated, a source is queued at most once however
//! often it is woken, and a reactor that falls behind meets at most one entry per source. The reactor takes the whole
//! stack at once, so the stack has no ABA problem, and runs it in the order of arrival.
//!
//! The generation lives in the same word as the marks. A wake with an old token fails its compare-and-swap and has no
//! effect, even when it races with the slot's reuse.
//!
//! A wake for an entry that is already marked still performs the read-modify-write. The reactor clears the marks with
//! a read-modify-write of its own before it calls `woken`; of the two, whichever comes first in the word's
//! modification order is seen by the other. Either the reactor's clear comes later and acquires what the waker wrote
//! before, or the waker sees a cleared entry and queues it again. No wake is lost.
//!
//! # The door bell
//!
//! A sleeping reactor waits in the kernel, and an eventfd write costs a system call, so it must happen when the
//! reactor sleeps and only then. This is Dekker's protocol with two flags, *work* (the stack, the
//! posts, the stop flag) and *asleep*:
//!
//! ```text
//! sender:   work = 1;   fence(SeqCst);  if asleep { if asleep.swap(false) { ring } }
//! reactor:  asleep = 1; fence(SeqCst);  if work { asleep = 0; don't sleep } else { wait in the kernel; asleep = 0 }
//! ```
//!
//! The two fences are totally ordered. If the sender's comes first, the reactor's read of *work* after its own fence
//! sees the sender's write, and it does not sleep. If the reactor's comes first, the sender's read of *asleep* sees it
//! set, and rings; the bell is edge-triggered and counts, so a ring before the reactor has entered the kernel makes
//! the wait return at once. The swap lets exactly one of many senders ring per sleep. A sender that finds its wake
//! already queued returns without looking: the sender that queued it looks.
//!
//! A ring may come late, when the reactor has already woken for another reason; it then costs one empty round.

use crate::sys::sync::Mutex;
use crate::sys::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// The entry is on the list.
const QUEUED: u64 = 1;
/// The source of the entry's current generation wants `woken`.
const WOKEN: u64 = 2;
const GEN_SHIFT: u32 = 32;

/// The wake mark of one source slot.
#[derive(Default)]
pub(super) struct WakeEntry {
    /// Generation in the upper half, [`QUEUED`] and [`WOKEN`] in the lower.
    state: AtomicU64,
    /// The stack's link: the next entry's index plus one, zero at the end. Written only by the pusher, read by the
    /// reactor before it clears [`QUEUED`].
    next: AtomicU32,
}

impl WakeEntry {
    /// From here on only tokens of `generation` wake the entry. Reactor only.
    pub(super) fn set_generation(&self, generation: u32) {
        let word = u64::from(generation) << GEN_SHIFT;
        // The entry may still be on the list: that mark stays, the old generation's wake goes.
        let keep = |s: u64| Some(word | (s & QUEUED));
        let _ = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, keep);
    }

    /// Marks the entry as woken. True: the caller must put it on the list.
    fn mark(&self, generation: u32) -> bool {
        let mark = |s: u64| (s >> GEN_SHIFT == u64::from(generation)).then_some(s | QUEUED | WOKEN);
        match self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, mark)
        {
            Ok(old) => old & QUEUED == 0,
            Err(_) => false, // a stale token
        }
    }

    /// Takes the marks; the generation that is to be woken, if any.
    fn clear(&self) -> Option<u32> {
        let old = self.state.fetch_and(!(QUEUED | WOKEN), Ordering::AcqRel);
        let generation = u32::try_from(old >> GEN_SHIFT).unwrap_or(0);
        (old & WOKEN != 0).then_some(generation)
    }
}

/// The stack of entries that are queued.
#[derive(Default)]
pub(super) struct WakeList {
    head: AtomicU32,
}

impl WakeList {
    /// Wakes entry `index` of this generation. True: it was queued by this call, and the reactor may have to be rung.
    pub(super) fn wake(&self, entry: &WakeEntry, index: u32, generation: u32) -> bool {
        if !entry.mark(generation) {
            return false;
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            entry.next.store(head, Ordering::Relaxed);
            let new = index + 1;
            match self
                .head
                .compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(h) => head = h,
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == 0
    }

    /// Empties the list, newest first: `found(index, generation)`. Reactor only.
    pub(super) fn take<'e>(
        &self,
        entry: impl Fn(u32) -> Option<&'e WakeEntry>,
        mut found: impl FnMut(u32, u32),
    ) {
        if self.is_empty() {
            return;
        }
        let mut at = self.head.swap(0, Ordering::Acquire);
        while let Some(index) = at.checked_sub(1) {
            let Some(e) = entry(index) else { break };
            // Read the link before the entry may be queued again.
            at = e.next.load(Ordering::Relaxed);
            if let Some(generation) = e.clear() {
                found(index, generation);
            }
        }
    }
}

/// What others post to the reactor. An empty list is seen without the lock.
pub(super) struct Posts<T> {
    list: Mutex<List<T>>,
    len: AtomicUsize,
}

struct List<T> {
    items: Vec<T>,
    /// The reactor takes no more.
    closed: bool,
}

impl<T> Default for Posts<T> {
    fn default() -> Self {
        Self {
            list: Mutex::new(List {
                items: Vec::new(),
                closed: false,
            }),
            len: AtomicUsize::new(0),
        }
    }
}

impl<T> Posts<T> {
    /// Adds one; the caller may have to ring. Errors: it comes back from a reactor that takes no more.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut list = self.list.lock();
        if list.closed {
            return Err(item);
        }
        list.items.push(item);
        self.len.store(list.items.len(), Ordering::Release);
        Ok(())
    }

    /// Swaps what there is into the empty `out`. Reactor only.
    pub(super) fn take(&self, out: &mut Vec<T>) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut list = self.list.lock();
        std::mem::swap(&mut list.items, out);
        self.len.store(list.items.len(), Ordering::Release);
    }

    /// From here on [`Posts::push`] refuses. Reactor only.
    pub(super) fn close(&self) {
        self.list.lock().closed = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }
}

/// Whether the reactor sleeps.
#[derive(Default)]
pub(super) struct Door {
    asleep: AtomicBool,
}

impl Door {
    /// After work was left: true if the caller must ring.
    pub(super) fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }

    /// Announces sleep. False: there is work, don't. Reactor only.
    pub(super) fn prepare_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        // Swaps where stores would do: loom orders a flag's plain stores only as far as it must, and would let a sender
        // see an older sender's `false` after this `true`. They cost nothing next to the system call that follows.
        self.asleep.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if has_work() {
            self.awake();
            return false;
        }
        true
    }

    /// Ends what [`Door::prepare_sleep`] announced. Reactor only.
    pub(super) fn awake(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sys::sync::{Arc, Parker, explore};

    struct World {
        entries: [WakeEntry; 2],
        list: WakeList,
        door: Door,
        bell: Parker,
        rings: AtomicU32,
        /// What the wakers say before they wake.
        said: [AtomicU32; 2],
    }

    impl World {
        fn new() -> World {
            let w = World {
                entries: Default::default(),
                list: WakeList::default(),
                door: Door::default(),
                bell: Parker::new(),
                rings: AtomicU32::new(0),
                said: Default::default(),
            };
            w.entries.iter().for_each(|e| e.set_generation(1));
            w
        }

        fn wake(&self, index: u32) {
            self.said[index as usize].fetch_add(1, Ordering::Relaxed);
            if self.list.wake(&self.entries[index as usize], index, 1) && self.door.must_ring() {
                self.rings.fetch_add(1, Ordering::Relaxed);
                self.bell.unpark();
            }
        }

        /// Rounds and sleeps until everything said was heard.
        fn react(&self, expect: u32) {
            let mut announced = 0;
            let mut heard = [0; 2];
            while heard.iter().sum::<u32>() < expect {
                self.list.take(
                    |i| self.entries.get(i as usize),
                    |i, generation| {
                        assert_eq!(generation, 1);
                        heard[i as usize] = self.said[i as usize].load(Ordering::Relaxed);
                    },
                );
                if heard.iter().sum::<u32>() < expect {
                    announced += 1;
                    if self.door.prepare_sleep(|| !self.list.is_empty()) {
                        self.bell.park();
                        self.door.awake();
                    }
                }
            }
            // One ring for each announced sleep, at most; one that found work after all may be rung, too.
            assert!(self.rings.load(Ordering::Relaxed) <= announced);
        }
    }

    /// A lost wake would be a deadlock, which loom reports.
    #[test]
    fn loom_reactor_hears_two_wakers_of_one_source() {
        explore(3, || {
            let w = Arc::new(World::new());
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let w = w.clone();
                    loom::thread::spawn(move || w.wake(0))
                })
                .collect();
            w.react(2);
            wakers.into_iter().for_each(|t| t.join().unwrap());
        });
    }

    #[test]
    fn loom_reactor_hears_wakers_of_two_sources() {
        explore(3, || {
            let w = Arc::new(World::new());
            let wakers: Vec<_> = (0..2)
                .map(|i| {
                    let w = w.clone();
                    loom::thread::spawn(move || w.wake(i))
                })
                .collect();
            w.react(2);
            wakers.into_iter().for_each(|t| t.join().unwrap());
        });
    }

    /// Two who post, and a reactor that sleeps in between.
    #[test]
    fn loom_reactor_gets_all_posts() {
        explore(3, || {
            let w = Arc::new((Posts::default(), Door::default(), Parker::new()));
            let senders: Vec<_> = (0..2)
                .map(|i| {
                    let w = w.clone();
                    loom::thread::spawn(move || {
                        w.0.push(i).unwrap();
                        if w.1.must_ring() {
                            w.2.unpark();
                        }
                    })
                })
                .collect();
            let (mut all, mut some) = (Vec::new(), Vec::new());
            while all.len() < 2 {
                w.0.take(&mut some);
                all.append(&mut some);
                if all.len() < 2 && w.1.prepare_sleep(|| !w.0.is_empty()) {
                    w.2.park();
                    w.1.awake();
                }
            }
            all.sort_unstable();
            assert_eq!(all, [0, 1]);
            senders.into_iter().for_each(|t| t.join().unwrap());
        });
    }

    /// A post either comes back or is taken by the reactor's last look.
    #[test]
    fn loom_reactor_leaves_no_post_behind() {
        explore(3, || {
            let posts = Arc::new(Posts::default());
            let sender = {
                let posts = posts.clone();
                loom::thread::spawn(move || posts.push(7).is_ok())
            };
            posts.close();
            let mut out = Vec::new();
            posts.take(&mut out);
            let posted = sender.join().unwrap();
            assert_eq!(out.len(), usize::from(posted));
        });
    }

    #[test]
    fn loom_reactor_ignores_stale_wakers() {
        explore(3, || {
            let w = Arc::new(World::new());
            let waker = {
                let w = w.clone();
                loom::thread::spawn(move || w.wake(0))
            };
            // The slot changes hands while it is being woken.
            w.entries[0].set_generation(2);
            let mut found = Vec::new();
            w.list
                .take(|i| w.entries.get(i as usize), |i, g| found.push((i, g)));
            waker.join().unwrap();
            w.list
                .take(|i| w.entries.get(i as usize), |i, g| found.push((i, g)));
            assert!(found.is_empty());
            assert!(w.list.wake(&w.entries[0], 0, 2));
            w.list
                .take(|i| w.entries.get(i as usize), |i, g| found.push((i, g)));
            assert_eq!(found, [(0, 2)]);
        });
    }
}
