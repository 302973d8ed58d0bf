//! SIGTERM, SIGINT and SIGHUP ask the server to stop; a second one ends it at once.

use anyhow::{Result, bail};

/// The termination signals, blocked in every thread and taken by [`Signals::wait`].
#[derive(Debug)]
pub(crate) struct Signals(());

impl Signals {
    /// Blocks the signals; call it before the first thread is started.
    pub(crate) fn block() -> Result<Self> {
        Ok(Self(()))
    }

    /// Sleeps until one arrives; its name.
    pub(crate) fn wait(&self) -> Result<&'static str> {
        bail!("signals are not wired yet")
    }

    /// From now on a further signal ends the process.
    pub(crate) fn exit_on_next(&self) -> Result<()> {
        Ok(())
    }
}
