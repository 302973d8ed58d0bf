//! Connected sockets.

use super::{IoPart, RxBuf, SocketAddr, send};
use crate::error::Result;
use crate::reactor::Ready;
use crate::scatterlist::SGTable;
use crate::sys::net::{self, RecvList};
use crate::sys::poll::{PollFd, Timeout, bits};
use crate::time::Delta;

/// Which direction of a connection to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Receive no more.
    Read,
    /// Send no more: the peer reads the end of file after what was sent.
    Write,
    /// Both.
    Both,
}

/// When the kernel asks a silent peer whether it is there (`SO_KEEPALIVE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Seconds of silence before the first probe.
    pub idle_secs: u32,
    /// Seconds between probes.
    pub interval_secs: u32,
    /// Probes without answer before the connection is broken (ETIMEDOUT).
    pub count: u32,
}

/// A connected stream socket, non-blocking. See the [module](super)'s documentation.
///
/// ```
/// use kshim::error::code;
/// use kshim::net::{How, RX_CHUNK, RxBuf, Socket};
/// use kshim::reactor::Ready;
///
/// let (a, b) = Socket::pair()?;
/// let mut buf = RxBuf::new(RX_CHUNK);
/// assert_eq!(b.recv(&mut buf), Err(code::EAGAIN));
/// assert_eq!(a.send(b"hello")?, 5);
/// a.shutdown(How::Write)?;
/// b.wait(Ready::READ, None)?; // a reactor's source has its `ready` called instead
/// assert_eq!(b.recv(&mut buf)?, 5);
/// assert_eq!(buf.data(), b"hello");
/// assert_eq!(b.recv(&mut buf)?, 0);
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/net.h` (`struct socket`)
#[derive(Debug)]
pub struct Socket {
    fd: PollFd,
}

impl Socket {
    /// Connects, and waits until the connection stands. The socket is non-blocking afterwards.
    ///
    /// Context: may sleep. For clients and tests; a server on a reactor only accepts.
    ///
    /// Errors: ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EMFILE.
    pub fn connect(addr: SocketAddr) -> Result<Socket> {
        Ok(Socket {
            fd: net::connect(addr, Timeout::Forever)?,
        })
    }

    /// As [`connect`](Self::connect), but waits no longer than that.
    ///
    /// Context: may sleep.
    ///
    /// Errors: ETIMEDOUT, and those of `connect`.
    pub fn connect_timeout(addr: SocketAddr, timeout: Delta) -> Result<Socket> {
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(0);
        Ok(Socket {
            fd: net::connect(addr, Timeout::Nanos(nanos))?,
        })
    }

    /// Two local sockets connected to each other. They have no addresses and no TCP options.
    ///
    /// Context: any; does not sleep. Errors: EMFILE, ENFILE.
    pub fn pair() -> Result<(Socket, Socket)> {
        let (a, b) = net::pair()?;
        Ok((Socket { fd: a }, Socket { fd: b }))
    }

    /// The descriptor to register with a reactor.
    pub fn poll_fd(&self) -> PollFd {
        self.fd.clone()
    }

    /// Sends small segments at once (`TCP_NODELAY`).
    ///
    /// Context: reactor-safe, as all that follows but for [`Socket::wait`]. Errors: EOPNOTSUPP (not TCP).
    pub fn set_nodelay(&self, on: bool) -> Result {
        net::set_nodelay(&self.fd, on)
    }

    /// Switches keepalive probes on or off. Errors: EINVAL (zero or absurd times), EOPNOTSUPP (not TCP).
    pub fn set_keepalive(&self, keepalive: Option<Keepalive>) -> Result {
        let probes =
            keepalive.map(|k| (u64::from(k.idle_secs), u64::from(k.interval_secs), k.count));
        net::set_keepalive(&self.fd, probes)
    }

    /// Has the connection reset, not closed, when the socket is dropped. For tests, and to free resources of a peer
    /// that misbehaves. Errors: those of `setsockopt(2)`, which does not fail on a socket.
    pub fn set_linger_reset(&self) -> Result {
        net::set_linger_reset(&self.fd)
    }

    /// Sets the kernel's buffer sizes (`SO_SNDBUF`, `SO_RCVBUF`; the kernel doubles and caps them). Unset, they tune themselves.
    /// Errors: EINVAL (more than 2 GiB).
    pub fn set_buffer_sizes(&self, send: Option<usize>, recv: Option<usize>) -> Result {
        net::set_buffer_sizes(&self.fd, send, recv)
    }

    /// Our address. Errors: EAFNOSUPPORT (a local pair).
    pub fn local_addr(&self) -> Result<SocketAddr> {
        net::local_addr(&self.fd)
    }

    /// The peer's address. Errors: ENOTCONN (already gone), EAFNOSUPPORT (a local pair).
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        net::peer_addr(&self.fd)
    }

    /// Ends one or both directions. Errors: ENOTCONN.
    pub fn shutdown(&self, how: How) -> Result {
        net::shutdown(&self.fd, how != How::Write, how != How::Read)
    }

    /// The error pending on the connection, which this takes: why [`Ready::ERR`] was reported. `Ok`: there is
    /// none.
    pub fn take_error(&self) -> Result {
        net::take_error(&self.fd)
    }

    /// Sleeps until the socket is ready for one of `events` ([`Ready::READ`], [`Ready::WRITE`]) and returns for what; empty
    /// after the timeout.
    ///
    /// Context: may sleep; for clients and tests. Errors: those of `ppoll(2)`, which does not fail on a socket.
    pub fn wait(&self, events: Ready, timeout: Option<Delta>) -> Result<Ready> {
        let mut b = 0;
        if events.contains(Ready::READ) {
            b |= bits::IN;
        }
        if events.contains(Ready::WRITE) {
            b |= bits::OUT;
        }
        let timeout = timeout.map_or(Timeout::Forever, |d| {
            Timeout::Nanos(u64::try_from(d.as_nanos()).unwrap_or(0))
        });
        Ok(Ready::from_poll_bits(net::wait(&self.fd, b, timeout)?))
    }

    /// Receives what there is and fits into the buffer's spare room, with one system call, and returns how much: 0 is
    /// the end of file. The buffer makes room first if it has little ([`RxBuf::make_room`]).
    ///
    /// Less than the room offered means that nothing is left: no second call is needed to see EAGAIN.
    /// [`RxBuf::spare`] after the call tells.
    ///
    /// Context: any; does not sleep.
    ///
    /// Errors: EAGAIN (nothing there), ECONNRESET, ETIMEDOUT, ENOMEM (no buffer).
    pub fn recv(&self, buf: &mut RxBuf) -> Result<usize> {
        buf.make_room()?;
        let n = net::recv(&self.fd, buf.spare_mut())?;
        buf.filled(n)?;
        Ok(n)
    }

    /// Receives bytes into `dst`, with one system call. As [`recv`](Self::recv) for those who have memory of their own.
    pub fn recv_bytes(&self, dst: &mut [u8]) -> Result<usize> {
        net::recv(&self.fd, dst)
    }

    /// A further handle of a descriptor that [`poll_fd`](Self::poll_fd) gave out.
    pub fn from_poll_fd(fd: PollFd) -> Socket {
        Socket { fd }
    }

    /// Receives into `len` bytes of `sg` from `at` on, and what follows into `then`, with one system call. Returns the sum:
    /// up to `len` went to `sg`, the rest to `then`. 0 is the end of file.
    ///
    /// This is how large write data gets into a command's pages without a copy.
    ///
    /// Context: any; does not sleep.
    ///
    /// Errors: EAGAIN (nothing there), EINVAL (out of the table's range), EFAULT (a shared or zero piece),
    /// ECONNRESET, ETIMEDOUT, ENOMEM (no buffer).
    pub fn recv_into(
        &self,
        sg: &mut SGTable,
        at: usize,
        len: usize,
        then: Option<&mut RxBuf>,
    ) -> Result<usize> {
        let mut list = RecvList::new();
        let whole = list.push_sg(sg, at, len)?;
        let Some(buf) = then.filter(|_| whole) else {
            return list.recv(&self.fd);
        };
        buf.make_room()?;
        list.push(buf.spare_mut());
        let n = list.recv(&self.fd)?;
        buf.filled(n.saturating_sub(len))?;
        Ok(n)
    }

    /// Sends what the parts hold after their first `skip` bytes, with one system call, and returns how many bytes
    /// went, which may be fewer. The caller adds them to `skip` (or drops parts that went whole) and calls again when
    /// the socket is writable.
    ///
    /// At most [`MAX_IOV`](super::MAX_IOV) pieces go per call. `more`: another call follows at once (`MSG_MORE`). 0 without an
    /// error: there was nothing to send.
    ///
    /// Context: any; does not sleep. Never raises SIGPIPE.
    ///
    /// Errors: EAGAIN (no room), EPIPE, ECONNRESET, ETIMEDOUT, EINVAL (a part beyond its table).
    pub fn send_iter<'a>(
        &self,
        parts: &mut dyn Iterator<Item = IoPart<'a>>,
        skip: usize,
        more: bool,
    ) -> Result<usize> {
        let list = send::gather(parts, skip)?;
        if list.is_empty() {
            return Ok(0);
        }
        list.send(&self.fd, more)
    }

    /// Sends bytes, with one system call. See [`send_iter`](Self::send_iter).
    pub fn send(&self, bytes: &[u8]) -> Result<usize> {
        self.send_iter(&mut core::iter::once(IoPart::Bytes(bytes)), 0, false)
    }
}
