//! Schedules of the state machine: legs that hold every bio, and a scheduler that says which one ends next, and how.
//!
//! Both threads run as ever. A step is chosen when each of them sleeps with nothing to do or waits for a bio that is held, so the
//! choices before it decide what is to be chosen from. What a leg has been given and not ended is not on it, unless a crash
//! says so; caches that are lost are left to `tests/model.rs`.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "threads of the test"
)]

use crate::array::{Array, Command, Wish};
use crate::assemble::assemble;
use crate::daemon::promotable;
use crate::leg::Candidate;
use crate::meta::{BITMAP_AT, LegState, PAGE, decode_bitmap};
use crate::resync::next_region;
use crate::spec::Spec;
use kshim::block::{
    Bio, BioOp, BlkMode, BlockDevice, BlockOps, GenDisk, QueueLimits, SubmittedBio, register_disk,
    register_prober,
};
use kshim::prelude::*;
use kshim::scatterlist::SGTable;
use kshim::sync::{Completion, CondVar, SpinLock};
use kshim::time::Delta;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

const DATA_AT: u64 = 1 << 20;
const REGION: usize = 64 << 10;
const REGIONS: usize = 2;
/// No schedule takes so long: one that does hangs.
const HANGS: Delta = Delta::from_secs(10);

/// Blocks of a leg that are not all zeros, by their number.
type Content = BTreeMap<u64, Vec<u8>>;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Hold,
    /// Does at once what it is told.
    Through,
    /// Fails all.
    Dead,
}

struct Held {
    /// Name of the thread that gave it, and how many it has given before: the order of two threads is not ours.
    by: (String, usize),
    bio: SubmittedBio,
}

impl Held {
    /// Whether its thread waits for it.
    fn blocks(&self) -> bool {
        match self.by.0.as_str() {
            "daemon" => self.bio.op == BioOp::Flush || self.bio.pos() < DATA_AT,
            "resync" => self.bio.len == REGION,
            _ => false,
        }
    }
}

struct Inner {
    mode: Mode,
    content: Content,
    held: Vec<Held>,
    given: usize,
    array: Option<Arc<Array>>,
}

struct TestLeg(SpinLock<Inner>, Gate);

/// What closing waits for.
#[derive(Default)]
struct Gate {
    shut: SpinLock<bool>,
    opened: CondVar,
}

impl Gate {
    fn open(&self) {
        *self.shut.lock() = false;
        self.opened.notify_all();
    }
}

static LEGS: SpinLock<BTreeMap<String, Arc<TestLeg>>> = SpinLock::new(BTreeMap::new());

impl TestLeg {
    /// What is written is there.
    fn apply(&self, bio: &Bio) {
        if bio.op != BioOp::Write {
            return;
        }
        let mut bytes = vec![0; bio.len];
        bio.sg.copy_to_slice(bio.sg_at, &mut bytes).unwrap();
        let blocks = (bio.pos() / PAGE as u64..).zip(bytes.chunks(PAGE));
        let mut inner = self.0.lock();
        blocks.for_each(|(n, b)| drop(inner.content.insert(n, b.to_vec())));
    }

    /// Does what a bio says, and ends it.
    fn carry_out(&self, mut bio: SubmittedBio) {
        self.apply(&bio);
        if bio.op == BioOp::Read {
            let mut bytes = vec![0; bio.len];
            let blocks = (bio.pos() / PAGE as u64..).zip(bytes.chunks_mut(PAGE));
            let inner = self.0.lock();
            for (n, block) in blocks {
                if let Some(has) = inner.content.get(&n) {
                    block.copy_from_slice(has);
                }
            }
            drop(inner);
            let at = bio.sg_at;
            bio.sg.copy_from_slice(at, &bytes).unwrap();
        }
        bio.complete(Ok(()));
    }

    /// The held ones, and what comes from now on.
    fn switch(&self, mode: Mode) -> Vec<Held> {
        let mut inner = self.0.lock();
        inner.mode = mode;
        std::mem::take(&mut inner.held)
    }
}

impl BlockOps for TestLeg {
    fn submit_bio(&self, bio: SubmittedBio) {
        let mut inner = self.0.lock();
        match inner.mode {
            Mode::Dead => {
                drop(inner);
                bio.complete(Err(EIO));
            }
            Mode::Hold if bio.op != BioOp::Read || bio.pos() >= DATA_AT => {
                let name = thread::current().name().unwrap_or_default().to_owned();
                inner.given += 1;
                let by = (name, inner.given);
                inner.held.push(Held { by, bio });
                let array = inner.array.clone();
                drop(inner);
                if let Some(array) = array {
                    let _st = array.state.lock();
                    array.changed.turns.stop();
                }
            }
            Mode::Hold | Mode::Through => {
                drop(inner);
                self.carry_out(bio);
            }
        }
    }

    fn release(&self, _mode: BlkMode) {
        let mut shut = self.1.shut.lock();
        while *shut {
            self.1.opened.wait(&mut shut);
        }
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits {
            logical_block_size: 4096,
            physical_block_size: 4096,
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        DATA_AT + (REGIONS * REGION) as u64
    }
}

/// What the script of a scenario submits, in this order.
#[derive(Clone, Copy)]
enum Cmd {
    /// So many blocks from this one on.
    Write(usize, usize),
    Read(usize, usize),
    Flush,
    Fail(usize),
    Readd(usize),
    /// Clears the bitmap where it can be.
    Clean,
}

struct Scenario {
    script: &'static [Cmd],
    /// Bios that may fail.
    failures: usize,
    crash: bool,
    /// Threads may be slow: other things happen before they look.
    lag: bool,
}

/// What blocks may read as, and what has been completed.
#[derive(Default)]
struct Book {
    may: BTreeMap<usize, BTreeSet<u8>>,
    completed: BTreeSet<u8>,
    /// By the number of the command.
    ends: Vec<usize>,
    acks: usize,
    crashed: bool,
}

impl Book {
    fn may(&mut self, block: usize) -> &mut BTreeSet<u8> {
        self.may.entry(block).or_insert_with(|| BTreeSet::from([0]))
    }
}

struct Run {
    legs: Vec<Arc<TestLeg>>,
    paths: Vec<String>,
    array: Arc<Array>,
    threads: Vec<JoinHandle<()>>,
    book: Arc<SpinLock<Book>>,
    wishes: Vec<Arc<(SpinLock<Result>, Completion)>>,
    front: Option<(Arc<BlockDevice>, GenDisk)>,
}

/// The array as a disk.
struct Front(Arc<Array>);

impl BlockOps for Front {
    fn submit_bio(&self, bio: SubmittedBio) {
        self.0.submit(bio);
    }

    fn limits(&self) -> QueueLimits {
        self.0.state.lock().limits.clone()
    }

    fn capacity_bytes(&self) -> u64 {
        (REGIONS * REGION) as u64
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A thread that was told of a change goes on, until it waits again.
    Turn(String),
    Submit,
    End(usize, usize, bool),
    /// Legs (bits) that have done what they were given.
    Crash(u8),
}

fn new_legs(contents: Vec<Content>) -> (Vec<Arc<TestLeg>>, Vec<String>) {
    static ONCE: Once = Once::new();
    static N: AtomicUsize = AtomicUsize::new(0);
    ONCE.call_once(|| {
        let prober = |path: &str| -> Result<Arc<dyn BlockOps>> {
            Ok(LEGS.lock().get(path).cloned().ok_or(ENOENT)?)
        };
        register_prober("/dev/schedleg/", Arc::new(prober)).unwrap();
    });
    let make = |content| {
        let inner = Inner {
            mode: Mode::Through,
            content,
            held: Vec::new(),
            given: 0,
            array: None,
        };
        let path = format!("/dev/schedleg/{}", N.fetch_add(1, Ordering::Relaxed));
        let leg = Arc::new(TestLeg(SpinLock::new(inner), Gate::default()));
        LEGS.lock().insert(path.clone(), Arc::clone(&leg));
        (leg, path)
    };
    contents.into_iter().map(make).unzip()
}

impl Run {
    fn new(contents: Vec<Content>, book: Arc<SpinLock<Book>>) -> Run {
        let create = contents.iter().all(|c| c.is_empty());
        let (legs, paths) = new_legs(contents);
        let named: Vec<String> = paths.iter().map(|p| format!("leg={p}")).collect();
        let create = if create {
            "&create=1&assume_clean=1&region=64K"
        } else {
            ""
        };
        let knobs = "bitmap_delay=100000000&readd=0&sync_speed_min=0";
        let path = format!("/dev/raid1/s?{}&{knobs}{create}", named.join("&"));
        let spec = Spec::parse(&path).unwrap();
        let array = Array::new(spec.clone(), assemble(&spec).unwrap());
        array.write_all().unwrap();
        for leg in &legs {
            leg.0.lock().array = Some(Arc::clone(&array));
        }
        array.state.lock().threads = 2;
        array.changed.turns.control(true);
        let (daemon, resync) = (Arc::clone(&array), Arc::clone(&array));
        let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(f).unwrap()
        };
        let threads = vec![
            spawn("daemon", Box::new(move || daemon.run_daemon())),
            spawn("resync", Box::new(move || resync.run_resync())),
        ];
        let front_path = paths[0].replace("schedleg", "schedfront");
        let disk = register_disk(&front_path, Arc::new(Front(Arc::clone(&array)))).unwrap();
        let front = BlockDevice::open(front_path, BlkMode::READ | BlkMode::WRITE).unwrap();
        Run {
            legs,
            paths,
            array,
            threads,
            book,
            wishes: Vec::new(),
            front: Some((front, disk)),
        }
    }

    /// Whether its thread waits for a bio that is held.
    fn blocked(&self, name: &str) -> bool {
        self.legs.iter().any(|l| {
            let inner = l.0.lock();
            inner.held.iter().any(|h| h.by.0 == name && h.blocks())
        })
    }

    /// Waits until both threads wait, for us or for a turn. Returns those that would go on if they had one.
    fn stopped(&self) -> Vec<String> {
        let turns = &self.array.changed.turns;
        let mut st = self.array.state.lock();
        loop {
            let held = ["daemon", "resync"].iter().filter(|t| self.blocked(t));
            let held = held.count();
            let asleep = turns.asleep();
            // Those who close legs end by themselves, and tell.
            let closed = st.threads == 2 || self.legs.iter().any(|l| *l.1.shut.lock());
            if closed && asleep.len() + held == 2 {
                let told = asleep.into_iter().filter(|(_, told)| *told);
                return told.map(|(name, _)| name).collect();
            }
            let stopped = turns.wait_stopped(&mut st, HANGS);
            assert!(stopped, "the threads hang");
        }
    }

    fn turn(&self, name: &str) {
        // It is waiting already, or will see this.
        let _st = self.array.state.lock();
        self.array.changed.give_turn(name);
    }

    /// Gives turns until both threads wait for us.
    fn settle(&self) {
        while let Some(name) = self.stopped().first() {
            self.turn(name);
        }
    }

    fn steps(&self, scenario: &Scenario, submitted: usize, failed: usize) -> Vec<Step> {
        let mut steps: Vec<Step> = self.stopped().into_iter().map(Step::Turn).collect();
        if !steps.is_empty() && !scenario.lag {
            return steps;
        }
        for (n, leg) in self.legs.iter().enumerate() {
            let mut inner = leg.0.lock();
            inner.held.sort_by(|a, b| a.by.cmp(&b.by));
            for i in 0..inner.held.len() {
                steps.push(Step::End(n, i, true));
                if failed < scenario.failures {
                    steps.push(Step::End(n, i, false));
                }
            }
        }
        if submitted < scenario.script.len() {
            steps.push(Step::Submit);
        }
        if scenario.crash && !steps.is_empty() {
            steps.extend([0, 1, 2].map(Step::Crash));
        }
        steps
    }

    /// `value`: what a write writes.
    fn submit(&mut self, cmd: Cmd, value: u8) {
        let number = {
            let mut book = self.book.lock();
            book.ends.push(0);
            book.ends.len() - 1
        };
        let (op, at, n) = match cmd {
            Cmd::Write(at, n) => (BioOp::Write, at, n),
            Cmd::Read(at, n) => (BioOp::Read, at, n),
            Cmd::Flush => (BioOp::Flush, 0, 0),
            Cmd::Clean => return self.wish(Wish::Clean, None, number),
            Cmd::Fail(leg) => return self.wish(Wish::Fail(leg), None, number),
            Cmd::Readd(leg) => {
                // Not if it is in use.
                return match Candidate::open(&self.paths[leg]) {
                    Ok(c) => self.wish(Wish::Readd(leg), Some(c), number),
                    Err(_) => self.book.lock().ends[number] = 1,
                };
            }
        };
        let (known, before) = {
            let mut book = self.book.lock();
            let known = book.completed.clone();
            let mut before = Vec::new();
            for b in at..at + n {
                before.push(book.may(b).clone());
                if op == BioOp::Write {
                    book.may(b).insert(value);
                }
            }
            (known, before)
        };
        let book = Arc::clone(&self.book);
        let done = move |bio: Bio, status: Result| {
            let mut book = book.lock();
            book.ends[number] += 1;
            if book.crashed {
                return;
            }
            book.acks += usize::from(status.is_ok());
            if op == BioOp::Write {
                book.completed.insert(value);
            }
            for (i, before) in before.iter().enumerate() {
                if op == BioOp::Write && status.is_ok() {
                    // It came after those.
                    book.may(at + i).retain(|v| *v != 0 && !known.contains(v));
                } else if op == BioOp::Read && status.is_ok() {
                    let mut data = [0; PAGE];
                    bio.sg.copy_to_slice(i * PAGE, &mut data).unwrap();
                    let v = data[0];
                    let fits = before.contains(&v) || book.may(at + i).contains(&v);
                    assert!(fits && data == [v; PAGE], "block {} reads as {v}", at + i);
                }
            }
        };
        let mut sg = SGTable::new();
        if n > 0 {
            sg = SGTable::alloc(n * PAGE).unwrap();
            sg.fill(0, n * PAGE, value).unwrap();
        }
        let bio = Bio::new(op, (at * PAGE / 512) as u64, n * PAGE, Arc::new(done));
        self.front
            .as_ref()
            .unwrap()
            .0
            .submit_bio(bio.with_sg(sg, 0));
    }

    fn wish(&mut self, wish: Wish, candidate: Option<Candidate>, number: usize) {
        let result = Arc::new((SpinLock::new(Ok(())), Completion::new()));
        self.wishes.push(Arc::clone(&result));
        let mut st = self.array.state.lock();
        st.commands.push(Command {
            wish,
            candidate,
            result,
        });
        self.array.changed.notify_all();
        self.book.lock().ends[number] = 1;
    }

    fn end(&self, leg: usize, i: usize, well: bool) {
        let held = self.legs[leg].0.lock().held.remove(i);
        if well {
            self.legs[leg].carry_out(held.bio);
        } else {
            held.bio.complete(Err(EIO));
        }
    }

    fn contents(&self) -> Vec<Content> {
        let content = |l: &Arc<TestLeg>| l.0.lock().content.clone();
        self.legs.iter().map(content).collect()
    }

    /// Where legs differ, those that would be copied from have to say so.
    fn check_bitmap(&self) {
        let st = self.array.state.lock();
        let contents = self.contents();
        for region in 0..REGIONS {
            let Some(block) = differing(&contents, region) else {
                continue;
            };
            for (n, content) in contents.iter().enumerate() {
                let page = content.get(&(BITMAP_AT / PAGE as u64)).unwrap();
                let says = decode_bitmap(0, page)(region);
                let counts = st.leg_state(n) == LegState::InSync;
                assert!(
                    says || !counts,
                    "block {block} differs, leg {n} is clean there"
                );
            }
        }
    }

    /// Nobody has forgotten to tell a thread.
    fn check_idle(&self) {
        let st = self.array.state.lock();
        assert_eq!((st.bios, st.users), (0, 0), "all has ended");
        assert!(st.regions.iter().all(|r| !r.locked && r.inflight == 0));
        assert!(promotable(&st).is_none() && next_region(&st, 0).is_none());
        assert!(st.waiting.is_empty() && st.ready.is_empty() && st.dirtying.is_empty());
        assert!(st.degraded.is_empty() && st.failures.is_empty() && st.repairs.is_empty());
    }

    /// Ends it: what is held is done or fails, and so does what comes.
    fn stop(mut self, mode: Mode) -> Vec<Content> {
        for leg in &self.legs {
            for held in leg.switch(mode) {
                match mode {
                    Mode::Through => leg.carry_out(held.bio),
                    _ => held.bio.complete(Err(EIO)),
                }
            }
        }
        if mode == Mode::Through {
            self.settle();
        }
        self.array.state.lock().closing = true;
        self.array.changed.turns.control(false);
        self.array.changed.notify_all();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        for wish in &self.wishes {
            wish.1.wait_for_completion();
        }
        self.front = None;
        for (leg, path) in self.legs.iter().zip(&self.paths) {
            leg.0.lock().array = None;
            LEGS.lock().remove(path);
        }
        self.contents()
    }
}

impl Drop for Run {
    /// A schedule that has failed leaves no thread behind that waits.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for leg in &self.legs {
            for held in leg.switch(Mode::Dead) {
                held.bio.complete(Err(EIO));
            }
            leg.1.open();
        }
        self.array.state.lock().closing = true;
        self.array.changed.turns.control(false);
        self.array.changed.notify_all();
    }
}

/// A block of a region that the legs have differently.
fn differing(contents: &[Content], region: usize) -> Option<u64> {
    let per = REGION / PAGE;
    let first = DATA_AT / PAGE as u64 + (region * per) as u64;
    let zeros = vec![0; PAGE];
    let at = |c: usize, n: u64| contents[c].get(&n).unwrap_or(&zeros).clone();
    (first..first + per as u64).find(|&n| at(0, n) != at(1, n))
}

/// Runs the schedule that `choose` makes of the number of choices at each step.
fn run(scenario: &Scenario, choose: &mut dyn FnMut(usize) -> usize, trace: &mut Vec<Step>) {
    let book = Arc::new(SpinLock::new(Book::default()));
    let mut run = Run::new(vec![Content::new(); 2], Arc::clone(&book));
    for leg in &run.legs {
        leg.switch(Mode::Hold);
    }
    let (mut submitted, mut failed) = (0, 0);
    let contents = loop {
        let steps = run.steps(scenario, submitted, failed);
        if steps.is_empty() {
            run.check_idle();
            break run.stop(Mode::Through);
        }
        run.check_bitmap();
        let step = steps[choose(steps.len())].clone();
        trace.push(step.clone());
        match step {
            Step::Turn(name) => run.turn(&name),
            Step::Submit => {
                submitted += 1;
                run.submit(scenario.script[submitted - 1], submitted as u8);
            }
            Step::End(leg, i, well) => {
                failed += usize::from(!well);
                run.end(leg, i, well);
            }
            Step::Crash(done) => {
                book.lock().crashed = true;
                let mut contents = Vec::new();
                for (n, leg) in run.legs.iter().enumerate() {
                    let held = leg.switch(Mode::Dead);
                    for h in held {
                        let applied = done & (1 << n) != 0;
                        if applied {
                            leg.apply(&h.bio);
                        }
                        contents.push((leg, h.bio));
                    }
                }
                let bios = contents;
                let contents = run.contents();
                bios.into_iter().for_each(|(_, b)| b.complete(Err(EIO)));
                run.stop(Mode::Dead);
                break contents;
            }
        }
    };
    let ends = book.lock().ends.clone();
    assert!(ends.iter().all(|n| *n == 1), "ended so often: {ends:?}");
    check_after(contents, &book);
}

/// Puts the array together again: the legs become alike, with all that was acknowledged.
fn check_after(contents: Vec<Content>, book: &Arc<SpinLock<Book>>) {
    let again = Run::new(contents, Arc::clone(book));
    again.settle();
    {
        let st = again.array.state.lock();
        assert_eq!((st.in_sync_mask(), st.stale_regions()), (3, 0), "in sync");
    }
    let contents = again.stop(Mode::Through);
    for region in 0..REGIONS {
        assert_eq!(differing(&contents, region), None, "region {region}");
        for content in &contents {
            let page = content.get(&(BITMAP_AT / PAGE as u64)).unwrap();
            assert!(!decode_bitmap(0, page)(region), "clean in the end");
        }
    }
    for (block, may) in &book.lock().may {
        let n = DATA_AT / PAGE as u64 + *block as u64;
        let has = contents[0].get(&n).map_or(0, |b| b[0]);
        assert!(
            may.contains(&has),
            "block {block} has {has}, none of {may:?}"
        );
    }
}

/// Runs one schedule by its choices, of which those that lack are 0 or drawn. Returns all, each with how many there were.
fn replay(
    scenario: &Scenario,
    prefix: &[usize],
    draw: &mut dyn FnMut(usize) -> usize,
) -> Vec<(usize, usize)> {
    struct Told(Vec<Step>, Vec<(usize, usize)>);
    impl Drop for Told {
        fn drop(&mut self) {
            if thread::panicking() {
                let choices: Vec<usize> = self.1.iter().map(|c| c.0).collect();
                eprintln!("schedule {choices:?}: {:?}", self.0);
            }
        }
    }
    let mut told = Told(Vec::new(), Vec::new());
    let Told(trace, made) = &mut told;
    let mut choose = |n: usize| {
        let choice = prefix.get(made.len()).copied().unwrap_or_else(|| draw(n));
        assert!(choice < n, "a schedule repeats itself");
        made.push((choice, n));
        choice
    };
    run(scenario, &mut choose, trace);
    std::mem::take(&mut told.1)
}

/// All schedules, at most `limit`. Returns how many, and whether these are all.
fn explore(scenario: &Scenario, limit: usize) -> (usize, bool) {
    let mut prefix = Vec::new();
    for n in 1..=limit {
        let mut made = replay(scenario, &prefix, &mut |_| 0);
        while made.pop_if(|(choice, of)| *choice + 1 == *of).is_some() {}
        let Some(last) = made.last_mut() else {
            return (n, true);
        };
        last.0 += 1;
        prefix = made.iter().map(|c| c.0).collect();
    }
    (limit, false)
}

fn random(scenario: &Scenario, seeds: u64) {
    for seed in 1..=seeds {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        replay(scenario, &[], &mut |n| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x % n as u64) as usize
        });
    }
}

fn all(script: &'static [Cmd], failures: usize, crash: bool) {
    let scenario = Scenario {
        script,
        failures,
        crash,
        lag: false,
    };
    let found = explore(&scenario, 20_000);
    println!("{found:?}");
    assert!(found.1, "more schedules than {}", found.0);
}

#[test]
fn one_write_in_all_orders_with_a_failure_and_a_crash() {
    all(&[Cmd::Write(0, 1)], 1, true);
}

#[test]
fn two_writes_to_a_region_in_all_orders_with_a_crash() {
    all(&[Cmd::Write(0, 2), Cmd::Write(2, 2)], 0, true);
}

/// Block 1 would be of the first write on one leg and of the second on the other.
#[test]
fn two_writes_to_a_block_in_all_orders_with_a_crash() {
    all(&[Cmd::Write(0, 2), Cmd::Write(1, 2)], 0, true);
}

#[test]
fn three_writes_to_a_block_in_all_orders() {
    all(
        &[Cmd::Write(0, 2), Cmd::Write(1, 2), Cmd::Write(0, 3)],
        0,
        false,
    );
}

#[test]
fn a_bit_is_cleared_between_writes_in_all_orders_with_a_crash() {
    all(&[Cmd::Write(0, 1), Cmd::Clean, Cmd::Write(1, 1)], 0, true);
}

/// A server that is gone may take long to be closed.
#[test]
fn nobody_waits_for_a_failed_leg_to_be_closed() {
    let book = Arc::new(SpinLock::new(Book::default()));
    let mut run = Run::new(vec![Content::new(); 2], Arc::clone(&book));
    let gate = Arc::clone(&run.legs[1]);
    *gate.1.shut.lock() = true;
    gate.switch(Mode::Dead);
    run.submit(Cmd::Write(0, 1), 1);
    run.settle();
    assert_eq!(book.lock().acks, 1);
    gate.1.open();
    run.stop(Mode::Through);
}

/// Legs that end writes at once: each lets the next one in, and the stack does not grow.
#[test]
fn many_writes_to_a_block() {
    const MANY: usize = 20_000;
    let book = Arc::new(SpinLock::new(Book::default()));
    let mut run = Run::new(vec![Content::new(); 2], Arc::clone(&book));
    for leg in &run.legs {
        leg.switch(Mode::Hold);
    }
    for n in 0..MANY {
        run.submit(Cmd::Write(n % 3, 2), n as u8);
    }
    run.settle();
    let held = |leg: &Arc<TestLeg>| leg.0.lock().held.len();
    // The page of the bitmap, on the first of them.
    assert_eq!(run.legs.iter().map(held).sum::<usize>(), 1);
    let contents = run.stop(Mode::Through);
    assert_eq!(book.lock().acks, MANY);
    assert_eq!(differing(&contents, 0), None);
}

#[test]
fn a_write_and_a_read_in_all_orders_with_a_failure() {
    all(&[Cmd::Write(0, 1), Cmd::Read(0, 1)], 1, false);
}

#[test]
fn a_write_while_a_leg_is_taken_out_in_all_orders() {
    all(&[Cmd::Write(0, 1), Cmd::Fail(1)], 0, true);
}

/// After a crash leg 0 would be copied from, had the other not been told that it has failed.
#[test]
fn a_write_after_a_leg_is_taken_out_in_all_orders() {
    all(&[Cmd::Write(0, 1), Cmd::Fail(0), Cmd::Write(2, 1)], 0, true);
}

#[test]
fn a_leg_returns_in_all_orders_with_a_failure() {
    all(&[Cmd::Fail(1), Cmd::Write(0, 1), Cmd::Readd(1)], 1, false);
}

#[test]
fn long_schedules_at_random() {
    let script = &[
        Cmd::Write(0, 2),
        Cmd::Write(1, 2),
        Cmd::Read(0, 3),
        Cmd::Fail(1),
        Cmd::Write(0, 4),
        Cmd::Flush,
        Cmd::Readd(1),
        Cmd::Write(5, 1),
        Cmd::Clean,
        Cmd::Write(18, 1),
        Cmd::Read(0, 6),
        Cmd::Write(15, 2),
        Cmd::Read(14, 4),
    ];
    for failures in 0..3 {
        for (crash, lag) in [(false, false), (false, true), (true, false), (true, true)] {
            let scenario = Scenario {
                script,
                failures,
                crash,
                lag,
            };
            random(&scenario, 100);
        }
    }
}
