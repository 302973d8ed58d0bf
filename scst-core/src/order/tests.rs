//! The engine against a list of commands and the sentences of the module's documentation.

use super::*;
use kshim::time::{Delta, Instant};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

#[derive(Debug)]
struct Item {
    id: usize,
    ticket: OrderTicket,
    aborted: Arc<AtomicBool>,
}

impl Abortable for Item {
    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }
}

impl HasTicket for Item {
    fn ticket(&mut self) -> &mut OrderTicket {
        &mut self.ticket
    }
}

/// Where the model believes a command to be.
#[derive(Debug)]
enum At {
    /// Not asked for its turn yet.
    Waiting(Item),
    /// In the engine, for its turn.
    Parked,
    /// With the handler; `post_exec` is due.
    Exec(Item),
    /// `post_exec` was called; the handler is still busy.
    Busy(Item),
    /// Complete, its response is due.
    Complete(Item),
    /// In the engine: an ACA holds the response.
    Held,
    Finished,
}

struct Entry {
    at: At,
    q: QueueType,
    inc_on_done: bool,
    nexus: NexusId,
    allowed: bool,
    passed: bool,
    aborted: Arc<AtomicBool>,
}

impl Entry {
    fn numbered(&self) -> bool {
        matches!(self.q, QueueType::Simple | QueueType::Ordered)
    }

    fn item(&mut self) -> Item {
        match std::mem::replace(&mut self.at, At::Finished) {
            At::Waiting(i) | At::Exec(i) | At::Busy(i) | At::Complete(i) => i,
            at => panic!("the engine has it: {at:?}"),
        }
    }
}

/// The slow model: every command ever, oldest first.
struct Model {
    order: OrderData<Item>,
    cmds: Vec<Entry>,
    aca: Option<NexusId>,
    aca_cmd: Option<usize>,
}

impl Model {
    fn new() -> Self {
        Self {
            order: OrderData::new(),
            cmds: Vec::new(),
            aca: None,
            aca_cmd: None,
        }
    }

    fn hq_under_way(&self) -> bool {
        self.cmds
            .iter()
            .any(|c| c.q == QueueType::HeadOfQueue && !matches!(c.at, At::Finished))
    }

    /// The guarantee, word for word, and nothing stricter.
    fn may_go(&self, i: usize) -> bool {
        let c = &self.cmds[i];
        if self.aca.is_some() {
            return c.allowed;
        }
        if !c.numbered() {
            return true;
        }
        if self.hq_under_way() {
            return false;
        }
        (0..i).all(|j| {
            let a = &self.cmds[j];
            let conflict = a.q == QueueType::Ordered
                || c.q == QueueType::Ordered
                || self.cmds[j + 1..i]
                    .iter()
                    .any(|k| k.q == QueueType::Ordered);
            !a.numbered() || a.passed || !conflict
        })
    }

    fn request(&self, i: usize, naca: bool) -> AcaRequest {
        AcaRequest {
            nexus: self.cmds[i].nexus,
            queue_type: self.cmds[i].q,
            naca,
            preempt_and_abort: false,
            cmd: i as u64,
        }
    }

    fn arrive(&mut self, q: QueueType, inc_on_done: bool, nexus: u64, naca: bool) {
        let id = self.cmds.len();
        let nexus = NexusId(nexus);
        let aborted = Arc::new(AtomicBool::new(false));
        let mut item = Item {
            id,
            ticket: OrderTicket::default(),
            aborted: Arc::clone(&aborted),
        };
        self.cmds.push(Entry {
            at: At::Finished,
            q,
            inc_on_done,
            nexus,
            allowed: false,
            passed: false,
            aborted,
        });
        let is_aca = q == QueueType::Aca;
        let want = match self.aca {
            None if is_aca => AcaVerdict::InvalidMessage,
            None => AcaVerdict::Go,
            Some(n) if n == nexus && is_aca && self.aca_cmd.is_none() => AcaVerdict::Go,
            Some(n) if n == nexus => AcaVerdict::AcaActive,
            Some(_) if is_aca => AcaVerdict::InvalidMessage,
            Some(_) if naca => AcaVerdict::AcaActive,
            Some(_) => AcaVerdict::Busy,
        };
        let req = self.request(id, naca);
        assert_eq!(self.order.aca_check(&mut item.ticket, &req, false), want);
        if want != AcaVerdict::Go {
            // Never got a place in the order.
            self.cmds[id].q = QueueType::Untagged;
            return;
        }
        if is_aca {
            self.aca_cmd = Some(id);
            self.cmds[id].allowed = true;
        }
        self.order.set_sn(&mut item.ticket, q, inc_on_done);
        self.cmds[id].at = At::Waiting(item);
    }

    fn ask(&mut self, i: usize) {
        let item = self.cmds[i].item();
        let may = self.may_go(i);
        let aborted = item.is_aborted();
        self.cmds[i].at = match self.order.check_sn(item) {
            CheckSn::Proceed(item) => {
                assert!(may, "command {i} jumped the queue");
                At::Exec(item)
            }
            CheckSn::Deferred => {
                assert!(!may && !aborted, "command {i} waits for nothing");
                At::Parked
            }
            CheckSn::Aborted(item) => {
                assert!(!may && aborted);
                At::Complete(item)
            }
            CheckSn::AbortForQErr { .. } => panic!("QErr is 0 here"),
        };
    }

    /// Takes what an event released and checks that it is all that may go, and nothing else.
    fn take_released(&mut self, released: Released<Item>) {
        for item in released {
            let i = item.id;
            assert!(!item.is_aborted(), "aborted commands are taken out");
            match self.cmds[i].at {
                At::Parked => {
                    self.cmds[i].at = At::Exec(item);
                    assert!(self.may_go(i), "command {i} released too early");
                }
                At::Held => {
                    assert!(self.aca.is_none());
                    self.cmds[i].at = At::Complete(item);
                }
                ref at => panic!("{i} was not in the engine: {at:?}"),
            }
        }
        for i in 0..self.cmds.len() {
            if matches!(self.cmds[i].at, At::Parked) {
                assert!(!self.may_go(i), "command {i} is left behind");
            }
            assert!(self.aca.is_some() || !matches!(self.cmds[i].at, At::Held));
        }
    }

    /// The next step of a command that the engine does not have.
    fn step(&mut self, i: usize, naca: bool) {
        match self.cmds[i].at {
            At::Waiting(_) => self.ask(i),
            At::Exec(_) => {
                let mut item = self.cmds[i].item();
                if !self.cmds[i].inc_on_done {
                    self.cmds[i].passed = true;
                }
                let released = self.order.post_exec(&mut item.ticket);
                self.cmds[i].at = At::Busy(item);
                self.take_released(released);
            }
            At::Busy(_) => {
                let mut item = self.cmds[i].item();
                self.cmds[i].passed = true;
                let released = self.order.exec_done(&mut item.ticket);
                self.cmds[i].at = At::Complete(item);
                self.take_released(released);
            }
            At::Complete(_) => self.respond(i, naca),
            At::Parked | At::Held | At::Finished => {}
        }
    }

    fn respond(&mut self, i: usize, fail_with_naca: bool) {
        let mut item = self.cmds[i].item();
        let aborted = item.is_aborted();
        let held = self.aca.is_some() && !self.cmds[i].allowed;
        if fail_with_naca && !aborted {
            let req = self.request(i, true);
            item = match self.order.check_condition(item, &req, QErr::AllResume) {
                CheckCondition::Report { item, cleared } => {
                    assert!(!held && cleared.is_none());
                    self.aca = Some(self.cmds[i].nexus);
                    item
                }
                CheckCondition::Deferred => {
                    assert!(held);
                    self.cmds[i].at = At::Held;
                    return;
                }
                CheckCondition::Aborted(_) => panic!("not aborted"),
            };
        } else if !aborted {
            item = match self.order.check_response(item) {
                CheckSn::Proceed(item) => {
                    assert!(!held);
                    item
                }
                CheckSn::Deferred => {
                    assert!(held);
                    self.cmds[i].at = At::Held;
                    return;
                }
                other => panic!("{other:?}"),
            };
        }
        self.order.aca_cmd_done(&self.request(i, false));
        if self.aca_cmd == Some(i) {
            self.aca_cmd = None;
        }
        self.cmds[i].passed = true;
        let released = self.order.finish(&mut item.ticket);
        assert!(item.ticket.is_settled());
        self.take_released(released);
    }

    fn abort(&mut self, i: usize) {
        self.cmds[i].aborted.store(true, Ordering::SeqCst);
        let taken = self.order.take_deferred(|c| c.id == i);
        let parked = matches!(self.cmds[i].at, At::Parked | At::Held);
        assert_eq!(taken.len(), usize::from(parked));
        for item in taken {
            self.cmds[i].at = At::Complete(item);
        }
    }

    fn clear_aca(&mut self, by: NexusId) {
        match self.order.clear_aca(Some(by)) {
            Err(NotTheFaultedNexus) => assert!(self.aca.is_some_and(|n| n != by)),
            Ok(cleared) => {
                assert!(self.aca.is_none_or(|n| n == by));
                self.aca = None;
                let aca_cmd = self.aca_cmd.take();
                assert_eq!(cleared.abort, aca_cmd.map(|i| (by, i as u64)));
                self.take_released(cleared.released);
            }
        }
    }

    /// Lets everything come to its end: nothing may be left.
    fn drain(&mut self) {
        while self.cmds.iter().any(|c| !matches!(c.at, At::Finished)) {
            if let Some(n) = self.aca {
                self.clear_aca(n);
            }
            let before = self.order.deferred_count();
            let mut moved = false;
            for i in 0..self.cmds.len() {
                if !matches!(self.cmds[i].at, At::Parked | At::Held | At::Finished) {
                    moved = true;
                    self.step(i, false);
                }
            }
            assert!(moved, "{before} commands are stuck");
        }
        if let Some(n) = self.aca {
            self.clear_aca(n);
        }
        assert_eq!(self.order.deferred_count(), 0);
        assert_eq!(self.order.hq_cmd_count(), 0);
        assert!(self.order.is_idle());
        assert!(!Word(self.order.word.load(Ordering::Relaxed)).is_slow());
    }
}

#[derive(Clone, Debug)]
enum Op {
    Arrive(QueueType, bool, u64, bool),
    Step(usize, bool),
    Abort(usize),
    ClearAca(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let q = prop_oneof![
        6 => Just(QueueType::Simple),
        2 => Just(QueueType::Ordered),
        1 => Just(QueueType::HeadOfQueue),
        1 => Just(QueueType::Aca),
    ];
    prop_oneof![
        10 => (q, any::<bool>(), 1u64..3, any::<bool>())
            .prop_map(|(q, d, n, a)| Op::Arrive(q, d, n, a)),
        30 => (any::<usize>(), proptest::bool::weighted(0.03)).prop_map(|(i, n)| Op::Step(i, n)),
        2 => any::<usize>().prop_map(Op::Abort),
        1 => (1u64..3).prop_map(Op::ClearAca),
    ]
}

/// The `n`-th of the commands that are not finished.
fn pick(m: &Model, n: usize) -> Option<usize> {
    let live: Vec<usize> = (0..m.cmds.len())
        .filter(|i| !matches!(m.cmds[*i].at, At::Finished))
        .collect();
    (!live.is_empty()).then(|| live[n % live.len()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, ..ProptestConfig::default() })]
    #[test]
    fn lets_through_exactly_what_the_list_says(ops in proptest::collection::vec(op(), 1..120)) {
        let mut m = Model::new();
        for op in ops {
            match op {
                Op::Arrive(q, d, n, naca) => m.arrive(q, d, n, naca),
                Op::Step(n, naca) => if let Some(i) = pick(&m, n) { m.step(i, naca) },
                Op::Abort(n) => if let Some(i) = pick(&m, n) { m.abort(i) },
                Op::ClearAca(n) => m.clear_aca(NexusId(n)),
            }
        }
        m.drain();
    }
}

fn simple() -> Item {
    Item {
        id: 0,
        ticket: OrderTicket::default(),
        aborted: Arc::default(),
    }
}

#[test]
fn simple_commands_never_take_the_lock() {
    let order = OrderData::new();
    // Were the lock taken, this would dead-lock.
    let guard = order.state.lock();
    let mut items: Vec<Item> = (0..64).map(|_| simple()).collect();
    for i in &mut items {
        order.set_sn(&mut i.ticket, QueueType::Simple, false);
    }
    for i in items {
        let CheckSn::Proceed(mut i) = order.check_sn(i) else {
            panic!("held")
        };
        assert!(order.post_exec(&mut i.ticket).is_empty());
        assert!(order.finish(&mut i.ticket).is_empty());
    }
    assert!(order.is_idle());
    drop(guard);
}

#[test]
fn returns_to_the_fast_mode_while_commands_are_under_way() {
    let order = OrderData::new();
    let mut a = simple();
    order.set_sn(&mut a.ticket, QueueType::Simple, false);
    let mut hq = simple();
    order.set_sn(&mut hq.ticket, QueueType::HeadOfQueue, false);
    assert_eq!(order.hq_cmd_count(), 1);
    assert!(matches!(order.check_sn(a), CheckSn::Deferred));
    let mut a = order.finish(&mut hq.ticket).pop().expect("a may go");
    assert!(!Word(order.word.load(Ordering::Relaxed)).is_slow());
    let mut o = simple();
    order.set_sn(&mut o.ticket, QueueType::Ordered, true);
    let mut b = simple();
    order.set_sn(&mut b.ticket, QueueType::Simple, false);
    assert!(order.post_exec(&mut a.ticket).is_empty());
    let CheckSn::Proceed(mut o) = order.check_sn(o) else {
        panic!("held")
    };
    assert!(order.post_exec(&mut o.ticket).is_empty());
    assert!(order.exec_done(&mut o.ticket).is_empty());
    assert!(
        !Word(order.word.load(Ordering::Relaxed)).is_slow(),
        "b alone is left"
    );
    assert!(!order.is_idle());
    assert!(order.post_exec(&mut b.ticket).is_empty());
    assert!(order.is_idle());
}

#[test]
fn a_detached_ticket_passes_for_its_command() {
    let order = OrderData::<Item>::new();
    let mut t = OrderTicket::default();
    order.set_sn(&mut t, QueueType::Simple, false);
    let d = t.detach();
    assert!(t.is_settled());
    t.reattach(d);
    let mut d = t.detach();
    // The command comes to its end on another thread, before the handler's call returns.
    assert!(order.finish(&mut t).is_empty());
    assert!(!order.is_idle());
    assert!(order.post_exec(&mut d).is_empty());
    assert!(order.is_idle());
    // Those that count otherwise stay with the command.
    for (q, on_done) in [(QueueType::HeadOfQueue, false), (QueueType::Ordered, true)] {
        order.set_sn(&mut t, q, on_done);
        let mut d = t.detach();
        assert!(order.post_exec(&mut d).is_empty());
        assert!(!order.is_idle());
        t.reattach(d);
        assert!(order.finish(&mut t).is_empty());
        assert!(order.is_idle());
    }
}

#[test]
fn serial_numbers_wrap() {
    let order = OrderData::new();
    for _ in 0..100 {
        let mut i = simple();
        order.set_sn(&mut i.ticket, QueueType::Ordered, false);
        let CheckSn::Proceed(mut i) = order.check_sn(i) else {
            panic!("held")
        };
        assert!(order.post_exec(&mut i.ticket).is_empty());
    }
    assert!(order.is_idle());
    assert_eq!(
        Word(order.word.load(Ordering::Relaxed)).sn(),
        FIRST_SN.wrapping_add(100)
    );
}

#[test]
fn qerr_aborts_what_runs_into_an_aca() {
    for (qerr, same, other) in [
        (QErr::AllResume, None, None),
        (QErr::AbortAll, Some(false), Some(true)),
        (QErr::AbortThisNexus, Some(false), None),
    ] {
        let order = OrderData::new();
        let req = |n| AcaRequest {
            nexus: NexusId(n),
            queue_type: QueueType::Simple,
            naca: true,
            preempt_and_abort: false,
            cmd: 0,
        };
        let mut items = Vec::new();
        for n in [1, 1, 2] {
            let mut i = simple();
            assert_eq!(
                order.aca_check(&mut i.ticket, &req(n), false),
                AcaVerdict::Go
            );
            order.set_sn(&mut i.ticket, QueueType::Simple, true);
            items.push(i);
        }
        let c = items.remove(0);
        let r = order.check_condition(c, &req(1), qerr);
        assert!(matches!(r, CheckCondition::Report { cleared: None, .. }));
        assert_eq!(order.aca_nexus(), Some(NexusId(1)));
        for (item, want) in items.into_iter().zip([same, other]) {
            match (order.check_sn(item), want) {
                (CheckSn::Deferred, None) => {}
                (CheckSn::AbortForQErr { by_other_nexus, .. }, Some(w)) => {
                    assert_eq!(by_other_nexus, w);
                }
                (got, want) => panic!("{qerr:?}: {got:?} instead of {want:?}"),
            }
        }
    }
}

#[test]
fn a_failing_aca_command_ends_the_aca_or_renews_it() {
    let order = OrderData::new();
    let req = |q, naca, cmd| AcaRequest {
        nexus: NexusId(1),
        queue_type: q,
        naca,
        preempt_and_abort: false,
        cmd,
    };
    let faulted = simple();
    let _ = order.check_condition(faulted, &req(QueueType::Simple, true, 1), QErr::AllResume);
    let mut aca = simple();
    let r = req(QueueType::Aca, true, 2);
    assert_eq!(order.aca_check(&mut aca.ticket, &r, false), AcaVerdict::Go);
    let mut second = simple();
    let r3 = req(QueueType::Aca, true, 3);
    assert_eq!(
        order.aca_check(&mut second.ticket, &r3, false),
        AcaVerdict::AcaActive
    );
    let CheckCondition::Report {
        item: mut aca,
        cleared: None,
    } = order.check_condition(aca, &r, QErr::AllResume)
    else {
        panic!("renewed")
    };
    order.aca_cmd_done(&r);
    assert!(order.finish(&mut aca.ticket).is_empty());
    let mut third = simple();
    let r4 = req(QueueType::Aca, false, 4);
    assert_eq!(
        order.aca_check(&mut third.ticket, &r4, true),
        AcaVerdict::AcaActive,
        "TMF_ONLY"
    );
    assert_eq!(
        order.aca_check(&mut third.ticket, &r4, false),
        AcaVerdict::Go
    );
    let CheckCondition::Report {
        cleared: Some(c), ..
    } = order.check_condition(third, &r4, QErr::AllResume)
    else {
        panic!("ended")
    };
    assert_eq!(c.abort, None, "it ends itself");
    assert!(c.released.is_empty());
    assert!(order.is_idle());
}

/// Initiators number their commands as they like, so those of several have the same tags.
#[test]
fn another_nexus_with_the_same_tag_is_another_command() {
    let order = OrderData::new();
    let req = |nexus, q, naca| AcaRequest {
        nexus: NexusId(nexus),
        queue_type: q,
        naca,
        preempt_and_abort: false,
        cmd: 7,
    };
    let faulted = req(1, QueueType::Simple, true);
    let _ = order.check_condition(simple(), &faulted, QErr::AllResume);
    let mut aca = simple();
    let lives_by_it = req(1, QueueType::Aca, false);
    let go = order.aca_check(&mut aca.ticket, &lives_by_it, false);
    assert_eq!(go, AcaVerdict::Go);
    // Refused, and nothing else comes of it.
    let mut other = simple();
    let refused = req(2, QueueType::Aca, true);
    let verdict = order.aca_check(&mut other.ticket, &refused, false);
    assert_eq!(verdict, AcaVerdict::InvalidMessage);
    let reported = order.check_condition(other, &refused, QErr::AllResume);
    assert!(matches!(
        reported,
        CheckCondition::Report { cleared: None, .. }
    ));
    order.aca_cmd_done(&refused);
    assert_eq!(order.aca_nexus(), Some(NexusId(1)));
    assert!(order.clear_aca(Some(NexusId(2))).is_err());
    let cleared = order.clear_aca(Some(NexusId(1))).expect("its own");
    assert_eq!(cleared.abort, Some((NexusId(1), 7)));
}

#[test]
fn policy_maps_attributes_as_scst_does() {
    use QueueType::{Aca, HeadOfQueue, Ordered, Simple, Untagged};
    let free = OrderPolicy::default();
    let strict = OrderPolicy {
        restricted_reorder: true,
        has_own_order_mgmt: false,
    };
    for (q, implicit, want_free, want_strict) in [
        (Simple, false, Simple, Ordered),
        (Untagged, false, Simple, Ordered),
        (Untagged, true, Simple, Ordered),
        (Simple, true, HeadOfQueue, HeadOfQueue),
        (Ordered, true, Ordered, Ordered),
        (HeadOfQueue, false, HeadOfQueue, HeadOfQueue),
        (Aca, false, Aca, Aca),
    ] {
        assert_eq!(free.queue_type(q, implicit), want_free);
        assert_eq!(strict.queue_type(q, implicit), want_strict);
    }
    assert!(!free.inc_expected_on_done(Simple, false));
    assert!(free.inc_expected_on_done(Simple, true));
    assert!(free.inc_expected_on_done(Ordered, false));
    assert!(strict.inc_expected_on_done(Simple, false));
    let own = OrderPolicy {
        restricted_reorder: true,
        has_own_order_mgmt: true,
    };
    assert!(!own.inc_expected_on_done(Ordered, false));
}

/// What the threads of the stress test share.
struct Arena {
    order: OrderData<Item>,
    kinds: Vec<QueueType>,
    passed: Vec<AtomicBool>,
    /// Number of commands that came, in the order of their `set_sn`.
    arrived: SpinLock<usize>,
    /// Everything below is passed.
    low: AtomicUsize,
    finished: AtomicUsize,
}

impl Arena {
    fn run(&self, first: Item, async_queue: &SpinLock<Vec<Item>>) {
        let mut todo = vec![first];
        while let Some(mut item) = todo.pop() {
            self.check_turn(item.id);
            if item.id % 3 == 0 {
                async_queue.lock().push(item);
                continue;
            }
            self.complete(&mut item, &mut todo);
        }
    }

    fn complete(&self, item: &mut Item, todo: &mut Vec<Item>) {
        self.passed[item.id].store(true, Ordering::Relaxed);
        todo.extend(self.order.post_exec(&mut item.ticket));
        todo.extend(self.order.exec_done(&mut item.ticket));
        todo.extend(self.order.finish(&mut item.ticket));
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    fn check_turn(&self, id: usize) {
        let first = match self.kinds[id] {
            QueueType::Ordered => id,
            QueueType::Simple => {
                match self.kinds[..id]
                    .iter()
                    .rposition(|k| *k == QueueType::Ordered)
                {
                    Some(o) => o + 1,
                    None => return,
                }
            }
            _ => return,
        };
        let low = self.low.load(Ordering::Relaxed).min(first);
        for j in low..first {
            let counts = self.kinds[j] != QueueType::HeadOfQueue;
            assert!(
                !counts || self.passed[j].load(Ordering::Relaxed),
                "{id} before {j}"
            );
        }
        self.low.fetch_max(first, Ordering::Relaxed);
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "plain threads, to race on purpose"
)]
fn keeps_the_order_between_threads() {
    const N: usize = 300_000;
    const THREADS: usize = 3;
    let kinds = (0..N)
        .map(|i| match i * 7919 % 1000 {
            0..10 => QueueType::Ordered,
            10..15 => QueueType::HeadOfQueue,
            // Long stretches of SIMPLE let the fast mode come back.
            _ => QueueType::Simple,
        })
        .collect();
    let arena = Arena {
        order: OrderData::new(),
        kinds,
        passed: (0..N).map(|_| AtomicBool::new(false)).collect(),
        arrived: SpinLock::new(0),
        low: AtomicUsize::new(0),
        finished: AtomicUsize::new(0),
    };
    let async_queue = SpinLock::new(Vec::new());
    let deadline = Instant::now() + Delta::from_secs(100);
    std::thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                loop {
                    let mut item = simple();
                    {
                        let mut arrived = arena.arrived.lock();
                        item.id = *arrived;
                        if item.id < N {
                            *arrived += 1;
                            let q = arena.kinds[item.id];
                            let on_done = q == QueueType::Ordered;
                            arena.order.set_sn(&mut item.ticket, q, on_done);
                        }
                    }
                    if item.id < N
                        && let CheckSn::Proceed(item) = arena.order.check_sn(item)
                    {
                        arena.run(item, &async_queue);
                    }
                    let late = async_queue.lock().pop();
                    if let Some(mut late) = late {
                        let mut todo = Vec::new();
                        arena.complete(&mut late, &mut todo);
                        for item in todo {
                            arena.run(item, &async_queue);
                        }
                    }
                    if arena.finished.load(Ordering::Relaxed) == N {
                        break;
                    }
                    assert!(Instant::now() < deadline, "stuck: {:?}", arena.order);
                }
            });
        }
    });
    assert!(arena.order.is_idle());
    assert_eq!(arena.order.deferred_count(), 0);
}
