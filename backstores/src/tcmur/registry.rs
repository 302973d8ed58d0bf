//! All devices, by the address that plug-ins know them by.

use std::collections::{BTreeMap, VecDeque};

use kshim::prelude::*;
use kshim::sync::{CondVar, SpinLock};
use kshim::time::{Delta, Instant};

use super::device::Device;

/// So many closed devices keep their memory, for plug-ins that call back late.
const GRAVES: usize = 64;
/// How long an open waits until the same device is closed.
const FREE_LIMIT: Delta = Delta::from_secs(70);

struct Registry {
    devices: BTreeMap<usize, Arc<Device>>,
    /// Closed ones, the oldest first.
    graves: VecDeque<usize>,
}

static REGISTRY: SpinLock<Registry> = SpinLock::new(Registry {
    devices: BTreeMap::new(),
    graves: VecDeque::new(),
});
static CHANGED: CondVar = CondVar::new();

/// The device at an address that a plug-in gave. It may be closed. Context: any.
pub(super) fn lookup(addr: usize) -> Option<Arc<Device>> {
    REGISTRY.lock().devices.get(&addr).cloned()
}

/// Makes a device known. Context: any.
pub(super) fn add(dev: &Arc<Device>) {
    let addr = dev.mem.addr();
    REGISTRY.lock().devices.insert(addr, Arc::clone(dev));
}

/// A device was closed. Context: any.
pub(super) fn closed(dev: &Arc<Device>) {
    let forgotten = {
        let mut r = REGISTRY.lock();
        r.graves.push_back(dev.mem.addr());
        if r.graves.len() > GRAVES {
            r.graves
                .pop_front()
                .and_then(|addr| r.devices.remove(&addr))
        } else {
            None
        }
    };
    drop(forgotten);
    CHANGED.notify_all();
}

/// A device could not be closed. Context: any.
pub(super) fn stuck() {
    drop(REGISTRY.lock());
    CHANGED.notify_all();
}

/// Waits until no device is as `blocks` says. `false`: that took too long.
fn wait(limit: Delta, blocks: impl Fn(&Device) -> bool) -> bool {
    let end = Instant::now() + limit;
    let mut r = REGISTRY.lock();
    loop {
        if !r.devices.values().any(|d| blocks(d)) {
            return true;
        }
        let left = end - Instant::now();
        if left <= Delta::ZERO {
            return false;
        }
        CHANGED.wait_timeout(&mut r, left);
    }
}

/// Waits until a device is closed that was opened with the same configuration: a handler may not have it twice.
///
/// Context: may sleep. Errors: `EBUSY`: it is in use, or its close takes too long.
pub(super) fn wait_until_free(cfgstring: &str) -> Result {
    let same = |d: &Device| d.cfgstring == cfgstring;
    if REGISTRY
        .lock()
        .devices
        .values()
        .any(|d| same(d) && d.is_stuck())
        || !wait(FREE_LIMIT, |d| same(d) && !d.is_closed())
    {
        pr_err!("{cfgstring}: is still open");
        return Err(EBUSY);
    }
    Ok(())
}

/// Waits until all devices are closed that somebody has closed. `false`: that took too long, or some cannot.
///
/// Context: may sleep.
pub(super) fn wait_all(limit: Delta) -> bool {
    let done = wait(limit, |d| d.is_closing() && !d.is_stuck());
    done && !REGISTRY.lock().devices.values().any(|d| d.is_stuck())
}
