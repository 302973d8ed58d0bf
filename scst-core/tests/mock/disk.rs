//! The device handler.

use super::STUCK_S;
use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::sync::{CondVar, Mutex};
use kshim::time::{Delta, Instant};
use scst_core::cmd::{Cmd, ExecRes, ThreadsPoolType, cmd_done};
use scst_core::dev_type::{DevHandler, ExecContext};
use scst_core::device::Device;
use scst_core::mgmt::MgmtCmd;
use scst_core::sense;
use scst_core::tgt_dev::TgtDev;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

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
    /// The handler panics, on a thread of the pool.
    Panics = 7,
}

impl How {
    /// All that end well.
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
        let n = (lba >> 16) as usize;
        Self::ALL.get(n).copied().unwrap_or(Self::Panics)
    }
}

pub const READ: u8 = 0x28;
pub const WRITE: u8 = 0x2a;
/// COMPARE AND WRITE, executed as [`How`] says.
pub const CAW: u8 = 0x89;
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
    pub name: String,
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
    /// An EUI-64 designator made of the name.
    fn device_identification(&self) -> Vec<u8> {
        let mut page = vec![0, 0x83, 0, 12, 1, 2, 0, 8];
        page.extend(self.0.name.bytes().chain(std::iter::repeat(0)).take(8));
        page
    }
    fn task_mgmt_fn_received(&self, _mcmd: &MgmtCmd, _tgt_dev: &TgtDev) {
        self.0.tm_received.fetch_add(1, Ordering::Relaxed);
    }
    fn task_mgmt_fn_done(&self, _mcmd: &MgmtCmd, _tgt_dev: &TgtDev) {
        self.0.tm_done.fetch_add(1, Ordering::Relaxed);
    }
    fn exec(&self, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        let disk = &self.0;
        let how = if matches!(cmd.cdb()[0], READ | WRITE | CAW) {
            How::of(cmd.lba())
        } else if cmd.cdb()[0] == TUR {
            How::ALL[usize::from(cmd.cdb()[1] >> 5) % How::ALL.len()]
        } else {
            How::Inline
        };
        let on_thread = matches!(how, How::Thread | How::HeldOnThread | How::Panics);
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
            How::Panics => {
                disk.end(&cmd);
                panic!("the test wants it");
            }
            How::Inline => {
                disk.end(&cmd);
                ExecRes::Completed(cmd)
            }
        }
    }
}
