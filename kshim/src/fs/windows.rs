//! Writing into the page cache by a copy, through mapped windows of the file.
//!
//! A buffered `pwrite` costs much more than its copy: ext4 walks the buffer heads of the whole folio, which may be large, at
//! each write, and looks at its journal. A page that is in the cache already can be written by copying into a shared
//! mapping; the file system hears of it once, at the first write after each write-back (`page_mkwrite`). What such a write
//! means is the same: it is in the page cache, where `read` finds it, and `fdatasync` makes it durable.
//!
//! But it hears of the folio: all of it becomes dirty, up to some MiB where the cache has large ones, and is written to the disk. So this is for
//! files that are written much and flushed rarely, which the caller has to know.
//!
//! What is written so and what is not:
//!
//! - Only pages that are in the cache. `mincore` says so before; a page of which nothing is known is written by `pwrite`, which
//!   need not read it from the disk first.
//! - Only files on file systems of which this is known to be right and fast (see `maps_well` of `sys::linux::file`): not on network
//!   file systems and FUSE, where a mapping means something else.
//! - A copy that faults (the file was cut, its file system is full, the disk failed) wrote nothing that counts: `pwrite` is called, and
//!   says what is wrong. So it is when the file turns out to end before the range's end afterwards: bytes beyond the end in
//!   the last page would be lost without a fault.
//!
//! Mapping all of a large file would take page tables of a five-hundredth of what was ever touched. So the file is seen as
//! windows, a fixed number of which are mapped. Each slot of the table is fought over by the windows whose number maps to it:
//! a use of the window that holds it counts for that window, a use of another against it, and at zero the other takes over; a
//! window that has gathered a few votes is mapped. A part of the file that is used much is mapped soon and stays so; random
//! I/O over a file larger than all windows maps next to nothing, and pays a few nanoseconds for that.
//!
//! # Soundness
//!
//! The windows' bytes are touched by the guarded copy of `sys::linux::guard` alone, never by a reference (as file memory of
//! [`LentMem`](crate::page::LentMem)). A window is unmapped when its last user is done: users hold it by `Arc`.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Result, code};
use crate::scatterlist::SGTable;
use crate::sync::SpinLock;
use crate::sys::linux::file as sys;
use crate::sys::linux::guard::{guarded_copy, install};
use crate::sys::linux::mem::{Access, Mapping};

/// Bytes of a window.
const WINDOW: u64 = 4 << 20;
/// Windows that may be mapped: 1 GiB of the file, with at most 2 MiB of page tables.
const SLOTS: usize = 256;
/// Votes with which a window is mapped: a `mmap` and its faults must be worth it.
const MAP_AT: u8 = 8;
/// Votes that a window keeps at most.
const VOTES_MAX: u8 = 64;
/// Windows of all files together. Hosts permit a process 65,530 mappings unless told otherwise, and threads, memory pools
/// and plug-ins need theirs.
const TOTAL: usize = 16 << 10;
/// Bytes that are looked at and copied in one go.
const CHUNK: usize = 1 << 20;

/// Windows of all files that are mapped.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// A mapped part of the file.
#[derive(Debug)]
struct Window {
    map: Mapping,
    /// Bytes of the file in it when it was mapped.
    len: usize,
    /// Held by who copies: of two writes of one block one wins, as with `pwrite`, which locks all of the file. A fault may
    /// wait for the disk under it, as a `pwrite` may; others park meanwhile.
    writer: SpinLock<()>,
}

/// Counts one more; `ENOSPC`: there are [`TOTAL`].
fn count_one(mapped: &AtomicUsize) -> Result {
    let more = |n: usize| (n < TOTAL).then_some(n + 1);
    let counted = mapped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    counted.map(drop).map_err(|_| code::ENOSPC)
}

impl Window {
    /// Maps one; `ENOSPC`: there are too many already. Other errors: those of `mmap(2)`.
    fn new(fd: BorrowedFd<'_>, begin: u64, len: usize) -> Result<Window> {
        count_one(&MAPPED)?;
        match Mapping::shared_file(fd, begin, len, Access::ReadWrite) {
            Ok(map) => Ok(Window {
                map,
                len,
                writer: SpinLock::new(()),
            }),
            Err(e) => {
                MAPPED.fetch_sub(1, Ordering::Relaxed);
                Err(e)
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who holds a slot of the table.
#[derive(Debug, Default)]
struct Slot {
    window: u64,
    votes: u8,
    map: Option<Arc<Window>>,
}

impl Slot {
    /// A use of window `no`. Answers whether the slot is its own, and has votes enough for a mapping.
    fn vote(&mut self, no: u64) -> bool {
        if self.window == no {
            self.votes = self.votes.saturating_add(1).min(VOTES_MAX);
        } else if self.votes > 0 {
            self.votes -= 1;
            return false;
        } else {
            *self = Slot {
                window: no,
                votes: 1,
                map: None,
            };
        }
        self.votes >= MAP_AT
    }
}

/// The windows of one file. All methods: any thread.
#[derive(Debug)]
pub(super) struct CacheWindows {
    slots: Box<[SpinLock<Slot>]>,
    /// The file turned out not to be one that can be mapped.
    off: AtomicBool,
}

impl CacheWindows {
    /// For a regular file that is open for writing, without O_DIRECT and O_DSYNC. `None`: nothing would be gained, or it
    /// would not be right.
    pub(super) fn new(fd: BorrowedFd<'_>) -> Option<Self> {
        if !sys::maps_well(fd) || install().is_err() {
            return None;
        }
        Some(Self {
            slots: (0..SLOTS).map(|_| SpinLock::new(Slot::default())).collect(),
            off: AtomicBool::new(false),
        })
    }

    /// Writes `len` bytes of `sg` from its byte `at` on to `pos` of the file, if these pages are in the page cache. `false`: not
    /// all was written; some bytes of the range may have been, as by a `pwrite` that fails midway.
    ///
    /// Context: as a buffered `pwrite`; waits for the disk only where pages are given up at this moment.
    pub(super) fn write(
        &self,
        fd: BorrowedFd<'_>,
        sg: &SGTable,
        at: usize,
        len: usize,
        pos: u64,
    ) -> bool {
        let Some(end) = pos.checked_add(len as u64) else {
            return false;
        };
        if self.off.load(Ordering::Relaxed) {
            return false;
        }
        let mut done = 0;
        while done < len {
            let here = pos + done as u64;
            // Below WINDOW.
            let off = (here % WINDOW) as usize;
            let n = (len - done).min(WINDOW as usize - off).min(CHUNK);
            if !self.write_window(fd, sg, at + done, n, here / WINDOW, off) {
                return false;
            }
            done += n;
        }
        sys::size(fd, sys::Kind::Regular).is_ok_and(|size| end <= size)
    }

    fn write_window(
        &self,
        fd: BorrowedFd<'_>,
        sg: &SGTable,
        at: usize,
        len: usize,
        no: u64,
        off: usize,
    ) -> bool {
        let Some(window) = self.window(fd, no, off + len) else {
            return false;
        };
        if !window.map.is_resident(off, len) {
            return false;
        }
        let copied = window.copy_in(off, sg, at, len);
        if !copied {
            self.forget(no, &window);
        }
        copied
    }

    fn slot(&self, no: u64) -> &SpinLock<Slot> {
        // Below SLOTS.
        &self.slots[(no % SLOTS as u64) as usize]
    }

    /// The window, if it is mapped at least up to its byte `end`, or worth it now.
    fn window(&self, fd: BorrowedFd<'_>, no: u64, end: usize) -> Option<Arc<Window>> {
        {
            let mut slot = self.slot(no).lock();
            if !slot.vote(no) {
                return None;
            }
            match &slot.map {
                Some(w) if end <= w.len => return Some(Arc::clone(w)),
                _ => {}
            }
        }
        let window = Arc::new(self.map(fd, no)?);
        if end > window.len {
            return None;
        }
        let old = {
            let mut slot = self.slot(no).lock();
            if slot.window != no {
                return None;
            }
            slot.map.replace(Arc::clone(&window))
        };
        // Outside the lock: this may unmap it.
        drop(old);
        Some(window)
    }

    fn map(&self, fd: BorrowedFd<'_>, no: u64) -> Option<Window> {
        let begin = no.checked_mul(WINDOW)?;
        let size = sys::size(fd, sys::Kind::Regular).ok()?;
        // At most WINDOW.
        let len = size.checked_sub(begin)?.min(WINDOW) as usize;
        if len == 0 {
            return None;
        }
        match Window::new(fd, begin, len) {
            Ok(window) => Some(window),
            // For a while there is no room: later, perhaps.
            Err(code::ENOSPC | code::ENOMEM | code::EAGAIN) => None,
            Err(e) => {
                crate::pr_debug!("a file that cannot be mapped: {e}");
                self.off.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Gives a window back in which a copy has failed.
    #[cold]
    fn forget(&self, no: u64, window: &Arc<Window>) {
        let old = {
            let mut slot = self.slot(no).lock();
            match &slot.map {
                Some(w) if Arc::ptr_eq(w, window) => {
                    slot.votes = 0;
                    slot.map.take()
                }
                _ => None,
            }
        };
        drop(old);
    }

    #[cfg(test)]
    fn mapped(&self) -> usize {
        self.slots.iter().filter(|s| s.lock().map.is_some()).count()
    }
}

impl Window {
    /// Copies `len` bytes of `sg` from its byte `at` on to byte `off`. `false`: a fault, with a part copied.
    fn copy_in(&self, off: usize, sg: &SGTable, at: usize, len: usize) -> bool {
        if off.checked_add(len).is_none_or(|end| end > self.len) {
            return false;
        }
        let _writer = self.writer.lock();
        let mut to = off;
        let copy = |from: *const u8, n: usize| {
            // SAFETY: `walk`s of a table never give more than was asked for, so `to + n` stays below `off + len`, which is
            // inside the mapping as checked above.
            let dst = unsafe { self.map.ptr().as_ptr().add(to) };
            // SAFETY: `from` is `n` bytes of the table, borrowed here, and anonymous memory, so it does not overlap
            // with a mapping of a file; `new` installed the guard; no reference to the window's bytes exists.
            let copied = unsafe { guarded_copy(dst, from, n) }.is_ok();
            if copied {
                to += n;
            }
            copied
        };
        sg.for_each_raw(at, len, copy).is_ok() && to == off + len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{File, OpenOptions};
    use proptest::prelude::*;

    const W: u64 = WINDOW;

    fn file(len: u64) -> (tempfile::NamedTempFile, File, CacheWindows) {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(len).unwrap();
        let f = File::open(t.path(), &OpenOptions::new()).unwrap();
        // Whatever file system the tests run on: only speed depends on that.
        install().unwrap();
        let w = CacheWindows {
            slots: (0..SLOTS).map(|_| SpinLock::new(Slot::default())).collect(),
            off: AtomicBool::new(false),
        };
        (t, f, w)
    }

    fn table(bytes: &[u8]) -> SGTable {
        let mut sg = SGTable::alloc(bytes.len()).unwrap();
        sg.copy_from_slice(0, bytes).unwrap();
        sg
    }

    /// Writes until the window is mapped, so that what follows is written by copies.
    fn warm(f: &File, w: &CacheWindows, pos: u64) {
        let sg = table(&[0; 512]);
        f.write_sg(&sg, 0, 512, pos, crate::fs::KiocbFlags::empty())
            .unwrap();
        let tries = (0..32).find(|_| w.write(f.as_fd(), &sg, 0, 512, pos));
        assert!(tries.is_some(), "never written by a copy");
    }

    #[test]
    fn a_window_is_mapped_when_it_is_used_much() {
        let (_t, f, w) = file(4 * W);
        let sg = table(&[7; 8192]);
        f.write_at(&vec![1; 2 * W as usize], 0).unwrap();
        for n in 1..MAP_AT {
            assert!(!w.write(f.as_fd(), &sg, 0, 4096, 0), "use {n}");
        }
        assert_eq!(w.mapped(), 0);
        assert!(w.write(f.as_fd(), &sg, 0, 4096, 0));
        assert_eq!(w.mapped(), 1);
        // Over the end of a window: both must be mapped.
        let across = || w.write(f.as_fd(), &sg, 0, 8192, W - 4096);
        assert!((0..MAP_AT).any(|_| across()));
        assert_eq!(w.mapped(), 2);
        let mut b = vec![0; 8194];
        f.read_at(&mut b, W - 4097).unwrap();
        assert!(b[0] == 1 && b[8193] == 1 && b[1..8193].iter().all(|&x| x == 7));
        // Not in the page cache: a hole that nobody has read.
        assert!((0..32).all(|_| !w.write(f.as_fd(), &sg, 0, 4096, 3 * W)));
    }

    #[test]
    fn the_window_that_is_used_most_holds_the_slot() {
        let mut slot = Slot::default();
        let rival = SLOTS as u64;
        assert!((0..20).filter(|_| slot.vote(3)).count() == 20 - usize::from(MAP_AT) + 1);
        // A rival that comes as often does not get it.
        for _ in 0..100 {
            assert!(!slot.vote(3 + rival));
            assert!(slot.vote(3));
        }
        // One that comes alone does, after some time.
        let first = (0..100).position(|_| slot.vote(3 + rival)).unwrap();
        assert_eq!(first, 20 + usize::from(MAP_AT) - 1);
        // Many that come once each: nobody.
        let mut slot = Slot::default();
        assert!((0..1000).all(|n| !slot.vote(n * rival)));
    }

    #[test]
    fn a_file_that_was_cut_is_not_written_by_a_copy() {
        let (t, f, w) = file(W);
        f.write_at(&vec![1; W as usize], 0).unwrap();
        warm(&f, &w, 8192);
        let sg = table(&[9; 4096]);
        assert!(w.write(f.as_fd(), &sg, 0, 4096, 8192));
        // In the middle of the page: no fault would tell.
        t.as_file().set_len(8192 + 100).unwrap();
        assert!(!w.write(f.as_fd(), &sg, 0, 4096, 8192));
        assert!(w.write(f.as_fd(), &sg, 0, 100, 8192));
        let window = w.window(f.as_fd(), 0, 4096).unwrap();
        t.as_file().set_len(4096).unwrap();
        assert!(!w.write(f.as_fd(), &sg, 0, 4096, 8192));
        assert_eq!(f.size(), Ok(4096));
        // Cut after it was looked at: the copy faults where the file ends.
        let all = table(&[3; 16384]);
        assert!(!window.copy_in(0, &all, 0, 16384));
        assert!(window.copy_in(0, &all, 0, 4096));
        w.forget(0, &window);
        assert_eq!(w.mapped(), 0);
        // And a file that grows again is mapped again.
        t.as_file().set_len(2 * W).unwrap();
        warm(&f, &w, W - 512);
    }

    #[test]
    fn a_file_that_cannot_be_mapped_for_writing_is_left_alone() {
        let (t, f, w) = file(W);
        f.write_at(&[1; 4096], 0).unwrap();
        let ro = File::open(t.path(), &OpenOptions::new().read_only(true)).unwrap();
        let sg = table(&[9; 512]);
        assert!((0..32).all(|_| !w.write(ro.as_fd(), &sg, 0, 512, 0)));
        assert!(w.off.load(Ordering::Relaxed));
        assert!(!w.write(f.as_fd(), &sg, 0, 512, u64::MAX - 5));
    }

    #[test]
    fn of_two_writes_of_one_block_one_wins() {
        let (t, f, w) = file(W);
        f.write_at(&[1; 65536], 0).unwrap();
        warm(&f, &w, 0);
        let w = Arc::new((w, f));
        let threads: Vec<_> = (1..=2u8)
            .map(|byte| {
                let w = Arc::clone(&w);
                crate::kthread::run("writer", move |_| {
                    let sg = table(&[byte; 65536]);
                    for _ in 0..500 {
                        assert!(w.0.write(w.1.as_fd(), &sg, 0, 65536, 0));
                    }
                })
                .unwrap()
            })
            .collect();
        threads.into_iter().for_each(crate::kthread::Kthread::join);
        let is = crate::fs::read(t.path(), 1 << 24).unwrap();
        assert!(is[..65536].iter().all(|b| *b == is[0]));
    }

    #[test]
    fn windows_of_all_files_have_a_limit() {
        let mapped = AtomicUsize::new(TOTAL - 1);
        assert_eq!(count_one(&mapped), Ok(()));
        assert_eq!(count_one(&mapped), Err(code::ENOSPC));
        assert_eq!(mapped.into_inner(), TOTAL);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, usize, u8),
        Cut(u64),
        Punch(u64, u64),
        Sync,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Small places, so that ranges meet; and the end of a window.
        let pos = prop_oneof![0..40_000u64, W - 20_000..W + 20_000];
        prop_oneof![
            8 => (pos.clone(), 1..30_000usize, any::<u8>()).prop_map(|(p, n, b)| Step::Write(p, n, b)),
            1 => pos.clone().prop_map(Step::Cut),
            1 => (pos, 1..30_000u64).prop_map(|(p, n)| Step::Punch(p, n)),
            1 => Just(Step::Sync),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// A copy, or else a `pwrite`, against a vector of bytes.
        #[test]
        fn the_file_has_what_was_written(steps in prop::collection::vec(step(), 1..80)) {
            let (t, f, w) = file(W + (1 << 16));
            let mut model = vec![0u8; W as usize + (1 << 16)];
            warm(&f, &w, 0);
            warm(&f, &w, W);
            for s in steps {
                match s {
                    Step::Write(pos, len, byte) => {
                        let sg = table(&vec![byte; len]);
                        if !w.write(f.as_fd(), &sg, 0, len, pos) {
                            f.write_sg(&sg, 0, len, pos, crate::fs::KiocbFlags::empty()).unwrap();
                        }
                        let end = pos as usize + len;
                        model.resize(model.len().max(end), 0);
                        model[pos as usize..end].fill(byte);
                    }
                    Step::Cut(len) => {
                        t.as_file().set_len(len).unwrap();
                        model.truncate(len as usize);
                        model.resize(len as usize, 0);
                    }
                    Step::Punch(pos, len) => {
                        if f.punch_hole(pos, len).is_ok() {
                            let end = (pos as usize + len as usize).min(model.len());
                            let begin = (pos as usize).min(end);
                            model[begin..end].fill(0);
                        }
                    }
                    Step::Sync => f.fdatasync().unwrap(),
                }
            }
            let is = crate::fs::read(t.path(), 1 << 24).unwrap();
            prop_assert!(is == model);
        }
    }
}
