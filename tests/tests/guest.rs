//! A real Linux initiator: open-iscsi in a QEMU guest.
//!
//! - One path: discovery, CHAP, digests, ext4, and writes while the server is restarted or killed, the connection is cut, and
//!   the network goes silent.
//! - Two paths: mutual CHAP, ALUA, persistent reservations, dm-multipath, xfs, and writes while states change and paths go.
//!
//! No write may fail.
//!
//! Runs where `SCST_GUEST` names the folder into which `tools/guest` has unpacked 90 MB of Debian packages. CI runs the short
//! form (`SCST_GUEST_SHORT=1`): one path without trouble.

use std::io::Write as _;
use std::time::Duration;

use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use scst_tests::guest::{Guest, HOST, Kit};
use scst_tests::proxy::Proxy;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::scsi::{self, status};
use scst_tests::{Command, OpenOptions, Server, ServerOptions, Session};

const USER: &str = "guest";
const SECRET: &str = "twelve or more";
/// What happens to the session, in this order.
const TROUBLE: [&str; 4] = ["restart", "cut", "kill", "silence"];
/// How long the guest may take to boot and log in without acceleration, and for any other step.
const STEP: Duration = Duration::from_secs(180);

/// The kit, if these tests are to run.
fn kit() -> Option<Kit> {
    let kit = Kit::from_env();
    if kit.is_none() {
        let text = "\n*** TEST NOT RUN: second tier, `cargo xtask nightly guest` ***\n\n";
        // Past the harness, which would swallow it.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    kit
}

fn is_short() -> bool {
    std::env::var_os("SCST_GUEST_SHORT").is_some()
}

#[test]
fn linux_keeps_its_data_through_restarts_and_broken_connections() {
    let Some(kit) = kit() else { return };
    let (trouble, mib) = if is_short() {
        (&[][..], 4)
    } else {
        (&TROUBLE[..], 16)
    };
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let options = ServerOptions::file(&dir.path().join("disk.img"))
        .arg("--digests")
        .arg(&format!("--chap={USER}:@{}", secret.display()));
    let mut server = Some(Server::start_own(&options.clone().arg("--size=256M")));
    let addr = |s: &Option<Server>| s.as_ref().expect("it runs").addr;
    let proxy = Proxy::start(addr(&server));
    let config = format!(
        "IQN={}\nPORTAL={HOST}:{}\nCHAP_USER={USER}\nCHAP_SECRET='{SECRET}'\nMIB={mib}\nTROUBLE='{}'\n\
         ISCSID_CONF='discovery.sendtargets.auth.authmethod = CHAP\n\
         discovery.sendtargets.auth.username = {USER}\n\
         discovery.sendtargets.auth.password = {SECRET}'\n",
        scst_tests::server::IQN,
        proxy.addr.port(),
        trouble.join(" "),
    );
    let mut guest = kit.boot(include_str!("../data/guest/one_path"), &config);
    guest.expect("disk", STEP);
    guest.expect("written", STEP);
    for &what in trouble {
        guest.expect(what, STEP);
        match what {
            "restart" => assert!(server.take().expect("it runs").stop().success()),
            "kill" => server.take().expect("it runs").kill9(),
            "cut" => proxy.cut(),
            _ => proxy.silence(),
        }
        if server.is_none() {
            let again = Server::start_own(&options);
            proxy.retarget(again.addr);
            server = Some(again);
        }
        guest.go_on();
        guest.expect(&format!("survived {what}"), STEP);
    }
    guest.expect("done", STEP);
    proxy.cut();
    assert!(server.take().expect("it runs").stop().success());
}

const OUT_USER: &str = "target";
/// Targets of the first and the second path, and one for somebody else.
const TARGETS: [&str; 3] = [
    "iqn.2026-01.org.example:one",
    "iqn.2026-01.org.example:two",
    "iqn.2026-01.org.example:three",
];

/// One disk behind three targets, of which two are in groups of an ALUA device group.
struct TwoPaths {
    server: RunServer,
    tree: Client,
}

impl TwoPaths {
    fn start() -> Self {
        let server = RunServer::start(&RunOptions::default());
        let tree = Client::connect(&server.control()).expect("the control socket");
        let disk = server.dir.join("disk.img");
        let file = std::fs::File::create(&disk).and_then(|f| f.set_len(512 << 20));
        file.expect("a file");
        let bed = Self { server, tree };
        let add = format!("add_device disk filename={}", disk.display());
        bed.write("handlers/vdisk_fileio/mgmt", &add);
        let groups = "device_groups/dg/target_groups";
        bed.write("device_groups/mgmt", "create dg");
        bed.write("device_groups/dg/devices/mgmt", "add disk");
        for (n, iqn) in (1..).zip(TARGETS) {
            bed.write("targets/iscsi/mgmt", &format!("add_target {iqn}"));
            let target = format!("targets/iscsi/{iqn}");
            bed.write(&format!("{target}/rel_tgt_id"), &n.to_string());
            bed.write(&format!("{target}/luns/mgmt"), "add disk 0");
            if n < 3 {
                for account in [
                    format!("IncomingUser {USER} {SECRET_WORD}"),
                    format!("OutgoingUser {OUT_USER} {OUT_SECRET_WORD}"),
                ] {
                    let add = format!("add_target_attribute {iqn} {account}");
                    bed.write("targets/iscsi/mgmt", &add);
                }
                for digest in ["HeaderDigest", "DataDigest"] {
                    bed.write(&format!("{target}/{digest}"), "CRC32C,None");
                }
                let group = format!("{groups}/tg{n}");
                bed.write(&format!("{groups}/mgmt"), &format!("create tg{n}"));
                bed.write(&format!("{group}/mgmt"), &format!("add {iqn}"));
                bed.write(&format!("{group}/group_id"), &n.to_string());
            }
            bed.write(&format!("{target}/enabled"), "1");
        }
        bed.state(2, "nonoptimized");
        bed.write("targets/iscsi/enabled", "1");
        bed
    }

    fn write(&self, path: &str, value: &str) {
        let written = self.tree.write(path, value.as_bytes());
        written.unwrap_or_else(|e| panic!("{value:?} to {path}: {e}"));
    }

    /// Sets the ALUA state of a path.
    fn state(&self, path: usize, state: &str) {
        let file = format!("device_groups/dg/target_groups/tg{path}/state");
        self.write(&file, state);
    }

    /// Lets no session in by a path, and ends those that are there.
    fn close(&self, path: usize) {
        let target = format!("targets/iscsi/{}", TARGETS[path - 1]);
        self.write(&format!("{target}/enabled"), "0");
        let sessions = format!("{target}/sessions");
        for session in self.tree.list(&sessions).expect("sessions") {
            self.write(&format!("{sessions}/{}/force_close", session.name), "1");
        }
    }

    fn open(&self, path: usize) {
        let target = format!("targets/iscsi/{}", TARGETS[path - 1]);
        self.write(&format!("{target}/enabled"), "1");
    }

    /// A write of somebody who has not registered.
    fn stranger_writes(&self) -> u8 {
        let options = OpenOptions::normal(TARGETS[2]).initiator(3);
        let mut s = Session::open(self.server.portal(), &options).expect("login");
        s.clear_ua(0).expect("TEST UNIT READY");
        let write = Command::write(0, scsi::write16(0, 1), vec![0; 512]);
        let status = s.scsi(&write).expect("an answer").status;
        s.close().expect("logout");
        status
    }
}

/// Attributes of the tree are words.
const SECRET_WORD: &str = "twelve-or-more";
const OUT_SECRET_WORD: &str = "another-dozen";

fn step(guest: &mut Guest, what: &str, act: impl FnOnce()) {
    guest.expect(what, STEP);
    act();
    guest.go_on();
    guest.expect(&format!("survived {what}"), STEP);
}

#[test]
fn linux_takes_the_other_path_and_sees_alua_and_reservations() {
    if is_short() {
        return;
    }
    let Some(kit) = kit() else { return };
    let bed = TwoPaths::start();
    let [one, two, _] = TARGETS;
    let config = format!(
        "IQN1={one}\nIQN2={two}\nPORTAL={HOST}:{}\nCHAP_USER={USER}\nCHAP_SECRET='{SECRET_WORD}'\n\
         OUT_USER={OUT_USER}\nOUT_SECRET='{OUT_SECRET_WORD}'\nMIB=16\nISCSID_CONF=\n",
        bed.server.portal().port(),
    );
    let mut guest = kit.boot(include_str!("../data/guest/two_paths"), &config);
    guest.expect("alua", STEP);
    guest.expect("reserved", STEP);
    assert_eq!(bed.stranger_writes(), status::RESERVATION_CONFLICT);
    guest.go_on();
    guest.expect("written", STEP);
    step(&mut guest, "exchange", || {
        bed.state(1, "standby");
        bed.state(2, "active");
    });
    step(&mut guest, "down", || {
        bed.state(1, "active");
        bed.close(2);
    });
    step(&mut guest, "up", || bed.open(2));
    guest.expect("done", STEP);
    assert_eq!(bed.stranger_writes(), status::GOOD, "it is cleared");
}
