//! What is under a LUN fails: the file is cut, deleted, read-only, on a full file system, its I/O fails or is slow. The
//! initiator gets the right sense, and nothing that was acknowledged is lost.

use std::fs;
use std::path::Path;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use scst_tests::faultfs::FaultFs;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::scsi;
use scst_tests::server::io_uring_works;
use scst_tests::session::tmf;
use scst_tests::tools::{missing_in_ci, require, run};
use scst_tests::{Command, OpenOptions, Reply, Server, ServerOptions, Session};

const BLOCK: usize = 512;
/// MEDIUM ERROR, unrecovered read error; write error.
const READ_ERROR: (u8, u8, u8) = (3, 0x11, 0);
const WRITE_ERROR: (u8, u8, u8) = (3, 0x03, 0);
/// DATA PROTECT, write protected; space allocation failed.
const PROTECTED: (u8, u8, u8) = (7, 0x27, 0);
const NO_SPACE: (u8, u8, u8) = (7, 0x27, 7);
/// As host errnos.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const ESTALE: i32 = 116;

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn write(s: &mut Session, lun: u16, lba: u64, data: &[u8]) -> Reply {
    let cdb = scsi::write16(lba, (data.len() / BLOCK) as u32);
    s.scsi(&Command::write(lun, cdb, data.to_vec())).unwrap()
}

fn write_fua(s: &mut Session, lun: u16, lba: u64, data: &[u8]) -> Reply {
    let cdb = scsi::write16_fua(lba, (data.len() / BLOCK) as u32);
    s.scsi(&Command::write(lun, cdb, data.to_vec())).unwrap()
}

fn read(s: &mut Session, lun: u16, lba: u64, blocks: u32) -> Reply {
    let len = blocks * BLOCK as u32;
    s.scsi(&Command::read(lun, scsi::read16(lba, blocks), len))
        .unwrap()
}

fn flush(s: &mut Session, lun: u16) -> Reply {
    s.scsi(&Command::new(lun, scsi::synchronize_cache10()))
        .unwrap()
}

fn image(dir: &Path, len: u64) -> std::path::PathBuf {
    let path = dir.join("disk.img");
    fs::File::create(&path).unwrap().set_len(len).unwrap();
    path
}

/// A file of 1 MiB that fails on demand.
fn plain(dir: &Path) -> Option<(FaultFs, ServerOptions)> {
    let fault = FaultFs::new(dir, 1 << 20)?;
    let mut options = ServerOptions::file(&fault.disk());
    options.wrapper = fault.wrapper();
    Some((fault, options))
}

/// A qcow2 image of 1 MiB in a file that fails on demand.
fn qcow(dir: &Path) -> Option<(FaultFs, ServerOptions)> {
    let [qemu, _] = require(["qemu-img", "tcmu-runner"])?;
    let fault = FaultFs::new(dir, 0)?;
    let data = fault.data();
    let create = ["create", "-q", "-f", "qcow2", text(&data), "1M"];
    run(&qemu, &create, LIMIT).success();
    let mut options = ServerOptions::lun(format!("/dev/tcmur/qcow/{}", text(&fault.disk())));
    options.wrapper = fault.wrapper();
    Some((fault, options))
}

#[test]
fn a_file_that_is_cut() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 8 << 20);
    let mut server = Server::start_own(&ServerOptions::file(&path));
    let (mut s, lun) = (server.session(1), server.lun(0));
    for lba in (0..16384).step_by(2048) {
        write_fua(&mut s, lun, lba, &[7; 2048 * BLOCK]).good();
    }
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    s.expect_blocks(lun, 0, &[7; 2048 * BLOCK]);
    for lba in [2047, 2048, 16000] {
        let reply = read(&mut s, lun, lba, 8);
        assert_eq!(reply.sense_code(), READ_ERROR, "{lba}: {reply}");
    }
    // The device has the size that it had. What is written is there again.
    assert_eq!(s.capacity(lun).unwrap().0, 16384);
    write_fua(&mut s, lun, 16376, &[8; 8 * BLOCK]).good();
    s.expect_blocks(lun, 16376, &[8; 8 * BLOCK]);
    flush(&mut s, lun).good();
    drop(s);
    server.restart();
    let mut s = server.session(1);
    s.expect_blocks(lun, 16376, &[8; 8 * BLOCK]);
    s.assert_clean();
}

#[test]
fn a_file_that_is_deleted() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let server = Server::start_own(&ServerOptions::file(&path));
    let (mut s, lun) = (server.session(1), server.lun(0));
    write_fua(&mut s, lun, 0, &[1; BLOCK]).good();
    fs::remove_file(&path).unwrap();
    // The server has it open: it goes on, as for any program.
    s.expect_blocks(lun, 0, &[1; BLOCK]);
    write_fua(&mut s, lun, 8, &[2; BLOCK]).good();
    s.expect_blocks(lun, 8, &[2; BLOCK]);
    drop(s);
    assert!(server.stop().success());
    let again = Server::try_start(&ServerOptions::file(&path)).unwrap_err();
    assert!(again.contains("no such file"), "{again}");
}

/// A server on a tmpfs of 1 MiB, with a sparse file of 4 MiB there. `None`: no name spaces here.
fn on_a_small_fs(dir: &Path, lun: &str, prepare: &str) -> Option<Server> {
    let [unshare, sh] = require(["unshare", "sh"])?;
    let probe = run(&unshare, &["--map-root-user", "--mount", "true"], LIMIT);
    if probe.code != Some(0) {
        missing_in_ci("no name spaces");
        return None;
    }
    let script =
        format!("mount -t tmpfs -o size=1M none \"$0\" && cd \"$0\" && {prepare} && exec \"$@\"");
    let words = [
        text(&unshare),
        "--map-root-user",
        "--mount",
        text(&sh),
        "-c",
        &script,
        text(dir),
    ];
    let mut options = ServerOptions::lun(lun);
    options.wrapper = words.map(str::to_owned).into();
    Some(Server::start_own(&options))
}

const LIMIT: Duration = Duration::from_secs(60);

/// What any disk on a full file system does. `step`: blocks of one write.
fn fill_up(server: &Server, step: u64) {
    let (mut s, lun) = (server.session(1), server.lun(0));
    let byte = |lba: u64| vec![(lba / step + 1) as u8; step as usize * BLOCK];
    let mut end = 0;
    let full = loop {
        let reply = if end % (2 * step) == 0 {
            write(&mut s, lun, end, &byte(end))
        } else {
            write_fua(&mut s, lun, end, &byte(end))
        };
        if !reply.is_good() {
            break reply;
        }
        end += step;
        assert!(end < 8192, "there is no room for that");
    };
    assert_eq!(full.sense_code(), NO_SPACE, "{full}");
    assert!(end > 512, "full at {end}");
    // What was acknowledged is there, can be overwritten, and flushed.
    flush(&mut s, lun).good();
    for lba in (0..end).step_by(step as usize) {
        s.expect_blocks(lun, lba, &byte(lba));
    }
    write_fua(&mut s, lun, 0, &byte(0)).good();
    // Room that comes back is used.
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
    unmap.extend(0u64.to_be_bytes());
    unmap.extend((end as u32).to_be_bytes());
    unmap.extend([0; 4]);
    let cdb = vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    s.scsi(&Command::write(lun, cdb, unmap)).unwrap().good();
    write_fua(&mut s, lun, end, &byte(end)).good();
    s.expect_blocks(lun, end, &byte(end));
    s.assert_clean();
}

#[test]
fn a_full_file_system() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let make = "truncate -s 4M disk.img";
    let Some(server) = on_a_small_fs(dir.path(), text(&path), make) else {
        return;
    };
    fill_up(&server, 64);
    assert!(server.stop().success());
}

/// The engines for file I/O that are here.
fn engines() -> impl Iterator<Item = &'static str> {
    let all = ["threads", "uring", "aio"];
    all.into_iter()
        .filter(|e| !Server::is_external() && (*e != "uring" || io_uring_works()))
}

/// Runs `test` with each engine, on a file of 1 MiB that fails on demand.
fn with_each_engine(test: impl Fn(&ServerOptions, &FaultFs)) {
    for engine in engines() {
        println!("engine {engine}");
        let dir = tempfile::tempdir().unwrap();
        let Some((fault, options)) = plain(dir.path()) else {
            return;
        };
        test(&options.arg("--engine").arg(engine), &fault);
    }
}

#[test]
fn io_errors_of_a_file() {
    with_each_engine(io_errors);
}

fn io_errors(options: &ServerOptions, fault: &FaultFs) {
    let server = Server::start_own(options);
    let (mut s, lun) = (server.session(1), server.lun(0));
    write_fua(&mut s, lun, 0, &[1; 8 * BLOCK]).good();
    for (errno, on_read, on_write) in [
        (EIO, READ_ERROR, WRITE_ERROR),
        (ESTALE, READ_ERROR, WRITE_ERROR),
        (ENOSPC, READ_ERROR, NO_SPACE),
        (EROFS, READ_ERROR, PROTECTED),
    ] {
        fault.fail(&format!("read={errno} write={errno}"));
        assert_eq!(read(&mut s, lun, 0, 8).sense_code(), on_read, "{errno}");
        let data = [2; 8 * BLOCK];
        assert_eq!(
            write(&mut s, lun, 0, &data).sense_code(),
            on_write,
            "{errno}"
        );
        if errno != EIO {
            let durable = write_fua(&mut s, lun, 8, &data);
            assert_eq!(durable.sense_code(), on_write, "{errno}");
        }
        fault.fail("");
        // Nothing was written, nothing is broken for good.
        s.expect_blocks(lun, 0, &[1; 8 * BLOCK]);
        flush(&mut s, lun).good();
    }
    write_fua(&mut s, lun, 0, &[3; 8 * BLOCK]).good();
    s.expect_blocks(lun, 0, &[3; 8 * BLOCK]);
    s.assert_clean();
}

/// The host tells a failed write-back once. The device tells it until it is opened again.
fn lost_write_back(options: &ServerOptions, fault: &FaultFs) {
    let mut server = Server::start_own(options);
    let (mut s, lun) = (server.session(1), server.lun(0));
    write(&mut s, lun, 0, &[1; 8 * BLOCK]).good();
    flush(&mut s, lun).good();
    fault.fail(&format!("fsync={EIO}"));
    write(&mut s, lun, 0, &[2; 8 * BLOCK]).good();
    assert_eq!(flush(&mut s, lun).sense_code(), WRITE_ERROR);
    fault.fail("");
    for _ in 0..3 {
        assert_eq!(flush(&mut s, lun).sense_code(), WRITE_ERROR);
    }
    // What is there can be read; writes are taken.
    s.expect_blocks(lun, 0, &[2; 8 * BLOCK]);
    write(&mut s, lun, 8, &[3; 8 * BLOCK]).good();
    assert_eq!(flush(&mut s, lun).sense_code(), WRITE_ERROR);
    // The log comes by a pipe.
    let end = Instant::now() + LIMIT;
    while !server.stderr().contains("data may be lost") {
        assert!(Instant::now() < end, "{}", server.stderr());
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(s);
    server.restart();
    let mut s = server.session(1);
    flush(&mut s, lun).good();
    write_fua(&mut s, lun, 8, &[4; 8 * BLOCK]).good();
    s.assert_clean();
}

#[test]
fn a_failed_flush_is_not_forgotten() {
    with_each_engine(lost_write_back);
}

#[test]
fn nor_is_one_of_a_qcow2_image() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some((fault, options)) = qcow(dir.path()) else {
        return;
    };
    lost_write_back(&options, &fault);
}

/// GOOD for FUA and SYNCHRONIZE CACHE comes after the fsync, which comes after the write: the file system writes down what it
/// has done before it answers.
fn durable_before_good(options: &ServerOptions, fault: &FaultFs) {
    let server = Server::start_own(options);
    let (mut s, lun) = (server.session(1), server.lun(0));
    let is = |line: &String, what: &str| line.starts_with(what);
    // Whether the last write was followed by an fsync.
    let synced = || {
        let log = fault.log();
        let last = log.iter().rposition(|l| is(l, "write")).expect("a write");
        log[last..].iter().any(|l| is(l, "fsync"))
    };
    let syncs = || fault.log().iter().filter(|l| is(l, "fsync")).count();
    // Whatever the store has to make on the first write is made.
    write_fua(&mut s, lun, 0, &[1; 8 * BLOCK]).good();
    for n in 0..50 {
        write_fua(&mut s, lun, n * 8, &[n as u8; 8 * BLOCK]).good();
        assert!(synced(), "FUA write {n}: {:?}", fault.log());
        write(&mut s, lun, n * 8, &[n as u8; 8 * BLOCK]).good();
        flush(&mut s, lun).good();
        assert!(synced(), "flush {n}: {:?}", fault.log());
    }
    let before = syncs();
    assert!(before >= 100, "{before}");
    write(&mut s, lun, 0, &[1; 8 * BLOCK]).good();
    assert_eq!(syncs(), before, "a plain write needs none");
    s.assert_clean();
}

#[test]
fn durable_writes_reach_the_file_system_before_good() {
    with_each_engine(durable_before_good);
}

#[test]
fn so_they_do_by_handler_qcow() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some((fault, options)) = qcow(dir.path()) else {
        return;
    };
    durable_before_good(&options, &fault);
}

#[test]
fn slow_io_and_aborts() {
    const SLOW: Duration = Duration::from_secs(5);
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some((fault, options)) = plain(dir.path()) else {
        return;
    };
    let server = Server::start_own(&options);
    let (mut s, lun) = (server.session(1), server.lun(0));
    s.wire.timeout = LIMIT;
    write_fua(&mut s, lun, 0, &[1; 64 * BLOCK]).good();
    fault.fail(&format!("slow={}", SLOW.as_millis()));
    let start = Instant::now();
    let put = |s: &mut Session, lba: u64, byte: u8| {
        let data = vec![byte; 8 * BLOCK];
        s.submit(&Command::write(lun, scsi::write16_fua(lba, 8), data))
            .unwrap()
    };
    // The file system does one write after the other.
    let tags: Vec<u32> = (0..2).map(|n| put(&mut s, n * 8, 2)).collect();
    let abort = s.tmf(tmf::ABORT_TASK, lun, Some(tags[0])).unwrap();
    assert_eq!(abort, tmf::COMPLETE);
    for tag in &tags[1..] {
        s.wait_scsi(*tag).unwrap().good();
    }
    assert!(start.elapsed() >= SLOW);
    // Acknowledged: there. Aborted: the old data or the new.
    fault.fail("");
    s.expect_blocks(lun, 8, &[2; 8 * BLOCK]);
    let aborted = read(&mut s, lun, 0, 8).good();
    assert!([1, 2].iter().any(|b| aborted == vec![*b; 8 * BLOCK]));
    // Reset with more of them: the response comes when none can change the disk any more.
    fault.fail("slow=1000");
    for n in 0..4 {
        put(&mut s, n * 8, 3);
    }
    let reset = s.tmf(tmf::LOGICAL_UNIT_RESET, lun, None).unwrap();
    assert_eq!(reset, tmf::COMPLETE);
    fault.fail("");
    s.clear_ua(lun).unwrap();
    write_fua(&mut s, lun, 0, &[4; 64 * BLOCK]).good();
    std::thread::sleep(Duration::from_millis(200));
    s.expect_blocks(lun, 0, &[4; 64 * BLOCK]);
    s.assert_clean();
}

/// A file that is mapped into memory: cut, on a full file system, and what was written through the mapping.
#[test]
fn a_mapped_file_that_is_cut_is_no_sigbus() {
    if Server::is_external() {
        return;
    }
    let mut server = RunServer::start(&RunOptions::default());
    let path = image(&server.dir, 1 << 20);
    let tree = Client::connect(&server.control()).unwrap();
    let set = |path: &str, value: &str| {
        let written = tree.write(path, value.as_bytes());
        written.unwrap_or_else(|e| panic!("{value:?} to {path}: {e}"));
    };
    let iqn = "iqn.2026-01.org.example:mmap";
    let add = "add_device m1 filename=/dev/mmap/";
    let blockio = "handlers/vdisk_blockio/mgmt";
    set(blockio, &format!("{add}{}", text(&path)));
    set(blockio, "add_device r1 filename=/dev/ram/one?size=2M");
    set("targets/iscsi/mgmt", &format!("add_target {iqn}"));
    set(&format!("targets/iscsi/{iqn}/luns/mgmt"), "add m1 0");
    set(&format!("targets/iscsi/{iqn}/luns/mgmt"), "add r1 1");
    set(&format!("targets/iscsi/{iqn}/enabled"), "1");
    set("targets/iscsi/enabled", "1");
    let mut s = Session::open(server.portal(), &OpenOptions::normal(iqn)).unwrap();
    for lun in [0, 1] {
        s.clear_ua(lun).unwrap();
        write_fua(&mut s, lun, 0, &[9; 2048 * BLOCK]).good();
    }
    assert!(fs::read(&path).unwrap() == vec![9; 1 << 20]);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(256 * BLOCK as u64).unwrap();
    s.expect_blocks(0, 0, &[9; 256 * BLOCK]);
    // Whole or in part behind the new end: never half a reply.
    for (lba, blocks) in [(256, 8), (2040, 8), (0, 2048), (255, 2)] {
        let reply = read(&mut s, 0, lba, blocks);
        assert_eq!(reply.sense_code(), READ_ERROR, "{lba}: {reply}");
        assert!(reply.data_in.is_empty(), "{} bytes", reply.data_in.len());
        let data = vec![1; blocks as usize * BLOCK];
        let reply = write(&mut s, 0, lba.max(256), &data[..BLOCK]);
        assert_eq!(reply.sense_code(), WRITE_ERROR, "{lba}: {reply}");
        let reply = write_fua(&mut s, 0, lba.max(256), &data[..BLOCK]);
        assert_eq!(reply.sense_code(), WRITE_ERROR, "{lba}: {reply}");
    }
    // Deleted: as for a plain file. The other LUN never noticed.
    fs::remove_file(&path).unwrap();
    s.expect_blocks(0, 0, &[9; 256 * BLOCK]);
    s.expect_blocks(1, 0, &[9; 2048 * BLOCK]);
    s.assert_clean();
    s.close().unwrap();
    assert!(server.stop().success());
}

#[test]
fn a_read_only_file() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    // On a read-only file system; root writes to files of any mode.
    let Some([unshare, sh]) = require(["unshare", "sh"]) else {
        return;
    };
    let probe = Process::new(&unshare)
        .args(["--map-root-user", "--mount", "true"])
        .status();
    if !probe.is_ok_and(|s| s.success()) {
        return missing_in_ci("no name spaces");
    }
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && exec \"$@\"";
    let words = [
        text(&unshare),
        "--map-root-user",
        "--mount",
        text(&sh),
        "-c",
        script,
        text(dir.path()),
    ];
    let mut options = ServerOptions::file(&path);
    options.wrapper = words.map(str::to_owned).into();
    let refused = Server::try_start(&options).unwrap_err();
    assert!(refused.contains("cannot be read and written"), "{refused}");
    let server = Server::start_own(&options.arg("--read-only"));
    let (mut s, lun) = (server.session(1), server.lun(0));
    s.expect_blocks(lun, 0, &[0; 8 * BLOCK]);
    assert_eq!(write(&mut s, lun, 0, &[1; BLOCK]).sense_code().0, 7);
    s.assert_clean();
}
