//! Commands that change a device, or look at its storage: MODE SELECT with saved pages, FORMAT UNIT, GET LBA STATUS, and
//! what kernel SCST does not have.
#![allow(
    clippy::disallowed_methods,
    reason = "tests may use the host's files directly"
)]

mod common;

use common::{Answer, Rig, hex};
use scst_core::core::LunParams;
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::sense::{self, Sense};
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const READ_CONTROL: &str = "1a080a00ff00";
const READ_CACHING: &str = "1a080800ff00";

fn disk(dir: &Path, name: &str, size: u64, more: &[(&str, &str)]) -> Arc<Vdisk> {
    let path = dir.join(format!("{name}.img"));
    let options = kshim::fs::OpenOptions::new().create(true);
    kshim::fs::File::open(&path, &options)
        .and_then(|f| f.set_size(size))
        .expect("scratch file");
    let mut params = vec![("filename", path.to_str().expect("text"))];
    params.extend_from_slice(more);
    let mut params = VdiskParams::parse(VdiskKind::Fileio, &params).expect("known parameters");
    params.state_dir = Some(dir.join("state"));
    Vdisk::new(name, &params).expect("device")
}

fn thin(dir: &Path, size: u64) -> Rig {
    Rig::new(&[(disk(dir, "m0", size, &[("thin_provisioned", "1")]), false)])
}

fn refused(a: &Answer, s: Sense) {
    assert_eq!(a.sense(), Some(s), "{a:02x?}");
}

fn good(a: &Answer) -> &[u8] {
    assert!(a.is_good(), "{a:02x?}");
    &a.data
}

/// The recorded case `mgmt/saved-pages-reload`.
#[test]
fn saved_pages_come_back_with_the_device() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let fresh = |dir: &Path| Rig::new(&[(disk(dir, "m0", 16 * MIB, &[]), false)]);
    {
        let mut rig = fresh(dir.path());
        good(&rig.write(
            0,
            &hex("151100001000"),
            &hex("000000000a0a24100000000000000000"),
        ));
        good(&rig.write(
            0,
            &hex("151100001800"),
            &hex("000000000812000000000000000000008014000000000000"),
        ));
        let saved = rig.read(0, &hex("5a00ca0000000000ff00"), 255);
        assert_eq!(
            good(&saved),
            hex("001a00100000000800008000000002008a0a2410000000000000024b")
        );
    }
    let file = dir.path().join("state/vdev_mode_pages/m0");
    let text = std::fs::read_to_string(&file).expect("saved");
    assert_eq!(text, "m0\nD_SENSE=1\nWRITE_THROUGH=1\n");
    {
        let mut rig = fresh(dir.path());
        assert_eq!(
            good(&rig.read(0, &hex(READ_CONTROL), 255)),
            hex("0f0010008a0a2410000000000000024b")
        );
        assert_eq!(
            good(&rig.read(0, &hex(READ_CACHING), 255)),
            hex("170010008812000000000000000000008014000000000000")
        );
        // It is in effect, too: sense data of the descriptor format, and writes that are durable on a thread.
        let beyond = rig.read(0, &hex("2800fffffff000000100"), 512);
        assert_eq!(beyond.sense, hex("7205210000000000"));
        let write = rig.write(0, &hex("2a000000000000000100"), &[1; 512]);
        assert!(write.is_good() && write.threaded);
        good(&rig.write(
            0,
            &hex("151100001000"),
            &hex("000000000a0a20100000000000000000"),
        ));
        good(&rig.write(
            0,
            &hex("151100001800"),
            &hex("000000000812040000000000000000008014000000000000"),
        ));
        let write = rig.write(0, &hex("2a000000000000000100"), &[1; 512]);
        assert!(write.is_good() && !write.threaded);
    }
    assert!(!file.exists());
}

#[test]
fn without_a_place_nothing_is_saved() {
    let params = VdiskParams::parse(VdiskKind::Nullio, &[("size_mb", "16")]).expect("known");
    let mut rig = Rig::new(&[(Vdisk::new("n", &params).expect("device"), false)]);
    let control = rig.read(0, &hex(READ_CONTROL), 255);
    assert_eq!(good(&control), hex("0f0010000a0a2010000000000000024b"));
    refused(
        &rig.read(0, &hex("1a08ca00ff00"), 255),
        sense::SAVING_PARAMS_UNSUP,
    );
    let save = rig.write(
        0,
        &hex("151100001000"),
        &hex("000000000a0a24100000000000000000"),
    );
    refused(&save, sense::INVALID_FIELD_IN_CDB);
    let without = rig.write(
        0,
        &hex("151000001000"),
        &hex("000000000a0a24100000000000000000"),
    );
    assert!(without.is_good());
}

#[test]
fn a_state_directory_that_cannot_be_written_changes_nothing() {
    let dir = tempfile::tempdir().expect("scratch directory");
    std::fs::write(dir.path().join("state"), "a file in the way").expect("written");
    let mut rig = Rig::new(&[(disk(dir.path(), "m0", 16 * MIB, &[]), false)]);
    let save = rig.write(
        0,
        &hex("151100002400"),
        &hex("0000000008120000000000000000000080140000000000000a0a24100000000000000000"),
    );
    // BUSY: it may be better soon.
    assert_eq!(save.status, 8, "{save:02x?}");
    assert_eq!(
        good(&rig.read(0, &hex(READ_CONTROL), 255)),
        hex("0f0010008a0a2010000000000000024b")
    );
    assert_eq!(
        good(&rig.read(0, &hex(READ_CACHING), 255)),
        hex("170010008812040000000000000000008014000000000000")
    );
}

#[test]
fn software_write_protection_has_its_own_sense() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = thin(dir.path(), 16 * MIB);
    let swp = |on: u8| {
        let mut list = hex("000000000a0a20100000000000000000");
        list[8] = on << 3;
        list
    };
    good(&rig.write(0, &hex("151000001000"), &swp(1)));
    for (cdb, out) in [
        ("2a000000000000000100", 512),
        ("93000000000000000000000000010000", 512),
        ("8b000000000000000000000000010000", 512),
        ("040000000000", 0),
    ] {
        refused(
            &rig.write(0, &hex(cdb), &vec![0; out]),
            sense::WRITE_PROTECTED,
        );
    }
    good(&rig.write(0, &hex("151000001000"), &swp(0)));
    good(&rig.write(0, &hex("2a000000000000000100"), &[0; 512]));
}

#[test]
fn a_format_unmaps_and_tells_how_far_it_is() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = thin(dir.path(), 256 * MIB);
    good(&rig.write(0, &hex("2a000000000000000100"), &[7; 512]));
    let format = rig.write(0, &hex("040000000000"), &[]);
    assert!(format.is_good() && format.threaded);
    assert_eq!(
        good(&rig.read(0, &hex("28000000000000000100"), 512)),
        [0; 512]
    );
    // With IMMED the answer comes first. Either it is still running, or done.
    good(&rig.write(0, &hex("2a000000000000000100"), &[7; 512]));
    good(&rig.write(0, &hex("041000000000"), &[0, 2, 0, 0]));
    loop {
        let ready = rig.tur(0);
        let progress = rig.read(0, &hex("030000001200"), 18);
        let progress = good(&progress);
        if ready.is_good() {
            assert_eq!(progress[2] & 0xF, 0);
            break;
        }
        refused(&ready, sense::FORMAT_IN_PROGRESS);
        if progress[2] & 0xF == 2 {
            assert_eq!((progress[12], progress[13], progress[15]), (4, 4, 0x80));
        }
    }
    assert_eq!(
        good(&rig.read(0, &hex("28000000000000000100"), 512)),
        [0; 512]
    );
    refused(
        &rig.write(0, &hex("048000000000"), &[]),
        sense::INVALID_FIELD_IN_CDB,
    );
}

#[test]
fn a_format_of_a_thick_device_zeroes() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = Rig::new(&[(disk(dir.path(), "m0", 4 * MIB, &[]), false)]);
    good(&rig.write(0, &hex("2a0000001fff00000100"), &[7; 512]));
    good(&rig.write(0, &hex("040000000000"), &[]));
    assert_eq!(
        good(&rig.read(0, &hex("280000001fff00000100"), 512)),
        [0; 512]
    );
}

/// Status of each descriptor: first block, number, provisioning status.
fn lba_status(a: &Answer) -> Vec<(u64, u32, u8)> {
    let data = good(a);
    let len = u32::from_be_bytes(data[..4].try_into().expect("4")) as usize;
    assert_eq!(len + 4, data.len());
    data[8..]
        .chunks(16)
        .map(|d| {
            (
                u64::from_be_bytes(d[..8].try_into().expect("8")),
                u32::from_be_bytes(d[8..12].try_into().expect("4")),
                d[12],
            )
        })
        .collect()
}

#[test]
fn holes_of_the_file_are_deallocated_blocks() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = thin(dir.path(), 16 * MIB);
    let get = "9e120000000000000000000002000000";
    assert_eq!(
        lba_status(&rig.read(0, &hex(get), 512)),
        [(0, 0x8000, 1)],
        "nothing was written"
    );
    // 1 MiB of data at 4 MiB.
    let big = vec![1; MIB as usize];
    good(&rig.write(0, &hex("2a000000200000080000"), &big));
    assert_eq!(
        lba_status(&rig.read(0, &hex(get), 512)),
        [(0, 0x2000, 1), (0x2000, 0x800, 0), (0x2800, 0x5800, 1)]
    );
    assert_eq!(
        lba_status(&rig.read(0, &hex("9e120000000000002400000000180000"), 24)),
        [(0x2400, 0x400, 0)]
    );
    refused(
        &rig.read(0, &hex("9e120000000000008000000000180000"), 24),
        sense::BLOCK_OUT_RANGE,
    );
    // UNMAP, and it is a hole that reads as zeros, as LBPRZ says.
    let unmap = "0016001000000000000000000000200000000800".to_owned() + "00000000";
    good(&rig.write(0, &hex("42000000000000001800"), &hex(&unmap)));
    assert_eq!(lba_status(&rig.read(0, &hex(get), 512)), [(0, 0x8000, 1)]);
    assert_eq!(
        good(&rig.read(0, &hex("28000000200000000100"), 512)),
        [0; 512]
    );
    let capacity = rig.read(0, &hex("9e100000000000000000000000200000"), 32);
    assert_eq!(good(&capacity)[14], 0xC0);
    let b2 = rig.read(0, &hex("1201b200ff00"), 255);
    assert_eq!(good(&b2)[5], 0xE4);
}

#[test]
fn orwrite_sets_bits() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = thin(dir.path(), 16 * MIB);
    good(&rig.write(0, &hex("2a000000001000000200"), &[0x0F; 1024]));
    let or = rig.write(0, &hex("8b000000000000000011000000020000"), &[0xA5; 1024]);
    assert!(or.is_good() && or.threaded);
    let got = rig.read(0, &hex("28000000001000000300"), 1536);
    let got = good(&got);
    assert!(got[..512].iter().all(|b| *b == 0x0F));
    assert!(got[512..1024].iter().all(|b| *b == 0xAF));
    assert!(got[1024..].iter().all(|b| *b == 0xA5));
    refused(
        &rig.write(0, &hex("8b200000000000000011000000020000"), &[0xA5; 1024]),
        sense::INVALID_FIELD_IN_CDB,
    );
    refused(
        &rig.write(0, &hex("8b000000000000007fff000000020000"), &[0xA5; 1024]),
        sense::BLOCK_OUT_RANGE,
    );
}

#[test]
fn prefetch_looks_at_the_range() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = thin(dir.path(), 16 * MIB);
    for cdb in [
        "34000000000000000800",
        "34020000000000000800",
        "34000000000000000000",
        "90000000000000000000000080000000",
    ] {
        assert!(rig.write(0, &hex(cdb), &[]).is_good(), "{cdb}");
    }
    for cdb in [
        "3400000080000000ff00",
        "34000000800100000000",
        "9000000000000000000100ffffff0000",
    ] {
        refused(&rig.write(0, &hex(cdb), &[]), sense::BLOCK_OUT_RANGE);
    }
}

/// What is in an echo buffer is seen by its nexus only, and goes with it.
fn echo_is_each_nexus_own(rig: &mut Rig) {
    let read = hex("3c0a0000000000001000");
    for _ in 0..3 {
        let mut other = rig.another("iqn.other");
        refused(
            &other.send(0, &read, Some(16), &[]),
            sense::COMMAND_SEQUENCE_ERROR,
        );
        good(&other.send(0, &hex("3b0a0000000000000300"), None, b"abc"));
        assert_eq!(good(&other.send(0, &read, Some(16), &[])), b"abc");
    }
    assert_eq!(good(&rig.read(0, &read, 16)), b"hello");
    let acg = rig.tgt().find_acg("iqn.initiator");
    let dev = rig.core().device("m0").expect("registered");
    rig.core().del_lun(rig.tgt(), acg, 0).expect("there");
    let params = LunParams { read_only: false };
    rig.core()
        .add_lun(rig.tgt(), acg, &dev, 0, params)
        .expect("free");
    while !rig.tur(0).is_good() {}
    refused(&rig.read(0, &read, 16), sense::COMMAND_SEQUENCE_ERROR);
    for (mode, wanted) in [(0x0B, "00001000"), (3, "00000000")] {
        let cdb = [0x3C, mode, 0, 0, 0, 0, 0, 0, 4, 0];
        assert_eq!(good(&rig.read(0, &cdb, 4)), hex(wanted));
    }
    refused(
        &rig.read(0, &hex("3c020000000000000400"), 4),
        sense::INVALID_FIELD_IN_CDB,
    );
    for (cdb, len) in [("3b0a0000000000100100", 4097), ("3b050000000000000100", 1)] {
        refused(
            &rig.write(0, &hex(cdb), &vec![0; len]),
            sense::INVALID_FIELD_IN_CDB,
        );
    }
}

#[test]
fn logs_clock_buffers_and_defects() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = thin(dir.path(), 16 * MIB);
    let pages = rig.read(0, &hex("4d00400000000000ff00"), 255);
    assert_eq!(good(&pages), hex("00000006000c0d0f192f"));
    good(&rig.write(0, &hex("2a000000000000000800"), &[1; 4096]));
    good(&rig.read(0, &hex("28000000000000000100"), 512));
    let stats = rig.read(0, &hex("4d00590000000000ff00"), 255);
    let stats = good(&stats);
    assert_eq!((stats[8 + 7], stats[16 + 7]), (1, 1), "{stats:02x?}");
    assert_eq!((stats[24 + 7], stats[32 + 7]), (8, 1), "{stats:02x?}");
    refused(
        &rig.write(0, &hex("4c000000000000000000"), &[]),
        sense::INVALID_FIELD_IN_CDB,
    );

    good(&rig.write(
        0,
        &hex("a40f000000000000000c0000"),
        &hex("000000000102030405060000"),
    ));
    let clock = rig.read(0, &hex("a30f00000000000000ff0000"), 255);
    assert_eq!(good(&clock)[..8], hex("000a020001020304"));

    refused(
        &rig.read(0, &hex("3c0a0000000000001000"), 16),
        sense::COMMAND_SEQUENCE_ERROR,
    );
    good(&rig.write(0, &hex("3b0a0000000000000500"), b"hello"));
    assert_eq!(
        good(&rig.read(0, &hex("3c0a0000000000001000"), 16)),
        b"hello"
    );
    echo_is_each_nexus_own(&mut rig);
    assert_eq!(
        good(&rig.read(0, &hex("37001d00000000000800"), 8)),
        hex("001d0000")
    );
    assert_eq!(
        good(&rig.read(0, &hex("b71d00000000000000100000"), 16)),
        hex("001d000000000000")
    );
    // And REPORT SUPPORTED OPERATION CODES knows them, with timeouts.
    for (code, sa) in [
        (0x34, 0),
        (0x37, 0),
        (0x3B, 0),
        (0x3C, 0),
        (0x8B, 0),
        (0x90, 0),
        (0xB7, 0),
        (0x9E, 0x12),
        (0xA3, 0x0F),
        (0xA4, 0x0F),
    ] {
        let option = if sa == 0 { 1 } else { 2 };
        let cdb = [0xA3, 0x0C, 0x80 | option, code, 0, sa, 0, 0, 0, 64, 0, 0];
        let one = rig.read(0, &cdb, 64);
        let one = good(&one);
        assert_eq!((one[1], one[4]), (0x83, code), "{one:02x?}");
        assert_eq!(one.len(), 4 + usize::from(one[3]) + 12);
    }
}
