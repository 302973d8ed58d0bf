//! `targets/scst_local` of the management tree.

use super::{DRIVER_NAME, LocalDriver, VERSION_DESCRIPTOR_SAS, Versions, errno};
use crate::sysfs::text::{self, Lexems};
use crate::sysfs::{DEFAULT_FLAGS, SCST_VERSION, TraceLog};
use kshim::error::{Result, code};
use kshim::kobject::Attr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Weak};

/// Date in the driver's version.
const VERSION_DATE: &str = "20110901";

const HELP: &str = "Usage: echo \"add_target target_name [parameters]\" >mgmt\n       \
    echo \"del_target target_name\" >mgmt\n       \
    echo \"add_session target_name session_name\" >mgmt\n       \
    echo \"del_session target_name session_name\" >mgmt\n\n\
    where parameters are one or more param_name=value pairs separated by ';'\n\n\n\
    The following parameters available: session_name\n\n";

/// No task management comes by this driver.
const STATS: &str = "Aborts: 0, Device Resets: 0, Target Resets: 0\n";

pub(super) fn driver_attrs(driver: &Arc<LocalDriver>) -> Vec<Attr> {
    let weak: Weak<LocalDriver> = Arc::downgrade(driver);
    let modules = &["scst_core::scst_local"];
    let trace = TraceLog::new(DRIVER_NAME, modules, &[], "", DEFAULT_FLAGS);
    vec![
        Attr::rw(
            "mgmt",
            || Ok(HELP.to_owned()),
            move |s| store(&weak.upgrade().ok_or(code::ENODEV)?, s),
        ),
        Attr::ro("stats", || Ok(STATS.to_owned())),
        Attr::ro("version", || {
            Ok(format!("{SCST_VERSION}/{VERSION_DATE}\nTRACING\nDEBUG\n"))
        }),
        trace.attr(),
    ]
}

#[doc(alias = "scst_local_sysfs_mgmt_cmd")]
fn store(driver: &Arc<LocalDriver>, s: &str) -> Result {
    let mut words = Lexems::new(s);
    let action = words.next_lexem().to_ascii_lowercase();
    let target = words.next_lexem();
    if target.is_empty() {
        return Err(code::EINVAL);
    }
    match action.as_str() {
        "add_target" => add_target(driver, target, &mut words),
        "del_target" => {
            if driver.find(target).is_err() {
                return Err(code::ENOENT);
            }
            driver.remove_target(target).map_err(|e| errno(&e))
        }
        "add_session" | "del_session" => {
            let name = words.next_lexem();
            driver.find(target).map_err(|e| errno(&e))?;
            if name.is_empty() {
                return Err(code::EINVAL);
            }
            let done = match action.as_str() {
                "add_session" => driver.add_session(target, name).map(|_| ()),
                _ => driver.remove_session(target, name),
            };
            done.map_err(|e| errno(&e))
        }
        _ => Err(code::EINVAL),
    }
}

#[doc(alias = "scst_local_sysfs_add_target")]
fn add_target(driver: &Arc<LocalDriver>, name: &str, words: &mut Lexems<'_>) -> Result {
    driver.add_target(name).map_err(|e| errno(&e))?;
    let sessions = || {
        while let Some(token) = words.next_token() {
            let mut token = Lexems::new(token);
            let (param, value) = (token.next_lexem(), token.next_lexem());
            if param.is_empty() {
                break;
            }
            if !param.eq_ignore_ascii_case("session_name") || value.is_empty() {
                return Err(code::EINVAL);
            }
            driver.add_session(name, value).map_err(|e| errno(&e))?;
        }
        Ok(())
    };
    let mut sessions = sessions;
    sessions().inspect_err(|_| {
        let removed = driver.remove_target(name);
        if let Err(e) = removed {
            kshim::pr_err!("{e}");
        }
    })
}

pub(super) fn target_attrs(versions: &Arc<Versions>) -> [Attr; 2] {
    let scsi: fn(&Versions) -> &AtomicU16 = |v| &v.scsi;
    [
        version(
            versions,
            "scsi_transport_version",
            scsi,
            VERSION_DESCRIPTOR_SAS,
        ),
        version(versions, "phys_transport_version", |v| &v.phys, 0),
    ]
}

fn version(
    versions: &Arc<Versions>,
    name: &str,
    field: fn(&Versions) -> &AtomicU16,
    default: u16,
) -> Attr {
    let (shown, stored) = (Arc::clone(versions), Arc::clone(versions));
    Attr::rw(
        name,
        move || {
            let v = field(&shown).load(Ordering::Relaxed);
            let told = if v == 0 { default } else { v };
            Ok(text::line(format_args!("0x{told:x}"), v != 0))
        },
        move |s| {
            let v = u16::try_from(text::parse_u64(s)?).map_err(|_| code::EINVAL)?;
            field(&stored).store(v, Ordering::Relaxed);
            Ok(())
        },
    )
}
