//! A workload over one or more connections, on one thread.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{ClockId, clock_gettime};

use crate::hist::Hist;
use crate::initiator::{Conn, Params, Url};
use crate::rng::Rng;
use crate::wire::{
    BHS, DIGEST, FINAL, Header, RESERVED_TAG, get32, get64, header, op, put32, put64,
};

/// Most commands in flight on one connection.
pub const MAX_DEPTH: u32 = 1024;
/// Longest command.
pub const MAX_BLOCK: u32 = 1 << 20;
/// Receive buffer of a connection when there are few, and when there are many.
const BUFFER_FEW: usize = 1 << 20;
const BUFFER_MANY: usize = 128 << 10;
const FEW: u32 = 16;
/// How long commands in flight may take after the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Pieces that are queued before a batch is sent; the socket would not take more at once.
const BATCH_PIECES: usize = 1500;

/// What the commands do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// READ(16), and WRITE(16) for so many of 100.
    Transfer {
        /// Writes of 100 commands.
        write_percent: u8,
    },
    /// VERIFY(16) that compares nothing.
    Verify,
    /// WRITE SAME(16) that unmaps, without data.
    Unmap,
}

// Operation codes, and bits of the byte after them.
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;
const VERIFY_16: u8 = 0x8f;
const SYNCHRONIZE_CACHE_16: u8 = 0x91;
const WRITE_SAME_16: u8 = 0x93;
const FUA: u8 = 0x08;
const UNMAP: u8 = 0x08;
const NDOB: u8 = 0x01;

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dir {
    None,
    Read,
    Write,
}

/// What is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Blocks at random, not in sequence.
    pub random: bool,
    /// What is done to them.
    pub verb: Verb,
}

impl std::str::FromStr for Pattern {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let transfer = |write_percent| Verb::Transfer { write_percent };
        let (random, verb) = match s {
            "randread" => (true, transfer(0)),
            "randwrite" => (true, transfer(100)),
            "read" => (false, transfer(0)),
            "write" => (false, transfer(100)),
            "mixed" => (true, transfer(30)),
            "verify" => (true, Verb::Verify),
            "unmap" => (true, Verb::Unmap),
            _ => bail!("{s}: not randread, randwrite, read, write, mixed, verify or unmap"),
        };
        Ok(Self { random, verb })
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where.
    pub url: Url,
    /// What.
    pub pattern: Pattern,
    /// Bytes of a command.
    pub block: u32,
    /// Commands in flight on each connection.
    pub depth: u32,
    /// How long.
    pub time: Duration,
    /// Stop after so many commands.
    pub count: Option<u64>,
    /// Bytes of each LUN that are touched; 0: all.
    pub region: u64,
    /// Number of sessions.
    pub sessions: u32,
    /// Number of LUNs from the first on.
    pub luns: u16,
    /// CRC32C of headers and data.
    pub digests: bool,
    /// FUA in each write.
    pub fua: bool,
    /// A SYNCHRONIZE CACHE after so many commands; 0: never.
    pub sync: u32,
    /// Send the next batch of `depth` commands only when all of the last one are done: the same work in each run.
    pub lockstep: bool,
    /// Seed of blocks and LUNs.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Commands done in the measured time.
    pub ios: u64,
    /// Measured seconds.
    pub secs: f64,
    /// Client's CPU seconds in the measured time.
    pub cpu: f64,
    /// Statuses other than GOOD and wrong header digests.
    pub errors: u64,
    /// Times that the command window was closed.
    pub stalls: u64,
    /// System calls that sent and received.
    pub calls: (u64, u64),
    /// Latencies.
    pub hist: Hist,
}

struct Session {
    conn: Conn,
    started: Vec<Instant>,
    free: Vec<u32>,
    in_flight: u32,
    cursor: u64,
}

/// A workload that is logged in and ready.
pub struct Load {
    job: Job,
    sessions: Vec<Session>,
    bulk: Vec<u8>,
    crc: u32,
    block_shift: u32,
    slots: u64,
    rng: Rng,
    issued: u64,
    done: u64,
    errors: u64,
    stalls: u64,
    ending: bool,
    hist: Hist,
}

impl Load {
    /// Logs all sessions in and reads the LUN's size.
    ///
    /// # Errors
    ///
    /// What cannot be: a login, a size that does not fit.
    pub fn login(job: Job) -> Result<Self> {
        ensure!((1..=MAX_DEPTH).contains(&job.depth), "queue depth");
        ensure!((1..=MAX_BLOCK).contains(&job.block), "block size");
        ensure!(job.sessions > 0 && job.luns > 0, "nothing to do");
        let last_lun = job.url.lun.checked_add(job.luns - 1);
        ensure!(last_lun.is_some_and(|l| l < 256), "LUNs up to 255");
        let buffer = if job.sessions <= FEW {
            BUFFER_FEW
        } else {
            BUFFER_MANY
        };
        let mut sessions = Vec::new();
        for n in 0..job.sessions {
            let mut conn = Conn::login(&job.url, n, job.digests, buffer)
                .with_context(|| format!("session {n}"))?;
            clear_attentions(&mut conn, &job)?;
            sessions.push(Session {
                conn,
                started: vec![Instant::now(); job.depth as usize],
                free: (0..job.depth).rev().collect(),
                in_flight: 0,
                cursor: 0,
            });
        }
        let first = sessions.first_mut().context("no session")?;
        let mut rc16 = [0; 16];
        (rc16[0], rc16[1], rc16[13]) = (0x9e, 0x10, 32);
        let (status, data) = first.conn.simple(job.url.lun, &rc16, 32)?;
        ensure!(status == 0 && data.len() >= 12, "READ CAPACITY(16) fails");
        let block = get32(&data, 8);
        let bytes = (get64(&data, 0) + 1) * u64::from(block);
        ensure!(
            block.is_power_of_two() && job.block.is_multiple_of(block),
            "blocks of {block} bytes"
        );
        let region = if job.region == 0 {
            bytes
        } else {
            job.region.min(bytes)
        };
        let slots = region / u64::from(job.block);
        ensure!(slots > 0, "LUN too small");
        let mut rng = Rng::new(job.seed);
        let bulk: Vec<u8> = (0..job.block).map(|_| rng.next_u64() as u8).collect();
        Ok(Self {
            crc: crc32c::crc32c(&bulk),
            block_shift: block.trailing_zeros(),
            job,
            sessions,
            bulk,
            slots,
            rng,
            issued: 0,
            done: 0,
            errors: 0,
            stalls: 0,
            ending: false,
            hist: Hist::default(),
        })
    }

    /// Runs to the end of the time or the count, and logs out.
    ///
    /// # Errors
    ///
    /// What the sockets say, or what the target sent that it must not.
    pub fn run(mut self) -> Result<(Report, Vec<Conn>)> {
        let cpu = cpu_seconds()?;
        for s in &mut self.sessions {
            (s.conn.sends, s.conn.recvs) = (0, 0);
        }
        let start = Instant::now();
        let end = start + self.job.time;
        for n in 0..self.sessions.len() {
            self.turn(n, start)?;
        }
        let poll = Poll::new(&self.sessions)?;
        let mut now = start;
        while now < end && self.job.count.is_none_or(|c| self.done < c) {
            now = self.round(&poll)?;
        }
        let (ios, secs) = (self.done, (now - start).as_secs_f64());
        let cpu = cpu_seconds()? - cpu;
        let calls = self.calls();
        self.ending = true;
        while self
            .sessions
            .iter()
            .any(|s| s.in_flight > 0 || s.conn.skip > 0)
        {
            ensure!(now < end + DRAIN, "commands hang");
            now = self.round(&poll)?;
        }
        let bad: u64 = self.sessions.iter().map(|s| s.conn.bad_digests).sum();
        let report = Report {
            ios,
            secs,
            cpu,
            errors: self.errors + bad,
            stalls: self.stalls,
            calls,
            hist: self.hist,
        };
        Ok((report, self.sessions.into_iter().map(|s| s.conn).collect()))
    }

    /// What the first session negotiated.
    pub fn params(&self) -> Params {
        self.sessions[0].conn.params
    }

    /// The connections, for sessions that shall do nothing.
    pub fn into_conns(self) -> Vec<Conn> {
        self.sessions.into_iter().map(|s| s.conn).collect()
    }

    fn calls(&self) -> (u64, u64) {
        self.sessions
            .iter()
            .fold((0, 0), |(s, r), x| (s + x.conn.sends, r + x.conn.recvs))
    }

    /// Waits for data once and handles it.
    fn round(&mut self, poll: &Poll) -> Result<Instant> {
        let Some(fd) = &poll.0 else {
            // One connection: the receive itself waits.
            self.sessions[0].conn.pump(true)?;
            let now = Instant::now();
            self.turn(0, now)?;
            return Ok(now);
        };
        let mut events = Vec::with_capacity(64);
        match epoll::wait(fd, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut now = Instant::now();
        for event in &events {
            let n = event.data.u64() as usize;
            if self.sessions[n].conn.pump(false)? {
                now = Instant::now();
                self.turn(n, now)?;
            }
        }
        Ok(now)
    }

    /// Handles what session `n` received, keeps its queue full.
    fn turn(&mut self, n: usize, now: Instant) -> Result<()> {
        while let Some(h) = self.sessions[n].conn.next_pdu() {
            self.handle(n, &h, now)?;
        }
        if !self.ending {
            self.submit(n, now);
        }
        let s = &mut self.sessions[n];
        if !s.conn.tx.is_empty() {
            s.conn.flush(&self.bulk)?;
        }
        Ok(())
    }

    fn handle(&mut self, n: usize, h: &Header, now: Instant) -> Result<()> {
        let s = &mut self.sessions[n];
        s.conn.note(h);
        let tag = get32(h, 16);
        match h[0] {
            op::DATA_IN if h[1] & 1 == 0 => {}
            op::DATA_IN | op::SCSI_RSP => {
                let started = s.started.get(tag as usize).context("unknown tag")?;
                self.hist.add((now - *started).as_nanos() as u64);
                self.errors += u64::from(h[3] != 0);
                self.done += 1;
                s.free.push(tag);
                s.in_flight -= 1;
            }
            op::R2T => {
                let lun = [h[8], h[9]];
                let (off, len) = (get32(h, 40), get32(h, 44));
                self.data_out(n, lun, tag, get32(h, 20), off, len);
            }
            op::NOP_IN => s.conn.pong(h),
            op::ASYNC => {}
            other => bail!("unexpected PDU {other:#x}"),
        }
        Ok(())
    }

    fn submit(&mut self, n: usize, now: Instant) {
        let s = &mut self.sessions[n];
        if self.job.lockstep && s.in_flight > 0 {
            return;
        }
        let left = self.job.count.map_or(u64::MAX, |c| c - self.issued);
        let window = self.sessions[n].conn.window() as usize;
        let free = self.sessions[n].free.len();
        self.stalls += u64::from(window < free);
        for _ in 0..left.min(free.min(window) as u64) {
            if self.sessions[n].conn.tx.pieces() > BATCH_PIECES {
                return;
            }
            self.command(n, now);
        }
    }

    /// The next command's operation code and second byte, and whether it reads or writes data.
    fn next_op(&mut self) -> (u8, u8, Dir) {
        let job = &self.job;
        if job.sync > 0 && self.issued % (u64::from(job.sync) + 1) == u64::from(job.sync) {
            return (SYNCHRONIZE_CACHE_16, 0, Dir::None);
        }
        let write = match job.pattern.verb {
            Verb::Verify => return (VERIFY_16, 0, Dir::None),
            Verb::Unmap => return (WRITE_SAME_16, UNMAP | NDOB, Dir::None),
            Verb::Transfer { write_percent: 0 } => false,
            Verb::Transfer { write_percent: 100 } => true,
            Verb::Transfer { write_percent } => self.rng.below(100) < u64::from(write_percent),
        };
        match write {
            true => (WRITE_16, if job.fua { FUA } else { 0 }, Dir::Write),
            false => (READ_16, 0, Dir::Read),
        }
    }

    fn command(&mut self, n: usize, now: Instant) {
        let (opcode, byte1, dir) = self.next_op();
        let write = dir == Dir::Write;
        let job = &self.job;
        let s = &mut self.sessions[n];
        let Some(tag) = s.free.pop() else { return };
        let slot = if job.pattern.random {
            self.rng.below(self.slots)
        } else {
            s.cursor = (s.cursor + 1) % self.slots;
            s.cursor
        };
        let lun = match job.luns {
            1 => job.url.lun,
            luns => job.url.lun + self.rng.below(u64::from(luns)) as u16,
        }
        .to_be_bytes();
        let len = job.block as usize;
        let p = s.conn.params;
        let (mut now_sent, mut unsolicited) = (0, 0);
        if write {
            if p.immediate {
                now_sent = len.min(p.first_burst).min(p.segment);
            }
            if !p.initial_r2t {
                unsolicited = len.min(p.first_burst) - now_sent;
            }
        }
        let flags = if unsolicited == 0 { FINAL } else { 0 };
        // Attribute SIMPLE.
        let mut h = header(
            op::SCSI_CMD,
            flags
                | match dir {
                    Dir::None => 0x01,
                    Dir::Write => 0x21,
                    Dir::Read => 0x41,
                },
            now_sent,
        );
        h[8..10].copy_from_slice(&lun);
        put32(&mut h, 16, tag);
        put32(&mut h, 20, if dir == Dir::None { 0 } else { job.block });
        put32(&mut h, 24, s.conn.cmd_sn);
        s.conn.cmd_sn = s.conn.cmd_sn.wrapping_add(1);
        (h[32], h[33]) = (opcode, byte1);
        put64(&mut h, 34, slot * u64::from(job.block >> self.block_shift));
        put32(&mut h, 42, job.block >> self.block_shift);
        s.conn.put(&mut h);
        s.started[tag as usize] = now;
        s.in_flight += 1;
        self.issued += 1;
        if now_sent > 0 {
            self.put_data(n, 0, now_sent);
        }
        if unsolicited > 0 {
            let (off, len) = (now_sent as u32, unsolicited as u32);
            self.data_out(n, lun, tag, RESERVED_TAG, off, len);
        }
    }

    fn put_data(&mut self, n: usize, off: usize, len: usize) {
        let (crc, bulk) = (self.crc, &self.bulk);
        self.sessions[n].conn.put_bulk(off, len, || {
            if len == bulk.len() {
                crc
            } else {
                crc32c::crc32c(&bulk[off..off + len])
            }
        });
    }

    fn data_out(&mut self, n: usize, lun: [u8; 2], itt: u32, ttt: u32, mut off: u32, mut len: u32) {
        let segment = self.sessions[n].conn.params.segment as u32;
        let mut sn = 0;
        len = len.min((self.bulk.len() as u32).saturating_sub(off));
        while len > 0 {
            let part = len.min(segment);
            let flags = if part == len { FINAL } else { 0 };
            let mut h = header(op::DATA_OUT, flags, part as usize);
            h[8..10].copy_from_slice(&lun);
            put32(&mut h, 16, itt);
            put32(&mut h, 20, ttt);
            put32(&mut h, 36, sn);
            put32(&mut h, 40, off);
            self.sessions[n].conn.put(&mut h);
            self.put_data(n, off as usize, part as usize);
            sn += 1;
            off += part;
            len -= part;
        }
    }
}

/// An epoll set when there are several connections.
struct Poll(Option<rustix::fd::OwnedFd>);

impl Poll {
    fn new(sessions: &[Session]) -> Result<Self> {
        if sessions.len() == 1 {
            return Ok(Self(None));
        }
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (n, s) in sessions.iter().enumerate() {
            let data = epoll::EventData::new_u64(n as u64);
            epoll::add(&fd, &s.conn.sock, data, epoll::EventFlags::IN)?;
        }
        Ok(Self(Some(fd)))
    }
}

/// A new session meets UNIT ATTENTIONs at each LUN.
fn clear_attentions(conn: &mut Conn, job: &Job) -> Result<()> {
    for lun in job.url.lun..job.url.lun + job.luns {
        for tries in 0.. {
            let (status, _) = conn.simple(lun, &[0; 6], 0)?;
            if status == 0 {
                break;
            }
            ensure!(tries < 20, "LUN {lun} is not ready");
            std::thread::sleep(Duration::from_millis(tries * 2));
        }
    }
    Ok(())
}

/// CPU time of this process.
///
/// # Errors
///
/// Never on Linux.
pub fn cpu_seconds() -> Result<f64> {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Ok(t.tv_sec as f64 + t.tv_nsec as f64 / 1e9)
}

const _: () = assert!(BHS + DIGEST < BUFFER_MANY);
