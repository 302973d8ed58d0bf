//! Management for the cases that change the configuration. Targets and device groups are changed through the management
//! tree; for devices, what is written becomes a call of the core's own functions. Cases that need more are not run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kshim::kobject::tree::{Tree, TreeOps};
use scst_compare::json::from_hex;
use scst_compare::{Access, Errno, Manage};
use scst_core::core::{ConfigError, Core};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};

const EINVAL: Errno = 22;
const ENOSYS: Errno = 38;

/// Manages one target of a core.
pub(crate) struct CoreManage {
    core: Arc<Core>,
    tree: Tree,
    data: PathBuf,
    disks: BTreeMap<String, Arc<Vdisk>>,
}

/// A write that this management knows.
enum Change<'a> {
    AddDevice(VdiskKind, &'a str),
    DelDevice(&'a str),
    /// Device, attribute, value.
    Identity(&'a str, &'a str, &'a str),
    Medium(&'a str, &'a str),
    /// A null device's size in bytes.
    Size(&'a str, u64),
    /// Null devices read as zeros in any case.
    ReadZero,
}

impl<'a> Change<'a> {
    fn parse(path: &'a str, value: &'a str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        let (verb, rest) = value.split_once(' ').unwrap_or((value, ""));
        Some(match (parts.as_slice(), verb) {
            (["handlers", handler, "mgmt"], "add_device") if !rest.contains("dif_") => {
                Self::AddDevice(kind(handler)?, rest)
            }
            (["handlers", _, "mgmt"], "del_device") => Self::DelDevice(rest),
            (
                [
                    "devices",
                    dev,
                    name @ ("naa_id" | "eui64_id" | "scsi_device_name"),
                ],
                _,
            ) => Self::Identity(dev, name, value),
            (["devices", dev, "filename"], _) => Self::Medium(dev, value),
            (["devices", dev, "size_mb"], _) => Self::Size(dev, value.parse::<u64>().ok()? << 20),
            (["devices", _, "read_zero"], "1") => Self::ReadZero,
            _ => return None,
        })
    }
}

fn kind(handler: &str) -> Option<VdiskKind> {
    use VdiskKind::{Blockio, Fileio, Nullio, Vcdrom};
    [Blockio, Fileio, Nullio, Vcdrom]
        .into_iter()
        .find(|k| k.handler_name() == handler)
}

impl CoreManage {
    /// For `tgt`; `$DATA` is `data`, where the files of the recording are made.
    pub(crate) fn new(core: Arc<Core>, tree: Tree, data: &Path) -> std::io::Result<Self> {
        for (name, mib) in [("m0.img", 16), ("m1.img", 8)] {
            std::fs::File::create(data.join(name))?.set_len(mib << 20)?;
        }
        Ok(Self {
            core,
            tree,
            data: data.to_owned(),
            disks: BTreeMap::new(),
        })
    }

    fn add_device(&mut self, kind: VdiskKind, text: &str) -> Result<(), Errno> {
        let (name, text) = text.split_once(' ').unwrap_or((text, ""));
        let params = text.split(';').map(str::trim).filter(|p| !p.is_empty());
        let params: Option<Vec<_>> = params.map(|p| p.split_once('=')).collect();
        let mut params = VdiskParams::parse(kind, &params.ok_or(EINVAL)?).map_err(|_| EINVAL)?;
        params.state_dir = Some(self.data.join("state"));
        let disk = Vdisk::new(name, &params).map_err(|e| e.errno().errno())?;
        self.core
            .register_virtual_device(name, Arc::clone(&disk) as _)
            .map_err(|e| errno(&e))?;
        self.disks.insert(name.to_owned(), disk);
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) -> Result<(), Errno> {
        match *change {
            Change::AddDevice(kind, text) => self.add_device(kind, text),
            Change::DelDevice(name) => {
                self.disks.remove(name);
                self.core
                    .unregister_virtual_device(name)
                    .map_err(|e| errno(&e))
            }
            Change::Identity(name, attribute, value) => {
                let disk = self.disks.get(name).ok_or(EINVAL)?;
                let digits = value.trim_start_matches("0x");
                let binary = from_hex(digits).unwrap_or_default();
                disk.update_identity(|id| match attribute {
                    "naa_id" => id.naa_id = binary,
                    "eui64_id" => id.eui64_id = binary,
                    _ => value.clone_into(&mut id.scsi_device_name),
                });
                let dev = self.core.device(name).ok_or(EINVAL)?;
                dev.inquiry_data_changed();
                Ok(())
            }
            Change::ReadZero => Ok(()),
            Change::Size(name, bytes) => {
                let disk = self.disks.get(name).ok_or(EINVAL)?;
                disk.resize(bytes).map_err(|e| e.errno())?;
                let dev = self.core.device(name).ok_or(EINVAL)?;
                dev.capacity_data_changed();
                Ok(())
            }
            Change::Medium(name, path) => {
                let disk = self.disks.get(name).ok_or(EINVAL)?;
                let dev = self.core.device(name).ok_or(EINVAL)?;
                let image = Some(Path::new(path)).filter(|p| !p.as_os_str().is_empty());
                disk.change_medium(&dev, image).map_err(|e| e.errno())
            }
        }
    }
}

/// What the tree manages.
fn is_of_tree(path: &str) -> bool {
    path.starts_with("targets/") || path.starts_with("device_groups/")
}

/// The device whose registrations and reservation are read.
fn pr_state_of(path: &str) -> Option<&str> {
    path.strip_prefix("devices/")?.strip_suffix("/pr_state")
}

fn errno(e: &ConfigError) -> Errno {
    match e {
        ConfigError::Host { source, .. } => source.errno(),
        _ => EINVAL,
    }
}

impl Manage for CoreManage {
    fn can(&self, access: &Access) -> bool {
        match access {
            Access::Write(path, value) => is_of_tree(path) || Change::parse(path, value).is_some(),
            Access::Read(path) => is_of_tree(path) || pr_state_of(path).is_some(),
            Access::List(path) => is_of_tree(path),
        }
    }

    fn write(&mut self, path: &str, value: &str) -> Errno {
        if is_of_tree(path) {
            let value = if value.is_empty() { "\n" } else { value };
            let done = self.tree.write(path, value.as_bytes());
            return done.map_or_else(|e| e.errno(), |()| 0);
        }
        match Change::parse(path, value) {
            Some(change) => self.change(&change).err().unwrap_or(0),
            None => ENOSYS,
        }
    }

    fn read(&mut self, path: &str) -> Result<String, Errno> {
        if is_of_tree(path) {
            let data = self.tree.read(path).map_err(|e| e.errno())?;
            return Ok(String::from_utf8_lossy(&data).into_owned());
        }
        let name = pr_state_of(path).ok_or(ENOSYS)?;
        let dev = self.core.device(name).ok_or(EINVAL)?;
        Ok(dev.pr_state())
    }

    fn list(&mut self, path: &str) -> Result<String, Errno> {
        let all = self.tree.list(path).map_err(|e| e.errno())?;
        let names: Vec<_> = all.into_iter().map(|e| e.name).collect();
        Ok(names.join(" "))
    }

    fn data_dir(&self) -> String {
        self.data.display().to_string()
    }
}
