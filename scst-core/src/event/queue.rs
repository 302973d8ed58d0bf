//! Who listens to what, what waits for whom, and who has been asked what. No threads, no clocks.

use super::{Delivered, Event, Filter, MAX_EVENTS};
use crate::event::Done;
use kshim::error::{Result, code};
use kshim::time::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// An event that asks, and until when there is time to answer.
pub(super) struct Question {
    pub(super) until: Instant,
    pub(super) done: Done,
}

/// A question that nobody answers, with the status that it ends with.
pub(super) type Unanswered = (Done, kshim::error::Error);

#[derive(Default)]
pub(super) struct Queues {
    /// In the order of their opening.
    listeners: BTreeMap<u64, Listening>,
    asked: BTreeMap<u32, Asked>,
    last_listener: u64,
    last_id: u32,
}

#[derive(Default)]
struct Listening {
    filters: Vec<Filter>,
    #[doc(alias = "queued_events_list")]
    queue: VecDeque<Delivered>,
    /// Since the last one that was queued.
    lost: u32,
}

struct Asked {
    listener: u64,
    /// The listener has got it.
    #[doc(alias = "processing_events_list")]
    taken: bool,
    question: Question,
}

impl Listening {
    /// Whether it wants an event, and if so whether it may be asked.
    fn wants(&self, e: &Event) -> Option<bool> {
        let mut wanted = None;
        for f in &self.filters {
            if f.matches(e.code, &e.issuer, &e.payload) {
                wanted = Some(wanted.unwrap_or(false) || !f.looks_on);
            }
        }
        wanted
    }

    /// False if there is no room.
    fn push(&mut self, event: &Arc<Event>, id: u32) -> bool {
        if self.queue.len() >= MAX_EVENTS {
            self.lost = self.lost.saturating_add(1);
            return false;
        }
        self.queue.push_back(Delivered {
            event: Arc::clone(event),
            id,
            lost: std::mem::take(&mut self.lost),
        });
        true
    }
}

impl Queues {
    pub(super) fn open(&mut self) -> u64 {
        self.last_listener = self.last_listener.wrapping_add(1);
        let listening = Listening::default();
        self.listeners.insert(self.last_listener, listening);
        self.last_listener
    }

    /// Number of filters of all listeners.
    pub(super) fn filters(&self) -> usize {
        self.listeners.values().map(|l| l.filters.len()).sum()
    }

    pub(super) fn is_open(&self, listener: u64) -> bool {
        self.listeners.contains_key(&listener)
    }

    fn listening(&mut self, listener: u64) -> Result<&mut Listening> {
        self.listeners.get_mut(&listener).ok_or(code::ENODEV)
    }

    /// Errors: `EEXIST`: it, or a part of it, is there; `EMFILE`, `EINVAL`.
    #[doc(alias = "scst_event_allow_event")]
    pub(super) fn allow(&mut self, listener: u64, filter: Filter) -> Result {
        filter.check()?;
        let l = self.listening(listener)?;
        let covers = |f: &Filter| filter.matches(f.code, &f.issuer, &f.payload);
        if l.filters.iter().any(covers) {
            return Err(code::EEXIST);
        }
        if l.filters.len() >= MAX_EVENTS {
            return Err(code::EMFILE);
        }
        l.filters.push(filter);
        Ok(())
    }

    /// Errors: `ENOENT`, `EINVAL`.
    #[doc(alias = "scst_event_disallow_event")]
    pub(super) fn disallow(&mut self, listener: u64, filter: &Filter) -> Result {
        filter.check()?;
        let l = self.listening(listener)?;
        let before = l.filters.len();
        l.filters
            .retain(|f| !filter.matches(f.code, &f.issuer, &f.payload));
        if l.filters.len() == before {
            return Err(code::ENOENT);
        }
        Ok(())
    }

    /// Hands an event out. Gives a question back that nobody can be asked.
    #[doc(alias = "__scst_event_queue")]
    pub(super) fn dispatch(
        &mut self,
        event: &Arc<Event>,
        mut question: Option<Question>,
    ) -> Option<Unanswered> {
        let mut why = code::ENOENT;
        for (listener, l) in &mut self.listeners {
            let Some(may_ask) = l.wants(event) else {
                continue;
            };
            let asks = question.take_if(|_| may_ask);
            let Some(asked) = asks else {
                l.push(event, 0);
                continue;
            };
            let id = next_id(&mut self.last_id, &self.asked);
            if l.push(event, id) {
                let asked = Asked {
                    listener: *listener,
                    taken: false,
                    question: asked,
                };
                self.asked.insert(id, asked);
            } else {
                why = code::EMFILE;
                question = Some(asked);
            }
        }
        question.map(|q| (q.done, why))
    }

    /// Events were lost before they could be looked at.
    pub(super) fn lose(&mut self, n: u32) {
        for l in self.listeners.values_mut() {
            l.lost = l.lost.saturating_add(n);
        }
    }

    /// The next event of a listener. Errors: `ENODEV`: it is closed.
    #[doc(alias = "scst_event_user_next_event")]
    pub(super) fn next(&mut self, listener: u64) -> Result<Option<Delivered>> {
        let next = self.listening(listener)?.queue.pop_front();
        if let Some(asked) = next.as_ref().and_then(|d| self.asked.get_mut(&d.id)) {
            asked.taken = true;
        }
        Ok(next)
    }

    /// Takes a question that its listener answers. Errors: `ENOENT`.
    #[doc(alias = "scst_event_user_notify_done")]
    pub(super) fn answer(&mut self, listener: u64, id: u32) -> Result<Done> {
        let asked = self.asked.get(&id);
        if !asked.is_some_and(|a| a.listener == listener && a.taken) {
            return Err(code::ENOENT);
        }
        let asked = self.asked.remove(&id).ok_or(code::ENOENT)?;
        Ok(asked.question.done)
    }

    /// When the first question's time is over.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.asked.values().map(|a| a.question.until).min()
    }

    /// Takes the questions whose time is over; who has not got them yet never will.
    #[doc(alias = "scst_event_timeout_fn")]
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Unanswered> {
        let over: Vec<u32> = self
            .asked
            .iter()
            .filter_map(|(id, a)| (a.question.until <= now).then_some(*id))
            .collect();
        let mut unanswered = Vec::new();
        for id in over {
            let Some(asked) = self.asked.remove(&id) else {
                continue;
            };
            if let Some(l) = self.listeners.get_mut(&asked.listener) {
                l.queue.retain(|d| d.id != id);
            }
            unanswered.push((asked.question.done, code::ETIMEDOUT));
        }
        unanswered
    }

    /// A listener goes, and its questions with it.
    #[doc(alias = "scst_event_release")]
    pub(super) fn close(&mut self, listener: u64) -> Vec<Unanswered> {
        self.listeners.remove(&listener);
        let all = std::mem::take(&mut self.asked).into_iter();
        let (gone, others): (BTreeMap<_, _>, _) = all.partition(|(_, a)| a.listener == listener);
        self.asked = others;
        let ended = gone.into_values().map(|a| a.question.done);
        ended.map(|done| (done, code::EFAULT)).collect()
    }

    /// All listeners go.
    pub(super) fn close_all(&mut self) -> Vec<Unanswered> {
        let all: Vec<u64> = self.listeners.keys().copied().collect();
        all.into_iter().flat_map(|l| self.close(l)).collect()
    }
}

/// A number that no question has; never 0.
fn next_id(last: &mut u32, asked: &BTreeMap<u32, Asked>) -> u32 {
    loop {
        *last = last.wrapping_add(1);
        if *last != 0 && !asked.contains_key(last) {
            return *last;
        }
    }
}
