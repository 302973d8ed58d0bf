//! RAM disks against a `Vec<u8>`, and what a file behind one may do.

use std::path::PathBuf;
use std::sync::Arc;

use backstores::ram::{Backing, RamConfig, RamDisk};
use kshim::block::{Bio, BioEndIo, BioOp, BlkMode, BlockDevice, ReqFlags};
use kshim::error::{Result, code};
use kshim::scatterlist::SGTable;
use proptest::prelude::*;

const RW: BlkMode = BlkMode::READ.union(BlkMode::WRITE);

fn nobody() -> Arc<dyn BioEndIo> {
    Arc::new(|_: Bio, _: Result| panic!("replaced by submit_bio_wait"))
}

fn file_config(path: PathBuf, size: u64) -> RamConfig {
    RamConfig {
        backing: Backing::File(path),
        ..RamConfig::new(size)
    }
}

fn run(bdev: &BlockDevice, op: BioOp, flags: ReqFlags, sector: u64, data: &[u8]) -> Result {
    let mut sg = SGTable::alloc(data.len()).unwrap();
    sg.copy_from_slice(0, data).unwrap();
    let bio = Bio::new(op, sector, data.len(), nobody())
        .with_flags(flags)
        .with_sg(sg, 0);
    bdev.submit_bio_wait(bio).1
}

fn read(bdev: &BlockDevice, sector: u64, len: usize) -> Result<Vec<u8>> {
    let bio = Bio::new(BioOp::Read, sector, len, nobody());
    let (bio, r) = bdev.submit_bio_wait(bio.with_sg(SGTable::alloc(len).unwrap(), 0));
    r?;
    let mut out = vec![0; len];
    bio.sg.copy_to_slice(0, &mut out).unwrap();
    Ok(out)
}

#[derive(Debug, Clone)]
enum Op {
    Write {
        sector: u64,
        sectors: usize,
        byte: u8,
        fua: bool,
    },
    Clear {
        sector: u64,
        sectors: usize,
        how: u8,
    },
    Flush,
    Restart,
}

const SECTORS: u64 = 8192;

fn op() -> impl Strategy<Value = Op> {
    let at = 0..SECTORS;
    prop_oneof![
        4 => (at.clone(), 1..200usize, any::<u8>(), any::<bool>())
            .prop_map(|(sector, sectors, byte, fua)| Op::Write { sector, sectors, byte, fua }),
        2 => (at, 1..3000usize, 0..3u8)
            .prop_map(|(sector, sectors, how)| Op::Clear { sector, sectors, how }),
        1 => Just(Op::Flush),
        1 => Just(Op::Restart),
    ]
}

/// Runs the operations on a disk of the configuration; `Restart` makes it anew if it is to persist.
fn run_model(name: &str, config: &RamConfig, ops: &[Op]) {
    let persists = config.backing != Backing::Anonymous;
    let mut disk = RamDisk::create(name, config).unwrap();
    let mut bdev = BlockDevice::open(disk.path(), RW).unwrap();
    assert_eq!(bdev.is_inline(), !persists);
    let mut model = vec![0u8; SECTORS as usize * 512];
    for op in ops {
        match *op {
            Op::Write {
                sector,
                sectors,
                byte,
                fua,
            } => {
                let (pos, len) = (sector as usize * 512, sectors * 512);
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                let flags = if fua {
                    ReqFlags::FUA
                } else {
                    ReqFlags::empty()
                };
                let r = run(&bdev, BioOp::Write, flags, sector, &data);
                if pos + len > model.len() {
                    assert_eq!(r, Err(code::EIO));
                } else {
                    assert_eq!(r, Ok(()));
                    model[pos..pos + len].copy_from_slice(&data);
                    if let Some(lent) = bdev.direct_access(sector * 512, len) {
                        let mut seen = vec![0; len];
                        lent.copy_out(0, &mut seen).unwrap();
                        assert!(seen == data);
                    } else {
                        assert!(persists);
                    }
                }
            }
            Op::Clear {
                sector,
                sectors,
                how,
            } => {
                let (pos, len) = (sector as usize * 512, sectors * 512);
                let (op, flags) = match how {
                    0 => (BioOp::Discard, ReqFlags::empty()),
                    1 => (BioOp::WriteZeroes, ReqFlags::NOUNMAP),
                    _ => (BioOp::WriteZeroes, ReqFlags::FUA),
                };
                let r = bdev
                    .submit_bio_wait(Bio::new(op, sector, len, nobody()).with_flags(flags))
                    .1;
                if pos + len > model.len() {
                    assert_eq!(r, Err(code::EIO));
                } else {
                    assert_eq!(r, Ok(()));
                    model[pos..pos + len].fill(0);
                }
            }
            Op::Flush => run(&bdev, BioOp::Flush, ReqFlags::empty(), 0, &[]).unwrap(),
            Op::Restart if persists => {
                drop(bdev);
                disk.destroy().map_err(|(_, e)| e).unwrap();
                disk = RamDisk::create(name, config).unwrap();
                bdev = BlockDevice::open(disk.path(), RW).unwrap();
            }
            Op::Restart => {}
        }
    }
    assert!(read(&bdev, 0, model.len()).unwrap() == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn anonymous_memory_behaves_like_a_vector(ops in prop::collection::vec(op(), 0..25)) {
        run_model("model-anon", &RamConfig::new(SECTORS * 512), &ops);
    }

    #[test]
    fn a_file_behaves_like_a_vector(ops in prop::collection::vec(op(), 0..25)) {
        let dir = tempfile::tempdir().unwrap();
        run_model("model-file", &file_config(dir.path().join("img"), SECTORS * 512), &ops);
    }
}

#[test]
fn bad_configurations_leave_nothing_behind() {
    let ok = RamConfig::new(1 << 20);
    for name in ["", "a/b", ".", "..", "a\nb", &"x".repeat(64)] {
        assert_eq!(
            RamDisk::create(name, &ok).err(),
            Some(code::EINVAL),
            "{name:?}"
        );
    }
    for size in [0, 511, 513] {
        assert_eq!(
            RamDisk::create("bad", &RamConfig::new(size)).err(),
            Some(code::EINVAL)
        );
    }
    for block_size in [0, 256, 513, 8192] {
        let config = RamConfig {
            block_size,
            ..ok.clone()
        };
        assert_eq!(RamDisk::create("bad", &config).err(), Some(code::EINVAL));
    }
    let dir = tempfile::tempdir().unwrap();
    let config = file_config(dir.path().join("huge"), 1 << 62);
    assert!(RamDisk::create("bad", &config).is_err());
    let config = file_config(dir.path().join("no").join("dir"), 1 << 20);
    assert_eq!(RamDisk::create("bad", &config).err(), Some(code::ENOENT));
    let config = file_config(dir.path().to_path_buf(), 1 << 20);
    assert_eq!(RamDisk::create("bad", &config).err(), Some(code::EISDIR));
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    assert_eq!(
        BlockDevice::open("/dev/ram/bad", RW).err(),
        Some(code::ENOENT)
    );
}

#[test]
fn names_and_files_are_claimed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("img");
    let a = RamDisk::create("claim", &file_config(path.clone(), 1 << 20)).unwrap();
    assert_eq!(
        RamDisk::create("claim", &RamConfig::new(512)).err(),
        Some(code::EEXIST)
    );
    let config = file_config(path.clone(), 1 << 20);
    assert_eq!(RamDisk::create("other", &config).err(), Some(code::EBUSY));
    let bdev = BlockDevice::open(a.path(), RW).unwrap();
    let (a, e) = a.destroy().unwrap_err();
    assert_eq!(e, code::EBUSY);
    drop(bdev);
    a.destroy().map_err(|(_, e)| e).unwrap();
    let config = file_config(path, 1 << 21);
    assert_eq!(RamDisk::create("other", &config).err(), Some(code::EINVAL));
}

#[test]
fn a_truncated_file_is_eio() {
    let t = tempfile::NamedTempFile::new().unwrap();
    let disk = RamDisk::create("cut", &file_config(t.path().to_owned(), 1 << 20)).unwrap();
    let bdev = BlockDevice::open(disk.path(), RW).unwrap();
    run(&bdev, BioOp::Write, ReqFlags::FUA, 0, &[1; 1 << 20]).unwrap();
    t.as_file().set_len(8192).unwrap();
    assert_eq!(read(&bdev, 0, 8192), Ok(vec![1; 8192]));
    assert_eq!(read(&bdev, 16, 512), Err(code::EIO));
    assert_eq!(
        run(&bdev, BioOp::Write, ReqFlags::empty(), 1024, &[2; 4096]),
        Err(code::EIO)
    );
    assert_eq!(
        run(&bdev, BioOp::Write, ReqFlags::FUA, 1024, &[2; 4096]),
        Err(code::EIO)
    );
    let bio = Bio::new(BioOp::Discard, 1024, 4096, nobody());
    assert_eq!(bdev.submit_bio_wait(bio).1, Err(code::EIO));
    assert_eq!(t.as_file().metadata().unwrap().len(), 8192);
}

#[test]
fn large_anonymous_disks_cost_what_is_written() {
    let disk = RamDisk::create("large", &RamConfig::new(1 << 40)).unwrap();
    let bdev = BlockDevice::open(disk.path(), RW).unwrap();
    run(
        &bdev,
        BioOp::Write,
        ReqFlags::empty(),
        (1 << 31) - 8,
        &[7; 4096],
    )
    .unwrap();
    assert_eq!(read(&bdev, (1 << 31) - 8, 4096), Ok(vec![7; 4096]));
    assert_eq!(read(&bdev, 1 << 30, 4096), Ok(vec![0; 4096]));
    let bio = Bio::new(BioOp::Discard, 0, 1 << 40, nobody());
    assert_eq!(bdev.submit_bio_wait(bio).1, Ok(()));
    assert_eq!(read(&bdev, (1 << 31) - 8, 4096), Ok(vec![0; 4096]));
}
