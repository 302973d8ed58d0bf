//! Access groups: which initiators see which LUN map, and moving live sessions between groups; attributes of targets and
//! groups.
//!
//! A session whose group changes keeps the nexuses that are the same in both groups; the others go and come as in
//! `luns`, without suspension.
//!
//! C source: `scst_acg_add_acn`, `scst_check_reassign_sessions`, `scst_del_free_acg` of `scst/src/scst_lib.c`,
//! `scst_process_tgt_enable_store`, `scst_process_rel_tgt_id_store` of `scst/src/scst_sysfs.c`

use super::config::check_name;
use super::luns::{Nexuses, with_acg};
use super::{ConfigError, Core};
use crate::acg::{Acg, AcgAttrs, AcgId};
use crate::sense;
use crate::session::{LunTable, Session};
use crate::tgt::Tgt;
use crate::tgt_dev::TgtDev;
use kshim::{pr_err, pr_info};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Core {
    /// Makes a group of initiators. Context: may sleep.
    #[doc(alias = "scst_alloc_add_acg")]
    pub fn add_acg(&self, tgt: &Tgt, name: &str) -> Result<AcgId, ConfigError> {
        check_name(name)?;
        let _config = self.config.lock();
        let mut acgs = tgt.acgs.lock();
        if acgs.iter().skip(1).any(|a| a.name == name) {
            return Err(ConfigError::Exists(name.to_owned()));
        }
        let acg = Acg::new(name);
        let id = acg.id();
        acgs.push(acg.clone());
        drop(acgs);
        self.show(|tree| tree.acg_added(tgt, &acg));
        Ok(id)
    }

    /// Removes a group of initiators that has no session. Errors: `Busy` if it has. Context: may sleep.
    #[doc(alias = "scst_del_free_acg")]
    pub fn del_acg(&self, tgt: &Tgt, acg: AcgId) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        let group = with_acg(tgt, acg, |a| Ok(a.clone()))?;
        if acg == tgt.default_acg_id() || tgt.sessions().iter().any(|s| s.acg() == acg) {
            return Err(ConfigError::Busy(group.name));
        }
        tgt.acgs.lock().retain(|a| a.id() != acg);
        for (lun, entry) in &group.luns {
            self.show(|tree| tree.lun_removed(tgt, &group, *lun, entry));
        }
        self.show(|tree| tree.acg_removed(tgt, &group));
        Ok(())
    }

    /// Adds an initiator pattern to a group. Sessions whose group it makes move there. Context: may sleep.
    #[doc(alias = "scst_acg_add_acn")]
    pub fn add_acn(&self, tgt: &Tgt, acg: AcgId, pattern: &str) -> Result<(), ConfigError> {
        check_name(pattern)?;
        let _config = self.config.lock();
        with_acg(tgt, acg, |acg| {
            if acg.acns.iter().any(|p| p == pattern) {
                return Err(ConfigError::Exists(pattern.to_owned()));
            }
            acg.acns.push(pattern.to_owned());
            Ok(())
        })?;
        self.show_acn(tgt, acg, pattern);
        self.reassign_sessions(tgt);
        Ok(())
    }

    fn show_acn(&self, tgt: &Tgt, acg: AcgId, pattern: &str) {
        if let Some(acg) = tgt.acg(acg) {
            self.show(|tree| tree.acn_added(tgt, &acg, pattern));
        }
    }

    fn hide_acn(&self, tgt: &Tgt, acg: AcgId, pattern: &str) {
        if let Some(acg) = tgt.acg(acg) {
            self.show(|tree| tree.acn_removed(tgt, &acg, pattern));
        }
    }

    /// Takes an initiator pattern out of a group. Context: may sleep.
    #[doc(alias = "scst_del_free_acn")]
    pub fn del_acn(&self, tgt: &Tgt, acg: AcgId, pattern: &str) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        with_acg(tgt, acg, |acg| take_acn(acg, pattern))?;
        self.hide_acn(tgt, acg, pattern);
        self.reassign_sessions(tgt);
        Ok(())
    }

    /// Takes all initiator patterns out of a group. Context: may sleep.
    pub fn clear_acns(&self, tgt: &Tgt, acg: AcgId) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        let acns = with_acg(tgt, acg, |acg| Ok(std::mem::take(&mut acg.acns)))?;
        for pattern in &acns {
            self.hide_acn(tgt, acg, pattern);
        }
        self.reassign_sessions(tgt);
        Ok(())
    }

    /// Moves an initiator pattern to another group. Context: may sleep.
    pub fn move_acn(
        &self,
        tgt: &Tgt,
        from: AcgId,
        to: AcgId,
        pattern: &str,
    ) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        let has = |acg: &mut Acg| Ok(acg.acns.iter().any(|p| p == pattern));
        if !with_acg(tgt, from, has)? {
            return Err(ConfigError::NotFound(pattern.to_owned()));
        }
        if with_acg(tgt, to, has)? {
            return Err(ConfigError::Exists(pattern.to_owned()));
        }
        with_acg(tgt, from, |acg| take_acn(acg, pattern))?;
        with_acg(tgt, to, |acg| {
            acg.acns.push(pattern.to_owned());
            Ok(())
        })?;
        self.hide_acn(tgt, from, pattern);
        self.show_acn(tgt, to, pattern);
        self.reassign_sessions(tgt);
        Ok(())
    }

    /// Changes attributes of a group. Context: may sleep.
    pub fn set_acg_attrs(
        &self,
        tgt: &Tgt,
        acg: AcgId,
        change: impl FnOnce(&mut AcgAttrs),
    ) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        let attrs = with_acg(tgt, acg, |acg| {
            change(&mut acg.attrs);
            Ok(acg.attrs)
        })?;
        for sess in tgt.sessions().iter().filter(|s| s.acg() == acg) {
            for t in sess.tgt_devs() {
                t.set_black_hole(attrs.black_hole as u8);
            }
        }
        Ok(())
    }

    /// Moves sessions to the groups that they belong to now. Under the configuration lock.
    #[doc(alias = "scst_check_reassign_sessions")]
    fn reassign_sessions(&self, tgt: &Tgt) {
        let mut gone = Nexuses::new();
        for sess in tgt.sessions() {
            let acg = tgt.find_acg(sess.initiator_name());
            if acg != sess.acg()
                && let Some(acg) = tgt.acg(acg)
            {
                gone.extend(self.move_session(&sess, &acg));
            }
        }
        self.retire_nexuses(gone);
    }

    /// Moves a session to a group. Answers the nexuses that are gone.
    #[doc(alias = "scst_check_reassign_sess")]
    fn move_session(&self, sess: &Arc<Session>, acg: &Acg) -> Nexuses {
        pr_info!(
            "Session of {} moves to group {}",
            sess.initiator_name(),
            acg.name
        );
        let old = sess.tgt_devs();
        let (mut kept, mut made) = (Vec::new(), Vec::new());
        for (lun, entry) in &acg.luns {
            let same = |t: &&Arc<TgtDev>| {
                t.lun == *lun && Arc::ptr_eq(&t.dev, &entry.dev) && t.acg_rd_only == entry.read_only
            };
            if let Some(t) = old.iter().find(same) {
                kept.push(Arc::clone(t));
                continue;
            }
            match self.new_tgt_dev(sess, entry, *lun, sense::RESET_UA) {
                Ok(t) => made.push(t),
                Err(e) => pr_err!("LUN {lun} is lost to {}: {e}", sess.initiator_name()),
            }
        }
        let is_kept = |t: &Arc<TgtDev>| kept.iter().any(|k| Arc::ptr_eq(k, t));
        let gone: Vec<_> = old.iter().filter(|t| !is_kept(t)).cloned().collect();
        let all: Vec<_> = kept.iter().chain(&made).cloned().collect();
        for t in &all {
            t.set_black_hole(acg.attrs.black_hole as u8);
        }
        sess.luns.replace(LunTable::from_iter(all.iter().cloned()));
        sess.set_acg(acg.id());
        self.show(|tree| tree.session_moved(sess));
        for t in &gone {
            self.show(|tree| tree.tgt_dev_removed(t));
        }
        for t in &made {
            self.show(|tree| tree.tgt_dev_added(sess, t));
        }
        if !made.is_empty() || !gone.is_empty() {
            sess.report_luns_changed(&all);
            let was_there = |t: &&Arc<TgtDev>| old.iter().any(|o| o.lun == t.lun);
            for t in made.iter().filter(was_there) {
                t.gen_aen_or_ua(sense::INQUIRY_DATA_CHANGED);
            }
        }
        gone.into_iter().map(|t| (Arc::clone(sess), t)).collect()
    }

    /// Lets initiators log in to a target, or not; a target that has no relative identifier gets one. Sessions that exist
    /// live on. Errors: `RelTgtIdTaken`, `Busy` if there is no identifier left. Context: may sleep.
    #[doc(alias = "scst_process_tgt_enable_store")]
    pub fn enable_target(&self, tgt: &Tgt, enable: bool) -> Result<(), ConfigError> {
        let mut config = self.config.lock();
        if enable {
            let others = config.tgts.iter().filter(|t| !std::ptr::eq(&***t, tgt));
            // As in SCST, identifiers of targets that are disabled do not count.
            let on = others.filter(|t| t.enabled.load(Ordering::Acquire));
            let used: Vec<u16> = on.map(|t| t.rel_tgt_id.load(Ordering::Relaxed)).collect();
            let id = tgt.rel_tgt_id.load(Ordering::Relaxed);
            if id == 0 {
                let last = config.last_rel_tgt_id;
                let after = last.saturating_add(1)..=u16::MAX;
                let free = after.chain(1..=last).find(|id| !used.contains(id));
                let free = free.ok_or_else(|| ConfigError::Busy(tgt.name().to_owned()))?;
                config.last_rel_tgt_id = free;
                tgt.rel_tgt_id.store(free, Ordering::Relaxed);
                pr_info!(
                    "Using autogenerated relative target id {free} for target {}",
                    tgt.name()
                );
            } else if used.contains(&id) {
                return Err(ConfigError::RelTgtIdTaken(id));
            }
        }
        tgt.enabled.store(enable, Ordering::Release);
        drop(config);
        tgt.template().target_enabled(tgt, enable);
        Ok(())
    }

    /// Sets the relative identifier of a target port. Errors: `RelTgtIdTaken`; `InvalidValue` for 0, unless the target is
    /// disabled, and for more than 16 bits. Context: may sleep.
    pub fn set_rel_tgt_id(&self, tgt: &Tgt, id: u64) -> Result<(), ConfigError> {
        let config = self.config.lock();
        let enabled = tgt.enabled.load(Ordering::Acquire);
        let id16 = u16::try_from(id & 0xFFFF).unwrap_or(0);
        if enabled && u64::from(tgt.rel_tgt_id.load(Ordering::Relaxed)) != id {
            let taken = config.tgts.iter().any(|t| {
                !std::ptr::eq(&**t, tgt)
                    && t.enabled.load(Ordering::Acquire)
                    && t.rel_tgt_id.load(Ordering::Relaxed) == id16
            });
            // 0 is that of the copy manager.
            if taken || id16 == 0 {
                return Err(ConfigError::RelTgtIdTaken(id16));
            }
        }
        if id > u64::from(u16::MAX) || (id == 0 && enabled) {
            return Err(ConfigError::InvalidValue(id.to_string()));
        }
        tgt.rel_tgt_id.store(id16, Ordering::Relaxed);
        Ok(())
    }
}

fn take_acn(acg: &mut Acg, pattern: &str) -> Result<(), ConfigError> {
    let at = acg.acns.iter().position(|p| p == pattern);
    acg.acns
        .remove(at.ok_or_else(|| ConfigError::NotFound(pattern.to_owned()))?);
    Ok(())
}
