//! Changing the configuration: devices, targets and sessions. LUN maps are changed in `luns`, groups in `groups`.
//!
//! Everything here runs under `scst_mutex` and may sleep, so transports call it through
//! [`super::Core::post_mgmt`].
//!
//! C source: `scst/src/scst_main.c`, `scst_init_session` of `scst/src/scst_targ.c`

use super::Core;
use crate::cmd::CmdHome;
use crate::consts::MAX_NAME;
use crate::dev_type::DevHandler;
use crate::device::{DevPool, Device};
use crate::event::Kind;
use crate::event::payload::UNREG_SESS_TM;
use crate::pres::TransportId;
use crate::retained::RetainedStates;
use crate::sense::Sense;
use crate::session::{LunTable, Session};
use crate::template::TgtTemplate;
use crate::tgt::Tgt;
use kshim::error::code;
use kshim::kobject::NAME_MAX;
use kshim::pr_info;
use kshim::sync::rcu;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Why a change of the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The name is empty, too long, or has characters that a path cannot have.
    #[error("Invalid name \"{0}\"")]
    InvalidName(String),
    /// A device or target of that name exists.
    #[error("\"{0}\" already exists")]
    Exists(String),
    /// No such device, target or group.
    #[error("\"{0}\" not found")]
    NotFound(String),
    /// The LUN is taken.
    #[error("LUN {0} already exists in group \"{1}\"")]
    LunExists(u64, String),
    /// The LUN is beyond what can be addressed.
    #[error("LUN {0} is out of range")]
    LunRange(u64),
    /// The group has no such LUN.
    #[error("LUN {0} not found in group \"{1}\"")]
    LunNotFound(u64, String),
    /// Commands did not drain in time, or the object is in use.
    #[error("\"{0}\" is busy")]
    Busy(String),
    /// The session's target or core is going away.
    #[error("Shutting down")]
    Shutdown,
    /// Another target has the relative identifier.
    #[error("Relative target id {0} is not unique")]
    RelTgtIdTaken(u16),
    /// A value that cannot be.
    #[error("Invalid value \"{0}\"")]
    InvalidValue(String),
    /// A handler or the host refused.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// The errno.
        #[source]
        source: kshim::error::Error,
    },
}

impl ConfigError {
    /// The errno that SCST has for it.
    pub fn errno(&self) -> kshim::error::Error {
        match self {
            Self::Exists(_) | Self::LunExists(..) => code::EEXIST,
            Self::Busy(_) => code::EBUSY,
            Self::Shutdown => code::ENODEV,
            Self::RelTgtIdTaken(_) => code::EBADSLT,
            Self::Host { source, .. } => *source,
            Self::InvalidName(_)
            | Self::NotFound(_)
            | Self::LunRange(_)
            | Self::LunNotFound(..)
            | Self::InvalidValue(_) => code::EINVAL,
        }
    }
}

/// How a LUN is added to a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct LunParams {
    /// Sessions of the group may only read.
    pub read_only: bool,
}

pub(super) fn host_error(
    what: impl Into<String>,
) -> impl FnOnce(kshim::error::Error) -> ConfigError {
    let what = what.into();
    move |source| ConfigError::Host { what, source }
}

/// Whether the management tree and a configuration file can have the name.
pub(crate) fn check_name(name: &str) -> Result<(), ConfigError> {
    let bad = |c: char| c == '/' || c.is_control() || c.is_whitespace();
    let len_is_good = (1..=NAME_MAX).contains(&name.len());
    if !len_is_good || name.contains(bad) || name == "." || name == ".." {
        return Err(ConfigError::InvalidName(name.to_owned()));
    }
    Ok(())
}

impl Core {
    /// Registers a virtual device. Context: may sleep.
    #[doc(alias = "scst_register_virtual_device")]
    pub fn register_virtual_device(
        &self,
        name: &str,
        handler: Arc<dyn DevHandler>,
    ) -> Result<Arc<Device>, ConfigError> {
        check_name(name)?;
        if name.len() > MAX_NAME {
            return Err(ConfigError::InvalidName(name.to_owned()));
        }
        let mut config = self.config.lock();
        if config.devices.contains_key(name) {
            return Err(ConfigError::Exists(name.to_owned()));
        }
        let pool = DevPool::new(
            handler.threads_num(),
            handler.threads_pool_type(),
            name,
            &self.main_threads,
        );
        let mem_lim = self.sgv.device_limit(self.max_dev_cmd_mem);
        let dev = Arc::new(Device::new(name, handler, pool, mem_lim));
        if let Some(dir) = &self.params().pr_dir {
            let opened = dev.reservations.open_file(dir, name);
            opened.map_err(host_error(format!(
                "Cannot load the persistent reservations of device \"{name}\""
            )))?;
        }
        dev.handler().attach(&dev).map_err(host_error(format!(
            "Cannot attach device \"{name}\" to its handler"
        )))?;
        config.devices.insert(name.to_owned(), Arc::clone(&dev));
        self.show(|tree| tree.device_added(&dev));
        if let Some((lun, entry)) = self.copy_mgr.on_dev_register(&dev) {
            let cm = self.copy_mgr.tgt();
            self.show(|tree| tree.lun_added(cm, &cm.default_acg(), lun, &entry));
        }
        self.events().tell(|| Kind::RegVirtDev {
            device: name.to_owned(),
        });
        pr_info!("Attached to virtual device {name}");
        Ok(dev)
    }

    /// A device by name. Context: may sleep.
    pub fn device(&self, name: &str) -> Option<Arc<Device>> {
        self.config.lock().devices.get(name).cloned()
    }

    /// The registered devices, by name. Context: may sleep.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.config.lock().devices.values().cloned().collect()
    }

    /// Unregisters a device: it leaves all LUN maps first. Errors: `Busy` if its commands did not end in time; then
    /// nothing has changed. Context: may sleep.
    #[doc(alias = "scst_unregister_virtual_device")]
    pub fn unregister_virtual_device(&self, name: &str) -> Result<(), ConfigError> {
        let suspended = self
            .suspend_activity()
            .map_err(|_| ConfigError::Busy(name.to_owned()))?;
        let dev = {
            let mut config = self.config.lock();
            let dev = config.devices.remove(name);
            let dev = dev.ok_or_else(|| ConfigError::NotFound(name.to_owned()))?;
            dev.unregistered.store(true, Ordering::Relaxed);
            self.unmap_device(self.copy_mgr.tgt(), &dev);
            self.alua.on_dev_unregister(&dev);
            let gone: Vec<_> = config
                .tgts
                .iter()
                .flat_map(|tgt| self.unmap_device(tgt, &dev))
                .collect();
            self.retire_nexuses(gone);
            dev
        };
        drop(suspended);
        self.show(|tree| tree.sync_device_groups());
        self.show(|tree| tree.device_removed(&dev));
        let pool = dev.pool.lock().clone();
        pool.stop();
        dev.handler().detach(&dev);
        pr_info!("Detached from virtual device {name}");
        Ok(())
    }

    /// Registers a target port; it starts disabled and without relative identifier ([`Core::enable_target`]). Context:
    /// may sleep.
    #[doc(alias = "scst_register_target")]
    pub fn register_target(
        &self,
        template: Arc<dyn TgtTemplate>,
        name: &str,
    ) -> Result<Arc<Tgt>, ConfigError> {
        check_name(name)?;
        let mut config = self.config.lock();
        let taken = |t: &&Arc<Tgt>| t.name() == name && t.template().name() == template.name();
        if config.tgts.iter().any(|t| taken(&t)) {
            return Err(ConfigError::Exists(name.to_owned()));
        }
        let tgt = Tgt::new(name, template, 0, Some(Arc::clone(self.events())));
        config.tgts.push(Arc::clone(&tgt));
        self.tgt_list.lock().push(Arc::downgrade(&tgt));
        self.show(|tree| tree.tgt_added(&tgt));
        pr_info!("Target {name} registered");
        Ok(tgt)
    }

    /// Unregisters a target port whose sessions are gone. Context: may sleep.
    #[doc(alias = "scst_unregister_target")]
    pub fn unregister_target(&self, tgt: &Arc<Tgt>) -> Result<(), ConfigError> {
        let mut config = self.config.lock();
        if !tgt.sessions().is_empty() {
            return Err(ConfigError::Busy(tgt.name().to_owned()));
        }
        config.tgts.retain(|t| !Arc::ptr_eq(t, tgt));
        drop(config);
        let me = Arc::as_ptr(tgt);
        self.tgt_list
            .lock()
            .retain(|t| !std::ptr::eq(t.as_ptr(), me));
        self.alua.on_tgt_unregister(tgt);
        self.show(|tree| tree.sync_device_groups());
        self.show(|tree| tree.tgt_removed(tgt));
        Ok(())
    }

    /// The registered targets. Context: may sleep.
    pub fn targets(&self) -> Vec<Arc<Tgt>> {
        self.config.lock().tgts.clone()
    }

    /// Relative ids of the target ports of a session's transport protocol: where ALL_TG_PT registers. Context: any.
    pub(crate) fn rel_tgt_ids_of_protocol(&self, sess: &Session) -> Vec<u16> {
        let protocol = sess.transport_id().map(TransportId::protocol);
        let tgts: Vec<_> = {
            let list = self.tgt_list.lock();
            list.iter().filter_map(Weak::upgrade).collect()
        };
        let same = |t: &&Arc<Tgt>| t.template().transport_id_protocol() == protocol;
        let ids = tgts.iter().filter(same);
        ids.map(|t| t.rel_tgt_id.load(Ordering::Relaxed))
            .filter(|id| *id != 0)
            .collect()
    }

    /// Registers a session: finds its group and makes a nexus for each LUN, with the power-on unit attention.
    /// Context: may sleep.
    #[doc(alias = "scst_register_session")]
    pub fn register_session(
        self: &Arc<Self>,
        tgt: &Arc<Tgt>,
        initiator_name: &str,
        home: Arc<dyn CmdHome>,
        tgt_priv: u64,
        initial_ua: Sense,
    ) -> Result<Arc<Session>, ConfigError> {
        let config = self.config.lock();
        if !config.tgts.iter().any(|t| Arc::ptr_eq(t, tgt)) {
            return Err(ConfigError::Shutdown);
        }
        let sess = Session::new(
            Arc::clone(self),
            Arc::clone(tgt),
            initiator_name,
            home,
            tgt_priv,
        );
        let sess = Arc::new(sess);
        let acg = tgt.acg(sess.acg()).ok_or(ConfigError::Shutdown)?;
        let mut nexuses = Vec::new();
        for (lun, entry) in &acg.luns {
            match self.new_tgt_dev(&sess, entry, *lun, initial_ua) {
                Ok(t) => {
                    t.set_black_hole(acg.attrs.black_hole as u8);
                    nexuses.push(t);
                }
                Err(e) => {
                    for t in nexuses {
                        self.free_tgt_dev(&sess, &t);
                    }
                    return Err(e);
                }
            }
        }
        sess.luns.replace(LunTable::from_iter(nexuses));
        tgt.sessions.lock().push(Arc::downgrade(&sess));
        self.show(|tree| {
            tree.session_added(&sess);
            for t in sess.tgt_devs() {
                tree.tgt_dev_added(&sess, &t);
            }
        });
        kshim::pr_info_ratelimited_by!(
            initiator_name,
            "Session registered: initiator {initiator_name}, target {}",
            tgt.name()
        );
        Ok(sess)
    }

    /// Unregisters a session that has no command left. What it had reserved is free again, unless it has a successor
    /// ([`Session::retain`]), which gets what is answered. Context: may sleep.
    #[doc(alias = "scst_unregister_session")]
    pub fn unregister_session(&self, sess: &Arc<Session>) -> Option<RetainedStates> {
        self.events()
            .tell(|| Kind::TmFnReceived(sess.tm_event(UNREG_SESS_TM)));
        // Not under the lock: it waits for the session's attributes.
        self.show(|tree| tree.session_removed(sess));
        let _config = self.config.lock();
        let retained = RetainedStates::of(sess);
        let gone = sess.tgt_devs();
        sess.luns.replace(LunTable::default());
        sess.tgt()
            .sessions
            .lock()
            .retain(|s| s.upgrade().is_some_and(|s| !Arc::ptr_eq(&s, sess)));
        rcu::synchronize_rcu();
        for t in gone {
            self.free_tgt_dev(sess, &t);
        }
        let (ini, tgt) = (sess.initiator_name(), sess.tgt().name());
        kshim::pr_info_ratelimited_by!(ini, "Session unregistered: initiator {ini}, target {tgt}");
        retained
    }
}
