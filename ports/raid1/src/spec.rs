//! `/dev/raid1/NAME?leg=PATH&leg=PATH&...`

use crate::PREFIX;
use crate::meta::{MAX_LEGS, MAX_NAME, MIN_REGION};
use kshim::params::Params;
use kshim::prelude::*;
use kshim::time::Delta;

/// What a path says; the table is in the documentation of the crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) legs: Vec<String>,
    pub(crate) create: bool,
    pub(crate) assume_clean: bool,
    pub(crate) degraded: bool,
    pub(crate) region: Option<u64>,
    pub(crate) bitmap_delay: Delta,
    pub(crate) readd: Delta,
    pub(crate) speed_min: u64,
    pub(crate) speed_max: u64,
}

impl Spec {
    /// Takes a path apart. Errors: `EINVAL`.
    pub(crate) fn parse(path: &str) -> Result<Spec> {
        let (path, mut p) = Params::split_path(path)?;
        let name = path.strip_prefix(PREFIX).ok_or(EINVAL)?.to_owned();
        let millis = |n: Option<u32>, default| Delta::from_millis(i64::from(n.unwrap_or(default)));
        let spec = Spec {
            legs: p.texts("leg"),
            create: p.flag("create")?.unwrap_or(false),
            assume_clean: p.flag("assume_clean")?.unwrap_or(false),
            degraded: p.flag("degraded")?.unwrap_or(false),
            region: p.size("region")?,
            bitmap_delay: millis(p.number("bitmap_delay")?, 5000),
            readd: Delta::from_secs(i64::from(p.number::<u32>("readd")?.unwrap_or(10))),
            speed_min: p.size("sync_speed_min")?.unwrap_or(8 << 20),
            speed_max: p.size("sync_speed_max")?.unwrap_or(0),
            name,
        };
        p.finish()?;
        let bad = |c: char| c == '/' || c.is_control();
        let name = !spec.name.is_empty() && spec.name.len() <= MAX_NAME && !spec.name.contains(bad);
        let legs = (1..=MAX_LEGS).contains(&spec.legs.len())
            && spec.legs.iter().all(|l| l.starts_with('/'))
            // One could not be told from the other.
            && spec.legs.iter().enumerate().all(|(i, l)| !spec.legs.iter().skip(i + 1).any(|m| m == l));
        let region = spec
            .region
            .is_none_or(|r| r.is_power_of_two() && r >= MIN_REGION);
        if name && legs && region {
            Ok(spec)
        } else {
            Err(EINVAL)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let s = Spec::parse(
            "/dev/raid1/m?leg=/a&leg:/dev/nbd/h/x%3Freconnect=5%26timeout=5&create&region=1M",
        )
        .unwrap();
        assert_eq!(s.legs, ["/a", "/dev/nbd/h/x?reconnect=5&timeout=5"]);
        assert!(s.create && !s.degraded && s.region == Some(1 << 20));
        for bad in [
            "/dev/raid1/?leg=/a",
            "/dev/raid1/m",
            "/dev/raid1/m?leg=a",
            "/dev/raid1/a/b?leg=/a",
            "/dev/raid1/m?leg=/a&leg=/a",
            "/dev/raid1/m?leg=/a&region=100000",
            "/dev/raid1/m?leg=/a&x=1",
        ] {
            assert_eq!(Spec::parse(bad), Err(EINVAL), "{bad}");
        }
    }
}
