//! What nearly every module needs: `use kshim::prelude::*;`.
//!
//! C header: the includes at the top of any kernel file

pub use crate::error::{Error, Result, code::*, to_result};
pub use crate::{
    bug, bug_on, build_bug_on, might_sleep, pr_alert, pr_crit, pr_debug, pr_debug_ratelimited,
    pr_emerg, pr_err, pr_err_ratelimited, pr_info, pr_info_ratelimited, pr_notice,
    pr_notice_ratelimited, pr_warn, pr_warn_ratelimited, warn_on, warn_on_once,
};
pub use std::sync::Arc;
