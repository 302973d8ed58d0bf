//! A session, and a command from its beginning to its end on the caller's thread.

use crate::cmd::{AllData, Cmd, CmdHome, CmdRef, ExecCx, HomeId, RestartStatus, TgtHost};
use crate::consts::{DataDirection, SamStatus};
use crate::core::{ConfigError, Core};
use crate::lun::{AddrMethod, Lun};
use crate::mgmt::{MgmtCmd, TmFunction, TmParams};
use crate::sense;
use crate::session::Session;
use crate::tgt::Tgt;
use kshim::error::{Result, code};
use kshim::sync::{Completion, CondVar, Mutex, SpinLock};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Identities of homes, of which those of reactors have others.
static NEXT_HOME: AtomicU64 = AtomicU64::new(1 << 48);

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAnswer {
    /// Status.
    pub status: SamStatus,
    /// Sense data; empty without.
    pub sense: Vec<u8>,
    /// Data-in.
    pub data: Vec<u8>,
    /// Residual: positive for underflow, negative for overflow.
    pub resid: i64,
}

impl LocalAnswer {
    /// Whether the status is GOOD.
    pub fn is_good(&self) -> bool {
        self.status == SamStatus::Good
    }
}

/// Where commands come back to that were elsewhere.
struct Home {
    id: HomeId,
    posted: Mutex<VecDeque<Box<Cmd>>>,
    wake: CondVar,
    /// Task management, which ends the session, is through.
    tm_over: Completion,
    /// The session, to end it.
    owner: SpinLock<Weak<LocalSession>>,
}

impl Home {
    /// Waits for the command that is elsewhere.
    fn wait_cmd(&self) -> Box<Cmd> {
        let mut posted = self.posted.lock();
        loop {
            match posted.pop_front() {
                Some(cmd) => return cmd,
                None => self.wake.wait(&mut posted),
            }
        }
    }
}

impl CmdHome for Home {
    fn id(&self) -> HomeId {
        self.id
    }

    fn post(&self, cmd: Box<Cmd>) {
        self.posted.lock().push_back(cmd);
        self.wake.notify_all();
    }

    fn reap(&self, _cmd: CmdRef) {}

    fn task_mgmt_fn_done(&self, _mcmd: Arc<MgmtCmd>) {
        self.tm_over.complete_all();
    }

    fn close(&self) {
        let owner = self.owner.lock().upgrade();
        if let Some(owner) = owner
            && let Some(core) = owner.core.upgrade()
        {
            core.post_mgmt(move |_| owner.end());
        }
    }
}

/// What the state machine wants next.
enum Step {
    Preprocessed(Box<Cmd>),
    Fetch(Box<Cmd>),
    Respond(Box<Cmd>),
}

#[derive(Default)]
struct Host {
    step: Option<Step>,
    free: Option<Box<Cmd>>,
}

impl TgtHost for Host {
    fn preprocessing_done(&mut self, cmd: Box<Cmd>) {
        self.step = Some(Step::Preprocessed(cmd));
    }

    fn rdy_to_xfer(&mut self, cmd: Box<Cmd>) {
        self.step = Some(Step::Fetch(cmd));
    }

    fn xmit_response(&mut self, cmd: Box<Cmd>) {
        self.step = Some(Step::Respond(cmd));
    }

    fn on_free_cmd(&mut self, cmd: Box<Cmd>) {
        self.free = Some(cmd);
    }
}

/// What is there as long as the session is.
struct Turn {
    sess: Arc<Session>,
    free: Option<Box<Cmd>>,
    last_tag: u64,
}

/// A session of an initiator in this process.
#[doc(alias = "scst_local_sess")]
pub struct LocalSession {
    core: Weak<Core>,
    initiator_name: String,
    home: Arc<Home>,
    /// The session for task management, while it is there.
    sess: SpinLock<Weak<Session>>,
    /// One command at a time; `None` when the session has ended.
    turn: Mutex<Option<Turn>>,
}

impl std::fmt::Debug for LocalSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalSession")
            .field("initiator", &self.initiator_name)
            .finish_non_exhaustive()
    }
}

impl LocalSession {
    pub(super) fn new(
        core: &Arc<Core>,
        tgt: &Arc<Tgt>,
        initiator: &str,
        number: u64,
    ) -> Result<Arc<Self>, ConfigError> {
        let home = Arc::new(Home {
            id: HomeId(NEXT_HOME.fetch_add(1, Ordering::Relaxed)),
            posted: Mutex::new(VecDeque::new()),
            wake: CondVar::new(),
            tm_over: Completion::new(),
            owner: SpinLock::new(Weak::new()),
        });
        let as_home: Arc<dyn CmdHome> = Arc::clone(&home) as _;
        let sess = core.register_session(tgt, initiator, as_home, number, sense::RESET_UA)?;
        let me = Arc::new(Self {
            core: Arc::downgrade(core),
            initiator_name: initiator.to_owned(),
            home,
            sess: SpinLock::new(Arc::downgrade(&sess)),
            turn: Mutex::new(Some(Turn {
                sess,
                free: None,
                last_tag: 0,
            })),
        });
        *me.home.owner.lock() = Arc::downgrade(&me);
        Ok(me)
    }

    /// The initiator's name.
    pub fn initiator_name(&self) -> &str {
        &self.initiator_name
    }

    /// Whether the session has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.sess.lock().strong_count() == 0
    }

    /// Sends a command with data-out `out`, or that reads up to `in_len` bytes, and waits for its end. One at a time; others
    /// wait for their turn. Errors: `ENODEV` (the session has ended), `ECANCELED` (it ended meanwhile: the command was
    /// aborted), `EINVAL` (no such LUN can be), `ENOMEM`. Context: may sleep.
    pub fn exec(&self, lun: u64, cdb: &[u8], out: &[u8], in_len: u32) -> Result<LocalAnswer> {
        let lun = Lun::new(lun).ok_or(code::EINVAL)?;
        let mut slot = self.turn.lock();
        let turn = slot.as_mut().ok_or(code::ENODEV)?;
        turn.last_tag = turn.last_tag.wrapping_add(1);
        let mut first = [0; 16];
        for (to, from) in first.iter_mut().zip(cdb) {
            *to = *from;
        }
        let extended = cdb.get(16..).unwrap_or_default();
        let lun = lun.pack(AddrMethod::Peripheral);
        let mut cmd = turn.sess.rx_cmd(turn.free.take(), lun, &first, extended);
        cmd.set_tag(turn.last_tag);
        let out_len = u32::try_from(out.len()).map_err(|_| code::EINVAL)?;
        match (out_len, in_len) {
            (0, 0) => cmd.set_expected(DataDirection::None, 0, 0),
            (0, len) => cmd.set_expected(DataDirection::Read, len, 0),
            (len, _) => cmd.set_expected(DataDirection::Write, len, 0),
        }
        let mut host = Host::default();
        cmd.init_done(&mut ExecCx::direct(self.home.id, &mut host));
        let answer = self.run(&mut host, out);
        turn.free = host.free.take();
        answer
    }

    /// Does what the state machine asks for until the command is finished.
    fn run(&self, host: &mut Host, out: &[u8]) -> Result<LocalAnswer> {
        let home = self.home.id;
        loop {
            match host.step.take() {
                // An aborted command ends without an answer.
                None if host.free.is_some() => return Err(code::ECANCELED),
                None => self
                    .home
                    .wait_cmd()
                    .process(&mut ExecCx::direct(home, host)),
                Some(Step::Preprocessed(mut cmd)) => {
                    let status = provide(&mut cmd, out);
                    cmd.restart(status, AllData::Received, &mut ExecCx::direct(home, host));
                }
                Some(Step::Fetch(cmd)) => {
                    cmd.rx_data(RestartStatus::Success, &mut ExecCx::direct(home, host));
                }
                Some(Step::Respond(cmd)) => {
                    let answer = answer_of(&cmd);
                    cmd.tgt_cmd_done(&mut ExecCx::direct(home, host));
                    return answer;
                }
            }
        }
    }

    /// Ends the session: a command under way is aborted, then it is unregistered. Context: may sleep.
    pub(super) fn end(&self) {
        let sess = self.sess.lock().upgrade();
        let Some(sess) = sess else { return };
        sess.rx_mgmt_fn(TmParams {
            function: TmFunction::NexusLossSess,
            lun: 0,
            tag: 0,
            cmd_sn: None,
            ref_sn: None,
            tgt_priv: 0,
        });
        drop(sess);
        let Some(turn) = self.turn.lock().take() else {
            return;
        };
        *self.sess.lock() = Weak::new();
        self.home.tm_over.wait_for_completion();
        drop(turn.free);
        if let Some(core) = self.core.upgrade() {
            drop(core.unregister_session(&turn.sess));
        }
    }
}

/// Puts the data-out into the command's buffer.
fn provide(cmd: &mut Cmd, out: &[u8]) -> RestartStatus {
    if !cmd.data_direction().has_write() {
        return RestartStatus::Success;
    }
    let len = usize::try_from(cmd.write_len()).unwrap_or(0).min(out.len());
    let Some(data) = out.get(..len) else {
        return RestartStatus::Success;
    };
    let sg = cmd.sg_mut();
    sg.clear();
    let filled = sg.push_alloc(len).is_ok() && sg.copy_from_slice(0, data).is_ok();
    match filled || len == 0 {
        true => RestartStatus::Success,
        false => RestartStatus::Error,
    }
}

fn answer_of(cmd: &Cmd) -> Result<LocalAnswer> {
    let len = usize::try_from(cmd.resp_data_len()).unwrap_or(0);
    let mut data = vec![0; len.min(cmd.sg().len())];
    cmd.sg()
        .copy_to_slice(0, &mut data)
        .map_err(|_| code::EIO)?;
    Ok(LocalAnswer {
        status: cmd.status(),
        sense: cmd.sense().to_vec(),
        data,
        resid: cmd.resid().unwrap_or(0),
    })
}
