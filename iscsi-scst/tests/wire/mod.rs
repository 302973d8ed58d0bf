//! What the connection tests share: a target in this process, and an initiator that sets every byte itself.
#![allow(dead_code, reason = "each test program uses its part")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backstores::ram::{RamConfig, RamDisk};
use iscsi_scst::driver::IscsiDriver;
use iscsi_scst::param::{DIGEST_ALL, KeyValues, SessionKey, TgtParams};
use iscsi_scst::target::IscsiTarget;
use kshim::crypto::crc32c;
use kshim::reactor::{PollerKind, Reactor, ReactorConfig};
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};

pub(crate) const IQN: &str = "iqn.2026-01.org.example:wire";
/// Commands that a session may have queued in these tests.
pub(crate) const QUEUED: u32 = 16;
/// Time in which anything has to have happened.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Both pollers; every test runs with each.
pub(crate) const POLLERS: [PollerKind; 2] = [PollerKind::Uring, PollerKind::Epoll];
const DISK: u64 = 64 << 20;
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A target with a RAM disk as LUN 0 and a null device as LUN 1.
pub(crate) struct Bed {
    pub(crate) core: Arc<Core>,
    pub(crate) driver: Arc<IscsiDriver>,
    pub(crate) target: Arc<IscsiTarget>,
    pub(crate) addr: SocketAddr,
    reactors: Vec<Reactor>,
    _ram: RamDisk,
}

impl Bed {
    pub(crate) fn new(poller: PollerKind) -> Self {
        Self::with(
            poller,
            TgtParams {
                queued_commands: QUEUED,
                ..TgtParams::default()
            },
        )
    }

    pub(crate) fn with(poller: PollerKind, params: TgtParams) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let reactors: Vec<_> = (0..2)
            .map(|r| {
                let mut config = ReactorConfig::new(format!("wire{n}.{r}"));
                config.poller = poller;
                Reactor::spawn(config).expect("a reactor")
            })
            .collect();
        let core = Core::new(CoreParams::default()).expect("a core");
        let handles = reactors.iter().map(Reactor::handle).collect();
        let mut keys = KeyValues::default();
        keys.set(SessionKey::HeaderDigest, DIGEST_ALL);
        keys.set(SessionKey::DataDigest, DIGEST_ALL);
        let driver = IscsiDriver::new(Arc::clone(&core), handles).unwrap();
        let target = driver.add_target(IQN, None, keys, params).unwrap();
        let name = format!("wire{}-{n}", std::process::id());
        let ram = RamDisk::create(&name, &RamConfig::new(DISK)).unwrap();
        let mut block = VdiskParams::new(VdiskKind::Blockio);
        block.filename = Some(ram.path().into());
        let acg = target.tgt().default_acg();
        for (lun, (name, params)) in [
            ("ram", block),
            ("null", VdiskParams::new(VdiskKind::Nullio)),
        ]
        .into_iter()
        .enumerate()
        {
            let vdisk = Vdisk::new(name, &params).unwrap();
            let dev = core.register_virtual_device(name, vdisk).unwrap();
            dev.max_tgt_dev_commands.store(10_000, Ordering::Relaxed);
            core.add_lun(
                target.tgt(),
                acg.id(),
                &dev,
                lun as u64,
                LunParams::default(),
            )
            .unwrap();
        }
        core.enable_target(target.tgt(), true).unwrap();
        let addr = driver.add_portal("127.0.0.1:0".parse().unwrap()).unwrap();
        Self {
            core,
            driver,
            target,
            addr,
            reactors,
            _ram: ram,
        }
    }

    /// Waits until no connection and no session is left.
    pub(crate) fn settle(&self) {
        let end = Instant::now() + PATIENCE;
        while self.driver.conn_count() != 0 || self.target.session_count() != 0 {
            let (conns, sessions) = (self.driver.conn_count(), self.target.session_count());
            assert!(
                Instant::now() < end,
                "{conns} connections, {sessions} sessions are left"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops everything; nothing may be left.
    pub(crate) fn stop(self) {
        assert!(self.driver.stop(), "connections are left");
        assert_eq!(self.driver.conn_count(), 0);
        assert_eq!(self.target.session_count(), 0);
        for dev in ["ram", "null"] {
            self.core.unregister_virtual_device(dev).unwrap();
        }
        self.core.unregister_target(self.target.tgt()).unwrap();
        for r in self.reactors {
            r.stop();
        }
        self.core.shutdown();
    }

    pub(crate) fn login(&self) -> Ini {
        self.login_as(NEXT.fetch_add(1, Ordering::Relaxed), &[])
    }

    pub(crate) fn login_as(&self, port: u32, keys: &[(&str, &str)]) -> Ini {
        let mut ini = Ini::connect(self.addr);
        ini.try_login(port, 0, keys).expect("login");
        ini
    }
}

/// One PDU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pdu {
    pub(crate) bhs: [u8; 48],
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn new(opcode: u8, flags: u8, itt: u32) -> Self {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (opcode, flags);
        let mut pdu = Self {
            bhs,
            data: Vec::new(),
        };
        pdu.set(16, itt);
        pdu
    }

    pub(crate) fn set(&mut self, at: usize, word: u32) -> &mut Self {
        self.bhs[at..at + 4].copy_from_slice(&word.to_be_bytes());
        self
    }

    pub(crate) fn get(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bhs[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self.bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        self
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    pub(crate) fn encode(&self, header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut out = self.bhs.to_vec();
        if header_digest {
            out.extend(crc32c(&self.bhs).to_le_bytes());
        }
        let mut data = self.data.clone();
        data.resize(data.len().next_multiple_of(4), 0);
        out.extend(&data);
        if data_digest && !data.is_empty() {
            out.extend(crc32c(&data).to_le_bytes());
        }
        out
    }
}

pub(crate) const NOP_OUT: u8 = 0x00;
pub(crate) const CMD: u8 = 0x01;
pub(crate) const TMF: u8 = 0x02;
pub(crate) const TEXT: u8 = 0x04;
pub(crate) const DATA_OUT: u8 = 0x05;
pub(crate) const LOGOUT: u8 = 0x06;
pub(crate) const IMMEDIATE: u8 = 0x40;
pub(crate) const F: u8 = 0x80;
pub(crate) const R: u8 = 0x40;
pub(crate) const W: u8 = 0x20;
pub(crate) const NOP_IN: u8 = 0x20;
pub(crate) const RESPONSE: u8 = 0x21;
pub(crate) const TMF_RESPONSE: u8 = 0x22;
pub(crate) const LOGIN_RESPONSE: u8 = 0x23;
pub(crate) const TEXT_RESPONSE: u8 = 0x24;
pub(crate) const DATA_IN: u8 = 0x25;
pub(crate) const LOGOUT_RESPONSE: u8 = 0x26;
pub(crate) const R2T: u8 = 0x31;
pub(crate) const REJECT: u8 = 0x3f;
pub(crate) const NO_TAG: u32 = u32::MAX;

pub(crate) fn read10(lba: u32, blocks: u16) -> [u8; 16] {
    rw10(0x28, lba, blocks)
}

pub(crate) fn write10(lba: u32, blocks: u16) -> [u8; 16] {
    rw10(0x2a, lba, blocks)
}

fn rw10(op: u8, lba: u32, blocks: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = op;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// The answer to a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u8,
    /// Sense key, ASC, ASCQ.
    pub(crate) sense: Option<(u8, u8, u8)>,
    pub(crate) data: Vec<u8>,
    /// Flags (overflow 4, underflow 2) and count.
    pub(crate) residual: (u8, u32),
}

/// The number of the next Data-Out PDU of a burst; the last one ends it.
fn data_sn(itt: u32, ttt: u32, last: bool) -> u32 {
    thread_local! {
        static NEXT: RefCell<HashMap<(u32, u32), u32>> = RefCell::default();
    }
    NEXT.with_borrow_mut(|next| {
        let sn = next.remove(&(itt, ttt)).unwrap_or(0);
        if !last {
            next.insert((itt, ttt), sn + 1);
        }
        sn
    })
}

/// An initiator.
pub(crate) struct Ini {
    pub(crate) sock: TcpStream,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: Option<u32>,
    pub(crate) exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
    pub(crate) itt: u32,
    pub(crate) tsih: u16,
    data_in: HashMap<u32, Vec<u8>>,
}

impl Ini {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).expect("connect"))
    }

    pub(crate) fn over(sock: TcpStream) -> Self {
        sock.set_nodelay(true).unwrap();
        sock.set_read_timeout(Some(PATIENCE)).unwrap();
        sock.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            sock,
            header_digest: false,
            data_digest: false,
            cmd_sn: 1,
            exp_stat_sn: None,
            exp_cmd_sn: 1,
            max_cmd_sn: 1,
            itt: 1,
            tsih: 0,
            data_in: HashMap::new(),
        }
    }

    pub(crate) fn login_pdu(port: u32, tsih: u16, keys: &[(&str, &str)]) -> Pdu {
        let initiator = format!("iqn.2026-01.org.example:ini{port}");
        let mut text = format!("InitiatorName={initiator}\0TargetName={IQN}\0SessionType=Normal\0");
        let has = |key: &str| keys.iter().any(|(k, _)| *k == key);
        for (key, value) in [
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxBurstLength", "65536"),
            ("FirstBurstLength", "65536"),
            ("MaxOutstandingR2T", "4"),
            ("MaxRecvDataSegmentLength", "262144"),
        ] {
            if !has(key) {
                text += &format!("{key}={value}\0");
            }
        }
        for (key, value) in keys {
            text += &format!("{key}={value}\0");
        }
        // From operational negotiation to full feature phase.
        let mut pdu = Pdu::new(0x43, 0x87, 0).data(text.as_bytes());
        pdu.bhs[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, 9]);
        pdu.bhs[14..16].copy_from_slice(&tsih.to_be_bytes());
        pdu.set(24, 1);
        pdu
    }

    /// Logs in. The status if refused; `None` if closed.
    pub(crate) fn try_login(
        &mut self,
        port: u32,
        tsih: u16,
        keys: &[(&str, &str)],
    ) -> Result<(), Option<u16>> {
        self.send(&Self::login_pdu(port, tsih, keys));
        let Some(reply) = self.recv() else {
            return Err(None);
        };
        assert_eq!(reply.opcode(), LOGIN_RESPONSE);
        let status = u16::from_be_bytes([reply.bhs[36], reply.bhs[37]]);
        if status != 0 {
            return Err(Some(status));
        }
        let crc = |key: &str| keys.contains(&(key, "CRC32C"));
        (self.header_digest, self.data_digest) = (crc("HeaderDigest"), crc("DataDigest"));
        self.tsih = u16::from_be_bytes([reply.bhs[14], reply.bhs[15]]);
        Ok(())
    }

    pub(crate) fn send(&mut self, pdu: &Pdu) {
        let bytes = pdu.encode(self.header_digest, self.data_digest);
        self.send_bytes(&bytes);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.sock.write_all(bytes).expect("send");
    }

    /// The next PDU; `None` at the end. Numbers are checked: StatSN goes up by one, MaxCmdSN and ExpCmdSN never back.
    pub(crate) fn recv(&mut self) -> Option<Pdu> {
        let mut bhs = [0; 48];
        match self.sock.read_exact(&mut bhs) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                return None;
            }
            Err(e) => panic!("neither a PDU nor the end: {e}"),
        }
        if self.header_digest {
            let mut digest = [0; 4];
            self.sock.read_exact(&mut digest).unwrap();
            assert_eq!(digest, crc32c(&bhs).to_le_bytes());
        }
        let len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.sock.read_exact(&mut data).unwrap();
        if self.data_digest && len != 0 {
            let mut digest = [0; 4];
            self.sock.read_exact(&mut digest).unwrap();
            assert_eq!(digest, crc32c(&data).to_le_bytes());
        }
        data.truncate(len);
        let pdu = Pdu { bhs, data };
        self.check_numbers(&pdu);
        Some(pdu)
    }

    fn check_numbers(&mut self, pdu: &Pdu) {
        let op = pdu.opcode();
        // The numbers of a refused login mean nothing.
        if op == LOGIN_RESPONSE && pdu.bhs[36] != 0 {
            return;
        }
        let counts = match op {
            DATA_IN => pdu.bhs[1] & 1 != 0,
            NOP_IN => pdu.get(16) != NO_TAG,
            R2T => false,
            _ => true,
        };
        if counts {
            if let Some(expected) = self.exp_stat_sn {
                assert_eq!(pdu.get(24), expected, "StatSN of {pdu:?}");
            }
            self.exp_stat_sn = Some(pdu.get(24).wrapping_add(1));
        }
        let back = |new: u32, old: u32| new.wrapping_sub(old) >= 1 << 31;
        let (exp, max) = (pdu.get(28), pdu.get(32));
        assert!(
            !back(exp, self.exp_cmd_sn),
            "ExpCmdSN went back to {exp}: {pdu:?}"
        );
        if self.exp_stat_sn.is_some() && op != LOGIN_RESPONSE {
            assert!(
                !back(max, self.max_cmd_sn),
                "MaxCmdSN went back to {max}: {pdu:?}"
            );
            assert!(!back(max.wrapping_add(1), exp));
        }
        (self.exp_cmd_sn, self.max_cmd_sn) = (exp, max);
    }

    pub(crate) fn new_itt(&mut self) -> u32 {
        self.itt += 1;
        self.itt
    }

    /// A request with the next CmdSN, which it uses up unless it is immediate.
    pub(crate) fn request(&mut self, opcode: u8, flags: u8, itt: u32) -> Pdu {
        let mut pdu = Pdu::new(opcode, flags, itt);
        pdu.set(24, self.cmd_sn)
            .set(28, self.exp_stat_sn.unwrap_or(0));
        if opcode & IMMEDIATE == 0 {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        pdu
    }

    pub(crate) fn command(&mut self, lun: u8, flags: u8, len: u32, cdb: [u8; 16]) -> Pdu {
        let itt = self.new_itt();
        let mut pdu = self.request(CMD, flags | 1, itt);
        pdu.bhs[9] = lun;
        pdu.set(20, len);
        pdu.bhs[32..48].copy_from_slice(&cdb);
        pdu
    }

    pub(crate) fn data_out(itt: u32, ttt: u32, offset: u32, data: &[u8], last: bool) -> Pdu {
        let mut pdu = Pdu::new(DATA_OUT, if last { F } else { 0 }, itt).data(data);
        pdu.set(20, ttt).set(36, data_sn(itt, ttt, last));
        pdu.set(40, offset);
        pdu
    }

    pub(crate) fn tmf(&mut self, function: u8, lun: u8, rtt: u32, ref_sn: u32) -> u32 {
        let itt = self.new_itt();
        let mut pdu = self.request(TMF | IMMEDIATE, F | function, itt);
        pdu.bhs[9] = lun;
        pdu.set(20, rtt).set(32, ref_sn);
        self.send(&pdu);
        itt
    }

    /// Receives until the answer to `itt` is there. R2Ts are answered with `write`.
    pub(crate) fn reply_writing(&mut self, itt: u32, write: &[u8]) -> Reply {
        loop {
            let pdu = self.recv().expect("an answer, not the end");
            match pdu.opcode() {
                DATA_IN => {
                    let at = pdu.get(40) as usize;
                    let data = self.data_in.entry(pdu.get(16)).or_default();
                    assert_eq!(data.len(), at);
                    data.extend(&pdu.data);
                    if pdu.bhs[1] & 1 != 0 && pdu.get(16) == itt {
                        let data = self.data_in.remove(&itt).unwrap_or_default();
                        let residual = (pdu.bhs[1] & 6, pdu.get(44));
                        return Reply {
                            status: pdu.bhs[3],
                            sense: None,
                            data,
                            residual,
                        };
                    }
                }
                RESPONSE if pdu.get(16) == itt => {
                    let sense = (pdu.data.len() >= 16)
                        .then(|| (pdu.data[4] & 15, pdu.data[14], pdu.data[15]));
                    let residual = (pdu.bhs[1] & 6, pdu.get(44));
                    let data = self.data_in.remove(&itt).unwrap_or_default();
                    return Reply {
                        status: pdu.bhs[3],
                        sense,
                        data,
                        residual,
                    };
                }
                R2T if pdu.get(16) == itt && !write.is_empty() => self.answer_r2t(&pdu, write),
                NOP_IN if pdu.get(16) == NO_TAG => {}
                _ => panic!("instead of the answer to {itt}: {pdu:?}"),
            }
        }
    }

    pub(crate) fn answer_r2t(&mut self, r2t: &Pdu, write: &[u8]) {
        let (at, len) = (r2t.get(40), r2t.get(44));
        let part = &write[at as usize..(at + len) as usize];
        self.send(&Self::data_out(r2t.get(16), r2t.get(20), at, part, true));
    }

    pub(crate) fn reply(&mut self, itt: u32) -> Reply {
        self.reply_writing(itt, &[])
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn run(&mut self, pdu: &Pdu) -> Reply {
        self.send(pdu);
        self.reply(pdu.get(16))
    }

    pub(crate) fn test_unit_ready(&mut self, lun: u8) -> Reply {
        let pdu = self.command(lun, F, 0, [0; 16]);
        self.run(&pdu)
    }

    /// Takes the unit attentions of power on.
    pub(crate) fn clear_ua(&mut self) -> &mut Self {
        for lun in 0..2 {
            while self.test_unit_ready(lun).status != 0 {}
        }
        self
    }

    pub(crate) fn write(&mut self, lba: u32, data: &[u8]) -> Reply {
        let blocks = (data.len() / 512) as u16;
        let pdu = self.command(0, F | W, data.len() as u32, write10(lba, blocks));
        self.send(&pdu);
        self.reply_writing(pdu.get(16), data)
    }

    pub(crate) fn read(&mut self, lba: u32, blocks: u16) -> Reply {
        let pdu = self.command(0, F | R, u32::from(blocks) * 512, read10(lba, blocks));
        self.run(&pdu)
    }

    /// A ping, by which everything before it was processed.
    pub(crate) fn fence(&mut self) {
        let itt = self.new_itt();
        let pdu = self.request(NOP_OUT | IMMEDIATE, F, itt).data(b"fence");
        let mut pdu = pdu;
        pdu.set(20, NO_TAG);
        self.send(&pdu);
        let reply = self.recv().expect("an echo");
        assert_eq!((reply.opcode(), reply.get(16)), (NOP_IN, itt), "{reply:?}");
        assert_eq!(reply.data, b"fence");
    }

    pub(crate) fn logout(mut self) {
        let itt = self.new_itt();
        let pdu = self.request(LOGOUT | IMMEDIATE, F, itt);
        self.send(&pdu);
        let reply = self.recv().expect("a logout response");
        assert_eq!((reply.opcode(), reply.bhs[2]), (LOGOUT_RESPONSE, 0));
        assert!(self.recv().is_none());
    }

    /// Reads to the end, whatever comes. Panics if it does not come.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match self.sock.read_to_end(&mut all) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("the connection does not end: {e}"),
        }
        all
    }
}

/// Text of a response: its value of a key.
pub(crate) fn value_of(pdu: &Pdu, key: &str) -> Option<String> {
    let text = String::from_utf8_lossy(&pdu.data).into_owned();
    text.split('\0')
        .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits = text.trim_start_matches("0x").as_bytes().chunks(2);
    digits
        .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
        .collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold("0x".to_owned(), |text, b| text + &format!("{b:02x}"))
}

/// A small generator: the tests print their seeds.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n.max(1)
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// How often something random is tried: `SCST_WIRE_ROUNDS` times as often as in the short form.
pub(crate) fn rounds(short: usize) -> usize {
    let factor = std::env::var("SCST_WIRE_ROUNDS")
        .ok()
        .and_then(|v| v.parse().ok());
    short * factor.unwrap_or(1)
}
