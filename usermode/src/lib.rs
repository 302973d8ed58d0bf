//! What the server `scstd` and the tool `scstadmin` share: the configuration file and the management of a running server.
#![forbid(unsafe_code)]

pub mod admin;
pub mod conf;
pub mod events;

use std::path::PathBuf;

/// Where the server listens for those who manage it, and where these look, if nothing else is said: `$SCST_CONTROL`, else
/// `scst/control.sock` below `$XDG_RUNTIME_DIR` or `/run`.
pub fn control_path() -> PathBuf {
    kshim::kobject::control::default_path("SCST_CONTROL", "scst")
}
