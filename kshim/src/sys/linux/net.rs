//! Sockets: creation, addresses, options, and the two gather/scatter calls.
//!
//! # Soundness
//!
//! Scattering and gathering goes through arrays of raw `iovec`s, because a piece may be lent memory, of which no Rust
//! reference may exist ([`LentRange`](crate::page::LentRange)). [`SendList`] and [`RecvList`] carry the lifetime of what they point to: each
//! entry is made from a borrow that outlives the list, shared for sending and exclusive for receiving, and the lists'
//! fields are private to this module. The kernel keeps nothing of them after the call.

use std::cell::Cell;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

use super::poll::{PollFd, Timeout, bits};
use crate::error::{Error, Result, code};
use crate::scatterlist::SGTable;

/// Entries that one system call takes (`UIO_MAXIOV`).
pub(crate) const MAX_IOV: usize = 1024;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn family(addr: &SocketAddr) -> AddressFamily {
    if addr.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    }
}

/// A listening, non-blocking TCP socket.
pub(crate) fn listen(addr: SocketAddr, backlog: i32) -> Result<PollFd> {
    let fd = net::socket_with(family(&addr), SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if addr.is_ipv6() {
        // [::]:3260 beside 0.0.0.0:3260 must not collide.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    net::bind(&fd, &addr)?;
    net::listen(&fd, backlog)?;
    Ok(PollFd::new(fd))
}

/// The next connection of a listener. Connections that died in the queue are skipped.
pub(crate) fn accept(fd: &PollFd) -> Result<(PollFd, SocketAddr)> {
    loop {
        match net::acceptfrom_with(fd, FLAGS) {
            Ok((conn, addr)) => {
                let Some(addr) = addr.and_then(|a| SocketAddr::try_from(a).ok()) else {
                    continue;
                };
                return Ok((PollFd::new(conn), addr));
            }
            // Linux passes pending network errors of the new connection through accept (accept(2)); each of them
            // consumes a connection, so this ends.
            Err(
                Errno::INTR
                | Errno::CONNABORTED
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH,
            ) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Addresses of a host by its name, or its address as text. Sleeps; asks the resolver.
pub(crate) fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    crate::might_sleep!();
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(host, port));
    // The resolver's own errors are no errnos.
    found.map(Iterator::collect).map_err(|_| code::ENOENT)
}

/// A connected, non-blocking TCP socket. Sleeps until the connection stands or fails, or for that time.
pub(crate) fn connect(addr: SocketAddr, timeout: Timeout) -> Result<PollFd> {
    crate::might_sleep!();
    let fd = net::socket_with(family(&addr), SocketType::STREAM, FLAGS, None)?;
    match net::connect(&fd, &addr) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            let fd = &fd;
            if wait_fd(fd, bits::OUT, timeout)? == 0 {
                return Err(code::ETIMEDOUT);
            }
            sockopt::socket_error(fd)??;
        }
        Err(e) => return Err(e.into()),
    }
    Ok(PollFd::new(fd))
}

/// Two connected, non-blocking stream sockets of the local family.
pub(crate) fn pair() -> Result<(PollFd, PollFd)> {
    let (a, b) = net::socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    Ok((PollFd::new(a), PollFd::new(b)))
}

pub(crate) fn local_addr(fd: &PollFd) -> Result<SocketAddr> {
    SocketAddr::try_from(net::getsockname(fd)?).map_err(|_| code::EAFNOSUPPORT)
}

pub(crate) fn peer_addr(fd: &PollFd) -> Result<SocketAddr> {
    let addr = net::getpeername(fd)?.ok_or(code::ENOTCONN)?;
    SocketAddr::try_from(addr).map_err(|_| code::EAFNOSUPPORT)
}

pub(crate) fn set_nodelay(fd: &PollFd, on: bool) -> Result {
    Ok(sockopt::set_tcp_nodelay(fd, on)?)
}

/// Seconds of silence before the first probe, between probes, and how many.
pub(crate) fn set_keepalive(fd: &PollFd, probes: Option<(u64, u64, u32)>) -> Result {
    if let Some((idle, interval, count)) = probes {
        sockopt::set_tcp_keepidle(fd, core::time::Duration::from_secs(idle))?;
        sockopt::set_tcp_keepintvl(fd, core::time::Duration::from_secs(interval))?;
        sockopt::set_tcp_keepcnt(fd, count)?;
    }
    Ok(sockopt::set_socket_keepalive(fd, probes.is_some())?)
}

pub(crate) fn set_linger_reset(fd: &PollFd) -> Result {
    Ok(sockopt::set_socket_linger(
        fd,
        Some(core::time::Duration::ZERO),
    )?)
}

pub(crate) fn set_buffer_sizes(fd: &PollFd, send: Option<usize>, recv: Option<usize>) -> Result {
    if let Some(n) = send {
        sockopt::set_socket_send_buffer_size(fd, n)?;
    }
    if let Some(n) = recv {
        sockopt::set_socket_recv_buffer_size(fd, n)?;
    }
    Ok(())
}

/// The list of getifaddrs(3), freed when it is dropped.
struct IfAddrs(*mut libc::ifaddrs);

impl Drop for IfAddrs {
    fn drop(&mut self) {
        // SAFETY: the list came from `getifaddrs`, and nothing refers to it any more.
        unsafe { libc::freeifaddrs(self.0) };
    }
}

/// IP addresses of the host's network interfaces, in the host's order.
pub(crate) fn interface_addrs() -> Result<Vec<IpAddr>> {
    let mut head = core::ptr::null_mut();
    // SAFETY: `head` is ours; the call writes the address of a list to it, or fails.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let list = IfAddrs(head);
    let mut addrs = Vec::new();
    let mut next: *const libc::ifaddrs = list.0;
    // SAFETY: `next` is an entry of the list, which lives until `list` is dropped, or null.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: an entry's address is null or a socket address, which begins with its family.
        let Some(sockaddr) = (unsafe { entry.ifa_addr.as_ref() }) else {
            continue;
        };
        match i32::from(sockaddr.sa_family) {
            libc::AF_INET => {
                // SAFETY: of this family it is a `sockaddr_in`, in memory that getifaddrs aligned for any address.
                let v4 = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
                addrs.push(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()));
            }
            libc::AF_INET6 => {
                // SAFETY: of this family it is a `sockaddr_in6`.
                let v6 = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
                addrs.push(IpAddr::from(v6.sin6_addr.s6_addr));
            }
            _ => {}
        }
    }
    Ok(addrs)
}

/// First descriptor of those that a service manager hands over (sd_listen_fds(3)).
const LISTEN_FDS_START: i32 = 3;
/// More than any service manager hands over.
const LISTEN_FDS_MAX: i32 = 1024;

/// The listening stream sockets that the service manager handed over (`LISTEN_PID`, `LISTEN_FDS`), non-blocking and
/// close-on-exec. None if it handed over none, or to another process, and the second time. Call it before descriptors are
/// opened.
pub(crate) fn inherited_listeners() -> Result<Vec<PollFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<i32>().ok());
    let me = i32::try_from(std::process::id()).ok();
    let (pid, count) = (number("LISTEN_PID"), number("LISTEN_FDS"));
    let count = count.filter(|_| pid.is_some() && pid == me).unwrap_or(0);
    let mut listeners = Vec::new();
    for fd in (LISTEN_FDS_START..).take(usize::try_from(count.min(LISTEN_FDS_MAX)).unwrap_or(0)) {
        // SAFETY: asks for a flag of a descriptor, if there is such a one.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the descriptor is open, and by the protocol it is this process's to own: whoever started us opened
        // it for us, and nothing else here knows it: this runs once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        if sockopt::socket_type(&fd)? != SocketType::STREAM || !sockopt::socket_acceptconn(&fd)? {
            return Err(code::EINVAL);
        }
        listeners.push(PollFd::new(fd));
    }
    Ok(listeners)
}

/// The error pending on the socket, which this clears.
pub(crate) fn take_error(fd: &PollFd) -> Result {
    Ok(sockopt::socket_error(fd)??)
}

pub(crate) fn shutdown(fd: &PollFd, read: bool, write: bool) -> Result {
    let how = match (read, write) {
        (true, true) => net::Shutdown::Both,
        (true, false) => net::Shutdown::Read,
        (false, true) => net::Shutdown::Write,
        (false, false) => return Ok(()),
    };
    Ok(net::shutdown(fd, how)?)
}

/// Sleeps until one of the asked-for [`bits`] holds; returns those that do, 0 after the timeout.
pub(crate) fn wait(fd: &PollFd, events: u32, timeout: Timeout) -> Result<u32> {
    crate::might_sleep!();
    wait_fd(fd, events, timeout)
}

fn wait_fd(fd: impl AsFd, events: u32, timeout: Timeout) -> Result<u32> {
    use rustix::event::{PollFd as Pfd, PollFlags, poll};
    let flags = PollFlags::from_bits_retain(u16::try_from(events).unwrap_or(u16::MAX));
    let mut fds = [Pfd::new(&fd, flags)];
    let ts = timeout.timespec();
    loop {
        match poll(&mut fds, ts.as_ref()) {
            Ok(_) => return Ok(u32::from(fds[0].revents().bits())),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// One `recv`. 0: end of file (or an empty buffer).
pub(crate) fn recv(fd: &PollFd, buf: &mut [u8]) -> Result<usize> {
    loop {
        match net::recv(fd, &mut *buf, RecvFlags::DONTWAIT) {
            Ok((n, _)) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

thread_local! {
    /// The array of the last list that was dropped, for the next.
    static SPARE_IOV: Cell<Vec<libc::iovec>> = const { Cell::new(Vec::new()) };
}

/// A reused array of at most [`MAX_IOV`] entries.
struct IovArray(Vec<libc::iovec>);

impl IovArray {
    fn new() -> IovArray {
        let mut v = SPARE_IOV.take();
        v.clear();
        if v.capacity() < MAX_IOV {
            v.reserve_exact(MAX_IOV);
        }
        IovArray(v)
    }

    /// False: full.
    fn push(&mut self, base: *mut u8, len: usize) -> bool {
        if self.0.len() == MAX_IOV {
            return false;
        }
        if len != 0 {
            self.0.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            });
        }
        true
    }

    fn msghdr(&mut self) -> libc::msghdr {
        // SAFETY: all-zero is a valid `msghdr`: no name, no control data, no entries.
        let mut msg: libc::msghdr = unsafe { core::mem::zeroed() };
        msg.msg_iov = self.0.as_mut_ptr();
        msg.msg_iovlen = self.0.len() as _;
        msg
    }
}

impl Drop for IovArray {
    fn drop(&mut self) {
        SPARE_IOV.set(core::mem::take(&mut self.0));
    }
}

fn checked(n: isize) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::from(std::io::Error::last_os_error()))
}

/// Memory to send, piece by piece.
pub(crate) struct SendList<'a> {
    iov: IovArray,
    /// # Invariants
    ///
    /// Every entry of `iov` is memory that may be read for `'a`.
    _from: PhantomData<&'a [u8]>,
}

impl<'a> SendList<'a> {
    pub(crate) fn new() -> SendList<'a> {
        SendList {
            iov: IovArray::new(),
            _from: PhantomData,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iov.0.is_empty()
    }

    /// Adds bytes. False: the list is full.
    pub(crate) fn push(&mut self, bytes: &'a [u8]) -> bool {
        // INVARIANT: borrowed for 'a.
        self.iov.push(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// Adds a range of a table. False: the list is full, and the range is there in part.
    ///
    /// Errors: EINVAL (out of the table's range).
    pub(crate) fn push_sg(&mut self, sg: &'a SGTable, at: usize, len: usize) -> Result<bool> {
        let mut room = true;
        // INVARIANT: the addresses are good while the table is borrowed, which is 'a.
        sg.for_each_raw(at, len, |base, n| {
            room = self.iov.push(base.cast_mut(), n);
            room
        })?;
        Ok(room)
    }

    /// One `sendmsg`. `more`: a further call follows at once, so the last segment need not go out short.
    pub(crate) fn send(mut self, fd: &PollFd, more: bool) -> Result<usize> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
        let msg = self.iov.msghdr();
        loop {
            // SAFETY: the descriptor is open while `fd` is borrowed; `msg` names the entries of `self.iov`, each of
            // them memory that may be read (invariant), and sendmsg does not write to it.
            let n = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &msg, flags) };
            match checked(n) {
                Err(e) if e == code::EINTR => {}
                res => return res,
            }
        }
    }
}

/// Memory to receive into, piece by piece.
pub(crate) struct RecvList<'a> {
    iov: IovArray,
    /// # Invariants
    ///
    /// Every entry of `iov` is memory that may be written for `'a`: nobody else holds a reference to it.
    _into: PhantomData<&'a mut [u8]>,
}

impl<'a> RecvList<'a> {
    pub(crate) fn new() -> RecvList<'a> {
        RecvList {
            iov: IovArray::new(),
            _into: PhantomData,
        }
    }

    /// Adds room. False: the list is full.
    pub(crate) fn push(&mut self, room: &'a mut [u8]) -> bool {
        // INVARIANT: borrowed exclusively for 'a.
        self.iov.push(room.as_mut_ptr(), room.len())
    }

    /// Adds a range of a table. False: the list is full, and the range is there in part.
    ///
    /// Errors: EINVAL (out of the table's range), EFAULT (a piece that may not be written).
    pub(crate) fn push_sg(&mut self, sg: &'a mut SGTable, at: usize, len: usize) -> Result<bool> {
        let mut room = true;
        // INVARIANT: the addresses are good, and nobody else's to access but by raw copies (lent memory), while the
        // table is borrowed exclusively, which is 'a.
        sg.for_each_raw_mut(at, len, |base, n| {
            room = self.iov.push(base, n);
            room
        })?;
        Ok(room)
    }

    /// One `recvmsg`. 0: end of file (or no room).
    pub(crate) fn recv(mut self, fd: &PollFd) -> Result<usize> {
        let mut msg = self.iov.msghdr();
        loop {
            // SAFETY: the descriptor is open while `fd` is borrowed; `msg` names the entries of `self.iov`, each of
            // them memory that is ours to write (invariant), and asks for neither a name nor control data.
            let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut msg, libc::MSG_DONTWAIT) };
            match checked(n) {
                Err(e) if e == code::EINTR => {}
                res => return res,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathers_and_scatters_in_order() {
        let (a, b) = pair().unwrap();
        let mut out = SendList::new();
        assert!(out.push(b"one ") && out.push(b"") && out.push(b"two ") && out.push(b"three"));
        assert_eq!(out.send(&a, false), Ok(13));
        let (mut x, mut y) = ([0u8; 6], [0u8; 20]);
        let mut into = RecvList::new();
        assert!(into.push(&mut x) && into.push(&mut y));
        assert_eq!(into.recv(&b), Ok(13));
        assert_eq!((&x, &y[..7]), (b"one tw", &b"o three"[..]));
        assert_eq!(RecvList::new().recv(&b).unwrap_err(), code::EAGAIN);
    }

    #[test]
    fn the_list_is_bounded_and_reused() {
        let (a, _b) = pair().unwrap();
        for _ in 0..3 {
            let mut out = SendList::new();
            for _ in 0..MAX_IOV {
                assert!(out.push(b"x"));
            }
            assert!(!out.push(b"y"));
            assert_eq!(out.send(&a, true), Ok(MAX_IOV));
        }
    }

    #[test]
    fn a_closed_peer_is_an_error_not_a_signal() {
        let (a, b) = pair().unwrap();
        drop(b);
        let mut out = SendList::new();
        out.push(b"x");
        assert_eq!(out.send(&a, false), Err(code::EPIPE));
    }
}
