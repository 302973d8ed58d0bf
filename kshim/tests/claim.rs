//! A claim on a file or a block device, whose I/O a ring does.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests may use the host's files and programs directly"
)]

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use kshim::error::{Result, code};
use kshim::fs::{Engine, File, IoFile, IoOp, IoReq, OpenOptions};
use kshim::reactor::{PollerKind, Reactor, ReactorConfig};
use kshim::scatterlist::SGTable;

mod loopdev;

use loopdev::Loop;

const LEN: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Openings, each right after the close before.
const ROUNDS: usize = 300;
/// Requests of one opening.
const BATCH: u64 = 16;
/// Processes that are killed.
const KILLS: usize = 40;
/// What a process is to claim that is to be killed.
const CLAIM: &str = "KSHIM_TEST_CLAIM";

/// One test at a time: a process that is being started has copies of all descriptors for a moment, and with them a claim.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reactor() -> Option<Reactor> {
    let mut config = ReactorConfig::new("claim");
    config.poller = PollerKind::Uring;
    Reactor::spawn(config)
        .inspect_err(|e| eprintln!("no io_uring here: {e}"))
        .ok()
}

fn claim(direct: bool) -> OpenOptions {
    OpenOptions::new().exclusive(true).direct(direct)
}

/// Submits all on the reactor, and waits for the ends.
fn submit(reactor: &Reactor, file: &Arc<IoFile>, reqs: Vec<(IoOp, u64, usize)>) -> Vec<Result> {
    let (tx, rx) = mpsc::channel();
    let (n, file) = (reqs.len(), Arc::clone(file));
    assert!(reactor.handle().post(move |_| {
        for (op, pos, len) in reqs {
            let tx = tx.clone();
            let end = Arc::new(move |_: IoReq, res| tx.send(res).unwrap());
            let bytes = if op.has_data() { len } else { 0 };
            let mut sg = SGTable::alloc(bytes).unwrap();
            sg.fill(0, bytes, 0xA5).unwrap();
            file.submit(IoReq::new(op, pos, len, end).with_sg(sg, 0));
        }
    }));
    // The reactor lets go of the file after it has submitted: the owner waits for that, too.
    let (done, idle) = mpsc::channel();
    let ends = rx.iter().take(n).collect();
    assert!(reactor.handle().post(move |_| done.send(()).unwrap()));
    idle.recv().unwrap();
    ends
}

fn batch() -> Vec<(IoOp, u64, usize)> {
    let request = |i| {
        let pos = i * BLOCK as u64;
        match i % 4 {
            0 => (IoOp::Flush, 0, 0),
            1 => (IoOp::WriteDurable, pos, BLOCK),
            2 => (IoOp::Write, pos, BLOCK),
            _ => (IoOp::Read, pos, BLOCK),
        }
    };
    (0..BATCH).map(request).collect()
}

#[test]
fn a_device_can_be_claimed_again_as_soon_as_it_is_closed() {
    let _turn = turn();
    let (Some(device), Some(reactor)) = (Loop::new(LEN), reactor()) else {
        return eprintln!("not tested");
    };
    let path = Path::new(&device.path);
    for round in 0..ROUNDS {
        let file = IoFile::open(path, &claim(round % 2 == 0), Some(Engine::Uring))
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(File::open(path, &claim(false)).err(), Some(code::EBUSY));
        for res in submit(&reactor, &file, batch()) {
            assert_eq!(res, Ok(()));
        }
        drop(file);
    }
}

#[test]
fn ranges_of_a_claimed_device_are_zeroed_and_discarded_also_where_its_cache_is_dirty() {
    let _turn = turn();
    let (Some(device), Some(reactor)) = (Loop::new(LEN), reactor()) else {
        return eprintln!("not tested");
    };
    for engine in [Engine::Uring, Engine::Threads] {
        let file = IoFile::open(&device.path, &claim(false), Some(engine)).unwrap();
        for op in [IoOp::WriteZeroes, IoOp::Discard] {
            let dirty = vec![(IoOp::Write, 0, 16 * BLOCK)];
            assert_eq!(submit(&reactor, &file, dirty), [Ok(())]);
            let range = vec![(op, 0, 16 * BLOCK)];
            assert_eq!(submit(&reactor, &file, range), [Ok(())], "{op:?}, {engine}");
            let mut back = SGTable::alloc(16 * BLOCK).unwrap();
            file.read(&mut back, 0, 16 * BLOCK, 0).unwrap();
            // A loop device over a file reads zeros after a discard, too.
            assert_eq!(
                back.compare(0, &[0; 16 * BLOCK]),
                Ok(None),
                "{op:?}, {engine}"
            );
        }
    }
}

/// Claims a file, tells that it has done some I/O, and goes on until it is killed.
fn be_killed(path: &Path) -> ! {
    let (reactor, options) = (reactor().unwrap(), claim(false));
    let file = IoFile::open(path, &options, Some(Engine::Uring)).unwrap();
    for round in 0.. {
        submit(&reactor, &file, batch());
        if round == 0 {
            // Past the test harness, which would keep it.
            std::io::Write::write_all(&mut std::io::stderr(), b"!").unwrap();
        }
    }
    unreachable!("it is killed")
}

fn claimer(path: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "what_a_killed_process_has_claimed_is_free_when_it_has_ended",
        ])
        .arg("--nocapture")
        .env(CLAIM, path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0];
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    assert_eq!(&said, b"!");
    child
}

#[test]
fn what_a_killed_process_has_claimed_is_free_when_it_has_ended() {
    if let Some(path) = std::env::var_os(CLAIM) {
        be_killed(Path::new(&path));
    }
    let _turn = turn();
    if reactor().is_none() {
        return eprintln!("not tested");
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(LEN).unwrap();
    let device = Loop::new(LEN);
    let device = device.as_ref().map(|d| Path::new(&d.path));
    for path in [Some(image.path()), device].into_iter().flatten() {
        for round in 0..KILLS {
            let mut child = claimer(path);
            let busy = File::open(path, &claim(false)).err();
            child.kill().unwrap();
            child.wait().unwrap();
            let file = File::open(path, &claim(false));
            assert_eq!(
                (busy, file.err()),
                (Some(code::EBUSY), None),
                "{path:?}, {round}"
            );
        }
    }
}
