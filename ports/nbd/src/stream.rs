//! A socket with deadlines, and what was received too early.

use kshim::net::{How, IoPart, RX_CHUNK, RxBuf, Socket};
use kshim::prelude::*;
use kshim::reactor::Ready;
use kshim::scatterlist::SGTable;
use kshim::time::{Delta, Instant};

/// Waits until the socket is ready or the deadline has passed. Errors: `ETIMEDOUT`.
fn wait(sock: &Socket, events: Ready, deadline: Instant) -> Result {
    let left = deadline - Instant::now();
    if left <= Delta::ZERO || sock.wait(events, Some(left))?.is_empty() {
        return Err(ETIMEDOUT);
    }
    Ok(())
}

/// Sends all. Errors: `ETIMEDOUT`, those of [`Socket::send_iter`].
pub(crate) fn send_all(sock: &Socket, bytes: &[u8], deadline: Instant) -> Result {
    let mut sent = 0;
    while sent < bytes.len() {
        let mut parts = std::iter::once(IoPart::Bytes(bytes));
        match sock.send_iter(&mut parts, sent, false) {
            Ok(n) => sent += n,
            Err(EAGAIN) => wait(sock, Ready::WRITE, deadline)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The receiving side.
pub(crate) struct Reader<'a> {
    sock: &'a Socket,
    buf: RxBuf,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(sock: &'a Socket) -> Reader<'a> {
        Reader {
            sock,
            buf: RxBuf::new(RX_CHUNK),
        }
    }

    /// The first `n` bytes of what comes, left there. `n` is at most a few KiB.
    ///
    /// Errors: `ETIMEDOUT`; `ECONNRESET`: the end of file; those of [`Socket::recv`].
    pub(crate) fn peek(&mut self, n: usize, deadline: Instant) -> Result<&[u8]> {
        while self.buf.len() < n {
            if self.buf.spare() < n {
                self.buf.reserve(n)?;
            }
            match self.sock.recv(&mut self.buf) {
                Ok(0) => return Err(ECONNRESET),
                Ok(_) => {}
                Err(EAGAIN) => wait(self.sock, Ready::READ, deadline)?,
                Err(e) => return Err(e),
            }
        }
        self.buf.data().get(..n).ok_or(EPROTO)
    }

    /// Takes bytes that were peeked at.
    pub(crate) fn consume(&mut self, n: usize) {
        self.buf.consume(n);
    }

    /// Takes `N` bytes. Errors: as [`Reader::peek`].
    pub(crate) fn take<const N: usize>(&mut self, deadline: Instant) -> Result<[u8; N]> {
        let bytes = *self.peek(N, deadline)?.first_chunk::<N>().ok_or(EPROTO)?;
        self.consume(N);
        Ok(bytes)
    }

    /// Receives what there is of `len` bytes into a table, and returns how much; 0: nothing is there now.
    ///
    /// Errors: `ECONNRESET`: the end of file; those of [`Socket::recv_into`].
    pub(crate) fn recv_into(&mut self, sg: &mut SGTable, at: usize, len: usize) -> Result<usize> {
        let early = self.buf.data();
        if let Some(early) = early.get(..early.len().min(len)).filter(|e| !e.is_empty()) {
            sg.copy_from_slice(at, early)?;
            let n = early.len();
            self.buf.consume(n);
            return Ok(n);
        }
        match self.sock.recv_into(sg, at, len, Some(&mut self.buf)) {
            Ok(0) => Err(ECONNRESET),
            Ok(n) => Ok(n.min(len)),
            Err(EAGAIN) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Waits for more. Errors: `ETIMEDOUT`.
    pub(crate) fn wait(&self, deadline: Instant) -> Result {
        wait(self.sock, Ready::READ, deadline)
    }
}

/// Ends a connection in both directions: who waits for it wakes up.
pub(crate) fn hang_up(sock: &Socket) {
    // It may have ended by itself.
    let _ = sock.shutdown(How::Both);
}
