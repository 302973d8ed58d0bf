//! Where the server's notifications come in: state changes, and the question whether we are there.

use super::Event;
use super::pdu::{Body, Gather, Message, RESPONSE, flags, function, tag};
use crate::driver::IscsiDriver;
use kshim::error::{Result, code};
use kshim::kthread::WorkerQueue;
use kshim::net::{Socket, SocketAddr, TcpListener};
use kshim::pr_warn_ratelimited;
use kshim::reactor::{Cx, Ready, Source, Token};
use kshim::time::Delta;
use std::net::IpAddr;
use std::sync::Arc;

/// A connection of the server that says nothing for so long is closed.
const SILENCE_S: i64 = 60;
/// Connections taken in one go.
const ACCEPT_BATCH: usize = 4;

/// The listening port.
pub(super) struct ScnListener {
    pub(super) addr: SocketAddr,
    token: Token,
}

impl ScnListener {
    /// Listens; only `server` is let in. Errors: those of bind. Context: may sleep.
    #[doc(alias = "scn_init")]
    pub(super) fn open(
        driver: &Arc<IscsiDriver>,
        at: SocketAddr,
        server: IpAddr,
        events: &Arc<WorkerQueue<Event>>,
    ) -> Result<Self> {
        let listener = TcpListener::bind(at)?;
        let addr = listener.local_addr()?;
        let fd = listener.poll_fd();
        let source = Listening {
            listener,
            server,
            events: Arc::clone(events),
        };
        let token = driver.add_source(fd, source)?;
        Ok(Self { addr, token })
    }

    /// Stops listening.
    pub(super) fn close(self, driver: &IscsiDriver) {
        driver.remove_source(self.token);
    }
}

struct Listening {
    listener: TcpListener,
    server: IpAddr,
    events: Arc<WorkerQueue<Event>>,
}

impl Listening {
    #[doc(alias = "scn_accept_connection")]
    fn accept(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..ACCEPT_BATCH {
            match self.listener.accept() {
                Ok((sock, from)) if from.ip() == self.server => {
                    let fd = sock.poll_fd();
                    let conn = Notifying {
                        sock,
                        gather: Gather::default(),
                        events: Arc::clone(&self.events),
                    };
                    match cx.add(Some(fd), |_| Box::new(conn)) {
                        Ok(token) => cx.set_timer(token, 0, cx.now() + Delta::from_secs(SILENCE_S)),
                        Err(e) => pr_warn_ratelimited!("iSNS: a notification is lost: {e}"),
                    }
                }
                Ok((_, from)) => {
                    pr_warn_ratelimited!(
                        "iSNS: {from} is not the server, its connection is closed"
                    );
                }
                Err(e) if e == code::EAGAIN => return,
                Err(_) => {
                    cx.set_timer(cx.token(), 0, cx.now() + Delta::from_secs(1));
                    return;
                }
            }
        }
        cx.reschedule(cx.token());
    }
}

impl Source for Listening {
    fn ready(&mut self, cx: &mut Cx<'_>, _ev: Ready) {
        self.accept(cx);
    }

    fn woken(&mut self, _cx: &mut Cx<'_>) {}

    fn timer(&mut self, cx: &mut Cx<'_>, _slot: u32) {
        self.accept(cx);
    }
}

/// A connection of the server to us.
struct Notifying {
    sock: Socket,
    gather: Gather,
    events: Arc<WorkerQueue<Event>>,
}

impl Notifying {
    /// Takes what is there. Errors: the connection is over.
    #[doc(alias = "isns_scn_handle")]
    fn receive(&mut self) -> Result {
        let mut buf = [0; 4096];
        loop {
            match self.sock.recv_bytes(&mut buf) {
                Ok(0) => return Err(code::ECONNRESET),
                Ok(n) => self.gather.add(buf.get(..n).unwrap_or_default())?,
                Err(e) if e == code::EAGAIN => return Ok(()),
                Err(e) => return Err(e),
            }
            while let Some(message) = self.gather.next()? {
                if let Some(answer) = answer(&message) {
                    // Small, and the only thing under way: it fits into the socket.
                    self.sock.send(&answer.encode())?;
                }
                if message.function == function::SCN {
                    self.events.push(Event::Notified);
                }
            }
        }
    }
}

/// The answer to a message of the server, if it is one that gets any.
#[doc(alias = "send_scn_rsp")]
fn answer(message: &Message) -> Option<Message> {
    let mut body = Body::response(0);
    match message.function {
        function::SCN => {
            let dest = message.attrs().find(|(t, _)| *t == tag::ISCSI_NAME)?;
            body.add(dest.0, dest.1);
        }
        function::ESI => {
            for (tag, value) in message.attrs() {
                body.add(tag, value);
            }
        }
        _ => return None,
    }
    Some(Message {
        function: message.function | RESPONSE,
        flags: flags::CLIENT,
        transaction: message.transaction,
        body: body.finish(),
    })
}

impl Source for Notifying {
    fn ready(&mut self, cx: &mut Cx<'_>, _ev: Ready) {
        match self.receive() {
            Ok(()) => cx.set_timer(cx.token(), 0, cx.now() + Delta::from_secs(SILENCE_S)),
            Err(_) => cx.remove(cx.token()),
        }
    }

    fn woken(&mut self, _cx: &mut Cx<'_>) {}

    fn timer(&mut self, cx: &mut Cx<'_>, _slot: u32) {
        cx.remove(cx.token());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_answered_and_nothing_else() {
        let mut body = Body::default();
        body.text(tag::ISCSI_NAME, "iqn.t").number(7, 9);
        let scn = Message {
            function: function::SCN,
            transaction: 5,
            body: body.finish(),
            ..Message::default()
        };
        let rsp = answer(&scn).unwrap_or_default();
        assert_eq!(
            (rsp.function, rsp.transaction, rsp.status()),
            (0x8008, 5, Some(0))
        );
        let tags: Vec<_> = rsp.attrs().map(|a| a.0).collect();
        assert_eq!(tags, [tag::ISCSI_NAME]);
        let esi = Message {
            function: function::ESI,
            ..scn.clone()
        };
        assert_eq!(answer(&esi).map(|m| m.attrs().count()), Some(2));
        let other = Message { function: 2, ..scn };
        assert_eq!(answer(&other), None);
    }
}
