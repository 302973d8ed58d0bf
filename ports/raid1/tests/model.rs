//! Mirrors of disks that fail, lose their caches and come back, against a model of what may be read.

#![allow(clippy::disallowed_methods, reason = "a test sleeps as it likes")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use kshim::block::{Bio, BioOp, BlkMode, BlockDevice, ReqFlags, class, dropped_bios};
use kshim::error::{Result, code};
use kshim::kobject::tree::{Tree, TreeOps};
use kshim::scatterlist::SGTable;
use kshim::sync::Completion;
use kshim::time::delay::msleep;
use kshim::time::{Delta, Instant};
use proptest::prelude::*;

const BLOCK: usize = 4096;
/// Sectors of a leg: 1 MiB of metadata, 1 MiB of data.
const LEG_SECTORS: u64 = 4096;
const BLOCKS: usize = 256;
const DATA_AT: u64 = 1 << 20;
const NONE: ReqFlags = ReqFlags::empty();

fn set(path: &str, value: &str) -> Result {
    Tree::new(class()).write(path, value.as_bytes())
}

fn get(path: &str) -> Result<String> {
    let value = Tree::new(class()).read(path)?;
    Ok(String::from_utf8(value).unwrap().trim_end().to_owned())
}

fn run(
    disk: &BlockDevice,
    op: BioOp,
    pos: u64,
    len: usize,
    flags: ReqFlags,
    byte: u8,
) -> Result<Vec<u8>> {
    let mut sg = SGTable::new();
    if matches!(op, BioOp::Read | BioOp::Write) {
        sg = SGTable::alloc(len).unwrap();
        sg.fill(0, len, byte).unwrap();
    }
    let ignored = Arc::new(|_: Bio, _: Result| {});
    let bio = Bio::new(op, pos / 512, len, ignored);
    let (bio, status) = disk.submit_bio_wait(bio.with_sg(sg, 0).with_flags(flags));
    if op == BioOp::Write {
        assert_eq!(bio.sg.len(), len, "the table comes back");
    }
    status?;
    let mut data = vec![0; if op == BioOp::Read { len } else { 0 }];
    bio.sg.copy_to_slice(0, &mut data).unwrap();
    Ok(data)
}

/// Legs, and the mirror on them while it is open.
struct Mirror {
    name: String,
    legs: usize,
    disk: Option<Arc<BlockDevice>>,
}

impl Mirror {
    fn new(legs: usize, knobs: &str) -> Mirror {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            null_blk::init().unwrap();
            raid1::init().unwrap();
        });
        static N: AtomicU32 = AtomicU32::new(0);
        let name = format!("m{}", N.fetch_add(1, Ordering::Relaxed));
        let mut m = Mirror {
            name,
            legs: 0,
            disk: None,
        };
        for _ in 0..legs {
            m.make_leg(knobs);
        }
        m
    }

    fn make_leg(&mut self, knobs: &str) -> String {
        let name = format!("{}l{}", self.name, self.legs);
        let add = format!("add {name} size=2M&memory_backed=1&{knobs}");
        set("null_blk/mgmt", &add).unwrap();
        self.legs += 1;
        self.leg(self.legs - 1)
    }

    fn leg(&self, n: usize) -> String {
        format!("/dev/null_blk/{}l{n}", self.name)
    }

    fn try_open(&mut self, legs: &[usize], params: &str) -> Result {
        let legs: Vec<String> = legs
            .iter()
            .map(|n| format!("leg={}", self.leg(*n)))
            .collect();
        let path = format!(
            "/dev/raid1/{}?{}&region=64K&readd=0&sync_speed_min=0&{params}",
            self.name,
            legs.join("&")
        );
        self.disk = Some(BlockDevice::open(path, BlkMode::READ | BlkMode::WRITE)?);
        Ok(())
    }

    fn open(&mut self, params: &str) {
        let all: Vec<usize> = (0..self.legs).collect();
        self.try_open(&all, params).unwrap();
    }

    fn disk(&self) -> &BlockDevice {
        self.disk.as_ref().unwrap()
    }

    fn attr(&self, name: &str) -> String {
        get(&format!("raid1/{}/{name}", self.name)).unwrap()
    }

    fn mgmt(&self, text: &str) -> Result {
        set(&format!("raid1/{}/mgmt", self.name), text)
    }

    fn set_leg(&self, n: usize, attr: &str, value: &str) -> Result {
        set(&format!("null_blk/{}l{n}/{attr}", self.name), value)
    }

    /// A leg answers all reads and writes with errors, or does not any more.
    fn bad(&self, n: usize, bad: bool) {
        let sign = if bad { '+' } else { '-' };
        let all = format!("{sign}0-{}", LEG_SECTORS - 1);
        self.set_leg(n, "badblocks", &all).unwrap();
    }

    fn leg_state(&self, n: usize) -> String {
        let legs = self.attr("legs");
        let line = legs.lines().find(|l| l.starts_with(&format!("{n} ")));
        let state = line.and_then(|l| l.split(' ').nth(1));
        state.unwrap_or_default().to_owned()
    }

    /// Nothing written reaches the legs any more, and their caches are lost. `first` is the first to go: the others may
    /// still tell that it has failed.
    fn crash(&mut self, first: usize) {
        for n in (first..self.legs).chain(0..first) {
            self.bad(n, true);
        }
        for n in 0..self.legs {
            // Not before: a leg that flushes what it has lost does not tell the truth. Without a cache there is none to cut.
            let _ = self.set_leg(n, "power_cut", "1");
        }
        self.disk = None;
        for n in 0..self.legs {
            self.bad(n, false);
        }
    }

    fn any_bad(&self) -> bool {
        let list = |n| get(&format!("null_blk/{}l{n}/badblocks", self.name)).unwrap();
        (0..self.legs).any(|n| !list(n).is_empty())
    }

    fn wait_sync(&self) {
        let end = Instant::now() + Delta::from_secs(60);
        while self.attr("degraded") != "0" || self.attr("sync_regions") != "0" {
            let legs = self.attr("legs");
            assert!(Instant::now() < end, "{legs} {}", self.attr("sync_regions"));
            msleep(1);
        }
    }

    /// The data of a leg, of a mirror that is closed.
    fn raw(&self, n: usize) -> Vec<u8> {
        let leg = BlockDevice::open(self.leg(n), BlkMode::READ).unwrap();
        run(&leg, BioOp::Read, DATA_AT, BLOCKS * BLOCK, NONE, 0).unwrap()
    }

    fn open_two(&mut self) {
        self.try_open(&[0, 1], "").unwrap();
    }

    /// Superblocks and bitmap of a leg.
    fn head(&self, n: usize) -> Vec<u8> {
        let leg = BlockDevice::open(self.leg(n), BlkMode::READ).unwrap();
        run(&leg, BioOp::Read, 0, 3 * BLOCK, NONE, 0).unwrap()
    }

    fn set_head(&self, n: usize, head: &[u8]) {
        let leg = BlockDevice::open(self.leg(n), BlkMode::READ | BlkMode::WRITE).unwrap();
        let mut sg = SGTable::alloc(head.len()).unwrap();
        sg.copy_from_slice(0, head).unwrap();
        let bio = Bio::new(
            BioOp::Write,
            0,
            head.len(),
            Arc::new(|_: Bio, _: Result| {}),
        );
        leg.submit_bio_wait(bio.with_sg(sg, 0)).1.unwrap();
    }

    /// Closes it; all legs have to have the same.
    fn assert_alike(&mut self) {
        self.wait_sync();
        self.disk = None;
        let first = self.raw(0);
        for n in 1..self.legs {
            let other = self.raw(n);
            let mut blocks = first.chunks(BLOCK).zip(other.chunks(BLOCK));
            assert_eq!(blocks.position(|(a, b)| a != b), None, "leg {n}");
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.disk = None;
        for n in 0..self.legs {
            // The test may have failed with it open.
            let _ = set("null_blk/mgmt", &format!("del {}l{n}", self.name));
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Read(usize, usize),
    Write(usize, usize, u8, bool),
    Flush,
    Fail(usize),
    Heal(usize),
    /// Writes at once, and a crash so many microseconds later.
    Crash(Vec<(usize, usize, u8)>, u32),
    /// A crash, after which a leg is missing.
    CrashWithout(usize),
    /// Waits until a mirror that can be whole is.
    Sync,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..BLOCKS, 1..20usize).prop_map(|(a, n)| (a, n.min(BLOCKS - a)));
    let write = move || (range(), any::<u8>()).prop_map(|((a, n), v)| (a, n, v));
    prop_oneof![
        6 => range().prop_map(|(a, n)| Op::Read(a, n)),
        12 => (write(), any::<bool>()).prop_map(|((a, n, v), f)| Op::Write(a, n, v, f)),
        2 => Just(Op::Flush),
        2 => (0..3usize).prop_map(Op::Fail),
        3 => (0..3usize).prop_map(Op::Heal),
        2 => (prop::collection::vec(write(), 0..6), 0..800u32).prop_map(|(w, t)| Op::Crash(w, t)),
        1 => (0..3usize).prop_map(Op::CrashWithout),
        2 => Just(Op::Sync),
    ]
}

/// What each block may read as now, and after a crash.
struct Model {
    now: Vec<BTreeSet<u8>>,
    perm: Vec<BTreeSet<u8>>,
}

impl Model {
    fn write(&mut self, at: usize, n: usize, v: u8, acked: bool, durable: bool) {
        for b in at..at + n {
            if acked {
                self.now[b].clear();
                if durable {
                    self.perm[b].clear();
                }
            }
            self.now[b].insert(v);
            self.perm[b].insert(v);
        }
    }

    fn check(&self, at: usize, data: &[u8]) {
        for (i, block) in data.chunks(BLOCK).enumerate() {
            let (b, v) = (at + i, block[0]);
            assert!(block.iter().all(|x| *x == v), "block {b} is torn");
            let may = &self.now[b];
            assert!(may.contains(&v), "block {b} has {v}, none of {may:?}");
        }
    }
}

/// Submits writes without waiting, and crashes.
fn crash_in_writes(m: &mut Mirror, writes: &[(usize, usize, u8)], us: u32) {
    let all = Arc::new(Completion::new());
    let left = Arc::new(AtomicU32::new(writes.len() as u32));
    for &(at, n, v) in writes {
        let mut sg = SGTable::alloc(n * BLOCK).unwrap();
        sg.fill(0, n * BLOCK, v).unwrap();
        let (all, left) = (Arc::clone(&all), Arc::clone(&left));
        let done = move |_: Bio, _: Result| {
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                all.complete_all();
            }
        };
        let sector = (at * BLOCK / 512) as u64;
        let bio = Bio::new(BioOp::Write, sector, n * BLOCK, Arc::new(done));
        m.disk().submit_bio(bio.with_sg(sg, 0));
    }
    std::thread::sleep(std::time::Duration::from_micros(u64::from(us)));
    m.crash(0);
    if !writes.is_empty() {
        all.wait_for_completion();
    }
}

fn apply(m: &mut Mirror, model: &mut Model, op: &Op) {
    match op {
        Op::Read(at, n) => {
            // All legs may be bad.
            let data = run(
                m.disk(),
                BioOp::Read,
                (at * BLOCK) as u64,
                n * BLOCK,
                NONE,
                0,
            );
            if let Ok(data) = data {
                model.check(*at, &data);
            }
        }
        Op::Write(at, n, v, fua) => {
            let flags = if *fua { ReqFlags::FUA } else { NONE };
            let pos = (at * BLOCK) as u64;
            let status = run(m.disk(), BioOp::Write, pos, n * BLOCK, flags, *v);
            model.write(*at, *n, *v, status.is_ok(), *fua);
        }
        Op::Flush => {
            if run(m.disk(), BioOp::Flush, 0, 0, NONE, 0).is_ok() {
                model.perm = model.now.clone();
            }
        }
        Op::Fail(n) => m.bad(n % m.legs, true),
        Op::Heal(n) => {
            let n = n % m.legs;
            m.bad(n, false);
            if m.leg_state(n) == "failed" && m.attr("broken") == "0" {
                // Others may be bad.
                let done = m.mgmt(&format!("readd {n}"));
                assert_ne!(done, Err(code::ESTALE), "{}", m.attr("legs"));
            }
        }
        Op::Crash(writes, us) => {
            crash_in_writes(m, writes, *us);
            for &(at, n, v) in writes {
                model.write(at, n, v, false, false);
            }
            model.now = model.perm.clone();
            m.open("bitmap_delay=2");
        }
        Op::CrashWithout(n) => {
            let n = n % m.legs;
            // Else a leg may be missing that alone has what was acknowledged.
            let flushed = run(m.disk(), BioOp::Flush, 0, 0, NONE, 0).is_ok();
            if !flushed || m.any_bad() || m.attr("degraded") != "0" {
                return;
            }
            // What is in memory is on the disks when the next command is done.
            assert_eq!(m.mgmt("fail 7"), Err(code::ENOENT));
            model.perm = model.now.clone();
            m.crash(n);
            model.now = model.perm.clone();
            let others: Vec<usize> = (0..m.legs).filter(|i| *i != n).collect();
            // If nobody has noticed that it has gone.
            if let Err(e) = m.try_open(&others, "bitmap_delay=2") {
                assert_eq!(e, code::ENXIO);
                m.try_open(&others, "degraded=1&bitmap_delay=2").unwrap();
            }
            assert_eq!(m.leg_state(n), "failed");
        }
        Op::Sync => {
            let whole = !m.any_bad() && (0..m.legs).all(|n| m.leg_state(n) != "failed");
            if whole && m.attr("broken") == "0" {
                m.wait_sync();
            }
        }
    }
}

fn check(mut m: Mirror, ops: &[Op]) {
    m.open("create=1&assume_clean=1&bitmap_delay=2");
    let mut model = Model {
        now: vec![BTreeSet::from([0]); BLOCKS],
        perm: vec![BTreeSet::from([0]); BLOCKS],
    };
    for op in ops {
        apply(&mut m, &mut model, op);
    }
    m.crash(0);
    model.now = model.perm.clone();
    m.open("bitmap_delay=2");
    m.wait_sync();
    let data = run(m.disk(), BioOp::Read, 0, BLOCKS * BLOCK, NONE, 0).unwrap();
    model.check(0, &data);
    m.assert_alike();
    assert_eq!(m.raw(0), data);
    assert_eq!(dropped_bios(), 0);
}

fn cases() -> u32 {
    let n = std::env::var("SCST_RAID1_CASES").ok();
    n.and_then(|n| n.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn what_was_acknowledged_is_there_and_the_legs_agree(
        legs in 2..4usize,
        cache in prop_oneof![Just("0"), Just("16K"), Just("256K")],
        delay in prop_oneof![
            Just("irqmode=softirq"),
            Just("irqmode=timer&completion_nsec=100000"),
            Just("blocking=1"),
        ],
        ops in prop::collection::vec(op(), 1..30),
    ) {
        check(Mirror::new(legs, &format!("cache_size={cache}&{delay}")), &ops);
    }
}

#[test]
fn only_dirty_regions_are_copied_to_a_leg_that_returns() {
    let mut m = Mirror::new(2, "queue_mode=bio");
    m.open("create=1&assume_clean=1&bitmap_delay=5");
    m.bad(1, true);
    for region in [3u64, 3, 9] {
        run(m.disk(), BioOp::Write, region * (64 << 10), BLOCK, NONE, 7).unwrap();
    }
    assert_eq!(m.leg_state(1), "failed");
    assert_eq!(m.attr("degraded"), "1");
    assert_eq!(m.mgmt("fail 0"), Err(code::EBUSY));
    assert_eq!(m.attr("dirty_regions"), "2");
    m.bad(1, false);
    m.mgmt("readd 1").unwrap();
    m.wait_sync();
    assert_eq!(m.attr("resynced_regions"), "2");
    assert_eq!(m.attr("sync_action"), "idle");
    let end = Instant::now() + Delta::from_secs(30);
    while m.attr("dirty_regions") != "0" {
        assert!(Instant::now() < end, "the bitmap is cleared");
        msleep(1);
    }
    m.assert_alike();
    assert_eq!(m.raw(1)[9 * (64 << 10)], 7);
}

#[test]
fn what_one_leg_cannot_read_is_read_from_another_and_written_back() {
    let mut m = Mirror::new(2, "queue_mode=bio&badblocks_once=1");
    m.open("create=1&assume_clean=1&bitmap_delay=5");
    run(m.disk(), BioOp::Write, 0, 4 * BLOCK, NONE, 5).unwrap();
    for n in [0, 1] {
        let sector = DATA_AT / 512 + 1;
        m.set_leg(n, "badblocks", &format!("+{sector}-{sector}"))
            .unwrap();
        // Whoever is asked first.
        for _ in 0..10 {
            let data = run(m.disk(), BioOp::Read, 0, BLOCK, NONE, 0).unwrap();
            assert_eq!(data, [5; BLOCK]);
        }
        m.wait_sync();
        assert_eq!(m.attr("degraded"), "0");
        m.set_leg(n, "badblocks", &format!("-{sector}-{sector}"))
            .unwrap();
    }
    m.assert_alike();
}

#[test]
fn a_leg_is_added_copied_to_slowly_and_another_removed() {
    let mut m = Mirror::new(1, "queue_mode=bio");
    m.open("create=1&sync_speed_max=1M");
    run(m.disk(), BioOp::Write, 0, 32 * BLOCK, NONE, 9).unwrap();
    let new = m.make_leg("queue_mode=bio");
    let start = Instant::now();
    m.mgmt(&format!("add {new}")).unwrap();
    assert_eq!(m.mgmt(&format!("add {new}")), Err(code::EBUSY));
    assert_eq!(m.leg_state(1), "rebuilding");
    run(m.disk(), BioOp::Write, 40 * BLOCK as u64, BLOCK, NONE, 8).unwrap();
    m.wait_sync();
    // 1 MiB at 1 MiB/s, of which the last region is not waited for.
    assert!(start.elapsed() >= Delta::from_millis(100));
    assert_eq!(m.attr("resynced_regions"), "16");
    m.mgmt("fail 0").unwrap();
    assert_eq!(m.mgmt("remove 1"), Err(code::EBUSY));
    m.mgmt("remove 0").unwrap();
    assert_eq!(m.attr("degraded"), "0");
    let data = run(m.disk(), BioOp::Read, 0, 64 * BLOCK, NONE, 0).unwrap();
    assert_eq!([data[0], data[40 * BLOCK], data[50 * BLOCK]], [9, 8, 0]);
    m.disk = None;
    // The leg that was removed does not get in again.
    m.open("");
    assert_eq!([m.leg_state(0), m.leg_state(1)], ["", "in_sync"]);
}

#[test]
fn legs_that_went_on_without_each_other_are_refused() {
    let mut m = Mirror::new(2, "queue_mode=bio");
    assert_eq!(m.try_open(&[0, 1], ""), Err(code::ENOENT));
    m.open("create=1&assume_clean=1");
    m.disk = None;
    for n in [0, 1] {
        assert_eq!(m.try_open(&[n], ""), Err(code::ENXIO));
        m.try_open(&[n], "degraded=1").unwrap();
        run(m.disk(), BioOp::Write, 0, BLOCK, NONE, n as u8 + 1).unwrap();
        m.disk = None;
    }
    assert_eq!(m.try_open(&[0, 1], ""), Err(code::EUCLEAN));
    // Each alone still works.
    m.try_open(&[1], "").unwrap();
    assert_eq!(run(m.disk(), BioOp::Read, 0, BLOCK, NONE, 9).unwrap()[0], 2);
}

#[test]
fn a_leg_and_its_copy_are_refused() {
    let mut m = Mirror::new(3, "queue_mode=bio");
    m.try_open(&[0, 1], "create=1&assume_clean=1").unwrap();
    m.disk = None;
    let old = m.head(1);
    m.open_two();
    m.disk = None;
    // Somebody restores an old copy of leg 1 elsewhere.
    m.set_head(2, &old);
    assert_eq!(m.try_open(&[0, 1, 2], ""), Err(code::EUCLEAN));
    m.open_two();
}

#[test]
fn after_a_crash_the_same_leg_counts_whichever_was_told_last() {
    for behind in [0, 1] {
        let mut m = Mirror::new(2, "queue_mode=bio");
        m.open("create=1&assume_clean=1&bitmap_delay=60000");
        run(m.disk(), BioOp::Write, 0, BLOCK, NONE, 1).unwrap();
        let old = m.head(behind);
        m.crash(0);
        // A crash in the middle of a write, and one in the middle of the next start.
        {
            let leg = BlockDevice::open(m.leg(1), BlkMode::READ | BlkMode::WRITE).unwrap();
            run(&leg, BioOp::Write, DATA_AT, BLOCK, NONE, 2).unwrap();
        }
        m.set_head(behind, &old);
        m.open("bitmap_delay=2");
        assert_eq!(run(m.disk(), BioOp::Read, 0, BLOCK, NONE, 0).unwrap()[0], 1);
        m.assert_alike();
        assert_eq!(m.raw(1)[0], 1);
    }
}

#[test]
fn zeros_and_discards_go_to_all_legs() {
    let mut m = Mirror::new(2, "queue_mode=bio&discard=1");
    m.open("create=1&assume_clean=1");
    let limits = m.disk().limits().clone();
    assert!(limits.max_discard_bytes > 0 && limits.discard_zeroes_data);
    run(m.disk(), BioOp::Write, 0, 64 * BLOCK, NONE, 1).unwrap();
    run(m.disk(), BioOp::Discard, 0, 20 * BLOCK, NONE, 0).unwrap();
    run(
        m.disk(),
        BioOp::WriteZeroes,
        30 * BLOCK as u64,
        BLOCK,
        NONE,
        0,
    )
    .unwrap();
    m.assert_alike();
    let data = m.raw(0);
    let at = |b: usize| data[b * BLOCK];
    assert_eq!([at(0), at(20), at(30), at(31)], [0, 1, 0, 1]);
}
