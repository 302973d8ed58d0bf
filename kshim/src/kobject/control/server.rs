//! The server's side: a thread that accepts, and one for each client.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::extension::{Extension, FIRST_EXTENSION_OP, OpenExtension, Peer, Sink};
use super::wire::{self, Op};
use crate::error::{Result, code};
use crate::kobject::tree::{Tree, TreeOps};
use crate::kthread::{self, Kthread, Stop};
use crate::net::{LocalListener, LocalStream};
use crate::sync::{Arc, SpinLock};
use crate::time::Delta;

/// Clients at the same time; one more is told `EAGAIN`.
pub const MAX_CLIENTS: usize = 64;

/// How long accepting pauses when there are no descriptors.
const ACCEPT_PAUSE: Delta = Delta::from_millis(100);

/// What a client's FUSE device is given to. Errors: `EMFILE`, `EINVAL`.
type FuseSink = Box<dyn Fn(OwnedFd) -> Result + Send + Sync>;

/// A control socket that is served. Dropping it ends all clients' connections.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<Kthread>,
}

struct Shared {
    listener: LocalListener,
    tree: Tree,
    fuse: FuseSink,
    extension: Option<OpenExtension>,
    clients: SpinLock<Clients>,
}

#[derive(Default)]
struct Clients {
    stopping: bool,
    next: u64,
    live: BTreeMap<u64, Client>,
    /// Threads that have ended, or are about to.
    ended: Vec<Kthread>,
}

struct Client {
    peer: Arc<Peer>,
    thread: Option<Kthread>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("path", &self.listener.path())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves a tree at a path. FUSE devices that clients pass go to `fuse`, operations that are not of the tree
    /// to `extension`.
    ///
    /// Context: may sleep. Errors: as [`LocalListener::bind`]; `EAGAIN`: no thread.
    pub fn start(
        path: &Path,
        tree: Tree,
        fuse: impl Fn(OwnedFd) -> Result + Send + Sync + 'static,
        extension: Option<OpenExtension>,
    ) -> Result<Server> {
        let shared = Arc::new(Shared {
            listener: LocalListener::bind(path)?,
            tree,
            fuse: Box::new(fuse),
            extension,
            clients: SpinLock::new(Clients::default()),
        });
        let own = Arc::clone(&shared);
        let acceptor = kthread::run("kobj_ctl", move |stop| own.accept_all(stop))?;
        Ok(Server {
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.shared.listener.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.request_stop();
            self.shared.listener.shutdown();
            acceptor.join();
        }
        self.shared.end_clients();
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>, stop: &Stop) {
        while !stop.should_stop() {
            match self.listener.accept() {
                Ok(stream) => self.admit(stream),
                Err(e) if e == code::EINVAL => return,
                Err(e) => {
                    crate::pr_warn!("control socket: {e}");
                    stop.sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: LocalStream) {
        let peer = Arc::new(Peer::new(stream));
        let id = {
            let mut clients = self.clients.lock();
            if clients.live.len() < MAX_CLIENTS && !clients.stopping {
                let id = clients.next;
                clients.next += 1;
                let client = Client {
                    peer: Arc::clone(&peer),
                    thread: None,
                };
                clients.live.insert(id, client);
                Ok(id)
            } else {
                Err(code::EAGAIN)
            }
        };
        let refused = match id {
            Ok(id) => self.start_client(id, &peer).err(),
            Err(e) => Some(e),
        };
        if let Some(e) = refused {
            // It is closed anyhow.
            let _: Result = peer.send(&wire::welcome(Err(e)));
        }
        let ended = std::mem::take(&mut self.clients.lock().ended);
        drop(ended);
    }

    fn start_client(self: &Arc<Self>, id: u64, peer: &Arc<Peer>) -> Result {
        let (own, theirs) = (Arc::clone(self), Arc::clone(peer));
        let thread = kthread::run("kobj_ctl_client", move |_| {
            if let Err(e) = own.serve(&theirs)
                && e != code::ENOTCONN
            {
                crate::pr_debug!("control socket: client: {e}");
            }
            own.leave(id);
        });
        let mut clients = self.clients.lock();
        match thread {
            Ok(thread) => {
                match clients.live.get_mut(&id) {
                    Some(client) => client.thread = Some(thread),
                    // It has left already.
                    None => clients.ended.push(thread),
                }
                Ok(())
            }
            Err(e) => {
                clients.live.remove(&id);
                Err(e)
            }
        }
    }

    fn leave(&self, id: u64) {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.live.remove(&id) {
            clients.ended.extend(client.thread);
        }
    }

    fn end_clients(&self) {
        let (live, ended) = {
            let mut clients = self.clients.lock();
            clients.stopping = true;
            let live = std::mem::take(&mut clients.live);
            (live, std::mem::take(&mut clients.ended))
        };
        for client in live.values() {
            client.peer.stream.shutdown();
        }
        // Joins them.
        drop((live, ended));
    }

    fn serve(&self, peer: &Arc<Peer>) -> Result {
        let mut extension = None;
        let served = self.serve_with(peer, &mut extension);
        // What the extension still wants to tell must not wait for the client.
        peer.stream.shutdown();
        drop(extension);
        served
    }

    fn serve_with(&self, peer: &Arc<Peer>, extension: &mut Option<Box<dyn Extension>>) -> Result {
        let stream = &peer.stream;
        if !stream.peer_is_trusted()? {
            return peer.send(&wire::welcome(Err(code::EPERM)));
        }
        let mut hello = [0; wire::HELLO_LEN];
        stream.recv_exact(&mut hello)?;
        let known = wire::check_hello(hello);
        peer.send(&wire::welcome(known))?;
        known?;
        loop {
            let mut head = [0; wire::REQUEST_HEAD];
            let mut passed = stream.recv_exact(&mut head)?;
            let head = wire::RequestHead::parse(head)?;
            let mut body = vec![0; head.len];
            if head.len > 0 {
                passed = passed.or(stream.recv_exact(&mut body)?);
            }
            let result = if head.op < FIRST_EXTENSION_OP {
                self.execute(head.op, &body, passed)
            } else {
                self.extend(head.op, &body, peer, extension)
            };
            peer.send(&wire::reply(head.op, head.tag, result))?;
        }
    }

    fn extend(
        &self,
        op: u8,
        body: &[u8],
        peer: &Arc<Peer>,
        extension: &mut Option<Box<dyn Extension>>,
    ) -> Result<Vec<u8>> {
        if extension.is_none() {
            let open = self.extension.as_ref().ok_or(code::EOPNOTSUPP)?;
            let peer = Arc::clone(peer);
            *extension = Some(open(Sink { peer })?);
        }
        let opened = extension.as_mut().ok_or(code::EOPNOTSUPP)?;
        opened.execute(op, body)
    }

    fn execute(&self, op: u8, body: &[u8], passed: Option<OwnedFd>) -> Result<Vec<u8>> {
        match Op::from_u8(op).ok_or(code::EOPNOTSUPP)? {
            Op::List => wire::entries(&self.tree.list(wire::text(body)?)?),
            Op::Read => self.tree.read(wire::text(body)?),
            Op::Write => {
                let (path, value) = wire::parse_write(body)?;
                self.tree.write(path, value)?;
                Ok(Vec::new())
            }
            Op::Readlink => Ok(self.tree.readlink(wire::text(body)?)?.into_bytes()),
            Op::Stat => wire::entries(&[self.tree.stat(wire::text(body)?)?]),
            Op::Fuse => {
                (self.fuse)(passed.ok_or(code::EBADF)?)?;
                Ok(Vec::new())
            }
        }
    }
}
