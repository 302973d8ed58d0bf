//! EXTENDED COPY between real devices, against byte vectors, and what RECEIVE COPY RESULTS tells of it.

mod common;
#[path = "common/ram.rs"]
mod ram;

use common::{Answer, Nexus, Rig, hex};
use kshim::block::register_disk;
use scst_core::core::{CoreParams, LunParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::sense;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const MIB: usize = 1 << 20;
/// Size of each disk.
const SIZE: usize = 4 * MIB;

fn disk(kind: VdiskKind, name: &str, params: &[(&str, &str)]) -> Arc<Vdisk> {
    let params = VdiskParams::parse(kind, params).expect("known parameters");
    Vdisk::new(name, &params).expect("device")
}

fn file_disk(dir: &Path, name: &str, more: &[(&str, &str)]) -> Arc<Vdisk> {
    let path = dir.join(name);
    let options = kshim::fs::OpenOptions::new().create(true);
    kshim::fs::File::open(&path, &options)
        .and_then(|f| f.set_size(SIZE as u64))
        .expect("scratch file");
    let mut params = vec![("filename", path.to_str().expect("text"))];
    params.extend_from_slice(more);
    disk(VdiskKind::Fileio, name, &params)
}

/// The EUI-64 designator that a LUN tells in VPD page 83h, as a CSCD descriptor.
fn cscd(rig: &mut Rig, lun: u64, block: u32) -> Vec<u8> {
    let page = rig.read(lun, &hex("120183010000"), 256).data;
    let mut at = 4;
    while page[at + 1] != 2 {
        at += 4 + usize::from(page[at + 3]);
    }
    let len = usize::from(page[at + 3]);
    let mut d = vec![0xE4, 0, 0, 0];
    d.extend_from_slice(&page[at..at + 4 + len]);
    d.resize(28, 0);
    d.extend_from_slice(&block.to_be_bytes());
    d
}

#[derive(Clone, Copy, Debug)]
struct Seg {
    src: u16,
    dst: u16,
    /// Blocks of the destination, not of the source.
    dc: bool,
    blocks: u16,
    src_lba: u64,
    dst_lba: u64,
}

fn list(id: u8, usage: u8, cscds: &[Vec<u8>], segments: &[Seg]) -> Vec<u8> {
    let mut l = vec![id, usage << 3];
    l.extend_from_slice(&((cscds.len() * 32) as u16).to_be_bytes());
    l.extend_from_slice(&[0; 4]);
    l.extend_from_slice(&((segments.len() * 28) as u32).to_be_bytes());
    l.extend_from_slice(&[0; 4]);
    l.extend(cscds.concat());
    for s in segments {
        l.extend_from_slice(&[2, if s.dc { 2 } else { 0 }, 0, 0x18]);
        l.extend_from_slice(&s.src.to_be_bytes());
        l.extend_from_slice(&s.dst.to_be_bytes());
        l.extend_from_slice(&[0, 0]);
        l.extend_from_slice(&s.blocks.to_be_bytes());
        l.extend_from_slice(&s.src_lba.to_be_bytes());
        l.extend_from_slice(&s.dst_lba.to_be_bytes());
    }
    l
}

fn copy_cdb(len: usize) -> Vec<u8> {
    let mut cdb = vec![0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb.extend_from_slice(&(len as u32).to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

fn copy(rig: &mut Rig, lun: u64, list: &[u8]) -> Answer {
    rig.write(lun, &copy_cdb(list.len()), list)
}

fn results(rig: &mut Rig, sa: u8, id: u8, len: usize) -> Answer {
    let mut cdb = vec![0x84, sa, id, 0, 0, 0, 0, 0, 0, 0];
    cdb.extend_from_slice(&(len as u32).to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    rig.read(0, &cdb, len)
}

fn rw(op: u8, lba: u64, blocks: usize) -> Vec<u8> {
    let mut cdb = vec![op, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&(blocks as u32).to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

/// File, file of 4 KiB blocks, RAM, and a file that is read-only.
const BLOCKS: [u32; 4] = [512, 4096, 512, 512];

struct Bench {
    rig: Rig,
    model: Vec<Vec<u8>>,
    cscds: Vec<Vec<u8>>,
}

impl Bench {
    fn new(dir: &Path, ram: &str) -> Self {
        let mut rig = Rig::new(&[
            (file_disk(dir, "file", &[]), false),
            (file_disk(dir, "file4k", &[("blocksize", "4096")]), false),
            (disk(VdiskKind::Blockio, "ram", &[("filename", ram)]), false),
            (file_disk(dir, "ro", &[("read_only", "1")]), true),
        ]);
        let mut model = Vec::new();
        for lun in 0..3u64 {
            let data: Vec<u8> = (0..SIZE)
                .map(|i| (i / 512 * 7 + i + 31 * lun as usize) as u8)
                .collect();
            let block = BLOCKS[lun as usize] as usize;
            for (n, chunk) in data.chunks(MIB).enumerate() {
                let cdb = rw(0x8A, (n * MIB / block) as u64, MIB / block);
                assert!(rig.write(lun, &cdb, chunk).is_good());
            }
            model.push(data);
        }
        model.push(vec![0; SIZE]);
        let cscds = (0..4)
            .map(|l| cscd(&mut rig, l, BLOCKS[l as usize]))
            .collect();
        Self { rig, model, cscds }
    }

    /// Does in the vectors what a segment says.
    fn apply(&mut self, s: &Seg) -> usize {
        let bs = |d: u16| BLOCKS[usize::from(d)] as usize;
        let len = usize::from(s.blocks) * bs(if s.dc { s.dst } else { s.src });
        let (from, to) = (
            s.src_lba as usize * bs(s.src),
            s.dst_lba as usize * bs(s.dst),
        );
        let data = self.model[usize::from(s.src)][from..from + len].to_vec();
        self.model[usize::from(s.dst)][to..to + len].copy_from_slice(&data);
        len
    }

    fn check(&mut self) {
        for lun in 0..3u64 {
            let block = BLOCKS[lun as usize] as usize;
            for n in 0..SIZE / MIB {
                let cdb = rw(0x88, (n * MIB / block) as u64, MIB / block);
                let got = self.rig.read(lun, &cdb, MIB).data;
                assert!(
                    got == self.model[lun as usize][n * MIB..(n + 1) * MIB],
                    "LUN {lun}, MiB {n}"
                );
            }
        }
    }
}

#[test]
fn copies_what_the_segments_say() {
    let ram = register_disk("/dev/ram/xcopy0", ram::Ram::new(SIZE, true)).expect("new name");
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut b = Bench::new(dir.path(), "/dev/ram/xcopy0");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    for round in 0..60u8 {
        let segments: Vec<Seg> = (0..next(4))
            .map(|_| {
                let (src, dst) = (next(3) as u16, next(3) as u16);
                let bs = |d: u16| u64::from(BLOCKS[usize::from(d)]);
                // In units of 4 KiB, so that it is whole for all.
                let len = next(300);
                let room = SIZE as u64 / 4096 - len + 1;
                let dc = next(2) == 0;
                Seg {
                    src,
                    dst,
                    dc,
                    blocks: (len * 4096 / bs(if dc { dst } else { src })) as u16,
                    src_lba: next(room) * 4096 / bs(src),
                    dst_lba: next(room) * 4096 / bs(dst),
                }
            })
            .collect();
        let l = list(round, 0, &b.cscds, &segments);
        let a = copy(&mut b.rig, next(3), &l);
        assert!(a.is_good(), "{a:02x?} {segments:?}");
        let written: usize = segments.iter().map(|s| b.apply(s)).sum();
        let a = results(&mut b.rig, 0, round, 12);
        let kib = (written as u32 >> 10).to_be_bytes();
        assert_eq!(
            (a.data[4], a.data[7], &a.data[8..12]),
            (1, 1, &kib[..]),
            "{a:?}"
        );
    }
    b.check();
    drop(b);
    drop(ram);
}

#[test]
fn failures_are_told() {
    let ram = register_disk("/dev/ram/xcopy1", ram::Ram::new(SIZE, true)).expect("new name");
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut b = Bench::new(dir.path(), "/dev/ram/xcopy1");
    let seg = |src, dst, src_lba, dst_lba| Seg {
        src,
        dst,
        dc: false,
        blocks: 8,
        src_lba,
        dst_lba,
    };
    // A good segment, then one that reads beyond the end; the first has been done.
    let good = seg(0, 2, 0, 100);
    let l = list(5, 2, &b.cscds, &[good, seg(0, 2, SIZE as u64 / 512 - 1, 0)]);
    let a = copy(&mut b.rig, 0, &l);
    b.apply(&good);
    let mut want = hex("70000a000000001d120000010000000000");
    want.push(2);
    want.extend(hex("700005000000000a00000000210000000000"));
    want.push(0);
    assert_eq!(a.sense, want);
    let a = results(&mut b.rig, 4, 5, 400);
    assert_eq!((a.data.len(), a.data[56], a.data[59]), (97, 2, 37));
    assert!(!results(&mut b.rig, 0, 5, 12).is_good(), "told already");
    // Writing beyond the end.
    let l = list(5, 0, &b.cscds, &[seg(0, 2, 0, u64::MAX)]);
    let a = copy(&mut b.rig, 0, &l);
    assert_eq!(
        (a.sense[2], a.sense[8], a.sense[9], a.sense[20]),
        (0x0A, 0, 18, 5)
    );
    // To a read-only device: segment 0, byte 6 of it. And that can be asked for.
    let l = list(6, 0, &b.cscds, &[seg(0, 3, 0, 0)]);
    let a = copy(&mut b.rig, 0, &l);
    assert_eq!(a.sense, hex("70000a000000000a00000000000000a00006"));
    assert_eq!(results(&mut b.rig, 0, 6, 12).data[4], 2);
    // From it: why not.
    let from_ro = seg(3, 0, 0, 8);
    let l = list(0, 3, &b.cscds, &[from_ro]);
    assert!(copy(&mut b.rig, 0, &l).is_good());
    b.apply(&from_ro);
    assert!(
        !results(&mut b.rig, 0, 0, 12).is_good(),
        "nothing was to be kept"
    );
    b.check();
    drop(b);
    drop(ram);
}

#[test]
fn only_devices_that_the_initiator_has_take_part() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut rig = Rig::new(&[(file_disk(dir.path(), "one", &[]), false)]);
    let other = file_disk(dir.path(), "other", &[]);
    let core = Arc::clone(rig.core());
    core.register_virtual_device("other", other.clone())
        .expect("new");
    let mine = cscd(&mut rig, 0, 512);
    let mut theirs = mine.clone();
    let eui = other.identity().eui64().expect("the default one");
    theirs[8..16].copy_from_slice(&eui);
    let seg = Seg {
        src: 0,
        dst: 1,
        dc: false,
        blocks: 8,
        src_lba: 0,
        dst_lba: 0,
    };
    let l = list(0, 0, &[mine, theirs], &[seg]);
    let a = copy(&mut rig, 0, &l);
    assert_eq!(a.sense(), Some(sense::INVALID_FIELD_IN_PARM_LIST), "{a:?}");
    let cm = core.copy_manager();
    cm.allow_not_connected_copy.store(true, Ordering::Relaxed);
    assert!(copy(&mut rig, 0, &l).is_good());
    assert_eq!(cm.tgt().default_acg().luns.len(), 2);
    core.unregister_virtual_device("other").expect("registered");
    assert_eq!(cm.tgt().default_acg().luns.len(), 1);
    assert_eq!(
        copy(&mut rig, 0, &l).sense(),
        Some(sense::INVALID_FIELD_IN_PARM_LIST)
    );
}

/// What an initiator may not do by a LUN it may not do by a copy.
#[test]
fn a_copy_may_do_what_the_initiator_may_at_its_luns() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let disks = ["one", "two", "three"].map(|n| file_disk(dir.path(), n, &[]));
    let [one, two, three] = disks.each_ref().map(Arc::clone);
    // Of the second it has a LUN to read only, of the third none: that is for whom no group takes.
    let mut rig = Rig::new(&[(one, false), (two, true), (three, false)]);
    let (core, tgt) = (Arc::clone(rig.core()), Arc::clone(rig.tgt()));
    let group = core.add_acg(&tgt, "group").expect("new");
    for (lun, name, read_only) in [(0, "one", false), (1, "two", true)] {
        let dev = core.device(name).expect("registered");
        core.add_lun(&tgt, group, &dev, lun, LunParams { read_only })
            .expect("free");
    }
    let cscds: Vec<_> = (0..3).map(|lun| cscd(&mut rig, lun, 512)).collect();
    core.add_acn(&tgt, group, "iqn.other").expect("new");
    let mut other = rig.another_with("iqn.other", 2);
    let seg = |src, dst| Seg {
        src,
        dst,
        dc: false,
        blocks: 8,
        src_lba: 0,
        dst_lba: 64,
    };
    let mut copy = |src: usize, dst: usize| {
        let l = list(
            0,
            3,
            &[cscds[src].clone(), cscds[dst].clone()],
            &[seg(0, 1)],
        );
        other.send(0, &copy_cdb(l.len()), None, &l)
    };
    assert!(copy(1, 0).is_good());
    let a = copy(0, 1);
    assert_eq!(
        a.sense,
        hex("70000a000000000a00000000000000a00006"),
        "{a:?}"
    );
    for (src, dst) in [(0, 2), (2, 0)] {
        let a = copy(src, dst);
        assert_eq!(a.sense(), Some(sense::INVALID_FIELD_IN_PARM_LIST), "{a:?}");
    }
    drop(other);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "initiators are plain threads")]
fn copies_in_both_directions_and_atomic_writes_at_once() {
    let ram = register_disk("/dev/ram/xcopy2", ram::Ram::new(SIZE, false)).expect("new name");
    let dir = tempfile::tempdir().expect("scratch directory");
    let b = Bench::new(dir.path(), "/dev/ram/xcopy2");
    let work = |nexus: &mut Nexus, me: u64| {
        for n in 0..40u64 {
            let (src, dst) = [(0, 2), (2, 0), (0, 1)][((me + n) % 3) as usize];
            let seg = Seg {
                src,
                dst,
                dc: false,
                blocks: 256,
                src_lba: 1024,
                dst_lba: 256,
            };
            let l = list(me as u8, 0, &b.cscds, &[seg]);
            let a = nexus.send(u64::from(src), &copy_cdb(l.len()), None, &l);
            assert!(a.is_good(), "{a:02x?}");
            // Strictly serialised for the device, and atomic ones amid the copies.
            let mut caw = rw(0x89, 300, 0);
            caw[13] = 1;
            let a = nexus.send(u64::from(dst) % 2 * 2, &caw, None, &[0x55; 1024]);
            assert_eq!(a.sense(), Some(sense::MISCOMPARE), "{a:?}");
        }
    };
    std::thread::scope(|s| {
        for me in 0..3 {
            let mut nexus = b.rig.another(&format!("iqn.{me}"));
            let work = &work;
            s.spawn(move || work(&mut nexus, me));
        }
    });
    drop(b);
    drop(ram);
}

/// What a copy works in counts as memory of commands, and is given back.
#[test]
fn memory_to_work_in_is_limited() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let params = CoreParams {
        // 16 pages for one device.
        max_cmd_mem: Some(5 << 15),
        ..CoreParams::default()
    };
    let mut rig = Rig::new_with(params, &[(file_disk(dir.path(), "tight", &[]), false)]);
    let cscds = [cscd(&mut rig, 0, 512)];
    let mut of = |blocks| {
        let segment = Seg {
            src: 0,
            dst: 0,
            dc: false,
            blocks,
            src_lba: 0,
            dst_lba: 1024,
        };
        copy(&mut rig, 0, &list(0, 3, &cscds, &[segment])).status
    };
    for _ in 0..20 {
        assert_eq!([of(128), of(129), of(1000), of(128)], [0, 8, 8, 0]);
    }
}
