//! Block drivers under `vdisk_blockio`.
//!
//! A backstore knows kshim's block layer and nothing of SCST: it registers a disk with
//! [`kshim::block::register_disk`], and the device handler opens it by path.
//!
//! - [`ram`]: RAM disks, `/dev/ram/NAME`.

pub mod ram;
