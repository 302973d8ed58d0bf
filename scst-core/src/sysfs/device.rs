//! `devices/DEVICE`: attributes that every device has.

use super::ScstTree;
use crate::device::Device;
use kshim::error::{Result, code};
use kshim::kobject::Kobject;
use std::sync::Arc;

/// Links in the directory `exported` of a device.
#[derive(Debug, Default)]
pub struct Exports {
    /// Number of the next link.
    #[doc(alias = "dev_exported_lun_num")]
    next: u32,
    /// Path of the LUN and name of its link.
    links: Vec<(String, String)>,
}

impl ScstTree {
    /// Shows a device. Context: any.
    #[doc(alias = "scst_dev_sysfs_create")]
    pub(super) fn add_device(&self, dev: &Arc<Device>) -> Result {
        let dir = self.devices().add(dev.name())?;
        dev.kobj.set(&dir);
        dir.add("exported")?;
        Ok(())
    }

    /// Context: may sleep, without the configuration lock.
    #[doc(alias = "scst_dev_sysfs_del")]
    pub(super) fn del_device(&self, dev: &Device) {
        dev.kobj.del();
    }
}

impl Device {
    /// A LUN of this device has the directory `lun`: links to it from `exported`. Context: any.
    pub(crate) fn add_export(&self, lun: &Arc<Kobject>) -> Result {
        let Some(dir) = self.kobj.get().and_then(|d| d.child("exported")) else {
            return Err(code::ENODEV);
        };
        let mut exports = self.exports.lock();
        let name = format!("export{}", exports.next);
        exports.next = exports.next.wrapping_add(1);
        dir.add_link(&name, lun)?;
        exports.links.push((lun.path(), name));
        Ok(())
    }

    /// That LUN goes. Context: any.
    pub(crate) fn del_export(&self, lun: &Kobject) {
        let path = lun.path();
        let mut exports = self.exports.lock();
        let Some(at) = exports.links.iter().position(|(p, _)| *p == path) else {
            return;
        };
        let (_, name) = exports.links.swap_remove(at);
        if let Some(dir) = self.kobj.get().and_then(|d| d.child("exported")) {
            // Gone already with the whole directory, if so.
            let _: Result = dir.remove_link(&name);
        }
    }
}
