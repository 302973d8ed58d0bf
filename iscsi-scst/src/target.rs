//! An iSCSI target and its sessions.
//!
//! C source: `iscsi-scst/kernel/target.c`, `session.c`, `iscsi-scst/usr/target.c`

use crate::accounts::Accounts;
use crate::conn::{CloseReason, ConnMsg, ConnShared};
use crate::login::LoginResult;
use crate::param::{KeyValues, SessParams, SessionKey, TgtParams};
use crate::pdu::{Cid, Isid, Tsih};
use crate::portal::{PortalFilter, Redirection, full_initiator_name, portal_name};
use kshim::error::{Result, code};
use kshim::sync::{Completion, SpinLock};
use kshim::time::Delta;
use scst_core::core::Core;
use scst_core::retained::RetainedStates;
use scst_core::tgt::Tgt;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What to do when a session that stands in the way is gone.
pub(crate) type Waiter = Box<dyn FnOnce(&Arc<Core>, Option<RetainedStates>) + Send>;

/// A session as the target knows it: from the moment its login is accepted until it is unregistered.
struct SessEntry {
    initiator_name: String,
    isid: Isid,
    tsih: Tsih,
    cid: Cid,
    params: SessParams,
    conn: Arc<ConnShared>,
    /// The login that replaces it: the last of those that want to.
    #[doc(alias = "sess_reinst_successor")]
    successor: Option<(Arc<ConnShared>, Waiter)>,
}

/// An iSCSI target.
#[doc(alias = "iscsi_target")]
pub struct IscsiTarget {
    tgt: Arc<Tgt>,
    tid: u32,
    config: SpinLock<Config>,
    keys: SpinLock<KeyValues>,
    params: SpinLock<TgtParams>,
    accounts: SpinLock<Arc<Accounts>>,
    sessions: SpinLock<Sessions>,
    /// Initiators that the name server names for it.
    #[doc(alias = "isns_head")]
    isns: SpinLock<BTreeSet<String>>,
    /// It takes no sessions any more, and none is left.
    emptied: Completion,
}

/// What management says about a target, but for its keys, parameters and accounts.
#[derive(Default)]
struct Config {
    alias: Option<String>,
    allowed_portals: PortalFilter,
    per_portal_acl: bool,
    redirect: Option<Redirection>,
}

/// A session as management shows it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// InitiatorName, without the portal that `per_portal_acl` adds.
    pub initiator_name: String,
    /// ISID.
    pub isid: Isid,
    /// TSIH.
    pub tsih: Tsih,
    /// CID of its connection.
    pub cid: Cid,
    /// What was negotiated.
    pub params: SessParams,
    /// Whether a login waits to take its place.
    pub reinstating: bool,
    /// Where the initiator is.
    pub peer: SocketAddr,
    /// The portal that it came by.
    pub portal: SocketAddr,
    /// Number of the thread that serves it, with others.
    pub tid: i32,
}

#[derive(Default)]
struct Sessions {
    entries: Vec<SessEntry>,
    last_tsih: u16,
    /// No session is taken any more.
    closed: bool,
}

impl std::fmt::Debug for IscsiTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IscsiTarget")
            .field("name", &self.tgt.name())
            .finish_non_exhaustive()
    }
}

/// What [`IscsiTarget::claim`] answers.
pub(crate) enum Claim {
    /// The session may be registered under this TSIH.
    Granted(Tsih),
    /// An older session of the same initiator port (`old`) has to end first; the waiter runs then. `given_up`: a login
    /// that waited for the same and does not any more.
    Waiting {
        old: Arc<ConnShared>,
        given_up: Option<Arc<ConnShared>>,
    },
    /// MaxSessions are there.
    Full,
    /// The target takes no sessions any more.
    Closed,
}

impl IscsiTarget {
    pub(crate) fn new(
        tgt: Arc<Tgt>,
        tid: u32,
        alias: Option<String>,
        keys: KeyValues,
        params: TgtParams,
    ) -> Self {
        Self {
            tgt,
            tid,
            config: SpinLock::new(Config {
                alias,
                ..Config::default()
            }),
            keys: SpinLock::new(keys),
            params: SpinLock::new(params),
            accounts: SpinLock::new(Arc::default()),
            sessions: SpinLock::new(Sessions::default()),
            isns: SpinLock::default(),
            emptied: Completion::new(),
        }
    }

    /// The target port of the core.
    pub fn tgt(&self) -> &Arc<Tgt> {
        &self.tgt
    }

    /// The iSCSI name.
    pub fn name(&self) -> &str {
        self.tgt.name()
    }

    /// The number by which the driver's management knows it.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// TargetAlias.
    pub fn alias(&self) -> Option<String> {
        self.config.lock().alias.clone()
    }

    /// Sets or, with `None`, removes TargetAlias.
    pub fn set_alias(&self, alias: Option<String>) {
        self.config.lock().alias = alias;
    }

    /// The target's side of the negotiation.
    pub fn keys(&self) -> KeyValues {
        self.keys.lock().clone()
    }

    /// Sets a key for logins to come; see [`KeyValues::set_text`]. Errors: EINVAL.
    pub fn set_key(&self, key: SessionKey, text: &str) -> Result {
        let set = self.keys.lock().set_text(key, text);
        if set { Ok(()) } else { Err(code::EINVAL) }
    }

    /// Parameters that are not negotiated.
    pub fn params(&self) -> TgtParams {
        self.params.lock().clone()
    }

    /// Sets a parameter; see [`TgtParams::set_text`]. Connections heed a new NopInInterval at once, other timeouts from
    /// their next timer on. DIFFERS: a smaller QueuedCommands comes into force as commands end; SCST narrows windows that
    /// are granted.
    /// Errors: EINVAL.
    pub fn set_param(&self, name: &str, text: &str) -> Result {
        if !self.params.lock().set_text(name, text) {
            return Err(code::EINVAL);
        }
        for conn in self.conns() {
            conn.send(ConnMsg::Params);
        }
        Ok(())
    }

    /// The connections of its sessions.
    fn conns(&self) -> Vec<Arc<ConnShared>> {
        let sessions = self.sessions.lock();
        let all = sessions.entries.iter();
        all.map(|e| Arc::clone(&e.conn)).collect()
    }

    /// Which portals it is reached by.
    pub fn allowed_portals(&self) -> PortalFilter {
        self.config.lock().allowed_portals.clone()
    }

    /// Changes which portals it is reached by. Sessions that exist live on.
    #[doc(alias = "allowed_portal")]
    pub fn edit_allowed_portals<R>(&self, edit: impl FnOnce(&mut PortalFilter) -> R) -> R {
        edit(&mut self.config.lock().allowed_portals)
    }

    /// Whether access control groups see initiators as `NAME#PORTAL`.
    pub fn per_portal_acl(&self) -> bool {
        self.config.lock().per_portal_acl
    }

    /// Sets [`IscsiTarget::per_portal_acl`], for logins to come.
    pub fn set_per_portal_acl(&self, on: bool) {
        self.config.lock().per_portal_acl = on;
    }

    /// Where it has moved to.
    pub fn redirect(&self) -> Option<Redirection> {
        self.config.lock().redirect
    }

    /// Sends logins elsewhere, or does not any more.
    pub fn set_redirect(&self, to: Option<Redirection>) {
        self.config.lock().redirect = to;
    }

    /// Whether an initiator may use it by a portal: the portal is allowed, and there is a LUN for the initiator.
    #[doc(alias = "target_portal_allowed")]
    pub(crate) fn allows(&self, portal: &SocketAddr, initiator: &str) -> bool {
        let portal = portal_name(portal);
        let name = {
            let config = self.config.lock();
            if !config.allowed_portals.allows(&portal) {
                return false;
            }
            full_initiator_name(config.per_portal_acl, initiator, &portal)
        };
        self.tgt.has_luns_for(&name)
    }

    pub(crate) fn set_isns_initiators(&self, names: BTreeSet<String>) {
        *self.isns.lock() = names;
    }

    /// Whether the name server names an initiator for the target.
    pub(crate) fn isns_names(&self, initiator: &str) -> bool {
        self.isns.lock().contains(initiator)
    }

    /// The name of an initiator in access control.
    pub(crate) fn full_name(&self, initiator: &str, portal: &SocketAddr) -> String {
        full_initiator_name(self.per_portal_acl(), initiator, &portal_name(portal))
    }

    /// The sessions.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let sessions = self.sessions.lock();
        sessions.entries.iter().map(SessEntry::info).collect()
    }

    /// The session that the core knows as [`Session::tgt_priv`](scst_core::session::Session::tgt_priv).
    pub fn session(&self, tgt_priv: u64) -> Option<SessionInfo> {
        let sessions = self.sessions.lock();
        let is = |e: &&SessEntry| u64::from(e.tsih.0) == tgt_priv;
        sessions.entries.iter().find(is).map(SessEntry::info)
    }

    /// The accounts that logins have to authenticate against; none by default.
    pub fn accounts(&self) -> Arc<Accounts> {
        Arc::clone(&self.accounts.lock())
    }

    /// Replaces the accounts. Sessions that exist live on.
    #[doc(alias = "IncomingUser")]
    #[doc(alias = "OutgoingUser")]
    pub fn set_accounts(&self, accounts: Accounts) {
        *self.accounts.lock() = Arc::new(accounts);
    }

    /// Number of sessions, including those that are being set up or torn down.
    pub fn session_count(&self) -> usize {
        self.sessions.lock().entries.len()
    }

    /// TSIH of an initiator port's session, and whether the connection `cid` is its.
    pub(crate) fn find_session(
        &self,
        initiator: &str,
        isid: Isid,
        cid: Cid,
    ) -> Option<(Tsih, bool)> {
        let sessions = self.sessions.lock();
        let entry = sessions.entries.iter().find(|e| e.is(initiator, isid))?;
        Some((entry.tsih, entry.cid == cid))
    }

    /// Takes the place of an initiator port for the session of a login. If an older session has it, `waiter` runs when
    /// that is gone.
    pub(crate) fn claim(
        &self,
        login: &LoginResult<Arc<Self>>,
        conn: &Arc<ConnShared>,
        waiter: impl FnOnce() -> Waiter,
    ) -> Claim {
        let max = usize::try_from(self.params().max_sessions).unwrap_or(usize::MAX);
        let mut sessions = self.sessions.lock();
        if sessions.closed {
            return Claim::Closed;
        }
        let initiator = login.initiator_name.as_str();
        if let Some(old) = sessions
            .entries
            .iter_mut()
            .find(|e| e.is(initiator, login.isid))
        {
            let before = old.successor.replace((Arc::clone(conn), waiter()));
            let given_up = before.map(|(conn, _)| conn);
            return Claim::Waiting {
                old: Arc::clone(&old.conn),
                given_up,
            };
        }
        if max != 0 && sessions.entries.len() >= max {
            return Claim::Full;
        }
        let Some(tsih) = sessions.tsih_for(login.tsih) else {
            return Claim::Full;
        };
        sessions.entries.push(SessEntry {
            initiator_name: initiator.to_owned(),
            isid: login.isid,
            tsih,
            cid: login.cid,
            params: login.params.clone(),
            conn: Arc::clone(conn),
            successor: None,
        });
        Claim::Granted(tsih)
    }

    /// The session of `conn` is unregistered; answers who waited for that.
    pub(crate) fn release(&self, conn: &Arc<ConnShared>) -> Option<Waiter> {
        let mut sessions = self.sessions.lock();
        let at = sessions
            .entries
            .iter()
            .position(|e| Arc::ptr_eq(&e.conn, conn))?;
        let gone = sessions.entries.swap_remove(at);
        if sessions.closed && sessions.entries.is_empty() {
            self.emptied.complete_all();
        }
        gone.successor.map(|(_, waiter)| waiter)
    }

    /// Waits, once [`IscsiTarget::close`] was called, until no session is left. Answers whether that came in time.
    pub(crate) fn wait_empty(&self, limit: Delta) -> bool {
        let is_empty = || self.session_count() == 0;
        is_empty() || self.emptied.wait_for_completion_timeout(limit) || is_empty()
    }

    /// Has all sessions closed but that of `conn`.
    #[doc(alias = "target_del_all_sess")]
    pub(crate) fn close_others(&self, conn: &Arc<ConnShared>) {
        for other in self.conns().iter().filter(|c| !Arc::ptr_eq(c, conn)) {
            other.send(ConnMsg::Close(CloseReason::Reset));
        }
    }

    /// Takes no sessions any more; answers the connections that are still there.
    pub(crate) fn close(&self) -> Vec<Arc<ConnShared>> {
        let mut sessions = self.sessions.lock();
        sessions.closed = true;
        sessions
            .entries
            .iter()
            .map(|e| Arc::clone(&e.conn))
            .collect()
    }
}

impl SessEntry {
    fn info(&self) -> SessionInfo {
        SessionInfo {
            initiator_name: self.initiator_name.clone(),
            isid: self.isid,
            tsih: self.tsih,
            cid: self.cid,
            params: self.params.clone(),
            reinstating: self.successor.is_some(),
            peer: self.conn.peer,
            portal: self.conn.local,
            tid: self.conn.tid.load(Ordering::Relaxed),
        }
    }

    fn is(&self, initiator: &str, isid: Isid) -> bool {
        self.isid == isid && self.initiator_name.eq_ignore_ascii_case(initiator)
    }
}

impl Sessions {
    /// The TSIH of a new session: that of the session which it replaces, if it names one, else a free one.
    fn tsih_for(&mut self, wanted: Tsih) -> Option<Tsih> {
        let is_free = !self.entries.iter().any(|e| e.tsih == wanted);
        if wanted != Tsih::default() && is_free {
            Some(wanted)
        } else {
            self.free_tsih()
        }
    }

    /// The next TSIH that no session has; 0 is reserved.
    fn free_tsih(&mut self) -> Option<Tsih> {
        for _ in 0..u16::MAX {
            self.last_tsih = self.last_tsih.wrapping_add(1).max(1);
            if !self.entries.iter().any(|e| e.tsih.0 == self.last_tsih) {
                return Some(Tsih(self.last_tsih));
            }
        }
        None
    }
}
