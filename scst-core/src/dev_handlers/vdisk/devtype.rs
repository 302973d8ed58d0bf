//! The four handlers, as management knows them: making and removing devices.
//!
//! C source: `vdisk_file_devtype` and its kin, `vdev_fileio_add_device`... of `scst/src/dev_handlers/scst_vdisk.c`

use super::params::parse_pairs;
use super::{Vdisk, VdiskKind, VdiskParams};
use crate::consts::{MAX_NAME, TYPE_DISK, TYPE_ROM};
use crate::core::Core;
use crate::dev_type::DevHandler;
use crate::sysfs::{DEFAULT_FLAGS, DevType, TraceLog, TraceTable};
use kshim::error::{Result, code};
use kshim::fs::{self, FileKind};
use std::sync::Arc;

/// Bits of `trace_level` of these handlers alone.
#[doc(alias = "vdisk_local_trace_tbl")]
const TRACE_TABLE: TraceTable = &[(0x8000_0000, "order")];

/// One of the handlers.
#[derive(Debug)]
pub struct VdiskType {
    kind: VdiskKind,
    /// Shared by all four, as in SCST.
    trace: Arc<TraceLog>,
}

/// All of them.
#[must_use]
pub fn dev_types() -> [Arc<dyn DevType>; 4] {
    let trace = TraceLog::new(
        "vdisk",
        &["scst_core::dev_handlers"],
        TRACE_TABLE,
        ", order",
        DEFAULT_FLAGS,
    );
    let kinds = [
        VdiskKind::Fileio,
        VdiskKind::Blockio,
        VdiskKind::Nullio,
        VdiskKind::Vcdrom,
    ];
    kinds.map(|kind| {
        let trace = Arc::clone(&trace);
        Arc::new(VdiskType { kind, trace }) as Arc<dyn DevType>
    })
}

impl VdiskType {
    fn params(&self, core: &Core, name: &str, params: &str) -> Result<VdiskParams> {
        let parsed = parse_pairs(params).and_then(|pairs| VdiskParams::parse(self.kind, &pairs));
        let mut p = parsed.map_err(|e| {
            kshim::pr_err!("Device {name}: {e}");
            e.errno()
        })?;
        p.setup_id = core.setup_id();
        p.state_dir.clone_from(&core.params().state_dir);
        Ok(p)
    }

    /// A plain file is nothing for vdisk_blockio, although it could be used: the user has mistaken the handler.
    fn check_file(&self, p: &VdiskParams) -> Result {
        let Some(path) = p
            .filename
            .as_ref()
            .filter(|_| self.kind == VdiskKind::Blockio)
        else {
            return Ok(());
        };
        // Disks of this process are not in the file system.
        match fs::stat(path) {
            Ok(stat) if stat.kind == FileKind::Regular => {
                kshim::pr_err!("{} is no block device", path.display());
                Err(code::ENOTBLK)
            }
            _ => Ok(()),
        }
    }
}

impl DevType for VdiskType {
    fn name(&self) -> &'static str {
        self.kind.handler_name()
    }

    fn type_code(&self) -> u8 {
        if self.kind == VdiskKind::Vcdrom {
            TYPE_ROM
        } else {
            TYPE_DISK
        }
    }

    fn add_device_parameters(&self) -> &'static [&'static str] {
        self.kind.listed_param_names()
    }

    fn add_device(&self, core: &Arc<Core>, name: &str, params: &str) -> Result {
        if core.device(name).is_some() {
            return Err(code::EEXIST);
        }
        if name.len() > MAX_NAME {
            kshim::pr_err!("Name {name} is too long (max allowed {MAX_NAME})");
            return Err(code::EINVAL);
        }
        let params = self.params(core, name, params)?;
        self.check_file(&params)?;
        let disk = Vdisk::new(name, &params).map_err(|e| {
            kshim::pr_err!("{e}");
            e.errno()
        })?;
        let handler: Arc<dyn DevHandler> = disk;
        let registered = core.register_virtual_device(name, handler);
        registered.map(drop).map_err(|e| {
            kshim::pr_err!("{e}");
            e.errno()
        })
    }

    #[doc(alias = "vdisk_del_device")]
    fn del_device(&self, core: &Arc<Core>, name: &str) -> Result {
        let is_disk = |h: &Arc<dyn DevHandler>| h.as_any().is_some_and(|h| h.is::<Vdisk>());
        if !core.device(name).is_some_and(|d| is_disk(d.handler())) {
            kshim::pr_err!("Device {name} not found");
            return Err(code::EINVAL);
        }
        let gone = core.unregister_virtual_device(name);
        gone.map_err(|e| {
            kshim::pr_err!("{e}");
            e.errno()
        })
    }

    fn trace(&self) -> Arc<TraceLog> {
        Arc::clone(&self.trace)
    }
}
