//! What a server has now: handlers with devices, drivers with targets, LUNs, groups, device groups.

use std::collections::{BTreeMap, BTreeSet};

use kshim::kobject::tree::{EntryKind, TreeOps};

use super::access::{MGMT, base_name, join, subdirs};
use super::attr::{Attributes, Listed, listed};
use super::model::{
    Attrs, Config, DeviceGroup, Driver, Group, Handler, Leaf, LunDef, Target, TargetGroup,
};
use super::object::{Object, Tgt};
use super::syntax::Pos;
use super::writer::HW_TARGET;

/// The driver whose LUNs come and go by themselves.
pub(crate) const COPY_MANAGER: &str = "copy_manager";

/// The running configuration, less its attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) handlers: BTreeMap<String, Vec<String>>,
    pub(crate) drivers: BTreeMap<String, BTreeMap<String, LiveTarget>>,
    pub(crate) device_groups: BTreeMap<String, LiveDeviceGroup>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveTarget {
    pub(crate) luns: BTreeMap<u64, String>,
    pub(crate) groups: BTreeMap<String, LiveGroup>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveGroup {
    pub(crate) luns: BTreeMap<u64, String>,
    pub(crate) initiators: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveDeviceGroup {
    pub(crate) devices: Vec<String>,
    pub(crate) target_groups: BTreeMap<String, Vec<String>>,
}

impl Live {
    /// Reads it.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// A sentence about a directory that cannot be read.
    pub(crate) fn read(tree: &dyn TreeOps) -> Result<Live, String> {
        let mut live = Live::default();
        for handler in dirs(tree, "handlers", "handlers")? {
            let devices = devices_of(tree, &handler)?;
            live.handlers.insert(handler, devices);
        }
        for driver in dirs(tree, "targets", "drivers")? {
            let mut targets = BTreeMap::new();
            for target in targets_of(tree, &driver)? {
                let tgt = Tgt::new(&driver, &target);
                targets.insert(target, LiveTarget::read(tree, &tgt)?);
            }
            live.drivers.insert(driver, targets);
        }
        for group in dirs(tree, "device_groups", "deviceGroups")? {
            let mut lg = LiveDeviceGroup::default();
            let dir = format!("device_groups/{group}");
            lg.devices = dirs(tree, &join(&dir, "devices"), "deviceGroupDevices")?;
            for tg in dirs(tree, &join(&dir, "target_groups"), "targetGroups")? {
                let path = format!("{dir}/target_groups/{tg}");
                let targets = dirs(tree, &path, "targetGroupTargets")?;
                lg.target_groups.insert(tg, targets);
            }
            live.device_groups.insert(group, lg);
        }
        Ok(live)
    }

    /// True when the device is there, of whatever handler.
    pub(crate) fn has_device(&self, handler: &str, device: &str) -> bool {
        let devices = self.handlers.get(handler);
        devices.is_some_and(|list| list.iter().any(|d| d == device))
    }

    /// Forgets a device and what hangs on it.
    pub(crate) fn forget_device(&mut self, device: &str) {
        for list in self.handlers.values_mut() {
            list.retain(|d| d != device);
        }
        for target in self.drivers.values_mut().flat_map(BTreeMap::values_mut) {
            target.luns.retain(|_, d| d != device);
            for group in target.groups.values_mut() {
                group.luns.retain(|_, d| d != device);
            }
        }
        for group in self.device_groups.values_mut() {
            group.devices.retain(|d| d != device);
        }
    }

    /// The copy manager has every device that is opened, at the first LUN that is free.
    pub(crate) fn copy_manager_takes(&mut self, device: &str) {
        let targets = self.drivers.get_mut(COPY_MANAGER);
        let Some(target) = targets.and_then(|t| t.values_mut().next()) else {
            return;
        };
        let free = (0..).find(|lun| !target.luns.contains_key(lun));
        if let Some(lun) = free {
            target.luns.insert(lun, device.to_owned());
        }
    }

    /// An initiator that is in two groups of a target, with the target: `driver/target`.
    pub(crate) fn ambiguous_initiator(&self) -> Option<(String, String)> {
        for (driver, targets) in &self.drivers {
            for target in targets.values() {
                let mut seen = BTreeSet::new();
                for init in target.groups.values().flat_map(|g| &g.initiators) {
                    if !seen.insert(init) {
                        return Some((init.clone(), driver.clone()));
                    }
                }
            }
        }
        None
    }
}

impl LiveTarget {
    fn read(tree: &dyn TreeOps, tgt: &Tgt) -> Result<LiveTarget, String> {
        let mut target = LiveTarget {
            luns: luns_of(tree, &tgt.luns_dir(None)),
            ..LiveTarget::default()
        };
        for group in dirs(tree, &format!("{}/ini_groups", tgt.dir()), "groups")? {
            let live = LiveGroup {
                luns: luns_of(tree, &tgt.luns_dir(Some(&group))),
                initiators: initiators_of(tree, tgt, &group)?,
            };
            target.groups.insert(group, live);
        }
        Ok(target)
    }
}

fn dirs(tree: &dyn TreeOps, path: &str, query: &str) -> Result<Vec<String>, String> {
    subdirs(tree, path).map_err(|e| {
        let path = super::access::absolute(path);
        format!(
            "{query}(): Unable to read directory '{path}': {}",
            super::strerror(e)
        )
    })
}

/// The targets of a driver.
pub(crate) fn targets_of(tree: &dyn TreeOps, driver: &str) -> Result<Vec<String>, String> {
    let mut names = dirs(tree, &format!("targets/{driver}"), "targets")?;
    names.retain(|n| n != "module");
    Ok(names)
}

/// The devices that a handler has open.
pub(crate) fn devices_of(tree: &dyn TreeOps, handler: &str) -> Result<Vec<String>, String> {
    let names = dirs(tree, &format!("handlers/{handler}"), "devices")?;
    let is_its_own = |device: &String| {
        let link = tree.readlink(&format!("devices/{device}/handler"));
        link.is_ok_and(|to| base_name(&to) == handler)
    };
    Ok(names.into_iter().filter(is_its_own).collect())
}

/// The LUNs in a directory of LUNs; none when there is no such directory.
pub(crate) fn luns_of(tree: &dyn TreeOps, dir: &str) -> BTreeMap<u64, String> {
    let mut luns = BTreeMap::new();
    for name in subdirs(tree, dir).unwrap_or_default() {
        let link = tree.readlink(&format!("{dir}/{name}/device"));
        if let (Ok(number), Ok(to)) = (name.parse(), link) {
            luns.insert(number, base_name(&to).to_owned());
        }
    }
    luns
}

/// The initiators of a group.
pub(crate) fn initiators_of(
    tree: &dyn TreeOps,
    tgt: &Tgt,
    group: &str,
) -> Result<Vec<String>, String> {
    let dir = format!("{}/initiators", tgt.group_dir(group));
    let entries = tree.list(&dir).map_err(|e| {
        let path = super::access::absolute(&dir);
        format!(
            "initiators(): Unable to read directory '{path}': {}",
            super::strerror(e)
        )
    })?;
    let files = entries.into_iter().filter(|e| e.kind == EntryKind::File);
    Ok(files.map(|e| e.name).filter(|n| n != MGMT).collect())
}

/// Whether values that need no saving are wanted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonKey {
    /// They are left out.
    Omit,
    /// They are told in comments' company.
    Include,
}

/// The running configuration with its attributes, as it would be saved.
pub(crate) struct Saver<'a> {
    tree: &'a dyn TreeOps,
    nonkey: NonKey,
}

impl<'a> Saver<'a> {
    pub(crate) fn new(tree: &'a dyn TreeOps, nonkey: NonKey) -> Saver<'a> {
        Saver { tree, nonkey }
    }

    /// Context: may sleep. Errors: a sentence about what cannot be read.
    pub(crate) fn config(&self, live: &Live) -> Result<Config, String> {
        Attributes::read(self.tree, &Object::Scst)?;
        let handlers = live
            .handlers
            .iter()
            .map(|(name, devices)| (name.clone(), self.handler(name, devices)));
        let drivers = live
            .drivers
            .iter()
            .map(|(name, targets)| (name.clone(), self.driver(name, targets)));
        let groups = live
            .device_groups
            .iter()
            .map(|(name, g)| (name.clone(), self.device_group(name, g)));
        Ok(Config {
            attrs: self.attrs(&Object::Scst, None),
            handlers: handlers.collect(),
            drivers: drivers.collect(),
            alua: self.attrs(&Object::Alua, None),
            device_groups: groups.collect(),
        })
    }

    /// The attributes of an object that are to be saved: those that can be set, and of the others those in `create`.
    fn attrs(&self, object: &Object, create: Option<&BTreeSet<String>>) -> Attrs {
        let mut attrs = Attrs::default();
        let all = Attributes::read(self.tree, object).unwrap_or_default();
        for (name, attr) in &all.map {
            let wanted = !attr.fixed || create.is_some_and(|c| c.contains(name));
            if attr.choices.is_some() || !wanted {
                continue;
            }
            if attr.is_key() {
                for value in attr.keys.values() {
                    attrs.insert(name, value, Pos::default());
                }
            } else if matches!(name.as_str(), "enabled" | "hw_target") {
                let value = attr.value.as_deref().unwrap_or_default();
                attrs.insert(name, value, Pos::default());
            } else if self.nonkey == NonKey::Include
                && name != "dif_checks_failed"
                && let Some(value) = &attr.value
            {
                attrs.nonkey.insert(name.clone(), value.clone());
            }
        }
        attrs
    }

    fn handler(&self, name: &str, devices: &[String]) -> Handler {
        let create = listed(self.tree, &format!("handlers/{name}"), Listed::Create);
        let devices = devices.iter().map(|device| {
            let attrs = self.attrs(&Object::Device(device.clone()), Some(&create));
            (device.clone(), leaf(attrs))
        });
        Handler {
            pos: Pos::default(),
            attrs: self.attrs(&Object::Handler(name.to_owned()), None),
            devices: devices.collect(),
        }
    }

    fn driver(&self, name: &str, targets: &BTreeMap<String, LiveTarget>) -> Driver {
        let create = listed(self.tree, &format!("targets/{name}"), Listed::Create);
        let targets = targets.iter().map(|(target, live)| {
            let tgt = Tgt::new(name, target);
            (target.clone(), self.target(&tgt, live, &create))
        });
        Driver {
            pos: Pos::default(),
            attrs: self.attrs(&Object::Driver(name.to_owned()), None),
            targets: targets.collect(),
        }
    }

    fn target(&self, tgt: &Tgt, live: &LiveTarget, create: &BTreeSet<String>) -> Target {
        let mut attrs = self.attrs(&Object::Target(tgt.clone()), Some(create));
        if attrs.get("hw_target") == Some("1") {
            attrs.insert(HW_TARGET, "", Pos::default());
        }
        let groups = live
            .groups
            .iter()
            .map(|(name, group)| (name.clone(), self.group(tgt, name, group)));
        Target {
            pos: Pos::default(),
            attrs,
            luns: self.luns(tgt, None, &live.luns),
            groups: groups.collect(),
        }
    }

    fn luns(
        &self,
        tgt: &Tgt,
        group: Option<&str>,
        luns: &BTreeMap<u64, String>,
    ) -> BTreeMap<u64, LunDef> {
        let create = listed(self.tree, &tgt.luns_dir(group), Listed::Create);
        let def = |(lun, device): (&u64, &String)| {
            let object = Object::Lun(tgt.clone(), group.map(str::to_owned), lun.to_string());
            let def = LunDef {
                pos: Pos::default(),
                device: device.clone(),
                attrs: self.attrs(&object, Some(&create)),
            };
            (*lun, def)
        };
        luns.iter().map(def).collect()
    }

    fn group(&self, tgt: &Tgt, name: &str, live: &LiveGroup) -> Group {
        let initiators = live.initiators.iter().map(|i| (i.clone(), Leaf::default()));
        Group {
            pos: Pos::default(),
            attrs: self.attrs(&Object::Group(tgt.clone(), name.to_owned()), None),
            luns: self.luns(tgt, Some(name), &live.luns),
            initiators: initiators.collect(),
        }
    }

    fn device_group(&self, name: &str, live: &LiveDeviceGroup) -> DeviceGroup {
        let target_groups = live.target_groups.iter().map(|(tg, targets)| {
            let targets = targets
                .iter()
                .map(|t| (t.clone(), self.tg_target(name, tg, t)));
            let group = TargetGroup {
                pos: Pos::default(),
                attrs: self.attrs(&Object::TargetGroup(name.to_owned(), tg.clone()), None),
                targets: targets.collect(),
            };
            (tg.clone(), group)
        });
        DeviceGroup {
            pos: Pos::default(),
            attrs: self.attrs(&Object::DeviceGroup(name.to_owned()), None),
            devices: live
                .devices
                .iter()
                .map(|d| (d.clone(), Pos::default()))
                .collect(),
            target_groups: target_groups.collect(),
        }
    }

    /// A target of this host is a link and has its attributes elsewhere.
    fn tg_target(&self, group: &str, tgroup: &str, name: &str) -> Leaf {
        let object =
            Object::TargetGroupTarget(group.to_owned(), tgroup.to_owned(), name.to_owned());
        match self.tree.stat(&object.dir()) {
            Ok(entry) if entry.kind == EntryKind::Link => Leaf::default(),
            _ => leaf(self.attrs(&object, None)),
        }
    }
}

fn leaf(attrs: Attrs) -> Leaf {
    Leaf {
        pos: Pos::default(),
        attrs,
    }
}

/// The running configuration as text, byte for byte as SCST's scstadmin saves it.
///
/// Context: may sleep.
///
/// # Errors
///
/// A sentence about what cannot be read.
pub fn write_config(tree: &dyn TreeOps, nonkey: NonKey) -> Result<String, String> {
    let live = Live::read(tree)?;
    let config = Saver::new(tree, nonkey).config(&live)?;
    Ok(super::writer::write(&config))
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn the_recorded_states_are_saved_byte_for_byte() {
        let b = write_config(&Fake::recorded('B'), NonKey::Omit).unwrap();
        assert_eq!(b, include_str!("../../../tests/sysfs/scst.conf"));
        let c = write_config(&Fake::recorded('C'), NonKey::Omit).unwrap();
        assert_eq!(c, include_str!("../../../tests/sysfs/scst-extra.conf"));
    }
}
