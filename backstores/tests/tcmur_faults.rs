//! Handlers of our own, built here: the template of `examples/`, and one that does all that a handler should not.
//!
//! One process, one set of handlers: the tests of the faulty one share its counters, so they take turns.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests may use the host's threads, files and programs directly"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use backstores::tcmur;
use kshim::block::{
    Bio, BioOp, BlkMode, BlockDevice, ReqFlags, ScsiDirection, ScsiOutcome, ScsiRequest,
    dropped_bios, dropped_scsi,
};
use kshim::error::{Result, code};
use kshim::scatterlist::SGTable;
use kshim::time::Delta;

const TOP: &str = env!("CARGO_MANIFEST_DIR");
/// As in `c/handler_fault.c`.
const EIO_BLOCK: u64 = 8;
const GARBAGE_BLOCK: u64 = 16;
const TWICE_BLOCK: u64 = 24;
const NEVER_BLOCK: u64 = 32;
const LATE_BLOCK: u64 = 40;
const SLOW_BLOCK: u64 = 48;
const BOTH_BLOCK: u64 = 56;
const FENCED_BLOCK: u64 = 64;
const BUSY_BLOCK: u64 = 72;
const LOST_BLOCK: u64 = 80;
const HANG_BLOCK: u64 = 88;
const STRAY_BLOCK: u64 = 96;
const COUNTERS_BLOCK: u64 = 104;

fn build(source: &str, into: &Path) {
    let source = Path::new(TOP).join(source);
    let name = source.file_stem().unwrap().to_str().unwrap();
    let out = Command::new("cc")
        .args([
            "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-I",
        ])
        .arg(Path::new(TOP).join("abi"))
        .arg("-o")
        .arg(into.join(format!("{name}.so")))
        .arg(&source)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}

/// Builds the handlers and says where they are, once.
fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let dir: PathBuf = tempfile::tempdir().unwrap().keep();
        build("examples/handler_sample.c", &dir);
        build("tests/c/handler_fault.c", &dir);
        // Not a library at all.
        std::fs::write(dir.join("handler_broken.so"), "nothing").unwrap();
        std::fs::write(dir.join("notes.txt"), "nothing").unwrap();
        tcmur::init(Some(&dir)).unwrap();
        tcmur::handlers();
        std::fs::remove_dir_all(&dir).unwrap();
    });
}

/// The tests that count take turns.
static TURN: Mutex<()> = Mutex::new(());

fn open(path: &str) -> Arc<BlockDevice> {
    BlockDevice::open(path, BlkMode::READ | BlkMode::WRITE).unwrap()
}

fn bio(op: BioOp, block: u64, len: usize) -> Bio {
    let sg = SGTable::alloc_zeroed(len).unwrap();
    Bio::new(op, block, len, Arc::new(|_: Bio, _: Result| {})).with_sg(sg, 0)
}

fn run(bdev: &BlockDevice, op: BioOp, block: u64) -> Result {
    let len = if op == BioOp::Flush { 0 } else { 512 };
    let (back, status) = bdev.submit_bio_wait(bio(op, block, len));
    assert_eq!(back.sg.len(), len, "the data comes back");
    status
}

fn start(bdev: &BlockDevice, op: BioOp, block: u64) -> Receiver<Result> {
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let mut b = bio(op, block, 512);
    b.end_io = Some(Arc::new(move |_: Bio, status: Result| {
        tx.lock().unwrap().send(status).unwrap();
    }));
    bdev.submit_bio(b);
    rx
}

#[derive(Debug)]
struct Counters {
    opens: u64,
    reopens: u64,
    closes: u64,
    writes: u64,
    flushes: u64,
    last_write: u64,
    last_flush: u64,
    locks: u64,
    unlocks: u64,
}

fn counters(bdev: &BlockDevice) -> Counters {
    let (back, status) = bdev.submit_bio_wait(bio(BioOp::Read, COUNTERS_BLOCK, 512));
    assert_eq!(status, Ok(()));
    let mut bytes = [0; 72];
    back.sg.copy_to_slice(0, &mut bytes).unwrap();
    let at = |i: usize| u64::from_ne_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
    Counters {
        opens: at(0),
        reopens: at(1),
        closes: at(2),
        writes: at(3),
        flushes: at(4),
        last_write: at(5),
        last_flush: at(6),
        locks: at(7),
        unlocks: at(8),
    }
}

#[test]
fn the_template_is_a_disk() {
    init();
    let kinds: Vec<_> = tcmur::handlers().into_iter().map(|h| h.subtype).collect();
    assert_eq!(kinds, ["fault", "sample"]);
    let bdev = open("/dev/tcmur/sample/one?size=1M");
    assert_eq!(bdev.capacity_bytes(), 1 << 20);
    let limits = bdev.limits().clone();
    assert!(!limits.write_cache && !limits.rotational && limits.max_discard_bytes > 0);
    // Pieces of odd sizes are copied on their way.
    let mut sg = SGTable::new();
    for len in [100, 924, 4096, 1000, 24] {
        sg.push_alloc(len).unwrap();
    }
    let bytes: Vec<u8> = (0..6144u32).map(|i| (i % 251) as u8).collect();
    sg.copy_from_slice(0, &bytes).unwrap();
    let end = Arc::new(|_: Bio, _: Result| {});
    let write = Bio::new(BioOp::Write, 4, 6144, end.clone()).with_sg(sg, 0);
    assert_eq!(bdev.submit_bio_wait(write).1, Ok(()));
    let mut sg = SGTable::new();
    for len in [3, 6141] {
        sg.push_alloc(len).unwrap();
    }
    let (back, status) = bdev.submit_bio_wait(Bio::new(BioOp::Read, 4, 6144, end).with_sg(sg, 0));
    assert_eq!(status, Ok(()));
    assert_eq!(back.sg.compare(0, &bytes), Ok(None));
    assert_eq!(run(&bdev, BioOp::Discard, 4), Ok(()));
    let (back, _) = bdev.submit_bio_wait(bio(BioOp::Read, 4, 512));
    assert_eq!(back.sg.compare(0, &[0; 512]), Ok(None));
    assert_eq!(run(&bdev, BioOp::Flush, 0), Ok(()));
    // Not in its limits.
    assert_eq!(limits.max_write_zeroes_bytes, 0);
    assert_eq!(run(&bdev, BioOp::WriteZeroes, 0), Err(code::EOPNOTSUPP));
}

#[test]
fn what_cannot_be_opened_says_why() {
    init();
    let open = |path: &str, mode| BlockDevice::open(path, mode).err();
    let rw = BlkMode::READ | BlkMode::WRITE;
    assert_eq!(open("/dev/tcmur/nosuch/x", rw), Some(code::ENXIO));
    assert_eq!(open("/dev/tcmur/sample/x?what=1", rw), Some(code::EINVAL));
    // Without a size.
    assert_eq!(open("/dev/tcmur/sample/x", rw), Some(code::EINVAL));
    // No SCSI commands.
    let pass = rw | BlkMode::PASSTHROUGH;
    assert_eq!(
        open("/dev/tcmur/sample/x?size=1M", pass),
        Some(code::EOPNOTSUPP)
    );
    let first = BlockDevice::open("/dev/tcmur/sample/y?size=1M", rw | BlkMode::EXCL).unwrap();
    assert_eq!(
        open("/dev/tcmur/sample/y?size=1M", rw | BlkMode::EXCL),
        Some(code::EBUSY)
    );
    drop(first);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
    assert_eq!(
        open("/dev/tcmur/sample/y?size=1M", rw | BlkMode::EXCL),
        None
    );
}

#[test]
fn statuses_become_errnos() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bdev = open("/dev/tcmur/fault/status?size=1M");
    for op in [BioOp::Read, BioOp::Write] {
        assert_eq!(run(&bdev, op, EIO_BLOCK), Err(code::EIO));
        assert_eq!(run(&bdev, op, GARBAGE_BLOCK), Err(code::EREMOTEIO));
        assert_eq!(run(&bdev, op, FENCED_BLOCK), Err(code::ENOLINK));
        assert_eq!(run(&bdev, op, BUSY_BLOCK), Err(code::EAGAIN));
        assert_eq!(run(&bdev, op, SLOW_BLOCK), Ok(()));
        // The first word counts.
        assert_eq!(run(&bdev, op, TWICE_BLOCK), Ok(()));
        assert_eq!(run(&bdev, op, BOTH_BLOCK), Ok(()));
        assert_eq!(run(&bdev, op, STRAY_BLOCK), Ok(()));
        assert_eq!(run(&bdev, op, 0), Ok(()));
    }
    assert_eq!((dropped_bios(), dropped_scsi()), (0, 0));
}

#[test]
fn durable_writes_are_flushed_before_they_end() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bdev = open("/dev/tcmur/fault/fua?size=1M");
    assert!(bdev.limits().write_cache);
    let before = counters(&bdev);
    assert_eq!(run(&bdev, BioOp::Write, 1), Ok(()));
    let plain = counters(&bdev);
    assert_eq!(
        (plain.writes, plain.flushes),
        (before.writes + 1, before.flushes)
    );
    let fua = bio(BioOp::Write, 1, 512).with_flags(ReqFlags::FUA);
    assert_eq!(bdev.submit_bio_wait(fua).1, Ok(()));
    let after = counters(&bdev);
    assert_eq!(
        (after.writes, after.flushes),
        (plain.writes + 1, plain.flushes + 1)
    );
    assert!(after.last_flush > after.last_write, "{after:?}");
    let pre = bio(BioOp::Write, 1, 512).with_flags(ReqFlags::PREFLUSH);
    assert_eq!(bdev.submit_bio_wait(pre).1, Ok(()));
    let last = counters(&bdev);
    assert_eq!(last.flushes, after.flushes + 1);
    assert!(last.last_flush < last.last_write, "{last:?}");
    // The data outlives the flushes around it.
    let mut both = bio(BioOp::Write, 1, 512).with_flags(ReqFlags::PREFLUSH | ReqFlags::FUA);
    both.sg.fill(0, 512, 0x77).unwrap();
    let (back, status) = bdev.submit_bio_wait(both);
    assert_eq!(
        (status, back.sg.compare(0, &[0x77; 512])),
        (Ok(()), Ok(None))
    );
    let (back, _) = bdev.submit_bio_wait(bio(BioOp::Read, 1, 512));
    assert_eq!(back.sg.compare(0, &[0x77; 512]), Ok(None));
    let last = counters(&bdev);
    assert_eq!(run(&bdev, BioOp::Flush, 0), Ok(()));
    assert_eq!(counters(&bdev).flushes, last.flushes + 1);
    // A write that failed is not made durable.
    let bad = bio(BioOp::Write, EIO_BLOCK, 512).with_flags(ReqFlags::FUA);
    assert_eq!(bdev.submit_bio_wait(bad).1, Err(code::EIO));
    assert_eq!(counters(&bdev).flushes, last.flushes + 1);
}

#[test]
fn what_never_ends_is_failed_and_does_not_hold_up_others() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bdev = open("/dev/tcmur/fault/never?size=1M&timeout=1");
    let kept: Vec<_> = (0..4)
        .map(|_| start(&bdev, BioOp::Read, NEVER_BLOCK))
        .collect();
    assert_eq!(run(&bdev, BioOp::Read, 0), Ok(()));
    for rx in kept {
        assert_eq!(
            rx.recv_timeout(Duration::from_secs(30)),
            Ok(Err(code::ETIMEDOUT))
        );
    }
    // The plug-in is stuck in a call: what waits behind it is failed too.
    let hung = start(&bdev, BioOp::Write, HANG_BLOCK);
    let behind = start(&bdev, BioOp::Write, 0);
    for rx in [hung, behind] {
        assert_eq!(
            rx.recv_timeout(Duration::from_secs(30)),
            Ok(Err(code::ETIMEDOUT))
        );
    }
    // And when it gives the commands back after all, nothing happens. Only then can it be closed.
    while run(&bdev, BioOp::Read, LATE_BLOCK) == Err(code::ETIMEDOUT) {}
    assert_eq!(run(&bdev, BioOp::Read, 0), Ok(()));
    drop(bdev);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
}

#[test]
fn a_lost_connection_is_opened_again() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bdev = open("/dev/tcmur/fault/lost?size=1M");
    let before = counters(&bdev);
    assert_eq!(run(&bdev, BioOp::Read, LOST_BLOCK), Err(code::EAGAIN));
    while run(&bdev, BioOp::Read, 0) == Err(code::EAGAIN) {
        std::thread::yield_now();
    }
    let after = counters(&bdev);
    assert_eq!(
        (after.opens, after.reopens),
        (before.opens, before.reopens + 1)
    );
    assert_eq!(after.closes, before.closes + 1);
    // Closed while it recovers.
    assert_eq!(run(&bdev, BioOp::Read, LOST_BLOCK), Err(code::EAGAIN));
    drop(bdev);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
    // Others may have it again.
    assert_eq!(
        run(&open("/dev/tcmur/fault/lost?size=1M"), BioOp::Read, 0),
        Ok(())
    );
}

/// Runs what is told to come back until it is not.
fn insist(bdev: &BlockDevice, op: BioOp, block: u64) -> Result {
    loop {
        match run(bdev, op, block) {
            Err(code::EAGAIN) => std::thread::yield_now(),
            end => return end,
        }
    }
}

#[test]
fn a_shared_device_is_written_under_its_lock() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mode = BlkMode::READ | BlkMode::WRITE;
    let no_locks = BlockDevice::open("/dev/tcmur/sample/x?size=1M&lock=on", mode);
    assert_eq!(no_locks.err(), Some(code::EOPNOTSUPP));
    let path = "/dev/tcmur/fault/shared?size=1M&lock=on";
    let bdev = open(path);
    // Reads need no lock.
    let start = counters(&bdev);
    assert_eq!(run(&bdev, BioOp::Flush, 0), Ok(()));
    assert_eq!(start.locks, 0);
    // The first write takes it, here with a new connection, as others had fenced this server.
    assert_eq!(run(&bdev, BioOp::Write, 0), Err(code::EAGAIN));
    assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
    let locked = counters(&bdev);
    assert_eq!((locked.locks, locked.reopens), (2, start.reopens + 1));
    assert_eq!(run(&bdev, BioOp::Write, 1), Ok(()));
    // Lost: whether all was written cannot be said any more; reads come back by another connection, without the lock.
    assert_eq!(run(&bdev, BioOp::Write, FENCED_BLOCK), Err(code::ENOLINK));
    assert_eq!(run(&bdev, BioOp::Flush, 0), Err(code::ENOLINK));
    assert_eq!(run(&bdev, BioOp::Read, 0), Err(code::EAGAIN));
    assert_eq!(insist(&bdev, BioOp::Read, 0), Ok(()));
    let lost = counters(&bdev);
    assert_eq!((lost.locks, lost.reopens), (2, locked.reopens + 1));
    assert_eq!(run(&bdev, BioOp::Write, 0), Err(code::EAGAIN));
    assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
    assert_eq!(counters(&bdev).locks, 3);
    drop(bdev);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
    let bdev = open(path);
    assert_eq!(counters(&bdev).unlocks, 1, "given back at the close");
    // Closed while it takes the lock.
    assert_eq!(run(&bdev, BioOp::Write, 0), Err(code::EAGAIN));
    drop(bdev);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
}

fn scsi(
    bdev: &BlockDevice,
    cdb: &[u8],
    dir: ScsiDirection,
    len: usize,
) -> (ScsiOutcome, ScsiRequest) {
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let end = move |req: ScsiRequest, outcome: ScsiOutcome| {
        tx.lock().unwrap().send((outcome, req)).unwrap();
    };
    let mut sg = SGTable::alloc(len).unwrap();
    sg.fill(0, len, 0xEE).unwrap();
    bdev.submit_scsi(ScsiRequest::new(cdb.to_vec(), Arc::new(end)).with_data(dir, sg, len));
    let end = rx.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(end.1.sg.len(), len, "the data comes back");
    end
}

fn key(outcome: &ScsiOutcome) -> (u8, u8, u8) {
    match outcome {
        ScsiOutcome::Sense(s) => (s[2], s[12], s[13]),
        other => panic!("no sense: {other:?}"),
    }
}

#[test]
fn commands_are_passed_with_the_data_that_they_say() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mode = BlkMode::READ | BlkMode::WRITE | BlkMode::PASSTHROUGH;
    let bdev = BlockDevice::open("/dev/tcmur/fault/scsi?size=1M&timeout=5", mode).unwrap();
    use ScsiDirection::{FromDevice, None, ToDevice};
    assert_eq!(scsi(&bdev, &[0; 6], None, 0).0, ScsiOutcome::Good);
    assert_eq!(
        scsi(&bdev, &[0x0E, 0, 0, 0, 0, 0], None, 0).0,
        ScsiOutcome::Good
    );
    let (outcome, req) = scsi(&bdev, &[0x12, 0, 0, 0, 255, 0], FromDevice, 255);
    assert_eq!((outcome, req.resid), (ScsiOutcome::Good, 255 - 36));
    let mut data = [1; 255];
    req.sg.copy_to_slice(0, &mut data).unwrap();
    assert_eq!(&data[8..13], b"FAULT");
    assert!(data[36..].iter().all(|b| *b == 0), "old memory shows");
    assert_eq!(
        key(&scsi(&bdev, &[0x02, 0, 0, 0, 0, 0], None, 0).0),
        (9, 0x80, 1)
    );
    assert_eq!(
        key(&scsi(&bdev, &[0x06, 0, 0, 0, 0, 0], None, 0).0),
        (4, 0x44, 0)
    );
    assert_eq!(
        key(&scsi(&bdev, &[0x0D, 0, 0, 0, 0, 0], None, 0).0),
        (4, 0x44, 0)
    );
    assert_eq!(
        key(&scsi(&bdev, &[0x1F, 0, 0, 0, 0, 0], None, 0).0),
        (5, 0x20, 0)
    );
    // The handler gets what the CDB says, or nothing.
    let mut rw = [0u8; 16];
    rw[13] = 4;
    for (len, resid) in [(2048, 0), (4096, 2048), (512, 0), (100, 0)] {
        rw[0] = 0x88;
        let (outcome, req) = scsi(&bdev, &rw, FromDevice, len);
        assert_eq!((outcome, req.resid), (ScsiOutcome::Good, resid), "{len}");
    }
    assert_eq!(scsi(&bdev, &rw, None, 0).0, ScsiOutcome::Good);
    rw[0] = 0x8A;
    assert_eq!(scsi(&bdev, &rw, ToDevice, 2048).0, ScsiOutcome::Good);
    assert_eq!(scsi(&bdev, &rw, ToDevice, 4096).0, ScsiOutcome::Good);
    assert_eq!(key(&scsi(&bdev, &rw, ToDevice, 2047).0), (5, 0x24, 0));
    assert_eq!(key(&scsi(&bdev, &rw, None, 0).0), (5, 0x24, 0));
    assert_eq!(key(&scsi(&bdev, &rw, FromDevice, 2048).0), (5, 0x24, 0));
    // Bios are not for those who asked for commands.
    assert_eq!(run(&bdev, BioOp::Read, 0), Err(code::EOPNOTSUPP));
    assert_eq!((dropped_bios(), dropped_scsi()), (0, 0));
}
