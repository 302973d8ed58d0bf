//! A transport and a device handler whose every step the test decides: [`Ini`] is an initiator with its session, all on
//! the caller's thread; [`Disk`] executes commands as their block address says.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::sync::{CondVar, Mutex};
use kshim::time::{Delta, Instant};
use scst_core::cmd::{
    AllData, Cmd, CmdHome, CmdRef, CmdState, ExecCx, ExecRes, HomeId, RestartStatus, TgtHost,
    ThreadsPoolType, cmd_done,
};
use scst_core::consts::{DataDirection, QueueType, SamStatus};
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_type::{DevHandler, ExecContext};
use scst_core::device::Device;
use scst_core::mgmt::{MgmtCmd, TmFunction, TmParams, TmStatus};
use scst_core::sense::{self, Sense};
use scst_core::session::Session;
use scst_core::template::TgtTemplate;
use scst_core::tgt::Tgt;
use scst_core::tgt_dev::TgtDev;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// No test waits longer for anything: what takes longer is stuck.
pub const STUCK_S: i64 = 20;
pub const BLOCK: u32 = 512;

/// How the disk executes a command: the upper bits of its block address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum How {
    /// At once.
    Inline = 0,
    /// Kept until the test says so ([`Disk::complete`]).
    Held = 1,
    /// Kept, and completed by another thread soon.
    Later = 2,
    /// On a thread of the pool.
    Thread = 3,
    /// Fails at once.
    Fails = 4,
    /// On a thread of the pool, kept there until the test says so.
    HeldOnThread = 5,
    /// Kept, but completed before `exec` returns.
    PendingInline = 6,
}

impl How {
    pub const ALL: [Self; 7] = [
        Self::Inline,
        Self::Held,
        Self::Later,
        Self::Thread,
        Self::Fails,
        Self::HeldOnThread,
        Self::PendingInline,
    ];

    fn of(lba: u64) -> Self {
        Self::ALL[(lba >> 16) as usize % Self::ALL.len()]
    }
}

pub const READ: u8 = 0x28;
pub const WRITE: u8 = 0x2a;
pub const TUR: u8 = 0x00;
pub const MODE_SELECT: u8 = 0x15;
/// Strictly serialised, without data.
pub const FORMAT: u8 = 0x04;

/// A 10-byte CDB of one block that is executed like this.
pub fn rw(op: u8, how: How) -> Vec<u8> {
    let lba = (how as u32) << 16;
    let mut cdb = vec![op, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&[0, 0, 1, 0]);
    cdb
}

/// What the disk saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Began(u64),
    Ended(u64),
}

#[derive(Default)]
struct DiskState {
    executing: BTreeMap<u64, (String, u64)>,
    held: Vec<Box<Cmd>>,
    log: Vec<Seen>,
}

/// The device handler.
pub struct Disk {
    name: String,
    state: Mutex<DiskState>,
    changed: CondVar,
    later: Arc<WorkerQueue<(Box<Cmd>, Weak<Disk>)>>,
    worker: Mutex<Option<Kthread>>,
    pub threads_num: AtomicI32,
    pub shared_pool: AtomicBool,
    pub refuse_attach: AtomicBool,
    pub attached: AtomicUsize,
    pub tm_received: AtomicUsize,
    pub tm_done: AtomicUsize,
    /// Longest delay of [`How::Later`] and [`How::Thread`], in microseconds.
    pub delay_us: AtomicU32,
    rng: AtomicU64,
    dev: Mutex<Weak<Device>>,
}

impl Disk {
    pub fn new(name: &str) -> Arc<Self> {
        let later: Arc<WorkerQueue<(Box<Cmd>, Weak<Disk>)>> = Arc::new(WorkerQueue::new());
        let queue = Arc::clone(&later);
        let worker = kthread::run("later", move |stop| {
            while let Some((cmd, disk)) = queue.wait_next(stop) {
                if let Some(disk) = disk.upgrade() {
                    disk.pause();
                    disk.end(&cmd);
                }
                cmd_done(cmd);
            }
        });
        Arc::new(Self {
            name: name.to_owned(),
            state: Mutex::default(),
            changed: CondVar::new(),
            later,
            worker: Mutex::new(Some(worker.expect("a thread"))),
            threads_num: AtomicI32::new(0),
            shared_pool: AtomicBool::new(false),
            refuse_attach: AtomicBool::new(false),
            attached: AtomicUsize::new(0),
            tm_received: AtomicUsize::new(0),
            tm_done: AtomicUsize::new(0),
            delay_us: AtomicU32::new(0),
            rng: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            dev: Mutex::default(),
        })
    }

    fn pause(&self) {
        let max = u64::from(self.delay_us.load(Ordering::Relaxed));
        if max > 0 {
            let r = self.rng.fetch_add(0x9e37_79b9, Ordering::Relaxed);
            let us = (r.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) % max;
            kshim::time::delay::fsleep(Delta::from_micros(us as i64));
        }
    }

    fn begin(&self, cmd: &Cmd) {
        let mut st = self.state.lock();
        let who = cmd.session().initiator_name().to_owned();
        let twice = st.executing.insert(cmd.tag(), (who, cmd.lun()));
        assert!(twice.is_none(), "command executed twice: {cmd:?}");
        st.log.push(Seen::Began(cmd.tag()));
        self.changed.notify_all();
    }

    fn end(&self, cmd: &Cmd) {
        let mut st = self.state.lock();
        assert!(
            st.executing.remove(&cmd.tag()).is_some(),
            "ends twice: {cmd:?}"
        );
        st.log.push(Seen::Ended(cmd.tag()));
        self.changed.notify_all();
    }

    /// Tags of the commands in the handler now.
    pub fn executing(&self) -> BTreeSet<u64> {
        self.state.lock().executing.keys().copied().collect()
    }

    pub fn executing_of(&self, initiator: &str, lun: u64, before: u64) -> Vec<u64> {
        let st = self.state.lock();
        let of = |(tag, (ini, l)): (&u64, &(String, u64))| {
            (ini == initiator && *l == lun && *tag < before).then_some(*tag)
        };
        st.executing.iter().filter_map(of).collect()
    }

    pub fn log(&self) -> Vec<Seen> {
        self.state.lock().log.clone()
    }

    /// Tags in the order in which execution began.
    pub fn began(&self) -> Vec<u64> {
        let began = |s: &Seen| match s {
            Seen::Began(tag) => Some(*tag),
            Seen::Ended(_) => None,
        };
        self.state.lock().log.iter().filter_map(began).collect()
    }

    /// Waits until the handler has begun with a command.
    pub fn wait_began(&self, tag: u64) {
        let end = Instant::now() + Delta::from_secs(STUCK_S);
        let mut st = self.state.lock();
        while !st.log.contains(&Seen::Began(tag)) {
            assert!(Instant::now() < end, "command {tag} is not executed");
            self.changed.wait_timeout(&mut st, Delta::from_millis(100));
        }
    }

    /// Completes the kept command.
    pub fn complete(&self, tag: u64) {
        let cmd = {
            let mut st = self.state.lock();
            let at = st.held.iter().position(|c| c.tag() == tag);
            let Some(at) = at else {
                // On a thread: it waits for this.
                st.executing.get(&tag).expect("the command is held");
                st.executing.remove(&tag);
                self.changed.notify_all();
                return;
            };
            st.held.swap_remove(at)
        };
        self.end(&cmd);
        cmd_done(cmd);
    }

    /// Completes every kept command.
    pub fn complete_all(&self) {
        loop {
            let tags: Vec<u64> = self.state.lock().held.iter().map(|c| c.tag()).collect();
            if tags.is_empty() {
                break;
            }
            for t in tags {
                self.complete(t);
            }
        }
        let mut st = self.state.lock();
        st.executing.clear();
        self.changed.notify_all();
    }

    fn wait_on_thread(&self, tag: u64) {
        let end = Instant::now() + Delta::from_secs(STUCK_S);
        let mut st = self.state.lock();
        while st.executing.contains_key(&tag) {
            assert!(Instant::now() < end, "nobody completes {tag}");
            self.changed.wait_timeout(&mut st, Delta::from_millis(100));
        }
        st.log.push(Seen::Ended(tag));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(w) = self.worker.lock().take() {
            w.stop();
        }
    }
}

/// The handler of the core; the disk needs to know itself.
pub struct DiskHandler(pub Arc<Disk>);

impl DevHandler for DiskHandler {
    fn name(&self) -> &'static str {
        "mock_disk"
    }
    fn type_code(&self) -> u8 {
        0
    }
    fn block_shift(&self) -> u8 {
        9
    }
    fn threads_num(&self) -> i32 {
        self.0.threads_num.load(Ordering::Relaxed)
    }
    fn threads_pool_type(&self) -> ThreadsPoolType {
        if self.0.shared_pool.load(Ordering::Relaxed) {
            ThreadsPoolType::Shared
        } else {
            ThreadsPoolType::PerInitiator
        }
    }
    fn attach(&self, dev: &Arc<Device>) -> kshim::error::Result {
        *self.0.dev.lock() = Arc::downgrade(dev);
        Ok(())
    }
    fn attach_tgt(&self, _tgt_dev: &TgtDev) -> kshim::error::Result {
        if self.0.refuse_attach.load(Ordering::Relaxed) {
            return Err(kshim::error::code::EIO);
        }
        self.0.attached.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn detach_tgt(&self, _tgt_dev: &TgtDev) {
        self.0.attached.fetch_sub(1, Ordering::Relaxed);
    }
    fn parse(&self, cmd: &mut Cmd) {
        if cmd.info().is_none() {
            cmd.set_sense(sense::INVALID_OPCODE);
        }
    }
    fn task_mgmt_fn_received(&self, _mcmd: &MgmtCmd, _tgt_dev: &TgtDev) {
        self.0.tm_received.fetch_add(1, Ordering::Relaxed);
    }
    fn task_mgmt_fn_done(&self, _mcmd: &MgmtCmd, _tgt_dev: &TgtDev) {
        self.0.tm_done.fetch_add(1, Ordering::Relaxed);
    }
    fn exec(&self, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        let disk = &self.0;
        let how = if matches!(cmd.cdb()[0], READ | WRITE) {
            How::of(cmd.lba())
        } else if cmd.cdb()[0] == TUR {
            How::ALL[usize::from(cmd.cdb()[1] >> 5) % How::ALL.len()]
        } else {
            How::Inline
        };
        let on_thread = matches!(how, How::Thread | How::HeldOnThread);
        if on_thread && cx == ExecContext::Atomic {
            return ExecRes::NeedThread(cmd);
        }
        disk.begin(&cmd);
        if cmd.data_direction().has_read() {
            let len = cmd.sg().len();
            cmd.sg_mut().fill(0, len, 0x5a).expect("own pages");
        }
        match how {
            How::Held => {
                disk.state.lock().held.push(cmd);
                ExecRes::Pending
            }
            How::Later => {
                let weak = Arc::downgrade(disk);
                disk.later.push((cmd, weak));
                ExecRes::Pending
            }
            How::PendingInline => {
                disk.end(&cmd);
                cmd_done(cmd);
                ExecRes::Pending
            }
            How::HeldOnThread => {
                disk.wait_on_thread(cmd.tag());
                ExecRes::Completed(cmd)
            }
            How::Fails => {
                cmd.set_sense(sense::READ_ERROR);
                disk.end(&cmd);
                ExecRes::Completed(cmd)
            }
            How::Thread => {
                disk.pause();
                disk.end(&cmd);
                ExecRes::Completed(cmd)
            }
            How::Inline => {
                disk.end(&cmd);
                ExecRes::Completed(cmd)
            }
        }
    }
}

pub struct Template;

impl TgtTemplate for Template {
    fn name(&self) -> &'static str {
        "mock"
    }
    fn scsi_transport_version(&self) -> u16 {
        0x0960
    }
    fn close_session(&self, _sess: &Arc<Session>) {}
}

enum Msg {
    Cmd(Box<Cmd>),
    Reap(CmdRef),
    Tm(Arc<MgmtCmd>),
}

type TmHook = Box<dyn Fn(&MgmtCmd) + Send + Sync>;

/// The home: an inbox.
pub struct Home {
    id: HomeId,
    inbox: Mutex<VecDeque<Msg>>,
    wake: CondVar,
    /// Called on the TM thread when a request is complete, before anybody hears of it.
    pub tm_hook: Mutex<Option<TmHook>>,
}

impl Home {
    fn send(&self, m: Msg) {
        self.inbox.lock().push_back(m);
        self.wake.notify_one();
    }
}

impl CmdHome for Home {
    fn id(&self) -> HomeId {
        self.id
    }
    fn post(&self, cmd: Box<Cmd>) {
        self.send(Msg::Cmd(cmd));
    }
    fn reap(&self, cmd: CmdRef) {
        self.send(Msg::Reap(cmd));
    }
    fn task_mgmt_fn_done(&self, mcmd: Arc<MgmtCmd>) {
        if let Some(hook) = &*self.tm_hook.lock() {
            hook(&mcmd);
        }
        self.send(Msg::Tm(mcmd));
    }
    fn close(&self) {}
}

/// What the initiator gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: SamStatus,
    pub sense: Vec<u8>,
    pub resid: i64,
    pub data: Vec<u8>,
}

impl Answer {
    pub fn is_good(&self) -> bool {
        self.status == SamStatus::Good
    }
    pub fn sense(&self) -> Option<Sense> {
        sense::parse(&self.sense)
    }
}

/// Where the transport keeps commands until the test says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    /// Commands with data-out wait for their data.
    pub data: bool,
    /// The core asks for the data (`rdy_to_xfer`) instead of the transport having it.
    pub fetch: bool,
    /// Responses are not sent.
    pub xmit: bool,
    /// Responses are not sent, but fail.
    pub xmit_fails: bool,
}

#[derive(Default)]
struct Host {
    hold: Hold,
    todo: VecDeque<Todo>,
    /// Commands that wait for data, by tag; the flag: asked for by the core.
    waiting: HashMap<u64, (Box<Cmd>, bool)>,
    sending: Vec<Box<Cmd>>,
    answers: BTreeMap<u64, Answer>,
    live: BTreeSet<u64>,
    ended: BTreeSet<u64>,
    cache: Vec<Box<Cmd>>,
}

enum Todo {
    Restart(Box<Cmd>),
    RxData(Box<Cmd>),
    Sent(Box<Cmd>),
}

impl TgtHost for Host {
    fn preprocessing_done(&mut self, cmd: Box<Cmd>) {
        if cmd.data_direction().has_write() && self.hold.data {
            self.waiting.insert(cmd.tag(), (cmd, false));
        } else {
            self.todo.push_back(Todo::Restart(cmd));
        }
    }
    fn rdy_to_xfer(&mut self, cmd: Box<Cmd>) {
        if self.hold.data {
            self.waiting.insert(cmd.tag(), (cmd, true));
        } else {
            self.todo.push_back(Todo::RxData(cmd));
        }
    }
    fn xmit_response(&mut self, cmd: Box<Cmd>) {
        assert!(!cmd.is_no_resp(), "answered without nexus: {cmd:?}");
        let mut data = vec![0; cmd.resp_data_len() as usize];
        cmd.sg()
            .copy_to_slice(0, &mut data)
            .expect("the buffer holds the response");
        let answer = Answer {
            status: cmd.status(),
            sense: cmd.sense().to_vec(),
            resid: cmd.resid().unwrap_or(0),
            data,
        };
        if !self.hold.xmit_fails {
            let twice = self.answers.insert(cmd.tag(), answer);
            assert!(twice.is_none(), "answered twice: {cmd:?}");
        }
        if self.hold.xmit {
            self.sending.push(cmd);
        } else {
            self.todo.push_back(Todo::Sent(cmd));
        }
    }
    fn on_free_cmd(&mut self, cmd: Box<Cmd>) {
        assert_eq!(cmd.state(), CmdState::Free);
        assert!(self.live.remove(&cmd.tag()), "ended twice: {cmd:?}");
        self.ended.insert(cmd.tag());
        self.cache.push(cmd);
    }
}

static NEXT_HOME: AtomicU64 = AtomicU64::new(1);

/// A command to send.
#[derive(Clone, Debug)]
pub struct Spec {
    pub lun: u64,
    pub cdb: Vec<u8>,
    pub queue_type: QueueType,
    /// `None`: what the CDB says, for 10-byte reads and writes.
    pub expected: Option<(DataDirection, u32)>,
    pub sn: Option<u32>,
}

impl Spec {
    pub fn new(lun: u64, cdb: &[u8]) -> Self {
        Self {
            lun,
            cdb: cdb.to_vec(),
            queue_type: QueueType::Simple,
            expected: None,
            sn: None,
        }
    }
    pub fn rw(op: u8, how: How) -> Self {
        Self::new(0, &rw(op, how))
    }
    pub fn tur() -> Self {
        Self::new(0, &[0; 6])
    }
    pub fn lun(mut self, lun: u64) -> Self {
        self.lun = lun;
        self
    }
    pub fn queue(mut self, q: QueueType) -> Self {
        self.queue_type = q;
        self
    }
    pub fn expect(mut self, dir: DataDirection, len: u32) -> Self {
        self.expected = Some((dir, len));
        self
    }
    pub fn sn(mut self, sn: u32) -> Self {
        self.sn = Some(sn);
        self
    }
}

/// An initiator with one session.
pub struct Ini {
    pub core: Arc<Core>,
    pub sess: Arc<Session>,
    pub home: Arc<Home>,
    host: Host,
    tags: Arc<AtomicU64>,
    tm_done: Vec<Arc<MgmtCmd>>,
    tm_sent: BTreeMap<u64, u64>,
    /// Checked when a request of this nexus is answered: what it aborted must have ended here.
    pub check_tm: bool,
    luns_of: HashMap<u64, u64>,
    /// LUNs below this are there from the beginning to the end.
    fixed_luns: u64,
}

impl Ini {
    pub fn name(&self) -> &str {
        self.sess.initiator_name()
    }

    pub fn hold(&mut self, hold: Hold) {
        self.host.hold = hold;
    }

    fn make(&mut self, spec: &Spec) -> Box<Cmd> {
        let mut first = [0u8; 16];
        let n = spec.cdb.len().min(16);
        first[..n].copy_from_slice(&spec.cdb[..n]);
        let lun = [(spec.lun >> 8) as u8, spec.lun as u8, 0, 0, 0, 0, 0, 0];
        let mut cmd = self.sess.rx_cmd(self.host.cache.pop(), lun, &first, &[]);
        let tag = self.tags.fetch_add(1, Ordering::SeqCst);
        cmd.set_tag(tag);
        cmd.set_queue_type(spec.queue_type);
        let (dir, len) = spec.expected.unwrap_or(match spec.cdb[0] {
            READ => (DataDirection::Read, u32::from(spec.cdb[8]) * BLOCK),
            WRITE => (DataDirection::Write, u32::from(spec.cdb[8]) * BLOCK),
            _ => (DataDirection::None, 0),
        });
        cmd.set_expected(dir, len, 0);
        if let Some(sn) = spec.sn {
            cmd.set_tgt_sn(sn);
        }
        cmd
    }

    /// Sends a command and runs as far as it goes. Answers its tag.
    pub fn send(&mut self, spec: &Spec) -> u64 {
        let cmd = self.make(spec);
        let tag = cmd.tag();
        self.host.live.insert(tag);
        self.luns_of.insert(tag, spec.lun);
        cmd.init_done(&mut ExecCx::direct(self.home.id, &mut self.host));
        self.run_todo();
        tag
    }

    fn run_todo(&mut self) {
        while let Some(todo) = self.host.todo.pop_front() {
            let fetch = self.host.hold.fetch;
            let fails = self.host.hold.xmit_fails;
            let cx = &mut ExecCx::direct(self.home.id, &mut self.host);
            match todo {
                Todo::Restart(mut cmd) => {
                    let data = if cmd.data_direction().has_write() && fetch {
                        AllData::ToFetch
                    } else {
                        Self::give_data(&mut cmd);
                        AllData::Received
                    };
                    cmd.restart(RestartStatus::Success, data, cx);
                }
                Todo::RxData(mut cmd) => {
                    Self::give_data(&mut cmd);
                    cmd.rx_data(RestartStatus::Success, cx);
                }
                Todo::Sent(mut cmd) => {
                    if fails {
                        cmd.set_delivery_failed();
                    }
                    cmd.tgt_cmd_done(cx);
                }
            }
        }
    }

    fn give_data(cmd: &mut Cmd) {
        if cmd.data_direction().has_write() {
            let len = cmd.write_len() as usize;
            cmd.sg_mut().clear();
            cmd.sg_mut().push_alloc(len).expect("memory");
        }
    }

    /// The data of a command comes.
    pub fn data(&mut self, tag: u64) {
        let (mut cmd, asked) = self.host.waiting.remove(&tag).expect("waits for data");
        let cx = &mut ExecCx::direct(self.home.id, &mut self.host);
        Self::give_data(&mut cmd);
        if asked {
            cmd.rx_data(RestartStatus::Success, cx);
        } else {
            cmd.restart(RestartStatus::Success, AllData::Received, cx);
        }
        self.run_todo();
    }

    pub fn waits_for_data(&self, tag: u64) -> bool {
        self.host.waiting.contains_key(&tag)
    }

    pub fn all_data(&mut self) {
        let tags: Vec<u64> = self.host.waiting.keys().copied().collect();
        for t in tags {
            self.data(t);
        }
    }

    /// The connection breaks: what waits here ends without answer.
    pub fn fail_all_data(&mut self, status: RestartStatus) {
        let all: Vec<_> = self.host.waiting.drain().collect();
        for (_, (cmd, asked)) in all {
            let cx = &mut ExecCx::direct(self.home.id, &mut self.host);
            if asked {
                cmd.rx_data(status, cx);
            } else {
                cmd.restart(status, AllData::Received, cx);
            }
        }
        self.run_todo();
    }

    /// Sends the responses that were held, or fails to.
    pub fn sent(&mut self, delivered: bool) {
        for mut cmd in std::mem::take(&mut self.host.sending) {
            if !delivered {
                cmd.set_delivery_failed();
            }
            cmd.tgt_cmd_done(&mut ExecCx::direct(self.home.id, &mut self.host));
        }
        self.run_todo();
    }

    /// Runs what has come home. Answers whether there was anything.
    pub fn pump(&mut self) -> bool {
        let mut any = false;
        loop {
            let msg = self.home.inbox.lock().pop_front();
            let Some(msg) = msg else { return any };
            any = true;
            match msg {
                Msg::Cmd(cmd) => {
                    cmd.process(&mut ExecCx::direct(self.home.id, &mut self.host));
                }
                Msg::Reap(r) => self.reap(&r),
                Msg::Tm(m) => self.tm_answer(m),
            }
            self.run_todo();
        }
    }

    fn reap(&mut self, r: &CmdRef) {
        let tag = self
            .host
            .waiting
            .iter()
            .find(|(_, (c, _))| r.is(c))
            .map(|(t, _)| *t);
        if let Some((cmd, asked)) = tag.and_then(|t| self.host.waiting.remove(&t)) {
            let cx = &mut ExecCx::direct(self.home.id, &mut self.host);
            if asked {
                cmd.rx_data(RestartStatus::Error, cx);
            } else {
                cmd.restart(RestartStatus::Error, AllData::Received, cx);
            }
        }
    }

    fn tm_answer(&mut self, m: Arc<MgmtCmd>) {
        let p = m.params();
        let before = self.tm_sent.remove(&p.tgt_priv).expect("answered twice");
        if self.check_tm && m.status() == TmStatus::Success {
            let luns = &self.luns_of;
            let concerned = |t: &&u64| match p.function {
                TmFunction::AbortTask => **t == p.tag,
                TmFunction::NexusLossSess => **t < before,
                TmFunction::TargetReset => **t < before && luns[*t] < self.fixed_luns,
                _ => **t < before && luns.get(*t) == Some(&p.lun),
            };
            let left: Vec<_> = self.host.live.iter().filter(concerned).collect();
            assert!(left.is_empty(), "{:?} answered before {left:?}", p.function);
        }
        self.tm_done.push(m);
    }

    /// Hands in a task management request. Answers its number.
    pub fn tm(&mut self, function: TmFunction, lun: u64, tag: u64) -> u64 {
        self.tm_sn(function, lun, tag, None)
    }

    pub fn tm_sn(&mut self, function: TmFunction, lun: u64, tag: u64, sn: Option<u32>) -> u64 {
        // From the same numbers as commands: what is smaller is older.
        let id = self.tags.fetch_add(1, Ordering::SeqCst);
        self.tm_sent.insert(id, id);
        self.sess.rx_mgmt_fn(TmParams {
            function,
            lun,
            tag,
            cmd_sn: sn,
            tgt_priv: id,
        });
        id
    }

    /// The status of a request, if it is answered.
    pub fn tm_status(&self, id: u64) -> Option<TmStatus> {
        let m = self.tm_done.iter().find(|m| m.params().tgt_priv == id)?;
        Some(m.status())
    }

    /// Runs until that holds.
    pub fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Delta::from_secs(STUCK_S);
        loop {
            self.pump();
            if done(self) {
                return;
            }
            assert!(Instant::now() < end, "stuck: {what}");
            let mut inbox = self.home.inbox.lock();
            if inbox.is_empty() {
                self.home
                    .wake
                    .wait_timeout(&mut inbox, Delta::from_millis(5));
            }
        }
    }

    pub fn wait_tm(&mut self, id: u64) -> TmStatus {
        self.until("task management", |i| i.tm_status(id).is_some());
        self.tm_status(id).expect("just seen")
    }

    pub fn wait_ended(&mut self, tag: u64) -> Option<Answer> {
        self.until(&format!("command {tag}"), |i| i.has_ended(tag));
        self.answer(tag)
    }

    pub fn wait_all(&mut self) {
        self.until("all commands", |i| i.host.live.is_empty());
    }

    pub fn has_ended(&self, tag: u64) -> bool {
        self.host.ended.contains(&tag)
    }

    pub fn live(&self) -> usize {
        self.host.live.len()
    }

    pub fn live_tags(&self) -> Vec<u64> {
        self.host.live.iter().copied().collect()
    }

    pub fn answer(&self, tag: u64) -> Option<Answer> {
        self.host.answers.get(&tag).cloned()
    }

    pub fn answers(&self) -> impl Iterator<Item = (&u64, &Answer)> {
        self.host.answers.iter()
    }

    pub fn lun_of(&self, tag: u64) -> u64 {
        self.luns_of.get(&tag).copied().unwrap_or(0)
    }

    pub fn answered(&self) -> usize {
        self.host.answers.len()
    }

    pub fn tms_pending(&self) -> usize {
        self.tm_sent.len()
    }

    /// Sends and waits for the answer.
    pub fn ask(&mut self, spec: &Spec) -> Answer {
        let tag = self.send(spec);
        self.wait_ended(tag).expect("an answer")
    }

    /// Takes all unit attentions of a LUN.
    pub fn clear_ua(&mut self, lun: u64) -> Vec<Sense> {
        let mut all = Vec::new();
        loop {
            let a = self.ask(&Spec::tur().lun(lun));
            if a.is_good() {
                return all;
            }
            all.push(a.sense().expect("sense"));
            assert!(all.len() < 40, "no end of unit attentions");
        }
    }

    /// Ends the session; nothing may be under way.
    pub fn close(self) {
        assert_eq!((self.live(), self.tms_pending()), (0, 0));
        // The thread that gave a command to the handler may be about to tell the task set.
        let end = Instant::now() + Delta::from_secs(STUCK_S);
        for t in self.sess.tgt_devs() {
            while !t.is_quiescent() {
                assert!(Instant::now() < end, "the task set is not idle: {t:?}");
                kshim::time::delay::msleep(1);
            }
        }
        let Self {
            core, sess, host, ..
        } = self;
        drop(host);
        core.unregister_session(&sess);
    }
}

/// A core with one target and disks as LUNs 0 and on.
pub struct Rig {
    pub core: Arc<Core>,
    pub tgt: Arc<Tgt>,
    pub disks: Vec<Arc<Disk>>,
    pub devs: Vec<Arc<Device>>,
    pub tags: Arc<AtomicU64>,
}

pub fn acg(tgt: &Tgt) -> scst_core::acg::AcgId {
    tgt.find_acg("anybody")
}

impl Rig {
    pub fn new(disks: usize) -> Self {
        let disks = (0..disks).map(|i| Disk::new(&format!("disk{i}"))).collect();
        Self::with(disks)
    }

    pub fn with(disks: Vec<Arc<Disk>>) -> Self {
        let core = Core::new(CoreParams {
            threads: 3,
            ..CoreParams::default()
        });
        let core = core.expect("threads");
        let tgt = core.register_target(Arc::new(Template), "t").expect("new");
        let mut devs = Vec::new();
        for (lun, d) in (0..).zip(&disks) {
            let dev = core
                .register_virtual_device(&d.name, Arc::new(DiskHandler(Arc::clone(d))))
                .expect("new");
            core.add_lun(&tgt, acg(&tgt), &dev, lun, LunParams::default())
                .expect("free");
            devs.push(dev);
        }
        Self {
            core,
            tgt,
            disks,
            devs,
            tags: Arc::new(AtomicU64::new(1)),
        }
    }

    pub fn disk(&self) -> &Arc<Disk> {
        &self.disks[0]
    }

    /// A session with its unit attentions.
    pub fn fresh_ini(&self, name: &str) -> Ini {
        let home = Arc::new(Home {
            id: HomeId(NEXT_HOME.fetch_add(1, Ordering::Relaxed)),
            inbox: Mutex::default(),
            wake: CondVar::new(),
            tm_hook: Mutex::new(None),
        });
        let sess = self
            .core
            .register_session(
                &self.tgt,
                name,
                Arc::clone(&home) as Arc<dyn CmdHome>,
                0,
                sense::RESET_UA,
            )
            .expect("session");
        Ini {
            core: Arc::clone(&self.core),
            sess,
            home,
            host: Host::default(),
            tags: Arc::clone(&self.tags),
            tm_done: Vec::new(),
            tm_sent: BTreeMap::new(),
            check_tm: true,
            luns_of: HashMap::new(),
            fixed_luns: self.disks.len() as u64,
        }
    }

    /// A session whose unit attentions were taken.
    pub fn ini(&self, name: &str) -> Ini {
        let mut ini = self.fresh_ini(name);
        for t in ini.sess.tgt_devs() {
            ini.clear_ua(t.lun);
        }
        ini
    }

    /// Nothing is left of anything: no reference, no count, no thread.
    pub fn teardown(self) {
        let Self {
            core,
            tgt,
            disks,
            devs,
            ..
        } = self;
        drop(core.suspend_activity().expect("no command is left"));
        assert!(tgt.sessions().is_empty(), "sessions are closed first");
        for (dev, disk) in devs.iter().zip(&disks) {
            assert!(disk.executing().is_empty());
            assert!(dev.is_quiescent(), "{dev:?}");
            assert_eq!(disk.attached.load(Ordering::Relaxed), 0);
            let (received, done) = (&disk.tm_received, &disk.tm_done);
            let count = |c: &AtomicUsize| c.load(Ordering::Relaxed);
            assert_eq!(count(received), count(done), "fn_received and fn_done");
            core.unregister_virtual_device(dev.name())
                .expect("registered");
        }
        core.unregister_target(&tgt).expect("idle");
        core.shutdown();
        kshim::sync::rcu::barrier();
        let weak: Vec<Weak<Device>> = devs.iter().map(Arc::downgrade).collect();
        let (weak_core, weak_tgt) = (Arc::downgrade(&core), Arc::downgrade(&tgt));
        drop((core, tgt, devs));
        // The management thread may still hold the core for a moment.
        let end = Instant::now() + Delta::from_secs(STUCK_S);
        while weak_core.strong_count() > 0 && Instant::now() < end {
            kshim::time::delay::msleep(1);
        }
        assert_eq!(weak_core.strong_count(), 0, "the core leaks");
        assert_eq!(weak_tgt.strong_count(), 0, "the target leaks");
        assert!(weak.iter().all(|w| w.strong_count() == 0), "a device leaks");
    }
}

/// A thread whose failed assertions fail the test that joins it.
pub struct Thread(std::thread::JoinHandle<()>);

#[expect(
    clippy::disallowed_methods,
    reason = "a kthread would only log a panic"
)]
pub fn spawn(f: impl FnOnce() + Send + 'static) -> Thread {
    Thread(std::thread::spawn(f))
}

impl Thread {
    pub fn join(self) {
        if let Err(e) = self.0.join() {
            std::panic::resume_unwind(e);
        }
    }
}

/// A small generator of random numbers: the same seed, the same test.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}
