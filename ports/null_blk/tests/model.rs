//! Disks with faults against a model of what they hold and answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use kshim::block::{Bio, BioOp, BlkMode, BlockDevice, ReqFlags, class, dropped_bios};
use kshim::error::{Result, code};
use kshim::kobject::tree::{Tree, TreeOps};
use kshim::scatterlist::SGTable;
use kshim::sync::Completion;
use kshim::time::{Delta, Instant};
use proptest::prelude::*;

const BLOCKS: u64 = 64;
const BLOCK: usize = 512;

fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| null_blk::init().unwrap());
}

fn name() -> String {
    static N: AtomicU32 = AtomicU32::new(0);
    format!("t{}", N.fetch_add(1, Ordering::Relaxed))
}

fn open(name: &str, knobs: &str) -> Arc<BlockDevice> {
    init();
    let path = format!("/dev/null_blk/{name}?{knobs}");
    BlockDevice::open(path, BlkMode::READ | BlkMode::WRITE).unwrap()
}

fn set(path: &str, value: &str) -> Result {
    Tree::new(class()).write(&format!("null_blk/{path}"), value.as_bytes())
}

fn get(path: &str) -> Result<String> {
    let value = Tree::new(class()).read(&format!("null_blk/{path}"))?;
    Ok(String::from_utf8(value).unwrap())
}

fn bio(op: BioOp, block: u64, blocks: u64, flags: ReqFlags, byte: u8) -> Bio {
    let len = blocks as usize * BLOCK;
    let mut sg = SGTable::new();
    if matches!(op, BioOp::Read | BioOp::Write) {
        sg = SGTable::alloc(len).unwrap();
        sg.fill(0, len, byte).unwrap();
    }
    Bio::new(op, block, len, Arc::new(|_: Bio, _: Result| {}))
        .with_sg(sg, 0)
        .with_flags(flags)
}

fn run(
    disk: &BlockDevice,
    op: BioOp,
    block: u64,
    blocks: u64,
    flags: ReqFlags,
    byte: u8,
) -> Result<Vec<u8>> {
    let (bio, status) = disk.submit_bio_wait(bio(op, block, blocks, flags, byte));
    status?;
    Ok((0..bio.sg.len() / BLOCK)
        .map(|n| bio.sg.as_slice(n * BLOCK, 1).unwrap()[0])
        .collect())
}

#[derive(Debug, Clone)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, u8, bool),
    Flush,
    Zero(u64, u64),
    Bad(u64, u64),
    Good(u64, u64),
    PowerCut,
    Requeue,
    Timeout,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..BLOCKS, 1..9u64).prop_map(|(at, n)| (at, n.min(BLOCKS - at)))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => range().prop_map(|(a, n)| Op::Read(a, n)),
        6 => (range(), any::<u8>(), any::<bool>()).prop_map(|((a, n), b, f)| Op::Write(a, n, b, f)),
        1 => Just(Op::Flush),
        1 => range().prop_map(|(a, n)| Op::Zero(a, n)),
        1 => range().prop_map(|(a, n)| Op::Bad(a, n)),
        2 => range().prop_map(|(a, n)| Op::Good(a, n)),
        1 => Just(Op::PowerCut),
        1 => Just(Op::Requeue),
        1 => Just(Op::Timeout),
    ]
}

/// What a block reads as, and what it may read as after a power cut.
struct Model {
    now: Vec<u8>,
    perhaps: Vec<BTreeSet<u8>>,
    bad: BTreeSet<u64>,
    cached: bool,
}

impl Model {
    fn write(&mut self, at: u64, n: u64, byte: u8, durable: bool) {
        for b in at as usize..(at + n) as usize {
            self.now[b] = byte;
            if durable || !self.cached {
                self.perhaps[b].clear();
            }
            self.perhaps[b].insert(byte);
        }
    }

    fn is_bad(&self, at: u64, n: u64) -> bool {
        self.bad.range(at..at + n).next().is_some()
    }
}

fn check(disk: &BlockDevice, name: &str, cached: bool, ops: &[Op]) {
    let mut m = Model {
        now: vec![0; BLOCKS as usize],
        perhaps: vec![BTreeSet::from([0]); BLOCKS as usize],
        bad: BTreeSet::new(),
        cached,
    };
    let none = ReqFlags::empty();
    let mut expect: Result = Ok(());
    for op in ops {
        let fault = std::mem::replace(&mut expect, Ok(()));
        let done = |m: &Model, at, n, fault: Result| {
            fault.and(if m.is_bad(at, n) {
                Err(code::EIO)
            } else {
                Ok(())
            })
        };
        match *op {
            Op::Read(at, n) => {
                let got = run(disk, BioOp::Read, at, n, none, 0xee);
                let want = done(&m, at, n, fault);
                assert_eq!(
                    got,
                    want.map(|()| m.now[at as usize..(at + n) as usize].to_vec())
                );
            }
            Op::Write(at, n, byte, fua) => {
                let flags = if fua { ReqFlags::FUA } else { none };
                let want = done(&m, at, n, fault);
                assert_eq!(
                    run(disk, BioOp::Write, at, n, flags, byte).map(|_| ()),
                    want
                );
                if want.is_ok() {
                    m.write(at, n, byte, fua);
                }
            }
            Op::Zero(at, n) => {
                let want = done(&m, at, n, fault);
                assert_eq!(
                    run(disk, BioOp::WriteZeroes, at, n, none, 0).map(|_| ()),
                    want
                );
                if want.is_ok() {
                    m.write(at, n, 0, true);
                }
            }
            Op::Flush => {
                assert_eq!(run(disk, BioOp::Flush, 0, 0, none, 0).map(|_| ()), fault);
                if fault.is_ok() {
                    for (now, perhaps) in m.now.iter().zip(&mut m.perhaps) {
                        *perhaps = BTreeSet::from([*now]);
                    }
                }
            }
            Op::Bad(at, n) => {
                set(
                    &format!("{name}/badblocks"),
                    &format!("+{at}-{}", at + n - 1),
                )
                .unwrap();
                m.bad.extend(at..at + n);
                expect = fault;
            }
            Op::Good(at, n) => {
                set(
                    &format!("{name}/badblocks"),
                    &format!("-{at}-{}\n", at + n - 1),
                )
                .unwrap();
                m.bad.retain(|b| !(at..at + n).contains(b));
                expect = fault;
            }
            Op::PowerCut => {
                if cached {
                    set(&format!("{name}/power_cut"), "1").unwrap();
                    m.bad.clear();
                    set(&format!("{name}/badblocks"), &format!("-0-{BLOCKS}")).unwrap();
                    let timeout = fault.is_err();
                    if timeout {
                        set(&format!("{name}/timeout"), "1,0,0,0").unwrap();
                    }
                    let now = run(disk, BioOp::Read, 0, BLOCKS, none, 0).unwrap();
                    for (b, now) in now.into_iter().enumerate() {
                        assert!(m.perhaps[b].contains(&now), "block {b}: {now}");
                        m.perhaps[b] = BTreeSet::from([now]);
                        m.now[b] = now;
                    }
                } else {
                    expect = fault;
                }
            }
            // The next one is done twice, which nobody sees.
            Op::Requeue => {
                set(&format!("{name}/requeue"), "1,100,0,1").unwrap();
                expect = fault;
            }
            Op::Timeout => {
                set(&format!("{name}/timeout"), "1,100,0,1").unwrap();
                expect = Err(code::ETIMEDOUT);
            }
        }
    }
    let left: Vec<String> = m.bad.iter().map(u64::to_string).collect();
    let shown: BTreeMap<u64, u64> = get(&format!("{name}/badblocks"))
        .unwrap()
        .lines()
        .map(|l| l.split_once(' ').unwrap())
        .map(|(a, n)| (a.parse().unwrap(), n.parse().unwrap()))
        .collect();
    let shown = shown.into_iter().flat_map(|(a, n)| a..a + n);
    assert_eq!(shown.map(|b| b.to_string()).collect::<Vec<_>>(), left);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_disk_answers_and_holds_what_the_model_says(
        cached in any::<bool>(),
        irqmode in 0..3u8,
        blocking in 0..2u8,
        depth in 1..3u8,
        ops in prop::collection::vec(op(), 1..50),
    ) {
        let name = name();
        let cache = if cached { "4K" } else { "0" };
        let disk = open(&name, &format!(
            "size=32K&memory_backed=1&cache_size={cache}&irqmode={irqmode}&blocking={blocking}\
             &hw_queue_depth={depth}&io_timeout=1&completion_nsec=1000"
        ));
        check(&disk, &name, cached, &ops);
        drop(disk);
        prop_assert_eq!(get(&format!("{name}/size")), Err(code::ENOENT));
        prop_assert_eq!(dropped_bios(), 0);
    }
}

/// Submits many at once; returns when all have ended.
fn flood(disk: &BlockDevice, n: u32) -> u32 {
    let (failed, left) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(n)));
    let all = Arc::new(Completion::new());
    for i in 0..n {
        let (failed, left, all) = (Arc::clone(&failed), Arc::clone(&left), Arc::clone(&all));
        let mut bio = bio(BioOp::Write, u64::from(i) % BLOCKS, 1, ReqFlags::empty(), 1);
        bio.end_io = Some(Arc::new(move |_: Bio, status: Result| {
            failed.fetch_add(u32::from(status.is_err()), Ordering::SeqCst);
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                all.complete_all();
            }
        }));
        disk.submit_bio(bio);
    }
    all.wait_for_completion();
    failed.load(Ordering::SeqCst)
}

#[test]
fn all_of_many_end_in_every_mode() {
    for knobs in [
        "queue_mode=bio",
        "queue_mode=bio&irqmode=timer&completion_nsec=50000",
        "hw_queue_depth=1&irqmode=softirq",
        "hw_queue_depth=3&irqmode=timer&completion_nsec=10000",
        "hw_queue_depth=2&blocking=1&submit_queues=2",
        "hw_queue_depth=1&requeue=2,100,0,-1",
        "hw_queue_depth=7&mbps=1024",
    ] {
        let disk = open(&name(), &format!("size=32K&memory_backed=1&{knobs}"));
        assert_eq!(flood(&disk, 2000), 0, "{knobs}");
    }
    let disk = open(
        &name(),
        "size=32K&hw_queue_depth=4&timeout=10,100,0,-1&io_timeout=2",
    );
    assert_eq!(flood(&disk, 100), 10);
    assert_eq!(dropped_bios(), 0);
}

#[test]
fn delay_and_rate_are_kept() {
    let disk = open(&name(), "size=32K&irqmode=timer&completion_nsec=3000000");
    let start = Instant::now();
    run(&disk, BioOp::Read, 0, 1, ReqFlags::empty(), 1).unwrap();
    assert!(start.elapsed() >= Delta::from_millis(3));
    // 512 KiB at 4 MiB/s, of which a tick's worth is free: 80 KiB.
    let disk = open(&name(), "size=32K&mbps=4");
    let start = Instant::now();
    assert_eq!(flood(&disk, 1024), 0);
    assert!(start.elapsed() >= Delta::from_millis(80));
}

#[test]
fn a_bad_range_fails_once_when_asked_to() {
    let disk = open(
        &name(),
        "size=32K&badblocks=+3-5&badblocks_once=1&queue_mode=bio&memory_backed=1",
    );
    let read = || run(&disk, BioOp::Read, 0, 4, ReqFlags::empty(), 1);
    assert!(disk.is_inline() && disk.direct_access(0, 512).is_none());
    assert_eq!(read(), Err(code::EIO));
    assert_eq!(read(), Ok(vec![0; 4]));
    assert_eq!(
        run(&disk, BioOp::Read, 4, 4, ReqFlags::empty(), 1),
        Err(code::EIO)
    );
    assert!(disk.direct_access(0, 512).is_some());
}

#[test]
fn what_is_before_a_bad_block_is_done_when_asked_to() {
    for partial in [false, true] {
        let knobs = format!(
            "memory_backed=1&badblocks=+6-6&badblocks_partial_io={}",
            u8::from(partial)
        );
        let disk = open(&name(), &format!("size=32K&{knobs}"));
        let write = run(&disk, BioOp::Write, 4, 4, ReqFlags::empty(), 9);
        assert_eq!(write, Err(code::EIO));
        let held = run(&disk, BioOp::Read, 4, 2, ReqFlags::empty(), 1);
        assert_eq!(held, Ok(vec![if partial { 9 } else { 0 }; 2]));
        assert_eq!(
            run(&disk, BioOp::Read, 7, 1, ReqFlags::empty(), 1),
            Ok(vec![0])
        );
    }
    // A bad sector in the middle of a block spoils the block.
    let knobs = "size=32K&blocksize=4096&memory_backed=1&badblocks=+12-12&badblocks_partial_io=1";
    let disk = open(&name(), knobs);
    let write = run(&disk, BioOp::Write, 0, 32, ReqFlags::empty(), 9);
    assert_eq!(write, Err(code::EIO));
    assert_eq!(
        run(&disk, BioOp::Read, 0, 8, ReqFlags::empty(), 1),
        Ok(vec![9; 8])
    );
}

#[test]
fn a_path_can_be_opened_anew_while_bios_of_the_last_opening_are_under_way() {
    let name = name();
    let knobs = "size=32K&irqmode=timer&completion_nsec=50000000";
    let ended = Arc::new(Completion::new());
    let disk = open(&name, knobs);
    let mut slow = bio(BioOp::Read, 0, 1, ReqFlags::empty(), 0);
    let done = Arc::clone(&ended);
    slow.end_io = Some(Arc::new(move |_: Bio, status: Result| {
        assert_eq!(status, Ok(()));
        done.complete_all();
    }));
    disk.submit_bio(slow);
    drop(disk);
    let again = open(&name, knobs);
    assert_eq!(get(&format!("{name}/size")).unwrap(), "64\n");
    ended.wait_for_completion();
    assert_eq!(get(&format!("{name}/size")).unwrap(), "64\n");
    drop(again);
    assert_eq!(get(&format!("{name}/size")), Err(code::ENOENT));
}

#[test]
fn disks_made_by_the_tree_remember() {
    init();
    let name = name();
    assert_eq!(
        set("mgmt", &format!("add {name} size=32K&memory_backed=1\n")),
        Ok(())
    );
    assert_eq!(set("mgmt", &format!("add {name}")), Err(code::EEXIST));
    for bad in [
        "",
        "x",
        "add",
        "add a/b",
        "del",
        "del a b",
        "add x size=0",
        "add x y=1",
    ] {
        assert!(
            bad.is_empty() || set("mgmt", bad) == Err(code::EINVAL),
            "{bad}"
        );
    }
    assert_eq!(set("mgmt", "del none"), Err(code::ENOENT));
    assert!(get("features").unwrap().contains("memory_backed,"));
    assert_eq!(get(&format!("{name}/size")).unwrap(), "64\n");
    assert_eq!(get(&format!("{name}/memory_backed")).unwrap(), "1\n");
    let path = format!("/dev/null_blk/{name}");
    let open = || BlockDevice::open(&path, BlkMode::READ | BlkMode::WRITE).unwrap();
    let disk = open();
    run(&disk, BioOp::Write, 5, 1, ReqFlags::empty(), 77).unwrap();
    assert_eq!(set("mgmt", &format!("del {name}")), Err(code::EBUSY));
    drop(disk);
    assert_eq!(
        run(&open(), BioOp::Read, 5, 1, ReqFlags::empty(), 0),
        Ok(vec![77])
    );
    assert_eq!(set("mgmt", &format!("del {name}")), Ok(()));
    assert_eq!(get(&format!("{name}/size")), Err(code::ENOENT));
}
