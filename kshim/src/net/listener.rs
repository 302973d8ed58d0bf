//! Listening sockets.

use super::{Socket, SocketAddr};
use crate::error::Result;
use crate::sys::net;
use crate::sys::poll::PollFd;

/// Connections that wait to be accepted, at most; the kernel caps it at `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 1024;

/// A listening TCP socket, non-blocking.
///
/// ```
/// use kshim::error::code;
/// use kshim::net::{Socket, TcpListener};
///
/// # fn main() -> kshim::error::Result {
/// let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap())?;
/// assert_eq!(listener.accept().unwrap_err(), code::EAGAIN);
/// let client = Socket::connect(listener.local_addr()?)?;
/// let (server, from) = listener.accept()?;
/// assert_eq!(from, client.local_addr()?);
/// # Ok(()) }
/// ```
///
/// # Running out of descriptors
///
/// [`accept`](TcpListener::accept) reports EMFILE and ENFILE as they are. The connection then stays in the backlog,
/// and as readiness is edge-triggered, no further edge announces it. A source that meets them keeps the listener
/// registered, arms a timer ([`Cx::set_timer`](crate::reactor::Cx::set_timer), some 100 ms) and tries again from
/// there; rescheduling at once would only spin.
#[derive(Debug)]
pub struct TcpListener {
    fd: PollFd,
}

impl TcpListener {
    /// Listens on an address with `SO_REUSEADDR`; port 0 takes a free one. An IPv6 address takes IPv6 connections only.
    ///
    /// Context: any; does not sleep.
    ///
    /// Errors: EADDRINUSE, EADDRNOTAVAIL, EACCES (a privileged port), EAFNOSUPPORT (no IPv6 here), EMFILE, ENFILE.
    pub fn bind(addr: SocketAddr) -> Result<TcpListener> {
        Ok(TcpListener {
            fd: net::listen(addr, LISTEN_BACKLOG)?,
        })
    }

    /// The listening sockets that the service manager handed over (systemd's socket activation: `LISTEN_PID`,
    /// `LISTEN_FDS`, descriptors from 3 on); none if it did not. Call it once, before any descriptor is opened.
    ///
    /// Context: any; does not sleep.
    ///
    /// Errors: EBADF (a descriptor is not there), ENOTSOCK, EINVAL (not a listening stream socket).
    #[doc(alias = "sd_listen_fds")]
    pub fn inherited() -> Result<Vec<TcpListener>> {
        let fds = net::inherited_listeners()?;
        Ok(fds.into_iter().map(|fd| TcpListener { fd }).collect())
    }

    /// Takes the next connection, non-blocking and close-on-exec. Accept until EAGAIN.
    ///
    /// Context: any; does not sleep.
    ///
    /// Errors: EAGAIN (none is waiting), EMFILE, ENFILE, ENOBUFS and ENOMEM (see the type's documentation). Connections
    /// that broke while they waited are skipped.
    pub fn accept(&self) -> Result<(Socket, SocketAddr)> {
        let (fd, addr) = net::accept(&self.fd)?;
        Ok((Socket::from_poll_fd(fd), addr))
    }

    /// The address it listens on, with the real port.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        net::local_addr(&self.fd)
    }

    /// The descriptor to register with a reactor.
    pub fn poll_fd(&self) -> PollFd {
        self.fd.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;

    #[test]
    fn both_families_share_a_port() {
        let v4 = TcpListener::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = v4.local_addr().unwrap().port();
        let v6 = match TcpListener::bind(SocketAddr::new("::".parse().unwrap(), port)) {
            Err(e) if e == code::EAFNOSUPPORT || e == code::EADDRNOTAVAIL => return,
            other => other.unwrap(),
        };
        let c = Socket::connect(SocketAddr::new("::1".parse().unwrap(), port)).unwrap();
        let (_, from) = v6.accept().unwrap();
        assert_eq!(from, c.local_addr().unwrap());
        assert_eq!(v4.accept().unwrap_err(), code::EAGAIN);
    }

    #[test]
    fn a_taken_port_is_refused() {
        let a = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let again = TcpListener::bind(a.local_addr().unwrap());
        assert_eq!(again.unwrap_err(), code::EADDRINUSE);
    }
}
