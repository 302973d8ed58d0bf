//! The operations on a management tree: what each is called, what it stores and where, and why it failed.

use std::fmt::Write as _;
use std::io::Write;

use kshim::error::{Error, Result, code};
use kshim::kobject::tree::TreeOps;
use kshim::time::delay::msleep;

use super::access::{MGMT, absolute, join, read_text, store};
use super::diagnose::lun_params_failure;
use super::failure::Failure;
use super::live::luns_of;
use super::object::{Object, Tgt};

/// How long the sessions of a target that is removed may take to end, in milliseconds.
const SESSIONS_WAIT_MS: u32 = 300_000;

/// How often it is looked whether they have ended, in milliseconds.
const SESSIONS_POLL_MS: u32 = 100;

/// Attributes with values, as an operation takes them.
pub(crate) type Params = Vec<(String, String)>;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    OpenDevice {
        handler: String,
        device: String,
        params: Params,
    },
    CloseDevice {
        handler: String,
        device: String,
    },
    SetAttr {
        object: Object,
        attr: String,
        value: String,
    },
    AddDriverAttr {
        driver: String,
        attr: String,
        value: String,
    },
    RemoveDriverAttr {
        driver: String,
        attr: String,
        value: String,
    },
    AddTargetAttr {
        tgt: Tgt,
        attr: String,
        value: String,
    },
    RemoveTargetAttr {
        tgt: Tgt,
        attr: String,
        value: String,
    },
    AddTarget {
        tgt: Tgt,
        params: Params,
    },
    RemoveTarget {
        tgt: Tgt,
    },
    AddGroup {
        tgt: Tgt,
        group: String,
    },
    RemoveGroup {
        tgt: Tgt,
        group: String,
    },
    AddInitiator {
        tgt: Tgt,
        group: String,
        initiator: String,
    },
    RemoveInitiator {
        tgt: Tgt,
        group: String,
        initiator: String,
    },
    MoveInitiator {
        tgt: Tgt,
        group: String,
        initiator: String,
        to: String,
    },
    ClearInitiators {
        tgt: Tgt,
        group: String,
    },
    AddLun {
        tgt: Tgt,
        group: Option<String>,
        lun: String,
        device: String,
        params: Params,
    },
    RemoveLun {
        tgt: Tgt,
        group: Option<String>,
        lun: String,
    },
    ReplaceLun {
        tgt: Tgt,
        group: Option<String>,
        lun: String,
        device: String,
        params: Params,
    },
    ClearLuns {
        tgt: Tgt,
        group: Option<String>,
    },
    AddDeviceGroup {
        group: String,
    },
    RemoveDeviceGroup {
        group: String,
    },
    AddDeviceGroupDevice {
        group: String,
        device: String,
    },
    RemoveDeviceGroupDevice {
        group: String,
        device: String,
    },
    AddTargetGroup {
        group: String,
        tgroup: String,
    },
    RemoveTargetGroup {
        group: String,
        tgroup: String,
    },
    AddTargetGroupTarget {
        group: String,
        tgroup: String,
        target: String,
    },
    RemoveTargetGroupTarget {
        group: String,
        tgroup: String,
        target: String,
    },
}

/// An operation that did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// What it means.
    pub(crate) failure: Failure,
    /// What the store answered.
    pub(crate) errno: Error,
}

/// Whether stores are made, or only shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stores {
    /// They are made.
    #[default]
    Make,
    /// They are shown (`-debug`).
    Show,
}

/// Parameters as the files of commands take them. `cluster_mode` needs the identity of the device and comes last.
fn params_text(params: &Params) -> String {
    let mut out = String::new();
    let (last, first): (Vec<_>, Vec<_>) =
        params.iter().partition(|(name, _)| name == "cluster_mode");
    for (name, value) in first.iter().chain(&last) {
        // Writing to a string does not fail.
        let _ = write!(out, "{name}={value};");
    }
    out
}

/// ` driver/target 'd/t'` or ` driver/target/group 'd/t/g'`.
fn of_target(tgt: &Tgt, group: Option<&str>) -> String {
    let what = if group.is_some() {
        "driver/target/group"
    } else {
        "driver/target"
    };
    format!("{what} '{}'", tgt.slashed(group))
}

impl Op {
    /// What it does, as it is told while it is done.
    pub(crate) fn describe(&self) -> String {
        match self {
            Op::OpenDevice {
                handler, device, ..
            } => {
                format!("Opening device '{device}' using handler '{handler}'")
            }
            Op::CloseDevice { handler, device } => {
                format!("Closing device '{device}' using handler '{handler}'")
            }
            Op::SetAttr {
                object,
                attr,
                value,
            } => object.setting(attr, value),
            Op::AddDriverAttr { .. }
            | Op::RemoveDriverAttr { .. }
            | Op::AddTargetAttr { .. }
            | Op::RemoveTargetAttr { .. } => self.describe_dynamic(),
            Op::AddTarget { tgt, .. } => {
                format!(
                    "Creating target '{}' for driver '{}'",
                    tgt.target, tgt.driver
                )
            }
            Op::RemoveTarget { tgt } => {
                format!(
                    "Removing virtual target '{}' from driver '{}'",
                    tgt.target, tgt.driver
                )
            }
            Op::AddGroup { tgt, group } => {
                format!("Adding new group '{group}' to {}", of_target(tgt, None))
            }
            Op::RemoveGroup { tgt, group } => {
                format!("Removing group '{group}' from {}", of_target(tgt, None))
            }
            Op::AddInitiator {
                tgt,
                group,
                initiator,
            } => {
                format!(
                    "Adding new initiator '{initiator}' to {}",
                    of_target(tgt, Some(group))
                )
            }
            Op::RemoveInitiator {
                tgt,
                group,
                initiator,
            } => {
                format!(
                    "Removing initiator '{initiator}' from {}",
                    of_target(tgt, Some(group))
                )
            }
            Op::MoveInitiator {
                group,
                initiator,
                to,
                ..
            } => {
                format!("Moving initiator '{initiator}' from group '{group}' to group '{to}'")
            }
            Op::ClearInitiators { tgt, group } => {
                format!("Removing all initiators {}", of_target(tgt, Some(group)))
            }
            Op::AddLun { .. }
            | Op::RemoveLun { .. }
            | Op::ReplaceLun { .. }
            | Op::ClearLuns { .. } => self.describe_lun(),
            _ => self.describe_group(),
        }
    }

    fn describe_dynamic(&self) -> String {
        let with = |attr: &str, value: &str| format!("attribute '{attr}' with value '{value}' for");
        match self {
            Op::AddDriverAttr {
                driver,
                attr,
                value,
            } => {
                format!("Adding driver {} driver '{driver}'", with(attr, value))
            }
            Op::RemoveDriverAttr {
                driver,
                attr,
                value,
            } => {
                format!("Removing dynamic {} driver '{driver}'", with(attr, value))
            }
            Op::AddTargetAttr { tgt, attr, value } => {
                format!(
                    "Adding target {} {}",
                    with(attr, value),
                    of_target(tgt, None)
                )
            }
            Op::RemoveTargetAttr { tgt, attr, value } => {
                format!(
                    "Removing dynamic {} {}",
                    with(attr, value),
                    of_target(tgt, None)
                )
            }
            _ => String::new(),
        }
    }

    fn describe_lun(&self) -> String {
        match self {
            Op::AddLun {
                tgt,
                group,
                lun,
                device,
                ..
            } => {
                let of = of_target(tgt, group.as_deref());
                format!("Adding device '{device}' at LUN {lun} to {of}")
            }
            Op::RemoveLun { tgt, group, lun } => {
                format!(
                    "Removing LUN {lun} from {}",
                    of_target(tgt, group.as_deref())
                )
            }
            Op::ReplaceLun {
                tgt,
                group,
                lun,
                device,
                ..
            } => {
                let of = tgt.slashed(Some(group.as_deref().unwrap_or_default()));
                format!(
                    "Replacing device at LUN {lun} with device '{device}' in driver/target/group '{of}'"
                )
            }
            Op::ClearLuns { tgt, group } => {
                format!(
                    "Removing all LUNs from {}",
                    of_target(tgt, group.as_deref())
                )
            }
            _ => String::new(),
        }
    }

    fn describe_group(&self) -> String {
        match self {
            Op::AddDeviceGroup { group } => format!("Adding new device group '{group}'"),
            Op::RemoveDeviceGroup { group } => format!("Removing device group '{group}'"),
            Op::AddDeviceGroupDevice { group, device } => {
                format!("Adding new device group/device '{group}/{device}'")
            }
            Op::RemoveDeviceGroupDevice { group, device } => {
                format!("Removing device '{device}' from target group '{group}'")
            }
            Op::AddTargetGroup { group, tgroup } => {
                format!("Adding new target group '{tgroup}' to device group '{group}'")
            }
            Op::RemoveTargetGroup { group, tgroup } => {
                format!("Removing target group '{tgroup}' from device group '{group}'")
            }
            Op::AddTargetGroupTarget {
                group,
                tgroup,
                target,
            } => {
                format!(
                    "Adding new target group/target '{tgroup}/{target}' to device group '{group}'"
                )
            }
            Op::RemoveTargetGroupTarget {
                group,
                tgroup,
                target,
            } => {
                format!(
                    "Removing target group/target '{tgroup}/{target}' from device group '{group}'"
                )
            }
            _ => String::new(),
        }
    }

    /// What is stored, and where.
    pub(crate) fn command(&self) -> (String, String) {
        let (dir, mut command) = match self {
            Op::SetAttr {
                object,
                attr,
                value,
            } => {
                // A store of nothing would not be one.
                let end = if object.line_feed() || value.is_empty() {
                    "\n"
                } else {
                    ""
                };
                return (join(&object.dir(), attr), format!("{value}{end}"));
            }
            Op::OpenDevice {
                handler,
                device,
                params,
            } => (
                format!("handlers/{handler}"),
                format!("add_device {device} {}", params_text(params)),
            ),
            Op::CloseDevice { handler, device } => (
                format!("handlers/{handler}"),
                format!("del_device {device}"),
            ),
            Op::AddDriverAttr {
                driver,
                attr,
                value,
            } => (
                format!("targets/{driver}"),
                format!("add_attribute {attr} {value}"),
            ),
            Op::RemoveDriverAttr {
                driver,
                attr,
                value,
            } => (
                format!("targets/{driver}"),
                format!("del_attribute {attr} {value}"),
            ),
            Op::AddTargetAttr { tgt, attr, value } => (
                format!("targets/{}", tgt.driver),
                format!("add_target_attribute {} {attr} {value}", tgt.target),
            ),
            Op::RemoveTargetAttr { tgt, attr, value } => (
                format!("targets/{}", tgt.driver),
                format!("del_target_attribute {} {attr} {value}", tgt.target),
            ),
            Op::AddTarget { tgt, params } => (
                format!("targets/{}", tgt.driver),
                format!("add_target {} {}", tgt.target, params_text(params)),
            ),
            Op::RemoveTarget { tgt } => (
                format!("targets/{}", tgt.driver),
                format!("del_target {}", tgt.target),
            ),
            Op::AddGroup { .. }
            | Op::RemoveGroup { .. }
            | Op::AddInitiator { .. }
            | Op::RemoveInitiator { .. }
            | Op::MoveInitiator { .. }
            | Op::ClearInitiators { .. } => self.group_command(),
            Op::AddLun { .. }
            | Op::RemoveLun { .. }
            | Op::ReplaceLun { .. }
            | Op::ClearLuns { .. } => self.lun_command(),
            _ => self.device_group_command(),
        };
        command.truncate(command.trim_end().len());
        (join(&dir, MGMT), command)
    }

    fn group_command(&self) -> (String, String) {
        let groups = |tgt: &Tgt| format!("{}/ini_groups", tgt.dir());
        let initiators = |tgt: &Tgt, group: &str| format!("{}/initiators", tgt.group_dir(group));
        match self {
            Op::AddGroup { tgt, group } => (groups(tgt), format!("create {group}")),
            Op::RemoveGroup { tgt, group } => (groups(tgt), format!("del {group}")),
            Op::AddInitiator {
                tgt,
                group,
                initiator,
            } => (initiators(tgt, group), format!("add {initiator}")),
            Op::RemoveInitiator {
                tgt,
                group,
                initiator,
            } => (initiators(tgt, group), format!("del {initiator}")),
            Op::MoveInitiator {
                tgt,
                group,
                initiator,
                to,
            } => (initiators(tgt, group), format!("move {initiator} {to}")),
            Op::ClearInitiators { tgt, group } => (initiators(tgt, group), "clear".to_owned()),
            _ => Default::default(),
        }
    }

    fn lun_command(&self) -> (String, String) {
        match self {
            Op::AddLun {
                tgt,
                group,
                lun,
                device,
                params,
            } => (
                tgt.luns_dir(group.as_deref()),
                format!("add {device} {lun} {}", params_text(params)),
            ),
            Op::RemoveLun { tgt, group, lun } => {
                (tgt.luns_dir(group.as_deref()), format!("del {lun}"))
            }
            Op::ReplaceLun {
                tgt,
                group,
                lun,
                device,
                params,
            } => (
                tgt.luns_dir(group.as_deref()),
                format!("replace {device} {lun} {}", params_text(params)),
            ),
            Op::ClearLuns { tgt, group } => (tgt.luns_dir(group.as_deref()), "clear".to_owned()),
            _ => Default::default(),
        }
    }

    fn device_group_command(&self) -> (String, String) {
        let dir = |group: &str| format!("device_groups/{group}");
        match self {
            Op::AddDeviceGroup { group } => ("device_groups".to_owned(), format!("create {group}")),
            Op::RemoveDeviceGroup { group } => ("device_groups".to_owned(), format!("del {group}")),
            Op::AddDeviceGroupDevice { group, device } => {
                (join(&dir(group), "devices"), format!("add {device}"))
            }
            Op::RemoveDeviceGroupDevice { group, device } => {
                (join(&dir(group), "devices"), format!("del {device}"))
            }
            Op::AddTargetGroup { group, tgroup } => {
                (join(&dir(group), "target_groups"), format!("add {tgroup}"))
            }
            Op::RemoveTargetGroup { group, tgroup } => {
                (join(&dir(group), "target_groups"), format!("del {tgroup}"))
            }
            Op::AddTargetGroupTarget {
                group,
                tgroup,
                target,
            } => (
                format!("{}/target_groups/{tgroup}", dir(group)),
                format!("add {target}"),
            ),
            Op::RemoveTargetGroupTarget {
                group,
                tgroup,
                target,
            } => (
                format!("{}/target_groups/{tgroup}", dir(group)),
                format!("del {target}"),
            ),
            _ => Default::default(),
        }
    }

    /// True when SCST's scstadmin gives up after a failure of it instead of warning.
    pub(crate) fn is_fatal(&self) -> bool {
        !matches!(self, Op::SetAttr { object, .. } if !matches!(object, Object::Target(_)))
    }

    /// Does it. `out` gets what would be stored when stores are only shown.
    ///
    /// Context: may sleep.
    pub(crate) fn run(
        &self,
        tree: &dyn TreeOps,
        stores: Stores,
        out: &mut dyn Write,
    ) -> Result<(), Failed> {
        if let Op::ReplaceLun {
            tgt,
            group,
            lun,
            device,
            params,
        } = self
        {
            check_replace(tree, tgt, group.as_deref(), lun, device, params)?;
        }
        let (path, value) = self.command();
        if stores == Stores::Show {
            // A reader that has gone away is no reason to fail.
            let _ = writeln!(
                out,
                "DBG({}): {} -> {}",
                std::process::id(),
                absolute(&path),
                value.trim_end()
            );
            return Ok(());
        }
        if let Op::RemoveTarget { tgt } = self {
            close_sessions(tree, tgt)?;
        }
        let mut stored = store(tree, &path, &value);
        if let (Err(code::EBUSY), Op::RemoveGroup { tgt, group }) = (&stored, self) {
            // DIFFERS: SCST's scstadmin gives up while initiators of the group are logged in. Without their names they go over
            // to another group.
            let initiators = format!("{}/initiators/{MGMT}", tgt.group_dir(group));
            stored = store(tree, &initiators, "clear").and_then(|()| store(tree, &path, &value));
        }
        stored.map_err(|errno| Failed {
            failure: self.diagnose(tree, errno),
            errno,
        })
    }
}

/// A replacement is checked before it is tried.
fn check_replace(
    tree: &dyn TreeOps,
    tgt: &Tgt,
    group: Option<&str>,
    lun: &str,
    device: &str,
    params: &Params,
) -> Result<(), Failed> {
    let object = Object::Lun(tgt.clone(), group.map(str::to_owned), lun.to_owned());
    let missing = object.missing(tree).map(|m| m.failure);
    let failure = missing.or_else(|| lun_params_failure(tree, tgt, group, device, params));
    let same = || {
        let luns = luns_of(tree, &tgt.luns_dir(group));
        let now = lun.parse().ok().and_then(|n: u64| luns.get(&n));
        now.is_some_and(|d| d == device)
            .then_some(Failure::LUN_DEV_EXISTS)
    };
    match failure.or_else(same) {
        None => Ok(()),
        Some(failure) => Err(Failed {
            failure,
            errno: code::EINVAL,
        }),
    }
}

/// Disables a target and closes the sessions that can be closed.
fn close_sessions(tree: &dyn TreeOps, tgt: &Tgt) -> Result<(), Failed> {
    // Targets of some drivers cannot be disabled.
    let _ = store(tree, &join(&tgt.dir(), "enabled"), "0");
    let dir = join(&tgt.dir(), "sessions");
    let can_close = |name: &String| tree.stat(&format!("{dir}/{name}/force_close")).is_ok();
    let sessions = || super::access::subdirs(tree, &dir).unwrap_or_default();
    let closing: Vec<String> = sessions().into_iter().filter(can_close).collect();
    for name in &closing {
        let path = format!("{dir}/{name}/force_close");
        if let Err(errno) = store(tree, &path, "1")
            && tree.stat(&path).is_ok()
        {
            let failure = Failure::SESSION_CLOSE;
            return Err(Failed { failure, errno });
        }
    }
    let mut waited_ms = 0;
    while sessions().iter().any(|s| closing.contains(s)) {
        if waited_ms >= SESSIONS_WAIT_MS {
            return Err(Failed {
                failure: Failure::TGT_BUSY,
                errno: code::EBUSY,
            });
        }
        msleep(SESSIONS_POLL_MS);
        waited_ms += SESSIONS_POLL_MS;
    }
    Ok(())
}

/// The values of one attribute of an object right now.
///
/// Context: may sleep.
pub(crate) fn value_is(tree: &dyn TreeOps, object: &Object, attr: &str, value: &str) -> bool {
    let text = read_text(tree, &join(&object.dir(), attr));
    text.is_ok_and(|t| same_value(t.split('\n').next().unwrap_or_default(), value))
}

/// Whether two values mean the same: by their text, or as numbers, decimal or hexadecimal.
pub(crate) fn same_value(a: &str, b: &str) -> bool {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    a == b || matches!((number(a), number(b)), (Some(x), Some(y)) if x == y)
}
