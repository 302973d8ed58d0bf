//! What virtual disks do when things go wrong, and which way commands take.

mod common;
#[path = "common/ram.rs"]
mod ram;

use common::{Rig, hex};
use kshim::block::register_disk;
use kshim::error::code;
use kshim::fs::{Engine, File, OpenOptions};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskError, VdiskKind, VdiskParams};
use scst_core::sense;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const SIZE: u64 = 1 << 20;
const READ10: &str = "28000000000000000800";
const WRITE10: &str = "2a000000000000000800";
const WRITE10_FUA: &str = "2a080000000000000800";
const SYNC10: &str = "35000000000000000000";
const SYNC10_IMMED: &str = "35020000000000000000";
/// Bytes that the CDBs above move.
const LEN: usize = 4096;

fn scratch(dir: &Path, size: u64) -> File {
    let file = File::open(dir.join("disk"), &OpenOptions::new().create(true)).expect("scratch");
    file.set_size(size).expect("size");
    file
}

fn file_disk(dir: &Path, more: &[(&str, &str)]) -> Result<Arc<Vdisk>, VdiskError> {
    let path = dir.join("disk");
    let mut params = vec![("filename", path.to_str().expect("text"))];
    params.extend_from_slice(more);
    Vdisk::new(
        "file0",
        &VdiskParams::parse(VdiskKind::Fileio, &params).expect("known"),
    )
}

fn block_disk(path: &str, more: &[(&str, &str)]) -> Result<Arc<Vdisk>, VdiskError> {
    let mut params = vec![("filename", path)];
    params.extend_from_slice(more);
    Vdisk::new(
        "block0",
        &VdiskParams::parse(VdiskKind::Blockio, &params).expect("known"),
    )
}

fn null_disk(more: &[(&str, &str)]) -> Arc<Vdisk> {
    let params = VdiskParams::parse(VdiskKind::Nullio, more).expect("known");
    Vdisk::new("null0", &params).expect("device")
}

#[test]
fn devices_that_cannot_be_made_say_why() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let e = file_disk(dir.path(), &[]).expect_err("no file");
    assert_eq!(e.errno(), code::ENOENT);
    assert!(
        e.to_string().starts_with("device file0: cannot open "),
        "{e}"
    );
    let e = block_disk("/dev/ram/not-there", &[]).expect_err("no disk");
    assert_eq!(e.errno(), code::ENOENT);
    let _ram = register_disk("/dev/ram/claimed", ram::Ram::new(1 << 20, true)).expect("new");
    let first = block_disk("/dev/ram/claimed", &[]).expect("free");
    assert_eq!(
        block_disk("/dev/ram/claimed", &[])
            .expect_err("claimed")
            .errno(),
        code::EBUSY
    );
    drop(first);
    assert!(block_disk("/dev/ram/claimed", &[]).is_ok());
    let null = VdiskParams::new(VdiskKind::Nullio);
    for name in ["", &"n".repeat(65)] {
        assert_eq!(
            Vdisk::new(name, &null).expect_err("name").errno(),
            code::EINVAL
        );
    }
}

#[test]
fn nullio_gives_zeros_and_never_what_was_written() {
    let mut rig = Rig::new(&[(null_disk(&[("size_mb", "1")]), false)]);
    let a = rig.write(0, &hex(WRITE10), &[0xEE; LEN]);
    assert!(a.is_good() && !a.threaded);
    let a = rig.read(0, &hex(READ10), LEN);
    assert_eq!((a.data, a.threaded), (vec![0; LEN], false));
    // These panicked the kernel.
    assert!(rig.write(0, &hex(SYNC10_IMMED), &[]).is_good());
    assert!(rig.write(0, &hex(SYNC10), &[]).is_good());
}

#[test]
fn cached_file_data_needs_no_thread_and_durable_data_does() {
    let dir = tempfile::tempdir().expect("scratch directory");
    scratch(dir.path(), SIZE);
    let disk = file_disk(dir.path(), &[("engine", "threads")]).expect("device");
    let mut rig = Rig::new(&[(disk, false)]);
    let a = rig.write(0, &hex(WRITE10), &[0xA5; LEN]);
    assert!(a.is_good() && !a.threaded);
    let a = rig.read(0, &hex(READ10), LEN);
    assert!(a.is_good() && !a.threaded && a.data == [0xA5; LEN]);
    for cdb in [SYNC10, SYNC10_IMMED] {
        let a = rig.write(0, &hex(cdb), &[]);
        assert!(a.is_good() && a.threaded, "{cdb}");
    }
    let a = rig.write(0, &hex(WRITE10_FUA), &[0x5A; LEN]);
    assert!(a.is_good() && a.threaded);
    let mut on_disk = vec![0; LEN];
    let file = File::open(dir.path().join("disk"), &OpenOptions::new().read_only(true));
    file.and_then(|f| f.read_at(&mut on_disk, 0))
        .expect("readable");
    assert_eq!(on_disk, [0x5A; LEN]);
}

#[test]
fn devices_without_a_volatile_cache_do_not_flush() {
    let dir = tempfile::tempdir().expect("scratch directory");
    scratch(dir.path(), SIZE);
    for cache in ["nv_cache", "write_through"] {
        let params = [(cache, "1"), ("engine", "threads")];
        let disk = file_disk(dir.path(), &params).expect("device");
        let mut rig = Rig::new(&[(disk, false)]);
        for cdb in [SYNC10, SYNC10_IMMED] {
            let a = rig.write(0, &hex(cdb), &[]);
            assert!(a.is_good() && !a.threaded, "{cache} {cdb}");
        }
        let a = rig.write(0, &hex(WRITE10), &[1; LEN]);
        assert_eq!((a.is_good(), a.threaded), (true, cache == "write_through"));
    }
    let mut rig = Rig::new(&[(null_disk(&[]), false)]);
    for cdb in [SYNC10, SYNC10_IMMED] {
        assert!(rig.write(0, &hex(cdb), &[]).is_good(), "null {cdb}");
    }
}

#[test]
fn a_file_that_became_shorter_is_a_read_error() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let file = scratch(dir.path(), SIZE);
    let disk = file_disk(dir.path(), &[]).expect("device");
    let mut rig = Rig::new(&[(disk.clone(), false)]);
    file.set_size(1024).expect("shrinks");
    let a = rig.read(0, &hex(READ10), LEN);
    assert_eq!((a.sense(), a.data.len()), (Some(sense::READ_ERROR), 0));
    assert_eq!(disk.resync_size(), Ok(true));
    assert_eq!(disk.nblocks(), 2);
    let a = rig.read(0, &hex(READ10), LEN);
    assert_eq!(a.sense(), Some(sense::BLOCK_OUT_RANGE));
    assert_eq!(disk.resync_size(), Ok(false));
}

#[test]
fn a_closed_device_is_not_ready() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let disk = file_disk(dir.path(), &[("active", "0")]).expect("not opened");
    // A session on it never gets past NOT READY, so the unit attention is taken by hand.
    let mut rig = Rig::open(&[(disk, false)]);
    assert_eq!(rig.tur(0).sense(), Some(sense::RESET_UA));
    assert_eq!(
        rig.read(0, &hex(READ10), LEN).sense(),
        Some(sense::NOT_READY)
    );
    assert_eq!(
        rig.write(0, &hex(WRITE10), &[0; LEN]).sense(),
        Some(sense::NOT_READY)
    );
    for cdb in ["000000000000", SYNC10, "2f000000000000000800"] {
        let a = rig.write(0, &hex(cdb), &[]);
        assert_eq!(a.sense(), Some(sense::NOT_READY), "{cdb}");
    }
    assert!(rig.read(0, &hex("120000002400"), 36).is_good());
    assert!(rig.read(0, &hex("1a003f00ff00"), 255).is_good());
}

#[test]
fn a_broken_block_device_fails_commands_with_medium_errors() {
    let driver = ram::Ram::new(1 << 20, false);
    let _ram = register_disk("/dev/ram/broken", driver.clone()).expect("new");
    let disk = block_disk("/dev/ram/broken", &[]).expect("device");
    let mut rig = Rig::new(&[(disk, false)]);
    driver.broken.store(true, Ordering::Relaxed);
    assert_eq!(
        rig.read(0, &hex(READ10), LEN).sense(),
        Some(sense::READ_ERROR)
    );
    assert_eq!(
        rig.write(0, &hex(WRITE10), &[1; LEN]).sense(),
        Some(sense::WRITE_ERROR)
    );
    assert_eq!(
        rig.write(0, &hex(SYNC10), &[]).sense(),
        Some(sense::WRITE_ERROR)
    );
    let verify = "2f000000000000000800";
    assert_eq!(
        rig.write(0, &hex(verify), &[]).sense(),
        Some(sense::WRITE_ERROR)
    );
    // Nobody waits for this one: GOOD now, and the failure shows at the next.
    assert!(rig.write(0, &hex(SYNC10_IMMED), &[]).is_good());
    driver.broken.store(false, Ordering::Relaxed);
    assert_eq!(
        rig.write(0, &hex(SYNC10), &[]).sense(),
        Some(sense::WRITE_ERROR)
    );
    assert!(rig.write(0, &hex(SYNC10), &[]).is_good());
    assert!(rig.read(0, &hex(READ10), LEN).is_good());
}

#[test]
fn a_full_disk_is_told_as_such() {
    let driver = ram::Ram::new(1 << 20, true);
    let _ram = register_disk("/dev/ram/full", driver.clone()).expect("new");
    let disk = block_disk("/dev/ram/full", &[]).expect("device");
    let mut rig = Rig::new(&[(disk, false)]);
    driver.full.store(true, Ordering::Relaxed);
    let a = rig.write(0, &hex(WRITE10), &[1; LEN]);
    assert_eq!(a.sense(), Some(sense::SPACE_ALLOC_FAILED));
    assert!(rig.read(0, &hex(READ10), LEN).is_good());
}

#[test]
fn memory_is_lent_for_reads_and_durable_writes_are_marked() {
    let driver = ram::Ram::new(1 << 20, true);
    let _ram = register_disk("/dev/ram/lent", driver.clone()).expect("new");
    let disk = block_disk("/dev/ram/lent", &[]).expect("device");
    let mut rig = Rig::new(&[(disk, false)]);
    assert!(!rig.write(0, &hex(WRITE10), &[0xC3; LEN]).threaded);
    let before = driver.bios.load(Ordering::Relaxed);
    let a = rig.read(0, &hex(READ10), LEN);
    assert_eq!((a.data, a.threaded), (vec![0xC3; LEN], false));
    assert_eq!(
        driver.bios.load(Ordering::Relaxed),
        before,
        "no bio for lent memory"
    );
    assert_eq!(driver.fua.load(Ordering::Relaxed), 0);
    assert!(!rig.write(0, &hex(WRITE10_FUA), &[1; LEN]).threaded);
    assert_eq!(driver.fua.load(Ordering::Relaxed), 1);
    let flushes = driver.flushes.load(Ordering::Relaxed);
    for cdb in [SYNC10, SYNC10_IMMED, "1b0000000100"] {
        assert!(rig.write(0, &hex(cdb), &[]).is_good());
    }
    assert_eq!(driver.flushes.load(Ordering::Relaxed), flushes + 3);
}

#[test]
fn less_data_than_the_cdb_says_writes_only_that() {
    let dir = tempfile::tempdir().expect("scratch directory");
    scratch(dir.path(), SIZE);
    let mut rig = Rig::new(&[(file_disk(dir.path(), &[]).expect("device"), false)]);
    // Eight blocks by the CDB, two and a half sent.
    let a = rig.write(0, &hex(WRITE10), &[7; 1280]);
    assert_eq!((a.is_good(), a.resid), (true, 1280 - LEN as i64));
    let a = rig.read(0, &hex(READ10), LEN);
    assert_eq!(a.data[..1024], [7; 1024]);
    assert_eq!(a.data[1024..], [0; LEN - 1024]);
    // WRITE SAME needs its block whole.
    let a = rig.write(0, &hex("41000000000000000800"), &[7; 100]);
    assert_eq!(a.sense(), Some(sense::PARAMETER_LIST_LENGTH_INVALID));
    let a = rig.write(0, &hex("41000000000000000800"), &[7; 1024]);
    assert_eq!(a.sense(), Some(sense::PARAMETER_LIST_LENGTH_INVALID));
    // An UNMAP list that was cut off is not guessed at.
    let thin = file_disk(dir.path(), &[("thin_provisioned", "1")]).expect("device");
    drop(rig);
    let mut rig = Rig::new(&[(thin, false)]);
    let a = rig.write(
        0,
        &hex("42000000000000001800"),
        &hex("00160010000000000000000000000100"),
    );
    assert_eq!(a.sense(), Some(sense::INVALID_FIELD_IN_PARM_LIST));
}

#[test]
fn unmap_and_write_same_limits() {
    let dir = tempfile::tempdir().expect("scratch directory");
    scratch(dir.path(), 1 << 30);
    let disk = file_disk(dir.path(), &[("thin_provisioned", "1")]).expect("device");
    let mut rig = Rig::new(&[(disk, false)]);
    // 512 MiB + 512: over the announced limit of 256 MiB.
    let list = hex("001600100000000000000000000000000010000100000000");
    let a = rig.write(0, &hex("42000000000000001800"), &list);
    assert_eq!(a.sense(), Some(sense::INVALID_FIELD_IN_PARM_LIST));
    let a = rig.write(0, &hex("93000000000000000000001000010000"), &[1; 512]);
    assert_eq!(a.sense(), Some(sense::INVALID_FIELD_IN_CDB));
    // Exactly the limit, of zeros: quick, and without 256 MiB of memory.
    let a = rig.write(0, &hex("93000000000000000000000800000000"), &[0; 512]);
    assert!(a.is_good());
    // A device that is not thin has neither.
    let plain = file_disk(dir.path(), &[]).expect("device");
    drop(rig);
    let mut rig = Rig::new(&[(plain, false)]);
    let a = rig.write(0, &hex("42000000000000000800"), &hex("0006000000000000"));
    assert_eq!(a.sense(), Some(sense::INVALID_OPCODE));
    let a = rig.write(0, &hex("93080000000000000000000000010000"), &[0; 512]);
    assert_eq!(a.sense(), Some(sense::INVALID_OPCODE));
}

/// VERIFY, WRITE SAME and UNMAP end alike, whoever does them.
#[test]
fn ranges_are_changed_and_compared_with_each_engine() {
    const PATTERN: &str = "41000000000400000800";
    const ZEROS_BY_UNMAP: &str = "93080000000000000008000000040000";
    for (engine, block) in Engine::ALL
        .into_iter()
        .flat_map(|e| [(e, false), (e, true)])
    {
        if engine.probe().is_err() {
            continue;
        }
        let dir = tempfile::tempdir().expect("scratch directory");
        let file = scratch(dir.path(), SIZE);
        file.write_at(&[9; LEN], 0).expect("written");
        let more = [("thin_provisioned", "1"), ("engine", engine.name())];
        let path = dir.path().join("disk");
        let disk = if block {
            block_disk(path.to_str().expect("text"), &more)
        } else {
            file_disk(dir.path(), &more)
        };
        let mut rig = Rig::new(&[(disk.expect("device"), false)]);
        let good = |a: common::Answer| assert!(a.is_good(), "{engine} {block}: {:?}", a.sense());
        good(rig.write(0, &hex("2f000000000000040000"), &[]));
        good(rig.write(0, &hex("2f020000000000000800"), &[9; LEN]));
        let mut other = [9; LEN];
        other[LEN - 1] = 8;
        let a = rig.write(0, &hex("2f020000000000000800"), &other);
        assert_eq!(a.sense(), Some(sense::MISCOMPARE), "{engine} {block}");
        // Blocks 4 to 11 of a pattern; of these, and of what was there, 8 to 11 of zeros; 0 to 1 are unmapped.
        good(rig.write(0, &hex(PATTERN), &[7; 512]));
        good(rig.write(0, &hex(ZEROS_BY_UNMAP), &[0; 512]));
        let list = hex("001600100000000000000000000000000000000200000000");
        good(rig.write(0, &hex("42000000000000001800"), &list));
        let a = rig.read(0, &hex("28000000000000000c00"), 12 * 512);
        for (n, byte) in [
            (0, 0),
            (1, 0),
            (2, 9),
            (3, 9),
            (4, 7),
            (7, 7),
            (8, 0),
            (11, 0),
        ] {
            let at = n * 512;
            assert_eq!(a.data[at..at + 512], [byte; 512], "{engine} {block}: {n}");
        }
        good(rig.write(0, &hex("41000000000000000400"), &[0; 512]));
        let a = rig.read(0, &hex("28000000000000000400"), 2048);
        assert_eq!(a.data, [0; 2048], "{engine} {block}");
        // The medium ends too early.
        file.set_size(LEN as u64).expect("cut");
        let a = rig.write(0, &hex("2f000000000000040000"), &[]);
        assert_eq!(a.sense(), Some(sense::READ_ERROR), "{engine} {block}");
    }
}

/// Whatever an initiator sends, there is an answer.
#[test]
fn any_cdb_gets_an_answer() {
    let dir = tempfile::tempdir().expect("scratch directory");
    scratch(dir.path(), SIZE);
    let _ram = register_disk("/dev/ram/fuzz", ram::Ram::new(1 << 20, true)).expect("new");
    let disks = [
        (
            file_disk(dir.path(), &[("thin_provisioned", "1")]).expect("device"),
            false,
        ),
        (block_disk("/dev/ram/fuzz", &[]).expect("device"), false),
        (null_disk(&[("size_mb", "1")]), true),
    ];
    let rig = std::cell::RefCell::new(Rig::new(&disks));
    let codes: Vec<u8> = scst_core::cdb::OPS.iter().map(|o| o.code).collect();
    let byte = prop_oneof![2 => Just(0u8), 1 => any::<u8>(), 1 => 0u8..8];
    let cdb = (
        prop_oneof![4 => proptest::sample::select(codes), 1 => any::<u8>()],
        proptest::collection::vec(byte, 5..31),
    );
    let data = prop_oneof![Just(None), (0usize..5000).prop_map(Some),];
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(
            &(
                0u64..3,
                cdb,
                data,
                proptest::collection::vec(any::<u8>(), 0..600),
            ),
            |t| {
                let (lun, (code, rest), expect_in, out) = t;
                let mut cdb = vec![code];
                cdb.extend_from_slice(&rest);
                // NACA establishes conditions that outlive the command.
                let control = usize::from(scst_core::cdb::cdb_len(code)).max(1) - 1;
                if let Some(b) = cdb.get_mut(control) {
                    *b &= !4;
                }
                let a = rig.borrow_mut().send(lun, &cdb, expect_in, &out);
                prop_assert!(
                    a.status == 0 || !a.sense.is_empty() || a.status != 2,
                    "{a:?}"
                );
                if let Some(len) = expect_in {
                    prop_assert!(a.data.len() <= len);
                }
                Ok(())
            },
        )
        .expect("always answered");
}
