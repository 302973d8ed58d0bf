//! Block devices of SPDK: `/dev/spdk/BDEV`.
//!
//! Only in a build with the feature `spdk`, which needs SPDK (`docs/spdk.md`); elsewhere a path of these is refused in words.
//!
//! - [`init`] makes paths below [`SPDK_PREFIX`] openable, [`start`] starts SPDK as [`SpdkConfig`] says, [`exit`] ends it.
//! - A disk is an open bdev. Bios are submitted to SPDK on the reactor that they come from, which polls SPDK while something is
//!   in flight.
//!
//! # Neighbours
//!
//! `disk` is the driver that kshim sees, `device` an open bdev, `request` a bio on its way, `local` what each thread has, `engine` the thread
//! that SPDK itself runs on, `status` the errors, `ffi` the C boundary with all the `unsafe`.

use std::path::PathBuf;
use std::sync::OnceLock;

use kshim::block::register_prober;
use kshim::prelude::*;

#[cfg(not(feature = "spdk"))]
mod absent;
#[cfg(feature = "spdk")]
mod device;
#[cfg(feature = "spdk")]
mod disk;
#[cfg(feature = "spdk")]
mod engine;
#[cfg(feature = "spdk")]
mod ffi;
#[cfg(feature = "spdk")]
mod local;
#[cfg(feature = "spdk")]
mod present;
#[cfg(feature = "spdk")]
mod request;
#[cfg(feature = "spdk")]
mod status;

#[cfg(not(feature = "spdk"))]
use absent as driver;
#[cfg(feature = "spdk")]
use present as driver;

#[cfg(feature = "spdk")]
use present::engine;

/// What the paths of SPDK's block devices begin with.
pub const SPDK_PREFIX: &str = "/dev/spdk/";

/// What is said to whoever wants one in a build without SPDK.
pub const WITHOUT: &str = "this server is built without SPDK (docs/spdk.md)";

/// Whether this build has SPDK.
pub const BUILT_IN: bool = cfg!(feature = "spdk");

/// Memory that SPDK gets where nothing else is said, in MiB.
pub const DEFAULT_MEM_MIB: u32 = 512;

/// How SPDK is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpdkConfig {
    /// A configuration in SPDK's JSON format, as its `save_config` writes it.
    pub json: Option<PathBuf>,
    /// Where SPDK's JSON-RPC server listens, a socket in the file system.
    pub rpc: Option<PathBuf>,
    /// Memory, without hugepages and PCI devices; `None`: hugepages, as many as are needed, and PCI devices (NVMe).
    pub mem_mib: Option<u32>,
}

impl Default for SpdkConfig {
    /// No bdevs, no hugepages.
    fn default() -> SpdkConfig {
        SpdkConfig {
            json: None,
            rpc: None,
            mem_mib: Some(DEFAULT_MEM_MIB),
        }
    }
}

/// Makes the paths known. More than once does nothing more.
///
/// Context: any. Errors: `EEXIST`: the paths are another driver's.
pub fn init() -> Result {
    static DONE: OnceLock<Result> = OnceLock::new();
    *DONE.get_or_init(|| register_prober(SPDK_PREFIX, driver::prober()))
}

/// Starts SPDK: once in a process.
///
/// Context: may sleep, up to some seconds. Errors: `EOPNOTSUPP`: [`WITHOUT`]. `EEXIST`: it was started before. Those of reading the
/// configuration, and SPDK's own; it says on stderr what is wrong.
pub fn start(config: &SpdkConfig) -> Result {
    driver::start(config)
}

/// Ends SPDK, if it runs. `false`: something did not end in time.
///
/// Context: may sleep. No reactor runs any more, and nothing below [`SPDK_PREFIX`] is open.
pub fn exit() -> bool {
    driver::exit()
}

/// How many bios were copied because devices cannot reach the memory that they came with. The page pool's memory is
/// SPDK's own, as far as SPDK has some, so that this stays low.
///
/// Context: any.
pub fn bounced_bios() -> u64 {
    driver::bounced()
}
