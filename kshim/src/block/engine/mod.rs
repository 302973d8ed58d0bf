//! The driver behind the host's block devices and plain files.

mod host;
mod pool;

pub(super) use host::HostDisk;
pub use pool::BlockWorkers;
