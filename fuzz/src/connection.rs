//! A whole connection: a server in this process, and an initiator that sends what it is given.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};

use backstores::ram::{RamConfig, RamDisk};
use iscsi_scst::driver::IscsiDriver;
use iscsi_scst::param::{DIGEST_ALL, KeyValues, SessionKey, TgtParams};
use kshim::crypto::crc32c;
use kshim::error::code;
use kshim::net::{How, Socket, SocketAddr};
use kshim::reactor::{Reactor, ReactorConfig, Ready};
use kshim::time::Delta;
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};

/// The target.
pub(crate) const TARGET: &str = "iqn.2026-01.org.example:fuzz";
/// Sessions after which the server has to show that it still serves.
const PROBE_EVERY: u64 = 512;
/// Time in which a connection has to end.
const PATIENCE_MS: i64 = 20_000;
/// How long answers are waited for before the initiator closes, where it answers R2Ts.
const LINGER_MS: i64 = 20;
/// Most data that R2Ts of one connection are answered with.
const R2T_MAX: usize = 1 << 20;

/// Bits of an input's first byte.
mod mode {
    pub(super) const HEADER_DIGEST: u8 = 1;
    pub(super) const DATA_DIGEST: u8 = 2;
    /// CmdSN of each request is the one that is expected.
    pub(super) const NUMBERED: u8 = 4;
    pub(super) const INITIAL_R2T: u8 = 8;
    pub(super) const NO_IMMEDIATE: u8 = 0x10;
    /// The bytes are sent as they are, from the login on.
    pub(super) const RAW: u8 = 0x20;
    /// R2Ts are answered.
    pub(super) const ANSWER: u8 = 0x40;
    /// Lengths are sent as they are.
    pub(super) const LENGTHS: u8 = 0x80;
}

/// A server that is never stopped.
struct Bed {
    addr: SocketAddr,
    _core: Arc<Core>,
    _driver: Arc<IscsiDriver>,
    _reactor: Reactor,
    _ram: RamDisk,
}

static BED: OnceLock<Bed> = OnceLock::new();
static RUNS: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics of all threads from now on, beside showing them.
pub fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
}

/// Panics since [`watch_panics`].
pub fn panics() -> u64 {
    PANICS.load(Ordering::SeqCst)
}

fn start() -> Bed {
    let reactor = Reactor::spawn(ReactorConfig::new("fuzz")).expect("a reactor");
    let core = Core::new(CoreParams::default()).expect("a core");
    let driver = IscsiDriver::new(Arc::clone(&core), vec![reactor.handle()]).expect("a driver");
    let mut keys = KeyValues::default();
    for key in [SessionKey::HeaderDigest, SessionKey::DataDigest] {
        keys.set(key, DIGEST_ALL);
    }
    let params = TgtParams::default();
    let target = driver
        .add_target(TARGET, Some("fuzz".to_owned()), keys, params)
        .expect("a target");
    let name = format!("fuzz{}", std::process::id());
    let ram = RamDisk::create(&name, &RamConfig::new(8 << 20)).expect("a disk");
    let mut block = VdiskParams::new(VdiskKind::Blockio);
    block.filename = Some(ram.path().into());
    let acg = target.tgt().default_acg();
    let luns = [
        ("ram", block),
        ("null", VdiskParams::new(VdiskKind::Nullio)),
    ];
    for (lun, (name, params)) in (0..).zip(luns) {
        let vdisk = Vdisk::new(name, &params).expect("a vdisk");
        let dev = core.register_virtual_device(name, vdisk).expect("a device");
        core.add_lun(target.tgt(), acg.id(), &dev, lun, LunParams::default())
            .expect("a LUN");
    }
    target.tgt().enabled.store(true, Ordering::Release);
    let addr = driver
        .add_portal(([127, 0, 0, 1], 0).into())
        .expect("a portal");
    Bed {
        addr,
        _core: core,
        _driver: driver,
        _reactor: reactor,
        _ram: ram,
    }
}

/// Logs in to a server and sends it PDUs; bits of the first byte say how (see the source), and the low bits of the second
/// which initiator it is.
///
/// # Panics
///
/// If the connection does not end, a thread of the server panics, or, from time to time, if it does not serve others.
pub fn connection(data: &[u8]) {
    watch_panics();
    let bed = BED.get_or_init(start);
    let before = panics();
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    if run.is_multiple_of(PROBE_EVERY) {
        probe(bed.addr);
    }
    let [mode, port, body @ ..] = data else {
        return;
    };
    let mut peer = Peer::connect(bed.addr, *mode);
    if mode & mode::RAW != 0 {
        peer.out.extend_from_slice(body);
    } else {
        peer.login(*port & 3);
        peer.requests(body);
    }
    peer.run();
    assert_eq!(panics(), before, "a thread of the server panicked");
}

/// A session that does nothing wrong.
fn probe(addr: SocketAddr) {
    let mut peer = Peer::connect(addr, mode::NUMBERED);
    peer.login(9);
    let mut test_unit_ready = [0u8; 48];
    (test_unit_ready[0], test_unit_ready[1]) = (1, 0x81);
    peer.requests(&test_unit_ready);
    let mut logout = [0u8; 48];
    (logout[0], logout[1]) = (6, 0x80);
    peer.requests(&logout);
    peer.run();
    let seen: Vec<u8> = peer.seen;
    assert_eq!(
        seen,
        [0x23, 0x21, 0x26],
        "login, command and logout answered"
    );
}

struct Peer {
    sock: Socket,
    mode: u8,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// Opcodes of what came.
    seen: Vec<u8>,
    cmd_sn: u32,
    full_feature: bool,
    r2t_left: usize,
}

impl Peer {
    fn connect(addr: SocketAddr, mode: u8) -> Self {
        Self {
            sock: Socket::connect(addr).expect("connect"),
            mode,
            out: Vec::new(),
            sent: 0,
            input: Vec::new(),
            seen: Vec::new(),
            cmd_sn: 1,
            full_feature: false,
            r2t_left: R2T_MAX,
        }
    }

    fn has(&self, bit: u8) -> bool {
        self.mode & bit != 0
    }

    fn login(&mut self, port: u8) {
        let yes = |on| if on { "Yes" } else { "No" };
        let crc = |on| if on { "CRC32C" } else { "None" };
        let text = format!(
            "InitiatorName=iqn.i:{port}\0TargetName={TARGET}\0InitialR2T={}\0ImmediateData={}\0HeaderDigest={}\0\
             DataDigest={}\0MaxRecvDataSegmentLength=65536\0iSCSIProtocolLevel=2\0",
            yes(self.has(mode::INITIAL_R2T)),
            yes(!self.has(mode::NO_IMMEDIATE)),
            crc(self.has(mode::HEADER_DIGEST)),
            crc(self.has(mode::DATA_DIGEST)),
        );
        let mut bhs = [0u8; 48];
        (bhs[0], bhs[1], bhs[8]) = (0x43, 0x87, 0x80);
        bhs[24..28].copy_from_slice(&1u32.to_be_bytes());
        self.pdu(bhs, &[], text.as_bytes(), false);
    }

    /// Cuts bytes into PDUs and queues them.
    fn requests(&mut self, mut bytes: &[u8]) {
        while let Some((bhs, rest)) = bytes.split_first_chunk::<48>() {
            let mut bhs = *bhs;
            let ahs = usize::from(bhs[4]) * 4;
            let ahs = if ahs > rest.len() { 0 } else { ahs };
            let announced = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]);
            let data_len = usize::try_from(announced).unwrap_or(0);
            let data_len = data_len.min(rest.len() - ahs);
            if !self.has(mode::LENGTHS) {
                bhs[4] = u8::try_from(ahs / 4).unwrap_or(0);
                let len = u32::try_from(data_len).unwrap_or(0).to_be_bytes();
                bhs[5..8].copy_from_slice(&len[1..]);
            }
            let opcode = bhs[0] & 0x3f;
            if self.has(mode::NUMBERED) && !matches!(opcode, 5 | 0x10) {
                bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
                if bhs[0] & 0x40 == 0 {
                    self.cmd_sn = self.cmd_sn.wrapping_add(1);
                }
            }
            let (ahs, rest) = rest.split_at(ahs);
            let (data, rest) = rest.split_at(data_len);
            self.pdu(bhs, ahs, data, true);
            bytes = rest;
        }
        self.out.extend_from_slice(bytes);
    }

    fn pdu(&mut self, mut bhs: [u8; 48], ahs: &[u8], data: &[u8], digests: bool) {
        if !digests {
            let len = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
            bhs[5..8].copy_from_slice(&len[1..]);
        }
        let begin = self.out.len();
        self.out.extend_from_slice(&bhs);
        self.out.extend_from_slice(ahs);
        if digests && self.has(mode::HEADER_DIGEST) {
            let crc = crc32c(&self.out[begin..]);
            self.out.extend_from_slice(&crc.to_le_bytes());
        }
        let begin = self.out.len();
        self.out.extend_from_slice(data);
        let pad = data.len().next_multiple_of(4) - data.len();
        self.out.extend(std::iter::repeat_n(0, pad));
        if digests && self.has(mode::DATA_DIGEST) && !data.is_empty() {
            let crc = crc32c(&self.out[begin..]);
            self.out.extend_from_slice(&crc.to_le_bytes());
        }
    }

    /// Sends all there is, takes all that comes, closes, and waits for the end.
    fn run(&mut self) {
        let mut closed = false;
        loop {
            let left = self.out.len() - self.sent;
            if left == 0 && !closed && !self.has(mode::ANSWER) {
                // An error says that the server was faster.
                let _ = self.sock.shutdown(How::Write);
                closed = true;
            }
            let events = if left == 0 {
                Ready::READ
            } else {
                Ready::READ | Ready::WRITE
            };
            let wait_ms = if left == 0 && !closed {
                LINGER_MS
            } else {
                PATIENCE_MS
            };
            let ready = self.sock.wait(events, Some(Delta::from_millis(wait_ms)));
            let ready = ready.expect("poll");
            if ready.is_empty() && !closed {
                let _ = self.sock.shutdown(How::Write);
                closed = true;
                self.sent = self.out.len();
                continue;
            }
            assert!(!ready.is_empty(), "the connection does not end");
            if self.receive() || (left != 0 && self.send()) {
                return;
            }
        }
    }

    /// Answers whether the connection has ended.
    fn send(&mut self) -> bool {
        match self.sock.send(&self.out[self.sent..]) {
            Ok(n) => {
                self.sent += n;
                false
            }
            Err(e) => e != code::EAGAIN,
        }
    }

    /// Answers whether the connection has ended.
    fn receive(&mut self) -> bool {
        let mut buf = [0; 16 << 10];
        match self.sock.recv_bytes(&mut buf) {
            Ok(0) => true,
            Ok(n) => {
                self.input.extend_from_slice(&buf[..n]);
                while let Some(len) = self.take_pdu() {
                    self.input.drain(..len);
                }
                false
            }
            Err(e) => e != code::EAGAIN,
        }
    }

    /// Looks at the next PDU, if it is there as a whole; its length.
    fn take_pdu(&mut self) -> Option<usize> {
        let bhs = *self.input.first_chunk::<48>()?;
        let opcode = bhs[0] & 0x3f;
        let data = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]);
        let data = usize::try_from(data).ok()?;
        let digests = self.full_feature && opcode != 0x23;
        let mut len = 48 + data.next_multiple_of(4);
        if digests && self.has(mode::HEADER_DIGEST) {
            len += 4;
        }
        if digests && self.has(mode::DATA_DIGEST) && data != 0 {
            len += 4;
        }
        if self.input.len() < len {
            return None;
        }
        self.seen.push(opcode);
        self.full_feature |= opcode == 0x23;
        if opcode == 0x31 && self.has(mode::ANSWER) {
            self.answer_r2t(&bhs);
        }
        Some(len)
    }

    fn answer_r2t(&mut self, r2t: &[u8; 48]) {
        let word = |at: usize| u32::from_be_bytes([r2t[at], r2t[at + 1], r2t[at + 2], r2t[at + 3]]);
        let len = usize::try_from(word(44)).unwrap_or(0);
        if len > self.r2t_left || self.sent > self.out.len() {
            return;
        }
        self.r2t_left -= len;
        let mut bhs = [0u8; 48];
        (bhs[0], bhs[1]) = (5, 0x80);
        bhs[8..16].copy_from_slice(&r2t[8..16]);
        bhs[16..24].copy_from_slice(&r2t[16..24]);
        bhs[40..44].copy_from_slice(&word(40).to_be_bytes());
        let len_bytes = u32::try_from(len).unwrap_or(0).to_be_bytes();
        bhs[5..8].copy_from_slice(&len_bytes[1..]);
        self.pdu(bhs, &[], &vec![0x77; len], true);
    }
}
