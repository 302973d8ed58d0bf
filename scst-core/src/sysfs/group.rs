//! `ini_groups/`: groups of initiators, and the attributes that the default group of a target has in the target's directory.
//!
//! C source: `scst_acg_sysfs_create`, `scst_process_ini_group_mgmt_store`, `scst_process_acg_ini_mgmt_store` of
//! `scst/src/scst_sysfs.c`

use super::ScstTree;
use super::target::TgtRef;
use super::text::{self, Lexems};
use crate::acg::{Acg, AcgAttrs, AcgId, BlackHole, IoGrouping};
use crate::core::ConfigError;
use crate::lun::AddrMethod;
use crate::tgt::Tgt;
use kshim::error::{Result, code};
use kshim::kobject::Attr;
use kshim::pr_err;

const MGMT_HELP: &str =
    "Usage: echo \"create GROUP_NAME\" >mgmt\n       echo \"del GROUP_NAME\" >mgmt\n";
const INITIATORS_HELP: &str = "Usage: echo \"add INITIATOR_NAME\" >mgmt\n       \
    echo \"del INITIATOR_NAME\" >mgmt\n       \
    echo \"move INITIATOR_NAME DEST_GROUP_NAME\" >mgmt\n       \
    echo \"clear\" >mgmt\n";

/// Names of [`IoGrouping`] in the tree.
const AUTO: &str = "auto";
const THIS_GROUP_ONLY: &str = "this_group_only";
const NEVER: &str = "never";

/// A group for its attributes.
#[derive(Clone)]
pub(super) struct GroupRef {
    pub(super) tgt: TgtRef,
    pub(super) acg: AcgId,
}

impl GroupRef {
    fn attrs(&self) -> Result<AcgAttrs> {
        let (_, tgt) = self.tgt.get()?;
        Ok(tgt.acg_attrs(self.acg))
    }

    fn change(&self, change: impl FnOnce(&mut AcgAttrs)) -> Result {
        let (core, tgt) = self.tgt.get()?;
        let done = core.set_acg_attrs(&tgt, self.acg, change);
        done.map_err(|e| e.errno())
    }
}

fn failed(e: &ConfigError) -> kshim::error::Error {
    pr_err!("{e}");
    e.errno()
}

/// `mgmt` of a target's groups.
pub(super) fn mgmt(tgt: TgtRef) -> Attr {
    let store = move |s: &str| {
        let mut words = Lexems::new(s);
        let (action, name) = (words.next_lexem(), words.next_lexem());
        let (core, tgt) = tgt.get()?;
        match action.to_ascii_lowercase().as_str() {
            "create" | "del" if name.is_empty() => Err(code::EINVAL),
            "create" => core.add_acg(&tgt, name).map(|_| ()).map_err(|e| failed(&e)),
            "del" => {
                let acg = tgt.acg_by_name(name).ok_or(code::EINVAL)?;
                core.del_acg(&tgt, acg).map_err(|e| failed(&e))
            }
            _ => Err(code::EINVAL),
        }
    };
    Attr::rw("mgmt", || Ok(MGMT_HELP.to_owned()), store)
}

#[doc(alias = "scst_process_acg_ini_mgmt_store")]
fn store_initiators(group: &GroupRef, s: &str) -> Result {
    let mut words = Lexems::new(s);
    let (action, name) = (words.next_lexem(), words.next_lexem());
    let (core, tgt) = group.tgt.get()?;
    let acg = group.acg;
    let done = match action.to_ascii_lowercase().as_str() {
        "clear" => core.clear_acns(&tgt, acg),
        "add" | "del" | "move" if name.is_empty() => return Err(code::EINVAL),
        "add" => core.add_acn(&tgt, acg, name),
        "del" => core.del_acn(&tgt, acg, name),
        "move" => {
            let to = tgt.acg_by_name(words.next_lexem()).ok_or(code::EINVAL)?;
            core.move_acn(&tgt, acg, to, name)
        }
        _ => return Err(code::EINVAL),
    };
    done.map_err(|e| failed(&e))
}

/// Attributes of a group.
pub(super) fn attrs(group: &GroupRef) -> Vec<Attr> {
    vec![
        addr_method(group.clone()),
        io_grouping_type(group.clone()),
        black_hole(group.clone()),
        cpu_mask(group.clone()),
    ]
}

/// Whether `s` begins as `word` does, whatever the case: as far as both go, as in SCST.
fn begins_as(s: &str, word: &str) -> bool {
    let n = s.len().min(word.len());
    n > 0
        && s.as_bytes()
            .get(..n)
            .zip(word.as_bytes().get(..n))
            .is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
}

#[doc(alias = "__scst_acg_addr_method_store")]
fn addr_method(group: GroupRef) -> Attr {
    let shown = group.clone();
    Attr::rw(
        "addr_method",
        move || {
            let method = shown.attrs()?.addr_method;
            Ok(text::line(method.name(), method != AddrMethod::default()))
        },
        move |s| {
            let methods = [AddrMethod::Flat, AddrMethod::Peripheral, AddrMethod::Lun];
            let method = methods.into_iter().find(|m| begins_as(s, m.name()));
            let method = method.ok_or(code::EINVAL)?;
            group.change(|a| a.addr_method = method)
        },
    )
}

#[doc(alias = "__scst_acg_io_grouping_type_store")]
fn io_grouping_type(group: GroupRef) -> Attr {
    let shown = group.clone();
    Attr::rw(
        "io_grouping_type",
        move || {
            Ok(match shown.attrs()?.io_grouping {
                IoGrouping::Auto => text::line(AUTO, false),
                IoGrouping::ThisGroupOnly => text::line(THIS_GROUP_ONLY, true),
                IoGrouping::Never => text::line(NEVER, true),
                IoGrouping::Group(n) => text::line(n, true),
            })
        },
        move |s| {
            let grouping = if begins_as(s, AUTO) {
                IoGrouping::Auto
            } else if begins_as(s, THIS_GROUP_ONLY) {
                IoGrouping::ThisGroupOnly
            } else if begins_as(s, NEVER) {
                IoGrouping::Never
            } else {
                let n = i32::try_from(text::parse_i64(s)?).ok();
                IoGrouping::Group(n.filter(|n| *n > 0).ok_or(code::EINVAL)?)
            };
            group.change(|a| a.io_grouping = grouping)
        },
    )
}

#[doc(alias = "__scst_acg_black_hole_store")]
fn black_hole(group: GroupRef) -> Attr {
    let shown = group.clone();
    Attr::rw(
        "black_hole",
        move || Ok(text::line(shown.attrs()?.black_hole as u8, false)),
        move |s| {
            let digit = s.bytes().next().and_then(|b| b.checked_sub(b'0'));
            let hole = digit.and_then(BlackHole::from_number);
            let hole = hole.ok_or(code::EINVAL)?;
            group.change(|a| a.black_hole = hole)
        },
    )
}

/// Processors of the host that a mask can name.
fn cpus() -> u32 {
    u32::try_from(kshim::host::cpus())
        .unwrap_or(64)
        .clamp(1, 64)
}

fn all_cpus() -> u64 {
    u64::MAX
        .checked_shr(64_u32.saturating_sub(cpus()))
        .unwrap_or(0)
}

/// A mask in hexadecimal digits, as many as the host has processors for, a comma after each eight.
#[doc(alias = "cpumask_pr_args")]
fn mask_text(mask: u64) -> String {
    let digits = usize::try_from(cpus().div_ceil(4)).unwrap_or(16);
    let hex = format!("{mask:0digits$x}");
    let first = match hex.len() % 8 {
        0 => 8,
        n => n,
    };
    let (head, tail) = hex.split_at_checked(first).unwrap_or((&hex, ""));
    tail.as_bytes()
        .chunks(8)
        .fold(head.to_owned(), |mut text, chunk| {
            text.push(',');
            text.extend(chunk.iter().map(|b| char::from(*b)));
            text
        })
}

/// Errors: `EINVAL` (no hexadecimal digits), `EOVERFLOW` (processors that the host does not have).
#[doc(alias = "bitmap_parse")]
fn parse_mask(s: &str) -> Result<u64> {
    let hex: String = s.trim().chars().filter(|c| *c != ',').collect();
    if hex.is_empty() || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(code::EINVAL);
    }
    let mask = u64::from_str_radix(&hex, 16).map_err(|_| code::EOVERFLOW)?;
    if mask & !all_cpus() != 0 {
        return Err(code::EOVERFLOW);
    }
    Ok(mask)
}

#[doc(alias = "__scst_acg_cpu_mask_store")]
fn cpu_mask(group: GroupRef) -> Attr {
    let shown = group.clone();
    Attr::rw(
        "cpu_mask",
        move || {
            let mask = shown.attrs()?.cpu_mask;
            Ok(text::line(
                mask_text(mask.unwrap_or_else(all_cpus)),
                mask.is_some(),
            ))
        },
        move |s| {
            let mask = parse_mask(s)?;
            group.change(|a| a.cpu_mask = (mask != all_cpus()).then_some(mask))
        },
    )
}

impl ScstTree {
    #[doc(alias = "scst_acg_sysfs_create")]
    pub(super) fn add_acg(&self, tgt: &Tgt, acg: &Acg) -> Result {
        if tgt.default_acg_id() == acg.id() {
            return Ok(());
        }
        let groups = tgt.kobj.get().and_then(|d| d.child("ini_groups"));
        let dir = groups.ok_or(code::ENODEV)?.add(&acg.name)?;
        let group = GroupRef {
            tgt: self.tgt_ref(tgt),
            acg: acg.id(),
        };
        dir.add("luns")?.add_attr(super::lun::mgmt(group.clone()))?;
        dir.add_attrs(attrs(&group))?;
        dir.add_attrs(tgt.template().group_sysfs_attrs())?;
        let initiators = Attr::rw(
            "mgmt",
            || Ok(INITIATORS_HELP.to_owned()),
            move |s| store_initiators(&group, s),
        );
        dir.add("initiators")?.add_attr(initiators)?;
        acg.acns.iter().try_for_each(|p| self.add_acn(tgt, acg, p))
    }

    #[doc(alias = "scst_acg_sysfs_del")]
    pub(super) fn del_acg(&self, tgt: &Tgt, acg: &Acg) {
        let groups = tgt.kobj.get().and_then(|d| d.child("ini_groups"));
        if let Some(dir) = groups.and_then(|d| d.child(&acg.name)) {
            dir.del();
        }
    }

    fn initiators_dir(tgt: &Tgt, acg: &Acg) -> Option<std::sync::Arc<kshim::kobject::Kobject>> {
        let groups = tgt.kobj.get()?.child("ini_groups")?;
        groups.child(&acg.name)?.child("initiators")
    }

    #[doc(alias = "scst_acn_sysfs_create")]
    pub(super) fn add_acn(&self, tgt: &Tgt, acg: &Acg, pattern: &str) -> Result {
        let dir = Self::initiators_dir(tgt, acg).ok_or(code::ENODEV)?;
        let name = pattern.to_owned();
        dir.add_attr(Attr::ro(pattern, move || Ok(text::line(&name, false))))
    }

    #[doc(alias = "scst_acn_sysfs_del")]
    pub(super) fn del_acn(&self, tgt: &Tgt, acg: &Acg, pattern: &str) {
        if let Some(dir) = Self::initiators_dir(tgt, acg) {
            // Gone already with the whole directory, if so.
            let _: Result = dir.remove_attr(pattern);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        assert_eq!(parse_mask("1\n"), Ok(1));
        assert_eq!(parse_mask("0"), Ok(0));
        assert_eq!(parse_mask("zz"), Err(code::EINVAL));
        assert_eq!(parse_mask(""), Err(code::EINVAL));
        assert_eq!(parse_mask("1,00000000,00000000"), Err(code::EOVERFLOW));
        let all = mask_text(all_cpus());
        assert_eq!(parse_mask(&all), Ok(all_cpus()));
    }

    #[test]
    fn words_are_compared_as_far_as_they_go() {
        assert!(begins_as("FLAT\n", "FLAT") && begins_as("fl", "FLAT"));
        assert!(begins_as("FLATTER", "FLAT") && !begins_as("LUN", "FLAT"));
        assert!(!begins_as("", "FLAT"));
    }
}
