//! Claims against sets of blocks, and the list against one that is searched from its head each time.

use super::*;
use proptest::prelude::*;

fn range(lba: u64, blocks: u64) -> BlockRange {
    BlockRange { lba, blocks }
}

#[test]
fn ranges_at_the_end_of_the_world_do_not_wrap() {
    let last = range(u64::MAX, 1);
    assert!(last.overlaps(last));
    assert!(last.overlaps(range(u64::MAX - 1, u64::MAX)));
    assert!(!last.overlaps(range(0, 10)));
    assert!(!range(5, 0).overlaps(range(0, 10)));
    assert!(!range(0, 10).overlaps(range(5, 0)));
}

fn claims() -> impl Strategy<Value = Claim> {
    let some = || (0..20u64, 0..5u64).prop_map(|(lba, n)| range(lba, n));
    prop_oneof![
        Just(Claim::Nothing),
        Just(Claim::Reserve),
        some().prop_map(Claim::Range),
        some().prop_map(Claim::Atomic),
        proptest::collection::vec(some(), 0..4).prop_map(|v| Claim::Ranges(v.into())),
    ]
}

fn blocks_of(c: &Claim) -> Vec<u64> {
    let ranges = match c {
        Claim::Nothing | Claim::Reserve => Vec::new(),
        Claim::Range(r) | Claim::Atomic(r) => vec![*r],
        Claim::Ranges(all) => all.to_vec(),
    };
    ranges
        .iter()
        .flat_map(|r| r.lba..r.lba + r.blocks)
        .collect()
}

#[derive(Clone, Debug)]
enum Op {
    Add(Claim),
    LetIn(bool),
    Remove(usize),
    Take(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => claims().prop_map(Op::Add),
        4 => any::<bool>().prop_map(Op::LetIn),
        3 => any::<usize>().prop_map(Op::Remove),
        1 => any::<usize>().prop_map(Op::Take),
    ]
}

proptest! {
    #[test]
    fn claims_conflict_where_blocks_do(a in claims(), b in claims()) {
        let shared = blocks_of(&a).iter().any(|x| blocks_of(&b).contains(x));
        let reserve = a == Claim::Reserve || b == Claim::Reserve;
        let want = (a.is_atomic() || b.is_atomic()) && (shared || reserve);
        prop_assert_eq!(a.conflicts(&b), want);
        prop_assert_eq!(b.conflicts(&a), want);
    }

    #[test]
    fn lets_in_the_oldest_that_nothing_stands_before(
        ops in proptest::collection::vec(op(), 1..120)
    ) {
        let mut list = Overlap::new();
        // All in order: number, claim, whether on the device by which entry.
        let mut model: Vec<(usize, Claim, Option<EntryId>)> = Vec::new();
        let mut next = 0;
        for op in ops {
            match op {
                Op::Add(claim) => {
                    list.add(claim.clone(), next);
                    model.push((next, claim, None));
                    next += 1;
                }
                Op::LetIn(atomic_may) => {
                    let free = (0..model.len()).find(|&at| {
                        let (_, claim, inside) = &model[at];
                        inside.is_none()
                            && (atomic_may || !claim.is_atomic())
                            && !model[..at].iter().any(|(_, c, _)| c.conflicts(claim))
                    });
                    let got = list.next_ready(|| atomic_may);
                    prop_assert_eq!(got.map(|(_, n)| n), free.map(|at| model[at].0));
                    if let (Some(at), Some((id, _))) = (free, got) {
                        model[at].2 = Some(id);
                    }
                }
                Op::Remove(n) => {
                    let inside = model.iter().filter(|m| m.2.is_some()).count();
                    let Some(n) = n.checked_rem(inside) else { continue };
                    let id = model.iter().filter_map(|m| m.2).nth(n).unwrap();
                    list.remove(id);
                    list.remove(id);
                    model.retain(|m| m.2 != Some(id));
                }
                Op::Take(n) => {
                    let waiting = model.iter().filter(|m| m.2.is_none()).count();
                    let Some(n) = n.checked_rem(waiting) else { continue };
                    let who = model.iter().filter(|m| m.2.is_none()).nth(n).unwrap().0;
                    let mut out = Vec::new();
                    list.take(|i| *i == who, &mut out);
                    prop_assert_eq!(out, vec![who]);
                    model.retain(|m| m.0 != who);
                }
            }
            let inside = model.iter().filter(|m| m.2.is_some()).count();
            prop_assert_eq!(list.inside(), inside);
            prop_assert_eq!(list.waiting(), model.len() - inside);
            prop_assert_eq!(list.has_atomics(), model.iter().any(|m| m.1.is_atomic()));
        }
    }
}
