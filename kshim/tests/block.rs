//! Block devices: the host driver against a `Vec<u8>`, the registry, and what drivers may do wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kshim::block::{
    Bio, BioOp, BlkMode, BlockDevice, BlockOps, BlockWorkers, QueueLimits, ReqFlags, SubmittedBio,
    disks, dropped_bios, register_disk,
};
use kshim::error::{Result, code};
use kshim::page::{PageBuf, RxChunk};
use kshim::scatterlist::SGTable;
use proptest::prelude::*;

mod loopdev;

use loopdev::Loop;

const RW: BlkMode = BlkMode::READ.union(BlkMode::WRITE);

fn nobody() -> Arc<dyn kshim::block::BioEndIo> {
    Arc::new(|_: Bio, _: Result| panic!("replaced by submit_bio_wait"))
}

fn read(bdev: &BlockDevice, sector: u64, len: usize) -> Result<Vec<u8>> {
    let mut sg = SGTable::new();
    // Two pieces, the first of odd place: the driver has to cope.
    sg.push_alloc(len / 2).unwrap();
    sg.push_alloc(len - len / 2).unwrap();
    let (bio, r) =
        bdev.submit_bio_wait(Bio::new(BioOp::Read, sector, len, nobody()).with_sg(sg, 0));
    r?;
    let mut out = vec![0; len];
    bio.sg.copy_to_slice(0, &mut out).unwrap();
    Ok(out)
}

fn write(bdev: &BlockDevice, sector: u64, data: &[u8], flags: ReqFlags) -> Result {
    let mut sg = SGTable::new();
    let mut c = RxChunk::alloc(data.len() + 64).unwrap();
    c.spare_mut()[7..7 + data.len()].copy_from_slice(data);
    c.advance(7 + data.len()).unwrap();
    sg.push_zeroes(5).unwrap();
    sg.push_shared(c.slice(7..7 + data.len()).unwrap()).unwrap();
    let bio = Bio::new(BioOp::Write, sector, data.len(), nobody())
        .with_flags(flags)
        .with_sg(sg, 5);
    bdev.submit_bio_wait(bio).1
}

fn simple(bdev: &BlockDevice, op: BioOp, sector: u64, len: usize) -> Result {
    bdev.submit_bio_wait(Bio::new(op, sector, len, nobody())).1
}

fn image(len: u64) -> tempfile::NamedTempFile {
    let t = tempfile::NamedTempFile::new().unwrap();
    t.as_file().set_len(len).unwrap();
    t
}

#[derive(Debug, Clone)]
enum Op {
    Write {
        sector: u64,
        sectors: usize,
        byte: u8,
        flags: u32,
    },
    Discard {
        sector: u64,
        sectors: usize,
    },
    Zero {
        sector: u64,
        sectors: usize,
        nounmap: bool,
    },
    Flush,
    Reopen,
}

const SECTORS: u64 = 256;

fn op() -> impl Strategy<Value = Op> {
    let at = 0..SECTORS + 8;
    let n = 1..64usize;
    prop_oneof![
        4 => (at.clone(), n.clone(), any::<u8>(), 0..4u32)
            .prop_map(|(sector, sectors, byte, flags)| Op::Write { sector, sectors, byte, flags }),
        1 => (at.clone(), n.clone()).prop_map(|(sector, sectors)| Op::Discard { sector, sectors }),
        1 => (at, n, any::<bool>())
            .prop_map(|(sector, sectors, nounmap)| Op::Zero { sector, sectors, nounmap }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

fn run_model(path: &Path, ops: &[Op], mode: BlkMode) {
    let open = || BlockDevice::open(path, mode);
    let mut bdev = match open() {
        // Not every file system of a test machine has O_DIRECT.
        Err(code::EINVAL) if mode.contains(BlkMode::DIRECT) => return,
        r => r.unwrap(),
    };
    let block = bdev.limits().logical_block_size as usize;
    let mut model = vec![0u8; SECTORS as usize * 512];
    for op in ops {
        let range = |sector: u64, sectors: usize| {
            let (sector, len) = (
                sector / (block as u64 / 512) * (block as u64 / 512),
                sectors * 512,
            );
            let len = len.next_multiple_of(block);
            let (pos, inside) = (
                sector as usize * 512,
                sector as usize * 512 + len <= model.len(),
            );
            (sector, pos, len, inside)
        };
        match *op {
            Op::Write {
                sector,
                sectors,
                byte,
                flags,
            } => {
                let (sector, pos, len, inside) = range(sector, sectors);
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                let flags = ReqFlags::from_bits_truncate(flags);
                let want = if inside { Ok(()) } else { Err(code::EIO) };
                assert_eq!(write(&bdev, sector, &data, flags), want);
                if inside {
                    model[pos..pos + len].copy_from_slice(&data);
                }
            }
            Op::Discard { sector, sectors } => {
                let (sector, pos, len, inside) = range(sector, sectors);
                if bdev.limits().max_discard_bytes == 0 {
                    continue;
                }
                let want = if inside { Ok(()) } else { Err(code::EIO) };
                assert_eq!(simple(&bdev, BioOp::Discard, sector, len), want);
                if inside {
                    model[pos..pos + len].fill(0);
                }
            }
            Op::Zero {
                sector,
                sectors,
                nounmap,
            } => {
                let (sector, pos, len, inside) = range(sector, sectors);
                let flags = if nounmap {
                    ReqFlags::NOUNMAP
                } else {
                    ReqFlags::empty()
                };
                let bio = Bio::new(BioOp::WriteZeroes, sector, len, nobody()).with_flags(flags);
                let want = if inside { Ok(()) } else { Err(code::EIO) };
                assert_eq!(bdev.submit_bio_wait(bio).1, want);
                if inside {
                    model[pos..pos + len].fill(0);
                }
            }
            Op::Flush => simple(&bdev, BioOp::Flush, 0, 0).unwrap(),
            Op::Reopen => {
                drop(bdev);
                bdev = open().unwrap();
            }
        }
    }
    assert!(read(&bdev, 0, model.len()).unwrap() == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_plain_file_behaves_like_a_vector(ops in prop::collection::vec(op(), 0..25)) {
        run_model(image(SECTORS * 512).path(), &ops, RW | BlkMode::EXCL);
    }

    #[test]
    fn so_it_does_with_direct_io(ops in prop::collection::vec(op(), 0..15)) {
        run_model(image(SECTORS * 512).path(), &ops, RW | BlkMode::DIRECT);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let t = image(8192);
    let bdev = BlockDevice::open(t.path(), RW).unwrap();
    assert_eq!(bdev.capacity_bytes(), 8192);
    assert_eq!(read(&bdev, 16, 512), Err(code::EIO));
    assert_eq!(read(&bdev, 0, 100), Err(code::EINVAL));
    assert_eq!(simple(&bdev, BioOp::Discard, u64::MAX, 512), Err(code::EIO));
    assert_eq!(simple(&bdev, BioOp::Flush, 0, 1), Err(code::EINVAL));
    let bio = Bio::new(BioOp::Read, 0, 4096, nobody()).with_sg(SGTable::alloc(4095).unwrap(), 0);
    assert_eq!(bdev.submit_bio_wait(bio).1, Err(code::EINVAL));
    let mut sg = SGTable::new();
    sg.push_zeroes(512).unwrap();
    let bio = Bio::new(BioOp::Read, 0, 512, nobody()).with_sg(sg, 0);
    assert_eq!(bdev.submit_bio_wait(bio).1, Err(code::EFAULT));
    let ro = BlockDevice::open(t.path(), BlkMode::READ).unwrap();
    assert_eq!(
        write(&ro, 0, &[0; 512], ReqFlags::empty()),
        Err(code::EROFS)
    );
    assert!(ro.limits().read_only);
    assert!(ro.direct_access(0, 512).is_none());
}

#[test]
fn a_resized_file_is_seen_when_asked() {
    let t = image(8192);
    let bdev = BlockDevice::open(t.path(), RW).unwrap();
    t.as_file().set_len(16384).unwrap();
    assert_eq!(bdev.capacity_bytes(), 8192);
    assert_eq!(bdev.revalidate(), Ok(16384));
    write(&bdev, 31, &[1; 512], ReqFlags::FUA).unwrap();
    t.as_file().set_len(4096).unwrap();
    assert_eq!(read(&bdev, 16, 512), Err(code::EIO));
}

#[test]
fn odd_paths_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (path, want) in [
        (dir.path().to_path_buf(), code::EISDIR),
        (dir.path().join("none"), code::ENOENT),
        ("/dev/null".into(), code::EINVAL),
    ] {
        assert_eq!(BlockDevice::open(path, RW).err(), Some(want));
    }
    assert_eq!(
        BlockDevice::open("/dev/zero", BlkMode::EXCL).err(),
        Some(code::EINVAL)
    );
}

#[test]
fn exclusive_means_alone() {
    let t = image(4096);
    let a = BlockDevice::open(t.path(), RW | BlkMode::EXCL).unwrap();
    assert_eq!(
        BlockDevice::open(t.path(), RW | BlkMode::EXCL).err(),
        Some(code::EBUSY)
    );
    drop(a);
    BlockDevice::open(t.path(), RW | BlkMode::EXCL).unwrap();
}

/// A driver that keeps, loses or completes what it gets.
struct Odd {
    workers: BlockWorkers,
    lose: bool,
    running: Arc<AtomicUsize>,
}

impl BlockOps for Odd {
    fn submit_bio(&self, bio: SubmittedBio) {
        if self.lose {
            return;
        }
        let running = Arc::clone(&self.running);
        running.fetch_add(1, Ordering::SeqCst);
        self.workers.defer(move || {
            kshim_test_sleep();
            running.fetch_sub(1, Ordering::SeqCst);
            bio.complete(Ok(()));
        });
    }
    fn limits(&self) -> QueueLimits {
        QueueLimits::default()
    }
    fn capacity_bytes(&self) -> u64 {
        1 << 20
    }
}

#[expect(clippy::disallowed_methods, reason = "makes a driver slow")]
fn kshim_test_sleep() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}

fn odd(lose: bool) -> (Arc<Odd>, Arc<AtomicUsize>) {
    let running = Arc::new(AtomicUsize::new(0));
    (
        Arc::new(Odd {
            workers: BlockWorkers::new(),
            lose,
            running: running.clone(),
        }),
        running,
    )
}

#[test]
fn registered_disks_are_found_and_kept_while_open() {
    let (ops, _) = odd(false);
    let disk = register_disk("/dev/test/kept", ops.clone()).unwrap();
    assert!(disks().contains(&"/dev/test/kept".to_owned()));
    assert_eq!(
        register_disk("/dev/test/kept", ops.clone()).err(),
        Some(code::EEXIST)
    );
    assert_eq!(register_disk("kept", ops.clone()).err(), Some(code::EINVAL));
    let a = BlockDevice::open("/dev/test/kept", RW).unwrap();
    // One claim, whoever else has it open.
    let b = BlockDevice::open("/dev/test/kept", RW | BlkMode::EXCL).unwrap();
    let c = BlockDevice::open("/dev/test/kept", RW | BlkMode::EXCL);
    assert_eq!(c.err(), Some(code::EBUSY));
    drop(b);
    assert_eq!((disk.openers(), disk.unregister()), (1, Err(code::EBUSY)));
    assert_eq!(read(&a, 0, 512).map(|_| ()), Ok(()));
    drop(a);
    assert_eq!(disk.unregister(), Ok(()));
    assert_eq!(disk.unregister(), Err(code::ENODEV));
    assert_eq!(
        BlockDevice::open("/dev/test/kept", RW).err(),
        Some(code::ENOENT)
    );
    let again = register_disk("/dev/test/kept", ops).unwrap();
    drop(disk);
    // The old handle does not take the new disk's name away.
    BlockDevice::open(again.path(), RW).unwrap();
}

#[test]
fn removal_of_an_open_disk_drains_and_then_refuses() {
    let (ops, running) = odd(false);
    let disk = register_disk("/dev/test/torn", ops).unwrap();
    let bdev = BlockDevice::open("/dev/test/torn", RW).unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        let done = Arc::clone(&done);
        let end = Arc::new(move |_: Bio, r: Result| {
            r.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        });
        bdev.submit_bio(Bio::new(BioOp::Flush, 0, 0, end));
    }
    drop(disk);
    assert_eq!(running.load(Ordering::SeqCst), 0);
    assert_eq!(read(&bdev, 0, 512), Err(code::ENODEV));
    drop(bdev);
    while done.load(Ordering::SeqCst) < 50 {
        kshim_test_sleep();
    }
}

#[test]
fn a_lost_bio_is_completed_and_counted() {
    let (ops, _) = odd(true);
    let _disk = register_disk("/dev/test/lossy", ops).unwrap();
    let bdev = BlockDevice::open("/dev/test/lossy", RW).unwrap();
    let before = dropped_bios();
    assert_eq!(read(&bdev, 0, 512), Err(code::EIO));
    assert_eq!(dropped_bios(), before + 1);
}

#[test]
fn many_at_once_on_a_file() {
    let t = image(1 << 20);
    let bdev = BlockDevice::open(t.path(), RW).unwrap();
    let left = Arc::new(AtomicUsize::new(256));
    for i in 0..256u64 {
        let left = Arc::clone(&left);
        let end = Arc::new(move |bio: Bio, r: Result| {
            r.unwrap();
            assert!(bio.end_io.is_none());
            assert_eq!(bio.private.unwrap().downcast_ref::<u64>(), Some(&i));
            left.fetch_sub(1, Ordering::SeqCst);
        });
        let mut buf = PageBuf::alloc(4096).unwrap();
        buf.fill(i as u8);
        let mut sg = SGTable::new();
        sg.push_pages(buf, 0, 4096).unwrap();
        let mut bio = Bio::new(BioOp::Write, i * 8, 4096, end).with_sg(sg, 0);
        bio.flags = if i % 3 == 0 {
            ReqFlags::FUA
        } else {
            ReqFlags::SYNC
        };
        bio.private = Some(Box::new(i));
        bdev.submit_bio(bio);
    }
    while left.load(Ordering::SeqCst) > 0 {
        kshim_test_sleep();
    }
    for i in 0..256u64 {
        assert_eq!(read(&bdev, i * 8, 4096).unwrap(), vec![i as u8; 4096]);
    }
}

#[test]
fn a_host_block_device_behaves_like_a_vector() {
    let Some(device) = Loop::new(SECTORS * 512) else {
        return eprintln!("not tested");
    };
    let path = Path::new(&device.path);
    let limits = BlockDevice::open(path, BlkMode::READ)
        .unwrap()
        .limits()
        .clone();
    assert!(limits.read_only && limits.write_cache);
    for (seed, mode) in [
        (1u64, RW),
        (2, RW | BlkMode::EXCL),
        (3, RW | BlkMode::DIRECT),
    ] {
        // The models expect zeros at first.
        let bdev = BlockDevice::open(path, mode).unwrap();
        assert_eq!(bdev.capacity_bytes(), SECTORS * 512);
        simple(&bdev, BioOp::WriteZeroes, 0, SECTORS as usize * 512).unwrap();
        simple(&bdev, BioOp::Flush, 0, 0).unwrap();
        drop(bdev);
        let ops: Vec<Op> = (0..60u64).map(|i| scripted(seed * 1000 + i)).collect();
        run_model(path, &ops, mode);
    }
}

/// An operation without discards, whose effect on the data a device need not promise.
fn scripted(n: u64) -> Op {
    let mix = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    let (sector, sectors) = (mix % SECTORS, (mix >> 32) as usize % 63 + 1);
    match mix >> 60 {
        0 => Op::Flush,
        1 => Op::Reopen,
        2 | 3 => Op::Zero {
            sector,
            sectors,
            nounmap: mix & 64 != 0,
        },
        _ => Op::Write {
            sector,
            sectors,
            byte: mix as u8,
            flags: (mix >> 16) as u32 % 4,
        },
    }
}
