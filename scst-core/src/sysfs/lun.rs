//! `luns/`: the LUN map of a group.
//!
//! C source: `__scst_process_luns_mgmt_store`, `scst_acg_dev_sysfs_create` of `scst/src/scst_sysfs.c`

use super::ScstTree;
use super::group::GroupRef;
use super::text::{self, Lexems};
use crate::acg::{Acg, AcgDev};
use crate::core::{LunParams, ReplaceUa};
use crate::tgt::Tgt;
use kshim::error::{Result, code};
use kshim::kobject::{Attr, Kobject};
use kshim::pr_err;
use std::sync::Arc;

const HELP: &str = "Usage: echo \"add H:C:I:L lun [parameters]\" >mgmt\n       \
    echo \"add VNAME lun [parameters]\" >mgmt\n       \
    echo \"del lun\" >mgmt\n       \
    echo \"replace H:C:I:L lun [parameters]\" >mgmt\n       \
    echo \"replace VNAME lun [parameters]\" >mgmt\n       \
    echo \"replace_no_ua H:C:I:L lun [parameters]\" >mgmt\n       \
    echo \"replace_no_ua VNAME lun [parameters]\" >mgmt\n       \
    echo \"clear\" >mgmt\n\n\
    where parameters are one or more param_name=value pairs separated by ';'\n\n\
    The following parameters available: read_only\n";

/// `mgmt` of the LUNs of a group.
pub(super) fn mgmt(group: GroupRef) -> Attr {
    Attr::rw("mgmt", || Ok(HELP.to_owned()), move |s| store(&group, s))
}

fn nothing_more(words: &mut Lexems<'_>) -> Result {
    match words.next_lexem() {
        "" => Ok(()),
        _ => Err(code::EINVAL),
    }
}

#[doc(alias = "__scst_process_luns_mgmt_store")]
fn store(group: &GroupRef, s: &str) -> Result {
    let (core, tgt) = group.tgt.get()?;
    let mut words = Lexems::new(s);
    let action = words.next_lexem().to_ascii_lowercase();
    let done = match action.as_str() {
        "add" | "replace" | "replace_no_ua" => {
            let name = words.next_lexem();
            let dev = core.device(name).ok_or_else(|| {
                pr_err!("Device '{name}' not found");
                code::EINVAL
            })?;
            let lun = text::parse_u64(words.next_lexem())?;
            let params = params(&mut words)?;
            let ua = match action.as_str() {
                "add" => None,
                "replace" => Some(ReplaceUa::InquiryDataChanged),
                _ => Some(ReplaceUa::Silent),
            };
            match ua {
                None => core.add_lun(&tgt, group.acg, &dev, lun, params),
                Some(ua) => core.replace_lun(&tgt, group.acg, &dev, lun, params, ua),
            }
        }
        "del" => {
            let lun = text::parse_u64(words.next_lexem())?;
            nothing_more(&mut words)?;
            core.del_lun(&tgt, group.acg, lun)
        }
        "clear" => {
            nothing_more(&mut words)?;
            core.clear_luns(&tgt, group.acg)
        }
        _ => return Err(code::EINVAL),
    };
    done.map_err(|e| {
        pr_err!("{e}");
        e.errno()
    })
}

#[doc(alias = "scst_parse_add_repl_param")]
fn params(words: &mut Lexems<'_>) -> Result<LunParams> {
    let mut params = LunParams::default();
    while let Some(token) = words.next_token() {
        let mut token = Lexems::new(token);
        let (name, value) = (token.next_lexem(), token.next_lexem());
        nothing_more(&mut token)?;
        let value = text::parse_u64(value)?;
        if !name.eq_ignore_ascii_case("read_only") {
            pr_err!("Unknown parameter {name}");
            return Err(code::EINVAL);
        }
        params.read_only = value != 0;
    }
    Ok(params)
}

impl ScstTree {
    /// The directory with the LUNs of a group.
    pub(super) fn luns_dir(tgt: &Tgt, acg: &Acg) -> Option<Arc<Kobject>> {
        let dir = tgt.kobj.get()?;
        if tgt.default_acg_id() == acg.id() {
            return dir.child("luns");
        }
        dir.child("ini_groups")?.child(&acg.name)?.child("luns")
    }

    /// Context: under the configuration lock.
    #[doc(alias = "scst_acg_dev_sysfs_create")]
    pub(super) fn add_lun(&self, tgt: &Tgt, acg: &Acg, lun: u64, entry: &AcgDev) -> Result {
        let luns = Self::luns_dir(tgt, acg).ok_or(code::ENODEV)?;
        let dir = luns.add(&lun.to_string())?;
        if let Some(dev) = entry.dev.kobj.get() {
            dir.add_link("device", &dev)?;
        }
        let read_only = entry.read_only || entry.dev.handler().is_read_only();
        dir.add_attr(Attr::ro("read_only", move || {
            Ok(text::flag(read_only, read_only))
        }))?;
        entry.dev.add_export(&dir)
    }

    /// Context: under the configuration lock, so its attributes must not take that.
    #[doc(alias = "scst_acg_dev_sysfs_del")]
    pub(super) fn del_lun(&self, tgt: &Tgt, acg: &Acg, lun: u64, entry: &AcgDev) {
        let luns = Self::luns_dir(tgt, acg);
        if let Some(dir) = luns.and_then(|d| d.child(&lun.to_string())) {
            entry.dev.del_export(&dir);
            dir.del();
        }
    }
}
