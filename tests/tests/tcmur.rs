//! Handler plug-ins of tcmu-runner as Debian ships them, and a faulty one of our own, behind the wire.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use rustix::process::Signal;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::scsi::{self, status};
use scst_tests::session::tmf;
use scst_tests::tools::{find, missing_in_ci, require, require_qemu_img, run};
use scst_tests::{Command, OpenOptions, Reply, Rng, Server, ServerOptions, Session};

const LIMIT: Duration = Duration::from_secs(300);
const BLOCK: usize = 512;

/// Whether tcmu-runner's plug-ins are here, and the server under test is ours.
fn ready() -> bool {
    if Server::is_external() {
        return false;
    }
    if find("tcmu-runner").is_none() {
        missing_in_ci("tcmu-runner not installed");
        return false;
    }
    true
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn scsi_cmd(s: &mut Session, command: &Command) -> Reply {
    s.scsi(command).unwrap()
}

// ---- qcow ----

#[test]
fn a_qcow2_image_with_a_backing_file_is_written_and_stays_sound() {
    let (true, Some(qemu)) = (ready(), require_qemu_img()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let img = |args: &[&str]| {
        println!("qemu-img {}", args.join(" "));
        run(&qemu, args, LIMIT).success()
    };
    let mut rng = Rng::from_env(7);
    // Below: random data, zeros and text, compressed. Above: an overlay that the initiator writes to.
    let len = 24 << 20;
    let mut expected = rng.bytes(len);
    expected[4 << 20..8 << 20].fill(0);
    expected[8 << 20..16 << 20].fill(b'x');
    fs::write(at("base.raw"), &expected).unwrap();
    let (base, overlay, plain) = (at("base.qcow2"), at("a.qcow2"), at("b.qcow2"));
    let raw = at("base.raw");
    img(&[
        "convert",
        "-q",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        text(&raw),
        text(&base),
    ]);
    let over = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(&base),
        "-F",
        "qcow2",
        text(&overlay),
    ];
    img(&over);
    img(&["create", "-q", "-f", "qcow2", text(&plain), "24M"]);
    let lun = |path: &Path| format!("/dev/tcmur/qcow/{}", text(path));
    let server = Server::start(&ServerOptions::lun(lun(&overlay)).and(lun(&plain)));
    let mut s = server.session(1);
    let (blocks, block) = s.capacity(server.lun(0)).unwrap();
    assert_eq!((blocks * u64::from(block), block), (len as u64, 512));
    s.expect_blocks(server.lun(0), 0, &expected[..1 << 20]);
    s.expect_blocks(server.lun(0), (7 << 20) / 512, &expected[7 << 20..9 << 20]);
    for n in 0..60 {
        let blocks = if n % 8 == 0 {
            1 + rng.below(2048)
        } else {
            1 + rng.below(64)
        };
        let lba = rng.below((len / BLOCK) as u64 - blocks);
        let data = rng.bytes(blocks as usize * BLOCK);
        if n % 5 == 0 {
            let fua = Command::write(
                server.lun(0),
                scsi::write16_fua(lba, blocks as u32),
                data.clone(),
            );
            scsi_cmd(&mut s, &fua).good();
        } else {
            s.write_blocks(server.lun(0), lba, &data).unwrap();
        }
        let start = lba as usize * BLOCK;
        expected[start..start + data.len()].copy_from_slice(&data);
        s.expect_blocks(server.lun(0), lba, &data);
    }
    scsi_cmd(
        &mut s,
        &Command::new(server.lun(0), scsi::synchronize_cache10()),
    )
    .good();
    // The other one by a foreign initiator.
    let now = at("now.raw");
    fs::write(&now, &expected).unwrap();
    let url = server.url(1);
    img(&[
        "convert",
        "-q",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        text(&now),
        &url,
    ]);
    s.assert_clean();
    drop(s);
    assert!(server.stop().success());
    for image in [&overlay, &plain] {
        img(&["check", "-f", "qcow2", text(image)]);
        img(&[
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            text(&now),
            text(image),
        ]);
    }
    // What lies below was not touched.
    img(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        text(&raw),
        text(&base),
    ]);
    // And all is there at the next start.
    let server = Server::start(&ServerOptions::lun(lun(&overlay)));
    let mut s = server.session(1);
    s.expect_blocks(server.lun(0), 0, &expected[..4 << 20]);
}

// ---- zoned disk ----

const ZONE: u64 = 2048;
const CONVENTIONAL: u64 = 2;
const MAX_OPEN: u64 = 4;
/// Zone conditions (ZBC-2 table 13).
mod cond {
    pub(super) const NOT_WP: u8 = 0;
    pub(super) const EMPTY: u8 = 1;
    pub(super) const IMPLICITLY_OPEN: u8 = 2;
    pub(super) const EXPLICITLY_OPEN: u8 = 3;
    pub(super) const CLOSED: u8 = 4;
    pub(super) const FULL: u8 = 14;
}
/// ZBC OUT service actions.
mod zone {
    pub(super) const CLOSE: u8 = 1;
    pub(super) const FINISH: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const RESET: u8 = 4;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zone {
    kind: u8,
    cond: u8,
    len: u64,
    start: u64,
    wp: u64,
}

fn report_zones_cdb(lba: u64, len: u32, options: u8) -> Vec<u8> {
    let mut cdb = vec![0x95, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&len.to_be_bytes());
    cdb.extend_from_slice(&[options, 0]);
    cdb
}

fn zones(s: &mut Session, lun: u16, lba: u64, options: u8) -> Vec<Zone> {
    let data = scsi_cmd(
        s,
        &Command::read(lun, report_zones_cdb(lba, 8192, options), 8192),
    )
    .good();
    let be = |at: usize, n: usize| {
        data[at..at + n]
            .iter()
            .fold(0, |v, b| v << 8 | u64::from(*b))
    };
    assert_eq!(be(8, 8), 16 * ZONE - 1, "maximum LBA");
    let n = be(0, 4) as usize / 64;
    (1..=n)
        .map(|i| i * 64)
        .map(|at| Zone {
            kind: data[at] & 0xF,
            cond: data[at + 1] >> 4,
            len: be(at + 8, 8),
            start: be(at + 16, 8),
            wp: be(at + 24, 8),
        })
        .collect()
}

fn one(s: &mut Session, lun: u16, n: u64) -> Zone {
    zones(s, lun, n * ZONE, 0)[0]
}

fn zbc_out(s: &mut Session, lun: u16, action: u8, n: u64) -> Reply {
    let mut cdb = vec![0x94, action];
    cdb.extend_from_slice(&(n * ZONE).to_be_bytes());
    cdb.extend_from_slice(&[0; 6]);
    scsi_cmd(s, &Command::new(lun, cdb))
}

fn write(s: &mut Session, lun: u16, lba: u64, blocks: u32, byte: u8) -> Reply {
    let data = vec![byte; blocks as usize * BLOCK];
    scsi_cmd(s, &Command::write(lun, scsi::write16(lba, blocks), data))
}

fn read(s: &mut Session, lun: u16, lba: u64, blocks: u32) -> Reply {
    let len = blocks * BLOCK as u32;
    scsi_cmd(s, &Command::read(lun, scsi::read16(lba, blocks), len))
}

fn zoned(dir: &Path) -> ServerOptions {
    let path = dir.join("zoned.img");
    let shape = format!("model-HM/zsize-1/conv-{CONVENTIONAL}/open-{MAX_OPEN}");
    ServerOptions::lun(format!("/dev/tcmur/zbc/{shape}@{}?size=16M", text(&path)))
}

#[test]
fn a_zoned_disk_is_what_it_says() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&zoned(dir.path()));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let inquiry = scsi_cmd(&mut s, &Command::read(lun, scsi::inquiry(96), 96)).good();
    assert_eq!(inquiry[0], 0x14, "host-managed zoned block device");
    let page = scsi_cmd(&mut s, &Command::read(lun, scsi::inquiry_vpd(0xB6, 64), 64)).good();
    assert_eq!(page[1], 0xB6, "zoned block device characteristics");
    assert_eq!(
        page[16..20],
        (MAX_OPEN as u32).to_be_bytes(),
        "most open zones"
    );
    assert_eq!(s.capacity(lun).unwrap(), (16 * ZONE, 512));
    // READ CAPACITY(10), which the handler does not know.
    let mut cdb = vec![0x25];
    cdb.extend_from_slice(&[0; 9]);
    let short = scsi_cmd(&mut s, &Command::read(lun, cdb, 8)).good();
    assert_eq!(short[..4], (16 * ZONE as u32 - 1).to_be_bytes());
    // Unknown codes are unknown, not more.
    for code in [0x83u8, 0x9C, 0xC1] {
        let mut cdb = vec![code];
        cdb.resize(16, 0);
        let reply = scsi_cmd(&mut s, &Command::read(lun, cdb, 64));
        assert_eq!(reply.sense_code().0, 5, "{code:#x}: {reply}");
    }
    s.assert_clean();
}

#[test]
fn zones_are_reported_and_managed() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&zoned(dir.path()));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let all = zones(&mut s, lun, 0, 0);
    assert_eq!(all.len(), 16);
    for (n, z) in (0..).zip(&all) {
        let conventional = n < CONVENTIONAL;
        assert_eq!((z.start, z.len), (n * ZONE, ZONE));
        assert_eq!(z.kind, if conventional { 1 } else { 2 });
        assert_eq!(
            z.cond,
            if conventional {
                cond::NOT_WP
            } else {
                cond::EMPTY
            }
        );
        assert!(conventional || z.wp == z.start);
    }
    // A short answer has as many as fit, and says how many there are.
    let reply = scsi_cmd(
        &mut s,
        &Command::read(lun, report_zones_cdb(0, 192, 0), 192),
    )
    .good();
    assert_eq!(reply.len(), 192);
    assert_eq!(reply[..4], (16u32 * 64).to_be_bytes());
    let end = scsi_cmd(
        &mut s,
        &Command::read(lun, report_zones_cdb(16 * ZONE, 64, 0), 64),
    );
    assert_eq!(end.sense_code(), (5, 0x21, 0));
    let wrong = scsi_cmd(
        &mut s,
        &Command::read(lun, report_zones_cdb(0, 64, 0x2F), 64),
    );
    assert_eq!(wrong.sense_code(), (5, 0x24, 0));

    assert!(zbc_out(&mut s, lun, zone::OPEN, 5).is_good());
    assert_eq!(one(&mut s, lun, 5).cond, cond::EXPLICITLY_OPEN);
    write(&mut s, lun, 5 * ZONE, 8, 1).good();
    assert!(zbc_out(&mut s, lun, zone::CLOSE, 5).is_good());
    let closed = one(&mut s, lun, 5);
    assert_eq!((closed.cond, closed.wp), (cond::CLOSED, 5 * ZONE + 8));
    assert!(zbc_out(&mut s, lun, zone::FINISH, 5).is_good());
    assert_eq!(one(&mut s, lun, 5).cond, cond::FULL);
    // Only the full one.
    let full: Vec<_> = zones(&mut s, lun, 0, 5).iter().map(|z| z.start).collect();
    assert_eq!(full, [5 * ZONE]);
    assert!(zbc_out(&mut s, lun, zone::RESET, 5).is_good());
    let reset = one(&mut s, lun, 5);
    assert_eq!((reset.cond, reset.wp), (cond::EMPTY, 5 * ZONE));
    // A conventional zone cannot be opened, nor can there be more open zones than the disk has resources for.
    assert_eq!(zbc_out(&mut s, lun, zone::OPEN, 0).sense_code().0, 5);
    for n in 4..4 + MAX_OPEN {
        assert!(zbc_out(&mut s, lun, zone::OPEN, n).is_good());
    }
    let most = zbc_out(&mut s, lun, zone::OPEN, 12);
    assert_eq!(
        most.sense_code(),
        (7, 0x55, 0x0E),
        "INSUFFICIENT ZONE RESOURCES"
    );
    s.assert_clean();
}

#[test]
fn zones_are_written_in_sequence_only() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&zoned(dir.path()));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let start = 3 * ZONE;
    // Conventional zones take anything.
    write(&mut s, lun, 100, 16, 7).good();
    // In sequence, by PDUs of all kinds of sizes.
    write(&mut s, lun, start, 16, 1).good();
    assert_eq!(one(&mut s, lun, 3).cond, cond::IMPLICITLY_OPEN);
    write(&mut s, lun, start + 16, 1000, 2).good();
    let again = write(&mut s, lun, start, 16, 3);
    assert_eq!(again.sense_code(), (5, 0x21, 4), "UNALIGNED WRITE COMMAND");
    let ahead = write(&mut s, lun, start + 1100, 16, 3);
    assert_eq!(ahead.sense_code(), (5, 0x21, 4));
    let across = write(&mut s, lun, start + 1016, 2000, 3);
    assert_eq!(
        across.sense_code(),
        (5, 0x21, 5),
        "WRITE BOUNDARY VIOLATION"
    );
    assert_eq!(one(&mut s, lun, 3).wp, start + 1016);
    s.expect_blocks(lun, start, &[1; 16 * BLOCK]);
    s.expect_blocks(lun, start + 16, &[2; 1000 * BLOCK]);
    // Beyond the write pointer there are zeros; across kinds of zones nothing is read.
    let beyond = read(&mut s, lun, start + 1010, 16).good();
    assert!(beyond[..6 * BLOCK] == [2; 6 * BLOCK] && beyond[6 * BLOCK..] == [0; 10 * BLOCK]);
    let across = read(&mut s, lun, CONVENTIONAL * ZONE - 8, 16);
    assert_eq!(
        across.sense_code(),
        (5, 0x21, 6),
        "ATTEMPT TO READ INVALID DATA"
    );
    write(&mut s, lun, start + 1016, 1032, 4).good();
    assert_eq!(one(&mut s, lun, 3).cond, cond::FULL);
    let outside = write(&mut s, lun, 16 * ZONE, 1, 0);
    assert_eq!(outside.sense_code(), (5, 0x21, 0));
    // Less data than the CDB says is not written.
    let mut short = Command::write(lun, scsi::write16(4 * ZONE, 8), vec![9; 2 * BLOCK]);
    short.expected_len = Some(2 * BLOCK as u32);
    let short = scsi_cmd(&mut s, &short);
    assert_eq!(short.sense_code(), (5, 0x24, 0), "{short}");
    assert_eq!(one(&mut s, lun, 4).cond, cond::EMPTY);
    s.assert_clean();
    drop(s);
    // The disk is there again, not formatted anew, though the path tells how to make one.
    assert!(server.stop().success());
    let server = Server::start(&zoned(dir.path()));
    let mut s = server.session(1);
    assert_eq!(one(&mut s, server.lun(0), 3).cond, cond::FULL);
    s.expect_blocks(server.lun(0), start + 16, &[2; 1000 * BLOCK]);
    s.expect_blocks(server.lun(0), 100, &[7; 16 * BLOCK]);
}

// ---- optical drive ----

#[test]
fn an_optical_drive_answers_as_one() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disc.img");
    let lun = format!("/dev/tcmur/fbo/{}?size=4M", text(&path));
    let server = Server::start(&ServerOptions::lun(lun));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let inquiry = scsi_cmd(&mut s, &Command::read(lun, scsi::inquiry(96), 96)).good();
    assert_eq!(
        (inquiry[0], inquiry[1] & 0x80),
        (5, 0x80),
        "removable, multimedia"
    );
    let mut cdb = vec![0x25];
    cdb.resize(10, 0);
    let capacity = scsi_cmd(&mut s, &Command::read(lun, cdb, 8)).good();
    assert_eq!(
        capacity,
        [0, 0, 7, 0xFF, 0, 0, 8, 0],
        "2048 blocks of 2048 bytes"
    );
    // GET CONFIGURATION: a list of features. GET EVENT STATUS NOTIFICATION, READ DISC INFORMATION.
    let config = scsi_cmd(
        &mut s,
        &Command::read(lun, vec![0x46, 0, 0, 0, 0, 0, 0, 1, 0, 0], 256),
    )
    .good();
    assert!(config.len() > 8, "{config:?}");
    let event = vec![0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    assert!(scsi_cmd(&mut s, &Command::read(lun, event, 8)).is_good());
    let disc = scsi_cmd(
        &mut s,
        &Command::read(lun, vec![0x51, 0, 0, 0, 0, 0, 0, 0, 34, 0], 34),
    );
    assert!(disc.is_good(), "{disc}");
    let data: Vec<u8> = (0..8192u32).map(|i| (i / 7) as u8).collect();
    let out = Command::write(lun, scsi::write10(10, 4), data.clone());
    scsi_cmd(&mut s, &out).good();
    scsi_cmd(&mut s, &Command::new(lun, scsi::synchronize_cache10())).good();
    let back = scsi_cmd(&mut s, &Command::read(lun, scsi::read10(10, 4), 8192)).good();
    assert!(back == data, "other data than was written");
    let end = scsi_cmd(&mut s, &Command::read(lun, scsi::read10(2047, 2), 4096));
    assert_eq!(end.sense_code(), (5, 0x21, 0));
    s.assert_clean();
    drop(s);
    assert!(server.stop().success());
    assert_eq!(fs::read(&path).unwrap()[20480..28672], data);
}

// ---- a handler of our own ----

/// Builds `handler_fault.so` (or another of `backstores`' C sources) into `dir`.
fn build(source: &str, dir: &Path) -> Option<PathBuf> {
    require(["cc"])?;
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backstores");
    let source = top.join(source);
    let name = format!("{}.so", source.file_stem()?.to_str()?);
    let out = process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-I"])
        .arg(top.join("abi"))
        .arg("-o")
        .arg(dir.join(name))
        .arg(&source)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    Some(dir.to_owned())
}

fn faulty(dir: &Path, lun: &str) -> ServerOptions {
    ServerOptions::lun(lun).arg("--handler-dir").arg(text(dir))
}

#[test]
fn faults_of_a_handler_become_sense_data() {
    let dir = tempfile::tempdir().unwrap();
    if Server::is_external() || build("tests/c/handler_fault.c", dir.path()).is_none() {
        return;
    }
    let server = Server::start(&faulty(dir.path(), "/dev/tcmur/fault/x?size=1M&timeout=1"));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let code = |r: Reply| (r.status, r.sense_code());
    let check = status::CHECK_CONDITION;
    // Block: what reads and writes that begin there end in.
    for (block, on_read, on_write) in [
        (8, (3, 0x11, 0), (3, 0x03, 0)),
        (16, (4, 0x44, 0), (4, 0x44, 0)),
        (64, (2, 0x04, 0x0B), (2, 0x04, 0x0B)),
        (32, (4, 0x3E, 2), (4, 0x3E, 2)),
    ] {
        assert_eq!(
            code(read(&mut s, lun, block, 1)),
            (check, on_read),
            "{block}"
        );
        assert_eq!(
            code(write(&mut s, lun, block, 1, 1)),
            (check, on_write),
            "{block}"
        );
    }
    assert_eq!(read(&mut s, lun, 72, 1).status, status::BUSY);
    // Completed twice, and once more by the return value; strangers are completed.
    for block in [24, 56, 96, 48, 0] {
        write(&mut s, lun, block, 1, 5).good();
        s.expect_blocks(lun, block, &[5; BLOCK]);
    }
    // What was kept is given back.
    read(&mut s, lun, 40, 1).good();
    s.assert_clean();
    drop(s);
    assert!(server.stop().success());
}

#[test]
fn slow_io_can_be_aborted() {
    let dir = tempfile::tempdir().unwrap();
    if Server::is_external() || build("tests/c/handler_fault.c", dir.path()).is_none() {
        return;
    }
    let server = Server::start(&faulty(dir.path(), "/dev/tcmur/fault/x?size=1M"));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let slow = |s: &mut Session| {
        s.submit(&Command::write(lun, scsi::write16(48, 1), vec![6; BLOCK]))
            .unwrap()
    };
    let victims: Vec<u32> = (0..4).map(|_| slow(&mut s)).collect();
    assert_eq!(
        s.tmf(tmf::ABORT_TASK, lun, Some(victims[0])).unwrap(),
        tmf::COMPLETE
    );
    for tag in &victims[1..] {
        assert!(s.wait_scsi(*tag).unwrap().is_good());
    }
    let _ = slow(&mut s);
    assert_eq!(
        s.tmf(tmf::LOGICAL_UNIT_RESET, lun, None).unwrap(),
        tmf::COMPLETE
    );
    s.clear_ua(lun).unwrap();
    s.expect_blocks(lun, 0, &[0; BLOCK]);
    // A session that goes away in the middle.
    let _ = slow(&mut s);
    s.kill();
    let mut s = server.session(2);
    s.clear_ua(lun).unwrap();
    s.expect_blocks(lun, 48, &[6; BLOCK]);
    drop(s);
    assert!(server.stop().success());
}

/// FUA, SYNCHRONIZE CACHE and START STOP UNIT reach the handler's flush before their GOOD is sent, and in the right order.
#[test]
fn durable_commands_reach_the_handler_before_good() {
    let dir = tempfile::tempdir().unwrap();
    if Server::is_external() || build("tests/c/handler_fault.c", dir.path()).is_none() {
        return;
    }
    let server = Server::start(&faulty(dir.path(), "/dev/tcmur/fault/x?size=1M"));
    let (mut s, lun) = (server.session(1), server.lun(0));
    let counters = |s: &mut Session| {
        let data = read(s, lun, 104, 1).good();
        let at = |i: usize| u64::from_ne_bytes(data[8 * i..8 * i + 8].try_into().unwrap());
        // Flushes; when the last one and the last write came.
        (at(4), at(6), at(5))
    };
    let before = counters(&mut s);
    write(&mut s, lun, 0, 1, 1).good();
    assert_eq!(counters(&mut s).0, before.0, "a plain write needs no flush");
    let fua = Command::write(lun, scsi::write16_fua(0, 1), vec![2; BLOCK]);
    scsi_cmd(&mut s, &fua).good();
    let after = counters(&mut s);
    assert_eq!(after.0, before.0 + 1);
    assert!(after.1 > after.2, "flushed before it was written");
    scsi_cmd(&mut s, &Command::new(lun, scsi::synchronize_cache10())).good();
    assert_eq!(counters(&mut s).0, before.0 + 2);
    s.assert_clean();
    drop(s);
    let mut server = server;
    server.signal(Signal::TERM);
    assert!(server.wait_end().success());
    // The log comes by a pipe.
    let end = Instant::now() + LIMIT;
    while !server.stderr().contains("destroyed") {
        assert!(Instant::now() < end, "{}", server.stderr());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_cannot_be_served_is_one_line() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    if build("examples/handler_sample.c", dir.path()).is_none() {
        return;
    }
    let fails = |options: &ServerOptions, words: &str| {
        let out = scst_tests::tools::run_command(&mut options.command(), LIMIT);
        assert_ne!(out.code, Some(0));
        assert!(out.stderr.contains(words), "{words}: {}", out.stderr);
    };
    let lun = |path: &str| faulty(dir.path(), path);
    fails(
        &lun("/dev/tcmur/nosuch/x"),
        "no tcmu-runner handler \"nosuch\", only sample",
    );
    fails(&lun("/dev/tcmur/sample"), "want /dev/tcmur/KIND/WHAT");
    fails(&lun("/dev/tcmur/sample/x"), "size=BYTES");
    let twice = lun("/dev/tcmur/sample/x?size=1M").and("/dev/tcmur/sample/x?size=1M");
    fails(&twice, "is LUN 0 already");
    let nowhere = ServerOptions::lun("1M")
        .arg("--handler-dir")
        .arg("/no/such/folder");
    fails(&nowhere, "--handler-dir");
}

// ---- the full server ----

#[test]
fn management_makes_such_devices() {
    let (true, Some(qemu)) = (ready(), require_qemu_img()) else {
        return;
    };
    let mut server = RunServer::start(&RunOptions::default());
    let tree = Client::connect(&server.control()).unwrap();
    let set = |path: &str, value: &str| {
        let written = tree.write(path, value.as_bytes());
        written.unwrap_or_else(|e| panic!("{value:?} to {path}: {e}"));
    };
    let get = |path: &str| String::from_utf8(tree.read(path).unwrap()).unwrap();
    let (image, disk) = (server.dir.join("a.qcow2"), server.dir.join("z.img"));
    let create = ["create", "-q", "-f", "qcow2", text(&image), "8M"];
    run(&qemu, &create, LIMIT).success();
    let iqn = "iqn.2026-01.org.example:tcmur";
    let filename = format!("/dev/tcmur/qcow/{}", text(&image));
    let zoned = format!("/dev/tcmur/zbc/zsize-1@{}?size=8M", text(&disk));
    let (blockio, tcmur) = ("handlers/vdisk_blockio/mgmt", "handlers/tcmur/mgmt");
    assert!(get(tcmur).contains("filename, read_only"));
    // Each handler refuses what is the other's.
    let swapped = [(blockio, &zoned), (tcmur, &filename)];
    for (mgmt, path) in swapped {
        let add = format!("add_device no filename={path}");
        assert!(tree.write(mgmt, add.as_bytes()).is_err(), "{add}");
    }
    set(blockio, &format!("add_device q1 filename={filename}"));
    set(tcmur, &format!("add_device z1 filename={zoned}"));
    assert_eq!(get("devices/z1/filename"), format!("{zoned}\n[key]\n"));
    assert_eq!(get("devices/z1/size_mb"), "8\n");
    assert_eq!(
        get("devices/q1/filename").trim(),
        format!("{filename}\n[key]")
    );
    set("targets/iscsi/mgmt", &format!("add_target {iqn}"));
    set(&format!("targets/iscsi/{iqn}/luns/mgmt"), "add q1 0");
    set(&format!("targets/iscsi/{iqn}/luns/mgmt"), "add z1 1");
    set(&format!("targets/iscsi/{iqn}/enabled"), "1");
    set("targets/iscsi/enabled", "1");
    let mut s = Session::open(server.portal(), &OpenOptions::normal(iqn)).unwrap();
    s.clear_ua(0).unwrap();
    s.clear_ua(1).unwrap();
    s.write_blocks(0, 100, &[3; 64 * BLOCK]).unwrap();
    let inquiry = scsi_cmd(&mut s, &Command::read(1, scsi::inquiry(36), 36)).good();
    assert_eq!(inquiry[0], 0x14);
    s.close().unwrap();
    // Removed and made again.
    set(&format!("targets/iscsi/{iqn}/luns/mgmt"), "clear");
    set(tcmur, "del_device z1");
    set(blockio, "del_device q1");
    set(blockio, &format!("add_device q1 filename={filename}"));
    set(
        tcmur,
        &format!("add_device z1 filename={zoned};read_only=1"),
    );
    set(&format!("targets/iscsi/{iqn}/luns/mgmt"), "add q1 0");
    set(&format!("targets/iscsi/{iqn}/luns/mgmt"), "add z1 1");
    let mut s = Session::open(server.portal(), &OpenOptions::normal(iqn)).unwrap();
    s.clear_ua(0).unwrap();
    s.clear_ua(1).unwrap();
    s.expect_blocks(0, 100, &[3; 64 * BLOCK]);
    assert_eq!(write(&mut s, 1, 0, 1, 1).sense_code(), (7, 0, 0));
    s.close().unwrap();
    assert!(server.stop().success());
    run(&qemu, &["check", "-f", "qcow2", text(&image)], LIMIT).success();
}

#[test]
fn scst_conf_names_such_devices() {
    let (true, Some(qemu)) = (ready(), require_qemu_img()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (dir.path().join("a.qcow2"), dir.path().join("z.img"));
    let create = ["create", "-q", "-f", "qcow2", text(&image), "8M"];
    run(&qemu, &create, LIMIT).success();
    let iqn = "iqn.2026-01.org.example:conf";
    let conf = format!(
        "HANDLER vdisk_blockio {{
    DEVICE q1 {{
        filename /dev/tcmur/qcow/{}
    }}
    DEVICE m1 {{
        filename /dev/ram/m1?size=4M
    }}
}}
HANDLER tcmur {{
    DEVICE z1 {{
        filename /dev/tcmur/zbc/zsize-1@{}?size=8M
    }}
}}
TARGET_DRIVER iscsi {{
    enabled 1
    TARGET {iqn} {{
        LUN 0 q1
        LUN 1 z1
        LUN 2 m1
        enabled 1
    }}
}}
",
        text(&image),
        text(&disk)
    );
    let path = dir.path().join("scst.conf");
    fs::write(&path, conf).unwrap();
    let mut server = RunServer::start(&RunOptions {
        more: vec!["--config".to_owned(), text(&path).to_owned()],
        ..RunOptions::default()
    });
    let mut s = Session::open(server.portal(), &OpenOptions::normal(iqn)).unwrap();
    for lun in 0..3 {
        s.clear_ua(lun).unwrap();
    }
    for (lun, blocks) in [(0, 8 << 11), (1, 8 << 11), (2, 4 << 11)] {
        assert_eq!(s.capacity(lun).unwrap(), (blocks, 512), "LUN {lun}");
    }
    for lun in [0, 2] {
        s.write_blocks(lun, 100, &[5; 64 * BLOCK]).unwrap();
        s.expect_blocks(lun, 100, &[5; 64 * BLOCK]);
    }
    s.close().unwrap();
    assert!(server.stop().success());
    run(&qemu, &["check", "-f", "qcow2", text(&image)], LIMIT).success();
}
