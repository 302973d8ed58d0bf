//! Changing a device's pool of threads.
//!
//! C source: `scst_process_dev_sysfs_threads_data_store` of `scst/src/scst_sysfs.c`

use super::Core;
use crate::cmd::ThreadsPoolType;
use crate::device::{DevPool, Device};
use kshim::error::{Result, code};
use kshim::pr_info;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Core {
    /// Gives a device `num` threads (0: those of the global pool), for itself or for each of its nexuses. Errors: `EPERM` for a
    /// device that never uses threads, `ENODEV`, and those of [`Core::suspend_activity`]. Context: may sleep.
    pub fn set_device_threads(&self, dev: &Device, num: i32, pool_type: ThreadsPoolType) -> Result {
        let old = *dev.pool_params.lock();
        if old.0 < 0 {
            return Err(code::EPERM);
        }
        if old == (num, pool_type) {
            return Ok(());
        }
        let _suspended = self.suspend_activity()?;
        let _config = self.config.lock();
        if dev.unregistered.load(Ordering::Relaxed) {
            return Err(code::ENODEV);
        }
        let new = DevPool::new(num, pool_type, dev.name(), &self.main_threads);
        let old_pool = std::mem::replace(&mut *dev.pool.lock(), new.clone());
        *dev.pool_params.lock() = (num, pool_type);
        for t in dev.tgt_devs() {
            let threads = new.for_nexus(dev.name());
            let old = std::mem::replace(&mut *t.threads.lock(), threads);
            old_pool.free_nexus(&old);
            drop::<Arc<_>>(old);
        }
        old_pool.stop();
        pr_info!("Device {}: {num} threads, {}", dev.name(), pool_type.name());
        Ok(())
    }
}
