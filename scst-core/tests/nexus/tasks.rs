//! One logical unit and the commands that its initiators have sent it: a list, and the sentences of SAM-5 and SPC-4 (where they leave a
//! choice, SCST's) about who may go, who waits, and what others are told.

use super::pr::{Need, Pr, PrOp};
use super::{BLOCKS, Control, Expect, GOOD, Op};
use scst_core::consts::{QueueType, SamStatus};
use scst_core::mgmt::{TmFunction, TmStatus};
use scst_core::sense::{self, Sense};
use std::collections::VecDeque;

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Free to take its next step.
    Ready(Stage),
    /// Waits for its turn in the task set.
    Order,
    /// Waits to enter the device.
    Queue,
    /// The handler keeps it.
    Gate,
    /// Complete; an ACA holds the answer.
    Held,
    Ended,
}

/// The next step of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Order,
    Exec,
    Respond,
}

#[derive(Clone, Copy, Debug)]
struct Abort {
    /// Another nexus is to blame.
    other: bool,
    tas: bool,
    no_resp: bool,
}

const OWN: Abort = Abort {
    other: false,
    tas: false,
    no_resp: false,
};

#[derive(Debug)]
pub struct Task {
    pub ini: usize,
    pub op: Op,
    q: QueueType,
    naca: bool,
    hold: bool,
    pub at: At,
    /// Its turn is over only when it is complete.
    /// It never entered the task set, for an ACA.
    refused: bool,
    on_done: bool,
    /// Who is ordered behind it need not wait for it (any more).
    passed: bool,
    /// It has left the task set.
    done: bool,
    on_dev: bool,
    /// Runs, or was refused, under an ACA.
    allowed: bool,
    aborted: Option<Abort>,
    pub result: Option<Expect>,
    /// Whether the answer is sent.
    pub answered: bool,
}

impl Task {
    pub fn is_live(&self) -> bool {
        self.at != At::Ended
    }
    fn is_check(&self) -> bool {
        matches!(self.result, Some(Expect::Check(..)))
    }
    fn is_numbered(&self) -> bool {
        !self.refused && matches!(self.q, QueueType::Simple | QueueType::Ordered)
    }
}

pub struct Model {
    pub inis: usize,
    pub tst: u8,
    pub ctl: Control,
    start: Control,
    pub pr: Pr,
    ua: Vec<VecDeque<Sense>>,
    /// Each task set's ACA: the faulted nexus, its command with the ACA attribute.
    aca: Vec<Option<(usize, Option<usize>)>>,
    pub tasks: Vec<Task>,
    /// Who waits to enter the device.
    queue: VecDeque<usize>,
    /// Who goes on, and how.
    ready: VecDeque<usize>,
    blocks: [u8; BLOCKS],
}

impl Model {
    pub fn new(inis: usize, tst: u8) -> Self {
        Self {
            inis,
            tst,
            ctl: Control::default(),
            start: Control::default(),
            pr: Pr::default(),
            ua: vec![VecDeque::new(); inis],
            aca: vec![None; inis],
            tasks: Vec::new(),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            blocks: [0; BLOCKS],
        }
    }

    pub fn live(&self) -> usize {
        self.tasks.iter().filter(|t| t.is_live()).count()
    }

    pub fn live_of(&self, ini: usize) -> Vec<usize> {
        let of = |i: &usize| self.tasks[*i].is_live() && self.tasks[*i].ini == ini;
        (0..self.tasks.len()).filter(of).collect()
    }

    pub fn in_gate(&self) -> Vec<usize> {
        let of = |i: &usize| self.tasks[*i].at == At::Gate;
        (0..self.tasks.len()).filter(of).collect()
    }

    /// Whether an answer of `ini` is held that says something the initiator does not know.
    pub fn holds_check_of(&self, ini: usize) -> bool {
        let check = |t: &Task| t.at == At::Held && t.ini == ini && t.is_check();
        self.tasks.iter().any(check)
    }

    /// Whether commands of others wait that will meet the SPC-2 reservation of `ini`.
    pub fn reservation_is_waited_for(&self, ini: usize) -> bool {
        let waits = |t: &Task| t.ini != ini && matches!(t.at, At::Order | At::Queue);
        self.pr.spc2 == Some(ini) && self.tasks.iter().any(waits)
    }

    /// Whether a command waits that may establish an ACA.
    pub fn any_naca_waits(&self) -> bool {
        self.tasks.iter().any(|t| t.is_live() && t.naca)
    }

    pub fn mode_select_waits(&self) -> bool {
        let select = |t: &Task| matches!(t.op, Op::ModeSelect { .. });
        self.tasks.iter().any(|t| t.is_live() && select(t))
    }

    pub fn has_aca(&self) -> bool {
        self.aca.iter().any(Option::is_some)
    }

    fn set_of(&self, ini: usize) -> usize {
        if self.tst == 0 { 0 } else { ini }
    }

    fn tell(&mut self, ini: usize, ua: Sense) {
        if !self.ua[ini].contains(&ua) {
            self.ua[ini].push_back(ua);
        }
    }

    fn tell_first(&mut self, ini: usize, ua: Sense) {
        if !self.ua[ini].contains(&ua) {
            self.ua[ini].push_front(ua);
        }
    }

    fn take_ua(&mut self, ini: usize, op: Op) -> Option<Sense> {
        match op {
            Op::RequestSense => None,
            _ => self.ua[ini].pop_front(),
        }
    }

    fn check(&self, s: Sense) -> Expect {
        Expect::Check(s, self.ctl.d_sense && !s.always_fixed())
    }

    fn attribute(&self, op: Op, q: QueueType) -> QueueType {
        match q {
            QueueType::Simple if op == Op::Tur => QueueType::HeadOfQueue,
            QueueType::Simple if self.ctl.qam == 0 => QueueType::Ordered,
            q => q,
        }
    }

    /// Whether a command sent now would have to wait before it is executed; if so, whether only for the device.
    pub fn would_wait(&self, ini: usize, op: Op, q: QueueType) -> Option<bool> {
        let set = self.set_of(ini);
        let q = self.attribute(op, q);
        let numbered = matches!(q, QueueType::Simple | QueueType::Ordered);
        if self.aca[set].is_some() {
            // Refused, or allowed.
        } else if numbered && !self.turn(self.tasks.len(), set, q) {
            return Some(false);
        }
        (!self.may_enter(op) || !self.queue.is_empty()).then_some(true)
    }

    /// Whether it is the turn of a command that came as number `i`, as far as the older ones are concerned.
    fn turn(&self, i: usize, set: usize, q: QueueType) -> bool {
        let mine = |t: &&Task| self.set_of(t.ini) == set;
        let mut all = self.tasks.iter().filter(mine);
        if all.any(|t| t.q == QueueType::HeadOfQueue && !t.done) {
            return false;
        }
        // From the youngest to the oldest.
        let mut ordered_between = q == QueueType::Ordered;
        for t in self.tasks[..i].iter().rev().filter(mine) {
            if !t.is_numbered() {
                continue;
            }
            ordered_between |= t.q == QueueType::Ordered;
            if ordered_between && !t.passed {
                return false;
            }
        }
        true
    }

    fn may_go(&self, i: usize) -> bool {
        let t = &self.tasks[i];
        let set = self.set_of(t.ini);
        if self.aca[set].is_some() {
            return t.allowed;
        }
        !t.is_numbered() || self.turn(i, set, t.q)
    }

    fn may_enter(&self, op: Op) -> bool {
        let holder = |t: &Task| t.on_dev && t.op.is_exclusive();
        if self.tasks.iter().any(holder) {
            return false;
        }
        !matches!(op, Op::ModeSelect { .. }) || !self.tasks.iter().any(|t| t.on_dev)
    }

    /// A command comes.
    pub fn arrive(&mut self, ini: usize, op: Op, q: QueueType, naca: bool, hold: bool) -> usize {
        let i = self.tasks.len();
        let set = self.set_of(ini);
        let refused = self.refused_by_aca(set, i, ini, op, q, naca);
        self.tasks.push(Task {
            ini,
            op,
            q: self.attribute(op, q),
            naca,
            hold,
            at: At::Ready(Stage::Order),
            on_done: naca || q == QueueType::Ordered || self.ctl.qam == 0,
            refused: refused.is_some(),
            passed: refused.is_some(),
            done: refused.is_some(),
            on_dev: false,
            allowed: self.aca[set].is_some(),
            aborted: None,
            result: None,
            answered: false,
        });
        if let Some(why) = refused {
            self.tasks[i].result = Some(why);
            self.tasks[i].at = At::Ready(Stage::Respond);
        }
        self.ready.push_back(i);
        self.settle();
        i
    }

    fn refused_by_aca(
        &mut self,
        set: usize,
        i: usize,
        ini: usize,
        op: Op,
        q: QueueType,
        naca: bool,
    ) -> Option<Expect> {
        let is_aca = q == QueueType::Aca;
        match &mut self.aca[set] {
            None if is_aca => Some(self.check(sense::INVALID_MESSAGE)),
            None => None,
            Some((faulted, cmd)) if *faulted == ini => {
                if !is_aca || cmd.is_some() || self.ctl.tmf_only {
                    return Some(Expect::Status(SamStatus::AcaActive));
                }
                *cmd = Some(i);
                None
            }
            Some(_) if is_aca => Some(self.check(sense::INVALID_MESSAGE)),
            Some(_) if op.is_preempt_and_abort() => None,
            Some(_) if naca => Some(Expect::Status(SamStatus::AcaActive)),
            Some(_) => Some(Expect::Status(SamStatus::Busy)),
        }
    }

    /// Everybody who can goes on, one after the other.
    fn settle(&mut self) {
        while let Some(i) = self.ready.pop_front() {
            match self.tasks[i].at {
                At::Ready(Stage::Order) => self.order(i),
                At::Ready(Stage::Exec) => self.exec(i),
                At::Ready(Stage::Respond) => self.respond(i),
                at => panic!("task {i} is not free: {at:?}"),
            }
        }
    }

    fn go_on(&mut self, i: usize, stage: Stage) {
        self.tasks[i].at = At::Ready(stage);
        self.ready.push_back(i);
    }

    fn order(&mut self, i: usize) {
        if self.tasks[i].aborted.is_some() {
            return self.leave(i);
        }
        if !self.may_go(i) {
            self.tasks[i].at = At::Order;
            return;
        }
        if !self.queue.is_empty() || !self.may_enter(self.tasks[i].op) {
            self.tasks[i].at = At::Queue;
            self.queue.push_back(i);
            return;
        }
        self.tasks[i].on_dev = true;
        self.exec(i);
    }

    fn exec(&mut self, i: usize) {
        let Task {
            ini,
            op,
            hold,
            on_done,
            ..
        } = self.tasks[i];
        if self.tasks[i].aborted.is_some() {
            return self.leave(i);
        }
        let (need, passes_spc2) = op.need();
        let result = if self.pr.conflicts(ini, need, passes_spc2) {
            Some(Expect::Conflict)
        } else if let Some(ua) = self.take_ua(ini, op) {
            Some(self.check(ua))
        } else if matches!(op, Op::Write { .. }) && self.ctl.swp {
            Some(self.check(sense::WRITE_PROTECTED))
        } else {
            None
        };
        if result.is_none() && hold {
            self.tasks[i].at = At::Gate;
            if !on_done {
                self.tasks[i].passed = true;
                self.release_ordered(self.set_of(ini));
            }
            return;
        }
        let result = result.unwrap_or_else(|| self.execute(i));
        self.tasks[i].result = Some(result);
        self.leave(i);
    }

    /// The command's effects.
    fn execute(&mut self, i: usize) -> Expect {
        let Task { ini, op, .. } = self.tasks[i];
        match op {
            Op::Tur => GOOD,
            Op::RequestSense => Expect::Sense(self.ua[ini].pop_front()),
            Op::Read { block } => Expect::Good(vec![self.blocks[block]; 512]),
            Op::Write { block, byte } => {
                self.blocks[block] = byte;
                GOOD
            }
            Op::ModeSense => Expect::Control(self.tst, self.ctl),
            Op::ModeSelect { to, tst, .. } => {
                if tst != self.tst || to.qerr == 2 || to.qam > 1 {
                    return self.check(sense::INVALID_FIELD_IN_PARM_LIST);
                }
                self.ctl = to;
                let others = (0..self.inis).filter(|n| *n != ini);
                others.for_each(|n| self.tell(n, sense::MODE_PARAMETER_CHANGED));
                GOOD
            }
            Op::Pr(op) => self.reserve(i, ini, op),
        }
    }

    fn reserve(&mut self, i: usize, ini: usize, op: PrOp) -> Expect {
        self.pr.tas = self.ctl.tas;
        let result = self.pr.run(ini, op);
        for (other, ua) in std::mem::take(&mut self.pr.told) {
            self.tell(other, ua);
        }
        let faulted = self.aca[self.set_of(ini)].is_some_and(|(n, _)| n == ini);
        let by_aca = self.tasks[i].q == QueueType::Aca;
        for other in std::mem::take(&mut self.pr.aborted) {
            let abort = self.abort_of(other, ini);
            let its = self.live_of(other);
            let its = its.into_iter().filter(|t| *t != i).collect();
            self.mark(&its, abort);
            let set = self.set_of(other);
            let has_it = self.aca[set].is_some_and(|(n, _)| n == other);
            if has_it && faulted == by_aca {
                self.end_aca(set, ini, None);
            }
            self.free(&its, true);
        }
        match result {
            Expect::Check(s, _) => self.check(s),
            other => other,
        }
    }

    /// The command leaves device and task set, and gets its answer.
    fn leave(&mut self, i: usize) {
        let t = &mut self.tasks[i];
        let was_on_dev = std::mem::take(&mut t.on_dev);
        (t.passed, t.done) = (true, true);
        let ini = t.ini;
        if was_on_dev {
            self.grant();
        }
        self.release_ordered(self.set_of(ini));
        self.respond(i);
    }

    /// Lets in who waits for the device.
    fn grant(&mut self) {
        while let Some(&i) = self.queue.front() {
            if !self.may_enter(self.tasks[i].op) {
                break;
            }
            self.queue.pop_front();
            self.tasks[i].on_dev = true;
            self.go_on(i, Stage::Exec);
        }
    }

    fn release_ordered(&mut self, set: usize) {
        for i in 0..self.tasks.len() {
            let waits = self.tasks[i].at == At::Order && self.set_of(self.tasks[i].ini) == set;
            if waits && self.may_go(i) {
                self.go_on(i, Stage::Order);
            }
        }
    }

    fn respond(&mut self, i: usize) {
        let Task { ini, naca, .. } = self.tasks[i];
        let set = self.set_of(ini);
        if let Some(a) = self.tasks[i].aborted {
            return self.respond_aborted(i, a);
        }
        if !self.tasks[i].is_check() {
            if self.aca[set].is_some() && !self.tasks[i].allowed {
                self.tasks[i].at = At::Held;
                return;
            }
            return self.answer(i);
        }
        if let Some((faulted, _)) = self.aca[set] {
            let ends = self.tasks[i].q == QueueType::Aca && faulted == ini
                || self.tasks[i].op.is_preempt_and_abort();
            if ends && !naca {
                self.end_aca(set, ini, Some(i));
                self.qerr(i);
                return self.answer(i);
            }
            if !self.tasks[i].allowed {
                self.tasks[i].at = At::Held;
                return;
            }
        }
        // Who is refused under another's ACA does not get it.
        let others = self.aca[set].is_some_and(|(n, _)| n != ini);
        if naca && (!others || self.tasks[i].op.is_preempt_and_abort()) {
            // A new one for another nexus has no command that lives by it.
            let cmd = self.aca[set].filter(|a| a.0 == ini).and_then(|a| a.1);
            self.aca[set] = Some((ini, cmd));
        }
        self.qerr(i);
        self.answer(i);
    }

    fn respond_aborted(&mut self, i: usize, a: Abort) {
        if a.other && !a.no_resp && self.tasks[i].result.is_some() {
            return self.answer(i);
        }
        if a.other && !a.no_resp && a.tas {
            self.tasks[i].result = Some(Expect::Status(SamStatus::TaskAborted));
            return self.answer(i);
        }
        // A unit attention that nobody hears is still there.
        if let Some(Expect::Check(s, _)) = self.tasks[i].result.take()
            && s.is_ua()
        {
            self.tell_first(self.tasks[i].ini, s);
        }
        self.aca_cmd_ends(i);
        self.tasks[i].at = At::Ended;
    }

    fn answer(&mut self, i: usize) {
        self.aca_cmd_ends(i);
        self.tasks[i].at = At::Ended;
        self.tasks[i].answered = true;
    }

    fn aca_cmd_ends(&mut self, i: usize) {
        for (_, cmd) in self.aca.iter_mut().flatten() {
            if *cmd == Some(i) {
                *cmd = None;
            }
        }
    }

    /// An initiator ends the ACA of a task set, and with it the command that lived by it, unless that is `but`.
    fn end_aca(&mut self, set: usize, by: usize, but: Option<usize>) {
        let Some((faulted, cmd)) = self.aca[set].take() else {
            return;
        };
        let abort = self.abort_of(faulted, by);
        // The last answer that was held comes first.
        let of = |m: &Self, i: &usize| m.set_of(m.tasks[*i].ini) == set;
        let mut held: Vec<usize> = (0..self.tasks.len())
            .filter(|i| self.tasks[*i].at == At::Held && of(self, i))
            .collect();
        held.reverse();
        if let Some(cmd) = cmd.filter(|c| but != Some(*c)) {
            self.mark(&vec![cmd], abort);
        }
        held.into_iter().for_each(|i| self.go_on(i, Stage::Respond));
        self.release_ordered(set);
    }

    /// After a CHECK CONDITION of `i`.
    fn qerr(&mut self, i: usize) {
        let ini = self.tasks[i].ini;
        let whose: Vec<usize> = match self.ctl.qerr {
            1 if self.tst == 0 => (0..self.inis).collect(),
            1 | 3 => vec![ini],
            _ => return,
        };
        let mut hit = Vec::new();
        for n in whose {
            let other = n != ini;
            let abort = self.abort_of(n, ini);
            let its: Vec<usize> = self.live_of(n).into_iter().filter(|t| *t != i).collect();
            self.mark(&its, abort);
            hit.extend(its);
            if other && !self.ctl.tas {
                self.tell(n, sense::CLEARED_BY_ANOTHER_INI_UA);
            }
        }
        // The handler is not told.
        self.free(&hit, false);
    }

    fn mark(&mut self, which: &Vec<usize>, abort: Abort) {
        for i in which {
            let was = &mut self.tasks[*i].aborted;
            *was = Some(match *was {
                None => abort,
                // The own nexus wins.
                Some(w) => Abort {
                    other: w.other && abort.other,
                    tas: w.tas || abort.tas,
                    no_resp: w.no_resp || abort.no_resp,
                },
            });
        }
    }

    /// Takes aborted commands from where they wait, and from the handler if it is told of the abort.
    fn free(&mut self, which: &[usize], told: bool) {
        for &i in which {
            match self.tasks[i].at {
                At::Queue => {
                    self.queue.retain(|q| *q != i);
                    self.go_on(i, Stage::Exec);
                    self.grant();
                }
                At::Order => self.go_on(i, Stage::Order),
                At::Held => self.go_on(i, Stage::Respond),
                At::Gate | At::Ready(_) | At::Ended => {}
            }
        }
        // It lets go whatever is aborted, for this reason or an earlier one.
        let gone = |t: &Task| told && t.at == At::Gate && t.aborted.is_some();
        for i in 0..self.tasks.len() {
            if gone(&self.tasks[i]) {
                self.complete(i);
            }
        }
    }

    /// The handler is done with a command.
    pub fn complete(&mut self, i: usize) {
        assert_eq!(self.tasks[i].at, At::Gate);
        let result = self.execute(i);
        self.tasks[i].result = Some(result);
        self.leave(i);
    }

    pub fn release(&mut self, i: usize) {
        self.complete(i);
        self.settle();
    }

    /// A task management function; `target` is for those that name a command.
    pub fn tm(&mut self, ini: usize, f: TmFunction, target: Option<usize>) -> TmStatus {
        let own = self.live_of(ini);
        let mut status = TmStatus::Success;
        match f {
            TmFunction::AbortTask => match target {
                Some(i) => self.abort(&vec![i], OWN),
                None => status = TmStatus::TaskNotExist,
            },
            TmFunction::ClearTaskSet if self.tst == 0 => self.clear_task_set(ini),
            TmFunction::AbortTaskSet | TmFunction::ClearTaskSet => self.abort(&own, OWN),
            TmFunction::LunReset | TmFunction::TargetReset => self.reset(ini),
            TmFunction::NexusLossSess | TmFunction::NexusReset => self.nexus_loss(ini, f),
            TmFunction::ClearAca => {
                let set = self.set_of(ini);
                match self.aca[set] {
                    Some((n, _)) if n != ini => status = TmStatus::Rejected,
                    Some(_) => self.clear_aca(ini, set),
                    None => {}
                }
            }
            TmFunction::QueryTask if target.is_some() => status = TmStatus::Succeeded,
            TmFunction::QueryTaskSet if !own.is_empty() => status = TmStatus::Succeeded,
            _ => {}
        }
        self.settle();
        status
    }

    fn abort(&mut self, which: &Vec<usize>, abort: Abort) {
        self.mark(which, abort);
        self.free(which, true);
    }

    /// What becomes of commands of `ini` that `by` aborts.
    fn abort_of(&self, ini: usize, by: usize) -> Abort {
        let other = ini != by;
        Abort {
            other,
            tas: other && self.ctl.tas,
            no_resp: false,
        }
    }

    /// CLEAR ACA: the command that lived by it is aborted, which its handler is not told.
    fn clear_aca(&mut self, ini: usize, set: usize) {
        let cmd = self.aca[set].and_then(|a| a.1);
        self.end_aca(set, ini, None);
        self.free(&Vec::from_iter(cmd), false);
    }

    fn clear_task_set(&mut self, ini: usize) {
        let tas = self.ctl.tas;
        let mut all = Vec::new();
        let mut hit = Vec::new();
        for n in 0..self.inis {
            let its = self.live_of(n);
            let other = n != ini;
            let abort = self.abort_of(n, ini);
            self.mark(&its, abort);
            if other && !its.is_empty() {
                hit.push(n);
            }
            all.extend(its);
        }
        self.free(&all, true);
        if !tas {
            for n in hit {
                self.tell(n, sense::CLEARED_BY_ANOTHER_INI_UA);
            }
        }
    }

    fn reset(&mut self, ini: usize) {
        self.pr.spc2 = None;
        let mut all = Vec::new();
        for n in 0..self.inis {
            let abort = self.abort_of(n, ini);
            let its = self.live_of(n);
            self.mark(&its, abort);
            all.extend(its);
        }
        for set in 0..self.inis {
            self.end_aca(set, ini, None);
        }
        self.free(&all, true);
        (0..self.inis).for_each(|n| self.tell(n, sense::RESET_UA));
        self.settle();
        self.ctl = self.start;
    }

    fn nexus_loss(&mut self, ini: usize, f: TmFunction) {
        let own = self.live_of(ini);
        let abort = Abort {
            no_resp: f == TmFunction::NexusLossSess,
            ..OWN
        };
        self.mark(&own, abort);
        let set = self.set_of(ini);
        if self.aca[set].is_some_and(|(n, _)| n == ini) {
            self.end_aca(set, ini, None);
        }
        self.free(&own, true);
        self.settle();
        if self.pr.spc2 == Some(ini) {
            self.pr.spc2 = None;
        }
        self.tell_first(ini, sense::NEXUS_LOSS_UA);
    }

    /// The initiator has logged in again.
    pub fn login(&mut self, ini: usize) {
        assert!(self.live_of(ini).is_empty());
        self.ua[ini] = VecDeque::from([sense::RESET_UA]);
    }
}

impl Op {
    /// What reservations have to allow, and whether one of SPC-2 lets it pass in any case.
    fn need(self) -> (Need, bool) {
        match self {
            Self::Tur | Self::RequestSense | Self::Pr(PrOp::Release6) => (Need::Nothing, true),
            Self::Pr(_) => (Need::Nothing, false),
            Self::Read { .. } | Self::ModeSense => (Need::Read, false),
            Self::Write { .. } | Self::ModeSelect { .. } => (Need::Write, false),
        }
    }

    /// Nobody enters the device while it is there.
    fn is_exclusive(self) -> bool {
        matches!(self, Self::ModeSelect { .. } | Self::Pr(_))
    }

    fn is_preempt_and_abort(self) -> bool {
        matches!(self, Self::Pr(p) if p.is_preempt_and_abort())
    }
}
