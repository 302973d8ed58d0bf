//! The iSCSI target driver: portals, targets, connections.
//!
//! C source: `iscsi-scst/kernel/config.c`, `iscsi-scst/usr/iscsi_scstd.c`

use crate::accounts::Accounts;
use crate::conn::{CloseReason, Conn, ConnMsg, ConnShared, NewSession};
use crate::env::Env;
use crate::half_open::HalfOpen;
use crate::isns::{Isns, IsnsConfig};
use crate::login::LoginResult;
use crate::param::{KeyValues, TgtParams};
use crate::pdu::{Isid, LoginStatus, Tsih};
use crate::target::{Claim, IscsiTarget, Waiter};
use kshim::error::{Error, code};
use kshim::kobject::Kobject;
use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::net::{Socket, TcpListener};
use kshim::reactor::{Cx, PollFd, ReactorHandle, Ready, Source, Token};
use kshim::sync::{Completion, SpinLock};
use kshim::time::Delta;
use kshim::{pr_err_ratelimited, pr_info_ratelimited_by, pr_warn_ratelimited};
use scst_core::core::{ConfigError, Core};
use scst_core::pres::PROTOCOL_ISCSI;
use scst_core::retained::RetainedStates;
use scst_core::sense::{self, Sense};
use scst_core::session::Session;
use scst_core::template::TgtTemplate;
use scst_core::tgt::Tgt;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Version descriptor of iSCSI without version (SPC-4 table 133).
const VERSION_DESCRIPTOR_ISCSI: u16 = 0x0960;
/// TransportID format 01b: an initiator port.
const TRANSPORT_ID_FORMAT_PORT: u8 = 0x40;
/// How long accepting pauses when the process is out of descriptors or memory.
const ACCEPT_RETRY_MS: i64 = 100;
/// Connections taken in one go before other sources get their turn.
const ACCEPT_BATCH: usize = 64;
/// How long initiators have to log out when the server stops. Those that know what they are asked for take some
/// milliseconds, and others would not answer in an hour.
pub const LOGOUT_GRACE_MS: i64 = 2000;
/// How long [`IscsiDriver::stop`] waits for connections to drain.
const STOP_TIMEOUT_S: i64 = 60;

/// The driver. One serves all targets of the process; portals are common to all targets.
pub struct IscsiDriver {
    core: Arc<Core>,
    reactors: Vec<ReactorHandle>,
    targets: SpinLock<Vec<Arc<IscsiTarget>>>,
    portals: SpinLock<Vec<Portal>>,
    conns: SpinLock<Vec<Weak<ConnShared>>>,
    /// Connections that exist, and whoever waits for none.
    conn_count: AtomicUsize,
    half_open: SpinLock<HalfOpen<ConnShared>>,
    mgmt: Mgmt,
    isns: SpinLock<Option<Arc<Isns>>>,
    discovery_accounts: SpinLock<Arc<Accounts>>,
    settings: SpinLock<Settings>,
    next_id: AtomicU64,
    next_tid: AtomicU32,
    /// What it shows in the management tree.
    pub(crate) sysfs: crate::sysfs::State,
    stopping: AtomicBool,
    idle: Completion,
}

/// Work of the driver's management thread.
type Work = Box<dyn FnOnce(&Arc<Core>) + Send>;

/// The thread that registers and unregisters sessions. It is not the core's: an attribute's store, which runs there,
/// waits for sessions to go.
#[doc(alias = "target_mgmt_mutex")]
struct Mgmt {
    queue: Arc<WorkerQueue<Work>>,
    thread: SpinLock<Option<Kthread>>,
}

impl Mgmt {
    fn start(core: &Arc<Core>) -> Result<Self, Error> {
        let queue: Arc<WorkerQueue<Work>> = Arc::new(WorkerQueue::new());
        let (own, core) = (Arc::clone(&queue), Arc::clone(core));
        let thread = kthread::run("iscsi_mgmt", move |stop| {
            while let Some(work) = own.wait_next(stop) {
                work(&core);
            }
        })?;
        Ok(Self {
            queue,
            thread: SpinLock::new(Some(thread)),
        })
    }

    fn post(&self, work: impl FnOnce(&Arc<Core>) + Send + 'static) {
        self.queue.push(Box::new(work));
    }

    /// Ends the thread when it has done what it was given. Context: may sleep.
    fn stop(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread.stop();
        }
    }
}

/// The session in whose place a login comes.
enum Predecessor {
    None,
    /// One of the same initiator port, with what it left.
    Ended(Option<RetainedStates>),
}

/// What management says about the driver.
#[derive(Clone, Debug)]
struct Settings {
    enabled: bool,
    link_local: bool,
    internal_portals: Vec<IpAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            link_local: true,
            internal_portals: Vec::new(),
        }
    }
}

struct Portal {
    addr: SocketAddr,
    reactor: ReactorHandle,
    token: Token,
}

impl Portal {
    /// Stops listening. No connection is taken any more when it returns. Context: may sleep.
    fn close(self) {
        let done = Arc::new(Completion::new());
        let (closed, token) = (Arc::clone(&done), self.token);
        let posted = self.reactor.post(move |cx| {
            cx.remove(token);
            closed.complete_all();
        });
        let limit = Delta::from_secs(STOP_TIMEOUT_S);
        if posted && !self.reactor.is_current() && !done.wait_for_completion_timeout(limit) {
            pr_warn_ratelimited!("Portal {} is slow to close", self.addr);
        }
    }
}

impl std::fmt::Debug for IscsiDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IscsiDriver").finish_non_exhaustive()
    }
}

impl IscsiDriver {
    /// A driver whose connections live on `reactors`. Errors: EINVAL without reactors, EAGAIN (no thread to be had).
    pub fn new(core: Arc<Core>, reactors: Vec<ReactorHandle>) -> Result<Arc<Self>, Error> {
        if reactors.is_empty() {
            return Err(code::EINVAL);
        }
        let mgmt = Mgmt::start(&core)?;
        core.add_reactors(reactors.iter().cloned());
        Ok(Arc::new(Self {
            core,
            reactors,
            targets: SpinLock::new(Vec::new()),
            portals: SpinLock::new(Vec::new()),
            conns: SpinLock::new(Vec::new()),
            conn_count: AtomicUsize::new(0),
            half_open: SpinLock::default(),
            mgmt,
            isns: SpinLock::new(None),
            discovery_accounts: SpinLock::new(Arc::default()),
            settings: SpinLock::default(),
            next_id: AtomicU64::new(1),
            next_tid: AtomicU32::new(1),
            sysfs: crate::sysfs::State::default(),
            stopping: AtomicBool::new(false),
            idle: Completion::new(),
        }))
    }

    /// The core it works for.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Adds a target; initiators may log in once the core's target is enabled. Context: may sleep.
    #[doc(alias = "iscsi_target_create")]
    pub fn add_target(
        self: &Arc<Self>,
        name: &str,
        alias: Option<String>,
        keys: KeyValues,
        params: TgtParams,
    ) -> Result<Arc<IscsiTarget>, ConfigError> {
        if !crate::login::name::is_valid(name) {
            return Err(ConfigError::InvalidName(name.to_owned()));
        }
        let template: Arc<dyn TgtTemplate> = Arc::clone(self) as Arc<dyn TgtTemplate>;
        let tgt = self.core.register_target(template, name)?;
        let tid = self.next_tid.fetch_add(1, Ordering::Relaxed);
        let target = Arc::new(IscsiTarget::new(tgt, tid, alias, keys, params));
        self.targets.lock().push(Arc::clone(&target));
        self.show_target(&target);
        Ok(target)
    }

    /// The targets.
    pub fn targets(&self) -> Vec<Arc<IscsiTarget>> {
        self.targets.lock().clone()
    }

    /// Replaces the accounts that discovery sessions have to authenticate against; none by default.
    pub fn set_discovery_accounts(&self, accounts: Accounts) {
        *self.discovery_accounts.lock() = Arc::new(accounts);
    }

    /// Whether logins are taken at all.
    pub fn is_enabled(&self) -> bool {
        self.settings.lock().enabled
    }

    /// Takes logins, or closes whoever tries; sessions that exist live on. A new driver is enabled: where SCST's
    /// default (disabled until `enabled` is written) is wanted, say so before the first portal is added.
    #[doc(alias = "iscsi_enabled")]
    pub fn set_enabled(&self, on: bool) {
        self.settings.lock().enabled = on;
    }

    /// Whether SendTargets lists link-local IPv6 addresses.
    pub fn link_local(&self) -> bool {
        self.settings.lock().link_local
    }

    /// Sets [`IscsiDriver::link_local`]; on in the beginning.
    #[doc(alias = "send_targets_link_local")]
    pub fn set_link_local(&self, on: bool) {
        self.settings.lock().link_local = on;
    }

    /// Addresses by which initiators may leave authentication out.
    pub fn internal_portals(&self) -> Vec<IpAddr> {
        self.settings.lock().internal_portals.clone()
    }

    /// Sets [`IscsiDriver::internal_portals`]; see [`parse_addresses`](crate::portal::parse_addresses).
    #[doc(alias = "internal_portal")]
    pub fn set_internal_portals(&self, portals: Vec<IpAddr>) {
        self.settings.lock().internal_portals = portals;
    }

    /// Listens on a portal and answers the address, with the port that was chosen if `addr` has port 0. Errors: those
    /// of bind and listen (EADDRINUSE, EACCES, EADDRNOTAVAIL). Context: may sleep.
    pub fn add_portal(self: &Arc<Self>, addr: SocketAddr) -> Result<SocketAddr, Error> {
        self.add_listener(TcpListener::bind(addr)?)
    }

    /// Takes a socket that listens already, as of a service manager, for a portal, and answers its address. Errors:
    /// EAFNOSUPPORT (neither IPv4 nor IPv6). Context: may sleep.
    pub fn add_listener(self: &Arc<Self>, listener: TcpListener) -> Result<SocketAddr, Error> {
        let addr = listener.local_addr()?;
        let reactor = self.reactors.first().ok_or(code::EINVAL)?.clone();
        let (fd, driver) = (listener.poll_fd(), Arc::downgrade(self));
        let token = self.add_source(fd, Listener { listener, driver })?;
        self.portals.lock().push(Portal {
            addr,
            reactor,
            token,
        });
        self.isns_changed();
        Ok(addr)
    }

    /// Puts a source of the driver's own on the first reactor. Context: may sleep.
    pub(crate) fn add_source(
        &self,
        fd: PollFd,
        source: impl Source + Send + 'static,
    ) -> Result<Token, Error> {
        let reactor = self.reactors.first().ok_or(code::EINVAL)?;
        let done = Arc::new((Completion::new(), SpinLock::new(Err(code::EIO))));
        let result = Arc::clone(&done);
        let posted = reactor.post(move |cx| {
            *result.1.lock() = cx.add(Some(fd), |_| Box::new(source));
            result.0.complete_all();
        });
        if !posted {
            return Err(code::ESHUTDOWN);
        }
        done.0.wait_for_completion();
        *done.1.lock()
    }

    /// Removes what [`IscsiDriver::add_source`] put there. Context: any.
    pub(crate) fn remove_source(&self, token: Token) {
        if let Some(reactor) = self.reactors.first() {
            reactor.post(move |cx| cx.remove(token));
        }
    }

    /// The name server that targets are registered with.
    pub fn isns(&self) -> Option<IsnsConfig> {
        self.isns.lock().as_ref().map(|isns| isns.config().clone())
    }

    /// Registers targets with a name server, or with none any more. The server need not be there: it is tried again.
    /// Errors: EAGAIN (no thread to be had). Context: may sleep, some seconds if an old server is not there.
    #[doc(alias = "iSNSServer")]
    pub fn set_isns(self: &Arc<Self>, config: Option<IsnsConfig>) -> Result<(), Error> {
        let old = self.isns.lock().take();
        if let Some(old) = old {
            old.stop();
        }
        for target in self.targets() {
            target.set_isns_initiators(BTreeSet::new());
        }
        if let Some(config) = config {
            let isns = Isns::start(self, config)?;
            *self.isns.lock() = Some(Arc::new(isns));
        }
        Ok(())
    }

    /// The name server has to hear of targets or portals. Context: any.
    pub(crate) fn isns_changed(&self) {
        if let Some(isns) = &*self.isns.lock() {
            isns.changed();
        }
    }

    /// Whether the name server, if it is asked, lets an initiator use a target. Context: any.
    #[doc(alias = "isns_scn_access_allowed")]
    pub(crate) fn isns_allows(&self, target: &IscsiTarget, initiator: &str) -> bool {
        let asked = matches!(&*self.isns.lock(), Some(isns) if isns.config().access_control);
        !asked || target.isns_names(initiator)
    }

    /// Portal addresses in the order of their addition.
    pub fn portals(&self) -> Vec<SocketAddr> {
        self.portals.lock().iter().map(|p| p.addr).collect()
    }

    /// Number of connections, in login or not.
    pub fn conn_count(&self) -> usize {
        self.conn_count.load(Ordering::Acquire)
    }

    /// Removes a target: no login finds it any more, its sessions are closed, and its port is unregistered. Errors: Busy
    /// (a session does not end in time; the target stays closed, and removing it may be tried again). Context: may
    /// sleep, not on a reactor.
    #[doc(alias = "target_del")]
    pub fn remove_target(&self, target: &Arc<IscsiTarget>) -> Result<(), ConfigError> {
        let shut = |conn: Arc<ConnShared>| conn.send(ConnMsg::Close(CloseReason::Shutdown));
        target.close().into_iter().for_each(shut);
        if !target.wait_empty(Delta::from_secs(STOP_TIMEOUT_S)) {
            return Err(ConfigError::Busy(target.name().to_owned()));
        }
        self.core.unregister_target(target.tgt())?;
        self.targets.lock().retain(|t| !Arc::ptr_eq(t, target));
        self.forget_target(target);
        self.isns_changed();
        Ok(())
    }

    /// Stops: closes portals, asks all initiators to log out, gives them [`LOGOUT_GRACE_MS`] for it, closes what is still
    /// there, and waits until all sessions are unregistered. Answers whether all went in time. Context: may sleep.
    pub fn stop(&self) -> bool {
        self.stopping.store(true, Ordering::SeqCst);
        let isns = self.isns.lock().take();
        if let Some(isns) = isns {
            isns.stop();
        }
        for p in std::mem::take(&mut *self.portals.lock()) {
            p.close();
        }
        for target in self.targets() {
            target.close();
        }
        self.tell_all(|| ConnMsg::RequestLogout);
        if !self.wait_idle(Delta::from_millis(LOGOUT_GRACE_MS)) {
            self.tell_all(|| ConnMsg::Close(CloseReason::Shutdown));
        }
        let idle = self.wait_idle(Delta::from_secs(STOP_TIMEOUT_S));
        if idle {
            self.mgmt.stop();
        }
        idle
    }

    fn tell_all(&self, msg: impl Fn() -> ConnMsg) {
        let conns: Vec<_> = {
            let conns = self.conns.lock();
            conns.iter().filter_map(Weak::upgrade).collect()
        };
        for conn in conns {
            conn.send(msg());
        }
    }

    fn wait_idle(&self, limit: Delta) -> bool {
        let is_idle = || self.conn_count() == 0;
        is_idle() || self.idle.wait_for_completion_timeout(limit) || is_idle()
    }

    /// Hands an accepted socket to the least loaded reactor.
    fn take_connection(self: &Arc<Self>, sock: Socket, peer: SocketAddr) {
        if self.stopping.load(Ordering::SeqCst) {
            return;
        }
        let reactor = self.reactors.iter().min_by_key(|r| r.load());
        let Some(reactor) = reactor.cloned() else {
            return;
        };
        // An error says that the peer has gone already.
        let Ok(local) = sock.local_addr() else {
            return;
        };
        let shared = Arc::new(ConnShared::new(
            self.next_id(),
            reactor.clone(),
            peer,
            local,
        ));
        self.conn_count.fetch_add(1, Ordering::AcqRel);
        let crowded = self.half_open.lock().add(&peer, Arc::clone(&shared));
        if let Some(oldest) = crowded {
            pr_warn_ratelimited!(
                "Too many logins under way, the oldest of {} ends",
                oldest.peer
            );
            oldest.send(ConnMsg::Close(CloseReason::Crowded));
        }
        let (driver, conn) = (Arc::clone(self), Arc::clone(&shared));
        let posted = reactor.post(move |cx| {
            if let Err(e) = Conn::start(&driver, cx, &conn, sock) {
                pr_err_ratelimited!("Connection of {peer} cannot be taken: {e}");
                driver.login_over(&conn);
                driver.conn_gone();
            }
        });
        if !posted {
            self.login_over(&shared);
            self.conn_gone();
        }
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn register_conn(&self, conn: &Arc<ConnShared>) {
        let mut conns = self.conns.lock();
        if conns.len() == conns.capacity() {
            conns.retain(|c| c.strong_count() > 0);
        }
        conns.push(Arc::downgrade(conn));
        drop(conns);
        if self.stopping.load(Ordering::SeqCst) {
            conn.send(ConnMsg::RequestLogout);
        }
    }

    /// A connection has left the login phase.
    pub(crate) fn login_over(&self, conn: &Arc<ConnShared>) {
        self.half_open.lock().remove(&conn.peer, conn);
    }

    /// A connection is gone for good.
    pub(crate) fn conn_gone(&self) {
        if self.conn_count.fetch_sub(1, Ordering::AcqRel) == 1
            && self.stopping.load(Ordering::SeqCst)
        {
            self.idle.complete_all();
        }
    }

    /// Registers the session of a login, after an older one of the same initiator port is gone. The connection gets
    /// [`ConnMsg::Created`]. Context: any.
    #[doc(alias = "iscsi_session_create")]
    pub(crate) fn create_session(
        self: &Arc<Self>,
        conn: &Arc<ConnShared>,
        login: &LoginResult<Arc<IscsiTarget>>,
    ) {
        let (driver, conn, login) = (Arc::clone(self), Arc::clone(conn), login.clone());
        self.mgmt
            .post(move |core| driver.claim_session(core, &conn, &login, Predecessor::None));
    }

    fn claim_session(
        self: &Arc<Self>,
        core: &Arc<Core>,
        conn: &Arc<ConnShared>,
        login: &LoginResult<Arc<IscsiTarget>>,
        old: Predecessor,
    ) {
        let target = Arc::clone(&login.target);
        let again = || {
            let (driver, conn, login) = (Arc::clone(self), Arc::clone(conn), login.clone());
            Box::new(move |core: &Arc<Core>, old: Option<RetainedStates>| {
                driver.claim_session(core, &conn, &login, Predecessor::Ended(old));
            }) as Waiter
        };
        if conn.is_closing() {
            return conn.send(ConnMsg::Created(Err(LoginStatus::TargetError)));
        }
        match target.claim(login, conn, again) {
            Claim::Granted(tsih) => {
                // What a new nexus hears first (SAM-5 5.14).
                let ua = match old {
                    Predecessor::Ended(_) => sense::NEXUS_LOSS_UA,
                    Predecessor::None => sense::RESET_UA,
                };
                let made = self.register_session(core, conn, login, tsih, ua);
                if let (Predecessor::Ended(Some(old)), Ok(new)) = (old, &made) {
                    old.pass_to(&new.sess);
                }
                conn.send(ConnMsg::Created(made));
            }
            Claim::Waiting { old, given_up } => {
                pr_info_ratelimited_by!(
                    &login.initiator_name,
                    "Session of {} reinstated: closing the old one",
                    login.initiator_name
                );
                old.send(ConnMsg::Close(CloseReason::Reinstated));
                if let Some(conn) = given_up {
                    conn.send(ConnMsg::Close(CloseReason::Reinstated));
                    conn.send(ConnMsg::Created(Err(LoginStatus::TargetError)));
                }
            }
            Claim::Full => conn.send(ConnMsg::Created(Err(LoginStatus::OutOfResources))),
            Claim::Closed => conn.send(ConnMsg::Created(Err(LoginStatus::ServiceUnavailable))),
        }
    }

    fn register_session(
        &self,
        core: &Arc<Core>,
        conn: &Arc<ConnShared>,
        login: &LoginResult<Arc<IscsiTarget>>,
        tsih: Tsih,
        ua: Sense,
    ) -> Result<NewSession, LoginStatus> {
        let home: Arc<dyn scst_core::cmd::CmdHome> = Arc::clone(conn) as _;
        let target = Arc::clone(&login.target);
        let ini = target.full_name(&login.initiator_name, &conn.local);
        let made = core.register_session(target.tgt(), &ini, home, u64::from(tsih.0), ua);
        match made {
            Ok(sess) => Ok(NewSession { target, sess, tsih }),
            Err(e) => {
                pr_err_ratelimited!("Session of {ini} refused: {e}");
                if let Some(waiter) = target.release(conn) {
                    self.mgmt.post(move |core| waiter(core, None));
                }
                Err(LoginStatus::OutOfResources)
            }
        }
    }

    /// Unregisters the session of a connection that has nothing under way; the connection gets [`ConnMsg::Gone`].
    /// Context: any.
    #[doc(alias = "iscsi_session_free")]
    pub(crate) fn remove_session(
        self: &Arc<Self>,
        conn: &Arc<ConnShared>,
        target: &Arc<IscsiTarget>,
        sess: Arc<Session>,
    ) {
        let (driver, conn, target) = (Arc::clone(self), Arc::clone(conn), Arc::clone(target));
        self.mgmt.post(move |core| {
            let retained = core.unregister_session(&sess);
            drop(sess);
            if let Some(waiter) = target.release(&conn) {
                driver.mgmt.post(move |core| waiter(core, retained));
            }
            conn.send(ConnMsg::Gone);
        });
    }

    /// What a login by the portal `local` may know.
    pub(crate) fn env(&self, local: SocketAddr) -> Env<'_> {
        Env::new(self, local)
    }

    pub(crate) fn discovery_accounts(&self) -> Arc<Accounts> {
        Arc::clone(&self.discovery_accounts.lock())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

impl TgtTemplate for IscsiDriver {
    fn name(&self) -> &'static str {
        "iscsi"
    }

    fn scsi_transport_version(&self) -> u16 {
        VERSION_DESCRIPTOR_ISCSI
    }

    fn initiator_port_transport_id(&self, sess: &Session) -> Option<Vec<u8>> {
        let targets = self.targets.lock();
        let target = targets.iter().find(|t| Arc::ptr_eq(t.tgt(), sess.tgt()))?;
        let info = target.session(sess.tgt_priv)?;
        Some(transport_id(&info.initiator_name, info.isid))
    }

    fn can_be_disabled(&self) -> bool {
        true
    }

    fn group_sysfs_attrs(&self) -> Vec<kshim::kobject::Attr> {
        crate::sysfs::group_attrs()
    }

    fn show_session(&self, sess: &Arc<Session>, dir: &Arc<Kobject>) -> Result<(), Error> {
        let target = {
            let targets = self.targets.lock();
            let mut of_sess = targets.iter().filter(|t| Arc::ptr_eq(t.tgt(), sess.tgt()));
            of_sess.next().cloned()
        };
        match target {
            Some(target) => crate::sysfs::show_session(&target, sess, dir),
            None => Ok(()),
        }
    }

    fn transport_id_protocol(&self) -> Option<u8> {
        Some(PROTOCOL_ISCSI)
    }

    fn target_enabled(&self, _tgt: &Tgt, _on: bool) {
        self.isns_changed();
    }

    fn close_session(&self, sess: &Arc<Session>) {
        sess.close();
    }
}

/// TransportID of an iSCSI initiator port (SPC-4 7.6.4.6): name, `,i,0x`, ISID. As in SCST the ISID is printed as the
/// little-endian number that its bytes make, without leading zeros; files and keys of SCST's initiators depend on it.
#[doc(alias = "iscsi_get_initiator_port_transport_id")]
fn transport_id(initiator: &str, isid: Isid) -> Vec<u8> {
    let [a, b, c, d, e, f] = isid.0;
    let isid = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    let mut name = format!("{initiator},i,0x{isid:x}\0").into_bytes();
    name.resize(name.len().next_multiple_of(4), 0);
    let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
    let mut tid = vec![TRANSPORT_ID_FORMAT_PORT | PROTOCOL_ISCSI, 0];
    tid.extend_from_slice(&len.to_be_bytes());
    tid.append(&mut name);
    tid
}

/// A listening socket.
struct Listener {
    listener: TcpListener,
    driver: Weak<IscsiDriver>,
}

impl Listener {
    fn accept(&mut self, cx: &mut Cx<'_>) {
        let Some(driver) = self.driver.upgrade() else {
            return;
        };
        for _ in 0..ACCEPT_BATCH {
            match self.listener.accept() {
                Ok((sock, peer)) => driver.take_connection(sock, peer),
                Err(e) if e == code::EAGAIN => return,
                Err(e) if e == code::ECONNABORTED || e == code::EINTR => {}
                Err(e) => {
                    // Out of descriptors or memory: the backlog keeps the connections until there is room again.
                    pr_err_ratelimited!("Accepting connections failed: {e}");
                    let at = cx.now() + Delta::from_millis(ACCEPT_RETRY_MS);
                    cx.set_timer(cx.token(), 0, at);
                    return;
                }
            }
        }
        cx.reschedule(cx.token());
    }
}

impl Source for Listener {
    fn ready(&mut self, cx: &mut Cx<'_>, _ev: Ready) {
        self.accept(cx);
    }

    fn woken(&mut self, _cx: &mut Cx<'_>) {}

    fn timer(&mut self, cx: &mut Cx<'_>, _slot: u32) {
        self.accept(cx);
    }
}
