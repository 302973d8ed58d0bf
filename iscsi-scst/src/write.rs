//! Write data of the commands of a connection: immediate, unsolicited, solicited.
//!
//! C source: `scsi_cmnd_start`, `cmnd_rx_continue`, `data_out_start`, `data_out_end` of `iscsi-scst/kernel/iscsi.c`

use crate::data_out::{Accepted, DataError, DataOut, NewWait, Step, WaitKey};
use crate::ffp::{Ffp, Handed};
use crate::pdu::hdr::{DataOutHdr, ScsiCmdHdr};
use crate::pdu::{Bhs, RejectReason};
use kshim::page::RxSlice;
use scst_core::cmd::{Cmd, CmdRef, RestartStatus};
use scst_core::sense::{self, Sense};

/// ABORTED COMMAND, unexpected unsolicited data (RFC 7143 11.4.7.2).
const UNEXPECTED_UNSOLICITED_DATA: Sense = Sense::new(sense::key::ABORTED_COMMAND, 0x0c, 0x0c);
/// ABORTED COMMAND, incorrect amount of data.
const INCORRECT_AMOUNT_OF_DATA: Sense = Sense::new(sense::key::ABORTED_COMMAND, 0x0c, 0x0d);
/// ABORTED COMMAND, protocol service CRC error.
const DATA_DIGEST_ERROR: Sense = Sense::new(sense::key::ABORTED_COMMAND, 0x47, 0x05);

fn sense_of(e: DataError) -> Sense {
    match e {
        DataError::Unexpected => UNEXPECTED_UNSOLICITED_DATA,
        DataError::WrongAmount => INCORRECT_AMOUNT_OF_DATA,
        // As for a PDU that was dropped for its digest (RFC 7143 11.4.7.2).
        DataError::OutOfSequence => DATA_DIGEST_ERROR,
    }
}

fn u32_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Makes the first `len` bytes of a received piece the command's data, without copying them.
fn push_part(cmd: &mut Cmd, data: RxSlice, len: usize) -> kshim::error::Result {
    let part = if len == data.len() {
        data
    } else {
        data.slice(0..len)?
    };
    cmd.sg_mut().clear();
    cmd.sg_mut().push_shared(part)
}

impl Ffp {
    /// The core has a command ready, or is done with it: give it the data that came with it and see what else it needs.
    #[doc(alias = "cmnd_rx_continue")]
    #[inline]
    pub(crate) fn command_handed(
        &mut self,
        hdr: &ScsiCmdHdr,
        handed: Handed,
        data: Option<RxSlice>,
        data_ok: bool,
    ) {
        let mut cmd = match handed {
            Handed::Preprocessed(cmd) => cmd,
            Handed::Held(cmd) => {
                self.waits.hold_answer(cmd, &self.new_wait(hdr, 0, false));
                return;
            }
            Handed::Answered | Handed::Parked => return,
        };
        if data.is_none() && !hdr.is_write() && hdr.is_final() {
            return self.restart(cmd, RestartStatus::Success);
        }
        let immediate = data.as_ref().map_or(0, |d| d.len());
        let checked = if data_ok {
            self.check_unsolicited(hdr, immediate)
        } else {
            Err(DATA_DIGEST_ERROR)
        };
        if let Err(s) = checked {
            cmd.set_sense(s);
            if hdr.is_final() {
                return self.restart(cmd, RestartStatus::ErrorSenseSet);
            }
            self.waits.hold_failed(cmd, &self.new_wait(hdr, 0, false));
            return;
        }
        let write_len = usize::try_from(cmd.write_len()).unwrap_or(usize::MAX);
        let take = immediate.min(write_len);
        if take == write_len && hdr.is_final() {
            if let Some(d) = data
                && take != 0
                && let Err(e) = push_part(&mut cmd, d, take)
            {
                kshim::pr_err_ratelimited!("Write data cannot be kept: {e}");
                cmd.set_busy();
                return self.restart(cmd, RestartStatus::ErrorSenseSet);
            }
            return self.restart(cmd, RestartStatus::Success);
        }
        let Some(key) = self.let_wait(cmd, &self.new_wait(hdr, immediate, false)) else {
            return;
        };
        let part = data
            .as_ref()
            .and_then(|d| d.get(..take))
            .unwrap_or_default();
        self.copy_in(key, 0, part);
        self.step(key);
    }

    fn new_wait(&self, hdr: &ScsiCmdHdr, immediate: usize, in_pdu: bool) -> NewWait {
        let immediate = u32_of(immediate);
        let expected = hdr.expected_data_transfer_length.get();
        let unsolicited = self.params.first_burst_length.min(expected).max(immediate);
        NewWait {
            itt: hdr.itt(),
            lun: hdr.lun,
            immediate,
            unsolicited_end: (!hdr.is_final()).then_some(unsolicited),
            in_pdu,
        }
    }

    /// Checks the data that the initiator sends without being asked (RFC 7143 4.2.5.2, 13.10, 13.14).
    fn check_unsolicited(&self, hdr: &ScsiCmdHdr, immediate: usize) -> Result<(), Sense> {
        let p = &self.params;
        let unasked = immediate != 0 || !hdr.is_final();
        let unexpected = (unasked && !hdr.is_write())
            || (immediate != 0 && !p.immediate_data)
            || (!hdr.is_final() && p.initial_r2t);
        if unexpected {
            return Err(UNEXPECTED_UNSOLICITED_DATA);
        }
        let expected = hdr.expected_data_transfer_length.get();
        if u32_of(immediate) > p.first_burst_length.min(expected) {
            return Err(INCORRECT_AMOUNT_OF_DATA);
        }
        Ok(())
    }

    /// Gives the command memory for what may come unasked and lets it wait for its data. `None`: there is no memory.
    fn let_wait(&mut self, cmd: Box<Cmd>, new: &NewWait) -> Option<WaitKey> {
        match self.waits.insert(cmd, new) {
            Ok(key) => Some(key),
            Err(mut cmd) => {
                cmd.set_busy();
                if new.unsolicited_end.is_some() || new.in_pdu {
                    return Some(self.waits.hold_failed(cmd, new));
                }
                self.restart(cmd, RestartStatus::ErrorSenseSet);
                None
            }
        }
    }

    /// The core has a command ready, or is done with it, whose immediate data is being received. `None`: the data is to
    /// be dropped.
    pub(crate) fn begin_immediate(
        &mut self,
        hdr: &ScsiCmdHdr,
        handed: Handed,
        immediate: usize,
    ) -> Option<WaitKey> {
        let new = self.new_wait(hdr, immediate, true);
        let mut cmd = match handed {
            Handed::Preprocessed(cmd) => cmd,
            Handed::Held(cmd) => return Some(self.waits.hold_answer(cmd, &new)),
            Handed::Answered | Handed::Parked => return None,
        };
        if let Err(s) = self.check_unsolicited(hdr, immediate) {
            cmd.set_sense(s);
            return Some(self.waits.hold_failed(cmd, &new));
        }
        self.let_wait(cmd, &new)
    }

    /// The PDU of a command whose immediate data was received into its pages is complete.
    pub(crate) fn end_immediate(&mut self, key: WaitKey, digest_ok: bool) {
        if !digest_ok {
            self.fail_wait(key, DATA_DIGEST_ERROR);
        }
        self.waits.own_pdu_done(key);
        self.step(key);
    }

    /// Finds the command of a Data-Out PDU. `None`: the data is to be dropped.
    pub(crate) fn begin_data_out(&mut self, hdr: &DataOutHdr, len: usize) -> Option<Accepted> {
        let pdu = DataOut {
            itt: hdr.itt(),
            ttt: hdr.solicited_by(),
            offset: hdr.buffer_offset.get(),
            len: u32_of(len),
            data_sn: hdr.data_sn.into(),
            is_final: hdr.is_final(),
        };
        let accepted = self.waits.accept(&pdu)?;
        if let Some(e) = accepted.error {
            self.fail_wait(accepted.key, sense_of(e));
        }
        Some(accepted)
    }

    /// A Data-Out PDU is complete.
    pub(crate) fn end_data_out(&mut self, bhs: &Bhs, pdu: &Accepted, digest_ok: bool) {
        if !digest_ok {
            // DIFFERS: SCST only fails the command. RFC 7143 7.8: the PDU is rejected, and its task ends when the initiator has sent the rest.
            self.reject(bhs, RejectReason::DataDigestError);
            self.fail_wait(pdu.key, DATA_DIGEST_ERROR);
        }
        if let Err(e) = self.waits.pdu_done(pdu) {
            self.fail_wait(pdu.key, sense_of(e));
        }
        self.step(pdu.key);
    }

    /// A Data-Out PDU that is whole in the buffer.
    #[doc(alias = "data_out_start")]
    pub(crate) fn data_out(
        &mut self,
        bhs: &Bhs,
        hdr: &DataOutHdr,
        data: Option<&RxSlice>,
        data_ok: bool,
    ) {
        let len = data.map_or(0, |d| d.len());
        let Some(pdu) = self.begin_data_out(hdr, len) else {
            return;
        };
        if data_ok {
            let part = data.and_then(|d| d.get(..pdu.len)).unwrap_or_default();
            self.copy_in(pdu.key, pdu.at, part);
        }
        self.end_data_out(bhs, &pdu, data_ok);
    }

    /// Copies received bytes into a waiting command's buffer.
    pub(crate) fn copy_in(&mut self, key: WaitKey, at: usize, part: &[u8]) {
        if part.is_empty() {
            return;
        }
        let Some(cmd) = self.waits.cmd_mut(key) else {
            return;
        };
        if let Err(e) = cmd.sg_mut().copy_from_slice(at, part) {
            kshim::pr_err_ratelimited!("Write data cannot be stored at {at}: {e}");
            self.fail_wait(key, INCORRECT_AMOUNT_OF_DATA);
        }
    }

    /// Does what is due for a command that waits for data.
    pub(crate) fn step(&mut self, key: WaitKey) {
        match self.waits.step(key) {
            Step::Wait => {}
            Step::AskMore(key) => {
                self.send_r2ts(key);
                if self.waits.is_starved(key) {
                    self.waits.fail(key, |cmd| cmd.set_busy());
                    self.step(key);
                }
            }
            Step::Complete(cmd) => self.restart(cmd, RestartStatus::Success),
            Step::Fail(cmd) => self.restart(cmd, RestartStatus::ErrorSenseSet),
            Step::Answer(cmd) => self.answer(cmd),
        }
    }

    /// Lets commands ask for data that the connection's share of memory had no room for.
    pub(crate) fn admit_writes(&mut self) {
        while self.waits.has_queued()
            && let Some(key) = self.waits.admit()
        {
            self.step(key);
        }
    }

    fn fail_wait(&mut self, key: WaitKey, s: Sense) {
        self.waits.fail(key, |cmd| cmd.set_sense(s));
    }

    /// Gives up a command that task management aborted, if it waits here.
    #[doc(alias = "iscsi_on_abort_cmd")]
    pub(crate) fn reap(&mut self, cmd: &CmdRef) {
        if let Some(taken) = self.waits.take_aborted(|c| cmd.is(c)) {
            self.end_taken(taken, RestartStatus::Error);
        }
    }
}
