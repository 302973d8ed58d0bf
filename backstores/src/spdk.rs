//! `/dev/spdk/BDEV`: block devices of SPDK. Not here: this server is built without SPDK (`docs/spdk.md`), and says so
//! to whoever opens such a path.

use std::sync::{Arc, OnceLock};

use kshim::block::{BlockOps, BlockProber, register_prober};
use kshim::error::{Result, code};

/// What the paths of SPDK's block devices begin with.
pub const SPDK_PREFIX: &str = "/dev/spdk/";

/// What is said to whoever wants one.
pub const WITHOUT: &str = "this server is built without SPDK (docs/spdk.md)";

struct Absent;

impl BlockProber for Absent {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        kshim::pr_err!("{path}: {WITHOUT}");
        Err(code::EOPNOTSUPP)
    }
}

/// Makes the paths known. More than once does nothing more.
///
/// Context: any. Errors: `EEXIST`: the paths are another driver's.
pub fn init() -> Result {
    static DONE: OnceLock<Result> = OnceLock::new();
    *DONE.get_or_init(|| register_prober(SPDK_PREFIX, Arc::new(Absent)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kshim::block::{BlkMode, BlockDevice};

    #[test]
    fn a_bdev_is_refused_in_words() {
        init().unwrap();
        init().unwrap();
        let opened = BlockDevice::open("/dev/spdk/Malloc0", BlkMode::READ);
        assert_eq!(opened.err(), Some(code::EOPNOTSUPP));
    }
}
