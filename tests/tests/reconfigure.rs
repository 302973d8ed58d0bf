//! Changes of the configuration under load: LUNs are added, replaced and removed, groups and port groups changed, devices
//! resized, blocked, made and removed, targets come and go, while initiators do verified I/O on LUNs that stay. No command of theirs
//! is lost or fails.
//!
//! `SCST_RECONFIG_ROUNDS` changes are made (a small number here, 1000 in `cargo xtask nightly`), picked by `SCST_SEED`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backstores::ram::{RamConfig, RamDisk};
use iscsi_scst::driver::IscsiDriver;
use kshim::kobject::tree::{Tree, TreeOps};
use kshim::reactor::{Reactor, ReactorConfig};
use scst_core::core::{Core, CoreParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::sysfs::ScstTree;
use scst_tests::rng::{Rng, stamped_blocks};
use scst_tests::scsi::{self, status};
use scst_tests::{Command, OpenOptions, Session};

const IQN: &str = "iqn.2026-01.org.example:load";
const ROUNDS: u64 = 60;
/// Commands that a worker has in flight.
const DEPTH: usize = 8;
/// Blocks of one worker on a LUN.
const REGION: u64 = 4096;
/// LUNs that stay: a RAM disk by bios, and a file.
const STEADY_LUNS: [u16; 2] = [0, 1];
/// LUNs that come and go.
const CHURN_LUNS: u64 = 4;
const FIRST_CHURN_LUN: u64 = 10;
/// The longest that one change may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

fn rounds() -> u64 {
    let rounds = std::env::var("SCST_RECONFIG_ROUNDS");
    rounds.map_or(ROUNDS, |n| n.parse().expect("SCST_RECONFIG_ROUNDS"))
}

/// What is managed.
struct Managed {
    core: Arc<Core>,
    tree: Tree,
    nulls: Vec<Arc<Vdisk>>,
    rng: Rng,
}

impl Managed {
    /// Writes to the tree; it must succeed, and in time.
    fn write(&self, path: &str, value: &str) {
        let start = Instant::now();
        self.tree
            .write(path, value.as_bytes())
            .unwrap_or_else(|e| panic!("{path}: {value}: {e}"));
        let took = start.elapsed();
        assert!(took < CHANGE_LIMIT, "{path}: {value} took {took:?}");
    }

    fn of_target(&self, path: &str, value: &str) {
        self.write(&format!("targets/iscsi/{IQN}/{path}"), value);
    }

    fn has(&self, path: &str) -> bool {
        let path = format!("targets/iscsi/{IQN}/{path}");
        self.tree.stat(&path).is_ok()
    }

    fn any_null(&mut self) -> String {
        let n = self.rng.below(self.nulls.len() as u64);
        format!("null{n}")
    }

    fn any_lun(&mut self) -> u64 {
        FIRST_CHURN_LUN + self.rng.below(CHURN_LUNS)
    }

    fn change_lun(&mut self) {
        let (lun, dev) = (self.any_lun(), self.any_null());
        match (self.has(&format!("luns/{lun}")), self.rng.below(4)) {
            (false, _) => self.of_target("luns/mgmt", &format!("add {dev} {lun}")),
            (true, 0) => self.of_target("luns/mgmt", &format!("del {lun}")),
            (true, 1) => self.of_target("luns/mgmt", &format!("replace_no_ua {dev} {lun}")),
            (true, _) => self.of_target("luns/mgmt", &format!("replace {dev} {lun} read_only=1")),
        }
    }

    /// A group with the steady LUNs and another one, where the initiators move to and from.
    fn change_groups(&mut self) {
        let dev = self.any_null();
        for group in ["ga", "gb"] {
            self.of_target("ini_groups/mgmt", &format!("create {group}"));
            let luns = format!("ini_groups/{group}/luns/mgmt");
            self.of_target(&luns, "add steady0 0");
            self.of_target(&luns, "add steady1 1");
            self.of_target(&luns, &format!("add {dev} 12"));
        }
        let mgmt = |group: &str| format!("ini_groups/{group}/initiators/mgmt");
        self.of_target(&mgmt("ga"), "add *probe-1");
        self.of_target(&mgmt("gb"), "add *probe-?");
        self.of_target(&mgmt("ga"), "move *probe-1 gb");
        self.of_target("ini_groups/gb/luns/mgmt", &format!("replace {dev} 13"));
        if self.rng.one_in(2) {
            self.of_target(&mgmt("gb"), "clear");
        } else {
            self.of_target(&mgmt("gb"), "del *probe-1");
            self.of_target(&mgmt("gb"), "del *probe-?");
        }
        self.of_target("ini_groups/ga/luns/mgmt", "clear");
        self.of_target("ini_groups/mgmt", "del ga");
        self.of_target("ini_groups/mgmt", "del gb");
    }

    fn change_port_groups(&mut self) {
        let dev = self.any_null();
        self.write("device_groups/mgmt", "create dg");
        self.write("device_groups/dg/devices/mgmt", &format!("add {dev}"));
        self.write("device_groups/dg/devices/mgmt", "add steady1");
        self.write("device_groups/dg/target_groups/mgmt", "create tg");
        let tg = "device_groups/dg/target_groups/tg";
        self.write(&format!("{tg}/mgmt"), &format!("add {IQN}"));
        self.write(&format!("{tg}/group_id"), "7");
        self.write(&format!("{tg}/state"), "nonoptimized");
        self.write(&format!("{tg}/preferred"), "1");
        self.write("device_groups/dg/devices/mgmt", "del steady1");
        for state in ["standby", "offline", "transitioning", "active"] {
            if self.rng.one_in(2) {
                self.write(&format!("{tg}/state"), state);
            }
        }
        self.write("device_groups/mgmt", "del dg");
    }

    fn resize(&mut self) {
        let n = self.rng.below(self.nulls.len() as u64) as usize;
        let mib = 1 + self.rng.below(64);
        self.nulls[n].resize(mib << 20).expect("a good size");
        let dev = self.core.device(&format!("null{n}")).expect("there");
        dev.capacity_data_changed();
    }

    /// Commands at the device wait; those at the others go on.
    fn block(&mut self) {
        let path = format!("devices/{}/block", self.any_null());
        if self.tree.stat(&path).is_ok() {
            self.write(&path, "1");
            self.change_lun();
            self.write(&path, "0");
        }
    }

    fn device(&mut self) {
        let disk = Vdisk::new("passing", &VdiskParams::new(VdiskKind::Nullio)).expect("null");
        self.core
            .register_virtual_device("passing", disk)
            .expect("a new name");
        self.of_target("luns/mgmt", "add passing 20");
        self.core
            .unregister_virtual_device("passing")
            .expect("in time");
        assert!(!self.has("luns/20"));
    }

    fn target(&mut self) {
        self.write(
            "targets/iscsi/mgmt",
            "add_target iqn.2026-01.org.example:passing QueuedCommands=8",
        );
        let passing = "targets/iscsi/iqn.2026-01.org.example:passing";
        self.write(&format!("{passing}/luns/mgmt"), "add steady0 0");
        self.write(&format!("{passing}/enabled"), "1");
        self.write(
            "targets/iscsi/mgmt",
            "del_target iqn.2026-01.org.example:passing",
        );
    }

    fn attributes(&mut self) {
        let method = ["FLAT", "LUN", "PERIPHERAL"][self.rng.below(3) as usize];
        self.of_target("addr_method", method);
        self.of_target("aen_disabled", "1");
        self.of_target("aen_disabled", "0");
        self.of_target("NopInInterval", "20");
        self.of_target("cpu_mask", "1");
    }

    fn change(&mut self) {
        match self.rng.below(16) {
            0..=6 => self.change_lun(),
            7 | 8 => self.change_groups(),
            9 | 10 => self.change_port_groups(),
            11 => self.resize(),
            12 => self.block(),
            13 => self.device(),
            14 => self.target(),
            _ => self.attributes(),
        }
    }
}

/// The server in this process.
struct Rig {
    core: Arc<Core>,
    driver: Arc<IscsiDriver>,
    tree: Arc<ScstTree>,
    reactors: Vec<Reactor>,
    addr: SocketAddr,
    nulls: Vec<Arc<Vdisk>>,
    _ram: RamDisk,
    _data: tempfile::TempDir,
}

impl Rig {
    fn start() -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let spawn = |n: usize| Reactor::spawn(ReactorConfig::new(format!("reactor{n}")));
        let reactors: Vec<_> = (0..2).map(spawn).collect::<Result<_, _>>()?;
        let core = Core::new(CoreParams::default())?;
        let tree = ScstTree::publish(&core)?;
        let handles = reactors.iter().map(Reactor::handle).collect();
        let driver = IscsiDriver::new(Arc::clone(&core), handles)?;
        driver.publish(&tree)?;
        let ram = RamDisk::create("reconfigure", &RamConfig::new(64 << 20))?;
        let file = data.path().join("steady1.img");
        std::fs::File::create(&file)?.set_len(64 << 20)?;
        let file = file.to_str().expect("a path that is text");
        let block = VdiskParams::parse(VdiskKind::Blockio, &[("filename", ram.path())])?;
        let fileio = VdiskParams::parse(VdiskKind::Fileio, &[("filename", file)])?;
        core.register_virtual_device("steady0", Vdisk::new("steady0", &block)?)?;
        core.register_virtual_device("steady1", Vdisk::new("steady1", &fileio)?)?;
        let mut nulls = Vec::new();
        for n in 0..3 {
            let name = format!("null{n}");
            let disk = Vdisk::new(&name, &VdiskParams::new(VdiskKind::Nullio))?;
            core.register_virtual_device(&name, Arc::clone(&disk) as _)?;
            nulls.push(disk);
        }
        let addr = driver.add_portal("127.0.0.1:0".parse()?)?;
        Ok(Self {
            core,
            driver,
            tree,
            reactors,
            addr,
            nulls,
            _ram: ram,
            _data: data,
        })
    }

    fn stop(self) {
        assert!(self.driver.stop(), "some connections did not end in time");
        for target in self.driver.targets() {
            self.core.unregister_target(target.tgt()).expect("idle");
        }
        let names = ["steady0", "steady1", "null0", "null1", "null2"];
        for name in names {
            self.core.unregister_virtual_device(name).expect("idle");
        }
        self.tree.unpublish();
        self.reactors.into_iter().for_each(Reactor::stop);
        self.core.shutdown();
    }
}

fn open(addr: SocketAddr, n: u32) -> Session {
    let options = OpenOptions::normal(IQN).initiator(n);
    Session::open(addr, &options).unwrap_or_else(|e| panic!("login {n}: {e}"))
}

/// Writes blocks, reads them back and compares, many at a time. Every command must succeed.
fn steady(addr: SocketAddr, n: u32, seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let mut s = open(addr, n);
    for lun in STEADY_LUNS {
        s.clear_ua(lun).expect("TEST UNIT READY");
    }
    let mut rng = Rng::new(seed ^ u64::from(n));
    let first = u64::from(n) * REGION;
    let mut generation = 0;
    while !stop.load(Ordering::Relaxed) {
        generation += 1;
        let mut sent = Vec::new();
        for slot in 0..DEPTH as u64 {
            let lun = STEADY_LUNS[rng.below(2) as usize];
            let blocks = 1 + rng.below(16);
            let lba = first + slot * (REGION / DEPTH as u64) + rng.below(64);
            let data = stamped_blocks(lba, blocks, generation);
            let write = Command::write(lun, scsi::write16(lba, blocks as u32), data.clone());
            let tag = s.submit(&write).expect("a write");
            sent.push((tag, lun, lba, data));
        }
        for (tag, ..) in &sent {
            s.wait_scsi(*tag).expect("an answer").good();
        }
        for (_, lun, lba, data) in &sent {
            let blocks = (data.len() / 512) as u32;
            let read = Command::read(*lun, scsi::read16(*lba, blocks), data.len() as u32);
            let tag = s.submit(&read).expect("a read");
            let got = s.wait_scsi(tag).expect("an answer").good();
            assert!(
                got == *data,
                "initiator {n}, LUN {lun}: other data at {lba}"
            );
        }
        done.fetch_add(2 * DEPTH as u64, Ordering::Relaxed);
    }
    s.assert_clean();
    s.close().expect("logout");
}

/// Commands to the LUNs that come and go: each is answered, with whatever.
fn churn(addr: SocketAddr, n: u32, seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let mut s = open(addr, n);
    let mut rng = Rng::new(seed ^ u64::from(n));
    while !stop.load(Ordering::Relaxed) {
        let mut sent = Vec::new();
        for _ in 0..DEPTH {
            let lun = (FIRST_CHURN_LUN + rng.below(CHURN_LUNS)) as u16;
            let command = match rng.below(4) {
                0 => Command::new(lun, scsi::test_unit_ready()),
                1 => Command::read(0, scsi::report_luns(4096), 4096),
                2 => Command::write(lun, scsi::write16(rng.below(64), 8), vec![7; 4096]),
                _ => Command::read(lun, scsi::read16(rng.below(64), 8), 4096),
            };
            sent.push(s.submit(&command).expect("a command"));
        }
        for tag in sent {
            let reply = s.wait_scsi(tag).expect("an answer");
            let fine = [status::GOOD, status::CHECK_CONDITION].contains(&reply.status);
            assert!(fine && reply.response == 0, "{reply}");
        }
        done.fetch_add(DEPTH as u64, Ordering::Relaxed);
    }
    s.assert_clean();
    s.close().expect("logout");
}

#[test]
fn commands_at_other_luns_neither_fail_nor_get_lost() {
    let rng = Rng::from_env(1);
    let rig = Rig::start().expect("a server");
    let mut managed = Managed {
        core: Arc::clone(&rig.core),
        tree: Tree::new(rig.tree.root()),
        nulls: rig.nulls.clone(),
        rng,
    };
    managed.write("targets/iscsi/mgmt", &format!("add_target {IQN}"));
    managed.of_target("luns/mgmt", "add steady0 0");
    managed.of_target("luns/mgmt", "add steady1 1");
    managed.of_target("enabled", "1");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let seed = managed.rng.next_u64();
    let worker = |n: u32, work: fn(SocketAddr, u32, u64, &AtomicBool, &AtomicU64)| {
        let (stop, done): (_, Arc<AtomicU64>) = (Arc::clone(&stop), Arc::clone(&done));
        let addr = rig.addr;
        thread::spawn(move || work(addr, n, seed, &stop, &done))
    };
    let workers = [
        worker(1, steady),
        worker(2, steady),
        worker(11, steady),
        worker(3, churn),
        worker(12, churn),
    ];
    let start = Instant::now();
    for _ in 0..rounds() {
        let before = done.load(Ordering::Relaxed);
        managed.change();
        // The next one comes when there was some load again.
        while done.load(Ordering::Relaxed) == before && !workers.iter().any(|w| w.is_finished()) {
            thread::yield_now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        if let Err(e) = worker.join() {
            std::panic::resume_unwind(e);
        }
    }
    println!(
        "{} changes and {} commands in {:.1} s",
        rounds(),
        done.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    );
    drop(managed);
    rig.stop();
}
