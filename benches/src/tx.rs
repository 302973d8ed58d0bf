//! What waits to be sent: headers in one buffer, payload as ranges of one bulk memory, one `sendmsg` for all.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Most pieces of one `sendmsg`.
const MAX_IOV: usize = 1024;

#[derive(Clone, Copy, Debug)]
enum Piece {
    /// Bytes of `heads`.
    Head(usize, usize),
    /// Bytes of the bulk memory.
    Bulk(usize, usize),
}

/// PDUs to be sent together.
#[derive(Debug, Default)]
pub struct Batch {
    heads: Vec<u8>,
    pieces: Vec<Piece>,
    /// How much of the first unsent piece has gone.
    sent: (usize, usize),
}

/// How far [`Batch::send`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Everything; the batch is empty.
    All,
    /// The socket is full.
    Full,
}

impl Batch {
    /// Nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Number of pieces that wait.
    #[inline]
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Adds bytes that are copied: headers, digests, short data. Adjacent ones become one piece.
    #[inline]
    pub fn head(&mut self, bytes: &[u8]) {
        let at = self.heads.len();
        self.heads.extend_from_slice(bytes);
        if let Some(Piece::Head(off, len)) = self.pieces.last_mut()
            && *off + *len == at
        {
            *len += bytes.len();
            return;
        }
        self.pieces.push(Piece::Head(at, bytes.len()));
    }

    /// Adds `len` bytes of the bulk memory from `off`.
    #[inline]
    pub fn bulk(&mut self, off: usize, len: usize) {
        self.pieces.push(Piece::Bulk(off, len));
    }

    /// Sends as much as the socket takes; `calls` counts system calls.
    ///
    /// # Errors
    ///
    /// What the socket says but for "try again".
    pub fn send(
        &mut self,
        fd: impl AsFd,
        bulk: &[u8],
        wait: bool,
        calls: &mut u64,
    ) -> io::Result<Sent> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !wait);
        while self.sent.0 < self.pieces.len() {
            let mut iov = Vec::with_capacity((self.pieces.len() - self.sent.0).min(MAX_IOV));
            let mut gone = self.sent.1;
            for piece in self.pieces.iter().skip(self.sent.0).take(MAX_IOV) {
                let bytes = match *piece {
                    Piece::Head(off, len) => &self.heads[off..off + len],
                    Piece::Bulk(off, len) => &bulk[off..off + len],
                };
                iov.push(IoSlice::new(&bytes[gone..]));
                gone = 0;
            }
            *calls += 1;
            let n = match sendmsg(&fd, &iov, &mut SendAncillaryBuffer::default(), flags) {
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(Sent::Full),
                Err(e) => return Err(e.into()),
            };
            drop(iov);
            self.advance(n);
        }
        self.pieces.clear();
        self.heads.clear();
        self.sent = (0, 0);
        Ok(Sent::All)
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(piece) = self.pieces.get(self.sent.0) {
            let (Piece::Head(_, len) | Piece::Bulk(_, len)) = *piece;
            let left = len - self.sent.1;
            if n < left {
                self.sent.1 += n;
                return;
            }
            n -= left;
            self.sent = (self.sent.0 + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn pieces_arrive_in_order_through_a_full_socket() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let bulk: Vec<u8> = (0..1 << 20).map(|n| (n >> 3) as u8).collect();
        let mut batch = Batch::default();
        let mut want = Vec::new();
        for n in 0..2000_usize {
            batch.head(&[n as u8; 48]);
            batch.head(&[1; 4]);
            batch.bulk(n, 512);
            want.extend_from_slice(&[n as u8; 48]);
            want.extend_from_slice(&[1; 4]);
            want.extend_from_slice(&bulk[n..n + 512]);
        }
        assert_eq!(batch.pieces(), 4000);
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 2000 * (52 + 512)];
            b.read_exact(&mut got).unwrap();
            got
        });
        let mut calls = 0;
        while batch.send(&a, &bulk, false, &mut calls).unwrap() == Sent::Full {
            std::thread::yield_now();
        }
        assert!(batch.is_empty());
        assert!(reader.join().unwrap() == want);
    }
}
