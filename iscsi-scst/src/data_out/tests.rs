//! Bursts against a byte map, with a payload that only counts.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests may fail loudly"
)]

use super::*;
use proptest::prelude::*;
use std::cell::Cell;
use std::rc::Rc;

/// A command that counts how many of its kind there are.
#[derive(Debug)]
struct Fake {
    write_len: u32,
    room: u32,
    admitted: bool,
    failed: bool,
    alive: Rc<Cell<i32>>,
}

impl Fake {
    fn new(write_len: u32, alive: &Rc<Cell<i32>>) -> Self {
        alive.set(alive.get() + 1);
        Self {
            write_len,
            room: 0,
            admitted: false,
            failed: false,
            alive: Rc::clone(alive),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

impl Payload for Fake {
    fn write_len(&self) -> u32 {
        self.write_len
    }
    fn make_room(&mut self, upto: u32, _whole: bool) -> kshim::error::Result {
        self.room = self.room.max(upto.min(self.write_len));
        Ok(())
    }
    fn set_admitted(&mut self) {
        self.admitted = true;
    }
}

/// Offsets and lengths.
type Pieces = Vec<(u32, u32)>;

const ITT: Itt = Itt(7);

fn new_wait(immediate: u32, unsolicited_end: Option<u32>) -> NewWait {
    NewWait {
        itt: ITT,
        lun: [0; 8],
        immediate,
        unsolicited_end,
        in_pdu: false,
    }
}

fn fixture() -> (DataWaits<Fake>, Rc<Cell<i32>>) {
    (DataWaits::new(false), Rc::new(Cell::new(0)))
}

fn data(ttt: Option<Ttt>, offset: u32, len: u32, is_final: bool) -> DataOut {
    DataOut {
        itt: ITT,
        ttt,
        offset,
        len,
        data_sn: DataSn(0),
        is_final,
    }
}

/// The PDU with the number that is expected of it.
fn numbered(waits: &DataWaits<Fake>, pdu: &DataOut) -> DataOut {
    let mut pdu = *pdu;
    if let Some(at) = waits.by_itt.get(&pdu.itt) {
        let wait = &waits.slab[*at];
        let key = WaitKey {
            at: *at,
            generation: wait.generation,
        };
        let burst = match find_burst(wait, key, &pdu) {
            Some(BurstId::Unsolicited) => wait.unsolicited.as_ref(),
            Some(BurstId::Solicited(at)) => wait.solicited.iter().find(|b| b.offset == at),
            None => None,
        };
        pdu.data_sn = burst.map_or(DataSn(0), |b| b.data_sn);
    }
    pdu
}

/// Sends one PDU; an error fails the command, as the caller does.
fn send(waits: &mut DataWaits<Fake>, pdu: &DataOut) -> Step<Fake> {
    let pdu = numbered(waits, pdu);
    let Some(accepted) = waits.accept(&pdu) else {
        return Step::Wait;
    };
    if accepted.error.is_some() || waits.pdu_done(&accepted).is_err() {
        waits.fail(accepted.key, |c| c.failed = true);
        let _ = waits.pdu_done(&accepted);
    }
    waits.step(accepted.key)
}

#[test]
fn unsolicited_data_then_r2ts_complete_a_command() {
    let (mut waits, alive) = fixture();
    let key = waits
        .insert(Fake::new(1000, &alive), &new_wait(100, Some(300)))
        .unwrap();
    assert!(matches!(waits.step(key), Step::Wait));
    assert!(matches!(
        send(&mut waits, &data(None, 100, 100, false)),
        Step::Wait
    ));
    // The initiator stops short of what it could send unasked.
    assert!(matches!(
        send(&mut waits, &data(None, 200, 50, true)),
        Step::AskMore(_)
    ));
    let a = waits.next_r2t(key, 400, 2).unwrap();
    let b = waits.next_r2t(key, 400, 2).unwrap();
    assert!(waits.next_r2t(key, 400, 2).is_none());
    assert_eq!((a.offset, a.len, b.offset, b.len), (250, 400, 650, 350));
    assert_eq!((a.r2t_sn.0, b.r2t_sn.0), (0, 1));
    assert!(matches!(
        send(&mut waits, &data(Some(b.ttt), 650, 350, true)),
        Step::AskMore(_)
    ));
    assert!(matches!(
        send(&mut waits, &data(Some(a.ttt), 250, 400, true)),
        Step::Complete(_)
    ));
    assert!(!waits.contains(ITT));
    assert_eq!(alive.get(), 0);
}

#[test]
fn a_failed_command_ends_with_its_last_outstanding_burst() {
    let (mut waits, alive) = fixture();
    let key = waits
        .insert(Fake::new(800, &alive), &new_wait(0, None))
        .unwrap();
    assert!(matches!(waits.step(key), Step::AskMore(_)));
    let a = waits.next_r2t(key, 400, 2).unwrap();
    let b = waits.next_r2t(key, 400, 2).unwrap();
    // Too short for its F bit.
    assert!(matches!(
        send(&mut waits, &data(Some(a.ttt), 0, 100, true)),
        Step::Wait
    ));
    assert!(waits.contains(ITT));
    assert!(matches!(
        send(&mut waits, &data(Some(b.ttt), 400, 400, false)),
        Step::Wait
    ));
    let last = send(&mut waits, &data(Some(b.ttt), 800, 0, true));
    assert!(matches!(last, Step::Fail(ref c) if c.failed));
}

#[test]
fn the_f_bit_of_refused_data_counts() {
    for pdu in [
        data(None, 0, 10, true),
        data(None, 100, 5000, true),
        data(None, 4000, 1, true),
    ] {
        let (mut waits, alive) = fixture();
        waits
            .insert(Fake::new(1000, &alive), &new_wait(100, Some(300)))
            .unwrap();
        let end = send(&mut waits, &pdu);
        assert!(
            matches!(end, Step::Fail(ref c) if c.failed),
            "{pdu:?}: {end:?}"
        );
        drop(end);
        assert_eq!(alive.get(), 0);
    }
}

#[test]
fn held_answers_wait_for_the_f_bit() {
    let (mut waits, alive) = fixture();
    let key = waits.hold_answer(Fake::new(0, &alive), &new_wait(512, Some(65536)));
    assert!(matches!(waits.step(key), Step::Wait));
    assert!(matches!(
        send(&mut waits, &data(None, 512, 1 << 20, false)),
        Step::Wait
    ));
    assert!(matches!(
        send(&mut waits, &data(None, 0, 4, true)),
        Step::Answer(_)
    ));
}

#[test]
fn an_abort_during_a_pdu_leaves_nothing_behind() {
    let (mut waits, alive) = fixture();
    let key = waits
        .insert(Fake::new(800, &alive), &new_wait(0, Some(800)))
        .unwrap();
    let accepted = waits.accept(&data(None, 0, 400, false)).unwrap();
    assert!(matches!(waits.take_aborted(|_| true), Some(Taken::Cmd(_))));
    assert!(waits.cmd_mut(key).is_none());
    // The tag is free again, also while the rest of the PDU is swallowed.
    assert!(!waits.contains(ITT));
    let second = waits
        .insert(Fake::new(800, &alive), &new_wait(0, Some(800)))
        .unwrap();
    assert!(waits.pdu_done(&accepted).is_ok());
    assert!(matches!(waits.step(key), Step::Wait));
    assert!(waits.contains(ITT) && waits.cmd_mut(second).is_some());
    assert!(waits.take_all().len() == 1 && alive.get() == 0);
}

#[test]
fn the_share_lets_commands_in_one_after_the_other() {
    let (mut waits, alive) = fixture();
    let big = u32::try_from(WRITE_SHARE / 2).unwrap();
    let mut keys = Vec::new();
    for n in 0..4 {
        let new = NewWait {
            itt: Itt(n),
            ..new_wait(0, None)
        };
        keys.push(waits.insert(Fake::new(big, &alive), &new).unwrap());
    }
    let may = |w: &mut DataWaits<Fake>, n: usize| w.next_r2t(keys[n], 4096, 1).is_some();
    assert!(may(&mut waits, 0) && may(&mut waits, 1) && !may(&mut waits, 2));
    assert!(waits.has_queued() && waits.admit().is_none());
    // A small one does not overtake.
    let small = waits.insert(
        Fake::new(512, &alive),
        &NewWait {
            itt: Itt(9),
            ..new_wait(0, None)
        },
    );
    assert!(waits.next_r2t(small.unwrap(), 4096, 1).is_none());
    waits.leave(big);
    assert_eq!(waits.admit(), Some(keys[2]));
    assert_eq!(waits.admit(), None);
    waits.leave(big);
    assert_eq!(waits.admit(), Some(keys[3]));
    waits.leave(big);
    assert!(waits.admit().is_some() && waits.admit().is_none() && !waits.has_queued());
    drop(waits);
    assert_eq!(alive.get(), 0);
}

#[test]
fn a_command_beyond_the_whole_share_is_let_in_alone() {
    let (mut waits, alive) = fixture();
    let key = waits
        .insert(Fake::new(u32::MAX, &alive), &new_wait(0, None))
        .unwrap();
    assert!(waits.next_r2t(key, 4096, 1).is_some());
}

/// A burst and its bytes as a map.
fn check_claims(len: u32, in_order: bool, claims: &[(u32, u32)]) {
    let mut burst = Burst::new(1000, len);
    let mut map = vec![false; len as usize];
    for &(at, n) in claims {
        let got = burst.claim(1000 + at, n, in_order);
        let end = at.saturating_add(n);
        let inside = end <= len;
        let next = map.iter().position(|b| !b).unwrap_or(map.len()) as u32;
        let free = inside && map[at as usize..end as usize].iter().all(|b| !b);
        let fits = free && at >= next && (!in_order || at == next);
        if burst.runs.len() < MAX_RUNS {
            assert_eq!(got.is_ok(), fits, "{at}+{n} of {len}, {claims:?}");
        }
        if got.is_ok() {
            map[at as usize..end as usize].fill(true);
        }
        let next = map.iter().position(|b| !b).unwrap_or(map.len()) as u32;
        assert_eq!(burst.got, next);
        assert_eq!(burst.is_complete(), map.iter().all(|b| *b));
        assert!(burst.runs.windows(2).all(|w| w[0].1 < w[1].0));
    }
}

/// Cuts `len` bytes at random and shuffles the pieces.
fn pieces(len: u32) -> impl Strategy<Value = Pieces> {
    proptest::collection::vec(1..len, 0..12).prop_flat_map(move |mut cuts| {
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts.dedup();
        let pieces: Vec<_> = cuts.windows(2).map(|w| (w[0], w[1] - w[0])).collect();
        Just(pieces).prop_shuffle()
    })
}

proptest! {
    #[test]
    fn claims_agree_with_a_byte_map(
        len in 1u32..64,
        in_order: bool,
        claims in proptest::collection::vec((0u32..70, 0u32..20), 0..40),
    ) {
        check_claims(len, in_order, &claims);
    }

    #[test]
    fn all_pieces_in_any_order_complete_a_burst(claims in pieces(500)) {
        check_claims(500, false, &claims);
        let mut burst = Burst::new(0, 500);
        for (at, n) in claims {
            prop_assert!(burst.claim(at, n, false).is_ok());
        }
        prop_assert!(burst.is_complete() && burst.runs.is_empty());
    }

    /// A whole command: immediate, unsolicited and solicited data, bursts in any order, PDUs in any order within them.
    #[test]
    fn commands_complete_exactly_when_all_bytes_are_there(
        write_len in 1u32..3000,
        extra in 0u32..500,
        immediate in 0u32..600,
        unsolicited in proptest::option::of(0u32..800),
        max_burst in 1u32..900,
        max_r2t in 1u32..5,
        seed: u64,
    ) {
        let expected = write_len + extra;
        let immediate = immediate.min(expected);
        let mut random = seed | 1;
        let mut pick = move |n: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % n.max(1) as u64) as usize
        };
        let (mut waits, alive) = fixture();
        let end = unsolicited.map(|u| (immediate + u).min(expected));
        let key = waits.insert(Fake::new(write_len, &alive), &new_wait(immediate, end)).unwrap();
        let mut there = vec![false; expected as usize];
        there[..immediate as usize].fill(true);
        let mut todo: Vec<(Option<Ttt>, Pieces)> = Vec::new();
        let cut = |from: u32, to: u32, pick: &mut dyn FnMut(usize) -> usize| {
            let mut out = Vec::new();
            let mut at = from;
            while at < to {
                let n = 1 + pick((to - at) as usize) as u32;
                out.push((at, n));
                at += n;
            }
            for i in (1..out.len()).rev() {
                out.swap(i, pick(i + 1));
            }
            out
        };
        if let Some(end) = end {
            let mut list = cut(immediate, end, &mut pick);
            if list.is_empty() {
                list.push((immediate, 0));
            }
            todo.push((None, list));
        }
        let mut step = waits.step(key);
        let mut rounds = 0;
        loop {
            rounds += 1;
            prop_assert!(rounds < 10_000);
            match step {
                Step::Complete(ref cmd) => {
                    prop_assert!(there[..write_len as usize].iter().all(|b| *b));
                    prop_assert!(todo.iter().all(|(_, l)| l.is_empty()));
                    prop_assert!(cmd.admitted && cmd.room <= write_len && !cmd.failed);
                    break;
                }
                Step::AskMore(key) => {
                    while let Some(r) = waits.next_r2t(key, max_burst, max_r2t) {
                        prop_assert!(r.len <= max_burst && r.offset + r.len <= write_len);
                        let list = cut(r.offset, r.offset + r.len, &mut pick);
                        todo.push((Some(r.ttt), list));
                    }
                    let outstanding = todo.iter().filter(|(t, l)| t.is_some() && !l.is_empty());
                    prop_assert!(outstanding.count() <= max_r2t as usize);
                }
                Step::Wait => {}
                Step::Fail(_) | Step::Answer(_) => prop_assert!(false, "failed"),
            }
            todo.retain(|(_, l)| !l.is_empty());
            prop_assert!(!todo.is_empty(), "stalled");
            let n = pick(todo.len());
            let (ttt, list) = &mut todo[n];
            let (at, len) = list.pop().unwrap();
            let is_final = list.is_empty();
            there[at as usize..(at + len) as usize].fill(true);
            step = send(&mut waits, &data(*ttt, at, len, is_final));
        }
        prop_assert!(!waits.contains(ITT));
        drop(step);
        prop_assert_eq!(alive.get(), 0);
    }

    /// Whatever comes, no command is lost or doubled, and what is not ended is still there.
    #[test]
    fn nonsense_loses_nothing(
        writes in proptest::collection::vec((0u32..2000, 0u32..300, proptest::option::of(0u32..900)), 1..6),
        pdus in proptest::collection::vec((0u32..6, 0usize..8, 0u32..2500, 0u32..900, any::<bool>()), 0..60),
    ) {
        let (mut waits, alive) = fixture();
        let mut ttts = vec![None, Some(Ttt(1))];
        let mut ended = 0;
        let mut inserted = 0;
        for (n, (write_len, immediate, end)) in writes.iter().enumerate() {
            let new = NewWait {
                itt: Itt(n as u32),
                ..new_wait(*immediate, end.map(|e| e.max(*immediate)))
            };
            let key = waits.insert(Fake::new(*write_len, &alive), &new).unwrap();
            inserted += 1;
            if let Step::Complete(_) | Step::Fail(_) = waits.step(key) {
                ended += 1;
            }
            while let Some(r) = waits.next_r2t(key, 500, 3) {
                ttts.push(Some(r.ttt));
            }
        }
        for (itt, ttt, offset, len, is_final) in pdus {
            let ttt = ttts[ttt % ttts.len()];
            let step = send(&mut waits, &DataOut { itt: Itt(itt), ttt, offset, len, data_sn: DataSn(0), is_final });
            match step {
                Step::Complete(c) => { ended += 1; prop_assert!(!c.failed); }
                Step::Fail(c) => { drop(c); ended += 1; }
                Step::Answer(_) => prop_assert!(false),
                Step::AskMore(key) => while let Some(r) = waits.next_r2t(key, 500, 3) {
                    ttts.push(Some(r.ttt));
                },
                Step::Wait => {}
            }
            prop_assert_eq!(alive.get(), inserted - ended);
        }
        prop_assert_eq!(waits.take_all().len() as i32, inserted - ended);
        prop_assert_eq!(alive.get(), 0);
    }
}

#[test]
fn pdus_of_a_burst_come_in_the_order_of_their_numbers() {
    for (numbers, good) in [
        (&[0, 1, 2][..], true),
        (&[0, 0, 1], false),
        (&[1, 2, 3], false),
        (&[0, 2, 1], false),
        (&[u32::MAX, 0, 1], false),
    ] {
        let (mut waits, alive) = fixture();
        let key = waits
            .insert(Fake::new(300, &alive), &new_wait(0, Some(300)))
            .unwrap();
        let mut errors = 0;
        for (n, sn) in (0..).zip(numbers) {
            let mut pdu = data(None, n * 100, 100, n == 2);
            pdu.data_sn = DataSn(*sn);
            let accepted = waits.accept(&pdu).unwrap();
            if let Some(e) = accepted.error {
                assert_eq!(e, DataError::OutOfSequence);
                errors += 1;
                waits.fail(key, |c| c.failed = true);
            }
            let _ = waits.pdu_done(&accepted);
        }
        assert_eq!(errors == 0, good, "{numbers:?}");
        let end = waits.step(key);
        let as_it_should = match end {
            Step::Complete(_) => good,
            Step::Fail(_) => !good,
            _ => false,
        };
        assert!(as_it_should, "{numbers:?}");
    }
}
