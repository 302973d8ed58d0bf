//! Where an object keeps its directory.

use kshim::kobject::Kobject;
use kshim::sync::SpinLock;
use std::sync::Arc;

/// The directory of an object in the management tree, if there is a tree. Context: any.
#[derive(Debug, Default)]
pub struct KobjSlot(SpinLock<Option<Arc<Kobject>>>);

impl KobjSlot {
    /// The directory.
    pub fn get(&self) -> Option<Arc<Kobject>> {
        self.0.lock().clone()
    }

    /// From now on this one.
    pub fn set(&self, kobj: &Arc<Kobject>) {
        *self.0.lock() = Some(Arc::clone(kobj));
    }

    /// The directory, which is to be removed: from now on there is none.
    pub fn take(&self) -> Option<Arc<Kobject>> {
        self.0.lock().take()
    }

    /// Removes the directory with all that is in it. Context: may sleep, without the locks that its callbacks take.
    pub fn del(&self) {
        if let Some(kobj) = self.take() {
            kobj.del();
        }
    }
}
