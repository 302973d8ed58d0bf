//! What transports and handlers read and set on a command they own.

use super::{Cmd, CmdRef, CmdState};
use crate::cdb::{CdbFlags, CdbInfo};
use crate::consts::{DataDirection, QueueType, SamStatus};
use crate::device::Device;
use crate::sense::{self, Sense, SenseExtra};
use crate::session::Session;
use crate::tgt_dev::TgtDev;
use kshim::scatterlist::SGTable;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Who may ask for the command's data and status; any method here needs the token, so none locks.
impl Cmd {
    /// The session the command came by.
    #[inline]
    pub fn session(&self) -> &Arc<Session> {
        &self.sess
    }

    /// The I_T_L nexus, once the LUN is translated.
    #[inline]
    pub fn tgt_dev(&self) -> Option<&Arc<TgtDev>> {
        self.tgt_dev.as_ref()
    }

    /// The logical unit, once the LUN is translated.
    #[inline]
    pub fn device(&self) -> Option<&Arc<Device>> {
        self.tgt_dev.as_ref().map(|t| &t.dev)
    }

    /// A reference that may outlive the command, for [`super::CmdHome::reap`] and the transport's own tables.
    pub fn cmd_ref(&self) -> CmdRef {
        CmdRef {
            shared: Arc::clone(&self.shared),
            generation: self.generation,
        }
    }

    /// Where the command is.
    #[inline]
    pub fn state(&self) -> CmdState {
        self.state
    }

    /// The CDB; at least 16 bytes unless its opcode is shorter.
    #[inline]
    pub fn cdb(&self) -> &[u8] {
        self.cdb.as_slice()
    }

    /// Byte `at` of the CDB; 0 past its end.
    #[inline]
    pub fn cdb_byte(&self, at: usize) -> u8 {
        self.cdb.as_slice().get(at).copied().unwrap_or(0)
    }

    /// What the CDB decoder found; `None` for an unknown opcode.
    #[inline]
    pub fn info(&self) -> Option<&CdbInfo> {
        self.info.as_ref()
    }

    /// The unpacked LUN.
    #[inline]
    pub fn lun(&self) -> u64 {
        self.lun
    }

    /// The transport's tag.
    #[doc(alias = "scst_cmd_get_tag")]
    #[inline]
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// Sets the transport's tag, by which task management finds the command. Before [`Cmd::init_done`].
    #[doc(alias = "scst_cmd_set_tag")]
    #[inline]
    pub fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
        self.shared.tag.store(tag, Ordering::Release);
    }

    /// Sets the transport's sequence number, so that task management knows what is older than itself.
    #[doc(alias = "scst_cmd_set_tgt_sn")]
    #[inline]
    pub fn set_tgt_sn(&mut self, sn: u32) {
        self.shared.tgt_sn.store(u64::from(sn), Ordering::Release);
    }

    /// The task attribute.
    #[inline]
    pub fn queue_type(&self) -> QueueType {
        self.queue_type
    }

    /// Sets the task attribute. Before [`Cmd::init_done`].
    #[doc(alias = "scst_cmd_set_queue_type")]
    #[inline]
    pub fn set_queue_type(&mut self, q: QueueType) {
        self.queue_type = q;
    }

    /// Says what the initiator expects to transfer: `len` bytes in `dir` (for bidirectional commands the data-in
    /// length), and `out_len` bytes of data-out for a bidirectional command. Before [`Cmd::init_done`].
    #[doc(alias = "scst_cmd_set_expected")]
    #[inline]
    pub fn set_expected(&mut self, dir: DataDirection, len: u32, out_len: u32) {
        self.expected_set = true;
        self.expected_data_direction = dir;
        self.expected_transfer_len = len;
        self.expected_out_transfer_len = out_len;
    }

    /// The direction of the data that the CDB says; `None` once it has no data.
    #[inline]
    pub fn data_direction(&self) -> DataDirection {
        self.data_direction
    }

    /// What the initiator expects to transfer.
    #[inline]
    pub fn expected_transfer_len(&self) -> u32 {
        self.expected_transfer_len
    }

    /// Length of the data buffer in bytes.
    #[inline]
    pub fn bufflen(&self) -> u32 {
        self.bufflen
    }

    /// Changes the length of the data buffer. The handler's `parse` only.
    pub fn set_bufflen(&mut self, len: u32) {
        self.bufflen = len;
    }

    /// Bytes that the command touches on the medium.
    #[inline]
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Changes the bytes touched on the medium. The handler's `parse` only.
    pub fn set_data_len(&mut self, len: u64) {
        self.data_len = len;
    }

    /// First logical block.
    #[inline]
    pub fn lba(&self) -> u64 {
        self.lba
    }

    /// Bytes to take from the initiator: what the CDB says, limited to what the initiator offers.
    #[doc(alias = "scst_cmd_get_write_fields")]
    #[inline]
    pub fn write_len(&self) -> u32 {
        self.write_len
    }

    /// The data buffer.
    #[inline]
    pub fn sg(&self) -> &SGTable {
        &self.sg
    }

    /// The data buffer, to fill or to take.
    #[inline]
    pub fn sg_mut(&mut self) -> &mut SGTable {
        &mut self.sg
    }

    /// SCSI status.
    #[doc(alias = "scst_cmd_get_status")]
    #[inline]
    pub fn status(&self) -> SamStatus {
        self.status
    }

    /// Sense data; empty when there is none.
    #[doc(alias = "scst_cmd_get_sense_buffer")]
    #[inline]
    pub fn sense(&self) -> &[u8] {
        &self.sense
    }

    /// Bytes of the data buffer that go to the initiator.
    #[doc(alias = "scst_cmd_get_adjusted_resp_data_len")]
    #[inline]
    pub fn resp_data_len(&self) -> u32 {
        self.resp_data_len.unwrap_or(0)
    }

    /// Sets how much of the buffer goes to the initiator; more than the buffer holds is cut.
    #[doc(alias = "scst_set_resp_data_len")]
    pub fn set_resp_data_len(&mut self, len: u32) {
        let len = len.min(self.bufflen);
        if len != self.resp_data_len() || len != self.bufflen {
            self.resid_possible = true;
        }
        self.resp_data_len = Some(len);
    }

    /// Fills the buffer with `data`, as much as fits, zeroes what the CDB asked for beyond it, and makes the
    /// shorter of both the response.
    pub fn fill_response(&mut self, data: &[u8]) {
        let n = data.len().min(self.sg.len());
        if self
            .sg
            .copy_from_slice(0, data.get(..n).unwrap_or(data))
            .is_err()
        {
            self.set_sense(sense::INTERNAL_FAILURE);
            return;
        }
        self.set_resp_data_len(u32::try_from(n).unwrap_or(u32::MAX));
    }

    /// Makes `data` the answer of a command that has no buffer yet: as much of it as `bufflen` bytes hold.
    pub(crate) fn answer_with_data(&mut self, data: &[u8], bufflen: u32) {
        self.data_direction = DataDirection::Read;
        self.bufflen = bufflen;
        if self.alloc_space(bufflen).is_err() {
            self.set_busy();
            return;
        }
        self.fill_response(data);
        self.completed = true;
        self.resid_possible = true;
    }

    /// Bytes not transferred of what the initiator expected (positive), or missing because it expected too few
    /// (negative). `None` when both agree.
    #[doc(alias = "scst_get_resid")]
    pub fn resid(&self) -> Option<i64> {
        (self.resid != 0).then_some(self.resid)
    }

    /// As [`Cmd::resid`], of the data-out of a command that the initiator says is bidirectional; `resid` is that of its
    /// data-in.
    #[inline]
    pub fn bidi_out_resid(&self) -> i64 {
        self.bidi_out_resid
    }

    /// The direction that the initiator says.
    #[inline]
    pub fn expected_data_direction(&self) -> DataDirection {
        self.expected_data_direction
    }

    /// Whether the command has its result.
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.completed
    }

    /// Whether task management wants the command gone.
    #[inline]
    pub fn is_aborted(&self) -> bool {
        self.shared.flags() & super::shared::ABORTED != 0
    }

    /// Whether the nexus is gone, so that no response may be sent.
    #[inline]
    pub fn is_no_resp(&self) -> bool {
        self.shared.flags() & super::shared::NO_RESP != 0
    }

    /// Fails the command with a status that has no sense data.
    #[doc(alias = "scst_set_cmd_error_status")]
    pub fn set_status(&mut self, status: SamStatus) {
        self.status = status;
        self.completed = true;
        self.sense.clear();
        self.resp_data_len = Some(0);
        self.resid_possible = true;
    }

    /// BUSY, or TASK SET FULL when the session has other commands here (SAM-5 5.3.3).
    #[doc(alias = "scst_set_busy")]
    pub fn set_busy(&mut self) {
        let status = if self.sess.live_cmds() <= 1 {
            SamStatus::Busy
        } else {
            SamStatus::TaskSetFull
        };
        self.set_status(status);
    }

    /// Fails the command with CHECK CONDITION and this sense.
    #[doc(alias = "scst_set_cmd_error")]
    pub fn set_sense(&mut self, s: Sense) {
        self.set_sense_extra(s, SenseExtra::None);
    }

    /// Fails the command with CHECK CONDITION, this sense, and what goes into its information or sense-key-specific
    /// field.
    #[doc(alias = "scst_set_cmd_error_and_inf")]
    pub fn set_sense_extra(&mut self, s: Sense, extra: SenseExtra) {
        let d_sense = !self.marks.fixed_sense
            && self
                .tgt_dev
                .as_ref()
                .is_some_and(|t| t.dev.control.d_sense.load(Ordering::Relaxed));
        self.set_status(SamStatus::CheckCondition);
        sense::build(&mut self.sense, d_sense, s, extra);
    }

    /// Fails the command with CHECK CONDITION and the sense data that its device has made.
    #[doc(alias = "scst_alloc_set_sense")]
    pub fn set_sense_data(&mut self, data: &[u8]) {
        self.set_status(SamStatus::CheckCondition);
        self.sense.extend_from_slice(data);
    }

    /// Takes a command whose CDB the core does not know as what the initiator expects it to be: data in this direction, of
    /// this length, no LBA. For handlers that pass commands on, from their `parse`.
    pub fn take_as_expected(&mut self, flags: CdbFlags) {
        let (dir, len) = if self.expected_set {
            (self.expected_data_direction, self.expected_transfer_len)
        } else {
            (DataDirection::None, 0)
        };
        self.data_direction = dir;
        self.bufflen = len;
        self.data_len = u64::from(len);
        self.info = Some(CdbInfo::passed_on(dir, len, flags, self.cdb().len()));
    }

    /// The command's data or sense carries a unit attention, to be put back if it does not arrive.
    pub(crate) fn mark_ua(&mut self, ua: crate::sense::Sense) {
        self.marks.ua = Some(ua);
    }

    /// ILLEGAL REQUEST, INVALID FIELD IN CDB, pointing to a byte and, if known, a bit of the CDB.
    #[doc(alias = "scst_set_invalid_field_in_cdb")]
    pub fn set_invalid_field_in_cdb(&mut self, byte: u16, bit: Option<u8>) {
        self.set_sense_extra(
            sense::INVALID_FIELD_IN_CDB,
            SenseExtra::FieldInCdb { byte, bit },
        );
    }

    /// ILLEGAL REQUEST, INVALID FIELD IN PARAMETER LIST, pointing to a byte and, if known, a bit of the parameters.
    #[doc(alias = "scst_set_invalid_field_in_parm_list")]
    pub fn set_invalid_field_in_parm_list(&mut self, byte: u16, bit: Option<u8>) {
        self.set_sense_extra(
            sense::INVALID_FIELD_IN_PARM_LIST,
            SenseExtra::FieldInParms { byte, bit },
        );
    }

    /// Says that the transport could not deliver the response: a unit attention in it is put back.
    #[doc(alias = "scst_set_delivery_status")]
    pub fn set_delivery_failed(&mut self) {
        self.marks.delivery_failed = true;
    }
}
