//! A RADOS block device behind the wire: handler_rbd as Debian ships it, and a small Ceph of our own on loopback (one monitor,
//! one OSD that keeps its data in memory). With `SCST_RBD_BENCH` set, its speed is compared with that of `rbd bench`.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use rustix::process::{Pid, Signal, kill_process};
use scst_tests::kills::{LUN_BYTES, outlive_kills};
use scst_tests::rng::Rng;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::scsi;
use scst_tests::tools::{require, run};
use scst_tests::{Command, OpenOptions, Server, ServerOptions, Session};

const LIMIT: Duration = Duration::from_secs(120);
const IMAGE_MIB: usize = 32;

struct Ceph {
    dir: tempfile::TempDir,
    tools: [PathBuf; 5],
    mon: Child,
    osd: Option<Child>,
}

impl Ceph {
    /// Starts a cluster with a pool `p`. `None`: Ceph is not installed.
    fn start() -> Option<Self> {
        let names = ["ceph-mon", "ceph-osd", "ceph", "rbd", "monmaptool"];
        let tools = require(names)?;
        require(["tcmu-runner"])?;
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let uuid = || {
            fs::read_to_string("/proc/sys/kernel/random/uuid")
                .unwrap()
                .trim()
                .to_owned()
        };
        let (fsid, osd) = (uuid(), uuid());
        fs::create_dir(dir.path().join("mon")).unwrap();
        fs::create_dir(dir.path().join("osd")).unwrap();
        fs::write(
            dir.path().join("ceph.conf"),
            config(dir.path(), &fsid, port),
        )
        .unwrap();
        let addr = format!("[v1:127.0.0.1:{port}]");
        let map = dir.path().join("monmap");
        let map = map.to_str().unwrap();
        let args = ["--create", "--fsid", &fsid, "--addv", "a", &addr, map];
        run(&tools[4], &args, LIMIT).success();
        let conf = dir.path().join("ceph.conf");
        let conf = conf.to_str().unwrap();
        run(
            &tools[0],
            &["-c", conf, "--mkfs", "-i", "a", "--monmap", map],
            LIMIT,
        )
        .success();
        let mon = daemon(&tools[0], &["-c", conf, "-i", "a", "-f"]);
        let mut ceph = Self {
            dir,
            tools,
            mon,
            osd: None,
        };
        ceph.ceph(&["osd", "new", &osd]);
        let place = ["osd.0", "1", "root=default", "host=h"];
        ceph.ceph(&[&["osd", "crush", "add"][..], &place[..]].concat());
        let mkfs = ["-c", conf, "-i", "0", "--mkfs", "--osd-uuid", &osd];
        run(&ceph.tools[1], &mkfs, LIMIT).success();
        ceph.start_osd();
        ceph.ceph(&["osd", "pool", "create", "p", "8", "8"]);
        ceph.rbd(&["pool", "init", "p"]);
        Some(ceph)
    }

    fn conf(&self) -> String {
        self.dir
            .path()
            .join("ceph.conf")
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn ceph(&self, args: &[&str]) -> String {
        let conf = self.conf();
        run(&self.tools[2], &[&["-c", &conf], args].concat(), LIMIT).success()
    }

    fn rbd(&self, args: &[&str]) -> String {
        let conf = self.conf();
        run(&self.tools[3], &[&["-c", &conf], args].concat(), LIMIT).success()
    }

    fn start_osd(&mut self) {
        self.osd = Some(daemon(
            &self.tools[1],
            &["-c", &self.conf(), "-i", "0", "-f"],
        ));
    }

    fn signal_osd(&self, signal: Signal) {
        let pid = self.osd.as_ref().expect("the OSD runs").id();
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    /// Ends the OSD in a way that it keeps its data.
    fn stop_osd(&mut self) {
        self.signal_osd(Signal::TERM);
        self.osd.take().expect("the OSD runs").wait().unwrap();
    }

    fn lun(&self, image: &str) -> String {
        format!("/dev/tcmur/rbd/p/{image};conf={}", self.conf())
    }

    /// What is in an image, by Ceph's own tool.
    fn content(&self, image: &str) -> Vec<u8> {
        let path = self.dir.path().join("export");
        let _ = fs::remove_file(&path);
        self.rbd(&["export", &format!("p/{image}"), path.to_str().unwrap()]);
        fs::read(path).unwrap()
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        for child in self.osd.iter_mut().chain([&mut self.mon]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in ["mon.a", "osd.0"] {
                let log = self.dir.path().join(format!("{name}.log"));
                let text = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let last = &lines[lines.len().saturating_sub(60)..];
                println!("{name}:\n{}", last.join("\n"));
            }
        }
    }
}

/// A port that is free now, and most likely still when the monitor comes to it: not one that the system gives to those who
/// connect, as tools do before the monitor listens.
fn free_port() -> u16 {
    let first = 10_000 + (std::process::id() % 20_000) as u16;
    (first..32_000)
        .find(|p| TcpListener::bind(("127.0.0.1", *p)).is_ok())
        .expect("a free port")
}

fn daemon(program: &Path, args: &[&str]) -> Child {
    let mut command = Process::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

fn config(dir: &Path, fsid: &str, port: u16) -> String {
    let dir = dir.to_str().unwrap();
    format!(
        "[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 536870912
osd fast shutdown = false
mon allow pool size one = true
mon data avail crit = 0
mon data = {dir}/mon
osd data = {dir}/osd
run dir = {dir}
admin socket = {dir}/$name.$pid.asok
log file = {dir}/$name.log
pid file = {dir}/$name.pid
# An OSD that gives commands before it was told the cluster's id is refused, and ends.
osd crush update on start = false
osd class update on start = false
"
    )
}

/// Sends a write until it is not refused with BUSY, which is what comes while the cluster cannot be reached for long.
fn insist(s: &mut Session, write: &Command) {
    let end = Instant::now() + LIMIT;
    loop {
        let reply = s.scsi(write).unwrap();
        if reply.status != scsi::status::BUSY || Instant::now() > end {
            reply.good();
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Writes at random places, and into `expected`; every tenth write durably.
fn scribble(s: &mut Session, lun: u16, rng: &mut Rng, expected: &mut [u8], n: u32) {
    for i in 0..n {
        let blocks = 1 + rng.below(256);
        let lba = rng.below(expected.len() as u64 / 512 - blocks);
        let data = rng.bytes(blocks as usize * 512);
        let cdb = if i % 10 == 0 {
            scsi::write16_fua(lba, blocks as u32)
        } else {
            scsi::write16(lba, blocks as u32)
        };
        insist(s, &Command::write(lun, cdb, data.clone()));
        let at = lba as usize * 512;
        expected[at..at + data.len()].copy_from_slice(&data);
    }
}

#[test]
fn an_image_is_served_written_and_kept_through_outages() {
    if Server::is_external() {
        return;
    }
    let Some(mut ceph) = Ceph::start() else {
        return;
    };
    ceph.rbd(&["create", "p/i", "--size", &format!("{IMAGE_MIB}M")]);
    let server = Server::start(&ServerOptions::lun(ceph.lun("i")));
    let (mut s, lun) = (server.session(1), server.lun(0));
    s.wire.timeout = LIMIT;
    assert_eq!(s.capacity(lun).unwrap(), ((IMAGE_MIB as u64) << 11, 512));
    let mut rng = Rng::from_env(3);
    let mut expected = vec![0; IMAGE_MIB << 20];
    scribble(&mut s, lun, &mut rng, &mut expected, 100);
    s.expect_blocks(lun, 0, &expected[..4 << 20]);
    // A snapshot has what was there then.
    s.scsi(&Command::new(lun, scsi::synchronize_cache10()))
        .unwrap()
        .good();
    ceph.rbd(&["snap", "create", "p/i@then"]);
    let then = expected.clone();
    scribble(&mut s, lun, &mut rng, &mut expected, 50);
    // Zeros by WRITE SAME, one whole object of them.
    let same = Command::write(lun, scsi::write_same16(8192, 8192), vec![0; 512]);
    s.scsi(&same).unwrap().good();
    expected[4 << 20..8 << 20].fill(0);
    s.expect_blocks(lun, 8192, &expected[4 << 20..6 << 20]);

    // The OSD does not answer for a while: commands wait.
    ceph.signal_osd(Signal::STOP);
    let data = rng.bytes(64 << 10);
    let start = Instant::now();
    let tag = s
        .submit(&Command::write(lun, scsi::write16(100, 128), data.clone()))
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    ceph.signal_osd(Signal::CONT);
    assert!(s.wait_scsi(tag).unwrap().is_good());
    println!("waited {:?} for an OSD that stood still", start.elapsed());
    expected[100 * 512..228 * 512].copy_from_slice(&data);
    // It goes away and comes back, while there is I/O.
    let data = rng.bytes(64 << 10);
    ceph.stop_osd();
    let write = Command::write(lun, scsi::write16(5000, 128), data.clone());
    let tag = s.submit(&write).unwrap();
    ceph.start_osd();
    let reply = s.wait_scsi(tag).unwrap();
    assert!(
        reply.is_good() || reply.status == scsi::status::BUSY,
        "{reply}"
    );
    insist(&mut s, &write);
    expected[5000 * 512..5128 * 512].copy_from_slice(&data);
    scribble(&mut s, lun, &mut rng, &mut expected, 20);
    s.assert_clean();
    drop(s);
    assert!(server.stop().success());
    assert!(ceph.content("i") == expected, "the image has other data");
    assert!(
        ceph.content("i@then") == then,
        "the snapshot has other data"
    );

    resize(&ceph);
    take_over(&ceph);
    kills(&ceph);
    if std::env::var_os("SCST_RBD_BENCH").is_some() {
        bench(&ceph);
    }
    // What is not there is said at the start.
    let out = run_serve(&ceph.lun("none"));
    assert!(out.contains("cannot be opened"), "{out}");
    let wrong = format!("{}?size=1M", ceph.lun("i"));
    assert!(run_serve(&wrong).contains("cannot be opened"));
}

const IQN: &str = "iqn.2026-01.org.example:ceph";

/// A server whose LUN 0 is an image, in a target group of this ALUA state.
struct Served {
    server: RunServer,
    tree: Client,
}

impl Served {
    fn start(filename: &str, id: u16, state: &str) -> Self {
        let server = RunServer::start(&RunOptions::default());
        let tree = Client::connect(&server.control()).unwrap();
        let me = Self { server, tree };
        let (group, target) = ("device_groups/g", format!("targets/iscsi/{IQN}"));
        let add = format!("add_device r1 filename={filename}");
        me.set("handlers/vdisk_blockio/mgmt", &add);
        me.set("targets/iscsi/mgmt", &format!("add_target {IQN}"));
        me.set(&format!("{target}/rel_tgt_id"), &id.to_string());
        me.set(&format!("{target}/luns/mgmt"), "add r1 0");
        me.set("device_groups/mgmt", "create g");
        me.set(&format!("{group}/devices/mgmt"), "add r1");
        me.set(&format!("{group}/target_groups/mgmt"), "create t");
        me.set(
            &format!("{group}/target_groups/t/group_id"),
            &id.to_string(),
        );
        me.set(
            &format!("{group}/target_groups/t/mgmt"),
            &format!("add {IQN}"),
        );
        me.alua(state);
        me.set(&format!("{target}/enabled"), "1");
        me.set("targets/iscsi/enabled", "1");
        me
    }

    fn set(&self, path: &str, value: &str) {
        let written = self.tree.write(path, value.as_bytes());
        written.unwrap_or_else(|e| panic!("{value:?} to {path}: {e}"));
    }

    fn alua(&self, state: &str) {
        self.set("device_groups/g/target_groups/t/state", state);
    }

    fn session(&self) -> Session {
        let mut s = Session::open(self.server.portal(), &OpenOptions::normal(IQN)).unwrap();
        s.wire.timeout = LIMIT;
        s.clear_ua(0).unwrap();
        s
    }

    fn stop(mut self) {
        assert!(self.server.stop().success());
    }
}

/// An image that grows while it is served: initiators are told when management has looked.
fn resize(ceph: &Ceph) {
    let filename = format!("/dev/tcmur/rbd/p/i?conf={}", ceph.conf());
    let path = Served::start(&filename, 1, "active");
    let mut s = path.session();
    let mib = IMAGE_MIB as u64;
    assert_eq!(s.capacity(0).unwrap().0, mib << 11);
    ceph.rbd(&["resize", "p/i", "--size", &format!("{}M", 2 * mib)]);
    path.set("devices/r1/resync_size", "1");
    // By an asynchronous message, as SCST does it.
    assert_eq!(s.capacity(0).unwrap().0, mib << 12);
    let end = Instant::now() + LIMIT;
    while s.asyncs.is_empty() && Instant::now() < end {
        s.scsi(&Command::new(0, scsi::test_unit_ready())).unwrap();
    }
    // Event 0: sense data, after its length.
    let told = &s.asyncs[0];
    let sense = scsi::sense_code(&told.data[2..]);
    assert_eq!(
        (told.event, sense),
        (0, (6, 0x2A, 9)),
        "CAPACITY DATA HAS CHANGED"
    );
    let last = (mib << 12) - 8;
    s.write_blocks(0, last, &[5; 8 * 512]).unwrap();
    s.expect_blocks(0, last, &[5; 8 * 512]);
    s.close().unwrap();
    path.stop();
}

/// Two servers have an image. The second takes over from one that stands still in the middle of a write, which must not
/// reach the image any more; then the first takes it back.
fn take_over(ceph: &Ceph) {
    const STANDBY: (u8, u8, u8) = (2, 4, 0x0B);
    ceph.rbd(&["create", "p/shared", "--size", "16M"]);
    let filename = format!("/dev/tcmur/rbd/p/shared?lock=on&conf={}", ceph.conf());
    let a = Served::start(&filename, 1, "active");
    let b = Served::start(&filename, 2, "standby");
    let (mut sa, mut sb) = (a.session(), b.session());
    let mut rng = Rng::from_env(4);
    let mut expected = vec![0; 16 << 20];
    scribble(&mut sa, 0, &mut rng, &mut expected, 20);
    let write = |byte: u8| Command::write(0, scsi::write16(64, 64), vec![byte; 64 * 512]);
    let refused = sb.scsi(&write(1)).unwrap();
    assert_eq!(refused.sense_code(), STANDBY, "{refused}");

    a.server.signal(Signal::STOP);
    let old = sa.submit(&write(0xAA)).unwrap();
    b.alua("active");
    sb.clear_ua(0).unwrap();
    // Reads need no lock. The first write takes it, and comes back when it is there.
    sb.expect_blocks(0, 0, &expected[..1 << 20]);
    let taking = sb.scsi(&write(0xBB)).unwrap();
    assert_eq!(taking.status, scsi::status::BUSY, "{taking}");
    insist(&mut sb, &write(0xBB));
    expected[64 * 512..128 * 512].fill(0xBB);
    a.server.signal(Signal::CONT);
    // Sent again on this path it would take the lock back.
    let fenced = sa.wait_scsi(old).unwrap();
    assert_eq!(fenced.status, scsi::status::BUSY, "{fenced}");
    sb.expect_blocks(0, 64, &[0xBB; 64 * 512]);
    scribble(&mut sb, 0, &mut rng, &mut expected, 20);

    // Back: what B still sends is refused, what A reads is what B wrote.
    insist(&mut sa, &write(0xCC));
    expected[64 * 512..128 * 512].fill(0xCC);
    let fenced = sb.scsi(&write(0xDD)).unwrap();
    assert_eq!(fenced.status, scsi::status::BUSY, "{fenced}");
    sa.expect_blocks(0, 0, &expected[..4 << 20]);
    scribble(&mut sa, 0, &mut rng, &mut expected, 20);
    for s in [sa, sb] {
        s.close().unwrap();
    }
    a.stop();
    b.stop();
    assert!(
        ceph.content("shared") == expected,
        "the image has other data"
    );
}

/// Blocks of 4 KiB at random, 32 at once: through the server, and by `rbd bench`, in turns.
fn bench(ceph: &Ceph) {
    const OPS: u64 = 8192;
    ceph.rbd(&["create", "p/b", "--size", "64M"]);
    let fill = [
        "bench",
        "p/b",
        "--io-type",
        "write",
        "--io-size",
        "4M",
        "--io-total",
        "64M",
    ];
    ceph.rbd(&fill);
    let server = Server::start_own(&ServerOptions::lun(ceph.lun("b")));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let mut rng = Rng::new(9);
    for round in 1..=7 {
        for kind in ["read", "write"] {
            let start = Instant::now();
            let mut tags = std::collections::VecDeque::new();
            for _ in 0..OPS {
                if tags.len() == 32 {
                    s.wait_scsi(tags.pop_front().unwrap()).unwrap().good();
                }
                let lba = rng.below(16384) * 8;
                let command = match kind {
                    "read" => Command::read(lun, scsi::read16(lba, 8), 4096),
                    _ => Command::write(lun, scsi::write16(lba, 8), vec![round; 4096]),
                };
                tags.push_back(s.submit(&command).unwrap());
            }
            for tag in tags {
                s.wait_scsi(tag).unwrap().good();
            }
            let ours = OPS as f64 / start.elapsed().as_secs_f64();
            let total = (OPS * 4096).to_string();
            let args = ["bench", "p/b", "--io-type", kind, "--io-size", "4096"];
            let more = [
                "--io-threads",
                "32",
                "--io-pattern",
                "rand",
                "--io-total",
                &total,
            ];
            // handler_rbd turns librbd's cache off.
            let cache = ["--rbd-cache", "false"];
            let out = ceph.rbd(&[&cache[..], &args[..], &more[..]].concat());
            let last = out.lines().find(|l| l.contains("elapsed")).unwrap_or(&out);
            println!("{round}: {kind}: ours {ours:.0}/s; rbd bench: {last}");
        }
    }
}

/// A server that is killed while it is written to. Without an exclusive lock, as who comes after the dead waits for it.
fn kills(ceph: &Ceph) {
    let size = (LUN_BYTES >> 20).to_string();
    ceph.rbd(&[
        "create",
        "p/k",
        "--image-feature",
        "layering",
        "--size",
        &size,
    ]);
    outlive_kills(&ServerOptions::lun(ceph.lun("k")));
}

/// The standard error of a server that must not start.
fn run_serve(lun: &str) -> String {
    let mut command = ServerOptions::lun(lun).command();
    let out = scst_tests::tools::run_command(&mut command, LIMIT);
    assert_ne!(out.code, Some(0));
    out.stderr
}
