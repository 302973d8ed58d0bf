//! Settings of the core as a whole that can change while it runs: attributes at the root of the management tree.
//!
//! C source: `scst/src/scst_main.c`, `scst/src/scst_sysfs.c`

use super::{Core, Suspended};
use crate::stats;
use kshim::error::{Result, code};
use kshim::reactor::ReactorHandle;
use kshim::sync::SpinLock;
use kshim::time::Delta;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Default of `max_tasklet_cmd`.
#[doc(alias = "SCST_DEF_MAX_TASKLET_CMD")]
pub const DEF_MAX_TASKLET_CMD: u32 = 10;
/// A cluster's name is shorter.
#[doc(alias = "DLM_LOCKSPACE_LEN")]
const CLUSTER_NAME_MAX: usize = 64;

/// The values.
#[derive(Debug)]
pub(crate) struct Settings {
    #[doc(alias = "scst_setup_id")]
    setup_id: AtomicU32,
    #[doc(alias = "scst_max_tasklet_cmd")]
    max_tasklet_cmd: AtomicU32,
    /// In microseconds.
    #[doc(alias = "scst_poll_ns")]
    poll_us: AtomicU32,
    /// Who polls.
    reactors: SpinLock<Vec<ReactorHandle>>,
    #[doc(alias = "scst_async_lun_replace")]
    async_lun_replace: AtomicBool,
    #[doc(alias = "scst_cluster_name")]
    cluster_name: SpinLock<String>,
    /// Suspensions that an operator has asked for.
    suspended: AtomicU64,
    #[doc(alias = "scst_measure_latency")]
    measure_latency: AtomicBool,
}

impl Drop for Settings {
    fn drop(&mut self) {
        if *self.measure_latency.get_mut() {
            stats::measure_latency(false);
        }
    }
}

impl Settings {
    pub(super) fn new(setup_id: u32) -> Self {
        Self {
            setup_id: AtomicU32::new(setup_id),
            max_tasklet_cmd: AtomicU32::new(DEF_MAX_TASKLET_CMD),
            poll_us: AtomicU32::new(0),
            reactors: SpinLock::default(),
            async_lun_replace: AtomicBool::new(false),
            cluster_name: SpinLock::default(),
            suspended: AtomicU64::new(0),
            measure_latency: AtomicBool::new(false),
        }
    }
}

impl Core {
    /// The set-up's own number, part of serial numbers of devices to come. Context: any.
    pub fn setup_id(&self) -> u32 {
        self.settings.setup_id.load(Ordering::Relaxed)
    }

    /// Changes [`Self::setup_id`]. Devices that exist keep their numbers. Context: any.
    pub fn set_setup_id(&self, id: u32) {
        self.settings.setup_id.store(id, Ordering::Relaxed);
    }

    /// How many commands a tasklet may have waiting before they go to a thread. There are no tasklets here: the number is kept
    /// for those who ask. Context: any.
    pub fn max_tasklet_cmd(&self) -> u32 {
        self.settings.max_tasklet_cmd.load(Ordering::Relaxed)
    }

    /// Changes [`Self::max_tasklet_cmd`]. Context: any.
    pub fn set_max_tasklet_cmd(&self, n: u32) {
        self.settings.max_tasklet_cmd.store(n, Ordering::Relaxed);
    }

    /// These reactors poll as `poll_us` says, now and when it changes. Context: any.
    pub fn add_reactors(&self, reactors: impl IntoIterator<Item = ReactorHandle>) {
        let mut all = self.settings.reactors.lock();
        all.extend(reactors);
        let us = self.poll_us();
        if us != 0 {
            poll(&all, us);
        }
    }

    /// How long a reactor looks for work before it sleeps, in microseconds. Context: any.
    pub fn poll_us(&self) -> u32 {
        self.settings.poll_us.load(Ordering::Relaxed)
    }

    /// Changes [`Self::poll_us`]. Context: any.
    pub fn set_poll_us(&self, us: u32) {
        let all = self.settings.reactors.lock();
        self.settings.poll_us.store(us, Ordering::Relaxed);
        poll(&all, us);
    }

    /// Whether replacing a LUN returns before the old device's commands are over. Context: any.
    pub fn async_lun_replace(&self) -> bool {
        self.settings.async_lun_replace.load(Ordering::Relaxed)
    }

    /// Changes [`Self::async_lun_replace`]. Context: any.
    pub fn set_async_lun_replace(&self, on: bool) {
        let to = &self.settings.async_lun_replace;
        to.store(on, Ordering::Relaxed);
    }

    /// Name of the cluster, empty for none. Context: any.
    pub fn cluster_name(&self) -> String {
        self.settings.cluster_name.lock().clone()
    }

    /// Changes [`Self::cluster_name`]. Errors: `EINVAL` when it has 64 bytes or more. Context: any.
    pub fn set_cluster_name(&self, name: &str) -> Result {
        if name.len() >= CLUSTER_NAME_MAX {
            return Err(code::EINVAL);
        }
        name.clone_into(&mut self.settings.cluster_name.lock());
        Ok(())
    }

    /// Threads that the global pool may have. Context: any.
    pub fn threads(&self) -> usize {
        self.main_threads.max()
    }

    /// Changes [`Self::threads`]. Context: any.
    pub fn set_threads(&self, n: usize) {
        self.main_threads.set_max(n);
    }

    /// Whether the core measures how long commands are in each state. Context: any.
    pub fn measures_latency(&self) -> bool {
        self.settings.measure_latency.load(Ordering::Relaxed)
    }

    /// Measures, from now on or no longer; what was measured is forgotten. Errors: as [`Core::suspend_activity`].
    /// Context: may sleep.
    #[doc(alias = "scst_measure_latency_store")]
    pub fn measure_latency(&self, on: bool) -> Result {
        let _suspended = self.suspend_activity()?;
        if self.settings.measure_latency.swap(on, Ordering::Relaxed) != on {
            stats::measure_latency(on);
            for tgt in self.targets() {
                for sess in tgt.sessions() {
                    sess.lat.discard();
                }
            }
        }
        Ok(())
    }

    /// Suspends activity until [`Self::resume_by_operator`], for each call of this one. Errors: `EBUSY` when commands did not
    /// drain in `limit` (0: in the usual time). Context: may sleep.
    #[doc(alias = "scst_suspend_store")]
    pub fn suspend_by_operator(&self, limit: Delta) -> Result {
        let suspended = if limit == Delta::ZERO {
            self.suspend_activity()?
        } else {
            self.suspend_activity_for(limit)?
        };
        self.settings.suspended.fetch_add(1, Ordering::Relaxed);
        // Ends with `resume_by_operator`.
        std::mem::forget(suspended);
        Ok(())
    }

    /// Ends a suspension by an operator. Errors: `EINVAL` when there is none. Context: may sleep.
    #[doc(alias = "scst_suspend_store")]
    pub fn resume_by_operator(&self) -> Result {
        let count = &self.settings.suspended;
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .map_err(|_| code::EINVAL)?;
        drop(Suspended { core: self });
        Ok(())
    }

    /// Suspensions there are. Context: any.
    #[doc(alias = "scst_get_suspend_count")]
    pub fn suspend_count(&self) -> u32 {
        self.suspend_count.load(Ordering::Relaxed)
    }
}

fn poll(reactors: &[ReactorHandle], us: u32) {
    for r in reactors {
        // A reactor that has ended polls no more anyway.
        r.post(move |cx| cx.set_busy_poll(us));
    }
}
