//! An echo server and its client, each on a reactor of its own: what a round costs.
//!
//! ```text
//! echo [uring|epoll|auto] [message bytes] [messages in flight] [seconds] [busy-poll us]
//! ```
//!
//! Prints messages per second and, for each side, rounds and readiness events per message. Under
//! `strace -f -c -e trace=network,io_uring_enter,epoll_wait,epoll_pwait,epoll_pwait2,write` it shows the system calls per round.

use kshim::error::{Result, code};
use kshim::net::{RX_CHUNK, RxBuf, Socket, TcpListener};
use kshim::reactor::{Cx, PollerKind, Reactor, ReactorConfig, Ready, Source};
use kshim::time::{Delta, Instant};

/// Receives of one connection per round, before others get their turn.
const MAX_RECVS: usize = 8;

struct Echo {
    sock: Socket,
    buf: RxBuf,
}

impl Echo {
    /// False: the connection is done for.
    fn flush(&mut self) -> bool {
        while !self.buf.is_empty() {
            match self.sock.send(self.buf.data()) {
                Ok(n) => self.buf.consume(n),
                Err(e) => return e == code::EAGAIN,
            }
        }
        true
    }
}

impl Source for Echo {
    fn ready(&mut self, cx: &mut Cx<'_>, ev: Ready) {
        let me = cx.token();
        if !self.flush() {
            return cx.remove(me);
        }
        if !ev.contains(Ready::READ) || !self.buf.is_empty() {
            return;
        }
        for _ in 0..MAX_RECVS {
            match self.sock.recv(&mut self.buf) {
                Ok(0) => return cx.remove(me),
                Ok(_) if !self.flush() => return cx.remove(me),
                Ok(_) if !self.buf.is_empty() || self.buf.spare() > 0 => return,
                Ok(_) => {}
                Err(e) if e == code::EAGAIN => return,
                Err(_) => return cx.remove(me),
            }
        }
        cx.reschedule(me);
    }
    fn woken(&mut self, _: &mut Cx<'_>) {}
    fn timer(&mut self, _: &mut Cx<'_>, _: u32) {}
}

struct Listener(TcpListener);

impl Source for Listener {
    fn ready(&mut self, cx: &mut Cx<'_>, _: Ready) {
        while let Ok((sock, _)) = self.0.accept() {
            let _ = sock.set_nodelay(true);
            let fd = sock.poll_fd();
            let _ = cx.add(Some(fd), |_| {
                Box::new(Echo {
                    sock,
                    buf: RxBuf::new(RX_CHUNK),
                })
            });
        }
    }
    fn woken(&mut self, _: &mut Cx<'_>) {}
    fn timer(&mut self, _: &mut Cx<'_>, _: u32) {}
}

/// Sends again as many bytes as came back.
struct Client {
    sock: Socket,
    buf: RxBuf,
    message: Vec<u8>,
    owed: usize,
    bytes: u64,
    end: Instant,
    done: crossbeam_channel::Sender<u64>,
}

impl Client {
    fn pump(&mut self) {
        while self.owed > 0 {
            let n = self.owed.min(self.message.len());
            match self.sock.send(&self.message[..n]) {
                Ok(n) => self.owed -= n,
                Err(_) => return,
            }
        }
    }
}

impl Source for Client {
    fn ready(&mut self, cx: &mut Cx<'_>, ev: Ready) {
        self.pump();
        if !ev.contains(Ready::READ) {
            return;
        }
        if let Ok(n) = self.sock.recv(&mut self.buf) {
            self.buf.consume(n);
            self.bytes += n as u64;
            self.owed += n;
            if self.buf.spare() == 0 {
                let me = cx.token();
                cx.reschedule(me);
            }
        }
        self.pump();
    }
    fn woken(&mut self, _: &mut Cx<'_>) {}
    fn timer(&mut self, cx: &mut Cx<'_>, _: u32) {
        debug_assert!(cx.now() >= self.end);
        let _ = self.done.send(self.bytes);
        let me = cx.token();
        cx.remove(me);
    }
}

fn main() -> Result {
    let mut args = std::env::args().skip(1);
    let poller = match args.next().as_deref() {
        Some("uring") => PollerKind::Uring,
        Some("epoll") => PollerKind::Epoll,
        _ => PollerKind::Auto,
    };
    let mut number = |or: usize| args.next().and_then(|a| a.parse().ok()).unwrap_or(or);
    let (size, depth, secs, poll_us) = (number(64), number(1), number(2), number(0));
    let spawn = |name: &str, cpu| {
        Reactor::spawn(ReactorConfig {
            name: name.into(),
            cpu: Some(cpu),
            poller,
        })
    };
    let (server, client) = (spawn("server", 0)?, spawn("client", 1)?);

    let listener = TcpListener::bind("127.0.0.1:0".parse().map_err(|_| code::EINVAL)?)?;
    let addr = listener.local_addr()?;
    server.handle().post(move |cx| {
        cx.set_busy_poll(u32::try_from(poll_us).unwrap_or(0));
        let _ = cx.add(Some(listener.poll_fd()), |_| Box::new(Listener(listener)));
    });

    let sock = Socket::connect(addr)?;
    sock.set_nodelay(true)?;
    let (done, wait) = crossbeam_channel::bounded(1);
    client.handle().post(move |cx| {
        let end = cx.now() + Delta::from_secs(i64::try_from(secs).unwrap_or(1));
        let fd = sock.poll_fd();
        let message = vec![b'x'; size * depth];
        let (owed, buf) = (message.len(), RxBuf::new(RX_CHUNK));
        let c = Client {
            sock,
            buf,
            message,
            owed,
            bytes: 0,
            end,
            done,
        };
        if let Ok(t) = cx.add(Some(fd), |_| Box::new(c)) {
            cx.set_timer(t, 0, end);
        }
    });
    let bytes = wait.recv().map_err(|_| code::EIO)?;
    let messages = bytes / size as u64;
    println!(
        "{:?} size {size} depth {depth}: {:.0} messages/s, {:.1} MB/s",
        server.poller(),
        messages as f64 / secs as f64,
        bytes as f64 / secs as f64 / 1e6
    );
    for r in [server, client] {
        let s = r.handle().stats();
        println!(
            "  {}: {:.4} rounds and {:.4} events per message, {} rounds, {} slow",
            r.handle().name(),
            s.rounds as f64 / messages as f64,
            s.events as f64 / messages as f64,
            s.rounds,
            s.slow_rounds
        );
        r.stop();
    }
    Ok(())
}
