//! A connection: one thread that connects and receives, one that sends.

use crate::handshake::{Export, negotiate};
use crate::job::{Job, Part};
use crate::proto::{self, Cmd, Fields, Reply};
use crate::shared::{Conn, Ended, Shared, tell};
use crate::stream::{Reader, hang_up, send_all};
use kshim::kthread;
use kshim::net::{IoPart, Keepalive, Socket, resolve};
use kshim::prelude::*;
use kshim::reactor::Ready;
use kshim::time::{Delta, Instant};

/// How long one address may take to accept.
const CONNECT_TIMEOUT: Delta = Delta::from_secs(5);
/// How long the handshake may take.
const HANDSHAKE_TIMEOUT: Delta = Delta::from_secs(10);
/// Pause before the first and before a late attempt to connect again.
const BACKOFF: (Delta, Delta) = (Delta::from_millis(50), Delta::from_secs(2));
/// How long a server may take to look at an export once more.
const LOOK_TIMEOUT: Delta = Delta::from_secs(3);
/// How long a farewell may take.
const BYE_TIMEOUT: Delta = Delta::from_millis(250);
/// When the host asks a silent server whether it is there.
const KEEPALIVE: Keepalive = Keepalive {
    idle_secs: 10,
    interval_secs: 5,
    count: 3,
};

impl Shared {
    /// Connects and shakes hands, with the first address of the server at which both are possible.
    ///
    /// Context: may sleep. Errors: those of the sockets and of [`negotiate`]; the latter rather, where there are several.
    pub(crate) fn connect(&self) -> Result<(Socket, Export)> {
        self.connect_within(HANDSHAKE_TIMEOUT)
    }

    fn connect_within(&self, handshake: Delta) -> Result<(Socket, Export)> {
        let (mut unreachable, mut refused) = (ENOENT, None);
        for addr in resolve(&self.spec.host, self.spec.port)? {
            let sock = match Socket::connect_timeout(addr, CONNECT_TIMEOUT) {
                Ok(sock) => sock,
                Err(e) => {
                    unreachable = e;
                    continue;
                }
            };
            sock.set_nodelay(true)?;
            sock.set_keepalive(Some(KEEPALIVE))?;
            let deadline = Instant::now() + handshake;
            match negotiate(&sock, &self.spec.export, deadline) {
                Ok(export) => return Ok((sock, export)),
                Err(e) => refused = Some(e),
            }
        }
        Err(refused.unwrap_or(unreachable))
    }

    /// Asks the server for the export's size, by a connection of its own. Returns the size from now on.
    ///
    /// Context: may sleep. Errors: as [`Shared::connect`]; `EIO`: the export is not what it was.
    pub(crate) fn look(&self) -> Result<u64> {
        let (sock, found) = self.connect_within(LOOK_TIMEOUT)?;
        // What it does with it does not matter.
        let _ = bye(&sock);
        if !self.accept(&found) {
            pr_err!("nbd {}: the export is not what it was", self.spec.server());
            return Err(EIO);
        }
        Ok(self.state.lock().export.map_or(0, |e| e.size))
    }

    /// Whether an export is still the one that was opened.
    fn accept(&self, new: &Export) -> bool {
        let mut st = self.state.lock();
        let Some(old) = &mut st.export else {
            return false;
        };
        let read_only = new.flags & !old.flags & proto::export::READ_ONLY != 0;
        let same = new.size >= old.size
            && old.flags & !new.flags == 0
            && !read_only
            && new.min_block <= old.min_block
            && new.max_block >= old.max_block;
        if same && new.size > old.size {
            pr_info!(
                "nbd {}: has grown to {} bytes",
                self.spec.server(),
                new.size
            );
            old.size = new.size - new.size % u64::from(old.min_block);
            // Connections that do not know are made anew.
            self.changed.notify_all();
        }
        same
    }

    /// The life of a connection's thread: connects, again and again, until the disk is closed and its bios have ended.
    #[doc(alias = "nbd_start_device")]
    pub(crate) fn run_connection(self: &Arc<Self>, index: usize, first: Option<(Socket, Export)>) {
        let mut next = first.map(Ok);
        let mut backoff = BACKOFF.0;
        loop {
            match next.take().unwrap_or_else(|| self.connect()) {
                Ok((sock, export)) if self.accept(&export) => {
                    // One that accepts and answers nothing is not asked twenty times a second.
                    if self.serve(index, sock, &export) {
                        backoff = BACKOFF.0;
                    }
                }
                Ok(_) => pr_err_ratelimited!(
                    "nbd {}: the export is not what it was, not used",
                    self.spec.server()
                ),
                Err(e) => pr_warn_ratelimited!("nbd {}: {e}", self.spec.server()),
            }
            self.give_up_if_due();
            self.pause(backoff);
            backoff = (backoff + backoff).min(BACKOFF.1);
            let mut st = self.state.lock();
            if st.is_drained() {
                st.threads = st.threads.saturating_sub(1);
                self.changed.notify_all();
                return;
            }
        }
    }

    /// Sends and receives until the connection ends. Returns whether the server has answered anything.
    fn serve(self: &Arc<Self>, index: usize, sock: Socket, export: &Export) -> bool {
        let sock = Arc::new(sock);
        {
            let mut st = self.state.lock();
            let Some(conn) = st.conns.get_mut(index) else {
                return false;
            };
            *conn = Conn {
                up: true,
                size: export.size,
                ..Conn::default()
            };
            st.down_since = None;
            if std::mem::take(&mut st.given_up) {
                pr_info!("nbd {}: connected again", self.spec.server());
            }
        }
        let (shared, theirs) = (Arc::clone(self), Arc::clone(&sock));
        let sender = kthread::run("nbd_tx", move |_| {
            if let Err(e) = shared.send_loop(index, &theirs) {
                pr_debug!("nbd: sending: {e}");
            }
            // Wakes the receiver.
            hang_up(&theirs);
        });
        let why = match &sender {
            Ok(_) => self.receive_loop(index, &sock, export.structured),
            Err(e) => *e,
        };
        {
            let mut st = self.state.lock();
            let mut renewed = false;
            if let Some(conn) = st.conns.get_mut(index) {
                conn.up = false;
                renewed = conn.renewed;
            }
            if !st.is_drained() && !renewed {
                pr_warn_ratelimited!("nbd {}: connection lost: {why}", self.spec.server());
            }
            self.changed.notify_all();
        }
        hang_up(&sock);
        if let Ok(sender) = sender {
            sender.join();
        }
        self.connection_lost(index, why)
    }

    /// Takes a request out of the queue and gives it a number. `None`: the connection has to end.
    fn next(&self, index: usize) -> Option<Outgoing> {
        let mut st = self.state.lock();
        loop {
            let drained = st.is_drained();
            let room = st
                .conns
                .get(index)
                .filter(|c| c.up)
                .map(|c| !c.inflight.is_full())?;
            if drained {
                return None;
            }
            let taken = if self.is_outgrown(&mut st, index) {
                if self.may_be_renewed(&mut st, index)? {
                    return None;
                }
                let at = st.queue.iter().position(|p| p.cmd == Cmd::Flush);
                at.filter(|_| room).and_then(|at| st.queue.remove(at))
            } else {
                room.then(|| st.queue.pop_front()).flatten()
            };
            if let Some(mut part) = taken {
                part.deadline = Instant::now() + self.spec.timeout;
                let out = Outgoing {
                    job: Arc::clone(&part.job),
                    at: part.at,
                    data: if part.cmd == Cmd::Write {
                        usize::try_from(part.len).ok()?
                    } else {
                        0
                    },
                    deadline: part.deadline,
                    header: [0; proto::REQUEST_LEN],
                };
                let (cmd, flags, offset, len) = (part.cmd, part.flags, part.offset, part.len);
                let cookie = st.conns.get_mut(index)?.inflight.alloc_cyclic(part).ok()?;
                let header = proto::request(cmd, flags, cookie, offset, len);
                return Some(Outgoing { header, ..out });
            }
            self.changed.wait(&mut st);
        }
    }

    #[doc(alias = "nbd_send_cmd")]
    fn send_loop(&self, index: usize, sock: &Socket) -> Result {
        while let Some(out) = self.next(index) {
            out.send(sock)?;
        }
        let ends = {
            let st = self.state.lock();
            st.is_drained() || st.conns.get(index).is_some_and(|c| c.renewed)
        };
        if ends {
            bye(sock)?;
        }
        Ok(())
    }

    /// Receives replies. Returns why no more come.
    #[doc(alias = "recv_work")]
    fn receive_loop(&self, index: usize, sock: &Socket, structured: bool) -> Error {
        let mut rx = Receiver {
            shared: self,
            index,
            structured,
            reader: Reader::new(sock),
        };
        // No deadline is before this: what is sent later has a later one.
        let mut check = Instant::now() + self.spec.timeout;
        loop {
            let now = Instant::now();
            if now >= check {
                check = match self.first_deadline(index) {
                    Some(due) if due <= now => return ETIMEDOUT,
                    Some(due) => due,
                    None => now + self.spec.timeout,
                };
            }
            match rx.reader.peek(4, check).and_then(proto::header_len) {
                Ok(len) => {
                    if let Err(e) = rx.reply(len, Instant::now() + self.spec.timeout) {
                        return e;
                    }
                }
                Err(ETIMEDOUT) => {}
                Err(e) => return e,
            }
        }
    }

    /// When the server has to have answered the first of the requests that it has.
    #[doc(alias = "nbd_xmit_timeout")]
    fn first_deadline(&self, index: usize) -> Option<Instant> {
        let st = self.state.lock();
        let inflight = &st.conns.get(index)?.inflight;
        inflight.iter().map(|(_, part)| part.deadline).min()
    }
}

/// Tells the server that no more comes.
fn bye(sock: &Socket) -> Result {
    let bye = proto::request(Cmd::Disc, 0, 0, 0, 0);
    send_all(sock, &bye, Instant::now() + BYE_TIMEOUT)
}

/// A request on its way out.
struct Outgoing {
    job: Arc<Job>,
    at: usize,
    data: usize,
    deadline: Instant,
    header: [u8; proto::REQUEST_LEN],
}

impl Outgoing {
    /// Errors: `EPROTO`: it was answered before it was sent. `ETIMEDOUT`; those of [`Socket::send_iter`].
    fn send(&self, sock: &Socket) -> Result {
        let whole = self.header.len() + self.data;
        let mut sent = 0;
        while sent < whole {
            let result = {
                let header = IoPart::Bytes(&self.header);
                if self.data == 0 {
                    sock.send_iter(&mut std::iter::once(header), sent, false)
                } else {
                    let bio = self.job.bio.lock();
                    let sg = &bio.as_ref().ok_or(EPROTO)?.sg;
                    let parts = [header, IoPart::Sg(sg, self.at, self.data)];
                    sock.send_iter(&mut parts.into_iter(), sent, false)
                }
            };
            match result {
                Ok(n) => sent += n,
                Err(EAGAIN) => {
                    let left = self.deadline - Instant::now();
                    if left <= Delta::ZERO || sock.wait(Ready::WRITE, Some(left))?.is_empty() {
                        return Err(ETIMEDOUT);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The receiving side of a connection. Whatever it returns an error for ends the connection.
struct Receiver<'a> {
    shared: &'a Shared,
    index: usize,
    structured: bool,
    reader: Reader<'a>,
}

/// What is to be known of a request to receive its data.
struct Wanted {
    job: Arc<Job>,
    cmd: Cmd,
    offset: u64,
    len: u32,
    at: usize,
}

impl Receiver<'_> {
    /// Looks at or changes a request. Errors: `EPROTO`: there is no such request.
    fn with<R>(&self, cookie: u64, f: impl FnOnce(&mut Part) -> R) -> Result<R> {
        let mut st = self.shared.state.lock();
        let conn = st.conns.get_mut(self.index).ok_or(EPROTO)?;
        conn.inflight.find_mut(cookie).map(f).ok_or(EPROTO)
    }

    fn wanted(&self, cookie: u64) -> Result<Wanted> {
        self.with(cookie, |part| Wanted {
            job: Arc::clone(&part.job),
            cmd: part.cmd,
            offset: part.offset,
            len: part.len,
            at: part.at,
        })
    }

    /// A request was answered.
    fn done(&self, cookie: u64, status: Result) -> Result {
        // To be sent again elsewhere: it stays where it is, and goes back to the queue when the connection has ended.
        if status == Err(ESHUTDOWN) {
            return Err(ESHUTDOWN);
        }
        let mut ended = Ended::new();
        let mut st = self.shared.state.lock();
        let conn = st.conns.get_mut(self.index).ok_or(EPROTO)?;
        let was_full = conn.inflight.is_full();
        let part = conn.inflight.remove(cookie).ok_or(EPROTO)?;
        conn.answered = true;
        st.fruitless_since = None;
        self.shared.part_done(&mut st, &part, status, &mut ended);
        if was_full {
            self.shared.changed.notify_all();
        }
        drop(st);
        tell(ended);
        Ok(())
    }

    /// Receives a reply, or a chunk of one, whose header has so many bytes.
    fn reply(&mut self, header: usize, deadline: Instant) -> Result {
        let reply = proto::parse_reply(self.reader.peek(header, deadline)?)?;
        self.reader.consume(header);
        match reply {
            Reply::Simple { error: 0, cookie } => {
                let w = self.wanted(cookie)?;
                if w.cmd == Cmd::Read {
                    if self.structured {
                        return Err(EPROTO);
                    }
                    self.data(&w, 0, w.len, deadline)?;
                }
                self.done(cookie, Ok(()))
            }
            Reply::Simple { error, cookie } => {
                self.wanted(cookie)?;
                self.done(cookie, Err(proto::error(error)))
            }
            Reply::Chunk { .. } if !self.structured => Err(EPROTO),
            Reply::Chunk {
                flags,
                kind,
                cookie,
                len,
            } => {
                let w = self.wanted(cookie)?;
                self.chunk(&w, kind, len, cookie, deadline)?;
                let last = flags & proto::REPLY_FLAG_DONE != 0;
                if kind == proto::CHUNK_NONE && !last {
                    return Err(EPROTO);
                }
                if last {
                    self.last_chunk(&w, cookie)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn last_chunk(&self, w: &Wanted, cookie: u64) -> Result {
        let status = self.with(cookie, |part| match part.answer.error {
            Some(e) => Ok(Err(e)),
            None if w.cmd == Cmd::Read && !part.answer.is_whole(w.len) => Err(EPROTO),
            None => Ok(Ok(())),
        })??;
        self.done(cookie, status)
    }

    /// Receives what follows the header of a chunk.
    fn chunk(&mut self, w: &Wanted, kind: u16, len: u32, cookie: u64, deadline: Instant) -> Result {
        match kind {
            proto::CHUNK_NONE if len == 0 => Ok(()),
            proto::CHUNK_DATA if w.cmd == Cmd::Read => {
                let n = len.checked_sub(8).ok_or(EPROTO)?;
                let offset = u64::from_be_bytes(self.reader.take(deadline)?);
                let at = self.place(w, offset, n, cookie)?;
                self.data(w, at, n, deadline)
            }
            proto::CHUNK_HOLE if w.cmd == Cmd::Read && len == 12 => {
                let body = self.reader.take::<12>(deadline)?;
                let mut f = Fields(&body);
                let (offset, n) = (f.u64()?, f.u32()?);
                let at = self.place(w, offset, n, cookie)?;
                let (at, n) = (w.at + usize::try_from(at)?, usize::try_from(n)?);
                let mut bio = w.job.bio.lock();
                bio.as_mut().ok_or(EPROTO)?.sg.fill(at, n, 0)
            }
            _ if kind & proto::CHUNK_ERROR_BIT != 0 => {
                if !(6..=proto::MAX_ERROR_CHUNK).contains(&len) {
                    return Err(EPROTO);
                }
                let len = usize::try_from(len)?;
                let number = Fields(self.reader.peek(len, deadline)?).u32()?;
                self.reader.consume(len);
                if number == 0 {
                    return Err(EPROTO);
                }
                self.with(cookie, |part| part.answer.fail(proto::error(number)))?
            }
            _ => Err(EPROTO),
        }
    }

    /// Notes that a piece of a read comes; returns where it is in the request. Errors: `EPROTO`: it is not in it, or came before.
    fn place(&self, w: &Wanted, offset: u64, n: u32, cookie: u64) -> Result<u32> {
        let at = offset.checked_sub(w.offset).ok_or(EPROTO)?;
        let at = u32::try_from(at).map_err(|_| EPROTO)?;
        if at.checked_add(n).is_none_or(|end| end > w.len) {
            return Err(EPROTO);
        }
        self.with(cookie, |part| part.answer.add(at, n))??;
        Ok(at)
    }

    /// Receives data into the bio.
    fn data(&mut self, w: &Wanted, at: u32, n: u32, deadline: Instant) -> Result {
        let mut at = w.at + usize::try_from(at)?;
        let mut left = usize::try_from(n)?;
        while left > 0 {
            let got = {
                let mut bio = w.job.bio.lock();
                let sg = &mut bio.as_mut().ok_or(EPROTO)?.sg;
                self.reader.recv_into(sg, at, left)?
            };
            if got == 0 {
                self.reader.wait(deadline)?;
            }
            at += got;
            left -= got;
        }
        Ok(())
    }
}
