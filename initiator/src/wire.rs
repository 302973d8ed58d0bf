//! A TCP connection that moves PDUs, or any bytes, and never deadlocks on full buffers: while a send waits for room,
//! what the target sends is taken in.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::pdu::{BHS_LEN, Bhs, Pdu};

/// How long a reply may take before a test fails.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a PDU could not be sent or received.
#[derive(Debug)]
pub enum WireError {
    /// The target closed or reset the connection.
    Closed,
    /// Nothing came in time.
    Timeout,
    /// A digest of the target was wrong.
    Digest(&'static str),
    /// Anything else the socket reported.
    Io(io::Error),
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => write!(f, "connection closed by the target"),
            Self::Timeout => write!(f, "no answer in time"),
            Self::Digest(which) => write!(f, "wrong {which} digest"),
            Self::Io(e) => write!(f, "socket: {e}"),
        }
    }
}

impl std::error::Error for WireError {}

impl From<io::Error> for WireError {
    fn from(e: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match e.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Self::Closed,
            _ => Self::Io(e),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Wire {
    sock: TcpStream,
    rx: Vec<u8>,
    /// Bytes of `rx` that were already taken.
    rx_at: usize,
    /// Longest wait of one call.
    pub timeout: Duration,
    /// Header digests in both directions.
    pub header_digest: bool,
    /// Data digests in both directions.
    pub data_digest: bool,
}

impl Wire {
    /// Connects to a portal.
    pub fn connect(addr: SocketAddr) -> Result<Self, WireError> {
        let sock = TcpStream::connect_timeout(&addr, DEFAULT_TIMEOUT)?;
        sock.set_nodelay(true)?;
        sock.set_nonblocking(true)?;
        Ok(Self {
            sock,
            rx: Vec::new(),
            rx_at: 0,
            timeout: DEFAULT_TIMEOUT,
            header_digest: false,
            data_digest: false,
        })
    }

    /// Our address.
    pub fn local_addr(&self) -> SocketAddr {
        self.sock
            .local_addr()
            .expect("a connected socket has an address")
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, mut bytes: &[u8]) -> Result<(), WireError> {
        let deadline = Instant::now() + self.timeout;
        while !bytes.is_empty() {
            match self.sock.write(bytes) {
                Ok(0) => return Err(WireError::Closed),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN | PollFlags::OUT, deadline)?;
                    // An end of stream is reported by the next receive, after what came before it.
                    let _ = self.fill()?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Sends bytes and takes nothing in meanwhile. False if the target does not take them for so long, or has ended.
    pub fn send_blind(&mut self, mut bytes: &[u8], patience: Duration) -> bool {
        let mut deadline = Instant::now() + patience;
        while !bytes.is_empty() {
            match self.sock.write(bytes) {
                Ok(0) => return false,
                Ok(n) => {
                    bytes = &bytes[n..];
                    deadline = Instant::now() + patience;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.wait(PollFlags::OUT, deadline).is_err() {
                        return false;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Sends a PDU with the digests of this connection.
    pub fn send(&mut self, pdu: &Pdu) -> Result<(), WireError> {
        let bytes = pdu.encode(self.header_digest, self.data_digest);
        self.send_bytes(&bytes)
    }

    /// Receives the next PDU.
    pub fn recv(&mut self) -> Result<Pdu, WireError> {
        let deadline = Instant::now() + self.timeout;
        self.recv_until(deadline)
    }

    /// Receives the next PDU, waiting until `deadline` at most.
    pub fn recv_until(&mut self, deadline: Instant) -> Result<Pdu, WireError> {
        self.need(BHS_LEN, deadline)?;
        let mut bhs = [0; BHS_LEN];
        bhs.copy_from_slice(&self.rx[self.rx_at..self.rx_at + BHS_LEN]);
        let bhs = Bhs(bhs);
        let header = BHS_LEN + bhs.ahs_len();
        let header_all = header + if self.header_digest { 4 } else { 0 };
        let padded = bhs.data_len().next_multiple_of(4);
        let digest = if self.data_digest && padded > 0 { 4 } else { 0 };
        self.need(header_all + padded + digest, deadline)?;
        let bytes = &self.rx[self.rx_at..self.rx_at + header_all + padded + digest];
        if self.header_digest && bytes[header..header_all] != crc_bytes(&bytes[..header]) {
            return Err(WireError::Digest("header"));
        }
        let body = &bytes[header_all..header_all + padded];
        if digest > 0 && bytes[header_all + padded..] != crc_bytes(body) {
            return Err(WireError::Digest("data"));
        }
        let pdu = Pdu {
            bhs,
            ahs: bytes[BHS_LEN..header].to_vec(),
            data: body[..bhs.data_len()].to_vec(),
        };
        self.rx_at += header_all + padded + digest;
        if self.rx_at == self.rx.len() {
            self.rx.clear();
            self.rx_at = 0;
        } else if self.rx_at > 1 << 20 {
            self.rx.drain(..self.rx_at);
            self.rx_at = 0;
        }
        Ok(pdu)
    }

    /// Waits until the target closes the connection; PDUs that come before are returned.
    pub fn recv_to_end(&mut self) -> Result<Vec<Pdu>, WireError> {
        let deadline = Instant::now() + self.timeout;
        let mut pdus = Vec::new();
        loop {
            match self.recv_until(deadline) {
                Ok(pdu) => pdus.push(pdu),
                Err(WireError::Closed) => return Ok(pdus),
                Err(e) => return Err(e),
            }
        }
    }

    /// Closes our sending direction: the target sees end of stream.
    pub fn shutdown_write(&self) {
        // The target may have closed it first.
        let _ = self.sock.shutdown(Shutdown::Write);
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.sock, Some(Duration::ZERO))
            .expect("SO_LINGER on a TCP socket");
    }

    fn need(&mut self, len: usize, deadline: Instant) -> Result<(), WireError> {
        while self.rx.len() - self.rx_at < len {
            match self.fill()? {
                Filled::End => return Err(WireError::Closed),
                Filled::Some => {}
                Filled::Nothing => self.wait(PollFlags::IN, deadline)?,
            }
        }
        Ok(())
    }

    /// Takes in what is there.
    fn fill(&mut self) -> Result<Filled, WireError> {
        const CHUNK: usize = 256 << 10;
        let at = self.rx.len();
        self.rx.resize(at + CHUNK, 0);
        let result = self.sock.read(&mut self.rx[at..]);
        self.rx.truncate(at + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => Ok(Filled::End),
            Ok(_) => Ok(Filled::Some),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Filled::Some),
            Err(e) => Err(e.into()),
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), WireError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(WireError::Timeout);
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.sock, flags)];
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(WireError::Io(e.into())),
        }
    }
}

enum Filled {
    Some,
    Nothing,
    End,
}

/// A digest as it is on the wire: CRC32C, little-endian.
pub fn crc_bytes(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).to_le_bytes()
}
