//! COMPARE AND WRITE: on real devices from several initiators at once, and its waiting and being waited for on a mock.

mod common;
#[path = "common/ram.rs"]
mod ram;

use common::{Nexus, Rig};
use kshim::block::register_disk;
use scst_core::core::CoreParams;
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::sense;
use std::sync::Arc;

const BLOCK: usize = 512;
const INITIATORS: usize = 3;

fn caw(lba: u64, blocks: u8, flags: u8) -> Vec<u8> {
    let mut cdb = vec![0x89, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&[0, 0, 0, blocks, 0, 0]);
    cdb
}

fn rw(op: u8, lba: u32, blocks: u8) -> Vec<u8> {
    let mut cdb = vec![op, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&[0, 0, blocks, 0]);
    cdb
}

fn disk(kind: VdiskKind, name: &str, params: &[(&str, &str)]) -> Arc<Vdisk> {
    let params = VdiskParams::parse(kind, params).expect("known parameters");
    Vdisk::new(name, &params).expect("device")
}

/// A counter in the first eight bytes of a block, and a pattern made of it in the rest.
fn block_of(n: u64) -> Vec<u8> {
    n.to_be_bytes()
        .iter()
        .copied()
        .cycle()
        .take(BLOCK)
        .collect()
}

/// Increments the counter `times` times; tries again when somebody else was faster. Answers how often that was.
fn increment(nexus: &mut Nexus, lun: u64, lba: u32, times: usize, flags: u8) -> usize {
    let (mut done, mut missed) = (0, 0);
    while done < times {
        let was = nexus.send(lun, &rw(0x28, lba, 1), Some(BLOCK), &[]);
        assert!(was.is_good(), "{was:?}");
        let n = u64::from_be_bytes(was.data[..8].try_into().expect("8 bytes"));
        assert_eq!(was.data, block_of(n), "a read saw half of a write");
        let mut out = was.data;
        out.extend_from_slice(&block_of(n + 1));
        let a = nexus.send(lun, &caw(u64::from(lba), 1, flags), None, &out);
        if a.is_good() {
            done += 1;
        } else {
            assert_eq!(a.sense(), Some(sense::MISCOMPARE), "{a:?}");
            missed += 1;
        }
    }
    missed
}

#[test]
#[expect(clippy::disallowed_methods, reason = "initiators are plain threads")]
fn no_increment_is_lost() {
    const TIMES: usize = 150;
    let inline = register_disk("/dev/ram/caw0", ram::Ram::new(1 << 20, true)).expect("new name");
    let slow = register_disk("/dev/ram/caw1", ram::Ram::new(1 << 20, false)).expect("new name");
    let dir = tempfile::tempdir().expect("scratch directory");
    let path = dir.path().join("caw.img");
    let options = kshim::fs::OpenOptions::new().create(true);
    kshim::fs::File::open(&path, &options)
        .and_then(|f| f.set_size(1 << 20))
        .expect("scratch file");
    let path = path.to_str().expect("text");
    let rig = Rig::new(&[
        (
            disk(
                VdiskKind::Blockio,
                "inline",
                &[("filename", "/dev/ram/caw0")],
            ),
            false,
        ),
        (
            disk(VdiskKind::Blockio, "slow", &[("filename", "/dev/ram/caw1")]),
            false,
        ),
        (
            disk(VdiskKind::Fileio, "file", &[("filename", path)]),
            false,
        ),
    ]);
    for lun in 0..3 {
        for flags in [0, 8] {
            let lba = 7 + u32::from(flags);
            std::thread::scope(|s| {
                for i in 0..INITIATORS {
                    let mut nexus = rig.another(&format!("iqn.{i}"));
                    s.spawn(move || increment(&mut nexus, lun, lba, TIMES, flags));
                }
            });
            let mut nexus = rig.another("iqn.last");
            let a = nexus.send(lun, &rw(0x28, lba, 1), Some(BLOCK), &[]);
            assert_eq!(a.data, block_of((INITIATORS * TIMES) as u64), "LUN {lun}");
        }
    }
    drop(rig);
    drop((inline, slow));
}

#[test]
fn bad_lengths_and_ranges() {
    let null = disk(VdiskKind::Nullio, "null", &[("size_mb", "1")]);
    let mut rig = Rig::new(&[(null, false)]);
    let at = |a: &common::Answer| a.sense[3..7].to_vec();
    // Nothing to do, even beyond the end of the data.
    assert!(rig.write(0, &caw(0, 0, 0), &[]).is_good());
    // All 255 blocks, equal to the zeros that are there.
    let a = rig.write(0, &caw(0, 255, 0), &vec![0; 510 * BLOCK]);
    assert!(a.is_good(), "{a:?}");
    // The last byte differs.
    let mut out = vec![0; 510 * BLOCK];
    out[255 * BLOCK - 1] = 1;
    let a = rig.write(0, &caw(0, 255, 0), &out);
    assert_eq!(a.sense(), Some(sense::MISCOMPARE));
    assert_eq!(at(&a), (255 * BLOCK as u32 - 1).to_be_bytes());
    // Too little and too much data.
    for len in [0, 511, 512, 1023, 1536] {
        let a = rig.write(0, &caw(0, 1, 0), &vec![0; len]);
        assert!(!a.is_good(), "{len}");
    }
    for (lba, blocks) in [(2047, 2), (2048, 1), (u64::MAX, 1), (u64::MAX - 255, 255)] {
        let out = vec![0; usize::from(blocks) * 2 * BLOCK];
        let a = rig.write(0, &caw(lba, blocks, 0), &out);
        assert_eq!(a.sense(), Some(sense::BLOCK_OUT_RANGE), "{lba}");
    }
}

/// What a command needs besides its data counts, too, and is given back.
#[test]
fn memory_to_work_in_is_limited() {
    let _ram = register_disk("/dev/ram/caw9", ram::Ram::new(1 << 20, true)).expect("new name");
    let params = CoreParams {
        // 16 pages for one device.
        max_cmd_mem: Some(5 << 15),
        ..CoreParams::default()
    };
    let disk = disk(
        VdiskKind::Blockio,
        "tight",
        &[("filename", "/dev/ram/caw9")],
    );
    let mut rig = Rig::new_with(params, &[(disk, false)]);
    let verify =
        |blocks: u16| [&[0x2F, 0, 0, 0, 0, 0, 0][..], &blocks.to_be_bytes(), &[0]].concat();
    let write_same =
        |blocks: u16| [&[0x41, 0, 0, 0, 0, 0, 0][..], &blocks.to_be_bytes(), &[0]].concat();
    let or_write = |blocks: u8| {
        let mut cdb = vec![0; 16];
        (cdb[0], cdb[13]) = (0x8B, blocks);
        cdb
    };
    const BUSY: u8 = 8;
    for _ in 0..20 {
        for (blocks, status) in [(128, 0), (255, BUSY), (128, 0)] {
            let data = vec![0; usize::from(blocks) * 2 * BLOCK];
            assert_eq!(rig.write(0, &caw(0, blocks, 0), &data).status, status);
        }
        for (blocks, status) in [(128, 0), (129, BUSY), (1000, BUSY), (128, 0)] {
            assert_eq!(rig.write(0, &verify(blocks), &[]).status, status);
            let answer = rig.write(0, &write_same(blocks), &[0; BLOCK]);
            assert_eq!(answer.status, status, "{answer:?}");
        }
        for (blocks, status) in [(40, 0), (128, BUSY), (40, 0)] {
            let data = vec![0; usize::from(blocks) * BLOCK];
            assert_eq!(rig.write(0, &or_write(blocks), &data).status, status);
        }
    }
}
