//! `/dev/tcmur/SUBTYPE/CFGSTRING[?size=BYTES&timeout=SECONDS]`

use kshim::prelude::*;
use kshim::time::Delta;

use super::TCMUR_PREFIX;
use crate::options::{parse_size, split_options};

/// How long a command may take before it is failed, unless the path says otherwise: longer than handler_rbd waits for an
/// OSD (31 s).
pub const DEFAULT_TIMEOUT: Delta = Delta::from_secs(60);
/// Longest timeout that can be asked for.
const MAX_TIMEOUT_SECS: i64 = 24 * 3600;
/// What stands for no target port group where locks are named after them.
pub(super) const NO_GROUP: u16 = u16::MAX;
/// Longest path.
const MAX_LEN: usize = 4096;

/// What a path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    /// The whole path.
    pub(super) path: String,
    /// Kind of handler.
    pub(super) subtype: String,
    /// What follows it: for the handler.
    pub(super) cfg: String,
    /// `size=`
    pub(super) size: Option<u64>,
    /// `timeout=`; `None`: never.
    pub(super) timeout: Option<Delta>,
    /// `lock=`: other servers have the same device, and one at a time writes.
    pub(super) lock: Locking,
}

/// Who has the lock of a device that several servers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locking {
    /// Nobody else has the device.
    Off,
    /// Who writes takes it.
    Implicit,
    /// Who opens the device takes it, in the name of this target port group.
    Explicit(u16),
}

impl Spec {
    /// Takes a path apart.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no path of this kind, or an option that is not known.
    pub(super) fn parse(path: &str) -> Result<Spec> {
        let rest = path.strip_prefix(TCMUR_PREFIX).ok_or(EINVAL)?;
        let (subtype, rest) = rest.split_once('/').ok_or(EINVAL)?;
        if subtype.is_empty() || rest.is_empty() || path.len() > MAX_LEN || path.contains('\0') {
            return Err(EINVAL);
        }
        let mut spec = Spec {
            path: path.to_owned(),
            subtype: subtype.to_owned(),
            cfg: rest.to_owned(),
            size: None,
            timeout: Some(DEFAULT_TIMEOUT),
            lock: Locking::Off,
        };
        let (cfg, options) = split_options(rest);
        spec.cfg = cfg.to_owned();
        for (key, value) in options {
            spec.option(key, value).inspect_err(|_| {
                pr_err!("{path}: {key:?} is no option, as size=BYTES, timeout=SECONDS, lock=on, lock=group-N");
            })?;
        }
        Ok(spec)
    }

    fn option(&mut self, key: &str, value: &str) -> Result {
        match (key, value) {
            ("size", n) => self.size = Some(parse_size(n).ok_or(EINVAL)?),
            ("timeout", n) => {
                let secs: i64 = n.parse().map_err(|_| EINVAL)?;
                if !(0..=MAX_TIMEOUT_SECS).contains(&secs) {
                    return Err(EINVAL);
                }
                self.timeout = (secs > 0).then(|| Delta::from_secs(secs));
            }
            ("lock", "on") => self.lock = Locking::Implicit,
            ("lock", "off") => self.lock = Locking::Off,
            ("lock", group) => {
                let group = group.strip_prefix("group-").ok_or(EINVAL)?;
                let group = group.parse().map_err(|_| EINVAL)?;
                if group == NO_GROUP {
                    return Err(EINVAL);
                }
                self.lock = Locking::Explicit(group);
            }
            // The handler's own are set off by semicolons, which have another meaning for management.
            ("id" | "conf" | "osd_op_timeout", _) if self.subtype == "rbd" => {
                self.cfg.push_str(&format!(";{key}={value}"));
            }
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// What the handler gets, and knows the device by.
    pub(super) fn cfgstring(&self) -> String {
        format!("{}/{}", self.subtype, self.cfg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let s = Spec::parse("/dev/tcmur/qcow//images/a.qcow2").unwrap();
        assert_eq!(
            (s.subtype.as_str(), s.cfg.as_str()),
            ("qcow", "/images/a.qcow2")
        );
        assert_eq!(s.cfgstring(), "qcow//images/a.qcow2");
        assert_eq!((s.size, s.timeout), (None, Some(DEFAULT_TIMEOUT)));
        let s = Spec::parse("/dev/tcmur/rbd/pool/image;id=a?size=2G&timeout=0").unwrap();
        assert_eq!(s.cfg, "pool/image;id=a");
        assert_eq!((s.size, s.timeout), (Some(2 << 30), None));
        let s = Spec::parse("/dev/tcmur/rbd/pool/image?conf=/c&timeout=9&id=me").unwrap();
        assert_eq!(s.cfgstring(), "rbd/pool/image;conf=/c;id=me");
        let s = Spec::parse("/dev/tcmur/rbd/pool/image?lock=on").unwrap();
        assert_eq!(
            (s.lock, s.cfgstring().as_str()),
            (Locking::Implicit, "rbd/pool/image")
        );
        let s = Spec::parse("/dev/tcmur/rbd/pool/image?lock=group-7").unwrap();
        assert_eq!(s.lock, Locking::Explicit(7));
        let s = Spec::parse("/dev/tcmur/qcow//what?").unwrap();
        assert_eq!(s.cfg, "/what?");
    }

    #[test]
    fn what_is_no_path_of_ours_is_refused() {
        for path in [
            "/dev/tcmur/",
            "/dev/tcmur/qcow",
            "/dev/tcmur/qcow/",
            "/dev/tcmur//x",
            "/dev/ram/x",
            "/dev/tcmur/qcow//x?size=",
            "/dev/tcmur/qcow//x?size=0",
            "/dev/tcmur/qcow//x?size=-1",
            "/dev/tcmur/qcow//x?size=99999999T",
            "/dev/tcmur/qcow//x?sise=1",
            "/dev/tcmur/qcow//x?timeout=1e3",
            "/dev/tcmur/qcow//x?id=me",
            "/dev/tcmur/rbd/p/i?lock=1",
            "/dev/tcmur/rbd/p/i?lock=group-",
            "/dev/tcmur/rbd/p/i?lock=group-65535",
        ] {
            assert_eq!(Spec::parse(path), Err(EINVAL), "{path}");
        }
        let long = format!("/dev/tcmur/qcow/{}", "x".repeat(MAX_LEN));
        assert_eq!(Spec::parse(&long), Err(EINVAL));
    }
}
