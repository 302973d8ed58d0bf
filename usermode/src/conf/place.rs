//! Where in a configuration file an operation comes from.

use super::model::{Attrs, Config, Group, LunDef, Target};
use super::object::{Object, Tgt};
use super::op::Op;
use super::syntax::Pos;

/// The place that asked for an operation; `None` for one that nothing in the file asked for (a removal).
pub(crate) fn place_of(op: &Op, config: &Config) -> Option<Pos> {
    let device_group = |name: &str| config.device_groups.get(name);
    match op {
        Op::OpenDevice {
            handler, device, ..
        } => Some(config.handlers.get(handler)?.devices.get(device)?.pos),
        Op::SetAttr {
            object,
            attr,
            value,
        } => value_at(attrs_of(object, config)?, attr, value),
        Op::AddDriverAttr {
            driver,
            attr,
            value,
        } => value_at(&config.drivers.get(driver)?.attrs, attr, value),
        Op::AddTargetAttr { tgt, attr, value } => {
            value_at(&target(config, tgt)?.attrs, attr, value)
        }
        Op::AddTarget { tgt, .. } => Some(target(config, tgt)?.pos),
        Op::AddGroup { tgt, group } => Some(group_of(config, tgt, group)?.pos),
        Op::AddInitiator {
            tgt,
            group,
            initiator,
        } => Some(group_of(config, tgt, group)?.initiators.get(initiator)?.pos),
        Op::MoveInitiator {
            tgt, initiator, to, ..
        } => Some(group_of(config, tgt, to)?.initiators.get(initiator)?.pos),
        Op::AddLun {
            tgt, group, lun, ..
        }
        | Op::ReplaceLun {
            tgt, group, lun, ..
        } => Some(lun_of(config, tgt, group.as_deref(), lun)?.pos),
        Op::AddDeviceGroup { group } => Some(device_group(group)?.pos),
        Op::AddDeviceGroupDevice { group, device } => {
            device_group(group)?.devices.get(device).copied()
        }
        Op::AddTargetGroup { group, tgroup } => {
            Some(device_group(group)?.target_groups.get(tgroup)?.pos)
        }
        Op::AddTargetGroupTarget {
            group,
            tgroup,
            target,
        } => {
            let tgroup = device_group(group)?.target_groups.get(tgroup)?;
            Some(tgroup.targets.get(target)?.pos)
        }
        _ => None,
    }
}

fn value_at(attrs: &Attrs, name: &str, value: &str) -> Option<Pos> {
    let values = attrs.set.get(name)?;
    let exact = values.get(value).or_else(|| values.values().next());
    exact.copied()
}

fn target<'a>(config: &'a Config, tgt: &Tgt) -> Option<&'a Target> {
    config.drivers.get(&tgt.driver)?.targets.get(&tgt.target)
}

fn group_of<'a>(config: &'a Config, tgt: &Tgt, group: &str) -> Option<&'a Group> {
    target(config, tgt)?.groups.get(group)
}

fn lun_of<'a>(config: &'a Config, tgt: &Tgt, group: Option<&str>, lun: &str) -> Option<&'a LunDef> {
    let luns = match group {
        Some(group) => &group_of(config, tgt, group)?.luns,
        None => &target(config, tgt)?.luns,
    };
    luns.get(&lun.parse().ok()?)
}

fn attrs_of<'a>(object: &Object, config: &'a Config) -> Option<&'a Attrs> {
    let device_group = |name: &str| config.device_groups.get(name);
    Some(match object {
        Object::Scst => &config.attrs,
        Object::Alua => &config.alua,
        Object::Handler(h) => &config.handlers.get(h)?.attrs,
        Object::Device(d) => {
            let leaf = config.handlers.values().find_map(|h| h.devices.get(d))?;
            &leaf.attrs
        }
        Object::Driver(d) => &config.drivers.get(d)?.attrs,
        Object::Target(tgt) => &target(config, tgt)?.attrs,
        Object::Group(tgt, g) => &group_of(config, tgt, g)?.attrs,
        Object::Lun(tgt, group, lun) => &lun_of(config, tgt, group.as_deref(), lun)?.attrs,
        Object::Initiator(tgt, g, i) => &group_of(config, tgt, g)?.initiators.get(i)?.attrs,
        Object::DeviceGroup(g) => &device_group(g)?.attrs,
        Object::TargetGroup(g, tg) => &device_group(g)?.target_groups.get(tg)?.attrs,
        Object::TargetGroupTarget(g, tg, t) => {
            let tgroup = device_group(g)?.target_groups.get(tg)?;
            &tgroup.targets.get(t)?.attrs
        }
    })
}
