//! An iSCSI session with one connection, written to see everything: it sends what it is told, takes what comes, and
//! keeps a list of what the target did wrong ([`Session::violations`]).
//!
//! Several commands may be in flight: [`Session::submit`] sends one, [`Session::wait`] takes the end of one, and
//! whatever arrives meanwhile for others is kept. R2Ts and NOP-In pings are answered on the way.

mod command;
mod login;
mod receive;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use command::{Command, Reply, Residual, attr};
pub use login::{CONTINUE, Login, LoginError, LoginReply, TRANSIT, stage};

use crate::pdu::{Bhs, FINAL, IMMEDIATE, NO_TAG, Pdu, encode_text, op};
use crate::scsi::{self, lun_field};
use crate::wire::{Wire, WireError};

/// Task management functions of RFC 7143 11.5.1.
#[expect(missing_docs, reason = "names of RFC 7143 11.5.1")]
pub mod tmf {
    pub const ABORT_TASK: u8 = 1;
    pub const ABORT_TASK_SET: u8 = 2;
    pub const CLEAR_ACA: u8 = 3;
    pub const CLEAR_TASK_SET: u8 = 4;
    pub const LOGICAL_UNIT_RESET: u8 = 5;
    pub const TARGET_WARM_RESET: u8 = 6;
    pub const TARGET_COLD_RESET: u8 = 7;
    pub const TASK_REASSIGN: u8 = 8;
    /// Response: function complete.
    pub const COMPLETE: u8 = 0;
    /// Response: task does not exist.
    pub const NO_TASK: u8 = 1;
}

/// Why a request of a session has no answer.
#[derive(Debug)]
pub enum Error {
    /// The connection failed.
    Wire(WireError),
    /// The target rejected the PDU with this reason.
    Rejected(u8),
    /// An answer of another kind.
    Unexpected(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wire(e) => write!(f, "{e}"),
            Self::Rejected(reason) => write!(f, "rejected, reason {reason:02x}"),
            Self::Unexpected(what) => write!(f, "unexpected answer: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<WireError> for Error {
    fn from(e: WireError) -> Self {
        Self::Wire(e)
    }
}

impl Error {
    /// True if the target closed the connection.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Wire(WireError::Closed))
    }
}

/// What a session is opened with.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// InitiatorName.
    pub initiator: String,
    /// ISID.
    pub isid: [u8; 6],
    /// TSIH: not 0 to reinstate a session's connection.
    pub tsih: u16,
    /// TargetName; `None` opens a discovery session.
    pub target: Option<String>,
    /// Keys that replace the default ones of the same name, or come after them.
    pub keys: Vec<(String, String)>,
    /// Longest wait of one call.
    pub timeout: Duration,
}

impl OpenOptions {
    /// A normal session of a default initiator with `target`.
    pub fn normal(target: &str) -> Self {
        Self {
            target: Some(target.to_owned()),
            ..Self::discovery()
        }
    }

    /// A discovery session.
    pub fn discovery() -> Self {
        Self {
            initiator: "iqn.2026-01.org.example:probe-a".into(),
            isid: [0x80, 0, 0, 0, 0, 0x10],
            tsih: 0,
            target: None,
            keys: Vec::new(),
            timeout: crate::wire::DEFAULT_TIMEOUT,
        }
    }

    /// With another initiator name and ISID: the `n`-th initiator of a test.
    pub fn initiator(mut self, n: u32) -> Self {
        let [a, b, c, d] = n.to_be_bytes();
        self.initiator = format!("iqn.2026-01.org.example:probe-{n}");
        self.isid = [0x80, 1, a, b, c, d];
        self
    }

    /// With `key=value` instead of the default.
    pub fn key(mut self, key: &str, value: &str) -> Self {
        self.keys.push((key.into(), value.into()));
        self
    }

    fn security_keys(&self) -> Vec<(String, String)> {
        let mut keys = vec![("InitiatorName", self.initiator.as_str())];
        match &self.target {
            Some(target) => {
                keys.extend([("TargetName", target.as_str()), ("SessionType", "Normal")]);
            }
            None => keys.push(("SessionType", "Discovery")),
        }
        keys.push(("AuthMethod", "None"));
        keys.into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    }

    /// The operational keys that are offered.
    pub fn operational_keys(&self) -> Vec<(String, String)> {
        const DEFAULT: [(&str, &str); 14] = [
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("DefaultTime2Wait", "0"),
            ("DefaultTime2Retain", "0"),
            ("ErrorRecoveryLevel", "0"),
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxBurstLength", "262144"),
            ("FirstBurstLength", "65536"),
            ("MaxOutstandingR2T", "1"),
            ("MaxConnections", "1"),
            ("DataPDUInOrder", "Yes"),
            ("DataSequenceInOrder", "Yes"),
        ];
        // Of these, a discovery session negotiates only the first six (RFC 7143 13).
        let count = if self.target.is_some() {
            DEFAULT.len()
        } else {
            6
        };
        let mut keys: Vec<(String, String)> = DEFAULT[..count]
            .iter()
            .map(|&(k, v)| (k.into(), v.into()))
            .collect();
        for (key, value) in &self.keys {
            match keys.iter_mut().find(|(k, _)| k == key) {
                Some(pair) => pair.1.clone_from(value),
                None => keys.push((key.clone(), value.clone())),
            }
        }
        keys
    }
}

/// What was negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of RFC 7143 13")]
pub struct Params {
    /// The target's declaration: the longest data segment we may send.
    pub target_max_recv: usize,
    /// Our declaration: the longest data segment the target may send.
    pub our_max_recv: usize,
    pub first_burst: usize,
    pub max_burst: usize,
    pub immediate_data: bool,
    pub initial_r2t: bool,
    pub max_outstanding_r2t: u32,
}

/// An R2T that was not answered.
#[derive(Clone, Copy, Debug)]
pub struct R2t {
    /// The command's tag.
    pub itt: u32,
    /// Target transfer tag.
    pub ttt: u32,
    /// Where in the data-out buffer.
    pub offset: u32,
    /// How much.
    pub len: u32,
    /// LUN field of the R2T.
    pub lun: [u8; 8],
}

/// An asynchronous message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Async {
    /// AsyncEvent.
    pub event: u8,
    /// AsyncVCode.
    pub vendor: u8,
    /// Data segment.
    pub data: Vec<u8>,
}

/// The end of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Of a SCSI command.
    Scsi(Reply),
    /// Of a task management function: response code.
    Tmf(u8),
    /// Of a NOP-Out: the PDU with the echoed data.
    Nop(Pdu),
    /// Of a text request: the PDU.
    Text(Pdu),
    /// Of a logout: response code.
    Logout(u8),
    /// The target rejected it: reason.
    Rejected(u8),
}

/// A request in flight.
#[derive(Debug, Default)]
struct Pending {
    command: Option<Command>,
    cmd_sn: u32,
    data_in: Vec<u8>,
    data_in_pdus: u32,
    r2ts: u32,
    held: Vec<R2t>,
}

/// A session in full feature phase.
#[derive(Debug)]
pub struct Session {
    /// The connection; use it directly for what the session would never send.
    pub wire: Wire,
    /// What was negotiated.
    pub params: Params,
    /// Keys of the target's operational replies, in order.
    pub login_text: Vec<(String, String)>,
    /// TSIH given by the target.
    pub tsih: u16,
    /// CmdSN of the next non-immediate request.
    pub cmd_sn: u32,
    /// StatSN that is expected next.
    pub exp_stat_sn: u32,
    /// Last ExpCmdSN of the target.
    pub exp_cmd_sn: u32,
    /// Last MaxCmdSN of the target.
    pub max_cmd_sn: u32,
    /// Answer NOP-In pings (default true).
    pub answer_pings: bool,
    /// Number of pings so far.
    pub pings: u32,
    /// Asynchronous messages so far.
    pub asyncs: Vec<Async>,
    /// Reject PDUs so far: reason and rejected header.
    pub rejects: Vec<(u8, Vec<u8>)>,
    /// What the target did against the RFC.
    pub violations: Vec<String>,
    next_itt: u32,
    pending: HashMap<u32, Pending>,
    done: HashMap<u32, Outcome>,
    order: VecDeque<u32>,
}

impl Session {
    /// Logs in.
    pub fn open(addr: SocketAddr, options: &OpenOptions) -> Result<Self, LoginError> {
        let mut login = Login::connect(addr, options.isid)?;
        login.wire.timeout = options.timeout;
        login.tsih = options.tsih;
        login.stage(
            stage::SECURITY,
            stage::OPERATIONAL,
            &options.security_keys(),
        )?;
        let offered = options.operational_keys();
        let reply = login.stage(stage::OPERATIONAL, stage::FULL_FEATURE, &offered)?;
        Ok(Self::from_login(login, &offered, reply))
    }

    /// Takes over a connection whose login ended with `reply` to the `offered` keys.
    pub fn from_login(login: Login, offered: &[(String, String)], reply: LoginReply) -> Self {
        let params = negotiated(offered, &reply);
        let mut wire = login.wire;
        let crc = |key| reply.value(key) == Some("CRC32C");
        wire.header_digest = crc("HeaderDigest");
        wire.data_digest = crc("DataDigest");
        Self {
            wire,
            params,
            tsih: reply.tsih,
            login_text: reply.text,
            cmd_sn: login.cmd_sn,
            exp_stat_sn: login.exp_stat_sn,
            exp_cmd_sn: login.window.0,
            max_cmd_sn: login.window.1,
            answer_pings: true,
            pings: 0,
            asyncs: Vec::new(),
            rejects: Vec::new(),
            violations: Vec::new(),
            next_itt: 2,
            pending: HashMap::new(),
            done: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// A new initiator task tag.
    pub fn new_itt(&mut self) -> u32 {
        let itt = self.next_itt;
        self.next_itt = match itt.wrapping_add(1) {
            NO_TAG => 1,
            n => n,
        };
        itt
    }

    /// Fills in CmdSN and ExpStatSN, and steps CmdSN if the PDU is not immediate.
    pub fn number(&mut self, bhs: &mut Bhs) {
        bhs.set_word(24, self.cmd_sn).set_word(28, self.exp_stat_sn);
        if !bhs.is_immediate() {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
    }

    /// True if the target's window admits another command.
    pub fn window_open(&self) -> bool {
        // Serial number arithmetic: cmd_sn <= max_cmd_sn.
        self.max_cmd_sn.wrapping_sub(self.cmd_sn) < 1 << 31
    }

    /// Number of requests without an answer so far.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a command, with the unsolicited data it may have, waiting for the window to open first. Returns its tag.
    pub fn submit(&mut self, command: &Command) -> Result<u32, Error> {
        while !command.immediate && !self.window_open() {
            self.pump(Instant::now() + self.wire.timeout)?;
        }
        self.submit_now(command)
    }

    /// The same, whatever the window says.
    pub fn submit_now(&mut self, command: &Command) -> Result<u32, Error> {
        let itt = self.new_itt();
        let (pdu, unsolicited) = self.command_pdu(itt, command);
        let sent = pdu.data.len();
        self.expect(
            itt,
            Pending {
                command: Some(command.clone()),
                cmd_sn: pdu.bhs.word(24),
                ..Pending::default()
            },
        );
        self.wire.send(&pdu)?;
        if unsolicited > sent {
            let part = R2t {
                itt,
                ttt: NO_TAG,
                offset: sent as u32,
                len: (unsolicited - sent) as u32,
                lun: command.lun,
            };
            self.send_data_out(&part, &command.out)?;
        }
        Ok(itt)
    }

    /// The command PDU, and how much of its data-out goes unsolicited (immediate part included).
    fn command_pdu(&mut self, itt: u32, command: &Command) -> (Pdu, usize) {
        let p = &self.params;
        let out = command.out.len();
        let immediate = if p.immediate_data {
            out.min(p.first_burst)
                .min(p.target_max_recv)
                .min(command.immediate_max)
        } else {
            0
        };
        let unsolicited = if !p.initial_r2t && command.unsolicited {
            out.min(p.first_burst).max(immediate)
        } else {
            immediate
        };
        let r = if command.in_len > 0 { 0x40 } else { 0 };
        let w = if out > 0 { 0x20 } else { 0 };
        let rw = command.rw_bits.unwrap_or(r | w);
        let last = if unsolicited > immediate { 0 } else { FINAL };
        let byte0 = op::SCSI_COMMAND | if command.immediate { IMMEDIATE } else { 0 };
        let mut bhs = Bhs::new(byte0, last | rw | command.attr);
        let expected = if w != 0 { out as u32 } else { command.in_len };
        bhs.set_lun(command.lun).set_word(16, itt);
        bhs.set_word(20, command.expected_len.unwrap_or(expected));
        self.number(&mut bhs);
        let plain = command.cdb.len().min(16);
        bhs.0[32..32 + plain].copy_from_slice(&command.cdb[..plain]);
        let ahs = additional_headers(command, r | w == 0x60);
        (
            Pdu::new(bhs, ahs, command.out[..immediate].to_vec()),
            unsolicited,
        )
    }

    /// Sends the Data-Out PDUs that `r2t` asks for, from `out`.
    pub fn send_data_out(&mut self, r2t: &R2t, out: &[u8]) -> Result<(), Error> {
        let begin = (r2t.offset as usize).min(out.len());
        let end = (begin + r2t.len as usize).min(out.len());
        let piece = self.params.target_max_recv.max(1);
        let mut at = begin;
        let mut data_sn = 0u32;
        while at < end {
            let n = piece.min(end - at);
            let last = if at + n == end { FINAL } else { 0 };
            let mut bhs = Bhs::new(op::DATA_OUT, last);
            bhs.set_lun(r2t.lun)
                .set_word(16, r2t.itt)
                .set_word(20, r2t.ttt);
            bhs.set_word(28, self.exp_stat_sn)
                .set_word(36, data_sn)
                .set_word(40, at as u32);
            self.wire
                .send(&Pdu::new(bhs, Vec::new(), out[at..at + n].to_vec()))?;
            at += n;
            data_sn += 1;
        }
        Ok(())
    }

    /// R2Ts of a [`Command::held`] command that came so far.
    pub fn held(&self, itt: u32) -> &[R2t] {
        self.pending.get(&itt).map_or(&[], |p| &p.held)
    }

    /// Answers the R2Ts of a held command, now and from now on.
    pub fn answer_held(&mut self, itt: u32) -> Result<(), Error> {
        let Some(pending) = self.pending.get_mut(&itt) else {
            return Ok(());
        };
        let held = std::mem::take(&mut pending.held);
        let Some(command) = pending.command.as_mut() else {
            return Ok(());
        };
        command.hold = false;
        let out = command.out.clone();
        held.iter()
            .try_for_each(|r2t| self.send_data_out(r2t, &out))
    }

    /// Sends a task management function, immediate. `referenced` is the tag of the task to abort.
    pub fn submit_tmf(
        &mut self,
        function: u8,
        lun: u16,
        referenced: Option<u32>,
    ) -> Result<u32, Error> {
        let itt = self.new_itt();
        let mut bhs = Bhs::new(op::TASK_MGMT | IMMEDIATE, FINAL | function);
        bhs.set_lun(lun_field(lun))
            .set_word(16, itt)
            .set_word(20, referenced.unwrap_or(NO_TAG));
        self.number(&mut bhs);
        // RefCmdSN: of a task that is not there any more, one that the target has seen; of an immediate one, the request's own.
        let task = referenced.and_then(|itt| self.pending.get(&itt));
        bhs.set_word(
            32,
            match task.map(|t| (t.cmd_sn, &t.command)) {
                Some((_, Some(c))) if c.immediate => bhs.word(24),
                Some((sn, _)) => sn,
                None => self.cmd_sn.wrapping_sub(1),
            },
        );
        self.request(itt, &Pdu::bare(bhs))
    }

    /// Sends a NOP-Out that wants an answer.
    pub fn submit_nop(&mut self, data: &[u8], immediate: bool) -> Result<u32, Error> {
        let itt = self.new_itt();
        let mut bhs = Bhs::new(op::NOP_OUT | if immediate { IMMEDIATE } else { 0 }, FINAL);
        bhs.set_word(16, itt).set_word(20, NO_TAG);
        self.number(&mut bhs);
        self.request(itt, &Pdu::new(bhs, Vec::new(), data.to_vec()))
    }

    /// Sends a text request; `ttt` continues an exchange.
    pub fn submit_text(&mut self, keys: &[(&str, &str)], ttt: u32) -> Result<u32, Error> {
        let itt = self.new_itt();
        let mut bhs = Bhs::new(op::TEXT, FINAL);
        bhs.set_word(16, itt).set_word(20, ttt);
        self.number(&mut bhs);
        self.request(itt, &Pdu::new(bhs, Vec::new(), encode_text(keys)))
    }

    /// Sends a logout request with this reason (0 = close the session).
    pub fn submit_logout(&mut self, reason: u8) -> Result<u32, Error> {
        let itt = self.new_itt();
        let mut bhs = Bhs::new(op::LOGOUT | IMMEDIATE, FINAL | reason);
        bhs.set_word(16, itt);
        self.number(&mut bhs);
        self.request(itt, &Pdu::bare(bhs))
    }

    /// Sends a PDU whose answer carries `itt`; see [`Session::wait`].
    pub fn request(&mut self, itt: u32, pdu: &Pdu) -> Result<u32, Error> {
        self.expect(itt, Pending::default());
        self.wire.send(pdu)?;
        Ok(itt)
    }

    /// Makes room for an answer with this tag to a PDU that is sent by other means.
    pub fn expect_answer(&mut self, itt: u32) {
        self.expect(itt, Pending::default());
    }

    /// The end of a request, if it came already.
    pub fn take_answer(&mut self, itt: u32) -> Option<Outcome> {
        let outcome = self.done.remove(&itt)?;
        self.order.retain(|&i| i != itt);
        Some(outcome)
    }

    fn expect(&mut self, itt: u32, pending: Pending) {
        self.pending.insert(itt, pending);
    }

    /// Takes what comes until the request with this tag has ended.
    pub fn wait(&mut self, itt: u32) -> Result<Outcome, Error> {
        let deadline = Instant::now() + self.wire.timeout;
        loop {
            if let Some(outcome) = self.take_answer(itt) {
                return Ok(outcome);
            }
            if !self.pending.contains_key(&itt) {
                return Err(Error::Unexpected(format!("tag {itt:x} is not in flight")));
            }
            self.pump(deadline)?;
        }
    }

    /// Takes what comes until any request has ended.
    pub fn wait_any(&mut self) -> Result<(u32, Outcome), Error> {
        let deadline = Instant::now() + self.wire.timeout;
        loop {
            if let Some(itt) = self.order.pop_front() {
                if let Some(outcome) = self.done.remove(&itt) {
                    return Ok((itt, outcome));
                }
                continue;
            }
            self.pump(deadline)?;
        }
    }

    /// Takes what comes for `time`; an idle connection is no error.
    pub fn listen(&mut self, time: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + time;
        loop {
            match self.pump(deadline) {
                Ok(()) => {}
                Err(Error::Wire(WireError::Timeout)) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for a SCSI command's end.
    pub fn wait_scsi(&mut self, itt: u32) -> Result<Reply, Error> {
        match self.wait(itt)? {
            Outcome::Scsi(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a command and waits for its end.
    pub fn scsi(&mut self, command: &Command) -> Result<Reply, Error> {
        let itt = self.submit(command)?;
        self.wait_scsi(itt)
    }

    /// Sends a task management function and waits for its response code.
    pub fn tmf(&mut self, function: u8, lun: u16, referenced: Option<u32>) -> Result<u8, Error> {
        let itt = self.submit_tmf(function, lun, referenced)?;
        match self.wait(itt)? {
            Outcome::Tmf(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    /// NOP-Out and its echo.
    pub fn nop(&mut self, data: &[u8], immediate: bool) -> Result<Vec<u8>, Error> {
        let itt = self.submit_nop(data, immediate)?;
        match self.wait(itt)? {
            Outcome::Nop(pdu) => Ok(pdu.data),
            other => Err(unexpected(&other)),
        }
    }

    /// A text exchange to its end.
    pub fn text(&mut self, keys: &[(&str, &str)]) -> Result<Vec<(String, String)>, Error> {
        let mut data = Vec::new();
        let mut itt = self.submit_text(keys, NO_TAG)?;
        for _ in 0..64 {
            match self.wait(itt)? {
                Outcome::Text(pdu) => {
                    data.extend_from_slice(&pdu.data);
                    if pdu.bhs.flags() & FINAL != 0 {
                        return Ok(crate::pdu::parse_text(&data));
                    }
                    itt = self.submit_text(&[], pdu.bhs.ttt())?;
                }
                other => return Err(unexpected(&other)),
            }
        }
        Err(Error::Unexpected("text exchange without end".into()))
    }

    /// Logs out and returns the response code.
    pub fn close(mut self) -> Result<u8, Error> {
        let itt = self.submit_logout(0)?;
        match self.wait(itt)? {
            Outcome::Logout(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the session with a TCP reset.
    pub fn kill(self) {
        self.wire.reset();
    }

    /// TEST UNIT READY until there is no CHECK CONDITION, eight times at most: takes pending unit attentions.
    pub fn clear_ua(&mut self, lun: u16) -> Result<(), Error> {
        for _ in 0..8 {
            let reply = self.scsi(&Command::new(lun, scsi::test_unit_ready()))?;
            if reply.status != scsi::status::CHECK_CONDITION {
                break;
            }
        }
        Ok(())
    }

    /// READ CAPACITY(16): number of blocks and block length.
    pub fn capacity(&mut self, lun: u16) -> Result<(u64, u32), Error> {
        let data = self
            .scsi(&Command::read(lun, scsi::read_capacity16(), 32))?
            .good();
        let last: [u8; 8] = data[..8].try_into().expect("eight bytes");
        let block: [u8; 4] = data[8..12].try_into().expect("four bytes");
        Ok((u64::from_be_bytes(last) + 1, u32::from_be_bytes(block)))
    }

    /// READ(16) of 512-byte blocks; must succeed.
    #[track_caller]
    pub fn read_blocks(&mut self, lun: u16, lba: u64, blocks: u32) -> Result<Vec<u8>, Error> {
        let command = Command::read(lun, scsi::read16(lba, blocks), blocks * 512);
        Ok(self.scsi(&command)?.good())
    }

    /// Reads as many blocks as `expected` has and compares.
    ///
    /// # Panics
    ///
    /// If they differ, with the first place, and not with all the bytes.
    #[track_caller]
    pub fn expect_blocks(&mut self, lun: u16, lba: u64, expected: &[u8]) {
        let data = match self.read_blocks(lun, lba, (expected.len() / 512) as u32) {
            Ok(data) => data,
            Err(e) => panic!("reading {} bytes at LBA {lba}: {e}", expected.len()),
        };
        assert_eq!(
            data.len(),
            expected.len(),
            "length of what was read at LBA {lba}"
        );
        if let Some(at) = (0..data.len()).find(|&i| data[i] != expected[i]) {
            let (is, want) = (data[at], expected[at]);
            panic!(
                "LBA {}, byte {}: {is:02x}, expected {want:02x}",
                lba + at as u64 / 512,
                at % 512
            );
        }
    }

    /// WRITE(16) of 512-byte blocks; must succeed.
    #[track_caller]
    pub fn write_blocks(&mut self, lun: u16, lba: u64, data: &[u8]) -> Result<(), Error> {
        let blocks = (data.len() / 512) as u32;
        let command = Command::write(lun, scsi::write16(lba, blocks), data.to_vec());
        self.scsi(&command)?.good();
        Ok(())
    }

    /// Fails the test if the target broke a rule of the RFC that the session checks.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(
            self.violations.is_empty(),
            "protocol violations: {:#?}",
            self.violations
        );
    }
}

fn unexpected(outcome: &Outcome) -> Error {
    match outcome {
        Outcome::Rejected(reason) => Error::Rejected(*reason),
        other => Error::Unexpected(format!("{other:?}")),
    }
}

/// Extended CDB (type 1) and bidirectional read length (type 2) AHS of a command.
fn additional_headers(command: &Command, bidirectional: bool) -> Vec<u8> {
    let mut ahs = Vec::new();
    if let Some(rest) = command.cdb.get(16..).filter(|rest| !rest.is_empty()) {
        ahs.extend_from_slice(&((rest.len() + 1) as u16).to_be_bytes());
        ahs.extend_from_slice(&[1, 0]);
        ahs.extend_from_slice(rest);
        ahs.resize(ahs.len().next_multiple_of(4), 0);
    }
    if bidirectional {
        ahs.extend_from_slice(&[0, 5, 2, 0]);
        ahs.extend_from_slice(&command.in_len.to_be_bytes());
    }
    ahs
}

fn negotiated(offered: &[(String, String)], reply: &LoginReply) -> Params {
    let number = |key: &str, default: usize| -> usize {
        reply
            .value(key)
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    };
    let yes = |key: &str, default: bool| reply.value(key).map_or(default, |v| v == "Yes");
    let ours = offered
        .iter()
        .find(|(k, _)| k == "MaxRecvDataSegmentLength")
        .and_then(|(_, v)| v.parse().ok())
        .unwrap_or(8192);
    Params {
        target_max_recv: number("MaxRecvDataSegmentLength", 8192),
        our_max_recv: ours,
        first_burst: number("FirstBurstLength", 65536),
        max_burst: number("MaxBurstLength", 262_144),
        immediate_data: yes("ImmediateData", true),
        initial_r2t: yes("InitialR2T", true),
        max_outstanding_r2t: number("MaxOutstandingR2T", 1) as u32,
    }
}
