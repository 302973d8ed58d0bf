//! What happens to the tree when the configuration changes.
//!
//! The core calls these under the configuration lock when something appears, and without it when something has gone (removing a
//! directory waits for its callbacks, and they may take that lock). An object that cannot be shown is logged and works
//! without its directory.

use super::ScstTree;
use crate::acg::{Acg, AcgDev};
use crate::core::{Config, Core};
use crate::device::Device;
use crate::session::Session;
use crate::tgt::Tgt;
use crate::tgt_dev::TgtDev;
use kshim::error::{Result, code};
use std::sync::Arc;

/// Logs what could not be shown.
pub(super) fn shown(what: &str, name: &str, r: Result) {
    if let Err(e) = r {
        kshim::pr_err!("Cannot show {what} {name} in the management tree: {e}");
    }
}

impl ScstTree {
    /// Shows what is registered already.
    fn add_all(&self, core: &Core, config: &Config) {
        let cm = core.copy_manager().tgt();
        shown("target", cm.name(), self.add_copy_manager(core));
        for dev in config.devices.values() {
            self.device_added(dev);
        }
        let acg = cm.default_acg();
        for (lun, entry) in &acg.luns {
            self.lun_added(cm, &acg, *lun, entry);
        }
        for tgt in &config.tgts {
            self.tgt_added(tgt);
            let acgs = tgt.acgs.lock().clone();
            for acg in &acgs {
                self.acg_added(tgt, acg);
                for (lun, entry) in &acg.luns {
                    self.lun_added(tgt, acg, *lun, entry);
                }
            }
            for sess in tgt.sessions() {
                self.session_added(&sess);
                for t in sess.tgt_devs() {
                    self.tgt_dev_added(&sess, &t);
                }
            }
        }
    }

    pub(crate) fn device_added(&self, dev: &Arc<Device>) {
        shown("device", dev.name(), self.add_device(dev));
    }

    pub(crate) fn device_removed(&self, dev: &Device) {
        self.del_device(dev);
    }

    pub(crate) fn tgt_added(&self, tgt: &Arc<Tgt>) {
        shown("target", tgt.name(), self.add_tgt(tgt));
    }

    pub(crate) fn tgt_removed(&self, tgt: &Tgt) {
        tgt.kobj.del();
    }

    /// A group appears; the default group does so with its target.
    pub(crate) fn acg_added(&self, tgt: &Tgt, acg: &Acg) {
        shown("group", &acg.name, self.add_acg(tgt, acg));
    }

    pub(crate) fn acg_removed(&self, tgt: &Tgt, acg: &Acg) {
        self.del_acg(tgt, acg);
    }

    pub(crate) fn acn_added(&self, tgt: &Tgt, acg: &Acg, pattern: &str) {
        shown("initiator", pattern, self.add_acn(tgt, acg, pattern));
    }

    pub(crate) fn acn_removed(&self, tgt: &Tgt, acg: &Acg, pattern: &str) {
        self.del_acn(tgt, acg, pattern);
    }

    pub(crate) fn lun_added(&self, tgt: &Tgt, acg: &Acg, lun: u64, entry: &AcgDev) {
        shown("LUN", &lun.to_string(), self.add_lun(tgt, acg, lun, entry));
    }

    pub(crate) fn lun_removed(&self, tgt: &Tgt, acg: &Acg, lun: u64, entry: &AcgDev) {
        self.del_lun(tgt, acg, lun, entry);
    }

    pub(crate) fn session_added(&self, sess: &Arc<Session>) {
        shown("session", sess.initiator_name(), self.add_session(sess));
    }

    /// The session is in another group.
    pub(crate) fn session_moved(&self, sess: &Session) {
        let r = self.link_session_luns(sess);
        shown("LUNs of session", sess.initiator_name(), r);
    }

    pub(crate) fn session_removed(&self, sess: &Session) {
        sess.kobj.del();
    }

    pub(crate) fn tgt_dev_added(&self, sess: &Session, t: &Arc<TgtDev>) {
        let r = self.add_tgt_dev(sess, t);
        shown("LUN of session", sess.initiator_name(), r);
    }

    pub(crate) fn tgt_dev_removed(&self, t: &TgtDev) {
        t.kobj.del();
    }
}

impl Core {
    /// From now on this tree shows the core.
    pub(super) fn attach_tree(&self, tree: &Arc<ScstTree>) -> Result {
        let config = self.config.lock();
        {
            let mut slot = self.tree.lock();
            if slot.is_some() {
                return Err(code::EEXIST);
            }
            *slot = Some(Arc::clone(tree));
        }
        tree.add_all(self, &config);
        drop(config);
        tree.sync_device_groups();
        Ok(())
    }

    pub(super) fn detach_tree(&self) {
        let _config = self.config.lock();
        drop(self.tree.lock().take());
    }

    /// The management tree, if it is published. Context: any.
    pub fn tree(&self) -> Option<Arc<ScstTree>> {
        self.tree.lock().clone()
    }

    /// Tells the tree, if there is one.
    pub(crate) fn show(&self, f: impl FnOnce(&ScstTree)) {
        if let Some(tree) = self.tree() {
            f(&tree);
        }
    }
}
