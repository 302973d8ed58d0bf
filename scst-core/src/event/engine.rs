//! The thread that hands events out, and listeners.

use super::queue::{Question, Queues, Unanswered};
use super::{DEFAULT_TIMEOUT, Delivered, Event, Filter, Kind, MAX_EVENTS};
use kshim::error::{Result, code};
use kshim::kthread::{self, Kthread, Stop, WorkerQueue};
use kshim::sync::{CondVar, Mutex, SpinLock};
use kshim::time::{Delta, Instant};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Told how a question ended: what the listener said, or the negative of `ENOENT` (nobody listens), `EMFILE` (too much waits
/// for the only one who does), `ETIMEDOUT`, `EFAULT` (the listener is gone). May sleep.
#[doc(alias = "scst_event_done_notify_fn")]
pub type Done = Box<dyn FnOnce(i32) + Send>;

/// What waits for the thread.
struct Incoming {
    event: Arc<Event>,
    question: Option<(Delta, Done)>,
}

/// The events of a core.
pub struct Events {
    inbox: Arc<WorkerQueue<Incoming>>,
    shared: Arc<Shared>,
    thread: SpinLock<Option<Kthread>>,
}

/// What listeners and the thread share.
struct Shared {
    #[doc(alias = "scst_event_mutex")]
    queues: Mutex<Queues>,
    /// Somebody has something new, or is closed.
    #[doc(alias = "queued_events_waitQ")]
    news: CondVar,
    /// Filters that there are: without any nothing is worth telling.
    filters: AtomicUsize,
    /// Events that found the inbox full.
    lost: AtomicU32,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

fn end(unanswered: impl IntoIterator<Item = Unanswered>) {
    for (done, why) in unanswered {
        done(why.errno().saturating_neg());
    }
}

impl Events {
    /// Starts the thread. Errors: what thread creation answers. Context: may sleep.
    #[doc(alias = "scst_event_init")]
    pub(crate) fn start() -> Result<Self> {
        let inbox: Arc<WorkerQueue<Incoming>> = Arc::default();
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues::default()),
            news: CondVar::new(),
            filters: AtomicUsize::new(0),
            lost: AtomicU32::new(0),
        });
        let (incoming, own) = (Arc::clone(&inbox), Arc::clone(&shared));
        let thread = kthread::run("scst_event", move |stop| own.hand_out(&incoming, stop))?;
        Ok(Self {
            inbox,
            shared,
            thread: SpinLock::new(Some(thread)),
        })
    }

    /// Whether anybody listens to anything: what costs something to tell need not be told otherwise. Context: any.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.shared.filters.load(Ordering::Relaxed) != 0
    }

    /// Tells what `kind` gives, if anybody listens to anything. Context: any.
    #[doc(alias = "scst_event_queue")]
    pub fn tell(&self, kind: impl FnOnce() -> Kind) {
        if !self.is_wanted() {
            return;
        }
        match Event::of(&kind()) {
            Ok(event) => self.queue(event),
            Err(e) => kshim::pr_err_ratelimited!("An event is lost: {e}"),
        }
    }

    /// Tells an event, of whichever issuer. Context: any.
    pub fn queue(&self, event: Event) {
        if self.inbox.len() >= MAX_EVENTS {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.inbox.push(Incoming {
            event: Arc::new(event),
            question: None,
        });
    }

    /// Asks a listener; `done` is told of the answer, after [`DEFAULT_TIMEOUT`] at the latest, on some thread. Context: any.
    pub fn ask(&self, event: Event, timeout: Option<Delta>, done: Done) {
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        self.inbox.push(Incoming {
            event: Arc::new(event),
            question: Some((timeout, done)),
        });
    }

    /// A new listener, which wants nothing yet. Context: may sleep.
    #[doc(alias = "scst_event_create_priv")]
    pub fn listen(&self) -> Listener {
        Listener {
            id: self.shared.queues.lock().open(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Ends the thread and all listeners; what is asked later is answered by nobody. Context: may sleep.
    #[doc(alias = "scst_event_exit")]
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().take();
        if let Some(t) = thread {
            t.stop();
        }
        while let Some(late) = self.inbox.try_next() {
            if let Some((_, done)) = late.question {
                done(code::EFAULT.errno().saturating_neg());
            }
        }
        let gone = self.shared.with(Queues::close_all);
        end(gone);
    }
}

impl Shared {
    /// Changes the queues and wakes whom it may concern.
    fn with<R>(&self, f: impl FnOnce(&mut Queues) -> R) -> R {
        let mut queues = self.queues.lock();
        let result = f(&mut queues);
        self.filters.store(queues.filters(), Ordering::Relaxed);
        drop(queues);
        self.news.notify_all();
        result
    }

    fn hand_out(&self, inbox: &WorkerQueue<Incoming>, stop: &Stop) {
        loop {
            let until = self.queues.lock().first_deadline();
            let next = match until {
                None => inbox.wait_next(stop),
                Some(until) => inbox.wait_next_timeout(stop, until - Instant::now()),
            };
            if next.is_none() && stop.should_stop() {
                return;
            }
            let now = Instant::now();
            let unanswered = self.with(|q| {
                let mut unanswered = q.expire(now);
                if let Some(incoming) = next {
                    q.lose(self.lost.swap(0, Ordering::Relaxed));
                    let question = incoming.question.map(|(timeout, done)| Question {
                        until: now + timeout,
                        done,
                    });
                    unanswered.extend(q.dispatch(&incoming.event, question));
                }
                unanswered
            });
            end(unanswered);
        }
    }
}

/// Somebody who listens. Gone when it is dropped: what it was asked has failed then.
#[doc(alias = "scst_event_priv")]
pub struct Listener {
    id: u64,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Listener {
    /// Wants these events from now on.
    ///
    /// Context: may sleep. Errors: `EEXIST` (it covers a filter that there is), `EMFILE` ([`MAX_EVENTS`] filters), `EINVAL` (too
    /// long), `ENODEV` (closed).
    pub fn allow(&self, filter: Filter) -> Result {
        self.shared.with(|q| q.allow(self.id, filter))
    }

    /// Takes all filters back that this one covers.
    ///
    /// Context: may sleep. Errors: `ENOENT` (there are none), `EINVAL`, `ENODEV`.
    pub fn disallow(&self, filter: &Filter) -> Result {
        self.shared.with(|q| q.disallow(self.id, filter))
    }

    /// Waits for the next event.
    ///
    /// Context: may sleep. Errors: `ENODEV`: closed.
    pub fn wait_next(&self) -> Result<Delivered> {
        let mut queues = self.shared.queues.lock();
        loop {
            if let Some(event) = queues.next(self.id)? {
                return Ok(event);
            }
            self.shared.news.wait(&mut queues);
        }
    }

    /// The next event, if there is one.
    ///
    /// Context: may sleep. Errors: `ENODEV`: closed.
    pub fn try_next(&self) -> Result<Option<Delivered>> {
        self.shared.queues.lock().next(self.id)
    }

    /// Answers an event that it was asked by: 0 for success.
    ///
    /// Context: may sleep. Errors: `ENOENT` (not asked, or the time is over), `ENODEV`.
    pub fn done(&self, id: u32, status: i32) -> Result {
        let done = {
            let mut queues = self.shared.queues.lock();
            if !queues.is_open(self.id) {
                return Err(code::ENODEV);
            }
            queues.answer(self.id, id)?
        };
        done(status);
        Ok(())
    }

    /// Hears nothing any more; who waits in [`wait_next`](Self::wait_next) wakes up.
    ///
    /// Context: may sleep.
    pub fn close(&self) {
        let unanswered = self.shared.with(|q| q.close(self.id));
        end(unanswered);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}
