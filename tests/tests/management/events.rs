//! Events of a running server, and SET TARGET PORT GROUPS that a program carries out.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use kshim::kobject::control::Client as TreeClient;
use kshim::kobject::tree::TreeOps as _;
use scst_core::event::payload::TmFn;
use scst_core::event::{Client, Filter, Heard, Kind, Told};
use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};
use scst_tests::session::tmf;
use scst_tests::{Command as Scsi, OpenOptions, Session, scsi};

const IQN: &str = "iqn.2026-01.org.example:events";
/// Sense of a failed SET TARGET PORT GROUPS.
pub(super) const SET_TARGET_PGS_FAILED: (u8, u8, u8) = (4, 0x67, 0x0a);
/// Asymmetric access states.
const OPTIMIZED: u8 = 0;
const STANDBY: u8 = 2;

pub(super) fn set(tree: &TreeClient, path: &str, value: &str) {
    let written = tree.write(path, value.as_bytes());
    written.unwrap_or_else(|e| panic!("{value:?} to {path}: {e}"));
}

fn next(client: &mut Client) -> (Kind, Told) {
    match client.wait_next().expect("an event") {
        Heard::Event(told) => {
            let kind = Kind::decode(told.event.code, &told.event.payload);
            (kind.expect("a known event"), told)
        }
        Heard::NotAsked => panic!("an event"),
    }
}

fn follow(server: &RunServer) -> Client {
    let mut client = Client::connect(&server.control()).expect("a server");
    client.allow(&Filter::look_on()).expect("events");
    client
}

fn text(s: &str) -> String {
    s.to_owned()
}

#[test]
fn what_happens_is_told() {
    let server = RunServer::start(&RunOptions::default());
    let tree = TreeClient::connect(&server.control()).unwrap();
    let mut events = follow(&server);
    set(&tree, "handlers/vdisk_nullio/mgmt", "add_device n0");
    set(&tree, "targets/iscsi/mgmt", &format!("add_target {IQN}"));
    set(&tree, &format!("targets/iscsi/{IQN}/enabled"), "1");
    set(&tree, "targets/iscsi/enabled", "1");
    assert_eq!(next(&mut events).0, Kind::RegVirtDev { device: text("n0") });

    // There is nothing for the initiator yet.
    let options = OpenOptions::normal(IQN).initiator(1);
    assert!(Session::open(server.portal(), &options).is_err());
    let Kind::NegativeLunsInquiry { initiator, target } = next(&mut events).0 else {
        panic!("an initiator without LUNs")
    };
    assert_eq!(target, IQN);
    set(&tree, &format!("targets/iscsi/{IQN}/luns/mgmt"), "add n0 0");
    let mut s = Session::open(server.portal(), &options).unwrap();
    s.clear_ua(0).unwrap();
    let nothing = s.scsi(&Scsi::new(9, scsi::test_unit_ready())).unwrap();
    assert_eq!(nothing.sense_code(), (5, 0x25, 0));
    assert_eq!(
        next(&mut events).0,
        Kind::LunNotFound {
            lun: 9,
            initiator: initiator.clone(),
            target: text(IQN),
        }
    );
    assert_eq!(
        s.tmf(tmf::LOGICAL_UNIT_RESET, 0, None).unwrap(),
        tmf::COMPLETE
    );
    let reset = TmFn {
        function: 4,
        device: text("n0"),
        initiator: initiator.clone(),
        target: text(IQN),
        session: initiator,
        ..TmFn::default()
    };
    assert_eq!(next(&mut events).0, Kind::TmFnReceived(reset.clone()));

    set(&tree, "devices/n0/block", "11 snapshot 7");
    assert_eq!(
        next(&mut events).0,
        Kind::ExtBlockingDone {
            device: text("n0"),
            data: b"snapshot 7".to_vec(),
        }
    );
    assert_eq!(tree.read("devices/n0/block").unwrap(), b"1 0\n");
    set(&tree, "devices/n0/block", "0");
    s.close().unwrap();
    let gone = TmFn {
        function: 10,
        device: String::new(),
        ..reset
    };
    assert_eq!(next(&mut events).0, Kind::TmFnReceived(gone));
}

#[test]
fn scstd_events_prints_lines_until_the_server_ends() {
    let mut server = RunServer::start(&RunOptions::default());
    let tree = TreeClient::connect(&server.control()).unwrap();
    let wrong = Command::new(scst_tests::server::scstd())
        .args(["events", "--control", "/nothing/there", "reg_virt_dev"])
        .output()
        .unwrap();
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("no server at /nothing/there"), "{said}");

    let mut follower = Command::new(scst_tests::server::scstd())
        .args(["events", "-v", "--control"])
        .arg(server.control())
        .arg("REG_VIRT_DEV")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says when nothing can be missed any more.
    let mut said = BufReader::new(follower.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("following")));
    set(&tree, "handlers/vdisk_nullio/mgmt", "add_device n0");
    set(&tree, "handlers/vdisk_nullio/mgmt", "add_device n1");
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    for device in ["n0", "n1"] {
        let line = lines.next().unwrap().unwrap();
        assert_eq!(line, format!("REG_VIRT_DEV device={device}"));
    }
    assert!(server.stop().success());
    assert!(follower.wait().unwrap().success());
    assert!(lines.next().is_none());
}

#[test]
fn scstadmin_follows_events_too() {
    let mut server = RunServer::start(&RunOptions::default());
    let tree = TreeClient::connect(&server.control()).unwrap();
    let mut follower = Command::new(scst_tests::server::scstadmin())
        .args(["-events", "REG_VIRT_DEV,TM_FN_RECEIVED", "-control"])
        .arg(server.control())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || lines.next().unwrap().unwrap());
    // It does not say from when on it listens.
    while !reader.is_finished() {
        set(&tree, "handlers/vdisk_nullio/mgmt", "add_device n0");
        set(&tree, "handlers/vdisk_nullio/mgmt", "del_device n0");
    }
    assert_eq!(reader.join().unwrap(), "REG_VIRT_DEV device=n0");
    assert!(server.stop().success());
    // With nobody to read its output any more it may fail at that.
    follower.wait().unwrap();
    let wrong = Command::new(scst_tests::server::scstadmin())
        .args(["-events", "nonsense", "-control"])
        .arg(server.control())
        .output()
        .unwrap();
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("no such event: nonsense"), "{said}");
}

/// A server with a device at LUN 0, in target port group 7 of a device group, which an initiator may change.
fn alua_server(options: &RunOptions) -> (RunServer, TreeClient, Session) {
    let server = RunServer::start(options);
    let tree = TreeClient::connect(&server.control()).unwrap();
    let set = |path: &str, value: &str| set(&tree, path, value);
    let file = server.dir.join("disk");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    let add = format!("add_device n0 filename={}", file.display());
    set("handlers/vdisk_fileio/mgmt", &add);
    set("devices/n0/expl_alua", "1");
    set("targets/iscsi/mgmt", &format!("add_target {IQN}"));
    set("device_groups/mgmt", "create dg");
    set("device_groups/dg/devices/mgmt", "add n0");
    set("device_groups/dg/target_groups/mgmt", "create tg");
    let tg = "device_groups/dg/target_groups/tg";
    set(&format!("{tg}/group_id"), "7");
    set(&format!("{tg}/mgmt"), &format!("add {IQN}"));
    set(&format!("targets/iscsi/{IQN}/luns/mgmt"), "add n0 0");
    set(&format!("targets/iscsi/{IQN}/enabled"), "1");
    set("targets/iscsi/enabled", "1");
    let options = OpenOptions::normal(IQN).initiator(1);
    let mut s = Session::open(server.portal(), &options).unwrap();
    s.clear_ua(0).unwrap();
    (server, tree, s)
}

pub(super) fn state(tree: &TreeClient) -> String {
    let path = "device_groups/dg/target_groups/tg/state";
    let text = String::from_utf8(tree.read(path).unwrap()).unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

/// SET TARGET PORT GROUPS of group 7.
fn set_group(s: &mut Session, state: u8) -> scst_tests::session::Reply {
    let list = vec![0, 0, 0, 0, state, 0, 0, 7];
    let cdb = vec![0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
    s.scsi(&Scsi::write(0, cdb, list)).expect("an answer")
}

fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("on_stpg");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A running `scstd stpgd`.
pub(super) struct Stpgd(Child);

impl Stpgd {
    /// Waits until it is there.
    pub(super) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut ready).expect("it becomes ready");
        assert_eq!(&ready, b"ready\n");
        Self(child)
    }

    /// Waits for its end, which the server's brings.
    fn ended(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Stpgd {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn stpgd(server: &RunServer, script: &Path, timeout: &str) -> Command {
    let mut command = Command::new(scst_tests::server::scstd());
    command.args(["stpgd", "--timeout", timeout, "--control"]);
    command.arg(server.control()).arg("--path").arg(script);
    command
}

/// With a script as SCST's own, where the tree is at the kernel's place.
#[test]
fn a_script_changes_the_state_that_an_initiator_asks_for() {
    if !fuse_works(As::Me) {
        return;
    }
    let (mut server, tree, mut s) = alua_server(&RunOptions::default());
    let mut events = follow(&server);
    let out = server.dir.join("said");
    let text = format!(
        "echo \"$*\" >>{out}\n\
         [ \"$*\" = \"$SCST_DEVICE_NAME $SCST_PREV_ALUA_STATE $SCST_ALUA_STATE $SCST_DEVICE_GROUP $SCST_TARGET_GROUP\" ] || exit 9\n\
         echo $SCST_ALUA_STATE >/sys/kernel/scst_tgt/device_groups/$4/target_groups/$SCST_TARGET_GROUP/state",
        out = out.display()
    );
    let script = script(&server.dir, &text);
    let mut command = server.exec("exec \"$@\"");
    command.arg("sh").arg(scst_tests::server::scstd());
    command.args(["stpgd", "--path"]).arg(&script);
    let stpgd = Stpgd::start(command);
    for (wanted, name) in [(STANDBY, "standby"), (OPTIMIZED, "active")] {
        let reply = set_group(&mut s, wanted);
        assert!(reply.is_good(), "{reply}");
        assert_eq!(state(&tree), name);
        let (Kind::StpgUserInvoke { device, groups, .. }, told) = next(&mut events) else {
            panic!("others may look on")
        };
        let [group] = &groups[..] else {
            panic!("{groups:?}")
        };
        assert_eq!((device.as_str(), group.id, told.id), ("n0", 7, 0));
        assert_eq!(group.new_state.name(), name);
    }
    let said = fs::read_to_string(&out).unwrap();
    assert_eq!(said, "n0 active standby dg tg\nn0 standby active dg tg\n");
    s.close().unwrap();
    assert!(server.stop().success());
    assert!(!stpgd.ended().success(), "without a server it ends");
}

#[test]
fn without_a_script_that_does_it_the_command_fails() {
    let (server, tree, mut s) = alua_server(&RunOptions::default());
    let dir = server.dir.clone();
    let fails = |s: &mut Session, what: &str| {
        let reply = set_group(s, STANDBY);
        assert_eq!(reply.sense_code(), SET_TARGET_PGS_FAILED, "{what}");
        assert_eq!(state(&tree), "active", "{what}");
        // Nothing is in the way of the next command.
        assert!(
            s.scsi(&Scsi::new(0, scsi::test_unit_ready()))
                .unwrap()
                .is_good()
        );
    };
    fails(&mut s, "nobody is there");
    let cases = [
        ("exit 3", "17"),
        ("exit 0", "17"),
        ("kill -9 $$", "17"),
        ("sleep 1000", "0"),
    ];
    for (text, timeout) in cases {
        let script = script(&dir, text);
        let _stpgd = Stpgd::start(stpgd(&server, &script, timeout));
        fails(&mut s, text);
    }
    // What asks for what is so needs nobody.
    assert!(set_group(&mut s, OPTIMIZED).is_good());
    let no_program = dir.join("on_stpg");
    fs::set_permissions(&no_program, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = stpgd(&server, &no_program, "17").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    s.close().unwrap();
}
