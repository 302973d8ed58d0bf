//! Sessions that end at the worst moment: while others do verified I/O, sessions are cut in the middle of a login, of
//! a header, of data, of a burst, with commands executing. Afterwards nothing of them is left in the server.
//!
//! `SCST_TORN_SESSIONS` sets their number (500), `SCST_SEED` the random moments, `SCST_TORN_WAY` one of the ways alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use scst_tests::pdu::{Bhs, FINAL, Pdu, op};
use scst_tests::procfs::Usage;
use scst_tests::rng::stamped_blocks;
use scst_tests::scsi;
use scst_tests::session::{Login, stage, tmf};
use scst_tests::tools::env_number;
use scst_tests::{Command, PollerKind, Rng, Server, ServerOptions, Session};

/// Sessions with verified I/O.
const BYSTANDERS: u64 = 2;
/// Threads that tear sessions.
const TEARERS: u64 = 3;
/// Blocks that each bystander owns; what is torn writes behind all of them.
const REGION_BLOCKS: u64 = 8192;
/// Torn sessions before the first look at the server's resources.
const WARM_UP: u64 = 50;
/// How long the server may take to forget the last session.
const SETTLE: Duration = Duration::from_secs(30);
/// Ways to tear a session in full feature phase: the last is to do nothing before its end.
const WAYS: u64 = 9;
/// Resident memory that may be gained, in KiB: caches, heap that the allocator keeps.
const MAX_GROWTH_KIB: u64 = 16 << 10;

#[test]
fn torn_sessions_leave_nothing_behind_on_io_uring() {
    if scst_tests::server::io_uring_works() {
        torn_sessions(PollerKind::Uring);
    }
}

#[test]
fn torn_sessions_leave_nothing_behind_on_epoll() {
    torn_sessions(PollerKind::Epoll);
}

fn torn_sessions(poller: PollerKind) {
    let count = env_number("SCST_TORN_SESSIONS", 500);
    let server = Server::start(&ServerOptions::lun("64M").poller(poller).cpus(2));
    let mut rng = Rng::from_env(31);
    // The whole RAM disk becomes resident now.
    let mut first = server.session(1);
    for at in 0..256 {
        first
            .write_blocks(server.lun(0), at * 512, &vec![0; 512 * 512])
            .unwrap();
    }
    first.close().unwrap();
    let seed = rng.next_u64();
    tear_among_bystanders(&server, WARM_UP, seed);
    let before = settled(&server, None);
    let start = Instant::now();
    tear_among_bystanders(&server, count, seed.wrapping_add(1));
    let after = settled(&server, Some(before));
    println!(
        "{poller:?}: {count} torn sessions in {:?}\nbefore {before:?}\nafter  {after:?}",
        start.elapsed()
    );
    assert!(after.fds <= before.fds, "descriptors leak");
    assert!(after.threads <= before.threads, "threads leak");
    assert!(
        after.rss_kib <= before.rss_kib + MAX_GROWTH_KIB,
        "memory leaks"
    );
    let mut last = server.session(2);
    last.write_blocks(server.lun(0), 0, &[9; 512]).unwrap();
    last.assert_clean();
    last.close().unwrap();
    if !Server::is_external() {
        assert!(
            server.stop().success(),
            "commands of torn sessions keep the server from stopping"
        );
    }
}

/// Usage after the server had time to forget; with `target`, until it is reached at the latest.
fn settled(server: &Server, target: Option<Usage>) -> Usage {
    let end = Instant::now() + SETTLE;
    let mut last = server.usage();
    loop {
        thread::sleep(Duration::from_millis(250));
        let now = server.usage();
        let done = match target {
            Some(t) => now.fds <= t.fds && now.threads <= t.threads,
            None => (now.fds, now.threads) == (last.fds, last.threads),
        };
        if done || Instant::now() > end {
            return now;
        }
        last = now;
    }
}

fn tear_among_bystanders(server: &Server, count: u64, seed: u64) {
    let stop = AtomicBool::new(false);
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        let bystanders: Vec<_> = (0..BYSTANDERS)
            .map(|n| {
                let stop = &stop;
                scope.spawn(move || bystander(server, n, seed, stop))
            })
            .collect();
        let tearers: Vec<_> = (0..TEARERS)
            .map(|t| {
                let next = &next;
                scope.spawn(move || {
                    let mut rng = Rng::new(seed ^ (t << 56));
                    while next.fetch_add(1, Ordering::Relaxed) < count {
                        tear_one(server, t, &mut rng);
                    }
                })
            })
            .collect();
        let failed = tearers.into_iter().filter_map(|t| t.join().err()).count();
        stop.store(true, Ordering::Relaxed);
        let ios: u64 = bystanders
            .into_iter()
            .map(|b| b.join().expect("a bystander was disturbed"))
            .sum();
        assert_eq!(failed, 0, "threads that tear sessions failed");
        println!("{count} sessions torn, {ios} verified transfers of bystanders");
    });
}

/// Writes and reads its own region, several commands in flight, and checks every byte.
fn bystander(server: &Server, n: u64, seed: u64, stop: &AtomicBool) -> u64 {
    const PIECES: u64 = 16;
    let lun = server.lun(0);
    let mut s = server.session(100 + n as u32);
    let mut rng = Rng::new(seed.rotate_left(8) ^ n);
    let blocks = REGION_BLOCKS / PIECES;
    let mut generation = 0;
    let mut ios = 0;
    while !stop.load(Ordering::Relaxed) {
        generation += 1;
        let base = n * REGION_BLOCKS;
        let len = 1 + rng.below(blocks.min(256));
        let place = |piece: u64| base + piece * blocks;
        let writes: Vec<u32> = (0..PIECES)
            .map(|piece| {
                let data = stamped_blocks(place(piece), len, generation);
                s.submit(&Command::write(
                    lun,
                    scsi::write16(place(piece), len as u32),
                    data,
                ))
                .unwrap()
            })
            .collect();
        for tag in writes {
            s.wait_scsi(tag).unwrap().good();
        }
        let reads: Vec<u32> = (0..PIECES)
            .map(|piece| {
                let cdb = scsi::read16(place(piece), len as u32);
                s.submit(&Command::read(lun, cdb, len as u32 * 512))
                    .unwrap()
            })
            .collect();
        for (piece, tag) in reads.into_iter().enumerate() {
            let data = s.wait_scsi(tag).unwrap().good();
            let expected = stamped_blocks(place(piece as u64), len, generation);
            assert!(data == expected, "piece {piece} of bystander {n} changed");
        }
        ios += 2 * PIECES;
    }
    s.assert_clean();
    s.close().unwrap();
    ios
}

/// Opens a session and tears it in one of many ways.
fn tear_one(server: &Server, tearer: u64, rng: &mut Rng) {
    // A few initiator names, so that reinstatement of a session that is being torn down happens as well.
    let initiator = (200 + tearer * 10 + rng.below(3)) as u32;
    if rng.one_in(6) {
        tear_in_login(server, initiator, rng);
        return;
    }
    let r2t = if rng.one_in(2) { "No" } else { "Yes" };
    let options = server
        .options()
        .initiator(initiator)
        .key("InitialR2T", r2t)
        .key("MaxOutstandingR2T", "4");
    let mut s = Session::open(server.addr, &options).unwrap_or_else(|e| panic!("login: {e}"));
    // To find out which way it is that hurts.
    let way = env_number("SCST_TORN_WAY", rng.below(WAYS));
    match way {
        0 => cut_in_header(&mut s, rng),
        1 => cut_in_immediate_data(server, &mut s, rng),
        2 => cut_in_burst(server, &mut s, rng),
        3 => leave_reads_unread(server, &mut s, rng),
        4 => leave_writes_waiting(server, &mut s, rng),
        5 => leave_a_gap(server, &mut s),
        6 => leave_during_task_management(server, &mut s, rng),
        7 => leave_during_logout(server, &mut s),
        _ => {}
    }
    if rng.one_in(3) {
        thread::sleep(Duration::from_micros(rng.below(3000)));
    }
    match rng.below(3) {
        0 => s.kill(),
        // End of stream with commands under way, then the reset that a close with unread data gives.
        1 => s.wire.shutdown_write(),
        _ => drop(s),
    }
}

/// An LBA behind the bystanders' regions.
fn free_lba(rng: &mut Rng) -> u64 {
    BYSTANDERS * REGION_BLOCKS + rng.below(64) * 1024
}

fn tear_in_login(server: &Server, initiator: u32, rng: &mut Rng) {
    let options = server.options().initiator(initiator);
    let mut login = Login::connect(server.addr, options.isid).unwrap();
    let keys = [
        ("InitiatorName", options.initiator.as_str()),
        ("TargetName", server.iqn.as_str()),
        ("SessionType", "Normal"),
        ("AuthMethod", "None"),
    ];
    let request = login.request(stage::SECURITY, stage::OPERATIONAL, FINAL, &keys);
    let bytes = request.encode(false, false);
    match rng.below(3) {
        0 => {}
        1 => login
            .wire
            .send_bytes(&bytes[..rng.below(bytes.len() as u64) as usize])
            .unwrap(),
        _ => {
            // The target may answer before the connection ends, or not.
            let _ = login.exchange(&request);
        }
    }
    login.wire.reset();
}

fn cut_in_header(s: &mut Session, rng: &mut Rng) {
    let mut bhs = Bhs::new(op::SCSI_COMMAND, FINAL | 1);
    s.number(&mut bhs);
    let bytes = Pdu::bare(bhs).encode(false, false);
    s.wire.send_bytes(&bytes[..rng.below(48) as usize]).unwrap();
}

fn cut_in_immediate_data(server: &Server, s: &mut Session, rng: &mut Rng) {
    let blocks = 1 + rng.below(64) as u32;
    let mut bhs = Bhs::new(op::SCSI_COMMAND, FINAL | 0x20 | 1);
    let itt = s.new_itt();
    bhs.set_lun(scsi::lun_field(server.lun(0)))
        .set_word(16, itt)
        .set_word(20, blocks * 512);
    s.number(&mut bhs);
    bhs.0[32..48].copy_from_slice(&scsi::write16(free_lba(rng), blocks));
    let bytes = Pdu::new(bhs, Vec::new(), vec![0xee; blocks as usize * 512]).encode(false, false);
    let cut = 48 + rng.below(bytes.len() as u64 - 48) as usize;
    s.wire.send_bytes(&bytes[..cut]).unwrap();
}

fn cut_in_burst(server: &Server, s: &mut Session, rng: &mut Rng) {
    let write = Command::write(
        server.lun(0),
        scsi::write16(free_lba(rng), 1024),
        vec![0xdd; 1024 * 512],
    );
    let tag = s.submit(&write.solicited().held()).unwrap();
    while s.held(tag).is_empty() {
        s.pump(Instant::now() + s.wire.timeout).unwrap();
    }
    let r2t = s.held(tag)[0];
    let mut bhs = Bhs::new(op::DATA_OUT, FINAL);
    bhs.set_lun(r2t.lun)
        .set_word(16, r2t.itt)
        .set_word(20, r2t.ttt)
        .set_word(40, r2t.offset);
    let len = (r2t.len as usize).min(s.params.target_max_recv);
    let bytes = Pdu::new(bhs, Vec::new(), vec![0xdd; len]).encode(false, false);
    s.wire
        .send_bytes(&bytes[..rng.below(bytes.len() as u64) as usize])
        .unwrap();
}

fn leave_reads_unread(server: &Server, s: &mut Session, rng: &mut Rng) {
    for _ in 0..1 + rng.below(24) {
        if !s.window_open() {
            return;
        }
        let read = Command::read(server.lun(0), scsi::read16(free_lba(rng), 1024), 512 << 10);
        s.submit_now(&read).unwrap();
    }
}

fn leave_writes_waiting(server: &Server, s: &mut Session, rng: &mut Rng) {
    let mut last = 0;
    for _ in 0..1 + rng.below(8) {
        let write = Command::write(
            server.lun(0),
            scsi::write16(free_lba(rng), 256),
            vec![0xcc; 128 << 10],
        );
        last = s.submit(&write.solicited().held()).unwrap();
    }
    while rng.one_in(2) && s.held(last).is_empty() {
        s.pump(Instant::now() + s.wire.timeout).unwrap();
    }
}

fn leave_a_gap(server: &Server, s: &mut Session) {
    s.cmd_sn = s.cmd_sn.wrapping_add(1);
    for _ in 0..4 {
        if s.window_open() {
            s.submit_now(&Command::read(server.lun(0), scsi::read10(0, 8), 4096))
                .unwrap();
        }
    }
}

fn leave_during_task_management(server: &Server, s: &mut Session, rng: &mut Rng) {
    let lun = server.lun(0);
    let write = Command::write(
        lun,
        scsi::write16(free_lba(rng), 256),
        vec![0xbb; 128 << 10],
    );
    let tag = s.submit(&write.solicited().held()).unwrap();
    s.submit_tmf(tmf::ABORT_TASK, lun, Some(tag)).unwrap();
    if rng.one_in(2) {
        s.submit_tmf(tmf::ABORT_TASK_SET, lun, None).unwrap();
    }
}

fn leave_during_logout(server: &Server, s: &mut Session) {
    for _ in 0..8 {
        s.submit(&Command::read(
            server.lun(0),
            scsi::read10(0, 128),
            64 << 10,
        ))
        .unwrap();
    }
    s.submit_logout(0).unwrap();
}
