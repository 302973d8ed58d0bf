//! What sources implement and what they can ask for.

use std::cell::{Cell, RefCell};

use super::core_loop::Core;
use super::{PollFd, ReactorHandle, ReactorId, Ready, Token};
use crate::error::Result;
use crate::time::Instant;

thread_local! {
    static CURRENT: Cell<Option<ReactorId>> = const { Cell::new(None) };
    static HANDLE: RefCell<Option<ReactorHandle>> = const { RefCell::new(None) };
}

/// The reactor the calling thread is, if it is one.
pub(super) fn current() -> Option<ReactorId> {
    CURRENT.get()
}

pub(super) fn set_current(handle: &ReactorHandle) {
    CURRENT.set(Some(handle.id()));
    HANDLE.set(Some(handle.clone()));
}

/// The handle of the reactor that the calling thread is, if it is one: for drivers that keep something for each reactor.
///
/// Context: any.
pub fn current_reactor() -> Option<ReactorHandle> {
    // Nobody asks while the thread's locals are being dropped, but a foreign thread's destructor.
    HANDLE.try_with(|h| h.borrow().clone()).ok().flatten()
}

/// Something that lives on a reactor: a connection, a listener, a queue that others wake.
///
/// A source need not be `Send`: it is made, called and dropped on its reactor's thread. Context of all callbacks: on
/// the reactor, inside a round, under RCU's read lock: they must not block.
pub trait Source {
    /// The descriptor has become ready, or [`Cx::reschedule`] asked for another call (then with [`Ready::READ`]).
    ///
    /// Edge-triggered: drain to EAGAIN or to a short count, or reschedule. Spurious calls happen.
    fn ready(&mut self, cx: &mut Cx<'_>, ev: Ready);

    /// [`ReactorHandle::wake`] was called with this source's token, once or more.
    fn woken(&mut self, cx: &mut Cx<'_>);

    /// The timer armed with [`Cx::set_timer`] under this number is due; it is disarmed now.
    fn timer(&mut self, cx: &mut Cx<'_>, slot: u32);

    /// The last call: the source was removed, or the reactor stops. It is dropped next, and its descriptor is no
    /// longer watched.
    fn removed(&mut self, _cx: &mut Cx<'_>) {}
}

/// The reactor, as seen from inside a callback.
pub struct Cx<'a> {
    pub(super) core: &'a mut Core,
    pub(super) token: Token,
}

impl core::fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cx")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl Cx<'_> {
    /// A handle of this reactor.
    #[inline]
    pub fn handle(&self) -> &ReactorHandle {
        self.core.handle()
    }

    /// The token of the source being called; [`Token::NONE`] inside a posted closure.
    #[inline]
    pub fn token(&self) -> Token {
        self.token
    }

    /// The time at the beginning of this round.
    #[inline]
    pub fn now(&self) -> Instant {
        self.core.now()
    }

    /// Adds a source, and watches its descriptor for reading and writing if it has one.
    ///
    /// `make` is given the new token and returns the source; the descriptor is usually shared from a socket that moves
    /// into it ([`Socket::poll_fd`](crate::net::Socket::poll_fd)). The reactor holds a share until the source is
    /// removed, so a registered socket is closed by removing its source.
    ///
    /// Errors: ENOSPC ([`MAX_SOURCES`](super::MAX_SOURCES), or the kernel's limit of watches), EEXIST (the descriptor is watched
    /// here already), EPERM (a descriptor that cannot be waited for), ENOMEM. The source was dropped then, without `removed`.
    pub fn add(
        &mut self,
        fd: Option<PollFd>,
        make: impl FnOnce(Token) -> Box<dyn Source>,
    ) -> Result<Token> {
        self.core.add(fd, make)
    }

    /// Removes a source: no callback but [`Source::removed`] happens any more; that one and the drop come when the
    /// current callback has returned. Unknown and stale tokens are ignored.
    pub fn remove(&mut self, t: Token) {
        self.core.remove(t);
    }

    /// Whether the token names a source that is alive and not being removed.
    pub fn contains(&self, t: Token) -> bool {
        self.core.contains(t)
    }

    /// Has [`Source::ready`] called with [`Ready::READ`] in the next round, which begins without sleeping.
    pub fn reschedule(&mut self, t: Token) {
        self.core.make_ready(t, Ready::READ);
    }

    /// Arms the source's timer number `slot` to fire at `at`; an armed one is moved. Cheap to call for each event: a timer that
    /// is postponed is not touched until its old time comes up. A source has few timers (they are searched one by one).
    ///
    /// Never fires early; a time that has passed fires in the next round.
    pub fn set_timer(&mut self, t: Token, slot: u32, at: Instant) {
        self.core.set_timer(t, slot, at);
    }

    /// Disarms a timer; it will not fire, even if it is due in this round.
    pub fn cancel_timer(&mut self, t: Token, slot: u32) {
        self.core.cancel_timer(t, slot);
    }

    /// Has the reactor look for work this many microseconds before it sleeps (`poll_us`); 0, the default, sleeps at
    /// once. Burns CPU for latency.
    pub fn set_busy_poll(&mut self, us: u32) {
        self.core.set_busy_poll(us);
    }
}
