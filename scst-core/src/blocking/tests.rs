//! The engine against a list of who waits, and against threads.

use super::*;
use crate::overlap::BlockRange;
use kshim::time::{Delta, Instant};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize};

#[derive(Debug)]
struct Item {
    id: usize,
    class: Class,
    claim: Claim,
    ticket: BlockTicket,
    aborted: bool,
}

impl Item {
    fn new(id: usize, class: Class) -> Self {
        Self::claiming(id, class, Claim::Nothing)
    }

    fn claiming(id: usize, class: Class, claim: Claim) -> Self {
        Self {
            id,
            class,
            claim,
            ticket: BlockTicket::default(),
            aborted: false,
        }
    }
}

fn range(lba: u64, blocks: u64) -> BlockRange {
    BlockRange { lba, blocks }
}

impl Abortable for Item {
    fn is_aborted(&self) -> bool {
        self.aborted
    }
}

impl HasBlockTicket for Item {
    fn block_ticket(&mut self) -> &mut BlockTicket {
        &mut self.ticket
    }
    fn claim(&self) -> Claim {
        self.claim.clone()
    }
}

/// A command that the model knows.
#[derive(Clone, Debug)]
struct Known {
    id: usize,
    class: Class,
    claim: Claim,
    /// On the device by the fast path, or as if: its blocks count for nobody.
    anonymous: bool,
    aborted: bool,
}

/// One list of who waits for the device and one of who waits for blocks, walked from their heads after every event.
#[derive(Default)]
struct Model {
    waiting: Vec<Known>,
    /// Had their turn, and wait for earlier ones on the same blocks.
    parked: Vec<Known>,
    /// The head of the list is strictly serialized and only waits for the device to be drained: nobody gets before it.
    claimed: bool,
    on_dev: BTreeMap<usize, Known>,
    holder: Option<usize>,
    blocks: u32,
    early: u32,
    pending_drain: usize,
    drained: usize,
}

impl Model {
    fn has_atomics(&self) -> bool {
        let mut listed = self.on_dev.values().filter(|k| !k.anonymous);
        listed.any(|k| k.claim.is_atomic()) || self.parked.iter().any(|k| k.claim.is_atomic())
    }

    /// The first of those that wait for blocks whose turn it is.
    fn free_again(&self) -> Option<usize> {
        (0..self.parked.len()).find(|&at| {
            let k = &self.parked[at];
            let conflicts = |o: &Known| !o.anonymous && o.claim.conflicts(&k.claim);
            let unknown = k.claim.is_atomic() && self.on_dev.values().any(|o| o.anonymous);
            let earlier = self.parked[..at].iter().any(conflicts);
            !unknown && !earlier && !self.on_dev.values().any(conflicts)
        })
    }

    fn let_in(&mut self, k: Known, entered: &mut Vec<usize>) {
        for o in self.on_dev.values() {
            assert!(o.aborted || !o.claim.conflicts(&k.claim), "{o:?} and {k:?}");
        }
        if matches!(k.class, Class::Serialized | Class::StrictlySerialized) {
            self.holder = Some(k.id);
        }
        entered.push(k.id);
        self.on_dev.insert(k.id, k);
    }

    fn settle(&mut self) -> Vec<usize> {
        let mut entered = Vec::new();
        if self.pending_drain > 0 && self.on_dev.is_empty() {
            self.drained += std::mem::take(&mut self.pending_drain);
            self.blocks -= std::mem::take(&mut self.early);
        }
        while self.holder.is_none() && self.blocks == 0 {
            if let Some(at) = self.free_again() {
                let k = self.parked.remove(at);
                self.let_in(k, &mut entered);
                continue;
            }
            let Some(head) = self.waiting.first() else {
                break;
            };
            let busy = !self.on_dev.is_empty() || !self.parked.is_empty();
            let strict = head.class == Class::StrictlySerialized;
            if strict && busy {
                self.claimed = true;
                break;
            }
            self.claimed = false;
            let mut k = self.waiting.remove(0);
            let listed = matches!(k.class, Class::Listed | Class::Atomic) || self.has_atomics();
            k.anonymous = strict || !listed;
            if k.anonymous {
                self.let_in(k, &mut entered);
            } else {
                self.parked.push(k);
            }
        }
        entered
    }

    fn enter(&mut self, id: usize, class: Class, claim: Claim, place: Place) -> Vec<usize> {
        let head = usize::from(self.claimed);
        let k = Known {
            id,
            class,
            claim,
            anonymous: false,
            aborted: false,
        };
        match place {
            Place::Tail => self.waiting.push(k),
            Place::Head => self.waiting.insert(head, k),
        }
        self.settle()
    }

    fn leave(&mut self, id: usize) -> Vec<usize> {
        self.on_dev.remove(&id).expect("on the device");
        if self.holder == Some(id) {
            self.holder = None;
        }
        self.settle()
    }

    /// Takes the `n`th of those that wait.
    fn take(&mut self, n: usize) -> Option<usize> {
        let at = n.checked_rem(self.waiting.len() + self.parked.len())?;
        if at < self.parked.len() {
            return Some(self.parked.remove(at).id);
        }
        let at = at - self.parked.len();
        if at == 0 {
            self.claimed = false;
        }
        Some(self.waiting.remove(at).id)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Enter(Class, Claim, Place),
    EnterAborted,
    Leave(usize),
    Block(bool),
    Unblock,
    Take(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let some = || (0..12u64, 0..4u64).prop_map(|(lba, n)| range(lba, n));
    let touches = prop_oneof![
        1 => Just(Claim::Nothing),
        4 => some().prop_map(Claim::Range),
        1 => (some(), some()).prop_map(|(a, b)| Claim::Ranges(Box::new([a, b]))),
    ];
    let class = prop_oneof![
        6 => touches.clone().prop_map(|c| (Class::Normal, c)),
        1 => Just((Class::Serialized, Claim::Nothing)),
        1 => Just((Class::Serialized, Claim::Reserve)),
        1 => Just((Class::StrictlySerialized, Claim::Nothing)),
        2 => touches.prop_map(|c| (Class::Listed, c)),
        4 => some().prop_map(|r| (Class::Atomic, Claim::Atomic(r))),
    ];
    let place = prop_oneof![4 => Just(Place::Tail), 1 => Just(Place::Head)];
    prop_oneof![
        12 => (class, place).prop_map(|((c, claim), p)| Op::Enter(c, claim, p)),
        1 => Just(Op::EnterAborted),
        12 => any::<usize>().prop_map(Op::Leave),
        1 => any::<bool>().prop_map(Op::Block),
        2 => Just(Op::Unblock),
        1 => any::<usize>().prop_map(Op::Take),
    ]
}

struct Rig {
    dev: DevBlock<Item>,
    model: Model,
    inside: BTreeMap<usize, Item>,
    drained: Arc<AtomicUsize>,
    next: usize,
}

impl Rig {
    fn new() -> Self {
        Self {
            dev: DevBlock::new(),
            model: Model::default(),
            inside: BTreeMap::new(),
            drained: Arc::default(),
            next: 0,
        }
    }

    /// The items that came out, compared with who the model says has entered, in order.
    fn came_in(&mut self, items: impl IntoIterator<Item = Item>, want: &[usize]) {
        let mut got = Vec::new();
        for item in items {
            assert!(item.ticket.is_on_device());
            got.push(item.id);
            self.inside.insert(item.id, item);
        }
        assert_eq!(got, want);
        self.check();
    }

    fn check(&self) {
        let m = &self.model;
        assert_eq!(self.drained.load(Ordering::Relaxed), m.drained);
        assert_eq!(self.dev.on_dev_count(), m.on_dev.len() as u64);
        let waiting = m.waiting.len() + m.parked.len();
        assert_eq!(self.dev.blocked_count(), waiting);
        assert_eq!(self.dev.is_ext_blocked(), m.blocks > 0);
        let blocked = m.holder.is_some() || m.blocks > 0 || waiting > 0 || m.has_atomics();
        assert_eq!(self.dev.blocked.load(Ordering::Relaxed), blocked);
        assert_eq!(self.dev.is_idle(), !blocked && m.on_dev.is_empty());
    }

    fn enter(&mut self, class: Class, claim: Claim, place: Place) {
        let id = self.next;
        self.next += 1;
        let want = self.model.enter(id, class, claim.clone(), place);
        let item = Item::claiming(id, class, claim);
        match self.dev.enter(item, class, place) {
            Enter::Go(item) => self.came_in([item], &want),
            Enter::Queued { released } => self.came_in(released, &want),
        }
    }

    fn enter_aborted(&mut self) {
        let id = self.next;
        self.next += 1;
        let k = Known {
            id,
            class: Class::Normal,
            claim: Claim::Nothing,
            anonymous: true,
            aborted: true,
        };
        self.model.on_dev.insert(id, k);
        let mut item = Item::new(id, Class::Normal);
        item.aborted = true;
        match self.dev.enter(item, Class::Normal, Place::Tail) {
            Enter::Go(item) => self.came_in([item], &[id]),
            Enter::Queued { .. } => panic!("aborted commands are let in"),
        }
    }

    fn leave(&mut self, n: usize) {
        let Some(id) = self
            .inside
            .keys()
            .nth(n % self.inside.len().max(1))
            .copied()
        else {
            return;
        };
        let mut item = self.inside.remove(&id).expect("just found");
        let want = self.model.leave(id);
        let released = self.dev.leave(&mut item.ticket);
        assert!(
            self.dev.leave(&mut item.ticket).is_empty(),
            "leaving twice does nothing"
        );
        self.came_in(released, &want);
    }

    fn block(&mut self, wait: bool) {
        self.model.blocks += 1;
        let drained = Arc::clone(&self.drained);
        let f: DrainedFn = Box::new(move || {
            drained.fetch_add(1, Ordering::Relaxed);
        });
        if wait {
            self.model.pending_drain += 1;
        }
        assert!(self.model.settle().is_empty());
        self.dev.block(wait.then_some(f));
        self.check();
    }

    fn unblock(&mut self) {
        let m = &mut self.model;
        if m.blocks == m.early {
            return;
        }
        if m.blocks == m.early + 1 && m.pending_drain > 0 {
            m.early += 1;
        } else {
            m.blocks -= 1;
        }
        let want = m.settle();
        let released = self.dev.unblock();
        self.came_in(released, &want);
    }

    fn take(&mut self, n: usize) {
        let Some(id) = self.model.take(n) else {
            return;
        };
        let want = self.model.settle();
        let mut t = self.dev.take_blocked(|i| i.id == id);
        assert_eq!(t.taken.len(), 1);
        assert!(
            self.dev.leave(&mut t.taken[0].ticket).is_empty(),
            "it is outside"
        );
        self.came_in(t.released, &want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
    #[test]
    fn lets_in_exactly_who_the_list_says(ops in proptest::collection::vec(op(), 1..100)) {
        let mut rig = Rig::new();
        for op in ops {
            match op {
                Op::Enter(c, claim, p) => rig.enter(c, claim, p),
                Op::EnterAborted => rig.enter_aborted(),
                Op::Leave(n) => rig.leave(n),
                Op::Block(wait) => rig.block(wait),
                Op::Unblock => rig.unblock(),
                Op::Take(n) => rig.take(n),
            }
        }
        while rig.model.blocks > rig.model.early {
            rig.unblock();
        }
        while !rig.inside.is_empty() {
            rig.leave(0);
        }
        prop_assert!(rig.dev.is_idle(), "{:?}", rig.dev);
    }
}

#[test]
fn the_operator_ends_only_blocks_of_the_operator() {
    let dev: DevBlock<Item> = DevBlock::new();
    assert!(dev.try_unblock().is_none());
    dev.block_own();
    assert_eq!(dev.ext_blocks(), (0, false));
    assert!(dev.try_unblock().is_none());
    dev.block(None);
    assert_eq!(dev.ext_blocks(), (1, false));
    assert!(dev.unblock_own().is_empty());
    assert!(dev.is_ext_blocked());
    assert!(dev.try_unblock().is_some());
    assert!(dev.try_unblock().is_none() && dev.is_idle());
}

#[test]
fn bypassing_commands_are_not_counted() {
    let dev = DevBlock::new();
    dev.block(None);
    let Enter::Go(mut item) = dev.enter(Item::new(0, Class::Bypass), Class::Bypass, Place::Tail)
    else {
        panic!("nothing stops it")
    };
    assert!(!item.ticket.is_on_device());
    assert_eq!(dev.on_dev_count(), 0);
    assert!(dev.leave(&mut item.ticket).is_empty());
    assert!(dev.unblock().is_empty());
    assert!(dev.is_idle());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a plain thread is enough")]
fn waits_until_drained() {
    let dev = DevBlock::new();
    let item = Item::new(0, Class::Normal);
    let Enter::Go(mut item) = dev.enter(item, Class::Normal, Place::Tail) else {
        panic!("free")
    };
    let left = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !dev.is_ext_blocked() {
                std::hint::spin_loop();
            }
            left.store(true, Ordering::SeqCst);
            assert!(dev.leave(&mut item.ticket).is_empty());
        });
        dev.block_and_drain();
        assert!(left.load(Ordering::SeqCst));
    });
    assert!(dev.unblock().is_empty());
    assert!(dev.is_idle());
}

#[expect(
    clippy::disallowed_methods,
    reason = "waits for other threads of the test"
)]
fn yield_now() {
    std::thread::yield_now();
}

/// What the threads of the stress test look at.
struct Arena {
    dev: DevBlock<Item>,
    inside: AtomicI64,
    holders: AtomicI64,
    /// Nobody may be inside: a strictly serialized command is alone, or the device is drained and blocked.
    closed: AtomicI64,
    /// Who is on a block: 1 for each command, or [`ATOMIC`].
    touching: [AtomicI64; 3],
    done: AtomicUsize,
    done_by: [AtomicUsize; WORKERS],
    deadline: Instant,
}

const WORKERS: usize = 3;
const ATOMIC: i64 = 1000;

impl Arena {
    /// Is on its block for a while, and looks whether it should be alone there.
    fn touch(&self, claim: &Claim) {
        let (r, alone) = match claim {
            Claim::Range(r) => (r, false),
            Claim::Atomic(r) => (r, true),
            _ => return,
        };
        let block = &self.touching[r.lba as usize];
        let add = if alone { ATOMIC } else { 1 };
        let before = block.fetch_add(add, Ordering::SeqCst);
        for _ in 0..10 {
            let now = block.load(Ordering::SeqCst);
            assert!(
                before < ATOMIC && now < 2 * ATOMIC,
                "two where one is atomic"
            );
            assert!(!alone || now == ATOMIC, "not alone: {now}");
            race_point();
        }
        block.fetch_sub(add, Ordering::SeqCst);
    }

    fn run(&self, item: Item) {
        let mut todo = vec![item];
        while let Some(mut item) = todo.pop() {
            let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
            assert_eq!(
                self.closed.load(Ordering::SeqCst),
                0,
                "{:?} slipped in",
                item.class
            );
            let holds = matches!(item.class, Class::Serialized | Class::StrictlySerialized);
            if holds {
                assert_eq!(self.holders.fetch_add(1, Ordering::SeqCst), 0);
            }
            self.touch(&item.claim);
            if item.class == Class::StrictlySerialized {
                assert_eq!(inside, 1, "not alone");
                self.closed.fetch_add(1, Ordering::SeqCst);
                for _ in 0..20 {
                    assert_eq!(self.inside.load(Ordering::SeqCst), 1, "not alone any more");
                    std::hint::spin_loop();
                }
                self.closed.fetch_sub(1, Ordering::SeqCst);
            }
            if holds {
                self.holders.fetch_sub(1, Ordering::SeqCst);
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
            todo.extend(self.dev.leave(&mut item.ticket));
            self.done_by[item.id].fetch_add(1, Ordering::Relaxed);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn check_time(&self) {
        assert!(Instant::now() < self.deadline, "stuck: {:?}", self.dev);
        yield_now();
    }

    /// One command after the other, each until it is done.
    fn work(&self, me: usize, n: usize) {
        for id in 0..n {
            let block = range((id % 3) as u64, 1);
            let (class, place) = match id * 31 % 50 {
                0 => (Class::Serialized, Place::Tail),
                1 => (Class::StrictlySerialized, Place::Tail),
                2 => (Class::Serialized, Place::Head),
                3..10 => (Class::Atomic, Place::Tail),
                10 => (Class::Atomic, Place::Head),
                11..15 => (Class::Listed, Place::Tail),
                _ => (Class::Normal, Place::Tail),
            };
            let claim = match class {
                Class::Atomic => Claim::Atomic(block),
                Class::Normal | Class::Listed => Claim::Range(block),
                _ => Claim::Nothing,
            };
            match self
                .dev
                .enter(Item::claiming(me, class, claim), class, place)
            {
                Enter::Go(item) => self.run(item),
                Enter::Queued { released } => released.into_iter().for_each(|i| self.run(i)),
            }
            while self.done_by[me].load(Ordering::Relaxed) <= id {
                self.check_time();
            }
        }
    }

    /// Blocks and unblocks until the others are done, so that the flag changes all the time.
    fn block_all_the_time(self: &Arc<Self>, others: usize) {
        while self.done.load(Ordering::Relaxed) < others {
            let (told, arena) = (Arc::new(AtomicBool::new(false)), Arc::clone(self));
            let tell = Arc::clone(&told);
            self.dev.block(Some(Box::new(move || {
                assert_eq!(arena.inside.load(Ordering::SeqCst), 0, "not drained");
                arena.closed.fetch_add(1, Ordering::SeqCst);
                tell.store(true, Ordering::SeqCst);
            })));
            while !told.load(Ordering::SeqCst) {
                self.check_time();
            }
            for _ in 0..20 {
                assert_eq!(
                    self.inside.load(Ordering::SeqCst),
                    0,
                    "let in while blocked"
                );
                race_point();
            }
            self.closed.fetch_sub(1, Ordering::SeqCst);
            self.dev.unblock().into_iter().for_each(|i| self.run(i));
            for _ in 0..50 {
                std::hint::spin_loop();
            }
        }
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "plain threads, to race on purpose"
)]
fn keeps_its_promises_between_threads() {
    const N: usize = 40_000;
    let arena = Arc::new(Arena {
        dev: DevBlock::new(),
        inside: AtomicI64::new(0),
        holders: AtomicI64::new(0),
        closed: AtomicI64::new(0),
        touching: Default::default(),
        done: AtomicUsize::new(0),
        done_by: Default::default(),
        deadline: Instant::now() + Delta::from_secs(100),
    });
    std::thread::scope(|s| {
        for me in 0..WORKERS {
            let arena = &arena;
            s.spawn(move || arena.work(me, N));
        }
        s.spawn(|| arena.block_all_the_time(WORKERS * N));
    });
    assert_eq!(arena.done.load(Ordering::Relaxed), WORKERS * N);
    assert!(arena.dev.is_idle(), "{:?}", arena.dev);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "plain threads, to race on purpose"
)]
fn a_drain_is_never_missed() {
    // Each round races one command's way through the device with a block that waits for it to be gone.
    const ROUNDS: usize = 50_000;
    let dev = DevBlock::new();
    let (begun, gone) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let await_it = |what: &AtomicUsize, at_least: usize| {
        let deadline = Instant::now() + Delta::from_secs(60);
        while what.load(Ordering::SeqCst) < at_least {
            assert!(Instant::now() < deadline, "round {at_least}: {dev:?}");
            yield_now();
        }
    };
    let through = |mut item: Item| {
        race_point();
        assert!(dev.leave(&mut item.ticket).is_empty());
        gone.fetch_add(1, Ordering::SeqCst);
    };
    std::thread::scope(|s| {
        s.spawn(|| {
            for round in 1..=ROUNDS {
                await_it(&begun, round);
                match dev.enter(Item::new(round, Class::Normal), Class::Normal, Place::Tail) {
                    Enter::Go(item) => through(item),
                    Enter::Queued { released } => released.into_iter().for_each(through),
                }
            }
        });
        for round in 1..=ROUNDS {
            let told = Arc::new(AtomicUsize::new(0));
            let tell = Arc::clone(&told);
            begun.store(round, Ordering::SeqCst);
            race_point();
            dev.block(Some(Box::new(move || tell.store(1, Ordering::SeqCst))));
            await_it(&told, 1);
            dev.unblock().into_iter().for_each(through);
            await_it(&gone, round);
        }
    });
    assert!(dev.is_idle(), "{dev:?}");
}
