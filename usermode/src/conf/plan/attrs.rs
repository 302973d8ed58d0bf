//! Steps that set attributes.

use std::collections::{BTreeMap, BTreeSet};

use super::super::attr::{Attr, Listed, makes_targets};
use super::super::known::{Kind, is_known};
use super::super::model::Attrs;
use super::super::object::{Object, Tgt};
use super::super::op::{Op, Params, same_value};
use super::super::syntax::Pos;
use super::super::writer::HW_TARGET;
use super::{Planner, Unless};

/// Values by name, as [`Attrs`] has them.
type Values = BTreeMap<String, BTreeMap<String, Pos>>;

impl Planner<'_> {
    /// Sets attributes of anything but drivers and targets.
    pub(super) fn set(&mut self, object: &Object, attrs: &Attrs) {
        self.set_values(object, &attrs.set);
    }

    /// As [`Planner::set`], for some of the attributes. `cluster_mode` needs the identity of the device and comes last.
    pub(super) fn set_values(&mut self, object: &Object, values: &Values) {
        let (last, first): (Vec<_>, Vec<_>) =
            values.iter().partition(|(name, _)| *name == "cluster_mode");
        for (name, values) in first.into_iter().chain(last) {
            self.set_one(object, name, values);
        }
    }

    fn set_one(&mut self, object: &Object, name: &str, values: &BTreeMap<String, Pos>) {
        let Some((value, pos)) = self.only_value(name, values) else {
            return;
        };
        if self.fresh.contains(object) {
            if self.is_known(object, name, pos) {
                self.set_op(object, name, &value, Unless::Equal);
            }
            return;
        }
        let attributes = self.attributes(object);
        match attributes.map.get(name) {
            None => self.unknown(object, name, pos),
            Some(attr) if attr.fixed => self.say(object.lacks(name)),
            Some(attr) if has_value(attr, &value) => {}
            Some(_) => self.set_op(object, name, &value, Unless::Never),
        }
    }

    fn set_op(&mut self, object: &Object, name: &str, value: &str, unless: Unless) {
        let op = Op::SetAttr {
            object: object.clone(),
            attr: name.to_owned(),
            value: value.to_owned(),
        };
        self.op_unless(op, unless);
    }

    /// The value of an attribute that has one; two are a problem.
    fn only_value(&mut self, name: &str, values: &BTreeMap<String, Pos>) -> Option<(String, Pos)> {
        let mut all = values.iter();
        let first = all.next().map(|(v, pos)| (v.clone(), *pos));
        let Some((_, second)) = all.next() else {
            return first;
        };
        let last = first
            .iter()
            .map(|(_, pos)| *pos)
            .chain([*second])
            .max_by_key(|p| (p.line, p.col));
        self.problem(
            last.unwrap_or(*second),
            format!("attribute '{name}' is given two values"),
        );
        None
    }

    fn unknown(&mut self, object: &Object, name: &str, pos: Pos) {
        // A file written with values that need no saving names the devices of a handler, and device groups.
        let named = match object {
            Object::Handler(h) => self
                .config
                .handlers
                .get(h)
                .is_some_and(|s| s.devices.contains_key(name)),
            Object::Alua => self.config.device_groups.contains_key(name),
            _ => false,
        };
        if !named {
            let what = format!("{} has no attribute '{name}'", object.what());
            self.problem(pos, what);
        }
    }

    /// Whether an object that is to be created will have the attribute; if not, that is a problem.
    fn is_known(&mut self, object: &Object, name: &str, pos: Pos) -> bool {
        let (kind, sibling) = match object {
            Object::Device(_) => (Kind::Device, self.sibling_device(object)),
            Object::Target(t) => (Kind::Target(&t.driver), self.sibling_target(t)),
            Object::Group(..) => (Kind::Group, None),
            Object::TargetGroup(..) => (Kind::TargetGroup, None),
            Object::TargetGroupTarget(..) => (Kind::TargetGroupTarget, None),
            _ => return true,
        };
        let known = is_known(kind, name)
            || sibling.is_some_and(|s| self.attributes(&s).map.contains_key(name));
        if !known {
            self.unknown(object, name, pos);
        }
        known
    }

    /// Another device of the same handler.
    fn sibling_device(&self, object: &Object) -> Option<Object> {
        let Object::Device(name) = object else {
            return None;
        };
        let mut lists = self.live.handlers.values();
        let list = lists.find(|list| list.contains(name))?;
        let devices = list.iter().map(|d| Object::Device(d.clone()));
        devices.into_iter().find(|d| !self.fresh.contains(d))
    }

    /// Another target of the same driver.
    fn sibling_target(&self, tgt: &Tgt) -> Option<Object> {
        let targets = self.live.drivers.get(&tgt.driver)?;
        let mut objects = targets
            .keys()
            .map(|t| Object::Target(Tgt::new(&tgt.driver, t)));
        objects.find(|o| !self.fresh.contains(o))
    }

    /// Sets the attributes of a driver or target but for `enabled`. Some can have several values, which are added and
    /// removed.
    pub(super) fn set_dynamic(&mut self, object: &Object, values: &Values) {
        let (driver, which) = match object {
            Object::Driver(d) => (d.clone(), Listed::DriverDynamic),
            Object::Target(t) => (t.driver.clone(), Listed::TargetDynamic),
            _ => return,
        };
        let dynamic = if makes_targets(self.tree, &driver) {
            self.listed(&format!("targets/{driver}"), which)
        } else {
            BTreeSet::new()
        };
        for (name, wanted) in values {
            if name == HW_TARGET || name == "enabled" {
                continue;
            }
            if dynamic.contains(name) {
                self.add_values(object, name, wanted);
            } else {
                self.set_one(object, name, wanted);
            }
        }
        for name in &dynamic {
            self.remove_values(object, name, values.get(name));
        }
    }

    fn add_values(&mut self, object: &Object, name: &str, wanted: &BTreeMap<String, Pos>) {
        let attributes = self.attributes(object);
        let now = attributes.map.get(name);
        for value in wanted.keys() {
            if now.is_some_and(|attr| attr.values().iter().any(|v| v == value)) {
                continue;
            }
            let (attr, value) = (name.to_owned(), value.clone());
            match object {
                Object::Driver(driver) => self.op(Op::AddDriverAttr {
                    driver: driver.clone(),
                    attr,
                    value,
                }),
                Object::Target(tgt) => self.op(Op::AddTargetAttr {
                    tgt: tgt.clone(),
                    attr,
                    value,
                }),
                _ => {}
            }
        }
    }

    fn remove_values(
        &mut self,
        object: &Object,
        name: &str,
        wanted: Option<&BTreeMap<String, Pos>>,
    ) {
        let attributes = self.attributes(object);
        let Some(attr) = attributes.map.get(name).filter(|a| !a.fixed) else {
            return;
        };
        for value in attr.values() {
            if value.is_empty() || wanted.is_some_and(|w| w.contains_key(value)) {
                continue;
            }
            let (attr, value) = (name.to_owned(), value.to_owned());
            if !self.removes() {
                let what = if matches!(object, Object::Driver(_)) {
                    "Driver"
                } else {
                    "Target"
                };
                self.say(format!(
                    "\t-> {what} dynamic attribute '{attr}' with value '{value}' is not in configuration. Use \
                     -force to remove it.\n"
                ));
                continue;
            }
            match object {
                Object::Driver(driver) => self.op(Op::RemoveDriverAttr {
                    driver: driver.clone(),
                    attr,
                    value,
                }),
                Object::Target(tgt) => self.op(Op::RemoveTargetAttr {
                    tgt: tgt.clone(),
                    attr,
                    value,
                }),
                _ => {}
            }
        }
    }

    /// Those attributes that can be given when something is created. `Many`: several values are allowed.
    pub(super) fn create_params(
        &mut self,
        attrs: &Attrs,
        create: &BTreeSet<String>,
        many: Many,
    ) -> Params {
        let mut params = Params::new();
        for (name, values) in attrs.set.iter().filter(|(name, _)| create.contains(*name)) {
            if many == Many::Allowed {
                params.extend(values.keys().map(|v| (name.clone(), v.clone())));
            } else if let Some((value, _)) = self.only_value(name, values) {
                params.push((name.clone(), value));
            }
        }
        params
    }

    /// True when what is given for creation differs from what the object was created with.
    pub(super) fn differs(
        &self,
        params: &Params,
        object: &Object,
        create: &BTreeSet<String>,
    ) -> bool {
        let attributes = self.attributes(object);
        let now = |name: &str| attributes.map.get(name).and_then(|attr| first_value(attr));
        let given = |name: &str| {
            params
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.as_str())
        };
        let changed = params.iter().any(|(name, value)| match now(name) {
            Some(now) => !same_value(now, value),
            None => !same_value("0", value),
        });
        let dropped = attributes.map.iter().any(|(name, attr)| {
            let size_mb = name == "size" && given("size_mb").is_some();
            create.contains(name) && attr.is_key() && given(name).is_none() && !size_mb
        });
        changed || dropped
    }
}

/// Whether an attribute may have several values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Many {
    Allowed,
    Wrong,
}

fn first_value(attr: &Attr) -> Option<&str> {
    if attr.is_key() {
        return attr.keys.values().next().map(String::as_str);
    }
    attr.value.as_deref()
}

fn has_value(attr: &Attr, value: &str) -> bool {
    attr.values().iter().any(|v| same_value(v, value))
}
