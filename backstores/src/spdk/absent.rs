//! A build without SPDK.

use std::sync::Arc;

use kshim::block::{BlockOps, BlockProber};
use kshim::error::{Result, code};

use super::{SpdkConfig, WITHOUT};

struct Absent;

impl BlockProber for Absent {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        kshim::pr_err!("{path}: {WITHOUT}");
        Err(code::EOPNOTSUPP)
    }
}

pub(super) fn prober() -> Arc<dyn BlockProber> {
    Arc::new(Absent)
}

pub(super) fn start(_: &SpdkConfig) -> Result {
    kshim::pr_err!("{WITHOUT}");
    Err(code::EOPNOTSUPP)
}

pub(super) fn bounced() -> u64 {
    0
}

pub(super) fn exit() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdk::{exit, init, start};
    use kshim::block::{BlkMode, BlockDevice};

    #[test]
    fn a_bdev_is_refused_in_words() {
        init().unwrap();
        init().unwrap();
        let opened = BlockDevice::open("/dev/spdk/Malloc0", BlkMode::READ);
        assert_eq!(opened.err(), Some(code::EOPNOTSUPP));
        assert_eq!(start(&SpdkConfig::default()), Err(code::EOPNOTSUPP));
        assert!(exit());
    }
}
