//! Write data on its way: immediate, unsolicited and solicited bursts of each command (RFC 7143 4.2.5).
//!
//! A command whose data is not all in its own PDU waits here until it is. Memory is given to it only for what has been
//! granted: the immediate and unsolicited part, and what R2Ts have asked for.
//!
//! C source: `data_out_start`, `send_r2t` of `iscsi-scst/kernel/iscsi.c`, `cmnd_data_wait_hash` of `conn.c`

use crate::pdu::{Itt, Ttt};
use crate::sn::R2tSn;
use scst_core::cmd::Cmd;
use slab::Slab;
use std::collections::HashMap;

/// Data buffers up to this length are allocated in one piece when the command arrives.
pub(crate) const SMALL_WRITE: u32 = 1 << 20;

/// Names a waiting command within the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitKey(usize);

/// A stretch of data that the initiator may send now.
#[derive(Clone, Copy, Debug)]
struct Burst {
    offset: u32,
    len: u32,
    got: u32,
}

impl Burst {
    fn end(&self) -> u32 {
        self.offset.saturating_add(self.len)
    }
}

/// What a Data-Out PDU is refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataError {
    /// Data that nobody asked for: ABORTED COMMAND, 0Ch/0Ch.
    Unexpected,
    /// More or less than was asked for: ABORTED COMMAND, 0Ch/0Dh.
    WrongAmount,
}

/// What the command waits with.
#[derive(Debug)]
enum Waiter {
    /// Execution waits for the data.
    Cmd(Box<Cmd>),
    /// The answer is there, and goes out when the initiator has sent what it was going to send unasked.
    Answer(Box<Cmd>),
    /// The command was taken (its data failed, or it was aborted); what still comes is swallowed.
    Taken,
}

#[derive(Debug)]
struct DataWait {
    waiter: Waiter,
    itt: Itt,
    lun: [u8; 8],
    generation: u16,
    /// Bytes the command takes.
    write_len: u32,
    /// Bytes that are in its buffer.
    received: u32,
    /// Where the next R2T asks from.
    next_offset: u32,
    r2t_sn: R2tSn,
    /// The unsolicited burst, while it lasts.
    unsolicited: Option<Burst>,
    solicited: Vec<Burst>,
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

/// Where the data of an accepted Data-Out PDU goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) key: WaitKey,
    /// Offset in the command's buffer.
    pub(crate) at: usize,
    /// Bytes that belong there; the rest of the PDU's data is beyond what the command takes.
    pub(crate) len: usize,
}

/// What is due after a PDU's data has arrived.
#[derive(Debug)]
pub(crate) enum Step {
    /// More data is to come unasked.
    Wait,
    /// Nothing is outstanding that was not asked for: R2Ts may go.
    AskMore(WaitKey),
    /// All data is there.
    Complete(Box<Cmd>),
    /// The answer that waited may go.
    Answer(Box<Cmd>),
}

/// The commands of a connection that wait for data.
#[derive(Debug)]
pub(crate) struct DataWaits {
    slab: Slab<DataWait>,
    by_itt: HashMap<Itt, usize>,
    generation: u16,
}

/// TTTs carry slab index and generation, 16 bits each; FFFFFFFFh is reserved.
const MAX_WAITS: usize = 0xfffe;

impl DataWaits {
    pub(crate) fn new() -> Self {
        Self {
            slab: Slab::new(),
            by_itt: HashMap::new(),
            generation: 0,
        }
    }

    /// Lets a command wait. `immediate` bytes are in its buffer (or will be when their PDU is complete), up to
    /// `unsolicited_end` the initiator sends unasked. Gives the command back when there are too many.
    pub(crate) fn insert(
        &mut self,
        cmd: Box<Cmd>,
        itt: Itt,
        lun: [u8; 8],
        immediate: u32,
        unsolicited_end: Option<u32>,
    ) -> Result<WaitKey, Box<Cmd>> {
        if self.slab.len() >= MAX_WAITS || self.by_itt.contains_key(&itt) {
            return Err(cmd);
        }
        let write_len = cmd.write_len();
        Ok(self.add(
            Waiter::Cmd(cmd),
            itt,
            lun,
            write_len,
            immediate,
            unsolicited_end,
        ))
    }

    /// Keeps an answer back until the initiator has sent its unsolicited data, which is dropped.
    pub(crate) fn hold_answer(&mut self, itt: Itt, cmd: Box<Cmd>) {
        self.add(Waiter::Answer(cmd), itt, [0; 8], 0, 0, Some(u32::MAX));
    }

    /// The command of this tag has failed; what it still sends unasked is swallowed.
    pub(crate) fn hold_failed(&mut self, itt: Itt) {
        self.add(Waiter::Taken, itt, [0; 8], 0, 0, Some(u32::MAX));
    }

    fn add(
        &mut self,
        waiter: Waiter,
        itt: Itt,
        lun: [u8; 8],
        write_len: u32,
        immediate: u32,
        unsolicited_end: Option<u32>,
    ) -> WaitKey {
        self.generation = self.generation.wrapping_add(1) & 0x7fff;
        let unsolicited = unsolicited_end.map(|end| Burst {
            offset: immediate,
            len: end.saturating_sub(immediate),
            got: 0,
        });
        let key = self.slab.insert(DataWait {
            waiter,
            itt,
            lun,
            generation: self.generation,
            write_len,
            received: immediate.min(write_len),
            next_offset: unsolicited_end.unwrap_or(immediate),
            r2t_sn: R2tSn::default(),
            unsolicited,
            solicited: Vec::new(),
        });
        self.by_itt.insert(itt, key);
        WaitKey(key)
    }

    /// The command's buffer, to receive into.
    pub(crate) fn cmd_mut(&mut self, key: WaitKey) -> Option<&mut Box<Cmd>> {
        match &mut self.slab.get_mut(key.0)?.waiter {
            Waiter::Cmd(cmd) => Some(cmd),
            Waiter::Answer(_) | Waiter::Taken => None,
        }
    }

    /// Finds the command of a Data-Out PDU and checks that its data was asked for. `None`: the command is gone, the data
    /// is dropped (SCST does so too: an aborted command's data may still be on its way).
    pub(crate) fn accept(
        &mut self,
        itt: Itt,
        ttt: Option<Ttt>,
        offset: u32,
        len: u32,
    ) -> Option<Result<Accepted, (WaitKey, DataError)>> {
        let key = *self.by_itt.get(&itt)?;
        let wait = self.slab.get_mut(key)?;
        let burst = match ttt {
            None => wait.unsolicited.as_mut(),
            Some(ttt) if ttt != ttt_of(key, wait.generation) => None,
            Some(_) => wait
                .solicited
                .iter_mut()
                .find(|b| offset >= b.offset && offset < b.end().max(1)),
        };
        let Some(burst) = burst else {
            return Some(Err((WaitKey(key), DataError::Unexpected)));
        };
        let end = offset.saturating_add(len);
        let got = burst.got.saturating_add(len);
        if offset < burst.offset || end > burst.end() || got > burst.len {
            return Some(Err((WaitKey(key), DataError::WrongAmount)));
        }
        burst.got = got;
        let take = wait.write_len.saturating_sub(offset).min(len);
        let len = usize::try_from(take).unwrap_or(0);
        Some(Ok(Accepted {
            key: WaitKey(key),
            at: usize::try_from(offset).unwrap_or(0),
            len,
        }))
    }

    /// The data of a PDU is in the buffer. `is_final`: its F bit, which ends the burst at `end`.
    pub(crate) fn received(
        &mut self,
        key: WaitKey,
        len: usize,
        solicited_at: Option<u32>,
        is_final: bool,
    ) -> Result<Step, DataError> {
        let Some(wait) = self.slab.get_mut(key.0) else {
            return Ok(Step::Wait);
        };
        wait.received = wait
            .received
            .saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
        if is_final {
            match solicited_at {
                None => {
                    if let Some(burst) = wait.unsolicited.take() {
                        // The initiator may send less unasked than it could; R2Ts ask for the rest.
                        wait.next_offset = burst.offset.saturating_add(burst.got);
                    }
                }
                Some(at) => {
                    let here = |b: &Burst| at >= b.offset && at < b.end().max(1);
                    if let Some(i) = wait.solicited.iter().position(here) {
                        let burst = wait.solicited.swap_remove(i);
                        if burst.got != burst.len {
                            return Err(DataError::WrongAmount);
                        }
                    }
                }
            }
        }
        Ok(self.step(key))
    }

    /// What is due for the command now.
    pub(crate) fn step(&mut self, key: WaitKey) -> Step {
        let Some(wait) = self.slab.get(key.0) else {
            return Step::Wait;
        };
        if wait.unsolicited.is_some() {
            return Step::Wait;
        }
        match wait.waiter {
            Waiter::Cmd(_) if wait.received < wait.write_len => Step::AskMore(key),
            Waiter::Cmd(_) => self.remove(key).map_or(Step::Wait, |w| match w {
                Waiter::Cmd(cmd) => Step::Complete(cmd),
                Waiter::Answer(_) | Waiter::Taken => Step::Wait,
            }),
            Waiter::Answer(_) => self.remove(key).map_or(Step::Wait, |w| match w {
                Waiter::Answer(cmd) => Step::Answer(cmd),
                Waiter::Cmd(_) | Waiter::Taken => Step::Wait,
            }),
            Waiter::Taken => {
                if wait.solicited.is_empty() {
                    self.remove(key);
                }
                Step::Wait
            }
        }
    }

    fn remove(&mut self, key: WaitKey) -> Option<Waiter> {
        let wait = self.slab.try_remove(key.0)?;
        self.by_itt.remove(&wait.itt);
        Some(wait.waiter)
    }

    /// The next R2T of a command, if one may go: at most `max` bursts of `burst` bytes are outstanding. The command gets
    /// the memory first; without memory it asks again later (it stays as it is).
    pub(crate) fn next_r2t(&mut self, key: WaitKey, burst: u32, max: u32) -> Option<R2t> {
        let wait = self.slab.get_mut(key.0)?;
        let outstanding = u32::try_from(wait.solicited.len()).unwrap_or(u32::MAX);
        let Waiter::Cmd(cmd) = &mut wait.waiter else {
            return None;
        };
        if wait.unsolicited.is_some() || outstanding >= max || wait.next_offset >= wait.write_len {
            return None;
        }
        let len = wait.write_len.saturating_sub(wait.next_offset).min(burst);
        if ensure_buffer(cmd, wait.next_offset.saturating_add(len)).is_err() {
            return None;
        }
        let r2t = R2t {
            itt: wait.itt,
            ttt: ttt_of(key.0, wait.generation),
            lun: wait.lun,
            r2t_sn: wait.r2t_sn,
            offset: wait.next_offset,
            len,
        };
        wait.solicited.push(Burst {
            offset: wait.next_offset,
            len,
            got: 0,
        });
        wait.r2t_sn = wait.r2t_sn.next();
        wait.next_offset = wait.next_offset.saturating_add(len);
        Some(r2t)
    }

    /// Whether the command waits for data that nobody has asked for, because there was no memory.
    pub(crate) fn is_starved(&self, key: WaitKey) -> bool {
        self.slab.get(key.0).is_some_and(|w| {
            w.unsolicited.is_none() && w.solicited.is_empty() && w.received < w.write_len
        })
    }

    /// Takes the command, to fail it. What the initiator still sends unasked is swallowed.
    pub(crate) fn take_cmd(&mut self, key: WaitKey) -> Option<Box<Cmd>> {
        let wait = self.slab.get_mut(key.0)?;
        let waiter = std::mem::replace(&mut wait.waiter, Waiter::Taken);
        let more_comes = wait.unsolicited.is_some();
        if !more_comes {
            self.remove(key);
        }
        match waiter {
            Waiter::Cmd(cmd) | Waiter::Answer(cmd) => Some(cmd),
            Waiter::Taken => None,
        }
    }

    /// Takes a command that task management aborted.
    pub(crate) fn take_aborted(&mut self, wanted: impl Fn(&Cmd) -> bool) -> Option<Box<Cmd>> {
        let hit = self.slab.iter().find_map(|(key, w)| match &w.waiter {
            Waiter::Cmd(cmd) => wanted(cmd).then_some(key),
            Waiter::Answer(_) | Waiter::Taken => None,
        })?;
        self.take_cmd(WaitKey(hit))
    }

    /// Takes everything: the connection is dead. The second list are answers, not to be sent any more.
    pub(crate) fn take_all(&mut self) -> (Vec<Box<Cmd>>, Vec<Box<Cmd>>) {
        self.by_itt.clear();
        let (mut cmds, mut answers) = (Vec::new(), Vec::new());
        for wait in self.slab.drain() {
            match wait.waiter {
                Waiter::Cmd(cmd) => cmds.push(cmd),
                Waiter::Answer(cmd) => answers.push(cmd),
                Waiter::Taken => {}
            }
        }
        (cmds, answers)
    }
}

fn ttt_of(key: usize, generation: u16) -> Ttt {
    let key = u32::try_from(key).unwrap_or(u32::MAX) & 0xffff;
    Ttt(u32::from(generation) << 16 | key)
}

/// Makes the command's buffer at least `upto` bytes long: small writes get all at once, large ones burst by burst.
pub(crate) fn ensure_buffer(cmd: &mut Cmd, upto: u32) -> kshim::error::Result {
    let all = cmd.write_len();
    let want = if all <= SMALL_WRITE {
        all
    } else {
        upto.max(SMALL_WRITE.min(all))
    };
    let want = usize::try_from(want.min(all)).unwrap_or(usize::MAX);
    let piece = usize::try_from(SMALL_WRITE).unwrap_or(usize::MAX);
    while cmd.sg().len() < want {
        let left = want.saturating_sub(cmd.sg().len());
        cmd.extend_space(u32::try_from(left.min(piece)).unwrap_or(u32::MAX))?;
    }
    Ok(())
}
