//! Virtual disks: on a file (`vdisk_fileio`), on a block device (`vdisk_blockio`), on nothing (`vdisk_nullio`); and
//! CD-ROM drives on image files (`vcdrom`).
//!
//! A [`Vdisk`] is the handler of one device. What the commands say is in pure functions of the sub-modules
//! (`inquiry`, `mode`, `capacity`...), which build parameter data from the device's [`Features`], [`Limits`] and
//! [`Identity`]; `handler` connects them with the core; `fileio` and `blockio` move the data.
//!
//! Reads and writes of cached or memory-backed data complete inline on the reactor; what may wait goes to a thread of
//! the device's pool ([`crate::cmd::ExecRes::NeedThread`]) or is a bio in flight.
//!
//! C source: `scst/src/dev_handlers/scst_vdisk.c`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

mod attrs;
mod blockio;
mod breaker;
mod cdrom;
mod control;
mod device;
mod devtype;
mod dif;
mod direct;
mod fileio;
mod format;
mod handler;
mod ident;
mod inquiry;
mod lba_status;
mod log;
mod mapped;
mod medium;
mod misc;
mod mode;
mod mode_select;
mod open;
mod params;
mod plan;
mod reply;
mod saved;
mod store;
mod unmap;
mod walk;

pub use device::{Features, Limits, Vdisk, VdiskError};
pub use devtype::{VdiskType, dev_types};
pub use dif::Dif;
pub use ident::{BIO_VENDOR, FIO_VENDOR, Identity, IdentityOverrides, REVISION, dev_id_num};
pub use inquiry::PortInfo;
pub use mode::{ControlBits, ModeState};
pub use params::{NULLIO_SIZE, POOL_PARAMS, ParamError, VdiskKind, VdiskParams};
pub use reply::{Fault, REPLY_MAX, Reply};
