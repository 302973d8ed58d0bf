//! Login and discovery: what iscsi-scstd does for kernel SCST, as a state machine without I/O.
//!
//! [`Login`] is one connection before full feature phase, and, for a discovery session, for good. Whoever owns the
//! socket feeds it one request PDU at a time and does what the [`Outcome`] says: send the response, then go on,
//! create the session, take the connection over, or close. It never blocks, never waits and owns no timer; what it
//! must know of targets and sessions it asks through [`LoginEnv`].
//!
//! ```text
//!   PDU --> Login::receive --> response?, Next::Continue        read the next PDU
//!                          --> Next::CreateSession              register it, then Login::session_created
//!                          --> response, Next::FullFeature      the connection takes over with the LoginResult
//!                          --> response?, Next::Close           close when the response is out
//! ```
//!
//! - [`machine`](Login): stages, statuses (RFC 7143 6.3, 11.12, 11.13).
//! - `discovery`: NOP-Out and Logout of a discovery session (RFC 7143 4.3).
//! - [`TextExchange`]: SendTargets (RFC 7143 Appendix C), and Text in normal sessions.
//! - [`auth`]: where an authentication method plugs in; [`chap`]: the one there is.
//! - [`name`]: which characters an iSCSI name may have.
//!
//! Limits on a peer that has not logged in yet: [`MAX_LOGIN_PDUS`], [`MAX_LOGIN_TEXT`],
//! [`DEFAULT_MAX_DATA_SEGMENT_LEN`](crate::pdu::DEFAULT_MAX_DATA_SEGMENT_LEN) a PDU; time and number of such peers
//! are the connection code's to enforce, with [`LOGIN_TIMEOUT_MS`] and [`MAX_HALF_OPEN_LOGINS`].
//!
//! C source: `iscsi-scst/usr/iscsid.c`, `iscsi-scst/usr/target.c`, `iscsi-scst/usr/session.c`.

pub mod auth;
pub mod chap;
mod discovery;
mod exchange;
mod machine;
pub mod name;

pub use exchange::{TextExchange, TextScope};
pub use machine::Login;

use crate::param::{KeyValues, SessParams};
use crate::pdu::{BHS_LEN, Cid, Isid, Tsih};
use crate::sn::{CmdSn, StatSn};
use auth::Authenticator;
use core::net::SocketAddr;

/// How long a connection may take from accept to full feature phase. SCST's daemon waits for ever; open-iscsi gives
/// a login 15 s, so that a slow peer has two tries' worth.
pub const LOGIN_TIMEOUT_MS: u64 = 30_000;

/// How long a discovery session may say nothing. Its work is one question.
pub const DISCOVERY_IDLE_TIMEOUT_MS: u64 = 60_000;

/// Connections that may be in login or discovery at a time; for one more the oldest of the peer that has most is
/// closed.
#[doc(alias = "INCOMING_MAX")]
pub const MAX_HALF_OPEN_LOGINS: usize = 2048;

/// Connections that one address (of IPv6: one network of 64 bits) may have in login or discovery at a time; for one
/// more its oldest is closed. A host with as many LUNs and paths logs in to all at once.
pub const MAX_HALF_OPEN_PER_PEER: usize = 1024;

/// Request PDUs that one login may take: every key alone in a PDU of its own, and authentication.
pub const MAX_LOGIN_PDUS: u32 = 64;

/// Text of one request that is spread over several PDUs by the C bit, in login and in discovery (RFC 7143 6.2 asks
/// for 64 KiB).
pub const MAX_LOGIN_TEXT: usize = 64 * 1024;

/// Whether logins are taken at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// They are.
    Up,
    /// Not now: status 0301h, service unavailable.
    #[doc(alias = "logins_suspended")]
    Suspended,
    /// The iSCSI driver is disabled: the connection is closed without an answer.
    #[doc(alias = "iscsi_enabled")]
    Disabled,
}

/// How long a target has moved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectKind {
    /// For now (status 0101h).
    Temporary,
    /// For good (status 0102h).
    Permanent,
}

/// Where the initiator is sent instead.
#[doc(alias = "redirect_addr")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Value of TargetAddress: `address:port`, IPv6 addresses in brackets.
    pub address: String,
    /// For how long.
    pub kind: RedirectKind,
}

/// What a login must know about the target it names. `T` is the caller's handle of a target.
#[derive(Debug, Clone)]
pub struct TargetInfo<T> {
    /// The target.
    pub target: T,
    /// Whether it is enabled. A login to a disabled target is closed without an answer.
    #[doc(alias = "tgt_enabled")]
    pub enabled: bool,
    /// Whether this initiator may use it through this portal: `allowed_portal`, access control groups, iSNS. If
    /// not, the target is "not found".
    #[doc(alias = "target_portal_allowed")]
    pub allowed: bool,
    /// Whether it has moved to another portal than the connected one.
    #[doc(alias = "target_redirected")]
    pub redirect: Option<Redirect>,
    /// TargetAlias.
    pub alias: Option<String>,
    /// The target's side of the negotiation.
    pub params: KeyValues,
    /// Whether MaxSessions leaves no room for one more (status 0302h; reinstatement needs none).
    pub is_full: bool,
}

/// What is known about the session that a login names by initiator name, target and ISID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// There is none.
    None,
    /// There is one.
    Exists {
        /// Its TSIH.
        tsih: Tsih,
        /// Whether the connection with the login's CID is part of it.
        has_connection: bool,
    },
}

/// A target and its portals, as SendTargets lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// TargetName.
    pub name: String,
    /// Its portals in the order of the answer: SCST lists the connected one first, then the others of the same
    /// address family. All are in portal group 1.
    pub portals: Vec<SocketAddr>,
}

/// What a login asks its surroundings. Every method answers at once: it runs on a reactor.
pub trait LoginEnv {
    /// Handle of a target, cheap to clone.
    type Target: Clone;

    /// Whether logins are taken.
    fn service(&self) -> ServiceState {
        ServiceState::Up
    }

    /// Looks a target up by name (ASCII case does not matter) for a login of `initiator`.
    #[doc(alias = "target_find_by_name")]
    fn find_target(&self, name: &str, initiator: &str) -> Option<TargetInfo<Self::Target>>;

    /// The session of `initiator` with this ISID on a target.
    #[doc(alias = "session_find_name")]
    fn session_state(
        &self,
        target: &Self::Target,
        initiator: &str,
        isid: Isid,
        cid: Cid,
    ) -> SessionState;

    /// Whether discovery sessions are served on this portal.
    #[doc(alias = "is_discovery")]
    fn allows_discovery(&self) -> bool {
        true
    }

    /// The enabled targets that `initiator` may use through this portal; with `name` only that one (compared
    /// exactly).
    #[doc(alias = "target_list_build")]
    fn list_targets(&self, name: Option<&str>, initiator: &str) -> Vec<DiscoveredTarget>;

    /// Whether a login must authenticate itself: whether the target (`None`: discovery) has IncomingUser accounts.
    #[doc(alias = "accounts_empty")]
    fn requires_auth(&self, target: Option<&Self::Target>) -> bool {
        let _ = target;
        false
    }

    /// Whether the connection came through an `internal_portal`, where authentication may be skipped.
    #[doc(alias = "on_internal_portal")]
    fn is_internal_portal(&self) -> bool {
        false
    }

    /// Starts a CHAP exchange for a target (`None`: discovery); `None` when there is none to be had, which fails
    /// the login with status 0300h.
    #[doc(alias = "cmnd_exec_auth_chap")]
    fn start_chap(
        &self,
        target: Option<&Self::Target>,
        initiator: &str,
    ) -> Option<Box<dyn Authenticator>> {
        let _ = (target, initiator);
        None
    }
}

/// A response PDU to send: its header, whose DataSegmentLength is that of `data`, and the data without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Basic header segment.
    pub bhs: [u8; BHS_LEN],
    /// Data segment. The sender pads it to four bytes.
    pub data: Vec<u8>,
}

/// What follows once the response, if there is one, has been sent.
#[derive(Debug)]
pub enum Next<T> {
    /// Read the next PDU.
    Continue,
    /// The login is complete but for the session. Register (or reinstate) what [`Login::result`] describes, then
    /// call [`Login::session_created`]. No PDU is read in between. Comes without a response.
    CreateSession,
    /// The response ends the login of a normal session: the connection enters full feature phase.
    FullFeature(Box<LoginResult<T>>),
    /// Close the connection.
    Close,
}

/// Result of one step of a [`Login`].
#[derive(Debug)]
#[must_use]
pub struct Outcome<T> {
    /// What to send.
    pub response: Option<Response>,
    /// What to do then.
    pub next: Next<T>,
}

/// What kind of session the initiator wants (SessionType, RFC 7143 13.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionType {
    /// SCSI commands.
    #[doc(alias = "SESSION_NORMAL")]
    Normal,
    /// SendTargets only.
    #[doc(alias = "SESSION_DISCOVERY")]
    Discovery,
}

/// What a login means for sessions that exist (RFC 7143 6.3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reinstatement {
    /// Nothing: a new session.
    None,
    /// TSIH was 0 and the initiator's session with this ISID exists: it ends, the new one takes its place.
    #[doc(alias = "ISCSI_SESS_REINSTATEMENT")]
    Session,
    /// TSIH and CID name a connection that exists: it ends, the new one takes its place.
    #[doc(alias = "ISCSI_CONN_REINSTATEMENT")]
    Connection,
}

/// A login that succeeded.
#[doc(alias = "iscsi_kern_session_info")]
#[doc(alias = "iscsi_kern_conn_info")]
#[derive(Debug, Clone)]
pub struct LoginResult<T> {
    /// The target.
    pub target: T,
    /// InitiatorName.
    pub initiator_name: String,
    /// InitiatorAlias, if given.
    pub initiator_alias: Option<String>,
    /// ISID.
    pub isid: Isid,
    /// TSIH: as requested (0 for a new session) until the session is created, then the session's.
    pub tsih: Tsih,
    /// Connection identifier.
    pub cid: Cid,
    /// Which session or connection it replaces.
    pub reinstatement: Reinstatement,
    /// What was negotiated.
    pub params: SessParams,
    /// Account that authenticated itself.
    pub user: Option<String>,
    /// StatSN of the next response of the connection.
    pub stat_sn: StatSn,
    /// ExpStatSN of the last login request.
    pub exp_stat_sn: StatSn,
    /// CmdSN of the first command of the session: ExpCmdSN.
    pub exp_cmd_sn: CmdSn,
}

/// A header that [`Login::pdu_len`] will not read on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("PDU of {len} bytes after its header, more than {limit}")]
pub struct PduTooLong {
    /// Bytes announced after the basic header segment.
    pub len: usize,
    /// Bytes allowed.
    pub limit: usize,
}
