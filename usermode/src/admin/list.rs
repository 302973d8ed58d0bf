//! Queries.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::table::{self, NonKey, column, pad, rule};
use super::{Admin, Done};
use crate::conf::access::{base_name, join, read_text, subdirs};
use crate::conf::attr::{Attributes, Listed, listed, makes_targets};
use crate::conf::live::{devices_of, initiators_of, luns_of, targets_of};
use crate::conf::object::{self, Object, Tgt};

fn longest(names: &[String]) -> usize {
    names.iter().map(String::len).max().unwrap_or(0)
}

/// What a query found nothing about is named by so.
fn none_such(object: &Object) -> String {
    format!("No such {} exists.\n", object.what())
}

impl Admin<'_> {
    fn nonkey(&self) -> NonKey {
        if self.opts.has("nonkey") {
            NonKey::Include
        } else {
            NonKey::Omit
        }
    }

    fn drivers(&self) -> Vec<String> {
        subdirs(self.tree, "targets").unwrap_or_default()
    }

    /// The query that the options name; `None` when they name none.
    pub(super) fn queries(&mut self) -> Option<Done> {
        const QUERIES: [&str; 8] = [
            "list_handler",
            "list_device",
            "list_dgrp",
            "list_tgrp",
            "list_driver",
            "list_target",
            "list_group",
            "list_sessions",
        ];
        let mut done = None;
        for name in QUERIES {
            let Some(value) = self.opts.get(name).map(str::to_owned) else {
                continue;
            };
            done = Some(match name {
                "list_handler" => self.list_handler(&value),
                "list_device" => self.list_device(&value),
                "list_dgrp" => self.list_dgrp(&value),
                "list_tgrp" => self.list_tgrp(&value),
                "list_driver" => self.list_driver(&value),
                "list_target" => self.list_target(&value),
                "list_group" => self.list_group_option(&value),
                _ => self.list_sessions(),
            });
        }
        for object in self.objects_of("list") {
            done = Some(self.list_attr(&object));
        }
        done
    }

    fn list_handler(&mut self, name: &str) -> Done {
        let handlers = subdirs(self.tree, "handlers").unwrap_or_default();
        if !name.is_empty() {
            return self.devices_by_handler(Some(name));
        }
        if self.json {
            return self.answer(&json!(handlers));
        }
        self.print(&column("Handler", 0, &handlers));
        Ok(0)
    }

    fn devices_by_handler(&mut self, name: Option<&str>) -> Done {
        let mut handlers = subdirs(self.tree, "handlers").unwrap_or_default();
        handlers.retain(|h| name.is_none_or(|n| n == h));
        let rows: Vec<(String, Vec<String>)> = handlers
            .into_iter()
            .map(|h| (h.clone(), devices_of(self.tree, &h).unwrap_or_default()))
            .collect();
        if self.json {
            let fields = rows.iter().map(|(h, d)| (h.clone(), json!(d)));
            return self.answer(&Value::Object(fields.collect()));
        }
        if rows.is_empty() {
            self.print(&format!(
                "No such handler '{}' found.\n",
                name.unwrap_or_default()
            ));
            return Ok(0);
        }
        let left = rows.iter().map(|(h, _)| h.len()).max().unwrap_or(0);
        let right = rows
            .iter()
            .map(|(_, d)| longest(d).max(1))
            .max()
            .unwrap_or(0);
        self.print(&format!(
            "\t{}     {}\n",
            pad("Handler", left),
            pad("Device", right)
        ));
        self.print(&rule(left + right + 5));
        for (handler, mut devices) in rows {
            if devices.is_empty() {
                devices.push("-".to_owned());
            }
            for (i, device) in devices.iter().enumerate() {
                let first = if i == 0 { handler.as_str() } else { "" };
                self.print(&format!(
                    "\t{}    {}\n",
                    pad(first, left),
                    pad(device, right)
                ));
            }
        }
        Ok(0)
    }

    fn list_device(&mut self, name: &str) -> Done {
        if name.is_empty() {
            return self.devices_by_handler(None);
        }
        self.list_attr(&Object::Device(name.to_owned()))
    }

    fn list_dgrp(&mut self, name: &str) -> Done {
        if name.is_empty() {
            let groups = subdirs(self.tree, "device_groups").unwrap_or_default();
            if self.json {
                return self.answer(&json!(groups));
            }
            self.print("\tDevice Group\n");
            self.print(&rule(longest(&groups).max(12)));
            for group in groups {
                self.print(&format!("\t{group}\n\n"));
            }
            return Ok(0);
        }
        self.show_dgrp(name);
        Ok(0)
    }

    /// The devices and target groups of a device group.
    pub(super) fn show_dgrp(&mut self, name: &str) {
        let dir = format!("device_groups/{name}");
        let devices = subdirs(self.tree, &join(&dir, "devices")).unwrap_or_default();
        let tgroups = subdirs(self.tree, &join(&dir, "target_groups")).unwrap_or_default();
        if self.json {
            let _ = self.answer(&json!({"devices": devices, "target_groups": tgroups}));
            return;
        }
        let min = if longest(&devices) < 6 { 7 } else { 0 };
        self.print(&column("Devices", min, &devices));
        self.print("\n");
        self.print(&column("Target Groups", 12, &tgroups));
    }

    fn list_tgrp(&mut self, name: &str) -> Done {
        let group = self.opt("dev_group");
        if !name.is_empty() {
            self.show_tgrp(&group, name);
            return Ok(0);
        }
        let dir = format!("device_groups/{group}/target_groups");
        let tgroups = subdirs(self.tree, &dir).unwrap_or_default();
        if self.json {
            return self.answer(&json!(tgroups));
        }
        self.print("\n");
        self.print(&column("Target Groups", 12, &tgroups));
        Ok(0)
    }

    /// The targets of a target group.
    pub(super) fn show_tgrp(&mut self, group: &str, name: &str) {
        let dir = format!("device_groups/{group}/target_groups/{name}");
        let targets = subdirs(self.tree, &dir).unwrap_or_default();
        if self.json {
            let _ = self.answer(&json!(targets));
            return;
        }
        self.print(&column("Targets", 7, &targets));
    }

    fn list_driver(&mut self, name: &str) -> Done {
        if !name.is_empty() {
            return self.targets_by_driver(Some(name));
        }
        let drivers = self.drivers();
        if self.json {
            return self.answer(&json!(drivers));
        }
        self.print(&column("Driver", 0, &drivers));
        Ok(0)
    }

    fn list_target(&mut self, name: &str) -> Done {
        let driver = self
            .opts
            .get("driver")
            .filter(|d| !d.is_empty())
            .map(str::to_owned);
        match driver {
            Some(driver) if !name.is_empty() => self.groups_of(Some(&driver), Some(name), None),
            driver => self.targets_by_driver(driver.as_deref()),
        }
    }

    fn targets_by_driver(&mut self, name: Option<&str>) -> Done {
        let mut drivers = self.drivers();
        drivers.retain(|d| name.is_none_or(|n| n == d));
        let rows: Vec<(String, Vec<String>)> = drivers
            .into_iter()
            .map(|d| (d.clone(), targets_of(self.tree, &d).unwrap_or_default()))
            .collect();
        if self.json {
            let fields = rows.iter().map(|(d, t)| (d.clone(), json!(t)));
            return self.answer(&Value::Object(fields.collect()));
        }
        if rows.is_empty() {
            self.print(&format!(
                "No such driver '{}' exists.\n",
                name.unwrap_or_default()
            ));
            return Ok(0);
        }
        let left = rows.iter().map(|(d, _)| d.len()).max().unwrap_or(0);
        let right = rows.iter().map(|(_, t)| longest(t)).max().unwrap_or(0);
        self.print(&format!(
            "\t{} {}\n",
            pad("Driver", left),
            pad("Target", right)
        ));
        self.print(&rule(left + right + 1));
        for (driver, targets) in rows {
            for (i, target) in targets.iter().enumerate() {
                let first = if i == 0 { driver.as_str() } else { "" };
                self.print(&format!("\t{} {}\n", pad(first, left), pad(target, right)));
            }
        }
        Ok(0)
    }

    fn list_group_option(&mut self, name: &str) -> Done {
        let given = |n: &str| {
            self.opts
                .get(n)
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
        };
        let (driver, target) = (given("driver"), given("target"));
        let group = Some(name).filter(|n| !n.is_empty());
        self.groups_of(driver.as_deref(), target.as_deref(), group)
    }

    fn groups_of(
        &mut self,
        driver: Option<&str>,
        target: Option<&str>,
        group: Option<&str>,
    ) -> Done {
        if let (Some(d), Some(t), Some(g), false) = (driver, target, group, self.json) {
            return self.show_group(&Tgt::new(d, t), Some(g));
        }
        let mut found = Vec::new();
        for d in self
            .drivers()
            .into_iter()
            .filter(|d| driver.is_none_or(|n| n == d))
        {
            for t in targets_of(self.tree, &d).unwrap_or_default() {
                if target.is_none_or(|n| n == t) {
                    found.push(Tgt::new(&d, &t));
                }
            }
        }
        if self.json {
            let all = found.iter().map(|tgt| self.target_json(tgt)).collect();
            return self.answer(&Value::Array(all));
        }
        for tgt in &found {
            self.print(&format!(
                "Driver: {}\nTarget: {}\n\n",
                tgt.driver, tgt.target
            ));
            self.show_group(tgt, None)?;
            self.print("\n");
            let groups =
                subdirs(self.tree, &format!("{}/ini_groups", tgt.dir())).unwrap_or_default();
            for name in groups.iter().filter(|g| group.is_none_or(|n| n == *g)) {
                self.print(&format!("Group: {name}\n\n"));
                self.show_group(tgt, Some(name))?;
                self.print("\n\n");
            }
        }
        if found.is_empty() {
            let name = |o: Option<&str>| o.unwrap_or_default().to_owned();
            let text = match (driver, target) {
                (Some(d), Some(t)) => format!("Driver/target '{d}/{t}' not found\n"),
                (_, None) => format!("Driver '{}' not found.\n", name(driver)),
                _ => format!("Target '{}' not found.\n", name(target)),
            };
            self.print(&text);
        }
        Ok(0)
    }

    fn luns_json(&self, tgt: &Tgt, group: Option<&str>) -> Value {
        let luns = luns_of(self.tree, &tgt.luns_dir(group));
        Value::Object(
            luns.into_iter()
                .map(|(n, d)| (n.to_string(), json!(d)))
                .collect(),
        )
    }

    fn target_json(&self, tgt: &Tgt) -> Value {
        let groups = subdirs(self.tree, &format!("{}/ini_groups", tgt.dir())).unwrap_or_default();
        let groups = groups.into_iter().map(|g| {
            let initiators = initiators_of(self.tree, tgt, &g).unwrap_or_default();
            let luns = self.luns_json(tgt, Some(&g));
            (g, json!({"luns": luns, "initiators": initiators}))
        });
        json!({
            "driver": tgt.driver,
            "target": tgt.target,
            "luns": self.luns_json(tgt, None),
            "groups": Value::Object(groups.collect()),
        })
    }

    /// LUNs, and of a group initiators too.
    pub(super) fn show_group(&mut self, tgt: &Tgt, group: Option<&str>) -> Done {
        let luns = luns_of(self.tree, &tgt.luns_dir(group));
        let initiators = match group {
            None => Vec::new(),
            Some(g) => match object::group(self.tree, tgt, g) {
                Some(missing) => return self.warning(&format!("initiators(): {}", missing.text)),
                None => initiators_of(self.tree, tgt, g).unwrap_or_default(),
            },
        };
        if luns.is_empty() && initiators.is_empty() {
            self.print(&match group {
                Some(g) => format!("Group '{g}' has no associated LUNs or initiators.\n"),
                None => format!(
                    "Driver/target '{}' has no associated LUNs.\n",
                    tgt.slashed(None)
                ),
            });
            return Ok(0);
        }
        self.print("Assigned LUNs:\n\n");
        if luns.is_empty() {
            self.print("\t(none)\n");
        } else {
            let width = luns.values().map(String::len).max().unwrap_or(0);
            self.print(&format!("\t{} {}\n", pad("LUN", 4), pad("Device", width)));
            self.print(&rule(width + 5));
            let mut rows: Vec<(String, &String)> =
                luns.iter().map(|(n, d)| (n.to_string(), d)).collect();
            rows.sort();
            for (lun, device) in rows {
                self.print(&format!("\t{} {}\n", pad(&lun, 4), pad(device, width)));
            }
        }
        if group.is_some() {
            self.print("\nAssigned Initiators:\n\n");
            if initiators.is_empty() {
                self.print("\t(none)\n");
            } else {
                self.print(&column("Initiator", 0, &initiators));
            }
        }
        Ok(0)
    }

    fn list_sessions(&mut self) -> Done {
        let mut all = Vec::new();
        for driver in self.drivers() {
            for target in targets_of(self.tree, &driver).unwrap_or_default() {
                let tgt = Tgt::new(&driver, &target);
                let dir = format!("{}/sessions", tgt.dir());
                let names = subdirs(self.tree, &dir).unwrap_or_default();
                let sessions: Vec<(String, Attributes)> = names
                    .into_iter()
                    .map(|s| (s.clone(), self.session(&tgt, &join(&dir, &s))))
                    .collect();
                all.push((tgt, sessions));
            }
        }
        if self.json {
            let list = all.iter().flat_map(|(tgt, sessions)| {
                sessions.iter().map(|(name, attrs)| {
                    json!({
                        "driver": tgt.driver,
                        "target": tgt.target,
                        "session": name,
                        "attributes": attrs_json(attrs),
                    })
                })
            });
            return self.answer(&Value::Array(list.collect()));
        }
        for (tgt, sessions) in all {
            self.print(&format!("Driver/Target: {}\n\n", tgt.slashed(None)));
            for (name, attrs) in &sessions {
                self.print(&format!("\tSession: {name}\n\n"));
                self.print(&table::attributes(attrs, NonKey::Include));
                self.print("\n");
            }
            if sessions.is_empty() {
                self.print("\t(no sessions)\n\n");
            }
        }
        Ok(0)
    }

    /// The first lines of a session's attributes, and the LUNs of its group.
    fn session(&self, tgt: &Tgt, dir: &str) -> Attributes {
        use crate::conf::attr::Attr;
        use kshim::kobject::tree::EntryKind;
        const OWNER_READ: u16 = 0o400;
        let mut all = Attributes::default();
        let mut add = |name: String, value: Option<String>| {
            let attr = Attr {
                value,
                ..Attr::default()
            };
            all.map.insert(name, attr);
        };
        for entry in self.tree.list(dir).unwrap_or_default() {
            let path = join(dir, &entry.name);
            match entry.kind {
                EntryKind::File if entry.mode & OWNER_READ == 0 => add(entry.name, None),
                EntryKind::File => {
                    let text = read_text(self.tree, &path).unwrap_or_default();
                    add(
                        entry.name,
                        Some(text.lines().next().unwrap_or_default().to_owned()),
                    );
                }
                EntryKind::Link if entry.name == "luns" => {
                    let to = self.tree.readlink(&path).unwrap_or_default();
                    let group = to
                        .strip_suffix("/luns")
                        .filter(|t| t.contains("ini_groups/"));
                    for (lun, device) in group
                        .map(|g| luns_of(self.tree, &tgt.luns_dir(Some(base_name(g)))))
                        .unwrap_or_default()
                    {
                        add(format!("LUN {lun}"), Some(device));
                    }
                }
                _ => {}
            }
        }
        all
    }

    fn list_attr(&mut self, object: &Object) -> Done {
        let all = match Attributes::read(self.tree, object) {
            Ok(all) => all,
            Err(text) => return self.warning(&text),
        };
        if self.json {
            return self.answer(&attrs_json(&all));
        }
        if all.map.is_empty() {
            let text = match object {
                Object::DeviceGroup(g) => {
                    format!("No such device group '{g}' found or device group as no attributes.\n")
                }
                Object::TargetGroupTarget(g, tg, t) => {
                    format!("No such device group/target group/target '{g}/{tg}/{t}' found.\n")
                }
                other => none_such(other),
            };
            self.print(&text);
            return Ok(0);
        }
        self.print(&table::attributes(&all, self.nonkey()));
        self.list_creatable(object)
    }

    /// What can be given when something is created below the object.
    fn list_creatable(&mut self, object: &Object) -> Done {
        let names = |dir: &str, which| listed(self.tree, dir, which);
        match object {
            Object::Handler(h) => {
                let dir = format!("handlers/{h}");
                if self.tree.stat(&join(&dir, "mgmt")).is_err() {
                    let text =
                        "deviceCreateAttributes(): Unable to open mgmt interface for handler";
                    return self.warning(&format!("{text} '{h}': Bad file descriptor"));
                }
                let names = names(&dir, Listed::Create);
                self.names("Device CREATE attributes available", &names)
            }
            Object::Driver(d) if makes_targets(self.tree, d) => {
                let dir = format!("targets/{d}");
                let dynamic = names(&dir, Listed::DriverDynamic);
                let create = names(&dir, Listed::Create);
                if !dynamic.is_empty() {
                    self.names("Dynamic attributes available", &dynamic)?;
                }
                self.names("Target CREATE attributes available:", &create)
            }
            Object::Target(t) => {
                let dynamic = if makes_targets(self.tree, &t.driver) {
                    names(&format!("targets/{}", t.driver), Listed::TargetDynamic)
                } else {
                    BTreeSet::new()
                };
                let create = names(&t.luns_dir(None), Listed::Create);
                if !dynamic.is_empty() {
                    self.names("Dynamic attributes available", &dynamic)?;
                }
                self.names("LUN CREATE attributes available", &create)
            }
            Object::Group(t, g) => {
                let create = names(&t.luns_dir(Some(g)), Listed::Create);
                self.names("LUN CREATE attributes available", &create)?;
                // Initiators have no attributes, and to have none is an error here.
                Ok(1)
            }
            _ => Ok(0),
        }
    }

    fn names(&mut self, title: &str, names: &BTreeSet<String>) -> Done {
        if names.is_empty() {
            return Ok(1);
        }
        self.print(&format!("\n\t{title}\n{}", rule(title.len())));
        for name in names {
            self.print(&format!("\t{name}\n"));
        }
        Ok(0)
    }
}

/// Attributes with their values.
fn attrs_json(all: &Attributes) -> Value {
    let fields = all.map.iter().map(|(name, attr)| {
        let value = match &attr.value {
            _ if attr.is_key() => attr.keys.values().cloned().collect(),
            Some(value) => json!(value),
            None => Value::Null,
        };
        (
            name.clone(),
            json!({"value": value, "writable": !attr.fixed, "key": attr.is_key()}),
        )
    });
    Value::Object(fields.collect())
}
