//! Sockets of the local family: blocking streams with a name in the file system, credentials of the peer, and
//! descriptors that travel along.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::{Error, Result, code};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

fn stream() -> Result<OwnedFd> {
    Ok(net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn address(path: &Path) -> Result<SocketAddrUnix> {
    // The longest name is 107 bytes.
    Ok(SocketAddrUnix::new(path)?)
}

/// Listens at a path that is free, with these permission bits.
pub(crate) fn listen(path: &Path, mode: u32) -> Result<OwnedFd> {
    let addr = address(path)?;
    let fd = stream()?;
    // The file takes the mode of the socket: there is no moment at which others may connect.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    net::bind(&fd, &addr)?;
    net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

pub(crate) fn connect(path: &Path) -> Result<OwnedFd> {
    let addr = address(path)?;
    let fd = stream()?;
    loop {
        match net::connect(&fd, &addr) {
            Ok(()) => return Ok(fd),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The next connection. `EINVAL` once the listener was shut down.
pub(crate) fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    loop {
        match net::accept_with(fd, SocketFlags::CLOEXEC) {
            Ok(fd) => return Ok(fd),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Ends both directions; whoever sleeps on the socket wakes up.
pub(crate) fn shutdown(fd: BorrowedFd<'_>) {
    // A peer that has left already is no concern.
    let _ = net::shutdown(fd, net::Shutdown::Both);
}

/// The user as whom the peer connected, in this process's user namespace.
pub(crate) fn peer_uid(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>())?;
    // SAFETY: the kernel writes at most `len` bytes, the size of the structure, into it. (rustix's type cannot hold the
    // process number 0, which a peer of another pid namespace has.)
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    if r != 0 {
        return Err(Error::from(std::io::Error::last_os_error()));
    }
    Ok(cred.uid)
}

/// The user of this process.
pub(crate) fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Sends all bytes; a descriptor goes with the first of them.
pub(crate) fn send_all(
    fd: BorrowedFd<'_>,
    mut bytes: &[u8],
    mut pass: Option<BorrowedFd<'_>>,
) -> Result {
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = pass.into_iter().collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        match net::sendmsg(
            fd,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(n) => {
                bytes = bytes.get(n..).unwrap_or_default();
                pass = None;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Receives some bytes, 0 at the end of the stream, and the first descriptor that came with them.
pub(crate) fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(buf)];
        match net::recvmsg(fd, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(msg) => {
                let mut passed = None;
                for m in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(fds) = m {
                        passed = passed.or(fds.into_iter().next());
                    }
                }
                return Ok((msg.bytes, passed));
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Two connected streams.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends a datagram to a path, or to an abstract name after "@".
pub(crate) fn send_datagram(to: &str, bytes: &[u8]) -> Result {
    let addr = match to.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(to)?,
    };
    let kind = SocketType::DGRAM;
    let fd = net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    net::sendto(&fd, bytes, SendFlags::NOSIGNAL, &addr)?;
    Ok(())
}

/// Whether the name is a socket; `ENOENT` when it is nothing.
pub(crate) fn is_socket(path: &Path) -> Result<bool> {
    let st = rustix::fs::lstat(path)?;
    let kind = rustix::fs::FileType::from_raw_mode(st.st_mode);
    Ok(kind == rustix::fs::FileType::Socket)
}

/// Takes the lock that a file stands for; it is held until the descriptor is closed. `EAGAIN` when another has it.
pub(crate) fn lock_file(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive)?;
    Ok(fd)
}

/// Makes a directory, and those above it with the usual bits, so that only the user may enter; one that is there stays.
pub(crate) fn create_private_dir(path: &Path) -> Result {
    if let Some(above) = path.parent() {
        super::file::create_dir_all(above)?;
    }
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// `EIO` where a stream ended although more was due.
pub(crate) fn recv_exact(fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<Option<OwnedFd>> {
    let mut passed = None;
    let mut at = 0;
    while let Some(rest) = buf.get_mut(at..).filter(|r| !r.is_empty()) {
        let (n, fd) = recv(fd, rest)?;
        passed = passed.or(fd);
        if n == 0 {
            return Err(if at == 0 { code::ENOTCONN } else { code::EIO });
        }
        at += n;
    }
    Ok(passed)
}
