//! Why an operation failed: what is missing, what is there already, what the tree does not take.

use kshim::error::{Error, code};
use kshim::kobject::tree::{EntryKind, TreeOps};

use super::access::join;
use super::attr::{Listed, listed, makes_targets};
use super::failure::Failure;
use super::live::devices_of;
use super::object::{self, Object, Tgt};
use super::op::{Op, Params};

impl Op {
    /// Why the store failed: what is missing, what is there already, what the tree does not take.
    pub(super) fn diagnose(&self, tree: &dyn TreeOps, errno: Error) -> Failure {
        match self {
            Op::SetAttr { object, attr, .. } => set_failure(tree, object, attr),
            Op::OpenDevice {
                handler,
                device,
                params,
            } => open_failure(tree, handler, device, params, errno),
            Op::CloseDevice { handler, device } => object::handler(tree, handler)
                .map(|m| m.failure)
                .or_else(|| (!handler_has(tree, handler, device)).then_some(Failure::DEV_NONE))
                .unwrap_or(Failure::FATAL),
            Op::AddDriverAttr { driver, attr, .. } | Op::RemoveDriverAttr { driver, attr, .. } => {
                self.driver_attr_failure(tree, driver, attr)
            }
            Op::AddTargetAttr { tgt, attr, .. } | Op::RemoveTargetAttr { tgt, attr, .. } => {
                self.target_attr_failure(tree, tgt, attr)
            }
            Op::AddTarget { tgt, params } => add_target_failure(tree, tgt, params),
            Op::RemoveTarget { tgt } => object::target(tree, tgt)
                .map(|m| m.failure)
                .or_else(|| (!makes_targets(tree, &tgt.driver)).then_some(Failure::DRV_NOT_VIRTUAL))
                .unwrap_or(Failure::TGT_REM),
            Op::AddGroup { .. }
            | Op::RemoveGroup { .. }
            | Op::AddInitiator { .. }
            | Op::RemoveInitiator { .. }
            | Op::MoveInitiator { .. }
            | Op::ClearInitiators { .. } => self.group_failure(tree),
            Op::AddLun { .. }
            | Op::RemoveLun { .. }
            | Op::ReplaceLun { .. }
            | Op::ClearLuns { .. } => self.lun_failure(tree),
            _ => self.device_group_failure(tree),
        }
    }

    fn driver_attr_failure(&self, tree: &dyn TreeOps, driver: &str, attr: &str) -> Failure {
        if let Some(missing) = object::driver(tree, driver) {
            return missing.failure;
        }
        if !makes_targets(tree, driver) {
            return Failure::DRV_NOT_VIRTUAL;
        }
        if !listed(tree, &format!("targets/{driver}"), Listed::DriverDynamic).contains(attr) {
            return Failure::DRV_BAD_ATTR;
        }
        match self {
            Op::AddDriverAttr { .. } => Failure::DRV_ADD_ATTR,
            _ => Failure::DRV_REM_ATTR,
        }
    }

    fn target_attr_failure(&self, tree: &dyn TreeOps, tgt: &Tgt, attr: &str) -> Failure {
        if let Some(missing) = object::target(tree, tgt) {
            return missing.failure;
        }
        if !makes_targets(tree, &tgt.driver) {
            return Failure::DRV_NOT_VIRTUAL;
        }
        let dir = format!("targets/{}", tgt.driver);
        if !listed(tree, &dir, Listed::TargetDynamic).contains(attr) {
            return Failure::TGT_BAD_ATTR;
        }
        match self {
            Op::AddTargetAttr { .. } => Failure::TGT_ADD_ATTR,
            _ => Failure::TGT_REM_ATTR,
        }
    }

    fn group_failure(&self, tree: &dyn TreeOps) -> Failure {
        let failure = match self {
            Op::AddGroup { tgt, group } => {
                let missing = object::target(tree, tgt).map(|m| m.failure);
                let there = object::group(tree, tgt, group).is_none();
                missing
                    .or(there.then_some(Failure::GRP_EXISTS))
                    .unwrap_or(Failure::GRP_ADD)
            }
            Op::RemoveGroup { tgt, group } => {
                object::group(tree, tgt, group).map_or(Failure::GRP_REM, |m| m.failure)
            }
            Op::AddInitiator {
                tgt,
                group,
                initiator,
            } => {
                let missing = object::group(tree, tgt, group).map(|m| m.failure);
                let there = object::initiator(tree, tgt, group, initiator).is_none();
                missing
                    .or(there.then_some(Failure::INI_EXISTS))
                    .unwrap_or(Failure::INI_ADD)
            }
            Op::RemoveInitiator {
                tgt,
                group,
                initiator,
            } => object::group(tree, tgt, group)
                .or_else(|| object::initiator(tree, tgt, group, initiator))
                .map_or(Failure::INI_REM, |m| m.failure),
            Op::MoveInitiator {
                tgt,
                group,
                initiator,
                to,
            } => {
                let missing = object::group(tree, tgt, group)
                    .or_else(|| object::group(tree, tgt, to))
                    .or_else(|| object::initiator(tree, tgt, group, initiator));
                let there = object::initiator(tree, tgt, to, initiator).is_none();
                missing
                    .map(|m| m.failure)
                    .or(there.then_some(Failure::INI_EXISTS))
                    .unwrap_or(Failure::INI_MOVE)
            }
            Op::ClearInitiators { tgt, group } => {
                object::group(tree, tgt, group).map_or(Failure::INI_CLEAR, |m| m.failure)
            }
            _ => Failure::FATAL,
        };
        debug_assert!(failure != Failure::BAD_CALL);
        failure
    }

    fn lun_failure(&self, tree: &dyn TreeOps) -> Failure {
        match self {
            Op::AddLun {
                tgt,
                group,
                lun,
                device,
                params,
            } => {
                let group = group.as_deref();
                if let Some(missing) = object::target_or_group(tree, tgt, group) {
                    return missing.failure;
                }
                let (exists, failed) = match group {
                    Some(_) => (Failure::GRP_LUN_EXISTS, Failure::GRP_ADD_LUN),
                    None => (Failure::TGT_LUN_EXISTS, Failure::TGT_ADD_LUN),
                };
                if object::has_lun(tree, tgt, group, lun) {
                    return exists;
                }
                lun_params_failure(tree, tgt, group, device, params).unwrap_or(failed)
            }
            Op::RemoveLun { tgt, group, lun } => {
                let failed = match group {
                    Some(_) => Failure::GRP_REM_LUN,
                    None => Failure::TGT_ADD_LUN,
                };
                let object = Object::Lun(tgt.clone(), group.clone(), lun.clone());
                object.missing(tree).map_or(failed, |m| m.failure)
            }
            Op::ClearLuns { tgt, group } => {
                let failed = match group {
                    Some(_) => Failure::GRP_CLR_LUN,
                    None => Failure::TGT_CLR_LUN,
                };
                object::target_or_group(tree, tgt, group.as_deref()).map_or(failed, |m| m.failure)
            }
            _ => Failure::LUN_REPLACE,
        }
    }

    fn device_group_failure(&self, tree: &dyn TreeOps) -> Failure {
        match self {
            Op::AddDeviceGroup { group } => match object::device_group(tree, group) {
                None => Failure::DG_EXISTS,
                Some(_) => Failure::DG_ADD,
            },
            Op::RemoveDeviceGroup { group } => {
                object::device_group(tree, group).map_or(Failure::DG_REM, |m| m.failure)
            }
            Op::AddDeviceGroupDevice { group, device } => {
                add_dg_device_failure(tree, group, device)
            }
            Op::RemoveDeviceGroupDevice { group, device } => {
                let missing =
                    object::device_group(tree, group).or_else(|| object::device(tree, device));
                let there = dg_has_device(tree, group, device);
                missing
                    .map(|m| m.failure)
                    .or((!there).then_some(Failure::DG_NO_DEV))
                    .unwrap_or(Failure::DG_REM_DEV)
            }
            Op::AddTargetGroup { group, tgroup } => {
                let missing = object::device_group(tree, group).map(|m| m.failure);
                let there = object::target_group(tree, group, tgroup).is_none();
                missing
                    .or(there.then_some(Failure::TG_EXISTS))
                    .unwrap_or(Failure::DG_ADD_TG)
            }
            Op::RemoveTargetGroup { group, tgroup } => object::device_group(tree, group)
                .or_else(|| object::target_group(tree, group, tgroup))
                .map_or(Failure::DG_REM_TG, |m| m.failure),
            Op::AddTargetGroupTarget {
                group,
                tgroup,
                target,
            } => {
                let missing = object::device_group(tree, group)
                    .or_else(|| object::target_group(tree, group, tgroup))
                    .map(|m| m.failure);
                let there = object::tg_target(tree, group, tgroup, target).is_none();
                missing
                    .or(there.then_some(Failure::TGT_GRP_EXISTS))
                    .unwrap_or(Failure::TGT_GRP_ADD)
            }
            Op::RemoveTargetGroupTarget {
                group,
                tgroup,
                target,
            } => object::device_group(tree, group)
                .or_else(|| object::target_group(tree, group, tgroup))
                .or_else(|| object::tg_target(tree, group, tgroup, target))
                .map_or(Failure::TGT_GRP_REM, |m| m.failure),
            _ => Failure::FATAL,
        }
    }
}

fn handler_has(tree: &dyn TreeOps, handler: &str, device: &str) -> bool {
    devices_of(tree, handler)
        .unwrap_or_default()
        .iter()
        .any(|d| d == device)
}

fn dg_has_device(tree: &dyn TreeOps, group: &str, device: &str) -> bool {
    tree.stat(&format!("device_groups/{group}/devices/{device}"))
        .is_ok_and(|e| e.kind != EntryKind::File)
}

fn set_failure(tree: &dyn TreeOps, object: &Object, attr: &str) -> Failure {
    const OWNER_WRITE: u16 = 0o200;
    if let Some(missing) = object.missing(tree) {
        return missing.failure;
    }
    let [bad, fixed, failed] = object.set_failures();
    match tree.stat(&join(&object.dir(), attr)) {
        Ok(entry) if entry.kind == EntryKind::File => {
            if entry.mode & OWNER_WRITE == 0 {
                fixed
            } else {
                failed
            }
        }
        _ => bad,
    }
}

fn open_failure(
    tree: &dyn TreeOps,
    handler: &str,
    device: &str,
    params: &Params,
    errno: Error,
) -> Failure {
    if let Some(missing) = object::handler(tree, handler) {
        return missing.failure;
    }
    let known = listed(tree, &format!("handlers/{handler}"), Listed::Create);
    if params.iter().any(|(name, _)| !known.contains(name)) {
        return Failure::DEV_BAD_ATTR;
    }
    if handler_has(tree, handler, device) {
        return Failure::DEV_EXISTS;
    }
    if errno == code::EINVAL {
        return Failure::DEV_OPEN;
    }
    Failure::FATAL
}

fn add_target_failure(tree: &dyn TreeOps, tgt: &Tgt, params: &Params) -> Failure {
    if let Some(missing) = object::driver(tree, &tgt.driver) {
        return missing.failure;
    }
    if object::target(tree, tgt).is_none() {
        return Failure::TGT_EXISTS;
    }
    if !makes_targets(tree, &tgt.driver) {
        return Failure::DRV_NOT_VIRTUAL;
    }
    let known = listed(tree, &format!("targets/{}", tgt.driver), Listed::Create);
    if params.iter().any(|(name, _)| !known.contains(name)) {
        return Failure::TGT_BAD_ATTR;
    }
    Failure::TGT_ADD
}

fn add_dg_device_failure(tree: &dyn TreeOps, group: &str, device: &str) -> Failure {
    let missing = object::device_group(tree, group).or_else(|| object::device(tree, device));
    if let Some(missing) = missing {
        return missing.failure;
    }
    if dg_has_device(tree, group, device) {
        return Failure::DG_DEV_EXISTS;
    }
    let groups = super::access::subdirs(tree, "device_groups").unwrap_or_default();
    if groups.iter().any(|g| dg_has_device(tree, g, device)) {
        return Failure::DG_DEV_OTHER;
    }
    Failure::DG_ADD_DEV
}

pub(super) fn lun_params_failure(
    tree: &dyn TreeOps,
    tgt: &Tgt,
    group: Option<&str>,
    device: &str,
    params: &Params,
) -> Option<Failure> {
    if let Some(missing) = object::device(tree, device) {
        return Some(missing.failure);
    }
    let known = listed(tree, &tgt.luns_dir(group), Listed::Create);
    let bad = params.iter().any(|(name, _)| !known.contains(name));
    bad.then_some(Failure::LUN_BAD_ATTR)
}
