//! The state of one work item, and what each operation does to it.
//!
//! A state has three parts: where the item waits to run (nowhere, under a timer, on a queue), whether it runs, and
//! how many threads are cancelling it synchronously. Of the combinations these eight occur:
//!
//! | state | waits | runs | cancellers |
//! |---|---|---|---|
//! | IDLE | | | |
//! | DELAYED | under a timer | | |
//! | PENDING | on a queue | | |
//! | RUNNING | | yes | |
//! | RUNNING+DELAYED | under a timer | yes | |
//! | RUNNING+PENDING | on a queue | yes | |
//! | CANCELING | | yes | some: they wait for the end of the run |
//! | CANCELED | | | some: the run has ended, they have not woken up yet |
//!
//! What an operation does; `=` means that the state stays as it is:
//!
//! | | IDLE | DELAYED | PENDING | RUNNING | RUN+DEL | RUN+PEND | CANCELING | CANCELED |
//! |---|---|---|---|---|---|---|---|---|
//! | enqueue | PENDING | refused | refused | RUN+PEND | refused | refused | refused | refused |
//! | enqueue_delayed | DELAYED | refused | refused | RUN+DEL | refused | refused | refused | refused |
//! | mod_delayed | DELAYED | =, moved | DELAYED, moved | RUN+DEL | =, moved | RUN+DEL, moved | refused | refused |
//! | mod_delayed by 0 | PENDING | PENDING, moved | =, moved | RUN+PEND | RUN+PEND, moved | =, moved | refused | refused |
//! | cancel | = | IDLE, taken | IDLE, taken | = | RUNNING, taken | RUNNING, taken | = | = |
//! | cancel_sync | = | IDLE, taken | IDLE, taken | CANCELING | CANCELING, taken | CANCELING, taken | =, one more | = |
//! | flush | = | = | wait for it | wait for the run | wait for the run | wait for the one on the queue | wait for the run | = |
//! | flush_delayed | = | fire now, wait | wait for it | wait for the run | fire now, wait | wait for the one on the queue | wait for the run | = |
//! | timer fires | stale | PENDING | stale | stale | RUN+PEND | stale | stale | stale |
//! | a worker has it | stale | stale | RUNNING | stale | stale | =, deferred | stale | stale |
//! | the run ends | bug | bug | bug | IDLE | DELAYED | PENDING | CANCELED | bug |
//! | a canceller is done | bug | bug | bug | bug | bug | bug | bug | IDLE, or = if others are left |
//!
//! Every way of waiting has a *ticket*, a number that is used once per item. Timers and queue entries carry theirs;
//! what comes with an old ticket is *stale*: the item was cancelled or moved just then. A worker that finds the item
//! running on another worker leaves it *deferred*; the end of that run puts it back on its queue, at the front.

/// Number of one way of waiting and the run that comes of it.
pub(super) type Ticket = u64;

/// Where an item waits to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    Timer,
    Queue,
}

/// What came of moving an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Modified {
    /// It waited nowhere before.
    Fresh(Ticket),
    /// It waited elsewhere before.
    Moved(Ticket),
    /// It is being cancelled.
    Refused,
}

/// What a worker does with an entry that it took off a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// Run it, then tell so.
    Run,
    /// Leave it with the item: another worker runs the item now.
    Defer,
    /// Forget it.
    Stale,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    waits: Option<(Where, Ticket)>,
    runs: Option<Ticket>,
    cancelers: usize,
    next: Ticket,
}

impl State {
    pub(super) const fn new() -> Self {
        Self {
            waits: None,
            runs: None,
            cancelers: 0,
            next: 0,
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        self.next
    }

    /// `enqueue`, `enqueue_delayed`: the ticket, or `None` when refused.
    pub(super) fn enqueue(&mut self, to: Where) -> Option<Ticket> {
        if self.waits.is_some() || self.cancelers != 0 {
            return None;
        }
        let t = self.ticket();
        self.waits = Some((to, t));
        Some(t)
    }

    /// `mod_delayed`.
    pub(super) fn modify(&mut self, to: Where) -> Modified {
        if self.cancelers != 0 {
            return Modified::Refused;
        }
        let t = self.ticket();
        match self.waits.replace((to, t)) {
            None => Modified::Fresh(t),
            Some(_) => Modified::Moved(t),
        }
    }

    /// `cancel`, and an `enqueue` that the queue did not take: whether the item waited.
    pub(super) fn cancel(&mut self) -> bool {
        self.waits.take().is_some()
    }

    /// The second half of `cancel_sync`: whether the caller must wait for the end of the run, and then call
    /// [`cancel_done`](Self::cancel_done).
    pub(super) fn cancel_running(&mut self) -> bool {
        if self.runs.is_some() {
            self.cancelers += 1;
        }
        self.runs.is_some()
    }

    /// A canceller saw the end of the run.
    pub(super) fn cancel_done(&mut self) {
        assert!(self.runs.is_none() && self.cancelers != 0);
        self.cancelers -= 1;
    }

    /// `flush`: the ticket whose end to wait for.
    pub(super) fn flush(&self) -> Option<Ticket> {
        match self.waits {
            Some((Where::Queue, t)) => Some(t),
            Some((Where::Timer, _)) | None => self.runs,
        }
    }

    /// `flush_delayed`, first half: the ticket of a timer that shall fire now.
    pub(super) fn delayed(&self) -> Option<Ticket> {
        match self.waits {
            Some((Where::Timer, t)) => Some(t),
            Some((Where::Queue, _)) | None => None,
        }
    }

    /// A timer fired: whether the item goes to its queue now.
    pub(super) fn timer_fired(&mut self, t: Ticket) -> bool {
        let hit = self.waits == Some((Where::Timer, t));
        if hit {
            self.waits = Some((Where::Queue, t));
        }
        hit
    }

    /// A worker took the entry off its queue.
    pub(super) fn begin(&mut self, t: Ticket) -> Begin {
        if self.waits != Some((Where::Queue, t)) {
            return Begin::Stale;
        }
        if self.runs.is_some() {
            return Begin::Defer;
        }
        self.waits = None;
        self.runs = Some(t);
        Begin::Run
    }

    /// The run ended.
    pub(super) fn end(&mut self) {
        assert!(self.runs.is_some(), "the end of a run that did not begin");
        self.runs = None;
    }

    /// Whether the item waits or runs with that ticket.
    pub(super) fn concerns(&self, t: Ticket) -> bool {
        self.runs == Some(t) || self.waits.is_some_and(|(_, w)| w == t)
    }

    /// Whether the item waits under a timer or on a queue.
    pub(super) fn is_pending(&self) -> bool {
        self.waits.is_some()
    }

    /// Whether the item runs.
    pub(super) fn is_running(&self) -> bool {
        self.runs.is_some()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    const STATES: [&str; 8] = [
        "IDLE",
        "DELAYED",
        "PENDING",
        "RUNNING",
        "RUN+DEL",
        "RUN+PEND",
        "CANCELING",
        "CANCELED",
    ];

    fn name(s: &State) -> &'static str {
        let waits = s.waits.map(|(w, _)| w);
        let i = match (waits, s.runs.is_some(), s.cancelers != 0) {
            (None, false, false) => 0,
            (Some(Where::Timer), false, false) => 1,
            (Some(Where::Queue), false, false) => 2,
            (None, true, false) => 3,
            (Some(Where::Timer), true, false) => 4,
            (Some(Where::Queue), true, false) => 5,
            (None, true, true) => 6,
            (None, false, true) => 7,
            other => panic!("impossible state {other:?}"),
        };
        STATES[i]
    }

    /// A state reached by operations, the ticket of its timer or queue entry, and that of its run (0: none).
    fn make(name_wanted: &str) -> (State, Ticket, Ticket) {
        let mut s = State::new();
        let mut run = 0;
        if name_wanted.starts_with("RUN") || name_wanted.starts_with("CANCEL") {
            run = s.enqueue(Where::Queue).expect("idle");
            assert_eq!(s.begin(run), Begin::Run);
        }
        let waits = match name_wanted {
            "DELAYED" | "RUN+DEL" => s.enqueue(Where::Timer).expect("waits nowhere"),
            "PENDING" | "RUN+PEND" => s.enqueue(Where::Queue).expect("waits nowhere"),
            _ => 0,
        };
        if name_wanted.starts_with("CANCEL") {
            assert!(s.cancel_running());
        }
        if name_wanted == "CANCELED" {
            s.end();
        }
        assert_eq!(name(&s), name_wanted);
        (s, waits, run)
    }

    /// Runs one operation on a fresh instance of each state, and compares "new state, outcome" with the table.
    fn row(op: fn(&mut State, Ticket, Ticket) -> String, expected: [&str; 8]) {
        for (state, want) in STATES.iter().zip(expected) {
            let (mut s, waits, run) = make(state);
            let got = catch_unwind(AssertUnwindSafe(|| op(&mut s, waits, run)));
            let got = match got {
                Err(_) => "bug".to_owned(),
                Ok(outcome) => {
                    let new = name(&s);
                    let new = if new == *state { "=" } else { new };
                    if outcome.is_empty() {
                        new.to_owned()
                    } else {
                        format!("{new}, {outcome}")
                    }
                }
            };
            assert_eq!(got, want, "in state {state}");
        }
    }

    fn enqueue(s: &mut State, to: Where) -> String {
        let last = s.next;
        match s.enqueue(to) {
            Some(t) => {
                assert!(t > last && s.concerns(t));
                String::new()
            }
            None => "refused".into(),
        }
    }

    #[test]
    fn row_enqueue() {
        row(
            |s, _, _| enqueue(s, Where::Queue),
            [
                "PENDING",
                "=, refused",
                "=, refused",
                "RUN+PEND",
                "=, refused",
                "=, refused",
                "=, refused",
                "=, refused",
            ],
        );
    }

    #[test]
    fn row_enqueue_delayed() {
        row(
            |s, _, _| enqueue(s, Where::Timer),
            [
                "DELAYED",
                "=, refused",
                "=, refused",
                "RUN+DEL",
                "=, refused",
                "=, refused",
                "=, refused",
                "=, refused",
            ],
        );
    }

    fn modify(s: &mut State, waits: Ticket, to: Where) -> String {
        match s.modify(to) {
            Modified::Fresh(t) => {
                assert!(s.concerns(t));
                String::new()
            }
            Modified::Moved(t) => {
                assert!(s.concerns(t) && !s.concerns(waits));
                "moved".into()
            }
            Modified::Refused => "refused".into(),
        }
    }

    #[test]
    fn row_mod_delayed() {
        row(
            |s, w, _| modify(s, w, Where::Timer),
            [
                "DELAYED",
                "=, moved",
                "DELAYED, moved",
                "RUN+DEL",
                "=, moved",
                "RUN+DEL, moved",
                "=, refused",
                "=, refused",
            ],
        );
    }

    #[test]
    fn row_mod_delayed_by_0() {
        row(
            |s, w, _| modify(s, w, Where::Queue),
            [
                "PENDING",
                "PENDING, moved",
                "=, moved",
                "RUN+PEND",
                "RUN+PEND, moved",
                "=, moved",
                "=, refused",
                "=, refused",
            ],
        );
    }

    fn taken(t: bool) -> String {
        if t { "taken".into() } else { String::new() }
    }

    #[test]
    fn row_cancel() {
        row(
            |s, _, _| taken(s.cancel()),
            [
                "=",
                "IDLE, taken",
                "IDLE, taken",
                "=",
                "RUNNING, taken",
                "RUNNING, taken",
                "=",
                "=",
            ],
        );
    }

    #[test]
    fn row_cancel_sync() {
        row(
            |s, _, _| {
                let before = s.cancelers;
                let t = taken(s.cancel());
                assert_eq!(s.cancel_running(), s.is_running());
                assert_eq!(s.cancelers - before, usize::from(s.is_running()));
                t
            },
            [
                "=",
                "IDLE, taken",
                "IDLE, taken",
                "CANCELING",
                "CANCELING, taken",
                "CANCELING, taken",
                "=",
                "=",
            ],
        );
    }

    fn awaited(t: Option<Ticket>, waits: Ticket, run: Ticket) -> String {
        match t {
            None => String::new(),
            Some(t) if t == waits => "waits for it".into(),
            Some(t) if t == run => "waits for the run".into(),
            Some(t) => panic!("unknown ticket {t}"),
        }
    }

    #[test]
    fn row_flush() {
        row(
            |s, w, r| awaited(s.flush(), w, r),
            [
                "=",
                "=",
                "=, waits for it",
                "=, waits for the run",
                "=, waits for the run",
                "=, waits for it",
                "=, waits for the run",
                "=",
            ],
        );
    }

    #[test]
    fn row_flush_delayed() {
        row(
            |s, w, r| match s.delayed() {
                Some(t) => {
                    assert_eq!(t, w);
                    assert!(s.timer_fired(t));
                    "fires, ".to_owned() + &awaited(s.flush(), w, r)
                }
                None => awaited(s.flush(), w, r),
            },
            [
                "=",
                "PENDING, fires, waits for it",
                "=, waits for it",
                "=, waits for the run",
                "RUN+PEND, fires, waits for it",
                "=, waits for it",
                "=, waits for the run",
                "=",
            ],
        );
    }

    #[test]
    fn row_timer_fires() {
        row(
            |s, w, _| {
                // Any other ticket is stale in all states.
                assert!(!s.timer_fired(w + 100));
                if s.timer_fired(w) { "" } else { "stale" }.to_owned()
            },
            [
                "=, stale", "PENDING", "=, stale", "=, stale", "RUN+PEND", "=, stale", "=, stale",
                "=, stale",
            ],
        );
    }

    #[test]
    fn row_worker_has_it() {
        row(
            |s, w, r| {
                assert_eq!(s.begin(w + 100), Begin::Stale);
                assert_eq!(s.begin(r), Begin::Stale);
                match s.begin(w) {
                    Begin::Run => String::new(),
                    Begin::Defer => "deferred".into(),
                    Begin::Stale => "stale".into(),
                }
            },
            [
                "=, stale",
                "=, stale",
                "RUNNING",
                "=, stale",
                "=, stale",
                "=, deferred",
                "=, stale",
                "=, stale",
            ],
        );
    }

    #[test]
    fn row_run_ends() {
        row(
            |s, w, r| {
                s.end();
                assert!(!s.concerns(r) || r == 0);
                assert!(w == 0 || s.concerns(w));
                String::new()
            },
            [
                "bug", "bug", "bug", "IDLE", "DELAYED", "PENDING", "CANCELED", "bug",
            ],
        );
    }

    #[test]
    fn row_canceller_is_done() {
        row(
            |s, _, _| {
                s.cancel_done();
                String::new()
            },
            ["bug", "bug", "bug", "bug", "bug", "bug", "bug", "IDLE"],
        );
        // Two cancellers: the first one to be done leaves the state as it is.
        let (mut s, _, _) = make("CANCELING");
        assert!(s.cancel_running());
        s.end();
        s.cancel_done();
        assert_eq!(name(&s), "CANCELED");
        s.cancel_done();
        assert_eq!(name(&s), "IDLE");
    }
}
