//! The queues of a session against plain lists.

use super::*;
use crate::sense::key::UNIT_ATTENTION;
use proptest::prelude::*;

const LUNS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Set(usize, Sense),
    SetAll,
    Take(usize),
    TakeAndLose(usize),
    ReportLuns,
    ReplaceInitial(usize),
    Clear(usize),
}

fn ua() -> impl Strategy<Value = Sense> {
    prop_oneof![
        Just(RESET_UA),
        Just(NEXUS_LOSS_UA),
        (0x2au8..0x2c, 0u8..24).prop_map(|(asc, q)| Sense::new(UNIT_ATTENTION, asc, q)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..LUNS, ua()).prop_map(|(l, u)| Op::Set(l, u)),
        4 => Just(Op::SetAll),
        8 => (0..LUNS).prop_map(Op::Take),
        4 => (0..LUNS).prop_map(Op::TakeAndLose),
        1 => Just(Op::ReportLuns),
        1 => (0..LUNS).prop_map(Op::ReplaceInitial),
        1 => (0..LUNS).prop_map(Op::Clear),
    ]
}

fn model_set(list: &mut Vec<Sense>, ua: Sense, head: bool) {
    if list.contains(&ua) {
        return;
    }
    if list.len() == MAX_UA {
        *list = vec![RESET_UA];
    } else if head {
        list.insert(0, ua);
    } else {
        list.push(ua);
    }
}

fn model_take(lists: &mut [Vec<Sense>], lun: usize) -> Option<Sense> {
    if lists[lun].is_empty() {
        return None;
    }
    let ua = lists[lun].remove(0);
    if ua == REPORTED_LUNS_DATA_CHANGED {
        lists.iter_mut().for_each(|l| l.retain(|u| *u != ua));
    }
    Some(ua)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_lists(ops in proptest::collection::vec(op(), 1..200)) {
        let scope = UaScope::new();
        let queues: Vec<UaQueue> = (0..LUNS).map(|_| UaQueue::new()).collect();
        let mut lists: Vec<Vec<Sense>> = vec![Vec::new(); LUNS];
        for op in ops {
            match op {
                Op::Set(l, u) => {
                    queues[l].check_set(u, UaPlace::of(u));
                    model_set(&mut lists[l], u, u == NEXUS_LOSS_UA);
                }
                Op::SetAll => {
                    scope.set_all(&queues, REPORTED_LUNS_DATA_CHANGED, UaPlace::Tail);
                    lists.iter_mut().for_each(|l| model_set(l, REPORTED_LUNS_DATA_CHANGED, false));
                }
                Op::Take(l) => {
                    prop_assert_eq!(queues[l].take(&scope, || &queues), model_take(&mut lists, l));
                }
                Op::TakeAndLose(l) => {
                    let got = queues[l].take(&scope, || &queues);
                    prop_assert_eq!(got, model_take(&mut lists, l));
                    if let Some(u) = got {
                        queues[l].undelivered(u, &scope, || &queues);
                        if is_global(u) {
                            lists.iter_mut().for_each(|list| model_set(list, u, true));
                        } else {
                            model_set(&mut lists[l], u, true);
                        }
                        prop_assert_eq!(queues[l].peek(), Some(u), "it is the next again");
                    }
                }
                Op::ReportLuns => {
                    scope.remove_all(&queues, REPORTED_LUNS_DATA_CHANGED);
                    lists.iter_mut().for_each(|l| l.retain(|u| *u != REPORTED_LUNS_DATA_CHANGED));
                }
                Op::ReplaceInitial(l) => {
                    let first = lists[l].first() == Some(&RESET_UA);
                    prop_assert_eq!(queues[l].replace_initial(NEXUS_LOSS_UA), first);
                    if first {
                        lists[l].retain(|u| *u != NEXUS_LOSS_UA);
                        lists[l][0] = NEXUS_LOSS_UA;
                    }
                }
                Op::Clear(l) => {
                    queues[l].clear();
                    lists[l].clear();
                }
            }
            for (q, l) in queues.iter().zip(&lists) {
                prop_assert_eq!(&q.snapshot(), l);
                prop_assert_eq!(q.has_pending(), !l.is_empty());
                prop_assert_eq!((q.len(), q.is_empty()), (l.len(), l.is_empty()));
            }
        }
    }
}

#[test]
fn too_many_become_one_that_says_it_all() {
    let q = UaQueue::new();
    for n in 0..MAX_UA as u8 {
        assert_eq!(
            q.check_set(Sense::new(6, 0x70, n), UaPlace::Tail),
            UaSet::Queued
        );
    }
    assert_eq!(
        q.check_set(Sense::new(6, 0x70, 0), UaPlace::Tail),
        UaSet::Duplicate
    );
    assert_eq!(
        q.check_set(Sense::new(6, 0x71, 0), UaPlace::Tail),
        UaSet::Overflow
    );
    assert_eq!(q.snapshot(), [RESET_UA]);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "plain threads, to race on purpose"
)]
fn a_global_one_is_delivered_once_whoever_asks() {
    use std::sync::atomic::AtomicUsize;
    let scope = UaScope::new();
    let queues: Vec<UaQueue> = (0..4).map(|_| UaQueue::new()).collect();
    let (delivered, round) = (AtomicUsize::new(0), AtomicUsize::new(0));
    const ROUNDS: usize = 2000;
    for n in 0..ROUNDS {
        // Every other round a local one stands before it on one LUN.
        if n % 2 == 0 {
            queues[0].check_set(RESET_UA, UaPlace::Tail);
        }
        scope.set_all(&queues, REPORTED_LUNS_DATA_CHANGED, UaPlace::Tail);
        if n % 100 == 0 {
            std::thread::scope(|s| {
                for q in &queues {
                    s.spawn(|| {
                        while let Some(u) = q.take(&scope, || &queues) {
                            delivered.fetch_add(usize::from(is_global(u)), Ordering::Relaxed);
                        }
                    });
                }
            });
            round.fetch_add(1, Ordering::Relaxed);
            assert_eq!(
                delivered.load(Ordering::Relaxed),
                round.load(Ordering::Relaxed)
            );
        }
    }
}
