//! Write data on its way: immediate, unsolicited and solicited bursts of each command (RFC 7143 4.2.5).
//!
//! A command whose data is not all in its own PDU waits here until it is. Memory is given to it only for what has been
//! granted: the immediate and unsolicited part, and what R2Ts have asked for; and R2Ts are sent only while the
//! connection's share of memory ([`WRITE_SHARE`]) has room for the whole of the command's data, so that commands that
//! were let in can always finish.
//!
//! A command that ends early (its data is bad, or the core has its answer before the data) stays until the initiator
//! has sent what it was allowed to send (RFC 7143 11.4.2): its data is swallowed, then its answer goes.
//!
//! C source: `data_out_start`, `send_r2t` of `iscsi-scst/kernel/iscsi.c`, `cmnd_data_wait_hash` of `conn.c`

use crate::pdu::{Itt, Ttt};
use crate::sn::{DataSn, R2tSn};
use kshim::time::Instant;
use scst_core::cmd::Cmd;
use slab::Slab;
use std::collections::{HashMap, VecDeque};

/// Data buffers up to this length are allocated in one piece when the command arrives.
pub(crate) const SMALL_WRITE: u32 = 1 << 20;

/// DIFFERS: SCST has no such limit. Write data that one connection may have in memory on its way, not counting what commands carry unasked. One
/// command of any length is always let in.
pub(crate) const WRITE_SHARE: u64 = 128 << 20;

/// Pieces of one burst that may lie apart while its PDUs come out of order (DataPDUInOrder=No).
const MAX_RUNS: usize = 64;

/// Names a waiting command within the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitKey {
    at: usize,
    generation: u16,
}

/// What has to be known of a command whose data is awaited.
pub(crate) trait Payload {
    /// Bytes the command takes.
    fn write_len(&self) -> u32;
    /// Makes the command's buffer at least `upto` bytes long; `whole`: all of it may be allocated.
    fn make_room(&mut self, upto: u32, whole: bool) -> kshim::error::Result;
    /// The connection has counted the command's data against its share.
    fn set_admitted(&mut self);
}

impl Payload for Box<Cmd> {
    fn write_len(&self) -> u32 {
        Cmd::write_len(self)
    }

    /// Small writes get all at once, in one piece, large ones burst by burst.
    fn make_room(&mut self, upto: u32, whole: bool) -> kshim::error::Result {
        let all = Cmd::write_len(self);
        let want = if whole {
            upto.max(all.min(SMALL_WRITE))
        } else {
            upto
        };
        let want = usize::try_from(want.min(all)).unwrap_or(usize::MAX);
        let piece = usize::try_from(SMALL_WRITE).unwrap_or(usize::MAX);
        while self.sg().len() < want {
            let left = want.saturating_sub(self.sg().len());
            self.extend_space(u32::try_from(left.min(piece)).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    fn set_admitted(&mut self) {
        self.tgt_priv |= crate::ffp::PRIV_ADMITTED;
    }
}

/// What a Data-Out PDU is refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataError {
    /// Data that nobody asked for: ABORTED COMMAND, 0Ch/0Ch.
    Unexpected,
    /// More or less than was asked for: ABORTED COMMAND, 0Ch/0Dh.
    WrongAmount,
    /// A PDU before it is missing, by its number: ABORTED COMMAND, 47h/05h.
    OutOfSequence,
}

/// A stretch of data that the initiator may send now.
#[derive(Clone, Debug)]
struct Burst {
    offset: u32,
    len: u32,
    /// Bytes from the beginning on that are there.
    got: u32,
    /// What came ahead of its turn: begin and end, in order, not touching each other.
    runs: Vec<(u32, u32)>,
    /// Number of the next PDU.
    data_sn: DataSn,
}

impl Burst {
    fn new(offset: u32, len: u32) -> Self {
        Self {
            offset,
            len,
            got: 0,
            runs: Vec::new(),
            data_sn: DataSn::default(),
        }
    }

    /// The PDUs of a burst are numbered from 0 on, in the order in which they are sent, whatever part each has
    /// (RFC 7143 11.7.4). Without error recovery one that is missing cannot be had again.
    ///
    /// DIFFERS: SCST does not look at the numbers.
    fn number(&mut self, data_sn: DataSn) -> Result<(), DataError> {
        if data_sn != self.data_sn {
            return Err(DataError::OutOfSequence);
        }
        self.data_sn = data_sn.next();
        Ok(())
    }

    fn end(&self) -> u32 {
        self.offset.saturating_add(self.len)
    }

    /// Up to where the data is there without a gap.
    fn filled_to(&self) -> u32 {
        self.offset.saturating_add(self.got)
    }

    fn is_complete(&self) -> bool {
        self.got == self.len
    }

    /// Takes `len` bytes at `offset` off what is still to come.
    ///
    /// DIFFERS: SCST counts lengths only, so that overlapping PDUs leave holes with old memory in them.
    fn claim(&mut self, offset: u32, len: u32, in_order: bool) -> Result<(), DataError> {
        let end = offset.checked_add(len).ok_or(DataError::WrongAmount)?;
        let filled = self.filled_to();
        if offset < filled || end > self.end() || (in_order && offset != filled) {
            return Err(DataError::WrongAmount);
        }
        if len == 0 {
            return Ok(());
        }
        if self.runs.is_empty() && offset == filled {
            self.got = self.got.saturating_add(len);
            return Ok(());
        }
        self.insert_run(offset, end)?;
        while let Some(&(begin, end)) = self.runs.first()
            && begin == self.filled_to()
        {
            self.got = end.saturating_sub(self.offset);
            self.runs.remove(0);
        }
        Ok(())
    }

    fn insert_run(&mut self, begin: u32, end: u32) -> Result<(), DataError> {
        let at = self.runs.partition_point(|&(b, _)| b < begin);
        let before = at.checked_sub(1).and_then(|i| self.runs.get(i)).copied();
        let after = self.runs.get(at).copied();
        let overlaps =
            before.is_some_and(|(_, e)| e > begin) || after.is_some_and(|(b, _)| b < end);
        if overlaps || self.runs.len() >= MAX_RUNS {
            return Err(DataError::WrongAmount);
        }
        let joins_before = before.is_some_and(|(_, e)| e == begin);
        let joins_after = after.is_some_and(|(b, _)| b == end);
        let (mut run, mut place) = ((begin, end), at);
        if joins_after {
            run.1 = self.runs.remove(at).1;
        }
        if joins_before {
            place = at.saturating_sub(1);
            run.0 = self.runs.remove(place).0;
        }
        self.runs.insert(place, run);
        Ok(())
    }
}

/// What the command waits with.
#[derive(Debug)]
enum Waiter<C> {
    /// Execution waits for the data.
    Cmd(C),
    /// It has failed; the core learns of it when the initiator has sent what it may send.
    Failed(C),
    /// The answer is there, and goes out when the initiator has sent what it may send.
    Answer(C),
    /// The command was taken while a PDU of it is being received; the rest of that PDU is swallowed.
    Taken,
}

#[derive(Debug)]
struct DataWait<C> {
    waiter: Waiter<C>,
    itt: Itt,
    lun: [u8; 8],
    generation: u16,
    /// Bytes the command takes.
    write_len: u32,
    /// Bytes that are in its buffer, or in the PDU that is being received.
    received: u32,
    /// Where the next R2T asks from.
    next_offset: u32,
    r2t_sn: R2tSn,
    /// The unsolicited burst, while it lasts.
    unsolicited: Option<Burst>,
    solicited: Vec<Burst>,
    /// A PDU of the command is being received.
    in_pdu: bool,
    /// The connection's share has room for all its data.
    admitted: bool,
    /// Since when the initiator may send it.
    #[doc(alias = "write_start")]
    since: Instant,
}

impl<C> DataWait<C> {
    fn burst_mut(&mut self, id: BurstId) -> Option<&mut Burst> {
        match id {
            BurstId::Unsolicited => self.unsolicited.as_mut(),
            BurstId::Solicited(offset) => self.solicited.iter_mut().find(|b| b.offset == offset),
        }
    }

    fn end_burst(&mut self, id: BurstId) {
        match id {
            BurstId::Unsolicited => {
                if let Some(burst) = self.unsolicited.take() {
                    // The initiator may send less unasked than it could; R2Ts ask for the rest.
                    self.next_offset = burst.filled_to();
                }
            }
            BurstId::Solicited(offset) => self.solicited.retain(|b| b.offset != offset),
        }
    }
}

/// Which burst a PDU belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BurstId {
    Unsolicited,
    /// The one that begins there.
    Solicited(u32),
}

/// An R2T to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct R2t {
    pub(crate) itt: Itt,
    pub(crate) ttt: Ttt,
    pub(crate) lun: [u8; 8],
    pub(crate) r2t_sn: R2tSn,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// What a Data-Out PDU says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataOut {
    pub(crate) itt: Itt,
    pub(crate) ttt: Option<Ttt>,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) data_sn: DataSn,
    pub(crate) is_final: bool,
}

/// A Data-Out PDU that found its command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) key: WaitKey,
    /// Offset in the command's buffer.
    pub(crate) at: usize,
    /// Bytes that belong there; the rest of the PDU's data is swallowed.
    pub(crate) len: usize,
    /// Why the data is not taken and the command has to fail.
    pub(crate) error: Option<DataError>,
    burst: Option<BurstId>,
    is_final: bool,
}

/// What is due after a PDU's data has arrived.
#[derive(Debug)]
pub(crate) enum Step<C> {
    /// More data is to come.
    Wait,
    /// Nothing is outstanding that was not asked for: R2Ts may go.
    AskMore(WaitKey),
    /// All data is there.
    Complete(C),
    /// The command that has failed may end.
    Fail(C),
    /// The answer that waited may go.
    Answer(C),
}

/// A command that was taken out because it was aborted or the connection is dead.
#[derive(Debug)]
pub(crate) enum Taken<C> {
    /// It was not executed.
    Cmd(C),
    /// Its answer was waiting.
    Answer(C),
}

/// A command that begins to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewWait {
    pub(crate) itt: Itt,
    pub(crate) lun: [u8; 8],
    /// Bytes that its own PDU carries.
    pub(crate) immediate: u32,
    /// Up to where the initiator sends data unasked; `None`: it does not.
    pub(crate) unsolicited_end: Option<u32>,
    /// Its own PDU is still being received.
    pub(crate) in_pdu: bool,
}

/// The commands of a connection that wait for data.
#[derive(Debug)]
pub(crate) struct DataWaits<C> {
    slab: Slab<DataWait<C>>,
    by_itt: HashMap<Itt, usize>,
    generation: u16,
    /// The PDUs of a burst must come in order.
    in_order: bool,
    /// Bytes of the commands that were let in.
    admitted: u64,
    /// Commands that are not let in yet.
    queue: VecDeque<WaitKey>,
    /// The time, as far as the caller has told it.
    now: Instant,
}

/// TTTs carry slab index and generation, 16 bits each; FFFFFFFFh is reserved.
const MAX_WAITS: usize = 0xfffe;

impl<C: Payload> DataWaits<C> {
    pub(crate) fn new(in_order: bool) -> Self {
        Self {
            slab: Slab::new(),
            by_itt: HashMap::new(),
            generation: 0,
            in_order,
            admitted: 0,
            queue: VecDeque::new(),
            now: Instant::from_nanos(0),
        }
    }

    /// Tells the time.
    #[inline]
    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Since when the initiator owes data, that of the command that has waited longest. Commands that have not been let
    /// in, and of which nothing comes unasked, wait for us.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let owes = |w: &DataWait<C>| w.admitted || w.in_pdu || w.unsolicited.is_some();
        let all = self.slab.iter().map(|(_, w)| w);
        all.filter(|w| owes(w)).map(|w| w.since).min()
    }

    /// Whether a command of this tag waits here.
    #[inline]
    pub(crate) fn contains(&self, itt: Itt) -> bool {
        !self.slab.is_empty() && self.by_itt.contains_key(&itt)
    }

    /// Lets a command wait, with memory for what comes unasked. Gives it back when there is none, or too many wait.
    pub(crate) fn insert(&mut self, mut cmd: C, new: &NewWait) -> Result<WaitKey, C> {
        if self.slab.len() >= MAX_WAITS || self.by_itt.contains_key(&new.itt) {
            return Err(cmd);
        }
        let write_len = cmd.write_len();
        let unasked = new.unsolicited_end.unwrap_or(new.immediate).min(write_len);
        let admitted = self.has_room(write_len);
        if cmd.make_room(unasked, admitted).is_err() {
            return Err(cmd);
        }
        if admitted {
            self.admitted = self.admitted.saturating_add(u64::from(write_len));
            cmd.set_admitted();
        }
        let key = self.add(Waiter::Cmd(cmd), new, write_len);
        if let Some(wait) = self.slab.get_mut(key.at) {
            wait.admitted = admitted;
        }
        if !admitted {
            self.queue.push_back(key);
        }
        Ok(key)
    }

    /// Keeps an answer back until the initiator has sent its unsolicited data, which is dropped.
    pub(crate) fn hold_answer(&mut self, cmd: C, new: &NewWait) -> WaitKey {
        self.add(Waiter::Answer(cmd), &swallowing(new), 0)
    }

    /// Keeps a failed command until the initiator has sent its unsolicited data, which is dropped.
    pub(crate) fn hold_failed(&mut self, cmd: C, new: &NewWait) -> WaitKey {
        self.add(Waiter::Failed(cmd), &swallowing(new), 0)
    }

    fn add(&mut self, waiter: Waiter<C>, new: &NewWait, write_len: u32) -> WaitKey {
        self.generation = self.generation.wrapping_add(1) & 0x7fff;
        let unsolicited = new
            .unsolicited_end
            .map(|end| Burst::new(new.immediate, end.saturating_sub(new.immediate)));
        let at = self.slab.insert(DataWait {
            waiter,
            itt: new.itt,
            lun: new.lun,
            generation: self.generation,
            write_len,
            received: new.immediate.min(write_len),
            next_offset: new.immediate,
            r2t_sn: R2tSn::default(),
            unsolicited,
            solicited: Vec::new(),
            in_pdu: new.in_pdu,
            admitted: false,
            since: self.now,
        });
        self.by_itt.insert(new.itt, at);
        WaitKey {
            at,
            generation: self.generation,
        }
    }

    fn get_mut(&mut self, key: WaitKey) -> Option<&mut DataWait<C>> {
        self.slab
            .get_mut(key.at)
            .filter(|w| w.generation == key.generation)
    }

    /// The command's buffer, to receive into. `None`: what comes for it is swallowed.
    #[inline]
    pub(crate) fn cmd_mut(&mut self, key: WaitKey) -> Option<&mut C> {
        match &mut self.get_mut(key)?.waiter {
            Waiter::Cmd(cmd) => Some(cmd),
            Waiter::Failed(_) | Waiter::Answer(_) | Waiter::Taken => None,
        }
    }

    /// Finds the command of a Data-Out PDU and checks that its data was asked for. `None`: the command is gone, the data
    /// is dropped (SCST does so too: an aborted command's data may still be on its way). The end of the PDU is to be told
    /// by [`DataWaits::pdu_done`].
    pub(crate) fn accept(&mut self, pdu: &DataOut) -> Option<Accepted> {
        let at = *self.by_itt.get(&pdu.itt)?;
        let in_order = self.in_order;
        let wait = self.slab.get_mut(at)?;
        wait.in_pdu = true;
        let key = WaitKey {
            at,
            generation: wait.generation,
        };
        let mut accepted = Accepted {
            key,
            at: usize::try_from(pdu.offset).unwrap_or(usize::MAX),
            len: 0,
            error: None,
            burst: find_burst(wait, key, pdu),
            is_final: pdu.is_final,
        };
        let Waiter::Cmd(_) = wait.waiter else {
            return Some(accepted);
        };
        let claimed = match accepted.burst.and_then(|id| wait.burst_mut(id)) {
            Some(burst) => (burst.number(pdu.data_sn))
                .and_then(|()| burst.claim(pdu.offset, pdu.len, in_order)),
            // An empty PDU does no harm.
            None if pdu.len == 0 => Ok(()),
            None => Err(DataError::Unexpected),
        };
        match claimed {
            Ok(()) => {
                let take = wait.write_len.saturating_sub(pdu.offset).min(pdu.len);
                wait.received = wait.received.saturating_add(take);
                accepted.len = usize::try_from(take).unwrap_or(0);
            }
            Err(e) => accepted.error = Some(e),
        }
        Some(accepted)
    }

    /// A Data-Out PDU is complete. An error: the F bit came before all data had.
    pub(crate) fn pdu_done(&mut self, pdu: &Accepted) -> Result<(), DataError> {
        let Some(wait) = self.get_mut(pdu.key) else {
            return Ok(());
        };
        wait.in_pdu = false;
        let Some(id) = pdu.burst else { return Ok(()) };
        let Some(burst) = wait.burst_mut(id) else {
            return Ok(());
        };
        let complete = burst.is_complete();
        let gaps = !burst.runs.is_empty();
        if pdu.is_final || complete {
            wait.end_burst(id);
        }
        let short = match id {
            BurstId::Unsolicited => gaps,
            BurstId::Solicited(_) => !complete,
        };
        let wanted = matches!(wait.waiter, Waiter::Cmd(_));
        if pdu.is_final && short && wanted {
            Err(DataError::WrongAmount)
        } else {
            Ok(())
        }
    }

    /// The command's own PDU is complete.
    pub(crate) fn own_pdu_done(&mut self, key: WaitKey) {
        if let Some(wait) = self.get_mut(key) {
            wait.in_pdu = false;
        }
    }

    /// The command has failed: no more is asked for, and it ends when the initiator has sent what it was asked for.
    pub(crate) fn fail(&mut self, key: WaitKey, set_sense: impl FnOnce(&mut C)) {
        let Some(wait) = self.get_mut(key) else {
            return;
        };
        wait.waiter = match std::mem::replace(&mut wait.waiter, Waiter::Taken) {
            Waiter::Cmd(mut cmd) => {
                set_sense(&mut cmd);
                Waiter::Failed(cmd)
            }
            other => other,
        };
    }

    /// What is due for the command now.
    pub(crate) fn step(&mut self, key: WaitKey) -> Step<C> {
        let Some(wait) = self.get_mut(key) else {
            return Step::Wait;
        };
        if wait.in_pdu || wait.unsolicited.is_some() {
            return Step::Wait;
        }
        match wait.waiter {
            Waiter::Cmd(_) if wait.received < wait.write_len => return Step::AskMore(key),
            Waiter::Failed(_) | Waiter::Answer(_) if !wait.solicited.is_empty() => {
                return Step::Wait;
            }
            _ => {}
        }
        match self.remove(key) {
            Some(Waiter::Cmd(cmd)) => Step::Complete(cmd),
            Some(Waiter::Failed(cmd)) => Step::Fail(cmd),
            Some(Waiter::Answer(cmd)) => Step::Answer(cmd),
            Some(Waiter::Taken) | None => Step::Wait,
        }
    }

    fn remove(&mut self, key: WaitKey) -> Option<Waiter<C>> {
        self.get_mut(key)?;
        let wait = self.slab.try_remove(key.at)?;
        // The tag of a command that was taken may have been given to another one.
        if self.by_itt.get(&wait.itt) == Some(&key.at) {
            self.by_itt.remove(&wait.itt);
        }
        Some(wait.waiter)
    }

    /// The next R2T of a command, if one may go: at most `max` bursts of `burst` bytes are outstanding. The command gets
    /// the memory first; without memory none goes.
    pub(crate) fn next_r2t(&mut self, key: WaitKey, burst: u32, max: u32) -> Option<R2t> {
        let wait = self.get_mut(key)?;
        let outstanding = u32::try_from(wait.solicited.len()).unwrap_or(u32::MAX);
        let Waiter::Cmd(cmd) = &mut wait.waiter else {
            return None;
        };
        let due = wait.admitted && !wait.in_pdu && wait.unsolicited.is_none();
        if !due || outstanding >= max || wait.next_offset >= wait.write_len {
            return None;
        }
        let len = wait.write_len.saturating_sub(wait.next_offset).min(burst);
        if cmd
            .make_room(wait.next_offset.saturating_add(len), true)
            .is_err()
        {
            return None;
        }
        let r2t = R2t {
            itt: wait.itt,
            ttt: ttt_of(key),
            lun: wait.lun,
            r2t_sn: wait.r2t_sn,
            offset: wait.next_offset,
            len,
        };
        wait.solicited.push(Burst::new(wait.next_offset, len));
        wait.r2t_sn = wait.r2t_sn.next();
        wait.next_offset = wait.next_offset.saturating_add(len);
        Some(r2t)
    }

    /// Whether the command waits for data that nobody has asked for although it was let in: there was no memory.
    pub(crate) fn is_starved(&mut self, key: WaitKey) -> bool {
        self.get_mut(key).is_some_and(|w| {
            let idle = !w.in_pdu && w.unsolicited.is_none() && w.solicited.is_empty();
            w.admitted && idle && matches!(w.waiter, Waiter::Cmd(_)) && w.received < w.write_len
        })
    }

    fn has_room(&self, write_len: u32) -> bool {
        let sum = self.admitted.saturating_add(u64::from(write_len));
        self.queue.is_empty() && (self.admitted == 0 || sum <= WRITE_SHARE)
    }

    /// A command that was let in ([`Payload::set_admitted`]) is finished.
    pub(crate) fn leave(&mut self, write_len: u32) {
        self.admitted = self.admitted.saturating_sub(u64::from(write_len));
    }

    /// Whether commands wait to be let in.
    #[inline]
    pub(crate) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Lets the next command in, if there is room.
    pub(crate) fn admit(&mut self) -> Option<WaitKey> {
        while let Some(&key) = self.queue.front() {
            let Some(wait) = self
                .slab
                .get_mut(key.at)
                .filter(|w| w.generation == key.generation)
            else {
                self.queue.pop_front();
                continue;
            };
            let Waiter::Cmd(cmd) = &mut wait.waiter else {
                self.queue.pop_front();
                continue;
            };
            let sum = self.admitted.saturating_add(u64::from(wait.write_len));
            if self.admitted != 0 && sum > WRITE_SHARE {
                return None;
            }
            cmd.set_admitted();
            wait.admitted = true;
            wait.since = self.now;
            self.admitted = sum;
            self.queue.pop_front();
            return Some(key);
        }
        None
    }

    /// Takes a command that task management aborted. What the initiator still sends for it finds nothing.
    pub(crate) fn take_aborted(&mut self, wanted: impl Fn(&C) -> bool) -> Option<Taken<C>> {
        let hit = self.slab.iter().find_map(|(at, w)| match &w.waiter {
            Waiter::Cmd(cmd) | Waiter::Failed(cmd) | Waiter::Answer(cmd) => {
                wanted(cmd).then_some(WaitKey {
                    at,
                    generation: w.generation,
                })
            }
            Waiter::Taken => None,
        })?;
        let wait = self.get_mut(hit)?;
        let waiter = if wait.in_pdu {
            wait.unsolicited = None;
            wait.solicited = Vec::new();
            let (itt, waiter) = (wait.itt, std::mem::replace(&mut wait.waiter, Waiter::Taken));
            self.by_itt.remove(&itt);
            waiter
        } else {
            self.remove(hit)?
        };
        match waiter {
            Waiter::Cmd(cmd) | Waiter::Failed(cmd) => Some(Taken::Cmd(cmd)),
            Waiter::Answer(cmd) => Some(Taken::Answer(cmd)),
            Waiter::Taken => None,
        }
    }

    /// Takes everything: the connection is dead.
    pub(crate) fn take_all(&mut self) -> Vec<Taken<C>> {
        self.by_itt.clear();
        self.queue.clear();
        let waiters = self.slab.drain().map(|w| w.waiter);
        waiters
            .filter_map(|w| match w {
                Waiter::Cmd(cmd) | Waiter::Failed(cmd) => Some(Taken::Cmd(cmd)),
                Waiter::Answer(cmd) => Some(Taken::Answer(cmd)),
                Waiter::Taken => None,
            })
            .collect()
    }

    /// Gives memory back that a burst of commands made the tables keep.
    pub(crate) fn shrink(&mut self) {
        if self.slab.is_empty() {
            self.slab.shrink_to_fit();
            self.by_itt.shrink_to_fit();
            self.queue.shrink_to_fit();
        }
    }
}

/// What swallows all unsolicited data until the F bit.
fn swallowing(new: &NewWait) -> NewWait {
    let unsolicited_end = new.unsolicited_end.map(|_| u32::MAX);
    NewWait {
        immediate: 0,
        unsolicited_end,
        ..*new
    }
}

fn find_burst<C>(wait: &DataWait<C>, key: WaitKey, pdu: &DataOut) -> Option<BurstId> {
    match pdu.ttt {
        None => wait.unsolicited.as_ref().map(|_| BurstId::Unsolicited),
        Some(ttt) if ttt != ttt_of(key) => None,
        Some(_) => {
            // Of two neighbours, the end of one is the beginning of the other.
            let holds = |b: &&Burst| pdu.offset >= b.offset && pdu.offset < b.end();
            let ends = |b: &&Burst| pdu.offset == b.end();
            let mut bursts = wait.solicited.iter();
            let found = bursts.clone().find(holds).or_else(|| bursts.find(ends));
            // Data beside all bursts is refused, but its F bit ends one.
            let found = found.or(wait.solicited.first());
            found.map(|b| BurstId::Solicited(b.offset))
        }
    }
}

fn ttt_of(key: WaitKey) -> Ttt {
    let at = u32::try_from(key.at).unwrap_or(u32::MAX) & 0xffff;
    Ttt(u32::from(key.generation) << 16 | at)
}

#[cfg(test)]
#[path = "data_out/tests.rs"]
mod tests;
