//! The same verified I/O on each engine, buffered and with O_DIRECT, on reactors that wait by io_uring and by epoll.

use std::sync::Arc;
use std::sync::mpsc;

use kshim::error::{Result, code};
use kshim::fs::{Engine, IoFile, IoOp, IoReq, OpenOptions};
use kshim::page::PageBuf;
use kshim::reactor::{PollerKind, Reactor, ReactorConfig};
use kshim::scatterlist::SGTable;

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
const ROUNDS: usize = 60;
/// Requests submitted in one round of the reactor.
const BATCH: usize = 16;

/// Numbers that look random, the same in each run.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

struct Bench {
    dir: tempfile::TempDir,
    reactor: Reactor,
    file: Arc<IoFile>,
    model: Vec<u8>,
    /// The file system makes holes, and zeroes ranges.
    holes: bool,
}

/// A file of `BLOCKS` blocks and a reactor, or why there is none.
fn bench(engine: Engine, direct: bool, poller: PollerKind) -> Option<Bench> {
    if let Err(e) = engine.probe() {
        eprintln!("no {engine} here: {e}");
        return None;
    }
    // Beside the test's program: what is below /tmp is in memory, sometimes.
    let near = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(near.parent().unwrap()).unwrap();
    let path = dir.path().join("disk");
    let options = OpenOptions::new().create(true).direct(direct);
    let file = match IoFile::open(&path, &options, Some(engine)) {
        Ok(file) => file,
        Err(code::EINVAL) if direct => {
            eprintln!("no O_DIRECT here");
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    file.file().set_size((BLOCK * BLOCKS) as u64).unwrap();
    let mut config = ReactorConfig::new("io-test");
    config.poller = poller;
    let reactor = match Reactor::spawn(config) {
        Ok(r) => r,
        Err(e) => {
            eprintln!("no {poller:?} here: {e}");
            return None;
        }
    };
    Some(Bench {
        dir,
        reactor,
        model: vec![0; BLOCK * BLOCKS],
        holes: file.discard(0, BLOCK as u64).is_ok() && file.zero(0, BLOCK as u64).is_ok(),
        file,
    })
}

/// Tables of all shapes: one piece, many, aligned and not.
fn table(rng: &mut Lcg, len: usize) -> (SGTable, usize) {
    match rng.below(4) {
        0 => (SGTable::alloc(len + 24).unwrap(), 24),
        1 => {
            // More pieces than one operation takes.
            let mut sg = SGTable::new();
            let mut left = len;
            while left > 0 {
                let n = left.min(BLOCK);
                sg.push_pages(PageBuf::alloc(n).unwrap(), 0, n).unwrap();
                left -= n;
            }
            (sg, 0)
        }
        2 => {
            let mut sg = SGTable::new();
            let mut left = len;
            while left > 0 {
                let n = left.min(1 + rng.below(3000));
                sg.push_pages(PageBuf::alloc(n).unwrap(), 0, n).unwrap();
                left -= n;
            }
            (sg, 0)
        }
        _ => (SGTable::alloc(len).unwrap(), 0),
    }
}

impl Bench {
    /// Submits on the reactor, all in one round, and waits for the ends, in the order of submission.
    fn submit(&self, reqs: Vec<(IoOp, u64, usize, SGTable, usize)>) -> Vec<(IoReq, Result)> {
        let n = reqs.len();
        let (tx, rx) = mpsc::channel();
        let file = Arc::clone(&self.file);
        assert!(self.reactor.handle().post(move |_| {
            for (i, (op, pos, len, sg, at)) in reqs.into_iter().enumerate() {
                let tx = tx.clone();
                let end = Arc::new(move |req: IoReq, res| tx.send((i, req, res)).unwrap());
                file.submit(IoReq::new(op, pos, len, end).with_sg(sg, at));
            }
        }));
        let mut ends: Vec<_> = rx.iter().take(n).collect();
        ends.sort_by_key(|e| e.0);
        ends.into_iter().map(|(_, req, res)| (req, res)).collect()
    }

    fn one(&self, op: IoOp, pos: u64, len: usize, sg: SGTable) -> (IoReq, Result) {
        self.submit(vec![(op, pos, len, sg, 0)]).remove(0)
    }

    /// A round of requests on different parts of the file, checked against the model.
    fn round(&mut self, rng: &mut Lcg) {
        let mut reqs = Vec::new();
        let each = BLOCKS / BATCH;
        for i in 0..BATCH {
            let first = i * each + rng.below(each);
            let blocks = 1 + rng.below((i + 1) * each - first);
            let (pos, len) = (first * BLOCK, blocks * BLOCK);
            let (mut sg, at) = table(rng, len);
            let op = match rng.below(11) {
                0..3 => IoOp::Read,
                3..6 => IoOp::Write,
                6 => IoOp::WriteDurable,
                7 => IoOp::FlushRange,
                8 if self.holes => IoOp::Discard,
                9 if self.holes => IoOp::WriteZeroes,
                _ => IoOp::Flush,
            };
            let len = if op == IoOp::Flush { 0 } else { len };
            let byte = match op {
                IoOp::Write | IoOp::WriteDurable => Some(rng.below(256) as u8),
                IoOp::Discard | IoOp::WriteZeroes => Some(0),
                _ => None,
            };
            if let Some(byte) = byte {
                sg.fill(at, len, byte).unwrap();
                self.model[pos..pos + len].fill(byte);
            }
            reqs.push((op, pos as u64, len, sg, at));
        }
        for (req, res) in self.submit(reqs) {
            assert_eq!(res, Ok(()), "{req:?}");
            if req.op == IoOp::Read {
                let pos = req.pos as usize;
                let want = &self.model[pos..pos + req.len];
                assert_eq!(req.sg.compare(req.sg_at, want), Ok(None), "{req:?}");
            }
        }
    }
}

fn verified_io(engine: Engine, direct: bool) {
    for poller in [PollerKind::Uring, PollerKind::Epoll] {
        let Some(mut b) = bench(engine, direct, poller) else {
            continue;
        };
        let mut rng = Lcg(7);
        for _ in 0..ROUNDS {
            b.round(&mut rng);
        }
        // Nothing of it is only in the model.
        let on_disk = kshim::fs::read(b.dir.path().join("disk"), BLOCK * BLOCKS).unwrap();
        assert!(on_disk == b.model, "{engine} {poller:?}");
    }
}

/// Requests of more pieces than one operation takes, one at a time: nothing else wakes the reactor.
fn lone_requests(engine: Engine, direct: bool) {
    for poller in [PollerKind::Uring, PollerKind::Epoll] {
        let Some(b) = bench(engine, direct, poller) else {
            continue;
        };
        let many = |byte| {
            let mut sg = SGTable::new();
            for _ in 0..40 {
                let mut page = PageBuf::alloc(BLOCK).unwrap();
                page.fill(byte);
                sg.push_pages(page, 0, BLOCK).unwrap();
            }
            sg
        };
        for op in [IoOp::WriteDurable, IoOp::Write, IoOp::Read] {
            let (req, res) = b.one(op, 0, 40 * BLOCK, many(7));
            assert_eq!(res, Ok(()), "{engine} {poller:?} {op:?}");
            assert_eq!(req.sg.compare(0, &[7; 40 * BLOCK]), Ok(None));
        }
        assert_eq!(b.file.file().size(), Ok((BLOCK * BLOCKS) as u64));
    }
}

fn ends_of_files(engine: Engine, direct: bool) {
    let Some(b) = bench(engine, direct, PollerKind::Auto) else {
        return;
    };
    let size = (BLOCK * BLOCKS) as u64;
    let sg = || SGTable::alloc(4 * BLOCK).unwrap();
    let read = |pos| b.one(IoOp::Read, pos, 4 * BLOCK, sg()).1;
    assert_eq!(read(0), Ok(()));
    // The end comes too early: at once, and in the middle.
    assert_eq!(read(size), Err(code::EIO));
    assert_eq!(read(size - BLOCK as u64), Err(code::EIO));
    b.file.file().set_size(2 * BLOCK as u64 + 100).unwrap();
    assert_eq!(read(0), Err(code::EIO));
    // Requests that cannot be.
    assert_eq!(read(u64::MAX - 5), Err(code::EINVAL));
    let (req, res) = b.one(IoOp::Read, 0, 5 * BLOCK, sg());
    assert_eq!((res, req.sg.len()), (Err(code::EINVAL), 4 * BLOCK));
    if direct && b.file.file().dio_align() > 1 {
        assert_eq!(read(1), Err(code::EINVAL));
    }
    // Read-only files take no writes.
    let path = b.dir.path().join("disk");
    let options = OpenOptions::new().read_only(true).direct(direct);
    let b = Bench {
        file: IoFile::open(path, &options, Some(engine)).unwrap(),
        ..b
    };
    assert_eq!(b.one(IoOp::Write, 0, BLOCK, sg()).1, Err(code::EBADF));
    assert_eq!(
        b.one(IoOp::WriteDurable, 0, BLOCK, sg()).1,
        Err(code::EBADF)
    );
    for op in [IoOp::Discard, IoOp::WriteZeroes] {
        let said = b.one(op, 0, BLOCK, SGTable::new()).1;
        assert!(!b.holes || said == Err(code::EBADF), "{said:?}");
        let said = b.one(op, u64::MAX - 5, BLOCK, SGTable::new()).1;
        assert_eq!(said, Err(code::EINVAL));
    }
    assert_eq!(b.one(IoOp::FlushRange, 0, BLOCK, SGTable::new()).1, Ok(()));
    assert_eq!(b.one(IoOp::Flush, 0, 0, SGTable::new()).1, Ok(()));
}

/// What is under way when a reactor ends, ends before.
fn reactors_that_end(engine: Engine, direct: bool) {
    for poller in [PollerKind::Uring, PollerKind::Epoll] {
        let Some(b) = bench(engine, direct, poller) else {
            continue;
        };
        let (tx, rx) = mpsc::channel();
        let file = Arc::clone(&b.file);
        b.reactor.handle().post(move |_| {
            for i in 0..100u64 {
                let tx = tx.clone();
                let end = Arc::new(move |_: IoReq, res| tx.send(res).unwrap());
                let sg = SGTable::alloc_zeroed(BLOCK).unwrap();
                let req = IoReq::new(IoOp::WriteDurable, i * BLOCK as u64, BLOCK, end);
                file.submit(req.with_sg(sg, 0));
            }
        });
        b.reactor.stop();
        let ends: Vec<Result> = rx.iter().collect();
        assert!(
            ends.len() == 100 && ends.iter().all(|r| *r == Ok(())),
            "{poller:?}"
        );
    }
}

macro_rules! per_engine {
    ($($name:ident: $engine:ident, $direct:literal;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn data_is_as_written() {
                verified_io(Engine::$engine, $direct);
            }

            #[test]
            fn a_request_alone_ends() {
                lone_requests(Engine::$engine, $direct);
            }

            #[test]
            fn the_end_of_the_file_is_an_error() {
                ends_of_files(Engine::$engine, $direct);
            }

            #[test]
            fn reactors_end_after_their_requests() {
                reactors_that_end(Engine::$engine, $direct);
            }
        }
    )*};
}

per_engine! {
    uring_buffered: Uring, false;
    uring_direct: Uring, true;
    aio_buffered: Aio, false;
    aio_direct: Aio, true;
    threads_buffered: Threads, false;
    threads_direct: Threads, true;
}
