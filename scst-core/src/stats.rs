//! Statistics of a session: what it transferred, and (if switched on) how long its commands were in each state.
//!
//! C source: `struct scst_io_stat_entry`, `struct scst_lat_stats` of `scst/include/scst.h`, `scst_finish_cmd` of
//! `scst/src/scst_targ.c`, `scst_update_latency_stats` of `scst/src/scst_lib.c`, `scst_sess_latency_show` of
//! `scst/src/scst_sysfs.c`

mod latency;

pub(crate) use latency::measure_latency;
pub use latency::{LAT_SIZE_CLASSES, LatDirection, LatSizeClass, LatStats, latency_on};

use crate::consts::DataDirection;
use std::sync::atomic::{AtomicU64, Ordering};

/// Commands whose offset or length is no multiple of this are counted as unaligned.
const ALIGNMENT: u64 = 4096;

/// What is counted for one direction.
#[doc(alias = "scst_io_stat_entry")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStatEntry {
    /// Commands finished.
    pub cmd_count: u64,
    /// Bytes of their data buffers.
    pub io_byte_count: u64,
    /// Of the commands, those not aligned to 4 KiB.
    pub unaligned_cmd_count: u64,
}

impl std::ops::AddAssign for IoStatEntry {
    fn add_assign(&mut self, o: Self) {
        self.cmd_count += o.cmd_count;
        self.io_byte_count += o.io_byte_count;
        self.unaligned_cmd_count += o.unaligned_cmd_count;
    }
}

#[derive(Debug, Default)]
struct Entry {
    cmd_count: AtomicU64,
    io_byte_count: AtomicU64,
    unaligned_cmd_count: AtomicU64,
}

/// Counters of one session, from which the 11 attributes of sessions and targets come.
///
/// One thread writes at a time: the session's home, where its commands finish. So an update is a plain load and store; were
/// two threads to write at the same time, a count might be lost and nothing else. Any thread may read.
///
/// # Examples
///
/// ```
/// use scst_core::consts::DataDirection;
/// use scst_core::stats::IoStats;
///
/// let stats = IoStats::new();
/// stats.account(DataDirection::Read, 16, 9, 4096);
/// stats.account(DataDirection::Read, 0, 9, 512);
/// let attrs: Vec<_> = stats.attributes().collect();
/// assert!(attrs.contains(&("read_cmd_count", 2)));
/// assert!(attrs.contains(&("read_io_count_kb", 4)));
/// assert!(attrs.contains(&("read_unaligned_cmd_count", 1)));
/// ```
#[derive(Debug, Default)]
pub struct IoStats {
    dirs: [Entry; 5],
}

/// Which number of a direction an attribute shows.
#[derive(Clone, Copy)]
enum Show {
    Commands,
    Kilobytes,
    Unaligned,
}

/// The attributes, in the order of the kernel's list.
const ATTRIBUTES: [(&str, DataDirection, Show); 11] = [
    ("unknown_cmd_count", DataDirection::Unknown, Show::Commands),
    ("write_cmd_count", DataDirection::Write, Show::Commands),
    ("write_io_count_kb", DataDirection::Write, Show::Kilobytes),
    (
        "write_unaligned_cmd_count",
        DataDirection::Write,
        Show::Unaligned,
    ),
    ("read_cmd_count", DataDirection::Read, Show::Commands),
    ("read_io_count_kb", DataDirection::Read, Show::Kilobytes),
    (
        "read_unaligned_cmd_count",
        DataDirection::Read,
        Show::Unaligned,
    ),
    ("bidi_cmd_count", DataDirection::Bidi, Show::Commands),
    ("bidi_io_count_kb", DataDirection::Bidi, Show::Kilobytes),
    (
        "bidi_unaligned_cmd_count",
        DataDirection::Bidi,
        Show::Unaligned,
    ),
    ("none_cmd_count", DataDirection::None, Show::Commands),
];

fn index(dir: DataDirection) -> usize {
    match dir {
        DataDirection::Unknown => 0,
        DataDirection::Write => 1,
        DataDirection::Read => 2,
        DataDirection::Bidi => 3,
        DataDirection::None => 4,
    }
}

#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

impl IoStats {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a finished command with `bytes` in its data buffers. `block_shift` is 0 for devices without blocks, whose
    /// commands have no alignment. Context: the session's home.
    #[inline]
    pub fn account(&self, dir: DataDirection, lba: u64, block_shift: u8, bytes: u64) {
        let e = &self.dirs[index(dir)];
        bump(&e.cmd_count, 1);
        bump(&e.io_byte_count, bytes);
        let pos = lba.checked_shl(u32::from(block_shift)).unwrap_or(0);
        if block_shift > 0 && !(pos | bytes).is_multiple_of(ALIGNMENT) {
            bump(&e.unaligned_cmd_count, 1);
        }
    }

    /// What was counted for `dir`. Context: any.
    pub fn get(&self, dir: DataDirection) -> IoStatEntry {
        let e = &self.dirs[index(dir)];
        IoStatEntry {
            cmd_count: e.cmd_count.load(Ordering::Relaxed),
            io_byte_count: e.io_byte_count.load(Ordering::Relaxed),
            unaligned_cmd_count: e.unaligned_cmd_count.load(Ordering::Relaxed),
        }
    }

    /// Names and values of the attributes, in the kernel's order. Context: any.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Self::attributes_of(|dir| self.get(dir))
    }

    /// Names of the attributes, and the direction that each is about.
    pub fn names() -> impl Iterator<Item = (&'static str, DataDirection)> {
        ATTRIBUTES.into_iter().map(|(name, dir, _)| (name, dir))
    }

    /// The same for a sum of several sessions: a target's attributes.
    pub fn attributes_of(
        mut sum: impl FnMut(DataDirection) -> IoStatEntry,
    ) -> impl Iterator<Item = (&'static str, u64)> {
        ATTRIBUTES.into_iter().map(move |(name, dir, show)| {
            let e = sum(dir);
            let value = match show {
                Show::Commands => e.cmd_count,
                Show::Kilobytes => e.io_byte_count >> 10,
                Show::Unaligned => e.unaligned_cmd_count,
            };
            (name, value)
        })
    }

    /// Sets the commands, bytes and unaligned commands of `dir` to zero (a write to a session's attribute). A command that
    /// finishes at the same time may survive it.
    pub fn reset(&self, dir: DataDirection) {
        let e = &self.dirs[index(dir)];
        e.cmd_count.store(0, Ordering::Relaxed);
        e.io_byte_count.store(0, Ordering::Relaxed);
        e.unaligned_cmd_count.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataDirection::{Bidi, None as NoData, Read, Unknown, Write};

    #[test]
    fn each_direction_counts_for_itself() {
        let s = IoStats::new();
        for (n, dir) in [Unknown, Write, Read, Bidi, NoData].into_iter().enumerate() {
            for _ in 0..=n {
                s.account(dir, 8, 9, 2048);
            }
        }
        let got: Vec<_> = s.attributes().collect();
        assert_eq!(
            got,
            [
                ("unknown_cmd_count", 1),
                ("write_cmd_count", 2),
                ("write_io_count_kb", 4),
                ("write_unaligned_cmd_count", 2),
                ("read_cmd_count", 3),
                ("read_io_count_kb", 6),
                ("read_unaligned_cmd_count", 3),
                ("bidi_cmd_count", 4),
                ("bidi_io_count_kb", 8),
                ("bidi_unaligned_cmd_count", 4),
                ("none_cmd_count", 5),
            ]
        );
        s.reset(Read);
        assert_eq!(s.get(Read), IoStatEntry::default());
        let mut sum = s.get(Write);
        sum += s.get(Bidi);
        assert_eq!(sum.cmd_count, 6);
    }

    #[test]
    fn alignment_is_of_offset_and_length() {
        let s = IoStats::new();
        for (bytes, lba, shift, unaligned) in [
            (4096, 0, 9, 0),
            (512, 0, 9, 1),
            (4096, 1, 9, 2),
            (512, 0, 0, 2),
            (0, 16, 9, 2),
            (4096, 1, 12, 2),
        ] {
            s.account(Read, lba, shift, bytes);
            assert_eq!(s.get(Read).unaligned_cmd_count, unaligned);
        }
    }
}
