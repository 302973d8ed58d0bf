//! A listener in another process: the client's side of the control socket.

use super::{Delivered, Filter, wire};
use kshim::error::{Result, code};
use kshim::kobject::control::Channel;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// Tags of answers: their replies are not waited for.
const ANSWER_TAG: u16 = u16::MAX;

/// A listener behind a control socket.
///
/// ```no_run
/// use scst_core::event::{Client, Filter, Heard, Kind};
///
/// let mut client = Client::connect("/run/scst/control.sock".as_ref())?;
/// client.allow(&Filter::look_on())?;
/// while let Heard::Event(told) = client.wait_next()? {
///     println!("{:?}", Kind::decode(told.event.code, &told.event.payload));
/// }
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Client {
    channel: Arc<Channel>,
    early: VecDeque<Told>,
    tag: u16,
}

/// An event, with the way to answer it.
#[derive(Debug)]
pub struct Told {
    told: Delivered,
    channel: Arc<Channel>,
}

impl std::ops::Deref for Told {
    type Target = Delivered;

    fn deref(&self) -> &Delivered {
        &self.told
    }
}

/// What a client hears.
#[derive(Debug)]
pub enum Heard {
    /// An event.
    Event(Told),
    /// An answer came too late, or was none.
    NotAsked,
}

impl Told {
    /// Answers it: 0 for success. Does not wait for what the server says to that.
    ///
    /// Context: may sleep; any thread. Errors: `EINVAL` (it does not ask), `EPIPE` (the server is gone).
    pub fn done(&self, status: i32) -> Result {
        if self.told.id == 0 {
            return Err(code::EINVAL);
        }
        let body = wire::answer(self.told.id, status);
        self.channel.send(wire::OP_DONE, ANSWER_TAG, &body)
    }
}

impl Client {
    /// Connects; it hears nothing yet.
    ///
    /// Context: may sleep. Errors: as [`kshim::kobject::control::Client::connect`].
    pub fn connect(path: &Path) -> Result<Self> {
        Ok(Self {
            channel: Arc::new(Channel::connect(path)?),
            early: VecDeque::new(),
            tag: 0,
        })
    }

    /// Wants these events from now on.
    ///
    /// Context: may sleep. Errors: as [`super::Listener::allow`]; `EOPNOTSUPP`: the server has no events.
    pub fn allow(&mut self, filter: &Filter) -> Result {
        self.call(wire::OP_ALLOW, &wire::filter(filter)?)
    }

    /// Takes all filters back that this one covers.
    ///
    /// Context: may sleep. Errors: as [`super::Listener::disallow`].
    pub fn disallow(&mut self, filter: &Filter) -> Result {
        self.call(wire::OP_DISALLOW, &wire::filter(filter)?)
    }

    /// Waits for the next event.
    ///
    /// Context: may sleep. Errors: `ENOTCONN` (the server has gone), `EIO`, `EPROTO`.
    pub fn wait_next(&mut self) -> Result<Heard> {
        if let Some(told) = self.early.pop_front() {
            return Ok(Heard::Event(told));
        }
        loop {
            let message = self.channel.recv()?;
            if message.op == wire::OP_EVENT {
                return Ok(Heard::Event(self.told(&message.result?)?));
            }
            if message.op == wire::OP_DONE && message.result.is_err() {
                return Ok(Heard::NotAsked);
            }
        }
    }

    /// Ends the connection, from another thread: [`wait_next`](Self::wait_next) fails then.
    pub fn closer(&self) -> impl Fn() + Send + 'static {
        let channel = Arc::clone(&self.channel);
        move || channel.shutdown()
    }

    fn told(&self, body: &[u8]) -> Result<Told> {
        Ok(Told {
            told: wire::parse_event(body)?,
            channel: Arc::clone(&self.channel),
        })
    }

    fn call(&mut self, op: u8, body: &[u8]) -> Result {
        // Neither that of pushed messages nor that of answers.
        let next = self.tag.saturating_add(1);
        self.tag = if next == ANSWER_TAG { 1 } else { next };
        let tag = self.tag;
        self.channel.send(op, tag, body)?;
        loop {
            let message = self.channel.recv()?;
            if message.op == wire::OP_EVENT {
                let told = self.told(&message.result?)?;
                self.early.push_back(told);
            } else if (message.op, message.tag) == (op, tag) {
                return message.result.map(drop);
            }
        }
    }
}
