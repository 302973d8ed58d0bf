//! A reference count whose hot path touches only the calling thread's own cache line.
//!
//! As long as the count is *live*, `get` and `put` change a padded slot of the calling thread by a plain load and
//! store inside an RCU read section; nobody needs the sum. [`PercpuRef::kill`] turns it into one ordinary atomic
//! counter, after a grace period in which no thread can still be changing its slot, and drops the initial
//! reference. When that counter reaches zero, the release function runs. [`PercpuRef::resurrect`] makes it live again.
//!
//! To *suspend activity* is this: kill, wait for the confirmation (from then on `tryget_live` fails everywhere),
//! [wait for zero](PercpuRef::wait_zero), reconfigure, resurrect.
//!
//! C header: `include/linux/percpu-refcount.h`

mod core;

#[cfg(not(loom))]
mod host;

#[cfg(not(loom))]
pub use host::PercpuRef;
