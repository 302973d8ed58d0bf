//! An iSCSI target and its sessions.
//!
//! C source: `iscsi-scst/kernel/target.c`, `session.c`, `iscsi-scst/usr/target.c`

use crate::accounts::Accounts;
use crate::conn::{CloseReason, ConnMsg, ConnShared};
use crate::login::LoginResult;
use crate::param::{KeyValues, TgtParams};
use crate::pdu::{Cid, Isid, Tsih};
use kshim::sync::SpinLock;
use scst_core::core::Core;
use scst_core::tgt::Tgt;
use std::sync::Arc;

/// What to do when a session that stands in the way is gone.
type Waiter = Box<dyn FnOnce(&Arc<Core>) + Send>;

/// A session as the target knows it: from the moment its login is accepted until it is unregistered.
struct SessEntry {
    initiator_name: String,
    isid: Isid,
    tsih: Tsih,
    cid: Cid,
    conn: Arc<ConnShared>,
    /// The login that replaces it: the last of those that want to.
    #[doc(alias = "sess_reinst_successor")]
    successor: Option<(Arc<ConnShared>, Waiter)>,
}

/// An iSCSI target.
#[doc(alias = "iscsi_target")]
pub struct IscsiTarget {
    tgt: Arc<Tgt>,
    alias: Option<String>,
    keys: SpinLock<KeyValues>,
    params: SpinLock<TgtParams>,
    accounts: SpinLock<Arc<Accounts>>,
    sessions: SpinLock<Sessions>,
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
        alias: Option<String>,
        keys: KeyValues,
        params: TgtParams,
    ) -> Self {
        Self {
            tgt,
            alias,
            keys: SpinLock::new(keys),
            params: SpinLock::new(params),
            accounts: SpinLock::new(Arc::default()),
            sessions: SpinLock::new(Sessions::default()),
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

    /// TargetAlias.
    pub fn alias(&self) -> Option<&str> {
        self.alias.as_deref()
    }

    /// The target's side of the negotiation.
    pub fn keys(&self) -> KeyValues {
        self.keys.lock().clone()
    }

    /// Parameters that are not negotiated.
    pub fn params(&self) -> TgtParams {
        self.params.lock().clone()
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

    /// The initiator's part of the session id of the session that the core knows by this TSIH.
    pub(crate) fn isid_of(&self, tsih: u64) -> Option<Isid> {
        let sessions = self.sessions.lock();
        let is = |e: &&SessEntry| u64::from(e.tsih.0) == tsih;
        sessions.entries.iter().find(is).map(|e| e.isid)
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
        sessions
            .entries
            .swap_remove(at)
            .successor
            .map(|(_, waiter)| waiter)
    }

    /// Has all sessions closed but that of `conn`.
    #[doc(alias = "target_del_all_sess")]
    pub(crate) fn close_others(&self, conn: &Arc<ConnShared>) {
        let conns: Vec<_> = {
            let sessions = self.sessions.lock();
            let others = sessions
                .entries
                .iter()
                .filter(|e| !Arc::ptr_eq(&e.conn, conn));
            others.map(|e| Arc::clone(&e.conn)).collect()
        };
        for conn in conns {
            conn.send(ConnMsg::Close(CloseReason::Reset));
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
