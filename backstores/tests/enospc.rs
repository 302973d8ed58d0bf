//! A full file system under a disk: the error is `ENOSPC`, what was there stays, and room that comes back is used.
//!
//! The test runs itself in a mount namespace of its own, on a tmpfs of 1 MiB.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backstores::ram::{Backing, RamConfig, RamDisk};
use kshim::block::{Bio, BioEndIo, BioOp, BlkMode, BlockDevice, ReqFlags};
use kshim::error::{Result, code};
use kshim::fs::{File, KiocbFlags, OpenOptions};
use kshim::page::LentMem;
use kshim::scatterlist::SGTable;

const INSIDE: &str = "KSHIM_TEST_SMALL_FS";
const RW: BlkMode = BlkMode::READ.union(BlkMode::WRITE);
const FS_SIZE: usize = 1 << 20;
const DISK_SIZE: usize = 4 << 20;

/// Runs the test of this name inside; returns the directory when already there.
fn on_a_small_fs(name: &str) -> Option<std::path::PathBuf> {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return Some(dir.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let script =
        format!("mount -t tmpfs -o size={FS_SIZE} none \"${INSIDE}\" && exec \"$0\" \"$@\"");
    if !unshare().arg("true").status().is_ok_and(|s| s.success()) {
        eprintln!("{name}: no namespaces here, not tested");
        return None;
    }
    let status = unshare()
        .args(["sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, dir.path())
        .status();
    assert!(status.unwrap().success(), "{name} failed inside");
    None
}

fn unshare() -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test runs itself in a namespace"
    )]
    let mut c = Command::new("unshare");
    c.args(["--map-root-user", "--mount"]);
    c
}

fn nobody() -> Arc<dyn BioEndIo> {
    Arc::new(|_: Bio, _: Result| panic!("replaced by submit_bio_wait"))
}

fn write(bdev: &BlockDevice, sector: u64, len: usize, flags: ReqFlags) -> Result {
    let mut sg = SGTable::alloc(len).unwrap();
    sg.fill(0, len, 0x77).unwrap();
    let bio = Bio::new(BioOp::Write, sector, len, nobody())
        .with_flags(flags)
        .with_sg(sg, 0);
    bdev.submit_bio_wait(bio).1
}

fn clear(bdev: &BlockDevice, op: BioOp, len: usize) -> Result {
    bdev.submit_bio_wait(Bio::new(op, 0, len, nobody())).1
}

fn sparse(path: &Path) -> File {
    let f = File::open(path, &OpenOptions::new().create(true)).unwrap();
    f.set_size(DISK_SIZE as u64).unwrap();
    f
}

/// What any disk of [`DISK_SIZE`] on the file system does when it fills up.
fn fill_up(bdev: &BlockDevice) {
    let step = 64 << 10;
    for flags in [ReqFlags::empty(), ReqFlags::FUA] {
        let mut written = 0;
        let failed = loop {
            match write(bdev, (written / 512) as u64, step, flags) {
                Ok(()) => written += step,
                Err(e) => break e,
            }
            assert!(written < DISK_SIZE);
        };
        assert_eq!(failed, code::ENOSPC);
        assert!(written >= FS_SIZE / 2);
        // What was acknowledged stands, and the lack of room is no lost write-back.
        assert_eq!(clear(bdev, BioOp::Flush, 0), Ok(()));
        let bio = Bio::new(BioOp::Read, 0, written, nobody());
        let bio = bio.with_sg(SGTable::alloc(written).unwrap(), 0);
        let (bio, r) = bdev.submit_bio_wait(bio);
        assert_eq!(r, Ok(()));
        assert_eq!(bio.sg.compare(0, &vec![0x77; written]).unwrap(), None);
        assert_eq!(clear(bdev, BioOp::Discard, DISK_SIZE), Ok(()));
        assert_eq!(write(bdev, 0, step, flags), Ok(()));
        assert_eq!(clear(bdev, BioOp::WriteZeroes, DISK_SIZE), Ok(()));
    }
}

#[test]
fn a_plain_file() {
    let Some(dir) = on_a_small_fs("a_plain_file") else {
        return;
    };
    drop(sparse(&dir.join("img")));
    fill_up(&BlockDevice::open(dir.join("img"), RW).unwrap());
}

#[test]
fn a_ram_disk_of_a_file() {
    let Some(dir) = on_a_small_fs("a_ram_disk_of_a_file") else {
        return;
    };
    let config = RamConfig {
        backing: Backing::File(dir.join("img")),
        ..RamConfig::new(DISK_SIZE as u64)
    };
    let disk = RamDisk::create("full", &config).unwrap();
    fill_up(&BlockDevice::open(disk.path(), RW).unwrap());
}

#[test]
fn mapped_memory_and_files() {
    let Some(dir) = on_a_small_fs("mapped_memory_and_files") else {
        return;
    };
    let mem = LentMem::map_file(sparse(&dir.join("map")), DISK_SIZE).unwrap();
    assert_eq!(mem.fill(0, DISK_SIZE, 1), Err(code::ENOSPC));
    let f = sparse(&dir.join("file"));
    let mut sg = SGTable::alloc_zeroed(DISK_SIZE).unwrap();
    let r = f.write_sg(&sg, 0, DISK_SIZE, 0, KiocbFlags::empty());
    assert_eq!(r, Err(code::ENOSPC));
    assert_eq!(
        f.read_sg(&mut sg, 0, DISK_SIZE, 0, KiocbFlags::empty()),
        Ok(DISK_SIZE)
    );
    mem.discard(0, DISK_SIZE).unwrap();
    mem.fill(0, FS_SIZE / 4, 1).unwrap();
}
