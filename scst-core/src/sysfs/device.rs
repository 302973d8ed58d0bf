//! `devices/DEVICE`: attributes that every device has.

use super::ScstTree;
use super::handler::type_text;
use super::text::{first_line, line, parse_i64};
use crate::cmd::ThreadsPoolType;
use crate::consts::DEF_MAX_TGT_DEV_COMMANDS;
use crate::core::Core;
use crate::device::Device;
use crate::event::Kind;
use kshim::error::{Result, code};
use kshim::kobject::{Attr, Kobject};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Links in the directory `exported` of a device.
#[derive(Debug, Default)]
pub struct Exports {
    /// Number of the next link.
    #[doc(alias = "dev_exported_lun_num")]
    next: u32,
    /// Path of the LUN and name of its link.
    links: Vec<(String, String)>,
}

impl ScstTree {
    /// Shows a device. Context: any.
    #[doc(alias = "scst_dev_sysfs_create")]
    pub(super) fn add_device(&self, dev: &Arc<Device>) -> Result {
        let dir = self.devices().add(dev.name())?;
        dev.kobj.set(&dir);
        dir.add("exported")?;
        let core = self.core().ok_or(code::ENODEV)?;
        let o = Owner {
            core: Arc::downgrade(&core),
            dev: Arc::downgrade(dev),
        };
        dir.add_attrs(o.common())?;
        dir.add_attrs(o.reservations())?;
        if let Some(handler) = self.handlers().child(dev.handler().name()) {
            dir.add_link("handler", &handler)?;
            handler.add_link(dev.name(), &dir)?;
        }
        if dev.handler().default_threads_num() >= 0 {
            dir.add_attrs(o.threads())?;
        }
        dir.add_attrs(dev.handler().sysfs_attrs(&core, dev))
    }

    /// Context: may sleep, without the configuration lock.
    #[doc(alias = "scst_dev_sysfs_del")]
    pub(super) fn del_device(&self, dev: &Device) {
        if let Some(handler) = self.handlers().child(dev.handler().name()) {
            // Not there if the device could not be shown.
            let _: Result = handler.remove_link(dev.name());
        }
        dev.kobj.del();
    }
}

impl Device {
    /// A LUN of this device has the directory `lun`: links to it from `exported`. Context: any.
    pub(crate) fn add_export(&self, lun: &Arc<Kobject>) -> Result {
        let Some(dir) = self.kobj.get().and_then(|d| d.child("exported")) else {
            return Err(code::ENODEV);
        };
        let mut exports = self.exports.lock();
        let name = format!("export{}", exports.next);
        exports.next = exports.next.wrapping_add(1);
        dir.add_link(&name, lun)?;
        exports.links.push((lun.path(), name));
        Ok(())
    }

    /// That LUN goes. Context: any.
    pub(crate) fn del_export(&self, lun: &Kobject) {
        let path = lun.path();
        let mut exports = self.exports.lock();
        let Some(at) = exports.links.iter().position(|(p, _)| *p == path) else {
            return;
        };
        let (_, name) = exports.links.swap_remove(at);
        if let Some(dir) = self.kobj.get().and_then(|d| d.child("exported")) {
            // Gone already with the whole directory, if so.
            let _: Result = dir.remove_link(&name);
        }
    }
}

/// The device that attributes belong to, which may be gone.
#[derive(Clone)]
struct Owner {
    core: Weak<Core>,
    dev: Weak<Device>,
}

impl Owner {
    fn dev(&self) -> Result<Arc<Device>> {
        self.dev.upgrade().ok_or(code::ENODEV)
    }

    fn core(&self) -> Result<Arc<Core>> {
        self.core.upgrade().ok_or(code::ENODEV)
    }

    fn rw(
        &self,
        name: &str,
        show: fn(&Device) -> String,
        store: fn(&Arc<Core>, &Arc<Device>, &str) -> Result,
    ) -> Attr {
        let (a, b) = (self.clone(), self.clone());
        Attr::rw(
            name,
            move || Ok(show(&*a.dev()?)),
            move |text| store(&b.core()?, &b.dev()?, text),
        )
    }

    fn common(&self) -> [Attr; 4] {
        let me = self.clone();
        [
            Attr::ro("type", move || {
                Ok(type_text(me.dev()?.handler().type_code()))
            }),
            self.rw(
                "max_tgt_dev_commands",
                |d| {
                    let n = d.max_tgt_dev_commands.load(Ordering::Relaxed);
                    line(n, n != DEF_MAX_TGT_DEV_COMMANDS)
                },
                |_, d, text| {
                    let n = u32::try_from(parse_i64(text)?).map_err(|_| code::EINVAL)?;
                    d.max_tgt_dev_commands.store(n, Ordering::Relaxed);
                    Ok(())
                },
            )
            .direct(),
            self.rw(
                "numa_node_id",
                |d| {
                    let n = d.numa_node_id.load(Ordering::Relaxed);
                    line(n, n != -1)
                },
                |_, d, text| {
                    let n = i32::try_from(parse_i64(text)?).map_err(|_| code::EINVAL)?;
                    if n < -1 {
                        return Err(code::EINVAL);
                    }
                    d.numa_node_id.store(n, Ordering::Relaxed);
                    Ok(())
                },
            )
            .direct(),
            // Not on the management thread: it may wait for commands for as long as the device needs.
            self.rw(
                "block",
                |d| {
                    let (blocks, pending) = d.block.ext_blocks();
                    line(format_args!("{blocks} {}", u8::from(pending)), false)
                },
                |c, d, text| block(c, d, text),
            )
            .direct(),
        ]
    }

    fn reservations(&self) -> [Attr; 3] {
        let (me, a, b) = (self.clone(), self.clone(), self.clone());
        [
            self.rw(
                "pr_state",
                |d| d.pr_state(),
                |_, d, text| d.set_pr_state(text),
            ),
            Attr::wo("dump_prs", move |_| {
                me.dev()?.dump_prs();
                Ok(())
            })
            .direct(),
            Attr::rw(
                "pr_file_name",
                move || {
                    let (dev, core) = (a.dev()?, a.core()?);
                    let path = dev.pr_file();
                    let set = path.is_some() && path != default_pr_file(&core, &dev);
                    let text = path.unwrap_or_default();
                    Ok(line(text.display(), set))
                },
                move |text| set_pr_file(&*b.core()?, &b.dev()?, text),
            ),
        ]
    }

    fn threads(&self) -> [Attr; 2] {
        [
            self.rw(
                "threads_num",
                |d| {
                    let (n, _) = *d.pool_params.lock();
                    line(n, n != d.handler().default_threads_num())
                },
                |c, d, text| {
                    let n = i32::try_from(parse_i64(text)?).map_err(|_| code::EINVAL)?;
                    if n < 0 {
                        return Err(code::EINVAL);
                    }
                    let (_, ty) = *d.pool_params.lock();
                    c.set_device_threads(d, n, ty)
                },
            ),
            self.rw(
                "threads_pool_type",
                |d| match *d.pool_params.lock() {
                    (0, _) => "Async\n".to_owned(),
                    (..0, _) => "Not valid\n".to_owned(),
                    (_, ty) => line(ty.name(), ty != ThreadsPoolType::default()),
                },
                |c, d, text| {
                    let ty = ThreadsPoolType::from_name(text.trim());
                    let (n, _) = *d.pool_params.lock();
                    c.set_device_threads(d, n, ty.ok_or(code::EINVAL)?)
                },
            ),
        ]
    }
}

/// `0` unblocks, `1` blocks and waits for the commands on the device, `11 DATA` blocks and returns at once: an event with
/// the data tells when there are no commands any more.
#[doc(alias = "scst_dev_block_store")]
fn block(core: &Core, dev: &Arc<Device>, text: &str) -> Result {
    let text = text.trim_end();
    let (what, rest) = text.split_at_checked(1).ok_or(code::EINVAL)?;
    match (what, rest.trim_start()) {
        ("0", "") => {
            dev.ext_unblock();
            Ok(())
        }
        ("1", "") => {
            dev.block.block_and_drain();
            Ok(())
        }
        ("1", rest) => {
            let data = rest.strip_prefix('1').ok_or(code::EINVAL)?;
            let (device, data) = (dev.name().to_owned(), data.trim().as_bytes().to_vec());
            let events = Arc::clone(core.events());
            dev.block.block(Some(Box::new(move || {
                kshim::pr_info!("Device {device} is blocked");
                events.tell(|| Kind::ExtBlockingDone { device, data });
            })));
            Ok(())
        }
        _ => Err(code::EINVAL),
    }
}

fn default_pr_file(core: &Core, dev: &Device) -> Option<PathBuf> {
    let dir = core.params().pr_dir.as_ref();
    dir.map(|dir| dir.join(dev.name()))
}

/// The persistent reservations of a device that nobody sees are in another file from now on; an empty name is the default.
/// A device that the copy manager has counts as seen, as in SCST.
#[doc(alias = "scst_dev_sysfs_pr_file_name_process_store")]
fn set_pr_file(core: &Core, dev: &Arc<Device>, text: &str) -> Result {
    if !dev.tgt_devs().is_empty() || core.copy_manager().has(dev) {
        kshim::pr_err!(
            "{}: not changing pr_file_name because the device has already been exported",
            dev.name()
        );
        return Err(code::EBUSY);
    }
    let name = first_line(text);
    let path = if name.is_empty() {
        default_pr_file(core, dev).ok_or(code::EOPNOTSUPP)?
    } else {
        PathBuf::from(name)
    };
    if !path.is_absolute() {
        return Err(code::EINVAL);
    }
    if dev.pr_file().as_deref() == Some(Path::new(&path)) {
        return Ok(());
    }
    let taken = |other: &Arc<Device>| other.pr_file().as_deref() == Some(Path::new(&path));
    if let Some(other) = core.devices().iter().find(|other| taken(other)) {
        let (dev, other) = (dev.name(), other.name());
        kshim::pr_err!("{dev}: {} is the file of device {other}", path.display());
        return Err(code::EEXIST);
    }
    dev.set_pr_file(&path)
}
