//! `targets/DRIVER/TARGET`: directories of target ports, their groups and LUNs.

use super::ScstTree;
use crate::acg::{Acg, AcgDev};
use crate::tgt::Tgt;
use kshim::error::{Result, code};
use kshim::kobject::Kobject;
use std::sync::Arc;

impl ScstTree {
    /// The directory of a driver; made when its first target comes, or by this. Context: any.
    #[doc(alias = "scst_tgtt_sysfs_create")]
    pub fn driver(&self, name: &str) -> Result<Arc<Kobject>> {
        match self.targets().child(name) {
            Some(dir) => Ok(dir),
            None => self.targets().add(name),
        }
    }

    #[doc(alias = "scst_tgt_sysfs_create")]
    pub(super) fn add_tgt(&self, tgt: &Arc<Tgt>) -> Result {
        let dir = self.driver(tgt.template().name())?.add(tgt.name())?;
        tgt.kobj.set(&dir);
        for part in ["luns", "sessions", "ini_groups"] {
            dir.add(part)?;
        }
        Ok(())
    }

    /// The directory with the LUNs of a group.
    pub(super) fn luns_dir(tgt: &Tgt, acg: &Acg) -> Option<Arc<Kobject>> {
        let dir = tgt.kobj.get()?;
        if tgt.default_acg().id == acg.id {
            return dir.child("luns");
        }
        dir.child("ini_groups")?.child(&acg.name)?.child("luns")
    }

    #[doc(alias = "scst_acg_sysfs_create")]
    pub(super) fn add_acg(&self, tgt: &Tgt, acg: &Acg) -> Result {
        if tgt.default_acg().id == acg.id {
            return Ok(());
        }
        let groups = tgt.kobj.get().and_then(|d| d.child("ini_groups"));
        let dir = groups.ok_or(code::ENODEV)?.add(&acg.name)?;
        dir.add("luns")?;
        dir.add("initiators")?;
        Ok(())
    }

    #[doc(alias = "scst_acg_sysfs_del")]
    pub(super) fn del_acg(&self, tgt: &Tgt, acg: &Acg) {
        let groups = tgt.kobj.get().and_then(|d| d.child("ini_groups"));
        if let Some(dir) = groups.and_then(|d| d.child(&acg.name)) {
            dir.del();
        }
    }

    /// Context: under the configuration lock.
    #[doc(alias = "scst_acg_dev_sysfs_create")]
    pub(super) fn add_lun(&self, tgt: &Tgt, acg: &Acg, lun: u64, entry: &AcgDev) -> Result {
        let luns = Self::luns_dir(tgt, acg).ok_or(code::ENODEV)?;
        let dir = luns.add(&lun.to_string())?;
        if let Some(dev) = entry.dev.kobj.get() {
            dir.add_link("device", &dev)?;
        }
        entry.dev.add_export(&dir)
    }

    /// Context: under the configuration lock, so its attributes must not take that.
    #[doc(alias = "scst_acg_dev_sysfs_del")]
    pub(super) fn del_lun(&self, tgt: &Tgt, acg: &Acg, lun: u64, entry: &AcgDev) {
        let luns = Self::luns_dir(tgt, acg);
        if let Some(dir) = luns.and_then(|d| d.child(&lun.to_string())) {
            entry.dev.del_export(&dir);
            dir.del();
        }
    }
}
