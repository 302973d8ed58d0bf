//! Attributes at the root: the core as a whole.

use super::ScstTree;
use super::text::{first_line, flag, line, parse_i64, parse_u64};
use super::trace::{CORE_DEFAULT_FLAGS, CORE_TABLE, TraceLog};
use crate::core::{Core, DEF_MAX_TASKLET_CMD};
use kshim::error::{Result, code};
use kshim::kobject::Attr;
use kshim::time::Delta;
use std::fmt::Write;
use std::sync::{Arc, Weak};

/// The version of SCST that this is like.
#[doc(alias = "SCST_VERSION_STRING")]
pub const SCST_VERSION: &str = "3.11.0-pre";
/// Longest value of an attribute, in bytes.
#[doc(alias = "SCST_SYSFS_BLOCK_SIZE")]
const PAGE: usize = 4096;

/// What an attribute shows and stores of a core that may be gone.
fn rw(
    core: &Arc<Core>,
    name: &str,
    show: impl Fn(&Arc<Core>) -> Result<String> + Send + Sync + 'static,
    store: impl Fn(&Arc<Core>, &str) -> Result + Send + Sync + 'static,
) -> Attr {
    let (a, b) = (Arc::downgrade(core), Arc::downgrade(core));
    let alive = |core: &Weak<Core>| core.upgrade().ok_or(code::ENODEV);
    Attr::rw(
        name,
        move || show(&alive(&a)?),
        move |text| store(&alive(&b)?, text),
    )
}

fn ro(
    core: &Arc<Core>,
    name: &str,
    show: impl Fn(&Arc<Core>) -> Result<String> + Send + Sync + 'static,
) -> Attr {
    let core = Arc::downgrade(core);
    Attr::ro(name, move || show(&core.upgrade().ok_or(code::ENODEV)?))
}

/// A number that SCST cuts to 32 bits; here it has to fit.
fn parse_u32(text: &str) -> Result<u32> {
    u32::try_from(parse_u64(text)?).map_err(|_| code::EINVAL)
}

/// A word for yes or no.
#[doc(alias = "kstrtobool")]
fn parse_bool(text: &str) -> Result<bool> {
    let mut s = text.bytes().map(|b| b.to_ascii_lowercase());
    match (s.next(), s.next()) {
        (Some(b'y' | b't' | b'1'), _) | (Some(b'o'), Some(b'n')) => Ok(true),
        (Some(b'n' | b'f' | b'0'), _) | (Some(b'o'), Some(b'f')) => Ok(false),
        _ => Err(code::EINVAL),
    }
}

impl ScstTree {
    pub(super) fn add_root_attrs(&self, core: &Arc<Core>) -> Result {
        let root = self.root();
        root.add_attrs(numbers(core))?;
        root.add_attrs(switches(core))?;
        root.add_attr(root.last_result_attr("last_sysfs_mgmt_res"))?;
        root.add_attr(Attr::ro("version", || Ok(version_text())))?;
        root.add_attr(ro(core, "trace_cmds", |c| Ok(c.trace_cmds(PAGE))))?;
        root.add_attr(ro(core, "trace_mcmds", |c| Ok(c.trace_mcmds(PAGE))))?;
        let log = TraceLog::new("scst", &["scst_core"], CORE_TABLE, "", CORE_DEFAULT_FLAGS);
        root.add_attr(log.attr())
    }
}

fn numbers(core: &Arc<Core>) -> [Attr; 5] {
    [
        rw(
            core,
            "setup_id",
            |c| {
                let id = c.setup_id();
                Ok(line(format_args!("0x{id:x}"), id != 0))
            },
            |c, text| {
                c.set_setup_id(parse_u32(text)?);
                Ok(())
            },
        )
        .direct(),
        rw(
            core,
            "max_tasklet_cmd",
            |c| {
                let n = c.max_tasklet_cmd();
                Ok(line(n, n != DEF_MAX_TASKLET_CMD))
            },
            |c, text| {
                c.set_max_tasklet_cmd(parse_u32(text)?);
                Ok(())
            },
        )
        .direct(),
        rw(
            core,
            "poll_us",
            |c| Ok(line(c.poll_us(), c.poll_us() != 0)),
            |c, text| {
                c.set_poll_us(parse_u32(text)?);
                Ok(())
            },
        )
        .direct(),
        rw(
            core,
            "threads",
            |c| Ok(line(c.threads(), c.threads() != c.params().threads.max(1))),
            |c, text| {
                let n = usize::try_from(parse_i64(text)?).map_err(|_| code::EINVAL)?;
                if n == 0 {
                    return Err(code::EINVAL);
                }
                c.set_threads(n);
                Ok(())
            },
        ),
        rw(
            core,
            "suspend",
            |c| Ok(line(c.suspend_count(), false)),
            |c, text| {
                let n = parse_i64(text)?;
                if n < 0 {
                    return c.resume_by_operator();
                }
                c.suspend_by_operator(Delta::from_secs(n))
            },
        ),
    ]
}

fn switches(core: &Arc<Core>) -> [Attr; 4] {
    [
        rw(
            core,
            "measure_latency",
            |c| Ok(flag(c.measures_latency(), false)),
            |c, text| c.measure_latency(parse_i64(text)? != 0),
        ),
        rw(
            core,
            "async_lun_replace",
            |c| Ok(flag(c.async_lun_replace(), false)),
            |c, text| {
                c.set_async_lun_replace(parse_bool(text)?);
                Ok(())
            },
        )
        .direct(),
        rw(
            core,
            "force_global_sgv_pool",
            |c| {
                let on = c.sgv.force_global();
                Ok(flag(on, on))
            },
            |c, text| {
                c.sgv.set_force_global(parse_u64(text)? != 0);
                Ok(())
            },
        )
        .direct(),
        rw(
            core,
            "cluster_name",
            |c| {
                let name = c.cluster_name();
                Ok(if name.is_empty() {
                    name
                } else {
                    line(name, true)
                })
            },
            |c, text| c.set_cluster_name(first_line(text)),
        )
        .direct(),
    ]
}

/// Lines as the kernel module's. There is no build date, so that the same source is the same program.
#[doc(alias = "scst_version_show")]
fn version_text() -> String {
    let mut text = String::new();
    for (what, value) in [
        ("SCST version", SCST_VERSION),
        ("SCST build date", ""),
        ("SCST build number", "0"),
        ("SCST git commit sha1", ""),
        (
            "SCST kver",
            concat!("scst-usermode-", env!("CARGO_PKG_VERSION")),
        ),
        ("SCST arch type", std::env::consts::ARCH),
        ("SCST config", "TRACING, DEBUG"),
    ] {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{what}: {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_yes_and_no() {
        for (text, want) in [
            ("1", Ok(true)),
            ("Y\n", Ok(true)),
            ("on", Ok(true)),
            ("0\n", Ok(false)),
            ("off", Ok(false)),
            ("no", Ok(false)),
            ("", Err(code::EINVAL)),
            ("o", Err(code::EINVAL)),
            ("2", Err(code::EINVAL)),
        ] {
            assert_eq!(parse_bool(text), want, "{text:?}");
        }
    }
}
