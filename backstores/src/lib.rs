//! Block drivers under `vdisk_blockio`.
//!
//! A backstore knows kshim's block layer and nothing of SCST: it registers a disk with
//! [`kshim::block::register_disk`], and the device handler opens it by path.
//!
//! - [`ram`]: RAM disks, `/dev/ram/NAME`.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests may use the host's threads and files directly"
    )
)]

pub mod ram;
