//! Block devices.
//!
//! A user opens a [`BlockDevice`] by path and submits [`Bio`]s, which come back through their [`BioEndIo`]. A driver
//! implements [`BlockOps`] and calls [`register_disk`], or [`register_prober`] to make disks when they are opened. Paths that nobody registered are the host's block devices and
//! plain files, behind a driver of this module. What drivers show and let set is in the tree of [`class()`].
//!
//! # Who owns a bio
//!
//! The user, until [`BlockDevice::submit_bio`] consumes it; then the driver, as a [`SubmittedBio`], until
//! [`SubmittedBio::complete`] consumes that; then the user again, in [`BioEndIo::bio_done`]. So a bio can be neither
//! submitted twice nor changed in flight, and it ends exactly once: a driver that drops one completes it with `EIO`
//! and is reported.
//!
//! A driver that knows more of SCSI than blocks takes whole commands ([`ScsiRequest`]) in place of bios; the same
//! rules hold for them.
//!
//! # Not here
//!
//! Partitions, request merging and I/O schedulers: the host's block layer has them below its devices.
//!
//! C header: `include/linux/blkdev.h`, `include/linux/bio.h`

mod badblocks;
mod bdev;
mod bio;
mod class;
mod engine;
mod gendisk;
mod limits;
mod openers;
mod passthrough;

pub use badblocks::{BadBlocks, MAX_BADBLOCKS};
pub use bdev::{BlkMode, BlockDevice};
pub use bio::{Bio, BioEndIo, BioOp, ReqFlags, SubmittedBio, dropped_bios};
pub use class::{add_disk_attrs, class, class_dir};
pub use engine::BlockWorkers;
pub use gendisk::{BlockOps, BlockProber, GenDisk, disks, register_disk, register_prober};
pub use limits::{MAX_LOGICAL_BLOCK_SIZE, QueueLimits, SECTOR_SIZE};
pub use openers::Openers;
pub use passthrough::{
    ScsiDirection, ScsiEndIo, ScsiOutcome, ScsiRequest, SubmittedScsi, dropped_scsi,
};
