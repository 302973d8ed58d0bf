//! One connection of a lean initiator: login, a receive buffer, a batch to send.

use std::io;
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::tx::{Batch, Sent};
use crate::wire::{
    BHS, DIGEST, FINAL, Header, IMMEDIATE, RESERVED_TAG, data_len, get32, header, op, padded,
    pairs, put32, text,
};

/// MaxRecvDataSegmentLength that the initiator declares.
const OUR_SEGMENT: &str = "262144";
/// Most bytes that are dropped in the kernel by one call.
const DROP_AT_ONCE: u64 = 1 << 20;

/// Where to log in.
#[derive(Clone, Debug)]
pub struct Url {
    /// Address of the portal.
    pub addr: SocketAddr,
    /// Name of the target.
    pub iqn: String,
    /// First LUN.
    pub lun: u16,
}

impl std::str::FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let s = s.strip_prefix("iscsi://").unwrap_or(s);
        let mut parts = s.splitn(3, '/');
        let (Some(addr), Some(iqn), Some(lun)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("{s}: not ADDR:PORT/IQN/LUN");
        };
        Ok(Self {
            addr: addr.parse().with_context(|| addr.to_owned())?,
            iqn: iqn.to_owned(),
            lun: lun.parse().with_context(|| lun.to_owned())?,
        })
    }
}

/// What was negotiated, as far as the load cares.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// The target's MaxRecvDataSegmentLength.
    pub segment: usize,
    /// FirstBurstLength.
    pub first_burst: usize,
    /// ImmediateData.
    pub immediate: bool,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// Both digests are on.
    pub digests: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    /// The socket.
    pub sock: TcpStream,
    rx: Vec<u8>,
    have: usize,
    at: usize,
    /// Bytes of data to drop before the next header.
    pub skip: u64,
    /// What waits to be sent.
    pub tx: Batch,
    /// Next CmdSN.
    pub cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    /// What was negotiated.
    pub params: Params,
    /// System calls that sent.
    pub sends: u64,
    /// System calls that received.
    pub recvs: u64,
    /// Header digests that were wrong.
    pub bad_digests: u64,
}

impl Conn {
    /// Connects and logs in.
    ///
    /// # Errors
    ///
    /// What the socket or the target refused.
    pub fn login(url: &Url, n: u32, digests: bool, buffer: usize) -> Result<Self> {
        let sock = TcpStream::connect(url.addr).with_context(|| url.addr.to_string())?;
        sock.set_nodelay(true)?;
        let mut conn = Self {
            sock,
            rx: vec![0; buffer],
            have: 0,
            at: 0,
            skip: 0,
            tx: Batch::default(),
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 1,
            params: Params {
                segment: 8192,
                first_burst: 65536,
                immediate: true,
                initial_r2t: true,
                digests: false,
            },
            sends: 0,
            recvs: 0,
            bad_digests: 0,
        };
        conn.negotiate(url, n, digests)?;
        Ok(conn)
    }

    fn negotiate(&mut self, url: &Url, n: u32, digests: bool) -> Result<()> {
        let name = format!("iqn.2026-01.io.scst-usermode:load-{}", std::process::id());
        let mut isid = [0x80, 0, 0, 0, 0, 0];
        isid[2..6].copy_from_slice(&n.to_be_bytes());
        let digest = if digests { "CRC32C" } else { "None" };
        let mut keys = text([
            ("InitiatorName", name.as_str()),
            ("TargetName", &url.iqn),
            ("SessionType", "Normal"),
            ("AuthMethod", "None"),
        ]);
        let mut stage = 0_u8;
        for _ in 0..8 {
            let next = if stage == 0 { 1 } else { 3 };
            let mut h = header(IMMEDIATE | op::LOGIN, FINAL | stage << 2 | next, keys.len());
            h[8..14].copy_from_slice(&isid);
            put32(&mut h, 24, self.cmd_sn);
            put32(&mut h, 28, self.exp_stat_sn);
            keys.resize(padded(keys.len()), 0);
            self.tx.head(&h);
            self.tx.head(&keys);
            self.flush(&[])?;
            let (h, data) = self.whole()?;
            ensure!(h[0] == op::LOGIN_RSP, "login: answered by {:#x}", h[0]);
            ensure!(h[36] == 0, "login: status {:02x}{:02x}", h[36], h[37]);
            self.note(&h);
            for (k, v) in pairs(&data) {
                let number = v.parse().unwrap_or(0);
                match k {
                    "MaxRecvDataSegmentLength" => self.params.segment = number,
                    "FirstBurstLength" => self.params.first_burst = number,
                    "ImmediateData" => self.params.immediate = v == "Yes",
                    "InitialR2T" => self.params.initial_r2t = v == "Yes",
                    "HeaderDigest" | "DataDigest" => {
                        ensure!(v == digest, "{k}={v} instead of {digest}");
                    }
                    _ => {}
                }
            }
            keys.clear();
            if h[1] & FINAL == 0 {
                continue;
            }
            if h[1] & 3 == 3 {
                self.params.digests = digests;
                return Ok(());
            }
            stage = 1;
            keys = text([
                ("HeaderDigest", digest),
                ("DataDigest", digest),
                ("InitialR2T", "No"),
                ("ImmediateData", "Yes"),
                ("MaxBurstLength", "262144"),
                ("FirstBurstLength", "262144"),
                ("MaxRecvDataSegmentLength", OUR_SEGMENT),
                ("MaxOutstandingR2T", "1"),
                ("MaxConnections", "1"),
                ("ErrorRecoveryLevel", "0"),
                ("DefaultTime2Wait", "2"),
                ("DefaultTime2Retain", "0"),
                ("DataPDUInOrder", "Yes"),
                ("DataSequenceInOrder", "Yes"),
            ]);
        }
        bail!("login does not end")
    }

    /// Notes StatSN and the command window of a response.
    #[inline]
    pub fn note(&mut self, h: &[u8]) {
        let op = h[0] & 0x3f;
        if op != op::R2T && (op != op::DATA_IN || h[1] & 1 != 0) {
            self.exp_stat_sn = get32(h, 24).wrapping_add(1);
        }
        self.max_cmd_sn = get32(h, 32);
    }

    /// Commands that the window still admits.
    #[inline]
    pub fn window(&self) -> u32 {
        let room = self.max_cmd_sn.wrapping_sub(self.cmd_sn).wrapping_add(1);
        if room > u32::MAX / 2 { 0 } else { room }
    }

    /// Queues a header: fills in ExpStatSN, adds the header digest.
    #[inline]
    pub fn put(&mut self, h: &mut Header) {
        put32(h, 28, self.exp_stat_sn);
        self.tx.head(h);
        if self.params.digests {
            self.tx.head(&crc32c::crc32c(h).to_le_bytes());
        }
    }

    /// Queues data behind a header; `crc` is its digest. The length must be a multiple of 4.
    #[inline]
    pub fn put_bulk(&mut self, off: usize, len: usize, crc: impl FnOnce() -> u32) {
        self.tx.bulk(off, len);
        if self.params.digests {
            self.tx.head(&crc().to_le_bytes());
        }
    }

    /// Sends all that waits; reads what comes meanwhile, for the target may wait for that.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub fn flush(&mut self, bulk: &[u8]) -> io::Result<()> {
        while !self.tx.is_empty() {
            if self.tx.send(&self.sock, bulk, false, &mut self.sends)? == Sent::Full {
                let mut fds = [PollFd::new(&self.sock, PollFlags::IN | PollFlags::OUT)];
                poll(&mut fds, None)?;
                let readable = fds[0].revents().contains(PollFlags::IN);
                if readable && self.room() {
                    self.pump(false)?;
                }
            }
        }
        Ok(())
    }

    fn room(&self) -> bool {
        self.have < self.rx.len() || (self.skip > 0 && self.have == self.at)
    }

    /// Receives as much as there is; data that need not be looked at is dropped inside the kernel. Returns whether
    /// anything came.
    ///
    /// # Errors
    ///
    /// What the socket says; `UnexpectedEof` when the target closed.
    pub fn pump(&mut self, wait: bool) -> io::Result<bool> {
        if self.at == self.have {
            (self.at, self.have) = (0, 0);
        } else if self.have > self.rx.len() / 2 && self.at > 0 {
            self.rx.copy_within(self.at..self.have, 0);
            (self.have, self.at) = (self.have - self.at, 0);
        }
        let mut flags = RecvFlags::empty();
        flags.set(RecvFlags::DONTWAIT, !wait);
        self.recvs += 1;
        let drop = self.skip > 0 && self.have == 0;
        let got = if drop {
            let n = self.skip.min(DROP_AT_ONCE).min(self.rx.len() as u64) as usize;
            recv(&self.sock, &mut self.rx[..n], flags | RecvFlags::TRUNC).map(|(_, n)| n)
        } else {
            recv(&self.sock, &mut self.rx[self.have..], flags).map(|(_, n)| n)
        };
        match got {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the target closed the connection",
            )),
            Ok(n) => {
                if drop {
                    self.skip -= n as u64;
                } else {
                    self.have += n;
                }
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The next header, if it is here (and all of its PDU unless it is a Data-In): consumes it and leaves its data to
    /// be skipped.
    #[inline]
    pub fn next_pdu(&mut self) -> Option<Header> {
        if self.skip > 0 {
            let k = self.skip.min((self.have - self.at) as u64);
            self.at += k as usize;
            self.skip -= k;
            if self.skip > 0 {
                return None;
            }
        }
        let digest = if self.params.digests { DIGEST } else { 0 };
        let rest = &self.rx[self.at..self.have];
        let h: Header = rest.get(..BHS)?.try_into().ok()?;
        let len = padded(data_len(&h));
        let tail = digest + usize::from(h[4]) * 4 + len + if len > 0 { digest } else { 0 };
        if h[0] != op::DATA_IN && rest.len() < BHS + tail || rest.len() < BHS + digest {
            return None;
        }
        if digest > 0 {
            let want = crc32c::crc32c(&h).to_le_bytes();
            self.bad_digests += u64::from(rest[BHS..BHS + DIGEST] != want);
        }
        self.at += BHS;
        self.skip = tail as u64;
        Some(h)
    }

    /// Waits for one whole PDU: header and data. Not for the measured part.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub fn whole(&mut self) -> io::Result<(Header, Vec<u8>)> {
        let digest = if self.params.digests { DIGEST } else { 0 };
        loop {
            if self.skip == 0 && self.have - self.at >= BHS {
                let h: Header = self.rx[self.at..self.at + BHS]
                    .try_into()
                    .map_err(io::Error::other)?;
                let len = data_len(&h);
                let from = self.at + BHS + usize::from(h[4]) * 4 + digest;
                let to = from + padded(len) + if len > 0 { digest } else { 0 };
                if self.have >= to {
                    let data = self.rx[from..from + len].to_vec();
                    self.at = to;
                    return Ok((h, data));
                }
            }
            self.pump(true)?;
        }
    }

    /// One SCSI command that reads at most `want` bytes, alone on the connection: its status and data.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub fn simple(&mut self, lun: u16, cdb: &[u8], want: u32) -> Result<(u8, Vec<u8>)> {
        let flags = FINAL | if want > 0 { 0x40 } else { 0 };
        let mut h = header(op::SCSI_CMD, flags, 0);
        h[8..10].copy_from_slice(&lun.to_be_bytes());
        put32(&mut h, 16, 0x7fff_0000);
        put32(&mut h, 20, want);
        put32(&mut h, 24, self.cmd_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        h[32..32 + cdb.len()].copy_from_slice(cdb);
        self.put(&mut h);
        self.flush(&[])?;
        let mut all = Vec::new();
        loop {
            let (h, data) = self.whole()?;
            match h[0] {
                op::DATA_IN => {
                    self.note(&h);
                    all.extend_from_slice(&data);
                    if h[1] & 1 != 0 {
                        return Ok((h[3], all));
                    }
                }
                op::SCSI_RSP => {
                    self.note(&h);
                    return Ok((h[3], all));
                }
                op::NOP_IN => self.pong(&h),
                other => bail!("PDU {other:#x} instead of a response"),
            }
        }
    }

    /// Answers a NOP-In that wants an answer.
    pub fn pong(&mut self, ping: &[u8]) {
        if get32(ping, 20) == RESERVED_TAG {
            return;
        }
        let mut h = header(IMMEDIATE | op::NOP_OUT, FINAL, 0);
        h[8..16].copy_from_slice(&ping[8..16]);
        put32(&mut h, 16, RESERVED_TAG);
        h[20..24].copy_from_slice(&ping[20..24]);
        put32(&mut h, 24, self.cmd_sn);
        self.put(&mut h);
    }

    /// Logs out; does not mind if the target is gone.
    pub fn logout(mut self) {
        let mut h = header(IMMEDIATE | op::LOGOUT, FINAL, 0);
        put32(&mut h, 16, 0x7fff_0001);
        put32(&mut h, 24, self.cmd_sn);
        self.put(&mut h);
        if self.flush(&[]).is_err() {
            return;
        }
        while let Ok((h, _)) = self.whole() {
            if h[0] == op::LOGOUT_RSP {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let u: Url = "127.0.0.1:3260/iqn.2026-01.x:y/3".parse().unwrap();
        assert_eq!(
            (u.addr.port(), u.iqn.as_str(), u.lun),
            (3260, "iqn.2026-01.x:y", 3)
        );
        assert!("127.0.0.1:3260".parse::<Url>().is_err());
        assert!("localhost/iqn/0".parse::<Url>().is_err());
    }
}
