//! Changes: attributes, devices, targets, groups, LUNs.

use std::collections::BTreeMap;

use super::{Admin, Done, Exit};
use crate::conf::access::{join, subdirs};
use crate::conf::attr::{Attributes, Listed, listed, makes_targets};
use crate::conf::live::{initiators_of, luns_of, targets_of};
use crate::conf::object::{Object, Tgt};
use crate::conf::op::{Op, Params};

/// Attributes to set, of the option `-attributes`.
pub(super) type Values = BTreeMap<String, String>;

/// `name=value,name`: without a value it is 1.
pub(super) fn values(text: &str) -> Values {
    let items = text.split(',').filter(|item| !item.is_empty());
    let pairs = items.map(|item| item.split_once('=').unwrap_or((item, "1")));
    pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

impl Admin<'_> {
    fn values(&self) -> Values {
        values(self.opts.get("attributes").unwrap_or_default())
    }

    fn params(&self) -> Params {
        self.values().into_iter().collect()
    }

    /// The change that the options name; `None` when they name none.
    pub(super) fn changes(&mut self) -> Option<Done> {
        if let Some(object) = self.objects_of("set").pop() {
            return Some(self.asked(|admin| admin.set_attrs(&object)));
        }
        let dynamic = [
            "add_drv_attr",
            "add_tgt_attr",
            "rem_drv_attr",
            "rem_tgt_attr",
        ];
        for option in dynamic {
            if let Some(name) = self.opts.get(option).map(str::to_owned) {
                let run = move |admin: &mut Admin<'_>| admin.dynamic(option, &name);
                return Some(if option.starts_with("add") {
                    self.making(run)
                } else {
                    self.asked_making(run)
                });
            }
        }
        if let Some(op) = self.simple_op() {
            return Some(op);
        }
        for (option, value) in [("enable_target", "1"), ("disable_target", "0")] {
            if let Some(target) = self.opts.get(option).map(str::to_owned) {
                let tgt = Tgt::new(&self.opt("driver"), &target);
                let run = move |admin: &mut Admin<'_>| admin.switch(&tgt, value);
                return Some(if value == "1" {
                    self.making(run)
                } else {
                    self.asked_making(run)
                });
            }
        }
        if self.opts.has("issue_lip") {
            return Some(self.making(|admin| {
                if !admin.opts.has("no_lip") {
                    admin.issue_lip();
                }
                Ok(0)
            }));
        }
        None
    }

    /// Prints the frame around a change.
    fn making(&mut self, run: impl FnOnce(&mut Self) -> Done) -> Done {
        self.print("\n-> Making requested changes.\n");
        let code = run(self)?;
        self.print("\t-> Done.\n");
        Ok(code)
    }

    fn asked_making(&mut self, run: impl FnOnce(&mut Self) -> Done) -> Done {
        if !self.agreed() {
            return Ok(0);
        }
        self.making(run)
    }

    fn asked(&mut self, run: impl FnOnce(&mut Self) -> Result<usize, Exit>) -> Done {
        if !self.agreed() {
            return Ok(0);
        }
        self.print("\n-> Making requested changes.\n");
        let changes = run(self)?;
        self.print(&format!("\t-> Done, {changes} change(s) made.\n"));
        Ok(0)
    }

    /// A change that is one operation.
    fn simple_op(&mut self) -> Option<Done> {
        const OPTIONS: &[&str] = &[
            "open_dev",
            "close_dev",
            "resync_dev",
            "add_dgrp",
            "rem_dgrp",
            "add_dgrp_dev",
            "rem_dgrp_dev",
            "add_tgrp",
            "rem_tgrp",
            "add_tgrp_tgt",
            "rem_tgrp_tgt",
            "add_target",
            "rem_target",
            "add_group",
            "rem_group",
            "add_init",
            "rem_init",
            "move_init",
            "clear_inits",
            "add_lun",
            "rem_lun",
            "replace_lun",
            "clear_luns",
        ];
        const ASKED: &[&str] = &[
            "close_dev",
            "rem_target",
            "rem_group",
            "rem_init",
            "move_init",
            "clear_inits",
            "rem_lun",
            "replace_lun",
            "clear_luns",
        ];
        let option = *OPTIONS.iter().find(|o| self.opts.has(o))?;
        let name = self.opt(option);
        let run = move |admin: &mut Admin<'_>| admin.one_op(option, &name);
        Some(if ASKED.contains(&option) {
            self.asked_making(run)
        } else {
            self.making(run)
        })
    }

    fn one_op(&mut self, option: &str, name: &str) -> Done {
        if option == "resync_dev" {
            let values = Values::from([("resync_size".to_owned(), "1".to_owned())]);
            let changes =
                self.set_values(&Object::Device(name.to_owned()), &values, Told::Changes)?;
            return Ok(i32::from(changes > 0));
        }
        if option == "add_init"
            && let Some(group) = self.group_of_initiator(name)
        {
            let driver = self.opt("driver");
            self.print(&format!(
                "\t-> Initiator '{name}' already belongs to group '{group}' for driver/target \
                 '{driver}/target', ignoring.\n"
            ));
            return Ok(0);
        }
        self.check_unused(option, name)?;
        let op = self.op_of(option, name);
        match self.run(&op) {
            Ok(()) => Ok(0),
            // Of these the failure becomes the exit code.
            Err(failed) if matches!(op, Op::AddTarget { .. } | Op::RemoveTarget { .. }) => {
                self.fail_code(failed)
            }
            Err(failed) => self
                .fatal_unless_going_on(&crate::conf::sentence(failed))
                .map(|()| 0),
        }
    }

    fn group_of_initiator(&self, name: &str) -> Option<String> {
        let targets = self.live.drivers.get(&self.opt("driver"))?;
        let mut groups = targets.get(&self.opt("target"))?.groups.iter();
        let (group, _) = groups.find(|(_, g)| g.initiators.iter().any(|i| i == name))?;
        Some(group.clone())
    }

    fn op_of(&self, option: &str, name: &str) -> Op {
        let tgt = Tgt::new(&self.opt("driver"), &self.opt("target"));
        let name = name.to_owned();
        let group = self.opt("group");
        let may_group = Some(group.clone()).filter(|g| !g.is_empty());
        let (device, params) = (self.opt("device"), self.params());
        let (dgroup, tgroup) = (self.opt("dev_group"), self.opt("tgt_group"));
        let handler = self.opt("handler");
        let new_tgt = Tgt::new(&self.opt("driver"), &name);
        match option {
            "open_dev" => Op::OpenDevice {
                handler,
                device: name,
                params,
            },
            "close_dev" => Op::CloseDevice {
                handler,
                device: name,
            },
            "add_dgrp" => Op::AddDeviceGroup { group: name },
            "rem_dgrp" => Op::RemoveDeviceGroup { group: name },
            "add_dgrp_dev" => Op::AddDeviceGroupDevice {
                group: dgroup,
                device: name,
            },
            "rem_dgrp_dev" => Op::RemoveDeviceGroupDevice {
                group: dgroup,
                device: name,
            },
            "add_tgrp" => Op::AddTargetGroup {
                group: dgroup,
                tgroup: name,
            },
            "rem_tgrp" => Op::RemoveTargetGroup {
                group: dgroup,
                tgroup: name,
            },
            "add_tgrp_tgt" => Op::AddTargetGroupTarget {
                group: dgroup,
                tgroup,
                target: name,
            },
            "rem_tgrp_tgt" => Op::RemoveTargetGroupTarget {
                group: dgroup,
                tgroup,
                target: name,
            },
            "add_target" => Op::AddTarget {
                tgt: new_tgt,
                params,
            },
            "rem_target" => Op::RemoveTarget { tgt: new_tgt },
            "add_group" => Op::AddGroup { tgt, group: name },
            "rem_group" => Op::RemoveGroup { tgt, group: name },
            "add_init" => Op::AddInitiator {
                tgt,
                group,
                initiator: name,
            },
            "rem_init" => Op::RemoveInitiator {
                tgt,
                group,
                initiator: name,
            },
            "move_init" => Op::MoveInitiator {
                tgt,
                group,
                initiator: name,
                to: self.opt("to"),
            },
            "clear_inits" => Op::ClearInitiators { tgt, group },
            "add_lun" => Op::AddLun {
                tgt,
                group: may_group,
                lun: name,
                device,
                params,
            },
            "rem_lun" => Op::RemoveLun {
                tgt,
                group: may_group,
                lun: name,
            },
            "replace_lun" => Op::ReplaceLun {
                tgt,
                group: may_group,
                lun: name,
                device,
                params,
            },
            _ => Op::ClearLuns {
                tgt,
                group: may_group,
            },
        }
    }

    /// What is in use is not removed without `-force`.
    fn check_unused(&mut self, option: &str, name: &str) -> Result<(), Exit> {
        if self.opts.has("force") {
            return Ok(());
        }
        let dgroup = self.opt("dev_group");
        match option {
            "close_dev" => self.check_device_unused(name),
            "rem_dgrp" => {
                let dir = format!("device_groups/{name}");
                let empty = |sub: &str| {
                    subdirs(self.tree, &join(&dir, sub))
                        .unwrap_or_default()
                        .is_empty()
                };
                if empty("devices") && empty("target_groups") {
                    return Ok(());
                }
                self.print("\n");
                self.show_dgrp(name);
                self.fatal("Device group is still in use, aborting. Use -force to override.")
            }
            "rem_tgrp" => {
                let dir = format!("device_groups/{dgroup}/target_groups/{name}");
                if subdirs(self.tree, &dir).unwrap_or_default().is_empty() {
                    return Ok(());
                }
                self.print("\n");
                self.show_tgrp(&dgroup, name);
                self.fatal("Target group is still in use, aborting. Use -force to override.")
            }
            "rem_dgrp_dev" => self.check_dgroup_unused(&dgroup),
            "rem_group" => {
                let tgt = Tgt::new(&self.opt("driver"), &self.opt("target"));
                let luns = luns_of(self.tree, &tgt.luns_dir(Some(name)));
                let initiators = initiators_of(self.tree, &tgt, name).unwrap_or_default();
                if luns.is_empty() && initiators.is_empty() {
                    return Ok(());
                }
                self.show_group(&tgt, Some(name))?;
                self.fatal("Group is still in use, aborting. Use -force to override.")
            }
            _ => Ok(()),
        }
    }

    fn check_dgroup_unused(&mut self, dgroup: &str) -> Result<(), Exit> {
        let dir = format!("device_groups/{dgroup}/target_groups");
        let mut used = false;
        for tgroup in subdirs(self.tree, &dir).unwrap_or_default() {
            if !subdirs(self.tree, &join(&dir, &tgroup))
                .unwrap_or_default()
                .is_empty()
            {
                self.print("\n");
                self.show_tgrp(dgroup, &tgroup);
                used = true;
            }
        }
        if used {
            return self.fatal("Device may still be in use, aborting. Use -force to override.");
        }
        Ok(())
    }

    fn check_device_unused(&mut self, name: &str) -> Result<(), Exit> {
        let all = Attributes::read(self.tree, &Object::Device(name.to_owned())).unwrap_or_default();
        if all.exports.is_empty() {
            return Ok(());
        }
        let mut width = ["Driver".len(), "Target".len(), "Group".len()];
        for export in all.exports.keys() {
            let lens = [&export.driver, &export.target, &export.group].map(String::len);
            width = [0, 1, 2].map(|i: usize| {
                let (a, b) = (width.get(i).copied(), lens.get(i).copied());
                a.unwrap_or(0).max(b.unwrap_or(0))
            });
        }
        let [d, t, g] = width;
        let row = |cols: [&str; 4]| {
            use super::table::pad;
            let [a, b, c, lun] = cols;
            format!(
                "\t{} {} {} {}\n",
                pad(a, d),
                pad(b, t),
                pad(c, g),
                pad(lun, 4)
            )
        };
        self.print(&format!(
            "Device '{name}' is currently in use by the following:\n\n"
        ));
        self.print(&row(["Driver", "Target", "Group", "Lun"]));
        self.print(&row([
            &"-".repeat(d),
            &"-".repeat(t),
            &"-".repeat(g),
            "----",
        ]));
        for (export, lun) in &all.exports {
            self.print(&row([&export.driver, &export.target, &export.group, lun]));
        }
        self.fatal(&format!(
            "Device '{name}' still in use, aborting. Use -force to override."
        ))
    }

    fn set_attrs(&mut self, object: &Object) -> Result<usize, Exit> {
        let values = self.values();
        match object {
            Object::Driver(_) | Object::Target(_) => self.set_settable(object, &values),
            _ => self.set_values(object, &values, Told::All),
        }
    }

    /// Sets attributes; says what is set already.
    fn set_values(&mut self, object: &Object, values: &Values, told: Told) -> Result<usize, Exit> {
        let all = match Attributes::read(self.tree, object) {
            Ok(all) => all,
            Err(text) => {
                self.warning(&text)?;
                return Ok(1);
            }
        };
        let mut changes = 0;
        for (name, value) in values {
            let Some(attr) = all.map.get(name).filter(|a| !a.fixed) else {
                self.print(&object.lacks(name));
                continue;
            };
            if attr.values().contains(&value.as_str()) {
                if told == Told::All {
                    self.print(&format!(
                        "\t-> Attribute '{name}' already set to value '{value}', ignoring.\n"
                    ));
                }
                continue;
            }
            changes += self.set_op(object, name, value)?;
        }
        Ok(changes)
    }

    fn set_op(&mut self, object: &Object, name: &str, value: &str) -> Result<usize, Exit> {
        let op = Op::SetAttr {
            object: object.clone(),
            attr: name.to_owned(),
            value: value.to_owned(),
        };
        match self.run(&op) {
            Ok(()) => Ok(1),
            Err(failed) if op.is_fatal() => {
                self.fatal_unless_going_on(&crate::conf::sentence(failed))?;
                Ok(0)
            }
            Err(failed) => {
                self.warning(&crate::conf::sentence(failed))?;
                Ok(0)
            }
        }
    }

    /// Of drivers and targets: values are added to attributes that can have several.
    fn set_settable(&mut self, object: &Object, values: &Values) -> Result<usize, Exit> {
        let all = match Attributes::read(self.tree, object) {
            Ok(all) => all,
            Err(text) => {
                self.warning(&text)?;
                return Ok(0);
            }
        };
        let dynamic = self.dynamic_names(object);
        let mut changes = 0;
        for (name, value) in values {
            let settable = all.map.get(name).filter(|a| !a.fixed);
            if settable.is_some_and(|a| a.values().contains(&value.as_str())) {
                continue;
            }
            if dynamic.contains(name) {
                let op = dynamic_op(object, name, value, true);
                if let Err(failed) = self.run(&op) {
                    self.fatal_unless_going_on(&crate::conf::sentence(failed))?;
                }
                changes += 1;
            } else if settable.is_none() {
                self.print(&object.lacks(name));
            } else {
                let set = self.set_op(object, name, value)?;
                // SCST's scstadmin does not count those of drivers.
                changes += if matches!(object, Object::Driver(_)) {
                    0
                } else {
                    set
                };
            }
        }
        let dynamic_now = all
            .map
            .iter()
            .filter(|(name, attr)| dynamic.contains(*name) && !attr.fixed);
        for (name, attr) in dynamic_now {
            for value in attr.values() {
                if values.get(name).is_none_or(|v| v != value) {
                    let what = if matches!(object, Object::Driver(_)) {
                        "Driver"
                    } else {
                        "Target"
                    };
                    self.print(&format!(
                        "\t-> {what} dynamic attribute '{name}' with value '{value}' is not in configuration. \
                         Use -force to remove it.\n"
                    ));
                }
            }
        }
        Ok(changes)
    }

    fn dynamic_names(&self, object: &Object) -> std::collections::BTreeSet<String> {
        let (driver, which) = match object {
            Object::Driver(d) => (d, Listed::DriverDynamic),
            Object::Target(t) => (&t.driver, Listed::TargetDynamic),
            _ => return Default::default(),
        };
        if !makes_targets(self.tree, driver) {
            return Default::default();
        }
        listed(self.tree, &format!("targets/{driver}"), which)
    }

    /// `-add_drv_attr` and its kin.
    fn dynamic(&mut self, option: &str, name: &str) -> Done {
        let object = if option.ends_with("drv_attr") {
            Object::Driver(name.to_owned())
        } else {
            Object::Target(Tgt::new(&self.opt("driver"), name))
        };
        let all = match Attributes::read(self.tree, &object) {
            Ok(all) => all,
            Err(text) => return self.warning(&text),
        };
        let add = option.starts_with("add");
        let of = match &object {
            Object::Target(t) => format!("driver/target '{}'", t.slashed(None)),
            _ => format!("driver '{name}'"),
        };
        for (attr, value) in self.values() {
            let there = all
                .map
                .get(&attr)
                .is_some_and(|a| a.values().contains(&value.as_str()));
            if there == add {
                let how = if add {
                    "already exists"
                } else {
                    "doesn't exist"
                };
                self.print(&format!(
                    "\t-> Attribute/value '{attr}/{value}' {how} for {of}.\n"
                ));
                continue;
            }
            if let Err(failed) = self.run(&dynamic_op(&object, &attr, &value, add)) {
                self.fatal_unless_going_on(&crate::conf::sentence(failed))?;
            }
        }
        Ok(0)
    }

    fn switch(&mut self, tgt: &Tgt, value: &str) -> Done {
        let values = Values::from([("enabled".to_owned(), value.to_owned())]);
        let object = Object::Target(tgt.clone());
        let all = match Attributes::read(self.tree, &object) {
            Ok(all) => all,
            Err(text) => {
                self.warning(&text)?;
                return Ok(0);
            }
        };
        match all.map.get("enabled") {
            None => self.print(&object.lacks("enabled")),
            Some(attr) if attr.values().contains(&value) => {}
            Some(_) => {
                self.set_values(&object, &values, Told::Changes)?;
            }
        }
        Ok(0)
    }

    fn issue_lip(&mut self) {
        let (driver, target) = (self.opt("driver"), self.opt("issue_lip"));
        if !driver.is_empty() && !target.is_empty() {
            self.print(&no_host(&driver, &target));
            return;
        }
        for driver in subdirs(self.tree, "targets").unwrap_or_default() {
            for target in targets_of(self.tree, &driver).unwrap_or_default() {
                self.print(&no_host(&driver, &target));
            }
        }
    }

    /// Removes everything that is configured.
    pub(super) fn clear(&mut self) -> Done {
        self.print("-> Clearing running configuration.\n");
        let live = self.live.clone();
        for (group, content) in &live.device_groups {
            for tgroup in content.target_groups.keys() {
                self.must(&Op::RemoveTargetGroup {
                    group: group.clone(),
                    tgroup: tgroup.clone(),
                })?;
            }
            for device in &content.devices {
                self.must(&Op::RemoveDeviceGroupDevice {
                    group: group.clone(),
                    device: device.clone(),
                })?;
            }
            self.must(&Op::RemoveDeviceGroup {
                group: group.clone(),
            })?;
        }
        for (driver, targets) in &live.drivers {
            for (name, target) in targets {
                let tgt = Tgt::new(driver, name);
                for group in target.groups.keys() {
                    self.must(&Op::ClearInitiators {
                        tgt: tgt.clone(),
                        group: group.clone(),
                    })?;
                    self.must(&Op::ClearLuns {
                        tgt: tgt.clone(),
                        group: Some(group.clone()),
                    })?;
                    self.must(&Op::RemoveGroup {
                        tgt: tgt.clone(),
                        group: group.clone(),
                    })?;
                }
                self.must(&Op::ClearLuns {
                    tgt: tgt.clone(),
                    group: None,
                })?;
                if crate::conf::attr::is_virtual(self.tree, driver, name)
                    && let Err(failed) = self.run(&Op::RemoveTarget { tgt })
                {
                    self.warning(&crate::conf::sentence(failed))?;
                }
            }
            self.clear_driver(driver)?;
        }
        for (handler, devices) in &live.handlers {
            for device in devices {
                self.must(&Op::CloseDevice {
                    handler: handler.clone(),
                    device: device.clone(),
                })?;
            }
        }
        for driver in live.drivers.keys() {
            for target in targets_of(self.tree, driver).unwrap_or_default() {
                self.switch(&Tgt::new(driver, &target), "0")?;
            }
            self.disable_driver(driver)?;
        }
        self.print("\t-> Configuration cleared.\n");
        Ok(0)
    }

    fn must(&mut self, op: &Op) -> Result<(), Exit> {
        match self.run(op) {
            Ok(()) => Ok(()),
            Err(failed) => self.fatal_unless_going_on(&crate::conf::sentence(failed)),
        }
    }

    fn clear_driver(&mut self, driver: &str) -> Result<(), Exit> {
        if !makes_targets(self.tree, driver) {
            return Ok(());
        }
        self.print(&format!(
            "\t-> Removing all dynamic attributes from driver '{driver}': "
        ));
        let object = Object::Driver(driver.to_owned());
        let all = Attributes::read(self.tree, &object).unwrap_or_default();
        let dynamic = self.dynamic_names(&object);
        for (name, attr) in all
            .map
            .iter()
            .filter(|(n, a)| dynamic.contains(*n) && a.is_key())
        {
            for value in attr.keys.values() {
                let op = dynamic_op(&object, name, value, false);
                if let Err(failed) = op.run(self.tree, self.stores, self.out) {
                    self.fatal_unless_going_on(&crate::conf::sentence(failed))?;
                }
            }
        }
        self.print("done.\n");
        Ok(())
    }

    fn disable_driver(&mut self, driver: &str) -> Result<(), Exit> {
        let object = Object::Driver(driver.to_owned());
        let all = Attributes::read(self.tree, &object).unwrap_or_default();
        if all
            .map
            .get("enabled")
            .is_some_and(|a| !a.values().contains(&"0"))
        {
            self.set_op(&object, "enabled", "0")?;
        }
        Ok(())
    }
}

/// What is said of a target that is not on Fibre Channel: none is, here.
fn no_host(driver: &str, target: &str) -> String {
    format!("\t-> Driver/target '{driver}/{target}' has no 'host' attribute, ignoring.\n")
}

/// Whether it is said that an attribute has its value already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    All,
    Changes,
}

fn dynamic_op(object: &Object, attr: &str, value: &str, add: bool) -> Op {
    let (attr, value) = (attr.to_owned(), value.to_owned());
    match (object, add) {
        (Object::Target(tgt), true) => Op::AddTargetAttr {
            tgt: tgt.clone(),
            attr,
            value,
        },
        (Object::Target(tgt), false) => Op::RemoveTargetAttr {
            tgt: tgt.clone(),
            attr,
            value,
        },
        (Object::Driver(driver), true) => Op::AddDriverAttr {
            driver: driver.clone(),
            attr,
            value,
        },
        (Object::Driver(driver), false) => Op::RemoveDriverAttr {
            driver: driver.clone(),
            attr,
            value,
        },
        (object, _) => Op::SetAttr {
            object: object.clone(),
            attr,
            value,
        },
    }
}
