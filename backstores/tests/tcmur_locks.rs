//! A handler with a lock and a cache that fails: explicit failover, flushes that are passed through, opening and closing at the same
//! time.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests may use the host's threads, files and programs directly"
)]

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use backstores::tcmur;
use kshim::block::{Bio, BioOp, BlkMode, BlockDevice, ScsiOutcome, ScsiRequest};
use kshim::error::{Result, code};
use kshim::scatterlist::SGTable;
use kshim::time::Delta;

/// As in `c/handler_locks.c`.
const COUNTERS_BLOCK: u64 = 8;
const LOCK_LOST_BLOCK: u64 = 16;
const CONN_LOST_BLOCK: u64 = 24;
const BOTH_LOST_BLOCK: u64 = 32;
const TIMED_OUT_BLOCK: u64 = 40;
const CACHE_LOST_BLOCK: u64 = 48;
const NOBODY: u64 = 0xFFFF;
const OTHERS: u64 = 99;

/// The tests share the handler's counters.
static TURN: Mutex<()> = Mutex::new(());

fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let dir = tempfile::tempdir().unwrap();
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = Command::new("cc")
            .args([
                "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-I",
            ])
            .arg(top.join("abi"))
            .arg("-o")
            .arg(dir.path().join("handler_locks.so"))
            .arg(top.join("tests/c/handler_locks.c"))
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        tcmur::init(Some(dir.path())).unwrap();
        assert_eq!(tcmur::handlers().len(), 1);
    });
}

fn open(path: &str) -> Result<Arc<BlockDevice>> {
    BlockDevice::open(path, BlkMode::READ | BlkMode::WRITE)
}

fn close(bdev: Arc<BlockDevice>) {
    drop(bdev);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
}

fn run(bdev: &BlockDevice, op: BioOp, block: u64) -> Result {
    let len = if op == BioOp::Flush { 0 } else { 512 };
    let sg = SGTable::alloc_zeroed(len).unwrap();
    let bio = Bio::new(op, block, len, Arc::new(|_: Bio, _: Result| {})).with_sg(sg, 0);
    bdev.submit_bio_wait(bio).1
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

#[derive(Debug)]
struct Counters {
    opens: u64,
    locks: u64,
    unlocks: u64,
    owner: u64,
    reports: u64,
    early_closes: u64,
}

/// The handler's counters, by a device that has no lock.
fn counters() -> Counters {
    let bdev = open("/dev/tcmur/locks/peek?size=1M").unwrap();
    let sg = SGTable::alloc_zeroed(512).unwrap();
    let ignored = Arc::new(|_: Bio, _: Result| {});
    let bio = Bio::new(BioOp::Read, COUNTERS_BLOCK, 512, ignored).with_sg(sg, 0);
    let (back, status) = bdev.submit_bio_wait(bio);
    assert_eq!(status, Ok(()));
    let mut bytes = [0; 56];
    back.sg.copy_to_slice(0, &mut bytes).unwrap();
    let at = |i: usize| u64::from_ne_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
    Counters {
        opens: at(0),
        locks: at(2),
        unlocks: at(3),
        owner: at(4),
        reports: at(5),
        early_closes: at(6),
    }
}

#[test]
fn with_explicit_failover_who_opens_has_the_lock() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = "/dev/tcmur/locks/disk?size=1M&lock=group-7";
    let before = counters();
    let bdev = open(path).unwrap();
    assert_eq!((counters().owner, counters().locks), (7, before.locks + 1));
    for op in [BioOp::Write, BioOp::Flush, BioOp::Read] {
        assert_eq!(run(&bdev, op, 0), Ok(()));
    }
    // Whoever takes it keeps it, until somebody asks this server to have it.
    assert_eq!(
        run(&bdev, BioOp::Write, LOCK_LOST_BLOCK),
        Err(code::ENOLINK)
    );
    for op in [BioOp::Write, BioOp::Flush, BioOp::Read] {
        assert_eq!(run(&bdev, op, 0), Err(code::ENOLINK));
    }
    let lost = counters();
    assert_eq!((lost.owner, lost.locks), (OTHERS, before.locks + 1));
    close(bdev);
    assert_eq!(counters().unlocks, before.unlocks, "it is another's");
    let bdev = open(path).unwrap();
    assert_eq!(counters().owner, 7);
    assert_eq!(run(&bdev, BioOp::Write, 0), Ok(()));
    close(bdev);
    let end = counters();
    assert_eq!((end.owner, end.unlocks), (NOBODY, before.unlocks + 1));
    // A lock that cannot be had.
    let refused = open("/dev/tcmur/locks/disk?size=1M&lock=group-13");
    assert_eq!(refused.err(), Some(code::EBUSY));
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
}

#[test]
fn after_a_lost_connection_the_lock_is_taken_back_if_nobody_else_has_it() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bdev = open("/dev/tcmur/locks/lost?size=1M&lock=group-8").unwrap();
    let before = counters();
    assert_eq!(run(&bdev, BioOp::Write, CONN_LOST_BLOCK), Err(code::EAGAIN));
    assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
    let again = counters();
    assert_eq!((again.owner, again.locks), (8, before.locks + 1));
    assert_eq!(run(&bdev, BioOp::Write, BOTH_LOST_BLOCK), Err(code::EAGAIN));
    assert_eq!(insist(&bdev, BioOp::Write, 0), Err(code::ENOLINK));
    assert_eq!(run(&bdev, BioOp::Read, 0), Err(code::ENOLINK));
    let lost = counters();
    assert_eq!((lost.owner, lost.locks), (OTHERS, again.locks));
    close(bdev);
}

#[test]
fn a_connection_that_is_lost_while_the_lock_is_taken_is_opened_again_after() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Who is fenced has it opened again at once, and with that the connection.
    for group in [14, 15] {
        let before = counters();
        let bdev = open(&format!(
            "/dev/tcmur/locks/early?size=1M&lock=group-{group}"
        ))
        .unwrap();
        assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
        let after = counters();
        assert_eq!(after.early_closes, before.early_closes, "{group}");
        // Twice, and for the counters.
        assert_eq!(after.opens, before.opens + 3, "{group}");
        assert_eq!((after.owner, after.locks), (group, before.locks + 2));
        close(bdev);
    }
}

#[test]
fn a_handler_is_not_closed_while_it_reports() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = "/dev/tcmur/locks/report?size=1M";
    let bdev = open(path).unwrap();
    let before = counters();
    assert_eq!(run(&bdev, BioOp::Write, TIMED_OUT_BLOCK), Ok(()));
    while counters().reports == before.reports {
        std::thread::sleep(Duration::from_millis(20));
    }
    close(bdev);
    assert_eq!(counters().early_closes, before.early_closes);
}

#[test]
fn another_connection_does_not_forget_what_was_lost() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // A flush that failed.
    let bdev = open("/dev/tcmur/locks/cached?size=1M").unwrap();
    assert_eq!(run(&bdev, BioOp::Write, CACHE_LOST_BLOCK), Ok(()));
    assert_eq!(run(&bdev, BioOp::Flush, 0), Err(code::EIO));
    assert_eq!(run(&bdev, BioOp::Write, CONN_LOST_BLOCK), Err(code::EAGAIN));
    assert_eq!(insist(&bdev, BioOp::Read, 0), Ok(()));
    assert_eq!(run(&bdev, BioOp::Flush, 0), Err(code::EIO));
    close(bdev);
    // A lost lock, whether a read or a write has opened the device again; told once.
    let bdev = open("/dev/tcmur/locks/cached?size=1M&lock=on").unwrap();
    for op in [BioOp::Read, BioOp::Write] {
        assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
        assert_eq!(run(&bdev, BioOp::Flush, 0), Ok(()));
        let lost = run(&bdev, BioOp::Write, LOCK_LOST_BLOCK);
        assert_eq!(lost, Err(code::ENOLINK));
        assert_eq!(insist(&bdev, op, 0), Ok(()));
        assert_eq!(run(&bdev, BioOp::Flush, 0), Err(code::ENOLINK));
        assert_eq!(run(&bdev, BioOp::Flush, 0), Ok(()));
    }
    close(bdev);
    // And when flushes are passed through.
    let mode = BlkMode::READ | BlkMode::WRITE | BlkMode::PASSTHROUGH;
    let bdev = BlockDevice::open("/dev/tcmur/locks/cached?size=1M&lock=on", mode).unwrap();
    assert_eq!(sync(&bdev, 4), None);
    while command(&bdev, vec![0; 6]).is_some() {
        std::thread::yield_now();
    }
    assert_eq!(sync(&bdev, 0), Some((2, 4, 0x0B)));
    assert_eq!(sync(&bdev, 0), None);
    close(bdev);
}

#[test]
fn writes_that_nobody_has_flushed_when_the_connection_is_lost_have_flushes_fail() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for lock in ["", "&lock=on", "&lock=group-7"] {
        let path = format!("/dev/tcmur/locks/dirty?size=1M{lock}");
        // All was durable, but for what failed.
        let bdev = open(&path).unwrap();
        assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
        assert_eq!(run(&bdev, BioOp::Flush, 0), Ok(()));
        assert_eq!(run(&bdev, BioOp::Write, CONN_LOST_BLOCK), Err(code::EAGAIN));
        assert_eq!(insist(&bdev, BioOp::Read, 0), Ok(()));
        assert_eq!(insist(&bdev, BioOp::Flush, 0), Ok(()), "{path}");
        // It was not: that is so until somebody opens it again.
        assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
        assert_eq!(run(&bdev, BioOp::Write, CONN_LOST_BLOCK), Err(code::EAGAIN));
        assert_eq!(insist(&bdev, BioOp::Read, 0), Ok(()));
        for _ in 0..2 {
            assert_eq!(insist(&bdev, BioOp::Write, 0), Ok(()));
            assert_eq!(insist(&bdev, BioOp::Flush, 0), Err(code::EIO), "{path}");
        }
        close(bdev);
        let bdev = open(&path).unwrap();
        assert_eq!(run(&bdev, BioOp::Flush, 0), Ok(()));
        close(bdev);
    }
}

/// SYNCHRONIZE CACHE: sense key and additional codes, if it fails.
fn sync(bdev: &BlockDevice, how: u8) -> Option<(u8, u8, u8)> {
    command(bdev, vec![0x35, 0, 0, 0, 0, how, 0, 0, 0, 0])
}

fn command(bdev: &BlockDevice, cdb: Vec<u8>) -> Option<(u8, u8, u8)> {
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let end = move |_: ScsiRequest, outcome: ScsiOutcome| {
        tx.lock().unwrap().send(outcome).unwrap();
    };
    bdev.submit_scsi(ScsiRequest::new(cdb, Arc::new(end)));
    match rx.recv().unwrap() {
        ScsiOutcome::Good => None,
        ScsiOutcome::Sense(s) => Some((s[2], s[12], s[13])),
        other => {
            assert_eq!(other, ScsiOutcome::Status(8));
            Some((0, 0, 0))
        }
    }
}

#[test]
fn a_passed_flush_that_failed_fails_until_it_is_opened_again() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mode = BlkMode::READ | BlkMode::WRITE | BlkMode::PASSTHROUGH;
    let open = || BlockDevice::open("/dev/tcmur/locks/cache?size=1M", mode).unwrap();
    let bdev = open();
    // What was wrong with the command loses nothing, nor does a device that is busy.
    assert_eq!(sync(&bdev, 0), None);
    assert_eq!(sync(&bdev, 1), Some((5, 0x24, 0)));
    assert_eq!(sync(&bdev, 3), Some((0, 0, 0)));
    assert_eq!(sync(&bdev, 0), None);
    // A write-back that failed is told in the handler's words, and again.
    assert_eq!(sync(&bdev, 2), Some((3, 0x0C, 2)));
    assert_eq!(sync(&bdev, 0), Some((3, 0x0C, 0)));
    assert_eq!(sync(&bdev, 0), Some((3, 0x0C, 0)));
    close(bdev);
    assert_eq!(sync(&open(), 0), None);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
}

#[test]
fn who_opens_while_another_closes_has_an_open_device() {
    init();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let before = counters().opens;
    let both: Vec<_> = (0..2)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..100 {
                    let bdev = open("/dev/tcmur/locks/both?size=1M").unwrap();
                    assert_eq!(run(&bdev, BioOp::Read, 0), Ok(()));
                }
            })
        })
        .collect();
    for thread in both {
        thread.join().unwrap();
    }
    assert!(counters().opens > before);
    assert!(tcmur::wait_closed(Delta::from_secs(60)));
}
