//! The local target driver: initiators in this process.
//!
//! A target of this driver has sessions that are made by name; whoever holds a [`LocalSession`] sends commands through the whole
//! state machine, as an initiator over a network does, and waits for their answers. Tools and tests use it.
//!
//! DIFFERS: in SCST a session is a SCSI host of the kernel, and its LUNs appear as the kernel's own disks.
//!
//! # Locks
//!
//! `targets` is taken alone. The turn of a session, a sleeping lock, is held while a command is under way; it is taken
//! without other locks.
//!
//! C source: `scst_local/scst_local.c`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod session;
mod sysfs;

pub use session::{LocalAnswer, LocalSession};

use crate::core::{ConfigError, Core};
use crate::session::Session;
use crate::sysfs::ScstTree;
use crate::template::TgtTemplate;
use crate::tgt::Tgt;
use kshim::error::{Result, code};
use kshim::sync::SpinLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// The driver's name.
pub const DRIVER_NAME: &str = "scst_local";
/// Version descriptor of the transport protocol: SAS.
const VERSION_DESCRIPTOR_SAS: u16 = 0x0BE0;
/// Protocol identifier of SAS (SPC-4 7.6.1), and of its TransportIDs.
const PROTOCOL_SAS: u8 = 6;
/// Length of such a TransportID.
const SAS_TRANSPORT_ID_LEN: usize = 24;

/// A target of the driver.
struct LocalTgt {
    tgt: Arc<Tgt>,
    versions: Arc<Versions>,
    sessions: SpinLock<Vec<Arc<LocalSession>>>,
}

/// Version descriptors that a target tells; 0 for the default.
#[derive(Debug, Default)]
struct Versions {
    scsi: AtomicU16,
    phys: AtomicU16,
}

/// The driver.
pub struct LocalDriver {
    core: Weak<Core>,
    targets: SpinLock<Vec<Arc<LocalTgt>>>,
    next_number: AtomicU64,
}

impl std::fmt::Debug for LocalDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalDriver").finish_non_exhaustive()
    }
}

impl TgtTemplate for LocalDriver {
    fn name(&self) -> &'static str {
        DRIVER_NAME
    }

    fn scsi_transport_version(&self) -> u16 {
        VERSION_DESCRIPTOR_SAS
    }

    fn transport_versions(&self, tgt: &Tgt) -> (u16, u16) {
        let targets = self.targets.lock();
        let of = targets.iter().find(|t| std::ptr::eq(&*t.tgt, tgt));
        let scsi = of.map_or(0, |t| t.versions.scsi.load(Ordering::Relaxed));
        let phys = of.map_or(0, |t| t.versions.phys.load(Ordering::Relaxed));
        let scsi = if scsi == 0 {
            VERSION_DESCRIPTOR_SAS
        } else {
            scsi
        };
        (scsi, phys)
    }

    #[doc(alias = "scst_local_get_sas_transport_id")]
    fn initiator_port_transport_id(&self, sess: &Session) -> Option<Vec<u8>> {
        let [.., n] = sess.tgt_priv.to_be_bytes();
        let mut tid = vec![PROTOCOL_SAS, 0, 0, 0, 0x5F, 0xEE, 0xDE];
        tid.extend_from_slice(&[0x40 | n >> 4, 0x0F | n << 4, 0xAD, 0xE0, 0x50]);
        tid.resize(SAS_TRANSPORT_ID_LEN, 0);
        Some(tid)
    }

    fn transport_id_protocol(&self) -> Option<u8> {
        Some(PROTOCOL_SAS)
    }

    fn close_session(&self, sess: &Arc<Session>) {
        sess.close();
    }
}

impl LocalDriver {
    /// A driver without targets. Context: any.
    pub fn new(core: &Arc<Core>) -> Arc<Self> {
        Arc::new(Self {
            core: Arc::downgrade(core),
            targets: SpinLock::new(Vec::new()),
            next_number: AtomicU64::new(0),
        })
    }

    /// Shows the driver in a tree, with its targets to come. Before the first target, once. Errors: `EEXIST`. Context: may
    /// sleep.
    pub fn publish(self: &Arc<Self>, tree: &ScstTree) -> Result {
        tree.driver(DRIVER_NAME)?
            .add_attrs(sysfs::driver_attrs(self))
    }

    fn core(&self) -> Result<Arc<Core>, ConfigError> {
        self.core.upgrade().ok_or(ConfigError::Shutdown)
    }

    fn find(&self, name: &str) -> Result<Arc<LocalTgt>, ConfigError> {
        let targets = self.targets.lock();
        let found = targets.iter().find(|t| t.tgt.name() == name).cloned();
        found.ok_or_else(|| ConfigError::NotFound(name.to_owned()))
    }

    /// Adds a target without sessions. Context: may sleep.
    #[doc(alias = "scst_local_add_target")]
    pub fn add_target(self: &Arc<Self>, name: &str) -> Result<Arc<Tgt>, ConfigError> {
        let template: Arc<dyn TgtTemplate> = Arc::clone(self) as _;
        let tgt = self.core()?.register_target(template, name)?;
        // It has no switch: initiators may use it from the beginning.
        tgt.enabled.store(true, Ordering::Release);
        let target = Arc::new(LocalTgt {
            tgt: Arc::clone(&tgt),
            versions: Arc::default(),
            sessions: SpinLock::new(Vec::new()),
        });
        if let Some(dir) = tgt.kobj.get()
            && let Err(e) = dir.add_attrs(sysfs::target_attrs(&target.versions))
        {
            kshim::pr_err!("Cannot show target {name} in the tree: {e}");
        }
        self.targets.lock().push(target);
        Ok(tgt)
    }

    /// Removes a target with its sessions. Context: may sleep.
    #[doc(alias = "scst_local_remove_target")]
    pub fn remove_target(&self, name: &str) -> Result<(), ConfigError> {
        let target = self.find(name)?;
        for sess in std::mem::take(&mut *target.sessions.lock()) {
            sess.end();
        }
        self.core()?.unregister_target(&target.tgt)?;
        self.targets.lock().retain(|t| !Arc::ptr_eq(t, &target));
        Ok(())
    }

    /// Removes all targets, as a server that stops does. Context: may sleep.
    pub fn stop(&self) {
        let targets = self.targets.lock().clone();
        for t in targets {
            if let Err(e) = self.remove_target(t.tgt.name()) {
                kshim::pr_err!("Cannot remove target {}: {e}", t.tgt.name());
            }
        }
    }

    /// Makes a session of an initiator of this name. Context: may sleep.
    #[doc(alias = "scst_local_add_adapter")]
    pub fn add_session(
        &self,
        target: &str,
        initiator: &str,
    ) -> Result<Arc<LocalSession>, ConfigError> {
        let target = self.find(target)?;
        let has = |s: &Arc<LocalSession>| s.initiator_name() == initiator;
        target.sessions.lock().retain(|s| !s.has_ended());
        if target.sessions.lock().iter().any(has) {
            return Err(ConfigError::Exists(initiator.to_owned()));
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let sess = LocalSession::new(&self.core()?, &target.tgt, initiator, number)?;
        target.sessions.lock().push(Arc::clone(&sess));
        Ok(sess)
    }

    /// A session by the name of its initiator. Context: any.
    pub fn session(&self, target: &str, initiator: &str) -> Option<Arc<LocalSession>> {
        let target = self.find(target).ok()?;
        let sessions = target.sessions.lock();
        let is = |s: &&Arc<LocalSession>| s.initiator_name() == initiator;
        sessions.iter().find(is).cloned()
    }

    /// Ends a session; its commands are aborted. Context: may sleep.
    #[doc(alias = "scst_local_close_session_impl")]
    pub fn remove_session(&self, target: &str, initiator: &str) -> Result<(), ConfigError> {
        let target = self.find(target)?;
        let sess = {
            let mut sessions = target.sessions.lock();
            let is = |s: &Arc<LocalSession>| s.initiator_name() == initiator;
            let at = sessions.iter().position(is);
            let at = at.ok_or_else(|| ConfigError::NotFound(initiator.to_owned()))?;
            sessions.remove(at)
        };
        sess.end();
        Ok(())
    }
}

/// The errno for the tree.
fn errno(e: &ConfigError) -> kshim::error::Error {
    kshim::pr_err!("{e}");
    match e {
        ConfigError::NotFound(_) => code::EINVAL,
        e => e.errno(),
    }
}
