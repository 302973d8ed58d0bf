//! The configuration changes a thousand times while initiators work on a LUN that stays.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use scst_tests::rng::stamped_blocks;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::scsi::{self, status};
use scst_tests::{Command, OpenOptions, Session};

const IQN: &str = "iqn.2026-01.org.example:load";
/// Blocks of one command, and of the part of the disk that one initiator uses.
const BLOCKS: u32 = 64;
const PART: u64 = 8192;

/// Rounds of changes; `SCST_RECONFIGURE_ROUNDS` says otherwise.
fn rounds() -> u64 {
    std::env::var("SCST_RECONFIGURE_ROUNDS").map_or(40, |n| n.parse().expect("a number"))
}

/// A command that succeeds, if need be after unit attentions.
fn good(s: &mut Session, command: &Command) -> Vec<u8> {
    // Each change of the LUNs may tell once.
    for _ in 0..1000 {
        let reply = s.scsi(command).expect("an answer");
        if reply.is_good() {
            return reply.good();
        }
        assert_eq!(reply.status, status::CHECK_CONDITION, "{reply}");
        assert_eq!(reply.sense_code().0, 6, "{reply}");
    }
    panic!("unit attentions without end");
}

/// Writes and reads back until it is told to stop; how often it did.
fn work(addr: SocketAddr, n: u32, stop: &AtomicBool, count: &AtomicU64) {
    let options = OpenOptions::normal(IQN).initiator(n);
    let mut s = Session::open(addr, &options).expect("login");
    let mut seed = 0;
    while !stop.load(Ordering::SeqCst) {
        seed += 1;
        let lba = u64::from(n) * PART + (seed * u64::from(BLOCKS)) % PART;
        let data = stamped_blocks(lba, u64::from(BLOCKS), seed);
        good(
            &mut s,
            &Command::write(0, scsi::write16(lba, BLOCKS), data.clone()),
        );
        let len = u32::try_from(data.len()).expect("a short command");
        let back = good(&mut s, &Command::read(0, scsi::read16(lba, BLOCKS), len));
        assert!(back == data, "LBA {lba}, round {seed}");
        count.fetch_add(1, Ordering::SeqCst);
    }
    s.assert_clean();
    s.close().expect("logout");
}

/// Whoever ends, by a failed assertion too, lets the others end.
struct StopAll<'a>(&'a AtomicBool);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn one_round(tree: &Client, round: u64, file: &std::path::Path) {
    let write = |path: &str, value: &str| {
        let written = tree.write(path, value.as_bytes());
        written.unwrap_or_else(|e| panic!("round {round}: {value:?} to {path}: {e}"));
    };
    let target = format!("targets/iscsi/{IQN}");
    let (luns, groups) = (
        format!("{target}/luns/mgmt"),
        format!("{target}/ini_groups"),
    );
    let nullio = "handlers/vdisk_nullio/mgmt";
    let fileio = "handlers/vdisk_fileio/mgmt";
    write(nullio, "add_device n1");
    write(
        fileio,
        &format!("add_device f1 filename={}", file.display()),
    );
    write(&luns, "add n1 1");
    write(&luns, "add f1 2 read_only=1");
    write(&luns, "replace f1 1");
    write(&luns, "replace_no_ua n1 1");
    write(&format!("{groups}/mgmt"), "create g1");
    write(&format!("{groups}/g1/luns/mgmt"), "add n1 7");
    write(
        &format!("{groups}/g1/initiators/mgmt"),
        "add iqn.2026-01.org.example:nobody*",
    );
    write(&format!("{groups}/mgmt"), "create g2");
    write(
        &format!("{groups}/g1/initiators/mgmt"),
        "move iqn.2026-01.org.example:nobody* g2",
    );
    write(
        &format!("{groups}/g1/initiators/mgmt"),
        "add iqn.2026-01.org.example:no-one",
    );
    write("devices/f1/block", "1");
    write("devices/f1/block", "0");
    write("devices/f1/block", &format!("11 round {round}"));
    write("devices/f1/block", "0");
    let size = (1 + round % 7) << 20;
    let grown = File::options()
        .write(true)
        .open(file)
        .and_then(|f| f.set_len(size));
    grown.expect("another size");
    write("devices/f1/resync_size", "1");
    write(&format!("{groups}/g1/initiators/mgmt"), "clear");
    write(&format!("{groups}/mgmt"), "del g1");
    write(&format!("{groups}/mgmt"), "del g2");
    write(&luns, "del 2");
    // The device goes with a LUN.
    write(fileio, "del_device f1");
    write(nullio, "del_device n1");
    assert_eq!(
        tree.list(&format!("{target}/luns")).expect("a list").len(),
        2
    );
}

#[test]
fn reconfiguration_disturbs_no_other_lun() {
    let server = RunServer::start(&RunOptions::default());
    let (stays, comes) = (server.dir.join("stays.img"), server.dir.join("comes.img"));
    File::create(&stays).unwrap().set_len(64 << 20).unwrap();
    File::create(&comes).unwrap().set_len(1 << 20).unwrap();
    let tree = Client::connect(&server.control()).unwrap();
    let set = |path: &str, value: &str| tree.write(path, value.as_bytes()).unwrap();
    let add = format!("add_device f0 filename={}", stays.display());
    set("handlers/vdisk_fileio/mgmt", &add);
    set("targets/iscsi/mgmt", &format!("add_target {IQN}"));
    set(&format!("targets/iscsi/{IQN}/luns/mgmt"), "add f0 0");
    set(&format!("targets/iscsi/{IQN}/enabled"), "1");
    set("targets/iscsi/enabled", "1");

    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let addr = server.portal();
    thread::scope(|scope| {
        for n in 1..=2 {
            let (stop, count) = (&stop, &count);
            scope.spawn(move || {
                let _stop = StopAll(stop);
                work(addr, n, stop, count);
            });
        }
        let churn = scope.spawn(|| {
            for round in 0..rounds() {
                let before = count.load(Ordering::SeqCst);
                one_round(&tree, round, &comes);
                // Work goes on between the changes, however slow the machine.
                while count.load(Ordering::SeqCst) == before && !stop.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            }
        });
        let churned = churn.join();
        stop.store(true, Ordering::SeqCst);
        churned.expect("all changes succeed");
    });
    assert!(count.into_inner() >= rounds());
}
