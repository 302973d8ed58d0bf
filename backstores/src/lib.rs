//! Block drivers under `vdisk_blockio`.
//!
//! A backstore knows kshim's block layer and nothing of SCST: it registers a disk with
//! [`kshim::block::register_disk`], and the device handler opens it by path.
//!
//! - [`ram`]: RAM disks, `/dev/ram/NAME`, and files that are mapped into memory, `/dev/mmap/FILE`.
//! - [`spdk`]: block devices of SPDK, `/dev/spdk/BDEV`, in a build with the feature `spdk`.
//! - [`tcmur`]: what handler plug-ins of tcmu-runner have, `/dev/tcmur/SUBTYPE/CFGSTRING`.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests may use the host's threads and files directly"
    )
)]

mod options;
pub mod ram;
pub mod spdk;
pub mod tcmur;
