//! `scst-floor`: the least that an iSCSI target can do on this machine. It receives as much as there is, answers every
//! whole PDU from memory, sends once per batch. One connection at a time, no SCSI state, no checks: the bound to hold
//! the server against, not a target.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use scst_bench::tx::Batch;
use scst_bench::wire::{
    BHS, FINAL, Header, RESERVED_TAG, data_len, get32, get64, header, op, padded, pairs, put32,
    text,
};

const BLOCK: usize = 512;
const SEGMENT: usize = 262_144;
const BUFFER: usize = 2 << 20;
/// Commands that may be queued.
const WINDOW: u32 = 255;
/// Pieces after which a batch is sent even though requests remain.
const BATCH_PIECES: usize = 900;

/// Answers iSCSI commands from memory; an upper bound for targets
#[derive(Debug, Parser)]
struct Cli {
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(short, long, default_value_t = 0)]
    port: u16,
    /// Really read from and write to the blocks asked for; else reads come from one hot place and writes vanish
    #[arg(short, long)]
    memory: bool,
    /// Size in MiB
    #[arg(long, default_value_t = 256)]
    mib: usize,
}

struct Floor {
    sock: TcpStream,
    tx: Batch,
    stat_sn: u32,
    exp_cmd_sn: u32,
    memory: bool,
    their_segment: usize,
    /// Writes whose data has not all come: where it goes.
    writes: HashMap<u32, usize>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let listener = TcpListener::bind(("127.0.0.1", cli.port)).context("cannot listen")?;
    let port = listener.local_addr()?.port();
    let mut image: Vec<u8> = (0..cli.mib << 20).map(|n| ((n * 31) >> 3) as u8).collect();
    println!("ready iscsi://127.0.0.1:{port}/iqn.2026-01.io.scst-usermode:floor/0");
    std::io::stdout().flush()?;
    loop {
        let (sock, _) = listener.accept()?;
        sock.set_nodelay(true)?;
        let mut floor = Floor {
            sock,
            tx: Batch::default(),
            stat_sn: 1,
            exp_cmd_sn: 1,
            memory: cli.memory,
            their_segment: 8192,
            writes: HashMap::new(),
        };
        if let Err(e) = floor.serve(&mut image) {
            eprintln!("scst-floor: {e:#}");
        }
    }
}

impl Floor {
    fn serve(&mut self, image: &mut [u8]) -> Result<()> {
        let mut rx = vec![0; BUFFER];
        let mut have = 0;
        loop {
            match recv(&self.sock, &mut rx[have..], RecvFlags::empty()) {
                Ok((_, 0)) => return Ok(()),
                Ok((_, n)) => have += n,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let mut at = 0;
            while let Some(rest) = rx.get(at..have)
                && rest.len() >= BHS
            {
                let total = BHS + usize::from(rest[4]) * 4 + padded(data_len(rest));
                if total > BUFFER {
                    bail!("PDU of {total} bytes");
                }
                let Some(pdu) = rest.get(..total) else { break };
                let on = self.pdu(pdu, image)?;
                at += total;
                if self.tx.pieces() > BATCH_PIECES || !on {
                    self.flush(image)?;
                }
                if !on {
                    return Ok(());
                }
            }
            self.flush(image)?;
            if at > 0 {
                rx.copy_within(at..have, 0);
                have -= at;
            }
        }
    }

    fn flush(&mut self, image: &[u8]) -> Result<()> {
        if !self.tx.is_empty() {
            self.tx.send(&self.sock, image, true, &mut 0)?;
        }
        Ok(())
    }

    /// A response header for `rq` with tag and window; the status number if it `counts`.
    fn response(&mut self, op: u8, flags: u8, rq: &[u8], len: usize, counts: bool) -> Header {
        let mut h = header(op, flags, len);
        h[16..20].copy_from_slice(&rq[16..20]);
        put32(&mut h, 24, self.stat_sn);
        self.stat_sn = self.stat_sn.wrapping_add(u32::from(counts));
        put32(&mut h, 28, self.exp_cmd_sn);
        put32(&mut h, 32, self.exp_cmd_sn.wrapping_add(WINDOW));
        h
    }

    /// Handles one PDU; false after a logout.
    fn pdu(&mut self, rq: &[u8], image: &mut [u8]) -> Result<bool> {
        let op = rq[0] & 0x3f;
        if rq[0] & 0x40 == 0 && op != op::DATA_OUT {
            self.exp_cmd_sn = get32(rq, 24).wrapping_add(1);
        }
        match op {
            op::SCSI_CMD => self.command(rq, image),
            op::DATA_OUT => self.data_out(rq, image),
            op::NOP_OUT if get32(rq, 16) == RESERVED_TAG => {}
            op::NOP_OUT => {
                let mut h = self.response(op::NOP_IN, FINAL, rq, data_len(rq), true);
                put32(&mut h, 20, RESERVED_TAG);
                self.tx.head(&h);
                self.tx.head(&rq[BHS..]);
            }
            op::TMF => {
                let h = self.response(op::TMF_RSP, FINAL, rq, 0, true);
                self.tx.head(&h);
            }
            op::LOGIN => self.login(rq),
            op::LOGOUT => {
                let h = self.response(op::LOGOUT_RSP, FINAL, rq, 0, true);
                self.tx.head(&h);
                return Ok(false);
            }
            other => bail!("opcode {other:#x}"),
        }
        Ok(true)
    }

    fn login(&mut self, rq: &[u8]) {
        let mut answer = Vec::new();
        for (key, value) in pairs(&rq[BHS..BHS + data_len(rq)]) {
            match key {
                "MaxRecvDataSegmentLength" => {
                    self.their_segment = value.parse().unwrap_or(8192).clamp(512, SEGMENT);
                    answer.push((key, "262144"));
                }
                "AuthMethod" | "HeaderDigest" | "DataDigest" => answer.push((key, "None")),
                "InitialR2T" => answer.push((key, "No")),
                "ImmediateData" => answer.push((key, "Yes")),
                "MaxBurstLength" | "FirstBurstLength" => answer.push((key, "262144")),
                "MaxOutstandingR2T" | "MaxConnections" => answer.push((key, "1")),
                "TargetName" => answer.push(("TargetPortalGroupTag", "1")),
                _ => {}
            }
        }
        let mut data = text(answer);
        self.exp_cmd_sn = get32(rq, 24);
        let mut h = self.response(op::LOGIN_RSP, rq[1], rq, data.len(), true);
        h[8..14].copy_from_slice(&rq[8..14]);
        if rq[1] & 0x83 == 0x83 {
            h[15] = 1;
        }
        data.resize(padded(data.len()), 0);
        self.tx.head(&h);
        self.tx.head(&data);
    }

    fn command(&mut self, rq: &[u8], image: &mut [u8]) {
        let cdb = &rq[32..48];
        let (lba, blocks) = match cdb[0] {
            0x88 | 0x8a => (get64(cdb, 2), get32(cdb, 10)),
            0x28 | 0x2a => (u64::from(get32(cdb, 2)), get32(cdb, 6) >> 8 & 0xffff),
            _ => return self.small(rq, image.len()),
        };
        let len = (blocks as usize * BLOCK).min(image.len());
        let at = if self.memory {
            (lba as usize).saturating_mul(BLOCK).min(image.len() - len)
        } else {
            0
        };
        if cdb[0] & 0x0f == 0x08 {
            return self.data_in(rq, at, len);
        }
        let data = &rq[BHS..BHS + data_len(rq)];
        if self.memory && data.len() <= len {
            image[at..at + data.len()].copy_from_slice(data);
        }
        if data.len() < len {
            self.writes.insert(get32(rq, 16), at);
        } else {
            self.status(rq);
        }
    }

    fn status(&mut self, rq: &[u8]) {
        let h = self.response(op::SCSI_RSP, FINAL, rq, 0, true);
        self.tx.head(&h);
    }

    fn data_in(&mut self, rq: &[u8], at: usize, len: usize) {
        let (mut off, mut sn) = (0, 0);
        while off < len {
            let part = (len - off).min(self.their_segment);
            let last = off + part == len;
            let flags = if last { FINAL | 1 } else { 0 };
            let mut h = self.response(op::DATA_IN, flags, rq, part, last);
            put32(&mut h, 20, RESERVED_TAG);
            put32(&mut h, 36, sn);
            put32(&mut h, 40, off as u32);
            self.tx.head(&h);
            self.tx.bulk(at + off, part);
            off += part;
            sn += 1;
        }
    }

    fn data_out(&mut self, rq: &[u8], image: &mut [u8]) {
        let data = &rq[BHS..BHS + data_len(rq)];
        let off = get32(rq, 40) as usize;
        if self.memory
            && let Some(at) = self.writes.get(&get32(rq, 16))
            && let Some(to) = image.get_mut(at + off..at + off + data.len())
        {
            to.copy_from_slice(data);
        }
        if rq[1] & FINAL != 0 {
            self.writes.remove(&get32(rq, 16));
            self.status(rq);
        }
    }

    /// Commands that move no blocks.
    fn small(&mut self, rq: &[u8], size: usize) {
        let mut data = match rq[32] {
            0x9e => {
                let mut d = vec![0; 32];
                d[..8].copy_from_slice(&((size / BLOCK) as u64 - 1).to_be_bytes());
                put32(&mut d, 8, BLOCK as u32);
                d
            }
            0x12 => {
                let mut d = vec![0; 36];
                (d[2], d[3], d[4]) = (6, 2, 31);
                d
            }
            0xa0 => {
                let mut d = vec![0; 16];
                put32(&mut d, 0, 8);
                d
            }
            _ => return self.status(rq),
        };
        data.truncate(get32(rq, 20) as usize);
        let mut h = self.response(op::DATA_IN, FINAL | 1, rq, data.len(), true);
        put32(&mut h, 20, RESERVED_TAG);
        data.resize(padded(data.len()), 0);
        self.tx.head(&h);
        self.tx.head(&data);
    }
}
