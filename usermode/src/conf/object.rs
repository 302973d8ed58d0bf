//! The things of a management tree that have attributes: where they are, how messages name them, which of them is missing.

use super::access::{is_dir, join, subdirs};
use super::failure::Failure;
use kshim::kobject::tree::{EntryKind, TreeOps};

/// Something with attributes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// SCST itself.
    Scst,
    /// A device handler.
    Handler(String),
    /// A device.
    Device(String),
    /// A target driver.
    Driver(String),
    /// A target.
    Target(Tgt),
    /// An initiator group.
    Group(Tgt, String),
    /// A LUN of a target or of a group.
    Lun(Tgt, Option<String>, String),
    /// An initiator in a group.
    Initiator(Tgt, String, String),
    /// Device groups as a whole.
    Alua,
    /// A device group.
    DeviceGroup(String),
    /// A target group of a device group.
    TargetGroup(String, String),
    /// A target in a target group.
    TargetGroupTarget(String, String, String),
}

/// A target by the names of its driver and its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tgt {
    /// The driver.
    pub driver: String,
    /// The target.
    pub target: String,
}

impl Tgt {
    /// Names a target.
    pub fn new(driver: &str, target: &str) -> Tgt {
        Tgt {
            driver: driver.to_owned(),
            target: target.to_owned(),
        }
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> String {
        format!("targets/{}/{}", self.driver, self.target)
    }

    /// The directory of the LUNs of the target or of one of its groups.
    pub(crate) fn luns_dir(&self, group: Option<&str>) -> String {
        match group {
            Some(group) => format!("{}/luns", self.group_dir(group)),
            None => format!("{}/luns", self.dir()),
        }
    }

    /// The directory of a group.
    pub(crate) fn group_dir(&self, group: &str) -> String {
        format!("{}/ini_groups/{group}", self.dir())
    }

    /// `driver/target` or `driver/target/group`.
    pub(crate) fn slashed(&self, group: Option<&str>) -> String {
        match group {
            Some(group) => format!("{}/{}/{group}", self.driver, self.target),
            None => format!("{}/{}", self.driver, self.target),
        }
    }
}

/// Something that an operation needs and that is not there.
pub(crate) struct Missing {
    /// The failure of an operation on it.
    pub(crate) failure: Failure,
    /// What a query says about it.
    pub(crate) text: String,
}

impl Missing {
    fn new(failure: Failure, text: String) -> Option<Missing> {
        Some(Missing { failure, text })
    }
}

impl Object {
    /// Its directory, relative to the root of the tree.
    pub(crate) fn dir(&self) -> String {
        match self {
            Object::Scst => String::new(),
            Object::Handler(h) => format!("handlers/{h}"),
            Object::Device(d) => format!("devices/{d}"),
            Object::Driver(d) => format!("targets/{d}"),
            Object::Target(t) => t.dir(),
            Object::Group(t, g) => t.group_dir(g),
            Object::Lun(t, g, lun) => join(&t.luns_dir(g.as_deref()), lun),
            Object::Initiator(t, g, i) => format!("{}/initiators/{i}", t.group_dir(g)),
            Object::Alua => "device_groups".to_owned(),
            Object::DeviceGroup(g) => format!("device_groups/{g}"),
            Object::TargetGroup(g, tg) => format!("device_groups/{g}/target_groups/{tg}"),
            Object::TargetGroupTarget(g, tg, t) => {
                format!("device_groups/{g}/target_groups/{tg}/{t}")
            }
        }
    }

    /// What messages of the library call the query of its attributes.
    pub(crate) fn query_name(&self) -> &'static str {
        match self {
            Object::Scst => "scstAttributes",
            Object::Handler(_) => "handlerAttributes",
            Object::Device(_) => "deviceAttributes",
            Object::Driver(_) => "driverAttributes",
            Object::Target(_) => "targetAttributes",
            Object::Group(..) => "groupAttributes",
            Object::Lun(..) => "lunAttributes",
            Object::Initiator(..) => "initiatorAttributes",
            Object::Alua => "deviceGroupsAttributes",
            Object::DeviceGroup(_) => "deviceGroupAttributes",
            Object::TargetGroup(..) => "targetGroupAttributes",
            Object::TargetGroupTarget(..) => "targetGroupTargetAttributes",
        }
    }

    /// The first thing on the way to it that is not there, itself included.
    ///
    /// Context: may sleep.
    pub(crate) fn missing(&self, tree: &dyn TreeOps) -> Option<Missing> {
        match self {
            Object::Scst | Object::Alua => None,
            Object::Handler(h) => handler(tree, h),
            Object::Device(d) => device(tree, d),
            Object::Driver(d) => driver(tree, d),
            Object::Target(t) => target(tree, t),
            Object::Group(t, g) => group(tree, t, g),
            Object::Lun(t, g, lun) => lun_of(tree, t, g.as_deref(), lun),
            Object::Initiator(t, g, i) => group(tree, t, g).or_else(|| initiator(tree, t, g, i)),
            Object::DeviceGroup(g) => device_group(tree, g),
            Object::TargetGroup(g, tg) => {
                device_group(tree, g).or_else(|| target_group(tree, g, tg))
            }
            Object::TargetGroupTarget(g, tg, t) => device_group(tree, g)
                .or_else(|| target_group(tree, g, tg))
                .or_else(|| tg_target(tree, g, tg, t)),
        }
    }

    /// What is said about an attribute that cannot be set, without the leading tab and with the blank line.
    pub(crate) fn lacks(&self, attr: &str) -> String {
        let settable = "lacks the settable attribute";
        let what = match self {
            Object::Scst => format!("SCST {settable}"),
            Object::Handler(h) => format!("Handler '{h}' {settable}"),
            Object::Device(d) => format!("Device '{d}' {settable}"),
            Object::Driver(d) => format!("Driver '{d}' {settable}"),
            Object::Target(t) => format!("Driver/target '{}' {settable}", t.slashed(None)),
            Object::Group(t, g) => {
                format!("Driver/target/group '{}' {settable}", t.slashed(Some(g)))
            }
            Object::Lun(t, Some(g), lun) => {
                format!(
                    "Driver/target/group/LUN '{}/{lun}' {settable}",
                    t.slashed(Some(g))
                )
            }
            Object::Lun(t, None, lun) => {
                format!("Driver/target/LUN '{}/{lun}' {settable}", t.slashed(None))
            }
            Object::Initiator(t, g, i) => {
                format!(
                    "Driver/target/group/initiator '{}/{i}' {settable}",
                    t.slashed(Some(g))
                )
            }
            Object::Alua => "no settable ALUA attribute".to_owned(),
            Object::DeviceGroup(g) => format!("Device Group '{g}' {settable}"),
            Object::TargetGroup(g, tg) => format!("Target Group '{g}/{tg}' {settable}"),
            Object::TargetGroupTarget(g, tg, t) => format!("Target '{g}/{tg}/{t}' {settable}"),
        };
        format!("\t-> WARNING: {what} '{attr}', ignoring.\n\n")
    }

    /// How a problem names it.
    pub(crate) fn what(&self) -> String {
        match self {
            Object::Scst => "SCST".to_owned(),
            Object::Handler(h) => format!("handler '{h}'"),
            Object::Device(d) => format!("device '{d}'"),
            Object::Driver(d) => format!("driver '{d}'"),
            Object::Target(t) => format!("target '{}'", t.slashed(None)),
            Object::Group(t, g) => format!("group '{}'", t.slashed(Some(g))),
            Object::Lun(_, _, lun) => format!("LUN {lun}"),
            Object::Initiator(_, _, i) => format!("initiator '{i}'"),
            Object::Alua => "ALUA".to_owned(),
            Object::DeviceGroup(g) => format!("device group '{g}'"),
            Object::TargetGroup(g, tg) => format!("target group '{g}/{tg}'"),
            Object::TargetGroupTarget(g, tg, t) => format!("target '{g}/{tg}/{t}'"),
        }
    }

    /// What is said when an attribute is set.
    pub(crate) fn setting(&self, attr: &str, value: &str) -> String {
        let on = if value == "0" || value.is_empty() {
            "Disabling"
        } else {
            "Enabling"
        };
        let to = format!("attribute '{attr}' to value '{value}'");
        match self {
            Object::Scst => format!("Setting SCST {to}"),
            Object::Handler(h) => format!("Setting handler {to} for handler '{h}'"),
            Object::Device(d) => format!("Setting device {to} for device '{d}'"),
            Object::Driver(d) if attr == "enabled" => format!("{on} driver '{d}'"),
            Object::Driver(d) => format!("Setting driver {to} for driver '{d}'"),
            Object::Target(t) if attr == "enabled" => {
                format!("{on} driver/target '{}'", t.slashed(None))
            }
            Object::Target(t) => {
                format!(
                    "Setting target {to} for driver/target '{}'",
                    t.slashed(None)
                )
            }
            Object::Group(_, g) => format!("Setting group {to} for group '{g}'"),
            Object::Lun(t, Some(g), lun) => format!(
                "Setting LUN {to} for driver/target/group/LUN '{}/{lun}'",
                t.slashed(Some(g))
            ),
            Object::Lun(t, None, lun) => {
                format!(
                    "Setting LUN {to} for driver/target/LUN '{}/{lun}'",
                    t.slashed(None)
                )
            }
            Object::Initiator(t, g, i) => format!(
                "Setting initiator {to} for driver/target/group/initiator '{}/{i}'",
                t.slashed(Some(g))
            ),
            Object::Alua => format!("Setting ALUA {to}"),
            Object::DeviceGroup(g) => format!("Setting Device Group {to} for device group '{g}'"),
            Object::TargetGroup(g, tg) => {
                format!("Setting Target Group {to} for target group '{g}/{tg}'")
            }
            Object::TargetGroupTarget(g, tg, t) => {
                format!("Setting target {to} for target '{g}/{tg}/{t}'")
            }
        }
    }

    /// The failures of setting an attribute: there is none, it cannot be set, the store failed.
    pub(crate) fn set_failures(&self) -> [Failure; 3] {
        type F = Failure;
        match self {
            Object::Scst => [F::SCST_BAD_ATTR, F::SCST_STATIC, F::SCST_SET],
            Object::Handler(_) => [F::HND_BAD_ATTR, F::HND_STATIC, F::HND_SET],
            Object::Device(_) => [F::DEV_BAD_ATTR, F::DEV_STATIC, F::DEV_SET],
            Object::Driver(_) => [F::DRV_BAD_ATTR, F::DRV_STATIC, F::DRV_SET],
            Object::Target(_) => [F::TGT_BAD_ATTR, F::TGT_STATIC, F::TGT_SET],
            Object::Group(..) => [F::GRP_BAD_ATTR, F::GRP_STATIC, F::GRP_SET],
            Object::Lun(..) => [F::LUN_BAD_ATTR, F::LUN_STATIC, F::LUN_SET],
            Object::Initiator(..) => [F::INI_SET, F::INI_SET, F::INI_SET],
            Object::Alua => [F::ALUA_BAD_ATTR, F::ALUA_STATIC, F::ALUA_SET],
            Object::DeviceGroup(_) => [F::DG_BAD_ATTR, F::DG_STATIC, F::DG_SET],
            Object::TargetGroup(..) => [F::TG_BAD_ATTR, F::TG_STATIC, F::TG_SET],
            Object::TargetGroupTarget(..) => {
                [F::TGT_GRP_BAD_ATTR, F::TGT_GRP_STATIC, F::TGT_GRP_SET]
            }
        }
    }

    /// True where a value is stored with a line feed behind it.
    pub(crate) fn line_feed(&self) -> bool {
        !matches!(self, Object::Device(_) | Object::Target(_))
    }
}

/// `Some` when there is no such handler.
pub(crate) fn handler(tree: &dyn TreeOps, name: &str) -> Option<Missing> {
    if is_dir(tree, &format!("handlers/{name}")) {
        return None;
    }
    Missing::new(
        Failure::HND_NONE,
        format!("Handler '{name}' is not available"),
    )
}

/// `Some` when there is no such device.
pub(crate) fn device(tree: &dyn TreeOps, name: &str) -> Option<Missing> {
    if is_dir(tree, &format!("devices/{name}")) {
        return None;
    }
    Missing::new(Failure::DEV_NONE, format!("Device '{name}' is not open"))
}

/// `Some` when there is no such driver.
pub(crate) fn driver(tree: &dyn TreeOps, name: &str) -> Option<Missing> {
    if is_dir(tree, &format!("targets/{name}")) {
        return None;
    }
    Missing::new(
        Failure::DRV_NONE,
        format!("Driver '{name}' is not available"),
    )
}

/// `Some` when there is no such target, or not its driver.
pub(crate) fn target(tree: &dyn TreeOps, tgt: &Tgt) -> Option<Missing> {
    if let Some(missing) = driver(tree, &tgt.driver) {
        return Some(missing);
    }
    if is_dir(tree, &tgt.dir()) {
        return None;
    }
    Missing::new(
        Failure::TGT_NONE,
        format!("Target '{}' is not available", tgt.target),
    )
}

/// `Some` when there is no such group, or not its target.
pub(crate) fn group(tree: &dyn TreeOps, tgt: &Tgt, name: &str) -> Option<Missing> {
    if let Some(missing) = target(tree, tgt) {
        return Some(missing);
    }
    if is_dir(tree, &tgt.group_dir(name)) {
        return None;
    }
    Missing::new(Failure::GRP_NONE, format!("Group '{name}' does not exist"))
}

/// `Some` when a group that is named is missing, or else the target.
pub(crate) fn target_or_group(
    tree: &dyn TreeOps,
    tgt: &Tgt,
    name: Option<&str>,
) -> Option<Missing> {
    match name {
        Some(name) => group(tree, tgt, name),
        None => target(tree, tgt),
    }
}

fn lun_of(tree: &dyn TreeOps, tgt: &Tgt, group: Option<&str>, lun: &str) -> Option<Missing> {
    if let Some(missing) = target_or_group(tree, tgt, group) {
        return Some(missing);
    }
    if has_lun(tree, tgt, group, lun) {
        return None;
    }
    let failure = if group.is_some() {
        Failure::GRP_NO_LUN
    } else {
        Failure::TGT_NO_LUN
    };
    Missing::new(failure, format!("LUN '{lun}' does not exist"))
}

/// True when the target or group has this LUN.
pub(crate) fn has_lun(tree: &dyn TreeOps, tgt: &Tgt, group: Option<&str>, lun: &str) -> bool {
    let number = lun.parse::<u64>().map_or(lun.to_owned(), |n| n.to_string());
    is_dir(tree, &join(&tgt.luns_dir(group), &number))
}

/// `Some` when the group has no such initiator.
pub(crate) fn initiator(tree: &dyn TreeOps, tgt: &Tgt, group: &str, name: &str) -> Option<Missing> {
    let dir = format!("{}/initiators", tgt.group_dir(group));
    let names = tree.list(&dir).unwrap_or_default();
    if names
        .iter()
        .any(|e| e.name == name && e.kind == EntryKind::File)
    {
        return None;
    }
    Missing::new(
        Failure::INI_NONE,
        format!("Initiator '{name}' does not exist"),
    )
}

/// `Some` when there is no such device group.
pub(crate) fn device_group(tree: &dyn TreeOps, name: &str) -> Option<Missing> {
    if is_dir(tree, &format!("device_groups/{name}")) {
        return None;
    }
    Missing::new(
        Failure::DG_NONE,
        format!("Device group '{name}' does not exist"),
    )
}

/// `Some` when the device group has no such target group.
pub(crate) fn target_group(tree: &dyn TreeOps, group: &str, name: &str) -> Option<Missing> {
    if is_dir(tree, &format!("device_groups/{group}/target_groups/{name}")) {
        return None;
    }
    Missing::new(
        Failure::TG_NONE,
        format!("Target Group '{name}' does not exist"),
    )
}

/// `Some` when the target group has no such target.
pub(crate) fn tg_target(
    tree: &dyn TreeOps,
    group: &str,
    tgroup: &str,
    name: &str,
) -> Option<Missing> {
    let dir = format!("device_groups/{group}/target_groups/{tgroup}");
    if subdirs(tree, &dir)
        .unwrap_or_default()
        .iter()
        .any(|n| n == name)
    {
        return None;
    }
    Missing::new(
        Failure::TGT_GRP_NONE,
        format!("Target '{name}' does not exist"),
    )
}
