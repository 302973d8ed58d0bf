//! The disk as kshim sees it, and its directory.

use crate::DIR;
use crate::array::{Array, State, Wish};
use crate::assemble::assemble;
use crate::meta::LegState;
use crate::resync::action;
use crate::spec::Spec;
use kshim::block::{
    BlkMode, BlockOps, Openers, QueueLimits, SubmittedBio, add_disk_attrs, class_dir,
};
use kshim::cpu;
use kshim::kobject::{Attr, Kobject};
use kshim::kthread;
use kshim::params::memparse;
use kshim::prelude::*;
use kshim::time::{Delta, Instant};
use std::fmt::Write as _;
use std::sync::Weak;

/// How long closing waits for the threads to end.
const CLOSE_LIMIT: Delta = Delta::from_secs(60);

/// A disk: an array while somebody has it open.
#[doc(alias = "mddev")]
pub(crate) struct Raid1 {
    spec: Spec,
    /// With the directory.
    openers: Openers<Arc<Kobject>>,
    /// For bios, which take no mutex.
    array: kshim::sync::SpinLock<Option<Arc<Array>>>,
    me: Weak<Raid1>,
}

impl Raid1 {
    /// The driver's part for a path. Errors: `EINVAL`: the path.
    pub(crate) fn probe(path: &str) -> Result<Arc<dyn BlockOps>> {
        Ok(Self::new(path)?)
    }

    /// Errors: `EINVAL`: the path.
    pub(crate) fn new(path: &str) -> Result<Arc<Raid1>> {
        let spec = Spec::parse(path)?;
        Ok(Arc::new_cyclic(|me| Raid1 {
            spec,
            openers: Openers::new(),
            array: Default::default(),
            me: Weak::clone(me),
        }))
    }

    fn array(&self) -> Option<Arc<Array>> {
        self.array.lock().clone()
    }

    /// Waits until the threads of an array have ended. Whether they have.
    fn wait_ended(array: &Array) -> bool {
        let end = Instant::now() + CLOSE_LIMIT;
        let mut st = array.state.lock();
        while st.threads > 0 {
            let left = end - Instant::now();
            if left <= Delta::ZERO {
                return false;
            }
            array.changed.wait(&mut st, Some(left));
        }
        true
    }

    /// Puts the array together for the first opener.
    #[doc(alias = "md_run")]
    #[doc(alias = "raid1_run")]
    fn start(&self) -> Result<Arc<Kobject>> {
        if self.array().is_some_and(|old| !Self::wait_ended(&old)) {
            return Err(EBUSY);
        }
        let array = Array::new(self.spec.clone(), assemble(&self.spec)?);
        // From now on the disks say who takes part, before anything is written.
        array.write_all()?;
        let dir = self.publish(&array)?;
        let started = self.start_threads(&array);
        if let Err(e) = started {
            dir.del();
            return Err(e);
        }
        *self.array.lock() = Some(array);
        Ok(dir)
    }

    fn start_threads(&self, array: &Arc<Array>) -> Result {
        array.state.lock().threads = 2;
        let (daemon, resync) = (Arc::clone(array), Arc::clone(array));
        let daemon = kthread::run("raid1d", move |_| daemon.run_daemon()).inspect_err(|_| {
            array.state.lock().threads = 0;
        })?;
        daemon.detach();
        let resync =
            kthread::run("raid1_resync", move |_| resync.run_resync()).inspect_err(|_| {
                let mut st = array.state.lock();
                st.threads = 1;
                st.closing = true;
                array.changed.notify_all();
            })?;
        resync.detach();
        Ok(())
    }

    fn publish(&self, array: &Arc<Array>) -> Result<Arc<Kobject>> {
        let dir = class_dir(DIR)?.add(&self.spec.name)?;
        let ops: Weak<dyn BlockOps> = Weak::<Raid1>::clone(&self.me);
        let filled = add_disk_attrs(&dir, &ops).and_then(|()| dir.add_attrs(attrs(array)));
        if filled.is_err() {
            dir.del();
        }
        filled.map(|()| dir)
    }
}

/// A leg's line in `legs`.
fn leg_line(st: &State, n: usize) -> Option<String> {
    let leg = st.legs.get(n)?;
    let state = match st.leg_state(n) {
        LegState::Absent => return None,
        LegState::InSync => "in_sync",
        LegState::Rebuilding => "rebuilding",
        LegState::Failed => "failed",
    };
    Some(format!("{n} {state} {} {}", leg.read_errors, leg.path))
}

fn attrs(array: &Arc<Array>) -> Vec<Attr> {
    type Show = fn(&State) -> String;
    let shows: [(&str, Show); 9] = [
        ("legs", |st| {
            let lines: Vec<_> = (0..st.legs.len()).filter_map(|n| leg_line(st, n)).collect();
            lines.join("\n")
        }),
        ("degraded", |st| {
            let used = (0..st.legs.len())
                .filter(|&n| st.leg_state(n) != LegState::Absent)
                .count();
            (used - st.in_sync_but(None)).to_string()
        }),
        ("sync_action", |st| action(st).to_owned()),
        ("sync_regions", |st| st.stale_regions().to_string()),
        ("dirty_regions", |st| {
            st.regions.iter().filter(|r| r.dirty).count().to_string()
        }),
        ("resynced_regions", |st| st.resynced.to_string()),
        ("region_size", |st| st.meta.region.to_string()),
        ("events", |st| st.meta.events.to_string()),
        ("broken", |st| u8::from(st.broken).to_string()),
    ];
    let make = |(name, show): (&str, Show)| {
        let array = Arc::downgrade(array);
        Attr::ro(name, move || {
            let array = array.upgrade().ok_or(ENODEV)?;
            let mut text = show(&array.state.lock());
            // A String takes all that is written to it.
            let _ = writeln!(text);
            Ok(text)
        })
    };
    let mut attrs: Vec<Attr> = shows.into_iter().map(make).collect();
    attrs.push(speed(array, "sync_speed_min", |st| &mut st.speed_min));
    attrs.push(speed(array, "sync_speed_max", |st| &mut st.speed_max));
    let array = Arc::downgrade(array);
    attrs.push(Attr::wo("mgmt", move |text| {
        array.upgrade().ok_or(ENODEV)?.command(wish(text)?)
    }));
    attrs
}

fn speed(array: &Arc<Array>, name: &str, field: fn(&mut State) -> &mut u64) -> Attr {
    let (show, store) = (Arc::downgrade(array), Arc::downgrade(array));
    Attr::rw(
        name,
        move || {
            let array = show.upgrade().ok_or(ENODEV)?;
            let speed = *field(&mut array.state.lock());
            Ok(format!("{speed}\n"))
        },
        move |text| {
            let (array, speed) = (store.upgrade().ok_or(ENODEV)?, memparse(text)?);
            *field(&mut array.state.lock()) = speed;
            array.changed.notify_all();
            Ok(())
        },
    )
}

/// `add PATH`, `fail N`, `remove N` or `readd N`. Errors: `EINVAL`.
fn wish(text: &str) -> Result<Wish> {
    let (verb, what) = text.trim().split_once(' ').ok_or(EINVAL)?;
    let n = || what.parse().map_err(|_| EINVAL);
    match verb {
        "add" if what.starts_with('/') => Ok(Wish::Add(what.to_owned())),
        "fail" => Ok(Wish::Fail(n()?)),
        "remove" => Ok(Wish::Remove(n()?)),
        "readd" => Ok(Wish::Readd(n()?)),
        _ => Err(EINVAL),
    }
}

impl BlockOps for Raid1 {
    fn submit_bio(&self, bio: SubmittedBio) {
        match self.array() {
            Some(array) => array.submit(bio),
            None => bio.complete(Err(ENODEV)),
        }
    }

    fn limits(&self) -> QueueLimits {
        let array = self.array();
        array.map_or_else(QueueLimits::default, |a| a.state.lock().limits.clone())
    }

    fn capacity_bytes(&self) -> u64 {
        self.array().map_or(0, |a| a.state.lock().meta.size)
    }

    fn open(&self, mode: BlkMode) -> Result {
        self.openers.open(mode, || self.start())
    }

    #[doc(alias = "md_stop")]
    fn release(&self, _mode: BlkMode) {
        self.openers.release(|dir| {
            let Some(array) = self.array() else {
                return;
            };
            array.state.lock().closing = true;
            array.changed.notify_all();
            dir.del();
            // The threads end by themselves, when bios in flight have ended.
            if !cpu::in_atomic() && !Self::wait_ended(&array) {
                pr_err!("raid1 {}: is still busy", self.spec.name);
            }
        });
    }
}
