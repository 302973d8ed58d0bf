//! `sessions/SESSION`: counters, latencies, LUNs of a session.

use super::ScstTree;
use crate::session::Session;
use crate::tgt_dev::TgtDev;
use kshim::error::{Result, code};
use kshim::kobject::Kobject;
use std::sync::Arc;

/// Most sessions of one initiator name at a target that can be told apart.
const MAX_SAME_NAME: u32 = 10_000;

/// A new directory for a session: the initiator's name, with a number behind it when there is one already.
fn new_dir(sessions: &Arc<Kobject>, initiator: &str) -> Result<Arc<Kobject>> {
    // A path cannot have what some transports have in names.
    let base = initiator.replace('/', "!");
    let mut r = sessions.add(&base);
    for n in 1..MAX_SAME_NAME {
        if !matches!(r, Err(code::EEXIST)) {
            break;
        }
        r = sessions.add(&format!("{base}_{n}"));
    }
    r
}

impl ScstTree {
    /// Context: under the configuration lock.
    #[doc(alias = "scst_sess_sysfs_create")]
    pub(super) fn add_session(&self, sess: &Arc<Session>) -> Result {
        let sessions = sess.tgt().kobj.get().and_then(|d| d.child("sessions"));
        let dir = new_dir(&sessions.ok_or(code::ENODEV)?, sess.initiator_name())?;
        sess.kobj.set(&dir);
        Ok(())
    }

    /// Context: under the configuration lock.
    #[doc(alias = "scst_tgt_dev_sysfs_create")]
    pub(super) fn add_tgt_dev(&self, sess: &Session, t: &Arc<TgtDev>) -> Result {
        let dir = sess.kobj.get().ok_or(code::ENODEV)?;
        let dir = dir.add(&format!("lun{}", t.lun))?;
        t.kobj.set(&dir);
        Ok(())
    }
}
