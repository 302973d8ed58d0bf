//! The login phase: stages, keys and statuses of one connection.

use super::auth::{AuthStep, Authenticator};
use super::exchange::{TextExchange, TextScope};
use super::{
    LoginEnv, LoginResult, MAX_LOGIN_PDUS, MAX_LOGIN_TEXT, Next, Outcome, PduTooLong, RedirectKind,
    Reinstatement, Response, ServiceState, SessionState, SessionType, TargetInfo, name,
};
use crate::param::{Answer, KeyValues, Negotiation, SessionKey};
use crate::pdu::hdr::{LoginFlags, LoginReqHdr, LoginRspHdr, LoginStage, RejectHdr};
use crate::pdu::{
    BHS_LEN, Bhs, Cid, DEFAULT_MAX_DATA_SEGMENT_LEN, Header, ISCSI_VERSION, Isid, LoginStatus,
    RejectReason, Request, Tsih, pad_len,
};
use crate::sn::{CmdSn, StatSn};
use crate::text::{self, IRRELEVANT, NOT_UNDERSTOOD, Pair, REJECT, TextBuf, TextError, TextFull};

/// Keys that the negotiation passes over in silence: login itself reads them, or they belong to iSER.
#[doc(alias = "login_keys")]
const LOGIN_KEYS: [&str; 8] = [
    "InitiatorName",
    "InitiatorAlias",
    "SessionType",
    "TargetName",
    "InitiatorRecvDataSegmentLength",
    "MaxAHSLength",
    "TaggedBufferForSolicitedDataOnly",
    "iSERHelloRequired",
];

/// Keys that mean nothing to a discovery session, of those that SCST does not know (RFC 7143 13.23, RFC 7144 6.1.1).
const SESSION_ONLY: [&str; 2] = ["TaskReporting", "iSCSIProtocolLevel"];

/// The portal group that every portal is in.
const PORTAL_GROUP_TAG: &str = "1";

/// TSIH of every discovery session: nobody looks it up.
const DISCOVERY_TSIH: Tsih = Tsih(1);

/// Where a login stands (RFC 7143 6.3, 8.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing received.
    #[doc(alias = "STATE_FREE")]
    Free,
    /// Security negotiation, method not started.
    #[doc(alias = "STATE_SECURITY")]
    Security,
    /// An authentication method runs.
    #[doc(alias = "STATE_SECURITY_AUTH")]
    SecurityAuth,
    /// Authenticated, stage not left.
    #[doc(alias = "STATE_SECURITY_DONE")]
    SecurityDone,
    /// Operational negotiation.
    #[doc(alias = "STATE_LOGIN")]
    Operational,
    /// Negotiated; the session is being created.
    #[doc(alias = "STATE_LOGIN_FULL")]
    Creating,
    /// A discovery session in full feature phase.
    #[doc(alias = "STATE_FULL")]
    Discovery,
    /// Handed over, or to be closed.
    #[doc(alias = "STATE_EXIT")]
    Over,
}

/// Which method the initiator and we agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AuthMethod {
    None,
    Chap,
}

/// Why a request does not advance the login.
#[derive(Debug)]
enum Stop {
    /// Respond with this status and these flags, then close.
    Fail(LoginStatus, LoginFlags),
    /// Send the initiator elsewhere, then close.
    Redirect(LoginStatus),
    /// Close without a word.
    Drop,
}

impl Stop {
    /// A failure of which the response names no stage, as SCST's generic error path has it.
    const fn stageless(status: LoginStatus) -> Self {
        Self::Fail(status, LoginFlags(0))
    }
}

impl From<TextFull> for Stop {
    fn from(_: TextFull) -> Self {
        Self::stageless(LoginStatus::TargetError)
    }
}

/// One connection before full feature phase, or in a discovery session. See the [module](super).
///
/// `T` is the caller's handle of a target, [`LoginEnv::Target`].
///
/// ```
/// use iscsi_scst::login::{DiscoveredTarget, Login, LoginEnv, Next, SessionState, TargetInfo};
/// use iscsi_scst::pdu::{Bhs, Cid, Header, Isid, hdr::LoginReqHdr};
///
/// struct NoTargets;
/// impl LoginEnv for NoTargets {
///     type Target = ();
///     fn find_target(&self, _: &str, _: &str) -> Option<TargetInfo<()>> { None }
///     fn session_state(&self, _: &(), _: &str, _: Isid, _: Cid) -> SessionState { SessionState::None }
///     fn list_targets(&self, _: Option<&str>, _: &str) -> Vec<DiscoveredTarget> { Vec::new() }
/// }
///
/// let text = b"InitiatorName=iqn.2026-01.org.example:i\0SessionType=Discovery\0";
/// let mut request = LoginReqHdr::new();
/// request.flags = 0x87; // operational stage, to full feature phase
/// request.set_data_len(u32::try_from(text.len())?);
///
/// let mut login = Login::new();
/// let outcome = login.receive(&NoTargets, request.as_bhs(), text);
/// assert!(matches!(outcome.next, Next::Continue));
/// let response = outcome.response.ok_or("no response")?;
/// assert_eq!(response.data, b"TargetPortalGroupTag=1\0");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "connection")]
pub struct Login<T> {
    state: State,
    session_type: SessionType,
    isid: Isid,
    tsih: Tsih,
    cid: Cid,
    initiator: String,
    initiator_alias: Option<String>,
    target: Option<T>,
    reinstatement: Reinstatement,
    negotiation: Negotiation,
    auth_method: Option<AuthMethod>,
    auth: Option<Box<dyn Authenticator>>,
    user: Option<String>,
    stat_sn: StatSn,
    exp_stat_sn: StatSn,
    exp_cmd_sn: CmdSn,
    /// Requests received.
    pdus: u32,
    /// Text of the requests so far of a sequence with the C bit, and the stage it is in.
    partial: Option<(LoginStage, Vec<u8>)>,
    /// The last response and the result, while the session is being created.
    pending: Option<Box<Pending<T>>>,
    /// Text of a discovery session.
    text: TextExchange,
}

#[derive(Debug)]
struct Pending<T> {
    response: LoginRspHdr,
    text: Vec<u8>,
    result: LoginResult<T>,
}

impl<T> Default for Login<T> {
    fn default() -> Self {
        Self {
            state: State::Free,
            session_type: SessionType::Normal,
            isid: Isid::default(),
            tsih: Tsih::default(),
            cid: Cid::default(),
            initiator: String::new(),
            initiator_alias: None,
            target: None,
            reinstatement: Reinstatement::None,
            negotiation: Negotiation::new(KeyValues::default()),
            auth_method: None,
            auth: None,
            user: None,
            stat_sn: StatSn::default(),
            exp_stat_sn: StatSn::default(),
            exp_cmd_sn: CmdSn::default(),
            pdus: 0,
            partial: None,
            pending: None,
            text: TextExchange::default(),
        }
    }
}

impl<T> std::fmt::Debug for Login<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("state", &self.state)
            .field("session_type", &self.session_type)
            .field("initiator", &self.initiator)
            .field("isid", &self.isid)
            .field("cid", &self.cid)
            .finish_non_exhaustive()
    }
}

impl<T: Clone> Login<T> {
    /// A connection that was just accepted.
    #[doc(alias = "conn_alloc")]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether this is a discovery session in full feature phase: no longer a login for
    /// [`LOGIN_TIMEOUT_MS`](super::LOGIN_TIMEOUT_MS).
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.state == State::Discovery
    }

    /// InitiatorName, empty until the first request was read.
    #[must_use]
    pub fn initiator_name(&self) -> &str {
        &self.initiator
    }

    /// The login's result while its session is being created ([`Next::CreateSession`]).
    #[must_use]
    pub fn result(&self) -> Option<&LoginResult<T>> {
        self.pending.as_ref().map(|pending| &pending.result)
    }

    /// How many bytes follow a header, padding included: what to read before [`Login::receive`]. No digests here.
    ///
    /// # Errors
    /// [`PduTooLong`]: close the connection, as SCST does.
    pub fn pdu_len(&self, bhs: &Bhs) -> Result<usize, PduTooLong> {
        let limit = match self.state {
            State::Discovery => MAX_LOGIN_TEXT,
            _ => usize::try_from(DEFAULT_MAX_DATA_SEGMENT_LEN).unwrap_or(MAX_LOGIN_TEXT),
        };
        let data_len = usize::try_from(bhs.data_len()).unwrap_or(usize::MAX);
        let len = bhs
            .ahs_len()
            .saturating_add(data_len)
            .saturating_add(pad_len(data_len));
        if len > limit {
            Err(PduTooLong { len, limit })
        } else {
            Ok(len)
        }
    }

    /// Takes one request PDU: its header and its data segment without padding. Additional header segments have no
    /// meaning here and are left out.
    ///
    /// Context: reactor-safe.
    #[doc(alias = "cmnd_execute")]
    pub fn receive<E>(&mut self, env: &E, bhs: &Bhs, data: &[u8]) -> Outcome<T>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        match self.state {
            State::Creating | State::Over => return self.close(None),
            State::Discovery => return self.receive_in_discovery(env, bhs, data),
            _ => {}
        }
        self.pdus = self.pdus.saturating_add(1);
        if self.pdus > MAX_LOGIN_PDUS {
            return self.close(None);
        }
        match bhs.request() {
            Request::Login(request) if bhs.is_immediate() => self.login(env, request, data),
            Request::Login(_) => Outcome::go_on(self.reject(bhs, RejectReason::ProtocolError)),
            // DIFFERS: SCST rejects these and goes on; RFC 7143 6.3 has the connection end.
            Request::Text(_) | Request::Logout(_) => {
                let reject = self.reject(bhs, RejectReason::ProtocolError);
                self.close(Some(reject))
            }
            _ => {
                let reject = self.reject(bhs, RejectReason::CommandNotSupported);
                self.close(Some(reject))
            }
        }
    }

    /// The session that [`Next::CreateSession`] asked for exists, with this TSIH, or could not be created, which
    /// the initiator learns as the given status (SCST says [`LoginStatus::OutOfResources`]).
    #[doc(alias = "login_finish")]
    pub fn session_created(&mut self, session: Result<Tsih, LoginStatus>) -> Outcome<T> {
        let Some(pending) = self.pending.take() else {
            return self.close(None);
        };
        let Pending {
            mut response,
            text,
            mut result,
        } = *pending;
        let tsih = match session {
            Ok(tsih) => tsih,
            Err(status) => {
                response.flags = 0;
                response.set_status(status);
                return self.close(Some(Response::new(response.as_bhs(), Vec::new())));
            }
        };
        response.tsih = tsih.into();
        let response = self.accept(response, text);
        result.tsih = tsih;
        result.stat_sn = self.stat_sn;
        self.state = State::Over;
        Outcome {
            response: Some(response),
            next: Next::FullFeature(Box::new(result)),
        }
    }

    /// One Login Request.
    #[doc(alias = "cmnd_exec_login")]
    fn login<E>(&mut self, env: &E, request: &LoginReqHdr, data: &[u8]) -> Outcome<T>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        let mut response = LoginRspHdr::new();
        response.itt = request.itt;
        response.isid = request.isid;
        response.tsih = request.tsih;
        let mut answer = TextBuf::with_limit(
            usize::try_from(DEFAULT_MAX_DATA_SEGMENT_LEN).unwrap_or(MAX_LOGIN_TEXT),
        );
        match self.advance(env, request, data, &mut answer) {
            Ok(flags) => {
                response.flags = flags.0;
                let text = answer.into_bytes();
                let to_full_feature =
                    flags.transit() && flags.next() == Some(LoginStage::FullFeature);
                if to_full_feature {
                    self.finish(response, text)
                } else {
                    Outcome::go_on(self.accept(response, text))
                }
            }
            Err(Stop::Fail(status, flags)) => {
                response.flags = flags.0;
                response.set_status(status);
                self.close(Some(Response::new(response.as_bhs(), Vec::new())))
            }
            Err(Stop::Redirect(status)) => {
                response.flags = request.flags & 0x0c;
                response.set_status(status);
                let text = answer.into_bytes();
                response.set_data_len(u32::try_from(text.len()).unwrap_or_default());
                self.close(Some(Response::new(response.as_bhs(), text)))
            }
            Err(Stop::Drop) => self.close(None),
        }
    }

    /// Does what a request asks for and returns the flags of the response.
    fn advance<E>(
        &mut self,
        env: &E,
        request: &LoginReqHdr,
        data: &[u8],
        answer: &mut TextBuf,
    ) -> Result<LoginFlags, Stop>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        // SCST lets version_max be anything (RFC 7143 11.12.4 leaves no other version to agree on).
        if request.version_min > ISCSI_VERSION {
            return Err(Stop::stageless(LoginStatus::UnsupportedVersion));
        }
        let flags = request.login_flags();
        let stage = self.check_stage(flags)?;
        if self.state == State::Free && self.partial.is_none() {
            self.isid = request.isid;
            self.tsih = request.tsih.into();
            self.cid = request.cid.into();
            self.exp_cmd_sn = request.cmd_sn.into();
        }
        self.exp_stat_sn = request.exp_stat_sn.into();
        // DIFFERS: SCST does not know the C bit and reads every PDU on its own.
        let text = match self.gather(flags, stage, data)? {
            Some(text) => text,
            None => return Ok(LoginFlags::stages(stage, None)),
        };
        match stage {
            LoginStage::Security => self.security(env, &text, answer)?,
            _ => self.operational(env, &text, answer)?,
        }
        let next = if flags.transit() && self.state != State::SecurityAuth {
            Some(self.transit(flags.next())?)
        } else {
            None
        };
        Ok(LoginFlags::stages(stage, next))
    }

    /// The current stage of a request, if the login is in it or may start with it.
    fn check_stage(&self, flags: LoginFlags) -> Result<LoginStage, Stop> {
        let stage = match (flags.current(), self.state) {
            (
                Some(LoginStage::Security),
                State::Free | State::Security | State::SecurityAuth | State::SecurityDone,
            ) => LoginStage::Security,
            (Some(LoginStage::Operational), State::Free | State::Operational) => {
                LoginStage::Operational
            }
            _ => return Err(Stop::stageless(LoginStatus::InitiatorError)),
        };
        Ok(stage)
    }

    /// The whole text of a request: that of the PDUs before it with the C bit, and its own. `None` when it, too,
    /// has the C bit (RFC 7143 6.2, 11.12.2).
    fn gather(
        &mut self,
        flags: LoginFlags,
        stage: LoginStage,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, Stop> {
        let (started_in, mut text) = self.partial.take().unwrap_or((stage, Vec::new()));
        if started_in != stage || (flags.continues() && flags.transit()) {
            return Err(Stop::stageless(LoginStatus::InitiatorError));
        }
        if text.len().saturating_add(data.len()) > MAX_LOGIN_TEXT {
            return Err(Stop::stageless(LoginStatus::OutOfResources));
        }
        text.extend_from_slice(data);
        if flags.continues() {
            self.partial = Some((stage, text));
            return Ok(None);
        }
        Ok(Some(text))
    }

    /// Leaves the current stage for `next`.
    fn transit(&mut self, next: Option<LoginStage>) -> Result<LoginStage, Stop> {
        match (next, self.state) {
            (Some(LoginStage::Operational), State::Security | State::SecurityDone) => {
                self.state = State::Operational;
                Ok(LoginStage::Operational)
            }
            (
                Some(LoginStage::FullFeature),
                State::Security | State::SecurityDone | State::Operational,
            ) => Ok(LoginStage::FullFeature),
            _ => Err(Stop::stageless(LoginStatus::InitiatorError)),
        }
    }

    /// A request of the security stage.
    fn security<E>(&mut self, env: &E, text: &[u8], answer: &mut TextBuf) -> Result<(), Stop>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        match self.state {
            State::SecurityAuth => return self.authenticate(text, answer),
            State::SecurityDone => {
                // DIFFERS: SCST fails a request that only leaves the stage after authentication has ended.
                let is_empty = text::pairs(text).next().is_none();
                let error = Stop::stageless(LoginStatus::InitiatorError);
                return if is_empty { Ok(()) } else { Err(error) };
            }
            State::Free => {
                self.state = State::Security;
                self.start(env, text, answer)
                    .map_err(|stop| stop.in_stage(LoginStage::Security))?;
            }
            _ => {}
        }
        self.choose_auth_method(env, text, answer)?;
        if self.auth_method == Some(AuthMethod::Chap) {
            let auth = env.start_chap(self.target.as_ref(), &self.initiator);
            self.auth = Some(auth.ok_or(Stop::stageless(LoginStatus::TargetError))?);
            self.state = State::SecurityAuth;
        }
        Ok(())
    }

    /// Reads AuthMethod (RFC 7143 12.1): the first in the initiator's list that the target allows.
    #[doc(alias = "text_scan_security")]
    fn choose_auth_method<E>(
        &mut self,
        env: &E,
        text: &[u8],
        answer: &mut TextBuf,
    ) -> Result<(), Stop>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        for pair in text::pairs(text) {
            let pair = pair.map_err(|_| Stop::stageless(LoginStatus::InitiatorError))?;
            if is_login_key(&pair) {
                continue;
            }
            if pair.key != "AuthMethod" {
                answer.push(pair.key, NOT_UNDERSTOOD)?;
                continue;
            }
            let required = env.requires_auth(self.target.as_ref());
            let choice = pair.value.split(',').find_map(|method| match method {
                "None" if !required => Some((AuthMethod::None, "None")),
                "CHAP" if required => Some((AuthMethod::Chap, "CHAP")),
                _ => None,
            });
            match choice {
                Some((method, name)) => {
                    self.auth_method = Some(method);
                    answer.push(pair.key, name)?;
                }
                None if self.auth_method.is_none() => answer.push(pair.key, REJECT)?,
                None => {}
            }
        }
        match self.auth_method {
            Some(_) => Ok(()),
            None => Err(Stop::stageless(LoginStatus::AuthenticationFailed)),
        }
    }

    /// One step of the running authentication.
    #[doc(alias = "cmnd_exec_auth")]
    fn authenticate(&mut self, text: &[u8], answer: &mut TextBuf) -> Result<(), Stop> {
        let Some(auth) = self.auth.as_mut() else {
            return Err(Stop::stageless(LoginStatus::TargetError));
        };
        match auth.step(text, answer) {
            AuthStep::Continue => Ok(()),
            AuthStep::Done { user } => {
                self.user = Some(user);
                self.auth = None;
                self.state = State::SecurityDone;
                Ok(())
            }
            AuthStep::InitiatorError => Err(Stop::stageless(LoginStatus::InitiatorError)),
            AuthStep::Failed => Err(Stop::stageless(LoginStatus::AuthenticationFailed)),
            AuthStep::TargetError => Err(Stop::stageless(LoginStatus::TargetError)),
        }
    }

    /// A request of the operational stage.
    fn operational<E>(&mut self, env: &E, text: &[u8], answer: &mut TextBuf) -> Result<(), Stop>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        if self.state == State::Free {
            self.state = State::Operational;
            self.start(env, text, answer)
                .map_err(|stop| stop.in_stage(LoginStage::Operational))?;
            if env.requires_auth(self.target.as_ref()) && !env.is_internal_portal() {
                return Err(Stop::stageless(LoginStatus::AuthenticationFailed));
            }
        }
        self.negotiate(text, answer)?;
        if let Some((key, value)) = self.negotiation.declaration() {
            answer.push(key, &value)?;
        }
        Ok(())
    }

    #[doc(alias = "text_scan_login")]
    fn negotiate(&mut self, text: &[u8], answer: &mut TextBuf) -> Result<(), Stop> {
        let error = || {
            let flags = LoginFlags::stages(LoginStage::Operational, None);
            Stop::Fail(LoginStatus::InitiatorError, flags)
        };
        for pair in text::pairs(text) {
            let pair = pair.map_err(|_| error())?;
            if is_login_key(&pair) || pair.key == "AuthMethod" {
                continue;
            }
            if self.session_type == SessionType::Discovery && SESSION_ONLY.contains(&pair.key) {
                answer.push(pair.key, IRRELEVANT)?;
                continue;
            }
            let reply = match pair.check_limits() {
                Err(TextError::ValueTooLong) if SessionKey::by_name(pair.key).is_some() => {
                    Answer::Reply(REJECT.into())
                }
                Err(_) => Answer::Reply(NOT_UNDERSTOOD.into()),
                Ok(()) => self
                    .negotiation
                    .negotiate(pair.key, pair.value)
                    .map_err(|_| error())?,
            };
            if let Answer::Reply(value) = reply {
                answer.push(pair.key, &value)?;
            }
        }
        Ok(())
    }

    /// Reads who logs in to what, from the first request (RFC 7143 6.3: InitiatorName, and TargetName or
    /// SessionType=Discovery, come with it).
    #[doc(alias = "login_start")]
    fn start<E>(&mut self, env: &E, text: &[u8], answer: &mut TextBuf) -> Result<(), LoginStop>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        let find =
            |key| text::find(text, key).map_err(|_| LoginStop::Status(LoginStatus::InitiatorError));
        let initiator = find("InitiatorName")?.ok_or(LoginStatus::MissingParameter)?;
        if !name::is_valid(initiator) {
            return Err(LoginStatus::InitiatorError.into());
        }
        initiator.clone_into(&mut self.initiator);
        if env.service() == ServiceState::Suspended {
            return Err(LoginStatus::ServiceUnavailable.into());
        }
        let alias = find("InitiatorAlias")?.filter(|alias| alias.len() <= text::MAX_VALUE_LEN);
        self.initiator_alias = alias.map(str::to_owned);
        match find("SessionType")? {
            None | Some("Normal") => {
                let target_name = find("TargetName")?.ok_or(LoginStatus::MissingParameter)?;
                self.find_target(env, target_name, answer)?;
            }
            Some("Discovery") if env.service() == ServiceState::Disabled => {
                return Err(LoginStop::Drop);
            }
            Some("Discovery") if !env.allows_discovery() => {
                // DIFFERS: SCST says 0307h, which RFC 7143 11.13.5 does not know.
                return Err(LoginStatus::TargetError.into());
            }
            Some("Discovery") => self.session_type = SessionType::Discovery,
            Some(_) => return Err(LoginStatus::SessionTypeNotSupported.into()),
        }
        answer.push("TargetPortalGroupTag", PORTAL_GROUP_TAG)?;
        Ok(())
    }

    /// Finds the target of a normal session and checks whether this login may have it.
    fn find_target<E>(
        &mut self,
        env: &E,
        target_name: &str,
        answer: &mut TextBuf,
    ) -> Result<(), LoginStop>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        let info = env
            .find_target(target_name, &self.initiator)
            .ok_or(LoginStatus::NotFound)?;
        if env.service() == ServiceState::Disabled || !info.enabled {
            return Err(LoginStop::Drop);
        }
        if !info.allowed {
            return Err(LoginStatus::NotFound.into());
        }
        if let Some(redirect) = &info.redirect {
            answer.push("TargetAddress", &redirect.address)?;
            return Err(LoginStop::Redirect(match redirect.kind {
                RedirectKind::Temporary => LoginStatus::MovedTemporarily,
                RedirectKind::Permanent => LoginStatus::MovedPermanently,
            }));
        }
        self.reinstatement = self.check_reinstatement(env, &info)?;
        if let Some(alias) = &info.alias {
            answer.push("TargetAlias", alias)?;
        }
        self.negotiation = Negotiation::new(info.params);
        self.target = Some(info.target);
        Ok(())
    }

    /// What TSIH and CID mean given the sessions that exist (RFC 7143 6.3.5, 6.3.6, 11.12.6).
    #[doc(alias = "login_check_reinstatement")]
    fn check_reinstatement<E>(
        &self,
        env: &E,
        info: &TargetInfo<T>,
    ) -> Result<Reinstatement, LoginStatus>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        let new = self.tsih == Tsih(0);
        match env.session_state(&info.target, &self.initiator, self.isid, self.cid) {
            SessionState::Exists { .. } if new => Ok(Reinstatement::Session),
            SessionState::Exists { tsih, .. } if tsih != self.tsih => {
                Err(LoginStatus::SessionDoesNotExist)
            }
            SessionState::Exists {
                has_connection: true,
                ..
            } => Ok(Reinstatement::Connection),
            SessionState::Exists {
                has_connection: false,
                ..
            } => Err(LoginStatus::TooManyConnections),
            SessionState::None if !new => Err(LoginStatus::SessionDoesNotExist),
            SessionState::None if info.is_full => Err(LoginStatus::OutOfResources),
            SessionState::None => Ok(Reinstatement::None),
        }
    }

    /// The negotiation is complete: asks for the session, or enters discovery.
    fn finish(&mut self, mut response: LoginRspHdr, text: Vec<u8>) -> Outcome<T> {
        let params = self.negotiation.finish();
        let Some(target) = self.target.clone() else {
            response.tsih = DISCOVERY_TSIH.into();
            self.text = TextExchange::new(params.max_xmit_data_segment_length);
            self.state = State::Discovery;
            return Outcome::go_on(self.accept(response, text));
        };
        let result = LoginResult {
            target,
            initiator_name: self.initiator.clone(),
            initiator_alias: self.initiator_alias.take(),
            isid: self.isid,
            tsih: self.tsih,
            cid: self.cid,
            reinstatement: self.reinstatement,
            params,
            user: self.user.take(),
            stat_sn: self.stat_sn,
            exp_stat_sn: self.exp_stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
        };
        self.pending = Some(Box::new(Pending {
            response,
            text,
            result,
        }));
        self.state = State::Creating;
        Outcome {
            response: None,
            next: Next::CreateSession,
        }
    }

    /// Completes a response of status 0.
    fn accept(&mut self, mut response: LoginRspHdr, text: Vec<u8>) -> Response {
        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.take_sns();
        response.set_sns(stat_sn, exp_cmd_sn, max_cmd_sn);
        response.set_data_len(u32::try_from(text.len()).unwrap_or_default());
        Response::new(response.as_bhs(), text)
    }

    #[doc(alias = "cmnd_reject")]
    fn reject(&mut self, bhs: &Bhs, reason: RejectReason) -> Response {
        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.take_sns();
        let mut reject = RejectHdr::for_login(reason);
        reject.set_sns(stat_sn, exp_cmd_sn, max_cmd_sn);
        Response::new(reject.as_bhs(), bhs.as_array().to_vec())
    }

    /// StatSN of the next response, ExpCmdSN, and MaxCmdSN: one command ahead.
    fn take_sns(&mut self) -> (StatSn, CmdSn, CmdSn) {
        (self.stat_sn.take(), self.exp_cmd_sn, self.exp_cmd_sn.next())
    }

    fn close(&mut self, response: Option<Response>) -> Outcome<T> {
        self.state = State::Over;
        Outcome {
            response,
            next: Next::Close,
        }
    }

    fn receive_in_discovery<E>(&mut self, env: &E, bhs: &Bhs, data: &[u8]) -> Outcome<T>
    where
        E: LoginEnv<Target = T> + ?Sized,
    {
        self.exp_stat_sn = bhs.exp_stat_sn();
        let is_known = matches!(
            bhs.request(),
            Request::Text(_) | Request::Logout(_) | Request::NopOut(_)
        );
        if is_known {
            let cmd_sn = bhs.cmd_sn();
            self.exp_cmd_sn = if bhs.is_immediate() {
                cmd_sn
            } else {
                cmd_sn.next()
            };
        }
        match bhs.request() {
            Request::Text(request) => {
                let list = |name: Option<&str>| env.list_targets(name, &self.initiator);
                match self.text.receive(request, data, TextScope::Discovery, list) {
                    Ok((mut response, text)) => {
                        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.take_sns();
                        response.set_sns(stat_sn, exp_cmd_sn, max_cmd_sn);
                        Outcome::go_on(Response::new(response.as_bhs(), text))
                    }
                    Err(reason) => Outcome::go_on(self.reject(bhs, reason)),
                }
            }
            Request::NopOut(request) => {
                match super::discovery::nop(request, data, self.text.max_xmit()) {
                    Some((mut response, ping)) => {
                        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.take_sns();
                        response.set_sns(stat_sn, exp_cmd_sn, max_cmd_sn);
                        Outcome::go_on(Response::new(response.as_bhs(), ping))
                    }
                    None => Outcome {
                        response: None,
                        next: Next::Continue,
                    },
                }
            }
            Request::Logout(request) => {
                let mut response = super::discovery::logout(request);
                let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.take_sns();
                response.set_sns(stat_sn, exp_cmd_sn, max_cmd_sn);
                self.close(Some(Response::new(response.as_bhs(), Vec::new())))
            }
            Request::Login(_) => Outcome::go_on(self.reject(bhs, RejectReason::ProtocolError)),
            _ => {
                let reject = self.reject(bhs, RejectReason::CommandNotSupported);
                self.close(Some(reject))
            }
        }
    }
}

/// What stops [`Login::start`], before the response's flags are known.
#[derive(Debug)]
enum LoginStop {
    Status(LoginStatus),
    Redirect(LoginStatus),
    Full,
    Drop,
}

impl LoginStop {
    fn in_stage(self, stage: LoginStage) -> Stop {
        match self {
            Self::Status(status) => Stop::Fail(status, LoginFlags::stages(stage, None)),
            Self::Redirect(status) => Stop::Redirect(status),
            Self::Full => Stop::stageless(LoginStatus::TargetError),
            Self::Drop => Stop::Drop,
        }
    }
}

impl From<LoginStatus> for LoginStop {
    fn from(status: LoginStatus) -> Self {
        Self::Status(status)
    }
}

impl From<TextFull> for LoginStop {
    fn from(_: TextFull) -> Self {
        Self::Full
    }
}

fn is_login_key(pair: &Pair<'_>) -> bool {
    LOGIN_KEYS.iter().any(|key| pair.has_key(key))
}

impl Response {
    pub(super) fn new(bhs: &Bhs, data: Vec<u8>) -> Self {
        let bhs: [u8; BHS_LEN] = *bhs.as_array();
        Self { bhs, data }
    }
}

impl<T> Outcome<T> {
    const fn go_on(response: Response) -> Self {
        Self {
            response: Some(response),
            next: Next::Continue,
        }
    }
}
