//! The client's thread.

use super::pdu::{Body, Gather, Message, RESPONSE, flags, function, number, tag, text};
use super::scn::ScnListener;
use super::{Event, IsnsConfig, Node, REFRESH_S, Registration};
use crate::driver::IscsiDriver;
use kshim::error::{Result, code};
use kshim::kthread::{Stop, WorkerQueue};
use kshim::net::{Socket, SocketAddr, interface_addrs, resolve};
use kshim::reactor::Ready;
use kshim::time::{Delta, Instant};
use kshim::{host, pr_info, pr_warn, pr_warn_ratelimited};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// How long the server may take for an answer, and for a connection.
const ANSWER_MS: i64 = 3000;
/// Seconds after which a registration is renewed if the server does not say for how long it holds.
const RENEW_S: u32 = 300;
/// iSCSI, of the entity protocols (RFC 4171 6.2.2).
const PROTOCOL_ISCSI: u32 = 2;
/// A target, of the node types (RFC 4171 6.4.2).
const NODE_TARGET: u32 = 1;
/// An initiator.
const NODE_INITIATOR: u32 = 2;
/// Events of which a target wants to know (RFC 4171 6.4.4): what it may see of initiators is removed, added, updated.
/// DIFFERS: SCST has the bits in another order.
#[doc(alias = "ISNS_SCN_FLAG_INITIATOR")]
const SCN_EVENTS: u32 = 0x80 | 0x10 | 0x08 | 0x04;

/// What the thread knows.
pub(super) struct Client {
    driver: Weak<IscsiDriver>,
    config: IsnsConfig,
    events: Arc<WorkerQueue<Event>>,
    entity: String,
    transaction: u16,
    registered: Registration,
    /// Which name the registered things belong to, and when they have to be registered again.
    source: Option<String>,
    renew_at: Option<Instant>,
    scn: Option<ScnListener>,
    /// What failed last, to be said once.
    complaint: Option<kshim::error::Error>,
}

impl Client {
    pub(super) fn new(
        driver: Weak<IscsiDriver>,
        config: IsnsConfig,
        events: Arc<WorkerQueue<Event>>,
    ) -> Self {
        Self {
            driver,
            config,
            events,
            entity: String::new(),
            transaction: 0,
            registered: Registration::default(),
            source: None,
            renew_at: None,
            scn: None,
            complaint: None,
        }
    }

    /// Until the thread is told to stop. Context: the client's thread.
    pub(super) fn run(&mut self, stop: &Stop) {
        while !stop.should_stop() {
            let Some(driver) = self.driver.upgrade() else {
                return;
            };
            let done = self.synchronise(&driver);
            drop(driver);
            if let Err(e) = done
                && self.complaint.replace(e) != Some(e)
            {
                pr_warn!("iSNS server {}: {e}", self.config.server);
            } else if done.is_ok() && self.complaint.take().is_some() {
                pr_info!("iSNS server {} is there again", self.config.server);
            }
            // One event stands for all that wait.
            if self
                .events
                .wait_next_timeout(stop, Delta::from_secs(REFRESH_S))
                .is_some()
            {
                self.events.extract(|_| true);
            }
        }
        let left = self.deregister();
        if let Err(e) = left {
            pr_warn!(
                "iSNS server {} still has our targets: {e}",
                self.config.server
            );
        }
        if let (Some(scn), Some(driver)) = (self.scn.take(), self.driver.upgrade()) {
            scn.close(&driver);
        }
    }

    /// Brings the server up to date, then asks it for initiators.
    fn synchronise(&mut self, driver: &Arc<IscsiDriver>) -> Result {
        let mut server = Connection::open(&self.config)?;
        if self.scn.is_none() {
            let at = SocketAddr::new(server.local.ip(), 0);
            self.scn = Some(ScnListener::open(
                driver,
                at,
                server.peer.ip(),
                &self.events,
            )?);
        }
        let wanted = wanted(driver, server.local.ip());
        let due = self.renew_at.is_none_or(|at| Instant::now() >= at);
        if wanted != self.registered || due {
            self.register(driver, &mut server, wanted)?;
        }
        for target in driver.targets() {
            if self
                .registered
                .nodes
                .iter()
                .any(|n| n.name == target.name())
            {
                let allowed = self.initiators_of(&mut server, target.name())?;
                target.set_isns_initiators(allowed);
            }
        }
        Ok(())
    }

    fn call(&mut self, server: &mut Connection, mut message: Message) -> Result<Message> {
        self.transaction = self.transaction.wrapping_add(1);
        message.transaction = self.transaction;
        message.flags |= flags::CLIENT;
        server.call(&message)
    }

    /// Registers everything anew; what was registered before and is not any more goes.
    #[doc(alias = "isns_target_register")]
    fn register(
        &mut self,
        driver: &Arc<IscsiDriver>,
        server: &mut Connection,
        wanted: Registration,
    ) -> Result {
        let Some(first) = wanted.nodes.first() else {
            return self.deregister_at(server);
        };
        // As in SCST the source of messages is the entity's name, if there is one, else that of the first target.
        let named = driver.isns_entity_name();
        let source = if named.is_empty() {
            first.name.clone()
        } else {
            named
        };
        if self.entity.is_empty() {
            let port = wanted.portals.first().map_or(0, SocketAddr::port);
            self.entity = format!("{}:{port}", host::hostname());
        }
        let mut body = Body::default();
        body.text(tag::ISCSI_NAME, &source)
            .text(tag::ENTITY_ID, &self.entity)
            .delimiter()
            .text(tag::ENTITY_ID, &self.entity)
            .number(tag::ENTITY_PROTOCOL, PROTOCOL_ISCSI);
        for portal in &wanted.portals {
            body.add(tag::PORTAL_ADDRESS, &address(portal.ip()))
                .number(tag::PORTAL_PORT, u32::from(portal.port()));
            if let Some(scn) = &self.scn {
                body.number(tag::SCN_PORT, u32::from(scn.addr.port()));
            }
        }
        for node in &wanted.nodes {
            body.text(tag::ISCSI_NAME, &node.name)
                .number(tag::ISCSI_NODE_TYPE, NODE_TARGET);
            if let Some(alias) = &node.alias {
                body.text(tag::ISCSI_ALIAS, alias);
            }
        }
        let replace = if wanted == self.registered {
            0
        } else {
            flags::REPLACE
        };
        let message = Message {
            function: function::DEV_ATTR_REG,
            flags: replace,
            body: body.finish(),
            ..Message::default()
        };
        let answer = self.call(server, message)?;
        let period = answer.attrs().find(|(t, _)| *t == tag::REGISTRATION_PERIOD);
        let period = period.and_then(|(_, v)| number(v)).filter(|p| *p != 0);
        let renew = period.map_or(RENEW_S, |p| (p / 2).clamp(1, RENEW_S));
        self.renew_at = Some(Instant::now() + Delta::from_secs(i64::from(renew)));
        if replace != 0 {
            pr_info!(
                "{} targets registered with iSNS server {}",
                wanted.nodes.len(),
                self.config.server
            );
        }
        for node in &wanted.nodes {
            self.register_for_notifications(server, &node.name);
        }
        self.source = Some(source);
        self.registered = wanted;
        Ok(())
    }

    /// Without notifications a change is seen later.
    #[doc(alias = "isns_scn_register")]
    fn register_for_notifications(&mut self, server: &mut Connection, name: &str) {
        let mut body = Body::default();
        body.text(tag::ISCSI_NAME, name)
            .text(tag::ISCSI_NAME, name)
            .delimiter()
            .number(tag::ISCSI_SCN_BITMAP, SCN_EVENTS);
        let message = Message {
            function: function::SCN_REG,
            body: body.finish(),
            ..Message::default()
        };
        if let Err(e) = self.call(server, message) {
            pr_warn_ratelimited!("iSNS: no notifications for {name}: {e}");
        }
    }

    /// Which initiators the server lets see a target.
    #[doc(alias = "isns_attr_query")]
    fn initiators_of(&mut self, server: &mut Connection, name: &str) -> Result<BTreeSet<String>> {
        let mut body = Body::default();
        body.text(tag::ISCSI_NAME, name)
            .number(tag::ISCSI_NODE_TYPE, NODE_INITIATOR)
            .delimiter()
            .add(tag::ISCSI_NAME, &[])
            .add(tag::ISCSI_NODE_TYPE, &[]);
        let message = Message {
            function: function::DEV_ATTR_QRY,
            body: body.finish(),
            ..Message::default()
        };
        let answer = self.call(server, message)?;
        Ok(initiators(&answer))
    }

    /// Takes the registration back.
    #[doc(alias = "isns_deregister")]
    fn deregister(&mut self) -> Result {
        if self.registered.nodes.is_empty() {
            return Ok(());
        }
        let mut server = Connection::open(&self.config)?;
        self.deregister_at(&mut server)
    }

    fn deregister_at(&mut self, server: &mut Connection) -> Result {
        if let Some(source) = self.source.take() {
            let mut body = Body::default();
            body.text(tag::ISCSI_NAME, &source)
                .delimiter()
                .text(tag::ENTITY_ID, &self.entity);
            let message = Message {
                function: function::DEV_DEREG,
                body: body.finish(),
                ..Message::default()
            };
            self.call(server, message)?;
        }
        self.registered = Registration::default();
        self.renew_at = None;
        Ok(())
    }
}

/// The enabled targets, and where they are reached by who reaches `local`.
fn wanted(driver: &IscsiDriver, local: IpAddr) -> Registration {
    let mut portals = Vec::new();
    for portal in driver.portals() {
        if !portal.ip().is_unspecified() {
            portals.push(portal);
        } else if portal.is_ipv4() == local.is_ipv4() {
            portals.push(SocketAddr::new(local, portal.port()));
        } else {
            let others = interface_addrs().unwrap_or_default().into_iter();
            let fit = others.filter(|a| {
                a.is_ipv4() == portal.is_ipv4()
                    && !crate::portal::is_loopback(a)
                    && !crate::portal::is_link_local(a)
            });
            portals.extend(fit.map(|a| SocketAddr::new(a, portal.port())));
        }
    }
    let targets = driver.targets().into_iter();
    let enabled = targets.filter(|t| t.tgt().enabled.load(Ordering::Acquire));
    let nodes = enabled.map(|t| Node {
        name: t.name().to_owned(),
        alias: t.alias(),
    });
    Registration {
        portals,
        nodes: nodes.collect(),
    }
}

/// An address as 16 bytes.
#[doc(alias = "isns_get_ip")]
fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The names of the answer that have an initiator's node type after them.
#[doc(alias = "qry_rsp_handle")]
fn initiators(answer: &Message) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut name = None;
    for (tag, value) in answer.attrs() {
        match tag {
            tag::ISCSI_NAME => name = text(value),
            tag::ISCSI_NODE_TYPE => {
                let is = number(value).is_some_and(|t| t & NODE_INITIATOR != 0);
                found.extend(name.take().filter(|_| is).map(str::to_owned));
            }
            _ => name = None,
        }
    }
    found
}

/// A connection to the server. One question is out at a time.
struct Connection {
    sock: Socket,
    local: SocketAddr,
    peer: SocketAddr,
    gather: Gather,
}

impl Connection {
    /// Errors: those of the resolver and of connecting; ETIMEDOUT. Context: may sleep.
    #[doc(alias = "isns_connect")]
    fn open(config: &IsnsConfig) -> Result<Self> {
        let (host, port) = config.host();
        let mut failed = code::ENOENT;
        for peer in resolve(host, port)? {
            match Socket::connect_timeout(peer, Delta::from_millis(ANSWER_MS)) {
                Ok(sock) => {
                    let local = sock.local_addr()?;
                    let gather = Gather::default();
                    return Ok(Self {
                        sock,
                        local,
                        peer,
                        gather,
                    });
                }
                Err(e) => failed = e,
            }
        }
        Err(failed)
    }

    /// Sends a message and waits for its answer. Errors: EPROTO (refused, or no iSNS), ETIMEDOUT, those of the socket.
    fn call(&mut self, message: &Message) -> Result<Message> {
        let deadline = Instant::now() + Delta::from_millis(ANSWER_MS);
        let bytes = message.encode();
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|r| !r.is_empty()) {
            match self.sock.send(rest) {
                Ok(n) => at = at.saturating_add(n),
                Err(e) if e == code::EAGAIN => self.wait(Ready::WRITE, deadline)?,
                Err(e) => return Err(e),
            }
        }
        loop {
            while let Some(answer) = self.gather.next()? {
                let is_it = answer.function == message.function | RESPONSE;
                if is_it && answer.transaction == message.transaction {
                    return match answer.status() {
                        Some(0) => Ok(answer),
                        status => {
                            let function = message.function;
                            pr_warn_ratelimited!("iSNS: function {function} ends with {status:?}");
                            Err(code::EPROTO)
                        }
                    };
                }
            }
            let mut buf = [0; 4096];
            match self.sock.recv_bytes(&mut buf) {
                Ok(0) => return Err(code::ECONNRESET),
                Ok(n) => self.gather.add(buf.get(..n).unwrap_or_default())?,
                Err(e) if e == code::EAGAIN => self.wait(Ready::READ, deadline)?,
                Err(e) => return Err(e),
            }
        }
    }

    fn wait(&self, events: Ready, deadline: Instant) -> Result {
        let left = deadline - Instant::now();
        if left <= Delta::ZERO || self.sock.wait(events, Some(left))?.is_empty() {
            return Err(code::ETIMEDOUT);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_initiators_are_taken_from_an_answer() {
        let mut body = Body::response(0);
        body.number(tag::ISCSI_NODE_TYPE, NODE_INITIATOR)
            .delimiter();
        for (name, kind) in [("iqn.a", 2), ("iqn.t", 1), ("iqn.b", 3)] {
            body.text(tag::ISCSI_NAME, name)
                .number(tag::ISCSI_NODE_TYPE, kind);
        }
        body.number(tag::ISCSI_NODE_TYPE, 2);
        let answer = Message {
            function: function::DEV_ATTR_QRY | RESPONSE,
            body: body.finish(),
            ..Message::default()
        };
        let names: Vec<_> = initiators(&answer).into_iter().collect();
        assert_eq!(names, ["iqn.a", "iqn.b"]);
    }
}
