//! The management tree, `/sys/kernel/scst_tgt`, on kobjects.
//!
//! [`ScstTree::publish`] shows a [`Core`] as a tree and keeps it so: what is registered later, in whatever way, appears, and
//! what is unregistered goes (`hooks`). Stores run on the core's management thread, one at a time, and call the same functions
//! as everybody else; shows take short locks only.
//!
//! | directory | module |
//! |---|---|
//! | `/` | `root` |
//! | `sgv/` | `sgv` |
//! | `handlers/` | `handler` |
//! | `devices/` | `device`, and what the handler adds (`DevHandler::sysfs_attrs`) |
//! | `targets/DRIVER/TARGET/` | `target` |
//! | `.../sessions/` | `session` |
//! | `.../luns/`, `.../ini_groups/` | `lun`, `group` |
//! | `device_groups/` | `device_group` |
//!
//! C source: `scst/src/scst_sysfs.c`

mod device;
mod device_group;
mod group;
mod handler;
mod hooks;
mod lun;
mod root;
mod session;
mod sgv;
mod slot;
mod target;
pub mod text;
mod trace;

pub use device::Exports;
pub use handler::DevType;
pub use root::SCST_VERSION;
pub use slot::KobjSlot;
pub use trace::{DEFAULT_FLAGS, TraceLog, TraceTable};

use crate::core::Core;
use crate::dev_handlers::vdisk;
use kshim::error::Result;
use kshim::kobject::{Executor, Kobject, Work};
use kshim::sync::Mutex;
use std::sync::{Arc, Weak};

/// Name of the root, as in `/sys/kernel`.
pub const ROOT_NAME: &str = "scst_tgt";

/// Runs stores on the management thread. Of a core that is gone they are dropped, so their writers learn `ENODEV`.
struct MgmtExecutor(Weak<Core>);

impl Executor for MgmtExecutor {
    #[doc(alias = "scst_sysfs_queue_wait_work")]
    fn execute(&self, work: Work) {
        if let Some(core) = self.0.upgrade() {
            core.post_mgmt(move |_| work());
        }
    }
}

/// The tree of one core.
#[doc(alias = "scst_sysfs_root_kobj")]
pub struct ScstTree {
    core: Weak<Core>,
    root: Arc<Kobject>,
    handlers: Arc<Kobject>,
    devices: Arc<Kobject>,
    targets: Arc<Kobject>,
    device_groups: Arc<Kobject>,
    sgv: Arc<Kobject>,
    /// One at a time makes the directories of device groups follow.
    dg_sync: Mutex<()>,
}

impl std::fmt::Debug for ScstTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScstTree")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl ScstTree {
    /// Makes the tree of a core and has the core keep it up to date until [`Self::unpublish`]. Once for a core.
    /// Errors: `EEXIST` when it has one. Context: may sleep.
    #[doc(alias = "scst_sysfs_init")]
    pub fn publish(core: &Arc<Core>) -> Result<Arc<Self>> {
        let weak = Arc::downgrade(core);
        let root = Kobject::root(ROOT_NAME, Arc::new(MgmtExecutor(Weak::clone(&weak))));
        let tree = Arc::new(Self {
            core: weak,
            handlers: root.add("handlers")?,
            devices: root.add("devices")?,
            targets: root.add("targets")?,
            device_groups: root.add("device_groups")?,
            sgv: root.add("sgv")?,
            root,
            dg_sync: Mutex::new(()),
        });
        tree.add_device_groups()?;
        tree.add_root_attrs(core)?;
        tree.add_sgv(&core.sgv)?;
        for devt in vdisk::dev_types() {
            tree.register_dev_type(devt)?;
        }
        core.attach_tree(&tree)?;
        Ok(tree)
    }

    /// Takes the tree away: who has a file of it open gets `ENODEV`. Waits for running callbacks. Context: may sleep, not
    /// from a store.
    #[doc(alias = "scst_sysfs_cleanup")]
    pub fn unpublish(&self) {
        if let Some(core) = self.core.upgrade() {
            core.detach_tree();
        }
        self.root.del();
    }

    /// The core, while it is there.
    pub fn core(&self) -> Option<Arc<Core>> {
        self.core.upgrade()
    }

    /// The root.
    pub fn root(&self) -> &Arc<Kobject> {
        &self.root
    }

    /// `handlers/`.
    #[doc(alias = "scst_handlers_kobj")]
    pub fn handlers(&self) -> &Arc<Kobject> {
        &self.handlers
    }

    /// `devices/`.
    #[doc(alias = "scst_devices_kobj")]
    pub fn devices(&self) -> &Arc<Kobject> {
        &self.devices
    }

    /// `targets/`.
    #[doc(alias = "scst_targets_kobj")]
    pub fn targets(&self) -> &Arc<Kobject> {
        &self.targets
    }

    /// `device_groups/`.
    #[doc(alias = "scst_device_groups_kobj")]
    pub fn device_groups(&self) -> &Arc<Kobject> {
        &self.device_groups
    }

    /// `sgv/`.
    #[doc(alias = "scst_sgv_kobj")]
    pub fn sgv(&self) -> &Arc<Kobject> {
        &self.sgv
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::CoreParams;
    use crate::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
    use crate::dev_type::DevHandler;
    use kshim::error::code;
    use kshim::kobject::tree::{Tree, TreeOps};

    fn names(tree: &Tree, path: &str) -> Vec<String> {
        let entries = tree.list(path).expect("directory");
        entries.into_iter().map(|e| e.name).collect()
    }

    #[test]
    fn what_is_registered_before_and_after_publication_is_shown() {
        let core = Core::new(CoreParams::default()).expect("core");
        let add = |name: &str| {
            let disk = Vdisk::new(name, &VdiskParams::new(VdiskKind::Nullio)).expect("disk");
            let handler: Arc<dyn DevHandler> = disk;
            core.register_virtual_device(name, handler).expect("device")
        };
        add("before");
        let tree = ScstTree::publish(&core).expect("tree");
        assert_eq!(ScstTree::publish(&core).map(|_| ()), Err(code::EEXIST));
        add("after");
        let view = Tree::new(tree.root());
        assert_eq!(names(&view, "devices"), ["after", "before"]);
        core.unregister_virtual_device("before").expect("gone");
        assert_eq!(names(&view, "devices"), ["after"]);
        tree.unpublish();
        assert!(view.list("devices").is_err());
        core.unregister_virtual_device("after").expect("gone");
        core.shutdown();
    }
}
