//! What a session does with each PDU that arrives, and the rules it checks on the way.

use std::time::Instant;

use super::{Async, Error, Outcome, R2t, Reply, Residual, Session};
use crate::pdu::{Bhs, FINAL, IMMEDIATE, NO_TAG, Pdu, op};

impl Session {
    /// Receives one PDU and does what it asks for.
    pub fn pump(&mut self, deadline: Instant) -> Result<(), Error> {
        let pdu = self.wire.recv_until(deadline)?;
        self.check_numbers(&pdu);
        if pdu.data.len() > self.params.our_max_recv {
            let (len, max) = (pdu.data.len(), self.params.our_max_recv);
            self.violation(&pdu, &format!("data segment of {len} bytes, we take {max}"));
        }
        match pdu.bhs.opcode() {
            op::SCSI_RESPONSE => self.on_response(&pdu),
            op::DATA_IN => self.on_data_in(&pdu),
            op::R2T => return self.on_r2t(&pdu),
            op::NOP_IN => return self.on_nop_in(&pdu),
            op::TASK_MGMT_RESPONSE => self.finish(&pdu, Outcome::Tmf(pdu.bhs.0[2])),
            op::TEXT_RESPONSE => self.finish(&pdu, Outcome::Text(pdu.clone())),
            op::LOGOUT_RESPONSE => self.finish(&pdu, Outcome::Logout(pdu.bhs.0[2])),
            op::ASYNC => self.asyncs.push(Async {
                event: pdu.bhs.0[36],
                vendor: pdu.bhs.0[37],
                data: pdu.data,
            }),
            op::REJECT => self.on_reject(&pdu),
            _ => self.violation(&pdu, "opcode that no target sends"),
        }
        Ok(())
    }

    fn violation(&mut self, pdu: &Pdu, what: &str) {
        self.violations.push(format!("{what}: {:?}", pdu.bhs));
    }

    /// StatSN of PDUs that carry status must go up by one; the window must not shrink.
    fn check_numbers(&mut self, pdu: &Pdu) {
        let b = &pdu.bhs;
        let counts = match b.opcode() {
            op::DATA_IN => b.flags() & 0x01 != 0,
            op::R2T => false,
            op::NOP_IN => b.itt() != NO_TAG,
            _ => true,
        };
        if counts {
            if b.stat_sn() != self.exp_stat_sn {
                let expected = self.exp_stat_sn;
                self.violation(
                    pdu,
                    &format!("StatSN {:x}, expected {expected:x}", b.stat_sn()),
                );
            }
            self.exp_stat_sn = b.stat_sn().wrapping_add(1);
        }
        let is_newer = |new: u32, old: u32| new.wrapping_sub(old) < 1 << 31;
        if is_newer(b.exp_cmd_sn(), self.exp_cmd_sn) {
            self.exp_cmd_sn = b.exp_cmd_sn();
        } else {
            self.violation(pdu, "ExpCmdSN went back");
        }
        if !is_newer(self.cmd_sn, self.exp_cmd_sn) {
            self.violation(pdu, "ExpCmdSN past what was sent");
        }
        // RFC 7143 4.2.2.1: a MaxCmdSN that is older than the last one is to be ignored, and MaxCmdSN may be
        // ExpCmdSN - 1 (closed window) at the least.
        if is_newer(b.max_cmd_sn(), self.max_cmd_sn) {
            self.max_cmd_sn = b.max_cmd_sn();
        }
        if !is_newer(b.max_cmd_sn().wrapping_add(1), b.exp_cmd_sn()) {
            self.violation(pdu, "MaxCmdSN below ExpCmdSN - 1");
        }
    }

    fn finish(&mut self, pdu: &Pdu, outcome: Outcome) {
        let itt = pdu.bhs.itt();
        if self.pending.remove(&itt).is_none() {
            self.violation(pdu, "answer to nothing we sent");
            return;
        }
        self.done.insert(itt, outcome);
        self.order.push_back(itt);
    }

    fn on_response(&mut self, pdu: &Pdu) {
        let b = pdu.bhs;
        let Some(pending) = self.pending.get_mut(&b.itt()) else {
            return self.violation(pdu, "response to nothing we sent");
        };
        let sense = match *pdu.data {
            [high, low, ref rest @ ..] => {
                let len = usize::from(u16::from_be_bytes([high, low]));
                rest[..len.min(rest.len())].to_vec()
            }
            _ => Vec::new(),
        };
        let reply = Reply {
            response: b.0[2],
            status: b.0[3],
            sense,
            data_in: std::mem::take(&mut pending.data_in),
            residual: residual(&b),
            data_in_pdus: pending.data_in_pdus,
            r2ts: pending.r2ts,
        };
        let exp_data_sn = b.word(36);
        let is_read = pending
            .command
            .as_ref()
            .is_some_and(|c| c.in_len > 0 && c.out.is_empty());
        if is_read && reply.status == 0 && exp_data_sn != reply.data_in_pdus {
            let n = reply.data_in_pdus;
            self.violation(
                pdu,
                &format!("ExpDataSN {exp_data_sn} after {n} Data-In PDUs"),
            );
        }
        self.finish(pdu, Outcome::Scsi(reply));
    }

    fn on_data_in(&mut self, pdu: &Pdu) {
        let b = pdu.bhs;
        let Some(pending) = self.pending.get_mut(&b.itt()) else {
            return self.violation(pdu, "Data-In for nothing we sent");
        };
        let mut wrong = Vec::new();
        if b.word(36) != pending.data_in_pdus {
            wrong.push(format!(
                "DataSN {}, expected {}",
                b.word(36),
                pending.data_in_pdus
            ));
        }
        pending.data_in_pdus += 1;
        let at = b.word(40) as usize;
        let limit = pending.command.as_ref().map_or(0, |c| c.in_len as usize);
        if at != pending.data_in.len() {
            wrong.push(format!("offset {at} after {} bytes", pending.data_in.len()));
        }
        if at.saturating_add(pdu.data.len()) > limit {
            wrong.push(format!(
                "data up to {} of {limit}",
                at.saturating_add(pdu.data.len())
            ));
        } else {
            let end = at + pdu.data.len();
            if pending.data_in.len() < end {
                pending.data_in.resize(end, 0);
            }
            pending.data_in[at..end].copy_from_slice(&pdu.data);
        }
        let has_status = b.flags() & 0x01 != 0;
        if has_status && b.flags() & FINAL == 0 {
            wrong.push("status in a Data-In that is not final".into());
        }
        let reply = has_status.then(|| Reply {
            response: 0,
            status: b.0[3],
            sense: Vec::new(),
            data_in: std::mem::take(&mut pending.data_in),
            residual: residual(&b),
            data_in_pdus: pending.data_in_pdus,
            r2ts: pending.r2ts,
        });
        for what in wrong {
            self.violation(pdu, &what);
        }
        if let Some(reply) = reply {
            self.finish(pdu, Outcome::Scsi(reply));
        }
    }

    fn on_r2t(&mut self, pdu: &Pdu) -> Result<(), Error> {
        let b = pdu.bhs;
        let mut lun = [0; 8];
        lun.copy_from_slice(&b.0[8..16]);
        let r2t = R2t {
            itt: b.itt(),
            ttt: b.ttt(),
            offset: b.word(40),
            len: b.word(44),
            lun,
        };
        let (max_burst, max_r2t) = (self.params.max_burst, self.params.max_outstanding_r2t);
        let Some(pending) = self.pending.get_mut(&r2t.itt) else {
            self.violation(pdu, "R2T for nothing we sent");
            return Ok(());
        };
        let mut wrong = Vec::new();
        if b.word(36) != pending.r2ts {
            wrong.push(format!("R2TSN {}, expected {}", b.word(36), pending.r2ts));
        }
        pending.r2ts += 1;
        let expected = pending
            .command
            .as_ref()
            .map_or(0, |c| c.expected_len.unwrap_or(c.out.len() as u32));
        let end = u64::from(r2t.offset) + u64::from(r2t.len);
        if r2t.len == 0 || r2t.len as usize > max_burst || end > u64::from(expected) {
            wrong.push("R2T outside the data or longer than MaxBurstLength".into());
        }
        if r2t.ttt == NO_TAG {
            wrong.push("R2T with the reserved tag".into());
        }
        let hold = pending.command.as_ref().is_some_and(|c| c.hold);
        let data = if hold {
            pending.held.push(r2t);
            if pending.held.len() > max_r2t as usize {
                wrong.push("more R2Ts than MaxOutstandingR2T".into());
            }
            None
        } else {
            // Taken out for the send, put back after it: the command may get more R2Ts.
            pending.command.as_mut().map(|c| std::mem::take(&mut c.out))
        };
        for what in wrong {
            self.violation(pdu, &what);
        }
        if let Some(data) = data {
            let sent = self.send_data_out(&r2t, &data);
            if let Some(command) = self
                .pending
                .get_mut(&r2t.itt)
                .and_then(|p| p.command.as_mut())
            {
                command.out = data;
            }
            sent?;
        }
        Ok(())
    }

    fn on_nop_in(&mut self, pdu: &Pdu) -> Result<(), Error> {
        let b = pdu.bhs;
        if b.itt() != NO_TAG {
            self.finish(pdu, Outcome::Nop(pdu.clone()));
            return Ok(());
        }
        self.pings += 1;
        if b.ttt() == NO_TAG || !self.answer_pings {
            return Ok(());
        }
        let mut bhs = Bhs::new(op::NOP_OUT | IMMEDIATE, FINAL);
        bhs.0[8..16].copy_from_slice(&b.0[8..16]);
        bhs.set_word(16, NO_TAG).set_word(20, b.ttt());
        self.number(&mut bhs);
        Ok(self.wire.send(&Pdu::bare(bhs))?)
    }

    fn on_reject(&mut self, pdu: &Pdu) {
        let reason = pdu.bhs.0[2];
        self.rejects.push((reason, pdu.data.clone()));
        let Some(header) = pdu.data.get(..48) else {
            return self.violation(pdu, "reject without the rejected header");
        };
        let opcode = header[0] & 0x3f;
        let itt = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
        // A rejected Data-Out or SNACK does not end the command it belongs to.
        if opcode != op::DATA_OUT && opcode != op::SNACK && self.pending.remove(&itt).is_some() {
            self.done.insert(itt, Outcome::Rejected(reason));
            self.order.push_back(itt);
        }
    }
}

fn residual(b: &Bhs) -> Residual {
    match (b.flags() & 0x04 != 0, b.flags() & 0x02 != 0) {
        (true, _) => Residual::Overflow(b.word(44)),
        (_, true) => Residual::Underflow(b.word(44)),
        _ => Residual::None,
    }
}
