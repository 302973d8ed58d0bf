//! The crate `scst` of crates.io, a client that others wrote for the kernel's tree, on a running server under `scstd exec`.
//!
//! It looks at `/sys/kernel/scst_tgt` only, so it has to run in there: this program starts itself again.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use scst::{Options, Scst};
use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};
use scst_tests::{OpenOptions, Session};

use crate::text;

/// What the program is to do in there; without it `inside` is not for it.
const STAGE: &str = "SCST_CRATE_STAGE";
/// The backing file.
const FILE: &str = "SCST_CRATE_FILE";
const IQN: &str = "iqn.2026-01.org.example:crate";
/// How the initiator of these tests is called.
const INITIATORS: &str = "iqn.2026-01.org.example:probe-*";
const SIZE: u64 = 8 << 20;

fn options(list: &[(&str, &str)]) -> Options {
    let mut options = Options::new();
    for (key, value) in list {
        options.insert(key, value);
    }
    options
}

/// As in the crate's own example, and what else it has.
fn set_up(file: &str) {
    let mut scst = Scst::init().expect("the tree");
    let version = scst.version().to_owned();
    assert!(version.contains(": 3."), "{version}");
    for handler in ["vdisk_fileio", "vdisk_blockio", "vcdrom"] {
        assert!(scst.get_handler(handler).is_ok(), "{handler}");
    }
    let plain = Options::new();
    // It separates options by a blank from the file's name, which SCST's syntax has no use for.
    let options_of_a_device = options(&[("blocksize", "4096")]);
    assert!(
        scst.add_device("vdisk_fileio", "vol", file, &options_of_a_device)
            .is_err()
    );
    scst.add_device("vdisk_fileio", "vol", file, &plain)
        .expect("a device");
    let none = scst.add_device("vdisk_fileio", "none", "/nothing/there", &plain);
    assert!(none.is_err(), "no such file");

    let iscsi = scst.iscsi_mut();
    assert!(!iscsi.enabled());
    assert_eq!(iscsi.open_state(), "open");
    iscsi
        .add_attribute("IncomingUser", "joe secretsecret")
        .expect("an account");
    iscsi
        .del_attribute("IncomingUser", "joe")
        .expect("no account");
    iscsi.add_target(IQN, &plain).expect("a target");
    iscsi
        .add_target_attribute(IQN, "allowed_portal", "127.*")
        .expect("a portal");
    assert!(iscsi.add_target("no name at all", &plain).is_err());
    let target = iscsi.get_target_mut(IQN).expect("there");
    target.enable().expect("enabled");
    target
        .add_lun("vol", 5, &options(&[("read_only", "1")]))
        .expect("a LUN");
    assert!(target.add_lun("nothing", 6, &plain).is_err());
    let group = target.create_ini_group("vol").expect("a group");
    group.add_lun("vol", 0, &plain).expect("a LUN");
    assert!(group.add_lun("vol", 0, &plain).is_err(), "taken");
    group.add_initiator("iqn.x:later").expect("an initiator");
    group.del_initiator("iqn.x:later").expect("no initiator");
    group.add_initiator(INITIATORS).expect("an initiator");
    scst.iscsi_mut().enable().expect("enabled");
}

/// What is there is what was set, and what an initiator does shows.
fn look(file: &str) {
    let scst = Scst::init().expect("the tree");
    let device = scst
        .get_handler("vdisk_fileio")
        .unwrap()
        .get_device("vol")
        .unwrap();
    assert_eq!(device.filename(), Path::new(file));
    assert_eq!((device.size() as u64, device.blocksize()), (SIZE, 512));
    assert_eq!(device.handler(), "vdisk_fileio");
    assert!(device.is_active() && !device.read_only());

    let iscsi = scst.iscsi();
    assert!(iscsi.enabled());
    assert_eq!(iscsi.open_state(), "open");
    let target = iscsi.get_target(IQN).unwrap();
    assert!(target.enabled());
    assert_ne!((target.tid(), target.rel_tgt_id()), (0, 0));
    let lun = target.get_lun("lun5").unwrap();
    assert_eq!((lun.device(), lun.read_only()), ("vol", true));
    let group = target.get_ini_group("vol").unwrap();
    assert_eq!(group.initiators(), [INITIATORS]);
    assert_eq!(group.get_lun("lun0").unwrap().device(), "vol");

    let sessions = target.sessions().unwrap();
    let [session] = &sessions[..] else {
        panic!("{sessions:?}")
    };
    assert!(session.initiator_name().contains(":probe-"), "{session:?}");
    assert!(!session.sid().is_empty() && session.thread_pid() != "0");
    let ips = session.ips();
    let [connection] = &ips[..] else {
        panic!("{session:?}")
    };
    let addresses = (connection.ip(), connection.target_ip());
    assert_eq!(addresses, ("127.0.0.1", "127.0.0.1"));
    let stat = format!("{:?}", target.io_stat().unwrap());
    assert!(
        stat.contains("write_cmd_count: 1, write_io_count_kb: 4,"),
        "{stat}"
    );
    assert!(stat.contains("read_io_count_kb: 4,"), "{stat}");
}

fn take_down() {
    let mut scst = Scst::init().expect("the tree");
    let iscsi = scst.iscsi_mut();
    let target = iscsi.get_target_mut(IQN).unwrap();
    target.create_ini_group("other").expect("a group");
    let group = target.get_ini_group_mut("vol").unwrap();
    group.move_initiator(INITIATORS, "other").expect("moved");
    group
        .set_lun("vol", 0, &options(&[("read_only", "1")]))
        .expect("replaced");
    assert!(group.get_lun("lun0").unwrap().read_only());
    group.del_lun(0).expect("no LUN");
    assert!(group.del_lun(0).is_err());
    group.clear_initiators().expect("no initiators");
    for name in ["vol", "other"] {
        target.del_ini_group(name).expect("no group");
    }
    target.del_lun(5).expect("no LUN");
    target.disable().expect("disabled");
    iscsi.del_target(IQN).expect("no target");
    iscsi.disable().expect("disabled");
    scst.del_device("vdisk_fileio", "vol").expect("no device");
    let scst = Scst::init().expect("the tree");
    assert!(scst.iscsi().targets().is_empty());
    assert!(
        scst.get_handler("vdisk_fileio")
            .unwrap()
            .devices()
            .is_empty()
    );
}

/// Not a test by itself: what the program does when it runs under `scstd exec`.
#[test]
fn inside() {
    let Ok(stage) = std::env::var(STAGE) else {
        return;
    };
    let file = std::env::var(FILE).expect("the backing file");
    match stage.as_str() {
        "set_up" => set_up(&file),
        "look" => look(&file),
        "take_down" => take_down(),
        other => panic!("{other}"),
    }
}

fn under_exec(server: &RunServer, stage: &str) {
    let mut command: Command = server.exec("exec \"$@\"");
    command
        .arg("sh")
        .arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "scst_crate::inside", "--nocapture"]);
    command
        .env(STAGE, stage)
        .env(FILE, server.dir.join("vol.img"));
    let out = text(command);
    assert!(out.contains("1 passed"), "{out}");
}

#[test]
fn a_client_that_others_wrote_manages_the_server() {
    if !fuse_works(As::Me) {
        return;
    }
    let server = RunServer::start(&RunOptions::default());
    let file = File::create(server.dir.join("vol.img")).unwrap();
    file.set_len(SIZE).unwrap();
    under_exec(&server, "set_up");
    let options = OpenOptions::normal(IQN).initiator(1);
    let mut s = Session::open(server.portal(), &options).unwrap();
    s.clear_ua(0).unwrap();
    assert_eq!(s.capacity(0).unwrap(), (SIZE / 512, 512));
    let data = vec![0x5a; 4096];
    s.write_blocks(0, 7, &data).unwrap();
    s.expect_blocks(0, 7, &data);
    under_exec(&server, "look");
    s.close().unwrap();
    under_exec(&server, "take_down");
}
