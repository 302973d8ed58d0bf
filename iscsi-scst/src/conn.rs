//! A connection: a source on one reactor for its whole life.
//!
//! It begins in the login phase ([`crate::login`]), asks the management thread for its session, and then is the home of
//! the session's commands ([`crate::ffp`], [`crate::rx`]). Closing it is one procedure whatever the reason: stop
//! receiving, end what is parked here, let task management abort what is elsewhere, wait until every command has come
//! home, then have the session unregistered.
//!
//! C source: `iscsi-scst/kernel/conn.c`, `nthread.c` (`close_conn`), `iscsi-scst/usr/conn.c`

use crate::driver::IscsiDriver;
use crate::ffp::Ffp;
use crate::login::{
    DISCOVERY_IDLE_TIMEOUT_MS, LOGIN_TIMEOUT_MS, Login, LoginResult, Next, Outcome, Response,
};
use crate::pdu::{Bhs, LoginStatus, Tsih, Ttt};
use crate::rx::RxState;
use crate::target::IscsiTarget;
use crate::tx::{Flushed, TxData, TxPdu, TxQueue, TxResp};
use kshim::error::{Result, code};
use kshim::net::{How, RX_CHUNK, RxBuf, Socket};
use kshim::reactor::{Cx, ReactorHandle, Ready, Source, Token};
use kshim::sync::SpinLock;
use kshim::time::{Delta, Instant};
use kshim::{pr_debug, pr_err, pr_info, pr_warn_ratelimited};
use scst_core::cmd::{AllData, Cmd, CmdHome, CmdRef, ExecCx, HomeId, RestartStatus};
use scst_core::mgmt::{MgmtCmd, TmFunction, TmParams};
use scst_core::session::Session;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// Timer: the login must be done, or a discovery session has said nothing.
const TIMER_LOGIN: u32 = 0;
/// Timer: ask whether the initiator is there, or find that it did not answer.
const TIMER_NOP: u32 = 1;
/// Timer: a response has to have been sent.
const TIMER_RSP: u32 = 2;

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
    /// It does not speak iSCSI.
    Protocol(&'static str),
    /// It did not answer or read in time.
    Timeout(&'static str),
    /// The server or the target stops.
    Shutdown,
    /// We are out of memory.
    NoMemory,
}

/// What others send to a connection.
pub(crate) enum ConnMsg {
    /// A command comes home.
    Cmd(Box<Cmd>),
    /// A command was aborted and may be parked here.
    Reap(CmdRef),
    /// A task management request is complete.
    TmDone(Arc<MgmtCmd>),
    /// The session is registered, or not.
    Created(std::result::Result<(Arc<Session>, Tsih), LoginStatus>),
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
    inbox: SpinLock<Vec<ConnMsg>>,
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
    #[inline]
    pub(crate) fn home_id(&self) -> HomeId {
        self.id
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
    /// The socket is full; what was read is not processed before it drains.
    tx_blocked: bool,
    last_rx: Instant,
    /// The ping that is not answered yet.
    ping: Option<Ttt>,
    ping_count: u32,
}

impl Conn {
    /// Takes an accepted socket. Context: the reactor that is to own the connection.
    pub(crate) fn start(
        driver: &Arc<IscsiDriver>,
        cx: &mut Cx<'_>,
        reactor: ReactorHandle,
        sock: Socket,
        peer: SocketAddr,
    ) -> Result {
        sock.set_nodelay(true)?;
        let shared = Arc::new(ConnShared {
            id: HomeId(driver.next_id()),
            reactor,
            token: OnceLock::new(),
            inbox: SpinLock::new(Vec::new()),
            peer,
            local: sock.local_addr()?,
        });
        let fd = sock.poll_fd();
        let conn = Self {
            shared: Arc::clone(&shared),
            driver: Arc::clone(driver),
            sock,
            rx: RxBuf::new(RX_CHUNK),
            rx_state: RxState::default(),
            phase: Phase::Login(Box::new(Login::new())),
            login_tx: TxQueue::default(),
            close_after_flush: false,
            half_open: true,
            tx_blocked: false,
            last_rx: cx.now(),
            ping: None,
            ping_count: 0,
        };
        let token = cx.add(Some(fd), |_| Box::new(conn))?;
        let _ = shared.token.set(token);
        driver.register_conn(&shared);
        cx.set_timer(token, TIMER_LOGIN, cx.now() + millis(LOGIN_TIMEOUT_MS));
        pr_debug!("Connection of {peer} accepted");
        Ok(())
    }

    fn leave_half_open(&mut self) {
        if std::mem::take(&mut self.half_open) {
            self.driver.login_over();
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
        made: std::result::Result<(Arc<Session>, Tsih), LoginStatus>,
    ) {
        let old = std::mem::replace(&mut self.phase, Phase::Leaving);
        let Phase::Creating(mut login) = old else {
            // Closed while it was being created.
            match made {
                Ok((sess, _)) => self.remove_session(sess),
                Err(_) => self.gone(cx),
            }
            return;
        };
        let (sess, result) = match made {
            Ok((sess, tsih)) => (Some(sess), Ok(tsih)),
            Err(status) => (None, Err(status)),
        };
        let outcome = login.session_created(result);
        self.phase = Phase::Login(login);
        let Outcome { response, next } = outcome;
        if let Some(response) = response {
            self.queue_login_response(response);
        }
        match (next, sess) {
            (Next::FullFeature(result), Some(sess)) => self.enter_full_feature(cx, sess, &result),
            (_, sess) => {
                if let Some(sess) = sess {
                    self.remove_session(sess);
                }
                self.close_after_flush = true;
            }
        }
    }

    fn remove_session(&mut self, sess: Arc<Session>) {
        // The target is found by the session: an IscsiTarget of that name exists as long as it has sessions.
        let target = self
            .driver
            .targets()
            .into_iter()
            .find(|t| Arc::ptr_eq(t.tgt(), sess.tgt()));
        if let Some(target) = target {
            self.driver.remove_session(&self.shared, &target, sess);
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
        let tx = std::mem::take(&mut self.login_tx);
        let ffp = Ffp::new(
            Arc::clone(&self.shared),
            sess,
            Arc::clone(&login.target),
            login.params.clone(),
            tx,
            login.exp_cmd_sn,
            login.stat_sn,
        );
        self.phase = Phase::Full(Box::new(ffp));
        self.arm_nop(cx, cx.now());
    }

    /// Receives, processes and answers until nothing is left to do or the round's share is used up.
    fn run(&mut self, cx: &mut Cx<'_>, ev: Ready) {
        if let Err(reason) = self.receive(cx, ev) {
            self.close(cx, reason);
        }
    }

    /// Sends what is queued; ends commands whose response is out. Answers whether the queue is empty.
    pub(crate) fn flush(&mut self, cx: &mut Cx<'_>) -> std::result::Result<Flushed, CloseReason> {
        let tx = match &mut self.phase {
            Phase::Full(ffp) => &mut ffp.tx,
            Phase::Login(_) | Phase::Creating(_) => &mut self.login_tx,
            Phase::Draining(_) | Phase::Leaving => return Ok(Flushed::All),
        };
        if tx.is_empty() {
            return self.flushed(cx, Flushed::All);
        }
        let flushed = tx.flush(&self.sock).map_err(CloseReason::Peer)?;
        if let Phase::Full(ffp) = &mut self.phase {
            ffp.finish_sent();
        }
        self.flushed(cx, flushed)
    }

    fn flushed(
        &mut self,
        cx: &mut Cx<'_>,
        flushed: Flushed,
    ) -> std::result::Result<Flushed, CloseReason> {
        let was_blocked = std::mem::replace(&mut self.tx_blocked, flushed == Flushed::Blocked);
        if let Phase::Full(ffp) = &self.phase {
            if ffp.fatal {
                return Err(CloseReason::NoMemory);
            }
            if self.tx_blocked != was_blocked {
                let token = cx.token();
                if self.tx_blocked {
                    let timeout = i64::from(ffp.target.params().rsp_timeout);
                    cx.set_timer(token, TIMER_RSP, cx.now() + Delta::from_secs(timeout));
                } else {
                    cx.cancel_timer(token, TIMER_RSP);
                }
            }
            if ffp.close_after_flush && flushed == Flushed::All {
                return Err(CloseReason::Done);
            }
        } else if self.close_after_flush && flushed == Flushed::All {
            return Err(CloseReason::Done);
        }
        Ok(flushed)
    }

    pub(crate) fn is_clogged(&self) -> bool {
        matches!(&self.phase, Phase::Full(ffp) if ffp.tx.is_clogged())
    }

    pub(crate) fn note_rx(&mut self, now: Instant) {
        self.last_rx = now;
    }

    /// An answer to a ping has come.
    pub(crate) fn ping_answered(&mut self, ttt: Ttt) {
        if self.ping == Some(ttt) {
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

    #[doc(alias = "conn_nop_in_delayed_work_fn")]
    fn nop_timer(&mut self, cx: &mut Cx<'_>) {
        let Phase::Full(ffp) = &mut self.phase else {
            return;
        };
        let params = ffp.target.params();
        if self.ping.is_some() {
            self.close(cx, CloseReason::Timeout("NOP-In not answered"));
            return;
        }
        let interval = Delta::from_secs(i64::from(params.nop_in_interval));
        if cx.now() - self.last_rx < interval {
            self.arm_nop(cx, self.last_rx);
            return;
        }
        self.ping_count = self.ping_count.wrapping_add(1);
        let ttt = Ttt(self.ping_count & 0x7fff_ffff);
        self.ping = Some(ttt);
        ffp.nop_in_ping(ttt);
        // A quiet connection keeps no memory that it does not need.
        ffp.shrink();
        let at = cx.now() + Delta::from_secs(i64::from(params.nop_in_timeout));
        cx.set_timer(cx.token(), TIMER_NOP, at);
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
        match old {
            Phase::Login(_) => {
                self.shutdown();
                self.gone(cx);
            }
            // The answer about the session comes in any case, and ends the connection then.
            Phase::Creating(_) | Phase::Leaving => self.shutdown(),
            Phase::Full(ffp) => {
                self.shutdown();
                cx.cancel_timer(cx.token(), TIMER_NOP);
                cx.cancel_timer(cx.token(), TIMER_RSP);
                self.drain(cx, ffp);
            }
            Phase::Draining(ffp) => self.phase = Phase::Draining(ffp),
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
    fn drain(&mut self, cx: &mut Cx<'_>, mut ffp: Box<Ffp>) {
        let sess = Arc::clone(&ffp.sess);
        let (ini, tgt) = (sess.initiator_name(), sess.tgt().name());
        pr_info!(
            "Closing connection of {} (initiator {ini}, target {tgt})",
            self.shared.peer
        );
        ffp.pending.clear();
        let home = self.shared.home_id();
        for mut cmd in ffp.tx.take_unsent() {
            cmd.set_delivery_failed();
            cmd.tgt_cmd_done(&mut ExecCx::direct(home, &mut *ffp));
        }
        let (waiting, answers) = ffp.waits.take_all();
        for mut cmd in answers {
            cmd.set_delivery_failed();
            cmd.tgt_cmd_done(&mut ExecCx::direct(home, &mut *ffp));
        }
        for cmd in waiting {
            let cx = &mut ExecCx::direct(home, &mut *ffp);
            cmd.restart(RestartStatus::ErrorFatal, AllData::Received, cx);
        }
        if let Some(crate::ffp::Handed::Preprocessed(cmd)) = ffp.take_handed() {
            let cx = &mut ExecCx::direct(home, &mut *ffp);
            cmd.restart(RestartStatus::ErrorFatal, AllData::Received, cx);
        }
        if ffp.live_cmds != 0 {
            ffp.live_tmfs = ffp.live_tmfs.saturating_add(1);
            sess.rx_mgmt_fn(TmParams {
                function: TmFunction::NexusLossSess,
                lun: 0,
                tag: 0,
                cmd_sn: None,
                tgt_priv: 0,
            });
        }
        self.phase = Phase::Draining(ffp);
        self.check_drained(cx);
    }

    /// Has the session unregistered once nothing of it is under way.
    fn check_drained(&mut self, _cx: &mut Cx<'_>) {
        let Phase::Draining(ffp) = &mut self.phase else {
            return;
        };
        // Responses that were queued after the close.
        let unsent = ffp.tx.take_unsent();
        let home = self.shared.home_id();
        for mut cmd in unsent {
            cmd.set_delivery_failed();
            cmd.tgt_cmd_done(&mut ExecCx::direct(home, &mut **ffp));
        }
        if ffp.live_cmds != 0 || ffp.live_tmfs != 0 {
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
                Phase::Full(ffp) => ffp.process(cmd),
                Phase::Draining(ffp) => {
                    ffp.process(cmd);
                    let home = self.shared.home_id();
                    if let Some(crate::ffp::Handed::Preprocessed(cmd)) = ffp.take_handed() {
                        let cx = &mut ExecCx::direct(home, &mut **ffp);
                        cmd.restart(RestartStatus::ErrorFatal, AllData::Received, cx);
                    }
                }
                _ => pr_err!("Command came home to a connection without session: {cmd:?}"),
            },
            ConnMsg::Reap(cmd) => self.reap(&cmd),
            ConnMsg::TmDone(mcmd) => match &mut self.phase {
                Phase::Full(ffp) => ffp.task_mgmt_fn_done(&mcmd),
                Phase::Draining(ffp) => ffp.live_tmfs = ffp.live_tmfs.saturating_sub(1),
                _ => {}
            },
            ConnMsg::Created(made) => self.session_created(cx, made),
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

    /// Gives up a command that task management aborted, if it waits for data here.
    fn reap(&mut self, cmd: &CmdRef) {
        let (Phase::Full(ffp) | Phase::Draining(ffp)) = &mut self.phase else {
            return;
        };
        if let RxState::Data(data) = &self.rx_state
            && data.is_for(&mut ffp.waits, cmd)
        {
            // Its data is being received this moment; the end of the PDU finds the mark.
            return;
        }
        if let Some(cmd) = ffp.waits.take_aborted(|c| cmd.is(c)) {
            let home = self.shared.home_id();
            let cx = &mut ExecCx::direct(home, &mut **ffp);
            cmd.restart(RestartStatus::Error, AllData::Received, cx);
        }
    }
}

fn millis(ms: u64) -> Delta {
    Delta::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
}

impl Source for Conn {
    fn ready(&mut self, cx: &mut Cx<'_>, ev: Ready) {
        self.run(cx, ev);
    }

    fn woken(&mut self, cx: &mut Cx<'_>) {
        let msgs = std::mem::take(&mut *self.shared.inbox.lock());
        for msg in msgs {
            self.message(cx, msg);
        }
        self.check_drained(cx);
        // A parked command may have come back, and responses are there to be sent.
        self.run(cx, Ready::empty());
    }

    fn timer(&mut self, cx: &mut Cx<'_>, slot: u32) {
        match slot {
            TIMER_LOGIN => self.close(cx, CloseReason::Timeout("login not finished")),
            TIMER_NOP => self.nop_timer(cx),
            TIMER_RSP => self.close(cx, CloseReason::Timeout("response not taken")),
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
            Phase::Login(_) => self.close_after_flush,
            Phase::Full(ffp) => {
                ffp.close_after_flush || ffp.tx.is_clogged() || self.rx_state.is_parked()
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
