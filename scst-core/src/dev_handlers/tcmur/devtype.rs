//! The handler, as management knows it: making and removing devices.

use super::Tcmur;
use crate::consts::{MAX_NAME, TYPE_DISK};
use crate::core::Core;
use crate::dev_type::DevHandler;
use crate::sysfs::text::parse_flag;
use crate::sysfs::{DEFAULT_FLAGS, DevType, TraceLog};
use kshim::error::{Result, code};
use std::path::Path;
use std::sync::Arc;

/// Parameters of `add_device`.
const PARAMS: &[&str] = &["filename", "read_only"];

/// The handler.
#[derive(Debug)]
struct TcmurType {
    trace: Arc<TraceLog>,
}

/// What to register so that management can make such devices.
#[must_use]
pub fn dev_type() -> Arc<dyn DevType> {
    let modules = &["scst_core::dev_handlers::tcmur"];
    Arc::new(TcmurType {
        trace: TraceLog::new("tcmur", modules, &[], "", DEFAULT_FLAGS),
    })
}

/// File name, and whether it is read only.
fn parse(params: &str) -> Result<(&str, bool)> {
    let (mut filename, mut read_only) = (None, false);
    for pair in params.split(';').map(str::trim).filter(|p| !p.is_empty()) {
        match pair.split_once('=') {
            Some(("filename", path)) if path.starts_with('/') => filename = Some(path),
            Some(("read_only", on)) => read_only = parse_flag(on)?,
            _ => {
                kshim::pr_err!("Syntax error at \"{pair}\", or unknown parameter");
                return Err(code::EINVAL);
            }
        }
    }
    let Some(filename) = filename else {
        kshim::pr_err!("File name required");
        return Err(code::EINVAL);
    };
    Ok((filename, read_only))
}

impl DevType for TcmurType {
    fn name(&self) -> &'static str {
        "tcmur"
    }

    fn type_code(&self) -> u8 {
        TYPE_DISK
    }

    fn add_device_parameters(&self) -> &'static [&'static str] {
        PARAMS
    }

    fn add_device(&self, core: &Arc<Core>, name: &str, params: &str) -> Result {
        if core.device(name).is_some() {
            return Err(code::EEXIST);
        }
        if name.len() > MAX_NAME {
            kshim::pr_err!("Name {name} is too long (max allowed {MAX_NAME})");
            return Err(code::EINVAL);
        }
        let (filename, read_only) = parse(params)?;
        let dev = Tcmur::open(name, Path::new(filename), read_only)
            .inspect_err(|e| kshim::pr_err!("Device {name}: {filename}: {e}"))?;
        core.register_virtual_device(name, dev)
            .map(drop)
            .map_err(|e| {
                kshim::pr_err!("{e}");
                e.errno()
            })
    }

    fn del_device(&self, core: &Arc<Core>, name: &str) -> Result {
        let ours = |h: &Arc<dyn DevHandler>| h.as_any().is_some_and(|h| h.is::<Tcmur>());
        if !core.device(name).is_some_and(|d| ours(d.handler())) {
            kshim::pr_err!("Device {name} not found");
            return Err(code::EINVAL);
        }
        core.unregister_virtual_device(name).map_err(|e| {
            kshim::pr_err!("{e}");
            e.errno()
        })
    }

    fn trace(&self) -> Arc<TraceLog> {
        Arc::clone(&self.trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let path = "/dev/tcmur/zbc/model-HM@/z?size=1G";
        assert_eq!(parse(&format!("filename={path}")), Ok((path, false)));
        assert_eq!(
            parse(&format!(" read_only=1; filename={path};")),
            Ok((path, true))
        );
        for bad in [
            "",
            "filename=",
            "filename=x",
            "filename=/x;what=1",
            "filename=/x;read_only=2",
            "x",
        ] {
            assert_eq!(parse(bad), Err(code::EINVAL), "{bad}");
        }
    }
}
