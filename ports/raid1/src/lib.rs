//! Mirrors: a disk whose data is on several others, its *legs*, any kshim disk, host device or file.
//!
//! A path `/dev/raid1/NAME?leg=PATH&leg=PATH&...` is the mirror of these legs while somebody has it open. (In a path of a leg write
//! `%3F` for `?` and `%26` for `&`.)
//!
//! | parameter | default | |
//! |---|---|---|
//! | `leg` | | path of a leg; repeated |
//! | `create` | 0 | make an array when no leg has one; its second and further legs are copied to |
//! | `assume_clean` | 0 | with `create`: the legs are alike (all zeros, for instance), nothing has to be copied |
//! | `degraded` | 0 | start although a leg is missing that may have newer data |
//! | `region` | 1 MiB or more | unit of the bitmap, for `create` |
//! | `bitmap_delay` | 5000 | milliseconds after which a region that nobody writes to is clean |
//! | `readd` | 10 | seconds between attempts to get a failed leg back; 0: none |
//! | `sync_speed_min`, `sync_speed_max` | 8M, 0 | bytes a second that are copied while the disk is in use, and otherwise; 0: no limit |
//!
//! # How it works
//!
//! Before a region is written to for the first time, its bit in the bitmap of each leg is set, durably. A write goes to all legs
//! and ends when all have ended it. A leg that fails is recorded as failed, durably and on all others, *before* the write is
//! acknowledged that it lacks; so no leg that lacks something can be taken for one that has everything. Bits are cleared,
//! after a flush, when a region was idle for a while and no leg is failed.
//!
//! After a crash the regions whose bits are set are copied from one leg to the others. A leg that returns is copied
//! what was written without it: the bits tell. Meanwhile what it lacks is read elsewhere.
//!
//! What a leg cannot read is read from another and written back; one with many such errors is failed. The last leg that has
//! everything is never failed: its errors are the disk's.
//!
//! C source: `drivers/md/raid1.c`, `drivers/md/md-bitmap.c`, `drivers/md/md.c`. The metadata are our own, with checksums
//! (`docs/ports.md`).
#![forbid(unsafe_code)]

mod array;
mod assemble;
mod changed;
mod daemon;
mod disk;
mod leg;
mod meta;
mod order;
mod resync;
#[cfg(test)]
mod schedules;
mod spec;

pub use meta::MAX_LEGS;

use disk::Raid1;
use kshim::block::{class_dir, register_prober};
use kshim::prelude::*;

/// All paths below it are mirrors.
pub const PREFIX: &str = "/dev/raid1/";
/// Name of the driver's directory.
const DIR: &str = "raid1";

/// Makes the paths known to [`BlockDevice::open`](kshim::block::BlockDevice::open), and the driver's directory. Once in a
/// process.
///
/// Context: may sleep. Errors: as [`register_prober`] and [`class_dir`].
#[doc(alias = "raid_init")]
pub fn init() -> Result {
    class_dir(DIR)?;
    register_prober(PREFIX, Arc::new(Raid1::probe))
}
