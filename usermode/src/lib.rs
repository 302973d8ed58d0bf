//! What the server `scstd` and the tool `scstadmin` share: the configuration file and the management of a running server; and
//! the server itself ([`scstd`]), to which others can add block drivers of their own.
#![forbid(unsafe_code)]

pub mod admin;
mod chap;
mod cli;
pub mod conf;
mod config;
pub mod events;
mod exec;
mod iqn;
mod logger;
mod ports;
mod run;
#[path = "scstd.rs"]
mod scstd_main;
mod serve;
mod server;
mod signals;
mod size;
mod spdk;
mod stpgd;

use std::process::ExitCode;

use kshim::kobject::fuse::MountName;
pub use ports::Driver;

/// Where the server listens for those who manage it, and where these look, if nothing else is said: `$SCST_CONTROL`, else
/// `scst/control.sock` below `$XDG_RUNTIME_DIR` or `/run`.
pub fn control_path() -> std::path::PathBuf {
    kshim::kobject::control::default_path("SCST_CONTROL", "scst")
}

/// What our file systems are called in `/proc/mounts`.
const MOUNT_NAME: MountName<'static> = MountName {
    source: "scst_tgt",
    subtype: "scst",
};

/// Runs the server with the command line of the process, `scstd serve PATH...` and so on, to its end. The paths of `drivers`
/// can be served besides those that the server has itself. For a `main` that does nothing else.
///
/// ```no_run
/// use kshim::error::Result;
///
/// fn init() -> Result {
///     // kshim::block::register_prober("/dev/mine/", ..)
///     Ok(())
/// }
///
/// fn main() -> std::process::ExitCode {
///     scst_usermode::scstd(&[("/dev/mine/", init)])
/// }
/// ```
pub fn scstd(drivers: &[Driver]) -> ExitCode {
    scstd_main::main(drivers)
}
