//! A mirror outlives kill -9 of its server, in mid-write, in mid-resync and without a leg: no durable write is lost, and both
//! legs agree when it is done. `SCST_KILL_ROUNDS` sets the number of kills (12).
//!
//! What is on the legs is read from the images, by the format in `docs/ports.md`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use scst_tests::kills::{Known, LUN_BYTES};
use scst_tests::tools::env_number;
use scst_tests::{Rng, Server, ServerOptions};

const LIMIT: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;
/// Where data begin on a leg with so few regions.
const DATA_AT: usize = 1 << 20;
const REGION: usize = 64 << 10;
/// Regions of the LUN.
const REGIONS: usize = LUN_BYTES as usize / REGION;
/// States of a leg in a superblock.
const IN_SYNC: u8 = 1;

struct Mirror {
    legs: [PathBuf; 2],
}

/// What the images say.
struct Found {
    /// States of both legs, by the newest superblock.
    states: [u8; 2],
    /// Regions whose bit is set on a leg.
    dirty: usize,
    /// Regions that are not alike.
    different: usize,
}

fn number(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
}

impl Mirror {
    fn new(dir: &Path) -> Mirror {
        let legs = ["a.img", "b.img"].map(|name| dir.join(name));
        for leg in &legs {
            let file = File::create(leg).unwrap();
            file.set_len(DATA_AT as u64 + LUN_BYTES).unwrap();
        }
        Mirror { legs }
    }

    /// The server of these legs. Copying takes a quarter of a second at least, which is long enough to be killed in.
    fn options(&self, legs: &[usize], more: &str) -> ServerOptions {
        let leg = |n: &usize| format!("leg={}", self.legs[*n].display());
        let legs: Vec<String> = legs.iter().map(leg).collect();
        let knobs = "region=64K&bitmap_delay=20&readd=0&sync_speed_min=8M&sync_speed_max=8M";
        ServerOptions::lun(format!("/dev/raid1/k?{}&{knobs}{more}", legs.join("&")))
    }

    fn found(&self) -> Found {
        let images = [0, 1].map(|n| fs::read(&self.legs[n]).unwrap());
        let supers = images.iter().flat_map(|i| [&i[..PAGE], &i[PAGE..2 * PAGE]]);
        let newest = supers.max_by_key(|s| number(s, 40)).unwrap();
        let dirty = |n: usize| {
            let bit = |i: &Vec<u8>| i[2 * PAGE + 16 + n / 8] >> (n % 8) & 1 != 0;
            images.iter().any(bit)
        };
        let region = |i: usize, n: usize| &images[i][DATA_AT + n * REGION..][..REGION];
        Found {
            states: [newest[96], newest[128]],
            dirty: (0..REGIONS).filter(|n| dirty(*n)).count(),
            different: (0..REGIONS)
                .filter(|n| region(0, *n) != region(1, *n))
                .count(),
        }
    }

    /// Waits until nothing is left to copy, and nothing to remember.
    fn wait_clean(&self, server: &Server) {
        let end = Instant::now() + LIMIT;
        loop {
            let found = self.found();
            if found.states == [IN_SYNC; 2] && found.dirty == 0 {
                return;
            }
            assert!(Instant::now() < end, "{}", server.stderr());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the kills met.
#[derive(Debug, Default)]
struct Met {
    in_write: u32,
    in_resync: u32,
    without_a_leg: u32,
    /// Kills that left legs that differ, and regions in which they did.
    unlike: u32,
    regions: usize,
    /// How often both legs were compared, byte for byte.
    compared: u32,
}

#[test]
fn a_mirror_outlives_kills_and_its_legs_agree() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::new(dir.path());
    let rounds = env_number("SCST_KILL_ROUNDS", 12);
    let (mut rng, mut known, mut met) = (Rng::from_env(7), Known::new(8), Met::default());
    let create = mirror.options(&[0, 1], "&create=1&assume_clean=1");
    let both = mirror.options(&[0, 1], "");
    let mut server = Server::start_own(&create);
    for round in 1..=rounds {
        match round % 4 {
            // In mid-resync: of what the writes of the last round have left.
            0 => {
                thread::sleep(Duration::from_micros(rng.below(150_000)));
                server.kill9();
                met.in_resync += 1;
            }
            // Without a leg, which gets back what it lacks in the rounds that follow.
            1 => {
                mirror.wait_clean(&server);
                assert!(server.stop().success());
                let found = mirror.found();
                assert_eq!(found.different, 0, "legs differ after a clean stop");
                met.compared += 1;
                let one = mirror.options(&[rng.below(2) as usize], "&degraded=1");
                server = Server::start_own(&one);
                known.write_until_killed(&mut server);
                met.without_a_leg += 1;
            }
            _ => {
                known.write_until_killed(&mut server);
                met.in_write += 1;
            }
        }
        let found = mirror.found();
        met.unlike += u32::from(found.different > 0);
        met.regions += found.different;
        assert!(
            found.different <= found.dirty,
            "{} regions differ, {} bits",
            found.different,
            found.dirty
        );
        server = Server::start_own(&both);
        known.look(&server, round);
    }
    mirror.wait_clean(&server);
    assert!(server.stop().success());
    assert_eq!(mirror.found().different, 0, "legs differ at the end");
    println!(
        "{rounds} kills, {} durable writes, none lost; {met:?}",
        known.all
    );
}
