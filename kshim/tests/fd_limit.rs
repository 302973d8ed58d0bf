//! A listener that runs out of descriptors recovers by its timer, as [`TcpListener`]'s documentation advises. In a
//! process of its own, as the limit is the process's.

#![expect(clippy::disallowed_types, reason = "the test is a program of its own")]

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use kshim::error::{Error, code};
use kshim::net::{Socket, TcpListener};
use kshim::reactor::{Cx, PollerKind, Reactor, ReactorConfig, Ready, Source};
use kshim::time::Delta;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const RETRY: u32 = 0;

struct Listener {
    listener: TcpListener,
    tell: Sender<Result<Socket, Error>>,
}

impl Source for Listener {
    fn ready(&mut self, cx: &mut Cx<'_>, _: Ready) {
        loop {
            match self.listener.accept() {
                Ok((sock, _)) => {
                    let _ = self.tell.send(Ok(sock));
                }
                Err(e) if e == code::EAGAIN => return,
                Err(e) => {
                    let _ = self.tell.send(Err(e));
                    let me = cx.token();
                    cx.set_timer(me, RETRY, cx.now() + Delta::from_millis(20));
                    return;
                }
            }
        }
    }
    fn woken(&mut self, _: &mut Cx<'_>) {}
    fn timer(&mut self, cx: &mut Cx<'_>, _: u32) {
        self.ready(cx, Ready::READ);
    }
}

fn limit_descriptors(to: u64) {
    let max = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(to),
            maximum: max,
        },
    )
    .expect("setrlimit");
}

fn recovers(poller: PollerKind) {
    let Ok(reactor) = Reactor::spawn(ReactorConfig {
        poller,
        ..ReactorConfig::new("fd-limit")
    }) else {
        println!("fd_limit: no {poller:?} here");
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("bind");
    let addr = listener.local_addr().expect("an address");
    let (tell, told) = channel();
    reactor.handle().post(move |cx| {
        cx.add(Some(listener.poll_fd()), |_| {
            Box::new(Listener { listener, tell })
        })
        .expect("add");
    });
    let next = || {
        told.recv_timeout(Duration::from_secs(20))
            .expect("the listener answers")
    };

    let first = Socket::connect(addr).expect("connect");
    let accepted = next().expect("accepted");
    // The second client has the last descriptor.
    let before = getrlimit(Resource::Nofile).current.unwrap_or(1024);
    let second = {
        let spare = std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").expect("open"));
        limit_descriptors(std::os::fd::AsRawFd::as_raw_fd(&spare) as u64 + 1);
        drop(spare);
        Socket::connect(addr).expect("connect")
    };
    for _ in 0..3 {
        assert_eq!(next().expect_err("no descriptor is left"), code::EMFILE);
    }
    // One becomes free: no edge says so, the timer finds out.
    drop(first);
    let late = loop {
        match next() {
            Ok(sock) => break sock,
            Err(e) => assert_eq!(e, code::EMFILE),
        }
    };
    limit_descriptors(before);
    late.send(b"late").expect("send");
    assert!(
        !second
            .wait(Ready::READ, Some(Delta::from_secs(20)))
            .expect("wait")
            .is_empty()
    );
    drop(accepted);
    reactor.stop();
}

fn main() {
    recovers(PollerKind::Epoll);
    recovers(PollerKind::Uring);
    println!("fd_limit: ok");
}
