//! SIGTERM, SIGINT and SIGHUP ask the server to stop; a second one ends it at once.

use anyhow::{Context as _, Result};
use kshim::sys::signal::{self, Termination};
use kshim::{host, kthread};

/// Exit code after a second signal: what the shell shows for SIGTERM.
const EXIT_FORCED: i32 = 143;

/// The termination signals, blocked in every thread and taken by [`Signals::wait`].
#[derive(Debug)]
pub(crate) struct Signals {
    /// The server was started by `nohup`: it outlives its terminal.
    hup_ignored: bool,
}

impl Signals {
    /// Blocks the signals; call it before the first thread is started.
    ///
    /// # Errors
    ///
    /// The host does not permit it.
    pub(crate) fn block() -> Result<Self> {
        let hup_ignored = host::sighup_is_ignored();
        signal::block_termination().context("cannot block signals")?;
        signal::ignore_sigpipe().context("cannot ignore SIGPIPE")?;
        Ok(Self { hup_ignored })
    }

    /// Sleeps until one arrives; its name.
    ///
    /// # Errors
    ///
    /// The host does not permit it.
    pub(crate) fn wait(&self) -> Result<&'static str> {
        loop {
            match self.next()? {
                Termination::Term => return Ok("SIGTERM"),
                Termination::Int => return Ok("SIGINT"),
                Termination::Hup if self.hup_ignored => {}
                Termination::Hup => return Ok("SIGHUP"),
            }
        }
    }

    /// Sleeps until one arrives.
    ///
    /// # Errors
    ///
    /// The host does not permit it.
    pub(crate) fn next(&self) -> Result<Termination> {
        signal::wait_termination().context("cannot wait for signals")
    }

    /// From now on a further signal ends the process: a clean stop that hangs can be cut short.
    ///
    /// # Errors
    ///
    /// There can be no more threads.
    pub(crate) fn exit_on_next(self) -> Result<()> {
        let thread = kthread::run("signals", move |_| {
            if let Ok(name) = self.wait() {
                log::warn!("{name} while stopping: ending at once");
                host::exit_now(EXIT_FORCED);
            }
        });
        thread.context("cannot start a thread")?.detach();
        Ok(())
    }
}
