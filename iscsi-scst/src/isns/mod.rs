//! The iSNS client: registers targets and portals with a name server, and learns from it who may use them.
//!
//! A thread of its own ("iscsi_isns") keeps the server's view like ours: it registers all enabled targets when they
//! change, again before the registration runs out, and asks which initiators the server lets see each target, every
//! [`REFRESH_S`] seconds and when the server says that something changed. Such notifications come to a port of ours, on
//! a reactor (`scn`).
//!
//! With access control on, an initiator that the name server did not name for a target does not find it, neither by
//! discovery nor by login; while the server cannot be reached, what it said last holds.
//!
//! C source: `iscsi-scst/usr/isns.c`

mod client;
mod pdu;
mod scn;

use crate::driver::IscsiDriver;
use client::Client;
use core::fmt;
use core::str::FromStr;
use kshim::error::{Error, Result, code};
use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::sync::SpinLock;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The registered port of iSNS.
pub const ISNS_PORT: u16 = 3205;
/// Seconds between questions for initiators when nothing happens; also after a failure.
#[doc(alias = "current_timeout")]
pub const REFRESH_S: i64 = 30;

/// What management says about iSNS: `SERVER[:PORT] [AccessControl [Yes|No]]`.
///
/// ```
/// use iscsi_scst::isns::IsnsConfig;
///
/// let config: IsnsConfig = "192.0.2.1 AccessControl".parse()?;
/// assert!(config.access_control);
/// assert_eq!(config.to_string(), "192.0.2.1 AccessControl");
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsnsConfig {
    /// Name or address of the server; a port may follow.
    #[doc(alias = "isns_server")]
    pub server: String,
    /// Only initiators that the server names may use a target.
    #[doc(alias = "isns_access_control")]
    pub access_control: bool,
}

impl IsnsConfig {
    /// Host and port.
    fn host(&self) -> (&str, u16) {
        if self.server.parse::<IpAddr>().is_ok() {
            return (&self.server, ISNS_PORT);
        }
        let (host, port) = match self.server.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().unwrap_or(ISNS_PORT)),
            None => (self.server.as_str(), ISNS_PORT),
        };
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        (inner.unwrap_or(host), port)
    }
}

impl FromStr for IsnsConfig {
    type Err = Error;

    /// Errors: EINVAL.
    #[doc(alias = "handle_e_set_attr_value")]
    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split([' ', '\t', '=', '\n']).filter(|w| !w.is_empty());
        let server = words.next().ok_or(code::EINVAL)?.to_owned();
        let access_control = match (words.next(), words.next()) {
            (None, _) => false,
            (Some(word), value) if word.eq_ignore_ascii_case("AccessControl") => {
                !value.is_some_and(|v| v.eq_ignore_ascii_case("No"))
            }
            _ => return Err(code::EINVAL),
        };
        if words.next().is_some() {
            return Err(code::EINVAL);
        }
        Ok(Self {
            server,
            access_control,
        })
    }
}

impl fmt::Display for IsnsConfig {
    /// As `iSNSServer` shows it; without access control a blank is left, as in SCST.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.access_control {
            "AccessControl"
        } else {
            ""
        };
        write!(f, "{} {access}", self.server)
    }
}

/// Why the client's thread is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Targets or portals have changed.
    Changed,
    /// The server says that initiators have.
    Notified,
}

/// The running client.
pub(crate) struct Isns {
    config: IsnsConfig,
    events: Arc<WorkerQueue<Event>>,
    thread: SpinLock<Option<Kthread>>,
}

impl Isns {
    /// Starts the client. Errors: EAGAIN (no thread to be had).
    pub(crate) fn start(driver: &Arc<IscsiDriver>, config: IsnsConfig) -> Result<Self> {
        let events: Arc<WorkerQueue<Event>> = Arc::default();
        let queue = Arc::clone(&events);
        let (weak, settings) = (Arc::downgrade(driver), config.clone());
        let thread = kthread::run("iscsi_isns", move |stop| {
            Client::new(weak, settings, queue).run(stop);
        })?;
        Ok(Self {
            config,
            events,
            thread: SpinLock::new(Some(thread)),
        })
    }

    pub(crate) fn config(&self) -> &IsnsConfig {
        &self.config
    }

    /// Targets or portals have changed. Context: any.
    pub(crate) fn changed(&self) {
        self.events.push(Event::Changed);
    }

    /// Takes the registration back and ends the thread. Context: may sleep, some seconds if the server is not there.
    #[doc(alias = "isns_exit")]
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread.stop();
        }
    }
}

/// A target as it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    name: String,
    alias: Option<String>,
}

/// All that is registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Registration {
    portals: Vec<SocketAddr>,
    nodes: Vec<Node>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_names_or_addresses() {
        for (text, host) in [
            ("192.0.2.1", ("192.0.2.1", ISNS_PORT)),
            ("192.0.2.1:99", ("192.0.2.1", 99)),
            ("2001:db8::1", ("2001:db8::1", ISNS_PORT)),
            ("[2001:db8::1]:99", ("2001:db8::1", 99)),
            ("isns.example", ("isns.example", ISNS_PORT)),
            ("isns.example:99", ("isns.example", 99)),
        ] {
            let config: IsnsConfig = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(config.host(), host);
            assert!(!config.access_control);
        }
    }

    #[test]
    fn access_control_is_asked_for() {
        let parse = |text: &str| text.parse::<IsnsConfig>().map(|c| c.access_control);
        assert_eq!(parse("host AccessControl"), Ok(true));
        assert_eq!(parse("host accesscontrol=Yes"), Ok(true));
        assert_eq!(parse("host AccessControl No"), Ok(false));
        for bad in ["", "host Access", "host AccessControl Yes more"] {
            assert_eq!(parse(bad), Err(code::EINVAL), "{bad:?}");
        }
    }
}
