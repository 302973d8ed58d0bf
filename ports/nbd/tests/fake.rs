//! The driver against a server of ours that answers in every allowed way, loses connections, and lies.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the server of the test uses the host's threads and sockets"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread;

use kshim::block::{Bio, BioOp, BlkMode, BlockDevice, ReqFlags, class, dropped_bios};
use kshim::error::{Result, code};
use kshim::kobject::tree::{Tree, TreeOps};
use kshim::scatterlist::SGTable;
use kshim::time::{Delta, Instant};
use proptest::prelude::*;

const SIZE: usize = 64 << 10;
const BLOCK: usize = 512;
/// Everything but multi-conn: has flags, flush, FUA, trim, write zeroes.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64;
const MULTI: u16 = 256;

#[derive(Clone)]
struct Behaviour {
    flags: u16,
    structured: bool,
    go: bool,
    max_block: u32,
    /// Hangs up instead of answering each such request; 0: never.
    drop_every: u64,
    /// Spoils a byte of each such answer; 0: never.
    spoil_every: u64,
    /// Answers each such request never; 0: all.
    silent_every: u64,
    /// Forgets writes that were not flushed when a connection ends.
    volatile: bool,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            flags: FLAGS,
            structured: true,
            go: true,
            max_block: 4096,
            drop_every: 0,
            spoil_every: 0,
            silent_every: 0,
            volatile: false,
        }
    }
}

struct Disk {
    now: Vec<u8>,
    durable: Vec<u8>,
}

struct Fake {
    port: u16,
    /// What it tells; not all of it need be there.
    size: AtomicU64,
    disk: Mutex<Disk>,
    how: Mutex<Behaviour>,
    requests: AtomicU64,
    random: AtomicU64,
    refuse: AtomicBool,
    /// Connections that are there hang up instead of answering.
    drop_now: AtomicBool,
}

impl Fake {
    fn start(how: Behaviour) -> Arc<Fake> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Arc::new(Fake {
            port: listener.local_addr().unwrap().port(),
            size: AtomicU64::new(SIZE as u64),
            disk: Mutex::new(Disk {
                now: vec![0; SIZE],
                durable: vec![0; SIZE],
            }),
            how: Mutex::new(how),
            requests: AtomicU64::new(0),
            random: AtomicU64::new(88172645463325252),
            refuse: AtomicBool::new(false),
            drop_now: AtomicBool::new(false),
        });
        let own = Arc::clone(&fake);
        thread::spawn(move || {
            for sock in listener.incoming().map_while(std::io::Result::ok) {
                let own = Arc::clone(&own);
                thread::spawn(move || {
                    if own.refuse.load(Ordering::SeqCst) {
                        return;
                    }
                    // The client must not learn of the end before the writes are forgotten: what it sends on its next
                    // connection is not to be.
                    let open = sock.try_clone();
                    // However it ends, it ends. One that only looked does no harm.
                    let looked = own.serve(sock).is_ok_and(|looked| looked);
                    let mut disk = own.disk.lock().unwrap();
                    if own.how.lock().unwrap().volatile && !looked {
                        disk.now = disk.durable.clone();
                    }
                    drop(open);
                });
            }
        });
        fake
    }

    fn next_random(&self) -> u64 {
        let mut x = self.random.load(Ordering::SeqCst);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::SeqCst);
        x >> 8
    }

    /// Returns whether the client has left without a request.
    fn serve(&self, mut s: TcpStream) -> std::io::Result<bool> {
        let how = self.how.lock().unwrap().clone();
        s.set_nodelay(true)?;
        s.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        let mut b = [0; 4];
        s.read_exact(&mut b)?;
        let mut structured = false;
        loop {
            let mut head = [0; 16];
            s.read_exact(&mut head)?;
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(head[12..].try_into().unwrap()) as usize];
            s.read_exact(&mut data)?;
            let reply = |kind: u32, data: &[u8]| {
                let mut b = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
                b.extend(option.to_be_bytes());
                b.extend(kind.to_be_bytes());
                b.extend((data.len() as u32).to_be_bytes());
                b.extend(data);
                b
            };
            let size = self.size.load(Ordering::SeqCst);
            let mut export = size.to_be_bytes().to_vec();
            export.extend(how.flags.to_be_bytes());
            match option {
                8 if how.structured => {
                    structured = true;
                    s.write_all(&reply(1, &[]))?;
                }
                7 if how.go => {
                    let mut blocks = 3u16.to_be_bytes().to_vec();
                    for n in [512, 4096, how.max_block] {
                        blocks.extend(n.to_be_bytes());
                    }
                    let name = String::from_utf8_lossy(&data[4..data.len() - 4]).into_owned();
                    if name != "disk" {
                        s.write_all(&reply((1 << 31) + 6, b"none such"))?;
                        continue;
                    }
                    s.write_all(&reply(3, &blocks))?;
                    s.write_all(&reply(3, &[&[0, 0], &export[..]].concat()))?;
                    s.write_all(&reply(1, &[]))?;
                    break;
                }
                1 => {
                    if data != b"disk" {
                        return Ok(false);
                    }
                    s.write_all(&export)?;
                    break;
                }
                _ => s.write_all(&reply((1 << 31) + 1, &[]))?,
            }
        }
        self.requests(&mut s, &how, structured)
    }

    fn requests(
        &self,
        s: &mut TcpStream,
        how: &Behaviour,
        structured: bool,
    ) -> std::io::Result<bool> {
        let mut looked = true;
        loop {
            let mut head = [0; 28];
            s.read_exact(&mut head)?;
            let flags = u16::from_be_bytes(head[4..6].try_into().unwrap());
            let cmd = u16::from_be_bytes(head[6..8].try_into().unwrap());
            let cookie = &head[8..16];
            let offset = u64::from_be_bytes(head[16..24].try_into().unwrap()) as usize;
            let len = u32::from_be_bytes(head[24..].try_into().unwrap()) as usize;
            let mut data = vec![0; if cmd == 1 { len } else { 0 }];
            s.read_exact(&mut data)?;
            if cmd == 2 {
                return Ok(looked);
            }
            looked = false;
            let n = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
            if how.silent_every != 0 && n.is_multiple_of(how.silent_every) {
                continue;
            }
            let mut disk = self.disk.lock().unwrap();
            match cmd {
                1 => disk.now[offset..offset + len].copy_from_slice(&data),
                4 | 6 => disk.now[offset..offset + len].fill(0),
                3 => disk.durable = disk.now.clone(),
                _ => {}
            }
            if matches!(cmd, 1 | 4 | 6) && flags & 1 != 0 {
                let now = disk.now[offset..offset + len].to_vec();
                disk.durable[offset..offset + len].copy_from_slice(&now);
            }
            let drop_it = how.drop_every != 0 && n.is_multiple_of(how.drop_every);
            if drop_it || self.drop_now.load(Ordering::SeqCst) {
                return Ok(false);
            }
            let read = if cmd == 0 {
                disk.now[offset..offset + len].to_vec()
            } else {
                Vec::new()
            };
            drop(disk);
            let mut reply = if structured && (cmd == 0 || n.is_multiple_of(2)) {
                self.chunks(cookie, offset, &read)
            } else {
                let mut b = 0x6744_6698u32.to_be_bytes().to_vec();
                b.extend([0; 4]);
                b.extend(cookie);
                b.extend(read);
                b
            };
            if how.spoil_every != 0 && n.is_multiple_of(how.spoil_every) {
                // In the headers; what is in the data nobody could see.
                let at = self.next_random() as usize % reply.len().min(28);
                reply[at] ^= 1 << (self.next_random() % 8);
            }
            s.write_all(&reply)?;
        }
    }

    /// A structured reply in pieces of random size and order; zeros as holes.
    fn chunks(&self, cookie: &[u8], offset: usize, data: &[u8]) -> Vec<u8> {
        let chunk = |flags: u16, kind: u16, body: &[u8]| {
            let mut b = 0x668e_33efu32.to_be_bytes().to_vec();
            b.extend(flags.to_be_bytes());
            b.extend(kind.to_be_bytes());
            b.extend(cookie);
            b.extend((body.len() as u32).to_be_bytes());
            b.extend(body);
            b
        };
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let n = (1 + self.next_random() as usize % 2000).min(data.len() - at);
            pieces.push((at, n));
            at += n;
        }
        if self.next_random().is_multiple_of(2) {
            pieces.reverse();
        }
        let mut all = Vec::new();
        for (at, n) in pieces {
            let mut body = ((offset + at) as u64).to_be_bytes().to_vec();
            let piece = &data[at..at + n];
            if piece.iter().all(|b| *b == 0) {
                body.extend((n as u32).to_be_bytes());
                all.extend(chunk(0, 2, &body));
            } else {
                body.extend(piece);
                all.extend(chunk(0, 1, &body));
            }
        }
        all.extend(chunk(1, 0, &[]));
        all
    }
}

fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| nbd::init().unwrap());
}

fn open(fake: &Fake, params: &str) -> Result<Arc<BlockDevice>> {
    init();
    let path = format!("/dev/nbd/127.0.0.1:{}/disk?{params}", fake.port);
    BlockDevice::open(path, BlkMode::READ | BlkMode::WRITE)
}

fn attr(fake: &Fake, name: &str) -> String {
    let path = format!("nbd/127.0.0.1:{}!disk/{name}", fake.port);
    String::from_utf8(Tree::new(class()).read(&path).unwrap()).unwrap()
}

fn run(
    disk: &BlockDevice,
    op: BioOp,
    at: usize,
    len: usize,
    flags: ReqFlags,
    byte: u8,
) -> Result<Vec<u8>> {
    let mut sg = SGTable::new();
    if matches!(op, BioOp::Read | BioOp::Write) {
        // In two pieces, and not from the start.
        sg.push_alloc(100 + len / 3).unwrap();
        sg.push_alloc(len).unwrap();
        sg.fill(0, 100 + len / 3 + len, byte).unwrap();
    }
    let ignored = Arc::new(|_: Bio, _: Result| {});
    let bio = Bio::new(op, (at / BLOCK) as u64, len, ignored)
        .with_sg(sg, 100)
        .with_flags(flags);
    let (bio, status) = disk.submit_bio_wait(bio);
    status?;
    let mut data = Vec::new();
    if op == BioOp::Read {
        data.resize(len, 0);
        bio.sg.copy_to_slice(bio.sg_at, &mut data).unwrap();
    }
    Ok(data)
}

/// The parts of a write that ended before a connection was lost are lost with it, and sent again.
#[test]
fn a_write_in_parts_survives_a_lost_connection() {
    for drop_every in 2..9 {
        let fake = Fake::start(Behaviour {
            flags: FLAGS & !8,
            volatile: true,
            drop_every,
            ..Behaviour::default()
        });
        let disk = open(&fake, "").unwrap();
        let none = ReqFlags::empty();
        run(&disk, BioOp::Write, 0, 7 * BLOCK, none, 0x55).unwrap();
        run(&disk, BioOp::Write, 8192, 12288, none, 0xaa).unwrap();
        if run(&disk, BioOp::Flush, 0, 0, none, 0).is_ok() {
            let disk = fake.disk.lock().unwrap();
            assert!(disk.durable[..7 * BLOCK].iter().all(|b| *b == 0x55));
            assert!(disk.durable[8192..8192 + 12288].iter().all(|b| *b == 0xaa));
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Read(usize, usize),
    Write(usize, usize, u8, bool),
    Zero(usize, usize),
    Trim(usize, usize),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..128usize, 1..40usize).prop_map(|(a, n)| (a * BLOCK, n.min(128 - a) * BLOCK));
    prop_oneof![
        4 => range().prop_map(|(a, n)| Op::Read(a, n)),
        4 => (range(), any::<u8>(), any::<bool>()).prop_map(|((a, n), b, f)| Op::Write(a, n, b, f)),
        1 => range().prop_map(|(a, n)| Op::Zero(a, n)),
        1 => range().prop_map(|(a, n)| Op::Trim(a, n)),
        1 => Just(Op::Flush),
    ]
}

/// Whether a flush has failed, which says that writes may have been lost.
fn check(disk: &BlockDevice, ops: &[Op]) -> bool {
    let mut model = vec![0; SIZE];
    let none = ReqFlags::empty();
    let mut told = false;
    for op in ops {
        match *op {
            Op::Read(at, n) => {
                let got = run(disk, BioOp::Read, at, n, none, 0xee).unwrap();
                assert!(got == model[at..at + n], "read at {at}, {n} bytes");
            }
            Op::Write(at, n, byte, fua) => {
                let flags = if fua { ReqFlags::FUA } else { none };
                run(disk, BioOp::Write, at, n, flags, byte).unwrap();
                model[at..at + n].fill(byte);
            }
            Op::Zero(at, n) | Op::Trim(at, n) => {
                let op = if matches!(op, Op::Zero(..)) {
                    BioOp::WriteZeroes
                } else {
                    BioOp::Discard
                };
                run(disk, op, at, n, none, 0).unwrap();
                model[at..at + n].fill(0);
            }
            Op::Flush => match run(disk, BioOp::Flush, 0, 0, none, 0) {
                Ok(_) => {}
                Err(e) => {
                    assert_eq!(e, code::EIO);
                    told = true;
                }
            },
        }
    }
    let whole = run(disk, BioOp::Read, 0, SIZE, none, 0).unwrap();
    assert!(whole == model);
    told
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_disk_is_what_was_written(
        ops in prop::collection::vec(op(), 1..40),
        structured in any::<bool>(),
        go in any::<bool>(),
        fua in any::<bool>(),
        multi in any::<bool>(),
        max in 1..9u32,
    ) {
        let fake = Fake::start(Behaviour {
            flags: if fua { FLAGS } else { FLAGS & !8 } | if multi { MULTI } else { 0 },
            structured,
            go,
            max_block: max * 1024,
            ..Behaviour::default()
        });
        let disk = open(&fake, "connections=3").unwrap();
        prop_assert!(!check(&disk, &ops));
        prop_assert_eq!(attr(&fake, "connections_lost"), "0\n");
        drop(disk);
        prop_assert_eq!(dropped_bios(), 0);
    }

    #[test]
    fn lost_connections_lose_nothing(
        ops in prop::collection::vec(op(), 1..24),
        structured in any::<bool>(),
        fua in any::<bool>(),
        drop_every in 5..30u64,
    ) {
        // Without a volatile cache writes survive; the driver cannot know and tells at the next flush.
        let fake = Fake::start(Behaviour {
            flags: if fua { FLAGS } else { FLAGS & !8 } | MULTI,
            structured,
            drop_every,
            max_block: 16 << 10,
            ..Behaviour::default()
        });
        let disk = open(&fake, "connections=2").unwrap();
        check(&disk, &ops);
        drop(disk);
        // With one, writes that are durable when they end survive too.
        let fake = Fake::start(Behaviour { volatile: true, ..fake.how.lock().unwrap().clone() });
        let disk = open(&fake, "cache=writethrough").unwrap();
        prop_assert!(!check(&disk, &ops));
        drop(disk);
        prop_assert_eq!(dropped_bios(), 0);
    }

    #[test]
    fn lies_end_in_errors(spoil_every in 1..6u64, structured in any::<bool>(), seed in 1..u64::MAX) {
        let fake = Fake::start(Behaviour { spoil_every, structured, max_block: 64 << 10, ..Behaviour::default() });
        fake.random.store(seed, Ordering::SeqCst);
        let disk = open(&fake, "timeout=1&reconnect=0").unwrap();
        for n in 0..12 {
            // Right or wrong, it ends.
            let _ = run(&disk, BioOp::Read, n * BLOCK, 3 * BLOCK, ReqFlags::empty(), 0);
            let _ = run(&disk, BioOp::Write, n * BLOCK, BLOCK, ReqFlags::empty(), 0);
        }
        drop(disk);
        prop_assert_eq!(dropped_bios(), 0);
    }

    #[test]
    fn any_greeting_is_refused_or_taken(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0..60usize) {
        // A real conversation with other bytes from some point on.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut good = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        good.extend(0x0003_e889_0455_65a9u64.to_be_bytes());
        good.extend([0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]);
        good.extend(0x0003_e889_0455_65a9u64.to_be_bytes());
        good.extend([0, 0, 0, 7, 0, 0, 0, 3]);
        good.truncate(cut);
        good.extend(bytes);
        let server = thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            let _ = s.write_all(&good);
            // Closes after the client has spoken, or a moment.
            s.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
            let mut b = [0; 4096];
            while s.read(&mut b).is_ok_and(|n| n > 0) {}
        });
        let path = format!("/dev/nbd/127.0.0.1:{port}/x?reconnect=0");
        init();
        prop_assert!(BlockDevice::open(path, BlkMode::READ).is_err());
        server.join().unwrap();
    }
}

#[test]
fn a_flush_tells_of_writes_that_may_be_lost_once() {
    let fake = Fake::start(Behaviour {
        volatile: true,
        ..Behaviour::default()
    });
    let disk = open(&fake, "").unwrap();
    let none = ReqFlags::empty();
    let flush = || run(&disk, BioOp::Flush, 0, 0, none, 0).map(|_| ());
    run(&disk, BioOp::Write, 0, BLOCK, none, 1).unwrap();
    assert_eq!(flush(), Ok(()));
    run(&disk, BioOp::Write, 0, BLOCK, none, 2).unwrap();
    assert_eq!(flush(), Ok(()));
    drop(disk);
    let fake = Fake::start(Behaviour {
        volatile: true,
        drop_every: 3,
        ..Behaviour::default()
    });
    let disk = open(&fake, "").unwrap();
    let flush = || run(&disk, BioOp::Flush, 0, 0, none, 0).map(|_| ());
    let read = || run(&disk, BioOp::Read, 0, BLOCK, none, 0).map(|d| d[0]);
    run(&disk, BioOp::Write, 0, BLOCK, none, 1).unwrap();
    assert_eq!(read(), Ok(1));
    // The third is lost and asked again: the write is gone.
    fake.how.lock().unwrap().drop_every = 0;
    assert_eq!(read(), Ok(0));
    assert_eq!(attr(&fake, "lost_writes"), "1\n");
    assert_eq!(flush(), Err(code::EIO));
    assert_eq!(flush(), Ok(()));
    assert_eq!(attr(&fake, "lost_writes"), "0\n");
    assert_eq!(attr(&fake, "requeued"), "1\n");
}

#[test]
fn a_flush_before_a_write_is_a_flush_like_others() {
    let fake = Fake::start(Behaviour {
        volatile: true,
        ..Behaviour::default()
    });
    let disk = open(&fake, "").unwrap();
    let none = ReqFlags::empty();
    let empty = |flags| run(&disk, BioOp::Write, 0, 0, flags, 0).map(|_| ());
    let durable = || fake.disk.lock().unwrap().durable[0];
    run(&disk, BioOp::Write, 0, BLOCK, none, 1).unwrap();
    assert_eq!((empty(none), durable()), (Ok(()), 0));
    assert_eq!((empty(ReqFlags::PREFLUSH), durable()), (Ok(()), 1));
    run(&disk, BioOp::Write, 0, BLOCK, none, 2).unwrap();
    run(&disk, BioOp::Write, BLOCK, BLOCK, ReqFlags::PREFLUSH, 3).unwrap();
    assert_eq!(durable(), 2);
    // What is lost with a connection is told to who flushes first.
    run(&disk, BioOp::Write, 0, BLOCK, none, 4).unwrap();
    fake.drop_now.store(true, Ordering::SeqCst);
    thread::scope(|s| {
        let read = s.spawn(|| run(&disk, BioOp::Read, 0, BLOCK, none, 0));
        while attr(&fake, "connections_lost") == "0\n" {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        fake.drop_now.store(false, Ordering::SeqCst);
        assert_eq!(read.join().unwrap(), Ok(vec![2; BLOCK]));
    });
    let both = ReqFlags::PREFLUSH | ReqFlags::FUA;
    assert_eq!(run(&disk, BioOp::Write, 0, BLOCK, both, 5), Err(code::EIO));
    assert_eq!(run(&disk, BioOp::Write, 0, BLOCK, both, 5), Ok(vec![]));
}

#[test]
fn a_silent_server_is_given_up_and_a_missing_one_waited_for() {
    let fake = Fake::start(Behaviour {
        silent_every: 1,
        ..Behaviour::default()
    });
    let disk = open(&fake, "timeout=1&reconnect=1").unwrap();
    let start = Instant::now();
    let read = |disk: &BlockDevice| run(disk, BioOp::Read, 0, BLOCK, ReqFlags::empty(), 0);
    assert_eq!(read(&disk), Err(code::ETIMEDOUT));
    assert!(start.elapsed() >= Delta::from_secs(3), "three attempts");
    // Comes back in time.
    *fake.how.lock().unwrap() = Behaviour {
        drop_every: 1,
        ..Behaviour::default()
    };
    let healer = {
        let fake = Arc::clone(&fake);
        thread::spawn(move || {
            thread::sleep(std::time::Duration::from_millis(300));
            *fake.how.lock().unwrap() = Behaviour::default();
        })
    };
    assert!(read(&disk).is_ok());
    healer.join().unwrap();
    // Does not come back in time; then does.
    fake.refuse.store(true, Ordering::SeqCst);
    fake.how.lock().unwrap().drop_every = 1;
    drop(disk);
    fake.refuse.store(false, Ordering::SeqCst);
    let disk = open(&fake, "timeout=5&reconnect=1").unwrap();
    fake.refuse.store(true, Ordering::SeqCst);
    assert_eq!(read(&disk), Err(code::ETIMEDOUT));
    assert_eq!(read(&disk), Err(code::ETIMEDOUT));
    fake.how.lock().unwrap().drop_every = 0;
    fake.refuse.store(false, Ordering::SeqCst);
    let end = Instant::now() + Delta::from_secs(30);
    while read(&disk).is_err() {
        assert!(Instant::now() < end, "it must connect again");
        thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_server_that_connects_and_answers_nothing_is_as_good_as_none() {
    let fake = Fake::start(Behaviour {
        drop_every: 1,
        flags: FLAGS | MULTI,
        ..Behaviour::default()
    });
    let disk = open(&fake, "connections=2&reconnect=1").unwrap();
    let read = || run(&disk, BioOp::Read, 0, BLOCK, ReqFlags::empty(), 0);
    let start = Instant::now();
    assert_eq!(read(), Err(code::ETIMEDOUT));
    assert!(start.elapsed() >= Delta::from_secs(1));
    // It was not asked without a pause, and it is used again when it answers.
    let asked = fake.requests.load(Ordering::SeqCst);
    assert!(asked < 40, "{asked}");
    fake.how.lock().unwrap().drop_every = 0;
    let end = Instant::now() + Delta::from_secs(30);
    while read().is_err() {
        assert!(Instant::now() < end, "it must be used again");
        thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn connections_are_made_anew_when_the_export_grows_and_no_write_is_lost() {
    let fake = Fake::start(Behaviour {
        flags: (FLAGS & !8) | MULTI,
        volatile: true,
        ..Behaviour::default()
    });
    // Before it is as large as that, only half of it can be used.
    fake.size.store(SIZE as u64 / 2, Ordering::SeqCst);
    let disk = open(&fake, "connections=3").unwrap();
    let none = ReqFlags::empty();
    for n in 0..64 {
        run(&disk, BioOp::Write, n * BLOCK, BLOCK, none, n as u8 + 1).unwrap();
    }
    assert_eq!(
        run(&disk, BioOp::Read, SIZE / 2, BLOCK, none, 0),
        Err(code::EIO)
    );
    fake.size.store(SIZE as u64, Ordering::SeqCst);
    assert_eq!(disk.revalidate(), Ok(SIZE as u64));
    // This server forgets what was not flushed when a connection ends: it was flushed.
    for n in 0..128 {
        let want = if n < 64 { n as u8 + 1 } else { 0 };
        let got = run(&disk, BioOp::Read, n * BLOCK, BLOCK, none, 0);
        assert_eq!(got, Ok(vec![want; BLOCK]), "block {n}");
    }
    assert_eq!(run(&disk, BioOp::Flush, 0, 0, none, 0), Ok(vec![]));
    assert_eq!(attr(&fake, "connections_lost"), "0\n");
    // Smaller than it was: not used.
    fake.size.store(SIZE as u64 / 4, Ordering::SeqCst);
    assert_eq!(disk.revalidate(), Err(code::EIO));
    assert_eq!(disk.capacity_bytes(), SIZE as u64);
    drop(disk);
    assert_eq!(dropped_bios(), 0);
}

#[test]
fn many_requests_at_once_on_several_connections() {
    let fake = Fake::start(Behaviour {
        flags: FLAGS | MULTI,
        drop_every: 97,
        ..Behaviour::default()
    });
    let disk = open(&fake, "connections=4&cache=writethrough").unwrap();
    let (left, all) = (
        Arc::new(AtomicU32::new(1000)),
        Arc::new(kshim::sync::Completion::new()),
    );
    for i in 0..1000u32 {
        let (left, all) = (Arc::clone(&left), Arc::clone(&all));
        let mut sg = SGTable::alloc(BLOCK).unwrap();
        // Each block is written with one value only, so that the order does not matter.
        sg.fill(0, BLOCK, (i % 128) as u8).unwrap();
        let done = move |_: Bio, status: Result| {
            assert_eq!(status, Ok(()));
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                all.complete_all();
            }
        };
        disk.submit_bio(
            Bio::new(BioOp::Write, u64::from(i % 128), BLOCK, Arc::new(done)).with_sg(sg, 0),
        );
    }
    all.wait_for_completion();
    let data = run(&disk, BioOp::Read, 0, SIZE, ReqFlags::empty(), 0).unwrap();
    assert!(
        data.chunks(BLOCK)
            .enumerate()
            .all(|(i, b)| b.iter().all(|b| *b == i as u8))
    );
    assert_ne!(attr(&fake, "connections_lost"), "0\n");
}

#[test]
fn names_and_flags_are_heeded() {
    let fake = Fake::start(Behaviour::default());
    init();
    let port = fake.port;
    let wrong = BlockDevice::open(format!("/dev/nbd/127.0.0.1:{port}/none"), BlkMode::READ);
    assert_eq!(wrong.err(), Some(code::ENOENT));
    fake.how.lock().unwrap().go = false;
    let wrong = BlockDevice::open(format!("/dev/nbd/127.0.0.1:{port}/none"), BlkMode::READ);
    assert_eq!(wrong.err(), Some(code::ENOENT));
    *fake.how.lock().unwrap() = Behaviour {
        flags: 1 | 2,
        ..Behaviour::default()
    };
    assert_eq!(open(&fake, "").err(), Some(code::EROFS));
    *fake.how.lock().unwrap() = Behaviour {
        flags: 1,
        ..Behaviour::default()
    };
    let disk = open(&fake, "").unwrap();
    let none = ReqFlags::empty();
    assert_eq!(
        (disk.limits().max_discard_bytes, disk.limits().write_cache),
        (0, false)
    );
    assert_eq!(
        run(&disk, BioOp::WriteZeroes, 0, BLOCK, none, 0),
        Err(code::EOPNOTSUPP)
    );
    assert_eq!(run(&disk, BioOp::Flush, 0, 0, none, 0), Ok(vec![]));
    run(&disk, BioOp::Write, 0, BLOCK, ReqFlags::FUA, 3).unwrap();
    drop(disk);
    // A port where nobody is.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let nobody = BlockDevice::open(format!("/dev/nbd/127.0.0.1:{port}/x"), BlkMode::READ);
    assert_eq!(nobody.err(), Some(code::ECONNREFUSED));
}
