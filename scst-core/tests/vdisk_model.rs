//! Random reads, writes and their relatives against a byte vector, on each kind of store.

mod common;
#[path = "common/ram.rs"]
mod ram;

use common::{Answer, Rig};
use kshim::block::register_disk;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::sense;
use std::sync::Arc;

const BLOCK: usize = 512;
/// Blocks of the devices: small, so that ranges meet.
const NBLOCKS: u64 = 256;
const SIZE: usize = NBLOCKS as usize * BLOCK;
/// Sequences per store, fewer where every step waits for a disk, and steps per sequence.
const CASES: u32 = 24;
const SLOW_CASES: u32 = 2;
const STEPS: usize = 40;

#[derive(Clone, Debug)]
enum Op {
    Read {
        lba: u64,
        n: u16,
    },
    Write {
        lba: u64,
        n: u16,
        byte: u8,
        fua: bool,
    },
    WriteVerify {
        lba: u64,
        n: u16,
        byte: u8,
    },
    Verify {
        lba: u64,
        n: u16,
        flip: Option<u16>,
    },
    WriteSame {
        lba: u64,
        n: u16,
        byte: u8,
        unmap: bool,
    },
    Unmap {
        ranges: Vec<(u64, u32)>,
    },
    /// COMPARE AND WRITE of what is there, or of something else.
    Caw {
        lba: u64,
        n: u8,
        byte: u8,
        flip: Option<u16>,
    },
    OrWrite {
        lba: u64,
        n: u16,
        byte: u8,
    },
    Sync {
        immed: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    // Mostly inside the device, at times across its end.
    let lba = || prop_oneof![9 => 0..NBLOCKS, 1 => NBLOCKS - 4..NBLOCKS + 4];
    let n = || 0u16..40;
    prop_oneof![
        3 => (lba(), n()).prop_map(|(lba, n)| Op::Read { lba, n }),
        4 => (lba(), n(), any::<u8>(), any::<bool>())
            .prop_map(|(lba, n, byte, fua)| Op::Write { lba, n, byte, fua }),
        1 => (lba(), n(), any::<u8>()).prop_map(|(lba, n, byte)| Op::WriteVerify { lba, n, byte }),
        2 => (lba(), n(), proptest::option::of(any::<u16>()))
            .prop_map(|(lba, n, flip)| Op::Verify { lba, n, flip }),
        2 => (lba(), n(), prop_oneof![Just(0), any::<u8>()], any::<bool>())
            .prop_map(|(lba, n, byte, unmap)| Op::WriteSame { lba, n, byte, unmap }),
        1 => proptest::collection::vec((lba(), 0u32..20), 0..4)
            .prop_map(|ranges| Op::Unmap { ranges }),
        2 => (lba(), 0u8..20, any::<u8>(), proptest::option::of(any::<u16>()))
            .prop_map(|(lba, n, byte, flip)| Op::Caw { lba, n, byte, flip }),
        1 => (lba(), n(), any::<u8>()).prop_map(|(lba, n, byte)| Op::OrWrite { lba, n, byte }),
        1 => any::<bool>().prop_map(|immed| Op::Sync { immed }),
    ]
}

/// A CDB of 16 bytes with a 32-bit length.
fn cdb16(code: u8, ctrl: u8, lba: u64, n: u16) -> Vec<u8> {
    let mut cdb = vec![code, ctrl];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&u32::from(n).to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

fn pattern(byte: u8, n: u16) -> Vec<u8> {
    (0..usize::from(n) * BLOCK)
        .map(|i| byte.wrapping_add((i / 7) as u8))
        .collect()
}

fn range(lba: u64, n: u64) -> Option<std::ops::Range<usize>> {
    (lba + n <= NBLOCKS).then(|| lba as usize * BLOCK..(lba + n) as usize * BLOCK)
}

/// Applies an operation to the device and to the model, and compares.
fn step(rig: &mut Rig, model: &mut [u8], op: &Op) -> Result<(), TestCaseError> {
    let out_of_range = |a: &Answer| a.sense() == Some(sense::BLOCK_OUT_RANGE);
    match *op {
        Op::Read { lba, n } => {
            let a = rig.read(0, &cdb16(0x88, 0, lba, n), usize::from(n) * BLOCK);
            match range(lba, u64::from(n)) {
                Some(r) => prop_assert!(a.is_good() && a.data == model[r], "{op:?}: {a:02x?}"),
                None => prop_assert!(out_of_range(&a) && a.data.is_empty(), "{op:?}: {a:02x?}"),
            }
        }
        Op::Write { lba, n, byte, fua } => {
            let data = pattern(byte, n);
            let a = rig.write(0, &cdb16(0x8A, if fua { 8 } else { 0 }, lba, n), &data);
            match range(lba, u64::from(n)) {
                Some(r) => {
                    prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
                    model[r].copy_from_slice(&data);
                }
                None => prop_assert!(out_of_range(&a), "{op:?}: {a:02x?}"),
            }
        }
        Op::WriteVerify { lba, n, byte } => {
            let data = pattern(byte, n);
            let a = rig.write(0, &cdb16(0x8E, 0, lba, n), &data);
            match range(lba, u64::from(n)) {
                Some(r) => {
                    prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
                    model[r].copy_from_slice(&data);
                }
                None => prop_assert!(out_of_range(&a), "{op:?}: {a:02x?}"),
            }
        }
        Op::Verify { lba, n, flip } => {
            let Some(r) = range(lba, u64::from(n)) else {
                let a = rig.write(0, &cdb16(0x8F, 0, lba, n), &[]);
                prop_assert!(out_of_range(&a), "{op:?}: {a:02x?}");
                return Ok(());
            };
            let mut data = model[r].to_vec();
            let at = flip.map(|f| usize::from(f) % data.len().max(1));
            if let Some(b) = at.and_then(|at| data.get_mut(at)) {
                *b ^= 0x40;
            }
            let a = rig.write(0, &cdb16(0x8F, 2, lba, n), &data);
            if flip.is_some() && n != 0 {
                prop_assert_eq!(a.sense(), Some(sense::MISCOMPARE));
            } else {
                prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
            }
            prop_assert!(rig.write(0, &cdb16(0x8F, 0, lba, n), &[]).is_good());
        }
        Op::WriteSame {
            lba,
            n,
            byte,
            unmap,
        } => {
            let block = if byte == 0 {
                vec![0; BLOCK]
            } else {
                pattern(byte, 1)
            };
            let ctrl = if unmap { 8 } else { 0 };
            let a = rig.write(0, &cdb16(0x93, ctrl, lba, n), &block);
            match range(lba, u64::from(n)) {
                None => prop_assert!(out_of_range(&a), "{op:?}: {a:02x?}"),
                Some(_) if n == 0 => {
                    prop_assert_eq!(a.sense(), Some(sense::INVALID_FIELD_IN_CDB));
                }
                Some(r) => {
                    prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
                    for b in model[r].chunks_mut(BLOCK) {
                        if unmap {
                            b.fill(0);
                        } else {
                            b.copy_from_slice(&block);
                        }
                    }
                }
            }
        }
        Op::Unmap { ref ranges } => {
            let mut list = vec![0, 0];
            list.extend_from_slice(&(ranges.len() as u16 * 16).to_be_bytes());
            list.extend_from_slice(&[0; 4]);
            for (lba, n) in ranges {
                list.extend_from_slice(&lba.to_be_bytes());
                list.extend_from_slice(&n.to_be_bytes());
                list.extend_from_slice(&[0; 4]);
            }
            let mut cdb = vec![0x42, 0, 0, 0, 0, 0, 0];
            cdb.extend_from_slice(&(list.len() as u16).to_be_bytes());
            cdb.push(0);
            let a = rig.write(0, &cdb, &list);
            // Ranges are taken in order, up to the first bad one.
            for (lba, n) in ranges.iter().filter(|(_, n)| *n != 0) {
                match range(*lba, u64::from(*n)) {
                    Some(r) => model[r].fill(0),
                    None => {
                        prop_assert!(out_of_range(&a), "{op:?}: {a:02x?}");
                        return Ok(());
                    }
                }
            }
            prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
        }
        Op::Caw { .. } => compare_and_write(rig, model, op)?,
        Op::OrWrite { lba, n, byte } => {
            let data = pattern(byte, n);
            let a = rig.write(0, &cdb16(0x8B, 0, lba, n), &data);
            match range(lba, u64::from(n)) {
                Some(r) => {
                    prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
                    let both = model[r].iter_mut().zip(&data);
                    both.for_each(|(m, d)| *m |= d);
                }
                None => prop_assert!(out_of_range(&a), "{op:?}: {a:02x?}"),
            }
        }
        Op::Sync { immed } => {
            let a = rig.write(0, &cdb16(0x91, if immed { 2 } else { 0 }, 0, 0), &[]);
            prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
        }
    }
    Ok(())
}

fn compare_and_write(rig: &mut Rig, model: &mut [u8], op: &Op) -> Result<(), TestCaseError> {
    let Op::Caw { lba, n, byte, flip } = *op else {
        return Ok(());
    };
    let new = pattern(byte, u16::from(n));
    let mut cdb = cdb16(0x89, 0, lba, 0);
    cdb[13] = n;
    let Some(r) = range(lba, u64::from(n)) else {
        let a = rig.write(0, &cdb, &[new.clone(), new].concat());
        prop_assert_eq!(a.sense(), Some(sense::BLOCK_OUT_RANGE));
        return Ok(());
    };
    let mut old = model[r.clone()].to_vec();
    let at = flip.map(|f| usize::from(f) % old.len().max(1));
    let at = at.filter(|at| *at < old.len());
    if let Some(at) = at {
        old[at] ^= 1;
    }
    let a = rig.write(0, &cdb, &[old, new.clone()].concat());
    match at {
        None => {
            prop_assert!(a.is_good(), "{op:?}: {a:02x?}");
            model[r].copy_from_slice(&new);
        }
        Some(at) => {
            prop_assert_eq!(a.sense(), Some(sense::MISCOMPARE));
            // INFORMATION: which byte differs.
            let info = a.sense[3..7].try_into().map(u32::from_be_bytes);
            prop_assert_eq!(info.ok(), Some(at as u32), "{:?}", op);
        }
    }
    Ok(())
}

fn run(disk: Arc<Vdisk>) {
    run_cases(disk, CASES);
}

fn run_cases(disk: Arc<Vdisk>, cases: u32) {
    let rig = std::cell::RefCell::new(Rig::new(&[(disk, false)]));
    let model = std::cell::RefCell::new(vec![0u8; SIZE]);
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        // The device keeps its content, so a shorter sequence would not start from the same state.
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    });
    let sequence = proptest::collection::vec(op(), STEPS);
    runner
        .run(&sequence, |ops| {
            let (mut rig, mut model) = (rig.borrow_mut(), model.borrow_mut());
            for op in &ops {
                step(&mut rig, &mut model, op)?;
            }
            let all = rig.read(0, &cdb16(0x88, 0, 0, NBLOCKS as u16), SIZE);
            prop_assert!(all.data == *model);
            Ok(())
        })
        .expect("device and model agree");
}

fn file_params(dir: &std::path::Path, more: &[(&str, &str)]) -> VdiskParams {
    let path = dir.join("disk");
    let options = kshim::fs::OpenOptions::new().create(true);
    kshim::fs::File::open(&path, &options)
        .and_then(|f| f.set_size(SIZE as u64))
        .expect("file");
    let mut params = vec![
        ("filename", path.to_str().expect("text")),
        ("thin_provisioned", "1"),
    ];
    params.extend_from_slice(more);
    VdiskParams::parse(VdiskKind::Fileio, &params).expect("known parameters")
}

#[test]
fn fileio_behaves_like_a_byte_vector() {
    let dir = tempfile::tempdir().expect("scratch directory");
    run(Vdisk::new("model-file", &file_params(dir.path(), &[])).expect("device"));
}

#[test]
fn fileio_write_through_behaves_like_a_byte_vector() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let params = file_params(dir.path(), &[("write_through", "1")]);
    run_cases(Vdisk::new("model-wt", &params).expect("device"), SLOW_CASES);
}

#[test]
fn fileio_on_a_memory_file_system_behaves_like_a_byte_vector() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    run(Vdisk::new("model-shm", &file_params(dir.path(), &[])).expect("device"));
}

#[test]
fn fileio_without_the_page_cache_behaves_like_a_byte_vector() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let params = file_params(dir.path(), &[("o_direct", "1"), ("async", "1")]);
    match Vdisk::new("model-direct", &params) {
        Ok(disk) => run_cases(disk, SLOW_CASES),
        // Not every file system has O_DIRECT, or blocks as small.
        Err(e) => assert_eq!(e.errno(), kshim::error::code::EINVAL, "{e}"),
    }
}

#[test]
fn blockio_on_inline_memory_behaves_like_a_byte_vector() {
    let _disk = register_disk("/dev/ram/model-inline", ram::Ram::new(SIZE, true)).expect("new");
    let params = [("filename", "/dev/ram/model-inline")];
    let params = VdiskParams::parse(VdiskKind::Blockio, &params).expect("known");
    run(Vdisk::new("model-inline", &params).expect("device"));
}

#[test]
fn blockio_with_late_completions_behaves_like_a_byte_vector() {
    let _disk = register_disk("/dev/ram/model-late", ram::Ram::new(SIZE, false)).expect("new");
    let params = [("filename", "/dev/ram/model-late")];
    let params = VdiskParams::parse(VdiskKind::Blockio, &params).expect("known");
    run(Vdisk::new("model-late", &params).expect("device"));
}
