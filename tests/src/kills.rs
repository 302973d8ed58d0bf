//! What was acknowledged as durable outlives kill -9: random writes, by FUA or flushed, until the server is killed; it is
//! started again, and every byte is looked at.
//!
//! A killed process does not lose the page cache: that durable writes reach the disk is shown by `tests/faults.rs`.

use std::thread;
use std::time::Duration;

use scst_initiator::{Command, Session, scsi};

use crate::rng::{Rng, stamped_blocks};
use crate::server::{Server, ServerOptions};
use crate::tools::env_number;

/// Extents of the LUN, and blocks of one.
pub const EXTENTS: u64 = 256;
/// Blocks of an extent, which is written at once.
pub const EXTENT_BLOCKS: u64 = 16;
/// Bytes that the LUN must have.
pub const LUN_BYTES: u64 = EXTENTS * EXTENT_BLOCKS * 512;
/// Commands in flight.
const DEPTH: usize = 8;

/// What may be in an extent: any generation from the one that is durable for sure to the newest that was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    durable: u64,
    sent: u64,
}

/// Kills a server that is written to, and starts it again, and looks at what is there, `SCST_KILL_ROUNDS` times (5). The
/// LUN is all zeros at first.
///
/// # Panics
///
/// If something is lost.
pub fn outlive_kills(options: &ServerOptions) {
    let rounds = env_number("SCST_KILL_ROUNDS", 5);
    let mut server = Server::start_own(options);
    let mut known = Known::new(21);
    for round in 1..=rounds {
        let n = known.write_until_killed(&mut server);
        println!("round {round}: {n} writes durable before the kill");
        server.restart();
        known.look(&server, round);
    }
    println!("{rounds} kills, {} durable writes, none lost", known.all);
}

/// What is known of the LUN's content.
#[derive(Debug)]
pub struct Known {
    extents: Vec<Extent>,
    rng: Rng,
    /// Writes that were durable before a kill.
    pub all: u64,
}

impl Known {
    /// A LUN that is all zeros; what is written and when is decided by `SCST_SEED`, else `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            extents: vec![Extent::default(); EXTENTS as usize],
            rng: Rng::from_env(seed),
            all: 0,
        }
    }

    /// Writes until the server is killed, some milliseconds from now. Returns how many writes were durable then.
    ///
    /// # Panics
    ///
    /// If a write fails otherwise than by the end of the server.
    pub fn write_until_killed(&mut self, server: &mut Server) -> u64 {
        let moment = Duration::from_micros(self.rng.below(40_000));
        let n = write_until_killed(server, moment, &mut self.rng, &mut self.extents);
        self.all += n;
        n
    }

    /// Looks at the whole LUN. What is there counts as durable from now on.
    ///
    /// # Panics
    ///
    /// If something is lost.
    pub fn look(&mut self, server: &Server, round: u64) {
        let mut s = server.session(1);
        for (n, extent) in (0..).zip(&mut self.extents) {
            look(&mut s, server.lun(0), n, extent, round);
        }
        flush(&mut s, server.lun(0));
        s.close().expect("logout");
    }
}

fn flush(s: &mut Session, lun: u16) {
    let flush = Command::new(lun, scsi::synchronize_cache10());
    s.scsi(&flush).expect("flush").good();
}

/// Looks at one extent. What is there counts as durable from now on.
fn look(s: &mut Session, lun: u16, n: u64, extent: &mut Extent, round: u64) {
    let first = n * EXTENT_BLOCKS;
    let data = s.read_blocks(lun, first, EXTENT_BLOCKS as u32);
    let data = data.expect("read after the restart");
    let block = |lba, g| match g {
        0 => vec![0; 512],
        g => stamped_blocks(lba, 1, g),
    };
    let candidates = extent.durable..=extent.sent;
    let of = |(lba, found): (u64, &[u8])| {
        let g = candidates.clone().rev().find(|g| found == block(lba, *g));
        g.unwrap_or_else(|| panic!("round {round}: block {lba} has none of {extent:?}"))
    };
    let found: Vec<u64> = (first..).zip(data.chunks(512)).map(of).collect();
    if found.iter().all(|g| *g == found[0]) {
        extent.durable = found[0];
    } else {
        // A write under way was torn between blocks.
        let new = stamped_blocks(first, EXTENT_BLOCKS, extent.sent);
        s.write_blocks(lun, first, &new).expect("write");
        extent.durable = extent.sent;
    }
    extent.sent = extent.durable;
}

/// A command in flight, and what its end makes durable.
enum Sent {
    /// A write with FUA, or without: extent, generation.
    Write(usize, u64, bool),
    /// A flush, for writes that had ended before.
    Flush(Vec<(usize, u64)>),
}

/// Something to send, unless enough is in flight or chance hits an extent that is being written to.
fn choose(
    rng: &mut Rng,
    lun: u16,
    extents: &mut [Extent],
    in_flight: &[(u32, Sent)],
    ended: &mut Vec<(usize, u64)>,
) -> Option<(Command, Sent)> {
    if in_flight.len() >= DEPTH {
        return None;
    }
    if rng.one_in(12) {
        let flush = Command::new(lun, scsi::synchronize_cache10());
        return Some((flush, Sent::Flush(std::mem::take(ended))));
    }
    let n = rng.below(EXTENTS) as usize;
    let busy = |(_, sent): &(u32, Sent)| matches!(sent, Sent::Write(m, ..) if *m == n);
    if in_flight.iter().any(busy) {
        return None;
    }
    let generation = extents[n].sent + 1;
    extents[n].sent = generation;
    let lba = n as u64 * EXTENT_BLOCKS;
    let data = stamped_blocks(lba, EXTENT_BLOCKS, generation);
    let fua = rng.one_in(2);
    let cdb = match fua {
        true => scsi::write16_fua(lba, EXTENT_BLOCKS as u32),
        false => scsi::write16(lba, EXTENT_BLOCKS as u32),
    };
    let write = Command::write(lun, cdb, data);
    Some((write, Sent::Write(n, generation, fua)))
}

/// Writes until the server is killed after `moment`; returns how many writes were durable then.
fn write_until_killed(
    server: &mut Server,
    moment: Duration,
    rng: &mut Rng,
    extents: &mut [Extent],
) -> u64 {
    let mut s = server.session(1);
    let lun = server.lun(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(moment);
            server.kill9();
        });
        let (mut in_flight, mut ended, mut durable) = (Vec::new(), Vec::new(), 0);
        loop {
            if let Some((command, sent)) = choose(rng, lun, extents, &in_flight, &mut ended) {
                match s.submit(&command) {
                    Ok(tag) => in_flight.push((tag, sent)),
                    Err(e) if e.is_closed() => return durable,
                    Err(e) => panic!("{e}"),
                }
                continue;
            }
            let (tag, sent) = in_flight.remove(0);
            match s.wait_scsi(tag) {
                // rbd's lock, or an OSD, may be a moment away.
                Ok(reply) if reply.status == scsi::status::BUSY => continue,
                Ok(reply) => assert!(reply.is_good(), "{reply}"),
                Err(e) if e.is_closed() => return durable,
                Err(e) => panic!("{e}"),
            }
            let safe = match sent {
                Sent::Write(n, g, false) => {
                    ended.push((n, g));
                    Vec::new()
                }
                Sent::Write(n, g, true) => vec![(n, g)],
                Sent::Flush(all) => all,
            };
            durable += safe.len() as u64;
            for (n, g) in safe {
                extents[n].durable = extents[n].durable.max(g);
            }
        }
    })
}
