//! `targets/DRIVER/TARGET`: directories of target ports.
//!
//! What every target has is here; what its driver has besides, the driver adds. LUNs are in `lun`, groups in `group`.
//!
//! C source: `scst_tgt_sysfs_create` of `scst/src/scst_sysfs.c`

use super::ScstTree;
use super::group::{self, GroupRef};
use super::text;
use crate::consts::DataDirection;
use crate::copy_mgr;
use crate::core::Core;
use crate::stats::{IoStatEntry, IoStats};
use crate::tgt::Tgt;
use kshim::error::{Result, code};
use kshim::kobject::{Attr, Kobject};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// `sg_tablesize` of drivers that have no limit.
const SG_TABLESIZE: u32 = 65535;
/// T10 protection information that the copy manager would pass through.
const CM_DIF_CAPABILITIES: &str = "dif_supported, hw_dif_type1_supported, hw_dif_type2_supported, \
                                   hw_dif_type3_supported\n";
/// T10 protection information checks that failed: none, as none are made.
const NO_DIF_CHECKS_FAILED: &str = "\tapp\tref\tguard\ntgt\t0\t0\t0\nscst\t0\t0\t0\ndev\t0\t0\t0\n";

/// A target for its attributes, which do not keep it.
#[derive(Clone)]
pub(super) struct TgtRef {
    pub(super) core: Weak<Core>,
    pub(super) tgt: Weak<Tgt>,
}

impl TgtRef {
    /// Errors: `ENODEV` when it is gone.
    pub(super) fn get(&self) -> Result<(Arc<Core>, Arc<Tgt>)> {
        let both = self.core.upgrade().zip(self.tgt.upgrade());
        both.ok_or(code::ENODEV)
    }
}

impl ScstTree {
    /// The directory of a driver; made when its first target comes, or by this. Context: any.
    #[doc(alias = "scst_tgtt_sysfs_create")]
    pub fn driver(&self, name: &str) -> Result<Arc<Kobject>> {
        match self.targets().child(name) {
            Some(dir) => Ok(dir),
            None => self.targets().add(name),
        }
    }

    pub(super) fn tgt_ref(&self, tgt: &Tgt) -> TgtRef {
        TgtRef {
            core: Weak::clone(&self.core),
            tgt: tgt.weak(),
        }
    }

    #[doc(alias = "scst_tgt_sysfs_create")]
    pub(super) fn add_tgt(&self, tgt: &Arc<Tgt>) -> Result {
        let dir = self.driver(tgt.template().name())?.add(tgt.name())?;
        tgt.kobj.set(&dir);
        let tgt_ref = self.tgt_ref(tgt);
        let default = GroupRef {
            tgt: tgt_ref.clone(),
            acg: tgt.default_acg_id(),
        };
        dir.add("luns")?
            .add_attr(super::lun::mgmt(default.clone()))?;
        dir.add("sessions")?;
        dir.add("ini_groups")?
            .add_attr(group::mgmt(tgt_ref.clone()))?;
        dir.add_attrs(group::attrs(&default))?;
        dir.add_attrs(attrs(&tgt_ref))?;
        dir.add_attrs(io_counters(&tgt_ref))
    }

    /// The copy manager's driver and target.
    pub(super) fn add_copy_manager(&self, core: &Core) -> Result {
        let weak = Weak::clone(&self.core);
        let dir = self.driver(copy_mgr::DRIVER_NAME)?;
        let free = move |core: &Core| {
            let cm = core.copy_manager();
            cm.allow_not_connected_copy.load(Ordering::Relaxed)
        };
        let shown = Weak::clone(&weak);
        dir.add_attr(Attr::rw(
            "allow_not_connected_copy",
            move || {
                let core = shown.upgrade().ok_or(code::ENODEV)?;
                let on = free(&core);
                Ok(text::flag(on, on))
            },
            move |s| {
                let core = weak.upgrade().ok_or(code::ENODEV)?;
                let on = text::parse_u64(s)? != 0;
                let cm = core.copy_manager();
                cm.allow_not_connected_copy.store(on, Ordering::Relaxed);
                Ok(())
            },
        ))?;
        let capabilities = || Attr::ro("dif_capabilities", || Ok(CM_DIF_CAPABILITIES.to_owned()));
        dir.add_attr(capabilities())?;
        self.add_tgt(core.copy_manager().tgt())?;
        let tgt = dir.child(copy_mgr::TARGET_NAME).ok_or(code::ENODEV)?;
        tgt.add_attrs([
            capabilities(),
            Attr::rw(
                "dif_checks_failed",
                || Ok(NO_DIF_CHECKS_FAILED.to_owned()),
                |_| Ok(()),
            ),
        ])
    }
}

/// 0 or 1 as the first character, as several attributes have it.
pub(super) fn first_digit(s: &str) -> Result<bool> {
    match s.bytes().next() {
        Some(b'0') => Ok(false),
        Some(b'1') => Ok(true),
        _ => Err(code::EINVAL),
    }
}

fn flag(
    name: &str,
    tgt: &TgtRef,
    field: fn(&Tgt) -> &AtomicBool,
    parse: fn(&str) -> Result<bool>,
) -> Attr {
    let (shown, stored) = (tgt.clone(), tgt.clone());
    Attr::rw(
        name,
        move || {
            let on = field(&shown.get()?.1).load(Ordering::Relaxed);
            Ok(text::flag(on, on))
        },
        move |s| {
            let on = parse(s)?;
            field(&stored.get()?.1).store(on, Ordering::Relaxed);
            Ok(())
        },
    )
}

fn attrs(tgt: &TgtRef) -> Vec<Attr> {
    let dst = |name| flag(name, tgt, |t| &t.forward_dst, first_digit);
    let mut all = vec![
        flag("forward_src", tgt, |t| &t.forward_src, text::parse_flag),
        dst("forward_dst"),
        // The name that it had before.
        dst("forwarding"),
        flag("aen_disabled", tgt, |t| &t.aen_disabled, first_digit),
        comment(tgt),
        rel_tgt_id(tgt),
        Attr::ro("sg_tablesize", || Ok(text::line(SG_TABLESIZE, false))),
    ];
    let can = |t: &TgtRef| Ok::<_, kshim::error::Error>(t.get()?.1.template().can_be_disabled());
    if can(tgt).unwrap_or(false) {
        all.push(enabled(tgt));
    }
    all
}

#[doc(alias = "scst_tgt_enable_store")]
fn enabled(tgt: &TgtRef) -> Attr {
    let (shown, stored) = (tgt.clone(), tgt.clone());
    Attr::rw(
        "enabled",
        move || {
            let on = shown.get()?.1.enabled.load(Ordering::Acquire);
            Ok(text::flag(on, false))
        },
        move |s| {
            let on = first_digit(s)?;
            let (core, tgt) = stored.get()?;
            core.enable_target(&tgt, on).map_err(|e| e.errno())
        },
    )
}

#[doc(alias = "scst_rel_tgt_id_store")]
fn rel_tgt_id(tgt: &TgtRef) -> Attr {
    let (shown, stored) = (tgt.clone(), tgt.clone());
    Attr::rw(
        "rel_tgt_id",
        move || {
            let id = shown.get()?.1.rel_tgt_id.load(Ordering::Relaxed);
            Ok(text::line(id, id != 0))
        },
        move |s| {
            let id = text::parse_u64(s)?;
            let (core, tgt) = stored.get()?;
            core.set_rel_tgt_id(&tgt, id).map_err(|e| e.errno())
        },
    )
}

fn comment(tgt: &TgtRef) -> Attr {
    let (shown, stored) = (tgt.clone(), tgt.clone());
    Attr::rw(
        "comment",
        move || {
            let comment = shown.get()?.1.comment();
            Ok(comment.map_or_else(String::new, |c| text::line(c, true)))
        },
        move |s| {
            let s = s.strip_suffix('\n').unwrap_or(s);
            stored.get()?.1.set_comment(s);
            Ok(())
        },
    )
}

/// The eleven counters: sums over the sessions that there are.
#[doc(alias = "SCST_TGT_SYSFS_STAT_ATTR")]
fn io_counters(tgt: &TgtRef) -> Vec<Attr> {
    let none = IoStats::attributes_of(|_| IoStatEntry::default());
    let names: Vec<_> = none.map(|(name, _)| name).collect();
    names
        .into_iter()
        .map(|name| {
            let tgt = tgt.clone();
            Attr::ro(name, move || {
                let sessions = tgt.get()?.1.sessions();
                let sum = |dir: DataDirection| {
                    let mut sum = IoStatEntry::default();
                    sessions.iter().for_each(|s| sum += s.stats.get(dir));
                    sum
                };
                let value = IoStats::attributes_of(sum).find(|(n, _)| *n == name);
                Ok(text::line(value.map_or(0, |(_, v)| v), false))
            })
        })
        .collect()
}
