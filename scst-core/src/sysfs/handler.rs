//! `handlers/HANDLER`: kinds of devices, and making and removing devices.

use super::ScstTree;
use super::text::Lexems;
use super::trace::TraceLog;
use crate::core::Core;
use kshim::error::{Result, code};
use kshim::kobject::{Attr, Kobject};
use std::sync::{Arc, Weak};

/// Names of the device types (SPC-4 6.6.2), by number.
#[doc(alias = "scst_dev_handler_types")]
const TYPE_NAMES: [&str; 16] = [
    "Direct-access device (e.g., magnetic disk)",
    "Sequential-access device (e.g., magnetic tape)",
    "Printer device",
    "Processor device",
    "Write-once device (e.g., some optical disks)",
    "CD-ROM device",
    "Scanner device (obsolete)",
    "Optical memory device (e.g., some optical disks)",
    "Medium changer device (e.g., jukeboxes)",
    "Communications device (obsolete)",
    "Defined by ASC IT8 (Graphic arts pre-press devices)",
    "Defined by ASC IT8 (Graphic arts pre-press devices)",
    "Storage array controller device (e.g., RAID)",
    "Enclosure services device",
    "Simplified direct-access device (e.g., magnetic disk)",
    "Optical card reader/writer device",
];

/// The attribute `type`.
pub(super) fn type_text(code: u8) -> String {
    let name = TYPE_NAMES.get(usize::from(code));
    format!("{code} - {}\n", name.unwrap_or(&"unknown"))
}

/// A kind of devices that management can make.
///
/// Context of all methods: may sleep; they run on the management thread.
#[doc(alias = "scst_dev_type")]
pub trait DevType: Send + Sync + 'static {
    /// The handler's name, that of its directory.
    fn name(&self) -> &'static str;

    /// Peripheral device type of its devices (SPC-4 6.6.2).
    fn type_code(&self) -> u8;

    /// Parameters that the usage text lists.
    fn add_device_parameters(&self) -> &'static [&'static str];

    /// Makes and registers a device. `params` are `name=value` pairs with semicolons between. Errors: as recorded from
    /// the kernel.
    fn add_device(&self, core: &Arc<Core>, name: &str, params: &str) -> Result;

    /// Unregisters a device. Errors: `EINVAL` when it is not one of this handler's.
    fn del_device(&self, core: &Arc<Core>, name: &str) -> Result;

    /// What `trace_level` is about.
    fn trace(&self) -> Arc<TraceLog>;
}

#[doc(alias = "scst_devt_mgmt_show")]
fn usage(devt: &dyn DevType) -> String {
    format!(
        "Usage: echo \"add_device device_name [parameters]\" >mgmt\n       \
         echo \"del_device device_name\" >mgmt\n\n\
         where parameters are one or more param_name=value pairs separated by ';'\n\n\
         The following parameters available: {}\n\n",
        devt.add_device_parameters().join(", ")
    )
}

#[doc(alias = "scst_process_devt_mgmt_store")]
fn mgmt(devt: &dyn DevType, core: &Weak<Core>, text: &str) -> Result {
    let core = core.upgrade().ok_or(code::ENODEV)?;
    let mut words = Lexems::new(text);
    let action = words.next_lexem().to_ascii_lowercase();
    let name = words.next_lexem();
    let missing = || {
        kshim::pr_err!("Device name required");
        code::EINVAL
    };
    match action.as_str() {
        "add_device" if name.is_empty() => Err(missing()),
        "add_device" => devt.add_device(&core, name, words.rest()),
        "del_device" if name.is_empty() => Err(missing()),
        "del_device" => {
            let more = words.next_lexem();
            if !more.is_empty() {
                kshim::pr_err!("Syntax error on \"{more}\"");
                return Err(code::EINVAL);
            }
            devt.del_device(&core, name)
        }
        _ => {
            kshim::pr_err!("Unknown action \"{action}\"");
            Err(code::EINVAL)
        }
    }
}

impl ScstTree {
    /// Shows a kind of devices: from now on management can make them. Errors: `EEXIST`. Context: any.
    #[doc(alias = "scst_register_virtual_dev_driver")]
    #[doc(alias = "scst_devt_sysfs_create")]
    pub fn register_dev_type(&self, devt: Arc<dyn DevType>) -> Result<Arc<Kobject>> {
        let dir = self.handlers().add(devt.name())?;
        let ty = type_text(devt.type_code());
        dir.add_attr(Attr::ro("type", move || Ok(ty.clone())))?;
        dir.add_attr(devt.trace().attr())?;
        let (show, store, core) = (Arc::clone(&devt), devt, Weak::clone(&self.core));
        dir.add_attr(Attr::rw(
            "mgmt",
            move || Ok(usage(&*show)),
            move |text| mgmt(&*store, &core, text),
        ))?;
        Ok(dir)
    }
}
