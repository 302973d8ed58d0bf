//! Persistent reservations with APTPL outlive kill -9, also with a state file that has become bad.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kshim::error::code;
use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::scsi::{self, status};
use scst_tests::{Command, OpenOptions, Session};

const IQN: &str = "iqn.2026-01.org.example:aptpl";
const KEY_A: u64 = 0xA11C_E000_0000_0001;
const KEY_B: u64 = 0xB0B0_0000_0000_0002;
/// Service actions of PERSISTENT RESERVE OUT.
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
/// Write exclusive, registrants only.
const TYPE: u8 = 5;

fn pr_out(action: u8, key: u64, new_key: u64, aptpl: bool) -> Command {
    let mut cdb = vec![0x5F, action, TYPE, 0, 0, 0, 0, 0, 24, 0];
    if action == REGISTER {
        cdb[2] = 0;
    }
    let mut list = vec![0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&new_key.to_be_bytes());
    list[20] = u8::from(aptpl);
    Command::write(0, cdb, list)
}

/// PERSISTENT RESERVE IN: the parameter data behind its length.
fn pr_in(s: &mut Session, action: u8) -> (u32, Vec<u8>) {
    let cdb = vec![0x5E, action, 0, 0, 0, 0, 0, 1, 0, 0];
    let data = s.scsi(&Command::read(0, cdb, 256)).unwrap().good();
    let word = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
    let len = usize::try_from(word(4)).unwrap();
    (word(0), data[8..8 + len].to_vec())
}

fn keys(s: &mut Session) -> Vec<u64> {
    let (_, data) = pr_in(s, 0);
    let mut keys: Vec<u64> = data
        .chunks_exact(8)
        .map(|c| u64::from_be_bytes(c.try_into().unwrap()))
        .collect();
    keys.sort_unstable();
    keys
}

/// Key and type of the reservation.
fn reservation(s: &mut Session) -> Option<(u64, u8)> {
    let (_, data) = pr_in(s, 1);
    let key = data.get(..8)?.try_into().unwrap();
    Some((u64::from_be_bytes(key), data[13] & 0x0F))
}

/// Makes the device and the target, as an administrator does after each start.
fn configure(server: &RunServer, image: &Path) {
    let tree = Client::connect(&server.control()).expect("the control socket");
    let add = format!("add_device pr0 filename={}", image.display());
    let target = format!("targets/iscsi/{IQN}");
    for (path, value) in [
        ("handlers/vdisk_fileio/mgmt", add.as_str()),
        ("targets/iscsi/mgmt", &format!("add_target {IQN}")),
        (&format!("{target}/luns/mgmt"), "add pr0 0"),
        (&format!("{target}/enabled"), "1"),
        ("targets/iscsi/enabled", "1"),
    ] {
        tree.write(path, value.as_bytes()).expect(path);
    }
}

fn login(server: &RunServer, n: u32) -> Session {
    let options = OpenOptions::normal(IQN).initiator(n);
    let mut s = Session::open(server.portal(), &options).expect("login");
    s.clear_ua(0).unwrap();
    s
}

struct Rig {
    server: RunServer,
    image: PathBuf,
}

impl Rig {
    fn start() -> Self {
        let server = RunServer::start(&RunOptions::default());
        let image = server.dir.join("pr0.img");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        configure(&server, &image);
        Self { server, image }
    }

    fn state_file(&self) -> PathBuf {
        self.server.dir.join("state/pr/pr0")
    }

    fn kill_and_restart(&mut self) {
        self.server.kill9();
        self.start_again();
    }

    fn start_again(&mut self) {
        self.server.restart();
        configure(&self.server, &self.image);
    }

    /// Both registrations and the reservation are there, and hold others off.
    fn assert_reserved(&self) {
        let (mut a, mut b) = (login(&self.server, 1), login(&self.server, 2));
        assert_eq!(keys(&mut a), [KEY_A, KEY_B]);
        assert_eq!(reservation(&mut b), Some((KEY_A, TYPE)));
        a.write_blocks(0, 0, &[1; 512]).unwrap();
        b.write_blocks(0, 0, &[2; 512]).unwrap();
        let mut stranger = login(&self.server, 3);
        let write = Command::write(0, scsi::write10(0, 1), vec![3; 512]);
        let reply = stranger.scsi(&write).unwrap();
        assert_eq!(reply.status, status::RESERVATION_CONFLICT, "{reply}");
        a.expect_blocks(0, 0, &[2; 512]);
    }
}

/// Registers two initiators and reserves for the first.
fn reserve(rig: &Rig) {
    let (mut a, mut b) = (login(&rig.server, 1), login(&rig.server, 2));
    a.scsi(&pr_out(REGISTER, 0, KEY_A, true)).unwrap().good();
    b.scsi(&pr_out(REGISTER, 0, KEY_B, true)).unwrap().good();
    a.scsi(&pr_out(RESERVE, KEY_A, 0, false)).unwrap().good();
}

#[test]
fn reservations_outlive_kill_9_and_bad_state_files() {
    let mut rig = Rig::start();
    reserve(&rig);
    rig.kill_and_restart();
    rig.assert_reserved();

    // A change makes a copy of the state before it, which is what counts when the file is bad.
    {
        let mut a = login(&rig.server, 1);
        a.scsi(&pr_out(RELEASE, KEY_A, 0, false)).unwrap().good();
        assert_eq!(reservation(&mut a), None);
        a.scsi(&pr_out(RESERVE, KEY_A, 0, false)).unwrap().good();
        a.scsi(&pr_out(REGISTER, KEY_A, KEY_A, true))
            .unwrap()
            .good();
    }
    let good = fs::read(rig.state_file()).unwrap();
    for bad in [&good[..good.len() / 2], &good[..0], &[0xFF; 700][..]] {
        rig.server.kill9();
        fs::write(rig.state_file(), bad).unwrap();
        rig.start_again();
        rig.assert_reserved();
    }
}

#[test]
fn reservations_without_aptpl_end_with_the_server() {
    let mut rig = Rig::start();
    {
        let mut a = login(&rig.server, 1);
        a.scsi(&pr_out(REGISTER, 0, KEY_A, false)).unwrap().good();
        a.scsi(&pr_out(RESERVE, KEY_A, 0, false)).unwrap().good();
    }
    rig.kill_and_restart();
    let mut b = login(&rig.server, 2);
    assert_eq!(keys(&mut b), []);
    assert_eq!(reservation(&mut b), None);
    b.write_blocks(0, 0, &[2; 512]).unwrap();
}

#[test]
fn no_two_devices_keep_their_state_in_one_file() {
    let server = RunServer::start(&RunOptions::default());
    let tree = Client::connect(&server.control()).expect("the control socket");
    for device in ["n1", "n2"] {
        let add = format!("add_device {device}");
        tree.write("handlers/vdisk_nullio/mgmt", add.as_bytes())
            .expect(device);
    }
    // Nobody may see a device whose file is to be another.
    tree.write("targets/copy_manager/copy_manager_tgt/luns/mgmt", b"clear")
        .expect("no LUNs");
    let dir = server.dir.join("state/pr");
    let set = |device: &str, file: &str| {
        let path = format!("devices/{device}/pr_file_name");
        tree.write(&path, dir.join(file).to_str().unwrap().as_bytes())
    };
    assert_eq!(set("n2", "n1"), Err(code::EEXIST));
    set("n2", "other").expect("nobody's");
    assert_eq!(set("n1", "other"), Err(code::EEXIST));
    set("n1", "n2").expect("nobody's any more");
}
