//! Handler plug-ins of tcmu-runner: `/dev/tcmur/SUBTYPE/CFGSTRING`.
//!
//! tcmu-runner (the user-space half of the kernel's TCM) has plug-ins that make disks of qcow images, of Ceph's RBD, of Gluster;
//! and such that emulate whole devices (zoned disks, optical drives). Distributions ship them, built for tcmu-runner
//! 1.5.4. Here they are loaded as they are, by the C interface of that release:
//!
//! - [`init`] says where they are, and makes paths below [`TCMUR_PREFIX`] openable. Plug-ins are loaded when the first
//!   of these is opened.
//! - [`BlockDevice::open`] with such a path lets the handler open what the path names, and with the last close lets it
//!   close it. [`wait_closed`] waits for that, and [`exit`] ends all of them.
//! - A handler that reads and writes blocks is a block device. One that takes SCSI commands is opened with
//!   [`BlkMode::PASSTHROUGH`].
//!
//! `size=BYTES` and `timeout=SECONDS` may follow the path, as in `/dev/tcmur/rbd/pool/image?timeout=60`. See
//! `docs/backstores.md`.
//!
//! # Neighbours
//!
//! `disk` is the driver that kshim sees, `device` what a handler has opened, `request` a bio or command on its way,
//! `ffi` the C boundary with all the `unsafe`, `abi` the layout of its structures.
//!
//! [`BlockDevice::open`]: kshim::block::BlockDevice::open
//! [`BlkMode::PASSTHROUGH`]: kshim::block::BlkMode::PASSTHROUGH
//!
//! C source: tcmu-runner 1.5.4

mod abi;
mod cdb;
mod device;
mod disk;
mod ffi;
#[cfg(test)]
mod layout_tests;
mod qcow;
mod registry;
mod request;
mod size;
mod spec;
mod status;
mod whole;

use std::path::{Path, PathBuf};

use kshim::block::register_prober;
use kshim::fs;
use kshim::prelude::*;
use kshim::sync::{Mutex, SpinLock};
use kshim::time::Delta;

use ffi::handler::Handler;
pub use spec::DEFAULT_TIMEOUT;

/// What paths of these disks begin with.
pub const TCMUR_PREFIX: &str = "/dev/tcmur/";

/// Where distributions put plug-ins.
const DIRS: [&str; 4] = [
    concat!("/usr/lib/", env!("SCST_MULTIARCH"), "/tcmu-runner"),
    "/usr/lib64/tcmu-runner",
    "/usr/lib/tcmu-runner",
    "/usr/local/lib64/tcmu-runner",
];

/// Plug-ins that are not loaded yet.
static DIR: Mutex<Option<PathBuf>> = Mutex::new(None);
static HANDLERS: SpinLock<Vec<Arc<Handler>>> = SpinLock::new(Vec::new());

/// A kind of handler, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerInfo {
    /// The part of the path that names it.
    pub subtype: String,
    /// Its name.
    pub name: String,
    /// What its configuration string looks like.
    pub description: String,
    /// Whether it takes SCSI commands rather than blocks.
    pub passthrough: bool,
}

/// Makes paths below [`TCMUR_PREFIX`] openable, with the plug-ins (`handler_*.so`) of `dir`, or of where the distribution has
/// them. A second call changes the folder, until plug-ins were loaded.
///
/// Context: may sleep. Errors: `ENOENT`: a folder was named that is not there.
pub fn init(dir: Option<&Path>) -> Result {
    let dir = match dir {
        Some(dir) => {
            fs::list_dir(dir)?;
            dir.to_owned()
        }
        None => DIRS
            .iter()
            .map(PathBuf::from)
            .find(|d| fs::stat(d).is_ok())
            .unwrap_or_default(),
    };
    *DIR.lock() = Some(dir);
    match register_prober(TCMUR_PREFIX, Arc::new(disk::Prober)) {
        Ok(()) | Err(EEXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Loads the plug-ins if that was not done yet, and lists the handlers that they registered.
///
/// Context: may sleep.
pub fn handlers() -> Vec<HandlerInfo> {
    load();
    let mut all: Vec<HandlerInfo> = HANDLERS
        .lock()
        .iter()
        .map(|h| HandlerInfo {
            subtype: h.subtype.clone(),
            name: h.name.clone(),
            description: h.description.clone(),
            passthrough: !h.calls.contains(ffi::handler::Calls::READ),
        })
        .collect();
    all.sort_by(|a, b| a.subtype.cmp(&b.subtype));
    all
}

/// Waits until handlers have closed what nobody has open any more. `false`: that took longer than `limit`, or some
/// plug-in does not give its commands back.
///
/// Context: may sleep.
pub fn wait_closed(limit: Delta) -> bool {
    registry::wait_all(limit)
}

/// The end of the process: [`wait_closed`], then handlers undo what they did when they were loaded. There are none
/// afterwards. `false`: as there; handlers are left as they are then.
///
/// Context: may sleep.
pub fn exit(limit: Delta) -> bool {
    if !wait_closed(limit) {
        return false;
    }
    let all = std::mem::take(&mut *HANDLERS.lock());
    all.iter().for_each(|h| h.destroy());
    true
}

fn load() {
    let mut dir = DIR.lock();
    let Some(dir) = dir.take() else { return };
    let mut names = fs::list_dir(&dir).unwrap_or_default();
    names.retain(|n| n.starts_with("handler_") && n.ends_with(".so"));
    names.sort();
    for name in names {
        let path = dir.join(name);
        match ffi::load::load(&path) {
            Ok(()) => pr_debug!("loaded {}", path.display()),
            Err(e) => pr_err!("{}: {e}", path.display()),
        }
    }
}

/// Finds a handler.
///
/// Context: may sleep. Errors: `ENXIO`: there is none of this kind.
fn handler(subtype: &str) -> Result<Arc<Handler>> {
    load();
    let found = HANDLERS
        .lock()
        .iter()
        .find(|h| h.subtype == subtype)
        .cloned();
    found.ok_or_else(|| {
        let known: Vec<String> = handlers().into_iter().map(|h| h.subtype).collect();
        pr_err!("there is no tcmu-runner handler {subtype:?}, only {known:?}");
        ENXIO
    })
}

/// Takes a handler in that a plug-in registers, after `init`. Errors: why not.
fn add_handler(
    h: Handler,
    init: impl FnOnce(&Handler) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    if HANDLERS.lock().iter().any(|x| x.subtype == h.subtype) {
        return Err("is there twice");
    }
    init(&h)?;
    pr_info!("tcmu-runner handler {}: {}", h.subtype, h.name);
    HANDLERS.lock().push(Arc::new(h));
    Ok(())
}

/// Forgets the handler that `which` says; devices keep it.
fn remove_handler(which: impl Fn(&Handler) -> bool) -> bool {
    let mut all = HANDLERS.lock();
    let before = all.len();
    all.retain(|h| !which(h));
    all.len() < before
}

/// A serial number in the form of a UUID that stays the same for a device on a host.
fn serial(cfgstring: &str) -> String {
    let text = format!("{}\0{cfgstring}", kshim::host::machine_id());
    let half = |seed: u64| {
        // FNV-1a, with its bits mixed once more.
        let h = text.bytes().fold(seed, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        (h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
    };
    let (a, b) = (half(0xcbf2_9ce4_8422_2325), half(0x8422_2325_cbf2_9ce4));
    let hex = format!("{a:016x}{b:016x}");
    let part = |r: std::ops::Range<usize>| hex.get(r).unwrap_or_default();
    [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_have_the_form_that_handlers_expect() {
        let s = serial("zbc//x");
        assert_eq!((s.len(), s.matches('-').count()), (36, 4));
        assert_eq!(s, serial("zbc//x"));
        assert_ne!(s, serial("zbc//y"));
    }
}
