//! EXTENDED COPY between file LUNs: on a file system that shares blocks a clone costs no space, and its data does not come by the
//! server.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use scst_initiator::{Command as Scsi, Session, scsi};
use scst_tests::run_server::is_root;
use scst_tests::{Server, ServerOptions, tools};

const MIB: u64 = 1 << 20;
const DISK: u64 = 96 * MIB;
const BLOCK: u64 = 512;
/// What metadata may take.
const SLACK: u64 = 4 * MIB;
/// Blocks in one segment; its length has 16 bits.
const SEGMENT: u64 = 64 * MIB / BLOCK / 4;

/// A file system on a loop device; unmounted when dropped.
struct Xfs {
    at: PathBuf,
}

impl Xfs {
    fn new(dir: &Path) -> Option<Self> {
        let [mkfs, mount, _] = tools::require(["mkfs.xfs", "mount", "umount"])?;
        let image = dir.join("xfs.img");
        let file = File::create(&image).expect("image");
        file.set_len(512 * MIB).expect("image");
        let made = Command::new(mkfs)
            .args(["-q", "-m", "reflink=1"])
            .arg(&image)
            .status();
        assert!(made.expect("mkfs.xfs").success());
        let at = dir.join("mnt");
        fs::create_dir(&at).expect("mount point");
        let mounted = Command::new(mount)
            .args(["-o", "loop"])
            .args([&image, &at])
            .output();
        // Containers often have no loop devices, even for root.
        let mounted = is_root() && mounted.is_ok_and(|o| o.status.success());
        mounted.then_some(Self { at })
    }

    fn free(&self) -> u64 {
        let s = rustix::fs::statvfs(&self.at).expect("statvfs");
        s.f_bfree * s.f_frsize
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.at).status();
        if !status.is_ok_and(|s| s.success()) {
            eprintln!("{}: cannot be unmounted", self.at.display());
        }
    }
}

/// The EUI-64 designator of VPD page 83h as a CSCD descriptor (SPC-4 6.4.5.4).
fn cscd(session: &mut Session, lun: u16) -> Vec<u8> {
    let inquiry = Scsi::read(lun, scsi::inquiry_vpd(0x83, 256), 256);
    let page = session.scsi(&inquiry).expect("page 83h").good();
    let mut at = 4;
    while page[at + 1] != 2 {
        at += 4 + usize::from(page[at + 3]);
    }
    let mut d = vec![0xE4, 0, 0, 0];
    d.extend_from_slice(&page[at..at + 4 + usize::from(page[at + 3])]);
    d.resize(28, 0);
    d.extend_from_slice(&512u32.to_be_bytes());
    d
}

/// EXTENDED COPY (LID1) of the first `blocks` blocks of LUN 0 to the same place of LUN 1.
fn extended_copy(session: &mut Session, blocks: u64) {
    let cscds = [cscd(session, 0), cscd(session, 1)].concat();
    for at in (0..blocks).step_by(SEGMENT as usize) {
        let n = SEGMENT.min(blocks - at) as u16;
        let mut list = vec![
            1,
            0,
            0,
            cscds.len() as u8,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            28,
            0,
            0,
            0,
            0,
        ];
        list.extend_from_slice(&cscds);
        // From the first to the second descriptor.
        list.extend_from_slice(&[2, 0, 0, 0x18, 0, 0, 0, 1, 0, 0]);
        list.extend_from_slice(&n.to_be_bytes());
        list.extend_from_slice(&at.to_be_bytes());
        list.extend_from_slice(&at.to_be_bytes());
        let mut cdb = vec![0x83; 1];
        cdb.resize(10, 0);
        cdb.extend_from_slice(&(list.len() as u32).to_be_bytes());
        cdb.extend_from_slice(&[0, 0]);
        session
            .scsi(&Scsi::write(0, cdb, list))
            .expect("EXTENDED COPY")
            .good();
    }
}

fn pattern(at: u64) -> Vec<u8> {
    (0..MIB)
        .map(|i| (at * 31 + i / 512 * 7 + i) as u8)
        .collect()
}

#[test]
fn a_clone_shares_the_blocks_of_its_source() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let Some(xfs) = Xfs::new(dir.path()) else {
        println!("not run: no XFS can be mounted here");
        return;
    };
    let (from, to) = (xfs.at.join("from.img"), xfs.at.join("to.img"));
    for path in [&from, &to] {
        File::create(path)
            .and_then(|f| f.set_len(DISK))
            .expect("file");
    }
    let server = Server::start_own(&ServerOptions::file(&from).and(to.to_string_lossy()));
    let mut session = server.session(1);
    // Its unit attention.
    session
        .scsi(&Scsi::new(1, scsi::test_unit_ready()))
        .expect("an answer");
    for n in 0..DISK / MIB {
        session
            .write_blocks(0, n * MIB / BLOCK, &pattern(n))
            .expect("write");
    }
    session
        .scsi(&Scsi::new(0, scsi::synchronize_cache10()))
        .expect("flush")
        .good();
    File::open(&from).and_then(|f| f.sync_all()).expect("sync");
    let before = xfs.free();
    extended_copy(&mut session, DISK / BLOCK);
    session
        .scsi(&Scsi::new(1, scsi::synchronize_cache10()))
        .expect("flush")
        .good();
    File::open(&to).and_then(|f| f.sync_all()).expect("sync");
    let used = before.saturating_sub(xfs.free());
    assert!(used < SLACK, "a clone of {DISK} bytes takes {used}");
    // They are two disks all the same.
    session.write_blocks(0, 0, &pattern(1000)).expect("write");
    for n in 0..DISK / MIB {
        let blocks = (MIB / BLOCK) as u32;
        let got = session
            .read_blocks(1, n * MIB / BLOCK, blocks)
            .expect("read");
        assert!(got == pattern(n), "MiB {n} of the clone");
    }
    session.close().expect("logout");
    assert!(server.stop().success());
}
