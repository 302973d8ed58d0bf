//! Attributes of virtual disks in the management tree.
//!
//! C source: `vdisk_fileio_attrs` and its kin of `scst/src/dev_handlers/scst_vdisk.c`

use super::ident::{
    MAX_INQ_VEND_SPECIFIC_LEN, MAX_PROD_ID_LEN, MAX_REV_LEN, MAX_SCSI_DEVICE_NAME_LEN,
    MAX_T10_DEV_ID_LEN, MAX_USN_LEN, MAX_VEND_ID_LEN, MAX_VEND_SPECIFIC_ID_LEN,
};
use super::{Identity, NULLIO_SIZE, Vdisk, VdiskKind};
use crate::core::Core;
use crate::device::Device;
use crate::sysfs::text::{first_line, flag, line, parse_flag, parse_i64, parse_u64};
use kshim::error::{Result, code};
use kshim::fs::Engine;
use kshim::kobject::Attr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

bitflags::bitflags! {
    /// What was set by the user, and is marked so that it is saved.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct Set: u32 {
        const T10_VEND_ID = 1;
        const VEND_SPECIFIC_ID = 1 << 1;
        const PROD_ID = 1 << 2;
        const PROD_REV_LVL = 1 << 3;
        const T10_DEV_ID = 1 << 4;
        const USN = 1 << 5;
    }
}

/// Bytes of a mebibyte, as a power of two.
const MIB_SHIFT: u32 = 20;

/// The device that attributes belong to, which may be gone.
#[derive(Clone)]
struct Owner {
    core: Weak<Core>,
    dev: Weak<Device>,
}

/// The same while it is there.
struct Env<'a> {
    core: &'a Arc<Core>,
    dev: &'a Arc<Device>,
    disk: &'a Vdisk,
}

impl Owner {
    fn with<T>(&self, f: impl FnOnce(&Env<'_>) -> Result<T>) -> Result<T> {
        let gone = code::ENODEV;
        let core = self.core.upgrade().ok_or(gone)?;
        let dev = self.dev.upgrade().ok_or(gone)?;
        let handler = dev.handler().as_any();
        let disk = handler
            .and_then(|h| h.downcast_ref::<Vdisk>())
            .ok_or(gone)?;
        f(&Env {
            core: &core,
            dev: &dev,
            disk,
        })
    }

    fn ro(&self, name: &str, show: fn(&Vdisk) -> String) -> Attr {
        let me = self.clone();
        Attr::ro(name, move || me.with(|e| Ok(show(e.disk))))
    }

    fn rw(
        &self,
        name: &str,
        show: fn(&Vdisk) -> String,
        store: fn(&Env<'_>, &str) -> Result,
    ) -> Attr {
        let (a, b) = (self.clone(), self.clone());
        Attr::rw(
            name,
            move || a.with(|e| Ok(show(e.disk))),
            move |text| b.with(|e| store(e, text)),
        )
    }

    fn wo(&self, name: &str, store: fn(&Env<'_>, &str) -> Result) -> Attr {
        let me = self.clone();
        Attr::wo(name, move |text| me.with(|e| store(e, text)))
    }

    /// A part of the identity; changing it is told to initiators.
    fn id(
        &self,
        name: &'static str,
        show: fn(&Identity) -> &str,
        set: fn(&mut Identity) -> &mut String,
        max: usize,
        mark: Option<Set>,
    ) -> Attr {
        let (a, b) = (self.clone(), self.clone());
        let key = move |disk: &Vdisk, text: &str| match mark {
            Some(mark) => disk.is_set(mark),
            None => !text.is_empty(),
        };
        Attr::rw(
            name,
            move || {
                a.with(|e| {
                    let id = e.disk.identity();
                    Ok(line(show(&id), key(e.disk, show(&id))))
                })
            },
            move |text| {
                b.with(|e| {
                    let text = first_line(text);
                    if text.len() > max {
                        kshim::pr_err!("{name} is too long (max {max} characters)");
                        return Err(code::EINVAL);
                    }
                    e.disk.update_identity(|id| text.clone_into(set(id)));
                    if let Some(mark) = mark {
                        e.disk.set.fetch_or(mark.bits(), Ordering::Relaxed);
                    }
                    e.dev.inquiry_data_changed();
                    Ok(())
                })
            },
        )
    }

    /// A binary identifier.
    fn binary_id(
        &self,
        name: &'static str,
        of: fn(&mut Identity) -> &mut Vec<u8>,
        parse: fn(&str) -> Option<Vec<u8>>,
    ) -> Attr {
        let (a, b) = (self.clone(), self.clone());
        Attr::rw(
            name,
            move || a.with(|e| Ok(hex_text(of(&mut e.disk.identity())))),
            move |text| {
                b.with(|e| {
                    let bytes = parse(text).ok_or(code::EINVAL)?;
                    e.disk.update_identity(|id| *of(id) = bytes);
                    e.dev.inquiry_data_changed();
                    Ok(())
                })
            },
        )
    }
}

/// `0x`, the digits and the mark; an empty line without an identifier.
fn hex_text(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "\n".to_owned();
    }
    let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    line(format_args!("0x{digits}"), true)
}

/// Bytes from hexadecimal digits; `None` unless they are `lens` bytes, or none.
fn hex(text: &str, lens: &[usize]) -> Option<Vec<u8>> {
    let s = text.trim();
    let s = s.strip_prefix("0x").unwrap_or(s);
    let bytes = s.as_bytes();
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() || !(pairs.is_empty() || lens.contains(&pairs.len())) {
        return None;
    }
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let byte = |[h, l]: &[u8; 2]| Some(digit(*h)? << 4 | digit(*l)?);
    pairs.iter().map(byte).collect()
}

fn eui64(text: &str) -> Option<Vec<u8>> {
    hex(text, &[8, 12, 16])
}

/// NAA 2, 3 or 5 in 8 bytes, or NAA 6 in 16.
fn naa(text: &str) -> Option<Vec<u8>> {
    let bytes = hex(text, &[8, 16])?;
    let known = match (bytes.first(), bytes.len()) {
        (None, _) => true,
        (Some(b), 8) => matches!(b >> 4, 2 | 3 | 5),
        (Some(b), _) => b >> 4 == 6,
    };
    known.then_some(bytes)
}

impl Vdisk {
    fn is_set(&self, mark: Set) -> bool {
        self.set.load(Ordering::Relaxed) & mark.bits() != 0
    }

    /// A parameter as it is now.
    fn param<T>(&self, f: impl FnOnce(&super::VdiskParams) -> T) -> T {
        f(&self.params.lock())
    }

    fn set_param(&self, f: impl FnOnce(&mut super::VdiskParams)) {
        f(&mut self.params.lock());
    }
}

/// All attributes of a device of this kind.
pub(super) fn all(disk: &Vdisk, core: &Arc<Core>, dev: &Arc<Device>) -> Vec<Attr> {
    let o = &Owner {
        core: Arc::downgrade(core),
        dev: Arc::downgrade(dev),
    };
    let mut attrs = identity(o);
    attrs.extend(sizes(o, disk.kind()));
    attrs.push(o.ro("tst", |d| line(d.tst, d.tst != 1)));
    match disk.kind() {
        VdiskKind::Vcdrom => {
            attrs.push(o.rw("filename", show_filename, change_medium));
            return attrs;
        }
        VdiskKind::Nullio => {
            attrs.push(o.ro("dummy", |d| {
                let on = d.features().dummy;
                flag(on, on)
            }));
            attrs.push(o.rw(
                "read_zero",
                |d| {
                    let on = d.param(|p| p.read_zero);
                    flag(on, on)
                },
                |e, text| {
                    let on = parse_flag(text)?;
                    e.disk.set_param(|p| p.read_zero = on);
                    Ok(())
                },
            ));
        }
        kind => {
            let engine = disk.param(|p| p.engine.is_some());
            attrs.extend(backed(o, kind, disk.features().thin_provisioned, engine));
        }
    }
    attrs.extend(common(o));
    if disk.param(|p| p.dif.is_on()) {
        attrs.extend(dif(o, disk));
    }
    attrs
}

/// What a disk with protection information has besides.
#[doc(alias = "scst_dev_sysfs_dif_create")]
fn dif(o: &Owner, disk: &Vdisk) -> Vec<Attr> {
    let mut attrs = vec![
        o.ro("dif_mode", |d| d.param(|p| p.dif.show_mode())),
        o.ro("dif_type", |d| d.param(|p| p.dif.show_type())),
        o.rw(
            "dif_static_app_tag",
            |d| d.param(|p| p.dif.show_app_tag()),
            |e, text| {
                let tag = first_line(text);
                let mut set = Ok(());
                e.disk
                    .set_param(|p| set = p.dif.set("dif_static_app_tag", tag));
                set.map_err(|_| code::EINVAL)
            },
        ),
    ];
    if tags_file(disk).is_some() {
        attrs.push(o.ro("dif_filename", |d| {
            let path = tags_file(d).unwrap_or_default();
            line(path.display(), true)
        }));
    }
    attrs
}

fn tags_file(disk: &Vdisk) -> Option<std::path::PathBuf> {
    disk.param(|p| p.dif.tags_file(disk.name(), p.state_dir.as_deref()))
}

fn identity(o: &Owner) -> Vec<Attr> {
    vec![
        o.id(
            "t10_vend_id",
            |i| &i.t10_vend_id,
            |i| &mut i.t10_vend_id,
            MAX_VEND_ID_LEN,
            Some(Set::T10_VEND_ID),
        ),
        o.id(
            "vend_specific_id",
            |i| &i.vend_specific_id,
            |i| &mut i.vend_specific_id,
            MAX_VEND_SPECIFIC_ID_LEN,
            Some(Set::VEND_SPECIFIC_ID),
        ),
        o.id(
            "prod_id",
            |i| &i.prod_id,
            |i| &mut i.prod_id,
            MAX_PROD_ID_LEN,
            Some(Set::PROD_ID),
        ),
        o.id(
            "prod_rev_lvl",
            |i| &i.prod_rev_lvl,
            |i| &mut i.prod_rev_lvl,
            MAX_REV_LEN,
            Some(Set::PROD_REV_LVL),
        ),
        o.id(
            "t10_dev_id",
            |i| &i.t10_dev_id,
            |i| &mut i.t10_dev_id,
            MAX_T10_DEV_ID_LEN,
            Some(Set::T10_DEV_ID),
        ),
        o.id(
            "usn",
            |i| &i.usn,
            |i| &mut i.usn,
            MAX_USN_LEN,
            Some(Set::USN),
        ),
        o.id(
            "scsi_device_name",
            |i| &i.scsi_device_name,
            |i| &mut i.scsi_device_name,
            MAX_SCSI_DEVICE_NAME_LEN,
            None,
        ),
        o.binary_id("eui64_id", |i| &mut i.eui64_id, eui64),
        o.binary_id("naa_id", |i| &mut i.naa_id, naa),
        o.rw(
            "inq_vend_specific",
            |d| {
                let id = d.identity();
                let text = String::from_utf8_lossy(&id.inq_vend_specific);
                line(&text, !text.is_empty())
            },
            |e, text| {
                let bytes = first_line(text).as_bytes().to_vec();
                if bytes.len() > MAX_INQ_VEND_SPECIFIC_LEN {
                    return Err(code::EINVAL);
                }
                e.disk.update_identity(|id| id.inq_vend_specific = bytes);
                e.dev.inquiry_data_changed();
                Ok(())
            },
        ),
    ]
}

fn show_size(d: &Vdisk) -> String {
    let size = d.size_bytes();
    line(
        size,
        !(d.kind() == VdiskKind::Nullio && size == NULLIO_SIZE),
    )
}

fn show_size_mb(d: &Vdisk) -> String {
    line(d.size_bytes() >> MIB_SHIFT, false)
}

#[doc(alias = "vdev_size_process_store")]
fn resize(e: &Env<'_>, bytes: Option<u64>) -> Result {
    e.disk.resize(bytes.ok_or(code::EINVAL)?)?;
    e.dev.capacity_data_changed();
    Ok(())
}

fn sizes(o: &Owner, kind: VdiskKind) -> [Attr; 2] {
    if matches!(kind, VdiskKind::Fileio | VdiskKind::Vcdrom) {
        return [o.ro("size", show_size), o.ro("size_mb", show_size_mb)];
    }
    [
        o.rw("size", show_size, |e, text| {
            resize(e, Some(parse_u64(text)?))
        }),
        o.rw("size_mb", show_size_mb, |e, text| {
            resize(e, parse_u64(text)?.checked_mul(1 << MIB_SHIFT))
        }),
    ]
}

/// What every disk has.
fn common(o: &Owner) -> Vec<Attr> {
    vec![
        o.ro("blocksize", |d| {
            let n = d.features().block_size();
            line(n, n != 512)
        }),
        o.ro("read_only", |d| flag(d.read_only, d.read_only)),
        o.ro("removable", |d| {
            let on = d.features().removable;
            flag(on, on)
        }),
        o.ro("rotational", |d| {
            let on = d.features().rotational;
            flag(on, !on)
        }),
        o.rw(
            "opt_trans_len",
            |d| {
                let set = d.param(|p| p.opt_trans_len.is_some());
                line(d.limits().opt_trans_len, set)
            },
            |e, text| {
                let n = u32::try_from(parse_u64(text)?).map_err(|_| code::EINVAL)?;
                if !n.is_multiple_of(e.disk.features().block_size()) {
                    return Err(code::EINVAL);
                }
                e.disk.set_opt_trans_len(n);
                Ok(())
            },
        ),
        o.rw(
            "cluster_mode",
            |_| flag(false, false),
            |_, text| {
                // There is no lock manager to share reservations by.
                if parse_flag(text)? {
                    return Err(code::EOPNOTSUPP);
                }
                Ok(())
            },
        ),
    ]
}

/// What a disk on a file or a block device has.
fn backed(o: &Owner, kind: VdiskKind, thin: bool, named_engine: bool) -> Vec<Attr> {
    let mut attrs = vec![
        o.rw("filename", show_filename, change_filename),
        o.rw(
            "active",
            |d| {
                let on = d.param(|p| p.active);
                flag(on, !on)
            },
            change_active,
        ),
        o.rw(
            "bind_alua_state",
            |d| {
                let on = d.binds_alua_state();
                flag(on, on != (d.kind() == VdiskKind::Blockio))
            },
            |e, text| {
                let on = parse_u64(text)? != 0;
                e.disk.set_param(|p| p.bind_alua_state = on);
                Ok(())
            },
        ),
        o.ro("write_through", |d| {
            let on = d.write_through.load(Ordering::Relaxed);
            flag(on, on)
        }),
        o.ro("nv_cache", |d| {
            let on = d.features().nv_cache;
            flag(on, on)
        }),
        o.ro("thin_provisioned", |d| {
            let set = d.param(|p| p.thin_provisioned.is_some());
            flag(d.features().thin_provisioned, set)
        }),
        expl_alua(o),
        o.rw(
            "lb_per_pb_exp",
            |d| {
                let on = d.limits().lb_per_pb_exp;
                flag(on, !on)
            },
            |e, text| {
                e.disk.set_lb_per_pb_exp(parse_flag(text)?);
                Ok(())
            },
        ),
        o.wo("resync_size", |e, _| {
            if !e.disk.is_active() {
                return Err(code::EMEDIUMTYPE);
            }
            if e.disk.resync_size()? {
                e.dev.capacity_data_changed();
            }
            Ok(())
        }),
        o.wo("sync", |e, _| e.disk.store().flush()),
    ];
    if thin {
        attrs.push(o.wo("gen_tp_soft_threshold_reached_UA", |e, _| {
            let s = crate::sense::TP_SOFT_THRESHOLD_REACHED;
            e.dev.check_set_ua(s, None);
            Ok(())
        }));
    }
    // SCST has no such attribute: it is there where the parameter was given.
    if named_engine {
        attrs.push(o.ro("engine", |d| {
            let engine = d.param(|p| p.engine);
            line(engine.map_or("auto", Engine::name), engine.is_some())
        }));
    }
    if kind == VdiskKind::Fileio {
        attrs.push(o.ro("o_direct", |d| {
            let on = d.param(|p| p.o_direct);
            flag(on, on)
        }));
        attrs.push(o.rw(
            "async",
            |d| {
                let on = d.param(|p| p.async_io);
                flag(on, on)
            },
            |e, text| {
                let on = parse_flag(text)?;
                e.disk.set_param(|p| p.async_io = on);
                Ok(())
            },
        ));
    }
    attrs
}

fn expl_alua(o: &Owner) -> Attr {
    let (a, b) = (o.clone(), o.clone());
    Attr::rw(
        "expl_alua",
        move || {
            a.with(|e| {
                let on = e.dev.expl_alua.load(Ordering::Relaxed);
                Ok(flag(on, on))
            })
        },
        move |text| {
            b.with(|e| {
                let on = parse_u64(text)? != 0;
                e.dev.expl_alua.store(on, Ordering::Relaxed);
                Ok(())
            })
        },
    )
}

#[doc(alias = "vdev_sysfs_filename_show")]
fn show_filename(d: &Vdisk) -> String {
    d.param(|p| match &p.filename {
        Some(path) => format!("{}\n", line(path.display(), true)),
        None => "none\n\n".to_owned(),
    })
}

/// Another file for a closed device; it counts when the device is opened.
#[doc(alias = "vdev_sysfs_process_filename_store")]
fn change_filename(e: &Env<'_>, text: &str) -> Result {
    let path = text.trim();
    if !path.starts_with('/') {
        return Err(code::EINVAL);
    }
    let mut params = e.disk.params.lock();
    if params.active {
        drop(params);
        kshim::pr_err!(
            "vdev {}: can't change the filename because the device is still active",
            e.disk.name()
        );
        return Err(code::EINVAL);
    }
    params.filename = Some(path.into());
    Ok(())
}

#[doc(alias = "vcdrom_sysfs_process_filename_store")]
fn change_medium(e: &Env<'_>, text: &str) -> Result {
    let path = text.trim();
    let _suspended = e.core.suspend_activity()?;
    let image = (!path.is_empty()).then(|| Path::new(path));
    e.disk.change_medium(e.dev, image)
}

#[doc(alias = "vdev_sysfs_process_active_store")]
fn change_active(e: &Env<'_>, text: &str) -> Result {
    let n = parse_i64(text)?;
    let on = match n {
        0 => false,
        1 => true,
        _ => return Err(code::EINVAL),
    };
    let _suspended = e.core.suspend_activity()?;
    if !on {
        e.disk.deactivate();
        return Ok(());
    }
    let before = e.disk.nblocks();
    e.disk.activate().map_err(|err| {
        kshim::pr_err!("dev {}: activating failed: {err}", e.disk.name());
        err.errno()
    })?;
    if e.disk.nblocks() != before {
        e.dev.capacity_data_changed();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_in_hexadecimal() {
        let eight = vec![0x50, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(naa("5000000000000001\n"), Some(eight.clone()));
        assert_eq!(naa("0x5000000000000001"), Some(eight));
        assert_eq!(naa("\n"), Some(Vec::new()));
        let sixteen = naa(&"6".repeat(32)).expect("NAA 6");
        assert_eq!(sixteen, [0x66; 16]);
        for bad in [
            "6001405a1b2c3d4e",
            "zz",
            "600140512345678",
            "500000000000000x",
        ] {
            assert_eq!(naa(bad), None, "{bad}");
        }
        assert_eq!(eui64("0x0123456789abcdef").map(|b| b.len()), Some(8));
        assert_eq!(eui64(&"ab".repeat(12)).map(|b| b.len()), Some(12));
        assert_eq!(eui64("123"), None);
        assert_eq!(hex_text(&[1, 0xab]), "0x01ab\n[key]\n");
        assert_eq!(hex_text(&[]), "\n");
    }
}
