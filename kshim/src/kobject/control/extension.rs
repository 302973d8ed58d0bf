//! Operations that are not of the tree: events.

use std::path::Path;

use super::wire;
use crate::error::{Result, code};
use crate::net::LocalStream;
use crate::sync::{Arc, Mutex};

/// Operations from this one on are an extension's.
pub const FIRST_EXTENSION_OP: u8 = 16;
/// Tag of what the server sends without having been asked.
pub const PUSH_TAG: u16 = 0;

/// The extension of one connection. Dropped when the connection has ended.
pub trait Extension: Send {
    /// Carries out a request; the answer's body.
    ///
    /// Context: may sleep. Errors: `EOPNOTSUPP` (no such operation), the operation's own.
    fn execute(&mut self, op: u8, body: &[u8]) -> Result<Vec<u8>>;
}

/// Makes the extension of a connection, when its client asks for the first of these operations.
pub type OpenExtension = Box<dyn Fn(Sink) -> Result<Box<dyn Extension>> + Send + Sync>;

/// The server's end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) stream: LocalStream,
    sending: Mutex<()>,
}

impl Peer {
    pub(super) fn new(stream: LocalStream) -> Self {
        let sending = Mutex::new(());
        Self { stream, sending }
    }

    /// Sends a whole message. Context: may sleep.
    pub(super) fn send(&self, bytes: &[u8]) -> Result {
        let _whole = self.sending.lock();
        self.stream.send(bytes, None)
    }
}

/// What an extension tells its client without having been asked.
#[derive(Debug, Clone)]
pub struct Sink {
    pub(super) peer: Arc<Peer>,
}

impl Sink {
    /// Sends a message.
    ///
    /// Context: may sleep, as long as the client does not read. Errors: `EPIPE` (it is gone), `EMSGSIZE`.
    pub fn send(&self, op: u8, body: &[u8]) -> Result {
        if body.len() > wire::MAX_REPLY {
            return Err(code::EMSGSIZE);
        }
        let message = wire::reply(op, PUSH_TAG, Ok(body.to_vec()));
        self.peer.send(&message)
    }
}

/// What comes from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Operation.
    pub op: u8,
    /// Tag of the request that it answers, or [`PUSH_TAG`].
    pub tag: u16,
    /// What became of the request, with the body of the answer.
    pub result: Result<Vec<u8>>,
}

/// The client's end of a connection, message by message: for those who are told things. One thread receives; any may
/// send.
#[derive(Debug)]
pub struct Channel {
    peer: Peer,
}

impl Channel {
    /// Connects and greets.
    ///
    /// Context: may sleep. Errors: as [`Client::connect`](super::Client::connect).
    pub fn connect(path: &Path) -> Result<Channel> {
        let peer = Peer::new(super::client::connect(path)?);
        Ok(Channel { peer })
    }

    /// Sends a request.
    ///
    /// Context: may sleep. Errors: `E2BIG`, `EPIPE` (the server is gone).
    pub fn send(&self, op: u8, tag: u16, body: &[u8]) -> Result {
        self.peer.send(&wire::request(op, tag, body)?)
    }

    /// Waits for the next message.
    ///
    /// Context: may sleep; one thread. Errors: `ENOTCONN` (the server has gone), `EIO`, `EPROTO`.
    pub fn recv(&self) -> Result<Message> {
        let mut head = [0; wire::REPLY_HEAD];
        self.peer.stream.recv_exact(&mut head)?;
        let head = wire::ReplyHead::parse(head)?;
        let mut body = vec![0; head.len];
        if head.len > 0 {
            self.peer.stream.recv_exact(&mut body)?;
        }
        Ok(Message {
            op: head.op,
            tag: head.tag,
            result: head.result.map(|()| body),
        })
    }

    /// Ends the connection; who sleeps in [`recv`](Self::recv) wakes up.
    ///
    /// Context: any.
    pub fn shutdown(&self) {
        self.peer.stream.shutdown();
    }
}
