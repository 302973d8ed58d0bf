//! The directory of a disk.

use crate::DIR;
use crate::config::{Config, IrqMode, QueueMode, change_badblocks};
use crate::device::Core;
use kshim::block::{BlockOps, add_disk_attrs, class_dir};
use kshim::kobject::{Attr, Kobject};
use kshim::prelude::*;
use std::sync::Weak;

/// Makes `null_blk/NAME/`.
///
/// Context: may sleep. Errors: `EEXIST`: another disk has the name.
pub(crate) fn publish(core: &Arc<Core>, ops: &Weak<dyn BlockOps>) -> Result<Arc<Kobject>> {
    let dir = class_dir(DIR)?.add(&core.name)?;
    let filled = fill(&dir, core, ops);
    if filled.is_err() {
        dir.del();
    }
    filled.map(|()| dir)
}

fn fill(dir: &Arc<Kobject>, core: &Arc<Core>, ops: &Weak<dyn BlockOps>) -> Result {
    add_disk_attrs(dir, ops)?;
    dir.add_attrs(knobs(core))?;
    let (list, change) = (Arc::downgrade(core), Arc::downgrade(core));
    dir.add_attr(Attr::rw(
        "badblocks",
        move || Ok(get(&list)?.badblocks.lock().show()),
        move |text| get(&change)?.change_badblocks(|bb| change_badblocks(bb, text)),
    ))?;
    if core.config.queue_mode == QueueMode::Mq {
        dir.add_attr(fault(core, "timeout", |c| &c.timeout))?;
        dir.add_attr(fault(core, "requeue", |c| &c.requeue))?;
    }
    if core.config.cache_size != 0 {
        let core = Arc::downgrade(core);
        let cut = move |_: &str| {
            if let Some(store) = &get(&core)?.store {
                store.power_cut();
            }
            Ok(())
        };
        dir.add_attr(Attr::wo("power_cut", cut))?;
    }
    Ok(())
}

fn get(core: &Weak<Core>) -> Result<Arc<Core>> {
    core.upgrade().ok_or(ENODEV)
}

fn fault(core: &Arc<Core>, name: &str, attr: fn(&Core) -> &kshim::fault_inject::FaultAttr) -> Attr {
    let (show, store) = (Arc::downgrade(core), Arc::downgrade(core));
    Attr::rw(
        name,
        move || Ok(attr(&*get(&show)?).show()),
        move |text| attr(&*get(&store)?).setup(text),
    )
}

/// The knobs that cannot be changed while the disk is there.
fn knobs(core: &Arc<Core>) -> Vec<Attr> {
    type Show = fn(&Config) -> String;
    let attrs: [(&str, Show); 16] = [
        ("blocksize", |c| c.blocksize.to_string()),
        ("queue_mode", |c| match c.queue_mode {
            QueueMode::Bio => "0".to_owned(),
            QueueMode::Mq => "2".to_owned(),
        }),
        ("submit_queues", |c| c.submit_queues.to_string()),
        ("hw_queue_depth", |c| c.hw_queue_depth.to_string()),
        ("irqmode", |c| match c.irqmode {
            IrqMode::None => "0".to_owned(),
            IrqMode::Softirq => "1".to_owned(),
            IrqMode::Timer => "2".to_owned(),
        }),
        ("completion_nsec", |c| c.completion.as_nanos().to_string()),
        ("blocking", |c| u8::from(c.blocking).to_string()),
        ("memory_backed", |c| u8::from(c.memory_backed).to_string()),
        ("discard", |c| u8::from(c.discard).to_string()),
        ("cache_size", |c| c.cache_size.to_string()),
        ("fua", |c| u8::from(c.fua).to_string()),
        ("mbps", |c| c.mbps.to_string()),
        ("badblocks_once", |c| u8::from(c.badblocks_once).to_string()),
        ("badblocks_partial_io", |c| {
            u8::from(c.badblocks_partial_io).to_string()
        }),
        ("rotational", |c| u8::from(c.rotational).to_string()),
        ("io_timeout", |c| c.io_timeout.as_millis().to_string()),
    ];
    let make = |(name, show): (&str, Show)| {
        let core = Arc::downgrade(core);
        Attr::ro(name, move || Ok(show(&get(&core)?.config) + "\n"))
    };
    attrs.into_iter().map(make).collect()
}
