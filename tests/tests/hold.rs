//! What a hostile peer can make the server hold: its memory is measured while peers do not read, announce data and keep it
//! back, send ahead of their turn, or begin logins and leave them; and afterwards. Others are served meanwhile.

use std::time::{Duration, Instant};

use scst_tests::pdu::{Bhs, FINAL, IMMEDIATE, NO_TAG, Pdu, op};
use scst_tests::{Command, Server, ServerOptions, Session, Wire, scsi};

const DISK_MIB: u64 = 64;
const MIB: u32 = 1 << 20;
/// Blocks of a MiB.
const BLOCKS: u32 = MIB / 512;
/// How much more there may be when all are gone, and when that has to have come true.
const LEFT_KIB: u64 = 16 << 10;
const BACK: Duration = Duration::from_secs(90);

/// A way to hold memory: how many peers do it, and the most that one may hold.
struct Way {
    name: &'static str,
    peers: u32,
    /// In KiB, a quarter above what docs/threat-model.md says: sizes of buffers are rounded up.
    limit_kib: u64,
    begin: fn(&Server, u32) -> Peer,
}

/// Kept open while memory is measured.
enum Peer {
    Session { _kept: Box<Session> },
    Wire { _kept: Wire },
}

const WAYS: [Way; 7] = [
    Way {
        name: "reads 200 MiB, takes no answer",
        peers: 4,
        limit_kib: 12 << 10,
        begin: take_no_answer,
    },
    Way {
        name: "pings with data, takes no echo",
        peers: 4,
        limit_kib: 12 << 10,
        begin: take_no_echo,
    },
    Way {
        name: "announces 200 writes of 16 MiB, sends nothing",
        peers: 4,
        limit_kib: 160 << 10,
        begin: announce_writes,
    },
    Way {
        name: "sends all of its write data but the end of each burst",
        peers: 1,
        limit_kib: 160 << 10,
        begin: hold_back_ends,
    },
    Way {
        name: "announces a data segment, sends its header",
        peers: 16,
        limit_kib: 1500,
        begin: announce_segment,
    },
    Way {
        name: "sends ahead of its turn",
        peers: 4,
        limit_kib: 6 << 10,
        begin: send_ahead,
    },
    Way {
        name: "begins a login and leaves it",
        peers: 200,
        limit_kib: 250,
        begin: begin_login,
    },
];

#[test]
fn a_peer_holds_no_more_than_it_is_granted() {
    let dir = tempfile::tempdir().unwrap();
    let size = format!("--size={DISK_MIB}M");
    let server = Server::start_own(&ServerOptions::file(&dir.path().join("disk")).arg(&size));
    let mut other = server.session(1);
    for n in 0..DISK_MIB {
        let data = vec![n as u8; MIB as usize];
        let lba = n * u64::from(BLOCKS);
        other.write_blocks(server.lun(0), lba, &data).unwrap();
    }
    let start = settled(&server);
    for way in &WAYS {
        let held = measure(&server, &mut other, way);
        assert!(held < way.limit_kib, "{}: {held} KiB", way.name);
    }
    // Free buffers go back to the host when they were idle for some seconds.
    let end = Instant::now() + BACK;
    while server.usage().rss_kib > start + LEFT_KIB {
        let left = server.usage().rss_kib - start;
        assert!(Instant::now() < end, "{left} KiB are left after {BACK:?}");
        std::thread::sleep(Duration::from_millis(250));
    }
    other.close().unwrap();
    assert!(server.stop().success());
}

/// How much each peer of a way holds, in KiB.
fn measure(server: &Server, other: &mut Session, way: &Way) -> u64 {
    let before = settled(server);
    let peers: Vec<_> = (0..way.peers)
        .map(|n| (way.begin)(server, 100 + n))
        .collect();
    let during = settled(server);
    other.expect_blocks(server.lun(0), u64::from(BLOCKS), &[1; 512]);
    let held = during.saturating_sub(before) / u64::from(way.peers);
    println!(
        "{}: {held} KiB each of {} (resident {before} before, {during} then)",
        way.name, way.peers
    );
    drop(peers);
    held
}

/// Resident KiB once that has stopped changing.
fn settled(server: &Server) -> u64 {
    let end = Instant::now() + Duration::from_secs(10);
    let (mut last, mut same) = (server.usage(), 0);
    while same < 5 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(60));
        let now = server.usage();
        let still = now.rss_kib.abs_diff(last.rss_kib) < 64 && now.fds == last.fds;
        same = if still { same + 1 } else { 0 };
        last = now;
    }
    last.rss_kib
}

fn session(server: &Server, n: u32, keys: &[(&str, &str)]) -> Session {
    let options = keys
        .iter()
        .fold(server.options().initiator(n), |o, (k, v)| o.key(k, v));
    let mut session = Session::open(server.addr, &options).expect("login");
    session.clear_ua(server.lun(0)).unwrap();
    session
}

fn kept(session: Session) -> Peer {
    Peer::Session {
        _kept: Box::new(session),
    }
}

fn take_no_answer(server: &Server, n: u32) -> Peer {
    let mut s = session(server, n, &[("MaxBurstLength", "1048576")]);
    for at in 0..200 {
        let cdb = scsi::read16(u64::from(at % 60 * BLOCKS), BLOCKS);
        s.submit_now(&Command::read(server.lun(0), cdb, MIB))
            .unwrap();
    }
    kept(s)
}

/// Sends until nothing is taken any more: the server does not read on.
fn take_no_echo(server: &Server, n: u32) -> Peer {
    let mut s = session(server, n, &[]);
    let mut bhs = Bhs::new(op::NOP_OUT | IMMEDIATE, FINAL);
    bhs.set_word(16, 77).set_word(20, NO_TAG);
    s.number(&mut bhs);
    let ping = Pdu::new(bhs, Vec::new(), vec![0x55; 250_000]).encode(false, false);
    send_until_full(&mut s.wire, &ping);
    kept(s)
}

fn send_until_full(wire: &mut Wire, bytes: &[u8]) {
    for _ in 0..1000 {
        if !wire.send_blind(bytes, Duration::from_millis(300)) {
            return;
        }
    }
    panic!("{} MiB are taken", (bytes.len() * 1000) >> 20);
}

const SOLICITED: [(&str, &str); 3] = [
    ("InitialR2T", "Yes"),
    ("MaxBurstLength", "1048576"),
    ("MaxOutstandingR2T", "32"),
];

fn big_write(server: &Server, n: u64) -> Command {
    let cdb = scsi::write16(n * u64::from(16 * BLOCKS), 16 * BLOCKS);
    let mut write = Command::write(server.lun(0), cdb, Vec::new()).held();
    (write.rw_bits, write.expected_len) = (Some(0x20), Some(16 * MIB));
    write
}

fn announce_writes(server: &Server, n: u32) -> Peer {
    let mut s = session(server, n, &SOLICITED);
    for _ in 0..200 {
        s.submit_now(&big_write(server, 0)).unwrap();
    }
    kept(s)
}

fn hold_back_ends(server: &Server, n: u32) -> Peer {
    let mut s = session(server, n, &SOLICITED);
    let itts: Vec<_> = (0..16)
        .map(|_| s.submit_now(&big_write(server, 0)).unwrap())
        .collect();
    let end = Instant::now() + Duration::from_secs(20);
    let mut sent = 0;
    // Eight commands may ask for their data; of each burst nothing but the end is missing, so that no other follows.
    while sent < 128 {
        assert!(Instant::now() < end, "{sent} bursts were asked for");
        s.listen(Duration::from_millis(20)).unwrap();
        let asked: Vec<_> = itts.iter().flat_map(|&i| s.held(i).to_vec()).collect();
        for r2t in asked.iter().skip(sent) {
            let len = r2t.len as usize - 512;
            for (sn, at) in (0..len).step_by(1 << 18).enumerate() {
                let mut bhs = Bhs::new(op::DATA_OUT, 0);
                bhs.set_lun(r2t.lun)
                    .set_word(16, r2t.itt)
                    .set_word(20, r2t.ttt)
                    .set_word(36, sn as u32)
                    .set_word(40, r2t.offset + at as u32);
                let piece = vec![0xee; (len - at).min(1 << 18)];
                s.wire.send(&Pdu::new(bhs, Vec::new(), piece)).unwrap();
            }
        }
        sent = asked.len();
    }
    kept(s)
}

fn announce_segment(server: &Server, n: u32) -> Peer {
    let mut s = session(server, n, &[]);
    let mut bhs = Bhs::new(op::NOP_OUT | IMMEDIATE, FINAL);
    bhs.set_word(16, 77).set_word(20, NO_TAG);
    s.number(&mut bhs);
    bhs.set_data_len(MIB as usize);
    s.wire.send_bytes(&bhs.0).unwrap();
    kept(s)
}

fn send_ahead(server: &Server, n: u32) -> Peer {
    let mut s = session(server, n, &[]);
    let mut turn = Bhs::new(op::NOP_OUT, FINAL);
    // Its turn never comes.
    s.number(&mut turn);
    for tag in 0..63 {
        let mut bhs = Bhs::new(op::NOP_OUT, FINAL);
        bhs.set_word(16, 1000 + tag).set_word(20, NO_TAG);
        s.number(&mut bhs);
        let ping = Pdu::new(bhs, Vec::new(), vec![0x33; 65_000]);
        s.wire.send(&ping).unwrap();
    }
    kept(s)
}

fn begin_login(server: &Server, _: u32) -> Peer {
    let mut wire = Wire::connect(server.addr).expect("connect");
    let mut bhs = Bhs::new(op::LOGIN | IMMEDIATE, 0x40);
    bhs.0[8] = 0x80;
    // Text that goes on in the next PDU, and a PDU of which the end is missing.
    for _ in 0..7 {
        let text = vec![b'a'; 8000];
        wire.send(&Pdu::new(bhs, Vec::new(), text)).unwrap();
    }
    bhs.set_data_len(8192);
    wire.send_bytes(&bhs.0).unwrap();
    wire.send_bytes(&vec![b'a'; 8000]).unwrap();
    Peer::Wire { _kept: wire }
}
