//! The running target: builds devices, target and portals from a [`ServeConfig`].

use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::config::ServeConfig;

/// A server that accepts connections.
#[derive(Debug)]
pub(crate) struct Server {
    portals: Vec<SocketAddr>,
}

/// Starts a server.
///
/// # Errors
///
/// Why it cannot: a port in use, memory, a file. What was started is stopped again then.
pub(crate) fn start(config: &ServeConfig) -> Result<Server> {
    let ServeConfig {
        luns,
        portals,
        iqn,
        cpus,
        poller,
    } = config;
    bail!(
        "the iSCSI target is not wired into scstd yet (asked for {iqn} on {portals:?} with {} LUNs, {cpus} reactors, \
         poller {poller:?})",
        luns.len()
    )
}

impl Server {
    /// Addresses that it listens on, with the ports that were chosen.
    pub(crate) fn portals(&self) -> &[SocketAddr] {
        &self.portals
    }

    /// Closes all sessions, flushes, ends all threads.
    ///
    /// # Errors
    ///
    /// What could not be flushed.
    pub(crate) fn stop(self) -> Result<()> {
        drop(self);
        Ok(())
    }
}
