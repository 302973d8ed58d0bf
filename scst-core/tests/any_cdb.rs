//! Whatever an initiator sends, there is an answer, and the next one is answered as well: CDBs of any bytes and length with data of any
//! length and direction, to every kind of device.
//!
//! `SCST_CDB_RUNS` is the number of commands; `SCST_SEED` starts other ones.

#[path = "common/ram.rs"]
mod ram;

mod mock;

use kshim::block::register_disk;
use mock::{Ini, Rig, Rng, Spec};
use scst_core::cdb::{OPS, cdb_len};
use scst_core::consts::{DataDirection, QueueType, SamStatus};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::dev_type::DevHandler;
use scst_core::mgmt::TmFunction;
use std::path::Path;
use std::sync::Arc;

const RUNS: u64 = 200_000;
/// ... of one pair of initiators.
const ROUND: u64 = 50_000;
const SIZE: u64 = 1 << 20;
/// Longest CDB that a transport takes (iSCSI, with an AHS).
const MAX_CDB: u64 = 260;
const LUNS: u64 = 6;
/// Commands with service actions, and the byte that has them.
const ACTIONS: [(u8, usize); 9] = [
    (0x5E, 1),
    (0x5F, 1),
    (0x7F, 9),
    (0x83, 1),
    (0x84, 1),
    (0x9E, 1),
    (0x9F, 1),
    (0xA3, 1),
    (0xA4, 1),
];

fn handlers(dir: &Path) -> Vec<(String, Arc<dyn DevHandler>, bool)> {
    let file = |name: &str| {
        let path = dir.join(name);
        let options = kshim::fs::OpenOptions::new().create(true);
        kshim::fs::File::open(&path, &options)
            .and_then(|f| f.set_size(SIZE))
            .expect("scratch file");
        path.to_str().expect("text").to_owned()
    };
    let (thin, big, cd) = (file("thin"), file("big"), file("cd"));
    let make = |name: &str, kind, params: &[(&str, &str)]| {
        let mut params = VdiskParams::parse(kind, params).expect("known");
        params.state_dir = Some(dir.join("state"));
        if kind == VdiskKind::Vcdrom {
            params.filename = (name == "cd").then(|| cd.clone().into());
        }
        let disk = Vdisk::new(name, &params).expect("device");
        (name.to_owned(), disk as Arc<dyn DevHandler>, name == "null")
    };
    vec![
        make(
            "thin",
            VdiskKind::Fileio,
            &[("filename", &thin), ("thin_provisioned", "1")],
        ),
        make(
            "big",
            VdiskKind::Fileio,
            &[("filename", &big), ("blocksize", "4096"), ("tst", "0")],
        ),
        make(
            "ram",
            VdiskKind::Blockio,
            &[("filename", "/dev/ram/any_cdb")],
        ),
        make("null", VdiskKind::Nullio, &[("size_mb", "1")]),
        make("cd", VdiskKind::Vcdrom, &[]),
        make("empty", VdiskKind::Vcdrom, &[]),
    ]
}

/// Of `noise` in 16 bytes one is not zero.
fn any_byte(rng: &mut Rng, noise: u64) -> u8 {
    match rng.below(32) {
        n if n >= 2 * noise => 0,
        n if n >= noise => rng.below(9) as u8,
        _ => rng.next() as u8,
    }
}

fn any_cdb(rng: &mut Rng) -> Vec<u8> {
    let code = match rng.below(6) {
        0 => rng.next() as u8,
        1 | 2 => rng.pick(&ACTIONS).0,
        _ => OPS[rng.below(OPS.len() as u64) as usize].code,
    };
    let noise = rng.pick(&[0, 1, 2, 8]);
    let usual = u64::from(cdb_len(code)).max(16);
    let len = match rng.below(8) {
        0 => 1 + rng.below(MAX_CDB),
        1 => 32,
        _ if code == 0x7F => 32,
        _ => usual,
    };
    let mut cdb: Vec<u8> = (0..len).map(|_| any_byte(rng, noise)).collect();
    cdb[0] = code;
    if let Some((_, at)) = ACTIONS.iter().find(|a| a.0 == code)
        && let Some(b) = cdb.get_mut(*at)
        && rng.below(4) != 0
    {
        *b = rng.below(0x20) as u8;
    }
    if code == 0x7F && rng.below(4) != 0 {
        // ADDITIONAL CDB LENGTH, and the service actions that there are.
        for (at, b) in [(7, 0x18), (8, 0), (9, 8 + rng.below(8) as u8)] {
            if let Some(c) = cdb.get_mut(at) {
                *c = b;
            }
        }
    }
    cdb
}

/// What the table says of a disk's command.
fn direction_of(code: u8) -> Option<DataDirection> {
    let cdb = [&[code][..], &[0; 31]].concat();
    let info = scst_core::cdb::get_cdb_info(0, 9, &cdb).ok()?;
    Some(info.direction)
}

fn any_length(rng: &mut Rng) -> u32 {
    match rng.below(6) {
        0 => 0,
        1 => rng.below(8) as u32,
        2 => rng.below(64) as u32,
        3 => 512 * rng.below(9) as u32,
        4 => rng.below(20_000) as u32,
        _ => 4096,
    }
}

fn any_command(rng: &mut Rng) -> Spec {
    let mut s = Spec::new(rng.below(LUNS + 1), &any_cdb(rng));
    let dir = direction_of(s.cdb[0]).filter(|_| rng.below(4) != 0);
    let dir = dir.unwrap_or(rng.pick(&[
        DataDirection::None,
        DataDirection::Read,
        DataDirection::Read,
        DataDirection::Write,
        DataDirection::Write,
        DataDirection::Bidi,
    ]));
    s.expected = Some((dir, any_length(rng)));
    let noise = rng.pick(&[0, 1, 8]);
    s.out = (0..rng.below(600)).map(|_| any_byte(rng, noise)).collect();
    if rng.below(40) == 0 {
        s.raw_lun = Some(rng.next().to_be_bytes());
    }
    s.queue(rng.pick(&[
        QueueType::Simple,
        QueueType::Simple,
        QueueType::Untagged,
        QueueType::Ordered,
        QueueType::HeadOfQueue,
        QueueType::Aca,
    ]))
}

/// Whoever has an ACA gives it up, and reservations go: or nothing else would happen any more.
fn calm(inis: &mut [Ini]) {
    for ini in &mut *inis {
        for lun in 0..LUNS {
            let id = ini.tm(TmFunction::ClearAca, lun, 0);
            ini.wait_tm(id);
        }
    }
    let Some(ini) = inis.first_mut() else { return };
    for lun in 0..LUNS {
        let id = ini.tm(TmFunction::LunReset, lun, 0);
        ini.wait_tm(id);
        // REGISTER AND IGNORE EXISTING KEY, CLEAR.
        for (action, key, new) in [(6u8, 0u8, 1u8), (3, 1, 0)] {
            let mut s = Spec::new(lun, &[0x5F, action, 0, 0, 0, 0, 0, 0, 24, 0]);
            s.out = vec![0; 24];
            (s.out[7], s.out[15]) = (key, new);
            let s = s.expect(DataDirection::Write, 24);
            (0..4).any(|_| ini.ask(&s).is_good());
        }
    }
    for ini in inis {
        for lun in 0..LUNS {
            (0..8).any(|_| ini.ask(&Spec::tur().lun(lun)).is_good());
        }
    }
}

#[test]
fn whatever_is_sent_is_answered() {
    let number = |name: &str, default: u64| {
        let v = std::env::var(name).ok();
        v.map_or(default, |v| v.parse().expect(name))
    };
    // Saving registrations there is quick.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.expect("scratch directory");
    let ram = ram::Ram::new(SIZE as usize, true);
    let _ram = register_disk("/dev/ram/any_cdb", ram).expect("new");
    let (seed, runs) = (number("SCST_SEED", 1), number("SCST_CDB_RUNS", RUNS));
    // The initiators remember everything, so they are not used for long.
    for round in 0..runs.div_ceil(ROUND) {
        send_any(dir.path(), seed.wrapping_add(round), ROUND.min(runs));
    }
}

/// Two initiators send anything; each command is answered.
fn send_any(dir: &Path, seed: u64, runs: u64) {
    let rig = Rig::of_dir(handlers(dir), Some(dir.join("pr")));
    let mut inis = [rig.fresh_ini("A"), rig.fresh_ini("B")];
    let mut rng = Rng(seed);
    let mut good = 0u64;
    for n in 0..runs {
        let s = any_command(&mut rng);
        let ini = &mut inis[rng.below(2) as usize];
        let tag = ini.send(&s);
        let a = ini
            .wait_ended(tag)
            .unwrap_or_else(|| panic!("seed {seed}: {s:02x?}"));
        let max = s.expected.map_or(0, |e| e.1) as usize;
        let len = a.data.len();
        assert!(len <= max, "seed {seed}: {s:02x?}: {len} bytes");
        match a.status {
            SamStatus::CheckCondition => assert!(a.sense().is_some(), "seed {seed}: {s:02x?}"),
            _ => assert!(a.sense.is_empty(), "seed {seed}: {s:02x?}: {a:02x?}"),
        }
        good += u64::from(a.is_good());
        if n % 200 == 199 {
            calm(&mut inis);
        }
    }
    // Else the test would not say much.
    assert!(good > runs / 20, "only {good} were GOOD");
    inis.into_iter().for_each(Ini::close);
    rig.teardown();
}
