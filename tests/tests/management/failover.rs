//! Explicit failover: SET TARGET PORT GROUPS, which a program carries out, takes the lock of a tcmu-runner handler and gives it back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kshim::kobject::control::Client as TreeClient;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::session::Reply;
use scst_tests::{Command as Scsi, OpenOptions, Session, scsi};

use super::events::{SET_TARGET_PGS_FAILED, Stpgd, set, state, stpgd};

const IQN: &str = "iqn.2026-01.org.example:failover";
/// The disk with a lock, and one of the same handler without, that tells about it.
const DISK: u16 = 0;
const PEEK: u16 = 1;
/// As in `backstores/tests/c/handler_locks.c`.
const COUNTERS_BLOCK: u32 = 8;
const LOCK_LOST_BLOCK: u32 = 16;
const NOBODY: u64 = 0xFFFF;
const OTHERS: u64 = 99;
const REFUSED: u64 = 13;
/// The target port group of this server.
const GROUP: u64 = 7;
/// Asymmetric access states.
const OPTIMIZED: u8 = 0;
const STANDBY: u8 = 2;
/// Sense of a logical unit whose port is standby, or whose lock is another's.
const NOT_READY_STANDBY: (u8, u8, u8) = (2, 4, 0x0B);

/// Builds the handler into `dir`; where there is no compiler, says so.
fn handler(dir: &Path) -> bool {
    if scst_tests::tools::require(["cc"]).is_none() {
        return false;
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backstores");
    let out = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-I"])
        .arg(top.join("abi"))
        .arg("-o")
        .arg(dir.join("handler_locks.so"))
        .arg(top.join("tests/c/handler_locks.c"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    true
}

struct Setup {
    server: RunServer,
    tree: TreeClient,
    session: Session,
}

impl Setup {
    fn new(handlers: &Path) -> Self {
        let options = RunOptions {
            more: vec![
                "--handler-dir".to_owned(),
                handlers.to_str().unwrap().to_owned(),
            ],
            ..RunOptions::default()
        };
        let server = RunServer::start(&options);
        let tree = TreeClient::connect(&server.control()).unwrap();
        let set = |path: &str, value: &str| set(&tree, path, value);
        let add = |name: &str, path: &str| {
            let add = format!("add_device {name} filename=/dev/tcmur/locks/{path}");
            set("handlers/vdisk_blockio/mgmt", &add);
        };
        add("disk", &format!("disk?size=1M&lock=group-{GROUP}"));
        add("peek", "peek?size=1M");
        set("devices/disk/expl_alua", "1");
        set("targets/iscsi/mgmt", &format!("add_target {IQN}"));
        set("device_groups/mgmt", "create dg");
        set("device_groups/dg/devices/mgmt", "add disk");
        set("device_groups/dg/target_groups/mgmt", "create tg");
        let tg = "device_groups/dg/target_groups/tg";
        set(&format!("{tg}/group_id"), &GROUP.to_string());
        set(&format!("{tg}/mgmt"), &format!("add {IQN}"));
        let luns = format!("targets/iscsi/{IQN}/luns/mgmt");
        set(&luns, &format!("add disk {DISK}"));
        set(&luns, &format!("add peek {PEEK}"));
        set(&format!("targets/iscsi/{IQN}/enabled"), "1");
        set("targets/iscsi/enabled", "1");
        let options = OpenOptions::normal(IQN).initiator(1);
        let mut session = Session::open(server.portal(), &options).unwrap();
        session.clear_ua(DISK).unwrap();
        session.clear_ua(PEEK).unwrap();
        Self {
            server,
            tree,
            session,
        }
    }

    /// Runs what comes after a change of state or is told to come back until it is neither.
    fn insist(&mut self, cmd: &Scsi) -> Reply {
        loop {
            let reply = self.session.scsi(cmd).expect("an answer");
            if reply.status != scsi::status::BUSY && reply.sense_code().0 != 6 {
                return reply;
            }
        }
    }

    fn write(&mut self, block: u32) -> Reply {
        let data = vec![0x5A; 512];
        self.insist(&Scsi::write(DISK, scsi::write10(block, 1), data))
    }

    fn read(&mut self) -> Reply {
        self.insist(&Scsi::read(DISK, scsi::read10(0, 1), 512))
    }

    /// Who has the lock.
    fn owner(&mut self) -> u64 {
        let read = Scsi::read(PEEK, scsi::read10(COUNTERS_BLOCK, 1), 512);
        let data = self.insist(&read).data_in;
        u64::from_ne_bytes(data[32..40].try_into().unwrap())
    }

    /// The state of the group as REPORT TARGET PORT GROUPS tells it.
    fn reported(&mut self) -> u8 {
        let cdb = vec![0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let data = self.insist(&Scsi::read(DISK, cdb, 256)).data_in;
        assert_eq!(data[6..8], (GROUP as u16).to_be_bytes());
        data[4] & 0xF
    }

    /// SET TARGET PORT GROUPS.
    fn ask_for(&mut self, state: u8) -> Reply {
        let list = vec![0, 0, 0, 0, state, 0, 0, GROUP as u8];
        let cdb = vec![0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
        self.insist(&Scsi::write(DISK, cdb, list))
    }

    fn start_stpgd(&self) -> Stpgd {
        Stpgd::start(stpgd(&self.server, &self.script(), "17"))
    }

    /// Sets the state, and fails if the device cannot be had then.
    fn script(&self) -> PathBuf {
        let path = self.server.dir.join("on_stpg");
        let admin = scst_tests::server::scstadmin();
        let text = format!(
            "#!/bin/sh\n\
             {admin} -noprompt -set_tgrp_attr \"$SCST_TARGET_GROUP\" -dev_group \"$SCST_DEVICE_GROUP\" \
             -attributes \"state=$SCST_ALUA_STATE\" || exit 1\n",
            admin = admin.display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

#[test]
fn set_target_port_groups_takes_the_lock_and_gives_it_back() {
    let dir = tempfile::tempdir().unwrap();
    if !handler(dir.path()) {
        return;
    }
    let mut s = Setup::new(dir.path());
    let _stpgd = s.start_stpgd();
    assert_eq!(s.owner(), GROUP);
    assert!(s.write(0).is_good());
    for _ in 0..3 {
        let reply = s.ask_for(STANDBY);
        assert!(reply.is_good(), "{reply}");
        assert_eq!((state(&s.tree).as_str(), s.owner()), ("standby", NOBODY));
        assert_eq!(s.write(0).sense_code(), NOT_READY_STANDBY);
        let reply = s.ask_for(OPTIMIZED);
        assert!(reply.is_good(), "{reply}");
        assert_eq!((state(&s.tree).as_str(), s.owner()), ("active", GROUP));
        assert!(s.write(0).is_good());
        assert_eq!(s.read().data_in, [0x5A; 512]);
    }
    // Another server takes it: that is what the port says, until an initiator asks for it again.
    for _ in 0..2 {
        assert_eq!(s.write(LOCK_LOST_BLOCK).sense_code(), NOT_READY_STANDBY);
        assert_eq!((s.reported(), s.owner()), (STANDBY, OTHERS));
        assert_eq!(s.write(0).sense_code(), NOT_READY_STANDBY);
        let ready = Scsi::new(DISK, scsi::test_unit_ready());
        assert_eq!(s.insist(&ready).sense_code(), NOT_READY_STANDBY);
        let reply = s.ask_for(OPTIMIZED);
        assert!(reply.is_good(), "{reply}");
        assert_eq!((s.reported(), s.owner()), (OPTIMIZED, GROUP));
        assert!(s.write(0).is_good());
    }
    // A server that takes it back by hand.
    assert_eq!(s.write(LOCK_LOST_BLOCK).sense_code(), NOT_READY_STANDBY);
    set(&s.tree, "device_groups/dg/target_groups/tg/state", "active");
    assert_eq!((s.reported(), s.owner()), (OPTIMIZED, GROUP));
    assert!(s.write(0).is_good());
    s.session.close().unwrap();
}

/// The lock of this group cannot be had.
#[test]
fn an_initiator_learns_that_the_lock_cannot_be_had() {
    let dir = tempfile::tempdir().unwrap();
    if !handler(dir.path()) {
        return;
    }
    let mut s = Setup::new(dir.path());
    let _stpgd = s.start_stpgd();
    assert!(s.ask_for(STANDBY).is_good());
    let path = format!("/dev/tcmur/locks/disk?size=1M&lock=group-{REFUSED}");
    set(&s.tree, "devices/disk/filename", &path);
    for _ in 0..2 {
        assert_eq!(s.ask_for(OPTIMIZED).sense_code(), SET_TARGET_PGS_FAILED);
        assert_eq!(s.owner(), NOBODY);
    }
    s.session.close().unwrap();
}
