//! LUN maps: adding, removing and replacing LUNs while commands are on the way.
//!
//! Nothing is suspended for it. A LUN that goes leaves the tables of its sessions at once; after a grace period no command
//! finds it any more, and its nexuses are freed when the last command that had found it is over. Other LUNs go on.
//!
//! DIFFERS: SCST waits for that command for as long as it takes, and with it all management. Here, after
//! one second, the LUN counts as removed, and the command frees the nexus when it ends.
//!
//! C source: `scst_acg_add_lun`, `scst_acg_del_lun`, `scst_acg_repl_lun`, `scst_alloc_add_tgt_dev` of `scst/src/scst_lib.c`

use super::config::host_error;
use super::{ConfigError, Core, LunParams};
use crate::acg::{Acg, AcgDev, AcgId};
use crate::cmd::clear_aca;
use crate::device::Device;
use crate::lun::Lun;
use crate::sense::{self, Sense};
use crate::session::{LunTable, Session};
use crate::tgt::Tgt;
use crate::tgt_dev::TgtDev;
use kshim::error::code;
use kshim::pr_info;
use kshim::sync::rcu;
use kshim::time::Delta;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long the removal of a LUN waits for its commands before it looks again for an ACA that holds them.
const DRAIN_ROUND: Delta = Delta::from_millis(100);
/// After so many rounds, one second, it does not wait any longer.
const DRAIN_ROUNDS: u32 = 10;

/// Nexuses with their sessions.
pub(super) type Nexuses = Vec<(Arc<Session>, Arc<TgtDev>)>;

/// Whether initiators are told, besides the unit attention of a new nexus, that another device is at a LUN.
#[doc(alias = "SCST_REPL_LUN_GEN_UA")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceUa {
    /// INQUIRY DATA HAS CHANGED (`replace`).
    InquiryDataChanged,
    /// Not (`replace_no_ua`).
    Silent,
}

/// The group of that identity. Errors: `NotFound`.
pub(super) fn with_acg<R>(
    tgt: &Tgt,
    id: AcgId,
    f: impl FnOnce(&mut Acg) -> Result<R, ConfigError>,
) -> Result<R, ConfigError> {
    let mut acgs = tgt.acgs.lock();
    let acg = acgs.iter_mut().find(|a| a.id() == id);
    f(acg.ok_or_else(|| ConfigError::NotFound("group".to_owned()))?)
}

impl Core {
    /// Maps a device to a LUN of a group; sessions of the group see it at once and learn it by REPORTED LUNS DATA
    /// HAS CHANGED on their LUNs. Errors: also what the handler answers; nothing has changed then. Context: may
    /// sleep.
    #[doc(alias = "scst_acg_add_lun")]
    pub fn add_lun(
        &self,
        tgt: &Tgt,
        acg: AcgId,
        dev: &Arc<Device>,
        lun: u64,
        params: LunParams,
    ) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        with_acg(tgt, acg, |group| match group.luns.contains_key(&lun) {
            true => Err(ConfigError::LunExists(lun, group.name.clone())),
            false => Ok(()),
        })?;
        self.map_lun(tgt, acg, dev, lun, params)?;
        for sess in tgt.sessions().iter().filter(|s| s.acg() == acg) {
            sess.report_luns_changed(&sess.tgt_devs());
        }
        Ok(())
    }

    /// Puts a device at a LUN, in the place of what is there. Answers the nexuses that are gone. Under the
    /// configuration lock.
    fn map_lun(
        &self,
        tgt: &Tgt,
        acg: AcgId,
        dev: &Arc<Device>,
        lun: u64,
        params: LunParams,
    ) -> Result<Nexuses, ConfigError> {
        if Lun::new(lun).is_none() {
            return Err(ConfigError::LunRange(lun));
        }
        if dev.unregistered.load(Ordering::Relaxed) {
            return Err(ConfigError::NotFound(dev.name().to_owned()));
        }
        if dev.handler().has_protection() {
            let (tgt, dev) = (tgt.name(), dev.name());
            let what = format!("Target {tgt} doesn't support T10-PI (device {dev})");
            return Err(ConfigError::Host {
                what,
                source: code::EINVAL,
            });
        }
        let black_hole = tgt.acg_attrs(acg).black_hole as u8;
        let entry = AcgDev {
            dev: Arc::clone(dev),
            read_only: params.read_only,
        };
        let mut added = Nexuses::new();
        for sess in tgt.sessions().into_iter().filter(|s| s.acg() == acg) {
            match self.new_tgt_dev(&sess, &entry, lun, sense::RESET_UA) {
                Ok(new) => {
                    new.set_black_hole(black_hole);
                    added.push((sess, new));
                }
                Err(e) => {
                    for (sess, t) in added {
                        self.free_tgt_dev(&sess, &t);
                    }
                    return Err(e);
                }
            }
        }
        let (before, group) = with_acg(tgt, acg, |group| {
            let before = group.luns.insert(lun, entry.clone());
            Ok((before, group.clone()))
        })?;
        if let Some(before) = before {
            self.show(|tree| tree.lun_removed(tgt, &group, lun, &before));
        }
        self.show(|tree| tree.lun_added(tgt, &group, lun, &entry));
        let mut gone = Nexuses::new();
        for (sess, new) in added {
            let (old, mut all): (Vec<_>, Vec<_>) =
                sess.tgt_devs().into_iter().partition(|t| t.lun == lun);
            all.push(Arc::clone(&new));
            sess.luns.replace(LunTable::from_iter(all));
            for t in &old {
                self.show(|tree| tree.tgt_dev_removed(t));
            }
            self.show(|tree| tree.tgt_dev_added(&sess, &new));
            gone.extend(old.into_iter().map(|t| (Arc::clone(&sess), t)));
        }
        Ok(gone)
    }

    /// Puts another device at a LUN of a group, or adds the LUN if it is not there. Commands that found the old device
    /// end there. Errors: as [`Core::add_lun`]. Context: may sleep.
    #[doc(alias = "scst_acg_repl_lun")]
    pub fn replace_lun(
        &self,
        tgt: &Tgt,
        acg: AcgId,
        dev: &Arc<Device>,
        lun: u64,
        params: LunParams,
        ua: ReplaceUa,
    ) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        let is_there = with_acg(tgt, acg, |group| Ok(group.luns.contains_key(&lun)))?;
        let gone = self.map_lun(tgt, acg, dev, lun, params)?;
        for sess in tgt.sessions().iter().filter(|s| s.acg() == acg) {
            if !is_there {
                sess.report_luns_changed(&sess.tgt_devs());
            } else if ua == ReplaceUa::InquiryDataChanged
                && let Some(t) = sess.lookup_tgt_dev(lun)
            {
                t.gen_aen_or_ua(sense::INQUIRY_DATA_CHANGED);
            }
        }
        self.retire_nexuses(gone);
        Ok(())
    }

    /// Takes a LUN out of a group. Commands that found it are waited for. Context: may sleep.
    #[doc(alias = "scst_acg_del_lun")]
    pub fn del_lun(&self, tgt: &Tgt, acg: AcgId, lun: u64) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        let (group, entry) = with_acg(tgt, acg, |group| match group.luns.remove(&lun) {
            Some(entry) => Ok((group.clone(), entry)),
            None => Err(ConfigError::LunNotFound(lun, group.name.clone())),
        })?;
        self.show(|tree| tree.lun_removed(tgt, &group, lun, &entry));
        let gone = self.take_luns_from_sessions(tgt, acg, &[lun]);
        self.retire_nexuses(gone);
        Ok(())
    }

    /// Takes all LUNs out of a group. Context: may sleep.
    pub fn clear_luns(&self, tgt: &Tgt, acg: AcgId) -> Result<(), ConfigError> {
        let _config = self.config.lock();
        let (group, luns) = with_acg(tgt, acg, |group| {
            let luns = std::mem::take(&mut group.luns);
            Ok((group.clone(), luns))
        })?;
        for (lun, entry) in &luns {
            self.show(|tree| tree.lun_removed(tgt, &group, *lun, entry));
        }
        let luns: Vec<u64> = luns.into_keys().collect();
        let gone = self.take_luns_from_sessions(tgt, acg, &luns);
        self.retire_nexuses(gone);
        Ok(())
    }

    /// Takes a device out of all LUN maps of a target. Answers the nexuses that are gone.
    pub(super) fn unmap_device(&self, tgt: &Tgt, dev: &Arc<Device>) -> Nexuses {
        let acgs = tgt.acgs.lock().clone();
        for acg in tgt.acgs.lock().iter_mut() {
            acg.luns.retain(|_, d| !Arc::ptr_eq(&d.dev, dev));
        }
        let mut gone = Nexuses::new();
        for acg in &acgs {
            let of_dev = acg.luns.iter().filter(|(_, d)| Arc::ptr_eq(&d.dev, dev));
            let mut luns = Vec::new();
            for (lun, entry) in of_dev {
                self.show(|tree| tree.lun_removed(tgt, acg, *lun, entry));
                luns.push(*lun);
            }
            gone.extend(self.take_luns_from_sessions(tgt, acg.id(), &luns));
        }
        gone
    }

    /// The sessions of a group lose LUNs. Answers the nexuses that are gone. Under the configuration lock.
    fn take_luns_from_sessions(&self, tgt: &Tgt, acg: AcgId, luns: &[u64]) -> Nexuses {
        let mut gone = Nexuses::new();
        if luns.is_empty() {
            return gone;
        }
        for sess in tgt.sessions().into_iter().filter(|s| s.acg() == acg) {
            let (lost, keep): (Vec<_>, Vec<_>) = sess
                .tgt_devs()
                .into_iter()
                .partition(|t| luns.contains(&t.lun));
            sess.luns.replace(LunTable::from_iter(keep.iter().cloned()));
            sess.report_luns_changed(&keep);
            for t in &lost {
                self.show(|tree| tree.tgt_dev_removed(t));
            }
            gone.extend(lost.into_iter().map(|t| (Arc::clone(&sess), t)));
        }
        gone
    }

    /// Frees nexuses that no table has any more, when their commands are over. Under the configuration lock.
    pub(super) fn retire_nexuses(&self, gone: Nexuses) {
        if gone.is_empty() {
            return;
        }
        rcu::synchronize_rcu();
        for (sess, t) in &gone {
            sess.retired.lock().push(Arc::clone(t));
            t.retire();
        }
        let over = || gone.iter().all(|(_, t)| t.active_commands() == 0);
        for _ in 0..DRAIN_ROUNDS {
            // Nobody else could: the LUN is gone.
            for (_, t) in &gone {
                clear_aca(t, false, None);
            }
            if self.nexus_idle.wait_event_timeout(over, DRAIN_ROUND) {
                break;
            }
        }
        let (idle, busy): (Nexuses, Nexuses) = gone
            .into_iter()
            .partition(|(_, t)| t.active_commands() == 0);
        self.free_idle(idle);
        if !busy.is_empty() {
            pr_info!("{} nexuses still have commands", busy.len());
            self.dying.lock().extend(busy);
            // The last command may have ended meanwhile.
            self.nexus_drained();
        }
    }

    /// A nexus whose LUN is gone has no command left. Context: any.
    #[cold]
    pub(crate) fn nexus_drained(&self) {
        self.nexus_idle.wake_up_all();
        if !self.dying.lock().is_empty() {
            self.post_mgmt(|core| core.free_dying());
        }
    }

    fn free_dying(&self) {
        let _config = self.config.lock();
        let (idle, busy): (Nexuses, Nexuses) = std::mem::take(&mut *self.dying.lock())
            .into_iter()
            .partition(|(_, t)| t.active_commands() == 0);
        self.dying.lock().extend(busy);
        self.free_idle(idle);
    }

    /// Frees nexuses whose commands are over. The last of them may be about to drop its reference, on a reactor: after a
    /// grace period it has done so, and nothing that may sleep is dropped there.
    fn free_idle(&self, idle: Nexuses) {
        if idle.is_empty() {
            return;
        }
        rcu::synchronize_rcu();
        for (sess, t) in idle {
            self.free_tgt_dev(&sess, &t);
        }
    }

    #[doc(alias = "scst_alloc_add_tgt_dev")]
    pub(super) fn new_tgt_dev(
        &self,
        sess: &Arc<Session>,
        entry: &AcgDev,
        lun: u64,
        ua: Sense,
    ) -> Result<Arc<TgtDev>, ConfigError> {
        let dev = &entry.dev;
        let weak = Arc::downgrade(sess);
        let t = TgtDev::new(lun, Arc::clone(dev), weak, entry.read_only);
        t.check_set_ua(ua);
        let t = Arc::new(t);
        dev.handler().attach_tgt(&t).map_err(host_error(format!(
            "Cannot attach LUN {lun} to device \"{}\"",
            dev.name()
        )))?;
        dev.reservations.attach(&t, sess);
        {
            let mut all = dev.tgt_devs.lock();
            all.retain(|t| t.strong_count() > 0);
            all.push(Arc::downgrade(&t));
        }
        self.alua.init_tgt_dev(&t, sess);
        Ok(t)
    }

    /// A nexus goes: no command of it is left. Context: may sleep.
    #[doc(alias = "scst_free_tgt_dev")]
    pub(super) fn free_tgt_dev(&self, sess: &Session, t: &Arc<TgtDev>) {
        self.show(|tree| tree.tgt_dev_removed(t));
        let me = Arc::as_ptr(t);
        t.dev
            .tgt_devs
            .lock()
            .retain(|w| !std::ptr::eq(w.as_ptr(), me));
        t.dev.reservations.detach(t, sess);
        clear_aca(t, false, None);
        t.dev.handler().detach_tgt(t);
        sess.retired.lock().retain(|r| !Arc::ptr_eq(r, t));
        let (pool, threads) = (t.dev.pool.lock().clone(), Arc::clone(&t.threads.lock()));
        pool.free_nexus(&threads);
        t.ua.clear();
    }
}
