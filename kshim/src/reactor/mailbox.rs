//! How other threads reach a reactor: wakes, posted closures, and the door bell. The lock-free part, and why it works,
//! is in [`super::wake`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::wake::{Door, Posts, WakeEntry, WakeList};
use super::{Cx, MAX_SOURCES, Token};
use crate::error::Result;
use crate::sys::poll::EventFd;

/// A closure on its way to a reactor.
pub(super) type Post = Box<dyn FnOnce(&mut Cx<'_>) + Send>;

/// Entries of the table's first chunk; each further chunk is twice as large.
const FIRST_CHUNK: usize = 64;
/// Enough chunks for [`MAX_SOURCES`]: 64 * (2^15 - 1) entries.
const CHUNKS: usize = 15;
const _: () = assert!(FIRST_CHUNK * ((1 << CHUNKS) - 1) >= MAX_SOURCES);

/// The shared half of a reactor. See the module's documentation.
pub(super) struct Mailbox {
    bell: EventFd,
    door: CacheLine<Door>,
    wakes: CacheLine<WakeList>,
    posts: Posts<Post>,
    stop: AtomicBool,
    rings: AtomicU64,
    /// The entries of all slots, in chunks that never move.
    chunks: [OnceLock<Box<[WakeEntry]>>; CHUNKS],
}

/// Keeps a hot word away from its neighbours.
#[repr(align(64))]
#[derive(Default)]
struct CacheLine<T>(T);

impl Mailbox {
    pub(super) fn new() -> Result<Mailbox> {
        Ok(Mailbox {
            bell: EventFd::new()?,
            door: CacheLine::default(),
            wakes: CacheLine::default(),
            posts: Posts::default(),
            stop: AtomicBool::new(false),
            rings: AtomicU64::new(0),
            chunks: Default::default(),
        })
    }

    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// How many times a sender had to ring.
    pub(super) fn rings(&self) -> u64 {
        self.rings.load(Ordering::Relaxed)
    }

    fn locate(index: u32) -> Option<(usize, usize)> {
        let n = usize::try_from(index).ok()? / FIRST_CHUNK + 1;
        let chunk = usize::try_from(n.ilog2()).ok()?;
        let start = FIRST_CHUNK * ((1 << chunk) - 1);
        Some((chunk, usize::try_from(index).ok()? - start))
    }

    fn entry(&self, index: u32) -> Option<&WakeEntry> {
        let (chunk, at) = Self::locate(index)?;
        self.chunks.get(chunk)?.get()?.get(at)
    }

    /// Makes the entry of slot `index` exist and gives it a generation. Reactor only.
    pub(super) fn open_entry(&self, index: u32, generation: u32) {
        let Some((chunk, _)) = Self::locate(index) else {
            return;
        };
        if let Some(c) = self.chunks.get(chunk) {
            c.get_or_init(|| {
                (0..FIRST_CHUNK << chunk)
                    .map(|_| WakeEntry::default())
                    .collect()
            });
        }
        self.set_generation(index, generation);
    }

    /// From here on only tokens of `generation` wake the entry. Reactor only.
    pub(super) fn set_generation(&self, index: u32, generation: u32) {
        if let Some(e) = self.entry(index) {
            e.set_generation(generation);
        }
    }

    /// Asks for `woken` on the source of `t`. Context: any thread; does not allocate.
    pub(super) fn wake(&self, t: Token) {
        if let Some(e) = self.entry(t.index)
            && self.wakes.0.wake(e, t.index, t.generation)
        {
            self.ring_if_asleep();
        }
    }

    /// Moves the queued wakes into `out`, oldest first. Reactor only.
    pub(super) fn take_wakes(&self, out: &mut Vec<Token>) {
        let first = out.len();
        self.wakes.0.take(
            |i| self.entry(i),
            |index, generation| out.push(Token { index, generation }),
        );
        out.get_mut(first..).unwrap_or_default().reverse();
    }

    /// Queues a closure. False: the reactor has stopped, and the closure was dropped.
    pub(super) fn post(&self, f: Post) -> bool {
        if let Err(f) = self.posts.push(f) {
            drop(f); // outside the lock: its captures may do anything
            return false;
        }
        self.ring_if_asleep();
        true
    }

    /// Swaps the posted closures into the empty `out`. Reactor only.
    pub(super) fn take_posts(&self, out: &mut Vec<Post>) {
        self.posts.take(out);
    }

    /// From here on [`Mailbox::post`] refuses. Reactor only.
    pub(super) fn close(&self) {
        self.posts.close();
    }

    /// Asks the reactor to end. Context: any thread.
    pub(super) fn request_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.ring_if_asleep();
    }

    pub(super) fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn ring_if_asleep(&self) {
        if self.door.0.must_ring() {
            self.rings.fetch_add(1, Ordering::Relaxed);
            self.bell.signal();
        }
    }

    /// Announces sleep. False: there is work, don't. Reactor only.
    pub(super) fn prepare_sleep(&self) -> bool {
        self.door.0.prepare_sleep(|| self.has_work())
    }

    /// Ends what [`Mailbox::prepare_sleep`] announced. Reactor only.
    pub(super) fn awake(&self) {
        self.door.0.awake();
    }

    /// Whether something waits for the reactor.
    pub(super) fn has_work(&self) -> bool {
        !self.wakes.0.is_empty() || !self.posts.is_empty() || self.stop.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tok(index: u32, generation: u32) -> Token {
        Token { index, generation }
    }

    fn taken(m: &Mailbox) -> Vec<Token> {
        let mut v = Vec::new();
        m.take_wakes(&mut v);
        v
    }

    #[test]
    fn indices_map_to_distinct_entries() {
        let mut seen = std::collections::HashSet::new();
        for i in 0..5000 {
            let (c, at) = Mailbox::locate(i).unwrap();
            assert!(at < FIRST_CHUNK << c, "{i}");
            assert!(seen.insert((c, at)));
        }
        assert_eq!(Mailbox::locate(63), Some((0, 63)));
        assert_eq!(Mailbox::locate(64), Some((1, 0)));
        assert_eq!(Mailbox::locate(192), Some((2, 0)));
    }

    #[test]
    fn wakes_coalesce_and_keep_their_order() {
        let m = Mailbox::new().unwrap();
        for i in 0..100 {
            m.open_entry(i, 1);
        }
        for i in [7, 3, 99, 3, 7, 0] {
            m.wake(tok(i, 1));
        }
        assert_eq!(taken(&m), [tok(7, 1), tok(3, 1), tok(99, 1), tok(0, 1)]);
        assert!(taken(&m).is_empty());
        m.wake(tok(3, 1));
        assert_eq!(taken(&m), [tok(3, 1)]);
    }

    #[test]
    fn stale_tokens_do_nothing() {
        let m = Mailbox::new().unwrap();
        m.open_entry(0, 1);
        m.wake(tok(0, 2));
        m.wake(tok(1, 1)); // same chunk, never opened: generation 0
        m.wake(tok(1 << 19, 1)); // no chunk
        m.wake(tok(u32::MAX, 1));
        assert!(taken(&m).is_empty());
    }

    #[test]
    fn a_wake_does_not_reach_the_next_occupant() {
        let m = Mailbox::new().unwrap();
        m.open_entry(0, 1);
        m.wake(tok(0, 1));
        m.set_generation(0, 2); // still on the stack
        assert!(taken(&m).is_empty());
        m.wake(tok(0, 1));
        assert!(taken(&m).is_empty());
        // Woken for the new generation while on the stack for the old one.
        m.wake(tok(0, 2));
        m.set_generation(0, 3);
        m.wake(tok(0, 3));
        assert_eq!(taken(&m), [tok(0, 3)]);
    }

    #[test]
    fn only_a_sleeper_is_rung_and_once() {
        let m = Mailbox::new().unwrap();
        m.open_entry(0, 1);
        m.open_entry(1, 1);
        m.wake(tok(0, 1));
        assert_eq!(m.rings(), 0);
        assert!(!m.prepare_sleep(), "work is waiting");
        taken(&m);
        assert!(m.prepare_sleep());
        m.wake(tok(0, 1));
        m.wake(tok(1, 1));
        m.wake(tok(0, 1));
        assert!(m.post(Box::new(|_| ())));
        assert_eq!(m.rings(), 1);
        m.awake();
    }

    #[test]
    fn a_closed_mailbox_refuses_posts() {
        let m = Mailbox::new().unwrap();
        assert!(m.post(Box::new(|_| ())));
        m.close();
        assert!(!m.post(Box::new(|_| ())));
        let mut v = Vec::new();
        m.take_posts(&mut v);
        assert_eq!(v.len(), 1);
    }
}
