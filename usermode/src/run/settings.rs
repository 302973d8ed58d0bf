//! What `run` was asked for, checked before anything is touched.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use backstores::{ram, spdk, tcmur};
use kshim::host;

use super::config::ConfigFile;
use crate::cli::{Poller, RunArgs};
use crate::spdk::Spdk;
use crate::{config, ports};

/// Where kernel SCST keeps its state, and so does root's server.
const SYSTEM_STATE_DIR: &str = "/var/lib/scst";
/// Portals if none is named: every address, iSCSI's port.
const DEFAULT_PORTALS: [&str; 2] = ["0.0.0.0:3260", "[::]:3260"];

/// A server to be started.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) portals: Vec<SocketAddr>,
    /// Nobody named portals: one that this host cannot have is left out.
    pub(super) default_portals: bool,
    pub(super) config: Option<ConfigFile>,
    pub(super) control: PathBuf,
    pub(super) sysfs: Option<PathBuf>,
    pub(super) block_sysfs: Option<PathBuf>,
    pub(super) state_dir: PathBuf,
    pub(super) cpus: usize,
    pub(super) poller: Poller,
}

impl Settings {
    /// Checks the arguments. Creates nothing.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub(super) fn check(args: &RunArgs) -> Result<Self> {
        args.engine.apply(args.poller)?;
        ram::init().context("RAM disks")?;
        spdk::init().context("SPDK")?;
        Spdk::check(&args.spdk)?;
        tcmur::init(args.handler_dir.as_deref()).context("--handler-dir")?;
        ports::init().context("block drivers")?;
        let default_portals = args.portals.is_empty();
        let portals = if default_portals {
            config::portals(&DEFAULT_PORTALS.map(str::to_owned))?
        } else {
            config::portals(&args.portals)?
        };
        Ok(Self {
            portals,
            default_portals,
            config: ConfigFile::of(args),
            control: args.control.clone().unwrap_or_else(crate::control_path),
            sysfs: args.sysfs.clone(),
            block_sysfs: args.block_sysfs.clone(),
            state_dir: args.state_dir.clone().unwrap_or_else(default_state_dir),
            cpus: config::cpus(args.cpus.as_deref())?,
            poller: args.poller,
        })
    }
}

/// `/var/lib/scst` for root, `scst` in the user's directory for state otherwise.
fn default_state_dir() -> PathBuf {
    let var = |name| host::env(name).filter(|v| v.starts_with('/'));
    if host::is_root() {
        return PathBuf::from(SYSTEM_STATE_DIR);
    }
    if let Some(dir) = var("XDG_STATE_HOME") {
        return PathBuf::from(dir).join("scst");
    }
    match var("HOME") {
        Some(home) => PathBuf::from(home).join(".local/state/scst"),
        None => PathBuf::from(SYSTEM_STATE_DIR),
    }
}
