//! Disks that do nothing, or remember, at a speed and with the faults that one asks for: a test bed for whatever is above
//! a block device.
//!
//! A path `/dev/null_blk/NAME?KNOB=VALUE&...` is a disk while somebody has it open. One that is to keep its memory between
//! openings is made by a write of `add NAME KNOB=VALUE&...` to `null_blk/mgmt` in the tree of block drivers
//! ([`kshim::block::class`]) and is `/dev/null_blk/NAME`; `del NAME` removes it.
//!
//! | knob | default | |
//! |---|---|---|
//! | `size` | 1G | bytes |
//! | `blocksize` | 512 | 512 to 4096 |
//! | `queue_mode` | `mq` | `bio` (0): no queues, no tags, no `timeout` and `requeue`; `mq` (2) |
//! | `submit_queues` | 1 | queues of `mq`; the CPU of the submitter chooses |
//! | `hw_queue_depth` | 64 | bios that each works on at a time |
//! | `irqmode` | `none` (the kernel's: `softirq`) | who completes: `none` (0) the submitter, `softirq` (1) another thread, `timer` (2) a timer |
//! | `completion_nsec` | 10000 | delay of `timer` |
//! | `blocking` | 0 | work on threads that may sleep |
//! | `memory_backed` | 0 | remember what is written; otherwise reads give what was in the memory, zeroed |
//! | `discard` | 0 | take discards |
//! | `cache_size` | 0 | bytes of a volatile cache before the memory: what is in it is lost by `power_cut` |
//! | `fua` | 1 | take writes with FUA, with a cache |
//! | `mbps` | 0 | MiB in a second at most |
//! | `badblocks` | | sectors that fail, `+FIRST-LAST` or `-FIRST-LAST`; also while it is open |
//! | `badblocks_once` | 0 | a range that failed is good from then on |
//! | `badblocks_partial_io` | 0 | what lies before the first bad sector is transferred before the bio fails |
//! | `timeout`, `requeue` | 0 | faults `INTERVAL,PROBABILITY,SPACE,TIMES`: not answered until `io_timeout`, done again later |
//! | `io_timeout` | 30000 | milliseconds |
//! | `rotational`, `read_only` | 0 | what it says it is |
//!
//! Each is an attribute in `null_blk/NAME/`; beside them stand those that every disk has.
//!
//! C source: `drivers/block/null_blk`. `null_blk/features` lists the knobs, as the kernel's file of that name. `cache_size` and
//! `size` are in bytes, not MiB (kernel: 250 GB); `io_timeout`, `read_only` and `power_cut` are ours. Not ported:
//!
//! | knob | why |
//! |---|---|
//! | `zoned`, `zone_*` | [`kshim::block`] has no zones |
//! | `max_sectors`, `virt_boundary` | bios are not split: a table of any length and shape goes to the driver as it is |
//! | `poll_queues`, `no_sched`, `shared_tags`, `shared_tag_bitmap`, `init_hctx` | there is no `blk-mq` with queues to poll, schedulers or tag sets |
//! | `home_node`, `use_per_node_hctx` | the shim knows no NUMA nodes |
//! | `power`, `index`, `nr_devices`, `gb`, `bs` | opening and closing; paths; `size` and `blocksize` |
#![forbid(unsafe_code)]

mod config;
mod delay;
mod device;
mod store;
mod throttle;
mod tree;

pub use config::{Config, IrqMode, QueueMode};

use device::NullBlk;
use kshim::block::{BlockOps, BlockProber, GenDisk, class_dir, register_disk, register_prober};
use kshim::kobject::Attr;
use kshim::params::Params;
use kshim::prelude::*;
use kshim::sync::SpinLock;
use std::collections::BTreeMap;

/// All paths below it are disks of this driver.
pub const PREFIX: &str = "/dev/null_blk/";
/// Name of the driver's directory.
const DIR: &str = "null_blk";

/// Disks that `mgmt` made.
static MADE: SpinLock<BTreeMap<String, GenDisk>> = SpinLock::new(BTreeMap::new());

/// Makes the paths known to [`BlockDevice::open`](kshim::block::BlockDevice::open), and the driver's directory. Once in a
/// process.
///
/// Context: may sleep. Errors: as [`register_prober`] and [`class_dir`].
#[doc(alias = "null_init")]
pub fn init() -> Result {
    let dir = class_dir(DIR)?;
    let help = || Ok("add NAME KNOB=VALUE&...\ndel NAME\n".to_owned());
    dir.add_attr(Attr::rw("mgmt", help, mgmt))?;
    dir.add_attr(Attr::ro("features", || Ok(Config::KNOBS.join(",") + "\n")))?;
    register_prober(PREFIX, Arc::new(Driver))
}

struct Driver;

impl BlockProber for Driver {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        let (path, mut params) = Params::split_path(path)?;
        let name = path.strip_prefix(PREFIX).ok_or(EINVAL)?;
        let config = Config::take(&mut params)?;
        params.finish()?;
        Ok(NullBlk::new(name, config)?)
    }
}

/// A write to `mgmt`. Errors: `EINVAL`, `EEXIST`; for `del` `ENOENT`, `EBUSY`.
fn mgmt(text: &str) -> Result {
    let mut words = text.split_whitespace();
    let (verb, name) = (words.next(), words.next().ok_or(EINVAL)?);
    let knobs = words.next();
    if words.next().is_some() {
        return Err(EINVAL);
    }
    match verb {
        Some("add") => {
            let mut params = Params::parse(knobs.unwrap_or_default())?;
            let config = Config::take(&mut params)?;
            params.finish()?;
            let disk = NullBlk::new(name, config)?;
            disk.keep()?;
            let made = register_disk(&format!("{PREFIX}{name}"), disk)?;
            MADE.lock().insert(name.to_owned(), made);
            Ok(())
        }
        Some("del") if knobs.is_none() => {
            // Stores come one at a time; waiting for the last bios is not for a spin lock.
            let disk = MADE.lock().remove(name).ok_or(ENOENT)?;
            let gone = disk.unregister();
            if gone.is_err() {
                MADE.lock().insert(name.to_owned(), disk);
            }
            gone
        }
        _ => Err(EINVAL),
    }
}
