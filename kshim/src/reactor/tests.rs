//! Behaviour of reactors, the same for every poller.

#![allow(
    clippy::disallowed_methods,
    reason = "tests start plain threads and sleep"
)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::*;
use crate::error::code;
use crate::net::{IoPart, RX_CHUNK, RxBuf, Socket, TcpListener};
use crate::time::{Delta, Instant};

const LONG: std::time::Duration = std::time::Duration::from_secs(20);

/// The pollers this machine has.
fn kinds() -> Vec<PollerKind> {
    let mut v = vec![PollerKind::Epoll];
    match spawn_checked(PollerKind::Uring) {
        Ok(r) => {
            r.stop();
            v.push(PollerKind::Uring);
        }
        Err(e) => eprintln!("no io_uring here: {e}"),
    }
    v
}

fn spawn_checked(poller: PollerKind) -> Result<Reactor> {
    Reactor::spawn(ReactorConfig {
        poller,
        ..ReactorConfig::new(format!("t-{poller:?}"))
    })
}

/// Runs a test once per poller.
fn each(test: impl Fn(&Reactor)) {
    for kind in kinds() {
        let r = spawn_checked(kind).unwrap();
        assert_eq!(r.poller(), kind);
        test(&r);
        r.stop();
    }
}

/// Runs `f` on the reactor and returns its result.
fn on<T: Send + 'static>(
    h: &ReactorHandle,
    f: impl FnOnce(&mut Cx<'_>) -> T + Send + 'static,
) -> T {
    let (tx, rx) = crossbeam_channel::bounded(1);
    assert!(h.post(move |cx| {
        let _ = tx.send(f(cx));
    }));
    rx.recv_timeout(LONG).expect("the reactor answers")
}

fn add(h: &ReactorHandle, fd: Option<PollFd>, s: impl Source + Send + 'static) -> Token {
    on(h, move |cx| cx.add(fd, |_| Box::new(s))).unwrap()
}

fn settle(h: &ReactorHandle) {
    on(h, |_| ());
    on(h, |_| ());
}

type OnReady = Box<dyn FnMut(&mut Cx<'_>, Ready) + Send>;
type OnTimer = Box<dyn FnMut(&mut Cx<'_>, u32) + Send>;
type OnCall = Box<dyn FnMut(&mut Cx<'_>) + Send>;

/// A source made of closures.
#[derive(Default)]
struct Fake {
    ready: Option<OnReady>,
    woken: Option<OnCall>,
    timer: Option<OnTimer>,
    removed: Option<OnCall>,
}

impl Source for Fake {
    fn ready(&mut self, cx: &mut Cx<'_>, ev: Ready) {
        if let Some(f) = &mut self.ready {
            f(cx, ev);
        }
    }
    fn woken(&mut self, cx: &mut Cx<'_>) {
        if let Some(f) = &mut self.woken {
            f(cx);
        }
    }
    fn timer(&mut self, cx: &mut Cx<'_>, slot: u32) {
        if let Some(f) = &mut self.timer {
            f(cx, slot);
        }
    }
    fn removed(&mut self, cx: &mut Cx<'_>) {
        if let Some(f) = &mut self.removed {
            f(cx);
        }
    }
}

/// Echoes what it receives, with back-pressure.
struct Echo {
    sock: Socket,
    buf: RxBuf,
    closed: Sender<u64>,
    bytes: u64,
}

impl Echo {
    fn new(sock: Socket, closed: Sender<u64>) -> Echo {
        Echo {
            sock,
            buf: RxBuf::new(RX_CHUNK),
            closed,
            bytes: 0,
        }
    }

    /// False: the connection is done for.
    fn flush(&mut self) -> bool {
        while !self.buf.is_empty() {
            match self.sock.send(self.buf.data()) {
                Ok(n) => self.buf.consume(n),
                Err(e) => return e == code::EAGAIN,
            }
        }
        self.buf.release_if_empty();
        true
    }
}

impl Source for Echo {
    fn ready(&mut self, cx: &mut Cx<'_>, _: Ready) {
        let me = cx.token();
        for _ in 0..4 {
            if !self.flush() {
                return cx.remove(me);
            }
            if !self.buf.is_empty() {
                return; // the peer must read first; WRITE comes
            }
            match self.sock.recv(&mut self.buf) {
                Ok(0) => return cx.remove(me),
                Ok(n) => {
                    self.bytes += n as u64;
                    if self.buf.spare() > 0 {
                        // Short: nothing is left to read.
                        if !self.flush() {
                            cx.remove(me);
                        }
                        return;
                    }
                }
                Err(e) if e == code::EAGAIN => return,
                Err(_) => return cx.remove(me),
            }
        }
        cx.reschedule(me);
    }
    fn woken(&mut self, _: &mut Cx<'_>) {}
    fn timer(&mut self, _: &mut Cx<'_>, _: u32) {}
    fn removed(&mut self, _: &mut Cx<'_>) {
        let _ = self.closed.send(self.bytes);
    }
}

/// Accepts connections and makes an [`Echo`] of each.
struct EchoListener {
    listener: TcpListener,
    closed: Sender<u64>,
}

impl Source for EchoListener {
    fn ready(&mut self, cx: &mut Cx<'_>, _: Ready) {
        while let Ok((sock, _)) = self.listener.accept() {
            sock.set_nodelay(true).unwrap();
            let closed = self.closed.clone();
            cx.add(Some(sock.poll_fd()), |_| Box::new(Echo::new(sock, closed)))
                .unwrap();
        }
    }
    fn woken(&mut self, _: &mut Cx<'_>) {}
    fn timer(&mut self, _: &mut Cx<'_>, _: u32) {}
}

fn echo_server(h: &ReactorHandle) -> (crate::net::SocketAddr, Receiver<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let (closed, rx) = unbounded();
    add(
        h,
        Some(listener.poll_fd()),
        EchoListener { listener, closed },
    );
    (addr, rx)
}

fn send_all(s: &Socket, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match s.send(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e == code::EAGAIN => {
                s.wait(Ready::WRITE, None).unwrap();
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn recv_exact(s: &Socket, buf: &mut [u8]) {
    let mut at = 0;
    while at < buf.len() {
        match s.recv_bytes(&mut buf[at..]) {
            Ok(0) => panic!("end of file"),
            Ok(n) => at += n,
            Err(e) if e == code::EAGAIN => {
                let got = s
                    .wait(Ready::READ, Some(Delta::from_millis(20_000)))
                    .unwrap();
                assert!(!got.is_empty(), "no answer");
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn echoes_thousands_of_messages() {
    each(|r| {
        let (addr, closed) = echo_server(&r.handle());
        let c = Socket::connect(addr).unwrap();
        c.set_nodelay(true).unwrap();
        let mut total = 0;
        for i in 0..5000usize {
            let msg = vec![i as u8; 1 + i % 700];
            let mut back = vec![0; msg.len()];
            send_all(&c, &msg);
            recv_exact(&c, &mut back);
            assert_eq!(msg, back);
            total += msg.len() as u64;
        }
        drop(c);
        assert_eq!(closed.recv_timeout(LONG), Ok(total));
    });
}

#[test]
fn partial_sends_resume_when_writable() {
    each(|r| {
        let (addr, closed) = echo_server(&r.handle());
        let c = Socket::connect(addr).unwrap();
        // Far more than the sockets' buffers hold, and the client reads late: the echo must stop and go on.
        let n = 24 << 20;
        let writer = {
            let c = c.poll_fd();
            std::thread::spawn(move || {
                let c = Socket::from_poll_fd(c);
                let block: Vec<u8> = (0..1 << 16).map(|i| ((i * 7) >> 3) as u8).collect();
                for _ in 0..n / block.len() {
                    send_all(&c, &block);
                }
            })
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        let mut block = vec![0; 1 << 16];
        for _ in 0..n / block.len() {
            recv_exact(&c, &mut block);
            assert!(
                block
                    .iter()
                    .enumerate()
                    .all(|(i, &b)| b == ((i * 7) >> 3) as u8)
            );
        }
        writer.join().unwrap();
        c.shutdown(crate::net::How::Write).unwrap();
        assert_eq!(closed.recv_timeout(LONG), Ok(n as u64));
    });
}

#[test]
fn wake_storms_lose_nothing() {
    each(|r| {
        const THREADS: usize = 4;
        const WAKES: u64 = 20_000;
        let h = r.handle();
        // Each waker bumps a plain counter before it wakes; the source must see the last value in the end.
        let sent: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
        let seen: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
        let tokens: Vec<Token> = (0..8)
            .map(|i| {
                let (sent, seen) = (sent.clone(), seen.clone());
                let woken: OnCall = Box::new(move |_| {
                    seen[i].store(sent[i].load(Ordering::Relaxed), Ordering::Relaxed);
                });
                add(
                    &h,
                    None,
                    Fake {
                        woken: Some(woken),
                        ..Fake::default()
                    },
                )
            })
            .collect();
        let threads: Vec<_> = (0..THREADS)
            .map(|t| {
                let (h, tokens, sent) = (h.clone(), tokens.clone(), sent.clone());
                std::thread::spawn(move || {
                    for i in 0..WAKES {
                        let at = (i as usize * 3 + t) % tokens.len();
                        sent[at].fetch_add(1, Ordering::Relaxed);
                        h.wake(tokens[at]);
                        if i % 1000 == 0 {
                            std::thread::sleep(std::time::Duration::from_micros(200));
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        settle(&h);
        for (s, n) in seen.iter().zip(sent.iter()) {
            assert_eq!(s.load(Ordering::Relaxed), n.load(Ordering::Relaxed));
        }
        let st = h.stats();
        assert!(st.wakes <= THREADS as u64 * WAKES);
        assert!(st.rings <= st.rounds, "{st:?}");
    });
}

#[test]
fn wakes_while_awake_ring_no_bell() {
    each(|r| {
        let h = r.handle();
        let t = add(&h, None, Fake::default());
        settle(&h);
        let (before, after) = on(&h, move |cx| {
            let before = cx.handle().stats().rings;
            let h = cx.handle().clone();
            std::thread::spawn(move || (0..1000).for_each(|_| h.wake(t)))
                .join()
                .unwrap();
            (before, cx.handle().stats().rings)
        });
        assert_eq!(before, after);
        settle(&h);
        assert_eq!(h.stats().wakes, 1);
    });
}

#[test]
fn timers_fire_in_order_and_not_early() {
    each(|r| {
        let h = r.handle();
        let (tx, rx) = unbounded();
        let timer: OnTimer = Box::new(move |cx, slot| {
            let _ = tx.send((slot, cx.now()));
        });
        let t = add(
            &h,
            None,
            Fake {
                timer: Some(timer),
                ..Fake::default()
            },
        );
        let start = Instant::now();
        let at = move |ms| start + Delta::from_millis(ms);
        on(&h, move |cx| {
            for (slot, ms) in [(3, 60), (1, 20), (2, 40), (9, 30), (4, 10_000), (5, 5)] {
                cx.set_timer(t, slot, at(ms));
            }
            cx.set_timer(t, 5, at(80)); // postponed
            cx.set_timer(t, 4, at(70)); // moved forward
            cx.cancel_timer(t, 9);
        });
        for (slot, ms) in [(1, 20), (2, 40), (3, 60), (4, 70), (5, 80)] {
            let (got, when) = rx.recv_timeout(LONG).unwrap();
            assert_eq!(got, slot);
            assert!(when >= at(ms), "early");
        }
        settle(&h);
        assert!(rx.try_recv().is_err());
        assert_eq!(h.stats().timers, 5);
    });
}

#[test]
fn ten_thousand_timers_fire_once_each() {
    each(|r| {
        let h = r.handle();
        let fired = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        for chunk in 0..10 {
            let fired = fired.clone();
            on(&h, move |cx| {
                for i in 0..1000 {
                    let fired = fired.clone();
                    let timer: OnTimer = Box::new(move |_, _| {
                        fired.fetch_add(1, Ordering::Relaxed);
                    });
                    let s = Fake {
                        timer: Some(timer),
                        ..Fake::default()
                    };
                    let t = cx.add(None, |_| Box::new(s)).unwrap();
                    for slot in 0..2 {
                        cx.set_timer(t, slot, start + Delta::from_millis(1));
                        cx.set_timer(t, slot, start + Delta::from_millis((chunk * i) % 97));
                    }
                }
            });
        }
        let deadline = Instant::now() + Delta::from_millis(20_000);
        while fired.load(Ordering::Relaxed) < 20_000 && Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        settle(&h);
        assert_eq!(fired.load(Ordering::Relaxed), 20_000);
        assert_eq!(h.load(), 10_000);
    });
}

#[test]
fn sources_remove_themselves_and_each_other() {
    each(|r| {
        let h = r.handle();
        let (tx, rx) = unbounded::<&'static str>();
        let say = |what: &'static str| {
            let tx = tx.clone();
            Some(Box::new(move |_: &mut Cx<'_>| {
                let _ = tx.send(what);
            }) as OnCall)
        };
        let victim = add(
            &h,
            None,
            Fake {
                removed: say("victim"),
                ..Fake::default()
            },
        );
        let tx2 = tx.clone();
        let woken: OnCall = Box::new(move |cx| {
            let me = cx.token();
            cx.remove(victim);
            cx.remove(me);
            cx.remove(me);
            cx.reschedule(me);
            cx.set_timer(me, 0, cx.now());
            assert!(!cx.contains(me) && !cx.contains(victim));
            let _ = tx2.send("still running");
        });
        let me = add(
            &h,
            None,
            Fake {
                woken: Some(woken),
                removed: say("me"),
                ..Fake::default()
            },
        );
        h.wake(me);
        settle(&h);
        let mut got: Vec<_> = rx.try_iter().collect();
        assert_eq!(got.remove(0), "still running");
        got.sort_unstable();
        assert_eq!(got, ["me", "victim"]);
        assert_eq!(h.load(), 0);
        // Their tokens are stale now, also when the slots are used again.
        let other = add(
            &h,
            None,
            Fake {
                woken: say("other"),
                ..Fake::default()
            },
        );
        h.wake(me);
        h.wake(victim);
        on(&h, move |cx| {
            cx.remove(me);
            cx.reschedule(victim);
        });
        settle(&h);
        assert!(rx.try_recv().is_err());
        assert!(on(&h, move |cx| cx.contains(other)));
    });
}

#[test]
fn removal_by_message_ends_the_connection() {
    each(|r| {
        let h = r.handle();
        let (a, b) = Socket::pair().unwrap();
        let (tx, rx) = unbounded();
        let t = add(&h, Some(a.poll_fd()), Echo::new(a, tx));
        b.send(b"hello").unwrap();
        let mut back = [0; 5];
        recv_exact(&b, &mut back);
        assert!(h.post(move |cx| cx.remove(t)));
        assert_eq!(rx.recv_timeout(LONG), Ok(5));
        // The descriptor is really closed, also where the kernel's poll held the file.
        assert!(
            !b.wait(Ready::READ, Some(Delta::from_millis(20_000)))
                .unwrap()
                .is_empty()
        );
        assert_eq!(b.recv_bytes(&mut back), Ok(0));
    });
}

#[test]
fn a_thousand_socket_pairs() {
    each(|r| {
        let h = r.handle();
        let (tx, rx) = unbounded();
        let mut peers = Vec::new();
        for _ in 0..1000 {
            let (a, b) = Socket::pair().unwrap();
            let tx = tx.clone();
            let fd = a.poll_fd();
            assert!(h.post(move |cx| {
                cx.add(Some(fd), |_| Box::new(Echo::new(a, tx))).unwrap();
            }));
            peers.push(b);
        }
        for round in 0..20u8 {
            for p in &peers {
                p.send(&[round; 100]).unwrap();
            }
            let mut back = [0; 100];
            for p in &peers {
                recv_exact(p, &mut back);
                assert_eq!(back, [round; 100]);
            }
        }
        assert_eq!(h.load(), 1000);
        drop(peers);
        for _ in 0..1000 {
            assert_eq!(rx.recv_timeout(LONG), Ok(2000));
        }
        settle(&h);
        assert_eq!(h.load(), 0);
    });
}

#[test]
fn idle_reactors_sleep() {
    each(|r| {
        let h = r.handle();
        let (addr, _rx) = echo_server(&h);
        let c = Socket::connect(addr).unwrap();
        send_all(&c, b"x");
        recv_exact(&c, &mut [0]);
        let t = add(&h, None, Fake::default());
        // A timer far away, one postponed and one cancelled: none may wake the reactor.
        on(&h, move |cx| {
            cx.set_timer(t, 0, cx.now() + Delta::from_millis(3_600_000));
            cx.set_timer(t, 1, cx.now() + Delta::from_millis(20));
            cx.set_timer(t, 2, cx.now() + Delta::from_millis(20));
            cx.set_timer(t, 1, cx.now() + Delta::from_millis(3_600_000));
            cx.cancel_timer(t, 2);
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        let before = h.stats();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(h.stats(), before);
    });
}

#[test]
fn a_panic_takes_only_its_source() {
    each(|r| {
        let h = r.handle();
        let (tx, rx) = unbounded();
        let woken: OnCall = Box::new(|_| panic!("on purpose"));
        let removed: OnCall = Box::new(move |_| {
            let _ = tx.send(());
            panic!("once more");
        });
        let bad = Fake {
            woken: Some(woken),
            removed: Some(removed),
            ..Fake::default()
        };
        let t = add(&h, None, bad);
        h.wake(t);
        rx.recv_timeout(LONG).unwrap();
        assert!(h.post(|_| panic!("a closure")));
        settle(&h);
        assert_eq!((h.stats().panics, h.load()), (3, 0));
        // A constructor that panics leaves no half-made source.
        assert!(h.post(|cx| {
            let _ = cx.add(None, |_| panic!("in the making"));
        }));
        settle(&h);
        assert_eq!((h.stats().panics, h.load()), (4, 0));
        add(&h, None, Fake::default());
        assert_eq!(h.load(), 1);
    });
}

#[test]
fn stop_runs_what_was_accepted_and_removes_what_lives() {
    for kind in kinds() {
        let r = spawn_checked(kind).unwrap();
        let h = r.handle();
        let gone = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let (a, _b) = Socket::pair().unwrap();
            let (g, g2) = (gone.clone(), gone.clone());
            let removed: OnCall = Box::new(move |cx| {
                g.fetch_add(1, Ordering::Relaxed);
                let g2 = g2.clone();
                let last: OnCall = Box::new(move |_| {
                    g2.fetch_add(1, Ordering::Relaxed);
                });
                // Made during shut-down: still said goodbye to.
                cx.add(None, |_| {
                    Box::new(Fake {
                        removed: Some(last),
                        ..Fake::default()
                    })
                })
                .unwrap();
            });
            add(
                &h,
                Some(a.poll_fd()),
                Fake {
                    removed: Some(removed),
                    ..Fake::default()
                },
            );
        }
        let ran = Arc::new(AtomicUsize::new(0));
        let mut accepted = 0;
        for _ in 0..1000 {
            let ran = ran.clone();
            if h.post(move |_| {
                ran.fetch_add(1, Ordering::Relaxed);
            }) {
                accepted += 1;
            }
        }
        r.stop();
        assert_eq!(ran.load(Ordering::Relaxed), accepted);
        assert_eq!(gone.load(Ordering::Relaxed), 100);
        assert!(!h.post(|_| ()));
        h.wake(Token {
            index: 0,
            generation: 1,
        });
        assert_eq!(h.load(), 0);
    }
}

#[test]
fn stop_closes_the_sockets() {
    for kind in kinds() {
        let r = spawn_checked(kind).unwrap();
        let (tx, _rx) = unbounded();
        let mut peers = Vec::new();
        for _ in 0..20 {
            let (a, b) = Socket::pair().unwrap();
            add(&r.handle(), Some(a.poll_fd()), Echo::new(a, tx.clone()));
            peers.push(b);
        }
        r.stop();
        // No waiting: nothing may hold the files once the reactor has ended.
        for p in &peers {
            assert_eq!(p.recv_bytes(&mut [0]), Ok(0), "{kind:?}");
        }
    }
}

#[test]
fn stopping_from_the_inside_does_not_hang() {
    for kind in kinds() {
        let r = spawn_checked(kind).unwrap();
        let h = r.handle();
        let (tx, rx) = unbounded();
        let removed: OnCall = Box::new(move |_| {
            let _ = tx.send(());
        });
        add(
            &h,
            None,
            Fake {
                removed: Some(removed),
                ..Fake::default()
            },
        );
        assert!(h.post(move |_| r.stop()));
        rx.recv_timeout(LONG).unwrap();
    }
}

#[test]
fn reschedule_is_fair() {
    each(|r| {
        let h = r.handle();
        let (tx, rx) = unbounded();
        for name in 0..2 {
            let tx = tx.clone();
            let mut left = 5;
            let ready: OnReady = Box::new(move |cx, ev| {
                assert_eq!(ev, Ready::READ);
                let _ = tx.send(name);
                left -= 1;
                if left > 0 {
                    let me = cx.token();
                    cx.reschedule(me);
                    cx.reschedule(me);
                }
            });
            let t = add(
                &h,
                None,
                Fake {
                    ready: Some(ready),
                    ..Fake::default()
                },
            );
            assert!(h.post(move |cx| cx.reschedule(t)));
        }
        let got: Vec<i32> = (0..10).map(|_| rx.recv_timeout(LONG).unwrap()).collect();
        settle(&h);
        assert!(rx.try_recv().is_err());
        // Neither runs twice without the other in between, once both have begun.
        let first = got.iter().position(|&n| n == 1).unwrap();
        let last = got.iter().rposition(|&n| n == 0).unwrap();
        assert!(
            got[first..=last.max(first)]
                .windows(2)
                .all(|w| w[0] != w[1]),
            "{got:?}"
        );
    });
}

#[test]
fn slow_rounds_are_counted() {
    each(|r| {
        let h = r.handle();
        on(&h, |_| {
            std::thread::sleep(std::time::Duration::from_millis(ROUND_WARN_MS + 6));
        });
        settle(&h);
        assert!(h.stats().slow_rounds >= 1);
    });
}

#[test]
fn busy_polling_still_hears_everything() {
    each(|r| {
        let h = r.handle();
        on(&h, |cx| cx.set_busy_poll(200));
        let (addr, _rx) = echo_server(&h);
        let c = Socket::connect(addr).unwrap();
        for i in 0..200u8 {
            send_all(&c, &[i]);
            let mut b = [0];
            recv_exact(&c, &mut b);
            assert_eq!(b, [i]);
            if i % 50 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        let (tx, rx) = unbounded();
        let timer: OnTimer = Box::new(move |_, _| {
            let _ = tx.send(());
        });
        let t = add(
            &h,
            None,
            Fake {
                timer: Some(timer),
                ..Fake::default()
            },
        );
        on(&h, move |cx| {
            cx.set_timer(t, 0, cx.now() + Delta::from_micros(100));
        });
        rx.recv_timeout(LONG).unwrap();
        on(&h, |cx| cx.set_busy_poll(0));
    });
}

#[test]
fn sources_need_not_be_send() {
    struct Local(Rc<RefCell<Vec<u32>>>, u32);
    impl Source for Local {
        fn ready(&mut self, _: &mut Cx<'_>, _: Ready) {}
        fn woken(&mut self, _: &mut Cx<'_>) {
            self.0.borrow_mut().push(self.1);
        }
        fn timer(&mut self, _: &mut Cx<'_>, _: u32) {}
    }
    each(|r| {
        let h = r.handle();
        assert!(!h.is_current());
        let tokens = on(&h, |cx| {
            assert!(cx.handle().is_current());
            assert_eq!(cx.token(), Token::NONE);
            let shared = Rc::new(RefCell::new(Vec::new()));
            [1, 2].map(|i| {
                cx.add(None, |_| Box::new(Local(shared.clone(), i)))
                    .unwrap()
            })
        });
        tokens.iter().for_each(|&t| h.wake(t));
        settle(&h);
        assert_eq!(h.stats().wakes, 2);
    });
}

#[test]
fn gathered_sends_carry_the_skip() {
    each(|_| {
        let (a, b) = Socket::pair().unwrap();
        let parts = [&b"head"[..], b"", b"er", b"data"];
        for skip in 0..=10 {
            let mut it = parts.iter().map(|p| IoPart::Bytes(p));
            assert_eq!(a.send_iter(&mut it, skip, false), Ok(10 - skip));
            if skip < 10 {
                let mut got = vec![0; 10 - skip];
                recv_exact(&b, &mut got);
                assert_eq!(got, b"headerdata"[skip..]);
            }
        }
    });
}
