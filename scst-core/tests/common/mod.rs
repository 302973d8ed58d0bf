//! A transport in the caller's stack: sends one command at a time through the whole state machine.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use kshim::sync::{CondVar, Mutex};
use scst_core::cmd::{AllData, Cmd, CmdHome, CmdRef, ExecCx, HomeId, RestartStatus, TgtHost};
use scst_core::consts::{DataDirection, QueueType};
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_handlers::vdisk::Vdisk;
use scst_core::mgmt::MgmtCmd;
use scst_core::sense;
use scst_core::session::Session;
use scst_core::template::TgtTemplate;
use scst_core::tgt::Tgt;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// iSCSI's version descriptor.
const ISCSI: u16 = 0x0960;
static NEXT_HOME: AtomicU64 = AtomicU64::new(1);

struct Template;

impl TgtTemplate for Template {
    fn name(&self) -> &'static str {
        "test"
    }
    fn scsi_transport_version(&self) -> u16 {
        ISCSI
    }
    fn initiator_port_transport_id(&self, sess: &Session) -> Option<Vec<u8>> {
        let name = format!("{},i,0x1\0", sess.initiator_name());
        let len = name.len() as u16;
        Some([&[0x45, 0][..], &len.to_be_bytes(), name.as_bytes()].concat())
    }
    fn transport_id_protocol(&self) -> Option<u8> {
        Some(5)
    }
    fn close_session(&self, _sess: &Arc<Session>) {}
}

struct Home {
    id: HomeId,
    posted: Mutex<VecDeque<Box<Cmd>>>,
    wake: CondVar,
}

impl CmdHome for Home {
    fn id(&self) -> HomeId {
        self.id
    }
    fn post(&self, cmd: Box<Cmd>) {
        self.posted.lock().push_back(cmd);
        self.wake.notify_one();
    }
    fn reap(&self, _cmd: CmdRef) {}
    fn task_mgmt_fn_done(&self, _mcmd: Arc<MgmtCmd>) {}
    fn close(&self) {}
}

impl Home {
    fn wait(&self) -> Box<Cmd> {
        let mut posted = self.posted.lock();
        loop {
            if let Some(cmd) = posted.pop_front() {
                return cmd;
            }
            self.wake.wait(&mut posted);
        }
    }
}

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

/// What the initiator gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub sense: Vec<u8>,
    pub data: Vec<u8>,
    /// Positive: underflow; negative: overflow.
    pub resid: i64,
    /// Whether a thread of the device's pool was used.
    pub threaded: bool,
}

impl Answer {
    pub fn sense(&self) -> Option<sense::Sense> {
        sense::parse(&self.sense)
    }
    pub fn is_good(&self) -> bool {
        self.status == 0
    }
}

/// A core with one target and one session.
pub struct Rig {
    core: Arc<Core>,
    tgt: Arc<Tgt>,
    nexus: Option<Nexus>,
    disks: Vec<String>,
}

/// A session that sends one command at a time.
pub struct Nexus {
    core: Arc<Core>,
    home: Arc<Home>,
    sess: Arc<Session>,
    free: Option<Box<Cmd>>,
}

impl Rig {
    /// Maps `disks` to LUN 0 and on, opens a session and clears its unit attentions.
    pub fn new(disks: &[(Arc<Vdisk>, bool)]) -> Self {
        Self::new_with(CoreParams::default(), disks)
    }

    /// The same, with another core.
    pub fn new_with(params: CoreParams, disks: &[(Arc<Vdisk>, bool)]) -> Self {
        let mut rig = Self::open_with(params, disks);
        for lun in 0..rig.disks.len() as u64 {
            while !rig.tur(lun).is_good() {}
        }
        rig
    }

    /// The same, with the unit attentions still there.
    pub fn open(disks: &[(Arc<Vdisk>, bool)]) -> Self {
        Self::open_with(CoreParams::default(), disks)
    }

    /// The same, with another core.
    pub fn open_with(params: CoreParams, disks: &[(Arc<Vdisk>, bool)]) -> Self {
        let core = Core::new(params).expect("threads");
        let tgt = core
            .register_target(Arc::new(Template), "iqn.test")
            .expect("first");
        core.enable_target(&tgt, true).expect("enabled");
        let acg = tgt.find_acg("iqn.initiator");
        let mut names = Vec::new();
        for (lun, (disk, read_only)) in (0u64..).zip(disks) {
            let dev = core
                .register_virtual_device(disk.name(), disk.clone())
                .expect("new name");
            core.add_lun(
                &tgt,
                acg,
                &dev,
                lun,
                LunParams {
                    read_only: *read_only,
                },
            )
            .expect("free");
            names.push(disk.name().to_owned());
        }
        let nexus = Some(Nexus::new(&core, &tgt, "iqn.initiator"));
        Self {
            core,
            tgt,
            nexus,
            disks: names,
        }
    }

    /// One more session, of which unit attentions are cleared. It has to go before the rig.
    pub fn another(&self, initiator: &str) -> Nexus {
        self.another_with(initiator, self.disks.len() as u64)
    }

    /// The same, of which this many LUNs are known.
    pub fn another_with(&self, initiator: &str, luns: u64) -> Nexus {
        let mut nexus = Nexus::new(&self.core, &self.tgt, initiator);
        for lun in 0..luns {
            while !nexus.send(lun, &[0; 6], None, &[]).is_good() {}
        }
        nexus
    }

    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub fn tgt(&self) -> &Arc<Tgt> {
        &self.tgt
    }

    pub fn tur(&mut self, lun: u64) -> Answer {
        self.send(lun, &[0; 6], None, &[])
    }

    /// A command that reads `len` bytes.
    pub fn read(&mut self, lun: u64, cdb: &[u8], len: usize) -> Answer {
        self.send(lun, cdb, Some(len), &[])
    }

    /// A command with data-out, or with none.
    pub fn write(&mut self, lun: u64, cdb: &[u8], out: &[u8]) -> Answer {
        self.send(lun, cdb, None, out)
    }

    /// Sends a command and waits for its answer.
    pub fn send(&mut self, lun: u64, cdb: &[u8], expect_in: Option<usize>, out: &[u8]) -> Answer {
        let nexus = self.nexus.as_mut().expect("open");
        nexus.send(lun, cdb, expect_in, out)
    }
}

impl Nexus {
    fn new(core: &Arc<Core>, tgt: &Arc<Tgt>, initiator: &str) -> Self {
        let home = Arc::new(Home {
            id: HomeId(NEXT_HOME.fetch_add(1, Ordering::Relaxed)),
            posted: Mutex::default(),
            wake: CondVar::new(),
        });
        let sess = core
            .register_session(tgt, initiator, home.clone(), 0, sense::RESET_UA)
            .expect("session");
        Self {
            core: Arc::clone(core),
            home,
            sess,
            free: None,
        }
    }

    /// Sends a command and waits for its answer.
    pub fn send(&mut self, lun: u64, cdb: &[u8], expect_in: Option<usize>, out: &[u8]) -> Answer {
        let sess = &self.sess;
        let home = self.home.id;
        let mut first = [0u8; 16];
        let n = cdb.len().min(16);
        first[..n].copy_from_slice(&cdb[..n]);
        let lun_bytes = [0, lun as u8, 0, 0, 0, 0, 0, 0];
        let mut cmd = sess.rx_cmd(
            self.free.take(),
            lun_bytes,
            &first,
            cdb.get(16..).unwrap_or(&[]),
        );
        cmd.set_tag(1);
        cmd.set_queue_type(QueueType::Simple);
        match expect_in {
            Some(len) => cmd.set_expected(DataDirection::Read, len as u32, 0),
            None if out.is_empty() => cmd.set_expected(DataDirection::None, 0, 0),
            None => cmd.set_expected(DataDirection::Write, out.len() as u32, 0),
        }
        let mut host = Host::default();
        cmd.init_done(&mut ExecCx::direct(home, &mut host));
        let mut threaded = false;
        loop {
            match host.step.take() {
                None => {
                    threaded = true;
                    let cmd = self.home.wait();
                    cmd.process(&mut ExecCx::direct(home, &mut host));
                }
                Some(Step::Preprocessed(mut cmd)) => {
                    if cmd.data_direction().has_write() {
                        let n = (cmd.write_len() as usize).min(out.len());
                        cmd.sg_mut().clear();
                        cmd.sg_mut().push_alloc(n).expect("memory");
                        cmd.sg_mut().copy_from_slice(0, &out[..n]).expect("fits");
                    }
                    let mut cx = ExecCx::direct(home, &mut host);
                    cmd.restart(RestartStatus::Success, AllData::Received, &mut cx);
                }
                Some(Step::Fetch(cmd)) => {
                    cmd.rx_data(RestartStatus::Success, &mut ExecCx::direct(home, &mut host));
                }
                Some(Step::Respond(cmd)) => {
                    let mut answer = Answer {
                        status: cmd.status() as u8,
                        sense: cmd.sense().to_vec(),
                        data: vec![0; cmd.resp_data_len() as usize],
                        resid: cmd.resid().unwrap_or(0),
                        threaded,
                    };
                    cmd.sg()
                        .copy_to_slice(0, &mut answer.data)
                        .expect("buffer holds the response");
                    cmd.tgt_cmd_done(&mut ExecCx::direct(home, &mut host));
                    self.free = host.free.take();
                    return answer;
                }
            }
        }
    }
}

impl Drop for Nexus {
    fn drop(&mut self) {
        self.free = None;
        self.core.unregister_session(&self.sess);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.nexus = None;
        for name in &self.disks {
            self.core
                .unregister_virtual_device(name)
                .expect("registered");
        }
        let _ = self.core.unregister_target(&self.tgt);
        self.core.shutdown();
    }
}

/// Does something on another thread, when commands have probably begun to wait for it.
pub fn in_a_while(f: impl FnOnce() + Send + 'static) -> kshim::kthread::Kthread {
    kshim::kthread::run("later", move |_| {
        kshim::time::delay::msleep(50);
        f();
    })
    .expect("a thread")
}

/// Bytes as recorded.
pub fn hex(s: &str) -> Vec<u8> {
    (0..s.len() / 2)
        .map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}
