//! A TCP proxy that breaks connections in the ways that networks do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Forwards connections to a server that may change.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    pairs: Vec<Pair>,
}

/// Both ends of a connection, and whether it goes on.
#[derive(Debug)]
struct Pair {
    ends: [TcpStream; 2],
    silent: Arc<Mutex<bool>>,
}

impl Proxy {
    /// A proxy on a free port of the loopback interface.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let pairs = Vec::new();
        let shared = Arc::new(Mutex::new(Shared { to, pairs }));
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let to = own.lock().expect("proxy").to;
                // The server may be down for now: the client sees its connection closed.
                let Ok(server) = TcpStream::connect(to) else {
                    continue;
                };
                let silent = Arc::new(Mutex::new(false));
                let both = [(&client, &server), (&server, &client)];
                for (from, to) in both.map(|(a, b)| (clone(a), clone(b))) {
                    let silent = Arc::clone(&silent);
                    thread::spawn(move || forward(from, to, &silent));
                }
                let ends = [client, server];
                own.lock().expect("proxy").pairs.push(Pair { ends, silent });
            }
        });
        Self { addr, shared }
    }

    /// Forwards new connections to another server.
    ///
    /// # Panics
    ///
    /// If a thread of the proxy has panicked.
    pub fn retarget(&self, to: SocketAddr) {
        self.shared.lock().expect("proxy").to = to;
    }

    /// Breaks all connections.
    ///
    /// # Panics
    ///
    /// If a thread of the proxy has panicked.
    pub fn cut(&self) {
        for pair in self.shared.lock().expect("proxy").pairs.drain(..) {
            for end in pair.ends {
                // It may be gone already.
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// Leaves all connections open, but lets nothing through any more.
    ///
    /// # Panics
    ///
    /// If a thread of the proxy has panicked.
    pub fn silence(&self) {
        for pair in &self.shared.lock().expect("proxy").pairs {
            *pair.silent.lock().expect("proxy") = true;
        }
    }
}

fn clone(end: &TcpStream) -> TcpStream {
    end.try_clone().expect("a descriptor")
}

fn forward(mut from: TcpStream, mut to: TcpStream, silent: &Mutex<bool>) {
    let mut buf = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        while *silent.lock().expect("proxy") {
            thread::sleep(Duration::from_millis(50));
            if to.take_error().is_ok_and(|e| e.is_some()) {
                return;
            }
        }
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
