//! I/O statistics of a session.
//!
//! C source: `struct scst_io_stat_entry` of `scst/include/scst.h`

use crate::consts::DataDirection;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
struct Entry {
    cmd_count: AtomicU64,
    io_byte_count: AtomicU64,
    unaligned_cmd_count: AtomicU64,
}

/// Counters by direction. Only the session's home counts, so that the increments need no read-modify-write.
#[derive(Debug, Default)]
pub struct IoStats {
    entries: [Entry; 5],
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

impl IoStats {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a finished command. Context: the session's home.
    #[inline]
    pub fn account(&self, dir: DataDirection, lba: u64, block_shift: u8, bytes: u64) {
        let [unknown, write, read, bidi, none] = &self.entries;
        let e = match dir {
            DataDirection::Unknown => unknown,
            DataDirection::Write => write,
            DataDirection::Read => read,
            DataDirection::Bidi => bidi,
            DataDirection::None => none,
        };
        add(&e.cmd_count, 1);
        add(&e.io_byte_count, bytes);
        let pos = lba.checked_shl(u32::from(block_shift)).unwrap_or(0);
        if (pos | bytes) & 4095 != 0 {
            add(&e.unaligned_cmd_count, 1);
        }
    }
}
