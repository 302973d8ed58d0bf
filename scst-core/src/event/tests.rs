use super::queue::{Question, Queues};
use super::*;
use crate::core::{Core, CoreParams};
use kshim::kobject::control::Server;
use kshim::kobject::tree::Tree;
use kshim::kobject::{Inline, Kobject};
use kshim::sync::{Completion, SpinLock};
use kshim::time::Instant;
use proptest::prelude::*;
use std::sync::Arc;

fn event(code: u32, payload: &[u8]) -> Arc<Event> {
    Arc::new(Event {
        code,
        issuer: CORE_ISSUER.to_owned(),
        payload: payload.to_vec(),
    })
}

fn any_event() -> Filter {
    Filter {
        issuer: "*".to_owned(),
        ..Filter::default()
    }
}

/// How questions ended, by their number.
type Ends = Arc<SpinLock<Vec<(u32, i32)>>>;

fn question(n: u32, until: Instant, ends: &Ends) -> Option<Question> {
    let ends = Arc::clone(ends);
    let done: Done = Box::new(move |status| ends.lock().push((n, status)));
    Some(Question { until, done })
}

fn codes(q: &mut Queues, listener: u64) -> Vec<(u32, u32, u32)> {
    std::iter::from_fn(|| q.next(listener).unwrap())
        .map(|d| (d.event.code, d.id, d.lost))
        .collect()
}

#[test]
fn filters_pick_by_code_issuer_and_payload() {
    let mut q = Queues::default();
    let (a, b) = (q.open(), q.open());
    q.allow(a, Filter::code(4)).unwrap();
    let mut exact = Filter::code(0);
    exact.payload = b"d1".to_vec();
    q.allow(b, exact.clone()).unwrap();
    for (code, payload) in [(4, "d1"), (4, "d2"), (6, "d1"), (6, "d10")] {
        assert!(q.dispatch(&event(code, payload.as_bytes()), None).is_none());
    }
    let other = Event {
        issuer: "iscsi".to_owned(),
        ..Event::clone(&event(4, b"d1"))
    };
    assert!(q.dispatch(&Arc::new(other), None).is_none());
    assert_eq!(codes(&mut q, a), [(4, 0, 0), (4, 0, 0)]);
    assert_eq!(codes(&mut q, b), [(4, 0, 0), (6, 0, 0)]);
    // A filter that covers another one is one too many, the other way round it is not.
    assert_eq!(q.allow(a, any_event()), Err(code::EEXIST));
    assert_eq!(q.allow(a, Filter::code(4)), Err(code::EEXIST));
    q.allow(a, Filter::code(5)).unwrap();
    assert_eq!(q.disallow(a, &Filter::code(6)), Err(code::ENOENT));
    q.disallow(a, &any_event()).unwrap();
    q.allow(a, any_event()).unwrap();
    q.allow(a, Filter::code(4)).unwrap();
    assert_eq!(q.filters(), 3);
    exact.payload = vec![0; MAX_PAYLOAD + 1];
    assert_eq!(q.allow(b, exact), Err(code::EINVAL));
    assert!(q.close(b).is_empty());
    assert_eq!(q.allow(b, Filter::code(9)), Err(code::ENODEV));
    assert_eq!(q.next(b), Err(code::ENODEV));
}

#[test]
fn who_is_slow_learns_what_is_lost() {
    let mut q = Queues::default();
    let (slow, quick) = (q.open(), q.open());
    q.allow(slow, any_event()).unwrap();
    q.allow(quick, any_event()).unwrap();
    for n in 0..MAX_EVENTS + 3 {
        let code = u32::try_from(n).unwrap();
        assert!(q.dispatch(&event(code, b""), None).is_none());
        assert_eq!(codes(&mut q, quick), [(code, 0, 0)]);
    }
    let first = q.next(slow).unwrap().unwrap();
    assert_eq!((first.event.code, first.lost), (0, 0));
    q.dispatch(&event(7777, b""), None);
    q.dispatch(&event(8888, b""), None);
    q.lose(5);
    let rest = codes(&mut q, slow);
    assert_eq!(rest.len(), MAX_EVENTS);
    assert_eq!(rest[MAX_EVENTS - 1], (7777, 0, 3));
    q.dispatch(&event(9999, b""), None);
    // The one that found no room, and those that nobody could look at.
    assert_eq!(codes(&mut q, slow), [(9999, 0, 6)]);
    assert_eq!(codes(&mut q, quick)[2], (9999, 0, 5));
}

#[test]
fn one_listener_is_asked_and_others_look_on() {
    let ends = Ends::default();
    let now = Instant::now();
    let mut q = Queues::default();
    assert!(
        q.dispatch(&event(5, b""), question(1, now, &ends))
            .is_some()
    );
    let (looks, first, second) = (q.open(), q.open(), q.open());
    q.allow(looks, Filter::look_on()).unwrap();
    q.allow(first, Filter::code(5)).unwrap();
    q.allow(second, Filter::code(5)).unwrap();
    assert!(
        q.dispatch(&event(5, b""), question(2, now, &ends))
            .is_none()
    );
    assert_eq!(q.answer(first, 1).err(), Some(code::ENOENT), "not taken");
    assert_eq!(codes(&mut q, looks), [(5, 0, 0)]);
    assert_eq!(codes(&mut q, first), [(5, 1, 0)]);
    assert_eq!(codes(&mut q, second), [(5, 0, 0)]);
    assert_eq!(q.answer(second, 1).err(), Some(code::ENOENT));
    q.answer(first, 1).unwrap()(-19);
    assert_eq!(q.answer(first, 1).err(), Some(code::ENOENT));
    assert_eq!(*ends.lock(), [(2, -19)]);
    // Who has no room is not asked.
    for _ in 0..MAX_EVENTS {
        q.dispatch(&event(5, b""), None);
    }
    codes(&mut q, second);
    assert!(
        q.dispatch(&event(5, b""), question(3, now, &ends))
            .is_none()
    );
    assert_eq!(codes(&mut q, second).len(), 1);
    for _ in 0..MAX_EVENTS {
        q.dispatch(&event(5, b""), None);
    }
    let (_, why) = q.dispatch(&event(5, b""), question(4, now, &ends)).unwrap();
    assert_eq!(why, code::EMFILE);
}

#[test]
fn questions_end_in_time_and_with_their_listener() {
    let ends = Ends::default();
    let now = Instant::now();
    let (soon, late) = (now + Delta::from_secs(1), now + Delta::from_secs(9));
    let mut q = Queues::default();
    let l = q.open();
    q.allow(l, Filter::code(5)).unwrap();
    for (n, until) in [(1, soon), (2, late), (3, late)] {
        let asked = q.dispatch(&event(5, b""), question(n, until, &ends));
        assert!(asked.is_none());
    }
    assert_eq!(q.first_deadline(), Some(soon));
    assert!(q.expire(now).is_empty());
    let over: Vec<_> = q.expire(soon).into_iter().map(|(_, why)| why).collect();
    assert_eq!(over, [code::ETIMEDOUT]);
    // It is not even told of any more.
    assert_eq!(codes(&mut q, l), [(5, 2, 0), (5, 3, 0)]);
    q.answer(l, 3).unwrap()(0);
    let gone: Vec<_> = q.close(l).into_iter().map(|(_, why)| why).collect();
    assert_eq!(gone, [code::EFAULT]);
    assert_eq!(q.first_deadline(), None);
}

/// What may happen to the queues of three listeners.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Close(usize),
    Allow(usize, u32, bool),
    Tell(u32),
    Ask(u32),
    Next(usize),
    Answer(usize),
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0usize..3;
    prop_oneof![
        Just(Step::Open),
        who().prop_map(Step::Close),
        (who(), 0u32..3, any::<bool>()).prop_map(|(l, c, o)| Step::Allow(l, c, o)),
        (1u32..3).prop_map(Step::Tell),
        (1u32..3).prop_map(Step::Ask),
        who().prop_map(Step::Next),
        who().prop_map(Step::Answer),
        Just(Step::Expire),
    ]
}

proptest! {
    /// Whatever happens, every question ends exactly once, and nobody is asked but by what it may be asked.
    #[test]
    fn every_question_ends_once(steps in proptest::collection::vec(step(), 0..200)) {
        let ends = Ends::default();
        let mut q = Queues::default();
        let mut now = Instant::now();
        let (mut open, mut taken) = (Vec::new(), Vec::new());
        let mut asked = 0;
        for step in steps {
            let mut over = Vec::new();
            match step {
                Step::Open => {
                    open.push(q.open());
                    open.truncate(3);
                }
                Step::Close(n) if n < open.len() => over = q.close(open.remove(n)),
                Step::Allow(n, code, looks_on) if n < open.len() => {
                    let filter = Filter { looks_on, ..Filter::code(code) };
                    let _: Result = q.allow(open[n], filter);
                }
                Step::Tell(code) => prop_assert!(q.dispatch(&event(code, b""), None).is_none()),
                Step::Ask(code) => {
                    asked += 1;
                    now += Delta::from_millis(1);
                    let asks = question(asked, now, &ends);
                    over.extend(q.dispatch(&event(code, b""), asks));
                }
                Step::Next(n) if n < open.len() => {
                    if let Some(d) = q.next(open[n]).unwrap().filter(|d| d.id != 0) {
                        taken.push((open[n], d.id));
                    }
                }
                Step::Answer(n) if n < taken.len() => {
                    let (listener, id) = taken.remove(n);
                    if let Ok(done) = q.answer(listener, id) {
                        done(0);
                    }
                }
                Step::Expire => over = q.expire(now),
                _ => {}
            }
            for (done, why) in over {
                done(-why.errno());
            }
        }
        for (done, why) in q.close_all() {
            done(-why.errno());
        }
        let mut all: Vec<u32> = ends.lock().iter().map(|(n, _)| *n).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (1..=asked).collect::<Vec<_>>());
    }
}

fn core() -> Arc<Core> {
    Core::new(CoreParams::default()).unwrap()
}

fn registered(device: &str) -> Kind {
    let device = device.to_owned();
    Kind::RegVirtDev { device }
}

#[test]
fn nobody_listens_nothing_is_told() {
    let core = core();
    assert!(!core.events().is_wanted());
    core.events().tell(|| panic!("nobody wants to know"));
    let status = Arc::new(SpinLock::new(None));
    let (ended, told) = (Arc::new(Completion::new()), Arc::clone(&status));
    let tell = Arc::clone(&ended);
    let done = move |s| {
        *told.lock() = Some(s);
        tell.complete();
    };
    let asks = Event::of(&registered("d")).unwrap();
    core.events().ask(asks, None, Box::new(done));
    ended.wait_for_completion();
    assert_eq!(*status.lock(), Some(-code::ENOENT.errno()));
    core.shutdown();
}

#[test]
fn a_question_has_its_time() {
    let core = core();
    let listener = core.events().listen();
    listener.allow(any_event()).unwrap();
    let status = Arc::new(SpinLock::new(Vec::new()));
    for timeout in [Some(Delta::from_millis(1)), None] {
        let (ended, told) = (Arc::new(Completion::new()), Arc::clone(&status));
        let tell = Arc::clone(&ended);
        let done = move |s| {
            told.lock().push(s);
            tell.complete();
        };
        let asks = Event::of(&registered("d")).unwrap();
        core.events().ask(asks, timeout, Box::new(done));
        if timeout.is_some() {
            ended.wait_for_completion();
        }
    }
    // The first, which nobody got in time, is gone.
    let asked = listener.wait_next().unwrap().id;
    assert_eq!(listener.done(asked, 5), Ok(()));
    assert_eq!(listener.done(asked, 5), Err(code::ENOENT));
    assert_eq!(*status.lock(), [-code::ETIMEDOUT.errno(), 5]);
    core.shutdown();
    assert_eq!(listener.wait_next(), Err(code::ENODEV));
}

#[test]
fn clients_hear_and_answer_over_the_socket() {
    let core = core();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let tree = Tree::new(&Kobject::root("root", Arc::new(Inline)));
    let fuse = |_| Err(code::EMFILE);
    let server = Server::start(&path, tree, fuse, Some(Control::extension(&core))).unwrap();
    let mut client = Client::connect(&path).unwrap();
    client.allow(&Filter::code(6)).unwrap();
    assert_eq!(client.allow(&Filter::code(6)), Err(code::EEXIST));
    assert_eq!(client.disallow(&Filter::code(5)), Err(code::ENOENT));
    core.events().tell(|| registered("d1"));
    // What comes while another answer is waited for is not lost.
    client.allow(&Filter::code(5)).unwrap();
    let next = |client: &mut Client| match client.wait_next().unwrap() {
        Heard::Event(told) => told,
        Heard::NotAsked => panic!("an event"),
    };
    let told = next(&mut client);
    let kind = Kind::decode(told.event.code, &told.event.payload);
    assert_eq!((kind, told.id, told.lost), (Some(registered("d1")), 0, 0));
    assert_eq!(told.done(0), Err(code::EINVAL), "it did not ask");

    let ends = Arc::new(SpinLock::new(Vec::new()));
    let ended = Arc::new(Completion::new());
    for _ in 0..2 {
        let (ends, ended) = (Arc::clone(&ends), Arc::clone(&ended));
        let done = move |s| {
            ends.lock().push(s);
            ended.complete();
        };
        let asks = Event::of(&registered("d2")).unwrap();
        core.events().ask(asks, None, Box::new(done));
    }
    let told = next(&mut client);
    assert_ne!(told.id, 0);
    told.done(17).unwrap();
    ended.wait_for_completion();
    // Once is enough.
    told.done(18).unwrap();
    drop(next(&mut client));
    assert!(matches!(client.wait_next().unwrap(), Heard::NotAsked));
    // What the client did not answer has failed when it goes.
    client.closer()();
    assert!(client.wait_next().is_err());
    ended.wait_for_completion();
    assert_eq!(*ends.lock(), [17, -code::EFAULT.errno()]);
    drop(server);
    core.shutdown();
}
