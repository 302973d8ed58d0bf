//! Steps for targets, their LUNs, groups and initiators, and for enabling.

use std::collections::{BTreeMap, BTreeSet};

use super::super::attr::{Listed, is_virtual, makes_targets};
use super::super::live::COPY_MANAGER;
use super::super::model::{Group, LunDef, Target};
use super::super::object::{Object, Tgt};
use super::super::op::Op;
use super::attrs::Many;
use super::{Planner, Unless};

impl Planner<'_> {
    /// LUNs and groups that are there and not in the configuration, or differ from it.
    pub(super) fn obsolete_assignments(&mut self) {
        let config = self.config;
        for (driver, targets) in self.live.drivers.clone() {
            for (name, live) in targets {
                let tgt = Tgt::new(&driver, &name);
                let target = config
                    .drivers
                    .get(&driver)
                    .and_then(|d| d.targets.get(&name));
                self.obsolete_luns(&tgt, None, &live.luns, target.map(|t| &t.luns));
                for (group, live) in live.groups {
                    let section = target.and_then(|t| t.groups.get(&group));
                    self.obsolete_luns(&tgt, Some(&group), &live.luns, section.map(|g| &g.luns));
                    if section.is_none() {
                        self.obsolete_group(&tgt, &group);
                    }
                }
            }
        }
    }

    fn obsolete_luns(
        &mut self,
        tgt: &Tgt,
        group: Option<&str>,
        live: &BTreeMap<u64, String>,
        wanted: Option<&BTreeMap<u64, LunDef>>,
    ) {
        for (lun, device) in live {
            match wanted
                .and_then(|w| w.get(lun))
                .filter(|def| def.device == *device)
            {
                Some(def) => self.differing_lun(tgt, group, *lun, def),
                None if self.removes() => self.remove_lun(tgt, group, *lun),
                None if group.is_none() && tgt.driver == COPY_MANAGER => {}
                None => {
                    let of = tgt.slashed(group);
                    let what = if group.is_some() {
                        "driver/target/group"
                    } else {
                        "driver/target"
                    };
                    self.say(format!(
                        "\t-> Device '{device}' at LUN '{lun}' is not in configuration for {what} '{of}'. Use \
                         -force to remove it.\n"
                    ));
                }
            }
        }
    }

    fn lun_map(&mut self, tgt: &Tgt, group: Option<&str>) -> Option<&mut BTreeMap<u64, String>> {
        let target = self
            .live
            .drivers
            .get_mut(&tgt.driver)?
            .get_mut(&tgt.target)?;
        match group {
            Some(group) => Some(&mut target.groups.get_mut(group)?.luns),
            None => Some(&mut target.luns),
        }
    }

    fn remove_lun(&mut self, tgt: &Tgt, group: Option<&str>, lun: u64) {
        self.op(Op::RemoveLun {
            tgt: tgt.clone(),
            group: group.map(str::to_owned),
            lun: lun.to_string(),
        });
        if let Some(luns) = self.lun_map(tgt, group) {
            luns.remove(&lun);
        }
    }

    fn lun_object(tgt: &Tgt, group: Option<&str>, lun: u64) -> Object {
        Object::Lun(tgt.clone(), group.map(str::to_owned), lun.to_string())
    }

    fn differing_lun(&mut self, tgt: &Tgt, group: Option<&str>, lun: u64, def: &LunDef) {
        let object = Self::lun_object(tgt, group, lun);
        if self.fresh.contains(&object) {
            return;
        }
        let create = self.listed(&tgt.luns_dir(group), Listed::Create);
        let params = self.create_params(&def.attrs, &create, Many::Wrong);
        if !self.differs(&params, &object, &create) {
            return;
        }
        let device = &def.device;
        let place = match group {
            Some(group) => format!("group '{group}'"),
            None => format!("target '{}'", tgt.target),
        };
        self.say(format!(
            "\t-> Assigned device '{device}' in {place} at LUN '{lun}' is configured differently.\n"
        ));
        if self.removes() {
            self.say("\t  -> Re-assigning device with new attributes.\n".to_owned());
            self.remove_lun(tgt, group, lun);
            self.add_lun(tgt, group, lun, def);
        } else {
            self.say(
                "\t  -> Use -force to re-assign device with new attributes. NOTE: This will disrupt all \
                 initiators using this device.\n"
                    .to_owned(),
            );
        }
    }

    fn obsolete_group(&mut self, tgt: &Tgt, group: &str) {
        if !self.removes() {
            self.say(format!(
                "\t-> Group '{group}' is not in configuration. Use -force to remove.\n"
            ));
            return;
        }
        self.op(Op::RemoveGroup {
            tgt: tgt.clone(),
            group: group.to_owned(),
        });
        if let Some(target) = self.live_target(tgt) {
            target.groups.remove(group);
        }
    }

    fn live_target(&mut self, tgt: &Tgt) -> Option<&mut super::super::live::LiveTarget> {
        self.live.drivers.get_mut(&tgt.driver)?.get_mut(&tgt.target)
    }

    pub(super) fn assignments(&mut self) {
        let config = self.config;
        // Targets of drivers that the file does not name are obsolete, too.
        let live = self.live.drivers.iter().filter(|(_, t)| !t.is_empty());
        let names: BTreeSet<String> = live
            .map(|(driver, _)| driver.clone())
            .chain(config.drivers.keys().cloned())
            .collect();
        for driver in names {
            let section = config.drivers.get(&driver);
            if let Some(section) = section.filter(|_| !self.live.drivers.contains_key(&driver)) {
                let what = format!("Target driver '{driver}' is not loaded or available.");
                self.problem(section.pos, what);
                continue;
            }
            let Some(section) = section else {
                self.obsolete_targets(&driver, &BTreeMap::new());
                continue;
            };
            self.obsolete_targets(&driver, &section.targets);
            for (name, target) in &section.targets {
                self.target(&Tgt::new(&driver, name), target);
            }
            self.set_dynamic(&Object::Driver(driver), &section.attrs.set);
        }
    }

    fn obsolete_targets(&mut self, driver: &str, wanted: &BTreeMap<String, Target>) {
        let live = self.live.drivers.get(driver).cloned().unwrap_or_default();
        for name in live.into_keys().filter(|n| !wanted.contains_key(n)) {
            if self.removes() && is_virtual(self.tree, driver, &name) {
                self.op(Op::RemoveTarget {
                    tgt: Tgt::new(driver, &name),
                });
                if let Some(targets) = self.live.drivers.get_mut(driver) {
                    targets.remove(&name);
                }
            } else {
                self.say(format!(
                    "\t-> Virtual target '{name}' for driver '{driver}' is not in configuration. Use -force \
                     to remove it.\n"
                ));
            }
        }
    }

    fn target(&mut self, tgt: &Tgt, section: &Target) {
        let on_request = makes_targets(self.tree, &tgt.driver);
        let create = self.listed(&format!("targets/{}", tgt.driver), Listed::Create);
        let object = Object::Target(tgt.clone());
        if self.live_target(tgt).is_none() {
            let hardware = section
                .attrs
                .set
                .contains_key(super::super::writer::HW_TARGET);
            if !on_request || hardware {
                let what = if hardware {
                    "Hardware target"
                } else {
                    "Target"
                };
                let what = format!(
                    "{what} '{}' for driver '{}' does not exist.",
                    tgt.target, tgt.driver
                );
                self.problem(section.pos, what);
                return;
            }
            let params = self.create_params(&section.attrs, &create, Many::Allowed);
            self.op(Op::AddTarget {
                tgt: tgt.clone(),
                params,
            });
            self.fresh.insert(object.clone());
            let targets = self.live.drivers.entry(tgt.driver.clone()).or_default();
            targets.insert(tgt.target.clone(), Default::default());
        }
        let mut values = section.attrs.set.clone();
        values.retain(|name, _| !create.contains(name));
        self.set_dynamic(&object, &values);
        self.luns(tgt, None, &section.luns);
        self.groups(tgt, &section.groups);
        self.initiators(tgt, &section.groups);
    }

    fn luns(&mut self, tgt: &Tgt, group: Option<&str>, luns: &BTreeMap<u64, LunDef>) {
        for (lun, def) in luns {
            let there = self
                .lun_map(tgt, group)
                .is_some_and(|m| m.contains_key(lun));
            if !there {
                self.add_lun(tgt, group, *lun, def);
            }
        }
    }

    fn add_lun(&mut self, tgt: &Tgt, group: Option<&str>, lun: u64, def: &LunDef) {
        let known = self.lun_params(tgt, group);
        for (name, values) in def.attrs.set.iter().filter(|(n, _)| !known.contains(*n)) {
            let pos = values.values().next().copied().unwrap_or(def.pos);
            self.problem(pos, format!("a LUN has no attribute '{name}'"));
        }
        let params = self.create_params(&def.attrs, &known, Many::Wrong);
        let op = Op::AddLun {
            tgt: tgt.clone(),
            group: group.map(str::to_owned),
            lun: lun.to_string(),
            device: def.device.clone(),
            params,
        };
        let unless = if tgt.driver == COPY_MANAGER {
            Unless::LunExists
        } else {
            Unless::Never
        };
        self.op_unless(op, unless);
        self.fresh.insert(Self::lun_object(tgt, group, lun));
        if let Some(luns) = self.lun_map(tgt, group) {
            luns.insert(lun, def.device.clone());
        }
    }

    /// What may be given with a LUN; of a target that is not there yet, what is the rule.
    fn lun_params(&self, tgt: &Tgt, group: Option<&str>) -> std::collections::BTreeSet<String> {
        let known = self.listed(&tgt.luns_dir(group), Listed::Create);
        if known.is_empty() {
            return ["read_only".to_owned()].into();
        }
        known
    }

    fn groups(&mut self, tgt: &Tgt, groups: &BTreeMap<String, Group>) {
        for (name, group) in groups {
            let object = Object::Group(tgt.clone(), name.clone());
            let there = self
                .live_target(tgt)
                .is_some_and(|t| t.groups.contains_key(name));
            if !there {
                self.op(Op::AddGroup {
                    tgt: tgt.clone(),
                    group: name.clone(),
                });
                self.fresh.insert(object.clone());
                if let Some(target) = self.live_target(tgt) {
                    target.groups.insert(name.clone(), Default::default());
                }
            }
            self.luns(tgt, Some(name), &group.luns);
            self.set(&object, &group.attrs);
        }
    }

    fn initiators(&mut self, tgt: &Tgt, groups: &BTreeMap<String, Group>) {
        let mut wanted = BTreeMap::new();
        for (name, group) in groups {
            wanted.extend(group.initiators.keys().map(|i| (i.clone(), name.clone())));
        }
        let mut running = BTreeMap::new();
        for (name, group) in self
            .live_target(tgt)
            .map(|t| t.groups.clone())
            .unwrap_or_default()
        {
            running.extend(group.initiators.into_iter().map(|i| (i, name.clone())));
        }
        for (initiator, group) in &running {
            match wanted.get(initiator) {
                None => self.obsolete_initiator(tgt, group, initiator),
                Some(to) if to != group => self.move_initiator(tgt, group, initiator, to),
                Some(_) => {}
            }
        }
        for (initiator, group) in wanted.into_iter().filter(|(i, _)| !running.contains_key(i)) {
            self.op(Op::AddInitiator {
                tgt: tgt.clone(),
                group,
                initiator,
            });
        }
    }

    fn obsolete_initiator(&mut self, tgt: &Tgt, group: &str, initiator: &str) {
        if self.removes() {
            self.op(Op::RemoveInitiator {
                tgt: tgt.clone(),
                group: group.to_owned(),
                initiator: initiator.to_owned(),
            });
        } else {
            self.say(format!(
                "\t-> Initiator '{initiator}' is not in configuration for driver/target/group '{}'. Use \
                 -force to remove it.\n",
                tgt.slashed(Some(group))
            ));
        }
    }

    fn move_initiator(&mut self, tgt: &Tgt, group: &str, initiator: &str, to: &str) {
        if self.removes() {
            self.op(Op::MoveInitiator {
                tgt: tgt.clone(),
                group: group.to_owned(),
                initiator: initiator.to_owned(),
                to: to.to_owned(),
            });
        } else {
            self.say(format!(
                "\t-> Initiator '{initiator}' is moving to group '{to}' from group '{group}'. Use -force to \
                 move it.\n"
            ));
        }
    }

    pub(super) fn enable_targets(&mut self) {
        let config = self.config;
        for (driver, section) in &config.drivers {
            for (name, target) in &section.targets {
                let tgt = Tgt::new(driver, name);
                if self.live_target(&tgt).is_some() {
                    self.enable_target(&tgt, target.attrs.get("enabled"));
                }
            }
        }
    }

    fn enable_target(&mut self, tgt: &Tgt, wanted: Option<&str>) {
        let object = Object::Target(tgt.clone());
        let fresh = self.fresh.contains(&object);
        let now = self.enabled_now(&object);
        let set = |value: &str| Op::SetAttr {
            object: object.clone(),
            attr: "enabled".to_owned(),
            value: value.to_owned(),
        };
        match (wanted, now) {
            (Some(value), _) if fresh => self.op_unless(set(value), Unless::Equal),
            (Some(value), Some(now)) if is_on(value) != now => {
                self.op(set(if is_on(value) { "1" } else { "0" }));
            }
            (None, Some(true)) if tgt.driver != COPY_MANAGER => {
                if self.removes() {
                    self.op(set("0"));
                } else {
                    self.say(format!(
                        "\t-> Driver/target '{}' is enabled but not in configuration. Use -force to disable \
                         it.\n",
                        tgt.slashed(None)
                    ));
                }
            }
            _ => {}
        }
    }

    fn enabled_now(&self, object: &Object) -> Option<bool> {
        let attributes = self.attributes(object);
        let attr = attributes.map.get("enabled")?;
        attr.values().first().map(|v| is_on(v))
    }

    pub(super) fn enable_drivers(&mut self) {
        let config = self.config;
        for (driver, section) in &config.drivers {
            let object = Object::Driver(driver.clone());
            let (Some(value), Some(now)) =
                (section.attrs.get("enabled"), self.enabled_now(&object))
            else {
                continue;
            };
            if is_on(value) != now {
                self.op(Op::SetAttr {
                    object,
                    attr: "enabled".to_owned(),
                    value: if now { "0" } else { "1" }.to_owned(),
                });
            }
        }
    }
}

fn is_on(value: &str) -> bool {
    !matches!(value.trim(), "" | "0")
}
