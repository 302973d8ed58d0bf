//! A connection: a source on one reactor for its whole life.
//!
//! It begins in the login phase ([`crate::login`]), asks the management thread for its session, and then is the home of
//! the session's commands ([`crate::ffp`], [`crate::rx`]). Closing it is one procedure whatever the reason: stop
//! receiving, end what is parked here, let task management abort what is elsewhere, wait until every command has come
//! home, then have the session unregistered.
//!
//! C source: `iscsi-scst/kernel/conn.c`, `nthread.c` (`close_conn`), `iscsi-scst/usr/conn.c`

use crate::driver::{IscsiDriver, LOGOUT_GRACE_MS};
use crate::ffp::{Ffp, FromLogin};
use crate::login::{
    DISCOVERY_IDLE_TIMEOUT_MS, LOGIN_TIMEOUT_MS, Login, LoginResult, Next, Outcome, Response,
};
use crate::pdu::{Bhs, LoginStatus, Tsih, Ttt};
use crate::rx::{RxState, SockReady};
use crate::target::IscsiTarget;
use crate::tx::{Flushed, TxData, TxPdu, TxQueue, TxResp};
use kshim::error::{Result, code};
use kshim::net::{How, RX_CHUNK, RxBuf, Socket};
use kshim::reactor::{Cx, ReactorHandle, Ready, Source, Token};
use kshim::sync::SpinLock;
use kshim::time::{Delta, Instant};
use kshim::{pr_debug, pr_err, pr_info_ratelimited_by, pr_warn_ratelimited};
use scst_core::cmd::{Cmd, CmdHome, CmdRef, HomeId};
use scst_core::mgmt::MgmtCmd;
use scst_core::session::Session;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

/// Timer: the login must be done, or a discovery session has said nothing.
const TIMER_LOGIN: u32 = 0;
/// Timer: ask whether the initiator is there, or find that it did not answer.
const TIMER_NOP: u32 = 1;
/// Timer: a response has to have been sent.
const TIMER_RSP: u32 = 2;
/// Timer: write data has to have come.
const TIMER_DATA: u32 = 3;
/// Timer: a command has waited for the end of a suspension for long enough.
const TIMER_PARKED: u32 = 4;
/// How long nothing is received because a command waits for the end of a suspension. Initiators find within some seconds
/// that their pings are not answered.
const PARKED_MAX: Delta = Delta::from_secs(1);

/// Room for messages that is kept between wake-ups.
const MSGS_KEPT: usize = 64;

/// Receive memory of a connection that is not logged in.
const LOGIN_RX_CHUNK: usize = 16 << 10;

/// Why a connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The initiator closed it or it broke.
    Peer(kshim::error::Error),
    /// The initiator closed it.
    Eof,
    /// It logged out, or the login ended without a session.
    Done,
    /// A new login took its place.
    Reinstated,
    /// The target was reset cold.
    Reset,
    /// It does not speak iSCSI.
    Protocol(&'static str),
    /// It did not answer or read in time.
    Timeout(&'static str),
    /// The server or the target stops.
    Shutdown,
    /// A login that made way for others.
    Crowded,
    /// We are out of memory.
    NoMemory,
}

/// A session that was made for a login.
pub(crate) struct NewSession {
    pub(crate) target: Arc<IscsiTarget>,
    pub(crate) sess: Arc<Session>,
    pub(crate) tsih: Tsih,
}

/// What others send to a connection.
pub(crate) enum ConnMsg {
    /// A command comes home.
    Cmd(Box<Cmd>),
    /// A command was aborted and may be parked here.
    Reap(CmdRef),
    /// A task management request is complete.
    TmDone(Arc<MgmtCmd>),
    /// The initiator is to be told of an event: LUN field and sense data.
    Aen([u8; 8], Vec<u8>),
    /// The session is registered, or not.
    Created(std::result::Result<NewSession, LoginStatus>),
    /// The target's parameters have changed.
    Params,
    /// Ask the initiator to log out: the server stops.
    RequestLogout,
    /// Close the connection.
    Close(CloseReason),
    /// The session is unregistered.
    Gone,
}

/// What others may know of a connection.
pub(crate) struct ConnShared {
    id: HomeId,
    reactor: ReactorHandle,
    token: OnceLock<Token>,
    /// Number of the reactor's thread.
    pub(crate) tid: AtomicI32,
    inbox: SpinLock<Vec<ConnMsg>>,
    closing: AtomicBool,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl std::fmt::Debug for ConnShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnShared")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl ConnShared {
    pub(crate) fn new(
        id: u64,
        reactor: ReactorHandle,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Self {
        Self {
            id: HomeId(id),
            reactor,
            token: OnceLock::new(),
            tid: AtomicI32::new(0),
            inbox: SpinLock::new(Vec::new()),
            closing: AtomicBool::new(false),
            peer,
            local,
        }
    }

    #[inline]
    pub(crate) fn home_id(&self) -> HomeId {
        self.id
    }

    /// Whether the connection has begun to close.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Sends a message. Messages arrive in order; many cost one wake-up. Context: any.
    pub(crate) fn send(&self, msg: ConnMsg) {
        let first = {
            let mut inbox = self.inbox.lock();
            inbox.push(msg);
            inbox.len() == 1
        };
        if first && let Some(token) = self.token.get() {
            self.reactor.wake(*token);
        }
    }
}

impl CmdHome for ConnShared {
    fn id(&self) -> HomeId {
        self.id
    }

    fn post(&self, cmd: Box<Cmd>) {
        self.send(ConnMsg::Cmd(cmd));
    }

    fn reap(&self, cmd: CmdRef) {
        self.send(ConnMsg::Reap(cmd));
    }

    fn task_mgmt_fn_done(&self, mcmd: Arc<MgmtCmd>) {
        self.send(ConnMsg::TmDone(mcmd));
    }

    fn report_aen(&self, lun: [u8; 8], sense: Vec<u8>) -> bool {
        let open = !self.is_closing();
        if open {
            self.send(ConnMsg::Aen(lun, sense));
        }
        open
    }

    fn close(&self) {
        self.send(ConnMsg::Close(CloseReason::Shutdown));
    }
}

/// Where a connection is in its life.
pub(crate) enum Phase {
    /// Login, or a discovery session.
    Login(Box<Login<Arc<IscsiTarget>>>),
    /// The login is accepted and waits for its session.
    Creating(Box<Login<Arc<IscsiTarget>>>),
    /// Full feature phase.
    Full(Box<Ffp>),
    /// Closed; commands and task management are still to come home.
    Draining(Box<Ffp>),
    /// Closed; the session is being registered or unregistered.
    Leaving,
}

/// A connection.
#[doc(alias = "iscsi_conn")]
pub(crate) struct Conn {
    pub(crate) shared: Arc<ConnShared>,
    driver: Arc<IscsiDriver>,
    pub(crate) sock: Socket,
    pub(crate) rx: RxBuf,
    pub(crate) rx_state: RxState,
    pub(crate) phase: Phase,
    /// Responses of the login phase.
    login_tx: TxQueue,
    close_after_flush: bool,
    half_open: bool,
    pub(crate) sock_ready: SockReady,
    /// The socket is full: how many responses had been sent when [`TIMER_RSP`] was armed.
    tx_blocked: Option<u32>,
    /// [`TIMER_DATA`] is armed.
    data_watched: bool,
    last_rx: Instant,
    /// The ping that is not answered yet, and when it was sent.
    ping: Option<(Ttt, Instant)>,
    ping_count: u32,
    /// Scratch of [`Source::woken`], kept for its capacity.
    msgs: Vec<ConnMsg>,
}

impl Conn {
    /// Takes an accepted socket. Context: the reactor that is to own the connection.
    pub(crate) fn start(
        driver: &Arc<IscsiDriver>,
        cx: &mut Cx<'_>,
        shared: &Arc<ConnShared>,
        sock: Socket,
    ) -> Result {
        sock.set_nodelay(true)?;
        let fd = sock.poll_fd();
        let conn = Self {
            shared: Arc::clone(shared),
            driver: Arc::clone(driver),
            sock,
            rx: RxBuf::new(LOGIN_RX_CHUNK),
            rx_state: RxState::default(),
            phase: Phase::Login(Box::new(Login::new())),
            login_tx: TxQueue::default(),
            close_after_flush: false,
            half_open: true,
            sock_ready: SockReady::default(),
            tx_blocked: None,
            data_watched: false,
            last_rx: cx.now(),
            ping: None,
            ping_count: 0,
            msgs: Vec::new(),
        };
        let token = cx.add(Some(fd), |_| Box::new(conn))?;
        let _ = shared.token.set(token);
        let tid = kshim::kthread::current_id();
        shared.tid.store(tid, Ordering::Relaxed);
        if !shared.inbox.lock().is_empty() {
            // Who sent that could not wake us yet.
            shared.reactor.wake(token);
        }
        driver.register_conn(shared);
        cx.set_timer(token, TIMER_LOGIN, cx.now() + millis(LOGIN_TIMEOUT_MS));
        pr_debug!("Connection of {} accepted", shared.peer);
        Ok(())
    }

    fn leave_half_open(&mut self) {
        if std::mem::take(&mut self.half_open) {
            self.driver.login_over(&self.shared);
        }
    }

    /// Processes one PDU of the login phase or of a discovery session, if it is there. Answers whether it was.
    pub(crate) fn process_login_pdu(
        &mut self,
        cx: &mut Cx<'_>,
    ) -> std::result::Result<bool, CloseReason> {
        let Phase::Login(login) = &mut self.phase else {
            return Ok(false);
        };
        let Some((bhs, rest)) = Bhs::split(self.rx.data()) else {
            return Ok(false);
        };
        let len = login
            .pdu_len(bhs)
            .map_err(|_| CloseReason::Protocol("login PDU too long"))?;
        let Some(body) = rest.get(..len) else {
            return Ok(false);
        };
        let data_len = usize::try_from(bhs.data_len()).unwrap_or(usize::MAX);
        let data = body
            .get(bhs.ahs_len()..)
            .and_then(|d| d.get(..data_len))
            .unwrap_or_default();
        let env = self.driver.env(self.shared.local);
        let outcome = login.receive(&env, bhs, data);
        self.rx.consume(crate::pdu::BHS_LEN.saturating_add(len));
        if login.is_discovery() {
            let at = cx.now() + millis(DISCOVERY_IDLE_TIMEOUT_MS);
            cx.set_timer(cx.token(), TIMER_LOGIN, at);
        }
        self.login_outcome(cx, outcome);
        Ok(true)
    }

    fn login_outcome(&mut self, cx: &mut Cx<'_>, outcome: Outcome<Arc<IscsiTarget>>) {
        if let Some(response) = outcome.response {
            self.queue_login_response(response);
        }
        match outcome.next {
            Next::Continue => {}
            Next::Close => self.close_after_flush = true,
            Next::CreateSession => {
                let old = std::mem::replace(&mut self.phase, Phase::Leaving);
                if let Phase::Login(login) = old {
                    if let Some(result) = login.result() {
                        self.driver.create_session(&self.shared, result);
                    }
                    self.phase = Phase::Creating(login);
                }
            }
            // Only `session_created` answers this; see there.
            Next::FullFeature(_) => pr_err!("Login of {} ends without a session", self.shared.peer),
        }
        let _ = cx;
    }

    fn queue_login_response(&mut self, response: Response) {
        let len = response.data.len();
        let pdu = TxPdu::from_bhs(response.bhs, len);
        if self
            .login_tx
            .push(TxResp::new(pdu, TxData::Bytes(response.data)))
            .is_err()
        {
            self.close_after_flush = true;
        }
    }

    fn session_created(
        &mut self,
        cx: &mut Cx<'_>,
        made: std::result::Result<NewSession, LoginStatus>,
    ) {
        let old = std::mem::replace(&mut self.phase, Phase::Leaving);
        let Phase::Creating(mut login) = old else {
            // Closed while it was being created.
            match made {
                Ok(new) => self
                    .driver
                    .remove_session(&self.shared, &new.target, new.sess),
                Err(_) => self.gone(cx),
            }
            return;
        };
        let result = made.as_ref().map(|new| new.tsih).map_err(|status| *status);
        let Outcome { response, next } = login.session_created(result);
        if let Some(response) = response {
            self.queue_login_response(response);
        }
        match (next, made) {
            (Next::FullFeature(result), Ok(new)) => self.enter_full_feature(cx, new.sess, &result),
            (_, Ok(new)) => {
                // The login cannot refuse a session that it asked for; if it does, the connection goes with it.
                self.shutdown();
                self.driver
                    .remove_session(&self.shared, &new.target, new.sess);
            }
            (_, Err(_)) => {
                self.phase = Phase::Login(login);
                self.close_after_flush = true;
            }
        }
    }

    fn enter_full_feature(
        &mut self,
        cx: &mut Cx<'_>,
        sess: Arc<Session>,
        login: &LoginResult<Arc<IscsiTarget>>,
    ) {
        self.leave_half_open();
        cx.cancel_timer(cx.token(), TIMER_LOGIN);
        let from_login = FromLogin {
            params: login.params.clone(),
            tx: std::mem::take(&mut self.login_tx),
            exp_cmd_sn: login.exp_cmd_sn,
            stat_sn: login.stat_sn,
        };
        let (shared, driver) = (Arc::clone(&self.shared), Arc::clone(&self.driver));
        let target = Arc::clone(&login.target);
        let ffp = Ffp::new(shared, driver, sess, target, from_login);
        self.phase = Phase::Full(Box::new(ffp));
        self.tx_blocked = None;
        // What the peer has sent ahead moves to a buffer of full size.
        let mut rx = RxBuf::new(RX_CHUNK);
        if !self.rx.is_empty() && rx.extend_from_slice(self.rx.data()).is_err() {
            self.close(cx, CloseReason::NoMemory);
            return;
        }
        self.rx = rx;
        self.last_rx = cx.now();
        self.arm_nop(cx, cx.now());
    }

    /// Receives, processes and answers until nothing is left to do or the round's share is used up.
    fn run(&mut self, cx: &mut Cx<'_>) {
        if let Err(reason) = self.receive(cx) {
            self.close(cx, reason);
        }
    }

    /// Sends what is queued and ends the commands whose responses are out. Errors: why the connection is over.
    pub(crate) fn flush(&mut self, cx: &mut Cx<'_>) -> std::result::Result<(), CloseReason> {
        let (flushed, over) = match &mut self.phase {
            Phase::Full(ffp) => {
                ffp.waits.set_now(cx.now());
                ffp.admit_writes();
                ffp.announce_window();
                let flushed = if ffp.tx.is_empty() {
                    Ok(Flushed::All)
                } else {
                    ffp.tx.flush(&self.sock)
                };
                // Also what was sent before an error.
                ffp.finish_sent();
                if let Some(reason) = ffp.fatal {
                    return Err(reason);
                }
                (flushed, ffp.close_after_flush)
            }
            Phase::Login(_) | Phase::Creating(_) => {
                (self.login_tx.flush(&self.sock), self.close_after_flush)
            }
            Phase::Draining(_) | Phase::Leaving => return Ok(()),
        };
        let flushed = flushed.map_err(CloseReason::Peer)?;
        if over && flushed == Flushed::All {
            return Err(CloseReason::Done);
        }
        if flushed == Flushed::Share {
            cx.reschedule(cx.token());
        }
        self.note_blocked(cx, flushed);
        self.watch_data(cx);
        Ok(())
    }

    /// Watches that the initiator sends the data of each write within RspTimeout.
    #[doc(alias = "req_add_to_write_timeout_list")]
    #[inline]
    fn watch_data(&mut self, cx: &mut Cx<'_>) {
        if self.data_watched {
            return;
        }
        if let Phase::Full(ffp) = &self.phase
            && !ffp.waits.is_empty()
            && let Some(oldest) = ffp.waits.oldest()
        {
            cx.set_timer(cx.token(), TIMER_DATA, oldest + rsp_timeout(ffp));
            self.data_watched = true;
        }
    }

    #[doc(alias = "conn_rsp_timer_fn")]
    fn data_timer(&mut self, cx: &mut Cx<'_>) {
        self.data_watched = false;
        let Phase::Full(ffp) = &self.phase else {
            return;
        };
        let (now, timeout) = (cx.now(), rsp_timeout(ffp));
        if ffp.waits.oldest().is_none_or(|o| o + timeout > now) {
            self.watch_data(cx);
        } else if self.rx_must_wait() {
            // What is not received yet is not the initiator's fault.
            cx.set_timer(cx.token(), TIMER_DATA, now + timeout);
            self.data_watched = true;
        } else {
            self.close(cx, CloseReason::Timeout("write data not sent"));
        }
    }

    /// Watches that the peer takes its responses in time: each within RspTimeout of its predecessor.
    #[inline]
    fn note_blocked(&mut self, cx: &mut Cx<'_>, flushed: Flushed) {
        let Phase::Full(ffp) = &self.phase else {
            return;
        };
        match (flushed, self.tx_blocked) {
            (Flushed::All, None) | (Flushed::Share, _) => {}
            (Flushed::All, Some(_)) => {
                self.tx_blocked = None;
                cx.cancel_timer(cx.token(), TIMER_RSP);
            }
            (Flushed::Blocked, before) => {
                let sent = ffp.tx.responses_sent();
                if before != Some(sent) {
                    let timeout = rsp_timeout(ffp);
                    self.tx_blocked = Some(sent);
                    cx.set_timer(cx.token(), TIMER_RSP, cx.now() + timeout);
                }
            }
        }
    }

    pub(crate) fn note_rx(&mut self, now: Instant) {
        self.last_rx = now;
    }

    /// An answer to a ping has come.
    pub(crate) fn ping_answered(&mut self, ttt: Ttt) {
        if self.ping.is_some_and(|(sent, _)| sent == ttt) {
            self.ping = None;
        }
    }

    fn arm_nop(&mut self, cx: &mut Cx<'_>, from: Instant) {
        if let Phase::Full(ffp) = &self.phase {
            let interval = ffp.target.params().nop_in_interval;
            if interval != 0 {
                let at = from + Delta::from_secs(i64::from(interval));
                cx.set_timer(cx.token(), TIMER_NOP, at);
            }
        }
    }

    /// A command waits for the end of a suspension, and nothing is received meanwhile. It is BUSY where that takes long, or
    /// would take for ever: the suspension may wait for a command whose data is still to be received.
    ///
    /// DIFFERS: SCST waits for 50 ms.
    pub(crate) fn note_parked(&mut self, cx: &mut Cx<'_>) {
        let Phase::Full(ffp) = &self.phase else {
            return;
        };
        if !self.rx_state.is_parked() {
            return;
        }
        let now = cx.now();
        match ffp.sess.suspended_since() {
            Some(since) if !ffp.waits.is_empty() || since + PARKED_MAX <= now => {
                ffp.sess.refuse_waiting();
            }
            // Without one it is over, and the command is on its way.
            since => {
                let at = since.unwrap_or(now) + PARKED_MAX;
                cx.set_timer(cx.token(), TIMER_PARKED, at);
            }
        }
    }

    /// The interval may be another one. A ping that is not answered yet keeps its time.
    fn params_changed(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Full(ffp) = &mut self.phase {
            ffp.set_queued_commands(ffp.target.params().queued_commands);
        }
        if self.ping.is_none() {
            cx.cancel_timer(cx.token(), TIMER_NOP);
            self.arm_nop(cx, cx.now());
        }
    }

    #[doc(alias = "conn_nop_in_delayed_work_fn")]
    fn nop_timer(&mut self, cx: &mut Cx<'_>) {
        let Phase::Full(ffp) = &mut self.phase else {
            return;
        };
        let params = ffp.target.params();
        let timeout = Delta::from_secs(i64::from(params.nop_in_timeout));
        if let Some((_, sent)) = self.ping {
            // DIFFERS: SCST closes. A peer whose bytes still come is there, and one that is not listened to cannot answer.
            if !self.rx_must_wait() && self.last_rx <= sent {
                self.close(cx, CloseReason::Timeout("NOP-In not answered"));
                return;
            }
            self.ping = self.ping.map(|(ttt, _)| (ttt, cx.now()));
            cx.set_timer(cx.token(), TIMER_NOP, cx.now() + timeout);
            return;
        }
        if params.nop_in_interval == 0 {
            return;
        }
        let interval = Delta::from_secs(i64::from(params.nop_in_interval));
        if cx.now() - self.last_rx < interval {
            self.arm_nop(cx, self.last_rx);
            return;
        }
        self.ping_count = self.ping_count.wrapping_add(1);
        let ttt = Ttt(self.ping_count & 0x7fff_ffff);
        self.ping = Some((ttt, cx.now()));
        ffp.nop_in_ping(ttt);
        // A quiet connection keeps no memory that it does not need.
        ffp.shrink();
        cx.set_timer(cx.token(), TIMER_NOP, cx.now() + timeout);
        if let Err(reason) = self.flush(cx) {
            self.close(cx, reason);
        }
    }

    /// Closes the connection: nothing is received or sent any more, and everything under way is brought home.
    #[doc(alias = "mark_conn_closed")]
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>, reason: CloseReason) {
        let old = std::mem::replace(&mut self.phase, Phase::Leaving);
        let peer = self.shared.peer;
        match reason {
            CloseReason::Protocol(what) => pr_warn_ratelimited!("{peer}: {what}, closing"),
            CloseReason::Timeout(what) => pr_warn_ratelimited!("{peer}: {what} in time, closing"),
            _ => pr_debug!("{peer}: closing ({reason:?})"),
        }
        self.leave_half_open();
        self.shared.closing.store(true, Ordering::Release);
        match old {
            Phase::Login(_) => {
                self.shutdown();
                self.gone(cx);
            }
            // The answer about the session comes in any case, and ends the connection then.
            Phase::Creating(_) | Phase::Leaving => self.shutdown(),
            Phase::Full(ffp) => {
                if reason == CloseReason::Reinstated {
                    ffp.sess.retain();
                }
                self.shutdown();
                cx.cancel_timer(cx.token(), TIMER_NOP);
                cx.cancel_timer(cx.token(), TIMER_RSP);
                cx.cancel_timer(cx.token(), TIMER_DATA);
                cx.cancel_timer(cx.token(), TIMER_PARKED);
                self.drain(ffp);
            }
            Phase::Draining(ffp) => {
                if reason == CloseReason::Reinstated {
                    ffp.sess.retain();
                }
                self.phase = Phase::Draining(ffp);
            }
        }
    }

    fn shutdown(&mut self) {
        // An error here says that the peer was faster.
        let _ = self.sock.shutdown(How::Both);
        self.rx.consume(self.rx.len());
        self.rx.release_if_empty();
        self.rx_state = RxState::default();
    }

    /// Ends what is parked here, and has the rest aborted.
    #[doc(alias = "close_conn")]
    fn drain(&mut self, mut ffp: Box<Ffp>) {
        let sess = Arc::clone(&ffp.sess);
        let (ini, tgt) = (sess.initiator_name(), sess.tgt().name());
        pr_info_ratelimited_by!(
            ini,
            "Closing connection of {} (initiator {ini}, target {tgt})",
            self.shared.peer
        );
        ffp.end_all();
        if ffp.live_cmds != 0 {
            ffp.lose_nexus();
        }
        self.phase = Phase::Draining(ffp);
        self.check_drained();
    }

    /// Has the session unregistered once nothing of it is under way.
    fn check_drained(&mut self) {
        let Phase::Draining(ffp) = &mut self.phase else {
            return;
        };
        ffp.end_all();
        if ffp.live_cmds != 0 || ffp.tm.under_way() {
            return;
        }
        let old = std::mem::replace(&mut self.phase, Phase::Leaving);
        if let Phase::Draining(ffp) = old {
            self.driver
                .remove_session(&self.shared, &ffp.target, Arc::clone(&ffp.sess));
        }
    }

    /// Nothing refers to the connection any more.
    fn gone(&mut self, cx: &mut Cx<'_>) {
        cx.remove(cx.token());
    }

    fn message(&mut self, cx: &mut Cx<'_>, msg: ConnMsg) {
        match msg {
            ConnMsg::Cmd(cmd) => match &mut self.phase {
                Phase::Full(ffp) | Phase::Draining(ffp) => ffp.process(cmd),
                _ => pr_err!("Command came home to a connection without session: {cmd:?}"),
            },
            ConnMsg::Reap(cmd) => {
                if let Phase::Full(ffp) | Phase::Draining(ffp) = &mut self.phase {
                    ffp.reap(&cmd);
                }
            }
            ConnMsg::TmDone(mcmd) => match &mut self.phase {
                Phase::Full(ffp) => ffp.task_mgmt_fn_done(&mcmd),
                Phase::Draining(ffp) => ffp.tm.done_unanswered(&mcmd),
                _ => {}
            },
            ConnMsg::Aen(lun, sense) => {
                // Before the login is over the initiator knows nothing that could have changed.
                if let Phase::Full(ffp) = &mut self.phase {
                    ffp.async_message(lun, &sense);
                }
            }
            ConnMsg::Created(made) => self.session_created(cx, made),
            ConnMsg::Params => self.params_changed(cx),
            ConnMsg::RequestLogout => match &mut self.phase {
                Phase::Full(ffp) => ffp.request_logout(LOGOUT_GRACE_MS),
                // A login would lead to nothing, and a discovery session has no work that could be lost.
                Phase::Login(_) => self.close(cx, CloseReason::Shutdown),
                Phase::Creating(_) | Phase::Draining(_) | Phase::Leaving => {}
            },
            ConnMsg::Close(reason) => self.close(cx, reason),
            ConnMsg::Gone => {
                if matches!(self.phase, Phase::Leaving) {
                    self.gone(cx);
                } else {
                    // A login whose session was refused at the last moment still has its answer to send.
                    self.close_after_flush = true;
                }
            }
        }
    }
}

fn rsp_timeout(ffp: &Ffp) -> Delta {
    Delta::from_secs(i64::from(ffp.target.params().rsp_timeout))
}

fn millis(ms: u64) -> Delta {
    Delta::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
}

impl Source for Conn {
    fn ready(&mut self, cx: &mut Cx<'_>, ev: Ready) {
        self.sock_ready.note(ev);
        self.run(cx);
    }

    fn woken(&mut self, cx: &mut Cx<'_>) {
        let mut msgs = std::mem::take(&mut self.msgs);
        std::mem::swap(&mut msgs, &mut *self.shared.inbox.lock());
        for msg in msgs.drain(..) {
            self.message(cx, msg);
        }
        msgs.shrink_to(MSGS_KEPT);
        self.msgs = msgs;
        self.check_drained();
        // A parked command may have come back, and responses are there to be sent.
        self.run(cx);
    }

    fn timer(&mut self, cx: &mut Cx<'_>, slot: u32) {
        match slot {
            TIMER_LOGIN => self.close(cx, CloseReason::Timeout("login not finished")),
            TIMER_NOP => self.nop_timer(cx),
            TIMER_RSP => self.close(cx, CloseReason::Timeout("response not taken")),
            TIMER_DATA => self.data_timer(cx),
            TIMER_PARKED => self.note_parked(cx),
            _ => {}
        }
    }

    fn removed(&mut self, _cx: &mut Cx<'_>) {
        self.leave_half_open();
        let left = std::mem::take(&mut *self.shared.inbox.lock());
        if !left.is_empty() {
            pr_debug!(
                "{}: {} messages came too late",
                self.shared.peer,
                left.len()
            );
        }
        self.driver.conn_gone();
    }
}

impl Conn {
    /// Whether receiving has to wait: for the session, for a parked command, for the socket to drain.
    pub(crate) fn rx_must_wait(&self) -> bool {
        match &self.phase {
            Phase::Login(_) => self.close_after_flush || self.login_tx.is_clogged_for_login(),
            Phase::Full(ffp) => {
                let over = ffp.close_after_flush || ffp.fatal.is_some();
                over || ffp.tx.is_clogged() || self.rx_state.is_parked()
            }
            Phase::Creating(_) | Phase::Draining(_) | Phase::Leaving => true,
        }
    }

    pub(crate) fn error_of_recv(e: kshim::error::Error) -> CloseReason {
        if e == code::ENOMEM {
            CloseReason::NoMemory
        } else {
            CloseReason::Peer(e)
        }
    }
}
