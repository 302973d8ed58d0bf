//! The groups themselves, and changing them.

use super::{AluaPort, DgView, PortView, TgState, TgView};
use crate::core::{Core, check_name};
use crate::device::Device;
use crate::pres::TransportId;
use crate::sense;
use crate::session::Session;
use crate::tgt::Tgt;
use crate::tgt_dev::TgtDev;
use kshim::error::{Result, code};
use kshim::pr_info;
use kshim::time::delay::msleep;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// How often a command tries to see the groups.
const LOCK_TRIES: u32 = 100;
/// Pause between two tries, in milliseconds.
const LOCK_RETRY_MS: u32 = 1;

/// What the management tree has beside device groups, beside target groups, and beside a group's devices.
const TAKEN: [&str; 1] = ["mgmt"];
/// What it has beside a group's targets.
const TAKEN_BY_TG: [&str; 4] = ["mgmt", "group_id", "preferred", "state"];

/// Whether the management tree can show that name. Errors: `EINVAL` for what is no name, `EEXIST` for what it has there.
fn check_shown(name: &str, taken: &[&str]) -> Result {
    check_name(name).map_err(|e| e.errno())?;
    if taken.contains(&name) {
        return Err(code::EEXIST);
    }
    Ok(())
}

/// A target port of a group.
#[doc(alias = "scst_tg_tgt")]
struct TgTgt {
    name: String,
    /// `None`: a remote one.
    tgt: Option<Arc<Tgt>>,
    rel_tgt_id: u16,
}

/// A target port group.
#[doc(alias = "scst_target_group")]
pub(super) struct TargetGroup {
    pub(super) name: String,
    pub(super) id: u16,
    pub(super) state: TgState,
    preferred: bool,
    tgts: Vec<TgTgt>,
}

/// A device group.
#[doc(alias = "scst_dev_group")]
pub(super) struct DevGroup {
    pub(super) name: String,
    pub(super) devs: Vec<Arc<Device>>,
    pub(super) tgs: Vec<TargetGroup>,
    /// The nexus whose SET TARGET PORT GROUPS is carried out: it knows of the changes.
    #[doc(alias = "stpg_transport_id")]
    pub(super) stpg_by: Option<(u16, Option<TransportId>)>,
    /// Devices that are blocked for that.
    #[doc(alias = "stpg_ext_blocked")]
    pub(super) stpg_blocked: Vec<Arc<Device>>,
}

/// A target port of a group, to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TgTgtInfo {
    /// The target's name.
    pub name: String,
    /// Whether it is a target of this server; else it has a `rel_tgt_id` of its own.
    pub local: bool,
    /// Name of the driver of a local target.
    pub driver: String,
    /// Relative target port identifier of a remote one.
    pub rel_tgt_id: u16,
}

/// A target port group, to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetGroupInfo {
    /// Name.
    pub name: String,
    /// Identifier; 0 until it is set.
    pub id: u16,
    /// State.
    pub state: TgState,
    /// PREF.
    pub preferred: bool,
    /// Ports, in the order of their addition.
    pub tgts: Vec<TgTgtInfo>,
}

/// A device group, to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevGroupInfo {
    /// Name.
    pub name: String,
    /// Names of its devices.
    pub devs: Vec<String>,
    /// Its target port groups.
    pub tgs: Vec<TargetGroupInfo>,
}

impl TargetGroup {
    fn has(&self, tgt: &Tgt) -> bool {
        let is = |t: &TgTgt| t.tgt.as_ref().is_some_and(|t| std::ptr::eq(&**t, tgt));
        self.tgts.iter().any(is)
    }

    pub(super) fn is_remote(&self) -> bool {
        self.tgts.iter().any(|t| t.tgt.is_none())
    }

    fn info(&self) -> TargetGroupInfo {
        let tgt = |t: &TgTgt| TgTgtInfo {
            name: t.name.clone(),
            local: t.tgt.is_some(),
            driver: t
                .tgt
                .as_ref()
                .map_or("", |t| t.template().name())
                .to_owned(),
            rel_tgt_id: t.rel_tgt_id,
        };
        TargetGroupInfo {
            name: self.name.clone(),
            id: self.id,
            state: self.state,
            preferred: self.preferred,
            tgts: self.tgts.iter().map(tgt).collect(),
        }
    }

    fn view(&self) -> TgView {
        let port = |t: &TgTgt| PortView {
            name: t.name.clone(),
            tgt: t.tgt.as_ref().map(Arc::downgrade),
            rel_tgt_id: t.rel_tgt_id,
        };
        TgView {
            id: self.id,
            state: self.state,
            preferred: self.preferred,
            ports: self.tgts.iter().map(port).collect(),
        }
    }
}

/// The nexuses of a device with their sessions.
fn nexuses(dev: &Device) -> impl Iterator<Item = (Arc<TgtDev>, Arc<Session>)> {
    let all = dev.tgt_devs().into_iter();
    all.filter_map(|t| t.session().map(|s| (t, s)))
}

impl DevGroup {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            devs: Vec::new(),
            tgs: Vec::new(),
            stpg_by: None,
            stpg_blocked: Vec::new(),
        }
    }

    fn tg(&mut self, name: &str) -> Result<&mut TargetGroup> {
        let found = self.tgs.iter_mut().find(|g| g.name == name);
        found.ok_or(code::EINVAL)
    }

    pub(super) fn has_dev(&self, dev: &Device) -> bool {
        self.devs.iter().any(|d| std::ptr::eq(&**d, dev))
    }

    fn filter_at(&self, tgt: &Tgt) -> u8 {
        let group = self.tgs.iter().find(|g| g.has(tgt));
        group.map_or(0, |g| g.state.filter())
    }

    /// Has the devices and nexuses know the group as it is now.
    fn publish(&self) {
        let view = Arc::new(DgView {
            groups: self.tgs.iter().map(TargetGroup::view).collect(),
        });
        for dev in &self.devs {
            *dev.alua.lock() = Some(Arc::clone(&view));
            for (t, sess) in nexuses(dev) {
                t.set_alua_filter(self.filter_at(sess.tgt()));
            }
        }
    }

    /// A device is in no group any more.
    fn forget(dev: &Device) {
        *dev.alua.lock() = None;
        for t in dev.tgt_devs() {
            t.set_alua_filter(0);
        }
    }

    /// Whether the session asked for what is being changed.
    fn asked(&self, sess: &Session) -> bool {
        self.stpg_by.as_ref().is_some_and(|(port, tid)| {
            *port == sess.tgt().rel_tgt_id.load(Ordering::Relaxed)
                && tid.as_ref() == sess.transport_id()
        })
    }

    /// Tells the initiators at the ports of a group that its state has changed.
    fn tell(&self, tg: &TargetGroup) {
        for dev in &self.devs {
            for (t, sess) in nexuses(dev) {
                if tg.has(sess.tgt()) && !self.asked(&sess) {
                    t.gen_aen_or_ua(sense::ASYM_ACCESS_STATE_CHANGED);
                }
            }
        }
    }

    /// Handlers hear of a change at ports of this server, and for a group that has none yet.
    fn devs_to_tell(&self, tg: &TargetGroup) -> Vec<Arc<Device>> {
        let here =
            |d: &&Arc<Device>| !tg.is_remote() || nexuses(d).any(|(_, sess)| tg.has(sess.tgt()));
        self.devs.iter().filter(here).cloned().collect()
    }

    /// Sets a state that a group has, for devices that do not serve in it. Context: may sleep.
    pub(super) fn set_again(&mut self, id: u16, state: TgState) {
        let at = self.tgs.iter().position(|g| g.id == id && g.state == state);
        if let Some(at) = at {
            self.set_state(at, state);
        }
    }

    #[doc(alias = "__scst_tg_set_state")]
    fn set_state(&mut self, at: usize, state: TgState) {
        let Some(old) = self.tgs.get(at).map(|g| g.state) else {
            return;
        };
        let devs = self.tgs.get(at).map(|g| self.devs_to_tell(g));
        let devs = devs.unwrap_or_default();
        // Also where it is set again: what could not be opened, or was lost since, is tried again.
        for dev in &devs {
            if old != state || state.is_active() && dev.handler().needs_activation() {
                dev.handler().on_alua_state_change_start(dev, old, state);
            }
        }
        if old == state {
            return;
        }
        if let Some(tg) = self.tgs.get_mut(at) {
            tg.state = state;
        }
        self.publish();
        for dev in &devs {
            dev.handler().on_alua_state_change_finish(dev, old, state);
        }
        let Some(tg) = self.tgs.get(at) else { return };
        if state != TgState::Transitioning {
            self.tell(tg);
        }
        let (dg, tg) = (&self.name, &tg.name);
        pr_info!("Changed ALUA state of {dg}/{tg} into {}", state.name());
    }

    fn remove_dev(&mut self, at: usize) -> Vec<Arc<Device>> {
        let dev = self.devs.remove(at);
        Self::forget(&dev);
        let blocked = std::mem::take(&mut self.stpg_blocked);
        let (its, keep) = blocked.into_iter().partition(|d| Arc::ptr_eq(d, &dev));
        self.stpg_blocked = keep;
        its
    }
}

/// Lets commands onto devices that were blocked for a SET TARGET PORT GROUPS.
pub(super) fn unblock(devs: Vec<Arc<Device>>) {
    for dev in devs {
        for cmd in dev.block.unblock() {
            let _ = cmd.go_home();
        }
    }
}

impl super::Alua {
    pub(super) fn with_groups<R>(&self, f: impl FnOnce(&mut Vec<DevGroup>) -> R) -> R {
        f(&mut self.groups.lock())
    }

    /// The same for a command that is on a device: whoever changes a state waits for it with the lock held, so it must not
    /// wait without end. `None`: the groups are being changed. Context: may sleep.
    pub(super) fn with_groups_soon<R>(&self, f: impl FnOnce(&mut Vec<DevGroup>) -> R) -> Option<R> {
        for _ in 0..LOCK_TRIES {
            if let Some(mut groups) = self.groups.try_lock() {
                return Some(f(&mut groups));
            }
            msleep(LOCK_RETRY_MS);
        }
        None
    }

    /// A nexus is new and on its device's list. Context: may sleep.
    #[doc(alias = "scst_tg_init_tgt_dev")]
    pub(crate) fn init_tgt_dev(&self, t: &TgtDev, sess: &Session) {
        let groups = self.groups.lock();
        if let Some(dg) = groups.iter().find(|g| g.has_dev(&t.dev)) {
            t.set_alua_filter(dg.filter_at(sess.tgt()));
        }
    }

    /// A device goes. Context: may sleep.
    #[doc(alias = "scst_dg_dev_remove_by_dev")]
    pub(crate) fn on_dev_unregister(&self, dev: &Device) {
        let mut groups = self.groups.lock();
        for dg in groups.iter_mut() {
            if let Some(at) = dg.devs.iter().position(|d| std::ptr::eq(&**d, dev)) {
                unblock(dg.remove_dev(at));
            }
        }
    }

    /// A target goes. Context: may sleep.
    #[doc(alias = "scst_tg_tgt_remove_by_tgt")]
    pub(crate) fn on_tgt_unregister(&self, tgt: &Tgt) {
        let mut groups = self.groups.lock();
        for dg in groups.iter_mut() {
            for tg in &mut dg.tgs {
                let is = |t: &TgTgt| t.tgt.as_ref().is_some_and(|t| std::ptr::eq(&**t, tgt));
                tg.tgts.retain(|t| !is(t));
            }
            dg.publish();
        }
    }
}

/// What a device says of itself at a target. Context: any.
pub(crate) fn port_of(dev: &Device, tgt: &Tgt) -> AluaPort {
    let view = dev.alua.lock().clone();
    view.map_or_else(AluaPort::default, |v| v.port(tgt.name()))
}

/// Changing device groups, as the management tree does. Errors are those of SCST: `EINVAL` for what does not exist and for
/// what is no name, `EEXIST` for what exists, be it something else in the management tree. Context: may sleep.
impl Core {
    /// Changes a group, and has the management tree show it.
    fn dg<R>(&self, dg: &str, f: impl FnOnce(&mut DevGroup) -> Result<R>) -> Result<R> {
        let done = {
            let mut groups = self.alua.groups.lock();
            let found = groups.iter_mut().find(|g| g.name == dg);
            f(found.ok_or(code::EINVAL)?)?
        };
        self.show(|tree| tree.sync_device_groups());
        Ok(done)
    }

    /// All device groups in the order of their making.
    pub fn dev_groups(&self) -> Vec<DevGroupInfo> {
        let groups = self.alua.groups.lock();
        let info = |g: &DevGroup| DevGroupInfo {
            name: g.name.clone(),
            devs: g.devs.iter().map(|d| d.name().to_owned()).collect(),
            tgs: g.tgs.iter().map(TargetGroup::info).collect(),
        };
        groups.iter().map(info).collect()
    }

    /// Makes a device group.
    #[doc(alias = "scst_dg_add")]
    pub fn dg_add(&self, name: &str) -> Result {
        check_shown(name, &TAKEN)?;
        let mut groups = self.alua.groups.lock();
        if groups.iter().any(|g| g.name == name) {
            return Err(code::EEXIST);
        }
        groups.push(DevGroup::new(name));
        drop(groups);
        self.show(|tree| tree.sync_device_groups());
        Ok(())
    }

    /// Removes a device group; its target port groups become active first.
    #[doc(alias = "scst_dg_remove")]
    pub fn dg_remove(&self, name: &str) -> Result {
        let mut groups = self.alua.groups.lock();
        let at = groups.iter().position(|g| g.name == name);
        let mut dg = groups.remove(at.ok_or(code::EINVAL)?);
        for at in 0..dg.tgs.len() {
            dg.set_state(at, TgState::Optimized);
        }
        while !dg.devs.is_empty() {
            unblock(dg.remove_dev(0));
        }
        drop(groups);
        self.show(|tree| tree.sync_device_groups());
        self.alua.delayed.release_all();
        Ok(())
    }

    /// Puts a device into a group; it may be in none yet.
    #[doc(alias = "scst_dg_dev_add")]
    pub fn dg_dev_add(&self, dg: &str, dev: &str) -> Result {
        check_shown(dev, &TAKEN)?;
        let found = self.device(dev);
        let mut groups = self.alua.groups.lock();
        if groups
            .iter()
            .any(|g| g.devs.iter().any(|d| d.name() == dev))
        {
            return Err(code::EEXIST);
        }
        let dev = found.ok_or(code::EINVAL)?;
        let dg = groups.iter_mut().find(|g| g.name == dg);
        let dg = dg.ok_or(code::EINVAL)?;
        dg.devs.push(dev);
        dg.publish();
        drop(groups);
        self.show(|tree| tree.sync_device_groups());
        Ok(())
    }

    /// Takes a device out of its group.
    #[doc(alias = "scst_dg_dev_remove_by_name")]
    pub fn dg_dev_remove(&self, dg: &str, dev: &str) -> Result {
        let blocked = self.dg(dg, |dg| {
            let at = dg.devs.iter().position(|d| d.name() == dev);
            Ok(dg.remove_dev(at.ok_or(code::EINVAL)?))
        })?;
        unblock(blocked);
        self.alua.delayed.release_all();
        Ok(())
    }

    /// Makes a target port group: active, without identifier.
    #[doc(alias = "scst_tg_add")]
    pub fn tg_add(&self, dg: &str, name: &str) -> Result {
        check_shown(name, &TAKEN)?;
        self.dg(dg, |dg| {
            if dg.tgs.iter().any(|g| g.name == name) {
                return Err(code::EEXIST);
            }
            dg.tgs.push(TargetGroup {
                name: name.to_owned(),
                id: 0,
                state: TgState::Optimized,
                preferred: false,
                tgts: Vec::new(),
            });
            dg.publish();
            Ok(())
        })
    }

    /// Removes a target port group.
    #[doc(alias = "scst_tg_remove_by_name")]
    pub fn tg_remove(&self, dg: &str, name: &str) -> Result {
        self.dg(dg, |dg| {
            let at = dg.tgs.iter().position(|g| g.name == name);
            dg.tgs.remove(at.ok_or(code::EINVAL)?);
            dg.publish();
            Ok(())
        })?;
        self.alua.delayed.release_all();
        Ok(())
    }

    /// Puts a target into a group: that of this server which has the name, else a remote one. A target is in one group
    /// of a device group.
    #[doc(alias = "scst_tg_tgt_add")]
    pub fn tg_tgt_add(&self, dg: &str, tg: &str, name: &str) -> Result {
        check_shown(name, &TAKEN_BY_TG)?;
        let tgts = self.tgt_list.lock().clone();
        let mut tgts = tgts.iter().filter_map(Weak::upgrade);
        let mut tgt = tgts.find(|t| t.name() == name);
        if tgt.is_none() && self.copy_mgr.tgt().name() == name {
            tgt = Some(Arc::clone(self.copy_mgr.tgt()));
        }
        self.dg(dg, |dg| {
            let has = |g: &TargetGroup| g.tgts.iter().any(|t| t.name == name);
            if dg.tgs.iter().any(has) {
                return Err(code::EEXIST);
            }
            dg.tg(tg)?.tgts.push(TgTgt {
                name: name.to_owned(),
                tgt,
                rel_tgt_id: 0,
            });
            dg.publish();
            Ok(())
        })
    }

    /// Takes a target out of its group. As in SCST, any group of the device group will do.
    #[doc(alias = "scst_tg_tgt_remove_by_name")]
    pub fn tg_tgt_remove(&self, dg: &str, tg: &str, name: &str) -> Result {
        self.dg(dg, |dg| {
            dg.tg(tg)?;
            let has = |g: &&mut TargetGroup| g.tgts.iter().any(|t| t.name == name);
            let of = dg.tgs.iter_mut().find(has).ok_or(code::EINVAL)?;
            of.tgts.retain(|t| t.name != name);
            dg.publish();
            Ok(())
        })?;
        self.alua.delayed.release_all();
        Ok(())
    }

    /// Sets the relative target port identifier of a remote target. Errors: also `EINVAL` for 0.
    pub fn tg_tgt_set_rel_tgt_id(&self, dg: &str, tg: &str, name: &str, id: u16) -> Result {
        self.dg(dg, |dg| {
            let tgts = &mut dg.tg(tg)?.tgts;
            let tgt = tgts.iter_mut().find(|t| t.name == name);
            let tgt = tgt.filter(|_| id != 0).ok_or(code::EINVAL)?;
            tgt.rel_tgt_id = id;
            dg.publish();
            Ok(())
        })
    }

    /// Sets the identifier of a target port group. Errors: also `EINVAL` for 0.
    pub fn tg_set_id(&self, dg: &str, tg: &str, id: u16) -> Result {
        self.dg(dg, |dg| {
            if id == 0 {
                return Err(code::EINVAL);
            }
            dg.tg(tg)?.id = id;
            dg.publish();
            Ok(())
        })
    }

    /// Sets the state of a target port group. Initiators at its ports learn it (2Ah/06h), but for that which asked for
    /// it, and but for the state in between.
    #[doc(alias = "scst_tg_set_state")]
    pub fn tg_set_state(&self, dg: &str, tg: &str, state: TgState) -> Result {
        self.dg(dg, |dg| {
            let at = dg.tgs.iter().position(|g| g.name == tg);
            dg.set_state(at.ok_or(code::EINVAL)?, state);
            Ok(())
        })?;
        self.alua.delayed.release_all();
        Ok(())
    }

    /// Sets PREF of a target port group; initiators at its ports learn it (2Ah/06h).
    #[doc(alias = "scst_tg_set_preferred")]
    pub fn tg_set_preferred(&self, dg: &str, tg: &str, preferred: bool) -> Result {
        self.dg(dg, |dg| {
            let group = dg.tg(tg)?;
            if group.preferred == preferred {
                return Ok(());
            }
            group.preferred = preferred;
            dg.publish();
            if let Some(group) = dg.tgs.iter().find(|g| g.name == tg) {
                dg.tell(group);
            }
            pr_info!(
                "Changed preferred state of {}/{tg} into {preferred}",
                dg.name
            );
            Ok(())
        })
    }
}
