//! TCP sockets for reactors.
//!
//! [`TcpListener`] and [`Socket`] never block, except where a function says so; a reactor watches them through
//! [`Socket::poll_fd`]. Both are handles of a shared descriptor: a registered socket is closed when it is dropped
//! *and* its source was removed from the reactor.
//!
//! Receiving goes into an [`RxBuf`], many messages per call, from which parsed pieces can be taken without copying; or
//! straight into a command's pages ([`Socket::recv_into`]). Sending gathers headers and data of many messages in one
//! call ([`Socket::send_iter`]).
//!
//! C headers: `include/linux/net.h` (`kernel_sendmsg`, `kernel_recvmsg`), `include/net/sock.h`.

mod listener;
mod local;
mod rxbuf;
mod send;
mod socket;

pub use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use listener::{LISTEN_BACKLOG, TcpListener};
pub use local::{LocalListener, LocalStream};
pub use rxbuf::{RX_CHUNK, RxBuf};
pub use send::{IoPart, MAX_IOV};
pub use socket::{How, Keepalive, Socket};

/// Addresses of a host, by its name or by an address as text, with this port.
///
/// Context: may sleep, as long as the resolver takes.
///
/// Errors: ENOENT (no such host, or nobody can say).
///
/// ```
/// let addrs = kshim::net::resolve("127.0.0.1", 10809)?;
/// assert_eq!(addrs, ["127.0.0.1:10809".parse().unwrap()]);
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "getaddrinfo")]
pub fn resolve(host: &str, port: u16) -> crate::error::Result<Vec<SocketAddr>> {
    crate::sys::net::resolve(host, port)
}

/// IP addresses of the host's network interfaces, loopback and link-local ones too, in the host's order.
///
/// Context: any; a system call, for rare questions.
///
/// Errors: ENOMEM, ENOBUFS.
#[doc(alias = "getifaddrs")]
pub fn interface_addrs() -> crate::error::Result<Vec<IpAddr>> {
    crate::sys::net::interface_addrs()
}
