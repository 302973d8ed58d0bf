//! A transport and a device handler whose every step the test decides: [`Ini`] is an initiator with its session, all on
//! the caller's thread; [`Disk`] executes commands as their block address says.
#![allow(dead_code, unreachable_pub, unused_imports)] // each test file uses its part
#![allow(clippy::vec_box, reason = "a command travels in its box")]

mod disk;

pub use disk::{CAW, Disk, DiskHandler, FORMAT, How, MODE_SELECT, READ, Seen, TUR, WRITE, rw};

use kshim::sync::{CondVar, Mutex};
use kshim::time::{Delta, Instant};
use scst_core::cmd::{
    AllData, Cmd, CmdHome, CmdRef, CmdState, ExecCx, HomeId, RestartStatus, TgtHost,
};
use scst_core::consts::{DataDirection, QueueType, SamStatus};
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_type::DevHandler;
use scst_core::device::Device;
use scst_core::mgmt::{MgmtCmd, TmFunction, TmParams, TmStatus};
use scst_core::sense::{self, Sense};
use scst_core::session::Session;
use scst_core::template::TgtTemplate;
use scst_core::tgt::Tgt;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// No test waits longer for anything: what takes longer is stuck.
pub const STUCK_S: i64 = 20;
pub const BLOCK: u32 = 512;
/// Long enough to see threads, short enough to wait for their end.
pub const POOL_IDLE_MS: u32 = 300;

pub struct Template;

impl TgtTemplate for Template {
    fn name(&self) -> &'static str {
        "mock"
    }
    fn scsi_transport_version(&self) -> u16 {
        0x0960
    }
    /// As in the recorded conversations: initiator "A" is probe-a with an ISID that ends with 10h.
    fn initiator_port_transport_id(&self, sess: &Session) -> Option<Vec<u8>> {
        let name = sess.initiator_name();
        let isid = name
            .bytes()
            .next()
            .map_or(0, |b| b.wrapping_sub(b'A' - 0x10));
        let name = name.to_lowercase();
        let mut text = format!("iqn.2026-01.org.example:probe-{name},i,0x{isid:x}0000000080\0");
        text.extend(std::iter::repeat_n(
            '\0',
            text.len().next_multiple_of(4) - text.len(),
        ));
        let len = text.len() as u16;
        Some([&[0x45, 0][..], &len.to_be_bytes(), text.as_bytes()].concat())
    }
    fn transport_id_protocol(&self) -> Option<u8> {
        Some(5)
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
    /// Data-out of the commands that get it at once.
    out: Vec<u8>,
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
    /// Instead of `lun`.
    pub raw_lun: Option<[u8; 8]>,
    /// Data-out.
    pub out: Vec<u8>,
}

impl Spec {
    pub fn new(lun: u64, cdb: &[u8]) -> Self {
        Self {
            lun,
            cdb: cdb.to_vec(),
            queue_type: QueueType::Simple,
            expected: None,
            sn: None,
            raw_lun: None,
            out: Vec::new(),
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

    /// From now on numbers its commands itself, as initiators do: another one's may have the same tags.
    pub fn own_tags(mut self) -> Self {
        self.tags = Arc::new(AtomicU64::new(1));
        self
    }

    pub fn hold(&mut self, hold: Hold) {
        self.host.hold = hold;
    }

    fn make(&mut self, spec: &Spec) -> Box<Cmd> {
        let mut first = [0u8; 16];
        let n = spec.cdb.len().min(16);
        first[..n].copy_from_slice(&spec.cdb[..n]);
        let peripheral = [(spec.lun >> 8) as u8, spec.lun as u8, 0, 0, 0, 0, 0, 0];
        let lun = spec.raw_lun.unwrap_or(peripheral);
        let extended = spec.cdb.get(16..).unwrap_or_default();
        let mut cmd = self
            .sess
            .rx_cmd(self.host.cache.pop(), lun, &first, extended);
        let tag = self.tags.fetch_add(1, Ordering::SeqCst);
        cmd.set_tag(tag);
        cmd.set_queue_type(spec.queue_type);
        let (dir, len) = spec.expected.unwrap_or_else(|| match spec.cdb[0] {
            READ => (DataDirection::Read, u32::from(spec.cdb[8]) * BLOCK),
            WRITE => (DataDirection::Write, u32::from(spec.cdb[8]) * BLOCK),
            CAW => (DataDirection::Write, u32::from(spec.cdb[13]) * 2 * BLOCK),
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
        self.host.out.clone_from(&spec.out);
        cmd.init_done(&mut ExecCx::direct(self.home.id, &mut self.host));
        self.run_todo();
        tag
    }

    fn run_todo(&mut self) {
        while let Some(todo) = self.host.todo.pop_front() {
            let fetch = self.host.hold.fetch;
            let fails = self.host.hold.xmit_fails;
            let out = self.host.out.clone();
            let cx = &mut ExecCx::direct(self.home.id, &mut self.host);
            match todo {
                Todo::Restart(mut cmd) => {
                    let data = if cmd.data_direction().has_write() && fetch {
                        AllData::ToFetch
                    } else {
                        Self::give_data(&mut cmd, &out);
                        AllData::Received
                    };
                    cmd.restart(RestartStatus::Success, data, cx);
                }
                Todo::RxData(mut cmd) => {
                    Self::give_data(&mut cmd, &out);
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

    fn give_data(cmd: &mut Cmd, out: &[u8]) {
        if cmd.data_direction().has_write() {
            let len = cmd.write_len() as usize;
            cmd.sg_mut().clear();
            cmd.sg_mut().push_alloc(len).expect("memory");
            let n = len.min(out.len());
            cmd.sg_mut().copy_from_slice(0, &out[..n]).expect("fits");
        }
    }

    /// The data of a command comes.
    pub fn data(&mut self, tag: u64) {
        let (mut cmd, asked) = self.host.waiting.remove(&tag).expect("waits for data");
        let cx = &mut ExecCx::direct(self.home.id, &mut self.host);
        Self::give_data(&mut cmd, &[]);
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
                TmFunction::ClearAca => false,
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
            ref_sn: None,
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

    /// The command is lost: it will not end.
    pub fn forget(&mut self, tag: u64) {
        assert!(self.host.live.remove(&tag));
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
        // The thread that gave a command to the handler may be about to tell the task set.
        let end = Instant::now() + Delta::from_secs(STUCK_S);
        for t in self.sess.tgt_devs() {
            let shared = t.dev.control.tst.load(Ordering::Relaxed) == 0;
            while !(t.is_quiescent() || shared && t.active_commands() == 0) {
                assert!(
                    Instant::now() < end,
                    "the task set is not idle: {t:?}, {} commands",
                    t.active_commands()
                );
                kshim::time::delay::msleep(1);
            }
        }
        self.leave();
    }

    /// Ends the session whatever there may be of it in its task sets, but commands.
    pub fn leave(self) {
        assert_eq!((self.live(), self.tms_pending()), (0, 0));
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
        let handler = |d: &Arc<Disk>| -> (String, Arc<dyn DevHandler>, bool) {
            (d.name.clone(), Arc::new(DiskHandler(Arc::clone(d))), false)
        };
        let mut rig = Self::of(disks.iter().map(handler).collect());
        rig.disks = disks;
        rig
    }

    /// The same with other handlers, some of them read-only.
    pub fn of(handlers: Vec<(String, Arc<dyn DevHandler>, bool)>) -> Self {
        Self::of_dir(handlers, None)
    }

    /// The same with persistent reservations kept in a directory.
    pub fn of_dir(
        handlers: Vec<(String, Arc<dyn DevHandler>, bool)>,
        pr_dir: Option<PathBuf>,
    ) -> Self {
        let core = Core::new(CoreParams {
            threads: 3,
            pr_dir,
            pool_idle_ms: POOL_IDLE_MS,
            ..CoreParams::default()
        });
        let core = core.expect("threads");
        let tgt = core.register_target(Arc::new(Template), "t").expect("new");
        core.enable_target(&tgt, true).expect("enabled");
        let mut devs = Vec::new();
        for (lun, (name, handler, read_only)) in (0..).zip(handlers) {
            let dev = core.register_virtual_device(&name, handler).expect("new");
            core.add_lun(&tgt, acg(&tgt), &dev, lun, LunParams { read_only })
                .expect("free");
            devs.push(dev);
        }
        Self {
            core,
            tgt,
            disks: Vec::new(),
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
            fixed_luns: self.devs.len() as u64,
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
            let end = Instant::now() + Delta::from_secs(STUCK_S);
            while !dev.is_quiescent() {
                assert!(Instant::now() < end, "something is left at {dev:?}");
                kshim::time::delay::msleep(1);
            }
            assert_eq!(disk.attached.load(Ordering::Relaxed), 0);
            let (received, done) = (&disk.tm_received, &disk.tm_done);
            let count = |c: &AtomicUsize| c.load(Ordering::Relaxed);
            assert_eq!(count(received), count(done), "fn_received and fn_done");
        }
        for dev in &devs {
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
