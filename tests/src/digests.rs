//! A proxy that puts data digests between an initiator that has none and a server: it agrees on them with the server,
//! adds them to what goes there, and checks and takes them off what comes back. Header digests go through as they are.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::pdu::{BHS_LEN, Bhs, op};
use crate::wire::crc_bytes;

const NONE: &str = "DataDigest=None";
const CRC: &str = "DataDigest=CRC32C";

/// Adds data digests to connections.
#[derive(Debug)]
pub struct DigestProxy {
    /// Where it listens.
    pub addr: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    added: AtomicU64,
    checked: AtomicU64,
    wrong: AtomicU64,
}

/// What both directions of a connection know.
#[derive(Debug, Default)]
struct Agreed {
    header: AtomicBool,
    data: AtomicBool,
}

impl DigestProxy {
    /// A proxy on a free port of the loopback interface.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let counts = Arc::new(Counts::default());
        let own = Arc::clone(&counts);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(to) else {
                    continue;
                };
                let agreed = Arc::new(Agreed::default());
                for (from, to, to_server) in [(&client, &server, true), (&server, &client, false)] {
                    let (agreed, counts) = (Arc::clone(&agreed), Arc::clone(&own));
                    let end = |s: &TcpStream| s.try_clone().expect("a descriptor");
                    let (from, to) = (end(from), end(to));
                    thread::spawn(move || {
                        // An end of either side ends both.
                        let _ = forward(&from, &to, to_server, &agreed, &counts);
                        let _ = to.shutdown(Shutdown::Both);
                        let _ = from.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { addr, counts }
    }

    /// Data digests added, checked, and found wrong so far.
    pub fn counts(&self) -> (u64, u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let Counts {
            added,
            checked,
            wrong,
        } = &*self.counts;
        (load(added), load(checked), load(wrong))
    }
}

fn read(mut from: &TcpStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Moves PDUs until the connection ends.
fn forward(
    from: &TcpStream,
    mut to: &TcpStream,
    to_server: bool,
    agreed: &Agreed,
    counts: &Counts,
) -> io::Result<()> {
    let _ = to.set_nodelay(true);
    loop {
        let mut bhs = [0; BHS_LEN];
        bhs.copy_from_slice(&read(from, BHS_LEN)?);
        let mut bhs = Bhs(bhs);
        let login = matches!(bhs.opcode(), op::LOGIN | op::LOGIN_RESPONSE);
        let on = |flag: &AtomicBool| !login && flag.load(Ordering::SeqCst);
        let (header, data_digest) = (on(&agreed.header), on(&agreed.data));
        let head = read(from, bhs.ahs_len() + if header { 4 } else { 0 })?;
        let mut data = read(from, bhs.data_len().next_multiple_of(4))?;
        let mut digest = Vec::new();
        if data_digest && !data.is_empty() {
            let right = crc_bytes(&data);
            if to_server {
                digest = right.to_vec();
                counts.added.fetch_add(1, Ordering::Relaxed);
            } else {
                counts.checked.fetch_add(1, Ordering::Relaxed);
                if read(from, 4)? != right {
                    counts.wrong.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if login {
            data.truncate(bhs.data_len());
            data = login_text(&data, to_server, agreed);
            bhs.set_data_len(data.len());
            data.resize(data.len().next_multiple_of(4), 0);
        }
        to.write_all(&[&bhs.0[..], &head, &data, &digest].concat())?;
    }
}

/// The text of a login PDU as the other side is to see it; notes what was agreed on.
fn login_text(data: &[u8], to_server: bool, agreed: &Agreed) -> Vec<u8> {
    let text = String::from_utf8_lossy(data);
    if to_server {
        return text.replace(NONE, CRC).into_bytes();
    }
    if text.contains("HeaderDigest=CRC32C") {
        agreed.header.store(true, Ordering::SeqCst);
    }
    if text.contains(CRC) {
        agreed.data.store(true, Ordering::SeqCst);
    }
    text.replace(CRC, NONE).into_bytes()
}
